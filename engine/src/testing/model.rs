//! Random histories, run on a store and on the model side by side.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::Subject;
use super::history::{Chooser, Declared, Facts, Item, Put, Step};
use super::support::Store;
use crate::memory::{MemoryOptions, MemoryStore};
use crate::port::{
    Attributes, Batch, BatchItem, BatchItemOutcome, BinaryKey, BlobReader, BlobStore, BlobWriter,
    CopyOptions, DeleteOptions, Digest, DigestAlgorithm, Durability, ETag, GetOptions, ListRequest,
    Precondition, PutOptions, PutOutcome, StorageError,
};

/// Runs a random history of `steps` operations on a fresh store of the subject and on a
/// [`MemoryStore`], and compares every outcome: values, with version numbers translated, and kinds
/// of errors. The same seed is the same history.
///
/// The operations keep to the edges: few keys, sizes around the borders of blocks and chunks,
/// preconditions right and wrong, declared sizes and digests, batches, copies, renames, ranges,
/// lists page by page, streams and readers that stay open meanwhile, operations that are not
/// awaited, reopens.
///
/// # Panics
/// At the first difference, with the seed, the step, and all steps so far in short form.
pub fn check_against_model(subject: &mut dyn Subject, seed: u64, steps: usize) {
    let mut trace = Trace {
        seed,
        steps: Vec::new(),
        reported: false,
    };
    let mut chooser = Chooser::new(seed);
    let mut pair = Pair::new(subject);
    for _ in 0..steps {
        let step = chooser.step(&pair);
        trace.steps.push(format!("{step:?}"));
        if let Err(difference) = pair.run(step) {
            trace.fail(&difference);
        }
    }
    trace.steps.push("the end".to_owned());
    for last in [Step::Flush, Step::CompareAll, Step::Reopen] {
        if let Err(difference) = pair.run(last) {
            trace.fail(&difference);
        }
    }
    trace.reported = true;
}

/// The history so far; it is printed also when something in the store panics.
struct Trace {
    seed: u64,
    steps: Vec<String>,
    reported: bool,
}

impl Trace {
    fn fail(&mut self, difference: &str) -> ! {
        self.reported = true;
        panic!("{self}\n=> {difference}");
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.steps.len().saturating_sub(1);
        write!(f, "seed {}, step {at}; the history:", self.seed)?;
        for (number, step) in self.steps.iter().enumerate() {
            write!(f, "\n{number:5} {step}")?;
        }
        Ok(())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if !self.reported && std::thread::panicking() {
            eprintln!("panicked in {self}");
        }
    }
}

/// What is wrong, in words.
type Difference = String;

macro_rules! differ {
    ($($what:tt)*) => { return Err(format!($($what)*)) };
}

/// The store and the model, and how the versions of one are called in the other.
struct Pair<'a> {
    subject: &'a mut dyn Subject,
    /// Empty only while it is reopened.
    store: Option<Store>,
    model: MemoryStore,
    /// The store's version for each of the model's.
    versions: BTreeMap<u64, u64>,
    /// The highest version each key had in the store, in this life or an earlier one.
    highest: BTreeMap<BinaryKey, u64>,
    /// The store's creation time for each of the model's, whose clock never shows a time twice.
    created: BTreeMap<SystemTime, SystemTime>,
    /// The store's modification time for each of the model's versions.
    modified: BTreeMap<u64, SystemTime>,
    writer: Option<Writers>,
    reader: Option<Reading>,
    /// Something was only written, and not flushed since.
    unflushed: bool,
}

struct Writers {
    key: BinaryKey,
    store: BlobWriter,
    model: BlobWriter,
    /// The first error either has reported so far.
    failed: Option<StorageError>,
    model_failed: Option<StorageError>,
    durability: Durability,
}

struct Reading {
    store: BlobReader,
    /// What it has yet to hand out.
    rest: Bytes,
}

impl Facts for Pair<'_> {
    fn current(&self, key: &BinaryKey) -> Option<u64> {
        self.model.stat(key).wait().ok().map(|info| info.version)
    }

    fn size(&self, key: &BinaryKey) -> Option<u64> {
        self.model.stat(key).wait().ok().map(|info| info.size)
    }

    fn versions(&self) -> u64 {
        self.versions.last_key_value().map_or(0, |(last, _)| *last)
    }

    fn writing(&self) -> bool {
        self.writer.is_some()
    }

    fn reading(&self) -> bool {
        self.reader.is_some()
    }
}

impl<'a> Pair<'a> {
    fn new(subject: &'a mut dyn Subject) -> Self {
        let milliseconds = AtomicU64::new(0);
        let mut options = MemoryOptions {
            clock: Arc::new(move || {
                let now = milliseconds.fetch_add(1, Ordering::Relaxed);
                SystemTime::UNIX_EPOCH + Duration::from_millis(now)
            }),
            ..MemoryOptions::default()
        };
        options.max_blob_size = subject.max_blob_size().unwrap_or(options.max_blob_size);
        Self {
            store: Some(subject.fresh()),
            subject,
            model: MemoryStore::with_options(options),
            versions: BTreeMap::new(),
            highest: BTreeMap::new(),
            created: BTreeMap::new(),
            modified: BTreeMap::new(),
            writer: None,
            reader: None,
            unflushed: false,
        }
    }

    fn store(&self) -> Store {
        let store = self.store.as_ref();
        Arc::clone(store.expect("a store is open between the steps"))
    }

    fn run(&mut self, step: Step) -> Result<(), Difference> {
        match step {
            Step::Put(put) => self.put(&put),
            Step::PutStream { put, piece } => self.put_stream(&put, piece),
            Step::PutAndForget(put) => self.put_and_forget(&put),
            Step::PutMany(puts) => self.put_many(&puts),
            Step::Get {
                key,
                range,
                precondition,
                stream,
            } => {
                let options = GetOptions {
                    range,
                    precondition,
                };
                self.get(&key, &options, stream)
            }
            Step::Stat(key) => self.stat(&key),
            Step::Delete {
                key,
                precondition,
                strict,
            } => self.delete(&key, precondition, strict),
            Step::List(request) => self.list(request),
            Step::Batch(items) => self.batch(&items),
            Step::Copy {
                source,
                target,
                source_precondition,
                target_precondition,
                and_delete_source,
            } => {
                let options = CopyOptions {
                    source_precondition,
                    target_precondition,
                    ..CopyOptions::default()
                };
                self.copy(&source, &target, &options, and_delete_source)
            }
            Step::OpenWriter(put) => self.open_writer(&put),
            Step::Write(content) => self.write(&content.bytes()),
            Step::Finish => self.finish(),
            Step::DropWriter => {
                self.writer = None;
                Ok(())
            }
            Step::OpenReader(key) => self.open_reader(&key),
            Step::ReadOn => self.read_on().map(drop),
            Step::ReadToEnd => {
                while self.read_on()? {}
                Ok(())
            }
            Step::Flush => self.flush(),
            Step::Reopen => self.reopen(),
            Step::CompareAll => self.compare_all(),
        }
    }

    /// A precondition on a version of the model, said to the store.
    fn translate(&self, precondition: Precondition) -> Precondition {
        // Versions that never were stay such.
        let of = |model| {
            self.versions
                .get(&model)
                .copied()
                .unwrap_or(u64::MAX - model)
        };
        match precondition {
            Precondition::IfVersion(version) => Precondition::IfVersion(of(version)),
            Precondition::IfETag(etag) => {
                let known = self.versions.keys().copied();
                let version = known
                    .into_iter()
                    .find(|version| ETag::of_version(*version) == etag);
                Precondition::IfETag(ETag::of_version(version.map_or(u64::MAX, of)))
            }
            other => other,
        }
    }

    /// The options of a put, for the model and for the store.
    fn put_options(&self, put: &Put, bytes: &Bytes) -> (PutOptions, PutOptions) {
        let size = bytes.len() as u64;
        let digest = |algorithm| Some(Digest::of(algorithm, bytes));
        let mut options = PutOptions {
            precondition: put.precondition,
            durability: put.durability,
            attributes: (0..put.attributes)
                .map(|n| (format!("name {n}"), Bytes::from(vec![b'v'; n])))
                .collect(),
            ..PutOptions::default()
        };
        match put.declared {
            Declared::Nothing => {}
            Declared::Size => options.size = Some(size),
            Declared::Sha256 => options.digest = digest(DigestAlgorithm::Sha256),
            Declared::SizeAndBlake3 => {
                options.size = Some(size);
                options.digest = digest(DigestAlgorithm::Blake3);
            }
            Declared::WrongSize => options.size = Some(size ^ 1),
            Declared::WrongDigest => {
                let algorithms = [DigestAlgorithm::Sha256, DigestAlgorithm::Blake3];
                options.digest = Some(Digest::of(algorithms[bytes.len() % 2], b"other bytes"));
            }
            Declared::WrongAttributes => {
                options.attributes = Attributes::from([(String::new(), Bytes::new())]);
            }
        }
        let mut for_store = options.clone();
        for_store.precondition = self.translate(options.precondition);
        (options, for_store)
    }

    fn note_durability(&mut self, durability: Durability) {
        self.unflushed |= durability == Durability::Written;
    }

    /// Takes down that the model's version is called so in the store.
    fn record(
        &mut self,
        key: &BinaryKey,
        model: &PutOutcome,
        store: &PutOutcome,
    ) -> Result<(), Difference> {
        if model.size != store.size {
            differ!("{key}: size {}, expected {}", store.size, model.size);
        }
        if store.etag != ETag::of_version(store.version) {
            differ!("{key}: ETag {} of version {}", store.etag, store.version);
        }
        let highest = self.highest.entry(key.clone()).or_default();
        if store.version <= *highest {
            differ!("{key}: version {} after {highest}", store.version);
        }
        *highest = store.version;
        self.versions.insert(model.version, store.version);
        Ok(())
    }

    fn check_version(&self, key: &BinaryKey, model: u64, store: u64) -> Result<(), Difference> {
        match self.versions.get(&model) {
            Some(expected) if *expected == store => Ok(()),
            expected => differ!("{key}: version {store}, expected {expected:?}"),
        }
    }

    fn put(&mut self, put: &Put) -> Result<(), Difference> {
        let bytes = put.content.bytes();
        let (options, for_store) = self.put_options(put, &bytes);
        self.note_durability(put.durability);
        let store = self.store().put(&put.key, bytes.clone(), for_store).wait();
        let model = self.model.put(&put.key, bytes, options).wait();
        self.check_put(&put.key, model, store)
    }

    fn check_put(
        &mut self,
        key: &BinaryKey,
        model: Result<PutOutcome, StorageError>,
        store: Result<PutOutcome, StorageError>,
    ) -> Result<(), Difference> {
        match both(model, store)? {
            Some((model, store)) => self.record(key, &model, &store),
            None => Ok(()),
        }
    }

    fn put_stream(&mut self, put: &Put, piece: usize) -> Result<(), Difference> {
        let bytes = put.content.bytes();
        let (options, for_store) = self.put_options(put, &bytes);
        self.note_durability(put.durability);
        // No thousands of pieces.
        let piece = piece.max(bytes.len() / 100);
        let stream = |store: &dyn BlobStore, options| {
            let mut writer = store.put_stream(&put.key, options)?;
            for piece in bytes.chunks(piece) {
                writer.write(Bytes::copy_from_slice(piece)).wait()?;
            }
            writer.finish().wait()
        };
        let store = stream(&*self.store(), for_store);
        let model = stream(&self.model, options);
        self.check_put(&put.key, model, store)
    }

    fn put_and_forget(&mut self, put: &Put) -> Result<(), Difference> {
        let bytes = put.content.bytes();
        let (options, for_store) = self.put_options(put, &bytes);
        let store = self.store();
        drop(store.put(&put.key, bytes.clone(), for_store));
        self.flush()?;
        let model = self.model.put(&put.key, bytes, options).wait();
        let made = store.stat(&put.key).wait().map(|info| PutOutcome {
            etag: info.etag,
            version: info.version,
            size: info.size,
        });
        self.check_put(&put.key, model, made)
    }

    fn put_many(&mut self, puts: &[Put]) -> Result<(), Difference> {
        let store = self.store();
        let mut under_way = Vec::new();
        for put in puts {
            let bytes = put.content.bytes();
            let (options, for_store) = self.put_options(put, &bytes);
            self.note_durability(put.durability);
            let op = store.put(&put.key, bytes.clone(), for_store);
            under_way.push((put, bytes, options, op));
        }
        for (put, bytes, options, op) in under_way {
            let model = self.model.put(&put.key, bytes, options).wait();
            self.check_put(&put.key, model, op.wait())?;
        }
        Ok(())
    }

    fn get(
        &mut self,
        key: &BinaryKey,
        options: &GetOptions,
        stream: bool,
    ) -> Result<(), Difference> {
        let store = self.store();
        let for_store = GetOptions {
            range: options.range.clone(),
            precondition: self.translate(options.precondition),
        };
        let model = self.model.get(key, options.clone()).wait();
        if stream {
            let opened = store.get_stream(key, for_store).wait();
            if let Some((model, mut reader)) = both(model, opened)? {
                if (&reader.range, reader.size) != (&model.range, model.size) {
                    differ!("{key}: {reader:?}, expected {:?}", model.range);
                }
                self.check_version(key, model.version, reader.version)?;
                let mut read = Vec::new();
                while let Some(piece) = expect(reader.next().wait())? {
                    read.extend_from_slice(&piece);
                }
                same_bytes(key, &read, &model.bytes)?;
            }
        } else {
            let got = store.get(key, for_store).wait();
            if let Some((model, got)) = both(model, got)? {
                if (&got.range, got.size) != (&model.range, model.size) {
                    let range = got.range;
                    differ!(
                        "{key}: {range:?} of {}, expected {:?}",
                        got.size,
                        model.range
                    );
                }
                self.check_version(key, model.version, got.version)?;
                same_bytes(key, &got.bytes, &model.bytes)?;
            }
        }
        Ok(())
    }

    fn stat(&mut self, key: &BinaryKey) -> Result<(), Difference> {
        let store = self.store();
        let exists = expect(store.exists(key).wait())?;
        let model = self.model.stat(key).wait();
        if exists != model.is_ok() {
            differ!("{key}: exists says {exists}");
        }
        let Some((model, info)) = both(model, store.stat(key).wait())? else {
            return Ok(());
        };
        self.check_version(key, model.version, info.version)?;
        if (&info.key, info.size) != (&model.key, model.size) {
            differ!("{key}: stat is of {}, {} bytes", info.key, info.size);
        }
        if info.attributes != model.attributes {
            differ!(
                "{key}: attributes {:?}, expected {:?}",
                info.attributes,
                model.attributes
            );
        }
        let missing = |digest: &&Digest| !info.digests.contains(digest);
        if let Some(missing) = model.digests.iter().find(missing) {
            differ!("{key}: digest {missing} is missing in {:?}", info.digests);
        }
        let created = self.created.entry(model.created).or_insert(info.created);
        if *created != info.created {
            differ!(
                "{key}: created {:?}, before it was {created:?}",
                info.created
            );
        }
        if model.created == model.modified && info.created != info.modified {
            let (created, modified) = (info.created, info.modified);
            differ!("{key}: was put, but created {created:?}, modified {modified:?}");
        }
        let modified = self.modified.entry(model.version).or_insert(info.modified);
        if *modified != info.modified {
            differ!(
                "{key}: modified {:?}, before it was {modified:?}",
                info.modified
            );
        }
        Ok(())
    }

    fn delete(
        &mut self,
        key: &BinaryKey,
        precondition: Precondition,
        strict: bool,
    ) -> Result<(), Difference> {
        let options = |precondition| DeleteOptions {
            precondition,
            strict,
            ..DeleteOptions::default()
        };
        let for_store = options(self.translate(precondition));
        let store = self.store().delete(key, for_store).wait();
        let model = self.model.delete(key, options(precondition)).wait();
        match both(model, store)? {
            Some((model, store)) if model != store => differ!("{key}: {store:?}"),
            _ => Ok(()),
        }
    }

    /// All pages, one by one.
    fn list(&mut self, request: ListRequest) -> Result<(), Difference> {
        let store = self.store();
        let mut for_store = request.clone();
        let mut request = request;
        loop {
            let model = self.model.list(request.clone()).wait();
            let listed = store.list(for_store.clone()).wait();
            let Some((model, page)) = both(model, listed)? else {
                return Ok(());
            };
            if page.common_prefixes != model.common_prefixes {
                let (got, expected) = (page.common_prefixes, model.common_prefixes);
                differ!("common prefixes {got:?}, expected {expected:?}");
            }
            let keys = |blobs: &[crate::port::ListEntry]| {
                blobs.iter().fold(String::new(), |mut text, blob| {
                    write!(text, "{:?} ", blob.key).expect("a String takes it");
                    text
                })
            };
            let (got, expected) = (keys(&page.blobs), keys(&model.blobs));
            if got != expected {
                differ!("listed {got}, expected {expected}");
            }
            for (blob, model) in page.blobs.iter().zip(&model.blobs) {
                self.check_version(&blob.key, model.version, blob.version)?;
                if blob.size != model.size {
                    differ!("{}: listed with {} bytes", blob.key, blob.size);
                }
                let modified = self.modified.entry(model.version).or_insert(blob.modified);
                if *modified != blob.modified {
                    differ!("{}: listed as modified {:?}", blob.key, blob.modified);
                }
            }
            match (page.next, model.next) {
                (None, None) => return Ok(()),
                (Some(token), Some(model)) => {
                    for_store.token = Some(token);
                    request.token = Some(model);
                }
                (token, _) => differ!("next is {token:?}"),
            }
        }
    }

    fn batch(&mut self, items: &[Item]) -> Result<(), Difference> {
        let (mut for_model, mut for_store) = (Batch::new(), Batch::new());
        for item in items {
            match item {
                Item::Put(put) => {
                    let bytes = put.content.bytes();
                    let (options, store_options) = self.put_options(put, &bytes);
                    for (batch, options) in
                        [(&mut for_model, options), (&mut for_store, store_options)]
                    {
                        batch.items.push(BatchItem::Put {
                            key: put.key.clone(),
                            payload: bytes.clone(),
                            options,
                        });
                    }
                }
                Item::Delete {
                    key,
                    precondition,
                    strict,
                } => {
                    let translated = self.translate(*precondition);
                    for (batch, precondition) in [
                        (&mut for_model, *precondition),
                        (&mut for_store, translated),
                    ] {
                        batch.items.push(BatchItem::Delete {
                            key: key.clone(),
                            options: DeleteOptions {
                                precondition,
                                strict: *strict,
                                ..DeleteOptions::default()
                            },
                        });
                    }
                }
            }
        }
        let store = self.store().batch(for_store).wait();
        let model = self.model.batch(for_model).wait();
        let Some((model, store)) = both(model, store)? else {
            return Ok(());
        };
        if model.len() != store.len() {
            differ!("{} outcomes of {} items", store.len(), model.len());
        }
        for (item, outcomes) in items.iter().zip(model.iter().zip(&store)) {
            match (item, outcomes) {
                (Item::Put(put), (BatchItemOutcome::Put(model), BatchItemOutcome::Put(store))) => {
                    self.record(&put.key, model, store)?;
                }
                (
                    Item::Delete { .. },
                    (BatchItemOutcome::Delete(model), BatchItemOutcome::Delete(store)),
                ) if model == store => {}
                (item, (_, store)) => differ!("{item:?}: {store:?}"),
            }
        }
        Ok(())
    }

    fn copy(
        &mut self,
        source: &BinaryKey,
        target: &BinaryKey,
        options: &CopyOptions,
        and_delete_source: bool,
    ) -> Result<(), Difference> {
        let for_store = CopyOptions {
            source_precondition: self.translate(options.source_precondition),
            target_precondition: self.translate(options.target_precondition),
            durability: options.durability,
        };
        let copy = |store: &dyn BlobStore, options| {
            if and_delete_source {
                store.rename(source, target, options).wait()
            } else {
                store.copy(source, target, options).wait()
            }
        };
        let store = copy(&*self.store(), for_store);
        let model = copy(&self.model, options.clone());
        self.check_put(target, model, store)
    }

    fn open_writer(&mut self, put: &Put) -> Result<(), Difference> {
        let bytes = put.content.bytes();
        let (options, for_store) = self.put_options(put, &bytes);
        let store = self.store().put_stream(&put.key, for_store);
        let model = self.model.put_stream(&put.key, options);
        if let Some((model, store)) = both(model, store)? {
            self.writer = Some(Writers {
                key: put.key.clone(),
                store,
                model,
                failed: None,
                model_failed: None,
                durability: put.durability,
            });
            return self.write(&bytes);
        }
        Ok(())
    }

    fn write(&mut self, bytes: &Bytes) -> Result<(), Difference> {
        let writers = self.writer.as_mut().expect("chosen while a writer is open");
        for piece in bytes.chunks(40_000) {
            let piece = Bytes::copy_from_slice(piece);
            for (writer, failed) in [
                (&mut writers.store, &mut writers.failed),
                (&mut writers.model, &mut writers.model_failed),
            ] {
                if failed.is_none() {
                    *failed = writer.write(piece.clone()).wait().err();
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Difference> {
        let writers = self.writer.take().expect("chosen while a writer is open");
        let finish = |writer: BlobWriter, failed: Option<StorageError>| {
            let finished = writer.finish().wait();
            match (failed, finished) {
                (None, finished) => Ok(finished),
                (Some(error), Err(_)) => Ok(Err(error)),
                (Some(error), Ok(_)) => Err(format!("it finished after {error:?}")),
            }
        };
        self.note_durability(writers.durability);
        let store = finish(writers.store, writers.failed)?;
        let model = finish(writers.model, writers.model_failed)?;
        self.check_put(&writers.key, model, store)
    }

    fn open_reader(&mut self, key: &BinaryKey) -> Result<(), Difference> {
        let store = self.store().get_stream(key, GetOptions::default()).wait();
        let model = self.model.get(key, GetOptions::default()).wait();
        if let Some((model, store)) = both(model, store)? {
            self.check_version(key, model.version, store.version)?;
            self.reader = Some(Reading {
                store,
                rest: model.bytes,
            });
        }
        Ok(())
    }

    /// Reads a piece; whether there was one.
    fn read_on(&mut self) -> Result<bool, Difference> {
        let reading = self.reader.as_mut().expect("chosen while a reader is open");
        let Some(piece) = expect(reading.store.next().wait())? else {
            let left = reading.rest.len();
            self.reader = None;
            if left > 0 {
                differ!("the reader ended {left} bytes early");
            }
            return Ok(false);
        };
        if !reading.rest.starts_with(&piece) {
            let at = reading.store.range.end - reading.rest.len() as u64;
            differ!(
                "the reader's piece of {} bytes at {at} is wrong",
                piece.len()
            );
        }
        drop(reading.rest.split_to(piece.len()));
        Ok(true)
    }

    fn flush(&mut self) -> Result<(), Difference> {
        expect(self.store().flush().wait())?;
        self.unflushed = false;
        Ok(())
    }

    fn reopen(&mut self) -> Result<(), Difference> {
        if self.unflushed {
            self.flush()?;
        }
        self.writer = None;
        self.reader = None;
        let store = self
            .store
            .take()
            .expect("a store is open between the steps");
        self.store = Some(self.subject.reopen(store));
        self.compare_all()
    }

    fn compare_all(&mut self) -> Result<(), Difference> {
        self.list(ListRequest::default())?;
        let page = expect(self.model.list(ListRequest::default()).wait())?;
        for blob in page.blobs {
            self.stat(&blob.key)?;
            self.get(&blob.key, &GetOptions::default(), false)?;
        }
        Ok(())
    }
}

/// Both succeeded, or both failed with the same kind of error: else it is a difference.
fn both<M, S>(
    model: Result<M, StorageError>,
    store: Result<S, StorageError>,
) -> Result<Option<(M, S)>, Difference> {
    match (model, store) {
        (Ok(model), Ok(store)) => Ok(Some((model, store))),
        (Err(model), Err(store)) if model.kind() == store.kind() => Ok(None),
        (Ok(_), Err(store)) => differ!("it failed: {store:?}"),
        (Err(model), Ok(_)) => differ!("it succeeded, expected {model:?}"),
        (Err(model), Err(store)) => differ!("{store:?}, expected {model:?}"),
    }
}

/// What can't fail here.
fn expect<T>(outcome: Result<T, StorageError>) -> Result<T, Difference> {
    outcome.map_err(|error| format!("it failed: {error:?}"))
}

fn same_bytes(key: &BinaryKey, read: &[u8], expected: &[u8]) -> Result<(), Difference> {
    if read == expected {
        return Ok(());
    }
    let at = read.iter().zip(expected).position(|(a, b)| a != b);
    differ!(
        "{key}: read {} bytes, expected {}; they differ from byte {} on",
        read.len(),
        expected.len(),
        at.unwrap_or(read.len().min(expected.len()))
    );
}

//! A store and its model side by side: every step is run on both, and every answer compared.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::Subject;
use super::beside::{all_beside, held_beside};
use super::composed::sources_of;
use super::history::{
    Border, Burst, Condition, Copy, Create, Declared, Delete, Item, Kind, Put, PutRange, Step,
};
use super::support::Store;
use super::versions::{Versions, list_all};
use super::watched::Watched;
use crate::memory::{MemoryOptions, MemorySnapshot, MemoryStore};
use crate::port::{
    Attributes, Batch, BatchItem, BatchItemOutcome, BinaryKey, BlobInfo, BlobReader, BlobStore,
    BlobWriter, CopyOptions, DeleteOptions, DeleteOutcome, Digest, DigestAlgorithm, Durability,
    ETag, ErrorKind, GetOptions, Holes, ListEntry, ListRequest, MutableObjectStore, Place,
    Precondition, PutOptions, PutOutcome, PutRangeOptions, RangeSet, Span, StorageError,
};

/// A blob as far as its owner cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Its payload.
    pub bytes: Bytes,
    /// Its attributes.
    pub attributes: Attributes,
    /// Who set them, of those that did not come with it.
    pub sources: BTreeMap<String, String>,
    /// Of its bytes, those that were never written: they read as zeros.
    pub missing: RangeSet,
}

/// A blob without attributes or holes.
impl From<Bytes> for Held {
    fn from(bytes: Bytes) -> Self {
        Self {
            bytes,
            attributes: Attributes::new(),
            sources: BTreeMap::new(),
            missing: RangeSet::new(),
        }
    }
}

/// What a store holds.
pub type Contents = BTreeMap<BinaryKey, Held>;

/// One key's new state.
#[derive(Debug, Clone)]
pub struct Change {
    /// The key.
    pub key: BinaryKey,
    /// Its blob from now on; `None` if it has none.
    pub blob: Option<Held>,
}

/// A mutation that was called for: all of its changes happen, or none.
#[derive(Debug, Clone)]
pub struct Operation {
    /// What it changes.
    pub changes: Vec<Change>,
    /// Whether its success said that it is durable.
    pub durable: bool,
    /// Whether it succeeded; else it failed in a way that leaves open whether it happened.
    pub acknowledged: bool,
    /// How many events the disks had seen when the answer was seen, as [`Subject::events`] counts them.
    pub answered: usize,
}

impl Operation {
    /// Whether it is known to be durable after so many events, by its own answer.
    #[must_use]
    pub fn is_durable(&self, events: usize) -> bool {
        self.durable && self.answered <= events
    }
}

/// What a step did.
#[derive(Debug, Clone, Default)]
pub struct Effect {
    /// Its mutations, which were under way together.
    pub operations: Vec<Operation>,
    /// It succeeded in making everything durable, itself included, and so many events were seen when that was known.
    pub flushed: Option<usize>,
    /// It succeeded in making everything before it durable, and so many events were seen when that was known.
    pub flushed_before: Option<usize>,
}

/// What an error that the model does not have means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tolerance {
    /// It is wrong.
    Wrong,
    /// Something is in the way, and nothing happened.
    Refused,
    /// Something is in the way, and a mutation may have happened all the same, now or after a crash.
    InDoubt,
}

/// What is wrong, in words.
pub type Difference = String;

macro_rules! differ {
    ($($what:tt)*) => { return Err(format!($($what)*)) };
}
pub(super) use differ;

/// A store of the subject and its model, and how the versions of one are called in the other.
pub struct Pair<'a, S: Subject + ?Sized> {
    subject: &'a mut S,
    /// Empty only while it is reopened.
    store: Option<Store>,
    model: MemoryStore,
    empty: MemorySnapshot,
    /// The store's version for each of the model's.
    versions: BTreeMap<u64, u64>,
    /// The highest version each key had in the store, in this life or an earlier one, since the
    /// store last lost something.
    highest: BTreeMap<BinaryKey, u64>,
    /// Every version the store ever gave: none comes again, even if it was lost.
    given: Versions,
    /// The store's creation time for each of the model's, whose clock never shows a time twice.
    created: BTreeMap<SystemTime, SystemTime>,
    /// The store's modification time for each of the model's versions.
    modified: BTreeMap<u64, SystemTime>,
    /// What the store calls each life that the model knows of.
    lives: BTreeMap<u64, u64>,
    writer: Option<Writers>,
    reader: Option<Reading>,
    /// Something was only written, and not flushed since.
    unflushed: bool,
    effect: Effect,
}

struct Writers {
    put: Put,
    store: BlobWriter,
    model: BlobWriter,
    /// The first error either has reported so far.
    failed: Option<StorageError>,
    model_failed: Option<StorageError>,
}

struct Reading {
    store: BlobReader,
    /// What it has yet to hand out.
    rest: Bytes,
}

/// A mutation that was submitted to the store.
enum Submitted {
    Put(Put, Bytes, PutOptions, Watched<PutOutcome>),
    Delete(Delete, Watched<DeleteOutcome>),
}

impl Submitted {
    /// See [`Watched::look`].
    fn look(&mut self, events: usize) {
        match self {
            Self::Put(.., op) => op.look(events),
            Self::Delete(_, op) => op.look(events),
        }
    }
}

impl<'a, S: Subject + ?Sized> Pair<'a, S> {
    /// A fresh store of the subject, and an empty model.
    pub fn new(subject: &'a mut S) -> Self {
        let store = subject.fresh();
        Self::over(subject, store)
    }

    /// An empty store, and an empty model.
    pub fn over(subject: &'a mut S, store: Arc<dyn BlobStore>) -> Self {
        let milliseconds = AtomicU64::new(0);
        let mut options = MemoryOptions {
            clock: Arc::new(move || {
                let now = milliseconds.fetch_add(1, Ordering::Relaxed);
                SystemTime::UNIX_EPOCH + Duration::from_millis(now)
            }),
            ..MemoryOptions::default()
        };
        options.max_blob_size = subject.max_blob_size().unwrap_or(options.max_blob_size);
        let model = MemoryStore::with_options(options);
        Self {
            store: Some(store),
            subject,
            empty: model.snapshot(),
            model,
            versions: BTreeMap::new(),
            highest: BTreeMap::new(),
            given: Versions::default(),
            created: BTreeMap::new(),
            modified: BTreeMap::new(),
            lives: BTreeMap::new(),
            writer: None,
            reader: None,
            unflushed: false,
            effect: Effect::default(),
        }
    }

    /// What the stores are made by.
    pub fn subject(&mut self) -> &mut S {
        self.subject
    }

    /// What the store should hold.
    ///
    /// # Panics
    /// Never: a model answers.
    #[must_use]
    pub fn contents(&self) -> Contents {
        contents_of(&self.model).expect("a model answers")
    }

    /// What is known of the versions that the store gave.
    #[must_use]
    pub fn given(&self) -> &Versions {
        &self.given
    }

    /// Gives up the store's handle and all of its readers and writers, as before a reopening.
    ///
    /// # Panics
    /// If it was given up already.
    pub fn release(&mut self) -> Arc<dyn BlobStore> {
        self.writer = None;
        self.reader = None;
        self.store
            .take()
            .expect("a store is open between the steps")
    }

    /// Goes on with a store that was opened again and should hold what the model does.
    pub fn resume(&mut self, store: Arc<dyn BlobStore>) {
        self.store = Some(store);
    }

    /// Goes on with a store that was opened again, whatever it holds: that is the model from now
    /// on. Versions that were lost still never come again.
    ///
    /// # Errors
    /// What can't be read.
    pub fn adopt(&mut self, store: Arc<dyn MutableObjectStore>) -> Result<(), Difference> {
        self.model.restore(&self.empty);
        self.versions.clear();
        self.highest.clear();
        self.created.clear();
        self.lives.clear();
        self.modified.clear();
        self.unflushed = false;
        let found = expect(blobs_of(&*store))?;
        for (key, held) in found {
            let held = expect(held)?;
            let info = expect(store.stat(&key).wait())?;
            let mut put = held.attributes.clone();
            put.retain(|name, _| !held.sources.contains_key(name));
            let options = PutOptions {
                attributes: put,
                digest: info.digests.first().copied(),
                ..PutOptions::default()
            };
            let mut made = if held.missing.is_empty() {
                expect(self.model.put(&key, held.bytes.clone(), options).wait())?
            } else {
                expect(self.make_sparse(&key, &held, options))?
            };
            made = expect(self.adopt_sources(&key, &held, made))?;
            let model = expect(self.model.stat(&key).wait())?;
            self.created.insert(model.created, info.created);
            if info.created != info.modified && model.created == model.modified {
                let options = CopyOptions::default();
                made = expect(self.model.copy(&key, &key, options).wait())?;
            }
            self.modified.insert(made.version, info.modified);
            self.versions.insert(made.version, info.version);
            // Of a store that others made, any may be there.
            self.given.come_to_light(&key, info.version);
            self.highest.insert(key, info.version);
            self.given.see(info)?;
        }
        self.adopt_beside(&*store)?;
        self.store = Some(store);
        Ok(())
    }

    /// Makes a blob with holes in the model.
    fn make_sparse(
        &self,
        key: &BinaryKey,
        held: &Held,
        options: PutOptions,
    ) -> Result<PutOutcome, StorageError> {
        let size = held.bytes.len() as u64;
        let mut made = self.model.create_sparse(key, size, options).wait()?;
        for &span in &held.missing.complement(Span::first(size)) {
            let at = |place| usize::try_from(place).unwrap_or(usize::MAX);
            let bytes = held.bytes.slice(at(span.start())..at(span.end()));
            let options = PutRangeOptions::default();
            made = self.model.put_range(key, span, bytes, options).wait()?;
        }
        Ok(made)
    }

    /// The store as what it is besides a `BlobStore`, if it is.
    pub(super) fn mutable(&self) -> Option<Arc<dyn MutableObjectStore>> {
        self.subject.mutable()
    }

    pub(super) fn model(&self) -> &MemoryStore {
        &self.model
    }

    /// The store gave a version that no blob has, and never gave it before.
    pub(super) fn check_new(&mut self, key: &BinaryKey, version: u64) -> Result<(), Difference> {
        match self.given.give(version) {
            true => Ok(()),
            false => differ!("{key}: version {version} for the second time"),
        }
    }

    fn store(&self) -> Store {
        let store = self.store.as_ref();
        Arc::clone(store.expect("a store is open between the steps"))
    }

    /// Does a step on both sides.
    ///
    /// # Errors
    /// The first difference, in words.
    pub fn run(&mut self, step: &Step) -> Result<Effect, Difference> {
        self.effect = Effect::default();
        self.given.begin();
        match &step.0 {
            Kind::Put(put) => self.put(put),
            Kind::PutStream { put, piece } => self.put_stream(put, *piece),
            Kind::Forget(item) => self.forget(item),
            Kind::Burst(burst) => self.burst(burst, |_| {}),
            Kind::Get {
                key,
                range,
                condition,
                stream,
            } => self.get(key, *range, *condition, *stream, Holes::Refuse),
            Kind::Stat(key) => self.stat(key),
            Kind::Delete(delete) => self.delete(delete),
            Kind::List(request) => self.list(request.clone()),
            Kind::Batch(items, durability) => self.batch(items, *durability),
            Kind::Copy(copy) => self.copy(copy),
            Kind::Create(create) => self.create(create),
            Kind::PutRange(put) => self.put_range(put),
            Kind::Compose(compose) => self.compose(compose),
            Kind::Update(update) => self.update(update),
            Kind::Erase {
                key,
                range: (start, end),
                durability,
            } => self.erase(key, *start, *end, *durability),
            Kind::Start(key, durability) => self.start_upload(key, *durability),
            Kind::PutPart(part) => self.put_part(part),
            Kind::Complete(complete) => self.complete_upload(complete),
            Kind::Abort(key) => self.abort_upload(key),
            Kind::Mark(mark) => self.mark(mark),
            Kind::CompareAndSet(mark, wrong) => self.compare_and_set(mark, *wrong),
            Kind::Forgo(key) => self.forgo(*key),
            Kind::OpenWriter(put) => self.open_writer(put),
            Kind::Write(content) => self.write(&content.bytes()),
            Kind::Finish => self.finish(),
            Kind::DropWriter => {
                self.writer = None;
                Ok(())
            }
            Kind::OpenReader(key) => self.open_reader(key),
            Kind::ReadOn => self.read_on().map(drop),
            Kind::ReadToEnd => {
                while self.read_on()? {}
                Ok(())
            }
            Kind::Flush => self.flush(),
            Kind::Reopen => self.reopen(),
            Kind::CompareAll => self.compare_all(),
        }?;
        Ok(std::mem::take(&mut self.effect))
    }

    /// As [`Pair::run`]; while what a step does is under way, something else is done that changes no blob, and is given
    /// what looks for the answers that are there. Most steps have nothing under way: then it is done before.
    ///
    /// # Errors
    /// The first difference, in words.
    pub fn run_beside(
        &mut self,
        step: &Step,
        meanwhile: impl FnOnce(&mut dyn FnMut()),
    ) -> Result<Effect, Difference> {
        let Kind::Burst(burst) = &step.0 else {
            meanwhile(&mut || {});
            return self.run(step);
        };
        self.effect = Effect::default();
        self.given.begin();
        self.burst(burst, meanwhile)?;
        Ok(std::mem::take(&mut self.effect))
    }

    pub(super) fn current(&self, key: &BinaryKey) -> Option<BlobInfo> {
        self.model.stat(key).wait().ok()
    }

    /// A condition, said to the model.
    pub(super) fn precise(&self, key: &BinaryKey, condition: Condition) -> Precondition {
        let current = || self.current(key).map_or(u64::MAX, |info| info.version);
        let highest = self.versions.last_key_value().map_or(0, |(last, _)| *last);
        match condition {
            Condition::None => Precondition::None,
            Condition::Absent => Precondition::IfAbsent,
            Condition::Current => Precondition::IfVersion(current()),
            Condition::CurrentETag => Precondition::IfETag(ETag::of_version(current())),
            Condition::Earlier(version) => Precondition::IfVersion(version % (highest + 1)),
            Condition::EarlierETag(version) => {
                Precondition::IfETag(ETag::of_version(version % (highest + 1)))
            }
        }
    }

    /// A precondition on a version of the model, said to the store.
    pub(super) fn translate(&self, precondition: Precondition) -> Precondition {
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
            precondition: self.precise(&put.key, put.condition),
            durability: put.durability,
            attributes: attributes(put.attributes),
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

    fn delete_options(&self, delete: &Delete) -> (DeleteOptions, DeleteOptions) {
        let options = DeleteOptions {
            precondition: self.precise(&delete.key, delete.condition),
            durability: delete.durability,
            strict: delete.strict,
        };
        let mut for_store = options.clone();
        for_store.precondition = self.translate(options.precondition);
        (options, for_store)
    }

    /// Does to the model what the store was asked to do to `keys` and has answered.
    pub(super) fn settle<M, T>(
        &mut self,
        keys: &[&BinaryKey],
        durability: Durability,
        store: Result<T, StorageError>,
        apply: impl FnOnce(&MemoryStore) -> Result<M, StorageError>,
    ) -> Result<Option<(M, T)>, Difference> {
        let before = self.model.snapshot();
        let model = apply(&self.model);
        let tolerance = self.tolerance(&store);
        let Some(outcome) = both(model, store, tolerance)? else {
            return Ok(None);
        };
        let changes: Vec<Change> = keys.iter().map(|key| self.change(key)).collect();
        let acknowledged = matches!(outcome, Both::Succeeded(..));
        let may_have_happened = !changes.is_empty() && tolerance != Tolerance::Refused;
        if !acknowledged {
            if may_have_happened {
                keys.iter().for_each(|key| self.given.doubt(key));
            }
            if tolerance == Tolerance::InDoubt && self.happened(&changes)? {
                self.learn_versions(keys)?;
            } else {
                self.model.restore(&before);
            }
        }
        if may_have_happened {
            self.unflushed |= durability == Durability::Written;
            self.effect.operations.push(Operation {
                changes,
                durable: acknowledged && durability == Durability::Durable,
                acknowledged,
                answered: self.subject.events(),
            });
        }
        Ok(match outcome {
            Both::Succeeded(model, store) => Some((model, store)),
            Both::Tolerated => None,
        })
    }

    fn tolerance<T>(&self, outcome: &Result<T, StorageError>) -> Tolerance {
        match outcome {
            Ok(_) => Tolerance::Wrong,
            Err(error) => self.subject.tolerates(error),
        }
    }

    /// What only reads: both succeeded, or there is nothing to compare.
    pub(super) fn compare<M, T>(
        &self,
        model: Result<M, StorageError>,
        store: Result<T, StorageError>,
    ) -> Result<Option<(M, T)>, Difference> {
        let tolerance = self.tolerance(&store);
        Ok(match both(model, store, tolerance)? {
            Some(Both::Succeeded(model, store)) => Some((model, store)),
            Some(Both::Tolerated) | None => None,
        })
    }

    /// What can't fail here, but for what is tolerated.
    fn expect<T>(&self, outcome: Result<T, StorageError>) -> Result<Option<T>, Difference> {
        if self.tolerance(&outcome) == Tolerance::Wrong {
            return expect(outcome).map(Some);
        }
        Ok(None)
    }

    /// The key's state in the model.
    fn change(&self, key: &BinaryKey) -> Change {
        let blob = match key.is_blob() {
            true => held(&self.model, key).ok(),
            false => held_beside(&self.model, key).ok().flatten(),
        };
        Change {
            key: key.clone(),
            blob,
        }
    }

    pub(super) fn lives(&mut self) -> &mut BTreeMap<u64, u64> {
        &mut self.lives
    }

    /// What is listed under a key: that needs no disk, which may go on failing.
    pub(super) fn listed(&self, key: &BinaryKey) -> Result<Option<ListEntry>, Difference> {
        let request = ListRequest {
            max: 1,
            ..ListRequest::prefix(key)
        };
        let page = expect(self.store().list(request).wait())?;
        let entry = page.blobs.into_iter().next();
        Ok(entry.filter(|entry| entry.key == *key))
    }

    /// Whether changes that were left in doubt have happened.
    fn happened(&self, changes: &[Change]) -> Result<bool, Difference> {
        for change in changes {
            if !change.key.is_blob() {
                if !self.is_beside(change) {
                    return Ok(false);
                }
                continue;
            }
            let is_there = match (self.listed(&change.key)?, &change.blob) {
                (Some(entry), Some(_)) => !self.given.contains(entry.version),
                (None, None) => true,
                _ => false,
            };
            if !is_there {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn learn_versions(&mut self, keys: &[&BinaryKey]) -> Result<(), Difference> {
        for key in keys.iter().filter(|key| key.is_blob()) {
            if let (Some(model), Some(entry)) = (self.current(key), self.listed(key)?) {
                self.versions.insert(model.version, entry.version);
                if !self.given.come_to_light(key, entry.version) {
                    differ!("{key}: version {}, which was never given", entry.version);
                }
                self.highest.insert((*key).clone(), entry.version);
            }
        }
        Ok(())
    }

    /// Takes down that the model's version is called so in the store.
    pub(super) fn record(
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
        if !self.given.give(store.version) {
            differ!("{key}: version {} for the second time", store.version);
        }
        *highest = store.version;
        self.versions.insert(model.version, store.version);
        // A disk that fails may keep it from being known, and another version may have come since.
        let info = match self.store().stat(key).wait() {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            outcome => self.expect(outcome)?,
        };
        match info {
            Some(info) if info.version == store.version => self.given.see(info),
            _ => Ok(()),
        }
    }

    pub(super) fn check_version(
        &self,
        key: &BinaryKey,
        model: u64,
        store: u64,
    ) -> Result<(), Difference> {
        match self.versions.get(&model) {
            Some(expected) if *expected == store => Ok(()),
            expected => differ!("{key}: version {store}, expected {expected:?}"),
        }
    }

    fn put(&mut self, put: &Put) -> Result<(), Difference> {
        let bytes = put.content.bytes();
        let (options, for_store) = self.put_options(put, &bytes);
        let store = self.store().put(&put.key, bytes.clone(), for_store).wait();
        self.settle_put(put, store, |model| {
            model.put(&put.key, bytes, options).wait()
        })
    }

    fn settle_put(
        &mut self,
        put: &Put,
        store: Result<PutOutcome, StorageError>,
        apply: impl FnOnce(&MemoryStore) -> Result<PutOutcome, StorageError>,
    ) -> Result<(), Difference> {
        let key = &put.key;
        match self.settle(&[key], put.durability, store, apply)? {
            Some((model, store)) => self.record(key, &model, &store),
            None => Ok(()),
        }
    }

    fn create(&mut self, create: &Create) -> Result<(), Difference> {
        let Some(mutable) = self.subject.mutable() else {
            return Ok(());
        };
        let Create { key, size, .. } = create;
        let options = PutOptions {
            precondition: self.precise(key, create.condition),
            durability: create.durability,
            attributes: attributes(create.attributes),
            ..PutOptions::default()
        };
        let mut for_store = options.clone();
        for_store.precondition = self.translate(options.precondition);
        let made = mutable.create_sparse(key, *size, for_store).wait();
        let settled = self.settle(&[key], create.durability, made, |model| {
            model.create_sparse(key, *size, options).wait()
        })?;
        match settled {
            Some((model, store)) => self.record(key, &model, &store),
            None => Ok(()),
        }
    }

    fn put_range(&mut self, put: &PutRange) -> Result<(), Difference> {
        /// So that nothing that is read whole is large.
        const PLACE_MAX: u64 = 1 << 17;
        let Some(mutable) = self.subject.mutable() else {
            return Ok(());
        };
        let key = &put.key;
        let bytes = put.content.bytes();
        let start = self.place(key, put.start).min(PLACE_MAX);
        let range = expect(Span::at(start, bytes.len() as u64))?;
        let options = PutRangeOptions {
            precondition: self.precise(key, put.condition),
            durability: put.durability,
            past_end: put.past_end,
        };
        let mut for_store = options.clone();
        for_store.precondition = self.translate(options.precondition);
        let made = mutable
            .put_range(key, range, bytes.clone(), for_store)
            .wait();
        if range.is_empty() {
            let model = self.model.put_range(key, range, bytes, options).wait();
            return match self.compare(model, made)? {
                Some((model, made)) => self.check_version(key, model.version, made.version),
                None => Ok(()),
            };
        }
        let settled = self.settle(&[key], put.durability, made, |model| {
            model.put_range(key, range, bytes, options).wait()
        })?;
        match settled {
            Some((model, store)) => self.record(key, &model, &store),
            None => Ok(()),
        }
    }

    fn put_stream(&mut self, put: &Put, piece: usize) -> Result<(), Difference> {
        let bytes = put.content.bytes();
        let (options, for_store) = self.put_options(put, &bytes);
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
        self.settle_put(put, store, |model| stream(model, options))
    }

    fn forget(&mut self, item: &Item) -> Result<(), Difference> {
        let submitted = self.submit(item);
        let store = self.store();
        match submitted {
            Submitted::Put(put, bytes, options, op) => {
                drop(op);
                await_earlier(&*store, &put.key);
                let flushed = store.flush().wait();
                let made = flushed.and_then(|()| match store.stat(&put.key).wait() {
                    Ok(info) if self.given.contains(info.version) => Err(unheard_of()),
                    Ok(info) => Ok(PutOutcome {
                        etag: info.etag,
                        version: info.version,
                        size: info.size,
                    }),
                    Err(error) if error.kind() == ErrorKind::NotFound => Err(unheard_of()),
                    Err(error) => Err(error),
                });
                let put = Put {
                    durability: Durability::Durable,
                    ..put
                };
                self.settle_put(&put, made, |model| {
                    model.put(&put.key, bytes, options).wait()
                })
            }
            Submitted::Delete(delete, op) => {
                drop(op);
                await_earlier(&*store, &delete.key);
                let flushed = store.flush().wait();
                let gone = flushed.and_then(|()| match store.exists(&delete.key).wait()? {
                    true => Err(unheard_of()),
                    false => Ok(()),
                });
                let (options, _) = self.delete_options(&delete);
                let keys = [&delete.key];
                let settled = self.settle(&keys, Durability::Durable, gone, |model| {
                    model.delete(&delete.key, options).wait()
                });
                settled.map(drop)
            }
        }
    }

    fn submit(&mut self, item: &Item) -> Submitted {
        let store = self.store();
        match item {
            Item::Put(put) => {
                let bytes = put.content.bytes();
                let (options, for_store) = self.put_options(put, &bytes);
                let op = store.put(&put.key, bytes.clone(), for_store);
                Submitted::Put(put.clone(), bytes, options, Watched::new(op))
            }
            Item::Delete(delete) => {
                let (_, for_store) = self.delete_options(delete);
                let op = store.delete(&delete.key, for_store);
                Submitted::Delete(delete.clone(), Watched::new(op))
            }
        }
    }

    fn burst(
        &mut self,
        burst: &Burst,
        meanwhile: impl FnOnce(&mut dyn FnMut()),
    ) -> Result<(), Difference> {
        let items = burst.items.iter();
        let mut under_way: Vec<Submitted> = items.map(|item| self.submit(item)).collect();
        let flush = burst.flush.then(|| self.store().flush());
        let mut flush = flush.map(Watched::new);
        meanwhile(&mut || {
            let events = self.subject.events();
            under_way.iter_mut().for_each(|one| one.look(events));
            flush.iter_mut().for_each(|flush| flush.look(events));
        });
        for submitted in under_way {
            let settled = self.effect.operations.len();
            let answered = match submitted {
                Submitted::Put(put, bytes, options, op) => {
                    let (answer, at) = op.wait(|| self.subject.events());
                    self.settle_put(&put, answer, |model| {
                        model.put(&put.key, bytes, options).wait()
                    })?;
                    at
                }
                Submitted::Delete(delete, op) => {
                    let (answer, at) = op.wait(|| self.subject.events());
                    self.settle_delete(&delete, answer)?;
                    at
                }
            };
            let settled = &mut self.effect.operations[settled..];
            settled.iter_mut().for_each(|one| one.answered = answered);
        }
        if let Some(flush) = flush {
            let (flushed, at) = flush.wait(|| self.subject.events());
            self.effect.flushed_before = self.expect(flushed)?.map(|()| at);
        }
        Ok(())
    }

    /// What a get asks for, said precisely.
    fn range(&self, key: &BinaryKey, range: Option<(Border, Border)>) -> Option<Range<u64>> {
        let place = |border| self.place(key, border);
        let (start, end) = range.map(|(start, end)| (place(start), place(end)))?;
        // Of an absent blob with a range that is none, either may be said.
        if start > end && self.current(key).is_none() {
            return Some(end..start);
        }
        Some(start..end)
    }

    /// A place in a blob, said precisely.
    pub(super) fn place(&self, key: &BinaryKey, border: Border) -> u64 {
        let size = self.current(key).map_or(100, |info| info.size);
        match border {
            Border::At(place) => place,
            Border::BeforeEnd(bytes) => size.saturating_sub(bytes),
            Border::AfterEnd(bytes) => size + bytes,
            Border::Share(share) => {
                u64::try_from((u128::from(size) * u128::from(share)) >> 16).unwrap_or(u64::MAX)
            }
        }
    }

    fn get(
        &mut self,
        key: &BinaryKey,
        range: Option<(Border, Border)>,
        condition: Condition,
        stream: bool,
        holes: Holes,
    ) -> Result<(), Difference> {
        let store = self.store();
        let options = GetOptions {
            range: self.range(key, range),
            precondition: self.precise(key, condition),
            holes,
        };
        let for_store = GetOptions {
            precondition: self.translate(options.precondition),
            ..options.clone()
        };
        let model = self.model.get(key, options).wait();
        if stream {
            let opened = store.get_stream(key, for_store).wait();
            if let Some((model, mut reader)) = self.compare(model, opened)? {
                if (&reader.range, reader.size) != (&model.range, model.size) {
                    differ!("{key}: {reader:?}, expected {:?}", model.range);
                }
                self.check_version(key, model.version, reader.version)?;
                let mut read = Vec::new();
                loop {
                    let next = reader.next().wait();
                    match self.expect(next)? {
                        Some(Some(piece)) => read.extend_from_slice(&piece),
                        Some(None) => return same_bytes(key, &read, &model.bytes),
                        None => return Ok(()),
                    }
                }
            }
        } else {
            let got = store.get(key, for_store).wait();
            if let Some((model, got)) = self.compare(model, got)? {
                if (&got.range, got.size) != (&model.range, model.size) {
                    let (range, size) = (got.range, got.size);
                    differ!("{key}: {range:?} of {size}, expected {:?}", model.range);
                }
                self.check_version(key, model.version, got.version)?;
                same_bytes(key, &got.bytes, &model.bytes)?;
            }
        }
        Ok(())
    }

    fn stat(&mut self, key: &BinaryKey) -> Result<(), Difference> {
        let store = self.store();
        let model = self.model.stat(key).wait();
        match self.expect(store.exists(key).wait())? {
            Some(exists) if exists != model.is_ok() => differ!("{key}: exists says {exists}"),
            _ => {}
        }
        let Some((model, info)) = self.compare(model, store.stat(key).wait())? else {
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
        if info.missing != model.missing {
            let (found, expected) = (&info.missing, &model.missing);
            differ!("{key}: {found} was never written, expected {expected}");
        }
        if !info.digests.is_empty() && model.digests.is_empty() {
            let bytes = expect(held(&self.model, key))?.bytes;
            let is_wrong = |digest: &&Digest| Digest::of(digest.algorithm, &bytes) != **digest;
            if let Some(wrong) = info.digests.iter().find(is_wrong) {
                differ!("{key}: digest {wrong} is of other bytes");
            }
        }
        let created = self.created.entry(model.created).or_insert(info.created);
        if *created != info.created {
            differ!(
                "{key}: created {:?}, before it was {created:?}",
                info.created
            );
        }
        self.compare_manifest(key)?;
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
        self.given.see(info)
    }

    fn delete(&mut self, delete: &Delete) -> Result<(), Difference> {
        let (_, for_store) = self.delete_options(delete);
        let store = self.store().delete(&delete.key, for_store).wait();
        self.settle_delete(delete, store)
    }

    fn settle_delete(
        &mut self,
        delete: &Delete,
        store: Result<DeleteOutcome, StorageError>,
    ) -> Result<(), Difference> {
        let key = &delete.key;
        if let Err(error) = &store
            && error.kind() == ErrorKind::NoSpace
        {
            differ!("{key}: its delete finds no room: {error}");
        }
        let (options, _) = self.delete_options(delete);
        let settled = self.settle(&[key], delete.durability, store, |model| {
            model.delete(key, options).wait()
        })?;
        match settled {
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
            let Some((model, page)) = self.compare(model, listed)? else {
                return Ok(());
            };
            if page.common_prefixes != model.common_prefixes {
                let (got, expected) = (page.common_prefixes, model.common_prefixes);
                differ!("common prefixes {got:?}, expected {expected:?}");
            }
            let keys = |blobs: &[ListEntry]| {
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

    fn batch(&mut self, items: &[Item], durability: Durability) -> Result<(), Difference> {
        let (mut for_model, mut for_store) = (Batch::new(), Batch::new());
        for_model.durability = durability;
        for_store.durability = durability;
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
                Item::Delete(delete) => {
                    let (options, store_options) = self.delete_options(delete);
                    for (batch, options) in
                        [(&mut for_model, options), (&mut for_store, store_options)]
                    {
                        let key = delete.key.clone();
                        batch.items.push(BatchItem::Delete { key, options });
                    }
                }
            }
        }
        let store = self.store().batch(for_store).wait();
        let mut keys: Vec<&BinaryKey> = items.iter().map(Item::key).collect();
        keys.sort();
        keys.dedup();
        let settled = self.settle(&keys, durability, store, |model| {
            model.batch(for_model).wait()
        })?;
        let Some((model, store)) = settled else {
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
                    Item::Delete(_),
                    (BatchItemOutcome::Delete(model), BatchItemOutcome::Delete(store)),
                ) if model == store => {}
                (item, (_, store)) => differ!("{item:?}: {store:?}"),
            }
        }
        Ok(())
    }

    fn copy(&mut self, copy: &Copy) -> Result<(), Difference> {
        let (source, target) = (&copy.source, &copy.target);
        let options = CopyOptions {
            source_precondition: self.precise(source, copy.source_condition),
            target_precondition: self.precise(target, copy.target_condition),
            durability: copy.durability,
        };
        let for_store = CopyOptions {
            source_precondition: self.translate(options.source_precondition),
            target_precondition: self.translate(options.target_precondition),
            durability: copy.durability,
        };
        let run = |store: &dyn BlobStore, options| {
            if copy.rename {
                store.rename(source, target, options).wait()
            } else {
                store.copy(source, target, options).wait()
            }
        };
        let store = run(&*self.store(), for_store);
        let keys: &[&BinaryKey] = match copy.rename && source != target {
            true => &[target, source],
            false => &[target],
        };
        match self.settle(keys, copy.durability, store, |model| run(model, options))? {
            Some((model, store)) => self.record(target, &model, &store),
            None => Ok(()),
        }
    }

    fn open_writer(&mut self, put: &Put) -> Result<(), Difference> {
        let bytes = put.content.bytes();
        let (options, for_store) = self.put_options(put, &bytes);
        let store = self.store().put_stream(&put.key, for_store);
        let model = self.model.put_stream(&put.key, options);
        if let Some((model, store)) = self.compare(model, store)? {
            self.writer = Some(Writers {
                put: put.clone(),
                store,
                model,
                failed: None,
                model_failed: None,
            });
            return self.write(&bytes);
        }
        Ok(())
    }

    fn write(&mut self, bytes: &Bytes) -> Result<(), Difference> {
        let Some(writers) = self.writer.as_mut() else {
            return Ok(());
        };
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
        let Some(writers) = self.writer.take() else {
            return Ok(());
        };
        let finish = |writer: BlobWriter, failed: Option<StorageError>| {
            let finished = writer.finish().wait();
            match (failed, finished) {
                (None, finished) => Ok(finished),
                (Some(error), Err(_)) => Ok(Err(error)),
                (Some(error), Ok(_)) => Err(format!("it finished after {error:?}")),
            }
        };
        let store = finish(writers.store, writers.failed)?;
        let mut wrong = None;
        let (model, failed) = (writers.model, writers.model_failed);
        self.settle_put(&writers.put, store, |_| {
            finish(model, failed).unwrap_or_else(|what| {
                wrong = Some(what);
                Err(StorageError::Closed)
            })
        })?;
        wrong.map_or(Ok(()), Err)
    }

    fn open_reader(&mut self, key: &BinaryKey) -> Result<(), Difference> {
        let store = self.store().get_stream(key, GetOptions::default()).wait();
        let model = self.model.get(key, GetOptions::default()).wait();
        if let Some((model, store)) = self.compare(model, store)? {
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
        let Some(mut reading) = self.reader.take() else {
            return Ok(false);
        };
        let piece = match self.expect(reading.store.next().wait())? {
            Some(Some(piece)) => piece,
            Some(None) if !reading.rest.is_empty() => {
                differ!("the reader ended {} bytes early", reading.rest.len())
            }
            Some(None) | None => return Ok(false),
        };
        if !reading.rest.starts_with(&piece) {
            let at = reading.store.range.end - reading.rest.len() as u64;
            differ!(
                "the reader's piece of {} bytes at {at} is wrong",
                piece.len()
            );
        }
        drop(reading.rest.split_to(piece.len()));
        self.reader = Some(reading);
        Ok(true)
    }

    fn flush(&mut self) -> Result<(), Difference> {
        let flushed = self.store().flush().wait();
        if self.expect(flushed)?.is_some() {
            self.unflushed = false;
            self.effect.flushed = Some(self.subject.events());
        }
        Ok(())
    }

    fn reopen(&mut self) -> Result<(), Difference> {
        if self.unflushed {
            self.flush()?;
        }
        let store = self.release();
        self.store = Some(self.subject.reopen(store));
        self.compare_all()
    }

    fn compare_all(&mut self) -> Result<(), Difference> {
        self.list(ListRequest::default())?;
        let page = expect(self.model.list(ListRequest::default()).wait())?;
        for blob in page.blobs {
            self.stat(&blob.key)?;
            self.get(&blob.key, None, Condition::None, false, Holes::Zeros)?;
        }
        Ok(())
    }
}

/// How a step ended on both sides.
enum Both<M, T> {
    Succeeded(M, T),
    /// The model succeeded, and the store failed in a way that is tolerated.
    Tolerated,
}

/// `None` if both failed, with the same kind of error or one that is tolerated; anything else is a
/// difference.
fn both<M, T>(
    model: Result<M, StorageError>,
    store: Result<T, StorageError>,
    tolerance: Tolerance,
) -> Result<Option<Both<M, T>>, Difference> {
    let is_tolerated = tolerance != Tolerance::Wrong;
    match (model, store) {
        (Ok(model), Ok(store)) => Ok(Some(Both::Succeeded(model, store))),
        (Ok(_), Err(_)) if is_tolerated => Ok(Some(Both::Tolerated)),
        (Err(_), Err(_)) if is_tolerated => Ok(None),
        (Err(model), Err(store)) if model.kind() == store.kind() => Ok(None),
        (Ok(_), Err(store)) => differ!("it failed: {store:?}"),
        (Err(model), Ok(_)) => differ!("it succeeded, expected {model:?}"),
        (Err(model), Err(store)) => differ!("{store:?}, expected {model:?}"),
    }
}

/// What can't fail here.
pub(super) fn expect<T>(outcome: Result<T, StorageError>) -> Result<T, Difference> {
    outcome.map_err(|error| format!("it failed: {error:?}"))
}

/// Waits until what was asked for of a key and given up is over: it may wait for room, and whoever
/// waits for something later makes some.
fn await_earlier(store: &dyn BlobStore, key: &BinaryKey) {
    let never = DeleteOptions {
        precondition: Precondition::IfVersion(u64::MAX),
        ..DeleteOptions::default()
    };
    // It fails, by that or by what is in the way of everything.
    let _ = store.delete(key, never).wait();
}

/// What a mutation came to whose `Op` was dropped, and of which nothing is to be seen.
fn unheard_of() -> StorageError {
    StorageError::Io {
        operation: "commit what nobody waits for",
        place: Place {
            sector: 0,
            offset: 0,
        },
        source: Arc::new(std::io::ErrorKind::Other.into()),
    }
}

pub(super) fn attributes(count: usize) -> Attributes {
    let attribute = |n| (format!("name {n}"), Bytes::from(vec![b'v'; n]));
    (0..count).map(attribute).collect()
}

/// The blob of a key.
fn held(store: &dyn MutableObjectStore, key: &BinaryKey) -> Result<Held, StorageError> {
    let options = GetOptions {
        holes: Holes::Zeros,
        ..GetOptions::default()
    };
    let bytes = store.get(key, options).wait()?.bytes;
    let info = store.stat(key).wait()?;
    Ok(Held {
        bytes,
        attributes: info.attributes,
        sources: sources_of(store, key)?,
        missing: info.missing,
    })
}

/// Everything a store holds, read back, or why it can't be: blobs, and under keys that no blob can
/// have, uploads and what is tracked of bytes elsewhere.
///
/// # Errors
/// What the store reports of its lists.
pub fn read_all(
    store: &dyn MutableObjectStore,
) -> Result<BTreeMap<BinaryKey, Result<Held, StorageError>>, StorageError> {
    let mut all = blobs_of(store)?;
    all.extend(all_beside(store)?);
    Ok(all)
}

/// Every blob that a store lists, read back, or why it can't be.
fn blobs_of(
    store: &dyn MutableObjectStore,
) -> Result<BTreeMap<BinaryKey, Result<Held, StorageError>>, StorageError> {
    let entries = list_all(store)?.into_iter();
    let blobs = entries.map(|entry| {
        let held = held(store, &entry.key);
        (entry.key, held)
    });
    Ok(blobs.collect())
}

/// Everything a store holds, read back, as by [`read_all`].
///
/// # Errors
/// What the store reports.
pub fn contents_of(store: &dyn MutableObjectStore) -> Result<Contents, StorageError> {
    let all = read_all(store)?.into_iter();
    all.map(|(key, held)| Ok((key, held?))).collect()
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

//! The part of [`Pair`] that is about what a store keeps beside its blobs: uploads, and what is
//! tracked of bytes held elsewhere. In [`Contents`](super::Contents) they have keys that no blob can
//! have.

use std::collections::BTreeMap;

use bytes::Bytes;
use graviton_format::key::StoredKey;

use super::Subject;
use super::history::{Border, Complete, Mark, Part, Parts, TRACKED};
use super::pair::{Change, Difference, Held, Pair, attributes, differ, expect};
use super::support::{key, payload};
use crate::port::{
    BinaryKey, CompleteOptions, Completed, Durability, ETag, Expected, MutableObjectStore,
    PartInfo, PutOptions, PutOutcome, RangeSet, Span, StorageError, TrackOptions, TrackerError,
    UploadId, UploadOptions,
};

/// What an upload is found under. In histories one is open for a key at most; should one have come
/// about that nobody knew of, the one begun last counts.
fn upload_key(key: &BinaryKey) -> BinaryKey {
    BinaryKey::beside(&StoredKey::Upload {
        upload: 0,
        key: key.as_bytes(),
    })
}

fn tracked(number: usize) -> BinaryKey {
    key(format!("elsewhere/{number}"))
}

/// What a tracked key is found under.
fn tracked_key(tracked: &BinaryKey) -> BinaryKey {
    BinaryKey::beside(&StoredKey::Ranges(tracked.as_bytes()))
}

/// The bytes of a part of this number and size.
fn part_bytes(number: u16, size: usize) -> Bytes {
    payload(u64::from(number) << 32 | size as u64, size)
}

/// How the uploads for a key are begun: whoever finds one knows its attributes.
fn upload_options(key: &BinaryKey, durability: Durability) -> UploadOptions {
    UploadOptions {
        durability,
        attributes: attributes(key.as_bytes().len() % 3),
        ..UploadOptions::default()
    }
}

/// Of an upload that is open for a key, the one begun last.
fn upload_of(
    store: &dyn MutableObjectStore,
    key: &BinaryKey,
) -> Result<Option<UploadId>, StorageError> {
    let all = store.list_uploads(None, usize::MAX).wait()?;
    let of_key = all.into_iter().filter(|info| info.key == *key);
    Ok(of_key.map(|info| info.upload).max())
}

fn parts_of(
    store: &dyn MutableObjectStore,
    upload: UploadId,
) -> Result<Vec<PartInfo>, StorageError> {
    store.list_parts(upload, 0, usize::MAX).wait()
}

fn held_upload(parts: &[PartInfo]) -> Held {
    let lines = parts
        .iter()
        .map(|part| format!("{}: {} bytes\n", part.number, part.size));
    Held::from(Bytes::from(lines.collect::<String>()))
}

fn held_tracked(completed: Completed) -> Held {
    Held {
        missing: completed.set,
        ..Held::from(Bytes::from(format!("of {:?} bytes", completed.total)))
    }
}

/// What a store has under a key that no blob can have.
pub(super) fn held_beside(
    store: &dyn MutableObjectStore,
    beside: &BinaryKey,
) -> Result<Option<Held>, StorageError> {
    let of = beside.of_blob();
    if let StoredKey::Ranges(_) = beside.space() {
        return match store.ranges_elsewhere().get_completed(&of).wait() {
            Ok(completed) => Ok(Some(held_tracked(completed))),
            Err(TrackerError::NotFound { .. }) => Ok(None),
            Err(error) => Err(as_storage(error)),
        };
    }
    let Some(upload) = upload_of(store, &of)? else {
        return Ok(None);
    };
    Ok(Some(held_upload(&parts_of(store, upload)?)))
}

/// All that a store has under keys that no blob can have.
pub(super) fn all_beside(
    store: &dyn MutableObjectStore,
) -> Result<BTreeMap<BinaryKey, Result<Held, StorageError>>, StorageError> {
    let mut all = BTreeMap::new();
    for info in store.list_uploads(None, usize::MAX).wait()? {
        let parts = parts_of(store, info.upload)?;
        all.insert(upload_key(&info.key), Ok(held_upload(&parts)));
    }
    for number in 0..TRACKED {
        let beside = tracked_key(&tracked(number));
        if let Some(held) = held_beside(store, &beside).transpose() {
            all.insert(beside, held);
        }
    }
    Ok(all)
}

/// What a tracker says, in the words of a store.
pub(super) fn as_storage(error: TrackerError) -> StorageError {
    match error {
        TrackerError::NotFound { key } => StorageError::NotFound { key },
        TrackerError::Mismatch { key, .. } => {
            let actual = None;
            StorageError::PreconditionFailed { key, actual }
        }
        TrackerError::NotWritten { key, missing } => StorageError::MissingRanges { key, missing },
        TrackerError::TooFragmented { .. } => StorageError::invalid(error.to_string()),
        TrackerError::Storage(error) => error,
    }
}

/// An upload and its parts, in the model and in the store.
struct Uploads {
    model: UploadId,
    store: UploadId,
    parts: Vec<(PartInfo, PartInfo)>,
}

impl<S: Subject + ?Sized> Pair<'_, S> {
    /// Takes in what a store that was opened again has beside its blobs.
    pub(super) fn adopt_beside(
        &mut self,
        store: &dyn MutableObjectStore,
    ) -> Result<(), Difference> {
        for info in expect(store.list_uploads(None, usize::MAX).wait())? {
            if let Some(older) = expect(upload_of(self.model(), &info.key))? {
                expect(self.model().abort_upload(older).wait())?;
            }
            let options = upload_options(&info.key, Durability::Durable);
            let begun = expect(self.model().start_upload(&info.key, options).wait())?;
            for part in expect(parts_of(store, info.upload))? {
                let size = usize::try_from(part.size).unwrap_or(usize::MAX);
                let bytes = part_bytes(part.number, size);
                let options = PutOptions::default();
                let put = self.model().upload_part(begun, part.number, bytes, options);
                expect(put.wait())?;
            }
        }
        for number in 0..TRACKED {
            let tracked = tracked(number);
            match store.ranges_elsewhere().get_completed(&tracked).wait() {
                Ok(completed) => {
                    let options = TrackOptions {
                        total: completed.total,
                        ..TrackOptions::default()
                    };
                    let tracker = self.model().ranges_elsewhere();
                    let nothing = RangeSet::new().into();
                    let set = tracker.compare_and_set(&tracked, nothing, &completed.set, options);
                    expect(set.wait().map_err(as_storage))?;
                }
                Err(TrackerError::NotFound { .. }) => {}
                Err(error) => differ!("{tracked}: {error}"),
            }
        }
        Ok(())
    }

    /// Whether a change is there of what is kept beside the blobs. What can't be read has not changed:
    /// nothing that failed shows before the store is opened again.
    pub(super) fn is_beside(&self, change: &Change) -> bool {
        self.mutable().is_some_and(|store| {
            held_beside(&*store, &change.key).is_ok_and(|held| held == change.blob)
        })
    }

    /// The upload that is open for a key; of none, names that no upload has.
    fn uploads(
        &self,
        store: &dyn MutableObjectStore,
        key: &BinaryKey,
    ) -> Result<Uploads, Difference> {
        let Some(model) = expect(upload_of(self.model(), key))? else {
            return Ok(Uploads {
                model: UploadId::of_lsn(u64::MAX),
                store: UploadId::of_lsn(u64::MAX),
                parts: Vec::new(),
            });
        };
        let Some(found) = expect(upload_of(store, key))? else {
            differ!("{key}: its upload is gone");
        };
        let of_model = expect(parts_of(self.model(), model))?;
        let of_store = expect(parts_of(store, found))?;
        let (expected, parts) = (held_upload(&of_model), held_upload(&of_store));
        if expected != parts {
            differ!("{key}: parts {parts:?}, expected {expected:?}");
        }
        Ok(Uploads {
            model,
            store: found,
            parts: of_model.into_iter().zip(of_store).collect(),
        })
    }

    pub(super) fn start_upload(
        &mut self,
        key: &BinaryKey,
        durability: Durability,
    ) -> Result<(), Difference> {
        let Some(store) = self.mutable() else {
            return Ok(());
        };
        if expect(upload_of(self.model(), key))?.is_some() {
            return Ok(());
        }
        let options = upload_options(key, durability);
        let begun = store.start_upload(key, options.clone()).wait();
        let settled = self.settle(&[&upload_key(key)], durability, begun, |model| {
            model.start_upload(key, options).wait()
        })?;
        match settled {
            Some((_, upload)) => self.check_new(key, upload.lsn()),
            None => Ok(()),
        }
    }

    pub(super) fn put_part(&mut self, part: &Part) -> Result<(), Difference> {
        let Some(store) = self.mutable() else {
            return Ok(());
        };
        let &Part {
            ref key,
            number,
            size,
            stream,
            durability,
        } = part;
        let of = self.uploads(&*store, key)?;
        let bytes = part_bytes(number, size);
        let options = PutOptions {
            durability,
            ..PutOptions::default()
        };
        let put = |store: &dyn MutableObjectStore, upload| -> Result<PutOutcome, StorageError> {
            if !stream {
                let put = store.upload_part(upload, number, bytes.clone(), options.clone());
                return put.wait();
            }
            let mut writer = store.upload_part_stream(upload, number, options.clone())?;
            for piece in bytes.chunks(10_000) {
                writer.write(Bytes::copy_from_slice(piece)).wait()?;
            }
            writer.finish().wait()
        };
        let made = put(&*store, of.store);
        let settled = self.settle(&[&upload_key(key)], durability, made, |model| {
            put(model, of.model)
        })?;
        match settled {
            Some((model, made)) if model.size == made.size => self.check_new(key, made.version),
            Some((model, made)) => differ!("{key}: {made:?}, expected {model:?}"),
            None => Ok(()),
        }
    }

    pub(super) fn complete_upload(&mut self, complete: &Complete) -> Result<(), Difference> {
        let Some(store) = self.mutable() else {
            return Ok(());
        };
        let Complete {
            key,
            parts,
            condition,
            again,
        } = complete;
        let of = self.uploads(&*store, key)?;
        let (mut for_model, mut for_store) = (Vec::new(), Vec::new());
        for (place, (model, store)) in of.parts.iter().enumerate() {
            let is_named = match parts {
                Parts::Some(bits) => bits >> (place % 64) & 1 == 1,
                _ => true,
            };
            if is_named {
                for_model.push((model.number, model.etag));
                for_store.push((store.number, store.etag));
            }
        }
        for list in [&mut for_model, &mut for_store] {
            match (parts, list.last_mut()) {
                (Parts::Disordered, _) => list.reverse(),
                (Parts::WrongETag, Some((_, etag))) => *etag = ETag::of_version(u64::MAX),
                (Parts::OneMore, _) => list.push((9999, ETag::of_version(u64::MAX))),
                _ => {}
            }
        }
        let options = CompleteOptions {
            precondition: self.precise(key, *condition),
            ..CompleteOptions::default()
        };
        let options_for_store = CompleteOptions {
            precondition: self.translate(options.precondition),
            ..options.clone()
        };
        let made = store
            .complete_upload(of.store, &for_store, options_for_store.clone())
            .wait();
        let keys = [key, &upload_key(key)];
        let settled = self.settle(&keys, Durability::Durable, made, |model| {
            let options = options.clone();
            model.complete_upload(of.model, &for_model, options).wait()
        })?;
        let Some((model, made)) = settled else {
            return Ok(());
        };
        self.record(key, &model, &made)?;
        if !again {
            return Ok(());
        }
        let once_more = store.complete_upload(of.store, &for_store, options_for_store);
        match self.compare(Ok(made), once_more.wait())? {
            Some((made, again)) if made != again => differ!("{key}: {again:?} after {made:?}"),
            _ => Ok(()),
        }
    }

    pub(super) fn abort_upload(&mut self, key: &BinaryKey) -> Result<(), Difference> {
        let Some(store) = self.mutable() else {
            return Ok(());
        };
        let of = self.uploads(&*store, key)?;
        let aborted = store.abort_upload(of.store).wait();
        let keys = [&upload_key(key)];
        let settled = self.settle(&keys, Durability::Durable, aborted, |model| {
            model.abort_upload(of.model).wait()
        });
        settled.map(drop)
    }

    /// Takes a range of a blob away, by its tracker.
    pub(super) fn erase(
        &mut self,
        key: &BinaryKey,
        start: Border,
        end: Border,
        durability: Durability,
    ) -> Result<(), Difference> {
        let Some(store) = self.mutable() else {
            return Ok(());
        };
        let (start, end) = (self.place(key, start), self.place(key, end));
        let range = expect(Span::new(start.min(end), start.max(end)))?;
        let erase = |store: &dyn MutableObjectStore| {
            let tracker = store.ranges();
            let now = tracker.get_completed(key).wait()?;
            let mut update = now.set.clone();
            update.remove(range);
            let options = TrackOptions {
                durability,
                ..TrackOptions::default()
            };
            let set = tracker.compare_and_set(key, now.into(), &update, options);
            set.wait().map(|now| now.set)
        };
        let before = self.current(key).map(|info| info.version);
        let erased = erase(&*store).map_err(as_storage);
        let settled = self.settle(&[key], durability, erased, |model| {
            erase(model).map_err(as_storage)
        })?;
        let Some((model, set)) = settled else {
            return Ok(());
        };
        if model != set {
            differ!("{key}: {set} is complete, expected {model}");
        }
        let (Some(model), Some(made)) = (self.current(key), self.listed(key)?) else {
            return Ok(());
        };
        if Some(model.version) == before {
            return self.check_version(key, model.version, made.version);
        }
        let outcome = |version, size| PutOutcome {
            etag: ETag::of_version(version),
            version,
            size,
        };
        self.record(
            key,
            &outcome(model.version, model.size),
            &outcome(made.version, made.size),
        )
    }

    pub(super) fn mark(&mut self, mark: &Mark) -> Result<(), Difference> {
        let Some(store) = self.mutable() else {
            return Ok(());
        };
        let tracked = tracked(mark.key);
        let range = expect(Span::at(mark.start, mark.length))?;
        let run = |store: &dyn MutableObjectStore| {
            let tracker = store.ranges_elsewhere();
            let marked = tracker.mark_complete(&tracked, &range.into(), track_options(mark));
            marked.wait().map_err(as_storage)
        };
        let marked = run(&*store);
        let keys = [&tracked_key(&tracked)];
        match self.settle(&keys, mark.durability, marked, |model| run(model))? {
            Some((model, marked)) => {
                if model.new != marked.new {
                    differ!("{tracked}: {} was new, expected {}", marked.new, model.new);
                }
                same_completed(&tracked, &model.completed, &marked.completed)
            }
            None => Ok(()),
        }
    }

    pub(super) fn compare_and_set(&mut self, mark: &Mark, wrong: bool) -> Result<(), Difference> {
        let Some(store) = self.mutable() else {
            return Ok(());
        };
        let tracked = tracked(mark.key);
        let range = expect(Span::at(mark.start, mark.length))?;
        let run = |store: &dyn MutableObjectStore| {
            let tracker = store.ranges_elsewhere();
            let now = match tracker.get_completed(&tracked).wait() {
                Err(TrackerError::NotFound { .. }) => Completed::default(),
                outcome => outcome?,
            };
            let mut update = now.set.clone();
            match mark.take {
                true => update.remove(range),
                false => update.insert(range),
            }
            let mut expected = Expected::from(now);
            expected.generation = expected.generation.filter(|generation| *generation != 0);
            if wrong {
                expected.set.insert(Span::at(1 << 30, 1)?);
            }
            let options = track_options(mark);
            let set = tracker.compare_and_set(&tracked, expected, &update, options);
            set.wait()
        };
        let set = run(&*store).map_err(as_storage);
        let keys = [&tracked_key(&tracked)];
        let settled = self.settle(&keys, mark.durability, set, |model| {
            run(model).map_err(as_storage)
        })?;
        match settled {
            Some((model, set)) => same_completed(&tracked, &model, &set),
            None => Ok(()),
        }
    }

    /// A tracker forgets a key.
    pub(super) fn forgo(&mut self, number: usize) -> Result<(), Difference> {
        let Some(store) = self.mutable() else {
            return Ok(());
        };
        let tracked = tracked(number);
        let run = |store: &dyn MutableObjectStore| {
            let forgotten = store.ranges_elsewhere().forget(&tracked);
            forgotten.wait().map_err(as_storage)
        };
        let forgotten = run(&*store);
        let keys = [&tracked_key(&tracked)];
        match self.settle(&keys, Durability::Durable, forgotten, |model| run(model))? {
            Some((model, forgotten)) if model != forgotten => {
                differ!("{tracked}: forgotten is {forgotten}")
            }
            _ => Ok(()),
        }
    }
}

fn track_options(mark: &Mark) -> TrackOptions {
    TrackOptions {
        total: mark.total,
        durability: mark.durability,
    }
}

fn same_completed(key: &BinaryKey, model: &Completed, found: &Completed) -> Result<(), Difference> {
    if (&model.set, model.total) != (&found.set, found.total) {
        differ!("{key}: complete is {found:?}, expected {model:?}");
    }
    Ok(())
}

//! [`RangeTracker`] over a store: of its own blobs, whose holes say what is not complete, and of bytes
//! held elsewhere, each key with a blob of its own in a space apart, which is a set and the changes
//! to it since \[F-61\].

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use graviton_format::FormatError;
use graviton_format::key::StoredKey;
use graviton_format::ranges::{Entry as Logged, Header, pack, unpack};
use graviton_format::record::{Manifest, RecordKind};

use super::commit::{Done, Mutation, Work};
use super::index::{Entry, Found as Held, narrow, punch};
use super::inner::Inner;
use super::record;
use super::set::SectorSet;
use super::write::{Target, durable, put_outcome, unexpected};
use crate::io::Reaping;
use crate::port::tracker::{self, FRAGMENTS_MAX, Listener, Look, Watches, resolve_total};
use crate::port::{
    BinaryKey, Completed, DeleteOptions, Expected, GetOptions, Marked, ObserveRanges, Op, PastEnd,
    Precondition, PutOptions, PutRangeOptions, RangeSet, RangeTracker, Span, StorageError,
    TrackOptions, TrackerError, TrackerOp,
};
use crate::sync::Mutex;

/// Changes of a set that are written behind it before it is written anew.
const CHANGES_MAX: u32 = 64;
/// Their bytes, beyond twice those of the set.
const CHANGES_BYTES_MAX: u64 = 4096;
/// Entries that a tracked set is made of at most, three for each change \[F-61\].
const ENTRIES_MAX: u32 = 200;
/// Bytes of sets that are kept in memory.
const KNOWN_BYTES_MAX: usize = 16 << 20;

/// Whose bytes are tracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    Blobs,
    Elsewhere,
}

/// A tracker over a store.
#[derive(Debug, Clone)]
struct StoreTracker {
    inner: Arc<Inner>,
    of: Of,
}

impl Inner {
    /// A tracker of this store.
    pub fn tracker(self: &Arc<Self>, of: Of) -> Arc<dyn RangeTracker> {
        let inner = Arc::clone(self);
        Arc::new(StoreTracker { inner, of })
    }
}

/// What is complete of bytes held elsewhere, by one version of the blob that says so.
#[derive(Debug, Clone)]
pub struct Known {
    version: u64,
    /// 0 until the version has come about that begins it.
    generation: u64,
    total: Option<u64>,
    /// The set, as it is stored.
    packed: Bytes,
    /// Bytes of the blob, and changes in it.
    size: u64,
    changes: u32,
}

impl Known {
    fn completed(&self) -> Result<Completed, FormatError> {
        Ok(Completed {
            set: set_of(unpack(&self.packed, usize::MAX)?),
            total: self.total,
            generation: self.generation,
        })
    }

    /// It has come about as this version.
    pub fn landed(&mut self, version: u64) {
        self.version = version;
        if self.generation == 0 {
            self.generation = version;
        }
    }
}

/// What the trackers of a store share.
#[derive(Debug, Default)]
pub struct Trackers {
    /// Those who wait for changes: of blobs under their keys, of the others under stored keys.
    pub watches: Arc<Watches>,
    known: Mutex<AllKnown>,
}

/// What is known of some keys, those remembered first going first.
#[derive(Debug, Default)]
struct AllKnown {
    by_key: HashMap<BinaryKey, Known>,
    in_order: VecDeque<BinaryKey>,
    /// Bytes that all of it takes, about.
    bytes: usize,
}

impl AllKnown {
    fn insert(&mut self, key: &BinaryKey, known: Known) {
        self.bytes += bytes_of(key, &known);
        match self.by_key.insert(key.clone(), known) {
            Some(older) => self.bytes -= bytes_of(key, &older),
            None => self.in_order.push_back(key.clone()),
        }
        while self.bytes > KNOWN_BYTES_MAX
            && self.in_order.len() > 1
            && let Some(oldest) = self.in_order.pop_front()
        {
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, key: &BinaryKey) {
        if let Some(known) = self.by_key.remove(key) {
            self.bytes -= bytes_of(key, &known);
        }
    }
}

fn bytes_of(key: &BinaryKey, known: &Known) -> usize {
    // Twice, and the tables' share.
    2 * (key.stored().len() + size_of::<BinaryKey>()) + 2 * size_of::<Known>() + known.packed.len()
}

impl Trackers {
    /// Remembers what is complete by a version that has come about.
    pub fn remember(&self, key: &BinaryKey, known: Known) {
        let mut all = self.known.lock();
        let is_older = |held: &Known| held.version < known.version;
        if all.by_key.get(key).is_none_or(is_older) {
            all.insert(key, known);
        }
    }

    fn get(&self, key: &BinaryKey, version: u64) -> Option<Known> {
        let known = self.known.lock().by_key.get(key).cloned();
        known.filter(|known| known.version == version)
    }

    fn forget(&self, key: &BinaryKey) {
        let mut all = self.known.lock();
        all.remove(key);
        all.in_order.retain(|other| other != key);
    }
}

fn set_of(spans: Vec<Range<u64>>) -> RangeSet {
    let spans = spans.into_iter();
    spans.filter_map(|span| Span::try_from(span).ok()).collect()
}

fn spans_of(set: &RangeSet) -> Vec<Range<u64>> {
    set.spans().iter().map(|&span| span.into()).collect()
}

fn stored_key(key: &BinaryKey) -> BinaryKey {
    BinaryKey::beside(&StoredKey::Ranges(key.as_bytes()))
}

/// What a blob says of itself.
fn of_blob(entry: &Entry) -> Completed {
    Completed {
        set: entry.missing().complement(Span::first(entry.size)),
        total: Some(entry.size),
        generation: entry.life(),
    }
}

/// The set that bytes and the changes behind them come to: of so many spans at most.
fn decode(
    bytes: &[u8],
    version: u64,
    record: u64,
    limit: usize,
) -> Result<(Known, Completed), FormatError> {
    let wrong = |what| FormatError::Field {
        structure: "Tracker",
        field: "entries",
        what,
        rule: "F-61",
    };
    let (header, mut rest) = Header::decode(bytes)?;
    let mut completed = Completed {
        set: RangeSet::new(),
        total: header.total,
        generation: match header.generation {
            0 => record,
            generation => generation,
        },
    };
    let mut changes = 0;
    while !rest.is_empty() {
        // What is taken away lies within what was there, and between what stays.
        let (entry, behind) = Logged::decode(rest, limit.saturating_mul(2).saturating_add(1))?;
        rest = behind;
        changes += 1;
        if changes > ENTRIES_MAX {
            return Err(wrong(format!("are more than {ENTRIES_MAX}")));
        }
        match entry {
            Logged::Added(spans) => completed.set = completed.set.union(&set_of(spans)),
            Logged::Removed(spans) => completed.set = completed.set.difference(&set_of(spans)),
            Logged::Total(total) => completed.total = Some(total),
        }
    }
    let spans = completed.set.spans().len();
    if spans > limit {
        return Err(wrong(format!("come to {spans} spans, more than {limit}")));
    }
    let known = Known {
        version,
        generation: completed.generation,
        total: completed.total,
        packed: pack(&spans_of(&completed.set)).into(),
        size: bytes.len() as u64,
        changes,
    };
    Ok((known, completed))
}

/// What is complete, and where that is kept.
struct Found {
    /// The sectors that a change of it goes to.
    sectors: SectorSet,
    entry: Entry,
    completed: Completed,
    /// Of bytes held elsewhere.
    known: Option<Known>,
}

/// A change that was decided.
struct Decided {
    update: RangeSet,
    /// What was not complete before.
    new: RangeSet,
}

impl StoreTracker {
    fn told_as(&self, key: &BinaryKey) -> BinaryKey {
        match self.of {
            Of::Blobs => key.clone(),
            Of::Elsewhere => stored_key(key),
        }
    }

    /// Where it is kept what is complete, and what is known of that.
    fn find(&self, key: &BinaryKey) -> Result<Option<Held>, StorageError> {
        self.inner.check_open()?;
        self.inner.index.read().alike(self.told_as(key).stored())
    }

    /// What is complete, by a version that was current.
    async fn current(&self, key: &BinaryKey) -> Result<Option<Found>, TrackerError> {
        loop {
            let Some(held) = self.find(key)? else {
                return Ok(None);
            };
            let (number, entry) = (held.number, held.entry);
            let (completed, known) = match self.of {
                Of::Blobs => (of_blob(&entry), None),
                Of::Elsewhere => match self.read(&stored_key(key), number, &entry).await {
                    Ok((completed, known)) => (completed, Some(known)),
                    // Another version is there by now.
                    Err(
                        StorageError::PreconditionFailed { .. } | StorageError::NotFound { .. },
                    ) => continue,
                    Err(error) => return Err(error.into()),
                },
            };
            return Ok(Some(Found {
                sectors: self.inner.to_change(held.holders),
                entry,
                completed,
                known,
            }));
        }
    }

    /// What a version says of bytes held elsewhere: as it is remembered, or read back.
    async fn read(
        &self,
        stored: &BinaryKey,
        number: usize,
        entry: &Entry,
    ) -> Result<(Completed, Known), StorageError> {
        let wrong = |error| StorageError::Corruption {
            place: self.inner.sectors[number].place(entry.address),
            key: Some(stored.clone()),
            what: format!("{error}"),
        };
        if let Some(known) = self.inner.trackers.get(stored, entry.lsn) {
            return Ok((known.completed().map_err(wrong)?, known));
        }
        let options = GetOptions {
            precondition: Precondition::IfVersion(entry.lsn),
            ..GetOptions::default()
        };
        let blob = self.inner.get(stored, &options).await?;
        // Whatever the limit was when it was written.
        let limit = self.inner.options.max_fragments.max(FRAGMENTS_MAX);
        let decoded = decode(&blob.bytes, entry.lsn, entry.record_lsn(), limit);
        let (known, completed) = decoded.map_err(wrong)?;
        self.inner.trackers.remember(stored, known.clone());
        Ok((completed, known))
    }

    /// Changes what is complete as `decide` says of what it is; again, if another change came first.
    fn change<T: Send + Unpin + 'static>(
        &self,
        key: &BinaryKey,
        options: TrackOptions,
        decide: impl Fn(&Completed) -> Result<Decided, TrackerError> + Send + Sync + 'static,
        answer: impl FnOnce(Completed, RangeSet) -> T + Send + 'static,
    ) -> TrackerOp<T> {
        if let Err(error) = self.inner.check_writable() {
            return Op::fail(error);
        }
        let (tracker, key, told) = (self.clone(), key.clone(), self.told_as(key));
        self.inner.start_in_order(vec![told], async move {
            loop {
                let found = tracker.current(&key).await?;
                let before = match &found {
                    Some(found) => found.completed.clone(),
                    None if tracker.of == Of::Elsewhere => Completed::default(),
                    None => return Err(TrackerError::NotFound { key }),
                };
                let Decided { update, new } = decide(&before)?;
                let after = Completed {
                    total: resolve_total(&key, before.total, options.total, &update)?,
                    set: update,
                    generation: before.generation,
                };
                if let Some(Found { sectors, .. }) = found
                    && after == before
                {
                    if durable(options.durability) {
                        // What was written before may not be as durable yet.
                        tracker.inner.sync(sectors).await?;
                    }
                    return Ok(answer(after, new));
                }
                let landed = match (tracker.of, found) {
                    (Of::Blobs, Some(found)) => tracker.erase(&key, &found, &after, options).await,
                    (_, found) => tracker.keep(&key, found, &before, &after, options).await,
                };
                match landed {
                    Ok(Some(version)) => {
                        let generation = match before.generation {
                            0 => version,
                            generation => generation,
                        };
                        return Ok(answer(
                            Completed {
                                generation,
                                ..after
                            },
                            new,
                        ));
                    }
                    // Another change came first.
                    Ok(None) => {}
                    Err(TrackerError::Storage(
                        StorageError::PreconditionFailed { .. } | StorageError::NotFound { .. },
                    )) => {}
                    Err(error) => return Err(error),
                }
            }
        })
    }

    /// Makes holes of what is not to be complete any more of a blob. Returns the new version; `None`
    /// if the blob has changed.
    async fn erase(
        &self,
        key: &BinaryKey,
        found: &Found,
        after: &Completed,
        options: TrackOptions,
    ) -> Result<Option<u64>, TrackerError> {
        let Found {
            sectors,
            entry,
            completed: before,
            ..
        } = found;
        let missing = after.set.difference(&before.set);
        if !missing.is_empty() {
            let key = key.clone();
            return Err(TrackerError::NotWritten { key, missing });
        }
        let holes = before.set.difference(&after.set);
        let (Some(first), Some(last)) = (holes.spans().first(), holes.spans().last()) else {
            return Ok(None);
        };
        let range = Span::new(first.start(), last.end())?;
        let whole = entry.all_pieces();
        let pieces = punch(&whole, range, holes.spans());
        // Merging fragments makes no version.
        let expected = Some(punch(&whole, range, &[]));
        let payload = Manifest {
            size: range.len(),
            extents: pieces.clone(),
        }
        .encode();
        let time = self.inner.now();
        let mutation = Mutation::Change {
            key: key.clone(),
            precondition: Precondition::IfVersion(entry.lsn),
            past_end: PastEnd::Refuse,
            range,
            record: record::encode(
                RecordKind::Splice,
                key,
                &record::change_meta(),
                &payload,
                time,
            ),
            time,
            payload_length: narrow(payload.len() as u64),
            pieces: Some(pieces.into()),
            expected,
            known: None,
        };
        self.commit(*sectors, mutation, options).await
    }

    /// Writes down what is complete of bytes held elsewhere: what has changed, or all of it.
    async fn keep(
        &self,
        key: &BinaryKey,
        found: Option<Found>,
        before: &Completed,
        after: &Completed,
        options: TrackOptions,
    ) -> Result<Option<u64>, TrackerError> {
        let limit = self.inner.options.max_fragments;
        let fragments = after.set.spans().len();
        if fragments > limit {
            return Err(TrackerError::TooFragmented {
                key: key.clone(),
                fragments,
                limit,
            });
        }
        let packed = Bytes::from(pack(&spans_of(&after.set)));
        let known = Known {
            version: 0,
            generation: after.generation,
            total: after.total,
            packed,
            size: 0,
            changes: 0,
        };
        match found {
            Some(Found {
                sectors,
                entry,
                known: Some(was),
                ..
            }) => {
                let delta = delta(before, after);
                let size = was.size + delta.len() as u64;
                let is_small = size <= CHANGES_BYTES_MAX + 3 * known.packed.len() as u64;
                if was.changes < CHANGES_MAX && is_small {
                    let known = Known {
                        size,
                        changes: was.changes + 1,
                        ..known
                    };
                    return self
                        .append(key, sectors, &entry, delta, known, options)
                        .await;
                }
                let precondition = Precondition::IfVersion(entry.lsn);
                self.rewrite(key, precondition, known, options).await
            }
            _ => {
                let precondition = Precondition::IfAbsent;
                self.rewrite(key, precondition, known, options).await
            }
        }
    }

    /// Writes a set anew.
    async fn rewrite(
        &self,
        key: &BinaryKey,
        precondition: Precondition,
        known: Known,
        options: TrackOptions,
    ) -> Result<Option<u64>, TrackerError> {
        let stored = stored_key(key);
        let header = Header {
            generation: known.generation,
            total: known.total,
        };
        let mut bytes = header.encode();
        Logged::encode_added(&known.packed, &mut bytes);
        let bytes = Bytes::from(bytes);
        let (needed, wanted) = (bytes.len() as u64 + 4096, self.inner.replicas);
        let sectors = self.inner.place(&stored, needed, wanted)?;
        let known = Known {
            size: bytes.len() as u64,
            ..known
        };
        let put_options = PutOptions {
            precondition,
            durability: options.durability,
            ..PutOptions::default()
        };
        let target = Target::of_blob(stored);
        if bytes.len() > self.inner.inline_max(sectors) {
            let put = self.inner.put_at(sectors, target, &bytes, put_options);
            return Ok(Some(put.await?.version));
        }
        let time = self.inner.now();
        let mutation =
            self.inner
                .inline_put(target, bytes, &put_options, Some(Box::new(known)), time);
        self.commit(sectors, mutation, options).await
    }

    /// Writes a change behind a set.
    async fn append(
        &self,
        key: &BinaryKey,
        sectors: SectorSet,
        entry: &Entry,
        delta: Vec<u8>,
        known: Known,
        options: TrackOptions,
    ) -> Result<Option<u64>, TrackerError> {
        let stored = stored_key(key);
        let range = Span::at(entry.size, delta.len() as u64)?;
        let precondition = Precondition::IfVersion(entry.lsn);
        if delta.len() > self.inner.inline_max(sectors) {
            let put_options = PutRangeOptions {
                precondition,
                durability: options.durability,
                past_end: PastEnd::Extend,
            };
            let put = self
                .inner
                .put_range(&stored, range, delta.into(), put_options);
            return Ok(Some(put.await?.version));
        }
        let time = self.inner.now();
        let mutation = Mutation::Change {
            record: record::encode(
                RecordKind::Range,
                &stored,
                &record::change_meta(),
                &delta,
                time,
            ),
            key: stored,
            precondition,
            past_end: PastEnd::Extend,
            range,
            time,
            payload_length: narrow(delta.len() as u64),
            pieces: None,
            expected: None,
            known: Some(Box::new(known)),
        };
        self.commit(sectors, mutation, options).await
    }

    /// Returns the new version; `None` if what is to be changed lies in other sectors by now.
    async fn commit(
        &self,
        sectors: SectorSet,
        mutation: Mutation,
        options: TrackOptions,
    ) -> Result<Option<u64>, TrackerError> {
        let work = Work::Mutations(vec![mutation]);
        let ticket = self
            .inner
            .submit(sectors, work, durable(options.durability));
        match ticket.await? {
            Done::Mutations(outcomes) => {
                let outcome = outcomes.first().and_then(put_outcome);
                Ok(Some(outcome.ok_or_else(unexpected)?.version))
            }
            Done::Changed => Ok(None),
            _ => Err(unexpected().into()),
        }
    }
}

/// What has changed, as entries.
fn delta(before: &Completed, after: &Completed) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(total) = after.total
        && before.total != after.total
    {
        Logged::Total(total).encode_to(&mut bytes);
    }
    // In this order what there is in between is there at both ends, and no more.
    let removed = before.set.difference(&after.set);
    if !removed.is_empty() {
        Logged::Removed(spans_of(&removed)).encode_to(&mut bytes);
    }
    let added = after.set.difference(&before.set);
    if !added.is_empty() {
        Logged::Added(spans_of(&added)).encode_to(&mut bytes);
    }
    bytes
}

impl Look for StoreTracker {
    type UnderWay = Vec<Reaping>;

    fn look(&self, key: &BinaryKey) -> TrackerOp<Completed> {
        let (tracker, key) = (self.clone(), key.clone());
        Op::start(async move {
            match tracker.current(&key).await? {
                Some(found) => Ok(found.completed),
                None => Err(TrackerError::NotFound { key }),
            }
        })
    }

    fn listen(&self, key: &BinaryKey) -> Listener {
        self.inner.trackers.watches.listen(&self.told_as(key))
    }

    fn expect_change(&self, key: &BinaryKey) -> Result<Vec<Reaping>, TrackerError> {
        self.inner.check_writable()?;
        let reaping = self.inner.reap_in_background();
        if let Some(held) = self.find(key)? {
            let first = self.inner.to_change(held.holders).first();
            let number = first.unwrap_or(held.number);
            self.inner.sectors[number].check_writable()?;
        }
        Ok(reaping)
    }
}

impl RangeTracker for StoreTracker {
    fn mark_complete(
        &self,
        key: &BinaryKey,
        ranges: &RangeSet,
        options: TrackOptions,
    ) -> TrackerOp<Marked> {
        let (ranges, of, named) = (ranges.clone(), self.of, key.clone());
        let decide = move |before: &Completed| {
            // What lies past the total is no question of having been written.
            resolve_total(&named, before.total, options.total, &ranges)?;
            let new = ranges.difference(&before.set);
            if of == Of::Blobs && !new.is_empty() {
                let (key, missing) = (named.clone(), new);
                return Err(TrackerError::NotWritten { key, missing });
            }
            let update = before.set.union(&ranges);
            Ok(Decided { update, new })
        };
        self.change(key, options, decide, |completed, new| Marked {
            new,
            completed,
        })
    }

    fn get_completed(&self, key: &BinaryKey) -> TrackerOp<Completed> {
        self.look(key)
    }

    fn get_pending(&self, key: &BinaryKey, total: Option<u64>) -> TrackerOp<RangeSet> {
        tracker::get_pending(self, key, total)
    }

    fn is_complete(&self, key: &BinaryKey) -> TrackerOp<bool> {
        tracker::is_complete(self, key)
    }

    fn compare_and_set(
        &self,
        key: &BinaryKey,
        expected: Expected,
        update: &RangeSet,
        options: TrackOptions,
    ) -> TrackerOp<Completed> {
        let (update, named) = (update.clone(), key.clone());
        let decide = move |before: &Completed| {
            let other_life = |generation| generation != before.generation;
            if expected.set != before.set || expected.generation.is_some_and(other_life) {
                let (key, actual) = (named.clone(), Box::new(before.clone()));
                return Err(TrackerError::Mismatch { key, actual });
            }
            Ok(Decided {
                update: update.clone(),
                new: RangeSet::new(),
            })
        };
        self.change(key, options, decide, |completed, _| completed)
    }

    fn wait_for(&self, key: &BinaryKey, range: Span) -> TrackerOp<()> {
        tracker::wait_for(self, key, range)
    }

    fn observe(&self, key: &BinaryKey) -> TrackerOp<Box<dyn ObserveRanges>> {
        tracker::observe(self, key)
    }

    fn forget(&self, key: &BinaryKey) -> TrackerOp<bool> {
        if self.of == Of::Blobs {
            let what = format!("{key} is a blob: it is forgotten when it is deleted");
            return Op::fail(StorageError::invalid(what));
        }
        if let Err(error) = self.inner.check_writable() {
            return Op::fail(error);
        }
        let stored = stored_key(key);
        let inner = Arc::clone(&self.inner);
        self.inner.start_in_order(vec![stored.clone()], async move {
            let deleted = inner.delete(&stored, &DeleteOptions::default()).await?;
            inner.trackers.forget(&stored);
            Ok(deleted.existed)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the store keeps in memory of a key whose set this is.
    fn bytes_for(spans: &[Range<u64>], total: u64) -> usize {
        let known = Known {
            version: 1,
            generation: 1,
            total: Some(total),
            packed: pack(spans).into(),
            size: 0,
            changes: 0,
        };
        let completed = known.completed().expect("it was packed here");
        assert_eq!(spans_of(&completed.set), spans);
        bytes_of(
            &BinaryKey::new("a key of some length").expect("a good key"),
            &known,
        )
    }

    #[test]
    fn sets_of_100_gib_take_little() {
        const TOTAL: u64 = 100 << 30;
        let whole = bytes_for(std::slice::from_ref(&(0..TOTAL)), TOTAL);
        assert!(whole < 1024, "{whole} bytes for all of it");
        let alternate = (0..TOTAL).step_by(8192).map(|start| start..start + 4096);
        let alternate = bytes_for(&alternate.collect::<Vec<_>>(), TOTAL);
        assert!(
            alternate < 4 << 20,
            "{alternate} bytes for alternate blocks"
        );
        println!("complete: {whole} bytes, alternate blocks of 4 KiB: {alternate} bytes");
    }
}

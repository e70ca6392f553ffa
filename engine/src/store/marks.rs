//! What is known to be wrong with replicas: found by reads, by a scrub, or by writes that came about in
//! some sectors only. Reads go elsewhere first, and repair comes by.
//!
//! All of it is in memory: the sectors say what they have, and a scrub finds again what they can't read.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::catalog::SECTORS_MAX;
use super::set::SectorSet;
use crate::port::{BinaryKey, RangeSet, Span, StorageError};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use crate::sync::channel::Sender;

/// Replicas that are remembered as damaged, and blobs that are to be repaired, at most: of a sector that
/// is ruined there may be many more, and a scan finds them.
const REMEMBERED_MAX: usize = 100_000;
/// Reads of a sector that fail one after the other, after which others are asked first.
const FAILURES_MAX: u32 = 3;

/// What is wrong with one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The version of the blob that it was found of.
    pub version: u64,
    /// What was met first.
    pub reason: String,
    /// When, in milliseconds since 1970.
    pub since: u64,
    /// How often something was met.
    pub count: u32,
    /// The bytes that could not be read.
    pub ranges: RangeSet,
}

impl Mark {
    /// What is damaged of what the replica has: all of it, if what could not be read is none of its bytes.
    pub fn damaged(&self, held: &RangeSet) -> RangeSet {
        let damaged = self.ranges.intersection(held);
        match damaged.is_empty() {
            true => held.clone(),
            false => damaged,
        }
    }
}

/// The marks of a store, and what is to be repaired.
#[derive(Debug)]
pub struct Marks {
    /// How many marks there are: the common case is none, and costs one load.
    count: AtomicUsize,
    by_replica: Mutex<BTreeMap<(BinaryKey, usize), Mark>>,
    /// By sector: reads that failed one after the other.
    failures: Vec<AtomicU32>,
    /// Stored keys of blobs that have fewer good replicas than they should.
    backlog: Mutex<BTreeSet<BinaryKey>>,
    /// There are others, which only a scan finds.
    is_scan_due: AtomicBool,
    /// Something came in since repair looked last.
    has_news: AtomicBool,
    kick: Sender<()>,
}

impl Marks {
    /// Nothing is known. `kick` wakes whoever repairs.
    pub fn new(kick: Sender<()>) -> Self {
        Self {
            count: AtomicUsize::new(0),
            by_replica: Mutex::default(),
            failures: (0..SECTORS_MAX).map(|_| AtomicU32::new(0)).collect(),
            backlog: Mutex::default(),
            is_scan_due: AtomicBool::new(false),
            has_news: AtomicBool::new(false),
            kick,
        }
    }

    /// Something of a replica can't be read.
    pub fn mark(
        &self,
        key: &BinaryKey,
        number: usize,
        version: u64,
        range: &Range<u64>,
        error: &StorageError,
        now: u64,
    ) {
        let failures = &self.failures[number];
        if matches!(error, StorageError::Io { .. }) {
            failures.fetch_add(1, Ordering::Relaxed);
        }
        let ranges: RangeSet = Span::new(range.start, range.end).into_iter().collect();
        self.add(key, number, version, &ranges, &error.to_string(), now);
    }

    /// Bytes of a replica are damaged, or all that it has, if they are none of them.
    #[expect(clippy::too_many_arguments, reason = "what is met, where and when")]
    pub fn mark_ranges(
        &self,
        key: &BinaryKey,
        number: usize,
        version: u64,
        ranges: &RangeSet,
        held: &RangeSet,
        reason: &str,
        now: u64,
    ) {
        let hit = ranges.intersection(held);
        let damaged = if hit.is_empty() { held } else { &hit };
        self.add(key, number, version, damaged, reason, now);
    }

    fn add(
        &self,
        key: &BinaryKey,
        number: usize,
        version: u64,
        ranges: &RangeSet,
        reason: &str,
        now: u64,
    ) {
        {
            let mut by_replica = self.by_replica.lock();
            let place = (key.owned(), number);
            if by_replica.len() >= REMEMBERED_MAX && !by_replica.contains_key(&place) {
                self.is_scan_due.store(true, Ordering::Release);
                return;
            }
            let fresh = Mark {
                version,
                reason: reason.to_owned(),
                since: now,
                count: 0,
                ranges: RangeSet::new(),
            };
            let mark = by_replica.entry(place).or_insert_with(|| fresh.clone());
            if mark.version != version {
                *mark = fresh;
            }
            mark.count = mark.count.saturating_add(1);
            mark.ranges = mark.ranges.union(ranges);
            self.count.store(by_replica.len(), Ordering::Release);
        }
        self.want_repair(key);
    }

    /// A read of a sector went well.
    pub fn went_well(&self, number: usize) {
        let failures = &self.failures[number];
        if failures.load(Ordering::Relaxed) != 0 {
            failures.store(0, Ordering::Relaxed);
        }
    }

    /// Whether others are asked first: what is known of the replica, or of its sector, is not good.
    pub fn is_doubtful(&self, key: &BinaryKey, number: usize, version: u64) -> bool {
        self.failures[number].load(Ordering::Relaxed) >= FAILURES_MAX
            || self.get(key, number, version).is_some()
    }

    /// What is known to be wrong with a replica of this version.
    pub fn get(&self, key: &BinaryKey, number: usize, version: u64) -> Option<Mark> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let by_replica = self.by_replica.lock();
        let mark = by_replica.get(&(key.clone(), number));
        mark.filter(|mark| mark.version == version).cloned()
    }

    /// The sectors whose replicas of a stored key are marked.
    pub fn of(&self, stored: &[u8]) -> SectorSet {
        if self.count.load(Ordering::Acquire) == 0 {
            return SectorSet::NONE;
        }
        let Ok(key) = BinaryKey::of_stored(stored) else {
            return SectorSet::NONE;
        };
        let by_replica = self.by_replica.lock();
        let marked = by_replica.range((key.clone(), 0)..=(key, usize::MAX));
        marked.map(|((_, number), _)| *number).collect()
    }

    /// A replica was read back whole, or written anew, or is gone.
    pub fn clear(&self, key: &BinaryKey, number: usize) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut by_replica = self.by_replica.lock();
        by_replica.remove(&(key.clone(), number));
        self.count.store(by_replica.len(), Ordering::Release);
    }

    /// What is known of other versions than this one, or of all if the blob is gone, matters no more.
    pub fn outdated(&self, key: &BinaryKey, current: Option<u64>) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut by_replica = self.by_replica.lock();
        let of_key = by_replica.range((key.clone(), 0)..=(key.clone(), usize::MAX));
        let is_outdated = |(_, mark): &(&(BinaryKey, usize), &Mark)| Some(mark.version) != current;
        let outdated: Vec<usize> = of_key
            .filter(is_outdated)
            .map(|((_, number), _)| *number)
            .collect();
        for number in outdated {
            by_replica.remove(&(key.clone(), number));
        }
        self.count.store(by_replica.len(), Ordering::Release);
    }

    /// Bytes of a replica were read back well.
    pub fn mend(
        &self,
        key: &BinaryKey,
        number: usize,
        version: u64,
        ranges: &RangeSet,
        held: &RangeSet,
    ) {
        let mut by_replica = self.by_replica.lock();
        let place = (key.clone(), number);
        let mark = by_replica.get_mut(&place);
        let Some(mark) = mark.filter(|mark| mark.version == version) else {
            return;
        };
        mark.ranges = mark.damaged(held).difference(ranges);
        if mark.ranges.is_empty() {
            by_replica.remove(&place);
            self.count.store(by_replica.len(), Ordering::Release);
        }
    }

    /// A sector is gone.
    pub fn forget(&self, number: usize) {
        let mut by_replica = self.by_replica.lock();
        by_replica.retain(|(_, of), _| *of != number);
        self.count.store(by_replica.len(), Ordering::Release);
    }

    /// How many replicas are marked.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// A blob has fewer good replicas than it should.
    pub fn want_repair(&self, key: &BinaryKey) {
        {
            let mut backlog = self.backlog.lock();
            if backlog.len() >= REMEMBERED_MAX && !backlog.contains(key) {
                self.is_scan_due.store(true, Ordering::Release);
            } else {
                backlog.insert(key.owned());
            }
        }
        self.tell();
    }

    fn tell(&self) {
        self.has_news.store(true, Ordering::Release);
        let _ = self.kick.try_send(());
    }

    /// Takes that something came in.
    pub fn take_news(&self) -> bool {
        self.has_news.swap(false, Ordering::AcqRel)
    }

    /// Blobs may have fewer good replicas than they should, and nobody knows which.
    pub fn want_scan(&self) {
        self.is_scan_due.store(true, Ordering::Release);
        self.tell();
    }

    /// Takes that a scan is wanted.
    pub fn take_scan(&self) -> bool {
        self.is_scan_due.swap(false, Ordering::AcqRel)
    }

    /// Whether a scan is wanted.
    pub fn is_scan_due(&self) -> bool {
        self.is_scan_due.load(Ordering::Acquire)
    }

    /// The next blob to repair, behind `after`.
    pub fn next_repair(&self, after: Option<&BinaryKey>) -> Option<BinaryKey> {
        use std::ops::Bound;
        let backlog = self.backlog.lock();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        backlog
            .range::<BinaryKey, _>((from, Bound::Unbounded))
            .next()
            .cloned()
    }

    /// A blob is as it should be.
    pub fn repaired(&self, key: &BinaryKey) {
        self.backlog.lock().remove(key);
    }

    /// Whether nothing is known to be wrong with what these sectors have, or is to be.
    pub fn is_clear(&self, sectors: SectorSet) -> bool {
        if self.is_scan_due() || self.backlog() > 0 {
            return false;
        }
        let by_replica = self.by_replica.lock();
        let mut marked = by_replica.keys().map(|(_, number)| *number);
        !marked.any(|number| sectors.contains(number))
    }

    /// How many blobs are to be repaired, as far as is known.
    pub fn backlog(&self) -> usize {
        self.backlog.lock().len()
    }
}

//! [`ReplicaIndex`]: which sectors have which bytes of a blob, and which of them can be relied on.

use std::time::SystemTime;

use super::error::{ErrorKind, StorageError};
use super::key::BinaryKey;
use super::list::{ListPage, ListRequest};
use super::op::Op;
use super::span::{RangeSet, Span};

/// An operation of a [`ReplicaIndex`].
pub type ReplicaOp<T> = Op<T, ReplicaError>;

/// What one sector has of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// The sector's number in the store.
    pub sector: u16,
    /// The version of the blob that it is of: an LSN.
    pub generation: u64,
    /// Whether that is the current version. If it is not, the sector missed a change: the replica counts
    /// for nothing, and is there until the sector gets the current version.
    pub is_current: bool,
    /// The bytes that it has. Of holes there are none.
    pub ranges: RangeSet,
    /// Whether it can be relied on.
    pub health: Health,
}

impl Replica {
    /// The bytes that can be relied on; of an older version there are none.
    #[must_use]
    pub fn good(&self) -> RangeSet {
        match &self.health {
            _ if !self.is_current => RangeSet::new(),
            Health::Healthy => self.ranges.clone(),
            Health::Unhealthy(trouble) => self.ranges.difference(&trouble.damaged),
        }
    }
}

/// Whether a replica can be relied on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Health {
    /// Nothing is known against it.
    #[default]
    Healthy,
    /// Something was met. It is read only if no other replica will do.
    Unhealthy(Trouble),
}

impl Health {
    /// Whether nothing is known against it.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        *self == Self::Healthy
    }

    /// Something was met in a replica that has these bytes: for [`ReplicaIndex::mark_unhealthy`].
    pub fn mark(&mut self, reason: &str, now: SystemTime, damaged: &RangeSet, held: &RangeSet) {
        let mut damaged = damaged.intersection(held);
        if damaged.is_empty() {
            damaged = held.clone();
        }
        match self {
            Self::Healthy => {
                *self = Self::Unhealthy(Trouble {
                    reason: reason.to_owned(),
                    since: now,
                    count: 1,
                    damaged,
                });
            }
            Self::Unhealthy(trouble) => {
                trouble.count = trouble.count.saturating_add(1);
                trouble.damaged = trouble.damaged.union(&damaged);
            }
        }
    }

    /// These bytes were written anew, or read back well.
    pub fn mend(&mut self, ranges: &RangeSet) {
        let Self::Unhealthy(trouble) = self else {
            return;
        };
        trouble.damaged = trouble.damaged.difference(ranges);
        if trouble.damaged.is_empty() {
            *self = Self::Healthy;
        }
    }
}

/// What was met in a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What was met first.
    pub reason: String,
    /// When that was (millisecond resolution).
    pub since: SystemTime,
    /// How often something was met.
    pub count: u32,
    /// The bytes that it has and that can't be relied on.
    pub damaged: RangeSet,
}

/// How well a blob is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReplicaStatus {
    /// The current version: only replicas of that count.
    pub generation: u64,
    /// How many replicas there are to be.
    pub target: usize,
    /// How many there are, whole or not, healthy or not.
    pub actual: usize,
    /// How many are healthy and have every byte that was written. Of a blob without any bytes this alone
    /// tells how many are missing.
    pub healthy: usize,
    /// The bytes with fewer good copies than the target.
    pub missing_ranges: RangeSet,
    /// The bytes with no good copy at all.
    pub lost_ranges: RangeSet,
    /// Whether there is something to repair, which is queued then: fewer healthy replicas than there are
    /// to be, or one that is not healthy.
    pub is_repair_queued: bool,
}

impl ReplicaStatus {
    /// How well a version is kept of which these bytes were written.
    #[must_use]
    pub fn of(generation: u64, target: usize, written: &RangeSet, replicas: &[Replica]) -> Self {
        let current: Vec<&Replica> = replicas.iter().filter(|one| one.is_current).collect();
        let good: Vec<RangeSet> = current.iter().map(|one| one.good()).collect();
        let lacking = |copies| written.difference(&held_by(&good, copies));
        let is_sick = |one: &&Replica| !one.health.is_healthy();
        let is_whole = |one: &&&Replica| !is_sick(one) && one.ranges.is_superset(written);
        let healthy = current.iter().filter(is_whole).count();
        Self {
            generation,
            target,
            actual: current.len(),
            healthy,
            missing_ranges: lacking(target),
            lost_ranges: lacking(1),
            is_repair_queued: healthy < target || current.iter().any(is_sick),
        }
    }
}

/// The bytes that are in at least so many of the sets; all there can be, if in none will do.
fn held_by(sets: &[RangeSet], least: usize) -> RangeSet {
    if least == 0 {
        return Span::ALL.into();
    }
    // From one border to the next, each of the sets goes on as it is.
    let mut borders: Vec<(u64, bool)> = Vec::new();
    for span in sets.iter().flat_map(RangeSet::spans) {
        borders.extend([(span.start(), true), (span.end(), false)]);
    }
    borders.sort_unstable();
    let (mut count, mut from) = (0_usize, 0);
    let mut held = Vec::new();
    for (position, is_start) in borders {
        if count >= least {
            held.extend(Span::new(from, position));
        }
        from = position;
        // As many end as start, none before it starts: empty spans are in no set.
        count = if is_start {
            count + 1
        } else {
            count.saturating_sub(1)
        };
    }
    held.into_iter().collect()
}

/// Why an operation on replicas failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicaError {
    /// No blob has this key.
    #[error("not found: {key}")]
    NotFound {
        /// The key that was asked for.
        key: BinaryKey,
    },
    /// The store has no such sector.
    #[error("there is no sector {sector}, only {sectors:?}")]
    UnknownSector {
        /// The number that was asked for.
        sector: u16,
        /// The numbers that there are, in order.
        sectors: Vec<u16>,
    },
    /// The sector has no replica of the blob's current version.
    #[error("sector {sector} has no replica of {key} as it is now")]
    NoReplica {
        /// The blob.
        key: BinaryKey,
        /// The sector.
        sector: u16,
    },
    /// The blob has another version by now; nothing changed.
    #[error("{key} has version {current} by now, not {generation}")]
    Stale {
        /// The blob.
        key: BinaryKey,
        /// The version that was named.
        generation: u64,
        /// The version that it has.
        current: u64,
    },
    /// The store could not do it.
    #[error(transparent)]
    Storage(StorageError),
}

impl From<StorageError> for ReplicaError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::NotFound { key } => Self::NotFound { key },
            error => Self::Storage(error),
        }
    }
}

impl ReplicaError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } | Self::NoReplica { .. } => ErrorKind::NotFound,
            Self::UnknownSector { .. } => ErrorKind::InvalidInput,
            Self::Stale { .. } => ErrorKind::Conflict,
            Self::Storage(error) => error.kind(),
        }
    }

    /// Whether the same call may succeed later without anything else being mended. A version that is
    /// stale never comes back.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Storage(error) => error.is_retryable(),
            Self::NotFound { .. }
            | Self::UnknownSector { .. }
            | Self::NoReplica { .. }
            | Self::Stale { .. } => false,
        }
    }
}

/// Which sectors have which bytes of the blobs.
///
/// What a sector has is told by the sector itself: an index over sectors is the union of their own
/// indexes, is there again when any of them are opened, and can't say anything else than they do. What
/// was found wrong with a replica need not outlive the index, since it is found again.
///
/// A generation is a version of the blob, as in [`BlobInfo`](super::BlobInfo). Only replicas of the
/// current one count. Replicas have the bytes that were written; holes have no replicas, and are neither
/// missing nor lost.
///
/// ```
/// use graviton_engine::memory::{MemoryOptions, MemoryStore};
/// use graviton_engine::port::{BinaryKey, BlobStore, PutOptions, Span};
///
/// let store = MemoryStore::with_options(MemoryOptions {
///     sectors: 3,
///     replicas: 2,
///     ..MemoryOptions::default()
/// });
/// let key = BinaryKey::new("k")?;
/// let version = store.put(&key, "0123456789".into(), PutOptions::default()).wait()?.version;
///
/// let replicas = store.replicas();
/// for sector in [0, 2] {
///     replicas.add_replica(&key, sector, version, &Span::first(10).into()).wait()?;
/// }
/// let damaged = "4..6".parse()?;
/// replicas.mark_unhealthy(&key, 2, version, "it does not verify", &damaged).wait()?;
/// let status = replicas.status(&key).wait()?;
/// assert_eq!((status.target, status.actual, status.healthy), (2, 2, 1));
/// assert_eq!(status.missing_ranges, damaged);
/// assert!(status.lost_ranges.is_empty() && status.is_repair_queued);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait ReplicaIndex: Send + Sync {
    /// Adds bytes to what a sector has of a blob: once it has returned, they are there, anew if they
    /// were there before, and are healthy. An index over sectors takes them from other replicas, and
    /// may add more than was asked for, up to all of the blob. Of holes there is nothing to add. No
    /// bytes at all make a replica, too: of a blob that has none it is whole. A replica of an older
    /// version in the sector is replaced.
    ///
    /// Returns what the sector has then.
    ///
    /// # Errors
    /// `UnknownSector`, `NotFound`; `Stale` if the generation is older than the current one,
    /// `InvalidArgument` if the blob never had it yet; `InvalidRange` if a range lies outside of the
    /// blob. Nothing has changed then. What keeps the bytes from being read or written: `Corruption`,
    /// `Io`, `NoSpace`, `SectorPoisoned`, ...
    fn add_replica(
        &self,
        key: &BinaryKey,
        sector: u16,
        generation: u64,
        ranges: &RangeSet,
    ) -> ReplicaOp<Replica>;

    /// All replicas of a blob, in the order of their sectors' numbers, one to a sector. Whoever reads
    /// takes the healthy ones first. Those of older versions that are known of are among them.
    ///
    /// # Errors
    /// `NotFound`, `Corruption` of the index.
    fn find_replicas(&self, key: &BinaryKey) -> ReplicaOp<Vec<Replica>>;

    /// One page of the blobs that a sector has a replica of, of their current versions, healthy or not,
    /// whole or not: in ascending bytewise order of their keys, as
    /// [`BlobStore::list`](super::BlobStore::list). A key that lives in the sector through the whole
    /// walk appears exactly once, whatever changes meanwhile; others may or may not.
    ///
    /// # Errors
    /// `UnknownSector`, `InvalidArgument` (delimiter), `Corruption` of the index.
    fn keys_in_sector(&self, sector: u16, request: ListRequest) -> ReplicaOp<ListPage>;

    /// Something was met in a replica: `ranges` are damaged, or all that it has, if it has none of them
    /// (or none is named). It is kept; reads go elsewhere first, and its repair is queued. The reason
    /// and the time are those of the first call since it was healthy.
    ///
    /// Only [`ReplicaIndex::mark_verified`] and [`ReplicaIndex::add_replica`] make bytes good again;
    /// the replica is healthy once all of them are.
    ///
    /// Returns what is known of the replica then.
    ///
    /// # Errors
    /// `UnknownSector`, `NotFound`, `NoReplica`; `Stale`, `InvalidArgument` and `InvalidRange` as
    /// [`ReplicaIndex::add_replica`]. Nothing has changed then.
    fn mark_unhealthy(
        &self,
        key: &BinaryKey,
        sector: u16,
        generation: u64,
        reason: &str,
        ranges: &RangeSet,
    ) -> ReplicaOp<Replica>;

    /// These bytes of a replica were read back, and verified: they are good. It adds nothing to what the
    /// sector has.
    ///
    /// Returns what is known of the replica then.
    ///
    /// # Errors
    /// As [`ReplicaIndex::mark_unhealthy`].
    fn mark_verified(
        &self,
        key: &BinaryKey,
        sector: u16,
        generation: u64,
        ranges: &RangeSet,
    ) -> ReplicaOp<Replica>;

    /// How well a blob is kept.
    ///
    /// # Errors
    /// As [`ReplicaIndex::find_replicas`].
    fn status(&self, key: &BinaryKey) -> ReplicaOp<ReplicaStatus>;
}

/// Checks what a change of a replica names: the version, and ranges of it.
///
/// # Errors
/// `Stale`, `InvalidArgument` if there was never such a version, `InvalidRange`.
pub fn check_replica(
    key: &BinaryKey,
    generation: u64,
    ranges: &RangeSet,
    current: u64,
    size: u64,
) -> Result<(), ReplicaError> {
    if generation > current {
        let what = format!("version {generation} of {key}, which has {current}");
        return Err(StorageError::invalid(what).into());
    }
    let key = key.clone();
    if generation < current {
        return Err(ReplicaError::Stale {
            key,
            generation,
            current,
        });
    }
    match ranges.spans().iter().find(|span| span.end() > size) {
        Some(&span) => {
            let range = span.into();
            Err(StorageError::InvalidRange { key, range, size }.into())
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Positions that the naive model knows.
    const POSITIONS: u64 = 24;

    fn set() -> impl Strategy<Value = RangeSet> {
        let span = (0..=POSITIONS, 0..=POSITIONS)
            .prop_map(|(one, other)| Span::new(one.min(other), one.max(other)).unwrap());
        proptest::collection::vec(span, 0..6).prop_map(RangeSet::from_iter)
    }

    fn replica() -> impl Strategy<Value = Replica> {
        let damage = proptest::option::weighted(0.5, set());
        (set(), damage, proptest::bool::weighted(0.8)).prop_map(|(ranges, damage, is_current)| {
            let mut health = Health::default();
            if let Some(damage) = damage {
                health.mark("damage", SystemTime::UNIX_EPOCH, &damage, &ranges);
            }
            Replica {
                sector: 0,
                generation: 0,
                is_current,
                ranges,
                health,
            }
        })
    }

    proptest! {
        #[test]
        fn status_is_what_counting_bytes_says(
            written in set(),
            target in 0_usize..5,
            replicas in proptest::collection::vec(replica(), 0..6),
        ) {
            let status = ReplicaStatus::of(7, target, &written, &replicas);
            let current = || replicas.iter().filter(|one| one.is_current);
            let is_good = |one: &Replica, byte| {
                let is_damaged = match &one.health {
                    Health::Healthy => false,
                    Health::Unhealthy(trouble) => trouble.damaged.contains(byte),
                };
                one.ranges.contains(byte) && !is_damaged
            };
            for byte in 0..POSITIONS {
                let good = current().filter(|one| is_good(one, byte)).count();
                let is_written = written.contains(byte);
                prop_assert_eq!(status.missing_ranges.contains(byte), is_written && good < target);
                prop_assert_eq!(status.lost_ranges.contains(byte), is_written && good == 0);
            }
            let is_whole = |one: &&Replica| {
                let mut bytes = 0..POSITIONS;
                one.health == Health::Healthy
                    && bytes.all(|byte| !written.contains(byte) || one.ranges.contains(byte))
            };
            prop_assert!(status.missing_ranges.end().max(status.lost_ranges.end()) <= POSITIONS);
            prop_assert_eq!((status.generation, status.target), (7, target));
            prop_assert_eq!(status.actual, current().count());
            prop_assert_eq!(status.healthy, current().filter(is_whole).count());
            let is_sick = current().any(|one| one.health != Health::Healthy);
            prop_assert_eq!(status.is_repair_queued, status.healthy < target || is_sick);
        }

        #[test]
        fn what_is_damaged_is_held(
            held in set(),
            calls in proptest::collection::vec((any::<bool>(), set()), 0..8),
        ) {
            let mut health = Health::default();
            // By byte; `None`: healthy.
            let mut model: Option<Vec<bool>> = None;
            let mut count = 0;
            let bytes = |set: &RangeSet| -> Vec<bool> {
                (0..POSITIONS).map(|byte| set.contains(byte)).collect()
            };
            for (is_mark, ranges) in calls {
                let (named, has) = (bytes(&ranges), bytes(&held));
                if is_mark {
                    count += 1;
                    health.mark(&format!("{count}"), SystemTime::UNIX_EPOCH, &ranges, &held);
                    let all = !(0..named.len()).any(|byte| named[byte] && has[byte]);
                    let damaged = model.get_or_insert_with(|| vec![false; named.len()]);
                    for (byte, damaged) in damaged.iter_mut().enumerate() {
                        *damaged |= has[byte] && (all || named[byte]);
                    }
                } else {
                    health.mend(&ranges);
                    if let Some(damaged) = &mut model {
                        let named = named.iter();
                        damaged.iter_mut().zip(named).for_each(|(one, named)| *one &= !named);
                    }
                    model = model.filter(|damaged| damaged.contains(&true));
                }
                if model.is_none() {
                    count = 0;
                }
                match &health {
                    Health::Healthy => prop_assert!(model.is_none()),
                    Health::Unhealthy(trouble) => {
                        prop_assert_eq!(Some(bytes(&trouble.damaged)), model.clone());
                        prop_assert_eq!((trouble.reason.as_str(), trouble.count), ("1", count));
                    }
                }
            }
        }
    }

    #[test]
    fn positions_are_not_counted_one_by_one() {
        let all = RangeSet::from(Span::ALL);
        let replica = |ranges: &RangeSet| Replica {
            sector: 0,
            generation: 1,
            is_current: true,
            ranges: ranges.clone(),
            health: Health::Healthy,
        };
        let mut most = all.clone();
        most.remove(Span::first(1 << 40));
        let status = ReplicaStatus::of(1, 2, &all, &[replica(&all), replica(&most)]);
        assert_eq!(status.missing_ranges, Span::first(1 << 40).into());
        assert!(status.lost_ranges.is_empty());
        let status = ReplicaStatus::of(1, usize::MAX, &all, &[replica(&most)]);
        assert_eq!(status.missing_ranges, all);
        assert_eq!(status.lost_ranges, Span::first(1 << 40).into());
    }
}

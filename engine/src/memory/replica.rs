//! [`ReplicaIndex`] in memory: it believes what it is told of the sectors.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::state::{State, Version};
use super::{MemoryStore, Shared};
use crate::port::replica::check_replica;
use crate::port::{
    BinaryKey, Health, ListPage, ListRequest, Op, Precondition, RangeSet, Replica, ReplicaError,
    ReplicaIndex, ReplicaOp, ReplicaStatus,
};

/// What a sector was said to have of a blob.
#[derive(Debug, Clone, Default)]
pub(super) struct Copy {
    /// The version that it is of.
    generation: u64,
    ranges: RangeSet,
    health: Health,
}

/// What was said of a blob, by sector.
pub(super) type Copies = BTreeMap<u16, Copy>;

impl Copy {
    /// As the port has it.
    fn replica(&self, sector: u16, current: u64) -> Replica {
        Replica {
            sector,
            generation: self.generation,
            is_current: self.generation == current,
            ranges: self.ranges.clone(),
            health: self.health.clone(),
        }
    }
}

impl Version {
    /// All replicas of the blob, by sector.
    fn found(&self) -> Vec<Replica> {
        let copies = self.copies.iter();
        let replica = |(&sector, copy): (&u16, &Copy)| copy.replica(sector, self.number);
        copies.map(replica).collect()
    }

    /// The sectors that have a replica of this version.
    pub(super) fn sectors(&self) -> Vec<u16> {
        let is_current = |(_, copy): &(&u16, &Copy)| copy.generation == self.number;
        let current = self.copies.iter().filter(is_current);
        current.map(|(&sector, _)| sector).collect()
    }

    fn is_in(&self, sector: u16) -> bool {
        let copy = self.copies.get(&sector);
        copy.is_some_and(|copy| copy.generation == self.number)
    }
}

impl State {
    fn require_sector(&self, sector: u16) -> Result<(), ReplicaError> {
        if self.sectors.contains(&sector) {
            return Ok(());
        }
        let sectors = self.sectors.iter().copied().collect();
        Err(ReplicaError::UnknownSector { sector, sectors })
    }

    /// The blob that a change of a replica is about, once all that it names is checked.
    fn blob_of_replica(
        &mut self,
        key: &BinaryKey,
        sector: u16,
        generation: u64,
        ranges: &RangeSet,
    ) -> Result<&mut Version, ReplicaError> {
        self.require_sector(sector)?;
        let not_found = || ReplicaError::NotFound { key: key.clone() };
        let version = self.blobs.get_mut(key).ok_or_else(not_found)?;
        check_replica(key, generation, ranges, version.number, version.size())?;
        Ok(version)
    }

    /// What there is of the blob's current version in a sector, for `change` to change.
    fn change_replica(
        &mut self,
        key: &BinaryKey,
        sector: u16,
        generation: u64,
        ranges: &RangeSet,
        change: impl FnOnce(&mut Copy),
    ) -> Result<Replica, ReplicaError> {
        let version = self.blob_of_replica(key, sector, generation, ranges)?;
        let copy = version.copies.get_mut(&sector);
        let copy = copy.filter(|copy| copy.generation == generation);
        let copy = copy.ok_or_else(|| ReplicaError::NoReplica {
            key: key.clone(),
            sector,
        })?;
        change(copy);
        Ok(copy.replica(sector, generation))
    }

    fn add_replica(
        &mut self,
        key: &BinaryKey,
        sector: u16,
        generation: u64,
        ranges: &RangeSet,
    ) -> Result<Replica, ReplicaError> {
        let version = self.blob_of_replica(key, sector, generation, ranges)?;
        let added = ranges.intersection(&version.content.written_set());
        let copy = version.copies.entry(sector).or_default();
        if copy.generation != generation {
            *copy = Copy {
                generation,
                ..Copy::default()
            };
        }
        copy.ranges = copy.ranges.union(&added);
        copy.health.mend(&added);
        Ok(copy.replica(sector, generation))
    }
}

/// What the sectors of a store were said to have.
#[derive(Debug)]
struct MemoryReplicas {
    shared: Arc<Shared>,
}

impl ReplicaIndex for MemoryReplicas {
    fn add_replica(
        &self,
        key: &BinaryKey,
        sector: u16,
        generation: u64,
        ranges: &RangeSet,
    ) -> ReplicaOp<Replica> {
        let mut state = self.shared.state.lock();
        Op::ready(state.add_replica(key, sector, generation, ranges))
    }

    fn find_replicas(&self, key: &BinaryKey) -> ReplicaOp<Vec<Replica>> {
        let state = self.shared.state.lock();
        let version = state.existing(key, Precondition::None);
        Op::ready(version.map(Version::found).map_err(Into::into))
    }

    fn keys_in_sector(&self, sector: u16, request: ListRequest) -> ReplicaOp<ListPage> {
        let state = self.shared.state.lock();
        Op::ready(state.require_sector(sector).and_then(|()| {
            let is_in = |version: &Version| version.is_in(sector);
            Ok(state.list_those(&request, is_in)?)
        }))
    }

    fn mark_unhealthy(
        &self,
        key: &BinaryKey,
        sector: u16,
        generation: u64,
        reason: &str,
        ranges: &RangeSet,
    ) -> ReplicaOp<Replica> {
        let now = self.shared.now();
        let mark = |copy: &mut Copy| copy.health.mark(reason, now, ranges, &copy.ranges);
        let mut state = self.shared.state.lock();
        Op::ready(state.change_replica(key, sector, generation, ranges, mark))
    }

    fn mark_verified(
        &self,
        key: &BinaryKey,
        sector: u16,
        generation: u64,
        ranges: &RangeSet,
    ) -> ReplicaOp<Replica> {
        let mend = |copy: &mut Copy| copy.health.mend(ranges);
        let mut state = self.shared.state.lock();
        Op::ready(state.change_replica(key, sector, generation, ranges, mend))
    }

    fn status(&self, key: &BinaryKey) -> ReplicaOp<ReplicaStatus> {
        let state = self.shared.state.lock();
        let version = state.existing(key, Precondition::None);
        let status = |version: &Version| {
            let written = version.content.written_set();
            let target = usize::from(version.replicas);
            ReplicaStatus::of(version.number, target, &written, &version.found())
        };
        Op::ready(version.map(status).map_err(Into::into))
    }
}

impl MemoryStore {
    /// Which sectors have which bytes of its blobs, as far as it is told. A put tells it nothing.
    #[must_use]
    pub fn replicas(&self) -> Arc<dyn ReplicaIndex> {
        Arc::new(MemoryReplicas {
            shared: Arc::clone(&self.shared),
        })
    }

    /// Makes a sector known that replicas can be in. Whether it was not known before.
    pub fn add_sector(&self, number: u16) -> bool {
        self.shared.state.lock().sectors.insert(number)
    }

    /// Forgets a sector and all that it has, as if its disk were gone. Whether it was known.
    pub fn remove_sector(&self, number: u16) -> bool {
        let mut state = self.shared.state.lock();
        for version in state.blobs.values_mut() {
            version.copies.remove(&number);
        }
        state.sectors.remove(&number)
    }
}

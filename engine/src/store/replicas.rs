//! [`ReplicaIndex`] over sectors: what they say of themselves, and what was found wrong with it.

use std::sync::Arc;

use super::index::{Entry, Index};
use super::inner::{Inner, numbers};
use super::record::system_time;
use super::set::SectorSet;
use crate::port::list::build_page;
use crate::port::replica::check_replica;
use crate::port::{
    BinaryKey, Health, ListEntry, ListPage, ListRequest, Op, RangeSet, Replica, ReplicaError,
    ReplicaIndex, ReplicaOp, ReplicaStatus, Span, Trouble,
};

/// The replicas of a store.
#[derive(Debug)]
struct StoreReplicas {
    inner: Arc<Inner>,
}

impl Inner {
    /// See [`Store::replicas`](super::Store::replicas).
    pub fn replica_index(self: &Arc<Self>) -> Arc<dyn ReplicaIndex> {
        let inner = Arc::clone(self);
        Arc::new(StoreReplicas { inner })
    }

    fn require_sector(&self, sector: u16) -> Result<usize, ReplicaError> {
        self.check_open()?;
        self.check_member(sector).map_err(|_| {
            let sectors = numbers(self.sectors.members());
            ReplicaError::UnknownSector { sector, sectors }
        })
    }

    /// What a sector has of a blob whose current version is `current`.
    fn replica(&self, key: &BinaryKey, number: usize, entry: &Entry, current: u64) -> Replica {
        let sector = &self.sectors[number];
        let ranges = written(entry);
        let mark = self.marks.get(key, number, entry.lsn);
        let health = match mark {
            Some(mark) => Health::Unhealthy(Trouble {
                damaged: mark.damaged(&ranges),
                reason: mark.reason,
                since: system_time(mark.since),
                count: mark.count,
            }),
            // Of a sector that failed nobody knows what of it can be read.
            None if !sector.state().keeps_copies() => Health::Unhealthy(Trouble {
                reason: sector.poisoned().unwrap_or_default().to_owned(),
                since: system_time(self.now()),
                count: 1,
                damaged: ranges.clone(),
            }),
            None => Health::Healthy,
        };
        Replica {
            sector: sector.number(),
            generation: entry.lsn,
            is_current: entry.lsn == current,
            ranges,
            health,
        }
    }

    /// All replicas of a blob, by sector, and its current version.
    fn replicas_of(&self, key: &BinaryKey) -> Result<(Entry, Vec<Replica>), ReplicaError> {
        self.check_open()?;
        let index = self.index.read();
        let found = index.lookup(key.stored())?;
        let found = found.ok_or_else(|| ReplicaError::NotFound { key: key.clone() })?;
        let mut replicas = Vec::new();
        for number in self.sectors.members().iter() {
            if let Some(entry) = index.entry_of(&found, number, key.stored())? {
                replicas.push(self.replica(key, number, &entry, found.entry.lsn));
            }
        }
        Ok((found.entry, replicas))
    }

    /// What a sector has of a version that is named, if that is the current one.
    fn current_in(
        &self,
        index: &Index,
        key: &BinaryKey,
        sector: u16,
        generation: u64,
        ranges: &RangeSet,
    ) -> Result<(usize, Option<Entry>), ReplicaError> {
        let number = self.require_sector(sector)?;
        let found = index.lookup(key.stored())?;
        let found = found.ok_or_else(|| ReplicaError::NotFound { key: key.clone() })?;
        let current = found.entry.lsn;
        check_replica(key, generation, ranges, current, found.entry.size)?;
        let entry = index.entry_of(&found, number, key.stored())?;
        Ok((number, entry.filter(|entry| entry.lsn == current)))
    }

    /// The same, if the sector has it.
    fn replica_in(
        &self,
        index: &Index,
        key: &BinaryKey,
        sector: u16,
        generation: u64,
        ranges: &RangeSet,
    ) -> Result<(usize, Entry), ReplicaError> {
        let (number, entry) = self.current_in(index, key, sector, generation, ranges)?;
        let key = key.clone();
        let entry = entry.ok_or(ReplicaError::NoReplica { key, sector })?;
        Ok((number, entry))
    }

    /// Changes what is known to be wrong with a replica.
    fn remark(
        &self,
        key: &BinaryKey,
        sector: u16,
        generation: u64,
        ranges: &RangeSet,
        change: impl FnOnce(usize, &RangeSet),
    ) -> Result<Replica, ReplicaError> {
        let index = self.index.read();
        let (number, entry) = self.replica_in(&index, key, sector, generation, ranges)?;
        change(number, &written(&entry));
        Ok(self.replica(key, number, &entry, generation))
    }

    async fn add_replica(
        self: &Arc<Self>,
        key: &BinaryKey,
        sector: u16,
        generation: u64,
        ranges: &RangeSet,
    ) -> Result<Replica, ReplicaError> {
        let number = {
            let index = self.index.read();
            self.current_in(&index, key, sector, generation, ranges)?.0
        };
        self.check_writable()?;
        self.sectors[number].check_writable()?;
        self.bring(key, number).await?;
        let index = self.index.read();
        let (number, entry) = self.replica_in(&index, key, sector, generation, ranges)?;
        Ok(self.replica(key, number, &entry, generation))
    }

    fn keys_in(&self, sector: u16, request: &ListRequest) -> Result<ListPage, ReplicaError> {
        let number = self.require_sector(sector)?;
        let index = self.index.read();
        let prefix = BinaryKey::bound(&request.prefix);
        let page = build_page(request, |from, limit| {
            let mut entries = Vec::new();
            if limit == 0 {
                return Ok(entries);
            }
            let from = BinaryKey::bound(from);
            // Not of those that were deleted.
            index.scan_replicas(
                from.stored(),
                u64::MAX,
                SectorSet::NONE,
                |stored, holders, _, _| {
                    if !stored.starts_with(prefix.stored()) {
                        return Ok(false);
                    }
                    if holders.contains(number)
                        && let Some(entry) = index.entry_in(number, stored)?
                    {
                        let key = BinaryKey::of_stored(stored)
                            .map_err(|error| self.sectors[number].corruption(0, error))?;
                        let time = system_time(entry.time);
                        entries.push(ListEntry::new(key, entry.size, entry.lsn, time));
                    }
                    Ok(entries.len() < limit)
                },
            )?;
            Ok(entries)
        });
        Ok(page?)
    }
}

/// The bytes of a version that were written.
fn written(entry: &Entry) -> RangeSet {
    RangeSet::from(Span::first(entry.size)).difference(&entry.missing())
}

impl ReplicaIndex for StoreReplicas {
    fn add_replica(
        &self,
        key: &BinaryKey,
        sector: u16,
        generation: u64,
        ranges: &RangeSet,
    ) -> ReplicaOp<Replica> {
        let (inner, key, ranges) = (Arc::clone(&self.inner), key.clone(), ranges.clone());
        Op::start(async move { inner.add_replica(&key, sector, generation, &ranges).await })
    }

    fn find_replicas(&self, key: &BinaryKey) -> ReplicaOp<Vec<Replica>> {
        Op::ready(self.inner.replicas_of(key).map(|(_, replicas)| replicas))
    }

    fn keys_in_sector(&self, sector: u16, request: ListRequest) -> ReplicaOp<ListPage> {
        Op::ready(self.inner.keys_in(sector, &request))
    }

    fn mark_unhealthy(
        &self,
        key: &BinaryKey,
        sector: u16,
        generation: u64,
        reason: &str,
        ranges: &RangeSet,
    ) -> ReplicaOp<Replica> {
        let inner = &self.inner;
        Op::ready(
            inner.remark(key, sector, generation, ranges, |number, held| {
                let now = inner.now();
                let marks = &inner.marks;
                marks.mark_ranges(key, number, generation, ranges, held, reason, now);
            }),
        )
    }

    fn mark_verified(
        &self,
        key: &BinaryKey,
        sector: u16,
        generation: u64,
        ranges: &RangeSet,
    ) -> ReplicaOp<Replica> {
        let inner = &self.inner;
        Op::ready(
            inner.remark(key, sector, generation, ranges, |number, held| {
                inner.marks.mend(key, number, generation, ranges, held);
            }),
        )
    }

    fn status(&self, key: &BinaryKey) -> ReplicaOp<ReplicaStatus> {
        let inner = &self.inner;
        let status = inner.replicas_of(key).map(|(entry, replicas)| {
            let target = inner.wanted(entry.replicas);
            ReplicaStatus::of(entry.lsn, target, &written(&entry), &replicas)
        });
        Op::ready(status)
    }
}

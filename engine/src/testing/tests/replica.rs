//! The clauses of `ReplicaIndex`: each fails over an index that is broken in the way it is for, and
//! all of them hold over one that is like that of a store, which makes replicas by itself, makes them
//! whole, and does not keep for ever what it found wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::ThreadId;

use parking_lot::Mutex;

use super::super::{Replicated, Subject, replica_clause, replica_index_contract, run_all_replica};
use crate::memory::{MemoryOptions, MemoryStore};
use crate::port::{
    BinaryKey, BlobInfo, BlobStore, Health, ListPage, ListRequest, ListToken, Op, RangeSet,
    Replica, ReplicaError, ReplicaIndex, ReplicaOp, ReplicaStatus, Span, StorageError,
};

/// What is wrong with an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    AddTellsWhatWasAsked,
    FoundBackwards,
    UnhealthyIsNotFound,
    UnknownSectorIsAnyError,
    AnyVersionIsTaken,
    OlderVersionsCount,
    OlderVersionsAreCurrent,
    RangesAreCut,
    HolesAreMissing,
    HolesAreHeld,
    NothingIsNotAdded,
    LastReasonCounts,
    MarksAreNotCounted,
    NoRepairIsQueued,
    MarkOfNothingIsNone,
    DamageIsNotHeld,
    VerifyDoesNothing,
    VerifyAdds,
    AddDoesNotMend,
    AddMendsAll,
    QuestionsMend,
    UnhealthyCountsAsHealthy,
    LostIsMissing,
    NothingIsLost,
    LastMissingByteIsForgotten,
    PagesAreBackwards,
    PagesAreOfAllSectors,
    UnhealthyIsNotListed,
    PagesOverlap,
    PagesLeaveGaps,
    AbsentHasNone,
    ReopenForgets,
    OtherThreadsAreLost,
}

/// Each fault, and a clause that notices it.
const NOTICED: &[(Fault, &str)] = &[
    (Fault::AddTellsWhatWasAsked, "adding_a_replica_is_a_union"),
    (Fault::FoundBackwards, "replicas_are_found_by_sector"),
    (Fault::UnhealthyIsNotFound, "an_unhealthy_replica_is_kept"),
    (
        Fault::UnknownSectorIsAnyError,
        "only_what_is_known_has_replicas",
    ),
    (Fault::AnyVersionIsTaken, "other_versions_are_refused"),
    (
        Fault::OlderVersionsCount,
        "replicas_of_older_versions_do_not_count",
    ),
    (
        Fault::OlderVersionsAreCurrent,
        "replicas_of_older_versions_do_not_count",
    ),
    (
        Fault::RangesAreCut,
        "ranges_of_replicas_lie_within_the_blob",
    ),
    (Fault::HolesAreMissing, "holes_have_no_replicas"),
    (Fault::HolesAreHeld, "holes_have_no_replicas"),
    (Fault::NothingIsNotAdded, "a_blob_of_no_bytes_has_replicas"),
    (Fault::LastReasonCounts, "an_unhealthy_replica_is_kept"),
    (Fault::MarksAreNotCounted, "an_unhealthy_replica_is_kept"),
    (Fault::NoRepairIsQueued, "an_unhealthy_replica_is_kept"),
    (
        Fault::MarkOfNothingIsNone,
        "damage_is_of_what_a_replica_has",
    ),
    (Fault::DamageIsNotHeld, "damage_is_of_what_a_replica_has"),
    (Fault::VerifyDoesNothing, "health_comes_back_by_a_verify"),
    (Fault::VerifyAdds, "health_comes_back_by_a_verify"),
    (Fault::AddDoesNotMend, "health_comes_back_by_a_rewrite"),
    (Fault::AddMendsAll, "health_comes_back_by_nothing_else"),
    (Fault::QuestionsMend, "health_comes_back_by_nothing_else"),
    (Fault::UnhealthyCountsAsHealthy, "status_counts_replicas"),
    (Fault::LostIsMissing, "status_tells_missing_and_lost_bytes"),
    (Fault::NothingIsLost, "status_tells_missing_and_lost_bytes"),
    (
        Fault::LastMissingByteIsForgotten,
        "status_agrees_with_counting_bytes",
    ),
    (
        Fault::PagesAreBackwards,
        "keys_in_a_sector_are_listed_in_order",
    ),
    (
        Fault::PagesAreOfAllSectors,
        "keys_in_a_sector_are_listed_in_order",
    ),
    (
        Fault::UnhealthyIsNotListed,
        "keys_in_a_sector_are_listed_in_order",
    ),
    (
        Fault::PagesOverlap,
        "a_key_that_stays_in_a_sector_appears_once",
    ),
    (
        Fault::PagesLeaveGaps,
        "a_key_that_stays_in_a_sector_appears_once",
    ),
    (Fault::AbsentHasNone, "deleted_blobs_have_no_replicas"),
    (Fault::ReopenForgets, "replicas_outlive_a_reopen"),
    (
        Fault::OtherThreadsAreLost,
        "what_many_threads_add_and_mark_adds_up",
    ),
];

fn fresh() -> MemoryStore {
    MemoryStore::with_options(MemoryOptions {
        sectors: 4,
        replicas: 2,
        ..MemoryOptions::default()
    })
}

/// An index with a fault.
struct Broken {
    fault: Fault,
    store: MemoryStore,
    index: Arc<dyn ReplicaIndex>,
    /// Where it was made.
    thread: ThreadId,
}

impl Broken {
    fn info(&self, key: &BinaryKey) -> Option<BlobInfo> {
        self.store.stat(key).wait().ok()
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    /// The version and the ranges that are taken for those that were named.
    fn taken(&self, key: &BinaryKey, generation: u64, ranges: &RangeSet) -> (u64, RangeSet) {
        let Some(info) = self.info(key) else {
            return (generation, ranges.clone());
        };
        let cut = ranges.intersection(&Span::first(info.size).into());
        match self.fault {
            Fault::AnyVersionIsTaken => (info.version, ranges.clone()),
            Fault::RangesAreCut => (generation, cut),
            _ => (generation, ranges.clone()),
        }
    }

    fn in_sector(&self, key: &BinaryKey, sector: u16) -> Option<Replica> {
        let found = self.index.find_replicas(key).wait().ok()?;
        let mut current = found.into_iter().filter(|replica| replica.is_current);
        current.find(|replica| replica.sector == sector)
    }

    /// What is told of a replica.
    fn told(&self, key: &BinaryKey, replica: &mut Replica) {
        if self.is(Fault::OlderVersionsAreCurrent) {
            replica.is_current = true;
        }
        if let (Fault::HolesAreHeld, Some(info)) = (self.fault, self.info(key)) {
            replica.ranges = replica.ranges.union(&info.missing);
        }
        if let Health::Unhealthy(trouble) = &mut replica.health {
            if self.is(Fault::MarksAreNotCounted) {
                trouble.count = 1;
            }
            if self.is(Fault::DamageIsNotHeld) {
                trouble.damaged.insert(Span::first(1));
            }
        }
    }

    /// Makes all that a blob has good.
    fn mend(&self, key: &BinaryKey) {
        let Some(info) = self.info(key) else { return };
        let all = Span::first(info.size).into();
        for sector in 0..4 {
            drop(self.index.mark_verified(key, sector, info.version, &all));
        }
    }

    fn outcome<T>(&self, op: ReplicaOp<T>) -> Result<T, ReplicaError> {
        op.wait().map_err(|error| match error {
            ReplicaError::UnknownSector { .. } if self.is(Fault::UnknownSectorIsAnyError) => {
                StorageError::invalid("a sector").into()
            }
            error => error,
        })
    }
}

impl ReplicaIndex for Broken {
    fn add_replica(
        &self,
        key: &BinaryKey,
        sector: u16,
        generation: u64,
        ranges: &RangeSet,
    ) -> ReplicaOp<Replica> {
        let (generation, taken) = self.taken(key, generation, ranges);
        let before = self.in_sector(key, sector);
        let is_skipped = match self.fault {
            Fault::NothingIsNotAdded => taken.is_empty(),
            Fault::OtherThreadsAreLost => std::thread::current().id() != self.thread,
            Fault::AddDoesNotMend => before.is_some(),
            _ => false,
        };
        if is_skipped {
            let nothing = Replica {
                sector,
                generation,
                is_current: true,
                ranges: taken,
                health: Health::Healthy,
            };
            return Op::ready(Ok(before.unwrap_or(nothing)));
        }
        let added = self.index.add_replica(key, sector, generation, &taken);
        let added = self.outcome(added).map(|mut replica| {
            if self.is(Fault::AddMendsAll) {
                self.mend(key);
            }
            if self.is(Fault::AddTellsWhatWasAsked) {
                replica.ranges = taken;
            }
            self.told(key, &mut replica);
            replica
        });
        Op::ready(added)
    }

    fn find_replicas(&self, key: &BinaryKey) -> ReplicaOp<Vec<Replica>> {
        let mut found = self.outcome(self.index.find_replicas(key));
        if let Ok(found) = &mut found {
            found.iter_mut().for_each(|replica| self.told(key, replica));
        }
        Op::ready(match (self.fault, found) {
            (Fault::FoundBackwards, Ok(found)) => Ok(found.into_iter().rev().collect()),
            (Fault::UnhealthyIsNotFound, Ok(found)) => {
                let healthy = found.into_iter();
                Ok(healthy.filter(|one| one.health.is_healthy()).collect())
            }
            (Fault::AbsentHasNone, Err(ReplicaError::NotFound { .. })) => Ok(Vec::new()),
            (_, found) => found,
        })
    }

    fn keys_in_sector(&self, sector: u16, request: ListRequest) -> ReplicaOp<ListPage> {
        if self.is(Fault::PagesAreOfAllSectors) {
            let all = self.store.list(request).wait();
            return Op::ready(all.map_err(Into::into));
        }
        let listed = self.index.keys_in_sector(sector, request);
        let listed = self.outcome(listed).map(|mut page| {
            let last = page.blobs.last().map(|entry| entry.key.as_bytes().to_vec());
            match (self.fault, &mut page.next, last) {
                (Fault::PagesOverlap, Some(next), Some(last)) => *next = ListToken::resume_at(last),
                (Fault::PagesLeaveGaps, Some(next), Some(mut last)) => {
                    // So that what begins with the same digits is left out.
                    last.truncate(2);
                    last.push(0xff);
                    *next = ListToken::resume_at(last);
                }
                (Fault::PagesAreBackwards, ..) => page.blobs.reverse(),
                (Fault::UnhealthyIsNotListed, ..) => page.blobs.retain(|entry| {
                    let replica = self.in_sector(&entry.key, sector);
                    replica.is_none_or(|replica| replica.health.is_healthy())
                }),
                _ => {}
            }
            page
        });
        Op::ready(listed)
    }

    fn mark_unhealthy(
        &self,
        key: &BinaryKey,
        sector: u16,
        generation: u64,
        reason: &str,
        ranges: &RangeSet,
    ) -> ReplicaOp<Replica> {
        let (generation, taken) = self.taken(key, generation, ranges);
        if let (Fault::MarkOfNothingIsNone, true, Some(replica)) =
            (self.fault, taken.is_empty(), self.in_sector(key, sector))
        {
            return Op::ready(Ok(replica));
        }
        let index = &self.index;
        let marked = index.mark_unhealthy(key, sector, generation, reason, &taken);
        let marked = self.outcome(marked).map(|mut replica| {
            self.told(key, &mut replica);
            if let (Fault::LastReasonCounts, Health::Unhealthy(trouble)) =
                (self.fault, &mut replica.health)
            {
                reason.clone_into(&mut trouble.reason);
            }
            replica
        });
        Op::ready(marked)
    }

    fn mark_verified(
        &self,
        key: &BinaryKey,
        sector: u16,
        generation: u64,
        ranges: &RangeSet,
    ) -> ReplicaOp<Replica> {
        let (generation, taken) = self.taken(key, generation, ranges);
        let replica = self.in_sector(key, sector);
        let verified = match (self.fault, replica) {
            (Fault::VerifyDoesNothing, Some(replica)) => return Op::ready(Ok(replica)),
            (Fault::VerifyAdds, Some(_)) => self.index.add_replica(key, sector, generation, &taken),
            _ => self.index.mark_verified(key, sector, generation, &taken),
        };
        let verified = self.outcome(verified).map(|mut replica| {
            self.told(key, &mut replica);
            replica
        });
        Op::ready(verified)
    }

    fn status(&self, key: &BinaryKey) -> ReplicaOp<ReplicaStatus> {
        let status = self.outcome(self.index.status(key));
        let (Ok(mut status), Some(info)) = (status.clone(), self.info(key)) else {
            return Op::ready(status);
        };
        match self.fault {
            Fault::OlderVersionsCount => {
                let found = self.index.find_replicas(key).wait();
                status.actual = found.map_or(0, |found| found.len());
            }
            Fault::HolesAreMissing => {
                status.missing_ranges = status.missing_ranges.union(&info.missing);
            }
            Fault::UnhealthyCountsAsHealthy => status.healthy = status.actual,
            Fault::NoRepairIsQueued => status.is_repair_queued = false,
            Fault::LostIsMissing => status.lost_ranges = status.missing_ranges.clone(),
            Fault::NothingIsLost => status.lost_ranges = RangeSet::new(),
            Fault::LastMissingByteIsForgotten => {
                let end = status.missing_ranges.end();
                let last = Span::new(end.saturating_sub(1), end);
                last.into_iter()
                    .for_each(|last| status.missing_ranges.remove(last));
            }
            Fault::QuestionsMend => self.mend(key),
            _ => {}
        }
        Op::ready(Ok(status))
    }
}

struct BrokenSubject(Fault);

impl Subject<Replicated> for BrokenSubject {
    fn fresh(&mut self) -> Arc<Replicated> {
        let store = fresh();
        let index = Broken {
            fault: self.0,
            store: store.clone(),
            index: store.replicas(),
            thread: std::thread::current().id(),
        };
        Arc::new(Replicated {
            store: Arc::new(store),
            index: Arc::new(index),
        })
    }

    fn reopen(&mut self, store: Arc<Replicated>) -> Arc<Replicated> {
        match self.0 {
            Fault::ReopenForgets => self.fresh(),
            _ => store,
        }
    }
}

#[test]
fn each_clause_notices_what_it_is_for() {
    for &(fault, name) in NOTICED {
        let clause = replica_clause(name);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            clause.run(&mut BrokenSubject(fault));
        }));
        assert!(outcome.is_err(), "{name} does not notice {fault:?}");
    }
    let clauses = replica_index_contract();
    let noticing: BTreeSet<&str> = NOTICED.iter().map(|(_, name)| *name).collect();
    for clause in &clauses {
        let name = clause.name;
        assert!(noticing.contains(name), "nothing breaks {name}");
    }
    let statements: BTreeSet<_> = clauses.iter().map(|clause| clause.statement).collect();
    assert_eq!(
        (noticing.len(), statements.len()),
        (clauses.len(), clauses.len())
    );
}

/// The versions of which replicas were made.
type Placed = Arc<Mutex<BTreeMap<BinaryKey, u64>>>;

/// An index over sectors: the store makes two replicas of each version at once, any replica is made
/// whole, those of older versions are gone with the change, and trouble is forgotten at the end.
struct Placing {
    store: MemoryStore,
    index: Arc<dyn ReplicaIndex>,
    placed: Placed,
}

impl Placing {
    fn place(&self, key: &BinaryKey) {
        let Ok(info) = self.store.stat(key).wait() else {
            return;
        };
        let mut placed = self.placed.lock();
        if placed.insert(key.clone(), info.version) == Some(info.version) {
            return;
        }
        let first = u16::from(key.as_bytes()[0]);
        for sector in [first % 4, (first + 1) % 4] {
            let whole = Span::first(info.size).into();
            drop(self.index.add_replica(key, sector, info.version, &whole));
        }
    }
}

impl ReplicaIndex for Placing {
    fn add_replica(
        &self,
        key: &BinaryKey,
        sector: u16,
        generation: u64,
        ranges: &RangeSet,
    ) -> ReplicaOp<Replica> {
        self.place(key);
        let added = self.index.add_replica(key, sector, generation, ranges);
        let Ok(added) = added.wait() else {
            return self.index.add_replica(key, sector, generation, ranges);
        };
        let info = self.store.stat(key).wait();
        let size = info.map_or(0, |info| info.size);
        let lacking = added.ranges.complement(Span::first(size));
        self.index.add_replica(key, sector, generation, &lacking)
    }

    fn find_replicas(&self, key: &BinaryKey) -> ReplicaOp<Vec<Replica>> {
        self.place(key);
        let found = self.index.find_replicas(key).wait();
        let is_current = |replica: &Replica| replica.is_current;
        Op::ready(found.map(|found| found.into_iter().filter(is_current).collect()))
    }

    fn keys_in_sector(&self, sector: u16, request: ListRequest) -> ReplicaOp<ListPage> {
        let everything = ListRequest {
            max: ListRequest::MAX,
            ..ListRequest::default()
        };
        let blobs = self.store.list(everything).wait().map(|page| page.blobs);
        let blobs = blobs.unwrap_or_default();
        blobs.iter().for_each(|entry| self.place(&entry.key));
        self.index.keys_in_sector(sector, request)
    }

    fn mark_unhealthy(
        &self,
        key: &BinaryKey,
        sector: u16,
        generation: u64,
        reason: &str,
        ranges: &RangeSet,
    ) -> ReplicaOp<Replica> {
        self.place(key);
        self.index
            .mark_unhealthy(key, sector, generation, reason, ranges)
    }

    fn mark_verified(
        &self,
        key: &BinaryKey,
        sector: u16,
        generation: u64,
        ranges: &RangeSet,
    ) -> ReplicaOp<Replica> {
        self.place(key);
        self.index.mark_verified(key, sector, generation, ranges)
    }

    fn status(&self, key: &BinaryKey) -> ReplicaOp<ReplicaStatus> {
        self.place(key);
        self.index.status(key)
    }
}

#[derive(Default)]
struct PlacingSubject {
    /// What is open.
    open: Option<(MemoryStore, Placed)>,
}

impl PlacingSubject {
    fn open(&self) -> Arc<Replicated> {
        let (store, placed) = self.open.clone().expect("it was made");
        let index = Placing {
            store: store.clone(),
            index: store.replicas(),
            placed,
        };
        Arc::new(Replicated {
            store: Arc::new(store),
            index: Arc::new(index),
        })
    }
}

impl Subject<Replicated> for PlacingSubject {
    fn fresh(&mut self) -> Arc<Replicated> {
        self.open = Some((fresh(), Arc::default()));
        self.open()
    }

    fn reopen(&mut self, store: Arc<Replicated>) -> Arc<Replicated> {
        assert_eq!(Arc::strong_count(&store), 1, "the last handle");
        drop(store);
        let (store, _) = self.open.as_ref().expect("it was made");
        let blobs = store.list(ListRequest::default()).wait().expect("it lists");
        for entry in blobs.blobs {
            let whole = Span::first(entry.size).into();
            for sector in 0..4 {
                let replicas = store.replicas();
                drop(replicas.mark_verified(&entry.key, sector, entry.version, &whole));
            }
        }
        self.open()
    }

    fn has_partial_replicas(&self) -> bool {
        false
    }
}

#[test]
fn an_index_over_sectors_can_keep_the_contract() {
    run_all_replica(&mut PlacingSubject::default());
}

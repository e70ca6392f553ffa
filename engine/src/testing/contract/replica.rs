use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc;
use std::thread;

use bytes::Bytes;

use super::list::{check_pages, set as names};
use crate::io::sim::Random;
use crate::port::{
    Attributes, AttributesUpdate, Batch, BatchItem, ErrorKind, GetOptions, Health, ListPage,
    ListRequest, Precondition, PutOptions, PutRangeOptions, RangeSet, Replica, ReplicaError,
    ReplicaOp, ReplicaStatus, Span, StorageError, Trouble, UpdateOptions,
};
use crate::testing::support::{Short, assert_fails, key, payload};
use crate::testing::{Replicated, Subject};

type ReplicaSubject<'a> = &'a mut dyn Subject<Replicated>;

/// What makes a new version of a blob.
type Change<'a> = (&'a str, &'a dyn Fn());

/// The sectors that there are at least.
const SECTORS: [u16; 4] = [0, 1, 2, 3];
/// How many replicas there are to be.
const TARGET: usize = 2;
/// The size of the blobs of most clauses.
const SIZE: usize = 100;

fn set(text: &str) -> RangeSet {
    text.parse().expect("the kit writes sets that are some")
}

fn all_of(size: usize) -> RangeSet {
    Span::first(size as u64).into()
}

/// Short forms of the calls.
impl Replicated {
    /// A blob, and its version.
    #[track_caller]
    fn save(&self, name: &str) -> u64 {
        self.store.save(name, payload(1, SIZE)).version
    }

    #[track_caller]
    fn version(&self, name: &str) -> u64 {
        self.store.info(name).version
    }

    fn add(&self, name: &str, sector: u16, generation: u64, ranges: &str) -> ReplicaOp<Replica> {
        let index = &self.index;
        index.add_replica(&key(name), sector, generation, &set(ranges))
    }

    /// Marks a replica of the current version.
    #[track_caller]
    fn mark(&self, name: &str, sector: u16, reason: &str, ranges: &str) -> Replica {
        let (generation, ranges) = (self.version(name), set(ranges));
        let index = &self.index;
        let marked = index.mark_unhealthy(&key(name), sector, generation, reason, &ranges);
        marked.wait().expect("it is there to be marked")
    }

    /// Says that a replica of the current version was verified.
    #[track_caller]
    fn verify(&self, name: &str, sector: u16, ranges: &str) -> Replica {
        let (generation, ranges) = (self.version(name), set(ranges));
        let index = &self.index;
        let verified = index.mark_verified(&key(name), sector, generation, &ranges);
        verified.wait().expect("it is there to be verified")
    }

    /// All replicas, in order, with what holds of any.
    #[track_caller]
    fn found(&self, name: &str) -> Vec<Replica> {
        let found = self.index.find_replicas(&key(name)).wait();
        let found = found.expect("the blob is there");
        assert!(
            found.is_sorted_by(|one, next| one.sector < next.sector),
            "{name}: not in the order of the sectors: {found:?}"
        );
        let info = self.store.info(name);
        let written = info.missing.complement(Span::first(info.size));
        for replica in &found {
            let is_current = replica.generation == info.version;
            assert_eq!(replica.is_current, is_current, "{name}: {replica:?}");
            if is_current {
                assert!(written.is_superset(&replica.ranges), "{name}: {replica:?}");
            }
            if let Health::Unhealthy(trouble) = &replica.health {
                let is_held = replica.ranges.is_superset(&trouble.damaged);
                assert!(is_held, "{name}: {replica:?}");
                assert!(trouble.count > 0, "{name}: {replica:?}");
                assert!(replica.ranges.is_empty() || !trouble.damaged.is_empty());
            }
        }
        found
    }

    /// The replicas of the current version.
    #[track_caller]
    fn current(&self, name: &str) -> Vec<Replica> {
        let found = self.found(name).into_iter();
        found.filter(|replica| replica.is_current).collect()
    }

    #[track_caller]
    fn in_sector(&self, name: &str, sector: u16) -> Replica {
        let mut found = self.found(name).into_iter();
        let replica = found.find(|replica| replica.sector == sector);
        replica.unwrap_or_else(|| panic!("{name}: nothing in sector {sector}"))
    }

    #[track_caller]
    fn status(&self, name: &str) -> ReplicaStatus {
        let status = self.index.status(&key(name)).wait();
        let status = status.expect("the blob is there");
        assert_eq!(status.generation, self.version(name), "{name}");
        assert_eq!(status.target, TARGET, "{name}: two replicas are wanted");
        assert_eq!(status.actual, self.current(name).len(), "{name}");
        status
    }

    /// Sectors that have nothing of a blob.
    #[track_caller]
    fn free(&self, name: &str) -> Vec<u16> {
        let found = self.found(name);
        let is_free = |sector: &u16| found.iter().all(|replica| replica.sector != *sector);
        SECTORS.into_iter().filter(is_free).collect()
    }

    /// Makes whole replicas until there are `count`, and tells where they are.
    #[track_caller]
    fn replicate(&self, name: &str, count: usize) -> Vec<u16> {
        let info = self.store.info(name);
        for sector in SECTORS {
            let current = self.current(name);
            if current.len() >= count {
                break;
            }
            if current.iter().all(|replica| replica.sector != sector) {
                self.add(name, sector, info.version, &format!("0..{}", info.size))
                    .wait()
                    .expect("it is added");
            }
        }
        let current = self.current(name);
        assert_eq!(current.len(), count, "{name}: {current:?}");
        let written = info.missing.complement(Span::first(info.size));
        for replica in &current {
            assert_eq!(replica.ranges, written, "{name}: {replica:?}");
            assert_eq!(replica.health, Health::Healthy, "{name}: {replica:?}");
        }
        current.into_iter().map(|replica| replica.sector).collect()
    }

    /// Makes one whole replica more, and tells where it is.
    #[track_caller]
    fn replicate_beside(&self, name: &str) -> u16 {
        let (sector, info) = (self.free(name)[0], self.store.info(name));
        let added = self.add(name, sector, info.version, &format!("0..{}", info.size));
        added.wait().expect("it is added");
        sector
    }

    #[track_caller]
    fn page(&self, sector: u16, request: ListRequest) -> ListPage {
        let page = self.index.keys_in_sector(sector, request).wait();
        page.expect("there is such a sector")
    }

    #[track_caller]
    fn is_listed(&self, name: &str, sector: u16) -> bool {
        let page = self.page(sector, ListRequest::prefix(name));
        page.blobs.iter().any(|entry| entry.key == key(name))
    }

    /// What each call that changes a replica says of this one.
    fn changes(
        &self,
        name: &str,
        sector: u16,
        generation: u64,
        ranges: &RangeSet,
    ) -> [(&'static str, Result<Replica, ReplicaError>); 3] {
        let (index, name) = (&self.index, &key(name));
        let mark = index.mark_unhealthy(name, sector, generation, "trouble", ranges);
        [
            (
                "add_replica",
                index.add_replica(name, sector, generation, ranges).wait(),
            ),
            ("mark_unhealthy", mark.wait()),
            (
                "mark_verified",
                index.mark_verified(name, sector, generation, ranges).wait(),
            ),
        ]
    }
}

#[track_caller]
fn trouble(replica: &Replica) -> &Trouble {
    match &replica.health {
        Health::Unhealthy(trouble) => trouble,
        Health::Healthy => panic!("it is healthy: {replica:?}"),
    }
}

#[track_caller]
fn damaged(replica: &Replica) -> String {
    trouble(replica).damaged.to_string()
}

pub(super) fn adding_a_replica_is_a_union(subject: ReplicaSubject<'_>) {
    let is_exact = subject.has_partial_replicas();
    let field = subject.fresh();
    let version = field.save("k");
    let [sector, other, ..] = field.free("k")[..] else {
        panic!("there are four sectors, and two replicas at the most");
    };
    for (ranges, so_far) in [
        ("10..20", "10..20"),
        ("30..40,5..12", "5..20,30..40"),
        ("6..7,30..40", "5..20,30..40"),
        ("", "5..20,30..40"),
        ("20..30", "5..40"),
        ("99..100,0..1", "0..1,5..40,99..100"),
        ("0..100", "0..100"),
        ("0..100", "0..100"),
    ] {
        let added = field.add("k", sector, version, ranges).wait();
        let added = added.expect("it is added");
        let expected = Replica {
            sector,
            generation: version,
            is_current: true,
            ranges: if is_exact { set(so_far) } else { all_of(SIZE) },
            health: Health::Healthy,
        };
        assert_eq!(added, expected, "what is there once {ranges} are added");
        assert_eq!(field.in_sector("k", sector), expected);
        assert!(field.free("k").contains(&other), "what was not asked for");
    }
    let apart = field.add("k", other, version, "50..60").wait();
    let apart = apart.expect("it is added").ranges;
    assert!(!is_exact || apart == set("50..60"), "{apart}");
    assert_eq!(field.in_sector("k", sector).ranges, all_of(SIZE));
}

pub(super) fn replicas_are_found_by_sector(subject: ReplicaSubject<'_>) {
    let field = subject.fresh();
    assert_fails!(field.index.find_replicas(&key("k")).wait(), ReplicaError::NotFound { key } if key.as_bytes() == b"k");
    assert_fails!(field.index.status(&key("k")).wait(), ReplicaError::NotFound { key } if key.as_bytes() == b"k");
    let version = field.save("k");
    field.store.save("other", payload(2, 50));
    let before = field.found("other");
    for sector in [3, 0, 2, 1] {
        let added = field.add("k", sector, version, "0..100").wait();
        assert_eq!(added.expect("it is added").sector, sector);
    }
    let found = field.found("k");
    let sectors: Vec<u16> = found.iter().map(|replica| replica.sector).collect();
    assert_eq!(sectors, SECTORS);
    for replica in found {
        assert_eq!(replica.generation, version);
        assert_eq!(replica.ranges, all_of(SIZE));
        assert_eq!(replica.good(), all_of(SIZE));
        assert!(replica.health.is_healthy());
    }
    assert_eq!(field.found("other"), before);
}

pub(super) fn only_what_is_known_has_replicas(subject: ReplicaSubject<'_>) {
    let field = subject.fresh();
    let version = field.save("k");
    field.replicate("k", TARGET);
    let before = field.found("k");
    let ranges = set("0..10");
    for unknown in [9999, u16::MAX] {
        let check = |call: &str, error: ReplicaError| match &error {
            ReplicaError::UnknownSector { sector, sectors } => {
                assert_eq!(*sector, unknown, "{call}");
                assert!(sectors.is_sorted_by(|one, next| one < next), "{error}");
                let is_there = |sector| sectors.contains(&sector);
                assert!(SECTORS.into_iter().all(is_there), "{error}");
                assert!(!is_there(unknown), "{error}");
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
                assert!(!error.is_retryable());
                assert!(error.to_string().contains(&unknown.to_string()));
            }
            error => panic!("{call}: {error:?}"),
        };
        for (call, outcome) in field.changes("k", unknown, version, &ranges) {
            check(call, outcome.expect_err("there is no such sector"));
        }
        let listed = field.index.keys_in_sector(unknown, ListRequest::default());
        let listed = listed.wait().expect_err("there is no such sector");
        check("keys_in_sector", listed);
    }
    for (call, outcome) in field.changes("absent", 0, version, &ranges) {
        let error = outcome.expect_err("there is no such blob");
        assert!(
            matches!(&error, ReplicaError::NotFound { key } if key.as_bytes() == b"absent"),
            "{call}: {error:?}"
        );
        assert_eq!(
            (error.kind(), error.is_retryable()),
            (ErrorKind::NotFound, false)
        );
    }
    let (index, name, free) = (&field.index, &key("k"), field.free("k")[0]);
    for outcome in [
        index.mark_unhealthy(name, free, version, "trouble", &ranges),
        index.mark_verified(name, free, version, &ranges),
    ] {
        let error = outcome.wait().expect_err("there is no replica");
        assert!(
            matches!(&error, ReplicaError::NoReplica { key, sector } if key == name && *sector == free),
            "{error:?}"
        );
        assert_eq!(
            (error.kind(), error.is_retryable()),
            (ErrorKind::NotFound, false)
        );
    }
    assert_eq!(field.found("k"), before);
}

pub(super) fn other_versions_are_refused(subject: ReplicaSubject<'_>) {
    let field = subject.fresh();
    let old = field.save("k");
    field.replicate("k", TARGET);
    let current = field.save("k");
    field.replicate("k", TARGET);
    let before = field.found("k");
    for sector in SECTORS {
        for generation in [0, 1, old, current - 1] {
            for (call, outcome) in field.changes("k", sector, generation, &set("0..10")) {
                let error = outcome.expect_err("it is not the current version");
                assert!(
                    matches!(&error, ReplicaError::Stale { key, generation: of, current: now }
                        if key.as_bytes() == b"k" && (*of, *now) == (generation, current)),
                    "{call}: {error:?}"
                );
                assert_eq!(
                    (error.kind(), error.is_retryable()),
                    (ErrorKind::Conflict, false)
                );
            }
        }
        for generation in [current + 1, u64::MAX] {
            for (call, outcome) in field.changes("k", sector, generation, &set("0..10")) {
                assert!(
                    matches!(
                        outcome,
                        Err(ReplicaError::Storage(StorageError::InvalidArgument { .. }))
                    ),
                    "{call}: {outcome:?}"
                );
            }
        }
    }
    assert_eq!(field.found("k"), before);
}

pub(super) fn replicas_of_older_versions_do_not_count(subject: ReplicaSubject<'_>) {
    let field = subject.fresh();
    let store = &field.store;
    let put = || {
        store.save("k", payload(2, SIZE));
    };
    let range = || {
        let bytes = Bytes::from(vec![7; 10]);
        let range = Span::first(10);
        let put = store.put_range(&key("k"), range, bytes, PutRangeOptions::default());
        put.wait().expect("it lies within the blob");
    };
    let update = || {
        let manifests = store.manifests();
        let colour = Attributes::from([("colour".to_owned(), "blue".into())]);
        let update = AttributesUpdate::merge(colour);
        let updated = manifests.update_attributes(&key("k"), update, UpdateOptions::default());
        updated.wait().expect("it is there");
    };
    let copy = || {
        store.save("source", payload(3, SIZE));
        store.duplicate("source", "k");
    };
    let rename = || {
        store.save("source", payload(4, SIZE));
        store.move_to("source", "k");
    };
    let changes: [Change<'_>; 5] = [
        ("put", &put),
        ("put_range", &range),
        ("update_attributes", &update),
        ("copy", &copy),
        ("rename", &rename),
    ];
    field.save("k");
    for (what, change) in changes {
        let sectors = field.replicate("k", 3);
        field.mark("k", sectors[0], "trouble", "0..10");
        change();
        let version = field.version("k");
        let (current, status) = (field.current("k"), field.status("k"));
        for sector in SECTORS {
            let is_there = current.iter().any(|replica| replica.sector == sector);
            assert_eq!(field.is_listed("k", sector), is_there, "{what}");
        }
        // Made by the store itself, if there are any.
        assert!(current.iter().all(|one| one.health.is_healthy()), "{what}");
        assert_eq!(status.healthy, current.len(), "{what}");
        let lost = if current.is_empty() { SIZE } else { 0 };
        assert_eq!(status.lost_ranges, all_of(lost), "{what}");
        let missing = if current.len() < TARGET { SIZE } else { 0 };
        assert_eq!(status.missing_ranges, all_of(missing), "{what}");
        let old = field.found("k").into_iter();
        let old: Vec<Replica> = old.filter(|one| !one.is_current).collect();
        assert!(old.iter().all(|one| one.good().is_empty()), "{what}");
        for sector in sectors {
            let added = field.add("k", sector, version, "0..100").wait();
            let added = added.expect("it is the current version");
            assert_eq!((added.generation, added.is_current), (version, true));
            assert_eq!(
                (added.ranges, added.health),
                (all_of(SIZE), Health::Healthy)
            );
            assert!(field.is_listed("k", sector), "{what}");
        }
        assert!(field.status("k").lost_ranges.is_empty(), "{what}");
        field.store.remove("k");
        field.save("k");
    }
}

pub(super) fn ranges_of_replicas_lie_within_the_blob(subject: ReplicaSubject<'_>) {
    let field = subject.fresh();
    let version = field.save("k");
    let sectors = field.replicate("k", TARGET);
    let before = field.found("k");
    for (ranges, wrong) in [
        ("0..101", 0..101),
        ("100..101", 100..101),
        ("5..7,50..60,99..200,300..400", 99..200),
        ("18446744073709551614..", u64::MAX - 1..u64::MAX),
        ("0..", 0..u64::MAX),
    ] {
        for &sector in sectors.iter().chain(&field.free("k")) {
            for (call, outcome) in field.changes("k", sector, version, &set(ranges)) {
                let error = outcome.expect_err("it ends past the end");
                assert!(
                    matches!(&error, ReplicaError::Storage(StorageError::InvalidRange { key, range, size: 100 })
                        if key.as_bytes() == b"k" && *range == wrong),
                    "{call} of {ranges}: {error:?}"
                );
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
            }
        }
    }
    assert_eq!(field.found("k"), before);
}

pub(super) fn holes_have_no_replicas(subject: ReplicaSubject<'_>) {
    const SPARSE: u64 = 1_000_000;
    let is_exact = subject.has_partial_replicas();
    let field = subject.fresh();
    for name in ["k", "hole"] {
        let created = field
            .store
            .create_sparse(&key(name), SPARSE, PutOptions::default());
        created.wait().expect("it is created");
    }
    for (start, length) in [(100, 100), (5000, 1000)] {
        let range = Span::at(start, length).expect("it is small");
        let bytes = Bytes::from(vec![1; usize::try_from(length).expect("it is small")]);
        let put = field
            .store
            .put_range(&key("k"), range, bytes, PutRangeOptions::default());
        put.wait().expect("it lies within the blob");
    }
    let written = set("100..200,5000..6000");
    let status = field.status("k");
    if status.actual == 0 {
        assert_eq!(status.lost_ranges, written);
        assert_eq!(status.missing_ranges, written);
    }
    if is_exact {
        let version = field.version("k");
        let sector = field.free("k")[0];
        let added = field.add("k", sector, version, "0..150,5500..7000").wait();
        assert_eq!(
            added.expect("it is added").ranges,
            set("100..150,5500..6000")
        );
        let added = field.add("k", sector, version, "0..6000").wait();
        assert_eq!(added.expect("it is added").ranges, written);
    }
    let sectors = field.replicate("k", 3);
    let status = field.status("k");
    assert_eq!((status.actual, status.healthy), (3, 3));
    assert!(status.missing_ranges.is_empty() && status.lost_ranges.is_empty());
    for &sector in &sectors {
        let marked = field.mark("k", sector, "trouble", "150..5010");
        assert_eq!(damaged(&marked), "150..200,5000..5010");
    }
    let status = field.status("k");
    assert_eq!((status.actual, status.healthy), (3, 0));
    assert_eq!(status.lost_ranges, set("150..200,5000..5010"));
    assert_eq!(status.missing_ranges, status.lost_ranges);
    assert!(field.verify("k", sectors[0], "0..6000").health.is_healthy());
    // All hole: there is nothing to lose.
    field.replicate("hole", TARGET);
    let status = field.status("hole");
    assert_eq!((status.actual, status.healthy), (TARGET, TARGET));
    assert!(status.missing_ranges.is_empty() && status.lost_ranges.is_empty());
    assert!(!status.is_repair_queued);
}

pub(super) fn a_blob_of_no_bytes_has_replicas(subject: ReplicaSubject<'_>) {
    let field = subject.fresh();
    let version = field.store.save("k", "").version;
    let status = field.status("k");
    assert_eq!(status.healthy, status.actual);
    assert_eq!(status.is_repair_queued, status.actual < TARGET);
    let sectors = field.replicate("k", TARGET);
    let none = RangeSet::new();
    let check = |healthy: usize| {
        let status = field.status("k");
        assert_eq!((status.actual, status.healthy), (TARGET, healthy));
        assert_eq!(
            (status.missing_ranges, status.lost_ranges),
            (none.clone(), none.clone())
        );
        assert_eq!(status.is_repair_queued, healthy < TARGET);
    };
    check(2);
    assert_fails!(
        field.add("k", sectors[0], version, "0..1").wait(),
        ReplicaError::Storage(StorageError::InvalidRange { size: 0, .. })
    );
    for is_verify in [true, false] {
        let marked = field.mark("k", sectors[0], "its record does not verify", "");
        let trouble = trouble(&marked);
        assert_eq!((trouble.count, &trouble.damaged), (1, &none));
        check(1);
        assert!(field.is_listed("k", sectors[0]));
        let better = if is_verify {
            field.verify("k", sectors[0], "")
        } else {
            let added = field.add("k", sectors[0], version, "").wait();
            added.expect("it is added")
        };
        assert_eq!(
            (better.ranges, better.health),
            (none.clone(), Health::Healthy)
        );
        check(2);
    }
}

pub(super) fn an_unhealthy_replica_is_kept(subject: ReplicaSubject<'_>) {
    let field = subject.fresh();
    let version = field.save("k");
    let sectors = field.replicate("k", 3);
    let sector = sectors[1];
    let marked = field.mark("k", sector, "it does not verify", "10..20");
    assert_eq!((marked.sector, marked.generation), (sector, version));
    assert_eq!((&marked.ranges, marked.is_current), (&all_of(SIZE), true));
    assert_eq!(marked.good(), set("0..10,20..100"));
    let first = trouble(&marked).clone();
    assert_eq!(
        (first.reason.as_str(), first.count),
        ("it does not verify", 1)
    );
    assert_eq!(first.damaged, set("10..20"));
    assert_eq!(field.in_sector("k", sector), marked);
    field.store.let_the_clock_tick(first.since);
    for (number, ranges, damaged) in [
        (2, "15..30,90..100", "10..30,90..100"),
        (3, "12..13", "10..30,90..100"),
        (4, "30..31", "10..31,90..100"),
    ] {
        let marked = field.mark("k", sector, "it can't be read", ranges);
        let expected = Trouble {
            count: number,
            damaged: set(damaged),
            ..first.clone()
        };
        assert_eq!(*trouble(&marked), expected);
        assert_eq!(marked.ranges, all_of(SIZE));
        assert_eq!(field.in_sector("k", sector), marked);
    }
    for replica in field.found("k") {
        assert_eq!(replica.health.is_healthy(), replica.sector != sector);
        assert!(field.is_listed("k", replica.sector));
    }
    let status = field.status("k");
    assert_eq!((status.actual, status.healthy), (3, 2));
    assert!(status.is_repair_queued, "though there are enough others");
    // Of a blob that is in fewer sectors than there are replicas to be.
    for sector in sectors {
        field.mark("k", sector, "", "");
    }
    let status = field.status("k");
    assert_eq!((status.actual, status.healthy), (3, 0));
    assert_eq!(status.lost_ranges, all_of(SIZE));
}

pub(super) fn damage_is_of_what_a_replica_has(subject: ReplicaSubject<'_>) {
    let is_exact = subject.has_partial_replicas();
    let field = subject.fresh();
    let version = field.save("k");
    let sector = field.replicate("k", TARGET)[0];
    assert_eq!(damaged(&field.mark("k", sector, "trouble", "")), "0..100");
    assert!(field.in_sector("k", sector).good().is_empty());
    if !is_exact {
        return;
    }
    let sector = field.free("k")[0];
    field
        .add("k", sector, version, "10..20,30..40")
        .wait()
        .expect("it is added");
    for (ranges, expected) in [
        ("15..35", "15..20,30..35"),
        ("0..10", "10..20,30..40"),
        ("20..30,50..100", "10..20,30..40"),
        ("", "10..20,30..40"),
    ] {
        let marked = field.mark("k", sector, "trouble", ranges);
        assert_eq!(damaged(&marked), expected, "of {ranges}");
        let verified = field.verify("k", sector, "10..20,30..40");
        assert_eq!(verified.health, Health::Healthy);
    }
    // What is added is good, and what it has besides is not.
    field.mark("k", sector, "trouble", "");
    let added = field.add("k", sector, version, "35..50").wait();
    let added = added.expect("it is added");
    assert_eq!(damaged(&added), "10..20,30..35");
    assert_eq!(added.good(), set("35..50"));
}

pub(super) fn health_comes_back_by_a_verify(subject: ReplicaSubject<'_>) {
    let is_exact = subject.has_partial_replicas();
    let field = subject.fresh();
    let version = field.save("k");
    let sectors = field.replicate("k", TARGET);
    let sector = sectors[0];
    let healthy = field.in_sector("k", sector);
    assert_eq!(
        field.verify("k", sector, "0..100"),
        healthy,
        "it was healthy"
    );
    let marked = field.mark("k", sector, "first", "10..30,50..60");
    let first = trouble(&marked).clone();
    for (ranges, left) in [
        ("", "10..30,50..60"),
        ("0..10,30..50", "10..30,50..60"),
        ("0..20", "20..30,50..60"),
        ("50..100", "20..30"),
    ] {
        let verified = field.verify("k", sector, ranges);
        let damaged = set(left);
        let expected = Trouble {
            damaged,
            ..first.clone()
        };
        assert_eq!(*trouble(&verified), expected, "{ranges} verified");
        assert_eq!(field.in_sector("k", sector), verified);
        assert_eq!(field.status("k").healthy, TARGET - 1);
        assert_eq!(field.status("k").missing_ranges, set(left));
    }
    assert_eq!(field.verify("k", sector, "20..30"), healthy);
    assert_eq!(field.in_sector("k", sector), healthy);
    let status = field.status("k");
    assert_eq!((status.healthy, status.is_repair_queued), (TARGET, false));
    assert!(status.missing_ranges.is_empty());
    // What was met before is forgotten.
    let marked = field.mark("k", sector, "second", "1..2");
    let again = trouble(&marked);
    assert_eq!((again.reason.as_str(), again.count), ("second", 1));
    assert_eq!(again.damaged, set("1..2"));
    if is_exact {
        let sector = field.free("k")[0];
        field
            .add("k", sector, version, "10..20")
            .wait()
            .expect("it is added");
        assert_eq!(field.verify("k", sector, "0..100").ranges, set("10..20"));
        assert_eq!(field.in_sector("k", sector).ranges, set("10..20"));
    }
}

pub(super) fn health_comes_back_by_a_rewrite(subject: ReplicaSubject<'_>) {
    let is_exact = subject.has_partial_replicas();
    let field = subject.fresh();
    let version = field.save("k");
    let sector = field.replicate("k", TARGET)[1];
    field.mark("k", sector, "trouble", "10..30,50..60");
    if is_exact {
        let added = field.add("k", sector, version, "0..20,55..100").wait();
        assert_eq!(damaged(&added.expect("it is added")), "20..30,50..55");
        let marked = field.mark("k", sector, "again", "10..11");
        assert_eq!(trouble(&marked).count, 2);
    }
    let added = field.add("k", sector, version, "10..60").wait();
    let added = added.expect("it is added");
    assert_eq!(
        (&added.ranges, &added.health),
        (&all_of(SIZE), &Health::Healthy)
    );
    assert_eq!(field.in_sector("k", sector), added);
    let status = field.status("k");
    assert_eq!((status.healthy, status.is_repair_queued), (TARGET, false));
    let marked = field.mark("k", sector, "later", "1..2");
    assert_eq!(
        (trouble(&marked).reason.as_str(), trouble(&marked).count),
        ("later", 1)
    );
}

pub(super) fn health_comes_back_by_nothing_else(subject: ReplicaSubject<'_>) {
    let is_exact = subject.has_partial_replicas();
    let field = subject.fresh();
    let version = field.save("k");
    let [sector, other] = field.replicate("k", TARGET)[..] else {
        panic!("there are two");
    };
    let after_blob = field.save("k2");
    field.replicate("k2", 4);
    let marked = field.mark("k", sector, "trouble", "10..20");
    let check = |what: &str| assert_eq!(field.in_sector("k", sector), marked, "{what}");
    field.status("k");
    field.is_listed("k", sector);
    check("questions");
    let read = field.store.get(&key("k"), GetOptions::default()).wait();
    assert_eq!(
        read.expect("there is another replica").bytes,
        payload(1, SIZE)
    );
    check("a read");
    field.verify("k", sector, "0..10,20..100");
    check("a verify of other bytes");
    if is_exact {
        let added = field.add("k", sector, version, "0..10,20..100").wait();
        added.expect("it is added");
        check("other bytes");
    }
    field.verify("k", other, "0..100");
    let added = field.add("k", other, version, "0..100").wait();
    added.expect("it is added");
    let free = field.free("k")[0];
    let added = field.add("k", free, version, "0..100").wait();
    added.expect("it is added");
    check("other sectors");
    let added = field.add("k2", sector, after_blob, "0..100").wait();
    added.expect("it is added");
    field.verify("k2", sector, "0..100");
    check("another blob");
    field.mark("k", other, "trouble", "50..60");
    check("trouble in another sector");
    let refused = field.add("k", sector, version, "10..20,99..101").wait();
    assert_fails!(
        refused,
        ReplicaError::Storage(StorageError::InvalidRange { .. })
    );
    check("a call that is refused");
}

pub(super) fn status_counts_replicas(subject: ReplicaSubject<'_>) {
    let is_exact = subject.has_partial_replicas();
    let field = subject.fresh();
    let version = field.save("k");
    let at_first = field.status("k").actual;
    assert!(at_first <= TARGET, "{at_first} replicas of a new blob");
    for count in at_first..=SECTORS.len() {
        let sectors = field.replicate("k", count);
        let lost = if count == 0 { SIZE } else { 0 };
        let missing = if count < TARGET { SIZE } else { 0 };
        let expected = ReplicaStatus {
            generation: version,
            target: TARGET,
            actual: count,
            healthy: count,
            missing_ranges: all_of(missing),
            lost_ranges: all_of(lost),
            is_repair_queued: count < TARGET,
        };
        assert_eq!(field.status("k"), expected);
        let Some(&sector) = sectors.first() else {
            continue;
        };
        field.mark("k", sector, "trouble", "10..20");
        let less = |copies: usize| set(if count - 1 < copies { "10..20" } else { "" });
        let unhealthy = ReplicaStatus {
            healthy: count - 1,
            missing_ranges: all_of(missing).union(&less(TARGET)),
            lost_ranges: less(1),
            is_repair_queued: true,
            ..expected.clone()
        };
        assert_eq!(field.status("k"), unhealthy);
        field.verify("k", sector, "10..20");
        assert_eq!(field.status("k"), expected);
    }
    if is_exact {
        let version = field.save("parts");
        let [one, two, ..] = field.free("parts")[..] else {
            panic!("there are four sectors, and two replicas at the most");
        };
        let before = field.status("parts");
        for (sector, ranges) in [(one, "0..99"), (two, "")] {
            let added = field.add("parts", sector, version, ranges).wait();
            added.expect("it is added");
        }
        let after = field.status("parts");
        assert_eq!(after.actual, before.actual + 2);
        assert_eq!(after.healthy, before.healthy, "they are not whole");
    }
}

pub(super) fn status_tells_missing_and_lost_bytes(subject: ReplicaSubject<'_>) {
    let is_exact = subject.has_partial_replicas();
    let field = subject.fresh();
    let version = field.save("k");
    let [one, two] = field.replicate("k", TARGET)[..] else {
        panic!("there are two");
    };
    let check = |missing: &str, lost: &str| {
        let status = field.status("k");
        assert_eq!(status.missing_ranges, set(missing), "{status:?}");
        assert_eq!(status.lost_ranges, set(lost), "{status:?}");
    };
    check("", "");
    field.mark("k", one, "trouble", "10..30,90..100");
    check("10..30,90..100", "");
    field.mark("k", two, "trouble", "20..40,99..100,0..1");
    check("0..1,10..40,90..100", "20..30,99..100");
    let three = field.replicate_beside("k");
    check("20..30,99..100", "");
    field.mark("k", three, "trouble", "25..26,50..60");
    check("20..30,99..100", "25..26");
    field.verify("k", one, "25..30");
    check("20..25,99..100,25..26", "");
    field.verify("k", one, "0..100");
    field.verify("k", two, "0..100");
    check("", "");
    if !is_exact {
        return;
    }
    let version_of_parts = field.save("parts");
    let field = &field;
    let current = field.current("parts");
    // What is there at first is made useless.
    for replica in &current {
        field.mark("parts", replica.sector, "trouble", "");
    }
    let free = field.free("parts");
    for (sector, ranges, missing, lost) in [
        (free[0], "10..50", "0..100", "0..10,50..100"),
        (free[1], "40..70", "0..40,50..100", "0..10,70..100"),
        (free[0], "50..60,0..1", "0..40,60..100", "1..10,70..100"),
        (free[1], "0..100", "1..10,60..100", ""),
        (free[0], "1..10,60..100", "", ""),
    ] {
        let added = field.add("parts", sector, version_of_parts, ranges).wait();
        added.expect("it is added");
        let status = field.status("parts");
        assert_eq!(status.missing_ranges, set(missing), "{status:?}");
        assert_eq!(status.lost_ranges, set(lost), "{status:?}");
    }
    // Halves that make two copies of each byte are not two replicas.
    let halves = field.save("halves");
    let sectors = SECTORS.map(|sector| (sector, if sector % 2 == 0 { "0..50" } else { "50..100" }));
    for (sector, ranges) in sectors {
        let added = field.add("halves", sector, halves, ranges).wait();
        added.expect("it is added");
    }
    let status = field.status("halves");
    assert!(status.missing_ranges.is_empty() && status.lost_ranges.is_empty());
    let whole = field.current("halves").into_iter();
    let whole = whole.filter(|replica| replica.ranges == all_of(SIZE));
    assert_eq!(status.healthy, whole.count());
    assert_eq!(status.is_repair_queued, status.healthy < TARGET);
    assert_ne!(halves, version);
}

/// What the naive model knows of a replica, byte by byte.
#[derive(Debug, Clone, Default)]
struct Bytewise {
    held: Vec<bool>,
    /// How often it was marked since it was healthy.
    count: u32,
    damaged: Vec<bool>,
}

impl Bytewise {
    /// What was found, which is healthy.
    #[track_caller]
    fn of(replica: &Replica, size: usize) -> Self {
        assert_eq!(replica.health, Health::Healthy);
        Self {
            held: bytes(&replica.ranges, size),
            count: 0,
            damaged: vec![false; size],
        }
    }

    fn mark(&mut self, named: &[bool]) {
        let is_hit = |byte: &usize| named[*byte] && self.held[*byte];
        let mut hit: Vec<usize> = (0..named.len()).filter(is_hit).collect();
        if hit.is_empty() {
            hit = (0..named.len()).filter(|byte| self.held[*byte]).collect();
        }
        hit.into_iter().for_each(|byte| self.damaged[byte] = true);
        self.count += 1;
    }

    fn mend(&mut self, named: &[bool]) {
        for (damaged, named) in self.damaged.iter_mut().zip(named) {
            *damaged &= !named;
        }
        if !self.damaged.contains(&true) {
            self.count = 0;
        }
    }

    /// More of it was mended than had to be.
    #[track_caller]
    fn adopt(&mut self, replica: &Replica, what: &str) {
        let damaged = match &replica.health {
            Health::Healthy => vec![false; self.damaged.len()],
            Health::Unhealthy(trouble) => bytes(&trouble.damaged, self.damaged.len()),
        };
        let is_known = |(now, before): (&bool, &bool)| *before || !now;
        let is_less = damaged.iter().zip(&self.damaged).all(is_known);
        assert!(is_less, "after {what}");
        self.damaged = damaged;
        self.mend(&[]);
    }

    fn is_good(&self, byte: usize) -> bool {
        self.held[byte] && !self.damaged[byte]
    }
}

fn bytes(set: &RangeSet, size: usize) -> Vec<bool> {
    (0..size as u64).map(|byte| set.contains(byte)).collect()
}

/// Compares all answers about a blob with the model. `written`: which of its bytes were.
#[track_caller]
fn compare(
    field: &Replicated,
    name: &str,
    written: &[bool],
    model: &BTreeMap<u16, Bytewise>,
    what: &str,
) {
    let size = written.len();
    let found = field.current(name);
    let sectors: Vec<u16> = found.iter().map(|replica| replica.sector).collect();
    assert!(sectors.iter().eq(model.keys()), "{sectors:?} after {what}");
    for replica in &found {
        let known = &model[&replica.sector];
        assert_eq!(bytes(&replica.ranges, size), known.held, "after {what}");
        match &replica.health {
            Health::Healthy => assert_eq!(known.count, 0, "after {what}"),
            Health::Unhealthy(trouble) => {
                assert_eq!(trouble.count, known.count, "after {what}");
                assert_eq!(bytes(&trouble.damaged, size), known.damaged, "after {what}");
            }
        }
    }
    let status = field.status(name);
    let copies = |byte: usize| model.values().filter(|one| one.is_good(byte)).count();
    let lacking = |least: usize| -> Vec<bool> {
        let lacks = |byte: usize| written[byte] && copies(byte) < least;
        (0..size).map(lacks).collect()
    };
    let context = format!("after {what}: {status:?}, {model:?}");
    assert_eq!(
        bytes(&status.missing_ranges, size),
        lacking(TARGET),
        "{context}"
    );
    assert_eq!(bytes(&status.lost_ranges, size), lacking(1), "{context}");
    let end = status.missing_ranges.end().max(status.lost_ranges.end());
    assert!(end <= size as u64, "{context}");
    let is_whole = |one: &&Bytewise| one.count == 0 && one.held == written;
    let healthy = model.values().filter(is_whole).count();
    assert_eq!(
        (status.actual, status.healthy),
        (model.len(), healthy),
        "{context}"
    );
    let is_sick = model.values().any(|one| one.count > 0);
    assert_eq!(
        status.is_repair_queued,
        is_sick || healthy < TARGET,
        "{context}"
    );
}

pub(super) fn status_agrees_with_counting_bytes(subject: ReplicaSubject<'_>) {
    const STEPS: usize = 150;
    let is_exact = subject.has_partial_replicas();
    for seed in 0..4 {
        let field = subject.fresh();
        let mut random = Random::new(seed);
        let (mut version, mut written, mut model) = new_life(&field, &mut random);
        for step in 0..STEPS {
            let size = written.len();
            let sector = *random.pick(&SECTORS);
            let ranges = some_ranges(&mut random, size);
            let named = bytes(&ranges, size);
            let (index, name) = (&field.index, &key("k"));
            let kind = random.below(16);
            let what = format!("seed {seed}, step {step}, kind {kind}: {ranges} in {sector}");
            let is_there = model.contains_key(&sector);
            let done = match kind {
                0 => {
                    (version, written, model) = new_life(&field, &mut random);
                    continue;
                }
                1..=6 => {
                    let nothing = Bytewise {
                        held: vec![false; size],
                        count: 0,
                        damaged: vec![false; size],
                    };
                    let known = model.entry(sector).or_insert(nothing);
                    let is_whole = known.held == written;
                    let is_added = |byte: usize| written[byte] && (named[byte] || !is_exact);
                    let added: Vec<bool> = (0..size).map(is_added).collect();
                    known
                        .held
                        .iter_mut()
                        .zip(&added)
                        .for_each(|(held, added)| *held |= added);
                    // One that is whole may be looked through as a whole again, or where it was asked for.
                    let is_kept = !is_exact && is_whole;
                    known.mend(if is_kept { &named } else { &added });
                    let done = index.add_replica(name, sector, version, &ranges).wait();
                    if is_kept && let Ok(replica) = &done {
                        known.adopt(replica, &what);
                    }
                    done
                }
                7..=11 => {
                    let known = model.get_mut(&sector);
                    known.into_iter().for_each(|known| known.mark(&named));
                    let reason = what.as_str();
                    index
                        .mark_unhealthy(name, sector, version, reason, &ranges)
                        .wait()
                }
                _ => {
                    let known = model.get_mut(&sector);
                    known.into_iter().for_each(|known| known.mend(&named));
                    index.mark_verified(name, sector, version, &ranges).wait()
                }
            };
            match done {
                Ok(replica) => assert_eq!(replica, field.in_sector("k", sector), "{what}"),
                Err(ReplicaError::NoReplica { .. }) => assert!(!is_there && kind > 6, "{what}"),
                Err(error) => panic!("{what}: {error:?}"),
            }
            compare(&field, "k", &written, &model, &what);
        }
    }
}

/// A new version of a blob, with holes or without, which of its bytes were written, and the replicas
/// that it has at first.
fn new_life(field: &Replicated, random: &mut Random) -> (u64, Vec<bool>, BTreeMap<u16, Bytewise>) {
    let size = random.below(24);
    if random.one_in(2) {
        field.store.save("k", payload(random.number(), size));
    } else {
        let created = field
            .store
            .create_sparse(&key("k"), size as u64, PutOptions::default());
        created.wait().expect("it is created");
        for &range in &some_ranges(random, size) {
            let length = usize::try_from(range.len()).expect("it is small");
            let put = PutRangeOptions::default();
            let put = field
                .store
                .put_range(&key("k"), range, payload(1, length), put);
            put.wait().expect("it lies within the blob");
        }
    }
    let info = field.store.info("k");
    let written = info.missing.complement(Span::first(info.size));
    let current = field.current("k").into_iter();
    let known = current.map(|replica| (replica.sector, Bytewise::of(&replica, size)));
    (info.version, bytes(&written, size), known.collect())
}

fn some_ranges(random: &mut Random, size: usize) -> RangeSet {
    let mut ranges = RangeSet::new();
    for _ in 0..random.below(4) {
        let (one, other) = (random.below(size + 1), random.below(size + 1));
        let span = Span::new(one.min(other) as u64, one.max(other) as u64);
        ranges.insert(span.expect("it does not run backwards"));
    }
    ranges
}

pub(super) fn keys_in_a_sector_are_listed_in_order(subject: ReplicaSubject<'_>) {
    let field = subject.fresh();
    let all = names([
        b"b".as_slice(),
        b"a",
        b"a\0",
        b"a\xff",
        b"aa",
        b"B",
        b"\xff",
        b"\xff\xff",
        b"\xff\xffx",
        b"\0",
        b"10",
        b"9",
        b"a/b",
        b"a/b/c",
        b"a/c",
        b"a-b",
        b"../x",
        b"a//b",
    ]);
    let page = field.page(3, ListRequest::default());
    assert_eq!(
        (page.blobs, page.common_prefixes, page.next),
        (vec![], vec![], None)
    );
    for (number, name) in all.iter().enumerate() {
        let put = field.store.save(name, payload(number as u64, 10 + number));
        if number % 3 != 0 {
            let ranges = set(if number % 2 == 0 { "0..10" } else { "" });
            let added = field.index.add_replica(&key(name), 3, put.version, &ranges);
            added.wait().expect("it is added");
        }
        if number % 4 == 1 {
            let (index, ranges) = (&field.index, &RangeSet::new());
            let marked = index.mark_unhealthy(&key(name), 3, put.version, "trouble", ranges);
            // If it is there.
            drop(marked.wait());
        }
    }
    let is_there = |name: &&Vec<u8>| {
        let found = field.index.find_replicas(&key(name)).wait();
        let found = found.expect("the blob is there");
        found.iter().any(|replica| replica.sector == 3)
    };
    let there: BTreeSet<Vec<u8>> = all.iter().filter(is_there).cloned().collect();
    assert!(there.len() >= 12, "{there:?}");
    let list = |request| field.page(3, request);
    for max in [1, 2, 3, 1000, usize::MAX] {
        for prefix in [
            b"".as_slice(),
            b"a",
            b"a/",
            b"\xff",
            b"\xff\xff",
            b"c",
            &[b'a'; 2000],
        ] {
            for delimiter in [None, Some(b"/".to_vec())] {
                for start_after in [None, Some(b"a\0".to_vec()), Some(b"a/bb".to_vec())] {
                    let request = ListRequest {
                        max: max.min(ListRequest::MAX),
                        delimiter: delimiter.clone(),
                        start_after,
                        ..ListRequest::prefix(prefix)
                    };
                    check_pages(&list, &there, &request);
                }
            }
        }
    }
    for entry in field.page(3, ListRequest::default()).blobs {
        let info = field.store.info(&entry.key);
        assert_eq!((entry.size, entry.version), (info.size, info.version));
        assert_eq!((entry.etag, entry.modified), (info.etag, info.modified));
    }
    let empty = ListRequest {
        max: 0,
        ..ListRequest::default()
    };
    let page = field.page(3, empty);
    assert_eq!((page.blobs, page.next), (vec![], None));
    let refused = ListRequest {
        delimiter: Some(Vec::new()),
        ..ListRequest::default()
    };
    let refused = field.index.keys_in_sector(3, refused).wait();
    assert_fails!(
        refused,
        ReplicaError::Storage(StorageError::InvalidArgument { .. })
    );
}

pub(super) fn a_key_that_stays_in_a_sector_appears_once(subject: ReplicaSubject<'_>) {
    const COUNT: usize = 60;
    let field = subject.fresh();
    let steady: Vec<String> = (0..COUNT).map(|n| format!("{n:03}/steady")).collect();
    for name in &steady {
        let version = field.save(name);
        let added = field.add(name, 3, version, "0..100").wait();
        added.expect("it is added");
    }
    let changing = &*field;
    let change = |random: &mut Random| {
        let n = random.below(COUNT);
        let (passing, steady) = (format!("{n:03}/passing"), format!("{n:03}/steady"));
        match random.below(4) {
            0 => {
                let version = changing.save(&passing);
                // It may be gone again.
                drop(changing.add(&passing, 3, version, "0..10").wait());
            }
            1 => drop(changing.store.remove(&passing)),
            2 => drop(changing.mark(&steady, 3, "trouble", "0..10")),
            _ => drop(changing.verify(&steady, 3, "0..100")),
        }
    };
    let walk = |max: usize, between: &mut dyn FnMut()| {
        let mut seen = BTreeMap::<Vec<u8>, u32>::new();
        let mut last: Option<Vec<u8>> = None;
        let mut request = ListRequest {
            max,
            ..ListRequest::default()
        };
        loop {
            let page = field.page(3, request.clone());
            assert!(page.blobs.len() <= max);
            for entry in page.blobs {
                let name = entry.key.as_bytes().to_vec();
                assert!(last.as_ref().is_none_or(|last| *last < name), "ascending");
                last = Some(name.clone());
                *seen.entry(name).or_default() += 1;
            }
            if page.next.is_none() {
                break;
            }
            // Through its text form, as a caller would keep it.
            let text = page.next.map(|token| token.to_string());
            request.token = text.map(|text| text.parse().expect("a token's text form"));
            between();
        }
        for name in &steady {
            let times = seen.get(name.as_bytes()).copied().unwrap_or_default();
            assert_eq!(times, 1, "{name}, with {max} on a page");
        }
        assert!(seen.values().all(|times| *times == 1), "{seen:?}");
    };
    let mut random = Random::new(3);
    for max in [1, 2, 7, 1000] {
        walk(max, &mut || (0..5).for_each(|_| change(&mut random)));
    }
    thread::scope(|scope| {
        let (stop, stopped) = mpsc::channel::<()>();
        let (start, started) = mpsc::channel();
        let change = &change;
        scope.spawn(move || {
            let mut random = Random::new(7);
            while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                change(&mut random);
                let _ = start.send(());
            }
        });
        started.recv().expect("changes are made");
        for max in [1, 7, 1000] {
            walk(max, &mut || ());
        }
        drop(stop);
    });
}

pub(super) fn deleted_blobs_have_no_replicas(subject: ReplicaSubject<'_>) {
    let field = subject.fresh();
    let old = field.save("k");
    let sectors = field.replicate("k", 3);
    field.mark("k", sectors[0], "trouble", "10..20");
    let before = field.found("k");
    // All or nothing.
    let mut batch = Batch::new();
    batch.delete(key("k"));
    batch.put(key("k"), "short");
    let options = PutOptions {
        precondition: Precondition::IfVersion(u64::MAX),
        ..PutOptions::default()
    };
    batch.items.push(BatchItem::Put {
        key: key("k"),
        payload: "shorter".into(),
        options,
    });
    let failed = field.store.batch(batch).wait();
    assert_fails!(failed, StorageError::PreconditionFailed { .. });
    assert_eq!(field.found("k"), before);

    assert!(field.store.remove("k"));
    let find = field.index.find_replicas(&key("k")).wait();
    assert_fails!(find, ReplicaError::NotFound { key } if key.as_bytes() == b"k");
    let status = field.index.status(&key("k")).wait();
    assert_fails!(status, ReplicaError::NotFound { .. });
    for sector in SECTORS {
        assert!(!field.is_listed("k", sector));
        for (call, outcome) in field.changes("k", sector, old, &set("0..10")) {
            let is_absent = matches!(outcome, Err(ReplicaError::NotFound { .. }));
            assert!(is_absent, "{call}: {outcome:?}");
        }
    }
    let new = field.save("k");
    assert!(new > old);
    let current = field.current("k");
    assert!(current.iter().all(|replica| replica.health.is_healthy()));
    for sector in SECTORS {
        let is_there = current.iter().any(|replica| replica.sector == sector);
        assert_eq!(field.is_listed("k", sector), is_there);
        let late = field.add("k", sector, old, "0..10").wait();
        assert_fails!(late, ReplicaError::Stale { .. });
    }
    let status = field.status("k");
    assert_eq!(status.healthy, current.len());
    // A name that a blob moved away from.
    field.replicate("k", 3);
    field.store.move_to("k", "moved");
    let find = field.index.find_replicas(&key("k")).wait();
    assert_fails!(find, ReplicaError::NotFound { .. });
    let moved = field.found("moved");
    assert!(moved.iter().all(|replica| replica.is_current));
    assert!(moved.iter().all(|replica| replica.health.is_healthy()));
}

pub(super) fn replicas_outlive_a_reopen(subject: ReplicaSubject<'_>) {
    let mut field = subject.fresh();
    let version = field.save("k");
    let sectors = field.free("k");
    let added = field.add("k", sectors[0], version, "10..20,50..60").wait();
    added.expect("it is added");
    let added = field.add("k", sectors[1], version, "").wait();
    added.expect("it is added");
    field.store.save("empty", "");
    field.replicate("empty", 3);
    field.save("whole");
    field.replicate("whole", 4);
    field.save("gone");
    field.replicate("gone", 2);
    assert!(field.store.remove("gone"));
    let look = |field: &Replicated| {
        let names = ["empty", "k", "whole"];
        names.map(|name| (field.found(name), field.status(name)))
    };
    let before = look(&field);
    assert!(
        before[1]
            .0
            .iter()
            .any(|replica| replica.sector == sectors[1])
    );
    for _ in 0..2 {
        field = subject.reopen(field);
        assert_eq!(look(&field), before);
        assert!(field.is_listed("k", sectors[0]) && field.is_listed("whole", 3));
        let gone = field.index.find_replicas(&key("gone")).wait();
        assert_fails!(gone, ReplicaError::NotFound { .. });
    }
}

pub(super) fn what_many_threads_add_and_mark_adds_up(subject: ReplicaSubject<'_>) {
    const THREADS: usize = 4;
    const PIECES: usize = 25;
    const WHOLE: usize = THREADS * PIECES * 10;
    let field = subject.fresh();
    let version = field.store.save("k", payload(1, WHOLE)).version;
    let (sick, healing) = (
        field.replicate("k", TARGET)[0],
        field.replicate("k", TARGET)[1],
    );
    field.mark("k", healing, "trouble", "");
    let target = field.free("k")[0];
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let field = &field;
            scope.spawn(move || {
                for piece in 0..PIECES {
                    let start = (piece * THREADS + thread) * 10;
                    let range = format!("{start}..{}", start + 10);
                    let added = field.add("k", target, version, &range).wait();
                    let added = added.expect("it is added");
                    assert!(added.ranges.is_superset(&set(&range)), "{range}");
                    field.mark("k", sick, "trouble", &range);
                    field.verify("k", healing, &range);
                }
            });
        }
    });
    assert_eq!(field.in_sector("k", target).ranges, all_of(WHOLE));
    assert_eq!(field.in_sector("k", healing).health, Health::Healthy);
    let marked = field.in_sector("k", sick);
    assert_eq!(trouble(&marked).count as usize, THREADS * PIECES);
    assert_eq!(trouble(&marked).damaged, all_of(WHOLE));
}

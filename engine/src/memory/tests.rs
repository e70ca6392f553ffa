//! What the contract can't see from outside: the clock, the capacity. The contract itself, and
//! random histories against a second store of the same kind (which checks the checker).

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::port::{
    MutableObjectStore, PutRangeOptions, ReplicaError, TrackOptions, TrackerError, UploadOptions,
};
use crate::testing::{Replicated, Subject, check_against_model};

/// Stores with room for any clause, and a limit that is quickly reached.
struct InMemory;

const MAX_BLOB_SIZE: u64 = 8 << 20;

fn fresh() -> Arc<MemoryStore> {
    Arc::new(MemoryStore::with_options(MemoryOptions {
        max_blob_size: MAX_BLOB_SIZE,
        ..MemoryOptions::default()
    }))
}

impl Subject for InMemory {
    fn fresh(&mut self) -> Arc<dyn BlobStore> {
        fresh()
    }

    fn max_blob_size(&self) -> Option<u64> {
        Some(MAX_BLOB_SIZE)
    }
}

impl Subject<dyn MutableObjectStore> for InMemory {
    fn fresh(&mut self) -> Arc<dyn MutableObjectStore> {
        fresh()
    }

    fn max_blob_size(&self) -> Option<u64> {
        Some(MAX_BLOB_SIZE)
    }
}

impl Subject<Replicated> for InMemory {
    fn fresh(&mut self) -> Arc<Replicated> {
        let store = MemoryStore::with_options(MemoryOptions {
            max_blob_size: MAX_BLOB_SIZE,
            sectors: 4,
            replicas: 2,
            ..MemoryOptions::default()
        });
        Arc::new(Replicated {
            index: store.replicas(),
            store: Arc::new(store),
        })
    }
}

mod contract {
    crate::contract_tests!(super::InMemory);
}

mod mutable_contract {
    crate::mutable_contract_tests!(super::InMemory);
}

mod replica_contract {
    crate::replica_contract_tests!(super::InMemory);
}

#[test]
fn the_whole_contract_at_once() {
    crate::testing::run_all(&mut InMemory);
    crate::testing::run_all_mutable(&mut InMemory);
    crate::testing::run_all_replica(&mut InMemory);
}

#[test]
fn random_histories() {
    for seed in 0..40 {
        check_against_model(&mut InMemory, seed, 400);
    }
}

fn key(name: &str) -> BinaryKey {
    BinaryKey::new(name).expect("a good key")
}

#[test]
fn times_come_from_the_clock_in_whole_milliseconds() {
    let nanoseconds = Arc::new(AtomicU64::new(5_999_999));
    let clock = Arc::clone(&nanoseconds);
    let store = MemoryStore::with_options(MemoryOptions {
        clock: Arc::new(move || {
            SystemTime::UNIX_EPOCH + Duration::from_nanos(clock.load(Ordering::Relaxed))
        }),
        ..MemoryOptions::default()
    });
    let times = |name| {
        let info = store.stat(&key(name)).wait().expect("it was put");
        [info.created, info.modified].map(|time| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH);
            since.expect("after the epoch").as_nanos()
        })
    };
    let put = |name| store.put(&key(name), Bytes::new(), PutOptions::default());
    put("a").wait().expect("puts");
    assert_eq!(times("a"), [5_000_000, 5_000_000]);

    nanoseconds.store(7_000_000, Ordering::Relaxed);
    let copied = store.copy(&key("a"), &key("b"), CopyOptions::default());
    copied.wait().expect("copies");
    assert_eq!(times("b"), [5_000_000, 7_000_000]);
    let renamed = store.rename(&key("a"), &key("a"), CopyOptions::default());
    renamed.wait().expect("renames");
    assert_eq!(times("a"), [5_000_000, 7_000_000]);
    put("b").wait().expect("replaces");
    assert_eq!(times("b"), [7_000_000, 7_000_000]);
}

#[test]
fn a_full_store_refuses_what_does_not_fit_and_takes_what_does() {
    let store = MemoryStore::with_options(MemoryOptions {
        capacity: Some(10),
        ..MemoryOptions::default()
    });
    let put = |name, size| {
        let payload = Bytes::from(vec![0; size]);
        store.put(&key(name), payload, PutOptions::default()).wait()
    };
    put("a", 6).expect("fits");
    let refused = put("b", 5).expect_err("does not fit");
    assert!(matches!(
        refused,
        StorageError::NoSpace {
            needed: 5,
            available: 4
        }
    ));
    assert!(!store.exists(&key("b")).wait().expect("answers"));
    put("b", 4).expect("fits exactly");
    put("a", 6).expect("replaces as much as it takes");
    let copied = store.copy(&key("a"), &key("c"), CopyOptions::default());
    assert!(matches!(copied.wait(), Err(StorageError::NoSpace { .. })));
    let renamed = store.rename(&key("a"), &key("c"), CopyOptions::default());
    renamed.wait().expect("needs no more than it frees");

    let mut batch = Batch::new();
    batch.delete(key("b")).put(key("d"), "1234");
    store
        .batch(batch.clone())
        .wait()
        .expect("in order, it fits");
    batch.items.reverse();
    let refused = store.batch(batch).wait();
    assert!(refused.is_ok(), "d is replaced by itself");
    let mut batch = Batch::new();
    batch.delete(key("d")).put(key("e"), "12345");
    let refused = store.batch(batch).wait();
    assert!(matches!(refused, Err(StorageError::NoSpace { .. })));
    put("d", 4).expect("nothing of the failed batch is counted");
    let deleted = store.delete(&key("d"), DeleteOptions::default());
    assert!(deleted.wait().expect("deletes").existed);
    put("f", 4).expect("what was deleted is free");
}

#[test]
fn parts_count_and_holes_do_not() {
    let store = MemoryStore::with_options(MemoryOptions {
        capacity: Some(10),
        ..MemoryOptions::default()
    });
    let created = store.create_sparse(&key("a"), 1000, PutOptions::default());
    created.wait().expect("a hole takes no room");
    let put = |start, bytes: &'static str| {
        let span = Span::at(start, bytes.len() as u64).expect("it is small");
        let options = PutRangeOptions::default();
        store
            .put_range(&key("a"), span, bytes.into(), options)
            .wait()
    };
    put(0, "1234").expect("it fits");
    put(100, "1234").expect("it fits");
    assert!(matches!(
        put(200, "123"),
        Err(StorageError::NoSpace {
            needed: 11,
            available: 10
        })
    ));
    put(0, "123456").expect("it replaces four of its six");
    let upload = store.start_upload(&key("b"), UploadOptions::default());
    let upload = upload.wait().expect("it begins");
    let part = || {
        let options = PutOptions::default();
        store.upload_part(upload, 1, "1".into(), options).wait()
    };
    assert!(matches!(part(), Err(StorageError::NoSpace { .. })));
    let deleted = store.delete(&key("a"), DeleteOptions::default());
    assert!(deleted.wait().expect("it deletes").existed);
    part().expect("it fits");
    assert_eq!(store.shared.state.lock().used, 1);
    store.abort_upload(upload).wait().expect("it is aborted");
    assert_eq!(store.shared.state.lock().used, 0);
}

#[test]
fn uploads_are_swept_by_their_last_part() {
    let seconds = Arc::new(AtomicU64::new(100));
    let clock = Arc::clone(&seconds);
    let store = MemoryStore::with_options(MemoryOptions {
        clock: Arc::new(move || {
            SystemTime::UNIX_EPOCH + Duration::from_secs(clock.load(Ordering::Relaxed))
        }),
        ..MemoryOptions::default()
    });
    let start = || {
        let upload = store.start_upload(&key("k"), UploadOptions::default());
        upload.wait().expect("it begins")
    };
    let (old, used) = (start(), start());
    seconds.store(150, Ordering::Relaxed);
    let part = store.upload_part(used, 1, "part".into(), PutOptions::default());
    part.wait().expect("it is put");
    seconds.store(200, Ordering::Relaxed);
    let swept = store.sweep_uploads(Duration::from_secs(100)).wait();
    assert_eq!(swept.expect("it is swept").uploads, 1);
    let left = store
        .list_uploads(None, 10)
        .wait()
        .expect("they are listed");
    let left: Vec<_> = left.iter().map(|info| info.upload).collect();
    assert_eq!(left, [used]);
    assert!(store.abort_upload(old).wait().is_err());
    // A clock that is set back makes nothing old.
    seconds.store(0, Ordering::Relaxed);
    let swept = store.sweep_uploads(Duration::ZERO).wait();
    assert_eq!(swept.expect("it is swept").uploads, 0);
}

#[test]
fn a_tracker_has_a_limit_of_spans() {
    let store = MemoryStore::with_options(MemoryOptions {
        max_fragments: 2,
        ..MemoryOptions::default()
    });
    let tracker = store.ranges_elsewhere();
    let mark = |ranges: &str| {
        let ranges = ranges.parse().expect("a set");
        let options = TrackOptions::default();
        tracker.mark_complete(&key("k"), &ranges, options).wait()
    };
    mark("0..1,2..3").expect("two spans");
    let refused = mark("4..5");
    assert!(
        matches!(
            refused,
            Err(TrackerError::TooFragmented {
                fragments: 3,
                limit: 2,
                ..
            })
        ),
        "{refused:?}"
    );
    mark("1..2,4..5").expect("two spans");
}

#[test]
fn a_sector_that_is_gone_has_nothing_when_it_comes_again() {
    let store = MemoryStore::with_options(MemoryOptions {
        sectors: 2,
        replicas: 2,
        ..MemoryOptions::default()
    });
    let replicas = store.replicas();
    let name = key("k");
    let put = store.put(&name, "0123456789".into(), PutOptions::default());
    let version = put.wait().expect("puts").version;
    let whole = Span::first(10).into();
    for sector in [0, 1] {
        let added = replicas.add_replica(&name, sector, version, &whole);
        added.wait().expect("it is known");
    }
    let sectors = || store.stat(&name).wait().expect("it was put").sectors;
    assert_eq!(sectors(), [0, 1]);
    let before = store.snapshot();
    assert!(store.remove_sector(0) && !store.remove_sector(0));
    assert_eq!(sectors(), [1]);
    let status = replicas.status(&name).wait().expect("it was put");
    assert_eq!((status.actual, status.healthy), (1, 1));
    assert_eq!(status.missing_ranges, whole);
    assert!(status.lost_ranges.is_empty());
    let refused = replicas.add_replica(&name, 0, version, &whole).wait();
    assert!(
        matches!(&refused, Err(ReplicaError::UnknownSector { sector: 0, sectors }) if *sectors == [1]),
        "{refused:?}"
    );
    assert!(store.add_sector(0) && !store.add_sector(0));
    assert_eq!(sectors(), [1]);
    assert!(store.remove_sector(1));
    let status = replicas.status(&name).wait().expect("it was put");
    assert_eq!(status.lost_ranges, whole);
    store.restore(&before);
    assert_eq!(sectors(), [0, 1]);
}

#[test]
fn replicas_of_huge_blobs_cost_what_their_ranges_do() {
    let store = MemoryStore::with_options(MemoryOptions {
        max_blob_size: u64::MAX,
        sectors: 2,
        replicas: 2,
        ..MemoryOptions::default()
    });
    let replicas = store.replicas();
    let name = key("k");
    let end = u64::MAX;
    let created = store.create_sparse(&name, end, PutOptions::default());
    created.wait().expect("it is created");
    for start in [0, 1 << 40, end - 10] {
        let range = Span::at(start, 10).expect("it ends there");
        let put = store.put_range(&name, range, vec![1; 10].into(), PutRangeOptions::default());
        put.wait().expect("it lies within the blob");
    }
    let info = store.stat(&name).wait().expect("it was put");
    let added = replicas.add_replica(&name, 0, info.version, &Span::ALL.into());
    let added = added.wait().expect("it is known");
    assert_eq!(added.ranges, info.missing.complement(Span::ALL));
    let damage = Span::new(5, end - 5).expect("forwards").into();
    let marked = replicas.mark_unhealthy(&name, 0, info.version, "trouble", &damage);
    marked.wait().expect("it is there");
    let status = replicas.status(&name).wait().expect("it was put");
    assert_eq!(status.missing_ranges, added.ranges);
    assert_eq!(status.lost_ranges, added.ranges.intersection(&damage));
    assert_eq!(status.lost_ranges.len(), 20);
}

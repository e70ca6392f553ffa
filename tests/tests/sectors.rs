//! Several sectors: what is done to one key in different sectors keeps its order, and copies keep
//! their payload whatever becomes of their source elsewhere.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use bytes::Bytes;
use graviton_engine::io::sim::{Fault, FaultKind, Loss, Sim};
use graviton_engine::policy::RackAware;
use graviton_engine::port::{
    Batch, BinaryKey, BlobStore, CopyOptions, DeleteOptions, Durability, GetOptions, Labels,
    MutableObjectStore, PutOptions, PutRangeOptions, ReplicationPolicy, Span, StorageError,
};
use graviton_engine::store::{CreateOptions, MIB, OpenOptions, Store};
use graviton_tests::random::payload;
use graviton_tests::{buffered, check_figures, create_options, memory_directory};

fn key(name: &str) -> BinaryKey {
    BinaryKey::new(name).expect("a short key")
}

fn put(store: &Store, name: &str, size: usize) {
    let outcome = store.put(&key(name), payload(1, size), PutOptions::default());
    outcome.wait().expect("it is put");
}

fn sector_of(store: &Store, name: &str) -> u16 {
    store.stat(&key(name)).wait().expect("it is there").sectors[0]
}

/// A new version of `name` in the sector where `beside` lies.
fn put_beside(store: &Store, beside: &str, name: &str, blob: &'static [u8]) {
    let mut batch = Batch::new();
    batch.put(key(beside), payload(2, 100));
    batch.put(key(name), Bytes::from_static(blob));
    store.batch(batch).wait().expect("it is put");
}

fn put_range(store: &Store, name: &str, start: u64, bytes: &'static [u8]) {
    let range = Span::at(start, bytes.len() as u64).expect("it ends");
    let bytes = Bytes::from_static(bytes);
    let put = store.put_range(&key(name), range, bytes, PutRangeOptions::default());
    put.wait().expect("it is put");
}

/// The log of one sector has a blob and its copy; the other sector's checkpoint knows that the
/// blob was replaced. A replay sees the replacement first. If the blob is changed before it is
/// copied, its own sector's checkpoint has it as it was.
fn replayed_copy(rename: bool, size: usize, changed: bool) {
    let sim = Sim::new(512, 1);
    sim.record(false);
    let options = CreateOptions {
        sectors: 2,
        sector_size: 16 * MIB,
        open: OpenOptions {
            background: false,
            reader_patience: Duration::ZERO,
            checkpoint_interval: Some(MIB),
            ..OpenOptions::default()
        },
        ..CreateOptions::default()
    };
    let store = Store::create_on(sim.backend(), "/store", options.clone()).expect("it is made");
    put(&store, "first", 400_000);
    put(&store, "second", 300_000);
    put(&store, "source", size);
    let places = ["first", "second", "source"].map(|name| sector_of(&store, name));
    assert_eq!(places, [0, 1, 1], "blobs go where there is most room");
    let mut expected = payload(1, size).to_vec();
    if changed {
        store.checkpoint().expect("a checkpoint");
        put_range(&store, "source", 10, b"changed");
        expected[10..17].copy_from_slice(b"changed");
    }
    let (source, target) = (key("source"), key("target"));
    let outcome = if rename {
        store.rename(&source, &target, CopyOptions::default())
    } else {
        store.copy(&source, &target, CopyOptions::default())
    };
    outcome.wait().expect("it is copied");
    // The log of sector 0 grows until a checkpoint is due there, and there alone.
    while store.info().sectors[0].replay_bytes < MIB + 100_000 {
        put(&store, "first", 100_000);
    }
    put_beside(&store, "first", "source", b"newer");
    assert_eq!(sector_of(&store, "source"), 0);
    let other = store.info().sectors[1].checkpoint.clone();
    while store.info().sectors[0].replay_bytes > MIB {
        assert!(store.step().expect("it is tidied up"));
    }
    assert_eq!(store.info().sectors[1].checkpoint, other);
    store.close().expect("it closes");
    drop(store);
    let store = Store::open_on(sim.backend(), "/store", options.open).expect("it opens");
    let found = store.get(&target, GetOptions::default()).wait();
    assert_eq!(found.expect("it is there").bytes, expected);
    let newer = store.get(&source, GetOptions::default()).wait();
    assert_eq!(newer.expect("it is there").bytes, "newer");
    let report = store.verify(&mut |_| {}).expect("it is verified");
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
}

#[test]
fn a_replayed_copy_keeps_its_payload() {
    for (rename, changed) in [(false, false), (true, false), (false, true), (true, true)] {
        replayed_copy(rename, 1000, changed);
        replayed_copy(rename, 100_000, changed);
    }
}

/// A copy onto a blob fails in the sector of its source, but its frame comes about. Then the blob is
/// changed, in its own sector: that is what holds.
#[test]
fn a_change_outlives_a_copy_that_failed_before_it() {
    for size in [1000, 100_000] {
        let sim = Sim::new(512, 1);
        let (store, options) = simulated_sectors(&sim);
        let mut batch = Batch::new();
        batch.put(key("first"), payload(2, 100));
        batch.put(key("key"), payload(1, size));
        store.batch(batch).wait().expect("it is put");
        put_beside(&store, "second", "source", b"of the copy");
        let places = ["key", "source"].map(|name| sector_of(&store, name));
        assert_eq!(places, [0, 1]);
        // So that the copy is made durable by a sync.
        let written = PutOptions {
            durability: Durability::Written,
            ..PutOptions::default()
        };
        let put = store.put(&key("second"), payload(1, 100), written);
        put.wait().expect("it is put");
        sim.set_faults(&[Fault {
            kind: FaultKind::Sync,
            after: 0,
            times: 1,
            disk: Some(1),
        }]);
        let copied = store.copy(&key("source"), &key("key"), CopyOptions::default());
        let error = copied.wait().expect_err("the sync fails");
        assert!(matches!(error, StorageError::Io { .. }), "{error}");
        sim.set_faults(&[]);
        put_range(&store, "key", 10, b"changed");
        let image = sim.image();
        drop(store);
        let sim = Sim::boot(&image, 512, 1);
        let store = Store::open_on(sim.backend(), "/store", options.open).expect("it opens");
        let mut expected = payload(1, size).to_vec();
        expected[10..17].copy_from_slice(b"changed");
        let found = store.get(&key("key"), GetOptions::default()).wait();
        assert_eq!(found.expect("it is there").bytes, expected);
        let report = store.verify(&mut |_| {}).expect("it is verified");
        assert!(report.findings.is_empty(), "{:#?}", report.findings);
        check_figures(&store);
        assert_eq!(store.info().blobs, 4);
    }
}

/// A store of two sectors without a thread of its own: `first` lies in sector 0, `second` in 1.
fn simulated_sectors(sim: &Sim) -> (Store, CreateOptions) {
    let options = CreateOptions {
        sectors: 2,
        sector_size: 16 * MIB,
        open: OpenOptions {
            background: false,
            reader_patience: Duration::ZERO,
            checkpoint_interval: Some(MIB),
            ..OpenOptions::default()
        },
        ..CreateOptions::default()
    };
    let store = Store::create_on(sim.backend(), "/store", options.clone()).expect("it is made");
    put(&store, "first", 400_000);
    put(&store, "second", 300_000);
    (store, options)
}

/// A version that replaces one in another sector is durable before that sector forgets its own, though
/// it was only asked to be written: one of the two is there after a power loss.
#[test]
fn a_blob_that_is_replaced_in_another_sector_is_not_lost() {
    let sim = Sim::new(512, 1);
    let (store, options) = simulated_sectors(&sim);
    put_beside(&store, "second", "key", b"older");
    assert_eq!(sector_of(&store, "key"), 1);
    // Nothing is left to do in sector 0, which a sync would come with.
    while store.step().expect("it is tidied up") {}
    // The log of sector 1 grows until a checkpoint is due there, and there alone.
    while store.info().sectors[1].replay_bytes < MIB + 100_000 {
        put(&store, "second", 100_000);
    }
    let mut batch = Batch::new();
    batch.put(key("first"), payload(2, 100));
    batch.put(key("key"), Bytes::from_static(b"newer"));
    batch.durability = Durability::Written;
    store.batch(batch).wait().expect("it is written");
    assert_eq!(sector_of(&store, "key"), 0);
    let other = store.info().sectors[0].checkpoint.clone();
    while store.info().sectors[1].replay_bytes > MIB {
        assert!(store.step().expect("it is tidied up"));
    }
    assert_eq!(store.info().sectors[0].checkpoint, other);
    let mut crasher = sim.crasher();
    crasher.advance(crasher.events());
    let sim = Sim::boot(&crasher.image(Loss::All), 512, 1);
    let store = Store::open_on(sim.backend(), "/store", options.open).expect("it opens");
    let found = store.get(&key("key"), GetOptions::default()).wait();
    assert_eq!(found.expect("it is there").bytes, "newer");
}

/// A blob that was deleted for sure does not come back, though the delete found nothing: an older
/// one, in another sector, had hidden the blob, and a crash took it. A yet older tombstone in its
/// own sector is no help.
#[test]
fn a_delete_that_finds_nothing_outlives_the_one_before_it() {
    let sim = Sim::new(512, 1);
    let (store, options) = simulated_sectors(&sim);
    let delete = |durability| {
        let options = DeleteOptions {
            durability,
            ..DeleteOptions::default()
        };
        let outcome = store.delete(&key("key"), options).wait();
        outcome.expect("it is deleted").existed
    };
    put_beside(&store, "second", "key", b"older");
    assert_eq!(sector_of(&store, "key"), 1);
    assert!(delete(Durability::Durable));
    put_beside(&store, "first", "key", b"newer");
    assert_eq!(sector_of(&store, "key"), 0);
    put(&store, "first", 400_000);
    assert!(delete(Durability::Written));
    // Where nothing is, the sector with more room answers.
    let room = |number: usize| store.info().sectors[number].space.available;
    assert!(room(1) > room(0));
    assert!(!delete(Durability::Durable));
    let mut crasher = sim.crasher();
    crasher.advance(crasher.events());
    let sim = Sim::boot(&crasher.image(Loss::All), 512, 1);
    let store = Store::open_on(sim.backend(), "/store", options.open).expect("it opens");
    let found = store.get(&key("key"), GetOptions::default()).wait();
    assert!(
        matches!(found, Err(StorageError::NotFound { .. })),
        "{found:?}"
    );
}

/// A put failed in a sector that was given up, and may be there after a crash all the same. A delete
/// that came after it and found nothing still holds: a tombstone from before the put is no help.
#[test]
fn a_delete_that_finds_nothing_outlives_a_put_that_failed_before_it() {
    for seed in 0..8 {
        let sim = Sim::new(512, seed);
        let (store, options) = simulated_sectors(&sim);
        put_beside(&store, "first", "key", b"older");
        let delete = || {
            let outcome = store.delete(&key("key"), DeleteOptions::default()).wait();
            outcome.expect("it is deleted").existed
        };
        assert!(delete());
        sim.set_faults(&[Fault {
            kind: FaultKind::Sync,
            after: 0,
            times: 1,
            disk: Some(1),
        }]);
        let mut batch = Batch::new();
        batch.put(key("second"), payload(2, 100));
        batch.put(key("key"), Bytes::from_static(b"newer"));
        let failed = store.batch(batch).wait();
        assert!(failed.is_err(), "{failed:?}");
        assert!(!delete());
        let mut crasher = sim.crasher();
        crasher.advance(crasher.events());
        for loss in [Loss::Nothing, Loss::All] {
            let sim = Sim::boot(&crasher.image(loss), 512, seed);
            let store = Store::open_on(sim.backend(), "/store", options.open.clone());
            let found = store
                .expect("it opens")
                .get(&key("key"), GetOptions::default())
                .wait();
            assert!(
                matches!(found, Err(StorageError::NotFound { .. })),
                "{loss:?}: {found:?}"
            );
        }
    }
}

/// A delete that lies in another sector than the blob is kept by that sector's checkpoints for as
/// long as the blob's own sector could start from one that does not know of it.
#[test]
fn a_tombstone_stays_until_every_sector_knows_of_it() {
    let sim = Sim::new(512, 1);
    sim.record(false);
    let options = CreateOptions {
        sectors: 2,
        sector_size: 16 * MIB,
        open: OpenOptions {
            background: false,
            checkpoint_interval: Some(MIB),
            ..OpenOptions::default()
        },
        ..CreateOptions::default()
    };
    let mut store = Store::create_on(sim.backend(), "/store", options.clone()).expect("it is made");
    put(&store, "first", 400_000);
    put(&store, "second", 300_000);
    put(&store, "key", 1000);
    let places = ["first", "second", "key"].map(|name| sector_of(&store, name));
    assert_eq!(places, [0, 1, 1], "blobs go where there is most room");
    let mut batch = Batch::new();
    batch.put(key("first"), payload(2, 100));
    batch.delete(key("key"));
    store.batch(batch).wait().expect("it is deleted");
    let other = store.info().sectors[1].checkpoint.clone();
    for _ in 0..4 {
        // The log of sector 0 grows until a checkpoint is due there, and there alone.
        while store.info().sectors[0].replay_bytes < MIB + 100_000 {
            put(&store, "first", 100_000);
        }
        while store.info().sectors[0].replay_bytes > MIB {
            assert!(store.step().expect("it is tidied up"));
        }
        assert_eq!(store.info().sectors[1].checkpoint, other);
        let image = sim.image();
        let sim = Sim::boot(&image, 512, 2);
        let again = Store::open_on(sim.backend(), "/store", options.open.clone());
        let found = again.expect("it opens").exists(&key("key")).wait();
        assert!(!found.expect("it answers"), "a blob came back");
    }
    // Once both know, nothing is kept of it.
    for _ in 0..4 {
        store.checkpoint().expect("it is taken");
    }
    store.close().expect("it closes");
    store = Store::open_on(sim.backend(), "/store", options.open).expect("it opens");
    assert!(!store.exists(&key("key")).wait().expect("it answers"));
    let report = store.verify(&mut |_| {}).expect("it is verified");
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
}

fn two_sectors() -> (tempfile::TempDir, Store) {
    let directory = memory_directory();
    let options = create_options(&buffered(), 2, 64 * MIB);
    let store = Store::create(directory.path().join("store"), options).expect("it is made");
    for number in 0..20 {
        put(&store, &format!("other-{number}"), 20_000);
    }
    (directory, store)
}

/// One of the others that lies with `name`, and one that does not.
fn neighbours(store: &Store, name: &str) -> (String, String) {
    let place = sector_of(store, name);
    let (with, without): (Vec<_>, Vec<_>) = (0..20)
        .map(|number| format!("other-{number}"))
        .partition(|other| sector_of(store, other) == place);
    (with[0].clone(), without[0].clone())
}

#[test]
fn a_copy_races_the_delete_of_its_source_in_another_sector() {
    let (_directory, store) = two_sectors();
    for round in 0..400 {
        put(&store, "source", 1000);
        let (near, far) = neighbours(&store, "source");
        let barrier = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                barrier.wait();
                let copy = store.copy(&key("source"), &key("target"), CopyOptions::default());
                let large = store.put(&key(&near), payload(1, 16_000), PutOptions::default());
                match copy.wait() {
                    Ok(_) | Err(StorageError::NotFound { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
                large.wait().expect("it is put");
            });
            scope.spawn(|| {
                barrier.wait();
                for _ in 0..round % 7 {
                    std::hint::black_box(payload(3, 2000));
                }
                let mut batch = Batch::new();
                batch.durability = Durability::Written;
                batch.put(key(&far), payload(2, 100)).delete(key("source"));
                store.batch(batch).wait().expect("it is deleted");
            });
        });
        match store.get(&key("target"), GetOptions::default()).wait() {
            Ok(found) => assert_eq!(found.bytes, payload(1, 1000)),
            Err(StorageError::NotFound { .. }) => {}
            Err(error) => panic!("round {round}: {error}"),
        }
        let delete = store.delete(&key("target"), DeleteOptions::default());
        delete.wait().expect("it is deleted");
    }
}

/// A put that nobody waits for still comes before what is asked for later.
#[test]
fn a_dropped_put_is_not_late() {
    let (_directory, store) = two_sectors();
    put(&store, "key", 1000);
    let (near, far) = neighbours(&store, "key");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let large = store.put(&key(&near), payload(1, 16_000), PutOptions::default());
                large.wait().expect("it is put");
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..3000 {
                let old = Bytes::from_static(b"old");
                drop(store.put(&key("key"), old, PutOptions::default()));
                put_beside(&store, &far, "key", b"new");
                store.flush().wait().expect("it flushes");
                let found = store.get(&key("key"), GetOptions::default()).wait();
                assert_eq!(found.expect("it is there").bytes, "new", "round {round}");
                put_beside(&store, &near, "key", b"first");
            }
        }));
        stop.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Replicas go where the policy says, by labels that outlive the store.
#[test]
fn replicas_go_where_the_policy_says() {
    let sim = Sim::new(512, 1);
    sim.record(false);
    let policy: Arc<dyn ReplicationPolicy> = Arc::new(RackAware::default());
    let options = CreateOptions {
        sectors: 4,
        replicas: 2,
        sector_size: 8 * MIB,
        open: OpenOptions {
            background: false,
            replication: Some(policy),
            ..OpenOptions::default()
        },
        ..CreateOptions::default()
    };
    let store = Store::create_on(sim.backend(), "/store", options.clone()).expect("it is made");
    let racks = ["left", "left", "left", "right"];
    for (number, rack) in (0..).zip(racks) {
        let labels = Labels {
            rack: Some(rack.to_owned()),
            ..Labels::default()
        };
        store.relabel(number, labels).expect("it is written");
    }
    let no_such = store.relabel(4, Labels::default());
    assert!(matches!(no_such, Err(StorageError::InvalidArgument { .. })));
    store.close().expect("it closes");
    drop(store);
    let store = Store::open_on(sim.backend(), "/store", options.open).expect("it opens");
    let said = store.info().sectors.into_iter();
    let said: Vec<Option<String>> = said.map(|sector| sector.labels.rack).collect();
    assert_eq!(said, racks.map(|rack| Some(rack.to_owned())));
    for number in 0..20 {
        let name = format!("blob {number}");
        put(&store, &name, 10_000 + 20_000 * number);
        let sectors = store.stat(&key(&name)).wait().expect("it is there").sectors;
        assert_eq!(sectors.len(), 2, "{name}");
        assert_eq!(sectors[1], 3, "{name}: the only sector of its rack");
    }
}

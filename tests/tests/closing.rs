//! Closing a store in the middle of things, and what a store does when nothing goes on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use graviton_engine::io::sim::{Fault, FaultError, FaultKind, Loss, Sim};
use graviton_engine::port::{
    BinaryKey, BlobStore, DeleteOptions, Durability, ErrorKind, GetOptions, PutOptions,
    StorageError,
};
use graviton_engine::store::{CreateOptions, MIB, OpenOptions, RemoveOptions, Store};
use graviton_tests::random::payload;
use graviton_tests::{buffered, create_options, fail_next, memory_directory, put_options};

fn key(name: &str, number: u64) -> BinaryKey {
    BinaryKey::new(format!("{name}-{number}")).expect("a short key")
}

fn written() -> PutOptions {
    put_options(Durability::Written)
}

fn verify(store: &Store) {
    let report = store.verify(&mut |_| {}).expect("it is verified");
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
}

fn simulated_options(sectors: u16, replicas: u16) -> CreateOptions {
    CreateOptions {
        replicas,
        open: OpenOptions {
            background: false,
            ..OpenOptions::default()
        },
        ..create_options(&buffered(), sectors, 4 * MIB)
    }
}

fn simulated(sectors: u16, replicas: u16) -> (Sim, Store) {
    let sim = Sim::new(512, 1);
    let options = simulated_options(sectors, replicas);
    let store = Store::create_on(sim.backend(), "/store", options).expect("it is made");
    (sim, store)
}

/// Once `close` returns nothing of the store is at work any more: the next owner has it alone.
#[test]
fn maintenance_is_over_when_the_store_is_closed() {
    let directory = memory_directory();
    let path = directory.path().join("store");
    let mut options = create_options(&buffered(), 1, 128 * MIB);
    options.open.background = false;
    let store = Arc::new(Store::create(&path, options.clone()).expect("it is made"));
    for number in 0..700 {
        let put = store.put(&key("old", number), payload(number, 100_000), written());
        put.wait().expect("it is put");
    }
    for number in (0..700).step_by(2) {
        let delete = store.delete(&key("old", number), DeleteOptions::default());
        delete.wait().expect("it is deleted");
    }
    let begun = store.info().lsn;
    let compacting = std::thread::spawn({
        let store = Arc::clone(&store);
        move || store.compact()
    });
    while store.info().lsn == begun {
        std::thread::yield_now();
    }
    store.close().expect("it closes");
    let again = Store::open_with(&path, options.open.clone()).expect("it opens again");
    for number in 0..100 {
        let put = again.put(&key("new", number), payload(number, 100_000), written());
        put.wait().expect("it is put");
    }
    if let Err(error) = compacting.join().expect("no panic") {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    }
    again.close().expect("it closes");
    drop(again);
    let store = Store::open_with(&path, options.open).expect("it opens once more");
    for (name, numbers) in [("old", (1..700).step_by(2)), ("new", (0..100).step_by(1))] {
        for number in numbers {
            let found = store.get(&key(name, number), GetOptions::default()).wait();
            assert_eq!(found.expect("it is there").bytes, payload(number, 100_000));
        }
    }
    verify(&store);
}

/// Nor does what zeroes segments write once the store is closed.
#[test]
fn zeroing_is_over_when_the_store_is_closed() {
    let directory = memory_directory();
    let path = directory.path().join("store");
    let mut options = create_options(&buffered(), 1, 256 * MIB);
    options.segment_size = Some(8 * MIB);
    options.open.background = false;
    let store = Arc::new(Store::create(&path, options.clone()).expect("it is made"));
    let zeroed = |store: &Store| store.info().sectors[0].segments_zeroed;
    let before = zeroed(&store);
    let zeroing = std::thread::spawn({
        let store = Arc::clone(&store);
        move || store.zero_free_segments()
    });
    while zeroed(&store) < before + 2 && !zeroing.is_finished() {
        std::thread::yield_now();
    }
    let file = store.info().sectors[0].path.clone();
    let modified = || {
        let known = std::fs::metadata(&file).expect("it is there");
        known.modified().expect("there is a clock")
    };
    store.close().expect("it closes");
    let closed = modified();
    match zeroing.join().expect("no panic") {
        Ok(bytes) => assert!(bytes > 0),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
    }
    assert_eq!(modified(), closed, "something was written after the end");
    let store = Store::open_with(&path, options.open).expect("it opens again");
    assert!(store.zero_free_segments().is_ok());
    verify(&store);
}

/// A put that nobody waits for, and that itself waits for room, does not keep a store from closing.
#[test]
fn a_store_closes_while_a_dropped_put_waits_for_room() {
    close_while_a_put_waits(1);
}

/// Nor does what waits for that put, in another sector.
#[test]
fn a_store_closes_while_a_delete_waits_for_a_put_in_another_sector() {
    close_while_a_put_waits(2);
}

fn close_while_a_put_waits(sectors: u16) {
    let directory = memory_directory();
    let path = directory.path().join("store");
    let options = create_options(&buffered(), sectors, 8 * MIB);
    let mut store = Store::create(&path, options.clone()).expect("it is made");
    let mut count = 0;
    while store
        .put(&key("blob", count), payload(count, 20_000), written())
        .wait()
        .is_ok()
    {
        count += 1;
    }
    for number in (0..count).step_by(8) {
        let delete = store.delete(&key("blob", number), DeleteOptions::default());
        delete.wait().expect("it is deleted");
    }
    for round in 0..40 {
        let large = key("blob", round % count);
        drop(store.put(&large, payload(round, 500_000), written()));
        drop(store.put(&large, payload(round, 20_000), written()));
        drop(store.delete(&large, DeleteOptions::default()));
        if round % 4 > 0 {
            std::thread::sleep(Duration::from_micros(round * 970 % 4000));
        }
        store.close().expect("it closes");
        drop(store);
        store = Store::open_with(&path, options.open.clone()).expect("it opens");
    }
    verify(&store);
}

/// What was put and is not durable yet is durable after closing, or closing fails: where the sectors that fail are not
/// the only ones to have it, it does not.
#[test]
fn what_was_written_is_durable_after_closing_or_it_fails() {
    for (replicas, kind, before, failing) in [
        (1, FaultKind::Sync, false, 0..0),
        (1, FaultKind::Sync, false, 0..1),
        // A put fails; what came before it was not durable.
        (1, FaultKind::Write, true, 0..1),
        (2, FaultKind::Sync, false, 0..1),
        (2, FaultKind::Write, true, 0..1),
        (2, FaultKind::Sync, false, 0..2),
        (2, FaultKind::Write, true, 0..2),
    ] {
        let what = format!("{replicas} replicas, {kind:?} in {failing:?}");
        let (sim, store) = simulated(replicas, replicas);
        store.flush().wait().expect("nothing fails");
        let put = store.put(&key("blob", 1), payload(1, 1000), written());
        put.wait().expect("it is put");
        let faults = failing.clone().map(|disk| Fault {
            kind,
            after: 0,
            times: usize::MAX,
            disk: Some(disk),
        });
        sim.set_faults(&faults.collect::<Vec<_>>());
        if before {
            let put = store.put(&key("blob", 2), payload(2, 1000), PutOptions::default());
            assert_eq!(
                put.wait().is_err(),
                failing.len() == usize::from(replicas),
                "{what}"
            );
        }
        let closed = store.close();
        drop(store);
        if failing.len() == usize::from(replicas) {
            let Err(StorageError::SectorPoisoned { .. }) = closed else {
                panic!("{what}: {closed:?}");
            };
            continue;
        }
        closed.unwrap_or_else(|error| panic!("{what}: {error}"));
        // Everything is lost that may be.
        let mut crasher = sim.crasher();
        crasher.advance(crasher.events());
        let image = crasher.image(Loss::All);
        let sim = Sim::boot(&image, 512, 2);
        let store = Store::open_on(sim.backend(), "/store", simulated_options(1, 1).open);
        let store = store.expect("it opens");
        let found = store.get(&key("blob", 1), GetOptions::default()).wait();
        assert_eq!(found.expect(&what).bytes, payload(1, 1000));
    }
    // Nothing was lost with what failed, and somebody was told.
    let (sim, store) = simulated(1, 1);
    store.flush().wait().expect("nothing fails");
    fail_next(&sim, 0, FaultKind::Write);
    let put = store.put(&key("blob", 1), payload(1, 1000), written());
    assert!(put.wait().is_err());
    store.close().expect("there was nothing else");
}

/// When closing returns, whatever comes of it, nothing is under way any more, and nothing begins: the next owner has
/// the sectors alone. Here what closing waits for fails in one of them, and the other has much to do.
#[test]
fn nothing_is_under_way_when_closing_fails() {
    let mut failed = 0;
    for after in 0..8 {
        let (sim, store) = simulated(2, 1);
        let mut keys = [Vec::new(), Vec::new()];
        for number in 0..24 {
            let key = key("blob", number);
            let put = store.put(&key, "x".into(), PutOptions::default()).wait();
            put.expect("it is put");
            let found = store.stat(&key).wait().expect("it is there");
            keys[usize::from(found.sectors[0])].push(key);
        }
        let busy = keys[1].iter().cycle().take(400);
        let puts = busy.chain(&keys[0]).chain(&keys[0]);
        let puts = puts.map(|key| store.put(key, payload(after, 3000), written()));
        let puts: Vec<_> = puts.collect();
        let fault = Fault {
            kind: FaultKind::Allocate,
            after: usize::try_from(after).expect("it is small"),
            times: 1,
            disk: Some(0),
        };
        sim.add_faults(&[fault], FaultError::NoMemory);
        failed += usize::from(store.close().is_err());
        let position = sim.position();
        for put in puts {
            // Whatever were under way would be carried out now.
            let _ = put.wait();
        }
        assert_eq!(sim.position(), position, "after {after}");
    }
    assert!(failed > 0, "nothing failed");
}

/// Nor is it if a sector is neither in nor out, for the store file could not be written.
#[test]
fn nothing_is_under_way_when_a_store_without_a_store_file_is_closed() {
    let (sim, store) = simulated(3, 1);
    let fault = Fault {
        kind: FaultKind::ReplaceFile,
        after: 0,
        times: usize::MAX,
        disk: None,
    };
    sim.add_faults(&[fault], FaultError::NoSpace);
    let removed = store.remove_sector(0, RemoveOptions::default());
    let removed = removed.expect_err("the store file can't be written");
    assert_eq!(removed.kind(), ErrorKind::Io, "{removed}");
    sim.set_faults(&[]);
    let puts = (0..400).map(|number| store.put(&key("blob", number), payload(1, 3000), written()));
    let puts: Vec<_> = puts.collect();
    store.close().expect("it closes");
    let position = sim.position();
    for put in puts {
        put.wait().expect("it was put before the store was closed");
    }
    assert_eq!(sim.position(), position);
}

/// Whenever the log has been idle for a while, it says that what was written is durable: damage to
/// the last frame is then not taken for a write that a crash has torn.
#[test]
fn a_note_follows_the_last_frame_every_time() {
    let directory = memory_directory();
    let path = directory.path().join("store");
    let options = create_options(&buffered(), 1, 16 * MIB);
    let store = Store::create(&path, options).expect("it is made");
    for number in 0..4 {
        let put = store.put(
            &key("blob", number),
            payload(1, 1000),
            PutOptions::default(),
        );
        let version = put.wait().expect("it is put").version;
        let begun = Instant::now();
        while store.info().lsn == version {
            assert!(begun.elapsed() < Duration::from_secs(20), "no note comes");
            std::thread::sleep(Duration::from_millis(5));
        }
        // It has its LSN by now, but may still be on its way.
        store.flush().wait().expect("it is written");
    }
    // As after a crash, with the last blob's frame damaged.
    let copy = directory.path().join("copy");
    std::fs::create_dir(&copy).expect("a directory");
    for entry in std::fs::read_dir(&path).expect("the store") {
        let entry = entry.expect("the store");
        std::fs::copy(entry.path(), copy.join(entry.file_name())).expect("it is copied");
    }
    let sector = copy.join("sector-000.graviton");
    let mut bytes = std::fs::read(&sector).expect("the sector");
    let name = b"blob-3";
    let place = bytes.windows(name.len()).rposition(|window| window == name);
    bytes[place.expect("the record")] ^= 1;
    std::fs::write(&sector, bytes).expect("it is damaged");
    let error = Store::open_with(&copy, OpenOptions::default()).expect_err("a blob is lost");
    assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
}

/// Verify and writers do not disturb each other.
#[test]
fn a_store_is_verified_while_it_is_written_to() {
    let directory = memory_directory();
    let options = create_options(&buffered(), 1, 32 * MIB);
    let store = Store::create(directory.path().join("store"), options).expect("it is made");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                number += 1;
                let put = store.put(&key("blob", number % 50), payload(1, 200_000), written());
                put.wait().expect("it is put");
            }
        });
        let reports: Vec<_> = (0..100).map(|_| store.verify(&mut |_| {})).collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for report in reports {
            let report = report.expect("it is verified");
            assert!(report.findings.is_empty(), "{:#?}", report.findings);
        }
    });
}

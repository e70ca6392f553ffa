//! How many replicas a write waits for, what becomes of the others, and when it is refused; and what is
//! opened though it has lost something.

use std::sync::Arc;
use std::time::Duration;

use graviton_engine::io::IoOptions;
use graviton_engine::io::sim::{DiskCondition, Fault, FaultKind, Sim};
use graviton_engine::port::{
    Batch, BinaryKey, BlobStore, CompleteOptions, DeleteOptions, Durability, ErrorKind, GetOptions,
    MutableObjectStore, Op, Placement, PutOptions, SectorState, StorageError, UploadOptions,
};
use graviton_engine::store::{CreateOptions, MIB, OpenOptions, RemoveOptions, Store, WriteMode};
use graviton_tests::history::{Plan, check_store};
use graviton_tests::policies::CopiedTo;
use graviton_tests::random::payload;
use graviton_tests::{
    begin, check_replicas, create_options, fail_next, put_options, settle, test_directory,
};

const PATH: &str = "/store";

fn key(number: usize) -> BinaryKey {
    BinaryKey::new(format!("key/{number:03}")).expect("a short key")
}

fn options(replicas: u16) -> CreateOptions {
    CreateOptions {
        replicas,
        ..Plan::REPLICAS.create_options()
    }
}

fn created(replicas: u16, open: OpenOptions) -> (Sim, Store) {
    let sim = Sim::new(512, 1);
    sim.record(false);
    let options = CreateOptions {
        open,
        ..options(replicas)
    };
    let store = Store::create_on(sim.backend(), PATH, options).expect("it is made");
    (sim, store)
}

fn in_mode(write_mode: WriteMode) -> OpenOptions {
    OpenOptions {
        write_mode,
        ..options(1).open
    }
}

fn put(store: &Store, number: usize, seed: u64) -> Result<(), StorageError> {
    let blob = payload(seed, 1000 + number);
    let put = store.put(&key(number), blob, PutOptions::default());
    put.wait().map(drop)
}

fn is_put(store: &Store, number: usize, seed: u64) -> bool {
    match store.get(&key(number), GetOptions::default()).wait() {
        Ok(blob) => blob.bytes == payload(seed, 1000 + number),
        Err(StorageError::NotFound { .. }) => false,
        Err(error) => panic!("{number}: {error}"),
    }
}

fn sectors_of(store: &Store, number: usize) -> usize {
    let found = store.stat(&key(number)).wait().expect("it is there");
    found.sectors.len()
}

#[test]
fn what_is_not_waited_for_is_made_behind_it() {
    for (mode, replicas, first) in [
        (WriteMode::All, 2, 2),
        (WriteMode::All, 3, 3),
        (WriteMode::Quorum, 2, 2),
        (WriteMode::Quorum, 3, 2),
        (WriteMode::Async, 2, 1),
        (WriteMode::Async, 3, 1),
    ] {
        assert_eq!(mode.waits_for(replicas.into()), first);
        let (sim, store) = created(replicas, in_mode(mode));
        let waits = usize::from(replicas) > first;
        for number in 0..100 {
            put(&store, number, 1).expect("it is put");
            assert_eq!(sectors_of(&store, number), first, "{mode:?}");
        }
        let backlog = if waits { 100 } else { 0 };
        assert_eq!(store.info().replication.backlog, backlog);
        assert_eq!(store.info().replication.is_short, waits);
        settle(&store).expect("it is seen to");
        let all = usize::from(replicas);
        check_replicas(&store, all..=all).expect("all replicas");
        let replication = store.info().replication;
        assert_eq!((replication.backlog, replication.is_short), (0, false));
        // Newer versions, and deletes, of which some sectors do not know at first.
        for number in 0..50 {
            match number % 2 {
                0 => put(&store, number, 2).expect("it is put"),
                _ => {
                    let deleted = store.delete(&key(number), DeleteOptions::default());
                    assert!(deleted.wait().expect("it is deleted").existed);
                }
            }
        }
        assert_eq!(store.info().replication.is_short, waits);
        // Whoever opens the store next goes on with it, and until then no sector may be missing.
        store.close().expect("it closes");
        sim.set_condition(0, DiskCondition::Absent);
        let without = Store::open_on(sim.backend(), PATH, in_mode(mode));
        assert_eq!(without.is_err(), waits, "{mode:?}");
        drop(without);
        sim.set_condition(0, DiskCondition::Well);
        let store = Store::open_on(sim.backend(), PATH, in_mode(mode)).expect("it opens");
        settle(&store).expect("it is seen to");
        let replication = store.info().replication;
        assert_eq!((replication.backlog, replication.is_short), (0, false));
        check_store(&store).expect("it is whole");
        drop(store);
        // Then any may.
        for sector in 0..3 {
            sim.set_condition(sector, DiskCondition::Dead);
            let options = OpenOptions::read_only();
            let store = Store::open_on(sim.backend(), PATH, options).expect("it opens");
            for number in 0..100 {
                let seed = if number < 50 { 2 } else { 1 };
                let is_deleted = number < 50 && number % 2 == 1;
                assert_eq!(
                    is_put(&store, number, seed),
                    !is_deleted,
                    "{mode:?} {number}"
                );
            }
            sim.set_condition(sector, DiskCondition::Well);
        }
    }
}

/// What was acknowledged with less than it takes to be durable is either made so, or that it is not is told.
#[test]
fn a_flush_tells_of_what_only_one_sector_had() {
    for mode in [WriteMode::All, WriteMode::Async] {
        let (sim, store) = created(2, in_mode(mode));
        let written = put_options(Durability::Written);
        let put = store.put(&key(0), payload(1, 100), written);
        put.wait().expect("it is put");
        let found = store.stat(&key(0)).wait().expect("it is there");
        fail_next(&sim, found.sectors[0].into(), FaultKind::Sync);
        assert_eq!(store.flush().wait().is_ok(), mode == WriteMode::All);
    }
}

fn strict(write_mode: WriteMode) -> OpenOptions {
    OpenOptions {
        degraded_writes: false,
        ..in_mode(write_mode)
    }
}

#[test]
fn degraded_writes_are_refused_if_they_are_not_allowed() {
    let is_insufficient = |outcome: Result<(), StorageError>, wanted, chosen| {
        let error = outcome.expect_err("too few sectors");
        assert!(
            matches!(error, StorageError::Insufficient { wanted: w, chosen: c } if (w, c) == (wanted, chosen)),
            "{error}"
        );
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    };
    for (mode, replicas) in [(WriteMode::All, 3), (WriteMode::Quorum, 3)] {
        let (sim, store) = created(replicas, strict(mode));
        put(&store, 0, 1).expect("it is put");
        settle(&store).expect("it is tidied up");
        // The one that is under way comes about.
        fail_next(&sim, 1, FaultKind::Write);
        let mut number = 1;
        while store.info().sectors[1].state == SectorState::Active {
            put(&store, number, 1).expect("it is put where it can be");
            number += 1;
            while store.step().is_ok_and(|stepped| stepped) {}
        }
        let refused = put(&store, number, 1);
        match mode {
            WriteMode::Quorum => refused.expect("two are enough"),
            _ => {
                is_insufficient(refused, 3, 2);
                let delete = store.delete(&key(0), DeleteOptions::default()).wait();
                is_insufficient(delete.map(drop), 3, 2);
                let range = payload(2, 10);
                let range = store.put(&key(0), range, PutOptions::default()).wait();
                is_insufficient(range.map(drop), 3, 2);
            }
        }
        for number in 0..number {
            assert!(is_put(&store, number, 1));
        }
        drop(store);
        sim.set_faults(&[]);
        sim.set_condition(1, DiskCondition::Dead);
        let store = Store::open_on(sim.backend(), PATH, strict(mode)).expect("it opens");
        assert_eq!(put(&store, 90, 1).is_ok(), mode == WriteMode::Quorum);
        drop(store);
        // Whoever allows them goes on.
        let store = Store::open_on(sim.backend(), PATH, in_mode(mode)).expect("it opens");
        put(&store, 91, 1).expect("it is put");
        assert!(store.info().replication.is_short);
    }
}

/// Writes that wait while a sector fails come about, or are refused: each is what it was said to be.
#[test]
fn writes_that_wait_when_a_sector_fails_are_what_they_were_said_to_be() {
    let (sim, store) = created(3, strict(WriteMode::All));
    sim.set_faults(&[Fault {
        kind: FaultKind::Write,
        after: 0,
        times: 1,
        disk: Some(2),
    }]);
    let put = |number: usize| {
        let blob = payload(1, 1000 + number);
        store.put(&key(number), blob, PutOptions::default())
    };
    sim.leave_in_flight(true);
    // Those that are queued together share a frame.
    let mut puts: Vec<_> = (0..19).map(put).collect();
    puts.push(begin(put(19)));
    // And these wait for it.
    puts.extend((20..40).map(put));
    let mut outcomes: Vec<_> = puts.into_iter().map(Op::wait).collect();
    outcomes.extend((40..60).map(|number| put(number).wait()));
    for (number, outcome) in outcomes.iter().enumerate() {
        assert_eq!(is_put(&store, number, 1), outcome.is_ok(), "{outcome:?}");
        // Those that were under way come about all the same.
        assert_eq!(outcome.is_ok(), number < 20, "{number}: {outcome:?}");
    }
    let space = store.info().space;
    assert_eq!(
        space.total,
        space.metadata + space.live + space.garbage + space.free
    );
    assert!(matches!(
        outcomes.last(),
        Some(Err(StorageError::Insufficient {
            wanted: 3,
            chosen: 2
        }))
    ));
}

/// A store goes on without what it has lost, if that is accepted.
#[test]
fn loss_that_is_accepted_keeps_a_store_from_opening_no_more() {
    let accepting = |mode| OpenOptions {
        accept_loss_of: vec![1],
        ..in_mode(mode)
    };
    for (mode, replicas) in [(WriteMode::All, 1), (WriteMode::Async, 2)] {
        let (sim, store) = created(replicas, in_mode(mode));
        for number in 0..60 {
            put(&store, number, 1).expect("it is put");
        }
        let lost: Vec<usize> = (0..60)
            .filter(|&number| {
                let found = store.stat(&key(number)).wait().expect("it is there");
                found.sectors == [1]
            })
            .collect();
        assert!((10..40).contains(&lost.len()));
        drop(store);
        let back = sim.image();
        sim.set_condition(1, DiskCondition::Absent);
        Store::open_on(sim.backend(), PATH, in_mode(mode)).expect_err("something would be lost");
        let of_another = OpenOptions {
            accept_loss_of: vec![0, 2],
            ..in_mode(mode)
        };
        Store::open_on(sim.backend(), PATH, of_another).expect_err("something would be lost");
        let store = Store::open_on(sim.backend(), PATH, accepting(mode)).expect("it opens");
        for number in 0..60 {
            assert_eq!(is_put(&store, number, 1), !lost.contains(&number));
        }
        put(&store, lost[0], 2).expect("it is put");
        settle(&store).expect("it is mended");
        store
            .remove_sector(1, RemoveOptions { accept_loss: true })
            .expect("it is taken away");
        settle(&store).expect("it is mended");
        assert!(!store.info().replication.is_short);
        check_store(&store).expect("it is whole");
        drop(store);
        // Nobody has to accept it once more.
        let store = Store::open_on(sim.backend(), PATH, in_mode(mode)).expect("it opens");
        assert!(is_put(&store, lost[0], 2));
        assert_eq!(store.info().health, Vec::<String>::new());
        drop(store);

        // If the sector comes back instead, so does what it had, but for what is newer.
        let sim = Sim::boot(&back, 512, 2);
        sim.set_condition(1, DiskCondition::Absent);
        let store = Store::open_on(sim.backend(), PATH, accepting(mode)).expect("it opens");
        put(&store, lost[0], 2).expect("it is put");
        settle(&store).expect("it is mended");
        drop(store);
        sim.set_condition(1, DiskCondition::Well);
        let store = Store::open_on(sim.backend(), PATH, in_mode(mode)).expect("it opens");
        for number in 0..60 {
            let seed = if number == lost[0] { 2 } else { 1 };
            assert!(is_put(&store, number, seed), "{number}");
        }
        settle(&store).expect("it is mended");
        check_store(&store).expect("it is whole");
    }
}

/// More blobs than repair copies at once, put as one and not yet durable: what a power failure leaves while they are
/// copied are all of them, or none.
#[test]
fn a_batch_that_is_copied_comes_whole_through_a_power_failure() {
    const BLOBS: usize = 40;
    let (sim, store) = created(2, in_mode(WriteMode::Async));
    // With one that lacks a sector it is short for good, which the store file need not be told again: each sector
    // gets a copy of that, and what was written before is durable then.
    drop(store);
    sim.set_condition(2, DiskCondition::Absent);
    let open = |sim: &Sim| Store::open_on(sim.backend(), PATH, in_mode(WriteMode::Async));
    let store = open(&sim).expect("it opens");
    let options = PutOptions {
        replicas: Some(3),
        ..PutOptions::default()
    };
    let put = store.put(&key(BLOBS), payload(1, 1000), options);
    put.wait().expect("it is put");
    settle(&store).expect("it is copied");
    let mut batch = Batch {
        durability: Durability::Written,
        ..Batch::new()
    };
    for number in 0..BLOBS {
        batch.put(key(number), payload(1, 1000 + number));
    }
    sim.record(true);
    let begun = sim.position();
    store.batch(batch).wait().expect("it is put");
    settle(&store).expect("it is copied");
    let mut crasher = sim.crasher();
    let mut outcomes = [0; BLOBS + 1];
    for position in begun..=crasher.events() {
        crasher.advance(position);
        for loss in crasher.losses().collect::<Vec<_>>() {
            let sim = Sim::boot(&crasher.image(loss), 512, 1);
            let store = open(&sim).expect("it opens");
            let there = (0..BLOBS).filter(|&number| is_put(&store, number, 1));
            outcomes[there.count()] += 1;
        }
    }
    assert!(outcomes[0] > 0 && outcomes[BLOBS] > 0);
    assert_eq!(outcomes[1..BLOBS], [0; BLOBS - 1]);
}

/// Repair puts copies of parts elsewhere than those of their upload, and then the sector is lost that had all of them:
/// where the upload is then, there are no parts.
#[test]
fn an_upload_whose_parts_lie_in_different_sectors_is_completed() {
    let copied_to = |request: &Placement<'_>| {
        let is_part = format!("{:?}", request.key).contains("part");
        if is_part { 2 } else { 1 }
    };
    let open = || OpenOptions {
        replication: Some(Arc::new(CopiedTo(copied_to))),
        ..in_mode(WriteMode::Async)
    };
    let (sim, store) = created(2, open());
    let upload = store.start_upload(&key(1), UploadOptions::default());
    let upload = upload.wait().expect("it begins");
    let mut parts = Vec::new();
    let mut whole = Vec::new();
    for number in 1..=6 {
        let part = payload(u64::from(number), 1000 + 2000 * usize::from(number % 3));
        whole.extend_from_slice(&part);
        let part = store.upload_part(upload, number, part, PutOptions::default());
        parts.push((number, part.wait().expect("it is put").etag));
    }
    settle(&store).expect("it is copied");
    drop(store);
    sim.set_condition(0, DiskCondition::Absent);

    let store = Store::open_on(sim.backend(), PATH, open()).expect("it opens");
    let completed = store.complete_upload(upload, &parts, CompleteOptions::default());
    let size = completed.wait().expect("it is completed").size;
    let read = store.get(&key(1), GetOptions::default()).wait();
    let read = read.expect("it is read").bytes;
    assert_eq!(read.len() as u64, size);
    assert_eq!(read, whole);
    drop(store);
    sim.set_condition(0, DiskCondition::Well);
    let store = Store::open_on(sim.backend(), PATH, open()).expect("it opens");
    settle(&store).expect("it is copied");
    check_store(&store).expect("nothing is wrong with it");
}

/// Uploads are given up while repair copies their parts: what lands late is not kept.
#[test]
fn parts_that_land_after_their_upload_is_over_are_garbage() {
    let directory = test_directory();
    let path = directory.path().join("store");
    let mut options = create_options(&IoOptions::default(), 3, 64 * MIB);
    options.replicas = 2;
    options.open.write_mode = WriteMode::Async;
    let store = Store::create(&path, options).expect("it is made");
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let store = &store;
            scope.spawn(move || {
                let key = key(usize::try_from(thread).expect("a few"));
                for round in 0..300 {
                    let upload = store.start_upload(&key, UploadOptions::default());
                    let upload = upload.wait().expect("it begins");
                    for number in 1..=3 {
                        let part = payload(round, 3000);
                        let put = store.upload_part(upload, number, part, PutOptions::default());
                        put.wait().expect("it is put");
                    }
                    std::thread::sleep(Duration::from_micros(round % 17 * 100));
                    store.abort_upload(upload).wait().expect("it is given up");
                }
            });
        }
    });
    settle(&store).expect("it is tidy");
    let sectors = store.info().sectors;
    let live: Vec<u64> = sectors.iter().map(|sector| sector.space.live).collect();
    assert_eq!(live, [0; 3]);
}

//! Two things that go wrong, one after the other: what the first has left must not make a loss of the second.

use std::ops::ControlFlow;

use graviton_engine::io::sim::{DiskCondition, Image, Random, Sim};
use graviton_engine::port::{
    BinaryKey, BlobStore, CopyOptions, DeleteOptions, Durability, GetOptions, MutableObjectStore,
    PutOptions, PutRangeOptions, SectorState, Span, StorageError,
};
use graviton_engine::store::{
    CreateOptions, MIB, NewSector, OpenOptions, RemoveOptions, ScrubOptions, Store,
};
use graviton_tests::history::{Plan, check_store};
use graviton_tests::random::payload;
use graviton_tests::{blocks_that_differ, bytes_of, geometry, put_options, rebalance, settle};

const PATH: &str = "/store";

fn key(number: usize) -> BinaryKey {
    BinaryKey::new(format!("key/{number:03}")).expect("a short key")
}

fn options(sectors: u16, replicas: u16) -> CreateOptions {
    CreateOptions {
        sectors,
        replicas,
        ..Plan::REPLICAS.create_options()
    }
}

fn create(sectors: u16, replicas: u16, seed: u64) -> (Sim, Store) {
    let sim = Sim::new(512, seed);
    sim.record(false);
    let options = options(sectors, replicas);
    let store = Store::create_on(sim.backend(), PATH, options).expect("it is made");
    (sim, store)
}

fn open(sim: &Sim) -> Result<Store, StorageError> {
    Store::open_on(sim.backend(), PATH, options(1, 1).open)
}

fn put(store: &Store, number: usize, blob: &[u8], options: PutOptions) {
    let put = store.put(&key(number), blob.to_vec().into(), options);
    put.wait().expect("it is put");
}

fn get(store: &Store, number: usize) -> Result<Vec<u8>, StorageError> {
    let got = store.get(&key(number), GetOptions::default()).wait();
    got.map(|blob| blob.bytes.to_vec())
}

fn sectors_of(store: &Store, number: usize) -> Vec<u16> {
    let found = store.stat(&key(number)).wait().expect("it is there");
    found.sectors
}

/// Where some bytes lie on a disk.
fn places_of(image: &Image, disk: usize, wanted: &[u8]) -> Vec<usize> {
    let bytes = bytes_of(image, disk);
    let windows = bytes.windows(wanted.len()).enumerate();
    let found = windows.filter(|(_, window)| *window == wanted);
    found.map(|(at, _)| at).collect()
}

/// A bit flips in each copy that a disk has of a blob.
fn rot(sim: &Sim, disk: usize, blob: &[u8]) {
    let places = places_of(&sim.image(), disk, &blob[500..564]);
    assert!(!places.is_empty());
    places.into_iter().for_each(|at| sim.rot(disk, at, 0));
}

fn scrub(store: &Store) -> usize {
    let report = store.scrub(&ScrubOptions::default(), &mut |_| ControlFlow::Continue(()));
    report.expect("it is looked through").findings.len()
}

/// A sector is still needed whose replicas are the only ones that are known to be well.
#[test]
fn a_sector_is_needed_when_the_others_are_damaged() {
    for replicas in [1, 2] {
        let (sim, store) = create(replicas + 1, replicas, 1);
        let blob = payload(7, 4000);
        put(&store, 0, &blob, PutOptions::default());
        let from = sectors_of(&store, 0)[0];
        store.drain_sector(from).expect("it is drained");
        settle(&store).expect("it is mended");
        assert_eq!(store.needed(from).expect("it is counted"), 0);
        for other in sectors_of(&store, 0) {
            if other != from {
                rot(&sim, other.into(), &blob);
            }
        }
        assert!(scrub(&store) > 0);
        assert_eq!(store.needed(from).expect("it is counted"), 1);
        let removed = store.remove_sector(from, RemoveOptions::default());
        assert!(matches!(
            removed,
            Err(StorageError::StillNeeded { keys: 1, .. })
        ));
        settle(&store).expect("it is mended");
        store
            .remove_sector(from, RemoveOptions::default())
            .expect("nothing needs it any more");
        assert_eq!(get(&store, 0).expect("it is read"), blob);
    }
}

/// No replica goes on the word of others that have rotted, of which nobody knows any more.
#[test]
fn a_rebalance_reads_back_what_it_relies_on() {
    for damaged in [1, 2] {
        let (sim, store) = create(3, 2, 1);
        let blobs: Vec<_> = (0..60).map(|number| payload(number + 1, 4000)).collect();
        for (number, blob) in blobs.iter().enumerate() {
            put(&store, number, blob, PutOptions::default());
        }
        drop(store);
        sim.set_condition(1, DiskCondition::Absent);
        let store = open(&sim).expect("it opens");
        settle(&store).expect("it is mended");
        drop(store);
        sim.set_condition(1, DiskCondition::Well);
        let store = open(&sim).expect("it opens");
        settle(&store).expect("it is mended");
        let surplus = (0..blobs.len()).filter(|&number| sectors_of(&store, number).len() == 3);
        let surplus: Vec<usize> = surplus.collect();
        assert!(surplus.len() > 20);
        drop(store);
        for sector in 0..damaged {
            for &number in &surplus {
                rot(&sim, sector, &blobs[number]);
            }
        }
        let store = open(&sim).expect("it opens");
        rebalance(&store).expect("what can be done is");
        settle(&store).expect("it is mended");
        rebalance(&store).expect("what can be done is");
        settle(&store).expect("it is mended");
        for sector in 0..3 {
            sim.set_condition(sector, DiskCondition::Dead);
            for (number, blob) in blobs.iter().enumerate() {
                assert_eq!(get(&store, number).expect("another has it"), *blob);
            }
            sim.set_condition(sector, DiskCondition::Well);
        }
    }
}

/// Blobs that share payload are repaired side by side, and one of them is deleted meanwhile.
#[test]
fn a_delete_beside_repairs_that_share_payload_harms_no_sector() {
    for seed in 0..150 {
        let (_sim, store) = create(3, 2, seed);
        let mut random = Random::new(seed);
        let blob = payload(seed + 1, 150_000);
        put(&store, 0, &blob, PutOptions::default());
        let copies = 1 + random.below(3);
        for copy in 1..=copies {
            let copied = store.copy(&key(0), &key(copy), CopyOptions::default());
            copied.wait().expect("it is copied");
        }
        if random.one_in(2) {
            // So that its repair comes to what they share before the others do.
            let range = Span::new(0, 20_000).expect("a span");
            let bytes = payload(seed, 20_000);
            let put = store.put_range(&key(0), range, bytes, PutRangeOptions::default());
            put.wait().expect("it is put");
        }
        (50..60).for_each(|number| put(&store, number, &payload(5, 2000), PutOptions::default()));
        let holders = sectors_of(&store, 0);
        store
            .drain_sector(holders[random.below(2)])
            .expect("it is drained");
        for _ in 0..random.below(14) {
            store.step().expect("a step");
        }
        let gone = random.below(copies + 1);
        let deleted = store.delete(&key(gone), DeleteOptions::default());
        deleted.wait().expect("it is deleted");
        for _ in 0..6 {
            let puts: Vec<_> = (0..random.below(8))
                .map(|number| {
                    let blob = payload(seed, 1000 + random.below(8000));
                    store.put(&key(100 + number), blob, put_options(Durability::Written))
                })
                .collect();
            store.step().expect("a step");
            for put in puts {
                put.wait().expect("it is put");
            }
        }
        settle(&store).expect("it is mended");
        for sector in store.info().sectors {
            assert_ne!(sector.state, SectorState::Failed, "seed {seed}: {sector:?}");
        }
        for copy in 0..=copies {
            assert_eq!(get(&store, copy).is_ok(), copy != gone, "seed {seed}");
        }
        check_store(&store).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    }
}

/// A record rots, front and payload, that another blob shares: what lies beside it is none the worse for its repair.
#[test]
fn what_lies_beside_a_record_that_is_shared_and_rots_stays() {
    for second in [false, true] {
        let (sim, store) = create(3, 2, 1);
        let blob = payload(77, 4000);
        let small = |number: usize| payload(number as u64, 200);
        put(&store, 0, &blob, PutOptions::default());
        let holders = sectors_of(&store, 0);
        let (stay, goes) = (holders[0], holders[1]);
        let copied = store.copy(&key(0), &key(1), CopyOptions::default());
        copied.wait().expect("it is copied");
        let everywhere = || PutOptions {
            replicas: Some(3),
            ..PutOptions::default()
        };
        (10..20).for_each(|number| put(&store, number, &small(number), everywhere()));
        let version = |number| {
            let found = store.stat(&key(number)).wait();
            found.expect("it is there").version
        };
        let other = (0..3)
            .find(|sector| !holders.contains(sector))
            .expect("one of three");
        let all = Span::new(0, 4000).expect("a span").into();
        let replicas = store.replicas();
        let added = replicas.add_replica(&key(1), other, version(1), &all);
        added.wait().expect("it is made");
        store.drain_sector(goes).expect("it is drained");
        settle(&store).expect("it is mended");
        let accepting = RemoveOptions { accept_loss: true };
        store
            .remove_sector(goes, accepting)
            .expect("it is taken away");
        settle(&store).expect("it is mended");
        (300..304)
            .for_each(|number| put(&store, number, &payload(3, 20_000), PutOptions::default()));
        for at in places_of(&sim.image(), stay.into(), &blob[0..64]) {
            sim.rot(stay.into(), at + 100, 0);
            sim.rot(stay.into(), at - 20, 0);
        }
        for number in [usize::from(second), usize::from(!second)] {
            let marked =
                replicas.mark_unhealthy(&key(number), stay, version(number), "read failed", &all);
            marked.wait().expect("it is marked");
            settle(&store).expect("it is mended");
        }
        for number in 300..304 {
            let deleted = store.delete(&key(number), DeleteOptions::default());
            deleted.wait().expect("it is deleted");
        }
        for round in 0..60 {
            (200..204).for_each(|number| {
                put(
                    &store,
                    number,
                    &payload(round, 20_000),
                    PutOptions::default(),
                );
            });
            settle(&store).expect("it is tidied up");
            if round % 10 == 0 {
                store.checkpoint().expect("a checkpoint");
            }
        }
        let others = (0..3).filter(|sector| *sector != usize::from(stay));
        others.for_each(|sector| sim.set_condition(sector, DiskCondition::Dead));
        for number in 10..20 {
            assert_eq!(get(&store, number).expect("it is read"), small(number));
        }
        (0..3).for_each(|sector| sim.set_condition(sector, DiskCondition::Well));
        scrub(&store);
        settle(&store).expect("it is mended");
        assert_eq!(scrub(&store), 0);
        check_store(&store).expect("it is whole");
    }
}

/// A growth that was cut short leaves nothing that makes the sector the weaker: one bit of its front may still flip.
#[test]
fn a_growth_that_was_cut_short_is_undone() {
    let (sim, store) = create(1, 1, 1);
    put(&store, 0, &payload(1, 4000), PutOptions::default());
    store.close().expect("it closes");
    drop(store);
    let sim = Sim::boot(&sim.image(), 512, 5);
    let store = open(&sim).expect("it opens");
    sim.record(true);
    store.grow_sector(0, 6 * MIB).expect("it grows");
    let mut crasher = sim.crasher();
    let mut images = 0;
    for position in 0..=sim.position() {
        crasher.advance(position);
        for loss in crasher.losses() {
            images += 1;
            let sim = Sim::boot(&crasher.image(loss), 512, 3);
            sim.record(false);
            let store = open(&sim).expect("it opens");
            put(&store, 1, &payload(2, 4000), PutOptions::default());
            store.close().expect("it closes");
            drop(store);
            sim.rot(0, 40, 0);
            let store = open(&sim).unwrap_or_else(|error| panic!("at {position}: {error}"));
            assert_eq!(get(&store, 1).expect("it is read"), payload(2, 4000));
        }
    }
    assert!(images > 20, "{images}");
}

/// Sectors fail one after the other, and everything is made anew in between: the last has all, and that is known.
#[test]
fn sectors_fail_one_after_the_other() {
    let all = [
        "a put",
        "a checkpoint",
        "a checkpoint, and all is put anew",
        "a change of sectors",
    ];
    for found_in in all {
        let (sim, store) = create(3, 2, 1);
        let put_all = |store: &Store| {
            (0..20).for_each(|number| put(store, number, &payload(9, 3000), PutOptions::default()));
        };
        put_all(&store);
        settle(&store).expect("it is tidied up");
        sim.set_condition(2, DiskCondition::Dead);
        match found_in {
            "a put" => put_all(&store),
            "a checkpoint" => drop(store.checkpoint()),
            // So repair finds nothing to do.
            "a checkpoint, and all is put anew" => {
                drop(store.checkpoint());
                put_all(&store);
            }
            _ => {
                let new = NewSector {
                    size: 4 * MIB,
                    ..NewSector::default()
                };
                store.add_sector(&new).expect("it is added");
            }
        }
        settle(&store).expect("it is mended");
        let info = store.info();
        assert!(
            !info.replication.is_short && info.replication.backlog == 0,
            "{found_in}: {info:#?}"
        );
        sim.set_condition(1, DiskCondition::Dead);
        put_all(&store);
        settle(&store).expect("what can be done is");
        drop(store);
        let store = open(&sim).unwrap_or_else(|error| panic!("{found_in}: {error}"));
        (0..20).for_each(|number| {
            assert_eq!(get(&store, number).expect("it is read"), payload(9, 3000))
        });
        // Of two that fail at once that is not so.
        let options = OpenOptions::read_only();
        drop(store);
        sim.set_condition(0, DiskCondition::Dead);
        if sim.disks() > 3 {
            sim.set_condition(3, DiskCondition::Dead);
        }
        Store::open_on(sim.backend(), PATH, options).expect_err("nobody has it");
    }
}

/// The newest checkpoint is damaged, and so is the last frame of the log, which that checkpoint has seen: what the
/// frame had is missed, not taken for what was torn before it was acknowledged.
#[test]
fn a_damaged_checkpoint_still_says_what_was_durable() {
    let (sim, store) = create(1, 1, 1);
    put(&store, 0, &payload(1, 3000), PutOptions::default());
    let before = sim.image();
    put(&store, 1, &payload(2, 3000), PutOptions::default());
    let between = sim.image();
    store.checkpoint().expect("a checkpoint is taken");
    let after = sim.image();
    let frame = blocks_that_differ(&before, &between);
    let checkpoint = blocks_that_differ(&between, &after);
    assert!(!checkpoint.is_empty() && frame.len() > 5, "{frame:?}");
    for at in checkpoint {
        let sim = Sim::boot(&after, 512, 3);
        sim.rot(0, at + 40, 1);
        sim.rot(0, frame[0] + 3, 1);
        sim.rot(0, frame[frame.len() / 2] + 40, 1);
        // A block that is none of the image's leaves the checkpoint as it is.
        if let Ok(store) = open(&sim) {
            match get(&store, 1) {
                Err(StorageError::Corruption { .. }) => {}
                other => panic!("damage at {at}: {other:?}"),
            }
        }
    }
}

/// A copy of a superblock rots, the store is opened, and closed, and then the other copy rots.
#[test]
fn a_superblock_is_mended_before_its_other_copy_rots() {
    for sectors in [1, 2] {
        for first in [0, 1] {
            let (sim, store) = create(sectors, 1, 1);
            put(&store, 0, &payload(1, 4000), PutOptions::default());
            let copies = geometry(&store).superblocks();
            let copies = copies.map(|at| usize::try_from(at).expect("it is in memory"));
            let rot = |copy: usize| sim.rot(0, copies[copy] + 40, 1);
            drop(store);
            rot(first);
            drop(open(&sim).expect("it opens by the other"));
            rot(1 - first);
            let store = open(&sim).unwrap_or_else(|error| panic!("of {sectors}: {error}"));
            assert_eq!(get(&store, 0).expect("it is read"), payload(1, 4000));
        }
    }
}

/// The newest checkpoint rots, and then the one that is taken next: that was not taken in the place of the one before
/// both, which was in use meanwhile.
#[test]
fn a_damaged_checkpoint_is_what_the_next_replaces() {
    let (sim, store) = create(1, 1, 1);
    let blob = |number: usize| payload(number as u64, 20_000);
    let fill = |store: &Store| {
        (0..20).for_each(|number| put(store, number, &blob(number), PutOptions::default()));
    };
    // What was written first is written over: no log is whole without a checkpoint.
    for _ in 0..20 {
        fill(&store);
        settle(&store).expect("it is tidied up");
        store.checkpoint().expect("a checkpoint is taken");
    }
    let mut fallen_back = 0;
    let before = sim.image();
    put(&store, 20, &blob(20), PutOptions::default());
    let between = sim.image();
    store.checkpoint().expect("a checkpoint is taken");
    let after = sim.image();
    let log = blocks_that_differ(&before, &between);
    for at in blocks_that_differ(&between, &after) {
        let sim = Sim::boot(&after, 512, 3);
        sim.record(false);
        sim.rot(0, at + 40, 1);
        let store = open(&sim).unwrap_or_else(|error| panic!("damage at {at}: {error}"));
        if store.info().health.is_empty() {
            continue;
        }
        fallen_back += 1;
        let opened = sim.image();
        store.checkpoint().expect("a checkpoint is taken");
        drop(store);
        let new = blocks_that_differ(&opened, &sim.image());
        assert!(
            new.iter().all(|at| !log.contains(at)),
            "what rots is in no frame"
        );
        new.iter().for_each(|at| sim.rot(0, at + 40, 1));
        let store = open(&sim).unwrap_or_else(|error| panic!("damage at {at}, and again: {error}"));
        assert!(!store.info().health.is_empty());
        for number in 0..=20 {
            assert_eq!(
                get(&store, number).expect("it is read"),
                blob(number),
                "{at}"
            );
        }
    }
    assert!(fallen_back > 1, "{fallen_back}");
}

/// The power fails between the header of a segment and its first frame, and the last frame before it rots: that the
/// header is there says that what the frame had was durable.
#[test]
fn the_header_of_a_segment_says_what_was_durable() {
    let (sim, store) = create(1, 1, 1);
    let (mut acknowledged, mut frame): (Image, Vec<usize>) = (sim.image(), Vec::new());
    // One behind the other, until one begins a segment.
    let (last, header) = (0..)
        .find_map(|number| {
            sim.record(true);
            put(&store, number, &payload(1, 3000), PutOptions::default());
            let image = sim.image();
            let written = blocks_that_differ(&acknowledged, &image);
            if frame.last().is_some_and(|end| written[0] != end + 512) {
                return Some((number - 1, written[0]));
            }
            (acknowledged, frame) = (image, written);
            None
        })
        .expect("segments end");
    let mut crasher = sim.crasher();
    let mut alone = 0;
    for position in 0..=sim.position() {
        crasher.advance(position);
        for loss in crasher.losses() {
            let image = crasher.image(loss);
            if blocks_that_differ(&acknowledged, &image) != [header] {
                continue;
            }
            alone += 1;
            let sim = Sim::boot(&image, 512, 3);
            sim.rot(0, frame[0] + 3, 1);
            sim.rot(0, frame[frame.len() / 2] + 40, 1);
            if let Ok(store) = open(&sim) {
                match get(&store, last) {
                    Err(StorageError::Corruption { .. }) => {}
                    other => panic!("{position}: {other:?}"),
                }
            }
        }
    }
    assert!(alone > 0);
}

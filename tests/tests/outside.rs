//! What the store takes from the outside world, on a machine whose clock lies: the time, and the
//! quiet after which its thread would write a note.

use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use graviton_engine::io::sim::Sim;
use graviton_engine::io::{AlignedBuf, BufferPool, OpenAccess};
use graviton_engine::port::op::wait_for;
use graviton_engine::port::{
    BinaryKey, BlobInfo, BlobStore, Durability, ErrorKind, GetOptions, PutOptions, StorageError,
};
use graviton_engine::store::{CreateOptions, KIB, MIB, OpenOptions, Store};
use graviton_tests::put_options;
use graviton_tests::random::payload;

const PATH: &str = "/simulated/store";
const SECTOR: &str = "/simulated/store/sector-000.graviton";
const HOUR: Duration = Duration::from_secs(3600);

fn options() -> CreateOptions {
    CreateOptions {
        sector_size: 4 * MIB,
        segment_size: Some(64 * KIB),
        block_size: Some(512),
        open: OpenOptions {
            background: false,
            reader_patience: Duration::ZERO,
            ..OpenOptions::default()
        },
        ..CreateOptions::default()
    }
}

fn create(sim: &Sim) -> Store {
    Store::create_on(sim.backend(), PATH, options()).expect("it is made")
}

fn open(sim: &Sim) -> Result<Store, StorageError> {
    Store::open_on(sim.backend(), PATH, options().open)
}

fn key(name: &str) -> BinaryKey {
    BinaryKey::new(name).expect("a short key")
}

fn put(store: &Store, name: &str, durability: Durability) {
    let put = store.put(&key(name), payload(1, 1000), put_options(durability));
    put.wait().expect("it is put");
}

fn put_and_stat(store: &Store, name: &str) -> BlobInfo {
    put(store, name, Durability::Durable);
    store.stat(&key(name)).wait().expect("it is there")
}

#[test]
fn times_are_those_of_the_backend() {
    let sim = Sim::new(512, 1);
    let store = create(&sim);
    let time = SystemTime::UNIX_EPOCH + 7_000_000 * HOUR / 10;
    sim.set_pace(0);
    sim.set_time(time);
    assert_eq!(put_and_stat(&store, "a").modified, time);
    sim.set_time(time + HOUR);
    assert_eq!(put_and_stat(&store, "b").modified, time + HOUR);
}

/// A clock that runs backwards, jumps back, or is wrong when the machine comes up again, makes no
/// version older than the one before it.
#[test]
fn time_does_not_go_back() {
    let sim = Sim::new(512, 1);
    let store = create(&sim);
    let first = put_and_stat(&store, "first").modified;
    sim.set_pace(-400);
    let mut latest = first;
    for number in 0..10 {
        let modified = put_and_stat(&store, &format!("backwards-{number}")).modified;
        assert!(modified >= latest, "{modified:?} after {latest:?}");
        latest = modified;
    }
    sim.set_time(first + 5 * HOUR);
    sim.set_pace(1);
    latest = put_and_stat(&store, "ahead").modified;
    assert!(latest >= first + 5 * HOUR);
    sim.set_time(SystemTime::UNIX_EPOCH);
    assert!(put_and_stat(&store, "jump").modified >= latest);
    // Without a checkpoint that covers it, and with one and nothing else: closing would write a frame behind it.
    let mut killed = sim.image();
    for name in ["replayed", "loaded"] {
        let sim = Sim::boot(&killed, 512, 2);
        sim.set_time(SystemTime::UNIX_EPOCH);
        let store = open(&sim).expect("it opens");
        let modified = put_and_stat(&store, name).modified;
        assert!(modified >= latest, "{name}");
        latest = modified;
        store.checkpoint().expect("a checkpoint");
        killed = sim.image();
    }
}

/// The place on the sector's medium of the last of `bytes`.
fn place_of(sim: &Sim, bytes: &[u8]) -> usize {
    let disk = sim.backend().open(Path::new(SECTOR), OpenAccess::ReadOnly);
    let disk = disk.expect("the sector");
    let size = usize::try_from(disk.size()).expect("small");
    let buffer: AlignedBuf = BufferPool::global().take(size);
    let (buffer, outcome) = wait_for(disk.read(buffer, 0));
    outcome.expect("it is read");
    let mut windows = buffer.windows(bytes.len());
    windows
        .rposition(|window| window == bytes)
        .expect("it is there")
}

/// Steps do all that the store's own thread does: when there is nothing else left they write the
/// note that tells damage to the last frame from a write that a crash has torn.
#[test]
fn steps_write_the_note_of_what_is_durable() {
    for durability in [Durability::Durable, Durability::Written] {
        for steps in [false, true] {
            let sim = Sim::new(512, 1);
            let store = create(&sim);
            while store.step().expect("maintenance") {}
            let before = store.info().lsn;
            put(&store, "the-last-blob", durability);
            let after = store.info().lsn;
            assert!(after > before);
            if steps {
                while store.step().expect("maintenance") {}
                assert!(store.info().lsn > after, "no note was written");
                let noted = store.info().lsn;
                assert!(!store.step().expect("maintenance"), "there is no end to it");
                assert_eq!(store.info().lsn, noted);
            } else if durability == Durability::Written {
                store.flush().wait().expect("it is flushed");
            }
            // As after a crash, with the frame damaged.
            let crashed = Sim::boot(&sim.image(), 512, 1);
            crashed.rot(0, place_of(&crashed, b"the-last-blob"), 0);
            match open(&crashed) {
                Ok(store) => {
                    assert!(!steps, "the damage is taken for a torn tail");
                    assert_eq!(store.info().blobs, 0);
                }
                Err(error) => {
                    assert!(steps, "nothing said that the frame was durable: {error}");
                    assert_eq!(error.kind(), ErrorKind::Corruption);
                }
            }
        }
    }
}

/// Also of what a crash has left, and a recovery found.
#[test]
fn a_note_says_that_what_was_recovered_is_durable() {
    for closed in [false, true] {
        let sim = Sim::new(512, 1);
        let store = create(&sim);
        while store.step().expect("maintenance") {}
        put(&store, "the-last-blob", Durability::Durable);
        let crashed = Sim::boot(&sim.image(), 512, 1);
        let store = open(&crashed).expect("it opens");
        match closed {
            true => store.close().expect("it closes"),
            false => while store.step().expect("maintenance") {},
        }
        let rotten = Sim::boot(&crashed.image(), 512, 1);
        rotten.rot(0, place_of(&rotten, b"the-last-blob"), 0);
        let error = open(&rotten).expect_err("the damage is taken for a torn tail");
        assert_eq!(error.kind(), ErrorKind::Corruption);
    }
}

/// Without patience, puts that only readers keep from having room fail, and wait for no clock.
#[test]
fn a_store_without_patience_does_not_wait_for_readers() {
    let sim = Sim::new(512, 1);
    let store = create(&sim);
    let blob: Bytes = payload(1, 300_000);
    let put = |number: u64| {
        let key = key(&format!("blob-{number}"));
        store.put(&key, blob.clone(), PutOptions::default()).wait()
    };
    let count = (0..).take_while(|&number| put(number).is_ok()).count() as u64;
    let readers: Vec<_> = (0..count)
        .map(|number| {
            let key = key(&format!("blob-{number}"));
            let reader = store.get_stream(&key, GetOptions::default()).wait();
            let reader = reader.expect("it is there");
            store
                .delete(&key, Default::default())
                .wait()
                .expect("deletes have room");
            reader
        })
        .collect();
    let refused = (0..count).find_map(|number| put(number).err());
    let error = refused.expect("what is being read stays where it is");
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    drop(readers);
    put(count).expect("there is room again");
}

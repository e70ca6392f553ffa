//! Clauses of the contract that the port alone can't show: what a call does to the disk, and what
//! comes of a version that a power failure took.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use graviton_engine::io::sim::{Fault, FaultKind, Loss, Sim};
use graviton_engine::io::{
    AlignedBuf, Backend, BufferPool, Disk, IoOp, Lock, LockError, OpenAccess, WriteSync,
};
use graviton_engine::port::op::wait_for;
use graviton_engine::port::{
    Attributes, Batch, BinaryKey, BlobReader, BlobStore, CopyOptions, DeleteOptions, Durability,
    GetOptions, ListRequest, MutableObjectStore, Precondition, PutOptions, PutRangeOptions, Span,
    StorageError,
};
use graviton_engine::store::{
    CreateOptions, KIB, MIB, NewSector, OpenOptions, ScrubOptions, ScrubProgress, Store,
};
use graviton_format::Geometry;
use graviton_format::checkpoint::CheckpointRoot;
use graviton_format::geometry::ROOT_SLOT_SIZE;
use graviton_tests::between::{Between, BetweenBackend, Held, Transfer};
use graviton_tests::random::payload;
use graviton_tests::{begin, put_options};

const PATH: &str = "/store";

fn key(name: &str) -> BinaryKey {
    BinaryKey::new(name).expect("a short key")
}

fn options(sector_size: u64) -> CreateOptions {
    CreateOptions {
        sector_size,
        segment_size: Some(64 * KIB),
        open: OpenOptions {
            background: false,
            ..OpenOptions::default()
        },
        ..CreateOptions::default()
    }
}

fn new_store(seed: u64, sector_size: u64) -> (Sim, Store) {
    let sim = Sim::new(512, seed);
    let store = Store::create_on(sim.backend(), PATH, options(sector_size));
    (sim, store.expect("it is made"))
}

fn put(store: &Store, name: &str, seed: u64, size: usize) -> u64 {
    let outcome = store.put(&key(name), payload(seed, size), PutOptions::default());
    outcome.wait().expect("it is put").version
}

/// Reads fail after the first `after`.
fn no_reads(after: usize) -> Fault {
    Fault {
        kind: FaultKind::Read,
        after,
        times: usize::MAX,
        disk: None,
    }
}

/// `stat`, `exists` and `list` answer where no payload can be read; what reads payload says where
/// it could not.
#[test]
fn what_is_known_of_a_blob_is_told_without_reading_its_payload() {
    let (sim, store) = new_store(1, 16 * MIB);
    put(&store, "plain", 1, 3 << 20);
    let with_attributes = PutOptions {
        attributes: Attributes::from([("name".to_owned(), "value".into())]),
        ..PutOptions::default()
    };
    let outcome = store.put(&key("named"), payload(2, 3 << 20), with_attributes);
    outcome.wait().expect("it is put");

    sim.set_faults(&[no_reads(0)]);
    let plain = store.stat(&key("plain")).wait().expect("no read is needed");
    assert_eq!(plain.size, 3 << 20);
    assert!(
        store
            .exists(&key("named"))
            .wait()
            .expect("no read is needed")
    );
    assert!(
        !store
            .exists(&key("absent"))
            .wait()
            .expect("no read is needed")
    );
    let listed = store.list(ListRequest::default()).wait();
    assert_eq!(listed.expect("no read is needed").blobs.len(), 2);
    // Attributes lie before the payload, in the record.
    sim.set_faults(&[no_reads(1)]);
    let named = store.stat(&key("named")).wait().expect("one read will do");
    assert_eq!(named.attributes["name"], "value");
    sim.set_faults(&[no_reads(0)]);
    match store.get(&key("plain"), GetOptions::default()).wait() {
        Err(StorageError::Io {
            operation, place, ..
        }) => assert_eq!((operation, place.sector), ("read", 0)),
        other => panic!("{other:?}"),
    }
    sim.set_faults(&[]);
    let read = store.get(&key("plain"), GetOptions::default()).wait();
    assert_eq!(
        read.expect("the disk is well again").bytes,
        payload(1, 3 << 20)
    );
}

/// What was read lately is handed out of memory, without a copy, and only as long as it is current; those who want the
/// same at once read it once.
#[test]
fn what_was_read_lately_is_not_read_again() {
    let (sim, store) = new_store(1, 16 * MIB);
    put(&store, "small", 1, 5000);
    put(&store, "large", 1, 1 << 20);
    let get = |name: &str, range: Option<Span>| {
        let options = GetOptions {
            range: range.map(Into::into),
            ..GetOptions::default()
        };
        store.get(&key(name), options)
    };
    let both = [get("small", None), get("small", None)];
    let both = both.map(|get| get.wait().expect("it is read").bytes);
    assert_eq!(both[0].as_ptr(), both[1].as_ptr());
    get("large", None).wait().expect("it is read");

    sim.set_faults(&[no_reads(0)]);
    let again = get("small", None).wait().expect("it is in memory");
    assert_eq!(again.bytes.as_ptr(), both[0].as_ptr());
    let span = Span::new(1000, 1200).expect("in order");
    let part = get("small", Some(span)).wait().expect("it is in memory");
    assert_eq!(part.bytes, payload(1, 5000)[1000..1200]);
    get("large", None).wait().expect_err("it is too large");
    put(&store, "small", 2, 5000);
    get("small", None)
        .wait()
        .expect_err("it is another version");
    sim.set_faults(&[]);
    let read = get("small", None).wait().expect("it is read");
    assert_eq!(read.bytes, payload(2, 5000));
    let figures = store.info().cache;
    assert!(
        figures.hits >= 2 && figures.bytes <= figures.capacity,
        "{figures:?}"
    );
}

/// Extents and manifest are written as one frame where that fits: whether it does depends on all that is in it.
/// A blob that is read again and again is found without the index, but for its next version, or none.
#[test]
fn what_is_hot_is_replaced_at_once() {
    let (_sim, store) = new_store(1, 16 * MIB);
    let read = |name: &str| store.get(&key(name), GetOptions::default()).wait();
    let version = |name: &str| {
        for _ in 0..3 {
            read(name).expect("it is there");
        }
        read(name).expect("it is there").version
    };
    let is_gone = |name: &str| matches!(read(name), Err(StorageError::NotFound { .. }));
    let first = put(&store, "one", 1, 5000);
    assert_eq!(version("one"), first);
    let second = put(&store, "one", 2, 5000);
    assert_eq!(version("one"), second);
    assert_eq!(read("one").expect("it is there").bytes, payload(2, 5000));
    let range = Span::new(0, 10).expect("a span");
    let changed = store.put_range(
        &key("one"),
        range,
        payload(3, 10),
        PutRangeOptions::default(),
    );
    let changed_to = changed.wait().expect("it is changed").version;
    assert_eq!(version("one"), changed_to);
    assert_eq!(
        read("one").expect("it is there").bytes[..10],
        payload(3, 10)
    );
    put(&store, "two", 4, 5000);
    version("two");
    let renamed = store.rename(&key("one"), &key("two"), CopyOptions::default());
    let renamed = renamed.wait().expect("it is renamed").version;
    assert!(is_gone("one"));
    assert_eq!(version("two"), renamed);
    let other = GetOptions {
        precondition: Precondition::IfVersion(changed_to),
        ..GetOptions::default()
    };
    let unchanged = store.get(&key("two"), other).wait();
    assert!(matches!(
        unchanged,
        Err(StorageError::PreconditionFailed { .. })
    ));
    let delete = store.delete(&key("two"), DeleteOptions::default());
    delete.wait().expect("it is deleted");
    assert!(is_gone("two"));
}

#[test]
fn a_blob_of_any_size_is_put_whatever_its_key_and_attributes() {
    let (_sim, store) = new_store(1, 32 * MIB);
    let attributes = |bytes: usize| match bytes {
        0 => Attributes::new(),
        _ => Attributes::from([("name".to_owned(), payload(3, bytes))]),
    };
    for key_length in [1, 500, BinaryKey::MAX_LEN] {
        let key = BinaryKey::new(vec![b'k'; key_length]).expect("a good key");
        for attribute in [0, 10_000, 32_000] {
            for size in (1..40).map(|n| n * 1777) {
                let options = PutOptions {
                    attributes: attributes(attribute),
                    ..PutOptions::default()
                };
                let put = store.put(&key, payload(size as u64, size), options).wait();
                let put = put.unwrap_or_else(|error| {
                    panic!("{size} bytes, key of {key_length}, {attribute}: {error}")
                });
                assert_eq!(put.size, size as u64);
                let read = store.get(&key, GetOptions::default()).wait();
                assert_eq!(read.expect("it is read").bytes, payload(size as u64, size));
                while store.step().expect("it is done") {}
            }
        }
    }
    let report = store.verify(&mut |_| {}).expect("it is verified");
    assert!(report.findings.is_empty(), "{report:?}");
}

/// Segments that are zeroed on request are so for good, and maintenance finds none left to zero.
#[test]
fn what_is_zeroed_stays_zeroed() {
    let (sim, store) = new_store(1, 16 * MIB);
    let zeroed = |store: &Store| {
        let info = store.info();
        (
            info.sectors[0].segments_zeroed,
            info.sectors[0].segment_count,
        )
    };
    // An image takes two segments here, and fills one.
    store.checkpoint().expect("it is taken");
    let segments = store.segments(0);
    let used = segments.iter().filter(|segment| segment.generation > 0);
    assert_eq!(used.count(), 2 * zeroed(&store).0 as usize);
    // Maintenance has its own to zero.
    while store.step().expect("it is done") {}
    let (before, all) = zeroed(&store);
    let bytes = store.zero_free_segments().expect("it is zeroed");
    assert_eq!(bytes, u64::from(all - before) * 64 * KIB);
    assert_eq!(zeroed(&store), (all, all));
    assert_eq!(store.zero_free_segments().expect("nothing is left"), 0);
    put(&store, "there", 1, 100_000);
    // As a process that is killed leaves it.
    let sim = Sim::boot(&sim.image(), 512, 2);
    let open = options(16 * MIB).open;
    let store = Store::open_on(sim.backend(), PATH, open).expect("it opens");
    assert_eq!(zeroed(&store), (all, all));
    let before = sim.written();
    put(&store, "more", 2, 4 << 20);
    while store.step().expect("it is done") {}
    let written = sim.written() - before;
    assert!(
        written < 5 << 20,
        "{written} bytes: what was put, and a checkpoint"
    );
    let read = store.get(&key("there"), GetOptions::default()).wait();
    assert_eq!(read.expect("it is there").bytes, payload(1, 100_000));
}

/// Copy and rename move no payload: the larger the blob, the less they write in comparison.
#[test]
fn copies_move_no_payload() {
    for size in [1000, 60_000, 5 << 20] {
        let (sim, store) = new_store(1, 32 * MIB);
        put(&store, "source", 1, size);
        let before = sim.written();
        let copied = store.copy(&key("source"), &key("copy"), CopyOptions::default());
        copied.wait().expect("it is copied");
        let renamed = store.rename(&key("copy"), &key("renamed"), CopyOptions::default());
        renamed.wait().expect("it is renamed");
        let written = sim.written() - before;
        // A manifest names each piece in 16 bytes; pieces have 3000 at the least here.
        let most = 4096 + 2 * size / 3000 * 16;
        assert!(written <= most, "{written} bytes for {size}");
    }
}

/// A blob of no bytes takes its record, and a put of it writes nothing else.
#[test]
fn a_blob_of_no_bytes_takes_no_payload_block() {
    let (sim, store) = new_store(1, 16 * MIB);
    put(&store, "other", 1, 1000);
    let before = sim.written();
    put(&store, "empty", 1, 0);
    assert_eq!(sim.written() - before, 512);
    assert!(
        store
            .stat(&key("empty"))
            .wait()
            .expect("it is there")
            .allocated
            < 512
    );
}

/// Whoever saw a version that a power failure took, and comes back with its ETag, must not meet
/// another blob under it.
#[test]
fn a_version_that_was_seen_is_never_given_out_again() {
    for seed in 0..20 {
        let (sim, store) = new_store(seed, 16 * MIB);
        put(&store, "durable", 1, 1000);
        let written = put_options(Durability::Written);
        let mut seen = Vec::new();
        for number in 0..3 {
            let lost = store.put(&key("k"), payload(number, 2000), written.clone());
            seen.push(lost.wait().expect("it is put").version);
        }
        let position = sim.position();
        let mut crasher = sim.crasher();
        crasher.advance(position);
        let sim = Sim::boot(&crasher.image(Loss::All), 512, seed + 1);
        drop(store);
        let store = Store::open_on(sim.backend(), PATH, options(16 * MIB).open);
        let store = store.expect("it opens");
        assert!(!store.exists(&key("k")).wait().expect("it answers"));
        for number in 3..9 {
            let version = put(&store, "k", number, 2000);
            assert!(!seen.contains(&version), "{version} is in {seen:?}");
        }
    }
}

/// Locks hold nobody up, so that a store can be left as by a killed process; and it is known what was opened, and how
/// much was read.
#[derive(Debug, Default)]
struct Lockless {
    opened: Mutex<Vec<PathBuf>>,
    reads: AtomicUsize,
    read_bytes: AtomicUsize,
}

#[derive(Debug)]
struct NoLock;

impl Lock for NoLock {}

impl Between for Lockless {
    fn opened(&self, path: &Path) {
        let mut opened = self.opened.lock().expect("nobody panics");
        opened.push(path.to_owned());
    }

    fn read(&self, disk: &Arc<dyn Disk>, buffer: AlignedBuf, offset: u64) -> IoOp {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.read_bytes.fetch_add(buffer.len(), Ordering::Relaxed);
        disk.read(buffer, offset)
    }

    fn lock(
        &self,
        _backend: &dyn Backend,
        _path: &Path,
        _exclusive: bool,
    ) -> Result<Box<dyn Lock>, LockError> {
        Ok(Box::new(NoLock))
    }
}

/// A log of small frames is read many frames at a time, and one of long ones not twice.
#[test]
fn a_replay_reads_many_frames_at_once() {
    // Of headers of segments, superblocks, roots, and the segment in which the log ends.
    const READS_BESIDE: usize = 60;
    const BYTES_BESIDE: usize = 6 << 20;
    let logs = [
        (vec![1000; 300], 20),
        (vec![150_000; 50], 150),
        (vec![900_000; 40], 200),
    ];
    for (round, (sizes, reads_max)) in logs.into_iter().enumerate() {
        let machine = Arc::new(Lockless::default());
        let sim = Sim::new(512, round as u64);
        let backend = || BetweenBackend::new(sim.backend(), &machine);
        let mut options = options(80 * MIB);
        options.segment_size = Some(4 * MIB);
        let open = options.open.clone();
        let store = Store::create_on(backend(), PATH, options).expect("it is made");
        let blobs = || {
            (0..)
                .zip(&sizes)
                .map(|(number, size)| (number, format!("{number}"), *size))
        };
        for (number, name, size) in blobs() {
            put(&store, &name, number, size);
        }
        // Killed.
        std::mem::forget(store);
        machine.reads.store(0, Ordering::Relaxed);
        machine.read_bytes.store(0, Ordering::Relaxed);
        let store = Store::open_on(backend(), PATH, open).expect("it opens");
        let reads = machine.reads.load(Ordering::Relaxed);
        assert!(
            reads < READS_BESIDE + reads_max,
            "{reads} reads of {} blobs",
            sizes.len()
        );
        let bytes = machine.read_bytes.load(Ordering::Relaxed);
        let log: usize = sizes.iter().map(|size| size + 1000).sum();
        assert!(
            bytes < BYTES_BESIDE + log / 10 * 11,
            "{bytes} bytes of {log} are read"
        );
        for (number, name, size) in blobs() {
            let found = store.get(&key(&name), GetOptions::default()).wait();
            let is_whole = found.expect("it is there").bytes == payload(number, size);
            assert!(is_whole, "{name}");
        }
    }
}

/// The pieces of a blob that were put in one frame are read by one read; one by one, where that fails.
#[test]
fn what_lies_together_is_read_together() {
    let machine = Arc::new(Lockless::default());
    let sim = Sim::new(512, 1);
    let backend = BetweenBackend::new(sim.backend(), &machine);
    let mut options = options(80 * MIB);
    options.segment_size = Some(4 * MIB);
    let store = Store::create_on(backend, PATH, options).expect("it is made");
    let size = 1 << 20;
    put(&store, "k", 1, size);
    let fragments = store.stat(&key("k")).wait().expect("it is there").fragments;
    assert!(fragments > 1, "{fragments}");
    let whole = payload(1, size);
    let end = size as u64;
    for (range, reads) in [(None, 1), (Some(0..end), 1), (Some(1..end), fragments)] {
        machine.reads.store(0, Ordering::Relaxed);
        let options = GetOptions {
            range: range.clone(),
            ..GetOptions::default()
        };
        let found = store.get(&key("k"), options).wait().expect("it is there");
        let start = size - found.bytes.len();
        assert!(found.bytes == whole[start..], "{range:?}");
        assert_eq!(machine.reads.load(Ordering::Relaxed), reads, "{range:?}");
    }
    sim.set_faults(&[Fault {
        times: 1,
        ..no_reads(0)
    }]);
    let found = store.get(&key("k"), GetOptions::default()).wait();
    assert!(found.expect("it is there").bytes == whole);
    assert_eq!(machine.reads.load(Ordering::Relaxed), 2 * fragments + 1);
}

/// A sector that was added is not opened a second time: it is locked by the store itself.
#[test]
fn a_sector_that_comes_in_is_opened_by_nobody_else() {
    let machine = Arc::new(Lockless::default());
    let backend = BetweenBackend::new(Sim::new(512, 1).backend(), &machine);
    let store = Store::create_on(backend, PATH, options(4 * MIB)).expect("it is made");
    // Whether there is a sector already, it has looked.
    machine.opened.lock().expect("nobody panics").clear();
    let number = store.add_sector(&NewSector {
        size: 4 * MIB,
        ..NewSector::default()
    });
    let number = number.expect("it is added");
    let path = store.info().sectors[usize::from(number)].path.clone();
    let opened = machine.opened.lock().expect("nobody panics");
    assert!(!opened.contains(&path), "{opened:?}");
}

/// What a killed process had only written is found by the next, which goes on behind it and says
/// that it is durable: then it must be, though the power fails.
#[test]
fn what_a_recovery_has_read_is_durable_from_then_on() {
    for (round, loss) in [Loss::All, Loss::Random(1), Loss::Nothing]
        .into_iter()
        .enumerate()
    {
        let sim = Sim::new(512, round as u64);
        let backend = || BetweenBackend::new(sim.backend(), &Arc::new(Lockless::default()));
        let store = Store::create_on(backend(), PATH, options(16 * MIB)).expect("it is made");
        put(&store, "durable", 1, 1000);
        let written = store.put(
            &key("k"),
            payload(2, 2000),
            put_options(Durability::Written),
        );
        written.wait().expect("it is put");
        // Killed, and nothing of it is tidied up.
        std::mem::forget(store);
        let store = Store::open_on(backend(), PATH, options(16 * MIB).open).expect("it opens");
        put(&store, "behind it", 3, 1000);
        let position = sim.position();
        let mut crasher = sim.crasher();
        crasher.advance(position);
        let machine = Sim::boot(&crasher.image(loss), 512, 9);
        drop(store);
        let store = Store::open_on(machine.backend(), PATH, options(16 * MIB).open);
        let store = store.expect("it opens");
        for (name, seed, size) in [("durable", 1, 1000), ("k", 2, 2000), ("behind it", 3, 1000)] {
            let found = store.get(&key(name), GetOptions::default()).wait();
            assert!(
                found.expect("it is there").bytes == payload(seed, size),
                "{name}"
            );
        }
    }
}

/// A failed sync of a frame takes what was written before it, and no later sync says anything of
/// that: a checkpoint under way must not become the newest on the strength of its own.
#[test]
fn no_checkpoint_rests_on_a_sync_after_one_that_failed() {
    for seed in 0..60 {
        let (sim, store) = new_store(seed, 16 * MIB);
        put(&store, "durable", 1, 1000);
        let written = put_options(Durability::Written);
        let lost = store.put(&key("k"), payload(2, 2000), written);
        lost.wait().expect("it is put");
        sim.set_faults(&[Fault {
            kind: FaultKind::Sync,
            after: 0,
            times: 1,
            disk: None,
        }]);
        // Its frame is under way while the checkpoint is written; either meets the fault.
        let under_way = store.put(&key("new"), payload(3, 2000), PutOptions::default());
        let checkpoint = store.checkpoint();
        let put = under_way.wait();
        assert!(checkpoint.is_err() || put.is_err(), "seed {seed}");
        let position = sim.position();
        let mut crasher = sim.crasher();
        crasher.advance(position);
        let machine = Sim::boot(&crasher.image(Loss::All), 512, 9);
        drop(store);
        let store = Store::open_on(machine.backend(), PATH, options(16 * MIB).open);
        let store = store.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        for (name, content) in [("k", 2), ("new", 3)] {
            match store.get(&key(name), GetOptions::default()).wait() {
                Ok(found) => assert!(found.bytes == payload(content, 2000), "seed {seed}: {name}"),
                Err(StorageError::NotFound { .. }) => {}
                Err(error) => panic!("seed {seed}: {name}: {error}"),
            }
        }
        let report = store.verify(&mut |_| {}).expect("it is verified");
        assert!(
            report.findings.is_empty(),
            "seed {seed}: {:#?}",
            report.findings
        );
    }
}

/// Wipes the root of the newest checkpoint, both copies of it.
fn wipe_newest_root(sim: &Sim, geometry: &Geometry) {
    let path = Path::new(PATH).join("sector-000.graviton");
    let disk = sim.backend().open(&path, OpenAccess::ReadWrite);
    let disk = disk.expect("the sector is there");
    let sequence = |slot| {
        let buffer = BufferPool::global().take_zeroed(ROOT_SLOT_SIZE);
        let (bytes, outcome) = wait_for(disk.read(buffer, geometry.roots(slot)[0]));
        outcome.expect("it is read");
        let root = CheckpointRoot::view(&bytes).expect("it is long enough");
        root.sequence.get()
    };
    let newest = u64::from(sequence(1) > sequence(0));
    for address in geometry.roots(newest) {
        let mut noise = BufferPool::global().take_zeroed(ROOT_SLOT_SIZE);
        noise.fill(0xa5);
        let (_, outcome) = wait_for(disk.write(noise, address, WriteSync::Data));
        outcome.expect("it is written");
    }
}

/// Of two checkpoints either will do: without the newest, the older and the log since lose nothing,
/// for no segment is used again that the older one still needs.
#[test]
fn the_older_checkpoint_and_the_log_since_have_everything() {
    let (sim, store) = new_store(1, 4 * MIB);
    sim.record(false);
    let sector = &store.info().sectors[0];
    let geometry = Geometry {
        block_size: sector.block_size,
        segment_size: sector.segment_size,
        segment_count: sector.segment_count,
    };
    for round in 0..160 {
        // Small blobs that stay a while among large ones that don't: segments of theirs come and go
        // between two checkpoints.
        put(&store, &format!("small {}", round % 40), round, 3000);
        put(&store, &format!("large {}", round % 2), round, 150_000);
        while store.step().expect("it is tidied up") {}
        let machine = Sim::boot(&sim.image(), 512, round);
        wipe_newest_root(&machine, &geometry);
        let again = Store::open_on(machine.backend(), PATH, options(4 * MIB).open);
        let again = again.unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert!(!again.info().health.is_empty(), "the wiped root is noticed");
        for (name, count, size) in [("small", 40, 3000), ("large", 2, 150_000)] {
            for number in 0..count.min(round + 1) {
                let latest = round - (round - number) % count;
                let name = key(&format!("{name} {number}"));
                let found = again.get(&name, GetOptions::default()).wait();
                let found = found.unwrap_or_else(|error| panic!("round {round}: {name}: {error}"));
                assert!(
                    found.bytes == payload(latest, size),
                    "round {round}: {name}"
                );
            }
        }
    }
}

/// Uses all space of the store several times over.
fn churn(store: &Store, rounds: u64) {
    for round in 0..rounds {
        let name = format!("filler {}", round % 8);
        match store
            .put(&key(&name), payload(round, 150_000), PutOptions::default())
            .wait()
        {
            Ok(_) | Err(StorageError::NoSpace { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        while store.step().expect("it is tidied up") {}
    }
}

/// Puts blobs until there is no room for more.
fn fill(store: &Store) {
    for number in 0.. {
        let name = key(&format!("low {number}"));
        let put = store.put(&name, payload(number, 100_000), PutOptions::default());
        match put.wait() {
            Ok(_) => {}
            Err(StorageError::NoSpace { .. }) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

fn read_on(reader: &mut BlobReader, read: &mut Vec<u8>) {
    while let Some(piece) = reader.next().wait().expect("it reads on") {
        read.extend_from_slice(&piece);
    }
}

/// A reader finishes whatever becomes of its blob, though all space is used again and again
/// meanwhile; and then its space comes back, too. Also that of a sector's growth.
#[test]
fn space_is_not_used_again_under_a_reader_but_after_it() {
    let cases = [3000, 100_000, 700_000].map(|size| [(size, false), (size, true)]);
    for (size, has_grown) in cases.into_iter().flatten() {
        let (sim, store) = new_store(1, 4 * MIB);
        sim.record(false);
        if has_grown {
            fill(&store);
            store.grow_sector(0, 12 * MIB).expect("it grows");
            // What room there was before takes this.
            put(&store, "middle", 4, 2 << 20);
        }
        // So that their segments have nothing else in them.
        put(&store, "before", 1, 64 << 10);
        put(&store, "k", 2, size);
        put(&store, "after", 3, 64 << 10);
        let open = || {
            let reader = store.get_stream(&key("k"), GetOptions::default());
            reader.wait().expect("it is there")
        };
        let (mut early, mut midway) = (open(), open());
        let mut read = Vec::new();
        if let Some(piece) = midway.next().wait().expect("it reads") {
            read.extend_from_slice(&piece);
        }
        let mut batch = Batch::new();
        for name in ["before", "k", "after"] {
            batch.delete(key(name));
        }
        store.batch(batch).wait().expect("they are deleted");
        churn(&store, 200);
        let garbage_before = store.info().sectors[0].space;
        read_on(&mut midway, &mut read);
        assert!(read == payload(2, size), "the bytes of {size} changed");
        let mut read = Vec::new();
        read_on(&mut early, &mut read);
        assert!(read == payload(2, size), "the bytes of {size} changed");
        drop((early, midway));
        churn(&store, 40);
        let space = store.info().sectors[0].space;
        assert!(
            space.live <= garbage_before.live + (300 << 10),
            "{space:?} after {garbage_before:?}"
        );
        // All of it can be had again.
        let deleted = (0..8).map(|number| {
            let name = key(&format!("filler {number}"));
            store.delete(&name, DeleteOptions::default()).wait()
        });
        for outcome in deleted {
            outcome.expect("it is deleted");
        }
        put(&store, "large", 9, 2 << 20);
        let report = store.verify(&mut |_| {}).expect("it is verified");
        assert!(report.findings.is_empty(), "{:#?}", report.findings);
    }
}

/// What a call reads of a record is kept for it, too: the answer may be that of another moment, but it is no damage.
#[test]
fn space_is_not_used_again_under_a_call_that_reads_a_record() {
    type Begun = Box<dyn FnOnce() -> Result<(), StorageError>>;
    type Call = fn(&Store) -> Begun;
    let calls: [(&str, Call); 4] = [
        ("stat", |store| {
            let op = begin(store.stat(&key("k")));
            Box::new(move || op.wait().map(drop))
        }),
        ("copy", |store| {
            let op = begin(store.copy(&key("k"), &key("copy"), CopyOptions::default()));
            Box::new(move || op.wait().map(drop))
        }),
        ("get", |store| {
            let op = begin(store.get(&key("k"), GetOptions::default()));
            Box::new(move || op.wait().map(drop))
        }),
        ("get of a range", |store| {
            let options = GetOptions {
                range: Some(100..200),
                ..GetOptions::default()
            };
            let op = begin(store.get(&key("k"), options));
            Box::new(move || op.wait().map(drop))
        }),
    ];
    for (name, call) in calls {
        let (sim, held) = (Sim::new(512, 1), Arc::new(Held::default()));
        sim.record(false);
        let backend = BetweenBackend::new(sim.backend(), &held);
        let store = Store::create_on(backend, PATH, options(4 * MIB)).expect("it is made");
        // So that its segment has nothing else in it.
        put(&store, "before", 1, 64 << 10);
        let described = PutOptions {
            attributes: Attributes::from([("name".to_owned(), "value".into())]),
            ..PutOptions::default()
        };
        let outcome = store.put(&key("k"), payload(2, 3000), described).wait();
        outcome.expect("it is put");
        put(&store, "after", 3, 64 << 10);
        held.expect(Transfer::Read, 0);
        let begun = call(&store);
        assert!(held.is_held(), "{name} reads nothing");
        let mut batch = Batch::new();
        for name in ["before", "k", "after"] {
            batch.delete(key(name));
        }
        store.batch(batch).wait().expect("they are deleted");
        churn(&store, 200);
        held.release();
        match begun() {
            Ok(())
            | Err(StorageError::NotFound { .. } | StorageError::PreconditionFailed { .. }) => {}
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

/// So it is for a scrub.
#[test]
fn space_is_not_used_again_under_a_scrub() {
    const BLOBS: u64 = 3;
    let name = |number| format!("blob {number}");
    for after in (0..).step_by(5) {
        let (sim, held) = (Sim::new(512, 1), Arc::new(Held::default()));
        sim.record(false);
        let backend = BetweenBackend::new(sim.backend(), &held);
        let store = Store::create_on(backend, PATH, options(4 * MIB)).expect("it is made");
        for number in 0..BLOBS {
            put(&store, &name(number), number, 200_000);
        }
        held.expect(Transfer::Read, after);
        // Then it looks around what is there, which nothing overtakes.
        let mut progress = |done: ScrubProgress| match done.keys < BLOBS {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        };
        let is_held = std::thread::scope(|scope| {
            let scrub = scope.spawn(|| store.scrub(&ScrubOptions::default(), &mut progress));
            let is_held = held.wait_unless(|| scrub.is_finished());
            if is_held {
                for number in 0..BLOBS {
                    let delete = store.delete(&key(&name(number)), DeleteOptions::default());
                    delete.wait().expect("it is deleted");
                }
                churn(&store, 100);
                held.release();
            }
            let report = scrub.join().expect("it ends").expect("it looks");
            assert!(
                report.findings.is_empty(),
                "read {after}: {:#?}",
                report.findings
            );
            is_held
        });
        if !is_held {
            assert!(after > 10);
            break;
        }
    }
}

/// While a checkpoint is being written, nothing is listed that is gone, and nothing twice.
#[test]
fn what_changes_beside_a_checkpoint_is_listed_as_it_is() {
    const BLOBS: usize = 30;
    let name = |number: usize| format!("blob {number:02}");
    for after in 0.. {
        let (sim, held) = (Sim::new(512, 1), Arc::new(Held::default()));
        sim.record(false);
        let backend = BetweenBackend::new(sim.backend(), &held);
        let store = Store::create_on(backend, PATH, options(4 * MIB)).expect("it is made");
        let listed = || {
            let list = store.list(ListRequest::default()).wait();
            let listed = list.expect("they are listed").blobs.into_iter();
            listed.map(|entry| entry.key).collect::<Vec<_>>()
        };
        for number in 0..BLOBS {
            put(&store, &name(number), 1, 100);
            // Some are in the checkpoint before.
            if number == BLOBS / 2 {
                store.checkpoint().expect("it is taken");
            }
        }
        let left = (0..BLOBS).filter(|number| number % 3 != 0);
        let left: Vec<_> = left.map(|number| key(&name(number))).collect();
        held.expect(Transfer::Write, after);
        let (is_held, beside) = std::thread::scope(|scope| {
            let checkpoint = scope.spawn(|| store.checkpoint());
            let is_held = held.wait_unless(|| checkpoint.is_finished());
            if is_held {
                for number in 0..BLOBS {
                    let name = name(number);
                    match number % 3 {
                        0 => {
                            let delete = store.delete(&key(&name), DeleteOptions::default());
                            assert!(delete.wait().expect("it is deleted").existed);
                        }
                        1 => drop(put(&store, &name, 2, 200)),
                        _ => {}
                    }
                }
            }
            let beside = listed();
            held.release();
            let outcome = checkpoint.join().expect("it ends");
            outcome.expect("it is taken");
            (is_held, beside)
        });
        if !is_held {
            assert!(after > 2);
            break;
        }
        assert_eq!(beside, left, "write {after}");
        assert_eq!(listed(), left, "write {after}");
        drop(store);
        let store = Store::open_on(sim.backend(), PATH, options(4 * MIB).open);
        assert_eq!(store.expect("it opens").info().blobs, left.len() as u64);
    }
}

/// A closed store says so, to every call: also `exists` does not take that for absence.
#[test]
fn a_closed_store_answers_nothing_else() {
    let (_sim, store) = new_store(1, 16 * MIB);
    put(&store, "k", 1, 1000);
    let store = Arc::new(store);
    let mut writer = store
        .put_stream(&key("new"), PutOptions::default())
        .expect("it is begun");
    writer.write("some").wait().expect("it is taken in");
    store.close().expect("it closes");
    let k = key("k");
    let mut batch = Batch::new();
    batch.put(k.clone(), "x");
    let outcomes = [
        (
            "put",
            store
                .put(&k, "x".into(), PutOptions::default())
                .wait()
                .map(drop),
        ),
        ("finish", writer.finish().wait().map(drop)),
        (
            "put_stream",
            store.put_stream(&k, PutOptions::default()).map(drop),
        ),
        ("get", store.get(&k, GetOptions::default()).wait().map(drop)),
        (
            "get_stream",
            store.get_stream(&k, GetOptions::default()).wait().map(drop),
        ),
        ("exists", store.exists(&k).wait().map(drop)),
        ("stat", store.stat(&k).wait().map(drop)),
        (
            "delete",
            store.delete(&k, DeleteOptions::default()).wait().map(drop),
        ),
        ("list", store.list(ListRequest::default()).wait().map(drop)),
        ("batch", store.batch(batch).wait().map(drop)),
        (
            "copy",
            store.copy(&k, &k, CopyOptions::default()).wait().map(drop),
        ),
        (
            "rename",
            store
                .rename(&k, &k, CopyOptions::default())
                .wait()
                .map(drop),
        ),
        ("flush", store.flush().wait()),
        ("checkpoint", store.checkpoint().map(drop)),
        ("compact", store.compact().map(drop)),
        ("step", store.step().map(drop)),
        ("verify", store.verify(&mut |_| {}).map(drop)),
    ];
    for (call, outcome) in outcomes {
        assert!(
            matches!(outcome, Err(StorageError::Closed)),
            "{call}: {outcome:?}"
        );
    }
    store.close().expect("closing again does nothing");
}

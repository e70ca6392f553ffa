//! Blobs that are filled range by range, in a store.

use bytes::Bytes;
use graviton_engine::io::sim::{Image, Loss, Random, Sim};
use graviton_engine::memory::MemoryStore;
use graviton_engine::port::{
    BinaryKey, BlobInfo, BlobStore, CopyOptions, DeleteOptions, Digest, DigestAlgorithm,
    Durability, ErrorKind, GetOptions, GetRangesOptions, Holes, MutableObjectStore, PastEnd,
    Precondition, PutOptions, PutRangeOptions, RangeSet, Span, StorageError, TrackOptions,
    TrackerError,
};
use graviton_engine::store::{Access, CreateOptions, GIB, KIB, MIB, OpenOptions, Store};
use graviton_format::Structure;
use graviton_format::frame::{FrameHeader, records_checksum};
use graviton_format::record::{RecordHeader, RecordKind, RecordView};
use graviton_format::superblock::Superblock;
use graviton_tests::{buffered, check_figures, create_options, memory_directory, number_from};

const PATH: &str = "/store";

fn key(name: &str) -> BinaryKey {
    BinaryKey::new(name).expect("a short key")
}

fn open_options() -> OpenOptions {
    OpenOptions {
        background: false,
        ..OpenOptions::default()
    }
}

fn new_store(sectors: u16) -> (Sim, Store) {
    let sim = Sim::new(512, 1);
    let options = CreateOptions {
        sectors,
        sector_size: 4 * MIB,
        segment_size: Some(64 * KIB),
        open: open_options(),
        ..CreateOptions::default()
    };
    let store = Store::create_on(sim.backend(), PATH, options);
    (sim, store.expect("it is made"))
}

fn get(store: &Store, name: &str, range: Span, holes: Holes) -> Result<Bytes, StorageError> {
    let options = GetOptions {
        range: Some(range.into()),
        holes,
        ..GetOptions::default()
    };
    store.get(&key(name), options).wait().map(|blob| blob.bytes)
}

/// It is one hole of 10 GiB.
fn check_hole(store: &Store, name: &str) {
    let size = 10 * GIB;
    let info = store.stat(&key(name)).wait().expect("it is there");
    assert_eq!(info.size, size);
    assert_eq!(info.missing, RangeSet::from(Span::first(size)));
    assert!(info.allocated < 1024, "{} bytes for a hole", info.allocated);
    let range = Span::at(8 * GIB - 10, 20).expect("it ends");
    match get(store, name, range, Holes::Refuse) {
        Err(StorageError::MissingRanges { missing, .. }) => assert_eq!(missing, range.into()),
        other => panic!("{other:?}"),
    }
    let zeros = get(store, name, range, Holes::Zeros).expect("it is read");
    assert_eq!(zeros, vec![0; 20]);
    let empty = get(store, name, Span::at(5, 0).expect("it ends"), Holes::Refuse);
    assert!(empty.expect("it is read").is_empty());
    let options = |holes| GetOptions {
        range: Some(0..3 * MIB),
        holes,
        ..GetOptions::default()
    };
    let refused = store.get_stream(&key(name), options(Holes::Refuse)).wait();
    let refused = refused.map(drop).expect_err("it has holes");
    assert_eq!(refused.kind(), ErrorKind::Incomplete);
    let stream = store.get_stream(&key(name), options(Holes::Zeros)).wait();
    let mut stream = stream.expect("it is read");
    let mut length = 0;
    while let Some(piece) = stream.next().wait().expect("it is read") {
        assert!(piece.iter().all(|&byte| byte == 0));
        length += piece.len() as u64;
    }
    assert_eq!(length, 3 * MIB);
}

#[test]
fn a_hole_costs_no_space_and_stays() {
    let (sim, store) = new_store(1);
    let create = |size, options| store.create_sparse(&key("hole"), size, options).wait();
    let made = create(10 * GIB, PutOptions::default()).expect("it is made");
    assert_eq!(made.size, 10 * GIB);
    check_hole(&store, "hole");
    let copied = store.copy(&key("hole"), &key("copy"), CopyOptions::default());
    copied.wait().expect("it is copied");
    check_hole(&store, "copy");

    let again = create(
        1,
        PutOptions {
            precondition: Precondition::IfAbsent,
            ..PutOptions::default()
        },
    );
    assert_eq!(
        again.err().map(|error| error.kind()),
        Some(ErrorKind::Conflict)
    );
    let declared = create(
        1,
        PutOptions {
            size: Some(1),
            ..PutOptions::default()
        },
    );
    assert_eq!(
        declared.err().map(|error| error.kind()),
        Some(ErrorKind::InvalidInput)
    );
    let huge = create(u64::MAX, PutOptions::default());
    assert!(
        matches!(huge, Err(StorageError::TooLarge { .. })),
        "{huge:?}"
    );
    create(0, PutOptions::default()).expect("an empty one is no hole");
    let empty = store.get(&key("hole"), GetOptions::default()).wait();
    assert!(empty.expect("it is read").bytes.is_empty());

    // Out of the log, and out of an image.
    for checkpoints in [false, true] {
        if checkpoints {
            store.checkpoint().expect("a checkpoint");
        }
        let sim = Sim::boot(&sim.image(), 512, 2);
        let store = Store::open_on(sim.backend(), PATH, open_options()).expect("it opens");
        check_hole(&store, "copy");
        let report = store.verify(&mut |_| {}).expect("it is verified");
        assert_eq!(report.findings, []);
    }
}

/// Of a blob what anybody can see, but for its version.
fn seen(store: &dyn BlobStore, key: &BinaryKey) -> Option<(BlobInfo, Bytes)> {
    let info = match store.stat(key).wait() {
        Ok(info) => info,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
            return None;
        }
    };
    let options = GetOptions {
        holes: Holes::Zeros,
        ..GetOptions::default()
    };
    let blob = store.get(key, options).wait().expect("it is read");
    Some((info, blob.bytes))
}

fn compare(store: &Store, model: &MemoryStore, keys: &[BinaryKey], what: &str) {
    for key in keys {
        match (seen(store, key), seen(model, key)) {
            (None, None) => {}
            (Some((found, bytes)), Some((expected, model))) => {
                assert_eq!(bytes, model, "{what}: {key}");
                assert_eq!(found.size, expected.size, "{what}: {key}");
                assert_eq!(found.missing, expected.missing, "{what}: {key}");
                assert_eq!(found.digests, expected.digests, "{what}: {key}");
                assert_eq!(found.attributes, expected.attributes, "{what}: {key}");
            }
            (found, expected) => panic!(
                "{what}: {key}: {:?}, expected {:?}",
                found.map(|(info, _)| info),
                expected.map(|(info, _)| info)
            ),
        }
    }
}

/// Some ranges at once are what the model says they are.
fn compare_ranges(store: &Store, model: &MemoryStore, key: &BinaryKey, random: &mut Random) {
    let ranges: Vec<Span> = (0..random.below(6))
        .map(|_| {
            let length = random.size(0, 3000) as u64;
            Span::at(random.below(30_000) as u64, length).expect("it ends")
        })
        .collect();
    let options = GetRangesOptions {
        gap: [0, 100, 32 << 10][random.below(3)],
        holes: *random.pick(&[Holes::Refuse, Holes::Zeros]),
        ..GetRangesOptions::default()
    };
    let found = store.get_ranges(key, &ranges, options.clone()).wait();
    let expected = model.get_ranges(key, &ranges, options).wait();
    match (found, expected) {
        (Ok(found), Ok(expected)) => {
            assert_eq!(found.pieces, expected.pieces, "{ranges:?}");
            assert_eq!(found.size, expected.size);
        }
        (
            Err(StorageError::MissingRanges { missing, .. }),
            Err(StorageError::MissingRanges {
                missing: expected, ..
            }),
        ) => assert_eq!(missing, expected, "{ranges:?}"),
        (found, expected) => same(found, expected, "ranges at once"),
    }
}

/// Both succeed, or both fail in the same way.
fn same<A, B>(store: Result<A, StorageError>, model: Result<B, StorageError>, what: &str) {
    let (store, model) = (
        store.map(drop).map_err(|error| error.kind()),
        model.map(drop).map_err(|error| error.kind()),
    );
    assert_eq!(store, model, "{what}");
}

/// A store, its model, and what happens to both.
struct Pair {
    sim: Sim,
    store: Store,
    model: MemoryStore,
    keys: Vec<BinaryKey>,
    random: Random,
    /// All is durable once it is done.
    durable: bool,
}

impl Pair {
    fn new(seed: u64, durable: bool) -> Self {
        let (sim, store) = new_store([1, 3][usize::from(seed % 2 == 1)]);
        let keys = (0..3).map(|number| key(&format!("key/{number}")));
        Self {
            sim,
            store,
            model: MemoryStore::default(),
            keys: keys.collect(),
            random: Random::new(seed),
            durable,
        }
    }

    fn step(&mut self, what: &str) {
        let Self {
            store,
            model,
            keys,
            random,
            ..
        } = self;
        let key = random.pick(keys).clone();
        match random.below(16) {
            0 => {
                let size = random.below(40_000) as u64;
                let made = store.create_sparse(&key, size, PutOptions::default());
                let expected = model.create_sparse(&key, size, PutOptions::default());
                same(made.wait(), expected.wait(), what);
            }
            1 => {
                let length = random.below(9000);
                let bytes = Bytes::from(random.bytes(length));
                let options = PutOptions {
                    digest: Some(Digest::of(DigestAlgorithm::Sha256, &bytes)),
                    attributes: [("name".to_owned(), Bytes::from("value"))].into(),
                    ..PutOptions::default()
                };
                let put = store.put(&key, bytes.clone(), options.clone());
                same(put.wait(), model.put(&key, bytes, options).wait(), what);
            }
            2 => {
                let target = random.pick(keys);
                let copied = store.copy(&key, target, CopyOptions::default());
                let expected = model.copy(&key, target, CopyOptions::default());
                same(copied.wait(), expected.wait(), what);
            }
            3 if random.one_in(3) => {
                let deleted = store.delete(&key, DeleteOptions::default());
                let expected = model.delete(&key, DeleteOptions::default());
                same(deleted.wait(), expected.wait(), what);
            }
            4 => drop(store.checkpoint().expect("a checkpoint")),
            7 | 8 => compare_ranges(store, model, &key, random),
            5 => drop(store.compact().expect("it is compacted")),
            _ => self.put_range(&key, what),
        }
        compare(&self.store, &self.model, &self.keys, what);
    }

    fn put_range(&mut self, key: &BinaryKey, what: &str) {
        let random = &mut self.random;
        let start = random.below(40_000) as u64;
        let length = match random.below(8) {
            0 => 0,
            1 | 2 => random.below(12_000),
            _ => random.below(300),
        };
        let range = Span::at(start, length as u64).expect("it ends");
        let bytes = Bytes::from(random.bytes(length));
        let past_ends = [PastEnd::Refuse, PastEnd::Extend, PastEnd::Sparse];
        let durability = match self.durable || random.one_in(2) {
            true => Durability::Durable,
            false => Durability::Written,
        };
        let options = PutRangeOptions {
            past_end: *random.pick(&past_ends),
            durability,
            ..PutRangeOptions::default()
        };
        let put = self
            .store
            .put_range(key, range, bytes.clone(), options.clone());
        let expected = self.model.put_range(key, range, bytes, options);
        same(put.wait(), expected.wait(), what);
    }

    /// The store is killed and opened again.
    fn reopen(&mut self) {
        let sim = Sim::boot(&self.sim.image(), 512, self.random.number());
        let store = Store::open_on(sim.backend(), PATH, open_options());
        self.store = store.expect("it opens");
        self.sim = sim;
    }

    fn check(&self, what: &str) {
        compare(&self.store, &self.model, &self.keys, what);
        let report = self.store.verify(&mut |_| {}).expect("it is verified");
        assert_eq!(report.findings, [], "{what}");
        check_figures(&self.store);
    }
}

fn history(seed: u64) {
    let mut pair = Pair::new(seed, false);
    for step in 0..60 {
        let what = format!("seed {seed}, step {step}");
        match pair.random.one_in(16) {
            true => pair.reopen(),
            false => pair.step(&what),
        }
        compare(&pair.store, &pair.model, &pair.keys, &what);
    }
    pair.check(&format!("seed {seed}"));
}

type Seen = Vec<Option<(RangeSet, Bytes)>>;

fn all_seen(store: &dyn BlobStore, keys: &[BinaryKey]) -> Seen {
    let seen = keys.iter().map(|key| seen(store, key));
    seen.map(|seen| seen.map(|(info, bytes)| (info.missing, bytes)))
        .collect()
}

/// The power fails at any moment: what was acknowledged is there, and of what was under way all or
/// nothing.
fn power_losses(seed: u64) {
    let mut pair = Pair::new(seed, true);
    let mut states: Vec<(usize, Seen)> = vec![(0, vec![None; pair.keys.len()])];
    for step in 0..25 {
        pair.step(&format!("seed {seed}, step {step}"));
        states.push((pair.sim.position(), all_seen(&pair.model, &pair.keys)));
    }
    let created = states[0].0;
    for _ in 0..20 {
        let mut crasher = pair.sim.crasher();
        let moment = created + pair.random.below(crasher.events() + 1 - created);
        crasher.advance(moment);
        let loss = Loss::Random(pair.random.number());
        let sim = Sim::boot(&crasher.image(loss), 512, seed);
        let store = match Store::open_on(sim.backend(), PATH, open_options()) {
            Ok(store) => store,
            // The store was still being made.
            Err(_) if moment < states[1].0 => continue,
            Err(error) => panic!("seed {seed}, moment {moment}, {loss:?}: {error}"),
        };
        let found = all_seen(&store, &pair.keys);
        let done = states.partition_point(|(position, _)| *position <= moment);
        let may = &states[done - 1..states.len().min(done + 1)];
        assert!(
            may.iter().any(|(_, state)| *state == found),
            "seed {seed}, moment {moment}, {loss:?}: not as after step {} or {done}",
            done - 1
        );
        let report = store.verify(&mut |_| {}).expect("it is verified");
        assert_eq!(report.findings, [], "seed {seed}, moment {moment}");
    }
}

#[test]
fn ranges_that_are_put_survive_power_losses() {
    let seeds = number_from("GRAVITON_SEEDS").unwrap_or(60);
    (0..seeds).for_each(power_losses);
}

#[test]
fn ranges_that_are_put_agree_with_the_model() {
    let seeds = number_from("GRAVITON_SEEDS").unwrap_or(60);
    (0..seeds).for_each(history);
}

/// Two ranges far from each other are read, however large the gap that may be read with them.
#[test]
fn what_is_read_does_not_follow_the_gap() {
    let (_sim, store) = new_store(1);
    let name = key("hole");
    let made = store.create_sparse(&name, 10 * GIB, PutOptions::default());
    made.wait().expect("it is made");
    let ranges = [0, 10 * GIB - 10].map(|start| Span::at(start, 10).expect("it ends"));
    for gap in [0, u64::MAX] {
        let options = GetRangesOptions {
            holes: Holes::Zeros,
            gap,
            ..GetRangesOptions::default()
        };
        let found = store.get_ranges(&name, &ranges, options).wait();
        let zeros = Bytes::from_static(&[0; 10]);
        assert_eq!(found.expect("it is read").pieces, [zeros.clone(), zeros]);
    }
}

/// Many ranges wait for one frame: each is put into what the one before it left.
#[test]
fn ranges_that_share_a_frame() {
    let (_sim, store) = new_store(1);
    let name = key("key");
    let made = store.create_sparse(&name, 1000, PutOptions::default());
    made.wait().expect("it is made");
    let puts: Vec<_> = (0..100_u8)
        .map(|number| {
            let range = Span::at(u64::from(number) * 10, 10).expect("it ends");
            let bytes = vec![number; 10].into();
            store.put_range(&name, range, bytes, PutRangeOptions::default())
        })
        .collect();
    let mut versions: Vec<u64> = puts
        .into_iter()
        .map(|put| put.wait().expect("it is put").version)
        .collect();
    versions.dedup();
    assert_eq!(versions.len(), 100);
    let blob = store.get(&name, GetOptions::default()).wait();
    let expected: Vec<u8> = (0..100_u8).flat_map(|number| [number; 10]).collect();
    assert_eq!(blob.expect("it is read").bytes, expected);
}

/// However many small ranges are put, a blob does not fall into more pieces than its size allows; its
/// versions are those of the puts, and what is read is what was put.
#[test]
fn fragments_are_merged() {
    const SIZE: usize = 1 << 20;
    // A 256th of a segment, of which some goes for headers, grants one more.
    let most = 256 + SIZE / 4000 + 2;
    for seed in 0..2 {
        let sim = Sim::new(512, seed);
        sim.record(false);
        let options = CreateOptions {
            sectors: 1 + 2 * u16::try_from(seed).expect("small"),
            sector_size: 32 * MIB,
            segment_size: Some(MIB),
            open: open_options(),
            ..CreateOptions::default()
        };
        let mut store = Store::create_on(sim.backend(), PATH, options).expect("it is made");
        let mut random = Random::new(seed);
        let mut model = random.bytes(SIZE);
        let name = key("key");
        let digest = Digest::of(DigestAlgorithm::Blake3, &model);
        let options = PutOptions {
            digest: Some(digest),
            ..PutOptions::default()
        };
        let put = store.put(&name, model.clone().into(), options);
        let mut last = put.wait().expect("it is put").version;
        let mut fewest_seen = usize::MAX;
        for round in 0..3000 {
            let length = 1 + random.below(40);
            let start = random.below(SIZE - length);
            let bytes = random.bytes(length);
            model[start..start + length].copy_from_slice(&bytes);
            let range = Span::at(start as u64, length as u64).expect("it ends");
            let options = PutRangeOptions {
                durability: Durability::Written,
                ..PutRangeOptions::default()
            };
            let put = store.put_range(&name, range, bytes.into(), options).wait();
            let version = put.expect("it is put").version;
            assert!(version > last);
            last = version;
            let info = store.stat(&name).wait().expect("it is there");
            assert!(info.fragments <= most, "{} pieces", info.fragments);
            assert_eq!(info.version, last);
            if round > 1000 {
                fewest_seen = fewest_seen.min(info.fragments);
            }
            if round % 500 == 499 {
                match random.below(3) {
                    0 => drop(store.checkpoint().expect("a checkpoint")),
                    1 => drop(store.compact().expect("it is compacted")),
                    _ => {}
                }
                let sim = Sim::boot(&sim.image(), 512, random.number());
                let again = Store::open_on(sim.backend(), PATH, open_options());
                let again = again.expect("it opens");
                let found = again.get(&name, GetOptions::default()).wait();
                assert!(found.expect("it is read").bytes == model);
                assert_eq!(again.stat(&name).wait().expect("it is there").version, last);
                let report = again.verify(&mut |_| {}).expect("it is verified");
                assert_eq!(report.findings, []);
            }
            while round % 50 == 0 && store.step().expect("it is tidied up") {}
        }
        assert!(fewest_seen < most - 20, "nothing was merged");
        store.close().expect("it closes");
        store = Store::open_on(sim.backend(), PATH, open_options()).expect("it opens");
        let found = store.get(&name, GetOptions::default()).wait();
        assert!(found.expect("it is read").bytes == model);
        let report = store.verify(&mut |_| {}).expect("it is verified");
        assert_eq!(report.findings, []);
        check_figures(&store);
    }
}

/// Ranges are put while fragments around them are being merged: none is lost.
#[test]
fn fragments_are_merged_beside_puts() {
    const THREADS: usize = 4;
    const STRIPE: usize = 16;
    let directory = memory_directory();
    let options = CreateOptions {
        open: OpenOptions {
            merge_above: 8,
            ..create_options(&buffered(), 1, 64 * MIB).open
        },
        ..create_options(&buffered(), 1, 64 * MIB)
    };
    let store = Store::create(directory.path().join("store"), options).expect("it is made");
    let name = key("key");
    let size = THREADS * STRIPE * 8;
    let put = store.put(&name, vec![0; size].into(), PutOptions::default());
    put.wait().expect("it is put");
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (store, name) = (&store, &name);
            // Each has stripes of its own, side by side with those of the others.
            scope.spawn(move || {
                let mut own = [0_u8; 8];
                let mut random = Random::new(thread as u64);
                for round in 1..=400_u32 {
                    let stripe = random.below(8);
                    let start = (stripe * THREADS + thread) * STRIPE;
                    let byte = round.to_le_bytes()[0];
                    let range = Span::at(start as u64, STRIPE as u64).expect("it ends");
                    let options = PutRangeOptions {
                        durability: Durability::Written,
                        ..PutRangeOptions::default()
                    };
                    let put = store.put_range(name, range, vec![byte; STRIPE].into(), options);
                    put.wait().expect("it is put");
                    own[stripe] = byte;
                    let blob = store.get(name, GetOptions::default()).wait();
                    let bytes = blob.expect("it is read").bytes;
                    for (stripe, byte) in own.iter().enumerate() {
                        let start = (stripe * THREADS + thread) * STRIPE;
                        let found = &bytes[start..start + STRIPE];
                        assert_eq!(found, [*byte; STRIPE], "round {round}, stripe {stripe}");
                    }
                }
            });
        }
    });
    let info = store.stat(&name).wait().expect("it is there");
    assert!(info.fragments < THREADS * 8, "{} pieces", info.fragments);
    let report = store.verify(&mut |_| {}).expect("it is verified");
    assert_eq!(report.findings, []);
}

/// Where few pieces are allowed, they are merged before there are too many; and holes that lie side by
/// side are one.
#[test]
fn few_pieces_are_enough() {
    let sim = Sim::new(512, 1);
    let options = CreateOptions {
        sector_size: 16 * MIB,
        open: OpenOptions {
            max_fragments: 30,
            ..open_options()
        },
        ..CreateOptions::default()
    };
    let store = Store::create_on(sim.backend(), PATH, options).expect("it is made");
    let name = key("key");
    // Larger than what merges take away, and of more pieces to begin with than are allowed.
    let mut model = vec![1; 4_000_000];
    let put = store.put(&name, model.clone().into(), PutOptions::default());
    put.wait().expect("it is put");
    let mut random = Random::new(1);
    for byte in 0..200_u8 {
        let start = random.below(5000);
        let range = Span::at(start as u64, 10).expect("it ends");
        let put = store.put_range(
            &name,
            range,
            vec![byte; 10].into(),
            PutRangeOptions::default(),
        );
        put.wait().expect("it is put");
        model[start..start + 10].fill(byte);
    }
    let blob = store.get(&name, GetOptions::default()).wait();
    assert!(blob.expect("it is read").bytes == model);
    // Block by block.
    let tracker = store.ranges();
    for number in 0..1000 {
        let now = tracker.get_completed(&name).wait().expect("it is there");
        let mut update = now.set.clone();
        update.remove(Span::at(1_000_000 + number * 100, 100).expect("it ends"));
        let set = tracker.compare_and_set(&name, now.into(), &update, TrackOptions::default());
        set.wait().expect("it is taken away");
    }
    let info = store.stat(&name).wait().expect("it is there");
    assert_eq!(info.missing.to_string(), "1000000..1100000");
    let range = Span::at(1_000_000, 100_000).expect("it ends");
    let put = store.put_range(
        &name,
        range,
        vec![7; 100_000].into(),
        PutRangeOptions::default(),
    );
    put.wait().expect("it is put");
    let report = store.verify(&mut |_| {}).expect("it is verified");
    assert_eq!(report.findings, []);
}

/// Ranges are taken away from a blob while its fragments are being merged.
#[test]
fn ranges_are_erased_beside_merges() {
    const STRIPE: u64 = 16;
    let directory = memory_directory();
    let mut options = create_options(&buffered(), 1, 64 * MIB);
    options.open.merge_above = 8;
    let open = options.open.clone();
    let path = directory.path().join("store");
    let store = Store::create(&path, options).expect("it is made");
    let name = key("key");
    let put = store.put(&name, vec![0; 2048].into(), PutOptions::default());
    put.wait().expect("it is put");
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (store, name) = (&store, &name);
            scope.spawn(move || {
                let mut random = Random::new(thread);
                for _ in 0..300 {
                    let start = random.below(100) as u64 * STRIPE;
                    let range = Span::at(start, STRIPE).expect("it ends");
                    let bytes = vec![1; 16].into();
                    let options = PutRangeOptions {
                        durability: Durability::Written,
                        ..PutRangeOptions::default()
                    };
                    let put = store.put_range(name, range, bytes, options);
                    put.wait().expect("it is put");
                }
            });
        }
        let (store, name) = (&store, &name);
        scope.spawn(move || {
            let tracker = store.ranges();
            let mut random = Random::new(9);
            for _ in 0..300 {
                let now = tracker.get_completed(name).wait().expect("it is there");
                let mut update = now.set.clone();
                for _ in 0..2 {
                    let start = random.below(2000) as u64;
                    update.remove(Span::at(start, 20).expect("it ends"));
                }
                let options = TrackOptions {
                    durability: Durability::Written,
                    ..TrackOptions::default()
                };
                match tracker
                    .compare_and_set(name, now.into(), &update, options)
                    .wait()
                {
                    Ok(_) | Err(TrackerError::Mismatch { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
    });
    let expected = get(&store, "key", Span::first(2048), Holes::Zeros).expect("it is read");
    let missing = store.stat(&name).wait().expect("it is there").missing;
    let report = store.verify(&mut |_| {}).expect("it is verified");
    assert_eq!(report.findings, []);
    check_figures(&store);
    drop(store);
    let store = Store::open_with(&path, open).expect("it opens");
    let found = get(&store, "key", Span::first(2048), Holes::Zeros).expect("it is read");
    assert!(found == expected);
    assert_eq!(
        store.stat(&name).wait().expect("it is there").missing,
        missing
    );
}

/// What can't be merged, for there are holes between, is refused before it is too much.
#[test]
fn a_blob_has_only_so_many_pieces() {
    let sim = Sim::new(512, 1);
    let options = CreateOptions {
        sector_size: 4 * MIB,
        open: OpenOptions {
            max_fragments: 100,
            ..open_options()
        },
        ..CreateOptions::default()
    };
    let store = Store::create_on(sim.backend(), PATH, options).expect("it is made");
    let name = key("key");
    let made = store.create_sparse(&name, 10_000, PutOptions::default());
    made.wait().expect("it is made");
    let put = |number: u64| {
        let range = Span::at(number * 20, 10).expect("it ends");
        let bytes = vec![7; 10].into();
        store
            .put_range(&name, range, bytes, PutRangeOptions::default())
            .wait()
    };
    let refused = (0..100).map(put).find_map(Result::err);
    match refused {
        Some(error @ StorageError::TooFragmented { limit, .. }) => {
            assert!((100..110).contains(&limit), "{limit}");
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
        other => panic!("{other:?}"),
    }
    put(0).expect("it is no more of them");
    put(99).expect_err("it is full of pieces");
    let nothing = Span::at(5005, 0).expect("it ends");
    let empty = store.put_range(&name, nothing, Bytes::new(), PutRangeOptions::default());
    empty.wait().expect("an empty range is no piece");
    let all_but_one = Span::new(1, 10_000).expect("it ends");
    let bytes = vec![1; 9_999].into();
    let filled = store.put_range(&name, all_but_one, bytes, PutRangeOptions::default());
    filled.wait().expect("it makes fewer");
}

/// Makes the last range in the log one of another version than it was put into, checksums and all.
fn forge_base(image: &mut Image, size: usize, base: u64) {
    let mut bytes = vec![0; size];
    image.read(0, 0, &mut bytes);
    let superblock = Superblock::decode(&bytes, 0).expect("a superblock");
    let (identity, geometry) = (superblock.identity(), superblock.geometry());
    let blocks = (0..size).step_by(geometry.block_size as usize);
    let ranges = blocks.filter_map(|at| {
        let header = FrameHeader::decode(&bytes[at..], &identity, &geometry, at as u64).ok()?;
        let start = at + FrameHeader::SIZE;
        let view = RecordView::decode(&bytes[start..], &identity, &geometry, start as u64).ok()?;
        let end = start + view.payload_offset();
        let was = view.change?.base;
        (view.kind == RecordKind::Range).then_some((header, at, start, end, was))
    });
    let (mut header, at, start, end, was) = ranges
        .max_by_key(|(header, ..)| header.lsn.get())
        .expect("a range was put");
    assert_eq!(header.records, 1);
    let head = &mut bytes[start..end];
    let fixed = size_of::<RecordHeader>();
    let mut places = head[fixed..]
        .windows(8)
        .map(|bytes| bytes == was.to_le_bytes());
    let place = fixed + places.position(|is_it| is_it).expect("it names its base");
    head[place..place + 8].copy_from_slice(&base.to_le_bytes());
    let checksum = identity.header_checksum(start as u64, &[&head[4..]]);
    head[..4].copy_from_slice(&checksum.to_le_bytes());
    image.edit(0, start, head);
    header.records_checksum = records_checksum([checksum].into_iter()).into();
    image.edit(0, at, header.sealed(&identity, at as u64).bytes());
}

/// A range goes into the version that it names, and into no other one.
#[test]
fn a_range_of_a_version_that_is_not_there() {
    let (sim, store) = new_store(1);
    let name = key("key");
    let put = |byte| {
        let bytes = Bytes::from(vec![byte; 1000]);
        let put = store.put(&name, bytes, PutOptions::default()).wait();
        put.expect("it is put").version
    };
    let (older, newer) = (put(1), put(2));
    let range = Span::at(10, 20).expect("it ends");
    let bytes = Bytes::from(vec![3; 20]);
    let put = store.put_range(&name, range, bytes, PutRangeOptions::default());
    put.wait().expect("it is put");
    let size = usize::try_from(4 * MIB).expect("a small sector");
    let open = |base, access| {
        let mut image = sim.image();
        forge_base(&mut image, size, base);
        let options = OpenOptions {
            access,
            ..open_options()
        };
        Store::open_on(Sim::boot(&image, 512, 1).backend(), PATH, options)
    };
    open(newer, Access::ReadWrite).expect("nothing was changed");
    match open(older, Access::ReadWrite) {
        Err(error @ StorageError::Corruption { .. }) => {
            assert!(error.to_string().contains("[F-59]"), "{error}");
        }
        other => panic!("{:?}", other.map(drop)),
    }
    let salvaged = open(older, Access::Salvage).expect("it is salvaged");
    let found = salvaged.get(&name, GetOptions::default()).wait();
    assert_eq!(found.expect("it is read").bytes, vec![2; 1000]);
    assert!(!salvaged.info().health.is_empty());
}

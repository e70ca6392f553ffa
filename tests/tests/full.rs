//! Stores filled to the last byte: what does not fit is refused and leaves nothing behind, what is
//! there can be read and deleted, and the room of what was deleted is there again.

use std::path::PathBuf;
use std::sync::Arc;

use graviton_engine::io::BackendChoice;
use graviton_engine::io::sim::Sim;
use graviton_engine::port::{
    Batch, BinaryKey, BlobStore, CopyOptions, DeleteOptions, Durability, GetOptions, PutOptions,
    StorageError,
};
use graviton_engine::store::{CreateOptions, MIB, OpenOptions, Store};
use graviton_engine::testing::{Contents, contents_of};
use graviton_tests::history::difference;
use graviton_tests::random::payload;
use graviton_tests::{check_figures, create_options, io, put_options, test_directory};
use tempfile::TempDir;

/// Where stores are made and opened.
enum Ground {
    Simulated(Sim, CreateOptions),
    Real(TempDir, CreateOptions),
}

impl Ground {
    fn simulated(sectors: u16, background: bool) -> Self {
        Self::simulated_of(16 * MIB, sectors, background)
    }

    fn simulated_of(sector_size: u64, sectors: u16, background: bool) -> Self {
        let sim = Sim::new(4096, 1);
        sim.record(false);
        let options = CreateOptions {
            sectors,
            sector_size,
            open: OpenOptions {
                background,
                ..OpenOptions::default()
            },
            ..CreateOptions::default()
        };
        Self::Simulated(sim, options)
    }

    fn path(directory: &TempDir) -> PathBuf {
        directory.path().join("store")
    }

    fn create(&self) -> Full {
        let store = match self {
            Self::Simulated(sim, options) => {
                Store::create_on(sim.backend(), "/store", options.clone())
            }
            Self::Real(directory, options) => Store::create(Self::path(directory), options.clone()),
        };
        Full {
            store: Arc::new(store.expect("it is made")),
            contents: Contents::new(),
            next: 0,
        }
    }

    fn reopen(&self, full: &mut Full) {
        full.store.close().expect("it closes");
        let store = match self {
            Self::Simulated(sim, options) => {
                Store::open_on(sim.backend(), "/store", options.open.clone())
            }
            Self::Real(directory, options) => {
                Store::open_with(Self::path(directory), options.open.clone())
            }
        };
        full.store = Arc::new(store.expect("a full store opens"));
    }
}

/// A store and what it should hold.
struct Full {
    store: Arc<Store>,
    contents: Contents,
    next: u64,
}

fn no_space(error: &StorageError) {
    match error {
        StorageError::NoSpace { needed, available } => assert!(
            needed > available,
            "{needed} needed, {available} available: it would fit"
        ),
        other => panic!("expected NoSpace: {other}"),
    }
}

impl Full {
    fn key(&mut self) -> BinaryKey {
        self.next += 1;
        BinaryKey::new(format!("blob-{:08}", self.next)).expect("a short key")
    }

    /// Puts a blob if there is room.
    fn put(&mut self, size: usize) -> bool {
        self.put_many(size, 1)
    }

    /// Puts blobs of which `many` are under way at once; tells whether all fitted.
    fn put_many(&mut self, size: usize, many: u64) -> bool {
        let durability = if self.next.is_multiple_of(8) {
            Durability::Durable
        } else {
            Durability::Written
        };
        let options = put_options(durability);
        let begun: Vec<_> = (0..many)
            .map(|_| {
                let (key, blob) = (self.key(), payload(self.next, size));
                let op = self.store.put(&key, blob.clone(), options.clone());
                (key, blob, op)
            })
            .collect();
        let before = self.contents.len();
        for (key, blob, op) in begun {
            match op.wait() {
                Ok(_) => drop(self.contents.insert(key, blob.into())),
                Err(error) => no_space(&error),
            }
        }
        self.contents.len() - before == usize::try_from(many).expect("few")
    }

    /// Puts blobs until none fits any more, smaller ones at the end. Returns how many bytes fitted.
    fn fill(&mut self, mut size: usize) -> usize {
        let before = self.bytes();
        let many = (100_000 / size as u64).clamp(1, 200);
        loop {
            if !self.put_many(size, many) {
                size /= 4;
                if size < 100 {
                    break;
                }
            }
        }
        check_figures(&self.store);
        self.bytes() - before
    }

    fn bytes(&self) -> usize {
        self.contents.values().map(|held| held.bytes.len()).sum()
    }

    /// Deletes every `n`-th blob: that must always be possible.
    fn delete_every(&mut self, n: usize) {
        let keys: Vec<BinaryKey> = self.contents.keys().step_by(n).cloned().collect();
        for key in keys {
            let outcome = self.store.delete(&key, DeleteOptions::default()).wait();
            assert!(outcome.expect("deletes need no room").existed);
            self.contents.remove(&key);
        }
        check_figures(&self.store);
    }

    fn check(&self) {
        let found = contents_of(&*self.store).expect("it can be read");
        assert!(
            found == self.contents,
            "{}",
            difference(&self.contents, &found)
        );
        let report = self.store.verify(&mut |_| {}).expect("it is verified");
        assert!(report.findings.is_empty(), "{:#?}", report.findings);
        check_figures(&self.store);
    }
}

/// Fills, deletes, fills again, several times, reopened in between.
fn fill_and_delete(ground: &Ground, size: usize) {
    let mut full = ground.create();
    let first = full.fill(size);
    let space = full.store.info().space;
    assert!(
        space.live > space.total / 2,
        "only {first} bytes fitted in blobs of {size}: {space:?}"
    );
    full.check();
    for round in 0..4 {
        let before = full.bytes();
        full.delete_every(2);
        let deleted = before - full.bytes();
        if round % 2 == 0 {
            ground.reopen(&mut full);
        }
        let again = full.fill(size);
        assert!(
            again > deleted / 10 * 9,
            "round {round}: {deleted} bytes of blobs of {size} deleted, room for {again}"
        );
        full.check();
    }
    full.delete_every(1);
    let again = full.fill(size);
    assert!(again > first / 10 * 9, "{again} fit where {first} did");
    ground.reopen(&mut full);
    full.check();
    full.store.compact().expect("a full store is compacted");
    full.store.checkpoint().expect("and checkpointed");
    full.check();
}

#[test]
fn tiny_blobs() {
    fill_and_delete(&Ground::simulated_of(6 * MIB, 1, true), 100);
}

#[test]
fn small_blobs() {
    fill_and_delete(&Ground::simulated(1, true), 4000);
}

#[test]
fn blobs_of_several_extents() {
    fill_and_delete(&Ground::simulated(1, true), 300_000);
}

#[test]
fn blobs_larger_than_a_segment_and_no_background_thread() {
    fill_and_delete(&Ground::simulated(1, false), 700_000);
}

#[test]
fn small_blobs_over_three_sectors_and_no_background_thread() {
    fill_and_delete(&Ground::simulated(3, false), 20_000);
}

#[test]
fn over_io_uring() {
    let Some(io) = io(BackendChoice::Uring) else {
        return;
    };
    let options = create_options(&io, 1, 16 * MIB);
    fill_and_delete(&Ground::Real(test_directory(), options), 50_000);
}

/// Streams of unknown length find out when it is too late; their room comes back at once.
#[test]
fn streams() {
    let ground = Ground::simulated(1, true);
    let mut full = ground.create();
    for _ in 0..6 {
        let key = full.key();
        let mut writer = full
            .store
            .put_stream(&key, PutOptions::default())
            .expect("there is room to begin");
        let mut taken = 0_u64;
        let error = loop {
            match writer.write(payload(taken, 100_000)).wait() {
                Ok(()) => taken += 100_000,
                Err(error) => break error,
            }
        };
        no_space(&error);
        assert!(taken > 8 * MIB, "only {taken} bytes fitted");
        no_space(&writer.finish().wait().expect_err("it failed before"));
        full.check();
    }
    // One that fits.
    let key = full.key();
    let blob = payload(1, 9 << 20);
    let mut writer = full
        .store
        .put_stream(&key, PutOptions::default())
        .expect("there is room to begin");
    for start in (0..blob.len()).step_by(1 << 20) {
        let piece = blob.slice(start..blob.len().min(start + (1 << 20)));
        writer.write(piece).wait().expect("there is room again");
    }
    writer.finish().wait().expect("there is room again");
    full.contents.insert(key, blob.into());
    full.check();
}

/// A size that is known beforehand is refused before anything is written.
#[test]
fn declared_sizes() {
    let ground = Ground::simulated(1, true);
    let mut full = ground.create();
    full.fill(100_000);
    let lsn = full.store.info().lsn;
    let key = full.key();
    let options = PutOptions {
        size: Some(8 * MIB),
        ..PutOptions::default()
    };
    no_space(&full.store.put_stream(&key, options).expect_err("no room"));
    let outcome = full
        .store
        .put(&key, payload(1, 4 << 20), PutOptions::default());
    no_space(&outcome.wait().expect_err("no room"));
    assert_eq!(full.store.info().lsn, lsn, "something was written");
    full.check();
}

/// Nothing of a batch that does not fit happens, not even its deletes.
#[test]
fn batches() {
    for background in [true, false] {
        let ground = Ground::simulated(1, background);
        let mut full = ground.create();
        full.fill(200_000);
        for count in [1_u64, 3, 40, 400] {
            let mut batch = Batch::new();
            let first = full.contents.keys().next().cloned().expect("it is full");
            batch.delete(first);
            for number in 0..count {
                batch.put(full.key(), payload(number, 2 << 20 >> count.ilog2()));
            }
            no_space(&full.store.batch(batch).wait().expect_err("no room"));
            full.check();
        }
        // Of deletes alone everything happens.
        let mut batch = Batch::new();
        for key in full.contents.keys() {
            batch.delete(key.clone());
        }
        full.store
            .batch(batch)
            .wait()
            .expect("deletes need no room");
        full.contents.clear();
        full.check();
        assert!(full.fill(200_000) > 8 << 20);
        full.check();
    }
}

/// Copies and renames need little; they are refused like puts when even that is not there.
#[test]
fn copies() {
    let ground = Ground::simulated(1, true);
    let mut full = ground.create();
    full.fill(50_000);
    let source = full.contents.keys().next().cloned().expect("it is full");
    let mut copied = 0;
    for round in 0..20_000 {
        let target = full.key();
        let outcome = full
            .store
            .copy(&source, &target, CopyOptions::default())
            .wait();
        match outcome {
            Ok(_) => {
                let blob = full.contents[&source].clone();
                full.contents.insert(target, blob);
                copied += 1;
            }
            Err(error) => {
                no_space(&error);
                break;
            }
        }
        assert!(round < 19_999, "there is no end to it");
    }
    full.check();
    let target = full.key();
    match full
        .store
        .rename(&source, &target, CopyOptions::default())
        .wait()
    {
        Ok(_) => {
            let blob = full.contents.remove(&source).expect("it was there");
            full.contents.insert(target, blob);
        }
        Err(error) => no_space(&error),
    }
    full.check();
    eprintln!("{copied} copies fitted in a full store");
    full.delete_every(2);
    assert!(full.put(50_000));
    full.check();
}

/// What is being read stays where it is, and is not what puts wait for without end.
#[test]
fn readers() {
    let ground = Ground::simulated(1, true);
    let mut full = ground.create();
    let size = 2 << 20;
    while full.put(size) {}
    let before = full.contents.clone();
    let mut readers = Vec::new();
    for key in before.keys() {
        let mut reader = full
            .store
            .get_stream(key, GetOptions::default())
            .wait()
            .expect("it is there");
        let piece = reader.next().wait().expect("it can be read");
        readers.push((
            key.clone(),
            reader,
            piece.expect("it is not empty").to_vec(),
        ));
    }
    full.delete_every(1);
    // Room or not: an answer comes.
    let blobs = (0..4).filter(|_| full.put(size)).count();
    eprintln!("{blobs} blobs fitted while all was being read");
    for (key, mut reader, mut bytes) in readers {
        while let Some(piece) = reader.next().wait().expect("it can still be read") {
            bytes.extend_from_slice(&piece);
        }
        assert!(before[&key].bytes == bytes, "{key} has other bytes");
    }
    assert!(
        full.fill(size) > 8 << 20,
        "the room of what was read is there"
    );
    full.check();
}

/// What is compacted is free, also for whoever opens the store next, and stays as it is.
#[test]
fn compaction_comes_to_rest() {
    let ground = Ground::simulated(1, false);
    let mut full = ground.create();
    for _ in 0..120 {
        assert!(full.put(60_000));
    }
    full.delete_every(2);
    let report = full.store.compact().expect("it is compacted");
    assert!(report.segments > 10, "{report:?}");
    ground.reopen(&mut full);
    let space = full.store.info().space;
    assert!(space.garbage < space.total / 20, "{space:?}");
    let report = full.store.compact().expect("it is compacted again");
    assert!(report.segments <= 2, "{report:?}");
    full.check();
}

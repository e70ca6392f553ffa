//! Churn: a store filled to 80 % takes overwrites and deletes worth ten times its capacity, and its
//! figures add up all along.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use graviton_engine::io::BackendChoice;
use graviton_engine::io::sim::Sim;
use graviton_engine::port::{
    BinaryKey, BlobStore, DeleteOptions, Durability, GetOptions, StorageError,
};
use graviton_engine::store::{CreateOptions, MIB, OpenOptions, Store};
use graviton_tests::random::{Random, payload};
use graviton_tests::{check_figures, create_options, io, put_options, test_directory};

const LEAST: usize = 100;
const MOST: usize = 300 << 10;

fn verify(store: &Store) {
    let report = store.verify(&mut |_| {}).expect("it is verified");
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
}

/// One writer with keys of its own, and what the store should hold of them.
struct Writer {
    name: usize,
    random: Random,
    /// Seed and size of each blob.
    blobs: BTreeMap<u64, (u64, usize)>,
    keys: Vec<u64>,
    next: u64,
    bytes: usize,
    written: usize,
}

impl Writer {
    fn new(name: usize) -> Self {
        Self {
            name,
            random: Random::new(name as u64),
            blobs: BTreeMap::new(),
            keys: Vec::new(),
            next: 0,
            bytes: 0,
            written: 0,
        }
    }

    fn key(&self, number: u64) -> BinaryKey {
        BinaryKey::new(format!("writer-{}/blob-{number:08}", self.name)).expect("a short key")
    }

    fn put(&mut self, store: &Store, number: u64) -> Result<(), StorageError> {
        let size = self.random.size(LEAST, MOST);
        let seed = self.random.number();
        let durability = if self.random.one_in(16) {
            Durability::Durable
        } else {
            Durability::Written
        };
        store
            .put(
                &self.key(number),
                payload(seed, size),
                put_options(durability),
            )
            .wait()?;
        self.written += size;
        self.bytes += size;
        match self.blobs.insert(number, (seed, size)) {
            Some((_, old)) => self.bytes -= old,
            None => self.keys.push(number),
        }
        Ok(())
    }

    fn delete_any(&mut self, store: &Store) -> Result<(), StorageError> {
        let at = self.random.below(self.keys.len());
        let number = self.keys.swap_remove(at);
        let options = DeleteOptions {
            durability: Durability::Written,
            strict: true,
            ..DeleteOptions::default()
        };
        store.delete(&self.key(number), options).wait()?;
        if let Some((_, size)) = self.blobs.remove(&number) {
            self.bytes -= size;
        }
        Ok(())
    }

    fn fill(&mut self, store: &Store, target: usize) {
        while self.bytes < target {
            self.next += 1;
            if let Err(error) = self.put(store, self.next) {
                panic!(
                    "at {} of {target}: {error}\n{:#?}",
                    self.bytes,
                    store.info()
                );
            }
        }
    }

    /// Overwrites and deletes, so that about `target` bytes stay, until `volume` were written.
    fn churn(&mut self, store: &Store, target: usize, volume: usize) {
        let volume = self.written + volume;
        let mut round = 0;
        while self.written < volume {
            round += 1;
            let outcome = if self.bytes > target {
                self.delete_any(store)
            } else if self.random.one_in(2) && !self.keys.is_empty() {
                let at = self.random.below(self.keys.len());
                self.put(store, self.keys[at])
            } else {
                self.next += 1;
                self.put(store, self.next)
            };
            if let Err(error) = outcome {
                panic!("after {} bytes: {error}\n{:#?}", self.written, store.info());
            }
            if round % 64 == 0 {
                check_figures(store);
            }
        }
    }

    fn check(&self, store: &Store) {
        for (&number, &(seed, size)) in &self.blobs {
            let blob = store
                .get(&self.key(number), GetOptions::default())
                .wait()
                .expect("it is there");
            assert!(
                blob.bytes == payload(seed, size),
                "{} has other bytes",
                self.key(number)
            );
        }
    }
}

/// Fills a store to 80 % and churns it with so many times its capacity; then checks everything,
/// also once it is opened again.
fn churn(
    options: &CreateOptions,
    make: impl FnOnce() -> Store,
    again: impl FnOnce() -> Store,
    threads: usize,
    times: usize,
) -> usize {
    let store = Arc::new(make());
    let total = usize::try_from(store.info().space.total).expect("it is small");
    let share = total / threads;
    let sampling = AtomicBool::new(true);
    let mut writers: Vec<Writer> = (0..threads).map(Writer::new).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while sampling.load(Ordering::Relaxed) {
                check_figures(&store);
                std::thread::yield_now();
                std::thread::park_timeout(std::time::Duration::from_millis(1));
            }
        });
        let running: Vec<_> = writers
            .iter_mut()
            .map(|writer| {
                let store = Arc::clone(&store);
                scope.spawn(move || {
                    writer.fill(&store, share / 5 * 4);
                    writer.churn(&store, share / 5 * 4, share * times);
                })
            })
            .collect();
        let ended: Vec<_> = running
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect();
        sampling.store(false, Ordering::Relaxed);
        assert!(
            ended.iter().all(Result::is_ok),
            "a writer failed ({options:?})"
        );
    });
    let blobs: usize = writers.iter().map(|writer| writer.blobs.len()).sum();
    assert_eq!(store.info().blobs, blobs as u64);
    let check = |store: &Store| {
        check_figures(store);
        verify(store);
        writers.iter().for_each(|writer| writer.check(store));
    };
    check(&store);
    store.close().expect("it closes");
    drop(store);
    let store = again();
    check(&store);
    assert_eq!(store.info().blobs, blobs as u64);
    writers.iter().map(|writer| writer.written).sum()
}

fn churn_on(backend: BackendChoice, sectors: u16, background: bool, threads: usize, times: usize) {
    let Some(io) = io(backend) else { return };
    let mut options = create_options(&io, sectors, 64 * MIB);
    options.open.background = background;
    let directory = test_directory();
    let path = directory.path().join("store");
    churn(
        &options,
        || Store::create(&path, options.clone()).expect("it is made"),
        || Store::open_with(&path, options.open.clone()).expect("it opens"),
        threads,
        times,
    );
}

/// In memory; tells how many bytes the disks took for each byte that was put.
fn churn_simulated(sectors: u16, block_size: u32, background: bool, threads: usize, times: usize) {
    let sim = Sim::new(block_size, 1);
    sim.record(false);
    let options = CreateOptions {
        sectors,
        sector_size: 64 * MIB,
        open: OpenOptions {
            background,
            ..OpenOptions::default()
        },
        ..CreateOptions::default()
    };
    let put = churn(
        &options,
        || Store::create_on(sim.backend(), "/store", options.clone()).expect("it is made"),
        || Store::open_on(sim.backend(), "/store", options.open.clone()).expect("it opens"),
        threads,
        times,
    );
    let amplification = sim.written() as f64 / put as f64;
    println!(
        "{sectors} sectors, blocks of {block_size}, background {background}, {threads} threads: {amplification:.2} bytes written per byte put"
    );
    assert!(amplification < 8.0, "{amplification}");
}

#[test]
fn with_a_background_thread() {
    churn_simulated(1, 4096, true, 1, 10);
}

#[test]
fn without_a_background_thread() {
    churn_simulated(1, 512, false, 1, 4);
}

#[test]
fn with_many_threads() {
    churn_simulated(1, 4096, true, 8, 4);
}

#[test]
fn with_many_threads_and_none_in_the_background() {
    churn_simulated(1, 512, false, 8, 4);
}

#[test]
fn over_three_sectors() {
    churn_simulated(3, 4096, true, 1, 2);
}

#[test]
fn over_three_sectors_with_none_in_the_background() {
    churn_simulated(3, 512, false, 2, 2);
}

#[test]
fn over_io_uring() {
    churn_on(BackendChoice::Uring, 1, true, 8, 10);
}

#[test]
fn over_io_uring_with_none_in_the_background() {
    churn_on(BackendChoice::Uring, 1, false, 1, 2);
}

#[test]
fn over_system_calls() {
    churn_on(BackendChoice::Syscall, 3, true, 4, 1);
}

//! What the benches share: where their stores lie, and how they are filled.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};
use graviton_engine::port::{
    Batch, BinaryKey, BlobStore, GetOptions, Op, PutOptions, StorageError,
};
use graviton_engine::store::{CreateOptions, NewSector, OpenOptions, RemoveOptions, Store};
use tempfile::TempDir;

/// One kibibyte, in bytes.
pub const KIB: usize = 1024;

/// Sizes of blobs, and their names.
pub const SIZES: [(&str, usize); 4] = [
    ("100B", 100),
    ("4KiB", 4 * KIB),
    ("64KiB", 64 * KIB),
    ("1MiB", KIB * KIB),
];

/// How many puts or gets one thread has in flight.
pub const IN_FLIGHT: [usize; 2] = [1, 16];

/// How many keys are put and read in turn: puts replace blobs, as they would in a store that lasts.
pub const KEYS: usize = 128;

/// A group of benches that take two seconds each.
pub fn short<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    group
}

/// Operations and their bytes.
#[must_use]
pub fn throughput(operations: usize, size: usize) -> Throughput {
    Throughput::ElementsAndBytes {
        elements: operations as u64,
        bytes: (operations * size) as u64,
    }
}

/// Where stores of benches lie: `GRAVITON_BENCH_DIR` if it is set (on the device to be measured),
/// else the system's place for temporary files.
///
/// # Panics
/// If no directory can be made there.
#[must_use]
pub fn bench_directory() -> TempDir {
    let made = match std::env::var_os("GRAVITON_BENCH_DIR") {
        Some(place) => TempDir::with_prefix_in("graviton-bench-", PathBuf::from(place)),
        None => TempDir::with_prefix("graviton-bench-"),
    };
    made.expect("a temporary directory can be made")
}

/// A store of its own, and the directory that goes with it.
#[derive(Debug)]
pub struct BenchStore {
    /// The store.
    pub store: Arc<Store>,
    /// Removed once both are dropped, the store first.
    directory: TempDir,
    /// Where its other sectors lie.
    elsewhere: Vec<TempDir>,
}

impl BenchStore {
    /// Creates a store of one sector of `sector_size` bytes, whose gets read the device.
    ///
    /// # Panics
    /// If it can't be created.
    #[must_use]
    pub fn create(sector_size: u64) -> Self {
        Self::create_with(CreateOptions {
            sector_size,
            open: uncached(),
            ..CreateOptions::default()
        })
    }

    /// Creates a store with these options. Its sectors are zeroed, so that none of their blocks is written for the
    /// first time later: that costs the file system more.
    ///
    /// # Panics
    /// If it can't be created.
    #[must_use]
    pub fn create_with(options: CreateOptions) -> Self {
        let directory = bench_directory();
        let store =
            Store::create(directory.path().join("store"), options).expect("a store can be made");
        store
            .zero_free_segments()
            .expect("its sectors can be zeroed");
        Self {
            store: Arc::new(store),
            directory,
            elsewhere: Vec::new(),
        }
    }

    /// Creates a store with one sector on each of some disks, which all have each blob: the first is that of
    /// [`bench_directory`].
    ///
    /// # Panics
    /// If it can't be created.
    #[must_use]
    pub fn create_over(others: &[PathBuf], sector_size: u64) -> Self {
        let replicas = u16::try_from(1 + others.len()).expect("a few disks");
        let mut bench = Self::create_with(CreateOptions {
            sectors: replicas,
            replicas,
            sector_size,
            open: uncached(),
            ..CreateOptions::default()
        });
        for (number, disk) in (1..replicas).zip(others) {
            let elsewhere = TempDir::with_prefix_in("graviton-bench-", disk);
            let elsewhere = elsewhere.expect("a temporary directory can be made");
            let added = bench.store.add_sector(&NewSector {
                file: Some(elsewhere.path().join("sector")),
                size: sector_size,
                ..NewSector::default()
            });
            added.expect("a sector can be added");
            let removed = bench.store.remove_sector(number, RemoveOptions::default());
            removed.expect("nothing needs the other");
            bench.elsewhere.push(elsewhere);
        }
        bench
    }

    /// Where the store lies.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("store")
    }
}

/// How a store is opened whose gets read the device.
#[must_use]
pub fn uncached() -> OpenOptions {
    OpenOptions {
        cache_bytes: 0,
        ..OpenOptions::default()
    }
}

/// The key of the blob with this number; keys sort as their numbers do.
///
/// # Panics
/// Never: the key has between 1 and 1024 bytes.
#[must_use]
pub fn key(number: usize) -> BinaryKey {
    BinaryKey::new(format!("folder-{:03}/blob-{number:09}", number / 1000)).expect("a good key")
}

/// `length` bytes that do not compress.
#[must_use]
pub fn payload(length: usize) -> Bytes {
    // Marsaglia's xorshift64.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let word = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    word.flatten().take(length).collect()
}

/// Puts `blobs` blobs with this payload, in batches of a thousand.
///
/// # Panics
/// If a put fails.
pub fn fill(store: &dyn BlobStore, blobs: usize, payload: &Bytes) {
    for first in (0..blobs).step_by(1000) {
        store
            .batch(batch(first..blobs.min(first + 1000), payload))
            .wait()
            .expect("the batch is put");
    }
}

/// A batch that puts the blobs with these numbers.
#[must_use]
pub fn batch(numbers: std::ops::Range<usize>, payload: &Bytes) -> Batch {
    let mut batch = Batch::new();
    for number in numbers {
        batch.put(key(number), payload.clone());
    }
    batch
}

/// Puts the blobs with the first numbers one by one: a batch has to fit in one frame, which large blobs do not.
///
/// # Panics
/// If a put fails.
pub fn fill_one_by_one(store: &Store, blobs: usize, size: usize) {
    let payload = payload(size);
    for number in 0..blobs {
        let put = store.put(&key(number), payload.clone(), PutOptions::default());
        put.wait().expect("the blob is put");
    }
}

/// Puts blobs that are all in flight together.
///
/// # Panics
/// If a put fails.
pub fn puts(store: &Store, numbers: impl Iterator<Item = usize>, payload: &Bytes) {
    let put = |number| store.put(&key(number), payload.clone(), PutOptions::default());
    wait_all(numbers.map(put).collect());
}

/// Gets blobs that are all in flight together.
///
/// # Panics
/// If a get fails.
pub fn gets(store: &Store, numbers: impl Iterator<Item = usize>) {
    let get = |number| store.get(&key(number), GetOptions::default());
    wait_all(numbers.map(get).collect());
}

/// How long `threads` threads take together for `count` calls of `work`.
pub fn by_threads(count: u64, threads: u64, work: impl Fn(u64) + Sync) -> Duration {
    let next = AtomicU64::new(0);
    let begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    work(number);
                }
            });
        }
    });
    begun.elapsed()
}

/// Runs a future to its end as an executor does that knows nothing of stores: it sleeps until it is woken.
pub fn run<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        thread::park();
    }
}

/// Waits for operations that are all under way.
///
/// # Panics
/// If one fails.
pub fn wait_all<T>(operations: Vec<Op<T, StorageError>>) {
    for operation in operations {
        operation.wait().expect("the operation succeeds");
    }
}

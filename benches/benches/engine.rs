//! A store of one sector, its operations one by one: durable puts and gets by size with one caller and with
//! sixteen in flight, by threads and by an executor; large blobs, deletes, batches, listings, opening; puts and gets of
//! ranges next to plain ones; compare-and-set by threads.
//!
//! `cargo bench -p graviton-benches --bench engine`; `GRAVITON_BENCH_DIR` chooses the device. The figures are those of
//! the machine they were taken on.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use graviton_benches::{
    BenchStore, IN_FLIGHT, KEYS, KIB, SIZES, batch, by_threads, fill, fill_one_by_one, gets, key,
    payload, puts, run, short, throughput,
};
use graviton_engine::port::{
    Batch, BinaryKey, BlobStore, DeleteOptions, Expected, GetOptions, GetRangesOptions,
    ListRequest, MutableObjectStore, PutOptions, PutRangeOptions, RangeTracker, Span, TrackOptions,
    TrackerError,
};
use graviton_engine::store::{CreateOptions, GIB, Store};

/// How many blobs the store has that is listed and opened.
const MANY: usize = 100_000;

fn put(criterion: &mut Criterion) {
    let mut group = short(criterion, "put");
    for (name, size) in SIZES {
        let bench = BenchStore::create(2 * GIB);
        let payload = payload(size);
        let mut numbers = (0..KEYS).cycle();
        for in_flight in IN_FLIGHT {
            group.throughput(throughput(in_flight, size));
            group.bench_function(BenchmarkId::new(name, in_flight), |bencher| {
                bencher.iter(|| puts(&bench.store, numbers.by_ref().take(in_flight), &payload));
            });
        }
    }
    group.finish();
}

fn get(criterion: &mut Criterion) {
    let mut group = short(criterion, "get");
    for (name, size) in SIZES {
        let bench = BenchStore::create(GIB);
        fill_one_by_one(&bench.store, KEYS, size);
        let mut numbers = (0..KEYS).cycle();
        for in_flight in IN_FLIGHT {
            group.throughput(throughput(in_flight, size));
            group.bench_function(BenchmarkId::new(name, in_flight), |bencher| {
                bencher.iter(|| gets(&bench.store, numbers.by_ref().take(in_flight)));
            });
        }
    }
    group.finish();
}

/// Durable puts and cold gets by threads that wait for one each; and by one that is no thread of the store's kind: an
/// executor, which only sleeps.
fn callers(criterion: &mut Criterion) {
    for (name, size) in [("4KiB", 4 * KIB), ("64KiB", 64 * KIB)] {
        let bench = BenchStore::create(GIB);
        fill_one_by_one(&bench.store, KEYS, size);
        let payload = payload(size);
        let number = |count: u64| usize::try_from(count).unwrap_or(0) % KEYS;
        let put = |count| {
            let (key, payload) = (key(number(count)), payload.clone());
            bench.store.put(&key, payload, PutOptions::default())
        };
        let get = |count| bench.store.get(&key(number(count)), GetOptions::default());
        let mut group = short(criterion, "callers");
        group.throughput(throughput(1, size));
        for threads in [1, 4, 16, 64] {
            group.bench_function(
                BenchmarkId::new(format!("put {name}"), threads),
                |bencher| {
                    bencher.iter_custom(|count| {
                        by_threads(count, threads, |one| {
                            put(one).wait().expect("the blob is put");
                        })
                    });
                },
            );
            group.bench_function(
                BenchmarkId::new(format!("get {name}"), threads),
                |bencher| {
                    bencher.iter_custom(|count| {
                        by_threads(count, threads, |one| {
                            get(one).wait().expect("the blob is read");
                        })
                    });
                },
            );
        }
        let mut numbers = 0..;
        group.bench_function(
            BenchmarkId::new(format!("put {name}"), "async"),
            |bencher| {
                bencher.iter(|| run(put(numbers.next().unwrap_or(0))).expect("the blob is put"));
            },
        );
        group.bench_function(
            BenchmarkId::new(format!("get {name}"), "async"),
            |bencher| {
                bencher.iter(|| run(get(numbers.next().unwrap_or(0))).expect("the blob is read"));
            },
        );
        group.finish();
    }
}

/// Blobs that are many frames: put at once and as a stream, got as a stream.
fn large(criterion: &mut Criterion) {
    const SIZE: usize = 64 * KIB * KIB;
    const PIECE: usize = KIB * KIB;
    let bench = BenchStore::create(GIB);
    let (store, payload, key) = (&bench.store, payload(SIZE), key(0));
    let mut group = short(criterion, "large");
    group.throughput(throughput(1, SIZE));
    group.bench_function("put 64MiB", |bencher| {
        bencher.iter(|| {
            let put = store.put(&key, payload.clone(), PutOptions::default());
            put.wait().expect("the blob is put")
        });
    });
    group.bench_function("put_stream 64MiB", |bencher| {
        bencher.iter(|| {
            let mut writer = store
                .put_stream(&key, PutOptions::default())
                .expect("it begins");
            for start in (0..SIZE).step_by(PIECE) {
                let piece = payload.slice(start..start + PIECE);
                writer.write(piece).wait().expect("it is taken");
            }
            writer.finish().wait().expect("the blob is put")
        });
    });
    group.bench_function("get_stream 64MiB", |bencher| {
        bencher.iter(|| {
            let reader = store.get_stream(&key, GetOptions::default());
            let mut reader = reader.wait().expect("it begins");
            let mut read = 0;
            while let Some(piece) = reader.next().wait().expect("it is read") {
                read += piece.len();
            }
            assert_eq!(read, SIZE);
        });
    });
    group.finish();
}

/// Deletes of blobs that are there, one by one and as a batch.
fn delete(criterion: &mut Criterion) {
    const BATCH: usize = 100;
    let bench = BenchStore::create(GIB);
    let (store, payload) = (&bench.store, payload(100));
    let mut group = short(criterion, "delete");
    group.throughput(Throughput::Elements(BATCH as u64));
    for (name, is_batch) in [("100, one by one", false), ("100 as a batch", true)] {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|times| {
                let mut taken = Duration::ZERO;
                for _ in 0..times {
                    fill(&**store, BATCH, &payload);
                    let before = Instant::now();
                    if is_batch {
                        let mut batch = Batch::new();
                        for number in 0..BATCH {
                            batch.delete(key(number));
                        }
                        store.batch(batch).wait().expect("they are deleted");
                    } else {
                        for number in 0..BATCH {
                            let deleted = store.delete(&key(number), DeleteOptions::default());
                            assert!(deleted.wait().expect("it is deleted").existed);
                        }
                    }
                    taken += before.elapsed();
                }
                taken
            });
        });
    }
    group.finish();
}

/// Gets of what is in the read cache, by one thread and by several.
fn get_hot(criterion: &mut Criterion) {
    let mut group = short(criterion, "get_hot");
    for (name, size) in &SIZES[..3] {
        let bench = BenchStore::create_with(CreateOptions {
            sector_size: GIB,
            ..CreateOptions::default()
        });
        fill_one_by_one(&bench.store, KEYS, *size);
        let keys: Vec<BinaryKey> = (0..KEYS).map(key).collect();
        let read = |count: u64| {
            for key in keys
                .iter()
                .cycle()
                .take(count.try_into().unwrap_or(usize::MAX))
            {
                let blob = bench.store.get(key, GetOptions::default()).wait();
                assert_eq!(blob.expect("it is read").bytes.len(), *size);
            }
        };
        read(2 * KEYS as u64);
        for threads in [1, 16] {
            group.throughput(throughput(1, *size));
            group.bench_function(BenchmarkId::new(*name, threads), |bencher| {
                bencher.iter_custom(|count| {
                    let begun = Instant::now();
                    std::thread::scope(|scope| {
                        for thread in 0..threads {
                            let share = count / threads + u64::from(thread < count % threads);
                            scope.spawn(move || read(share));
                        }
                    });
                    begun.elapsed()
                });
            });
        }
        let figures = bench.store.info().cache;
        assert_eq!(figures.misses, KEYS as u64, "the cache holds them all");
    }
    group.finish();
}

fn batches(criterion: &mut Criterion) {
    let mut group = short(criterion, "batch");
    let bench = BenchStore::create(GIB);
    let payload = payload(100);
    group.throughput(throughput(1000, payload.len()));
    group.bench_function("1000 x 100B", |bencher| {
        bencher.iter(|| {
            bench
                .store
                .batch(batch(0..1000, &payload))
                .wait()
                .expect("the batch is put")
        });
    });
    group.finish();
}

fn list_and_open(criterion: &mut Criterion) {
    let bench = BenchStore::create(GIB);
    fill(&*bench.store, MANY, &payload(100));
    bench.store.checkpoint().expect("a checkpoint is taken");
    list(criterion, &bench.store);
    bench.store.close().expect("the store closes");
    open(criterion, &bench);
}

fn list(criterion: &mut Criterion, store: &Store) {
    let mut group = short(criterion, "list");
    let page = ListRequest::prefix("folder-050/");
    group.throughput(Throughput::Elements(1000));
    group.bench_function("a page of 1000", |bencher| {
        bencher.iter(|| {
            let page = store.list(page.clone()).wait().expect("the page is listed");
            assert_eq!(page.blobs.len(), 1000);
        });
    });
    group.throughput(Throughput::Elements(MANY as u64));
    group.bench_function("all of 100000", |bencher| {
        bencher.iter(|| assert_eq!(count(store), MANY))
    });
    group.finish();
}

fn count(store: &Store) -> usize {
    let mut request = ListRequest {
        max: ListRequest::MAX,
        ..ListRequest::default()
    };
    let mut blobs = 0;
    loop {
        let page = store
            .list(request.clone())
            .wait()
            .expect("the page is listed");
        blobs += page.blobs.len();
        if page.next.is_none() {
            return blobs;
        }
        request.token = page.next;
    }
}

fn open(criterion: &mut Criterion, bench: &BenchStore) {
    let mut group = short(criterion, "open");
    group.bench_function("with 100000 blobs", |bencher| {
        bencher.iter_custom(|times| {
            let mut taken = Duration::ZERO;
            for _ in 0..times {
                let before = Instant::now();
                let store = Store::open(bench.path()).expect("the store opens");
                taken += before.elapsed();
                assert_eq!(store.info().blobs, MANY as u64);
                store.close().expect("the store closes");
            }
            taken
        });
    });
    group.finish();
}

/// Ranges of a blob of 8 MiB, as long as the blobs that they are next to: begun at a multiple of 4 KiB,
/// or one byte behind.
const SHIFTS: [(&str, u64); 2] = [("aligned", 0), ("unaligned", 1)];
const WHOLE: usize = 8 * KIB * KIB;

fn range(number: usize, size: usize, shift: u64) -> Span {
    let places = WHOLE / (size.next_multiple_of(4 * KIB) + 4 * KIB);
    let start = number % places * (size.next_multiple_of(4 * KIB) + 4 * KIB);
    Span::at(start as u64 + shift, size as u64).expect("it ends")
}

fn put_range(criterion: &mut Criterion) {
    let mut group = short(criterion, "put_range");
    for (name, size) in SIZES {
        let payload = payload(size);
        group.throughput(throughput(1, size));
        for (alignment, shift) in SHIFTS {
            let bench = BenchStore::create(2 * GIB);
            whole(&bench.store);
            let mut numbers = 0..;
            group.bench_function(BenchmarkId::new(name, alignment), |bencher| {
                bencher.iter(|| {
                    let range = range(numbers.next().unwrap_or(0), size, shift);
                    let options = PutRangeOptions::default();
                    let put = bench
                        .store
                        .put_range(&key(0), range, payload.clone(), options);
                    put.wait().expect("the range is put")
                });
            });
        }
        let bench = BenchStore::create(2 * GIB);
        let mut numbers = (0..KEYS).cycle();
        group.bench_function(BenchmarkId::new(name, "plain put"), |bencher| {
            bencher.iter(|| {
                let number = numbers.next().unwrap_or(0);
                let put = bench
                    .store
                    .put(&key(number), payload.clone(), PutOptions::default());
                put.wait().expect("the blob is put")
            });
        });
    }
    group.finish();
}

fn get_range(criterion: &mut Criterion) {
    let mut group = short(criterion, "get_range");
    for (name, size) in SIZES {
        group.throughput(throughput(1, size));
        let bench = BenchStore::create(GIB);
        whole(&bench.store);
        for (alignment, shift) in SHIFTS {
            let mut numbers = 0..;
            group.bench_function(BenchmarkId::new(name, alignment), |bencher| {
                bencher.iter(|| {
                    let range = range(numbers.next().unwrap_or(0), size, shift);
                    let options = GetRangesOptions::default();
                    let get = bench.store.get_ranges(&key(0), &[range], options);
                    get.wait().expect("the range is read")
                });
            });
        }
        let bench = BenchStore::create(GIB);
        fill_one_by_one(&bench.store, KEYS, size);
        let mut numbers = (0..KEYS).cycle();
        group.bench_function(BenchmarkId::new(name, "plain get"), |bencher| {
            bencher.iter(|| {
                let number = numbers.next().unwrap_or(0);
                let get = bench.store.get(&key(number), GetOptions::default());
                get.wait().expect("the blob is read")
            });
        });
    }
    group.finish();
}

/// The blob that ranges are of.
fn whole(store: &Store) {
    let put = store.put(&key(0), payload(WHOLE), PutOptions::default());
    put.wait().expect("the blob is put");
}

/// Threads add a block each to the set of one key, or of a key each, until every one has done so as
/// often as it was asked to: so many sets that succeeded, in how long.
fn compare_and_set(criterion: &mut Criterion) {
    let mut group = short(criterion, "compare_and_set");
    let bench = BenchStore::create(GIB);
    for (keys, is_shared) in [("one key", true), ("a key each", false)] {
        for threads in [1_u32, 4, 16] {
            group.throughput(Throughput::Elements(threads.into()));
            group.bench_function(BenchmarkId::new(keys, threads), |bencher| {
                bencher.iter_custom(|times| {
                    let tracker = bench.store.ranges_elsewhere();
                    for number in 0..threads {
                        let forgotten = tracker.forget(&key(number as usize)).wait();
                        forgotten.expect("it is forgotten");
                    }
                    let before = Instant::now();
                    std::thread::scope(|scope| {
                        for number in 0..threads {
                            let tracker = &*tracker;
                            let key = key(if is_shared { 0 } else { number as usize });
                            scope.spawn(move || {
                                for own in 0..times {
                                    raise(
                                        tracker,
                                        &key,
                                        own * u64::from(threads) + u64::from(number),
                                    );
                                }
                            });
                        }
                    });
                    before.elapsed()
                });
            });
        }
    }
    group.finish();
}

/// Adds the block with this number, however often that takes.
fn raise(tracker: &dyn RangeTracker, key: &BinaryKey, number: u64) {
    // Sets stay short, as they do where blocks fill up.
    let block = Span::at(number % 1024 * 4096, 4096).expect("it ends");
    let mut known = tracker.get_completed(key).wait().unwrap_or_default();
    loop {
        let mut update = known.set.clone();
        match update.contains(block.start()) {
            true => update.remove(block),
            false => update.insert(block),
        }
        let (expected, options) = (Expected::from(known.set), TrackOptions::default());
        match tracker
            .compare_and_set(key, expected, &update, options)
            .wait()
        {
            Err(TrackerError::Mismatch { actual, .. }) => known = *actual,
            outcome => return drop(outcome.expect("the set is replaced")),
        }
    }
}

criterion_group!(
    engine,
    put,
    get,
    get_hot,
    callers,
    large,
    delete,
    batches,
    list_and_open,
    put_range,
    get_range,
    compare_and_set
);
criterion_main!(engine);

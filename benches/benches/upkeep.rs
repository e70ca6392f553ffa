//! What a store does to itself: checkpoints, compaction, scrub, opening; and what that costs those who use it meanwhile.
//!
//! `cargo bench -p graviton-benches --bench upkeep`; `GRAVITON_BENCH_DIR` chooses the device.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};
use graviton_benches::{
    BenchStore, KIB, batch, fill, fill_one_by_one, key, payload, short, uncached,
};
use graviton_engine::port::{BlobStore, GetOptions, PutOptions};
use graviton_engine::store::{CreateOptions, GIB, OpenOptions, ScrubOptions, Store};

/// A store that does nothing by itself.
fn by_hand() -> BenchStore {
    BenchStore::create_with(CreateOptions {
        sector_size: GIB,
        open: OpenOptions {
            background: false,
            ..uncached()
        },
        ..CreateOptions::default()
    })
}

/// Checkpoints of a store with many blobs, of which a thousand have changed.
fn checkpoint(criterion: &mut Criterion) {
    let mut group = short(criterion, "checkpoint");
    for blobs in [10_000, 100_000] {
        let bench = by_hand();
        let payload = payload(100);
        fill(&*bench.store, blobs, &payload);
        group.throughput(Throughput::Elements(blobs as u64));
        group.bench_function(BenchmarkId::new("1000 changed of", blobs), |bencher| {
            bencher.iter_custom(|times| {
                let mut taken = Duration::ZERO;
                for _ in 0..times {
                    let changed = bench.store.batch(batch(0..1000, &payload));
                    changed.wait().expect("the batch is put");
                    let before = Instant::now();
                    bench.store.checkpoint().expect("a checkpoint is taken");
                    taken += before.elapsed();
                    while bench.store.step().expect("maintenance goes on") {}
                }
                taken
            });
        });
    }
    group.finish();
}

/// Every other blob was deleted or replaced: bytes of segments that are compacted, by time.
fn compaction(criterion: &mut Criterion) {
    const BLOBS: usize = 1000;
    let mut group = short(criterion, "compaction");
    for (name, size) in [("4KiB", 4 * KIB), ("64KiB", 64 * KIB)] {
        let bench = by_hand();
        let payload = payload(size);
        group.throughput(Throughput::Bytes((BLOBS * size) as u64));
        group.bench_function(BenchmarkId::new("half garbage", name), |bencher| {
            bencher.iter_custom(|times| {
                let mut taken = Duration::ZERO;
                for _ in 0..times {
                    let all = (0..BLOBS).chain((0..BLOBS).step_by(2));
                    for number in all {
                        let put =
                            bench
                                .store
                                .put(&key(number), payload.clone(), PutOptions::default());
                        put.wait().expect("the blob is put");
                    }
                    let before = Instant::now();
                    bench.store.compact().expect("it is compacted");
                    taken += before.elapsed();
                    while bench.store.step().expect("maintenance goes on") {}
                }
                taken
            });
        });
    }
    group.finish();
}

/// A scrub that reads every byte.
fn scrub(criterion: &mut Criterion) {
    const BLOBS: usize = 1000;
    const SIZE: usize = 64 * KIB;
    let bench = by_hand();
    fill_one_by_one(&bench.store, BLOBS, SIZE);
    let mut group = short(criterion, "scrub");
    group.throughput(Throughput::Bytes((BLOBS * SIZE) as u64));
    group.bench_function("1000 x 64KiB", |bencher| {
        bencher.iter(|| assert!(scrub_once(&bench.store)));
    });
    group.finish();
}

/// Whether nothing is wrong.
fn scrub_once(store: &Store) -> bool {
    let go_on = &mut |_| ControlFlow::Continue(());
    let report = store.scrub(&ScrubOptions::default(), go_on);
    report.expect("it is scrubbed").findings.is_empty()
}

/// What goes on beside puts and gets.
type Beside = (&'static str, fn(&Store));

const BESIDE: [Beside; 4] = [
    ("nothing", |_| std::thread::sleep(Duration::from_millis(1))),
    ("checkpoints", |store| {
        store.checkpoint().expect("a checkpoint is taken");
    }),
    ("compaction", |store| {
        store.compact().expect("it is compacted");
    }),
    ("scrub", |store| assert!(scrub_once(store))),
];

/// Puts and gets of one caller while something else goes on; the slowest of each hundred is printed.
fn foreground(criterion: &mut Criterion) {
    const BLOBS: usize = 500;
    const SIZE: usize = 64 * KIB;
    let bench = BenchStore::create(GIB);
    fill_one_by_one(&bench.store, BLOBS, SIZE);
    let (store, payload) = (&*bench.store, payload(SIZE));
    let put = |number: usize| {
        let put = store.put(&key(number), payload.clone(), PutOptions::default());
        put.wait().expect("the blob is put");
    };
    let get = |number: usize| {
        let get = store.get(&key(number), GetOptions::default());
        get.wait().expect("the blob is read");
    };
    let mut group = short(criterion, "foreground");
    for (name, beside) in BESIDE {
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    beside(store);
                }
            });
            percentile(&mut group, &format!("put 64KiB beside {name}"), BLOBS, &put);
            percentile(&mut group, &format!("get 64KiB beside {name}"), BLOBS, &get);
            is_over.store(true, Ordering::Relaxed);
        });
    }
    group.finish();
}

fn percentile(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    blobs: usize,
    work: &dyn Fn(usize),
) {
    let mut latencies = Vec::new();
    let mut numbers = (0..blobs).cycle();
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|times| {
            let begun = Instant::now();
            for number in numbers
                .by_ref()
                .take(times.try_into().unwrap_or(usize::MAX))
            {
                let before = Instant::now();
                work(number);
                latencies.push(before.elapsed());
            }
            begun.elapsed()
        });
    });
    latencies.sort_unstable();
    if let Some(slow) = latencies.get(latencies.len() * 99 / 100) {
        eprintln!("{name}: p99 {} µs of {}", slow.as_micros(), latencies.len());
    }
}

criterion_group!(upkeep, checkpoint, compaction, scrub, foreground);
criterion_main!(upkeep);

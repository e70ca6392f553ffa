//! One replica next to two, on one disk; and reads from several disks that all have what is read.
//!
//! `cargo bench -p graviton-benches --bench replicas`; `GRAVITON_BENCH_DIR` chooses the device, `GRAVITON_BENCH_DISKS`
//! others.

use std::path::PathBuf;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use graviton_benches::{
    BenchStore, IN_FLIGHT, KEYS, SIZES, fill_one_by_one, gets, payload, puts, short, throughput,
    uncached,
};
use graviton_engine::store::{CreateOptions, GIB};

/// Puts and gets of as many replicas as there are sectors, all on one disk.
fn replicas(criterion: &mut Criterion) {
    for (name, size) in SIZES {
        for replicas in [1, 2] {
            let bench = BenchStore::create_with(CreateOptions {
                sectors: replicas,
                replicas,
                sector_size: GIB / 4,
                open: uncached(),
                ..CreateOptions::default()
            });
            let payload = payload(size);
            let mut numbers = (0..KEYS).cycle();
            for in_flight in IN_FLIGHT {
                let name = format!("{replicas} of {name}");
                let mut group = short(criterion, "put_replicas");
                group.throughput(throughput(in_flight, size));
                group.bench_function(BenchmarkId::new(&name, in_flight), |bencher| {
                    bencher.iter(|| puts(&bench.store, numbers.by_ref().take(in_flight), &payload));
                });
                group.finish();
            }
            fill_one_by_one(&bench.store, KEYS, size);
            for in_flight in IN_FLIGHT {
                let name = format!("{replicas} of {name}");
                let mut group = short(criterion, "get_replicas");
                group.throughput(throughput(in_flight, size));
                group.bench_function(BenchmarkId::new(&name, in_flight), |bencher| {
                    bencher.iter(|| gets(&bench.store, numbers.by_ref().take(in_flight)));
                });
                group.finish();
            }
        }
    }
}

/// Gets from one disk, and from more of them that all have each blob. The others are named by
/// `GRAVITON_BENCH_DISKS`: directories, as in a search path.
fn disks(criterion: &mut Criterion) {
    let Some(others) = std::env::var_os("GRAVITON_BENCH_DISKS") else {
        eprintln!("get_disks: skipped: GRAVITON_BENCH_DISKS names no directories on other disks");
        return;
    };
    let others: Vec<PathBuf> = std::env::split_paths(&others).collect();
    for (name, size) in SIZES {
        for count in 0..=others.len() {
            let bench = BenchStore::create_over(&others[..count], GIB / 4);
            fill_one_by_one(&bench.store, KEYS, size);
            let mut numbers = (0..KEYS).cycle();
            let mut group = short(criterion, "get_disks");
            for in_flight in [1, 16, 64] {
                let id = BenchmarkId::new(format!("{} with {name}", count + 1), in_flight);
                group.throughput(throughput(in_flight, size));
                group.bench_function(id, |bencher| {
                    bencher.iter(|| gets(&bench.store, numbers.by_ref().take(in_flight)));
                });
            }
            group.finish();
        }
    }
}

criterion_group!(replication, replicas, disks);
criterion_main!(replication);

//! What costs memory and time of a processor alone: checksums, the image in which keys are looked up, sets of ranges.
//! No disk takes part.
//!
//! `cargo bench -p graviton-benches --bench memory`

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use graviton_benches::{SIZES, key, payload, short};
use graviton_engine::port::{RangeSet, Span};
use graviton_format::checksum::{
    Identity, chunk_checksums, gather_chunks, mask_chunks, stored_length, write_chunks,
    write_chunks_with_checksums,
};
use graviton_format::image::{Image, ImageBuilder, ImageEntry, ImageValue};
use graviton_format::key::StoredKey;
use graviton_format::ranges::{pack, unpack};

/// How many blobs an index has.
const BLOBS: [usize; 2] = [10_000, 1_000_000];

/// How many ranges a set has.
const RANGES: [u64; 3] = [10, 1000, 100_000];

const IDENTITY: Identity = Identity {
    store_id: [7; 16],
    sector_id: 7,
};

/// Payload on its way in (hashed by whoever puts it, copied into its frame) and out (verified and gathered).
fn checksum(criterion: &mut Criterion) {
    let mut group = short(criterion, "checksum");
    for (name, size) in SIZES {
        let payload = payload(size);
        let length = usize::try_from(stored_length(size as u64)).expect("it is in memory");
        let mut stored = vec![0; length];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new("hash", name), |bencher| {
            bencher.iter(|| chunk_checksums(&payload).fold(0, |sum, one| sum ^ one));
        });
        let checksums: Vec<u64> = chunk_checksums(&payload).collect();
        group.bench_function(BenchmarkId::new("copy", name), |bencher| {
            bencher.iter(|| write_chunks_with_checksums(&payload, &checksums, &mut stored));
        });
        let mask = IDENTITY.chunk_mask(7);
        write_chunks(&payload, &mut stored);
        mask_chunks(&mut stored, mask, 4096);
        let mut read = stored.clone();
        group.bench_function(BenchmarkId::new("verify", name), |bencher| {
            bencher.iter(|| {
                read.copy_from_slice(&stored);
                gather_chunks(&mut read, mask, 4096).expect("it is as it was written")
            });
        });
    }
    group.finish();
}

fn stored_key(number: usize) -> Vec<u8> {
    StoredKey::Blob(key(number).as_bytes()).encode()
}

fn image(blobs: usize) -> Image<Vec<u8>> {
    let mut builder = ImageBuilder::new(blobs as u64, 1_700_000_000_000);
    for number in 0..blobs {
        let value = ImageValue::Blob {
            address: number as u64 * 8192,
            size: 4096,
            time: 1_700_000_000_000 + number as u64,
            meta_length: 0,
            changed: None,
            life: None,
            replicas: None,
            extents: None,
        };
        let lsn = 1 + (number * 7919 % blobs) as u64;
        builder.push(&stored_key(number), &ImageEntry { lsn, value });
    }
    Image::open(builder.finish(&[], &[])).expect("it was made well")
}

/// A checkpoint's image, searched where it lies; its bytes per blob are printed.
fn index(criterion: &mut Criterion) {
    for blobs in BLOBS {
        let image = image(blobs);
        let bytes = image.bytes().len();
        eprintln!(
            "index: {blobs} blobs, {:.1} bytes each",
            bytes as f64 / blobs as f64
        );
        let keys: Vec<Vec<u8>> = (0..10_000)
            .map(|number| stored_key(number * 7919 % blobs))
            .collect();
        let absent: Vec<Vec<u8>> = keys.iter().map(|key| [key, &b"x"[..]].concat()).collect();
        let mut group = short(criterion, "index");
        group.throughput(Throughput::Elements(1));
        for (name, keys, is_there) in [("found", &keys, true), ("absent", &absent, false)] {
            let mut keys = keys.iter().cycle();
            group.bench_function(BenchmarkId::new(name, blobs), |bencher| {
                bencher.iter(|| {
                    let key = keys.next().expect("they never end");
                    let found = image.get(key).expect("it decodes");
                    assert_eq!(found.is_some(), is_there);
                });
            });
        }
        group.throughput(Throughput::Elements(blobs as u64));
        group.bench_function(BenchmarkId::new("walk", blobs), |bencher| {
            bencher.iter(|| {
                let mut cursor = image.seek(&[]).expect("it decodes");
                let mut count = 0;
                while cursor.next().expect("it decodes").is_some() {
                    count += cursor.key().len().min(1);
                }
                assert_eq!(count, blobs);
            });
        });
        group.finish();
    }
}

/// Every other block of as many.
fn blocks(count: u64, shift: u64) -> RangeSet {
    let block = |number| Span::at((2 * number + shift) * 4096, 4096).expect("it ends");
    (0..count).map(block).collect()
}

fn range_sets(criterion: &mut Criterion) {
    let mut group = short(criterion, "range_sets");
    for count in RANGES {
        let (even, odd) = (blocks(count, 0), blocks(count, 1));
        group.throughput(Throughput::Elements(count));
        group.bench_function(BenchmarkId::new("union", count), |bencher| {
            bencher.iter(|| black_box(even.union(&odd)));
        });
        group.bench_function(BenchmarkId::new("difference", count), |bencher| {
            bencher.iter(|| black_box(even.difference(&odd)));
        });
        let spans: Vec<_> = even.spans().iter().map(|&span| span.into()).collect();
        let packed = pack(&spans);
        group.bench_function(BenchmarkId::new("pack", count), |bencher| {
            bencher.iter(|| black_box(pack(&spans)));
        });
        let limit = usize::try_from(count).expect("a small number");
        group.bench_function(BenchmarkId::new("unpack", count), |bencher| {
            bencher.iter(|| unpack(&packed, limit).expect("it was packed well"));
        });
        group.throughput(Throughput::Elements(1));
        let mut set = even.clone();
        let middle = Span::at((count | 1) * 4096, 4096).expect("it ends");
        group.bench_function(BenchmarkId::new("insert and remove", count), |bencher| {
            bencher.iter(|| {
                set.insert(middle);
                set.remove(middle);
            });
        });
    }
    group.finish();
}

criterion_group!(memory, checksum, index, range_sets);
criterion_main!(memory);

use std::ops::Range;

use bytes::Bytes;

use crate::port::{PutOptions, StorageError};
use crate::testing::Subject;
use crate::testing::support::{MIB, Short, Store, assert_bytes, assert_fails, key, part, payload};

/// Around the borders where an implementation may cut a payload: blocks, checksummed chunks,
/// extents.
const SIZES: [usize; 15] = [
    0,
    1,
    2,
    511,
    4087,
    4088,
    4089,
    4096,
    8175,
    8176,
    8177,
    65_536,
    65_537,
    MIB + 3,
    5 * MIB + 1,
];

fn borders(size: usize) -> Vec<u64> {
    let fixed = [
        0, 1, 4087, 4088, 4089, 4095, 4096, 4097, 8176, 8177, 65_536, 1_048_576,
    ];
    let size = size as u64;
    let near_end = [
        size.saturating_sub(4089),
        size.saturating_sub(1),
        size,
        size + 1,
    ];
    let mut borders: Vec<u64> = fixed
        .into_iter()
        .filter(|border| *border <= size + 1)
        .chain(near_end)
        .chain([u64::MAX - 1, u64::MAX])
        .collect();
    borders.sort_unstable();
    borders.dedup();
    borders
}

enum Expected {
    Part(Range<u64>),
    Outside,
    Backwards,
}

/// What a read of `range` is, said without the store's own arithmetic.
fn expected(range: &Range<u64>, size: u64) -> Expected {
    if range.start > range.end {
        Expected::Backwards
    } else if range.start > size || (size > 0 && range.start == size && range.end > size) {
        Expected::Outside
    } else {
        Expected::Part(range.start..range.end.min(size))
    }
}

/// A read of a part of `k`: the bytes, what part of what size they are.
type Read = fn(&Store, Range<u64>) -> Result<(Bytes, Range<u64>, u64, u64), StorageError>;

fn check_ranges(subject: &mut dyn Subject, read: Read) {
    let mut store = subject.fresh();
    for (round, size) in SIZES.into_iter().enumerate() {
        let bytes = payload(size as u64, size);
        let put = if round % 2 == 0 {
            store.save("k", bytes.clone())
        } else {
            let pieces = bytes.chunks(3000).map(Bytes::copy_from_slice);
            store
                .stream_in("k", pieces, PutOptions::default())
                .expect("a plain stream")
        };
        if round % 4 == 3 {
            store = subject.reopen(store);
        }
        store.assert_holds("k", &bytes);
        let borders = borders(size);
        for (start, end) in borders
            .iter()
            .flat_map(|start| borders.iter().map(move |end| (*start, *end)))
        {
            let range = Range { start, end };
            let what = format!("{start}..{end} of {size} bytes");
            match (expected(&range, size as u64), read(&store, range.clone())) {
                (Expected::Part(part), Ok((read, range, blob_size, version))) => {
                    assert_eq!((&range, blob_size), (&part, size as u64), "{what}");
                    assert_eq!(version, put.version, "{what}");
                    let [from, to] = [part.start, part.end]
                        .map(|at| usize::try_from(at).expect("inside of the blob"));
                    assert_bytes(&read, &bytes[from..to], &what);
                }
                (
                    Expected::Outside,
                    Err(StorageError::InvalidRange {
                        key: named,
                        range: asked,
                        size: named_size,
                    }),
                ) => {
                    assert_eq!((named, asked, named_size), (key("k"), range, size as u64));
                }
                (Expected::Backwards, Err(StorageError::InvalidArgument { .. })) => {}
                (_, outcome) => panic!("{what}: {:?}", outcome.map(|read| read.1)),
            }
        }
    }
    let absent = store.get(&key("absent"), part(0..1)).wait();
    assert_fails!(absent, StorageError::NotFound { .. });
}

pub(super) fn get_reads_ranges(subject: &mut dyn Subject) {
    check_ranges(subject, |store, range| {
        let blob = store.get(&key("k"), part(range)).wait()?;
        Ok((blob.bytes, blob.range, blob.size, blob.version))
    });
}

pub(super) fn get_stream_reads_ranges(subject: &mut dyn Subject) {
    check_ranges(subject, |store, range| {
        let mut reader = store.get_stream(&key("k"), part(range)).wait()?;
        let mut bytes = Vec::new();
        while let Some(piece) = reader.next().wait()? {
            bytes.extend_from_slice(&piece);
        }
        let range = reader.range.clone();
        Ok((bytes.into(), range, reader.size, reader.version))
    });
}

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use crate::io::sim::Random;
use crate::port::{
    Attributes, AttributesUpdate, CopyOptions, Digest, DigestAlgorithm, ErrorKind, GetOptions,
    GetRangesOptions, Holes, MutableObjectStore, PastEnd, Precondition, PutOptions, PutOutcome,
    PutRangeOptions, RangeSet, Span, StorageError, UpdateOptions,
};
use crate::testing::Subject;
use crate::testing::support::{KIB, Short, assert_bytes, assert_fails, key, part, payload, zeros};

type MutableSubject<'a> = &'a mut dyn Subject<dyn MutableObjectStore>;

fn span(start: usize, end: usize) -> Span {
    Span::new(start as u64, end as u64).expect("it does not run backwards")
}

fn past(past_end: PastEnd) -> PutRangeOptions {
    PutRangeOptions {
        past_end,
        ..PutRangeOptions::default()
    }
}

fn range_if(precondition: Precondition) -> PutRangeOptions {
    PutRangeOptions {
        precondition,
        ..PutRangeOptions::default()
    }
}

/// Short forms of the calls.
trait ShortRanges: MutableObjectStore {
    fn write_at(
        &self,
        name: &str,
        start: usize,
        bytes: &Bytes,
        options: PutRangeOptions,
    ) -> Result<PutOutcome, StorageError> {
        let range = span(start, start + bytes.len());
        self.put_range(&key(name), range, bytes.clone(), options)
            .wait()
    }
}

impl<S: MutableObjectStore + ?Sized> ShortRanges for S {}

pub(super) fn a_range_may_begin_and_end_anywhere(subject: MutableSubject<'_>) {
    let mut store = subject.fresh();
    let borders = [
        0, 1, 511, 512, 4087, 4088, 4089, 8176, 65_535, 65_537, 150_000,
    ];
    let size = 150_000;
    for (number, (&start, &end)) in borders
        .iter()
        .flat_map(|start| borders.iter().map(move |end| (start, end)))
        .filter(|(start, end)| start < end)
        .enumerate()
    {
        let mut expected = payload(7, size).to_vec();
        let old = store.save("k", expected.clone());
        let bytes = payload(number as u64, end - start);
        let new = store.write_at("k", start, &bytes, PutRangeOptions::default());
        let new = new.expect("it lies within the blob");
        assert!(new.version > old.version && new.etag != old.etag);
        assert_eq!(new.size, size as u64);
        expected[start..end].copy_from_slice(&bytes);
        if number % 16 == 3 {
            store = subject.reopen(store);
        }
        let blob = store.load("k");
        assert_eq!(blob.version, new.version);
        assert_bytes(&blob.bytes, &expected, &format!("{start}..{end}"));
    }
}

pub(super) fn put_range_keeps_what_is_not_of_the_bytes(subject: MutableSubject<'_>) {
    let mut store = subject.fresh();
    let bytes = payload(1, 9000);
    let options = PutOptions {
        attributes: Attributes::from([("colour".to_owned(), "blue".into())]),
        digest: Some(Digest::of(DigestAlgorithm::Blake3, &bytes)),
        ..PutOptions::default()
    };
    let put = store.save_with("k", bytes, options.clone());
    put.expect("its digest is right");
    let before = store.info("k");
    store
        .write_at("k", 5000, &payload(2, 100), PutRangeOptions::default())
        .expect("it lies within the blob");
    for round in 0..2 {
        let after = store.info("k");
        assert_eq!(after.attributes, options.attributes, "round {round}");
        assert_eq!(after.created, before.created);
        assert!(after.modified >= before.modified);
        assert!(after.digests.is_empty(), "{:?}", after.digests);
        store = subject.reopen(store);
    }
}

pub(super) fn what_changes_a_blob_keeps_its_replicas(subject: MutableSubject<'_>) {
    let mut store = subject.fresh();
    store.save("plain", "plain");
    let own = store.info("plain").replicas;
    let more = own + 1;
    let ask = |replicas| PutOptions {
        replicas: Some(replicas),
        ..PutOptions::default()
    };
    let put = store.save_with("bytes", payload(1, 60_000), ask(more));
    put.expect("more");
    let made = store.create_sparse(&key("holes"), 60_000, ask(more)).wait();
    made.expect("more");
    let refused = store.create_sparse(&key("new"), 10, ask(0)).wait();
    assert_fails!(refused, StorageError::InvalidArgument { .. });
    for round in 0..3 {
        for name in ["bytes", "holes"] {
            assert_eq!(store.info(name).replicas, more, "{name} in round {round}");
            for start in [100, 5000, 50_000] {
                let bytes = payload(round, 3000);
                let put = store.write_at(name, start, &bytes, PutRangeOptions::default());
                put.expect("it is within the blob");
            }
            assert_eq!(store.info(name).replicas, more, "{name} in round {round}");
            let value = Bytes::from(round.to_string());
            let update = AttributesUpdate::merge(Attributes::from([("round".to_owned(), value)]));
            let manifests = store.manifests();
            let updated = manifests.update_attributes(&key(name), update, UpdateOptions::default());
            updated.wait().expect("it is there");
            assert_eq!(store.info(name).replicas, more, "{name} in round {round}");
        }
        store = subject.reopen(store);
    }
    assert_eq!(store.info("plain").replicas, own);
}

pub(super) fn past_the_end_is_an_option(subject: MutableSubject<'_>) {
    let mut store = subject.fresh();
    let bytes = payload(3, 5000);
    let old = store.save("k", payload(1, 10_000));
    for (start, past_end) in [
        (6000, PastEnd::Refuse),
        (10_000, PastEnd::Refuse),
        (10_001, PastEnd::Refuse),
        (10_001, PastEnd::Extend),
    ] {
        let refused = store.write_at("k", start, &bytes, past(past_end));
        assert_fails!(refused, StorageError::InvalidRange { size: 10_000, .. });
        assert_eq!(store.info("k").version, old.version);
    }
    let mut expected = payload(1, 10_000).to_vec();
    for start in [6000, 11_000] {
        let put = store.write_at("k", start, &bytes, past(PastEnd::Extend));
        expected.truncate(start);
        expected.extend_from_slice(&bytes);
        assert_eq!(put.expect("it extends").size, expected.len() as u64);
        store.assert_holds("k", &expected);
    }
    let put = store.write_at("k", 30_000, &bytes, past(PastEnd::Sparse));
    assert_eq!(put.expect("it leaves a hole").size, 35_000);
    expected.resize(30_000, 0);
    expected.extend_from_slice(&bytes);
    for _ in 0..2 {
        let hole = RangeSet::from(span(16_000, 30_000));
        assert_eq!(store.info("k").missing, hole);
        assert_bytes(&zeros(&*store, "k"), &expected, "with a hole");
        store = subject.reopen(store);
    }
}

pub(super) fn an_absent_key_has_no_ranges(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    let bytes = payload(1, 10);
    for past_end in [PastEnd::Refuse, PastEnd::Extend, PastEnd::Sparse] {
        let absent = store.write_at("k", 0, &bytes, past(past_end));
        assert_fails!(absent, StorageError::NotFound { key } if key.as_bytes() == b"k");
    }
    store.assert_absent("k");
    let created = store
        .create_sparse(&key("k"), 10, PutOptions::default())
        .wait();
    created.expect("it is created");
    let put = store.write_at("k", 0, &bytes, PutRangeOptions::default());
    put.expect("it is there");
    store.assert_holds("k", &bytes);
    store.remove("k");
    let absent = store.write_at("k", 0, &bytes, PutRangeOptions::default());
    assert_fails!(absent, StorageError::NotFound { .. });
}

pub(super) fn as_many_bytes_as_the_range(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    let old = store.save("k", payload(1, 100));
    for length in [0, 9, 11, 200] {
        let put = store.put_range(
            &key("k"),
            span(20, 30),
            payload(2, length),
            PutRangeOptions::default(),
        );
        let length = length as u64;
        assert_fails!(
            put.wait(),
            StorageError::LengthMismatch { range, length: given, .. }
                if range == span(20, 30) && given == length
        );
    }
    assert_eq!(store.info("k").version, old.version);
}

pub(super) fn an_empty_range_changes_nothing(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    let old = store.save("k", payload(1, 100));
    for start in [0, 50, 100] {
        let put = store.write_at("k", start, &Bytes::new(), PutRangeOptions::default());
        assert_eq!(put.expect("there is nothing to do"), old);
    }
    let beyond = store.write_at("k", 101, &Bytes::new(), PutRangeOptions::default());
    assert_fails!(beyond, StorageError::InvalidRange { .. });
    assert_eq!(store.info("k").version, old.version);
    let absent = store.write_at("l", 0, &Bytes::new(), PutRangeOptions::default());
    assert_fails!(absent, StorageError::NotFound { .. });
}

pub(super) fn put_range_is_conditional(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    let old = store.save("k", payload(1, 100));
    let new = store.save("k", payload(2, 100));
    let bytes = payload(3, 10);
    for precondition in [
        Precondition::IfAbsent,
        Precondition::IfETag(old.etag),
        Precondition::IfVersion(old.version),
    ] {
        let put = store.write_at("k", 0, &bytes, range_if(precondition));
        assert_fails!(put, StorageError::PreconditionFailed { actual, .. } if actual == Some(new.etag));
    }
    store.assert_holds("k", payload(2, 100));
    let put = store.write_at("k", 0, &bytes, range_if(Precondition::IfETag(new.etag)));
    let put = put.expect("it holds");
    let put = store.write_at(
        "k",
        50,
        &bytes,
        range_if(Precondition::IfVersion(put.version)),
    );
    put.expect("it holds");
}

pub(super) fn a_range_that_is_too_large_is_refused(subject: MutableSubject<'_>) {
    let Some(max) = subject.max_blob_size() else {
        return;
    };
    let max = usize::try_from(max).expect("it is small enough to be tried");
    let store = subject.fresh();
    let old = store.save("k", payload(1, 100));
    let refused = store.write_at("k", max - 9, &payload(2, 10), past(PastEnd::Sparse));
    let limit = max as u64;
    assert_fails!(refused, StorageError::TooLarge { limit: of, .. } if of == limit);
    assert_eq!(store.info("k").version, old.version);
    let fits = store.write_at("k", max - 10, &payload(2, 10), past(PastEnd::Sparse));
    assert_eq!(fits.expect("it fits").size, limit);
    let created = store.create_sparse(&key("l"), limit + 1, PutOptions::default());
    assert_fails!(created.wait(), StorageError::TooLarge { .. });
}

pub(super) fn readers_see_all_of_a_range_or_nothing(subject: MutableSubject<'_>) {
    const SIZE: usize = 200 * KIB;
    const RANGE: std::ops::Range<usize> = 50_000..150_000;
    const ROUNDS: u8 = 40;
    let store = subject.fresh();
    store.save("k", vec![0; SIZE]);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while reads == 0 || !over.load(Ordering::Relaxed) {
                let bytes = store.load("k").bytes;
                let first = bytes[RANGE.start];
                assert!(bytes[RANGE].iter().all(|&byte| byte == first));
                assert!(bytes[..RANGE.start].iter().all(|&byte| byte == 0));
                let mut streamed = Vec::new();
                let reader = store.get_stream(&key("k"), GetOptions::default());
                let mut reader = reader.wait().expect("it opens");
                while let Some(piece) = reader.next().wait().expect("it is read") {
                    streamed.extend_from_slice(&piece);
                }
                let first = streamed[RANGE.start];
                assert!(streamed[RANGE].iter().all(|&byte| byte == first));
                reads += 1;
            }
        });
        for round in 1..=ROUNDS {
            let bytes = Bytes::from(vec![round; RANGE.len()]);
            let put = store.write_at("k", RANGE.start, &bytes, PutRangeOptions::default());
            put.expect("it lies within the blob");
        }
        over.store(true, Ordering::Relaxed);
        reader.join().expect("it saw nothing wrong");
    });
    assert_eq!(store.load("k").bytes[RANGE.start], ROUNDS);
}

pub(super) fn overlapping_ranges_are_whole(subject: MutableSubject<'_>) {
    const THREADS: usize = 4;
    const STEP: usize = 10_000;
    let store = subject.fresh();
    for round in 0..8_u8 {
        store.save("k", vec![0; STEP * (THREADS + 1)]);
        let barrier = Barrier::new(THREADS);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (store, barrier) = (&store, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    let own = 1 + u8::try_from(thread).expect("few threads") + 10 * round;
                    let bytes = Bytes::from(vec![own; 2 * STEP]);
                    let options = PutRangeOptions::default();
                    let put = store.write_at("k", thread * STEP, &bytes, options);
                    put.expect("it lies within the blob");
                });
            }
        });
        let bytes = store.load("k").bytes;
        for (number, strip) in bytes.chunks(STEP).enumerate() {
            let owner = strip[0];
            assert!(strip.iter().all(|&byte| byte == owner), "strip {number}");
            let writers = [number.checked_sub(1), (number < THREADS).then_some(number)];
            let own = |thread: usize| 1 + u8::try_from(thread).expect("few") + 10 * round;
            let known = writers
                .into_iter()
                .flatten()
                .any(|thread| own(thread) == owner);
            assert!(known, "strip {number} is of {owner}");
        }
    }
}

pub(super) fn copies_do_not_share_later_ranges(subject: MutableSubject<'_>) {
    let mut store = subject.fresh();
    let old = payload(1, 100_000);
    store.save("a", old.clone());
    let copied = store.copy(&key("a"), &key("b"), CopyOptions::default());
    copied.wait().expect("it is copied");
    let mut expected = [old.to_vec(), old.to_vec()];
    for (number, name) in ["a", "b", "a", "b"].into_iter().enumerate() {
        let (start, bytes) = (10_000 * number + 7, payload(number as u64, 20_000));
        let put = store.write_at(name, start, &bytes, PutRangeOptions::default());
        put.expect("it lies within the blob");
        expected[number % 2][start..start + bytes.len()].copy_from_slice(&bytes);
        store.assert_holds("a", &expected[0]);
        store.assert_holds("b", &expected[1]);
    }
    store.remove("a");
    store = subject.reopen(store);
    store.assert_holds("b", &expected[1]);
}

pub(super) fn many_small_ranges(subject: MutableSubject<'_>) {
    const SIZE: usize = 300_000;
    let mut store = subject.fresh();
    let mut random = Random::new(5);
    let mut expected = payload(1, SIZE).to_vec();
    store.save("k", expected.clone());
    for number in 0..600 {
        let length = 1 + random.below(3000);
        let start = random.below(SIZE - length);
        let bytes = payload(number, length);
        let put = store.write_at("k", start, &bytes, PutRangeOptions::default());
        put.expect("it lies within the blob");
        expected[start..start + length].copy_from_slice(&bytes);
        if number % 200 == 99 {
            store = subject.reopen(store);
            store.assert_holds("k", &expected);
        }
    }
    store.assert_holds("k", &expected);
}

pub(super) fn get_ranges_reads_many(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    let size = 500_000;
    let bytes = payload(1, size);
    let put = store.save("k", bytes.clone());
    let ranges = [
        span(400_000, 400_001),
        span(0, 5000),
        span(5000, 9000),
        span(3000, 6000),
        span(100, 100),
        span(499_990, 600_000),
        span(200_000, 330_000),
        span(0, 5000),
        span(size, size),
    ];
    for gap in [0, 1, 4096, u64::MAX] {
        let options = GetRangesOptions {
            gap,
            ..GetRangesOptions::default()
        };
        let read = store.get_ranges(&key("k"), &ranges, options).wait();
        let read = read.expect("all of it is there");
        assert_eq!(
            (read.size, read.version, read.etag),
            (size as u64, put.version, put.etag)
        );
        assert_eq!(read.pieces.len(), ranges.len());
        for (range, piece) in ranges.iter().zip(&read.pieces) {
            let [from, to] = [range.start(), range.end()]
                .map(|at| usize::try_from(at).expect("it is small").min(size));
            assert_bytes(
                piece,
                &bytes[from..to],
                &format!("{range} with gaps of {gap}"),
            );
        }
    }
    let none = store.get_ranges(&key("k"), &[], GetRangesOptions::default());
    assert!(
        none.wait()
            .expect("there is nothing to do")
            .pieces
            .is_empty()
    );
    let ranges = [span(0, 10), span(size, size + 1)];
    let beyond = store.get_ranges(&key("k"), &ranges, GetRangesOptions::default());
    assert_fails!(beyond.wait(), StorageError::InvalidRange { .. });
}

pub(super) fn get_ranges_is_conditional(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    let get = |precondition| {
        let options = GetRangesOptions {
            precondition,
            ..GetRangesOptions::default()
        };
        store.get_ranges(&key("k"), &[span(0, 1)], options).wait()
    };
    assert_fails!(get(Precondition::None), StorageError::NotFound { .. });
    let old = store.save("k", "old");
    let new = store.save("k", "new");
    for precondition in [
        Precondition::IfETag(old.etag),
        Precondition::IfVersion(old.version),
    ] {
        assert_fails!(get(precondition), StorageError::PreconditionFailed { .. });
    }
    for precondition in [
        Precondition::IfETag(new.etag),
        Precondition::IfVersion(new.version),
    ] {
        assert_eq!(get(precondition).expect("it holds").pieces, ["n"]);
    }
}

pub(super) fn holes_are_told_or_zeros(subject: MutableSubject<'_>) {
    let mut store = subject.fresh();
    let created = store
        .create_sparse(&key("k"), 100_000, PutOptions::default())
        .wait();
    created.expect("it is created");
    let mut expected = vec![0; 100_000];
    for (start, length) in [(5000, 10_000), (15_000, 1), (60_000, 40_000)] {
        let bytes = payload(start as u64, length);
        let put = store.write_at("k", start, &bytes, PutRangeOptions::default());
        put.expect("it lies within the blob");
        expected[start..start + length].copy_from_slice(&bytes);
    }
    let holes: RangeSet = "0..5000,15001..60000".parse().expect("two spans");
    for _ in 0..2 {
        assert_eq!(store.info("k").missing, holes);
        let whole = store.get(&key("k"), GetOptions::default()).wait();
        assert_fails!(whole, StorageError::MissingRanges { key, missing } if key.as_bytes() == b"k" && missing == holes);
        let partly = store.get(&key("k"), part(4000..5001)).wait();
        let error = partly.expect_err("a part of it is missing");
        assert_eq!(error.kind(), ErrorKind::Incomplete);
        assert_fails!(
            Err::<(), _>(error),
            StorageError::MissingRanges { missing, .. } if missing == span(4000, 5000).into()
        );
        let there = store.get(&key("k"), part(5000..15_001)).wait();
        assert_bytes(
            &there.expect("it was written").bytes,
            &expected[5000..15_001],
            "a part",
        );
        assert_bytes(&zeros(&*store, "k"), &expected, "zeros");
        let ranges = [span(10, 20), span(5000, 5010), span(59_000, 60_010)];
        let refused = store.get_ranges(&key("k"), &ranges, GetRangesOptions::default());
        let both: RangeSet = "10..20,59000..60000".parse().expect("two spans");
        assert_fails!(refused.wait(), StorageError::MissingRanges { missing, .. } if missing == both);
        let options = GetRangesOptions {
            holes: Holes::Zeros,
            ..GetRangesOptions::default()
        };
        let read = store.get_ranges(&key("k"), &ranges, options).wait();
        let read = read.expect("holes are zeros").pieces;
        for (range, piece) in [10..20, 5000..5010, 59_000..60_010].into_iter().zip(read) {
            assert_bytes(&piece, &expected[range], "a range");
        }
        store = subject.reopen(store);
    }
}

pub(super) fn created_blobs_are_one_hole(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    let options = PutOptions {
        attributes: Attributes::from([("colour".to_owned(), "blue".into())]),
        ..PutOptions::default()
    };
    let create = |size, options| store.create_sparse(&key("k"), size, options).wait();
    let created = create(1_000_000, options.clone()).expect("it is created");
    assert_eq!(created.size, 1_000_000);
    let info = store.info("k");
    assert_eq!((info.size, info.version), (1_000_000, created.version));
    assert_eq!(info.missing, span(0, 1_000_000).into());
    assert_eq!(info.attributes, options.attributes);
    assert!(
        info.allocated < 100_000,
        "a hole takes {} bytes",
        info.allocated
    );
    let if_absent = PutOptions {
        precondition: Precondition::IfAbsent,
        ..PutOptions::default()
    };
    assert_fails!(
        create(5, if_absent),
        StorageError::PreconditionFailed { .. }
    );
    for wrong in [
        PutOptions {
            size: Some(5),
            ..PutOptions::default()
        },
        PutOptions {
            digest: Some(Digest::of(DigestAlgorithm::Sha256, b"")),
            ..PutOptions::default()
        },
    ] {
        assert_fails!(create(5, wrong), StorageError::InvalidArgument { .. });
    }
    let copied = store.copy(&key("k"), &key("copy"), CopyOptions::default());
    copied.wait().expect("it is copied");
    assert_eq!(store.info("copy").missing, span(0, 1_000_000).into());
    create(0, PutOptions::default()).expect("it is created");
    store.assert_holds("k", b"");
    assert!(store.remove("k"));
}

use std::io::{self, Read, Write};

use bytes::Bytes;

use crate::port::{Digest, DigestAlgorithm, GetOptions, Precondition, PutOptions, StorageError};
use crate::testing::Subject;
use crate::testing::support::{KIB, MIB, Short, assert_bytes, assert_fails, key, part, payload};

pub(super) fn put_stream_takes_any_size_in_any_pieces(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    let cases: [(&str, usize, usize); 11] = [
        ("nothing", 0, 1),
        ("one byte", 1, 1),
        ("bytes", 300, 1),
        ("odd", 9000, 7),
        ("below a chunk", 4087, 4088),
        ("chunks", 20 * 4088, 4088),
        ("blocks", 20 * 4096, 4096),
        ("odd megabytes", 5 * MIB + 1, 99_991),
        ("megabytes", 4 * MIB, MIB),
        ("large pieces", 6 * MIB, 2 * MIB + 1),
        ("one piece", 3 * MIB + 5, usize::MAX),
    ];
    let check = |store: &dyn crate::port::BlobStore| {
        for (name, size, _) in cases {
            let bytes = payload(size as u64, size);
            store.assert_holds(name, &bytes);
            let streamed = store.stream_out(name, GetOptions::default());
            assert_bytes(&streamed.expect("it is there"), &bytes, name);
        }
    };
    for (name, size, piece) in cases {
        let bytes = payload(size as u64, size);
        let pieces = bytes.chunks(piece).map(Bytes::copy_from_slice);
        store
            .stream_in(name, pieces, PutOptions::default())
            .expect("a plain stream");
    }
    check(&*store);
    store = subject.reopen(store);
    check(&*store);

    let bytes = payload(3, 100_000);
    let pieces = [
        Bytes::new(),
        bytes.slice(..1),
        Bytes::new(),
        bytes.slice(1..50_000),
        bytes.slice(50_000..),
        Bytes::new(),
    ];
    store
        .stream_in("gaps", pieces, PutOptions::default())
        .expect("empty pieces are harmless");
    store.assert_holds("gaps", &bytes);
}

pub(super) fn put_stream_pieces_need_not_be_awaited(subject: &mut dyn Subject) {
    let store = subject.fresh();
    let bytes = payload(1, 3 * MIB);
    let mut writer = store
        .put_stream(&key("held"), PutOptions::default())
        .expect("good options");
    let ops: Vec<_> = bytes
        .chunks(50_000)
        .map(|piece| writer.write(Bytes::copy_from_slice(piece)))
        .collect();
    let finish = writer.finish();
    for op in ops {
        op.wait().expect("takes it in");
    }
    finish.wait().expect("commits");
    store.assert_holds("held", &bytes);

    let mut writer = store
        .put_stream(&key("dropped"), PutOptions::default())
        .expect("good options");
    for piece in bytes.chunks(50_000) {
        drop(writer.write(Bytes::copy_from_slice(piece)));
    }
    writer.finish().wait().expect("commits");
    store.assert_holds("dropped", &bytes);
}

pub(super) fn put_stream_shows_nothing_before_finish(subject: &mut dyn Subject) {
    let store = subject.fresh();
    store.save("old", "old");
    let bytes = payload(1, MIB);
    let mut writers = Vec::new();
    for name in ["old", "new"] {
        let mut writer = store
            .put_stream(&key(name), PutOptions::default())
            .expect("good options");
        for piece in bytes.chunks(100 * KIB) {
            writer
                .write(Bytes::copy_from_slice(piece))
                .wait()
                .expect("takes it in");
            store.assert_holds("old", "old");
            store.assert_absent("new");
        }
        writers.push(writer);
    }
    assert_eq!(store.keys(), [key("old")]);
    store.flush().wait().expect("flushes");
    store.assert_absent("new");
    for writer in writers {
        writer.finish().wait().expect("commits");
    }
    store.assert_holds("old", &bytes);
    store.assert_holds("new", &bytes);
}

pub(super) fn a_dropped_stream_leaves_nothing(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    let old = store.save("old", "old");
    for size in [0, 1, 5000, 3 * MIB] {
        for name in ["old", "new"] {
            let mut writer = store
                .put_stream(&key(name), PutOptions::default())
                .expect("good options");
            for piece in payload(1, size).chunks(300_000) {
                writer
                    .write(Bytes::copy_from_slice(piece))
                    .wait()
                    .expect("takes it in");
            }
            drop(writer);
        }
        store.assert_absent("new");
        store.assert_holds("old", "old");
    }
    store = subject.reopen(store);
    store.assert_absent("new");
    store.assert_holds("old", "old");
    assert_eq!(store.load("old").version, old.version);
    assert_eq!(store.keys(), [key("old")]);
}

pub(super) fn failed_streams_give_their_space_back(subject: &mut dyn Subject) {
    let store = subject.fresh();
    let size = 4 * MIB as u64;
    let wrong_digest = Digest {
        algorithm: DigestAlgorithm::Blake3,
        bytes: [0; 32],
    };
    // Far more than a store needs to have room for.
    for round in 0..60 {
        let mut options = PutOptions::default();
        match round % 4 {
            0 => options.size = Some(size + 1),
            1 => options.digest = Some(wrong_digest),
            2 => options.precondition = Precondition::IfVersion(1 << 40),
            _ => {}
        }
        let mut writer = store.put_stream(&key("k"), options).expect("good options");
        for _ in 0..4 {
            writer
                .write(Bytes::from(vec![7; MIB]))
                .wait()
                .expect("there is room again");
        }
        if round % 4 == 3 {
            drop(writer);
            continue;
        }
        let refused = writer.finish().wait();
        assert_fails!(
            refused,
            StorageError::SizeMismatch { .. }
                | StorageError::DigestMismatch { .. }
                | StorageError::PreconditionFailed { .. }
        );
    }
    store.assert_absent("k");
    let bytes = payload(1, 4 * MIB);
    store.save("k", bytes.clone());
    store.assert_holds("k", &bytes);
}

pub(super) fn a_failing_source_leaves_nothing(subject: &mut dyn Subject) {
    struct Failing(usize);
    impl Read for Failing {
        fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::Error::other("the source failed"));
            }
            let length = target.len().min(self.0);
            target[..length].fill(b'x');
            self.0 -= length;
            Ok(length)
        }
    }
    let mut store = subject.fresh();
    store.save("old", "old");
    for name in ["old", "new"] {
        let mut writer = store
            .put_stream(&key(name), PutOptions::default())
            .expect("good options");
        let copied = io::copy(&mut Failing(700_000), &mut writer);
        assert!(copied.is_err(), "the source's failure is passed on");
    }
    store = subject.reopen(store);
    store.assert_absent("new");
    store.assert_holds("old", "old");
}

pub(super) fn streams_to_one_key_do_not_mix(subject: &mut dyn Subject) {
    let store = subject.fresh();
    let payloads: Vec<Bytes> = (0..8).map(|seed| payload(seed, 400_000)).collect();
    let mut writers: Vec<_> = payloads
        .iter()
        .map(|_| {
            store
                .put_stream(&key("k"), PutOptions::default())
                .expect("good options")
        })
        .collect();
    for at in (0..400_000).step_by(50_000) {
        for (writer, bytes) in writers.iter_mut().zip(&payloads) {
            writer
                .write(bytes.slice(at..at + 50_000))
                .wait()
                .expect("takes it in");
        }
    }
    store.assert_absent("k");
    let mut last = 0;
    for (writer, bytes) in writers.into_iter().zip(&payloads) {
        let made = writer.finish().wait().expect("commits");
        assert!(
            made.version > last,
            "the later commit has the later version"
        );
        last = made.version;
        store.assert_holds("k", bytes);
    }
}

pub(super) fn a_running_reader_keeps_its_version(subject: &mut dyn Subject) {
    let store = subject.fresh();
    let name = key("k");
    for size in [0, 100, 4089, 3 * MIB + 17] {
        let old = payload(1, size);
        let changes: [(&str, &dyn Fn()); 5] = [
            ("overwritten", &|| {
                store.save("k", payload(2, size));
            }),
            ("deleted", &|| assert!(store.remove("k"))),
            ("renamed", &|| {
                store.move_to("k", "elsewhere");
            }),
            ("renamed onto", &|| {
                store.move_to("other", "k");
            }),
            ("copied onto", &|| {
                store.duplicate("other", "k");
            }),
        ];
        for (what, change) in changes {
            let put = store.save("k", old.clone());
            store.save("other", payload(3, size));
            let open = || {
                store
                    .get_stream(&name, GetOptions::default())
                    .wait()
                    .expect("it is there")
            };
            let mut early = open();
            let mut midway = open();
            let mut read = Vec::new();
            if let Some(piece) = midway.next().wait().expect("reads") {
                read.extend_from_slice(&piece);
            }
            change();
            // Room that is free now may be used again.
            for filler in 0..4 {
                store.save(format!("filler {filler}"), payload(filler, size));
            }
            store.flush().wait().expect("flushes");
            let mut early_read = Vec::new();
            for (reader, read) in [(&mut early, &mut early_read), (&mut midway, &mut read)] {
                assert_eq!((reader.version, reader.etag), (put.version, put.etag));
                while let Some(piece) = reader.next().wait().expect("reads on") {
                    read.extend_from_slice(&piece);
                }
                assert_bytes(read, &old, &format!("{size} bytes, {what} meanwhile"));
            }
        }
    }
}

pub(super) fn get_stream_ends_and_stays_ended(subject: &mut dyn Subject) {
    let store = subject.fresh();
    for size in [0, 1, 200_000] {
        let bytes = payload(1, size);
        let put = store.save("k", bytes.clone());
        let mut reader = store
            .get_stream(&key("k"), GetOptions::default())
            .wait()
            .expect("it is there");
        assert_eq!(reader.range, 0..size as u64);
        assert_eq!(reader.size, size as u64);
        assert_eq!((reader.etag, reader.version), (put.etag, put.version));
        let mut read = Vec::new();
        while let Some(piece) = reader.next().wait().expect("reads") {
            read.extend_from_slice(&piece);
        }
        assert_bytes(&read, &bytes, "stream");
        for _ in 0..3 {
            assert_eq!(reader.next().wait().expect("still at its end"), None);
        }
    }
    let dropped = store.get_stream(&key("k"), part(5..150_000)).wait();
    let mut dropped = dropped.expect("it is there");
    drop(dropped.next());
    drop(dropped);
    store.assert_holds("k", payload(1, 200_000));
}

pub(super) fn streams_are_io_read_and_write(subject: &mut dyn Subject) {
    let store = subject.fresh();
    let bytes = payload(1, 700_001);
    let mut writer = store
        .put_stream(&key("k"), PutOptions::default())
        .expect("good options");
    writer.write_all(&[]).expect("nothing is easily written");
    let copied = io::copy(&mut bytes.as_ref(), &mut writer).expect("takes it in");
    assert_eq!(copied, 700_001);
    writer.flush().expect("nothing to do");
    store.assert_absent("k");
    writer.finish().wait().expect("commits");
    store.assert_holds("k", &bytes);

    let open = |options| store.get_stream(&key("k"), options).wait();
    let mut read = Vec::new();
    open(GetOptions::default())
        .expect("it is there")
        .read_to_end(&mut read)
        .expect("reads");
    assert_bytes(&read, &bytes, "read_to_end");

    read.clear();
    open(part(4000..500_000))
        .expect("it is there")
        .read_to_end(&mut read)
        .expect("reads");
    assert_bytes(&read, &bytes[4000..500_000], "read_to_end of a range");

    let mut reader = open(GetOptions::default()).expect("it is there");
    let mut target = [0; 10_007];
    assert_eq!(reader.read(&mut []).expect("reads nothing"), 0);
    reader.read_exact(&mut target).expect("reads");
    assert_bytes(&target, &bytes[..10_007], "read_exact");
    let mut rest = Vec::new();
    while let Some(piece) = reader.next().wait().expect("reads on") {
        rest.extend_from_slice(&piece);
    }
    assert_bytes(&rest, &bytes[10_007..], "pieces after read_exact");
    assert_eq!(reader.read(&mut target).expect("at its end"), 0);

    let options = PutOptions {
        size: Some(3),
        ..PutOptions::default()
    };
    let mut writer = store
        .put_stream(&key("short"), options)
        .expect("good options");
    writer.write_all(b"ab").expect("takes it in");
    let short = writer.finish().wait();
    assert_fails!(
        short,
        StorageError::SizeMismatch {
            declared: 3,
            actual: 2,
            ..
        }
    );
    store.assert_absent("short");
}

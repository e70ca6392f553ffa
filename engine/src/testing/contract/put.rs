use bytes::Bytes;

use crate::port::blob::{ATTRIBUTE_NAME_MAX_LEN, ATTRIBUTES_MAX_LEN, REPLICAS_MAX};
use crate::port::{
    Attributes, Batch, BatchItem, BatchItemOutcome, Digest, DigestAlgorithm, ErrorKind, GetOptions,
    PutOptions, StorageError,
};
use crate::testing::Subject;
use crate::testing::support::{MIB, Short, assert_fails, key, payload};

pub(super) fn a_blob_of_no_bytes_is_a_blob(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    store.assert_absent("empty");
    let put = store.save("empty", "");
    store.assert_holds("empty", "");
    store
        .stream_in("streamed", [], PutOptions::default())
        .expect("a stream of nothing");
    store
        .stream_in(
            "pieces",
            [Bytes::new(), Bytes::new()],
            PutOptions::default(),
        )
        .expect("a stream of empty pieces");
    store.save("page", payload(1, 4096));
    store = subject.reopen(store);
    for name in ["empty", "streamed", "pieces"] {
        store.assert_holds(name, "");
        let streamed = store.stream_out(name, GetOptions::default());
        assert_eq!(streamed.expect("an empty stream"), "");
        let allocated = store.info(name).allocated;
        assert!(
            allocated < store.info("page").allocated,
            "{name} takes no payload block, but {allocated} bytes"
        );
    }
    assert_eq!(store.load("empty").version, put.version);
    assert_eq!(store.keys().len(), 4);
    store.save("empty", "full");
    store.assert_holds("empty", "full");
    store.save("empty", "");
    store.assert_holds("empty", "");
    assert!(store.remove("empty"));
    store.assert_absent("empty");
}

pub(super) fn put_replaces_under_a_new_version(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    let sizes = [10, 5 * MIB + 1, 0, 4088, 4089, 100_000, 1];
    let mut last = store.save("k", "first");
    for (round, size) in sizes.into_iter().enumerate() {
        let bytes = payload(round as u64, size);
        let next = store.save("k", bytes.clone());
        assert!(next.version > last.version, "{next:?} after {last:?}");
        assert_ne!(next.etag, last.etag);
        store.assert_holds("k", &bytes);
        assert_eq!(store.load("k").version, next.version);
        last = next;
    }
    let same = store.save("k", store.load("k").bytes);
    assert!(same.version > last.version, "the same bytes, a new version");
    store = subject.reopen(store);
    assert_eq!(store.load("k").version, same.version);
    store.assert_holds("k", payload(6, 1));
    let next = store.save("k", "after");
    assert!(next.version > same.version, "versions go on after a reopen");
    assert_eq!(store.keys().len(), 1);
}

pub(super) fn stat_tells_all_without_payload(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    let bytes = payload(1, 70_000);
    let digest = Digest::of(DigestAlgorithm::Sha256, &bytes);
    let options = PutOptions {
        size: Some(70_000),
        digest: Some(digest),
        attributes: attributes([("owner", b"me"), ("raw", b"\0\xff")]),
        ..PutOptions::default()
    };
    let put = store
        .save_with("k", bytes.clone(), options.clone())
        .expect("as declared");
    let info = store.info("k");
    assert_eq!(info.key, key("k"));
    assert_eq!(info.size, 70_000);
    assert!(info.allocated >= info.size, "{} bytes", info.allocated);
    assert_eq!((info.etag, info.version), (put.etag, put.version));
    assert_eq!(info.created, info.modified, "put at once");
    assert!(info.digests.contains(&digest), "{:?}", info.digests);
    assert_eq!(info.attributes, options.attributes);

    let listed = store.list_all(crate::port::ListRequest::default()).0;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].key, info.key);
    assert_eq!(listed[0].size, info.size);
    assert_eq!(listed[0].etag, info.etag);
    assert_eq!(listed[0].version, info.version);
    assert_eq!(listed[0].modified, info.modified);

    store = subject.reopen(store);
    let again = store.info("k");
    assert_eq!((again.size, again.version), (info.size, info.version));
    assert_eq!(
        (again.created, again.modified),
        (info.created, info.modified)
    );
    assert_eq!(again.digests, info.digests);
    assert_eq!(again.attributes, info.attributes);

    store
        .stream_in("streamed", [bytes], options.clone())
        .expect("as declared");
    let streamed = store.info("streamed");
    assert_eq!(streamed.size, 70_000);
    assert!(streamed.digests.contains(&digest), "{:?}", streamed.digests);
    assert_eq!(streamed.attributes, options.attributes);
    assert_eq!(streamed.created, streamed.modified);
}

pub(super) fn put_replaces_attributes_and_digests(subject: &mut dyn Subject) {
    let store = subject.fresh();
    let bytes = payload(1, 100);
    let digest = Digest::of(DigestAlgorithm::Blake3, &bytes);
    let options = PutOptions {
        digest: Some(digest),
        attributes: attributes([("a", b"1"), ("b", b"2")]),
        ..PutOptions::default()
    };
    store.save_with("k", bytes, options).expect("as declared");
    let old = store.info("k");
    store.let_the_clock_tick(old.created);
    let changed = PutOptions {
        attributes: attributes([("b", b"3")]),
        ..PutOptions::default()
    };
    store.save_with("k", "new", changed).expect("plain");
    let info = store.info("k");
    assert_eq!(info.attributes, attributes([("b", b"3")]), "not merged");
    assert!(!info.digests.contains(&digest), "the digest of other bytes");
    assert_eq!(info.created, info.modified, "another payload was put");
    store.save("k", "newer");
    assert_eq!(store.info("k").attributes, Attributes::new());
}

pub(super) fn attributes_are_limited(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    let old = store.save("k", "old");
    let longest_name = "n".repeat(ATTRIBUTE_NAME_MAX_LEN);
    let fits = ATTRIBUTES_MAX_LEN - longest_name.len();
    let attribute = |name: &str, length| Attributes::from([(name.to_owned(), payload(1, length))]);
    for refused in [
        attribute("", 1),
        attribute(&"n".repeat(ATTRIBUTE_NAME_MAX_LEN + 1), 1),
        attribute(&longest_name, fits + 1),
    ] {
        let options = PutOptions {
            attributes: refused,
            ..PutOptions::default()
        };
        let put = store.save_with("k", "new", options.clone());
        assert_fails!(put, StorageError::InvalidArgument { .. });
        let stream = store.put_stream(&key("k"), options);
        assert_fails!(stream, StorageError::InvalidArgument { .. });
    }
    assert_eq!(store.load("k").version, old.version);
    store.assert_holds("k", "old");

    let accepted = attribute(&longest_name, fits);
    let options = PutOptions {
        attributes: accepted.clone(),
        ..PutOptions::default()
    };
    store.save_with("k", "", options).expect("fits exactly");
    let empty_value = attribute("flag", 0);
    let options = PutOptions {
        attributes: empty_value.clone(),
        ..PutOptions::default()
    };
    store.save_with("flag", "", options).expect("empty value");
    store = subject.reopen(store);
    assert_eq!(store.info("k").attributes, accepted);
    assert_eq!(store.info("flag").attributes, empty_value);
}

pub(super) fn more_replicas_are_asked_for(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    let ask = |replicas| PutOptions {
        replicas: Some(replicas),
        ..PutOptions::default()
    };
    let batch_of = |name: &str, replicas| {
        let mut batch = Batch::new();
        batch.put(key("plain in a batch"), "plain");
        batch.items.push(BatchItem::Put {
            key: key(name),
            payload: payload(3, 100),
            options: ask(replicas),
        });
        batch
    };
    let put = store.save("plain", "plain");
    let own = store.info("plain").replicas;
    assert!((1..REPLICAS_MAX).contains(&own), "{own}");
    let more = own + 1;
    store.save_with("own", "x", ask(own)).expect("its number");
    store.save_with("small", "x", ask(more)).expect("more");
    let large = payload(1, 3 * MIB);
    store.save_with("large", large, ask(more)).expect("more");
    let most = store.save_with("most", "x", ask(REPLICAS_MAX));
    most.expect("the most there are");
    let streamed = store.stream_in("streamed", [payload(2, 70_000)], ask(more));
    streamed.expect("more");
    let batch = store.batch(batch_of("in a batch", more)).wait();
    batch.expect("it is put");
    store.duplicate("small", "copied");
    store.duplicate("large", "moved once");
    store.move_to("moved once", "moved");
    store.save_with("again", "x", ask(more)).expect("more");
    store.save("again", "y");

    let mut wrong = vec![0, REPLICAS_MAX + 1, u16::MAX];
    wrong.extend(own.checked_sub(1));
    for replicas in wrong {
        let refused = [
            store.save_with("plain", "other", ask(replicas)),
            store.save_with("new", "", ask(replicas)),
            store.stream_in("new", [], ask(replicas)),
            store
                .batch(batch_of("new", replicas))
                .wait()
                .map(|_| put.clone()),
        ];
        for refused in refused {
            assert_fails!(refused, StorageError::InvalidArgument { .. });
        }
    }
    for reopened in [false, true] {
        if reopened {
            store = subject.reopen(store);
        }
        for name in ["plain", "own", "again", "plain in a batch"] {
            assert_eq!(store.info(name).replicas, own, "{name}");
        }
        let asked = [
            "small",
            "large",
            "streamed",
            "in a batch",
            "copied",
            "moved",
        ];
        for name in asked {
            assert_eq!(store.info(name).replicas, more, "{name}");
        }
        assert_eq!(store.info("most").replicas, REPLICAS_MAX);
        assert_eq!(store.info("plain").version, put.version);
        store.assert_absent("new");
    }
}

pub(super) fn a_declared_size_is_held_to(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    for (old, size) in [("small", 100_usize), ("large", 2 * MIB)] {
        let bytes = payload(1, size);
        store.save(old, "old");
        let version = store.info(old).version;
        for declared in [0, 1, size as u64 - 1, size as u64 + 1, u64::MAX] {
            let options = PutOptions {
                size: Some(declared),
                ..PutOptions::default()
            };
            for name in [old, "absent"] {
                let put = store.save_with(name, bytes.clone(), options.clone());
                assert_size_refused(put.map(drop), name, declared, size);
                let pieces = bytes.chunks(size / 3).map(Bytes::copy_from_slice);
                let streamed = store.stream_in(name, pieces, options.clone());
                assert_size_refused(streamed.map(drop), name, declared, size);
            }
            store.assert_absent("absent");
        }
        assert_eq!(store.load(old).version, version);
        store.assert_holds(old, "old");
        let options = PutOptions {
            size: Some(size as u64),
            ..PutOptions::default()
        };
        store
            .save_with(old, bytes.clone(), options.clone())
            .expect("as declared");
        store.assert_holds(old, &bytes);
        let pieces = bytes.chunks(size / 3).map(Bytes::copy_from_slice);
        store
            .stream_in("streamed", pieces, options)
            .expect("as declared");
        store.assert_holds("streamed", &bytes);
    }
    let nothing = PutOptions {
        size: Some(0),
        ..PutOptions::default()
    };
    store
        .stream_in("nothing", [], nothing)
        .expect("as declared");
    store = subject.reopen(store);
    store.assert_holds("nothing", "");
    store.assert_absent("absent");
}

/// A declared size that is wrong is a mismatch; one above the limit may be refused as too large.
#[track_caller]
fn assert_size_refused(outcome: Result<(), StorageError>, name: &str, declared: u64, size: usize) {
    match outcome {
        Err(StorageError::SizeMismatch {
            key,
            declared: named,
            ..
        }) => assert_eq!((key.as_bytes(), named), (name.as_bytes(), declared)),
        Err(StorageError::TooLarge { .. }) if declared == u64::MAX => {}
        Err(error) => panic!("{declared} bytes declared, {size} sent: {error:?}"),
        Ok(()) => panic!("{declared} bytes declared, {size} sent: it succeeded"),
    }
}

pub(super) fn a_declared_digest_is_held_to(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    let algorithms = [DigestAlgorithm::Sha256, DigestAlgorithm::Blake3];
    for (size, algorithm) in [0, 100, 2 * MIB]
        .into_iter()
        .flat_map(|size| algorithms.map(|algorithm| (size, algorithm)))
    {
        let bytes = payload(1, size);
        let right = Digest::of(algorithm, &bytes);
        let mut wrong = right;
        wrong.bytes[31] ^= 1;
        let [wrong_options, right_options] = [wrong, right].map(|digest| PutOptions {
            digest: Some(digest),
            ..PutOptions::default()
        });
        let old = store.save("k", "old");
        for name in ["k", "absent"] {
            let put = store.save_with(name, bytes.clone(), wrong_options.clone());
            assert_fails!(
                put,
                StorageError::DigestMismatch { key, declared, actual }
                    if key.as_bytes() == name.as_bytes()
                        && declared == wrong.to_string()
                        && actual == right.to_string()
            );
            let streamed = store.stream_in(name, [bytes.clone()], wrong_options.clone());
            assert_fails!(&streamed, StorageError::DigestMismatch { .. });
            let kind = streamed.map_err(|error| error.kind());
            assert_eq!(kind, Err(ErrorKind::InvalidInput));
        }
        store.assert_absent("absent");
        store.assert_holds("k", "old");
        assert_eq!(store.load("k").version, old.version);

        store
            .save_with("k", bytes.clone(), right_options.clone())
            .expect("as declared");
        store.assert_holds("k", &bytes);
        let pieces = bytes.chunks(1000).map(Bytes::copy_from_slice);
        store
            .stream_in("streamed", pieces, right_options)
            .expect("as declared");
        store.assert_holds("streamed", &bytes);
        for name in ["k", "streamed"] {
            assert!(store.info(name).digests.contains(&right), "{name} {right}");
        }
    }
    store = subject.reopen(store);
    store.assert_absent("absent");
    assert_eq!(store.info("k").digests.len(), 1);
}

pub(super) fn too_large_a_blob_is_refused(subject: &mut dyn Subject) {
    let store = subject.fresh();
    let Some(limit) = subject.max_blob_size() else {
        return;
    };
    let largest = payload(1, usize::try_from(limit).expect("small enough to be tried"));
    store.save("largest", largest.clone());
    store.assert_holds("largest", &largest);
    assert!(store.remove("largest"));

    let larger = payload(1, largest.len() + 1);
    let old = store.save("k", "old");
    let put = store.save_with("k", larger.clone(), PutOptions::default());
    assert_fails!(put, StorageError::TooLarge { limit: named, .. } if named == limit);
    let pieces = larger.chunks(MIB).map(Bytes::copy_from_slice);
    let streamed = store.stream_in("k", pieces, PutOptions::default());
    assert_fails!(streamed, StorageError::TooLarge { limit: named, .. } if named == limit);
    let options = PutOptions {
        size: Some(limit + 1),
        ..PutOptions::default()
    };
    let declared = store.stream_in("k", [], options);
    assert_fails!(declared, StorageError::TooLarge { .. });
    store.assert_holds("k", "old");
    assert_eq!(store.load("k").version, old.version);
}

pub(super) fn payloads_may_lie_anywhere_in_memory(subject: &mut dyn Subject) {
    let store = subject.fresh();
    let whole = payload(1, 200_000);
    for offset in [1, 3, 511, 513, 4095] {
        for size in [1, 511, 4096, 100_000] {
            let part = whole.slice(offset..offset + size);
            store.save("k", part.clone());
            store.assert_holds("k", &part);
        }
    }
    store.save("static", Bytes::from_static(b"in the program's text"));
    store.assert_holds("static", "in the program's text");
}

pub(super) fn versions_ascend_over_all_keys(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    let mut last = 0;
    let mut check = |what: &str, version: u64| {
        assert!(version > last, "{what}: {version} after {last}");
        last = version;
    };
    for round in 0..3 {
        check("put", store.save("a", "small").version);
        check("put of another key", store.save("b", "small").version);
        check(
            "large put",
            store.save("c", payload(round, 2 * MIB)).version,
        );
        let pieces = [payload(1, 9000), payload(2, 9000)];
        let streamed = store.stream_in("d", pieces, PutOptions::default());
        check("stream", streamed.expect("a plain stream").version);
        check("copy", store.duplicate("c", "e").version);
        check("rename", store.move_to("e", "a").version);
        let mut batch = Batch::new();
        batch.put(key("b"), "in a batch").put(key("f"), "too");
        for outcome in store.batch(batch).wait().expect("a plain batch") {
            if let BatchItemOutcome::Put(made) = outcome {
                check("batch", made.version);
            }
        }
        assert!(store.remove("d"));
        store = subject.reopen(store);
    }
}

pub(super) fn absent_is_not_found(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    store.assert_absent("k");
    store.fill(["j", "k0", "k/", "K"]);
    store.assert_absent("k");
    let get = store.get(&key("k"), GetOptions::default()).wait();
    let error = get.expect_err("absent");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(!error.is_retryable());
    store.save("k", "here");
    store.assert_holds("k", "here");
    assert!(store.remove("k"));
    store.assert_absent("k");
    store = subject.reopen(store);
    store.assert_absent("k");
    for name in ["j", "k0", "k/", "K"] {
        store.assert_holds(name, name);
    }
}

fn attributes<const N: usize>(pairs: [(&str, &'static [u8]); N]) -> Attributes {
    pairs
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Bytes::from_static(value)))
        .collect()
}

use bytes::Bytes;

use crate::port::{
    Attributes, CopyOptions, Digest, DigestAlgorithm, ErrorKind, PutOptions, StorageError,
};
use crate::testing::Subject;
use crate::testing::support::{MIB, Short, assert_bytes, assert_fails, key, part, payload};

const SIZES: [usize; 6] = [0, 1, 4088, 4097, 100_000, 5 * MIB + 1];

pub(super) fn copy_makes_a_blob_of_its_own(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    for size in SIZES {
        let bytes = payload(size as u64, size);
        let put = store.save("source", bytes.clone());
        let copied = store.duplicate("source", "target");
        assert_eq!(copied.size, size as u64);
        assert!(copied.version > put.version);
        assert_ne!(copied.etag, put.etag);
        store.assert_holds("source", &bytes);
        assert_eq!(store.load("source").version, put.version, "left alone");
        store.assert_holds("target", &bytes);
        assert_eq!(store.load("target").version, copied.version);

        store.save("source", "overwritten");
        store.assert_holds("target", &bytes);
        store.duplicate("target", "second");
        assert!(store.remove("target"));
        store.assert_holds("second", &bytes);
        store.duplicate("second", "source");
        assert!(store.remove("second"));
        store = subject.reopen(store);
        store.assert_holds("source", &bytes);
        store.assert_absent("target");
        store.assert_absent("second");
        let middle = size as u64 / 2;
        let half = store.get(&key("source"), part(0..middle)).wait();
        let expected = &bytes[..size / 2];
        assert_bytes(
            &half.expect("it is there").bytes,
            expected,
            "half of a copy",
        );
    }
}

pub(super) fn copies_live_without_their_source(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    let bytes = payload(1, 3 * MIB + 1);
    store
        .stream_in(
            "source",
            bytes.chunks(100_000).map(Bytes::copy_from_slice),
            PutOptions::default(),
        )
        .expect("a plain stream");
    for n in 0..5 {
        store.duplicate("source", format!("copy {n}"));
    }
    assert!(store.remove("source"));
    // Room that is free now may be used again.
    for n in 0..8 {
        store.save("filler", payload(n, 3 * MIB));
    }
    for n in 0..5 {
        store.assert_absent("source");
        for left in n..5 {
            store.assert_holds(format!("copy {left}"), &bytes);
        }
        assert!(store.remove(format!("copy {n}")));
        store.save("filler", payload(n, 3 * MIB));
        store = subject.reopen(store);
    }
    assert_eq!(store.keys(), [key("filler")]);
}

pub(super) fn copy_and_rename_keep_what_is_known(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    let bytes = payload(1, 10_000);
    let digest = Digest::of(DigestAlgorithm::Sha256, &bytes);
    let attributes = Attributes::from([("a".to_owned(), Bytes::from_static(b"1"))]);
    let options = PutOptions {
        digest: Some(digest),
        attributes: attributes.clone(),
        ..PutOptions::default()
    };
    store
        .save_with("source", bytes.clone(), options)
        .expect("as declared");
    let original = store.info("source");
    let other = PutOptions {
        attributes: Attributes::from([("b".to_owned(), Bytes::from_static(b"2"))]),
        ..PutOptions::default()
    };
    store.save_with("copied", "old", other).expect("plain");
    store.let_the_clock_tick(original.created);
    store.duplicate("source", "copied");
    store.move_to("copied", "renamed");
    store.duplicate("renamed", "copied");
    for reopened in [false, true] {
        if reopened {
            store = subject.reopen(store);
        }
        for name in ["copied", "renamed"] {
            let info = store.info(name);
            assert_eq!(info.created, original.created, "{name}");
            assert_eq!(info.digests, original.digests, "{name}");
            assert_eq!(info.attributes, attributes, "{name}");
            assert_eq!(info.size, 10_000, "{name}");
            assert!(info.version > original.version, "{name}");
        }
        let source = store.info("source");
        assert_eq!(source.version, original.version);
        assert_eq!(source.modified, original.modified);
    }
}

pub(super) fn rename_moves_a_blob(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    for size in SIZES {
        let bytes = payload(size as u64, size);
        let put = store.save("source", bytes.clone());
        let renamed = store.move_to("source", "target");
        assert_eq!(renamed.size, size as u64);
        assert!(renamed.version > put.version);
        store.assert_absent("source");
        store.assert_holds("target", &bytes);
        assert_eq!(store.load("target").version, renamed.version);

        let old = store.save("occupied", payload(9, 5000));
        let onto = store.move_to("target", "occupied");
        assert!(onto.version > old.version);
        store.assert_absent("target");
        store.assert_holds("occupied", &bytes);
        store = subject.reopen(store);
        store.assert_absent("source");
        store.assert_absent("target");
        store.assert_holds("occupied", &bytes);
        assert_eq!(store.load("occupied").version, onto.version);

        store.save("source", "a new life");
        store.assert_holds("occupied", &bytes);
        store.move_to("occupied", "back");
        store.move_to("back", "occupied");
        store.assert_holds("occupied", &bytes);
        assert_eq!(store.keys(), [key("occupied"), key("source")]);
    }
}

pub(super) fn copy_and_rename_of_an_absent_key_fail(subject: &mut dyn Subject) {
    let store = subject.fresh();
    let target = store.save("target", "kept");
    let (absent, kept) = (key("absent"), key("target"));
    let options = CopyOptions::default;
    for outcome in [
        store.copy(&absent, &kept, options()).wait(),
        store.rename(&absent, &kept, options()).wait(),
        store.copy(&absent, &absent, options()).wait(),
        store.rename(&absent, &absent, options()).wait(),
        store.copy(&absent, &key("new"), options()).wait(),
        store.rename(&absent, &key("new"), options()).wait(),
    ] {
        let kind = outcome.as_ref().map_err(StorageError::kind);
        assert_eq!(kind, Err(ErrorKind::NotFound));
        assert_fails!(outcome, StorageError::NotFound { key } if key == absent);
    }
    store.assert_holds("target", "kept");
    assert_eq!(store.load("target").version, target.version);
    assert_eq!(store.keys(), [kept]);
}

pub(super) fn copy_and_rename_to_itself_make_a_version(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    for size in SIZES {
        let bytes = payload(size as u64, size);
        store.save("k", bytes.clone());
        let original = store.info("k");
        let copied = store.duplicate("k", "k");
        assert!(copied.version > original.version);
        store.assert_holds("k", &bytes);
        let renamed = store.move_to("k", "k");
        assert!(renamed.version > copied.version);
        store.assert_holds("k", &bytes);
        assert_eq!(store.info("k").version, renamed.version);
        assert_eq!(store.info("k").created, original.created);
        store = subject.reopen(store);
        store.assert_holds("k", &bytes);
        assert_eq!(store.info("k").version, renamed.version);
        assert_eq!(store.keys(), [key("k")]);
    }
}

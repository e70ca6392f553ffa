use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::port::{
    Attributes, CompleteOptions, Digest, DigestAlgorithm, ETag, MutableObjectStore, Precondition,
    PutOptions, PutOutcome, StorageError, UploadId, UploadOptions,
};
use crate::testing::Subject;
use crate::testing::support::{Short, assert_bytes, assert_fails, key, payload, put_if};

type MutableSubject<'a> = &'a mut dyn Subject<dyn MutableObjectStore>;
type Store = Arc<dyn MutableObjectStore>;

fn start(store: &Store, name: &str) -> UploadId {
    let upload = store.start_upload(&key(name), UploadOptions::default());
    upload.wait().expect("an upload begins")
}

fn put_part(store: &Store, upload: UploadId, number: u16, bytes: &Bytes) -> ETag {
    let put = store.upload_part(upload, number, bytes.clone(), PutOptions::default());
    let put = put.wait().expect("a part is put");
    assert_eq!(put.size, bytes.len() as u64);
    put.etag
}

fn complete(
    store: &Store,
    upload: UploadId,
    parts: &[(u16, ETag)],
) -> Result<PutOutcome, StorageError> {
    let completed = store.complete_upload(upload, parts, CompleteOptions::default());
    completed.wait()
}

/// Sizes of parts, some of them larger than what is written at once.
const SIZES: [usize; 5] = [100_000, 1, 0, 700_000, 4088];

pub(super) fn nothing_shows_before_completion(subject: MutableSubject<'_>) {
    let mut store = subject.fresh();
    let old = store.save("k", "old");
    let upload = start(&store, "k");
    let etag = put_part(&store, upload, 1, &payload(1, 50_000));
    for _ in 0..2 {
        store.assert_holds("k", b"old");
        assert_eq!(store.info("k").version, old.version);
        assert_eq!(store.keys().len(), 1);
        store = subject.reopen(store);
    }
    complete(&store, upload, &[(1, etag)]).expect("it is completed");
    store.assert_holds("k", payload(1, 50_000));
}

pub(super) fn a_completed_upload_is_its_parts(subject: MutableSubject<'_>) {
    let mut store = subject.fresh();
    for (round, order) in [[0, 1, 2, 3, 4], [4, 2, 0, 3, 1]].into_iter().enumerate() {
        let upload = start(&store, "k");
        let mut parts = Vec::new();
        for which in order {
            let number = 7 + 1000 * u16::try_from(which).expect("few parts");
            let bytes = payload(which as u64, SIZES[which]);
            parts.push((number, put_part(&store, upload, number, &bytes)));
            if round == 1 && which == 2 {
                store = subject.reopen(store);
            }
        }
        put_part(&store, upload, 1500, &payload(99, 30_000));
        parts.sort_by_key(|(number, _)| *number);
        let completed = complete(&store, upload, &parts).expect("it is completed");
        let mut expected = Vec::new();
        for (which, size) in SIZES.into_iter().enumerate() {
            expected.extend_from_slice(&payload(which as u64, size));
        }
        assert_eq!(completed.size, expected.len() as u64);
        for _ in 0..2 {
            let blob = store.load("k");
            assert_eq!(
                (blob.version, blob.etag),
                (completed.version, completed.etag)
            );
            assert_bytes(&blob.bytes, &expected, "all parts");
            let uploads = store
                .list_uploads(None, 10)
                .wait()
                .expect("they are listed");
            assert!(uploads.is_empty(), "{uploads:?}");
            store = subject.reopen(store);
        }
    }
}

pub(super) fn part_numbers_are_1_to_10_000(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    let upload = start(&store, "k");
    for number in [0, 10_001, u16::MAX] {
        let put = store.upload_part(upload, number, "part".into(), PutOptions::default());
        assert_fails!(put.wait(), StorageError::InvalidPart { number: of, .. } if of == number);
        let stream = store.upload_part_stream(upload, number, PutOptions::default());
        assert_fails!(stream, StorageError::InvalidPart { .. });
    }
    let parts =
        [1, 10_000].map(|number| (number, put_part(&store, upload, number, &"part".into())));
    complete(&store, upload, &parts).expect("it is completed");
    store.assert_holds("k", b"partpart");
}

pub(super) fn a_part_put_again_replaces_the_first(subject: MutableSubject<'_>) {
    let mut store = subject.fresh();
    let upload = start(&store, "k");
    let first = put_part(&store, upload, 3, &payload(1, 100_000));
    let second = put_part(&store, upload, 3, &payload(2, 70_000));
    assert_ne!(first, second);
    store = subject.reopen(store);
    let refused = complete(&store, upload, &[(3, first)]);
    assert_fails!(refused, StorageError::InvalidPart { number: 3, .. });
    let listed = store
        .list_parts(upload, 0, 10)
        .wait()
        .expect("they are listed");
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].etag, listed[0].size), (second, 70_000));
    let put = store.upload_part(upload, 3, "x".into(), put_if(Precondition::IfETag(first)));
    assert_fails!(put.wait(), StorageError::PreconditionFailed { actual, .. } if actual == Some(second));
    complete(&store, upload, &[(3, second)]).expect("it is completed");
    store.assert_holds("k", payload(2, 70_000));
}

pub(super) fn wrong_lists_leave_the_upload_open(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    let upload = start(&store, "k");
    let one = put_part(&store, upload, 1, &"one".into());
    let two = put_part(&store, upload, 2, &"two".into());
    let swapped = complete(&store, upload, &[(2, two), (1, one)]);
    assert_fails!(
        swapped,
        StorageError::InvalidPartOrder {
            number: 1,
            after: 2
        }
    );
    let twice = complete(&store, upload, &[(1, one), (1, one)]);
    assert_fails!(
        twice,
        StorageError::InvalidPartOrder {
            number: 1,
            after: 1
        }
    );
    let absent = complete(&store, upload, &[(1, one), (3, two)]);
    assert_fails!(absent, StorageError::InvalidPart { number: 3, .. });
    let other = complete(&store, upload, &[(1, two)]);
    assert_fails!(other, StorageError::InvalidPart { number: 1, .. });
    let none = complete(&store, upload, &[(0, one)]);
    assert_fails!(none, StorageError::InvalidPart { number: 0, .. });
    store.assert_absent("k");
    let three = put_part(&store, upload, 3, &"three".into());
    complete(&store, upload, &[(1, one), (2, two), (3, three)]).expect("it is completed");
    store.assert_holds("k", b"onetwothree");
}

pub(super) fn completing_with_no_parts(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    let upload = start(&store, "k");
    put_part(&store, upload, 1, &payload(1, 100_000));
    let options = CompleteOptions {
        refuse_empty: true,
        ..CompleteOptions::default()
    };
    let refused = store.complete_upload(upload, &[], options).wait();
    assert_fails!(refused, StorageError::InvalidArgument { .. });
    let completed = complete(&store, upload, &[]).expect("it is completed");
    assert_eq!(completed.size, 0);
    store.assert_holds("k", b"");
}

pub(super) fn completing_again_is_the_same_answer(subject: MutableSubject<'_>) {
    let mut store = subject.fresh();
    let upload = start(&store, "k");
    let one = put_part(&store, upload, 1, &"one".into());
    let two = put_part(&store, upload, 2, &"two".into());
    let parts = [(1, one), (2, two)];
    let completed = complete(&store, upload, &parts).expect("it is completed");
    for _ in 0..2 {
        let again = complete(&store, upload, &parts).expect("it is completed already");
        assert_eq!(again, completed);
        assert_eq!(store.info("k").version, completed.version);
        let other = complete(&store, upload, &parts[..1]);
        assert_fails!(other, StorageError::NoSuchUpload { upload: of } if of == upload);
        let put = store.upload_part(upload, 1, "late".into(), PutOptions::default());
        assert_fails!(put.wait(), StorageError::NoSuchUpload { .. });
        store = subject.reopen(store);
    }
    store.save("k", "something else");
    let late = complete(&store, upload, &parts);
    assert_fails!(late, StorageError::NoSuchUpload { .. });
    store.assert_holds("k", b"something else");
}

pub(super) fn an_aborted_upload_is_gone(subject: MutableSubject<'_>) {
    let mut store = subject.fresh();
    let upload = start(&store, "k");
    let etag = put_part(&store, upload, 1, &payload(1, 100_000));
    let stream = store.upload_part_stream(upload, 2, PutOptions::default());
    let mut stream = stream.expect("the upload is open");
    stream
        .write(payload(2, 100_000))
        .wait()
        .expect("it is open");
    store.abort_upload(upload).wait().expect("it is aborted");
    assert_fails!(stream.finish().wait(), StorageError::NoSuchUpload { .. });
    for _ in 0..2 {
        assert_fails!(
            complete(&store, upload, &[(1, etag)]),
            StorageError::NoSuchUpload { .. }
        );
        assert_fails!(
            store.abort_upload(upload).wait(),
            StorageError::NoSuchUpload { .. }
        );
        let put = store.upload_part(upload, 1, "late".into(), PutOptions::default());
        assert_fails!(put.wait(), StorageError::NoSuchUpload { .. });
        let listed = store.list_parts(upload, 0, 10).wait();
        assert_fails!(listed, StorageError::NoSuchUpload { .. });
        store.assert_absent("k");
        store = subject.reopen(store);
    }
    let never = store.abort_upload(UploadId::of_lsn(u64::MAX)).wait();
    assert_fails!(never, StorageError::NoSuchUpload { .. });
}

pub(super) fn uploads_to_one_key(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    let (first, second) = (start(&store, "k"), start(&store, "k"));
    assert_ne!(first, second);
    let of_first = put_part(&store, first, 1, &"first".into());
    let of_second = put_part(&store, second, 1, &"second".into());
    let foreign = complete(&store, first, &[(1, of_second)]);
    assert_fails!(foreign, StorageError::InvalidPart { .. });
    complete(&store, second, &[(1, of_second)]).expect("it is completed");
    store.assert_holds("k", b"second");
    complete(&store, first, &[(1, of_first)]).expect("it is completed");
    store.assert_holds("k", b"first");
}

pub(super) fn completion_is_conditional(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    let upload = start(&store, "k");
    let parts = [(1, put_part(&store, upload, 1, &"new".into()))];
    let old = store.save("k", "old");
    let current = store.save("k", "current");
    let try_it = |precondition| {
        let options = CompleteOptions {
            precondition,
            ..CompleteOptions::default()
        };
        store.complete_upload(upload, &parts, options).wait()
    };
    for precondition in [
        Precondition::IfAbsent,
        Precondition::IfETag(old.etag),
        Precondition::IfVersion(old.version),
    ] {
        assert_fails!(
            try_it(precondition),
            StorageError::PreconditionFailed { actual, .. } if actual == Some(current.etag)
        );
    }
    store.assert_holds("k", b"current");
    try_it(Precondition::IfVersion(current.version)).expect("it holds");
    store.assert_holds("k", b"new");
}

pub(super) fn parts_are_held_to_what_is_declared(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    let upload = start(&store, "k");
    let bytes = payload(1, 5000);
    let digest = Digest::of(DigestAlgorithm::Sha256, &bytes);
    let put = |size, digest| {
        let options = PutOptions {
            size,
            digest,
            ..PutOptions::default()
        };
        store.upload_part(upload, 1, bytes.clone(), options).wait()
    };
    assert_fails!(
        put(Some(4999), None),
        StorageError::SizeMismatch { actual: 5000, .. }
    );
    let wrong = Digest::of(DigestAlgorithm::Sha256, b"other bytes");
    assert_fails!(put(None, Some(wrong)), StorageError::DigestMismatch { .. });
    assert!(
        store
            .list_parts(upload, 0, 10)
            .wait()
            .expect("it is open")
            .is_empty()
    );
    put(Some(5000), Some(digest)).expect("it is as declared");
}

pub(super) fn parts_in_streams(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    let upload = start(&store, "k");
    let (mut parts, mut expected) = (Vec::new(), Vec::new());
    for (number, size) in (1..).zip(SIZES) {
        let bytes = payload(number.into(), size);
        let stream = store.upload_part_stream(upload, number, PutOptions::default());
        let mut stream = stream.expect("the upload is open");
        for piece in bytes.chunks(9999) {
            let written = stream.write(Bytes::copy_from_slice(piece)).wait();
            written.expect("it is taken in");
        }
        let put = stream.finish().wait().expect("it is put");
        assert_eq!(put.size, size as u64);
        parts.push((number, put.etag));
        expected.extend_from_slice(&bytes);
    }
    let dropped = store.upload_part_stream(upload, 3, PutOptions::default());
    let mut dropped = dropped.expect("the upload is open");
    dropped
        .write(payload(9, 100_000))
        .wait()
        .expect("it is taken in");
    drop(dropped);
    complete(&store, upload, &parts).expect("nothing was replaced");
    store.assert_holds("k", &expected);
    let late = store.upload_part_stream(upload, 1, PutOptions::default());
    assert_fails!(late, StorageError::NoSuchUpload { .. });
}

pub(super) fn uploads_and_parts_are_listed(subject: MutableSubject<'_>) {
    let mut store = subject.fresh();
    let names = ["b", "a", "a//b", "b"];
    let uploads: Vec<UploadId> = names.iter().map(|name| start(&store, name)).collect();
    let numbers = [9, 2, 10_000, 500];
    for (number, size) in numbers.into_iter().zip(SIZES) {
        put_part(&store, uploads[0], number, &payload(number.into(), size));
    }
    let mut order: Vec<_> = names
        .iter()
        .map(|name| key(name))
        .zip(uploads.clone())
        .collect();
    order.sort();
    for _ in 0..2 {
        let (mut listed, mut after) = (Vec::new(), None);
        loop {
            let page = store
                .list_uploads(after.clone(), 3)
                .wait()
                .expect("they are listed");
            let Some(last) = page.last() else { break };
            assert!(page.len() <= 3);
            after = Some((last.key.clone(), last.upload));
            listed.extend(page);
        }
        let found: Vec<_> = listed
            .iter()
            .map(|info| (info.key.clone(), info.upload))
            .collect();
        assert_eq!(found, order);
        let first = listed.iter().find(|info| info.upload == uploads[0]);
        let first = first.expect("it was found");
        let bytes: usize = SIZES[..4].iter().sum();
        assert_eq!((first.parts, first.bytes), (4, bytes as u64));
        assert!(first.modified >= first.started);
        let parts = store
            .list_parts(uploads[0], 0, 3)
            .wait()
            .expect("they are listed");
        let found: Vec<_> = parts.iter().map(|part| (part.number, part.size)).collect();
        assert_eq!(found, [(2, 1), (9, 100_000), (500, 700_000)]);
        let parts = store
            .list_parts(uploads[0], 500, 3)
            .wait()
            .expect("they are listed");
        let found: Vec<_> = parts.iter().map(|part| (part.number, part.size)).collect();
        assert_eq!(found, [(10_000, 0)]);
        assert!(
            store
                .list_uploads(None, 0)
                .wait()
                .expect("an empty page")
                .is_empty()
        );
        store = subject.reopen(store);
    }
}

pub(super) fn old_uploads_are_swept(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    let upload = start(&store, "k");
    put_part(&store, upload, 1, &payload(1, 100_000));
    put_part(&store, upload, 2, &payload(2, 5));
    start(&store, "l");
    let long = Duration::from_secs(1_000_000);
    let swept = store.sweep_uploads(long).wait().expect("it is swept");
    assert_eq!((swept.uploads, swept.bytes), (0, 0));
    let swept = store
        .sweep_uploads(Duration::ZERO)
        .wait()
        .expect("it is swept");
    assert_eq!((swept.uploads, swept.bytes), (2, 100_005));
    assert_fails!(
        store.abort_upload(upload).wait(),
        StorageError::NoSuchUpload { .. }
    );
    assert!(
        store
            .list_uploads(None, 10)
            .wait()
            .expect("they are listed")
            .is_empty()
    );
}

pub(super) fn attributes_of_an_upload_are_its_blobs(subject: MutableSubject<'_>) {
    let mut store = subject.fresh();
    let options = UploadOptions {
        attributes: Attributes::from([("colour".to_owned(), "blue".into())]),
        ..UploadOptions::default()
    };
    let upload = store.start_upload(&key("k"), options.clone()).wait();
    let upload = upload.expect("an upload begins");
    let etag = put_part(&store, upload, 1, &"bytes".into());
    store = subject.reopen(store);
    complete(&store, upload, &[(1, etag)]).expect("it is completed");
    assert_eq!(store.info("k").attributes, options.attributes);
    let wrong = UploadOptions {
        attributes: Attributes::from([(String::new(), Bytes::new())]),
        ..UploadOptions::default()
    };
    let refused = store.start_upload(&key("k"), wrong).wait();
    assert_fails!(refused, StorageError::InvalidArgument { .. });
}

pub(super) fn replicas_of_an_upload_are_its_blobs(subject: MutableSubject<'_>) {
    let mut store = subject.fresh();
    store.save("plain", "plain");
    let own = store.info("plain").replicas;
    let ask = |replicas| UploadOptions {
        replicas: Some(replicas),
        ..UploadOptions::default()
    };
    let wrong = [0, 65].into_iter().chain(own.checked_sub(1));
    for replicas in wrong {
        let refused = store.start_upload(&key("k"), ask(replicas)).wait();
        assert_fails!(refused, StorageError::InvalidArgument { .. });
    }
    for (round, expected) in [own + 1, own].into_iter().enumerate() {
        let upload = store.start_upload(&key("k"), ask(expected)).wait();
        let upload = upload.expect("an upload begins");
        let mut parts = Vec::new();
        for (number, size) in (1..).zip([100_000, 10]) {
            let options = PutOptions {
                replicas: Some(own + 2),
                ..PutOptions::default()
            };
            let put = store.upload_part(upload, number, payload(1, size), options);
            parts.push((number, put.wait().expect("a part is put").etag));
            store = subject.reopen(store);
        }
        complete(&store, upload, &parts).expect("it is completed");
        assert_eq!(store.info("k").replicas, expected, "round {round}");
        store = subject.reopen(store);
        assert_eq!(store.info("k").replicas, expected, "round {round}");
    }
}

use bytes::Bytes;

use crate::port::{
    Batch, BatchItem, BinaryKey, CopyOptions, DeleteOptions, ETag, ErrorKind, Precondition,
    PutOptions, PutOutcome, StorageError,
};
use crate::testing::Subject;
use crate::testing::support::{
    Short, Store, assert_bytes, assert_fails, get_if, key, part, payload, put_if,
};

/// Preconditions that don't hold of a key that has `current` and once had `stale`.
fn wrong(stale: &PutOutcome, current: &PutOutcome) -> [Precondition; 7] {
    [
        Precondition::IfAbsent,
        Precondition::IfETag(stale.etag),
        Precondition::IfETag(ETag::of_version(0)),
        Precondition::IfVersion(stale.version),
        Precondition::IfVersion(0),
        Precondition::IfVersion(current.version + 1),
        Precondition::IfVersion(u64::MAX),
    ]
}

/// Preconditions that hold of a key that has `current`.
fn right(current: &PutOutcome) -> [Precondition; 3] {
    let text = current.etag.to_string();
    [
        Precondition::IfETag(current.etag),
        Precondition::IfETag(text.parse().expect("an ETag's text form")),
        Precondition::IfVersion(current.version),
    ]
}

/// Preconditions that don't hold of an absent key.
const WRONG_IF_ABSENT: [Precondition; 2] = [Precondition::IfVersion(0), Precondition::IfVersion(1)];

#[track_caller]
fn assert_conflict<T>(outcome: Result<T, StorageError>, name: &str, actual: Option<ETag>) {
    let Err(error) = outcome else {
        panic!("it succeeded against its precondition");
    };
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
    assert!(error.is_retryable(), "{error:?}");
    let StorageError::PreconditionFailed { key, actual: named } = error else {
        panic!("{error:?}");
    };
    assert_eq!((key.as_bytes(), named), (name.as_bytes(), actual));
}

/// One clause for each way of putting: by `put`, as a stream, in a batch.
fn check_puts(
    subject: &mut dyn Subject,
    put: fn(&Store, &str, Bytes, PutOptions) -> Result<(), StorageError>,
) {
    let store = subject.fresh();
    for wrong in WRONG_IF_ABSENT {
        let refused = put(&store, "k", "lost".into(), put_if(wrong));
        assert_conflict(refused, "k", None);
        store.assert_absent("k");
    }
    put(&store, "k", "one".into(), put_if(Precondition::IfAbsent)).expect("it is absent");
    store.assert_holds("k", "one");

    let stale = store.save("k", "two");
    let mut current = store.save("k", "three");
    for wrong in wrong(&stale, &current) {
        let refused = put(&store, "k", payload(9, 10_000), put_if(wrong));
        assert_conflict(refused, "k", Some(current.etag));
        store.assert_holds("k", "three");
        assert_eq!(store.load("k").version, current.version);
    }
    for round in 0..3 {
        let bytes = payload(round, 5000);
        let right = right(&current)[usize::try_from(round).expect("0 to 2")];
        put(&store, "k", bytes.clone(), put_if(right)).expect("it holds");
        store.assert_holds("k", &bytes);
        let info = store.info("k");
        assert!(info.version > current.version);
        (current.version, current.etag) = (info.version, info.etag);
    }
    assert!(store.remove("k"));
    for gone in right(&current) {
        let refused = put(&store, "k", "lost".into(), put_if(gone));
        assert_conflict(refused, "k", None);
    }
    put(&store, "k", "back".into(), put_if(Precondition::IfAbsent)).expect("absent again");
    store.assert_holds("k", "back");
}

pub(super) fn put_is_conditional(subject: &mut dyn Subject) {
    check_puts(subject, |store, name, bytes, options| {
        store.save_with(name, bytes, options).map(drop)
    });
}

pub(super) fn put_stream_is_conditional(subject: &mut dyn Subject) {
    check_puts(subject, |store, name, bytes, options| {
        store.stream_in(name, [bytes], options).map(drop)
    });
}

pub(super) fn batch_is_conditional(subject: &mut dyn Subject) {
    check_puts(subject, |store, name, payload, options| {
        let mut batch = Batch::new();
        batch.put(key("bystander"), "x");
        batch.items.push(BatchItem::Put {
            key: key(name),
            payload,
            options,
        });
        let before = store.exists(&key("bystander")).wait()?;
        let outcome = store.batch(batch).wait();
        let after = store.exists(&key("bystander")).wait()?;
        assert_eq!(after, before || outcome.is_ok(), "all or nothing");
        outcome.map(drop)
    });
}

pub(super) fn put_stream_is_decided_at_finish(subject: &mut dyn Subject) {
    let store = subject.fresh();
    let old = store.save("k", "old");
    let open = |precondition| {
        let mut writer = store
            .put_stream(&key("k"), put_if(precondition))
            .expect("good options");
        writer.write("streamed").wait().expect("takes it in");
        writer
    };
    let if_absent = open(Precondition::IfAbsent);
    let if_old = open(Precondition::IfVersion(old.version));
    let new = store.save("k", "new");
    let if_new = open(Precondition::IfETag(new.etag));

    assert_conflict(if_old.finish().wait(), "k", Some(new.etag));
    store.assert_holds("k", "new");
    if_new.finish().wait().expect("it holds by now");
    store.assert_holds("k", "streamed");
    assert!(store.remove("k"));
    if_absent.finish().wait().expect("it is absent by now");
    store.assert_holds("k", "streamed");
}

pub(super) fn get_is_conditional(subject: &mut dyn Subject) {
    let store = subject.fresh();
    let stale = store.save("k", "stale");
    let bytes = payload(1, 100_000);
    let current = store.save("k", bytes.clone());
    for wrong in wrong(&stale, &current) {
        let get = store.get(&key("k"), get_if(wrong)).wait();
        assert_conflict(get, "k", Some(current.etag));
        let stream = store.get_stream(&key("k"), get_if(wrong)).wait();
        assert_conflict(stream, "k", Some(current.etag));
    }
    for right in right(&current) {
        let get = store.get(&key("k"), get_if(right)).wait();
        assert_bytes(&get.expect("it holds").bytes, &bytes, "get");
        let stream = store.stream_out("k", get_if(right));
        assert_bytes(&stream.expect("it holds"), &bytes, "get_stream");
        let mut options = part(5..7);
        options.precondition = right;
        let get = store.get(&key("k"), options).wait();
        assert_bytes(&get.expect("it holds").bytes, &bytes[5..7], "range");
    }
    for precondition in [
        Precondition::IfAbsent,
        Precondition::IfVersion(current.version),
    ] {
        let absent = store.get(&key("absent"), get_if(precondition)).wait();
        assert_fails!(absent, StorageError::NotFound { .. });
        let absent = store
            .get_stream(&key("absent"), get_if(precondition))
            .wait();
        assert_fails!(absent, StorageError::NotFound { .. });
    }
}

/// For copy and rename alike.
fn check_copies(
    subject: &mut dyn Subject,
    copy: fn(&Store, &BinaryKey, &BinaryKey, CopyOptions) -> Result<PutOutcome, StorageError>,
) {
    let store = subject.fresh();
    let (source, target) = (key("source"), key("target"));
    let on_source = |precondition| CopyOptions {
        source_precondition: precondition,
        ..CopyOptions::default()
    };
    let on_target = |precondition| CopyOptions {
        target_precondition: precondition,
        ..CopyOptions::default()
    };
    let restore = || {
        let stale = store.save("source", "stale");
        let current = store.save("source", "payload");
        (stale, current)
    };

    let (stale, current) = restore();
    for wrong in wrong(&stale, &current) {
        let refused = copy(&store, &source, &target, on_source(wrong));
        assert_conflict(refused, "source", Some(current.etag));
    }
    for wrong in WRONG_IF_ABSENT {
        let refused = copy(&store, &source, &target, on_target(wrong));
        assert_conflict(refused, "target", None);
    }
    store.assert_absent("target");
    store.assert_holds("source", "payload");
    assert_eq!(store.load("source").version, current.version);
    copy(&store, &source, &target, on_target(Precondition::IfAbsent)).expect("it is absent");
    store.assert_holds("target", "payload");

    let (_, current) = restore();
    let old_target = store.save("target", "old target");
    let new_target = store.save("target", "new target");
    for wrong in wrong(&old_target, &new_target) {
        let refused = copy(&store, &source, &target, on_target(wrong));
        assert_conflict(refused, "target", Some(new_target.etag));
    }
    store.assert_holds("source", "payload");
    store.assert_holds("target", "new target");
    assert_eq!(store.load("target").version, new_target.version);
    let options = CopyOptions {
        source_precondition: Precondition::IfVersion(current.version),
        target_precondition: Precondition::IfETag(new_target.etag),
        ..CopyOptions::default()
    };
    let made = copy(&store, &source, &target, options).expect("both hold");
    store.assert_holds("target", "payload");
    assert_eq!(store.load("target").version, made.version);

    let (_, current) = restore();
    copy(
        &store,
        &source,
        &source,
        on_source(Precondition::IfETag(current.etag)),
    )
    .expect("it holds of itself");
    let (_, current) = restore();
    copy(
        &store,
        &source,
        &source,
        on_target(Precondition::IfVersion(current.version)),
    )
    .expect("it holds of itself");
    let refused = copy(&store, &source, &source, on_target(Precondition::IfAbsent));
    assert_conflict(refused, "source", Some(store.info("source").etag));
    store.assert_holds("source", "payload");

    for options in [
        on_source(Precondition::IfAbsent),
        on_source(right(&current)[0]),
    ] {
        let absent = copy(&store, &key("absent"), &target, options);
        assert_fails!(absent, StorageError::NotFound { key } if key.as_bytes() == b"absent");
    }
}

pub(super) fn copy_is_conditional(subject: &mut dyn Subject) {
    check_copies(subject, |store, source, target, options| {
        store.copy(source, target, options).wait()
    });
}

pub(super) fn rename_is_conditional(subject: &mut dyn Subject) {
    check_copies(subject, |store, source, target, options| {
        store.rename(source, target, options).wait()
    });
}

pub(super) fn batch_deletes_are_conditional(subject: &mut dyn Subject) {
    let store = subject.fresh();
    let stale = store.save("k", "old");
    let current = store.save("k", "new");
    let delete = |options: DeleteOptions| {
        let mut batch = Batch::new();
        batch.put(key("other"), "x");
        batch.items.push(BatchItem::Delete {
            key: key("k"),
            options,
        });
        store.batch(batch).wait()
    };
    for precondition in wrong(&stale, &current) {
        let refused = delete(DeleteOptions {
            precondition,
            ..DeleteOptions::default()
        });
        assert_conflict(refused, "k", Some(current.etag));
        store.assert_absent("other");
        store.assert_holds("k", "new");
    }
    delete(DeleteOptions {
        precondition: Precondition::IfVersion(current.version),
        strict: true,
        ..DeleteOptions::default()
    })
    .expect("it holds");
    store.assert_absent("k");
    store.assert_holds("other", "x");
}

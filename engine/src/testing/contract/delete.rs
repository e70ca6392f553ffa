use crate::port::{DeleteOptions, ErrorKind, Precondition, StorageError};
use crate::testing::Subject;
use crate::testing::support::{Short, assert_fails, delete_if, if_version, key, payload};

pub(super) fn delete_of_an_absent_key_succeeds(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    assert!(!store.remove("k"));
    store.save("k", "here");
    assert!(store.remove("k"));
    assert!(!store.remove("k"));
    store = subject.reopen(store);
    assert!(!store.remove("k"));
    store.assert_absent("k");
}

pub(super) fn strict_delete_of_an_absent_key_fails(subject: &mut dyn Subject) {
    let store = subject.fresh();
    let strict = DeleteOptions {
        strict: true,
        ..DeleteOptions::default()
    };
    let absent = store.delete(&key("k"), strict.clone()).wait();
    assert_fails!(absent, StorageError::NotFound { key } if key.as_bytes() == b"k");
    store.save("k", "here");
    let present = store.delete(&key("k"), strict.clone()).wait();
    assert!(present.expect("it is there").existed);
    let again = store.delete(&key("k"), strict).wait();
    assert_fails!(again, StorageError::NotFound { .. });
}

pub(super) fn delete_is_conditional(subject: &mut dyn Subject) {
    let store = subject.fresh();
    let name = key("k");
    let if_absent = store
        .delete(&name, delete_if(Precondition::IfAbsent))
        .wait()
        .expect("it is absent");
    assert!(!if_absent.existed);
    for precondition in [Precondition::IfVersion(0), Precondition::IfVersion(1)] {
        let absent = store.delete(&name, delete_if(precondition)).wait();
        assert_fails!(
            absent,
            StorageError::PreconditionFailed { actual: None, .. }
        );
    }
    let old = store.save("k", "old");
    let new = store.save("k", "new");
    for precondition in [
        Precondition::IfAbsent,
        Precondition::IfETag(old.etag),
        Precondition::IfVersion(old.version),
        Precondition::IfVersion(new.version + 1),
    ] {
        let refused = store.delete(&name, delete_if(precondition)).wait();
        let error = refused.expect_err("the precondition does not hold");
        assert_eq!(error.kind(), ErrorKind::Conflict, "{precondition:?}");
        let StorageError::PreconditionFailed { key, actual } = error else {
            panic!("{error:?}");
        };
        assert_eq!((key, actual), (name.clone(), Some(new.etag)));
        store.assert_holds("k", "new");
    }
    let deleted = store
        .delete(&name, delete_if(Precondition::IfETag(new.etag)))
        .wait();
    assert!(deleted.expect("it holds").existed);
    store.assert_absent("k");
    let next = store.save("k", "next");
    let deleted = store
        .delete(&name, delete_if(Precondition::IfVersion(next.version)))
        .wait();
    assert!(deleted.expect("it holds").existed);
    store.assert_absent("k");
}

pub(super) fn what_is_deleted_is_gone(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    let sizes = [("empty", 0), ("small", 100), ("large", 3_000_000)];
    for (name, size) in sizes {
        store.save(name, payload(1, size));
        store.save(format!("{name}/kept"), payload(2, size));
    }
    for (name, _) in sizes {
        assert!(store.remove(name));
        store.assert_absent(name);
    }
    store = subject.reopen(store);
    for (name, size) in sizes {
        store.assert_absent(name);
        store.assert_holds(format!("{name}/kept"), payload(2, size));
    }
    assert_eq!(store.keys().len(), sizes.len());
}

pub(super) fn a_key_that_comes_again_has_new_versions(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    let mut versions = Vec::new();
    for round in 0..6 {
        let put = store.save("k", "again");
        assert!(
            versions.iter().all(|old| *old < put.version),
            "{} after {versions:?}",
            put.version
        );
        for old in &versions {
            let stale = store.save_with("k", "lost", if_version(*old));
            assert_fails!(stale, StorageError::PreconditionFailed { .. });
        }
        versions.push(put.version);
        assert!(store.remove("k"));
        if round % 2 == 1 {
            store = subject.reopen(store);
        }
    }
    store.assert_absent("k");
}

use bytes::Bytes;

use crate::port::{
    Attributes, Batch, BatchItem, BatchItemOutcome, BlobStore, DeleteOptions, Digest,
    DigestAlgorithm, Durability, Precondition, PutOptions, StorageError,
};
use crate::testing::Subject;
use crate::testing::support::{MIB, Short, assert_fails, if_version, key, payload, put_if};

fn put_item(name: &str, payload: impl Into<Bytes>, options: PutOptions) -> BatchItem {
    BatchItem::Put {
        key: key(name),
        payload: payload.into(),
        options,
    }
}

fn delete_item(name: &str, options: DeleteOptions) -> BatchItem {
    BatchItem::Delete {
        key: key(name),
        options,
    }
}

fn apply(
    store: &dyn BlobStore,
    items: impl IntoIterator<Item = BatchItem>,
) -> Result<Vec<BatchItemOutcome>, StorageError> {
    let mut batch = Batch::new();
    batch.items.extend(items);
    store.batch(batch).wait()
}

pub(super) fn batch_does_all_its_items(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    store.save("gone", "x");
    let old = store.save("replaced", "x");
    let (large, larger) = (payload(1, 2 * MIB), payload(2, 3 * MIB));
    let digest = Digest::of(DigestAlgorithm::Blake3, &large);
    let attributes = Attributes::from([("kind".to_owned(), "large".into())]);
    let options = PutOptions {
        size: Some(large.len() as u64),
        digest: Some(digest),
        attributes: attributes.clone(),
        ..PutOptions::default()
    };
    let mut batch = Batch::new();
    batch
        .put(key("replaced"), "new")
        .put(key("larger"), larger.clone())
        .put(key("empty"), "")
        .delete(key("gone"))
        .delete(key("never there"));
    batch.items.push(put_item("large", large.clone(), options));
    batch.put(key("small"), "behind large ones");
    let outcomes = store.batch(batch).wait().expect("a plain batch");
    assert_eq!(outcomes.len(), 7);
    for (at, name, size) in [
        (0, "replaced", 3),
        (1, "larger", 3 * MIB),
        (2, "empty", 0),
        (5, "large", 2 * MIB),
        (6, "small", 17),
    ] {
        let BatchItemOutcome::Put(put) = &outcomes[at] else {
            panic!("{:?}", outcomes[at]);
        };
        let info = store.info(name);
        assert_eq!((info.version, info.etag), (put.version, put.etag), "{name}");
        assert_eq!((info.size, put.size), (size as u64, size as u64), "{name}");
        assert!(put.version > old.version, "{name}");
    }
    for (at, expected) in [(3, true), (4, false)] {
        let BatchItemOutcome::Delete(delete) = outcomes[at] else {
            panic!("{:?}", outcomes[at]);
        };
        assert_eq!(delete.existed, expected);
    }
    for reopened in [false, true] {
        if reopened {
            store = subject.reopen(store);
        }
        store.assert_holds("replaced", "new");
        store.assert_holds("empty", "");
        store.assert_holds("large", &large);
        store.assert_holds("larger", &larger);
        store.assert_holds("small", "behind large ones");
        store.assert_absent("gone");
        store.assert_absent("never there");
        let info = store.info("large");
        assert!(info.digests.contains(&digest));
        assert_eq!(info.attributes, attributes);
    }
}

pub(super) fn batch_is_all_or_nothing(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    let kept = store.save("kept", "kept");
    let others = || {
        [
            put_item("kept", "lost", PutOptions::default()),
            put_item("new", payload(1, 100_000), PutOptions::default()),
            delete_item("kept", DeleteOptions::default()),
        ]
    };
    let wrong_digest = Digest {
        algorithm: DigestAlgorithm::Sha256,
        bytes: [0; 32],
    };
    let failing = [
        put_item("bad", "x", if_version(1 << 40)),
        put_item(
            "bad",
            "x",
            PutOptions {
                size: Some(2),
                ..PutOptions::default()
            },
        ),
        put_item(
            "bad",
            "x",
            PutOptions {
                digest: Some(wrong_digest),
                ..PutOptions::default()
            },
        ),
        put_item(
            "bad",
            "x",
            PutOptions {
                attributes: Attributes::from([(String::new(), Bytes::new())]),
                ..PutOptions::default()
            },
        ),
        delete_item(
            "bad",
            DeleteOptions {
                strict: true,
                ..DeleteOptions::default()
            },
        ),
    ];
    for (case, failing) in failing.into_iter().enumerate() {
        for at in 0..=3 {
            let mut items = others().to_vec();
            items.insert(at, failing.clone());
            let outcome = apply(&*store, items);
            match (case, outcome) {
                (0, Err(StorageError::PreconditionFailed { key: named, .. }))
                | (1, Err(StorageError::SizeMismatch { key: named, .. }))
                | (2, Err(StorageError::DigestMismatch { key: named, .. }))
                | (4, Err(StorageError::NotFound { key: named })) => assert_eq!(named, key("bad")),
                (3, Err(StorageError::InvalidArgument { .. })) => {}
                (_, outcome) => panic!("case {case}, item {at}: {outcome:?}"),
            }
            store.assert_holds("kept", "kept");
            assert_eq!(store.load("kept").version, kept.version);
            store.assert_absent("new");
            store.assert_absent("bad");
        }
    }
    store = subject.reopen(store);
    store.assert_holds("kept", "kept");
    assert_eq!(store.keys(), [key("kept")]);
}

pub(super) fn batch_items_happen_in_order(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    let plain = PutOptions::default;
    let if_absent = || put_if(Precondition::IfAbsent);
    let delete = |name| delete_item(name, DeleteOptions::default());

    // The last of several puts stays, and each is a version of its own.
    let outcomes = apply(
        &*store,
        ["one", "two", "three"].map(|text| put_item("k", text, plain())),
    )
    .expect("a plain batch");
    store.assert_holds("k", "three");
    let versions: Vec<u64> = outcomes
        .iter()
        .map(|outcome| match outcome {
            BatchItemOutcome::Put(put) => put.version,
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
    assert_eq!(store.load("k").version, versions[2]);

    // Later items see earlier ones.
    let outcomes = apply(&*store, [delete("k"), put_item("k", "back", if_absent())]);
    outcomes.expect("it is absent by then");
    store.assert_holds("k", "back");
    let refused = apply(
        &*store,
        [
            put_item("fresh", "x", if_absent()),
            put_item("fresh", "y", if_absent()),
        ],
    );
    assert_fails!(
        refused,
        StorageError::PreconditionFailed { key, actual: Some(_) } if key.as_bytes() == b"fresh"
    );
    store.assert_absent("fresh");
    let old = store.info("k").version;
    let refused = apply(
        &*store,
        [
            put_item("k", "x", plain()),
            put_item("k", "y", if_version(old)),
        ],
    );
    assert_fails!(refused, StorageError::PreconditionFailed { .. });
    store.assert_holds("k", "back");
    assert_eq!(store.load("k").version, old);

    // Deletes too.
    let outcomes = apply(
        &*store,
        [
            delete("k"),
            delete("k"),
            put_item("fresh", "x", plain()),
            delete("fresh"),
        ],
    )
    .expect("a plain batch");
    let existed: Vec<Option<bool>> = outcomes
        .iter()
        .map(|outcome| match outcome {
            BatchItemOutcome::Delete(delete) => Some(delete.existed),
            BatchItemOutcome::Put(_) => None,
        })
        .collect();
    assert_eq!(existed, [Some(true), Some(false), None, Some(true)]);
    store = subject.reopen(store);
    store.assert_absent("k");
    store.assert_absent("fresh");
    assert_eq!(store.keys(), []);
    let strict = DeleteOptions {
        strict: true,
        ..DeleteOptions::default()
    };
    let outcome = apply(
        &*store,
        [put_item("k", "x", plain()), delete_item("k", strict)],
    );
    outcome.expect("it is there by then");
    store.assert_absent("k");
}

pub(super) fn a_failed_batch_leaves_nothing_to_those_behind_it(subject: &mut dyn Subject) {
    let strict = || DeleteOptions {
        strict: true,
        ..DeleteOptions::default()
    };
    let mut store = subject.fresh();
    let kept = store.save("kept", "kept");
    let begun: Vec<_> = ["new", "other", "kept"]
        .into_iter()
        .map(|name| {
            let mut batch = Batch::new();
            for payload in ["one", "two"] {
                let item = put_item(name, payload, PutOptions::default());
                batch.items.push(item);
            }
            batch.items.push(delete_item("absent", strict()));
            store.batch(batch)
        })
        .collect();
    let put = store.put(&key("new"), "three".into(), put_if(Precondition::IfAbsent));
    let delete = store.delete(&key("other"), DeleteOptions::default());
    let replaced = store.put(&key("kept"), "four".into(), if_version(kept.version));
    for batch in begun {
        assert_fails!(batch.wait(), StorageError::NotFound { .. });
    }
    put.wait().expect("there is none");
    assert!(!delete.wait().expect("it may be absent").existed);
    replaced.wait().expect("it is this version");
    store = subject.reopen(store);
    store.assert_holds("new", "three");
    store.assert_absent("other");
    store.assert_holds("kept", "four");
}

pub(super) fn a_failed_batch_leaves_what_those_before_it_did(subject: &mut dyn Subject) {
    let strict = || DeleteOptions {
        strict: true,
        ..DeleteOptions::default()
    };
    let mut store = subject.fresh();
    let name = key("k");
    // Nobody waits before all are queued.
    let first = store.put(&name, "one".into(), PutOptions::default());
    let mut batch = Batch::new();
    batch
        .put(name.clone(), "two")
        .delete(name.clone())
        .put(name.clone(), "three");
    batch.items.push(delete_item("absent", strict()));
    let failed = store.batch(batch);
    let refused = store.put(&name, "four".into(), put_if(Precondition::IfAbsent));
    let deleted = store.delete(&name, strict());
    let last = store.put(&name, "five".into(), put_if(Precondition::IfAbsent));
    let first = first.wait().expect("a plain put");
    assert_fails!(failed.wait(), StorageError::NotFound { .. });
    assert_fails!(
        refused.wait(),
        StorageError::PreconditionFailed { actual: Some(actual), .. } if actual == first.etag
    );
    assert!(deleted.wait().expect("it is there").existed);
    last.wait().expect("there is none");
    store = subject.reopen(store);
    store.assert_holds("k", "five");
}

pub(super) fn an_empty_batch_is_nothing(subject: &mut dyn Subject) {
    let store = subject.fresh();
    let put = store.save("k", "x");
    for durability in [Durability::Durable, Durability::Written] {
        let batch = Batch {
            items: Vec::new(),
            durability,
        };
        let outcomes = store.batch(batch).wait().expect("nothing is easily done");
        assert!(outcomes.is_empty());
    }
    assert_eq!(store.load("k").version, put.version);
}

pub(super) fn batches_may_be_large(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    let name = |n: u64| format!("{n:05}");
    let size = |n: u64| usize::try_from(n * 7 % 900).expect("small");
    let mut batch = Batch::new();
    for n in 0..2000 {
        batch.put(key(name(n)), payload(n, size(n)));
    }
    let outcomes = store.batch(batch).wait().expect("a plain batch");
    assert_eq!(outcomes.len(), 2000);
    store = subject.reopen(store);
    assert_eq!(store.keys().len(), 2000);
    for n in (0..2000).step_by(97) {
        store.assert_holds(name(n), payload(n, size(n)));
    }
    let mut batch = Batch::new();
    for n in 0..2000 {
        batch.delete(key(name(n)));
    }
    batch
        .items
        .push(put_item("00000", "lost", if_version(1 << 40)));
    let refused = store.batch(batch.clone()).wait();
    assert_fails!(refused, StorageError::PreconditionFailed { .. });
    assert_eq!(store.keys().len(), 2000);
    batch.items.pop();
    store.batch(batch).wait().expect("a plain batch");
    assert_eq!(store.keys(), []);

    let mut batch = Batch::new();
    for n in 0..8 {
        batch.put(key(name(n)), payload(n, MIB + 1));
    }
    store.batch(batch).wait().expect("a batch of megabytes");
    store = subject.reopen(store);
    for n in 0..8 {
        store.assert_holds(name(n), payload(n, MIB + 1));
    }
}

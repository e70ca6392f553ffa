use bytes::Bytes;

use crate::port::{Batch, CopyOptions, DeleteOptions, Durability, PutOptions};
use crate::testing::Subject;
use crate::testing::support::{MIB, Short, Store, key, payload};

/// Every kind of mutation, with `durability`; [`check`] knows what it leaves.
fn mutate(store: &Store, durability: Durability) {
    let put = || PutOptions {
        durability,
        ..PutOptions::default()
    };
    let delete = || DeleteOptions {
        durability,
        ..DeleteOptions::default()
    };
    let copy = || CopyOptions {
        durability,
        ..CopyOptions::default()
    };
    for (n, name) in (0..).zip(["put", "replaced", "deleted", "source", "renamed"]) {
        store
            .save_with(name, payload(n, 5000), put())
            .expect("puts");
    }
    store
        .save_with("large", payload(5, 3 * MIB), put())
        .expect("puts");
    store
        .save_with("replaced", payload(6, 9000), put())
        .expect("puts");
    let pieces = payload(7, 2 * MIB);
    let pieces = pieces.chunks(70_001).map(Bytes::copy_from_slice);
    store.stream_in("streamed", pieces, put()).expect("streams");
    let deleted = store.delete(&key("deleted"), delete()).wait();
    assert!(deleted.expect("deletes").existed);
    store
        .copy(&key("source"), &key("copied"), copy())
        .wait()
        .expect("copies");
    store
        .rename(&key("renamed"), &key("new name"), copy())
        .wait()
        .expect("renames");
    let mut batch = Batch::new();
    batch.durability = durability;
    batch
        .put(key("in batch"), payload(8, 100))
        .put(key("gone in batch"), "x")
        .delete(key("gone in batch"));
    store.batch(batch).wait().expect("batches");
}

#[track_caller]
fn check(store: &Store) {
    let mut names = 0;
    for (name, n, size) in [
        ("put", 0, 5000),
        ("replaced", 6, 9000),
        ("source", 3, 5000),
        ("copied", 3, 5000),
        ("new name", 4, 5000),
        ("large", 5, 3 * MIB),
        ("streamed", 7, 2 * MIB),
        ("in batch", 8, 100),
    ] {
        store.assert_holds(name, payload(n, size));
        names += 1;
    }
    for name in ["deleted", "renamed", "gone in batch"] {
        store.assert_absent(name);
    }
    assert_eq!(store.keys().len(), names);
}

pub(super) fn what_is_acknowledged_is_there_after_a_reopen(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    mutate(&store, Durability::Durable);
    check(&store);
    for _ in 0..3 {
        store = subject.reopen(store);
        check(&store);
    }
    mutate(&store, Durability::Durable);
    store = subject.reopen(store);
    check(&store);
}

pub(super) fn flush_makes_written_durable(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    store.flush().wait().expect("an empty store flushes");
    mutate(&store, Durability::Written);
    check(&store);
    store.flush().wait().expect("flushes");
    store.flush().wait().expect("flushes again");
    store = subject.reopen(store);
    check(&store);
}

pub(super) fn a_durable_write_does_not_pass_a_written_one(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    let written = PutOptions {
        durability: Durability::Written,
        ..PutOptions::default()
    };
    for round in 0..5 {
        store
            .save_with("k", payload(round, 3000), written.clone())
            .expect("puts");
        store.save("k", payload(round + 100, 3000));
        store = subject.reopen(store);
        store.assert_holds("k", payload(round + 100, 3000));
        store.save_with("gone", "x", written.clone()).expect("puts");
        assert!(store.remove("gone"));
        store = subject.reopen(store);
        store.assert_absent("gone");
    }
}

pub(super) fn a_dropped_op_still_commits(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    for name in ["deleted", "renamed", "source", "batched"] {
        store.save(name, name);
    }
    let bytes = payload(1, 2 * MIB);
    drop(store.put(&key("put"), "small".into(), PutOptions::default()));
    drop(store.put(&key("large"), bytes.clone(), PutOptions::default()));
    let mut writer = store
        .put_stream(&key("streamed"), PutOptions::default())
        .expect("good options");
    writer.write(bytes.clone()).wait().expect("takes it in");
    drop(writer.finish());
    drop(store.delete(&key("deleted"), DeleteOptions::default()));
    drop(store.rename(&key("renamed"), &key("new name"), CopyOptions::default()));
    drop(store.copy(&key("source"), &key("copied"), CopyOptions::default()));
    let mut batch = Batch::new();
    batch.put(key("in batch"), "x").delete(key("batched"));
    drop(store.batch(batch));
    store.flush().wait().expect("flushes what was submitted");
    for reopened in [false, true] {
        if reopened {
            store = subject.reopen(store);
        }
        store.assert_holds("put", "small");
        store.assert_holds("large", &bytes);
        store.assert_holds("streamed", &bytes);
        store.assert_holds("new name", "renamed");
        store.assert_holds("copied", "source");
        store.assert_holds("in batch", "x");
        for name in ["deleted", "renamed", "batched"] {
            store.assert_absent(name);
        }
    }
}

pub(super) fn a_dropped_op_never_lands_after_a_later_one(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    let (k, large) = (key("k"), key("large"));
    store.save("large", payload(0, MIB));
    let batch = |payload: Bytes| {
        let mut batch = Batch::new();
        batch.put(k.clone(), payload);
        batch
    };
    let stream = |payload: Bytes| {
        let mut writer = store
            .put_stream(&k, PutOptions::default())
            .expect("good options");
        writer.write(payload).wait().expect("takes it in");
        writer
    };
    // Every pair of an earlier and a later call, with much payload and with little.
    for round in 0..48 {
        let size = if round < 24 { MIB } else { 2000 };
        let (early, late) = (payload(round, size), payload(round + 100, 3000));
        store.save("source", late.clone());
        // It is begun early, and finishes late.
        let writer = stream(late.clone());
        match round / 6 % 4 {
            0 => drop(store.put(&k, early, PutOptions::default())),
            1 => drop(stream(early).finish()),
            2 => drop(store.batch(batch(early))),
            _ => drop(store.copy(&large, &k, CopyOptions::default())),
        }
        match round % 6 {
            0 => drop(store.save("k", late.clone())),
            1 => drop(writer.finish().wait().expect("commits")),
            2 => drop(store.batch(batch(late.clone())).wait().expect("batches")),
            3 => drop(store.duplicate("source", "k")),
            4 => drop(store.move_to("source", "k")),
            _ => drop(store.remove("k")),
        }
        let check = |store: &Store| {
            if round % 6 == 5 {
                store.assert_absent("k");
            } else {
                store.assert_holds("k", &late);
            }
        };
        check(&store);
        store.flush().wait().expect("flushes");
        check(&store);
    }
    store = subject.reopen(store);
    store.assert_absent("k");
}

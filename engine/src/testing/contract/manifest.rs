use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::port::blob::ATTRIBUTES_MAX_LEN;
use crate::port::{
    Attributes, AttributesUpdate, BlobManifest, CopyOptions, Digest, DigestAlgorithm, EntryContent,
    ErrorKind, Fact, ListRequest, Location, ManifestError, ManifestStore, MutableObjectStore,
    NewEntry, NewManifest, Precondition, PutManifestOptions, PutOptions, PutOutcome,
    PutRangeOptions, RangeSet, Span, StorageError, UpdateOptions,
};
use crate::testing::Subject;
use crate::testing::support::{KIB, Short, assert_bytes, assert_fails, key, payload, zeros};

type MutableSubject<'a> = &'a mut dyn Subject<dyn MutableObjectStore>;

fn span(start: u64, end: u64) -> Span {
    Span::new(start, end).expect("it does not run backwards")
}

fn attributes(all: &[(&str, &'static str)]) -> Attributes {
    let attribute = |(name, value): &(&str, &'static str)| {
        ((*name).to_owned(), Bytes::from_static(value.as_bytes()))
    };
    all.iter().map(attribute).collect()
}

/// A manifest of ranges of blobs, and of holes.
fn manifest(parts: &[(Option<&str>, u64, u64)]) -> NewManifest {
    let mut new = NewManifest::default();
    for &(name, start, end) in parts {
        let appended = match name {
            Some(name) => new.append(&key(name), start, end),
            None => new.append_hole(end - start),
        };
        appended.expect("it is a range");
    }
    new
}

fn replacing() -> PutManifestOptions {
    PutManifestOptions {
        replace: true,
        ..PutManifestOptions::default()
    }
}

/// Short forms of the calls.
trait ShortManifests: MutableObjectStore {
    fn compose(
        &self,
        name: &str,
        new: &NewManifest,
        options: PutManifestOptions,
    ) -> Result<PutOutcome, ManifestError> {
        self.manifests().put(&key(name), new, options).wait()
    }

    fn manifest(&self, name: &str) -> BlobManifest {
        let found = self.manifests().get(&key(name)).wait();
        found.expect("it has a manifest")
    }

    fn update(
        &self,
        name: &str,
        update: AttributesUpdate,
        precondition: Precondition,
    ) -> Result<PutOutcome, ManifestError> {
        let options = UpdateOptions {
            precondition,
            ..UpdateOptions::default()
        };
        let manifests = self.manifests();
        manifests
            .update_attributes(&key(name), update, options)
            .wait()
    }

    fn missing(&self, name: &str) -> RangeSet {
        let info = self.stat(&key(name)).wait();
        info.expect("it is there").missing
    }
}

impl<S: MutableObjectStore + ?Sized> ShortManifests for S {}

/// Checks that the entries tile the blob, and which of them are holes.
fn assert_tiled(found: &BlobManifest, missing: &RangeSet) {
    let mut end = 0;
    let mut holes = RangeSet::new();
    for entry in &found.entries {
        assert_eq!(entry.span.start(), end, "{found:?}");
        assert!(!entry.span.is_empty(), "{found:?}");
        end = entry.span.end();
        if entry.location == Location::Hole {
            holes.insert(entry.span);
        }
    }
    assert_eq!(end, found.size);
    assert_eq!(holes, *missing);
}

pub(super) fn a_manifest_tells_what_a_blob_is_made_of(subject: MutableSubject<'_>) {
    let mut store = subject.fresh();
    assert_fails!(store.manifests().get(&key("k")).wait(), ManifestError::NotFound { key } if key.as_bytes() == b"k");
    let bytes = payload(1, 3000 * KIB);
    let digest = Digest::of(DigestAlgorithm::Sha256, &bytes);
    let options = PutOptions {
        digest: Some(digest),
        attributes: attributes(&[("colour", "blue")]),
        ..PutOptions::default()
    };
    let put = store
        .put(&key("k"), bytes, options)
        .wait()
        .expect("it is put");
    store.save("empty", Bytes::new());
    store.save("small", payload(2, 100));
    for _ in 0..2 {
        let found = store.manifest("k");
        let info = store.stat(&key("k")).wait().expect("it is there");
        assert_tiled(&found, &RangeSet::new());
        assert_eq!(found.key, key("k"));
        assert_eq!(
            (found.size, found.version, found.etag),
            (put.size, put.version, put.etag)
        );
        assert_eq!(
            (found.created, found.modified),
            (info.created, info.modified)
        );
        let facts: Vec<Fact> = found.confirmed.iter().map(|one| one.fact).collect();
        assert_eq!(facts, [Fact::Size(put.size), Fact::Digest(digest)]);
        assert!(found.confirmed.iter().all(|one| one.time == found.created));
        let colour = &found.advertised["colour"];
        assert_eq!(colour.value, "blue");
        assert_eq!((colour.source.as_str(), colour.time), ("", found.created));
        assert_tiled(&store.manifest("small"), &RangeSet::new());
        assert_eq!(store.manifest("empty").entries, []);
        store = subject.reopen(store);
    }
    let sparse = store.create_sparse(&key("k"), 10_000, PutOptions::default());
    sparse.wait().expect("it is created");
    let range = store.put_range(
        &key("k"),
        span(100, 200),
        payload(3, 100),
        PutRangeOptions::default(),
    );
    range.wait().expect("it is put");
    let found = store.manifest("k");
    assert_tiled(&found, &"0..100,200..10000".parse().expect("a set"));
    assert_eq!(found.confirmed.len(), 1);
}

pub(super) fn blobs_are_made_of_others(subject: MutableSubject<'_>) {
    let mut store = subject.fresh();
    let (large, small) = (payload(1, 3000 * KIB), payload(2, 1000));
    store.save("large", large.clone());
    store.save("small", small.clone());
    let sparse = store.create_sparse(&key("sparse"), 10_000, PutOptions::default());
    sparse.wait().expect("it is created");
    let (range, middle) = (span(4000, 6000), payload(3, 2000));
    let filled = store.put_range(
        &key("sparse"),
        range,
        middle.clone(),
        PutRangeOptions::default(),
    );
    filled.wait().expect("it is put");
    let new = manifest(&[
        (Some("small"), 10, 1000),
        (Some("large"), 5, 2_000_005),
        (None, 0, 100),
        (Some("sparse"), 3000, 6500),
        (Some("small"), 0, 10),
        (Some("large"), 0, 5),
    ]);
    let options = PutManifestOptions {
        attributes: attributes(&[("made", "of others")]),
        ..PutManifestOptions::default()
    };
    let made = store
        .compose("made", &new, options)
        .expect("all of it is there");
    assert_eq!(made.size, new.size);
    let expected = [
        &small[10..],
        &large[5..2_000_005],
        &[0; 100],
        &[0; 1000],
        &middle,
        &[0; 500],
        &small[..10],
        &large[..5],
    ]
    .concat();
    let holes = 990 + 2_000_000;
    let missing: RangeSet = [span(holes, holes + 1100), span(holes + 3100, holes + 3600)]
        .into_iter()
        .collect();
    // Whatever becomes of what it was made of.
    for change in 0..4 {
        assert_bytes(&zeros(&*store, "made"), &expected, "made");
        assert_eq!(store.missing("made"), missing);
        let found = store.manifest("made");
        assert_tiled(&found, &missing);
        assert_eq!(found.version, made.version);
        assert_eq!(found.advertised["made"].value, "of others");
        match change {
            0 => {
                let over = payload(9, 1_500_000);
                let over = store.put_range(
                    &key("large"),
                    span(1000, 1_501_000),
                    over,
                    Default::default(),
                );
                over.wait().expect("it is put");
                store.save("small", payload(8, 5000));
            }
            1 => {
                for name in ["large", "small", "sparse"] {
                    let gone = store.delete(&key(name), Default::default()).wait();
                    assert!(gone.expect("it is deleted").existed);
                }
            }
            _ => store = subject.reopen(store),
        }
    }
}

pub(super) fn a_blob_is_made_of_itself(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    for (name, size) in [("small", 1000), ("large", 3000 * KIB)] {
        let bytes = payload(1, size);
        store.save(name, bytes.clone());
        let size = size as u64;
        let turned = manifest(&[(Some(name), size / 2, size - 5), (Some(name), 0, size / 2)]);
        store
            .compose(name, &turned, replacing())
            .expect("it is there");
        let half = bytes.len() / 2;
        let expected = [&bytes[half..bytes.len() - 5], &bytes[..half]].concat();
        store.assert_holds(name, &expected);
        let nothing = store.compose(name, &NewManifest::default(), replacing());
        assert_eq!(nothing.expect("an empty blob is one").size, 0);
        assert_eq!(store.load(name).bytes, Bytes::new());
    }
}

pub(super) fn entries_that_do_not_tile_are_refused(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    let before = store.save("k", payload(1, 100));
    let entry = |start, end| NewEntry {
        span: span(start, end),
        content: EntryContent::Blob {
            key: key("k"),
            start,
            precondition: Precondition::None,
        },
    };
    let cases = [
        (vec![], 0),
        (vec![entry(0, 50)], 50),
        (vec![entry(10, 100)], 0),
        (vec![entry(0, 50), entry(51, 100)], 50),
        (vec![entry(0, 50), entry(49, 100)], 49),
        (vec![entry(50, 100), entry(0, 50)], 0),
        (vec![entry(0, 50), entry(50, 50), entry(50, 100)], 50),
    ];
    for (entries, wrong) in cases {
        let new = NewManifest { size: 100, entries };
        assert_fails!(store.compose("k", &new, replacing()), ManifestError::NotTiled { key, at, .. } if key.as_bytes() == b"k" && at == wrong);
    }
    let too_long = NewManifest {
        size: 99,
        entries: vec![entry(0, 100)],
    };
    let error = store
        .compose("k", &too_long, replacing())
        .expect_err("it ends past the end");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(!error.is_retryable());
    assert_eq!(store.load("k").version, before.version);
    let huge = manifest(&[(None, 0, 1 << 60)]);
    assert_fails!(
        store.compose("k", &huge, replacing()),
        ManifestError::Storage(StorageError::TooLarge { .. })
    );
}

pub(super) fn manifests_replace_only_when_told(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    let source = store.save("source", payload(1, 100));
    let new = manifest(&[(Some("source"), 0, 100)]);
    let first = store
        .compose("k", &new, PutManifestOptions::default())
        .expect("it is absent");
    assert_fails!(store.compose("k", &new, PutManifestOptions::default()), ManifestError::Exists { key, etag } if key.as_bytes() == b"k" && etag == first.etag);
    assert_eq!(store.load("k").version, first.version);
    let second = store
        .compose("k", &new, replacing())
        .expect("it was told to");
    let conditional = |precondition| {
        let options = PutManifestOptions {
            precondition,
            ..PutManifestOptions::default()
        };
        store.compose("k", &new, options)
    };
    for wrong in [
        Precondition::IfAbsent,
        Precondition::IfETag(first.etag),
        Precondition::IfVersion(first.version),
    ] {
        assert_fails!(conditional(wrong), ManifestError::Storage(StorageError::PreconditionFailed { actual, .. }) if actual == Some(second.etag));
        let options = PutManifestOptions {
            precondition: wrong,
            ..replacing()
        };
        assert_fails!(store.compose("k", &new, options), ManifestError::Storage(StorageError::PreconditionFailed { actual, .. }) if actual == Some(second.etag));
    }
    let options = PutManifestOptions {
        precondition: Precondition::IfVersion(second.version),
        ..PutManifestOptions::default()
    };
    assert_fails!(
        store.compose("absent", &new, options),
        ManifestError::Storage(StorageError::PreconditionFailed { actual: None, .. })
    );
    let third = conditional(Precondition::IfETag(second.etag)).expect("it holds");
    conditional(Precondition::IfVersion(third.version)).expect("it holds");
    // Of what it is made of.
    let taken = |precondition| {
        let mut new = NewManifest::default();
        new.append_if(&key("source"), 50, 100, precondition)
            .expect("it is a range");
        store.compose("k", &new, replacing())
    };
    assert_fails!(taken(Precondition::IfVersion(first.version)), ManifestError::Unavailable { key, error, .. } if key.as_bytes() == b"k" && matches!(*error, StorageError::PreconditionFailed { .. }));
    taken(Precondition::IfETag(source.etag)).expect("it holds");
}

pub(super) fn what_is_not_there_makes_no_blob(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    store.save("source", payload(1, 100));
    let before = store.save("k", payload(2, 10));
    let absent = manifest(&[(Some("source"), 0, 50), (Some("absent"), 0, 7)]);
    assert_fails!(store.compose("k", &absent, replacing()), ManifestError::Unavailable { span: at, error, .. } if at == span(50, 57) && matches!(&*error, StorageError::NotFound { key } if key.as_bytes() == b"absent"));
    for (start, end) in [(0, 101), (100, 101), (u64::MAX - 1, u64::MAX)] {
        let beyond = manifest(&[(Some("source"), start, end)]);
        assert_fails!(store.compose("k", &beyond, replacing()), ManifestError::Unavailable { error, .. } if matches!(*error, StorageError::InvalidRange { .. }));
    }
    assert_eq!(store.load("k").version, before.version);
}

pub(super) fn attributes_are_merged_replaced_or_removed(subject: MutableSubject<'_>) {
    let mut store = subject.fresh();
    let bytes = payload(1, 3000 * KIB);
    let digest = Digest::of(DigestAlgorithm::Blake3, &bytes);
    for (name, size) in [("empty", 0), ("small", 100), ("k", bytes.len())] {
        let options = PutOptions {
            digest: Some(digest).filter(|_| name == "k"),
            attributes: attributes(&[("one", "1"), ("two", "2")]),
            ..PutOptions::default()
        };
        let bytes = bytes.slice(..size);
        let put = store.put(&key(name), bytes.clone(), options).wait();
        let put = put.expect("it is put");
        let first = store.manifest(name);
        let merge = AttributesUpdate {
            source: "importer".to_owned(),
            ..AttributesUpdate::merge(attributes(&[("two", "zwei"), ("three", "3")]))
        };
        let merged = store.update(name, merge.clone(), Precondition::None);
        let merged = merged.expect("it is there");
        assert!(merged.version > put.version);
        assert_eq!(merged.size, put.size);
        assert_fails!(
            store.update(name, merge.clone(), Precondition::IfVersion(put.version)),
            ManifestError::Storage(StorageError::PreconditionFailed { .. })
        );
        // It says what is so already.
        let again = store.update(name, merge, Precondition::IfETag(merged.etag));
        assert_eq!(again.expect("it holds"), merged);
        for _ in 0..2 {
            let found = store.manifest(name);
            let values: BTreeMap<_, _> = found
                .advertised
                .iter()
                .map(|(name, one)| (name.as_str(), one.value.clone()))
                .collect();
            let expected = [("one", "1"), ("three", "3"), ("two", "zwei")];
            assert_eq!(
                values,
                expected
                    .into_iter()
                    .map(|(name, value)| (name, Bytes::from(value)))
                    .collect()
            );
            let one = &found.advertised["one"];
            assert_eq!((one.source.as_str(), one.time), ("", first.created));
            let two = &found.advertised["two"];
            assert_eq!(
                (two.source.as_str(), two.time),
                ("importer", found.modified)
            );
            assert_eq!((found.created, found.size), (first.created, first.size));
            assert_eq!(found.version, merged.version);
            let digests = |found: &BlobManifest| -> Vec<Fact> {
                found.confirmed.iter().map(|one| one.fact).collect()
            };
            assert_eq!(digests(&found), digests(&first));
            store.assert_holds(name, &bytes);
            let info = store.stat(&key(name)).wait().expect("it is there");
            assert_eq!(info.attributes.len(), 3);
            store = subject.reopen(store);
        }
        let remove = AttributesUpdate::remove(["one", "nothing"]);
        store
            .update(name, remove, Precondition::None)
            .expect("it is there");
        let names = |found: &BlobManifest| -> String {
            let names: Vec<&str> = found.advertised.keys().map(String::as_str).collect();
            names.join(" ")
        };
        assert_eq!(names(&store.manifest(name)), "three two");
        let replace = AttributesUpdate::replace(attributes(&[("three", "3"), ("four", "4")]));
        store
            .update(name, replace, Precondition::None)
            .expect("it is there");
        let found = store.manifest(name);
        assert_eq!(names(&found), "four three");
        // It had this value before.
        assert_eq!(found.advertised["three"].source, "importer");
        let copied = store.copy(&key(name), &key("copy"), CopyOptions::default());
        copied.wait().expect("it is copied");
        assert_eq!(store.manifest("copy").advertised, found.advertised);
        let none = AttributesUpdate::replace(Attributes::new());
        store
            .update(name, none, Precondition::None)
            .expect("it is there");
        assert_eq!(store.manifest(name).advertised.len(), 0);
        store.assert_holds(name, &bytes);
        store.assert_holds("copy", &bytes);
    }
}

pub(super) fn updates_of_attributes_are_checked(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    let one = || AttributesUpdate::merge(attributes(&[("one", "1")]));
    for precondition in [Precondition::None, Precondition::IfVersion(7)] {
        assert_fails!(store.update("absent", one(), precondition), ManifestError::NotFound { key } if key.as_bytes() == b"absent");
    }
    let put = store.save("k", payload(1, 100));
    assert_fails!(store.update("k", one(), Precondition::IfAbsent), ManifestError::Storage(StorageError::PreconditionFailed { actual, .. }) if actual == Some(put.etag));
    let large = || Bytes::from(vec![7; ATTRIBUTES_MAX_LEN / 2]);
    let refused = [
        AttributesUpdate {
            remove: ["one".to_owned()].into(),
            ..one()
        },
        AttributesUpdate {
            source: "s".repeat(256),
            ..one()
        },
        AttributesUpdate::merge([(String::new(), Bytes::new())].into()),
        AttributesUpdate::merge([("n".repeat(256), Bytes::new())].into()),
        AttributesUpdate::merge([("a".to_owned(), large()), ("b".to_owned(), large())].into()),
    ];
    for update in refused {
        assert_fails!(
            store.update("k", update, Precondition::None),
            ManifestError::Storage(StorageError::InvalidArgument { .. })
        );
    }
    assert_eq!(store.manifest("k").version, put.version);
    // Together with what is there.
    let half = |name: &str| AttributesUpdate::merge([(name.to_owned(), large())].into());
    store
        .update("k", half("a"), Precondition::None)
        .expect("there is room");
    assert_fails!(
        store.update("k", half("b"), Precondition::None),
        ManifestError::Storage(StorageError::InvalidArgument { .. })
    );
    let instead = AttributesUpdate {
        remove: ["a".to_owned()].into(),
        ..half("b")
    };
    store
        .update("k", instead, Precondition::None)
        .expect("there is room then");
    assert_eq!(store.manifest("k").advertised["b"].value, large());
}

pub(super) fn many_origins_are_kept(subject: MutableSubject<'_>) {
    let mut store = subject.fresh();
    store.save("k", payload(1, 100));
    for number in 0..50 {
        let update = AttributesUpdate {
            source: format!("source {}", number % 7),
            set: [(format!("name {number}"), Bytes::from(vec![number; 10]))].into(),
            ..AttributesUpdate::default()
        };
        store
            .update("k", update, Precondition::None)
            .expect("it is there");
    }
    for _ in 0..2 {
        let found = store.manifest("k");
        assert_eq!(found.advertised.len(), 50);
        for number in 0..50 {
            let one = &found.advertised[&format!("name {number}")];
            assert_eq!(one.source, format!("source {}", number % 7));
            assert_eq!(one.value, vec![number; 10]);
        }
        store = subject.reopen(store);
    }
}

pub(super) fn a_life_goes_on_through_updates(subject: MutableSubject<'_>) {
    let mut store = subject.fresh();
    let sparse = store.create_sparse(&key("k"), 1000, PutOptions::default());
    sparse.wait().expect("it is created");
    let put = |store: &Arc<dyn MutableObjectStore>, start: u64| {
        let put = store.put_range(
            &key("k"),
            span(start, start + 100),
            payload(start, 100),
            PutRangeOptions::default(),
        );
        put.wait().expect("it is put");
    };
    let update = |store: &Arc<dyn MutableObjectStore>, value| {
        let update = AttributesUpdate::merge(attributes(&[("name", value)]));
        store
            .update("k", update, Precondition::None)
            .expect("it is there");
    };
    let completed = |store: &Arc<dyn MutableObjectStore>| {
        let completed = store.ranges().get_completed(&key("k")).wait();
        completed.expect("it is there")
    };
    put(&store, 0);
    let before = completed(&store);
    let waiting = store.ranges().wait_for(&key("k"), span(0, 300));
    update(&store, "first");
    assert_eq!(completed(&store), before);
    put(&store, 100);
    update(&store, "second");
    put(&store, 200);
    waiting.wait().expect("the blob is the same");
    store = subject.reopen(store);
    put(&store, 300);
    update(&store, "third");
    let after = completed(&store);
    assert_eq!(after.generation, before.generation);
    assert_eq!(after.set, span(0, 400).into());
    store = subject.reopen(store);
    assert_eq!(completed(&store), after);
    assert_eq!(store.manifest("k").advertised["name"].value, "third");
    let expected: Vec<u8> = (0..4)
        .flat_map(|number| payload(number * 100, 100))
        .chain([0; 600])
        .collect();
    assert_bytes(&zeros(&*store, "k"), &expected, "k");
    let copied = store.copy(&key("k"), &key("copy"), CopyOptions::default());
    copied.wait().expect("it is copied");
    let copied = store.ranges().get_completed(&key("copy")).wait();
    assert_ne!(copied.expect("it is there").generation, before.generation);
}

pub(super) fn a_new_life_begins_where_an_update_was(subject: MutableSubject<'_>) {
    let mut store = subject.fresh();
    let generation = |store: &Arc<dyn MutableObjectStore>, name: &str| {
        let completed = store.ranges().get_completed(&key(name)).wait();
        completed.expect("it is there").generation
    };
    store.save("source", payload(9, 200));
    for size in [0, 100, 3000 * KIB] {
        let mut lives = Vec::new();
        for step in 0..4 {
            match step {
                0 => drop(store.save("k", payload(1, size))),
                1 => drop(store.save("k", payload(2, size))),
                2 => drop(
                    store
                        .compose("k", &manifest(&[(Some("source"), 0, 100)]), replacing())
                        .expect("it is there"),
                ),
                _ => {
                    let renamed = store.rename(&key("k"), &key("k"), CopyOptions::default());
                    renamed.wait().expect("it is there");
                }
            }
            let life = generation(&store, "k");
            assert!(!lives.contains(&life), "step {step}");
            lives.push(life);
            let value = Bytes::from(vec![7; step + 1]);
            let update = AttributesUpdate::merge([("name".to_owned(), value)].into());
            store
                .update("k", update, Precondition::None)
                .expect("it is there");
            assert_eq!(generation(&store, "k"), life, "step {step}");
            store = subject.reopen(store);
            assert_eq!(generation(&store, "k"), life, "step {step}");
        }
    }
}

pub(super) fn one_of_many_conditional_manifests_wins(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    store.save("source", payload(1, 100));
    let new = manifest(&[(Some("source"), 10, 60)]);
    let won = |attempt: &(dyn Fn(usize) -> bool + Sync)| {
        let won = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for number in 0..8 {
                let won = &won;
                scope.spawn(move || {
                    let more = usize::from(attempt(number));
                    won.fetch_add(more, std::sync::atomic::Ordering::Relaxed);
                });
            }
        });
        won.into_inner()
    };
    for round in 0..8 {
        let name = format!("{round}");
        let put = |_| {
            store
                .compose(&name, &new, PutManifestOptions::default())
                .is_ok()
        };
        assert_eq!(won(&put), 1, "puts on an absent key");
        let etag = store.load(&name).etag;
        let update = |number| {
            let value = format!("{number}").into();
            let update = AttributesUpdate::merge([("winner".to_owned(), value)].into());
            store
                .update(&name, update, Precondition::IfETag(etag))
                .is_ok()
        };
        assert_eq!(won(&update), 1, "updates of one version");
        let etag = store.load("source").etag;
        let replace = |_| {
            let mut new = NewManifest::default();
            new.append_if(&key("source"), 0, 100, Precondition::IfETag(etag))
                .expect("it is a range");
            store.compose("source", &new, replacing()).is_ok()
        };
        assert_eq!(won(&replace), 1, "blobs of one version of themselves");
    }
}

pub(super) fn updates_beside_ranges(subject: MutableSubject<'_>) {
    const WRITERS: u64 = 3;
    let store = subject.fresh();
    for (name, size) in [("small", 30_000), ("large", 2000 * KIB)] {
        store.save(name, vec![0; size]);
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let store = &store;
                scope.spawn(move || {
                    for number in 0..20 {
                        let start = writer * 10_000 + number * 100;
                        let put = store.put_range(
                            &key(name),
                            span(start, start + 100),
                            payload(start, 100),
                            PutRangeOptions::default(),
                        );
                        put.wait().expect("it is put");
                    }
                });
            }
            for number in 0..20 {
                let update = AttributesUpdate::merge([(format!("{number}"), Bytes::new())].into());
                store
                    .update(name, update, Precondition::None)
                    .expect("it is there");
            }
        });
        let mut expected = vec![0; size];
        for writer in 0..3 {
            for number in 0..20 {
                let start = writer * 10_000 + number * 100;
                expected[start..start + 100].copy_from_slice(&payload(start as u64, 100));
            }
        }
        store.assert_holds(name, &expected);
        assert_eq!(store.manifest(name).advertised.len(), 20);
    }
}

pub(super) fn updates_of_many_threads_add_up(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    store.save("k", payload(1, 100));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for number in 0..8 {
                    let name = format!("{thread}/{number}");
                    let update = AttributesUpdate::merge([(name, Bytes::new())].into());
                    store
                        .update("k", update, Precondition::None)
                        .expect("it is there");
                }
            });
        }
    });
    assert_eq!(store.manifest("k").advertised.len(), 32);
}

pub(super) fn manifests_are_listed_in_order(subject: MutableSubject<'_>) {
    let mut store = subject.fresh();
    for number in 0..7 {
        store.save(format!("a/{number}"), payload(number, 10));
        store.save(format!("b/{number}/x"), payload(number, 2000 * KIB));
    }
    store = subject.reopen(store);
    let manifests = store.manifests();
    for max in [1, 3, 1000] {
        let mut request = ListRequest {
            max,
            ..ListRequest::default()
        };
        let mut listed = Vec::new();
        loop {
            let page = manifests.list(request.clone()).wait().expect("a page");
            assert!(page.items.len() <= max);
            for item in page.items {
                let found = item.manifest.expect("it can be read");
                assert_eq!(found.key, item.key);
                assert_tiled(&found, &RangeSet::new());
                listed.push(item.key);
            }
            request.token = page.next;
            if request.token.is_none() {
                break;
            }
        }
        let plain = store.list(ListRequest::default()).wait().expect("a page");
        let plain: Vec<_> = plain.blobs.into_iter().map(|blob| blob.key).collect();
        assert_eq!(listed, plain);
    }
    let request = ListRequest {
        delimiter: Some(b"/".to_vec()),
        ..ListRequest::prefix("b/")
    };
    let page = manifests.list(request).wait().expect("a page");
    assert_eq!((page.items.len(), page.common_prefixes.len()), (0, 7));
    let request = ListRequest {
        delimiter: Some(Vec::new()),
        ..ListRequest::default()
    };
    assert_fails!(
        manifests.list(request).wait(),
        ManifestError::Storage(StorageError::InvalidArgument { .. })
    );
}

pub(super) fn a_dropped_manifest_op_still_commits(subject: MutableSubject<'_>) {
    let mut store = subject.fresh();
    let (large, small) = (payload(1, 3000 * KIB), payload(2, 100));
    drop(store.put(&key("large"), large.clone(), PutOptions::default()));
    drop(store.put(&key("small"), small.clone(), PutOptions::default()));
    let manifests: Arc<dyn ManifestStore> = store.manifests();
    let new = manifest(&[(Some("large"), 7, 1000), (Some("small"), 0, 100)]);
    drop(manifests.put(&key("k"), &new, PutManifestOptions::default()));
    let update = AttributesUpdate::merge(attributes(&[("one", "1")]));
    drop(manifests.update_attributes(&key("k"), update, UpdateOptions::default()));
    // It is about what came before.
    let removed = store.update("k", AttributesUpdate::remove(["one"]), Precondition::None);
    removed.expect("it is there");
    drop(manifests);
    store.flush().wait().expect("all of it is durable");
    store = subject.reopen(store);
    let expected = [&large[7..1000], &small].concat();
    store.assert_holds("k", &expected);
    assert_eq!(store.manifest("k").advertised.len(), 0);
}

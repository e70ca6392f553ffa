//! Manifests over real stores: payload that is shared, or copied where it can't be; what an update
//! of attributes writes; damaged ones in a listing; many entries.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bytes::Bytes;
use graviton_engine::io::BackendChoice;
use graviton_engine::port::{
    AttributesUpdate, BinaryKey, BlobStore, CopyOptions, DeleteOptions, ErrorKind, GetOptions,
    ListRequest, Location, ManifestError, MutableObjectStore, NewManifest, PutManifestOptions,
    PutOptions, PutOutcome, PutRangeOptions, Span, StorageError, UpdateOptions,
};
use graviton_engine::store::{CreateOptions, KIB, MIB, OpenOptions, Store};
use graviton_tests::random::payload;
use graviton_tests::{
    buffered, check_figures, contract_options, create_options, io, test_directory, with_holes,
};
use tempfile::TempDir;

fn in_memory(bytes: u64) -> usize {
    usize::try_from(bytes).expect("few bytes")
}

fn key(name: &str) -> BinaryKey {
    BinaryKey::new(name).expect("a short key")
}

/// A store in a directory of its own, through the best backend there is.
fn create(options: impl FnOnce(CreateOptions) -> CreateOptions) -> (TempDir, Store) {
    let directory = test_directory();
    let io = io(BackendChoice::Auto).expect("some backend works");
    let options = options(contract_options(&io));
    let store = Store::create(directory.path().join("store"), options).expect("it is made");
    (directory, store)
}

fn put(store: &Store, name: &str, bytes: &Bytes) {
    let put = store.put(&key(name), bytes.clone(), PutOptions::default());
    put.wait().expect("it is put");
}

fn get(store: &Store, name: &str) -> Bytes {
    let get = store.get(&key(name), with_holes()).wait();
    get.expect("it is read").bytes
}

fn compose(store: &Store, name: &str, new: &NewManifest) -> Result<(), ManifestError> {
    let options = PutManifestOptions {
        replace: true,
        ..PutManifestOptions::default()
    };
    let put = store.manifests().put(&key(name), new, options);
    put.wait().map(drop)
}

fn update(
    store: &Store,
    name: &str,
    update: AttributesUpdate,
) -> Result<PutOutcome, ManifestError> {
    let manifests = store.manifests();
    let updated = manifests.update_attributes(&key(name), update, UpdateOptions::default());
    updated.wait()
}

fn check_whole(store: &Store) {
    check_figures(store);
    let report = store.verify(&mut |_| ()).expect("it is verified");
    assert_eq!(report.findings, []);
}

/// Bytes of the log that were written since the newest checkpoint.
fn written(store: &Store) -> u64 {
    let sectors = store.info().sectors;
    sectors.iter().map(|sector| sector.replay_bytes).sum()
}

#[test]
fn large_payload_is_shared_and_attributes_cost_a_record() {
    let (_directory, store) = create(|options| CreateOptions {
        open: OpenOptions {
            background: false,
            ..options.open
        },
        ..options
    });
    let bytes = payload(1, in_memory(40 * MIB));
    put(&store, "large", &bytes);
    let before = written(&store);
    let mut turned = NewManifest::default();
    turned
        .append(&key("large"), 17 * MIB + 1, 40 * MIB)
        .expect("it is there");
    turned
        .append(&key("large"), 0, 17 * MIB + 1)
        .expect("it is there");
    compose(&store, "turned", &turned).expect("it is there");
    for number in 0..10 {
        let value = Bytes::from(vec![number; 100]);
        let change = AttributesUpdate::merge([("name".to_owned(), value)].into());
        update(&store, "large", change).expect("it is there");
    }
    let cost = written(&store) - before;
    // A manifest names 16 bytes for each piece.
    let pieces = store
        .stat(&key("large"))
        .wait()
        .expect("it is there")
        .fragments as u64;
    let most = 11 * (pieces * 16 + 4 * KIB);
    assert!(cost <= most, "{cost} bytes for eleven records");
    let at = in_memory(17 * MIB + 1);
    assert!(get(&store, "turned") == [&bytes[at..], &bytes[..at]].concat());
    assert!(get(&store, "large") == bytes);
    check_whole(&store);
}

#[test]
fn blobs_are_made_across_sectors() {
    let directory = test_directory();
    let path = directory.path().join("store");
    let io = io(BackendChoice::Auto).expect("some backend works");
    let options = create_options(&io, 3, 32 * MIB);
    let open = options.open.clone();
    let store = Store::create(&path, options).expect("it is made");
    let names: Vec<String> = (0..12).map(|number| format!("source {number}")).collect();
    let mut expected = Vec::new();
    let mut new = NewManifest::default();
    for (name, number) in names.iter().zip(0..) {
        // Some lie in extents, some in their own records.
        let size = [3_000_000, 1000][number % 2];
        let bytes = payload(number as u64, size);
        put(&store, name, &bytes);
        new.append(&key(name), 10, size as u64)
            .expect("it is there");
        expected.extend_from_slice(&bytes[10..]);
    }
    let stats = names.iter().map(|name| store.stat(&key(name)).wait());
    let mut sectors: Vec<_> = stats
        .flat_map(|info| info.expect("it is there").sectors)
        .collect();
    sectors.sort_unstable();
    sectors.dedup();
    assert_eq!(sectors.len(), 3, "the sources lie in all sectors");
    compose(&store, "made", &new).expect("all of it is there");
    compose(&store, "again", &new).expect("all of it is there");
    let manifest = store
        .manifests()
        .get(&key("made"))
        .wait()
        .expect("it is there");
    let holders = manifest
        .entries
        .iter()
        .filter_map(|entry| match entry.location {
            Location::Payload { sector, .. } => Some(sector),
            _ => None,
        });
    let mut holders: Vec<u16> = holders.collect();
    holders.dedup();
    assert_eq!(holders.len(), 1, "a blob lies in one sector");
    for name in &names {
        let deleted = store.delete(&key(name), DeleteOptions::default()).wait();
        assert!(deleted.expect("it is deleted").existed);
    }
    for round in 0..3 {
        assert!(get(&store, "made") == expected);
        assert!(get(&store, "again") == expected);
        check_whole(&store);
        match round {
            0 => drop(store.compact().expect("it compacts")),
            _ => drop(store.checkpoint().expect("it is taken")),
        }
    }
    store.close().expect("it closes");
    let store = Store::open_with(&path, open).expect("it opens");
    assert!(get(&store, "made") == expected);
    check_whole(&store);
}

/// While somebody writes over a blob, range by range, and its fragments are merged, what is made of it
/// twice is twice the same version.
#[test]
fn a_blob_is_made_of_one_version_of_another() {
    const SIZE: u64 = 64 * KIB;
    const PIECE: u64 = 512;
    let (_directory, store) = create(|options| CreateOptions {
        open: OpenOptions {
            merge_above: 8,
            ..options.open
        },
        ..options
    });
    put(&store, "source", &vec![0; in_memory(SIZE)].into());
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0_u64;
            while !is_over.load(Ordering::Relaxed) {
                number += 1;
                let start = number * 7 % (SIZE / PIECE) * PIECE;
                let range = Span::at(start, PIECE).expect("it ends");
                let bytes = payload(number, in_memory(PIECE));
                let options = PutRangeOptions::default();
                let put = store.put_range(&key("source"), range, bytes, options);
                put.wait().expect("it is put");
            }
        });
        let mut twice = NewManifest::default();
        twice.append(&key("source"), 0, SIZE).expect("it is there");
        twice.append(&key("source"), 0, SIZE).expect("it is there");
        for number in 0..60 {
            let name = format!("made {}", number % 3);
            compose(&store, &name, &twice).expect("it is there");
            let made = get(&store, &name);
            let (first, second) = made.split_at(in_memory(SIZE));
            assert!(first == second, "{name}: two versions");
        }
        is_over.store(true, Ordering::Relaxed);
    });
    check_whole(&store);
}

#[test]
fn what_is_damaged_is_an_item_of_a_listing() {
    let directory = test_directory();
    let path = directory.path().join("store");
    let options = contract_options(&buffered());
    let open = options.open.clone();
    let store = Store::create(&path, options).expect("it is made");
    for number in 0..5 {
        let value = Bytes::from(format!("the value of number {number}"));
        let options = PutOptions {
            attributes: [("name".to_owned(), value)].into(),
            ..PutOptions::default()
        };
        let put = store.put(&key(&format!("{number}")), "bytes".into(), options);
        put.wait().expect("it is put");
    }
    store.checkpoint().expect("it is taken");
    store.close().expect("it closes");
    let file = std::fs::read_dir(&path).expect("it can be read");
    let mut files = file.map(|entry| entry.expect("an entry").path());
    let sector = files
        .find(|file| file.to_string_lossy().contains("sector"))
        .expect("a sector");
    let bytes = std::fs::read(&sector).expect("it can be read");
    let wanted = b"the value of number 2";
    let at = bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
        .expect("it is in the log");
    let file = std::fs::File::options().write(true).open(&sector);
    file.expect("it opens")
        .write_at(b"T", at as u64)
        .expect("it is written");

    let open = OpenOptions {
        background: false,
        ..open
    };
    let store = Store::open_with(&path, open).expect("the index is whole");
    let manifests = store.manifests();
    for max in [1, 2, 1000] {
        let mut request = ListRequest {
            max,
            ..ListRequest::default()
        };
        let mut damaged = Vec::new();
        let mut whole = 0;
        loop {
            let page = manifests.list(request.clone()).wait().expect("a page");
            for item in page.items {
                match item.manifest {
                    Ok(found) => {
                        assert_eq!(found.advertised.len(), 1);
                        whole += 1;
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
                        damaged.push(item.key);
                    }
                }
            }
            request.token = page.next;
            if request.token.is_none() {
                break;
            }
        }
        assert_eq!((whole, damaged), (4, vec![key("2")]));
    }
    let removed = update(&store, "2", AttributesUpdate::remove(["name"]));
    let error = removed.expect_err("nobody knows what it had");
    assert_eq!(error.kind(), ErrorKind::Corruption);
    // The bytes are as they were.
    let read = store.get(&key("2"), GetOptions::default()).wait();
    assert_eq!(read.expect("they verify").bytes, "bytes");
}

/// Blobs of many entries: a page ends early, and says how to go on; beyond what is allowed they are
/// refused.
#[test]
fn pages_of_many_entries_are_short() {
    const ENTRIES: u64 = 40_000;
    let (_directory, store) = create(|options| options);
    let large = payload(1, in_memory(2 * MIB));
    put(&store, "a/large", &large);
    let mut new = NewManifest::default();
    for number in 0..ENTRIES / 2 {
        new.append(&key("a/large"), number * 4, number * 4 + 3)
            .expect("it is there");
        new.append_hole(1).expect("it is there");
    }
    for name in ["b", "c", "d/1", "e"] {
        compose(&store, name, &new).expect("it is there");
    }
    let made = get(&store, "c");
    let expected: Vec<u8> = large[..in_memory(2 * ENTRIES)]
        .chunks(4)
        .flat_map(|four| [four[0], four[1], four[2], 0])
        .collect();
    assert!(made == expected);
    let mut request = ListRequest {
        delimiter: Some(b"/".to_vec()),
        ..ListRequest::default()
    };
    let mut pages = Vec::new();
    loop {
        let page = store.manifests().list(request.clone()).wait();
        let page = page.expect("a page");
        let keys = page.items.iter().map(|item| item.key.to_string());
        let prefixes = page.common_prefixes.iter();
        let prefixes = prefixes.map(|prefix| String::from_utf8_lossy(prefix).into_owned());
        pages.push(keys.chain(prefixes).collect::<Vec<_>>().join(" "));
        request.token = page.next;
        if request.token.is_none() {
            break;
        }
    }
    // Each takes a third of a page, and more.
    assert_eq!(pages, ["b c a/ d/", "e"]);
    store.close().expect("it closes");

    let (_directory, store) = create(|options| CreateOptions {
        open: OpenOptions {
            max_fragments: 1000,
            max_attributes_len: 100,
            ..options.open
        },
        ..options
    });
    put(&store, "a/large", &large);
    let refused = compose(&store, "b", &new);
    assert!(
        matches!(
            refused,
            Err(ManifestError::Storage(StorageError::TooFragmented { .. }))
        ),
        "{refused:?}"
    );
    let attributes = |length| [("name".to_owned(), Bytes::from(vec![7; length]))].into();
    let merge = |length| AttributesUpdate::merge(attributes(length));
    update(&store, "a/large", merge(96)).expect("as many as are allowed");
    let error = update(&store, "a/large", merge(97)).expect_err("one more");
    assert_eq!(
        error.to_string(),
        "invalid argument: attributes of 101 bytes, at most 100"
    );
    let options = PutOptions {
        attributes: attributes(97),
        ..PutOptions::default()
    };
    let refused = store.put(&key("k"), Bytes::new(), options).wait();
    assert_eq!(
        refused.expect_err("the same limit").to_string(),
        error.to_string()
    );
}

/// A blob is made of another whose payload is given up between the plan and the commit.
#[test]
fn what_a_blob_is_made_of_may_go_away_meanwhile() {
    let (_directory, store) = create(|options| options);
    let (shared, next) = (payload(1, 3_000_000), payload(2, 60_000));
    let mut new = NewManifest::default();
    new.append(&key("source"), 7, 50_000).expect("a range");
    for round in 0..20 {
        put(&store, "source", &shared);
        let replaced = store.put(&key("source"), next.clone(), PutOptions::default());
        compose(&store, "made", &new).expect("it is there, this or that");
        replaced.wait().expect("it is put");
        let made = get(&store, "made");
        assert!(
            made == shared[7..50_000] || made == next[7..50_000],
            "round {round}"
        );
    }
    check_whole(&store);
}

/// What is refused, or answered without a record, knows of all that was asked for before, though nobody
/// waits for that.
#[test]
fn answers_know_of_what_was_asked_before() {
    let (_directory, store) = create(|options| options);
    let hot = key("hot");
    let named = || AttributesUpdate::merge([("name".to_owned(), "value".into())].into());
    let replaced = payload(1, 10_000);
    for round in 0..60 {
        if round % 2 == 0 {
            let options = PutOptions {
                attributes: named().set,
                ..PutOptions::default()
            };
            let put = store.put(&hot, "bytes".into(), options).wait();
            put.expect("it is put");
        } else {
            let deleted = store.delete(&hot, DeleteOptions::default()).wait();
            deleted.expect("it is deleted");
        }
        // Without attributes.
        drop(store.put(&hot, replaced.clone(), PutOptions::default()));
        match round % 3 {
            0 => {
                let updated = update(&store, "hot", named());
                let version = updated.expect("it was put").version;
                let info = store.stat(&hot).wait().expect("it is there");
                let found = (info.size, info.version, info.attributes.len());
                assert_eq!(found, (10_000, version, 1), "round {round}");
            }
            1 => {
                let copied = store.copy(&hot, &key("copy"), CopyOptions::default());
                copied.wait().expect("it was put");
                assert!(get(&store, "copy") == replaced, "round {round}");
            }
            _ => {
                let mut new = NewManifest::default();
                new.append(&hot, 0, 10_000).expect("a range");
                compose(&store, "made", &new).expect("it was put");
                assert!(get(&store, "made") == replaced, "round {round}");
            }
        }
    }
    check_whole(&store);
}

/// Manifests that would be too many pieces are refused before they are gathered; those of many pieces are
/// planned in one pass over each.
#[test]
fn what_would_be_too_many_pieces_is_refused_at_once() {
    const PIECES: u64 = 40_000;
    let (_directory, store) = create(|options| options);
    let large = payload(1, in_memory(MIB));
    put(&store, "large", &large);
    put(&store, "small", &payload(2, 10));
    let mut pieces = NewManifest::default();
    for number in 0..PIECES / 2 {
        let at = number * 4;
        pieces.append(&key("large"), at, at + 3).expect("a range");
        pieces.append_hole(1).expect("a hole");
    }
    compose(&store, "pieces", &pieces).expect("it is there");
    let mut all = NewManifest::default();
    for _ in 0..10_000 {
        all.append(&key("pieces"), 0, pieces.size).expect("a range");
    }
    let mut copied = NewManifest::default();
    for _ in 0..2_000_000 {
        copied.append(&key("small"), 3, 4).expect("a range");
        copied.append_hole(1).expect("a hole");
    }
    let before = written(&store);
    for new in [all, copied] {
        let refused = compose(&store, "too much", &new);
        assert!(
            matches!(
                refused,
                Err(ManifestError::Storage(StorageError::TooFragmented { .. }))
            ),
            "{refused:?}"
        );
    }
    assert_eq!(written(&store), before, "nothing was copied");
    let mut turned = NewManifest::default();
    for number in (0..PIECES / 2).rev() {
        let at = number * 4;
        turned.append(&key("pieces"), at, at + 4).expect("a range");
    }
    compose(&store, "turned", &turned).expect("it is there");
    let expected: Vec<u8> = large[..in_memory(PIECES * 2)]
        .chunks(4)
        .rev()
        .flat_map(|four| [four[0], four[1], four[2], 0])
        .collect();
    assert!(get(&store, "turned") == expected);
}

/// Where less is allowed than a blob has, what it has may become less.
#[test]
fn a_lower_limit_of_attributes_lets_them_go() {
    let directory = test_directory();
    let path = directory.path().join("store");
    let io = io(BackendChoice::Auto).expect("some backend works");
    let options = contract_options(&io);
    let open = OpenOptions {
        max_attributes_len: 100,
        ..options.open.clone()
    };
    let store = Store::create(&path, options).expect("it is made");
    let all = ["one", "two", "three"].map(|name| (name.to_owned(), Bytes::from(vec![7; 200])));
    let options = PutOptions {
        attributes: all.into(),
        ..PutOptions::default()
    };
    let put = store.put(&key("k"), "bytes".into(), options).wait();
    put.expect("it is put");
    store.close().expect("it closes");
    let store = Store::open_with(&path, open).expect("it opens");
    let update = |change| update(&store, "k", change);
    update(AttributesUpdate::remove(["one"])).expect("it becomes less");
    let more = [("three".to_owned(), Bytes::from(vec![7; 201]))];
    let error = update(AttributesUpdate::merge(more.into())).expect_err("it becomes more");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    update(AttributesUpdate::remove(["two", "three"])).expect("it becomes less");
}

/// Whoever copies a blob, renames it, changes its attributes or makes another of it gets through,
/// however many put ranges into it and replace it all the time.
#[test]
fn nobody_is_kept_from_what_is_always_changing() {
    const WRITERS: u64 = 8;
    let (_directory, store) = create(|options| options);
    put(&store, "hot", &payload(0, 10_000));
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (store, is_over) = (&store, &is_over);
            scope.spawn(move || {
                let hot = key("hot");
                while !is_over.load(Ordering::Relaxed) {
                    if writer % 2 == 0 {
                        put(store, "hot", &payload(writer, 10_000));
                        continue;
                    }
                    let range = Span::at(writer * 100, 100).expect("it ends");
                    let bytes = payload(writer, 100);
                    let options = PutRangeOptions::default();
                    let put = store.put_range(&hot, range, bytes, options);
                    put.wait().expect("it is put");
                }
            });
        }
        for number in 0..10 {
            let value = format!("{number}").into();
            let change = AttributesUpdate::merge([("name".to_owned(), value)].into());
            update(&store, "hot", change).expect("it is there");
            let copied = store.copy(&key("hot"), &key("copy"), CopyOptions::default());
            copied.wait().expect("it is there");
            let mut new = NewManifest::default();
            new.append(&key("hot"), 5, 9000).expect("a range");
            compose(&store, "made", &new).expect("it is there");
        }
        is_over.store(true, Ordering::Relaxed);
    });
    check_whole(&store);
}

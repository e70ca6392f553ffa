use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc;

use crate::io::sim::Random;
use crate::port::{BinaryKey, ErrorKind, ListPage, ListRequest, ListToken, StorageError};
use crate::testing::Subject;
use crate::testing::support::{Short, Store, assert_fails, key, payload};

#[derive(Debug, PartialEq, Eq, Default)]
struct Listing {
    keys: Vec<Vec<u8>>,
    prefixes: Vec<Vec<u8>>,
}

/// What all pages of a request are, said without the store's own code.
fn expected(keys: &BTreeSet<Vec<u8>>, request: &ListRequest) -> Listing {
    let mut listing = Listing::default();
    for key in keys {
        let wanted = request.start_after.as_ref().is_none_or(|after| key > after);
        let Some(rest) = key.strip_prefix(request.prefix.as_slice()) else {
            continue;
        };
        if !wanted {
            continue;
        }
        let cut = request.delimiter.as_ref().and_then(|delimiter| {
            let found = (0..rest.len()).find(|at| rest[*at..].starts_with(delimiter));
            found.map(|at| request.prefix.len() + at + delimiter.len())
        });
        match cut {
            Some(cut) if listing.prefixes.last().map(Vec::as_slice) != Some(&key[..cut]) => {
                listing.prefixes.push(key[..cut].to_vec());
            }
            Some(_) => {}
            None => listing.keys.push(key.clone()),
        }
    }
    listing
}

#[track_caller]
fn check(store: &Store, keys: &BTreeSet<Vec<u8>>, request: &ListRequest) {
    let list = |request| store.list(request).wait().expect("list answers");
    check_pages(&list, keys, request);
}

/// Lists page by page and compares: every page but the last is full, and the last is not followed
/// by an empty one.
#[track_caller]
pub(super) fn check_pages(
    list: &dyn Fn(ListRequest) -> ListPage,
    keys: &BTreeSet<Vec<u8>>,
    request: &ListRequest,
) {
    let expected = expected(keys, request);
    let total = expected.keys.len() + expected.prefixes.len();
    let mut listed = Listing::default();
    let mut page_request = request.clone();
    loop {
        let page = list(page_request.clone());
        let before = listed.keys.len() + listed.prefixes.len();
        let on_page = page.blobs.len() + page.common_prefixes.len();
        assert_eq!(
            on_page,
            request.max.min(total.saturating_sub(before)),
            "{request:?}"
        );
        let keys = page.blobs.iter().map(|blob| blob.key.as_bytes().to_vec());
        listed.keys.extend(keys);
        listed.prefixes.extend(page.common_prefixes);
        assert_eq!(
            page.next.is_some(),
            before + on_page < total,
            "a token if and only if there is more: {request:?}"
        );
        if page.next.is_none() {
            break;
        }
        // Through its text form, as a caller would keep it.
        let text = page.next.map(|token| token.to_string());
        page_request.token = text.map(|text| text.parse().expect("a token's text form"));
    }
    assert_eq!(listed, expected, "{request:?}");
}

pub(super) fn set<K: AsRef<[u8]>>(keys: impl IntoIterator<Item = K>) -> BTreeSet<Vec<u8>> {
    keys.into_iter().map(|key| key.as_ref().to_vec()).collect()
}

pub(super) fn list_is_in_bytewise_order(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    check(&store, &BTreeSet::new(), &ListRequest::default());
    let names = set([
        b"b".as_slice(),
        b"a",
        b"a\0",
        b"a\xff",
        b"aa",
        b"B",
        b"\xff",
        b"\xff\xff",
        b"\0",
        b"10",
        b"9",
        b"a/b",
        b"a-b",
    ]);
    store.fill(names.iter().rev());
    check(&store, &names, &ListRequest::default());
    store = subject.reopen(store);
    check(&store, &names, &ListRequest::default());

    let put = store.save("a", payload(1, 12_345));
    let (blobs, prefixes) = store.list_all(ListRequest::prefix("a"));
    assert_eq!(prefixes, Vec::<Vec<u8>>::new());
    assert_eq!(blobs[0].key, key("a"), "once, in its new version");
    assert_eq!((blobs[0].version, blobs[0].etag), (put.version, put.etag));
    assert_eq!(blobs[0].size, 12_345);
    assert_eq!(blobs[0].modified, store.info("a").modified);
    assert_ne!(blobs[1].key, key("a"));
}

pub(super) fn list_holds_to_the_prefix(subject: &mut dyn Subject) {
    let store = subject.fresh();
    let names = set([
        b"a".as_slice(),
        b"a/",
        b"a/b",
        b"a/b/c",
        b"a0",
        b"ab",
        b"b",
        b"\xfe\xff",
        b"\xff",
        b"\xff\xff",
        b"\xff\xffx",
        b"\xff\xff\xff",
    ]);
    store.fill(&names);
    for prefix in [
        b"".as_slice(),
        b"a",
        b"a/",
        b"a/b",
        b"a/b/c",
        b"a/b/c/d",
        b"c",
        b"\xfe",
        b"\xff",
        b"\xff\xff",
        b"\xff\xff\xff\xff",
        &[b'a'; 2000],
    ] {
        for max in [1, 2, 1000] {
            let request = ListRequest {
                max,
                ..ListRequest::prefix(prefix)
            };
            check(&store, &names, &request);
        }
    }
}

pub(super) fn list_starts_after_a_key(subject: &mut dyn Subject) {
    let store = subject.fresh();
    let names = set(["a", "b", "b/1", "b/2", "b/3/x", "c"]);
    store.fill(&names);
    for after in [
        b"".as_slice(),
        b"\0",
        b"a",
        b"aa",
        b"b",
        b"b/",
        b"b/1",
        b"b/3/w",
        b"b/3/x",
        b"b/3/y",
        b"c",
        b"d",
        &[b'b'; 2000],
    ] {
        for prefix in ["", "b", "b/", "c"] {
            for delimiter in [None, Some(b"/".to_vec())] {
                let request = ListRequest {
                    start_after: Some(after.to_vec()),
                    delimiter,
                    max: 2,
                    ..ListRequest::prefix(prefix)
                };
                check(&store, &names, &request);
            }
        }
    }
}

pub(super) fn list_pages_hold_max_at_most(subject: &mut dyn Subject) {
    let store = subject.fresh();
    let names: BTreeSet<_> = set((0..30).map(|n| format!("{:02}/{}", n / 2, n)));
    store.fill(&names);
    for max in [1, 2, 3, 10, 29, 30, 31, 1000, ListRequest::MAX] {
        for delimiter in [None, Some(b"/".to_vec())] {
            let request = ListRequest {
                max,
                delimiter,
                ..ListRequest::default()
            };
            check(&store, &names, &request);
        }
    }
    for max in [ListRequest::MAX + 1, usize::MAX] {
        let request = ListRequest {
            max,
            ..ListRequest::default()
        };
        let page = store.list(request).wait().expect("list answers");
        assert_eq!((page.blobs.len(), page.next), (30, None));
    }
    let nothing = ListRequest {
        max: 0,
        ..ListRequest::default()
    };
    let page = store.list(nothing).wait().expect("list answers");
    assert_eq!((page.blobs, page.common_prefixes), (Vec::new(), Vec::new()));
    assert_eq!(page.next, None, "a loop over the pages ends");
}

pub(super) fn list_groups_by_delimiter(subject: &mut dyn Subject) {
    let store = subject.fresh();
    let names = set([
        b"/".as_slice(),
        b"//",
        b"/x",
        b"a",
        b"a/",
        b"a//",
        b"a//b",
        b"a/b",
        b"a/b/c",
        b"a0",
        b"b::c",
        b"b:c",
        b"b:::c",
        b"c/d/e/f",
        b"\xff/\xff",
        b"\xff\xff",
        b"\xff\xff\xff",
    ]);
    store.fill(&names);
    for delimiter in [
        b"/".as_slice(),
        b"//",
        b"::",
        b"a",
        b"\xff",
        b"\xff\xff",
        b"absent",
        b"c/d",
    ] {
        for prefix in [b"".as_slice(), b"a", b"a/", b"b:", b"c/", b"\xff"] {
            for max in [1, 2, 3, 1000] {
                let request = ListRequest {
                    delimiter: Some(delimiter.to_vec()),
                    max,
                    ..ListRequest::prefix(prefix)
                };
                check(&store, &names, &request);
            }
        }
    }
    let request = ListRequest {
        delimiter: Some(Vec::new()),
        ..ListRequest::default()
    };
    let refused = store.list(request).wait();
    assert_fails!(refused, StorageError::InvalidArgument { .. });
}

pub(super) fn list_agrees_with_a_plain_scan(subject: &mut dyn Subject) {
    let mut random = Random::new(42);
    let name = |random: &mut Random, longest: usize| -> Vec<u8> {
        let length = random.below(longest + 1);
        (0..length).map(|_| *random.pick(b"ab/\xff\0")).collect()
    };
    for _ in 0..3 {
        let store = subject.fresh();
        let mut names: BTreeSet<Vec<u8>> = (0..150).map(|_| name(&mut random, 5)).collect();
        names.remove(b"".as_slice());
        store.fill(&names);
        let gone: Vec<_> = names.iter().step_by(5).cloned().collect();
        for gone in gone {
            assert!(store.remove(&gone));
            names.remove(&gone);
        }
        for _ in 0..150 {
            let delimiter = name(&mut random, 2);
            let request = ListRequest {
                prefix: name(&mut random, 2),
                start_after: random.one_in(2).then(|| name(&mut random, 4)),
                delimiter: (!delimiter.is_empty()).then_some(delimiter),
                max: *random.pick(&[1, 2, 3, 7, 40, 1000]),
                ..ListRequest::default()
            };
            check(&store, &names, &request);
        }
    }
}

pub(super) fn list_tokens_outlive_reopening_and_their_key(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    store.fill(["a", "b", "c/1", "c/2", "d", "e"]);
    let request = ListRequest {
        delimiter: Some(b"/".to_vec()),
        max: 2,
        ..ListRequest::default()
    };
    let page = store.list(request.clone()).wait().expect("list answers");
    let after_b = page.next.expect("there is more").to_string();
    assert!(store.remove("b"));
    store.save("b\0", "new, behind the token");
    store = subject.reopen(store);
    let go_on = |store: &Store, token: &str| {
        let request = ListRequest {
            token: Some(token.parse().expect("a token's text form")),
            ..request.clone()
        };
        store.list(request).wait().expect("list answers")
    };
    let page = go_on(&store, &after_b);
    assert_eq!(page.blobs.len(), 1);
    assert_eq!(page.blobs[0].key, key("b\0"));
    assert_eq!(page.common_prefixes, [b"c/"]);
    let after_c = page.next.expect("there is more").to_string();
    assert!(store.remove("c/1") && store.remove("c/2"));
    store.save("c/3", "in a group that was listed");
    store = subject.reopen(store);
    let page = go_on(&store, &after_c);
    let keys: Vec<_> = page.blobs.into_iter().map(|blob| blob.key).collect();
    assert_eq!(keys, [key("d"), key("e")]);
    assert_eq!(page.common_prefixes, Vec::<Vec<u8>>::new());
    assert_eq!(page.next, None);
    let page = go_on(&store, &after_b);
    assert_eq!(page.blobs[0].key, key("b\0"), "a token can be used again");
}

pub(super) fn list_tokens_are_checked(subject: &mut dyn Subject) {
    let store = subject.fresh();
    store.fill(["a", "b", "c"]);
    let request = ListRequest {
        max: 1,
        ..ListRequest::default()
    };
    let page = store.list(request).wait().expect("list answers");
    let token = page.next.expect("there is more").to_string();
    let mut garbage: Vec<String> = ["", "0", "00", "zz", "token", "\u{e9}\u{e9}"]
        .map(str::to_owned)
        .to_vec();
    garbage.push(token[..token.len() - 2].to_owned());
    garbage.push(format!("{token}00"));
    garbage.push("00".repeat(100_000));
    for at in 0..token.len() {
        let other = if &token[at..=at] == "0" { "1" } else { "0" };
        garbage.push(format!("{}{other}{}", &token[..at], &token[at + 1..]));
    }
    for text in garbage {
        let refused = text.parse::<ListToken>();
        let kind = refused.map_err(|error| error.kind());
        assert_eq!(kind, Err(ErrorKind::InvalidInput), "{text:.80}");
    }
}

pub(super) fn list_tokens_do_not_lead_out_of_the_prefix(subject: &mut dyn Subject) {
    let store = subject.fresh();
    let names = set(["a", "b/1", "b/2", "c"]);
    store.fill(&names);
    for prefix in ["a", "c"] {
        let request = ListRequest {
            max: 1,
            ..ListRequest::default()
        };
        let mut token = store.list(request.clone()).wait().expect("answers").next;
        if prefix == "c" {
            let request = ListRequest { max: 3, ..request };
            token = store.list(request).wait().expect("answers").next;
        }
        let foreign = ListRequest {
            token,
            ..ListRequest::prefix("b/")
        };
        let page = store.list(foreign).wait().expect("list answers");
        let inside = |key: &BinaryKey| key.as_bytes().starts_with(b"b/");
        assert!(page.blobs.iter().all(|blob| inside(&blob.key)), "{page:?}");
        assert_eq!(page.blobs.len(), if prefix == "a" { 2 } else { 0 });
        assert_eq!(page.next, None);
    }
}

pub(super) fn a_key_that_lives_through_a_scan_appears_once(subject: &mut dyn Subject) {
    let store = subject.fresh();
    let steady: BTreeSet<_> = set((0..200).map(|n| format!("{n:03}/steady")));
    store.fill(&steady);
    let mut seen = BTreeMap::<Vec<u8>, u32>::new();
    let mut last: Option<Vec<u8>> = None;
    std::thread::scope(|scope| {
        let (stop, stopped) = mpsc::channel::<()>();
        let (start, started) = mpsc::channel();
        let changing = &store;
        scope.spawn(move || {
            let mut random = Random::new(7);
            loop {
                let n = random.below(200);
                match random.below(4) {
                    0 => drop(changing.save(format!("{n:03}/passing"), "x")),
                    1 => drop(changing.remove(format!("{n:03}/passing"))),
                    2 => drop(changing.save(format!("{n:03}/steady"), "changed")),
                    _ => drop(changing.duplicate(format!("{n:03}/steady"), format!("{n:03}/x"))),
                }
                let _ = start.send(());
                if stopped.try_recv() != Err(mpsc::TryRecvError::Empty) {
                    break;
                }
            }
        });
        started.recv().expect("changes are made");
        for max in [1, 7, 1000] {
            let mut request = ListRequest {
                max,
                ..ListRequest::default()
            };
            loop {
                let page = store.list(request.clone()).wait().expect("list answers");
                for blob in page.blobs {
                    let name = blob.key.as_bytes().to_vec();
                    assert!(last.as_ref().is_none_or(|last| *last < name), "ascending");
                    last = Some(name.clone());
                    *seen.entry(name).or_default() += 1;
                }
                if page.next.is_none() {
                    break;
                }
                request.token = page.next;
            }
            last = None;
            for name in &steady {
                let times = seen.remove(name).unwrap_or(0);
                assert_eq!(times, 1, "{} of a scan", String::from_utf8_lossy(name));
            }
            assert!(seen.values().all(|times| *times == 1), "{seen:?}");
            seen.clear();
        }
        drop(stop);
    });
}

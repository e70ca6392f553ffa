use crate::port::{BinaryKey, ErrorKind, StorageError};
use crate::testing::Subject;
use crate::testing::support::{Short, assert_fails, payload};

pub(super) fn keys_have_1_to_1024_bytes(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    let longest = payload(1, BinaryKey::MAX_LEN);
    let mut sibling = longest.to_vec();
    sibling[BinaryKey::MAX_LEN - 1] ^= 1;
    let names = [vec![b'k'], vec![0], longest.to_vec(), sibling];
    store.fill(&names);
    for reopened in [false, true] {
        if reopened {
            store = subject.reopen(store);
        }
        for name in &names {
            store.assert_holds(name, name);
        }
        assert_eq!(store.keys().len(), names.len());
    }
    for length in [0, BinaryKey::MAX_LEN + 1] {
        let refused = BinaryKey::new(vec![b'k'; length]);
        assert_fails!(&refused, StorageError::InvalidKey { length: named } if *named == length);
        let kind = refused.map_err(|error| error.kind());
        assert_eq!(kind, Err(ErrorKind::InvalidInput));
    }
}

pub(super) fn keys_are_arbitrary_bytes(subject: &mut dyn Subject) {
    let store = subject.fresh();
    let mut names: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
    names.extend([
        vec![0, 0],
        vec![0, 0xff],
        vec![0xff, 0],
        vec![0xff, 0xff],
        vec![0xff; BinaryKey::MAX_LEN],
        vec![0; BinaryKey::MAX_LEN],
        b"\xc3".to_vec(),
        b"\xc3\xa9".to_vec(),
        b"line\r\n".to_vec(),
        b"nul\0nul".to_vec(),
    ]);
    names.sort();
    names.dedup();
    store.fill(names.iter().rev());
    for name in &names {
        store.assert_holds(name, name);
    }
    let listed: Vec<Vec<u8>> = store
        .keys()
        .iter()
        .map(|key| key.as_bytes().to_vec())
        .collect();
    assert_eq!(listed, names, "bytewise order");
}

pub(super) fn keys_are_never_normalised(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    let names = [
        "a", "a/", "a//", "/a", "//a", "a/b", "a//b", "a/./b", "./a", "../a", "a/..", "..", ".",
        "/", "//", "A", "a ", " a", "%61", "a%2fb", "\u{e9}", "e\u{301}", "a\\b", "a?b#c", "~",
    ];
    store.fill(names);
    store = subject.reopen(store);
    for name in names {
        store.assert_holds(name, name);
    }
    assert_eq!(store.keys().len(), names.len());
    for name in names {
        assert!(store.remove(name), "{name}");
        store.assert_absent(name);
    }
    assert_eq!(store.keys(), []);
}

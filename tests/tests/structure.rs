//! The floors of the engine, held by reading its source: imports point down only, and `unsafe`
//! stays where the system calls are.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Each floor of the engine and the floors it may know. A floor that is built is added here.
const FLOORS: &[(&str, &[&str])] = &[
    ("sync", &[]),
    ("port", &["sync"]),
    ("memory", &["port", "sync"]),
    ("io", &["port", "sync"]),
    ("log", &["io", "port", "sync"]),
    ("store", &["log", "io", "port", "sync"]),
    ("policy", &["port"]),
    (
        "runtime",
        &["store", "policy", "io", "memory", "port", "sync"],
    ),
    ("adapters", &["runtime", "port"]),
    ("testing", &["io", "memory", "port"]),
];

/// What a floor's own tests may know besides.
const FOR_TESTS: &[&str] = &["testing"];

/// Names at the crate's root that are no floors: macros of the contract kit.
const MACROS: &[&str] = &[
    "blob_store_contract",
    "mutable_object_store_contract",
    "replica_index_contract",
    "contract_tests",
    "mutable_contract_tests",
    "replica_contract_tests",
    "__each_blob_store_clause",
    "__each_mutable_clause",
    "__each_replica_clause",
];

/// The folders that may hold `unsafe`: the ring and the buffers it is given.
const UNSAFE_FOLDERS: &[&str] = &[
    "engine/src/io",
    // What others are measured with: a raw loop, and an interface of LMDB's that is unsafe to open.
    "benches/peers/src/ring.rs",
    "benches/peers/src/participants/lmdb.rs",
];

const CRATES: &[&str] = &["engine", "format-spec", "tools", "tests", "benches", "fuzz"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(folder).expect("a folder of sources");
    for entry in entries {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            if path
                .file_name()
                .is_some_and(|name| name != "target" && name != "corpus")
            {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// What `source` says to the compiler: comments and what is in quotes are blanked out.
fn code(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let skipped = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => quoted(rest),
            'r' if !code.ends_with(is_word) => raw_string(rest),
            '\'' => character(rest),
            _ => 0,
        };
        if skipped == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            code.extend(
                rest[..skipped]
                    .chars()
                    .map(|c| if c == '\n' { '\n' } else { ' ' }),
            );
            rest = &rest[skipped..];
        }
    }
    code
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Length of the comment (which may hold others) that `rest` begins with.
fn block_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        let ahead = &rest.as_bytes()[at..];
        if ahead.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if ahead.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// Length of the string that `rest` begins with.
fn quoted(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Length of the raw string that `rest` begins with, or 0.
fn raw_string(rest: &str) -> usize {
    let hashes = rest[1..].chars().take_while(|&c| c == '#').count();
    if !rest[1 + hashes..].starts_with('"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let begin = hashes + 2;
    rest[begin..]
        .find(&end)
        .map_or(rest.len(), |at| begin + at + end.len())
}

/// Length of the character that `rest` begins with, or 0 for a lifetime.
fn character(rest: &str) -> usize {
    let mut inside = rest[1..].chars();
    match inside.next() {
        Some('\\') => rest[3..].find('\'').map_or(0, |at| at + 4),
        Some(c) if inside.next() == Some('\'') => c.len_utf8() + 2,
        _ => 0,
    }
}

/// The names that follow `prefix` (a path that ends in `::`) in `code`: one, or those of a group.
fn named_after(code: &str, prefix: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        if code[..at].ends_with(|c: char| is_word(c) || c == ':') {
            continue;
        }
        let rest = code[at + prefix.len()..].trim_start();
        match rest.strip_prefix('{') {
            Some(group) => names.extend(names_of_group(group)),
            None => names.extend(first_word(rest)),
        }
    }
    names
}

fn first_word(text: &str) -> Option<String> {
    let word: String = text
        .trim_start()
        .chars()
        .take_while(|&c| is_word(c))
        .collect();
    (!word.is_empty()).then_some(word)
}

/// The first names of the paths in a `{` `}` whose inside `group` begins with.
fn names_of_group(group: &str) -> Vec<String> {
    let mut depth = 0;
    let mut names: Vec<String> = first_word(group).into_iter().collect();
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.extend(first_word(&group[at + 1..])),
            _ => {}
        }
    }
    names
}

/// The names at the crate's root that a file of a floor uses. `depth` is the file's depth in the
/// module tree: 1 for a floor's `mod.rs`, so that `super::` from there leads to the root.
fn used_from_root(code: &str, depth: usize) -> BTreeSet<String> {
    let mut names = named_after(code, "crate::");
    names.extend(named_after(code, "graviton_engine::"));
    // A module within the file is one deeper, and one within that two.
    for up in depth..depth + 3 {
        let above = named_after(code, &"super::".repeat(up));
        names.extend(above.into_iter().filter(|name| is_floor(name)));
    }
    names
}

fn is_floor(name: &str) -> bool {
    FLOORS.iter().any(|(floor, _)| *floor == name)
}

/// What is wrong with a file of `floor`.
fn upward(floor: &str, depth: usize, is_test: bool, source: &str) -> Vec<String> {
    let Some((_, below)) = FLOORS.iter().find(|(name, _)| *name == floor) else {
        return vec![format!("{floor} is no floor that this test knows")];
    };
    let code = code(source);
    // By custom the tests of a file are its end.
    let (code, tests) = code.split_once("#[cfg(test)]\nmod ").unwrap_or((&code, ""));
    let (code, tests) = if is_test { ("", code) } else { (code, tests) };
    let allowed = |name: &str| name == floor || below.contains(&name) || MACROS.contains(&name);
    let used = used_from_root(code, depth)
        .into_iter()
        .filter(|name| !allowed(name));
    let used_by_tests = used_from_root(tests, depth)
        .into_iter()
        .filter(|name| !allowed(name) && !FOR_TESTS.contains(&name.as_str()));
    used.chain(used_by_tests)
        .map(|name| format!("{floor} must not know {name}"))
        .collect()
}

#[test]
fn imports_point_down() {
    let engine = root().join("engine/src");
    let mut files = Vec::new();
    sources(&engine, &mut files);
    let mut found = Vec::new();
    let mut imports = 0;
    for file in files {
        let place = file.strip_prefix(&engine).expect("below the engine");
        let mut parts: Vec<String> = place
            .iter()
            .map(|part| part.to_string_lossy().into_owned())
            .collect();
        let name = parts.pop().expect("a file has a name");
        let Some(floor) = parts.first().cloned() else {
            assert_eq!(name, "lib.rs", "a file that is on no floor");
            continue;
        };
        let depth = parts.len() + usize::from(name != "mod.rs");
        let source = std::fs::read_to_string(&file).expect("a source");
        imports += used_from_root(&code(&source), depth).len();
        let complaints = upward(&floor, depth, name == "tests.rs", &source);
        found.extend(
            complaints
                .into_iter()
                .map(|what| format!("{}: {what}", place.display())),
        );
    }
    assert!(
        imports > 50,
        "only {imports} imports were seen: this test is blind"
    );
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn unsafe_stays_in_io() {
    let root = root();
    let mut files = Vec::new();
    for name in CRATES {
        sources(&root.join(name), &mut files);
    }
    let allowed = |file: &Path| {
        UNSAFE_FOLDERS
            .iter()
            .any(|folder| file.starts_with(root.join(folder)))
    };
    let uses = |file: &Path| {
        code(&std::fs::read_to_string(file).expect("a source"))
            .split(|c| !is_word(c))
            .any(|word| word == "unsafe")
    };
    let (inside, outside): (Vec<PathBuf>, _) = files
        .into_iter()
        .filter(|file| uses(file))
        .partition(|file| allowed(file));
    assert!(
        !inside.is_empty(),
        "no unsafe was seen at all: this test is blind"
    );
    assert!(
        outside.is_empty(),
        "unsafe outside of {UNSAFE_FOLDERS:?}: {outside:?}"
    );
}

#[test]
fn upward_imports_are_seen() {
    let complaints = |source: &str| upward("log", 2, false, source).len();
    assert_eq!(complaints("use crate::io::Disk;\nuse crate::port::Op;"), 0);
    assert_eq!(
        complaints("use super::sector::Sector;\nuse super::super::port::Op;"),
        0
    );
    assert_eq!(complaints("use crate::store::Store;"), 1);
    assert_eq!(
        complaints("use crate::{port::{Op, blob}, io, store::{Store, runtime}, memory};"),
        2
    );
    assert_eq!(complaints("fn f() -> crate::store::Store { todo }"), 1);
    assert_eq!(complaints("use super::super::store::Store;"), 1);
    assert_eq!(
        complaints("#[cfg(test)]\nmod tests {\n use super::super::super::store::Store;\n}"),
        1
    );
    assert_eq!(
        complaints("#[cfg(test)]\nmod tests {\n use crate::testing::Subject;\n}"),
        0
    );
    assert_eq!(complaints("use crate::testing::Subject;"), 1);
    assert_eq!(complaints("use crate::Store;"), 1);
    assert_eq!(
        complaints(
            "// use crate::store::Store;\n/* crate::store */ const A: &str = \"crate::store\";"
        ),
        0
    );
    assert_eq!(
        complaints(
            "pub(in crate::log) fn f<'a>(a: &'a str) -> char { '\"' }\nuse crate::store::Store; // \""
        ),
        1
    );
    assert_eq!(upward("attic", 2, false, "").len(), 1);
}

#[test]
fn only_code_is_read() {
    let seen = code("a /* b /* c */ d */ e \"f\\\"g\" h r#\"i\"j\"# k 'l' '\\'' m<'n> o // p\nq");
    let words: Vec<&str> = seen.split_whitespace().collect();
    assert_eq!(words, ["a", "e", "h", "k", "m<'n>", "o", "q"]);
}

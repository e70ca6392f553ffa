//! The list of mutations stays true: what each replaces is in the sources, once, and the tests it
//! names exist. Whether they fail is for `cargo run -p graviton-tests --bin mutations`.

use std::collections::BTreeSet;
use std::path::Path;

use graviton_tests::mutations::{all, workspace};

#[test]
fn every_mutation_can_be_planted() {
    let mut names = BTreeSet::new();
    for mutation in all() {
        assert!(names.insert(mutation.name.clone()), "two {mutation:?}");
        let path = workspace().join(&mutation.file);
        let source = std::fs::read_to_string(&path);
        let source = source.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let planted = mutation
            .plant(&source)
            .unwrap_or_else(|why| panic!("{why}"));
        assert_ne!(planted, source, "{} changes nothing", mutation.name);
        assert!(!mutation.breaks.is_empty() && !mutation.tests.is_empty());
    }
    assert!(names.len() >= 20, "only {} mutations", names.len());
}

#[test]
fn the_tests_that_are_to_fail_exist() {
    for mutation in all() {
        for line in &mutation.tests {
            let words: Vec<&str> = line.split_whitespace().collect();
            let ["-p", package, rest @ ..] = words.as_slice() else {
                panic!("{}: {line}", mutation.name);
            };
            let folder = match *package {
                "graviton-engine" => "engine",
                "graviton-format" => "format-spec",
                "graviton-tests" => "tests",
                "graviton-tools" => "tools",
                other => panic!("{}: package {other}", mutation.name),
            };
            let rest = match rest {
                ["--features", _, rest @ ..] => rest,
                rest => rest,
            };
            let (target, filter) = match rest {
                ["--lib", filter @ ..] => ("src".to_owned(), filter),
                ["--test", target, filter @ ..] => (format!("tests/{target}.rs"), filter),
                _ => panic!("{}: {line}", mutation.name),
            };
            let path = workspace().join(folder).join(&target);
            let path = match path.exists() {
                true => path,
                false => path.with_extension(""),
            };
            assert!(path.exists(), "{}: no {}", mutation.name, path.display());
            if let ([filter], false) = (filter, target == "src") {
                assert!(
                    source_of(&path).contains(&format!("fn {filter}")),
                    "{}: no test {filter} in {}",
                    mutation.name,
                    path.display()
                );
            }
        }
    }
}

/// The source of a test program: a file, or all of a folder.
fn source_of(path: &Path) -> String {
    let read = |path: &Path| std::fs::read_to_string(path).expect("it can be read");
    if path.is_file() {
        return read(path);
    }
    let files = std::fs::read_dir(path).expect("it is a folder");
    let files = files.map(|file| file.expect("it is listed").path());
    files.map(|file| read(&file)).collect()
}

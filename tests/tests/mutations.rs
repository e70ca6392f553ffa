//! The list of mutations stays true: what each replaces is in the sources, once, and the tests it
//! names exist. Whether they fail is for `cargo run -p graviton-tests --bin mutations`.

use std::collections::BTreeSet;

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
            let (target, filter) = match rest {
                ["--lib", filter @ ..] => ("src".to_owned(), filter),
                ["--test", target, filter @ ..] => (format!("tests/{target}.rs"), filter),
                _ => panic!("{}: {line}", mutation.name),
            };
            let mut path = workspace().join(folder).join(&target);
            if !path.exists() {
                path = path.with_extension("").join("main.rs");
            }
            assert!(path.exists(), "{}: no {}", mutation.name, path.display());
            if let ([filter], true) = (filter, path.is_file()) {
                let source = std::fs::read_to_string(&path).expect("it can be read");
                assert!(
                    source.contains(&format!("fn {filter}")),
                    "{}: no test {filter} in {}",
                    mutation.name,
                    path.display()
                );
            }
        }
    }
}

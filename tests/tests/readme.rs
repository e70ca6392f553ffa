//! The tests that `tests/README.md` names exist.

use std::path::{Path, PathBuf};

/// The source of a test target.
fn source(target: &str) -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let places: Vec<PathBuf> = ["tests/tests", "tools/tests"]
        .iter()
        .flat_map(|folder| {
            let folder = root.join(folder);
            [
                folder.join(format!("{target}.rs")),
                folder.join(target).join("main.rs"),
            ]
        })
        .collect();
    let texts: Vec<String> = places
        .iter()
        .filter_map(|place| std::fs::read_to_string(place).ok())
        .collect();
    (!texts.is_empty()).then(|| texts.concat())
}

#[test]
fn every_test_it_names_exists() {
    let readme = include_str!("../README.md");
    let quoted = readme.split('`').skip(1).step_by(2);
    let named: Vec<(&str, &str)> = quoted
        .filter_map(|text| text.split_once("::"))
        .filter(|(target, _)| !target.starts_with("graviton"))
        .collect();
    assert!(named.len() > 30, "the page names tests as `target::test`");
    for (target, test) in named {
        let source = source(target).unwrap_or_else(|| panic!("there is no test target {target}"));
        assert!(
            source.contains(&format!("fn {test}(")),
            "tests/README.md names {target}::{test}, which does not exist"
        );
    }
}

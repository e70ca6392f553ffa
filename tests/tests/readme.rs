//! The tests and files that `tests/README.md` names exist.

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
fn every_test_and_file_it_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut named = 0;
    for line in include_str!("../README.md").lines() {
        let is_row = line.starts_with("| ") && line[2..].starts_with(|c: char| c.is_ascii_digit());
        for text in line.split('`').skip(1).step_by(2) {
            if let Some((target, test)) = text.split_once("::") {
                if target.starts_with("graviton") {
                    continue;
                }
                named += 1;
                let source = source(target).unwrap_or_else(|| panic!("no target is {target}"));
                assert!(
                    source.contains(&format!("fn {test}(")),
                    "tests/README.md names {text}, which does not exist"
                );
            } else if text.contains('/') && !text.contains(' ') {
                assert!(
                    root.join(text).exists(),
                    "tests/README.md names {text}: no such file"
                );
            } else if is_row {
                assert!(
                    source(text).is_some(),
                    "tests/README.md names {text}: no such target"
                );
            }
        }
    }
    assert!(named > 30, "the page names tests as `target::test`");
}

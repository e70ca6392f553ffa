//! The list of mutations: lines of the engine that are broken on purpose, one at a time, to see
//! that a test notices. The list is `tests/mutations/list.toml`; `cargo run -p graviton-tests --bin
//! mutations` plants them in a copy of the sources and runs the tests that must fail.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// One line, or a few, broken on purpose.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mutation {
    /// What it is called.
    pub name: String,
    /// What it breaks, in words.
    pub breaks: String,
    /// The file it is planted in.
    pub file: PathBuf,
    /// What is there: once, and nowhere else in the file.
    pub find: String,
    /// What is put in its place.
    pub put: String,
    /// Arguments of `cargo test` for tests that must fail then; one line for each run. One that
    /// fails is enough.
    pub tests: Vec<String>,
}

#[derive(Deserialize)]
struct List {
    mutation: Vec<Mutation>,
}

/// The workspace's root.
#[must_use]
pub fn workspace() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().map(Path::to_owned).unwrap_or_default()
}

/// All mutations of the list.
///
/// # Panics
/// If the list can't be read.
#[must_use]
pub fn all() -> Vec<Mutation> {
    let path = workspace().join("tests/mutations/list.toml");
    let text = std::fs::read_to_string(path).expect("the list can be read");
    let list: List = toml::from_str(&text).expect("the list is well formed");
    list.mutation
}

impl Mutation {
    /// `source` with the mutation in it.
    ///
    /// # Errors
    /// If what is to be replaced is not there exactly once.
    pub fn plant(&self, source: &str) -> Result<String, String> {
        match source.matches(&self.find).count() {
            1 => Ok(source.replacen(&self.find, &self.put, 1)),
            count => Err(format!(
                "{}: its text is in {} {count} times, must be once",
                self.name,
                self.file.display()
            )),
        }
    }
}

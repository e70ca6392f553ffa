//! What the fuzz targets do with their bytes. It needs neither libFuzzer nor nightly:
//! `tests/tests/corpora.rs` includes this file and runs every target over the seeds in `corpus/`.
#![forbid(unsafe_code)]

pub mod catalog;
pub mod decoders;
pub mod dump;
pub mod operations;
pub mod text;

use decoders::{DECODERS, Target};

/// Every other target with its name, which is that of its corpus.
const OTHERS: &[(&str, Target)] = &[
    ("text", text::text),
    ("table", graviton_engine::store::fuzzing::table),
    ("catalog", catalog::catalog),
    ("store", graviton_tests::image::store),
    ("operations", operations::operations),
    ("command", graviton_tools::fuzzing::parsers),
    ("dump", dump::dump),
];

/// All targets.
pub fn targets() -> impl Iterator<Item = (&'static str, Target)> {
    DECODERS.iter().chain(OTHERS).copied()
}

/// Makes what a target works on, so that its first input does not take longer than others.
pub fn prepare(name: &str) {
    match name {
        "catalog" | "store" | "dump" => {
            for shape in 0..4 {
                let _ = graviton_tests::image::original(shape & 1 != 0, shape & 2 != 0);
            }
        }
        "operations" => operations::prepare(),
        _ => {}
    }
}

/// Runs the target of this name.
///
/// # Panics
/// If there is none, or if something does not hold.
pub fn run(name: &str, data: &[u8]) {
    let target = targets().find(|(other, _)| *other == name);
    let (_, target) = target.expect("a target of this name");
    target(data);
}

//! The fuzz targets on stable: over their seeds, over random bytes, and over damaged seeds.
//! `UPDATE_CORPUS=1` writes the seeds anew from the golden vectors.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod support;
#[allow(dead_code, reason = "tests use a part")]
#[path = "../../fuzz/src/decoders.rs"]
mod targets;

use std::path::PathBuf;
use std::sync::LazyLock;

use proptest::prelude::*;
use support::sample::IDENTITY;
use support::vectors;
use targets::{DECODERS, MODE_FIX, MODE_LARGE_BLOCKS, seed};

fn folder(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(target)
}

/// The seeds of a target: vectors of its kind, each as it is and with checksums put right.
fn seeds(target: &str) -> Seeds {
    let kinds = match target {
        "frame_header" => vec!["frame".to_owned()],
        "parts" => ["chunk", "checkpoint-root", "meta"]
            .map(str::to_owned)
            .to_vec(),
        other => vec![other.replace('_', "-")],
    };
    vectors::names()
        .iter()
        .map(|name| vectors::load(name))
        // Of a long one each damage takes as long; it lies in its corpus as it is.
        .filter(|vector| kinds.contains(&vector.kind) && vector.name != "tracker-bits")
        .flat_map(|vector| {
            let seed = |mode| seed(mode, vector.address, &vector.bytes);
            [
                (vector.name.clone(), seed(0)),
                (format!("{}-fixed", vector.name), seed(MODE_FIX)),
            ]
        })
        .collect()
}

/// File names and contents.
type Seeds = Vec<(String, Vec<u8>)>;

static SEEDS: LazyLock<Vec<Seeds>> =
    LazyLock::new(|| DECODERS.iter().map(|(name, _)| seeds(name)).collect());

#[test]
fn the_corpora_hold_the_vectors_and_pass() {
    assert_eq!(IDENTITY, targets::IDENTITY);
    for (name, target) in DECODERS {
        let seeds = seeds(name);
        assert!(seeds.len() >= 4, "{name}");
        for (file, seed) in seeds {
            let path = folder(name).join(file);
            if std::env::var_os("UPDATE_CORPUS").is_some() {
                std::fs::create_dir_all(folder(name)).unwrap();
                std::fs::write(&path, &seed).unwrap();
            }
            let found = std::fs::read(&path).unwrap_or_default();
            assert!(found == seed, "{} is not its vector", path.display());
        }
        // More may lie there: what a fuzzer found stays as a regression test.
        for entry in std::fs::read_dir(folder(name)).unwrap() {
            target(&std::fs::read(entry.unwrap().path()).unwrap());
        }
    }
}

#[test]
fn every_bit_of_every_seed_may_flip() {
    for (name, target) in DECODERS {
        for (_, seed) in seeds(name) {
            for bit in 0..seed.len().min(1024) * 8 {
                let mut flipped = seed.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                target(&flipped);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes_never_panic(mode in 0..4_u8, address in 0..0x12_0000_u64, bytes: Vec<u8>) {
        for (_, target) in DECODERS {
            target(&seed(mode & (MODE_FIX | MODE_LARGE_BLOCKS), address, &bytes));
            target(&bytes);
        }
    }

    #[test]
    fn overwritten_seeds_never_panic(
        choice: prop::sample::Index,
        place: prop::sample::Index,
        noise in prop::collection::vec(any::<u8>(), 1..64),
    ) {
        for ((_, target), seeds) in DECODERS.iter().zip(SEEDS.iter()) {
            let mut seed = choice.get(seeds).1.clone();
            let at = place.index(seed.len());
            for (target, noise) in seed[at..].iter_mut().zip(&noise) {
                *target = *noise;
            }
            target(&seed);
        }
    }
}

//! The fuzz target `store` on stable: over single edits of every kind, and over random inputs.
//! `GRAVITON_SEEDS` asks for more of them.

use graviton_tests::image::{self, ACCIDENTS, KINDS};
use graviton_tests::number_from;

/// Splitmix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn seeds() -> u64 {
    number_from("GRAVITON_SEEDS").unwrap_or(24)
}

/// Runs inputs of `edits` edits each, all of the kinds `kinds`.
fn run(edits: usize, kinds: std::ops::Range<u8>) {
    for seed in 0..seeds() {
        let mut state = seed;
        let mut input = vec![next(&mut state).to_le_bytes()[0] % 32];
        for _ in 0..edits {
            let mut edit = next(&mut state).to_le_bytes();
            edit[0] = kinds.start + edit[0] % (kinds.end - kinds.start);
            input.extend_from_slice(&edit);
        }
        let run = std::panic::catch_unwind(|| image::store(&input));
        assert!(run.is_ok(), "seed {seed}, input {input:02x?}");
    }
}

#[test]
fn an_untouched_store_is_whole() {
    for mode in 0..32 {
        image::store(&[mode]);
    }
}

#[test]
fn one_accident() {
    run(1, 0..ACCIDENTS);
}

#[test]
fn several_accidents() {
    run(6, 0..ACCIDENTS);
}

#[test]
fn one_forgery() {
    run(1, ACCIDENTS..KINDS);
}

#[test]
fn forgeries_and_accidents() {
    run(8, 0..KINDS);
}

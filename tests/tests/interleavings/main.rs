//! Concurrency: the engine over simulated disks, its threads run by a scheduler that a seed
//! decides (`shuttle`): every touch of a lock, an atomic or a parked thread is a point where
//! another thread may go on.
//!
//! ```console
//! cargo test -p graviton-tests --features shuttle --test interleavings
//! ```
//!
//! Each model runs schedules of two kinds: at random, and with few changes of priority (PCT, which
//! finds what needs a thread to be held up for long). `GRAVITON_SEEDS` asks for so many of each,
//! `GRAVITON_SEED` for others, `GRAVITON_SECONDS` ends each kind after that time (its scheduler then
//! prints the seed it ended at, and calls it a failing one; it is not).
//!
//! A schedule that fails is printed (`failing schedule: "…"`, some lines of digits; the first is
//! the one that counts). To replay it, run the one test with those lines, or with the name of a file
//! that holds them, in `GRAVITON_SCHEDULE`:
//!
//! ```console
//! GRAVITON_SCHEDULE=/tmp/schedule cargo test -p graviton-tests --features shuttle --test interleavings \
//!     no_update_by_compare_and_set
//! ```

#[cfg(not(feature = "shuttle"))]
#[test]
fn the_models_need_their_scheduler() {
    eprintln!(
        "skipped: run cargo test -p graviton-tests --features shuttle --test interleavings; the \
         scheduler takes the place of the system's threads in the whole engine"
    );
}

#[cfg(feature = "shuttle")]
mod support;

#[cfg(feature = "shuttle")]
mod models;

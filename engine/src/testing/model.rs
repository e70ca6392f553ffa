//! Random histories against the model: run, and made short when they fail.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Subject;
use super::history::{Mix, Step, Steps};
use super::minimise::minimise;
use super::pair::{Difference, Pair};

/// How many shorter histories are tried when one fails.
const TRIES: usize = 500;

/// Runs a random history of `steps` operations on a fresh store of the subject and on a
/// [`MemoryStore`](crate::memory::MemoryStore), and compares every outcome: values, with version
/// numbers translated, and kinds of errors. The same seed is the same history.
///
/// The operations keep to the edges: few keys, sizes around the borders of blocks and chunks,
/// preconditions right and wrong, declared sizes and digests, batches, copies, renames, ranges,
/// lists page by page, streams and readers that stay open meanwhile, operations that are not
/// awaited, reopens.
///
/// # Panics
/// If there is a difference, with the seed and the shortest part of the history found that still
/// has one; [`replay_against_model`] runs that part again.
pub fn check_against_model(subject: &mut dyn Subject, seed: u64, steps: usize) {
    let all: Vec<usize> = (0..steps).collect();
    replay_against_model(subject, seed, &all);
}

/// Runs the steps with these numbers of the random history of `seed`: what
/// [`check_against_model`] has found to fail.
///
/// # Panics
/// As [`check_against_model`].
pub fn replay_against_model(subject: &mut dyn Subject, seed: u64, kept: &[usize]) {
    let count = kept.last().map_or(0, |last| last + 1);
    let history: Vec<Step> = Steps::new(seed, Mix::default()).take(count).collect();
    let Some(failure) = difference(subject, &history, kept) else {
        return;
    };
    let (kept, failure) = minimise(kept, failure, TRIES, |kept| {
        difference(subject, &history, kept)
    });
    let lines: Vec<String> = kept
        .iter()
        .map(|&number| format!("{number:5} {:?}", history[number]))
        .collect();
    panic!(
        "seed {seed}, steps {kept:?}:\n{}\n=> {failure}",
        lines.join("\n")
    );
}

fn difference(subject: &mut dyn Subject, history: &[Step], kept: &[usize]) -> Option<Difference> {
    let steps = kept.iter().map(|&number| &history[number]);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut pair = Pair::new(subject);
        for step in steps {
            pair.run(step).map_err(|what| format!("{step:?}: {what}"))?;
        }
        for last in Step::last() {
            pair.run(&last)
                .map_err(|what| format!("at the end, {last:?}: {what}"))?;
        }
        Ok(())
    }));
    match outcome {
        Ok(outcome) => outcome.err(),
        Err(panic) => Some(panic_message(&*panic)),
    }
}

/// What a panic said.
pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!(
        "panicked: {}",
        text.unwrap_or("with something else than a text")
    )
}

//! What was done, and when it was begun and acknowledged: from that follows what must be there
//! after a power loss at any moment.

use std::collections::{BTreeMap, BTreeSet};

use graviton_engine::port::BinaryKey;
use graviton_engine::testing::{Contents, Difference, Effect, Held, Operation};

/// Something that was done.
#[derive(Debug, Clone)]
pub struct Done {
    /// In words.
    pub what: String,
    /// What it changed.
    pub effect: Effect,
    /// The sectors that it wrote to.
    pub sectors: Vec<usize>,
    /// Events the disks had seen when it began.
    pub started: usize,
}

impl Done {
    /// Whether it is known at `position` that everything that was over before it is durable.
    fn is_barrier(&self, position: usize) -> bool {
        let is_durable = |one: &Operation| one.is_durable(position);
        self.is_flush(position) || self.effect.operations.iter().any(is_durable)
    }

    /// The same, whatever log it wrote to.
    fn is_flush(&self, position: usize) -> bool {
        let before = self.effect.flushed_before;
        self.has_flushed_itself(position) || before.is_some_and(|at| at <= position)
    }

    /// Whether it is known at `position` that all of it is durable.
    fn has_flushed_itself(&self, position: usize) -> bool {
        self.effect.flushed.is_some_and(|at| at <= position)
    }
}

/// What there was when the machine came up, and what was done since.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// What there was, all of it durable.
    pub base: Contents,
    /// What was done.
    pub done: Vec<Done>,
}

impl Record {
    /// Begins with what is there and durable.
    #[must_use]
    pub fn new(base: Contents) -> Self {
        Self {
            base,
            done: Vec::new(),
        }
    }

    /// What there is after all that was done.
    #[must_use]
    pub fn latest(&self) -> Contents {
        let mut state = self.base.clone();
        for done in &self.done {
            apply_all(&done.effect.operations, &mut state);
        }
        state
    }

    /// Checks what one log has left after a power loss at `position`: the state after something
    /// that was done, not before what was acknowledged as durable; and of what was done next, any
    /// whole operations.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check_prefix(&self, found: &Contents, position: usize) -> Result<(), Difference> {
        let barrier = self.done.iter().rposition(|done| done.is_barrier(position));
        let first = barrier.unwrap_or(0);
        let mut state = self.base.clone();
        for done in &self.done[..first] {
            apply_all(&done.effect.operations, &mut state);
        }
        let required = state.clone();
        for (number, done) in self.done.iter().enumerate().skip(first) {
            if done.started > position {
                break;
            }
            let is_barrier = Some(number) == barrier;
            let must = |operation: &Operation| {
                is_barrier && (operation.is_durable(position) || done.has_flushed_itself(position))
            };
            if is_partly(&done.effect.operations, must, &state, found) {
                return Ok(());
            }
            apply_all(&done.effect.operations, &mut state);
        }
        if *found == state {
            return Ok(());
        }
        Err(format!(
            "what was found is no state from `{}` on; against the one before that: {}",
            self.done
                .get(first)
                .map_or("the beginning", |done| &done.what),
            difference(&required, found)
        ))
    }

    /// Checks key by key: the state after some operation on it, not before the last that is known
    /// durable; and operations on several keys as wholes. Holds over several logs, and for
    /// threads that have keys of their own.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check_keys(&self, found: &Contents, position: usize) -> Result<(), Difference> {
        let flushed = self
            .done
            .iter()
            .filter(|done| done.is_flush(position))
            .map(|done| done.started)
            .max()
            .unwrap_or(0);
        let operations: Vec<(usize, &Done, &Operation)> = self
            .done
            .iter()
            .flat_map(|done| done.effect.operations.iter().map(move |one| (done, one)))
            .zip(1..)
            .map(|((done, one), number)| (number, done, one))
            .collect();
        let mut candidates: BTreeMap<&BinaryKey, Vec<(usize, Option<&Held>)>> = BTreeMap::new();
        for key in self.base.keys().chain(found.keys()) {
            candidates.insert(key, vec![(0, self.base.get(key))]);
        }
        for (number, done, operation) in &operations {
            if done.started > position {
                continue;
            }
            let is_durable = operation.acknowledged
                && (operation.is_durable(position)
                    || done.has_flushed_itself(position)
                    || operation.answered <= flushed);
            for change in &operation.changes {
                let states = candidates
                    .entry(&change.key)
                    .or_insert_with(|| vec![(0, None)]);
                if is_durable {
                    states.clear();
                }
                // What failed may still come about, later than what was done after it.
                let order = match operation.acknowledged {
                    true => *number,
                    false => usize::MAX,
                };
                states.push((order, change.blob.as_ref()));
            }
        }
        let mut matching: BTreeMap<&BinaryKey, Vec<usize>> = BTreeMap::new();
        for (key, states) in &candidates {
            let numbers: Vec<usize> = states
                .iter()
                .filter(|(_, blob)| *blob == found.get(*key))
                .map(|(number, _)| *number)
                .collect();
            if numbers.is_empty() {
                let possible: Vec<_> = states
                    .iter()
                    .map(|(number, blob)| (*number, describe(*blob)))
                    .collect();
                let found = describe(found.get(*key));
                return Err(format!("{key}: found {found}, possible are {possible:?}"));
            }
            matching.insert(*key, numbers);
        }
        let together = operations.iter().filter(|(.., one)| one.changes.len() > 1);
        for (number, done, operation) in together {
            let all = |is: &dyn Fn(usize) -> bool| {
                operation.changes.iter().any(|change| {
                    let numbers = matching.get(&change.key);
                    numbers.is_some_and(|numbers| numbers.iter().all(|other| is(*other)))
                })
            };
            if all(&|other| other < *number) && all(&|other| other == *number) {
                let states: Vec<String> = operation
                    .changes
                    .iter()
                    .map(|change| {
                        format!(
                            "{} became {}, is {}",
                            change.key,
                            describe(change.blob.as_ref()),
                            describe(found.get(&change.key)),
                        )
                    })
                    .collect();
                let states = states.join("; ");
                return Err(format!("half of `{}` is there: {states}", done.what));
            }
        }
        Ok(())
    }
}

fn apply_all(operations: &[Operation], state: &mut Contents) {
    operations
        .iter()
        .filter(|operation| operation.acknowledged)
        .for_each(|operation| apply(operation, state));
}

fn apply(operation: &Operation, state: &mut Contents) {
    for change in &operation.changes {
        match &change.blob {
            Some(blob) => state.insert(change.key.clone(), blob.clone()),
            None => state.remove(&change.key),
        };
    }
}

/// Whether `found` is `state` with some of the operations, among them those that must be there.
fn is_partly(
    operations: &[Operation],
    must: impl Fn(&Operation) -> bool,
    state: &Contents,
    found: &Contents,
) -> bool {
    let mut state = state.clone();
    for operation in operations {
        let is_there = operation
            .changes
            .iter()
            .all(|change| found.get(&change.key) == change.blob.as_ref());
        if is_there || must(operation) {
            apply(operation, &mut state);
        }
    }
    state == *found
}

fn describe(blob: Option<&Held>) -> String {
    let Some(Held {
        bytes,
        attributes,
        sources,
        missing,
    }) = blob
    else {
        return "nothing".to_owned();
    };
    let hash = bytes.iter().fold(0_u32, |hash, byte| {
        hash.wrapping_mul(31).wrapping_add(u32::from(*byte))
    });
    let (size, attributes) = (bytes.len(), attributes.len());
    let holes = missing.len();
    format!(
        "{size} bytes ({hash:08x}), {holes} of them holes, {attributes} attributes of {sources:?}"
    )
}

/// The first few keys in which two contents differ.
#[must_use]
pub fn difference(expected: &Contents, found: &Contents) -> String {
    let keys: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    let lines: Vec<String> = keys
        .into_iter()
        .filter(|key| expected.get(*key) != found.get(*key))
        .map(|key| {
            let (expected, found) = (describe(expected.get(key)), describe(found.get(key)));
            format!("{key}: expected {expected}, found {found}")
        })
        .take(6)
        .collect();
    lines.join("; ")
}

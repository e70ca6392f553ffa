//! Random operations on a store, with a record of what each would leave behind and of when it was
//! begun and acknowledged: from that follows what must be there after a crash at any moment.

use std::collections::BTreeMap;

use bytes::Bytes;
use graviton_engine::port::{
    Batch, BinaryKey, BlobStore, CopyOptions, DeleteOptions, Durability, ErrorKind, GetOptions,
    ListRequest, PutOptions, StorageError,
};
use graviton_engine::store::Store;

use crate::random::{Random, payload};

/// What a store holds.
pub type Contents = BTreeMap<BinaryKey, Bytes>;

/// One key's new state.
#[derive(Debug, Clone)]
pub struct Change {
    /// The key.
    pub key: BinaryKey,
    /// Its blob from now on; `None` if it has none.
    pub blob: Option<Bytes>,
}

/// Operations that were under way together, each of them all or nothing.
#[derive(Debug, Clone)]
pub struct Step {
    /// In words.
    pub what: String,
    /// What each operation changes.
    pub operations: Vec<Vec<Change>>,
    /// Events recorded when it began.
    pub started: usize,
    /// Events recorded when all of it was acknowledged.
    pub acknowledged: Option<usize>,
    /// Whether the acknowledgement says that it, and all before it, is durable.
    pub durable: bool,
}

impl Step {
    fn apply(&self, contents: &mut Contents) {
        self.operations
            .iter()
            .for_each(|operation| apply(operation, contents));
    }
}

/// Does to `contents` what an operation does to a store.
pub fn apply(operation: &[Change], contents: &mut Contents) {
    for change in operation {
        match &change.blob {
            Some(blob) => contents.insert(change.key.clone(), blob.clone()),
            None => contents.remove(&change.key),
        };
    }
}

/// Everything a store holds, read back.
///
/// # Errors
/// What the store reports.
pub fn read_all(store: &Store) -> Result<Contents, StorageError> {
    let mut contents = Contents::new();
    let mut token = None;
    loop {
        let page = store
            .list(ListRequest {
                token,
                max: 1000,
                ..ListRequest::default()
            })
            .wait()?;
        for entry in &page.blobs {
            let blob = store.get(&entry.key, GetOptions::default()).wait()?;
            contents.insert(entry.key.clone(), blob.bytes);
        }
        token = page.next;
        if token.is_none() {
            return Ok(contents);
        }
    }
}

/// What there was before a recording, and what was done since.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// What there was.
    pub base: Contents,
    /// What was done.
    pub steps: Vec<Step>,
}

impl History {
    /// Checks what one log has left after a crash at `position`: the state after some step, not
    /// before the last that was acknowledged as durable, and of the next step any whole
    /// operations.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check_prefix(&self, found: &Contents, position: usize) -> Result<(), String> {
        let durable = self.steps.iter().rposition(|step| {
            step.durable
                && step
                    .acknowledged
                    .is_some_and(|acknowledged| acknowledged <= position)
        });
        let mut state = self.base.clone();
        let required = durable.map_or(0, |last| last + 1);
        for step in &self.steps[..required] {
            step.apply(&mut state);
        }
        for step in &self.steps[required..] {
            if *found == state || step.started > position {
                break;
            }
            if step.operations.len() > 1 && is_partly(step, &state, found) {
                return Ok(());
            }
            step.apply(&mut state);
        }
        if *found == state {
            return Ok(());
        }
        let mut expected = self.base.clone();
        for step in &self.steps[..required] {
            step.apply(&mut expected);
        }
        Err(format!(
            "no state from step {required} on is what was found\n against the last durable one: {}",
            difference(&expected, found)
        ))
    }

    /// Checks key by key: the state after some operation on it, not before the last that is known
    /// durable; and operations on several keys as wholes. Holds over several logs, and for
    /// threads that have keys of their own.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check_keys(&self, found: &Contents, position: usize) -> Result<(), String> {
        let acknowledged = |step: &Step| step.acknowledged.is_some_and(|at| at <= position);
        let flushed = self
            .steps
            .iter()
            .filter(|step| step.durable && step.operations.is_empty() && acknowledged(step))
            .map(|step| step.started)
            .max()
            .unwrap_or(0);
        let mut candidates: BTreeMap<&BinaryKey, Vec<(usize, Option<&Bytes>)>> = BTreeMap::new();
        for key in self.base.keys().chain(found.keys()) {
            candidates.insert(key, vec![(0, self.base.get(key))]);
        }
        let operations = || {
            let of = |step: &'_ Step| step.operations.len();
            let starts = self.steps.iter().scan(1, move |next, step| {
                let first = *next;
                *next += of(step);
                Some((first, step))
            });
            starts.flat_map(|(first, step)| {
                (first..)
                    .zip(&step.operations)
                    .map(move |(number, operation)| (number, step, operation))
            })
        };
        for (number, step, operation) in operations() {
            if step.started > position {
                continue;
            }
            let is_durable = acknowledged(step)
                && (step.durable || step.acknowledged.is_some_and(|at| at <= flushed));
            for change in operation {
                let states = candidates
                    .entry(&change.key)
                    .or_insert_with(|| vec![(0, None)]);
                if is_durable {
                    states.clear();
                }
                // What failed may still come about, later than what was done after it.
                let failed = step.acknowledged.is_none();
                let order = if failed { usize::MAX } else { number };
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
                return Err(format!(
                    "{key}: found {}, possible are {:?}",
                    describe(found.get(*key)),
                    states
                        .iter()
                        .map(|(number, blob)| (*number, describe(*blob)))
                        .collect::<Vec<_>>()
                ));
            }
            matching.insert(*key, numbers);
        }
        for (number, step, operation) in operations().filter(|(.., operation)| operation.len() > 1)
        {
            let numbers = |change: &Change| matching.get(&change.key);
            let missing = operation.iter().any(|change| {
                numbers(change).is_some_and(|numbers| numbers.iter().all(|other| *other < number))
            });
            let there = operation.iter().any(|change| {
                numbers(change).is_some_and(|numbers| numbers.iter().all(|other| *other == number))
            });
            if missing && there {
                let states: Vec<String> = operation
                    .iter()
                    .map(|change| {
                        format!(
                            "{} became {}, is {} [{:?} of {number}]",
                            change.key,
                            describe(change.blob.as_ref()),
                            describe(found.get(&change.key)),
                            numbers(change),
                        )
                    })
                    .collect();
                return Err(format!(
                    "half of `{}` is there: {}",
                    step.what,
                    states.join("; ")
                ));
            }
        }
        Ok(())
    }
}

/// Whether `found` is `state` with some of the step's operations.
fn is_partly(step: &Step, state: &Contents, found: &Contents) -> bool {
    let mut state = state.clone();
    for operation in &step.operations {
        let is_there = operation
            .iter()
            .all(|change| found.get(&change.key) == change.blob.as_ref());
        if is_there {
            apply(operation, &mut state);
        }
    }
    state == *found
}

fn describe(blob: Option<&Bytes>) -> String {
    match blob {
        None => "nothing".to_owned(),
        Some(blob) if blob.len() < 8 => format!("{} bytes", blob.len()),
        Some(blob) => {
            let id = u64::from_le_bytes(blob[..8].try_into().unwrap_or_default());
            format!("{} bytes of put {id:x}", blob.len())
        }
    }
}

/// The first few keys in which two contents differ.
#[must_use]
pub fn difference(expected: &Contents, found: &Contents) -> String {
    let keys: std::collections::BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    let lines: Vec<String> = keys
        .into_iter()
        .filter(|key| expected.get(*key) != found.get(*key))
        .map(|key| {
            format!(
                "{key}: expected {}, found {}",
                describe(expected.get(key)),
                describe(found.get(key))
            )
        })
        .take(6)
        .collect();
    lines.join("; ")
}

/// How large blobs are, and how many keys there are.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    /// How many keys.
    pub keys: usize,
    /// The largest blob, in bytes.
    pub largest: usize,
    /// Whether checkpoints, compactions and steps of maintenance are asked for.
    pub maintenance: bool,
}

/// Does random operations and writes them down.
#[derive(Debug)]
pub struct Worker {
    /// Begins the names of its keys.
    pub name: String,
    /// What the store should hold of its keys.
    pub contents: Contents,
    /// What decides.
    pub random: Random,
    mix: Mix,
}

/// A plain put, as durable as this.
#[must_use]
pub fn put_options(durability: Durability) -> PutOptions {
    PutOptions {
        durability,
        ..PutOptions::default()
    }
}

impl Worker {
    /// A worker over a store that holds `contents`.
    #[must_use]
    pub fn new(name: &str, contents: Contents, random: Random, mix: Mix) -> Self {
        Self {
            name: name.to_owned(),
            contents,
            random,
            mix,
        }
    }

    /// # Panics
    /// Never.
    fn key(&mut self) -> BinaryKey {
        let number = self.random.below(self.mix.keys);
        BinaryKey::new(format!("{}/{number:03}", self.name)).expect("a short key")
    }

    fn blob(&mut self) -> Bytes {
        let size = match self.random.below(12) {
            0 => 0,
            1..=6 => self.random.size(8, self.mix.largest / 12),
            _ => self.random.size(8, self.mix.largest),
        };
        payload(self.random.number(), size)
    }

    fn durability(&mut self) -> Durability {
        if self.random.one_in(3) {
            Durability::Written
        } else {
            Durability::Durable
        }
    }

    /// Does one step. `position` tells how many events were recorded. The step is handed back with
    /// the error if it failed; then it was not acknowledged, and `contents` are as before.
    ///
    /// # Panics
    /// If the store gives an answer that is wrong.
    pub fn step(
        &mut self,
        store: &Store,
        position: impl Fn() -> usize,
    ) -> (Step, Result<(), StorageError>) {
        let started = position();
        let durability = self.durability();
        let mut step = Step {
            what: String::new(),
            operations: Vec::new(),
            started,
            acknowledged: None,
            durable: durability == Durability::Durable,
        };
        let outcome = self.perform(store, durability, &mut step);
        if outcome.is_ok() {
            step.acknowledged = Some(position());
            step.apply(&mut self.contents);
        }
        (step, outcome)
    }

    fn perform(
        &mut self,
        store: &Store,
        durability: Durability,
        step: &mut Step,
    ) -> Result<(), StorageError> {
        match self
            .random
            .below(if self.mix.maintenance { 30 } else { 25 })
        {
            0..=7 => self.put(store, durability, step),
            8..=10 => self.put_streamed(store, durability, step),
            11..=13 => self.delete(store, durability, step),
            14..=16 => self.batch(store, durability, step),
            17..=19 => self.copy_or_rename(store, durability, step),
            20..=22 => self.burst(store, durability, step),
            23 => self.abandon(store, step),
            24 => {
                "flush".clone_into(&mut step.what);
                step.durable = true;
                store.flush().wait()
            }
            number => {
                step.durable = false;
                maintain(store, number, &mut step.what)
            }
        }
    }

    fn put(
        &mut self,
        store: &Store,
        durability: Durability,
        step: &mut Step,
    ) -> Result<(), StorageError> {
        let (key, blob) = (self.key(), self.blob());
        step.what = format!("put {key} {} {durability:?}", blob.len());
        step.operations = vec![vec![Change {
            key: key.clone(),
            blob: Some(blob.clone()),
        }]];
        store
            .put(&key, blob, put_options(durability))
            .wait()
            .map(|_| ())
    }

    fn put_streamed(
        &mut self,
        store: &Store,
        durability: Durability,
        step: &mut Step,
    ) -> Result<(), StorageError> {
        let (key, blob) = (self.key(), self.blob());
        step.what = format!("stream {key} {} {durability:?}", blob.len());
        step.operations = vec![vec![Change {
            key: key.clone(),
            blob: Some(blob.clone()),
        }]];
        let mut writer = store.put_stream(&key, put_options(durability))?;
        let piece = 1 + self.random.below(blob.len().max(1));
        for start in (0..blob.len()).step_by(piece) {
            writer
                .write(blob.slice(start..blob.len().min(start + piece)))
                .wait()?;
        }
        writer.finish().wait().map(|_| ())
    }

    fn delete(
        &mut self,
        store: &Store,
        durability: Durability,
        step: &mut Step,
    ) -> Result<(), StorageError> {
        let key = self.key();
        step.what = format!("delete {key} {durability:?}");
        step.operations = vec![vec![Change {
            key: key.clone(),
            blob: None,
        }]];
        let options = DeleteOptions {
            durability,
            ..DeleteOptions::default()
        };
        let outcome = store.delete(&key, options).wait()?;
        assert_eq!(outcome.existed, self.contents.contains_key(&key), "{key}");
        Ok(())
    }

    fn batch(
        &mut self,
        store: &Store,
        durability: Durability,
        step: &mut Step,
    ) -> Result<(), StorageError> {
        let mut batch = Batch::new();
        batch.durability = durability;
        let mut changes: BTreeMap<BinaryKey, Option<Bytes>> = BTreeMap::new();
        for _ in 0..2 + self.random.below(3) {
            let key = self.key();
            if self.random.one_in(3) {
                batch.delete(key.clone());
                changes.insert(key, None);
            } else {
                let blob = self.blob();
                batch.put(key.clone(), blob.clone());
                changes.insert(key, Some(blob));
            }
        }
        step.what = format!("batch of {} {durability:?}", batch.items.len());
        let change = |(key, blob)| Change { key, blob };
        step.operations = vec![changes.into_iter().map(change).collect()];
        store.batch(batch).wait().map(|_| ())
    }

    fn copy_or_rename(
        &mut self,
        store: &Store,
        durability: Durability,
        step: &mut Step,
    ) -> Result<(), StorageError> {
        let (source, target) = (self.key(), self.key());
        let rename = self.random.one_in(2);
        let options = CopyOptions {
            durability,
            ..CopyOptions::default()
        };
        let what = if rename { "rename" } else { "copy" };
        step.what = format!("{what} {source} {target} {durability:?}");
        let outcome = if rename {
            store.rename(&source, &target, options).wait()
        } else {
            store.copy(&source, &target, options).wait()
        };
        let Some(blob) = self.contents.get(&source).cloned() else {
            let error = outcome.expect_err("nothing is there to copy");
            if error.kind() != ErrorKind::NotFound {
                return Err(error);
            }
            // Nothing was written, so it says nothing of what was written before.
            step.durable = false;
            return Ok(());
        };
        let mut changes = vec![Change {
            key: target.clone(),
            blob: Some(blob),
        }];
        if rename && source != target {
            changes.push(Change {
                key: source,
                blob: None,
            });
        }
        step.operations = vec![changes];
        outcome.map(|_| ())
    }

    /// Several operations at once, on different keys.
    fn burst(
        &mut self,
        store: &Store,
        durability: Durability,
        step: &mut Step,
    ) -> Result<(), StorageError> {
        let mut puts = Vec::new();
        let mut deletes = Vec::new();
        let mut keys = Vec::new();
        for _ in 0..2 + self.random.below(6) {
            let key = self.key();
            if keys.contains(&key) {
                continue;
            }
            keys.push(key.clone());
            let blob = if self.random.one_in(4) {
                None
            } else {
                Some(self.blob())
            };
            step.operations.push(vec![Change {
                key: key.clone(),
                blob: blob.clone(),
            }]);
            match blob {
                Some(blob) => puts.push(store.put(&key, blob, put_options(durability))),
                None => {
                    let options = DeleteOptions {
                        durability,
                        ..DeleteOptions::default()
                    };
                    deletes.push(store.delete(&key, options));
                }
            }
        }
        step.what = format!("burst of {} {durability:?}", keys.len());
        let puts: Vec<_> = puts.into_iter().map(|put| put.wait().map(|_| ())).collect();
        let deletes: Vec<_> = deletes
            .into_iter()
            .map(|delete| delete.wait().map(|_| ()))
            .collect();
        puts.into_iter().chain(deletes).collect()
    }

    /// A stream that is given up.
    fn abandon(&mut self, store: &Store, step: &mut Step) -> Result<(), StorageError> {
        let (key, blob) = (self.key(), self.blob());
        step.what = format!("abandoned stream {key} {}", blob.len());
        step.durable = false;
        let mut writer = store.put_stream(&key, PutOptions::default())?;
        writer.write(blob).wait()
    }
}

fn maintain(store: &Store, which: usize, what: &mut String) -> Result<(), StorageError> {
    match which {
        25 => {
            "checkpoint".clone_into(what);
            store.checkpoint().map(|_| ())
        }
        26 => {
            "compact".clone_into(what);
            store.compact().map(|_| ())
        }
        _ => {
            "maintenance".clone_into(what);
            for _ in 0..8 {
                if !store.step()? {
                    break;
                }
            }
            Ok(())
        }
    }
}

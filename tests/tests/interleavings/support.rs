//! What the models share: how they are run, a record of what every thread asked and was answered,
//! and the search for an order of it all that explains the answers.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as Plain};
use std::time::Duration;

use bytes::Bytes;
use graviton_engine::io::sim::{Image, Loss, Sim};
use graviton_engine::port::blob::BatchItemOutcome;
use graviton_engine::port::{
    Batch, BinaryKey, BlobStore, CopyOptions, DeleteOptions, Durability, ErrorKind, GetOptions,
    PutOptions, StorageError,
};
use graviton_engine::store::{CreateOptions, KIB, MIB, OpenOptions, Store};
use graviton_engine::sync::thread::{self, JoinHandle};
use graviton_engine::testing::contents_of;
use graviton_tests::number_from;
use graviton_tests::random::{Random, payload};
use shuttle::rand::RngCore;
use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
use shuttle::{Config, MaxSteps, Runner};

pub const PATH: &str = "/simulated/store";
const BLOCK: u32 = 4096;
/// Changes of priority that a schedule of the second kind may have.
const PCT_DEPTH: usize = 4;

fn runner<S: Scheduler + 'static>(scheduler: S) -> Runner<S> {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    // A schedule that takes this many steps goes round in circles.
    config.max_steps = MaxSteps::FailAfter(400_000);
    config.silence_warnings = true;
    config.max_time = number_from("GRAVITON_SECONDS").map(Duration::from_secs);
    Runner::new(scheduler, config)
}

/// Runs `model` under `schedules` schedules of either kind, or under the one that is asked for.
pub fn check(schedules: usize, model: impl Fn() + Send + Sync + 'static) {
    if let Ok(schedule) = std::env::var("GRAVITON_SCHEDULE") {
        let schedule = std::fs::read_to_string(&schedule).unwrap_or(schedule);
        runner(ReplayScheduler::new_from_encoded(schedule.trim())).run(model);
        return;
    }
    let asked = number_from("GRAVITON_SEEDS").and_then(|seeds| usize::try_from(seeds).ok());
    let schedules = asked.unwrap_or(schedules);
    let seed = number_from("GRAVITON_SEED").unwrap_or(1);
    let model = Arc::new(model);
    let again = Arc::clone(&model);
    let random = runner(RandomScheduler::new_from_seed(seed, schedules)).run(move || again());
    let pct = PctScheduler::new_from_seed(seed, PCT_DEPTH, schedules);
    let few = runner(pct).run(move || model());
    println!("seed {seed}: {random} random schedules, {few} with few changes of priority");
}

/// Runs `make` once, outside of any model.
pub fn once<T: Clone + Send + 'static>(make: impl Fn() -> T + Send + Sync + 'static) -> T {
    let made = Arc::new(Plain::new(None));
    let here = Arc::clone(&made);
    runner(RandomScheduler::new_from_seed(0, 1)).run(move || {
        let made = make();
        *here.lock().expect("no panic") = Some(made);
    });
    let made = made.lock().expect("no panic").take();
    made.expect("it was made")
}

/// Numbers that the schedule decides, so that a replay has the same.
pub fn random() -> Random {
    Random::new(shuttle::rand::thread_rng().next_u64())
}

pub fn open_options() -> OpenOptions {
    OpenOptions {
        background: false,
        checkpoint_interval: Some(64 * KIB),
        reader_patience: Duration::ZERO,
        ..OpenOptions::default()
    }
}

/// A machine with a closed store of these sectors, which keeps so many replicas, after `fill`.
pub fn image(sectors: u16, replicas: u16, fill: impl Fn(&Store) + Send + Sync + 'static) -> Image {
    once(move || {
        let sim = Sim::new(BLOCK, 1);
        let options = CreateOptions {
            sectors,
            replicas,
            sector_size: 4 * MIB,
            segment_size: Some(64 * KIB),
            block_size: Some(BLOCK),
            open: open_options(),
        };
        let store = Store::create_on(sim.backend(), PATH, options).expect("a store can be made");
        fill(&store);
        store.close().expect("it closes");
        sim.image()
    })
}

/// A machine that comes up with `image`, and its store.
pub fn open(image: &Image, options: OpenOptions) -> (Sim, Arc<Store>) {
    let sim = Sim::boot(image, BLOCK, random().number());
    let store = Store::open_on(sim.backend(), PATH, options).expect("the store opens");
    sim.record(true);
    (sim, Arc::new(store))
}

/// Whether the store file says that something may lie in too few sectors.
pub fn says_short(sim: &Sim) -> bool {
    let path = Path::new(PATH).join("graviton.toml");
    let bytes = sim
        .backend()
        .read_file(&path, 1 << 20)
        .expect("it is there");
    let text = String::from_utf8(bytes).expect("it is a text");
    text.lines().any(|line| line == "short = true")
}

pub fn key(name: &str) -> BinaryKey {
    BinaryKey::new(name).expect("a short key")
}

/// A payload that tells which it is.
pub fn tagged(tag: u64, size: usize) -> Bytes {
    payload(tag, size.max(8))
}

/// Which payload it is; it is checked to the last byte.
pub fn tag_of(bytes: &Bytes) -> u64 {
    let tag = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    assert_eq!(
        *bytes,
        payload(tag, bytes.len()),
        "the bytes of another blob"
    );
    tag
}

/// What was asked.
#[derive(Debug, Clone)]
pub enum Call {
    /// Puts and deletes of one batch, or one of either: a tag, or none.
    Change(Vec<(&'static str, Option<u64>)>),
    /// A put if the key is in this version.
    PutIf(&'static str, u64, u64),
    Copy(&'static str, &'static str),
    Rename(&'static str, &'static str),
    Get(&'static str),
    Flush,
}

/// What was answered.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Versions of puts; of deletes, whether there was anything.
    Changed(Vec<Result<u64, bool>>),
    Found(Option<(u64, u64)>),
    NotFound,
    Refused,
    Flushed,
    /// Turned away: nothing happened.
    Closed,
    /// An error after which anything may have happened, though it is not seen while the store
    /// is open.
    Failed,
    /// Nobody waited for it; it happened.
    Dropped,
}

#[derive(Debug, Clone)]
pub struct Event {
    pub call: Call,
    pub durable: bool,
    pub answer: Answer,
    /// Moments of the model: when it began, and when it ended.
    pub began: u64,
    pub ended: u64,
    /// How much the disks had done by then.
    pub position_before: usize,
    pub position_after: usize,
}

impl Event {
    fn keys(&self) -> Vec<&'static str> {
        match &self.call {
            Call::Change(items) => items.iter().map(|(key, _)| *key).collect(),
            Call::PutIf(key, ..) | Call::Get(key) => vec![key],
            Call::Copy(source, target) | Call::Rename(source, target) => vec![source, target],
            Call::Flush => Vec::new(),
        }
    }

    /// Whether it comes before `later` in every order that explains the answers.
    fn precedes(&self, later: &Self) -> bool {
        if self.ended >= later.began {
            return false;
        }
        match self.answer {
            // Those who do not wait are promised an order with later changes of the same keys only.
            Answer::Dropped => {
                let is_change = !matches!(later.call, Call::Get(_));
                let keys = later.keys();
                is_change
                    && (matches!(later.call, Call::Flush)
                        || self.keys().iter().any(|key| keys.contains(key)))
            }
            _ => true,
        }
    }
}

/// Version and payload of each key; the version is not known of what nobody waited for.
pub type State = BTreeMap<&'static str, (Option<u64>, u64)>;

/// What all threads of a model did.
#[derive(Debug, Default)]
pub struct Record {
    // Locks that are not part of the model: nothing else goes on while they are held.
    events: Plain<Vec<Event>>,
    clock: AtomicU64,
    tags: AtomicU64,
}

impl Record {
    pub fn tag(&self) -> u64 {
        self.tags.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn moment(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    pub fn events(&self) -> Vec<Event> {
        self.events.lock().expect("no panic").clone()
    }
}

/// How a thread waits for what it has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    Waits,
    Drops,
}

/// One store under a model.
#[derive(Debug, Clone)]
pub struct Subject {
    pub sim: Sim,
    pub store: Arc<Store>,
    pub record: Arc<Record>,
}

fn versions(outcomes: &[BatchItemOutcome]) -> Answer {
    let one = |outcome: &BatchItemOutcome| match outcome {
        BatchItemOutcome::Put(put) => Ok(put.version),
        BatchItemOutcome::Delete(delete) => Err(delete.existed),
        other => panic!("an outcome of nothing: {other:?}"),
    };
    Answer::Changed(outcomes.iter().map(one).collect())
}

fn failure(error: &StorageError) -> Answer {
    match error {
        StorageError::Closed => Answer::Closed,
        error => match error.kind() {
            ErrorKind::NotFound => Answer::NotFound,
            ErrorKind::Conflict => Answer::Refused,
            ErrorKind::Io | ErrorKind::Unavailable => Answer::Failed,
            kind => panic!("{kind:?}: {error}"),
        },
    }
}

impl Subject {
    pub fn new(image: &Image, options: OpenOptions) -> Self {
        let (sim, store) = open(image, options);
        Self {
            sim,
            store,
            record: Arc::default(),
        }
    }

    /// Does one thing and records it.
    pub fn call(&self, call: Call, durable: bool, size: usize, patience: Patience) -> Answer {
        let position_before = self.sim.position();
        let began = self.record.moment();
        let answer = self.ask(&call, durable, size, patience);
        let ended = self.record.moment();
        let position_after = self.sim.position();
        let event = Event {
            call,
            durable,
            answer: answer.clone(),
            began,
            ended,
            position_before,
            position_after,
        };
        self.record.events.lock().expect("no panic").push(event);
        answer
    }

    fn ask(&self, call: &Call, durable: bool, size: usize, patience: Patience) -> Answer {
        let durability = if durable {
            Durability::Durable
        } else {
            Durability::Written
        };
        macro_rules! end {
            ($op:expr, $good:expr) => {{
                let op = $op;
                if patience == Patience::Drops {
                    drop(op);
                    return Answer::Dropped;
                }
                op.wait().map_or_else(|error| failure(&error), $good)
            }};
        }
        let put_options = PutOptions {
            durability,
            ..PutOptions::default()
        };
        let copy_options = CopyOptions {
            durability,
            ..CopyOptions::default()
        };
        match call {
            Call::Change(items) if items.len() == 1 => match items[0] {
                (name, Some(tag)) => end!(
                    self.store.put(&key(name), tagged(tag, size), put_options),
                    |put| Answer::Changed(vec![Ok(put.version)])
                ),
                (name, None) => {
                    let options = DeleteOptions {
                        durability,
                        ..DeleteOptions::default()
                    };
                    end!(self.store.delete(&key(name), options), |delete| {
                        Answer::Changed(vec![Err(delete.existed)])
                    })
                }
            },
            Call::Change(items) => {
                let mut batch = Batch::new();
                batch.durability = durability;
                for (name, tag) in items {
                    match tag {
                        Some(tag) => batch.put(key(name), tagged(*tag, size)),
                        None => batch.delete(key(name)),
                    };
                }
                end!(self.store.batch(batch), |outcomes| versions(&outcomes))
            }
            Call::PutIf(name, version, tag) => {
                let options = PutOptions {
                    precondition: graviton_engine::port::Precondition::IfVersion(*version),
                    ..put_options
                };
                end!(
                    self.store.put(&key(name), tagged(*tag, size), options),
                    |put| Answer::Changed(vec![Ok(put.version)])
                )
            }
            Call::Copy(source, target) => end!(
                self.store.copy(&key(source), &key(target), copy_options),
                |put| Answer::Changed(vec![Ok(put.version)])
            ),
            Call::Rename(source, target) => end!(
                self.store.rename(&key(source), &key(target), copy_options),
                |put| Answer::Changed(vec![Ok(put.version)])
            ),
            Call::Get(name) => match self.store.get(&key(name), GetOptions::default()).wait() {
                Ok(blob) => Answer::Found(Some((blob.version, tag_of(&blob.bytes)))),
                Err(error) if error.kind() == ErrorKind::NotFound => Answer::Found(None),
                Err(error) => failure(&error),
            },
            Call::Flush => end!(self.store.flush(), |()| Answer::Flushed),
        }
    }

    pub fn spawn(&self, run: impl FnOnce(&Self) + Send + 'static) -> JoinHandle<()> {
        let subject = self.clone();
        thread::spawn(move || run(&subject))
    }

    /// Checks the answers against each other and against what the store holds when it is opened
    /// again, it being closed.
    pub fn check_to_the_end(&self) {
        let events = self.record.events();
        explain(&events, None, None);
        let (_, store) = open(&self.sim.image(), open_options());
        explain(&events, None, Some(&contents(&store)));
        verify(&store);
    }

    /// As [`Subject::check_to_the_end`], after a failure of the disk.
    pub fn check_failed(&self) {
        let events = self.record.events();
        explain(&events, None, None);
        let position = self.sim.position();
        let (_, store) = open(&self.sim.image(), open_options());
        explain(&events, Some(position), Some(&contents(&store)));
        verify(&store);
    }

    /// Checks what `count` power losses leave, at moments and with losses that the schedule
    /// decides.
    pub fn check_crashes(&self, count: usize) {
        let events = self.record.events();
        let mut random = random();
        let mut crasher = self.sim.crasher();
        let mut positions: Vec<usize> = (0..count)
            .map(|_| random.below(crasher.events() + 1))
            .collect();
        positions.sort_unstable();
        for position in positions {
            crasher.advance(position);
            let loss = match random.below(4) {
                0 => Loss::All,
                1 => Loss::KeepFirst(random.below(crasher.doubts() + 1)),
                2 => Loss::LoseFirst(random.below(crasher.doubts() + 1)),
                _ => Loss::Random(random.number()),
            };
            let (_, store) = open(&crasher.image(loss), open_options());
            explain(&events, Some(position), Some(&contents(&store)));
            verify(&store);
        }
    }
}

/// Everything in the store.
pub fn contents(store: &Store) -> Vec<(String, u64)> {
    let all = contents_of(store).expect("the store can be read");
    all.iter()
        .map(|(key, held)| (key.to_string(), tag_of(&held.bytes)))
        .collect()
}

pub fn verify(store: &Store) {
    let report = store.verify(&mut |_| {}).expect("it can be verified");
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
}

/// What `event` makes of `state`, if its answer can be explained so.
fn apply(event: &Event, state: &State) -> Option<State> {
    let mut next = state.clone();
    let newest = |key: &str| state.get(key).and_then(|(version, _)| *version);
    let rises = |key: &str, version: u64| newest(key).is_none_or(|before| before < version);
    match (&event.call, &event.answer) {
        (_, Answer::Closed | Answer::Failed) | (Call::Flush, _) => {}
        (Call::Change(items), answer) => {
            for (place, (key, tag)) in items.iter().enumerate() {
                let outcome = match answer {
                    Answer::Changed(outcomes) => Some(outcomes[place]),
                    Answer::Dropped => None,
                    _ => return None,
                };
                match (tag, outcome) {
                    (Some(tag), Some(Ok(version))) => {
                        if !rises(key, version) {
                            return None;
                        }
                        next.insert(key, (Some(version), *tag));
                    }
                    (Some(tag), None) => {
                        next.insert(key, (None, *tag));
                    }
                    (None, outcome) => {
                        let existed = next.remove(key).is_some();
                        if outcome.is_some_and(|outcome| outcome != Err(existed)) {
                            return None;
                        }
                    }
                    (Some(_), Some(Err(_))) => return None,
                }
            }
        }
        (Call::PutIf(key, wanted, tag), answer) => {
            let holds = newest(key) == Some(*wanted);
            match answer {
                Answer::Changed(outcomes) if holds => {
                    let version = outcomes[0].ok().filter(|version| version > wanted)?;
                    next.insert(key, (Some(version), *tag));
                }
                Answer::Refused if !holds => {}
                _ => return None,
            }
        }
        (Call::Copy(source, target) | Call::Rename(source, target), answer) => {
            let found = state.get(source).map(|(_, tag)| *tag);
            match (found, answer) {
                (None, Answer::NotFound | Answer::Dropped) => {}
                (Some(tag), Answer::Changed(_) | Answer::Dropped) => {
                    let version = match answer {
                        Answer::Changed(outcomes) => {
                            Some(outcomes[0].ok().filter(|&version| rises(target, version))?)
                        }
                        _ => None,
                    };
                    if matches!(event.call, Call::Rename(..)) {
                        next.remove(source);
                    }
                    next.insert(target, (version, tag));
                }
                _ => return None,
            }
        }
        (Call::Get(key), Answer::Found(found)) => {
            let known = match (state.get(key), found) {
                (None, None) => true,
                (Some((version, tag)), Some((found, found_tag))) => {
                    tag == found_tag && version.is_none_or(|version| version == *found)
                }
                _ => false,
            };
            if !known {
                return None;
            }
            if let Some((version, tag)) = found {
                next.insert(key, (Some(*version), *tag));
            }
        }
        (Call::Get(_), _) => return None,
    }
    Some(next)
}

/// Searches an order of the events, each at some moment between its call and its answer, that
/// explains every answer; and, if a `position` is given where the power failed, one whose first few,
/// with all that had been acknowledged as durable, leave what was `found`.
fn explain(events: &[Event], position: Option<usize>, found: Option<&[(String, u64)]>) {
    let at = position.unwrap_or(usize::MAX);
    let events: Vec<&Event> = events
        .iter()
        .filter(|event| event.position_before <= at)
        .collect();
    assert!(events.len() <= 64, "too many events to search");
    let acknowledged = |event: &Event| {
        event.position_after <= at && !matches!(event.answer, Answer::Dropped | Answer::Failed)
    };
    // A flush makes durable what was acknowledged before it began.
    let flushed = events
        .iter()
        .filter(|event| matches!(event.answer, Answer::Flushed) && acknowledged(event))
        .map(|event| event.began)
        .max();
    let is_required = |event: &Event| match position {
        None => true,
        Some(_) => {
            let is_flushed = flushed.is_some_and(|began| event.ended < began);
            // What was only seen may be gone, and what was turned away changed nothing.
            let changed = matches!(event.answer, Answer::Changed(_));
            changed && acknowledged(event) && (event.durable || is_flushed)
        }
    };
    let required = bits(&events, is_required);
    let mut search = Search {
        before: events
            .iter()
            .map(|event| bits(&events, |other| other.precedes(event)))
            .collect(),
        events,
        required,
        found,
        seen: HashSet::new(),
    };
    if !search.any_from(0, State::new()) {
        for event in &search.events {
            eprintln!("{event:?}");
        }
        panic!("no order explains the answers; power loss {position:?}, found {found:?}");
    }
}

fn bits(events: &[&Event], holds: impl Fn(&Event) -> bool) -> u64 {
    let places = events.iter().enumerate();
    places
        .filter(|(_, event)| holds(event))
        .fold(0, |bits, (place, _)| bits | 1 << place)
}

struct Search<'a> {
    events: Vec<&'a Event>,
    /// Which events come before each.
    before: Vec<u64>,
    required: u64,
    found: Option<&'a [(String, u64)]>,
    seen: HashSet<(u64, State)>,
}

impl Search<'_> {
    fn is_found(&self, state: &State) -> bool {
        self.found.is_none_or(|found| {
            found.len() == state.len()
                && found.iter().all(|(key, tag)| {
                    state
                        .get(key.as_str())
                        .is_some_and(|(_, expected)| expected == tag)
                })
        })
    }

    fn any_from(&mut self, done: u64, state: State) -> bool {
        if done & self.required == self.required && self.is_found(&state) {
            return true;
        }
        if !self.seen.insert((done, state.clone())) {
            return false;
        }
        for place in 0..self.events.len() {
            let ready = self.before[place] & !done == 0;
            if done & 1 << place != 0 || !ready {
                continue;
            }
            let event = self.events[place];
            let next = done | 1 << place;
            if let Some(after) = apply(event, &state)
                && self.any_from(next, after)
            {
                return true;
            }
            // What failed may have come about all the same: it is seen after a reopening.
            if self.found.is_some()
                && matches!(event.answer, Answer::Failed)
                && let Some(after) = apply(&as_dropped(event), &state)
                && self.any_from(next, after)
            {
                return true;
            }
        }
        false
    }
}

fn as_dropped(event: &Event) -> Event {
    Event {
        answer: Answer::Dropped,
        ..event.clone()
    }
}

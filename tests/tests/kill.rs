//! Processes that work on a store are killed at random moments, again and again on the same store.
//! After each kill the lock of the dead owner is taken over, everything that was acknowledged is
//! there, whole and current, and what was under way is there wholly or not at all.
//!
//! A killed process loses nothing that it had written, durable or not: what power loss does is for
//! the simulated disks. Here the whole machinery is real: files, rings, locks, threads.
//!
//! The process is this test's own program, told by its environment to be [`child`]. It says what it
//! is about to do, and what has been acknowledged, one line each, on a pipe. `GRAVITON_SEEDS` asks
//! for more stores (each is killed [`KILLS`] times per backend), `GRAVITON_SEED` for one of them.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use graviton_engine::io::{BackendChoice, DirectIo, IoOptions};
use graviton_engine::port::blob::BatchItemOutcome;
use graviton_engine::port::{
    Batch, BinaryKey, BlobStore, CopyOptions, DeleteOptions, DeleteOutcome, Durability, GetOptions,
    PutOptions, PutOutcome, StorageError, StoreOp,
};
use graviton_engine::store::{Access, CreateOptions, KIB, MIB, OpenOptions, Store};
use graviton_tests::random::{Random, payload};
use graviton_tests::{all_keys, check_figures, io, number_from, test_directory};

/// How often one store's owner is killed.
const KILLS: usize = 15;
/// Threads of a child that change blobs, each its own.
const THREADS: usize = 4;
/// Keys of each of them.
const KEYS: usize = 10;
/// Changes that a thread has under way at once, each of other keys.
const DEPTH: usize = 3;
/// What tells this program that it is to be the child.
const VARIABLE: &str = "GRAVITON_KILL_CHILD";

/// Payload: what it is made from, and its size.
type Content = (u64, usize);

/// One change, as the child announces it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Deed {
    /// A put, in one piece or as a stream.
    Put {
        key: String,
        content: Content,
    },
    Delete {
        key: String,
    },
    Copy {
        source: String,
        target: String,
        rename: bool,
    },
    /// Puts, and deletes (`None`).
    Batch(Vec<(String, Option<Content>)>),
}

impl Deed {
    fn keys(&self) -> Vec<&String> {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => vec![key],
            Self::Copy { source, target, .. } => vec![source, target],
            Self::Batch(items) => items.iter().map(|(key, _)| key).collect(),
        }
    }

    /// What the keys hold once it is done, if it can be done.
    fn effect(&self, held: &Contents) -> Option<Vec<(String, Option<Content>)>> {
        Some(match self {
            Self::Put { key, content } => vec![(key.clone(), Some(*content))],
            Self::Delete { key } => vec![(key.clone(), None)],
            Self::Copy {
                source,
                target,
                rename,
            } => {
                let content = held.get(source)?.content;
                let mut effect = vec![(target.clone(), Some(content))];
                if *rename {
                    effect.push((source.clone(), None));
                }
                effect
            }
            Self::Batch(items) => items.clone(),
        })
    }
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put {
                key,
                content: (seed, size),
            } => write!(f, "put {key} {seed}:{size}"),
            Self::Delete { key } => write!(f, "delete {key}"),
            Self::Copy {
                source,
                target,
                rename,
            } => {
                let verb = if *rename { "rename" } else { "copy" };
                write!(f, "{verb} {source} {target}")
            }
            Self::Batch(items) => {
                write!(f, "batch")?;
                for (key, content) in items {
                    match content {
                        Some((seed, size)) => write!(f, " {key} {seed}:{size}")?,
                        None => write!(f, " {key} -")?,
                    }
                }
                Ok(())
            }
        }
    }
}

fn content(text: &str) -> Option<Content> {
    let (seed, size) = text.split_once(':')?;
    Some((seed.parse().ok()?, size.parse().ok()?))
}

impl FromStr for Deed {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let words: Vec<&str> = text.split(' ').collect();
        Ok(match words.as_slice() {
            ["put", key, made] => Self::Put {
                key: (*key).to_owned(),
                content: content(made).ok_or(())?,
            },
            ["delete", key] => Self::Delete {
                key: (*key).to_owned(),
            },
            [verb @ ("copy" | "rename"), source, target] => Self::Copy {
                source: (*source).to_owned(),
                target: (*target).to_owned(),
                rename: *verb == "rename",
            },
            ["batch", items @ ..] => Self::Batch(
                items
                    .chunks(2)
                    .map(|item| (item[0].to_owned(), content(item[1])))
                    .collect(),
            ),
            _ => return Err(()),
        })
    }
}

/// What an acknowledgement says of one key: the new version, or whether there was something to
/// delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Version(u64),
    Existed(bool),
}

impl Word {
    fn of_put(outcome: &PutOutcome) -> Self {
        Self::Version(outcome.version)
    }

    fn of_delete(outcome: DeleteOutcome) -> Self {
        Self::Existed(outcome.existed)
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "{version}"),
            Self::Existed(existed) => write!(f, "{existed}"),
        }
    }
}

impl FromStr for Word {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "true" => Ok(Self::Existed(true)),
            "false" => Ok(Self::Existed(false)),
            number => number.parse().map(Self::Version).map_err(|_| ()),
        }
    }
}

// The child.

/// How a store is opened, by parent and child, and what the child does with it.
#[derive(Debug, Clone)]
struct Plan {
    backend: BackendChoice,
    direct: bool,
    background: bool,
    checkpoint_interval: u64,
    seed: u64,
    /// After so many changes of each thread it closes the store.
    changes: u64,
    path: PathBuf,
}

impl Plan {
    fn open(&self) -> OpenOptions {
        OpenOptions {
            io: IoOptions {
                backend: self.backend,
                direct: if self.direct {
                    DirectIo::Auto
                } else {
                    DirectIo::Never
                },
                ..IoOptions::default()
            },
            background: self.background,
            checkpoint_interval: Some(self.checkpoint_interval),
            ..OpenOptions::default()
        }
    }

    fn to_environment(&self) -> String {
        format!(
            "{} {} {} {} {} {} {}",
            u8::from(self.backend == BackendChoice::Uring),
            u8::from(self.direct),
            u8::from(self.background),
            self.checkpoint_interval,
            self.seed,
            self.changes,
            self.path.to_str().expect("a path in UTF-8")
        )
    }

    fn from_environment(text: &str) -> Option<Self> {
        let mut words = text.splitn(7, ' ');
        let mut number = || words.next()?.parse::<u64>().ok();
        Some(Self {
            backend: if number()? == 1 {
                BackendChoice::Uring
            } else {
                BackendChoice::Syscall
            },
            direct: number()? == 1,
            background: number()? == 1,
            checkpoint_interval: number()?,
            seed: number()?,
            changes: number()?,
            path: words.next()?.into(),
        })
    }
}

/// Says one line to the parent. Shorter than what a pipe takes at once, it is said whole or not
/// at all.
fn say(line: &str) {
    let line = format!("@{line}\n");
    assert!(line.len() < 4096, "a pipe may tear {line}");
    let mut out = std::io::stdout().lock();
    // Without a parent there is nobody to work for.
    if out.write_all(line.as_bytes()).is_err() {
        std::process::exit(1);
    }
}

/// A change under way.
enum Pending {
    Put(StoreOp<PutOutcome>),
    Delete(StoreOp<DeleteOutcome>),
    Batch(StoreOp<Vec<BatchItemOutcome>>),
}

impl Pending {
    fn wait(self) -> Result<Vec<Word>, StorageError> {
        Ok(match self {
            Self::Put(op) => vec![Word::of_put(&op.wait()?)],
            Self::Delete(op) => vec![Word::of_delete(op.wait()?)],
            Self::Batch(op) => op
                .wait()?
                .iter()
                .map(|outcome| match outcome {
                    BatchItemOutcome::Put(outcome) => Word::of_put(outcome),
                    BatchItemOutcome::Delete(outcome) => Word::of_delete(*outcome),
                    other => panic!("an unknown outcome: {other:?}"),
                })
                .collect(),
        })
    }
}

fn named(key: &str) -> BinaryKey {
    BinaryKey::new(key).expect("a good key")
}

/// One thread of the child.
struct Worker {
    store: Arc<Store>,
    number: usize,
    random: Random,
    under_way: VecDeque<(u64, Deed, Pending)>,
}

impl Worker {
    fn run(&mut self, changes: u64) {
        for change in 0..changes {
            let deed = self.choose(change);
            say(&format!("begin {} {change} {deed}", self.number));
            let pending = match self.start(&deed) {
                Ok(pending) => pending,
                Err(error) => {
                    self.report(change, Err(error));
                    continue;
                }
            };
            self.under_way.push_back((change, deed, pending));
            let depth = self.random.below(DEPTH);
            while self.under_way.len() > depth {
                self.finish_one();
            }
        }
        while !self.under_way.is_empty() {
            self.finish_one();
        }
    }

    fn finish_one(&mut self) {
        if let Some((change, _, pending)) = self.under_way.pop_front() {
            self.report(change, pending.wait());
        }
    }

    fn report(&self, change: u64, outcome: Result<Vec<Word>, StorageError>) {
        let what = match outcome {
            Ok(words) => {
                let words: Vec<String> = words.iter().map(Word::to_string).collect();
                format!("done {} {change} {}", self.number, words.join(" "))
            }
            // Nothing has changed then.
            Err(StorageError::NoSpace { .. }) => format!("full {} {change}", self.number),
            Err(StorageError::NotFound { .. }) => format!("absent {} {change}", self.number),
            Err(error) => panic!("change {change} of thread {}: {error}", self.number),
        };
        say(&what);
    }

    /// A key that no change under way is about, nor one of `taken`.
    fn key(&mut self, taken: &[String]) -> String {
        loop {
            let key = format!("{}/{}", self.number, self.random.below(KEYS));
            let mut busy = self.under_way.iter().flat_map(|(_, deed, _)| deed.keys());
            if !taken.contains(&key) && !busy.any(|other| *other == key) {
                return key;
            }
        }
    }

    fn content(&mut self, most: usize) -> Content {
        (self.random.number() | 1, 8 + self.random.up_to(most))
    }

    fn choose(&mut self, change: u64) -> Deed {
        let key = self.key(&[]);
        match self.random.below(12) {
            0..=4 => Deed::Put {
                key,
                content: self.content(40_000),
            },
            5 => Deed::Put {
                key,
                content: self.content(300_000),
            },
            6 | 7 => Deed::Delete { key },
            8 | 9 => Deed::Copy {
                target: self.key(std::slice::from_ref(&key)),
                source: key,
                rename: change.is_multiple_of(2),
            },
            _ => {
                let mut keys = vec![key];
                let count = 1 + self.random.below(KEYS / 2 - 1);
                while keys.len() < count && self.under_way.len() < 2 {
                    keys.push(self.key(&keys));
                }
                let mut item = |key| {
                    let content = (!self.random.one_in(3)).then(|| self.content(12_000));
                    (key, content)
                };
                Deed::Batch(keys.into_iter().map(&mut item).collect())
            }
        }
    }

    fn start(&mut self, deed: &Deed) -> Result<Pending, StorageError> {
        let durability = if self.random.one_in(3) {
            Durability::Written
        } else {
            Durability::Durable
        };
        let put = PutOptions {
            durability,
            ..PutOptions::default()
        };
        Ok(match deed {
            Deed::Put {
                key,
                content: (seed, size),
            } => {
                let mut payload = payload(*seed, *size);
                if *size < 4096 || self.random.one_in(2) {
                    return Ok(Pending::Put(self.store.put(&named(key), payload, put)));
                }
                let mut writer = self.store.put_stream(&named(key), put)?;
                while !payload.is_empty() {
                    let length = self.random.size(1, 60_000).min(payload.len());
                    writer.write(payload.split_to(length)).wait()?;
                }
                Pending::Put(writer.finish())
            }
            Deed::Delete { key } => Pending::Delete(self.store.delete(
                &named(key),
                DeleteOptions {
                    durability,
                    ..DeleteOptions::default()
                },
            )),
            Deed::Copy {
                source,
                target,
                rename,
            } => {
                let options = CopyOptions {
                    durability,
                    ..CopyOptions::default()
                };
                let (source, target) = (named(source), named(target));
                Pending::Put(if *rename {
                    self.store.rename(&source, &target, options)
                } else {
                    self.store.copy(&source, &target, options)
                })
            }
            Deed::Batch(items) => {
                let mut batch = Batch::new();
                batch.durability = durability;
                for (key, content) in items {
                    match content {
                        Some((seed, size)) => batch.put(named(key), payload(*seed, *size)),
                        None => batch.delete(named(key)),
                    };
                }
                Pending::Batch(self.store.batch(batch))
            }
        })
    }
}

/// Does maintenance until the workers are done.
fn maintain(store: &Store, mut random: Random, over: &AtomicBool) {
    while !over.load(Ordering::Acquire) {
        let outcome = match random.below(8) {
            0 => store.checkpoint().map(|_| ()),
            1 => store.compact().map(|_| ()),
            2 => store.flush().wait(),
            _ => store.step().map(|_| ()),
        };
        match outcome {
            Ok(()) | Err(StorageError::NoSpace { .. }) => std::thread::yield_now(),
            Err(error) => panic!("maintenance: {error}"),
        }
    }
}

/// Works on a store until it is killed or has done its changes.
#[test]
#[ignore = "the other tests run it, as a process to be killed"]
fn child() {
    let Ok(text) = std::env::var(VARIABLE) else {
        return;
    };
    // A thread that fails ends the process, whatever the others do.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::exit(1);
    }));
    let plan = Plan::from_environment(&text).expect("a plan");
    let store = Store::open_with(&plan.path, plan.open()).expect("the store opens");
    say("open");
    let store = Arc::new(store);
    let mut random = Random::new(plan.seed);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|number| {
                let mut worker = Worker {
                    store: Arc::clone(&store),
                    number,
                    random: Random::new(random.number()),
                    under_way: VecDeque::new(),
                };
                scope.spawn(move || worker.run(plan.changes))
            })
            .collect();
        let (store, over, random) = (&store, &over, Random::new(random.number()));
        let maintenance = scope.spawn(move || maintain(store, random, over));
        for worker in workers {
            worker.join().expect("every change is possible");
        }
        over.store(true, Ordering::Release);
        maintenance.join().expect("maintenance succeeds");
    });
    say("closing");
    store.close().expect("the store closes");
    say("closed");
}

// The parent.

/// A blob as it was acknowledged, or found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    content: Content,
    /// `None` if it was never said.
    version: Option<u64>,
}

type Contents = BTreeMap<String, Held>;

/// When a child is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// So many microseconds after its start: it opens the store.
    Start(u64),
    /// So many lines after it has opened the store, and then so many microseconds.
    Lines(usize, u64),
    /// So many microseconds after it began to close the store.
    Closing(u64),
}

/// One store, and what must be in it.
struct Trial {
    seed: u64,
    plan: Plan,
    random: Random,
    contents: Contents,
    /// No version that is given out from now on is this low.
    newest: u64,
    kills: usize,
    changes: usize,
    /// Changes that were cut short, and were found done.
    landed: usize,
    cut_short: usize,
}

impl Drop for Trial {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "GRAVITON_SEED={} ({:?}), kill {}",
                self.seed, self.plan, self.kills
            );
        }
    }
}

/// A child, its lines, and what it is known to have under way.
struct Running {
    child: Child,
    lines: BufReader<ChildStdout>,
    under_way: HashMap<(usize, u64), Deed>,
}

impl Running {
    fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
    }

    /// The next thing it said; `None` when it is gone, and with it what it said in part.
    fn next(&mut self) -> Option<String> {
        loop {
            let mut line = Vec::new();
            let length = self.lines.read_until(b'\n', &mut line);
            if length.expect("a pipe can be read") == 0 || line.last() != Some(&b'\n') {
                return None;
            }
            let line = String::from_utf8(line).expect("a line of text");
            // The harness says things, too, and may have begun the line.
            if let Some((_, said)) = line.trim_end().split_once('@') {
                return Some(said.to_owned());
            }
        }
    }
}

impl Trial {
    fn new(seed: u64, backend: BackendChoice, directory: &Path) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan {
            backend,
            direct: backend == BackendChoice::Uring || random.one_in(2),
            background: true,
            checkpoint_interval: (64 * KIB) << random.below(4),
            seed: 0,
            changes: 0,
            path: directory.join(format!("store-{seed}")),
        };
        let sectors = 1 + u16::try_from(random.below(3)).expect("few");
        let create = CreateOptions {
            sectors,
            replicas: 1,
            sector_size: if sectors == 1 { 8 * MIB } else { 4 * MIB },
            segment_size: Some(64 * KIB),
            block_size: None,
            open: plan.open(),
        };
        Store::create(&plan.path, create).expect("a store can be made");
        Self {
            seed,
            plan,
            random,
            contents: Contents::new(),
            newest: 0,
            kills: 0,
            changes: 0,
            landed: 0,
            cut_short: 0,
        }
    }

    fn start(&mut self, moment: Moment) -> Running {
        self.plan.seed = self.random.number();
        self.plan.background = !self.random.one_in(3);
        self.plan.changes = match moment {
            Moment::Closing(_) => self.random.below(40) as u64,
            _ => u64::MAX,
        };
        let mut child = Command::new(std::env::current_exe().expect("this program's file"))
            .args(["child", "--exact", "--ignored", "--nocapture", "--quiet"])
            .env(VARIABLE, self.plan.to_environment())
            .stdout(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .expect("a child can be started");
        let lines = BufReader::new(child.stdout.take().expect("it is piped"));
        Running {
            child,
            lines,
            under_way: HashMap::new(),
        }
    }

    /// Runs a child on the store, and kills it. Returns it as it died.
    fn run(&mut self, moment: Moment) -> Running {
        let mut running = self.start(moment);
        // Nothing depends on how long these waits are: they only choose the moment.
        let pause = |micros| std::thread::sleep(Duration::from_micros(micros));
        let mut left = match moment {
            Moment::Start(micros) => {
                pause(micros);
                running.kill();
                None
            }
            Moment::Lines(lines, _) => Some(lines),
            Moment::Closing(_) => Some(usize::MAX),
        };
        let mut closed = false;
        while let Some(line) = running.next() {
            match line.as_str() {
                "open" => {
                    if left.is_some() && self.kills.is_multiple_of(5) {
                        self.is_kept_out(&running);
                    }
                }
                "closing" => {
                    if let (Moment::Closing(micros), Some(_)) = (moment, left) {
                        pause(micros);
                        running.kill();
                        left = None;
                    }
                }
                "closed" => closed = true,
                change => self.take_in(&mut running.under_way, change),
            }
            if let (Some(lines), Moment::Lines(_, micros)) = (&mut left, moment) {
                if *lines == 0 {
                    pause(micros);
                    running.kill();
                    left = None;
                } else {
                    *lines -= 1;
                }
            }
        }
        if left.is_some() {
            let status = running.child.wait().expect("it has ended");
            panic!("the child ended by itself, {status}: see above");
        }
        if closed {
            assert!(running.under_way.is_empty(), "closed in the middle");
        }
        running
    }

    /// As long as the child lives, nobody else opens its store.
    fn is_kept_out(&self, running: &Running) {
        match Store::open_with(&self.plan.path, self.plan.open()) {
            Err(StorageError::Locked { owner, .. }) => {
                assert_eq!(owner, format!("process {}", running.child.id()));
            }
            other => panic!("two owners: {other:?}"),
        }
    }

    /// Takes in what the child said of a change.
    fn take_in(&mut self, under_way: &mut HashMap<(usize, u64), Deed>, line: &str) {
        let mut words = line.splitn(4, ' ');
        let (Some(verb), Some(thread), Some(change)) = (words.next(), words.next(), words.next())
        else {
            panic!("the child said {line:?}");
        };
        let number = (
            thread.parse().expect("a thread"),
            change.parse().expect("a change"),
        );
        let rest = words.next().unwrap_or_default();
        if verb == "begin" {
            let deed = rest.parse().unwrap_or_else(|()| panic!("{line:?}"));
            under_way.insert(number, deed);
            return;
        }
        let deed = under_way.remove(&number).expect("it was announced");
        let effect = deed.effect(&self.contents);
        match verb {
            "done" => {
                let effect = effect.unwrap_or_else(|| panic!("{deed} of a key that is absent"));
                let said: Vec<Word> = rest
                    .split(' ')
                    .map(|word| word.parse().expect("a word"))
                    .collect();
                self.acknowledge(&deed, effect, &said);
            }
            "absent" => assert_eq!(effect, None, "{deed} found nothing"),
            "full" => {}
            _ => panic!("the child said {line:?}"),
        }
        self.changes += 1;
    }

    fn acknowledge(&mut self, deed: &Deed, effect: Vec<(String, Option<Content>)>, said: &[Word]) {
        for (position, (key, content)) in effect.into_iter().enumerate() {
            let existed = self.contents.contains_key(&key);
            match (content, said.get(position)) {
                (Some(content), Some(&Word::Version(version))) => {
                    let before = self.contents.get(&key).and_then(|held| held.version);
                    assert!(before < Some(version), "{key}: {before:?}, then {version}");
                    self.newest = self.newest.max(version);
                    let version = Some(version);
                    self.contents.insert(key, Held { content, version });
                }
                (None, Some(Word::Existed(said))) => {
                    assert_eq!(*said, existed, "{deed}: {key}");
                    self.contents.remove(&key);
                }
                // The source of a rename: nothing is said of it.
                (None, None) if matches!(deed, Deed::Copy { .. }) => {
                    self.contents.remove(&key);
                }
                (_, word) => panic!("{deed}: {key}: {word:?}"),
            }
        }
    }

    /// What is in the store is what was acknowledged and, wholly or not at all, what was not.
    fn check(&mut self, store: &Store, under_way: Vec<Deed>) {
        let found: BTreeSet<String> = all_keys(store)
            .expect("keys can be listed")
            .iter()
            .map(|key| String::from_utf8(key.as_bytes().to_vec()).expect("a key of ours"))
            .collect();
        let get = |key: &String| {
            found.contains(key).then(|| {
                let blob = store.get(&named(key), GetOptions::default()).wait();
                let blob = blob.unwrap_or_else(|error| panic!("{key}: {error}"));
                let seed = blob.bytes[..8].try_into().expect("eight bytes");
                let content = (u64::from_le_bytes(seed), blob.bytes.len());
                assert!(blob.bytes == payload(content.0, content.1), "{key} is torn");
                (content, blob.version)
            })
        };
        self.cut_short += under_way.len();
        for deed in under_way {
            let Some(effect) = deed.effect(&self.contents) else {
                continue;
            };
            let now: Vec<_> = effect
                .iter()
                .map(|(key, _)| (key.clone(), get(key).map(|(content, _)| content)))
                .collect();
            let before: Vec<_> = effect
                .iter()
                .map(|(key, _)| {
                    let held = self.contents.get(key);
                    (key.clone(), held.map(|held| held.content))
                })
                .collect();
            if now == before {
                // A copy of what was there already may have made a version of its own.
                for (key, _) in effect.iter().filter(|_| effect == now) {
                    if let Some(held) = self.contents.get_mut(key) {
                        held.version = None;
                    }
                }
                continue;
            }
            assert_eq!(now, effect, "{deed} was done in part; before: {before:?}");
            self.landed += 1;
            for (key, content) in now {
                match content {
                    Some(content) => {
                        let version = None;
                        self.contents.insert(key, Held { content, version });
                    }
                    None => drop(self.contents.remove(&key)),
                }
            }
        }
        let expected: BTreeSet<String> = self.contents.keys().cloned().collect();
        assert_eq!(found, expected, "keys found, and those acknowledged");
        for (key, held) in &mut self.contents {
            let (content, version) = get(key).expect("it is listed");
            assert_eq!(content, held.content, "{key} is not current");
            let said = *held.version.get_or_insert(version);
            assert_eq!(version, said, "{key} is of another version");
        }
        let report = store.verify(&mut |_| {}).expect("it can be verified");
        assert!(report.findings.is_empty(), "{:#?}", report.findings);
    }

    /// The store is usable, and gives out no version a second time.
    fn use_it(&mut self, store: &Store) {
        check_figures(store);
        let key = named("parent");
        let put = store.put(&key, "still there".into(), PutOptions::default());
        let version = put.wait().expect("it takes puts").version;
        assert!(version > self.newest, "{version} after {}", self.newest);
        self.newest = version;
        let deleted = store.delete(&key, DeleteOptions::default()).wait();
        assert!(deleted.expect("it takes deletes").existed);
    }

    fn kill_once(&mut self) {
        let moment = match self.random.below(8) {
            0 => Moment::Start(self.random.up_to(30_000) as u64),
            1 => Moment::Closing(self.random.up_to(5_000) as u64),
            _ => Moment::Lines(self.random.up_to(1_500), self.random.up_to(1_000) as u64),
        };
        let mut dead = self.run(moment);
        self.kills += 1;
        if self.random.one_in(2) {
            // Else it is still there as a zombie, which must not keep anyone out.
            dead.child.wait().expect("it has ended");
        }
        let under_way = dead.under_way.drain().map(|(_, deed)| deed).collect();
        let access = if self.random.one_in(2) {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        };
        let open = OpenOptions {
            access,
            ..self.plan.open()
        };
        let store = Store::open_with(&self.plan.path, open).expect("the store opens");
        self.check(&store, under_way);
        // What is only read stays as the killed process left it, for the next one to find.
        if access == Access::ReadWrite {
            self.use_it(&store);
        }
        store.close().expect("the store closes");
        let status = dead.child.wait().expect("it has ended");
        let killed = status.signal() == Some(9);
        assert!(
            killed || (status.success() && matches!(moment, Moment::Closing(_))),
            "the child ended by itself, {status}: see above"
        );
    }
}

fn kill_often(backend: BackendChoice) {
    if io(backend).is_none() {
        return;
    }
    let one = number_from("GRAVITON_SEED");
    let seeds = number_from("GRAVITON_SEEDS").unwrap_or(1);
    let directory = test_directory();
    let (mut kills, mut changes, mut cut_short, mut landed) = (0, 0, 0, 0);
    for seed in one.map_or(0..seeds, |one| one..one + 1) {
        let mut trial = Trial::new(seed, backend, directory.path());
        for _ in 0..KILLS {
            trial.kill_once();
        }
        kills += trial.kills;
        changes += trial.changes;
        cut_short += trial.cut_short;
        landed += trial.landed;
        std::fs::remove_dir_all(&trial.plan.path).expect("the store can be removed");
    }
    println!(
        "{kills} kills, {changes} changes acknowledged, {cut_short} cut short, of which {landed} were done"
    );
}

#[test]
fn what_was_acknowledged_survives_a_kill_on_io_uring() {
    kill_often(BackendChoice::Uring);
}

#[test]
fn what_was_acknowledged_survives_a_kill_on_system_calls() {
    kill_often(BackendChoice::Syscall);
}

//! The works: what each measures, and how a slice of it is done.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::child;
use crate::data::{self, Blob, KIB, MIB, Random, expect_same, shuffled};
use crate::limit::{GROUP, Limit};
use crate::meter::{self, Io};
use crate::participants::{Contender, Kind, Participant, Sizing, Together};
use crate::slice::{Run, by_threads, nanoseconds};

/// How much is done.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Rounds of each work.
    pub rounds: usize,
    /// How long a slice lasts at most.
    pub slice: Duration,
    /// The most bytes that are put in a slice: no store may outgrow the disk, be it that it reclaims nothing.
    pub put_bytes: usize,
    /// Bytes that lie there to be read.
    pub set_bytes: usize,
    /// Bytes of what is read again and again.
    pub hot_bytes: usize,
    /// How many small blobs are loaded, listed, and opened with.
    pub small_blobs: usize,
    /// Bytes of the largest of them.
    pub small_max: usize,
    /// Bytes of the file of the limit.
    pub limit_bytes: usize,
    /// Bytes that a store may preallocate for puts.
    pub capacity: u64,
}

impl Effort {
    /// A table in about three minutes, on 1 GiB of disk.
    pub const QUICK: Self = Self {
        rounds: 5,
        slice: Duration::from_millis(200),
        put_bytes: 24 * MIB,
        set_bytes: 64 * MIB,
        hot_bytes: 16 * MIB,
        small_blobs: 20_000,
        small_max: 1000,
        limit_bytes: 128 * MIB,
        capacity: 320 << 20,
    };

    /// Figures to be shown, on 4 GiB of disk.
    pub const FULL: Self = Self {
        rounds: 9,
        slice: Duration::from_secs(1),
        put_bytes: 64 * MIB,
        set_bytes: 256 * MIB,
        hot_bytes: 64 * MIB,
        small_blobs: 100_000,
        small_max: 1000,
        limit_bytes: 512 * MIB,
        capacity: 1 << 30,
    };
}

/// Who reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callers {
    /// So many threads, with one read each.
    Threads(usize),
    /// One thread with so many reads under way.
    OneThread(usize),
}

impl Callers {
    fn depth(self) -> usize {
        match self {
            Self::Threads(depth) | Self::OneThread(depth) => depth,
        }
    }
}

/// One thing that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Durable puts by one caller.
    Put(usize),
    /// Durable puts, sixteen in flight.
    PutTogether(usize),
    /// Gets of what no cache has.
    Get(usize, Callers),
    /// Gets of 4 KiB of a large blob that no cache has.
    GetRange,
    /// Gets of what every cache has, by so many threads.
    GetHot(usize, usize),
    /// Puts of many small blobs, durable at the end.
    Load,
    /// All keys in order.
    List,
    /// Opening with many small blobs, after a kill or not.
    Open {
        /// Whether the process before was killed.
        is_killed: bool,
    },
    /// Memory that an open store takes, per blob.
    Memory,
    /// Room on disk per live byte, after half was overwritten or deleted.
    Space,
}

/// Bytes of the smallest of the small blobs.
const SMALL_MIN: usize = 100;
const LARGE: usize = 16 * MIB;
const RANGE: usize = 4 * KIB;
/// Of blobs that are overwritten, deleted, and left.
const SPACE_SIZE: usize = 64 * KIB;
/// Bytes of these, however short the run: what a store takes whatever lies in it should not decide.
const SPACE_BYTES: usize = 256 * MIB;

const SIZES: [usize; 3] = [4 * KIB, 64 * KIB, MIB];

/// What a work finds when its first slice begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Nothing, and no other work finds what it leaves.
    Nothing,
    /// Blobs of this size.
    Blobs(usize),
    /// Many small blobs.
    Small,
}

/// What values of a work are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unit {
    /// Its name.
    pub name: &'static str,
    /// Whether more of it is better.
    pub is_rate: bool,
}

impl Work {
    /// Whether the quick run has it: what lies between one and sixty-four under way is left out of it, of larger blobs.
    pub fn is_quick(self) -> bool {
        match self {
            Self::Get(size, callers) => size == SIZES[0] || callers.depth() != 16,
            _ => true,
        }
    }

    /// All of them. Works with the same content follow each other.
    pub fn all() -> Vec<Self> {
        use Callers::{OneThread, Threads};
        let mut works: Vec<Self> = SIZES.map(Self::Put).to_vec();
        works.extend(SIZES.map(Self::PutTogether));
        for size in SIZES {
            let callers = [
                Threads(1),
                Threads(16),
                OneThread(16),
                Threads(64),
                OneThread(64),
            ];
            works.extend(callers.map(|callers| Self::Get(size, callers)));
            if size < MIB {
                works.extend([1, 16].map(|threads| Self::GetHot(size, threads)));
            }
        }
        works.extend([
            Self::GetRange,
            Self::Load,
            Self::List,
            Self::Open { is_killed: false },
            Self::Open { is_killed: true },
            Self::Memory,
            Self::Space,
        ]);
        works
    }

    /// Its name, in tables and for `--only`.
    pub fn name(self) -> String {
        match self {
            Self::Put(size) => format!("durable put, {}, 1 caller", size_name(size)),
            Self::PutTogether(size) => format!("durable put, {}, 16 in flight", size_name(size)),
            Self::Get(size, Callers::Threads(1)) => {
                format!("cold get, {}, 1 caller", size_name(size))
            }
            Self::Get(size, Callers::Threads(threads)) => {
                format!("cold get, {}, {threads} threads", size_name(size))
            }
            Self::Get(size, Callers::OneThread(depth)) => {
                format!("cold get, {}, 1 thread with {depth}", size_name(size))
            }
            Self::GetRange => "cold get, 4 KiB of 16 MiB, 1 caller".to_owned(),
            Self::GetHot(size, 1) => format!("hot get, {}, 1 thread", size_name(size)),
            Self::GetHot(size, threads) => {
                format!("hot get, {}, {threads} threads", size_name(size))
            }
            Self::Load => "bulk load of small blobs".to_owned(),
            Self::List => "list all keys".to_owned(),
            Self::Open { is_killed: false } => "open, closed before".to_owned(),
            Self::Open { is_killed: true } => "open, killed before".to_owned(),
            Self::Memory => "memory at rest".to_owned(),
            Self::Space => "space after half was rewritten".to_owned(),
        }
    }

    /// The family whose chart it is in.
    pub fn family(self) -> &'static str {
        match self {
            Self::Put(_) | Self::PutTogether(_) => "durable puts",
            Self::Get(..) | Self::GetRange => "cold gets",
            Self::GetHot(..) => "hot gets",
            Self::Load | Self::List => "many small blobs",
            Self::Open { .. } => "opening",
            Self::Memory | Self::Space => "room",
        }
    }

    /// What its values are.
    pub fn unit(self) -> Unit {
        let (name, is_rate) = match self {
            Self::Load => ("blobs/s", true),
            Self::List => ("keys/s", true),
            Self::Open { .. } => ("ms", false),
            Self::Memory => ("B/blob", false),
            Self::Space => ("B/live B", false),
            _ => ("ops/s", true),
        };
        Unit { name, is_rate }
    }

    /// What it finds.
    pub fn content(self) -> Content {
        match self {
            Self::Get(size, _) | Self::GetHot(size, _) => Content::Blobs(size),
            Self::GetRange => Content::Blobs(LARGE),
            Self::List | Self::Open { .. } | Self::Memory => Content::Small,
            Self::Put(_) | Self::PutTogether(_) | Self::Load | Self::Space => Content::Nothing,
        }
    }

    /// Whether the device alone can be asked to do as much.
    pub fn has_limit(self) -> bool {
        matches!(
            self,
            Self::Put(_)
                | Self::PutTogether(_)
                | Self::Get(..)
                | Self::GetRange
                | Self::Open { .. }
        )
    }

    /// Why a store is left out.
    pub fn omits(self, kind: &Kind) -> Option<&'static str> {
        match self {
            Self::Get(_, Callers::OneThread(_)) if !kind.pipelines_gets => {
                Some("its gets block the thread")
            }
            Self::GetRange if !kind.reads_ranges => Some("it reads whole values only"),
            Self::Open { .. } | Self::Memory if !kind.has_state => {
                Some("there is nothing to open: the file system has the state")
            }
            _ => None,
        }
    }

    /// How it is done where that is not the same for all.
    pub fn manner(self, kind: &Kind) -> Option<&'static str> {
        matches!(self, Self::PutTogether(_)).then(|| kind.together.name())
    }

    /// How many of its blobs a store has. Of small ones, a twentieth if each is a file: where a file system discards what
    /// it frees, to remove a file takes milliseconds, which nobody measures and everybody waits for.
    pub fn share<'a>(self, kind: &Kind, blobs: &'a [Blob]) -> &'a [Blob] {
        let are_small = match self {
            Self::Get(size, _) | Self::GetHot(size, _) => size < 64 * KIB,
            Self::Load | Self::List => true,
            _ => false,
        };
        match are_small && !kind.has_state {
            true => &blobs[..blobs.len() / 20],
            false => blobs,
        }
    }

    /// How many rounds it is worth: room on disk does not depend on chance.
    pub fn rounds(self, effort: &Effort) -> usize {
        match self {
            Self::Space => 1,
            _ => effort.rounds,
        }
    }

    /// What a store is told beforehand.
    pub fn sizing(self, effort: &Effort) -> Sizing {
        let set_capacity = 2 * effort.set_bytes as u64 + (32 << 20);
        // Room for a few checkpoints, too.
        let small_capacity = effort.small_blobs as u64 * (effort.small_max as u64 + 400);
        let (blob_size, capacity) = match self {
            Self::Put(size) | Self::PutTogether(size) => (size, effort.capacity),
            Self::Get(size, _) | Self::GetHot(size, _) => (size, set_capacity),
            Self::GetRange => (RANGE, set_capacity),
            Self::Load | Self::List | Self::Open { .. } | Self::Memory => {
                (effort.small_max, set_capacity.max(small_capacity))
            }
            Self::Space => (SPACE_SIZE, 2 * SPACE_BYTES as u64),
        };
        Sizing {
            blob_size,
            capacity,
        }
    }

    /// The blobs that it puts, or finds.
    pub fn blobs(self, effort: &Effort) -> Vec<Blob> {
        match self {
            Self::Put(size) | Self::PutTogether(size) => data::blobs(effort.put_bytes / size, size),
            Self::Get(size, _) | Self::GetHot(size, _) => {
                data::blobs(effort.set_bytes / size, size)
            }
            Self::GetRange => data::blobs(effort.set_bytes / LARGE, LARGE),
            Self::Load | Self::List | Self::Open { .. } | Self::Memory => {
                data::blobs_of_sizes(effort.small_blobs, &(SMALL_MIN..=effort.small_max))
            }
            Self::Space => data::blobs(SPACE_BYTES / SPACE_SIZE, SPACE_SIZE),
        }
    }
}

/// A size as it is written in names.
fn size_name(size: usize) -> String {
    match size {
        MIB.. => format!("{} MiB", size / MIB),
        _ => format!("{} KiB", size / KIB),
    }
}

/// What a slice gave.
#[derive(Debug, Default)]
pub struct Sample {
    /// In the work's unit.
    pub value: f64,
    /// Operations that were done.
    pub operations: usize,
    /// Bytes of payload that were put or got.
    pub payload: u64,
    /// How long each operation took, in nanoseconds, if single ones were timed.
    pub latencies: Vec<u64>,
    /// What the kernel counted meanwhile.
    pub io: Io,
}

impl Sample {
    fn of_run(run: Run, size: usize, io: Io) -> Self {
        Self {
            value: run.per_second(),
            operations: run.operations,
            payload: (run.operations * size) as u64,
            latencies: run.latencies,
            io,
        }
    }

    fn of_value(value: f64) -> Self {
        Self {
            value,
            ..Self::default()
        }
    }
}

/// One slice of the limit. `None` if the work has none.
pub fn slice_of_limit(
    work: Work,
    effort: &Effort,
    round: usize,
    limit: &mut Limit,
) -> Result<Option<Sample>> {
    const FRAME: usize = 64 * KIB;
    let time = effort.slice;
    let directory = limit.path.clone();
    let before = Io::now(&directory)?;
    let seed = round as u64;
    let (run, size) = match work {
        Work::Put(size) => {
            let count = effort.put_bytes / size;
            (limit.write_durably(size, time, count)?, size)
        }
        // What sixteen blobs of 4 KiB need is one write that carries them all.
        Work::PutTogether(size) if size * GROUP <= FRAME => {
            let run = limit.write_durably(FRAME, time, effort.put_bytes / FRAME)?;
            (run.of_groups(FRAME / size), size)
        }
        Work::PutTogether(size) => {
            let count = effort.put_bytes / size;
            (limit.write_groups(size, time, count)?, size)
        }
        Work::Get(size, callers) => (limit.read(size, callers.depth(), time, seed)?, size),
        Work::GetRange => (limit.read(RANGE, 1, time, seed)?, RANGE),
        Work::Open { .. } => {
            let Some(bytes) = limit.checkpoint_bytes else {
                return Ok(None);
            };
            return Ok(Some(Sample::of_value(limit.read_through(bytes)? * 1000.0)));
        }
        _ => return Ok(None),
    };
    let io = Io::now(&directory)?.since(before);
    Ok(Some(Sample::of_run(run, size, io)))
}

/// One slice of a store.
pub fn slice(
    work: Work,
    effort: &Effort,
    round: usize,
    blobs: &[Blob],
    contender: &mut Contender,
) -> Result<Sample> {
    let blobs = work.share(contender.kind, blobs);
    match work {
        Work::Put(size) => put(effort, size, 1, &versions(blobs, round), contender),
        Work::PutTogether(size) => put_together(effort, size, &versions(blobs, round), contender),
        Work::Get(size, callers) => get(effort, round, size, callers, blobs, contender),
        Work::GetRange => get_range(effort, round, blobs, contender),
        Work::GetHot(size, threads) => get_hot(effort, round, size, threads, blobs, contender),
        Work::Load => load(blobs, contender),
        Work::List => list(effort, blobs, contender),
        Work::Open { is_killed } => {
            if is_killed {
                child::write_and_be_killed(contender, round)?;
            }
            let opened = child::open(contender)?;
            Ok(Sample::of_value(opened.seconds * 1000.0))
        }
        Work::Memory => {
            let opened = child::open(contender)?;
            Ok(Sample::of_value(
                opened.memory as f64 / blobs.len().max(1) as f64,
            ))
        }
        Work::Space => space(blobs, contender),
    }
}

/// Runs something with an open store, and says what the kernel counted meanwhile.
fn counted<T>(
    contender: &mut Contender,
    work: impl FnOnce(&mut dyn Participant) -> Result<T>,
) -> Result<(T, Io)> {
    let directory = contender.directory.clone();
    let store = contender.store()?;
    let before = Io::now(&directory)?;
    let done = work(store)?;
    Ok((done, Io::now(&directory)?.since(before)))
}

/// Blobs with other bytes in each round.
fn versions(blobs: &[Blob], round: usize) -> Vec<Blob> {
    blobs.iter().map(|blob| blob.version(round)).collect()
}

fn put(
    effort: &Effort,
    size: usize,
    threads: usize,
    blobs: &[Blob],
    contender: &mut Contender,
) -> Result<Sample> {
    let items: Vec<&Blob> = blobs.iter().collect();
    contender.store()?.prepare(threads)?;
    let (run, io) = counted(contender, |store| {
        by_threads(threads, effort.slice, &items, |blob| store.put(blob))
    })?;
    Ok(Sample::of_run(run, size, io))
}

fn put_together(
    effort: &Effort,
    size: usize,
    blobs: &[Blob],
    contender: &mut Contender,
) -> Result<Sample> {
    if contender.kind.together == Together::Threads {
        return put(effort, size, GROUP, blobs, contender);
    }
    let groups: Vec<&[Blob]> = blobs.chunks_exact(GROUP).collect();
    let (run, io) = counted(contender, |store| {
        by_threads(1, effort.slice, &groups, |group| store.put_together(group))
    })?;
    Ok(Sample::of_run(run.of_groups(GROUP), size, io))
}

/// How many blobs are read before caches are emptied again: the kernel, and stores, read ahead into neighbours, which
/// would be hits by accident once all of them are asked for. Of the largest there are too few to stop early.
fn burst(blobs: usize, size: usize) -> usize {
    match size {
        MIB.. => blobs,
        _ => (blobs / 4).max(1),
    }
}

/// Bursts of cold gets, as many as there is time for.
fn get(
    effort: &Effort,
    round: usize,
    size: usize,
    callers: Callers,
    blobs: &[Blob],
    contender: &mut Contender,
) -> Result<Sample> {
    let order = shuffled(blobs.len(), round as u64);
    let items: Vec<&Blob> = order.iter().map(|number| &blobs[*number]).collect();
    let (mut total, mut io) = (Run::default(), Io::default());
    for items in items.chunks(burst(blobs.len(), size)) {
        let left = effort.slice.saturating_sub(total.lasted());
        if left.is_zero() {
            break;
        }
        contender.cool()?;
        let (run, burst_io) = match callers {
            Callers::Threads(threads) => {
                contender.store()?.prepare(threads)?;
                counted(contender, |store| {
                    by_threads(threads, left, items, |blob| get_one(store, blob))
                })?
            }
            Callers::OneThread(depth) => {
                counted(contender, |store| get_in_flight(store, depth, left, items))?
            }
        };
        total.add(run);
        io = io.plus(burst_io);
    }
    Ok(Sample::of_run(total, size, io))
}

fn get_one(store: &dyn Participant, blob: &Blob) -> Result<()> {
    let mut is_same = false;
    store.get(&blob.key, &mut |bytes| is_same = blob.is_read_as(bytes))?;
    expect_same(&blob.key, is_same)
}

fn get_in_flight(
    store: &dyn Participant,
    depth: usize,
    time: Duration,
    items: &[&Blob],
) -> Result<Run> {
    let mut run = Run::default();
    let mut other = None;
    let mut left = items.iter();
    let from = Instant::now();
    let mut next = || left.next().copied().filter(|_| from.elapsed() < time);
    let mut done = |blob: &Blob, bytes: &[u8], latency| {
        run.latencies.push(nanoseconds(latency));
        if !blob.is_read_as(bytes) {
            other = Some(blob.key.clone());
        }
    };
    store.get_in_flight(depth, &mut next, &mut done)?;
    run.seconds = from.elapsed().as_secs_f64();
    run.operations = run.latencies.len();
    other.map_or(Ok(run), |key| {
        expect_same(&key, false).map(|()| Run::default())
    })
}

fn get_range(
    effort: &Effort,
    round: usize,
    blobs: &[Blob],
    contender: &mut Contender,
) -> Result<Sample> {
    contender.cool()?;
    let mut random = Random::new(round as u64);
    let ranges: Vec<(&Blob, usize)> = (0..effort.set_bytes / RANGE)
        .map(|_| {
            let blob = &blobs[random.below(blobs.len())];
            (blob, random.below(LARGE / RANGE) * RANGE)
        })
        .collect();
    let (run, io) = counted(contender, |store| {
        by_threads(1, effort.slice, &ranges, |(blob, start)| {
            let end = start + RANGE;
            let expected = &blob.payload[start..end];
            let mut is_same = false;
            store.get_range(&blob.key, start as u64..end as u64, &mut |bytes| {
                is_same = data::is_same(expected, bytes);
            })?;
            expect_same(&blob.key, is_same)
        })
    })?;
    Ok(Sample::of_run(run, RANGE, io))
}

fn get_hot(
    effort: &Effort,
    round: usize,
    size: usize,
    threads: usize,
    blobs: &[Blob],
    contender: &mut Contender,
) -> Result<Sample> {
    /// As often as it may come up before the time is over.
    const TURNS: usize = 200;
    let hot = &blobs[..(effort.hot_bytes / size).min(blobs.len())];
    let store = contender.store()?;
    store.prepare(threads)?;
    hot.iter().try_for_each(|blob| get_one(store, blob))?;
    let order = shuffled(hot.len(), round as u64);
    let items: Vec<&Blob> = (0..TURNS)
        .flat_map(|_| order.iter().map(|number| &hot[*number]))
        .collect();
    let (run, io) = counted(contender, |store| {
        by_threads(threads, effort.slice, &items, |blob| get_one(store, blob))
    })?;
    Ok(Sample::of_run(run, size, io))
}

fn load(blobs: &[Blob], contender: &mut Contender) -> Result<Sample> {
    contender.remove()?;
    let (seconds, io) = counted(contender, |store| {
        let before = Instant::now();
        store.load(blobs)?;
        Ok(before.elapsed().as_secs_f64())
    })?;
    let sample = Sample {
        value: blobs.len() as f64 / seconds,
        operations: blobs.len(),
        payload: blobs.iter().map(|blob| blob.payload.len() as u64).sum(),
        latencies: Vec::new(),
        io,
    };
    contender.remove()?;
    Ok(sample)
}

fn list(effort: &Effort, blobs: &[Blob], contender: &mut Contender) -> Result<Sample> {
    // As often as the time allows, in earnest once.
    let lists = vec![(); 1000];
    let (run, io) = counted(contender, |store| {
        by_threads(1, effort.slice, &lists, |()| {
            let keys = store.list()?;
            ensure!(
                keys == blobs.len(),
                "{keys} keys were listed, there are {}",
                blobs.len()
            );
            Ok(())
        })
    })?;
    Ok(Sample {
        value: run.per_second() * blobs.len() as f64,
        operations: run.operations,
        payload: 0,
        latencies: run.latencies,
        io,
    })
}

fn space(blobs: &[Blob], contender: &mut Contender) -> Result<Sample> {
    let store = contender.store()?;
    store.load(blobs)?;
    // Of each four one is deleted, one overwritten, two are left.
    for group in blobs.chunks_exact(4) {
        store.delete(&group[1].key)?;
    }
    let rewritten = blobs.iter().skip(3).step_by(4);
    let rewritten: Vec<Blob> = rewritten.map(|blob| blob.version(1)).collect();
    store.load(&rewritten)?;
    store.settle()?;
    let in_use = store.space_in_use()?;
    let on_disk = match in_use {
        Some(bytes) => bytes,
        None => meter::disk_usage(&contender.directory).context("see how large it is")?,
    };
    let live: usize = blobs
        .iter()
        .enumerate()
        .filter(|(number, _)| number % 4 != 1)
        .map(|(_, blob)| blob.payload.len())
        .sum();
    // One at a time: they are large.
    contender.remove()?;
    Ok(Sample::of_value(on_disk as f64 / live as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn works_have_names_of_their_own_and_share_content_side_by_side() {
        let works = Work::all();
        for (number, work) in works.iter().enumerate() {
            assert!(
                works[..number]
                    .iter()
                    .all(|other| other.name() != work.name())
            );
        }
        let mut contents: Vec<Content> = works.iter().map(|work| work.content()).collect();
        contents.dedup();
        let loaded = contents
            .iter()
            .filter(|content| **content != Content::Nothing);
        assert_eq!(loaded.count(), 5, "three sizes, large ones, small ones");
    }

    #[test]
    fn the_quick_run_stays_within_a_gibibyte() {
        let (quick, full) = (Effort::QUICK, Effort::FULL);
        for (effort, most) in [(quick, 1 << 30), (full, 4_u64 << 30)] {
            assert!(effort.limit_bytes as u64 + effort.capacity < most / 2);
            assert!(effort.limit_bytes + 2 * SPACE_BYTES < usize::try_from(most).unwrap_or(0));
        }
    }
}

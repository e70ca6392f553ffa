//! Damage in every form to small stores: bits flipped one at a time, in every structure, and
//! blocks, pairs of blocks and whole areas overwritten with zeros, ones, noise, other blocks of the
//! store, the same place of another store, and what lay there earlier, or not to be read any more.
//!
//! Whatever the damage, every answer is right or a typed error. A store never takes damage for
//! absence or age: no false "not found", no stale version, no entry missing from a list; if it can't
//! tell, it refuses to open. Opened for salvage, it may, so that something is saved, but then its
//! health says so. Verify finds each flip in what is needed. There is never a panic, a hang, or more
//! memory taken than such stores need.
//!
//! One thing can't be told from a torn tail: that the last frames of the log are gone, all of them,
//! with nothing left that knows of them. Then the store must be exactly as it was before the first
//! of these, and only if the damage lies in every one of them. See [`Trials::lost`].
//!
//! `GRAVITON_FLIPS=all` flips every bit that [`bits_of`] does not leave out; a number says how many
//! flips are tried in each store, and `GRAVITON_SEED` which.

mod layout;
mod stores;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::hint::black_box;
use std::ops::{AddAssign, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use bytes::Bytes;
use graviton_engine::io::sim::Sim;
use graviton_engine::port::{BinaryKey, BlobStore, ErrorKind, ListRequest, PutOptions};
use graviton_engine::port::{BlobInfo, StorageError};
use graviton_engine::store::{Access, Store};
use graviton_format::geometry::{AREA_SIZE, ROOT_SLOT_SIZE};
use graviton_tests::random::Random;
use graviton_tests::{number_from, skipped, with_holes};
use parking_lot::Mutex;

use layout::{Kind, Region};
use stores::{Case, Plan, Version, key, open};

/// Flips and overwrites tried in each store if `GRAVITON_FLIPS` does not say otherwise.
const TRIALS: usize = 1300;
/// After so long without an end of any trial, something hangs.
const HANG: Duration = Duration::from_secs(120);
/// What all stores of this process take together, with room to spare. A length that is believed
/// before it is checked asks for more.
const MEMORY_MAX: u64 = 512 << 20;

/// What is done to a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// A bit of the place's first byte.
    Flip(u8),
    Zeros,
    Ones,
    Noise(u64),
    /// What lies elsewhere in a sector.
    Elsewhere(usize, usize, Kind),
    /// What lies there in another store.
    Foreign,
    /// What lay there at an earlier moment.
    Older(usize),
    /// Nothing: reads of it fail.
    Unreadable,
}

/// Damage of one place; or of the same place in both areas, which hold copies.
#[derive(Debug, Clone)]
struct Damage {
    sector: usize,
    range: Range<usize>,
    what: What,
    twice: bool,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sector, range) = (self.sector, &self.range);
        write!(f, "{:?} at {range:?} of sector {sector}", self.what)?;
        if self.twice {
            write!(f, ", in both areas")?;
        }
        Ok(())
    }
}

/// What became of damage, summed.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    tried: usize,
    /// The store did not open for reading.
    refused: usize,
    /// Its health said so, a read failed, or verify found it.
    found: usize,
    /// It took the end of the log without a trace, and with it what was acknowledged last.
    tail: usize,
    /// Nobody noticed, and everything was right.
    harmless: usize,
    wrong: usize,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.tried += other.tried;
        self.refused += other.refused;
        self.found += other.found;
        self.tail += other.tail;
        self.harmless += other.harmless;
        self.wrong += other.wrong;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} tried, {} detected ({} refused, {} found), {} torn tail, {} harmless, {} wrong",
            self.tried,
            self.refused + self.found,
            self.refused,
            self.found,
            self.tail,
            self.harmless,
            self.wrong
        )
    }
}

/// What a store must hold.
struct Expected {
    contents: BTreeMap<BinaryKey, Version>,
    /// Keys that may say they are damaged.
    damaged: BTreeSet<BinaryKey>,
    /// It may have lost anything, and says so.
    lenient: bool,
}

impl Expected {
    fn lenient(self, lenient: bool) -> Self {
        Self { lenient, ..self }
    }
}

/// How a store is that was opened for writing in spite of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its index may be damaged.
    Ill,
    /// Its index is right.
    Well,
    /// All that was damaged has another copy, and was written anew.
    Mended,
}

struct Trials<'a> {
    case: &'a Case,
    all: bool,
}

impl Trials<'_> {
    /// The places that are damaged, and what is there then; where nothing can be read, all is other
    /// than it was.
    fn edits(&self, damage: &Damage) -> Vec<(usize, Vec<u8>)> {
        let geometry = &self.case.layouts[damage.sector].geometry;
        let sector = &self.case.sectors[damage.sector];
        let back = usize::try_from(geometry.back_area()).expect("it is in memory");
        let places = [0, back];
        let places = places.iter().take(if damage.twice { 2 } else { 1 });
        let edit = |base: &usize| {
            let (start, length) = (base + damage.range.start, damage.range.len());
            let mut bytes = sector[start..start + length].to_vec();
            match damage.what {
                What::Flip(bit) => bytes[0] ^= 1 << bit,
                What::Zeros => bytes.fill(0),
                What::Ones => bytes.fill(0xff),
                What::Unreadable => bytes.iter_mut().for_each(|byte| *byte = !*byte),
                What::Noise(seed) => bytes = Random::new(seed).bytes(length),
                What::Elsewhere(sector, from, _) => {
                    bytes.copy_from_slice(&self.case.sectors[sector][from..from + length]);
                }
                What::Foreign => self.case.foreign.read(damage.sector, start, &mut bytes),
                What::Older(moment) => {
                    self.case.older[moment].read(damage.sector, start, &mut bytes);
                }
            }
            (start, bytes)
        };
        places.map(edit).collect()
    }

    /// The regions of which a byte is changed.
    fn touched(&self, damage: &Damage, edits: &[(usize, Vec<u8>)]) -> Vec<&Region> {
        let sector = &self.case.sectors[damage.sector];
        let mut touched = Vec::new();
        for (start, bytes) in edits {
            let end = start + bytes.len();
            for region in self.case.layouts[damage.sector].within(*start..end) {
                let (from, to) = (region.range.start.max(*start), region.range.end.min(end));
                if sector[from..to] != bytes[from - start..to - start] {
                    touched.push(region);
                }
            }
        }
        touched
    }

    /// Whether a root looks as if a crash had come between the writes of its two copies: the second
    /// is an older one, or none.
    fn is_cut_short(&self, damage: &Damage, region: &Region, edits: &[(usize, Vec<u8>)]) -> bool {
        let back = self.case.layouts[damage.sector].geometry.back_area();
        let is_none = edits.iter().all(|(start, bytes)| {
            let mut root =
                (region.range.clone()).filter_map(|at| bytes.get(at.wrapping_sub(*start)));
            root.all(|&byte| byte == 0)
        });
        region.kind == Kind::Root
            && region.range.start as u64 >= back
            && (is_none || matches!(damage.what, What::Older(_)))
    }

    /// The first frame of those at the log's end that are all damaged, if some are; and the LSNs
    /// of their records, which nothing can be known of. What a checkpoint holds is not lost.
    fn lost(&self, damage: &Damage, touched: &[&Region]) -> (usize, HashSet<u64>) {
        let layout = &self.case.layouts[damage.sector];
        if damage.what == What::Unreadable {
            return (layout.frames.len(), HashSet::new());
        }
        let taken: BTreeSet<usize> = touched.iter().filter_map(|region| region.takes()).collect();
        let mut first = layout.frames.len();
        while first > 0 && taken.contains(&(first - 1)) {
            first -= 1;
        }
        let frames = &layout.frames[first..];
        let lost = frames
            .iter()
            .filter(|frame| frame.lsn > layout.checkpointed)
            .flat_map(|frame| &frame.records);
        (first, lost.copied().collect())
    }

    /// What must be there without the records with the LSNs `lost`. Keys may fail whose bytes are
    /// those of a damaged record, a copy of them, or made of them.
    fn expected(&self, touched: &[&Region], lost: &HashSet<u64>) -> Expected {
        let contents = self.case.contents(lost);
        let owners: Vec<&Vec<Version>> = touched
            .iter()
            .filter_map(|region| self.case.history.get(region.key.as_ref()?))
            .collect();
        let is_owned = |version: &Version| {
            let mut all = owners.iter().flat_map(|versions| versions.iter());
            let mut keys = touched.iter().filter_map(|region| region.key.as_ref());
            all.any(|owner| owner.content == version.content)
                || keys.any(|key| version.made_of.contains(key))
        };
        let damaged = contents.iter().filter(|(_, version)| is_owned(version));
        Expected {
            damaged: damaged.map(|(key, _)| key.clone()).collect(),
            contents,
            lenient: false,
        }
    }

    /// Whether the store can open in spite of the damage, and must.
    fn must_open(damage: &Damage, touched: &[&Region]) -> bool {
        let is_accident = matches!(
            damage.what,
            What::Flip(_) | What::Zeros | What::Ones | What::Noise(_) | What::Unreadable
        );
        is_accident && !damage.twice && touched.iter().all(|region| region.kind.is_no_index())
    }

    /// Tries everything on a store with this damage. Returns what came of it, and what should not
    /// have.
    fn try_out(&self, damage: &Damage, number: usize) -> (Tally, Vec<String>) {
        let edits = self.edits(damage);
        let touched = self.touched(damage, &edits);
        let mut wrong = Vec::new();
        let mut tally = Tally::default();
        if touched.is_empty() {
            return (tally, wrong);
        }
        tally.tried = 1;
        let mut image = self.case.image.clone();
        let is_readable = damage.what != What::Unreadable;
        for (start, bytes) in edits.iter().filter(|_| is_readable) {
            image.edit(damage.sector, *start, bytes);
        }
        let boot = || {
            let sim = Sim::boot(&image, self.case.plan.block_size, number as u64);
            if !is_readable {
                for (start, bytes) in &edits {
                    sim.make_unreadable(damage.sector, *start..start + bytes.len());
                }
            }
            sim
        };
        let (first_lost, lost) = self.lost(damage, &touched);
        let expected = self.expected(&touched, &lost);
        match open(&boot(), Access::ReadOnly) {
            Ok(store) => {
                let errors = self.check(&store, &expected, "read-only", &mut wrong);
                let findings = verify(&store, "read-only", &mut wrong);
                let ill = !store.info().health.is_empty();
                let in_tail = |region: &&Region| region.frame.is_some_and(|at| at >= first_lost);
                let must_be_found = touched
                    .iter()
                    .filter(|region| !self.is_cut_short(damage, region, &edits))
                    .any(|region| region.kind.is_needed() && !in_tail(region));
                // Both copies of a root as they were is what a crash leaves before it is written.
                if must_be_found && findings == 0 && !damage.twice {
                    wrong.push("read-only: verify finds nothing".to_owned());
                }
                if ill || errors > 0 || findings > 0 {
                    tally.found = 1;
                } else if lost.is_empty() {
                    tally.harmless = 1;
                } else {
                    tally.tail = 1;
                }
            }
            Err(error) => {
                tally.refused = 1;
                if Self::must_open(damage, &touched) {
                    wrong.push(format!("read-only: does not open: {error}"));
                }
                self.check_refusal(damage, &touched, &error, "read-only", &mut wrong);
            }
        }
        let refused = tally.refused > 0;
        // One in so many is opened in other ways too.
        let stride = if self.all { 64 } else { 8 };
        if number % stride == 1 || (refused && number.is_multiple_of(stride)) {
            match open(&boot(), Access::Salvage) {
                Ok(store) => {
                    let lenient = !store.info().health.is_empty();
                    let expected = self.expected(&touched, &lost).lenient(lenient);
                    self.check(&store, &expected, "salvage", &mut wrong);
                    if verify(&store, "salvage", &mut wrong) == 0 && refused {
                        wrong.push("salvage: verify finds nothing".to_owned());
                    }
                }
                Err(error @ (StorageError::Corruption { .. } | StorageError::Io { .. })) => {
                    wrong.push(format!("salvage: does not open: {error}"));
                }
                Err(error) => self.check_refusal(damage, &touched, &error, "salvage", &mut wrong),
            }
        }
        if number % stride == 2 || (!refused && number.is_multiple_of(stride)) {
            let sim = boot();
            match open(&sim, Access::ReadWrite) {
                Ok(store) if !refused => {
                    let well = Self::must_open(damage, &touched);
                    let is_copied = |region: &&Region| {
                        matches!(
                            region.kind,
                            Kind::Superblock | Kind::Root | Kind::Meaningless
                        )
                    };
                    let state = match well {
                        false => State::Ill,
                        true if touched.iter().all(is_copied) => State::Mended,
                        true => State::Well,
                    };
                    self.go_on(&sim, &store, expected, state, &mut wrong);
                }
                Ok(_) => wrong.push("writing: opens what it does not read".to_owned()),
                Err(error) if refused => {
                    self.check_refusal(damage, &touched, &error, "writing", &mut wrong);
                }
                Err(error) => wrong.push(format!("writing: does not open: {error}")),
            }
        }
        tally.wrong = usize::from(!wrong.is_empty());
        (tally, wrong)
    }

    /// A superblock of another store in the place of ours makes the sector another's; all other
    /// damage is called so.
    fn check_refusal(
        &self,
        damage: &Damage,
        touched: &[&Region],
        error: &StorageError,
        how: &str,
        wrong: &mut Vec<String>,
    ) {
        let foreign = touched.iter().any(|region| region.kind == Kind::Superblock)
            && matches!(damage.what, What::Foreign | What::Elsewhere(..));
        match error {
            StorageError::Corruption { .. } => {}
            StorageError::InvalidStore { .. } if foreign => {}
            StorageError::Io { .. } if damage.what == What::Unreadable => {}
            error => wrong.push(format!("{how}: does not open: {error}")),
        }
    }

    /// Asks for every key. Returns how many answers could not be had.
    fn check(
        &self,
        store: &Store,
        expected: &Expected,
        how: &str,
        wrong: &mut Vec<String>,
    ) -> usize {
        let mut errors = 0;
        let mut fail = |what: String| wrong.push(format!("{how}: {what}"));
        let none = Vec::new();
        let keys = self.case.history.keys().chain(expected.contents.keys());
        let keys: BTreeSet<&BinaryKey> = keys.collect();
        for key in keys {
            let now = expected.contents.get(key);
            let history = self.case.history.get(key).unwrap_or(&none);
            let right = |version: u64, holds: &dyn Fn(&Version, &Bytes) -> bool| {
                let older = history.iter().filter(|_| expected.lenient);
                now.into_iter().chain(older).any(|candidate| {
                    let content = candidate.content.as_ref();
                    candidate.lsn == version
                        && content.is_some_and(|content| holds(candidate, content))
                })
            };
            let absent = now.is_none() || expected.lenient;
            let damaged = expected.lenient || expected.damaged.contains(key);
            let mut see = |what: &str, right: Result<bool, StorageError>| match right {
                Ok(true) => {}
                Ok(false) => fail(format!("{what} {key}: another answer than {now:?}")),
                Err(StorageError::NotFound { .. }) if absent => {}
                Err(error) if damaged && is_of_damage(&error) => errors += 1,
                Err(error) => fail(format!("{what} {key}: {error}")),
            };
            let got = store.get(key, with_holes()).wait();
            see(
                "get",
                got.map(|blob| right(blob.version, &|_, content| *content == blob.bytes)),
            );
            let stat = store.stat(key).wait();
            see(
                "stat",
                stat.map(|info: BlobInfo| {
                    right(info.version, &|version, content| {
                        content.len() as u64 == info.size
                            && info.attributes.is_empty() != version.noted
                    })
                }),
            );
            let exists = store.exists(key).wait();
            see(
                "exists",
                exists.map(|exists| expected.lenient || exists == now.is_some()),
            );
        }
        let listed = store.list(ListRequest::default()).wait();
        match listed {
            Ok(page) => {
                let entry = |entry: &graviton_engine::port::ListEntry| {
                    (entry.key.clone(), entry.version, entry.size)
                };
                let found: BTreeSet<_> = page.blobs.iter().map(entry).collect();
                let versions = |(key, version): (&BinaryKey, &Version)| {
                    let size = version.content.as_ref().map(|content| content.len() as u64);
                    Some((key.clone(), version.lsn, size?))
                };
                let now: BTreeSet<_> = expected.contents.iter().filter_map(versions).collect();
                let holds = if expected.lenient {
                    let of_key = |(key, all): (&BinaryKey, &Vec<Version>)| {
                        let all = all.iter().filter_map(|version| versions((key, version)));
                        all.collect::<Vec<_>>()
                    };
                    let ever: BTreeSet<_> = self.case.history.iter().flat_map(of_key).collect();
                    found.is_subset(&ever)
                } else {
                    found == now && page.blobs.len() == now.len()
                };
                if !holds || page.next.is_some() {
                    fail("lists other blobs than it has".to_owned());
                }
            }
            Err(error) => fail(format!("list: {error}")),
        }
        errors
    }

    /// Life goes on: writes, compaction, checkpoints and a new owner on top of the damage make
    /// nothing worse. Unless the index is ill all of it is done, but that what is damaged is not moved.
    fn go_on(
        &self,
        sim: &Sim,
        store: &Store,
        mut expected: Expected,
        state: State,
        wrong: &mut Vec<String>,
    ) {
        self.check(store, &expected, "writing", wrong);
        let mut tolerate = |what: &str, outcome: Result<(), StorageError>| {
            if let Err(error) = outcome
                && (state != State::Ill && what != "compact" || !is_of_damage(&error))
            {
                wrong.push(format!("going on: {what}: {error}"));
            }
        };
        let content = Bytes::from(vec![7; 5000]);
        let extra = key("put after the damage");
        let put = store
            .put(&extra, content.clone(), PutOptions::default())
            .wait();
        if let Ok(put) = &put {
            let version = Version {
                lsn: put.version,
                content: Some(content),
                noted: false,
                made_of: Vec::new(),
            };
            expected.contents.insert(extra, version);
        }
        tolerate("put", put.map(drop));
        tolerate("compact", store.compact().map(drop));
        tolerate("checkpoint", store.checkpoint().map(drop));
        self.check(store, &expected, "going on", wrong);
        if let Err(error) = store.close() {
            wrong.push(format!("going on: close: {error}"));
        }
        match open(sim, Access::ReadWrite) {
            Ok(store) => {
                self.check(&store, &expected, "opened again", wrong);
                let health = store.info().health;
                if state == State::Mended && !health.is_empty() {
                    wrong.push(format!("opened again: not mended: {health:?}"));
                }
            }
            Err(error) if state == State::Ill && is_of_damage(&error) => {}
            Err(error) => wrong.push(format!("opened again: {error}")),
        }
    }
}

fn is_of_damage(error: &StorageError) -> bool {
    matches!(error.kind(), ErrorKind::Corruption | ErrorKind::Io)
}

/// How much verify finds.
fn verify(store: &Store, how: &str, wrong: &mut Vec<String>) -> usize {
    match store.verify(&mut |_| {}) {
        Ok(report) => report.findings.len(),
        Err(error) => {
            wrong.push(format!("{how}: verify: {error}"));
            0
        }
    }
}

/// Which bits of `region` are flipped at the byte that lies `at` bytes from its start, if all are
/// asked for. Of what is long and alike it is one of each byte, all eight in turn; of an image's
/// zeros, which are most of a small store, one of eight bytes unless the store is to be flipped
/// `whole`; of what nothing depends on, a sample.
fn bits_of(region: &Region, at: usize, whole: bool) -> Range<u8> {
    /// Of a record, the header and the first bytes of the key.
    const HEAD: usize = 64;
    let every = |step: usize| {
        let bit = u8::try_from(at / step % 8).unwrap_or(0);
        let bits = if at.is_multiple_of(step) { 1 } else { 0 };
        bit..bit + bits
    };
    match region.kind {
        Kind::Unused => every(4099),
        Kind::Reclaimed => every(127),
        Kind::Meaningless => every(17),
        Kind::ImagePadding => every(if whole { 1 } else { 8 }),
        Kind::FramePadding | Kind::SegmentHeaderPadding => every(1),
        Kind::Payload | Kind::Extents | Kind::Image if !whole => every(1),
        Kind::RecordHead if at >= HEAD => every(1),
        _ => 0..8,
    }
}

/// Every bit of everything that is in use, and a sample of the rest.
fn all_flips(case: &Case) -> impl Iterator<Item = Damage> + '_ {
    let sectors = case.layouts.iter().enumerate();
    let regions = sectors
        .flat_map(|(sector, layout)| layout.regions.iter().map(move |region| (sector, region)));
    let whole = case.plan.whole;
    regions.flat_map(move |(sector, region)| {
        (0..region.range.len()).flat_map(move |at| {
            let bits = bits_of(region, at, whole);
            bits.map(move |bit| flip(sector, region.range.start + at, bit))
        })
    })
}

fn flip(sector: usize, place: usize, bit: u8) -> Damage {
    Damage {
        sector,
        range: place..place + 1,
        what: What::Flip(bit),
        twice: false,
    }
}

/// So many flips: each kind of region has the same share, and in it each region.
fn some_flips(case: &Case, count: usize, random: &mut Random) -> Vec<Damage> {
    let mut kinds: BTreeMap<Kind, Vec<(usize, &Region)>> = BTreeMap::new();
    for (sector, layout) in case.layouts.iter().enumerate() {
        for region in &layout.regions {
            kinds.entry(region.kind).or_default().push((sector, region));
        }
    }
    let regions: Vec<_> = kinds.into_values().collect();
    let mut flips = Vec::new();
    for number in 0..count {
        let of_kind = &regions[number % regions.len()];
        let (sector, region) = of_kind[random.below(of_kind.len())];
        let place = region.range.start + random.below(region.range.len());
        let bit = u8::try_from(random.below(8)).expect("few bits");
        flips.push(flip(sector, place, bit));
    }
    flips
}

/// Every block in use, every pair of neighbours, and every area, overwritten in every way.
fn overwrites(case: &Case, random: &mut Random) -> Vec<Damage> {
    let block = case.plan.block_size as usize;
    // Blocks by what they begin with, to be put elsewhere.
    let mut kinds: BTreeMap<Kind, Vec<(usize, usize)>> = BTreeMap::new();
    let mut places: Vec<(usize, Range<usize>)> = Vec::new();
    let area = usize::try_from(AREA_SIZE).expect("it is in memory");
    for (sector, layout) in case.layouts.iter().enumerate() {
        let size = case.sectors[sector].len();
        let segment = usize::try_from(layout.geometry.segment_size).expect("it is in memory");
        let mut used: BTreeMap<usize, Kind> = BTreeMap::new();
        for region in &layout.regions {
            if matches!(region.kind, Kind::Unused | Kind::Reclaimed) {
                continue;
            }
            // Of the many blocks of zeros in images, a few.
            let step = if region.kind == Kind::ImagePadding {
                17
            } else {
                1
            };
            let blocks = region.range.start / block..region.range.end.div_ceil(block);
            for start in blocks.step_by(step).map(|number| number * block) {
                used.entry(start).or_insert(region.kind);
            }
        }
        let mut segments = BTreeSet::new();
        for (start, kind) in used {
            kinds.entry(kind).or_default().push((sector, start));
            places.push((sector, start..start + block));
            places.push((sector, start..(start + 2 * block).min(size)));
            if let Some((number, _)) = layout.geometry.segment_of(start as u64) {
                segments.insert(number);
            }
        }
        for number in segments {
            let start = usize::try_from(layout.geometry.segment_offset(number)).expect("in memory");
            places.push((sector, start..start + segment));
        }
        for base in [0, size - area] {
            places.push((sector, base..base + area));
            let slots = (1..3).map(|slot| base + slot * ROOT_SLOT_SIZE);
            places.extend(slots.map(|start| (sector, start..start + ROOT_SLOT_SIZE)));
        }
    }
    let mut damages = Vec::new();
    for (sector, range) in places {
        let mut ways = vec![
            What::Zeros,
            What::Ones,
            What::Noise(random.number()),
            What::Foreign,
            What::Unreadable,
        ];
        let mut seen = HashSet::new();
        let mut bytes = vec![0; range.len()];
        for (moment, image) in case.older.iter().enumerate() {
            image.read(sector, range.start, &mut bytes);
            if bytes != case.sectors[sector][range.clone()] && seen.insert(bytes.clone()) {
                ways.push(What::Older(moment));
            }
        }
        if range.len() == block {
            for (kind, blocks) in &kinds {
                let (sector, from) = blocks[random.below(blocks.len())];
                ways.push(What::Elsewhere(sector, from, *kind));
            }
        }
        damages.extend(ways.into_iter().map(|what| Damage {
            sector,
            range: range.clone(),
            what,
            twice: false,
        }));
    }
    // Both copies of a root, as they were at an earlier moment or not to be read.
    for sector in 0..case.layouts.len() {
        for slot in 1..3 {
            let range = slot * ROOT_SLOT_SIZE..(slot + 1) * ROOT_SLOT_SIZE;
            let ways = (0..case.older.len()).map(What::Older);
            damages.extend(ways.chain([What::Unreadable]).map(|what| Damage {
                sector,
                range: range.clone(),
                what,
                twice: true,
            }));
        }
    }
    damages
}

/// So many of `damages`, at random.
fn some(mut damages: Vec<Damage>, count: usize, random: &mut Random) -> Vec<Damage> {
    while damages.len() > count {
        damages.swap_remove(random.below(damages.len()));
    }
    damages
}

/// Takes no more memory than small stores need, in the whole process.
fn limit_memory() {
    static LIMITED: Once = Once::new();
    LIMITED.call_once(|| {
        use rustix::process::{Resource, getrlimit, setrlimit};
        let mut limit = getrlimit(Resource::Data);
        limit.current = Some(MEMORY_MAX);
        let limited = setrlimit(Resource::Data, limit).is_ok();
        let mut more: Vec<u8> = Vec::new();
        let length = usize::try_from(2 * MEMORY_MAX).expect("it fits");
        if !limited || black_box(&mut more).try_reserve_exact(length).is_ok() {
            skipped("nothing limits the memory of a process here");
        }
    });
}

/// Tries damages one by one, and fails with a list of what went wrong.
fn run(trials: &Trials, title: &str, damages: impl Iterator<Item = Damage>) {
    const SHOWN: usize = 40;
    let mut tallies: BTreeMap<Kind, Tally> = BTreeMap::new();
    let mut wrong: Vec<String> = Vec::new();
    let under_way: Mutex<(usize, Option<Damage>)> = Mutex::new((0, None));
    let (running, ends) = channel::<()>();
    let name = trials.case.plan.name;
    std::thread::scope(|scope| {
        let watched = &under_way;
        scope.spawn(move || {
            let mut last = usize::MAX;
            while let Err(RecvTimeoutError::Timeout) = ends.recv_timeout(HANG) {
                let (number, damage) = &*watched.lock();
                if *number == last {
                    eprintln!("{name}: it hangs: {damage:?}");
                    std::process::abort();
                }
                last = *number;
            }
        });
        for (number, damage) in damages.enumerate() {
            *under_way.lock() = (number, Some(damage.clone()));
            let outcome = catch_unwind(AssertUnwindSafe(|| trials.try_out(&damage, number)));
            let (tally, found) = outcome.unwrap_or_else(|_| {
                let tally = Tally {
                    tried: 1,
                    wrong: 1,
                    ..Tally::default()
                };
                (tally, vec!["it panicked".to_owned()])
            });
            let layout = &trials.case.layouts[damage.sector];
            let kind = layout
                .within(damage.range.clone())
                .next()
                .map(|region| region.kind);
            if let Some(first) = found.first() {
                let kinds: Vec<_> = layout
                    .within(damage.range.clone())
                    .map(|region| (region.kind, region.range.clone(), region.frame))
                    .collect();
                let more = found.len() - 1;
                if wrong.len() < SHOWN {
                    wrong.push(format!("{damage}, {kinds:?}: {first} (and {more} more)"));
                }
            }
            *tallies.entry(kind.unwrap_or(Kind::Unused)).or_default() += tally;
        }
        drop(running);
    });
    let mut sum = Tally::default();
    for (kind, tally) in &tallies {
        eprintln!("  {name}, {title}, {kind:?}: {tally}");
        sum += *tally;
    }
    println!("{name}: {title}: {sum}");
    assert!(
        wrong.is_empty(),
        "{name}: {title}: {} went wrong:\n{}",
        sum.wrong,
        wrong.join("\n")
    );
}

fn try_all(plan: Plan) {
    limit_memory();
    let case = Case::make(plan);
    let asked = std::env::var("GRAVITON_FLIPS").ok();
    let all = asked.as_deref() == Some("all");
    let count = match asked {
        Some(number) if !all => number.parse().expect("GRAVITON_FLIPS is a number or 'all'"),
        _ => TRIALS,
    };
    let seed = number_from("GRAVITON_SEED").unwrap_or(21);
    println!("{}: GRAVITON_SEED={seed}", plan.name);
    let mut random = Random::new(seed);
    let trials = Trials { case: &case, all };
    let overwrites = overwrites(&case, &mut random);
    if all {
        run(&trials, "overwrites", overwrites.into_iter());
        run(&trials, "flips", all_flips(&case));
    } else {
        let overwrites = some(overwrites, count, &mut random);
        run(&trials, "overwrites", overwrites.into_iter());
        run(
            &trials,
            "flips",
            some_flips(&case, count, &mut random).into_iter(),
        );
    }
}

#[test]
fn a_store_without_checkpoint() {
    try_all(Plan {
        name: "log",
        block_size: 512,
        sectors: 1,
        whole: true,
        killed: false,
        fill: |filler| {
            filler.mark();
            filler.generation(0);
            filler.mark();
            filler.put("at last", 50);
        },
    });
}

#[test]
fn a_store_with_checkpoints_and_a_log_behind_that_nothing_closed() {
    try_all(Plan {
        name: "killed",
        block_size: 512,
        sectors: 1,
        whole: false,
        killed: true,
        fill: |filler| {
            filler.generation(0);
            filler.checkpoint();
            filler.generation(1);
            filler.checkpoint();
            filler.put("behind", 50);
            filler.batch((0..3).map(|part| format!("batch {part}")), 25);
            filler.delete("small");
            filler.mark();
            filler.put("own 1", 100);
        },
    });
}

#[test]
fn a_store_whose_space_has_been_used_again() {
    try_all(Plan {
        name: "aged",
        block_size: 4096,
        sectors: 1,
        whole: false,
        killed: false,
        fill: |filler| {
            filler.generation(0);
            filler.churn(40);
            filler.generation(1);
            filler.compact();
            filler.churn(40);
            filler.alike(20);
            filler.checkpoint();
            filler.put("small", 70);
            filler.delete("batch 0");
            filler.mark();
            filler.put("at last", 500);
        },
    });
}

#[test]
fn a_log_that_goes_on_in_segments_that_were_used_before() {
    try_all(Plan {
        name: "wrapped",
        block_size: 512,
        sectors: 1,
        whole: false,
        killed: false,
        fill: |filler| {
            filler.generation(0);
            filler.churn(60);
            filler.churn(60);
            filler.compact();
            filler.alike(20);
            filler.checkpoint();
            filler.checkpoint();
            filler.mark();
            filler.alike(17);
            filler.put("small", 70);
        },
    });
}

#[test]
fn a_store_of_two_sectors() {
    try_all(Plan {
        name: "two sectors",
        block_size: 512,
        sectors: 2,
        whole: false,
        killed: false,
        fill: |filler| {
            filler.generation(0);
            filler.checkpoint();
            filler.generation(1);
            filler.checkpoint();
            filler.put("small", 10);
            filler.delete("own 0");
            filler.put("another", 50);
            filler.mark();
            filler.put("one more", 50);
        },
    });
}

#[test]
fn an_image_of_several_pages() {
    try_all(Plan {
        name: "pages",
        block_size: 4096,
        sectors: 1,
        whole: false,
        killed: false,
        fill: |filler| {
            for part in 0..2 {
                let name = |number| {
                    let random = Random::new(number).bytes(500);
                    let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
                    format!("{hex}{part}")
                };
                filler.batch((0..35).map(|number| name(number + 100 * part)), 8);
            }
            filler.checkpoint();
            filler.put("small", 10);
        },
    });
}

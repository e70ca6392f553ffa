//! Damage in every form to small stores: one byte flipped at every place of every structure (and
//! at a sample of the others), and whole blocks overwritten with zeros, ones, noise, and other
//! blocks of the same store.
//!
//! Whatever the damage, every answer is right or a typed error. A store never takes damage for
//! absence or age: no false "not found", no stale version; if it can't tell, it refuses to open.
//! Opened for salvage, it may, so that something is saved, but then its health says so. There is
//! never a panic and never a hang.
//!
//! `GRAVITON_FLIPS=all` damages everything there is to damage; a number instead says how many
//! places of each store are.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use bytes::Bytes;
use graviton_engine::port::{
    BinaryKey, BlobStore, CopyOptions, DeleteOptions, ErrorKind, GetOptions, PutOptions,
    StorageError,
};
use graviton_engine::store::{Access, CreateOptions, MIB, OpenOptions, SegmentState, Store};
use graviton_format::checkpoint::{CheckpointRoot, stored_image_length};
use graviton_format::frame::FrameHeader;
use graviton_format::geometry::ROOT_SLOT_SIZE;
use graviton_format::record::RecordView;
use graviton_format::segment::{KIND_LOG, SegmentHeader};
use graviton_format::superblock::Superblock;
use graviton_tests::random::Random;
use graviton_tests::{all_keys, buffered, memory_directory};

/// Places damaged in each store if `GRAVITON_FLIPS` does not say otherwise.
const PLACES: usize = 700;

/// What lies at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Superblock,
    Root,
    SegmentHeader,
    Image,
    FrameHeader,
    RecordHead,
    Payload,
    /// Zeros at the end of frames and images, and the checksums of an image's pages.
    Padding,
    /// Segments that hold nothing that is needed, and all else.
    Unused,
}

/// Bytes of one kind in one sector.
#[derive(Debug, Clone)]
struct Region {
    kind: Kind,
    sector: usize,
    range: Range<usize>,
    /// The last frame before the log's end: a note that what is before it is durable. Nothing is
    /// lost with it, and nothing says that it was there.
    last: bool,
}

/// A store as it lies on disk, with what it holds.
struct Case {
    name: &'static str,
    catalog: String,
    block_size: usize,
    sectors: Vec<Vec<u8>>,
    /// Every version each key ever had; the last is what it has now, `None` when it is deleted.
    history: BTreeMap<BinaryKey, Vec<Option<Bytes>>>,
    regions: Vec<Region>,
}

/// Fills a store, keeping record of what it holds.
struct Filler {
    store: Store,
    random: Random,
    history: BTreeMap<BinaryKey, Vec<Option<Bytes>>>,
}

fn key(name: impl Into<Vec<u8>>) -> BinaryKey {
    BinaryKey::new(name.into()).expect("a good key")
}

impl Filler {
    fn put(&mut self, name: &str, length: usize) {
        let content = Bytes::from(self.random.bytes(length));
        let mut options = PutOptions::default();
        if length.is_multiple_of(3) {
            let value = Bytes::from(format!("{length} bytes"));
            options.attributes.insert("note".to_owned(), value);
        }
        self.store
            .put(&key(name), content.clone(), options)
            .wait()
            .expect("a put works");
        self.remember(key(name), Some(content));
    }

    fn remember(&mut self, key: BinaryKey, content: Option<Bytes>) {
        self.history.entry(key).or_default().push(content);
    }

    fn delete(&mut self, name: &str) {
        self.store
            .delete(&key(name), DeleteOptions::default())
            .wait()
            .expect("a delete works");
        self.remember(key(name), None);
    }

    fn copy(&mut self, source: &str, target: &str) {
        self.store
            .copy(&key(source), &key(target), CopyOptions::default())
            .wait()
            .expect("a copy works");
        let content = self.history[&key(source)]
            .last()
            .expect("it is known")
            .clone();
        self.remember(key(target), content);
    }

    fn rename(&mut self, source: &str, target: &str) {
        self.store
            .rename(&key(source), &key(target), CopyOptions::default())
            .wait()
            .expect("a rename works");
        let content = self.history[&key(source)]
            .last()
            .expect("it is known")
            .clone();
        self.remember(key(target), content);
        self.remember(key(source), None);
    }

    /// A few dozen blobs: of every size that matters, overwritten, deleted, copied, renamed.
    fn generation(&mut self, number: usize) {
        let sizes = [0, 1, 100, 4087, 4088, 4089, 10_000, 30_000, 70_000, 150_000];
        for (position, size) in sizes.into_iter().enumerate() {
            self.put(&format!("{position}"), size + number);
            self.put(&format!("{position} of {number}"), size);
        }
        self.put(&format!("batch {number}"), 300);
        self.copy("7", &format!("copy of small {number}"));
        self.copy("8", &format!("copy of large {number}"));
        self.delete(&format!("2 of {number}"));
        self.delete(&format!("8 of {number}"));
        self.rename(&format!("5 of {number}"), &format!("renamed {number}"));
        self.rename(&format!("9 of {number}"), "renamed large");
        self.put("0", 50 + number);
        self.delete("1");
        self.delete(&format!("never there {number}"));
    }
}

/// Makes a store by `fill`, closes it, and reads it back as bytes.
fn make(name: &'static str, options: CreateOptions, fill: impl FnOnce(&mut Filler)) -> Case {
    let directory = memory_directory();
    let path = directory.path().join("store");
    let store = Store::create(&path, options).expect("a store can be made");
    let mut filler = Filler {
        store,
        random: Random::new(11),
        history: BTreeMap::new(),
    };
    fill(&mut filler);
    let Filler { store, history, .. } = filler;
    let count = store.info().sectors.len();
    store.close().expect("it closes");
    let read = |number: usize| fs::read(sector_path(&path, number)).expect("a sector can be read");
    let sectors: Vec<Vec<u8>> = (0..count).map(read).collect();
    let catalog = fs::read_to_string(path.join("graviton.toml")).expect("it can be read");
    let store = Store::open_with(
        &path,
        OpenOptions {
            io: buffered(),
            ..OpenOptions::read_only()
        },
    );
    let store = store.expect("it opens again");
    let regions = (0..count)
        .flat_map(|number| regions(number, &sectors[number], &store))
        .collect();
    let block_size = store.info().sectors[0].block_size as usize;
    Case {
        name,
        catalog,
        block_size,
        sectors,
        history,
        regions,
    }
}

fn sector_path(store: &Path, number: usize) -> std::path::PathBuf {
    store.join(format!("sector-{number:03}.graviton"))
}

fn options(sectors: u16, block_size: u32) -> CreateOptions {
    let open = OpenOptions {
        io: buffered(),
        background: false,
        ..OpenOptions::default()
    };
    CreateOptions {
        sectors,
        sector_size: 4 * MIB,
        block_size: Some(block_size),
        open,
        ..CreateOptions::default()
    }
}

/// What lies where, found by the format's own decoders.
fn regions(number: usize, sector: &[u8], store: &Store) -> Vec<Region> {
    let superblock = Superblock::decode(sector, 0).expect("a superblock");
    let (identity, geometry) = (superblock.identity(), superblock.geometry());
    let at = |address: u64| usize::try_from(address).expect("it is in memory");
    let block = geometry.block_size as usize;
    let mut regions = Vec::new();
    let mut add = |kind: Kind, start: usize, length: usize, last: bool| {
        let range = start..start + length;
        regions.push(Region {
            kind,
            sector: number,
            range,
            last,
        });
    };
    for address in geometry.superblocks() {
        add(Kind::Superblock, at(address), 512, false);
    }
    for address in [0, 1].into_iter().flat_map(|slot| geometry.roots(slot)) {
        let slot = &sector[at(address)..][..ROOT_SLOT_SIZE];
        let Ok((root, segments)) = CheckpointRoot::decode(slot, &identity, &geometry, address)
        else {
            continue;
        };
        add(Kind::Root, at(address), 128 + 4 * segments.len(), false);
        let image_length = root.image_length.get();
        let mut left = at(stored_image_length(image_length).expect("a length"));
        // All but the zeros that fill up its last page.
        let mut filled = at(image_length);
        if at(address) > sector.len() / 2 {
            continue;
        }
        for segment in segments {
            let base = at(geometry.segment_offset(segment));
            add(Kind::SegmentHeader, base, 128, false);
            let here = left.min(at(geometry.image_bytes_per_segment()));
            let filled_here = filled.min(here);
            add(Kind::Image, base + block, filled_here, false);
            add(
                Kind::Padding,
                base + block + filled_here,
                here - filled_here,
                false,
            );
            (left, filled) = (left - here, filled - filled_here);
        }
    }
    let sector_number = u16::try_from(number).expect("few sectors");
    let used: Vec<_> = store
        .segments(sector_number)
        .into_iter()
        .filter(|segment| matches!(segment.state, SegmentState::Open | SegmentState::Sealed))
        .collect();
    for info in used {
        let base = at(geometry.segment_offset(info.index));
        let header = SegmentHeader::decode(&sector[base..], &identity, &geometry, info.index);
        let header = header.expect("a segment in use has a header");
        assert_eq!(header.kind, KIND_LOG);
        let end = at(info.written);
        let open = info.state == SegmentState::Open;
        let mut offset = block;
        let first = FrameHeader::decode(
            &sector[base + offset..],
            &identity,
            &geometry,
            (base + offset) as u64,
        );
        let only = first.is_ok_and(|frame| offset + frame.length.get() as usize >= end);
        add(Kind::SegmentHeader, base, 128, open && only);
        while offset < end {
            let start = base + offset;
            let frame = FrameHeader::decode(&sector[start..], &identity, &geometry, start as u64);
            let frame = frame.expect("frames follow each other");
            let (length, used) = (frame.length.get() as usize, frame.used.get() as usize);
            let last = open && offset + length >= end;
            add(Kind::FrameHeader, start, 64, last);
            let mut position = 64;
            while position < used {
                let bytes = &sector[start + position..start + used];
                let record =
                    RecordView::decode(bytes, &identity, &geometry, (start + position) as u64);
                let record = record.expect("records follow each other");
                let (head, whole) = (record.payload_offset(), at(record.length()));
                add(Kind::RecordHead, start + position, head, last);
                add(Kind::Payload, start + position + head, whole - head, last);
                position += whole;
            }
            add(Kind::Padding, start + used, length - used, last);
            offset += length;
        }
    }
    regions.sort_by_key(|region| region.range.start);
    // All between is unused.
    let mut all = Vec::new();
    let mut end = 0;
    for region in regions {
        if region.range.start > end {
            let range = end..region.range.start;
            all.push(Region {
                kind: Kind::Unused,
                sector: number,
                range,
                last: false,
            });
        }
        end = end.max(region.range.end);
        all.push(region);
    }
    all.push(Region {
        kind: Kind::Unused,
        sector: number,
        range: end..sector.len(),
        last: false,
    });
    all
}

/// What is done to a store.
#[derive(Debug, Clone)]
struct Damage {
    region: Region,
    place: usize,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Flip(u8),
    Zeros(usize),
    Ones(usize),
    Noise(usize, u64),
    /// Another block, of this sector.
    Block(usize, usize),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Region {
            kind,
            sector,
            range,
            ..
        } = &self.region;
        write!(
            f,
            "{:?} at {} of sector {sector} ({kind:?} {range:?})",
            self.what, self.place
        )
    }
}

impl Damage {
    /// The bytes from `place` on that it writes.
    fn bytes(&self, sector: &[u8]) -> Vec<u8> {
        match self.what {
            What::Flip(mask) => vec![sector[self.place] ^ mask],
            What::Zeros(length) => vec![0; length],
            What::Ones(length) => vec![0xff; length],
            What::Noise(length, seed) => Random::new(seed).bytes(length),
            What::Block(length, from) => sector[from..from + length].to_vec(),
        }
    }
}

/// How many places are damaged; `None`: all.
fn places() -> Option<usize> {
    match std::env::var("GRAVITON_FLIPS") {
        Ok(all) if all == "all" => None,
        Ok(number) => Some(number.parse().expect("GRAVITON_FLIPS is a number or 'all'")),
        Err(_) => Some(PLACES),
    }
}

/// The flips: every byte of every structure, and a sample of the rest; of these, so many as were
/// asked for.
fn flips(case: &Case) -> Vec<Damage> {
    let mut random = Random::new(21);
    let mut damages = Vec::new();
    for region in &case.regions {
        let step = match region.kind {
            Kind::Payload => 509,
            Kind::Unused => 4093,
            Kind::Padding => 97,
            _ => 1,
        };
        for place in region.range.clone().step_by(step) {
            // Often one bit, else any.
            let mask = match random.below(2) {
                0 => 1 << random.below(8),
                _ => u8::try_from(1 + random.below(255)).expect("a byte"),
            };
            damages.push(Damage {
                region: region.clone(),
                place,
                what: What::Flip(mask),
            });
        }
    }
    thin(damages, places())
}

fn thin(damages: Vec<Damage>, most: Option<usize>) -> Vec<Damage> {
    let Some(most) = most.filter(|&most| most < damages.len()) else {
        return damages;
    };
    // An even choice: every region keeps its share.
    let count = damages.len();
    let chosen = (0..most).map(|position| position * count / most);
    chosen.map(|position| damages[position].clone()).collect()
}

/// Whole blocks, of everything that is in use.
fn blocks(case: &Case) -> Vec<Damage> {
    let mut random = Random::new(22);
    let size = case.block_size;
    let mut damages = Vec::new();
    for (number, sector) in case.sectors.iter().enumerate() {
        let mut used: BTreeMap<usize, Region> = BTreeMap::new();
        let parts = case
            .regions
            .iter()
            .filter(|region| region.sector == number && region.kind != Kind::Unused);
        for region in parts {
            for block in region.range.start / size..region.range.end.div_ceil(size) {
                used.entry(block * size).or_insert_with(|| region.clone());
            }
        }
        let places: Vec<usize> = used.keys().copied().collect();
        for (place, region) in used {
            let other = loop {
                let other = places[random.below(places.len())];
                if sector[other..][..size] != sector[place..][..size] {
                    break other;
                }
            };
            let noise = What::Noise(size, random.number());
            for what in [
                What::Zeros(size),
                What::Ones(size),
                noise,
                What::Block(size, other),
            ] {
                let damage = Damage {
                    region: region.clone(),
                    place,
                    what,
                };
                if damage.bytes(sector) != sector[place..][..size] {
                    damages.push(damage);
                }
            }
        }
    }
    thin(damages, places().map(|places| places / 3))
}

/// A place of its own for each worker, in which the store lies.
struct Bench<'a> {
    case: &'a Case,
    directory: tempfile::TempDir,
    files: Vec<File>,
}

impl<'a> Bench<'a> {
    fn new(case: &'a Case) -> Self {
        let directory = memory_directory();
        let store = directory.path().join("store");
        fs::create_dir(&store).expect("made");
        fs::write(store.join("graviton.toml"), &case.catalog).expect("written");
        let made = |number| File::create(sector_path(&store, number)).expect("made");
        let files = (0..case.sectors.len()).map(made).collect();
        Self {
            case,
            directory,
            files,
        }
    }

    fn store(&self) -> std::path::PathBuf {
        self.directory.path().join("store")
    }

    fn restore(&self, damage: &Damage) {
        for (file, sector) in self.files.iter().zip(&self.case.sectors) {
            file.write_all_at(sector, 0).expect("written");
        }
        let number = damage.region.sector;
        let bytes = damage.bytes(&self.case.sectors[number]);
        self.files[number]
            .write_all_at(&bytes, damage.place as u64)
            .expect("written");
    }

    fn open(&self, access: Access) -> Result<Store, StorageError> {
        Store::open_with(
            self.store(),
            OpenOptions {
                access,
                io: buffered(),
                background: false,
                ..OpenOptions::default()
            },
        )
    }

    /// Tries everything on a store with this damage. Returns what it should not have done, and
    /// notes in `seen` what it did.
    fn try_out(&self, damage: &Damage, deep: bool, seen: &mut Seen) -> Vec<String> {
        let mut wrong = Vec::new();
        self.restore(damage);
        match self.open(Access::Salvage) {
            Ok(store) => {
                let ill = !store.info().health.is_empty();
                let errors = self.check(&store, ill, "salvage", &mut wrong);
                seen.lost = seen.lost.max(errors);
                let report = store
                    .verify(&mut |_| {})
                    .expect("verify reports damage, it does not fail");
                let found = ill || !report.findings.is_empty();
                seen.undetected += usize::from(!found);
                let harmless = match damage.region.kind {
                    Kind::Unused => true,
                    // Of two copies one may be missing: a checkpoint may have been cut short.
                    Kind::Root => !matches!(damage.what, What::Flip(_)),
                    _ => damage.region.last,
                };
                if !found && !harmless {
                    wrong.push("salvage: verify finds nothing".to_owned());
                }
            }
            Err(error) => wrong.push(format!("salvage: does not open: {error}")),
        }
        match self.open(Access::ReadOnly) {
            Ok(store) => drop(self.check(&store, false, "read-only", &mut wrong)),
            Err(StorageError::Corruption { .. }) => {}
            Err(error) => wrong.push(format!("read-only: does not open: {error}")),
        }
        match self.open(Access::ReadWrite) {
            Ok(store) => {
                self.check(&store, false, "writing", &mut wrong);
                if deep {
                    self.go_on(store, &mut wrong);
                }
            }
            Err(StorageError::Corruption { .. }) => seen.refused += 1,
            Err(error) => wrong.push(format!("writing: does not open: {error}")),
        }
        wrong
    }

    /// Asks for every key. Returns how many could not be had.
    fn check(&self, store: &Store, lenient: bool, how: &str, wrong: &mut Vec<String>) -> usize {
        let mut errors = 0;
        let mut listed_right = true;
        let listed = all_keys(store);
        for (key, history) in &self.case.history {
            let now = history.last().expect("a version");
            let right = |found: &Option<Bytes>| {
                found == now || (lenient && (found.is_none() || history.contains(found)))
            };
            let got = match store.get(key, GetOptions::default()).wait() {
                Ok(blob) => Some(Some(blob.bytes)),
                Err(StorageError::NotFound { .. }) => Some(None),
                Err(error) if error.kind() == ErrorKind::Corruption => None,
                Err(error) => {
                    wrong.push(format!("{how}: get {key}: {error}"));
                    None
                }
            };
            errors += usize::from(got.as_ref() != Some(now));
            if let Some(found) = &got
                && !right(found)
            {
                let (found, now) = (found.as_ref().map(Bytes::len), now.as_ref().map(Bytes::len));
                wrong.push(format!("{how}: get {key}: {found:?} bytes, it has {now:?}"));
            }
            let sizes: Vec<Option<usize>> = history
                .iter()
                .map(|version| version.as_ref().map(Bytes::len))
                .collect();
            let size_now = now.as_ref().map(Bytes::len);
            let stat = match store.stat(key).wait() {
                Ok(info) => Some(usize::try_from(info.size).ok()),
                Err(StorageError::NotFound { .. }) => Some(None),
                Err(error) if error.kind() == ErrorKind::Corruption => None,
                Err(error) => {
                    wrong.push(format!("{how}: stat {key}: {error}"));
                    None
                }
            };
            if let Some(size) = stat
                && size != size_now
                && !(lenient && (size.is_none() || sizes.contains(&size)))
            {
                wrong.push(format!(
                    "{how}: stat {key}: {size:?} bytes, it has {size_now:?}"
                ));
            }
            let exists = store.exists(key).wait().ok();
            if exists.is_some_and(|exists| exists != now.is_some() && !lenient) {
                wrong.push(format!("{how}: exists {key}: {exists:?}"));
            }
            if let Ok(listed) = &listed {
                listed_right &= listed.contains(key) == now.is_some();
            }
        }
        match listed {
            Ok(keys) => {
                let known = keys.iter().all(|key| self.case.history.contains_key(key));
                if !(lenient || listed_right && known) {
                    wrong.push(format!("{how}: lists other keys than it has"));
                }
            }
            Err(error) if error.kind() == ErrorKind::Corruption => {}
            Err(error) => wrong.push(format!("{how}: list: {error}")),
        }
        errors
    }

    /// Life goes on: writes, checkpoints and compaction on top of the damage make nothing worse.
    fn go_on(&self, store: Store, wrong: &mut Vec<String>) {
        let mut tolerate = |what: &str, outcome: Result<(), StorageError>| {
            if let Err(error) = outcome
                && error.kind() != ErrorKind::Corruption
            {
                wrong.push(format!("going on: {what}: {error}"));
            }
        };
        let extra = key("put after the damage");
        let content = Bytes::from(vec![7; 20_000]);
        tolerate(
            "put",
            store
                .put(&extra, content.clone(), PutOptions::default())
                .wait()
                .map(drop),
        );
        tolerate("compact", store.compact().map(drop));
        tolerate("checkpoint", store.checkpoint().map(drop));
        match store.get(&extra, GetOptions::default()).wait() {
            Ok(blob) if blob.bytes == content => {}
            outcome => wrong.push(format!("going on: what was put just now: {outcome:?}")),
        }
        self.check_but(&store, &extra, "going on", wrong);
        if let Err(error) = store.close() {
            wrong.push(format!("going on: close: {error}"));
        }
        match self.open(Access::ReadWrite) {
            Ok(store) => self.check_but(&store, &extra, "opened again", wrong),
            Err(StorageError::Corruption { .. }) => {}
            Err(error) => wrong.push(format!("opened again: {error}")),
        }
    }

    fn check_but(&self, store: &Store, extra: &BinaryKey, how: &str, wrong: &mut Vec<String>) {
        let mut found = Vec::new();
        self.check(store, false, how, &mut found);
        // There is one key more than there was.
        let listed = all_keys(store).is_ok_and(|keys| {
            let now = |key: &BinaryKey| {
                self.case
                    .history
                    .get(key)
                    .and_then(|history| history.last()?.as_ref())
            };
            let live = self
                .case
                .history
                .keys()
                .filter(|key| now(key).is_some())
                .count();
            keys.len() == live + 1 && keys.iter().all(|key| key == extra || now(key).is_some())
        });
        found.retain(|wrong| !(listed && wrong.contains("lists other keys")));
        wrong.extend(found);
    }
}

/// What was seen of damage to one kind of region.
#[derive(Debug, Default, Clone)]
struct Seen {
    tried: usize,
    /// Not opened for writing.
    refused: usize,
    /// The most keys that could not be had.
    lost: usize,
    undetected: usize,
}

/// Tries all the damages, on all processors, and fails with a list of what went wrong.
fn run(case: &Case, damages: &[Damage]) {
    /// After so long without an end of any trial, something hangs.
    const HANG: Duration = Duration::from_secs(120);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let wrong: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let seen: Mutex<BTreeMap<Kind, Seen>> = Mutex::new(BTreeMap::new());
    let (ended, ends) = channel::<()>();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            let ended = ended.clone();
            let (next, wrong, seen) = (&next, &wrong, &seen);
            scope.spawn(move || {
                let bench = Bench::new(case);
                loop {
                    let position = next.fetch_add(1, Ordering::Relaxed);
                    let Some(damage) = damages.get(position) else {
                        return;
                    };
                    let mut here = seen
                        .lock()
                        .expect("not poisoned")
                        .get(&damage.region.kind)
                        .cloned()
                        .unwrap_or_default();
                    let (mut refused, mut undetected) = (here.refused, here.undetected);
                    let deep = position % 5 == 0;
                    let outcome =
                        catch_unwind(AssertUnwindSafe(|| bench.try_out(damage, deep, &mut here)));
                    (refused, undetected) = (here.refused - refused, here.undetected - undetected);
                    {
                        let mut seen = seen.lock().expect("not poisoned");
                        let all = seen.entry(damage.region.kind).or_default();
                        all.tried += 1;
                        all.refused += refused;
                        all.undetected += undetected;
                        all.lost = all.lost.max(here.lost);
                    }
                    let found = outcome.unwrap_or_else(|_| vec!["it panicked".to_owned()]);
                    if !found.is_empty() {
                        let more = found.len() - 1;
                        let line = format!("{damage}: {} (and {more} more)", found[0]);
                        wrong.lock().expect("not poisoned").push(line);
                    }
                    ended.send(()).expect("it is listened to");
                }
            });
        }
        drop(ended);
        loop {
            match ends.recv_timeout(HANG) {
                Ok(()) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    let position = next.load(Ordering::Relaxed);
                    let under_way = &damages[position.saturating_sub(workers).min(damages.len())
                        ..position.min(damages.len())];
                    eprintln!("{}: it hangs, in one of:", case.name);
                    under_way.iter().for_each(|damage| eprintln!("  {damage}"));
                    std::process::abort();
                }
            }
        }
    });
    let count = damages.len();
    eprintln!("{}: {count} damages", case.name);
    for (kind, seen) in seen.into_inner().expect("not poisoned") {
        eprintln!("  {kind:?}: {seen:?}");
    }
    let wrong = wrong.into_inner().expect("not poisoned");
    let shown: Vec<&str> = wrong.iter().take(40).map(String::as_str).collect();
    assert!(
        wrong.is_empty(),
        "{}: {} of {count} went wrong:\n{}",
        case.name,
        wrong.len(),
        shown.join("\n")
    );
}

fn all(case: &Case) {
    run(case, &flips(case));
    run(case, &blocks(case));
}

#[test]
fn a_store_without_checkpoint() {
    all(&make("log", options(1, 4096), |filler| {
        filler.generation(0)
    }));
}

#[test]
fn a_store_with_checkpoints_and_a_log_behind() {
    all(&make("checkpoints", options(1, 512), |filler| {
        filler.generation(0);
        filler.store.checkpoint().expect("a checkpoint");
        filler.generation(1);
        filler.store.checkpoint().expect("a checkpoint");
        filler.generation(2);
    }));
}

#[test]
fn a_store_whose_space_has_been_used_again() {
    all(&make("aged", options(1, 4096), |filler| {
        for number in 0..14 {
            filler.generation(number % 3);
            while filler.store.step().expect("maintenance") {}
            if number % 4 == 3 {
                filler.store.compact().expect("compaction");
            }
        }
        filler.put("at last", 12_345);
    }));
}

#[test]
fn a_store_of_two_sectors() {
    all(&make("two sectors", options(2, 4096), |filler| {
        for number in 0..4 {
            filler.generation(number % 2);
            while filler.store.step().expect("maintenance") {}
        }
        filler.store.checkpoint().expect("a checkpoint");
        filler.generation(2);
    }));
}

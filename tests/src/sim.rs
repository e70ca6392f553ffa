//! Simulated disks that remember: every write and sync in order, from which the state of the disk
//! after a power loss at any moment is made; and that fail when they are told to.
//!
//! What a device may do to a write that is not durable is taken from the assumptions of the
//! format: it is there, or not, or in part, in units of 512 bytes, independent of all others.
//!
//! Writes and syncs are carried out when a waiting thread drives them, one at a time, in an order
//! that the seed decides: what is submitted without waiting is in flight together.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use graviton_engine::io::{
    AlignedBuf, Backend, Completer, CompletionSource, Disk, DiskInfo, IoOp, Lock, OpenAccess,
    WriteSync,
};
use graviton_engine::port::op::{Driver, Signal};
use graviton_engine::sync::Mutex;

use crate::random::Random;

/// Bytes a device writes as a whole.
const UNIT: usize = 512;
/// Bytes of a piece of a disk that images share.
const PIECE: usize = 16 << 10;

/// The bytes of one disk. Cloning shares what is not changed.
#[derive(Debug, Clone)]
struct Medium {
    pieces: Vec<Arc<[u8]>>,
    size: usize,
}

impl Medium {
    fn new(size: usize) -> Self {
        let zeros: Arc<[u8]> = vec![0; PIECE].into();
        Self {
            pieces: vec![zeros; size.div_ceil(PIECE)],
            size,
        }
    }

    fn write(&mut self, mut offset: usize, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let within = offset % PIECE;
            let (now, later) = bytes.split_at(bytes.len().min(PIECE - within));
            let piece = Arc::make_mut(&mut self.pieces[offset / PIECE]);
            piece[within..within + now.len()].copy_from_slice(now);
            offset += now.len();
            bytes = later;
        }
    }

    fn read(&self, mut offset: usize, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let within = offset % PIECE;
            let (now, later) = bytes.split_at_mut(bytes.len().min(PIECE - within));
            now.copy_from_slice(&self.pieces[offset / PIECE][within..within + now.len()]);
            offset += now.len();
            bytes = later;
        }
    }
}

/// Everything a machine finds when it comes up again.
#[derive(Debug, Clone, Default)]
pub struct Image {
    disks: Vec<(PathBuf, Medium)>,
    files: BTreeMap<PathBuf, Vec<u8>>,
}

/// A write as the device saw it.
#[derive(Debug, Clone)]
struct Written {
    disk: usize,
    offset: usize,
    bytes: Arc<[u8]>,
    /// Durable by itself.
    durable: bool,
    /// Answered with an error: nothing ever makes it certain.
    failed: bool,
    /// How many events were recorded when it was submitted.
    submitted: usize,
}

impl Written {
    fn overlaps(&self, other: &Self) -> bool {
        self.disk == other.disk
            && self.offset < other.offset + other.bytes.len()
            && other.offset < self.offset + self.bytes.len()
    }
}

#[derive(Debug, Clone)]
enum Event {
    Write(Written),
    Sync { disk: usize, failed: bool },
}

/// What becomes of the writes that were not durable when the power failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// All are lost.
    All,
    /// None is lost.
    Nothing,
    /// The first so many stay.
    KeepFirst(usize),
    /// The first so many are lost.
    LoseFirst(usize),
    /// Each is kept, lost or torn, as the seed has it.
    Random(u64),
}

/// A write in doubt.
#[derive(Debug, Clone)]
struct Doubt {
    write: Written,
    certain: bool,
    doomed: bool,
}

/// Builds images along a recording, event by event.
#[derive(Debug)]
pub struct Crasher {
    events: Vec<Event>,
    files: BTreeMap<PathBuf, Vec<u8>>,
    paths: Vec<PathBuf>,
    /// What is certain on each disk at `position`.
    base: Vec<Medium>,
    doubts: Vec<Doubt>,
    position: usize,
}

impl Crasher {
    /// How many events were recorded.
    #[must_use]
    pub fn events(&self) -> usize {
        self.events.len()
    }

    /// Goes on to the moment before event `position`, which is not before the one it is at.
    pub fn advance(&mut self, position: usize) {
        while self.position < position {
            match self.events[self.position].clone() {
                Event::Write(write) => {
                    let certain = write.durable && !write.failed;
                    let doomed = write.failed;
                    self.doubts.push(Doubt {
                        write,
                        certain,
                        doomed,
                    });
                }
                Event::Sync {
                    disk,
                    failed: false,
                } => {
                    let these = self
                        .doubts
                        .iter_mut()
                        .filter(|doubt| doubt.write.disk == disk);
                    these.for_each(|doubt| doubt.certain |= !doubt.doomed);
                }
                // The system takes the pages for clean now: no later sync writes them.
                Event::Sync { disk, failed: true } => {
                    let these = self
                        .doubts
                        .iter_mut()
                        .filter(|doubt| doubt.write.disk == disk);
                    these.for_each(|doubt| doubt.doomed |= !doubt.certain);
                }
            }
            self.position += 1;
            self.settle();
        }
    }

    /// Certain writes with no doubtful one under them become part of the base.
    fn settle(&mut self) {
        let mut left: Vec<Doubt> = Vec::new();
        for doubt in self.doubts.drain(..) {
            let covered = left.iter().any(|other| other.write.overlaps(&doubt.write));
            if doubt.certain && !covered {
                self.base[doubt.write.disk].write(doubt.write.offset, &doubt.write.bytes);
            } else {
                left.push(doubt);
            }
        }
        self.doubts = left;
    }

    /// The writes that may or may not be there: those in doubt, and those in flight.
    fn in_doubt(&self) -> Vec<(&Written, bool)> {
        /// No more than this many are ever in flight.
        const LOOK_AHEAD: usize = 24;
        let ahead = self.events.iter().skip(self.position).take(LOOK_AHEAD);
        let in_flight = ahead.filter_map(|event| match event {
            Event::Write(write) if write.submitted <= self.position => Some((write, false)),
            _ => None,
        });
        let known = self
            .doubts
            .iter()
            .map(|doubt| (&doubt.write, doubt.certain));
        known.chain(in_flight).collect()
    }

    /// How many writes are in doubt here.
    #[must_use]
    pub fn doubts(&self) -> usize {
        self.in_doubt()
            .iter()
            .filter(|(_, certain)| !certain)
            .count()
    }

    /// What a machine finds if the power fails here.
    #[must_use]
    pub fn image(&self, loss: Loss) -> Image {
        let mut media = self.base.clone();
        let mut random = Random::new(match loss {
            Loss::Random(seed) => seed,
            _ => 0,
        });
        let mut number = 0;
        for (write, certain) in self.in_doubt() {
            let medium = &mut media[write.disk];
            if certain {
                medium.write(write.offset, &write.bytes);
                continue;
            }
            let kept = match loss {
                Loss::All => false,
                Loss::Nothing => true,
                Loss::KeepFirst(count) => number < count,
                Loss::LoseFirst(count) => number >= count,
                Loss::Random(_) => match random.below(3) {
                    0 => false,
                    1 => true,
                    _ => {
                        tear(medium, write, &mut random);
                        false
                    }
                },
            };
            if kept {
                medium.write(write.offset, &write.bytes);
            }
            number += 1;
        }
        Image {
            disks: self.paths.iter().cloned().zip(media).collect(),
            files: self.files.clone(),
        }
    }
}

/// Writes some units of a write: the first few, the last few, or any.
fn tear(medium: &mut Medium, write: &Written, random: &mut Random) {
    let units = write.bytes.len() / UNIT;
    let at = random.below(units + 1);
    let how = random.below(3);
    for unit in 0..units {
        let kept = match how {
            0 => unit < at,
            1 => unit >= at,
            _ => random.one_in(2),
        };
        if kept {
            let start = unit * UNIT;
            medium.write(write.offset + start, &write.bytes[start..start + UNIT]);
        }
    }
}

/// What a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Syncs, and the writes that are durable by themselves.
    Sync,
}

/// A fault: calls of a kind fail with EIO from the `after`-th on, counted from 0.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// What it hits.
    pub kind: FaultKind,
    /// How many calls succeed first.
    pub after: usize,
    /// How many calls fail then.
    pub times: usize,
    /// The disk that it hits; `None`: all.
    pub disk: Option<usize>,
}

#[derive(Debug)]
struct State {
    disks: Vec<(PathBuf, Medium)>,
    files: BTreeMap<PathBuf, Vec<u8>>,
    locked: BTreeSet<PathBuf>,
    events: Vec<Event>,
    recording: bool,
    /// Where the recording begins.
    base: Vec<Medium>,
    queue: VecDeque<Request>,
    random: Random,
    faults: Vec<Fault>,
    /// Calls that were hit by a fault.
    failures: usize,
    /// Bytes written in all.
    written: usize,
}

#[derive(Debug)]
struct Request {
    disk: usize,
    /// `None` for a sync.
    write: Option<(AlignedBuf, usize, WriteSync)>,
    submitted: usize,
    completer: Completer,
}

impl State {
    fn fails(&mut self, kind: FaultKind, disk: usize) -> bool {
        let mut fails = false;
        for fault in &mut self.faults {
            if fault.kind != kind || fault.disk.is_some_and(|only| only != disk) {
                continue;
            }
            if fault.after > 0 {
                fault.after -= 1;
            } else if fault.times > 0 {
                fault.times = fault.times.saturating_sub(1);
                fails = true;
            }
        }
        self.failures += usize::from(fails);
        fails
    }

    fn record(&mut self, event: Event) {
        if self.recording {
            self.events.push(event);
        }
    }

    /// Carries a request out. The caller completes it, with no lock held.
    fn execute(&mut self, request: Request) -> (Completer, AlignedBuf, io::Result<()>) {
        let Request {
            disk,
            write,
            submitted,
            completer,
        } = request;
        let Some((buffer, offset, sync)) = write else {
            let failed = self.fails(FaultKind::Sync, disk);
            self.record(Event::Sync { disk, failed });
            return (completer, AlignedBuf::empty(), outcome(failed));
        };
        let durable = sync == WriteSync::Data;
        let failed =
            self.fails(FaultKind::Write, disk) || (durable && self.fails(FaultKind::Sync, disk));
        self.written += buffer.len();
        let bytes: Arc<[u8]> = buffer[..].into();
        let there = if failed {
            bytes.len() / 2 / UNIT * UNIT
        } else {
            bytes.len()
        };
        self.disks[disk].1.write(offset, &bytes[..there]);
        self.record(Event::Write(Written {
            disk,
            offset,
            bytes,
            durable,
            failed,
            submitted,
        }));
        (completer, buffer, outcome(failed))
    }
}

/// EIO.
fn outcome(failed: bool) -> io::Result<()> {
    if failed {
        return Err(io::Error::from_raw_os_error(5));
    }
    Ok(())
}

/// A machine with simulated disks.
#[derive(Debug, Clone)]
pub struct Sim {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    block_size: u32,
}

impl Shared {
    /// Carries out one request; `false` if there is none.
    fn progress(&self) -> bool {
        let executed = {
            let mut state = self.state.lock();
            let count = state.queue.len();
            if count == 0 {
                return false;
            }
            let chosen = state.random.below(count);
            let Some(request) = state.queue.remove(chosen) else {
                return false;
            };
            state.execute(request)
        };
        let (completer, buffer, outcome) = executed;
        completer.complete(buffer, outcome);
        true
    }
}

impl Driver for Shared {
    fn drive(&self, signal: &Signal) {
        while !signal.is_raised() {
            if !self.progress() {
                return signal.park_for(Duration::from_micros(100));
            }
        }
    }
}

impl CompletionSource for Shared {
    /// The thread that polls drives.
    fn want_background(&self) -> bool {
        false
    }

    fn background_done(&self) {}
}

impl Sim {
    /// A machine with empty disks to come, of this physical block.
    #[must_use]
    pub fn new(block_size: u32, seed: u64) -> Self {
        Self::boot(&Image::default(), block_size, seed)
    }

    /// A machine that comes up with what is on its disks.
    #[must_use]
    pub fn boot(image: &Image, block_size: u32, seed: u64) -> Self {
        let state = State {
            disks: image.disks.clone(),
            files: image.files.clone(),
            locked: BTreeSet::new(),
            events: Vec::new(),
            recording: true,
            base: image
                .disks
                .iter()
                .map(|(_, medium)| medium.clone())
                .collect(),
            queue: VecDeque::new(),
            random: Random::new(seed),
            faults: Vec::new(),
            failures: 0,
            written: 0,
        };
        let state = Mutex::new(state);
        Self {
            shared: Arc::new(Shared { state, block_size }),
        }
    }

    /// As a backend.
    #[must_use]
    pub fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(self.clone())
    }

    /// Stops recording, or begins it anew here, where everything counts as durable.
    pub fn record(&self, recording: bool) {
        let mut state = self.shared.state.lock();
        state.recording = recording;
        state.events.clear();
        state.base = state
            .disks
            .iter()
            .map(|(_, medium)| medium.clone())
            .collect();
    }

    /// How many events were recorded.
    #[must_use]
    pub fn position(&self) -> usize {
        self.shared.state.lock().events.len()
    }

    /// Looks back at the recording, from its beginning.
    #[must_use]
    pub fn crasher(&self) -> Crasher {
        let state = self.shared.state.lock();
        Crasher {
            events: state.events.clone(),
            files: state.files.clone(),
            paths: state.disks.iter().map(|(path, _)| path.clone()).collect(),
            base: state.base.clone(),
            doubts: Vec::new(),
            position: 0,
        }
    }

    /// What is on the disks now, if the power does not fail.
    #[must_use]
    pub fn image(&self) -> Image {
        let state = self.shared.state.lock();
        Image {
            disks: state.disks.clone(),
            files: state.files.clone(),
        }
    }

    /// From now on, these faults and no others.
    pub fn set_faults(&self, faults: &[Fault]) {
        self.shared.state.lock().faults = faults.to_vec();
    }

    /// How many calls have failed.
    #[must_use]
    pub fn failures(&self) -> usize {
        self.shared.state.lock().failures
    }

    /// Bytes written to all disks, whether they were recorded or not.
    #[must_use]
    pub fn written(&self) -> usize {
        self.shared.state.lock().written
    }

    fn disk(&self, number: usize, path: &Path) -> Arc<dyn Disk> {
        let size = self.shared.state.lock().disks[number].1.size as u64;
        Arc::new(SimDisk {
            info: DiskInfo {
                path: path.to_owned(),
                backend: "simulated",
                direct: true,
                block_size: self.shared.block_size,
                physical_block_size: self.shared.block_size,
            },
            number,
            size,
            shared: Arc::clone(&self.shared),
        })
    }
}

fn absent() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Backend for Sim {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn create(&self, path: &Path, size: u64) -> io::Result<Arc<dyn Disk>> {
        let number = {
            let mut state = self.shared.state.lock();
            if state.disks.iter().any(|(other, _)| other == path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let medium = Medium::new(usize::try_from(size).map_err(io::Error::other)?);
            state.base.push(medium.clone());
            state.disks.push((path.to_owned(), medium));
            state.disks.len() - 1
        };
        Ok(self.disk(number, path))
    }

    fn open(&self, path: &Path, _access: OpenAccess) -> io::Result<Arc<dyn Disk>> {
        let number = {
            let state = self.shared.state.lock();
            state.disks.iter().position(|(other, _)| other == path)
        };
        Ok(self.disk(number.ok_or_else(absent)?, path))
    }

    fn create_directory(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn read_file(&self, path: &Path, limit: usize) -> io::Result<Vec<u8>> {
        let state = self.shared.state.lock();
        let bytes = state.files.get(path).ok_or_else(absent)?;
        if bytes.len() > limit {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(bytes.clone())
    }

    fn replace_file(&self, path: &Path, contents: &[u8]) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        state.files.insert(path.to_owned(), contents.to_vec());
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        state.files.remove(path);
        // Its number stays taken, for whoever has it open.
        for (disk, _) in &mut state.disks {
            if disk == path {
                *disk = PathBuf::new();
            }
        }
        Ok(())
    }

    fn random(&self, bytes: &mut [u8]) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        bytes.copy_from_slice(&state.random.bytes(bytes.len()));
        Ok(())
    }

    fn lock(&self, path: &Path, _exclusive: bool) -> io::Result<Box<dyn Lock>> {
        if !self.shared.state.lock().locked.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimLock {
            path: path.to_owned(),
            shared: Arc::clone(&self.shared),
        }))
    }
}

#[derive(Debug)]
struct SimLock {
    path: PathBuf,
    shared: Arc<Shared>,
}

impl Lock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.shared.state.lock().locked.remove(&self.path);
    }
}

#[derive(Debug)]
struct SimDisk {
    info: DiskInfo,
    number: usize,
    size: u64,
    shared: Arc<Shared>,
}

impl SimDisk {
    fn submit(&self, write: Option<(AlignedBuf, usize, WriteSync)>) -> IoOp {
        let source: Arc<dyn CompletionSource> = Arc::<Shared>::clone(&self.shared);
        let (op, completer) = IoOp::pending(Some(source));
        let mut state = self.shared.state.lock();
        let request = Request {
            disk: self.number,
            write,
            submitted: state.events.len(),
            completer,
        };
        state.queue.push_back(request);
        op
    }

    fn offset(&self, buffer: &AlignedBuf, offset: u64) -> Option<usize> {
        let block = u64::from(self.info.block_size);
        let aligned = (buffer.len() as u64 | offset).is_multiple_of(block);
        let holds = offset + buffer.len() as u64 <= self.size;
        usize::try_from(offset).ok().filter(|_| aligned && holds)
    }
}

impl Disk for SimDisk {
    fn info(&self) -> &DiskInfo {
        &self.info
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, mut buffer: AlignedBuf, offset: u64) -> IoOp {
        let Some(start) = self.offset(&buffer, offset) else {
            return IoOp::ready(buffer, Err(io::ErrorKind::InvalidInput.into()));
        };
        let mut state = self.shared.state.lock();
        let failed = state.fails(FaultKind::Read, self.number);
        state.disks[self.number].1.read(start, &mut buffer);
        drop(state);
        IoOp::ready(buffer, outcome(failed))
    }

    fn write(&self, buffer: AlignedBuf, offset: u64, sync: WriteSync) -> IoOp {
        let Some(start) = self.offset(&buffer, offset) else {
            return IoOp::ready(buffer, Err(io::ErrorKind::InvalidInput.into()));
        };
        self.submit(Some((buffer, start, sync)))
    }

    fn sync(&self) -> IoOp {
        self.submit(None)
    }

    fn driver(&self) -> Option<Arc<dyn Driver>> {
        Some(Arc::<Shared>::clone(&self.shared))
    }

    /// Whoever wants this calls it each time that it leaves an operation alone: what is under way
    /// then is carried out here and now.
    fn reap_in_background(&self) {
        while self.shared.progress() {}
    }
}

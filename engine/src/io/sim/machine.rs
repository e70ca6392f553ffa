//! The machine: its disks, what is in flight to them, and what is recorded of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem::take;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;

use super::crash::{Change, Crasher, Event};
use super::fault::{DiskCondition, Fault, FaultError, FaultKind, Faults};
use super::medium::{Image, Medium, Node, UNIT};
use super::random::Random;
use crate::io::{AlignedBuf, Backend, Completer, CompletionSource, WriteSync};
use crate::port::op::{Driver, Signal};
use crate::sync::Mutex;
use crate::sync::thread::{self, Thread};

/// What every machine's clock shows at first, since 1970: the 1st of January 2026.
const TIME_AT_FIRST: Duration = Duration::from_secs(1_767_225_600);

/// A device and what lies on it.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) medium: Medium,
    pub(super) condition: DiskCondition,
    /// What was there before the last write of each place, if somebody may ask.
    before: Option<Medium>,
    /// Units that can't be read before they are written again.
    unreadable: BTreeSet<usize>,
}

impl Device {
    pub(super) fn new(medium: Medium) -> Self {
        Self {
            medium,
            condition: DiskCondition::Well,
            before: None,
            unreadable: BTreeSet::new(),
        }
    }

    fn is_readable(&self, range: Range<usize>) -> bool {
        let units = range.start / UNIT..range.end.div_ceil(UNIT);
        self.unreadable.range(units).next().is_none()
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        if !self.unreadable.is_empty() {
            let units = offset.div_ceil(UNIT)..(offset + bytes.len()) / UNIT;
            self.unreadable.retain(|unit| !units.contains(unit));
        }
        if let Some(before) = &mut self.before {
            let mut old = vec![0; bytes.len()];
            self.medium.read(offset, &mut old);
            before.write(offset, &old);
        }
        self.medium.write(offset, bytes);
    }
}

/// How many holders a lock has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    Exclusively,
    By(usize),
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) disks: Vec<Device>,
    pub(super) names: BTreeMap<PathBuf, Node>,
    pub(super) locks: BTreeMap<PathBuf, Held>,
    pub(super) random: Random,
    pub(super) faults: Faults,
    queue: Vec<Request>,
    /// Threads to wake when there is something to carry out.
    idle: Vec<Thread>,
    events: Vec<Event>,
    recording: bool,
    /// Where the recording begins.
    base: Image,
    /// Bytes written in all.
    written: usize,
    /// Since 1970.
    clock: Duration,
    /// By how many milliseconds the clock goes on whenever it is looked at.
    pace: i64,
    /// What nobody waits for stays in flight.
    pub(super) leaves_in_flight: bool,
}

/// What is asked of a device.
#[derive(Debug, Clone, Copy)]
pub(super) enum Action {
    Read(usize),
    Write(usize, WriteSync),
    Sync,
}

/// A transfer in flight.
#[derive(Debug)]
struct Request {
    disk: usize,
    action: Action,
    buffer: AlignedBuf,
    /// Bytes that a first step has transferred.
    done: usize,
    /// How many events were recorded when it was submitted.
    submitted: usize,
    completer: Completer,
}

/// How far a step of a transfer came.
enum Step {
    Over(io::Result<()>),
    /// So many bytes are done.
    Short(usize),
}

impl State {
    fn new(image: &Image, seed: u64) -> Self {
        Self {
            disks: image.media.iter().cloned().map(Device::new).collect(),
            names: image.names.clone(),
            locks: BTreeMap::new(),
            random: Random::new(seed),
            faults: Faults::default(),
            queue: Vec::new(),
            idle: Vec::new(),
            events: Vec::new(),
            recording: true,
            base: image.clone(),
            written: 0,
            clock: TIME_AT_FIRST,
            pace: 1,
            leaves_in_flight: false,
        }
    }

    /// What is on the disks now.
    fn image(&self) -> Image {
        let media = self.disks.iter().map(|device| device.medium.clone());
        Image {
            media: media.collect(),
            names: self.names.clone(),
        }
    }

    /// Makes a path name `node`, or nothing. `durable`: for certain, as the call succeeds.
    pub(super) fn name(&mut self, path: PathBuf, node: Option<Node>, durable: bool) {
        match &node {
            Some(node) => self.names.insert(path.clone(), node.clone()),
            None => self.names.remove(&path),
        };
        self.record(Change::Name { path, node }, durable, !durable, None);
    }

    /// A new disk, which nothing names yet.
    pub(super) fn add_disk(&mut self, size: usize) -> usize {
        let medium = Medium::new(size);
        self.base.media.push(medium.clone());
        self.disks.push(Device::new(medium));
        self.disks.len() - 1
    }

    /// Makes zeros of a disk's bytes from `from` to `to`, which are its last.
    pub(super) fn extend(&mut self, disk: usize, from: usize, to: usize) -> io::Result<()> {
        self.check_condition(disk, Action::Sync)?;
        let outcome = self.faults.check(FaultKind::Extend, Some(disk));
        let to = if outcome.is_ok() { to } else { from };
        let device = &mut self.disks[disk];
        device.medium.extend(from, to);
        if let Some(before) = &mut device.before {
            before.extend(from, to);
        }
        device.unreadable.retain(|unit| unit * UNIT < from);
        self.record(Change::Extend { disk, from, to }, true, false, None);
        outcome
    }

    fn record(&mut self, change: Change, durable: bool, failed: bool, submitted: Option<usize>) {
        if self.recording {
            let submitted = submitted.unwrap_or(self.events.len());
            self.events.push(Event::Change {
                change,
                durable,
                failed,
                submitted,
            });
        }
    }

    /// Flips a bit on the medium.
    fn flip(&mut self, disk: usize, offset: usize, bit: u8) {
        self.disks[disk].medium.flip(offset, bit);
        self.record(Change::Flip { disk, offset, bit }, true, false, None);
    }

    /// Another place of a disk for `length` bytes that belong at `offset`; `None` if there is none.
    fn elsewhere(&mut self, disk: usize, offset: usize, length: usize) -> Option<usize> {
        let places = (self.disks[disk].medium.size() - length) / UNIT + 1;
        let place = self.random.below(places) * UNIT;
        if place != offset {
            return Some(place);
        }
        (places > 1).then_some(if place == 0 { UNIT } else { 0 })
    }

    /// Whether a transfer of any kind fails, as the whole disk does.
    fn check_condition(&mut self, disk: usize, action: Action) -> io::Result<()> {
        if let Err(error) = self.faults.check(FaultKind::Death, Some(disk)) {
            self.disks[disk].condition = DiskCondition::Dead;
            return Err(error);
        }
        match self.disks[disk].condition {
            DiskCondition::Well => Ok(()),
            DiskCondition::ReadOnly if matches!(action, Action::Read(_)) => Ok(()),
            DiskCondition::ReadOnly => {
                self.faults.hits += 1;
                Err(Errno::ROFS.into())
            }
            DiskCondition::Dead | DiskCondition::Absent => {
                self.faults.hits += 1;
                Err(FaultError::Io.into())
            }
        }
    }

    /// Where the next step of a transfer ends.
    fn step_end(&mut self, kind: FaultKind, disk: usize, done: usize, length: usize) -> usize {
        let units = length / UNIT;
        if done == 0 && self.faults.hit(kind, Some(disk)).is_some() && units > 1 {
            return (1 + self.random.below(units - 1)) * UNIT;
        }
        length
    }

    fn step(&mut self, request: &mut Request) -> Step {
        let (disk, action) = (request.disk, request.action);
        // A transfer in two steps is one call.
        let begun = request.done > 0;
        if let Err(error) = self.check_condition(disk, action) {
            if let Action::Sync = action {
                self.record_sync(disk, true, request.submitted);
            }
            return Step::Over(Err(error));
        }
        match action {
            Action::Read(offset) => self.step_read(request, offset, begun),
            Action::Write(offset, sync) => self.step_write(request, offset, sync, begun),
            Action::Sync => {
                let outcome = self.faults.check(FaultKind::Sync, Some(disk));
                self.record_sync(disk, outcome.is_err(), request.submitted);
                Step::Over(outcome)
            }
        }
    }

    fn record_sync(&mut self, disk: usize, failed: bool, submitted: usize) {
        if self.recording {
            self.events.push(Event::Sync {
                disk,
                failed,
                submitted,
            });
        }
    }

    fn step_read(&mut self, request: &mut Request, offset: usize, begun: bool) -> Step {
        let disk = request.disk;
        let length = request.buffer.len();
        if !begun && let Err(error) = self.faults.check(FaultKind::Read, Some(disk)) {
            return Step::Over(Err(error));
        }
        let end = self.step_end(FaultKind::ShortRead, disk, request.done, length);
        let start = offset + request.done;
        if !self.disks[disk].is_readable(start..offset + end) {
            return Step::Over(Err(FaultError::Io.into()));
        }
        let bytes = &mut request.buffer[request.done..end];
        let hit = |state: &mut Self, kind| {
            !begun && length > 0 && state.faults.hit(kind, Some(disk)).is_some()
        };
        if hit(self, FaultKind::Rot) {
            let (at, bit) = self.random_bit(bytes.len());
            self.flip(disk, start + at, bit);
        }
        if hit(self, FaultKind::StaleRead)
            && let Some(before) = &self.disks[disk].before
        {
            before.read(start, bytes);
        } else if hit(self, FaultKind::MisdirectedRead)
            && let Some(place) = self.elsewhere(disk, start, bytes.len())
        {
            self.disks[disk].medium.read(place, bytes);
        } else {
            self.disks[disk].medium.read(start, bytes);
        }
        if hit(self, FaultKind::FlippedRead) {
            let (at, bit) = self.random_bit(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        Step::after(end, length)
    }

    fn random_bit(&mut self, length: usize) -> (usize, u8) {
        let bit = self.random.below(8 * length);
        (bit / 8, u8::try_from(bit % 8).unwrap_or(0))
    }

    fn step_write(
        &mut self,
        request: &mut Request,
        offset: usize,
        sync: WriteSync,
        begun: bool,
    ) -> Step {
        let (disk, length) = (request.disk, request.buffer.len());
        let durable = sync == WriteSync::Data;
        let outcome = if begun {
            Ok(())
        } else {
            let faults = &mut self.faults;
            let outcome = faults.check(FaultKind::Write, Some(disk));
            outcome.and_then(|()| match sync {
                WriteSync::Data => faults.check(FaultKind::Sync, Some(disk)),
                WriteSync::None => Ok(()),
            })
        };
        let failed = outcome.is_err();
        let end = if failed {
            length
        } else {
            self.step_end(FaultKind::ShortWrite, disk, request.done, length)
        };
        let bytes = &request.buffer[request.done..end];
        self.written += bytes.len();
        let mut place = Some(offset + request.done);
        if !begun && !failed {
            if self.faults.hit(FaultKind::LostWrite, Some(disk)).is_some() {
                place = None;
            } else if self
                .faults
                .hit(FaultKind::MisdirectedWrite, Some(disk))
                .is_some()
            {
                place = self.elsewhere(disk, offset, bytes.len());
            }
        }
        if let Some(offset) = place {
            let there = if failed {
                self.random.below(bytes.len() / UNIT + 1) * UNIT
            } else {
                bytes.len()
            };
            self.disks[disk].write(offset, &bytes[..there]);
            if self.recording {
                let bytes = Arc::from(bytes);
                let change = Change::Write {
                    disk,
                    offset,
                    bytes,
                };
                self.record(change, durable, failed, Some(request.submitted));
            }
        }
        match outcome {
            Ok(()) => Step::after(end, length),
            Err(error) => Step::Over(Err(error)),
        }
    }
}

impl Step {
    fn after(end: usize, length: usize) -> Self {
        if end < length {
            Self::Short(end)
        } else {
            Self::Over(Ok(()))
        }
    }
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    pub(super) block_size: u32,
}

impl Shared {
    /// Puts a transfer in flight.
    pub(super) fn submit(
        &self,
        disk: usize,
        action: Action,
        buffer: AlignedBuf,
        completer: Completer,
    ) {
        let mut state = self.state.lock();
        let submitted = state.events.len();
        state.queue.push(Request {
            disk,
            action,
            buffer,
            done: 0,
            submitted,
            completer,
        });
        let idle = take(&mut state.idle);
        drop(state);
        idle.iter().for_each(Thread::unpark);
    }

    /// Carries out one step of a transfer; `false` if none is in flight.
    pub(super) fn progress(&self) -> bool {
        let (request, outcome) = {
            let mut state = self.state.lock();
            let count = state.queue.len();
            if count == 0 {
                return false;
            }
            let chosen = state.random.below(count);
            let mut request = state.queue.swap_remove(chosen);
            match state.step(&mut request) {
                Step::Over(outcome) => (request, outcome),
                Step::Short(done) => {
                    request.done = done;
                    request.submitted = state.events.len();
                    state.queue.push(request);
                    return true;
                }
            }
        };
        request.completer.complete(request.buffer, outcome);
        true
    }
}

impl Driver for Shared {
    fn drive(&self, signal: &Signal) {
        while !signal.is_raised() {
            if self.progress() {
                continue;
            }
            let mut state = self.state.lock();
            if state.queue.is_empty() {
                // Another thread carries out what this one waits for, and then either wakes it or
                // submits something more.
                if state
                    .idle
                    .iter()
                    .all(|other| other.id() != signal.thread().id())
                {
                    state.idle.push(signal.thread().clone());
                }
                drop(state);
                return signal.park();
            }
        }
    }
}

impl Drop for Shared {
    /// The thread of [`Sim::carry_out_in_background`] sees that it is over.
    fn drop(&mut self) {
        let idle = take(&mut self.state.lock().idle);
        idle.iter().for_each(Thread::unpark);
    }
}

/// Carries out what is in flight, for as long as there is a machine.
fn carry_out(machine: &Weak<Shared>) {
    let this = thread::current();
    while let Some(shared) = machine.upgrade() {
        while shared.progress() {}
        let mut state = shared.state.lock();
        if !state.queue.is_empty() {
            continue;
        }
        if state.idle.iter().all(|other| other.id() != this.id()) {
            state.idle.push(this.clone());
        }
        drop(state);
        drop(shared);
        thread::park();
    }
}

impl CompletionSource for Shared {
    /// The thread that polls drives.
    fn want_background(&self) -> bool {
        false
    }

    fn background_done(&self) {}
}

/// A machine with simulated disks.
#[derive(Debug, Clone)]
pub struct Sim {
    pub(super) shared: Arc<Shared>,
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
        let state = Mutex::new(State::new(image, seed));
        Self {
            shared: Arc::new(Shared { state, block_size }),
        }
    }

    /// From now on a thread of the machine's own carries out what is in flight, too. A store with a
    /// background thread needs it when nobody waits for I/O: when all who wait await `Op`s. The
    /// same seed does not give the same history then.
    pub fn carry_out_in_background(&self) {
        let machine = Arc::downgrade(&self.shared);
        drop(thread::spawn(move || carry_out(&machine)));
    }

    /// Whether what nobody waits for stays in flight until somebody waits for something, in place of being carried out
    /// at once: so that something else is done while it is under way.
    pub fn leave_in_flight(&self, leave: bool) {
        self.shared.state.lock().leaves_in_flight = leave;
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
        state.base = state.image();
        // What is in flight was submitted before the first event.
        state
            .queue
            .iter_mut()
            .for_each(|request| request.submitted = 0);
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
        Crasher::new(state.events.as_slice().into(), state.base.clone())
    }

    /// What is on the disks now, if the power does not fail.
    #[must_use]
    pub fn image(&self) -> Image {
        self.shared.state.lock().image()
    }

    /// From now on, these faults and no others; calls fail with EIO.
    pub fn set_faults(&self, faults: &[Fault]) {
        self.shared.state.lock().faults.clear();
        self.add_faults(faults, FaultError::Io);
    }

    /// From now on, these faults too; calls fail with `error`.
    pub fn add_faults(&self, faults: &[Fault], error: FaultError) {
        let mut state = self.shared.state.lock();
        state.faults.add(faults, error);
        let stale = state.faults.any(FaultKind::StaleRead);
        for device in &mut state.disks {
            if !stale {
                device.before = None;
            } else if device.before.is_none() {
                device.before = Some(device.medium.clone());
            }
        }
    }

    /// How many calls were hit by a fault.
    #[must_use]
    pub fn failures(&self) -> usize {
        self.shared.state.lock().faults.hits
    }

    /// How many disks were created, those included that were removed since.
    #[must_use]
    pub fn disks(&self) -> usize {
        self.shared.state.lock().disks.len()
    }

    /// Makes a disk work, or fail, or disappear.
    ///
    /// # Panics
    /// If there never was such a disk.
    pub fn set_condition(&self, disk: usize, condition: DiskCondition) {
        self.shared.state.lock().disks[disk].condition = condition;
    }

    /// Flips bit `bit` (0 to 7) of the byte at `offset` on the medium of a disk.
    ///
    /// # Panics
    /// If there never was such a disk, or it is shorter.
    pub fn rot(&self, disk: usize, offset: usize, bit: u8) {
        self.shared.state.lock().flip(disk, offset, bit);
    }

    /// Makes reads fail that touch these bytes of a disk, before each unit of them is written again.
    ///
    /// # Panics
    /// If there never was such a disk.
    pub fn make_unreadable(&self, disk: usize, range: Range<usize>) {
        let units = range.start / UNIT..range.end.div_ceil(UNIT);
        self.shared.state.lock().disks[disk]
            .unreadable
            .extend(units);
    }

    /// Bytes written to all disks, whether they were recorded or not.
    #[must_use]
    pub fn written(&self) -> usize {
        self.shared.state.lock().written
    }

    /// What the clock shows. This is no look at it: it does not go on.
    #[must_use]
    pub fn time(&self) -> SystemTime {
        UNIX_EPOCH + self.shared.state.lock().clock
    }

    /// Sets the clock; what lies before 1970 is taken for 1970.
    pub fn set_time(&self, time: SystemTime) {
        self.shared.state.lock().clock = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    }

    /// By how many milliseconds the clock goes on whenever it is looked at: 1 at first; with 0 it
    /// stands, with less it runs backwards.
    pub fn set_pace(&self, milliseconds: i64) {
        self.shared.state.lock().pace = milliseconds;
    }

    /// Looks at the clock.
    pub(super) fn look_at_clock(&self) -> SystemTime {
        let mut state = self.shared.state.lock();
        let by = Duration::from_millis(state.pace.unsigned_abs());
        state.clock = if state.pace < 0 {
            state.clock.saturating_sub(by)
        } else {
            state.clock.saturating_add(by)
        };
        UNIX_EPOCH.checked_add(state.clock).unwrap_or(UNIX_EPOCH)
    }
}

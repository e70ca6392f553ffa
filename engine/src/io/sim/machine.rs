//! The machine: its disks, what is in flight to them, and what is recorded of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::crash::{Crasher, Event, Written};
use super::disk::SimDisk;
use super::fault::{Fault, FaultKind, outcome};
use super::medium::{Image, Medium, UNIT};
use super::random::Random;
use crate::io::{AlignedBuf, Backend, Completer, CompletionSource, Disk, DiskInfo, WriteSync};
use crate::port::op::{Driver, Signal};

#[derive(Debug)]
pub(super) struct State {
    pub(super) disks: Vec<(PathBuf, Medium)>,
    pub(super) files: BTreeMap<PathBuf, Vec<u8>>,
    pub(super) locked: BTreeSet<PathBuf>,
    pub(super) events: Vec<Event>,
    pub(super) recording: bool,
    /// Where the recording begins.
    pub(super) base: Vec<Medium>,
    pub(super) queue: VecDeque<Request>,
    pub(super) random: Random,
    pub(super) faults: Vec<Fault>,
    /// Calls that were hit by a fault.
    pub(super) failures: usize,
    /// Bytes written in all.
    pub(super) written: usize,
}

#[derive(Debug)]
pub(super) struct Request {
    pub(super) disk: usize,
    /// `None` for a sync.
    pub(super) write: Option<(AlignedBuf, usize, WriteSync)>,
    pub(super) submitted: usize,
    pub(super) completer: Completer,
}

impl State {
    pub(super) fn fails(&mut self, kind: FaultKind, disk: usize) -> bool {
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

/// A machine with simulated disks.
#[derive(Debug, Clone)]
pub struct Sim {
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    pub(super) block_size: u32,
}

impl Shared {
    /// Carries out one request; `false` if there is none.
    pub(super) fn progress(&self) -> bool {
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

    pub(super) fn disk(&self, number: usize, path: &Path) -> Arc<dyn Disk> {
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

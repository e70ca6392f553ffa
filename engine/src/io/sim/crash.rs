//! Crash images: what a machine finds when it comes up after a power loss at any moment of a
//! recording.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::medium::{Image, Medium, UNIT};
use super::random::Random;

/// A write as the device saw it.
#[derive(Debug, Clone)]
pub(super) struct Written {
    pub(super) disk: usize,
    pub(super) offset: usize,
    pub(super) bytes: Arc<[u8]>,
    /// Durable by itself.
    pub(super) durable: bool,
    /// Answered with an error: nothing ever makes it certain.
    pub(super) failed: bool,
    /// How many events were recorded when it was submitted.
    pub(super) submitted: usize,
}

impl Written {
    fn overlaps(&self, other: &Self) -> bool {
        self.disk == other.disk
            && self.offset < other.offset + other.bytes.len()
            && other.offset < self.offset + self.bytes.len()
    }
}

#[derive(Debug, Clone)]
pub(super) enum Event {
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
pub(super) struct Doubt {
    write: Written,
    certain: bool,
    doomed: bool,
}

/// Builds images along a recording, event by event.
#[derive(Debug)]
pub struct Crasher {
    pub(super) events: Vec<Event>,
    pub(super) files: BTreeMap<PathBuf, Vec<u8>>,
    pub(super) paths: Vec<PathBuf>,
    /// What is certain on each disk at `position`.
    pub(super) base: Vec<Medium>,
    pub(super) doubts: Vec<Doubt>,
    pub(super) position: usize,
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

//! Alternating rounds: in each, every participant does one slice, in another order, so that what drifts (the device,
//! the machine, its other users) drifts for all, and nobody always follows the same neighbour: a device that is
//! rationed gives more to who comes after a rest.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};

use crate::data::{Blob, shuffled};
use crate::fio;
use crate::limit::Limit;
use crate::meter;
use crate::participants::{Contender, Kind};
use crate::works::{Content, Effort, Sample, Work, slice, slice_of_limit};

/// Set when the run is to end early.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The name of the limit in results.
pub const LIMIT: &str = "limit";

/// What one participant did of a work.
#[derive(Debug)]
pub struct Entry {
    /// Its name.
    pub participant: &'static str,
    /// How it did it, where that is not the same for all.
    pub manner: Option<&'static str>,
    /// Its slices, round by round.
    pub samples: Vec<Sample>,
}

/// Who did not do a work, and why.
#[derive(Debug)]
pub struct Omission {
    /// Its name.
    pub participant: &'static str,
    /// The reason.
    pub why: String,
    /// Whether it failed, instead of not being able to.
    pub is_failure: bool,
}

/// What all did of a work.
#[derive(Debug)]
pub struct Outcome {
    /// The work.
    pub work: Work,
    /// What each did; the limit first, Graviton next.
    pub entries: Vec<Entry>,
    /// Who did not.
    pub omissions: Vec<Omission>,
    /// What fio makes of the limit, in the work's unit.
    pub fio: Option<f64>,
    /// Bytes that all stores took on disk together when the work was done.
    pub disk_bytes: u64,
}

/// What takes part in the rounds of a work.
enum Entrant<'a> {
    Limit(&'a mut Limit),
    Store(&'a mut Contender),
}

/// Runs works, one after the other; stores that one leaves are there for the next if it finds the same.
pub struct Runner<'a> {
    effort: Effort,
    kinds: Vec<&'static Kind>,
    directory: &'a Path,
    limit: Limit,
    contenders: Vec<Contender>,
    /// Who could not be given the content, and why.
    absent: Vec<(&'static str, String)>,
    content: Option<Content>,
    blobs: Vec<Blob>,
}

impl<'a> Runner<'a> {
    /// For stores of these kinds, all in one directory.
    pub fn new(effort: Effort, kinds: Vec<&'static Kind>, directory: &'a Path) -> Result<Self> {
        Ok(Self {
            limit: Limit::create(directory, effort.limit_bytes)?,
            effort,
            kinds,
            directory,
            contenders: Vec::new(),
            absent: Vec::new(),
            content: None,
            blobs: Vec::new(),
        })
    }

    /// Runs all rounds of a work.
    pub fn run(&mut self, work: Work) -> Result<Outcome> {
        self.prepare(work)?;
        let absent = self.absent.iter().map(|(participant, why)| Omission {
            participant,
            why: why.clone(),
            is_failure: true,
        });
        let mut omissions: Vec<Omission> = absent.collect();
        for contender in &self.contenders {
            if let Some(why) = work.omits(contender.kind) {
                omissions.push(Omission {
                    participant: contender.kind.name,
                    why: why.to_owned(),
                    is_failure: false,
                });
            }
        }
        let (effort, blobs) = (&self.effort, &self.blobs);
        let mut entrants: Vec<(Entry, Entrant<'_>)> = Vec::new();
        if work.has_limit() {
            let entry = Entry {
                participant: LIMIT,
                manner: None,
                samples: Vec::new(),
            };
            entrants.push((entry, Entrant::Limit(&mut self.limit)));
        }
        let able = self.contenders.iter_mut();
        for contender in able.filter(|contender| work.omits(contender.kind).is_none()) {
            let entry = Entry {
                participant: contender.kind.name,
                manner: work.manner(contender.kind),
                samples: Vec::new(),
            };
            entrants.push((entry, Entrant::Store(contender)));
        }

        // Puts into a store that was just made are not those into one that is in use: the first round is for that.
        let unmeasured = usize::from(matches!(work, Work::Put(_) | Work::PutTogether(_)));
        let rounds = unmeasured + work.rounds(effort);
        for round in 0..rounds {
            for number in shuffled(entrants.len(), 1 + round as u64) {
                let (entry, entrant) = &mut entrants[number];
                if omissions
                    .iter()
                    .any(|omission| omission.participant == entry.participant)
                {
                    continue;
                }
                if INTERRUPTED.load(Ordering::Relaxed) {
                    bail!("interrupted");
                }
                let sample = match entrant {
                    Entrant::Limit(limit) => slice_of_limit(work, effort, round, limit),
                    Entrant::Store(contender) => {
                        slice(work, effort, round, blobs, contender).map(Some)
                    }
                };
                match sample {
                    Ok(sample) if round >= unmeasured => entry.samples.extend(sample),
                    Ok(_) => {}
                    Err(error) => {
                        omissions.push(failure(entry.participant, work, &error));
                    }
                }
            }
        }
        let mut entries: Vec<Entry> = entrants.into_iter().map(|(entry, _)| entry).collect();
        entries.retain(|entry| {
            !omissions
                .iter()
                .any(|omission| omission.participant == entry.participant)
        });
        Ok(Outcome {
            work,
            entries,
            omissions,
            fio: fio::check(work, &self.limit.path),
            disk_bytes: meter::disk_usage(self.directory)?,
        })
    }

    /// Sees to it that all stores have what a work finds; those that fail are left out.
    fn prepare(&mut self, work: Work) -> Result<()> {
        let content = work.content();
        if content != Content::Nothing && self.content == Some(content) {
            return Ok(());
        }
        self.clear()?;
        self.content = Some(content);
        self.blobs = work.blobs(&self.effort);
        let sizing = work.sizing(&self.effort);
        for kind in &self.kinds {
            let mut contender = Contender::new(kind, self.directory, sizing);
            match fill(content, work.share(kind, &self.blobs), &mut contender) {
                Ok(()) => {
                    if content == Content::Small {
                        let of_graviton = contender.store()?.checkpoint_bytes();
                        self.limit.checkpoint_bytes = of_graviton.or(self.limit.checkpoint_bytes);
                    }
                    self.contenders.push(contender);
                }
                Err(error) => {
                    let why = failure(kind.name, work, &error).why;
                    self.absent.push((kind.name, why));
                    contender.remove()?;
                }
            }
        }
        Ok(())
    }

    /// Removes all stores.
    fn clear(&mut self) -> Result<()> {
        self.contenders.iter_mut().try_for_each(Contender::remove)?;
        self.contenders.clear();
        self.absent.clear();
        self.limit.checkpoint_bytes = None;
        Ok(())
    }
}

fn fill(content: Content, blobs: &[Blob], contender: &mut Contender) -> Result<()> {
    // A store that begins with nothing is made when its turn comes.
    if content != Content::Nothing {
        let store = contender.store()?;
        store.load(blobs)?;
        store.settle()?;
    }
    Ok(())
}

fn failure(participant: &'static str, work: Work, error: &anyhow::Error) -> Omission {
    let why = format!("failed: {error:#}");
    eprintln!("{participant}: {}: {why}", work.name());
    Omission {
        participant,
        why,
        is_failure: true,
    }
}

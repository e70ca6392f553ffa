//! Whether something lies in fewer sectors than it should, and the note of that in the store file.
//!
//! A write that came about in fewer sectors than asked is acknowledged when the store file says that there
//! are such: then none of the sectors that took part may be missing when the store is opened next. The note
//! is taken back once everything lies in as many sectors as it should: blobs, and the tombstones of what was
//! deleted.

use std::sync::Arc;

use super::catalog::CatalogSector;
use super::inner::Inner;
use super::repair::Repairs;
use super::set::SectorSet;
use crate::port::StorageError;
use crate::sync::Mutex;

/// What is known of it.
#[derive(Debug)]
pub struct Shortage {
    state: Mutex<Known>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    /// What the store file says.
    is_noted: bool,
    /// How many writes have come about in too few sectors.
    events: u64,
    /// How many of them repair has yet to be told of.
    landing: u64,
    /// Repair has not been told of all that is short: it is to be looked for.
    is_unknown: bool,
}

/// How far it is looked for what is short.
#[derive(Debug)]
pub struct Search {
    /// Where it goes on: a stored key.
    from: Vec<u8>,
    /// How many writes there were when it began.
    events: u64,
}

impl Shortage {
    /// As the store file says.
    pub fn new(is_noted: bool) -> Self {
        let known = Known {
            is_noted,
            events: 0,
            landing: 0,
            is_unknown: is_noted,
        };
        Self {
            state: Mutex::new(known),
        }
    }

    /// Whether the store file says that something is short.
    pub fn is_noted(&self) -> bool {
        self.state.lock().is_noted
    }

    /// Repair has been told of what came about in too few sectors.
    pub fn landed(&self) {
        let mut known = self.state.lock();
        known.landing = known.landing.saturating_sub(1);
    }
}

impl Inner {
    /// Something will have come about in too few sectors, which repair has to look for: the store file says so on
    /// return. Sectors that have failed until then, and nothing else was short, are missed by nobody: what they
    /// have is elsewhere as well.
    ///
    /// # Errors
    /// `File`. Then it must not be acknowledged.
    pub fn note_shortage(&self) -> Result<(), StorageError> {
        let mut known = self.shortage.state.lock();
        known.is_unknown = true;
        self.note_in(&mut known)
    }

    /// The same, of what repair is told of as soon as it has come about: then [`Shortage::landed`] is called.
    ///
    /// # Errors
    /// As [`Inner::note_shortage`].
    pub fn note_landing(&self) -> Result<(), StorageError> {
        let mut known = self.shortage.state.lock();
        self.note_in(&mut known)?;
        known.landing += 1;
        Ok(())
    }

    /// The sectors that have failed since the store was opened.
    fn failed(&self) -> SectorSet {
        self.taking_part().without(self.writable())
    }

    /// These sectors have failed, and something that they were to have is durable without them: unless the store file
    /// says of them that they are missed by nobody, it says that something is short.
    ///
    /// # Errors
    /// As [`Inner::note_shortage`].
    pub fn note_failed(&self, failed: SectorSet) -> Result<(), StorageError> {
        let failed = failed.within(self.failed());
        let is_told = {
            let catalog = self.catalog.lock();
            let behind = catalog.sectors.iter().filter(|named| named.behind);
            failed.is_within(behind.map(|named| named.number.into()).collect())
        };
        match is_told {
            true => Ok(()),
            false => self.note_shortage(),
        }
    }

    fn note_in(&self, known: &mut Known) -> Result<(), StorageError> {
        known.events += 1;
        if known.is_noted {
            return Ok(());
        }
        let failed = self.failed();
        self.write_catalog(|catalog| {
            catalog.short = true;
            let is_new =
                |named: &&mut CatalogSector| failed.contains(named.number.into()) && !named.behind;
            let new: Vec<_> = catalog.sectors.iter_mut().filter(is_new).collect();
            if new.len() < self.replicas {
                new.into_iter().for_each(|named| named.behind = true);
            }
        })?;
        known.is_noted = true;
        Ok(())
    }

    /// Does one thing towards taking back the note that something is short. `false` if there is none, or
    /// nothing can be done now.
    pub fn step_shortage(self: &Arc<Self>, repairs: &mut Repairs) -> Result<bool, StorageError> {
        let known = *self.shortage.state.lock();
        let is_over = known.landing == 0 && self.marks.is_clear(self.writable());
        if !is_over || self.keepers().len() < self.replicas {
            return Ok(false);
        }
        if !known.is_noted {
            return self.miss_no_more();
        }
        if known.is_unknown {
            let search = repairs.search.take();
            let search = search.filter(|search| search.events == known.events);
            let from = search.map_or(Vec::new(), |search| search.from);
            if let Some(from) = self.scan_for_repair(from)? {
                let events = known.events;
                repairs.search = Some(Search { from, events });
                return Ok(true);
            }
        }
        let mut now = self.shortage.state.lock();
        if now.events == known.events && self.marks.is_clear(self.writable()) {
            self.write_catalog(|catalog| catalog.short = false)?;
            (now.is_noted, now.is_unknown) = (false, false);
        }
        Ok(true)
    }

    /// Sectors that have failed are missed by nobody once all is whole without them: the store file says so. `false` if
    /// it does already.
    fn miss_no_more(&self) -> Result<bool, StorageError> {
        let known = self.shortage.state.lock();
        let failed = self.failed();
        let is_missed =
            |named: &CatalogSector| failed.contains(named.number.into()) && !named.behind;
        if known.is_noted || !self.catalog.lock().sectors.iter().any(is_missed) {
            return Ok(false);
        }
        self.write_catalog(|catalog| {
            let missed = catalog.sectors.iter_mut().filter(|named| is_missed(named));
            missed.for_each(|named| named.behind = true);
        })?;
        Ok(true)
    }
}

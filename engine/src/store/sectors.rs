//! [`Sectors`]: the sectors of an open store, by number.

use std::ops::Index;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use graviton_format::Geometry;
use graviton_format::checksum::Identity;

use super::catalog::SECTORS_MAX;
use super::set::SectorSet;
use crate::log::Sector;
use crate::port::{SectorState, StorageError};
use crate::sync::atomic::{AtomicUsize, Ordering};

/// The sectors of an open store, by number. Sectors come while it is open; one that is taken away stays in its
/// place, and nothing is read from or written to it any more. Numbers that no sector has are stood in for by
/// one that has nothing.
#[derive(Debug)]
pub struct Sectors {
    // Filled before anybody learns of the number.
    slots: Box<[OnceLock<Arc<Sector>>]>,
    /// One more than the highest number that was ever in use.
    count: AtomicUsize,
    vacant: Arc<Sector>,
}

impl Sectors {
    /// These, of which `None` are numbers that no sector has.
    pub fn new(sectors: Vec<Option<Arc<Sector>>>, model: (Identity, Geometry)) -> Self {
        let slots: Box<[OnceLock<Arc<Sector>>]> =
            (0..SECTORS_MAX).map(|_| OnceLock::new()).collect();
        let count = AtomicUsize::new(sectors.len());
        for (slot, sector) in slots.iter().zip(sectors) {
            if let Some(sector) = sector {
                let _ = slot.set(sector);
            }
        }
        let vacant = vacant(model);
        Self {
            slots,
            count,
            vacant,
        }
    }

    /// One more than the highest number that is in use, or was while the store is open.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// All of them, those that stand in for others too.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Sector>> {
        (0..self.len()).map(|number| &self[number])
    }

    /// The numbers that sectors of the store have.
    pub fn members(&self) -> SectorSet {
        let members = self.iter().enumerate();
        members
            .filter(|(_, sector)| !sector.is_gone())
            .map(|(number, _)| number)
            .collect()
    }

    /// The lowest number that no sector has had since the store was opened.
    pub fn unused(&self) -> Option<usize> {
        self.slots.iter().position(|slot| slot.get().is_none())
    }

    /// What stands in for a number that no sector has.
    pub fn vacant(&self) -> &Arc<Sector> {
        &self.vacant
    }

    /// A sector comes in, with an unused number. Everything else that is kept by number must be ready for it.
    pub fn add(&self, sector: Arc<Sector>) {
        let number = usize::from(sector.number());
        let _ = self.slots[number].set(sector);
        self.count.fetch_max(number + 1, Ordering::AcqRel);
    }
}

impl Index<usize> for Sectors {
    type Output = Arc<Sector>;

    fn index(&self, number: usize) -> &Arc<Sector> {
        self.slots[number].get().unwrap_or(&self.vacant)
    }
}

/// Stands in for a number that no sector has.
pub fn vacant((identity, geometry): (Identity, Geometry)) -> Arc<Sector> {
    let why = StorageError::invalid("there is no such sector");
    let number = u16::try_from(SECTORS_MAX).unwrap_or(u16::MAX);
    let sector = Sector::standing_in(Path::new(""), number, identity, geometry, &why);
    sector.leave_out(SectorState::Absent, &why);
    sector.set_gone();
    Arc::new(sector)
}

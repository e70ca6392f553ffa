//! A sector: its superblocks, and what they say of everything else.

use graviton_format::geometry::AREA_SIZE;
use graviton_format::structure::hex;
use graviton_format::superblock::{MAGIC, Superblock};
use graviton_format::{FORMAT_VERSION, FormatError, Geometry, Identity, Structure};
use serde_json::json;

use super::disk::Disk;
use super::source::{Named, Sources};
use super::tell::{Teller, rows_json};
use crate::failure::Failure;

/// Who a sector is and where things lie in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Whose it is.
    pub identity: Identity,
    /// Its measures, checked.
    pub geometry: Geometry,
}

impl From<&Superblock> for Layout {
    fn from(superblock: &Superblock) -> Self {
        Self {
            identity: superblock.identity(),
            geometry: superblock.geometry(),
        }
    }
}

/// A copy of the superblock.
#[derive(Debug)]
struct Copy {
    name: &'static str,
    address: u64,
    bytes: Vec<u8>,
    outcome: Result<Superblock, FormatError>,
    /// A good back copy lies where its measures put it.
    placed: bool,
}

impl Copy {
    fn read(disk: &Disk, name: &'static str, address: u64) -> Self {
        let bytes = disk.peek(address, Superblock::SIZE);
        let outcome = Superblock::decode(&bytes, address);
        Self {
            placed: outcome
                .as_ref()
                .is_ok_and(|copy| copy.geometry().superblocks().contains(&address)),
            name,
            address,
            bytes,
            outcome,
        }
    }

    fn good(&self) -> Option<&Superblock> {
        self.outcome.as_ref().ok().filter(|_| self.placed)
    }

    /// The measures of a copy that is not good, if they could be a sector's.
    fn salvaged(&self) -> Option<Layout> {
        let superblock = Superblock::view(&self.bytes).ok()?;
        let geometry = superblock.geometry();
        let plausible = superblock.magic == MAGIC
            && superblock.version.get() <= FORMAT_VERSION
            && geometry.check().is_ok()
            && superblock.sector_size.get() == geometry.sector_size();
        plausible.then(|| superblock.into())
    }

    fn newer(&self) -> Option<&FormatError> {
        self.outcome
            .as_ref()
            .err()
            .filter(|error| matches!(error, FormatError::Version { .. }))
    }

    /// Whether it says that it is of a newer version, beside `other`, which is good, and can't be:
    /// it verifies as soon as its number is the known one, or it is the front copy, and who raises
    /// the version writes the back copy first.
    fn is_newer_by_damage(&self, other: &Self) -> bool {
        if self.newer().is_none() || other.good().is_none() {
            return false;
        }
        Superblock::is_damaged_version(&self.bytes, self.address) || self.address == 0
    }

    fn verdict(&self) -> String {
        match &self.outcome {
            Ok(_) if self.placed => "good".to_owned(),
            Ok(_) => "its measures do not put it here [F-13]".to_owned(),
            Err(error) => error.to_string(),
        }
    }
}

/// A sector that is open.
#[derive(Debug)]
pub struct Sector {
    /// Its file.
    pub disk: Disk,
    copies: [Copy; 2],
}

impl Sector {
    /// Opens a sector and reads its superblocks.
    pub fn open(named: &Named) -> Result<Self, Failure> {
        let disk = Disk::open(&named.path)?;
        let front = Copy::read(&disk, "front", 0);
        // [F-13]
        let last_area = disk.size().saturating_sub(AREA_SIZE);
        let back = match (front.good(), front.salvaged()) {
            (Some(good), _) => {
                let measures = good.geometry();
                let grown = measures.fitted(disk.size());
                let grown = grown.map(|grown| Copy::read(&disk, "back", grown.back_area()));
                let newer = |copy: &Copy| {
                    copy.good().is_some_and(|copy| {
                        copy.identity() == good.identity() && copy.sequence > good.sequence
                    })
                };
                grown
                    .filter(newer)
                    .unwrap_or_else(|| Copy::read(&disk, "back", measures.back_area()))
            }
            (None, salvaged) => {
                let mut areas = Geometry::back_areas(disk.size());
                let back = areas
                    .find_map(|address| {
                        Some(Copy::read(&disk, "back", address))
                            .filter(|copy| copy.good().is_some())
                    })
                    .unwrap_or_else(|| Copy::read(&disk, "back", last_area));
                let elsewhere = salvaged
                    .map(|layout| Copy::read(&disk, "back", layout.geometry.back_area()))
                    .filter(|elsewhere| back.good().is_none() && elsewhere.good().is_some());
                elsewhere.unwrap_or(back)
            }
        };
        Ok(Self {
            disk,
            copies: [front, back],
        })
    }

    /// The superblock that holds.
    fn superblock(&self) -> Option<&Superblock> {
        let [front, back] = [self.copies[0].good(), self.copies[1].good()];
        match (front, back) {
            (Some(front), Some(back)) if back.sequence.get() > front.sequence.get() => Some(back),
            (front, back) => front.or(back),
        }
    }

    /// Who the sector is and how it is laid out, for what is dumped next. Says so if that had to
    /// be taken from where it should not be.
    pub fn layout(&self, teller: &Teller<'_>) -> Result<Layout, Failure> {
        let [front, back] = &self.copies;
        if let Some(superblock) = self.superblock() {
            for copy in &self.copies {
                if copy.good().is_none() {
                    let name = copy.name;
                    teller.note(format!("{name} superblock: {}", copy.verdict()))?;
                }
            }
            // Without segments, where the log ends can't be told.
            let segments_missing = self.disk.size() < superblock.geometry().back_area();
            self.judge_size(teller, superblock.sector_size.get(), segments_missing)?;
            return Ok(superblock.into());
        }
        let sector = teller.sector();
        if let Some(error) = front.newer().or(back.newer()) {
            return Err(Failure::failed(format!("sector {sector}: {error}")));
        }
        let salvaged = self
            .copies
            .iter()
            .find_map(|copy| Some((copy, copy.salvaged()?)));
        if let Some((copy, layout)) = salvaged {
            let name = copy.name;
            let message = format!(
                "no superblock is good ({}); going on by the ids and measures of the {name} one",
                copy.verdict()
            );
            teller.damage(copy.address, message)?;
            return Ok(layout);
        }
        teller.damage(
            0,
            format!(
                "no superblock is good, so nothing else can be found (front: {}; back: {})",
                front.verdict(),
                back.verdict()
            ),
        )?;
        Err(Failure::Reported(teller.exit()))
    }

    fn judge_size(&self, teller: &Teller<'_>, size: u64, judge: bool) -> Result<(), Failure> {
        let found = self.disk.size();
        if found >= size {
            return Ok(());
        }
        let message = format!("the file is truncated: {found} of {size} bytes");
        if judge {
            teller.damage(found, message)
        } else {
            teller.note(message)
        }
    }
}

/// `dump superblock`.
pub fn dump(
    teller: &Teller<'_>,
    sector: &Sector,
    named: &Named,
    sources: &Sources,
) -> Result<(), Failure> {
    let [front, back] = &sector.copies;
    let mut newer = None;
    for (copy, other) in [(front, back), (back, front)] {
        let rows = Superblock::rows(&copy.bytes, copy.address);
        teller.line(format!(
            "sector {}: {} superblock at {}: {}",
            teller.sector(),
            copy.name,
            copy.address,
            copy.verdict()
        ))?;
        teller.rows(&rows)?;
        let good = copy.good().is_some();
        let error = (!good).then(|| copy.verdict());
        teller.object(
            "superblock",
            json!({"copy": copy.name, "address": copy.address, "good": good, "error": error,
                "fields": rows_json(&rows)}),
        )?;
        if copy.is_newer_by_damage(other) {
            let message = format!(
                "the {} superblock: {}, but the {} one is of version {FORMAT_VERSION}, and good",
                copy.name,
                copy.verdict(),
                other.name
            );
            teller.damage(copy.address, message)?;
        } else if copy.newer().is_some() {
            newer = copy.newer();
        } else if !good {
            teller.damage(copy.address, copy.verdict())?;
        }
    }
    let Some(superblock) = sector.superblock() else {
        return match newer {
            Some(error) => Err(Failure::failed(format!(
                "sector {}: {error}",
                teller.sector()
            ))),
            None => Ok(()),
        };
    };
    if newer.is_some() {
        teller
            .note("one copy is of a newer version: the sector may be read as of the older one")?;
    }
    sector.judge_size(teller, superblock.sector_size.get(), true)?;
    let goods: Vec<_> = sector.copies.iter().filter_map(Copy::good).collect();
    if let [front, back] = goods.as_slice() {
        if front.identity() != back.identity() {
            teller.note("the copies are of different sectors")?;
        } else if front.sequence != back.sequence {
            teller.note("the copies are not of the same sequence: the higher one holds")?;
        }
    }
    let Identity {
        store_id,
        sector_id,
    } = superblock.identity();
    if sources.store_id.is_some_and(|id| id != store_id) {
        teller.note(format!(
            "of store {}: not the store that graviton.toml names",
            hex(&store_id)
        ))?;
    }
    if named.id.is_some_and(|id| id != sector_id) {
        teller.note(format!(
            "its id is {sector_id:016x}: not the sector that graviton.toml names"
        ))?;
    }
    Ok(())
}

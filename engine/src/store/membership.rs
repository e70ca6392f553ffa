//! Sectors come and go while the store is open.
//!
//! One that comes in is made, formatted and checkpointed before the store file names it, and gets records only
//! then. One that is to go is drained first: repair makes replicas of what it has in others, as if it had none;
//! when it is the last hope of nothing, the store file is written without it. Each step is durable before the
//! next begins, so that a crash leaves the one state or the other.
//!
//! One becomes larger in place: see [`growth`](crate::log::growth).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use graviton_format::Geometry;
use graviton_format::checksum::Identity;
use graviton_format::geometry::{AREA_SIZE, SEGMENT_COUNTS};
use graviton_format::superblock::Superblock;

use super::catalog::{self, Catalog, CatalogSector, SECTORS_MAX, sector_file};
use super::index::SectorIndex;
use super::inner::{Inner, check_labels, file_error, fit_blocks, random};
use super::maintain::{Efforts, Kept};
use super::options::{NewSector, RemoveOptions};
use super::record;
use super::set::SectorSet;
use crate::io::{Disk, OpenAccess, WriteSync};
use crate::log::growth::{grow, wipe_outgrown};
use crate::log::store_file::write_copies;
use crate::log::{Sector, Segments};
use crate::port::op::wait_for;
use crate::port::{SectorState, StorageError};
use crate::sync::MutexGuard;
use crate::sync::atomic::Ordering;

/// Bytes of a device that must be zeros at its front, at its end, and where the back area will be.
const LOOKED_AT: u64 = 1 << 20;
/// Bytes of them that are read at once.
const READ_MAX: usize = 64 << 10;

impl Inner {
    /// See [`Store::add_sector`](super::Store::add_sector).
    pub fn add_sector(self: &Arc<Self>, new: &NewSector) -> Result<u16, StorageError> {
        self.check_writable()?;
        check_labels(&new.labels)?;
        // One at a time, and no checkpoint meanwhile.
        let _alone = self.begin_maintenance()?;
        if let Some(replaced) = new.replaces {
            self.check_dispensable(self.check_member(replaced)?, 1)?;
        }
        let number = self.sectors.unused().ok_or_else(|| {
            StorageError::invalid(format!(
                "a sector more: {SECTORS_MAX} numbers have been in use since the store was opened"
            ))
        })?;
        let number = u16::try_from(number).unwrap_or(u16::MAX);
        let file = new.file.clone().unwrap_or_else(|| self.unused_file(number));
        if file.to_str().is_none() {
            let what = format!("{}: the store file holds paths in UTF-8", file.display());
            return Err(StorageError::invalid(what));
        }
        self.check_catalog(|catalog| {
            let mut named = CatalogSector::new(number, file.clone(), 0);
            named.set_labels(&new.labels);
            catalog.sectors.push(named);
        })?;
        let path = self.path.join(&file);
        let device = match new.file.is_some() {
            true => self.device_size(&path)?,
            false => None,
        };
        let size = size_on(device, new.size, &path)?;
        let geometry = self.geometry_of_new(size)?;
        self.end_additions()?;
        let device = match device {
            Some(_) => Some(self.open_blank(&path, geometry, new.overwrite)?),
            None => None,
        };
        let is_device = device.is_some();
        let backend = self.backend.as_ref();
        catalog::begin_addition(backend, &self.path, &file, is_device).map_err(
            |error| match error.kind() {
                io::ErrorKind::AlreadyExists => StorageError::AlreadyExists { path: path.clone() },
                _ => file_error("prepare", &path)(error),
            },
        )?;
        let added = self.make_sector(number, (&file, &path), geometry, device, new);
        let Err(error) = added else {
            self.end_additions()?;
            return Ok(number);
        };
        // What the store file does not name is removed, once it is certain that it does not.
        if self.write_catalog(|_| {}).is_ok() {
            let _ = self.end_additions();
        }
        Err(error)
    }

    /// A file in the store's directory for a sector: one that was taken away may have left its own behind.
    fn unused_file(&self, number: u16) -> PathBuf {
        let first = sector_file(number);
        let stem = first
            .file_stem()
            .and_then(|stem| stem.to_str())
            .unwrap_or("sector");
        let more = (1..100).map(|more| PathBuf::from(format!("{stem}-{more}.graviton")));
        let is_there = |file: &PathBuf| self.path.join(file).symlink_metadata().is_ok();
        let mut names = std::iter::once(first.clone()).chain(more);
        names.find(|file| !is_there(file)).unwrap_or(first)
    }

    /// The measures of a sector of about so many bytes, in segments of the same size as the others have.
    fn geometry_of_new(&self, size: u64) -> Result<Geometry, StorageError> {
        let members = self.sectors.members();
        fitted(&self.sectors[members.first().unwrap_or(0)].geometry(), size)
    }

    /// How many bytes the block device at `path` has, if there is one.
    fn device_size(&self, path: &Path) -> Result<Option<u64>, StorageError> {
        let found = self.backend.device_size(path);
        found.map_err(file_error("open", path))
    }

    /// Opens a block device that a sector is to be made of, if there is nothing on it.
    fn open_blank(
        &self,
        path: &Path,
        geometry: Geometry,
        overwrite: bool,
    ) -> Result<Arc<dyn Disk>, StorageError> {
        let disk = self
            .backend
            .open(path, OpenAccess::ReadWrite)
            .map_err(file_error("open", path))?;
        let failed = |error| file_error("read", path)(error);
        let not_blank = |what: String| StorageError::NotBlank {
            path: path.to_owned(),
            what,
        };
        let size = disk.size();
        for address in std::iter::once(0).chain(Geometry::back_areas(size)) {
            let Ok(copy) = Superblock::decode(&read(&disk, address, 1).map_err(failed)?, address)
            else {
                continue;
            };
            if copy.store_id == self.store_id && self.is_named(copy.sector_id.get()) {
                let what = format!("sector {} of this store", copy.sector_number);
                return Err(not_blank(what));
            }
        }
        if overwrite {
            return Ok(disk);
        }
        // What others put on a device says so at its front, or at its end.
        let places = [0, geometry.back_area(), size.saturating_sub(LOOKED_AT)];
        for start in places {
            for address in (start..size.min(start + LOOKED_AT)).step_by(READ_MAX) {
                let bytes = read(&disk, address, READ_MAX).map_err(failed)?;
                if let Some(at) = bytes.iter().position(|&byte| byte != 0) {
                    let what = format!("bytes that are not zero, at {}", address + at as u64);
                    return Err(not_blank(what));
                }
            }
        }
        Ok(disk)
    }

    fn make_sector(
        self: &Arc<Self>,
        number: u16,
        (file, path): (&Path, &Path),
        geometry: Geometry,
        device: Option<Arc<dyn Disk>>,
        new: &NewSector,
    ) -> Result<(), StorageError> {
        let backend = self.backend.as_ref();
        let disk = match device {
            Some(device) => {
                // What was on it before must not be taken for what a sector has.
                let zeroed = device.extend(0, geometry.sector_size());
                zeroed.map_err(file_error("write zeros over", path))?;
                device
            }
            None => backend
                .create(path, geometry.sector_size())
                .map_err(file_error("create", path))?,
        };
        let mut notice = None;
        let access = OpenAccess::ReadWrite;
        let disk = fit_blocks(backend, disk, access, geometry.block_size, &mut notice)?;
        if let Some(notice) = notice {
            self.note(notice);
        }
        let identity = Identity {
            store_id: self.store_id,
            sector_id: u64::from_le_bytes(random(backend, path)?),
        };
        let created = record::milliseconds(backend.now());
        let superblock = Superblock::new(identity, number, number + 1, &geometry, created);
        let sector = Arc::new(wait_for(Sector::format(disk, superblock))?);
        // Nothing is put into it yet.
        sector.withhold(true);
        self.begin_company();
        self.take_in(&sector);
        let outcome = self.found(&sector, file, new);
        if outcome.is_err() {
            self.let_go_of(usize::from(number));
        }
        outcome
    }

    /// See [`Store::grow_sector`](super::Store::grow_sector).
    pub fn grow_sector(self: &Arc<Self>, number: u16, size: u64) -> Result<u64, StorageError> {
        self.check_writable()?;
        let alone = self.begin_growth()?;
        let place = self.check_member(number)?;
        let sector = &self.sectors[place];
        sector.check_writable()?;
        let before = sector.geometry();
        let device = match sector.disk().info().is_device {
            true => self.device_size(sector.path())?,
            false => None,
        };
        let size = size_on(device, size, sector.path())?;
        let grown = fitted(&before, size)?;
        if grown.segment_count < before.segment_count {
            return Err(StorageError::invalid(format!(
                "sector {number} has {} bytes, and does not shrink to {size}",
                before.sector_size()
            )));
        }
        if grown == before {
            return Ok(before.sector_size());
        }
        let roots = self.kept.lock()[place].roots();
        let store_file = self.catalog.lock().text();
        let outcome = wait_for(async {
            grow(sector, grown, &roots, &store_file).await?;
            // Before anything is put there.
            wipe_outgrown(sector, before).await
        });
        // Nobody takes anything of it into use before this, nor sees a part of it.
        let mut index = self.index.write();
        let part = &mut index.sectors[place];
        part.segments.grow(sector.count_segments());
        part.update_reserve();
        drop(index);
        drop(alone);
        // What waits for room goes on, and what was short for want of it may go there.
        self.pump();
        self.marks.want_scan();
        self.kick_maintenance();
        outcome.map(|()| grown.sector_size())
    }

    /// Waits for its turn to do maintenance, ahead of what waits for readers to make room: there may be room
    /// soon without.
    fn begin_growth(&self) -> Result<MutexGuard<'_, Efforts>, StorageError> {
        self.growing.fetch_add(1, Ordering::SeqCst);
        self.sectors
            .iter()
            .for_each(|sector| sector.wake_for_unpin());
        let efforts = self.begin_maintenance();
        self.growing.fetch_sub(1, Ordering::SeqCst);
        efforts
    }

    /// What is done to one sector alone needs no order with others. From here on it has one: waits for
    /// what was begun before.
    fn begin_company(self: &Arc<Self>) {
        if self.has_company.swap(true, Ordering::SeqCst) {
            return;
        }
        self.commits.lock().stake_waiting();
        for sync in self.sync_each(self.sectors.members()) {
            // If it fails, what was before it is over as well.
            let _ = wait_for(sync);
        }
    }

    /// Everything that is kept by number gets a place for a sector.
    fn take_in(&self, sector: &Arc<Sector>) {
        let number = usize::from(sector.number());
        self.labels
            .write()
            .resize_with(SECTORS_MAX, Default::default);
        let mut commits = self.commits.lock();
        let mut kept = self.kept.lock();
        let mut index = self.index.write();
        commits.make_room(number + 1);
        while kept.len() <= number {
            kept.push(Kept::of_none());
        }
        kept[number] = Kept::none();
        let nothing = |sector: &Arc<Sector>| {
            SectorIndex::new(Arc::clone(sector), None, Segments::new(&sector.geometry()))
        };
        while index.sectors.len() <= number {
            let vacant = nothing(self.sectors.vacant());
            index.add(vacant);
        }
        index.sectors[number] = nothing(sector);
        self.sectors.add(Arc::clone(sector));
    }

    /// Checkpoints a sector that has nothing, and names it in the store file.
    fn found(
        self: &Arc<Self>,
        sector: &Arc<Sector>,
        file: &Path,
        new: &NewSector,
    ) -> Result<(), StorageError> {
        let number = usize::from(sector.number());
        // Two, so that damage to one leaves another.
        self.checkpoint_of_new(number)?;
        self.checkpoint_of_new(number)?;
        let members = self.sectors.members();
        let mut session = self.session;
        if session == 0 {
            let drawn = random(self.backend.as_ref(), &self.path)?;
            session = u64::from_le_bytes(drawn).max(1);
        }
        let store_file = self.catalog.lock().text();
        wait_for(async {
            write_copies(sector, &store_file).await?;
            sector.join(session, members.bits()).await
        })?;
        let mut named = CatalogSector::new(
            sector.number(),
            file.to_owned(),
            sector.identity().sector_id,
        );
        named.session = Some(catalog::hex_id(session));
        named.set_labels(&new.labels);
        // Or whoever goes on behind a crash would add another.
        named.replaces = new.replaces;
        self.write_catalog(|catalog| {
            let place = catalog
                .sectors
                .partition_point(|other| other.number < named.number);
            catalog.sectors.insert(place, named);
            let replaced = new.replaces.map(usize::from);
            if let Some(replaced) = replaced.and_then(|number| catalog.sector_mut(number)) {
                replaced.draining = true;
            }
        })?;
        if let Some(replaced) = new.replaces {
            self.sectors[usize::from(replaced)].set_draining(true);
        }
        self.labels.write()[number] = new.labels.clone();
        // Before it has anything: who finds no other copy must find it named.
        self.keep_store_file_everywhere();
        let _ = self.keep_store_file(number);
        self.tell_members(members);
        sector.withhold(false);
        // What was short for want of a sector may go there.
        self.marks.want_scan();
        self.kick_maintenance();
        Ok(())
    }

    /// The sectors are told which there are. One that can't be is given up; it is not missed if it knows of
    /// fewer.
    fn tell_members(&self, members: SectorSet) {
        for number in self.writable().iter() {
            let sector = &self.sectors[number];
            if sector.claim().1 != members.bits() {
                let session = sector.session();
                let _ = wait_for(sector.join(session, members.bits()));
            }
        }
    }

    /// Removes what was made for sectors that never came to be named.
    pub fn end_additions(&self) -> Result<(), StorageError> {
        let backend = self.backend.as_ref();
        let failed = |error| file_error("tidy up", &self.path)(error);
        let noted = catalog::noted_addition(backend, &self.path).map_err(failed)?;
        let Some(file) = noted else {
            return Ok(());
        };
        let path = self.path.join(&file);
        let members = self.sectors.members();
        let is_member = members
            .iter()
            .any(|number| self.sectors[number].path() == path);
        // A member is not opened: it is locked, by this store itself.
        if !is_member && self.is_unfinished(&path) {
            // A device keeps its name, and is taken for no sector.
            match self.backend.device_size(&path) {
                Ok(Some(size)) => {
                    if let Ok(disk) = backend.open(&path, OpenAccess::ReadWrite) {
                        wipe(&disk, Geometry::back_areas(size), |copy| {
                            copy.store_id == self.store_id && !self.is_named(copy.sector_id.get())
                        });
                    }
                }
                _ => backend.remove_file(&path).map_err(failed)?,
            }
        }
        catalog::end_addition(backend, &self.path).map_err(failed)
    }

    /// Whether a file is what a sector of this store is made of, and none that the store file names: nothing yet,
    /// or a superblock. (The store may have been moved since it was begun, and the path be another's.)
    fn is_unfinished(&self, path: &Path) -> bool {
        let Ok(disk) = self.backend.open(path, OpenAccess::ReadOnly) else {
            return false;
        };
        let length = size_of::<Superblock>().max(disk.info().block_size as usize);
        if disk.size() < length as u64 {
            return disk.size() == 0;
        }
        let Ok(buffer) = disk.buffer(length) else {
            return false;
        };
        let (buffer, outcome) = wait_for(disk.read(buffer, 0));
        let is_ours = Superblock::decode(&buffer, 0).is_ok_and(|superblock| {
            superblock.store_id == self.store_id && !self.is_named(superblock.sector_id.get())
        });
        outcome.is_ok() && (is_ours || buffer.iter().all(|&byte| byte == 0))
    }

    /// Whether the store file names a sector of this id.
    fn is_named(&self, id: u64) -> bool {
        let id = catalog::hex_id(id);
        let catalog = self.catalog.lock();
        catalog.sectors.iter().any(|sector| sector.id == id)
    }

    /// See [`Store::drain_sector`](super::Store::drain_sector).
    pub fn drain_sector(&self, number: u16) -> Result<(), StorageError> {
        self.check_writable()?;
        let number = self.check_member(number)?;
        self.check_dispensable(number, 0)?;
        self.set_draining(number, true)?;
        self.marks.want_scan();
        Ok(())
    }

    /// See [`Store::undrain_sector`](super::Store::undrain_sector).
    pub fn undrain_sector(&self, number: u16) -> Result<(), StorageError> {
        self.check_writable()?;
        let number = self.check_member(number)?;
        self.set_draining(number, false)
    }

    fn set_draining(&self, number: usize, draining: bool) -> Result<(), StorageError> {
        self.write_catalog(|catalog| {
            if let Some(named) = catalog.sector_mut(number) {
                named.draining = draining;
            }
            if !draining {
                forget_replaced(catalog, number);
            }
        })?;
        self.sectors[number].set_draining(draining);
        Ok(())
    }

    /// The number of a sector that there is.
    pub fn check_member(&self, number: u16) -> Result<usize, StorageError> {
        let members = self.sectors.members();
        let place = usize::from(number);
        match place < SECTORS_MAX && members.contains(place) {
            true => Ok(place),
            false => Err(StorageError::invalid(format!(
                "there is no sector {number}: the store has {members:?}"
            ))),
        }
    }

    /// Whether there are enough sectors without one, if so many more come.
    fn check_dispensable(&self, number: usize, more: usize) -> Result<(), StorageError> {
        let left = self.keepers().without(SectorSet::one(number));
        match left.len() + more < self.replicas {
            true => Err(StorageError::invalid(format!(
                "without sector {number} those that take some are {left:?}, too few (replicas: {})",
                self.replicas
            ))),
            false => Ok(()),
        }
    }

    /// See [`Store::remove_sector`](super::Store::remove_sector).
    pub fn remove_sector(
        self: &Arc<Self>,
        number: u16,
        options: RemoveOptions,
    ) -> Result<(), StorageError> {
        self.check_writable()?;
        let place = self.check_member(number)?;
        let mut efforts = self.begin_maintenance()?;
        self.check_dispensable(place, 0)?;
        self.check_needed(place, options)?;
        let sector = Arc::clone(&self.sectors[place]);
        // What is queued for it alone arrives, and what comes later goes elsewhere.
        let was_draining = sector.is_draining();
        sector.set_draining(true);
        self.pump();
        self.wait_until_idle(place);
        sector.withhold(true);
        // What waits for it still goes to others, and what is on its way arrives.
        self.pump();
        self.wait_until_idle(place);
        let goes_on = || {
            sector.set_draining(was_draining);
            sector.withhold(false);
            self.pump();
        };
        // Nothing comes in any more that needs it.
        let lacking = self
            .check_needed(place, options)
            .inspect_err(|_| goes_on())?;
        let removed = self
            .note_removal(&sector)
            .and_then(|()| self.unname(place, lacking));
        match removed {
            Ok(file) => {
                efforts.forget_repairs();
                self.let_go_of(place);
                self.remove_file_of(&sector, &file);
                // If it is left, the next to open the store tries again.
                let _ = self.end_additions();
                self.keep_store_file_everywhere();
                drop(efforts);
                self.marks.want_scan();
                self.kick_maintenance();
                Ok(())
            }
            Err(error) => {
                // Unless it is not certain what the store file says: then it gets nothing any more.
                if self.write_catalog(|_| {}).is_ok() {
                    let _ = self.end_additions();
                    goes_on();
                }
                Err(error)
            }
        }
    }

    /// Whoever opens the store next removes the file, if the power fails before that is done.
    ///
    /// # Errors
    /// `File`.
    fn note_removal(&self, sector: &Sector) -> Result<(), StorageError> {
        self.end_additions()?;
        match sector.path().strip_prefix(&self.path) {
            Ok(file) if !sector.disk().info().is_device => {
                let noted = catalog::note_file(self.backend.as_ref(), &self.path, file);
                noted.map_err(file_error("tidy up", &self.path))
            }
            _ => Ok(()),
        }
    }

    /// Its file goes too, if it was made in the store's directory and can be removed. A device stays, and is taken
    /// for no sector.
    fn remove_file_of(&self, sector: &Sector, file: &Path) {
        if sector.disk().info().is_device {
            let back = sector.geometry().back_area();
            wipe(sector.disk(), [back], |copy| {
                copy.identity() == *sector.identity()
            });
        } else if file.is_relative() {
            let path = self.path.join(file);
            if let Err(error) = self.backend.remove_file(&path) {
                let number = sector.number();
                let path = path.display();
                self.note(format!(
                    "sector {number} was taken away, but its file is left: remove {path}: {error}"
                ));
            }
        }
    }

    /// See [`Store::needed`](super::Store::needed).
    pub fn needed(&self, number: u16) -> Result<u64, StorageError> {
        self.check_open()?;
        let number = self.check_member(number)?;
        let held = self.index.read().sectors[number].held();
        Ok(self.lacking_without(number)? + held)
    }

    /// How many keys have too few replicas without a sector.
    ///
    /// # Errors
    /// `StillNeeded` if there are any, unless that is accepted.
    fn check_needed(&self, number: usize, options: RemoveOptions) -> Result<u64, StorageError> {
        let sector = self.sectors[number].number();
        let keys = self.needed(sector)?;
        if keys > 0 && !options.accept_loss {
            return Err(StorageError::StillNeeded { sector, keys });
        }
        Ok(keys)
    }

    /// Takes a sector out of the store file, and returns its file.
    fn unname(&self, number: usize, lacking: u64) -> Result<PathBuf, StorageError> {
        if lacking > 0 {
            self.note_shortage()?;
        }
        let members = self.sectors.members().without(SectorSet::one(number));
        // Those that knew of it no more can't be missed for it [F-66].
        self.tell_members(members);
        let unaware = members.without(self.writable());
        if !unaware.is_empty() {
            // So many of them are missed by nobody, and no more.
            self.note_shortage()?;
            self.check_told(unaware)?;
        }
        let mut file = PathBuf::new();
        self.write_catalog(|catalog| {
            if let Some(named) = catalog.sector_mut(number) {
                file.clone_from(&named.file);
            }
            catalog
                .sectors
                .retain(|named| usize::from(named.number) != number);
            forget_replaced(catalog, number);
            if lacking > 0 {
                // What is lost with it may be in one that comes back.
                catalog.sectors.iter_mut().for_each(CatalogSector::holds);
            }
        })?;
        Ok(file)
    }

    /// Whether the sectors that do not know which others there are now count as behind: one that comes back and is
    /// not would be taken for one of a store that has lost its store file.
    ///
    /// # Errors
    /// What ails the first that does not.
    fn check_told(&self, unaware: SectorSet) -> Result<(), StorageError> {
        let catalog = self.catalog.lock();
        let behind = catalog.sectors.iter().filter(|named| named.behind);
        let behind: SectorSet = behind.map(|named| named.number.into()).collect();
        let mut untold = unaware.without(behind).iter();
        untold.try_for_each(|number| self.sectors[number].check_well())
    }

    /// A sector is none of the store any more.
    fn let_go_of(&self, number: usize) {
        let sector = &self.sectors[number];
        sector.set_gone();
        let why = StorageError::invalid("it was removed");
        sector.leave_out(SectorState::Absent, &why);
        self.marks.forget(number);
        self.mending.lock().forget(number);
        let place = format!("sector {number} at offset ");
        self.health.lock().retain(|line| !line.contains(&place));
        let vacant = Arc::clone(self.sectors.vacant());
        self.kept.lock()[number] = Kept::of_none();
        let nothing = Segments::new(&vacant.geometry());
        let mut index = self.index.write();
        index.forget(number, SectorIndex::new(vacant, None, nothing));
        if let Some(cache) = &self.cache {
            cache.forget_all();
        }
    }

    /// How many keys have fewer replicas than they should, or can, in the sectors that are left without one.
    fn lacking_without(&self, number: usize) -> Result<u64, StorageError> {
        let left = self.keepers().without(SectorSet::one(number));
        // What asks for more sectors than there are then needs none that is not among them.
        let most = left.len().max(self.replicas);
        self.count_keys(|holders, wanted, _| holders.within(left).len() < wanted.min(most))
    }
}

/// The size of a sector that is to have so many bytes, `u64::MAX` standing for all of a device, which has as many as
/// `device` says.
fn size_on(device: Option<u64>, size: u64, path: &Path) -> Result<u64, StorageError> {
    match device {
        Some(most) if size == u64::MAX => Ok(most),
        Some(most) if size > most => Err(StorageError::invalid(format!(
            "sector size {size}: {} has {most} bytes",
            path.display()
        ))),
        _ => Ok(size),
    }
}

/// Nothing comes for a sector any more.
fn forget_replaced(catalog: &mut Catalog, number: usize) {
    for named in &mut catalog.sectors {
        named
            .replaces
            .take_if(|replaced| usize::from(*replaced) == number);
    }
}

/// The measures of a sector of about so many bytes, with segments as `model` has them.
fn fitted(model: &Geometry, size: u64) -> Result<Geometry, StorageError> {
    model.fitted(size).ok_or_else(|| {
        let (fewest, most) = SEGMENT_COUNTS;
        let count = size.saturating_sub(2 * AREA_SIZE) / model.segment_size;
        StorageError::invalid(format!(
            "sector size {size}: {count} segments of {} bytes, must be {fewest} to {most}",
            model.segment_size
        ))
    })
}

/// Up to `length` bytes at `address` of a disk, or somewhat more: whole blocks.
fn read(disk: &Arc<dyn Disk>, address: u64, length: usize) -> io::Result<Vec<u8>> {
    let block = disk.info().block_size;
    let skip = usize::try_from(address % u64::from(block)).map_err(io::Error::other)?;
    let start = address - skip as u64;
    let left = usize::try_from(disk.size().saturating_sub(start)).unwrap_or(usize::MAX);
    let wanted = (skip + length).next_multiple_of(block as usize).min(left);
    let (buffer, outcome) = wait_for(disk.read(disk.buffer(wanted)?, start));
    outcome?;
    Ok(buffer.get(skip..).unwrap_or_default().to_vec())
}

/// Has a device taken for no sector any more, if it can be written to: zeroes its superblock copies, at its front and
/// at `others`, that are `ours`.
fn wipe(
    disk: &Arc<dyn Disk>,
    others: impl IntoIterator<Item = u64>,
    ours: impl Fn(&Superblock) -> bool,
) {
    let block = disk.info().block_size as usize;
    for address in others.into_iter().chain([0]) {
        let is_ours = read(disk, address, 1)
            .is_ok_and(|bytes| Superblock::decode(&bytes, address).is_ok_and(|copy| ours(&copy)));
        if is_ours && let Ok(mut zeros) = disk.buffer(block) {
            zeros.fill(0);
            let _ = wait_for(disk.write(zeros, address, WriteSync::Data));
        }
    }
}

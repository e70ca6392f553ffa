//! Recovery: what the sectors of a store hold is put together when it is opened.
//!
//! Each sector is recovered by itself: its newest whole checkpoint, and the log behind that. Of each key
//! the highest LSN of all holds then. A sector that can't be used (missing, broken, of another store, or an
//! older copy of itself) is *left out*, if those that are left have all that was acknowledged: one that has
//! nothing and takes nothing stands in for it, and the store is open without it.
//!
//! Who took part is told by *sessions*: whoever opens the store for writing draws a number for it, and puts it
//! into the superblocks of the sectors that take part, and into the store file.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::path::Path;
use std::sync::Arc;

use graviton_format::FORMAT_VERSION;
use graviton_format::Geometry;
use graviton_format::checksum::Identity;
use graviton_format::meta;
use graviton_format::record::RecordKind;
use graviton_format::structure::hex;
use rustix::io::Errno;

use super::catalog::{Catalog, CatalogSector, hex_id};
use super::index::{Applied, Index, Lacking, SectorIndex};
use super::inner::{file_error, fit_blocks, random};
use super::maintain::{Kept, forgettable};
use super::mend::place_of;
use super::options::{Access, OpenOptions};
use super::record::Details;
use super::sectors::{Sectors, vacant};
use super::set::SectorSet;
use crate::io::{Backend, Disk, OpenAccess};
use crate::log::image_io::{LoadedImage, Root, has_image, mend_roots, read_image, read_roots};
use crate::log::replay::{Damage, LoggedFrame, LoggedRecord};
use crate::log::sector::is_failed_read;
use crate::log::store_file::{keep_copies, write_copies};
use crate::log::{Replay, Sector, Segments, State};
use crate::port::op::all;
use crate::port::{ErrorKind, Place, SectorState, StorageError};
use crate::sync::thread::{self, JoinHandle};

/// LSNs and generations above this are damage, not age: counting on from them would overflow.
const COUNTER_MAX: u64 = 1 << 62;
/// LSNs that are skipped when a store is opened for writing, at least. A sector that was away may hold more
/// than the others know of, but never so much more.
const SKIPPED_MIN: u64 = 1 << 24;

/// What a store is opened from.
pub struct Opening<'a> {
    pub path: &'a Path,
    pub options: &'a OpenOptions,
    pub backend: &'a Arc<dyn Backend>,
    /// Why the backend is not the preferred one.
    pub notice: Option<String>,
    pub catalog: Catalog,
}

/// What came of it.
pub struct Recovered {
    pub sectors: Sectors,
    /// What the session that was begun is called; 0: none was.
    pub session: u64,
    pub store_id: [u8; 16],
    pub catalog: Catalog,
    pub notice: Option<String>,
    pub index: Index,
    pub kept: Vec<Kept>,
    pub health: Vec<String>,
    /// Damage that was met in the logs.
    pub damage: Vec<StorageError>,
    /// Where something of a checkpoint is damaged.
    pub bad_checkpoints: Vec<Place>,
    /// The highest LSN there is.
    pub newest: u64,
    /// LSNs behind it that are not given out.
    pub skip: u64,
    pub lacking: Lacking,
}

/// Opens the sectors of a store, and recovers what they hold.
///
/// # Errors
/// As [`Store::open`](super::Store::open).
pub async fn recover(opening: Opening<'_>) -> Result<Recovered, StorageError> {
    let Opening {
        path,
        options,
        backend,
        mut notice,
        catalog,
    } = opening;
    let mut recovery = Recovery {
        writing: options.access == Access::ReadWrite,
        salvaging: options.access == Access::Salvage,
        dispensable: options
            .accept_loss_of
            .iter()
            .map(|&number| number.into())
            .collect(),
        ..Recovery::default()
    };
    // With one replica, what lies in a sector lies nowhere else.
    let accepts_loss = recovery.salvaging || !recovery.dispensable.is_empty();
    recovery.leaves_out = catalog.replicas > 1 || (accepts_loss && catalog.sectors.len() > 1);
    recovery
        .open_sectors(path, backend, &catalog, &mut notice)
        .await?;
    recovery.load_all().await?;
    recovery.replay_all().await?;
    let forgettable = forgettable(&recovery.kept);
    if !recovery.writing {
        recovery.tell_left_out(&catalog);
    }
    let void = recovery.void(&catalog);
    let lacking = recovery
        .index
        .settle(catalog.replicas.into(), forgettable, &void)?;
    recovery.check_enough(path, &catalog)?;
    let known = recovery.sectors.iter().find(|sector| !sector.is_gone());
    let known = known.map(|sector| (*sector.identity(), sector.geometry()));
    let Some(known) = known else {
        return Err(StorageError::invalid("no sectors"));
    };
    let sectors = recovery.sectors.into_iter();
    let sectors = sectors.map(|sector| (!sector.is_gone()).then_some(sector));
    let mut recovered = Recovered {
        store_id: known.0.store_id,
        sectors: Sectors::new(sectors.collect(), known),
        session: 0,
        notice,
        newest: recovery.known.max(catalog.lsn),
        skip: 0,
        index: recovery.index,
        kept: recovery.kept,
        health: recovery.health,
        damage: recovery.damage,
        bad_checkpoints: recovery.bad_checkpoints,
        lacking,
        catalog,
    };
    if recovery.writing {
        // What a crash took may have had the LSNs that come next, and been seen: they are not
        // given out twice.
        let skip = u32::from_le_bytes(random(backend.as_ref(), path)?);
        recovered.skip = SKIPPED_MIN + u64::from(skip);
        recovered
            .mend(&recovery.replays, &recovery.behind, recovery.leaves_out)
            .await?;
        recovered.check_any_writable()?;
        if let [only] = recovered.catalog.sectors.as_slice() {
            let sector = &recovered.sectors[usize::from(only.number)];
            keep_copies(sector, &recovered.catalog.text()).await?;
        } else {
            let accepted = recovery.dispensable;
            recovered
                .begin_session(path, backend.as_ref(), accepted, &void)
                .await?;
        }
        recovered.check_any_writable()?;
    }
    for preparing in recovery.preparing {
        // What has not come about, the first lookup makes.
        let _ = preparing.join();
    }
    Ok(recovered)
}

/// Prepares an image for lookups, beside what else is to be read: that waits for the device, this for memory.
fn prepare(image: &Arc<LoadedImage>) -> Option<JoinHandle<()>> {
    /// Fewer are prepared sooner than a thread is there.
    const ENTRIES_MIN: u64 = 20_000;
    if image.header().entries.get() < ENTRIES_MIN {
        image.prepare();
        return None;
    }
    let image = Arc::clone(image);
    let thread = thread::Builder::new().name("graviton-prepare".to_owned());
    thread.spawn(move || image.prepare()).ok()
}

impl Recovered {
    fn writable(&self) -> SectorSet {
        let sectors = self.sectors.iter().enumerate();
        let writable = sectors.filter(|(_, sector)| sector.is_writable());
        writable.map(|(number, _)| number).collect()
    }

    /// The first that takes no writes says why.
    fn check_any_writable(&self) -> Result<(), StorageError> {
        match self.writable().is_empty() {
            true => self
                .sectors
                .iter()
                .try_for_each(|sector| sector.check_writable()),
            false => Ok(()),
        }
    }

    /// Writes what a crash has left half done to its end. A sector that does not take it is given up.
    async fn mend(
        &self,
        replays: &[Option<Replay>],
        behind: &[Vec<(u64, Root)>],
        goes_on: bool,
    ) -> Result<(), StorageError> {
        for number in self.writable().iter() {
            let sector = &self.sectors[number];
            let mended = async {
                sector.end_where_it_should();
                sector.mend_superblock().await?;
                mend_roots(sector, &behind[number]).await?;
                if let Some(replay) = &replays[number] {
                    replay.mend().await?;
                }
                // What was read may not be durable yet; from here on the log says that it is.
                sector.sync().await
            };
            match mended.await {
                Err(error) if !goes_on || is_of_all(&error) => return Err(error),
                Err(error) => sector.poison(&error),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Gives up a sector that does not take what it is told, where others have what it has.
    fn go_on_without(
        &self,
        number: usize,
        told: Result<(), StorageError>,
        replicas: u16,
    ) -> Result<(), StorageError> {
        match told {
            Err(error) if replicas == 1 || is_of_all(&error) => Err(error),
            Err(error) => {
                self.sectors[number].poison(&error);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Begins a session: the store file says that one is being begun, then the sectors that they take part,
    /// then the store file who does, and what those who do not leave lacking. Nothing is acknowledged before
    /// \[F-66\].
    async fn begin_session(
        &mut self,
        path: &Path,
        backend: &dyn Backend,
        accepted: SectorSet,
        void: &[(usize, u64)],
    ) -> Result<(), StorageError> {
        let session = u64::from_le_bytes(random(backend, path)?).max(1);
        let mut begun = self.catalog.clone();
        for named in &mut begun.sectors {
            let sector = &self.sectors[usize::from(named.number)];
            if sector.is_writable() && sector.session() != 0 {
                named.session = Some(hex_id(sector.session()));
            }
        }
        begun.beginning = Some(hex_id(session));
        let was_away = begun.sectors.iter().any(|named| named.behind);
        let is_whole = self.writable() == begun.members();
        let needs_note = was_away || self.lacking.is_short || !is_whole;
        match begun.write(backend, path) {
            Ok(()) => {}
            // Of a full disk at least the room in the sectors is left. (With replicas, an older copy of a sector
            // would not be told from what it is to become.)
            Err(error) if !needs_note && begun.replicas == 1 => {
                self.health.push(format!("no session was begun: {error}"));
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        // Or nobody could say that what the sectors are told next is newer.
        let told = begun.text();
        let writable = self.writable();
        let copies = writable
            .iter()
            .map(|number| write_copies(&self.sectors[number], &told));
        for (number, kept) in writable.iter().zip(all(copies).await) {
            self.go_on_without(number, kept, begun.replicas)?;
        }
        let members = begun.members().bits();
        for number in self.writable().iter() {
            let joined = self.sectors[number].join(session, members).await;
            self.go_on_without(number, joined, begun.replicas)?;
        }
        let writable = self.writable();
        let mut is_short = self.lacking.is_short || writable.len() < usize::from(begun.replicas);
        // So many are missed by nobody: what they have is elsewhere, too.
        let mut dispensable = match begun.short {
            true => 0,
            false => usize::from(begun.replicas) - 1,
        };
        // Those that can't be read come first: it was seen that they are no more.
        let is_readable =
            |named: &&mut CatalogSector| !self.sectors[usize::from(named.number)].is_stood_in_for();
        let (readable, others): (Vec<_>, Vec<_>) = begun.sectors.iter_mut().partition(is_readable);
        let first_lsn = self.newest + 1 + self.skip;
        begun.lsn = first_lsn;
        for named in others.into_iter().chain(readable) {
            let number = usize::from(named.number);
            if writable.contains(number) {
                named.session = Some(hex_id(session));
                named.behind = false;
                let is_void = |(of, _): &(usize, u64)| *of == number;
                named.void_below = named.void_below.filter(|_| void.iter().any(is_void));
            } else if !named.behind {
                // What it has was not known to lie elsewhere.
                is_short = true;
                let is_accepted = accepted.contains(number);
                named.behind = is_accepted || dispensable > 0;
                let is_void = dispensable > 0 && self.sectors[number].is_stood_in_for();
                named.void_below = is_void.then_some(first_lsn);
                dispensable = dispensable.saturating_sub(usize::from(!is_accepted));
            } else if named.void_below.is_none() && self.sectors[number].is_stood_in_for() {
                // It failed while it took part.
                named.void_below = Some(first_lsn);
            }
        }
        if !accepted.is_empty() {
            // What is lost may be in one of those that come back.
            begun.sectors.iter_mut().for_each(CatalogSector::holds);
        }
        begun.beginning = None;
        begun.short |= is_short && begun.replicas > 1;
        begun.write(backend, path)?;
        self.catalog = begun;
        self.session = session;
        Ok(())
    }
}

/// Whether an error is none of the sector in which it was met.
fn is_of_all(error: &StorageError) -> bool {
    let source = match error {
        StorageError::UnsupportedVersion { .. } | StorageError::Locked { .. } => return true,
        StorageError::Io { source, .. } | StorageError::File { source, .. } => source,
        _ => return false,
    };
    let errno = Errno::from_io_error(source);
    source.kind() == io::ErrorKind::OutOfMemory
        || matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
}

/// What a sector that can't be used is, if it is not there.
fn state_of(error: &StorageError) -> SectorState {
    match error {
        StorageError::File { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            SectorState::Absent
        }
        _ => SectorState::Failed,
    }
}

/// Whether the file could be opened for reading, perhaps.
fn is_of_writing(error: &StorageError) -> bool {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    matches!(error, StorageError::File { source, .. }
        if matches!(source.kind(), PermissionDenied | ReadOnlyFilesystem))
}

/// Opens the disk of a sector.
///
/// # Errors
/// `Locked` if it is open in another process; `InvalidStore` if no sector can lie there; `File`.
pub fn open_disk(
    backend: &dyn Backend,
    file: &Path,
    access: OpenAccess,
) -> Result<Arc<dyn Disk>, StorageError> {
    let disk = backend.open(file, access);
    disk.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => invalid(file, error.to_string()),
        io::ErrorKind::WouldBlock => StorageError::Locked {
            path: file.to_owned(),
            owner: "a process that opened it as a sector of a store in another directory"
                .to_owned(),
        },
        _ => file_error("open", file)(error),
    })
}

/// Whether a sector is the one that the store file names.
fn check_identity(
    sector: &Sector,
    file: &Path,
    catalog: &Catalog,
    named: &CatalogSector,
) -> Result<(), StorageError> {
    let identity = sector.identity();
    let store_id = hex(&identity.store_id);
    let (claimed, _) = sector.claim();
    let why = if store_id != catalog.store_id {
        format!("belongs to store {store_id}, not to {}", catalog.store_id)
    } else if hex_id(identity.sector_id) != named.id {
        format!("is sector {:016x}, not {}", identity.sector_id, named.id)
    } else if claimed != named.number {
        let listed = named.number;
        format!("is sector number {claimed} of its store, listed as {listed}")
    } else if catalog.format_version != FORMAT_VERSION {
        format!(
            "the store file says format version {}",
            catalog.format_version
        )
    } else {
        return Ok(());
    };
    Err(invalid(file, why))
}

/// Whether a sector and the store file are of the same time \[F-66\].
fn check_age(
    sector: &Sector,
    file: &Path,
    catalog: &Catalog,
    named: &CatalogSector,
) -> Result<(), StorageError> {
    let (_, members) = sector.claim();
    let unlisted = SectorSet::of_bits(members).without(catalog.members());
    let why = if !named.is_of_session(sector.session(), catalog.beginning.as_deref()) {
        "is not as the store left it: an older copy, or the store file is one".to_owned()
    } else if !named.behind && !unlisted.is_empty() {
        format!("is of a store that has sectors which the store file does not list: {unlisted:?}")
    } else {
        return Ok(());
    };
    Err(invalid(file, why))
}

pub fn invalid(file: &Path, why: String) -> StorageError {
    StorageError::InvalidStore {
        path: file.to_owned(),
        why,
    }
}

/// Recovery under way.
#[derive(Default)]
struct Recovery {
    sectors: Vec<Arc<Sector>>,
    index: Index,
    /// Of sectors that are left out there is none.
    replays: Vec<Option<Replay>>,
    /// Of each sector, the copies of roots that are to be written anew.
    behind: Vec<Vec<(u64, Root)>>,
    kept: Vec<Kept>,
    /// Why a sector is left out.
    left_out: Vec<Option<StorageError>>,
    health: Vec<String>,
    writing: bool,
    /// What is lost does not keep the store from opening.
    salvaging: bool,
    /// Nor do these, if they are missing.
    dispensable: SectorSet,
    /// A sector that can't be used is left out.
    leaves_out: bool,
    /// The highest LSN that a checkpoint or a log knows of.
    known: u64,
    /// Damage that was met in the logs.
    damage: Vec<StorageError>,
    /// Where something of a checkpoint is damaged.
    bad_checkpoints: Vec<Place>,
    /// Who prepares images for lookups.
    preparing: Vec<JoinHandle<()>>,
}

/// The newest whole checkpoint of a sector.
struct Loaded {
    index: SectorIndex,
    replay: Replay,
    kept: Kept,
    behind: Vec<(u64, Root)>,
    /// Tombstones up to this LSN are forgotten there.
    forgotten: u64,
}

impl Recovery {
    /// Opens all sectors, or what stands in for them.
    async fn open_sectors(
        &mut self,
        path: &Path,
        backend: &Arc<dyn Backend>,
        catalog: &Catalog,
        notice: &mut Option<String>,
    ) -> Result<(), StorageError> {
        let mut opened = Vec::with_capacity(catalog.sectors.len());
        let mut files = Vec::with_capacity(catalog.sectors.len());
        for named in &catalog.sectors {
            let file = path.join(&named.file);
            let whole = file.canonicalize().unwrap_or_else(|_| file.clone());
            let twin = files.iter().find(|(_, other)| *other == whole);
            let sector = match twin {
                Some((other, _)) => {
                    let what = format!("is sector {other} of this store, too");
                    Err(invalid(&file, what))
                }
                None => {
                    self.open_sector(&file, backend.as_ref(), catalog, named, notice)
                        .await
                }
            };
            files.push((named.number, whole));
            match sector {
                Err(error) if !self.leaves_out || is_of_all(&error) => return Err(error),
                sector => opened.push((file, named, sector)),
            }
        }
        let known = opened.iter().find_map(|(.., sector)| sector.as_ref().ok());
        let Some(known) = known.map(|sector| (*sector.identity(), sector.geometry())) else {
            let errors = opened
                .iter()
                .filter_map(|(.., sector)| sector.as_ref().err());
            return Err(too_few(path, "none can be used", errors));
        };
        let vacant = vacant(known);
        for (file, named, sector) in opened {
            let (sector, why) = match sector {
                Ok(sector) => (sector, None),
                Err(error) => (stand_in(&file, named, known, &error), Some(error)),
            };
            sector.set_draining(named.draining);
            let number = usize::from(named.number);
            self.sectors.resize(number, Arc::clone(&vacant));
            self.sectors.push(Arc::new(sector));
            self.left_out.resize(number, None);
            self.left_out.push(why);
        }
        Ok(())
    }

    async fn open_sector(
        &mut self,
        file: &Path,
        backend: &dyn Backend,
        catalog: &Catalog,
        named: &CatalogSector,
        notice: &mut Option<String>,
    ) -> Result<Sector, StorageError> {
        let open = |access| open_disk(backend, file, access);
        let mut access = match self.writing {
            true => OpenAccess::ReadWrite,
            false => OpenAccess::ReadOnly,
        };
        let mut unwritable = None;
        let disk = match open(access) {
            Err(error) if self.writing && self.leaves_out && is_of_writing(&error) => {
                access = OpenAccess::ReadOnly;
                unwritable = Some(error);
                open(access)?
            }
            disk => disk?,
        };
        let number = named.number;
        let (mut sector, notes) = Sector::open(Arc::clone(&disk), number).await?;
        let block_size = sector.geometry().block_size;
        if disk.info().block_size > block_size {
            // A device is opened once at a time.
            drop(sector);
            let disk = fit_blocks(backend, disk, access, block_size, notice)?;
            (sector, _) = Sector::open(disk, number).await?;
        }
        // Whoever writes mends it.
        if !self.writing || unwritable.is_some() {
            self.health.extend(notes);
        }
        check_identity(&sector, file, catalog, named)?;
        match check_age(&sector, file, catalog, named) {
            Err(error) if self.salvaging => self.health.push(error.to_string()),
            checked => checked?,
        }
        if let Some(error) = unwritable {
            sector.leave_out(SectorState::ReadOnly, &error);
        }
        Ok(sector)
    }

    /// Goes on without a sector, if that may be.
    fn leave_out(&mut self, number: usize, error: StorageError) -> Result<(), StorageError> {
        if !self.leaves_out || is_of_all(&error) {
            return Err(error);
        }
        let sector = &self.sectors[number];
        let standing_in = Sector::standing_in(
            sector.path(),
            sector.number(),
            *sector.identity(),
            sector.geometry(),
            &error,
        );
        standing_in.leave_out(state_of(&error), &error);
        standing_in.set_draining(sector.is_draining());
        self.sectors[number] = Arc::new(standing_in);
        self.left_out[number] = Some(error);
        self.index.sectors[number] = self.nothing_of(number);
        self.replays[number] = None;
        self.behind[number] = Vec::new();
        self.kept[number] = Kept::none();
        Ok(())
    }

    fn nothing_of(&self, number: usize) -> SectorIndex {
        let sector = &self.sectors[number];
        SectorIndex::new(Arc::clone(sector), None, Segments::new(&sector.geometry()))
    }

    /// Loads the checkpoints of all sectors.
    async fn load_all(&mut self) -> Result<(), StorageError> {
        let mut forgotten = Vec::with_capacity(self.sectors.len());
        for number in 0..self.sectors.len() {
            let nothing = self.nothing_of(number);
            self.index.sectors.push(nothing);
            self.replays.push(None);
            self.behind.push(Vec::new());
            self.kept.push(Kept::none());
            forgotten.push(0);
            if self.sectors[number].is_gone() {
                self.kept[number] = Kept::of_none();
                continue;
            }
            if self.left_out[number].is_some() {
                continue;
            }
            let sector = Arc::clone(&self.sectors[number]);
            match self.load(&sector).await {
                Ok(loaded) => {
                    self.index.sectors[number] = loaded.index;
                    self.replays[number] = Some(loaded.replay);
                    self.behind[number] = loaded.behind;
                    self.kept[number] = loaded.kept;
                    forgotten[number] = loaded.forgotten;
                }
                Err(error) => self.leave_out(number, error)?,
            }
        }
        match self.salvaging {
            true => Ok(()),
            false => self.leave_out_older(&forgotten),
        }
    }

    /// Leaves out sectors that may have what the others have forgotten to have been deleted \[F-56\].
    fn leave_out_older(&mut self, forgotten: &[u64]) -> Result<(), StorageError> {
        for number in 0..self.sectors.len() {
            let others = forgotten.iter().enumerate();
            let others = others.filter(|(other, _)| *other != number);
            let most = others.map(|(_, lsn)| *lsn).max().unwrap_or(0);
            let known = self.kept[number].store_lsn();
            let is_here = !self.sectors[number].is_gone() && self.left_out[number].is_none();
            if is_here && known < most {
                let error = StorageError::InvalidStore {
                    path: self.sectors[number].path().to_owned(),
                    why: format!(
                        "an older copy: it knows of other sectors up to LSN {known}, and these have forgotten deletes up to {most}"
                    ),
                };
                self.leave_out(number, error)?;
            }
        }
        Ok(())
    }

    /// Loads the newest whole checkpoint of a sector, and prepares to replay its log.
    async fn load(&mut self, sector: &Arc<Sector>) -> Result<Loaded, StorageError> {
        let (roots, notes) = read_roots(sector).await;
        let line = |(address, what)| format!("{}: {what}", sector.place(address));
        let lost = notes.lost.iter().map(|(address, _)| sector.place(*address));
        self.bad_checkpoints.extend(lost);
        self.health.extend(notes.lost.into_iter().map(line));
        if !self.writing {
            self.health.extend(notes.to_mend.into_iter().map(line));
        }
        let highest = roots
            .iter()
            .map(|root| root.root.sequence.get())
            .max()
            .unwrap_or(0);
        if highest > COUNTER_MAX {
            return Err(sector.corruption(
                0,
                format!("checkpoint {highest} is beyond what any store reaches"),
            ));
        }
        for root in &roots {
            self.known = self.known.max(root.root.store_lsn.get());
        }
        let forgotten = roots.iter().map(|root| root.root.forgotten_lsn.get()).max();
        let mut claimed = 0;
        let mut loaded: Option<(Root, Arc<_>, Segments)> = None;
        let mut others: Vec<Root> = Vec::new();
        let mut newest_error = None;
        let named = roots.iter().flat_map(|root| &root.segments);
        let named: HashSet<u32> = named.copied().collect();
        for root in roots {
            if loaded.is_some() {
                others.push(root);
                continue;
            }
            let image = match read_image(sector, &root).await {
                Ok(image) => image,
                Err(error) if error.kind() == ErrorKind::Corruption || is_failed_read(&error) => {
                    self.health.push(error.to_string());
                    self.bad_checkpoints.extend(place_of(&error));
                    claimed = claimed.max(root.root.lsn.get());
                    newest_error.get_or_insert(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            match Segments::decode(
                image.segments(),
                &sector.geometry(),
                root.root.sequence.get(),
            ) {
                Some(segments) => {
                    let image = Arc::new(image);
                    self.preparing.extend(prepare(&image));
                    loaded = Some((root, image, segments));
                }
                None => {
                    let error = sector.corruption(
                        0,
                        format!(
                            "checkpoint {} lists other segments than the sector has",
                            root.root.sequence
                        ),
                    );
                    self.health.push(error.to_string());
                    self.bad_checkpoints.extend(place_of(&error));
                    claimed = claimed.max(root.root.lsn.get());
                    newest_error.get_or_insert(error);
                }
            }
        }
        if loaded.is_none() && !self.salvaging {
            return Err(newest_error
                .or(notes.unreadable)
                .unwrap_or_else(|| sector.corruption(0, "no checkpoint root is whole")));
        }
        let (mut index, root) = match loaded {
            Some((root, image, segments)) => {
                let mut index = SectorIndex::new(Arc::clone(sector), Some(image), segments);
                index.blobs = root.root.blobs.get();
                index.logical_bytes = root.root.logical_bytes.get();
                (index, Some(root))
            }
            None => {
                self.health.push(format!(
                    "sector {}: no checkpoint is whole; the index is rebuilt from the log: blobs that were deleted may show again, and those that compaction moved be missing",
                    sector.number()
                ));
                (
                    SectorIndex::new(Arc::clone(sector), None, Segments::new(&sector.geometry())),
                    None,
                )
            }
        };
        let replay = Replay::start(
            sector,
            root.as_ref().map(|root| &root.root),
            &mut index.segments,
            claimed,
            &named,
        )
        .await?;
        // Of the other roots, only one that is older and whole is of use.
        let mut older = None;
        for root in others {
            if older.is_none() && has_image(sector, &root).await {
                older = Some(root);
            }
        }
        let kept = Kept::recovered(root, older, highest);
        let size = sector.geometry().segment_size;
        for (segment, is_filled) in kept.image_segments() {
            let generation = index.segments.get(segment).generation;
            let segments = &mut index.segments;
            segments.set(segment, State::Checkpoint, generation, size);
            segments.set_image(segment, size, is_filled);
        }
        kept.release(&mut index.segments, sector);
        index.tail = replay.tail();
        index.begin_replay();
        Ok(Loaded {
            index,
            replay,
            kept,
            behind: notes.behind,
            forgotten: forgotten.unwrap_or(0),
        })
    }

    /// Replays all logs, merged by LSN: record by record, as they were decided.
    async fn replay_all(&mut self) -> Result<(), StorageError> {
        let mut logs: Vec<Log> = self.replays.iter().map(|_| Log::default()).collect();
        loop {
            for (number, log) in logs.iter_mut().enumerate() {
                while log.records.is_empty() && !log.is_over {
                    let segments = &mut self.index.sectors[number].segments;
                    let next = match &mut self.replays[number] {
                        Some(replay) => replay.next(segments).await,
                        None => Ok(None),
                    };
                    match next {
                        Ok(frame) => log.take(frame),
                        Err(error) => self.leave_out(number, error)?,
                    }
                }
            }
            let heads = logs
                .iter()
                .enumerate()
                .filter_map(|(number, log)| Some((log.records.front()?.0, number)));
            let Some((_, number)) = heads.min() else {
                break;
            };
            if let Some((_, record)) = logs[number].records.pop_front()
                && let Err(error) = self.apply(number, record)
            {
                self.leave_out(number, error)?;
                logs[number] = Log::default();
            }
        }
        for number in 0..self.sectors.len() {
            if let Err(error) = self.end_log(number) {
                self.leave_out(number, error)?;
            }
        }
        Ok(())
    }

    /// A sector's log is replayed: sees whether all of it was there.
    fn end_log(&mut self, number: usize) -> Result<(), StorageError> {
        let Some(replay) = &self.replays[number] else {
            return Ok(());
        };
        let lost = |damage: &&Damage| damage.records_lost && !self.salvaging;
        if let Some(damage) = replay.damage().iter().find(lost) {
            return Err(damage.error.clone());
        }
        let index = &mut self.index.sectors[number];
        let (lsn, generation) = (replay.highest_lsn(), index.segments.generation());
        if lsn.max(self.known).max(generation) > COUNTER_MAX {
            let what = format!(
                "LSN {} or generation {generation} is beyond what any store reaches",
                lsn.max(self.known)
            );
            return Err(index.sector().corruption(0, what));
        }
        index.end_replay(replay.tail());
        index.replay_bytes = replay.bytes();
        index.update_reserve();
        self.known = self.known.max(lsn);
        for damage in replay.damage() {
            self.health.push(damage.error.to_string());
            self.damage.push(damage.error.clone());
        }
        Ok(())
    }

    fn apply(&mut self, number: usize, record: LoggedRecord) -> Result<(), StorageError> {
        let applied = applied(record)
            .map_err(|error| self.index.sectors[number].sector().corruption(0, error))?;
        match self.index.apply(number, &applied) {
            // What it changes was lost: the blob stays as old as it is.
            Err(error) if self.salvaging && applied.change.is_some() => {
                self.health.push(error.to_string());
                self.damage.push(error);
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// The sectors of which something does not hold that no other has, and below which LSN \[F-66\]: of those that
    /// came back. None if a loss is accepted. Be another missing meanwhile: those that are there, and were not
    /// away, have all that was acknowledged, or the store is not opened.
    fn void(&self, catalog: &Catalog) -> Vec<(usize, u64)> {
        if self.salvaging || !self.dispensable.is_empty() {
            return Vec::new();
        }
        let void = |named: &CatalogSector| {
            let number = usize::from(named.number);
            let below = named.void_below.filter(|below| *below > 0)?;
            self.left_out[number].is_none().then_some((number, below))
        };
        catalog.sectors.iter().filter_map(void).collect()
    }

    /// Whoever only reads is told which sectors took no part when the store was last written to.
    fn tell_left_out(&mut self, catalog: &Catalog) {
        for named in catalog.sectors.iter().filter(|named| named.behind) {
            if self.left_out[usize::from(named.number)].is_none() {
                self.health.push(format!(
                    "sector {} took no part when the store was last open for writing",
                    named.number
                ));
            }
        }
    }

    /// Whether those that are left have all that was acknowledged \[F-66\]. A sector that was away last time counts
    /// no more: the store file says whether what it has was made anew elsewhere.
    fn check_enough(&self, path: &Path, catalog: &Catalog) -> Result<(), StorageError> {
        let is_missing = |named: &&CatalogSector| {
            self.left_out[usize::from(named.number)].is_some() && !named.behind
        };
        let named = catalog.sectors.iter().filter(is_missing);
        let missing: SectorSet = named.map(|named| named.number.into()).collect();
        let is_accepted = !missing.is_empty() && missing.is_within(self.dispensable);
        let missing = missing.len();
        let most = match catalog.short {
            true => 0,
            false => usize::from(catalog.replicas) - 1,
        };
        let errors = || self.left_out.iter().flatten();
        let is_enough = missing <= most || is_accepted;
        if self.salvaging || (is_enough && errors().count() < catalog.sectors.len()) {
            return Ok(());
        }
        let how_many = match catalog.short {
            true => "none may be missing while something has too few replicas".to_owned(),
            false => format!("{most} may be missing, {missing} more are since the last time"),
        };
        Err(too_few(path, &how_many, errors()))
    }
}

fn too_few<'a>(
    path: &Path,
    how_many: &str,
    errors: impl Iterator<Item = &'a StorageError>,
) -> StorageError {
    let errors: Vec<String> = errors.map(ToString::to_string).collect();
    StorageError::TooFewSectors {
        path: path.to_owned(),
        why: format!("{how_many}: {}", errors.join("; ")),
    }
}

/// Stands in for a sector that can't be opened.
fn stand_in(
    file: &Path,
    named: &CatalogSector,
    (model, geometry): (Identity, Geometry),
    error: &StorageError,
) -> Sector {
    let identity = Identity {
        store_id: model.store_id,
        sector_id: u64::from_str_radix(&named.id, 16).unwrap_or(0),
    };
    let sector = Sector::standing_in(file, named.number, identity, geometry, error);
    sector.leave_out(state_of(error), error);
    sector
}

/// One sector's log, being replayed.
#[derive(Default)]
struct Log {
    /// Records to come, each with the LSN that it is replayed at: its own, or, if it is a copy, that
    /// of the record before.
    records: VecDeque<(u64, LoggedRecord)>,
    /// LSN that the last record was replayed at.
    at: u64,
    is_over: bool,
}

impl Log {
    fn take(&mut self, frame: Option<LoggedFrame>) {
        let Some(frame) = frame else {
            self.is_over = true;
            return;
        };
        for record in frame.records {
            if !record.moved && !record.replica {
                self.at = record.lsn;
            }
            self.records.push_back((self.at, record));
        }
    }
}

fn applied(record: LoggedRecord) -> Result<Applied, graviton_format::FormatError> {
    let (source, life, replicas) = match record.kind {
        RecordKind::Manifest => {
            let details = Details::decode(&record.meta)?;
            (details.source, details.life, details.replicas)
        }
        RecordKind::Blob => (None, None, meta::replicas(&record.meta).unwrap_or(0)),
        _ => (None, None, 0),
    };
    if let Some(life) = life {
        meta::check_life(life, record.lsn)?;
    }
    Ok(Applied {
        kind: record.kind,
        moved: record.moved,
        replica: record.replica,
        is_new: false,
        key: record.key,
        lsn: record.lsn,
        time: record.time,
        address: record.address,
        meta_length: u32::try_from(record.meta.len()).unwrap_or(u32::MAX),
        payload_length: record.payload_length,
        manifest: record
            .manifest
            .map(|manifest| (manifest.size, manifest.extents.into())),
        change: record.change,
        source,
        life,
        replicas,
        hold: None,
    })
}

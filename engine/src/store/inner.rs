//! The state of an open store that its parts share, and how it is put together: creation, opening,
//! closing.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use graviton_format::Geometry;
use graviton_format::checksum::Identity;
use graviton_format::superblock::Superblock;

use super::cache::ReadCache;
use super::catalog::{self, Catalog, SECTORS_MAX};
use super::commit::Commits;
use super::detached::DetachedMutations;
use super::index::{Index, SectorIndex};
use super::maintain::{Efforts, Kept};
use super::marks::Marks;
use super::mend::Mending;
use super::options::{Access, CreateOptions, MIB, OpenOptions};
use super::record;
use super::recovery::{Opening, recover};
use super::sectors::Sectors;
use super::set::SectorSet;
use super::shortage::Shortage;
use super::ticket::CommitSource;
use super::tracker::Trackers;
use crate::io::{Backend, Disk, IoOptions, Lock, LockError, OpenAccess, Reaping, open_backend};
use crate::log::store_file::write_copies;
use crate::log::{Sector, Segments};
use crate::port::op::{Driver, Signal, wait_for};
use crate::port::{
    BinaryKey, Choice, Labels, Placement, PolicyError, ReplicationPolicy, SectorFacts, StorageError,
};
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::channel::Sender;
use crate::sync::{Mutex, RwLock};

/// Log bytes left to replay at a close above which a checkpoint is taken first, unless it would
/// write more than that.
const REPLAY_AT_CLOSE: u64 = 4 * MIB;

/// How long a waiter looks away while one frame has landed and the next is not yet submitted.
const BETWEEN_FRAMES: Duration = Duration::from_micros(200);

/// Everything an open store is.
pub struct Inner {
    pub path: PathBuf,
    pub store_id: [u8; 16],
    pub options: OpenOptions,
    /// What decides where replicas go.
    policy: RwLock<Option<Arc<dyn ReplicationPolicy>>>,
    pub backend: Arc<dyn Backend>,
    pub notice: Option<String>,
    pub sectors: Sectors,
    /// What the session is called that was begun when the store was opened; 0: none was.
    pub session: u64,
    /// There are several sectors, or were: what is done to one key keeps its order over all of them.
    pub has_company: AtomicBool,
    /// How many sectors are to have each blob whose put has not asked for more: see [`Inner::wanted`].
    pub replicas: usize,
    /// The store file.
    pub catalog: Mutex<Catalog>,
    /// Small blobs in memory, if any are to be.
    pub cache: Option<Arc<ReadCache>>,
    /// What the operator says of the sectors, by number.
    pub labels: RwLock<Vec<Labels>>,
    pub index: RwLock<Index>,
    pub commits: Mutex<Commits>,
    /// The checkpoints that are kept, by sector.
    pub kept: Mutex<Vec<Kept>>,
    /// Held by whoever does maintenance: one step at a time.
    pub maintenance: Mutex<Efforts>,
    /// How many are about to make a sector larger.
    pub growing: AtomicUsize,
    /// What was found wrong, a line each.
    pub health: Mutex<Vec<String>>,
    /// Damage that was met in the logs when the store was opened, and is there still.
    pub damage: Mutex<Vec<StorageError>>,
    /// What is damaged around records, and is to be mended.
    pub mending: Mutex<Mending>,
    /// Mutations that go on without their callers.
    pub detached: Arc<DetachedMutations>,
    pub trackers: Trackers,
    /// What is known to be wrong with replicas.
    pub marks: Marks,
    /// Whether something lies in fewer sectors than it should.
    pub shortage: Shortage,
    /// Blobs whose fragments are being merged.
    pub merging: Mutex<HashSet<BinaryKey>>,
    sources: Vec<Arc<SectorSource>>,
    kick: Sender<()>,
    clock: AtomicU64,
    closed: AtomicBool,
    lock: Mutex<Option<Box<dyn Lock>>>,
}

impl fmt::Debug for Inner {
    // What it holds may be millions of blobs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner")
            .field("path", &self.path)
            .field("access", &self.options.access)
            .finish_non_exhaustive()
    }
}

/// What waiters of one sector's commits drive.
struct SectorSource {
    inner: Weak<Inner>,
    driver: Arc<dyn Driver>,
}

impl fmt::Debug for SectorSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SectorSource").finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct SectorDriver {
    inner: Weak<Inner>,
    number: usize,
}

impl Driver for SectorDriver {
    fn drive(&self, signal: &Signal) {
        let Some(inner) = self.inner.upgrade() else {
            return signal.park();
        };
        let (in_flight, stalled, any_stalled) = {
            let commits = inner.commits.lock();
            (
                commits.in_flight(self.number),
                commits.is_stalled(self.number),
                commits.is_any_stalled(),
            )
        };
        match in_flight {
            Some(number) => match inner.sectors[number].disk().driver() {
                Some(driver) => driver.drive(signal),
                None => signal.park(),
            },
            // Without a thread of its own the store makes room on the thread that waits for it.
            None if any_stalled && inner.lacks_background() => {
                match inner.try_step() {
                    Ok(Some(true)) => {}
                    // The sector was given up, or its puts go on already.
                    Ok(Some(false)) => {
                        inner.pump();
                        signal.park_for(BETWEEN_FRAMES);
                    }
                    // Another thread is at it, or this one is and waits for a frame of its own.
                    Ok(None) => signal.park_for(BETWEEN_FRAMES),
                    Err(error) => {
                        // Whoever waits in the sector that it is of has learned of it.
                        tracing::warn!(error = error.without_key(), "maintenance failed");
                        signal.park_for(BETWEEN_FRAMES);
                    }
                }
            }
            None if stalled => signal.park(),
            // Between two frames: the thread that landed one is about to submit the next, in
            // which nobody can tell us that there is something to drive again.
            None => {
                inner.pump();
                if inner.commits.lock().in_flight(self.number).is_none() {
                    signal.park_for(BETWEEN_FRAMES);
                }
            }
        }
    }
}

impl CommitSource for SectorSource {
    fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    fn begin(&self) {
        if let Some(inner) = self.inner.upgrade() {
            inner.pump();
        }
    }

    fn complete_in_background(&self) -> Vec<Reaping> {
        let inner = self.inner.upgrade();
        inner.map_or_else(Vec::new, |inner| inner.reap_in_background())
    }
}

/// The backend a store is to run on: `None` if its options choose one.
pub struct GivenBackend(pub Option<Arc<dyn Backend>>);

impl GivenBackend {
    /// The backend, and why it is not the preferred one.
    pub fn open(
        self,
        options: &IoOptions,
        path: &Path,
    ) -> Result<(Arc<dyn Backend>, Option<String>), StorageError> {
        match self.0 {
            Some(backend) => Ok((backend, None)),
            None => open_backend(options).map_err(file_error("open the I/O backend for", path)),
        }
    }
}

/// A store being put together.
struct Parts {
    path: PathBuf,
    store_id: [u8; 16],
    options: OpenOptions,
    backend: Arc<dyn Backend>,
    notice: Option<String>,
    sectors: Sectors,
    session: u64,
    catalog: Catalog,
    lock: Option<Box<dyn Lock>>,
    health: Vec<String>,
    damage: Vec<StorageError>,
}

pub fn file_error(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> StorageError {
    let path = path.to_owned();
    move |source| StorageError::File {
        operation,
        path,
        source: Arc::new(source),
    }
}

pub fn random<const N: usize>(backend: &dyn Backend, path: &Path) -> Result<[u8; N], StorageError> {
    let mut bytes = [0; N];
    backend
        .random(&mut bytes)
        .map_err(file_error("get random bytes for", path))?;
    Ok(bytes)
}

/// Takes the store's lock.
pub fn take_lock(
    backend: &dyn Backend,
    directory: &Path,
    access: Access,
) -> Result<Option<Box<dyn Lock>>, StorageError> {
    let path = directory.join(catalog::LOCK_FILE);
    match backend.lock(&path, access == Access::ReadWrite) {
        Ok(lock) => Ok(Some(lock)),
        Err(LockError::Held { owner }) => Err(StorageError::Locked {
            path: directory.to_owned(),
            owner: owner.map_or_else(
                || "another process".to_owned(),
                |process| format!("process {process}"),
            ),
        }),
        Err(LockError::File(error)) => match error.kind() {
            // A reader can do without where it may not write; the file is not found if it may not
            // make it either.
            std::io::ErrorKind::PermissionDenied
            | std::io::ErrorKind::ReadOnlyFilesystem
            | std::io::ErrorKind::NotFound
                if access != Access::ReadWrite =>
            {
                Ok(None)
            }
            _ => Err(file_error("lock", &path)(error)),
        },
    }
}

/// Bytes of a segment fitted to a sector: about 1/128 of it.
fn fitted_segment_size(sector_size: u64) -> u64 {
    let fitted = (sector_size / 128).max(1).next_power_of_two();
    fitted.clamp(graviton_format::geometry::SEGMENT_SIZES.0, 64 * MIB)
}

fn geometry(options: &CreateOptions, physical_block_size: u32) -> Result<Geometry, StorageError> {
    let sector_size = options.sector_size;
    if sector_size < 4 * MIB {
        return Err(StorageError::invalid(format!(
            "sector size {sector_size}, must be at least {} (4 MiB)",
            4 * MIB
        )));
    }
    let segment_size = options
        .segment_size
        .unwrap_or_else(|| fitted_segment_size(sector_size));
    let room = sector_size.saturating_sub(2 * graviton_format::geometry::AREA_SIZE);
    let segment_count = u32::try_from(room / segment_size.max(1))
        .map_err(|_| StorageError::invalid(format!("sector size {sector_size} is too large")))?;
    let geometry = Geometry {
        block_size: options.block_size.unwrap_or(if physical_block_size <= 512 {
            512
        } else {
            4096
        }),
        segment_size,
        segment_count,
    };
    geometry
        .check()
        .map_err(|error| StorageError::invalid(error.to_string()))?;
    Ok(geometry)
}

impl Inner {
    /// Creates a store and opens it.
    pub fn create(
        path: &Path,
        options: CreateOptions,
        backend: GivenBackend,
        kick: Sender<()>,
    ) -> Result<Arc<Self>, StorageError> {
        if options.open.access != Access::ReadWrite {
            return Err(StorageError::ReadOnly);
        }
        if options.sectors == 0 || usize::from(options.sectors) > SECTORS_MAX {
            return Err(StorageError::invalid(format!(
                "{} sectors, must be 1 to {SECTORS_MAX}",
                options.sectors
            )));
        }
        if options.replicas == 0 || options.replicas > options.sectors {
            return Err(StorageError::invalid(format!(
                "{} replicas, must be 1 to {}, the number of sectors",
                options.replicas, options.sectors
            )));
        }
        geometry(&options, 4096)?;
        let (backend, notice) = backend.open(&options.open.io, path)?;
        backend
            .create_directory(path)
            .map_err(file_error("create", path))?;
        let lock = take_lock(backend.as_ref(), path, Access::ReadWrite)?;
        catalog::check_absent(backend.as_ref(), path)?;
        catalog::begin_creation(backend.as_ref(), path, options.sectors).map_err(|error| {
            match error.kind() {
                std::io::ErrorKind::AlreadyExists => StorageError::AlreadyExists {
                    path: PathBuf::from(error.to_string()),
                },
                _ => file_error("prepare", path)(error),
            }
        })?;
        let outcome = Self::create_in(path, &options, backend.clone(), notice, lock, kick);
        let remove_all = || catalog::remove_all(backend.as_ref(), path, options.sectors);
        let end = || catalog::end_creation(backend.as_ref(), path);
        match outcome {
            Ok(inner) => match end() {
                Ok(()) => Ok(inner),
                // A later creation would take what is put there for left over.
                Err(error) => {
                    drop(inner);
                    let _ = remove_all();
                    Err(file_error("tidy up", path)(error))
                }
            },
            Err(error) => {
                if let Err(error) = remove_all().and_then(|()| end()) {
                    tracing::warn!(%error, "tidying up after the creation of a store");
                }
                Err(error)
            }
        }
    }

    fn create_in(
        path: &Path,
        options: &CreateOptions,
        backend: Arc<dyn Backend>,
        mut notice: Option<String>,
        lock: Option<Box<dyn Lock>>,
        kick: Sender<()>,
    ) -> Result<Arc<Self>, StorageError> {
        let store_id: [u8; 16] = random(backend.as_ref(), path)?;
        let mut sectors = Vec::new();
        let mut named = Vec::new();
        let created = record::milliseconds(backend.now());
        // The device's block is known once a file lies on it.
        let mut measures = options.clone();
        for number in 0..options.sectors {
            let path = path.join(catalog::sector_file(number));
            let already = |error: std::io::Error| match error.kind() {
                std::io::ErrorKind::AlreadyExists => {
                    StorageError::AlreadyExists { path: path.clone() }
                }
                _ => file_error("create", &path)(error),
            };
            let disk = backend
                .create(&path, geometry(&measures, 4096)?.sector_size())
                .map_err(already)?;
            if measures.block_size.is_none() {
                measures.block_size =
                    Some(geometry(&measures, disk.info().physical_block_size)?.block_size);
            }
            let geometry = geometry(&measures, 4096)?;
            let disk = fit_blocks(
                backend.as_ref(),
                disk,
                OpenAccess::ReadWrite,
                geometry.block_size,
                &mut notice,
            )?;
            let identity = Identity {
                store_id,
                sector_id: u64::from_le_bytes(random(backend.as_ref(), &path)?),
            };
            let superblock = Superblock::new(identity, number, options.sectors, &geometry, created);
            sectors.push(Arc::new(wait_for(Sector::format(disk, superblock))?));
            named.push((catalog::sector_file(number), identity.sector_id));
        }
        let model = (*sectors[0].identity(), sectors[0].geometry());
        let indexes = sectors
            .iter()
            .map(|sector| {
                SectorIndex::new(Arc::clone(sector), None, Segments::new(&sector.geometry()))
            })
            .collect();
        let kept = sectors.iter().map(|_| Kept::none()).collect();
        let parts = Parts {
            path: path.to_owned(),
            store_id,
            options: options.open.clone(),
            backend,
            notice,
            sectors: Sectors::new(sectors.into_iter().map(Some).collect(), model),
            session: 0,
            catalog: Catalog::new(&store_id, options.replicas, &named),
            lock,
            health: Vec::new(),
            damage: Vec::new(),
        };
        let inner = Self::assemble_parts(parts, Index::new(indexes), kept, (0, 0), kick);
        // Two, so that from the beginning damage to one leaves another.
        inner.checkpoint_all()?;
        inner.checkpoint_all()?;
        let mut catalog = inner.catalog.lock();
        // There is no store before the file is.
        let file = catalog.next_text();
        for sector in inner.sectors.iter() {
            wait_for(write_copies(sector, &file))?;
        }
        catalog.write(inner.backend.as_ref(), path)?;
        drop(catalog);
        Ok(inner)
    }

    /// Opens a store: recovers each sector, and puts their logs together by LSN.
    pub fn open(
        path: &Path,
        options: OpenOptions,
        backend: GivenBackend,
        kick: Sender<()>,
    ) -> Result<Arc<Self>, StorageError> {
        let (backend, notice) = backend.open(&options.io, path)?;
        Catalog::read(backend.as_ref(), path)?;
        let lock = take_lock(backend.as_ref(), path, options.access)?;
        if options.access == Access::ReadWrite {
            // Or what is put now would be taken for left over, should the store file be lost.
            catalog::end_creation(backend.as_ref(), path).map_err(file_error("tidy up", path))?;
        }
        let recovered = wait_for(recover(Opening {
            path,
            options: &options,
            backend: &backend,
            notice,
            // Whoever had the lock before may have written it anew.
            catalog: Catalog::read(backend.as_ref(), path)?,
        }))?;
        let parts = Parts {
            path: path.to_owned(),
            store_id: recovered.store_id,
            options,
            backend,
            notice: recovered.notice,
            sectors: recovered.sectors,
            session: recovered.session,
            catalog: recovered.catalog,
            lock,
            health: recovered.health,
            damage: recovered.damage,
        };
        let newest = (recovered.newest, recovered.skip);
        let bad_checkpoints = recovered.bad_checkpoints;
        let inner = Self::assemble_parts(parts, recovered.index, recovered.kept, newest, kick);
        let draining = inner.sectors.iter().any(|sector| sector.is_draining());
        let lacking = recovered.lacking;
        if lacking.is_short || lacking.is_below_asked || lacking.is_unlike || draining {
            inner.marks.want_scan();
        }
        for place in bad_checkpoints {
            inner.want_checkpoints(&place);
        }
        for place in inner.places_of_damage() {
            inner.want_mending(&place);
        }
        if inner.check_access().is_ok() {
            inner.end_returns()?;
            // Else they are like it already.
            if inner.session != 0 {
                inner.want_store_file();
            }
            if let Err(error) = inner.end_additions() {
                tracing::warn!(
                    error = error.without_key(),
                    "tidying up after a sector that was not added"
                );
            }
        }
        Ok(inner)
    }

    fn assemble_parts(
        parts: Parts,
        index: Index,
        kept: Vec<Kept>,
        (newest, skip): (u64, u64),
        kick: Sender<()>,
    ) -> Arc<Self> {
        let Parts {
            path,
            store_id,
            options,
            backend,
            notice,
            sectors,
            session,
            catalog,
            lock,
            health,
            damage,
        } = parts;
        let tails: Vec<_> = index.sectors.iter().map(|sector| sector.tail).collect();
        let latest = tails.iter().map(|tail| tail.time).max().unwrap_or(0);
        Arc::new_cyclic(|inner: &Weak<Self>| {
            let source = |number| {
                let driver = SectorDriver {
                    inner: Weak::clone(inner),
                    number,
                };
                Arc::new(SectorSource {
                    inner: Weak::clone(inner),
                    driver: Arc::new(driver),
                })
            };
            Self {
                path,
                store_id,
                policy: RwLock::new(options.replication.clone()),
                cache: (options.cache_bytes > 0).then(|| ReadCache::new(options.cache_bytes)),
                options,
                backend,
                notice,
                has_company: AtomicBool::new(sectors.len() > 1),
                sources: (0..SECTORS_MAX).map(source).collect(),
                sectors,
                session,
                replicas: catalog.replicas.into(),
                shortage: Shortage::new(catalog.short),
                labels: RwLock::new(catalog.labels()),
                catalog: Mutex::new(catalog),
                commits: Mutex::new(Commits::new(&tails, newest, skip)),
                kept: Mutex::new(kept),
                maintenance: Mutex::default(),
                growing: AtomicUsize::new(0),
                health: Mutex::new(health),
                damage: Mutex::new(damage),
                mending: Mutex::default(),
                detached: Arc::default(),
                trackers: Trackers::default(),
                marks: Marks::new(kick.clone()),
                merging: Mutex::default(),
                index: RwLock::new(index),
                kick,
                clock: AtomicU64::new(latest),
                closed: AtomicBool::new(false),
                lock: Mutex::new(lock),
            }
        })
    }

    /// What is under way in any sector goes on without anybody who waits, while this is kept.
    pub fn reap_in_background(&self) -> Vec<Reaping> {
        let sectors = self.sectors.iter();
        sectors
            .map(|sector| sector.disk().reap_in_background())
            .collect()
    }

    /// What waiters of a sector's commits drive.
    pub fn commit_source(&self, number: usize) -> Arc<dyn CommitSource> {
        Arc::clone(&self.sources[number]) as Arc<dyn CommitSource>
    }

    /// The time now in milliseconds since 1970; never less than it was before.
    pub fn now(&self) -> u64 {
        let now = record::milliseconds(self.backend.now());
        self.clock.fetch_max(now, Ordering::AcqRel).max(now)
    }

    /// Whether no thread of the store's own does maintenance (any more).
    fn lacks_background(&self) -> bool {
        !self.options.background || self.check_open().is_err()
    }

    /// `Closed` if the store was closed.
    pub fn check_open(&self) -> Result<(), StorageError> {
        if self.closed.load(Ordering::Acquire) {
            Err(StorageError::Closed)
        } else {
            Ok(())
        }
    }

    /// Why the store takes no changes, if it takes none.
    pub fn check_writable(&self) -> Result<(), StorageError> {
        self.check_open()?;
        self.check_access()
    }

    /// `ReadOnly` if the store was opened so.
    pub fn check_access(&self) -> Result<(), StorageError> {
        match self.options.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly | Access::Salvage => Err(StorageError::ReadOnly),
        }
    }

    /// Turns the store away from new calls. Returns whether it was open.
    pub fn begin_close(&self) -> bool {
        let was_open = !self.closed.swap(true, Ordering::AcqRel);
        // Maintenance that waits for readers waits no longer.
        self.sectors
            .iter()
            .for_each(|sector| sector.wake_for_unpin());
        self.trackers.watches.all_changed();
        was_open
    }

    /// Waits for what was submitted and leaves the store as it is quickest to open.
    pub fn finish(self: &Arc<Self>) -> Result<(), StorageError> {
        if self.options.access != Access::ReadWrite {
            return Ok(());
        }
        // The thread that made room for them has ended: now those who wait do it themselves.
        self.wake_all();
        if let Some(earlier) = self.detached.before(&[]) {
            wait_for(earlier);
        }
        self.end_maintenance();
        let mut outcome = self.drain().and_then(|()| self.check_durable());
        {
            let _alone = self.maintenance.lock();
            self.keep_store_file_everywhere();
        }
        // Without it, what is durable is as durable.
        let _ = self.note_durable();
        let long = self.index.read().sectors.iter().any(|sector| {
            let image = sector.image_estimate() as u64;
            sector.replay_bytes > REPLAY_AT_CLOSE.max(image)
        });
        if long {
            let _alone = self.maintenance.lock();
            for number in self.writable().iter() {
                outcome = outcome.and(self.try_checkpoint(number).map(|_| ()));
            }
        }
        outcome
    }

    /// Gives up the lock.
    pub fn unlock(&self) {
        for sector in self.sectors.iter() {
            sector.disk().unlock();
        }
        self.lock.lock().take();
    }

    /// Whether a sector is about to become larger: there may be room without anything being done for it.
    pub fn is_growing(&self) -> bool {
        self.growing.load(Ordering::SeqCst) > 0
    }

    /// Wakes the maintenance thread.
    pub fn kick_maintenance(&self) {
        let _ = self.kick.try_send(());
    }

    /// Remembers something that is wrong with the store, and logs it: it names no key.
    pub fn note(&self, what: String) {
        tracing::warn!("{what}");
        self.remember(what);
    }

    /// Remembers that the store could not do something, and for which blob, and logs it without that.
    pub fn note_failure(&self, of: &str, error: &StorageError) {
        tracing::warn!("{of}: {}", error.without_key());
        self.remember(format!("{of}: {error}"));
    }

    fn remember(&self, what: String) {
        let mut health = self.health.lock();
        if !health.contains(&what) {
            health.push(what);
        }
    }

    /// How many sectors a blob is to lie in whose put asked for so many, 0 standing for none in particular.
    pub fn wanted(&self, asked: u8) -> usize {
        self.replicas.max(asked.into())
    }

    /// The sectors a new version of `key` of about `needed` bytes goes to, `wanted` of them if there are so
    /// many: where it lies, if there is room, then where there is most.
    pub fn place(
        &self,
        key: &BinaryKey,
        needed: u64,
        wanted: usize,
    ) -> Result<SectorSet, StorageError> {
        if self.sectors.len() == 1 {
            return Ok(SectorSet::one(0));
        }
        let commits = self.commits.lock();
        let index = self.index.read();
        let room = |number: usize| {
            self.available(&index, number)
                .saturating_sub(commits.pending(number))
        };
        let found = index.lookup(key.stored())?;
        let holders = found.map_or(SectorSet::NONE, |found| found.holders);
        // If all are to be drained, there is nowhere else to go.
        let writable = match self.keepers() {
            SectorSet::NONE => self.writable(),
            keepers => keepers,
        };
        if writable.is_empty() {
            return Ok(SectorSet::one(holders.first().unwrap_or(0)));
        }
        let by_room = |sectors: SectorSet, most: usize| -> SectorSet {
            let mut sectors: Vec<usize> = sectors.iter().collect();
            sectors.sort_by_key(|&number| std::cmp::Reverse(room(number)));
            sectors.into_iter().take(most).collect()
        };
        let stays = holders.within(writable);
        let stays = stays.iter().filter(|&number| room(number) >= needed);
        let at_first = self.options.write_mode.waits_for(wanted);
        let stays = by_room(stays.collect(), at_first);
        let more = at_first - stays.len();
        let chosen = match &self.policy() {
            Some(policy) if more > 0 => {
                let ask = |placement: &Placement<'_>| policy.select_targets(placement);
                let chosen = self.choose(key, wanted, stays, needed, &room, ask)?;
                by_room(chosen, more)
            }
            _ => by_room(writable.without(stays), more),
        };
        let sectors = stays.and(chosen);
        // Where there is no room, it says so.
        Ok(match sectors.is_empty() {
            true => by_room(writable, 1),
            false => sectors,
        })
    }

    /// What decides where replicas go, if anything does.
    pub fn policy(&self) -> Option<Arc<dyn ReplicationPolicy>> {
        self.policy.read().clone()
    }

    /// See [`Store::set_replication`](super::Store::set_replication).
    pub fn set_policy(&self, policy: Option<Arc<dyn ReplicationPolicy>>) {
        *self.policy.write() = policy;
    }

    /// The sectors that a policy, which is asked, chooses for replicas of a blob beside those in `holders`, so that
    /// there are `copies` in all.
    ///
    /// # Errors
    /// `InvalidArgument` if the policy can't choose at all.
    pub fn choose(
        &self,
        key: &BinaryKey,
        copies: usize,
        holders: SectorSet,
        needed: u64,
        room: &dyn Fn(usize) -> u64,
        ask: impl FnOnce(&Placement<'_>) -> Result<Choice, PolicyError>,
    ) -> Result<SectorSet, StorageError> {
        let held = numbers(holders);
        let chosen = match self.with_placement(key, copies, &held, needed, room, ask) {
            Ok(choice) => choice.chosen,
            // So many as there are.
            Err(PolicyError::Insufficient { chosen, .. }) => chosen,
            Err(error) => return Err(undecided(&error)),
        };
        let chosen: SectorSet = chosen.into_iter().map(usize::from).collect();
        // Whatever a policy says.
        Ok(chosen.within(self.keepers()))
    }

    /// Asks a policy about the replicas of a blob, of which there are to be so many, and which the sectors in
    /// `holders` have.
    pub fn with_placement<T>(
        &self,
        key: &BinaryKey,
        copies: usize,
        holders: &[u16],
        needed: u64,
        room: &dyn Fn(usize) -> u64,
        ask: impl FnOnce(&Placement<'_>) -> T,
    ) -> T {
        let labels = self.labels.read();
        let facts = |(number, sector): (usize, &Arc<Sector>)| SectorFacts {
            number: sector.number(),
            labels: labels[number].clone(),
            state: sector.state(),
            capacity: sector.geometry().sector_size(),
            free: room(number),
        };
        let sectors = self.sectors.iter().enumerate();
        let sectors = sectors.filter(|(_, sector)| !sector.is_gone());
        let facts: Vec<SectorFacts> = sectors.map(facts).collect();
        let (seed, _) = self.store_id.split_at(8);
        let placement = Placement {
            key,
            copies: u8::try_from(copies).unwrap_or(u8::MAX),
            holders,
            sectors: &facts,
            needed,
            seed: u64::from_le_bytes(seed.try_into().unwrap_or_default()),
        };
        ask(&placement)
    }

    /// See [`Store::relabel`](super::Store::relabel).
    pub fn relabel(&self, number: u16, labels: Labels) -> Result<(), StorageError> {
        self.check_writable()?;
        check_labels(&labels)?;
        let place = self.check_member(number)?;
        let relabel = |catalog: &mut Catalog| {
            if let Some(named) = catalog.sector_mut(place) {
                named.set_labels(&labels);
            }
        };
        self.check_catalog(relabel)?;
        self.write_catalog(relabel)?;
        self.labels.write()[place] = labels;
        Ok(())
    }

    /// Whether the sectors would have room for the store file with something changed.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn check_catalog(&self, change: impl FnOnce(&mut Catalog)) -> Result<(), StorageError> {
        let mut new = self.catalog.lock().clone();
        change(&mut new);
        new.check_has_room()
    }

    /// Writes the store file anew, with something changed.
    ///
    /// # Errors
    /// `File`; nothing changed then.
    pub fn write_catalog(&self, change: impl FnOnce(&mut Catalog)) -> Result<(), StorageError> {
        let mut catalog = self.catalog.lock();
        let mut new = catalog.clone();
        change(&mut new);
        new.write(self.backend.as_ref(), &self.path)?;
        *catalog = new;
        drop(catalog);
        self.want_store_file();
        Ok(())
    }

    /// The sectors are to have copies of the store file as it is now: soon, since this may be called where nothing
    /// can be waited for.
    fn want_store_file(&self) {
        let mut mending = self.mending.lock();
        for number in self.sectors.members().iter() {
            mending.want_store_file(number);
        }
        drop(mending);
        self.kick_maintenance();
    }

    /// The sectors that a change of a blob goes to: all that have it and take records.
    pub fn to_change(&self, holders: SectorSet) -> SectorSet {
        let writable = holders.within(self.writable());
        // What takes none says why.
        if writable.is_empty() {
            holders
        } else {
            writable
        }
    }

    /// Bytes of records that puts can still add to a sector, those under way not counted.
    pub fn available(&self, index: &Index, number: usize) -> u64 {
        let segments = &index.sectors[number].segments;
        let per_segment = self.sectors[number].geometry().image_bytes_per_segment();
        // A sixteenth is lost where records do not fill segments to the end, or is what compaction
        // gains by.
        let capacity = u64::from(segments.usable()) * (per_segment - per_segment / 16);
        capacity.saturating_sub(segments.live())
    }
}

/// The policy of replication can't decide at all.
pub fn undecided(error: &PolicyError) -> StorageError {
    StorageError::invalid(format!("the policy of replication: {error}"))
}

/// Sectors, as the ports number them.
pub fn numbers(sectors: SectorSet) -> Vec<u16> {
    let numbers = sectors.iter();
    numbers
        .filter_map(|number| u16::try_from(number).ok())
        .collect()
}

/// Whether what is said of a sector can be.
pub fn check_labels(labels: &Labels) -> Result<(), StorageError> {
    labels.check().map_err(|error| match error {
        PolicyError::InvalidArgument { what } => StorageError::InvalidArgument { what },
        other => StorageError::invalid(other.to_string()),
    })
}

/// The disk at `path`, opened again through the page cache if its device wants larger blocks than
/// the sector has.
pub fn fit_blocks(
    backend: &dyn Backend,
    disk: Arc<dyn Disk>,
    access: OpenAccess,
    block_size: u32,
    notice: &mut Option<String>,
) -> Result<Arc<dyn Disk>, StorageError> {
    let (wanted, path) = (disk.info().block_size, disk.info().path.clone());
    if wanted <= block_size {
        return Ok(disk);
    }
    drop(disk);
    let what = format!(
        "{}: blocks of {block_size} bytes on a device that wants {wanted}; using buffered I/O",
        path.display()
    );
    *notice = Some(match notice.take() {
        Some(before) => format!("{before}; {what}"),
        None => what,
    });
    backend
        .open_buffered(&path, access)
        .map_err(file_error("open", &path))
}

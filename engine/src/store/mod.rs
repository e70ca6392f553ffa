//! The store: the ports implemented over sectors.
//!
//! A put is encoded by its caller (`record`), queued and written by group commit (`commit`),
//! and enters the index (`index`) once it is durable. A get looks the index up and reads the
//! device (`read`), unless the blob is in memory (`cache`). Uploads of parts (`multipart`) and tracked sets (`tracker`) are entries like
//! blobs, with keys in spaces of their own; `merge` keeps blobs from falling to pieces, and `manifest`
//! makes new ones of their payload. `catalog` is the store file, and `store_file` writes it anew when it was lost. Replicas that are missing or damaged are found by reads and by a `scrub`, and
//! made anew by `repair`, what lies around them by `mend`; `rebalance` moves them; sectors come and go, or grow
//! (`membership`). Recovery (`recovery`) loads each sector's newest checkpoint and replays the
//! logs as one; `maintain` keeps checkpoints fresh and space coming back.

mod assembly;
mod cache;
mod catalog;
mod commit;
mod delta;
mod detached;
mod figures;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod fuzzing;
mod index;
mod info;
mod inner;
mod maintain;
mod manifest;
mod marks;
mod membership;
mod mend;
mod merge;
mod multipart;
mod options;
mod read;
mod rebalance;
mod record;
mod recovery;
mod repair;
mod replicas;
mod scrub;
mod sectors;
mod set;
mod shortage;
mod store_file;
mod structure;
mod ticket;
mod tracker;
mod verify;
mod write;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub use cache::CacheFigures;
pub use info::{
    CheckpointInfo, CompactReport, Finding, FoundSector, RebalanceProgress, RebalanceReport,
    RecoveredStoreFile, RepairProgress, ReplicationInfo, ScrubProgress, ScrubReport, SectorInfo,
    SegmentInfo, SegmentState, Space, StoreInfo, VerifyProgress, VerifyReport,
};
pub use options::{
    Access, CreateOptions, GIB, KIB, MIB, NewSector, OpenOptions, RebalanceOptions, RemoveOptions,
    ScrubDepth, ScrubOptions, WriteMode,
};
pub use read::GET_MAX;

use crate::io::{Backend, IoOptions};
use crate::port::blob::BatchItemOutcome;
use crate::port::{
    Batch, BatchItem, BinaryKey, Blob, BlobInfo, BlobRanges, BlobReader, BlobStore, BlobWriter,
    CompleteOptions, CopyOptions, DeleteOptions, DeleteOutcome, ETag, GetOptions, GetRangesOptions,
    Labels, ListPage, ListRequest, ManifestStore, MutableObjectStore, Op, PartInfo, PutOptions,
    PutOutcome, PutRangeOptions, RangeTracker, ReplicaIndex, ReplicationPolicy, Span, StorageError,
    StoreOp, SweptUploads, UploadId, UploadInfo, UploadOptions,
};
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Mutex, channel};
use inner::{GivenBackend, Inner};
use tracker::Of;

/// An open store. Share it as `Arc<Store>`, as `Arc<dyn BlobStore>`, or as
/// `Arc<dyn MutableObjectStore>`.
///
/// Dropped, it is closed as by [`Store::close`], errors going to the log only.
///
/// ```
/// use graviton_engine::port::{BinaryKey, BlobStore, GetOptions, PutOptions};
/// use graviton_engine::store::{CreateOptions, MIB, Store};
///
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("store");
/// let store = Store::create(&path, CreateOptions { sector_size: 16 * MIB, ..CreateOptions::default() })?;
/// let key = BinaryKey::new("greeting")?;
/// store.put(&key, "hello".into(), PutOptions::default()).wait()?; // durable from here on
/// let blob = store.get(&key, GetOptions::default()).wait()?;
/// assert_eq!(blob.bytes, "hello");
/// store.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Store {
    inner: Arc<Inner>,
    maintenance: Mutex<Option<JoinHandle<()>>>,
}

impl Store {
    /// Creates a store in the directory `path`, which is made if it is absent, and opens it.
    ///
    /// # Errors
    /// `AlreadyExists` if there is a store or a sector file, `InvalidArgument` for measures that
    /// do not fit each other, `File` with what the system reports (no space, above all); nothing
    /// is left behind then.
    pub fn create(path: impl AsRef<Path>, options: CreateOptions) -> Result<Self, StorageError> {
        Self::create_in(GivenBackend(None), path.as_ref(), options)
    }

    /// Creates a store on a backend of the caller's (simulated disks, above all) and opens it.
    /// [`OpenOptions::io`] does not matter then.
    ///
    /// # Errors
    /// As [`Store::create`].
    pub fn create_on(
        backend: Arc<dyn Backend>,
        path: impl AsRef<Path>,
        options: CreateOptions,
    ) -> Result<Self, StorageError> {
        Self::create_in(GivenBackend(Some(backend)), path.as_ref(), options)
    }

    fn create_in(
        backend: GivenBackend,
        path: &Path,
        options: CreateOptions,
    ) -> Result<Self, StorageError> {
        let (kick, kicks) = channel::bounded(1);
        Self::start(Inner::create(path, options, backend, kick)?, kicks)
    }

    /// Opens the store in the directory `path` for reading and writing.
    ///
    /// # Errors
    /// `NoStore`, `Locked`, `UnsupportedVersion`, `InvalidStore` (foreign or truncated files, or older ones),
    /// `Corruption` (acknowledged writes are damaged in a way that the index would be wrong
    /// without them), `File`, `Io`. Of a store with replicas, sectors with such errors are left out, as
    /// [`StoreInfo::health`] tells; `TooFewSectors` if those that are left may lack what was acknowledged.
    /// [`Access::Salvage`] opens what can be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StorageError> {
        Self::open_with(path, OpenOptions::default())
    }

    /// Opens the store in the directory `path`.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(path: impl AsRef<Path>, options: OpenOptions) -> Result<Self, StorageError> {
        Self::open_in(GivenBackend(None), path.as_ref(), options)
    }

    /// Opens the store in the directory `path` of a backend of the caller's (simulated disks,
    /// above all). [`OpenOptions::io`] does not matter then.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_on(
        backend: Arc<dyn Backend>,
        path: impl AsRef<Path>,
        options: OpenOptions,
    ) -> Result<Self, StorageError> {
        Self::open_in(GivenBackend(Some(backend)), path.as_ref(), options)
    }

    fn open_in(
        backend: GivenBackend,
        path: &Path,
        options: OpenOptions,
    ) -> Result<Self, StorageError> {
        let (kick, kicks) = channel::bounded(1);
        Self::start(Inner::open(path, options, backend, kick)?, kicks)
    }

    fn start(inner: Arc<Inner>, kicks: channel::Receiver<()>) -> Result<Self, StorageError> {
        let mut maintenance = None;
        if inner.options.background && inner.options.access == Access::ReadWrite {
            let worker = Arc::clone(&inner);
            let thread = thread::Builder::new()
                .name("graviton-maintain".to_owned())
                .spawn(move || worker.run_maintenance(&kicks));
            let path = inner.path.clone();
            maintenance = Some(thread.map_err(|source| StorageError::File {
                operation: "start the maintenance thread of",
                path,
                source: Arc::new(source),
            })?);
        }
        Ok(Self {
            inner,
            maintenance: Mutex::new(maintenance),
        })
    }

    /// Writes the store file `graviton.toml` of the store in the directory `path` anew, which was lost or damaged, from
    /// the copies of it that its sectors hold. They are looked for in the directory, at the paths in `sector_files`
    /// (relative ones are meant from the directory), and where they were; the directory may be a new one. A store
    /// file that is of no use is kept as `graviton.toml.damaged`. Nothing else is written: open the store then.
    ///
    /// If a sector is missing, or not as new as the others say, nobody knows what it alone was told. So the store does
    /// not open without it unless the loss is accepted ([`OpenOptions::accept_loss_of`]).
    ///
    /// ```
    /// use graviton_engine::io::IoOptions;
    /// use graviton_engine::store::{CreateOptions, MIB, Store};
    ///
    /// # let directory = tempfile::tempdir()?;
    /// # let path = directory.path().join("store");
    /// # let options = CreateOptions { sector_size: 16 * MIB, ..CreateOptions::default() };
    /// # Store::create(&path, options)?.close()?;
    /// std::fs::remove_file(path.join("graviton.toml"))?;
    /// let found = Store::recover_store_file(&path, &[], &IoOptions::default())?;
    /// assert!(found.sectors.iter().all(|sector| sector.is_there && sector.is_as_left));
    /// Store::open(&path)?.close()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `AlreadyExists` if there is a good store file; `Locked`; `NoStore` if no sector with a good copy is found;
    /// `InvalidStore` if those that are found are of several stores, or contradict each other, or a path in
    /// `sector_files` is none of a sector; `UnsupportedVersion`, `File`, `Io`.
    pub fn recover_store_file(
        path: impl AsRef<Path>,
        sector_files: &[PathBuf],
        io: &IoOptions,
    ) -> Result<RecoveredStoreFile, StorageError> {
        let (backend, _) = GivenBackend(None).open(io, path.as_ref())?;
        store_file::recover_store_file(backend.as_ref(), path.as_ref(), sector_files)
    }

    /// As [`Store::recover_store_file`], on a backend of the caller's.
    ///
    /// # Errors
    /// As there.
    pub fn recover_store_file_on(
        backend: &dyn Backend,
        path: impl AsRef<Path>,
        sector_files: &[PathBuf],
    ) -> Result<RecoveredStoreFile, StorageError> {
        store_file::recover_store_file(backend, path.as_ref(), sector_files)
    }

    /// Says anew what fails together with a sector, what kind of storage it is and what it costs: what
    /// policies of replication go by. It holds from the next put on, and is written to the store file.
    ///
    /// # Errors
    /// `ReadOnly`; `InvalidArgument` if there is no such sector, or a name is empty, too long or has
    /// control characters; `File`.
    pub fn relabel(&self, sector: u16, labels: Labels) -> Result<(), StorageError> {
        self.inner.relabel(sector, labels)
    }

    /// Has another policy decide where replicas go, from the next put on: see [`OpenOptions::replication`].
    pub fn set_replication(&self, policy: Option<Arc<dyn ReplicationPolicy>>) {
        self.inner.set_policy(policy);
    }

    /// Adds a sector, which takes records from then on. Returns its number, the lowest that is not in use. The
    /// one that it replaces, if it does, is [drained](Store::drain_sector) from the same moment on.
    ///
    /// # Errors
    /// `ReadOnly`; `InvalidArgument` for measures that do not fit, a name that is none, if there is no sector that
    /// it could replace, or there have been 64; `AlreadyExists` if there is such a file; `NotBlank` if there is
    /// something on the block device; `File`, also if that is in use; `Io`. Nothing is left behind then, but on a
    /// device what was on it may be lost.
    pub fn add_sector(&self, new: &NewSector) -> Result<u16, StorageError> {
        self.inner.add_sector(new)
    }

    /// Makes a sector larger: about `size` bytes, in whole segments; on a block device, [`u64::MAX`] is as many as
    /// it has by now. Puts that wait for room go on. Returns its size then, which is as it was if it has no whole
    /// segment more.
    ///
    /// # Errors
    /// `ReadOnly`; `InvalidArgument` if there is no such sector, or it is larger, or would have too many
    /// segments, or the device has fewer bytes; `SectorPoisoned` if it takes no writes; `File` if there is no room for it: nothing changed
    /// then. `Io`; the sector takes no more writes then, and has the one size or the other when it is opened
    /// next.
    pub fn grow_sector(&self, sector: u16, size: u64) -> Result<u64, StorageError> {
        self.inner.grow_sector(sector, size)
    }

    /// Has everything that a sector holds made anew in others, in the background: it gets nothing new, and can
    /// be [removed](Store::remove_sector) when it is the last hope of nothing. It goes on after a restart.
    ///
    /// # Errors
    /// `ReadOnly`; `InvalidArgument` if there is no such sector, or too few others; `File`.
    pub fn drain_sector(&self, sector: u16) -> Result<(), StorageError> {
        self.inner.drain_sector(sector)
    }

    /// Ends a drain that was begun: the sector keeps what it has, and gets more.
    ///
    /// # Errors
    /// `ReadOnly`; `InvalidArgument` if there is no such sector; `File`.
    pub fn undrain_sector(&self, sector: u16) -> Result<(), StorageError> {
        self.inner.undrain_sector(sector)
    }

    /// Takes a sector away. Its file is removed if it was made in the store's directory; that it can't be is told by
    /// [`StoreInfo::health`] alone. A block device is taken for no sector any more; the store lets go of it when
    /// it is closed.
    ///
    /// # Errors
    /// `ReadOnly`; `InvalidArgument` if there is no such sector, or too few others; `StillNeeded` if something
    /// has too few replicas without it, unless that is accepted; `File`.
    pub fn remove_sector(&self, sector: u16, options: RemoveOptions) -> Result<(), StorageError> {
        self.inner.remove_sector(sector, options)
    }

    /// How many keys (uploads, parts and tracked sets among them) would have too few replicas without a sector that
    /// are not known to be damaged,
    /// and pieces of blobs are on their way into it: 0 once it is drained.
    ///
    /// # Errors
    /// `InvalidArgument` if there is no such sector; `Corruption` of the index.
    pub fn needed(&self, sector: u16) -> Result<u64, StorageError> {
        self.inner.needed(sector)
    }

    /// Makes replicas, on this thread, until everything has as many as it should, or nothing more can be done, and
    /// mends what is known to be damaged around them: what the store does by itself in the background. Returns how
    /// many keys still have too few that are well.
    ///
    /// # Errors
    /// `ReadOnly`, `Closed`; `Corruption` of the index. What can't be read or written of one blob is in
    /// [`StoreInfo::health`].
    pub fn repair(&self, progress: &mut dyn FnMut(RepairProgress)) -> Result<u64, StorageError> {
        self.inner.check_writable()?;
        self.inner.repair(progress)
    }

    /// Moves replicas to where the policy of replication wants them, or, without one, from full sectors to emptier
    /// ones, and takes away those that are too many, as after a sector returned. A replica is durable where it is to
    /// be before another goes. Blobs that lack replicas, or have damaged ones, are left to [`Store::repair`].
    /// `progress` is asked after each step whether to go on; broken off, or done twice, it does no harm.
    ///
    /// A dry run takes each blob to be moved once; with a policy, more steps may follow.
    ///
    /// # Errors
    /// `ReadOnly` unless it is a dry run, `Closed`; `InvalidArgument` if the policy can't decide; `Corruption` of the
    /// index. What can't be done for one blob is counted in the report.
    pub fn rebalance(
        &self,
        options: &RebalanceOptions,
        progress: &mut dyn FnMut(RebalanceProgress<'_>) -> ControlFlow<()>,
    ) -> Result<RebalanceReport, StorageError> {
        match options.dry_run {
            true => self.inner.check_open()?,
            false => self.inner.check_writable()?,
        }
        self.inner.rebalance(options, progress)
    }

    /// Which sectors have which bytes of the blobs.
    #[must_use]
    pub fn replicas(&self) -> Arc<dyn ReplicaIndex> {
        self.inner.replica_index()
    }

    /// Reads all replicas back from the disks, so that what is damaged is mended while there is another to mend it
    /// from. Damage is marked, as by a read that meets it, and repaired in the background or by
    /// [`Store::repair`]; what else lies in the same segment is looked at next. `progress` is asked after each
    /// key whether to go on.
    ///
    /// Then, unless only the index is looked at, what lies around the replicas is read: superblocks, checkpoints,
    /// headers, what is dead. Damage there is mended in the sector, also if there is but one: a segment is
    /// emptied of what lives in it and can be read, and used anew; `progress` is asked after each segment.
    ///
    /// Reads bypass caches as far as the store's I/O does.
    ///
    /// ```
    /// use std::ops::ControlFlow;
    ///
    /// use graviton_engine::store::{CreateOptions, MIB, ScrubOptions, Store};
    ///
    /// # let directory = tempfile::tempdir()?;
    /// # let options = CreateOptions { sector_size: 16 * MIB, ..CreateOptions::default() };
    /// # let store = Store::create(directory.path().join("store"), options)?;
    /// let slowly = ScrubOptions { bytes_per_second: Some(8 << 20), ..ScrubOptions::default() };
    /// let report = store.scrub(&slowly, &mut |_| ControlFlow::Continue(()))?;
    /// assert!(report.findings.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Closed`; `Corruption` of the index. What is damaged is in the report.
    pub fn scrub(
        &self,
        options: &ScrubOptions,
        progress: &mut dyn FnMut(ScrubProgress) -> ControlFlow<()>,
    ) -> Result<ScrubReport, StorageError> {
        self.inner.check_open()?;
        self.inner.scrub(options, progress)
    }

    /// How many keys have too few replicas that are not known to be damaged, or some that are made of other pieces;
    /// also where there are not as many sectors as their puts have asked for.
    ///
    /// # Errors
    /// `Corruption` of the index.
    pub fn lacking(&self) -> Result<u64, StorageError> {
        self.inner.lacking()
    }

    /// Closes the store: waits for what was submitted, leaves a note of what is durable (a
    /// checkpoint, if replaying the log would take long), and gives up the lock. Later calls fail
    /// with `Closed`; closing again does nothing.
    ///
    /// # Errors
    /// What the disk reports; `SectorPoisoned` if something that was put as
    /// [`Written`](crate::port::Durability::Written) may be lost with a sector that failed. The store is closed
    /// all the same, and what was acknowledged as durable is safe.
    pub fn close(&self) -> Result<(), StorageError> {
        if !self.inner.begin_close() {
            return Ok(());
        }
        self.inner.kick_maintenance();
        if let Some(thread) = self.maintenance.lock().take() {
            // It only ends early by a bug of ours, which its own panic message reports.
            let _ = thread.join();
        }
        let outcome = self.inner.finish();
        self.inner.unlock();
        outcome
    }

    /// The store's figures now.
    #[must_use]
    pub fn info(&self) -> StoreInfo {
        self.inner.info()
    }

    /// The segments of a sector, by number; none if there is no such sector, or it can't be used.
    #[must_use]
    pub fn segments(&self, sector: u16) -> Vec<SegmentInfo> {
        self.inner.segments(sector.into())
    }

    /// Takes a checkpoint of every sector now, writers going on.
    ///
    /// # Errors
    /// `ReadOnly`, `Io`, `NoSpace`.
    pub fn checkpoint(&self) -> Result<Vec<CheckpointInfo>, StorageError> {
        self.inner.check_writable()?;
        self.inner.checkpoint_all()
    }

    /// Reclaims the garbage of all segments that are an eighth garbage or more, readers and writers
    /// going on.
    ///
    /// # Errors
    /// `ReadOnly`, `Io`, `NoSpace`.
    pub fn compact(&self) -> Result<CompactReport, StorageError> {
        self.inner.check_writable()?;
        self.inner.compact_all()
    }

    /// Writes zeros to all free segments that were never written, readers and writers going on, and returns how
    /// many bytes that were. The file system has to note of each block that it is in use when it is first
    /// written; a store has that done ahead of puts, and writes twice what is put until its sectors have been
    /// written once around. After this, nothing is left of it. It takes as long as writing the sectors does. What
    /// maintenance zeroes meanwhile is not in the number.
    ///
    /// # Errors
    /// `ReadOnly`, `Closed`; and what keeps it from zeroing one sector (`SectorPoisoned`, `Io`, `NoSpace`), once it is
    /// done with the others.
    pub fn zero_free_segments(&self) -> Result<u64, StorageError> {
        self.inner.check_writable()?;
        self.inner.zero_free_segments()
    }

    /// Reads everything back from the disk and checks it: superblocks, checkpoints, every frame
    /// and record, every blob of the index, and the sums of the accounting. Damage is a finding of
    /// the report, not an error. Writers and maintenance may go on; payload that they write or move
    /// meanwhile may not be read.
    ///
    /// # Errors
    /// `Closed`, and what else keeps it from going on.
    pub fn verify(
        &self,
        progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<VerifyReport, StorageError> {
        self.inner.verify(progress)
    }

    /// Does one unit of maintenance (a checkpoint, the compaction of a segment, ...) on this
    /// thread; last, when nothing else is left, the notes of what is durable that follow the last
    /// writes. `false` when there is nothing to do. Only needed with [`OpenOptions::background`]
    /// off.
    ///
    /// # Errors
    /// What the disk reports, or damage that was met.
    pub fn step(&self) -> Result<bool, StorageError> {
        self.inner.check_writable()?;
        self.inner.step_or_note()
    }
}

impl Store {
    /// Starts a mutation of `key` after those that were given up and go on by themselves.
    fn in_order<T: Send + Unpin + 'static>(
        &self,
        key: &BinaryKey,
        operation: impl FnOnce(&Arc<Inner>, &BinaryKey) -> StoreOp<T> + Send + 'static,
    ) -> StoreOp<T> {
        if let Err(error) = self.inner.check_open() {
            return Op::fail(error);
        }
        match self.inner.detached.before(&[key]) {
            None => operation(&self.inner, key),
            Some(earlier) => {
                let key = key.clone();
                self.after(earlier, vec![key.clone()], move |inner| {
                    operation(inner, &key)
                })
            }
        }
    }

    /// Starts an operation on `keys` behind mutations of theirs that go on without their callers.
    /// That the store is open was asked before: what a close finds waiting here it waits for, and
    /// an operation that comes later is turned away by the queues.
    fn after<T: Send + Unpin + 'static>(
        &self,
        earlier: impl Future<Output = ()> + Send + 'static,
        keys: Vec<BinaryKey>,
        operation: impl FnOnce(&Arc<Inner>) -> StoreOp<T> + Send + 'static,
    ) -> StoreOp<T> {
        let inner = Arc::clone(&self.inner);
        self.inner.start_kept(keys, async move {
            earlier.await;
            operation(&inner).await
        })
    }

    fn copy_or_rename(
        &self,
        source: &BinaryKey,
        target: &BinaryKey,
        options: CopyOptions,
        rename: bool,
    ) -> StoreOp<PutOutcome> {
        if let Err(error) = self.inner.check_open() {
            return Op::fail(error);
        }
        match self.inner.detached.before(&[source, target]) {
            None => self.inner.copy(source, target, options, rename),
            Some(earlier) => {
                let (source, target) = (source.clone(), target.clone());
                self.after(
                    earlier,
                    vec![source.clone(), target.clone()],
                    move |inner| inner.copy(&source, &target, options, rename),
                )
            }
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(error = error.without_key(), "closing the store");
        }
    }
}

impl BlobStore for Store {
    fn put(&self, key: &BinaryKey, payload: Bytes, options: PutOptions) -> StoreOp<PutOutcome> {
        self.in_order(key, move |inner, key| inner.put(key, &payload, options))
    }

    fn put_stream(&self, key: &BinaryKey, options: PutOptions) -> Result<BlobWriter, StorageError> {
        self.inner.put_stream(key, options)
    }

    fn get(&self, key: &BinaryKey, options: GetOptions) -> StoreOp<Blob> {
        self.inner.get(key, &options)
    }

    fn get_stream(&self, key: &BinaryKey, options: GetOptions) -> StoreOp<BlobReader> {
        self.inner.get_stream(key, &options)
    }

    fn exists(&self, key: &BinaryKey) -> StoreOp<bool> {
        Op::ready(self.inner.exists(key))
    }

    fn stat(&self, key: &BinaryKey) -> StoreOp<BlobInfo> {
        self.inner.stat(key)
    }

    fn delete(&self, key: &BinaryKey, options: DeleteOptions) -> StoreOp<DeleteOutcome> {
        self.in_order(key, move |inner, key| inner.delete(key, &options))
    }

    fn list(&self, request: ListRequest) -> StoreOp<ListPage> {
        Op::ready(self.inner.list(&request))
    }

    fn batch(&self, batch: Batch) -> StoreOp<Vec<BatchItemOutcome>> {
        if let Err(error) = self.inner.check_open() {
            return Op::fail(error);
        }
        let keys: Vec<&BinaryKey> = batch.items.iter().map(BatchItem::key).collect();
        match self.inner.detached.before(&keys) {
            None => self.inner.batch(batch),
            Some(earlier) => {
                let keys = keys.into_iter().cloned().collect();
                self.after(earlier, keys, move |inner| inner.batch(batch))
            }
        }
    }

    fn copy(
        &self,
        source: &BinaryKey,
        target: &BinaryKey,
        options: CopyOptions,
    ) -> StoreOp<PutOutcome> {
        self.copy_or_rename(source, target, options, false)
    }

    fn rename(
        &self,
        source: &BinaryKey,
        target: &BinaryKey,
        options: CopyOptions,
    ) -> StoreOp<PutOutcome> {
        self.copy_or_rename(source, target, options, true)
    }

    fn flush(&self) -> StoreOp<()> {
        match self.inner.detached.before(&[]) {
            None => self.inner.flush(),
            Some(earlier) => self.after(earlier, Vec::new(), Inner::flush),
        }
    }
}

impl MutableObjectStore for Store {
    fn create_sparse(
        &self,
        key: &BinaryKey,
        size: u64,
        options: PutOptions,
    ) -> StoreOp<PutOutcome> {
        self.in_order(key, move |inner, key| {
            inner.create_sparse(key, size, options)
        })
    }

    fn put_range(
        &self,
        key: &BinaryKey,
        range: Span,
        bytes: Bytes,
        options: PutRangeOptions,
    ) -> StoreOp<PutOutcome> {
        self.in_order(key, move |inner, key| {
            inner.put_range(key, range, bytes, options)
        })
    }

    fn get_ranges(
        &self,
        key: &BinaryKey,
        ranges: &[Span],
        options: GetRangesOptions,
    ) -> StoreOp<BlobRanges> {
        self.inner.get_ranges(key, ranges, &options)
    }

    fn start_upload(&self, key: &BinaryKey, options: UploadOptions) -> StoreOp<UploadId> {
        self.inner.start_upload(key, &options)
    }

    fn upload_part(
        &self,
        upload: UploadId,
        number: u16,
        bytes: Bytes,
        options: PutOptions,
    ) -> StoreOp<PutOutcome> {
        self.inner.upload_part(upload, number, bytes, options)
    }

    fn upload_part_stream(
        &self,
        upload: UploadId,
        number: u16,
        options: PutOptions,
    ) -> Result<BlobWriter, StorageError> {
        self.inner.upload_part_stream(upload, number, options)
    }

    fn complete_upload(
        &self,
        upload: UploadId,
        parts: &[(u16, ETag)],
        options: CompleteOptions,
    ) -> StoreOp<PutOutcome> {
        self.inner.complete_upload(upload, parts, options)
    }

    fn abort_upload(&self, upload: UploadId) -> StoreOp<()> {
        self.inner.abort_upload(upload)
    }

    fn list_uploads(
        &self,
        after: Option<(BinaryKey, UploadId)>,
        max: usize,
    ) -> StoreOp<Vec<UploadInfo>> {
        Op::ready(self.inner.list_uploads(after, max))
    }

    fn list_parts(&self, upload: UploadId, after: u16, max: usize) -> StoreOp<Vec<PartInfo>> {
        Op::ready(self.inner.list_parts(upload, after, max))
    }

    fn sweep_uploads(&self, age: Duration) -> StoreOp<SweptUploads> {
        self.inner.sweep_uploads(age)
    }

    fn ranges(&self) -> Arc<dyn RangeTracker> {
        self.inner.tracker(Of::Blobs)
    }

    fn ranges_elsewhere(&self) -> Arc<dyn RangeTracker> {
        self.inner.tracker(Of::Elsewhere)
    }

    fn manifests(&self) -> Arc<dyn ManifestStore> {
        self.inner.manifests()
    }
}

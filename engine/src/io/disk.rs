//! The [`Disk`] and [`Backend`] traits: everything the engine asks of the outside world.
//!
//! Three families implement them: io_uring, plain system calls, and (for tests) a simulated disk.
//! An implementation completes every transfer as a whole: short transfers, `EINTR`, `EAGAIN` and
//! results of zero are its own business and never reach the floors above.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::buffer::{AlignedBuf, BufferPool};
pub use super::completion::{IoOp, Reaping};
use crate::port::op::Driver;

/// How durable a write is when it completes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteSync {
    /// Handed to the device. Durable only after a later [`Disk::sync`] that succeeded.
    None,
    /// Durable on completion (`RWF_DSYNC`): this write alone, not the ones before it.
    Data,
}

/// What is known of an open disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskInfo {
    /// Where it lies.
    pub path: PathBuf,
    /// The backend that serves it: `io_uring`, `syscall`, ...
    pub backend: &'static str,
    /// Whether it is a block device, and not a file.
    pub is_device: bool,
    /// Whether transfers bypass the page cache (`O_DIRECT`).
    pub direct: bool,
    /// Transfers must be aligned to this in offset, length and memory, in bytes (a power of two).
    pub block_size: u32,
    /// The device rewrites its medium in units of this many bytes (a power of two, at least
    /// `block_size`); what shares such a unit with a write in flight is at risk at a power loss.
    pub physical_block_size: u32,
}

/// One open sector file or block device.
///
/// Offsets and buffer lengths must be multiples of [`DiskInfo::block_size`]; anything else fails
/// with `InvalidInput`. All three calls submit at once and never block on the device; their
/// [`IoOp`] owns the buffer until the device is done with it, even when the `IoOp` is dropped.
pub trait Disk: Send + Sync + fmt::Debug {
    /// What is known of it.
    fn info(&self) -> &DiskInfo;

    /// Its size in bytes, as it was opened, or extended last.
    fn size(&self) -> u64;

    /// Makes the bytes from `from` to `to` part of it: zeros, whatever was there, allocated, and durable on
    /// return. No transfer may reach past `from` meanwhile. A file ends with `to` then, and with `from` if this
    /// fails; a block device has these bytes, or is too small.
    ///
    /// # Errors
    /// `StorageFull`; `InvalidInput` for a device that is too small; what else the system reports.
    fn extend(&self, from: u64, to: u64) -> io::Result<()>;

    /// A buffer of `len` bytes for transfers, with unspecified (though initialised) contents.
    ///
    /// # Errors
    /// `OutOfMemory`.
    fn buffer(&self, len: usize) -> io::Result<AlignedBuf> {
        BufferPool::global().try_take(len)
    }

    /// Fills the whole of `buffer`, which the [`IoOp`] gives back, from `offset`. Reading past the end is
    /// `UnexpectedEof`.
    fn read(&self, buffer: AlignedBuf, offset: u64) -> IoOp;

    /// Writes the whole of `buffer` at `offset`.
    fn write(&self, buffer: AlignedBuf, offset: u64, sync: WriteSync) -> IoOp;

    /// Makes every write that completed before this call durable (`fdatasync`).
    fn sync(&self) -> IoOp;

    /// What a thread should drive that waits for this disk's writes and syncs by other means than
    /// their [`IoOp`]s (a commit ticket). `None` if completions arrive on their own.
    fn driver(&self) -> Option<Arc<dyn Driver>>;

    /// Completions of writes and syncs are reaped even if no thread waits for them, while what this
    /// returns lives. Threads that wait pay for it: they are no longer sure to reap for themselves.
    fn reap_in_background(&self) -> Reaping;

    /// Lets others have the disk, whoever still reads from it: the store it belonged to is closed.
    fn unlock(&self) {}
}

/// How a disk is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenAccess {
    /// Reads only.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// A lock on a file of the store, held until dropped.
pub trait Lock: Send + Sync + fmt::Debug {}

/// Why a lock was not to be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else holds it: the process of this number, if that is known.
    #[error("locked by {}", match owner {
        Some(process) => format!("process {process}"),
        None => "another process".to_owned(),
    })]
    Held {
        /// The process.
        owner: Option<u32>,
    },
    /// What the system reports.
    #[error(transparent)]
    File(#[from] io::Error),
}

/// Opens disks and looks after the few small files beside them.
pub trait Backend: Send + Sync + fmt::Debug {
    /// Its name, as `info` shows it.
    fn name(&self) -> &'static str;

    /// Creates a disk of `size` bytes: a new file (never an existing one), mode 0600, its blocks
    /// allocated; the file and its directory entry are durable on return.
    ///
    /// # Errors
    /// `AlreadyExists`, `StorageFull`, and what else the system reports.
    fn create(&self, path: &Path, size: u64) -> io::Result<Arc<dyn Disk>>;

    /// Opens an existing disk: a regular file or a block device; anything else is refused. A device that is
    /// opened for writing is nobody else's then: one that is mounted, or open for writing elsewhere, is refused.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`, `InvalidInput` (not a file or block device), `ResourceBusy`, ...
    fn open(&self, path: &Path, access: OpenAccess) -> io::Result<Arc<dyn Disk>>;

    /// As [`Backend::open`], but through the page cache, which takes transfers of any alignment:
    /// for a sector whose blocks are smaller than those of the device it was moved to.
    ///
    /// # Errors
    /// As [`Backend::open`].
    fn open_buffered(&self, path: &Path, access: OpenAccess) -> io::Result<Arc<dyn Disk>> {
        self.open(path, access)
    }

    /// How many bytes the block device at `path` has; `None` if there is none: something else, or nothing.
    ///
    /// # Errors
    /// `PermissionDenied`, and what else the system reports.
    fn device_size(&self, _path: &Path) -> io::Result<Option<u64>> {
        Ok(None)
    }

    /// Creates a directory (mode 0700) and those above it; an existing one is left as it is.
    ///
    /// # Errors
    /// What the system reports.
    fn create_directory(&self, path: &Path) -> io::Result<()>;

    /// Reads a small file whole; one larger than `limit` bytes is `InvalidData`.
    ///
    /// # Errors
    /// What the system reports.
    fn read_file(&self, path: &Path, limit: usize) -> io::Result<Vec<u8>>;

    /// Replaces a small file atomically and durably (temporary file, sync, rename, directory
    /// sync), mode 0600.
    ///
    /// # Errors
    /// What the system reports.
    fn replace_file(&self, path: &Path, contents: &[u8]) -> io::Result<()>;

    /// Removes a file; its absence is no error. What leads to a block device stays.
    ///
    /// # Errors
    /// What the system reports.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Fills `bytes` with what nobody can foresee: for ids, and to tell what a crash took from
    /// what came after it.
    ///
    /// # Errors
    /// What the system reports.
    fn random(&self, bytes: &mut [u8]) -> io::Result<()> {
        super::small::random(bytes)
    }

    /// The time now, which may be wrong, and jump either way.
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    /// Takes the lock on the file at `path`, which is created if absent, at once or not at all. An
    /// exclusive lock excludes every other, a shared one the exclusive ones. A holder that is dead,
    /// but whose files the system has yet to close, is outwaited.
    ///
    /// # Errors
    /// [`LockError::Held`] when another holds it, and who does, if it holds it exclusively.
    fn lock(&self, path: &Path, exclusive: bool) -> Result<Box<dyn Lock>, LockError>;
}

//! The backend over real files: what is common to io_uring and plain system calls.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use super::buffer::AlignedBuf;
use super::completion::{IoOp, Reaping};
use super::disk::{Backend, Disk, DiskInfo, Lock, LockError, OpenAccess, WriteSync};
use super::file::{self, OpenFile};
use super::request::{Action, Transfer};
use super::small;
use crate::port::op::Driver;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Moves bytes between buffers and files.
pub(super) trait Transport: Send + Sync + fmt::Debug {
    fn name(&self) -> &'static str;

    /// Starts a transfer whose arguments have been checked.
    fn submit(&self, transfer: Transfer) -> IoOp;

    /// See [`Disk::driver`].
    fn driver(&self) -> Arc<dyn Driver>;

    /// See [`Disk::reap_in_background`].
    fn reap_in_background(&self) -> Reaping;
}

/// A [`Backend`] that opens real files and moves their bytes with `transport`.
#[derive(Debug)]
pub(super) struct HostBackend {
    transport: Arc<dyn Transport>,
    direct: bool,
}

impl HostBackend {
    /// `direct`: whether direct I/O is to be tried at all.
    pub(super) fn new(transport: impl Transport + 'static, direct: bool) -> Self {
        Self {
            transport: Arc::new(transport),
            direct,
        }
    }

    pub(super) fn disk(&self, path: &Path, file: OpenFile) -> HostDisk {
        let info = DiskInfo {
            path: path.to_owned(),
            backend: self.transport.name(),
            is_device: file.is_device,
            direct: file.direct,
            block_size: file.block_size,
            physical_block_size: file.physical_block_size,
        };
        HostDisk {
            info,
            size: AtomicU64::new(file.size),
            file,
            transport: Arc::clone(&self.transport),
        }
    }
}

impl Backend for HostBackend {
    fn name(&self) -> &'static str {
        self.transport.name()
    }

    fn create(&self, path: &Path, size: u64) -> io::Result<Arc<dyn Disk>> {
        let file = file::create(path, size, self.direct)?;
        Ok(Arc::new(self.disk(path, file)))
    }

    fn open(&self, path: &Path, access: OpenAccess) -> io::Result<Arc<dyn Disk>> {
        let file = file::open(path, access, self.direct)?;
        Ok(Arc::new(self.disk(path, file)))
    }

    fn open_buffered(&self, path: &Path, access: OpenAccess) -> io::Result<Arc<dyn Disk>> {
        let file = file::open(path, access, false)?;
        Ok(Arc::new(self.disk(path, file)))
    }

    fn device_size(&self, path: &Path) -> io::Result<Option<u64>> {
        file::device_size_at(path)
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        small::create_directory(path)
    }

    fn read_file(&self, path: &Path, limit: usize) -> io::Result<Vec<u8>> {
        small::read_file(path, limit)
    }

    fn replace_file(&self, path: &Path, contents: &[u8]) -> io::Result<()> {
        small::replace_file(path, contents)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        small::remove_file(path)
    }

    fn lock(&self, path: &Path, exclusive: bool) -> Result<Box<dyn Lock>, LockError> {
        small::lock_patiently(path, exclusive)
    }
}

#[derive(Debug)]
pub(super) struct HostDisk {
    info: DiskInfo,
    size: AtomicU64,
    file: OpenFile,
    transport: Arc<dyn Transport>,
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

impl HostDisk {
    fn check_aligned(&self, buffer: &AlignedBuf, offset: u64) -> io::Result<()> {
        let block_size = self.info.block_size;
        if buffer.fits_blocks(block_size) && offset.is_multiple_of(block_size.into()) {
            return Ok(());
        }
        let len = buffer.len();
        Err(invalid(format!(
            "{len} bytes at {offset}, or their memory, are not aligned to blocks of {block_size}"
        )))
    }

    /// Whether `len` bytes at `offset` lie on the disk.
    fn holds(&self, len: usize, offset: u64) -> bool {
        let end = offset.checked_add(len as u64);
        end.is_some_and(|end| end <= self.size())
    }

    fn check_read(&self, buffer: &AlignedBuf, offset: u64) -> io::Result<()> {
        self.check_aligned(buffer, offset)?;
        let len = buffer.len();
        if self.holds(len, offset) {
            return Ok(());
        }
        let message = format!("{len} bytes at {offset} reach past the end of the disk");
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, message))
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.file.writable {
            return Ok(());
        }
        let message = "the disk is open for reading only";
        Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
    }

    fn check_write(&self, buffer: &AlignedBuf, offset: u64) -> io::Result<()> {
        self.check_writable()?;
        self.check_aligned(buffer, offset)?;
        let len = buffer.len();
        if self.holds(len, offset) {
            return Ok(());
        }
        Err(invalid(format!(
            "{len} bytes at {offset} reach past the end of the disk"
        )))
    }

    fn submit(&self, action: Action, buffer: AlignedBuf, offset: u64) -> IoOp {
        if buffer.is_empty() && action != Action::Sync {
            return IoOp::ready(buffer, Ok(()));
        }
        self.transport.submit(Transfer {
            action,
            file: Arc::clone(&self.file.file),
            buffer,
            offset,
            block_size: self.info.block_size as usize,
        })
    }
}

impl Disk for HostDisk {
    fn info(&self) -> &DiskInfo {
        &self.info
    }

    fn unlock(&self) {
        file::unlock(self.file.file.as_fd());
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn extend(&self, from: u64, to: u64) -> io::Result<()> {
        self.check_writable()?;
        let file = self.file.file.as_fd();
        let outcome = match self.info.is_device {
            true => file::take_from_device(file, from, to),
            false => file::extend(file, from, to),
        };
        let size = match (self.info.is_device, &outcome) {
            (true, _) => file::device_size(file).unwrap_or(self.size()),
            (false, Ok(())) => to,
            (false, Err(_)) => from,
        };
        self.size.store(size, Ordering::Release);
        outcome
    }

    fn read(&self, buffer: AlignedBuf, offset: u64) -> IoOp {
        match self.check_read(&buffer, offset) {
            Ok(()) => self.submit(Action::Read, buffer, offset),
            Err(error) => IoOp::ready(buffer, Err(error)),
        }
    }

    fn write(&self, buffer: AlignedBuf, offset: u64, sync: WriteSync) -> IoOp {
        match self.check_write(&buffer, offset) {
            Ok(()) => self.submit(Action::Write(sync), buffer, offset),
            Err(error) => IoOp::ready(buffer, Err(error)),
        }
    }

    fn sync(&self) -> IoOp {
        match self.check_writable() {
            Ok(()) => self.submit(Action::Sync, AlignedBuf::empty(), 0),
            Err(error) => IoOp::ready(AlignedBuf::empty(), Err(error)),
        }
    }

    fn driver(&self) -> Option<Arc<dyn Driver>> {
        Some(self.transport.driver())
    }

    fn reap_in_background(&self) -> Reaping {
        self.transport.reap_in_background()
    }
}

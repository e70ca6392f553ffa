//! Opening and creating sector files, and finding out how they may be accessed.
//!
//! Whether a file takes direct I/O, and at what alignment, is not to be believed before it was
//! tried: file systems refuse `O_DIRECT` at open, or accept it and fail every transfer, or ask for
//! larger blocks than their device. So each file is probed with real reads (and, when just
//! created, real writes), and falls back to buffered I/O with a warning.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, FallocateFlags, FileType, FlockOperation, Mode, OFlags, SeekFrom, Stat, StatxFlags,
    fallocate, fchmod, fcntl_getfl, fcntl_setfl, flock, fstat, fsync, ftruncate, major, minor,
    open as open_file, seek, statx,
};
use rustix::io::{Errno, pread, pwrite};

use super::buffer::BufferPool;
use super::disk::OpenAccess;
use super::small::sync_parent;

/// The alignment of buffered I/O. Any would do; this one keeps callers honest.
const BLOCK_SIZE_BUFFERED: u32 = 512;
/// Alignments of direct I/O that are tried where the kernel does not tell.
const BLOCK_SIZES: [u32; 2] = [512, 4096];
const PHYSICAL_BLOCK_SIZE_UNKNOWN: u32 = 4096;
const PHYSICAL_BLOCK_SIZES: std::ops::RangeInclusive<u32> = 512..=4096;
const ZEROS_SIZE: usize = 1 << 20;
/// Bytes of a device that are zeroed by one call.
const DEVICE_PIECE: u64 = 1 << 30;
/// How long a device is waited for that somebody has: a ring can hold those of the dead a moment longer.
const DEVICE_PATIENCE: Duration = Duration::from_secs(1);
/// How long a file that is locked is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(4);
const DEVICE_RETRY: Duration = Duration::from_millis(20);

/// A sector file or block device, and what was learnt about it.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) file: Arc<OwnedFd>,
    pub(super) size: u64,
    pub(super) writable: bool,
    pub(super) is_device: bool,
    pub(super) direct: bool,
    pub(super) block_size: u32,
    pub(super) physical_block_size: u32,
}

/// Creates a file of `size` bytes, all allocated, and makes it and its name durable.
pub(super) fn create(path: &Path, size: u64, direct: bool) -> io::Result<OpenFile> {
    if size == 0 {
        let message = "a disk has at least one byte";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = open_file(path, flags, Mode::RUSR | Mode::WUSR)?;
    prepare(file, path, size, direct).inspect_err(|_| {
        // It is ours, for `O_EXCL` created it. If it can't be removed there is nothing to add.
        let _ = fs::remove_file(path);
    })
}

fn prepare(file: OwnedFd, path: &Path, size: u64, direct: bool) -> io::Result<OpenFile> {
    // Whatever the umask left of it.
    fchmod(&file, Mode::RUSR | Mode::WUSR)?;
    allocate(file.as_fd(), 0, size)?;
    fsync(&file)?;
    sync_parent(path)?;
    let fresh = Access {
        writable: true,
        fresh: true,
    };
    examine(file, path, fresh, direct)
}

/// Makes a file's bytes from `from` to `to` zeros that are allocated, and what it ends with.
pub(super) fn extend(file: BorrowedFd<'_>, from: u64, to: u64) -> io::Result<()> {
    // What an earlier try may have left there.
    ftruncate(file, from)?;
    let extended = allocate(file, from, to).and_then(|()| Ok(fsync(file)?));
    extended.inspect_err(|_| {
        let _ = ftruncate(file, from);
    })
}

/// Makes a block device's bytes from `from` to `to` zeros.
pub(super) fn take_from_device(file: BorrowedFd<'_>, from: u64, to: u64) -> io::Result<()> {
    let size = device_size(file)?;
    if to > size {
        let message = format!("the device has {size} bytes, not {to}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let mut start = from;
    while start < to {
        // In pieces: nothing interrupts such a call.
        let end = to.min(start.saturating_add(DEVICE_PIECE));
        zero_device(file, start, end)?;
        start = end;
    }
    Ok(fsync(file)?)
}

fn zero_device(file: BorrowedFd<'_>, from: u64, to: u64) -> io::Result<()> {
    // At no cost, or by the device itself, if it can; else by the kernel.
    for how in [FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE] {
        loop {
            match fallocate(file, how | FallocateFlags::KEEP_SIZE, from, to - from) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    write_zeros(file, from, to)
}

/// How many bytes a block device has now.
pub(super) fn device_size(file: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(seek(file, SeekFrom::End(0))?)
}

/// How many bytes the block device at `path` has; `None` if there is none.
pub(super) fn device_size_at(path: &Path) -> io::Result<Option<u64>> {
    let is_device = match fs::metadata(path) {
        Ok(metadata) => metadata.file_type().is_block_device(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    if !is_device {
        return Ok(None);
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let file = open_file(path, flags, Mode::empty())?;
    device_size(file.as_fd()).map(Some)
}

fn allocate(file: BorrowedFd<'_>, from: u64, to: u64) -> io::Result<()> {
    if from == to {
        return Ok(());
    }
    loop {
        match fallocate(file, FallocateFlags::empty(), from, to.saturating_sub(from)) {
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return write_zeros(file, from, to),
            result => return Ok(result?),
        }
    }
}

fn write_zeros(file: BorrowedFd<'_>, from: u64, to: u64) -> io::Result<()> {
    let zeros = BufferPool::global().take_zeroed(ZEROS_SIZE);
    let mut offset = from;
    while offset < to {
        let len = usize::try_from(to - offset).map_or(ZEROS_SIZE, |left| left.min(ZEROS_SIZE));
        match pwrite(file, &zeros[..len], offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => offset += count as u64,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Opens an existing file or block device.
pub(super) fn open(path: &Path, access: OpenAccess, direct: bool) -> io::Result<OpenFile> {
    let mode = match access {
        OpenAccess::ReadOnly => OFlags::RDONLY,
        OpenAccess::ReadWrite => OFlags::RDWR,
    };
    // Without NONBLOCK, opening a pipe would block. It is taken off again in `examine`: io_uring
    // takes it to mean that transfers must not wait for the device.
    let mut flags = mode | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let is_device = fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
    if is_device && access == OpenAccess::ReadWrite {
        // Of a device it says that nobody else may use it, a mount included.
        flags |= OFlags::EXCL;
    }
    let begun = Instant::now();
    let file = loop {
        match open_file(path, flags, Mode::empty()) {
            Ok(file) => break file,
            Err(Errno::BUSY) if begun.elapsed() < DEVICE_PATIENCE => thread::sleep(DEVICE_RETRY),
            // What the system says of sockets, and of directories opened for writing.
            Err(Errno::NXIO | Errno::ISDIR) => return Err(not_a_disk(path)),
            Err(errno) => return Err(errno.into()),
        }
    };
    let access = Access {
        writable: access == OpenAccess::ReadWrite,
        fresh: false,
    };
    examine(file, path, access, direct)
}

/// Locks a file for as long as it is open: two stores may name it, each with a lock file of its own. What a process
/// that was killed had open is let go of a moment later. (Of a device `O_EXCL` says the same.)
fn lock(file: BorrowedFd<'_>, exclusive: bool) -> io::Result<()> {
    let operation = match exclusive {
        true => FlockOperation::NonBlockingLockExclusive,
        false => FlockOperation::NonBlockingLockShared,
    };
    let begun = Instant::now();
    loop {
        match flock(file, operation) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) if begun.elapsed() < LOCK_PATIENCE => {
                thread::sleep(DEVICE_RETRY);
            }
            // There are file systems without.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOLCK) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Gives the lock back though the file stays open.
pub(super) fn unlock(file: BorrowedFd<'_>) {
    let _ = flock(file, FlockOperation::Unlock);
}

fn not_a_disk(path: &Path) -> io::Error {
    let message = format!(
        "{} is neither a regular file nor a block device",
        path.display()
    );
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

#[derive(Clone, Copy)]
struct Access {
    writable: bool,
    /// Just created: zeros may be written to it.
    fresh: bool,
}

fn examine(file: OwnedFd, path: &Path, access: Access, direct: bool) -> io::Result<OpenFile> {
    let stat = fstat(&file)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind == FileType::RegularFile {
        lock(file.as_fd(), access.writable)?;
    }
    let size = match kind {
        FileType::RegularFile => u64::try_from(stat.st_size).unwrap_or(0),
        FileType::BlockDevice => device_size(file.as_fd())?,
        _ => return Err(not_a_disk(path)),
    };
    let flags = fcntl_getfl(&file)? - OFlags::NONBLOCK;
    fcntl_setfl(&file, flags)?;
    let probed = if direct {
        probe_direct(file.as_fd(), flags, size, access.fresh)?
    } else {
        None
    };
    if direct && probed.is_none() {
        tracing::warn!(path = %path.display(), "no direct I/O here; using buffered I/O");
    }
    let block_size = probed.unwrap_or(BLOCK_SIZE_BUFFERED);
    Ok(OpenFile {
        file: Arc::new(file),
        size,
        writable: access.writable,
        is_device: kind == FileType::BlockDevice,
        direct: probed.is_some(),
        block_size,
        physical_block_size: physical_block_size(&stat).max(block_size),
    })
}

/// Turns direct I/O on if it works; returns its alignment, or `None` with direct I/O off.
fn probe_direct(
    file: BorrowedFd<'_>,
    flags: OFlags,
    size: u64,
    fresh: bool,
) -> io::Result<Option<u32>> {
    if fcntl_setfl(file, flags | OFlags::DIRECT).is_err() {
        return Ok(None);
    }
    let least = direct_alignment(file);
    let candidates = BLOCK_SIZES.into_iter().filter(|block_size| match least {
        Some(least) => least > 0 && *block_size >= least,
        None => true,
    });
    for block_size in candidates {
        if works(file, block_size, size, fresh) {
            return Ok(Some(block_size));
        }
    }
    fcntl_setfl(file, flags)?;
    Ok(None)
}

/// The least alignment of direct I/O, as far as the kernel tells (Linux 6.1 and later); zero if
/// there is no direct I/O.
fn direct_alignment(file: BorrowedFd<'_>) -> Option<u32> {
    let stat = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    if stat.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return None;
    }
    Some(match stat.stx_dio_offset_align {
        0 => 0,
        offset => offset.max(stat.stx_dio_mem_align),
    })
}

/// Whether one block can be read directly (and, on a fresh file, written) at an offset and in memory that are
/// aligned to nothing larger.
fn works(file: BorrowedFd<'_>, block_size: u32, size: u64, fresh: bool) -> bool {
    let offset = u64::from(block_size);
    let mut block = BufferPool::global().take_zeroed(2 * block_size as usize);
    let mut block = block.split_off(block_size as usize);
    if fresh && offset * 2 <= size && is_refusal(pwrite(file, &block, offset)) {
        return false;
    }
    !is_refusal(pread(file, &mut *block, offset))
}

/// Whether a transfer failed for the way it was asked for. Any other failure is the device's, and
/// is met again (and reported) where it belongs.
fn is_refusal(result: Result<usize, Errno>) -> bool {
    matches!(
        result,
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOTBLK | Errno::NOSYS)
    )
}

/// In what units the device rewrites its medium; a guess to the safe side where it is unknown.
fn physical_block_size(stat: &Stat) -> u32 {
    let device = match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => stat.st_rdev,
        _ => stat.st_dev,
    };
    let device = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    // A partition has no queue of its own; its directory lies in its disk's.
    ["queue", "../queue"]
        .iter()
        .find_map(|queue| {
            let path = format!("{device}/{queue}/physical_block_size");
            fs::read_to_string(path).ok()?.trim().parse::<u32>().ok()
        })
        .filter(|size| size.is_power_of_two())
        .map_or(PHYSICAL_BLOCK_SIZE_UNKNOWN, |size| {
            size.clamp(*PHYSICAL_BLOCK_SIZES.start(), *PHYSICAL_BLOCK_SIZES.end())
        })
}

/// An unnamed file in memory, for the probe of a backend.
pub(super) fn in_memory(size: u64) -> io::Result<OpenFile> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = rustix::fs::memfd_create(c"graviton-probe", flags)?;
    ftruncate(&file, size)?;
    Ok(OpenFile {
        file: Arc::new(file),
        size,
        writable: true,
        is_device: false,
        direct: false,
        block_size: BLOCK_SIZE_BUFFERED,
        physical_block_size: PHYSICAL_BLOCK_SIZE_UNKNOWN,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn kind<T>(result: io::Result<T>) -> io::ErrorKind {
        result.map(drop).expect_err("it should fail").kind()
    }

    #[test]
    fn a_created_file_is_private_allocated_and_new() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sector");
        let created = create(&path, 1 << 20, true).unwrap();
        assert_eq!(created.size, 1 << 20);
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
        assert_eq!(metadata.len(), 1 << 20);
        assert_eq!(
            kind(create(&path, 4096, true)),
            io::ErrorKind::AlreadyExists
        );
        assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 20);
        assert!(fs::read(&path).unwrap().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn create_does_not_follow_a_symlink() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path().join("target"), &link).unwrap();
        assert_eq!(
            kind(create(&link, 4096, true)),
            io::ErrorKind::AlreadyExists
        );
        assert!(!directory.path().join("target").exists());
    }

    #[test]
    fn a_failed_creation_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sector");
        create(&path, u64::MAX, true).unwrap_err();
        assert!(!path.exists());
        assert_eq!(kind(create(&path, 0, true)), io::ErrorKind::InvalidInput);
        assert!(!path.exists());
    }

    #[test]
    fn only_files_and_block_devices_are_opened() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, mode, 0).unwrap();
        let socket = directory.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let null = Path::new("/dev/null");
        for path in [directory.path(), &pipe, &socket, null] {
            for access in [OpenAccess::ReadOnly, OpenAccess::ReadWrite] {
                let refused = kind(open(path, access, true));
                assert_eq!(refused, io::ErrorKind::InvalidInput, "{path:?}");
            }
        }
        let absent = open(&directory.path().join("absent"), OpenAccess::ReadOnly, true);
        assert_eq!(kind(absent), io::ErrorKind::NotFound);
    }

    #[test]
    fn block_sizes_are_sane_and_buffered_io_can_be_forced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sector");
        for direct in [true, false] {
            let _ = fs::remove_file(&path);
            let check = |file: OpenFile| {
                assert!(direct || !file.direct);
                assert!(file.block_size.is_power_of_two());
                assert!(PHYSICAL_BLOCK_SIZES.contains(&file.physical_block_size));
                assert!(file.physical_block_size >= file.block_size);
                let flags = fcntl_getfl(&file.file).unwrap();
                assert_eq!(flags.contains(OFlags::DIRECT), file.direct);
                assert!(!flags.contains(OFlags::NONBLOCK));
            };
            check(create(&path, 1 << 20, direct).unwrap());
            check(open(&path, OpenAccess::ReadWrite, direct).unwrap());
        }
    }

    #[test]
    fn files_in_memory_fall_back_or_work() {
        let Ok(directory) = tempfile::tempdir_in("/dev/shm") else {
            return eprintln!("skipped: no /dev/shm here");
        };
        let file = create(&directory.path().join("sector"), 1 << 20, true).unwrap();
        assert!(PHYSICAL_BLOCK_SIZES.contains(&file.physical_block_size));
    }

    #[test]
    fn zeros_are_written_where_nothing_can_be_allocated() {
        let mut file = tempfile::tempfile().unwrap();
        let size = (ZEROS_SIZE + 12_345) as u64;
        write_zeros(file.as_fd(), 0, size).unwrap();
        let mut contents = Vec::new();
        io::Read::read_to_end(&mut file, &mut contents).unwrap_or_default();
        assert_eq!(file.metadata().unwrap().len(), size);
        assert!(contents.iter().all(|byte| *byte == 0));
    }
}

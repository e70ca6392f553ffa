//! Choosing a backend: the options, and the probe behind [`open_backend`].

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

use super::buffer::{AlignedBuf, BufferPool};
use super::disk::{Backend, Disk, WriteSync};
use super::file;
use super::host::HostBackend;
use super::syscall::Syscall;
use super::uring::Uring;
use crate::port::op::wait_for;

const READ_RINGS_DEFAULT: usize = 64;
/// More descriptors than a process usually may have.
const READ_RINGS_MAX: usize = 4096;
const RING_ENTRIES_DEFAULT: u32 = 1024;
const PROBE_SIZE: usize = 8192;

/// Which backend serves the disks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BackendChoice {
    /// io_uring if it works here, else plain system calls, with a notice.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// Plain system calls.
    Syscall,
}

/// Whether transfers bypass the page cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DirectIo {
    /// For each file on which it works.
    #[default]
    Auto,
    /// For none.
    Never,
}

/// How real files are accessed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoOptions {
    /// Which backend serves the disks.
    pub backend: BackendChoice,
    /// Whether transfers bypass the page cache.
    pub direct: DirectIo,
    /// io_uring: how many rings there may be for reads, one for each thread that reads, while there are
    /// enough; at least 1, at most 4096. Each takes some 30 KiB of memory and a descriptor, once a thread uses it.
    pub read_rings: usize,
    /// io_uring: how many requests of one ring the kernel may have at a time; more wait their
    /// turn. Between 2 and 65,536; rounded up to a power of two.
    pub ring_entries: u32,
}

impl Default for IoOptions {
    /// Everything chosen automatically: up to 64 rings for reads, 1024 requests each.
    fn default() -> Self {
        Self {
            backend: BackendChoice::Auto,
            direct: DirectIo::Auto,
            read_rings: READ_RINGS_DEFAULT,
            ring_entries: RING_ENTRIES_DEFAULT,
        }
    }
}

/// Opens the backend over real files. If the choice is [`BackendChoice::Auto`] and io_uring does
/// not work here, plain system calls serve instead and the second value says why, in one line.
///
/// # Errors
/// Threads or descriptors run out; or io_uring does not work and was asked for by name.
pub fn open_backend(options: &IoOptions) -> io::Result<(Arc<dyn Backend>, Option<String>)> {
    let notice = match options.backend {
        BackendChoice::Syscall => None,
        BackendChoice::Uring => return Ok((Arc::new(open_uring(options)?), None)),
        BackendChoice::Auto => match open_uring(options) {
            Ok(backend) => return Ok((Arc::new(backend), None)),
            Err(error) => {
                let notice = format!("{error}; using plain system calls");
                tracing::warn!("{notice}");
                Some(notice)
            }
        },
    };
    let backend = HostBackend::new(Syscall::new()?, options.direct == DirectIo::Auto);
    Ok((Arc::new(backend), notice))
}

fn open_uring(options: &IoOptions) -> io::Result<HostBackend> {
    let read_rings = options.read_rings.clamp(1, READ_RINGS_MAX);
    let rings = Uring::new(read_rings, options.ring_entries).map_err(explained)?;
    let backend = HostBackend::new(rings, options.direct == DirectIo::Auto);
    probe(&backend).map_err(|error| {
        let message = format!("io_uring is here but does not work ({error})");
        io::Error::new(error.kind(), message)
    })?;
    Ok(backend)
}

/// Says what an error from the setup of a ring means.
fn explained(error: io::Error) -> io::Error {
    let message = match Errno::from_io_error(&error) {
        Some(Errno::PERM) => "io_uring is not permitted here (EPERM)".to_owned(),
        Some(Errno::ACCESS) => "io_uring is not permitted here (EACCES)".to_owned(),
        Some(Errno::NOSYS) => "this kernel has no io_uring (ENOSYS)".to_owned(),
        Some(Errno::NOMEM) => "io_uring may not lock enough memory here (ENOMEM)".to_owned(),
        Some(Errno::MFILE | Errno::NFILE) => "io_uring finds no free descriptor".to_owned(),
        _ => format!("io_uring cannot be used here: {error}"),
    };
    io::Error::new(error.kind(), message)
}

/// Writes, syncs and reads back a file in memory: a seccomp filter, say, may allow the setup of a
/// ring and forbid its use.
fn probe(backend: &HostBackend) -> io::Result<()> {
    let disk = backend.disk(Path::new("probe"), file::in_memory(PROBE_SIZE as u64)?);
    let written = wait_for(disk.write(pattern(), 0, WriteSync::Data));
    written.1?;
    wait_for(disk.sync()).1?;
    let (read, outcome) = wait_for(disk.read(BufferPool::global().take(PROBE_SIZE), 0));
    outcome?;
    if *read == *pattern() {
        return Ok(());
    }
    let message = "it read back other bytes than it wrote";
    Err(io::Error::new(io::ErrorKind::InvalidData, message))
}

fn pattern() -> AlignedBuf {
    let mut buffer = BufferPool::global().take(PROBE_SIZE);
    for (byte, value) in buffer.iter_mut().zip((0..=u8::MAX).cycle()) {
        *byte = value;
    }
    buffer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forbidden_ring_is_explained_in_one_line() {
        let error = explained(io::Error::from_raw_os_error(Errno::PERM.raw_os_error()));
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(error.to_string(), "io_uring is not permitted here (EPERM)");
    }

    #[test]
    fn silly_numbers_are_made_to_work() {
        for (read_rings, ring_entries) in [(0, 0), (1, 1), (1, u32::MAX), (usize::MAX, 16)] {
            let options = IoOptions {
                read_rings,
                ring_entries,
                ..IoOptions::default()
            };
            let (backend, notice) = open_backend(&options).unwrap();
            eprintln!("{}: {notice:?}", backend.name());
        }
    }
}

//! What goes wrong: calls that fail, transfers in pieces, silent damage.

use std::io;

use rustix::io::Errno;

/// What a fault hits, and how. The faults without an error are silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// A read fails.
    Read,
    /// A write fails; some of its first units are there.
    Write,
    /// A sync fails, or a write that is durable by itself.
    Sync,
    /// There is no memory for a buffer.
    Allocate,
    /// A disk can't be created; nothing is left of it.
    Create,
    /// A disk can't be extended.
    Extend,
    /// A disk can't be opened.
    Open,
    /// A small file can't be read.
    ReadFile,
    /// A small file can't be replaced; the new one may be there all the same.
    ReplaceFile,
    /// A file can't be removed; it may be gone all the same.
    RemoveFile,
    /// A directory can't be created.
    CreateDirectory,
    /// A lock can't be taken, though nobody holds it.
    Lock,
    /// There are no random bytes.
    Random,
    /// A read, write or sync fails, and so does everything on this disk from then on.
    Death,
    /// A read is carried out in two steps.
    ShortRead,
    /// A write is carried out in two steps: the power may fail between them.
    ShortWrite,
    /// A bit of what is read has flipped on the medium, for good.
    Rot,
    /// A bit of what is read is flipped, this once.
    FlippedRead,
    /// A read gives what was there before the last write (that came after the fault was set).
    StaleRead,
    /// A read gives what is in another place of the disk.
    MisdirectedRead,
    /// A write is acknowledged, and nothing is there.
    LostWrite,
    /// A write is acknowledged, and lands in another place of the disk.
    MisdirectedWrite,
}

/// A fault: calls of a kind are hit from the `after`-th on, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// What it hits.
    pub kind: FaultKind,
    /// How many calls succeed first.
    pub after: usize,
    /// How many calls are hit then.
    pub times: usize,
    /// The disk that it hits; `None`: all, and calls that are about no disk.
    pub disk: Option<usize>,
}

/// The error that a call fails with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FaultError {
    /// `EIO`.
    #[default]
    Io,
    /// `ENOSPC`.
    NoSpace,
    /// `EMFILE`.
    TooManyFiles,
    /// `ENOMEM`.
    NoMemory,
}

impl From<FaultError> for io::Error {
    fn from(error: FaultError) -> Self {
        match error {
            FaultError::Io => Errno::IO,
            FaultError::NoSpace => Errno::NOSPC,
            FaultError::TooManyFiles => Errno::MFILE,
            FaultError::NoMemory => Errno::NOMEM,
        }
        .into()
    }
}

/// How a disk is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DiskCondition {
    /// It works.
    #[default]
    Well,
    /// Everything on it fails, opening it included.
    Dead,
    /// It is not there: opening it is `NotFound`, and whoever has it open sees everything fail.
    Absent,
    /// Opening it for writing is `ReadOnlyFilesystem`, and whoever has it open sees writes and syncs fail.
    ReadOnly,
}

/// The faults that are set, and what they hit.
#[derive(Debug, Default)]
pub(super) struct Faults {
    set: Vec<(Fault, FaultError)>,
    /// Calls that were hit.
    pub(super) hits: usize,
}

impl Faults {
    pub(super) fn clear(&mut self) {
        self.set.clear();
    }

    pub(super) fn add(&mut self, faults: &[Fault], error: FaultError) {
        self.set.extend(faults.iter().map(|&fault| (fault, error)));
    }

    /// Whether any is of this kind.
    pub(super) fn any(&self, kind: FaultKind) -> bool {
        self.set.iter().any(|(fault, _)| fault.kind == kind)
    }

    /// A call of a kind is made; the error it fails with if it is hit.
    pub(super) fn hit(&mut self, kind: FaultKind, disk: Option<usize>) -> Option<FaultError> {
        let mut hit = None;
        for (fault, error) in &mut self.set {
            if fault.kind != kind || (fault.disk.is_some() && fault.disk != disk) {
                continue;
            }
            if fault.after > 0 {
                fault.after -= 1;
            } else if fault.times > 0 {
                // `usize::MAX` times are as good as for ever.
                fault.times -= 1;
                hit = hit.or(Some(*error));
            }
        }
        self.hits += usize::from(hit.is_some());
        hit
    }

    /// As [`Faults::hit`], for a call that fails then.
    pub(super) fn check(&mut self, kind: FaultKind, disk: Option<usize>) -> io::Result<()> {
        self.hit(kind, disk)
            .map_or(Ok(()), |error| Err(error.into()))
    }
}

//! Calls that fail when they are told to.

use std::io;

/// What a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Syncs, and the writes that are durable by themselves.
    Sync,
}

/// A fault: calls of a kind fail with EIO from the `after`-th on, counted from 0.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// What it hits.
    pub kind: FaultKind,
    /// How many calls succeed first.
    pub after: usize,
    /// How many calls fail then.
    pub times: usize,
    /// The disk that it hits; `None`: all.
    pub disk: Option<usize>,
}

/// EIO.
pub(super) fn outcome(failed: bool) -> io::Result<()> {
    if failed {
        return Err(io::Error::from_raw_os_error(5));
    }
    Ok(())
}

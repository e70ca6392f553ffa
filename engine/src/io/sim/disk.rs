//! One simulated disk.

use std::io;
use std::sync::Arc;

use super::fault::FaultKind;
use super::machine::{Action, Shared};
use crate::io::{
    AlignedBuf, BufferPool, CompletionSource, Disk, DiskInfo, IoOp, Reaping, WriteSync,
};
use crate::port::op::Driver;
use crate::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug)]
pub(super) struct SimDisk {
    pub(super) info: DiskInfo,
    pub(super) number: usize,
    pub(super) size: AtomicU64,
    pub(super) writable: bool,
    pub(super) shared: Arc<Shared>,
}

impl SimDisk {
    fn submit(&self, action: Action, buffer: AlignedBuf) -> IoOp {
        let source: Arc<dyn CompletionSource> = Arc::<Shared>::clone(&self.shared);
        let (op, completer) = IoOp::pending(Some(source));
        self.shared.submit(self.number, action, buffer, completer);
        op
    }

    /// As an index, if it is aligned and the buffer's bytes from there lie on the disk.
    fn check(&self, buffer: &AlignedBuf, offset: u64, past: io::ErrorKind) -> io::Result<usize> {
        let block = self.info.block_size;
        if !buffer.fits_blocks(block) || !offset.is_multiple_of(block.into()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.size()) {
            return Err(past.into());
        }
        usize::try_from(offset).map_err(|_| past.into())
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.writable {
            return Ok(());
        }
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

impl Disk for SimDisk {
    fn info(&self) -> &DiskInfo {
        &self.info
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn extend(&self, from: u64, to: u64) -> io::Result<()> {
        self.check_writable()?;
        let index = |at: u64| usize::try_from(at).map_err(io::Error::other);
        let outcome = (self.shared.state.lock()).extend(self.number, index(from)?, index(to)?);
        let size = if outcome.is_ok() { to } else { from };
        self.size.store(size, Ordering::Release);
        outcome
    }

    fn buffer(&self, len: usize) -> io::Result<AlignedBuf> {
        let faults = &mut self.shared.state.lock().faults;
        faults.check(FaultKind::Allocate, Some(self.number))?;
        BufferPool::global().try_take(len)
    }

    fn read(&self, buffer: AlignedBuf, offset: u64) -> IoOp {
        match self.check(&buffer, offset, io::ErrorKind::UnexpectedEof) {
            Ok(start) => self.submit(Action::Read(start), buffer),
            Err(error) => IoOp::ready(buffer, Err(error)),
        }
    }

    fn write(&self, buffer: AlignedBuf, offset: u64, sync: WriteSync) -> IoOp {
        let checked = self
            .check_writable()
            .and_then(|()| self.check(&buffer, offset, io::ErrorKind::InvalidInput));
        match checked {
            Ok(start) => self.submit(Action::Write(start, sync), buffer),
            Err(error) => IoOp::ready(buffer, Err(error)),
        }
    }

    fn sync(&self) -> IoOp {
        match self.check_writable() {
            Ok(()) => self.submit(Action::Sync, AlignedBuf::empty()),
            Err(error) => IoOp::ready(AlignedBuf::empty(), Err(error)),
        }
    }

    fn driver(&self) -> Option<Arc<dyn Driver>> {
        Some(Arc::<Shared>::clone(&self.shared))
    }

    /// What is under way is carried out here and now, unless it is to stay in flight. What another thread puts in
    /// flight later is left to whoever waits, or to [`Sim::carry_out_in_background`](super::Sim).
    fn reap_in_background(&self) -> Reaping {
        let is_left = self.shared.state.lock().leaves_in_flight;
        while !is_left && self.shared.progress() {}
        Reaping::default()
    }
}

//! One simulated disk.

use std::io;
use std::sync::Arc;

use super::fault::{FaultKind, outcome};
use super::machine::{Request, Shared};
use crate::io::{AlignedBuf, CompletionSource, Disk, DiskInfo, IoOp, WriteSync};
use crate::port::op::Driver;

#[derive(Debug)]
pub(super) struct SimDisk {
    pub(super) info: DiskInfo,
    pub(super) number: usize,
    pub(super) size: u64,
    pub(super) shared: Arc<Shared>,
}

impl SimDisk {
    fn submit(&self, write: Option<(AlignedBuf, usize, WriteSync)>) -> IoOp {
        let source: Arc<dyn CompletionSource> = Arc::<Shared>::clone(&self.shared);
        let (op, completer) = IoOp::pending(Some(source));
        let mut state = self.shared.state.lock();
        let request = Request {
            disk: self.number,
            write,
            submitted: state.events.len(),
            completer,
        };
        state.queue.push_back(request);
        op
    }

    fn offset(&self, buffer: &AlignedBuf, offset: u64) -> Option<usize> {
        let block = u64::from(self.info.block_size);
        let aligned = (buffer.len() as u64 | offset).is_multiple_of(block);
        let holds = offset + buffer.len() as u64 <= self.size;
        usize::try_from(offset).ok().filter(|_| aligned && holds)
    }
}

impl Disk for SimDisk {
    fn info(&self) -> &DiskInfo {
        &self.info
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, mut buffer: AlignedBuf, offset: u64) -> IoOp {
        let Some(start) = self.offset(&buffer, offset) else {
            return IoOp::ready(buffer, Err(io::ErrorKind::InvalidInput.into()));
        };
        let mut state = self.shared.state.lock();
        let failed = state.fails(FaultKind::Read, self.number);
        state.disks[self.number].1.read(start, &mut buffer);
        drop(state);
        IoOp::ready(buffer, outcome(failed))
    }

    fn write(&self, buffer: AlignedBuf, offset: u64, sync: WriteSync) -> IoOp {
        let Some(start) = self.offset(&buffer, offset) else {
            return IoOp::ready(buffer, Err(io::ErrorKind::InvalidInput.into()));
        };
        self.submit(Some((buffer, start, sync)))
    }

    fn sync(&self) -> IoOp {
        self.submit(None)
    }

    fn driver(&self) -> Option<Arc<dyn Driver>> {
        Some(Arc::<Shared>::clone(&self.shared))
    }

    /// Whoever wants this calls it each time that it leaves an operation alone: what is under way
    /// then is carried out here and now.
    fn reap_in_background(&self) {
        while self.shared.progress() {}
    }
}

//! [`AbsentDisk`]: stands for a disk that is not there, or not to be used. Every transfer fails, and says
//! why.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::buffer::AlignedBuf;
use super::completion::Reaping;
use super::disk::{Disk, DiskInfo, IoOp, WriteSync};
use crate::port::op::Driver;

/// A disk that is not there.
#[derive(Debug)]
pub struct AbsentDisk {
    info: DiskInfo,
    size: u64,
    why: String,
}

impl AbsentDisk {
    /// Stands for the one at `path`, as if it had `size` bytes in blocks of `block_size`.
    #[must_use]
    pub fn new(path: &Path, size: u64, block_size: u32, why: String) -> Self {
        let info = DiskInfo {
            path: path.to_owned(),
            backend: "none",
            is_device: false,
            direct: false,
            block_size,
            physical_block_size: block_size,
        };
        Self { info, size, why }
    }

    fn fail(&self, buffer: AlignedBuf) -> IoOp {
        let error = io::Error::new(io::ErrorKind::NotFound, self.why.clone());
        IoOp::ready(buffer, Err(error))
    }
}

impl Disk for AbsentDisk {
    fn info(&self) -> &DiskInfo {
        &self.info
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn extend(&self, _from: u64, _to: u64) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::NotFound, self.why.clone()))
    }

    fn read(&self, buffer: AlignedBuf, _offset: u64) -> IoOp {
        self.fail(buffer)
    }

    fn write(&self, buffer: AlignedBuf, _offset: u64, _sync: WriteSync) -> IoOp {
        self.fail(buffer)
    }

    fn sync(&self) -> IoOp {
        self.fail(AlignedBuf::empty())
    }

    fn driver(&self) -> Option<Arc<dyn Driver>> {
        None
    }

    fn reap_in_background(&self) -> Reaping {
        Reaping::default()
    }
}

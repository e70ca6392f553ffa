//! The bytes of the simulated disks, and those of a whole machine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes a device writes as a whole.
pub(super) const UNIT: usize = 512;
/// Bytes of a piece of a disk that images share.
const PIECE: usize = 16 << 10;

/// The bytes of one disk. Cloning shares what is not changed.
#[derive(Debug, Clone)]
pub(super) struct Medium {
    pieces: Vec<Arc<[u8]>>,
    pub(super) size: usize,
}

impl Medium {
    pub(super) fn new(size: usize) -> Self {
        let zeros: Arc<[u8]> = vec![0; PIECE].into();
        Self {
            pieces: vec![zeros; size.div_ceil(PIECE)],
            size,
        }
    }

    pub(super) fn write(&mut self, mut offset: usize, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let within = offset % PIECE;
            let (now, later) = bytes.split_at(bytes.len().min(PIECE - within));
            let piece = Arc::make_mut(&mut self.pieces[offset / PIECE]);
            piece[within..within + now.len()].copy_from_slice(now);
            offset += now.len();
            bytes = later;
        }
    }

    pub(super) fn read(&self, mut offset: usize, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let within = offset % PIECE;
            let (now, later) = bytes.split_at_mut(bytes.len().min(PIECE - within));
            now.copy_from_slice(&self.pieces[offset / PIECE][within..within + now.len()]);
            offset += now.len();
            bytes = later;
        }
    }
}

/// Everything a machine finds when it comes up again.
#[derive(Debug, Clone, Default)]
pub struct Image {
    pub(super) disks: Vec<(PathBuf, Medium)>,
    pub(super) files: BTreeMap<PathBuf, Vec<u8>>,
}

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
    size: usize,
}

impl Medium {
    pub(super) fn new(size: usize) -> Self {
        let zeros: Arc<[u8]> = vec![0; PIECE].into();
        Self {
            pieces: vec![zeros; size.div_ceil(PIECE)],
            size,
        }
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Cuts it short.
    pub(super) fn truncate(&mut self, size: usize) {
        self.size = size;
        self.pieces.truncate(size.div_ceil(PIECE));
    }

    /// Cuts it short at `from`, and adds zeros up to `to`.
    pub(super) fn extend(&mut self, from: usize, to: usize) {
        self.truncate(from);
        let within = from % PIECE;
        if let Some(last) = self.pieces.last_mut().filter(|_| within > 0) {
            Arc::make_mut(last)[within..].fill(0);
        }
        let zeros: Arc<[u8]> = vec![0; PIECE].into();
        self.pieces.resize(to.div_ceil(PIECE), zeros);
        self.size = to;
    }

    /// Flips a bit of the byte at `offset`.
    pub(super) fn flip(&mut self, offset: usize, bit: u8) {
        let mut byte = [0];
        self.read(offset, &mut byte);
        self.write(offset, &[byte[0] ^ (1 << (bit % 8))]);
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

/// What a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    /// The disk of this number.
    Disk(usize),
    /// A small file.
    File(Arc<[u8]>),
}

/// Everything a machine finds when it comes up.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// By number: that of a disk stays the same over crashes, and is not given anew when the disk
    /// is removed.
    pub(super) media: Vec<Medium>,
    pub(super) names: BTreeMap<PathBuf, Node>,
}

impl Image {
    /// Fills `bytes` with what disk `disk` holds from `offset` on.
    ///
    /// # Panics
    /// If it reaches past the disk's end.
    pub fn read(&self, disk: usize, offset: usize, bytes: &mut [u8]) {
        self.media[disk].read(offset, bytes);
    }

    /// Changes what disk `disk` holds from `offset` on.
    ///
    /// # Panics
    /// If it reaches past the disk's end.
    pub fn edit(&mut self, disk: usize, offset: usize, bytes: &[u8]) {
        self.media[disk].write(offset, bytes);
    }

    /// How many bytes disk `disk` has; `None` if there is no such disk.
    #[must_use]
    pub fn size(&self, disk: usize) -> Option<usize> {
        self.media.get(disk).map(|medium| medium.size)
    }
}

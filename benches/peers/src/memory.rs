//! Memory for raw transfers.

use std::ops::{Deref, DerefMut};

const PAGE: usize = 4096;

/// Bytes that start with a page, in memory as the allocator has it: of ordinary pages, as that of `fio` is.
pub struct Memory {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Memory {
    /// So many bytes, all of which have this value.
    pub fn filled(length: usize, value: u8) -> Self {
        let bytes = vec![value; length + PAGE];
        let start = bytes.as_ptr().align_offset(PAGE);
        Self {
            bytes,
            start,
            length,
        }
    }
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..][..self.length]
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.length]
    }
}

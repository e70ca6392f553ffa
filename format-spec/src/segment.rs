//! The segment header: opens a segment and links it to the one before.

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use crate::checksum::Identity;
use crate::error::require;
use crate::structure::on_disk;
use crate::{FormatError, Geometry};

/// The first bytes of a segment in use: `GSEG`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"GSEG");
/// What `previous_segment` and a root's `tail_segment` hold when there is none.
pub const NONE: u32 = u32::MAX;
/// `kind` of a segment of the log.
pub const KIND_LOG: u32 = 1;
/// `kind` of a segment that holds a part of a checkpoint's image.
pub const KIND_CHECKPOINT: u32 = 2;

on_disk! {
    /// Opens a segment. Takes a whole block; the rest of it is zeros.
    SegmentHeader: 128 {
        /// `GSEG`.
        magic: U32,
        /// CRC-32 of identity, address and all other bytes of the header.
        checksum: U32,
        /// 1: log. 2: part of a checkpoint's image.
        kind: U32,
        /// Number of the segment in the sector.
        segment: U32,
        /// Counts the sector's segments as they are taken into use: higher is later.
        generation: U64,
        /// Log: an LSN higher than all before in this sector, and not higher than any after. Checkpoint: 0.
        first_lsn: U64,
        /// The highest LSN of this sector known durable when the header was written.
        durable_lsn: U64,
        /// Log: the segment the log came from, or 4294967295. Checkpoint: the part's number.
        previous_segment: U32,
        /// Log: where the last frame of that segment ends, as an offset in it.
        previous_end: U32,
        /// Log: generation of that segment. Checkpoint: the checkpoint's sequence number.
        previous_generation: U64,
        /// Log: LSN of the last frame of that segment (or of the log before it).
        previous_lsn: U64,
        /// Log: checksum of the last frame of that segment, or of its header if it has no frame.
        previous_checksum: U32,
        /// Zeros.
        reserved: [u8; 60],
    }
}

impl SegmentHeader {
    fn computed(&self, identity: &Identity, address: u64) -> u32 {
        let bytes = self.as_bytes();
        identity.header_checksum(address, &[&bytes[..4], &bytes[8..]])
    }

    /// The header with its checksum; it is written before its segment's first frame \[F-58\].
    #[must_use]
    pub fn sealed(mut self, identity: &Identity, address: u64) -> Self {
        self.checksum = self.computed(identity, address).into();
        self
    }

    /// Decodes the header of segment `segment`.
    ///
    /// # Errors
    /// What is wrong. A segment that was never used has no magic.
    pub fn decode(
        bytes: &[u8],
        identity: &Identity,
        geometry: &Geometry,
        segment: u32,
    ) -> Result<Self, FormatError> {
        let name = "SegmentHeader";
        let header = *Self::view(bytes)?;
        if header.magic != MAGIC {
            return Err(FormatError::Magic {
                structure: name,
                found: header.magic.get().into(),
            });
        }
        let stored = header.checksum.get();
        let computed = header.computed(identity, geometry.segment_offset(segment));
        if stored != computed {
            return Err(FormatError::Checksum {
                structure: name,
                stored: stored.into(),
                computed: computed.into(),
            });
        }
        require(
            matches!(header.kind.get(), KIND_LOG | KIND_CHECKPOINT),
            name,
            "kind",
            "F-15",
            || format!("is {}", header.kind),
        )?;
        require(header.segment == segment, name, "segment", "F-15", || {
            format!("is {}, in segment {segment}", header.segment)
        })?;
        require(header.generation != 0, name, "generation", "F-15", || {
            "is 0".to_owned()
        })?;
        let previous = header.previous_segment.get();
        let linked = header.kind == KIND_CHECKPOINT
            || previous == NONE
            || (previous < geometry.segment_count
                && header.previous_generation < header.generation
                && u64::from(header.previous_end.get()) <= geometry.segment_size
                && header.previous_end.get() >= geometry.block_size
                && header.previous_end.get() % geometry.block_size == 0);
        require(linked, name, "previous_segment", "F-16", || {
            format!("is {previous}, end {}", header.previous_end)
        })?;
        require(header.reserved == [0; 60], name, "reserved", "F-4", || {
            "is not zero".to_owned()
        })?;
        Ok(header)
    }
}

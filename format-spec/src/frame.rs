//! The frame: one group commit, all or nothing.

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use crate::checksum::Identity;
use crate::error::require;
use crate::structure::on_disk;
use crate::{FormatError, Geometry};

/// The least bytes a record takes: its header, and a key of one byte.
const RECORD_MIN_LEN: u32 = 34;
/// The first bytes of a frame: `GFRM`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"GFRM");

on_disk! {
    /// Starts a frame; its records follow without gaps, then zeros to the end of the block.
    FrameHeader: 64 {
        /// `GFRM`.
        magic: U32,
        /// CRC-32 of identity, address and all other bytes of the header.
        checksum: U32,
        /// Generation of the segment.
        generation: U64,
        /// LSN of the frame: the highest assigned in it, higher than any before in the sector.
        lsn: U64,
        /// The highest LSN of this sector known durable when the frame was written; below `lsn`.
        durable_lsn: U64,
        /// Checksum of the frame before in the segment, or of the segment's header.
        previous: U32,
        /// Bytes of the whole frame: a multiple of the block size.
        length: U32,
        /// Bytes up to the end of the last record.
        used: U32,
        /// Number of records; may be 0.
        records: U32,
        /// CRC-32 of the records' checksums, in order.
        records_checksum: U32,
        /// Zeros.
        reserved: U32,
        /// When the frame was written, in milliseconds since 1970, never less than in a frame before.
        time: U64,
    }
}

impl FrameHeader {
    fn computed(&self, identity: &Identity, address: u64) -> u32 {
        let bytes = self.as_bytes();
        identity.header_checksum(address, &[&bytes[..4], &bytes[8..]])
    }

    /// The header with its checksum.
    #[must_use]
    pub fn sealed(mut self, identity: &Identity, address: u64) -> Self {
        self.checksum = self.computed(identity, address).into();
        self
    }

    /// Decodes the header of the frame at `address`, by itself: whether it continues the log is
    /// for the reader to check ([`FrameHeader::continues`]).
    ///
    /// # Errors
    /// What is wrong.
    pub fn decode(
        bytes: &[u8],
        identity: &Identity,
        geometry: &Geometry,
        address: u64,
    ) -> Result<Self, FormatError> {
        let name = "FrameHeader";
        let header = *Self::view(bytes)?;
        if header.magic != MAGIC {
            return Err(FormatError::Magic {
                structure: name,
                found: header.magic.get().into(),
            });
        }
        let stored = header.checksum.get();
        let computed = header.computed(identity, address);
        if stored != computed {
            return Err(FormatError::Checksum {
                structure: name,
                stored: stored.into(),
                computed: computed.into(),
            });
        }
        let room = geometry
            .segment_of(address)
            .map_or(0, |(_, offset)| geometry.segment_size - offset);
        let length = header.length.get();
        let length_holds =
            length >= 64 && length % geometry.block_size == 0 && u64::from(length) <= room;
        require(length_holds, name, "length", "F-20", || {
            format!("is {length}, {room} bytes are left in the segment")
        })?;
        let used = header.used.get();
        let used_holds = (64..=length).contains(&used) && length - used < geometry.block_size;
        require(used_holds, name, "used", "F-20", || {
            format!("is {used} of {length}")
        })?;
        // A count that the frame has no room for must size no allocation.
        let records = u64::from(header.records.get());
        let records_hold = match u64::from(used - 64) {
            0 => records == 0,
            room => (1..=room / u64::from(RECORD_MIN_LEN)).contains(&records),
        };
        require(records_hold, name, "records", "F-20", || {
            format!("is {records} in {used} bytes")
        })?;
        require(
            header.durable_lsn < header.lsn,
            name,
            "durable_lsn",
            "F-21",
            || {
                format!(
                    "is {}, the frame's LSN is {}",
                    header.durable_lsn, header.lsn
                )
            },
        )?;
        require(header.reserved == 0, name, "reserved", "F-4", || {
            "is not zero".to_owned()
        })?;
        Ok(header)
    }

    /// Whether the frame continues a log whose last frame (or segment header) in this segment has
    /// checksum `previous`, and whose last LSN is `lsn` \[F-22\]. The header of a frame that was dropped
    /// though it does is zeroed \[F-57\].
    #[must_use]
    pub fn continues(&self, generation: u64, previous: u32, lsn: u64) -> bool {
        self.generation == generation && self.previous == previous && self.lsn > lsn
    }
}

/// Sums up the records' checksums, for `records_checksum`.
#[must_use]
pub fn records_checksum(checksums: impl Iterator<Item = u32>) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    checksums.for_each(|checksum| hasher.update(&checksum.to_le_bytes()));
    hasher.finalize()
}

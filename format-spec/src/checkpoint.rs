//! The checkpoint root: says where the newest image of a sector's index lies, and where replay
//! begins.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::checksum::Identity;
use crate::error::require;
use crate::geometry::ROOT_SLOT_SIZE;
use crate::image::PAGE_SIZE;
use crate::segment::NONE;
use crate::structure::on_disk;
use crate::{FormatError, Geometry};

/// The first bytes of a checkpoint root: `GCKP`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"GCKP");
/// The most segments an image can take.
pub const SEGMENTS_MAX: usize = (ROOT_SLOT_SIZE - size_of::<CheckpointRoot>()) / 4;

on_disk! {
    /// Root of a checkpoint; the numbers of the image's segments (u32 each) follow.
    CheckpointRoot: 128 {
        /// `GCKP`.
        magic: U32,
        /// CRC-32 of identity, address, all other bytes of the root and the list after it.
        checksum: U32,
        /// Counts the sector's checkpoints. The root lies in slot `sequence` modulo 2.
        sequence: U64,
        /// Every frame of this sector up to this LSN is reflected in the image.
        lsn: U64,
        /// Every frame of any sector of the store up to this LSN is.
        store_lsn: U64,
        /// When it was taken, in milliseconds since 1970.
        taken: U64,
        /// The highest generation of a segment in use then.
        generation: U64,
        /// The segment in which the log goes on, or 4294967295 if there is no log yet.
        tail_segment: U32,
        /// Where in it replay begins.
        tail_offset: U32,
        /// Its generation.
        tail_generation: U64,
        /// Checksum of the last frame before, or of the segment's header.
        tail_checksum: U32,
        /// Number of segments the image takes.
        segments: U32,
        /// Bytes of the image, without the page checksums that follow it.
        image_length: U64,
        /// xxh3_64 of the page checksums.
        pages_checksum: U64,
        /// Number of blobs in the image.
        blobs: U64,
        /// Their sizes in bytes, summed.
        logical_bytes: U64,
        /// Zeros.
        reserved: [u8; 24],
    }
}

impl CheckpointRoot {
    fn computed(&self, identity: &Identity, address: u64, list: &[u8]) -> u32 {
        let bytes = self.as_bytes();
        identity.header_checksum(address, &[&bytes[..4], &bytes[8..], list])
    }

    /// The bytes of the root's copy at `address`, with the list of the image's `segments`.
    #[must_use]
    pub fn encode(mut self, identity: &Identity, address: u64, segments: &[u32]) -> Vec<u8> {
        let list: Vec<u8> = segments
            .iter()
            .flat_map(|segment| segment.to_le_bytes())
            .collect();
        self.segments = u32::try_from(segments.len()).unwrap_or(u32::MAX).into();
        self.checksum = self.computed(identity, address, &list).into();
        [self.as_bytes(), &list].concat()
    }

    /// Decodes the copy at `address`, with the list of the image's segments.
    ///
    /// # Errors
    /// What is wrong. A slot that was never used has no magic.
    pub fn decode(
        bytes: &[u8],
        identity: &Identity,
        geometry: &Geometry,
        address: u64,
    ) -> Result<(Self, Vec<u32>), FormatError> {
        let name = "CheckpointRoot";
        let root = *Self::view(bytes)?;
        if root.magic != MAGIC {
            return Err(FormatError::Magic {
                structure: name,
                found: root.magic.get().into(),
            });
        }
        let segments = root.segments.get() as usize;
        require(segments <= SEGMENTS_MAX, name, "segments", "F-31", || {
            format!("is {segments}")
        })?;
        let end = size_of::<Self>() + segments * 4;
        let list = bytes
            .get(size_of::<Self>()..end)
            .ok_or(FormatError::Truncated {
                structure: name,
                needed: end,
                found: bytes.len(),
            })?;
        let stored = root.checksum.get();
        let computed = root.computed(identity, address, list);
        if stored != computed {
            return Err(FormatError::Checksum {
                structure: name,
                stored: stored.into(),
                computed: computed.into(),
            });
        }
        require(
            geometry.roots(root.sequence.get()).contains(&address),
            name,
            "sequence",
            "F-30",
            || format!("is {}, of the other slot", root.sequence),
        )?;
        let list = list
            .chunks_exact(4)
            .filter_map(|bytes| U32::read_from_bytes(bytes).ok())
            .map(U32::get)
            .collect::<Vec<_>>();
        require(
            list.iter().all(|&segment| segment < geometry.segment_count),
            name,
            "segments",
            "F-31",
            || "names a segment past the sector's end".to_owned(),
        )?;
        let room = list.len() as u64 * geometry.image_bytes_per_segment();
        let image_holds =
            stored_image_length(root.image_length.get()).is_some_and(|length| length <= room);
        require(image_holds, name, "image_length", "F-31", || {
            format!("is {}, its segments hold {room}", root.image_length)
        })?;
        let tail = root.tail_segment.get();
        let tail_holds = tail == NONE
            || (tail < geometry.segment_count
                && u64::from(root.tail_offset.get()) <= geometry.segment_size
                && root.tail_offset.get() >= geometry.block_size
                && root.tail_offset.get() % geometry.block_size == 0
                && root.tail_generation <= root.generation);
        require(tail_holds, name, "tail_segment", "F-32", || {
            format!("is {tail} at {}", root.tail_offset)
        })?;
        require(root.reserved == [0; 24], name, "reserved", "F-4", || {
            "is not zero".to_owned()
        })?;
        Ok((root, list))
    }
}

/// Bytes an image of `length` bytes takes in its segments: whole pages, then their checksums.
#[must_use]
pub fn stored_image_length(length: u64) -> Option<u64> {
    let pages = length.div_ceil(PAGE_SIZE as u64);
    pages.checked_mul(PAGE_SIZE as u64 + 8)
}

//! The superblock: who a sector is and how it is laid out. Two copies, at the front and the back.

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::checksum::{CHUNK_SIZE, Identity};
use crate::error::require;
use crate::structure::on_disk;
use crate::{FORMAT_VERSION, FormatError, Geometry};

/// The first eight bytes of every sector.
pub const MAGIC: [u8; 8] = *b"GRAVITON";

on_disk! {
    /// Who a sector is and how it is laid out.
    Superblock: 512 {
        /// `GRAVITON`.
        magic: [u8; 8],
        /// Format version. At this place in every version.
        version: U32,
        /// CRC-32 of the copy's address and of all other bytes of the superblock.
        checksum: U32,
        /// Random id of the store.
        store_id: [u8; 16],
        /// Random id of the sector.
        sector_id: U64,
        /// Number of the sector in the store, from 0.
        sector_number: U16,
        /// Sectors the store had when this one was made, but more than its number.
        sector_count: U16,
        /// Alignment of segment headers and frames in bytes: 512 or 4096.
        block_size: U32,
        /// Bytes of a full payload chunk: 4096.
        chunk_size: U32,
        /// Number of segments: 16 to 16777216.
        segment_count: U32,
        /// Bytes of a segment: a power of two, 65536 to 1073741824.
        segment_size: U64,
        /// Bytes of the whole sector.
        sector_size: U64,
        /// When the sector was made, in milliseconds since 1970.
        created: U64,
        /// Counts rewrites of the superblock; of two valid copies the higher one holds.
        sequence: U64,
        /// The last session of the store that the sector takes part in; 0: none that is told from others.
        session: U64,
        /// The sectors that the store has, as far as this one knows: a bit for each number, from the lowest on.
        members: U64,
        /// Zeros.
        reserved: [u8; 408],
    }
}

impl Superblock {
    /// A superblock of the current version, of no session yet \[F-66\], not sealed.
    #[must_use]
    pub fn new(
        identity: Identity,
        number: u16,
        count: u16,
        geometry: &Geometry,
        created: u64,
    ) -> Self {
        Self {
            magic: MAGIC,
            version: FORMAT_VERSION.into(),
            checksum: 0.into(),
            store_id: identity.store_id,
            sector_id: identity.sector_id.into(),
            sector_number: number.into(),
            sector_count: count.into(),
            block_size: geometry.block_size.into(),
            chunk_size: u32::try_from(CHUNK_SIZE).unwrap_or(0).into(),
            segment_count: geometry.segment_count.into(),
            segment_size: geometry.segment_size.into(),
            sector_size: geometry.sector_size().into(),
            created: created.into(),
            sequence: 1.into(),
            session: 0.into(),
            members: u64::MAX
                .unbounded_shr(64_u32.saturating_sub(count.into()))
                .into(),
            reserved: [0; 408],
        }
    }

    /// The sector's identity.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity {
            store_id: self.store_id,
            sector_id: self.sector_id.get(),
        }
    }

    /// The sector's measures.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        Geometry {
            block_size: self.block_size.get(),
            segment_size: self.segment_size.get(),
            segment_count: self.segment_count.get(),
        }
    }

    /// Whether what a segment begins with at `address` is the superblock copy of this sector that lay there before
    /// it grew: then nothing of the segment was ever used \[F-67\].
    #[must_use]
    pub fn is_outgrown(bytes: &[u8], address: u64, identity: &Identity) -> bool {
        Self::decode(bytes, address).is_ok_and(|copy| copy.identity() == *identity)
    }

    // The identity is inside the superblock, so its checksum binds the address alone [F-10].
    fn computed(&self, address: u64) -> u32 {
        let bytes = self.as_bytes();
        Identity::default().header_checksum(address, &[&bytes[..12], &bytes[16..]])
    }

    /// Whether the bytes at `address` are a superblock of this version, but for the number of the
    /// version: then that is damaged, and not of another program.
    #[must_use]
    pub fn is_damaged_version(bytes: &[u8], address: u64) -> bool {
        let Ok(superblock) = Self::view(bytes) else {
            return false;
        };
        let mut superblock = *superblock;
        superblock.version = FORMAT_VERSION.into();
        Self::decode(superblock.bytes(), address).is_ok()
    }

    /// The superblock with the checksum of the copy at `address`.
    #[must_use]
    pub fn sealed(mut self, address: u64) -> Self {
        self.checksum = self.computed(address).into();
        self
    }

    /// Decodes the copy at `address` and checks everything.
    ///
    /// # Errors
    /// [`FormatError::Magic`] for a foreign file, [`FormatError::Version`] for another version
    /// (decided before anything else is looked at \[F-11\]), else what is wrong.
    pub fn decode(bytes: &[u8], address: u64) -> Result<Self, FormatError> {
        let superblock = *Self::view(bytes)?;
        let name = "Superblock";
        if superblock.magic != MAGIC {
            return Err(FormatError::Magic {
                structure: name,
                found: u64::from_be_bytes(superblock.magic),
            });
        }
        let stored = superblock.checksum.get();
        let computed = superblock.computed(address);
        let version = superblock.version.get();
        // A newer version may cover other bytes with its checksum, so its number alone decides
        // [F-11]; a version of zero is damage.
        if version > FORMAT_VERSION {
            return Err(FormatError::Version {
                found: version,
                supported: FORMAT_VERSION,
            });
        }
        if stored != computed {
            return Err(FormatError::Checksum {
                structure: name,
                stored: stored.into(),
                computed: computed.into(),
            });
        }
        require(version == FORMAT_VERSION, name, "version", "F-11", || {
            "is zero".to_owned()
        })?;
        superblock.geometry().check()?;
        require(
            superblock.chunk_size.get() as usize == CHUNK_SIZE,
            name,
            "chunk_size",
            "F-12",
            || format!("is {}, must be {CHUNK_SIZE}", superblock.chunk_size),
        )?;
        require(
            superblock.sector_size.get() == superblock.geometry().sector_size(),
            name,
            "sector_size",
            "F-12",
            || {
                format!(
                    "is {}, the measures add up to {}",
                    superblock.sector_size,
                    superblock.geometry().sector_size()
                )
            },
        )?;
        require(
            superblock.sector_number < superblock.sector_count,
            name,
            "sector_number",
            "F-12",
            || {
                format!(
                    "is {} of {}",
                    superblock.sector_number, superblock.sector_count
                )
            },
        )?;
        require(
            superblock.reserved == [0; 408],
            name,
            "reserved",
            "F-4",
            || "is not zero".to_owned(),
        )?;
        Ok(superblock)
    }
}

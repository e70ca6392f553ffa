//! The copy of the store file that lies in either area of a sector: so that a store file that was lost can
//! be written anew.

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use crate::FormatError;
use crate::checksum::Identity;
use crate::error::require;
use crate::geometry::STORE_FILE_SLOT_SIZE;
use crate::structure::on_disk;

/// The first bytes of a copy: `GSTF`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"GSTF");
/// The most bytes that the text may have.
pub const TEXT_MAX: usize = STORE_FILE_SLOT_SIZE - size_of::<StoreFileCopy>();

on_disk! {
    /// Copy of the store file; its text follows, in UTF-8.
    StoreFileCopy: 64 {
        /// `GSTF`.
        magic: U32,
        /// CRC-32 of identity, address, all other bytes of the copy and the text after it.
        checksum: U32,
        /// The `revision` of the store file.
        revision: U64,
        /// Bytes of the text: at most 16320.
        length: U32,
        /// Zeros.
        reserved: [u8; 44],
    }
}

impl StoreFileCopy {
    fn computed(&self, identity: &Identity, address: u64, text: &[u8]) -> u32 {
        let bytes = self.as_bytes();
        identity.header_checksum(address, &[&bytes[..4], &bytes[8..], text])
    }

    /// The bytes of the copy at `address`; `None` if the text is longer than [`TEXT_MAX`].
    #[must_use]
    pub fn encode(identity: &Identity, address: u64, revision: u64, text: &str) -> Option<Vec<u8>> {
        let length = u32::try_from(text.len()).ok();
        let mut copy = Self {
            magic: MAGIC.into(),
            checksum: 0.into(),
            revision: revision.into(),
            length: length.filter(|_| text.len() <= TEXT_MAX)?.into(),
            reserved: [0; 44],
        };
        copy.checksum = copy.computed(identity, address, text.as_bytes()).into();
        Some([copy.as_bytes(), text.as_bytes()].concat())
    }

    /// Decodes the copy at `address`: the revision of the store file, and its text \[F-71\].
    ///
    /// # Errors
    /// What is wrong. Where none was ever written there is no magic.
    pub fn decode<'a>(
        bytes: &'a [u8],
        identity: &Identity,
        address: u64,
    ) -> Result<(u64, &'a str), FormatError> {
        let name = "StoreFileCopy";
        let copy = *Self::view(bytes)?;
        if copy.magic != MAGIC {
            return Err(FormatError::Magic {
                structure: name,
                found: copy.magic.get().into(),
            });
        }
        let length = copy.length.get() as usize;
        require(length <= TEXT_MAX, name, "length", "F-71", || {
            format!("is {length}, at most {TEXT_MAX}")
        })?;
        let end = size_of::<Self>() + length;
        let text = bytes
            .get(size_of::<Self>()..end)
            .ok_or(FormatError::Truncated {
                structure: name,
                needed: end,
                found: bytes.len(),
            })?;
        let stored = copy.checksum.get();
        let computed = copy.computed(identity, address, text);
        if stored != computed {
            return Err(FormatError::Checksum {
                structure: name,
                stored: stored.into(),
                computed: computed.into(),
            });
        }
        require(copy.reserved == [0; 44], name, "reserved", "F-4", || {
            "is not zero".to_owned()
        })?;
        let text = str::from_utf8(text);
        let text =
            text.map_err(|error| FormatError::field(name, "text", "F-71", error.to_string()))?;
        Ok((copy.revision.get(), text))
    }
}

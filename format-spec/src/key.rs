//! Keys as records and images hold them: a space (one byte), then what names something in it.

use crate::FormatError;
use crate::error::require;

/// The longest key of a blob in bytes; the shortest has one.
pub const KEY_MAX_LEN: usize = 1024;
/// The shortest stored key in bytes.
pub const STORED_KEY_MIN_LEN: usize = 2;
/// The longest stored key in bytes.
pub const STORED_KEY_MAX_LEN: usize = 1 + 8 + KEY_MAX_LEN;

/// A stored key, decoded \[F-60\].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredKey<'a> {
    /// Space 0: a blob, by its key.
    Blob(&'a [u8]),
    /// Space 1: an upload that is open \[F-62\].
    Upload {
        /// Its id: the LSN at which it began.
        upload: u64,
        /// The key that its blob will have.
        key: &'a [u8],
    },
    /// Space 2: a part of an upload.
    Part {
        /// The upload's id.
        upload: u64,
        /// The part's number.
        number: u16,
    },
    /// Space 3: what is complete of bytes that are held elsewhere, by the key that they go by there.
    Ranges(&'a [u8]),
    /// Space 4: an upload that has become a blob.
    Completed {
        /// Its id.
        upload: u64,
        /// The blob's key.
        key: &'a [u8],
    },
}

/// The first byte of the keys of blobs.
pub const SPACE_BLOB: u8 = 0;
/// The first byte of the keys of uploads.
pub const SPACE_UPLOAD: u8 = 1;
/// The first byte of the keys of parts.
pub const SPACE_PART: u8 = 2;
/// The first byte of the keys of trackers.
pub const SPACE_RANGES: u8 = 3;
/// The first byte of the keys of uploads that were completed.
pub const SPACE_COMPLETED: u8 = 4;

impl<'a> StoredKey<'a> {
    /// Decodes a stored key.
    ///
    /// # Errors
    /// What is wrong.
    pub fn decode(stored: &'a [u8]) -> Result<Self, FormatError> {
        let wrong = |what: String| FormatError::field("key", "space", "F-60", what);
        let (&space, rest) = stored
            .split_first()
            .ok_or_else(|| wrong("is missing".to_owned()))?;
        let numbered = || {
            let (upload, rest) = rest
                .split_first_chunk()
                .ok_or_else(|| wrong(format!("{space} is followed by {} bytes", rest.len())))?;
            Ok((u64::from_be_bytes(*upload), rest))
        };
        let decoded = match space {
            SPACE_BLOB => Self::Blob(rest),
            SPACE_UPLOAD => {
                let (upload, key) = numbered()?;
                Self::Upload { upload, key }
            }
            SPACE_PART => {
                let (upload, number) = numbered()?;
                let number = number
                    .try_into()
                    .map_err(|_| wrong(format!("{space} is followed by {} bytes", rest.len())))?;
                Self::Part {
                    upload,
                    number: u16::from_be_bytes(number),
                }
            }
            SPACE_RANGES => Self::Ranges(rest),
            SPACE_COMPLETED => {
                let (upload, key) = numbered()?;
                Self::Completed { upload, key }
            }
            unknown => return Err(wrong(format!("is {unknown}"))),
        };
        let length = match decoded {
            Self::Blob(key)
            | Self::Ranges(key)
            | Self::Upload { key, .. }
            | Self::Completed { key, .. } => key.len(),
            Self::Part { .. } => 1,
        };
        require(
            (1..=KEY_MAX_LEN).contains(&length),
            "key",
            "length",
            "F-60",
            || format!("is {length}"),
        )?;
        Ok(decoded)
    }

    /// Encodes it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Blob(key) => [&[SPACE_BLOB], *key].concat(),
            Self::Upload { upload, key } => {
                [&[SPACE_UPLOAD], &upload.to_be_bytes()[..], key].concat()
            }
            Self::Part { upload, number } => [
                &[SPACE_PART],
                &upload.to_be_bytes()[..],
                &number.to_be_bytes(),
            ]
            .concat(),
            Self::Ranges(key) => [&[SPACE_RANGES], *key].concat(),
            Self::Completed { upload, key } => {
                [&[SPACE_COMPLETED], &upload.to_be_bytes()[..], key].concat()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_round_trip_and_others_are_refused() {
        let longest = [7; KEY_MAX_LEN];
        for key in [
            StoredKey::Blob(b"a"),
            StoredKey::Blob(&longest),
            StoredKey::Upload {
                upload: 1 << 40,
                key: &longest,
            },
            StoredKey::Part {
                upload: 3,
                number: 10_000,
            },
            StoredKey::Ranges(b"\0"),
            StoredKey::Completed {
                upload: u64::MAX,
                key: b"a",
            },
        ] {
            let stored = key.encode();
            assert!((STORED_KEY_MIN_LEN..=STORED_KEY_MAX_LEN).contains(&stored.len()));
            assert_eq!(StoredKey::decode(&stored).unwrap(), key);
        }
        let too_long = [&[0], &longest[..], &[1]].concat();
        for wrong in [
            &[][..],
            &[0],
            &[1],
            &[1; 9],
            &[2; 10],
            &[2; 12],
            &[3],
            &[4; 9],
            &[5, 1],
            &too_long,
        ] {
            assert!(StoredKey::decode(wrong).is_err(), "{wrong:?}");
        }
    }
}

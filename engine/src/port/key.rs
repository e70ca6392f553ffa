//! [`BinaryKey`]: the name of a blob.

use std::fmt::{self, Write};

use bytes::{BufMut, Bytes, BytesMut};
use graviton_format::FormatError;
use graviton_format::key::{KEY_MAX_LEN, SPACE_BLOB, StoredKey};

use super::error::StorageError;
use super::mutable::UploadId;

/// 1 to [`BinaryKey::MAX_LEN`] arbitrary bytes, ordered bytewise and never normalised:
/// `a//b`, `../x` and a trailing `/` are ordinary. Cheap to clone.
///
/// ```
/// use graviton_engine::port::BinaryKey;
///
/// let key = BinaryKey::new("photos/2026/cat.jpg")?;
/// assert_eq!(key.as_bytes(), b"photos/2026/cat.jpg");
/// assert!(BinaryKey::new("").is_err());
/// # Ok::<(), graviton_engine::port::StorageError>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BinaryKey {
    /// As it is stored: behind a byte that says that it is a blob's. Within the engine there are
    /// others, of what a store keeps beside its blobs.
    stored: Bytes,
}

impl BinaryKey {
    /// The longest key, in bytes.
    pub const MAX_LEN: usize = KEY_MAX_LEN;

    /// Makes a key of a copy of `bytes`.
    ///
    /// # Errors
    /// [`StorageError::InvalidKey`] if `bytes` is empty or longer than [`Self::MAX_LEN`].
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self, StorageError> {
        let bytes = bytes.as_ref();
        if bytes.is_empty() || bytes.len() > Self::MAX_LEN {
            return Err(StorageError::InvalidKey {
                length: bytes.len(),
            });
        }
        Ok(Self::bound(bytes))
    }

    /// The place of `bytes` in the order of the keys of blobs, whether they are a key or not.
    pub(crate) fn bound(bytes: &[u8]) -> Self {
        let stored = match Short::of_blob(bytes) {
            Some(short) => Bytes::from_owner(short),
            None => [&[SPACE_BLOB], bytes].concat().into(),
        };
        Self { stored }
    }

    /// The key's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.stored[1..]
    }

    /// The key that is stored so, of a blob or of something else.
    pub(crate) fn of_stored(stored: &[u8]) -> Result<Self, FormatError> {
        StoredKey::decode(stored)?;
        Ok(Self {
            stored: Bytes::copy_from_slice(stored),
        })
    }

    /// The same, in memory of its own: for whoever keeps it, since one of a listing keeps its neighbours' memory.
    pub(crate) fn owned(&self) -> Self {
        Self {
            stored: Bytes::copy_from_slice(&self.stored),
        }
    }

    /// As it is stored.
    pub(crate) fn stored(&self) -> &[u8] {
        &self.stored
    }

    /// Whether it is a blob's.
    pub(crate) fn is_blob(&self) -> bool {
        self.stored[0] == SPACE_BLOB
    }

    /// The key of something that is stored beside the blobs.
    pub(crate) fn beside(key: &StoredKey<'_>) -> Self {
        Self {
            stored: key.encode().into(),
        }
    }

    /// What it is the key of.
    pub(crate) fn space(&self) -> StoredKey<'_> {
        // Whoever made it had it checked.
        StoredKey::decode(&self.stored).unwrap_or(StoredKey::Blob(self.as_bytes()))
    }

    /// The key of the blob that it is about: of an upload the one it is to become.
    pub(crate) fn of_blob(&self) -> Self {
        match self.space() {
            StoredKey::Blob(_) | StoredKey::Part { .. } => self.clone(),
            StoredKey::Upload { key, .. }
            | StoredKey::Ranges(key)
            | StoredKey::Completed { key, .. } => Self::bound(key),
        }
    }
}

/// A stored key that lies beside its count of references: a [`Bytes`] of a vector allocates that when it is first cloned.
struct Short {
    length: u8,
    bytes: [u8; Self::MAX_LEN],
}

impl Short {
    const MAX_LEN: usize = 47;

    /// That of a blob, if it is short.
    fn of_blob(key: &[u8]) -> Option<Self> {
        let mut bytes = [0; Self::MAX_LEN];
        bytes[0] = SPACE_BLOB;
        bytes.get_mut(1..=key.len())?.copy_from_slice(key);
        Some(Self {
            length: u8::try_from(1 + key.len()).ok()?,
            bytes,
        })
    }
}

impl AsRef<[u8]> for Short {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// Makes many keys in few allocations, which keys that follow one another share.
#[derive(Debug, Default)]
pub(crate) struct KeyMaker {
    room: BytesMut,
}

impl KeyMaker {
    /// Bytes that are allocated at once, which one key that is kept may keep.
    const SHARED: usize = 4096;

    /// As [`BinaryKey::of_stored`].
    pub fn of_stored(&mut self, stored: &[u8]) -> Result<BinaryKey, FormatError> {
        StoredKey::decode(stored)?;
        if self.room.capacity() < stored.len() {
            self.room = BytesMut::with_capacity(Self::SHARED);
        }
        self.room.put_slice(stored);
        Ok(BinaryKey {
            stored: self.room.split().freeze(),
        })
    }
}

impl AsRef<[u8]> for BinaryKey {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl TryFrom<&str> for BinaryKey {
    type Error = StorageError;

    fn try_from(key: &str) -> Result<Self, StorageError> {
        Self::new(key)
    }
}

/// The canonical text form: printable ASCII as it is, `\\` for a backslash, `\xNN` for the rest,
/// except that valid UTF-8 letters stay readable. What a store keeps beside its blobs is named by what
/// it is.
impl fmt::Display for BinaryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_space(f, &self.space())
    }
}

/// The text form of any bytes; for a key, the same as its `Display`.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    // A String takes everything.
    let _ = write_bytes(&mut text, bytes);
    text
}

/// What a stored key names ([`graviton_format::key`]), in words; for a blob, its key's text form.
#[must_use]
pub fn stored_text(stored: &[u8]) -> String {
    let mut text = String::with_capacity(stored.len());
    let _ = match StoredKey::decode(stored) {
        Ok(key) => write_space(&mut text, &key),
        Err(_) => write_bytes(&mut text, stored),
    };
    text
}

fn write_space(text: &mut impl Write, key: &StoredKey<'_>) -> fmt::Result {
    match *key {
        StoredKey::Blob(key) => write_bytes(text, key),
        StoredKey::Upload { upload, key } => {
            write!(text, "upload {} of ", UploadId::of_lsn(upload))?;
            write_bytes(text, key)
        }
        StoredKey::Part { upload, number } => {
            write!(text, "part {number} of upload {}", UploadId::of_lsn(upload))
        }
        StoredKey::Ranges(key) => {
            text.write_str("ranges of ")?;
            write_bytes(text, key)
        }
        StoredKey::Completed { upload, key } => {
            write!(text, "completed upload {} of ", UploadId::of_lsn(upload))?;
            write_bytes(text, key)
        }
    }
}

fn write_bytes(text: &mut impl Write, bytes: &[u8]) -> fmt::Result {
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.write_str("\\\\")?,
                c if c.is_control() => escape(text, c.encode_utf8(&mut [0; 4]).as_bytes())?,
                c => text.write_char(c)?,
            }
        }
        escape(text, chunk.invalid())?;
    }
    Ok(())
}

fn escape(text: &mut impl Write, bytes: &[u8]) -> fmt::Result {
    bytes
        .iter()
        .try_for_each(|byte| write!(text, "\\x{byte:02x}"))
}

impl fmt::Debug for BinaryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_is_checked() {
        assert!(matches!(
            BinaryKey::new(b""),
            Err(StorageError::InvalidKey { length: 0 })
        ));
        assert!(BinaryKey::new([0; BinaryKey::MAX_LEN]).is_ok());
        assert!(matches!(
            BinaryKey::new([0; BinaryKey::MAX_LEN + 1]),
            Err(StorageError::InvalidKey { length: 1025 })
        ));
    }

    #[test]
    fn a_key_of_any_length_is_what_it_was_made_of() {
        for length in 1..=100 {
            let bytes: Vec<u8> = (0..length).collect();
            let key = BinaryKey::new(&bytes).expect("a good key");
            assert_eq!(key.as_bytes(), bytes);
            assert_eq!(key.stored(), [&[SPACE_BLOB], &bytes[..]].concat());
            assert_eq!(key.owned(), key);
        }
    }

    #[test]
    fn text_form_is_unambiguous() {
        let text = |bytes: &[u8]| BinaryKey::new(bytes).expect("a good key").to_string();
        assert_eq!(text(b"a//b/../c/"), "a//b/../c/");
        assert_eq!(text(b"a\\b"), "a\\\\b");
        assert_eq!(text(b"\x00\xff\n"), "\\x00\\xff\\x0a");
        assert_eq!(text("blå".as_bytes()), "blå");
    }

    #[test]
    fn keys_that_share_memory_are_as_others() {
        let mut maker = KeyMaker::default();
        let lengths = [1, 40, BinaryKey::MAX_LEN].into_iter().cycle().take(50);
        let keys: Vec<BinaryKey> = lengths
            .map(|length| BinaryKey::new(vec![b'a'; length]).expect("a good key"))
            .collect();
        let made: Vec<BinaryKey> = keys
            .iter()
            .map(|key| maker.of_stored(key.stored()).expect("a good key"))
            .collect();
        assert_eq!(made, keys);
        // Whoever keeps one can do without the others.
        let shared = |key: &BinaryKey| key.stored().as_ptr() as usize;
        assert_eq!(shared(&made[1]), shared(&made[0]) + made[0].stored().len());
        let owned = made[1].owned();
        assert!(owned == made[1] && shared(&owned) != shared(&made[1]));
        assert!(maker.of_stored(&[SPACE_BLOB]).is_err());
        assert_eq!(maker.of_stored(b"\0k"), Ok(BinaryKey::bound(b"k")));
    }

    #[test]
    fn order_is_bytewise() {
        let key = |bytes: &[u8]| BinaryKey::new(bytes).expect("a good key");
        assert!(key(b"a") < key(b"a\0"));
        assert!(key(b"a\xff") < key(b"b"));
    }
}

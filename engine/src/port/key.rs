//! [`BinaryKey`]: the name of a blob.

use std::borrow::Borrow;
use std::fmt;

use bytes::Bytes;

use super::error::StorageError;

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
pub struct BinaryKey(Bytes);

impl BinaryKey {
    /// The longest key, in bytes.
    pub const MAX_LEN: usize = 1024;

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
        Ok(Self(Bytes::copy_from_slice(bytes)))
    }

    /// The key's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for BinaryKey {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Borrow<[u8]> for BinaryKey {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<&str> for BinaryKey {
    type Error = StorageError;

    fn try_from(key: &str) -> Result<Self, StorageError> {
        Self::new(key)
    }
}

/// The canonical text form: printable ASCII as it is, `\\` for a backslash, `\xNN` for the rest,
/// except that valid UTF-8 letters stay readable.
impl fmt::Display for BinaryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '\\' => f.write_str("\\\\")?,
                    c if c.is_control() => {
                        let mut encoded = [0; 4];
                        for byte in c.encode_utf8(&mut encoded).bytes() {
                            write!(f, "\\x{byte:02x}")?;
                        }
                    }
                    c => write!(f, "{c}")?,
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
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
    fn text_form_is_unambiguous() {
        let text = |bytes: &[u8]| BinaryKey::new(bytes).expect("a good key").to_string();
        assert_eq!(text(b"a//b/../c/"), "a//b/../c/");
        assert_eq!(text(b"a\\b"), "a\\\\b");
        assert_eq!(text(b"\x00\xff\n"), "\\x00\\xff\\x0a");
        assert_eq!(text("blå".as_bytes()), "blå");
    }

    #[test]
    fn order_is_bytewise() {
        let key = |bytes: &[u8]| BinaryKey::new(bytes).expect("a good key");
        assert!(key(b"a") < key(b"a\0"));
        assert!(key(b"a\xff") < key(b"b"));
    }
}

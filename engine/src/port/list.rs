//! Listing: pages of keys in order, and the token that continues them.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use super::blob::ETag;
use super::error::StorageError;
use super::key::BinaryKey;

/// Which keys to list. The default: all of them, a thousand to a page.
#[derive(Debug, Clone)]
pub struct ListRequest {
    /// Only keys that begin with these bytes.
    pub prefix: Vec<u8>,
    /// Only keys greater than this one.
    pub start_after: Option<Vec<u8>>,
    /// Continues after the page that returned it; the other fields must be the same as then.
    pub token: Option<ListToken>,
    /// Keys that contain these bytes after the prefix are folded into one common prefix, up to
    /// and including the delimiter. Must not be empty.
    pub delimiter: Option<Vec<u8>>,
    /// The most blobs and common prefixes on a page, together. 0 is an empty page; more than
    /// [`ListRequest::MAX`] counts as that.
    pub max: usize,
}

impl ListRequest {
    /// The longest page.
    pub const MAX: usize = 10_000;

    /// All keys that begin with `prefix`.
    #[must_use]
    pub fn prefix(prefix: impl AsRef<[u8]>) -> Self {
        Self {
            prefix: prefix.as_ref().to_vec(),
            ..Self::default()
        }
    }
}

impl Default for ListRequest {
    fn default() -> Self {
        Self {
            prefix: Vec::new(),
            start_after: None,
            token: None,
            delimiter: None,
            max: 1000,
        }
    }
}

/// One blob of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListEntry {
    /// Its key.
    pub key: BinaryKey,
    /// Its size in bytes.
    pub size: u64,
    /// Its version's ETag.
    pub etag: ETag,
    /// Its version: an LSN.
    pub version: u64,
    /// When this version was made (millisecond resolution).
    pub modified: SystemTime,
}

impl ListEntry {
    /// The entry of one version of a blob.
    #[must_use]
    pub fn new(key: BinaryKey, size: u64, version: u64, modified: SystemTime) -> Self {
        Self {
            key,
            size,
            etag: ETag::of_version(version),
            version,
            modified,
        }
    }
}

/// A page of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ListPage {
    /// Blobs, in ascending order of their keys.
    pub blobs: Vec<ListEntry>,
    /// Common prefixes, in ascending order.
    pub common_prefixes: Vec<Vec<u8>>,
    /// Continues the listing; `None` when there is nothing more.
    pub next: Option<ListToken>,
}

/// Where a listing stands: opaque, and good across restarts and the deletion of the key it names.
/// Its text form is hex digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListToken {
    /// The listing goes on with the first key greater than or equal to this.
    resume_at: Vec<u8>,
}

const TOKEN_VERSION: u8 = 1;

impl ListToken {
    /// A token that resumes with the first key that is `resume_at` or greater.
    #[must_use]
    pub fn resume_at(resume_at: Vec<u8>) -> Self {
        Self { resume_at }
    }

    /// The least key the listing goes on with.
    #[must_use]
    pub fn position(&self) -> &[u8] {
        &self.resume_at
    }

    fn checksum(version: u8, resume_at: &[u8]) -> [u8; 4] {
        let hash = blake3::Hasher::new()
            .update(&[version])
            .update(resume_at)
            .finalize();
        let [a, b, c, d, ..] = *hash.as_bytes();
        [a, b, c, d]
    }
}

impl fmt::Display for ListToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let checksum = Self::checksum(TOKEN_VERSION, &self.resume_at);
        [TOKEN_VERSION]
            .iter()
            .chain(&checksum)
            .chain(&self.resume_at)
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for ListToken {
    type Err = StorageError;

    fn from_str(text: &str) -> Result<Self, StorageError> {
        let bad = || StorageError::invalid("list token: not one this store gave out");
        if !text.is_ascii() || text.len() % 2 != 0 || text.len() > 2 * (BinaryKey::MAX_LEN + 16) {
            return Err(bad());
        }
        let bytes = (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| bad()))
            .collect::<Result<Vec<u8>, _>>()?;
        let (&[version, ref rest @ ..], true) = (bytes.as_slice(), bytes.len() >= 5) else {
            return Err(bad());
        };
        let (checksum, resume_at) = rest.split_at(4);
        if version != TOKEN_VERSION || checksum != Self::checksum(version, resume_at) {
            return Err(bad());
        }
        Ok(Self {
            resume_at: resume_at.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_are_checked() {
        let token = ListToken::resume_at(b"some\xffkey".to_vec());
        let text = token.to_string();
        assert_eq!(text.parse::<ListToken>().expect("parses"), token);
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
            let changed = String::from_utf8(changed).expect("ascii");
            assert!(changed.parse::<ListToken>().is_err(), "{changed}");
        }
        assert!("".parse::<ListToken>().is_err());
        assert!("01".parse::<ListToken>().is_err());
        assert!("+1+1+1+1+1".parse::<ListToken>().is_err());
    }
}

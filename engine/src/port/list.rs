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
    /// Only keys greater than this one. With a delimiter, a common prefix is listed if any such key
    /// begins with it.
    pub start_after: Option<Vec<u8>>,
    /// Continues after the page that returned it; the other fields must be the same as then.
    pub token: Option<ListToken>,
    /// Keys that contain these bytes after the prefix are folded into one common prefix, up to
    /// and including the delimiter. Must not be empty.
    pub delimiter: Option<Vec<u8>>,
    /// The most blobs and common prefixes on a page, together. 0 is an empty page that ends the
    /// listing (`next` is `None`: a loop over the pages stops); more than [`ListRequest::MAX`]
    /// counts as that.
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
        // A sign is taken for a part of a number below.
        if !text.bytes().all(|digit| digit.is_ascii_hexdigit())
            || !text.len().is_multiple_of(2)
            || text.len() > 2 * (BinaryKey::MAX_LEN + 16)
        {
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

/// Builds the page `request` asks for, out of keys that can only be sought.
///
/// `seek(from, limit)` returns, in ascending order, the first entries whose keys are `from` or
/// greater: `limit` of them if there are so many, but none beyond the request's prefix is needed. With
/// a delimiter, a common prefix's keys are stepped over with a seek, however many they are, but for some
/// that were asked for before it was known.
///
/// A token is only a position. Whatever it says, keys outside of the request's prefix are not
/// listed, since the page begins at the prefix at the earliest and ends with it.
pub(crate) fn build_page(
    request: &ListRequest,
    mut seek: impl FnMut(&[u8], usize) -> Result<Vec<ListEntry>, StorageError>,
) -> Result<ListPage, StorageError> {
    if request.delimiter.as_ref().is_some_and(Vec::is_empty) {
        return Err(StorageError::invalid("delimiter of 0 bytes"));
    }
    let mut page = ListPage::default();
    let max = request.max.min(ListRequest::MAX);
    if max == 0 {
        return Ok(page);
    }
    // The page goes on with the first key that is this or greater, unless it has blobs behind that.
    let mut position = first_position(request);
    let prefix = BinaryKey::bound(&request.prefix);
    let Some(delimiter) = request.delimiter.as_deref() else {
        page.blobs = seek(&position, max + 1)?;
        let is_listed = |entry: &ListEntry| entry.key.stored().starts_with(prefix.stored());
        page.blobs.truncate(page.blobs.partition_point(is_listed));
        if page.blobs.len() > max {
            page.blobs.truncate(max);
            let last = page
                .blobs
                .last()
                .map(|last| first_after(last.key.as_bytes()));
            page.next = last.map(ListToken::resume_at);
        }
        return Ok(page);
    };
    let behind = |page: &ListPage, position: &[u8]| match page.blobs.last() {
        Some(last) if last.key.as_bytes() >= position => first_after(last.key.as_bytes()),
        _ => position.to_vec(),
    };
    // How many entries to ask for: of those in a common prefix all but the first are wasted.
    let mut ahead = 1;
    loop {
        let entries = seek(&behind(&page, &position), ahead)?;
        if entries.is_empty() {
            return Ok(page);
        }
        ahead = ahead.saturating_mul(2);
        let mut is_in_group = false;
        for entry in entries {
            let key = entry.key.as_bytes();
            if is_in_group && key < position.as_slice() {
                continue;
            }
            if !entry.key.stored().starts_with(prefix.stored()) {
                return Ok(page);
            }
            if page.blobs.len() + page.common_prefixes.len() == max {
                page.next = Some(ListToken::resume_at(behind(&page, &position)));
                return Ok(page);
            }
            if let Some(group) = common_prefix(&request.prefix, delimiter, key) {
                let after = first_after_prefix(&group);
                page.common_prefixes.push(group);
                let Some(after) = after else {
                    return Ok(page);
                };
                position = after;
                is_in_group = true;
                ahead = 1;
            } else {
                page.blobs.push(entry);
            }
        }
        let missing = max - page.blobs.len() - page.common_prefixes.len();
        ahead = ahead.min(missing + 1);
    }
}

fn first_position(request: &ListRequest) -> Vec<u8> {
    let start_after = request.start_after.as_deref().map(first_after);
    let token = request.token.as_ref().map(|token| token.resume_at.clone());
    [start_after, token]
        .into_iter()
        .flatten()
        .fold(request.prefix.clone(), Vec::max)
}

/// The common prefix that `key` is folded into, if it is.
fn common_prefix(prefix: &[u8], delimiter: &[u8], key: &[u8]) -> Option<Vec<u8>> {
    let rest = &key[prefix.len()..];
    let at = rest
        .windows(delimiter.len())
        .position(|window| window == delimiter)?;
    Some(key[..prefix.len() + at + delimiter.len()].to_vec())
}

/// The least byte string greater than `key`.
fn first_after(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

/// The least byte string greater than all that begin with `prefix`; none if it is all `0xff`.
fn first_after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte != 0xff)?;
    let mut after = prefix[..=last].to_vec();
    after[last] += 1;
    Some(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &[u8]) -> ListEntry {
        let key = BinaryKey::new(key).expect("a good key");
        ListEntry::new(key, 0, 1, SystemTime::UNIX_EPOCH)
    }

    /// Lists `keys` (ascending) and counts the entries that were fetched.
    fn page(keys: &[&[u8]], request: &ListRequest) -> (ListPage, usize) {
        let mut fetched = 0;
        let page = build_page(request, |from, limit| {
            let found: Vec<_> = keys
                .iter()
                .filter(|key| **key >= from)
                .take(limit)
                .collect();
            fetched += found.len();
            Ok(found.into_iter().map(|key| entry(key)).collect())
        });
        (page.expect("a good request"), fetched)
    }

    #[test]
    fn common_prefixes_are_stepped_over_by_seeking() {
        let many: Vec<Vec<u8>> = (0..10_000_u32)
            .map(|n| [b"big/", n.to_be_bytes().as_slice()].concat())
            .collect();
        let mut keys: Vec<&[u8]> = many.iter().map(Vec::as_slice).collect();
        keys.insert(0, b"a");
        keys.push(b"c");
        let request = ListRequest {
            delimiter: Some(b"/".to_vec()),
            ..ListRequest::default()
        };
        let (page, fetched) = page(&keys, &request);
        assert_eq!(page.blobs, [entry(b"a"), entry(b"c")]);
        assert_eq!(page.common_prefixes, [b"big/".to_vec()]);
        assert_eq!(page.next, None);
        assert!(fetched < 10, "{fetched} entries fetched");
    }

    #[test]
    fn a_token_does_not_lead_out_of_the_prefix() {
        let keys: [&[u8]; 4] = [b"a", b"b/1", b"b/2", b"c"];
        for (position, listed) in [
            (b"".as_slice(), 2),
            (b"a", 2),
            (b"b/2", 1),
            (b"b0", 0),
            (b"c", 0),
            (b"\xff\xff", 0),
        ] {
            let request = ListRequest {
                token: Some(ListToken::resume_at(position.to_vec())),
                ..ListRequest::prefix("b/")
            };
            let (page, _) = page(&keys, &request);
            assert_eq!(page.blobs.len(), listed, "{position:?}");
            assert!(
                page.blobs
                    .iter()
                    .all(|blob| blob.key.as_bytes().starts_with(b"b/"))
            );
            assert_eq!(page.next, None);
        }
    }

    #[test]
    fn what_follows_a_prefix() {
        assert_eq!(first_after_prefix(b"a/"), Some(b"a0".to_vec()));
        assert_eq!(first_after_prefix(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(first_after_prefix(b"\xff\xff"), None);
        assert_eq!(first_after_prefix(b""), None);
    }

    #[test]
    fn a_full_last_page_ends_the_listing() {
        let keys: [&[u8]; 6] = [b"a", b"b/1", b"b/2", b"b/3", b"b/4", b"b/5"];
        let request = ListRequest {
            max: 2,
            delimiter: Some(b"/".to_vec()),
            ..ListRequest::default()
        };
        let (listed, _) = page(&keys, &request);
        assert_eq!((listed.blobs.len(), listed.common_prefixes.len()), (1, 1));
        assert_eq!(listed.next, None);
        let request = ListRequest {
            max: 2,
            ..ListRequest::default()
        };
        let (listed, fetched) = page(&keys, &request);
        assert_eq!(listed.next.expect("one is missing").position(), b"b/1\0");
        assert_eq!(fetched, 3);
    }

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
        // The checksum holds, but the text is another than the token's own.
        let text = ListToken::resume_at(vec![0x0a]).to_string();
        let signed = text.replace("0a", "+a");
        assert!(signed.len() == text.len() && signed != text);
        assert!(signed.parse::<ListToken>().is_err(), "{signed}");
    }
}

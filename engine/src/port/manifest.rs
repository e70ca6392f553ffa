//! [`ManifestStore`]: what blobs are made of, and what is said of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use bytes::Bytes;

use super::blob::{
    ATTRIBUTE_OVERHEAD, ATTRIBUTES_MAX_LEN, ATTRIBUTES_OVERHEAD_MAX, Attributes, Durability, ETag,
    Precondition, PutOutcome, check_attributes,
};
use super::digest::Digest;
use super::error::{ErrorKind, StorageError};
use super::key::BinaryKey;
use super::list::{ListRequest, ListToken};
use super::op::Op;
use super::span::Span;

/// An operation of a [`ManifestStore`].
pub type ManifestOp<T> = Op<T, ManifestError>;

/// The longest name of whoever sets attributes, in bytes.
pub const ORIGIN_MAX_LEN: usize = 255;

/// Bytes that may be kept of who set the attributes of a blob, and when, beside the attributes.
const ORIGINS_MAX_LEN: usize = 2048;
/// Bytes that each such origin takes beside its name.
const ORIGIN_OVERHEAD: usize = 11;

/// Where some bytes of a blob are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Location {
    /// Nowhere: they were never written.
    Hole,
    /// In the payload of a record.
    Payload {
        /// The sector that holds it.
        sector: u16,
        /// The record's LSN.
        lsn: u64,
        /// Where in the payload they begin, in bytes.
        offset: u64,
    },
}

/// Some bytes of a blob, and where they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManifestEntry {
    /// Which bytes of the blob.
    pub span: Span,
    /// Where they are.
    pub location: Location,
}

/// An attribute of a blob, advertised: somebody's word for it, which nobody checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertised {
    /// Its value.
    pub value: Bytes,
    /// Who set it, as [`AttributesUpdate::source`] said; empty if nobody was named, or it came with the
    /// blob.
    pub source: String,
    /// When it was set (millisecond resolution).
    pub time: SystemTime,
}

/// The attributes of a blob, by name.
pub type AdvertisedAttributes = BTreeMap<String, Advertised>;

/// What a store has checked of a blob itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fact {
    /// Its size in bytes.
    Size(u64),
    /// A digest of its bytes.
    Digest(Digest),
}

/// An attribute of a blob, confirmed by the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confirmed {
    /// What was checked.
    pub fact: Fact,
    /// When (millisecond resolution): a digest when the payload was put, the size when this version was
    /// made.
    pub time: SystemTime,
}

/// One version of a blob: what it is made of, and what is said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlobManifest {
    /// Its key.
    pub key: BinaryKey,
    /// Its size in bytes.
    pub size: u64,
    /// Its version's ETag.
    pub etag: ETag,
    /// Its version: an LSN.
    pub version: u64,
    /// When it was put (millisecond resolution); puts of ranges into it do not change that.
    pub created: SystemTime,
    /// When this version was made (millisecond resolution).
    pub modified: SystemTime,
    /// Its bytes, from the first to the last: the entries follow each other without gaps.
    pub entries: Vec<ManifestEntry>,
    /// What the store has checked itself.
    pub confirmed: Vec<Confirmed>,
    /// What others say.
    pub advertised: AdvertisedAttributes,
}

impl BlobManifest {
    /// The manifest of one version of a blob.
    pub(crate) fn new(
        key: BinaryKey,
        version: u64,
        (created, modified): (SystemTime, SystemTime),
        entries: Vec<ManifestEntry>,
        digests: &[Digest],
        advertised: AdvertisedAttributes,
    ) -> Self {
        let size = entries.last().map_or(0, |entry| entry.span.end());
        let digests = digests
            .iter()
            .map(|digest| (Fact::Digest(*digest), created));
        let facts = std::iter::once((Fact::Size(size), modified)).chain(digests);
        Self {
            key,
            size,
            etag: ETag::of_version(version),
            version,
            created,
            modified,
            entries,
            confirmed: facts.map(|(fact, time)| Confirmed { fact, time }).collect(),
            advertised,
        }
    }
}

/// Where the bytes of a new blob come from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryContent {
    /// Nowhere: they are not written yet.
    Hole,
    /// From a blob of the same store. Its holes come along.
    Blob {
        /// Its key.
        key: BinaryKey,
        /// Where its bytes begin that are taken.
        start: u64,
        /// What must hold of it.
        precondition: Precondition,
    },
}

/// Some bytes of a new blob, and where they come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEntry {
    /// Which bytes of the new blob.
    pub span: Span,
    /// Where they come from.
    pub content: EntryContent,
}

/// What a new blob is made of: holes, and bytes of blobs that are there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewManifest {
    /// Its size in bytes.
    pub size: u64,
    /// Its bytes, from the first to the last.
    pub entries: Vec<NewEntry>,
}

impl NewManifest {
    /// Appends the bytes of a blob from `start` to `end`; if that is nothing, no entry.
    ///
    /// # Errors
    /// `InvalidArgument` if that runs backwards, or the blob would be larger than 2^64-1 bytes.
    pub fn append(&mut self, key: &BinaryKey, start: u64, end: u64) -> Result<(), ManifestError> {
        self.append_if(key, start, end, Precondition::None)
    }

    /// The same, if this holds of the blob when the new one is put.
    ///
    /// # Errors
    /// As [`NewManifest::append`].
    pub fn append_if(
        &mut self,
        key: &BinaryKey,
        start: u64,
        end: u64,
        precondition: Precondition,
    ) -> Result<(), ManifestError> {
        let length = Span::new(start, end)?.len();
        let key = key.clone();
        self.push(
            length,
            EntryContent::Blob {
                key,
                start,
                precondition,
            },
        )
    }

    /// Appends a hole of so many bytes; if that is none, no entry.
    ///
    /// # Errors
    /// `InvalidArgument` if the blob would be larger than 2^64-1 bytes.
    pub fn append_hole(&mut self, length: u64) -> Result<(), ManifestError> {
        self.push(length, EntryContent::Hole)
    }

    fn push(&mut self, length: u64, content: EntryContent) -> Result<(), ManifestError> {
        if length == 0 {
            return Ok(());
        }
        let span = Span::at(self.size, length)?;
        self.size = span.end();
        self.entries.push(NewEntry { span, content });
        Ok(())
    }

    /// Checks that the entries tile the blob.
    ///
    /// # Errors
    /// `NotTiled`, with the first byte where they don't.
    pub fn check(&self, key: &BinaryKey) -> Result<(), ManifestError> {
        let mut end = 0;
        let wrong = |at, what| ManifestError::NotTiled {
            key: key.clone(),
            at,
            what,
        };
        for NewEntry { span, .. } in &self.entries {
            if span.is_empty() {
                return Err(wrong(span.start(), "an entry is empty"));
            }
            match span.start().cmp(&end) {
                std::cmp::Ordering::Less => return Err(wrong(span.start(), "entries overlap")),
                std::cmp::Ordering::Greater => return Err(wrong(end, "no entry is there")),
                std::cmp::Ordering::Equal => end = span.end(),
            }
        }
        match end.cmp(&self.size) {
            std::cmp::Ordering::Less => Err(wrong(end, "no entry is there")),
            std::cmp::Ordering::Greater => Err(wrong(self.size, "an entry ends past the end")),
            std::cmp::Ordering::Equal => Ok(()),
        }
    }
}

/// The bytes that an entry takes of a blob of `size` bytes.
///
/// # Errors
/// `InvalidRange` if the blob has not as many.
pub(crate) fn source_range(
    key: &BinaryKey,
    start: u64,
    length: u64,
    size: u64,
) -> Result<Span, StorageError> {
    let range = Span::at(start, length).ok();
    range
        .filter(|range| range.end() <= size)
        .ok_or_else(|| StorageError::InvalidRange {
            key: key.clone(),
            range: start..start.saturating_add(length),
            size,
        })
}

/// How a manifest is put. The default: the key must be absent, durable.
#[derive(Debug, Clone, Default)]
pub struct PutManifestOptions {
    /// What must hold of the key.
    pub precondition: Precondition,
    /// Without a precondition: replace the blob that has the key, if there is one.
    pub replace: bool,
    /// What the acknowledgement promises.
    pub durability: Durability,
    /// Kept with the blob.
    pub attributes: Attributes,
}

impl PutManifestOptions {
    fn must_be_new(&self) -> bool {
        self.precondition == Precondition::None && !self.replace
    }

    /// What must hold of the key.
    pub(crate) fn required(&self) -> Precondition {
        match self.must_be_new() {
            true => Precondition::IfAbsent,
            false => self.precondition,
        }
    }

    /// The error, if that does not hold of a key that has this ETag.
    pub(crate) fn refused(&self, key: &BinaryKey, actual: Option<ETag>) -> ManifestError {
        let key = key.clone();
        match actual {
            Some(etag) if self.must_be_new() => ManifestError::Exists { key, etag },
            _ => StorageError::PreconditionFailed { key, actual }.into(),
        }
    }
}

/// What becomes of a blob's attributes: those to be removed go (all of them, if they are replaced),
/// and then those to be set are set. An attribute that has the value already stays as it is.
///
/// On the disk, what is removed may last as long as the payload that it was put with, as with everything
/// in a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AttributesUpdate {
    /// Those that are not set go.
    pub replace: bool,
    /// To be set.
    pub set: Attributes,
    /// To be removed; they need not be there.
    pub remove: BTreeSet<String>,
    /// Who says so: kept with what is set to another value than it had, up to 255 bytes.
    pub source: String,
}

impl AttributesUpdate {
    /// Sets these, and leaves the others.
    #[must_use]
    pub fn merge(set: Attributes) -> Self {
        Self {
            set,
            ..Self::default()
        }
    }

    /// Leaves these alone.
    #[must_use]
    pub fn replace(set: Attributes) -> Self {
        Self {
            replace: true,
            ..Self::merge(set)
        }
    }

    /// Removes these, and leaves the others.
    #[must_use]
    pub fn remove(names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            remove: names.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }

    /// Checks it by itself.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub(crate) fn check(&self, limit: usize) -> Result<(), StorageError> {
        check_attributes(&self.set, limit)?;
        if self.source.len() > ORIGIN_MAX_LEN {
            return Err(StorageError::invalid(format!(
                "a source of attributes of {} bytes, at most {ORIGIN_MAX_LEN}",
                self.source.len()
            )));
        }
        match self.remove.iter().find(|name| self.set.contains_key(*name)) {
            Some(name) => Err(StorageError::invalid(format!(
                "attribute {name:?} is to be set and to be removed"
            ))),
            None => Ok(()),
        }
    }

    /// What it makes of the attributes of a blob; `None` if they stay as they are.
    ///
    /// # Errors
    /// `InvalidArgument` if they would be too many.
    pub(crate) fn apply(
        &self,
        before: &AdvertisedAttributes,
        created: SystemTime,
        now: SystemTime,
        limit: usize,
    ) -> Result<Option<AdvertisedAttributes>, StorageError> {
        let mut after = before.clone();
        after.retain(|name, _| {
            let goes = self.remove.contains(name) || self.replace;
            !goes || self.set.contains_key(name)
        });
        for (name, value) in &self.set {
            if after.get(name).is_some_and(|old| old.value == value) {
                continue;
            }
            let advertised = Advertised {
                value: value.clone(),
                source: self.source.clone(),
                time: now,
            };
            after.insert(name.clone(), advertised);
        }
        if after == *before {
            return Ok(None);
        }
        // What a blob has that was put under another limit may become less.
        let total = |all: &AdvertisedAttributes| -> usize {
            all.iter()
                .map(|(name, one)| name.len() + one.value.len())
                .sum()
        };
        check_attributes(&plain(&after), limit.max(total(before)))?;
        let origins: BTreeSet<_> = after.values().map(|one| (&one.source, one.time)).collect();
        let origin = |(source, time): (&String, SystemTime)| match is_of_put(source, time, created)
        {
            true => 0,
            false => ORIGIN_OVERHEAD + source.len(),
        };
        let bytes: usize = origins.into_iter().map(origin).sum();
        let attribute =
            |(name, one): (&String, &Advertised)| ATTRIBUTE_OVERHEAD + name.len() + one.value.len();
        let bytes = bytes + after.iter().map(attribute).sum::<usize>();
        let most = ATTRIBUTES_MAX_LEN + ATTRIBUTES_OVERHEAD_MAX + ORIGINS_MAX_LEN;
        if bytes > most {
            return Err(StorageError::invalid(format!(
                "attributes that take {bytes} bytes with who set them and when, at most {most}"
            )));
        }
        Ok(Some(after))
    }
}

/// Whether an attribute of this source and time came with its blob.
pub(crate) fn is_of_put(source: &str, time: SystemTime, created: SystemTime) -> bool {
    source.is_empty() && time == created
}

/// The attributes alone.
pub(crate) fn plain(advertised: &AdvertisedAttributes) -> Attributes {
    let plain = |(name, one): (&String, &Advertised)| (name.clone(), one.value.clone());
    advertised.iter().map(plain).collect()
}

/// Attributes that come with a blob.
pub(crate) fn of_put(attributes: Attributes, created: SystemTime) -> AdvertisedAttributes {
    let advertised = |(name, value)| {
        let (source, time) = (String::new(), created);
        let one = Advertised {
            value,
            source,
            time,
        };
        (name, one)
    };
    attributes.into_iter().map(advertised).collect()
}

/// How attributes are changed. The default: of whatever version is current, durable.
#[derive(Debug, Clone, Copy, Default)]
pub struct UpdateOptions {
    /// What must hold of the key (it must exist in any case).
    pub precondition: Precondition,
    /// What the acknowledgement promises.
    pub durability: Durability,
}

/// One blob of a listing of manifests.
#[derive(Debug, Clone)]
pub struct ManifestItem {
    /// Its key.
    pub key: BinaryKey,
    /// Its manifest, or why that can't be read.
    pub manifest: Result<BlobManifest, ManifestError>,
}

/// A page of a listing of manifests.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ManifestPage {
    /// Blobs, in ascending order of their keys.
    pub items: Vec<ManifestItem>,
    /// Common prefixes, in ascending order.
    pub common_prefixes: Vec<Vec<u8>>,
    /// Continues the listing; `None` when there is nothing more.
    pub next: Option<ListToken>,
}

/// Why an operation on manifests failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// No blob has this key.
    #[error("not found: {key}")]
    NotFound {
        /// The key that was asked for.
        key: BinaryKey,
    },
    /// The key has a blob, and nothing was said of replacing it; nothing changed.
    #[error("{key} exists already, with ETag {etag}")]
    Exists {
        /// The key.
        key: BinaryKey,
        /// The ETag of what it has.
        etag: ETag,
    },
    /// The entries do not tile the blob; nothing changed.
    #[error("the entries do not tile {key}: {what} at {at}")]
    NotTiled {
        /// The blob.
        key: BinaryKey,
        /// The first byte where they don't.
        at: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// The bytes that an entry names are not to be had; nothing changed.
    #[error("bytes {span} of {key} can't be taken from where they are to come from: {error}")]
    Unavailable {
        /// The blob that was to be made.
        key: BinaryKey,
        /// The entry.
        span: Span,
        /// Why not: `NotFound`, `InvalidRange` or `PreconditionFailed` of the blob it names, or what
        /// keeps that from being read.
        #[source]
        error: Box<StorageError>,
    },
    /// The store could not do it.
    #[error(transparent)]
    Storage(StorageError),
}

impl From<StorageError> for ManifestError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::NotFound { key } => Self::NotFound { key },
            error => Self::Storage(error),
        }
    }
}

impl ManifestError {
    /// What the entry `span` of a new blob names is not to be had.
    pub(crate) fn unavailable(key: &BinaryKey, span: Span, error: StorageError) -> Self {
        Self::Unavailable {
            key: key.clone(),
            span,
            error: Box::new(error),
        }
    }

    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Exists { .. } => ErrorKind::Conflict,
            Self::NotTiled { .. } => ErrorKind::InvalidInput,
            Self::Unavailable { error, .. } => error.kind(),
            Self::Storage(error) => error.kind(),
        }
    }

    /// Whether the same call may succeed later without anything else being mended.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unavailable { error, .. } => error.is_retryable(),
            Self::Storage(error) => error.is_retryable(),
            Self::Exists { .. } => true,
            Self::NotFound { .. } | Self::NotTiled { .. } => false,
        }
    }
}

/// What blobs are made of, and what is said of them.
///
/// A blob's manifest is its own record: there are no manifests apart from blobs, and whatever makes or
/// deletes a blob makes or deletes its manifest.
///
/// ```
/// use graviton_engine::memory::MemoryStore;
/// use graviton_engine::port::{
///     AttributesUpdate, BinaryKey, BlobStore, GetOptions, ManifestStore, MutableObjectStore,
///     NewManifest, PutManifestOptions, PutOptions,
/// };
///
/// let store = MemoryStore::new();
/// let (long, short) = (BinaryKey::new("long")?, BinaryKey::new("short")?);
/// store.put(&long, "one two three".into(), PutOptions::default()).wait()?;
///
/// let manifests = store.manifests();
/// let mut manifest = NewManifest::default();
/// manifest.append(&long, 8, 13)?;
/// manifest.append(&long, 3, 7)?;
/// manifests.put(&short, &manifest, PutManifestOptions::default()).wait()?;
/// assert_eq!(store.get(&short, GetOptions::default()).wait()?.bytes, "three two");
///
/// let colour = [("colour".to_owned(), "blue".into())].into();
/// manifests.update_attributes(&short, AttributesUpdate::merge(colour), Default::default()).wait()?;
/// assert_eq!(manifests.get(&short).wait()?.advertised["colour"].value, "blue");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait ManifestStore: Send + Sync {
    /// Makes a blob of what is there already: of ranges of other blobs (or of its own version before),
    /// and of holes. Its entries must tile it. What it is made of is one version of each blob; what
    /// happens to those afterwards does not touch it. Large payload that lies in the same sector is
    /// shared, all else is copied.
    ///
    /// # Errors
    /// `Exists` unless there is a precondition or it is told to replace; `NotTiled`, `Unavailable`; as
    /// [`BlobStore::put`](super::BlobStore::put), and `TooFragmented`.
    fn put(
        &self,
        key: &BinaryKey,
        manifest: &NewManifest,
        options: PutManifestOptions,
    ) -> ManifestOp<PutOutcome>;

    /// The manifest of a blob. Never reads payload.
    ///
    /// # Errors
    /// `NotFound`, `Corruption`, `Io`.
    fn get(&self, key: &BinaryKey) -> ManifestOp<BlobManifest>;

    /// One page of manifests, in ascending bytewise order of their keys, as
    /// [`BlobStore::list`](super::BlobStore::list); it may be shorter than asked for, and say how it
    /// goes on. A manifest that can't be read is an item like the others, and has the error.
    ///
    /// # Errors
    /// `InvalidArgument` (token, delimiter), `Corruption` of the index.
    fn list(&self, request: ListRequest) -> ManifestOp<ManifestPage>;

    /// Changes what is said of a blob, which makes a new version of it. Payload, digests and the time of
    /// its creation stay, and so does its life: trackers and whoever waits for them go on. An update that
    /// changes nothing succeeds, and makes no new version.
    ///
    /// # Errors
    /// `NotFound`, `PreconditionFailed`, `InvalidArgument`, `NoSpace`, ...
    fn update_attributes(
        &self,
        key: &BinaryKey,
        update: AttributesUpdate,
        options: UpdateOptions,
    ) -> ManifestOp<PutOutcome>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(start: u64, end: u64) -> NewEntry {
        NewEntry {
            span: Span::new(start, end).unwrap(),
            content: EntryContent::Hole,
        }
    }

    #[test]
    fn entries_tile_or_it_is_said_where_they_do_not() {
        let key = BinaryKey::new("k").unwrap();
        let at = |size, entries: &[NewEntry]| {
            let entries = entries.to_vec();
            match (NewManifest { size, entries }).check(&key) {
                Ok(()) => None,
                Err(ManifestError::NotTiled { at, .. }) => Some(at),
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(at(0, &[]), None);
        assert_eq!(at(9, &[entry(0, 4), entry(4, 9)]), None);
        assert_eq!(at(9, &[]), Some(0));
        assert_eq!(at(9, &[entry(0, 4)]), Some(4));
        assert_eq!(at(9, &[entry(0, 4), entry(5, 9)]), Some(4));
        assert_eq!(at(9, &[entry(0, 4), entry(3, 9)]), Some(3));
        assert_eq!(at(9, &[entry(4, 9), entry(0, 4)]), Some(0));
        assert_eq!(at(9, &[entry(0, 4), entry(4, 4), entry(4, 9)]), Some(4));
        assert_eq!(at(9, &[entry(0, 10)]), Some(9));
        assert_eq!(at(0, &[entry(0, 1)]), Some(0));
    }

    #[test]
    fn the_longest_attributes_that_are_kept_are_counted() {
        let (created, mut now) = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH);
        let mut all = AdvertisedAttributes::new();
        let mut count = 0;
        let refused = loop {
            now += std::time::Duration::from_millis(1);
            let mut update = AttributesUpdate::merge(
                [(format!("{count:04}"), Bytes::from_static(b"value"))].into(),
            );
            update.source = "source".to_owned();
            match update.apply(&all, created, now, ATTRIBUTES_MAX_LEN) {
                Ok(after) => all = after.unwrap(),
                Err(error) => break error,
            }
            count += 1;
        };
        assert!(matches!(refused, StorageError::InvalidArgument { .. }));
        // Each has an origin of its own.
        let most = ATTRIBUTES_MAX_LEN + ATTRIBUTES_OVERHEAD_MAX + ORIGINS_MAX_LEN;
        assert_eq!(
            count,
            most / (4 + 5 + ATTRIBUTE_OVERHEAD + 6 + ORIGIN_OVERHEAD)
        );
    }
}

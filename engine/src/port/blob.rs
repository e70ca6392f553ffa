//! [`BlobStore`]: whole blobs by key, and the types its calls take and return.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::str::FromStr;
use std::time::SystemTime;

use bytes::Bytes;

use super::digest::Digest;
use super::error::StorageError;
use super::key::BinaryKey;
use super::list::{ListPage, ListRequest};
use super::mutable::Holes;
use super::op::Op;
use super::span::RangeSet;

/// An operation of the blob ports.
pub type StoreOp<T> = Op<T, StorageError>;

/// Names one version of one blob: two versions of a key never share an ETag. Opaque; its text
/// form is 16 hex digits in quotes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ETag(u64);

impl ETag {
    /// The ETag of a version.
    #[must_use]
    pub fn of_version(version: u64) -> Self {
        Self(version)
    }

    /// The version that it is of.
    #[must_use]
    pub fn version(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{:016x}\"", self.0)
    }
}

impl fmt::Debug for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ETag {
    type Err = StorageError;

    fn from_str(text: &str) -> Result<Self, StorageError> {
        let digits = text
            .strip_prefix('"')
            .and_then(|rest| rest.strip_suffix('"'))
            .unwrap_or(text);
        if digits.len() != 16 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(StorageError::invalid(format!(
                "ETag {text:?}, expected 16 hex digits"
            )));
        }
        u64::from_str_radix(digits, 16)
            .map(Self)
            .map_err(|_| StorageError::invalid(format!("ETag {text:?}, expected 16 hex digits")))
    }
}

/// What must hold of the key for a mutation to happen. Decided in the commit path under the key's
/// order: there is no window between the check and the act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Precondition {
    /// Nothing.
    #[default]
    None,
    /// The key must not exist.
    IfAbsent,
    /// The key must exist with this ETag.
    IfETag(ETag),
    /// The key must exist in this version (its LSN).
    IfVersion(u64),
}

impl Precondition {
    /// Whether it holds of a key whose current version is `current`.
    #[must_use]
    pub fn holds(self, current: Option<u64>) -> bool {
        match self {
            Self::None => true,
            Self::IfAbsent => current.is_none(),
            Self::IfETag(etag) => current.map(ETag::of_version) == Some(etag),
            Self::IfVersion(version) => current == Some(version),
        }
    }
}

/// What an acknowledged write has survived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Power loss: the write is on stable storage when the call returns.
    #[default]
    Durable,
    /// The end of this process: the write was handed to the device, but a power loss may still
    /// take it (wholly, and never an older durable one). [`BlobStore::flush`] makes it durable.
    Written,
}

/// Small values a caller keeps with a blob, by name.
pub type Attributes = BTreeMap<String, Bytes>;

/// The most bytes the attributes of one blob may have, names and values together.
pub const ATTRIBUTES_MAX_LEN: usize = 32 * 1024;

/// Bytes that each attribute counts beside its name and its value, and how many of them there may be
/// beside [`ATTRIBUTES_MAX_LEN`].
pub const ATTRIBUTE_OVERHEAD: usize = 6;
/// See [`ATTRIBUTE_OVERHEAD`].
pub const ATTRIBUTES_OVERHEAD_MAX: usize = 4 * 1024;

/// The longest name of an attribute, in bytes; the shortest has one.
pub const ATTRIBUTE_NAME_MAX_LEN: usize = 255;

/// Checks attributes against their limits: `limit` bytes, or [`ATTRIBUTES_MAX_LEN`] if that is less.
///
/// # Errors
/// [`StorageError::InvalidArgument`], saying what is wrong.
pub fn check_attributes(attributes: &Attributes, limit: usize) -> Result<(), StorageError> {
    let mut total = 0_usize;
    for (name, value) in attributes {
        if name.is_empty() || name.len() > ATTRIBUTE_NAME_MAX_LEN {
            return Err(StorageError::invalid(format!(
                "attribute name of {} bytes, must be 1 to {ATTRIBUTE_NAME_MAX_LEN}",
                name.len()
            )));
        }
        total += name.len() + value.len();
    }
    let limit = limit.min(ATTRIBUTES_MAX_LEN);
    if total > limit {
        return Err(StorageError::invalid(format!(
            "attributes of {total} bytes, at most {limit}"
        )));
    }
    let count = attributes.len();
    if total + count * ATTRIBUTE_OVERHEAD > ATTRIBUTES_MAX_LEN + ATTRIBUTES_OVERHEAD_MAX {
        return Err(StorageError::invalid(format!(
            "{count} attributes of {total} bytes together, which are too many"
        )));
    }
    Ok(())
}

/// The most replicas that can be asked for: a store has no more sectors.
pub const REPLICAS_MAX: u16 = 64;

/// How many replicas a blob is to have that asks for so many, where it has `own` if it does not ask.
///
/// # Errors
/// [`StorageError::InvalidArgument`] if it asks for none, for more than [`REPLICAS_MAX`], or for fewer than
/// `own`: that is what the store promises to keep.
pub fn check_replicas(asked: Option<u16>, own: u16) -> Result<u16, StorageError> {
    match asked {
        None => Ok(own),
        Some(replicas) if replicas == 0 || replicas > REPLICAS_MAX => Err(StorageError::invalid(
            format!("{replicas} replicas, must be 1 to {REPLICAS_MAX}"),
        )),
        Some(replicas) if replicas < own => Err(StorageError::invalid(format!(
            "{replicas} replicas, the store keeps {own} of each blob; a put can ask for more, not for fewer"
        ))),
        Some(replicas) => Ok(replicas),
    }
}

/// How a put is done. The default: unconditional, durable, nothing declared.
#[derive(Debug, Clone, Default)]
pub struct PutOptions {
    /// What must hold of the key.
    pub precondition: Precondition,
    /// What the acknowledgement promises.
    pub durability: Durability,
    /// The payload's size in bytes, if it is known beforehand; another is `SizeMismatch`.
    pub size: Option<u64>,
    /// The payload's digest, if it is known beforehand; another is `DigestMismatch`. It is kept
    /// with the blob.
    pub digest: Option<Digest>,
    /// Kept with the blob.
    pub attributes: Attributes,
    /// How many sectors the blob is to lie in, 1 to [`REPLICAS_MAX`], if that is more than the store's
    /// own number; fewer is `InvalidArgument`. `None`: the store's number. Where there are fewer sectors, it
    /// goes to as many as there are, and to others when they come: `Store::lacking` counts it until then. The
    /// number belongs to the version: changes of its bytes or attributes, copies and renames keep it, the next
    /// put states its own. It raises nothing of what may be missing when a store is opened.
    pub replicas: Option<u16>,
}

/// What a put, copy or rename made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutOutcome {
    /// The new version's ETag.
    pub etag: ETag,
    /// The new version: its LSN.
    pub version: u64,
    /// The blob's size in bytes.
    pub size: u64,
}

/// What a get reads. The default: everything, of whatever version is current.
#[derive(Debug, Clone, Default)]
pub struct GetOptions {
    /// Only these bytes. An end past the blob's is clamped; `a..a` is empty if `a` is not past the
    /// end; starting past the end, or at that of a blob which is not empty, is `InvalidRange`.
    pub range: Option<Range<u64>>,
    /// Read only if this holds, else `PreconditionFailed`.
    pub precondition: Precondition,
    /// What becomes of bytes that were never written (see
    /// [`MutableObjectStore`](super::MutableObjectStore)).
    pub holes: Holes,
}

/// Bytes read, and what they are of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// The bytes of `range`, verified.
    pub bytes: Bytes,
    /// Where they lie in the blob.
    pub range: Range<u64>,
    /// The blob's whole size in bytes.
    pub size: u64,
    /// The version that was read.
    pub etag: ETag,
    /// The version that was read: its LSN.
    pub version: u64,
}

/// How a delete is done. The default: unconditional, durable, content with an absent key.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    /// What must hold of the key.
    pub precondition: Precondition,
    /// What the acknowledgement promises.
    pub durability: Durability,
    /// Fail with `NotFound` if the key is absent.
    pub strict: bool,
}

/// What a delete found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeleteOutcome {
    /// Whether there was a blob to delete.
    pub existed: bool,
}

/// How a copy or rename is done. The default: unconditional on both sides, durable.
#[derive(Debug, Clone, Default)]
pub struct CopyOptions {
    /// What must hold of the source (it must exist in any case).
    pub source_precondition: Precondition,
    /// What must hold of the target.
    pub target_precondition: Precondition,
    /// What the acknowledgement promises.
    pub durability: Durability,
}

/// What is known of a blob without reading its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlobInfo {
    /// Its key.
    pub key: BinaryKey,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes it takes on disk, headers and checksums included. Copies of a blob share their
    /// payload, and each counts it.
    pub allocated: u64,
    /// Its version's ETag.
    pub etag: ETag,
    /// Its version: an LSN.
    pub version: u64,
    /// When it was put (millisecond resolution); puts of ranges into it do not change that.
    pub created: SystemTime,
    /// When this version was made (millisecond resolution).
    pub modified: SystemTime,
    /// Digests confirmed when it was put.
    pub digests: Vec<Digest>,
    /// What the caller keeps with it.
    pub attributes: Attributes,
    /// Its holes: bytes that were never written.
    pub missing: RangeSet,
    /// In how many pieces its bytes lie.
    pub fragments: usize,
    /// The sectors that hold it.
    pub sectors: Vec<u16>,
    /// How many sectors it is to lie in: the store's number, or what its put asked for, if that is more.
    pub replicas: u16,
}

/// One mutation of a [`Batch`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum BatchItem {
    /// Puts a blob.
    Put {
        /// Its key.
        key: BinaryKey,
        /// Its payload.
        payload: Bytes,
        /// How; `durability` is the batch's.
        options: PutOptions,
    },
    /// Deletes a blob.
    Delete {
        /// Its key.
        key: BinaryKey,
        /// How; `durability` is the batch's.
        options: DeleteOptions,
    },
}

impl BatchItem {
    /// The key it is about.
    #[must_use]
    pub fn key(&self) -> &BinaryKey {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } => key,
        }
    }
}

/// Puts and deletes that happen all or not at all, in order, in one frame of the log.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// The mutations, in order.
    pub items: Vec<BatchItem>,
    /// What the acknowledgement promises.
    pub durability: Durability,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an unconditional put.
    pub fn put(&mut self, key: BinaryKey, payload: impl Into<Bytes>) -> &mut Self {
        self.items.push(BatchItem::Put {
            key,
            payload: payload.into(),
            options: PutOptions::default(),
        });
        self
    }

    /// Adds an unconditional delete.
    pub fn delete(&mut self, key: BinaryKey) -> &mut Self {
        self.items.push(BatchItem::Delete {
            key,
            options: DeleteOptions::default(),
        });
        self
    }
}

/// What one mutation of a batch did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BatchItemOutcome {
    /// A put.
    Put(PutOutcome),
    /// A delete.
    Delete(DeleteOutcome),
}

/// Takes a blob in, piece by piece; made by [`BlobStore::put_stream`].
pub trait WriteBlob: Send {
    /// Takes in the next piece, of any length. Waiting for each `Op` before the next piece bounds
    /// the memory; an error is reported by this or a later call, at the latest by `finish`.
    fn write(&mut self, piece: Bytes) -> StoreOp<()>;

    /// Commits the blob.
    fn finish(self: Box<Self>) -> StoreOp<PutOutcome>;
}

/// A blob on its way in. Dropped before [`BlobWriter::finish`], it leaves nothing behind.
///
/// It is an [`io::Write`] too, for blocking callers.
pub struct BlobWriter(Box<dyn WriteBlob>);

impl BlobWriter {
    /// Wraps an implementation.
    pub fn new(writer: impl WriteBlob + 'static) -> Self {
        Self(Box::new(writer))
    }

    /// See [`WriteBlob::write`].
    pub fn write(&mut self, piece: impl Into<Bytes>) -> StoreOp<()> {
        self.0.write(piece.into())
    }

    /// Commits the blob. Nothing of it is visible before.
    pub fn finish(self) -> StoreOp<PutOutcome> {
        self.0.finish()
    }
}

impl fmt::Debug for BlobWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobWriter").finish_non_exhaustive()
    }
}

impl io::Write for BlobWriter {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        Self::write(self, Bytes::copy_from_slice(piece))
            .wait()
            .map_err(io::Error::other)?;
        Ok(piece.len())
    }

    /// Does nothing: a blob is durable once [`BlobWriter::finish`] says so.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hands a blob out, piece by piece; made by [`BlobStore::get_stream`].
pub trait ReadBlob: Send {
    /// The next piece, verified; `None` at the end.
    fn next(&mut self) -> StoreOp<Option<Bytes>>;
}

/// A blob on its way out: the version that was current when the stream was opened, to its end,
/// whatever happens to the key meanwhile.
///
/// It is an [`io::Read`] too, for blocking callers.
pub struct BlobReader {
    inner: Box<dyn ReadBlob>,
    /// The bytes that will come.
    pub range: Range<u64>,
    /// The blob's whole size in bytes.
    pub size: u64,
    /// The version being read.
    pub etag: ETag,
    /// The version being read: its LSN.
    pub version: u64,
    unread: Bytes,
}

impl BlobReader {
    /// Wraps an implementation that hands out `range` of a blob of `size` bytes.
    pub fn new(
        reader: impl ReadBlob + 'static,
        range: Range<u64>,
        size: u64,
        version: u64,
    ) -> Self {
        Self {
            inner: Box::new(reader),
            range,
            size,
            etag: ETag::of_version(version),
            version,
            unread: Bytes::new(),
        }
    }

    /// The next piece, verified; `None` at the end. What [`io::Read`] has left of a piece comes
    /// first.
    #[expect(
        clippy::should_implement_trait,
        reason = "it returns an Op, not an Option"
    )]
    pub fn next(&mut self) -> StoreOp<Option<Bytes>> {
        if self.unread.is_empty() {
            return self.inner.next();
        }
        Op::ready(Ok(Some(std::mem::take(&mut self.unread))))
    }
}

impl fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobReader")
            .field("range", &self.range)
            .field("size", &self.size)
            .field("etag", &self.etag)
            .finish_non_exhaustive()
    }
}

impl io::Read for BlobReader {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        if target.is_empty() {
            return Ok(0);
        }
        while self.unread.is_empty() {
            match self.inner.next().wait().map_err(io::Error::other)? {
                Some(piece) => self.unread = piece,
                None => return Ok(0),
            }
        }
        let length = target.len().min(self.unread.len());
        target[..length].copy_from_slice(&self.unread.split_to(length));
        Ok(length)
    }
}

/// Whole blobs by key.
///
/// Every call submits its work and returns an [`Op`]: wait or await. Every mutation is
/// linearizable per key and atomic; a durable one survives power loss once its `Op` has succeeded.
pub trait BlobStore: Send + Sync {
    /// Puts a blob; an existing one is replaced atomically, and its running readers keep the old
    /// bytes to their end.
    ///
    /// # Errors
    /// `PreconditionFailed`, `SizeMismatch`, `DigestMismatch`, `TooLarge`, `NoSpace`,
    /// `InvalidArgument` (attributes); nothing has changed then. `Io`, `SectorPoisoned`: the
    /// outcome is known only after the store was opened again.
    fn put(&self, key: &BinaryKey, payload: Bytes, options: PutOptions) -> StoreOp<PutOutcome>;

    /// Puts a blob piece by piece, its size known or not, in bounded memory.
    ///
    /// # Errors
    /// What is wrong with the options; all else is reported by the writer.
    fn put_stream(&self, key: &BinaryKey, options: PutOptions) -> Result<BlobWriter, StorageError>;

    /// Reads a blob, or a range of it, into memory.
    ///
    /// # Errors
    /// `NotFound`, `InvalidRange`, `MissingRanges`, `PreconditionFailed`, `Corruption`, `Io`.
    fn get(&self, key: &BinaryKey, options: GetOptions) -> StoreOp<Blob>;

    /// Reads a blob, or a range of it, piece by piece in bounded memory.
    ///
    /// # Errors
    /// As [`BlobStore::get`]; damage is reported by the piece that is hit.
    fn get_stream(&self, key: &BinaryKey, options: GetOptions) -> StoreOp<BlobReader>;

    /// Whether the key exists. `false` only when it is absent; a failure is an error.
    ///
    /// # Errors
    /// `Corruption` of the index, `Closed`.
    fn exists(&self, key: &BinaryKey) -> StoreOp<bool>;

    /// What is known of a blob. Never reads payload.
    ///
    /// # Errors
    /// `NotFound`, `Corruption`, `Io`.
    fn stat(&self, key: &BinaryKey) -> StoreOp<BlobInfo>;

    /// Deletes a blob. Deleting an absent one succeeds and says `existed: false`, unless strict.
    ///
    /// # Errors
    /// `PreconditionFailed`, `NotFound` (strict), `Io`, `SectorPoisoned`.
    fn delete(&self, key: &BinaryKey, options: DeleteOptions) -> StoreOp<DeleteOutcome>;

    /// One page of the keys, in ascending bytewise order.
    ///
    /// # Errors
    /// `InvalidArgument` (token, delimiter), `Corruption` of the index.
    fn list(&self, request: ListRequest) -> StoreOp<ListPage>;

    /// Puts and deletes, all or nothing, in order.
    ///
    /// # Errors
    /// The first item's that can't be done; nothing has changed then.
    fn batch(&self, batch: Batch) -> StoreOp<Vec<BatchItemOutcome>>;

    /// Makes `target` a blob with the payload, digests, attributes and creation time of `source`,
    /// without moving payload.
    ///
    /// # Errors
    /// `NotFound` (source), `PreconditionFailed`, `NoSpace`, ...
    fn copy(
        &self,
        source: &BinaryKey,
        target: &BinaryKey,
        options: CopyOptions,
    ) -> StoreOp<PutOutcome>;

    /// As [`BlobStore::copy`], and deletes `source` in the same atomic step. Renaming a key to
    /// itself makes a new version of it.
    ///
    /// # Errors
    /// As [`BlobStore::copy`].
    fn rename(
        &self,
        source: &BinaryKey,
        target: &BinaryKey,
        options: CopyOptions,
    ) -> StoreOp<PutOutcome>;

    /// Makes every write that was acknowledged before durable.
    ///
    /// # Errors
    /// `Io`, `SectorPoisoned`.
    fn flush(&self) -> StoreOp<()>;
}

/// Resolves the range of a read against a blob's size, as [`GetOptions::range`] says.
///
/// # Errors
/// `InvalidArgument` if the range runs backwards, `InvalidRange` if it starts past the end.
pub fn resolve_range(
    key: &BinaryKey,
    range: Option<&Range<u64>>,
    size: u64,
) -> Result<Range<u64>, StorageError> {
    let Some(range) = range else {
        return Ok(0..size);
    };
    if range.start > range.end {
        return Err(StorageError::invalid(format!(
            "range {}..{} ends before it starts",
            range.start, range.end
        )));
    }
    // Of an empty blob the end is also the start.
    let at_end = range.start == size && size > 0 && range.end > range.start;
    if range.start > size || at_end {
        return Err(StorageError::InvalidRange {
            key: key.clone(),
            range: range.clone(),
            size,
        });
    }
    Ok(range.start..range.end.min(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_resolved_against_the_size() {
        let key = BinaryKey::new("k").expect("a good key");
        let resolve = |start, end, size| resolve_range(&key, Some(&Range { start, end }), size);
        assert_eq!(resolve_range(&key, None, 5).expect("whole"), 0..5);
        assert_eq!(resolve(1, 3, 5).expect("inside"), 1..3);
        assert_eq!(resolve(3, 9, 5).expect("clamped"), 3..5);
        assert_eq!(resolve(5, 5, 5).expect("empty at the end"), 5..5);
        assert_eq!(resolve(0, 0, 0).expect("empty of empty"), 0..0);
        assert_eq!(resolve(0, 7, 0).expect("clamped to nothing"), 0..0);
        assert!(matches!(
            resolve(5, 6, 5),
            Err(StorageError::InvalidRange { .. })
        ));
        assert!(matches!(
            resolve(6, 6, 5),
            Err(StorageError::InvalidRange { .. })
        ));
        assert!(matches!(
            resolve(4, 3, 5),
            Err(StorageError::InvalidArgument { .. })
        ));
    }

    #[test]
    fn etags_round_trip_through_text() {
        let etag = ETag::of_version(0xab);
        assert_eq!(etag.to_string(), "\"00000000000000ab\"");
        assert_eq!(etag.to_string().parse::<ETag>().expect("quoted"), etag);
        assert_eq!("00000000000000ab".parse::<ETag>().expect("bare"), etag);
        assert!("\"1\"".parse::<ETag>().is_err());
    }
}

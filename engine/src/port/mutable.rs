//! [`MutableObjectStore`]: blobs that are filled range by range, or part by part.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::blob::{
    Attributes, BlobStore, BlobWriter, Durability, ETag, Precondition, PutOptions, PutOutcome,
    StoreOp,
};
use super::error::StorageError;
use super::key::BinaryKey;
use super::manifest::ManifestStore;
use super::span::Span;
use super::tracker::RangeTracker;

/// The least and the greatest number of a part.
pub const PART_NUMBERS: std::ops::RangeInclusive<u16> = 1..=10_000;

/// What is done with a range that ends past the end of the blob. One that is empty may lie where others
/// may, and makes no blob grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum PastEnd {
    /// It is `InvalidRange`.
    #[default]
    Refuse,
    /// The blob grows, if the range starts at its end or before; else it is `InvalidRange`.
    Extend,
    /// The blob grows; what lies between its old end and the range is a hole.
    Sparse,
}

/// How a range is put. The default: unconditional, durable, within the blob.
#[derive(Debug, Clone, Default)]
pub struct PutRangeOptions {
    /// What must hold of the key (it must exist in any case).
    pub precondition: Precondition,
    /// What the acknowledgement promises.
    pub durability: Durability,
    /// What becomes of a range that ends past the end of the blob.
    pub past_end: PastEnd,
}

/// What a read makes of bytes that were never written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Holes {
    /// The read is `MissingRanges`.
    #[default]
    Refuse,
    /// They are zeros.
    Zeros,
}

/// How ranges are read together. The default: of whatever version is current, holes refused.
#[derive(Debug, Clone)]
pub struct GetRangesOptions {
    /// Read only if this holds, else `PreconditionFailed`.
    pub precondition: Precondition,
    /// What becomes of bytes that were never written.
    pub holes: Holes,
    /// Ranges with at most so many bytes between them are read as one; 32 KiB by default, and no
    /// more than 1 MiB. It changes how fast they come, never what they are.
    pub gap: u64,
}

impl Default for GetRangesOptions {
    fn default() -> Self {
        Self {
            precondition: Precondition::None,
            holes: Holes::Refuse,
            gap: 32 << 10,
        }
    }
}

/// Ranges of one version of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobRanges {
    /// Their bytes, verified, in the order in which they were asked for.
    pub pieces: Vec<Bytes>,
    /// The blob's whole size in bytes.
    pub size: u64,
    /// The version that was read.
    pub etag: ETag,
    /// The version that was read: its LSN.
    pub version: u64,
}

/// Names one upload of parts; never given out twice. Its text form is 16 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UploadId(u64);

impl UploadId {
    /// The upload that began at this LSN.
    #[must_use]
    pub fn of_lsn(lsn: u64) -> Self {
        Self(lsn)
    }

    /// The LSN at which it began.
    #[must_use]
    pub fn lsn(self) -> u64 {
        self.0
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for UploadId {
    type Err = StorageError;

    fn from_str(text: &str) -> Result<Self, StorageError> {
        let is_hex = text.len() == 16 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        match u64::from_str_radix(text, 16) {
            Ok(lsn) if is_hex => Ok(Self(lsn)),
            _ => Err(StorageError::invalid(format!(
                "upload {text:?}, expected 16 hex digits"
            ))),
        }
    }
}

/// How an upload is begun. The default: durable, no attributes.
#[derive(Debug, Clone, Default)]
pub struct UploadOptions {
    /// What the acknowledgement promises.
    pub durability: Durability,
    /// Kept with the blob, once it is one.
    pub attributes: Attributes,
    /// How many sectors the parts and, once it is one, the blob are to lie in: as
    /// [`PutOptions::replicas`](super::PutOptions::replicas).
    pub replicas: Option<u16>,
}

/// How an upload is completed. The default: unconditional, durable, content with no parts.
#[derive(Debug, Clone, Default)]
pub struct CompleteOptions {
    /// What must hold of the key; decided when the upload is completed.
    pub precondition: Precondition,
    /// What the acknowledgement promises.
    pub durability: Durability,
    /// Fail with `InvalidArgument` if no part is named; else that makes an empty blob.
    pub refuse_empty: bool,
}

/// One part of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartInfo {
    /// Its number, 1 to 10,000.
    pub number: u16,
    /// Names what was put under this number last.
    pub etag: ETag,
    /// Its size in bytes.
    pub size: u64,
    /// When it was put (millisecond resolution).
    pub modified: SystemTime,
}

/// One upload that is neither completed nor aborted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadInfo {
    /// Its name.
    pub upload: UploadId,
    /// The key that its blob will have.
    pub key: BinaryKey,
    /// When it was begun (millisecond resolution).
    pub started: SystemTime,
    /// When its last part was put, or it was begun (millisecond resolution).
    pub modified: SystemTime,
    /// How many parts it has.
    pub parts: usize,
    /// Their bytes, summed.
    pub bytes: u64,
}

/// What a sweep has aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SweptUploads {
    /// How many uploads.
    pub uploads: usize,
    /// The bytes of their parts, summed.
    pub bytes: u64,
}

/// Blobs that are filled range by range, or part by part.
///
/// As in all ports, mutations are atomic and linearizable per key. A range that is put makes a new
/// version of the blob; digests that were confirmed of an older one are not of it, and are dropped.
pub trait MutableObjectStore: BlobStore {
    /// Makes a blob of `size` bytes, none of them written yet: one hole, which costs no space.
    /// `options.size` and `options.digest` must not be given.
    ///
    /// # Errors
    /// `PreconditionFailed`, `TooLarge`, `NoSpace`, `InvalidArgument`; as [`BlobStore::put`].
    fn create_sparse(&self, key: &BinaryKey, size: u64, options: PutOptions)
    -> StoreOp<PutOutcome>;

    /// Replaces the bytes of `range`, at any alignment. Readers see all of the new bytes or none.
    /// Puts of ranges that overlap come to some order of whole writes. An empty range that lies
    /// where others may succeeds, and makes no new version.
    ///
    /// # Errors
    /// `NotFound`, `PreconditionFailed`, `LengthMismatch` if `bytes` are not as many as `range` has,
    /// `InvalidRange` (see [`PastEnd`]), `TooLarge`, `NoSpace`; nothing has changed then. `Io`,
    /// `SectorPoisoned`: as [`BlobStore::put`].
    fn put_range(
        &self,
        key: &BinaryKey,
        range: Span,
        bytes: Bytes,
        options: PutRangeOptions,
    ) -> StoreOp<PutOutcome>;

    /// Reads many ranges of one version of a blob at once, those close to each other together.
    /// Each is resolved against the blob's size as in [`GetOptions`](super::GetOptions).
    ///
    /// # Errors
    /// As [`BlobStore::get`]; `MissingRanges` names all the holes that were met.
    fn get_ranges(
        &self,
        key: &BinaryKey,
        ranges: &[Span],
        options: GetRangesOptions,
    ) -> StoreOp<BlobRanges>;

    /// Begins an upload of parts for `key`. Nothing of it is visible under the key before it is
    /// completed.
    ///
    /// # Errors
    /// `InvalidArgument` (attributes), `NoSpace`, `Io`, `SectorPoisoned`.
    fn start_upload(&self, key: &BinaryKey, options: UploadOptions) -> StoreOp<UploadId>;

    /// Puts a part, in any order, gaps allowed. One with a number that there is already replaces it:
    /// the ETag of the old one no longer completes. `options.precondition` is on the part with
    /// this number; attributes and a number of replicas are not kept: those of the upload hold.
    ///
    /// # Errors
    /// `NoSuchUpload`, `InvalidPart` if the number is not 1 to 10,000; as [`BlobStore::put`].
    fn upload_part(
        &self,
        upload: UploadId,
        number: u16,
        bytes: Bytes,
        options: PutOptions,
    ) -> StoreOp<PutOutcome>;

    /// As [`MutableObjectStore::upload_part`], piece by piece in bounded memory.
    ///
    /// # Errors
    /// What is wrong with the number and the options; all else is reported by the writer.
    fn upload_part_stream(
        &self,
        upload: UploadId,
        number: u16,
        options: PutOptions,
    ) -> Result<BlobWriter, StorageError>;

    /// Makes a blob of the parts that are named, in this order; the others are dropped. No payload
    /// moves. Completing again with the same list gives the same answer for as long as the key has
    /// this version.
    ///
    /// # Errors
    /// `InvalidPartOrder` if the numbers do not ascend, `InvalidPart` if there is no such part or it
    /// has another ETag, `PreconditionFailed`, `TooLarge`: the upload stays open and usable.
    /// `NoSuchUpload` if it was aborted, or completed otherwise.
    fn complete_upload(
        &self,
        upload: UploadId,
        parts: &[(u16, ETag)],
        options: CompleteOptions,
    ) -> StoreOp<PutOutcome>;

    /// Gives an upload up, and all of its parts. Once it has returned, no part lands any more.
    ///
    /// # Errors
    /// `NoSuchUpload`, `Io`, `SectorPoisoned`.
    fn abort_upload(&self, upload: UploadId) -> StoreOp<()>;

    /// The uploads that are open, by key and then by age, behind `after`: at most `max`.
    ///
    /// # Errors
    /// `Corruption`, `Io`.
    fn list_uploads(
        &self,
        after: Option<(BinaryKey, UploadId)>,
        max: usize,
    ) -> StoreOp<Vec<UploadInfo>>;

    /// The parts of an upload with numbers above `after`, in ascending order: at most `max`.
    ///
    /// # Errors
    /// `NoSuchUpload`, `Corruption`, `Io`.
    fn list_parts(&self, upload: UploadId, after: u16, max: usize) -> StoreOp<Vec<PartInfo>>;

    /// Aborts the uploads that nothing was put into for at least `age`.
    ///
    /// # Errors
    /// `Io`, `SectorPoisoned`.
    fn sweep_uploads(&self, age: Duration) -> StoreOp<SweptUploads>;

    /// What is written of each blob. It follows by itself what is put; its total is the blob's size,
    /// its generation is that of the put, copy or creation that the blob began with.
    fn ranges(&self) -> Arc<dyn RangeTracker>;

    /// A tracker of bytes that are held elsewhere, or of claims on what is still to be written: with
    /// keys of its own, apart from those of the blobs.
    fn ranges_elsewhere(&self) -> Arc<dyn RangeTracker>;

    /// What the blobs are made of, and what is said of them.
    fn manifests(&self) -> Arc<dyn ManifestStore>;
}

/// Checks the options that a blob without payload is made with.
///
/// # Errors
/// `InvalidArgument` if something is declared of a payload.
pub fn check_sparse(options: &PutOptions) -> Result<(), StorageError> {
    if options.size.is_some() || options.digest.is_some() {
        return Err(StorageError::invalid(
            "the size or digest of a payload is declared, and there is none",
        ));
    }
    Ok(())
}

/// Checks that there are as many bytes as a range has.
///
/// # Errors
/// `LengthMismatch`.
pub fn check_length(key: &BinaryKey, range: Span, length: u64) -> Result<(), StorageError> {
    if range.len() != length {
        return Err(StorageError::LengthMismatch {
            key: key.clone(),
            range,
            length,
        });
    }
    Ok(())
}

/// Resolves the range of a put against a blob's size: the blob's new size.
///
/// # Errors
/// `LengthMismatch`; `InvalidRange` where `past_end` says so.
pub fn resolve_put_range(
    key: &BinaryKey,
    range: Span,
    length: u64,
    size: u64,
    past_end: PastEnd,
) -> Result<u64, StorageError> {
    check_length(key, range, length)?;
    let fits = match past_end {
        PastEnd::Refuse => range.end() <= size,
        PastEnd::Extend => range.start() <= size,
        PastEnd::Sparse => true,
    };
    if !fits {
        return Err(StorageError::InvalidRange {
            key: key.clone(),
            range: range.into(),
            size,
        });
    }
    Ok(size.max(range.end()))
}

/// Checks the number of a part.
///
/// # Errors
/// `InvalidPart`.
pub fn check_part_number(number: u16) -> Result<(), StorageError> {
    if PART_NUMBERS.contains(&number) {
        return Ok(());
    }
    Err(StorageError::InvalidPart {
        number,
        why: "numbers are 1 to 10,000",
    })
}

/// Checks the order of the parts that an upload is completed with.
///
/// # Errors
/// `InvalidPart` for a number that none can have, `InvalidPartOrder`.
pub fn check_part_order(parts: &[(u16, ETag)]) -> Result<(), StorageError> {
    parts
        .iter()
        .try_for_each(|(number, _)| check_part_number(*number))?;
    match parts.windows(2).find(|pair| pair[0].0 >= pair[1].0) {
        Some(pair) => Err(StorageError::InvalidPartOrder {
            number: pair[1].0,
            after: pair[0].0,
        }),
        None => Ok(()),
    }
}

//! [`StorageError`]: everything that can go wrong with a blob, grouped by what a caller can do; and
//! [`PolicyError`]: why a policy could not decide.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use super::blob::ETag;
use super::key::BinaryKey;
use super::mutable::UploadId;
use super::replication::{Reason, Verdict};
use super::span::{RangeSet, Span};

/// Where on a store something was found or went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The sector's number in the store.
    pub sector: u16,
    /// Byte offset in the sector.
    pub offset: u64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sector {} at offset {}", self.sector, self.offset)
    }
}

/// What a caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The blob does not exist.
    NotFound,
    /// Bytes that were asked for were not written yet.
    Incomplete,
    /// The arguments are wrong; the same call can't succeed.
    InvalidInput,
    /// A precondition did not hold; read again and decide anew.
    Conflict,
    /// Retention or a hold forbids it.
    Denied,
    /// No room; delete something or add space.
    NoSpace,
    /// Bytes on disk are not what was written.
    Corruption,
    /// The disk or the system failed.
    Io,
    /// The store can't take this call in its present state (closed, read-only, poisoned, locked).
    Unavailable,
}

/// Why an operation on a store failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// A key must have 1 to 1024 bytes.
    #[error("invalid key: {length} bytes, must be 1 to 1024")]
    InvalidKey {
        /// The length that was given, in bytes.
        length: usize,
    },
    /// An argument is out of its range.
    #[error("invalid argument: {what}")]
    InvalidArgument {
        /// Which argument, what it was, and what it may be.
        what: String,
    },
    /// No blob has this key.
    #[error("not found: {key}")]
    NotFound {
        /// The key that was asked for.
        key: BinaryKey,
    },
    /// A range lies outside of the blob.
    #[error("range {}..{} lies outside of {key} ({size} bytes)", range.start, range.end)]
    InvalidRange {
        /// The blob.
        key: BinaryKey,
        /// What was asked for.
        range: Range<u64>,
        /// The blob's size in bytes.
        size: u64,
    },
    /// Bytes were asked for that were never written.
    #[error("{key} has holes where it was to be read: {missing}")]
    MissingRanges {
        /// The blob.
        key: BinaryKey,
        /// What is missing of what was asked for.
        missing: RangeSet,
    },
    /// There are not as many bytes as the range has that they are for; nothing changed.
    #[error("{length} bytes for the range {range} of {key}, which has {}", range.len())]
    LengthMismatch {
        /// The blob.
        key: BinaryKey,
        /// Where they were to be put.
        range: Span,
        /// How many there are.
        length: u64,
    },
    /// No such upload is open: it never was, or was completed or aborted.
    #[error("no upload {upload} is open")]
    NoSuchUpload {
        /// What was asked for.
        upload: UploadId,
    },
    /// A part can't be one, or is not there as it was named; the upload stays open.
    #[error("invalid part {number}: {why}")]
    InvalidPart {
        /// Its number.
        number: u16,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The parts of an upload are named out of order; the upload stays open.
    #[error("part {number} is named after part {after}: their numbers must ascend")]
    InvalidPartOrder {
        /// The first that is out of order.
        number: u16,
        /// The one before it.
        after: u16,
    },
    /// The precondition of a mutation did not hold; nothing changed.
    #[error("precondition failed for {key}: {}", match actual { Some(etag) => format!("its ETag is {etag}"), None => "it does not exist".to_owned() })]
    PreconditionFailed {
        /// The blob.
        key: BinaryKey,
        /// Its ETag at the decision, if it exists.
        actual: Option<ETag>,
    },
    /// The payload is not as long as was declared; nothing changed.
    #[error("size mismatch for {key}: declared {declared} bytes, got {actual}")]
    SizeMismatch {
        /// The blob.
        key: BinaryKey,
        /// Bytes declared.
        declared: u64,
        /// Bytes received.
        actual: u64,
    },
    /// The payload's digest is not the declared one; nothing changed.
    #[error("digest mismatch for {key}: declared {declared}, got {actual}")]
    DigestMismatch {
        /// The blob.
        key: BinaryKey,
        /// The digest declared, in its text form.
        declared: String,
        /// The digest computed, in its text form.
        actual: String,
    },
    /// The blob is larger than the store allows.
    #[error("{key} would have {size} bytes, the largest blob here has {limit}")]
    TooLarge {
        /// The blob.
        key: BinaryKey,
        /// Its size in bytes, as far as known.
        size: u64,
        /// The largest size allowed, in bytes.
        limit: u64,
    },
    /// The blob would be made of too many pieces: holes, and ranges that were put between them.
    #[error("{key} would be made of {fragments} pieces, at most {limit} are kept")]
    TooFragmented {
        /// The blob.
        key: BinaryKey,
        /// How many it would be.
        fragments: usize,
        /// The most there may be.
        limit: usize,
    },
    /// Retention forbids the change.
    #[error("{key} is under retention{}", if *hold { " (legal hold)" } else { "" })]
    RetentionDenied {
        /// The blob.
        key: BinaryKey,
        /// When the retention ends, if it has an end.
        until: Option<SystemTime>,
        /// Whether a legal hold lies on it.
        hold: bool,
    },
    /// No room for the payload; nothing was written.
    #[error("no space: {needed} bytes needed, {available} available")]
    NoSpace {
        /// Bytes the call would add.
        needed: u64,
        /// Bytes that can still be added.
        available: u64,
    },
    /// Bytes on disk are not the ones written.
    #[error("corruption in {place}{}: {what}", match key { Some(key) => format!(" ({key})"), None => String::new() })]
    Corruption {
        /// Where.
        place: Place,
        /// The blob that is hit, if known.
        key: Option<BinaryKey>,
        /// What does not hold, with the format's rule where there is one.
        what: String,
    },
    /// The disk failed.
    #[error("{operation} failed in {place}: {source}")]
    Io {
        /// `read`, `write`, `sync`, ...
        operation: &'static str,
        /// Where.
        place: Place,
        /// What the system reported.
        source: Arc<io::Error>,
    },
    /// An earlier write or sync of the sector failed, or it could not be used when the store was opened. It
    /// takes no writes until that is opened again; reads go on where they can.
    #[error("sector {sector} takes no writes: {cause}")]
    SectorPoisoned {
        /// The sector's number in the store.
        sector: u16,
        /// The first failure, or what is wrong with it.
        cause: String,
    },
    /// The store was opened for reading only.
    #[error("the store is open for reading only")]
    ReadOnly,
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// Another process owns the store.
    #[error("{} is in use by {owner}", path.display())]
    Locked {
        /// The store's directory.
        path: PathBuf,
        /// Who holds it, as far as known: `process 4711`.
        owner: String,
    },
    /// There is no store at this path.
    #[error("no store at {}: {why}", path.display())]
    NoStore {
        /// The path.
        path: PathBuf,
        /// What is missing.
        why: String,
    },
    /// A store can't be created over what is there.
    #[error("{} exists already", path.display())]
    AlreadyExists {
        /// What is in the way.
        path: PathBuf,
    },
    /// A sector can't be made of a block device that has something on it, unless that is to be lost.
    #[error("{} is not blank: {what}", path.display())]
    NotBlank {
        /// The device.
        path: PathBuf,
        /// What is on it.
        what: String,
    },
    /// The file is of a format version this build does not know.
    #[error("{} has format version {found}, this build reads versions up to {supported}", path.display())]
    UnsupportedVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version known here.
        supported: u32,
    },
    /// The file is not what the store expects there (foreign, truncated, of another store).
    #[error("{}: {why}", path.display())]
    InvalidStore {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Sectors are missing or broken, and those that are left may lack what was acknowledged.
    #[error("{}: too many sectors can't be used: {why}", path.display())]
    TooFewSectors {
        /// The store's directory.
        path: PathBuf,
        /// What is wrong with which of them, and how many may be missing.
        why: String,
    },
    /// Fewer sectors can take the write than it was to go to, and degraded writes are not allowed; nothing was
    /// written.
    #[error("{chosen} of the {wanted} sectors that are wanted can take the write")]
    Insufficient {
        /// How many sectors the write was to go to.
        wanted: usize,
        /// How many can take it.
        chosen: usize,
    },
    /// The sector can't be taken away: something would have too few replicas without it, or is on its way into it.
    #[error("sector {sector} is still needed by {keys} keys, or pieces of blobs on their way in")]
    StillNeeded {
        /// Its number in the store.
        sector: u16,
        /// How many keys need it (uploads, parts and tracked sets among them), and pieces on their way.
        keys: u64,
    },
    /// A file beside the sectors, or the opening of one, failed.
    #[error("{operation} {}: {source}", path.display())]
    File {
        /// What was being done.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system reported.
        source: Arc<io::Error>,
    },
}

impl StorageError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } | Self::NoSuchUpload { .. } => ErrorKind::NotFound,
            Self::MissingRanges { .. } => ErrorKind::Incomplete,
            Self::InvalidKey { .. }
            | Self::InvalidArgument { .. }
            | Self::InvalidRange { .. }
            | Self::SizeMismatch { .. }
            | Self::DigestMismatch { .. }
            | Self::TooLarge { .. }
            | Self::TooFragmented { .. }
            | Self::LengthMismatch { .. }
            | Self::InvalidPart { .. }
            | Self::InvalidPartOrder { .. }
            | Self::AlreadyExists { .. }
            | Self::NotBlank { .. } => ErrorKind::InvalidInput,
            Self::PreconditionFailed { .. } | Self::StillNeeded { .. } => ErrorKind::Conflict,
            Self::RetentionDenied { .. } => ErrorKind::Denied,
            Self::NoSpace { .. } => ErrorKind::NoSpace,
            Self::Corruption { .. } | Self::InvalidStore { .. } | Self::TooFewSectors { .. } => {
                ErrorKind::Corruption
            }
            Self::Io { .. } | Self::File { .. } => ErrorKind::Io,
            Self::SectorPoisoned { .. }
            | Self::Insufficient { .. }
            | Self::ReadOnly
            | Self::Closed
            | Self::Locked { .. }
            | Self::NoStore { .. }
            | Self::UnsupportedVersion { .. } => ErrorKind::Unavailable,
        }
    }

    /// Whether the same call may succeed later without anything else being mended.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Locked { .. } | Self::NoSpace { .. } | Self::PreconditionFailed { .. }
        )
    }

    /// Its message with `<key>` where it names a blob: for logs, which more people read than may know what is
    /// stored. What the store itself logs is so.
    ///
    /// ```
    /// use graviton_engine::port::{BinaryKey, StorageError};
    ///
    /// let key = BinaryKey::new("patients/4711")?;
    /// let error = StorageError::NotFound { key };
    /// assert_eq!(error.to_string(), "not found: patients/4711");
    /// assert_eq!(error.without_key(), "not found: <key>");
    /// # Ok::<(), StorageError>(())
    /// ```
    #[must_use]
    pub fn without_key(&self) -> String {
        let mut error = self.clone();
        if let Some(key) = error.key_mut() {
            *key = BinaryKey::new("<key>").unwrap_or_else(|_| key.clone());
        }
        error.to_string()
    }

    fn key_mut(&mut self) -> Option<&mut BinaryKey> {
        match self {
            Self::NotFound { key }
            | Self::InvalidRange { key, .. }
            | Self::MissingRanges { key, .. }
            | Self::LengthMismatch { key, .. }
            | Self::PreconditionFailed { key, .. }
            | Self::SizeMismatch { key, .. }
            | Self::DigestMismatch { key, .. }
            | Self::TooLarge { key, .. }
            | Self::TooFragmented { key, .. }
            | Self::RetentionDenied { key, .. } => Some(key),
            Self::Corruption { key, .. } => key.as_mut(),
            // No `_`: who adds a variant decides.
            Self::InvalidKey { .. }
            | Self::InvalidArgument { .. }
            | Self::NoSuchUpload { .. }
            | Self::InvalidPart { .. }
            | Self::InvalidPartOrder { .. }
            | Self::NoSpace { .. }
            | Self::Io { .. }
            | Self::SectorPoisoned { .. }
            | Self::ReadOnly
            | Self::Closed
            | Self::Locked { .. }
            | Self::NoStore { .. }
            | Self::AlreadyExists { .. }
            | Self::NotBlank { .. }
            | Self::UnsupportedVersion { .. }
            | Self::InvalidStore { .. }
            | Self::TooFewSectors { .. }
            | Self::Insufficient { .. }
            | Self::StillNeeded { .. }
            | Self::File { .. } => None,
        }
    }

    /// Short for [`StorageError::InvalidArgument`].
    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self::InvalidArgument { what: what.into() }
    }
}

/// Why a policy could not decide.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// Fewer sectors can take a copy than are wanted.
    #[error("{wanted} copies are to be placed, {} of {} sectors can take one", chosen.len(), verdicts.len())]
    Insufficient {
        /// How many copies were to be placed.
        wanted: usize,
        /// The sectors that can take one, best first.
        chosen: Vec<u16>,
        /// Every sector that was looked at, by number.
        verdicts: Vec<Verdict>,
    },
    /// A price must be finite and not negative.
    #[error("invalid price: {value} for {what}, must be finite and not negative")]
    InvalidPrice {
        /// Which part of it: `storage`, `read` or `write`.
        what: &'static str,
        /// What was given.
        value: f64,
    },
    /// An argument is out of its range.
    #[error("invalid argument: {what}")]
    InvalidArgument {
        /// Which argument, what it was, and what it may be.
        what: String,
    },
}

impl PolicyError {
    /// What a caller can do about it. Too few sectors are a lack of space if one of them is full.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Insufficient { verdicts, .. } => {
                let is_full = |verdict: &Verdict| matches!(verdict.reason, Reason::Full { .. });
                if verdicts.iter().any(is_full) {
                    ErrorKind::NoSpace
                } else {
                    ErrorKind::Unavailable
                }
            }
            Self::InvalidPrice { .. } | Self::InvalidArgument { .. } => ErrorKind::InvalidInput,
        }
    }

    /// Whether the same call may succeed later without anything else being mended: where space is
    /// lacking, which deletes make.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.kind() == ErrorKind::NoSpace
    }

    /// Short for [`PolicyError::InvalidArgument`].
    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self::InvalidArgument { what: what.into() }
    }
}

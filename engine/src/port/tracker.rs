//! [`RangeTracker`]: which bytes of a blob are there, and who may add the next.

use std::collections::HashMap;
use std::task::Waker;

use super::blob::Durability;
use super::error::{ErrorKind, StorageError};
use super::key::BinaryKey;
use super::op::Op;
use super::span::{RangeSet, Span};
use crate::sync::Mutex;

/// An operation of a [`RangeTracker`].
pub type TrackerOp<T> = Op<T, TrackerError>;

/// The most spans that a tracker keeps of one key, unless it is told otherwise.
pub const FRAGMENTS_MAX: usize = 1 << 24;

/// What is complete of one key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Completed {
    /// The bytes.
    pub set: RangeSet,
    /// How many bytes there will be, if that is known.
    pub total: Option<u64>,
    /// Which life of the key this is: a key that is deleted and comes again has another. Never 0.
    pub generation: u64,
}

impl Completed {
    /// What is not complete of the first `total` bytes.
    #[must_use]
    pub fn pending(&self, total: u64) -> RangeSet {
        self.set.complement(Span::first(total))
    }

    /// Whether the total is known and all of it is complete.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.total
            .is_some_and(|total| self.set.covers(Span::first(total)))
    }
}

/// What a [`RangeTracker::compare_and_set`] expects to find: a set, and the generation if it was seen
/// in one. What an earlier call handed back is an expectation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expected {
    /// The bytes that are complete.
    pub set: RangeSet,
    /// The generation; `None`: any.
    pub generation: Option<u64>,
}

impl From<RangeSet> for Expected {
    fn from(set: RangeSet) -> Self {
        Self {
            set,
            generation: None,
        }
    }
}

impl From<Completed> for Expected {
    fn from(completed: Completed) -> Self {
        Self {
            set: completed.set,
            generation: Some(completed.generation),
        }
    }
}

/// How a set is changed. The default: durable, the total as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct TrackOptions {
    /// How many bytes there will be. Once it is known it stays the same; of a blob it is its size.
    pub total: Option<u64>,
    /// What the acknowledgement promises.
    pub durability: Durability,
}

/// What a [`RangeTracker::mark_complete`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marked {
    /// What was not complete before.
    pub new: RangeSet,
    /// What is complete now.
    pub completed: Completed,
}

/// Why an operation on a tracker failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TrackerError {
    /// Nothing is known of the key.
    #[error("nothing is tracked of {key}")]
    NotFound {
        /// The key that was asked for.
        key: BinaryKey,
    },
    /// The set is another than was expected, or of another generation; nothing changed.
    #[error("{key} has {} complete in {} spans (generation {}), not what was expected", actual.set.len(), actual.set.spans().len(), actual.generation)]
    Mismatch {
        /// The key.
        key: BinaryKey,
        /// What it has: what the next attempt may expect.
        actual: Box<Completed>,
    },
    /// Bytes would be marked that were never written; nothing changed.
    #[error("{missing} of {key} was never written")]
    NotWritten {
        /// The key.
        key: BinaryKey,
        /// What was never written of what would be marked.
        missing: RangeSet,
    },
    /// The set would be made of too many spans; nothing changed.
    #[error("{key} would have {fragments} spans, at most {limit} are tracked")]
    TooFragmented {
        /// The key.
        key: BinaryKey,
        /// How many it would be.
        fragments: usize,
        /// The most there may be.
        limit: usize,
    },
    /// The store could not do it.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl TrackerError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Mismatch { .. } => ErrorKind::Conflict,
            Self::NotWritten { .. } => ErrorKind::Incomplete,
            Self::TooFragmented { .. } => ErrorKind::InvalidInput,
            Self::Storage(error) => error.kind(),
        }
    }

    /// Whether the same call may succeed later without anything else being mended. After a mismatch
    /// another expectation is called for.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Mismatch { .. } | Self::NotWritten { .. } => true,
            Self::NotFound { .. } | Self::TooFragmented { .. } => false,
            Self::Storage(error) => error.is_retryable(),
        }
    }
}

/// Hands out what is complete of a key whenever that changes; made by [`RangeTracker::observe`].
pub trait ObserveRanges: Send {
    /// What is complete, once it is something else than what was handed out last; `None` when the
    /// key is gone. Of changes that follow each other quickly the last is enough.
    fn next(&mut self) -> TrackerOp<Option<Completed>>;
}

/// Which bytes are complete, by key: exact to the byte, linearizable, and as durable as asked.
///
/// There are two kinds. The tracker of a store's own blobs
/// ([`MutableObjectStore::ranges`](super::MutableObjectStore::ranges)) follows what is written to
/// them: what it says is complete can be read. A tracker of bytes held elsewhere
/// ([`MutableObjectStore::ranges_elsewhere`](super::MutableObjectStore::ranges_elsewhere)) is told,
/// and creates a key when it first hears of it.
pub trait RangeTracker: Send + Sync {
    /// Adds `ranges` to what is complete, and says what was new. What is complete already is no
    /// error and no record.
    ///
    /// # Errors
    /// `NotFound` (of a blob), `NotWritten`, `TooFragmented`; `InvalidArgument` if a range lies past
    /// the total, or the total is known to be another.
    fn mark_complete(
        &self,
        key: &BinaryKey,
        ranges: &RangeSet,
        options: TrackOptions,
    ) -> TrackerOp<Marked>;

    /// What is complete.
    ///
    /// # Errors
    /// `NotFound`.
    fn get_completed(&self, key: &BinaryKey) -> TrackerOp<Completed>;

    /// What is not complete of the first `total` bytes; without one, of the total that is known.
    ///
    /// # Errors
    /// `NotFound`, `InvalidArgument` if there is no total.
    fn get_pending(&self, key: &BinaryKey, total: Option<u64>) -> TrackerOp<RangeSet>;

    /// Whether the total is known and all of it is complete: of a key of size 0, at once.
    ///
    /// # Errors
    /// `NotFound`.
    fn is_complete(&self, key: &BinaryKey) -> TrackerOp<bool>;

    /// Makes `update` what is complete, if that was `expected` until now: compared as sets, whatever
    /// pieces they are given in. If it was not, the error has what it is, for the next attempt. If
    /// `update` is what is expected, nothing is written. It may take bytes away: of a blob they are
    /// holes at once.
    ///
    /// Of a key that nothing is known of, the empty set is expected; it is created then, unless it
    /// is a blob's.
    ///
    /// # Errors
    /// `Mismatch`; as [`RangeTracker::mark_complete`].
    fn compare_and_set(
        &self,
        key: &BinaryKey,
        expected: Expected,
        update: &RangeSet,
        options: TrackOptions,
    ) -> TrackerOp<Completed>;

    /// Waits until all of `range` is complete.
    ///
    /// # Errors
    /// `NotFound`, also if the key goes away meanwhile.
    fn wait_for(&self, key: &BinaryKey, range: Span) -> TrackerOp<()>;

    /// Watches what is complete; the first that is handed out is what is now.
    ///
    /// # Errors
    /// `NotFound`.
    fn observe(&self, key: &BinaryKey) -> TrackerOp<Box<dyn ObserveRanges>>;

    /// Forgets a key, and says whether there was one.
    ///
    /// # Errors
    /// `InvalidArgument` of a blob: it is forgotten when it is deleted.
    fn forget(&self, key: &BinaryKey) -> TrackerOp<bool>;
}

/// Checks ranges against the total.
///
/// # Errors
/// `InvalidArgument` if it is known to be another, or a range lies past it.
pub fn resolve_total(
    key: &BinaryKey,
    known: Option<u64>,
    given: Option<u64>,
    ranges: &RangeSet,
) -> Result<Option<u64>, TrackerError> {
    if let (Some(known), Some(given)) = (known, given)
        && known != given
    {
        return Err(StorageError::invalid(format!(
            "{key} has a total of {known} bytes, not {given}"
        ))
        .into());
    }
    let total = known.or(given);
    match total {
        Some(total) if ranges.end() > total => Err(StorageError::invalid(format!(
            "a range of {key} ends at {}, its total is {total}",
            ranges.end()
        ))
        .into()),
        _ => Ok(total),
    }
}

/// Those who wait for changes, by key.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    by_key: Mutex<HashMap<BinaryKey, Vec<Waker>>>,
}

impl Watches {
    /// Wakes `waker` at the next change of `key`. Whoever calls it looks at the key once more after.
    pub(crate) fn watch(&self, key: &BinaryKey, waker: &Waker) {
        let mut by_key = self.by_key.lock();
        let wakers = by_key.entry(key.clone()).or_default();
        if !wakers.iter().any(|known| known.will_wake(waker)) {
            wakers.push(waker.clone());
        }
    }

    /// Something changed about `key`. Must be called with no lock held that those who wait take.
    pub(crate) fn changed(&self, key: &BinaryKey) {
        let wakers = self.by_key.lock().remove(key);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

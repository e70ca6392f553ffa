//! [`RangeTracker`]: which bytes of a blob are there, and who may add the next.

use std::collections::HashMap;
use std::sync::Arc;

use super::blob::Durability;
use super::error::{ErrorKind, StorageError};
use super::key::BinaryKey;
use super::latch::Latch;
use super::op::Op;
use super::span::{RangeSet, Span};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicUsize, Ordering};

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
    /// Which life of the key this is: a key that is deleted and comes again has another. 0 if nothing is
    /// known of the key, which only a `Mismatch` says.
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
    /// How many bytes there will be, less than 2^64-1. Once it is known it stays the same; of a blob it
    /// is its size.
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
    ///
    /// # Errors
    /// `ReadOnly`, `Closed` or `SectorPoisoned` if there will be no change.
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
    /// `NotFound`, also if the key goes away meanwhile; `ReadOnly`, `Closed` or `SectorPoisoned` if it
    /// can't come any more.
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
/// `InvalidArgument` if it is known to be another, a range lies past it, or it is 2^64-1.
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
        // It stands for none where it is written down.
        Some(u64::MAX) => {
            Err(StorageError::invalid(format!("{key} with a total of {}", u64::MAX)).into())
        }
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
    /// How many keys there are: the common case is none, and costs one load.
    count: AtomicUsize,
    by_key: Mutex<HashMap<BinaryKey, Arc<Latch>>>,
}

impl Watches {
    /// Hears of the next change of `key`. Whoever calls it looks at the key once more after.
    pub(crate) fn listen(self: &Arc<Self>, key: &BinaryKey) -> Listener {
        let mut by_key = self.by_key.lock();
        let latch = Arc::clone(by_key.entry(key.clone()).or_default());
        self.count.store(by_key.len(), Ordering::Release);
        Listener {
            watches: Arc::clone(self),
            key: key.clone(),
            latch: Some(latch),
        }
    }

    /// Whether nobody waits for any change.
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Something changed about `key`. Must be called with no lock held that those who wait take.
    pub(crate) fn changed(&self, key: &BinaryKey) {
        if self.is_empty() {
            return;
        }
        let latch = self.edit(|by_key| by_key.remove(key));
        if let Some(latch) = latch {
            latch.raise();
        }
    }

    /// Something changed about every key. As [`Watches::changed`].
    pub(crate) fn all_changed(&self) {
        let latches = self.edit(std::mem::take);
        latches.into_values().for_each(|latch| latch.raise());
    }

    fn edit<T>(&self, edit: impl FnOnce(&mut HashMap<BinaryKey, Arc<Latch>>) -> T) -> T {
        let mut by_key = self.by_key.lock();
        let edited = edit(&mut by_key);
        self.count.store(by_key.len(), Ordering::Release);
        edited
    }
}

/// Hears of one change of a key.
#[derive(Debug)]
pub(crate) struct Listener {
    watches: Arc<Watches>,
    key: BinaryKey,
    /// `None` once it is dropped.
    latch: Option<Arc<Latch>>,
}

impl Listener {
    /// Waits for it.
    pub(crate) async fn changed(self) {
        if let Some(latch) = &self.latch {
            latch.raised().await;
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let (watches, latch) = (Arc::clone(&self.watches), &mut self.latch);
        watches.edit(|by_key| {
            // Under the lock, so that of two one is the last. Then only the map has it.
            drop(latch.take());
            if by_key
                .get(&self.key)
                .is_some_and(|latch| Arc::strong_count(latch) == 1)
            {
                by_key.remove(&self.key);
            }
        });
    }
}

/// What all of a tracker's waiting is made of.
pub(crate) trait Look: Clone + Send + Sync + 'static {
    /// See [`Look::expect_change`].
    type UnderWay: Send;

    /// What is complete of a key.
    fn look(&self, key: &BinaryKey) -> TrackerOp<Completed>;

    /// Hears of the next change of it.
    fn listen(&self, key: &BinaryKey) -> Listener;

    /// Before it is waited for a change: what is under way goes on without whoever waits, while this is kept.
    ///
    /// # Errors
    /// Why there will be none.
    fn expect_change(&self, key: &BinaryKey) -> Result<Self::UnderWay, TrackerError>;
}

/// See [`RangeTracker::get_pending`].
pub(crate) fn get_pending(
    tracker: &impl Look,
    key: &BinaryKey,
    total: Option<u64>,
) -> TrackerOp<RangeSet> {
    let (look, key) = (tracker.look(key), key.clone());
    Op::start(async move {
        let completed = look.await?;
        let total = total.or(completed.total).ok_or_else(|| {
            StorageError::invalid(format!("no total is known of {key}, and none was given"))
        })?;
        Ok(completed.pending(total))
    })
}

/// See [`RangeTracker::is_complete`].
pub(crate) fn is_complete(tracker: &impl Look, key: &BinaryKey) -> TrackerOp<bool> {
    let look = tracker.look(key);
    Op::start(async move { look.await.map(|completed| completed.is_complete()) })
}

/// See [`RangeTracker::wait_for`].
pub(crate) fn wait_for(tracker: &impl Look, key: &BinaryKey, range: Span) -> TrackerOp<()> {
    let (tracker, key) = (tracker.clone(), key.clone());
    Op::start(async move {
        let mut life = None;
        loop {
            let listener = tracker.listen(&key);
            let now = tracker.look(&key).await?;
            if *life.get_or_insert(now.generation) != now.generation {
                return Err(TrackerError::NotFound { key });
            }
            if now.set.covers(range) {
                return Ok(());
            }
            let _under_way = tracker.expect_change(&key)?;
            listener.changed().await;
        }
    })
}

/// See [`RangeTracker::observe`].
pub(crate) fn observe(tracker: &impl Look, key: &BinaryKey) -> TrackerOp<Box<dyn ObserveRanges>> {
    let (tracker, key) = (tracker.clone(), key.clone());
    let look = tracker.look(&key);
    Op::start(async move {
        let generation = look.await?.generation;
        let observer: Box<dyn ObserveRanges> = Box::new(Observer {
            tracker,
            key,
            generation,
            last: Arc::default(),
        });
        Ok(observer)
    })
}

struct Observer<T> {
    tracker: T,
    key: BinaryKey,
    generation: u64,
    /// What was handed out last.
    last: Arc<Mutex<Option<Completed>>>,
}

impl<T: Look> ObserveRanges for Observer<T> {
    fn next(&mut self) -> TrackerOp<Option<Completed>> {
        let (tracker, key, last) = (self.tracker.clone(), self.key.clone(), self.last.clone());
        let generation = self.generation;
        Op::start(async move {
            loop {
                let listener = tracker.listen(&key);
                let now = match tracker.look(&key).await {
                    Ok(now) => Some(now).filter(|now| now.generation == generation),
                    Err(TrackerError::NotFound { .. }) => None,
                    Err(error) => return Err(error),
                };
                if now.is_none() || now != *last.lock() {
                    last.lock().clone_from(&now);
                    return Ok(now);
                }
                let _under_way = tracker.expect_change(&key)?;
                listener.changed().await;
            }
        })
    }
}

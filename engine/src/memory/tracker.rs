//! [`RangeTracker`] in memory: of what is written of a store's blobs, and of bytes held elsewhere.

use std::sync::Arc;

use super::Shared;
use super::state::State;
use crate::port::tracker::{self, Listener, Look, resolve_total};
use crate::port::{
    BinaryKey, Completed, Expected, Marked, ObserveRanges, Op, Precondition, RangeSet,
    RangeTracker, Span, StorageError, TrackOptions, TrackerError, TrackerOp,
};

/// Whose bytes are tracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Blobs,
    Elsewhere,
}

/// A tracker over the state of a store.
#[derive(Debug, Clone)]
pub(super) struct MemoryTracker {
    pub(super) shared: Arc<Shared>,
    pub(super) of: Of,
}

impl MemoryTracker {
    fn find(&self, state: &State, key: &BinaryKey) -> Option<Completed> {
        match self.of {
            Of::Elsewhere => state.elsewhere.get(key).cloned(),
            Of::Blobs => state.blobs.get(key).map(|version| Completed {
                set: version.content.written_set(),
                total: Some(version.size()),
                generation: version.generation,
            }),
        }
    }

    fn completed(&self, key: &BinaryKey) -> Result<Completed, TrackerError> {
        let not_found = || TrackerError::NotFound { key: key.clone() };
        self.find(&self.shared.state.lock(), key)
            .ok_or_else(not_found)
    }

    /// What a change begins with: nothing, of a key that is not a blob's and not known yet.
    fn before_change(&self, state: &State, key: &BinaryKey) -> Result<Completed, TrackerError> {
        match self.find(state, key) {
            Some(known) => Ok(known),
            None if self.of == Of::Elsewhere => Ok(Completed::default()),
            None => Err(TrackerError::NotFound { key: key.clone() }),
        }
    }

    fn mark(
        &self,
        state: &mut State,
        key: &BinaryKey,
        ranges: &RangeSet,
        options: TrackOptions,
    ) -> Result<Marked, TrackerError> {
        let before = self.before_change(state, key)?;
        let update = before.set.union(ranges);
        let new = ranges.difference(&before.set);
        let completed = self.change(state, key, before, &update, options)?;
        Ok(Marked { new, completed })
    }

    fn set(
        &self,
        state: &mut State,
        key: &BinaryKey,
        expected: &Expected,
        update: &RangeSet,
        options: TrackOptions,
    ) -> Result<Completed, TrackerError> {
        let before = self.before_change(state, key)?;
        let other_life = |generation| generation != before.generation;
        if expected.set != before.set || expected.generation.is_some_and(other_life) {
            let (key, actual) = (key.clone(), Box::new(before));
            return Err(TrackerError::Mismatch { key, actual });
        }
        self.change(state, key, before, update, options)
    }

    /// Makes `update` of what was there `before`.
    fn change(
        &self,
        state: &mut State,
        key: &BinaryKey,
        before: Completed,
        update: &RangeSet,
        options: TrackOptions,
    ) -> Result<Completed, TrackerError> {
        let after = Completed {
            set: update.clone(),
            total: resolve_total(key, before.total, options.total, update)?,
            generation: before.generation,
        };
        if before.generation != 0 && after == before {
            return Ok(after);
        }
        match self.of {
            Of::Elsewhere => self.keep(state, key, after),
            Of::Blobs => {
                let missing = update.difference(&before.set);
                if !missing.is_empty() {
                    let key = key.clone();
                    return Err(TrackerError::NotWritten { key, missing });
                }
                let mut version = state.existing(key, Precondition::None)?.clone();
                for &span in &before.set.difference(update) {
                    version.content.erase(span);
                }
                version.bytes_changed(self.shared.now());
                state.install(key, version)?;
                Ok(after)
            }
        }
    }

    fn keep(
        &self,
        state: &mut State,
        key: &BinaryKey,
        mut completed: Completed,
    ) -> Result<Completed, TrackerError> {
        let limit = self.shared.options.max_fragments;
        let fragments = completed.set.spans().len();
        if fragments > limit {
            return Err(TrackerError::TooFragmented {
                key: key.clone(),
                fragments,
                limit,
            });
        }
        state.lsn += 1;
        if completed.generation == 0 {
            completed.generation = state.lsn;
        }
        state.elsewhere.insert(key.clone(), completed.clone());
        state.touched.push(key.clone());
        Ok(completed)
    }
}

impl Look for MemoryTracker {
    type UnderWay = ();

    fn expect_change(&self, _key: &BinaryKey) -> Result<(), TrackerError> {
        Ok(())
    }

    fn look(&self, key: &BinaryKey) -> TrackerOp<Completed> {
        Op::ready(self.completed(key))
    }

    fn listen(&self, key: &BinaryKey) -> Listener {
        self.shared.watches.listen(key)
    }
}

impl RangeTracker for MemoryTracker {
    fn mark_complete(
        &self,
        key: &BinaryKey,
        ranges: &RangeSet,
        options: TrackOptions,
    ) -> TrackerOp<Marked> {
        let mark = |state: &mut State| self.mark(state, key, ranges, options);
        Op::ready(self.shared.change(mark))
    }

    fn get_completed(&self, key: &BinaryKey) -> TrackerOp<Completed> {
        self.look(key)
    }

    fn get_pending(&self, key: &BinaryKey, total: Option<u64>) -> TrackerOp<RangeSet> {
        tracker::get_pending(self, key, total)
    }

    fn is_complete(&self, key: &BinaryKey) -> TrackerOp<bool> {
        tracker::is_complete(self, key)
    }

    fn compare_and_set(
        &self,
        key: &BinaryKey,
        expected: Expected,
        update: &RangeSet,
        options: TrackOptions,
    ) -> TrackerOp<Completed> {
        let set = |state: &mut State| self.set(state, key, &expected, update, options);
        Op::ready(self.shared.change(set))
    }

    fn wait_for(&self, key: &BinaryKey, range: Span) -> TrackerOp<()> {
        tracker::wait_for(self, key, range)
    }

    fn observe(&self, key: &BinaryKey) -> TrackerOp<Box<dyn ObserveRanges>> {
        tracker::observe(self, key)
    }

    fn forget(&self, key: &BinaryKey) -> TrackerOp<bool> {
        if self.of == Of::Blobs {
            let what = format!("{key} is a blob: it is forgotten when it is deleted");
            return Op::fail(StorageError::invalid(what));
        }
        Op::ready(self.shared.change(|state| {
            state.touched.push(key.clone());
            Ok(state.elsewhere.remove(key).is_some())
        }))
    }
}

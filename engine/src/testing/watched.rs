//! An operation under way, and when its answer was seen.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use crate::port::{StorageError, StoreOp};

/// What a store answered.
type Answer<T> = Result<T, StorageError>;

/// An operation under way, until somebody has seen its answer.
pub(super) struct Watched<T> {
    op: StoreOp<T>,
    /// Its answer, and how many events the disks had seen by then.
    seen: Option<(Answer<T>, usize)>,
}

impl<T: Unpin> Watched<T> {
    pub(super) fn new(op: StoreOp<T>) -> Self {
        Self { op, seen: None }
    }

    /// Looks whether the answer is there, after so many events.
    pub(super) fn look(&mut self, events: usize) {
        if self.seen.is_none() {
            let mut context = Context::from_waker(Waker::noop());
            if let Poll::Ready(answer) = Pin::new(&mut self.op).poll(&mut context) {
                self.seen = Some((answer, events));
            }
        }
    }

    /// Waits for the answer, and says after how many events it was seen.
    pub(super) fn wait(self, events: impl FnOnce() -> usize) -> (Answer<T>, usize) {
        self.seen.unwrap_or_else(|| {
            let answer = self.op.wait();
            (answer, events())
        })
    }
}

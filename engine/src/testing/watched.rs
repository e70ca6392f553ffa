//! An operation under way, and when its answer was there.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use crate::port::{StorageError, StoreOp};

/// Tells how many events the disks of a subject have seen.
pub type EventCounter = Arc<dyn Fn() -> usize + Send + Sync>;

/// What a store says, and how many events the disks had seen when it would have said that.
type Dated<T> = (Result<T, StorageError>, usize);

/// An operation under way.
pub(super) struct Watched<T> {
    op: StoreOp<T>,
    watcher: Arc<Watcher>,
    /// Its answer, if it was there when it was asked for it.
    answer: Option<Dated<T>>,
}

/// Notes when an operation has something new to say.
struct Watcher {
    events: EventCounter,
    /// When it last had, since it was asked for it; `NEVER` if it had not.
    woken: AtomicUsize,
}

const NEVER: usize = usize::MAX;

impl Wake for Watcher {
    fn wake(self: Arc<Self>) {
        self.woken.store((self.events)(), Ordering::SeqCst);
    }
}

impl<T: Unpin> Watched<T> {
    pub(super) fn new(op: StoreOp<T>, events: EventCounter) -> Self {
        let watcher = Watcher {
            events,
            woken: AtomicUsize::new(NEVER),
        };
        Self {
            op,
            watcher: Arc::new(watcher),
            answer: None,
        }
    }

    /// From now on it is noted when it has something to say. What is queued begins by that.
    pub(super) fn watch(&mut self) {
        let woken = self.watcher.woken.swap(NEVER, Ordering::SeqCst);
        let waker = Waker::from(Arc::clone(&self.watcher));
        let polled = Pin::new(&mut self.op).poll(&mut Context::from_waker(&waker));
        if let Poll::Ready(answer) = polled {
            let at = match woken {
                NEVER => (self.watcher.events)(),
                at => at,
            };
            self.answer = Some((answer, at));
        }
    }

    /// Waits for its answer.
    pub(super) fn wait(mut self) -> Dated<T> {
        if self.watcher.woken.load(Ordering::SeqCst) != NEVER {
            self.watch();
        }
        self.answer.unwrap_or_else(|| {
            let answer = self.op.wait();
            (answer, (self.watcher.events)())
        })
    }
}

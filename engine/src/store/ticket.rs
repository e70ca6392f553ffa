//! A [`Ticket`]: the answer to a queued commit, for whoever polls it, blocking or async.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::port::op::{Driver, is_starting, offer_driver};
use crate::sync::Mutex;

/// What a waiter of a commit can do for its progress.
pub trait CommitSource: Send + Sync {
    /// What a blocked thread should drive.
    fn driver(&self) -> &Arc<dyn Driver>;
    /// Somebody waits for what is queued: it is to be written.
    fn begin(&self);
    /// Nobody blocks on the commit; see that it completes all the same.
    fn complete_in_background(&self);
}

#[derive(Debug)]
enum State<T> {
    /// Everyone who polled since the last wake: one answer can be awaited through several Ops.
    Pending(Vec<Waker>),
    Done(Option<T>),
}

/// The waiting half. Dropping it gives up the answer, not the commit.
pub struct Ticket<T> {
    state: Arc<Mutex<State<T>>>,
    source: Arc<dyn CommitSource>,
}

/// The answering half.
#[derive(Debug)]
pub struct Answer<T> {
    state: Arc<Mutex<State<T>>>,
}

/// Makes a ticket and its answer.
pub fn ticket<T>(source: Arc<dyn CommitSource>) -> (Ticket<T>, Answer<T>) {
    let state = Arc::new(Mutex::new(State::Pending(Vec::new())));
    (
        Ticket {
            state: Arc::clone(&state),
            source,
        },
        Answer { state },
    )
}

impl<T> Answer<T> {
    /// Answers, and wakes the waiter.
    pub fn send(self, value: T) {
        let before = std::mem::replace(&mut *self.state.lock(), State::Done(Some(value)));
        if let State::Pending(wakers) = before {
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    /// Adds what wakes the waiters to `wakers`, to be woken once no lock is held: then they look
    /// again at what they could drive.
    pub fn take_wakers(&self, wakers: &mut Vec<Waker>) {
        if let State::Pending(waiting) = &mut *self.state.lock() {
            wakers.append(waiting);
        }
    }
}

impl<T> Future for Ticket<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        match &mut *self.state.lock() {
            State::Done(value) => return Poll::Ready(value.take().expect("a ticket answers once")),
            State::Pending(wakers) => {
                if !wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                    wakers.push(context.waker().clone());
                }
            }
        }
        if !is_starting() {
            self.source.begin();
        }
        if !offer_driver(self.source.driver()) {
            self.source.complete_in_background();
        }
        Poll::Pending
    }
}

impl<T> Drop for Ticket<T> {
    fn drop(&mut self) {
        if matches!(&*self.state.lock(), State::Pending(_)) {
            self.source.begin();
            self.source.complete_in_background();
        }
    }
}

//! A [`Ticket`]: the answer to a queued commit, for whoever polls it, blocking or async.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::io::Reaping;
use crate::port::op::{Driver, is_starting, offer_driver};
use crate::sync::Mutex;

/// What a waiter of a commit can do for its progress.
pub trait CommitSource: Send + Sync {
    /// What a blocked thread should drive.
    fn driver(&self) -> &Arc<dyn Driver>;
    /// Somebody waits for what is queued: it is to be written.
    fn begin(&self);
    /// Nobody blocks on the commit: it completes all the same, while this is kept.
    fn complete_in_background(&self) -> Vec<Reaping>;
}

#[derive(Debug)]
enum State<T> {
    Pending {
        /// Everyone who polled since the last wake: one answer can be awaited through several Ops.
        wakers: Vec<Waker>,
        /// Keeps the commit going where one of them does not block, or has gone.
        reaping: Vec<Reaping>,
    },
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
    let state = Arc::new(Mutex::new(State::Pending {
        wakers: Vec::new(),
        reaping: Vec::new(),
    }));
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
        if let State::Pending { wakers, .. } = before {
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    /// Adds what wakes the waiters to `wakers`, to be woken once no lock is held: then they look
    /// again at what they could drive.
    pub fn take_wakers(&self, wakers: &mut Vec<Waker>) {
        if let State::Pending {
            wakers: waiting, ..
        } = &mut *self.state.lock()
        {
            wakers.append(waiting);
        }
    }
}

impl<T> Ticket<T> {
    fn complete_in_background(&self) {
        let mut kept = self.source.complete_in_background();
        // The answer may be there by now.
        if let State::Pending { reaping, .. } = &mut *self.state.lock() {
            std::mem::swap(reaping, &mut kept);
        }
    }
}

impl<T> Future for Ticket<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        match &mut *self.state.lock() {
            State::Done(value) => return Poll::Ready(value.take().expect("a ticket answers once")),
            State::Pending { wakers, .. } => {
                if !wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                    wakers.push(context.waker().clone());
                }
            }
        }
        if !is_starting() {
            self.source.begin();
        }
        if !offer_driver(self.source.driver()) {
            self.complete_in_background();
        }
        Poll::Pending
    }
}

impl<T> Drop for Ticket<T> {
    fn drop(&mut self) {
        if matches!(&*self.state.lock(), State::Pending { .. }) {
            self.source.begin();
            self.complete_in_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::CompletionSource;
    use crate::port::op::{Signal, wait_for};
    use crate::sync::atomic::{AtomicIsize, Ordering};

    /// Counts how many want it to reap in the background.
    #[derive(Default)]
    struct Ring {
        wanted: AtomicIsize,
    }

    impl Driver for Ring {
        fn drive(&self, signal: &Signal) {
            signal.park();
        }
    }

    impl CompletionSource for Ring {
        fn want_background(&self) -> bool {
            self.wanted.fetch_add(1, Ordering::SeqCst);
            true
        }

        fn background_done(&self) {
            self.wanted.fetch_sub(1, Ordering::SeqCst);
        }
    }

    struct Source {
        ring: Arc<Ring>,
        driver: Arc<dyn Driver>,
    }

    impl CommitSource for Source {
        fn driver(&self) -> &Arc<dyn Driver> {
            &self.driver
        }

        fn begin(&self) {}

        fn complete_in_background(&self) -> Vec<Reaping> {
            vec![Reaping::by(Arc::<Ring>::clone(&self.ring))]
        }
    }

    struct Bench {
        ring: Arc<Ring>,
        source: Arc<dyn CommitSource>,
    }

    impl Bench {
        fn new() -> Self {
            let ring = Arc::new(Ring::default());
            let source = Source {
                ring: Arc::clone(&ring),
                driver: Arc::<Ring>::clone(&ring),
            };
            Self {
                ring,
                source: Arc::new(source),
            }
        }

        fn ticket(&self) -> (Ticket<u32>, Answer<u32>) {
            ticket(Arc::clone(&self.source))
        }

        fn wanted(&self) -> isize {
            self.ring.wanted.load(Ordering::SeqCst)
        }
    }

    fn polled(ticket: &mut Ticket<u32>) -> Poll<u32> {
        Pin::new(ticket).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn what_an_executor_polls_is_reaped_in_the_background_until_it_is_answered() {
        let bench = Bench::new();
        let (mut ticket, answer) = bench.ticket();
        assert_eq!(bench.wanted(), 0);
        for _ in 0..3 {
            assert_eq!(polled(&mut ticket), Poll::Pending);
            assert_eq!(bench.wanted(), 1);
        }
        answer.send(7);
        assert_eq!(bench.wanted(), 0);
        assert_eq!(polled(&mut ticket), Poll::Ready(7));
        drop(ticket);
        assert_eq!(bench.wanted(), 0);
    }

    #[test]
    fn what_is_dropped_is_reaped_in_the_background_until_it_is_answered() {
        let bench = Bench::new();
        let (ticket, answer) = bench.ticket();
        drop(ticket);
        assert_eq!(bench.wanted(), 1);
        answer.send(7);
        assert_eq!(bench.wanted(), 0);
    }

    #[test]
    fn who_waits_reaps_alone() {
        let bench = Bench::new();
        let (ticket, answer) = bench.ticket();
        let answering = crate::sync::thread::spawn(move || answer.send(7));
        assert_eq!(wait_for(ticket), 7);
        answering.join().expect("it answers");
        assert_eq!(bench.wanted(), 0);
    }
}

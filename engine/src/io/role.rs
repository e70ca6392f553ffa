//! Who reaps a ring: the *reaper role*, held by at most one thread at a time.
//!
//! A ring's completions wait in a queue that one thread at a time may empty, and one thread
//! sleeping in the kernel is enough to learn of them. That thread is the *reaper*: by preference
//! one that waits for a completion of its own, so that it pays no hand-off. The others are parked;
//! the reaper wakes each when its operation is over, and passes the role on when its own is.
//!
//! # Why no wake-up is lost
//!
//! Everything below happens under one lock, and keeps this true whenever the lock is free:
//!
//! > If requests are outstanding and nobody holds the role, then nobody who would reap is idle:
//! > there are no parked waiters and no background interest, or a *nominee* is on its way.
//!
//! - A thread parks only after [`enter`](Role::enter) registered it, which happens only when the
//!   role is held or nothing is outstanding.
//! - What may falsify the rule calls `nominate`: giving up the role, counting a new request, new
//!   background interest, and a nominee that leaves without having taken the role.
//! - `nominate` takes one waiter off the list and unparks it; failing that, and if there is
//!   background interest, it notifies the background thread. At most one waiter is nominated at a
//!   time, and it always reports back ([`retire`](Role::retire)), since it was unparked.
//! - The background thread takes the role if it is free, requests are outstanding, there is
//!   interest, and no waiter is nominated: waiters go first.
//!
//! A parked thread is also unparked when its own signal is raised, whatever the role does.
//!
//! Requests are counted after they are in the ring's table, and completions after they left it. So
//! the count lags, may be negative for a moment, and is right once both sides have spoken; the
//! late side is the one that nominates.

use crate::sync::thread::{self, Thread, ThreadId};
use crate::sync::{Condvar, Mutex};

#[derive(Debug, Default)]
struct State {
    holder: Option<ThreadId>,
    /// A waiter was taken off the list and has not reported back.
    nominated: bool,
    outstanding: isize,
    interest: isize,
    stopping: bool,
    waiters: Vec<(u64, Thread)>,
    waiter_next: u64,
}

/// Whom to wake once the lock is released.
#[must_use]
enum Wake {
    Nobody,
    Waiter(Thread),
    Background,
}

impl State {
    fn nominate(&mut self) -> Wake {
        if self.holder.is_some() || self.nominated || self.outstanding <= 0 {
            return Wake::Nobody;
        }
        // The newest waiter: it is likely to wait longest, and its cache is warmest.
        if let Some((_, thread)) = self.waiters.pop() {
            self.nominated = true;
            return Wake::Waiter(thread);
        }
        if self.interest > 0 {
            return Wake::Background;
        }
        Wake::Nobody
    }

    fn is_free_for_background(&self) -> bool {
        self.holder.is_none() && !self.nominated && self.outstanding > 0 && self.interest > 0
    }
}

/// What a thread that wants progress should do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It holds the role now: reap, then [`release`](Role::release).
    Reap,
    /// It has held the role all along and is here again from inside of a delivery: reap, but
    /// leave the role alone.
    ReapNested,
    /// It is registered: park, then [`retire`](Role::retire) with this number.
    Park(u64),
}

#[derive(Debug, Default)]
pub(super) struct Role {
    state: Mutex<State>,
    background: Condvar,
}

impl Role {
    fn wake(&self, wake: Wake) {
        match wake {
            Wake::Nobody => {}
            Wake::Waiter(thread) => thread.unpark(),
            Wake::Background => {
                self.background.notify_one();
            }
        }
    }

    /// Counts a request that is in the ring's table.
    pub(super) fn submitted(&self) {
        let mut state = self.state.lock();
        state.outstanding += 1;
        let wake = state.nominate();
        drop(state);
        self.wake(wake);
    }

    /// Counts requests that left the table; called by the holder.
    pub(super) fn completed(&self, count: usize) {
        let count = isize::try_from(count).expect("a batch is no larger than a ring");
        self.state.lock().outstanding -= count;
    }

    /// Takes the role if it is free and there is something to reap; else registers `thread`,
    /// which is the calling one.
    pub(super) fn enter(&self, thread: &Thread) -> Turn {
        let mut state = self.state.lock();
        if state.holder == Some(thread.id()) {
            return Turn::ReapNested;
        }
        if state.holder.is_none() && state.outstanding > 0 {
            state.holder = Some(thread.id());
            return Turn::Reap;
        }
        let number = state.waiter_next;
        state.waiter_next += 1;
        state.waiters.push((number, thread.clone()));
        Turn::Park(number)
    }

    /// Ends the registration under `number`; the caller either goes away or enters again.
    pub(super) fn retire(&self, number: u64) {
        let mut state = self.state.lock();
        if let Some(place) = state.waiters.iter().position(|(other, _)| *other == number) {
            state.waiters.swap_remove(place);
            return;
        }
        // It was nominated. If it enters again it takes the role at once, unless another one does
        // first; if it goes away, [`leave`](Role::leave) nominates the next.
        state.nominated = false;
    }

    /// The caller goes away without the role: somebody else may be needed.
    pub(super) fn leave(&self) {
        let wake = self.state.lock().nominate();
        self.wake(wake);
    }

    /// Gives up the role, and passes it on if anything is outstanding.
    pub(super) fn release(&self) {
        let mut state = self.state.lock();
        debug_assert_eq!(state.holder, Some(thread::current().id()));
        state.holder = None;
        let wake = state.nominate();
        drop(state);
        self.wake(wake);
    }

    /// Wants the background thread to reap whenever no waiter does.
    pub(super) fn add_interest(&self) {
        let mut state = self.state.lock();
        state.interest += 1;
        let wake = state.nominate();
        drop(state);
        self.wake(wake);
    }

    /// Takes back one [`add_interest`](Role::add_interest).
    pub(super) fn remove_interest(&self) {
        self.state.lock().interest -= 1;
    }

    /// Blocks the background thread until it holds the role; `false` when it should end.
    pub(super) fn wait_in_background(&self, thread: &Thread) -> bool {
        let mut state = self.state.lock();
        loop {
            if state.stopping {
                return false;
            }
            if state.is_free_for_background() {
                state.holder = Some(thread.id());
                return true;
            }
            self.background.wait(&mut state);
        }
    }

    /// Makes the background thread end.
    pub(super) fn stop(&self) {
        self.state.lock().stopping = true;
        self.background.notify_all();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.state.lock().stopping
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other_thread() -> Thread {
        thread::spawn(thread::current).join().unwrap()
    }

    #[test]
    fn the_first_to_enter_reaps_and_the_others_park() {
        let (role, here, there) = (Role::default(), thread::current(), other_thread());
        role.submitted();
        assert_eq!(role.enter(&here), Turn::Reap);
        assert_eq!(role.enter(&here), Turn::ReapNested);
        assert_eq!(role.enter(&there), Turn::Park(0));
        role.release();
        assert!(role.state.lock().nominated);
        role.retire(0);
        assert_eq!(role.enter(&there), Turn::Reap);
    }

    #[test]
    fn a_submission_wakes_a_parked_thread() {
        let (role, here) = (Role::default(), thread::current());
        let Turn::Park(number) = role.enter(&here) else {
            panic!("nothing to reap");
        };
        role.submitted();
        thread::park();
        role.retire(number);
        assert_eq!(role.enter(&here), Turn::Reap);
    }

    #[test]
    fn a_nominee_that_leaves_passes_the_nomination_on() {
        let (role, here) = (Role::default(), thread::current());
        let threads = [other_thread(), other_thread(), other_thread()];
        role.submitted();
        assert_eq!(role.enter(&here), Turn::Reap);
        for (number, thread) in (0..).zip(&threads) {
            assert_eq!(role.enter(thread), Turn::Park(number));
        }
        role.release();
        for number in (0..3).rev() {
            assert!(role.state.lock().nominated);
            role.retire(number);
            role.leave();
        }
        let state = role.state.lock();
        assert!(!state.nominated && state.waiters.is_empty());
    }

    #[test]
    fn the_background_lets_waiters_go_first() {
        let (role, here, there) = (Role::default(), thread::current(), other_thread());
        role.submitted();
        role.add_interest();
        assert!(role.wait_in_background(&here));
        assert_eq!(role.enter(&there), Turn::Park(0));
        role.release();
        assert!(!role.state.lock().is_free_for_background());
        role.retire(0);
        role.leave();
        assert!(role.wait_in_background(&here));
    }

    #[test]
    fn completions_may_be_counted_before_their_submissions() {
        let (role, here) = (Role::default(), thread::current());
        role.submitted();
        assert_eq!(role.enter(&here), Turn::Reap);
        role.completed(2);
        role.release();
        role.submitted();
        assert_eq!(role.enter(&here), Turn::Park(0));
    }
}

/// The argument at the top of this file, under a scheduler that tries to lose a wake-up.
#[cfg(all(test, feature = "shuttle"))]
mod interleavings {
    use std::sync::Arc;

    use super::*;
    use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    const SCHEDULES: usize = 3000;

    /// A ring whose kernel completes whatever is in it as soon as somebody looks.
    #[derive(Default)]
    struct Ring {
        role: Role,
        table: Mutex<Vec<(Arc<AtomicBool>, Option<Thread>)>>,
        unwatched: AtomicUsize,
    }

    impl Ring {
        /// As `Ring::submit`: counted after it is in the table.
        fn submit(&self, waiter: Option<Thread>) -> Arc<AtomicBool> {
            let over = Arc::new(AtomicBool::new(false));
            self.table.lock().push((Arc::clone(&over), waiter));
            self.role.submitted();
            over
        }

        /// As `Ring::reap`, by the holder of the role only.
        fn reap(&self) -> usize {
            let finished = std::mem::take(&mut *self.table.lock());
            if !finished.is_empty() {
                self.role.completed(finished.len());
            }
            let count = finished.len();
            for (over, waiter) in finished {
                over.store(true, Ordering::Release);
                match waiter {
                    Some(thread) => thread.unpark(),
                    None => {
                        self.unwatched.fetch_sub(1, Ordering::SeqCst);
                        self.role.remove_interest();
                    }
                }
            }
            count
        }

        /// As `Ring::drive`.
        fn wait(&self, over: &AtomicBool) {
            let me = thread::current();
            while !over.load(Ordering::Acquire) {
                match self.role.enter(&me) {
                    Turn::Reap => {
                        while !over.load(Ordering::Acquire) && self.reap() > 0 {}
                        self.role.release();
                    }
                    Turn::ReapNested => unreachable!("nothing is delivered that waits"),
                    Turn::Park(number) => {
                        if !over.load(Ordering::Acquire) {
                            thread::park();
                        }
                        self.role.retire(number);
                    }
                }
            }
            self.role.leave();
        }

        fn run_in_background(&self) {
            let me = thread::current();
            while self.role.wait_in_background(&me) {
                self.reap();
                self.role.release();
            }
        }
    }

    /// Threads that wait for what they submit, one of which leaves its second request alone, and
    /// a background thread. What hangs is reported as a deadlock.
    fn requests_complete() {
        let ring = Arc::new(Ring::default());
        let background = thread::spawn({
            let ring = Arc::clone(&ring);
            move || ring.run_in_background()
        });
        let waiters: Vec<_> = (0..3)
            .map(|number| {
                let ring = Arc::clone(&ring);
                thread::spawn(move || {
                    if number == 0 {
                        ring.unwatched.fetch_add(1, Ordering::SeqCst);
                        ring.role.add_interest();
                        ring.submit(None);
                    }
                    for _ in 0..2 {
                        let over = ring.submit(Some(thread::current()));
                        ring.wait(&over);
                    }
                })
            })
            .collect();
        for waiter in waiters {
            waiter.join().unwrap();
        }
        // No waiter is left: what nobody waits for is the background's.
        while ring.unwatched.load(Ordering::SeqCst) > 0 {
            thread::yield_now();
        }
        ring.role.stop();
        background.join().unwrap();
        let state = ring.role.state.lock();
        assert!(state.holder.is_none() && !state.nominated && state.waiters.is_empty());
        assert_eq!((state.outstanding, state.interest), (0, 0));
    }

    #[test]
    fn no_wake_up_is_lost() {
        shuttle::check_random(requests_complete, SCHEDULES);
        shuttle::check_pct(requests_complete, SCHEDULES, 3);
    }
}

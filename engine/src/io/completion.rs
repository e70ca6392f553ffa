//! [`IoOp`]: one submitted transfer, and how its completion finds whoever waits for it.
//!
//! A backend makes a pair with [`IoOp::pending`]: it keeps the [`Completer`] beside the request and
//! returns the `IoOp`. Between them lies a cell that is in one of four states. Whoever moves the
//! cell out of `Pending` does so under its lock and acts (wakes, calls back) after releasing it:
//!
//! ```text
//!             poll: waker stored            poll / then: answer taken
//!  Pending ────────complete──────▶ Done ─────────────────────────────▶ Taken
//!     └────then──▶ Callback ──complete: callback runs──────────────────▶ Taken
//! ```
//!
//! *Callbacks.* [`IoOp::then`] on an operation that is over runs the callback at once, unless this
//! thread is already running one: then it is queued and run when that one returns. A chain of
//! callbacks, each submitting the next transfer to a backend that completes inline, is thus a
//! loop and not a recursion. A thread that waits for I/O inside a callback runs what is queued
//! before it blocks (see `run_deferred`).

use std::cell::{Cell as ThreadCell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::buffer::AlignedBuf;
use crate::port::op::{Driver, offer_driver, wait_for};
use crate::sync::{Mutex, thread_local};

/// Where completions come from: something a waiting thread can drive, and that can also be asked
/// to look after itself.
pub trait CompletionSource: Driver {
    /// Asks for completions to be reaped in the background until [`background_done`] was called
    /// as often as this. Returns `false` if nothing can do so at the moment (no thread is to be
    /// had); the call counts all the same.
    ///
    /// [`background_done`]: CompletionSource::background_done
    fn want_background(&self) -> bool;

    /// Takes back one [`want_background`](CompletionSource::want_background).
    fn background_done(&self);
}

/// What it means that a backend's thread could not be started.
pub(super) fn no_thread(error: io::Error) -> io::Error {
    let message = format!("no thread can be started for I/O: {error}");
    io::Error::new(error.kind(), message)
}

/// Completions of writes and syncs are reaped while this lives, even if no thread waits for them.
#[must_use = "it ends when this is dropped"]
#[derive(Default)]
pub struct Reaping {
    source: Option<Arc<dyn CompletionSource>>,
}

impl Reaping {
    /// By a source that has to be asked. Where it can't, whoever looks next for what is under way reaps.
    pub fn by(source: Arc<dyn CompletionSource>) -> Self {
        source.want_background();
        Self {
            source: Some(source),
        }
    }
}

impl Drop for Reaping {
    fn drop(&mut self) {
        if let Some(source) = &self.source {
            source.background_done();
        }
    }
}

impl fmt::Debug for Reaping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reaping").finish_non_exhaustive()
    }
}

type Callback = Box<dyn FnOnce(AlignedBuf, io::Result<()>) + Send>;

enum State {
    Pending {
        waker: Option<Waker>,
        /// The source was asked to reap this operation in the background.
        background: bool,
    },
    Callback {
        callback: Callback,
        background: bool,
    },
    Done(AlignedBuf, io::Result<()>),
    Taken,
}

type Cell = Mutex<State>;

enum Inner {
    Ready(Option<(AlignedBuf, io::Result<()>)>),
    Submitted {
        cell: Arc<Cell>,
        source: Option<Arc<dyn CompletionSource>>,
    },
}

/// A submitted transfer: a future of its buffer and its outcome. `sync` gives an empty buffer.
///
/// Dropping it gives up the answer; the transfer itself still completes, and its buffer is freed
/// only then.
#[must_use = "the transfer runs already, but only its outcome tells whether it succeeded"]
pub struct IoOp {
    inner: Inner,
}

impl IoOp {
    /// A transfer that is over.
    pub fn ready(buffer: AlignedBuf, outcome: io::Result<()>) -> Self {
        Self {
            inner: Inner::Ready(Some((buffer, outcome))),
        }
    }

    /// A transfer under way, and the half by which its backend completes it. Without a `source`
    /// the completion must arrive on its own, whoever waits or not.
    pub fn pending(source: Option<Arc<dyn CompletionSource>>) -> (Self, Completer) {
        let cell = Arc::new(Mutex::new(State::Pending {
            waker: None,
            background: false,
        }));
        let completer = Completer {
            cell: Some(Arc::clone(&cell)),
        };
        let inner = Inner::Submitted { cell, source };
        (Self { inner }, completer)
    }

    /// Hands the outcome to `callback`, on whichever thread completes the transfer, or on this
    /// one if it is over.
    ///
    /// The callback may submit more I/O, and is best brief: the thread that runs it may be the one
    /// that reaps for everybody. So it must not wait: not for I/O, not for another callback, nor
    /// for a lock that another thread holds while that thread waits for I/O. A panic in it is
    /// caught and logged.
    ///
    /// Nothing here makes sure that the completion is reaped: some thread must drive
    /// [`Disk::driver`](super::Disk::driver), or somebody keep what [`Disk::reap_in_background`]
    /// returns.
    ///
    /// [`Disk::reap_in_background`]: super::Disk::reap_in_background
    pub fn then(mut self, callback: impl FnOnce(AlignedBuf, io::Result<()>) + Send + 'static) {
        let inner = std::mem::replace(&mut self.inner, Inner::Ready(None));
        let cell = match inner {
            Inner::Ready(answer) => {
                let (buffer, outcome) = answer.expect("an IoOp answers once");
                return run_or_defer(Box::new(move || callback(buffer, outcome)));
            }
            Inner::Submitted { cell, .. } => cell,
        };
        let mut state = cell.lock();
        match std::mem::replace(&mut *state, State::Taken) {
            State::Pending { background, .. } => {
                *state = State::Callback {
                    callback: Box::new(callback),
                    background,
                };
            }
            State::Done(buffer, outcome) => {
                drop(state);
                run_or_defer(Box::new(move || callback(buffer, outcome)));
            }
            State::Callback { .. } | State::Taken => unreachable!("an IoOp answers once"),
        }
    }
}

impl Future for IoOp {
    type Output = (AlignedBuf, io::Result<()>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let (cell, source) = match &mut self.inner {
            Inner::Ready(answer) => {
                return Poll::Ready(answer.take().expect("an IoOp answers once"));
            }
            Inner::Submitted { cell, source } => (cell, source),
        };
        if let Some(answer) = take_or_store(cell, context.waker()) {
            return Poll::Ready(answer);
        }
        let Some(source) = source else {
            return Poll::Pending;
        };
        let driver: Arc<dyn Driver> = Arc::<dyn CompletionSource>::clone(source);
        if offer_driver(&driver) || request_background(cell, &**source) {
            return Poll::Pending;
        }
        // No thread waits and none could be started: this one drives, and so blocks its executor.
        Poll::Ready(wait_for(self))
    }
}

impl Drop for IoOp {
    fn drop(&mut self) {
        if let Inner::Submitted {
            cell,
            source: Some(source),
        } = &self.inner
        {
            request_background(cell, &**source);
        }
    }
}

impl fmt::Debug for IoOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.inner {
            Inner::Ready(_) => "ready",
            Inner::Submitted { .. } => "submitted",
        };
        f.debug_struct("IoOp").field("state", &state).finish()
    }
}

/// The answer, if it is there; else leaves the waker to be woken with it.
fn take_or_store(cell: &Cell, new: &Waker) -> Option<(AlignedBuf, io::Result<()>)> {
    let mut state = cell.lock();
    if let State::Pending { waker, .. } = &mut *state {
        match waker {
            Some(old) => old.clone_from(new),
            None => *waker = Some(new.clone()),
        }
        return None;
    }
    match std::mem::replace(&mut *state, State::Taken) {
        State::Done(buffer, outcome) => Some((buffer, outcome)),
        _ => panic!("an IoOp answers once"),
    }
}

/// Asks `source`, once per operation, to reap a pending one in the background. Returns whether
/// that is arranged (or no longer needed).
fn request_background(cell: &Cell, source: &dyn CompletionSource) -> bool {
    match &mut *cell.lock() {
        State::Pending { background, .. } if !*background => *background = true,
        _ => return true,
    }
    // Outside of the lock: a completion may now take back the request before it is made. The
    // source's count may be negative for a moment and does not mind.
    if source.want_background() {
        return true;
    }
    if let State::Pending { background, .. } = &mut *cell.lock() {
        *background = false;
        source.background_done();
        return false;
    }
    true
}

/// The backend's half of an [`IoOp`].
///
/// Dropped without an answer (a bug in a backend), it completes the operation with an error, so
/// that nobody waits for ever.
pub struct Completer {
    cell: Option<Arc<Cell>>,
}

impl Completer {
    /// Gives the answer: runs the callback or wakes the waker on this thread. Returns whether
    /// background reaping had been asked for this operation; the backend then calls
    /// [`CompletionSource::background_done`].
    pub fn complete(mut self, buffer: AlignedBuf, outcome: io::Result<()>) -> bool {
        self.answer(buffer, outcome)
    }

    fn answer(&mut self, buffer: AlignedBuf, outcome: io::Result<()>) -> bool {
        let Some(cell) = self.cell.take() else {
            return false;
        };
        let mut state = cell.lock();
        match std::mem::replace(&mut *state, State::Taken) {
            State::Pending { waker, background } => {
                *state = State::Done(buffer, outcome);
                drop(state);
                if let Some(waker) = waker {
                    guarded(|| waker.wake());
                }
                background
            }
            State::Callback {
                callback,
                background,
            } => {
                drop(state);
                run_now(Box::new(move || callback(buffer, outcome)));
                background
            }
            State::Done(..) | State::Taken => unreachable!("a Completer completes once"),
        }
    }
}

impl Drop for Completer {
    fn drop(&mut self) {
        if self.cell.is_some() {
            let error = io::Error::other("the backend gave up a transfer without an answer");
            self.answer(AlignedBuf::empty(), Err(error));
        }
    }
}

impl fmt::Debug for Completer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completer").finish_non_exhaustive()
    }
}

type Job = Box<dyn FnOnce()>;

thread_local! {
    /// Whether this thread is running a callback.
    static RUNNING: ThreadCell<bool> = const { ThreadCell::new(false) };
    /// Callbacks that became due while it did.
    static DEFERRED: RefCell<VecDeque<Job>> = const { RefCell::new(VecDeque::new()) };
}

/// Runs foreign code that must not take a reaping thread down with it.
fn guarded(code: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(code)).is_err() {
        tracing::error!("a completion callback panicked");
    }
}

fn run_or_defer(job: Job) {
    if !RUNNING.get() {
        return run_now(job);
    }
    let mut job = Some(job);
    // The queue is gone only while the thread itself ends: then the job runs here and now.
    let _ = DEFERRED.try_with(|queue| queue.borrow_mut().extend(job.take()));
    if let Some(job) = job {
        guarded(job);
    }
}

fn run_now(job: Job) {
    let outer = RUNNING.replace(true);
    guarded(job);
    if !outer {
        run_deferred();
    }
    RUNNING.set(outer);
}

/// Runs the callbacks that were queued on this thread. A driver calls it before it blocks: it may
/// itself be running inside of a callback, whose end the queue would otherwise await.
pub(super) fn run_deferred() {
    if !RUNNING.get() {
        return;
    }
    while let Ok(Some(job)) = DEFERRED.try_with(|queue| queue.borrow_mut().pop_front()) {
        guarded(job);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::buffer::BufferPool;
    use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};
    use std::sync::mpsc;

    #[derive(Default)]
    struct Source {
        interest: AtomicIsize,
        refuses: bool,
        completer: Mutex<Option<Completer>>,
    }

    impl Driver for Source {
        fn drive(&self, _signal: &crate::port::op::Signal) {
            let completer = self.completer.lock().take();
            if let Some(completer) = completer {
                completer.complete(AlignedBuf::empty(), Ok(()));
            }
        }
    }

    impl CompletionSource for Source {
        fn want_background(&self) -> bool {
            self.interest.fetch_add(1, Ordering::SeqCst);
            !self.refuses
        }

        fn background_done(&self) {
            self.interest.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn poll(op: &mut IoOp) -> Poll<(AlignedBuf, io::Result<()>)> {
        Pin::new(op).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_ready_op_answers_at_once() {
        let mut op = IoOp::ready(BufferPool::global().take(4096), Ok(()));
        let Poll::Ready((buffer, outcome)) = poll(&mut op) else {
            panic!("it was ready");
        };
        assert_eq!(buffer.len(), 4096);
        outcome.unwrap();
    }

    #[test]
    fn a_waiting_thread_drives_the_source() {
        let source = Arc::new(Source::default());
        let (op, completer) = IoOp::pending(Some(source.clone()));
        *source.completer.lock() = Some(completer);
        wait_for(op).1.unwrap();
        assert_eq!(source.interest.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_foreign_executor_asks_for_background_reaping_once() {
        let source = Arc::new(Source::default());
        let (mut op, completer) = IoOp::pending(Some(source.clone()));
        assert!(poll(&mut op).is_pending());
        assert!(poll(&mut op).is_pending());
        assert_eq!(source.interest.load(Ordering::SeqCst), 1);
        assert!(completer.complete(AlignedBuf::empty(), Ok(())));
        assert!(poll(&mut op).is_ready());
        drop(op);
        assert_eq!(source.interest.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_dropped_op_asks_for_background_reaping() {
        let source = Arc::new(Source::default());
        let (op, completer) = IoOp::pending(Some(source.clone()));
        drop(op);
        assert_eq!(source.interest.load(Ordering::SeqCst), 1);
        assert!(completer.complete(AlignedBuf::empty(), Ok(())));
    }

    #[test]
    fn then_does_not_ask_for_background_reaping() {
        let source = Arc::new(Source::default());
        let (op, completer) = IoOp::pending(Some(source.clone()));
        let (sender, receiver) = mpsc::channel();
        op.then(move |buffer, outcome| sender.send((buffer.len(), outcome.is_ok())).unwrap());
        assert_eq!(source.interest.load(Ordering::SeqCst), 0);
        assert!(!completer.complete(BufferPool::global().take(5), Ok(())));
        assert_eq!(receiver.try_recv(), Ok((5, true)));
    }

    #[test]
    fn without_a_background_thread_the_polling_one_drives() {
        let source = Arc::new(Source {
            refuses: true,
            ..Source::default()
        });
        let (mut op, completer) = IoOp::pending(Some(source.clone()));
        *source.completer.lock() = Some(completer);
        assert!(poll(&mut op).is_ready());
        assert_eq!(source.interest.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn an_abandoned_completer_answers_with_an_error() {
        let (mut op, completer) = IoOp::pending(None);
        drop(completer);
        let Poll::Ready((_, outcome)) = poll(&mut op) else {
            panic!("nobody may wait for ever");
        };
        outcome.unwrap_err();
    }

    #[test]
    fn a_chain_over_an_inline_backend_is_a_loop() {
        fn link(left: usize, count: Arc<AtomicUsize>) {
            count.fetch_add(1, Ordering::SeqCst);
            if left > 0 {
                let op = IoOp::ready(AlignedBuf::empty(), Ok(()));
                op.then(move |_, _| link(left - 1, count));
            }
        }
        let count = Arc::new(AtomicUsize::new(0));
        link(1_000_000, Arc::clone(&count));
        assert_eq!(count.load(Ordering::SeqCst), 1_000_001);
    }

    #[test]
    fn a_panicking_callback_takes_nobody_down() {
        let (op, completer) = IoOp::pending(None);
        op.then(|_, _| panic!("on purpose"));
        completer.complete(AlignedBuf::empty(), Ok(()));
        let ran = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&ran);
        IoOp::ready(AlignedBuf::empty(), Ok(())).then(move |_, _| {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        assert_eq!(ran.load(Ordering::SeqCst), 1);
    }
}

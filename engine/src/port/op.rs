//! [`Op`]: one operation, already submitted, for blocking and async callers alike.
//!
//! An `Op` is a plain [`Future`] with no runtime behind it, polled once when it is made so that
//! what it reads is on its way before the caller sees it. What it writes has its place in the commit
//! queue then, and leaves that with whatever else is queued when anybody polls or waits for such an
//! `Op`, when one is dropped, or when much is queued: so those that a thread makes before it waits
//! share a write. [`Op::wait`] blocks the calling thread; while
//! it waits the thread does not merely sleep: whatever the operation hangs on (a ring, a commit
//! queue) names itself as a [`Driver`], and the waiting thread runs that driver. So a single
//! blocking caller reaps its own completions and pays no hand-off to another thread.
//!
//! How a leaf future takes part: when it is about to return `Poll::Pending` it calls
//! [`offer_driver`]. Inside [`Op::wait`] the offer is taken and the function returns `true`.
//! In a foreign executor nobody takes it (`false`), and the leaf must arrange for its completion
//! to be reaped in the background.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::thread::{self, Thread};
use crate::sync::thread_local;

/// Something a blocked thread can run to make its own operation progress.
pub trait Driver: Send + Sync {
    /// Makes progress until `signal` is raised. May park the thread ([`Signal::park`]) when
    /// another thread is already doing the work. May return early; the caller loops.
    fn drive(&self, signal: &Signal);
}

/// Raised by the waker of the operation a thread waits for; unparks that thread.
#[derive(Debug)]
pub struct Signal {
    raised: AtomicBool,
    thread: Thread,
}

impl Signal {
    fn for_this_thread() -> Arc<Self> {
        Arc::new(Self {
            raised: AtomicBool::new(false),
            thread: thread::current(),
        })
    }

    /// Whether the operation has something new to say and should be polled again.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Acquire)
    }

    /// The waiting thread, to unpark it when it should take over driving.
    #[must_use]
    pub fn thread(&self) -> &Thread {
        &self.thread
    }

    /// Parks the calling thread until it is unparked (it may also wake for no reason).
    pub fn park(&self) {
        if !self.is_raised() {
            thread::park();
        }
    }

    /// As [`Signal::park`], for at most `duration`.
    pub fn park_for(&self, duration: Duration) {
        if !self.is_raised() {
            thread::park_timeout(duration);
        }
    }

    fn lower(&self) {
        self.raised.store(false, Ordering::Release);
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.raised.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

thread_local! {
    /// An operation is polled because it was made: its maker may make more before it waits.
    static STARTING: Cell<bool> = const { Cell::new(false) };
    static WAITING: Cell<bool> = const { Cell::new(false) };
    static OFFERED: RefCell<Option<Arc<dyn Driver>>> = const { RefCell::new(None) };
    static SIGNAL: RefCell<Option<Arc<Signal>>> = const { RefCell::new(None) };
}

/// Offers `driver` to the thread that is about to block on the polled operation. Returns whether
/// the offer was taken: `false` means that no thread waits here and the completion must be reaped
/// in the background. The last offer of a poll wins.
pub fn offer_driver(driver: &Arc<dyn Driver>) -> bool {
    if !WAITING.get() {
        return false;
    }
    OFFERED.with_borrow_mut(|offered| *offered = Some(Arc::clone(driver)));
    true
}

/// Whether the operation that is polled was just made, and nobody waits for it yet.
pub(crate) fn is_starting() -> bool {
    STARTING.get()
}

/// Runs `future` to its end on this thread, driving whatever it hangs on.
pub(crate) fn block_on<F: Future + ?Sized>(mut future: Pin<&mut F>) -> F::Output {
    // A waiting thread can be asked to wait again below itself (a driver that runs maintenance);
    // the outer wait's state is put back when the inner one is done.
    let outer_waiting = WAITING.replace(true);
    let outer_starting = STARTING.replace(false);
    let signal = SIGNAL
        .with_borrow_mut(Option::take)
        .unwrap_or_else(Signal::for_this_thread);
    let waker = Waker::from(Arc::clone(&signal));
    let mut context = Context::from_waker(&waker);
    let output = loop {
        signal.lower();
        OFFERED.with_borrow_mut(|offered| *offered = None);
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            break output;
        }
        let driver = OFFERED.with_borrow_mut(Option::take);
        while !signal.is_raised() {
            match &driver {
                Some(driver) => {
                    WAITING.set(false);
                    driver.drive(&signal);
                    WAITING.set(true);
                }
                None => signal.park(),
            }
        }
    };
    WAITING.set(outer_waiting);
    STARTING.set(outer_starting);
    SIGNAL.with_borrow_mut(|slot| *slot = Some(signal));
    output
}

enum State<T, E> {
    Ready(Option<Result<T, E>>),
    Running(Pin<Box<dyn Future<Output = Result<T, E>> + Send>>),
}

/// One submitted operation. See the [module's page](self).
///
/// Dropping an `Op` gives up its answer, never its effect: a mutation that was submitted still
/// commits (or fails) as a whole, and no buffer is left to the kernel.
///
/// ```
/// use graviton_engine::port::Op;
///
/// let op: Op<u32, std::io::Error> = Op::ready(Ok(7));
/// assert_eq!(op.wait().unwrap(), 7);
/// ```
#[must_use = "an Op is already submitted, but its outcome (an error, above all) is known only by wait() or .await"]
pub struct Op<T, E> {
    state: State<T, E>,
}

impl<T, E> fmt::Debug for Op<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Ready(_) => "ready",
            State::Running(_) => "running",
        };
        f.debug_struct("Op").field("state", &state).finish()
    }
}

impl<T, E> Op<T, E> {
    /// An operation that is over already.
    pub fn ready(outcome: Result<T, E>) -> Self {
        Self {
            state: State::Ready(Some(outcome)),
        }
    }

    /// An operation that failed before it began.
    pub fn fail(error: impl Into<E>) -> Self {
        Self::ready(Err(error.into()))
    }

    /// Starts `future`: it is polled once, here, so that whatever it reads is on its way, and whatever it
    /// writes is queued.
    pub fn start(future: impl Future<Output = Result<T, E>> + Send + 'static) -> Self {
        let mut future = Box::pin(future);
        let mut context = Context::from_waker(Waker::noop());
        let waiting = WAITING.replace(true);
        let starting = STARTING.replace(true);
        let polled = future.as_mut().poll(&mut context);
        STARTING.set(starting);
        WAITING.set(waiting);
        OFFERED.with_borrow_mut(|offered| *offered = None);
        match polled {
            Poll::Ready(outcome) => Self::ready(outcome),
            Poll::Pending => Self {
                state: State::Running(future),
            },
        }
    }

    /// As [`Op::start`], for a mutation that takes several steps: should the `Op` be dropped before
    /// the last, what is left of it is handed to `keeper`, who sees it through.
    pub(crate) fn start_kept(
        future: impl Future<Output = Result<T, E>> + Send + 'static,
        keeper: impl FnOnce(Detached) + Send + 'static,
    ) -> Self
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        Self::start(Kept {
            future: Some(Box::pin(future)),
            keeper: Some(keeper),
        })
    }

    /// Blocks the calling thread until the operation is over.
    ///
    /// # Errors
    /// What the operation itself reports.
    ///
    /// # Panics
    /// If the `Op` was polled to its end before.
    pub fn wait(self) -> Result<T, E> {
        match self.state {
            State::Ready(outcome) => outcome.expect("an Op answers once"),
            State::Running(mut future) => block_on(future.as_mut()),
        }
    }
}

/// What is left of a mutation whose `Op` was dropped.
pub(crate) type Detached = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A future that is never dropped half done.
struct Kept<F: Future + Send + 'static, K: FnOnce(Detached)>
where
    F::Output: Send + 'static,
{
    future: Option<Pin<Box<F>>>,
    keeper: Option<K>,
}

impl<F: Future + Send + 'static, K: FnOnce(Detached)> Unpin for Kept<F, K> where
    F::Output: Send + 'static
{
}

impl<F: Future + Send + 'static, K: FnOnce(Detached)> Future for Kept<F, K>
where
    F::Output: Send + 'static,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let future = self.future.as_mut().expect("an Op answers once");
        let polled = future.as_mut().poll(context);
        if polled.is_ready() {
            self.future = None;
        }
        polled
    }
}

impl<F: Future + Send + 'static, K: FnOnce(Detached)> Drop for Kept<F, K>
where
    F::Output: Send + 'static,
{
    fn drop(&mut self) {
        if let (Some(future), Some(keeper)) = (self.future.take(), self.keeper.take()) {
            keeper(Box::pin(async move {
                future.await;
            }));
        }
    }
}

impl<T: Unpin, E: Unpin> Future for Op<T, E> {
    type Output = Result<T, E>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.state {
            State::Ready(outcome) => Poll::Ready(outcome.take().expect("an Op answers once")),
            State::Running(future) => future.as_mut().poll(context),
        }
    }
}

/// Waits for any future on this thread, driving what it hangs on, as [`Op::wait`] does.
pub fn wait_for<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    block_on(future.as_mut())
}

/// Runs several futures side by side, and returns what they do in their order.
pub(crate) async fn all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = running.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        let mut left = 0;
        for (future, output) in running.iter_mut().zip(&mut outputs) {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    Poll::Ready(ready) => *output = Some(ready),
                    Poll::Pending => left += 1,
                }
            }
        }
        match left {
            0 => Poll::Ready(()),
            _ => Poll::Pending,
        }
    })
    .await;
    outputs.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::Mutex;

    /// A leaf that completes when its driver has run three times.
    #[derive(Default)]
    struct Leaf {
        steps: Mutex<(u32, Option<Waker>)>,
    }

    impl Driver for Leaf {
        fn drive(&self, _signal: &Signal) {
            let mut steps = self.steps.lock();
            steps.0 += 1;
            if steps.0 == 3 {
                steps.1.take().expect("polled before it is driven").wake();
            }
        }
    }

    #[test]
    fn a_waiting_thread_drives_what_it_waits_for() {
        let leaf = Arc::new(Leaf::default());
        let polled = Arc::clone(&leaf);
        let op: Op<u32, ()> = Op::start(std::future::poll_fn(move |context| {
            let mut steps = polled.steps.lock();
            if steps.0 == 3 {
                return Poll::Ready(Ok(steps.0));
            }
            steps.1 = Some(context.waker().clone());
            let driver: Arc<dyn Driver> = polled.clone();
            assert!(offer_driver(&driver));
            Poll::Pending
        }));
        assert_eq!(op.wait(), Ok(3));
    }

    #[test]
    fn outside_a_wait_nobody_takes_the_offer() {
        let leaf: Arc<dyn Driver> = Arc::new(Leaf::default());
        assert!(!offer_driver(&leaf));
    }

    #[test]
    fn wakes_from_another_thread() {
        let shared = Arc::new(Mutex::new((false, None::<Waker>)));
        let polled = Arc::clone(&shared);
        let op: Op<(), ()> = Op::start(std::future::poll_fn(move |context| {
            let mut state = polled.lock();
            if state.0 {
                return Poll::Ready(Ok(()));
            }
            state.1 = Some(context.waker().clone());
            Poll::Pending
        }));
        let waker = thread::spawn(move || {
            loop {
                let mut state = shared.lock();
                if let Some(waker) = state
                    .1
                    .take()
                    .filter(|waker| !waker.will_wake(Waker::noop()))
                {
                    state.0 = true;
                    waker.wake();
                    return;
                }
                drop(state);
                thread::yield_now();
            }
        });
        assert_eq!(op.wait(), Ok(()));
        waker.join().expect("the waking thread ends");
    }
}

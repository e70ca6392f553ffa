//! The same names over `shuttle`, with the interface of what they stand in for.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::TryLockError;
use std::time::Duration;

use self::atomic::{AtomicBool, Ordering};

pub use shuttle::sync::atomic;

const UNPOISONED: &str = "the guard of a lock that is held";

/// [`parking_lot::Mutex`], modelled.
#[derive(Debug, Default)]
pub struct Mutex<T>(shuttle::sync::Mutex<T>);

/// The guard of a [`Mutex`]; without a lock only while a [`Condvar`] waits.
#[derive(Debug)]
pub struct MutexGuard<'a, T>(Option<shuttle::sync::MutexGuard<'a, T>>);

impl<T> Mutex<T> {
    /// A lock that nobody holds.
    pub const fn new(value: T) -> Self {
        Self(shuttle::sync::Mutex::new(value))
    }

    /// Takes the lock, whether a thread panicked with it or not.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let guard = self.0.lock();
        MutexGuard(Some(guard.unwrap_or_else(|poisoned| poisoned.into_inner())))
    }

    /// Takes the lock if nobody holds it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(MutexGuard(Some(guard))),
            Err(TryLockError::Poisoned(poisoned)) => Some(MutexGuard(Some(poisoned.into_inner()))),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect(UNPOISONED)
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect(UNPOISONED)
    }
}

/// [`parking_lot::RwLock`], modelled. A thread that reads twice at once is reported: with a writer
/// between the two it would hang.
#[derive(Debug, Default)]
pub struct RwLock<T>(shuttle::sync::RwLock<T>);

impl<T> RwLock<T> {
    /// A lock that nobody holds.
    pub const fn new(value: T) -> Self {
        Self(shuttle::sync::RwLock::new(value))
    }

    /// Takes the lock to read.
    pub fn read(&self) -> impl Deref<Target = T> {
        let guard = self.0.read();
        guard.unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes the lock to write.
    pub fn write(&self) -> impl DerefMut<Target = T> {
        let guard = self.0.write();
        guard.unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// [`parking_lot::Condvar`], modelled.
#[derive(Debug, Default)]
pub struct Condvar(shuttle::sync::Condvar);

impl Condvar {
    /// One that nobody waits for.
    pub const fn new() -> Self {
        Self(shuttle::sync::Condvar::new())
    }

    /// Gives up the lock until it is notified.
    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let held = guard.0.take().expect(UNPOISONED);
        let held = self.0.wait(held);
        guard.0 = Some(held.unwrap_or_else(|poisoned| poisoned.into_inner()));
    }

    /// As [`Condvar::wait`]: the end is never reached, for time does not pass.
    pub fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, _end: Instant) -> InTime {
        self.wait(guard);
        InTime
    }

    /// Wakes one waiter.
    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    /// Wakes all waiters.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// How a wait with an end was over: because somebody notified it.
#[derive(Debug, Clone, Copy)]
pub struct InTime;

impl InTime {
    /// Whether the end was reached.
    pub fn timed_out(self) -> bool {
        false
    }
}

/// [`std::sync::OnceLock`], as far as nobody blocks on it; each use is a point of the schedule.
#[derive(Debug, Default)]
pub struct OnceLock<T> {
    value: std::sync::OnceLock<T>,
    touched: AtomicBool,
}

impl<T> OnceLock<T> {
    /// One without a value.
    pub const fn new() -> Self {
        Self {
            value: std::sync::OnceLock::new(),
            touched: AtomicBool::new(false),
        }
    }

    /// The value, if there is one.
    pub fn get(&self) -> Option<&T> {
        self.touched.load(Ordering::SeqCst);
        self.value.get()
    }

    /// Sets the value, if there is none.
    ///
    /// # Errors
    /// `value`, if there is one.
    pub fn set(&self, value: T) -> Result<(), T> {
        self.touched.store(true, Ordering::SeqCst);
        self.value.set(value)
    }
}

/// [`crossbeam::queue::ArrayQueue`], each use of which is one step of the schedule.
#[derive(Debug)]
pub struct ArrayQueue<T> {
    queue: crossbeam::queue::ArrayQueue<T>,
    touched: AtomicBool,
}

impl<T> ArrayQueue<T> {
    /// A queue for so many.
    pub fn new(capacity: usize) -> Self {
        Self {
            queue: crossbeam::queue::ArrayQueue::new(capacity),
            touched: AtomicBool::new(false),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Takes the oldest.
    pub fn pop(&self) -> Option<T> {
        self.touched.load(Ordering::SeqCst);
        self.queue.pop()
    }

    /// Adds one at the end.
    ///
    /// # Errors
    /// `value`, if the queue is full.
    pub fn push(&self, value: T) -> Result<(), T> {
        self.touched.store(true, Ordering::SeqCst);
        self.queue.push(value)
    }
}

/// [`std::time::Instant`], of a clock that stands.
#[derive(Debug, Clone, Copy)]
pub struct Instant;

impl Instant {
    /// This moment.
    pub fn now() -> Self {
        Self
    }

    /// The moment so much later.
    pub fn checked_add(self, _time: Duration) -> Option<Self> {
        Some(self)
    }
}

pub mod thread {
    //! Threads.
    pub use shuttle::thread::{
        Builder, JoinHandle, Thread, ThreadId, current, park, spawn, yield_now,
    };

    /// Parks for no time at all.
    pub fn park_timeout(_limit: std::time::Duration) {
        yield_now();
    }

    /// Sleeps for no time at all.
    pub fn sleep(_time: std::time::Duration) {
        yield_now();
    }
}

pub mod channel {
    //! Channels.
    use std::sync::mpsc::TryRecvError;
    pub use std::sync::mpsc::{RecvError, RecvTimeoutError, TrySendError};
    use std::time::Duration;

    /// [`crossbeam::channel::Sender`], modelled.
    #[derive(Debug, Clone)]
    pub struct Sender<T>(shuttle::sync::mpsc::SyncSender<T>);

    /// [`crossbeam::channel::Receiver`], modelled.
    #[derive(Debug)]
    pub struct Receiver<T>(shuttle::sync::mpsc::Receiver<T>);

    /// A channel that holds so many messages.
    pub fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
        let (sender, receiver) = shuttle::sync::mpsc::sync_channel(capacity);
        (Sender(sender), Receiver(receiver))
    }

    impl<T> Sender<T> {
        /// Sends unless the channel is full.
        ///
        /// # Errors
        /// If it is, or the receiver is gone.
        pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
            self.0.try_send(message)
        }
    }

    impl<T> Receiver<T> {
        /// Waits for a message.
        ///
        /// # Errors
        /// If the senders are gone.
        pub fn recv(&self) -> Result<T, RecvError> {
            self.0.recv()
        }

        /// Looks for a message, and gives up at once if there is none.
        ///
        /// # Errors
        /// If there is none, or the senders are gone.
        pub fn recv_timeout(&self, _limit: Duration) -> Result<T, RecvTimeoutError> {
            super::thread::yield_now();
            self.0.try_recv().map_err(|error| match error {
                TryRecvError::Empty => RecvTimeoutError::Timeout,
                TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
            })
        }
    }
}

/// [`std::thread::LocalKey`], modelled: `std`'s would be shared by all threads of a model.
pub struct LocalKey<T: 'static>(#[doc(hidden)] pub &'static shuttle::thread::LocalKey<T>);

impl<T> fmt::Debug for LocalKey<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalKey").finish_non_exhaustive()
    }
}

impl<T> LocalKey<T> {
    /// This thread's value, if it is not gone.
    ///
    /// # Errors
    /// If it is.
    pub fn try_with<R>(
        &'static self,
        with: impl FnOnce(&T) -> R,
    ) -> Result<R, shuttle::thread::AccessError> {
        self.0.try_with(with)
    }
}

impl<T> LocalKey<Cell<T>> {
    /// A copy of this thread's value.
    pub fn get(&'static self) -> T
    where
        T: Copy,
    {
        self.0.with(Cell::get)
    }

    /// Sets this thread's value.
    pub fn set(&'static self, value: T) {
        self.0.with(|cell| cell.set(value));
    }

    /// Sets this thread's value, and returns the one before.
    pub fn replace(&'static self, value: T) -> T {
        self.0.with(|cell| cell.replace(value))
    }
}

impl<T> LocalKey<RefCell<T>> {
    /// Borrows this thread's value.
    pub fn with_borrow_mut<R>(&'static self, with: impl FnOnce(&mut T) -> R) -> R {
        self.0.with(|cell| with(&mut cell.borrow_mut()))
    }
}

/// [`std::thread_local`], modelled.
macro_rules! modelled_thread_local {
    ($($(#[$attribute:meta])* static $name:ident: $type:ty = const { $value:expr };)*) => {
        $($(#[$attribute])*
        static $name: $crate::sync::LocalKey<$type> = {
            shuttle::thread_local! { static INNER: $type = const { $value } }
            $crate::sync::LocalKey(&INNER)
        };)*
    };
}
// By another name first: `thread_local` is an attribute too.
pub(crate) use modelled_thread_local as thread_local;

/// The one value of its type in an execution, made when it is first asked for: one that outlived
/// it would let it depend on the executions before.
macro_rules! process_wide {
    ($type:ty, $make:expr) => {{
        shuttle::lazy_static! {
            static ref VALUE: $type = $make;
        }
        &*VALUE
    }};
}
pub(crate) use process_wide;

//! What threads share and wait with: the locks, atomics, threads and channels of the engine, in one
//! place so that they can be exchanged as one.
//!
//! As a rule these are nothing but other names for what `parking_lot`, `std` and `crossbeam` have.
//! With the feature `shuttle` they are those of the crate of that name: threads become coroutines on one thread,
//! each touch of a lock or an atomic is a point where the scheduler may let another one go on, and
//! it decides so by a seed. So a test replays an interleaving. Nothing else may be run then:
//! outside of a `shuttle` execution these types panic.
//!
//! Two things are not modelled. Atomics are sequentially consistent, whatever ordering is asked
//! for. And time does not pass: a wait with a limit may end at once, as if the limit had been
//! reached, and gives other threads a turn.

#[cfg(feature = "shuttle")]
mod modelled;
#[cfg(feature = "shuttle")]
pub use modelled::*;

#[cfg(not(feature = "shuttle"))]
pub use real::*;

#[cfg(not(feature = "shuttle"))]
mod real {
    pub use std::sync::{OnceLock, atomic};
    pub use std::thread_local;
    pub use std::time::Instant;

    pub use crossbeam::queue::ArrayQueue;
    pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

    pub mod thread {
        //! Threads.
        pub use std::thread::{
            Builder, JoinHandle, Thread, ThreadId, current, park, park_timeout, sleep, yield_now,
        };

        #[cfg(any(test, feature = "testing"))]
        pub use std::thread::spawn;
    }

    pub mod channel {
        //! Channels.
        pub use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
    }

    /// The one value of its type in the process, made when it is first asked for.
    macro_rules! process_wide {
        ($type:ty, $make:expr) => {{
            static VALUE: std::sync::LazyLock<$type> = std::sync::LazyLock::new(|| $make);
            &*VALUE
        }};
    }
    pub(crate) use process_wide;
}

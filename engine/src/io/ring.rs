//! One io_uring instance that several threads submit to and reap from.
//!
//! The idea: whoever waits for a completion reaps. A thread that submits a read and waits for it
//! finds the completion itself, with one `io_uring_enter` and no second thread. Where several
//! threads wait on one ring, one of them is the reaper, sleeps in the kernel for all of them, and
//! wakes each when its completion is there; [`role`](super::role) says how the others know that
//! somebody does, and why no wake-up is lost. Only what nobody waits for, dropped operations and
//! those polled by an executor, is left to a background thread, which starts when first needed and
//! yields the role to any waiter.
//!
//! Two more things could hang a waiter, and don't:
//!
//! - *The reaper sleeps in the kernel though its own operation is over.* Answers are delivered
//!   while the role is held. So nobody can become the reaper between the moment its completion left
//!   the queue and the moment its signal is raised. What other rings or threads complete may still
//!   raise it while it sleeps: [`WAIT_MAX`] bounds that.
//! - *The kernel is asked to wait for a completion that can't come.* The table counts what the
//!   kernel has, and only a completion taken by the reaper lowers that count: above zero, one is
//!   there or will come.
//!
//! A callback that itself waits for I/O on this ring enters `drive` on a thread that holds the role:
//! it goes on reaping ([`Turn::ReapNested`]). It is not to wait for I/O on other rings, where the
//! reaper may be doing the reverse.
//!
//! Flags: none. `COOP_TASKRUN`, `DEFER_TASKRUN` and `SINGLE_ISSUER` assume that the submitting thread
//! comes back to the ring, which threads here need not; `SQPOLL` costs a core.
//!
//! A thread that ends takes its requests along if they still wait for one of io_uring's worker
//! threads: they come back as cancelled, and whoever reaps them submits them again (see `request`).

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use io_uring::IoUring;
use rustix::io::Errno;

use super::completion::{CompletionSource, IoOp, no_thread, run_deferred};
use super::request::{Request, Transfer};
use super::role::{Role, Turn};
use super::table::{Outlook, Table};
use crate::port::op::{Driver, Signal};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::thread::{self, JoinHandle};

/// The reaper looks around at least this often; see the top of the file.
const WAIT_MAX: Duration = Duration::from_millis(10);
/// Between attempts at something the kernel refuses for the moment.
const PAUSE: Duration = Duration::from_millis(1);
/// How many waits may fail in a row, a millisecond each, before what is in flight is given up.
const FAILED_WAITS_MAX: u32 = 1000;

/// Submission queue entries: requests are submitted one by one, so a few suffice.
const SUBMISSION_ENTRIES: u32 = 64;

const IORING_ENTER_GETEVENTS: u32 = 1 << 0;
const IORING_ENTER_EXT_ARG: u32 = 1 << 3;

/// `struct io_uring_getevents_arg`.
#[repr(C)]
struct WaitArgument {
    sigmask: u64,
    sigmask_size: u32,
    min_wait_usec: u32,
    timeout: *const Timespec,
}

/// `struct __kernel_timespec`.
#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<WaitArgument>() == 24 && size_of::<Timespec>() == 16);

pub(super) struct Ring {
    uring: IoUring,
    table: Mutex<Table>,
    role: Role,
    failed_waits: AtomicU32,
    background: Mutex<Option<JoinHandle<()>>>,
    this: Weak<Self>,
    #[cfg(test)]
    pub(super) faults: Faults,
}

/// Errors to meet instead of entering the kernel, while not zero.
#[cfg(test)]
#[derive(Default)]
pub(super) struct Faults {
    pub(super) submit: crate::sync::atomic::AtomicI32,
    pub(super) wait: crate::sync::atomic::AtomicI32,
}

#[cfg(test)]
fn injected(fault: &crate::sync::atomic::AtomicI32) -> io::Result<()> {
    match fault.load(Ordering::SeqCst) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Gives up the role when dropped.
struct Held<'a>(&'a Role);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl Ring {
    /// A ring that lets the kernel have up to `entries` requests at a time.
    pub(super) fn new(entries: u32) -> io::Result<Arc<Self>> {
        let entries = entries.max(2);
        let uring = IoUring::builder()
            .setup_cqsize(entries)
            .setup_clamp()
            .build(SUBMISSION_ENTRIES.min(entries))?;
        let parameters = uring.params();
        if !parameters.is_feature_nodrop() || !parameters.is_feature_ext_arg() {
            let message = "this kernel's io_uring is too old";
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        }
        let in_kernel_max = parameters.cq_entries() as usize;
        Ok(Arc::new_cyclic(|this| Self {
            uring,
            table: Mutex::new(Table::new(in_kernel_max)),
            role: Role::default(),
            failed_waits: AtomicU32::new(0),
            background: Mutex::new(None),
            this: Weak::clone(this),
            #[cfg(test)]
            faults: Faults::default(),
        }))
    }

    /// Submits a transfer, or queues it if the kernel has its fill. Never blocks on the device.
    pub(super) fn submit(self: &Arc<Self>, transfer: Transfer) -> IoOp {
        let source: Arc<dyn CompletionSource> = Arc::<Self>::clone(self);
        let (op, completer) = IoOp::pending(Some(source));
        let request = Request::new(transfer, completer);
        let mut table = self.table.lock();
        if let Some(error) = table.broken() {
            drop(table);
            request.finish(Err(error)).deliver();
            return op;
        }
        table.insert(request);
        self.pump(&mut table);
        drop(table);
        self.role.submitted();
        op
    }

    fn pump(&self, table: &mut Table) {
        table.pump(&self.uring, |count| {
            #[cfg(test)]
            injected(&self.faults.submit)?;
            // SAFETY: no argument is passed, and the entries submitted are the table's, whose
            // buffers and files outlive them.
            unsafe { self.uring.submitter().enter::<()>(count, 0, 0, None) }
        });
    }

    /// Takes in what has completed and delivers it. Returns how many answers that were, and what
    /// to expect next. Only for the holder of the role.
    fn reap(&self) -> (usize, Outlook) {
        let mut finished = Vec::new();
        let mut table = self.table.lock();
        // SAFETY: the completion queue is used only here, by the one thread that holds the role
        // (or by itself again, further up its stack, where no such queue is alive).
        let completions = unsafe { self.uring.completion_shared() };
        for completion in completions {
            table.complete(completion.user_data(), completion.result(), &mut finished);
        }
        self.pump(&mut table);
        let outlook = table.outlook(&mut finished);
        drop(table);
        let count = finished.len();
        if count > 0 {
            self.role.completed(count);
            for answer in finished {
                if answer.deliver() {
                    self.role.remove_interest();
                }
            }
            run_deferred();
        }
        (count, outlook)
    }

    /// Reaps until `enough`, or until nothing is under way. Only for the holder of the role.
    fn reap_until(&self, enough: impl Fn() -> bool) {
        loop {
            let (count, outlook) = self.reap();
            if enough() {
                return;
            }
            if count > 0 {
                continue;
            }
            match outlook {
                Outlook::Idle => return,
                Outlook::InKernel => self.wait_for_completion(),
                Outlook::Stalled => thread::sleep(PAUSE),
            }
        }
    }

    /// Sleeps until a completion is there, but no longer than [`WAIT_MAX`].
    fn wait_for_completion(&self) {
        let errno = match self.enter_and_wait() {
            Ok(_) => Errno::TIME,
            Err(error) => Errno::from_io_error(&error).unwrap_or(Errno::IO),
        };
        match errno {
            Errno::TIME | Errno::INTR => self.failed_waits.store(0, Ordering::Relaxed),
            // The kernel has to do something else first.
            Errno::AGAIN | Errno::BUSY => thread::sleep(PAUSE),
            _ => self.wait_failed(errno),
        }
    }

    fn enter_and_wait(&self) -> io::Result<usize> {
        #[cfg(test)]
        injected(&self.faults.wait)?;
        let timeout = Timespec {
            seconds: 0,
            nanoseconds: i64::from(WAIT_MAX.subsec_nanos()),
        };
        let argument = WaitArgument {
            sigmask: 0,
            sigmask_size: 0,
            min_wait_usec: 0,
            timeout: &raw const timeout,
        };
        let flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
        // SAFETY: nothing is submitted; the argument has the layout that EXT_ARG announces, and
        // it and the timeout it points to live until the call returns.
        unsafe { self.uring.submitter().enter(0, 1, flags, Some(&argument)) }
    }

    /// The kernel won't tell us of completions. They may still show up in the queue, so that is
    /// looked at for a while before everything in flight is given up.
    fn wait_failed(&self, errno: Errno) {
        if self.failed_waits.fetch_add(1, Ordering::Relaxed) < FAILED_WAITS_MAX {
            return thread::sleep(PAUSE);
        }
        self.table.lock().abandon(errno);
    }

    /// Starts the background thread unless it runs.
    pub(super) fn start_background(&self) -> io::Result<()> {
        let mut background = self.background.lock();
        if background.is_some() {
            return Ok(());
        }
        let ring = self.this.upgrade().filter(|_| !self.role.is_stopping());
        let Some(ring) = ring else {
            return Err(io::Error::other("the ring is being closed"));
        };
        let thread = thread::Builder::new()
            .name("graviton-reap".to_owned())
            .spawn(move || ring.reap_in_background())
            .map_err(no_thread)?;
        *background = Some(thread);
        Ok(())
    }

    fn reap_in_background(&self) {
        let thread = thread::current();
        while self.role.wait_in_background(&thread) {
            let _held = Held(&self.role);
            // One batch; then any waiter may have the role.
            loop {
                let (count, outlook) = self.reap();
                match outlook {
                    _ if count > 0 => break,
                    Outlook::Idle => break,
                    Outlook::InKernel => self.wait_for_completion(),
                    Outlook::Stalled => thread::sleep(PAUSE),
                }
            }
        }
    }

    /// Completes everything in flight and ends the background thread. Nothing may be submitted
    /// afterwards.
    pub(super) fn shut_down(&self) {
        let thread = thread::current();
        while !self.table.lock().is_quiet() {
            match self.role.enter(&thread) {
                Turn::Reap => {
                    let _held = Held(&self.role);
                    self.reap_until(|| false);
                }
                Turn::ReapNested => self.reap_until(|| false),
                Turn::Park(number) => {
                    // Others reap: their last completion does not wake this thread.
                    thread::park_timeout(PAUSE);
                    self.role.retire(number);
                }
            }
        }
        self.role.leave();
        self.role.stop();
        let background = self.background.lock().take();
        if let Some(background) = background.filter(|other| other.thread().id() != thread.id())
            && background.join().is_err()
        {
            tracing::error!("a background reaper panicked");
        }
    }
}

impl Driver for Ring {
    fn drive(&self, signal: &Signal) {
        run_deferred();
        while !signal.is_raised() {
            match self.role.enter(signal.thread()) {
                Turn::Reap => {
                    let _held = Held(&self.role);
                    self.reap_until(|| signal.is_raised());
                }
                Turn::ReapNested => {
                    self.reap_until(|| signal.is_raised());
                    if !signal.is_raised() {
                        // Nothing is in flight, and nobody else may reap what others submit.
                        thread::park_timeout(PAUSE);
                    }
                }
                Turn::Park(number) => {
                    signal.park();
                    self.role.retire(number);
                }
            }
            run_deferred();
        }
        self.role.leave();
    }
}

impl CompletionSource for Ring {
    fn want_background(&self) -> bool {
        self.role.add_interest();
        match self.start_background() {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "no thread to reap completions in the background");
                false
            }
        }
    }

    fn background_done(&self) {
        self.role.remove_interest();
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

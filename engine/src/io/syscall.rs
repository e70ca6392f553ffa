//! The transport without io_uring: plain, blocking system calls.
//!
//! Requests go to a queue. A thread that waits takes the oldest from it and carries it out itself,
//! so a lone caller that waits at once rarely depends on another thread. A few workers do the
//! rest: what is dropped, polled by an executor, or submitted well before anyone waits. The first
//! worker starts with the transport, so that progress never depends on finding a thread later;
//! more start when the queue grows.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::{Arc, Weak};

use rustix::fs::fdatasync;
use rustix::io::{Errno, ReadWriteFlags, pread, pwrite, pwritev2};

use super::completion::{CompletionSource, IoOp, Reaping, no_thread, run_deferred};
use super::disk::WriteSync;
use super::host::Transport;
use super::request::{Action, Progress, Request, Transfer};
use crate::port::op::{Driver, Signal};
use crate::sync::thread::{self, JoinHandle, Thread};
use crate::sync::{Condvar, Mutex};

const WORKERS_MAX: usize = 4;

#[derive(Debug, Default)]
struct State {
    requests: VecDeque<Request>,
    workers: Vec<JoinHandle<()>>,
    workers_idle: usize,
    stopping: bool,
    /// Waiting threads that found the queue empty and would help if it fills up.
    helpers: Vec<(u64, Thread)>,
    helper_next: u64,
}

#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    this: Weak<Self>,
}

impl Queue {
    fn new() -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            state: Mutex::default(),
            filled: Condvar::new(),
            this: Weak::clone(this),
        })
    }

    fn submit(&self, request: Request) {
        let mut state = self.state.lock();
        state.requests.push_back(request);
        let helper = self.call_for_help(&mut state);
        drop(state);
        if let Some(thread) = helper {
            thread.unpark();
        }
    }

    /// Sees to it that what is queued gets done: by an idle worker, a new one, or a parked waiter
    /// (returned, to be unparked outside of the lock). Failing all three, a busy worker comes
    /// back to the queue.
    fn call_for_help(&self, state: &mut State) -> Option<Thread> {
        if state.requests.is_empty() {
            return None;
        }
        if state.workers_idle >= state.requests.len() {
            self.filled.notify_one();
            return None;
        }
        self.filled.notify_all();
        if state.workers.len() < WORKERS_MAX && self.start_worker(state).is_ok() {
            return None;
        }
        state.helpers.pop().map(|(_, thread)| thread)
    }

    fn start_worker(&self, state: &mut State) -> io::Result<()> {
        let queue = self.this.upgrade().filter(|_| !state.stopping);
        let Some(queue) = queue else {
            return Err(io::Error::other("the queue is being closed"));
        };
        let worker = thread::Builder::new()
            .name("graviton-io".to_owned())
            .spawn(move || queue.work())
            .map_err(no_thread)?;
        state.workers.push(worker);
        Ok(())
    }

    /// A worker's life.
    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(request) = state.requests.pop_front() {
                drop(state);
                execute(request);
                state = self.state.lock();
            } else if state.stopping {
                return;
            } else {
                state.workers_idle += 1;
                self.filled.wait(&mut state);
                state.workers_idle -= 1;
            }
        }
    }

    /// The oldest request; or, if there is none, registers the thread as a helper.
    fn take_or_register(&self, thread: &Thread) -> Result<Request, u64> {
        let mut state = self.state.lock();
        if let Some(request) = state.requests.pop_front() {
            return Ok(request);
        }
        let number = state.helper_next;
        state.helper_next += 1;
        state.helpers.push((number, thread.clone()));
        Err(number)
    }

    /// Ends a registration; whether the thread had been called for help.
    fn retire(&self, number: u64) -> bool {
        let mut state = self.state.lock();
        let place = state.helpers.iter().position(|(other, _)| *other == number);
        place
            .map(|place| state.helpers.swap_remove(place))
            .is_none()
    }

    /// The thread goes away though it was called for help: another is called.
    fn pass_on(&self) {
        let helper = self.call_for_help(&mut self.state.lock());
        if let Some(thread) = helper {
            thread.unpark();
        }
    }

    /// Carries out what is queued and ends the workers.
    fn shut_down(&self) {
        let mut state = self.state.lock();
        state.stopping = true;
        let workers = std::mem::take(&mut state.workers);
        drop(state);
        self.filled.notify_all();
        let this_thread = thread::current().id();
        for worker in workers {
            if worker.thread().id() != this_thread && worker.join().is_err() {
                tracing::error!("an I/O worker panicked");
            }
        }
        loop {
            let request = self.state.lock().requests.pop_front();
            match request {
                Some(request) => execute(request),
                None => return,
            }
        }
    }
}

impl Driver for Queue {
    fn drive(&self, signal: &Signal) {
        run_deferred();
        let mut called = false;
        while !signal.is_raised() {
            match self.take_or_register(signal.thread()) {
                Ok(request) => {
                    called = false;
                    execute(request);
                }
                Err(number) => {
                    signal.park();
                    called = self.retire(number);
                }
            }
            run_deferred();
        }
        if called {
            self.pass_on();
        }
    }
}

impl CompletionSource for Queue {
    fn want_background(&self) -> bool {
        true
    }

    fn background_done(&self) {}
}

/// Carries out a request from beginning to end, on this thread.
fn execute(mut request: Request) {
    let outcome = loop {
        let result = call(&mut request);
        let again = result == Err(Errno::AGAIN);
        match request.advance(result) {
            Progress::Over(outcome) => break outcome,
            Progress::Again if again => thread::yield_now(),
            Progress::Again => {}
        }
    };
    request.finish(outcome).deliver();
}

fn call(request: &mut Request) -> Result<usize, Errno> {
    let action = request.action();
    let (file, bytes, offset) = request.remaining();
    match action {
        Action::Read => pread(file, bytes, offset),
        Action::Write(WriteSync::None) => pwrite(file, bytes, offset),
        Action::Write(WriteSync::Data) => {
            pwritev2(file, &[IoSlice::new(bytes)], offset, ReadWriteFlags::DSYNC)
        }
        Action::Sync => fdatasync(file).map(|()| 0),
    }
}

#[derive(Debug)]
pub(super) struct Syscall {
    queue: Arc<Queue>,
}

impl Syscall {
    /// Starts the first worker.
    ///
    /// # Errors
    /// No thread is to be had.
    pub(super) fn new() -> io::Result<Self> {
        let queue = Queue::new();
        queue.start_worker(&mut queue.state.lock())?;
        Ok(Self { queue })
    }
}

impl Transport for Syscall {
    fn name(&self) -> &'static str {
        "syscall"
    }

    fn submit(&self, transfer: Transfer) -> IoOp {
        let source: Arc<dyn CompletionSource> = Arc::<Queue>::clone(&self.queue);
        let (op, completer) = IoOp::pending(Some(source));
        self.queue.submit(Request::new(transfer, completer));
        op
    }

    fn driver(&self) -> Arc<dyn Driver> {
        Arc::<Queue>::clone(&self.queue)
    }

    fn reap_in_background(&self) -> Reaping {
        Reaping::default()
    }
}

impl Drop for Syscall {
    fn drop(&mut self) {
        self.queue.shut_down();
    }
}

//! The io_uring transport: rings shared by all disks of a backend.
//!
//! Reads go to one of several rings, chosen by a number each thread keeps, so that threads tend to
//! have a ring of their own and reap nothing but their own reads. Writes and syncs of all disks
//! share one ring: few and large, they gain nothing from more, and a thread that waits for the
//! commits of several disks drives them all by driving one ring.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use io_uring::{Probe, opcode};

use super::completion::IoOp;
use super::host::Transport;
use super::request::{Action, Transfer};
use super::ring::Ring;
use crate::port::op::Driver;
use crate::sync::thread_local;

/// The kernel's operations this transport needs.
const OPERATIONS: [u8; 3] = [opcode::Read::CODE, opcode::Write::CODE, opcode::Fsync::CODE];

thread_local! {
    static THREAD_NUMBER: Cell<Option<usize>> = const { Cell::new(None) };
}

fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    THREAD_NUMBER.get().unwrap_or_else(|| {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        THREAD_NUMBER.set(Some(number));
        number
    })
}

#[derive(Debug)]
pub(super) struct Uring {
    reads: Vec<Arc<Ring>>,
    writes: Arc<Ring>,
}

impl Uring {
    /// Sets up `read_rings` rings for reads and one for writes, each for `entries` requests in
    /// flight.
    ///
    /// # Errors
    /// What the system reports: io_uring is forbidden or absent, memory or descriptors run out.
    pub(super) fn new(read_rings: usize, entries: u32) -> io::Result<Self> {
        let writes = Ring::new(entries)?;
        check_operations()?;
        let reads = (0..read_rings.max(1))
            .map(|_| Ring::new(entries))
            .collect::<io::Result<_>>()?;
        let transport = Self { reads, writes };
        // Started now, while failing is still possible: `reap_in_background` has no error.
        transport.writes.start_background()?;
        Ok(transport)
    }

    #[cfg(test)]
    pub(super) fn rings(&self) -> impl Iterator<Item = &Arc<Ring>> {
        self.reads.iter().chain([&self.writes])
    }
}

/// Asks the kernel whether it knows what we need, on a ring that is dropped again.
fn check_operations() -> io::Result<()> {
    let ring = io_uring::IoUring::new(1)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    if OPERATIONS.iter().all(|code| probe.is_supported(*code)) {
        return Ok(());
    }
    let message = "this kernel's io_uring lacks plain reads and writes";
    Err(io::Error::new(io::ErrorKind::Unsupported, message))
}

impl Transport for Uring {
    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn submit(&self, transfer: Transfer) -> IoOp {
        let ring = match transfer.action {
            Action::Read => &self.reads[thread_number() % self.reads.len()],
            Action::Write(_) | Action::Sync => &self.writes,
        };
        ring.submit(transfer)
    }

    fn driver(&self) -> Arc<dyn Driver> {
        Arc::<Ring>::clone(&self.writes)
    }

    fn reap_in_background(&self) {
        self.writes.always_reap_in_background();
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        for ring in self.reads.iter().chain([&self.writes]) {
            ring.shut_down();
        }
    }
}

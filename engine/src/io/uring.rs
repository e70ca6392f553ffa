//! The io_uring transport: rings shared by all disks of a backend.
//!
//! Reads go to one of many rings, chosen by a number each thread keeps, so that threads have a ring
//! of their own, unless they are very many, and reap nothing but their own reads. A ring is made
//! when a thread first reads. Writes and syncs of all disks share one ring: few and large, they gain
//! nothing from more, and a thread that waits for the commits of several disks drives them all by
//! driving one ring.

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use io_uring::{Probe, opcode};

use super::completion::{IoOp, Reaping};
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
    /// Serves those threads, too, for which there can be no more rings.
    first: Arc<Ring>,
    /// Those of other threads, made when they first read; `None` within: that failed.
    more: Vec<OnceLock<Option<Arc<Ring>>>>,
    writes: Arc<Ring>,
    entries: u32,
}

impl Uring {
    /// Sets up a ring for reads, where there will be up to `read_rings`, and one for writes, each for
    /// `entries` requests in flight.
    ///
    /// # Errors
    /// What the system reports: io_uring is forbidden or absent, memory or descriptors run out.
    pub(super) fn new(read_rings: usize, entries: u32) -> io::Result<Self> {
        let writes = Ring::new(entries)?;
        check_operations()?;
        let transport = Self {
            first: Ring::new(entries)?,
            more: (1..read_rings).map(|_| OnceLock::new()).collect(),
            writes,
            entries,
        };
        // Started now, while failing is still possible: who asks for it later is not told.
        transport.writes.start_background()?;
        Ok(transport)
    }

    /// The ring of this thread's reads.
    fn read_ring(&self) -> &Arc<Ring> {
        let number = thread_number() % (self.more.len() + 1);
        let of_its_own = self.more.get(number.wrapping_sub(1));
        let made = of_its_own.and_then(|ring| {
            let ring = ring.get_or_init(|| Ring::new(self.entries).ok());
            ring.as_ref()
        });
        made.unwrap_or(&self.first)
    }

    pub(super) fn rings(&self) -> impl Iterator<Item = &Arc<Ring>> {
        let more = self.more.iter().filter_map(|ring| ring.get()?.as_ref());
        [&self.first, &self.writes].into_iter().chain(more)
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
            Action::Read => self.read_ring(),
            Action::Write(_) | Action::Sync => &self.writes,
        };
        ring.submit(transfer)
    }

    fn driver(&self) -> Arc<dyn Driver> {
        Arc::<Ring>::clone(&self.writes)
    }

    fn reap_in_background(&self) -> Reaping {
        Reaping::by(Arc::<Ring>::clone(&self.writes))
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        for ring in self.rings() {
            ring.shut_down();
        }
    }
}

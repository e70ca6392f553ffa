//! A simulated machine with one store on it, as a subject of the contract kit.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use graviton_engine::io::sim::{Crasher, Image, Random, Sim};
use graviton_engine::port::{BlobStore, ErrorKind, MutableObjectStore, StorageError};
use graviton_engine::store::{Access, OpenOptions, Store, StoreInfo};
use graviton_engine::testing::{Subject, Tolerance};

use super::ground::Plan;

/// Where the store lies on its machine.
pub const PATH: &str = "/simulated/store";

/// A subject with one store that is open, on disks whose events are counted.
pub trait Host: Subject {
    /// The store.
    fn store(&self) -> Arc<Store>;

    /// How many events its disks have seen, which [`Subject::events`] says, too.
    fn position(&self) -> usize;

    /// Sets its clock by so many seconds, forwards or back, if it has one that can be set.
    fn set_clock(&self, seconds: i64) {
        let _ = seconds;
    }

    /// Whether what nobody waits for stays in flight until somebody waits for something, if that can be had.
    fn leave_in_flight(&self, leave: bool) {
        let _ = leave;
    }
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    plan: Plan,
    sim: Sim,
    store: Option<Arc<Store>>,
    seeds: Random,
    trouble: Trouble,
}

/// What is to be expected of the disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    /// They fail when they are told to.
    Failures,
    /// They lie when they are told to.
    Lies,
}

impl Machine {
    /// A machine with nothing on its disks.
    #[must_use]
    pub fn new(plan: Plan, seed: u64) -> Self {
        Self::boot(plan, &Image::default(), seed)
    }

    /// A machine that comes up.
    #[must_use]
    pub fn boot(plan: Plan, image: &Image, seed: u64) -> Self {
        let mut seeds = Random::new(seed);
        Self {
            sim: Sim::boot(image, plan.block_size, seeds.number()),
            plan,
            store: None,
            seeds,
            trouble: Trouble::None,
        }
    }

    /// Its disks will fail: from now on, that is no surprise.
    pub fn expect_faults(&mut self) {
        self.trouble = Trouble::Failures;
    }

    /// Its disks will lie: from now on, what is found out is no surprise.
    pub fn expect_lies(&mut self) {
        self.trouble = Trouble::Lies;
    }

    /// Its disks tell the truth from now on.
    pub fn expect_honesty(&mut self) {
        self.trouble = Trouble::None;
    }

    /// Opens the store.
    ///
    /// # Errors
    /// What the store reports.
    pub fn open(&mut self) -> Result<Arc<Store>, StorageError> {
        self.open_for(Access::ReadWrite)
    }

    /// Opens the store in another way than for use.
    ///
    /// # Errors
    /// What the store reports.
    pub fn open_for(&mut self, access: Access) -> Result<Arc<Store>, StorageError> {
        let options = OpenOptions {
            access,
            ..self.plan.open_options()
        };
        let store = Arc::new(Store::open_on(self.sim.backend(), PATH, options)?);
        self.store = Some(Arc::clone(&store));
        Ok(store)
    }

    /// The store that is open.
    ///
    /// # Panics
    /// If none is.
    #[must_use]
    pub fn store(&self) -> Arc<Store> {
        Arc::clone(self.store.as_ref().expect("a store is open"))
    }

    /// What kind of store it has.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Its disks.
    #[must_use]
    pub fn sim(&self) -> &Sim {
        &self.sim
    }

    /// How many events its disks have seen since it came up.
    #[must_use]
    pub fn position(&self) -> usize {
        self.sim.position()
    }

    /// Sets its clock by so many seconds, forwards or back.
    pub fn set_clock(&self, seconds: i64) {
        let by = Duration::from_secs(seconds.unsigned_abs());
        let now = self.sim.time();
        let set = match seconds < 0 {
            true => now.checked_sub(by),
            false => now.checked_add(by),
        };
        self.sim.set_time(set.unwrap_or(UNIX_EPOCH));
    }

    /// What its disks have seen since it came up.
    #[must_use]
    pub fn crasher(&self) -> Crasher {
        self.sim.crasher()
    }

    /// It goes down and comes up again with `image`; the store is not open then.
    pub fn come_up(&mut self, image: &Image) {
        self.store = None;
        self.sim = Sim::boot(image, self.plan.block_size, self.seeds.number());
    }

    /// Closes the store and hands over the disks.
    ///
    /// # Panics
    /// If the store does not close.
    #[must_use]
    pub fn switch_off(mut self) -> Image {
        self.close();
        self.sim.image()
    }

    fn close(&mut self) {
        if let Some(store) = self.store.take() {
            store.close().expect("the store closes");
        }
    }
}

/// A store refuses what does not fit only if it is rather full: three eighths are taken by live
/// bytes at the least. The rest is kept back for checkpoints, compaction and deletes, or lost where
/// records do not fill segments of so small a sector.
fn is_full(info: &StoreInfo) -> bool {
    let mut spaces = info.sectors.iter().map(|sector| sector.space);
    spaces.any(|space| space.live >= space.total / 8 * 3)
}

impl Subject for Machine {
    fn fresh(&mut self) -> Arc<dyn BlobStore> {
        self.come_up(&Image::default());
        let options = self.plan.create_options();
        let store = Store::create_on(self.sim.backend(), PATH, options);
        let store = Arc::new(store.expect("a store is made"));
        self.store = Some(Arc::clone(&store));
        store
    }

    fn reopen(&mut self, store: Arc<dyn BlobStore>) -> Arc<dyn BlobStore> {
        self.close();
        drop(store);
        self.open().expect("the store opens again")
    }

    fn mutable(&self) -> Option<Arc<dyn MutableObjectStore>> {
        Some(self.store())
    }

    fn events(&self) -> usize {
        self.position()
    }

    fn tolerates(&self, error: &StorageError) -> Tolerance {
        match error.kind() {
            ErrorKind::NoSpace if is_full(&self.store().info()) => Tolerance::Refused,
            // The failure that the sector was given up for may be this very call's.
            ErrorKind::Io | ErrorKind::Unavailable if self.trouble == Trouble::Failures => {
                Tolerance::InDoubt
            }
            ErrorKind::Corruption if self.trouble == Trouble::Lies => Tolerance::InDoubt,
            _ => Tolerance::Wrong,
        }
    }
}

impl Host for Machine {
    fn store(&self) -> Arc<Store> {
        Self::store(self)
    }

    fn position(&self) -> usize {
        Self::position(self)
    }

    fn set_clock(&self, seconds: i64) {
        Self::set_clock(self, seconds);
    }

    fn leave_in_flight(&self, leave: bool) {
        self.sim.leave_in_flight(leave);
    }
}

//! Stores on a simulated machine, for the contract kit and for random histories.

use std::sync::Arc;

use graviton_engine::port::BlobStore;
use graviton_engine::store::{CreateOptions, KIB, MIB, OpenOptions, Store};
use graviton_engine::testing::Subject;

use crate::random::Random;
use crate::sim::{Image, Loss, Sim};

/// Where the store lies on its machine.
const PATH: &str = "/simulated/store";

/// Stores on a simulated machine. One seed decides everything that is left to chance.
#[derive(Debug)]
pub struct SimSubject {
    /// Every other time that a store is to be reopened the power fails instead, and what was not
    /// durable is there, or not, or in part.
    pub crashes: bool,
    options: CreateOptions,
    block_size: u32,
    random: Random,
    sim: Sim,
}

impl SimSubject {
    /// Stores of so many sectors, on devices of this block, that are closed before they are
    /// reopened.
    #[must_use]
    pub fn new(sectors: u16, block_size: u32, seed: u64) -> Self {
        Self {
            crashes: false,
            options: CreateOptions {
                sectors,
                sector_size: 96 * MIB,
                segment_size: Some(512 * KIB),
                block_size: Some(block_size),
                open: OpenOptions {
                    background: false,
                    ..OpenOptions::default()
                },
            },
            block_size,
            random: Random::new(seed),
            sim: Sim::new(block_size, seed),
        }
    }

    /// The machine of the store last made or opened.
    #[must_use]
    pub fn sim(&self) -> &Sim {
        &self.sim
    }

    fn boot(&mut self, image: &Image) {
        self.sim = Sim::boot(image, self.block_size, self.random.number());
    }
}

impl Subject for SimSubject {
    fn fresh(&mut self) -> Arc<dyn BlobStore> {
        self.boot(&Image::default());
        let made = Store::create_on(self.sim.backend(), PATH, self.options.clone());
        Arc::new(made.expect("a store can be made"))
    }

    fn reopen(&mut self, store: Arc<dyn BlobStore>) -> Arc<dyn BlobStore> {
        let image = if self.crashes && self.random.one_in(2) {
            let mut crasher = self.sim.crasher();
            crasher.advance(crasher.events());
            crasher.image(Loss::Random(self.random.number()))
        } else {
            drop(store);
            self.sim.image()
        };
        self.boot(&image);
        let opened = Store::open_on(self.sim.backend(), PATH, self.options.open.clone());
        Arc::new(opened.expect("the store opens again"))
    }
}

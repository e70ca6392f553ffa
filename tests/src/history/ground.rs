//! Where histories begin: stores that were used before, as they lie on their disks.

use std::time::Duration;

use graviton_engine::io::sim::Image;
use graviton_engine::store::{CreateOptions, KIB, MIB, OpenOptions, WriteMode};
use graviton_engine::testing::{Mix, Pair};

use super::action::actions;
use super::machine::Machine;
use super::run::perform;

/// A kind of store, and of what is done with it.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What the tests call it.
    pub name: &'static str,
    /// How many sectors, of 4 MiB each.
    pub sectors: u16,
    /// How many of them have each blob.
    pub replicas: u16,
    /// How many of those a write waits for.
    pub write_mode: WriteMode,
    /// Bytes of a segment.
    pub segment_size: u64,
    /// Bytes of a block.
    pub block_size: u32,
    /// Bytes of the read cache. What is in it is not read, so that damage is not met.
    pub cache_bytes: u64,
    /// Keys and sizes.
    pub mix: Mix,
}

impl Plan {
    /// Stores of one sector, blobs of a few chunks.
    pub const SMALL: Self = Self {
        name: "small",
        sectors: 1,
        replicas: 1,
        write_mode: WriteMode::All,
        segment_size: 64 * KIB,
        block_size: 512,
        cache_bytes: 128 * KIB,
        mix: Mix {
            keys: 20,
            largest: 36 << 10,
            reopen: true,
            mutable: true,
        },
    };

    /// Blocks of 4096 bytes.
    pub const LARGE_BLOCKS: Self = Self {
        name: "large blocks",
        segment_size: 128 * KIB,
        block_size: 4096,
        ..Self::SMALL
    };

    /// Three sectors.
    pub const THREE_SECTORS: Self = Self {
        name: "three sectors",
        sectors: 3,
        cache_bytes: 0,
        mix: Mix {
            keys: 40,
            ..Self::SMALL.mix
        },
        ..Self::SMALL
    };

    /// Two replicas over three sectors.
    pub const REPLICAS: Self = Self {
        name: "replicas",
        replicas: 2,
        ..Self::THREE_SECTORS
    };

    /// The same, where a write waits for the first of them.
    pub const ASYNC: Self = Self {
        name: "async",
        write_mode: WriteMode::Async,
        ..Self::REPLICAS
    };

    /// Three replicas, where a write waits for two of them.
    pub const QUORUM: Self = Self {
        name: "quorum",
        replicas: 3,
        write_mode: WriteMode::Quorum,
        ..Self::REPLICAS
    };

    /// Blobs of several extents, and so much of them that the sector is full now and then.
    pub const FULL: Self = Self {
        name: "full",
        mix: Mix {
            keys: 30,
            largest: 300_000,
            reopen: true,
            mutable: true,
        },
        ..Self::SMALL
    };

    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::SMALL,
        Self::LARGE_BLOCKS,
        Self::THREE_SECTORS,
        Self::REPLICAS,
        Self::FULL,
    ];

    /// Maintenance is an action like any other: there is no thread for it.
    #[must_use]
    pub fn open_options(&self) -> OpenOptions {
        OpenOptions {
            background: false,
            cache_bytes: self.cache_bytes,
            write_mode: self.write_mode,
            checkpoint_interval: Some(128 * KIB),
            // Readers are on the thread that would wait for them.
            reader_patience: Duration::ZERO,
            // Histories are short.
            merge_above: 3,
            ..OpenOptions::default()
        }
    }

    /// How its stores are made.
    #[must_use]
    pub fn create_options(&self) -> CreateOptions {
        CreateOptions {
            sectors: self.sectors,
            replicas: self.replicas,
            sector_size: 4 * MIB,
            segment_size: Some(self.segment_size),
            block_size: Some(self.block_size),
            open: self.open_options(),
        }
    }
}

/// A machine with a store on it that was used for a while, switched off in good order.
#[derive(Debug, Clone)]
pub struct Ground {
    /// The kind of store.
    pub plan: Plan,
    /// What is on its disks.
    pub image: Image,
}

impl Ground {
    /// A store that `age` actions of the seed were done to.
    ///
    /// # Panics
    /// If one of them goes wrong.
    #[must_use]
    pub fn new(plan: &Plan, seed: u64, age: usize) -> Self {
        let mut machine = Machine::new(plan.clone(), seed);
        let image = {
            let mut pair = Pair::new(&mut machine);
            for action in actions(seed, age, plan, false) {
                if let Err(what) = perform(&mut pair, &action) {
                    panic!("ground {seed} of {plan:?}, {action:?}: {what}");
                }
            }
            drop(pair.release());
            machine.switch_off()
        };
        Self {
            plan: plan.clone(),
            image,
        }
    }
}

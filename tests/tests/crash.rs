//! Power loss at any moment: random histories on simulated disks, and for each the images that a
//! crash can leave, opened, compared, verified, used, and crashed again.
//!
//! How to run more of it, or one of it again: `graviton_tests::history` and `tests/README.md`.

use std::path::Path;

use graviton_engine::io::sim::{Image, Loss, Sim};
use graviton_engine::port::{BinaryKey, BlobStore, Durability};
use graviton_engine::store::Store;
use graviton_engine::testing::{Contents, contents_of};
use graviton_tests::history::{Exploration, Plan, Tally, Trials, explore};
use graviton_tests::put_options;

/// Explores the histories of a plan. Reopenings leave few writes in doubt: there are none.
fn crash(plan: Plan, length: usize, seeds: u64, exploration: Exploration) -> Tally {
    let mut plan = plan;
    plan.mix.reopen = false;
    let trials = Trials {
        plan,
        length,
        disasters: false,
        seeds,
    };
    trials.run(&|ground, seed, actions| {
        let images = explore(ground, seed, actions, exploration)?;
        Ok(Tally {
            histories: 1,
            actions: actions.len(),
            images,
        })
    })
}

/// Every moment, every shape of loss, and so again in the recovery, and in the recovery of that.
const EXHAUSTIVE: Exploration = Exploration {
    stride: 1,
    every_loss: true,
    depth: 3,
    go_on: 8,
};

/// Some moments, and some losses, of histories that are too long for all.
const SAMPLED: Exploration = Exploration {
    stride: 8,
    every_loss: false,
    depth: 2,
    go_on: 3,
};

#[test]
fn every_crash_of_short_histories() {
    crash(Plan::SMALL, 6, 8, EXHAUSTIVE);
}

#[test]
fn every_crash_of_short_histories_over_three_sectors() {
    crash(Plan::THREE_SECTORS, 6, 2, EXHAUSTIVE);
}

#[test]
fn every_crash_of_short_histories_on_blocks_of_4096_bytes() {
    crash(Plan::LARGE_BLOCKS, 6, 4, EXHAUSTIVE);
}

#[test]
fn crashes_of_long_histories() {
    crash(Plan::SMALL, 60, 12, SAMPLED);
}

#[test]
fn crashes_of_long_histories_over_three_sectors() {
    crash(Plan::THREE_SECTORS, 60, 12, SAMPLED);
}

#[test]
fn crashes_of_full_stores() {
    crash(Plan::FULL, 40, 12, SAMPLED);
}

#[test]
fn the_creation_of_a_store() {
    let plan = Plan::THREE_SECTORS;
    let path = Path::new("/simulated/store");
    let sim = Sim::new(plan.block_size, 1);
    let store = Store::create_on(sim.backend(), path, plan.create_options()).expect("it is made");
    drop(store);
    let sim = Sim::boot(&sim.image(), plan.block_size, 1);
    let store = Store::open_on(sim.backend(), path, plan.open_options()).expect("it opens");
    assert_eq!(contents_of(&store).expect("it is read"), Contents::new());
}

/// A frame of which a crash took a part is dropped, and stays so: not even a later frame that is torn
/// at the same place, and leaves there what the first had lacked, brings it back.
#[test]
fn a_frame_that_was_dropped_does_not_come_back() {
    const UNIT: usize = 512;
    let plan = Plan::LARGE_BLOCKS;
    let path = Path::new("/simulated/store");
    let key = |name: &str| BinaryKey::new(name).expect("a short key");
    let put = |store: &Store, name: &str, durability| {
        let options = put_options(durability);
        let put = store.put(&key(name), name.as_bytes().to_vec().into(), options);
        put.wait().expect("it is put");
    };
    let boot = |image: &Image| {
        let sim = Sim::boot(image, plan.block_size, 1);
        let store = Store::open_on(sim.backend(), path, plan.open_options()).expect("it opens");
        (sim, store)
    };
    let kept = |store: &Store| {
        let found: Vec<BinaryKey> = contents_of(store)
            .expect("it is read")
            .into_keys()
            .collect();
        assert_eq!(found, [key("kept")]);
    };

    let sim = Sim::new(plan.block_size, 1);
    let store = Store::create_on(sim.backend(), path, plan.create_options()).expect("it is made");
    put(&store, "kept", Durability::Durable);
    let before = sim.image();
    put(&store, "dropped", Durability::Written);
    let mut torn = sim.image();
    let frame = first_difference(&before, &torn).expect("a frame was written");
    // Its end did not arrive. What is there instead is of an earlier life of the segment.
    torn.edit(0, frame + UNIT, &[0xaa; UNIT]);

    let (sim, store) = boot(&torn);
    kept(&store);
    put(&store, "later", Durability::Written);
    let mut crasher = sim.crasher();
    crasher.advance(crasher.events());
    let mut torn = crasher.image(Loss::All);
    // Of the later frame only the end arrives.
    torn.edit(0, frame + UNIT, &[0; UNIT]);

    let (_sim, store) = boot(&torn);
    kept(&store);
}

/// Where disk 0 of two images begins to differ, in whole blocks.
fn first_difference(one: &Image, other: &Image) -> Option<usize> {
    const BLOCK: usize = 4096;
    let size = one.size(0)?;
    let (mut left, mut right) = ([0; BLOCK], [0; BLOCK]);
    (0..size).step_by(BLOCK).find(|&offset| {
        one.read(0, offset, &mut left);
        other.read(0, offset, &mut right);
        left != right
    })
}

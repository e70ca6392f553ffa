//! Power loss at any moment: random histories on simulated disks, and for each the images that a
//! crash can leave, opened, compared, verified, used, and crashed again.
//!
//! How to run more of it, or one of it again: `graviton_tests::history` and `tests/README.md`.

use graviton_engine::io::sim::{Image, Loss, Sim};
use graviton_engine::port::{BinaryKey, BlobStore, Durability};
use graviton_engine::store::Store;
use graviton_engine::testing::{Contents, contents_of};
use graviton_tests::history::{Exploration, PATH, Plan, Tally, Trials, check_store, explore};
use graviton_tests::put_options;

/// Explores the histories of a plan. Reopenings leave few writes in doubt: there are none.
fn crash(plan: Plan, length: usize, seeds: u64, exploration: Exploration) -> Tally {
    let trials = Trials::undisturbed(plan, length, seeds);
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

/// The same over several sectors, whose opening has many more moments: to depth two, unless more is asked for.
fn exhaustive_over_sectors() -> Exploration {
    Exploration {
        depth: if std::env::var_os("GRAVITON_SEEDS").is_some() {
            3
        } else {
            2
        },
        ..EXHAUSTIVE
    }
}

/// Some moments, and some losses, of histories that are too long for all.
const SAMPLED: Exploration = Exploration {
    stride: 8,
    every_loss: false,
    depth: 2,
    go_on: 3,
};

#[test]
fn every_crash_of_short_histories() {
    crash(Plan::SMALL, 6, 5, EXHAUSTIVE);
}

#[test]
fn every_crash_of_short_histories_over_three_sectors() {
    crash(Plan::THREE_SECTORS, 6, 1, exhaustive_over_sectors());
}

#[test]
fn every_crash_of_short_histories_on_blocks_of_4096_bytes() {
    crash(Plan::LARGE_BLOCKS, 6, 3, EXHAUSTIVE);
}

#[test]
fn crashes_of_long_histories() {
    crash(Plan::SMALL, 60, 8, SAMPLED);
}

#[test]
fn crashes_of_long_histories_over_three_sectors() {
    crash(Plan::THREE_SECTORS, 60, 6, SAMPLED);
}

#[test]
fn every_crash_of_short_histories_over_replicas() {
    crash(Plan::REPLICAS, 6, 1, exhaustive_over_sectors());
}

#[test]
fn crashes_of_long_histories_over_replicas() {
    crash(Plan::REPLICAS, 60, 6, SAMPLED);
}

#[test]
fn crashes_of_long_histories_in_which_writes_wait_for_some_replicas() {
    crash(Plan::ASYNC, 60, 2, SAMPLED);
    crash(Plan::QUORUM, 60, 2, SAMPLED);
}

#[test]
fn crashes_of_full_stores() {
    crash(Plan::FULL, 40, 8, SAMPLED);
}

/// A power loss while a store is made leaves an empty store, or something that keeps nobody from
/// making one there.
#[test]
fn every_crash_of_the_creation_of_a_store() {
    let mut images = 0;
    for sectors in [1, 3] {
        let plan = Plan {
            sectors,
            ..Plan::SMALL
        };
        let sim = Sim::new(plan.block_size, sectors.into());
        let create = |sim: &Sim| Store::create_on(sim.backend(), PATH, plan.create_options());
        drop(create(&sim).expect("it is made"));
        let mut crasher = sim.crasher();
        for position in 0..=crasher.events() {
            crasher.advance(position);
            for loss in crasher.losses().collect::<Vec<_>>() {
                images += 1;
                let sim = Sim::boot(&crasher.image(loss), plan.block_size, 1);
                let open = || Store::open_on(sim.backend(), PATH, plan.open_options());
                let store = match open() {
                    // Whoever made it was told that it is there.
                    Err(_) if position < crasher.events() => {
                        create(&sim).map(drop).and_then(|()| open())
                    }
                    opened => opened,
                };
                let checked = store.map_err(|error| error.to_string()).and_then(|store| {
                    check_store(&store)?;
                    let found = contents_of(&store).map_err(|error| error.to_string())?;
                    assert_eq!(found, Contents::new());
                    Ok(())
                });
                if let Err(what) = checked {
                    panic!("power loss at event {position}, {loss:?}: {what}");
                }
            }
        }
    }
    println!("{images} images");
}

/// A frame of which a crash took a part is dropped, and stays so: not even a later frame that is torn
/// at the same place, and leaves there what the first had lacked, brings it back.
#[test]
fn a_frame_that_was_dropped_does_not_come_back() {
    const UNIT: usize = 512;
    let plan = Plan::LARGE_BLOCKS;
    let key = |name: &str| BinaryKey::new(name).expect("a short key");
    let put = |store: &Store, name: &str, durability| {
        let options = put_options(durability);
        let put = store.put(&key(name), name.as_bytes().to_vec().into(), options);
        put.wait().expect("it is put");
    };
    let boot = |image: &Image| {
        let sim = Sim::boot(image, plan.block_size, 1);
        let store = Store::open_on(sim.backend(), PATH, plan.open_options()).expect("it opens");
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
    let store = Store::create_on(sim.backend(), PATH, plan.create_options()).expect("it is made");
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

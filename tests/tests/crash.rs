//! Power loss at any moment: random histories on simulated disks, and for each the images that a
//! crash can leave, opened, compared, verified, used, and crashed again.
//!
//! How to run more of it, or one of it again: `graviton_tests::history` and `tests/README.md`.

use graviton_engine::io::sim::{Image, Loss, Sim, Tear};
use graviton_engine::port::{Batch, BatchItem, BinaryKey, BlobStore, Durability, PutOptions};
use graviton_engine::store::Store;
use graviton_engine::testing::{Contents, contents_of};
use graviton_tests::history::{
    Exploration, PATH, Plan, Tally, Trials, check_store, explore, seeds,
};
use graviton_tests::{begin, put_options};

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

/// A checkpoint is taken while a frame is under way that opens a segment, and the power fails before that has landed:
/// nobody has the segment then.
#[test]
fn a_segment_opened_beside_a_checkpoint_is_not_lost() {
    let plan = Plan::SMALL;
    let key = |number: usize| BinaryKey::new(format!("key {number}")).expect("a short key");
    let mut lost = 0;
    for seed in seeds(300) {
        let sim = Sim::new(plan.block_size, seed);
        let created = Store::create_on(sim.backend(), PATH, plan.create_options());
        let store = created.expect("it is made");
        let put = |number, length: usize| {
            let options = put_options(Durability::Durable);
            store.put(&key(number), vec![1; length].into(), options)
        };
        put(0, 60_000).wait().expect("it is put");
        sim.leave_in_flight(true);
        // There is no room for it behind the other.
        let under_way = begin(put(1, 3_800));
        store.checkpoint().expect("a checkpoint");
        let position = sim.position();
        under_way.wait().expect("it is put");
        drop(store);
        let mut crasher = sim.crasher();
        crasher.advance(position);
        let sim = Sim::boot(&crasher.image(Loss::All), plan.block_size, seed);
        let store = Store::open_on(sim.backend(), PATH, plan.open_options()).expect("it opens");
        lost += usize::from(contents_of(&store).expect("it is read").len() == 1);
        check_store(&store).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    }
    assert!(lost > 0);
}

/// What a frame that was dropped has left lies behind the front of a later one that is torn, piece by piece where that
/// has its own, and each of its records is whole: all of them are of one frame, or there is none.
#[test]
fn records_of_two_frames_make_no_frame() {
    let plan = Plan::SMALL;
    let keys: Vec<BinaryKey> = (0..8)
        .map(|number| BinaryKey::new(format!("key {number}")).expect("a short key"))
        .collect();
    let put_all = |store: &Store, length: usize, byte: u8| {
        let items = keys.iter().map(|key| BatchItem::Put {
            key: key.clone(),
            payload: vec![byte; length].into(),
            options: PutOptions::default(),
        });
        let batch = Batch {
            items: items.collect(),
            durability: Durability::Written,
        };
        store.batch(batch).wait().expect("it is applied");
    };
    let boot = |image: &Image| {
        let sim = Sim::boot(image, plan.block_size, 1);
        let store = Store::open_on(sim.backend(), PATH, plan.open_options()).expect("it opens");
        (sim, store)
    };
    let mut images = 0;
    // So that the records of some begin where a unit does.
    for length in (1..500).step_by(3) {
        let sim = Sim::new(plan.block_size, 1);
        let store =
            Store::create_on(sim.backend(), PATH, plan.create_options()).expect("it is made");
        let options = put_options(Durability::Durable);
        let before = BinaryKey::new("before").expect("a short key");
        let first = store.put(&before, "bytes".into(), options);
        first.wait().expect("it is put");
        put_all(&store, length, 1);
        let at_its_end = |sim: &Sim| {
            let mut crasher = sim.crasher();
            crasher.advance(crasher.events());
            crasher
        };
        let torn = at_its_end(&sim).image(Loss::Torn(0, Tear::LastHalf));
        drop(store);
        let (sim, store) = boot(&torn);
        if contents_of(&store).expect("it is read").len() > 1 {
            // All of it is in one unit.
            continue;
        }
        put_all(&store, length, 2);
        let crasher = at_its_end(&sim);
        drop(store);
        for loss in crasher.losses() {
            images += 1;
            let (_sim, store) = boot(&crasher.image(loss));
            let found = contents_of(&store).expect("it is read");
            let batch: Vec<u8> = keys
                .iter()
                .filter_map(|key| found.get(key)?.bytes.first().copied())
                .collect();
            assert!(
                batch.is_empty() || batch == [2; 8],
                "{length} bytes, {loss:?}: {batch:?}"
            );
        }
    }
    println!("{images} images");
    assert!(images > 500, "{images}");
}

//! The n-th call to the disk fails, for every n until a history is over before it: once, and from
//! then on. No answer is wrong then, and what was acknowledged is there when the disk works again,
//! or when the power fails besides.
//!
//! How to run more of it, or one of it again: `graviton_tests::history` and `tests/README.md`.

use std::sync::Arc;

use graviton_engine::io::sim::{DiskCondition, Fault, FaultError, FaultKind, Image, Loss, Sim};
use graviton_engine::port::{BinaryKey, BlobStore, Durability, ErrorKind, StorageError};
use graviton_engine::store::Store;
use graviton_engine::testing::{Difference, Pair, Step, Subject, Versions, contents_of};
use graviton_tests::history::{
    Action, Ground, Machine, PATH, Plan, Record, Tally, Trials, actions, check_store, do_all, open,
};
use graviton_tests::random::payload;
use graviton_tests::{all_keys, begin, put_options, with_holes};

fn key(number: usize) -> BinaryKey {
    BinaryKey::new(format!("key {number}")).expect("a short key")
}

/// A way to fail that is tried at every call of a history.
#[derive(Debug, Clone, Copy)]
struct Way {
    kind: FaultKind,
    error: FaultError,
    times: usize,
    /// The disk that it hits; `None`: any, and what is no disk.
    disk: Option<usize>,
}

impl Way {
    fn at(self, after: usize) -> Fault {
        Fault {
            kind: self.kind,
            after,
            times: self.times,
            disk: self.disk,
        }
    }
}

/// Runs the history once for each call that can fail.
fn fail_each(
    ground: &Ground,
    seed: u64,
    actions: &[Action],
    ways: &[Way],
) -> Result<Tally, Difference> {
    let mut tally = Tally {
        histories: 0,
        actions: 0,
        images: 0,
    };
    for way in ways {
        for after in 0.. {
            let fault = way.at(after);
            let (failures, images) = fail_one(ground, seed, actions, fault, way.error)
                .map_err(|what| format!("{fault:?}: {what}"))?;
            tally.histories += 1;
            tally.actions += actions.len();
            tally.images += images;
            if failures == 0 {
                break;
            }
        }
    }
    Ok(tally)
}

/// Runs the history with one fault; then looks at what is left. Returns how many calls failed, and
/// how many images were looked at.
fn fail_one(
    ground: &Ground,
    seed: u64,
    actions: &[Action],
    fault: Fault,
    error: FaultError,
) -> Result<(usize, usize), Difference> {
    let mut healthy = Machine::boot(ground.plan.clone(), &ground.image, seed);
    let mut machine = Machine::boot(ground.plan.clone(), &ground.image, seed);
    machine.expect_faults();
    let sim = machine.sim().clone();
    let mut pair = {
        let store = open(&mut healthy)?;
        let mut pair = Pair::over(&mut machine, Arc::<Store>::clone(&store));
        pair.adopt(store)?;
        drop(pair.release());
        pair
    };
    let mut record = Record::new(pair.contents());
    sim.add_faults(&[fault], error);
    match pair.subject().open() {
        Ok(store) => go_on(&mut pair, store, actions, fault, &mut record)?,
        Err(error) => check_error(&error)?,
    }
    let failures = sim.failures();
    sim.set_faults(&[]);
    let position = sim.position();
    let mut crasher = sim.crasher();
    crasher.advance(position);
    let mut images = vec![("the disk healed", sim.image())];
    if failures > 0 {
        images.push(("all in doubt was lost", crasher.image(Loss::All)));
        images.push((
            "the power failed",
            crasher.image(Loss::Random(fault.after as u64)),
        ));
    }
    for (what, image) in &images {
        check(ground, seed, image, &record, pair.given(), position)
            .map_err(|wrong| format!("{what}: {wrong}"))?;
    }
    Ok((failures, images.len()))
}

/// Does the actions as far as the disk lets it, looks at what goes on working, and closes the store.
fn go_on(
    pair: &mut Pair<'_, Machine>,
    store: Arc<Store>,
    actions: &[Action],
    fault: Fault,
    record: &mut Record,
) -> Result<(), Difference> {
    pair.resume(Arc::<Store>::clone(&store));
    do_all(pair, actions, record)?;
    pair.run(&Step::compare_all())?;
    pair.subject().sim().set_faults(&[]);
    if fault.kind != FaultKind::Death {
        go_on_well(pair, &store, fault, record)
            .map_err(|what| format!("when the disk works again: {what}"))?;
    }
    drop(pair.release());
    match store.close() {
        Ok(()) => Ok(()),
        Err(error) => check_error(&error),
    }
}

/// The disk works again. Everything can be read; only sectors that a write or sync failed in take no
/// more of them, and if there are none, nothing fails any more.
fn go_on_well(
    pair: &mut Pair<'_, Machine>,
    store: &Store,
    fault: Fault,
    record: &mut Record,
) -> Result<(), Difference> {
    let writes = matches!(fault.kind, FaultKind::Write | FaultKind::Sync);
    for sector in store.info().sectors {
        let is_hit = writes && fault.disk == Some(sector.number.into());
        if let (Some(cause), false) = (sector.poisoned, is_hit) {
            return Err(format!("sector {} was given up: {cause}", sector.number));
        }
    }
    pair.subject().expect_honesty();
    pair.run(&Step::compare_all())?;
    if writes {
        // Of the sectors that were hit, what is called for goes on failing.
        pair.subject().expect_faults();
    }
    let more = actions(fault.after as u64, 4, pair.subject().plan(), false);
    do_all(pair, &more, record)
}

/// A disk that fails is reported as that, not as damage.
fn check_error(error: &StorageError) -> Result<(), Difference> {
    match error.kind() {
        ErrorKind::Io | ErrorKind::Unavailable => Ok(()),
        _ => Err(format!("{error} ({:?})", error.kind())),
    }
}

/// What is left holds what was acknowledged, is whole, and stays so.
fn check(
    ground: &Ground,
    seed: u64,
    image: &Image,
    record: &Record,
    given: &Versions,
    position: usize,
) -> Result<(), Difference> {
    let mut machine = Machine::boot(ground.plan.clone(), image, seed);
    let store = open(&mut machine)?;
    let found = contents_of(&*store).map_err(|error| format!("can't be read: {error}"))?;
    // A sector that was given up has no order any more among what failed.
    record.check_keys(&found, position)?;
    given.check(&*store)?;
    check_store(&store)?;
    store.close().map_err(|error| error.to_string())?;
    drop(store);
    let again = contents_of(&*open(&mut machine)?).map_err(|error| error.to_string())?;
    match again == found {
        true => Ok(()),
        false => Err("it holds something else when it is opened again".to_owned()),
    }
}

/// Histories of a plan, each run once for each call that can fail in these ways.
fn every(plan: Plan, length: usize, seeds: u64, ways: &[Way]) {
    let trials = Trials::undisturbed(plan, length, seeds);
    let tally = trials.run(&|ground, seed, actions| fail_each(ground, seed, actions, ways));
    assert!(tally.histories > 20, "only {tally:?}");
}

const FOR_EVER: usize = usize::MAX;

/// Calls of a kind fail with EIO, so many times, on the first disk.
fn fails(kind: FaultKind, times: usize) -> Way {
    Way {
        kind,
        error: FaultError::Io,
        times,
        disk: Some(0),
    }
}

#[test]
fn each_write_fails() {
    let kind = FaultKind::Write;
    let ways = [fails(kind, 1), fails(kind, FOR_EVER)];
    every(Plan::SMALL, 30, 8, &ways);
}

#[test]
fn each_write_finds_no_space() {
    let ways = [1, FOR_EVER].map(|times| Way {
        error: FaultError::NoSpace,
        ..fails(FaultKind::Write, times)
    });
    every(Plan::SMALL, 30, 4, &ways);
}

#[test]
fn each_sync_fails() {
    let kind = FaultKind::Sync;
    let ways = [fails(kind, 1), fails(kind, FOR_EVER)];
    every(Plan::SMALL, 30, 8, &ways);
}

#[test]
fn each_read_fails() {
    let kind = FaultKind::Read;
    let ways = [fails(kind, 1), fails(kind, FOR_EVER)];
    every(Plan::SMALL, 30, 4, &ways);
}

/// There is no memory: nothing is given up for it.
#[test]
fn each_allocation_fails() {
    let once = Way {
        error: FaultError::NoMemory,
        ..fails(FaultKind::Allocate, 1)
    };
    let for_ever = Way {
        times: FOR_EVER,
        ..once
    };
    every(Plan::SMALL, 12, 1, &[once, for_ever]);
}

/// There is no memory for one of the writes of a checkpoint's image: those before it land in no segment that is used for
/// something else by then.
#[test]
fn no_memory_for_all_of_an_image() {
    let mut failed = 0;
    for seed in 0..120_u32 {
        let mut machine = Machine::new(Plan::SMALL, seed.into());
        drop(machine.fresh());
        let (sim, store) = (machine.sim().clone(), machine.store());
        let put = |number| {
            let put = store.put(
                &key(number),
                payload(number as u64, 60_000),
                put_options(Durability::Durable),
            );
            put.wait().expect("it is put");
        };
        (0..3).for_each(put);
        let fault = Fault {
            kind: FaultKind::Allocate,
            after: seed as usize % 4,
            times: 1,
            disk: None,
        };
        // What was changed before it changes again beside it.
        sim.leave_in_flight(true);
        let newer = payload(7, 500);
        let options = put_options(Durability::Durable);
        let under_way = begin(store.put(&key(0), newer.clone(), options));
        sim.add_faults(&[fault], FaultError::NoMemory);
        failed += usize::from(store.checkpoint().is_err());
        sim.set_faults(&[]);
        sim.leave_in_flight(false);
        under_way.wait().expect("it is put");
        let got = store.get(&key(0), with_holes()).wait();
        assert_eq!(got.expect("it is read").bytes, newer, "seed {seed}");
        // Into segments that nothing was written to yet.
        (3..6).for_each(put);
        let expected = contents_of(&*store).expect("it is read");
        let image = sim.image();
        machine.come_up(&image);
        drop(store);
        let store = machine.open().expect("it opens");
        let found = contents_of(&*store).expect("it is read");
        assert_eq!(found, expected, "seed {seed}");
        check_store(&store).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    }
    assert!(failed > 20, "{failed}");
}

/// There is no memory for a frame that would have opened a segment: nobody has the segment then.
#[test]
fn no_memory_for_a_frame_that_opens_a_segment() {
    let mut machine = Machine::new(Plan::SMALL, 1);
    drop(machine.fresh());
    let (sim, store) = (machine.sim().clone(), machine.store());
    let put = |number: usize, length| {
        let options = put_options(Durability::Durable);
        store.put(&key(number), payload(1, length), options).wait()
    };
    put(0, 60_000).expect("it is put");
    let fault = Fault {
        kind: FaultKind::Allocate,
        after: 0,
        times: 1,
        disk: None,
    };
    sim.add_faults(&[fault], FaultError::NoMemory);
    // There is no room for it behind the other.
    put(1, 3_800).expect_err("there is no memory");
    check_store(&store).expect("nothing is the worse for it");
    put(2, 3_800).expect("there is memory again");
    check_store(&store).expect("nothing is the worse for it");
}

#[test]
fn the_disk_dies_at_each_call() {
    every(Plan::SMALL, 20, 2, &[fails(FaultKind::Death, 1)]);
}

#[test]
fn each_transfer_is_short() {
    let ways = [FaultKind::ShortWrite, FaultKind::ShortRead].map(|kind| fails(kind, 1));
    every(Plan::SMALL, 20, 2, &ways);
    let ways = ways.map(|way| Way {
        times: FOR_EVER,
        ..way
    });
    every(Plan::LARGE_BLOCKS, 20, 1, &ways);
}

#[test]
fn calls_fail_on_blocks_of_4096_bytes() {
    use FaultKind::{Read, Sync, Write};
    let ways = [Read, Write, Sync].map(|kind| fails(kind, 1));
    every(Plan::LARGE_BLOCKS, 20, 1, &ways);
}

/// What opening a store asks of the system besides reading its sectors.
#[test]
fn each_call_beside_the_disks_fails() {
    let kinds = [
        FaultKind::Open,
        FaultKind::ReadFile,
        FaultKind::Lock,
        FaultKind::Random,
    ];
    let errors = [
        FaultError::Io,
        FaultError::TooManyFiles,
        FaultError::NoMemory,
    ];
    let ways: Vec<Way> = kinds
        .into_iter()
        .flat_map(|kind| {
            errors.map(|error| Way {
                error,
                disk: None,
                ..fails(kind, 1)
            })
        })
        .collect();
    every(Plan::THREE_SECTORS, 4, 4, &ways);
}

#[test]
fn calls_fail_in_one_of_three_sectors() {
    let ways: Vec<Way> = (0..3)
        .flat_map(|disk| {
            [FaultKind::Write, FaultKind::Sync].map(|kind| Way {
                disk: Some(disk),
                ..fails(kind, 1)
            })
        })
        .collect();
    every(Plan::THREE_SECTORS, 30, 4, &ways);
    let for_ever: Vec<Way> = ways
        .iter()
        .map(|way| Way {
            times: FOR_EVER,
            ..*way
        })
        .collect();
    every(Plan::THREE_SECTORS, 30, 4, &for_ever);
}

#[test]
fn calls_fail_while_the_store_is_full() {
    let ways = [FaultKind::Write, FaultKind::Sync].map(|kind| fails(kind, 1));
    every(Plan::FULL, 20, 4, &ways);
}

/// A disk that is dead, or not there, is named by the error that keeps the store from opening, or by
/// those of what lies on it; the rest is served. When it is back, so is all that is on it.
#[test]
fn a_disk_is_gone_for_a_while() {
    let plan = Plan::THREE_SECTORS;
    let ground = Ground::new(&plan, 1, 60);
    let mut machine = Machine::boot(plan, &ground.image, 1);
    let expected = contents_of(&*machine.open().expect("it opens")).expect("it is read");
    for (disk, condition) in [0, 1, 2]
        .into_iter()
        .flat_map(|disk| [DiskCondition::Dead, DiskCondition::Absent].map(|how| (disk, how)))
    {
        machine.come_up(&ground.image);
        let sim = machine.sim().clone();
        let store = machine.open().expect("it opens");
        let place = |key: &BinaryKey| store.stat(key).wait().expect("it is there").sectors[0];
        let blobs = all_keys(&*store).expect("they are listed");
        let places: Vec<u16> = blobs.iter().map(place).collect();
        sim.set_condition(disk, condition);
        let mut gone = 0;
        for (key, sector) in blobs.iter().zip(places) {
            let (held, is_there) = (&expected[key], usize::from(sector) != disk);
            // What was never written needs no disk.
            let has_bytes = held.missing.len() < held.bytes.len() as u64;
            match store.get(key, with_holes()).wait() {
                Ok(blob) if is_there || !has_bytes => assert_eq!(blob.bytes, held.bytes),
                Err(StorageError::Io { place, .. }) if usize::from(place.sector) == disk => {
                    gone += 1;
                }
                other => panic!("disk {disk} is {condition:?}, {key}: {other:?}"),
            }
        }
        assert!(gone > 0 && gone < blobs.len());
        drop(store);
        machine.come_up(&ground.image);
        let sim = machine.sim().clone();
        sim.set_condition(disk, condition);
        let error = machine.open().expect_err("it does not open");
        check_error(&error).unwrap_or_else(|what| panic!("disk {disk} is {condition:?}: {what}"));
        let text = error.to_string();
        assert!(text.contains(&format!("sector-{disk:03}")), "{text}");
        sim.set_condition(disk, DiskCondition::Well);
        let store = machine.open().expect("it opens again");
        assert_eq!(contents_of(&*store).expect("it is read"), expected);
        check_store(&store).expect("it is whole");
    }
}

/// A sync that succeeds after one that failed says nothing of what was written before either: not
/// to a flush that is under way while a checkpoint's sync fails.
#[test]
fn a_flush_beside_a_checkpoint_whose_sync_fails() {
    let (mut flushed, mut failed) = (0, 0);
    for seed in 0..200_u32 {
        let mut machine = Machine::new(Plan::SMALL, seed.into());
        drop(machine.fresh());
        let (sim, store) = (machine.sim().clone(), machine.store());
        sim.set_faults(&[Fault {
            kind: FaultKind::Sync,
            after: seed as usize % 4,
            times: 1,
            disk: None,
        }]);
        sim.leave_in_flight(true);
        let mut under_way = Vec::new();
        let mut acknowledged = 0;
        for number in 0..4 {
            let put = store.put(
                &key(number),
                "bytes".into(),
                put_options(Durability::Written),
            );
            if put.wait().is_err() {
                break;
            }
            acknowledged = number + 1;
            under_way.push((acknowledged, begin(store.flush())));
        }
        let checkpoint = store.checkpoint();
        let durable = under_way.into_iter().filter_map(|(count, flush)| {
            flush.wait().ok()?;
            Some(count)
        });
        let durable = durable.max().unwrap_or(0);
        flushed += usize::from(durable > 0 && checkpoint.is_err());
        failed += usize::from(durable < acknowledged);
        let mut crasher = machine.crasher();
        crasher.advance(crasher.events());
        machine.come_up(&crasher.image(Loss::All));
        drop(store);
        let found = contents_of(&*machine.open().expect("it opens")).expect("it is read");
        for number in 0..durable {
            assert!(
                found.contains_key(&key(number)),
                "seed {seed}: {number} was flushed, and is lost"
            );
        }
    }
    println!("{flushed} flushed beside a checkpoint that failed, {failed} failed");
    assert!(flushed > 0 && failed > 0);
}

/// A store that can't be made leaves nothing that keeps it from being made.
#[test]
fn each_call_of_a_creation_fails() {
    let plan = Plan {
        sectors: 2,
        ..Plan::SMALL
    };
    let kinds = [
        FaultKind::Read,
        FaultKind::Write,
        FaultKind::Sync,
        FaultKind::Create,
        FaultKind::ReplaceFile,
        FaultKind::RemoveFile,
        FaultKind::CreateDirectory,
        FaultKind::Lock,
        FaultKind::Random,
    ];
    for kind in kinds {
        for after in 0..1000 {
            let sim = Sim::new(plan.block_size, after as u64);
            sim.set_faults(&[Fault {
                kind,
                after,
                times: 1,
                disk: None,
            }]);
            let create = || Store::create_on(sim.backend(), PATH, plan.create_options());
            let outcome = create();
            let over = sim.failures() == 0;
            sim.set_faults(&[]);
            match outcome {
                Ok(store) => drop(store),
                Err(error) => {
                    check_error(&error).unwrap_or_else(|what| panic!("{kind:?} {after}: {what}"));
                    create().unwrap_or_else(|error| panic!("{kind:?} {after}: again: {error}"));
                }
            }
            let store = Store::open_on(sim.backend(), PATH, plan.open_options());
            assert_eq!(store.expect("it opens").info().blobs, 0);
            if over {
                break;
            }
        }
    }
}

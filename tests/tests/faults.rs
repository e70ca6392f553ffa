//! The n-th call to the disk fails, for every n until a history is over before it: once, and from
//! then on. No answer is wrong then, and what was acknowledged is there when the disk works again,
//! or when the power fails besides.
//!
//! How to run more of it, or one of it again: `graviton_tests::history` and `tests/README.md`.

use std::sync::Arc;

use graviton_engine::io::sim::{Fault, FaultKind, Image, Loss, Sim};
use graviton_engine::port::{ErrorKind, StorageError};
use graviton_engine::store::Store;
use graviton_engine::testing::{Difference, Pair, Step, contents_of};
use graviton_tests::history::{
    Action, Ground, Machine, PATH, Plan, Record, Tally, Trials, check_store, do_and_note, open,
};

/// A way to fail that is tried at every call of a history.
#[derive(Debug, Clone, Copy)]
struct Way {
    kind: FaultKind,
    times: usize,
    /// The disk that it hits.
    disk: usize,
}

impl Way {
    fn at(self, after: usize) -> Fault {
        Fault {
            kind: self.kind,
            after,
            times: self.times,
            disk: Some(self.disk),
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
            let (failures, images) = fail_one(ground, seed, actions, fault)
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
    sim.set_faults(&[fault]);
    match pair.subject().open() {
        Ok(store) => go_on(&mut pair, store, actions, &mut record)?,
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
        check(ground, seed, image, &record, position)
            .map_err(|wrong| format!("{what}: {wrong}"))?;
    }
    Ok((failures, images.len()))
}

/// Does the actions as far as the disk lets it, and closes the store.
fn go_on(
    pair: &mut Pair<'_, Machine>,
    store: Arc<Store>,
    actions: &[Action],
    record: &mut Record,
) -> Result<(), Difference> {
    pair.resume(Arc::<Store>::clone(&store));
    for action in actions {
        let done = do_and_note(pair, action).map_err(|what| format!("{action:?}: {what}"))?;
        record.done.push(done);
    }
    pair.run(&Step::compare_all())?;
    drop(pair.release());
    match store.close() {
        Ok(()) => Ok(()),
        Err(error) => check_error(&error),
    }
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
    position: usize,
) -> Result<(), Difference> {
    let mut machine = Machine::boot(ground.plan.clone(), image, seed);
    let store = open(&mut machine)?;
    let found = contents_of(&*store).map_err(|error| format!("can't be read: {error}"))?;
    // A sector that was given up has no order any more among what failed.
    record.check_keys(&found, position)?;
    check_store(&store)?;
    store.close().map_err(|error| error.to_string())?;
    drop(store);
    let again = contents_of(&*open(&mut machine)?).map_err(|error| error.to_string())?;
    match again == found {
        true => Ok(()),
        false => Err("it holds something else when it is opened again".to_owned()),
    }
}

/// Histories of a plan, each run once for each call of these kinds.
fn every(plan: Plan, length: usize, seeds: u64, kinds: &[FaultKind], times: usize) {
    let mut plan = plan;
    plan.mix.reopen = false;
    let disks = 0..usize::from(plan.sectors);
    let ways: Vec<Way> = kinds
        .iter()
        .flat_map(|&kind| disks.clone().map(move |disk| Way { kind, times, disk }))
        .collect();
    let trials = Trials {
        plan,
        length,
        disasters: false,
        seeds,
    };
    let tally = trials.run(&|ground, seed, actions| fail_each(ground, seed, actions, &ways));
    assert!(tally.histories > 20, "only {tally:?}");
}

const FOR_EVER: usize = usize::MAX;

#[test]
fn each_write_fails_once() {
    every(Plan::SMALL, 30, 8, &[FaultKind::Write], 1);
}

#[test]
fn each_write_and_all_after_it_fail() {
    every(Plan::SMALL, 30, 8, &[FaultKind::Write], FOR_EVER);
}

#[test]
fn each_sync_fails_once() {
    every(Plan::SMALL, 30, 8, &[FaultKind::Sync], 1);
}

#[test]
fn each_sync_and_all_after_it_fail() {
    every(Plan::SMALL, 30, 8, &[FaultKind::Sync], FOR_EVER);
}

#[test]
fn each_read_fails_once() {
    every(Plan::SMALL, 30, 4, &[FaultKind::Read], 1);
}

#[test]
fn each_read_and_all_after_it_fail() {
    every(Plan::SMALL, 30, 4, &[FaultKind::Read], FOR_EVER);
}

#[test]
fn calls_fail_in_one_of_three_sectors() {
    let kinds = [FaultKind::Write, FaultKind::Sync];
    every(Plan::THREE_SECTORS, 30, 4, &kinds, 1);
    every(Plan::THREE_SECTORS, 30, 4, &kinds, FOR_EVER);
}

#[test]
fn calls_fail_while_the_store_is_full() {
    let kinds = [FaultKind::Write, FaultKind::Sync];
    every(Plan::FULL, 20, 4, &kinds, 1);
}

/// A store that can't be made leaves nothing that keeps it from being made.
#[test]
fn each_call_of_a_creation_fails() {
    let plan = Plan {
        sectors: 2,
        ..Plan::SMALL
    };
    for kind in [FaultKind::Read, FaultKind::Write, FaultKind::Sync] {
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

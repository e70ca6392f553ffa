//! A disk fails under a history, then the power does, and leaves a sector missing: what was acknowledged is there, or the
//! store says that it can't do without that sector. When it is there again, nothing is other than it was seen.
//!
//! How to run more of it, or one of it again: `graviton_tests::history` and `tests/README.md`.

use std::sync::Arc;

use graviton_engine::io::sim::{DiskCondition, Fault, FaultError, FaultKind, Loss, Random};
use graviton_engine::port::{BlobStore, StorageError};
use graviton_engine::store::Store;
use graviton_engine::testing::{Difference, Pair, contents_of};
use graviton_tests::history::{
    Action, Ground, Machine, Plan, Record, Tally, Trials, check_contents, difference, do_all, open,
};
use graviton_tests::settle;

const SECTORS: usize = 3;
/// How often the power fails at the end of one history.
const IMAGES: usize = 6;

fn fail_and_come_back(ground: &Ground, seed: u64, actions: &[Action]) -> Result<Tally, Difference> {
    let mut random = Random::new(seed ^ 0x5eed);
    let mut machine = Machine::boot(ground.plan.clone(), &ground.image, seed);
    machine.expect_faults();
    let store = open(&mut machine)?;
    let mut pair = Pair::over(&mut machine, Arc::<Store>::clone(&store));
    pair.adopt(Arc::<Store>::clone(&store))?;
    settle(&store)?;
    drop(store);
    let mut record = Record::new(pair.contents());
    let fault = Fault {
        kind: *random.pick(&[FaultKind::Write, FaultKind::Sync, FaultKind::Sync]),
        after: random.below(60),
        times: *random.pick(&[1, 1, 1000]),
        disk: Some(random.below(SECTORS)),
    };
    let sim = pair.subject().sim().clone();
    sim.add_faults(&[fault], FaultError::Io);
    let at = |what: Difference| format!("{fault:?}: {what}");
    do_all(&mut pair, actions, &mut record).map_err(at)?;
    let position = sim.position();
    let mut crasher = sim.crasher();
    crasher.advance(position);
    drop(pair.release());
    for _ in 0..IMAGES {
        let loss = match random.below(3) {
            0 => Loss::All,
            1 => Loss::Nothing,
            _ => Loss::Random(random.number()),
        };
        let away = random.below(SECTORS);
        let at = |what: Difference| format!("{fault:?}, {loss:?}, without {away}: {what}");
        let mut machine = Machine::boot(ground.plan.clone(), &crasher.image(loss), seed);
        machine.sim().set_condition(away, DiskCondition::Absent);
        let store = match machine.open() {
            Ok(store) => store,
            Err(StorageError::TooFewSectors { .. }) => continue,
            Err(error) => return Err(at(error.to_string())),
        };
        check_contents(&store, &record, pair.given(), position).map_err(at)?;
        let seen = contents_of(&*store).map_err(|error| at(error.to_string()))?;
        if random.one_in(2) {
            settle(&store).map_err(at)?;
        }
        let image = machine.sim().image();
        drop(store);
        machine.come_up(&image);
        let store = open(&mut machine).map_err(at)?;
        let again = contents_of(&*store).map_err(|error| at(error.to_string()))?;
        if again != seen {
            return Err(at(format!(
                "and with it again: {}",
                difference(&seen, &again)
            )));
        }
        store
            .flush()
            .wait()
            .map_err(|error| at(error.to_string()))?;
    }
    Ok(Tally {
        histories: 1,
        actions: actions.len(),
        images: IMAGES,
    })
}

#[test]
fn a_disk_fails_and_a_sector_is_missing() {
    Trials::undisturbed(Plan::REPLICAS, 40, 60).run(&fail_and_come_back);
}

#[test]
fn a_disk_fails_and_one_of_three_is_missing() {
    Trials::undisturbed(Plan::QUORUM, 40, 60).run(&fail_and_come_back);
}

#[test]
fn a_disk_fails_and_a_sector_is_missing_before_it_was_copied() {
    Trials::undisturbed(Plan::ASYNC, 40, 60).run(&fail_and_come_back);
}

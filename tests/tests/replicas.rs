//! Sectors as replicas: random histories on two replicas over three sectors, in the course of which one of
//! the sectors is damaged or fails. No call fails that a second copy could have answered, nothing is wrong
//! or stale, and in the end every blob is whole in two sectors again.
//!
//! How to run more of it, or one of it again: `graviton_tests::history` and `tests/README.md`.

use std::sync::Arc;
use std::time::Duration;

use graviton_engine::io::sim::{DiskCondition, Fault, FaultKind, Random, Sim};
use graviton_engine::port::{BinaryKey, BlobStore, PutOptions};
use graviton_engine::store::{CreateOptions, Finding, MIB, OpenOptions, Store};
use graviton_engine::testing::{Difference, Pair, Step, Subject};
use graviton_tests::history::{Action, Ground, Machine, Plan, Tally, Trials, open, perform};
use graviton_tests::random::payload;
use graviton_tests::{check_two_replicas, settle};

/// What happens to one sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// Bits of it flip.
    Rot,
    /// Some of its blocks can't be read.
    Unreadable,
    /// Nothing can be read or written any more.
    Death,
    /// A write fails.
    FailedWrite,
    /// A sync fails.
    FailedSync,
}

impl Trouble {
    fn strike(self, machine: &Machine, sector: usize, random: &mut Random) {
        let sim = machine.sim();
        let fault = |kind| Fault {
            kind,
            after: 0,
            times: 1,
            disk: Some(sector),
        };
        // What is needed to open the store is another matter.
        let segments = graviton_format::geometry::AREA_SIZE;
        let first = usize::try_from(segments).expect("it is small");
        let length = 4 << 20;
        match self {
            Self::Rot => {
                for _ in 0..200 {
                    let bit = u8::try_from(random.below(8)).expect("of eight");
                    sim.rot(sector, first + random.below(length - 2 * first), bit);
                }
            }
            Self::Unreadable => {
                for _ in 0..20 {
                    let start = first + random.below(length - 2 * first);
                    sim.make_unreadable(sector, start..start + 1 + random.below(40_000));
                }
            }
            Self::Death => sim.set_condition(sector, DiskCondition::Dead),
            Self::FailedWrite => sim.set_faults(&[fault(FaultKind::Write)]),
            Self::FailedSync => sim.set_faults(&[fault(FaultKind::Sync)]),
        }
    }

    fn end(machine: &Machine, sector: usize) {
        machine.sim().set_faults(&[]);
        machine.sim().set_condition(sector, DiskCondition::Well);
    }
}

/// All is right though any one of the sectors can't be read.
fn compare_without_each(pair: &mut Pair<'_, Machine>) -> Result<(), Difference> {
    for sector in 0..3 {
        let sim = pair.subject().sim().clone();
        sim.set_condition(sector, DiskCondition::Dead);
        let compared = pair.run(&Step::compare_all());
        sim.set_condition(sector, DiskCondition::Well);
        compared.map_err(|what| format!("without sector {sector}: {what}"))?;
        // What could not be read is read again, and found to be well.
        settle(&pair.subject().store())?;
    }
    Ok(())
}

fn trouble(
    ground: &Ground,
    seed: u64,
    actions: &[Action],
    trouble: Trouble,
) -> Result<Tally, Difference> {
    let mut machine = Machine::boot(ground.plan.clone(), &ground.image, seed);
    let store = open(&mut machine)?;
    let mut pair = Pair::over(&mut machine, Arc::<Store>::clone(&store));
    pair.adopt(store)?;
    let mut random = Random::new(seed);
    let sector = random.below(3);
    let moment = random.below(actions.len().max(1));
    for (number, action) in actions.iter().enumerate() {
        if number == moment {
            trouble.strike(pair.subject(), sector, &mut random);
        }
        let done = perform(&mut pair, action);
        // Maintenance of a sector that can't be read or written fails, and that is all.
        if !matches!(action, Action::Step(_)) && number >= moment {
            continue;
        }
        done.map_err(|what| format!("{action:?}: {what}"))?;
    }
    pair.run(&Step::compare_all())?;
    settle(&pair.subject().store())?;
    pair.run(&Step::compare_all())?;
    Trouble::end(pair.subject(), sector);
    let tally = Tally {
        histories: 1,
        actions: actions.len(),
        images: 0,
    };
    if matches!(trouble, Trouble::Rot | Trouble::Unreadable) {
        // A store does not open yet if the log of one sector has lost records.
        settle(&pair.subject().store())?;
        return Ok(tally);
    }
    // The sector is opened again, and catches up.
    let store = pair.release();
    let store = pair.subject().reopen(store);
    pair.resume(store);
    pair.run(&Step::compare_all())?;
    settle(&pair.subject().store())?;
    check_two_replicas(&pair.subject().store())?;
    compare_without_each(&mut pair)?;
    Ok(tally)
}

fn troubled(what: Trouble) {
    let trials = Trials::undisturbed(Plan::REPLICAS, 40, 300);
    trials.run(&|ground, seed, actions| trouble(ground, seed, actions, what));
}

#[test]
fn bits_of_a_sector_flip() {
    troubled(Trouble::Rot);
}

#[test]
fn blocks_of_a_sector_cannot_be_read() {
    troubled(Trouble::Unreadable);
}

#[test]
fn a_sector_dies() {
    troubled(Trouble::Death);
}

#[test]
fn a_write_of_a_sector_fails() {
    troubled(Trouble::FailedWrite);
}

#[test]
fn a_sync_of_a_sector_fails() {
    troubled(Trouble::FailedSync);
}

/// A blob is replaced, and put elsewhere, at each moment of a repair that makes a replica of what it was:
/// nothing comes of that one.
#[test]
fn what_is_replaced_under_repair_is_not_made() {
    let mut moments = 0;
    while is_replaced_under_repair(moments) {
        moments += 1;
    }
    assert!(moments > 4, "repair takes some steps");
}

/// `false`: there was nothing to repair any more after so many steps.
fn is_replaced_under_repair(steps: usize) -> bool {
    let sim = Sim::new(512, 1);
    sim.record(false);
    let options = CreateOptions {
        sectors: 4,
        replicas: 2,
        sector_size: 8 * MIB,
        open: OpenOptions {
            background: false,
            reader_patience: Duration::ZERO,
            ..OpenOptions::default()
        },
        ..CreateOptions::default()
    };
    let store = Store::create_on(sim.backend(), "/store", options).expect("it is made");
    let key = BinaryKey::new("blob").expect("a short key");
    let put = |size: usize| {
        let put = store.put(&key, payload(1, size), PutOptions::default());
        put.wait().expect("it is put");
        store.stat(&key).wait().expect("it is there").sectors
    };
    while store.step().expect("it is tidied up") {}
    assert_eq!(put(100_000), [0, 1]);
    sim.set_condition(1, DiskCondition::Dead);
    assert_eq!(put(90_000), [0], "it came about where it could");
    for _ in 0..steps {
        store.step().expect("it is mended");
    }
    let is_short = store.info().replication.backlog > 0;
    assert_eq!(put(80_000).len(), 2);
    while store.step().expect("it is mended") {}
    let report = store.verify(&mut |_| {}).expect("it is verified");
    let older = |found: &&Finding| found.what.contains("older version");
    let older = report.findings.iter().find(older);
    assert_eq!(older, None, "after {steps} steps");
    is_short
}

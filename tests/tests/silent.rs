//! Disks that lie: bits that rot or flip on their way, reads of what was there before or is
//! somewhere else, writes that are lost or land elsewhere; at every call of short histories, one at
//! a time.
//!
//! Every answer is right, or an error of its own kind. What a read was told wrongly does not stay:
//! once the disk is honest, everything is there, and nothing is wrong with it.
//!
//! How to run more of it, or one of it again: `graviton_tests::history` and `tests/README.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use graviton_engine::io::sim::{Fault, FaultKind, Loss};
use graviton_engine::port::{
    BinaryKey, BlobStore, Durability, ErrorKind, GetOptions, StorageError,
};
use graviton_engine::store::Store;
use graviton_engine::testing::{Difference, Held, Pair, Step, Subject, contents_of};
use graviton_tests::history::{
    Action, Ground, Machine, Plan, Tally, Trials, check_store, open, perform,
};
use graviton_tests::put_options;

/// Faults of a kind are tried at this many calls of a history at most, evenly spread.
const PLACES: usize = 24;

/// Every state a key ever had.
type Past = BTreeMap<BinaryKey, BTreeSet<Option<Vec<u8>>>>;

/// Runs the history with one lie at some of its calls each.
fn lie_at_each(
    ground: &Ground,
    seed: u64,
    actions: &[Action],
    kind: FaultKind,
) -> Result<Tally, Difference> {
    let mut tally = Tally::default();
    let calls = count_calls(ground, seed, actions, kind)?;
    for after in (0..calls).step_by(calls.div_ceil(PLACES).max(1)) {
        let fault = Fault {
            kind,
            after,
            times: 1,
            disk: None,
        };
        lie_once(ground, seed, actions, fault).map_err(|what| format!("{fault:?}: {what}"))?;
        tally.histories += 1;
        tally.actions += actions.len();
    }
    Ok(tally)
}

/// Calls that a fault of this kind could hit.
fn count_calls(
    ground: &Ground,
    seed: u64,
    actions: &[Action],
    kind: FaultKind,
) -> Result<usize, Difference> {
    // A fault that hits nothing else is as good as a counter.
    let counter = match is_of_writes(kind) {
        true => FaultKind::ShortWrite,
        false => FaultKind::ShortRead,
    };
    let mut machine = Machine::boot(ground.plan.clone(), &ground.image, seed);
    let sim = machine.sim().clone();
    let store = open(&mut machine)?;
    let mut pair = Pair::over(&mut machine, Arc::<Store>::clone(&store));
    pair.adopt(store)?;
    sim.set_faults(&[Fault {
        kind: counter,
        after: 0,
        times: usize::MAX,
        disk: None,
    }]);
    for action in actions {
        perform(&mut pair, action)?;
    }
    Ok(sim.failures())
}

fn is_of_writes(kind: FaultKind) -> bool {
    matches!(kind, FaultKind::LostWrite | FaultKind::MisdirectedWrite)
}

fn lie_once(
    ground: &Ground,
    seed: u64,
    actions: &[Action],
    fault: Fault,
) -> Result<(), Difference> {
    let mut machine = Machine::boot(ground.plan.clone(), &ground.image, seed);
    machine.expect_lies();
    let sim = machine.sim().clone();
    let store = open(&mut machine)?;
    let mut pair = Pair::over(&mut machine, Arc::<Store>::clone(&store));
    pair.adopt(store)?;
    let mut past = Past::new();
    remember(&mut past, pair.contents());
    sim.set_faults(&[fault]);
    for action in actions {
        let effect = perform(&mut pair, action).map_err(|what| format!("{action:?}: {what}"))?;
        for change in effect.operations.into_iter().flat_map(|one| one.changes) {
            let states = past.entry(change.key).or_insert_with(|| [None].into());
            states.insert(change.blob.map(|held| held.bytes.to_vec()));
        }
    }
    sim.set_faults(&[]);
    // Still open: what the index knows is right, or can't be read.
    pair.run(&Step::compare_all())?;
    let expected = pair.contents();
    let lied_of_reads = matches!(
        fault.kind,
        FaultKind::FlippedRead | FaultKind::StaleRead | FaultKind::MisdirectedRead
    );
    if lied_of_reads {
        // Nothing of it stays.
        pair.subject().expect_honesty();
        pair.run(&Step::compare_all())?;
    }
    let dead = pair.release();
    let image = sim.image();
    machine.come_up(&image);
    drop(dead);
    match machine.open() {
        Ok(store) if lied_of_reads => {
            let mut pair = Pair::over(&mut machine, Arc::<Store>::clone(&store));
            pair.adopt(store)?;
            if pair.contents() != expected {
                let found = graviton_tests::history::difference(&expected, &pair.contents());
                return Err(format!("opened again: {found}"));
            }
            check_store(&pair.subject().store())
        }
        Ok(store) => {
            let mut keys: BTreeSet<&BinaryKey> = past.keys().collect();
            keys.extend(expected.keys());
            for key in keys {
                check_past(&store, key, past.get(key))?;
            }
            Ok(())
        }
        Err(error) if !lied_of_reads && is_damage(&error) => Ok(()),
        Err(error) => Err(format!("does not open again: {error}")),
    }
}

fn remember(past: &mut Past, contents: BTreeMap<BinaryKey, Held>) {
    for (key, held) in contents {
        past.entry(key)
            .or_default()
            .insert(Some(held.bytes.to_vec()));
    }
}

fn is_damage(error: &StorageError) -> bool {
    error.kind() == ErrorKind::Corruption
}

/// A key holds something it once held, or says that it is damaged: a write that is lost at the end
/// of the log, with all that would tell of it, is the one thing nobody can know of.
fn check_past(
    store: &Store,
    key: &BinaryKey,
    past: Option<&BTreeSet<Option<Vec<u8>>>>,
) -> Result<(), Difference> {
    let found = match store.get(key, GetOptions::default()).wait() {
        Ok(blob) => Some(blob.bytes.to_vec()),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) if is_damage(&error) => return Ok(()),
        Err(error) => return Err(format!("{key}: {error}")),
    };
    match past.is_some_and(|past| past.contains(&found)) {
        true => Ok(()),
        false => Err(format!(
            "{key}: {:?} bytes that it never held",
            found.map(|bytes| bytes.len())
        )),
    }
}

fn lies(plan: Plan, seeds: u64, kind: FaultKind) {
    let mut plan = plan;
    plan.mix.reopen = false;
    let trials = Trials {
        plan,
        length: 20,
        disasters: false,
        seeds,
    };
    let tally = trials.run(&|ground, seed, actions| lie_at_each(ground, seed, actions, kind));
    assert!(tally.histories > 0, "nothing to lie about");
}

#[test]
fn bits_that_flip_on_their_way() {
    lies(Plan::SMALL, 20, FaultKind::FlippedRead);
    lies(Plan::THREE_SECTORS, 8, FaultKind::FlippedRead);
}

#[test]
fn reads_of_what_was_there_before() {
    lies(Plan::SMALL, 20, FaultKind::StaleRead);
}

#[test]
fn reads_of_another_place() {
    lies(Plan::SMALL, 20, FaultKind::MisdirectedRead);
    lies(Plan::LARGE_BLOCKS, 8, FaultKind::MisdirectedRead);
}

#[test]
fn bits_that_rot() {
    lies(Plan::SMALL, 20, FaultKind::Rot);
}

#[test]
fn writes_that_are_lost() {
    lies(Plan::SMALL, 20, FaultKind::LostWrite);
    lies(Plan::THREE_SECTORS, 8, FaultKind::LostWrite);
}

#[test]
fn writes_that_land_elsewhere() {
    lies(Plan::SMALL, 20, FaultKind::MisdirectedWrite);
    lies(Plan::FULL, 4, FaultKind::MisdirectedWrite);
}

/// A bit that flips on its way while a store is opened: what is there when nobody lies is there, and
/// stays, even where the log ends and a bad frame is one that nobody was promised.
#[test]
fn reads_that_flip_a_bit_while_a_store_is_opened() {
    let plan = Plan::SMALL;
    let key = |name: &str| BinaryKey::new(name).expect("a short key");
    let put = |store: &Store, name: &str| {
        let bytes = vec![7; 30_000].into();
        let put = store.put(&key(name), bytes, put_options(Durability::Durable));
        put.wait().expect("it is put");
    };
    let holds = |store: &Store, names: &[&str]| {
        let found: Vec<BinaryKey> = contents_of(store)
            .expect("it is read")
            .into_keys()
            .collect();
        let expected: Vec<BinaryKey> = names.iter().map(|name| key(name)).collect();
        assert_eq!(found, expected);
    };
    let mut machine = Machine::new(plan.clone(), 1);
    drop(machine.fresh());
    put(&machine.store(), "a");
    let mut crasher = machine.crasher();
    crasher.advance(crasher.events());
    let image = crasher.image(Loss::All);
    let mut opened = 0;
    for seed in 0..4 {
        for after in 0.. {
            let mut machine = Machine::boot(plan.clone(), &image, seed);
            machine.sim().set_faults(&[Fault {
                kind: FaultKind::FlippedRead,
                after,
                times: 1,
                disk: None,
            }]);
            let store = machine.open().expect("it opens");
            if machine.sim().failures() == 0 {
                break;
            }
            opened += 1;
            machine.sim().set_faults(&[]);
            holds(&store, &["a"]);
            put(&store, "b");
            let image = machine.sim().image();
            machine.come_up(&image);
            drop(store);
            holds(&machine.open().expect("it opens again"), &["a", "b"]);
        }
    }
    println!("{opened} openings");
    assert!(opened > 0);
}

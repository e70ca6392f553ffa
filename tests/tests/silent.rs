//! Disks that lie: bits that rot or flip on their way, reads of what was there before or is
//! somewhere else, writes that are lost or land elsewhere; at calls spread evenly over short histories,
//! one at a time.
//!
//! Every answer is right, or an error of its own kind. What a read was told wrongly does not stay:
//! once the disk is honest, everything is there, and nothing is wrong with it.
//!
//! How to run more of it, or one of it again: `graviton_tests::history` and `tests/README.md`.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use graviton_engine::io::sim::{Fault, FaultKind, Loss, Sim};
use graviton_engine::io::{BufferPool, OpenAccess, WriteSync};
use graviton_engine::port::op::wait_for;
use graviton_engine::port::{
    BinaryKey, BlobStore, Durability, ErrorKind, PutOptions, StorageError,
};
use graviton_engine::store::{Access, SegmentState, Store};
use graviton_engine::testing::{Contents, Difference, Pair, Step, Subject, contents_of, read_all};
use graviton_tests::history::{
    Action, Ground, Machine, PATH, Plan, Record, Tally, Trials, check_store, difference, do_all,
    open, perform,
};
use graviton_tests::{blocks_that_differ, geometry, put_options};

/// Faults of a kind are tried at this many calls of a history at most, evenly spread.
const PLACES: usize = 24;

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
    let mut record = Record::new(pair.contents());
    sim.set_faults(&[fault]);
    do_all(&mut pair, actions, &mut record)?;
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
                let found = difference(&expected, &pair.contents());
                return Err(format!("opened again: {found}"));
            }
            check_store(&pair.subject().store())
        }
        Ok(store) => check_remains(&store, record, fault.kind),
        Err(error) if !lied_of_reads && is_damage(&error) => {
            match machine.open_for(Access::Salvage) {
                // What it was before the history began may show then.
                Ok(store) => check_finds(&store, &error),
                Err(error) => Err(format!("does not open for salvage: {error}")),
            }
        }
        Err(error) => Err(format!("does not open again: {error}")),
    }
}

fn is_damage(error: &StorageError) -> bool {
    error.kind() == ErrorKind::Corruption
}

/// What is left by a write that is lost, or is damaged, and keeps nobody from opening the store:
/// what can't be read, verify finds; the rest is right, but for the end of the log, if all that
/// would tell of it is gone.
fn check_remains(store: &Store, mut record: Record, kind: FaultKind) -> Result<(), Difference> {
    let damaged = match contents_of(store) {
        Ok(found) => return check_found(store, &mut record, &found, kind, Record::check_prefix),
        Err(error) if is_damage(&error) => error,
        Err(error) => return Err(error.to_string()),
    };
    check_finds(store, &damaged)?;
    // What can't be read is as it should be, as far as anybody can tell.
    let latest = record.latest();
    let mut found = Contents::new();
    for (key, held) in read_all(store).map_err(|error| error.to_string())? {
        let held = match held {
            Ok(held) => Some(held),
            Err(error) if is_damage(&error) => latest.get(&key).cloned(),
            Err(error) => return Err(format!("{key}: {error}")),
        };
        found.extend(held.map(|held| (key, held)));
    }
    check_found(store, &mut record, &found, kind, Record::check_keys)
}

/// What is there is right, but for the end of a log.
fn check_found(
    store: &Store,
    record: &mut Record,
    found: &Contents,
    kind: FaultKind,
    check: fn(&Record, &Contents, usize) -> Result<(), Difference>,
) -> Result<(), Difference> {
    if store.info().sectors.len() > 1 {
        return check_but_one(record, found);
    }
    // A write that lands on the frame before takes that one too.
    let frames = match kind {
        FaultKind::MisdirectedWrite => 2,
        _ => 1,
    };
    forget_end(record, frames);
    check(record, found, usize::MAX)
}

/// Verify finds damage that was met.
fn check_finds(store: &Store, damaged: &StorageError) -> Result<(), Difference> {
    let report = store.verify(&mut |_| {});
    let report = report.map_err(|error| error.to_string())?;
    match report.findings.is_empty() {
        true => Err(format!("verify does not find {damaged}")),
        false => Ok(()),
    }
}

/// Of what was acknowledged as durable, forgets what no later frame tells of, if so many of the last
/// frames are gone.
fn forget_end(record: &mut Record, frames: usize) {
    let mut left = frames;
    let wrote = wrote(record);
    for (done, wrote) in record.done.iter_mut().zip(wrote).rev() {
        if left == 0 {
            break;
        }
        let effect = &mut done.effect;
        left -= usize::from(wrote);
        (effect.flushed, effect.flushed_before) = (None, None);
        for operation in &mut effect.operations {
            operation.durable = false;
        }
    }
}

/// Each log has an end of its own: of one, the last frame is gone, and what was only written to it
/// before a flush.
fn check_but_one(record: &Record, found: &Contents) -> Result<(), Difference> {
    let mut outcome = record.check_keys(found, usize::MAX);
    let mut later: BTreeSet<usize> = BTreeSet::new();
    for number in (0..record.done.len()).rev() {
        if outcome.is_ok() {
            break;
        }
        let sectors = &record.done[number].sectors;
        let is_last = sectors.iter().any(|sector| !later.contains(sector));
        later.extend(sectors);
        if !is_last {
            continue;
        }
        let mut record = record.clone();
        for done in &mut record.done[number..] {
            (done.effect.flushed, done.effect.flushed_before) = (None, None);
        }
        for operation in &mut record.done[number].effect.operations {
            operation.durable = false;
        }
        outcome = outcome.or_else(|what| record.check_keys(found, usize::MAX).map_err(|_| what));
    }
    outcome
}

/// Whether what was done has written to the log, one by one: a delete that finds nothing has not, nor has what changes
/// nothing of a tracked set.
fn wrote(record: &Record) -> Vec<bool> {
    let mut present: BTreeSet<&BinaryKey> = record.base.keys().collect();
    let mut all = Vec::new();
    for done in &record.done {
        let mut wrote = false;
        let operations = done.effect.operations.iter();
        for change in operations.flat_map(|operation| &operation.changes) {
            wrote |= match &change.blob {
                Some(_) => {
                    present.insert(&change.key);
                    true
                }
                None => present.remove(&change.key),
            };
        }
        all.push(wrote && !done.sectors.is_empty());
    }
    all
}

fn lies(plan: Plan, seeds: u64, kind: FaultKind) {
    let trials = Trials::undisturbed(plan, 20, seeds);
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
    lies(Plan::THREE_SECTORS, 4, FaultKind::StaleRead);
}

#[test]
fn reads_of_another_place() {
    lies(Plan::SMALL, 20, FaultKind::MisdirectedRead);
    lies(Plan::LARGE_BLOCKS, 8, FaultKind::MisdirectedRead);
    lies(Plan::THREE_SECTORS, 4, FaultKind::MisdirectedRead);
}

#[test]
fn bits_that_rot() {
    lies(Plan::SMALL, 20, FaultKind::Rot);
    lies(Plan::THREE_SECTORS, 4, FaultKind::Rot);
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

/// Images of checkpoints rot, one at a time: the one before it, and the log from there on, are as good as the newest.
fn images_rot(ground: &Ground, seed: u64, actions: &[Action]) -> Result<Tally, Difference> {
    let mut machine = Machine::boot(ground.plan.clone(), &ground.image, seed);
    let store = open(&mut machine)?;
    let mut pair = Pair::over(&mut machine, Arc::<Store>::clone(&store));
    pair.adopt(Arc::<Store>::clone(&store) as _)?;
    for action in actions {
        perform(&mut pair, action)?;
    }
    let expected = pair.contents();
    drop(pair.release());
    let geometry = geometry(&store);
    let image = machine.sim().image();
    let mut images = 0;
    for sector in store.info().sectors {
        for segment in store.segments(sector.number) {
            if segment.state != SegmentState::Checkpoint {
                continue;
            }
            images += 1;
            let start = geometry.segment_offset(segment.index);
            let payload = usize::try_from(start).map_err(|error| error.to_string())? + 600;
            let mut machine = Machine::boot(ground.plan.clone(), &image, seed);
            machine.sim().rot(sector.number.into(), payload, 1);
            go_on_without(&mut machine, &expected).map_err(|what| {
                let (sector, segment) = (sector.number, segment.index);
                format!("rot in segment {segment} of sector {sector}: {what}")
            })?;
        }
    }
    Ok(Tally {
        histories: 1,
        actions: actions.len(),
        images,
    })
}

/// Opens a store that has lost an image, and uses it: what was there stays, and what is wrong is noticed, and goes.
fn go_on_without(machine: &mut Machine, expected: &Contents) -> Result<(), Difference> {
    let same = |store: &Store| {
        let found = contents_of(store).map_err(|error| format!("can't be read: {error}"))?;
        match found == *expected {
            true => Ok(()),
            false => Err(difference(expected, &found)),
        }
    };
    let store = open(machine)?;
    same(&store)?;
    let verified = store.verify(&mut |_| {});
    let findings = verified.map_err(|error| error.to_string())?.findings;
    if findings.is_empty() && store.info().health.is_empty() {
        return Err("nobody has noticed".to_owned());
    }
    for _ in 0..3 {
        let taken = store.checkpoint();
        taken.map_err(|error| format!("no checkpoint: {error}"))?;
    }
    same(&store)?;
    drop(store);
    let image = machine.sim().image();
    machine.come_up(&image);
    let store = open(machine)?;
    same(&store)?;
    check_store(&store)
}

#[test]
fn images_of_checkpoints_rot() {
    for (plan, seeds) in [(Plan::SMALL, 40), (Plan::THREE_SECTORS, 80)] {
        let tally = Trials::undisturbed(plan, 60, seeds).run(&images_rot);
        assert!(tally.images > 0);
    }
}

/// A read that is told wrongly while a store is opened: what is there when nobody lies is there, and
/// stays, even where the log ends and a bad frame is one that nobody was promised.
#[test]
fn reads_while_a_store_is_opened() {
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
    machine.store().checkpoint().expect("a checkpoint");
    put(&machine.store(), "a");
    let mut crasher = machine.crasher();
    crasher.advance(crasher.events());
    let image = crasher.image(Loss::All);
    // Both checkpoints are kept, and nothing is wrong with anything.
    let kept = |store: &Store| {
        assert_eq!(store.info().health, Vec::<String>::new());
        let segments = store.segments(0).into_iter();
        let of_checkpoints = segments.filter(|segment| segment.state == SegmentState::Checkpoint);
        let of_checkpoints: Vec<u32> = of_checkpoints.map(|segment| segment.index).collect();
        of_checkpoints
    };
    let expected = kept(
        &Machine::boot(plan.clone(), &image, 0)
            .open()
            .expect("it opens"),
    );
    assert!(expected.len() > 1);
    let mut opened = 0;
    let kinds = [FaultKind::FlippedRead, FaultKind::MisdirectedRead];
    for (kind, seed) in kinds
        .into_iter()
        .flat_map(|kind| (0..4).map(move |seed| (kind, seed)))
    {
        for after in 0.. {
            let mut machine = Machine::boot(plan.clone(), &image, seed);
            machine.sim().set_faults(&[Fault {
                kind,
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
            assert_eq!(kept(&store), expected, "{kind:?} after {after}");
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

/// The write of a segment's header is lost, and the frame behind it is there: it was acknowledged, and
/// is not taken for what a crash has left, though it is the log's last.
#[test]
fn a_lost_segment_header_is_told_of_by_its_first_frame() {
    let key = BinaryKey::new("key").expect("a short key");
    let put = |store: &Store, durability| {
        let put = store.put(&key, vec![7; 3000].into(), put_options(durability));
        put.wait().expect("it is put");
    };
    let segments = |store: &Store| {
        let segments = store.segments(0).into_iter();
        let of_log = |state| matches!(state, SegmentState::Open | SegmentState::Sealed);
        segments.filter(|segment| of_log(segment.state)).count()
    };
    let mut opened = 0;
    for number in 0..60 {
        let mut machine = Machine::new(Plan::SMALL, number);
        drop(machine.fresh());
        let store = machine.store();
        (0..number).for_each(|_| put(&store, Durability::Durable));
        let before = segments(&store);
        machine.sim().set_faults(&[Fault {
            kind: FaultKind::LostWrite,
            after: 0,
            times: 1,
            disk: None,
        }]);
        put(&store, Durability::Durable);
        let opens = segments(&store) > before;
        let image = machine.sim().image();
        machine.come_up(&image);
        drop(store);
        match machine.open() {
            Err(error) if opens && is_damage(&error) => opened += 1,
            Ok(_) if !opens => {}
            other => panic!("after {number} puts, a segment opened: {opens}: {other:?}"),
        }
    }
    assert!(opened > 1, "no segment was opened");
}

/// A write that was lost on one of two machines that went on from the same disk: where the index names a record there
/// lies a good one, of the same blob, in another version. It is not taken for the one that is asked for.
#[test]
fn a_record_of_another_version_in_the_same_place() {
    let plan = Plan::SMALL;
    let mut machine = Machine::new(plan.clone(), 1);
    drop(machine.fresh());
    let base = machine.switch_off();
    let name = BinaryKey::new("key").expect("a short key");
    let go_on = |seed, said: &'static str| {
        let sim = Sim::boot(&base, 512, seed);
        let store = Store::open_on(sim.backend(), PATH, plan.open_options()).expect("it opens");
        let options = PutOptions {
            attributes: [("said".to_owned(), Bytes::from_static(said.as_bytes()))].into(),
            ..PutOptions::default()
        };
        let put = store.put(&name, vec![9; 600].into(), options).wait();
        (sim, store, put.expect("it is put").version)
    };
    let (old, _, old_version) = go_on(1, "old");
    let (sim, store, version) = go_on(2, "new");
    assert_ne!(version, old_version);
    let said = store.stat(&name).wait().expect("it is there").attributes;
    assert_eq!(said["said"], Bytes::from_static(b"new"));
    let (before, after) = (old.image(), sim.image());
    let path = Path::new(PATH).join("sector-000.graviton");
    let disk = sim.backend().open(&path, OpenAccess::ReadWrite);
    let disk = disk.expect("it is there");
    let blocks = blocks_that_differ(&before, &after);
    assert!(!blocks.is_empty());
    for at in blocks {
        let mut buffer = BufferPool::global().take(512);
        before.read(0, at, &mut buffer);
        let (_, written) = wait_for(disk.write(buffer, at as u64, WriteSync::None));
        written.expect("nothing fails");
    }
    match store.stat(&name).wait() {
        Err(StorageError::Corruption { .. }) => {}
        other => panic!("{other:?}"),
    }
}

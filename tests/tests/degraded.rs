//! Stores that are opened without one of their sectors: it is missing, broken, or older than it should be.
//! With two replicas everything is there without it, and nothing that was deleted or replaced meanwhile
//! comes back with it.
//!
//! How to run more of it, or one of it again: `graviton_tests::history` and `tests/README.md`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use graviton_engine::io::sim::{DiskCondition, Fault, FaultKind, Image, Loss, Random, Sim};
use graviton_engine::port::{
    BinaryKey, BlobStore, CompleteOptions, CopyOptions, DeleteOptions, Durability, GetOptions,
    MutableObjectStore, PutOptions, PutRangeOptions, SectorState, Span, StorageError,
    UploadOptions,
};
use graviton_engine::store::{
    Access, CreateOptions, NewSector, OpenOptions, RemoveOptions, ScrubOptions, Store,
};
use graviton_engine::testing::{Difference, Pair, Step};
use graviton_tests::history::{Action, Ground, Machine, Plan, Tally, Trials, open, perform};
use graviton_tests::random::payload;
use graviton_tests::{
    check_replicas, check_two_replicas, put_options, rebalance, settle, with_disk_of,
};

/// How the store comes to be opened again.
#[derive(Debug, Clone, Copy)]
enum End {
    Closed,
    Killed,
}

/// Opens the store again, one of its sectors being in another condition from then on.
fn reopen(
    pair: &mut Pair<'_, Machine>,
    end: End,
    sector: usize,
    condition: DiskCondition,
) -> Result<Arc<Store>, Difference> {
    let before = pair.release();
    let machine = pair.subject();
    if matches!(end, End::Closed) {
        machine
            .store()
            .close()
            .map_err(|error| format!("does not close: {error}"))?;
    }
    let image = machine.sim().image();
    machine.come_up(&image);
    machine.sim().set_condition(sector, condition);
    drop(before);
    let store = open(machine)?;
    pair.resume(Arc::<Store>::clone(&store));
    pair.run(&Step::compare_all())
        .map_err(|what| format!("sector {sector} {condition:?}: {what}"))?;
    Ok(store)
}

fn perform_all(pair: &mut Pair<'_, Machine>, actions: &[Action]) -> Result<(), Difference> {
    for action in actions {
        perform(pair, action).map_err(|what| format!("{action:?}: {what}"))?;
    }
    pair.run(&Step::compare_all())?;
    Ok(())
}

/// Repair comes to its end, and then any sector may be missing.
fn mend(store: &Store) -> Result<(), Difference> {
    settle(store)?;
    let info = store.info();
    match (info.replication.is_short, info.replication.backlog) {
        (false, 0) => Ok(()),
        _ => Err(format!("not mended: {info:#?}")),
    }
}

/// Two sectors are away, one after the other, and the first is back before the second has gone. Then each is
/// for a moment.
fn away(
    ground: &Ground,
    seed: u64,
    actions: &[Action],
    condition: DiskCondition,
) -> Result<Tally, Difference> {
    let mut machine = Machine::boot(ground.plan.clone(), &ground.image, seed);
    let store = open(&mut machine)?;
    let mut pair = Pair::over(&mut machine, Arc::<Store>::clone(&store));
    pair.adopt(store)?;
    let mut random = Random::new(seed);
    let mut left = actions;
    let mut some = |random: &mut Random| {
        let (now, later) = left.split_at(random.below(left.len() + 1));
        left = later;
        now
    };
    perform_all(&mut pair, some(&mut random))?;
    let first = random.below(3);
    let second = (first + 1 + random.below(2)) % 3;
    let end = |random: &mut Random| match random.one_in(2) {
        true => End::Closed,
        false => End::Killed,
    };
    mend(&pair.subject().store())?;
    for sector in [first, second] {
        // Once in a while more than once.
        for _ in 0..=random.below(2) {
            let ended = end(&mut random);
            let store = reopen(&mut pair, ended, sector, condition)?;
            assert_ne!(store.info().sectors[sector].state, SectorState::Active);
            perform_all(&mut pair, some(&mut random))?;
        }
        let is_mended = random.one_in(2);
        if is_mended {
            mend(&pair.subject().store())?;
        }
        let ended = end(&mut random);
        let store = reopen(&mut pair, ended, sector, DiskCondition::Well)?;
        assert!(store.info().health.is_empty(), "{:?}", store.info().health);
        perform_all(&mut pair, some(&mut random))?;
        if !is_mended || random.one_in(2) {
            mend(&pair.subject().store())?;
        }
    }
    let store = pair.subject().store();
    mend(&store)?;
    // What the sectors brought back that have returned is too many by now.
    let report = rebalance(&store).map_err(|error| error.to_string())?;
    if report.left == 0 {
        check_replicas(&store, 2..=2)?;
    }
    drop(store);
    pair.run(&Step::compare_all())?;
    for sector in 0..3 {
        reopen(&mut pair, End::Killed, sector, condition)?;
        let store = reopen(&mut pair, End::Closed, sector, DiskCondition::Well)?;
        mend(&store)?;
    }
    Ok(Tally {
        histories: 1,
        actions: actions.len(),
        images: 0,
    })
}

fn trials() -> Trials {
    Trials::undisturbed(Plan::REPLICAS, 60, 120)
}

#[test]
fn a_sector_is_missing_for_a_while() {
    trials().run(&|ground, seed, actions| away(ground, seed, actions, DiskCondition::Absent));
}

#[test]
fn a_sector_does_not_work_for_a_while() {
    trials().run(&|ground, seed, actions| away(ground, seed, actions, DiskCondition::Dead));
}

#[test]
fn a_sector_can_only_be_read_for_a_while() {
    trials().run(&|ground, seed, actions| away(ground, seed, actions, DiskCondition::ReadOnly));
}

const PATH: &str = "/store";

fn options(replicas: u16) -> CreateOptions {
    CreateOptions {
        replicas,
        ..Plan::REPLICAS.create_options()
    }
}

fn boot(image: &Image) -> Sim {
    Sim::boot(image, 512, 1)
}

fn open_on(sim: &Sim, access: Access) -> Result<Store, StorageError> {
    let options = OpenOptions {
        access,
        ..options(2).open
    };
    Store::open_on(sim.backend(), PATH, options)
}

fn key(number: usize) -> BinaryKey {
    BinaryKey::new(format!("key/{number:02}")).expect("a short key")
}

fn put(store: &Store, number: usize, seed: u64) {
    let blob = payload(seed, 100 + 40 * number);
    let put = store.put(&key(number), blob, PutOptions::default());
    put.wait().expect("it is put");
}

fn delete(store: &Store, number: usize) {
    let deleted = store.delete(&key(number), DeleteOptions::default()).wait();
    assert!(deleted.expect("it is deleted").existed);
}

/// Blobs 0 to 29 are as they were put with these seeds; of a seed of 0, there is none.
fn check(store: &Store, seeds: &[u64]) {
    for (number, &seed) in seeds.iter().enumerate() {
        let found = store.get(&key(number), GetOptions::default()).wait();
        match (found, seed) {
            (Err(StorageError::NotFound { .. }), 0) => {}
            (Ok(blob), 1..) => {
                assert_eq!(blob.bytes, payload(seed, 100 + 40 * number), "{number}");
            }
            (found, seed) => panic!("{number} with seed {seed}: {found:?}"),
        }
    }
}

/// A store of three sectors with blobs that were put with seed 1.
fn filled(replicas: u16, seed: u64) -> (Sim, [u64; 30]) {
    let sim = Sim::new(512, seed);
    sim.record(false);
    let store = Store::create_on(sim.backend(), PATH, options(replicas)).expect("it is made");
    (0..30).for_each(|number| put(&store, number, 1));
    settle(&store).expect("it is tidied up");
    store.close().expect("it closes");
    (sim, [1; 30])
}

/// What is refused says why, and a store that is open says what it is open without.
fn left_out(store: &Store, sector: usize) -> String {
    let info = store.info();
    assert_eq!(info.sectors[sector].state, SectorState::Failed);
    assert_eq!(info.health.len(), 1, "{:?}", info.health);
    let report = store.verify(&mut |_| {}).expect("it is verified");
    let places = report.findings.iter().map(|finding| finding.place.sector);
    assert_eq!(
        places.collect::<Vec<_>>(),
        [u16::try_from(sector).expect("of three")]
    );
    info.health[0].clone()
}

fn refusal(sim: &Sim) -> String {
    let error = open_on(sim, Access::ReadWrite).expect_err("it does not open");
    assert!(
        matches!(error, StorageError::TooFewSectors { .. }),
        "{error}"
    );
    error.to_string()
}

#[test]
fn a_store_says_what_it_is_open_without_and_when_it_can_lose_more() {
    let (sim, mut seeds) = filled(2, 1);
    sim.set_condition(1, DiskCondition::Absent);
    let store = open_on(&sim, Access::ReadOnly).expect("it can be read");
    check(&store, &seeds);
    drop(store);
    let store = open_on(&sim, Access::ReadWrite).expect("it opens");
    let info = store.info();
    assert_eq!(info.sectors[1].state, SectorState::Absent);
    assert_eq!(info.blobs, 30);
    assert!(info.replication.is_short);
    assert!(info.health[0].starts_with("sector 1 is absent: open /store/sector-001"));
    check(&store, &seeds);
    store.flush().wait().expect("it is flushed");
    assert_eq!(store.checkpoint().expect("checkpoints").len(), 2);
    store.compact().expect("it is compacted");
    drop(store);
    sim.set_condition(2, DiskCondition::Dead);
    let why = refusal(&sim);
    assert!(
        why.contains("none may be missing while something has too few replicas"),
        "{why}"
    );
    assert!(
        why.contains("sector-001") && why.contains("sector-002"),
        "{why}"
    );
    sim.set_condition(2, DiskCondition::Well);
    let store = open_on(&sim, Access::ReadWrite).expect("it opens");
    delete(&store, 0);
    put(&store, 1, 2);
    (seeds[0], seeds[1]) = (0, 2);
    settle(&store).expect("it is mended");
    assert!(!store.info().replication.is_short);
    check_two_replicas(&store).expect("two replicas");
    drop(store);
    // All of it is in either of the two by now.
    sim.set_condition(2, DiskCondition::Dead);
    let store = open_on(&sim, Access::ReadWrite).expect("it opens");
    check(&store, &seeds);
    put(&store, 2, 2);
    seeds[2] = 2;
    drop(store);
    sim.set_condition(0, DiskCondition::Dead);
    sim.set_condition(1, DiskCondition::Well);
    sim.set_condition(2, DiskCondition::Well);
    let why = refusal(&sim);
    assert!(why.contains("none may be missing"), "{why}");
    sim.set_condition(0, DiskCondition::Well);
    let store = open_on(&sim, Access::ReadWrite).expect("it opens");
    assert_eq!(store.info().health, Vec::<String>::new());
    check(&store, &seeds);
}

#[test]
fn with_one_replica_no_sector_may_be_missing() {
    let (sim, seeds) = filled(1, 1);
    sim.set_condition(1, DiskCondition::Absent);
    let error = open_on(&sim, Access::ReadWrite).expect_err("it does not open");
    assert!(
        matches!(&error, StorageError::File { path, .. } if path.ends_with("sector-001.graviton"))
    );
    let store = open_on(&sim, Access::Salvage).expect("what is there can be read");
    let found =
        (0..seeds.len()).filter(|&number| matches!(store.exists(&key(number)).wait(), Ok(true)));
    assert!((1..seeds.len()).contains(&found.count()));
}

/// An older copy of a sector, of an earlier session or of the same, is not taken for what it was.
#[test]
fn an_older_copy_of_a_sector_is_left_out() {
    let cases = [false, true].map(|this| [(this, false), (this, true)]);
    for (of_this_session, then_away) in cases.into_iter().flatten() {
        let (sim, mut seeds) = filled(2, 1);
        let store = open_on(&sim, Access::ReadWrite).expect("it opens");
        let older = sim.image();
        let store = match of_this_session {
            true => store,
            false => {
                drop(store);
                open_on(&sim, Access::ReadWrite).expect("it opens")
            }
        };
        for number in 0..30 {
            match number % 3 {
                0 => delete(&store, number),
                1 => put(&store, number, 2),
                _ => {}
            }
            seeds[number] = [0, 2, 1][number % 3];
        }
        // Until the deletes are forgotten.
        let checkpoints = |store: &Store| {
            (0..4).for_each(|_| drop(store.checkpoint().expect("a checkpoint")));
        };
        checkpoints(&store);
        // And stay that, while nobody knows what the sector has.
        if then_away {
            drop(store);
            sim.set_condition(1, DiskCondition::Absent);
            checkpoints(&open_on(&sim, Access::ReadWrite).expect("it opens"));
        }
        let sim = boot(&with_disk_of(&sim.image(), 1, &older));
        let store = open_on(&sim, Access::ReadWrite).expect("it opens without it");
        let why = left_out(&store, 1);
        assert!(why.contains("an older copy"), "{why}");
        check(&store, &seeds);
        settle(&store).expect("it is mended");
        check_two_replicas(&store).expect("two replicas");
        check(&store, &seeds);
    }
}

#[test]
fn sectors_and_the_store_file_that_do_not_belong_together_are_refused() {
    let (sim, seeds) = filled(2, 1);
    let before = sim.image();
    drop(open_on(&sim, Access::ReadWrite).expect("it opens"));
    let after = sim.image();
    // All sectors are older than the store file, or newer.
    let all_of = |image: &Image, other: &Image| {
        (0..3).fold(image.clone(), |mixed, disk| {
            with_disk_of(&mixed, disk, other)
        })
    };
    for image in [all_of(&after, &before), all_of(&before, &after)] {
        let why = refusal(&boot(&image));
        assert!(why.contains("is not as the store left it"), "{why}");
        let store = open_on(&boot(&image), Access::Salvage).expect("it can be read");
        check(&store, &seeds);
    }
    // A sector of another store.
    let (other, _) = filled(2, 2);
    let sim = boot(&with_disk_of(&after, 2, &other.image()));
    let store = open_on(&sim, Access::ReadWrite).expect("it opens without it");
    let why = left_out(&store, 2);
    assert!(why.contains("belongs to store"), "{why}");
    check(&store, &seeds);
}

/// If it can't be told that a blob has come about in one sector alone, it has not.
#[test]
fn what_is_short_is_told_before_it_is_acknowledged() {
    for is_told in [false, true] {
        let (sim, seeds) = filled(2, 1);
        let store = open_on(&sim, Access::ReadWrite).expect("it opens");
        let holders = store.stat(&key(0)).wait().expect("it is there").sectors;
        let fails = |kind, disk| Fault {
            kind,
            after: 0,
            times: 1,
            disk,
        };
        let write = fails(FaultKind::Write, Some(holders[0].into()));
        match is_told {
            true => sim.set_faults(&[write]),
            false => sim.set_faults(&[write, fails(FaultKind::ReplaceFile, None)]),
        }
        let put = store
            .put(&key(0), payload(2, 100), PutOptions::default())
            .wait();
        sim.set_faults(&[]);
        assert_eq!(put.is_ok(), is_told, "{put:?}");
        if is_told {
            assert!(store.info().replication.is_short);
            sim.set_condition(holders[1].into(), DiskCondition::Absent);
            drop(store);
            let why = refusal(&sim);
            assert!(why.contains("none may be missing"), "{why}");
        } else {
            let poisoned = store.info().sectors;
            let poisoned = poisoned.iter().filter(|sector| sector.poisoned.is_some());
            assert_eq!(poisoned.count(), 2);
            check(&store, &seeds);
        }
    }
}

/// A store of two sectors with a bit of everything in it, on two replicas: killed with a log to replay.
fn small() -> (Sim, [u64; 30]) {
    let sim = Sim::new(512, 1);
    sim.record(false);
    let two = CreateOptions {
        sectors: 2,
        ..options(2)
    };
    let store = Store::create_on(sim.backend(), PATH, two).expect("it is made");
    let mut seeds = [0; 30];
    for (number, seed) in seeds.iter_mut().enumerate().take(20) {
        put(&store, number, 1);
        *seed = 1;
    }
    delete(&store, 3);
    seeds[3] = 0;
    store.checkpoint().expect("a checkpoint");
    delete(&store, 5);
    seeds[5] = 0;
    for number in (10..30).step_by(3) {
        put(&store, number, 2);
        seeds[number] = 2;
    }
    let image = sim.image();
    drop(store);
    (boot(&image), seeds)
}

/// What is done to a small place of a sector: everything read is right, a scrub finds what is damaged, and
/// repair mends it in the sector. Only if the store is open without the sector it is replaced: returns what the
/// store says of it then.
fn damage_is_mended(image: &Image, seeds: &[u64], harm: impl Fn(&Sim)) -> Option<String> {
    let sim = boot(image);
    harm(&sim);
    let store = open_on(&sim, Access::ReadWrite).expect("it opens");
    check(&store, seeds);
    let everything = ScrubOptions::default();
    let scrub = |store: &Store| {
        let report = store.scrub(&everything, &mut |_| ControlFlow::Continue(()));
        report.expect("it is scrubbed")
    };
    scrub(&store);
    check(&store, seeds);
    let left_out = store.info().sectors[0].poisoned.clone();
    if left_out.is_some() {
        let new = NewSector {
            size: 4 << 20,
            replaces: Some(0),
            ..NewSector::default()
        };
        store.add_sector(&new).expect("another sector");
        assert_eq!(store.repair(&mut |_| {}).expect("it is drained"), 0);
        let removed = store.remove_sector(0, RemoveOptions::default());
        removed.expect("nothing needs it");
    } else {
        assert_eq!(store.repair(&mut |_| {}).expect("it is mended"), 0);
        assert_eq!(scrub(&store).findings, []);
    }
    is_clean(&store);
    assert!(!store.info().replication.is_short);
    check(&store, seeds);
    check_two_replicas(&store).expect("two replicas");
    drop(store);
    let store = open_on(&sim, Access::ReadWrite).expect("it opens again");
    is_clean(&store);
    drop(store);
    // Each of the two has all.
    let image = sim.image();
    for away in 0..2 {
        let sim = boot(&image);
        let disk = away + usize::from(left_out.is_some());
        sim.set_condition(disk, DiskCondition::Absent);
        let store = open_on(&sim, Access::ReadOnly).expect("it opens without the other");
        check(&store, seeds);
    }
    left_out
}

/// Nothing is wrong with any of it.
fn is_clean(store: &Store) {
    let report = store.verify(&mut |_| {}).expect("it is verified");
    assert_eq!(report.findings, []);
    assert_eq!(store.info().health, Vec::<String>::new());
}

/// Bits of one sector are flipped, one at a time: thousands, or as many as `GRAVITON_FLIPS` says, or, if that is `all`,
/// every bit of the blocks that are in use. All are mended in place but for some of the log that is still to be replayed.
#[test]
fn any_bit_of_a_sector_may_flip() {
    let (sim, seeds) = small();
    let image = sim.image();
    let mut bytes = vec![0; image.size(0).expect("it is there")];
    image.read(0, 0, &mut bytes);
    let in_use = |block: &usize| bytes[block * 512..][..512].iter().any(|&byte| byte != 0);
    let blocks: Vec<usize> = (0..bytes.len() / 512).filter(in_use).collect();
    let bits = blocks.len() * 512 * 8;
    let step = match std::env::var("GRAVITON_FLIPS").as_deref() {
        Ok("all") => 1,
        Ok(number) => {
            let count: usize = number.parse().expect("GRAVITON_FLIPS is a number or 'all'");
            (bits / count.max(1)).max(1)
        }
        Err(_) => (bits / 1500) | 1,
    };
    let next = AtomicUsize::new(0);
    let mended = AtomicUsize::new(0);
    let left_out: Mutex<BTreeMap<&str, usize>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let bit = next.fetch_add(step, Ordering::Relaxed);
                    if bit >= bits {
                        return;
                    }
                    let offset = blocks[bit / 8 / 512] * 512 + bit / 8 % 512;
                    let flip = u8::try_from(bit % 8).expect("of eight");
                    let flipped = catch_unwind(AssertUnwindSafe(|| {
                        damage_is_mended(&image, &seeds, |sim| sim.rot(0, offset, flip))
                    }));
                    match flipped {
                        Ok(None) => {
                            mended.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(Some(why)) => {
                            let mut left_out = left_out.lock().expect("nobody panics with it");
                            *left_out.entry(kind_of(&why)).or_default() += 1;
                        }
                        Err(panic) => {
                            next.store(bits, Ordering::Relaxed);
                            eprintln!("bit {flip} of byte {offset}");
                            resume_unwind(panic);
                        }
                    }
                }
            });
        }
    });
    let left_out = left_out.into_inner().expect("nobody panics with it");
    let (mended, replaced) = (mended.into_inner(), left_out.values().sum::<usize>());
    eprintln!("{} of {bits} bits: all was right", mended + replaced);
    eprintln!(
        "{mended} times the sector was mended, {replaced} times replaced, for it was left out:"
    );
    for (kind, count) in &left_out {
        eprintln!("{count:6} {kind} in the log behind the checkpoint");
    }
    // There were 28 of 1,502.
    assert!(mended + replaced >= 1000 && replaced * 40 < mended + replaced);
}

/// Of what a sector is left out: all of it is part of the log behind the newest checkpoint, of which the sector has
/// no other copy.
fn kind_of(why: &str) -> &'static str {
    let kinds = [
        ("acknowledged frames are missing", "a frame's header"),
        ("RecordHeader", "the front of a record"),
        (
            "does not continue the log",
            "a segment's header, or the first frame behind it",
        ),
        ("the header of segment", "a segment's header"),
        ("the log ends at LSN", "the log's end"),
    ];
    let kind = kinds.iter().find(|(what, _)| why.contains(what));
    kind.unwrap_or_else(|| panic!("left out: {why}")).1
}

/// A sector that failed in the middle of a session is missed by nobody; a second one is.
#[test]
fn a_sector_that_failed_may_be_missing_and_no_other() {
    let (sim, mut seeds) = filled(2, 1);
    let store = open_on(&sim, Access::ReadWrite).expect("it opens");
    let holders = store.stat(&key(0)).wait().expect("it is there").sectors;
    let (failed, other) = (usize::from(holders[0]), usize::from(holders[1]));
    sim.set_condition(failed, DiskCondition::Dead);
    for (number, seed) in seeds.iter_mut().enumerate() {
        put(&store, number, 2);
        *seed = 2;
    }
    assert!(store.info().replication.is_short);
    drop(store);
    let image = sim.image();
    for (away, opens) in [(failed, true), (other, false)] {
        let sim = boot(&image);
        sim.set_condition(away, DiskCondition::Absent);
        if opens {
            check(&open_on(&sim, Access::ReadWrite).expect("it opens"), &seeds);
        } else {
            let why = refusal(&sim);
            assert!(why.contains("none may be missing"), "{why}");
        }
    }
}

/// A sector that can only be read is missed by nobody next time, but then no other may be missing.
#[test]
fn a_sector_that_can_only_be_read_leaves_nothing_to_spare() {
    let (sim, seeds) = filled(2, 1);
    sim.set_condition(0, DiskCondition::ReadOnly);
    drop(open_on(&sim, Access::ReadWrite).expect("it opens"));
    let image = sim.image();
    for (lost, opens) in [(&[0][..], true), (&[1], false), (&[0, 1], false)] {
        let sim = boot(&image);
        for &disk in lost {
            sim.set_condition(disk, DiskCondition::Absent);
        }
        if opens {
            check(&open_on(&sim, Access::ReadWrite).expect("it opens"), &seeds);
        } else {
            refusal(&sim);
        }
    }
}

/// Two sectors that can only be read are two that must not be missing next.
#[test]
fn sectors_that_can_only_be_read_are_missed() {
    let (sim, seeds) = filled(2, 1);
    sim.set_condition(0, DiskCondition::ReadOnly);
    sim.set_condition(1, DiskCondition::ReadOnly);
    let store = open_on(&sim, Access::ReadWrite).expect("it opens");
    check(&store, &seeds);
    drop(store);
    for lost in [&[0, 1][..], &[0, 1, 2]] {
        let sim = boot(&sim.image());
        for &disk in lost {
            sim.set_condition(disk, DiskCondition::Absent);
        }
        refusal(&sim);
    }
    // Nothing is written of a session in which nobody takes part.
    sim.set_condition(2, DiskCondition::ReadOnly);
    let before = sim.image();
    let error = open_on(&sim, Access::ReadWrite).expect_err("nothing can be written");
    assert!(
        matches!(error, StorageError::SectorPoisoned { .. }),
        "{error}"
    );
    let sim = boot(&before);
    check(&open_on(&sim, Access::ReadWrite).expect("it opens"), &seeds);
}

/// A sector that fails under a checkpoint, while nobody writes, is made up for like any other.
#[test]
fn a_sector_that_fails_under_a_checkpoint_is_made_up_for() {
    let (sim, seeds) = filled(2, 1);
    let store = open_on(&sim, Access::ReadWrite).expect("it opens");
    sim.set_condition(1, DiskCondition::ReadOnly);
    store.checkpoint().expect_err("a sector can't be written");
    sim.set_condition(1, DiskCondition::Dead);
    settle(&store).expect("it is mended");
    assert_eq!(store.lacking().expect("it is counted"), 0);
    check(&store, &seeds);
}

/// What a sector that returns has of older versions it gives up without a record of that in its log. The payload that
/// it is brought then may be some that it had: replayed, the log comes to the same.
#[test]
fn what_a_sector_gave_up_and_was_brought_again_is_counted_once() {
    let (sim, _) = filled(2, 1);
    let change_all = |time: u64| {
        let store = open_on(&sim, Access::ReadWrite).expect("it opens");
        for number in 0..30 {
            let range = Span::new(20 * time, 20 * time + 20).expect("20 bytes");
            let options = PutRangeOptions::default();
            let put = store.put_range(&key(number), range, payload(time, 20), options);
            put.wait().expect("it is put");
        }
        store
    };
    change_all(1).close().expect("it closes");
    sim.set_condition(1, DiskCondition::Absent);
    drop(change_all(2));
    sim.set_condition(1, DiskCondition::Well);
    let store = open_on(&sim, Access::ReadWrite).expect("it opens");
    let left = store.repair(&mut |_| {}).expect("it is repaired");
    assert_eq!(left, 0);
    let killed = sim.image();
    drop(store);
    let store = open_on(&boot(&killed), Access::ReadWrite).expect("it opens");
    let found = |store: &Store| store.verify(&mut |_| {}).expect("it is verified").findings;
    assert_eq!(found(&store), []);
    settle(&store).expect("it is tidied up");
    assert_eq!(found(&store), []);
    check_two_replicas(&store).expect("two replicas");
}

/// A power failure takes the newest versions from one of two sectors. What that has of older ones it gives up without a
/// record of it in its log; then it is brought, for one blob, a payload that had lain in the record of another.
/// Replayed, the log comes to the same.
#[test]
fn what_a_sector_gave_up_is_brought_again_for_another_blob() {
    let (sim, _) = filled(2, 1);
    let open = |sim: &Sim| open_on(sim, Access::ReadWrite).expect("it opens");
    let found = |store: &Store| store.verify(&mut |_| {}).expect("it is verified").findings;
    let durability = Durability::Written;
    let copy = |store: &Store, from: usize, to: usize| {
        let options = CopyOptions {
            durability,
            ..CopyOptions::default()
        };
        let copied = store.copy(&key(from), &key(to), options);
        copied.wait().expect("it is copied");
    };
    let store = open(&sim);
    copy(&store, 20, 21);
    store.close().expect("it closes");
    drop(store);
    let sim = boot(&sim.image());
    let store = open(&sim);
    // Brought first, by its key, and in pieces.
    copy(&store, 20, 0);
    let range = Span::new(20, 40).expect("20 bytes");
    let options = PutRangeOptions {
        durability,
        ..PutRangeOptions::default()
    };
    let put = store.put_range(&key(0), range, payload(2, 20), options);
    put.wait().expect("it is put");
    for number in [20, 21] {
        let options = put_options(durability);
        let put = store.put(&key(number), payload(9, 500), options);
        put.wait().expect("it is put");
    }
    let mut crasher = sim.crasher();
    crasher.advance(sim.position());
    for loss in crasher.losses() {
        let sim = boot(&crasher.image(loss));
        let store = open(&sim);
        assert_eq!(store.repair(&mut |_| {}).expect("it is repaired"), 0);
        let killed = sim.image();
        drop(store);
        let store = open(&boot(&killed));
        assert_eq!(found(&store), []);
        settle(&store).expect("it is tidied up");
        assert_eq!(found(&store), []);
        check_two_replicas(&store).expect("two replicas");
    }
}

/// Pieces of a blob are merged after its version came about. A replica of it names what they became, and is still one
/// once compaction has moved it: replayed, it is not taken for damage.
#[test]
fn a_replica_of_merged_pieces_is_moved() {
    let (sim, _) = filled(2, 1);
    let merging = OpenOptions {
        merge_above: 8,
        ..options(2).open
    };
    let open = |sim: &Sim| {
        let opened = Store::open_on(sim.backend(), PATH, merging.clone());
        opened.expect("it opens")
    };
    sim.set_condition(1, DiskCondition::Absent);
    let store = open(&sim);
    // Until the last of them is followed by a merge.
    let mut fragments = 0;
    for number in 0.. {
        let range = Span::new(30 * number, 30 * number + 7).expect("7 bytes");
        let options = PutRangeOptions::default();
        let put = store.put_range(&key(29), range, payload(number, 7), options);
        put.wait().expect("it is put");
        let stat = store.stat(&key(29)).wait().expect("it is there");
        if stat.fragments < fragments {
            break;
        }
        fragments = stat.fragments;
    }
    let whole = store.get(&key(29), GetOptions::default()).wait();
    let whole = whole.expect("it is read").bytes;
    drop(store);
    sim.set_condition(1, DiskCondition::Well);
    let store = open(&sim);
    assert_eq!(store.repair(&mut |_| {}).expect("it is repaired"), 0);
    // Garbage around it, and another segment where logs end.
    (0..29).for_each(|number| delete(&store, number));
    for number in 0..2 {
        let put = store.put(&key(number), payload(1, 40_000), PutOptions::default());
        put.wait().expect("it is put");
    }
    store.checkpoint().expect("a checkpoint");
    let sim = boot(&sim.image());
    drop(store);
    let store = open(&sim);
    let moved = store.compact().expect("it is compacted").moved;
    assert!(moved > 0);
    let mut crasher = sim.crasher();
    for position in 0..=sim.position() {
        crasher.advance(position);
        let sim = boot(&crasher.image(Loss::Nothing));
        let store = open(&sim);
        let findings = store.verify(&mut |_| {}).expect("it is verified").findings;
        assert_eq!(findings, [], "at {position}");
        let found = store.get(&key(29), GetOptions::default()).wait();
        assert!(found.expect("it is read").bytes == whole, "at {position}");
    }
}

/// An upload that is completed while one of its sectors lacks a part: whatever a power failure takes of it, or of what
/// repair makes of it, it has become the blob, or is open with all that was put into it.
#[test]
fn an_upload_with_a_part_in_fewer_sectors_is_completed_or_not() {
    let sim = Sim::new(512, 1);
    let two = Plan {
        sectors: 2,
        ..Plan::REPLICAS
    };
    let store = Store::create_on(sim.backend(), PATH, two.create_options()).expect("it is made");
    let upload = store.start_upload(&key(0), UploadOptions::default());
    let upload = upload.wait().expect("it begins");
    let put_part = |store: &Store, number: u16| {
        let part = payload(number.into(), 100);
        let put = store.upload_part(upload, number, part, PutOptions::default());
        (number, put.wait().expect("it is put").etag)
    };
    let first = put_part(&store, 1);
    drop(store);
    sim.set_condition(1, DiskCondition::Dead);
    let store = open_on(&sim, Access::ReadWrite).expect("it opens");
    let parts = [first, put_part(&store, 2)];
    let image = sim.image();
    drop(store);

    let sim = boot(&image);
    let store = open_on(&sim, Access::ReadWrite).expect("it opens");
    let begun = sim.position();
    let options = CompleteOptions {
        durability: Durability::Written,
        ..CompleteOptions::default()
    };
    let completed = store.complete_upload(upload, &parts, options).wait();
    assert_eq!(completed.expect("it is completed").size, 200);
    settle(&store).expect("it is mended");
    let mut crasher = sim.crasher();
    let mut outcomes = [0; 2];
    for position in begun..=crasher.events() {
        crasher.advance(position);
        for loss in crasher.losses().collect::<Vec<_>>() {
            let sim = boot(&crasher.image(loss));
            let store = open_on(&sim, Access::ReadWrite).expect("it opens");
            let blob = store.get(&key(0), GetOptions::default()).wait();
            let left = store.list_parts(upload, 0, 10).wait();
            let is_there = match (blob, left) {
                (Ok(blob), Err(StorageError::NoSuchUpload { .. })) => {
                    assert_eq!(blob.bytes.len(), 200);
                    true
                }
                (Err(StorageError::NotFound { .. }), Ok(left)) => {
                    assert_eq!(left.len(), 2);
                    false
                }
                half => panic!("power loss at event {position}, {loss:?}: {half:?}"),
            };
            outcomes[usize::from(is_there)] += 1;
        }
    }
    assert!(outcomes.iter().all(|&count| count > 0), "{outcomes:?}");
}

/// What a power failure left in one sector alone, which is away when the store is opened next, has not come about: it
/// does not when the sector is back.
#[test]
fn what_was_seen_not_to_have_come_about_stays_so() {
    type Act = fn(&Store);
    let delete_it: Act = |store| delete(store, 0);
    let replace_it: Act = |store| put(store, 0, 2);
    let rename_it: Act = |store| {
        let renamed = store.rename(&key(0), &key(40), CopyOptions::default());
        renamed.wait().expect("it is renamed");
    };
    for act in [delete_it, replace_it, rename_it] {
        let (sim, _) = filled(2, 1);
        let store = open_on(&sim, Access::ReadWrite).expect("it opens");
        let holders = store.stat(&key(0)).wait().expect("it is there").sectors;
        let before = sim.image();
        act(&store);
        let after = sim.image();
        drop(store);
        for lone in holders.into_iter().map(usize::from) {
            let is_as_before = |store: &Store| {
                let found = store.get(&key(0), GetOptions::default()).wait();
                assert_eq!(found.expect("it is there").bytes, payload(1, 100));
                let other = store.get(&key(40), GetOptions::default()).wait();
                assert!(matches!(other, Err(StorageError::NotFound { .. })));
            };
            let sim = boot(&with_disk_of(&before, lone, &after));
            sim.set_condition(lone, DiskCondition::Absent);
            let store = open_on(&sim, Access::ReadWrite).expect("it opens");
            is_as_before(&store);
            put(&store, 1, 3);
            drop(store);
            sim.set_condition(lone, DiskCondition::Well);
            let store = open_on(&sim, Access::ReadWrite).expect("it opens");
            is_as_before(&store);
            // It was killed before anything was written of that.
            let sim = boot(&sim.image());
            drop(store);
            let store = open_on(&sim, Access::ReadWrite).expect("it opens");
            is_as_before(&store);
            settle(&store).expect("it is mended");
            check_two_replicas(&store).expect("two replicas");
            let sim = boot(&sim.image());
            drop(store);
            let store = open_on(&sim, Access::ReadWrite).expect("it opens");
            is_as_before(&store);
            let verified = store.verify(&mut |_| {}).expect("it is verified");
            assert_eq!(verified.findings, []);
        }
    }
}

/// The same of an upload that is completed: it was seen open, and is.
#[test]
fn an_upload_that_was_seen_open_stays_open() {
    let sim = Sim::new(512, 1);
    sim.record(false);
    let store = Store::create_on(sim.backend(), PATH, options(2)).expect("it is made");
    let upload = store.start_upload(&key(0), UploadOptions::default());
    let upload = upload.wait().expect("it begins");
    let part = store.upload_part(upload, 1, payload(1, 100), PutOptions::default());
    let parts = [(1, part.wait().expect("it is put").etag)];
    let before = sim.image();
    let complete = |store: &Store| {
        let completed = store.complete_upload(upload, &parts, CompleteOptions::default());
        completed.wait().expect("it is completed");
    };
    complete(&store);
    let after = sim.image();
    let holders = store.stat(&key(0)).wait().expect("it is there").sectors;
    drop(store);
    for lone in holders.into_iter().map(usize::from) {
        let is_open = |store: &Store| {
            let left = store.list_parts(upload, 0, 10).wait();
            assert_eq!(left.expect("it is open").len(), 1);
            let found = store.get(&key(0), GetOptions::default()).wait();
            assert!(matches!(found, Err(StorageError::NotFound { .. })));
        };
        let sim = boot(&with_disk_of(&before, lone, &after));
        sim.set_condition(lone, DiskCondition::Absent);
        is_open(&open_on(&sim, Access::ReadWrite).expect("it opens"));
        sim.set_condition(lone, DiskCondition::Well);
        let store = open_on(&sim, Access::ReadWrite).expect("it opens");
        is_open(&store);
        settle(&store).expect("it is mended");
        complete(&store);
        drop(store);
        let store = open_on(&sim, Access::ReadWrite).expect("it opens");
        let found = store.get(&key(0), GetOptions::default()).wait();
        assert_eq!(found.expect("it is there").bytes, payload(1, 100));
        let verified = store.verify(&mut |_| {}).expect("it is verified");
        assert_eq!(verified.findings, []);
    }
}

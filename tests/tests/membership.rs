//! Sectors come and go while the store is in use: nothing is lost, nobody notices, and what was begun goes on
//! after a restart.
//!
//! How to run more of it, or one of it again: `graviton_tests::history` and `tests/README.md`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use graviton_engine::io::sim::{DiskCondition, Fault, FaultKind, Image, Loss, Random, Sim};
use graviton_engine::policy::{CostOptimized, RackAware, Random as RandomPolicy};
use graviton_engine::port::{
    BinaryKey, BlobStore, ErrorKind, GetOptions, Labels, Price, PutOptions, ReplicationPolicy,
    SectorState, StorageError,
};
use graviton_engine::store::{MIB, NewSector, RemoveOptions, Store};
use graviton_engine::testing::{Contents, Difference, Subject, contents_of};
use graviton_tests::history::{
    Action, Ground, Machine, PATH, Plan, Tally, Trials, check_store, reopen, run_beside, used,
};
use graviton_tests::random::payload;
use graviton_tests::{
    all_keys, buffered, check_two_replicas, create_options, memory_directory, rebalance, settle,
};

const SIZE: u64 = 4 * MIB;

fn add(store: &Store) -> Result<u16, StorageError> {
    store.add_sector(&NewSector {
        size: SIZE,
        ..NewSector::default()
    })
}

fn numbers(store: &Store) -> Vec<u16> {
    let sectors = store.info().sectors.into_iter();
    sectors.map(|sector| sector.number).collect()
}

/// The sectors that take what comes.
fn active(store: &Store) -> Vec<u16> {
    let sectors = store.info().sectors.into_iter();
    let active = sectors.filter(|sector| sector.state == SectorState::Active);
    active.map(|sector| sector.number).collect()
}

/// Something is done about the sectors of a store: one is added, drained, or taken away; or they are rebalanced.
fn change_sectors(store: &Store, random: &mut Random, replicas: usize) -> Result<(), Difference> {
    let wrong = |what: &str, error: StorageError| format!("{what}: {error}");
    let draining = |sector: &u16| !active(store).contains(sector);
    match random.below(5) {
        4 => match rebalance(store) {
            Ok(_) => Ok(()),
            Err(error) => Err(wrong("rebalance", error)),
        },
        0 if numbers(store).len() < 5 => {
            match add(store) {
                Ok(_) => Ok(()),
                // All numbers have been in use.
                Err(StorageError::InvalidArgument { .. }) => Ok(()),
                Err(error) => Err(wrong("add", error)),
            }
        }
        1 if active(store).len() > replicas => {
            let sector = *random.pick(&active(store));
            store
                .drain_sector(sector)
                .map_err(|error| wrong("drain", error))
        }
        2 => match numbers(store).into_iter().find(draining) {
            Some(sector) if random.one_in(3) => store
                .undrain_sector(sector)
                .map_err(|error| wrong("undrain", error)),
            _ => Ok(()),
        },
        _ => match numbers(store).into_iter().find(draining) {
            Some(sector) => match store.remove_sector(sector, RemoveOptions::default()) {
                Ok(()) | Err(StorageError::StillNeeded { .. }) => Ok(()),
                Err(error) => Err(wrong("remove", error)),
            },
            None => Ok(()),
        },
    }
}

/// Histories in the course of which sectors come and go.
fn come_and_go(ground: &Ground, seed: u64, actions: &[Action]) -> Result<Tally, Difference> {
    let replicas = usize::from(ground.plan.replicas);
    let change = |store: &Store, random: &mut Random| match random.one_in(3) {
        true => change_sectors(store, random, replicas),
        false => Ok(()),
    };
    // A blob that is on its way in keeps its sector from being taken away: none is any more.
    run_beside(ground, seed, actions, 20, change, |pair| {
        let store = pair.subject().store();
        for sector in numbers(&store) {
            if !active(&store).contains(&sector) {
                let removed = store.remove_sector(sector, RemoveOptions::default());
                removed.map_err(|error| format!("it is drained: {error}"))?;
            }
        }
        assert!(!store.info().replication.is_short);
        check_store(&store)?;
        drop(store);
        reopen(pair)
    })
}

#[test]
fn sectors_with_replicas_come_and_go() {
    Trials::undisturbed(Plan::REPLICAS, 60, 100).run(&come_and_go);
}

#[test]
fn sectors_with_the_only_copies_come_and_go() {
    Trials::undisturbed(Plan::THREE_SECTORS, 60, 100).run(&come_and_go);
}

#[test]
fn a_store_of_one_sector_gets_others() {
    Trials::undisturbed(Plan::SMALL, 60, 100).run(&come_and_go);
}

/// Opens a store after a crash: all that was in it is, and sectors can still be added and taken away.
fn check_after_crash(image: &Image, plan: &Plan, contents: &Contents) {
    let mut machine = Machine::boot(plan.clone(), image, 5);
    let store = machine.open().expect("it opens");
    assert_eq!(contents_of(&*store).expect("it is read"), *contents);
    check_store(&store).expect("it is whole");
    let number = add(&store).expect("there is room for one more");
    assert!(numbers(&store).contains(&number));
    settle(&store).expect("it is mended");
    store
        .remove_sector(number, RemoveOptions::default())
        .or_else(|_| {
            store.drain_sector(number)?;
            store.repair(&mut |_| {})?;
            store.remove_sector(number, RemoveOptions::default())
        })
        .expect("it is taken away again");
    assert_eq!(contents_of(&*store).expect("it is read"), *contents);
    let named = numbers(&store);
    drop(store);
    let image = machine.switch_off();
    // No file is left that is no sector's.
    let sim = Sim::boot(&image, plan.block_size, 1);
    for number in 0..8 {
        let path = format!("{PATH}/sector-{number:03}.graviton");
        let found = sim
            .backend()
            .open(path.as_ref(), graviton_engine::io::OpenAccess::ReadOnly);
        assert_eq!(found.is_ok(), named.contains(&number), "{path}");
    }
}

/// So many of the last events are looked at image by image: what the store file says changes then, and files go.
const LAST: usize = 40;

/// The power fails at each moment of what is done.
fn crashes_of(plan: &Plan, change: impl Fn(&Store)) {
    let (machine, store, contents) = used(plan);
    machine.sim().record(true);
    change(&store);
    let mut crasher = machine.crasher();
    let (mut images, end) = (0, machine.position());
    for position in 0..=end {
        crasher.advance(position);
        for loss in crasher.losses() {
            images += 1;
            if position % 7 == images % 7 || position + LAST > end {
                check_after_crash(&crasher.image(loss), plan, &contents);
            }
        }
    }
    assert!(images > 20, "{images} images");
}

#[test]
fn crashes_while_a_sector_is_added() {
    for plan in [Plan::SMALL, Plan::REPLICAS] {
        crashes_of(&plan, |store| {
            add(store).expect("it is added");
        });
    }
}

#[test]
fn crashes_while_a_sector_is_drained_and_removed() {
    for plan in [Plan::THREE_SECTORS, Plan::REPLICAS] {
        crashes_of(&plan, |store| {
            store.drain_sector(1).expect("it is to be drained");
            assert_eq!(store.repair(&mut |_| {}).expect("it is drained"), 0);
            store
                .remove_sector(1, RemoveOptions::default())
                .expect("nothing needs it");
        });
    }
}

/// Each call to the disk fails once while sectors are changed: the store is as it was, or as it was to be.
#[test]
fn calls_fail_while_sectors_change() {
    let kinds = [
        FaultKind::Create,
        FaultKind::Read,
        FaultKind::Write,
        FaultKind::Sync,
        FaultKind::ReplaceFile,
        FaultKind::RemoveFile,
        FaultKind::Random,
    ];
    for kind in kinds {
        for after in 0.. {
            let (mut machine, store, contents) = used(&Plan::REPLICAS);
            let before = machine.sim().failures();
            machine.sim().set_faults(&[Fault {
                kind,
                after,
                times: 1,
                disk: None,
            }]);
            let changed = add(&store)
                .and_then(|_| store.drain_sector(0))
                .and_then(|()| store.repair(&mut |_| {}))
                .and_then(|_| store.remove_sector(0, RemoveOptions::default()));
            machine.sim().set_faults(&[]);
            let was_hit = machine.sim().failures() > before;
            assert_eq!(
                contents_of(&*store).expect("it is read"),
                contents,
                "{kind:?} {after}"
            );
            drop(store);
            let image = machine.sim().image();
            machine.come_up(&image);
            let store = machine.open().unwrap_or_else(|error| {
                panic!("{kind:?} {after}, {changed:?}: it does not open: {error}")
            });
            assert_eq!(
                contents_of(&*store).expect("it is read"),
                contents,
                "{kind:?} {after}"
            );
            settle(&store).expect("it is mended");
            check_two_replicas(&store).expect("two replicas");
            if !was_hit {
                changed.expect("nothing failed");
                break;
            }
        }
    }
}

/// A sector that is gone for good is replaced: what was in it is made anew, and then others may go.
#[test]
fn a_sector_that_is_lost_is_replaced() {
    let (mut machine, store, contents) = used(&Plan::REPLICAS);
    drop(store);
    let image = machine.sim().image();
    machine.come_up(&image);
    machine.sim().set_condition(1, DiskCondition::Absent);
    let store = machine.open().expect("it opens without it");
    let error = store
        .remove_sector(1, RemoveOptions::default())
        .expect_err("some blobs have one replica");
    // Two sectors are left for two replicas.
    assert!(
        matches!(error, StorageError::StillNeeded { sector: 1, .. }),
        "{error}"
    );
    let new = add(&store).expect("another comes");
    assert_eq!(new, 3);
    assert_eq!(store.repair(&mut |_| {}).expect("it is mended"), 0);
    store
        .remove_sector(1, RemoveOptions::default())
        .expect("nothing needs it any more");
    assert_eq!(numbers(&store), [0, 2, 3]);
    assert_eq!(store.info().health, Vec::<String>::new());
    check_two_replicas(&store).expect("two replicas");
    drop(store);
    let image = machine.sim().image();
    machine.come_up(&image);
    machine.sim().set_condition(0, DiskCondition::Dead);
    let store = machine.open().expect("it opens without another");
    assert_eq!(contents_of(&*store).expect("it is read"), contents);
}

/// A sector that comes in the place of another: that is drained from the same moment on, and whoever goes on behind
/// a crash sees it.
#[test]
fn a_sector_comes_in_the_place_of_another() {
    let (mut machine, store, contents) = used(&Plan::REPLICAS);
    let new = |replaces| NewSector {
        size: SIZE,
        replaces: Some(replaces),
        ..NewSector::default()
    };
    let error = store.add_sector(&new(9)).expect_err("there is no sector 9");
    assert!(error.to_string().contains("no sector 9"), "{error}");
    assert_eq!(store.add_sector(&new(1)).expect("another comes"), 3);
    assert_eq!(active(&store), [0, 2, 3]);
    let image = machine.sim().image();
    machine.come_up(&image);
    drop(store);
    let store = machine.open().expect("it opens");
    assert_eq!(active(&store), [0, 2, 3]);
    assert!(store.info().sectors[1].draining);
    assert_eq!(store.repair(&mut |_| {}).expect("it is drained"), 0);
    let removed = store.remove_sector(1, RemoveOptions::default());
    removed.expect("nothing needs it any more");
    check_two_replicas(&store).expect("two replicas");
    assert_eq!(contents_of(&*store).expect("it is read"), contents);
}

/// What is lost with a sector is lost only if that was said to be acceptable, and counted no more.
#[test]
fn loss_must_be_accepted() {
    let (machine, store, contents) = used(&Plan::THREE_SECTORS);
    let accept = |accept_loss| RemoveOptions { accept_loss };
    let error = store
        .remove_sector(2, accept(false))
        .expect_err("it has blobs");
    assert!(matches!(error, StorageError::StillNeeded { .. }), "{error}");
    assert_eq!(contents_of(&*store).expect("it is read"), contents);
    store
        .remove_sector(2, accept(true))
        .expect("it is taken away");
    let left = contents_of(&*store).expect("it is read");
    assert!(left.len() < contents.len() && left.iter().all(|(key, blob)| contents[key] == *blob));
    let blobs = all_keys(&*store).expect("they are listed").len();
    assert_eq!(store.info().blobs, blobs as u64);
    let put = |name: &str| {
        let key = BinaryKey::new(name).expect("a short key");
        store
            .put(&key, payload(1, 1000), PutOptions::default())
            .wait()
    };
    put("another").expect("it goes elsewhere");
    let error = store.remove_sector(0, accept(true)).map(drop);
    error.expect("one is enough for one replica");
    let error = store
        .remove_sector(1, accept(true))
        .expect_err("the last one");
    assert!(
        matches!(error, StorageError::InvalidArgument { .. }),
        "{error}"
    );
    drop(machine);
}

/// Not even what was read so often that it is looked for in no index outlives its sector.
#[test]
fn what_is_hot_goes_with_its_sector() {
    let sim = Sim::new(512, 1);
    let mut options = Plan::THREE_SECTORS.create_options();
    options.open.cache_bytes = MIB;
    let store = Store::create_on(sim.backend(), PATH, options).expect("it is made");
    let keys: Vec<_> = (0..20)
        .map(|number| BinaryKey::new(format!("blob {number}")).expect("a short key"))
        .collect();
    for key in &keys {
        let put = store.put(key, payload(1, 1000), PutOptions::default());
        put.wait().expect("it is put");
        for _ in 0..3 {
            let got = store.get(key, GetOptions::default()).wait();
            assert_eq!(got.expect("it is there").bytes, payload(1, 1000));
        }
    }
    assert!(store.info().cache.hits >= 20, "{:?}", store.info().cache);
    let options = RemoveOptions { accept_loss: true };
    store.remove_sector(2, options).expect("it is taken away");
    let mut lost = 0;
    for key in &keys {
        let is_there = store.exists(key).wait().expect("it is looked for");
        let got = store.get(key, GetOptions::default()).wait();
        assert_eq!(got.is_ok(), is_there, "{key}");
        lost += usize::from(!is_there);
    }
    assert!(lost > 0, "nothing was in that sector");
}

/// An addition was cut short, and another store's sector has come to lie where it was to be: that is left alone.
#[test]
fn what_was_begun_does_not_end_another_store() {
    let file = Path::new("/elsewhere/sector");
    let (machine, store, contents) = used(&Plan::SMALL);
    machine.sim().record(true);
    let new = NewSector {
        file: Some(file.to_owned()),
        size: SIZE,
        ..NewSector::default()
    };
    store.add_sector(&new).expect("it is added");
    let mut crasher = machine.crasher();
    let mut others = 0;
    for position in 0..=machine.position() {
        crasher.advance(position);
        let image = crasher.image(Loss::Nothing);
        let sim = Sim::boot(&image, Plan::SMALL.block_size, 1);
        let open = |path: &str| Store::open_on(sim.backend(), path, Plan::SMALL.open_options());
        let store = open(PATH).expect("it opens");
        let is_added = numbers(&store).len() > 1;
        drop(store);
        if is_added {
            continue;
        }
        // As it was before it was opened again.
        let sim = Sim::boot(&image, Plan::SMALL.block_size, 1);
        let open = |path: &str| Store::open_on(sim.backend(), path, Plan::SMALL.open_options());
        let _ = sim.backend().remove_file(file);
        let other = Store::create_on(sim.backend(), "/other", Plan::SMALL.create_options());
        let other = other.expect("it is made");
        other.add_sector(&new).expect("there is nothing by now");
        other.drain_sector(0).expect("it takes no more");
        let key = BinaryKey::new("blob").expect("a short key");
        let put = other.put(&key, payload(1, 1000), PutOptions::default());
        put.wait().expect("it is put");
        other.close().expect("it closes");
        drop(other);
        let store = open(PATH).expect("it opens");
        assert_eq!(contents_of(&store).expect("it is read"), contents);
        drop(store);
        let other = open("/other").expect("its sector is there");
        let got = other.get(&key, GetOptions::default()).wait();
        assert_eq!(got.expect("it is there").bytes, payload(1, 1000));
        others += 1;
    }
    assert!(others > 3, "{others}");
}

/// Nothing is put into a sector before the store file names it: if that comes to nothing, it is all elsewhere.
#[test]
fn what_is_put_while_a_sector_comes_is_not_lost_with_it() {
    for round in 0..10 {
        let (mut machine, store, _) = used(&Plan::THREE_SECTORS);
        // The first says that one is coming; the second names it.
        machine.sim().set_faults(&[Fault {
            kind: FaultKind::ReplaceFile,
            after: 1,
            times: 1,
            disk: None,
        }]);
        let is_over = AtomicBool::new(false);
        let put = std::thread::scope(|scope| {
            let putting = scope.spawn(|| {
                let mut put = Vec::new();
                while !is_over.load(Ordering::Acquire) && put.len() < 1000 {
                    let key = BinaryKey::new(format!("{}/{round}", put.len())).expect("short");
                    let done = store.put(&key, payload(1, 100), PutOptions::default());
                    done.wait().expect("there is room");
                    put.push(key);
                }
                put
            });
            add(&store).expect_err("it can't be named");
            is_over.store(true, Ordering::Release);
            putting.join().expect("no panic")
        });
        assert_eq!(numbers(&store), [0, 1, 2]);
        drop(store);
        let image = machine.sim().image();
        machine.come_up(&image);
        let store = machine.open().expect("it opens");
        for key in put {
            assert!(
                store.exists(&key).wait().expect("it is looked for"),
                "{key}"
            );
        }
    }
}

/// A drain that was begun goes on, whoever has the store open next.
#[test]
fn a_drain_goes_on_after_a_restart() {
    for plan in [Plan::THREE_SECTORS, Plan::REPLICAS] {
        let (mut machine, store, contents) = used(&plan);
        store.drain_sector(1).expect("it is to be drained");
        drop(store);
        let image = machine.sim().image();
        machine.come_up(&image);
        let store = machine.open().expect("it opens");
        assert_eq!(active(&store), [0, 2]);
        settle(&store).expect("it is drained");
        assert_eq!(store.needed(1).expect("it is counted"), 0);
        let removed = store.remove_sector(1, RemoveOptions::default());
        removed.expect("nothing needs it");
        assert_eq!(contents_of(&*store).expect("it is read"), contents);
    }
}

/// Whatever the policy of replication, what lies in a sector that goes, or that can't be written to, is made anew
/// elsewhere.
#[test]
fn sectors_are_drained_under_every_policy() {
    let policies: [Arc<dyn ReplicationPolicy>; 3] = [
        Arc::new(RandomPolicy),
        Arc::new(RackAware::default()),
        Arc::new(CostOptimized::default()),
    ];
    for policy in policies {
        let (mut machine, store, contents) = used(&Plan::REPLICAS);
        for number in 0..3 {
            let labels = Labels {
                rack: Some(format!("rack {number}")),
                price: Some(Price::new(1.0, 0.0, 0.0).expect("a price")),
                ..Labels::default()
            };
            store.relabel(number, labels).expect("it is labelled");
        }
        store.set_replication(Some(Arc::clone(&policy)));
        add(&store).expect("it is added");
        store.drain_sector(1).expect("it is to be drained");
        assert_eq!(store.repair(&mut |_| {}).expect("it is drained"), 0);
        store
            .remove_sector(1, RemoveOptions::default())
            .expect("nothing needs it");
        check_two_replicas(&store).expect("two replicas");
        store.close().expect("it is closed");
        drop(store);
        let image = machine.sim().image();
        machine.come_up(&image);
        machine.sim().set_condition(2, DiskCondition::ReadOnly);
        let store = machine.open().expect("it opens");
        store.set_replication(Some(policy));
        assert_eq!(store.repair(&mut |_| {}).expect("it is mended"), 0);
        assert_eq!(store.needed(2).expect("it is counted"), 0);
        assert_eq!(contents_of(&*store).expect("it is read"), contents);
    }
}

/// What is on its way to a sector when that is to be taken away arrives, whether it goes then or not, and the sector
/// is none that failed.
#[test]
fn what_is_on_its_way_to_a_sector_arrives() {
    let two = Plan {
        sectors: 2,
        ..Plan::SMALL
    };
    for plan in [two, Plan::REPLICAS] {
        for (number, fails) in [(0, false), (1, false), (0, true), (1, true)] {
            // Nothing needs it yet.
            let mut machine = Machine::new(plan.clone(), 1);
            drop(machine.fresh());
            let store = machine.store();
            let name = |put: usize| BinaryKey::new(format!("new {put}")).expect("a short key");
            let puts = (0..16).map(|put| {
                let bytes = payload(put as u64, 40_000);
                store.put(&name(put), bytes, PutOptions::default())
            });
            let puts: Vec<_> = puts.collect();
            if fails {
                let fault = Fault {
                    kind: FaultKind::ReplaceFile,
                    after: 0,
                    times: 1,
                    disk: None,
                };
                machine.sim().set_faults(&[fault]);
            }
            let removed = store.remove_sector(number, RemoveOptions::default());
            let what = format!("{removed:?} of {number}");
            for put in puts {
                put.wait().expect(&what);
            }
            for sector in store.info().sectors {
                assert_eq!(sector.poisoned, None, "{what}");
            }
            for put in 0..16 {
                let found = store.get(&name(put), GetOptions::default()).wait();
                assert_eq!(found.expect(&what).bytes, payload(put as u64, 40_000));
            }
        }
    }
}

/// A sector that fails in the last moment before another is taken away does not know of it, and is missed all the
/// same if what is in it is nowhere else.
#[test]
fn a_sector_fails_while_another_is_taken_away() {
    for failing in [DiskCondition::ReadOnly, DiskCondition::Dead] {
        let (mut machine, store, contents) = used(&Plan::REPLICAS);
        add(&store).expect("it is added");
        store.drain_sector(3).expect("it is to be drained");
        settle(&store).expect("it is drained");
        machine.sim().set_condition(1, failing);
        let removed = store.remove_sector(3, RemoveOptions::default());
        eprintln!("{removed:?}");
        drop(store);
        let image = machine.sim().image();
        for (lost, opens) in [(&[][..], true), (&[1][..], true), (&[1, 2], false)] {
            machine.come_up(&image);
            for &disk in lost {
                machine.sim().set_condition(disk, DiskCondition::Absent);
            }
            match machine.open() {
                Ok(store) => {
                    let found = contents_of(&*store).expect("it is read");
                    assert_eq!(found, contents, "without {lost:?}");
                }
                Err(error) => assert!(!opens, "without {lost:?}: {error}"),
            }
        }
    }
}

/// A sector is taken away while its segments are zeroed: from then on nothing is written to it.
#[test]
fn a_sector_is_removed_while_it_is_zeroed() {
    let directory = memory_directory();
    let options = create_options(&buffered(), 1, 32 * MIB);
    let store = Store::create(directory.path().join("store"), options).expect("it is made");
    store.zero_free_segments().expect("it is zeroed");
    for round in 0..4 {
        let number = store
            .add_sector(&NewSector {
                size: 200 * MIB,
                ..NewSector::default()
            })
            .expect("it is added");
        std::thread::scope(|scope| {
            let zeroing = scope.spawn(|| store.zero_free_segments());
            let zeroed = || store.info().sectors[1].segments_zeroed;
            while zeroed() < 10 * (round + 1) && !zeroing.is_finished() {
                std::thread::yield_now();
            }
            store
                .remove_sector(number, RemoveOptions::default())
                .expect("nothing lies there");
            if let Err(error) = zeroing.join().expect("no panic") {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            }
        });
        let put = store.put(
            &BinaryKey::new("key").expect("a short key"),
            payload(u64::from(round), 100_000),
            PutOptions::default(),
        );
        put.wait().expect("it is put");
        let report = store.verify(&mut |_| {}).expect("it is verified");
        assert!(report.findings.is_empty(), "{report:?}");
    }
}

//! Sectors become larger while the store is in use: a crash leaves the one size or the other, what waits for room
//! goes on, and what was there before is.

use std::thread;
use std::time::Duration;

use graviton_engine::io::sim::{DiskCondition, Fault, FaultError, FaultKind, Image, Random, Sim};
use graviton_engine::port::{
    BinaryKey, BlobStore, DeleteOptions, ErrorKind, GetOptions, PutOptions, StorageError,
};
use graviton_engine::store::{Access, CreateOptions, MIB, OpenOptions, Store};
use graviton_engine::testing::{Contents, Difference, contents_of};
use graviton_tests::history::{
    Action, Ground, Machine, Plan, Tally, Trials, check_store, run_beside, used,
};
use graviton_tests::random::payload;

const SIZE: u64 = 4 * MIB;
const GROWN: u64 = 6 * MIB;
const AREA: usize = 64 << 10;

/// How many bytes a sector has, in whole segments.
fn size(store: &Store, number: u16) -> u64 {
    let sectors = store.info().sectors;
    let sector = sectors.iter().find(|sector| sector.number == number);
    sector.expect("there is such a sector").space.total
}

fn key(name: impl ToString) -> BinaryKey {
    BinaryKey::new(name.to_string()).expect("a short key")
}

fn put(store: &Store, name: impl ToString, bytes: usize) -> Result<(), StorageError> {
    let (name, blob) = (key(name), payload(1, bytes));
    let put = store.put(&name, blob, PutOptions::default());
    put.wait().map(drop)
}

/// Puts blobs until none fits any more, and returns how many did.
fn fill(store: &Store, prefix: &str) -> usize {
    for number in 0.. {
        match put(store, format!("{prefix}/{number:04}"), 30_000) {
            Ok(()) => {}
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
                return number;
            }
        }
    }
    unreachable!()
}

/// Opens a store after a crash: all that was in it is, the sector has one size or the other, grows all the same, and
/// what is new of it can be filled. Returns whether it had grown.
fn check_after_crash(image: &Image, plan: &Plan, contents: &Contents, sizes: (u64, u64)) -> bool {
    let mut machine = Machine::boot(plan.clone(), image, 6);
    for access in [Access::ReadOnly, Access::ReadWrite] {
        machine.come_up(image);
        let store = machine.open_for(access).expect("it opens");
        assert_eq!(contents_of(&*store).expect("it is read"), *contents);
        check_store(&store).expect("it is whole");
    }
    let store = machine.store();
    let found = size(&store, 0);
    assert!(found == sizes.0 || found == sizes.1, "{found} bytes");
    assert_eq!(store.grow_sector(0, GROWN).expect("it grows"), sizes.1);
    assert_eq!(size(&store, 0), sizes.1);
    fill(&store, "more");
    check_store(&store).expect("it is whole");
    let all = contents_of(&*store).expect("it is read");
    drop(store);
    let image = machine.switch_off();
    machine = Machine::boot(plan.clone(), &image, 7);
    let store = machine.open().expect("it opens");
    assert_eq!(contents_of(&*store).expect("it is read"), all);
    check_store(&store).expect("it is whole");
    assert_eq!(size(&store, 0), sizes.1);
    found == sizes.1
}

#[test]
fn crashes_while_a_sector_grows() {
    for plan in [Plan::SMALL, Plan::REPLICAS] {
        let (machine, store, contents) = used(&plan);
        let before = size(&store, 0);
        machine.sim().record(true);
        let after = store.grow_sector(0, GROWN).expect("it grows");
        assert!(before < after && after <= GROWN);
        let mut crasher = machine.crasher();
        let mut images = [0, 0];
        for position in 0..=machine.position() {
            crasher.advance(position);
            for loss in crasher.losses() {
                let image = crasher.image(loss);
                let has_grown = check_after_crash(&image, &plan, &contents, (before, after));
                images[usize::from(has_grown)] += 1;
            }
        }
        assert!(images[0] > 5 && images[1] > 5, "{images:?}");
    }
}

/// Each call to the disk fails once while a sector grows: nothing is lost, and it has one size or the other.
#[test]
fn calls_fail_while_a_sector_grows() {
    let kinds = [
        FaultKind::Extend,
        FaultKind::Allocate,
        FaultKind::Read,
        FaultKind::Write,
        FaultKind::Sync,
    ];
    for plan in [Plan::SMALL, Plan::REPLICAS] {
        for kind in kinds {
            for after in 0.. {
                let (mut machine, store, contents) = used(&plan);
                let before = size(&store, 0);
                let failures = machine.sim().failures();
                machine.sim().set_faults(&[Fault {
                    kind,
                    after,
                    times: 1,
                    disk: Some(0),
                }]);
                let grown = store.grow_sector(0, GROWN);
                machine.sim().set_faults(&[]);
                let was_hit = machine.sim().failures() > failures;
                let what = format!("{kind:?} {after}, {grown:?}");
                assert_eq!(
                    contents_of(&*store).expect("it is read"),
                    contents,
                    "{what}"
                );
                drop(store);
                let image = machine.sim().image();
                machine.come_up(&image);
                let store = machine.open().expect("it opens");
                let found = size(&store, 0);
                assert_eq!(
                    contents_of(&*store).expect("it is read"),
                    contents,
                    "{what}"
                );
                check_store(&store).expect("it is whole");
                let after_all = store.grow_sector(0, GROWN).expect("it grows");
                assert!(found == before || found == after_all, "{what}: {found}");
                put(&store, "more", 1000).expect("there is room");
                if !was_hit {
                    assert_eq!(grown.expect("nothing failed"), found);
                    break;
                }
            }
        }
    }
}

/// There is no room on the file system: nothing changed, and the file is as long as it was.
#[test]
fn no_room_to_grow() {
    let (machine, store, contents) = used(&Plan::SMALL);
    let (before, length) = (size(&store, 0), machine.sim().image().size(0));
    let fault = Fault {
        kind: FaultKind::Extend,
        after: 0,
        times: 1,
        disk: None,
    };
    machine.sim().add_faults(&[fault], FaultError::NoSpace);
    let error = store.grow_sector(0, GROWN).expect_err("there is no room");
    assert!(
        matches!(&error, StorageError::File { operation: "grow", source, .. }
            if source.kind() == std::io::ErrorKind::StorageFull),
        "{error}"
    );
    assert_eq!(size(&store, 0), before);
    assert_eq!(machine.sim().image().size(0), length);
    put(&store, "more", 1000).expect("it takes writes");
    assert_eq!(
        contents_of(&*store).expect("it is read").len(),
        contents.len() + 1
    );
    store.grow_sector(0, GROWN).expect("now there is");
    check_store(&store).expect("it is whole");
}

/// What can't be is refused, and changes nothing.
#[test]
fn wrong_sizes_and_sectors() {
    let (mut machine, store, contents) = used(&Plan::REPLICAS);
    let before = size(&store, 0);
    let invalid = |number, size| match store.grow_sector(number, size) {
        Err(StorageError::InvalidArgument { what }) => what,
        other => panic!("sector {number} to {size}: {other:?}"),
    };
    assert!(invalid(0, before - 1).contains("does not shrink"));
    for size in [0, 1, 100_000, u64::MAX, (1 << 41) + MIB] {
        invalid(0, size);
    }
    for number in [3, 63, 64, u16::MAX] {
        invalid(number, GROWN);
    }
    // No whole segment more.
    for same in [before, before + 1, before + (64 << 10) - 1] {
        assert_eq!(store.grow_sector(0, same).expect("it has that"), before);
    }
    let image = machine.sim().image();
    // One that takes no writes.
    machine.sim().set_faults(&[Fault {
        kind: FaultKind::Write,
        after: 0,
        times: 1,
        disk: Some(1),
    }]);
    for number in 0..20 {
        put(&store, format!("poison/{number}"), 10).expect("it goes elsewhere");
    }
    let error = store.grow_sector(1, GROWN).expect_err("it is poisoned");
    assert!(
        matches!(error, StorageError::SectorPoisoned { sector: 1, .. }),
        "{error}"
    );
    drop(store);
    for condition in [
        DiskCondition::Absent,
        DiskCondition::ReadOnly,
        DiskCondition::Dead,
    ] {
        machine.come_up(&image);
        machine.sim().set_condition(2, condition);
        let store = machine.open().expect("it opens");
        let error = store.grow_sector(2, GROWN).expect_err("it is out");
        assert!(
            matches!(error, StorageError::SectorPoisoned { sector: 2, .. }),
            "{condition:?}: {error}"
        );
        store.grow_sector(0, GROWN).expect("others grow");
        check_contents(&store, &contents);
    }
    machine.come_up(&image);
    let store = machine.open_for(Access::ReadOnly).expect("it opens");
    let error = store
        .grow_sector(0, GROWN)
        .expect_err("it is open for reading");
    assert!(matches!(error, StorageError::ReadOnly), "{error}");
}

/// All of it is there, whatever else is.
fn check_contents(store: &Store, contents: &Contents) {
    let found = contents_of(store).expect("it is read");
    assert!(
        contents
            .iter()
            .all(|(key, blob)| found.get(key) == Some(blob))
    );
}

/// Either superblock will do once a sector has grown, and an old front one is seen to be so.
#[test]
fn superblocks_of_a_sector_that_has_grown() {
    let (mut machine, store, contents) = used(&Plan::SMALL);
    let mut old = vec![0; 512];
    machine.sim().image().read(0, 0, &mut old);
    let grown = store.grow_sector(0, GROWN).expect("it grows");
    // What was the back area is none any more.
    let mut area = vec![1; AREA];
    let before = usize::try_from(SIZE).expect("small") - AREA;
    machine.sim().image().read(0, before, &mut area);
    assert!(area.iter().all(|&byte| byte == 0));
    fill(&store, "more");
    drop(store);
    let image = machine.sim().image();
    let back = usize::try_from(grown).expect("small") - AREA;
    let places: [(usize, &[u8]); 4] =
        [(0, &[0; 512]), (0, &[7; 512]), (0, &old), (back, &[7; 512])];
    for (place, bytes) in places {
        let mut damaged = image.clone();
        damaged.edit(0, place, bytes);
        machine.come_up(&damaged);
        let store = machine.open().expect("it opens");
        assert_eq!(size(&store, 0), grown);
        check_contents(&store, &contents);
        drop(store);
        let mended = machine.sim().image();
        machine.come_up(&mended);
        check_store(&machine.open().expect("it opens")).expect("it was mended");
    }
}

/// A put that waits for readers to make room goes on as soon as there is more.
#[test]
fn a_put_that_waits_for_room_goes_on() {
    for background in [true, false] {
        let sim = Sim::new(512, 3);
        sim.record(false);
        sim.carry_out_in_background();
        let options = CreateOptions {
            sector_size: SIZE,
            segment_size: Some(64 << 10),
            open: OpenOptions {
                background,
                reader_patience: Duration::from_secs(30),
                ..OpenOptions::default()
            },
            ..CreateOptions::default()
        };
        let store = Store::create_on(sim.backend(), "/store", options).expect("it is made");
        let count = fill(&store, "first");
        // Readers are in all segments.
        let readers: Vec<_> = (0..count)
            .map(|number| {
                let name = key(format!("first/{number:04}"));
                let reader = store.get_stream(&name, GetOptions::default()).wait();
                reader.expect("it is there")
            })
            .collect();
        for number in 0..count {
            let name = key(format!("first/{number:04}"));
            store
                .delete(&name, DeleteOptions::default())
                .wait()
                .expect("deleted");
        }
        thread::scope(|scope| {
            let putting =
                scope.spawn(|| (0..20).try_for_each(|n| put(&store, format!("then/{n}"), 60_000)));
            thread::sleep(Duration::from_millis(300));
            assert!(!putting.is_finished(), "it does not wait");
            store.grow_sector(0, 4 * SIZE).expect("it grows");
            putting
                .join()
                .expect("no panic")
                .expect("there is room now");
        });
        drop(readers);
        check_store(&store).expect("it is whole");
    }
}

/// Histories in the course of which sectors grow.
fn grow_meanwhile(ground: &Ground, seed: u64, actions: &[Action]) -> Result<Tally, Difference> {
    let grow = |store: &Store, random: &mut Random| {
        if random.one_in(6) {
            let number = u16::try_from(random.below(usize::from(ground.plan.sectors))).unwrap_or(0);
            let more = 1 + random.below(400_000) as u64;
            let before = size(store, number);
            let grown = store.grow_sector(number, before + more);
            let grown = grown.map_err(|error| format!("grow: {error}"))?;
            assert!(before <= grown && grown <= before + more && grown == size(store, number));
        }
        Ok(())
    };
    run_beside(ground, seed, actions, 12, grow, |_| Ok(()))
}

#[test]
fn sectors_grow_in_the_course_of_things() {
    for plan in [Plan::FULL, Plan::REPLICAS] {
        Trials::undisturbed(plan, 20, 80).run(&grow_meanwhile);
    }
}

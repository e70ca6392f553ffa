//! Rebalance: replicas move to better places, and none is taken away before another is there.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use graviton_engine::io::sim::{DiskCondition, Sim};
use graviton_engine::policy::{CostOptimized, RackAware};
use graviton_engine::port::{
    BinaryKey, BlobStore, CopyOptions, DeleteOptions, Gain, GetOptions, Labels, MutableObjectStore,
    Placement, Price, PutOptions, PutRangeOptions, Rebalance, ReplicationPolicy, Span,
};
use graviton_engine::store::{
    CreateOptions, NewSector, OpenOptions, RebalanceOptions, Store, StoreInfo,
};
use graviton_engine::testing::{Contents, contents_of};
use graviton_tests::history::{Plan, check_store};
use graviton_tests::policies::Steered;
use graviton_tests::random::payload;
use graviton_tests::{check_replicas, rebalance, settle};

const PATH: &str = "/store";
const BLOBS: usize = 120;

fn key(number: usize) -> BinaryKey {
    BinaryKey::new(format!("key/{number:03}")).expect("a short key")
}

fn put(store: &Store, number: usize, seed: u64) {
    // Some are made of several extents.
    let length = if number.is_multiple_of(10) {
        50_000
    } else {
        4_000
    };
    let blob = payload(seed, length + number);
    let put = store.put(&key(number), blob, PutOptions::default());
    put.wait().expect("it is put");
}

fn options(sectors: u16, replicas: u16) -> CreateOptions {
    CreateOptions {
        sectors,
        replicas,
        ..Plan::REPLICAS.create_options()
    }
}

fn filled(sectors: u16, replicas: u16) -> (Sim, Store) {
    let sim = Sim::new(512, 1);
    sim.record(false);
    let options = options(sectors, replicas);
    let store = Store::create_on(sim.backend(), PATH, options).expect("it is made");
    (0..BLOBS).for_each(|number| put(&store, number, 1));
    (sim, store)
}

fn open(sim: &Sim) -> Store {
    let options = options(1, 1).open;
    Store::open_on(sim.backend(), PATH, options).expect("it opens")
}

fn check(store: &Store, contents: &Contents) {
    assert_eq!(contents_of(store).expect("it is read"), *contents);
    check_store(store).expect("it is whole");
}

/// How full each sector is, in percent.
fn fullness(info: &StoreInfo) -> Vec<u64> {
    let used = |space: graviton_engine::store::Space| 100 - space.available * 100 / space.total;
    info.sectors
        .iter()
        .map(|sector| used(sector.space))
        .collect()
}

/// A sector that was away brings back what others have in the meantime been given.
#[test]
fn what_is_too_many_goes_and_stays_away() {
    let (sim, store) = filled(3, 2);
    let contents = contents_of(&store).expect("it is read");
    drop(store);
    sim.set_condition(1, DiskCondition::Absent);
    let store = open(&sim);
    settle(&store).expect("it is mended");
    drop(store);
    sim.set_condition(1, DiskCondition::Well);
    let store = open(&sim);
    settle(&store).expect("it is mended");
    let surplus = (0..BLOBS)
        .filter(|&number| {
            store
                .stat(&key(number))
                .wait()
                .expect("it is there")
                .sectors
                .len()
                == 3
        })
        .count();
    assert!(surplus > BLOBS / 3, "{surplus} have one too many");
    let live = store.info().space.live;

    // What it would do is what it does.
    let said = RebalanceOptions {
        dry_run: true,
        ..RebalanceOptions::default()
    };
    let mut steps = 0;
    let said = store.rebalance(&said, &mut |progress| {
        let is_surplus = progress.step.gain == Gain::Surplus { copies: 3 };
        assert_eq!(is_surplus, steps < surplus, "{:?}", progress.step);
        assert_eq!(is_surplus, progress.step.add.is_none());
        steps += 1;
        ControlFlow::Continue(())
    });
    let said = said.expect("it is looked for");
    assert_eq!(said.removed, steps as u64);
    assert_eq!((said.added, said.left), ((steps - surplus) as u64, 0));
    assert_eq!(store.info().space.live, live, "nothing was done");
    let done = rebalance(&store).expect("it is done");
    assert!(done.removed >= said.removed, "{done:?}");
    assert_eq!(done.left, 0);
    check_replicas(&store, 2..=2).expect("two replicas");
    assert!(store.info().space.live < live);
    check(&store, &contents);
    assert_eq!(rebalance(&store).expect("it is done").removed, 0);
    // Some are changed and deleted, of which the sector that gave them up will not know.
    for number in 0..BLOBS / 2 {
        match number % 3 {
            0 => put(&store, number, 2),
            1 => {
                let deleted = store.delete(&key(number), DeleteOptions::default());
                deleted.wait().expect("it is deleted");
            }
            _ => {}
        }
    }
    let contents = contents_of(&store).expect("it is read");
    // After a crash, the replicas show again that no checkpoint has forgotten; but nothing that is stale.
    let crashed = Sim::boot(&sim.image(), 512, 2);
    let again = open(&crashed);
    check(&again, &contents);
    settle(&again).expect("it is tidied up");
    assert_eq!(rebalance(&again).expect("it is done").left, 0);
    check_replicas(&again, 2..=2).expect("two replicas");
    drop(again);
    store.close().expect("it closes");
    let again = open(&sim);
    check(&again, &contents);
    check_replicas(&again, 2..=2).expect("two replicas");
    drop(again);
    for sector in 0..3 {
        sim.set_condition(sector, DiskCondition::Dead);
        let options = OpenOptions::read_only();
        let alone = Store::open_on(sim.backend(), PATH, options).expect("it opens");
        assert_eq!(contents_of(&alone).expect("it is read"), contents);
        drop(alone);
        sim.set_condition(sector, DiskCondition::Well);
    }
}

/// A sector that is added gets its share.
#[test]
fn sectors_are_filled_evenly() {
    for (sectors, replicas) in [(1, 1), (2, 1), (2, 2)] {
        let (sim, store) = filled(sectors, replicas);
        let contents = contents_of(&store).expect("it is read");
        let added = store.add_sector(&NewSector {
            size: 4 << 20,
            ..NewSector::default()
        });
        assert_eq!(added.expect("it is added"), sectors);
        let before = fullness(&store.info());
        let report = rebalance(&store).expect("it is done");
        let after = fullness(&store.info());
        assert!(
            report.added > 0 && report.added == report.removed,
            "{report:?}"
        );
        assert_eq!(report.left, 0);
        assert!(report.bytes > 0);
        let spread =
            |full: &[u64]| full.iter().max().unwrap_or(&0) - full.iter().min().unwrap_or(&0);
        assert!(spread(&before) > 8, "{before:?}");
        assert!(spread(&after) <= 8, "{before:?}, then {after:?}");
        let copies = usize::from(replicas);
        check_replicas(&store, copies..=copies).expect("as many replicas as before");
        check(&store, &contents);
        // It comes to an end.
        let again = rebalance(&store).expect("it is done");
        assert!(again.added <= 2, "{again:?}");
        drop(store);
        check(&open(&sim), &contents);
    }
}

fn with_policy(sim: &Sim, policy: Arc<dyn ReplicationPolicy>) -> Store {
    let options = OpenOptions {
        replication: Some(policy),
        ..options(1, 1).open
    };
    Store::open_on(sim.backend(), PATH, options).expect("it opens")
}

fn label(store: &Store, sector: u16, rack: &str, storage: f64) {
    let labels = Labels {
        rack: Some(rack.to_owned()),
        tier: None,
        price: Some(Price::new(storage, 0.0, 0.0).expect("a price")),
    };
    store.relabel(sector, labels).expect("it is labelled");
}

#[test]
fn replicas_go_where_the_policy_wants_them() {
    let (sim, store) = filled(4, 2);
    let contents = contents_of(&store).expect("it is read");
    for (sector, rack, cost) in [(0, "a", 3.0), (1, "a", 1.0), (2, "b", 2.0), (3, "b", 1.0)] {
        label(&store, sector, rack, cost);
    }
    drop(store);
    let racks = [0, 0, 1, 1];
    let store = with_policy(&sim, Arc::new(RackAware::default()));
    let report = rebalance(&store).expect("it is done");
    assert!(report.added > 0 && report.left == 0, "{report:?}");
    let sectors_of = |store: &Store, number: usize| {
        let found = store.stat(&key(number)).wait().expect("it is there");
        found
            .sectors
            .iter()
            .map(|&sector| usize::from(sector))
            .collect::<Vec<_>>()
    };
    for number in 0..BLOBS {
        let sectors = sectors_of(&store, number);
        assert_eq!(sectors.len(), 2);
        assert_ne!(racks[sectors[0]], racks[sectors[1]], "{sectors:?}");
    }
    check(&store, &contents);
    drop(store);
    let store = with_policy(&sim, Arc::new(CostOptimized::default()));
    let report = rebalance(&store).expect("it is done");
    assert!(report.added > 0 && report.left == 0, "{report:?}");
    for number in 0..BLOBS {
        assert_eq!(sectors_of(&store, number), [1, 3]);
    }
    check(&store, &contents);
    assert_eq!(rebalance(&store).expect("it is done").added, 0);
}

/// What is too many goes from wherever it weighs most, one after the other.
#[test]
fn what_is_too_many_leaves_the_sectors_even() {
    let (sim, store) = filled(3, 2);
    store.drain_sector(1).expect("it is drained");
    settle(&store).expect("it is mended");
    store.undrain_sector(1).expect("it is in use again");
    let said = RebalanceOptions {
        dry_run: true,
        ..RebalanceOptions::default()
    };
    let said = store.rebalance(&said, &mut |_| ControlFlow::Continue(()));
    let said = said.expect("it is looked for");
    let done = rebalance(&store).expect("it is done");
    check_replicas(&store, 2..=2).expect("two replicas");
    let full = fullness(&store.info());
    let (most, least) = (full.iter().max(), full.iter().min());
    assert!(
        most.zip(least)
            .is_some_and(|(most, least)| most - least <= 10),
        "{full:?}"
    );
    // Hardly anything has to move, and that was said.
    assert!(done.added <= 10, "{done:?}");
    assert!(
        said.removed.abs_diff(done.removed) <= 10,
        "{said:?}, then {done:?}"
    );
    drop(store);
    drop(sim);
}

/// Others write the same blobs meanwhile, and none of them notices.
#[test]
fn blobs_are_in_use_while_they_move() {
    let (_sim, store) = filled(2, 1);
    let (store, is_over) = (Arc::new(store), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (store, is_over) = (&store, &is_over);
            scope.spawn(move || {
                let mut seed = 2;
                while !is_over.load(Ordering::Relaxed) {
                    for number in (thread..BLOBS).step_by(2) {
                        put(store, number, seed);
                        let found = store.get(&key(number), GetOptions::default()).wait();
                        let length = if number.is_multiple_of(10) {
                            50_000
                        } else {
                            4_000
                        };
                        let expected = payload(seed, length + number);
                        assert_eq!(found.expect("it is there").bytes, expected);
                    }
                    seed += 1;
                    while store.step().expect("maintenance") {}
                }
            });
        }
        for size in [8, 6] {
            let added = store.add_sector(&NewSector {
                size: size << 20,
                ..NewSector::default()
            });
            added.expect("it is added");
            rebalance(&store).expect("it is done");
        }
        is_over.store(true, Ordering::Relaxed);
    });
    rebalance(&store).expect("it is done");
    check_replicas(&store, 1..=1).expect("one replica");
    check_store(&store).expect("it is whole");
    assert_eq!(store.info().blobs, BLOBS as u64);
}

/// Wants blobs where they are, but those whose keys begin with `k` in one sector.
fn with_k_in(sector: u16) -> Option<Arc<dyn ReplicationPolicy>> {
    Some(Arc::new(Steered(move |request: &Placement<'_>| {
        let is_k = request.key.as_bytes().starts_with(b"k");
        let goes = is_k && !request.holders.contains(&sector);
        goes.then(|| Rebalance {
            add: Some(sector),
            remove: request.holders[0],
            gain: Gain::Spread,
        })
    })))
}

/// A blob that has moved away and back finds its old record, in which a copy's payload lies: compaction tells that
/// from what the blob has now, be it as long as that.
#[test]
fn what_came_back_is_not_taken_for_what_it_left_behind() {
    const MANIFEST: usize = 24;
    for size in [1, MANIFEST, 300] {
        for is_changed in [false, true] {
            let sim = Sim::new(512, 1);
            let mut options = options(2, 1);
            options.open.replication = with_k_in(0);
            options.open.checkpoint_interval = Some(u64::MAX);
            let open = options.open.clone();
            let store = Store::create_on(sim.backend(), PATH, options).expect("it is made");
            let named = |space: char, number: usize| {
                BinaryKey::new(format!("{space}{number:03}")).expect("a short key")
            };
            let put = |store: &Store, key: &BinaryKey, size: usize| {
                let put = store.put(key, payload(1, size), PutOptions::default());
                put.wait().expect("it is put");
            };
            for number in 0..30 {
                put(&store, &named('k', number), size);
                let (from, to) = (named('k', number), named('x', number));
                let copied = store.copy(&from, &to, CopyOptions::default());
                copied.wait().expect("it is copied");
            }
            put(&store, &named('g', 0), 30_000);
            for sector in [1, 0] {
                store.set_replication(with_k_in(sector));
                assert!(rebalance(&store).expect("it is rebalanced").added > 0);
            }
            for number in (0..30).filter(|_| is_changed) {
                let range = Span::new(0, 1).expect("a span");
                let options = PutRangeOptions::default();
                let put = store.put_range(&named('k', number), range, payload(2, 1), options);
                put.wait().expect("it is put");
            }
            let contents = contents_of(&store).expect("it is read");
            // Their segments are sealed, and worth to be compacted.
            (0..4).for_each(|number| put(&store, &named('f', number), 30_000));
            for (space, count) in [('g', 1), ('f', 4)] {
                for number in 0..count {
                    let key = named(space, number);
                    let deleted = store.delete(&key, DeleteOptions::default()).wait();
                    assert!(deleted.expect("it is deleted").existed);
                }
            }
            let report = store.compact().expect("it is compacted");
            assert!(report.segments > 0 && report.damaged == 0, "{report:?}");
            let mut contents = contents;
            contents.remove(&named('g', 0));
            check(&store, &contents);
            // Whoever replays the log finds the same.
            let killed = Sim::boot(&sim.image(), 512, 1);
            let again = Store::open_on(killed.backend(), PATH, open).expect("it opens");
            check(&again, &contents);
            for number in 0..30 {
                let deleted = again.delete(&named('k', number), DeleteOptions::default());
                deleted.wait().expect("it is deleted");
                contents.remove(&named('k', number));
            }
            again.compact().expect("it is compacted");
            check(&again, &contents);
        }
    }
}

//! Sectors that were missing, and come back: what was never acknowledged does not come about with them, and what was
//! made in them since stays. And what is acknowledged while one of several sectors fails does not rest on one that may
//! be missing.

use std::ops::ControlFlow;
use std::sync::Arc;

use graviton_engine::io::sim::{DiskCondition, FaultKind, Image, Loss, Sim};
use graviton_engine::port::{
    Batch, BinaryKey, BlobStore, DeleteOptions, Durability, Gain, GetOptions, MutableObjectStore,
    Placement, PutRangeOptions, RangeSet, Rebalance, Span, StorageError,
};
use graviton_engine::store::{
    CreateOptions, MIB, NewSector, OpenOptions, RebalanceOptions, RemoveOptions, Store,
};
use graviton_tests::history::{Plan, check_store};
use graviton_tests::policies::{CopiedTo, Steered};
use graviton_tests::random::payload;
use graviton_tests::{check_two_replicas, fail_next, put_options, settle, with_disk_of};

const PATH: &str = "/store";
const SECTORS: usize = 3;

fn boot(image: &Image) -> Sim {
    let sim = Sim::boot(image, 512, 1);
    sim.record(false);
    sim
}

fn open_on(sim: &Sim) -> Result<Store, StorageError> {
    Store::open_on(sim.backend(), PATH, Plan::REPLICAS.open_options())
}

fn opened_on(sim: &Sim) -> Store {
    open_on(sim).expect("it opens")
}

fn key(number: usize) -> BinaryKey {
    BinaryKey::new(format!("key/{number:02}")).expect("a short key")
}

fn put(store: &Store, number: usize, seed: u64, durability: Durability) {
    let put = store.put(&key(number), payload(seed, 100), put_options(durability));
    put.wait().expect("it is put");
}

fn holders(store: &Store, number: usize) -> Vec<usize> {
    let found = store.stat(&key(number)).wait().expect("it is there");
    found.sectors.into_iter().map(usize::from).collect()
}

/// Of blobs 0 to 30, those that the first sector does not have.
fn not_in_the_first(store: &Store) -> Vec<usize> {
    let numbers = (0..30).filter(|&number| !holders(store, number).contains(&0));
    numbers.collect()
}

fn is(store: &Store, number: usize, seed: u64) -> bool {
    match store.get(&key(number), GetOptions::default()).wait() {
        Ok(found) => found.bytes == payload(seed, 100),
        Err(StorageError::NotFound { .. }) => false,
        Err(error) => panic!("{number}: {error}"),
    }
}

/// A store of three sectors and two replicas with blobs 0 to `count`, all of it durable, and open.
fn filled(count: usize) -> (Sim, Store) {
    let sim = Sim::new(512, 1);
    let options: CreateOptions = Plan::REPLICAS.create_options();
    let store = Store::create_on(sim.backend(), PATH, options).expect("it is made");
    (0..count).for_each(|number| put(&store, number, 1, Durability::Durable));
    settle(&store).expect("it is tidy");
    store.close().expect("it closes");
    let image = sim.image();
    drop(store);
    let sim = Sim::boot(&image, 512, 1);
    let store = opened_on(&sim);
    (sim, store)
}

/// These sectors are missing, and no others.
fn without(sim: &Sim, missing: &[usize]) {
    for disk in 0..SECTORS {
        sim.set_condition(
            disk,
            match missing.contains(&disk) {
                true => DiskCondition::Absent,
                false => DiskCondition::Well,
            },
        );
    }
}

/// What a power failure leaves while blob 0 is deleted: a sector that has the delete, another that has the blob,
/// and a third.
struct HalfDeleted {
    image: Image,
    lone: usize,
    other: usize,
    third: usize,
}

impl HalfDeleted {
    fn new(which: usize) -> Self {
        let (sim, store) = filled(30);
        let holders = holders(&store, 0);
        let before = sim.image();
        let delete = store.delete(&key(0), DeleteOptions::default());
        delete.wait().expect("it is deleted");
        let (lone, other) = (holders[which], holders[1 - which]);
        Self {
            image: with_disk_of(&before, lone, &sim.image()),
            lone,
            other,
            third: SECTORS - lone - other,
        }
    }

    /// It was seen without the lone sector that the blob is there, which then comes back.
    fn come_back(&self, seen: impl FnOnce(&Store)) -> (Sim, Store) {
        let sim = boot(&self.image);
        without(&sim, &[self.lone]);
        let store = opened_on(&sim);
        assert!(is(&store, 0, 1));
        seen(&store);
        drop(store);
        without(&sim, &[]);
        let store = opened_on(&sim);
        assert!(is(&store, 0, 1));
        (sim, store)
    }

    fn lone(&self) -> u16 {
        u16::try_from(self.lone).expect("of three")
    }

    fn copied_to_lone(&self) -> Arc<CopiedTo<impl Fn(&Placement<'_>) -> u16 + use<>>> {
        let lone = self.lone();
        Arc::new(CopiedTo(move |_: &Placement<'_>| lone))
    }
}

/// It is as without the sector that comes back, also while another is missing.
#[test]
fn what_comes_back_while_another_is_missing_does_not_hold_either() {
    for which in 0..2 {
        let half = HalfDeleted::new(which);
        let sim = boot(&half.image);
        without(&sim, &[half.lone]);
        let store = opened_on(&sim);
        settle(&store).expect("it is mended");
        check_two_replicas(&store).expect("it is whole");
        store.close().expect("it closes");
        drop(store);
        without(&sim, &[half.other]);
        assert!(is(&opened_on(&sim), 0, 1));
        without(&sim, &[]);
        let store = opened_on(&sim);
        assert!(is(&store, 0, 1));
        settle(&store).expect("it is mended");
        check_store(&store).expect("it is whole");
    }
}

/// A replica is brought to the sector that came back, at once; then the process is killed, or the store closed, and
/// the next goes by it.
#[test]
fn a_replica_in_a_sector_that_came_back_counts_from_the_first() {
    for is_closed in [false, true] {
        let half = HalfDeleted::new(0);
        let (sim, store) = half.come_back(|_| {});
        store.set_replication(Some(half.copied_to_lone()));
        assert_eq!(store.repair(&mut |_| {}).expect("it is repaired"), 0);
        assert!(!store.info().replication.is_short);
        if is_closed {
            store.close().expect("it closes");
        }
        let sim = boot(&sim.image());
        without(&sim, &[half.other]);
        assert!(is(&opened_on(&sim), 0, 1));
    }
}

/// The same, beside maintenance.
#[test]
fn a_replica_counts_that_is_made_beside_maintenance() {
    for _ in 0..20 {
        let half = HalfDeleted::new(0);
        let sim = boot(&half.image);
        without(&sim, &[half.lone]);
        drop(opened_on(&sim));
        without(&sim, &[]);
        let options = OpenOptions {
            background: true,
            replication: Some(half.copied_to_lone()),
            ..Plan::REPLICAS.open_options()
        };
        let store = Store::open_on(sim.backend(), PATH, options).expect("it opens");
        assert_eq!(store.repair(&mut |_| {}).expect("it is repaired"), 0);
        store.close().expect("it closes");
        drop(store);
        without(&sim, &[half.other]);
        assert!(is(&opened_on(&sim), 0, 1));
    }
}

#[test]
fn a_replica_that_moved_to_a_sector_that_came_back_counts() {
    let half = HalfDeleted::new(0);
    let (sim, store) = half.come_back(|store| settle(store).expect("it is mended"));
    let (lone, other) = (
        half.lone(),
        u16::try_from(half.other).expect("one of three"),
    );
    store.set_replication(Some(Arc::new(Steered(move |request: &Placement<'_>| {
        let goes = request.holders.contains(&other) && !request.holders.contains(&lone);
        (request.key == &key(0) && goes).then_some(Rebalance {
            add: Some(lone),
            remove: other,
            gain: Gain::Spread,
        })
    }))));
    let options = RebalanceOptions::default();
    let moved = store.rebalance(&options, &mut |_| ControlFlow::Continue(()));
    assert_eq!(moved.expect("it is moved").added, 1);
    let sim = boot(&sim.image());
    without(&sim, &[half.third]);
    assert!(is(&opened_on(&sim), 0, 1));
}

#[test]
fn a_replica_in_a_sector_that_came_back_can_be_changed() {
    let half = HalfDeleted::new(0);
    let (sim, store) = half.come_back(|_| {});
    let version = store.stat(&key(0)).wait().expect("it is there").version;
    let whole = RangeSet::default();
    let replicas = store.replicas();
    let added = replicas.add_replica(&key(0), half.lone(), version, &whole);
    added.wait().expect("it is added");
    let range = Span::new(0, 10).expect("a span");
    let changed = store.put_range(&key(0), range, payload(9, 10), PutRangeOptions::default());
    changed.wait().expect("it is changed");
    let store = opened_on(&boot(&sim.image()));
    assert_eq!(store.info().health, Vec::<String>::new());
    settle(&store).expect("it is tidy");
    check_store(&store).expect("it is whole");
}

/// Either of the checkpoints that are kept of it will do.
#[test]
fn what_came_back_does_not_hold_if_a_checkpoint_rots() {
    let half = HalfDeleted::new(0);
    let (sim, store) = half.come_back(|store| settle(store).expect("it is mended"));
    settle(&store).expect("it is mended");
    check_two_replicas(&store).expect("it is whole");
    let image = sim.image();
    drop(store);
    let mut damaged = 0;
    for block in 0..image.size(half.lone).expect("it is there") / 512 {
        let mut bytes = vec![0; 512];
        image.read(half.lone, block * 512, &mut bytes);
        if bytes.iter().any(|byte| *byte > 0) {
            damaged += 1;
            bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
            let mut edited = image.clone();
            edited.edit(half.lone, block * 512, &bytes);
            assert!(is(&opened_on(&boot(&edited)), 0, 1), "block {block}");
        }
    }
    assert!(damaged > 30, "{damaged}");
}

/// After a loss was accepted all that a sector brings holds, however often the store was opened without it.
#[test]
fn what_is_away_while_a_loss_is_accepted_holds() {
    let (sim, store) = filled(30);
    let lone = not_in_the_first(&store);
    drop(store);
    without(&sim, &[1, 2]);
    let accepting = OpenOptions {
        accept_loss_of: vec![1, 2],
        ..Plan::REPLICAS.open_options()
    };
    let store = Store::open_on(sim.backend(), PATH, accepting).expect("it opens");
    assert!(lone.iter().all(|&number| !is(&store, number, 1)));
    drop(store);
    // Nobody has to accept it again, and nothing is forgotten by that.
    drop(opened_on(&sim));
    without(&sim, &[2]);
    let store = opened_on(&sim);
    assert!(!lone.is_empty() && lone.iter().all(|&number| is(&store, number, 1)));
}

/// The same, of what is lost with a sector that is taken away.
#[test]
fn what_is_away_while_another_is_taken_away_with_a_loss_holds() {
    let (sim, store) = filled(30);
    let lone = not_in_the_first(&store);
    // Two are to be left that take replicas.
    let new = NewSector {
        size: 4 * MIB,
        ..NewSector::default()
    };
    store.add_sector(&new).expect("it is added");
    drop(store);
    without(&sim, &[2]);
    let store = opened_on(&sim);
    let accepting = RemoveOptions { accept_loss: true };
    store.remove_sector(1, accepting).expect("it is taken away");
    assert!(lone.iter().all(|&number| !is(&store, number, 1)));
    drop(store);
    sim.set_condition(2, DiskCondition::Well);
    let store = opened_on(&sim);
    assert!(!lone.is_empty() && lone.iter().all(|&number| is(&store, number, 1)));
}

/// The power fails now, and takes with it what no sync has covered.
fn without_power(sim: &Sim) -> Image {
    let mut crasher = sim.crasher();
    crasher.advance(sim.position());
    crasher.image(Loss::All)
}

/// A sync fails in one of two sectors, and what was written to both is acknowledged as durable: the other may not be
/// missing then.
#[test]
fn what_is_flushed_while_a_sector_fails_does_not_rest_on_one_that_may_be_missing() {
    let flushed: fn(&Store) = |store| {
        put(store, 0, 2, Durability::Written);
    };
    let deleted: fn(&Store) = |store| {
        let options = DeleteOptions {
            durability: Durability::Written,
            ..DeleteOptions::default()
        };
        let delete = store.delete(&key(0), options);
        assert!(delete.wait().expect("it is deleted").existed);
    };
    for (act, is_flush) in [(flushed, true), (deleted, true), (deleted, false)] {
        let (sim, store) = filled(1);
        let holders = holders(&store, 0);
        act(&store);
        fail_next(&sim, holders[1], FaultKind::Sync);
        match is_flush {
            true => store.flush().wait().expect("it is durable in one"),
            // It makes no record, for what is not there.
            false => drop(
                store
                    .delete(&key(0), DeleteOptions::default())
                    .wait()
                    .expect("it is not there"),
            ),
        }
        let sim = boot(&without_power(&sim));
        sim.set_condition(holders[0], DiskCondition::Absent);
        let error = open_on(&sim).expect_err("what was acknowledged may be missing");
        assert!(
            matches!(error, StorageError::TooFewSectors { .. }),
            "{error}"
        );
        sim.set_condition(holders[0], DiskCondition::Well);
        assert!(!is(&opened_on(&sim), 0, 1));
    }
}

/// A delete that was written is in one sector, which fails later; the power fails, it is missing, and it is seen that
/// nothing was deleted: so it stays.
#[test]
fn what_a_sector_has_that_failed_before_it_was_missing_does_not_hold() {
    let (sim, store) = filled(20);
    let (first, failing) = (holders(&store, 0)[0], holders(&store, 0)[1]);
    let options = DeleteOptions {
        durability: Durability::Written,
        ..DeleteOptions::default()
    };
    store
        .delete(&key(0), options)
        .wait()
        .expect("it is deleted");
    let other = (1..20).find(|&number| {
        let holders = holders(&store, number);
        holders.contains(&failing) && !holders.contains(&first)
    });
    fail_next(&sim, failing, FaultKind::Write);
    let range = Span::new(0, 10).expect("a span");
    let other = key(other.expect("there is one"));
    let changed = store.put_range(&other, range, payload(9, 10), PutRangeOptions::default());
    changed.wait().expect("it is changed in the other");
    let image = with_disk_of(&without_power(&sim), failing, &sim.image());
    drop(store);
    let sim = boot(&image);
    without(&sim, &[failing]);
    let store = opened_on(&sim);
    assert!(is(&store, 0, 1));
    settle(&store).expect("it is mended");
    drop(store);
    without(&sim, &[]);
    assert!(is(&opened_on(&sim), 0, 1));
}

/// A sector fails, and repair copies a batch from another that has it not yet durable.
#[test]
fn a_batch_is_copied_whole_though_a_sector_fails() {
    let (sim, store) = filled(0);
    let mut batch = Batch::new();
    for number in 0..3 {
        batch.put(key(number), payload(1, 1000 + 3000 * number));
    }
    batch.durability = Durability::Written;
    store.batch(batch).wait().expect("it is put");
    let holders = holders(&store, 0);
    fail_next(&sim, holders[1], FaultKind::Write);
    let begun = sim.position();
    store.checkpoint().expect_err("a sector fails");
    sim.set_faults(&[]);
    for _ in 0..50 {
        let _ = store.step();
    }
    let mut crasher = sim.crasher();
    let mut opened = 0;
    for position in begun..=crasher.events() {
        crasher.advance(position);
        for loss in crasher.losses().collect::<Vec<_>>() {
            let sim = boot(&crasher.image(loss));
            sim.set_condition(holders[0], DiskCondition::Absent);
            match open_on(&sim) {
                Err(StorageError::TooFewSectors { .. }) => {}
                Err(error) => panic!("{error}"),
                Ok(store) => {
                    opened += 1;
                    let there = (0..3).filter(|&number| {
                        let found = store.get(&key(number), GetOptions::default());
                        found.wait().is_ok()
                    });
                    let there = there.count();
                    assert!(there % 3 == 0, "{position}, {loss:?}: {there} of three");
                }
            }
        }
    }
    assert!(opened > 10, "{opened}");
}

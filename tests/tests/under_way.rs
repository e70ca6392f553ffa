//! Frames of one sector that are under way at once: whatever a power failure takes of them, what is left is how the
//! store was after some of the puts, in their order, and after all that were acknowledged as durable.

use bytes::Bytes;
use graviton_engine::io::sim::{Fault, FaultKind, Random, Sim};
use graviton_engine::port::{
    BinaryKey, BlobStore, Durability, GetOptions, Precondition, PutOptions, StorageError,
};
use graviton_engine::store::{CreateOptions, Store};
use graviton_tests::begin;
use graviton_tests::history::{PATH, Plan, check_store, seeds};
use graviton_tests::random::payload;

const KEYS: usize = 6;

/// What the blobs of a store are; none: it has no such blob.
type Blobs = [Option<Bytes>; KEYS];

fn key(number: usize) -> BinaryKey {
    BinaryKey::new(format!("key/{number}")).expect("a short key")
}

fn created(seed: u64) -> (Sim, Store) {
    let sim = Sim::new(512, seed);
    let store = Store::create_on(sim.backend(), PATH, Plan::SMALL.create_options());
    let store = store.expect("it is made");
    // Nothing goes behind a frame that begins a segment.
    let put = store.put(&key(KEYS), payload(1, 10), PutOptions::default());
    put.wait().expect("it is put");
    sim.leave_in_flight(true);
    (sim, store)
}

fn blobs_of(store: &Store) -> Blobs {
    std::array::from_fn(
        |number| match store.get(&key(number), GetOptions::default()).wait() {
            Ok(blob) => Some(blob.bytes),
            Err(StorageError::NotFound { .. }) => None,
            Err(error) => panic!("{number}: {error}"),
        },
    )
}

/// Puts that were begun one behind the other, and only then waited for; of several pieces none.
struct Puts {
    /// What the store holds after so many of them.
    states: Vec<Blobs>,
    /// How many events there were when each was acknowledged as durable, if it was.
    acknowledged: Vec<Option<usize>>,
}

impl Puts {
    /// Some of them are refused, if those before them are heeded.
    fn some(sim: &Sim, store: &Store, random: &mut Random) -> Self {
        let mut states = vec![Blobs::default()];
        let mut begun = Vec::new();
        for number in 1..4 + random.below(10) {
            let blob = payload(number as u64, *random.pick(&[1, 10, 700, 3000]));
            let (place, mut state) = (random.below(KEYS), states[number - 1].clone());
            let options = PutOptions {
                durability: *random.pick(&[Durability::Durable, Durability::Written]),
                precondition: match random.one_in(4) {
                    true => Precondition::IfAbsent,
                    false => Precondition::None,
                },
                ..PutOptions::default()
            };
            let durability = options.durability;
            let goes = options.precondition == Precondition::None || state[place].is_none();
            if goes {
                state[place] = Some(blob.clone());
            }
            states.push(state);
            let mut put = store.put(&key(place), blob, options);
            // Those that are begun together share a frame.
            if random.one_in(2) {
                put = begin(put);
            }
            begun.push((put, goes, durability));
        }
        let ended = begun.into_iter().map(|(put, goes, durability)| {
            match (put.wait(), goes) {
                (Ok(_), true) | (Err(StorageError::PreconditionFailed { .. }), false) => {}
                (outcome, _) => panic!("{outcome:?}"),
            }
            (goes && durability == Durability::Durable).then(|| sim.position())
        });
        let acknowledged = ended.collect();
        Self {
            states,
            acknowledged,
        }
    }

    /// What the store may hold once the power has failed at an event.
    fn may_be_left(&self, position: usize) -> &[Blobs] {
        let is_kept = |event: &Option<usize>| event.is_some_and(|event| event <= position);
        let last = self.acknowledged.iter().rposition(is_kept);
        &self.states[last.map_or(0, |last| last + 1)..]
    }
}

#[test]
fn a_power_failure_leaves_some_of_the_puts_in_their_order() {
    let (mut images, mut together) = (0, 0);
    for seed in seeds(40) {
        let (sim, store) = created(seed);
        let begun = sim.position();
        let puts = Puts::some(&sim, &store, &mut Random::new(seed));
        let mut crasher = sim.crasher();
        for position in begun..=crasher.events() {
            crasher.advance(position);
            together = together.max(crasher.doubts());
            for loss in crasher.losses().collect::<Vec<_>>() {
                images += 1;
                let sim = Sim::boot(&crasher.image(loss), 512, 1);
                let store = Store::open_on(sim.backend(), PATH, Plan::SMALL.open_options());
                let store = store.expect("it opens");
                let found = blobs_of(&store);
                assert!(
                    puts.may_be_left(position).contains(&found),
                    "seed {seed}, power loss at event {position}, {loss:?}"
                );
                check_store(&store).expect("nothing is wrong with it");
            }
        }
    }
    println!("{images} images, {together} writes in doubt at once");
}

/// Frames that were under way behind one that fails fail as well.
#[test]
fn what_is_under_way_behind_a_frame_that_fails_fails() {
    for seed in seeds(40) {
        let (sim, store) = created(seed);
        let put = |number| begin(store.put(&key(number), payload(1, 100), PutOptions::default()));
        put(0).wait().expect("it is put");
        sim.set_faults(&[Fault {
            kind: FaultKind::Write,
            after: 0,
            times: 1,
            disk: Some(0),
        }]);
        let begun: Vec<_> = (1..KEYS).map(put).collect();
        let outcomes: Vec<bool> = begun.into_iter().map(|put| put.wait().is_ok()).collect();
        let failed = outcomes.iter().position(|is_ok| !is_ok).expect("one fails");
        assert!(
            outcomes[failed..].iter().all(|is_ok| !is_ok),
            "{outcomes:?}"
        );
        let is_there = blobs_of(&store).map(|blob| blob.is_some());
        assert!(is_there[..=failed].iter().all(|is_there| *is_there));
        assert!(!is_there[failed + 1..].iter().any(|is_there| *is_there));
    }
}

/// A version that replaces one of another sector is durable though nobody asks for it, since that sector forgets the
/// one before; so it does not go behind a frame that may be lost.
#[test]
fn what_replaces_a_version_of_another_sector_goes_behind_nothing_that_may_be_lost() {
    let written = PutOptions {
        durability: Durability::Written,
        ..PutOptions::default()
    };
    for seed in seeds(10) {
        let sim = Sim::new(512, seed);
        let options = CreateOptions {
            sectors: 2,
            ..Plan::SMALL.create_options()
        };
        let store = Store::create_on(sim.backend(), PATH, options).expect("it is made");
        let put = |number, of, options: &PutOptions| {
            store.put(&key(number), payload(of, 100), options.clone())
        };
        let lies_in = || store.stat(&key(0)).wait().expect("it is there").sectors;
        let moves_to = |to: u16| {
            store.undrain_sector(to).expect("it takes puts again");
            store.drain_sector(1 - to).expect("it is drained");
        };
        store.drain_sector(1).expect("it is drained");
        put(0, 1, &PutOptions::default()).wait().expect("it is put");
        assert_eq!(lies_in(), [0]);
        moves_to(1);
        put(1, 1, &PutOptions::default()).wait().expect("it is put");
        sim.leave_in_flight(true);
        let begun = sim.position();
        let puts = [(2, 1), (0, 2)].map(|(number, of)| begin(put(number, of, &written)));
        for put in puts {
            put.wait().expect("it is put");
        }
        assert_eq!(lies_in(), [1]);
        store.checkpoint().expect("it is made");
        let mut crasher = sim.crasher();
        for position in begun..=crasher.events() {
            crasher.advance(position);
            for loss in crasher.losses().collect::<Vec<_>>() {
                let sim = Sim::boot(&crasher.image(loss), 512, 1);
                let store = Store::open_on(sim.backend(), PATH, Plan::SMALL.open_options());
                let store = store.expect("it opens");
                let [blob, ..] = blobs_of(&store);
                let blob =
                    blob.unwrap_or_else(|| panic!("lost: seed {seed}, {position}, {loss:?}"));
                assert!([1, 2].map(|of| payload(of, 100)).contains(&blob));
            }
        }
    }
}

//! The power fails, and the disk fails or lies while the store is opened again: once, at any of the
//! calls that recovery makes.
//!
//! Either the store opens and holds what it may hold, or opening it fails with an error of its kind,
//! and the next attempt finds a store that nothing happened to. What was seen once stays, and what is
//! acknowledged afterwards too, whatever recovery was told.
//!
//! How to run more of it, or one of it again: `graviton_tests::history` and `tests/README.md`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use graviton_engine::io::sim::{Fault, FaultError, FaultKind, Image, Loss, Random};
use graviton_engine::port::{BinaryKey, BlobStore, Durability, ErrorKind, StorageError};
use graviton_engine::store::Store;
use graviton_engine::testing::{Contents, Difference, Held, contents_of};
use graviton_tests::history::{
    Action, Ground, Machine, Plan, Played, Tally, Trials, check_contents, check_store, open,
};
use graviton_tests::put_options;

/// Moments of a history at which the power fails.
const MOMENTS: usize = 3;
/// Of the many reads of a recovery, one of about so many is hit.
const STRIDE: usize = 12;

/// What is put into a store that recovered.
const LATER: &str = "later";

/// A power loss, and a recovery from it that does not go well.
struct Trial<'a> {
    plan: &'a Plan,
    played: &'a Played,
    /// When the power failed, and what that left.
    moment: usize,
    image: &'a Image,
}

impl Trial<'_> {
    /// Hits every call of a kind on a disk, or some of very many. Returns how many there were.
    fn hit_each(
        &self,
        kind: FaultKind,
        disk: usize,
        random: &mut Random,
    ) -> Result<usize, Difference> {
        let stride = if KINDS_OF_READS.contains(&kind) {
            STRIDE
        } else {
            1
        };
        let mut tried = 0;
        let mut after = random.below(stride);
        loop {
            let fault = Fault {
                kind,
                after,
                times: 1,
                disk: Some(disk),
            };
            let seed = random.number();
            match self.hit(fault, seed) {
                Ok(true) => tried += 1,
                Ok(false) => return Ok(tried),
                Err(what) => return Err(format!("{fault:?}, seed {seed:x}: {what}")),
            }
            after += 1 + random.below(2 * stride - 1);
        }
    }

    /// Opens the store while one call is hit. Returns whether there was such a call.
    fn hit(&self, fault: Fault, seed: u64) -> Result<bool, Difference> {
        let mut machine = Machine::boot(self.plan.clone(), self.image, seed);
        let sim = machine.sim().clone();
        sim.add_faults(&[fault], FaultError::Io);
        let opened = machine.open();
        if sim.failures() == 0 {
            return Ok(false);
        }
        sim.set_faults(&[]);
        let found = match opened {
            Ok(store) => self
                .use_it(&store, fault.kind)
                .map_err(|what| format!("opened: {what}"))?,
            Err(error) if is_failure(fault.kind) && is_of_disks(&error) => None,
            Err(error) => return Err(format!("does not open: {error}")),
        };
        let mut crasher = sim.crasher();
        crasher.advance(crasher.events());
        for (what, image) in [
            ("the disk healed", sim.image()),
            ("all in doubt was lost", crasher.image(Loss::All)),
            ("the power failed", crasher.image(Loss::Random(seed))),
        ] {
            self.check(&image, found.as_ref())
                .map_err(|wrong| format!("{what}: {wrong}"))?;
        }
        Ok(true)
    }

    /// What a store that opened holds, and what it must hold in the end: if its disk lets it be read
    /// and written.
    fn use_it(&self, store: &Arc<Store>, kind: FaultKind) -> Result<Option<Found>, Difference> {
        let before = match contents_of(&**store) {
            Err(error) if is_failure(kind) && is_of_disks(&error) => return Ok(None),
            Err(error) => return Err(format!("can't be read: {error}")),
            Ok(found) => found,
        };
        let Played { record, given, .. } = self.played;
        check_contents(store, record, given, self.moment)?;
        let (key, bytes) = (later(), LATER.as_bytes());
        let put = store.put(&key, bytes.into(), put_options(Durability::Durable));
        let acknowledged = match put.wait() {
            Ok(_) => true,
            Err(error) if is_failure(kind) && is_of_disks(&error) => false,
            Err(error) => return Err(format!("can't be written: {error}")),
        };
        // It takes segments that recovery holds to be free.
        match store.checkpoint() {
            Err(error) if !(is_failure(kind) && is_of_disks(&error)) => {
                return Err(format!("no checkpoint: {error}"));
            }
            _ => {}
        }
        Ok(Some(Found {
            before,
            acknowledged,
        }))
    }

    /// Opens what is left, which is in order.
    fn check(&self, image: &Image, found: Option<&Found>) -> Result<(), Difference> {
        let mut machine = Machine::boot(self.plan.clone(), image, self.moment as u64);
        let store = open(&mut machine)?;
        check_store(&store)?;
        let Some(found) = found else {
            let Played { record, given, .. } = self.played;
            return check_contents(&store, record, given, self.moment).map(drop);
        };
        let mut after = contents_of(&*store).map_err(|error| error.to_string())?;
        match after.remove(&later()) {
            Some(held) if held == Held::from(bytes::Bytes::from(LATER)) => {}
            None if !found.acknowledged => {}
            other => return Err(format!("what was put later is {other:?}")),
        }
        match after == found.before {
            true => Ok(()),
            false => Err(graviton_tests::history::difference(&found.before, &after)),
        }
    }
}

/// What a store held when it had recovered.
struct Found {
    before: Contents,
    /// It took something more.
    acknowledged: bool,
}

fn later() -> BinaryKey {
    BinaryKey::new(LATER).expect("a short key")
}

const KINDS_OF_READS: [FaultKind; 4] = [
    FaultKind::Read,
    FaultKind::ShortRead,
    FaultKind::FlippedRead,
    FaultKind::MisdirectedRead,
];

/// Whether calls fail by it; else it is silent.
fn is_failure(kind: FaultKind) -> bool {
    use FaultKind::{Death, Read, Sync, Write};
    matches!(kind, Read | Write | Sync | Death)
}

fn is_of_disks(error: &StorageError) -> bool {
    matches!(error.kind(), ErrorKind::Io | ErrorKind::Unavailable)
}

/// Over each kind of store, `factor` times as many histories as it has.
fn recover_each(factor: u64, kinds: &[FaultKind]) {
    let hits: Vec<AtomicUsize> = kinds.iter().map(|_| AtomicUsize::new(0)).collect();
    for (plan, seeds) in STORES {
        recover(plan, 12, factor * seeds, kinds, &hits);
    }
    for (kind, hits) in kinds.iter().zip(&hits) {
        assert!(hits.load(Ordering::Relaxed) > 0, "no {kind:?} was hit");
    }
}

fn recover(plan: Plan, length: usize, seeds: u64, kinds: &[FaultKind], hits: &[AtomicUsize]) {
    let trials = Trials::undisturbed(plan, length, seeds);
    let attempt = |ground: &Ground, seed: u64, actions: &[Action]| {
        let played = Played::from(ground, seed, actions)?;
        let mut random = Random::new(seed);
        let mut images = 0;
        for _ in 0..MOMENTS {
            let moment = random.below(played.crasher.events() + 1);
            let mut crasher = played.crasher.clone();
            crasher.advance(moment);
            let loss = Loss::Random(random.number());
            let trial = Trial {
                plan: &ground.plan,
                played: &played,
                moment,
                image: &crasher.image(loss),
            };
            let disks = 0..usize::from(ground.plan.sectors);
            for (disk, (&kind, hits)) in
                disks.flat_map(|disk| kinds.iter().zip(hits).map(move |kind| (disk, kind)))
            {
                let tried = trial
                    .hit_each(kind, disk, &mut random)
                    .map_err(|what| format!("power loss at event {moment}, {loss:?}: {what}"))?;
                hits.fetch_add(tried, Ordering::Relaxed);
                images += tried;
            }
        }
        Ok(Tally {
            histories: 1,
            actions: actions.len(),
            images,
        })
    };
    trials.run(&attempt);
}

const FAILURES: [FaultKind; 6] = [
    FaultKind::Read,
    FaultKind::Write,
    FaultKind::Sync,
    FaultKind::Death,
    FaultKind::ShortRead,
    FaultKind::ShortWrite,
];
const LIES: [FaultKind; 2] = [FaultKind::FlippedRead, FaultKind::MisdirectedRead];

/// Kinds of stores, and how many histories of each are tried.
const STORES: [(Plan, u64); 4] = [
    (Plan::SMALL, 2),
    (Plan::LARGE_BLOCKS, 1),
    (Plan::FULL, 1),
    (Plan::THREE_SECTORS, 2),
];

#[test]
fn a_call_fails_in_the_recovery_from_a_crash() {
    recover_each(1, &FAILURES);
}

#[test]
fn a_read_lies_in_the_recovery_from_a_crash() {
    recover_each(1, &LIES);
}

//! Doing the actions of a history, and looking at what comes of them.

use std::ops::AddAssign;
use std::sync::Arc;

use graviton_engine::io::sim::{Loss, Random};
use graviton_engine::port::{BlobStore, StorageError};
use graviton_engine::store::{SegmentState, Store};
use graviton_engine::testing::{
    Contents, Difference, Effect, Pair, Step, Subject, Tolerance, Versions, contents_of,
};

use super::action::{Action, Maintenance};
use super::ground::{Ground, Plan};
use super::machine::{Host, Machine};
use super::record::{Done, Record};
use crate::{rebalance, settle};

/// What was done in all.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Histories.
    pub histories: usize,
    /// Their actions.
    pub actions: usize,
    /// Images that a power loss left, opened and compared.
    pub images: usize,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.histories += other.histories;
        self.actions += other.actions;
        self.images += other.images;
    }
}

/// Does an action that leaves the host up.
pub fn perform<H: Host>(pair: &mut Pair<'_, H>, action: &Action) -> Result<Effect, Difference> {
    let store = pair.subject().store();
    let (effect, done) = match action {
        Action::Step(step) => {
            drop(store);
            return pair.run(step);
        }
        Action::Beside(step, what) => {
            let mut done = Ok(());
            let effect = perform_beside(pair, step, |look| done = maintain(&store, *what, look))?;
            (effect, done)
        }
        Action::Maintain(what) => (Effect::default(), maintain(&store, *what, &mut || {})),
        Action::Rebalance => (Effect::default(), rebalance(&store).map(drop)),
        Action::Clock(seconds) => {
            pair.subject().set_clock(*seconds);
            (Effect::default(), Ok(()))
        }
        Action::Kill | Action::Crash(_) => unreachable!("the machine stays up"),
    };
    match done {
        Ok(()) => Ok(effect),
        // Maintenance finds no room in a store that is full; nothing is the worse for it.
        Err(error) if pair.subject().tolerates(&error) != Tolerance::Wrong => Ok(effect),
        Err(error) => Err(error.to_string()),
    }
}

/// Does a step, and something else while that is under way.
fn perform_beside<H: Host>(
    pair: &mut Pair<'_, H>,
    step: &Step,
    meanwhile: impl FnOnce(&mut dyn FnMut()),
) -> Result<Effect, Difference> {
    let store = pair.subject().store();
    pair.subject().leave_in_flight(true);
    let effect = pair.run_beside(step, |look| {
        // What is queued begins when something is given up, here a sync.
        drop(store.flush());
        meanwhile(look);
    });
    pair.subject().leave_in_flight(false);
    effect
}

/// Does maintenance, and looks at what is under way after each of its steps.
fn maintain(store: &Store, what: Maintenance, look: &mut dyn FnMut()) -> Result<(), StorageError> {
    match what {
        Maintenance::Checkpoint => store.checkpoint().map(drop),
        Maintenance::Compact => store.compact().map(drop),
        Maintenance::Steps(steps) => {
            for _ in 0..steps {
                if !store.step()? {
                    break;
                }
                look();
            }
            Ok(())
        }
    }
}

/// Runs a history from its ground to its end.
///
/// # Errors
/// What is wrong, in words.
pub fn run(ground: &Ground, seed: u64, actions: &[Action]) -> Result<Tally, Difference> {
    let mut machine = Machine::boot(ground.plan.clone(), &ground.image, seed);
    let store = open(&mut machine)?;
    let mut pair = Pair::over(&mut machine, Arc::<Store>::clone(&store));
    pair.adopt(store)?;
    let mut record = Record::new(pair.contents());
    let mut tally = Tally {
        histories: 1,
        actions: actions.len(),
        images: 0,
    };
    for action in actions {
        let at = |what| format!("{action:?}: {what}");
        match action {
            Action::Kill => {
                kill(&mut pair).map_err(at)?;
                record = Record::new(pair.contents());
            }
            Action::Crash(seed) => {
                crash(&mut pair, &mut record, *seed).map_err(at)?;
                tally.images += 1;
            }
            _ => {
                let done = do_and_note(&mut pair, action).map_err(at)?;
                record.done.push(done);
            }
        }
    }
    for last in Step::last() {
        let at = |what| format!("at the end, {last:?}: {what}");
        pair.run(&last).map_err(at)?;
    }
    check_store(&pair.subject().store())?;
    Ok(tally)
}

/// What changes with every frame and every checkpoint, for each sector.
fn logs(store: &Store) -> Vec<(Option<u64>, u64)> {
    let sectors = store.info().sectors.into_iter();
    let log = sectors.map(|sector| {
        let checkpoint = sector.checkpoint.map(|checkpoint| checkpoint.lsn);
        (checkpoint, sector.replay_bytes)
    });
    log.collect()
}

/// Does an action and notes when, by the events of the disks.
pub fn do_and_note<H: Host>(pair: &mut Pair<'_, H>, action: &Action) -> Result<Done, Difference> {
    let started = pair.subject().position();
    let before = logs(&pair.subject().store());
    let effect = perform(pair, action)?;
    let after = logs(&pair.subject().store());
    let numbered = (0..).zip(before.iter().zip(&after));
    let changed = numbered.filter(|(_, (before, after))| before != after);
    Ok(Done {
        what: format!("{action:?}"),
        effect,
        sectors: changed.map(|(number, _)| number).collect(),
        started,
    })
}

/// Does actions that leave the host up, one after the other, and takes them down.
pub fn do_all<H: Host>(
    pair: &mut Pair<'_, H>,
    actions: &[Action],
    record: &mut Record,
) -> Result<(), Difference> {
    for action in actions {
        let done = do_and_note(pair, action).map_err(|what| format!("{action:?}: {what}"))?;
        record.done.push(done);
    }
    Ok(())
}

/// Runs a history in the course of which something else happens to the store, as `change` wants after each action, or
/// while what it does is under way, where maintenance would be done meanwhile; it is closed and opened again after one in so many. When all is done and tidied up, `end` looks at it.
///
/// # Errors
/// What is wrong, in words.
pub fn run_beside(
    ground: &Ground,
    seed: u64,
    actions: &[Action],
    one_in: usize,
    mut change: impl FnMut(&Store, &mut Random) -> Result<(), Difference>,
    end: impl FnOnce(&mut Pair<'_, Machine>) -> Result<(), Difference>,
) -> Result<Tally, Difference> {
    let mut machine = Machine::boot(ground.plan.clone(), &ground.image, seed);
    let store = open(&mut machine)?;
    let mut pair = Pair::over(&mut machine, Arc::<Store>::clone(&store));
    pair.adopt(store)?;
    let mut random = Random::new(seed);
    for action in actions {
        let store = pair.subject().store();
        let mut changed = Ok(());
        let mut change = || changed = change(&store, &mut random);
        let done = match action {
            Action::Beside(step, _) => perform_beside(&mut pair, step, |_| change()),
            _ => perform(&mut pair, action).inspect(|_| change()),
        };
        done.map_err(|what| format!("{action:?}: {what}"))?;
        changed?;
        drop(store);
        if random.one_in(one_in) {
            reopen(&mut pair)?;
        }
    }
    for last in Step::last() {
        pair.run(&last)
            .map_err(|what| format!("at the end, {last:?}: {what}"))?;
    }
    settle(&pair.subject().store())?;
    end(&mut pair)?;
    check_store(&pair.subject().store())?;
    Ok(Tally {
        histories: 1,
        actions: actions.len(),
        images: 0,
    })
}

/// Closes a store, opens it again, and compares all of it.
pub fn reopen(pair: &mut Pair<'_, Machine>) -> Result<(), Difference> {
    let before = pair.release();
    let store = pair.subject().reopen(before);
    pair.resume(store);
    pair.run(&Step::compare_all())?;
    Ok(())
}

/// A machine with a store that was used for a while, and what is in it.
///
/// # Panics
/// If it does not open.
#[must_use]
pub fn used(plan: &Plan) -> (Machine, Arc<Store>, Contents) {
    let ground = Ground::new(plan, 3, 60);
    let mut machine = Machine::boot(plan.clone(), &ground.image, 3);
    let store = machine.open().expect("it opens");
    let contents = contents_of(&*store).expect("it is read");
    (machine, store, contents)
}

/// Opens the store of a machine.
pub fn open(machine: &mut Machine) -> Result<Arc<Store>, Difference> {
    let opened = machine.open();
    opened.map_err(|error| format!("does not open: {error}"))
}

/// The process ends without a word; what it handed to the system is there.
fn kill(pair: &mut Pair<'_, Machine>) -> Result<(), Difference> {
    let killed = pair.release();
    let machine = pair.subject();
    let image = machine.sim().image();
    machine.come_up(&image);
    let store = open(machine)?;
    check_store(&store)?;
    pair.resume(store);
    drop(killed);
    pair.run(&Step::compare_all())?;
    Ok(())
}

/// The power failed while the last thing was done.
fn crash(pair: &mut Pair<'_, Machine>, record: &mut Record, seed: u64) -> Result<(), Difference> {
    let mut random = Random::new(seed);
    let dead = pair.release();
    let machine = pair.subject();
    let now = machine.position();
    // Nothing was done yet: it failed while the store was opened.
    let before = record.done.last().map_or(0, |done| done.started);
    let position = before + random.below(now - before + 1);
    let mut crasher = machine.crasher();
    crasher.advance(position);
    machine.come_up(&crasher.image(Loss::Random(random.number())));
    drop(dead);
    let store = open(machine)?;
    let found = check_contents(&store, record, pair.given(), position)?;
    check_store(&store)?;
    pair.adopt(store)?;
    *record = Record::new(found);
    Ok(())
}

/// Reads everything and compares it with what may be there after a power loss at `position`.
pub fn check_contents(
    store: &Store,
    record: &Record,
    given: &Versions,
    position: usize,
) -> Result<Contents, Difference> {
    let found = contents_of(store).map_err(|error| format!("can't be read: {error}"))?;
    if store.info().sectors.len() == 1 {
        record.check_prefix(&found, position)?;
    } else {
        record.check_keys(&found, position)?;
    }
    given.check(store)?;
    Ok(found)
}

/// The store finds nothing wrong with itself, and its figures add up.
pub fn check_store(store: &Store) -> Result<(), Difference> {
    let report = store
        .verify(&mut |_| {})
        .map_err(|error| format!("verify: {error}"))?;
    if !report.findings.is_empty() {
        return Err(format!("verify: {:#?}", report.findings));
    }
    let info = store.info();
    if !info.health.is_empty() {
        return Err(format!("health: {:?}", info.health));
    }
    for sector in info.sectors {
        let space = sector.space;
        if space.metadata + space.live + space.garbage + space.free != space.total {
            return Err(format!("{space:?} does not add up"));
        }
        let segments = store.segments(sector.number);
        let open = segments
            .iter()
            .filter(|one| one.state == SegmentState::Open);
        // A log ends in one place.
        if open.count() > 1 {
            return Err(format!("sector {}: {segments:#?}", sector.number));
        }
    }
    Ok(())
}

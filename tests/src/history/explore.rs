//! Power loss at every moment of a history: the images it can leave are opened, compared, verified,
//! used, and crashed again, in the middle of their own recovery too.

use std::sync::Arc;

use graviton_engine::io::sim::{Crasher, Image, Loss, Random};
use graviton_engine::store::Store;
use graviton_engine::testing::{Contents, Difference, Pair, Step, Versions};

use super::action::{Action, Maintenance, actions};
use super::ground::{Ground, Plan};
use super::machine::Machine;
use super::record::Record;
use super::run::{check_contents, check_store, do_all, do_and_note, open};

/// How thoroughly the moments of a history are explored.
#[derive(Debug, Clone, Copy)]
pub struct Exploration {
    /// Every so many events the power fails; 1: before each event, and after the last.
    pub stride: usize,
    /// Every shape of loss is tried of the writes in doubt; else a few.
    pub every_loss: bool,
    /// How often the power fails, one time in the recovery from the other.
    pub depth: usize,
    /// One image of so many is used a little and crashed again; 0: none is.
    pub go_on: usize,
}

/// Runs the actions, which leave the machine up, and looks at what power losses leave of them.
/// Returns how many images there were.
///
/// # Errors
/// What is wrong, in words.
pub fn explore(
    ground: &Ground,
    seed: u64,
    actions: &[Action],
    exploration: Exploration,
) -> Result<usize, Difference> {
    let played = Played::from(ground, seed, actions)?;
    let mut explorer = Explorer {
        plan: &ground.plan,
        random: Random::new(seed ^ 0x00c0_ffee),
        images: 0,
    };
    explorer.crash_all(&played, played.crasher.clone(), None, exploration)?;
    Ok(explorer.images)
}

/// Actions that were done.
#[derive(Debug)]
pub struct Played {
    /// What they did.
    pub record: Record,
    /// The versions they made.
    pub given: Versions,
    /// What the disks saw of it.
    pub crasher: Crasher,
}

impl Played {
    /// Does actions, which leave the machine up, to a store as it is on its ground.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn from(ground: &Ground, seed: u64, actions: &[Action]) -> Result<Self, Difference> {
        let mut machine = Machine::boot(ground.plan.clone(), &ground.image, seed);
        let store = open(&mut machine)?;
        Self::on(&mut machine, store, actions)
    }

    /// Does actions to an open store.
    fn on(
        machine: &mut Machine,
        store: Arc<Store>,
        actions: &[Action],
    ) -> Result<Self, Difference> {
        let mut pair = Pair::over(machine, Arc::<Store>::clone(&store));
        pair.adopt(store)?;
        let mut record = Record::new(pair.contents());
        do_all(&mut pair, actions, &mut record)?;
        let given = pair.given().clone();
        let crasher = pair.subject().crasher();
        Ok(Self {
            record,
            given,
            crasher,
        })
    }
}

struct Explorer<'a> {
    plan: &'a Plan,
    random: Random,
    images: usize,
}

/// What a power loss left, opened.
struct Survivor {
    machine: Machine,
    store: Arc<Store>,
    found: Contents,
    /// Events its recovery took.
    recovered: usize,
}

impl Explorer<'_> {
    /// The power fails at every so many events of what was recorded. In a recovery, `fixed` is the
    /// moment of the record that it recovers from: nothing that was done is later than that.
    fn crash_all(
        &mut self,
        played: &Played,
        mut crasher: Crasher,
        fixed: Option<(usize, usize, &Contents)>,
        how: Exploration,
    ) -> Result<(), Difference> {
        let last = fixed.map_or(crasher.events(), |(_, recovered, _)| recovered);
        let mut position = self.random.below(how.stride);
        while position <= last {
            crasher.advance(position);
            for loss in self.losses(&crasher, how) {
                let image = crasher.image(loss);
                let at = |what| format!("power loss at event {position}, {loss:?}: {what}");
                let moment = fixed.map_or(position, |(moment, ..)| moment);
                let survivor = self.open(&image, played, moment).map_err(at)?;
                match fixed {
                    // Whoever opened the store has seen what it found.
                    Some((_, recovered, found))
                        if position == recovered && survivor.found != *found =>
                    {
                        return Err(at("the recovery before found something else".to_owned()));
                    }
                    _ => {}
                }
                self.crash_again(survivor, played, moment, how)
                    .map_err(at)?;
            }
            position += match how.stride {
                1 => 1,
                stride => 1 + self.random.below(2 * stride - 1),
            };
        }
        Ok(())
    }

    fn losses(&mut self, crasher: &Crasher, how: Exploration) -> Vec<Loss> {
        if how.every_loss {
            return crasher.losses().collect();
        }
        let doubts = crasher.doubts();
        if doubts == 0 {
            return vec![Loss::All];
        }
        let mut losses = vec![Loss::All, Loss::Nothing, Loss::Random(self.random.number())];
        if doubts > 1 {
            losses.push(Loss::KeepFirst(1 + self.random.below(doubts - 1)));
            losses.push(Loss::LoseFirst(1 + self.random.below(doubts - 1)));
        }
        losses
    }

    /// Opens what a power loss at `moment` has left, and compares it with what may be there.
    fn open(
        &mut self,
        image: &Image,
        played: &Played,
        moment: usize,
    ) -> Result<Survivor, Difference> {
        self.images += 1;
        let mut machine = Machine::boot(self.plan.clone(), image, self.random.number());
        let store = open(&mut machine)?;
        let recovered = machine.position();
        let found = check_contents(&store, &played.record, &played.given, moment)?;
        check_store(&store)?;
        Ok(Survivor {
            machine,
            store,
            found,
            recovered,
        })
    }

    fn crash_again(
        &mut self,
        survivor: Survivor,
        played: &Played,
        moment: usize,
        how: Exploration,
    ) -> Result<(), Difference> {
        let Survivor {
            mut machine,
            store,
            found,
            recovered,
        } = survivor;
        let deeper = Exploration {
            depth: how.depth.saturating_sub(1),
            go_on: 0,
            ..how
        };
        if how.depth > 1 && recovered > 0 {
            let fixed = Some((moment, recovered, &found));
            let again = self.crash_all(played, machine.crasher(), fixed, deeper);
            again.map_err(|what| format!("in the recovery, {what}"))?;
        }
        if how.go_on == 0 || !self.random.one_in(how.go_on) {
            return Ok(());
        }
        let more = actions(self.random.number(), 4, self.plan, false);
        let at = |what| format!("going on with {more:?}: {what}");
        let played = Played::on(&mut machine, store, &more).map_err(at)?;
        if how.depth > 1 {
            let crasher = played.crasher.clone();
            let sparse = Exploration {
                stride: 1 + crasher.events() / 2,
                every_loss: false,
                ..deeper
            };
            self.crash_all(&played, crasher, None, sparse).map_err(at)
        } else {
            self.use_it(&mut machine).map_err(at)
        }
    }

    /// The store can be tidied up, closed and opened, and holds the same.
    fn use_it(&mut self, machine: &mut Machine) -> Result<(), Difference> {
        let store = machine.store();
        let mut pair = Pair::over(machine, Arc::<Store>::clone(&store));
        pair.adopt(store)?;
        for what in [Maintenance::Compact, Maintenance::Checkpoint] {
            do_and_note(&mut pair, &Action::Maintain(what))?;
        }
        for last in Step::last() {
            pair.run(&last)?;
        }
        check_store(&pair.subject().store())
    }
}

//! What can happen to a store and its machine.

use std::fmt;

use graviton_engine::io::sim::Random;
use graviton_engine::testing::{Step, Steps};

use super::ground::Plan;

/// One thing that happens.
#[derive(Clone)]
pub enum Action {
    /// A step of the contract kit's histories.
    Step(Step),
    /// Maintenance that is done by itself.
    Maintain(Maintenance),
    /// Maintenance while what the step does is under way.
    Beside(Step, Maintenance),
    /// Replicas are moved to better places.
    Rebalance,
    /// The clock is set by so many seconds, forwards or back.
    Clock(i64),
    /// The process is killed: the machine goes on.
    Kill,
    /// The power failed at some moment of the action before; what is lost, the seed decides.
    Crash(u64),
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step(step) => step.fmt(f),
            Self::Maintain(what) => what.fmt(f),
            Self::Beside(step, what) => write!(f, "Beside({what:?}, {step:?})"),
            Self::Rebalance => write!(f, "Rebalance"),
            Self::Clock(seconds) => write!(f, "Clock({seconds})"),
            Self::Kill => write!(f, "Kill"),
            Self::Crash(seed) => write!(f, "Crash({seed:x})"),
        }
    }
}

/// What changes no blob.
#[derive(Debug, Clone, Copy)]
pub enum Maintenance {
    /// A checkpoint is asked for.
    Checkpoint,
    /// A compaction is asked for.
    Compact,
    /// So many steps of what a background thread does, if there are as many to do.
    Steps(usize),
}

/// The first `count` actions of a seed. Without `disasters`, the machine stays up.
#[must_use]
pub fn actions(seed: u64, count: usize, plan: &Plan, disasters: bool) -> Vec<Action> {
    let mut steps = Steps::new(seed, plan.mix.clone());
    let mut next = || action(&mut steps, plan, disasters);
    (0..count).map(|_| next()).collect()
}

/// The actions that some bytes choose, for a fuzzer: at most `count`.
#[must_use]
pub fn actions_given(bytes: &[u8], count: usize, plan: &Plan) -> Vec<Action> {
    let mut steps = Steps::chosen_by(Random::given(bytes), 0, plan.mix.clone());
    let mut actions = Vec::new();
    while actions.len() < count && !steps.random().is_exhausted() {
        actions.push(action(&mut steps, plan, true));
    }
    actions
}

fn action(steps: &mut Steps, plan: &Plan, disasters: bool) -> Action {
    let random = steps.random();
    match random.below(100) {
        0..4 => Action::Maintain(Maintenance::Checkpoint),
        4..6 => Action::Maintain(Maintenance::Compact),
        6..12 => Action::Maintain(Maintenance::Steps(1 + random.below(8))),
        12 => {
            let days = [1, 400, 40_000][random.below(3)];
            let seconds = days * 86_400 + 1;
            Action::Clock(if random.one_in(2) { seconds } else { -seconds })
        }
        13..16 if disasters => Action::Crash(random.number()),
        16..18 if disasters => Action::Kill,
        18 if plan.sectors > 1 => Action::Rebalance,
        19..25 => {
            let what = match random.below(4) {
                0 => Maintenance::Compact,
                1 => Maintenance::Steps(1 + random.below(8)),
                _ => Maintenance::Checkpoint,
            };
            Action::Beside(steps.together(), what)
        }
        _ => Action::Step(steps.next().expect("there is no end of steps")),
    }
}

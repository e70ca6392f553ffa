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
    /// A checkpoint is asked for.
    Checkpoint,
    /// A compaction is asked for.
    Compact,
    /// Replicas are moved to better places.
    Rebalance,
    /// So many steps of maintenance, if there are as many to do.
    Maintain(usize),
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
            Self::Checkpoint => write!(f, "Checkpoint"),
            Self::Compact => write!(f, "Compact"),
            Self::Rebalance => write!(f, "Rebalance"),
            Self::Maintain(steps) => write!(f, "Maintain({steps})"),
            Self::Clock(seconds) => write!(f, "Clock({seconds})"),
            Self::Kill => write!(f, "Kill"),
            Self::Crash(seed) => write!(f, "Crash({seed:x})"),
        }
    }
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
        0..4 => Action::Checkpoint,
        4..6 => Action::Compact,
        6..12 => Action::Maintain(1 + random.below(8)),
        12 => {
            let days = [1, 400, 40_000][random.below(3)];
            let seconds = days * 86_400 + 1;
            Action::Clock(if random.one_in(2) { seconds } else { -seconds })
        }
        13..16 if disasters => Action::Crash(random.number()),
        16..18 if disasters => Action::Kill,
        18 if plan.sectors > 1 => Action::Rebalance,
        _ => Action::Step(steps.next().expect("there is no end of steps")),
    }
}

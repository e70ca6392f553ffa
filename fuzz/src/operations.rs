//! Histories of actions on the engine over a simulated machine, against the model.

use std::sync::LazyLock;

use graviton_tests::history::{Ground, Plan, actions_given, run};

/// Actions of one input at most.
const ACTIONS_MAX: usize = 64;

/// Where histories begin: new stores and used ones, of each kind.
static GROUNDS: LazyLock<Vec<Ground>> = LazyLock::new(|| {
    let ages = [0, 150];
    let plans = Plan::ALL.iter();
    plans
        .flat_map(|plan| ages.map(|age| Ground::new(plan, 0, age)))
        .collect()
});

/// The first byte chooses where the history begins, the others what happens.
pub fn operations(data: &[u8]) {
    let Some((&ground, choices)) = data.split_first() else {
        return;
    };
    let ground = &GROUNDS[usize::from(ground) % GROUNDS.len()];
    let actions = actions_given(choices, ACTIONS_MAX, &ground.plan);
    if let Err(what) = run(ground, 0, &actions) {
        panic!("{}: {actions:#?}\n=> {what}", ground.plan.name);
    }
}

/// Makes the stores.
pub fn prepare() {
    LazyLock::force(&GROUNDS);
}

//! Random histories on simulated machines, compared with the model at every step: reopenings,
//! kills, power losses, maintenance, full disks.
//!
//! How to run more of it, or one of it again: `graviton_tests::history` and `tests/README.md`.

use graviton_tests::history::{Plan, Trials, run};

fn histories(plan: Plan, seeds: u64) {
    let trials = Trials {
        plan,
        length: 40,
        disasters: true,
        seeds,
    };
    trials.run(&run);
}

#[test]
fn on_one_sector() {
    histories(Plan::SMALL, 2500);
}

#[test]
fn on_blocks_of_4096_bytes() {
    histories(Plan::LARGE_BLOCKS, 1200);
}

#[test]
fn on_three_sectors() {
    histories(Plan::THREE_SECTORS, 1000);
}

#[test]
fn on_two_replicas_over_three_sectors() {
    histories(Plan::REPLICAS, 700);
}

#[test]
fn replicas_of_which_a_write_waits_for_the_first() {
    histories(Plan::ASYNC, 300);
}

#[test]
fn replicas_of_which_a_write_waits_for_a_quorum() {
    histories(Plan::QUORUM, 200);
}

#[test]
fn on_a_sector_that_is_full_now_and_then() {
    histories(Plan::FULL, 700);
}

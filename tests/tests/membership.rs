//! Sectors come and go while the store is in use: nothing is lost, nobody notices, and what was begun goes on
//! after a restart.
//!
//! How to run more of it, or one of it again: `graviton_tests::history` and `tests/README.md`.

use std::sync::Arc;

use graviton_engine::io::sim::{Fault, FaultKind, Random, Sim};
use graviton_engine::port::{BlobStore, Labels, PutOptions, SectorState, StorageError};
use graviton_engine::store::{CreateOptions, MIB, NewSector, OpenOptions, RemoveOptions, Store};
use graviton_engine::testing::{Difference, Pair, Step, Subject};
use graviton_tests::history::{
    Action, Ground, Machine, Plan, Tally, Trials, check_store, open, perform,
};
use graviton_tests::settle;

const SIZE: u64 = 4 * MIB;

fn add(store: &Store) -> Result<u16, StorageError> {
    store.add_sector(&NewSector {
        size: SIZE,
        ..NewSector::default()
    })
}

fn numbers(store: &Store) -> Vec<u16> {
    let sectors = store.info().sectors.into_iter();
    sectors.map(|sector| sector.number).collect()
}

/// The sectors that take what comes.
fn active(store: &Store) -> Vec<u16> {
    let sectors = store.info().sectors.into_iter();
    let active = sectors.filter(|sector| sector.state == SectorState::Active);
    active.map(|sector| sector.number).collect()
}

/// Something is done about the sectors of a store: one is added, drained, or taken away.
fn change_sectors(store: &Store, random: &mut Random, replicas: usize) -> Result<(), Difference> {
    let wrong = |what: &str, error: StorageError| format!("{what}: {error}");
    let draining = |sector: &u16| !active(store).contains(sector);
    match random.below(4) {
        0 if numbers(store).len() < 5 => {
            match add(store) {
                Ok(_) => Ok(()),
                // All numbers have been in use.
                Err(StorageError::InvalidArgument { .. }) => Ok(()),
                Err(error) => Err(wrong("add", error)),
            }
        }
        1 if active(store).len() > replicas => {
            let sector = *random.pick(&active(store));
            store
                .drain_sector(sector)
                .map_err(|error| wrong("drain", error))
        }
        2 => match numbers(store).into_iter().find(draining) {
            Some(sector) if random.one_in(3) => store
                .undrain_sector(sector)
                .map_err(|error| wrong("undrain", error)),
            _ => Ok(()),
        },
        _ => match numbers(store).into_iter().find(draining) {
            Some(sector) => match store.remove_sector(sector, RemoveOptions::default()) {
                Ok(()) | Err(StorageError::StillNeeded { .. }) => Ok(()),
                Err(error) => Err(wrong("remove", error)),
            },
            None => Ok(()),
        },
    }
}

/// Histories in the course of which sectors come and go.
fn come_and_go(ground: &Ground, seed: u64, actions: &[Action]) -> Result<Tally, Difference> {
    let replicas = usize::from(ground.plan.replicas);
    let mut machine = Machine::boot(ground.plan.clone(), &ground.image, seed);
    let store = open(&mut machine)?;
    let mut pair = Pair::over(&mut machine, Arc::<Store>::clone(&store));
    pair.adopt(store)?;
    let mut random = Random::new(seed);
    for action in actions {
        perform(&mut pair, action).map_err(|what| format!("{action:?}: {what}"))?;
        if random.one_in(3) {
            change_sectors(&pair.subject().store(), &mut random, replicas)?;
        }
        if random.one_in(20) {
            let before = pair.release();
            let store = pair.subject().reopen(before);
            pair.resume(store);
            pair.run(&Step::compare_all())?;
        }
    }
    // A blob that is on its way in keeps its sector from being taken away.
    for last in Step::last() {
        pair.run(&last)
            .map_err(|what| format!("at the end, {last:?}: {what}"))?;
    }
    let store = pair.subject().store();
    settle(&store)?;
    for sector in numbers(&store) {
        if !active(&store).contains(&sector) {
            let removed = store.remove_sector(sector, RemoveOptions::default());
            removed.map_err(|error| format!("it is drained: {error}"))?;
        }
    }
    assert!(!store.info().replication.is_short);
    check_store(&store)?;
    drop(store);
    let before = pair.release();
    let store = pair.subject().reopen(before);
    pair.resume(store);
    pair.run(&Step::compare_all())?;
    check_store(&pair.subject().store())?;
    Ok(Tally {
        histories: 1,
        actions: actions.len(),
        images: 0,
    })
}

#[test]
fn sectors_with_replicas_come_and_go() {
    Trials::undisturbed(Plan::REPLICAS, 60, 150).run(&come_and_go);
}

#[test]
fn sectors_with_the_only_copies_come_and_go() {
    Trials::undisturbed(Plan::THREE_SECTORS, 60, 150).run(&come_and_go);
}

#[test]
fn a_store_of_one_sector_gets_others() {
    Trials::undisturbed(Plan::SMALL, 60, 150).run(&come_and_go);
}

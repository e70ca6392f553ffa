//! Upheavals: in the course of random histories on replicas, sectors are missing for a while, replicas move to where
//! policies want them that change their minds, processes are killed, and the power fails, and leaves a sector missing. After each of these the
//! store finds nothing wrong with itself, and it holds what it should; in the end it does without any one sector.
//!
//! How to run more of it, or one of it again: `graviton_tests::history` and `tests/README.md`.

use std::ops::ControlFlow;
use std::sync::Arc;

use graviton_engine::io::sim::{DiskCondition, Image, Loss, Random};
use graviton_engine::port::{
    BlobStore, Gain, Placement, RangeSet, Rebalance, ReplicationPolicy, StorageError,
};
use graviton_engine::store::{RebalanceOptions, Store, WriteMode};
use graviton_engine::testing::{Difference, Effect, Pair, Step};
use graviton_tests::history::{
    Action, Done, Ground, Machine, Plan, Record, Tally, Trials, check_contents, check_store,
    do_and_note, open,
};
use graviton_tests::policies::{Steered, free};
use graviton_tests::{all_keys, check_two_replicas, settle};

const SECTORS: usize = 3;

/// Wants a blob anywhere but in one sector, which a number and its key decide.
fn shuffled(number: u64) -> impl ReplicationPolicy {
    Steered(move |request: &Placement<'_>| {
        let mix = |mixed: u64, byte: &u8| (mixed ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        let mixed = request.key.as_bytes().iter().fold(number, mix);
        let remove = u16::try_from((mixed >> 20) % SECTORS as u64).expect("of three");
        let is_surplus = request.holders.len() > usize::from(request.copies);
        let add = match is_surplus {
            true => None,
            false => free(request).next(),
        };
        let goes = request.holders.contains(&remove) && (is_surplus || add.is_some());
        goes.then_some(Rebalance {
            add,
            remove,
            gain: Gain::Spread,
        })
    })
}

/// A history that is disturbed.
struct Upheaval<'a> {
    pair: Pair<'a, Machine>,
    record: Record,
    random: Random,
    /// The sector that is missing.
    away: Option<usize>,
}

impl Upheaval<'_> {
    fn store(&mut self) -> Arc<Store> {
        self.pair.subject().store()
    }

    /// Whether any one sector may be missing at the next opening.
    fn is_whole(&mut self) -> bool {
        let replication = self.store().info().replication;
        self.away.is_none() && !replication.is_short && replication.backlog == 0
    }

    /// The store finds nothing wrong but what is missing.
    fn check(&mut self) -> Result<(), Difference> {
        let store = self.store();
        let Some(away) = self.away else {
            return check_store(&store);
        };
        let report = store.verify(&mut |_| {});
        let mut findings = report.map_err(|error| error.to_string())?.findings;
        findings.retain(|finding| usize::from(finding.place.sector) != away);
        match findings.is_empty() {
            true => Ok(()),
            false => Err(format!("without sector {away}: {findings:#?}")),
        }
    }

    /// Something that makes no versions was done since an event.
    fn note(&mut self, started: usize) {
        self.record.done.push(Done {
            what: String::new(),
            effect: Effect::default(),
            sectors: Vec::new(),
            started,
        });
    }

    /// The machine comes up again, perhaps without a sector.
    fn come_up(&mut self, image: &Image, away: Option<usize>) -> Result<Arc<Store>, Difference> {
        let machine = self.pair.subject();
        machine.come_up(image);
        if let Some(sector) = away {
            machine.sim().set_condition(sector, DiskCondition::Absent);
        }
        self.away = away;
        open(machine)
    }

    /// The machine comes up after a power failure; the sector is missing then, if it may be.
    fn come_up_after(
        &mut self,
        image: &Image,
        away: Option<usize>,
    ) -> Result<Arc<Store>, Difference> {
        let Some(sector) = away else {
            return self.come_up(image, None);
        };
        let machine = self.pair.subject();
        machine.come_up(image);
        machine.sim().set_condition(sector, DiskCondition::Absent);
        match machine.open() {
            Ok(store) => {
                self.away = Some(sector);
                Ok(store)
            }
            Err(StorageError::TooFewSectors { .. }) => self.come_up(image, None),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The process ends without a word; the next is without the sector.
    fn kill(&mut self, away: Option<usize>) -> Result<(), Difference> {
        let dead = self.pair.release();
        let image = self.pair.subject().sim().image();
        let store = self.come_up(&image, away)?;
        drop(dead);
        self.pair.resume(store);
        self.check()?;
        self.pair.run(&Step::compare_all())?;
        self.record = Record::new(self.pair.contents());
        Ok(())
    }

    fn fail_power(&mut self) -> Result<(), Difference> {
        let dead = self.pair.release();
        let machine = self.pair.subject();
        let now = machine.position();
        let before = self.record.done.last().map_or(0, |done| done.started);
        let position = before + self.random.below(now - before + 1);
        let mut crasher = machine.crasher();
        crasher.advance(position);
        let loss = match self.random.below(4) {
            0 => Loss::All,
            1 => Loss::Nothing,
            _ => Loss::Random(self.random.number()),
        };
        let away = match self.away {
            Some(away) => Some(away).filter(|_| self.random.one_in(2)),
            None => Some(self.random.below(SECTORS)).filter(|_| self.random.below(4) > 0),
        };
        let store = self.come_up_after(&crasher.image(loss), away)?;
        drop(dead);
        let found = check_contents(&store, &self.record, self.pair.given(), position)?;
        self.pair.adopt(store)?;
        self.record = Record::new(found);
        self.check()
    }

    /// Moves replicas as another policy wants it, or some of them.
    fn shuffle(&mut self) -> Result<(), Difference> {
        let store = self.store();
        let mut left = match self.random.one_in(3) {
            true => 1 + self.random.below(20),
            false => usize::MAX,
        };
        store.set_replication(Some(Arc::new(shuffled(self.random.number()))));
        let moved = store.rebalance(&RebalanceOptions::default(), &mut |_| {
            left -= 1;
            match left {
                0 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        });
        store.set_replication(None);
        match moved {
            Err(error) if self.away.is_none() => Err(error.to_string()),
            _ => self.check(),
        }
    }

    /// Says of a replica that it is damaged; it is looked at before any other is missing.
    fn mark(&mut self) -> Result<(), Difference> {
        let store = self.store();
        let keys = all_keys(&*store).map_err(|error| error.to_string())?;
        if keys.is_empty() {
            return Ok(());
        }
        let (key, sector) = (self.random.pick(&keys), self.random.below(SECTORS));
        let sector = u16::try_from(sector).expect("of three");
        if let Ok(found) = store.stat(key).wait() {
            let ranges = RangeSet::default();
            let replicas = store.replicas();
            let marked = replicas.mark_unhealthy(key, sector, found.version, "told", &ranges);
            // It may not be there at all.
            drop(marked.wait());
        }
        settle(&store)
    }

    /// Brings a replica of a blob to a sector.
    fn add_replica(&mut self) -> Result<(), Difference> {
        let store = self.store();
        let keys = all_keys(&*store).map_err(|error| error.to_string())?;
        if keys.is_empty() {
            return Ok(());
        }
        let key = self.random.pick(&keys);
        let sector = u16::try_from(self.random.below(SECTORS)).expect("of three");
        if let Ok(found) = store.stat(key).wait() {
            let whole = RangeSet::default();
            let replicas = store.replicas();
            let added = replicas.add_replica(key, sector, found.version, &whole);
            // There may be no room, or no such sector now.
            drop(added.wait());
        }
        self.check()
    }

    fn drain_or_not(&mut self) -> Result<(), Difference> {
        let info = self.store().info();
        let draining = info.sectors.iter().find(|sector| sector.draining);
        let done = match draining {
            Some(sector) => self.store().undrain_sector(sector.number),
            None if self.is_whole() => {
                let sector = self.random.below(SECTORS);
                self.store()
                    .drain_sector(u16::try_from(sector).expect("of three"))
            }
            None => Ok(()),
        };
        done.map_err(|error: StorageError| error.to_string())
    }

    /// Something happens.
    fn disturb(&mut self) -> Result<(), Difference> {
        let started = self.pair.subject().position();
        match self.random.below(14) {
            0..=2 => {
                let goes = self.is_whole() && self.random.one_in(2);
                let stays = self.random.one_in(2);
                let info = self.store().info().replication;
                // All is elsewhere by now: another may be missing.
                let is_made_up_for = !info.is_short && info.backlog == 0;
                let away = match self.away {
                    None if goes => Some(self.random.below(SECTORS)),
                    Some(_) if is_made_up_for && self.random.one_in(2) => {
                        Some(self.random.below(SECTORS))
                    }
                    away => away.filter(|_| stays),
                };
                return self.kill(away);
            }
            3 | 12 => return self.fail_power(),
            13 => self.add_replica()?,
            4 | 5 => self.shuffle()?,
            6 => self.drain_or_not()?,
            7 if self.pair.subject().plan().write_mode == WriteMode::All => {
                self.mark()?;
            }
            8 if self.random.one_in(2) => {
                // While a sector is missing there may be no room.
                drop(self.store().repair(&mut |_| {}));
                self.check()?;
            }
            8 => settle(&self.store())?,
            9 => {
                let store = self.store();
                // Without room nothing is the worse for it.
                drop(store.compact());
                drop(store.checkpoint());
                self.check()?;
            }
            _ => {
                for _ in 0..self.random.below(20) {
                    if !matches!(self.store().step(), Ok(true)) {
                        break;
                    }
                }
            }
        }
        self.note(started);
        Ok(())
    }

    /// All is well again, and then the store does without each sector.
    fn end(&mut self) -> Result<(), Difference> {
        self.kill(None)?;
        let store = self.store();
        for sector in store.info().sectors.iter().filter(|one| one.draining) {
            let undrained = store.undrain_sector(sector.number);
            undrained.map_err(|error| error.to_string())?;
        }
        settle(&store)?;
        check_two_replicas(&store)?;
        drop(store);
        for sector in 0..SECTORS {
            if !self.is_whole() {
                return Err(format!("not mended: {:#?}", self.store().info()));
            }
            self.kill(Some(sector))?;
            self.kill(None)?;
            settle(&self.store())?;
            self.check()?;
        }
        Ok(())
    }
}

fn upheave(ground: &Ground, seed: u64, actions: &[Action]) -> Result<Tally, Difference> {
    let mut machine = Machine::boot(ground.plan.clone(), &ground.image, seed);
    let store = open(&mut machine)?;
    let mut pair = Pair::over(&mut machine, Arc::<Store>::clone(&store));
    pair.adopt(store)?;
    let record = Record::new(pair.contents());
    let mut upheaval = Upheaval {
        pair,
        record,
        random: Random::new(seed),
        away: None,
    };
    for (number, action) in actions.iter().enumerate() {
        let at = |what| format!("{number} {action:?}: {what}");
        let started = upheaval.pair.subject().position();
        match (do_and_note(&mut upheaval.pair, action), action) {
            (Ok(done), _) => upheaval.record.done.push(done),
            (Err(what), Action::Step(_)) => return Err(at(what)),
            // Maintenance finds no room, or not all sectors.
            (Err(_), _) if upheaval.away.is_some() => upheaval.note(started),
            (Err(what), _) => return Err(at(what)),
        }
        if upheaval.random.one_in(4) {
            let disturbed = upheaval.disturb();
            disturbed.map_err(|what| at(format!("and then {what}")))?;
        }
    }
    upheaval
        .end()
        .map_err(|what| format!("in the end {what}"))?;
    Ok(Tally {
        histories: 1,
        actions: actions.len(),
        images: 0,
    })
}

#[test]
fn replicas_in_upheaval() {
    Trials::undisturbed(Plan::REPLICAS, 100, 100).run(&upheave);
}

#[test]
fn replicas_that_are_not_waited_for_in_upheaval() {
    Trials::undisturbed(Plan::ASYNC, 100, 60).run(&upheave);
}

//! Rebalance: blobs that would lie better elsewhere get a replica there first; then the one too many goes.
//!
//! What is better the policy of replication says or, without one, how full the sectors are. A replica that goes
//! is only taken out of the index, once what the others have is durable: the next checkpoint of its sector, at the
//! end of the rebalance at the latest, forgets it, and after a crash before that there is one too many, as there
//! was. Wherever its old record shows again, every change since has a higher LSN elsewhere.

use std::ops::ControlFlow;
use std::sync::Arc;

use graviton_format::key::SPACE_BLOB;

use super::index::{Entry, Index};
use super::info::{RebalanceProgress, RebalanceReport};
use super::inner::{Inner, numbers, undecided};
use super::options::RebalanceOptions;
use super::scrub::pace;
use super::set::SectorSet;
use crate::port::op::wait_for;
use crate::port::{BinaryKey, Gain, Rebalance, StorageError};

/// Blobs that are looked at before replicas go.
const AT_ONCE: usize = 256;
/// Steps for one blob, at most: if one was refused, it may be that others are always about it.
const ROUNDS_MAX: usize = 8;
/// By how much of its size a sector must be fuller than another for a blob to move there.
const TOLERANCE: f64 = 0.05;

struct Rebalancing<'a> {
    inner: &'a Arc<Inner>,
    options: &'a RebalanceOptions,
    report: RebalanceReport,
    /// Replicas that are to go.
    leaving: Vec<Leaving>,
    /// Bytes by which the room of each sector will differ, by what is to go and, in a dry run, by what was said.
    moved: Vec<i64>,
    /// Whether replicas move, or only go where there are too many.
    moves: bool,
    /// The sectors that something went from.
    lighter: SectorSet,
}

/// A replica that is to go.
struct Leaving {
    key: BinaryKey,
    version: u64,
    number: usize,
}

/// A step, and the blob that it is for.
struct Planned {
    step: Rebalance,
    entry: Entry,
    holders: SectorSet,
}

impl Inner {
    /// See [`Store::rebalance`](super::Store::rebalance).
    pub fn rebalance(
        self: &Arc<Self>,
        options: &RebalanceOptions,
        progress: &mut dyn FnMut(RebalanceProgress<'_>) -> ControlFlow<()>,
    ) -> Result<RebalanceReport, StorageError> {
        let mut rebalancing = Rebalancing {
            inner: self,
            options,
            report: RebalanceReport::default(),
            leaving: Vec::new(),
            moved: Vec::new(),
            moves: false,
            lighter: SectorSet::NONE,
        };
        if self.sectors.len() < 2 {
            return Ok(rebalancing.report);
        }
        // How full the sectors are is seen once what is too many has gone.
        let flow = rebalancing.look_at_all(progress)?;
        rebalancing.moves = true;
        if flow.is_continue() {
            let _ = rebalancing.look_at_all(progress)?;
        }
        // What went would be there again when the store is opened next.
        for number in rebalancing.lighter.iter() {
            let _alone = self.begin_maintenance()?;
            self.try_checkpoint(number)?;
        }
        Ok(rebalancing.report)
    }

    /// Takes a replica out of a sector. `false` if it is not certain that there are enough others, or somebody
    /// else is about the blob.
    fn evict(&self, leaving: &Leaving) -> Result<bool, StorageError> {
        let Leaving {
            key,
            version,
            number,
        } = leaving;
        let commits = self.commits.lock();
        if commits.is_claimed(key) {
            return Ok(false);
        }
        let mut index = self.index.write();
        let Some(alike) = index.alike(key.stored())? else {
            return Ok(false);
        };
        let is_marked = |number: &usize| self.marks.get(key, *number, *version).is_some();
        let others = alike.holders.within(self.keepers());
        let others = others.without(SectorSet::one(*number));
        let good = others.iter().filter(|number| !is_marked(number)).count();
        let is_it = alike.entry.lsn == *version && alike.holders.contains(*number);
        if !is_it || good < self.wanted(alike.entry.replicas) {
            return Ok(false);
        }
        index.evict(*number, key)?;
        self.marks.clear(key, *number);
        Ok(true)
    }
}

impl Rebalancing<'_> {
    fn look_at_all(
        &mut self,
        progress: &mut dyn FnMut(RebalanceProgress<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, StorageError> {
        let mut from = vec![SPACE_BLOB];
        self.report.keys = 0;
        loop {
            let (mut keys, next) = self.inner.keys_from(&from, AT_ONCE)?;
            let found = keys.len();
            keys.retain(BinaryKey::is_blob);
            // What else there is comes behind the blobs, and stays where it is.
            let is_over = keys.len() < found;
            let flow = self.look_at(keys, progress)?;
            match next {
                Some(next) if flow.is_continue() && !is_over => from = next,
                _ => return Ok(flow),
            }
        }
    }

    fn look_at(
        &mut self,
        mut keys: Vec<BinaryKey>,
        progress: &mut dyn FnMut(RebalanceProgress<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, StorageError> {
        self.report.keys += keys.len() as u64;
        for _ in 0..ROUNDS_MAX {
            let mut again = Vec::new();
            for key in keys {
                self.inner.check_open()?;
                let Some(step) = self.step(&key)? else {
                    continue;
                };
                if progress(self.progress(&key, &step)).is_break() {
                    self.evict_leaving()?;
                    return Ok(ControlFlow::Break(()));
                }
                again.push(key);
            }
            self.evict_leaving()?;
            if self.options.dry_run {
                break;
            }
            keys = again;
        }
        Ok(ControlFlow::Continue(()))
    }

    fn progress<'a>(&self, key: &'a BinaryKey, step: &'a Rebalance) -> RebalanceProgress<'a> {
        RebalanceProgress {
            keys: self.report.keys,
            added: self.report.added,
            removed: self.report.removed,
            bytes: self.report.bytes,
            key,
            step,
        }
    }

    /// Does, or says, one thing for a blob. `None` if there is nothing to do, or it can't be done.
    fn step(&mut self, key: &BinaryKey) -> Result<Option<Rebalance>, StorageError> {
        // Repair does not come between.
        let efforts = match self.options.dry_run {
            false => Some(self.inner.begin_maintenance()?),
            true => None,
        };
        let index = self.inner.index.read();
        let Some(planned) = self.plan(&index, key)? else {
            return Ok(None);
        };
        drop(index);
        let Planned { step, entry, .. } = planned;
        self.note_moved(&step, entry.size);
        if self.options.dry_run {
            self.report.removed += 1;
        } else {
            if let Some(target) = step.add
                && let Err(error) = self.add(key, target.into(), planned.holders)
            {
                self.inner.note_failure("rebalance", &error);
                self.report.left += 1;
                return Ok(None);
            }
            self.leaving.push(Leaving {
                key: key.clone(),
                version: entry.lsn,
                number: step.remove.into(),
            });
        }
        drop(efforts);
        if step.add.is_some() {
            self.report.added += 1;
            self.report.bytes += entry.size;
            if !self.options.dry_run {
                pace(entry.size, self.options.bytes_per_second);
            }
        }
        Ok(Some(step))
    }

    fn note_moved(&mut self, step: &Rebalance, size: u64) {
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        let mut add = |number: u16, by: i64| {
            let number = usize::from(number);
            self.moved.resize(self.moved.len().max(number + 1), 0);
            self.moved[number] = self.moved[number].saturating_add(by);
        };
        // What is made is counted already.
        if self.options.dry_run {
            step.add.into_iter().for_each(|number| add(number, -size));
        }
        add(step.remove, size);
    }

    /// Bytes that puts will be able to add to a sector.
    fn room(&self, index: &Index, number: usize) -> u64 {
        let moved = self.moved.get(number).copied().unwrap_or(0);
        let available = self.inner.available(index, number);
        available.saturating_add_signed(moved)
    }

    /// The next step for a blob whose replicas are as they should be.
    fn plan(&self, index: &Index, key: &BinaryKey) -> Result<Option<Planned>, StorageError> {
        let inner = self.inner;
        let (Some(all), Some(alike)) = (index.lookup(key.stored())?, index.alike(key.stored())?)
        else {
            return Ok(None);
        };
        let keepers = inner.keepers();
        let holders = alike.holders;
        let is_marked = |number| inner.marks.get(key, number, alike.entry.lsn).is_some();
        let wanted = inner.wanted(alike.entry.replicas);
        let is_short = holders.within(keepers).len() < wanted;
        // What is missing, damaged or merged otherwise is for repair.
        if is_short || all.holders != holders || holders.iter().any(is_marked) {
            return Ok(None);
        }
        let room = |number: usize| self.room(index, number);
        let size = alike.entry.size;
        let step = match &inner.policy() {
            None => self.by_fullness(holders.within(inner.writable()), wanted, size, &room),
            Some(policy) => {
                let held = numbers(holders.within(inner.writable()));
                inner
                    .with_placement(key, wanted, &held, size, &room, |placement| {
                        policy.needs_rebalance(placement)
                    })
                    .map_err(|error| undecided(&error))?
            }
        };
        // Whatever a policy says.
        let is_possible = |step: &Rebalance| {
            let adds = step.add.map(usize::from);
            holders.contains(step.remove.into())
                && adds.is_some() == self.moves
                && adds.is_none_or(|add| keepers.contains(add) && !holders.contains(add))
        };
        Ok(step.filter(is_possible).map(|step| Planned {
            step,
            entry: alike.entry,
            holders,
        }))
    }

    /// Without a policy: a replica too many goes from where least room is; otherwise one moves from there to where
    /// most is.
    fn by_fullness(
        &self,
        mut holders: SectorSet,
        wanted: usize,
        size: u64,
        room: &dyn Fn(usize) -> u64,
    ) -> Option<Rebalance> {
        let inner = self.inner;
        let keepers = inner.keepers();
        let share = |bytes: u64, number: usize| {
            bytes as f64 / inner.sectors[number].geometry().sector_size() as f64
        };
        let used = |number: usize| 1.0 - share(room(number), number);
        let fullest = |sectors: SectorSet| {
            let sectors = sectors.iter();
            sectors.max_by(|&one, &other| used(one).total_cmp(&used(other)))
        };
        // Those that are drained come first.
        let worst = |holders: SectorSet| fullest(holders.without(keepers)).or(fullest(holders));
        let named = |number: usize| u16::try_from(number).unwrap_or(u16::MAX);
        let copies = holders.len();
        // Of those it was said already that they are to go.
        while self.moves && self.options.dry_run && holders.len() > wanted {
            holders = holders.without(SectorSet::one(worst(holders)?));
        }
        if holders.len() > wanted {
            return Some(Rebalance {
                add: None,
                remove: named(worst(holders)?),
                gain: Gain::Surplus { copies },
            });
        }
        let from = fullest(holders.within(keepers))?;
        let others = keepers.without(holders).iter();
        let to = others.min_by(|&one, &other| used(one).total_cmp(&used(other)))?;
        let gain = used(from) - share(size, from) - used(to) - share(size, to);
        let percent = |number| (used(number).clamp(0.0, 1.0) * 100.0).round();
        (gain > TOLERANCE && room(to) > size).then(|| Rebalance {
            add: Some(named(to)),
            remove: named(from),
            gain: Gain::Evened {
                before: percent(from),
                after: percent(to),
            },
        })
    }

    /// Makes a replica in another sector, durably.
    fn add(&self, key: &BinaryKey, target: usize, holders: SectorSet) -> Result<(), StorageError> {
        let inner = self.inner;
        let repair = {
            let mut index = inner.index.write();
            inner.begin_repair(&mut index, key, holders, holders, target)?
        };
        let mut under_way = repair;
        while let Some(repair) = under_way {
            under_way = wait_for(inner.go_on(repair))?;
        }
        Ok(())
    }

    /// Takes out what is to go, once the others are durable.
    fn evict_leaving(&mut self) -> Result<(), StorageError> {
        if self.leaving.is_empty() {
            return Ok(());
        }
        for sync in self.inner.sync_each(self.inner.writable()) {
            // A sector that fails keeps nothing any more, so nothing goes on account of it.
            let _ = wait_for(sync);
        }
        self.moved.clear();
        for leaving in std::mem::take(&mut self.leaving) {
            // Nothing goes on the word of what nobody has read.
            let found = self.inner.index.read().lookup(leaving.key.stored())?;
            let others = found.map_or(SectorSet::NONE, |found| found.holders);
            for number in others.without(SectorSet::one(leaving.number)).iter() {
                self.inner.read_back(&leaving.key, number)?;
            }
            match self.inner.evict(&leaving)? {
                true => {
                    self.report.removed += 1;
                    self.lighter = self.lighter.and(SectorSet::one(leaving.number));
                }
                false => self.report.left += 1,
            }
        }
        Ok(())
    }
}

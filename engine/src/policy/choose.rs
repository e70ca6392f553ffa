//! What the policies share: which sectors can take a copy, and the best of them, one after another.
//!
//! A policy ranks a sector by two numbers, given where the other copies are: how crowded its rack is,
//! then what it costs. Both measures in use are such that taking the best again and again ends at the
//! best set there is, and that a set which no exchange of one sector improves is the best: how uneven
//! a spread is is a sum of convex functions of the copies in each rack, and the sets that are in
//! enough racks are the bases of a matroid. So a rebalance looks at single moves only.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::topology::{Rack, Racks};
use crate::port::{
    BinaryKey, Choice, Gain, PartialCopy, Placement, PolicyError, Reason, Rebalance,
    ReplicationPolicy, SectorFacts, SectorState, Verdict,
};

/// What one policy goes by.
pub(super) trait Preference: Send + Sync + fmt::Debug {
    /// Its name.
    const NAME: &'static str;

    /// Which rack a sector is in.
    fn rack<'a>(&'a self, sector: &'a SectorFacts) -> Rack<'a>;

    /// How little a rack that has `copies` is to have another, when `racks` of them have any.
    fn crowding(&self, copies: usize, racks: usize) -> usize;

    /// What a copy costs in a sector, finite and not negative; `None` is dearer than all.
    fn cost(&self, _sector: &SectorFacts) -> Option<f64> {
        Some(0.0)
    }

    /// Which comes first of sectors of the same rank: the lower.
    fn order(&self, sector: &SectorFacts, request: &Placement<'_>) -> (u64, u64);

    /// Why `sector` was chosen, when its rack had `copies` and `racks` racks had any.
    fn chosen(&self, sector: &SectorFacts, copies: usize, racks: usize) -> Reason;

    /// Why `sector` came after `chosen`, of the same rank.
    fn passed_over(&self, _sector: &SectorFacts, _chosen: &SectorFacts) -> Reason {
        Reason::NotDrawn
    }
}

impl<P: Preference> ReplicationPolicy for P {
    fn name(&self) -> &'static str {
        P::NAME
    }

    fn select_targets(&self, request: &Placement<'_>) -> Result<Choice, PolicyError> {
        select_targets(self, request)
    }

    fn select_repair_targets(
        &self,
        request: &Placement<'_>,
        partial: &[PartialCopy],
    ) -> Result<Choice, PolicyError> {
        select_repair_targets(self, request, partial)
    }

    fn needs_rebalance(&self, request: &Placement<'_>) -> Result<Option<Rebalance>, PolicyError> {
        needs_rebalance(self, request)
    }
}

/// How good a place is: the lower, the better.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    crowding: usize,
    cost: u64,
}

/// A sector that has a copy, or can take one.
struct Candidate<'a> {
    facts: &'a SectorFacts,
    rack: Rack<'a>,
    cost: Option<f64>,
    /// Among those of the same rank; no two are the same.
    order: (u64, u64, u16),
    /// What it lacks, if it has part of a copy.
    missing: Option<u64>,
}

impl Candidate<'_> {
    /// Whether it comes after those that have part of a copy.
    fn is_new(&self) -> bool {
        self.missing.is_none()
    }

    fn is_draining(&self) -> bool {
        self.facts.state == SectorState::Draining
    }

    /// Whether a copy can be removed from it.
    fn is_writable(&self) -> bool {
        self.facts.state != SectorState::ReadOnly
    }
}

/// A request, sorted out.
struct Situation<'a, P> {
    policy: &'a P,
    /// How many copies are wanted.
    copies: usize,
    /// The sectors with copies that count.
    holders: Vec<Candidate<'a>>,
    /// The racks of these.
    racks: Racks<'a>,
    /// The sectors that can take a copy.
    takers: Vec<Candidate<'a>>,
    /// Of all that are not takers.
    verdicts: Vec<Verdict>,
}

impl<'a, P: Preference> Situation<'a, P> {
    fn new(
        policy: &'a P,
        request: &Placement<'a>,
        partial: &[PartialCopy],
    ) -> Result<Self, PolicyError> {
        if request.copies == 0 {
            return Err(PolicyError::invalid("0 copies, must be at least 1"));
        }
        let sectors = distinct(request.sectors)?;
        let mut parts = BTreeMap::new();
        for part in partial {
            let missing = parts.entry(part.sector).or_insert(part.missing);
            *missing = part.missing.max(*missing);
        }
        let mut held: BTreeSet<u16> = request.holders.iter().copied().collect();
        held.retain(|number| !parts.contains_key(number));

        let mut situation = Self {
            policy,
            copies: usize::from(request.copies),
            holders: Vec::new(),
            racks: Racks::default(),
            takers: Vec::new(),
            verdicts: Vec::with_capacity(sectors.len()),
        };
        for &number in held.iter().chain(parts.keys()) {
            if sectors
                .binary_search_by_key(&number, |sector| sector.number)
                .is_err()
            {
                situation.leave_out(number, Reason::State(SectorState::Absent));
            }
        }
        for facts in sectors {
            let missing = parts.get(&facts.number).copied();
            let is_held = held.contains(&facts.number);
            let needed = missing.unwrap_or(request.needed);
            let candidate = || {
                let (first, second) = policy.order(facts, request);
                Candidate {
                    facts,
                    rack: policy.rack(facts),
                    cost: policy.cost(facts),
                    order: (first, second, facts.number),
                    missing,
                }
            };
            if is_held && facts.state.keeps_copies() {
                let holder = candidate();
                situation.racks.add(holder.rack);
                situation.holders.push(holder);
                situation.leave_out(facts.number, Reason::HoldsCopy);
            } else if facts.state != SectorState::Active {
                situation.leave_out(facts.number, Reason::State(facts.state));
            } else if facts.free < needed {
                let free = facts.free;
                situation.leave_out(facts.number, Reason::Full { free, needed });
            } else {
                situation.takers.push(candidate());
            }
        }
        Ok(situation)
    }

    fn leave_out(&mut self, sector: u16, reason: Reason) {
        self.verdicts.push(Verdict { sector, reason });
    }

    /// How good a place `candidate` is for a copy besides those that are counted.
    fn rank(&self, candidate: &Candidate<'a>) -> Rank {
        let copies = self.racks.copies(candidate.rack);
        Rank {
            crowding: self.policy.crowding(copies, self.racks.len()),
            // Of numbers that are not negative the bits have the same order.
            cost: candidate.cost.map_or(u64::MAX, f64::to_bits),
        }
    }

    /// The best place for one more copy.
    fn best(&self) -> Option<usize> {
        (0..self.takers.len()).min_by_key(|&at| {
            let taker = &self.takers[at];
            (taker.is_new(), self.rank(taker), taker.order)
        })
    }

    fn choose(mut self) -> Result<Choice, PolicyError> {
        let wanted = self.copies.saturating_sub(self.holders.len());
        let mut chosen = Vec::new();
        let mut last = None;
        while chosen.len() < wanted
            && let Some(best) = self.best()
        {
            let taker = self.takers.swap_remove(best);
            let reason = match taker.missing {
                Some(missing) => Reason::HasPart { missing },
                None => {
                    let copies = self.racks.copies(taker.rack);
                    self.policy.chosen(taker.facts, copies, self.racks.len())
                }
            };
            let sector = taker.facts.number;
            self.verdicts.push(Verdict { sector, reason });
            chosen.push(sector);
            self.racks.add(taker.rack);
            last = Some(taker);
        }
        // The last was the narrowest choice: what decided it is what the others lacked.
        if let Some(last) = &last {
            self.racks.remove(last.rack);
        }
        let left = self.takers.iter().map(|taker| Verdict {
            sector: taker.facts.number,
            reason: match &last {
                Some(last) => self.left_out(taker, last),
                None => Reason::Enough,
            },
        });
        let mut verdicts: Vec<Verdict> = left.collect();
        verdicts.append(&mut self.verdicts);
        verdicts.sort_unstable_by_key(|verdict| verdict.sector);
        if chosen.len() < wanted {
            return Err(PolicyError::Insufficient {
                wanted,
                chosen,
                verdicts,
            });
        }
        Ok(Choice { chosen, verdicts })
    }

    /// Why `taker` came after `chosen`.
    fn left_out(&self, taker: &Candidate<'a>, chosen: &Candidate<'a>) -> Reason {
        let (rank, best) = (self.rank(taker), self.rank(chosen));
        if taker.is_new() && !chosen.is_new() {
            Reason::OthersHavePart
        } else if rank.crowding > best.crowding {
            let copies = self.racks.copies(taker.rack);
            Reason::RackHasCopies { copies }
        } else if rank.cost > best.cost {
            Reason::Dearer { cost: taker.cost }
        } else {
            self.policy.passed_over(taker.facts, chosen.facts)
        }
    }

    fn rebalance(self) -> Option<Rebalance> {
        let copies = self.holders.len();
        match copies.cmp(&self.copies) {
            Ordering::Less => None,
            Ordering::Equal => self.exchange(),
            Ordering::Greater => self.surplus(copies),
        }
    }

    /// What to remove of more copies than are wanted: the one whose place is the worst, given the
    /// others.
    fn surplus(mut self, copies: usize) -> Option<Rebalance> {
        let holders = std::mem::take(&mut self.holders);
        let worst = holders
            .iter()
            .filter(|holder| holder.is_writable())
            .max_by_key(|holder| {
                self.racks.remove(holder.rack);
                let rank = self.rank(holder);
                self.racks.add(holder.rack);
                (holder.is_draining(), rank, holder.order)
            })?;
        Some(Rebalance {
            add: None,
            remove: worst.facts.number,
            gain: Gain::Surplus { copies },
        })
    }

    /// The move of one copy that gains the most.
    fn exchange(mut self) -> Option<Rebalance> {
        let holders = std::mem::take(&mut self.holders);
        let mut best: Option<Exchange<'_>> = None;
        for holder in holders.iter().filter(|holder| holder.is_writable()) {
            // Both places are judged by where the other copies are.
            self.racks.remove(holder.rack);
            if let Some(at) = self.best() {
                let taker = &self.takers[at];
                let exchange = Exchange {
                    holder,
                    taker,
                    before: self.rank(holder),
                    after: self.rank(taker),
                };
                let is_better = |known: &Exchange<'_>| exchange.compare(known) == Ordering::Greater;
                if exchange.gain().is_some() && best.as_ref().is_none_or(is_better) {
                    best = Some(exchange);
                }
            }
            self.racks.add(holder.rack);
        }
        best.and_then(|exchange| {
            Some(Rebalance {
                add: Some(exchange.taker.facts.number),
                remove: exchange.holder.facts.number,
                gain: exchange.gain()?,
            })
        })
    }
}

/// A copy that could be in a taker instead of a holder.
struct Exchange<'a> {
    holder: &'a Candidate<'a>,
    taker: &'a Candidate<'a>,
    before: Rank,
    after: Rank,
}

impl Exchange<'_> {
    fn gain(&self) -> Option<Gain> {
        if self.holder.is_draining() {
            Some(Gain::Drained)
        } else if self.after.crowding < self.before.crowding {
            Some(Gain::Spread)
        } else if self.after < self.before {
            Some(Gain::Cheaper {
                before: self.holder.cost,
                after: self.taker.cost,
            })
        } else {
            None
        }
    }

    /// Which gains more. All copies have to leave draining sectors, but some for better places than
    /// others.
    fn compare(&self, other: &Self) -> Ordering {
        // What one has before and the other after weighs against the reverse.
        let crowding = (self.before.crowding + other.after.crowding)
            .cmp(&(other.before.crowding + self.after.crowding));
        let drained = self.holder.is_draining().cmp(&other.holder.is_draining());
        let priced = self.gains_price().cmp(&other.gains_price());
        drained
            .then(crowding)
            .then(priced)
            .then(self.saved().total_cmp(&other.saved()))
            .then(self.holder.order.cmp(&other.holder.order))
    }

    /// 1 if only the place after has a price, -1 if only the one before has.
    fn gains_price(&self) -> i8 {
        i8::from(self.taker.cost.is_some()) - i8::from(self.holder.cost.is_some())
    }

    fn saved(&self) -> f64 {
        self.holder.cost.unwrap_or(0.0) - self.taker.cost.unwrap_or(0.0)
    }
}

/// The sectors by number, each once.
fn distinct(sectors: &[SectorFacts]) -> Result<Vec<&SectorFacts>, PolicyError> {
    let mut distinct: Vec<&SectorFacts> = sectors.iter().collect();
    distinct.sort_by_key(|sector| sector.number);
    let contradiction = distinct
        .windows(2)
        .find(|pair| pair[0].number == pair[1].number && pair[0] != pair[1]);
    if let Some(pair) = contradiction {
        return Err(PolicyError::invalid(format!(
            "sector {} is named twice, with different facts",
            pair[0].number
        )));
    }
    distinct.dedup_by_key(|sector| sector.number);
    Ok(distinct)
}

/// See [`ReplicationPolicy::select_targets`](crate::port::ReplicationPolicy::select_targets).
fn select_targets(
    policy: &impl Preference,
    request: &Placement<'_>,
) -> Result<Choice, PolicyError> {
    select_repair_targets(policy, request, &[])
}

/// See
/// [`ReplicationPolicy::select_repair_targets`](crate::port::ReplicationPolicy::select_repair_targets).
fn select_repair_targets(
    policy: &impl Preference,
    request: &Placement<'_>,
    partial: &[PartialCopy],
) -> Result<Choice, PolicyError> {
    Situation::new(policy, request, partial)?.choose()
}

/// See [`ReplicationPolicy::needs_rebalance`](crate::port::ReplicationPolicy::needs_rebalance).
fn needs_rebalance(
    policy: &impl Preference,
    request: &Placement<'_>,
) -> Result<Option<Rebalance>, PolicyError> {
    Ok(Situation::new(policy, request, &[])?.rebalance())
}

/// A number that key, sector and seed decide alone. Ordering sectors by it is rendezvous hashing
/// (Thaler and Ravishankar, 1998): when a sector comes or goes, only keys that it won or wins are
/// decided otherwise.
pub(super) fn rendezvous(key: &BinaryKey, sector: u16, seed: u64) -> u64 {
    let key = xxh3_64_with_seed(key.as_bytes(), seed);
    xxh3_64_with_seed(&u64::from(sector).to_le_bytes(), key)
}

/// When a sector is drawn: the lower, the earlier. Drawing so is drawing one after another without
/// putting back, each time with a chance in proportion to the free space (Efraimidis and Spirakis,
/// "Weighted random sampling with a reservoir", 2006): their keys `u^(1/w)`, highest first, are in the
/// order of `-ln(u)/w`, lowest first.
pub(super) fn draw(sector: &SectorFacts, request: &Placement<'_>) -> u64 {
    let hash = rendezvous(request.key, sector.number, request.seed);
    // 52 bits and a half: exact in an f64, above 0 and below 1.
    let uniform = ((hash >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
    let weight = sector.free.max(1) as f64;
    // Of numbers that are not negative the bits have the same order.
    (-uniform.ln() / weight).to_bits()
}

//! What holds of every policy, in any situation; and what the tests of each are made with.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::{CostOptimized, RackAware, Random, Topology, Usage};
use crate::port::{
    BinaryKey, Choice, ErrorKind, Labels, PartialCopy, Placement, PolicyError, Price, Reason,
    Rebalance, ReplicationPolicy, SectorFacts, SectorState,
};

/// An active sector.
pub(super) fn sector(number: u16, rack: Option<&str>, free: u64) -> SectorFacts {
    SectorFacts {
        number,
        labels: Labels {
            rack: rack.map(str::to_owned),
            ..Labels::default()
        },
        state: SectorState::Active,
        capacity: free,
        free,
    }
}

pub(super) fn key(number: u32) -> BinaryKey {
    BinaryKey::new(number.to_be_bytes()).unwrap()
}

/// A request, with what it refers to.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) key: BinaryKey,
    pub(super) copies: u8,
    pub(super) holders: Vec<u16>,
    pub(super) sectors: Vec<SectorFacts>,
    pub(super) needed: u64,
    pub(super) seed: u64,
}

impl Case {
    /// `copies` that are nowhere yet, of a blob of one byte.
    pub(super) fn new(copies: u8, sectors: Vec<SectorFacts>) -> Self {
        Self {
            key: key(0),
            copies,
            holders: Vec::new(),
            sectors,
            needed: 1,
            seed: 0,
        }
    }

    pub(super) fn held_by(mut self, holders: &[u16]) -> Self {
        self.holders = holders.to_vec();
        self
    }

    pub(super) fn request(&self) -> Placement<'_> {
        Placement {
            key: &self.key,
            copies: self.copies,
            holders: &self.holders,
            sectors: &self.sectors,
            needed: self.needed,
            seed: self.seed,
        }
    }

    pub(super) fn facts(&self, number: u16) -> Option<&SectorFacts> {
        self.sectors.iter().find(|sector| sector.number == number)
    }

    /// The holders whose copies count.
    fn counted(&self) -> BTreeSet<u16> {
        let counts = |&number: &u16| self.facts(number).is_some_and(|it| it.state.keeps_copies());
        self.holders.iter().copied().filter(counts).collect()
    }

    /// The sectors that can take a copy.
    fn takers(&self) -> BTreeSet<u16> {
        let active = |sector: &&SectorFacts| sector.state == SectorState::Active;
        self.sectors
            .iter()
            .filter(active)
            .filter(|sector| sector.free >= self.needed)
            .map(|sector| sector.number)
            .filter(|number| !self.holders.contains(number))
            .collect()
    }

    fn apply(&mut self, step: &Rebalance) {
        self.holders.retain(|&holder| holder != step.remove);
        self.holders.extend(step.add);
    }

    /// Rebalances until there is nothing to gain.
    fn settle(&mut self, policy: &dyn ReplicationPolicy) -> usize {
        for steps in 0.. {
            let Some(step) = policy.needs_rebalance(&self.request()).unwrap() else {
                return steps;
            };
            assert!(steps < 100, "{step} and no end of it: {self:?}");
            if let Some(add) = step.add {
                assert!(self.takers().contains(&add), "{step}");
            }
            assert!(self.counted().contains(&step.remove), "{step}");
            let state = self.facts(step.remove).map(|sector| sector.state);
            assert_ne!(state, Some(SectorState::ReadOnly), "{step}");
            assert_eq!(step.to_string().lines().count(), 1);
            self.apply(&step);
        }
        unreachable!()
    }
}

/// Why a sector was chosen or left out.
pub(super) fn reason(choice: &Choice, sector: u16) -> Reason {
    let verdict = choice.verdicts.iter().find(|it| it.sector == sector);
    verdict.unwrap().reason
}

const NUMBERS: std::ops::Range<u16> = 0..9;

fn labels() -> impl Strategy<Value = Labels> {
    let rack = select(vec![None, Some("a"), Some("b"), Some("c")]);
    let price = prop_oneof![
        1 => Just(None),
        4 => (0..4_u8, 0..3_u8, 0..3_u8).prop_map(Some),
    ];
    (rack, price).prop_map(|(rack, price)| Labels {
        rack: rack.map(str::to_owned),
        tier: None,
        price: price.map(|(storage, read, write)| {
            Price::new(storage.into(), read.into(), write.into()).unwrap()
        }),
    })
}

fn facts(number: u16) -> impl Strategy<Value = SectorFacts> {
    let state = prop_oneof![
        6 => Just(SectorState::Active),
        1 => Just(SectorState::Draining),
        1 => Just(SectorState::ReadOnly),
        1 => Just(SectorState::Failed),
        1 => Just(SectorState::Absent),
    ];
    let free = select(vec![0, 9, 10, 100, 1 << 40, u64::MAX]);
    (labels(), state, free).prop_map(move |(labels, state, free)| SectorFacts {
        number,
        labels,
        state,
        capacity: free,
        free,
    })
}

fn case() -> impl Strategy<Value = Case> {
    let all: Vec<u16> = NUMBERS.collect();
    let sectors = subsequence(all.clone(), 0..=all.len())
        .prop_flat_map(|numbers| numbers.into_iter().map(facts).collect::<Vec<_>>());
    let needed = select(vec![0, 1, 10, 10, 10, u64::MAX]);
    (
        any::<[u8; 4]>(),
        1..6_u8,
        subsequence(all.clone(), 0..=5),
        sectors,
        needed,
        any::<u64>(),
    )
        .prop_map(|(key, copies, holders, sectors, needed, seed)| Case {
            key: BinaryKey::new(key).unwrap(),
            copies,
            holders,
            sectors,
            needed,
            seed,
        })
}

fn partial() -> impl Strategy<Value = Vec<PartialCopy>> {
    let copy = (NUMBERS, select(vec![0, 5, 10, u64::MAX]));
    let copy = copy.prop_map(|(sector, missing)| PartialCopy { sector, missing });
    proptest::collection::vec(copy, 0..4)
}

/// What a policy measures a placement by, the lower the better: copies in draining sectors, what is
/// wrong with the spread, copies without a price, the sum of prices.
type Measure = fn(&Case, &BTreeSet<u16>) -> [u64; 4];

fn draining(case: &Case, copies: &BTreeSet<u16>) -> u64 {
    let draining = |&&number: &&u16| {
        case.facts(number)
            .is_some_and(|it| it.state == SectorState::Draining)
    };
    copies.iter().filter(draining).count() as u64
}

/// How many copies each rack has.
pub(super) fn by_rack(case: &Case, copies: &BTreeSet<u16>) -> BTreeMap<String, u64> {
    let mut racks = BTreeMap::new();
    for &number in copies {
        let rack = case.facts(number).and_then(|it| it.labels.rack.clone());
        *racks.entry(rack.unwrap_or(number.to_string())).or_default() += 1;
    }
    racks
}

fn by_chance(case: &Case, copies: &BTreeSet<u16>) -> [u64; 4] {
    [draining(case, copies), 0, 0, 0]
}

fn by_spread(case: &Case, copies: &BTreeSet<u16>) -> [u64; 4] {
    let racks = by_rack(case, copies);
    let squares = racks.values().map(|copies| copies * copies);
    [draining(case, copies), squares.sum(), 0, 0]
}

fn by_cost<const RACKS_MIN: u64>(case: &Case, copies: &BTreeSet<u16>) -> [u64; 4] {
    let lacking = RACKS_MIN.saturating_sub(by_rack(case, copies).len() as u64);
    let prices: Vec<Option<Price>> = copies
        .iter()
        .map(|&number| case.facts(number).and_then(|it| it.labels.price))
        .collect();
    let unpriced = prices.iter().filter(|price| price.is_none()).count() as u64;
    let cost = prices
        .into_iter()
        .flatten()
        .map(|price| price.storage() + 2.0 * price.read() + 3.0 * price.write());
    // Prices here are small and whole.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let cost = cost.sum::<f64>() as u64;
    [draining(case, copies), lacking, unpriced, cost]
}

fn policies() -> Vec<(Box<dyn ReplicationPolicy>, Measure)> {
    let usage = Usage::new(2.0, 3.0).unwrap();
    let cost = |racks_min| Box::new(CostOptimized::new(racks_min).usage(usage));
    vec![
        (Box::new(Random), by_chance),
        (Box::new(RackAware::default()), by_spread),
        (cost(0), by_cost::<0>),
        (cost(2), by_cost::<2>),
        (cost(3), by_cost::<3>),
    ]
}

/// The least measure of a set of `size`, with `fixed` and of `pool`.
fn least(
    case: &Case,
    measure: Measure,
    size: usize,
    fixed: &BTreeSet<u16>,
    pool: &BTreeSet<u16>,
) -> Option<[u64; 4]> {
    let pool: Vec<u16> = pool.difference(fixed).copied().collect();
    let chosen = |bits: u32| {
        let mut set = fixed.clone();
        let of_bits = pool.iter().enumerate();
        set.extend(of_bits.filter_map(|(bit, &number)| (bits >> bit & 1 == 1).then_some(number)));
        set
    };
    (0..1_u32 << pool.len())
        .map(chosen)
        .filter(|set| set.len() == size)
        .map(|set| measure(case, &set))
        .min()
}

/// What is in an answer, whether there are enough or not.
fn unwrap(answer: Result<Choice, PolicyError>) -> (Choice, Option<usize>) {
    match answer {
        Ok(choice) => (choice, None),
        Err(PolicyError::Insufficient {
            wanted,
            chosen,
            verdicts,
        }) => (Choice { chosen, verdicts }, Some(wanted)),
        Err(other) => panic!("{other}"),
    }
}

/// Every sector is named once, in order, in one line that says whether it was chosen.
fn check_verdicts(case: &Case, choice: &Choice, also: &[u16]) {
    let mut named: BTreeSet<u16> = case.sectors.iter().map(|it| it.number).collect();
    named.extend(&case.holders);
    named.extend(also);
    let verdicts: Vec<u16> = choice.verdicts.iter().map(|it| it.sector).collect();
    assert_eq!(verdicts, named.into_iter().collect::<Vec<u16>>());
    for verdict in &choice.verdicts {
        let is_chosen = choice.chosen.contains(&verdict.sector);
        assert_eq!(is_chosen, verdict.reason.is_choice(), "{verdict}");
    }
    assert_eq!(choice.to_string().lines().count(), verdicts.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn new_copies_go_to_the_best_sectors_that_can_take_them(case in case()) {
        let (held, takers) = (case.counted(), case.takers());
        let wanted = usize::from(case.copies).saturating_sub(held.len());
        for (policy, measure) in policies() {
            let (choice, lacking) = unwrap(policy.select_targets(&case.request()));
            check_verdicts(&case, &choice, &[]);
            let chosen: BTreeSet<u16> = choice.chosen.iter().copied().collect();
            prop_assert_eq!(chosen.len(), choice.chosen.len());
            prop_assert!(chosen.is_subset(&takers));
            prop_assert_eq!(chosen.len(), wanted.min(takers.len()));
            prop_assert_eq!(lacking, (wanted > takers.len()).then_some(wanted));
            let all: BTreeSet<u16> = held.union(&chosen).copied().collect();
            let pool: BTreeSet<u16> = held.union(&takers).copied().collect();
            let least = least(&case, measure, all.len(), &held, &pool);
            prop_assert_eq!(Some(measure(&case, &all)), least, "{:?}", policy);
        }
    }

    #[test]
    fn the_order_of_the_input_and_what_is_named_twice_do_not_matter(
        case in case(),
        partial in partial(),
        other in any::<prop::sample::Index>(),
    ) {
        let mut mixed = case.clone();
        mixed.sectors.extend(case.sectors.first().cloned());
        mixed.sectors.reverse();
        mixed.holders.extend(case.holders.last());
        mixed.holders.reverse();
        if !mixed.sectors.is_empty() {
            let middle = other.index(mixed.sectors.len());
            mixed.sectors.rotate_left(middle);
        }
        let mut parts = partial.clone();
        parts.extend(&partial);
        parts.reverse();
        for (policy, _) in policies() {
            let (one, two) = (case.request(), mixed.request());
            prop_assert_eq!(
                unwrap(policy.select_targets(&one)),
                unwrap(policy.select_targets(&two))
            );
            prop_assert_eq!(
                unwrap(policy.select_repair_targets(&one, &partial)),
                unwrap(policy.select_repair_targets(&two, &parts))
            );
            prop_assert_eq!(
                policy.needs_rebalance(&one).unwrap(),
                policy.needs_rebalance(&two).unwrap()
            );
        }
    }

    #[test]
    fn a_repair_takes_just_enough_and_parts_first(case in case(), partial in partial()) {
        let parts: Vec<u16> = partial.iter().map(|part| part.sector).collect();
        let mut whole = case.clone();
        whole.holders.retain(|holder| !parts.contains(holder));
        let wanted = usize::from(case.copies).saturating_sub(whole.counted().len());
        let fits = |part: &&PartialCopy| {
            let most = partial.iter().filter(|it| it.sector == part.sector);
            let most = most.map(|it| it.missing).max();
            case.facts(part.sector).is_some_and(|sector| {
                sector.state == SectorState::Active && Some(sector.free) >= most
            })
        };
        let usable: BTreeSet<u16> = partial.iter().filter(fits).map(|part| part.sector).collect();
        let mut others = whole.takers();
        others.retain(|number| !parts.contains(number));
        for (policy, _) in policies() {
            let repair = policy.select_repair_targets(&case.request(), &partial);
            let (choice, lacking) = unwrap(repair);
            check_verdicts(&case, &choice, &parts);
            let from_parts = wanted.min(usable.len());
            let (first, rest) = choice.chosen.split_at(from_parts);
            prop_assert!(first.iter().all(|number| usable.contains(number)));
            prop_assert!(rest.iter().all(|number| others.contains(number)));
            prop_assert_eq!(choice.chosen.len(), wanted.min(usable.len() + others.len()));
            prop_assert_eq!(lacking.is_some(), choice.chosen.len() < wanted);
        }
    }

    #[test]
    fn rebalancing_ends_at_the_best_there_is(case in case()) {
        let held = case.counted();
        let stays = |number: &u16| {
            case.facts(*number).map(|sector| sector.state) == Some(SectorState::ReadOnly)
        };
        let fixed: BTreeSet<u16> = held.iter().copied().filter(stays).collect();
        for (policy, measure) in policies() {
            let mut moved = case.clone();
            let steps = moved.settle(&*policy);
            let size = held.len().min(usize::from(case.copies)).max(fixed.len());
            if held.len() < usize::from(case.copies) {
                prop_assert_eq!(steps, 0, "what is missing is for a repair");
                continue;
            }
            // Where more copies can't be removed than are wanted, nothing is moved.
            let pool: BTreeSet<u16> = if fixed.len() > usize::from(case.copies) {
                fixed.clone()
            } else {
                held.union(&case.takers()).copied().collect()
            };
            prop_assert_eq!(moved.counted().len(), size);
            prop_assert_eq!(
                Some(measure(&case, &moved.counted())),
                least(&case, measure, size, &fixed, &pool),
                "{:?}: {:?}", policy, moved
            );
        }
    }

    #[test]
    fn repairs_and_rebalances_come_to_an_end_as_space_changes(
        mut case in case(),
        partial in partial(),
    ) {
        case.needed = case.needed.min(10);
        for (policy, _) in policies() {
            let mut case = case.clone();
            let (repair, lacking) =
                unwrap(policy.select_repair_targets(&case.request(), &partial));
            case.holders.retain(|held| partial.iter().all(|part| part.sector != *held));
            case.holders.extend(&repair.chosen);
            for steps in 0.. {
                prop_assert!(steps < 100);
                let Some(step) = policy.needs_rebalance(&case.request()).unwrap() else {
                    break;
                };
                for sector in &mut case.sectors {
                    if Some(sector.number) == step.add {
                        sector.free -= case.needed;
                    } else if sector.number == step.remove {
                        sector.free = sector.free.saturating_add(case.needed);
                    }
                }
                case.apply(&step);
            }
            let repair = policy.select_repair_targets(&case.request(), &[]);
            prop_assert!(lacking.is_some() || repair.is_ok_and(|it| it.chosen.is_empty()));
        }
    }
}

#[test]
fn names_are_those_of_settings() {
    let names: BTreeSet<&str> = policies().iter().map(|(it, _)| it.name()).collect();
    assert_eq!(
        names.into_iter().collect::<Vec<_>>(),
        ["cost_optimized", "rack_aware", "random"]
    );
}

#[test]
fn no_copies_are_refused() {
    let case = Case::new(0, vec![sector(1, None, 10)]);
    for (policy, _) in policies() {
        let errors = [
            policy.select_targets(&case.request()).unwrap_err(),
            policy
                .select_repair_targets(&case.request(), &[])
                .unwrap_err(),
            policy.needs_rebalance(&case.request()).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(!error.is_retryable());
        }
    }
}

#[test]
fn facts_that_contradict_each_other_are_refused() {
    let mut case = Case::new(1, vec![sector(1, None, 10), sector(1, None, 10)]);
    for (policy, _) in policies() {
        assert!(policy.select_targets(&case.request()).is_ok());
    }
    case.sectors[1].state = SectorState::Failed;
    for (policy, _) in policies() {
        let error = policy.select_targets(&case.request()).unwrap_err();
        assert!(matches!(error, PolicyError::InvalidArgument { .. }));
        assert!(error.to_string().contains("sector 1 "), "{error}");
    }
}

#[test]
fn too_few_sectors_are_an_error_that_has_them() {
    let mut case = Case::new(3, vec![sector(1, None, 10), sector(2, None, 0)]);
    for (policy, _) in policies() {
        let error = policy.select_targets(&case.request()).unwrap_err();
        let PolicyError::Insufficient { wanted, chosen, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!((*wanted, chosen.as_slice()), (3, [1].as_slice()));
        assert_eq!(
            error.to_string(),
            "3 copies are to be placed, 1 of 2 sectors can take one"
        );
        // Deletes make room.
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(error.is_retryable());
    }
    case.sectors[1].state = SectorState::Absent;
    for (policy, _) in policies() {
        let error = policy.select_targets(&case.request()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(!error.is_retryable());
    }
}

#[test]
fn why_a_sector_can_not_take_a_copy_is_said() {
    let in_state = |number, state| SectorFacts {
        state,
        ..sector(number, None, 10)
    };
    let case = Case::new(
        2,
        vec![
            in_state(1, SectorState::Draining),
            in_state(2, SectorState::ReadOnly),
            in_state(3, SectorState::Failed),
            in_state(4, SectorState::Absent),
            sector(5, None, 0),
            sector(6, None, 10),
            sector(7, None, 10),
        ],
    )
    .held_by(&[3, 6, 9]);
    let partial = [PartialCopy {
        sector: 8,
        missing: 1,
    }];
    for (policy, _) in policies() {
        let choice = policy.select_repair_targets(&case.request(), &partial);
        let text = choice.unwrap().to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..6],
            [
                "sector 1: left out, draining",
                "sector 2: left out, read-only",
                "sector 3: left out, failed",
                "sector 4: left out, absent",
                "sector 5: left out, full: 0 bytes are free, 1 needed",
                "sector 6: left out, it holds a copy already",
            ]
        );
        assert!(lines[6].starts_with("sector 7: chosen, "), "{text}");
        assert_eq!(
            lines[7..],
            ["sector 8: left out, absent", "sector 9: left out, absent"]
        );
    }
}

#[test]
fn a_repair_says_that_parts_come_first() {
    // The one with a part is full for a whole copy, and in the rack of the holder.
    let sectors = vec![
        sector(1, Some("a"), 1000),
        sector(2, Some("a"), 10),
        sector(3, Some("b"), 1000),
    ];
    let mut case = Case::new(2, sectors).held_by(&[1]);
    case.needed = 100;
    let partial = [PartialCopy {
        sector: 2,
        missing: 10,
    }];
    for (policy, _) in policies() {
        let choice = policy.select_repair_targets(&case.request(), &partial);
        let choice = choice.unwrap();
        assert_eq!(choice.chosen, [2]);
        assert_eq!(reason(&choice, 2), Reason::HasPart { missing: 10 });
        assert_eq!(reason(&choice, 3), Reason::OthersHavePart);
    }
}

#[test]
fn nothing_is_chosen_where_there_are_enough() {
    let case = Case::new(1, vec![sector(1, None, 10), sector(2, None, 10)]).held_by(&[1]);
    for (policy, _) in policies() {
        let choice = policy.select_targets(&case.request()).unwrap();
        assert!(choice.chosen.is_empty());
        assert_eq!(reason(&choice, 2), Reason::Enough);
        assert_eq!(policy.needs_rebalance(&case.request()).unwrap(), None);
    }
}

#[test]
fn a_draining_sector_is_emptied_once_there_is_another_copy() {
    let mut sectors = vec![sector(1, None, 10), sector(2, None, 10)];
    sectors[0].state = SectorState::Draining;
    let mut case = Case::new(1, sectors).held_by(&[1]);
    for (policy, _) in policies() {
        let step = policy.needs_rebalance(&case.request()).unwrap().unwrap();
        assert_eq!(
            step.to_string(),
            "add a copy to sector 2, then remove the one in sector 1: the sector is draining"
        );
    }
    case.sectors[1].free = 0;
    for (policy, _) in policies() {
        assert_eq!(policy.needs_rebalance(&case.request()).unwrap(), None);
    }
    case.holders.push(2);
    for (policy, _) in policies() {
        let step = policy.needs_rebalance(&case.request()).unwrap().unwrap();
        assert_eq!(
            step.to_string(),
            "remove the copy in sector 1: there are 2, more than wanted"
        );
    }
}

#[test]
fn of_two_draining_sectors_the_one_with_a_good_place_for_its_copy_is_emptied() {
    let draining = |number, rack| SectorFacts {
        state: SectorState::Draining,
        ..sector(number, Some(rack), 10)
    };
    let sectors = vec![draining(1, "b"), draining(2, "a"), sector(3, Some("a"), 10)];
    let case = Case::new(2, sectors).held_by(&[1, 2]);
    let step = RackAware::default().needs_rebalance(&case.request());
    let step = step.unwrap().unwrap();
    assert_eq!((step.add, step.remove), (Some(3), 2));
}

#[test]
fn every_sector_there_can_be() {
    let sectors = (0..=u16::MAX).map(|number| sector(number, None, u64::MAX));
    let case = Case::new(u8::MAX, sectors.collect());
    let choice = Random.select_targets(&case.request()).unwrap();
    assert_eq!(choice.chosen.len(), 255);
    assert_eq!(choice.verdicts.len(), 65_536);
}

#[test]
fn names_of_racks_are_checked() {
    assert!(Topology::new([(1, "a"), (2, "b")]).is_ok());
    for bad in ["", "a\0", &"x".repeat(65)] {
        let error = Topology::new([(1, bad)]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}

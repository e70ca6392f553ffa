//! [`RackAware`]: as many racks as possible.

use super::choose::{self, Preference};
use super::topology::{Rack, Topology};
use crate::port::{Placement, Reason, SectorFacts};

/// Spreads copies over racks as evenly as they allow: no rack gets a second copy while one that can
/// take a copy has none, nor a third while one has a single copy. So the numbers of copies in racks
/// that have room differ by one at most. Among sectors whose racks have as few, it draws as
/// [`Random`](super::Random) does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RackAware {
    topology: Topology,
}

impl RackAware {
    /// Goes by the racks of `topology`.
    #[must_use]
    pub fn new(topology: Topology) -> Self {
        Self { topology }
    }
}

impl Preference for RackAware {
    const NAME: &'static str = "rack_aware";

    fn rack<'a>(&'a self, sector: &'a SectorFacts) -> Rack<'a> {
        self.topology.rack(sector)
    }

    fn crowding(&self, copies: usize, _racks: usize) -> usize {
        copies
    }

    fn order(&self, sector: &SectorFacts, request: &Placement<'_>) -> (u64, u64) {
        (choose::draw(sector, request), 0)
    }

    fn chosen(&self, _sector: &SectorFacts, copies: usize, _racks: usize) -> Reason {
        Reason::FewestInRack { copies }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::super::tests::{Case, by_rack, key, reason, sector};
    use super::*;
    use crate::port::ReplicationPolicy;

    /// `counts[n]` sectors in rack `n`.
    fn racks(copies: u8, counts: &[u16]) -> Case {
        let racks = counts
            .iter()
            .enumerate()
            .flat_map(|(rack, &count)| (0..count).map(move |_| format!("r{rack}")));
        let sectors = (0..).zip(racks);
        let sectors = sectors.map(|(number, rack)| sector(number, Some(&rack), 1000));
        Case::new(copies, sectors.collect())
    }

    fn spread(case: &Case) -> BTreeMap<String, u64> {
        let choice = RackAware::default().select_targets(&case.request());
        let chosen: BTreeSet<u16> = choice.unwrap().chosen.into_iter().collect();
        by_rack(case, &chosen)
    }

    proptest! {
        #[test]
        fn racks_with_room_differ_by_one_at_most(
            counts in proptest::collection::vec(1..6_u16, 1..10),
            copies in 1..12_u8,
            seed: u64,
        ) {
            let mut case = racks(copies, &counts);
            prop_assume!(case.sectors.len() >= copies.into());
            case.seed = seed;
            let spread = spread(&case);
            prop_assert_eq!(spread.len(), counts.len().min(copies.into()));
            let most = spread.values().copied().max().unwrap_or(0);
            for (rack, &sectors) in counts.iter().enumerate() {
                let copies = spread.get(&format!("r{rack}")).copied().unwrap_or(0);
                prop_assert!(copies + 1 >= most || copies == u64::from(sectors));
            }
        }
    }

    #[test]
    fn racks_are_used_again_when_there_are_fewer_than_copies() {
        for number in 0..100 {
            let mut case = racks(5, &[4, 4]);
            case.key = key(number);
            let counts: BTreeSet<u64> = spread(&case).into_values().collect();
            assert_eq!(counts, BTreeSet::from([2, 3]));
        }
        assert_eq!(spread(&racks(3, &[7])), BTreeMap::from([("r0".into(), 3)]));
    }

    #[test]
    fn an_unknown_rack_is_one_of_its_own() {
        let mut case = racks(3, &[3]);
        case.sectors[1].labels.rack = None;
        case.sectors[2].labels.rack = None;
        assert_eq!(spread(&case).len(), 3);
    }

    #[test]
    fn racks_that_are_set_go_before_labels() {
        let case = racks(2, &[1, 1, 1]);
        let topology = Topology::new([(0, "r1"), (2, "r1")]).unwrap();
        let case = case.held_by(&[1]);
        let policy = RackAware::new(topology);
        let choice = policy.select_targets(&case.request()).unwrap();
        let reused = Reason::FewestInRack { copies: 1 };
        assert_eq!(reason(&choice, choice.chosen[0]), reused);
        let labels = RackAware::default().select_targets(&case.request());
        let labels = labels.unwrap();
        let first = Reason::FewestInRack { copies: 0 };
        assert_eq!(reason(&labels, labels.chosen[0]), first);
    }

    #[test]
    fn a_new_copy_is_put_where_the_others_are_not() {
        let case = racks(3, &[3, 3, 1]).held_by(&[0, 3]);
        let choice = RackAware::default().select_targets(&case.request());
        let choice = choice.unwrap();
        assert_eq!(choice.chosen, [6]);
        let lines = choice.to_string();
        assert!(lines.contains("sector 6: chosen, its rack has no copy yet\n"));
        assert!(lines.contains("sector 1: left out, its rack has a copy already\n"));
    }

    #[test]
    fn racks_are_drawn_by_the_space_of_their_sectors() {
        let mut case = racks(1, &[1, 3]);
        let mut single = 0;
        for number in 0..10_000 {
            case.key = key(number);
            single += u32::from(spread(&case).contains_key("r0"));
        }
        // A quarter; four standard deviations are 173.
        assert!(single.abs_diff(2500) < 173, "{single}");
    }

    #[test]
    fn a_copy_moves_to_a_rack_that_has_none() {
        let case = racks(2, &[2, 1]).held_by(&[0, 1]);
        let step = RackAware::default().needs_rebalance(&case.request());
        let step = step.unwrap().unwrap();
        assert_eq!(step.add, Some(2));
        assert!(
            step.to_string()
                .ends_with(": its rack has more copies than it need have")
        );
        let moved = racks(2, &[2, 1]).held_by(&[1, 2]);
        let none = RackAware::default().needs_rebalance(&moved.request());
        assert_eq!(none.unwrap(), None);
    }
}

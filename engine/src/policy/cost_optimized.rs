//! [`CostOptimized`]: the cheapest sectors, in as many racks as are called for.

use std::collections::BTreeMap;

use super::choose::{self, Preference};
use super::topology::{Rack, Topology};
use crate::port::{Placement, PolicyError, Price, Reason, SectorFacts};

/// How often a stored byte is expected to be read and written, per month. The default: read once,
/// written once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    reads: f64,
    writes: f64,
}

impl Usage {
    /// What is stored for a year and never changed is written 1/12 times a month.
    ///
    /// # Errors
    /// [`PolicyError::InvalidArgument`] if one is negative, infinite or NaN.
    pub fn new(reads: f64, writes: f64) -> Result<Self, PolicyError> {
        for (what, times) in [("reads", reads), ("writes", writes)] {
            if !(times.is_finite() && times >= 0.0) {
                return Err(PolicyError::invalid(format!(
                    "{times} {what} per month, must be finite and not negative"
                )));
            }
        }
        Ok(Self { reads, writes })
    }
}

impl Default for Usage {
    fn default() -> Self {
        Self {
            reads: 1.0,
            writes: 1.0,
        }
    }
}

/// Takes the cheapest sectors, but not fewer racks than `racks_min` if there are as many that can take
/// a copy.
///
/// A sector costs its price of storage, and those of reading and writing as often as is expected. One
/// without a price is dearer than any that has one. Of those that cost the same the one with the most
/// free space is taken; of the same free space, the one with the highest hash of key and sector; then
/// the lowest number. The seed decides nothing. The default wants one rack, and goes by labels.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CostOptimized {
    racks_min: u8,
    topology: Topology,
    prices: BTreeMap<u16, Price>,
    usage: Usage,
}

impl CostOptimized {
    /// Copies are to be in `racks_min` racks at least, or in as many as there are copies, if that is
    /// fewer.
    #[must_use]
    pub fn new(racks_min: u8) -> Self {
        Self {
            racks_min,
            ..Self::default()
        }
    }

    /// Goes by the racks of `topology`.
    #[must_use]
    pub fn topology(mut self, topology: Topology) -> Self {
        self.topology = topology;
        self
    }

    /// Sectors, by their numbers, have these prices, whatever their labels say.
    #[must_use]
    pub fn prices(mut self, prices: impl IntoIterator<Item = (u16, Price)>) -> Self {
        self.prices = prices.into_iter().collect();
        self
    }

    /// How often stored bytes are read and written.
    #[must_use]
    pub fn usage(mut self, usage: Usage) -> Self {
        self.usage = usage;
        self
    }

    /// Whether a rack that has `copies` is one more that is called for, when `racks` have some.
    fn adds_rack(&self, copies: usize, racks: usize) -> bool {
        copies == 0 && racks < usize::from(self.racks_min)
    }
}

impl Preference for CostOptimized {
    const NAME: &'static str = "cost_optimized";

    fn rack<'a>(&'a self, sector: &'a SectorFacts) -> Rack<'a> {
        self.topology.rack(sector)
    }

    fn crowding(&self, copies: usize, racks: usize) -> usize {
        usize::from(!self.adds_rack(copies, racks))
    }

    fn cost(&self, sector: &SectorFacts) -> Option<f64> {
        let price = self.prices.get(&sector.number).copied();
        let price = price.or(sector.labels.price)?;
        let Usage { reads, writes } = self.usage;
        let cost = price.storage() + reads * price.read() + writes * price.write();
        Some(cost.min(f64::MAX))
    }

    fn order(&self, sector: &SectorFacts, request: &Placement<'_>) -> (u64, u64) {
        let hash = choose::rendezvous(request.key, sector.number, 0);
        (u64::MAX - sector.free, u64::MAX - hash)
    }

    fn chosen(&self, sector: &SectorFacts, copies: usize, racks: usize) -> Reason {
        let cost = self.cost(sector);
        if self.adds_rack(copies, racks) {
            Reason::AddsRack { cost }
        } else {
            Reason::Cheapest { cost }
        }
    }

    fn passed_over(&self, sector: &SectorFacts, chosen: &SectorFacts) -> Reason {
        if sector.free < chosen.free {
            Reason::LessFree { free: sector.free }
        } else {
            Reason::NotDrawn
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Case, key, reason, sector};
    use super::*;
    use crate::port::ReplicationPolicy;

    fn price(storage: f64, read: f64, write: f64) -> Price {
        Price::new(storage, read, write).unwrap()
    }

    fn priced(number: u16, rack: &str, storage: f64, free: u64) -> SectorFacts {
        let mut sector = sector(number, Some(rack), free);
        sector.labels.price = Some(price(storage, 0.0, 0.0));
        sector
    }

    fn chosen(policy: &CostOptimized, case: &Case) -> Vec<u16> {
        policy.select_targets(&case.request()).unwrap().chosen
    }

    #[test]
    fn the_cheapest_are_taken_from_as_many_racks_as_are_called_for() {
        let sectors = vec![
            priced(1, "a", 1.0, 100),
            priced(2, "a", 2.0, 100),
            priced(3, "a", 3.0, 100),
            priced(4, "b", 8.0, 100),
            priced(5, "c", 9.0, 100),
        ];
        let case = Case::new(3, sectors);
        assert_eq!(chosen(&CostOptimized::default(), &case), [1, 2, 3]);
        assert_eq!(chosen(&CostOptimized::new(1), &case), [1, 2, 3]);
        assert_eq!(chosen(&CostOptimized::new(2), &case), [1, 4, 2]);
        assert_eq!(chosen(&CostOptimized::new(3), &case), [1, 4, 5]);
        // There are no more racks, and no more copies.
        assert_eq!(chosen(&CostOptimized::new(200), &case), [1, 4, 5]);
        let choice = CostOptimized::new(2).select_targets(&case.request());
        assert_eq!(
            choice.unwrap().to_string(),
            "sector 1: chosen, cheapest of the racks that have no copy: 1 per GiB and month\n\
             sector 2: chosen, cheapest: 2 per GiB and month\n\
             sector 3: left out, dearer: 3 per GiB and month\n\
             sector 4: chosen, cheapest of the racks that have no copy: 8 per GiB and month\n\
             sector 5: left out, dearer: 9 per GiB and month\n"
        );
    }

    #[test]
    fn fewer_racks_than_are_called_for_do_not_stop_it() {
        let case = Case::new(2, vec![priced(1, "a", 2.0, 100), priced(2, "a", 1.0, 100)]);
        assert_eq!(chosen(&CostOptimized::new(2), &case), [2, 1]);
    }

    #[test]
    fn reads_and_writes_cost_as_often_as_they_are_expected() {
        let mut sectors = vec![sector(1, None, 100), sector(2, None, 100)];
        sectors[0].labels.price = Some(price(1.0, 2.0, 0.0));
        sectors[1].labels.price = Some(price(2.0, 0.0, 4.0));
        let case = Case::new(1, sectors);
        let of = |reads, writes| {
            let usage = Usage::new(reads, writes).unwrap();
            chosen(&CostOptimized::default().usage(usage), &case)
        };
        assert_eq!(of(0.0, 0.0), [1]);
        assert_eq!(of(1.0, 0.0), [2]);
        assert_eq!(of(1.0, 1.0), [1]);
    }

    #[test]
    fn usage_is_checked() {
        for bad in [f64::NAN, f64::INFINITY, -1.0] {
            assert!(Usage::new(bad, 0.0).is_err() && Usage::new(0.0, bad).is_err());
        }
        // A cost may be beyond what can be counted, and is still one.
        let case = Case::new(1, vec![priced(1, "a", f64::MAX, 1), sector(2, None, 100)]);
        let mut dear = case.clone();
        dear.sectors[0].labels.price = Some(price(f64::MAX, f64::MAX, f64::MAX));
        let usage = Usage::new(f64::MAX, f64::MAX).unwrap();
        let policy = CostOptimized::default().usage(usage);
        assert_eq!(chosen(&policy, &case), [1]);
        assert_eq!(chosen(&policy, &dear), [1]);
    }

    #[test]
    fn what_has_no_price_comes_last() {
        let sectors = vec![sector(1, Some("a"), 100), priced(2, "b", 1e9, 1)];
        let case = Case::new(1, sectors);
        let choice = CostOptimized::default().select_targets(&case.request());
        let choice = choice.unwrap();
        assert_eq!(choice.chosen, [2]);
        assert_eq!(reason(&choice, 1), Reason::Dearer { cost: None });
        let set = CostOptimized::default().prices([(1, price(1.0, 1.0, 1.0))]);
        assert_eq!(chosen(&set, &case), [1]);
    }

    #[test]
    fn of_the_same_price_the_one_with_more_space_is_taken() {
        let sectors = vec![
            priced(1, "a", 1.0, 100),
            priced(2, "b", 1.0, u64::MAX),
            priced(3, "c", 1.0, 101),
        ];
        let case = Case::new(2, sectors);
        let choice = CostOptimized::default().select_targets(&case.request());
        let choice = choice.unwrap();
        assert_eq!(choice.chosen, [2, 3]);
        assert_eq!(reason(&choice, 1), Reason::LessFree { free: 100 });
    }

    #[test]
    fn of_the_same_space_it_is_for_key_and_sector_to_decide() {
        let sectors = |numbers: std::ops::RangeInclusive<u16>| {
            numbers.map(|it| priced(it, "a", 1.0, 100)).collect()
        };
        let policy = CostOptimized::default();
        let (mut four, mut three) = (Case::new(1, sectors(1..=4)), Case::new(1, sectors(1..=3)));
        let mut seen = [0_u32; 4];
        for number in 0..1000 {
            (four.key, three.key) = (key(number), key(number));
            let [sector] = chosen(&policy, &four)[..] else {
                panic!("one copy")
            };
            seen[usize::from(sector) - 1] += 1;
            if sector != 4 {
                assert_eq!(chosen(&policy, &three), [sector]);
            }
            four.seed += 1;
            assert_eq!(chosen(&policy, &four), [sector]);
        }
        // A quarter each; four standard deviations are 55.
        assert!(seen.iter().all(|seen| seen.abs_diff(250) < 55), "{seen:?}");
    }

    #[test]
    fn a_copy_moves_to_where_it_is_cheaper_but_not_for_more_space() {
        let sectors = vec![
            priced(1, "a", 1.0, 1),
            priced(2, "b", 3.0, 100),
            priced(3, "a", 1.0, 100),
            priced(4, "b", 2.0, 100),
        ];
        let case = Case::new(2, sectors);
        let policy = CostOptimized::new(2);
        let case = case.held_by(&[1, 2]);
        let step = policy.needs_rebalance(&case.request()).unwrap().unwrap();
        assert_eq!(
            step.to_string(),
            "add a copy to sector 4, then remove the one in sector 2: it is dearer: \
             3 per GiB and month, then 2 per GiB and month"
        );
        let case = case.held_by(&[1, 4]);
        assert_eq!(policy.needs_rebalance(&case.request()).unwrap(), None);
        let anywhere = CostOptimized::default();
        let step = anywhere.needs_rebalance(&case.request()).unwrap().unwrap();
        assert_eq!((step.add, step.remove), (Some(3), 4));
    }

    #[test]
    fn of_too_many_copies_one_that_no_rack_needs_is_removed() {
        let unpriced = |number, rack| sector(number, Some(rack), 100);
        let sectors = vec![unpriced(1, "a"), priced(2, "a", 1.0, 100), unpriced(3, "b")];
        let case = Case::new(2, sectors).held_by(&[1, 2, 3]);
        for number in 0..20 {
            let case = Case {
                key: key(number),
                ..case.clone()
            };
            let step = CostOptimized::new(2).needs_rebalance(&case.request());
            assert_eq!(step.unwrap().unwrap().remove, 1);
        }
    }

    #[test]
    fn racks_that_are_set_go_before_labels() {
        let sectors = vec![
            priced(1, "a", 1.0, 100),
            priced(2, "b", 2.0, 100),
            priced(3, "c", 3.0, 100),
        ];
        let case = Case::new(2, sectors);
        let topology = Topology::new([(2, "a")]).unwrap();
        assert_eq!(chosen(&CostOptimized::new(2), &case), [1, 2]);
        let policy = CostOptimized::new(2).topology(topology);
        assert_eq!(chosen(&policy, &case), [1, 3]);
    }
}

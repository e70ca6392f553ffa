//! [`Random`]: by chance, in proportion to free space.

use super::choose::{self, Preference};
use super::topology::Rack;
use crate::port::{Placement, Reason, SectorFacts};

/// Draws sectors one after another, none twice, each with a chance in proportion to its free space, so
/// that sectors fill up together. Racks and prices are nothing to it.
///
/// The draw is decided by a hash of seed, key and sector, after Efraimidis and Spirakis, "Weighted
/// random sampling with a reservoir" (2006). No place is better than another once it is drawn: a
/// rebalance removes what is too many and empties draining sectors, and that is all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Random;

impl Preference for Random {
    const NAME: &'static str = "random";

    fn rack<'a>(&'a self, sector: &'a SectorFacts) -> Rack<'a> {
        Rack::OwnOf(sector.number)
    }

    fn crowding(&self, _copies: usize, _racks: usize) -> usize {
        0
    }

    fn order(&self, sector: &SectorFacts, request: &Placement<'_>) -> (u64, u64) {
        (choose::draw(sector, request), 0)
    }

    fn chosen(&self, sector: &SectorFacts, _copies: usize, _racks: usize) -> Reason {
        Reason::Drawn { free: sector.free }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::tests::{Case, key, sector};
    use super::*;
    use crate::port::ReplicationPolicy;

    const DRAWS: u32 = 40_000;

    /// Critical values of chi-square at a probability of 0.001, by degrees of freedom.
    const CRITICAL_3: f64 = 16.266;
    const CRITICAL_9: f64 = 27.877;
    const CRITICAL_11: f64 = 31.264;

    fn chosen(case: &Case) -> Vec<u16> {
        Random.select_targets(&case.request()).unwrap().chosen
    }

    /// Sectors from 1 on with so much free space.
    fn with_free(copies: u8, free: &[u64]) -> Case {
        let sectors = (1..).zip(free);
        Case::new(
            copies,
            sectors.map(|(it, &free)| sector(it, None, free)).collect(),
        )
    }

    /// How far what was drawn is from what was to be expected. `draw` draws the n-th time.
    fn chi_square(
        expected: impl IntoIterator<Item = (Vec<u16>, f64)>,
        mut draw: impl FnMut(u32) -> Vec<u16>,
    ) -> f64 {
        let mut seen: BTreeMap<Vec<u16>, u32> = BTreeMap::new();
        for number in 0..DRAWS {
            *seen.entry(draw(number)).or_default() += 1;
        }
        let distance = expected.into_iter().map(|(outcome, probability)| {
            let expected = probability * f64::from(DRAWS);
            let seen = seen.remove(&outcome).unwrap_or(0);
            (f64::from(seen) - expected).powi(2) / expected
        });
        let distance = distance.sum();
        assert!(seen.is_empty(), "not to be expected: {seen:?}");
        distance
    }

    #[test]
    fn equal_sectors_are_drawn_equally_often() {
        let mut case = with_free(1, &[1 << 40; 10]);
        let distance = chi_square((1..=10).map(|it| (vec![it], 0.1)), |number| {
            case.key = key(number);
            chosen(&case)
        });
        assert!(distance < CRITICAL_9, "{distance}");
    }

    #[test]
    fn sectors_are_drawn_in_proportion_to_free_space() {
        let free = [1 << 30, 2 << 30, 3 << 30, 4 << 30];
        let expected = || (1..=4).map(|it| (vec![it], f64::from(it) / 10.0));
        let mut case = with_free(1, &free);
        let by_key = chi_square(expected(), |number| {
            case.key = key(number);
            chosen(&case)
        });
        assert!(by_key < CRITICAL_3, "{by_key}");
        let by_seed = chi_square(expected(), |number| {
            case.seed = number.into();
            chosen(&case)
        });
        assert!(by_seed < CRITICAL_3, "{by_seed}");
    }

    #[test]
    fn the_second_is_drawn_from_those_that_are_left() {
        let mut case = with_free(2, &[10, 20, 30, 40]);
        let weight = |sector: u16| f64::from(sector) / 10.0;
        let pairs = (1..=4).flat_map(|first| (1..=4).map(move |second| (first, second)));
        let expected = pairs
            .filter(|(first, second)| first != second)
            .map(|(first, second)| {
                let probability = weight(first) * weight(second) / (1.0 - weight(first));
                (vec![first, second], probability)
            });
        let distance = chi_square(expected, |number| {
            case.key = key(number);
            chosen(&case)
        });
        assert!(distance < CRITICAL_11, "{distance}");
    }

    #[test]
    fn the_test_sees_a_wrong_weight() {
        let mut case = with_free(1, &[10, 20, 30, 42]);
        let expected = (1..=4).map(|it| (vec![it], f64::from(it) / 10.0));
        let distance = chi_square(expected, |number| {
            case.key = key(number);
            chosen(&case)
        });
        assert!(distance > CRITICAL_3, "{distance}");
    }

    #[test]
    fn a_sector_that_goes_moves_only_what_it_had() {
        let full = with_free(2, &[10, 20, 30, 40]);
        let mut without = full.clone();
        without.sectors.pop();
        for number in 0..1000 {
            let key = key(number);
            let before = chosen(&Case {
                key: key.clone(),
                ..full.clone()
            });
            let after = chosen(&Case {
                key,
                ..without.clone()
            });
            let kept: Vec<u16> = before.into_iter().filter(|&it| it != 4).collect();
            assert_eq!(kept, after[..kept.len()]);
        }
    }

    #[test]
    fn what_has_no_free_space_comes_last() {
        let mut case = with_free(2, &[0, u64::MAX, 1 << 40]);
        case.needed = 0;
        for number in 0..1000 {
            case.key = key(number);
            assert!(!chosen(&case).contains(&1));
        }
        case.copies = 3;
        assert_eq!(chosen(&case)[2], 1);
    }

    #[test]
    fn choices_are_explained() {
        let case = with_free(1, &[10, 0, 10]);
        let choice = Random.select_targets(&case.request()).unwrap();
        let (drawn, other) = match choice.chosen[..] {
            [1] => (1, 3),
            _ => (3, 1),
        };
        let text = choice.to_string();
        assert!(text.contains(&format!(
            "sector {drawn}: chosen, drawn by its 10 bytes of free space\n"
        )));
        assert!(text.contains(&format!("sector {other}: left out, others were drawn\n")));
    }
}

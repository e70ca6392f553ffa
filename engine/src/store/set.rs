//! [`SectorSet`]: some of a store's sectors.

use std::fmt;

use super::catalog::SECTORS_MAX;

/// Some of a store's sectors, by number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SectorSet(u64);

// A bit for each.
const _: () = assert!(SECTORS_MAX <= 64);

impl SectorSet {
    /// None of them.
    pub const NONE: Self = Self(0);

    /// One of them.
    pub fn one(number: usize) -> Self {
        Self(1 << number)
    }

    /// A bit for each, the lowest for number 0.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Those of which it has the bits.
    pub fn of_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Whether it has this one.
    pub fn contains(self, number: usize) -> bool {
        self.0 & 1 << number != 0
    }

    /// Those that either has.
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those that both have.
    pub fn within(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those that the other has not.
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether the other has all of them.
    pub fn is_within(self, other: Self) -> bool {
        self.without(other).is_empty()
    }

    /// Whether both have one.
    pub fn meets(self, other: Self) -> bool {
        !self.within(other).is_empty()
    }

    /// Whether it has none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many it has.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// The lowest of them.
    pub fn first(self) -> Option<usize> {
        (!self.is_empty()).then_some(self.0.trailing_zeros() as usize)
    }

    /// The one it has, if that is all.
    pub fn only(self) -> Option<usize> {
        self.first().filter(|_| self.len() == 1)
    }

    /// Their numbers, ascending.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut left = self;
        std::iter::from_fn(move || {
            let first = left.first()?;
            left = left.without(Self::one(first));
            Some(first)
        })
    }
}

impl FromIterator<usize> for SectorSet {
    fn from_iter<I: IntoIterator<Item = usize>>(numbers: I) -> Self {
        let sets = numbers.into_iter().map(Self::one);
        sets.fold(Self::NONE, Self::and)
    }
}

impl fmt::Debug for SectorSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(numbers: &[usize]) -> SectorSet {
        numbers.iter().copied().collect()
    }

    #[test]
    fn sets_are_sets() {
        let some = set(&[63, 0, 5, 5]);
        assert_eq!(some.len(), 3);
        assert_eq!(some.first(), Some(0));
        assert_eq!(some.iter().collect::<Vec<_>>(), [0, 5, 63]);
        assert_eq!(some.without(set(&[0, 1])), set(&[5, 63]));
        assert_eq!(some.within(set(&[0, 1])), set(&[0]));
        assert_eq!(some.and(set(&[1])), set(&[0, 1, 5, 63]));
        assert!(some.contains(63) && !some.contains(62));
        assert!(set(&[5]).is_within(some) && !set(&[5, 6]).is_within(some));
        assert!(set(&[5, 6]).meets(some) && !set(&[6]).meets(some));
        assert!(SectorSet::NONE.is_within(some) && !SectorSet::NONE.meets(some));
        assert_eq!(SectorSet::NONE.first(), None);
        assert_eq!(set(&[5]).only(), Some(5));
        assert_eq!((SectorSet::NONE.only(), some.only()), (None, None));
        assert_eq!(format!("{some:?}"), "{0, 5, 63}");
    }
}

//! A small source of numbers: the same seed, or the same bytes, and the same test, on every machine.

use std::sync::Arc;

/// Splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
#[derive(Debug, Clone)]
pub struct Random {
    state: u64,
    /// Bytes that the numbers are made of as long as there are any, and how many were.
    given: Option<(Arc<[u8]>, usize)>,
}

impl Random {
    /// The numbers of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            state: seed,
            given: None,
        }
    }

    /// The numbers that some bytes make, in their order, for a fuzzer to choose; after those, the
    /// numbers of seed 0.
    #[must_use]
    pub fn given(bytes: &[u8]) -> Self {
        Self {
            state: 0,
            given: Some((bytes.into(), 0)),
        }
    }

    /// Whether the bytes it was given are used up; of a seed there is no end.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        let Some((bytes, used)) = &self.given else {
            return false;
        };
        *used >= bytes.len()
    }

    /// The next so many given bytes as a number, if there is one left.
    fn take(&mut self, count: usize) -> Option<u64> {
        let (bytes, used) = self.given.as_mut()?;
        let end = bytes.len().min(*used + count);
        let taken = &bytes[*used..end];
        *used = end;
        let number = taken
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte));
        (!taken.is_empty()).then_some(number)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        match self.take(8) {
            Some(number) => number,
            None => self.mix(),
        }
    }

    fn mix(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number less than `end`, which is not 0.
    ///
    /// # Panics
    /// Never, on machines whose `usize` has 64 bits.
    pub fn below(&mut self, end: usize) -> usize {
        // Few bytes for few choices: so a fuzzer changes one choice at a time.
        let bits = usize::BITS - end.leading_zeros();
        let number = match self.take(bits.div_ceil(8) as usize) {
            Some(number) => number,
            None => self.mix(),
        };
        usize::try_from(number % end as u64).expect("less than a usize")
    }

    /// A number from 0 up to `most`, small ones as likely as large ones: each number of bits has
    /// the same share.
    ///
    /// # Panics
    /// Never, on machines whose `usize` has 64 bits.
    pub fn up_to(&mut self, most: usize) -> usize {
        let bits = usize::BITS - most.leading_zeros();
        let bits = u32::try_from(self.below(bits as usize + 1)).expect("few bits");
        self.below((1 << bits).min(most + 1))
    }

    /// `length` bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.number().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }

    /// One of `items`, of which there are some.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// A size from `least` to `most`, small ones as likely as large ones.
    pub fn size(&mut self, least: usize, most: usize) -> usize {
        let doublings = (most / least.max(1)).max(1).ilog2() as usize + 1;
        let limit = least.max(1) << (1 + self.below(doublings)).min(40);
        least + self.below(limit.clamp(least + 1, most + 1) - least)
    }
}

//! A small seeded source of numbers: the same seed, the same test, on every machine.

/// Splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The numbers of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number less than `end`, which is not 0.
    ///
    /// # Panics
    /// Never, on machines whose `usize` has 64 bits.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.number() % end as u64).expect("less than a usize")
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

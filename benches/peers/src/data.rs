//! Blobs to store: keys in order, payloads that do not compress, orders in which they are read.

use std::ops::RangeInclusive;
use std::sync::OnceLock;

use anyhow::{Result, ensure};
use bytes::Bytes;

/// One kibibyte, in bytes.
pub const KIB: usize = 1 << 10;
/// One mebibyte, in bytes.
pub const MIB: usize = 1 << 20;

/// A blob that is put, or that is expected to be read back.
#[derive(Debug, Clone)]
pub struct Blob {
    /// Its key: `folder/name`, sorting as its number does.
    pub key: String,
    /// Its bytes.
    pub payload: Bytes,
    number: usize,
}

impl Blob {
    /// Whether these are its bytes. Looks at one byte of each page, so that a map of memory has to
    /// bring all of them, and at all of both ends.
    pub fn is_read_as(&self, bytes: &[u8]) -> bool {
        is_same(&self.payload, bytes)
    }

    /// The same key, with other bytes for each version: a store may see that bytes have not changed, and write nothing
    /// (SQLite does).
    pub fn version(&self, version: usize) -> Self {
        // Prime, and larger than any number of blobs here.
        const STRIDE: usize = 1_000_003;
        Self {
            key: self.key.clone(),
            payload: payload(self.number + version * STRIDE, self.payload.len()),
            number: self.number,
        }
    }
}

/// Whether `bytes` are those `expected`, as far as a glance at every page tells.
pub fn is_same(expected: &[u8], bytes: &[u8]) -> bool {
    const PAGE: usize = 4 * KIB;
    const END: usize = 16;
    let end = expected.len().min(END);
    expected.len() == bytes.len()
        && expected[..end] == bytes[..end]
        && expected[expected.len() - end..] == bytes[bytes.len() - end..]
        && expected.iter().step_by(PAGE).eq(bytes.iter().step_by(PAGE))
}

/// The blobs with numbers below `count`, all of `size` bytes.
pub fn blobs(count: usize, size: usize) -> Vec<Blob> {
    (0..count).map(|number| blob(number, size)).collect()
}

/// The blobs with numbers below `count`, whose sizes go round in `sizes`.
pub fn blobs_of_sizes(count: usize, sizes: &RangeInclusive<usize>) -> Vec<Blob> {
    let kinds = sizes.end() - sizes.start() + 1;
    // 7919 is prime: neighbours differ, and every size comes up.
    (0..count)
        .map(|number| blob(number, sizes.start() + number * 7919 % kinds))
        .collect()
}

fn blob(number: usize, size: usize) -> Blob {
    Blob {
        key: format!("folder-{:03}/blob-{number:09}", number / 1000),
        payload: payload(number, size),
        number,
    }
}

/// A piece of one run of random bytes, another one for each of many numbers: no memory for each blob, and nothing
/// that a device or a file system could fold into one.
fn payload(number: usize, size: usize) -> Bytes {
    const LENGTH: usize = 24 * MIB;
    static RANDOM: OnceLock<Bytes> = OnceLock::new();
    let random = RANDOM.get_or_init(|| {
        let mut random = Random::new(1);
        let words = std::iter::repeat_with(|| random.next().to_le_bytes());
        words.flatten().take(LENGTH).collect()
    });
    // 4,160 = 64 * 65: cache lines are whole, and pages of different blobs differ.
    let start = number * 4160 % (LENGTH - size);
    random.slice(start..start + size)
}

/// Marsaglia's xorshift64.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// The next number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap_or(0)
    }
}

/// The numbers below `count` in an order that `seed` decides, each once: what was read already is in caches.
pub fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..count).collect();
    let mut random = Random::new(seed);
    for last in (1..count).rev() {
        numbers.swap(last, random.below(last + 1));
    }
    numbers
}

/// Fails if a blob was not read back as it was put.
pub fn expect_same(key: &str, is_same: bool) -> Result<()> {
    ensure!(is_same, "{key} was read back as other bytes than were put");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shuffle_has_each_number_once_and_another_order_per_seed() {
        let mut one = shuffled(100, 1);
        assert_ne!(one, shuffled(100, 2));
        one.sort_unstable();
        assert_eq!(one, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn versions_of_a_blob_differ_in_their_bytes_alone() {
        let blob = &blobs(2, 4 * KIB)[1];
        let versions: Vec<Blob> = (0..10).map(|version| blob.version(version)).collect();
        assert_eq!(versions[0].payload, blob.payload);
        for (number, version) in versions.iter().enumerate() {
            assert_eq!(version.key, blob.key);
            let others = &versions[..number];
            assert!(others.iter().all(|other| other.payload != version.payload));
        }
    }

    #[test]
    fn a_blob_is_told_from_another_and_from_a_part_of_itself() {
        let [one, other] = &blobs(2, 10 * KIB)[..] else {
            unreachable!("two were asked for")
        };
        assert!(one.is_read_as(&one.payload));
        assert!(!one.is_read_as(&other.payload));
        assert!(!one.is_read_as(&one.payload[1..]));
    }

    #[test]
    fn sizes_stay_within_their_range_and_reach_its_ends() {
        let sizes: Vec<usize> = blobs_of_sizes(2000, &(100..=1000))
            .iter()
            .map(|blob| blob.payload.len())
            .collect();
        assert_eq!(sizes.iter().min(), Some(&100));
        assert_eq!(sizes.iter().max(), Some(&1000));
    }
}

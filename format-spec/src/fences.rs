//! Where to begin the search for a key in an image: the first bytes of the first key of each group, next to each other
//! in memory, so that halving them misses the processor's cache less often than halving the groups does. They are made
//! when an image is prepared for lookups, and are no part of the format.

use std::ops::Range;

/// Bytes of a key that a fence has.
const LENGTH: usize = size_of::<u128>();

/// One fence per group. None, if the first keys could not be read: then all groups are searched.
#[derive(Debug, Default)]
pub struct Fences {
    /// What all first keys begin with, which no fence repeats.
    shared: Vec<u8>,
    /// The next bytes of each, zeros behind its end, as one number.
    fences: Vec<u128>,
}

impl Fences {
    /// Those of groups whose first keys these are. `None` of one: it could not be read.
    pub fn new<'a>(groups: usize, key: impl Fn(usize) -> Option<&'a [u8]>) -> Self {
        Self::try_new(groups, key).unwrap_or_default()
    }

    fn try_new<'a>(groups: usize, key: impl Fn(usize) -> Option<&'a [u8]>) -> Option<Self> {
        let (first, last) = (key(0)?, key(groups.checked_sub(1)?)?);
        let length = first.iter().zip(last).take_while(|(a, b)| a == b).count();
        let shared = first[..length].to_vec();
        let mut fences = Vec::with_capacity(groups);
        for group in 0..groups {
            fences.push(fence(rest(key(group)?, &shared)?));
        }
        Some(Self { shared, fences })
    }

    /// Bytes of memory that they take.
    pub fn memory(&self) -> usize {
        self.shared.capacity() + self.fences.capacity() * LENGTH
    }

    /// Of `groups` groups, whose first keys ascend, those among which the last is whose first key is not greater than
    /// `key`, or the first if there is none.
    pub fn candidates(&self, groups: usize, key: &[u8]) -> Range<usize> {
        if self.fences.len() != groups {
            return 0..groups;
        }
        let Some(rest) = rest(key, &self.shared) else {
            // All first keys are greater, or none is.
            return match key < self.shared.as_slice() {
                true => 0..groups.min(1),
                false => groups.saturating_sub(1)..groups,
            };
        };
        let wanted = fence(rest);
        let less = self.fences.partition_point(|fence| *fence < wanted);
        let alike = self.fences[less..].partition_point(|fence| *fence == wanted);
        let first = less.saturating_sub(1);
        first..(less + alike).max(first + 1)
    }
}

/// What a key has behind what all have. If that is nothing, it is not compared: an empty vector's bytes are nowhere, and
/// a load from there, of which the processor masks all, takes it 0.1 µs.
fn rest<'a>(key: &'a [u8], shared: &[u8]) -> Option<&'a [u8]> {
    match shared.is_empty() {
        true => Some(key),
        false => key.strip_prefix(shared),
    }
}

fn fence(key: &[u8]) -> u128 {
    let mut bytes = [0; LENGTH];
    let length = key.len().min(LENGTH);
    bytes[..length].copy_from_slice(&key[..length]);
    u128::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fences leave to be searched has the group that a search of all finds.
    #[test]
    fn the_group_is_among_the_candidates() {
        let long = |tail: &str| format!("shared/{}{tail}", "0".repeat(20)).into_bytes();
        let sets: [Vec<Vec<u8>>; 5] = [
            vec![],
            vec![b"one".to_vec()],
            (0..200_u32)
                .map(|n| format!("shared/{n:03}").into_bytes())
                .collect(),
            // Alike in all that a fence has.
            ["a", "b", "bb", "c"].map(long).to_vec(),
            vec![vec![7], vec![7, 0], vec![7, 0, 0], vec![7, 0, 1], vec![8]],
        ];
        for keys in sets {
            let fences = Fences::new(keys.len(), |group| keys.get(group).map(Vec::as_slice));
            assert_eq!(fences.fences.len(), keys.len());
            let near = keys.iter().flat_map(|key| {
                let longer = [key, &[0][..]].concat();
                let shorter = key[..key.len() - 1].to_vec();
                let greater = [&shorter, &[0xff][..]].concat();
                [key.clone(), longer, shorter, greater]
            });
            for wanted in near.chain([vec![], vec![0], vec![0xff; 40], b"shared".to_vec()]) {
                let after = keys.partition_point(|key| *key <= wanted);
                let last = after.saturating_sub(1);
                let found = fences.candidates(keys.len(), &wanted);
                assert!(
                    found.contains(&last) || keys.is_empty(),
                    "{wanted:?}: {found:?}, not {last}"
                );
            }
        }
    }

    #[test]
    fn without_a_key_everything_is_searched() {
        let keys = [b"a", b"b", b"c"];
        let fences = Fences::new(3, |group| (group != 1).then(|| &keys[group][..]));
        assert_eq!(fences.candidates(3, b"c"), 0..3);
        assert_eq!(fences.memory(), 0);
    }
}

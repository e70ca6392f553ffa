//! A map of what changed, in the order of the keys: leaves of some keys each, side by side, in a tree. Keys that come
//! in order fill leaves to the end, and those above all others go to the last leaf, which is not in the tree until it is
//! full, and so need no search; a walk reads memory from front to back. Short keys lie in the leaves themselves.

use std::collections::{BTreeMap, btree_map};
use std::iter::once;
use std::ops::Bound;
use std::{mem, slice};

use smallvec::SmallVec;

/// A stored key, here if it is short.
type Key = SmallVec<[u8; 39]>;

/// Keys of a leaf at most: so many are moved when one comes between them.
const LEAF: usize = 32;

/// A map out of which nothing is taken.
#[derive(Debug, Clone)]
pub struct Delta<V> {
    /// All leaves but the last, each by its bound: its keys are not below that, and below the next leaf's. The first
    /// bound is the empty key.
    leaves: BTreeMap<Key, Leaf<V>>,
    last: Leaf<V>,
    /// The bound of the last.
    bound: Key,
    len: usize,
}

/// Keys that ascend, and what is said of each.
#[derive(Debug, Clone)]
struct Leaf<V> {
    keys: Vec<Key>,
    values: Vec<V>,
}

impl<V> Default for Delta<V> {
    fn default() -> Self {
        Self {
            leaves: BTreeMap::new(),
            last: Leaf::with_capacity(0),
            bound: Key::new(),
            len: 0,
        }
    }
}

impl<V> Delta<V> {
    /// How many keys it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// What it says of a key.
    pub fn get(&self, key: &[u8]) -> Option<&V> {
        let leaf = self.leaf(key);
        Some(&leaf.values[leaf.search(key).ok()?])
    }

    /// Says something of a key, if nothing is said of it yet; else `change` makes of what is said what is to be.
    pub fn say<T>(
        &mut self,
        key: &[u8],
        value: V,
        change: impl FnOnce(&mut V, V) -> T,
    ) -> Option<T> {
        let is_in_last = self.is_in_last(key);
        let leaf = self.leaf_mut(key);
        let at = match leaf.search(key) {
            Ok(at) => return Some(change(&mut leaf.values[at], value)),
            Err(at) => at,
        };
        if leaf.keys.len() < LEAF {
            leaf.insert(at, key, value);
        } else {
            let mut upper = match at {
                LEAF => Leaf::with_capacity(if is_in_last { LEAF } else { 0 }),
                _ => leaf.split(),
            };
            match at.checked_sub(leaf.keys.len()) {
                Some(at) => upper.insert(at, key, value),
                None => leaf.insert(at, key, value),
            }
            if is_in_last {
                self.append(upper);
            } else {
                self.leaves.insert(upper.keys[0].clone(), upper);
            }
        }
        self.len += 1;
        None
    }

    /// What it says of keys of `from` or greater, in their order.
    pub fn range(&self, from: &[u8]) -> Range<'_, V> {
        let leaf = self.leaf(from);
        let at = leaf.search(from).unwrap_or_else(|at| at);
        let behind = (Bound::Excluded(from), Bound::Unbounded);
        let mut range = Range {
            keys: leaf.keys[at..].iter(),
            values: leaf.values[at..].iter(),
            more: self.leaves.range::<[u8], _>(behind),
            last: (!self.is_in_last(from)).then_some(&self.last),
        };
        range.go_on();
        range
    }

    /// All that it says, in the order of the keys.
    pub fn into_entries(self) -> impl Iterator<Item = (Key, V)> {
        let leaves = self.leaves.into_values().chain(once(self.last));
        leaves.flat_map(|leaf| leaf.keys.into_iter().zip(leaf.values))
    }

    fn is_in_last(&self, key: &[u8]) -> bool {
        *key >= *self.bound
    }

    /// The leaf in which a key is, if it is in any.
    fn leaf(&self, key: &[u8]) -> &Leaf<V> {
        if self.is_in_last(key) {
            return &self.last;
        }
        let upto = (Bound::Unbounded, Bound::Included(key));
        let leaf = self.leaves.range::<[u8], _>(upto).next_back();
        // The first bound is the least of all keys.
        leaf.map_or(&self.last, |(_, leaf)| leaf)
    }

    fn leaf_mut(&mut self, key: &[u8]) -> &mut Leaf<V> {
        if self.is_in_last(key) {
            return &mut self.last;
        }
        let upto = (Bound::Unbounded, Bound::Included(key));
        let leaf = self.leaves.range_mut::<[u8], _>(upto).next_back();
        leaf.map_or(&mut self.last, |(_, leaf)| leaf)
    }

    /// Another leaf is the last.
    fn append(&mut self, leaf: Leaf<V>) {
        let bound = mem::replace(&mut self.bound, leaf.keys[0].clone());
        let before = mem::replace(&mut self.last, leaf);
        self.leaves.insert(bound, before);
    }
}

impl<V> Leaf<V> {
    fn with_capacity(length: usize) -> Self {
        Self {
            keys: Vec::with_capacity(length),
            values: Vec::with_capacity(length),
        }
    }

    /// Where a key is, or else where it would be.
    fn search(&self, key: &[u8]) -> Result<usize, usize> {
        match self.keys.last() {
            Some(last) if **last >= *key => self.keys.binary_search_by(|own| (**own).cmp(key)),
            _ => Err(self.keys.len()),
        }
    }

    fn insert(&mut self, at: usize, key: &[u8], value: V) {
        self.keys.insert(at, key.into());
        self.values.insert(at, value);
    }

    /// Splits the greater half off.
    fn split(&mut self) -> Self {
        let half = self.keys.len() / 2;
        Self {
            keys: self.keys.split_off(half),
            values: self.values.split_off(half),
        }
    }
}

/// Goes from a key on: see [`Delta::range`].
#[derive(Debug)]
pub struct Range<'a, V> {
    /// What is left of the leaf where it is.
    keys: slice::Iter<'a, Key>,
    values: slice::Iter<'a, V>,
    more: btree_map::Range<'a, Key, Leaf<V>>,
    last: Option<&'a Leaf<V>>,
}

impl<'a, V> Range<'a, V> {
    /// The key that is next.
    pub fn peek(&self) -> Option<&'a [u8]> {
        self.keys.as_slice().first().map(|key| &key[..])
    }

    /// Enters the next leaf if nothing is left of this one: none of those that follow is empty.
    fn go_on(&mut self) {
        if !self.keys.as_slice().is_empty() {
            return;
        }
        let next = self.more.next().map(|(_, leaf)| leaf);
        if let Some(leaf) = next.or_else(|| self.last.take()) {
            (self.keys, self.values) = (leaf.keys.iter(), leaf.values.iter());
        }
    }
}

impl<'a, V> Iterator for Range<'a, V> {
    type Item = (&'a [u8], &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.keys.next().zip(self.values.next());
        self.go_on();
        next.map(|(key, value)| (&key[..], value))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(number: u32, length: usize) -> Vec<u8> {
        [&number.to_be_bytes()[..], &vec![b'k'; length]].concat()
    }

    /// Whether it says the same as a map does.
    fn check(delta: &Delta<u32>, map: &BTreeMap<Vec<u8>, u32>, from: &[u8]) {
        assert_eq!(delta.len(), map.len());
        let all = map.iter().map(|(key, value)| (&key[..], value));
        assert!(delta.range(&[]).eq(all.clone()));
        let mut range = delta.range(from);
        for (key, value) in all.filter(|(key, _)| *key >= from) {
            assert_eq!(range.peek(), Some(key));
            assert_eq!(range.next(), Some((key, value)));
        }
        assert_eq!((range.peek(), range.next()), (None, None));
        assert_eq!(delta.get(from), map.get(from));
    }

    proptest! {
        #[test]
        fn it_says_what_a_map_says(
            numbers in prop::collection::vec((0_u32..300, prop_oneof![Just(0_usize), Just(60)]), 0..600),
            is_ordered: bool,
            from in 0_u32..310,
        ) {
            let mut numbers = numbers;
            if is_ordered {
                numbers.sort_unstable();
            }
            let (mut delta, mut map) = (Delta::default(), BTreeMap::new());
            for (value, (number, length)) in (0..).zip(numbers) {
                let key = key(number, length);
                let before = map.insert(key.clone(), value);
                prop_assert_eq!(delta.say(&key, value, mem::replace), before);
            }
            check(&delta, &map, &key(from, 0));
            let entries = delta.into_entries().map(|(key, value)| (key.to_vec(), value));
            prop_assert!(entries.eq(map));
        }
    }

    #[test]
    fn what_comes_in_order_fills_leaves_and_what_comes_between_splits_them() {
        let mut delta = Delta::default();
        for number in 0..10 * 32 {
            delta.say(&key(2 * number, 0), number, mem::replace);
        }
        assert_eq!(delta.leaves.len(), 9);
        assert!(delta.leaves.values().all(|leaf| leaf.keys.len() == LEAF));
        delta.say(&key(33, 0), 0, mem::replace);
        delta.say(&key(2 * 319 - 1, 0), 0, mem::replace);
        assert_eq!(delta.leaves.len(), 11);
        // In order, but below others: behind the last but one, which is full.
        for number in 0..3 * 32 {
            delta.say(&[&key(2 * 287, 0)[..], &[number]].concat(), 0, mem::replace);
        }
        assert_eq!(delta.leaves.len(), 14);
        // Below all others, too.
        assert_eq!(delta.say(&[], 7, mem::replace), None);
        assert_eq!(delta.range(&[]).next(), Some((&[][..], &7)));
        let lengths = delta.leaves.values().map(|leaf| leaf.keys.len());
        assert_eq!(lengths.sum::<usize>() + delta.last.keys.len(), delta.len());
    }
}

//! [`Span`] and [`RangeSet`]: bytes of a blob, by their positions.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use super::error::StorageError;

/// The bytes from `start` up to, but not including, `end`. May be empty.
///
/// Its text form is `4096..8192`; where a blob's end is meant, `4096..`, which is a span up to the
/// highest position there is.
///
/// ```
/// use graviton_engine::port::Span;
///
/// let span = Span::new(4096, 8192)?;
/// assert_eq!(span.len(), 4096);
/// assert_eq!(span, "4096..8192".parse()?);
/// assert!(Span::new(2, 1).is_err());
/// # Ok::<(), graviton_engine::port::StorageError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span {
    start: u64,
    end: u64,
}

impl Span {
    /// Every byte there can be.
    pub const ALL: Self = Self {
        start: 0,
        end: u64::MAX,
    };

    /// The bytes from `start` up to `end`.
    ///
    /// # Errors
    /// [`StorageError::InvalidArgument`] if `start` is above `end`.
    pub fn new(start: u64, end: u64) -> Result<Self, StorageError> {
        if start > end {
            return Err(StorageError::invalid(format!(
                "the range {start}..{end} ends before it starts"
            )));
        }
        Ok(Self { start, end })
    }

    /// `length` bytes from `start` on.
    ///
    /// # Errors
    /// [`StorageError::InvalidArgument`] if their end is beyond the highest position.
    pub fn at(start: u64, length: u64) -> Result<Self, StorageError> {
        let end = start.checked_add(length).ok_or_else(|| {
            StorageError::invalid(format!("{length} bytes from {start} on reach beyond 2^64"))
        })?;
        Ok(Self { start, end })
    }

    /// The first `length` bytes.
    #[must_use]
    pub const fn first(length: u64) -> Self {
        Self {
            start: 0,
            end: length,
        }
    }

    /// Position of the first byte.
    #[must_use]
    pub const fn start(self) -> u64 {
        self.start
    }

    /// Position behind the last byte.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.end
    }

    /// How many bytes.
    #[must_use]
    pub const fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// Whether the byte at `position` is one of them.
    #[must_use]
    pub const fn contains(self, position: u64) -> bool {
        self.start <= position && position < self.end
    }

    /// Whether all bytes of `other` are among them; those of an empty span always are.
    #[must_use]
    pub const fn covers(self, other: Self) -> bool {
        other.is_empty() || (self.start <= other.start && other.end <= self.end)
    }

    /// The bytes that both have. Empty, and at a place that means nothing, if there are none.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end).max(start);
        Self { start, end }
    }
}

impl TryFrom<Range<u64>> for Span {
    type Error = StorageError;

    fn try_from(range: Range<u64>) -> Result<Self, StorageError> {
        Self::new(range.start, range.end)
    }
}

impl From<Span> for Range<u64> {
    fn from(span: Span) -> Self {
        span.start..span.end
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self {
                start,
                end: u64::MAX,
            } => write!(f, "{start}.."),
            Self { start, end } => write!(f, "{start}..{end}"),
        }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Span {
    type Err = StorageError;

    fn from_str(text: &str) -> Result<Self, StorageError> {
        let wrong = || StorageError::invalid(format!("{text:?} is no range like 4096..8192"));
        // A number may have a sign for `parse`; a position has none.
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let position = |text: &str| match text.parse() {
            Ok(position) if is_number(text) => Ok(position),
            _ => Err(wrong()),
        };
        let (start, end) = text.split_once("..").ok_or_else(wrong)?;
        let end = if end.is_empty() {
            u64::MAX
        } else {
            position(end)?
        };
        Self::new(position(start)?, end)
    }
}

/// A set of bytes, as the fewest spans that make it up: in order, none empty, none touching another.
/// So equal sets are equal values, in whatever pieces they came together.
///
/// Takes 16 bytes for each span. Operations on two sets take time linear in the number of their
/// spans; looking up a position is a binary search.
///
/// ```
/// use graviton_engine::port::{RangeSet, Span};
///
/// let mut set: RangeSet = "0..4096,8192..12288".parse()?;
/// set.insert(Span::new(4096, 8192)?);
/// assert_eq!(set.to_string(), "0..12288");
/// assert_eq!(set.complement(Span::first(20_000)).to_string(), "12288..20000");
/// # Ok::<(), graviton_engine::port::StorageError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct RangeSet {
    spans: Vec<Span>,
}

impl RangeSet {
    /// No bytes.
    #[must_use]
    pub const fn new() -> Self {
        Self { spans: Vec::new() }
    }

    /// Its spans, in order.
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// How many bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.spans.iter().map(|span| span.len()).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Position behind the last byte; 0 if there is none.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.spans.last().map_or(0, |span| span.end)
    }

    /// Whether the byte at `position` is in it.
    #[must_use]
    pub fn contains(&self, position: u64) -> bool {
        let next = self.spans.partition_point(|span| span.end <= position);
        self.spans
            .get(next)
            .is_some_and(|span| span.contains(position))
    }

    /// Whether all bytes of `span` are in it.
    #[must_use]
    pub fn covers(&self, span: Span) -> bool {
        let next = self.spans.partition_point(|known| known.end <= span.start);
        span.is_empty() || self.spans.get(next).is_some_and(|known| known.covers(span))
    }

    /// Whether all bytes of `other` are in it.
    #[must_use]
    pub fn is_superset(&self, other: &Self) -> bool {
        other.difference(self).is_empty()
    }

    /// Adds the bytes of `span`. Linear in the number of spans behind it: to gather many in no order,
    /// collect them.
    pub fn insert(&mut self, span: Span) {
        if span.is_empty() {
            return;
        }
        // Those that it overlaps or touches become one with it.
        let first = self.spans.partition_point(|known| known.end < span.start);
        let behind = self.spans.partition_point(|known| known.start <= span.end);
        let mut merged = span;
        if first < behind {
            merged.start = merged.start.min(self.spans[first].start);
            merged.end = merged.end.max(self.spans[behind - 1].end);
        }
        self.spans.splice(first..behind, [merged]);
    }

    /// Takes the bytes of `span` out. Linear in the number of spans behind it.
    pub fn remove(&mut self, span: Span) {
        if span.is_empty() {
            return;
        }
        let first = self.spans.partition_point(|known| known.end <= span.start);
        let behind = self.spans.partition_point(|known| known.start < span.end);
        if first >= behind {
            return;
        }
        let left = Span {
            start: self.spans[first].start,
            end: span.start,
        };
        let right = Span {
            start: span.end,
            end: self.spans[behind - 1].end,
        };
        let rest = [left, right]
            .into_iter()
            .filter(|rest| rest.start < rest.end);
        self.spans.splice(first..behind, rest);
    }

    /// The bytes that are in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.combine(other, |one, two| one || two)
    }

    /// The bytes that are in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.combine(other, |one, two| one && two)
    }

    /// The bytes that are in this and not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.combine(other, |one, two| one && !two)
    }

    /// The bytes of `within` that are not in it.
    #[must_use]
    pub fn complement(&self, within: Span) -> Self {
        Self::from(within).difference(self)
    }

    /// The bytes of which `keep` says so, told whether they are in this and in `other`. It must be
    /// false for those in neither.
    fn combine(&self, other: &Self, keep: impl Fn(bool, bool) -> bool) -> Self {
        // From one border to the next, each of the sets goes on as it is.
        let mut ones = borders(&self.spans).peekable();
        let mut twos = borders(&other.spans).peekable();
        let (mut in_one, mut in_two, mut kept) = (false, false, false);
        let mut spans = Vec::new();
        let mut start = 0;
        while let Some(&position) = ones.peek().into_iter().chain(twos.peek()).min() {
            in_one ^= ones.next_if_eq(&position).is_some();
            in_two ^= twos.next_if_eq(&position).is_some();
            if keep(in_one, in_two) != kept {
                kept = !kept;
                if kept {
                    start = position;
                } else {
                    spans.push(Span {
                        start,
                        end: position,
                    });
                }
            }
        }
        Self { spans }
    }
}

fn borders(spans: &[Span]) -> impl Iterator<Item = u64> {
    spans.iter().flat_map(|span| [span.start, span.end])
}

impl From<Span> for RangeSet {
    fn from(span: Span) -> Self {
        let spans = if span.is_empty() {
            Vec::new()
        } else {
            vec![span]
        };
        Self { spans }
    }
}

/// From spans in any order, overlapping or not.
impl FromIterator<Span> for RangeSet {
    fn from_iter<I: IntoIterator<Item = Span>>(spans: I) -> Self {
        let mut sorted: Vec<Span> = spans.into_iter().filter(|span| !span.is_empty()).collect();
        sorted.sort_unstable();
        sorted.dedup_by(|next, merged| {
            let touches = next.start <= merged.end;
            if touches {
                merged.end = merged.end.max(next.end);
            }
            touches
        });
        Self { spans: sorted }
    }
}

impl<'a> IntoIterator for &'a RangeSet {
    type Item = &'a Span;
    type IntoIter = std::slice::Iter<'a, Span>;

    fn into_iter(self) -> Self::IntoIter {
        self.spans.iter()
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, span) in self.spans.iter().enumerate() {
            if number > 0 {
                f.write_str(",")?;
            }
            fmt::Display::fmt(span, f)?;
        }
        Ok(())
    }
}

impl fmt::Debug for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

/// Spans with commas between, in any order; nothing at all is the empty set.
impl FromStr for RangeSet {
    type Err = StorageError;

    fn from_str(text: &str) -> Result<Self, StorageError> {
        if text.is_empty() {
            return Ok(Self::new());
        }
        text.split(',').map(str::parse).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Positions that the naive model knows.
    const POSITIONS: u64 = 64;

    fn span() -> impl Strategy<Value = Span> {
        (0..=POSITIONS, 0..=POSITIONS).prop_map(|(one, other)| Span {
            start: one.min(other),
            end: one.max(other),
        })
    }

    fn set() -> impl Strategy<Value = RangeSet> {
        proptest::collection::vec(span(), 0..12).prop_map(RangeSet::from_iter)
    }

    /// Bit *n* is byte *n*.
    fn bits(set: &RangeSet) -> u64 {
        let bit = |position| u64::from(set.contains(position)) << position;
        (0..POSITIONS).map(bit).sum()
    }

    fn bits_of(span: Span) -> u64 {
        bits(&RangeSet::from(span))
    }

    fn is_normal(set: &RangeSet) -> bool {
        let apart = |pair: &[Span]| pair[0].end < pair[1].start;
        set.spans.iter().all(|span| span.start < span.end) && set.spans.windows(2).all(apart)
    }

    proptest! {
        #[test]
        fn two_sets(one in set(), other in set(), within in span()) {
            let (a, b) = (bits(&one), bits(&other));
            for (result, expected) in [
                (one.union(&other), a | b),
                (one.intersection(&other), a & b),
                (one.difference(&other), a & !b),
                (one.complement(within), bits_of(within) & !a),
            ] {
                prop_assert!(is_normal(&result), "{result:?}");
                prop_assert_eq!(bits(&result), expected);
                prop_assert_eq!(result.len(), u64::from(expected.count_ones()));
            }
            prop_assert_eq!(one == other, a == b);
            prop_assert_eq!(one.is_superset(&other), a & b == b);
        }

        #[test]
        fn a_set_and_a_span(set in set(), span in span()) {
            let (a, b) = (bits(&set), bits_of(span));
            let mut with = set.clone();
            with.insert(span);
            prop_assert!(is_normal(&with), "{with:?}");
            prop_assert_eq!(bits(&with), a | b);
            let mut without = set.clone();
            without.remove(span);
            prop_assert!(is_normal(&without), "{without:?}");
            prop_assert_eq!(bits(&without), a & !b);
            prop_assert_eq!(set.covers(span), a & b == b);
            prop_assert_eq!(set.end(), u64::from(u64::BITS - a.leading_zeros()));
        }

        #[test]
        fn text_and_back(set in set()) {
            prop_assert_eq!(set.to_string().parse::<RangeSet>().unwrap(), set);
        }

        #[test]
        fn spans(one in span(), other in span()) {
            let (a, b) = (bits_of(one), bits_of(other));
            prop_assert_eq!(bits_of(one.intersection(other)), a & b);
            prop_assert_eq!(one.covers(other), a & b == b);
        }
    }

    #[test]
    fn the_highest_positions() {
        let all = RangeSet::from(Span::ALL);
        assert_eq!(all.len(), u64::MAX);
        assert_eq!(all.to_string(), "0..");
        let mut most = all.clone();
        most.remove(Span::first(8192));
        assert_eq!(most.to_string(), "8192..");
        assert_eq!("8192..".parse::<RangeSet>().unwrap(), most);
        assert_eq!(most.complement(Span::ALL), Span::first(8192).into());
        assert!(Span::at(u64::MAX, 0).unwrap().is_empty());
        assert!(Span::at(u64::MAX, 1).is_err());
    }

    #[test]
    fn text_that_is_no_set() {
        for text in [
            "1",
            "..",
            "..5",
            "5..4",
            "-1..2",
            "1..2,",
            ",",
            "1..2;3..4",
            "1...2",
            " 1..2",
            "1..18446744073709551616",
            "+1..2",
        ] {
            let error = text.parse::<RangeSet>().expect_err(text);
            assert!(
                matches!(error, StorageError::InvalidArgument { .. }),
                "{text}: {error}"
            );
        }
        assert!("".parse::<RangeSet>().unwrap().is_empty());
        assert!("7..7".parse::<RangeSet>().unwrap().is_empty());
    }
}

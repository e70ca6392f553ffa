//! The bytes of a blob in memory: those that were written, and how many it has in all.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use crate::port::{RangeSet, Span};

/// Bytes at their positions. What is not there is a hole.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    size: u64,
    /// By the position of their first byte; none is empty, none overlaps another.
    pieces: BTreeMap<u64, Bytes>,
}

impl From<Bytes> for Content {
    fn from(bytes: Bytes) -> Self {
        let mut content = Self::default();
        content.append(bytes);
        content
    }
}

impl Content {
    /// One hole.
    pub(super) fn hole(size: u64) -> Self {
        Self {
            size,
            pieces: BTreeMap::new(),
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// How many bytes were written.
    pub(super) fn written(&self) -> u64 {
        self.pieces.values().map(|piece| piece.len() as u64).sum()
    }

    /// Which bytes were written.
    pub(super) fn written_set(&self) -> RangeSet {
        self.spans().collect()
    }

    /// The holes within `span`.
    pub(super) fn missing(&self, span: Span) -> RangeSet {
        self.written_set().complement(span)
    }

    fn spans(&self) -> impl Iterator<Item = Span> {
        let span = |(&start, piece): (&u64, &Bytes)| Span::at(start, piece.len() as u64);
        self.pieces.iter().filter_map(move |piece| span(piece).ok())
    }

    /// The bytes of `span`, which lies within the blob; zeros where it has holes.
    pub(super) fn read(&self, span: Span) -> Bytes {
        let pieces = self.spans().zip(self.pieces.values());
        let parts = pieces.filter_map(|(place, piece)| {
            let part = place.intersection(span);
            let from = in_memory(part.start() - place.start());
            let bytes = || piece.slice(from..from + in_memory(part.len()));
            (!part.is_empty()).then(|| (part, bytes()))
        });
        let mut read = BytesMut::new();
        for (part, bytes) in parts {
            if part == span {
                return bytes;
            }
            read.resize(in_memory(part.start() - span.start()), 0);
            read.extend_from_slice(&bytes);
        }
        read.resize(in_memory(span.len()), 0);
        read.freeze()
    }

    /// Writes `bytes` at `start`, over what is there; the blob grows if they reach past its end.
    pub(super) fn write(&mut self, start: u64, bytes: Bytes) {
        let end = start + bytes.len() as u64;
        self.size = self.size.max(end);
        if !bytes.is_empty() {
            self.cut(start, end);
            self.pieces.insert(start, bytes);
        }
    }

    /// Makes a hole of `span`.
    pub(super) fn erase(&mut self, span: Span) {
        self.cut(span.start(), span.end());
    }

    /// Takes what lies from `start` to `end` out of the pieces.
    fn cut(&mut self, start: u64, end: u64) {
        let first = self.pieces.range(..start).next_back().map(|(&at, _)| at);
        let hit = self.pieces.range(first.unwrap_or(start)..end);
        let hit: Vec<u64> = hit.map(|(&at, _)| at).collect();
        for at in hit {
            let old = self.pieces.remove(&at).unwrap_or_default();
            let old_end = at + old.len() as u64;
            if at < start {
                let kept = in_memory(start.min(old_end) - at);
                self.pieces.insert(at, old.slice(..kept));
            }
            if old_end > end {
                self.pieces.insert(end, old.slice(in_memory(end - at)..));
            }
        }
    }

    /// Writes `bytes` behind the end.
    pub(super) fn append(&mut self, bytes: Bytes) {
        self.write(self.size, bytes);
    }
}

/// A position in what is in memory.
fn in_memory(position: u64) -> usize {
    usize::try_from(position).expect("what is in memory is shorter than the address space")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn writes_agree_with_an_array(
            size in 0_u64..40,
            writes in proptest::collection::vec((0_u64..40, 0_usize..20, any::<bool>()), 0..12),
            (from, to) in (0_u64..60, 0_u64..60),
        ) {
            let mut content = Content::hole(size);
            let mut model: Vec<Option<u8>> = vec![None; in_memory(size)];
            for (number, (start, length, erase)) in (1..).zip(writes) {
                let end = model.len().min(in_memory(start) + length);
                if erase && in_memory(start) <= end {
                    content.erase(Span::new(start, end as u64).unwrap());
                    model[in_memory(start)..end].fill(None);
                    continue;
                }
                content.write(start, Bytes::from(vec![number; length]));
                let end = in_memory(start) + length;
                model.resize(model.len().max(end), None);
                model[end - length..end].fill(Some(number));
            }
            prop_assert_eq!(content.size(), model.len() as u64);
            let written = model.iter().flatten().count() as u64;
            prop_assert_eq!(content.written(), written);
            let end = model.len() as u64;
            let span = Span::new(from.min(to).min(end), from.max(to).min(end)).unwrap();
            let part = &model[in_memory(span.start())..in_memory(span.end())];
            let bytes: Vec<u8> = part.iter().map(|byte| byte.unwrap_or(0)).collect();
            prop_assert_eq!(content.read(span), bytes);
            let missing = content.missing(span);
            for (position, byte) in (span.start()..).zip(part) {
                prop_assert_eq!(missing.contains(position), byte.is_none());
            }
        }
    }
}

//! What is complete of bytes that are held elsewhere: what a record in the space of trackers has as
//! its payload.

use std::ops::Range;

use crate::FormatError;
use crate::varint::{put, take};

/// Bytes of a block: what a bit stands for.
pub const BLOCK: u64 = 4096;
/// Bytes of a window: what is encoded together.
pub const WINDOW: u64 = 256 << 20;
/// Bytes of the bitmap of a window.
const BITMAP: usize = (WINDOW / BLOCK / 8) as usize;
/// Bytes before the entries: generation and total.
pub const HEADER_LEN: usize = 16;
/// Bytes of an entry before its set.
const ENTRY_LEN: usize = 5;

const WINDOWS_WHOLE: u8 = 1;
const WINDOW_OF_RUNS: u8 = 2;
const WINDOW_OF_BITS: u8 = 3;

const ENTRY_ADDED: u8 = 1;
const ENTRY_REMOVED: u8 = 2;
const ENTRY_TOTAL: u8 = 3;

/// What a tracker begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The life of the key that it is of; 0: named by the LSN of the record.
    pub generation: u64,
    /// How many bytes there will be; `None`: nobody knows.
    pub total: Option<u64>,
}

/// What follows, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// These are complete from here on.
    Added(Vec<Range<u64>>),
    /// These are not any more.
    Removed(Vec<Range<u64>>),
    /// How many bytes there will be.
    Total(u64),
}

fn wrong(what: impl Into<String>) -> FormatError {
    FormatError::field("Tracker", "entries", "F-61", what)
}

impl Header {
    /// Encodes it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let total = self.total.unwrap_or(u64::MAX);
        [self.generation.to_le_bytes(), total.to_le_bytes()].concat()
    }

    /// Decodes it. Returns it, and the entries behind it.
    ///
    /// # Errors
    /// What is wrong.
    pub fn decode(bytes: &[u8]) -> Result<(Self, &[u8]), FormatError> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            return Err(FormatError::Truncated {
                structure: "Tracker",
                needed: HEADER_LEN,
                found: bytes.len(),
            });
        };
        let number = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&header[at..at + 8]);
            u64::from_le_bytes(number)
        };
        let header = Self {
            generation: number(0),
            total: Some(number(8)).filter(|total| *total != u64::MAX),
        };
        Ok((header, rest))
    }
}

impl Entry {
    /// Appends it.
    pub fn encode_to(&self, target: &mut Vec<u8>) {
        match self {
            Self::Added(set) => put_entry(target, ENTRY_ADDED, &pack(set)),
            Self::Removed(set) => put_entry(target, ENTRY_REMOVED, &pack(set)),
            Self::Total(total) => put_entry(target, ENTRY_TOTAL, &total.to_le_bytes()),
        }
    }

    /// Appends the entry that adds a set which is encoded already, by [`pack`].
    pub fn encode_added(packed: &[u8], target: &mut Vec<u8>) {
        put_entry(target, ENTRY_ADDED, packed);
    }

    /// Decodes the one in front of `bytes`, whose set has at most `limit` spans. Returns it, and what
    /// is behind it.
    ///
    /// # Errors
    /// What is wrong.
    pub fn decode(bytes: &[u8], limit: usize) -> Result<(Self, &[u8]), FormatError> {
        let truncated = |needed: usize| FormatError::Truncated {
            structure: "Tracker",
            needed,
            found: bytes.len(),
        };
        let Some((head, rest)) = bytes.split_first_chunk::<ENTRY_LEN>() else {
            return Err(truncated(ENTRY_LEN));
        };
        let [kind, length @ ..] = *head;
        let length = u32::from_le_bytes(length) as usize;
        let Some((body, rest)) = rest.split_at_checked(length) else {
            return Err(truncated(ENTRY_LEN.saturating_add(length)));
        };
        let entry = match kind {
            ENTRY_ADDED => Self::Added(unpack(body, limit)?),
            ENTRY_REMOVED => Self::Removed(unpack(body, limit)?),
            ENTRY_TOTAL => Self::Total(u64::from_le_bytes(
                body.try_into()
                    .map_err(|_| wrong(format!("have a total of {length} bytes")))?,
            )),
            kind => return Err(wrong(format!("are of kind {kind}"))),
        };
        Ok((entry, rest))
    }
}

fn put_entry(target: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    target.push(kind);
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    target.extend(length.to_le_bytes());
    target.extend(bytes);
}

/// Encodes spans, which are in order and do not touch.
#[must_use]
pub fn pack(spans: &[Range<u64>]) -> Vec<u8> {
    let mut packer = Packer::default();
    for span in spans {
        let mut start = span.start;
        while start < span.end {
            let window = start / WINDOW;
            let within = start % WINDOW;
            let whole = (span.end - start) / WINDOW;
            if within == 0 && whole > 0 {
                packer.put_windows(window, whole);
                start += whole * WINDOW;
                continue;
            }
            let length = (span.end - start).min(WINDOW - within);
            packer.add(window, within..within + length);
            start += length;
        }
    }
    packer.end_window();
    packer.packed
}

#[derive(Default)]
struct Packer {
    packed: Vec<u8>,
    /// The first window that is not encoded yet.
    next: u64,
    /// The one that `spans` are of.
    window: u64,
    spans: Vec<Range<u64>>,
}

impl Packer {
    fn add(&mut self, window: u64, span: Range<u64>) {
        if window != self.window {
            self.end_window();
            self.window = window;
        }
        self.spans.push(span);
    }

    fn begin(&mut self, window: u64, kind: u8) {
        put(&mut self.packed, window - self.next);
        self.packed.push(kind);
        self.next = window + 1;
    }

    fn put_windows(&mut self, window: u64, count: u64) {
        self.end_window();
        self.begin(window, WINDOWS_WHOLE);
        put(&mut self.packed, count);
        self.next = window + count;
    }

    fn end_window(&mut self) {
        let spans = std::mem::take(&mut self.spans);
        if spans.is_empty() {
            return;
        }
        let runs = pack_runs(&spans);
        let bits = (runs.len() > BITMAP).then(|| pack_bits(&spans));
        match bits {
            Some(bits) if bits.len() < runs.len() => {
                self.begin(self.window, WINDOW_OF_BITS);
                self.packed.extend(bits);
            }
            _ => {
                self.begin(self.window, WINDOW_OF_RUNS);
                self.packed.extend(runs);
            }
        }
    }
}

fn pack_runs(spans: &[Range<u64>]) -> Vec<u8> {
    let mut packed = Vec::new();
    put(&mut packed, spans.len() as u64);
    let mut position = 0;
    for span in spans {
        put(&mut packed, span.start - position);
        put(&mut packed, span.end - span.start);
        position = span.end;
    }
    packed
}

/// A bit for each block that is whole, then runs of what is complete of others.
fn pack_bits(spans: &[Range<u64>]) -> Vec<u8> {
    let mut bitmap = vec![0_u8; BITMAP];
    let mut rest = Vec::new();
    for span in spans {
        let (first, behind) = (span.start.div_ceil(BLOCK), span.end / BLOCK);
        if first >= behind {
            rest.push(span.clone());
            continue;
        }
        for block in first..behind {
            if let Some(byte) = bitmap.get_mut(usize::try_from(block / 8).unwrap_or(usize::MAX)) {
                *byte |= 1 << (block % 8);
            }
        }
        let edges = [span.start..first * BLOCK, behind * BLOCK..span.end];
        rest.extend(edges.into_iter().filter(|edge| !edge.is_empty()));
    }
    bitmap.extend(pack_runs(&rest));
    bitmap
}

/// Decodes spans: at most `limit`, in order, none touching another.
///
/// # Errors
/// What is wrong.
pub fn unpack(mut packed: &[u8], limit: usize) -> Result<Vec<Range<u64>>, FormatError> {
    const WINDOWS: u64 = u64::MAX / WINDOW + 1;
    let mut spans = Spans {
        spans: Vec::new(),
        limit,
    };
    let cut_off = || wrong("are cut off");
    let mut next = 0_u64;
    while !packed.is_empty() {
        let skipped = take(&mut packed).ok_or_else(cut_off)?;
        let window = next.checked_add(skipped).filter(|window| *window < WINDOWS);
        let window = window.ok_or_else(|| wrong("lie beyond what a blob can have"))?;
        let (&kind, rest) = packed.split_first().ok_or_else(cut_off)?;
        packed = rest;
        let start = window * WINDOW;
        next = window + 1;
        match kind {
            WINDOWS_WHOLE => {
                let count = take(&mut packed).ok_or_else(cut_off)?;
                next = window.saturating_add(count);
                if count == 0 || next >= WINDOWS {
                    return Err(wrong(format!("have {count} whole windows")));
                }
                spans.push(start..next * WINDOW)?;
            }
            WINDOW_OF_RUNS => {
                let mut runs = Runs::take(&mut packed)?;
                while let Some(run) = runs.next(&mut packed)? {
                    spans.push_from(start, run)?;
                }
            }
            WINDOW_OF_BITS => {
                let (bitmap, rest) = packed.split_at_checked(BITMAP).ok_or_else(cut_off)?;
                packed = rest;
                let mut blocks = whole_blocks(bitmap).peekable();
                let mut runs = Runs::take(&mut packed)?;
                let mut run = runs.next(&mut packed)?;
                loop {
                    let of_run = run.as_ref().map(|run| run.start);
                    let of_block = blocks.peek().map(|block| block.start);
                    match (of_run, of_block) {
                        (Some(at), block) if block.is_none_or(|block| at < block) => {
                            spans.push_from(start, run.take().unwrap_or_default())?;
                            run = runs.next(&mut packed)?;
                        }
                        (_, Some(_)) => {
                            let block = blocks.next().unwrap_or_default();
                            spans.push_from(start, block)?;
                        }
                        (_, None) => break,
                    }
                }
            }
            kind => return Err(wrong(format!("have a window of kind {kind}"))),
        }
    }
    Ok(spans.spans)
}

/// The blocks whose bits are set, those next to each other together.
fn whole_blocks(bitmap: &[u8]) -> impl Iterator<Item = Range<u64>> + '_ {
    let is_set = |block: &u64| {
        let byte = usize::try_from(*block / 8)
            .ok()
            .and_then(|at| bitmap.get(at));
        byte.is_some_and(|byte| byte >> (block % 8) & 1 == 1)
    };
    let blocks = WINDOW / BLOCK;
    let mut next = 0;
    std::iter::from_fn(move || {
        let first = (next..blocks).find(is_set)?;
        let behind = (first..blocks).find(|block| !is_set(block));
        next = behind.unwrap_or(blocks);
        Some(first * BLOCK..next * BLOCK)
    })
}

/// Runs within a window that are still to come.
struct Runs {
    left: u64,
    position: u64,
}

impl Runs {
    fn take(packed: &mut &[u8]) -> Result<Self, FormatError> {
        let left = take(packed).ok_or_else(|| wrong("are cut off"))?;
        Ok(Self { left, position: 0 })
    }

    fn next(&mut self, packed: &mut &[u8]) -> Result<Option<Range<u64>>, FormatError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let mut number = || take(packed).ok_or_else(|| wrong("are cut off"));
        let (gap, length) = (number()?, number()?);
        let start = self.position.checked_add(gap);
        let end = start.and_then(|start| start.checked_add(length));
        match (start, end) {
            (Some(start), Some(end)) if start < end && end <= WINDOW => {
                self.position = end;
                Ok(Some(start..end))
            }
            _ => Err(wrong(format!(
                "have a run of {length} bytes, {gap} after {}",
                self.position
            ))),
        }
    }
}

struct Spans {
    spans: Vec<Range<u64>>,
    limit: usize,
}

impl Spans {
    fn push_from(&mut self, start: u64, span: Range<u64>) -> Result<(), FormatError> {
        let end = start.checked_add(span.end);
        let end = end.ok_or_else(|| wrong("lie beyond what a blob can have"))?;
        self.push(start + span.start..end)
    }

    fn push(&mut self, span: Range<u64>) -> Result<(), FormatError> {
        let is_full = self.spans.len() >= self.limit;
        match self.spans.last_mut() {
            Some(last) if span.start < last.end => Err(wrong("overlap")),
            Some(last) if span.start == last.end => {
                last.end = span.end;
                Ok(())
            }
            _ if is_full => Err(wrong(format!("are more than {} spans", self.limit))),
            _ => {
                self.spans.push(span);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(spans: &[Range<u64>]) -> usize {
        let packed = pack(spans);
        assert_eq!(unpack(&packed, spans.len()).unwrap(), spans);
        for end in 0..packed.len().min(100) {
            // Cut off, it is wrong or less.
            if let Ok(less) = unpack(&packed[..end], usize::MAX) {
                assert!(less.len() <= spans.len());
            }
        }
        if !spans.is_empty() {
            assert!(unpack(&packed, spans.len() - 1).is_err());
        }
        packed.len()
    }

    #[test]
    fn sets_round_trip() {
        const GIB: u64 = 1 << 30;
        let one = |span: Range<u64>| round_trip(std::slice::from_ref(&span));
        round_trip(&[]);
        one(0..1);
        round_trip(&[5..6, 8..WINDOW + 3, WINDOW + 4..WINDOW + 5]);
        round_trip(&[1..3 * WINDOW, 3 * WINDOW + 1..7 * WINDOW]);
        round_trip(&[WINDOW..2 * WINDOW, 5 * WINDOW - 1..5 * WINDOW + 1]);
        one(u64::MAX - 3..u64::MAX);
        one(0..u64::MAX);
        assert!(one(0..100 * GIB) < 16);
        let alternate: Vec<_> = (0..GIB / BLOCK / 2)
            .map(|pair| 2 * pair * BLOCK..(2 * pair + 1) * BLOCK)
            .collect();
        assert!(round_trip(&alternate) < (GIB / BLOCK / 8 + 64) as usize);
        // The last block of a window among them.
        let others: Vec<_> = alternate
            .iter()
            .map(|span| span.start + BLOCK..span.end + BLOCK)
            .collect();
        assert!(round_trip(&others) < (GIB / BLOCK / 8 + 64) as usize);
        // Edges that lie in blocks, beside and between whole ones.
        let uneven: Vec<_> = (0..WINDOW / BLOCK / 2)
            .map(|pair| 2 * pair * BLOCK + pair % 3..(2 * pair + 1) * BLOCK + pair % 5)
            .collect();
        round_trip(&uneven);
        let mostly_even: Vec<_> = (0..WINDOW / BLOCK / 2)
            .map(|pair| {
                let edge = u64::from(pair % 100 == 0);
                2 * pair * BLOCK + edge..(2 * pair + 1) * BLOCK + edge
            })
            .collect();
        assert!(round_trip(&mostly_even) < 3 * BITMAP / 2);
    }

    #[test]
    fn trackers_round_trip() {
        let header = Header {
            generation: 7,
            total: None,
        };
        let entries = [
            Entry::Added(vec![0..10, 20..30]),
            Entry::Removed(vec![5..6, 7..8]),
            Entry::Total(100),
        ];
        let mut bytes = header.encode();
        entries.iter().for_each(|entry| entry.encode_to(&mut bytes));
        let (found, mut rest) = Header::decode(&bytes).unwrap();
        assert_eq!(found, header);
        for entry in &entries {
            let (found, behind) = Entry::decode(rest, 100).unwrap();
            assert_eq!(found, *entry);
            rest = behind;
        }
        assert!(rest.is_empty());
        assert!(Header::decode(&bytes[..15]).is_err());
        for wrong in [
            &[][..],
            &[1, 1, 0, 0, 0],
            &[4, 0, 0, 0, 0],
            &[3, 1, 0, 0, 0, 9],
        ] {
            assert!(Entry::decode(wrong, 100).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_no_set_is_refused() {
        for wrong in [
            &[0][..],
            &[0, 9],
            &[0, 1, 0],
            &[0, 2, 1, 0, 0],
            &[0, 2, 1, 0],
            &[0, 2, 2, 0, 1, 0],
            &[0, 2, 1, 0, 0x81, 0x80, 0x80, 0x80, 0x01],
            &[0, 3, 1, 2],
            &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01, 2, 1, 0, 1],
        ] {
            assert!(unpack(wrong, 100).is_err(), "{wrong:?}");
        }
    }
}

//! What a scrub looks at beside replicas: superblocks, checkpoints, and what lies around the live payload in the
//! segments of the log. That payload itself is read with its replicas.

use std::ops::Range;
use std::sync::Arc;

use graviton_format::FormatError;
use graviton_format::frame::{FrameHeader, records_checksum};
use graviton_format::record::{RecordKind, RecordView};
use graviton_format::segment::SegmentHeader;

use super::info::Finding;
use super::inner::Inner;
use super::options::ScrubDepth;
use super::verify::finding;
use crate::io::AlignedBuf;
use crate::log::replay::{check_old_header, wrong_chunk};
use crate::log::sector::{Payload, READ_MAX};
use crate::log::{Sector, State};
use crate::port::op::wait_for;
use crate::port::{BinaryKey, StorageError};

/// Bytes read at once in search of the next head.
const WINDOW: u64 = 64 << 10;

/// A walk along the segments of a sector.
pub struct Walk<'a> {
    inner: &'a Arc<Inner>,
    sector: Arc<Sector>,
    depth: ScrubDepth,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Bytes that were read.
    pub bytes: u64,
}

/// Bytes of a sector that are in memory.
struct Window {
    buffer: AlignedBuf,
    skip: usize,
    range: Range<u64>,
}

impl Window {
    fn bytes(&self, range: Range<u64>) -> Option<&[u8]> {
        if range.start < self.range.start || range.end > self.range.end || range.end < range.start {
            return None;
        }
        let at = |address: u64| {
            let offset = usize::try_from(address - self.range.start).ok()?;
            self.skip.checked_add(offset)
        };
        self.buffer.get(at(range.start)?..at(range.end)?)
    }
}

impl<'a> Walk<'a> {
    /// A walk in one sector.
    pub fn new(inner: &'a Arc<Inner>, number: usize, depth: ScrubDepth) -> Self {
        Self {
            inner,
            sector: Arc::clone(&inner.sectors[number]),
            depth,
            findings: Vec::new(),
            bytes: 0,
        }
    }

    fn find(&mut self, address: u64, key: Option<BinaryKey>, what: impl ToString) {
        self.findings.push(Finding {
            place: self.sector.place(address),
            key,
            what: what.to_string(),
        });
    }

    fn read(&mut self, range: Range<u64>) -> Result<Window, StorageError> {
        let (buffer, skip) = wait_for(self.sector.read(range.clone()))?;
        self.bytes += range.end - range.start;
        Ok(Window {
            buffer,
            skip,
            range,
        })
    }

    /// Looks at a segment: all of it, if it is one of the log.
    ///
    /// # Errors
    /// What is no damage.
    pub fn segment(&mut self, segment: u32) -> Result<(), StorageError> {
        let number = usize::from(self.sector.number());
        let base = self.sector.geometry().segment_offset(segment);
        let (known, _pin) = {
            let index = self.inner.index.read();
            let known = *index.sectors[number].segments.get(segment);
            (known, self.sector.pin(std::iter::once(base)))
        };
        let outcome = match known.state {
            State::Open | State::Sealed if known.written > 0 => {
                self.frames(segment, known.generation, known.written)
            }
            State::Free | State::Reclaimed => {
                self.bytes += u64::from(self.sector.geometry().block_size);
                wait_for(check_old_header(&self.sector, segment))
            }
            _ => Ok(()),
        };
        match outcome {
            Ok(()) => Ok(()),
            Err(error) => {
                let met = finding(error)?;
                self.findings.push(met);
                Ok(())
            }
        }
    }

    fn frames(&mut self, segment: u32, generation: u64, end: u64) -> Result<(), StorageError> {
        let geometry = self.sector.geometry();
        let base = geometry.segment_offset(segment);
        let block = u64::from(geometry.block_size);
        let window = self.read(base..base + block)?;
        let bytes = window.bytes(base..base + block).unwrap_or_default();
        let header = SegmentHeader::decode(bytes, self.sector.identity(), &geometry, segment);
        let padding = bytes.iter().skip(size_of::<SegmentHeader>());
        let is_padded = padding.into_iter().all(|&byte| byte == 0);
        let mut previous = None;
        match header {
            Ok(header) if header.generation == generation => {
                previous = Some(header.checksum.get());
                if !is_padded {
                    self.find(
                        base,
                        None,
                        "the block of a segment header is not zero behind it",
                    );
                }
            }
            Ok(header) => {
                let found = header.generation;
                let what = format!("segment {segment} is of generation {found}, not {generation}");
                self.find(base, None, what);
            }
            Err(error) => self.find(base, None, format!("segment {segment}: {error}")),
        }
        let (mut offset, mut lsn) = (block, 0);
        while offset < end {
            let address = base + offset;
            let first = address + WINDOW.min(geometry.segment_size - offset);
            let window = self.read(address..first)?;
            let bytes = window.bytes(address..first).unwrap_or_default();
            let decoded = FrameHeader::decode(bytes, self.sector.identity(), &geometry, address);
            let header = match decoded {
                Ok(header) => header,
                Err(error) => {
                    let rest = format!("{error}; the rest of segment {segment} can't be walked");
                    self.find(address, None, rest);
                    return Ok(());
                }
            };
            if !header.continues(generation, previous.unwrap_or(header.previous.get()), lsn) {
                self.find(address, None, "the frame does not continue the log [F-22]");
            }
            previous = Some(header.checksum.get());
            lsn = header.lsn.get();
            self.frame(window, &header, address)?;
            offset += u64::from(header.length.get());
        }
        Ok(())
    }

    /// Looks at a frame's records and its padding: `window` begins with it.
    fn frame(
        &mut self,
        mut window: Window,
        header: &FrameHeader,
        address: u64,
    ) -> Result<(), StorageError> {
        let end = address + u64::from(header.used.get());
        let mut at = address + size_of::<FrameHeader>() as u64;
        let mut checksums = Vec::new();
        while at < end {
            let known = window.range.end.min(end);
            let bytes = window.bytes(at..known.max(at)).unwrap_or_default();
            let (identity, geometry) = (self.sector.identity(), self.sector.geometry());
            let record = match RecordView::decode(bytes, identity, &geometry, at) {
                Ok(record) => record,
                // Its head reaches farther than what was read.
                Err(FormatError::Truncated { .. }) if known < end && window.range.start < at => {
                    window = self.read(at..end.min(at + WINDOW))?;
                    continue;
                }
                Err(error) => {
                    self.find(at, None, error);
                    return Ok(());
                }
            };
            checksums.push(record.header.checksum.get());
            let payload = Payload {
                address: at + record.payload_offset() as u64,
                length: record.header.payload_length.get().into(),
                lsn: record.header.lsn.get(),
            };
            let next = at.saturating_add(record.length());
            if next > end {
                self.find(at, None, "the record reaches past its frame's end [F-23]");
                return Ok(());
            }
            let (kind, key) = (record.kind, record.key.to_vec());
            if self.reads_payload(kind, &key, payload.lsn, at)
                && let Err(error) = self.payload(&window, payload, next)
            {
                let met = finding(error)?;
                let key = BinaryKey::of_stored(&key).ok();
                self.find(met.place.offset, key, met.what);
            }
            at = next;
        }
        if checksums.len() != header.records.get() as usize
            || records_checksum(checksums.into_iter()) != header.records_checksum.get()
        {
            let what = "the frame's records are others than its header says [F-23]";
            self.find(address, None, what);
        }
        let frame_end = address + u64::from(header.length.get());
        if window.bytes(end..frame_end).is_none() {
            window = self.read(end..frame_end)?;
        }
        let padding = window.bytes(end..frame_end).unwrap_or_default();
        if padding.iter().any(|&byte| byte != 0) {
            self.find(address, None, "the frame's padding is not zero [F-23]");
        }
        Ok(())
    }

    /// Whether a record's payload is looked at here: lists of pieces always, else what no replica is read by.
    fn reads_payload(&self, kind: RecordKind, key: &[u8], lsn: u64, address: u64) -> bool {
        let number = usize::from(self.sector.number());
        let is_live = || {
            let index = self.inner.index.read();
            let live = index.sectors[number].is_live(kind, key, lsn, address);
            live.unwrap_or(true)
        };
        kind.lists_pieces() || (self.depth == ScrubDepth::Everything && !is_live())
    }

    /// Checks a payload, which ends at `end` with its last chunk.
    fn payload(&mut self, window: &Window, payload: Payload, end: u64) -> Result<(), StorageError> {
        if let Some(stored) = window.bytes(payload.address..end) {
            let wrong = wrong_chunk(&self.sector, stored, payload.address, payload.lsn);
            return match wrong {
                None => Ok(()),
                Some(error) => Err(self.sector.corruption(payload.address, error)),
            };
        }
        let mut at = 0;
        while at < payload.length {
            let next = payload.length.min(at.saturating_add(READ_MAX));
            wait_for(self.sector.read_payload(payload, at..next))?;
            self.bytes += next - at;
            at = next;
        }
        Ok(())
    }
}

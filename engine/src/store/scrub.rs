//! Scrub: reads replicas back, whether anybody asks for them or not, so that damage is known while another
//! replica is there to mend it from.
//!
//! It goes through the keys in order, and can go on where it ended. What is damaged is marked, and repaired like
//! what a read has met. Damage clusters, so everything else that lies in the same segment is looked at next.
//! Behind the last key it looks at what lies around the replicas, sector by sector.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use super::index::{Entry, Piece};
use super::info::{Finding, ScrubProgress, ScrubReport};
use super::inner::Inner;
use super::options::{ScrubDepth, ScrubOptions};
use super::set::SectorSet;
use super::structure::Walk;
use crate::log::Sector;
use crate::log::sector::{Pin, READ_MAX, is_failed_read};
use crate::port::op::wait_for;
use crate::port::{BinaryKey, StorageError};
use crate::sync::thread;

/// Keys whose places are looked up under one lock.
const AT_ONCE: usize = 256;
/// Where what is looked at behind the last key begins: no stored key does. Then number and segment follow.
const AROUND: u8 = 0xFF;
/// Findings that a report holds, at most.
const FINDINGS_MAX: usize = 10_000;

struct Scrub<'a> {
    inner: &'a Arc<Inner>,
    options: &'a ScrubOptions,
    report: ScrubReport,
    /// Segments, by sector, around which everything is looked at.
    around: BTreeSet<(usize, u32)>,
    /// Those that were.
    seen: BTreeSet<(usize, u32)>,
    /// Replicas that were found to be damaged.
    damaged: BTreeSet<(BinaryKey, usize)>,
}

/// A replica, as its sector has it.
struct Held {
    sector: Arc<Sector>,
    entry: Entry,
    pieces: Result<Vec<Piece>, StorageError>,
    _pin: Pin,
}

impl Inner {
    /// See [`Store::scrub`](super::Store::scrub).
    pub fn scrub(
        self: &Arc<Self>,
        options: &ScrubOptions,
        progress: &mut dyn FnMut(ScrubProgress) -> ControlFlow<()>,
    ) -> Result<ScrubReport, StorageError> {
        let mut scrub = Scrub::new(self, options);
        let mut from = options.from.clone().unwrap_or_default();
        if let Some(place) = place_around(&from) {
            scrub.around_replicas(place, progress)?;
            return Ok(scrub.report);
        }
        loop {
            let (keys, next) = self.keys_from(&from, AT_ONCE)?;
            for key in keys {
                self.check_open()?;
                scrub.key(&key)?;
                scrub.look_around()?;
                if progress(scrub.progress()).is_break() {
                    let behind = [key.stored(), &[0]].concat();
                    scrub.report.next = Some(behind);
                    return Ok(scrub.report);
                }
            }
            match next {
                Some(next) => from = next,
                None => {
                    scrub.around_replicas((0, 0), progress)?;
                    return Ok(scrub.report);
                }
            }
        }
    }
}

/// The sector and the segment at which a scrub goes on that has been through the keys.
fn place_around(from: &[u8]) -> Option<(usize, u32)> {
    let (number, segment) = from.strip_prefix(&[AROUND])?.split_at_checked(2)?;
    let number = u16::from_be_bytes(number.try_into().ok()?);
    Some((number.into(), u32::from_be_bytes(segment.try_into().ok()?)))
}

impl<'a> Scrub<'a> {
    fn new(inner: &'a Arc<Inner>, options: &'a ScrubOptions) -> Self {
        Self {
            inner,
            options,
            report: ScrubReport::default(),
            around: BTreeSet::new(),
            seen: BTreeSet::new(),
            damaged: BTreeSet::new(),
        }
    }

    fn progress(&self) -> ScrubProgress {
        ScrubProgress {
            keys: self.report.keys,
            bytes: self.report.bytes,
            damaged: self.report.findings.len() as u64,
        }
    }

    /// All replicas of a key.
    fn key(&mut self, key: &BinaryKey) -> Result<(), StorageError> {
        self.report.keys += 1;
        let found = self.inner.index.read().lookup(key.stored())?;
        let holders = found.map(|found| found.holders);
        for number in holders.iter().flat_map(|holders| holders.iter()) {
            self.replica(key, number)?;
        }
        Ok(())
    }

    fn replica(&mut self, key: &BinaryKey, number: usize) -> Result<(), StorageError> {
        let Some(held) = self.hold(key, number)? else {
            return Ok(());
        };
        self.report.replicas += 1;
        let mut damaged = None;
        let mut note = |range: std::ops::Range<u64>, error: StorageError| {
            if !matches!(error, StorageError::Corruption { .. }) && !is_failed_read(&error) {
                return Err(error);
            }
            let (inner, version) = (self.inner, held.entry.lsn);
            let now = inner.now();
            inner.marks.mark(key, number, version, &range, &error, now);
            damaged.get_or_insert(error);
            Ok(())
        };
        let mut bytes = 0;
        match &held.pieces {
            Err(error) => note(0..held.entry.size, error.clone())?,
            Ok(pieces) => {
                if self.options.depth >= ScrubDepth::Headers {
                    bytes += held.entry.head_length(key.stored());
                    let entry = &held.entry;
                    let (lsn, length) = (entry.record_lsn(), entry.meta_length);
                    let head = held.sector.read_meta(entry.address, key, lsn, length);
                    if let Err(error) = wait_for(head) {
                        note(0..0, error)?;
                    }
                }
                let mut position = 0;
                for piece in pieces {
                    let length = piece.range.end - piece.range.start;
                    if self.options.depth == ScrubDepth::Everything {
                        bytes += read_piece(&held.sector, piece, position, &mut note)?;
                    }
                    position += length;
                }
            }
        }
        match damaged {
            Some(error) => self.found(key, number, &held, error),
            // What was marked is well again.
            None if self.options.depth == ScrubDepth::Everything => {
                self.inner.marks.clear(key, number);
            }
            None => {}
        }
        drop(held);
        self.report.bytes += bytes;
        pace(bytes, self.options.bytes_per_second);
        Ok(())
    }

    fn hold(&self, key: &BinaryKey, number: usize) -> Result<Option<Held>, StorageError> {
        let sector = Arc::clone(&self.inner.sectors[number]);
        let index = self.inner.index.read();
        let Some(entry) = index.entry_in(number, key.stored())? else {
            return Ok(None);
        };
        let pieces = index.sectors[number].pieces(key, &entry, &(0..entry.size));
        let payloads = pieces.iter().flatten().filter_map(|piece| piece.payload);
        let addresses = payloads.map(|payload| payload.address);
        let pin = sector.pin(addresses.chain(std::iter::once(entry.address)));
        Ok(Some(Held {
            sector,
            entry,
            pieces,
            _pin: pin,
        }))
    }

    fn found(&mut self, key: &BinaryKey, number: usize, held: &Held, error: StorageError) {
        if self.damaged.len() >= FINDINGS_MAX || !self.damaged.insert((key.clone(), number)) {
            return;
        }
        let (place, what) = match error {
            StorageError::Corruption { place, what, .. } => (place, what),
            StorageError::Io { place, source, .. } => (place, format!("read failed: {source}")),
            other => (held.sector.place(held.entry.address), other.to_string()),
        };
        if let Some((segment, _)) = held.sector.geometry().segment_of(place.offset)
            && !self.seen.contains(&(number, segment))
        {
            self.around.insert((number, segment));
        }
        // What is written anew elsewhere leaves something damaged there.
        self.inner.want_mending(&place);
        self.report.findings.push(Finding {
            place,
            key: Some(key.clone()),
            what,
        });
    }

    /// Looks at everything else that lies in segments where something is damaged.
    fn look_around(&mut self) -> Result<(), StorageError> {
        while let Some((number, segment)) = self.around.pop_first() {
            self.seen.insert((number, segment));
            for key in self.keys_in(number, segment)? {
                self.inner.check_open()?;
                self.replica(&key, number)?;
            }
        }
        Ok(())
    }

    fn keys_in(&self, number: usize, segment: u32) -> Result<Vec<BinaryKey>, StorageError> {
        let index = self.inner.index.read();
        let part = &index.sectors[number];
        let geometry = self.inner.sectors[number].geometry();
        let is_there = |address| {
            let place = geometry.segment_of(address);
            place.is_some_and(|(of, _)| of == segment)
        };
        let mut keys = Vec::new();
        part.scan(&[], |stored, entry| {
            let key = BinaryKey::of_stored(stored);
            if let Ok(key) = key {
                let pieces = part.pieces(&key, entry, &(0..entry.size));
                let mut payloads = pieces.iter().flatten().filter_map(|piece| piece.payload);
                if is_there(entry.address) || payloads.any(|payload| is_there(payload.address)) {
                    keys.push(key);
                }
            }
            Ok(true)
        })?;
        Ok(keys)
    }

    /// Looks at what lies around the replicas, from a segment of a sector on.
    fn around_replicas(
        &mut self,
        (first, mut segment): (usize, u32),
        progress: &mut dyn FnMut(ScrubProgress) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        if self.options.depth < ScrubDepth::Headers {
            return Ok(());
        }
        let members = self.inner.sectors.members().iter();
        for number in members.skip_while(|number| *number < first) {
            let sector = Arc::clone(&self.inner.sectors[number]);
            if sector.is_stood_in_for() {
                continue;
            }
            if number != first {
                segment = 0;
            }
            if segment == 0 {
                let (findings, bytes) = self.inner.look_at_checkpoints(number)?;
                for finding in &findings {
                    match sector.geometry().segment_of(finding.place.offset) {
                        None => self.inner.want_mending(&finding.place),
                        // It is of an image.
                        Some(_) => self.inner.want_checkpoints(&finding.place),
                    }
                }
                self.found_around(findings, bytes);
            }
            for segment in segment..sector.geometry().segment_count {
                self.inner.check_open()?;
                if sector.is_gone() {
                    break;
                }
                let mut walk = Walk::new(self.inner, number, self.options.depth);
                walk.segment(segment)?;
                for finding in &walk.findings {
                    self.inner.want_mending(&finding.place);
                }
                let (findings, bytes) = (walk.findings, walk.bytes);
                self.found_around(findings, bytes);
                if bytes > 0 && progress(self.progress()).is_break() {
                    let number = sector.number().to_be_bytes();
                    let next = (segment + 1).to_be_bytes();
                    self.report.next = Some([&[AROUND][..], &number, &next].concat());
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn found_around(&mut self, findings: Vec<Finding>, bytes: u64) {
        let room = FINDINGS_MAX.saturating_sub(self.report.findings.len());
        self.report.findings.extend(findings.into_iter().take(room));
        self.report.bytes += bytes;
        pace(bytes, self.options.bytes_per_second);
    }
}

impl Inner {
    /// The next keys from a stored one on, so many at most, and where to go on behind them.
    ///
    /// # Errors
    /// `Corruption` of the index.
    pub fn keys_from(
        &self,
        from: &[u8],
        most: usize,
    ) -> Result<(Vec<BinaryKey>, Option<Vec<u8>>), StorageError> {
        let index = self.index.read();
        let (mut keys, mut last) = (Vec::new(), None);
        // Nothing is kept of what was deleted.
        index.scan_replicas(from, u64::MAX, SectorSet::NONE, |stored, _, _, _| {
            keys.extend(BinaryKey::of_stored(stored));
            last = Some([stored, &[0]].concat());
            Ok(keys.len() < most)
        })?;
        let is_full = keys.len() == most;
        Ok((keys, last.filter(|_| is_full)))
    }

    /// Reads a replica back; what is damaged of it is marked.
    ///
    /// # Errors
    /// `Corruption` of the index.
    pub fn read_back(self: &Arc<Self>, key: &BinaryKey, number: usize) -> Result<(), StorageError> {
        let options = ScrubOptions::default();
        Scrub::new(self, &options).replica(key, number)
    }
}

/// Waits as long as so many bytes take, where so many are looked at in a second at most.
pub fn pace(bytes: u64, bytes_per_second: Option<u64>) {
    if let Some(most) = bytes_per_second {
        let seconds = bytes as f64 / most.max(1) as f64;
        thread::sleep(Duration::from_secs_f64(seconds));
    }
}

/// Reads a piece back, and notes what can't be read of it: it begins at `position` of its blob. Returns how many
/// bytes that were.
fn read_piece(
    sector: &Sector,
    piece: &Piece,
    position: u64,
    note: &mut impl FnMut(std::ops::Range<u64>, StorageError) -> Result<(), StorageError>,
) -> Result<u64, StorageError> {
    let Some(payload) = piece.payload else {
        return Ok(0);
    };
    let mut at = piece.range.start;
    while at < piece.range.end {
        let end = piece.range.end.min(at.saturating_add(READ_MAX));
        if let Err(error) = wait_for(sector.read_payload(payload, at..end)) {
            let start = position + (at - piece.range.start);
            note(start..start + (end - at), error)?;
        }
        at = end;
    }
    Ok(piece.range.end - piece.range.start)
}

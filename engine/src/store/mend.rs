//! Mending: damage that lies around records is undone in the sector itself.
//!
//! What a copy of the superblock or of the store file, a checkpoint's root or an image says is in memory, too: it is
//! written anew. A segment
//! of the log is *emptied*: where its frames can't be walked any more, the index still says where each record
//! lies that is needed. Each is read at its place, checked, and moved to the log's end as compaction does it.
//! What can't be read stays, and is marked, so that repair writes it anew elsewhere if another sector has it. Once
//! nothing lives in the segment it is reclaimed like any other, and zeros are written over it.
//!
//! What is to be mended is in memory alone: opening the store, or a scrub, finds it again.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use graviton_format::FormatError;
use graviton_format::checksum::stored_length;
use graviton_format::geometry::{AREA_SIZE, ROOT_SLOT_SIZE, ROOT_SLOTS, STORE_FILE_SLOT_SIZE};
use graviton_format::record::{Manifest, RecordKind, record_length};

use super::commit::{Move, Work};
use super::index::{Entry, SectorIndex};
use super::inner::Inner;
use super::maintain::{MOVE_BATCH, to_move};
use super::record::encode;
use super::set::SectorSet;
use crate::log::replay::decode_record;
use crate::log::sector::{Payload, is_failed_read};
use crate::log::store_file::keep_copies;
use crate::log::{Sector, State};
use crate::port::op::wait_for;
use crate::port::{BinaryKey, Place, RangeSet, Span, StorageError};

/// Records that are looked up under one lock.
const AT_ONCE: usize = 4096;
/// How often the index is looked through for what lives in a segment: what came about meanwhile may have been
/// missed.
const PASSES: u32 = 3;
/// Checkpoints after which all that is kept of them was written anew.
const CHECKPOINTS: u32 = 2;

/// What is known to be damaged around the records of the sectors.
#[derive(Debug, Default)]
pub struct Mending {
    by_sector: BTreeMap<usize, Damaged>,
}

/// What is damaged of one sector.
#[derive(Debug, Default)]
struct Damaged {
    /// A copy of the superblock.
    superblock: bool,
    /// A copy of the store file, or that has been written since.
    store_file: bool,
    /// Checkpoints that are still to be taken: a root is, or an image.
    checkpoints: u32,
    segments: BTreeMap<u32, Emptying>,
}

/// How far a damaged segment is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Emptying {
    /// The one that is damaged.
    generation: u64,
    /// How often the index was looked through for it.
    passes: u32,
    /// Something in it can't be read.
    has_lost: bool,
    /// Free segments when there was no room to move what lives in it.
    blocked: Option<u32>,
}

/// A record that is to be moved out of a segment.
struct Placed {
    address: u64,
    length: u64,
    lsn: u64,
    /// Whose it is and what it may be, if that is known.
    expected: Option<(BinaryKey, Vec<RecordKind>)>,
    /// What is known of it otherwise.
    front: Option<Front>,
}

/// What the index knows of a record.
struct Front {
    key: BinaryKey,
    kind: RecordKind,
    time: u64,
    meta_length: u32,
    payload: Payload,
    /// The pieces that it lists, if it does.
    manifest: Option<Manifest>,
}

/// What can't be read in a segment.
#[derive(Default)]
struct Lost {
    /// Payload that manifests name.
    extents: HashSet<u64>,
    /// The first thing that was met.
    error: Option<StorageError>,
}

impl Mending {
    fn of(&mut self, number: usize) -> &mut Damaged {
        self.by_sector.entry(number).or_default()
    }

    /// Checkpoints of a sector are to be written anew.
    pub fn want_checkpoints(&mut self, number: usize) {
        self.of(number).checkpoints = CHECKPOINTS;
    }

    /// The copies of the store file in a sector may not be like it.
    pub fn want_store_file(&mut self, number: usize) {
        self.of(number).store_file = true;
    }

    /// A sector is gone.
    pub fn forget(&mut self, number: usize) {
        self.by_sector.remove(&number);
    }

    fn segment(&mut self, number: usize, segment: u32) -> Option<&mut Emptying> {
        self.by_sector.get_mut(&number)?.segments.get_mut(&segment)
    }
}

impl Inner {
    /// Something is damaged that is no payload of a live record, or lies where such payload is: it is to be
    /// mended.
    pub fn want_mending(&self, place: &Place) {
        let number = usize::from(place.sector);
        let sector = &self.sectors[number];
        if sector.is_gone() || sector.is_stood_in_for() {
            return;
        }
        let geometry = sector.geometry();
        let segment = geometry.segment_of(place.offset);
        let known = segment.map(|(segment, _)| {
            let index = self.index.read();
            (segment, *index.sectors[number].segments.get(segment))
        });
        let mut mending = self.mending.lock();
        let damaged = mending.of(number);
        match known {
            Some((segment, known)) => {
                let fresh = Emptying {
                    generation: known.generation,
                    ..Emptying::default()
                };
                damaged.segments.insert(segment, fresh);
                if known.state == State::Checkpoint {
                    damaged.checkpoints = CHECKPOINTS;
                }
            }
            None => match place.offset % AREA_SIZE / ROOT_SLOT_SIZE as u64 {
                0 => damaged.superblock = true,
                slot if slot <= ROOT_SLOTS => damaged.checkpoints = CHECKPOINTS,
                _ => damaged.store_file = true,
            },
        }
        drop(mending);
        self.kick_maintenance();
    }

    /// Where damage was met when the store was opened.
    pub fn places_of_damage(&self) -> Vec<Place> {
        let damage = self.damage.lock();
        damage.iter().filter_map(place_of).collect()
    }

    /// Something of a checkpoint is damaged, be it that the sector has fallen back to an older one.
    pub fn want_checkpoints(&self, place: &Place) {
        self.want_mending(place);
        let number = usize::from(place.sector);
        if !self.sectors[number].is_stood_in_for() {
            self.mending.lock().want_checkpoints(number);
        }
    }

    /// Mends one thing that is damaged around records. `false` if there is nothing, or nothing that can be done
    /// now. Maintenance must be held.
    ///
    /// # Errors
    /// What the disk reports of one sector; the others are seen to.
    pub fn step_mend(self: &Arc<Self>) -> Result<bool, StorageError> {
        let numbers: Vec<usize> = self.mending.lock().by_sector.keys().copied().collect();
        let mut failed = None;
        for number in numbers {
            if self.sectors[number].check_writable().is_err() {
                continue;
            }
            match self.mend_sector(number) {
                Ok(false) | Err(StorageError::NoSpace { .. }) => {}
                Ok(true) => return Ok(true),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(false), Err)
    }

    fn mend_sector(self: &Arc<Self>, number: usize) -> Result<bool, StorageError> {
        let (superblock, checkpoints, segments) = {
            let mut mending = self.mending.lock();
            let damaged = mending.of(number);
            let segments: Vec<_> = damaged
                .segments
                .iter()
                .map(|(at, how)| (*at, *how))
                .collect();
            (damaged.superblock, damaged.checkpoints, segments)
        };
        let sector = &self.sectors[number];
        if superblock {
            wait_for(sector.renew_superblock())?;
            self.mending.lock().of(number).superblock = false;
            for start in sector.geometry().superblocks() {
                self.forget_damage(number, start..start + ROOT_SLOT_SIZE as u64);
            }
            return Ok(true);
        }
        if self.keep_store_file(number)? {
            return Ok(true);
        }
        if checkpoints > 0 && self.try_checkpoint(number)? {
            self.mending.lock().of(number).checkpoints = checkpoints - 1;
            if checkpoints == 1 {
                for start in sector.geometry().superblocks() {
                    let slots =
                        [1, 1 + ROOT_SLOTS].map(|slot| start + slot * ROOT_SLOT_SIZE as u64);
                    self.forget_damage(number, slots[0]..slots[1]);
                }
            }
            return Ok(true);
        }
        for (segment, emptying) in segments {
            if self.mend_segment(number, segment, emptying)? {
                return Ok(true);
            }
        }
        let mut mending = self.mending.lock();
        let damaged = mending.of(number);
        let is_mended = !damaged.superblock && !damaged.store_file && damaged.checkpoints == 0;
        if is_mended && damaged.segments.is_empty() {
            mending.forget(number);
        }
        Ok(false)
    }

    /// Brings a damaged segment nearer to its next use.
    fn mend_segment(
        self: &Arc<Self>,
        number: usize,
        segment: u32,
        emptying: Emptying,
    ) -> Result<bool, StorageError> {
        let (now, free) = {
            let index = self.index.read();
            let segments = &index.sectors[number].segments;
            (*segments.get(segment), segments.free())
        };
        if now.generation != emptying.generation {
            self.mended(number, segment);
            return Ok(true);
        }
        match now.state {
            State::Open => self.leave_segment(number, segment),
            State::Sealed if now.live == 0 => {
                self.reclaim(number);
                Ok(true)
            }
            // What is left waits for repair.
            State::Sealed if emptying.has_lost || emptying.passes >= PASSES => Ok(false),
            State::Sealed if emptying.blocked.is_some_and(|blocked| free <= blocked) => Ok(false),
            State::Sealed => match self.empty_segment(number, segment, emptying) {
                Err(StorageError::NoSpace { .. }) => {
                    let free = self.index.read().sectors[number].segments.free();
                    if let Some(emptying) = self.mending.lock().segment(number, segment) {
                        emptying.blocked = Some(free);
                    }
                    Ok(false)
                }
                outcome => outcome.map(|()| true),
            },
            State::Reclaimed if self.sectors[number].is_pinned(segment) => Ok(false),
            State::Reclaimed | State::Checkpoint => {
                let taken = self.try_checkpoint(number)?;
                self.reclaim(number);
                self.pump();
                Ok(taken)
            }
            State::Free => {
                let taken = self.index.write().sectors[number]
                    .segments
                    .take_damaged(segment);
                if taken {
                    self.zero_segment(number, segment)?;
                    self.mended(number, segment);
                }
                Ok(taken)
            }
        }
    }

    /// Makes the copies of the store file in a sector like it, if they may not be. Returns whether one was not.
    /// Maintenance must be held.
    ///
    /// # Errors
    /// As [`keep_copies`].
    pub fn keep_store_file(&self, number: usize) -> Result<bool, StorageError> {
        if !std::mem::take(&mut self.mending.lock().of(number).store_file) {
            return Ok(false);
        }
        let sector = &self.sectors[number];
        let file = self.catalog.lock().text();
        let kept = wait_for(keep_copies(sector, &file));
        if kept.is_err() {
            self.mending.lock().want_store_file(number);
            return kept;
        }
        for start in sector.geometry().store_file_copies() {
            self.forget_damage(number, start..start + STORE_FILE_SLOT_SIZE as u64);
        }
        kept
    }

    /// The same in all sectors that can be written to. One that does not take it is given up.
    pub fn keep_store_file_everywhere(&self) {
        for number in self.writable().iter() {
            let _ = self.keep_store_file(number);
        }
    }

    /// A segment is as new, or used anew.
    fn mended(&self, number: usize, segment: u32) {
        self.mending.lock().of(number).segments.remove(&segment);
        let geometry = self.sectors[number].geometry();
        let start = geometry.segment_offset(segment);
        self.forget_damage(number, start..start + geometry.segment_size);
    }

    /// What was found damaged there is no more.
    fn forget_damage(&self, number: usize, range: std::ops::Range<u64>) {
        let is_there =
            |place: &Place| usize::from(place.sector) == number && range.contains(&place.offset);
        let keeps = |error: &StorageError| !place_of(error).is_some_and(|place| is_there(&place));
        self.damage.lock().retain(keeps);
        let lead = format!("sector {number} at offset ");
        self.health.lock().retain(|line| {
            let told = line.split_once(&lead).map(|(_, rest)| {
                let digits = rest.split(|next: char| !next.is_ascii_digit()).next();
                digits.and_then(|digits| digits.parse().ok())
            });
            !told.flatten().is_some_and(|offset| range.contains(&offset))
        });
    }

    /// The log goes on in another segment. Returns whether it does.
    fn leave_segment(self: &Arc<Self>, number: usize, segment: u32) -> Result<bool, StorageError> {
        self.commits.lock().leave_segment(number);
        wait_for(self.submit(SectorSet::one(number), Work::Note, true))?;
        let index = self.index.read();
        Ok(index.sectors[number].segments.get(segment).state != State::Open)
    }

    /// Moves what lives in a segment, and can be read, to the log's end.
    ///
    /// # Errors
    /// `NoSpace` when there is not enough room (some of it may have been moved), and what else keeps the log
    /// from taking it.
    fn empty_segment(
        self: &Arc<Self>,
        number: usize,
        segment: u32,
        emptying: Emptying,
    ) -> Result<(), StorageError> {
        // No recovery is to come by there again, to which what is damaged would be lost.
        let is_replayed = self.kept.lock()[number].replays(emptying.generation);
        if is_replayed && !self.try_checkpoint(number)? {
            return Err(StorageError::NoSpace {
                needed: 0,
                available: 0,
            });
        }
        let mut lost = Lost::default();
        self.move_extents(number, segment, &mut lost)?;
        self.move_behind_lost_fronts(number, &mut lost)?;
        self.move_records(number, segment, &mut lost)?;
        if let Some(emptying) = self.mending.lock().segment(number, segment) {
            emptying.passes += 1;
            emptying.has_lost = lost.error.is_some();
        }
        let mut index = self.index.write();
        let segments = &mut index.sectors[number].segments;
        let now = *segments.get(segment);
        if now.live > 0 && now.generation == emptying.generation {
            segments.set_damaged(segment);
        }
        drop(index);
        if let Some(error) = lost.error {
            self.note_failure("mending", &error);
        }
        Ok(())
    }

    /// Moves the payload in a segment that manifests name.
    fn move_extents(
        self: &Arc<Self>,
        number: usize,
        segment: u32,
        lost: &mut Lost,
    ) -> Result<(), StorageError> {
        let mut after = 0;
        loop {
            self.check_open()?;
            let (found, _pin) = {
                let index = self.index.read();
                let part = &index.sectors[number];
                let found = part.extents_in(segment, after, AT_ONCE);
                let pin = part
                    .sector()
                    .pin(found.values().map(|(address, _)| *address));
                (found, pin)
            };
            let Some((&last, _)) = found.last_key_value() else {
                return Ok(());
            };
            after = last;
            let places = found.into_iter().map(|(lsn, (address, length))| Placed {
                address,
                length,
                lsn,
                expected: None,
                front: None,
            });
            self.move_placed(number, places, |placed, error| {
                lost.extents.insert(placed.lsn);
                lost.error.get_or_insert(error);
            })?;
        }
    }

    /// Moves payload that can be read, though the fronts of its records can't: they are made anew.
    fn move_behind_lost_fronts(
        self: &Arc<Self>,
        number: usize,
        lost: &mut Lost,
    ) -> Result<(), StorageError> {
        let (mut from, mut fronts) = (Vec::new(), BTreeMap::new());
        while !lost.extents.is_empty() {
            self.check_open()?;
            let (mut seen, mut last) = (0, None);
            let index = self.index.read();
            let part = &index.sectors[number];
            part.scan(&from, |stored, entry| {
                seen += 1;
                last = Some([stored, &[0]].concat());
                let Ok(key) = BinaryKey::of_stored(stored) else {
                    return Ok(seen < AT_ONCE);
                };
                // What is said of a blob is lost with the front of its record.
                if lost.extents.contains(&entry.record_lsn()) && part.is_extent(entry) {
                    let placed = placed(&key, kinds_of(part, entry), entry);
                    fronts.insert(entry.record_lsn(), placed);
                }
                for piece in entry.extents.iter().flat_map(|pieces| pieces.iter()) {
                    let lsn = piece.lsn.get();
                    if !lost.extents.contains(&lsn) {
                        continue;
                    }
                    if let (Some(head), Some(payload)) = (part.head_of(lsn), part.payload_of(lsn)) {
                        fronts.entry(lsn).or_insert_with(|| Placed {
                            address: head.start,
                            length: head.end - head.start + stored_length(payload.length),
                            lsn,
                            expected: None,
                            front: Some(Front {
                                key: key.clone(),
                                kind: RecordKind::Extent,
                                time: entry.time,
                                meta_length: 0,
                                payload,
                                manifest: None,
                            }),
                        });
                    }
                }
                Ok(seen < AT_ONCE)
            })?;
            match last.filter(|_| seen == AT_ONCE) {
                Some(next) => from = next,
                None => break,
            }
        }
        let fronts = fronts.into_values().filter(|placed| placed.front.is_some());
        let places: Vec<Placed> = fronts.collect();
        for placed in &places {
            lost.extents.remove(&placed.lsn);
        }
        self.move_placed(number, places.into_iter(), |placed, _| {
            lost.extents.insert(placed.lsn);
        })?;
        if lost.extents.is_empty() {
            lost.error = None;
        }
        Ok(())
    }

    /// Moves the records in a segment that the index names by their keys; marks what can't be read, and what
    /// names payload that can't.
    fn move_records(
        self: &Arc<Self>,
        number: usize,
        segment: u32,
        lost: &mut Lost,
    ) -> Result<(), StorageError> {
        let geometry = self.sectors[number].geometry();
        let mut from = Vec::new();
        loop {
            self.check_open()?;
            let (mut found, mut seen, mut last) = (BTreeMap::new(), 0, None);
            let _pin = {
                let index = self.index.read();
                let part = &index.sectors[number];
                part.scan(&from, |stored, entry| {
                    let place = geometry.segment_of(entry.address);
                    let is_here = place.is_some_and(|(of, _)| of == segment);
                    if (is_here || !lost_ranges(entry, &lost.extents).is_empty())
                        && let Ok(key) = BinaryKey::of_stored(stored)
                    {
                        found.insert(key, (kinds_of(part, entry), entry.clone(), is_here));
                    }
                    seen += 1;
                    last = Some([stored, &[0]].concat());
                    Ok(seen < AT_ONCE)
                })?;
                part.sector()
                    .pin(std::iter::once(geometry.segment_offset(segment)))
            };
            let now = self.now();
            for (key, (_, entry, _)) in &found {
                let ranges = lost_ranges(entry, &lost.extents);
                if let Some(error) = &lost.error
                    && !ranges.is_empty()
                {
                    let held = Span::new(0, entry.size).into_iter().collect();
                    let what = error.to_string();
                    let marks = &self.marks;
                    marks.mark_ranges(key, number, entry.lsn, &ranges, &held, &what, now);
                }
            }
            let here = found.iter().filter(|(_, (.., is_here))| *is_here);
            let places = here.map(|(key, (kinds, entry, _))| placed(key, kinds.clone(), entry));
            self.move_placed(number, places, |placed, error| {
                let entry = placed
                    .expected
                    .as_ref()
                    .and_then(|(key, _)| found.get(key).map(|(_, entry, _)| (key, entry)));
                if let Some((key, entry)) = entry {
                    let marks = &self.marks;
                    marks.mark(key, number, entry.lsn, &(0..entry.size), &error, now);
                }
                lost.error.get_or_insert(error);
            })?;
            match last.filter(|_| seen == AT_ONCE) {
                Some(next) => from = next,
                None => return Ok(()),
            }
        }
    }

    /// Moves records, some at a time, and tells of those that can't be read.
    fn move_placed(
        self: &Arc<Self>,
        number: usize,
        places: impl Iterator<Item = Placed>,
        mut tell: impl FnMut(&Placed, StorageError),
    ) -> Result<(), StorageError> {
        let (mut batch, mut batched) = (Vec::new(), 0);
        for placed in places {
            match read_placed(&self.sectors[number], &placed) {
                Ok(moved) => {
                    batched += moved.length();
                    batch.push(moved);
                }
                Err(error)
                    if matches!(error, StorageError::Corruption { .. })
                        || is_failed_read(&error) =>
                {
                    tell(&placed, error);
                }
                Err(error) => return Err(error),
            }
            if batched >= MOVE_BATCH {
                batched = 0;
                self.move_all(number, std::mem::take(&mut batch))?;
            }
        }
        self.move_all(number, batch)
    }
}

/// Where an error was met.
pub fn place_of(error: &StorageError) -> Option<Place> {
    match error {
        StorageError::Corruption { place, .. } | StorageError::Io { place, .. } => {
            Some(place.clone())
        }
        _ => None,
    }
}

/// Which bytes of a version lie in payload that can't be read.
fn lost_ranges(entry: &Entry, lost: &HashSet<u64>) -> RangeSet {
    if lost.is_empty() {
        return RangeSet::new();
    }
    let mut position = 0;
    let pieces = entry.all_pieces();
    let spans = pieces.iter().filter_map(|piece| {
        let start = position;
        position += u64::from(piece.length.get());
        let is_lost = lost.contains(&piece.lsn.get());
        is_lost.then(|| Span::new(start, position).ok())?
    });
    spans.collect()
}

/// What the record of an entry may be.
fn kinds_of(part: &SectorIndex, entry: &Entry) -> Vec<RecordKind> {
    let kinds = [RecordKind::Blob, RecordKind::Manifest].into_iter();
    kinds.filter(|kind| part.may_be(*kind, entry)).collect()
}

/// The record of an entry.
fn placed(key: &BinaryKey, kinds: Vec<RecordKind>, entry: &Entry) -> Placed {
    let payload = entry.stored_payload(key.stored());
    let extents = entry.extents.as_deref();
    let manifest = extents.map(|extents| Manifest {
        size: entry.size,
        extents: extents.to_vec(),
    });
    // Of what was changed since nobody knows what its record says.
    let front = entry.changed.is_none().then(|| Front {
        key: key.clone(),
        kind: match entry.extents {
            None => RecordKind::Blob,
            Some(_) => RecordKind::Manifest,
        },
        time: entry.time,
        meta_length: entry.meta_length,
        payload,
        manifest,
    });
    Placed {
        address: entry.address,
        length: entry.record_length(key.stored()),
        lsn: entry.record_lsn(),
        expected: Some((key.clone(), kinds)),
        front,
    }
}

/// A record of which something is damaged that is known otherwise: its front, or a list of pieces. `None` if there
/// is more.
fn rebuild(sector: &Sector, placed: &Placed, front: &Front) -> Option<Move> {
    let Front {
        key,
        kind,
        meta_length,
        payload,
        ..
    } = front;
    let head = sector.read_meta(placed.address, key, placed.lsn, *meta_length);
    let (meta, time) = match wait_for(head) {
        Ok(found) => found,
        Err(_) if *meta_length == 0 => (Vec::new(), front.time),
        Err(_) => return None,
    };
    let bytes = match &front.manifest {
        Some(manifest) => manifest.encode().into(),
        None => wait_for(sector.read_payload(*payload, 0..payload.length)).ok()?,
    };
    Some(Move {
        kind: *kind,
        key: key.clone(),
        lsn: placed.lsn,
        time,
        from: placed.address,
        // Nobody knows: then its pieces may be newer.
        replica: true,
        meta_length: *meta_length,
        payload_length: u32::try_from(bytes.len()).ok()?,
        record: encode(*kind, key, &meta, &bytes, time),
    })
}

/// Reads a record at its place, and checks that it is what the index says.
fn read_placed(sector: &Sector, placed: &Placed) -> Result<Move, StorageError> {
    let geometry = sector.geometry();
    let &Placed {
        address, length, ..
    } = placed;
    let room = geometry.segment_of(address);
    let room = room.map_or(0, |(_, offset)| geometry.segment_size - offset);
    if length > room {
        return Err(sector.corruption(address, "the index names more than the segment has"));
    }
    let decode = |bytes: &[u8]| -> Result<Move, String> {
        let decoded = decode_record(sector, bytes, address);
        let (record, wrong) = decoded.map_err(|error: FormatError| error.to_string())?;
        if let Some(wrong) = wrong {
            return Err(wrong.to_string());
        }
        let stored = record_length(
            record.key.stored().len(),
            record.meta.len(),
            record.payload_length.into(),
        );
        let is_it = match &placed.expected {
            Some((key, kinds)) => record.key == *key && kinds.contains(&record.kind),
            None => matches!(
                record.kind,
                RecordKind::Blob | RecordKind::Extent | RecordKind::Range
            ),
        };
        match is_it && record.lsn == placed.lsn && stored == length {
            true => Ok(to_move(sector, bytes, address, record)),
            false => Err("holds another record than the index says".to_owned()),
        }
    };
    let read = wait_for(sector.read_whole(address..address + length, decode));
    let rebuilt = match (&read, &placed.front) {
        (Ok(Ok(_)), _) | (_, None) => None,
        (_, Some(front)) => rebuild(sector, placed, front),
    };
    if let Some(rebuilt) = rebuilt {
        return Ok(rebuilt);
    }
    read?.map_err(|what| StorageError::Corruption {
        place: sector.place(address),
        key: placed.expected.as_ref().map(|(key, _)| key.clone()),
        what: format!("{what}; left where it is"),
    })
}

//! Assembling a flight of frames, one for each of its sectors: which of the requests that wait they take,
//! and what comes of each.
//!
//! Requests are decided in their order, against the index as it is and what this flight already
//! changes. The records of one go to all its sectors. A request that can't be part of this flight waits,
//! and with it whatever is about the same keys.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use foldhash::fast::RandomState as FastHash;
use graviton_format::Geometry;
use graviton_format::checksum::stored_length;
use graviton_format::key::StoredKey;
use graviton_format::meta::CHANGE_LEN;
use graviton_format::record::{
    BLOB_MAX_LEN, Change, ExtentRef, FLAG_MOVED, FLAG_REPLICA, Manifest, RecordKind, record_length,
};
use indexmap::IndexMap;

use super::commit::{
    Answering, Claim, Claims, Done, Mutation, MutationOutcome, PlannedSource, Reply, Request, Work,
};
use super::index::{Applied, Entry, Index, Joined};
use super::record;
use super::set::SectorSet;
use super::tracker::Known;
use crate::log::append::frame_length;
use crate::log::image_io::image_segments;
use crate::log::{Encoded, Purpose, Segments, State, Tail};
use crate::port::mutable::resolve_put_range;
use crate::port::{BinaryKey, ETag, Precondition, Span, StorageError, UploadId};

/// Frames grow to about this many bytes by grouping; a single request may be longer.
pub const FRAME_TARGET: usize = 4 << 20;

/// The most pieces that ranges may make of a blob: each takes 16 bytes, in memory as on disk.
pub const PIECES_MAX: usize = 1 << 20;

/// Pieces that a blob of this size may have however it was put: an extent takes a sixteenth of a segment,
/// or 4 MiB if that is less.
pub fn whole_pieces(geometry: &Geometry, size: u64) -> usize {
    let piece = (geometry.segment_size / 32).min(2 << 20);
    usize::try_from(size / piece).unwrap_or(usize::MAX / 2)
}

/// Whether a blob of `size` bytes may have so many pieces, where ranges may make `of_ranges` of it.
///
/// # Errors
/// `TooFragmented`.
pub fn check_pieces(
    key: &BinaryKey,
    of_ranges: usize,
    geometry: &Geometry,
    size: u64,
    fragments: usize,
) -> Result<(), StorageError> {
    let limit = of_ranges.min(PIECES_MAX) + whole_pieces(geometry, size);
    if fragments > limit {
        let key = key.clone();
        return Err(StorageError::TooFragmented {
            key,
            fragments,
            limit,
        });
    }
    Ok(())
}

/// How often payload is shared at most: twice that and a manifest's pieces can be counted.
const REFERENCES_MAX: u32 = u32::MAX / 2;

/// What happens all or not at all is one frame, and a frame lies in one segment.
///
/// # Errors
/// `InvalidArgument` if records of `length` bytes do not fit.
pub fn check_fits_frame(geometry: &Geometry, length: u64) -> Result<(), StorageError> {
    let capacity = geometry.image_bytes_per_segment();
    if frame_length(length) <= capacity {
        return Ok(());
    }
    Err(StorageError::invalid(format!(
        "one frame would take {length} bytes, a segment holds {capacity}"
    )))
}

/// What is not certain of a sector.
#[derive(Debug, Clone, Copy, Default)]
pub struct Doubt {
    /// A crash may take back what was done in it, or it was given up.
    pub in_doubt: bool,
    /// Its frames with LSNs up to this one failed, and may show after a crash.
    pub failed: u64,
}

/// A version that is decided, but not in the index yet.
#[derive(Debug, Clone, Copy)]
struct Decision {
    lsn: u64,
    /// Bytes of the blob.
    size: u64,
    /// The sectors that will have it.
    sectors: SectorSet,
}

/// The frame of one sector, being decided.
pub struct Draft {
    pub number: usize,
    geometry: Geometry,
    /// What it holds, in order.
    pub records: Vec<DraftRecord>,
    /// The segment the frame opens, and its generation.
    pub opened: Option<(u32, u64)>,
    /// It must be durable before it is answered.
    pub durable: bool,
    /// A note was asked for.
    pub notes: bool,
    /// Puts wait for a free segment.
    pub stalled: bool,
    /// Bytes of the records so far, and how many the segment can take.
    length: u64,
    room: u64,
    /// Bytes by which they make an image grow, at most.
    growth: u64,
    /// It takes nothing more.
    closed: bool,
    /// It goes behind a frame under way.
    follows: bool,
}

/// A record of a frame.
#[derive(Debug, Clone, Copy)]
pub struct DraftRecord {
    pub flags: u8,
    /// Which of the flight's decisions it is.
    pub decision: usize,
}

impl Draft {
    /// Begins a frame of sector `number`, whose log ends at `tail`.
    pub fn new(number: usize, geometry: Geometry, tail: Tail) -> Self {
        Self {
            number,
            geometry,
            records: Vec::new(),
            opened: None,
            durable: false,
            notes: false,
            stalled: false,
            length: 0,
            room: tail
                .room(geometry.segment_size)
                .saturating_sub(frame_length(0)),
            growth: 0,
            closed: false,
            follows: false,
        }
    }

    /// The same, behind frames under way that make an image grow by so many bytes.
    pub fn behind(self, growth: u64) -> Self {
        Self {
            growth,
            follows: true,
            ..self
        }
    }

    /// Bytes of its records.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Bytes by which it makes an image grow, with those it goes behind.
    pub fn growth(&self) -> u64 {
        self.growth
    }

    /// The same, for which the segment where the log ends has no room.
    pub fn in_next_segment(self) -> Self {
        Self { room: 0, ..self }
    }

    /// Whether there is anything to write.
    pub fn is_written(&self) -> bool {
        !self.records.is_empty() || self.notes || self.opened.is_some()
    }

    /// Finds room for a request: behind what the frame holds already or, if that is nothing, in a new
    /// segment.
    fn find_room(&mut self, segments: &Segments, work: &Work, length: u64, growth: u64) -> Room {
        let purpose = work.purpose();
        // Room that compaction or deletes took out of the reserve is not for puts.
        let held_back = purpose == Purpose::Put && segments.is_reserve_in_use();
        let target = FRAME_TARGET as u64;
        let growth = self.growth + growth;
        // By more than what the reserve is for, the next image may grow only where there is room for it.
        let held_back = held_back
            || (purpose == Purpose::Put
                && growth > target.min(self.geometry.segment_size)
                && !segments.has_room_for_images(image_segments(
                    &self.geometry,
                    usize::try_from(growth).unwrap_or(usize::MAX),
                )));
        let is_first = self.length == 0;
        let is_bounded = growth <= target.min(self.geometry.segment_size);
        let within_target = (is_first || self.length + length <= target)
            && (is_bounded || (is_first && !self.follows));
        let fits = self.length + length <= self.room && within_target;
        if self.follows && (held_back || !fits) {
            self.closed = true;
            return Room::NextFrame;
        }
        if !held_back {
            let note_needs_room = matches!(work, Work::Note) && self.room == 0;
            if fits && !note_needs_room {
                return Room::There;
            }
            if self.length > 0 {
                // Moves have no order among them: a smaller one may still fill the segment.
                self.closed |= purpose != Purpose::Compaction || !within_target;
                return Room::NextFrame;
            }
        }
        // Of some the length was not known before.
        if let Err(error) = check_fits_frame(&self.geometry, length) {
            return Room::Never(error);
        }
        if held_back {
            return self.without_room(work, length);
        }
        Room::Opens
    }

    /// No segment is free for a request.
    fn without_room(&mut self, work: &Work, length: u64) -> Room {
        if !work.waits_for_room() {
            return Room::Never(StorageError::NoSpace {
                needed: length,
                available: 0,
            });
        }
        self.stalled = true;
        Room::Nowhere
    }
}

/// What a flight has to heed that goes behind others.
pub struct Busy {
    /// They are made durable, so that it may be.
    pub durable: bool,
    /// What they are about.
    pub keys: HashSet<BinaryKey, FastHash>,
}

impl Busy {
    /// Whether a request can go behind them, in a store of so many sectors.
    fn admits(&self, request: &Request, sectors: usize) -> bool {
        // Where there are others, a version may have to be durable that was not asked to be.
        (self.durable || (sectors == 1 && !request.durable)) && request.work.is_plain() && {
            let mut keys = request.work.mutations().iter().flat_map(Mutation::keys);
            !keys.any(|key| self.keys.contains(key))
        }
    }
}

/// The flight being decided.
pub struct Assembly<'a> {
    index: &'a mut Index,
    drafts: Vec<Draft>,
    next_lsn: &'a mut u64,
    claims: &'a Claims,
    /// By sector of the store.
    doubts: Vec<Doubt>,
    /// The sectors that take records.
    writable: SectorSet,
    /// The most pieces that ranges may make of a blob.
    fragments_max: usize,
    /// It goes behind these.
    busy: Option<Busy>,
    /// The sectors that the request goes to which is being decided.
    target: SectorSet,
    /// Those of them that get its records.
    takers: SectorSet,
    /// Turns of the requests that were decided.
    turns: HashSet<u64>,
    /// Pieces that changes of this flight may have added, by blob.
    fragments: HashMap<BinaryKey, usize>,
    /// Keys of requests that wait: what comes later about them waits too.
    blocked: HashSet<BinaryKey, FastHash>,
    /// Keys that records of this flight change, and what they make of them.
    overlay: IndexMap<BinaryKey, Option<Decision>, FastHash>,
    /// What the request that is decided has put over what, in that, the first first.
    overlaid: Vec<(usize, Option<Decision>)>,
    decided: Decided,
}

/// What a flight holds, and what it answers.
#[derive(Default)]
pub struct Decided {
    /// Every request that it ends, and its answer if its frames do not fail.
    pub answers: Vec<Answering>,
    /// What its records do to the index, in their order, and the sectors that they are in.
    pub applied: Vec<(SectorSet, Applied)>,
    /// The records themselves, until its frames are built.
    pub records: Vec<Encoded>,
    /// Those that were taken back: payloads are given back to their owners where nothing is locked.
    refused: Vec<Encoded>,
    /// What trackers know by them.
    pub known: Vec<(BinaryKey, Known)>,
    /// What its requests have claimed.
    pub claims: Vec<Claim>,
    /// Bytes that its requests were counted as pending with, in each of their sectors.
    pub pending: Vec<(SectorSet, u64)>,
    /// The frames.
    pub drafts: Vec<Draft>,
    /// It takes no request but such as another can go behind: see [`Work::is_plain`].
    pub is_plain: bool,
}

/// Whether a frame can take a request.
enum Room {
    There,
    /// The frame is the first of a new segment.
    Opens,
    /// The next frame will have it.
    NextFrame,
    /// No segment is free for it.
    Nowhere,
    Never(StorageError),
}

impl<'a> Assembly<'a> {
    /// Begins a flight of these frames.
    pub fn new(
        index: &'a mut Index,
        drafts: Vec<Draft>,
        next_lsn: &'a mut u64,
        claims: &'a Claims,
        doubts: Vec<Doubt>,
    ) -> Self {
        Self {
            index,
            drafts,
            next_lsn,
            claims,
            doubts,
            writable: SectorSet::NONE,
            fragments_max: PIECES_MAX,
            busy: None,
            target: SectorSet::NONE,
            takers: SectorSet::NONE,
            turns: HashSet::new(),
            fragments: HashMap::new(),
            blocked: HashSet::default(),
            overlay: IndexMap::default(),
            overlaid: Vec::new(),
            decided: Decided {
                is_plain: true,
                ..Decided::default()
            },
        }
    }

    /// The same, where these sectors of the store take records.
    pub fn with_writable(self, writable: SectorSet) -> Self {
        Self { writable, ..self }
    }

    /// The same, but with so many pieces at most that ranges may make of a blob.
    pub fn with_fragments_max(self, most: usize) -> Self {
        Self {
            fragments_max: most.min(PIECES_MAX),
            ..self
        }
    }

    /// The same, behind these.
    pub fn behind(self, busy: Option<Busy>) -> Self {
        Self { busy, ..self }
    }

    /// Whether one of these sectors takes nothing more.
    pub fn is_closed(&self, sectors: SectorSet) -> bool {
        let mut drafts = self.drafts.iter();
        drafts.any(|draft| draft.closed && sectors.contains(draft.number))
    }

    fn targets(&mut self) -> impl Iterator<Item = &mut Draft> {
        let target = self.target;
        let drafts = self.drafts.iter_mut();
        drafts.filter(move |draft| target.contains(draft.number))
    }

    /// Decides a request that goes to these sectors; gives it back if it has to wait for a later flight.
    pub fn offer(&mut self, sectors: SectorSet, request: Request) -> Option<Request> {
        (self.target, self.takers) = (sectors, sectors);
        let all = self.index.sectors.len();
        let goes = |busy: &Busy| busy.admits(&request, all);
        if !self.busy.as_ref().is_none_or(goes) {
            // What comes later would overtake it.
            self.targets().for_each(|draft| draft.closed = true);
            return Some(request);
        }
        if self.must_wait(&request) {
            self.block(&request.work);
            // What must see the effect of this flight ends it, so that order is kept.
            self.targets()
                .for_each(|draft| draft.closed |= draft.length > 0);
            return Some(request);
        }
        let length = request.work.length_max() + self.length_decided_here(&request.work);
        let growth = length + request.work.growth_beside();
        let is_plain = request.work.is_plain();
        let reply = match self.find_room(&request.work, length, growth) {
            Room::There | Room::Opens => {
                for draft in self.targets() {
                    draft.growth += growth;
                    draft.durable |= request.durable;
                    draft.notes |= matches!(request.work, Work::Note);
                }
                self.decide(request.work)
            }
            Room::Never(error) => Err(error),
            Room::NextFrame | Room::Nowhere => {
                self.block(&request.work);
                return Some(request);
            }
        };
        self.decided.is_plain &= is_plain;
        if !request.claim.keys.is_empty() {
            self.turns.insert(request.claim.turn);
        }
        self.decided.pending.push((sectors, request.pending));
        self.decided.claims.push(request.claim);
        self.decided.answers.push(Answering {
            answer: request.answer,
            reply,
            sectors: self.takers,
        });
        None
    }

    /// What was decided.
    pub fn end(self) -> Decided {
        Decided {
            drafts: self.drafts,
            ..self.decided
        }
    }

    /// Whether the request needs the applied effect of what is in this flight, or comes after
    /// what waits or is in another flight.
    fn must_wait(&self, request: &Request) -> bool {
        let is_early = request.work.mutations().iter().any(|mutation| {
            let reads_index = mutation.reads_index();
            mutation.keys().any(|key| {
                self.blocked.contains(key) || (reads_index && self.overlay.contains_key(key))
            })
        });
        is_early || self.claims.must_wait(&request.claim, &self.turns)
    }

    fn block(&mut self, work: &Work) {
        let keys = work.mutations().iter().flat_map(Mutation::keys);
        self.blocked.extend(keys.cloned());
    }

    /// Finds room for a request in the frames of all its sectors: behind what they hold already or, if
    /// that is nothing, in new segments.
    fn find_room(&mut self, work: &Work, length: u64, growth: u64) -> Room {
        let target = self.target;
        let mut opening = Vec::new();
        let mut found = Room::There;
        for draft in &mut self.drafts {
            if !target.contains(draft.number) {
                continue;
            }
            let segments = &mut self.index.sectors[draft.number].segments;
            match draft.find_room(segments, work, length, growth) {
                Room::There => {}
                Room::Opens => match segments.take(work.purpose(), State::Open) {
                    Some(opened) => {
                        draft.opened = Some(opened);
                        opening.push(draft.number);
                        found = Room::Opens;
                    }
                    None => {
                        found = draft.without_room(work, length);
                        break;
                    }
                },
                other => {
                    found = other;
                    break;
                }
            }
        }
        let is_there = matches!(found, Room::There | Room::Opens);
        for draft in &mut self.drafts {
            if !opening.contains(&draft.number) {
                continue;
            }
            if is_there {
                draft.room = draft.geometry.image_bytes_per_segment() - frame_length(0);
            } else if let Some((segment, _)) = draft.opened.take() {
                let segments = &mut self.index.sectors[draft.number].segments;
                segments.give_back(segment);
            }
        }
        found
    }

    /// Bytes, at most, of records that are made when the work is decided: manifests of what is copied
    /// or completed, and the tombstones that may go with them.
    fn length_decided_here(&self, work: &Work) -> u64 {
        let manifest = |key: &BinaryKey, source: &BinaryKey, meta: usize, pieces: usize| {
            let meta = meta + source.stored().len() + 16;
            let payload = Manifest::payload_length(pieces) as u64;
            let tombstone = record_length(source.stored().len(), 0, 0);
            record_length(key.stored().len(), meta, payload) + tombstone
        };
        let length = |mutation: &Mutation| match mutation {
            Mutation::Copy {
                source,
                target,
                meta,
                ..
            } => {
                let pieces = match self.index.lookup(source.stored()) {
                    Ok(Some(found)) => found.entry.extents.map_or(1, |extents| extents.len()),
                    _ => 0,
                };
                manifest(target, source, meta.len(), pieces)
            }
            Mutation::Compose {
                target,
                manifest: (_, pieces),
                meta,
                ..
            } => {
                let payload = Manifest::payload_length(pieces.len()) as u64;
                record_length(target.stored().len(), meta.len(), payload)
            }
            Mutation::Complete {
                upload,
                blob,
                parts,
                meta,
                digest,
                ..
            } => {
                let pieces = match self.join_parts(upload, parts) {
                    Ok((joined, _)) => joined.pieces.len(),
                    // It fails when it is decided.
                    Err(_) => 0,
                };
                let kept = record_length(upload.stored().len(), 0, digest.len() as u64);
                manifest(blob, upload, meta.len(), pieces) + kept
            }
            _ => 0,
        };
        work.mutations().iter().map(length).sum()
    }

    /// The parts of an upload that are named, and the sectors of the request that have all of them.
    fn join_parts(
        &self,
        upload: &BinaryKey,
        parts: &[(u16, ETag)],
    ) -> Result<(Joined, SectorSet), StorageError> {
        let id = upload_id(upload).lsn();
        let mut found: Option<(Joined, SectorSet)> = None;
        let mut lacking = None;
        for number in self.target.iter() {
            match (self.index.sectors[number].join_parts(id, parts), &mut found) {
                (Ok(joined), None) => found = Some((joined, SectorSet::one(number))),
                (Ok(joined), Some((same, sectors))) => {
                    if joined.is_like(same) {
                        same.inline = same.inline.max(joined.inline);
                        *sectors = sectors.and(SectorSet::one(number));
                    }
                }
                (Err(error), _) => lacking = lacking.or(Some(error)),
            }
        }
        found.ok_or_else(|| lacking.unwrap_or_else(|| no_such(upload)))
    }

    fn lsn(&mut self) -> u64 {
        let lsn = *self.next_lsn;
        *self.next_lsn += 1;
        lsn
    }

    /// The current version of a key, or why there is none.
    fn current(&self, key: &BinaryKey) -> Result<Current, StorageError> {
        if let Some(version) = self.overlay.get(key) {
            return Ok(match version {
                Some(version) => Current::Version(version.lsn),
                None => Current::Deleted,
            });
        }
        Ok(match self.index.lookup(key.stored())? {
            Some(found) => Current::Version(found.entry.lsn),
            None => Current::Unknown,
        })
    }

    fn push(&mut self, record: Encoded, flags: u8, applied: Applied) {
        let (length, decision) = (record.length(), self.decided.applied.len());
        for draft in self.targets() {
            draft.length += length;
            draft.records.push(DraftRecord { flags, decision });
        }
        self.decided.applied.push((self.target, applied));
        self.decided.records.push(record);
    }

    /// Where the next decision will be.
    fn mark(&self) -> Mark {
        Mark {
            decisions: self.decided.applied.len(),
            known: self.decided.known.len(),
        }
    }

    /// Takes back what was decided since.
    fn take_back(&mut self, mark: &Mark) {
        let Decided {
            applied,
            records,
            refused,
            known,
            ..
        } = &mut self.decided;
        applied.truncate(mark.decisions);
        known.truncate(mark.known);
        for draft in &mut self.drafts {
            let kept = |record: &DraftRecord| record.decision < mark.decisions;
            let taken_back = draft.records.partition_point(kept);
            for record in draft.records.drain(taken_back..) {
                draft.length -= records[record.decision].length();
            }
        }
        refused.extend(records.drain(mark.decisions..));
    }

    fn decide(&mut self, work: Work) -> Reply {
        match work {
            Work::Mutations(mutations) => self.decide_mutations(mutations),
            Work::Extent {
                key,
                time,
                payload_length,
                record,
                hold,
                replica_of,
            } => {
                let lsn = replica_of.unwrap_or_else(|| self.lsn());
                let applied = Applied {
                    payload_length,
                    hold: Some(hold),
                    replica: replica_of.is_some(),
                    ..applied(RecordKind::Extent, key, lsn, time)
                };
                if replica_of.is_some() {
                    self.push(record, FLAG_REPLICA, applied);
                    // The frame has an LSN above that of the replica.
                    self.lsn();
                } else {
                    self.push(record, 0, applied);
                }
                let sectors = self.target;
                Ok(Done::Extent { lsn, sectors })
            }
            Work::Moves(moves) => {
                let mark = self.mark();
                let number = self.target.first().unwrap_or(0);
                for moved in moves {
                    // Decided here, where nothing is under way: what is live now is live when the
                    // copy is in the log.
                    let sector = &self.index.sectors[number];
                    let key = moved.key.stored();
                    let is_live = sector.is_live(moved.kind, key, moved.lsn, moved.from);
                    let is_live = is_live.inspect_err(|_| self.take_back(&mark))?;
                    if is_live {
                        // A frame of moves alone has an LSN of its own above theirs.
                        let applied = Applied {
                            moved: true,
                            meta_length: moved.meta_length,
                            payload_length: moved.payload_length,
                            ..applied(moved.kind, moved.key, moved.lsn, moved.time)
                        };
                        let flags = match moved.replica {
                            true => FLAG_MOVED | FLAG_REPLICA,
                            false => FLAG_MOVED,
                        };
                        self.push(moved.record, flags, applied);
                    }
                }
                if self.targets().any(|draft| !draft.records.is_empty()) {
                    self.lsn();
                }
                Ok(Done::Nothing)
            }
            Work::Sync | Work::Note => Ok(Done::Nothing),
        }
    }

    /// All or nothing: on an error what was decided before is taken back.
    fn decide_mutations(&mut self, mutations: Vec<Mutation>) -> Reply {
        let (mark, lsn, target) = (self.mark(), *self.next_lsn, self.target);
        let more = mutations.len();
        self.targets().for_each(|draft| draft.records.reserve(more));
        self.decided.applied.reserve(more);
        self.decided.records.reserve(more);
        self.overlay.reserve(more);
        let overlay = self.overlay.len();
        self.overlaid.clear();
        let mut outcomes = Vec::with_capacity(more);
        for mutation in mutations {
            let decided = self.decide_mutation(mutation);
            self.target = target;
            match decided {
                Ok(Some(outcome)) => outcomes.push(outcome),
                other => {
                    self.take_back(&mark);
                    *self.next_lsn = lsn;
                    self.overlay.truncate(overlay);
                    for (place, before) in self.overlaid.drain(..).rev() {
                        if let Some((_, version)) = self.overlay.get_index_mut(place) {
                            *version = before;
                        }
                    }
                    return other.map(|_| Done::Changed);
                }
            }
        }
        Ok(Done::Mutations(outcomes))
    }

    /// A tracker knows something once this version has come about.
    fn note_known(&mut self, key: &BinaryKey, version: u64, known: Option<Box<Known>>) {
        if let Some(mut known) = known {
            known.landed(version);
            self.decided.known.push((key.clone(), *known));
        }
    }

    /// Whether a version can be put, as a part of an upload perhaps. Returns whether the key is [new](Applied::is_new).
    fn check_put(
        &mut self,
        key: &BinaryKey,
        upload: Option<&BinaryKey>,
        precondition: Precondition,
    ) -> Result<bool, StorageError> {
        self.check_upload(upload)?;
        let current = self.check(key, upload.unwrap_or(key), precondition)?;
        self.note_crossing(key)?;
        Ok(current == Current::Unknown && self.index.sectors.len() == 1)
    }

    /// `None`: it is no part of one.
    fn check_upload(&mut self, upload: Option<&BinaryKey>) -> Result<(), StorageError> {
        let Some(upload) = upload else { return Ok(()) };
        let current = self.current(upload)?.version();
        let lsn = current.ok_or_else(|| no_such(upload))?;
        // What reads the index of it waits for this frame.
        self.keep_overlay(upload, lsn, 0);
        Ok(())
    }

    /// The key has this version once this flight is over.
    fn keep_overlay(&mut self, key: &BinaryKey, lsn: u64, size: u64) {
        let sectors = self.target;
        self.overlay(key, Some(Decision { lsn, size, sectors }));
    }

    fn overlay(&mut self, key: &BinaryKey, decision: Option<Decision>) {
        let (place, before) = self.overlay.insert_full(key.clone(), decision);
        if let Some(before) = before {
            self.overlaid.push((place, before));
        }
    }

    /// The current version of `key`, for which a precondition holds. `named` is the key that errors are about.
    fn check(
        &self,
        key: &BinaryKey,
        named: &BinaryKey,
        precondition: Precondition,
    ) -> Result<Current, StorageError> {
        let current = self.current(key)?;
        let actual = current.version();
        if precondition.holds(actual) {
            return Ok(current);
        }
        Err(StorageError::PreconditionFailed {
            key: named.of_blob(),
            actual: actual.map(ETag::of_version),
        })
    }

    /// Sees whether a new version of `key`, or its delete, is about a blob that other sectors have too.
    /// Such a sector forgets the version before in a checkpoint that makes only itself durable: what
    /// replaces it must not be lost then.
    fn note_crossing(&mut self, key: &BinaryKey) -> Result<(), StorageError> {
        if self.index.sectors.len() > 1
            && let Some(found) = self.index.lookup(key.stored())?
            && !found.holders.is_within(self.target)
        {
            self.targets().for_each(|draft| draft.durable = true);
        }
        Ok(())
    }

    /// What is not certain of the sectors that a request does not go to.
    fn doubt_of_others(&self) -> Doubt {
        let others = self.doubts.iter().enumerate();
        let others = others.filter(|(number, _)| !self.target.contains(*number));
        others.fold(Doubt::default(), |sum, (_, doubt)| Doubt {
            in_doubt: sum.in_doubt || doubt.in_doubt,
            failed: sum.failed.max(doubt.failed),
        })
    }

    /// `None` if the source of a copy is not what it was.
    fn decide_mutation(
        &mut self,
        mutation: Mutation,
    ) -> Result<Option<MutationOutcome>, StorageError> {
        match mutation {
            Mutation::Put {
                key,
                upload,
                precondition,
                record,
                kind,
                time,
                meta_length,
                payload_length,
                manifest,
                replicas,
                known,
            } => {
                let is_new = self.check_put(&key, upload.as_ref(), precondition)?;
                let size = manifest
                    .as_ref()
                    .map_or(u64::from(payload_length), |(size, _)| *size);
                let lsn = self.lsn();
                self.keep_overlay(&key, lsn, size);
                self.note_known(&key, lsn, known);
                let applied = Applied {
                    is_new,
                    meta_length,
                    payload_length,
                    manifest,
                    replicas,
                    ..applied(kind, key, lsn, time)
                };
                self.push(record, 0, applied);
                Ok(Some(MutationOutcome::Put { version: lsn, size }))
            }
            Mutation::PutInPieces {
                key,
                upload,
                precondition,
                extents,
                meta,
                size,
                replicas,
                time,
            } => {
                self.check_put(&key, upload.as_ref(), precondition)?;
                let pieces = extents.into_iter().map(|(record, length)| {
                    let lsn = self.lsn();
                    let applied = Applied {
                        payload_length: length,
                        ..applied(RecordKind::Extent, key.clone(), lsn, time)
                    };
                    self.push(record, 0, applied);
                    ExtentRef {
                        lsn: lsn.into(),
                        offset: 0.into(),
                        length: length.into(),
                    }
                });
                let pieces = pieces.collect();
                let (version, size) = self.push_manifest(NewManifest {
                    key,
                    size,
                    pieces,
                    source: None,
                    life: None,
                    replicas,
                    meta,
                    time,
                });
                Ok(Some(MutationOutcome::Put { version, size }))
            }
            Mutation::Change {
                key,
                precondition,
                past_end,
                range,
                record,
                time,
                payload_length,
                pieces,
                expected,
                known,
            } => {
                if expected.is_some_and(|pieces| !self.has_pieces(&key, range, &pieces)) {
                    return Ok(None);
                }
                let Some(current) = self.to_change(&key)? else {
                    return Ok(None);
                };
                self.check(&key, &key, precondition)?;
                let size = resolve_put_range(&key, range, range.len(), current.size, past_end)?;
                if size > BLOB_MAX_LEN {
                    let limit = BLOB_MAX_LEN;
                    return Err(StorageError::TooLarge { key, size, limit });
                }
                if range.is_empty() {
                    return Ok(Some(MutationOutcome::Put {
                        version: current.lsn,
                        size: current.size,
                    }));
                }
                self.note_crossing(&key)?;
                let new = pieces.as_deref().map_or(1, <[_]>::len);
                self.check_fragments(&key, range, new)?;
                let change = Change {
                    base: current.lsn,
                    start: range.start(),
                    size,
                };
                self.note_known(&key, *self.next_lsn, known);
                Ok(Some(self.push_change(
                    key,
                    change,
                    record,
                    time,
                    payload_length,
                    pieces,
                )))
            }
            Mutation::Merge {
                key,
                range,
                expected,
                record,
                time,
                pieces,
            } => {
                let not_found = || StorageError::NotFound { key: key.clone() };
                let found = self.index.lookup(key.stored())?.ok_or_else(not_found)?;
                if !self.is_where_it_is(&key, found.holders)?
                    || !self.has_pieces(&key, range, &expected)
                {
                    return Ok(None);
                }
                let entry = found.entry;
                self.push_merge(key, &entry, range, record, time, pieces);
                let (version, size) = (entry.lsn, entry.size);
                Ok(Some(MutationOutcome::Put { version, size }))
            }
            Mutation::Start {
                upload,
                mut record,
                time,
                meta_length,
                replicas,
            } => {
                let lsn = self.lsn();
                let upload = record::name_upload(&mut record, &upload, lsn);
                self.keep_overlay(&upload, lsn, 0);
                let applied = Applied {
                    meta_length,
                    replicas,
                    ..applied(RecordKind::Blob, upload, lsn, time)
                };
                self.push(record, 0, applied);
                let (version, size) = (lsn, 0);
                Ok(Some(MutationOutcome::Put { version, size }))
            }
            Mutation::Complete {
                upload,
                blob,
                parts,
                precondition,
                meta,
                replicas,
                digest,
                time,
            } => {
                self.current(&upload)?
                    .version()
                    .ok_or_else(|| no_such(&upload))?;
                let (joined, whole) = self.join_parts(&upload, &parts)?;
                let (size, limit) = (joined.size, BLOB_MAX_LEN);
                if size > limit {
                    let key = blob;
                    return Err(StorageError::TooLarge { key, size, limit });
                }
                self.check(&blob, &blob, precondition)?;
                // Sectors that lack a part learn from repair that it is over: told here, one might be all that a
                // power failure leaves of this.
                self.target = whole;
                self.takers = whole;
                self.note_crossing(&blob)?;
                self.note_crossing(&upload)?;
                let (version, size) = self.push_manifest(NewManifest {
                    key: blob,
                    size,
                    source: (joined.inline > 0).then(|| upload.clone()),
                    life: None,
                    replicas,
                    pieces: joined.pieces.into(),
                    meta,
                    time,
                });
                self.push_completed(&upload, &digest, time);
                self.push_tombstone(upload, time);
                Ok(Some(MutationOutcome::Put { version, size }))
            }
            Mutation::Abort {
                upload,
                idle_since,
                time,
            } => {
                self.current(&upload)?
                    .version()
                    .ok_or_else(|| no_such(&upload))?;
                let parts = self.index.parts(upload_id(&upload).lsn())?;
                let in_use = |since| parts.iter().any(|(_, part)| part.time > since);
                let bytes = match idle_since.is_some_and(in_use) {
                    true => None,
                    false => Some(parts.iter().map(|(_, part)| part.size).sum()),
                };
                if bytes.is_some() {
                    self.push_tombstone(upload, time);
                }
                Ok(Some(MutationOutcome::Aborted { bytes }))
            }
            Mutation::Delete {
                key,
                precondition,
                strict,
                time,
            } => {
                let existed = self.check(&key, &key, precondition)?.version().is_some();
                if !existed && strict {
                    return Err(StorageError::NotFound { key });
                }
                // A blob that another sector's tombstone hides shows again if a crash takes that
                // tombstone, and one whose put failed there may come about, unless there is a
                // tombstone here.
                let others = self.doubt_of_others();
                let hidden = self
                    .index
                    .is_hidden_by(self.target, key.stored(), others.failed)?;
                let in_doubt = others.in_doubt && !hidden;
                if existed || in_doubt {
                    self.note_crossing(&key)?;
                    self.push_tombstone(key, time);
                }
                Ok(Some(MutationOutcome::Deleted { existed }))
            }
            Mutation::Copy {
                source,
                expected,
                source_precondition,
                target,
                target_precondition,
                meta,
                life,
                time,
                rename,
            } => {
                let Some(found) = self.index.lookup(source.stored())? else {
                    return Err(StorageError::NotFound { key: source });
                };
                self.check(&source, &source, source_precondition)?;
                self.check(&target, &target, target_precondition)?;
                let entry = found.entry;
                if entry.lsn != expected || !self.is_alike(&source)? {
                    return Ok(None);
                }
                self.note_crossing(&target)?;
                let pieces = entry.all_pieces();
                // Where it is the payload of its record, the manifest says whose that is.
                let is_inline = |number| self.index.is_inline(number, &source);
                let shares = self.target.iter().any(is_inline).then(|| source.clone());
                self.check_references(&target, &pieces)?;
                let (version, size) = self.push_manifest(NewManifest {
                    key: target.clone(),
                    size: entry.size,
                    pieces,
                    source: shares,
                    life,
                    replicas: entry.replicas,
                    meta,
                    time,
                });
                if rename && source != target {
                    self.push_tombstone(source, time);
                }
                Ok(Some(MutationOutcome::Put { version, size }))
            }
            Mutation::Replica {
                key,
                version,
                lsn,
                record,
                kind,
                time,
                meta_length,
                payload_length,
                manifest,
                life,
                replicas,
            } => {
                if kind == RecordKind::Tombstone {
                    return self.decide_burial(key, record, lsn, time);
                }
                let found = self.index.lookup(key.stored())?;
                let Some(found) = found.filter(|found| found.entry.lsn == version) else {
                    return Ok(None);
                };
                let pieces = manifest.iter().flat_map(|(_, pieces)| pieces.iter());
                let mut pieces = pieces.filter(|piece| !piece.is_hole());
                let has = |number: usize, lsn| self.index.sectors[number].names(lsn);
                if !pieces.all(|piece| self.target.iter().all(|one| has(one, piece.lsn.get()))) {
                    return Ok(None);
                }
                let size = found.entry.size;
                self.keep_overlay(&key, version, size);
                let applied = Applied {
                    replica: true,
                    meta_length,
                    payload_length,
                    manifest,
                    life,
                    replicas,
                    ..applied(kind, key, lsn, time)
                };
                self.push(record, FLAG_REPLICA, applied);
                self.lsn();
                Ok(Some(MutationOutcome::Put { version, size }))
            }
            Mutation::Compose {
                target,
                precondition,
                sources,
                manifest: (size, pieces),
                meta,
                time,
            } => {
                self.check(&target, &target, precondition)?;
                for source in &sources {
                    if !self.is_as_planned(source)? {
                        return Ok(None);
                    }
                }
                self.check_references(&target, &pieces)?;
                self.note_crossing(&target)?;
                let (version, size) = self.push_manifest(NewManifest {
                    key: target,
                    size,
                    pieces,
                    source: None,
                    life: None,
                    replicas: 0,
                    meta,
                    time,
                });
                Ok(Some(MutationOutcome::Put { version, size }))
            }
        }
    }

    /// Whether the request goes to all sectors that have a blob and take records; or to those of them in
    /// which it is made of the same pieces.
    fn is_where_it_is(&self, key: &BinaryKey, holders: SectorSet) -> Result<bool, StorageError> {
        if holders.within(self.writable) == self.target {
            return Ok(true);
        }
        let alike = self.index.alike(key.stored())?;
        Ok(alike.is_some_and(|found| found.holders.within(self.writable) == self.target))
    }

    /// Whether a blob lies in all the sectors that the request goes to, made of the same pieces.
    fn is_alike(&self, key: &BinaryKey) -> Result<bool, StorageError> {
        let alike = self.index.alike(key.stored())?;
        Ok(alike.is_some_and(|found| self.target.is_within(found.holders)))
    }

    /// Whether a range of a blob is made of these pieces, in all the sectors that the request goes to.
    fn has_pieces(&self, key: &BinaryKey, range: Span, pieces: &[ExtentRef]) -> bool {
        self.target.iter().all(|number| {
            let found = self.index.entry_in(number, key.stored());
            matches!(found, Ok(Some(entry)) if entry.pieces_of(range) == pieces)
        })
    }

    /// Whether a blob is what it was when another was planned of it, and where it was.
    fn is_as_planned(&self, source: &PlannedSource) -> Result<bool, StorageError> {
        let Some(found) = self.index.lookup(source.key.stored())? else {
            return Ok(false);
        };
        if found.entry.lsn != source.version {
            return Ok(false);
        }
        let Some(pieces) = &source.shared else {
            return Ok(true);
        };
        // Fragments that were merged since have made no other version.
        for number in self.target.iter() {
            let entry = self.index.entry_in(number, source.key.stored())?;
            if entry.and_then(|entry| entry.extents).as_ref() != Some(pieces) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether all of these pieces may be named once more.
    fn check_references(&self, key: &BinaryKey, pieces: &[ExtentRef]) -> Result<(), StorageError> {
        let references = |piece: &ExtentRef| {
            let lsn = piece.lsn.get();
            let counts = self.target.iter();
            counts.map(move |number| self.index.sectors[number].references(lsn))
        };
        match pieces.iter().flat_map(references).max().unwrap_or(0) {
            references if references > REFERENCES_MAX => Err(StorageError::invalid(format!(
                "{key} would share payload that has been shared {references} times"
            ))),
            _ => Ok(()),
        }
    }

    /// Whether a blob may come to have so many pieces in a range.
    fn check_fragments(
        &mut self,
        key: &BinaryKey,
        range: Span,
        pieces: usize,
    ) -> Result<(), StorageError> {
        let Some(found) = self.index.lookup(key.stored())? else {
            return Ok(());
        };
        let entry = found.entry;
        let first = self.target.first().unwrap_or(0);
        let geometry = self.index.sectors[first].sector().geometry();
        // Those of this frame are not in the index yet.
        let of_frame = self.fragments.entry(key.clone()).or_default();
        let fragments = entry.pieces_beside(range) + *of_frame + pieces;
        *of_frame += pieces + 1;
        let most = self.fragments_max;
        check_pieces(key, most, &geometry, entry.size, fragments)
    }

    /// What is to be changed; `None` if it lies in other sectors.
    fn to_change(&self, key: &BinaryKey) -> Result<Option<Decision>, StorageError> {
        let not_found = || StorageError::NotFound { key: key.clone() };
        if let Some(version) = self.overlay.get(key) {
            let version = version.ok_or_else(not_found)?;
            return Ok((version.sectors == self.target).then_some(version));
        }
        let found = self.index.lookup(key.stored())?.ok_or_else(not_found)?;
        Ok(self
            .is_where_it_is(key, found.holders)?
            .then_some(Decision {
                lsn: found.entry.lsn,
                size: found.entry.size,
                sectors: self.target,
            }))
    }

    fn push_change(
        &mut self,
        key: BinaryKey,
        change: Change,
        mut record: Encoded,
        time: u64,
        payload_length: u32,
        pieces: Option<Arc<[ExtentRef]>>,
    ) -> MutationOutcome {
        let lsn = self.lsn();
        record::set_change(&mut record, &key, change);
        self.keep_overlay(&key, lsn, change.size);
        let kind = match pieces {
            Some(_) => RecordKind::Splice,
            None => RecordKind::Range,
        };
        let length = |pieces: &Arc<[ExtentRef]>| {
            let lengths = pieces.iter().map(|piece| u64::from(piece.length.get()));
            lengths.sum()
        };
        let applied = Applied {
            meta_length: u32::try_from(CHANGE_LEN).unwrap_or(0),
            payload_length,
            manifest: pieces.map(|pieces| (length(&pieces), pieces)),
            change: Some(change),
            ..applied(kind, key, lsn, time)
        };
        self.push(record, 0, applied);
        MutationOutcome::Put {
            version: lsn,
            size: change.size,
        }
    }

    fn push_merge(
        &mut self,
        key: BinaryKey,
        entry: &Entry,
        range: Span,
        mut record: Encoded,
        time: u64,
        pieces: Arc<[ExtentRef]>,
    ) {
        let payload = Manifest::payload_length(pieces.len());
        let lsn = self.lsn();
        let change = Change {
            base: entry.lsn,
            start: range.start(),
            size: entry.size,
        };
        record::set_change(&mut record, &key, change);
        // What reads the index of it waits for this frame.
        self.keep_overlay(&key, entry.lsn, entry.size);
        let applied = Applied {
            meta_length: u32::try_from(CHANGE_LEN).unwrap_or(0),
            payload_length: u32::try_from(payload).unwrap_or(u32::MAX),
            manifest: Some((range.len(), pieces)),
            change: Some(change),
            ..applied(RecordKind::Merge, key, lsn, time)
        };
        self.push(record, 0, applied);
    }

    /// A tombstone for a sector that has not learned of a delete. `None` if it is not the newest any more.
    fn decide_burial(
        &mut self,
        key: BinaryKey,
        record: Encoded,
        lsn: u64,
        time: u64,
    ) -> Result<Option<MutationOutcome>, StorageError> {
        let tombstone = self.index.tombstone(key.stored())?;
        if tombstone.is_none_or(|(newest, _)| newest != lsn) {
            return Ok(None);
        }
        self.overlay(&key, None);
        let applied = Applied {
            replica: true,
            ..applied(RecordKind::Tombstone, key, lsn, time)
        };
        self.push(record, FLAG_REPLICA, applied);
        self.lsn();
        Ok(Some(MutationOutcome::Deleted { existed: false }))
    }

    fn push_tombstone(&mut self, key: BinaryKey, time: u64) {
        let lsn = self.lsn();
        self.overlay(&key, None);
        let record = record::encode(RecordKind::Tombstone, &key, &[], &[], time);
        self.push(record, 0, applied(RecordKind::Tombstone, key, lsn, time));
    }

    /// Returns the manifest's LSN, and the blob's size.
    fn push_manifest(&mut self, manifest: NewManifest) -> (u64, u64) {
        let NewManifest {
            key,
            size,
            pieces,
            source,
            life,
            replicas,
            mut meta,
            time,
        } = manifest;
        let lsn = self.lsn();
        if let Some(source) = &source {
            record::put_source(&mut meta, source);
        }
        let payload = Manifest {
            size,
            extents: pieces.to_vec(),
        }
        .encode();
        let record = record::encode(RecordKind::Manifest, &key, &meta, &payload, time);
        self.keep_overlay(&key, lsn, size);
        let applied = Applied {
            meta_length: u32::try_from(meta.len()).unwrap_or(u32::MAX),
            payload_length: u32::try_from(payload.len()).unwrap_or(u32::MAX),
            manifest: Some((size, pieces)),
            source,
            life,
            replicas,
            ..applied(RecordKind::Manifest, key, lsn, time)
        };
        debug_assert_eq!(
            record.length(),
            record_length(applied.key.stored().len(), meta.len(), 0)
                + stored_length(payload.len() as u64)
        );
        self.push(record, 0, applied);
        (lsn, size)
    }

    /// What is kept of an upload that has become the blob of the record before.
    fn push_completed(&mut self, upload: &BinaryKey, digest: &[u8], time: u64) {
        let lsn = self.lsn();
        let blob = upload.of_blob();
        let completed = BinaryKey::beside(&StoredKey::Completed {
            upload: upload_id(upload).lsn(),
            key: blob.as_bytes(),
        });
        let record = record::encode(RecordKind::Blob, &completed, &[], digest, time);
        let applied = Applied {
            payload_length: u32::try_from(digest.len()).unwrap_or(u32::MAX),
            ..applied(RecordKind::Blob, completed, lsn, time)
        };
        self.push(record, 0, applied);
    }
}

/// A manifest that is made when it is decided.
struct NewManifest {
    key: BinaryKey,
    size: u64,
    pieces: Arc<[ExtentRef]>,
    /// Whose record holds payload that is shared.
    source: Option<BinaryKey>,
    /// LSN of the record that the life began with that it goes on with.
    life: Option<u64>,
    /// How many sectors it is to lie in; 0: as many as the store says.
    replicas: u8,
    /// Metadata, but for the name of the source.
    meta: Vec<u8>,
    time: u64,
}

/// A point in what was decided.
struct Mark {
    decisions: usize,
    known: usize,
}

/// What is known of a key when a request about it is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Current {
    /// Its current version.
    Version(u64),
    /// A record of the same flight deletes it.
    Deleted,
    /// It has none, and nothing in the flight is about it.
    Unknown,
}

impl Current {
    fn version(self) -> Option<u64> {
        match self {
            Self::Version(version) => Some(version),
            Self::Deleted | Self::Unknown => None,
        }
    }
}

/// The id of an upload.
pub fn upload_id(upload: &BinaryKey) -> UploadId {
    UploadId::of_lsn(match upload.space() {
        StoredKey::Upload { upload, .. } => upload,
        _ => 0,
    })
}

fn no_such(upload: &BinaryKey) -> StorageError {
    StorageError::NoSuchUpload {
        upload: upload_id(upload),
    }
}

/// A record of `kind`, with everything else empty.
fn applied(kind: RecordKind, key: BinaryKey, lsn: u64, time: u64) -> Applied {
    Applied {
        kind,
        moved: false,
        replica: false,
        is_new: false,
        key,
        lsn,
        time,
        address: 0,
        meta_length: 0,
        payload_length: 0,
        manifest: None,
        change: None,
        source: None,
        life: None,
        replicas: 0,
        hold: None,
    }
}

//! The index: which version of each key is current, and where its bytes lie.
//!
//! Per sector, an immutable `base` (the newest checkpoint's image, searched where it lies) under a
//! small ordered `delta` of what changed since. While a checkpoint is being written the delta it
//! folds in is `frozen` between the two. A lookup asks delta, frozen, base, in this order.
//!
//! Everything that changes the index goes through [`Index::apply`], record by record in the order
//! of the log: live commits and replay take the same path, so that what recovery rebuilds is what
//! was there. A live key has an entry in each sector that holds a replica of it, all of one version.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use graviton_format::FormatError;
use graviton_format::image::{
    ChangedRecord, Cursor, ExtentEntry, ImageBuilder, ImageEntry, ImageValue, PAGE_SIZE,
};
use graviton_format::key::{SPACE_COMPLETED, SPACE_PART, SPACE_UPLOAD, StoredKey};
use graviton_format::record::{ExtentRef, Manifest, RecordKind, record_length};

use super::assembly::FRAME_TARGET;
use super::delta;
use super::set::SectorSet;
use crate::log::image_io::{LoadedImage, image_segments};
use crate::log::sector::Payload;
use crate::log::{Sector, Segments, Tail};
use crate::port::{BinaryKey, ETag, RangeSet, Span, StorageError};
use crate::sync::Mutex;

/// One version of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its LSN.
    pub lsn: u64,
    /// Address of its record.
    pub address: u64,
    /// Its size in bytes.
    pub size: u64,
    /// When this version was made, in milliseconds since 1970.
    pub time: u64,
    /// Bytes of its record's metadata.
    pub meta_length: u32,
    /// How many sectors it is to lie in; 0: as many as the store says.
    pub replicas: u8,
    /// The record, if it is of the version that this one came from by changes of its bytes.
    pub changed: Option<ChangedRecord>,
    /// LSN of the record that the blob's life began with, if that is an older one than its record.
    pub life: Option<u64>,
    /// Its pieces, unless its payload is in the record itself.
    pub extents: Option<Arc<[ExtentRef]>>,
}

impl Entry {
    /// LSN of its record: of the put, copy, creation or change of attributes that it came from.
    pub fn record_lsn(&self) -> u64 {
        self.changed.map_or(self.lsn, |record| record.lsn)
    }

    /// LSN of the put, copy or creation that it came from.
    pub fn life(&self) -> u64 {
        self.life.unwrap_or(self.record_lsn())
    }

    /// Its holes: bytes that were never written.
    pub fn missing(&self) -> RangeSet {
        let mut position = 0;
        let pieces = self.extents.iter().flat_map(|extents| extents.iter());
        let spans = pieces.filter_map(|piece| {
            let start = position;
            position += u64::from(piece.length.get());
            piece.is_hole().then(|| Span::new(start, position).ok())?
        });
        spans.collect()
    }

    /// Whether some of it was never written.
    pub fn has_holes(&self) -> bool {
        let mut pieces = self.extents.iter().flat_map(|extents| extents.iter());
        pieces.any(ExtentRef::is_hole)
    }

    /// All its pieces.
    pub fn all_pieces(&self) -> Arc<[ExtentRef]> {
        match &self.extents {
            Some(extents) => Arc::clone(extents),
            None if self.size == 0 => Arc::new([]),
            None => Arc::new([self.payload()]),
        }
    }

    /// Whether it is made of the same pieces as another of the same version.
    fn is_alike(&self, other: &Self) -> bool {
        match (&self.extents, &other.extents) {
            (None, None) => true,
            (Some(pieces), Some(others)) => pieces == others,
            _ => self.all_pieces() == other.all_pieces(),
        }
    }

    /// Names the payload of its record, which is all of it.
    pub fn payload(&self) -> ExtentRef {
        ExtentRef {
            lsn: self.lsn.into(),
            offset: 0.into(),
            length: narrow(self.size).into(),
        }
    }

    /// How many pieces are left of it without a range, holes among them.
    pub fn pieces_beside(&self, range: Span) -> usize {
        let whole = [self.payload()];
        let pieces = self.extents.as_deref().unwrap_or(&whole);
        let (mut position, mut count) = (0, 0);
        for piece in pieces {
            let (from, to) = (position, position + u64::from(piece.length.get()));
            position = to;
            count += usize::from(from < range.start());
            count += usize::from(to > range.end());
        }
        count + usize::from(position < range.start())
    }

    /// In how many pieces its bytes lie.
    pub fn fragments(&self) -> usize {
        match &self.extents {
            Some(extents) => extents.iter().filter(|piece| !piece.is_hole()).count(),
            None => usize::from(self.size > 0),
        }
    }

    /// The pieces that make up a range of it.
    pub fn pieces_of(&self, range: Span) -> Vec<ExtentRef> {
        match &self.extents {
            Some(extents) => punch(extents, range, &[]),
            None => punch(&[self.payload()], range, &[]),
        }
    }

    /// Bytes its record takes on disk.
    pub fn record_length(&self, key: &[u8]) -> u64 {
        record_length(key.len(), self.meta_length as usize, self.record_payload())
    }

    /// Bytes of its record's payload.
    pub fn record_payload(&self) -> u64 {
        match (&self.changed, &self.extents) {
            (Some(record), _) => record.payload_length.into(),
            (None, None) => self.size,
            (None, Some(extents)) => Manifest::payload_length(extents.len()) as u64,
        }
    }

    /// Bytes of its record before the payload.
    pub fn head_length(&self, key: &[u8]) -> u64 {
        record_length(key.len(), self.meta_length as usize, 0)
    }

    /// The payload of its record, where it lies.
    pub fn stored_payload(&self, key: &[u8]) -> Payload {
        Payload {
            address: self.address.saturating_add(self.head_length(key)),
            length: self.record_payload(),
            lsn: self.record_lsn(),
        }
    }

    fn of_image(entry: ImageEntry) -> Slot {
        match entry.value {
            ImageValue::Tombstone => Slot::Tombstone { lsn: entry.lsn },
            ImageValue::Blob {
                address,
                size,
                time,
                meta_length,
                changed,
                life,
                replicas,
                extents,
            } => Slot::Live(Self {
                lsn: entry.lsn,
                address,
                size,
                time,
                meta_length,
                replicas: replicas.unwrap_or(0),
                changed,
                life,
                extents: extents.map(Into::into),
            }),
        }
    }

    fn to_image(&self) -> ImageEntry {
        ImageEntry {
            lsn: self.lsn,
            value: ImageValue::Blob {
                address: self.address,
                size: self.size,
                time: self.time,
                meta_length: self.meta_length,
                changed: self.changed,
                life: self.life,
                replicas: (self.replicas > 0).then_some(self.replicas),
                extents: self.extents.as_ref().map(|extents| extents.to_vec()),
            },
        }
    }
}

/// Where some bytes of a blob lie.
#[derive(Debug, Clone)]
pub struct Piece {
    /// What they are part of; `None`: they were never written.
    pub payload: Option<Payload>,
    /// Which part of it they are; of a hole only its length means something.
    pub range: Range<u64>,
}

/// Parts of an upload, one behind the other.
#[derive(Debug, Default)]
pub struct Joined {
    /// Their bytes, summed.
    pub size: u64,
    /// Their pieces.
    pub pieces: Vec<ExtentRef>,
    /// How many of the pieces are the payload of a part's own record.
    pub inline: usize,
}

impl Joined {
    /// Whether they are the same pieces.
    pub fn is_like(&self, other: &Self) -> bool {
        (self.size, &self.pieces) == (other.size, &other.pieces)
    }
}

/// A list of pieces with some bytes replaced.
struct Splice {
    pieces: Vec<ExtentRef>,
    /// Pieces that are in it and were not in the list before.
    added: Vec<ExtentRef>,
    /// Pieces that were in the list before and are not in it.
    dropped: Vec<ExtentRef>,
}

/// Replaces `length` bytes of `old` from `start` on by `new`; what lies between the end and `start` is
/// a hole.
fn splice(old: &[ExtentRef], start: u64, length: u64, new: &[ExtentRef]) -> Splice {
    let end = start + length;
    let mut position = 0;
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let (mut first, mut last) = (old.len(), old.len());
    for (number, piece) in old.iter().enumerate() {
        let (from, to) = (position, position + u64::from(piece.length.get()));
        position = to;
        if to <= start {
            continue;
        }
        first = first.min(number);
        if from >= end {
            last = number;
            break;
        }
        if from < start {
            before.push(cut(piece, 0, start - from));
        }
        if to > end {
            after.push(cut(piece, end - from, to - from));
        }
    }
    // Where the loop ended before, the rest is beyond `end`.
    before.extend(holes(start.saturating_sub(position)));
    let mut added = [&before[..], new, &after[..]].concat();
    if first > 0
        && added
            .first()
            .is_some_and(|next| joined(&old[first - 1], next).is_some())
    {
        first -= 1;
        added.insert(0, old[first]);
    }
    if last < old.len()
        && added
            .last()
            .is_some_and(|end| joined(end, &old[last]).is_some())
    {
        added.push(old[last]);
        last += 1;
    }
    let added = join(added);
    Splice {
        pieces: [&old[..first], &added[..], &old[last..]].concat(),
        added,
        dropped: old[first..last].to_vec(),
    }
}

/// A number of bytes within a piece.
pub fn narrow(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Pieces of `length` bytes that were never written.
pub fn holes(length: u64) -> impl Iterator<Item = ExtentRef> {
    let starts = (0..length).step_by(u32::MAX as usize);
    starts.map(move |start| ExtentRef::hole(narrow(length - start)))
}

/// Two pieces as one, if they are next to each other wherever they lie.
pub fn joined(one: &ExtentRef, next: &ExtentRef) -> Option<ExtentRef> {
    let length = one.length.get().checked_add(next.length.get())?;
    let continues = one.lsn == next.lsn
        && (one.is_hole() || one.offset.get().checked_add(one.length.get())? == next.offset.get());
    continues.then_some(ExtentRef {
        length: length.into(),
        ..*one
    })
}

/// The same bytes in as few pieces as can be.
pub fn join(pieces: Vec<ExtentRef>) -> Vec<ExtentRef> {
    let mut fewest: Vec<ExtentRef> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        match fewest.last_mut() {
            Some(last) if let Some(both) = joined(last, &piece) => *last = both,
            _ => fewest.push(piece),
        }
    }
    fewest
}

/// A part of a piece: its bytes from `from` to `to`.
fn cut(piece: &ExtentRef, from: u64, to: u64) -> ExtentRef {
    ExtentRef {
        lsn: piece.lsn,
        offset: match piece.is_hole() {
            true => 0.into(),
            false => (piece.offset.get() + narrow(from)).into(),
        },
        length: narrow(to - from).into(),
    }
}

/// The pieces that make up `range` of `pieces`, with holes in it.
pub fn punch(pieces: &[ExtentRef], range: Span, punched: &[Span]) -> Vec<ExtentRef> {
    let mut punched = punched.iter().peekable();
    let mut made = Vec::new();
    let mut position = 0;
    for piece in pieces {
        let (from, to) = (position, position + u64::from(piece.length.get()));
        if from >= range.end() {
            break;
        }
        position = to;
        let mut at = from.max(range.start());
        let end = to.min(range.end());
        while at < end {
            while punched.next_if(|hole| hole.end() <= at).is_some() {}
            let next = punched.peek();
            let stop = match next {
                Some(hole) if hole.start() <= at => end.min(hole.end()),
                Some(hole) => end.min(hole.start()),
                None => end,
            };
            match next {
                Some(hole) if hole.start() <= at => made.extend(holes(stop - at)),
                _ => made.push(cut(piece, at - from, stop - from)),
            }
            at = stop;
        }
    }
    join(made)
}

/// What a sector's index says of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slot {
    /// The blob lies here.
    Live(Entry),
    /// It was deleted at this LSN; kept while another sector could bring it back.
    Tombstone {
        /// LSN of the delete.
        lsn: u64,
    },
    /// It lies in another sector now; hides what an older layer says.
    Gone,
}

impl Slot {
    /// LSN of what it says; 0 if it says nothing.
    fn lsn(&self) -> u64 {
        match self {
            Self::Live(entry) => entry.lsn,
            Self::Tombstone { lsn } => *lsn,
            Self::Gone => 0,
        }
    }
}

/// A payload that manifests name by its LSN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Address of its first chunk.
    pub address: u64,
    /// Bytes of payload.
    pub payload_length: u32,
    /// Bytes of its record before the payload.
    pub head_length: u32,
    /// Pieces that manifests have of it, and the blob itself if its record is one.
    pub references: u32,
    /// How many blobs on their way in it belongs to, which no manifest names yet.
    pub held: u32,
}

impl Extent {
    fn record_length(&self) -> u64 {
        u64::from(self.head_length)
            + graviton_format::checksum::stored_length(self.payload_length.into())
    }

    fn record_address(&self) -> u64 {
        self.address.saturating_sub(self.head_length.into())
    }

    fn is_dead(&self) -> bool {
        self.references == 0 && self.held == 0
    }
}

/// One record that became part of the log.
#[derive(Debug, Clone)]
pub struct Applied {
    /// What it is.
    pub kind: RecordKind,
    /// Copied by compaction.
    pub moved: bool,
    /// Copied from another sector.
    pub replica: bool,
    /// When it was decided, the sector, which is the only one, had no version of its key, and nothing under way was
    /// about that: so there is none to look for.
    pub is_new: bool,
    /// Its key.
    pub key: BinaryKey,
    /// Its LSN.
    pub lsn: u64,
    /// When it was first written, in milliseconds since 1970.
    pub time: u64,
    /// Where it lies.
    pub address: u64,
    /// Bytes of its metadata.
    pub meta_length: u32,
    /// Bytes of its payload.
    pub payload_length: u32,
    /// A manifest's blob size and pieces; of a splice those of the bytes that it replaces.
    pub manifest: Option<(u64, Arc<[ExtentRef]>)>,
    /// What it changes, if it makes a version out of another.
    pub change: Option<graviton_format::record::Change>,
    /// A manifest that shares the payload of this key's blob record: the key.
    pub source: Option<BinaryKey>,
    /// A manifest that goes on with a life: LSN of the record that it began with.
    pub life: Option<u64>,
    /// How many sectors a version is to lie in that is not made by a change; 0: as many as the store says.
    pub replicas: u8,
    /// What an extent belongs to until a manifest names it; `None` in replay, where the end of
    /// the log decides.
    pub hold: Option<Arc<Hold>>,
}

/// The extents of one blob that is on its way in.
#[derive(Debug, Default)]
pub struct Hold {
    /// By sector; `None` once the blob was given up or has become one.
    lsns: Mutex<Option<Vec<(usize, u64)>>>,
}

impl Hold {
    /// A hold on nothing yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            lsns: Mutex::new(Some(Vec::new())),
        })
    }

    /// Takes an extent of a sector in. `false` if the blob was given up meanwhile.
    fn add(&self, number: usize, lsn: u64) -> bool {
        self.lsns
            .lock()
            .as_mut()
            .map(|lsns| lsns.push((number, lsn)))
            .is_some()
    }

    /// Ends the hold: returns the extents it held, by sector. Only while the index is locked for writing.
    pub fn end(&self) -> Vec<(usize, u64)> {
        self.lsns.lock().take().unwrap_or_default()
    }
}

impl Applied {
    fn length(&self) -> u64 {
        record_length(
            self.key.stored().len(),
            self.meta_length as usize,
            self.payload_length.into(),
        )
    }

    fn head_length(&self) -> u64 {
        record_length(self.key.stored().len(), self.meta_length as usize, 0)
    }
}

/// What became of a key since the last checkpoint.
#[derive(Debug, Clone)]
struct Change {
    slot: Slot,
    /// Bytes that its blob took in the layers below, about.
    before: u32,
}

impl Change {
    /// Bytes by which the next image may grow for it.
    fn growth(&self, key: &[u8]) -> u64 {
        /// Numbers of a changed entry may take some bytes more than before.
        const LONGER: u64 = 24;
        let after = slot_bytes(key, &self.slot);
        after.saturating_sub(self.before.into()) + after.min(LONGER)
    }
}

/// By stored key.
type Delta = delta::Delta<Change>;

/// One sector's part of the index.
#[derive(Debug)]
pub struct SectorIndex {
    sector: Arc<Sector>,
    base: Option<Arc<LoadedImage>>,
    frozen: Option<Arc<Delta>>,
    delta: Delta,
    extents: HashMap<u64, Extent>,
    /// The table of its segments.
    pub segments: Segments,
    /// The log's end, as far as it is applied.
    pub tail: Tail,
    /// Log bytes behind the newest checkpoint.
    pub replay_bytes: u64,
    /// Number of blobs that lie here.
    pub blobs: u64,
    /// Their sizes, summed.
    pub logical_bytes: u64,
    /// Bytes by which the next image may grow for what is in the deltas.
    growth: u64,
    /// Bytes by which the next image may grow since the LSNs that were skipped when the store was
    /// opened take longer numbers to count back over.
    stretch: u64,
    /// LSN of the log's end when the store was opened.
    opened_at: u64,
    /// Extents that the base knows.
    base_extents: usize,
    /// The log is being replayed: what nothing names may yet be named by a later record, and stays.
    replaying: bool,
    /// The blobs whose own records hold extents, by LSN, as they were when that was asked for in a replay, and
    /// those that came after.
    owners: Option<HashMap<u64, BinaryKey>>,
}

/// How many bytes a slot takes in an image, at most.
fn slot_bytes(key: &[u8], slot: &Slot) -> u64 {
    /// Everything of an entry but its key and its pieces.
    const PER_ENTRY: u64 = 40;
    /// Of a blob that was changed, what is said of its record.
    const OF_RECORD: u64 = 16;
    /// Of a blob whose life began before its record.
    const OF_LIFE: u64 = 8;
    /// Of a blob that is to lie in more sectors than the store says.
    const OF_REPLICAS: u64 = 1;
    /// LSN, offset and length of a piece, as they are encoded.
    const PER_PIECE: u64 = 16;
    let more = match slot {
        Slot::Live(entry) => {
            let pieces = entry.extents.as_ref().map_or(0, |extents| extents.len());
            let of_record = entry.changed.map_or(0, |_| OF_RECORD);
            let of_replicas = u64::from(entry.replicas > 0) * OF_REPLICAS;
            let of_life = entry.life.map_or(0, |_| OF_LIFE);
            pieces as u64 * PER_PIECE + of_record + of_life + of_replicas
        }
        Slot::Tombstone { .. } => 0,
        Slot::Gone => return 0,
    };
    PER_ENTRY + key.len() as u64 + more
}

/// What the stored keys of one upload begin with.
fn numbered(space: u8, upload: u64) -> Vec<u8> {
    [&[space], &upload.to_be_bytes()[..]].concat()
}

/// The key of a part of an upload.
pub fn part_key(upload: u64, number: u16) -> BinaryKey {
    BinaryKey::beside(&StoredKey::Part { upload, number })
}

fn growth(delta: &Delta) -> u64 {
    let changes = delta.range(&[]);
    changes.map(|(key, change)| change.growth(key)).sum()
}

fn corrupt(sector: &Sector, error: &FormatError) -> StorageError {
    sector.corruption(0, format!("the index: {error}"))
}

impl SectorIndex {
    /// The index of a sector that begins with `base`.
    pub fn new(sector: Arc<Sector>, base: Option<Arc<LoadedImage>>, segments: Segments) -> Self {
        let extents = base
            .iter()
            .flat_map(|base| base.extents().collect::<Vec<_>>());
        let extents: HashMap<u64, Extent> = extents
            .map(|entry| {
                let extent = Extent {
                    address: entry.address.get(),
                    payload_length: entry.payload_length.get(),
                    head_length: entry.head_length.get(),
                    references: entry.references.get(),
                    held: 0,
                };
                (entry.lsn.get(), extent)
            })
            .collect();
        Self {
            sector,
            base,
            frozen: None,
            delta: Delta::default(),
            base_extents: extents.len(),
            extents,
            segments,
            tail: Tail::default(),
            replay_bytes: 0,
            blobs: 0,
            logical_bytes: 0,
            growth: 0,
            stretch: 0,
            opened_at: 0,
            replaying: false,
            owners: None,
        }
    }

    /// Begins a replay of the log behind the base, which [`SectorIndex::end_replay`] ends.
    pub fn begin_replay(&mut self) {
        self.replaying = true;
        // Up to four bytes more for each LSN: of what takes fewer than eight with it there is little.
        let bytes = self.base.as_ref().map_or(0, |base| base.bytes().len());
        self.stretch = bytes as u64 / 2;
    }

    /// Ends a replay: nothing is on its way in, so extents that nothing names are given up.
    pub fn end_replay(&mut self, tail: Tail) {
        self.tail = tail;
        self.opened_at = tail.lsn;
        self.replaying = false;
        self.owners = None;
        let unnamed: Vec<u64> = self
            .extents
            .iter()
            .filter(|(_, extent)| extent.references == 0)
            .map(|(lsn, _)| *lsn)
            .collect();
        unnamed.into_iter().for_each(|lsn| self.drop_if_dead(lsn));
    }

    /// The sector itself.
    pub fn sector(&self) -> &Arc<Sector> {
        &self.sector
    }

    fn get(&self, key: &[u8]) -> Result<Option<Slot>, StorageError> {
        let layered = self
            .delta
            .get(key)
            .or_else(|| self.frozen.as_ref().and_then(|frozen| frozen.get(key)));
        if let Some(change) = layered {
            return Ok(Some(change.slot.clone()));
        }
        let Some(base) = &self.base else {
            return Ok(None);
        };
        let entry = base
            .get(key)
            .map_err(|error| corrupt(&self.sector, &error))?;
        Ok(entry.map(Entry::of_image))
    }

    fn set(&mut self, key: &BinaryKey, slot: Slot) -> Result<(), StorageError> {
        let found = match self.delta.get(key.stored()) {
            Some(_) => None,
            None => self.get(key.stored())?,
        };
        self.replace(key, slot, found.as_ref());
        Ok(())
    }

    /// As [`SectorIndex::set`], where `found` is what is said of the key until now. Returns what it replaces of the
    /// newest layer.
    fn replace(&mut self, key: &BinaryKey, slot: Slot, found: Option<&Slot>) -> Option<Slot> {
        let stored = key.stored();
        let before = match found {
            Some(live @ Slot::Live(_)) => slot_bytes(stored, live),
            _ => 0,
        };
        let before = u32::try_from(before).unwrap_or(u32::MAX);
        let change = Change { slot, before };
        let mut growth = self.growth + change.growth(stored);
        let replaced = self.delta.say(stored, change, |own, change| {
            growth = self.growth - own.growth(stored);
            let replaced = std::mem::replace(&mut own.slot, change.slot);
            growth += own.growth(stored);
            replaced
        });
        self.growth = growth;
        replaced
    }

    /// How many entries changed since the last checkpoint.
    pub fn delta_len(&self) -> usize {
        self.delta.len() + self.frozen.as_ref().map_or(0, |frozen| frozen.len())
    }

    /// About how many bytes of memory it takes.
    pub fn memory(&self) -> u64 {
        /// What a leaf that is two thirds full takes for each, but for what the growth has: about the key and the pieces.
        const PER_DELTA_ENTRY: u64 = 136;
        let base = self.base.as_ref().map_or(0, |base| base.memory()) as u64;
        base + self.delta_len() as u64 * PER_DELTA_ENTRY
            + self.growth
            + self.extents.len() as u64 * 48
    }

    /// An upper estimate of the next image's size in bytes.
    pub fn image_estimate(&self) -> usize {
        let base = self.base.as_ref().map_or(4096, |base| base.bytes().len());
        let extents = self.extents.len().saturating_sub(self.base_extents);
        let growth = self.growth.saturating_add(self.stretch);
        let growth = usize::try_from(growth).unwrap_or(usize::MAX);
        base.saturating_add(growth)
            .saturating_add(extents * size_of::<ExtentEntry>())
    }

    /// Keeps room for the next checkpoint.
    pub fn update_reserve(&mut self) {
        /// A page of the image is not filled to the end, and another has just begun.
        const PAGES: usize = 2 * PAGE_SIZE;
        let geometry = &self.sector.geometry();
        let estimate = self.image_estimate();
        // Entries of the base grow, too, as their LSNs come to lie farther back.
        let next = estimate + estimate / 16 + PAGES;
        // What is in a frame takes no more bytes in the image: assembly sees to it.
        let frame = usize::try_from(geometry.segment_size)
            .map_or(FRAME_TARGET, |size| size.min(FRAME_TARGET));
        self.segments.set_checkpoint_reserve(
            image_segments(geometry, next),
            image_segments(geometry, next + frame),
        );
    }

    /// Where `range` of a blob lies, in order.
    ///
    /// # Errors
    /// `Corruption` if it names an extent that is not there.
    pub fn pieces(
        &self,
        key: &BinaryKey,
        entry: &Entry,
        range: &Range<u64>,
    ) -> Result<Vec<Piece>, StorageError> {
        let Some(extents) = &entry.extents else {
            let payload = Payload {
                address: entry
                    .address
                    .saturating_add(entry.head_length(key.stored())),
                length: entry.size,
                lsn: entry.lsn,
            };
            return Ok(vec![Piece {
                payload: Some(payload),
                range: range.clone(),
            }]);
        };
        let mut pieces = Vec::new();
        let mut position = 0;
        for piece in extents.iter() {
            if position >= range.end {
                break;
            }
            let end = position + u64::from(piece.length.get());
            let wanted = range.start.max(position)..range.end.min(end);
            if wanted.start < wanted.end {
                let within = wanted.start - position..wanted.end - position;
                pieces.push(self.piece(key, entry, piece, within)?);
            }
            position = end;
        }
        Ok(pieces)
    }

    /// Where a part of a piece of a blob lies, or all of it, if that is less.
    ///
    /// # Errors
    /// `Corruption` if it names an extent that is not there.
    pub fn piece(
        &self,
        key: &BinaryKey,
        entry: &Entry,
        piece: &ExtentRef,
        part: Range<u64>,
    ) -> Result<Piece, StorageError> {
        let offset = u64::from(piece.offset.get());
        let end = part.end.min(piece.length.get().into());
        let range = part.start + offset..end + offset;
        let payload = match piece.is_hole() {
            true => None,
            false => Some(self.extent_payload(key, entry, piece, range.end)?),
        };
        Ok(Piece { payload, range })
    }

    fn extent_payload(
        &self,
        key: &BinaryKey,
        entry: &Entry,
        piece: &ExtentRef,
        end: u64,
    ) -> Result<Payload, StorageError> {
        let lsn = piece.lsn.get();
        let extent = self
            .extents
            .get(&lsn)
            .filter(|extent| end <= extent.payload_length.into());
        extent
            .map(|extent| Payload {
                address: extent.address,
                length: extent.payload_length.into(),
                lsn,
            })
            .ok_or_else(|| StorageError::Corruption {
                place: self.sector.place(entry.address),
                key: Some(key.clone()),
                what: format!("the manifest names extent {lsn}, which is not there"),
            })
    }

    /// Bytes a blob takes: its record, and whole extents.
    pub fn allocated(&self, key: &BinaryKey, entry: &Entry) -> u64 {
        let pieces = entry.extents.iter().flat_map(|extents| extents.iter());
        let mut lsns: Vec<u64> = pieces.map(|piece| piece.lsn.get()).collect();
        let record = match self.is_extent(entry) {
            true => {
                lsns.push(entry.record_lsn());
                0
            }
            false => entry.record_length(key.stored()),
        };
        lsns.sort_unstable();
        lsns.dedup();
        let extents = lsns.iter().filter_map(|lsn| self.extents.get(lsn));
        record + extents.map(Extent::record_length).sum::<u64>()
    }

    fn segment(&self, address: u64) -> Option<u32> {
        self.sector
            .geometry()
            .segment_of(address)
            .map(|(segment, _)| segment)
    }

    fn add_live(&mut self, address: u64, length: u64) {
        if let Some(segment) = self.segment(address) {
            self.segments.add_live(segment, length);
        }
    }

    fn remove_live(&mut self, address: u64, length: u64) {
        if let Some(segment) = self.segment(address) {
            self.segments.remove_live(segment, length);
        }
    }

    /// One reference to an extent is gone.
    fn release_extent(&mut self, lsn: u64) {
        let Some(extent) = self.extents.get_mut(&lsn) else {
            return;
        };
        // Of so many nobody knows how many there are: it stays.
        if extent.references < u32::MAX {
            extent.references = extent.references.saturating_sub(1);
        }
        self.drop_if_dead(lsn);
    }

    fn drop_if_dead(&mut self, lsn: u64) {
        if let Some(extent) = self.extents.get(&lsn).copied()
            && extent.is_dead()
            && !self.replaying
        {
            self.extents.remove(&lsn);
            self.remove_live(extent.record_address(), extent.record_length());
        }
    }

    /// The version in `entry` is current no more.
    fn release(&mut self, key: &BinaryKey, entry: &Entry) {
        if key.is_blob() {
            self.blobs = self.blobs.saturating_sub(1);
            self.logical_bytes = self.logical_bytes.saturating_sub(entry.size);
        }
        let record = entry.record_lsn();
        match &entry.extents {
            // Copies may still share the payload of the record.
            None if self.is_extent(entry) => self.release_extent(entry.lsn),
            // In a replay, the record of a copy may follow.
            None if self.replaying && entry.size > 0 && !self.names(entry.lsn) => {
                self.name_payload(key, entry, 0);
            }
            None => self.remove_live(entry.address, entry.record_length(key.stored())),
            Some(extents) => {
                // The record of a blob that was changed is an extent as well.
                if self.is_extent(entry) {
                    self.release_extent(record);
                } else {
                    self.remove_live(entry.address, entry.record_length(key.stored()));
                }
                extents
                    .iter()
                    .for_each(|piece| self.release_extent(piece.lsn.get()));
            }
        }
    }

    /// A sector has a version no more.
    fn give_up(&mut self, key: &BinaryKey, entry: &Entry) -> Result<(), StorageError> {
        self.release(key, entry);
        self.set(key, Slot::Gone)
    }

    /// Puts what `applied` makes of its key in the place of what is older; gives up either, whichever is not the newest.
    fn renew(&mut self, applied: &Applied, slot: Slot) -> Result<(), StorageError> {
        // Builds with debug assertions, as those of tests, look for it all the same.
        let found = match applied.is_new && !cfg!(debug_assertions) {
            true => None,
            false => self.get(applied.key.stored())?,
        };
        let is_newest = match &found {
            Some(Slot::Live(Entry { lsn, .. }) | Slot::Tombstone { lsn }) => *lsn <= applied.lsn,
            Some(Slot::Gone) | None => true,
        };
        if !is_newest {
            if let Slot::Live(entry) = &slot {
                self.release(&applied.key, entry);
            }
            return Ok(());
        }
        if let Some(Slot::Live(entry)) = &found {
            self.release(&applied.key, entry);
        }
        let replaced = self.replace(&applied.key, slot, found.as_ref());
        let is_live = |slot: &Slot| matches!(slot, Slot::Live(_));
        if applied.is_new
            && (found.as_ref().is_some_and(is_live) || replaced.as_ref().is_some_and(is_live))
        {
            let what = format!("{} was taken for new", applied.key);
            return Err(self.sector.corruption(applied.address, what));
        }
        Ok(())
    }

    /// Whether nothing is known of a key that is as new as `applied`.
    fn knows_older(&self, applied: &Applied) -> Result<bool, StorageError> {
        Ok(match self.get(applied.key.stored())? {
            Some(Slot::Live(Entry { lsn, .. }) | Slot::Tombstone { lsn }) => lsn < applied.lsn,
            Some(Slot::Gone) | None => true,
        })
    }

    /// Addresses and lengths of the records that hold extents.
    pub fn extent_records(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.extents
            .values()
            .map(|extent| (extent.record_address(), extent.record_length()))
    }

    /// The records that hold extents in a segment, with LSNs above `after`: where they lie, and how long they
    /// are. The first `most`, by LSN.
    pub fn extents_in(&self, segment: u32, after: u64, most: usize) -> BTreeMap<u64, (u64, u64)> {
        let mut found = BTreeMap::new();
        for (&lsn, extent) in &self.extents {
            let address = extent.record_address();
            if lsn <= after || self.segment(address) != Some(segment) {
                continue;
            }
            found.insert(lsn, (address, extent.record_length()));
            if found.len() > most {
                found.pop_last();
            }
        }
        found
    }

    /// Whether the record of an entry may be of a kind.
    pub fn may_be(&self, kind: RecordKind, entry: &Entry) -> bool {
        match entry.changed {
            None if entry.extents.is_none() => kind == RecordKind::Blob,
            None => kind == RecordKind::Manifest,
            // Only that of a blob is an extent as well.
            Some(_) if self.is_extent(entry) => kind == RecordKind::Blob,
            // Of a replica it may be that of a blob whose payload is there once more: made for another that
            // shares it.
            Some(_) => matches!(kind, RecordKind::Blob | RecordKind::Manifest),
        }
    }

    /// How many pieces there are of a payload.
    pub fn references(&self, lsn: u64) -> u32 {
        self.extents.get(&lsn).map_or(0, |extent| extent.references)
    }

    /// A payload that manifests name.
    pub fn payload_of(&self, lsn: u64) -> Option<Payload> {
        let extent = self.extents.get(&lsn)?;
        Some(Payload {
            address: extent.address,
            length: extent.payload_length.into(),
            lsn,
        })
    }

    /// Where the record of a payload lies that manifests name, up to the payload.
    pub fn head_of(&self, lsn: u64) -> Option<Range<u64>> {
        let extent = self.extents.get(&lsn)?;
        Some(extent.record_address()..extent.address)
    }

    /// Whether the record of an entry is known as an extent as well. (That of a replica may have the LSN of
    /// a piece, and be another.)
    pub fn is_extent(&self, entry: &Entry) -> bool {
        let extent = self.extents.get(&entry.record_lsn());
        extent.is_some_and(|extent| extent.record_address() == entry.address)
    }

    /// Whether a record's payload is known as an extent.
    pub fn names(&self, lsn: u64) -> bool {
        self.extents.contains_key(&lsn)
    }

    /// Holds an extent that is there, for a blob on its way in. `false` if it is not.
    pub fn hold(&mut self, lsn: u64, hold: &Hold) -> bool {
        let number = usize::from(self.sector.number());
        match self.extents.get_mut(&lsn) {
            Some(extent) if hold.add(number, lsn) => {
                extent.held += 1;
                true
            }
            _ => false,
        }
    }

    /// A blob that an extent was held for has come to be, or will not.
    fn let_go(&mut self, lsn: u64) {
        if let Some(extent) = self.extents.get_mut(&lsn) {
            extent.held = extent.held.saturating_sub(1);
        }
        self.drop_if_dead(lsn);
    }

    /// How many extents are held for blobs on their way in.
    pub fn held(&self) -> u64 {
        let held = self.extents.values().filter(|extent| extent.held > 0);
        held.count() as u64
    }

    /// Whether compaction must keep a record of this sector.
    ///
    /// # Errors
    /// `Corruption` of the index.
    pub fn is_live(
        &self,
        kind: RecordKind,
        key: &[u8],
        lsn: u64,
        address: u64,
    ) -> Result<bool, StorageError> {
        let named = |head: u64| {
            self.extents
                .get(&lsn)
                .is_some_and(|extent| extent.address == address.saturating_add(head))
        };
        Ok(match kind {
            RecordKind::Tombstone | RecordKind::Splice | RecordKind::Merge => false,
            RecordKind::Extent | RecordKind::Range => self
                .extents
                .get(&lsn)
                .is_some_and(|extent| extent.record_address() == address),
            RecordKind::Blob | RecordKind::Manifest => {
                let current = matches!(self.get(key)?, Some(Slot::Live(entry)) if entry.record_lsn() == lsn && entry.address == address);
                current
                    || self
                        .extents
                        .get(&lsn)
                        .is_some_and(|extent| named(extent.head_length.into()))
            }
        })
    }

    /// A record was written anew: whoever names it learns the new place.
    fn relocate(&mut self, applied: &Applied) -> Result<(), StorageError> {
        let key = applied.key.stored();
        let is_copy = applied.replica && !applied.moved && applied.kind == RecordKind::Extent;
        if is_copy && self.is_owned(&applied.key, applied.lsn)? {
            // The record stays the blob's own until it goes. In a replay it had gone before this was written, of
            // which the log does not tell: the others had a newer version.
            self.name_elsewhere(applied);
            return Ok(());
        }
        let mut old: Option<(u64, u64)> = None;
        if let Some(Slot::Live(entry)) = self.get(key)?
            && entry.record_lsn() == applied.lsn
            && self.may_be(applied.kind, &entry)
        {
            old = Some((entry.address, entry.record_length(key)));
            self.set(
                &applied.key,
                Slot::Live(Entry {
                    address: applied.address,
                    ..entry
                }),
            )?;
        }
        if applied.kind != RecordKind::Manifest
            && let Some(extent) = self.extents.get_mut(&applied.lsn)
            && old.is_none_or(|(old, _)| extent.record_address() == old)
        {
            old = Some((extent.record_address(), extent.record_length()));
            extent.address = applied.address + applied.head_length();
            // That of a replica may have another key.
            extent.head_length = u32::try_from(applied.head_length()).unwrap_or(u32::MAX);
        }
        if let Some((old, length)) = old {
            self.remove_live(old, length);
            self.add_live(applied.address, applied.length());
        }
        Ok(())
    }

    /// An extent, which is a blob's own record, lies elsewhere from now on; the record stays for the blob alone.
    fn name_elsewhere(&mut self, applied: &Applied) {
        let head_length = applied.head_length();
        if let Some(extent) = self.extents.get_mut(&applied.lsn) {
            extent.address = applied.address + head_length;
            extent.head_length = u32::try_from(head_length).unwrap_or(u32::MAX);
            extent.references = extent.references.saturating_sub(1);
            self.add_live(applied.address, applied.length());
        }
    }

    /// Whether the record of a replica is here already: then it is written anew.
    fn has_record(&self, applied: &Applied) -> Result<bool, StorageError> {
        if applied.kind == RecordKind::Extent {
            return Ok(self.names(applied.lsn));
        }
        let Some(Slot::Live(entry)) = self.get(applied.key.stored())? else {
            return Ok(false);
        };
        if let Some((_, pieces)) = &applied.manifest
            && (entry.changed.is_some() || entry.extents.as_ref() != Some(pieces))
        {
            return Ok(false);
        }
        Ok(entry.record_lsn() == applied.lsn
            && entry.meta_length == applied.meta_length
            && entry.record_payload() == u64::from(applied.payload_length)
            && self.may_be(applied.kind, &entry))
    }

    /// A record's payload is an extent from now on.
    fn add_extent(&mut self, applied: &Applied) {
        let head_length = applied.head_length();
        let number = usize::from(self.sector.number());
        let hold = applied.hold.as_ref();
        let extent = Extent {
            address: applied.address + head_length,
            payload_length: applied.payload_length,
            head_length: u32::try_from(head_length).unwrap_or(u32::MAX),
            references: 0,
            held: u32::from(hold.is_some_and(|hold| hold.add(number, applied.lsn))),
        };
        self.extents.insert(applied.lsn, extent);
        self.add_live(applied.address, applied.length());
    }

    /// Makes the version that a range or a splice says out of the one that is current, or puts some of
    /// its bytes elsewhere, as a merge says.
    fn apply_change(&mut self, applied: &Applied) -> Result<(), StorageError> {
        let found = match (applied.change, self.get(applied.key.stored())?) {
            (Some(change), Some(Slot::Live(entry))) if entry.lsn == change.base => {
                Some((change, entry))
            }
            _ => None,
        };
        let Some((change, entry)) = found else {
            if applied.kind == RecordKind::Merge {
                return Ok(());
            }
            let what = format!(
                "the version that it changes is missing [F-59]: {}",
                applied.key
            );
            return Err(self.sector.corruption(applied.address, what));
        };
        let length = match &applied.manifest {
            Some((length, _)) => *length,
            None => applied.payload_length.into(),
        };
        let new = match &applied.manifest {
            Some((_, pieces)) => Arc::clone(pieces),
            None => Arc::new([ExtentRef {
                lsn: applied.lsn.into(),
                offset: 0.into(),
                length: applied.payload_length.into(),
            }]),
        };
        let is_wrong = match applied.kind {
            RecordKind::Merge => change.size != entry.size,
            _ => change.size < entry.size,
        };
        if is_wrong || change.check(length).is_err() {
            let what = format!("{change:?} of a blob of {} bytes [F-59]", entry.size);
            return Err(self.sector.corruption(applied.address, what));
        }
        let old = entry.all_pieces();
        if entry.extents.is_none() {
            // The record of a blob stays for what its metadata says: that is one reference, and the
            // piece that is its payload another.
            if !self.extents.contains_key(&entry.lsn) {
                self.name_payload(&applied.key, &entry, 1);
            }
            self.refer(applied.address, &old)?;
        }
        let splice = splice(&old, change.start, length, &new);
        self.refer(applied.address, &splice.added)?;
        for piece in &splice.dropped {
            self.release_extent(piece.lsn.get());
        }
        if applied.key.is_blob() {
            self.logical_bytes = self.logical_bytes.saturating_sub(entry.size) + change.size;
        }
        let payload_length = u32::try_from(entry.record_payload()).unwrap_or(u32::MAX);
        let record = ChangedRecord {
            lsn: entry.lsn,
            payload_length,
        };
        let (lsn, time) = match applied.kind {
            RecordKind::Merge => (entry.lsn, entry.time),
            _ => (applied.lsn, applied.time),
        };
        let entry = Entry {
            lsn,
            size: change.size,
            time,
            changed: Some(entry.changed.unwrap_or(record)),
            extents: Some(splice.pieces.into()),
            ..entry
        };
        self.set(&applied.key, Slot::Live(entry))
    }

    /// Counts the references that pieces are.
    fn refer(&mut self, address: u64, pieces: &[ExtentRef]) -> Result<(), StorageError> {
        for piece in pieces.iter().filter(|piece| !piece.is_hole()) {
            if let Some(extent) = self.extents.get_mut(&piece.lsn.get()) {
                extent.references = extent.references.saturating_add(1);
            } else if !self.replaying {
                // Of a log with damage, whoever reads the blob learns of it.
                return Err(self.sector.corruption(
                    address,
                    format!("extent {} was given up before it was named", piece.lsn),
                ));
            }
        }
        Ok(())
    }

    /// Names the payload of the blob record that is current for `source`, so that a manifest can
    /// share it.
    fn share(&mut self, source: &BinaryKey, lsn: u64) -> Result<(), StorageError> {
        if self.extents.contains_key(&lsn) {
            return Ok(());
        }
        if let Some(Slot::Live(entry)) = self.get(source.stored())?
            && entry.lsn == lsn
            && entry.extents.is_none()
        {
            self.name_payload(source, &entry, 1);
        }
        Ok(())
    }

    /// Names the payloads that lie in the records of an upload's parts, so that a manifest can share
    /// them.
    fn share_parts(&mut self, upload: u64) -> Result<(), StorageError> {
        for (number, entry) in self.parts(upload)? {
            let is_inline = entry.extents.is_none() && entry.size > 0;
            if is_inline && !self.extents.contains_key(&entry.lsn) {
                self.name_payload(&part_key(upload, number), &entry, 1);
            }
        }
        Ok(())
    }

    /// The parts of an upload, by number.
    ///
    /// # Errors
    /// `Corruption` of the index.
    pub fn parts(&self, upload: u64) -> Result<Vec<(u16, Entry)>, StorageError> {
        let mut range = self.range(&numbered(SPACE_PART, upload))?;
        let (mut key, mut parts) = (Vec::new(), Vec::new());
        while let Some(slot) = range.next(&mut key)? {
            match (StoredKey::decode(&key), slot) {
                (Ok(StoredKey::Part { upload: of, .. }), _) if of != upload => break,
                (Ok(StoredKey::Part { number, .. }), Slot::Live(entry)) => {
                    parts.push((number, entry));
                }
                (Ok(StoredKey::Part { .. }), _) => {}
                _ => break,
            }
        }
        Ok(parts)
    }

    /// The parts of an upload that are named, one behind the other.
    ///
    /// # Errors
    /// `InvalidPart` if one is not there as it is named; `Corruption` of the index.
    pub fn join_parts(&self, upload: u64, named: &[(u16, ETag)]) -> Result<Joined, StorageError> {
        let parts = self.parts(upload)?;
        let mut joined = Joined::default();
        for &(number, etag) in named {
            let wrong = |why| StorageError::InvalidPart { number, why };
            let found = parts.binary_search_by_key(&number, |(number, _)| *number);
            let (_, entry) = &parts[found.map_err(|_| wrong("it was never put"))?];
            if ETag::of_version(entry.lsn) != etag {
                return Err(wrong("it has another ETag"));
            }
            joined.size = joined.size.saturating_add(entry.size);
            match &entry.extents {
                Some(extents) => joined.pieces.extend_from_slice(extents),
                None if entry.size == 0 => {}
                None => {
                    joined.pieces.push(entry.payload());
                    joined.inline += 1;
                }
            }
        }
        Ok(joined)
    }

    /// An upload is over: so are its parts.
    fn drop_parts(&mut self, upload: u64) -> Result<(), StorageError> {
        for (number, entry) in self.parts(upload)? {
            let key = part_key(upload, number);
            self.release(&key, &entry);
            self.set(&key, Slot::Gone)?;
        }
        Ok(())
    }

    /// Makes the payload of a blob record an extent, so that manifests can name it.
    fn name_payload(&mut self, key: &BinaryKey, entry: &Entry, references: u32) {
        let head_length = entry.head_length(key.stored());
        let extent = Extent {
            address: entry.address.saturating_add(head_length),
            payload_length: u32::try_from(entry.size).unwrap_or(u32::MAX),
            head_length: u32::try_from(head_length).unwrap_or(u32::MAX),
            references,
            held: 0,
        };
        self.extents.insert(entry.lsn, extent);
        if let Some(owners) = &mut self.owners {
            owners.insert(entry.lsn, key.clone());
        }
    }

    /// Whether an extent lies in the record of a blob that is there: of this one or, in a replay, of any.
    fn is_owned(&mut self, key: &BinaryKey, lsn: u64) -> Result<bool, StorageError> {
        if self.owns(key, lsn)? {
            return Ok(true);
        }
        if !self.replaying {
            return Ok(false);
        }
        let owners = match self.owners.take() {
            Some(owners) => owners,
            None => self.all_owners()?,
        };
        let is_owned = match owners.get(&lsn) {
            Some(owner) => self.owns(owner, lsn),
            None => Ok(false),
        };
        self.owners = Some(owners);
        is_owned
    }

    /// Whether an extent lies in the record of this blob.
    fn owns(&self, key: &BinaryKey, lsn: u64) -> Result<bool, StorageError> {
        Ok(match self.get(key.stored())? {
            Some(Slot::Live(entry)) => entry.record_lsn() == lsn && self.is_extent(&entry),
            _ => false,
        })
    }

    fn all_owners(&self) -> Result<HashMap<u64, BinaryKey>, StorageError> {
        let mut owners = HashMap::new();
        self.scan(&[], |key, entry| {
            if self.is_extent(entry)
                && let Ok(key) = BinaryKey::of_stored(key)
            {
                owners.insert(entry.record_lsn(), key.owned());
            }
            Ok(true)
        })?;
        Ok(owners)
    }

    /// Calls `each` with the live entries whose stored keys are `from` or greater, in order, until it
    /// returns `false`.
    ///
    /// # Errors
    /// `Corruption` of the index.
    pub fn scan(
        &self,
        from: &[u8],
        mut each: impl FnMut(&[u8], &Entry) -> Result<bool, StorageError>,
    ) -> Result<(), StorageError> {
        let mut range = self.range(from)?;
        while let Some((key, slot)) = range.lend_next()? {
            if let Slot::Live(entry) = slot
                && !each(key, entry)?
            {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The entries with keys of `from` or greater, in order.
    fn range(&self, from: &[u8]) -> Result<MergedRange<'_>, StorageError> {
        let base = match &self.base {
            Some(base) => Some(BaseRange::new(
                base.seek(from)
                    .map_err(|error| corrupt(&self.sector, &error))?,
            )),
            None => None,
        };
        Ok(MergedRange {
            sector: &self.sector,
            delta: self.delta.range(from),
            frozen: self.frozen.as_deref().map(|frozen| frozen.range(from)),
            base,
        })
    }
}

type DeltaRange<'a> = delta::Range<'a, Change>;

struct BaseRange<'a> {
    cursor: Cursor<'a, Bytes>,
    /// What is said of the cursor's key; `None` before the first, and at the end.
    current: Option<Slot>,
    /// It was lent: the next is to be read.
    is_lent: bool,
}

impl<'a> BaseRange<'a> {
    fn new(cursor: Cursor<'a, Bytes>) -> Self {
        Self {
            cursor,
            current: None,
            is_lent: true,
        }
    }

    /// The key that is next.
    fn peek(&mut self, sector: &Sector) -> Result<Option<&[u8]>, StorageError> {
        if self.is_lent {
            let next = self.cursor.next();
            let next = next.map_err(|error| corrupt(sector, &error))?;
            self.current = next.map(Entry::of_image);
            self.is_lent = false;
        }
        Ok(self.current.as_ref().map(|_| self.cursor.key()))
    }

    fn next(&mut self) -> Option<Said<'_>> {
        self.is_lent = self.current.is_some();
        let slot = self.current.as_ref()?;
        Some((self.cursor.key(), slot))
    }
}

/// Walks the layers of one sector's index as one.
struct MergedRange<'a> {
    sector: &'a Sector,
    delta: DeltaRange<'a>,
    frozen: Option<DeltaRange<'a>>,
    base: Option<BaseRange<'a>>,
}

/// A key, and what is said of it.
type Said<'a> = (&'a [u8], &'a Slot);

impl MergedRange<'_> {
    /// The next key, into `key`, and what the newest layer says of it.
    fn next(&mut self, key: &mut Vec<u8>) -> Result<Option<Slot>, StorageError> {
        let Some((next, slot)) = self.lend_next()? else {
            return Ok(None);
        };
        key.clear();
        key.extend_from_slice(next);
        Ok(Some(slot.clone()))
    }

    /// The next key, and what the newest layer says of it, both where they lie.
    fn lend_next(&mut self) -> Result<Option<Said<'_>>, StorageError> {
        let delta = self.delta.peek();
        let frozen = self.frozen.as_ref().and_then(DeltaRange::peek);
        let base = match &mut self.base {
            Some(base) => base.peek(self.sector)?,
            None => None,
        };
        let layers = [delta, frozen, base];
        let is_least = match layers {
            // Most often one is left.
            [_, None, None] | [None, _, None] | [None, None, _] => layers.map(|key| key.is_some()),
            _ => {
                let least = layers.into_iter().flatten().min();
                layers.map(|key| key.is_some() && key == least)
            }
        };
        let [in_delta, in_frozen, in_base] = is_least;
        let of_base = self.base.as_mut().filter(|_| in_base);
        let of_base = of_base.and_then(BaseRange::next);
        let of_frozen = self.frozen.as_mut().filter(|_| in_frozen);
        let of_frozen = of_frozen.and_then(Iterator::next);
        let of_delta = in_delta.then(|| self.delta.next()).flatten();
        let of_delta = of_delta.or(of_frozen);
        Ok(of_delta.map_or(of_base, |(key, change)| Some((key, &change.slot))))
    }
}

/// Walks the indexes of all sectors as one.
struct Heads<'a> {
    heads: Vec<Head<'a>>,
    /// What the sectors say of the key that came last.
    found: Vec<(usize, Slot)>,
    spare: Vec<u8>,
}

struct Head<'a> {
    range: MergedRange<'a>,
    key: Vec<u8>,
    slot: Option<Slot>,
}

impl<'a> Heads<'a> {
    fn new(index: &'a Index, from: &[u8]) -> Result<Self, StorageError> {
        let mut heads = Vec::with_capacity(index.sectors.len());
        for sector in &index.sectors {
            let (mut range, mut key) = (sector.range(from)?, Vec::new());
            let slot = range.next(&mut key)?;
            heads.push(Head { range, key, slot });
        }
        Ok(Self {
            heads,
            found: Vec::new(),
            spare: Vec::new(),
        })
    }

    /// The next key; what is said of it is in `found`.
    fn next(&mut self) -> Result<Option<Vec<u8>>, StorageError> {
        self.found.clear();
        let there = self.heads.iter().filter(|head| head.slot.is_some());
        let Some(least) = there.map(|head| head.key.as_slice()).min() else {
            return Ok(None);
        };
        let mut key = std::mem::take(&mut self.spare);
        key.clear();
        key.extend_from_slice(least);
        for (number, head) in self.heads.iter_mut().enumerate() {
            if head.key == key
                && let Some(slot) = head.slot.take()
            {
                self.found.push((number, slot));
                head.slot = head.range.next(&mut head.key)?;
            }
        }
        Ok(Some(key))
    }

    /// Takes out what of the key that came last does not hold, since only sectors of `void` say so: see
    /// [`Index::settle`].
    fn take_void(&mut self, void: &[(usize, u64)]) -> Vec<(usize, Slot)> {
        let below = |number: usize| void.iter().find(|(of, _)| *of == number);
        if void.is_empty() {
            return Vec::new();
        }
        let others = self.found.iter();
        let others = others.filter(|(number, _)| below(*number).is_none());
        let newest = others.map(|(_, slot)| slot.lsn()).max().unwrap_or(0);
        let is_void = |(number, slot): &mut (usize, Slot)| {
            below(*number).is_some_and(|(_, below)| (newest + 1..*below).contains(&slot.lsn()))
        };
        self.found.extract_if(.., is_void).collect()
    }

    /// How many sectors a blob of which these have the newest version is to lie in; 0: as many as the store says.
    fn asked(&self, holders: SectorSet) -> u8 {
        let asked = self.found.iter().map(|(number, slot)| match slot {
            Slot::Live(entry) if holders.contains(*number) => entry.replicas,
            _ => 0,
        });
        asked.max().unwrap_or(0)
    }

    /// Whether these sectors have made the blob of other pieces: fragments were merged in some of them.
    fn is_unlike(&self, holders: SectorSet) -> bool {
        let mut live = self.found.iter().filter_map(|(number, slot)| match slot {
            Slot::Live(entry) if holders.contains(*number) => Some(entry),
            _ => None,
        });
        let first = live.next();
        first.is_some_and(|first| live.any(|other| !first.is_alike(other)))
    }

    /// Gives a key's memory back for the next.
    fn recycle(&mut self, key: Vec<u8>) {
        self.spare = key;
    }
}

/// What a checkpoint folds into its image: one consistent view of a sector's index.
#[derive(Debug)]
pub struct Cut {
    base: Option<Arc<LoadedImage>>,
    frozen: Arc<Delta>,
    extents: Vec<ExtentEntry>,
    /// The log's end that the view reflects.
    pub tail: Tail,
    /// The table of segments.
    pub segments: Segments,
    /// Number of blobs.
    pub blobs: u64,
    /// Their sizes, summed.
    pub logical_bytes: u64,
}

impl Cut {
    /// Builds the image. Tombstones up to `forget` are left out: no sector can bring the blob back.
    ///
    /// # Errors
    /// `Corruption` of the image that is folded in.
    pub fn build(&self, sector: &Sector, forget: u64) -> Result<Vec<u8>, StorageError> {
        let empty = Delta::default();
        let mut range = MergedRange {
            sector,
            delta: empty.range(&[]),
            frozen: Some(self.frozen.range(&[])),
            base: match &self.base {
                Some(base) => Some(BaseRange::new(
                    base.seek(&[]).map_err(|error| corrupt(sector, &error))?,
                )),
                None => None,
            },
        };
        let mut builder = ImageBuilder::new(self.tail.lsn, self.tail.time);
        while let Some((key, slot)) = range.lend_next()? {
            match slot {
                Slot::Live(entry) => builder.push(key, &entry.to_image()),
                Slot::Tombstone { lsn } if *lsn > forget => builder.push(
                    key,
                    &ImageEntry {
                        lsn: *lsn,
                        value: ImageValue::Tombstone,
                    },
                ),
                Slot::Tombstone { .. } | Slot::Gone => {}
            }
        }
        Ok(builder.finish(&self.extents, &self.segments.encode()))
    }
}

/// The current version of a blob, where it was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// The sectors that have it.
    pub holders: SectorSet,
    /// One of them.
    pub number: usize,
    /// What that one has.
    pub entry: Entry,
}

/// What was found to be lacking when a store was opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lacking {
    /// Something lies in fewer sectors than the store says.
    pub is_short: bool,
    /// A blob lies in fewer sectors than its put asked for.
    pub is_below_asked: bool,
    /// A blob is made of other pieces in one sector than in another.
    pub is_unlike: bool,
}

/// The index of a store.
#[derive(Debug, Default)]
pub struct Index {
    /// Its sectors' parts, by number.
    pub sectors: Vec<SectorIndex>,
    /// Number of blobs, and their sizes, summed, replicas of one counted once; kept where there are
    /// several sectors.
    blobs: u64,
    logical_bytes: u64,
}

impl Index {
    /// What was held of extents is held no more.
    pub fn let_go(&mut self, hold: &Hold) {
        for (number, lsn) in hold.end() {
            self.sectors[number].let_go(lsn);
        }
    }

    /// The index of a store that has these sectors; [`Index::settle`] it once they are what they are.
    pub fn new(sectors: Vec<SectorIndex>) -> Self {
        Self {
            sectors,
            blobs: 0,
            logical_bytes: 0,
        }
    }

    /// A sector more comes in.
    pub fn add(&mut self, sector: SectorIndex) {
        if let [one] = self.sectors.as_slice() {
            (self.blobs, self.logical_bytes) = (one.blobs, one.logical_bytes);
        }
        self.sectors.push(sector);
    }

    /// What a sector has is gone, and `nothing` is in its place.
    pub fn forget(&mut self, number: usize, nothing: SectorIndex) {
        let gone = std::mem::replace(&mut self.sectors[number], nothing);
        // Of what no other has, the counts go too.
        let _ = gone.scan(&[], |key, entry| {
            let is_blob = BinaryKey::of_stored(key).is_ok_and(|key| key.is_blob());
            if is_blob && self.lookup(key)?.is_none() {
                self.blobs = self.blobs.saturating_sub(1);
                self.logical_bytes = self.logical_bytes.saturating_sub(entry.size);
            }
            Ok(true)
        });
    }

    /// Number of blobs, and their sizes, summed, replicas of one counted once.
    pub fn totals(&self) -> (u64, u64) {
        match self.sectors.as_slice() {
            [one] => (one.blobs, one.logical_bytes),
            _ => (self.blobs, self.logical_bytes),
        }
    }

    /// The current version of `key`, and where it lies.
    ///
    /// # Errors
    /// `Corruption` of the index.
    pub fn lookup(&self, key: &[u8]) -> Result<Option<Found>, StorageError> {
        let mut found: Option<Found> = None;
        for (number, sector) in self.sectors.iter().enumerate() {
            let Some(Slot::Live(entry)) = sector.get(key)? else {
                continue;
            };
            match &mut found {
                Some(found) if entry.lsn < found.entry.lsn => {}
                Some(found) if entry.lsn == found.entry.lsn => {
                    found.holders = found.holders.and(SectorSet::one(number));
                }
                // A change that is just being taken in is not everywhere yet.
                _ => {
                    found = Some(Found {
                        holders: SectorSet::one(number),
                        number,
                        entry,
                    });
                }
            }
        }
        Ok(found)
    }

    /// The same, with only those sectors in which it is made of the same pieces: those that were merged
    /// last.
    ///
    /// # Errors
    /// `Corruption` of the index.
    pub fn alike(&self, key: &[u8]) -> Result<Option<Found>, StorageError> {
        let Some(found) = self.lookup(key)? else {
            return Ok(None);
        };
        if found.holders.len() == 1 {
            return Ok(Some(found));
        }
        let newest = |pieces: &[ExtentRef]| pieces.iter().map(|piece| piece.lsn.get()).max();
        let mut best: Option<(Found, Arc<[ExtentRef]>)> = None;
        for number in found.holders.iter() {
            let Some(entry) = self.entry_in(number, key)? else {
                continue;
            };
            let pieces = entry.all_pieces();
            match &mut best {
                Some((best, same)) if *same == pieces => {
                    best.holders = best.holders.and(SectorSet::one(number));
                }
                Some((_, others)) if newest(others) >= newest(&pieces) => {}
                _ => {
                    let holders = SectorSet::one(number);
                    let found = Found {
                        holders,
                        number,
                        entry,
                    };
                    best = Some((found, pieces));
                }
            }
        }
        Ok(best.map(|(found, _)| found))
    }

    /// What one sector has of the blob.
    ///
    /// # Errors
    /// `Corruption` of the index.
    pub fn entry_in(&self, number: usize, key: &[u8]) -> Result<Option<Entry>, StorageError> {
        match self.sectors[number].get(key)? {
            Some(Slot::Live(entry)) => Ok(Some(entry)),
            Some(Slot::Tombstone { .. } | Slot::Gone) | None => Ok(None),
        }
    }

    /// The same, of a version that was found: that of its sector is at hand.
    ///
    /// # Errors
    /// `Corruption` of the index.
    pub fn entry_of(
        &self,
        found: &Found,
        number: usize,
        key: &[u8],
    ) -> Result<Option<Entry>, StorageError> {
        match number == found.number {
            true => Ok(Some(found.entry.clone())),
            false => self.entry_in(number, key),
        }
    }

    /// Whether the bytes of a blob are the payload of its own record in one sector.
    pub fn is_inline(&self, number: usize, key: &BinaryKey) -> bool {
        let entry = self.entry_in(number, key.stored());
        matches!(entry, Ok(Some(entry)) if entry.extents.is_none() && entry.size > 0)
    }

    /// The parts of an upload, by number.
    ///
    /// # Errors
    /// `Corruption` of the index.
    pub fn parts(&self, upload: u64) -> Result<Vec<(u16, Entry)>, StorageError> {
        let mut all = BTreeMap::new();
        for sector in &self.sectors {
            all.extend(sector.parts(upload)?);
        }
        Ok(all.into_iter().collect())
    }

    /// The upload that is open and has this id.
    ///
    /// # Errors
    /// `Corruption` of the index.
    pub fn find_upload(&self, upload: u64) -> Result<Option<(BinaryKey, Found)>, StorageError> {
        self.find_numbered(&numbered(SPACE_UPLOAD, upload))
    }

    /// What is left of the upload with this id, which has become a blob.
    ///
    /// # Errors
    /// `Corruption` of the index.
    pub fn find_completed(&self, upload: u64) -> Result<Option<(BinaryKey, Found)>, StorageError> {
        self.find_numbered(&numbered(SPACE_COMPLETED, upload))
    }

    /// The blob that an upload has become, if it still has that version: what is kept of the upload has
    /// the LSN behind it.
    ///
    /// # Errors
    /// `Corruption` of the index.
    pub fn completed_blob(
        &self,
        key: &BinaryKey,
        kept: &Entry,
    ) -> Result<Option<Entry>, StorageError> {
        let blob = self.lookup(key.of_blob().stored())?;
        Ok(blob
            .map(|found| found.entry)
            .filter(|blob| blob.lsn + 1 == kept.lsn))
    }

    /// Whether what is kept of an upload is of the version that its blob has, also while the sectors are being
    /// put together.
    fn is_of_its_blob(&self, key: &[u8], kept: &Entry) -> Result<bool, StorageError> {
        let Ok(key) = BinaryKey::of_stored(key) else {
            return Ok(false);
        };
        let is_deleted = self.tombstone(key.of_blob().stored())?.is_some();
        Ok(!is_deleted && self.completed_blob(&key, kept)?.is_some())
    }

    /// Forgets what is kept of uploads of sector `number` whose blobs have other versions by now, of the
    /// next `most` from `from` on. Returns whether there are more.
    ///
    /// # Errors
    /// `Corruption` of the index.
    pub fn forget_completed(
        &mut self,
        number: usize,
        from: &mut Vec<u8>,
        most: usize,
    ) -> Result<bool, StorageError> {
        let mut stale = Vec::new();
        let mut range = self.sectors[number].range(from)?;
        let mut seen = 0;
        while seen < most
            && let Some(slot) = range.next(from)?
            && from.first() == Some(&SPACE_COMPLETED)
        {
            seen += 1;
            if let (Slot::Live(kept), Ok(key)) = (slot, BinaryKey::of_stored(from))
                && self.completed_blob(&key, &kept)?.is_none()
            {
                stale.push((key, kept));
            }
        }
        // Behind the last that was looked at.
        from.push(0);
        for (key, kept) in stale {
            self.sectors[number].give_up(&key, &kept)?;
        }
        Ok(seen == most)
    }

    fn find_numbered(&self, prefix: &[u8]) -> Result<Option<(BinaryKey, Found)>, StorageError> {
        for sector in &self.sectors {
            let mut range = sector.range(prefix)?;
            let mut key = Vec::new();
            while let Some(slot) = range.next(&mut key)?
                && key.starts_with(prefix)
            {
                if let (Slot::Live(_), Ok(key)) = (slot, BinaryKey::of_stored(&key)) {
                    let found = self.lookup(key.stored())?;
                    return Ok(found.map(|found| (key, found)));
                }
            }
        }
        Ok(None)
    }

    /// LSN of the tombstone that is the newest that the sectors know of a key, and which of them have it.
    ///
    /// # Errors
    /// `Corruption` of the index.
    pub fn tombstone(&self, key: &[u8]) -> Result<Option<(u64, SectorSet)>, StorageError> {
        let mut newest = 0;
        let mut hiding = SectorSet::NONE;
        for (number, sector) in self.sectors.iter().enumerate() {
            let Some(slot) = sector.get(key)? else {
                continue;
            };
            let hides = match slot {
                Slot::Tombstone { .. } => SectorSet::one(number),
                Slot::Live(_) | Slot::Gone => SectorSet::NONE,
            };
            if slot.lsn() > newest {
                (newest, hiding) = (slot.lsn(), hides);
            } else if slot.lsn() == newest {
                hiding = hiding.and(hides);
            }
        }
        Ok((!hiding.is_empty()).then_some((newest, hiding)))
    }

    /// Whether the newest that the sectors know of a key is a tombstone, which all of `sectors` have,
    /// and is above `failed`, up to which a sector that was given up may hold what its index does not
    /// know: then no crash of another brings a blob back.
    ///
    /// # Errors
    /// `Corruption` of the index.
    pub fn is_hidden_by(
        &self,
        sectors: SectorSet,
        key: &[u8],
        failed: u64,
    ) -> Result<bool, StorageError> {
        let tombstone = self.tombstone(key)?;
        Ok(tombstone.is_some_and(|(lsn, hiding)| lsn > failed && sectors.is_within(hiding)))
    }

    /// Takes in one record that sector `number` wrote, in the order of the log.
    ///
    /// # Errors
    /// `Corruption` of the index.
    pub fn apply(&mut self, number: usize, applied: &Applied) -> Result<(), StorageError> {
        // A replay is counted when it is settled.
        let counts = self.sectors.len() > 1
            && !self.sectors[number].replaying
            && applied.key.is_blob()
            && !applied.moved
            && !matches!(applied.kind, RecordKind::Extent | RecordKind::Merge);
        if !counts {
            return self.take_in(number, applied);
        }
        let before = self.lookup(applied.key.stored())?;
        let outcome = self.take_in(number, applied);
        let after = self.lookup(applied.key.stored())?;
        self.recount(before.as_ref(), after.as_ref());
        outcome
    }

    fn recount(&mut self, before: Option<&Found>, after: Option<&Found>) {
        let count = |found: Option<&Found>| found.map_or((0, 0), |found| (1, found.entry.size));
        let ((gone, gone_bytes), (new, new_bytes)) = (count(before), count(after));
        self.blobs = self.blobs.saturating_add(new).saturating_sub(gone);
        let bytes = self.logical_bytes.saturating_add(new_bytes);
        self.logical_bytes = bytes.saturating_sub(gone_bytes);
    }

    fn take_in(&mut self, number: usize, applied: &Applied) -> Result<(), StorageError> {
        if applied.moved {
            return self.sectors[number].relocate(applied);
        }
        if applied.replica && self.sectors[number].has_record(applied)? {
            let sector = &mut self.sectors[number];
            // Whoever else has made it may give it up.
            if let Some(hold) = &applied.hold {
                sector.hold(applied.lsn, hold);
            }
            return sector.relocate(applied);
        }
        if applied.replica
            && !self.sectors[number].replaying
            && let StoredKey::Part { upload, .. } = applied.key.space()
            && self.find_upload(upload)?.is_none()
        {
            // That was over before this has landed.
            return Ok(());
        }
        match applied.kind {
            RecordKind::Extent => {
                let sector = &mut self.sectors[number];
                sector.add_extent(applied);
                if applied.hold.is_some() {
                    sector.drop_if_dead(applied.lsn);
                }
                Ok(())
            }
            RecordKind::Tombstone => {
                let tombstone = Slot::Tombstone { lsn: applied.lsn };
                self.sectors[number].renew(applied, tombstone)?;
                if let StoredKey::Upload { upload, .. } = applied.key.space() {
                    // They have no tombstones of their own. After a replay it is settled whether this one holds.
                    let is_replayed = self.sectors[number].replaying;
                    for (other, sector) in self.sectors.iter_mut().enumerate() {
                        if other == number || !is_replayed {
                            sector.drop_parts(upload)?;
                        }
                    }
                }
                Ok(())
            }
            RecordKind::Blob | RecordKind::Manifest => self.apply_version(number, applied),
            // Of another version it says nothing.
            RecordKind::Merge => self.sectors[number].apply_change(applied),
            RecordKind::Range | RecordKind::Splice => {
                let sector = &mut self.sectors[number];
                // Copies of the version may be newer than what is current.
                if applied.kind == RecordKind::Range && !sector.names(applied.lsn) {
                    sector.add_extent(applied);
                }
                if !sector.knows_older(applied)? {
                    // Manifests that follow may name the payload of what it changed.
                    let base = applied.change.map_or(0, |change| change.base);
                    return sector.share(&applied.key, base);
                }
                sector.apply_change(applied)
            }
        }
    }

    fn apply_version(&mut self, number: usize, applied: &Applied) -> Result<(), StorageError> {
        let (size, extents) = match &applied.manifest {
            None => (u64::from(applied.payload_length), None),
            Some((size, extents)) => (*size, Some(Arc::clone(extents))),
        };
        let sector = &mut self.sectors[number];
        // References first: the version that goes may be the one whose payload is shared.
        if let (Some(source), Some(extents)) = (&applied.source, &extents) {
            match source.space() {
                StoredKey::Upload { upload, .. } => sector.share_parts(upload)?,
                _ => {
                    for piece in extents.iter() {
                        sector.share(source, piece.lsn.get())?;
                    }
                }
            }
        }
        if let Some(extents) = &extents {
            sector.refer(applied.address, extents)?;
        }
        let entry = Entry {
            lsn: applied.lsn,
            address: applied.address,
            size,
            time: applied.time,
            meta_length: applied.meta_length,
            replicas: applied.replicas,
            changed: None,
            life: applied.life,
            extents,
        };
        sector.add_live(entry.address, applied.length());
        if applied.key.is_blob() {
            sector.blobs = sector.blobs.saturating_add(1);
            sector.logical_bytes = sector.logical_bytes.saturating_add(size);
        }
        sector.renew(applied, Slot::Live(entry))
    }

    /// Takes older versions than the one that a record makes, or all if it is a tombstone, out of the
    /// sectors that it is not in: those that have `landed` it have learned of it, and share no payload
    /// with what goes any more.
    ///
    /// # Errors
    /// `Corruption` of the index.
    pub fn outdate_others(
        &mut self,
        landed: SectorSet,
        applied: &Applied,
    ) -> Result<(), StorageError> {
        let is_of_none = matches!(applied.kind, RecordKind::Extent | RecordKind::Merge);
        if applied.moved || is_of_none || self.sectors.len() == landed.len() {
            return Ok(());
        }
        let before = self.lookup(applied.key.stored())?;
        for (number, sector) in self.sectors.iter_mut().enumerate() {
            if let Some(Slot::Live(entry)) = sector.get(applied.key.stored())?
                && entry.lsn < applied.lsn
                && !landed.contains(number)
            {
                sector.give_up(&applied.key, &entry)?;
            }
        }
        if applied.key.is_blob() {
            let after = self.lookup(applied.key.stored())?;
            self.recount(before.as_ref(), after.as_ref());
        }
        Ok(())
    }

    /// Takes what one sector has of a version out of it, which others have as well.
    ///
    /// # Errors
    /// `Corruption` of the index.
    pub fn evict(&mut self, number: usize, key: &BinaryKey) -> Result<(), StorageError> {
        match self.entry_in(number, key.stored())? {
            Some(entry) => self.sectors[number].give_up(key, &entry),
            None => Ok(()),
        }
    }

    /// Puts together what the sectors say, whose checkpoints are of different ages and whose logs ended at
    /// different moments: of each key the highest LSN holds, the others' entries go, and so do parts of
    /// uploads that are over. Counts what is left. Tombstones that are
    /// [`forgettable`](super::maintain::forgettable) lack nothing. What one of the sectors of `void` has with an
    /// LSN below that with it, and no other sector, does not hold.
    ///
    /// # Errors
    /// `Corruption` of the index.
    pub fn settle(
        &mut self,
        replicas: usize,
        forgettable: u64,
        void: &[(usize, u64)],
    ) -> Result<Lacking, StorageError> {
        let mut lacking = Lacking::default();
        if self.sectors.len() < 2 {
            return Ok(lacking);
        }
        let (mut blobs, mut logical_bytes) = (0_u64, 0_u64);
        let mut losers: Vec<(usize, BinaryKey, Slot)> = Vec::new();
        let mut uploads = HashSet::new();
        let mut heads = Heads::new(self, &[])?;
        while let Some(key) = heads.next()? {
            let refuted = heads.take_void(void);
            let newest = heads.found.iter().map(|(_, slot)| slot.lsn()).max();
            let holders = self.holders(&key, &heads.found, forgettable)?;
            let Ok(key) = BinaryKey::of_stored(&key) else {
                continue;
            };
            losers.extend(
                refuted
                    .into_iter()
                    .map(|(number, slot)| (number, key.clone(), slot)),
            );
            let is_over = match key.space() {
                StoredKey::Part { upload, .. } => !uploads.contains(&upload),
                _ => false,
            };
            if !is_over && !holders.is_empty() {
                lacking.is_short |= holders.len() < replicas;
                lacking.is_below_asked |= holders.len() < heads.asked(holders).into();
                lacking.is_unlike |= heads.is_unlike(holders);
            }
            let mut current = None;
            for (number, slot) in heads.found.drain(..) {
                let Slot::Live(entry) = slot else { continue };
                if is_over || Some(entry.lsn) != newest {
                    losers.push((number, key.clone(), Slot::Live(entry)));
                } else {
                    current = Some(entry.size);
                }
            }
            match (key.space(), current) {
                (StoredKey::Blob(_), Some(size)) => {
                    blobs += 1;
                    logical_bytes = logical_bytes.saturating_add(size);
                }
                (StoredKey::Upload { upload, .. }, Some(_)) => {
                    uploads.insert(upload);
                }
                _ => {}
            }
        }
        drop(heads);
        for (number, key, slot) in losers {
            let sector = &mut self.sectors[number];
            match slot {
                Slot::Live(entry) => sector.give_up(&key, &entry)?,
                Slot::Tombstone { .. } | Slot::Gone => sector.set(&key, Slot::Gone)?,
            }
        }
        (self.blobs, self.logical_bytes) = (blobs, logical_bytes);
        Ok(lacking)
    }

    /// The sectors that have the newest that is known of a key; none if that is of no use: a tombstone that is
    /// forgettable, or what is kept of an upload whose blob has another version by now.
    fn holders(
        &self,
        key: &[u8],
        found: &[(usize, Slot)],
        forgettable: u64,
    ) -> Result<SectorSet, StorageError> {
        let newest = found.iter().map(|(_, slot)| slot.lsn()).max();
        let mut holders = SectorSet::NONE;
        for (number, slot) in found.iter().filter(|(_, slot)| Some(slot.lsn()) == newest) {
            let is_of_use = match slot {
                Slot::Live(kept) if key.first() == Some(&SPACE_COMPLETED) => {
                    self.is_of_its_blob(key, kept)?
                }
                Slot::Live(_) => true,
                Slot::Tombstone { lsn } => *lsn > forgettable,
                Slot::Gone => false,
            };
            if is_of_use {
                holders = holders.and(SectorSet::one(*number));
            }
        }
        Ok(holders)
    }

    /// Calls `each` with the live entries whose stored keys are `from` or greater, in order, until
    /// it returns `false`; of several replicas with that of one sector.
    ///
    /// # Errors
    /// `Corruption` of the index.
    pub fn scan(
        &self,
        from: &[u8],
        mut each: impl FnMut(usize, &[u8], &Entry) -> Result<bool, StorageError>,
    ) -> Result<(), StorageError> {
        if let [one] = self.sectors.as_slice() {
            return one.scan(from, |key, entry| each(0, key, entry));
        }
        let mut heads = Heads::new(self, from)?;
        while let Some(key) = heads.next()? {
            let live = heads.found.drain(..).find_map(|(number, slot)| match slot {
                Slot::Live(entry) => Some((number, entry)),
                Slot::Tombstone { .. } | Slot::Gone => None,
            });
            if let Some((number, entry)) = live
                && !each(number, &key, &entry)?
            {
                return Ok(());
            }
            heads.recycle(key);
        }
        Ok(())
    }

    /// Calls `each` with the stored keys of `from` or greater that are live, or were deleted and are not
    /// [`forgettable`](super::maintain::forgettable), in order, the sectors that say so, how many its put asked
    /// for (0: as many as the store says), and whether it is made of other pieces in some of `among` than in
    /// others, until it returns `false`.
    ///
    /// # Errors
    /// `Corruption` of the index.
    pub fn scan_replicas(
        &self,
        from: &[u8],
        forgettable: u64,
        among: SectorSet,
        mut each: impl FnMut(&[u8], SectorSet, u8, bool) -> Result<bool, StorageError>,
    ) -> Result<(), StorageError> {
        let mut heads = Heads::new(self, from)?;
        while let Some(key) = heads.next()? {
            let holders = self.holders(&key, &heads.found, forgettable)?;
            let asked = heads.asked(holders);
            let is_unlike = heads.is_unlike(holders.within(among));
            if !holders.is_empty() && !each(&key, holders, asked, is_unlike)? {
                return Ok(());
            }
            heads.recycle(key);
        }
        Ok(())
    }

    /// Freezes a sector's delta for a checkpoint. `None` while one is under way.
    pub fn cut(&mut self, number: usize) -> Option<Cut> {
        let sector = &mut self.sectors[number];
        if sector.frozen.is_some() {
            return None;
        }
        let frozen = Arc::new(std::mem::take(&mut sector.delta));
        sector.frozen = Some(Arc::clone(&frozen));
        let mut extents: Vec<ExtentEntry> = sector
            .extents
            .iter()
            .map(|(&lsn, extent)| ExtentEntry {
                lsn: lsn.into(),
                address: extent.address.into(),
                payload_length: extent.payload_length.into(),
                head_length: extent.head_length.into(),
                references: extent.references.into(),
                reserved: 0.into(),
            })
            .collect();
        extents.sort_unstable_by_key(|extent| extent.lsn.get());
        Some(Cut {
            base: sector.base.clone(),
            frozen,
            extents,
            tail: sector.tail,
            segments: sector.segments.clone(),
            blobs: sector.blobs,
            logical_bytes: sector.logical_bytes,
        })
    }

    /// Ends a checkpoint: `base` has the frozen delta folded in, up to `lsn`.
    pub fn folded(&mut self, number: usize, base: LoadedImage, lsn: u64) {
        let sector = &mut self.sectors[number];
        sector.base_extents = base.extents().count();
        sector.base = Some(Arc::new(base));
        sector.frozen = None;
        sector.growth = growth(&sector.delta);
        // Unless nothing was written since the store was opened: then the skip is yet to come.
        if lsn > sector.opened_at {
            sector.stretch = 0;
        }
    }

    /// Ends a checkpoint that failed: the frozen delta goes back under the live one.
    pub fn unfreeze(&mut self, number: usize) {
        let sector = &mut self.sectors[number];
        let Some(frozen) = sector.frozen.take() else {
            return;
        };
        let newer = std::mem::replace(&mut sector.delta, Arc::unwrap_or_clone(frozen));
        for (key, change) in newer.into_entries() {
            sector
                .delta
                .say(&key, change, |older, newer| older.slot = newer.slot);
        }
        sector.growth = growth(&sector.delta);
    }
}

//! Replay: reads the log from a checkpoint's tail to its end, and tells a torn tail from damage.
//!
//! The log is one chain: each frame names the checksum of the one before, each segment where the
//! one before it ended. Where the chain breaks, one question decides: does anything that is valid
//! claim to know of durable writes beyond the break? Every frame and every segment header carries
//! the highest LSN known durable when it was written. If such a claim reaches past the last good
//! frame, acknowledged writes are missing: that is damage, reported and never cut. If none does,
//! the rest was never acknowledged: a torn tail, and the log goes on from the break \[F-50\].

use std::collections::{HashSet, VecDeque};
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use graviton_format::FormatError;
use graviton_format::checkpoint::CheckpointRoot;
use graviton_format::checksum::{CHUNK_SIZE, verify_chunk};
use graviton_format::frame::{FrameHeader, records_checksum};
use graviton_format::record::{Change, FLAG_MOVED, FLAG_REPLICA, Manifest, RecordKind, RecordView};
use graviton_format::segment::{KIND_CHECKPOINT, KIND_LOG, NONE, SegmentHeader};
use graviton_format::superblock::Superblock;

use super::append::Tail;
use super::sector::{READS, Sector, until_whole};
use super::segments::{Segments, State};
use crate::io::{AlignedBuf, IoOp, WriteSync};
use crate::port::{BinaryKey, StorageError};

/// Segment headers read at once.
const HEADER_READS: usize = 32;
/// Bytes read with each: damage clusters, and what took the header may have taken the first frames
/// behind it. The next then say that there was a log here.
const HEADER_READ: u64 = 16 << 10;
/// Bytes that a crash takes or leaves as a whole; a frame's header lies in the first of its block.
const UNIT: usize = 512;
/// Bytes read at once in search of frames behind a break.
const SCAN_WINDOW: u64 = 1 << 20;

/// One record of a replayed frame.
#[derive(Debug, Clone)]
pub struct LoggedRecord {
    /// What it is.
    pub kind: RecordKind,
    /// Copied by compaction: its LSN is older than the frame.
    pub moved: bool,
    /// Copied from another sector: so is that of this.
    pub replica: bool,
    /// Its key.
    pub key: BinaryKey,
    /// Its LSN.
    pub lsn: u64,
    /// When it was first written, in milliseconds since 1970.
    pub time: u64,
    /// Where it lies.
    pub address: u64,
    /// Its metadata.
    pub meta: Vec<u8>,
    /// Bytes of payload.
    pub payload_length: u32,
    /// The pieces that a manifest or a splice lists.
    pub manifest: Option<Manifest>,
    /// What it changes, if it makes a version out of another.
    pub change: Option<Change>,
    /// Whether all its payload was read back right.
    pub whole: bool,
}

/// One replayed frame.
#[derive(Debug)]
pub struct LoggedFrame {
    /// Its records, in order.
    pub records: Vec<LoggedRecord>,
    /// Bytes it takes.
    pub length: u64,
}

/// What was found wrong with a log.
#[derive(Debug, Clone)]
pub struct Damage {
    /// The error to report.
    pub error: StorageError,
    /// Whether records are missing, so that the index would be wrong without them. Payload that
    /// does not verify is not: the index is right, and reading the blob reports it.
    pub records_lost: bool,
}

/// Decodes the frame that fills `buffer` and lies at `address`: its records, and the first of its
/// chunks that is wrong.
///
/// # Errors
/// What is wrong with the frame or one of its records.
pub fn decode_frame(
    sector: &Sector,
    buffer: &[u8],
    header: &FrameHeader,
    address: u64,
) -> Result<(Vec<LoggedRecord>, Option<FormatError>), FormatError> {
    let bad = |what: String| FormatError::Field {
        structure: "Frame",
        field: "records",
        what,
        rule: "F-23",
    };
    let used = header.used.get() as usize;
    let frame = buffer.get(..used).ok_or(FormatError::Truncated {
        structure: "Frame",
        needed: used,
        found: buffer.len(),
    })?;
    // A record takes at least 33 bytes, which bounds what is allocated.
    let mut records = Vec::with_capacity((header.records.get() as usize).min(used / 33));
    let mut checksums = Vec::with_capacity(records.capacity());
    let mut wrong_chunk = None;
    let mut offset = size_of::<FrameHeader>();
    while offset < used {
        let record_address = address + offset as u64;
        let record = RecordView::decode(
            &frame[offset..],
            sector.identity(),
            &sector.geometry(),
            record_address,
        )?;
        let end = usize::try_from(record.length())
            .ok()
            .and_then(|length| offset.checked_add(length))
            .filter(|&end| end <= used);
        let end = end.ok_or_else(|| bad(format!("reach past the frame's end at {offset}")))?;
        checksums.push(record.header.checksum.get());
        let (record, wrong) = check_record(sector, &record, &frame[offset..end], record_address)?;
        records.push(record);
        wrong_chunk = wrong_chunk.or(wrong);
        offset = end;
    }
    if records.len() != header.records.get() as usize
        || records_checksum(checksums.into_iter()) != header.records_checksum.get()
    {
        return Err(bad(format!(
            "are {}, the header says {}, or are others than it says",
            records.len(),
            header.records
        )));
    }
    if records.iter().any(|record| {
        if record.moved || record.replica {
            record.lsn >= header.lsn.get()
        } else {
            record.lsn > header.lsn.get()
        }
    }) {
        return Err(bad("have LSNs above the frame's".to_owned()));
    }
    let ahead = |record: &LoggedRecord| {
        let pieces = record
            .manifest
            .iter()
            .flat_map(|manifest| &manifest.extents);
        // Pieces of a replica may have been merged since the version came about.
        let most = if record.replica {
            header.lsn.get()
        } else {
            record.lsn
        };
        pieces.into_iter().any(|piece| piece.lsn.get() > most)
    };
    if records.iter().any(ahead) {
        return Err(bad("name extents with LSNs above their own".to_owned()));
    }
    Ok((records, wrong_chunk))
}

/// What the record is that fills `bytes` and lies at `address`, and the first of its chunks that is wrong.
///
/// # Errors
/// What is wrong with it.
pub fn decode_record(
    sector: &Sector,
    bytes: &[u8],
    address: u64,
) -> Result<(LoggedRecord, Option<FormatError>), FormatError> {
    let record = RecordView::decode(bytes, sector.identity(), &sector.geometry(), address)?;
    let length = usize::try_from(record.length()).unwrap_or(usize::MAX);
    let bytes = bytes.get(..length).ok_or(FormatError::Truncated {
        structure: "Record",
        needed: length,
        found: bytes.len(),
    })?;
    check_record(sector, &record, bytes, address)
}

fn check_record(
    sector: &Sector,
    record: &RecordView<'_>,
    bytes: &[u8],
    address: u64,
) -> Result<(LoggedRecord, Option<FormatError>), FormatError> {
    let lists_pieces = record.kind.lists_pieces();
    let head = record.payload_offset();
    let (payload, wrong) = verify_payload(
        sector,
        &bytes[head..],
        address + head as u64,
        record.header.lsn.get(),
        lists_pieces,
    );
    let manifest = match &wrong {
        None if lists_pieces => Some(Manifest::decode(&payload)?),
        _ => None,
    };
    if let (Some(change), Some(manifest)) = (&record.change, &manifest) {
        change.check(manifest.size)?;
    }
    let decoded = LoggedRecord {
        kind: record.kind,
        moved: record.header.flags & FLAG_MOVED != 0,
        replica: record.header.flags & FLAG_REPLICA != 0,
        key: BinaryKey::of_stored(record.key)?,
        lsn: record.header.lsn.get(),
        time: record.header.time.get(),
        address,
        meta: record.meta.to_vec(),
        payload_length: record.header.payload_length.get(),
        manifest,
        change: record.change,
        whole: wrong.is_none(),
    };
    match wrong {
        // Without its list of pieces it says nothing.
        Some(wrong) if lists_pieces => Err(wrong),
        wrong => Ok((decoded, wrong)),
    }
}

/// What is wrong with a frame's padding \[F-23\].
fn padding(frame: &[u8], header: &FrameHeader) -> Option<FormatError> {
    let padding = &frame[header.used.get() as usize..header.length.get() as usize];
    let what = || FormatError::Field {
        structure: "Frame",
        field: "padding",
        what: "is not zero".to_owned(),
        rule: "F-23",
    };
    padding.iter().any(|&byte| byte != 0).then(what)
}

/// The first of the chunks of a payload at `address` that is wrong.
pub fn wrong_chunk(sector: &Sector, stored: &[u8], address: u64, lsn: u64) -> Option<FormatError> {
    verify_payload(sector, stored, address, lsn, false).1
}

fn verify_payload(
    sector: &Sector,
    stored: &[u8],
    address: u64,
    lsn: u64,
    gather: bool,
) -> (Vec<u8>, Option<FormatError>) {
    let mask = sector.identity().chunk_mask(lsn);
    let mut payload = Vec::with_capacity(if gather { stored.len() } else { 0 });
    for (chunk, at) in stored
        .chunks(CHUNK_SIZE)
        .zip((address..).step_by(CHUNK_SIZE))
    {
        match verify_chunk(chunk, mask, at) {
            Ok(length) if gather => payload.extend_from_slice(&chunk[..length]),
            Ok(_) => {}
            Err(error) => return (payload, Some(error)),
        }
    }
    (payload, None)
}

/// Bytes that are read of a frame at first: small ones come with their header.
const FIRST_READ: u64 = 64 << 10;
/// Bytes of the log that a replay reads at once.
const AHEAD: u64 = 512 << 10;

/// What is found where the log goes on.
enum Candidate {
    /// The next frame, or its header at least.
    Frame {
        header: FrameHeader,
        /// `None` if they are not whole.
        records: Option<Vec<LoggedRecord>>,
        /// What is not whole.
        wrong: Option<Wrong>,
    },
    /// No frame that continues the log.
    None(Wrong),
}

/// Why there is no frame, or not all of it.
enum Wrong {
    Damaged(FormatError),
    /// Nobody knows what was there.
    Unreadable(StorageError),
}

impl Wrong {
    fn is_unreadable(&self) -> bool {
        matches!(self, Self::Unreadable(_))
    }

    /// Whether nothing was written there since the log came by: it begins no frame, or an older
    /// one. What lies there otherwise is of an earlier life of the segment.
    fn is_nothing(&self) -> bool {
        matches!(
            self,
            Self::Damaged(FormatError::Magic { .. } | FormatError::Field { rule: "F-22", .. })
        )
    }
}

/// A segment of the chain.
#[derive(Debug, Clone, Copy)]
struct Link {
    segment: u32,
    header: SegmentHeader,
}

/// What a search for frames in a segment found.
#[derive(Debug)]
struct Searched {
    segment: u32,
    /// Where frames lie.
    addresses: Vec<u64>,
    /// The highest generation of them; 0 if there are none.
    generation: u64,
    /// Why not all of it could be searched.
    gap: Option<StorageError>,
}

/// Why not all could be searched that may tell of what was acknowledged.
#[derive(Debug, Default)]
struct Gaps {
    /// In the segment where the log ends.
    tail: Option<StorageError>,
    /// In others that may have come after it.
    chain: Option<StorageError>,
}

impl Gaps {
    fn any(self) -> Option<StorageError> {
        self.tail.or(self.chain)
    }
}

/// Reads a sector's log from a checkpoint to its end.
#[derive(Debug)]
pub struct Replay {
    sector: Arc<Sector>,
    /// Segments still to come, in order.
    chain: VecDeque<Link>,
    tail: Tail,
    /// The highest LSN that anything valid claims durable.
    claimed: u64,
    /// The LSN of the header of the segment in which the log goes on.
    header_lsn: u64,
    /// The highest LSN of any frame seen, whether it is part of the log or not.
    seen: u64,
    /// What was found where it was searched last for frames behind a break.
    searched: Option<Searched>,
    /// Where a frame lies of which not all arrived, though its header did.
    stump: Option<u64>,
    /// Segments that hold nothing, if their headers say so, which can't be read.
    blank: Vec<u32>,
    ahead: Ahead,
    damage: Vec<Damage>,
    bytes: u64,
    ended: bool,
}

/// Some of the log, read at once.
#[derive(Debug, Default)]
struct Ahead {
    /// Where in the sector it is.
    range: Range<u64>,
    bytes: AlignedBuf,
    /// Of this segment some could not be read: all of it is read frame by frame, and what can't be, once.
    given_up: Option<u32>,
}

impl Ahead {
    /// Reads on from the beginning of a frame that lies in this segment.
    async fn read(&mut self, sector: &Sector, segment: u32, from: u64, segment_end: u64) {
        let range = from..segment_end.min(from + AHEAD);
        match sector.read(range.clone()).await {
            Ok((bytes, 0)) => (self.range, self.bytes) = (range, bytes),
            Ok(_) | Err(_) => self.given_up = Some(segment),
        }
    }

    /// A copy of its end, and what comes behind that: of a frame that begins in it and is longer.
    ///
    /// # Errors
    /// `Io`; `Corruption` if it does not begin there.
    async fn part_and_rest(
        &self,
        sector: &Sector,
        range: Range<u64>,
    ) -> Result<(AlignedBuf, usize), StorageError> {
        let end = self.range.end;
        let not_there = || sector.corruption(range.start, "not read ahead");
        let part = self.get(&(range.start..end)).ok_or_else(not_there)?;
        let (rest, skip) = sector.read(end..range.end).await?;
        let mut whole = sector.buffer(range.end - range.start)?;
        let (first, second) = whole.split_at_mut(part.len());
        first.copy_from_slice(part);
        let rest = rest.get(skip..).and_then(|rest| rest.get(..second.len()));
        second.copy_from_slice(rest.ok_or_else(not_there)?);
        Ok((whole, 0))
    }

    /// A copy of a part of it; `None` if it is not there.
    fn part(&self, sector: &Sector, range: Range<u64>) -> Option<(AlignedBuf, usize)> {
        let bytes = self.get(&range)?;
        let mut part = sector.buffer(bytes.len() as u64).ok()?;
        part.copy_from_slice(bytes);
        Some((part, 0))
    }

    fn get(&self, range: &Range<u64>) -> Option<&[u8]> {
        let at = |address: u64| usize::try_from(address.checked_sub(self.range.start)?).ok();
        self.bytes.get(at(range.start)?..at(range.end)?)
    }
}

impl Replay {
    /// Prepares to replay from `root` (or from the very beginning). Reads all segment headers, and
    /// brings `segments`, which is as the checkpoint has it, up to what they say. `claimed` is the
    /// LSN of a newer checkpoint whose image could not be used, or 0; `named` are the segments that
    /// hold images, if the roots are right.
    ///
    /// # Errors
    /// `Io`.
    pub async fn start(
        sector: &Arc<Sector>,
        root: Option<&CheckpointRoot>,
        segments: &mut Segments,
        claimed: u64,
        named: &HashSet<u32>,
    ) -> Result<Self, StorageError> {
        let (generation, tail_segment) = root.map_or((0, NONE), |root| {
            (root.tail_generation.get(), root.tail_segment.get())
        });
        let headers = read_headers(sector, generation).await?;
        segments.raise_generation(generation);
        // Chosen for a frame that had not landed when the checkpoint was taken.
        segments.free_open_except(tail_segment);
        let mut replay = Self {
            sector: Arc::clone(sector),
            chain: VecDeque::new(),
            tail: Tail::default(),
            claimed,
            header_lsn: 0,
            seen: 0,
            searched: None,
            stump: None,
            blank: Vec::new(),
            ahead: Ahead::default(),
            damage: Vec::new(),
            bytes: 0,
            ended: false,
        };
        if let Some(root) = root {
            replay.tail = Tail {
                segment: (tail_segment != NONE)
                    .then_some((tail_segment, root.tail_generation.get())),
                offset: root.tail_offset.get().into(),
                checksum: root.tail_checksum.get(),
                lsn: root.lsn.get(),
                time: root.taken.get(),
            };
        }
        let mut chain = Vec::new();
        for (segment, found) in (0..).zip(headers) {
            match found {
                Found::Header(header) => {
                    segments.raise_generation(header.generation.get());
                    if header.generation.get() > generation && header.kind == KIND_LOG {
                        replay.claimed = replay.claimed.max(header.durable_lsn.get());
                        replay.seen = replay.seen.max(header.first_lsn.get());
                        chain.push(Link { segment, header });
                    }
                    if header.generation.get() > generation && header.kind == KIND_CHECKPOINT {
                        // A checkpoint that was being written; nothing names it.
                        segments.set(segment, State::Free, header.generation.get(), 0);
                    }
                }
                // It was not taken into use anew [F-55], and its header is not needed.
                Found::Damaged | Found::Unreadable(_)
                    if matches!(segments.get(segment).state, State::Sealed | State::Open) =>
                {
                    replay.note_bad_header(segment, found, false);
                }
                // A segment header that was lost, or an older one in its place: the frames behind
                // it still claim.
                Found::Lost | Found::Damaged | Found::Unreadable(_) => {
                    let block = u64::from(sector.geometry().block_size);
                    let newer = generation.saturating_add(1)..=u64::MAX;
                    replay.search(segment, block, newer).await?;
                    // For other generations it may be searched again.
                    let Some(searched) = replay.searched.take() else {
                        continue;
                    };
                    segments.raise_generation(searched.generation);
                    let is_lost = matches!(found, Found::Lost);
                    // A header that is whole came before its frames: they may be acknowledged, and
                    // so may be what nobody can read.
                    let records_lost =
                        searched.gap.is_some() || (searched.generation > 0 && !is_lost);
                    if let Some(error) = searched.gap {
                        replay.damage.push(Damage {
                            error,
                            records_lost,
                        });
                    } else if !is_lost {
                        let is_blank = !records_lost && !named.contains(&segment);
                        if is_blank && matches!(found, Found::Unreadable(_)) {
                            replay.blank.push(segment);
                        }
                        replay.note_bad_header(segment, found, records_lost);
                    }
                }
                Found::Nothing => {}
            }
        }
        chain.sort_by_key(|link| link.header.generation.get());
        replay.chain = chain.into();
        Ok(replay)
    }

    fn note_bad_header(&mut self, segment: u32, found: Found, records_lost: bool) {
        let base = self.sector.geometry().segment_offset(segment);
        let error = match found {
            Found::Unreadable(error) => error,
            _ => self
                .sector
                .corruption(base, format!("the header of segment {segment} is damaged")),
        };
        self.damage.push(Damage {
            error,
            records_lost,
        });
    }

    /// The next frame, or `None` at the log's end.
    ///
    /// # Errors
    /// `Io`. Damage is not an error here: see [`Replay::damage`].
    pub async fn next(
        &mut self,
        segments: &mut Segments,
    ) -> Result<Option<LoggedFrame>, StorageError> {
        while !self.ended {
            if let Some(frame) = self.next_in_segment().await? {
                self.bytes += frame.length;
                if let Some((segment, _)) = self.tail.segment {
                    segments.set_written(segment, self.tail.offset);
                }
                return Ok(Some(frame));
            }
            if !self.next_segment(segments).await? {
                self.ended = true;
            }
        }
        Ok(None)
    }

    /// Where the log ends.
    #[must_use]
    pub fn tail(&self) -> Tail {
        self.tail
    }

    /// The highest LSN seen or claimed by anything.
    #[must_use]
    pub fn highest_lsn(&self) -> u64 {
        self.claimed.max(self.tail.lsn).max(self.seen)
    }

    /// Bytes of frames that were replayed.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What was found wrong so far.
    #[must_use]
    pub fn damage(&self) -> &[Damage] {
        &self.damage
    }

    async fn next_in_segment(&mut self) -> Result<Option<LoggedFrame>, StorageError> {
        let Some((segment, generation)) = self.tail.segment else {
            return Ok(None);
        };
        let sector = Arc::clone(&self.sector);
        let geometry = sector.geometry();
        loop {
            if self.tail.room(geometry.segment_size) < u64::from(geometry.block_size) {
                return Ok(None);
            }
            let address = geometry.segment_offset(segment) + self.tail.offset;
            let candidate = self.read_candidate(address, generation).await?;
            let (header, records, wrong) = match candidate {
                Candidate::Frame {
                    header,
                    records,
                    wrong,
                } => (header, records, wrong),
                Candidate::None(reason) => {
                    if self
                        .resume_behind_break(segment, generation, reason)
                        .await?
                    {
                        continue;
                    }
                    return Ok(None);
                }
            };
            let length = u64::from(header.length.get());
            let tail = Tail {
                segment: self.tail.segment,
                offset: self.tail.offset + length,
                checksum: header.checksum.get(),
                lsn: header.lsn.get(),
                time: header.time.get().max(self.tail.time),
            };
            if let Some(wrong) = wrong {
                // The writer has cut the log here before, and went on elsewhere.
                if self.continuation().is_some() {
                    return Ok(None);
                }
                // A frame that is not whole was acknowledged only if something says so, or might.
                let gap = self.gather_claims().await?.any();
                let in_doubt = self.claimed < header.lsn.get() && !wrong.is_unreadable();
                if in_doubt && gap.is_none() {
                    self.stump = Some(address);
                    return Ok(None);
                }
                let damage = match (wrong, gap) {
                    // It may be torn, and be acknowledged: nobody knows.
                    (_, Some(error)) if in_doubt => Damage {
                        error,
                        records_lost: true,
                    },
                    (wrong, _) => Damage {
                        error: match wrong {
                            Wrong::Damaged(wrong) => sector.corruption(address, wrong),
                            Wrong::Unreadable(error) => error,
                        },
                        records_lost: records.is_none(),
                    },
                };
                self.damage.push(damage);
            }
            self.tail = tail;
            self.claimed = self.claimed.max(header.durable_lsn.get());
            return Ok(Some(LoggedFrame {
                records: records.unwrap_or_default(),
                length,
            }));
        }
    }

    /// What is at `address`, where the log goes on. What it is cut for is gone for good, so it is
    /// read again.
    async fn read_candidate(
        &mut self,
        address: u64,
        generation: u64,
    ) -> Result<Candidate, StorageError> {
        if let Some(candidate) = self.candidate_ahead(address, generation).await {
            return Ok(candidate);
        }
        let read = async || self.read_candidate_once(address, generation).await;
        until_whole(read, |candidate| {
            matches!(candidate, Ok(Candidate::Frame { wrong: None, .. }))
        })
        .await
    }

    /// A frame that is whole, by what was read ahead: frames may be small, and many. What is not whole there is read by
    /// itself.
    async fn candidate_ahead(&mut self, address: u64, generation: u64) -> Option<Candidate> {
        let geometry = self.sector.geometry();
        let (segment, _) = geometry.segment_of(address)?;
        let segment_end = geometry.segment_offset(segment) + geometry.segment_size;
        let first = address..segment_end.min(address + FIRST_READ);
        if self.ahead.get(&first).is_none() && self.ahead.given_up != Some(segment) {
            let ahead = &mut self.ahead;
            ahead
                .read(&self.sector, segment, address, segment_end)
                .await;
        }
        self.ahead.get(&first)?;
        let read = async |range: Range<u64>| match self.ahead.part(&self.sector, range.clone()) {
            Some(part) => Ok(part),
            None => self.ahead.part_and_rest(&self.sector, range).await,
        };
        let frame = read_frame_by(&self.sector, address, read).await.ok()?;
        let candidate = self.candidate(frame, Vec::new(), address, generation);
        matches!(candidate, Candidate::Frame { wrong: None, .. }).then_some(candidate)
    }

    async fn read_candidate_once(
        &self,
        address: u64,
        generation: u64,
    ) -> Result<Candidate, StorageError> {
        let mut gaps = Vec::new();
        let read = async |range| {
            let gap = |at, error| gaps.push((at, error));
            self.sector.read_around(range, gap).await
        };
        let frame = read_frame_by(&self.sector, address, read).await?;
        Ok(self.candidate(frame, gaps, address, generation))
    }

    /// What was read at `address`, where the log goes on, but for the blocks that are `gaps`.
    fn candidate(
        &self,
        frame: Result<(FrameHeader, AlignedBuf, usize), FormatError>,
        mut gaps: Vec<(u64, StorageError)>,
        address: u64,
        generation: u64,
    ) -> Candidate {
        let mut gap_in = |range: Range<u64>| {
            let gap = gaps.iter().position(|(at, _)| range.contains(at))?;
            Some(Wrong::Unreadable(gaps.swap_remove(gap).1))
        };
        let (header, buffer, skip) = match frame {
            Ok(found) => found,
            Err(reason) => {
                let unreadable = gap_in(address..address + 1);
                return Candidate::None(unreadable.unwrap_or(Wrong::Damaged(reason)));
            }
        };
        if !header.continues(generation, self.tail.checksum, self.tail.lsn) {
            return Candidate::None(Wrong::Damaged(FormatError::Field {
                structure: "FrameHeader",
                field: "previous",
                what: "does not continue the log".to_owned(),
                rule: "F-22",
            }));
        }
        let frame = &buffer[skip..];
        let (records, wrong) = match decode_frame(&self.sector, frame, &header, address) {
            Ok((records, wrong)) => (Some(records), wrong.or_else(|| padding(frame, &header))),
            Err(wrong) => (None, Some(wrong)),
        };
        let unreadable = gap_in(address..address + u64::from(header.length.get()));
        Candidate::Frame {
            header,
            records,
            wrong: unreadable.or(wrong.map(Wrong::Damaged)),
        }
    }

    /// Zeroes the header of the frame that a crash tore, and at which the log was cut \[F-57\]; and the
    /// headers that could not be read of segments that hold nothing, for one might come back and be
    /// taken for the log's. The sector must be synced before anything is written to the log.
    ///
    /// # Errors
    /// `Io`.
    pub async fn mend(&self) -> Result<(), StorageError> {
        let geometry = self.sector.geometry();
        let block = geometry.block_size;
        let tail = self.tail.segment;
        let cut = tail.map(|(segment, _)| geometry.segment_offset(segment) + self.tail.offset);
        if let Some(stump) = self.stump.filter(|&stump| cut == Some(stump)) {
            let (read, skip) = self.sector.read(stump..stump + u64::from(block)).await?;
            let mut buffer = self.sector.buffer(block.into())?;
            buffer.copy_from_slice(&read[skip..skip + block as usize]);
            // Nothing else changes: torn or not, this write takes the header or leaves it.
            buffer[..UNIT].fill(0);
            self.sector.write(buffer, stump, WriteSync::None).await?;
        }
        for &segment in &self.blank {
            let mut zeros = self.sector.buffer(block.into())?;
            zeros.fill(0);
            let start = geometry.segment_offset(segment);
            self.sector.write(zeros, start, WriteSync::None).await?;
        }
        Ok(())
    }

    /// The chain breaks at the tail. If acknowledged writes are or may be missing, notes the damage and
    /// goes on with the next good frame of the segment; returns whether there is one.
    async fn resume_behind_break(
        &mut self,
        segment: u32,
        generation: u64,
        reason: Wrong,
    ) -> Result<bool, StorageError> {
        let geometry = self.sector.geometry();
        let gap = self.gather_claims().await?.any();
        let in_doubt = reason.is_unreadable() || (gap.is_some() && !reason.is_nothing());
        if self.claimed <= self.reached() && !in_doubt {
            return Ok(false);
        }
        let at = geometry.segment_offset(segment) + self.tail.offset;
        if self.continuation().is_some() {
            return Ok(false);
        }
        let error = match (reason, gap) {
            (Wrong::Unreadable(error), _) => error,
            (Wrong::Damaged(_), Some(gap)) if in_doubt => gap,
            (Wrong::Damaged(reason), _) => self.sector.corruption(
                at,
                format!(
                    "acknowledged frames are missing after LSN {}: {reason}",
                    self.tail.lsn
                ),
            ),
        };
        self.damage.push(Damage {
            error,
            records_lost: true,
        });
        let candidates = self
            .searched
            .as_ref()
            .map(|searched| searched.addresses.clone())
            .unwrap_or_default();
        for address in candidates.into_iter().filter(|&address| address > at) {
            let read = async |range| self.sector.read_around(range, |_, _| {}).await;
            let Ok((header, ..)) = read_frame_by(&self.sector, address, read).await? else {
                continue;
            };
            if header.generation == generation && header.lsn.get() > self.tail.lsn {
                self.tail.offset = address - geometry.segment_offset(segment);
                self.tail.checksum = header.previous.get();
                return Ok(true);
            }
        }
        // The damage reaches to the segment's end: what follows in other segments continues from there.
        self.tail.offset = geometry.segment_size;
        Ok(false)
    }

    /// Goes on to the next segment of the chain. Returns `false` at the log's end.
    async fn next_segment(&mut self, segments: &mut Segments) -> Result<bool, StorageError> {
        // Segments before the one that continues the log were left by a torn tail that was cut.
        let continuation = self.continuation();
        let mut gap = None;
        if continuation.is_none() {
            gap = self.gather_claims().await?.chain;
        }
        if let Some(position) = continuation {
            self.chain.drain(..position);
        } else if self.claimed <= self.reached() && gap.is_none() {
            // Whatever is left was written, but never acknowledged, after frames that did not arrive.
            self.chain.clear();
        }
        let geometry = self.sector.geometry();
        let Some(Link {
            segment: next,
            header,
        }) = self.chain.pop_front()
        else {
            if self.claimed > self.reached() {
                let at = self.tail.segment.map_or(0, |(segment, _)| {
                    geometry.segment_offset(segment) + self.tail.offset
                });
                let what = format!(
                    "the log ends at LSN {}, but LSN {} was acknowledged",
                    self.tail.lsn, self.claimed
                );
                self.note_loss(self.sector.corruption(at, what));
            }
            return Ok(false);
        };
        if continuation.is_none() {
            let at = geometry.segment_offset(next);
            let what = format!(
                "segment {next} does not continue the log, which breaks after LSN {}",
                self.tail.lsn
            );
            self.note_loss(match gap {
                // It may be a leftover, and be acknowledged: nobody knows.
                Some(error) if self.claimed <= self.reached() => error,
                _ => self.sector.corruption(at, what),
            });
        }
        if let Some((segment, generation)) = self.tail.segment {
            segments.set(
                segment,
                State::Sealed,
                generation,
                self.tail.offset.min(geometry.segment_size),
            );
        }
        self.tail = Tail {
            segment: Some((next, header.generation.get())),
            offset: geometry.block_size.into(),
            checksum: header.checksum.get(),
            lsn: self.tail.lsn.max(header.previous_lsn.get()),
            time: self.tail.time,
        };
        self.header_lsn = header.first_lsn.get();
        segments.set(next, State::Open, header.generation.get(), self.tail.offset);
        Ok(true)
    }

    /// What is durable if the log ends here: its last frame, and the header of its last segment.
    fn reached(&self) -> u64 {
        self.tail.lsn.max(self.header_lsn)
    }

    /// Which segment of the chain continues the log at the tail.
    fn continuation(&self) -> Option<usize> {
        self.chain
            .iter()
            .position(|Link { header, .. }| match self.tail.segment {
                None => header.previous_segment == NONE,
                Some((segment, generation)) => {
                    header.previous_segment == segment
                        && header.previous_generation == generation
                        && u64::from(header.previous_end.get()) == self.tail.offset
                        && header.previous_lsn == self.tail.lsn
                        && header.previous_checksum == self.tail.checksum
                }
            })
    }

    /// Notes that acknowledged records are missing; once, since one break shows in several ways.
    fn note_loss(&mut self, error: StorageError) {
        if !self.damage.iter().any(|damage| damage.records_lost) {
            self.damage.push(Damage {
                error,
                records_lost: true,
            });
        }
    }

    /// The chain breaks at the tail: takes in what all that is left claims to be durable, as far as it
    /// can be read.
    async fn gather_claims(&mut self) -> Result<Gaps, StorageError> {
        let block = u64::from(self.sector.geometry().block_size);
        let mut gaps = Gaps::default();
        if self.continuation().is_none() {
            for Link {
                segment, header, ..
            } in self.chain.clone()
            {
                let generation = header.generation.get();
                self.search(segment, block, generation..=generation).await?;
                gaps.chain = gaps.chain.or_else(|| self.gap());
            }
        }
        if let Some((segment, generation)) = self.tail.segment {
            let offset = self.tail.offset;
            self.search(segment, offset, generation..=generation)
                .await?;
            gaps.tail = self.gap();
        }
        Ok(gaps)
    }

    /// Why not all could be searched in the last search.
    fn gap(&self) -> Option<StorageError> {
        self.searched.as_ref()?.gap.clone()
    }

    /// Looks for frames of `generations` from `offset` on in a segment, unless that was done just
    /// now, and takes in what they claim.
    async fn search(
        &mut self,
        segment: u32,
        offset: u64,
        generations: RangeInclusive<u64>,
    ) -> Result<(), StorageError> {
        if self
            .searched
            .as_ref()
            .is_some_and(|searched| searched.segment == segment)
        {
            return Ok(());
        }
        let geometry = self.sector.geometry();
        let mut addresses = Vec::new();
        let mut highest = 0;
        let mut gap = None;
        let mut start = offset;
        while start < geometry.segment_size {
            let end = geometry.segment_size.min(start + SCAN_WINDOW);
            let base = geometry.segment_offset(segment);
            let note = |_, error| {
                gap.get_or_insert(error);
            };
            let window = base + start..base + end;
            let (buffer, skip) = self.sector.read_around(window, note).await?;
            let blocks = buffer[skip..].chunks(geometry.block_size as usize);
            for (block, address) in
                blocks.zip((base + start..).step_by(geometry.block_size as usize))
            {
                if let Ok(header) =
                    FrameHeader::decode(block, self.sector.identity(), &geometry, address)
                    && generations.contains(&header.generation.get())
                {
                    highest = highest.max(header.generation.get());
                    self.claimed = self.claimed.max(header.durable_lsn.get());
                    self.seen = self.seen.max(header.lsn.get());
                    addresses.push(address);
                }
            }
            start = end;
        }
        self.searched = Some(Searched {
            segment,
            addresses,
            generation: highest,
            gap,
        });
        Ok(())
    }
}

/// Reads the frame at `address`: its header, and a buffer with where in it the frame begins.
///
/// # Errors
/// `Io`; the inner error says why there is no frame.
pub async fn read_frame(
    sector: &Sector,
    address: u64,
) -> Result<Result<(FrameHeader, AlignedBuf, usize), FormatError>, StorageError> {
    read_frame_by(sector, address, async |range| sector.read(range).await).await
}

async fn read_frame_by(
    sector: &Sector,
    address: u64,
    mut read: impl AsyncFnMut(Range<u64>) -> Result<(AlignedBuf, usize), StorageError>,
) -> Result<Result<(FrameHeader, AlignedBuf, usize), FormatError>, StorageError> {
    let geometry = &sector.geometry();
    let Some((segment, _)) = geometry.segment_of(address) else {
        return Err(sector.corruption(address, "no segment is here"));
    };
    let segment_end = geometry.segment_offset(segment) + geometry.segment_size;
    let first_end = segment_end.min(address + FIRST_READ);
    let (buffer, skip) = read(address..first_end).await?;
    let header = match FrameHeader::decode(&buffer[skip..], sector.identity(), geometry, address) {
        Ok(header) => header,
        Err(error) => return Ok(Err(error)),
    };
    let end = address + u64::from(header.length.get());
    if end <= first_end {
        return Ok(Ok((header, buffer, skip)));
    }
    let (buffer, skip) = read(address..end).await?;
    Ok(Ok((header, buffer, skip)))
}

enum Found {
    Header(SegmentHeader),
    /// No header, or an older one, but frames behind it that are newer.
    Lost,
    /// What no crash leaves, since a header is written whole: nobody knows what was here.
    Damaged,
    /// Nor here, for it can't be read.
    Unreadable(StorageError),
    Nothing,
}

impl Found {
    /// Whether the log may go on here.
    fn is_newer(&self, generation: u64) -> bool {
        matches!(self, Self::Header(header) if header.generation > generation && header.kind == KIND_LOG)
    }
}

/// What a segment begins with.
fn found(sector: &Sector, segment: u32, start: &[u8]) -> Found {
    let geometry = &sector.geometry();
    let block = geometry.block_size as usize;
    let (first, rest) = start.split_at(block);
    let base = geometry.segment_offset(segment);
    let header = SegmentHeader::decode(first, sector.identity(), geometry, segment);
    let generation = match &header {
        Ok(header) => header.generation.get(),
        // Never used, or so it seems.
        Err(FormatError::Magic { found: 0, .. }) => 0,
        // Nor was it before the sector grew.
        Err(_) if Superblock::is_outgrown(first, base, sector.identity()) => 0,
        Err(_) => return Found::Damaged,
    };
    let newer = rest
        .chunks(block)
        .zip((base..).step_by(block).skip(1))
        .filter_map(|(bytes, at)| FrameHeader::decode(bytes, sector.identity(), geometry, at).ok())
        .any(|frame| frame.generation > generation);
    match header {
        _ if newer => Found::Lost,
        Ok(header) => Found::Header(header),
        Err(_) => Found::Nothing,
    }
}

/// What is wrong with the header of a segment that holds nothing: it is an old one, or there is none. Whoever
/// opens the store looks at all.
///
/// # Errors
/// `Corruption` if it is damaged; `Io`.
pub async fn check_old_header(sector: &Sector, segment: u32) -> Result<(), StorageError> {
    let geometry = sector.geometry();
    let base = geometry.segment_offset(segment);
    let decode =
        |block: &[u8]| match SegmentHeader::decode(block, sector.identity(), &geometry, segment) {
            Ok(_) | Err(FormatError::Magic { found: 0, .. }) => Ok(()),
            // Nor was it in use before the sector grew [F-67].
            Err(_) if Superblock::is_outgrown(block, base, sector.identity()) => Ok(()),
            Err(error) => Err(error),
        };
    let block = base..base + u64::from(geometry.block_size);
    let read = sector.read_whole(block, decode).await?;
    read.map_err(|error| sector.corruption(base, format!("segment {segment}: {error}")))
}

/// What all segments begin with. Those that say nothing newer than `generation` are read again: the
/// log would end before a segment whose header was read wrongly.
async fn read_headers(sector: &Sector, generation: u64) -> Result<Vec<Found>, StorageError> {
    let geometry = &sector.geometry();
    let length = HEADER_READ.min(geometry.segment_size);
    let mut headers = Vec::with_capacity(geometry.segment_count as usize);
    let all = 0..geometry.segment_count;
    read_starts(sector, all, length, |_, found| headers.push(found)).await?;

    let (mut old, mut dubious) = (Vec::new(), Vec::new());
    for (segment, found) in (0..).zip(&headers) {
        match found {
            found if found.is_newer(generation) => {}
            Found::Lost | Found::Damaged | Found::Unreadable(_) => dubious.push(segment),
            Found::Header(_) | Found::Nothing => old.push(segment),
        }
    }
    let block = geometry.block_size.into();
    read_starts(sector, old.into_iter(), block, |segment, found| {
        if found.is_newer(generation) || matches!(found, Found::Unreadable(_)) {
            dubious.push(segment);
        }
    })
    .await?;
    for segment in dubious {
        let address = geometry.segment_offset(segment);
        let header = &mut headers[segment as usize];
        for _ in 1..READS {
            let mut gap = None;
            let note = |at, error| {
                if at == address {
                    gap = Some(error);
                }
            };
            let (start, skip) = sector.read_around(address..address + length, note).await?;
            let again = match gap {
                Some(error) => Found::Unreadable(error),
                None => found(sector, segment, &start[skip..]),
            };
            // A newer header or frame that was seen once is there.
            if again.is_newer(generation) {
                *header = again;
                break;
            }
            if !matches!(header, Found::Lost) {
                *header = again;
            }
        }
    }
    Ok(headers)
}

/// Reads the first `length` bytes of `segments`, many at once, and tells what they are.
async fn read_starts(
    sector: &Sector,
    segments: impl Iterator<Item = u32>,
    length: u64,
    mut each: impl FnMut(u32, Found),
) -> Result<(), StorageError> {
    let geometry = &sector.geometry();
    let mut segments = segments.fuse();
    let mut reads: VecDeque<(u32, IoOp)> = VecDeque::new();
    loop {
        while reads.len() < HEADER_READS
            && let Some(segment) = segments.next()
        {
            let address = geometry.segment_offset(segment);
            let read = sector.disk().read(sector.buffer(length)?, address);
            reads.push_back((segment, read));
        }
        let Some((segment, read)) = reads.pop_front() else {
            return Ok(());
        };
        let (buffer, outcome) = read.await;
        let address = geometry.segment_offset(segment);
        let found = match outcome {
            Ok(()) => found(sector, segment, &buffer),
            Err(source) => Found::Unreadable(sector.io_error("read", address, source)),
        };
        each(segment, found);
    }
}

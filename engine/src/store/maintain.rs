//! Maintenance: checkpoints, compaction, reclaiming, zeroing ahead, durable notes.
//!
//! All of it runs in steps ([`Inner::step`]), one at a time, on the store's own thread or on
//! whichever thread asks. How space comes back: compaction copies what lives out of a segment, or
//! everything in it has died; the segment is then *reclaimed*, but the two checkpoints that are
//! kept may still name it, so it is *free* only when both list it as reclaimed. Nothing in the log
//! is therefore ever needed by a recovery after its segment was written anew.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use graviton_format::checkpoint::{self, CheckpointRoot, seal_image};
use graviton_format::checksum::mask_chunks;
use graviton_format::frame::FrameHeader;
use graviton_format::image::Image;
use graviton_format::record::record_length;
use graviton_format::segment::NONE;

use super::commit::{Move, Work};
use super::index::Cut;
use super::info::{CheckpointInfo, CompactReport};
use super::inner::Inner;
use super::options::{Access, MIB};
use super::record::system_time;
use super::repair::Repairs;
use super::set::SectorSet;
use crate::io::WriteSync;
use crate::log::image_io::{Root, image_segments, write_image, write_root};
use crate::log::replay::{LoggedRecord, decode_frame, read_frame};
use crate::log::{Encoded, Purpose, Sector, Segment, Segments, State};
use crate::port::StorageError;
use crate::port::op::wait_for;
use crate::sync::MutexGuard;
use crate::sync::channel::{Receiver, RecvTimeoutError};

/// Segments that are kept zeroed ahead of use.
const ZEROED_AHEAD: usize = 2;
/// Bytes zeroed by one device write.
const ZERO_WRITE: u64 = 1 << 20;
/// Bytes of records that compaction reads before it hands them to the log.
pub const MOVE_BATCH: u64 = 1 << 20;
/// Bytes of records in one of its requests: small, so that they fill segments to the end.
const MOVE_MAX: u64 = 64 << 10;
/// Entries changed since a checkpoint, after which the next is due whatever the log's length.
const DELTA_MAX: usize = 500_000;
/// How long the log is idle before a note is written of what is durable.
const NOTE_AFTER: Duration = Duration::from_millis(100);

/// What maintenance remembers from one step to the next.
#[derive(Debug, Default)]
pub struct Efforts {
    /// The store is closed: there is no more maintenance.
    ended: bool,
    /// By sector: while puts wait for room, the newest generation when they began to. What is
    /// younger is compact already; so an effort to make room comes to an end.
    horizons: Vec<Option<u64>>,
    repairs: Repairs,
}

impl Efforts {
    /// What is remembered of repair.
    pub fn repairs(&mut self) -> &mut Repairs {
        &mut self.repairs
    }

    /// What is being repaired, and what was to be, may have changed.
    pub fn forget_repairs(&mut self) {
        self.repairs = Repairs::default();
    }
}

/// The checkpoints of a sector that are kept on disk.
#[derive(Debug)]
pub struct Kept {
    newest: Option<Root>,
    older: Option<Root>,
    /// The sequence number of the next.
    next_sequence: u64,
    /// They are of no sector.
    is_of_none: bool,
}

impl Kept {
    /// No checkpoint yet.
    pub fn none() -> Self {
        Self {
            newest: None,
            older: None,
            next_sequence: 1,
            is_of_none: false,
        }
    }

    /// Those of a number that no sector has.
    pub fn of_none() -> Self {
        Self {
            is_of_none: true,
            ..Self::none()
        }
    }

    /// What recovery found: the checkpoint in use, another whose root is whole, the highest
    /// sequence number seen.
    pub fn recovered(newest: Option<Root>, older: Option<Root>, highest: u64) -> Self {
        let mut next_sequence = highest + 1;
        // The slot of the checkpoint in use is not the one to write next.
        if newest
            .as_ref()
            .is_some_and(|root| root.root.sequence.get() % 2 == next_sequence % 2)
        {
            next_sequence += 1;
        }
        Self {
            newest,
            older,
            next_sequence,
            is_of_none: false,
        }
    }

    /// Their roots.
    pub fn roots(&self) -> Vec<Root> {
        self.newest.iter().chain(&self.older).cloned().collect()
    }

    /// The segments of the images that are kept, and whether an image fills it.
    pub fn image_segments(&self) -> Vec<(u32, bool)> {
        let roots = self.newest.iter().chain(&self.older);
        roots.flat_map(|root| filled(&root.segments)).collect()
    }

    /// Frees what the kept checkpoints do not need.
    pub fn release(&self, segments: &mut Segments, sector: &Sector) -> u32 {
        let oldest = self
            .older
            .as_ref()
            .or(self.newest.as_ref())
            .map_or(0, |root| root.root.sequence.get());
        let images: Vec<&[u32]> = self
            .newest
            .iter()
            .chain(&self.older)
            .map(|root| root.segments.as_slice())
            .collect();
        segments.release(oldest, &images, sector)
    }

    /// The newest checkpoint.
    pub fn info(&self) -> Option<CheckpointInfo> {
        self.newest.as_ref().map(|root| CheckpointInfo {
            lsn: root.root.lsn.get(),
            taken: system_time(root.root.taken.get()),
            bytes: root.root.image_length.get(),
            entries: root.root.blobs.get(),
        })
    }

    /// Bytes of the images.
    pub fn image_bytes(&self) -> u64 {
        let roots = self.newest.iter().chain(&self.older);
        roots.map(|root| root.root.image_length.get()).sum()
    }

    /// Whether a recovery from the newest comes by where this generation was written.
    pub fn replays(&self, generation: u64) -> bool {
        let newest = self.newest.as_ref();
        newest.is_none_or(|root| root.root.tail_generation.get() <= generation)
    }

    /// Tombstones up to this LSN may be missing from the newest.
    fn forgotten_lsn(&self) -> u64 {
        let newest = self.newest.as_ref();
        newest.map_or(0, |root| root.root.forgotten_lsn.get())
    }

    /// The oldest knowledge of the store's other sectors that a recovery could start from.
    pub fn store_lsn(&self) -> u64 {
        self.newest
            .iter()
            .chain(&self.older)
            .map(|root| root.root.store_lsn.get())
            .min()
            .unwrap_or(0)
    }
}

/// The segments of an image, and whether it fills them: all but the last.
fn filled(segments: &[u32]) -> impl Iterator<Item = (u32, bool)> {
    let last = segments.len().saturating_sub(1);
    let segments = segments.iter().enumerate();
    segments.map(move |(position, &segment)| (segment, position < last))
}

/// Tombstones up to this LSN keep nothing from coming back: whatever the sectors may be recovered from knows of
/// the deletes.
pub fn forgettable(kept: &[Kept]) -> u64 {
    let sectors = kept.iter().filter(|kept| !kept.is_of_none);
    let known = sectors.map(Kept::store_lsn).min();
    // A sector that is away knew then.
    let before = kept.iter().map(Kept::forgotten_lsn).max();
    known.max(before).unwrap_or(0)
}

impl Inner {
    /// A frame landed, and may want a note: sees whether maintenance has become due.
    pub fn note_progress(&self, number: usize, wants_note: bool) {
        if self.options.background && (wants_note || self.is_due(number)) {
            self.kick_maintenance();
        }
    }

    /// Log bytes after which a checkpoint is due: bounded so that several fit the sector.
    fn checkpoint_interval(&self, number: usize) -> u64 {
        let sector_size = self.sectors[number].geometry().sector_size();
        self.options
            .checkpoint_interval
            .unwrap_or(256 * MIB)
            .min(sector_size / 8)
            .max(64 * 1024)
    }

    fn is_due(&self, number: usize) -> bool {
        let index = self.index.read();
        let sector = &index.sectors[number];
        let written = sector.replay_bytes;
        written >= self.checkpoint_interval(number)
            || sector.delta_len() >= DELTA_MAX
            || self.is_tight(&sector.segments)
            || sector.segments.wants_zeroing(ZEROED_AHEAD)
    }

    /// Free segments below which compaction works ahead.
    fn margin(&self, segments: &Segments) -> u32 {
        (segments.count() / 16).max(4)
    }

    fn is_tight(&self, segments: &Segments) -> bool {
        segments.free() <= segments.reserve(Purpose::Put) + self.margin(segments)
    }

    /// One unit of background work; `false` when there was nothing to do.
    ///
    /// # Errors
    /// What the disk reports, or damage that was met.
    pub fn step(self: &Arc<Self>) -> Result<bool, StorageError> {
        self.step_with(&mut self.maintenance.lock())
    }

    /// As [`Inner::step`]; when there was nothing to do, what the store's own thread does once the
    /// log has been idle for a while.
    ///
    /// # Errors
    /// As [`Inner::step`].
    pub fn step_or_note(self: &Arc<Self>) -> Result<bool, StorageError> {
        let mut efforts = self.begin_maintenance()?;
        Ok(self.step_with(&mut efforts)? || self.note_durable()?)
    }

    /// As [`Inner::step`], unless a thread (this one, perhaps) is at it: `None`.
    ///
    /// # Errors
    /// As [`Inner::step`].
    pub fn try_step(self: &Arc<Self>) -> Result<Option<bool>, StorageError> {
        match self.maintenance.try_lock() {
            Some(mut efforts) => self.step_with(&mut efforts).map(Some),
            None => Ok(None),
        }
    }

    fn step_with(self: &Arc<Self>, efforts: &mut Efforts) -> Result<bool, StorageError> {
        if self.options.access != Access::ReadWrite || efforts.ended {
            return Ok(false);
        }
        efforts.horizons.resize(self.sectors.len(), None);
        let (given_up, mut order): (Vec<_>, Vec<_>) =
            (0..self.sectors.len()).partition(|&number| self.sectors[number].poisoned().is_some());
        // Nothing waits for room in a sector that was given up; elsewhere who does comes first.
        if !given_up.is_empty() {
            self.pump();
        }
        {
            let commits = self.commits.lock();
            order.sort_by_key(|&number| !commits.is_stalled(number));
        }
        let mut failed = None;
        for number in order {
            match self.step_sector(number, &mut efforts.horizons[number]) {
                Ok(false) => {}
                Ok(true) => return Ok(true),
                // What ails one sector keeps nobody from tidying up the others.
                Err(error) => {
                    self.fail_stalled(number, &error);
                    failed = failed.or(Some(error));
                }
            }
        }
        match (self.step_mend_and_repair(&mut efforts.repairs)?, failed) {
            (false, Some(error)) => Err(error),
            (stepped, _) => Ok(stepped),
        }
    }

    /// Ends maintenance for good, once what is under way is over.
    pub fn end_maintenance(&self) {
        let mut efforts = self.maintenance.lock();
        efforts.ended = true;
        // It is part of the store, and would keep it.
        let repairs = std::mem::take(&mut efforts.repairs);
        drop(efforts);
        drop(repairs);
    }

    fn step_sector(
        self: &Arc<Self>,
        number: usize,
        horizon: &mut Option<u64>,
    ) -> Result<bool, StorageError> {
        if self.reclaim(number) > 0 {
            self.pump();
            return Ok(true);
        }
        let stalled = self.commits.lock().is_stalled(number);
        if !stalled {
            *horizon = None;
        }
        let (tight, due) = {
            let index = self.index.read();
            let sector = &index.sectors[number];
            let due = sector.replay_bytes >= self.checkpoint_interval(number)
                || sector.delta_len() >= DELTA_MAX;
            (self.is_tight(&sector.segments), due)
        };
        if due && self.try_checkpoint(number)? {
            return Ok(true);
        }
        if stalled {
            if self.make_room(number, true, horizon)?
                || self.wait_for_readers(number)
                || self.is_growing()
            {
                return Ok(true);
            }
            *horizon = None;
            let error = StorageError::NoSpace {
                needed: 0,
                available: self.available(&self.index.read(), number),
            };
            return Ok(self.fail_stalled(number, &error));
        }
        if tight && self.make_room(number, false, horizon)? {
            return Ok(true);
        }
        self.zero_one(number)
    }

    /// Does one thing that brings free segments nearer; `false` if there is none. What costs much
    /// and gains little is only done while puts wait.
    fn make_room(
        self: &Arc<Self>,
        number: usize,
        stalled: bool,
        horizon: &mut Option<u64>,
    ) -> Result<bool, StorageError> {
        let (batch, segment_size, generation, changed) = {
            let index = self.index.read();
            let sector = &index.sectors[number];
            (
                self.margin(&sector.segments),
                self.sectors[number].geometry().segment_size,
                sector.segments.generation(),
                sector.delta_len() > 0 || sector.segments.has_large_images(),
            )
        };
        // A checkpoint costs the same for one segment as for many.
        if self.reclaims_waiting(number) >= batch {
            return self.free_reclaimed(number);
        }
        let worthwhile = self.victim(number, u64::MAX, segment_size / 5 * 4, false);
        if self.try_compact(number, worthwhile)? {
            return Ok(true);
        }
        if !stalled {
            return Ok(false);
        }
        if self.reclaims_waiting(number) > 0 {
            return self.free_reclaimed(number);
        }
        let horizon = *horizon.get_or_insert(generation);
        for pinned in [false, true] {
            let any = self.victim(number, horizon, segment_size / 32 * 31, pinned);
            if self.try_compact(number, any)? {
                return Ok(true);
            }
        }
        // The reserve for the next checkpoint is an upper estimate; after one, it is nearly exact.
        Ok(changed && self.try_checkpoint(number)?)
    }

    /// Makes reclaimed segments free: they are when both kept checkpoints list them.
    fn free_reclaimed(self: &Arc<Self>, number: usize) -> Result<bool, StorageError> {
        let free = || self.index.read().sectors[number].segments.free();
        for _ in 0..2 {
            let before = free();
            if !self.try_checkpoint(number)? {
                return Ok(false);
            }
            self.reclaim(number);
            if free() > before {
                break;
            }
        }
        self.pump();
        Ok(true)
    }

    /// Takes a checkpoint if there is room for it.
    pub fn try_checkpoint(self: &Arc<Self>, number: usize) -> Result<bool, StorageError> {
        match self.checkpoint(number) {
            Ok(_) => Ok(true),
            Err(StorageError::NoSpace { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Compacts a segment if there is one, and room for what lives in it.
    fn try_compact(
        self: &Arc<Self>,
        number: usize,
        victim: Option<u32>,
    ) -> Result<bool, StorageError> {
        let Some(victim) = victim else {
            return Ok(false);
        };
        match self.compact_segment(number, victim) {
            Ok(_) => Ok(true),
            Err(StorageError::NoSpace { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits for readers of reclaimed segments, if that is what keeps them from being free.
    /// Returns whether one became free of readers.
    fn wait_for_readers(&self, number: usize) -> bool {
        let pinned = || {
            let index = self.index.read();
            let segments = index.sectors[number].segments.iter();
            segments
                .filter(|(segment, entry)| {
                    entry.state == State::Reclaimed && self.sectors[number].is_pinned(*segment)
                })
                .count()
        };
        let before = pinned();
        if before == 0 {
            return false;
        }
        let mut free = false;
        self.sectors[number].wait_for_unpin(self.options.reader_patience, || {
            free = pinned() < before;
            free || self.is_growing() || self.check_open().is_err()
        });
        free
    }

    /// Reclaimed segments that wait for a checkpoint only, not for readers.
    fn reclaims_waiting(&self, number: usize) -> u32 {
        let index = self.index.read();
        let sector = &self.sectors[number];
        let waiting = index.sectors[number]
            .segments
            .iter()
            .filter(|(segment, entry)| {
                entry.state == State::Reclaimed && !sector.is_pinned(*segment)
            })
            .count();
        u32::try_from(waiting).unwrap_or(u32::MAX)
    }

    /// Turns dead segments into reclaimed ones, and reclaimed ones into free ones where that can
    /// be. Returns how many became free.
    pub fn reclaim(&self, number: usize) -> u32 {
        let kept = self.kept.lock();
        let mut index = self.index.write();
        let sector = &mut index.sectors[number];
        sector.update_reserve();
        sector.segments.reclaim_dead(kept[number].next_sequence);
        kept[number].release(&mut sector.segments, &self.sectors[number])
    }

    /// The segment to compact next: the one with the least that lives, if that is at most
    /// `live_max` bytes and there is room to move it.
    fn victim(&self, number: usize, horizon: u64, live_max: u64, pinned: bool) -> Option<u32> {
        let geometry = self.sectors[number].geometry();
        let tail = self.commits.lock().room(number, geometry.segment_size);
        let index = self.index.read();
        let segments = &index.sectors[number].segments;
        let sector = (!pinned).then(|| self.sectors[number].as_ref());
        let (victim, segment) = segments.victim(horizon, sector)?;
        // What readers hold does not come back soon: deletes keep their share meanwhile.
        let kept_back = segments.reserve(Purpose::Compaction) + u32::from(pinned);
        let free = segments.free().saturating_sub(kept_back);
        let room = u64::from(free) * geometry.image_bytes_per_segment() + tail;
        // Somewhat more than what lives: frames are padded, and segments not filled to the end.
        // Puts leave a sixteenth of all room, so that a victim there is fits one segment.
        let needed = segment.live + segment.live / 16;
        (segment.live <= live_max && needed <= room).then_some(victim)
    }

    /// Copies what lives in a segment to the log's end.
    ///
    /// # Errors
    /// `NoSpace` when there is not enough room (some of it may have been copied), and what else
    /// keeps the log from taking it. What can't be read is noted, and stays where it is.
    fn compact_segment(
        self: &Arc<Self>,
        number: usize,
        segment: u32,
    ) -> Result<CompactReport, StorageError> {
        let sector = Arc::clone(&self.sectors[number]);
        let geometry = sector.geometry();
        let entry = *self.index.read().sectors[number].segments.get(segment);
        let base = geometry.segment_offset(segment);
        let mut offset = u64::from(geometry.block_size);
        let mut batch: Vec<Move> = Vec::new();
        let mut batched = 0;
        let mut damage = None;
        while offset < entry.written {
            let address = base + offset;
            let frame = wait_for(read_frame(&sector, address)).and_then(|frame| {
                let what = "a frame of another generation";
                match frame {
                    Ok(frame) if frame.0.generation == entry.generation => Ok(frame),
                    Ok(_) => Err(sector.corruption(address, what)),
                    Err(error) => Err(sector.corruption(address, error)),
                }
            });
            let (header, buffer, skip) = match frame {
                Ok(frame) => frame,
                // Where the next frame begins is not known then.
                Err(error) => {
                    damage = Some(error);
                    break;
                }
            };
            match self.live_records(number, &buffer[skip..], &header, address) {
                Ok((moves, wrong)) => {
                    damage = damage.or(wrong);
                    batched += moves.iter().map(Move::length).sum::<u64>();
                    batch.extend(moves);
                }
                Err(error) => damage = Some(error),
            }
            if batched >= MOVE_BATCH {
                batched = 0;
                self.move_all(number, std::mem::take(&mut batch))?;
            }
            offset += u64::from(header.length.get());
        }
        self.move_all(number, batch)?;
        let mut index = self.index.write();
        let segments = &mut index.sectors[number].segments;
        let live = segments.get(segment).live;
        if live > 0 && segments.get(segment).generation == entry.generation {
            // Bytes of live records are left that could not be read: keep them for repair.
            segments.set_damaged(segment);
            drop(index);
            let damage = damage.unwrap_or_else(|| {
                sector.corruption(base, format!("{live} bytes of live records were not found"))
            });
            self.note_failure("compaction", &damage);
            self.want_mending(&sector.place(base));
            return Ok(CompactReport {
                damaged: 1,
                segments: 0,
                moved: entry.live.saturating_sub(live),
                freed: 0,
            });
        }
        drop(index);
        self.reclaim(number);
        Ok(CompactReport {
            damaged: 0,
            segments: 1,
            moved: entry.live,
            freed: geometry.segment_size.saturating_sub(entry.live),
        })
    }

    /// The live records of a frame as the log takes them, and the first that is damaged.
    fn live_records(
        &self,
        number: usize,
        frame: &[u8],
        header: &FrameHeader,
        address: u64,
    ) -> Result<(Vec<Move>, Option<StorageError>), StorageError> {
        let sector = &self.sectors[number];
        let (records, _) = decode_frame(sector, frame, header, address)
            .map_err(|error| sector.corruption(address, error))?;
        let mut moves = Vec::new();
        let mut damage = None;
        for record in records {
            let key = record.key.stored();
            let part = &self.index.read().sectors[number];
            if !part.is_live(record.kind, key, record.lsn, record.address)? {
                continue;
            }
            if record.whole {
                moves.push(to_move(sector, frame, address, record));
            } else {
                damage = Some(StorageError::Corruption {
                    place: sector.place(record.address),
                    key: Some(record.key),
                    what: "payload does not verify; left where it is".to_owned(),
                });
            }
        }
        Ok((moves, damage))
    }

    /// Hands records to the log, in small requests, and waits for them.
    ///
    /// # Errors
    /// `NoSpace`, and what else keeps the log from taking them.
    pub fn move_all(self: &Arc<Self>, number: usize, moves: Vec<Move>) -> Result<(), StorageError> {
        let most = MOVE_MAX.min(self.sectors[number].geometry().segment_size / 64);
        let mut works = Vec::new();
        let mut request = Vec::new();
        let mut length = 0;
        for moved in moves {
            if length + moved.length() > most && !request.is_empty() {
                works.push(Work::Moves(std::mem::take(&mut request)));
                length = 0;
            }
            length += moved.length();
            request.push(moved);
        }
        if !request.is_empty() {
            works.push(Work::Moves(request));
        }
        // All are waited for, whatever becomes of the first.
        let move_all = |work| self.submit(SectorSet::one(number), work, false);
        let tickets: Vec<_> = works.into_iter().map(move_all).collect();
        let outcomes: Vec<_> = tickets.into_iter().map(wait_for).collect();
        outcomes
            .into_iter()
            .try_for_each(|outcome| outcome.map(|_| ()))
    }

    /// Compacts everything that has garbage worth the while, and frees it.
    ///
    /// # Errors
    /// What the disk reports.
    pub fn compact_all(self: &Arc<Self>) -> Result<CompactReport, StorageError> {
        let _one_at_a_time = self.begin_maintenance()?;
        let mut report = CompactReport::default();
        for number in self.taking_part().iter() {
            self.compact_sector(number, &mut report)?;
        }
        Ok(report)
    }

    fn compact_sector(
        self: &Arc<Self>,
        number: usize,
        report: &mut CompactReport,
    ) -> Result<(), StorageError> {
        let segment_size = self.sectors[number].geometry().segment_size;
        let free = || self.index.read().sectors[number].segments.free();
        let free_before = free();
        // What is written from here on is compact already.
        let horizon = self.index.read().sectors[number].segments.generation();
        loop {
            self.check_open()?;
            let victim = {
                let index = self.index.read();
                let segments = &index.sectors[number].segments;
                let victim = segments.victim(horizon, Some(&self.sectors[number]));
                victim
                    .filter(|(_, segment)| segment.live < segment_size / 8 * 7)
                    .map(|(victim, _)| victim)
            };
            let Some(victim) = victim else { break };
            match self.compact_segment(number, victim) {
                Ok(one) => {
                    report.segments += one.segments;
                    report.damaged += one.damaged;
                    report.moved += one.moved;
                }
                // The reserve is used up: make it free again first.
                Err(StorageError::NoSpace { .. }) => {
                    let before = free();
                    self.free_reclaimed(number)?;
                    if free() <= before {
                        break;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        self.reclaim(number);
        // Both kept checkpoints must list what was reclaimed; then one that lists it as free, for
        // whoever opens the store next.
        let checkpoints = if self.reclaims_waiting(number) > 0 {
            3
        } else {
            0
        };
        for _ in 0..checkpoints {
            if self.try_checkpoint(number)? {
                self.reclaim(number);
            }
        }
        report.freed += u64::from(free().saturating_sub(free_before)) * segment_size;
        self.pump();
        Ok(())
    }

    /// Takes a checkpoint of every sector that takes part.
    ///
    /// # Errors
    /// What the disk reports.
    pub fn checkpoint_all(self: &Arc<Self>) -> Result<Vec<CheckpointInfo>, StorageError> {
        let _one_at_a_time = self.begin_maintenance()?;
        let members = self.taking_part();
        members
            .iter()
            .map(|number| self.checkpoint(number))
            .collect()
    }

    /// Waits for its turn to do maintenance on request.
    pub fn begin_maintenance(&self) -> Result<MutexGuard<'_, Efforts>, StorageError> {
        let efforts = self.maintenance.lock();
        if efforts.ended {
            return Err(StorageError::Closed);
        }
        Ok(efforts)
    }

    /// Takes a checkpoint of a sector; writers go on meanwhile. Maintenance must be held.
    fn checkpoint(self: &Arc<Self>, number: usize) -> Result<CheckpointInfo, StorageError> {
        self.sectors[number].check_writable()?;
        self.checkpoint_of_new(number)
    }

    /// As [`Inner::checkpoint`], of a sector that may not take records yet.
    pub fn checkpoint_of_new(
        self: &Arc<Self>,
        number: usize,
    ) -> Result<CheckpointInfo, StorageError> {
        let sector = Arc::clone(&self.sectors[number]);
        self.forget_completed(number)?;
        let (sequence, forgettable) = {
            let kept = self.kept.lock();
            (kept[number].next_sequence, forgettable(&kept))
        };
        let (cut, store_lsn, written) = {
            let commits = self.commits.lock();
            let mut index = self.index.write();
            let store_lsn = commits.settled_lsn();
            drop(commits);
            let part = &mut index.sectors[number];
            let written = part.replay_bytes;
            match index.cut(number) {
                Some(cut) => (cut, store_lsn, written),
                None => return Err(sector.corruption(0, "a checkpoint is under way already")),
            }
        };
        let outcome =
            self.write_checkpoint(&sector, number, &cut, sequence, store_lsn, forgettable);
        match outcome {
            Ok((root, image)) => {
                let mut kept = self.kept.lock();
                let mut index = self.index.write();
                let mine = &mut kept[number];
                mine.older = mine.newest.replace(root);
                mine.next_sequence = sequence + 1;
                index.sectors[number].replay_bytes -= written;
                let info = mine.info();
                index.folded(number, image, cut.tail.lsn);
                let part = &mut index.sectors[number];
                part.update_reserve();
                mine.release(&mut part.segments, &sector);
                drop(index);
                drop(kept);
                // The room that the oldest image took may be all that puts wait for.
                self.pump();
                info.ok_or_else(|| sector.corruption(0, "no checkpoint"))
            }
            Err(error) => {
                self.index.write().unfreeze(number);
                // If the sector was given up, so is what waits in it.
                self.pump();
                Err(error)
            }
        }
    }

    /// What does not hold of sectors that came back is in none of the checkpoints that are kept of them from here on,
    /// nor behind these. Before that nothing is brought to them, which could not be told from it. One of which there
    /// can't be a checkpoint takes nothing.
    ///
    /// # Errors
    /// `File`.
    pub fn end_returns(self: &Arc<Self>) -> Result<(), StorageError> {
        let returned = self.catalog.lock().returned();
        let _one_at_a_time = self.begin_maintenance()?;
        for number in returned.iter() {
            // Two are kept.
            let outcome = self
                .checkpoint(number)
                .and_then(|_| self.checkpoint(number));
            if let Err(error) = outcome {
                self.sectors[number].poison(&error);
                continue;
            }
            self.write_catalog(|catalog| {
                if let Some(named) = catalog.sector_mut(number) {
                    named.void_below = None;
                }
            })?;
        }
        Ok(())
    }

    fn write_checkpoint(
        &self,
        sector: &Arc<Sector>,
        number: usize,
        cut: &Cut,
        sequence: u64,
        store_lsn: u64,
        forgettable: u64,
    ) -> Result<(Root, Image<Bytes>), StorageError> {
        // With one sector no other can bring anything back.
        let forget = match self.sectors.len() {
            1 => u64::MAX,
            _ => forgettable,
        };
        let mut stored = cut.build(sector, forget)?;
        let length = stored.len();
        let pages_checksum = seal_image(&mut stored, sequence);
        let wanted = image_segments(&sector.geometry(), length);
        if wanted as usize > checkpoint::SEGMENTS_MAX {
            return Err(StorageError::NoSpace {
                needed: length as u64,
                available: 0,
            });
        }
        let mut taken = Vec::new();
        {
            let mut index = self.index.write();
            let segments = &mut index.sectors[number].segments;
            while taken.len() < wanted as usize {
                let Some(segment) = segments.take(Purpose::Checkpoint, State::Checkpoint) else {
                    taken
                        .iter()
                        .for_each(|&(segment, _)| segments.give_back(segment));
                    return Err(StorageError::NoSpace {
                        needed: length as u64,
                        available: 0,
                    });
                };
                segments.set_busy(segment.0, true);
                taken.push(segment);
            }
            segments.set_checkpoint_taken(wanted);
        }
        let numbers: Vec<u32> = taken.iter().map(|(segment, _)| *segment).collect();
        let (tail_segment, tail_generation) = cut.tail.segment.unwrap_or((NONE, 0));
        let root = CheckpointRoot {
            magic: checkpoint::MAGIC.into(),
            checksum: 0.into(),
            sequence: sequence.into(),
            lsn: cut.tail.lsn.into(),
            store_lsn: store_lsn.into(),
            taken: self.now().into(),
            tail_segment: tail_segment.into(),
            tail_offset: u32::try_from(cut.tail.offset).unwrap_or(u32::MAX).into(),
            tail_generation: tail_generation.into(),
            tail_checksum: cut.tail.checksum.into(),
            segments: 0.into(),
            image_length: (length as u64).into(),
            pages_checksum: pages_checksum.into(),
            blobs: cut.blobs.into(),
            logical_bytes: cut.logical_bytes.into(),
            forgotten_lsn: forgettable.into(),
            reserved: [0; 24],
        };
        let written = wait_for(async {
            write_image(sector, &stored, sequence, &taken).await?;
            // The image reflects frames that only its own sync made durable, unless one failed.
            sector.check_well()?;
            write_root(sector, &root, &numbers).await
        });
        {
            let mut index = self.index.write();
            let segments = &mut index.sectors[number].segments;
            segments.set_checkpoint_taken(0);
            for (segment, is_filled) in filled(&numbers) {
                segments.set_busy(segment, false);
                segments.set_image(segment, sector.geometry().segment_size, is_filled);
                if written.is_err() {
                    segments.give_back(segment);
                }
            }
        }
        written?;
        let image = Image::open(Bytes::from(stored).slice(..length))
            .map_err(|error| sector.corruption(0, error))?;
        image.prepare();
        Ok((
            Root {
                root,
                segments: numbers,
            },
            image,
        ))
    }

    /// Zeroes one segment ahead of use, if that is due.
    fn zero_one(&self, number: usize) -> Result<bool, StorageError> {
        let Some(segment) = self.index.write().sectors[number]
            .segments
            .take_for_zeroing(ZEROED_AHEAD)
        else {
            return Ok(false);
        };
        self.zero_segment(number, segment).map(|()| true)
    }

    /// Zeroes all free segments that were never written, and takes checkpoints, which remember it. Returns
    /// how many bytes were written.
    ///
    /// # Errors
    /// `Closed`; what the disk of one sector reports, after those of the others were zeroed.
    pub fn zero_free_segments(self: &Arc<Self>) -> Result<u64, StorageError> {
        let mut zeroed = Ok(0);
        for number in self.taking_part().iter() {
            match self.zero_free_segments_of(number) {
                Ok(bytes) => zeroed = zeroed.map(|before| before + bytes),
                Err(StorageError::Closed) => return Err(StorageError::Closed),
                Err(error) => zeroed = zeroed.and(Err(error)),
            }
        }
        zeroed
    }

    fn zero_free_segments_of(self: &Arc<Self>, number: usize) -> Result<u64, StorageError> {
        let (mut bytes, mut next) = (0, 0);
        // Those of the last checkpoint's table. What a kept image lies in is free after as many checkpoints as are
        // kept, and one more tells that it was zeroed.
        let mut told = 0;
        let mut checkpoints = 0..3;
        loop {
            // Nobody closes the store, or takes the sector away, before a segment is over.
            let mut efforts = self.begin_maintenance()?;
            self.sectors[number].check_writable()?;
            // What others may wait for comes first. What keeps it from going on is told to them.
            if let Ok(true) = self.step_with(&mut efforts) {
                continue;
            }
            let (taken, is_held) = {
                let segments = &mut self.index.write().sectors[number].segments;
                let is_held = |(_, segment): (u32, &Segment)| {
                    segment.state == State::Checkpoint && !segment.zeroed
                };
                (segments.take_unzeroed(next), segments.iter().any(is_held))
            };
            if let Some(segment) = taken {
                self.zero_segment(number, segment)?;
                next = segment + 1;
                bytes += self.sectors[number].geometry().segment_size;
                continue;
            }
            if (bytes == told && !is_held) || checkpoints.next().is_none() {
                return Ok(bytes);
            }
            self.checkpoint(number)?;
            (told, next) = (bytes, 0);
        }
    }

    /// Writes zeros over a segment that was taken for that.
    ///
    /// # Errors
    /// `Io`.
    pub fn zero_segment(&self, number: usize, segment: u32) -> Result<(), StorageError> {
        let sector = &self.sectors[number];
        let outcome = wait_for(async {
            let geometry = sector.geometry();
            let base = geometry.segment_offset(segment);
            let mut offset = 0;
            while offset < geometry.segment_size {
                let length = ZERO_WRITE.min(geometry.segment_size - offset);
                let mut zeros = sector.buffer(length)?;
                zeros.fill(0);
                sector.write(zeros, base + offset, WriteSync::None).await?;
                offset += length;
            }
            sector.sync().await
        });
        self.index.write().sectors[number]
            .segments
            .zeroing_done(segment, outcome.is_ok());
        outcome
    }

    /// Writes a note of what is durable behind the last frame of each sector that lacks one, so
    /// that damage to that frame is not taken for a torn tail. `false` if none does.
    ///
    /// # Errors
    /// What the disk of one sector reports; the others have their notes.
    pub fn note_durable(self: &Arc<Self>) -> Result<bool, StorageError> {
        let mut any = Ok(false);
        for number in 0..self.sectors.len() {
            let wanted = {
                let commits = self.commits.lock();
                commits.lacks_note(number) && commits.is_idle(number)
            };
            if wanted && self.sectors[number].poisoned().is_none() {
                match wait_for(self.submit(SectorSet::one(number), Work::Note, true)) {
                    Ok(_) => any = any.map(|_| true),
                    // A log that is full to the last block goes without.
                    Err(StorageError::NoSpace { .. }) => {}
                    Err(error) => any = any.and(Err(error)),
                }
            }
        }
        any
    }

    /// Whether a note will have to be written once the log is idle.
    fn lacks_note(&self) -> bool {
        let commits = self.commits.lock();
        let lacking =
            |number: usize| self.sectors[number].poisoned().is_none() && commits.lacks_note(number);
        (0..self.sectors.len()).any(lacking)
    }

    /// The maintenance thread.
    pub fn run_maintenance(self: Arc<Self>, kicks: &Receiver<()>) {
        loop {
            while self.check_open().is_ok() {
                match self.step() {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        self.note_failure("maintenance", &error);
                        break;
                    }
                }
            }
            let woken = if self.lacks_note() {
                kicks.recv_timeout(NOTE_AFTER)
            } else {
                kicks.recv().map_err(|_| RecvTimeoutError::Disconnected)
            };
            match woken {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => {
                    // If it fails, whoever writes next learns of it.
                    let _ = self.note_durable();
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.check_open().is_err() {
                return;
            }
        }
    }
}

/// A live record as compaction hands it to the log: its chunks' checksums unmasked.
pub fn to_move(sector: &Sector, frame: &[u8], frame_address: u64, record: LoggedRecord) -> Move {
    let (key_length, meta_length) = (record.key.stored().len(), record.meta.len());
    let head = record_length(key_length, meta_length, 0);
    let length = record_length(key_length, meta_length, record.payload_length.into());
    let position = |offset: u64| usize::try_from(offset).expect("it is in memory");
    let start = position(record.address - frame_address);
    let mut bytes = frame[start..start + position(length)].to_vec();
    mask_chunks(
        &mut bytes[position(head)..],
        sector.identity().chunk_mask(record.lsn),
        record.address + head,
    );
    Move {
        kind: record.kind,
        key: record.key,
        lsn: record.lsn,
        time: record.time,
        from: record.address,
        replica: record.replica,
        meta_length: u32::try_from(meta_length).unwrap_or(u32::MAX),
        payload_length: record.payload_length,
        record: Encoded::of_stored(bytes),
    }
}

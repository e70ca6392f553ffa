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
use crossbeam::channel::{Receiver, RecvTimeoutError};
use graviton_format::checkpoint::{self, CheckpointRoot, seal_image};
use graviton_format::checksum::mask_chunks;
use graviton_format::image::Image;
use graviton_format::record::record_length;
use graviton_format::segment::NONE;

use super::commit::{Move, Work};
use super::index::Cut;
use super::info::{CheckpointInfo, CompactReport};
use super::inner::Inner;
use super::options::{Access, MIB};
use super::record::system_time;
use super::ticket::Ticket;
use crate::io::WriteSync;
use crate::log::image_io::{Root, image_segments, write_image, write_root};
use crate::log::replay::{LoggedRecord, decode_frame, read_frame};
use crate::log::{Purpose, Sector, Segments, State};
use crate::port::StorageError;
use crate::port::op::wait_for;

/// Segments that are kept zeroed ahead of use.
const ZEROED_AHEAD: usize = 2;
/// Bytes zeroed by one device write.
const ZERO_WRITE: u64 = 1 << 20;
/// Bytes of records that compaction hands to the log at once.
const MOVE_BATCH: u64 = 1 << 20;
/// Entries changed since a checkpoint, after which the next is due whatever the log's length.
const DELTA_MAX: usize = 500_000;
/// How long the log is idle before a note is written of what is durable.
const NOTE_AFTER: Duration = Duration::from_millis(100);

/// The checkpoints of a sector that are kept on disk.
#[derive(Debug)]
pub struct Kept {
    newest: Option<Root>,
    older: Option<Root>,
    /// The sequence number of the next.
    next_sequence: u64,
}

impl Kept {
    /// No checkpoint yet.
    pub fn none() -> Self {
        Self {
            newest: None,
            older: None,
            next_sequence: 1,
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
        }
    }

    /// The segments of the images that are kept.
    pub fn image_segments(&self) -> Vec<u32> {
        self.newest
            .iter()
            .chain(&self.older)
            .flat_map(|root| root.segments.iter().copied())
            .collect()
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

    /// The oldest knowledge of the store's other sectors that a recovery could start from.
    fn store_lsn(&self) -> u64 {
        self.newest
            .iter()
            .chain(&self.older)
            .map(|root| root.root.store_lsn.get())
            .min()
            .unwrap_or(0)
    }
}

impl Inner {
    /// A frame landed: sees whether maintenance has become due.
    pub fn note_progress(&self, number: usize) {
        if self.options.background && self.is_due(number) {
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
        (segments.count() / 64).max(2)
    }

    fn is_tight(&self, segments: &Segments) -> bool {
        segments.free() <= segments.reserve(Purpose::Put) + self.margin(segments)
    }

    /// One unit of background work; `false` when there was nothing to do.
    ///
    /// # Errors
    /// What the disk reports, or damage that was met.
    pub fn step(self: &Arc<Self>) -> Result<bool, StorageError> {
        if self.options.access == Access::ReadOnly {
            return Ok(false);
        }
        let _one_at_a_time = self.maintenance.lock();
        for number in 0..self.sectors.len() {
            if self.sectors[number].poisoned().is_none() && self.step_sector(number)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn step_sector(self: &Arc<Self>, number: usize) -> Result<bool, StorageError> {
        let stalled = self.commits.lock().is_stalled(number);
        if self.reclaim(number) > 0 {
            self.pump(number);
            return Ok(true);
        }
        let (tight, due) = {
            let index = self.index.read();
            let sector = &index.sectors[number];
            let due = sector.replay_bytes >= self.checkpoint_interval(number)
                || sector.delta_len() >= DELTA_MAX;
            (self.is_tight(&sector.segments), due)
        };
        if due {
            self.checkpoint(number)?;
            return Ok(true);
        }
        if tight || stalled {
            if let Some(victim) = self.victim(number)
                && self.compact_segment(number, victim)?.segments > 0
            {
                return Ok(true);
            }
            // Reclaimed segments become free when both kept checkpoints list them as such: one
            // checkpoint a step, until they are.
            if self.reclaims_waiting(number) {
                self.checkpoint(number)?;
                self.reclaim(number);
                self.pump(number);
                return Ok(true);
            }
            if stalled {
                self.fail_stalled(number);
                return Ok(true);
            }
        }
        self.zero_one(number)
    }

    /// Whether reclaimed segments wait for a checkpoint only (not for readers).
    fn reclaims_waiting(&self, number: usize) -> bool {
        let index = self.index.read();
        let sector = &self.sectors[number];
        index.sectors[number]
            .segments
            .iter()
            .any(|(segment, entry)| entry.state == State::Reclaimed && !sector.is_pinned(segment))
    }

    /// Turns dead segments into reclaimed ones, and reclaimed ones into free ones where that can
    /// be. Returns how many became free.
    fn reclaim(&self, number: usize) -> u32 {
        let kept = self.kept.lock();
        let mut index = self.index.write();
        let sector = &mut index.sectors[number];
        let reserve = image_segments(self.sectors[number].geometry(), sector.image_estimate());
        sector.segments.set_checkpoint_reserve(reserve);
        sector.segments.reclaim_dead(kept[number].next_sequence);
        kept[number].release(&mut sector.segments, &self.sectors[number])
    }

    /// The segment to compact next, if there is one worth it and room for what lives in it.
    fn victim(&self, number: usize) -> Option<u32> {
        let geometry = self.sectors[number].geometry();
        let rest = self.commits.lock().room(number, geometry.segment_size);
        let index = self.index.read();
        let segments = &index.sectors[number].segments;
        let victim = segments.victim(geometry, &self.sectors[number])?;
        // A sixteenth of each segment may be lost where the next record does not fit.
        let lost = geometry.segment_size / 16;
        let free = u64::from(
            segments
                .free()
                .saturating_sub(segments.reserve(Purpose::Compaction)),
        );
        let room = free * (geometry.image_bytes_per_segment() - lost) + rest.saturating_sub(lost);
        (segments.get(victim).live <= room).then_some(victim)
    }

    /// Copies what lives in a segment to the log's end. If the room for that runs out, what was
    /// copied stays copied, and the report says that no segment was emptied.
    fn compact_segment(
        self: &Arc<Self>,
        number: usize,
        segment: u32,
    ) -> Result<CompactReport, StorageError> {
        match self.empty_segment(number, segment) {
            Err(StorageError::NoSpace { .. }) => Ok(CompactReport::default()),
            outcome => outcome,
        }
    }

    fn empty_segment(
        self: &Arc<Self>,
        number: usize,
        segment: u32,
    ) -> Result<CompactReport, StorageError> {
        let sector = Arc::clone(&self.sectors[number]);
        let geometry = *sector.geometry();
        let (generation, written, before) = {
            let index = self.index.read();
            let entry = index.sectors[number].segments.get(segment);
            (entry.generation, entry.written, entry.live)
        };
        let base = geometry.segment_offset(segment);
        let mut offset = u64::from(geometry.block_size);
        let mut batch: Vec<Move> = Vec::new();
        let mut batched = 0;
        let mut damage = None;
        while offset < written && damage.is_none() {
            let address = base + offset;
            let (header, buffer, skip) = match wait_for(read_frame(&sector, address))? {
                Ok(frame) if frame.0.generation == generation => frame,
                Ok(_) => {
                    damage = Some(sector.corruption(address, "a frame of another generation"));
                    break;
                }
                Err(error) => {
                    damage = Some(sector.corruption(address, error));
                    break;
                }
            };
            let frame = &buffer[skip..];
            match decode_frame(&sector, frame, &header, address) {
                Ok((records, _)) => {
                    for record in records {
                        if !self.index.read().sectors[number].is_live(
                            record.kind,
                            record.key.as_bytes(),
                            record.lsn,
                            record.address,
                        )? {
                            continue;
                        }
                        if !record.whole {
                            damage = Some(StorageError::Corruption {
                                place: sector.place(record.address),
                                key: Some(record.key),
                                what: "payload does not verify; left where it is".to_owned(),
                            });
                            continue;
                        }
                        let moved = to_move(&sector, frame, address, record);
                        batched += moved.record.len() as u64;
                        batch.push(moved);
                        if batched >= MOVE_BATCH {
                            batched = 0;
                            wait_for(self.submit_moves(number, std::mem::take(&mut batch)))?;
                        }
                    }
                }
                Err(error) => damage = Some(sector.corruption(address, error)),
            }
            offset += u64::from(header.length.get());
        }
        if !batch.is_empty() {
            wait_for(self.submit_moves(number, batch))?;
        }
        let mut index = self.index.write();
        let segments = &mut index.sectors[number].segments;
        let live = segments.get(segment).live;
        if live > 0 && segments.get(segment).generation == generation {
            // Bytes of live records are left that could not be read: keep them for repair.
            segments.set_damaged(segment);
            drop(index);
            let damage = damage.unwrap_or_else(|| {
                sector.corruption(base, format!("{live} bytes of live records were not found"))
            });
            self.note(damage.to_string());
            return Ok(CompactReport {
                segments: 0,
                moved: before - live,
                freed: 0,
            });
        }
        drop(index);
        self.reclaim(number);
        Ok(CompactReport {
            segments: 1,
            moved: before,
            freed: geometry.segment_size.saturating_sub(before),
        })
    }

    fn submit_moves(
        self: &Arc<Self>,
        number: usize,
        moves: Vec<Move>,
    ) -> impl Future<Output = Result<(), StorageError>> + use<> {
        let ticket: Ticket<_> = self.submit(number, Work::Moves(moves), false);
        async move { ticket.await.map(|_| ()) }
    }

    /// Compacts everything that has garbage worth the while, and frees it.
    ///
    /// # Errors
    /// What the disk reports.
    pub fn compact_all(self: &Arc<Self>) -> Result<CompactReport, StorageError> {
        let _one_at_a_time = self.maintenance.lock();
        let mut report = CompactReport::default();
        for number in 0..self.sectors.len() {
            self.sectors[number].check_writable()?;
            self.compact_sector(number, &mut report)?;
            self.pump(number);
        }
        Ok(report)
    }

    fn compact_sector(
        self: &Arc<Self>,
        number: usize,
        report: &mut CompactReport,
    ) -> Result<(), StorageError> {
        let table = || self.index.read().sectors[number].segments.clone();
        let before = table();
        loop {
            self.reclaim(number);
            // What is written from here on is compact already.
            let old = |victim: &u32| table().get(*victim).generation <= before.generation();
            if let Some(victim) = self.victim(number).filter(old) {
                let one = self.compact_segment(number, victim)?;
                report.segments += one.segments;
                report.moved += one.moved;
                if one.segments > 0 || table().get(victim).damaged {
                    continue;
                }
            }
            if !self.reclaims_waiting(number) {
                break;
            }
            self.checkpoint(number)?;
        }
        let freed = table().free().saturating_sub(before.free());
        report.freed += u64::from(freed) * self.sectors[number].geometry().segment_size;
        Ok(())
    }

    /// Takes a checkpoint of every sector.
    ///
    /// # Errors
    /// What the disk reports.
    pub fn checkpoint_all(self: &Arc<Self>) -> Result<Vec<CheckpointInfo>, StorageError> {
        let _one_at_a_time = self.maintenance.lock();
        (0..self.sectors.len())
            .map(|number| self.checkpoint(number))
            .collect()
    }

    /// Takes a checkpoint of a sector; writers go on meanwhile. Held maintenance keeps it alone.
    fn checkpoint(&self, number: usize) -> Result<CheckpointInfo, StorageError> {
        let sector = Arc::clone(&self.sectors[number]);
        sector.check_writable()?;
        let (sequence, forget) = {
            let kept = self.kept.lock();
            // With one sector no other can bring anything back.
            let forget = if kept.len() == 1 {
                u64::MAX
            } else {
                kept.iter().map(Kept::store_lsn).min().unwrap_or(0)
            };
            (kept[number].next_sequence, forget)
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
        let outcome = self.write_checkpoint(&sector, number, &cut, sequence, store_lsn, forget);
        match outcome {
            Ok((root, image)) => {
                let mut kept = self.kept.lock();
                let mut index = self.index.write();
                let mine = &mut kept[number];
                mine.older = mine.newest.replace(root);
                mine.next_sequence = sequence + 1;
                index.sectors[number].replay_bytes -= written;
                let info = mine.info();
                index.folded(number, image);
                mine.release(&mut index.sectors[number].segments, &sector);
                drop(index);
                info.ok_or_else(|| sector.corruption(0, "no checkpoint"))
            }
            Err(error) => {
                self.index.write().unfreeze(number);
                if matches!(
                    error,
                    StorageError::Io {
                        operation: "write" | "sync",
                        ..
                    }
                ) {
                    sector.poison(&error);
                }
                Err(error)
            }
        }
    }

    fn write_checkpoint(
        &self,
        sector: &Arc<Sector>,
        number: usize,
        cut: &Cut,
        sequence: u64,
        store_lsn: u64,
        forget: u64,
    ) -> Result<(Root, Image<Bytes>), StorageError> {
        let mut stored = cut.build(sector, forget)?;
        let length = stored.len();
        let pages_checksum = seal_image(&mut stored, sequence);
        let wanted = image_segments(sector.geometry(), length);
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
            reserved: [0; 32],
        };
        let written = wait_for(async {
            write_image(sector, &stored, sequence, &taken).await?;
            write_root(sector, &root, &numbers).await
        });
        {
            let mut index = self.index.write();
            let segments = &mut index.sectors[number].segments;
            for &segment in &numbers {
                segments.set_busy(segment, false);
                segments.set_image(segment, sector.geometry().segment_size);
                if written.is_err() {
                    segments.give_back(segment);
                }
            }
        }
        written?;
        let image = Image::open(Bytes::from(stored).slice(..length))
            .map_err(|error| sector.corruption(0, error))?;
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
        if let Err(error) = &outcome {
            sector.poison(error);
        }
        outcome.map(|()| true)
    }

    /// Writes a note of what is durable behind the last frame of each sector that lacks one, so
    /// that damage to that frame is not taken for a torn tail.
    pub fn note_durable(self: &Arc<Self>) {
        for number in 0..self.sectors.len() {
            if self.sectors[number].poisoned().is_none() && self.commits.lock().lacks_note(number) {
                let _ = wait_for(self.submit(number, Work::Note, true));
            }
        }
    }

    fn lacks_note(&self) -> bool {
        let commits = self.commits.lock();
        (0..self.sectors.len()).any(|number| commits.lacks_note(number))
    }

    /// The maintenance thread.
    pub fn run_maintenance(self: Arc<Self>, kicks: &Receiver<()>) {
        loop {
            while self.check_open().is_ok() {
                match self.step() {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        self.note(format!("maintenance: {error}"));
                        (0..self.sectors.len()).for_each(|number| self.fail_stalled(number));
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
                Err(RecvTimeoutError::Timeout) => self.note_durable(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.check_open().is_err() {
                return;
            }
        }
    }
}

/// A live record as compaction hands it to the log: its chunks' checksums unmasked.
fn to_move(sector: &Sector, frame: &[u8], frame_address: u64, record: LoggedRecord) -> Move {
    let (key_length, meta_length) = (record.key.as_bytes().len(), record.meta.len());
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
        meta_length: u32::try_from(meta_length).unwrap_or(u32::MAX),
        payload_length: record.payload_length,
        record: bytes,
    }
}

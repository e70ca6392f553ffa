//! A [`Sector`]: an open sector file with its identity and measures, and verified reads from it.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use graviton_format::checksum::{
    CHUNK_PAYLOAD, CHUNK_SIZE, Identity, gather_chunks, gather_chunks_to, stored_length,
};
use graviton_format::geometry::AREA_SIZE;
use graviton_format::record::RecordView;
use graviton_format::superblock::Superblock;
use graviton_format::{FormatError, Geometry};
use rustix::io::Errno;

use crate::io::{AbsentDisk, AlignedBuf, Disk, WriteSync};
use crate::port::{BinaryKey, Place, SectorState, StorageError};
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::sync::{Condvar, Instant, Mutex, OnceLock};

/// The most bytes of payload one device read brings in.
pub const READ_MAX: u64 = 4 << 20;

/// Between payloads that are read together lie no more bytes than these: the head of the second's record.
const GAP_MAX: u64 = 4 << 10;
/// How often what is not whole is read before it is believed to be so.
pub const READS: usize = 3;

/// How many blocks may be unreadable before nobody looks for what lies between them.
const UNREADABLE_MAX: usize = 1024;

/// Reads again what is not whole: it may have been read wrongly, and whoever opens the store may
/// overwrite what seems to be damaged.
pub async fn until_whole<T>(mut read: impl AsyncFnMut() -> T, is_whole: impl Fn(&T) -> bool) -> T {
    for _ in 1..READS {
        let outcome = read().await;
        if is_whole(&outcome) {
            return outcome;
        }
    }
    read().await
}

/// Payload on disk: where its first chunk lies, how long it is, and the LSN that masks its chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload {
    /// Address of the first chunk.
    pub address: u64,
    /// Bytes of payload, checksums not counted.
    pub length: u64,
    /// LSN of the record that holds it.
    pub lsn: u64,
}

/// How those who wait for readers learn that one has gone. Readers come and go all the time, and
/// pay for it only while somebody waits.
#[derive(Debug, Default)]
struct Unpinned {
    waiting: AtomicU32,
    /// How often a reader has gone while somebody waited.
    count: Mutex<u64>,
    changed: Condvar,
}

/// Readers that are at work in each segment: it is not reused before they are done. Block `b` is of the 2^b
/// segments from number 2^b - 1 on, so that more come without those that are there being touched.
#[derive(Debug)]
struct Pins {
    blocks: [OnceLock<Box<[AtomicU32]>>; 25],
}

impl Pins {
    fn new(segments: u32) -> Self {
        let pins = Self {
            blocks: [const { OnceLock::new() }; 25],
        };
        pins.make_room(segments);
        pins
    }

    /// The block of a segment, and its place there.
    fn place(segment: u32) -> (usize, usize) {
        let number = segment.saturating_add(1);
        let block = number.ilog2();
        (block as usize, (number - (1 << block)) as usize)
    }

    fn make_room(&self, segments: u32) {
        let (last, _) = Self::place(segments.saturating_sub(1));
        for (block, pins) in self.blocks.iter().enumerate().take(last + 1) {
            if pins.get().is_none() {
                // Whoever was first has set the same.
                let _ = pins.set((0..1_u32 << block).map(|_| AtomicU32::new(0)).collect());
            }
        }
    }

    fn of(&self, segment: u32) -> Option<&AtomicU32> {
        let (block, place) = Self::place(segment);
        self.blocks.get(block)?.get()?.get(place)
    }
}

/// One open sector.
#[derive(Debug)]
pub struct Sector {
    number: u16,
    identity: Identity,
    /// Its measures when it was opened.
    measures: Geometry,
    /// How many segments it has now: they only become more.
    segment_count: AtomicU32,
    superblock: Mutex<Superblock>,
    /// Where a copy of the superblock lies that is not like the other.
    to_mend: Option<u64>,
    /// What it is, if it was known from the beginning that it takes no writes.
    left_out: OnceLock<SectorState>,
    /// Its replicas are to move elsewhere.
    draining: AtomicBool,
    /// It takes no writes for the moment: it is coming in, or being taken away.
    withheld: AtomicBool,
    /// It is none of the store any more.
    gone: AtomicBool,
    /// Blocks that [`Sector::read_around`] could not read.
    unreadable: Mutex<BTreeSet<u64>>,
    disk: Arc<dyn Disk>,
    pins: Pins,
    unpinned: Unpinned,
    poisoned: OnceLock<String>,
}

impl Sector {
    /// Writes the superblocks of a new sector on `disk`, which must be all zeros, and opens it.
    ///
    /// # Errors
    /// What the disk reports.
    pub async fn format(disk: Arc<dyn Disk>, superblock: Superblock) -> Result<Self, StorageError> {
        let sector = Self::new(disk, superblock.sector_number.get(), superblock, None);
        for address in sector.geometry().superblocks() {
            sector.write_superblock(address).await?;
        }
        sector.sync().await?;
        Ok(sector)
    }

    async fn write_superblock(&self, address: u64) -> Result<(), StorageError> {
        let superblock = *self.superblock.lock();
        let buffer = self.superblock_copy(&superblock, address)?;
        self.write(buffer, address, WriteSync::None).await
    }

    /// The block of the superblock's copy for `address`.
    fn superblock_copy(
        &self,
        superblock: &Superblock,
        address: u64,
    ) -> Result<AlignedBuf, StorageError> {
        let mut buffer = self.buffer(self.measures.block_size.into())?;
        buffer.fill(0);
        buffer[..size_of::<Superblock>()].copy_from_slice(superblock.sealed(address).bytes());
        Ok(buffer)
    }

    /// Gives the sector more segments on disk, as `grown` has them. The copies of roots lie in what will be its
    /// back area already \[F-67\]. It counts them from [`Sector::count_segments`] on.
    ///
    /// # Errors
    /// `Io`. The sector is poisoned then, but for want of memory.
    pub async fn take_measures(&self, grown: Geometry) -> Result<(), StorageError> {
        let mut superblock = *self.superblock.lock();
        superblock.segment_count = grown.segment_count.into();
        superblock.sector_size = grown.sector_size().into();
        superblock.sequence = (superblock.sequence.get() + 1).into();
        let [front, back] = grown.superblocks();
        // Between the two there is nothing that fails without poisoning the sector.
        let copies = [
            (back, self.superblock_copy(&superblock, back)?),
            (front, self.superblock_copy(&superblock, front)?),
        ];
        for (address, copy) in copies {
            self.write(copy, address, WriteSync::None).await?;
            self.sync().await?;
        }
        *self.superblock.lock() = superblock;
        Ok(())
    }

    /// Has as many segments from now on as its superblock says. Returns how many.
    pub fn count_segments(&self) -> u32 {
        let count = self.superblock.lock().segment_count.get();
        self.pins.make_room(count);
        self.segment_count.store(count, Ordering::Release);
        count
    }

    /// Rewrites the copy of the superblock that was not good when the sector was opened \[F-13\].
    ///
    /// # Errors
    /// `Io`; the sector is poisoned then.
    pub async fn mend_superblock(&self) -> Result<(), StorageError> {
        match self.to_mend {
            Some(address) => self.write_superblock(address).await,
            None => Ok(()),
        }
    }

    /// Ends a file where its superblock says, which growth that was cut short has left longer: or what lies at its end
    /// would not be found there \[F-67\].
    pub fn end_where_it_should(&self) {
        let size = self.geometry().sector_size();
        let disk = self.disk();
        if disk.size() > size && !disk.info().is_device {
            // It is as long as before then, and found by its front.
            let _ = disk.extend(size, size);
        }
    }

    /// Takes part in a session of the store from now on, which has these members, and says so in its
    /// superblock.
    ///
    /// # Errors
    /// `Io`; the sector is poisoned then.
    pub async fn join(&self, session: u64, members: u64) -> Result<(), StorageError> {
        {
            let mut superblock = self.superblock.lock();
            superblock.session = session.into();
            superblock.members = members.into();
            superblock.sequence = (superblock.sequence.get() + 1).into();
        }
        // The back one first: whoever finds the front one newer may rely on it [F-13].
        let [front, back] = self.geometry().superblocks();
        for address in [back, front] {
            self.write_superblock(address).await?;
            self.sync().await?;
        }
        Ok(())
    }

    /// Writes all copies of the superblock anew, from what is known of it.
    ///
    /// # Errors
    /// `Io`; the sector is poisoned then.
    pub async fn renew_superblock(&self) -> Result<(), StorageError> {
        let (_, members) = self.claim();
        self.join(self.session(), members).await
    }

    /// Stands for the sector of these ids at `path`, which can't be used: it has nothing, and takes nothing.
    #[must_use]
    pub fn standing_in(
        path: &Path,
        number: u16,
        identity: Identity,
        geometry: Geometry,
        why: &StorageError,
    ) -> Self {
        let size = geometry.sector_size();
        let disk = AbsentDisk::new(path, size, geometry.block_size, why.to_string());
        let superblock = Superblock::new(identity, number, number + 1, &geometry, 0);
        Self::new(Arc::new(disk), number, superblock, None)
    }

    /// Opens the sector on `disk`. Returns what was found wrong with it without keeping it from
    /// being opened.
    ///
    /// # Errors
    /// `UnsupportedVersion`; `InvalidStore` when it is foreign, damaged or truncated; `Io`.
    pub async fn open(
        disk: Arc<dyn Disk>,
        number: u16,
    ) -> Result<(Self, Vec<String>), StorageError> {
        let path = disk.info().path.clone();
        let invalid = |why: String| StorageError::InvalidStore {
            path: path.clone(),
            why,
        };
        let size = disk.size();
        if size < AREA_SIZE * 2 {
            return Err(invalid(format!("{size} bytes are too few for a sector")));
        }
        let front = read_superblock(&disk, number, 0).await;
        if let Ok(superblock) = &front {
            let expected = superblock.geometry().sector_size();
            if size < expected {
                return Err(invalid(format!(
                    "truncated: {size} bytes, its superblock says {expected}"
                )));
            }
        }
        let (back_address, back) = match &front {
            Ok(superblock) => {
                let measures = superblock.geometry();
                let back_address = measures.back_area();
                // A crash may have found it growing, or what was written to the front copy then was lost.
                let grown = measures.fitted(size).map(|grown| grown.back_area());
                let grown = grown.filter(|address| *address != back_address);
                match read_back_copies(&disk, number, grown).await {
                    (address, Ok(copy))
                        if copy.identity() == superblock.identity()
                            && copy.sequence > superblock.sequence =>
                    {
                        (address, Ok(copy))
                    }
                    _ => read_back_copies(&disk, number, [back_address]).await,
                }
            }
            // The front copy says where the other lies; without it, the size of the file does.
            Err(_) => read_back_copies(&disk, number, Geometry::back_areas(size)).await,
        };
        let note = |offset, wrong: &BadCopy| {
            let place = Place {
                sector: number,
                offset,
            };
            vec![format!("{place}: a superblock copy {wrong}")]
        };
        let ((superblock, to_mend), notes) = match (front, back) {
            (Ok(front), Ok(back)) => {
                let chosen = match front.sequence.cmp(&back.sequence) {
                    std::cmp::Ordering::Less => (back, Some(0)),
                    std::cmp::Ordering::Equal => (front, None),
                    std::cmp::Ordering::Greater => (front, Some(back_address)),
                };
                (chosen, Vec::new())
            }
            (Ok(good), Err(wrong)) => ((good, Some(back_address)), note(back_address, &wrong)),
            // The back copy is written first: if the front one is newer, so was it.
            (Err(newer @ BadCopy::Newer(_)), Ok(_)) => return Err(newer.refusal(path)),
            (Err(wrong), Ok(good)) => ((good, Some(0)), note(0, &wrong)),
            (Err(front), Err(back)) => {
                let worse = if back.rank() > front.rank() {
                    back
                } else {
                    front
                };
                return Err(worse.refusal(path));
            }
        };
        Ok((Self::new(disk, number, superblock, to_mend), notes))
    }

    fn new(disk: Arc<dyn Disk>, number: u16, superblock: Superblock, to_mend: Option<u64>) -> Self {
        let geometry = superblock.geometry();
        Self {
            number,
            identity: superblock.identity(),
            measures: geometry,
            segment_count: AtomicU32::new(geometry.segment_count),
            superblock: Mutex::new(superblock),
            to_mend,
            left_out: OnceLock::new(),
            draining: AtomicBool::new(false),
            withheld: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            unreadable: Mutex::default(),
            disk,
            pins: Pins::new(geometry.segment_count),
            unpinned: Unpinned::default(),
            poisoned: OnceLock::new(),
        }
    }

    /// Its number in the store.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Which number its superblock says it has in the store, and which sectors that has: a bit for each.
    #[must_use]
    pub fn claim(&self) -> (u16, u64) {
        let superblock = self.superblock.lock();
        (superblock.sector_number.get(), superblock.members.get())
    }

    /// The last session of the store that it takes part in.
    #[must_use]
    pub fn session(&self) -> u64 {
        self.superblock.lock().session.get()
    }

    /// Its ids.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Its measures now: it may grow.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        Geometry {
            segment_count: self.segment_count.load(Ordering::Acquire),
            ..self.measures
        }
    }

    /// The disk it lies on.
    #[must_use]
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.disk.info().path
    }

    /// A place in it, for errors.
    #[must_use]
    pub fn place(&self, offset: u64) -> Place {
        Place {
            sector: self.number,
            offset,
        }
    }

    /// The first failure of a write or sync, if there was one.
    #[must_use]
    pub fn poisoned(&self) -> Option<&str> {
        self.poisoned.get().map(String::as_str)
    }

    /// Takes no more writes, because of `cause`.
    pub fn poison(&self, cause: &StorageError) {
        if self.poisoned.set(cause.to_string()).is_ok() {
            let (sector, cause) = (self.number, cause.without_key());
            tracing::error!(sector, cause, "sector takes no more writes");
        }
    }

    /// It is not one to write to, because of `cause`: that was known before anything was tried.
    pub fn leave_out(&self, state: SectorState, cause: &StorageError) {
        let _ = self.left_out.set(state);
        let _ = self.poisoned.set(cause.to_string());
    }

    /// Whether it was known from the beginning that it takes no writes.
    #[must_use]
    pub fn is_left_out(&self) -> bool {
        self.left_out.get().is_some()
    }

    /// Whether nothing can be read from it, either.
    #[must_use]
    pub fn is_stood_in_for(&self) -> bool {
        let left_out = self.left_out.get();
        left_out.is_some_and(|state| !state.keeps_copies())
    }

    /// What it can be used for.
    #[must_use]
    pub fn state(&self) -> SectorState {
        match (self.left_out.get(), self.poisoned()) {
            (Some(state), _) => *state,
            (None, Some(_)) => SectorState::Failed,
            (None, None) if self.is_draining() => SectorState::Draining,
            (None, None) => SectorState::Active,
        }
    }

    /// Whether its replicas are to move elsewhere: it gets no others.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Its replicas are to move elsewhere, or no more.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Release);
    }

    /// Whether records can be written to it.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.poisoned().is_none() && !self.is_withheld()
    }

    /// Whether it takes no writes since it is coming in, or being taken away.
    #[must_use]
    pub fn is_withheld(&self) -> bool {
        self.withheld.load(Ordering::Acquire)
    }

    /// It takes no writes for the moment, or takes them again.
    pub fn withhold(&self, withheld: bool) {
        self.withheld.store(withheld, Ordering::Release);
    }

    /// Whether it is none of the store.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// It is none of the store any more.
    pub fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// [`StorageError::SectorPoisoned`] if records can't be written to it.
    ///
    /// # Errors
    /// That.
    pub fn check_writable(&self) -> Result<(), StorageError> {
        self.check_well()?;
        match self.is_writable() {
            true => Ok(()),
            false => Err(StorageError::SectorPoisoned {
                sector: self.number,
                cause: "it comes or goes".to_owned(),
            }),
        }
    }

    /// [`StorageError::SectorPoisoned`] if a write or sync failed, or it is left out.
    ///
    /// # Errors
    /// That.
    pub fn check_well(&self) -> Result<(), StorageError> {
        match self.poisoned() {
            None => Ok(()),
            Some(cause) => Err(StorageError::SectorPoisoned {
                sector: self.number,
                cause: cause.to_owned(),
            }),
        }
    }

    /// A corruption at `offset`.
    pub fn corruption(&self, offset: u64, what: impl ToString) -> StorageError {
        StorageError::Corruption {
            place: self.place(offset),
            key: None,
            what: what.to_string(),
        }
    }

    pub(crate) fn io_error(
        &self,
        operation: &'static str,
        offset: u64,
        source: io::Error,
    ) -> StorageError {
        io_error(operation, self.number, offset, source)
    }

    /// A buffer of `length` bytes with unspecified contents.
    ///
    /// # Errors
    /// `Io` when there is no memory.
    pub fn buffer(&self, length: u64) -> Result<AlignedBuf, StorageError> {
        let length = usize::try_from(length)
            .map_err(|_| self.io_error("allocate", 0, io::ErrorKind::OutOfMemory.into()))?;
        self.disk
            .buffer(length)
            .map_err(|source| self.io_error("allocate", 0, source))
    }

    /// What a write or sync came to. One that failed poisons the sector before anything else can
    /// be concluded from a sync that succeeds later.
    ///
    /// # Errors
    /// `Io`.
    pub fn written(
        &self,
        operation: &'static str,
        address: u64,
        outcome: io::Result<()>,
    ) -> Result<(), StorageError> {
        let outcome = outcome.map_err(|source| self.io_error(operation, address, source));
        if let Err(error) = &outcome {
            self.poison(error);
        }
        outcome
    }

    /// Writes a buffer of whole blocks.
    ///
    /// # Errors
    /// `Io`; the sector is poisoned then.
    pub async fn write(
        &self,
        buffer: AlignedBuf,
        address: u64,
        sync: WriteSync,
    ) -> Result<(), StorageError> {
        let (_, outcome) = self.disk.write(buffer, address, sync).await;
        self.written("write", address, outcome)
    }

    /// Makes everything written before durable.
    ///
    /// # Errors
    /// `Io`; the sector is poisoned then.
    pub async fn sync(&self) -> Result<(), StorageError> {
        let (_, outcome) = self.disk.sync().await;
        self.written("sync", 0, outcome)
    }

    /// Reads `range` of the sector: returns a buffer and where in it the range begins.
    ///
    /// # Errors
    /// `Io`; `Corruption` if the range reaches past the sector's end.
    pub async fn read(&self, range: Range<u64>) -> Result<(AlignedBuf, usize), StorageError> {
        if range.start > range.end || range.end > self.disk.size() {
            return Err(self.corruption(
                range.start,
                format!(
                    "points at {} bytes past the end of the sector",
                    range.end.saturating_sub(range.start)
                ),
            ));
        }
        let block = u64::from(self.disk.info().block_size);
        let start = range.start - range.start % block;
        let end = range.end.next_multiple_of(block).min(self.disk.size());
        let buffer = self.buffer(end - start)?;
        let (buffer, outcome) = self.disk.read(buffer, start).await;
        outcome.map_err(|source| self.io_error("read", start, source))?;
        let skip = usize::try_from(range.start - start)
            .map_err(|_| self.corruption(start, "unaligned"))?;
        Ok((buffer, skip))
    }

    /// Reads what can be read of `range`, with zeros for the rest; tells of each block that can't be
    /// read, and where it is. Such a block is not read again: only before anything is written may
    /// this be called.
    ///
    /// # Errors
    /// `Io` if too much of the sector can't be read; `Corruption` if the range reaches past its end.
    pub async fn read_around(
        &self,
        range: Range<u64>,
        mut tell: impl FnMut(u64, StorageError),
    ) -> Result<(AlignedBuf, usize), StorageError> {
        let unit = self.measures.block_size as usize;
        let block = unit as u64;
        let start = range.start - range.start % block;
        let end = range.end.next_multiple_of(block);
        if self.unreadable.lock().range(start..end).next().is_none() {
            let read = async || self.read(range.clone()).await;
            match until_whole(read, Result::is_ok).await {
                Err(error) if is_failed_read(&error) => {}
                outcome => return outcome,
            }
        }
        let mut whole = self.buffer(end - start)?;
        for (part, at) in whole.chunks_mut(unit).zip((start..).step_by(unit)) {
            let known = self.unreadable.lock().contains(&at);
            let read = match known {
                true => Err(self.io_error("read", at, Errno::IO.into())),
                false => self.read(at..at + block).await,
            };
            match read {
                Ok((read, skip)) => part.copy_from_slice(&read[skip..][..part.len()]),
                Err(error) if is_failed_read(&error) => {
                    let mut unreadable = self.unreadable.lock();
                    unreadable.insert(at);
                    if unreadable.len() > UNREADABLE_MAX {
                        return Err(error);
                    }
                    part.fill(0);
                    tell(at, error);
                }
                Err(error) => return Err(error),
            }
        }
        let skip = usize::try_from(range.start - start)
            .map_err(|_| self.corruption(start, "unaligned"))?;
        Ok((whole, skip))
    }

    /// Reads `range`, and again if it can't be read or is not whole.
    ///
    /// # Errors
    /// `Io`, or `Corruption` if the range reaches past the sector's end; the inner error says what
    /// is not whole.
    pub async fn read_whole<T, E>(
        &self,
        range: Range<u64>,
        decode: impl Fn(&[u8]) -> Result<T, E>,
    ) -> Result<Result<T, E>, StorageError> {
        let read = async || {
            let (buffer, skip) = self.read(range.clone()).await?;
            Ok(decode(&buffer[skip..]))
        };
        until_whole(read, |outcome| matches!(outcome, Ok(Ok(_)))).await
    }

    /// Reads and verifies `range` of a payload: at most about [`READ_MAX`] bytes of it.
    ///
    /// # Errors
    /// `Io`, `Corruption`.
    pub async fn read_payload(
        &self,
        payload: Payload,
        range: Range<u64>,
    ) -> Result<Bytes, StorageError> {
        debug_assert!(range.start <= range.end && range.end <= payload.length);
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let (chunk, size) = (CHUNK_PAYLOAD as u64, CHUNK_SIZE as u64);
        let first = range.start / chunk;
        let start = payload.address.saturating_add(first * size);
        let stored_end = (range.end.div_ceil(chunk) * size).min(stored_length(payload.length));
        let (mut buffer, skip) = self
            .read(start..payload.address.saturating_add(stored_end))
            .await?;
        let stored = usize::try_from(payload.address + stored_end - start)
            .map_err(|_| self.corruption(start, "oversized"))?;
        let mask = self.identity.chunk_mask(payload.lsn);
        gather_chunks(&mut buffer[skip..skip + stored], mask, start)
            .map_err(|(offset, error)| self.corruption(start + offset as u64, error))?;
        let offset =
            |position: u64| skip + usize::try_from(position - first * chunk).unwrap_or(usize::MAX);
        Ok(Bytes::from_owner(buffer).slice(offset(range.start)..offset(range.end)))
    }

    /// Reads and verifies payloads that lie one behind the other, with nothing but heads of records between them,
    /// by one read. `None`, if they do not, or are too long for that.
    ///
    /// # Errors
    /// `Io`, `Corruption`.
    pub async fn read_adjacent(
        &self,
        payloads: impl Iterator<Item = Payload> + Clone,
    ) -> Option<Result<Bytes, StorageError>> {
        let first = payloads.clone().next()?;
        let mut end = first.address;
        for payload in payloads.clone() {
            payload
                .address
                .checked_sub(end)
                .filter(|gap| *gap <= GAP_MAX)?;
            end = payload.address.checked_add(stored_length(payload.length))?;
        }
        if end - first.address > READ_MAX {
            return None;
        }
        Some(self.gather_adjacent(first.address..end, payloads).await)
    }

    async fn gather_adjacent(
        &self,
        range: Range<u64>,
        payloads: impl Iterator<Item = Payload>,
    ) -> Result<Bytes, StorageError> {
        let (mut buffer, skip) = self.read(range.clone()).await?;
        let oversized = |_| self.corruption(range.start, "oversized");
        let mut gathered = skip;
        for payload in payloads {
            let start = usize::try_from(payload.address - range.start).map_err(oversized)? + skip;
            let length = usize::try_from(stored_length(payload.length)).map_err(oversized)?;
            let mask = self.identity.chunk_mask(payload.lsn);
            let stored = start..start + length;
            gathered += gather_chunks_to(&mut buffer, stored, gathered, mask, payload.address)
                .map_err(|(offset, error)| {
                    self.corruption(payload.address + offset as u64, error)
                })?;
        }
        Ok(Bytes::from_owner(buffer).slice(skip..gathered))
    }

    /// Reads and verifies the head (header, key, metadata) of the record at `address`, which must
    /// be `key`'s with this LSN, and returns its metadata and its time.
    ///
    /// # Errors
    /// `Io`, `Corruption`.
    pub async fn read_meta(
        &self,
        address: u64,
        key: &BinaryKey,
        lsn: u64,
        meta_length: u32,
    ) -> Result<(Vec<u8>, u64), StorageError> {
        let head = (32 + key.stored().len()) as u64 + u64::from(meta_length);
        let (buffer, skip) = self.read(address..address.saturating_add(head)).await?;
        let record = RecordView::decode(&buffer[skip..], &self.identity, &self.geometry(), address)
            .map_err(|error| self.corruption(address, error))?;
        if record.key != key.stored() || record.header.lsn != lsn {
            return Err(self.corruption(address, "holds another record than the index says"));
        }
        Ok((record.meta.to_vec(), record.header.time.get()))
    }

    /// Keeps the segments that `addresses` lie in from being reused until the pin is dropped.
    /// Must be called while the index that gave the addresses can't change.
    pub fn pin(self: &Arc<Self>, addresses: impl Iterator<Item = u64>) -> Pin {
        let geometry = self.geometry();
        let mut segments: Vec<u32> = addresses
            .filter_map(|address| geometry.segment_of(address))
            .map(|(segment, _)| segment)
            .collect();
        segments.sort_unstable();
        segments.dedup();
        for pins in segments.iter().filter_map(|&segment| self.pins.of(segment)) {
            pins.fetch_add(1, Ordering::SeqCst);
        }
        Pin {
            sector: Arc::clone(self),
            segments,
        }
    }

    /// Whether a reader is at work in a segment.
    #[must_use]
    pub fn is_pinned(&self, segment: u32) -> bool {
        let pins = self.pins.of(segment);
        pins.is_some_and(|pins| pins.load(Ordering::SeqCst) != 0)
    }

    /// Waits until `over`, which is asked whenever a pin was dropped; at most for `patience`.
    /// Returns what it said last.
    pub fn wait_for_unpin(&self, patience: Duration, mut over: impl FnMut() -> bool) -> bool {
        if patience.is_zero() {
            return over();
        }
        let end = Instant::now().checked_add(patience);
        // Before the first look: a pin that is dropped after it sees that somebody waits.
        self.unpinned.waiting.fetch_add(1, Ordering::SeqCst);
        let mut in_time = true;
        let outcome = loop {
            let seen = *self.unpinned.count.lock();
            // With no lock held: it may ask for locks that whoever drops a pin holds.
            let is_over = over();
            if is_over || !in_time {
                break is_over;
            }
            let mut count = self.unpinned.count.lock();
            while in_time && *count == seen {
                match end {
                    Some(end) => {
                        let waited = self.unpinned.changed.wait_until(&mut count, end);
                        in_time = !waited.timed_out();
                    }
                    None => self.unpinned.changed.wait(&mut count),
                }
            }
        };
        self.unpinned.waiting.fetch_sub(1, Ordering::SeqCst);
        outcome
    }

    /// Makes those who wait for readers look again at whether they should.
    pub fn wake_for_unpin(&self) {
        if self.unpinned.waiting.load(Ordering::SeqCst) > 0 {
            *self.unpinned.count.lock() += 1;
            self.unpinned.changed.notify_all();
        }
    }
}

/// Whether it is a read that failed, and not, say, for want of memory.
pub fn is_failed_read(error: &StorageError) -> bool {
    matches!(
        error,
        StorageError::Io {
            operation: "read",
            ..
        }
    )
}

/// What is wrong with a superblock copy.
enum BadCopy {
    Damaged(FormatError),
    /// Nobody knows what else it says.
    Newer(FormatError),
    Unreadable(StorageError),
}

impl BadCopy {
    /// There is no place for it.
    fn nowhere() -> Self {
        Self::Damaged(FormatError::Truncated {
            structure: "Superblock",
            needed: 512,
            found: 0,
        })
    }

    /// Of two bad copies the one with the higher rank says why the sector is refused.
    fn rank(&self) -> u8 {
        match self {
            Self::Newer(_) | Self::Damaged(FormatError::Version { .. }) => 2,
            Self::Unreadable(_) => 1,
            Self::Damaged(_) => 0,
        }
    }

    /// Why the sector at `path` is refused, of which no copy is good.
    fn refusal(self, path: PathBuf) -> StorageError {
        match self {
            Self::Newer(FormatError::Version { found, supported })
            | Self::Damaged(FormatError::Version { found, supported }) => {
                StorageError::UnsupportedVersion {
                    path,
                    found,
                    supported,
                }
            }
            Self::Unreadable(error) => error,
            Self::Damaged(FormatError::Magic { .. }) => StorageError::InvalidStore {
                path,
                why: "not a Graviton sector".to_owned(),
            },
            wrong => StorageError::InvalidStore {
                path,
                why: format!("no superblock is whole: the front one {wrong}"),
            },
        }
    }
}

impl fmt::Display for BadCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged(error) => write!(f, "is damaged: {error}"),
            Self::Newer(error) => error.fmt(f),
            Self::Unreadable(error) => write!(f, "can't be read: {error}"),
        }
    }
}

/// Reads the superblock copy at `address`.
async fn read_superblock(
    disk: &Arc<dyn Disk>,
    number: u16,
    address: u64,
) -> Result<Superblock, BadCopy> {
    let read = async || {
        let length = size_of::<Superblock>().max(disk.info().block_size as usize);
        let unreadable = |operation| {
            move |source| BadCopy::Unreadable(io_error(operation, number, address, source))
        };
        let buffer = disk.buffer(length).map_err(unreadable("allocate"))?;
        let (buffer, outcome) = disk.read(buffer, address).await;
        outcome.map_err(unreadable("read"))?;
        match Superblock::decode(&buffer, address) {
            Err(error @ FormatError::Version { .. })
                if !Superblock::is_damaged_version(&buffer, address) =>
            {
                Err(BadCopy::Newer(error))
            }
            decoded => decoded.map_err(BadCopy::Damaged),
        }
    };
    until_whole(read, Result::is_ok).await
}

/// Reads the superblock copies at `addresses`: the newest good one, and where it lies; else what is worst.
async fn read_back_copies(
    disk: &Arc<dyn Disk>,
    number: u16,
    addresses: impl IntoIterator<Item = u64>,
) -> (u64, Result<Superblock, BadCopy>) {
    let mut best: Option<(u64, Result<Superblock, BadCopy>)> = None;
    for address in addresses {
        let copy = match address.is_multiple_of(disk.info().block_size.into()) {
            true => read_superblock(disk, number, address).await,
            false => Err(BadCopy::nowhere()),
        };
        let is_better = match (&copy, &best) {
            (_, None) | (Ok(_), Some((_, Err(_)))) => true,
            (Ok(copy), Some((_, Ok(best)))) => copy.sequence > best.sequence,
            (Err(copy), Some((_, Err(best)))) => copy.rank() > best.rank(),
            (Err(_), Some((_, Ok(_)))) => false,
        };
        if is_better {
            best = Some((address, copy));
        }
    }
    best.unwrap_or((0, Err(BadCopy::nowhere())))
}

fn io_error(operation: &'static str, sector: u16, offset: u64, source: io::Error) -> StorageError {
    StorageError::Io {
        operation,
        place: Place { sector, offset },
        source: Arc::new(source),
    }
}

/// Keeps segments from being reused. See [`Sector::pin`].
#[derive(Debug)]
pub struct Pin {
    sector: Arc<Sector>,
    segments: Vec<u32>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let segments = self.segments.iter();
        for pins in segments.filter_map(|&segment| self.sector.pins.of(segment)) {
            pins.fetch_sub(1, Ordering::SeqCst);
        }
        self.sector.wake_for_unpin();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::io::Backend;
    use crate::io::sim::Sim;
    use crate::port::op::wait_for;
    use std::sync::mpsc;

    /// A new one, of 40 segments.
    pub(in crate::log) fn sector() -> Arc<Sector> {
        let geometry = Geometry {
            block_size: 512,
            segment_size: 64 << 10,
            segment_count: 40,
        };
        let identity = Identity {
            store_id: [1; 16],
            sector_id: 1,
        };
        let disk = Sim::new(512, 1).create(Path::new("/sector"), geometry.sector_size());
        let superblock = Superblock::new(identity, 0, 1, &geometry, 1);
        Arc::new(wait_for(Sector::format(disk.unwrap(), superblock)).unwrap())
    }

    #[test]
    fn a_pin_that_is_dropped_wakes_whoever_waits_for_it() {
        let sector = sector();
        let address = sector.geometry().segment_offset(3);
        let pin = sector.pin(std::iter::once(address));
        assert!(sector.is_pinned(3));
        let (asked, asks) = mpsc::channel();
        let gone = std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                sector.wait_for_unpin(Duration::from_secs(60), || {
                    asked.send(()).unwrap();
                    !sector.is_pinned(3)
                })
            });
            asks.recv().unwrap();
            // A reader of another segment is none that is waited for.
            drop(sector.pin(std::iter::once(sector.geometry().segment_offset(4))));
            asks.recv().unwrap();
            assert!(sector.is_pinned(3));
            drop(pin);
            waiter.join().unwrap()
        });
        assert!(gone);
        assert_eq!(sector.unpinned.waiting.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn patience_ends() {
        let sector = sector();
        let _pin = sector.pin(std::iter::once(sector.geometry().segment_offset(3)));
        for patience in [Duration::ZERO, Duration::from_millis(1)] {
            let mut asks = 0;
            assert!(!sector.wait_for_unpin(patience, || {
                asks += 1;
                !sector.is_pinned(3)
            }));
            assert_eq!(asks, if patience.is_zero() { 1 } else { 2 });
        }
    }
}

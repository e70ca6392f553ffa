//! Reading blobs: a snapshot under the index's lock, then verified device reads without it. A read that
//! fails goes on with the next replica, and the one that failed is marked.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use graviton_format::record::ExtentRef;

use super::cache::Joined;
use super::index::{Entry, Found, Index, Piece, SectorIndex};
use super::inner::Inner;
use super::record::{Details, system_time};
use super::set::SectorSet;
use crate::log::Sector;
use crate::log::sector::{Payload, Pin, READ_MAX};
use crate::port::blob::resolve_range;
use crate::port::key::KeyMaker;
use crate::port::{
    BinaryKey, Blob, BlobInfo, BlobRanges, BlobReader, ETag, GetOptions, GetRangesOptions, Holes,
    ListEntry, ListPage, ListRequest, Op, Precondition, RangeSet, ReadBlob, Span, StorageError,
    StoreOp,
};

/// The most bytes a get brings into memory at once; larger blobs are streamed.
pub const GET_MAX: u64 = 4 << 30;
/// Bytes between two ranges above which they are never read as one.
const GAP_MAX: u64 = 1 << 20;
/// Bytes of a piece that a stream hands out.
const STREAM_PIECE: u64 = 1 << 20;
/// Device reads a large get or a stream keeps under way.
const READ_AHEAD: usize = 4;

/// One version of a blob, kept readable: its segments are not reused while this lives.
#[derive(Debug)]
pub struct Snapshot {
    inner: Arc<Inner>,
    pub key: BinaryKey,
    pub entry: Entry,
    /// The bytes asked for.
    pub range: Range<u64>,
    /// Its replicas, the one to read first.
    replicas: Vec<Replica>,
}

/// A get that was begun.
enum Begun {
    /// It is over: the blob is in memory.
    Cached(Blob),
    Reading(Arc<Snapshot>),
    /// All of the blob will be in memory then.
    Filling(Arc<Snapshot>, Joined),
}

/// One replica of a snapshot.
#[derive(Debug)]
struct Replica {
    number: usize,
    sector: Arc<Sector>,
    /// What makes up the bytes asked for.
    pieces: Vec<Piece>,
    _pin: Pin,
}

/// Checks a precondition of a read.
fn check(key: &BinaryKey, precondition: Precondition, lsn: u64) -> Result<(), StorageError> {
    if precondition.holds(Some(lsn)) {
        return Ok(());
    }
    Err(StorageError::PreconditionFailed {
        key: key.clone(),
        actual: Some(ETag::of_version(lsn)),
    })
}

/// Finds the version that is asked for, and which bytes of it.
fn find(
    index: &Index,
    key: &BinaryKey,
    options: &GetOptions,
) -> Result<(Found, Range<u64>), StorageError> {
    let Some(found) = index.lookup(key.stored())? else {
        return Err(StorageError::NotFound { key: key.clone() });
    };
    check(key, options.precondition, found.entry.lsn)?;
    let range = resolve_range(key, options.range.as_ref(), found.entry.size)?;
    Ok((found, range))
}

/// A range of a blob that is in memory.
fn part_of(bytes: Bytes, range: Range<u64>, version: u64) -> Blob {
    let at = |position| usize::try_from(position).unwrap_or(usize::MAX);
    let size = bytes.len() as u64;
    Blob {
        bytes: match range == (0..size) {
            true => bytes,
            false => bytes.slice(at(range.start)..at(range.end)),
        },
        range,
        size,
        etag: ETag::of_version(version),
        version,
    }
}

/// Checks that what is asked for has no holes.
fn check_written(
    key: &BinaryKey,
    entry: &Entry,
    ranges: &[Range<u64>],
) -> Result<(), StorageError> {
    let asked = ranges.iter().map(|range| Span::try_from(range.clone()));
    let asked = asked.collect::<Result<RangeSet, _>>()?;
    let missing = asked.intersection(&entry.missing());
    if missing.is_empty() {
        return Ok(());
    }
    let key = key.clone();
    Err(StorageError::MissingRanges { key, missing })
}

fn check_total(length: u64) -> Result<(), StorageError> {
    if length > GET_MAX {
        return Err(StorageError::invalid(format!(
            "a get of {length} bytes, at most {GET_MAX}; stream it"
        )));
    }
    Ok(())
}

/// Ranges in order, those with at most `gap` bytes between them as one; empty ones are left out.
fn merge(ranges: &[Range<u64>], gap: u64) -> Vec<Range<u64>> {
    let mut sorted: Vec<Range<u64>> = ranges.to_vec();
    sorted.retain(|range| !range.is_empty());
    sorted.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(gap) => {
                last.end = last.end.max(range.end);
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// Ranges of one version, kept readable.
struct Snapshots {
    /// In order; they do not overlap.
    parts: Vec<Arc<Snapshot>>,
    /// What was asked for: each lies in one of the parts, unless it is empty.
    ranges: Vec<Range<u64>>,
    size: u64,
    version: u64,
}

impl Snapshots {
    async fn read(self) -> Result<BlobRanges, StorageError> {
        let mut ahead: VecDeque<StoreOp<Bytes>> = VecDeque::new();
        let mut parts = self.parts.iter();
        let mut read: Vec<(u64, Bytes)> = Vec::new();
        loop {
            while ahead.len() < READ_AHEAD
                && let Some(part) = parts.next()
            {
                let part = Arc::clone(part);
                ahead.push_back(Op::start(async move { part.read_all().await }));
            }
            let Some(next) = ahead.pop_front() else { break };
            read.push((self.parts[read.len()].range.start, next.await?));
        }
        let bytes = |range: &Range<u64>| {
            let after = read.partition_point(|(start, _)| *start <= range.start);
            let at = |position| usize::try_from(position).unwrap_or(usize::MAX);
            match read[..after].last() {
                Some((start, bytes)) if !range.is_empty() => {
                    bytes.slice(at(range.start - start)..at(range.end - start))
                }
                _ => Bytes::new(),
            }
        };
        Ok(BlobRanges {
            pieces: self.ranges.iter().map(bytes).collect(),
            size: self.size,
            etag: ETag::of_version(self.version),
            version: self.version,
        })
    }
}

impl Inner {
    /// Takes hold of the current version of `key`.
    pub fn snapshot(
        self: &Arc<Self>,
        key: &BinaryKey,
        options: &GetOptions,
    ) -> Result<Snapshot, StorageError> {
        self.check_open()?;
        let index = self.index.read();
        let (found, range) = find(&index, key, options)?;
        self.snapshot_of(&index, key, &found, range, options)
    }

    fn snapshot_of(
        self: &Arc<Self>,
        index: &Index,
        key: &BinaryKey,
        found: &Found,
        range: Range<u64>,
        options: &GetOptions,
    ) -> Result<Snapshot, StorageError> {
        let snapshot = self.pinned(index, key, found, range)?;
        if options.holes == Holes::Refuse && snapshot.has_holes() {
            check_written(key, &snapshot.entry, std::slice::from_ref(&snapshot.range))?;
        }
        Ok(snapshot)
    }

    /// Takes hold of a range of a version.
    ///
    /// # Errors
    /// `Corruption` of the index, of all replicas.
    pub fn pinned(
        self: &Arc<Self>,
        index: &Index,
        key: &BinaryKey,
        found: &Found,
        range: Range<u64>,
    ) -> Result<Snapshot, StorageError> {
        self.pin(index, key, found, range.clone(), |sector, entry| {
            sector.pieces(key, entry, &range)
        })
    }

    /// The same, of a range that these pieces make up, in the sectors where it is made of them.
    ///
    /// # Errors
    /// As [`Inner::pinned`].
    pub fn pinned_pieces(
        self: &Arc<Self>,
        index: &Index,
        key: &BinaryKey,
        found: &Found,
        range: Span,
        pieces: &[ExtentRef],
    ) -> Result<Snapshot, StorageError> {
        let range = Range::from(range);
        self.pin(index, key, found, range.clone(), |sector, entry| {
            if entry.extents.is_none() {
                return sector.pieces(key, entry, &range);
            }
            let piece = |piece| sector.piece(key, entry, piece, 0..u64::MAX);
            pieces.iter().map(piece).collect()
        })
    }

    fn pin(
        self: &Arc<Self>,
        index: &Index,
        key: &BinaryKey,
        found: &Found,
        range: Range<u64>,
        pieces: impl Fn(&SectorIndex, &Entry) -> Result<Vec<Piece>, StorageError>,
    ) -> Result<Snapshot, StorageError> {
        let mut replicas = Vec::with_capacity(found.holders.len());
        let mut failed = None;
        for number in self.by_health(key, found) {
            let part = &index.sectors[number];
            let pieces = match index.entry_of(found, number, key.stored())? {
                Some(entry) => pieces(part, &entry),
                None => continue,
            };
            match pieces {
                Ok(pieces) => {
                    let sector = Arc::clone(&self.sectors[number]);
                    let payloads = pieces.iter().filter_map(|piece| piece.payload);
                    let pin = sector.pin(payloads.map(|payload| payload.address));
                    replicas.push(Replica {
                        number,
                        sector,
                        pieces,
                        _pin: pin,
                    });
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match (replicas.is_empty(), failed) {
            (true, Some(error)) => Err(error),
            _ => Ok(Snapshot {
                inner: Arc::clone(self),
                key: key.clone(),
                entry: found.entry.clone(),
                range,
                replicas,
            }),
        }
    }

    /// The sectors that have a version, the one to read from first: those of which nothing bad is known,
    /// each key from another.
    fn by_health(&self, key: &BinaryKey, found: &Found) -> Vec<usize> {
        let mut holders: Vec<usize> = found.holders.iter().collect();
        if holders.len() > 1 {
            let mut hasher = DefaultHasher::new();
            hasher.write(key.stored());
            let first = hasher.finish() % holders.len() as u64;
            holders.rotate_left(usize::try_from(first).unwrap_or(0));
            let version = found.entry.lsn;
            holders.sort_by_key(|&number| self.marks.is_doubtful(key, number, version));
        }
        holders
    }

    /// See [`Store::get_ranges`](super::Store::get_ranges).
    pub fn get_ranges(
        self: &Arc<Self>,
        key: &BinaryKey,
        ranges: &[Span],
        options: &GetRangesOptions,
    ) -> StoreOp<BlobRanges> {
        match self.snapshots(key, ranges, options) {
            Ok(snapshots) => Op::start(snapshots.read()),
            Err(error) => Op::fail(error),
        }
    }

    /// Takes hold of ranges of the current version of `key`, those near each other together.
    fn snapshots(
        self: &Arc<Self>,
        key: &BinaryKey,
        ranges: &[Span],
        options: &GetRangesOptions,
    ) -> Result<Snapshots, StorageError> {
        self.check_open()?;
        let index = self.index.read();
        let Some(found) = index.lookup(key.stored())? else {
            return Err(StorageError::NotFound { key: key.clone() });
        };
        let entry = &found.entry;
        check(key, options.precondition, entry.lsn)?;
        let resolve = |&range: &Span| resolve_range(key, Some(&range.into()), entry.size);
        let ranges: Vec<Range<u64>> = ranges.iter().map(resolve).collect::<Result<_, _>>()?;
        let total =
            |ranges: &[Range<u64>]| ranges.iter().map(|range| range.end - range.start).sum();
        let mut together = merge(&ranges, options.gap.min(GAP_MAX));
        if total(&together) > GET_MAX {
            together = merge(&ranges, 0);
        }
        check_total(total(&together))?;
        let mut parts = Vec::with_capacity(together.len());
        for range in together {
            let part = self.pinned(&index, key, &found, range)?;
            parts.push(Arc::new(part));
        }
        // A hole between two ranges is none that was asked for.
        if options.holes == Holes::Refuse && parts.iter().any(|part| part.has_holes()) {
            check_written(key, entry, &ranges)?;
        }
        Ok(Snapshots {
            parts,
            ranges,
            size: entry.size,
            version: entry.lsn,
        })
    }

    /// See [`BlobStore::get`](crate::port::BlobStore::get).
    pub fn get(self: &Arc<Self>, key: &BinaryKey, options: &GetOptions) -> StoreOp<Blob> {
        match self.get_or_begin(key, options) {
            Ok(Begun::Cached(blob)) => Op::ready(Ok(blob)),
            Ok(Begun::Reading(snapshot)) => Op::start(async move {
                let bytes = snapshot.read_all().await?;
                Ok(snapshot.blob(bytes))
            }),
            Ok(Begun::Filling(snapshot, read)) => Op::start(async move {
                let bytes = read.await?;
                Ok(snapshot.blob(bytes))
            }),
            Err(error) => Op::fail(error),
        }
    }

    fn get_or_begin(
        self: &Arc<Self>,
        key: &BinaryKey,
        options: &GetOptions,
    ) -> Result<Begun, StorageError> {
        self.check_open()?;
        let hot = self.cache.as_ref().and_then(|cache| cache.get_hot(key));
        if let Some((version, bytes)) = hot {
            check(key, options.precondition, version)?;
            let range = resolve_range(key, options.range.as_ref(), bytes.len() as u64)?;
            return Ok(Begun::Cached(part_of(bytes, range, version)));
        }
        let index = self.index.read();
        let (found, range) = find(&index, key, options)?;
        check_total(range.end - range.start)?;
        let (size, version) = (found.entry.size, found.entry.lsn);
        let cache = self.cache.as_ref().filter(|cache| cache.takes(size));
        // What has holes depends on who asks.
        let cache = cache.filter(|_| !found.entry.has_holes());
        if let Some(bytes) = cache.and_then(|cache| cache.get(version)) {
            if let Some(cache) = cache {
                cache.found(key, version);
            }
            return Ok(Begun::Cached(part_of(bytes, range, version)));
        }
        let is_whole = range == (0..size);
        let snapshot = self.snapshot_of(&index, key, &found, range, options)?;
        drop(index);
        let snapshot = Arc::new(snapshot);
        Ok(match cache.filter(|_| is_whole) {
            None => Begun::Reading(snapshot),
            Some(cache) => {
                let reading = Arc::clone(&snapshot);
                let read = move || async move { reading.read_all().await };
                Begun::Filling(snapshot, cache.read_through(version, read))
            }
        })
    }

    /// See [`BlobStore::get_stream`](crate::port::BlobStore::get_stream).
    pub fn get_stream(
        self: &Arc<Self>,
        key: &BinaryKey,
        options: &GetOptions,
    ) -> StoreOp<BlobReader> {
        Op::ready(self.snapshot(key, options).map(|snapshot| {
            let (range, size, version) = (
                snapshot.range.clone(),
                snapshot.entry.size,
                snapshot.entry.lsn,
            );
            BlobReader::new(Reader::new(Arc::new(snapshot)), range, size, version)
        }))
    }

    /// See [`BlobStore::exists`](crate::port::BlobStore::exists).
    pub fn exists(&self, key: &BinaryKey) -> Result<bool, StorageError> {
        self.check_open()?;
        Ok(self.index.read().lookup(key.stored())?.is_some())
    }

    /// Takes hold of the record of the current version of `key`. What was begun before a close goes on,
    /// so whether the store is open is asked elsewhere.
    ///
    /// # Errors
    /// `NotFound`, `Corruption` of the index.
    pub fn hold(self: &Arc<Self>, key: &BinaryKey) -> Result<HeldRecord, StorageError> {
        self.hold_in(&self.index.read(), key)
    }

    /// The same, where the index is at hand.
    ///
    /// # Errors
    /// As [`Inner::hold`].
    pub fn hold_in(
        self: &Arc<Self>,
        index: &Index,
        key: &BinaryKey,
    ) -> Result<HeldRecord, StorageError> {
        let Some(found) = index.lookup(key.stored())? else {
            return Err(StorageError::NotFound { key: key.clone() });
        };
        let mut records = Vec::with_capacity(found.holders.len());
        for number in self.by_health(key, &found) {
            if let Some(entry) = index.entry_of(&found, number, key.stored())? {
                let sector = Arc::clone(&self.sectors[number]);
                let pin = sector.pin(std::iter::once(entry.address));
                records.push((number, entry, pin));
            }
        }
        Ok(HeldRecord {
            inner: Arc::clone(self),
            key: key.clone(),
            holders: found.holders,
            entry: found.entry,
            records,
        })
    }

    /// See [`BlobStore::stat`](crate::port::BlobStore::stat).
    pub fn stat(self: &Arc<Self>, key: &BinaryKey) -> StoreOp<BlobInfo> {
        let found = self.check_open().and_then(|()| {
            let index = self.index.read();
            let held = self.hold_in(&index, key)?;
            let mut allocated = 0;
            for number in held.holders.iter() {
                if let Some(entry) = index.entry_in(number, key.stored())? {
                    allocated += index.sectors[number].allocated(key, &entry);
                }
            }
            Ok((held, allocated))
        });
        let (held, allocated) = match found {
            Ok(found) => found,
            Err(error) => return Op::fail(error),
        };
        let wanted = self.wanted(held.entry.replicas);
        Op::start(async move {
            let details = held.details().await?;
            let HeldRecord {
                key,
                entry,
                holders,
                ..
            } = held;
            let number = |number| u16::try_from(number).unwrap_or(u16::MAX);
            Ok(BlobInfo {
                size: entry.size,
                allocated,
                etag: ETag::of_version(entry.lsn),
                version: entry.lsn,
                created: details.created(&entry),
                modified: system_time(entry.time),
                digests: details.digests,
                attributes: details.attributes,
                missing: entry.missing(),
                fragments: entry.fragments(),
                sectors: holders.iter().map(number).collect(),
                replicas: number(wanted),
                key,
            })
        })
    }

    /// See [`BlobStore::list`](crate::port::BlobStore::list).
    pub fn list(&self, request: &ListRequest) -> Result<ListPage, StorageError> {
        self.check_open()?;
        let index = self.index.read();
        let mut keys = KeyMaker::default();
        let prefix = BinaryKey::bound(&request.prefix);
        crate::port::list::build_page(request, |from, limit| {
            let mut entries = Vec::new();
            if limit == 0 {
                return Ok(entries);
            }
            index.scan(BinaryKey::bound(from).stored(), |number, key, entry| {
                if !key.starts_with(prefix.stored()) {
                    return Ok(false);
                }
                let wrong = |error| self.sectors[number].corruption(0, error);
                entries.push(ListEntry::new(
                    keys.of_stored(key).map_err(wrong)?,
                    entry.size,
                    entry.lsn,
                    system_time(entry.time),
                ));
                Ok(entries.len() < limit)
            })?;
            Ok(entries)
        })
    }
}

/// The record of one version of a blob, kept readable.
#[derive(Debug)]
pub struct HeldRecord {
    inner: Arc<Inner>,
    pub key: BinaryKey,
    /// The sectors that have the version.
    pub holders: SectorSet,
    /// As one of them has it.
    pub entry: Entry,
    /// As each of them has it, the one to read first.
    records: Vec<(usize, Entry, Pin)>,
}

impl HeldRecord {
    /// Reads what is known of the version beside its payload.
    ///
    /// # Errors
    /// `Io`, `Corruption`.
    pub async fn details(&self) -> Result<Details, StorageError> {
        let mut failed = None;
        for (number, entry, _) in &self.records {
            let sector = &self.inner.sectors[*number];
            match read_details(sector, &self.key, entry).await {
                Ok(details) => return Ok(details),
                Err(error) if self.records.len() > 1 => {
                    let (now, version) = (self.inner.now(), entry.lsn);
                    let marks = &self.inner.marks;
                    marks.mark(&self.key, *number, version, &(0..0), &error, now);
                    failed = failed.or(Some(error));
                }
                Err(error) => return Err(error),
            }
        }
        Err(failed.unwrap_or_else(|| StorageError::NotFound {
            key: self.key.clone(),
        }))
    }

    /// The same, as it holds of a copy of the version.
    ///
    /// # Errors
    /// As [`HeldRecord::details`].
    pub async fn details_to_copy(&self) -> Result<Details, StorageError> {
        let details = self.details().await?;
        Ok(Details {
            created: details.created.or(Some(self.entry.time)),
            source: None,
            life: None,
            ..details
        })
    }

    /// The sectors that a blob goes to which shares the payload of the version.
    ///
    /// # Errors
    /// `Corruption` of the index.
    pub fn to_share(&self) -> Result<SectorSet, StorageError> {
        let alike = self.inner.index.read().alike(self.key.stored())?;
        let holders = alike.map_or(self.holders, |found| found.holders);
        Ok(self.inner.to_change(holders))
    }
}

/// Reads what is known of a version beside its payload.
///
/// # Errors
/// `Io`, `Corruption`.
pub async fn read_details(
    sector: &Sector,
    key: &BinaryKey,
    entry: &Entry,
) -> Result<Details, StorageError> {
    if entry.meta_length == 0 && entry.changed.is_none() {
        return Ok(Details::default());
    }
    let (meta, time) = sector
        .read_meta(entry.address, key, entry.record_lsn(), entry.meta_length)
        .await?;
    let details = Details::decode(&meta).map_err(|error| StorageError::Corruption {
        place: sector.place(entry.address),
        key: Some(key.clone()),
        what: error.to_string(),
    })?;
    Ok(match entry.changed {
        // Digests are of the bytes as they were.
        Some(record) if record.lsn != entry.lsn => Details {
            created: details.created.or(Some(time)),
            digests: Vec::new(),
            ..details
        },
        _ => details,
    })
}

impl Snapshot {
    /// What makes up the bytes, as the replica has them that is read first.
    fn pieces(&self) -> &[Piece] {
        let first = self.replicas.first();
        first.map_or(&[], |replica| replica.pieces.as_slice())
    }

    /// Where the replicas have payload of it.
    pub fn payloads(&self) -> impl Iterator<Item = (usize, Payload)> + '_ {
        self.replicas.iter().flat_map(|replica| {
            let payloads = replica.pieces.iter().filter_map(|piece| piece.payload);
            payloads.map(|payload| (replica.number, payload))
        })
    }

    /// What a get answers, of which these are the bytes.
    fn blob(&self, bytes: Bytes) -> Blob {
        Blob {
            bytes,
            range: self.range.clone(),
            size: self.entry.size,
            etag: ETag::of_version(self.entry.lsn),
            version: self.entry.lsn,
        }
    }

    /// Whether some of it was never written.
    fn has_holes(&self) -> bool {
        self.pieces().iter().any(|piece| piece.payload.is_none())
    }

    fn named(&self, error: StorageError) -> StorageError {
        match error {
            StorageError::Corruption { place, what, .. } => StorageError::Corruption {
                place,
                key: Some(self.key.clone()),
                what,
            },
            other => other,
        }
    }

    /// All its bytes.
    pub async fn read_all(self: &Arc<Self>) -> Result<Bytes, StorageError> {
        if let [
            Piece {
                payload: Some(_),
                range,
            },
        ] = self.pieces()
            && range.end - range.start <= READ_MAX
        {
            return self
                .read(self.range.clone(), self.pieces()[0].clone())
                .await;
        }
        if let Some(bytes) = self.read_adjacent().await {
            return Ok(bytes);
        }
        let length = usize::try_from(self.range.end - self.range.start).unwrap_or(usize::MAX);
        let mut whole = Vec::new();
        whole.try_reserve_exact(length).map_err(|_| {
            let error = std::io::ErrorKind::OutOfMemory.into();
            self.inner.sectors[0].io_error("allocate", 0, error)
        })?;
        let mut reader = Reader::new(Arc::clone(self));
        while let Some(read) = reader.next_op() {
            whole.extend_from_slice(&read.await?);
        }
        Ok(whole.into())
    }

    /// All bytes of the first replica by one read, if that is possible: as of a blob whose pieces were put in one frame.
    async fn read_adjacent(&self) -> Option<Bytes> {
        let first = self.replicas.first()?;
        let is_whole = |piece: &Piece, payload: &Payload| piece.range == (0..payload.length);
        let whole = |piece: &Piece| piece.payload.filter(|payload| is_whole(piece, payload));
        if !first.pieces.iter().all(|piece| whole(piece).is_some()) {
            return None;
        }
        let payloads = first.pieces.iter().filter_map(whole);
        // What is wrong is found again, and told, when they are read one by one.
        let bytes = first.sector.read_adjacent(payloads).await?.ok()?;
        self.inner.marks.went_well(first.number);
        Some(bytes)
    }

    /// Reads a piece of the first replica, which has the blob's bytes from `at.start` to `at.end`; if that
    /// can't be, those bytes of another.
    async fn read(self: &Arc<Self>, at: Range<u64>, piece: Piece) -> Result<Bytes, StorageError> {
        let Some(first) = self.replicas.first() else {
            let key = self.key.clone();
            return Err(StorageError::NotFound { key });
        };
        let error = match read_piece(&first.sector, piece).await {
            Ok(bytes) => {
                self.inner.marks.went_well(first.number);
                return Ok(bytes);
            }
            Err(error) => error,
        };
        self.mark(first, &at, &error);
        for replica in &self.replicas[1..] {
            match replica.read(self.range.start, &at).await {
                Ok(bytes) => {
                    self.inner.marks.went_well(replica.number);
                    return Ok(bytes);
                }
                Err(error) => self.mark(replica, &at, &error),
            }
        }
        Err(self.named(error))
    }

    fn mark(&self, replica: &Replica, at: &Range<u64>, error: &StorageError) {
        // Of one alone there is nothing to mend it by.
        if self.replicas.len() > 1 {
            let (number, version, now) = (replica.number, self.entry.lsn, self.inner.now());
            let marks = &self.inner.marks;
            marks.mark(&self.key, number, version, at, error, now);
        }
    }
}

impl Replica {
    /// Some of the bytes that its pieces make up, which begin at `start`.
    async fn read(&self, start: u64, wanted: &Range<u64>) -> Result<Bytes, StorageError> {
        let mut bytes = Vec::new();
        let mut position = start;
        for piece in &self.pieces {
            let end = position + (piece.range.end - piece.range.start);
            let (from, to) = (wanted.start.max(position), wanted.end.min(end));
            if from < to {
                let shift = piece.range.start;
                let part = Piece {
                    payload: piece.payload,
                    range: from - position + shift..to - position + shift,
                };
                bytes.extend_from_slice(&read_piece(&self.sector, part).await?);
            }
            position = end;
        }
        Ok(bytes.into())
    }
}

/// The device reads that bring a piece in, one at a time.
fn cut(piece: &Piece) -> impl Iterator<Item = Piece> + use<> {
    let (payload, range) = (piece.payload, piece.range.clone());
    let step = usize::try_from(STREAM_PIECE).unwrap_or(usize::MAX);
    (range.start..range.end)
        .step_by(step)
        .map(move |start| Piece {
            payload,
            range: start..range.end.min(start + STREAM_PIECE),
        })
}

async fn read_piece(sector: &Sector, piece: Piece) -> Result<Bytes, StorageError> {
    let Piece { payload, range } = piece;
    match payload {
        Some(payload) => sector.read_payload(payload, range).await,
        None => {
            let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
            Ok(vec![0; length].into())
        }
    }
}

/// Streams a snapshot, some reads ahead of its reader.
pub struct Reader {
    snapshot: Arc<Snapshot>,
    to_read: VecDeque<Piece>,
    next_piece: usize,
    /// Where in the blob the next read begins.
    position: u64,
    ahead: VecDeque<StoreOp<Bytes>>,
}

impl Reader {
    pub fn new(snapshot: Arc<Snapshot>) -> Self {
        Self {
            position: snapshot.range.start,
            snapshot,
            to_read: VecDeque::new(),
            next_piece: 0,
            ahead: VecDeque::new(),
        }
    }

    /// The next device read, cut from the snapshot's pieces one at a time, and the bytes it is of.
    fn next_read(&mut self) -> Option<(Range<u64>, Piece)> {
        while self.to_read.is_empty() {
            let piece = self.snapshot.pieces().get(self.next_piece)?;
            self.next_piece += 1;
            self.to_read.extend(cut(piece));
        }
        let piece = self.to_read.pop_front()?;
        let start = self.position;
        self.position += piece.range.end - piece.range.start;
        Some((start..self.position, piece))
    }

    /// The next of the reads under way.
    fn next_op(&mut self) -> Option<StoreOp<Bytes>> {
        while self.ahead.len() < READ_AHEAD
            && let Some((at, piece)) = self.next_read()
        {
            let snapshot = Arc::clone(&self.snapshot);
            let read = Op::start(async move { snapshot.read(at, piece).await });
            self.ahead.push_back(read);
        }
        self.ahead.pop_front()
    }
}

impl ReadBlob for Reader {
    fn next(&mut self) -> StoreOp<Option<Bytes>> {
        match self.next_op() {
            Some(read) => Op::start(async move { read.await.map(Some) }),
            None => Op::ready(Ok(None)),
        }
    }
}

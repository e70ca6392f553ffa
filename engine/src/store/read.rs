//! Reading blobs: a snapshot under the index's lock, then verified device reads without it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use graviton_format::key::SPACE_BLOB;
use graviton_format::record::ExtentRef;

use super::index::{Entry, Found, Index, Piece};
use super::inner::Inner;
use super::record::{Details, system_time};
use super::set::SectorSet;
use crate::log::Sector;
use crate::log::sector::{Pin, READ_MAX};
use crate::port::blob::resolve_range;
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
    pub sector: Arc<Sector>,
    pub key: BinaryKey,
    pub entry: Entry,
    /// The bytes asked for.
    pub range: Range<u64>,
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
        &self,
        key: &BinaryKey,
        options: &GetOptions,
    ) -> Result<Snapshot, StorageError> {
        self.check_open()?;
        let index = self.index.read();
        let Some(found) = index.lookup(key.stored())? else {
            return Err(StorageError::NotFound { key: key.clone() });
        };
        let (number, entry) = (found.number, found.entry);
        check(key, options.precondition, entry.lsn)?;
        let range = resolve_range(key, options.range.as_ref(), entry.size)?;
        let snapshot = self.pinned(&index, number, key, entry, range)?;
        if options.holes == Holes::Refuse && snapshot.has_holes() {
            check_written(key, &snapshot.entry, std::slice::from_ref(&snapshot.range))?;
        }
        Ok(snapshot)
    }

    /// Takes hold of a range of a version.
    pub fn pinned(
        &self,
        index: &Index,
        number: usize,
        key: &BinaryKey,
        entry: Entry,
        range: Range<u64>,
    ) -> Result<Snapshot, StorageError> {
        let pieces = index.sectors[number].pieces(key, &entry, &range)?;
        Ok(self.pin(number, key, entry, range, pieces))
    }

    /// The same, of a range that these pieces make up.
    pub fn pinned_pieces(
        &self,
        index: &Index,
        number: usize,
        key: &BinaryKey,
        entry: &Entry,
        range: Span,
        pieces: &[ExtentRef],
    ) -> Result<Snapshot, StorageError> {
        let sector = &index.sectors[number];
        let range = Range::from(range);
        let pieces = match entry.extents {
            None => sector.pieces(key, entry, &range)?,
            Some(_) => {
                let piece = |piece| sector.piece(key, entry, piece, 0..u64::MAX);
                pieces.iter().map(piece).collect::<Result<_, _>>()?
            }
        };
        Ok(self.pin(number, key, entry.clone(), range, pieces))
    }

    fn pin(
        &self,
        number: usize,
        key: &BinaryKey,
        entry: Entry,
        range: Range<u64>,
        pieces: Vec<Piece>,
    ) -> Snapshot {
        let sector = Arc::clone(&self.sectors[number]);
        let payloads = pieces.iter().filter_map(|piece| piece.payload);
        let pin = sector.pin(payloads.map(|payload| payload.address));
        Snapshot {
            sector,
            key: key.clone(),
            entry,
            range,
            pieces,
            _pin: pin,
        }
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
        &self,
        key: &BinaryKey,
        ranges: &[Span],
        options: &GetRangesOptions,
    ) -> Result<Snapshots, StorageError> {
        self.check_open()?;
        let index = self.index.read();
        let Some(found) = index.lookup(key.stored())? else {
            return Err(StorageError::NotFound { key: key.clone() });
        };
        let (number, entry) = (found.number, found.entry);
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
            let part = self.pinned(&index, number, key, entry.clone(), range)?;
            parts.push(Arc::new(part));
        }
        // A hole between two ranges is none that was asked for.
        if options.holes == Holes::Refuse && parts.iter().any(|part| part.has_holes()) {
            check_written(key, &entry, &ranges)?;
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
        let snapshot = match self.snapshot(key, options) {
            Ok(snapshot) => snapshot,
            Err(error) => return Op::fail(error),
        };
        let length = snapshot.range.end - snapshot.range.start;
        if let Err(error) = check_total(length) {
            return Op::fail(error);
        }
        Op::start(async move {
            let bytes = snapshot.read_all().await?;
            Ok(Blob {
                bytes,
                range: snapshot.range.clone(),
                size: snapshot.entry.size,
                etag: ETag::of_version(snapshot.entry.lsn),
                version: snapshot.entry.lsn,
            })
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
    pub fn hold(&self, key: &BinaryKey) -> Result<HeldRecord, StorageError> {
        self.hold_in(&self.index.read(), key)
    }

    /// The same, where the index is at hand.
    ///
    /// # Errors
    /// As [`Inner::hold`].
    pub fn hold_in(&self, index: &Index, key: &BinaryKey) -> Result<HeldRecord, StorageError> {
        let Some(found) = index.lookup(key.stored())? else {
            return Err(StorageError::NotFound { key: key.clone() });
        };
        let Found {
            holders,
            number,
            entry,
        } = found;
        let sector = Arc::clone(&self.sectors[number]);
        Ok(HeldRecord {
            holders,
            key: key.clone(),
            _pin: sector.pin(std::iter::once(entry.address)),
            sector,
            entry,
        })
    }

    /// See [`BlobStore::stat`](crate::port::BlobStore::stat).
    pub fn stat(&self, key: &BinaryKey) -> StoreOp<BlobInfo> {
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
                key,
            })
        })
    }

    /// See [`BlobStore::list`](crate::port::BlobStore::list).
    pub fn list(&self, request: &ListRequest) -> Result<ListPage, StorageError> {
        self.check_open()?;
        let index = self.index.read();
        crate::port::list::build_page(request, |from, limit| {
            let mut entries = Vec::new();
            if limit == 0 {
                return Ok(entries);
            }
            index.scan(BinaryKey::bound(from).stored(), |number, key, entry| {
                if key.first() != Some(&SPACE_BLOB) {
                    return Ok(false);
                }
                let wrong = |error| self.sectors[number].corruption(0, error);
                entries.push(ListEntry::new(
                    BinaryKey::of_stored(key).map_err(wrong)?,
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
    /// The sectors that have the version.
    pub holders: SectorSet,
    /// The one whose record it is.
    pub sector: Arc<Sector>,
    pub key: BinaryKey,
    pub entry: Entry,
    _pin: Pin,
}

impl HeldRecord {
    /// Reads what is known of the version beside its payload.
    ///
    /// # Errors
    /// `Io`, `Corruption`.
    pub async fn details(&self) -> Result<Details, StorageError> {
        read_details(&self.sector, &self.key, &self.entry).await
    }

    /// The sectors that a blob goes to which shares the payload of the version.
    ///
    /// # Errors
    /// `Corruption` of the index.
    pub fn to_share(&self, inner: &Inner) -> Result<SectorSet, StorageError> {
        let alike = inner.index.read().alike(self.key.stored())?;
        let holders = alike.map_or(self.holders, |found| found.holders);
        Ok(inner.to_change(holders))
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
    /// Whether some of it was never written.
    fn has_holes(&self) -> bool {
        self.pieces.iter().any(|piece| piece.payload.is_none())
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

    /// Device reads for the snapshot's bytes.
    fn reads(&self) -> impl Iterator<Item = Piece> + '_ {
        self.pieces.iter().flat_map(cut)
    }

    /// All its bytes.
    pub async fn read_all(&self) -> Result<Bytes, StorageError> {
        if let [
            Piece {
                payload: Some(payload),
                range,
            },
        ] = self.pieces.as_slice()
            && range.end - range.start <= READ_MAX
        {
            return self
                .sector
                .read_payload(*payload, range.clone())
                .await
                .map_err(|error| self.named(error));
        }
        let length = usize::try_from(self.range.end - self.range.start).unwrap_or(usize::MAX);
        let mut whole = Vec::new();
        whole.try_reserve_exact(length).map_err(|_| {
            self.sector
                .io_error("allocate", 0, std::io::ErrorKind::OutOfMemory.into())
        })?;
        let mut ahead: VecDeque<StoreOp<Bytes>> = VecDeque::new();
        let mut reads = self.reads();
        loop {
            while ahead.len() < READ_AHEAD
                && let Some(piece) = reads.next()
            {
                ahead.push_back(start_read(&self.sector, piece));
            }
            let Some(read) = ahead.pop_front() else {
                return Ok(whole.into());
            };
            whole.extend_from_slice(&read.await.map_err(|error| self.named(error))?);
        }
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

fn start_read(sector: &Arc<Sector>, Piece { payload, range }: Piece) -> StoreOp<Bytes> {
    let Some(payload) = payload else {
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        return Op::ready(Ok(vec![0; length].into()));
    };
    let sector = Arc::clone(sector);
    Op::start(async move { sector.read_payload(payload, range).await })
}

/// Streams a snapshot, some reads ahead of its reader.
pub struct Reader {
    snapshot: Arc<Snapshot>,
    to_read: VecDeque<Piece>,
    next_piece: usize,
    ahead: VecDeque<StoreOp<Bytes>>,
}

impl Reader {
    pub fn new(snapshot: Arc<Snapshot>) -> Self {
        Self {
            snapshot,
            to_read: VecDeque::new(),
            next_piece: 0,
            ahead: VecDeque::new(),
        }
    }

    /// The next device read, cut from the snapshot's pieces one at a time.
    fn next_read(&mut self) -> Option<Piece> {
        while self.to_read.is_empty() {
            let piece = self.snapshot.pieces.get(self.next_piece)?;
            self.next_piece += 1;
            self.to_read.extend(cut(piece));
        }
        self.to_read.pop_front()
    }
}

impl ReadBlob for Reader {
    fn next(&mut self) -> StoreOp<Option<Bytes>> {
        while self.ahead.len() < READ_AHEAD {
            let Some(piece) = self.next_read() else {
                break;
            };
            self.ahead
                .push_back(start_read(&self.snapshot.sector, piece));
        }
        let Some(read) = self.ahead.pop_front() else {
            return Op::ready(Ok(None));
        };
        let snapshot = Arc::clone(&self.snapshot);
        Op::start(async move { read.await.map(Some).map_err(|error| snapshot.named(error)) })
    }
}

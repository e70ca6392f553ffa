//! A second reader: recovers a sector that lies in memory by the rules of `SPEC.md`, with the
//! decoders and nothing else. It is slow and plain, and the engine's tests do not use it; it shows
//! that the rules suffice, and what they come to for a damaged sector.

use std::collections::BTreeMap;

use graviton_format::checkpoint::{CheckpointRoot, stored_image_length, verify_image_pages};
use graviton_format::checksum::gather_chunks;
use graviton_format::frame::{FrameHeader, records_checksum};
use graviton_format::geometry::{AREA_SIZE, ROOT_SLOT_SIZE};
use graviton_format::image::{Image, ImageValue};
use graviton_format::key::StoredKey;
use graviton_format::record::{
    ExtentRef, FLAG_MOVED, FLAG_REPLICA, Manifest, RecordHeader, RecordKind, RecordView,
};
use graviton_format::segment::{KIND_CHECKPOINT, KIND_LOG, NONE, SegmentHeader};
use graviton_format::superblock::Superblock;
use graviton_format::{FormatError, Geometry, Identity, Structure};

/// Why a sector is not opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Neither superblock copy is good; the error of the front one.
    Superblock(FormatError),
    /// The file is shorter than its superblock says.
    Truncated,
    /// No root with a good image.
    NoCheckpoint,
    /// The log breaks off at `address`, yet more is known to have been durable.
    Corruption {
        address: u64,
        last: u64,
        durable: u64,
    },
    /// The record at this address changes a version that is not there, or can't be read.
    Change(u64),
}

/// The newest version of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    pub lsn: u64,
    /// The record's address and, if they are not those of its payload, the pieces; `None` for a
    /// tombstone.
    pub place: Option<(u64, Option<Vec<ExtentRef>>)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    pub superblock: Superblock,
    /// Sequence of the checkpoint that recovery began with.
    pub checkpoint: u64,
    /// By stored key.
    pub index: BTreeMap<Vec<u8>, Version>,
    /// Addresses of records whose payload pieces may name, by LSN.
    pub payloads: BTreeMap<u64, u64>,
    /// Where the next frame goes.
    pub tail: (u32, u64),
    pub last_lsn: u64,
    pub frames: usize,
    /// Addresses of acknowledged frames with bad payload.
    pub damaged: Vec<u64>,
}

fn at(sector: &[u8], address: u64, length: u64) -> &[u8] {
    let start = usize::try_from(address).unwrap_or(usize::MAX);
    let end = address
        .checked_add(length)
        .and_then(|end| usize::try_from(end).ok())
        .unwrap_or(usize::MAX);
    sector.get(start..end.min(sector.len())).unwrap_or(&[])
}

/// [F-13]: of the good copies the one with the highest sequence, of equal ones the front one.
fn superblock(sector: &[u8]) -> Result<Superblock, Failure> {
    let decode = |address| Superblock::decode(at(sector, address, 512), address);
    let size = sector.len() as u64;
    let front = decode(0);
    let places: Vec<u64> = match &front {
        Ok(copy) => {
            let measures = copy.geometry();
            let grown = measures.fitted(size).map(|grown| grown.back_area());
            [Some(measures.back_area()), grown]
                .into_iter()
                .flatten()
                .collect()
        }
        Err(_) => (16..31)
            .filter_map(|bits| {
                let room = size.checked_sub(2 * AREA_SIZE)?;
                Some(AREA_SIZE + (room >> bits << bits))
            })
            .collect(),
    };
    let mut newest: Option<Superblock> = front.as_ref().ok().copied();
    for place in places {
        let Ok(copy) = decode(place) else { continue };
        let is_there = copy.geometry().back_area() == place;
        let is_newer = newest.as_ref().is_none_or(|newest| {
            copy.sequence > newest.sequence && copy.identity() == newest.identity()
        });
        if is_there && is_newer {
            newest = Some(copy);
        }
    }
    let newest = match (newest, front) {
        (Some(newest), _) => newest,
        (None, Err(error)) => return Err(Failure::Superblock(error)),
        (None, Ok(front)) => front,
    };
    if (sector.len() as u64) < newest.sector_size.get() {
        return Err(Failure::Truncated);
    }
    Ok(newest)
}

/// The state of a segment that will not be written before it is reclaimed.
const SEALED: u8 = 2;

struct Reader<'a> {
    sector: &'a [u8],
    identity: Identity,
    geometry: Geometry,
    headers: Vec<Result<SegmentHeader, FormatError>>,
}

struct State {
    recovered: Recovered,
    /// Where the log ended at the checkpoint: segment and generation.
    root_tail: (u32, u64),
    /// Segments that the checkpoint lists as sealed.
    sealed: Vec<u32>,
    /// Segment, offset, generation and last checksum of the log's end; no segment before the log.
    segment: u32,
    offset: u64,
    generation: u64,
    checksum: u32,
}

impl<'a> Reader<'a> {
    fn roots(&self) -> Vec<(CheckpointRoot, Vec<u32>)> {
        let mut roots: Vec<_> = [0, 1]
            .into_iter()
            .flat_map(|slot| self.geometry.roots(slot))
            .filter_map(|address| {
                let bytes = at(self.sector, address, ROOT_SLOT_SIZE as u64);
                CheckpointRoot::decode(bytes, &self.identity, &self.geometry, address).ok()
            })
            .collect();
        roots.sort_by_key(|(root, _)| std::cmp::Reverse(root.sequence.get()));
        roots
    }

    fn image(&self, root: &CheckpointRoot, segments: &[u32]) -> Option<Image<Vec<u8>>> {
        let mut stored = Vec::new();
        for (part, &segment) in (0..).zip(segments) {
            let header = self.headers[segment as usize].as_ref().ok()?;
            let belongs = header.kind == KIND_CHECKPOINT
                && header.previous_segment == part
                && header.previous_generation == root.sequence;
            if !belongs {
                return None;
            }
            let address =
                self.geometry.segment_offset(segment) + u64::from(self.geometry.block_size);
            let room = self.geometry.image_bytes_per_segment();
            let left = stored_image_length(root.image_length.get())? - stored.len() as u64;
            stored.extend_from_slice(at(self.sector, address, room.min(left)));
        }
        let bytes = verify_image_pages(&stored, root).ok()?.to_vec();
        let image = Image::open(bytes).ok()?;
        image.check(&self.geometry).ok()?;
        (image.header().length == root.image_length).then_some(image)
    }

    fn seed(&self, root: &CheckpointRoot, image: &Image<Vec<u8>>) -> Option<Recovered> {
        let (superblock, tail) = (superblock(self.sector).ok()?, root.tail_segment.get());
        let mut recovered = Recovered {
            superblock,
            checkpoint: root.sequence.get(),
            index: BTreeMap::new(),
            payloads: BTreeMap::new(),
            tail: (tail, root.tail_offset.get().into()),
            last_lsn: root.lsn.get(),
            frames: 0,
            damaged: Vec::new(),
        };
        for extent in image.extents() {
            let record = extent.address.get() - u64::from(extent.head_length.get());
            recovered.payloads.insert(extent.lsn.get(), record);
        }
        let mut cursor = image.seek(b"").ok()?;
        while let Some(entry) = cursor.next().ok()? {
            let place = match entry.value {
                ImageValue::Tombstone => None,
                ImageValue::Blob {
                    address, extents, ..
                } => {
                    self.geometry.segment_of(address)?;
                    // A blob's own record holds payload that pieces may name [F-53].
                    if extents.is_none() {
                        recovered.payloads.insert(entry.lsn, address);
                    }
                    Some((address, extents))
                }
            };
            let version = Version {
                lsn: entry.lsn,
                place,
            };
            recovered.index.insert(cursor.key().to_vec(), version);
        }
        Some(recovered)
    }

    /// The highest LSN that anything good beyond the log's end says was durable [F-51].
    fn evidence(&self, state: &State, newest_root: u64) -> u64 {
        let mut durable = newest_root;
        let block = u64::from(self.geometry.block_size);
        for segment in 0..self.geometry.segment_count {
            let own = segment == state.segment;
            let from = match &self.headers[segment as usize] {
                _ if own => state.offset,
                // Old, or never used.
                Ok(header) if header.generation <= state.generation => continue,
                // Never used, unless a frame behind the zeros says otherwise.
                Err(FormatError::Magic { found: 0, .. }) => {
                    let address = self.geometry.segment_offset(segment) + block;
                    if self.frame(address).is_err() {
                        continue;
                    }
                    block
                }
                Ok(header) => {
                    durable = durable.max(header.durable_lsn.get());
                    if header.kind != KIND_LOG {
                        continue;
                    }
                    block
                }
                Err(_) => block,
            };
            let is_sealed = state.sealed.contains(&segment);
            let headless = match &self.headers[segment as usize] {
                Ok(_) | Err(FormatError::Magic { found: 0, .. }) => false,
                Err(_) => segment != state.root_tail.0 && !is_sealed,
            };
            for offset in (from..self.geometry.segment_size).step_by(block as usize) {
                let address = self.geometry.segment_offset(segment) + offset;
                let Ok(frame) = self.frame(address) else {
                    continue;
                };
                let newer = frame.generation > state.generation;
                if newer && !own || own && frame.generation == state.generation {
                    durable = durable.max(frame.durable_lsn.get());
                }
                if headless && frame.generation > state.root_tail.1 {
                    durable = durable.max(frame.lsn.get());
                }
            }
        }
        durable
    }

    fn frame(&self, address: u64) -> Result<FrameHeader, FormatError> {
        let bytes = at(self.sector, address, FrameHeader::SIZE as u64);
        FrameHeader::decode(bytes, &self.identity, &self.geometry, address)
    }

    /// The records of a frame, if they are as its header says [F-23], and whether payload is good.
    fn records(
        &self,
        address: u64,
        frame: &FrameHeader,
        last: u64,
    ) -> Option<(Vec<(u64, RecordView<'a>)>, bool)> {
        let bytes = at(self.sector, address, frame.length.get().into());
        let used = frame.used.get() as usize;
        let (mut offset, mut records, mut payload_good) = (FrameHeader::SIZE, Vec::new(), true);
        while offset < used {
            let place = address + offset as u64;
            let rest = bytes.get(offset..used)?;
            let view = RecordView::decode(rest, &self.identity, &self.geometry, place).ok()?;
            let record = rest.get(..usize::try_from(view.length()).ok()?)?;
            // [F-29]: only a copy is older than its frame.
            let lsn = view.header.lsn.get();
            let moved = view.header.flags & (FLAG_MOVED | FLAG_REPLICA) != 0;
            if lsn > frame.lsn.get() || (!moved && lsn <= last) {
                return None;
            }
            let payload = view.payload_offset();
            let mut chunks = record[payload..].to_vec();
            let mask = self.identity.chunk_mask(lsn);
            payload_good &= gather_chunks(&mut chunks, mask, place + payload as u64).is_ok();
            offset += record.len();
            records.push((place, view));
        }
        let sum = records_checksum(records.iter().map(|(_, view)| view.header.checksum.get()));
        let whole = records.len() == frame.records.get() as usize
            && sum == frame.records_checksum.get()
            && bytes.get(used..)?.iter().all(|&byte| byte == 0);
        whole.then_some((records, payload_good))
    }

    /// The pieces that a range or a splice puts.
    fn pieces(&self, place: u64, view: &RecordView<'_>) -> Result<Vec<ExtentRef>, Failure> {
        let length = view.header.payload_length;
        if view.kind == RecordKind::Range {
            return Ok(vec![ExtentRef {
                lsn: view.header.lsn,
                offset: 0.into(),
                length,
            }]);
        }
        let start = place + view.payload_offset() as u64;
        let mut payload = at(self.sector, start, view.stored_payload()).to_vec();
        let mask = self.identity.chunk_mask(view.header.lsn.get());
        let length =
            gather_chunks(&mut payload, mask, start).map_err(|_| Failure::Change(place))?;
        let manifest = Manifest::decode(&payload[..length]);
        manifest
            .map(|manifest| manifest.extents)
            .map_err(|_| Failure::Change(place))
    }

    /// Replays frames from the state's end as long as they continue the log [F-22].
    fn replay(&self, state: &mut State, newest_root: u64) -> Result<(), Failure> {
        while state.offset < self.geometry.segment_size {
            let address = self.geometry.segment_offset(state.segment) + state.offset;
            let last = state.recovered.last_lsn;
            let Ok(frame) = self.frame(address) else {
                return Ok(());
            };
            if !frame.continues(state.generation, state.checksum, last) {
                return Ok(());
            }
            let Some((records, payload_good)) = self.records(address, &frame, last) else {
                return Ok(());
            };
            if !payload_good {
                if self.evidence(state, newest_root) < frame.lsn.get() {
                    return Ok(());
                }
                state.recovered.damaged.push(address);
            }
            for (place, view) in &records {
                if view.kind.changes() {
                    let pieces = self.pieces(*place, view)?;
                    change(&mut state.recovered, self.sector, *place, view, &pieces)?;
                } else {
                    apply(&mut state.recovered, *place, view);
                }
            }
            state.recovered.last_lsn = frame.lsn.get();
            state.recovered.frames += 1;
            state.offset += u64::from(frame.length.get());
            state.checksum = frame.checksum.get();
        }
        Ok(())
    }

    /// The log segment that goes on where the log ends [F-50].
    fn next_segment(&self, state: &State) -> Option<&SegmentHeader> {
        let links = |header: &&SegmentHeader| {
            let from_none = state.segment == NONE && header.previous_segment == NONE;
            let from_tail = header.previous_segment == state.segment
                && header.previous_generation == state.generation
                && u64::from(header.previous_end.get()) == state.offset
                && header.previous_lsn == state.recovered.last_lsn
                && header.previous_checksum == state.checksum;
            header.kind == KIND_LOG
                && header.generation > state.generation
                && (from_none || state.segment != NONE && from_tail)
        };
        self.headers
            .iter()
            .flatten()
            .filter(links)
            .min_by_key(|header| header.generation.get())
    }
}

/// [F-59]: a version made out of the one that is current, byte by byte. [F-63]: or its bytes elsewhere.
fn change(
    recovered: &mut Recovered,
    sector: &[u8],
    place: u64,
    view: &RecordView<'_>,
    new: &[ExtentRef],
) -> Result<(), Failure> {
    let (lsn, wrong) = (view.header.lsn.get(), Failure::Change(place));
    if view.kind == RecordKind::Range {
        recovered.payloads.insert(lsn, place);
    }
    let Some(change) = view.change else {
        return Err(wrong);
    };
    let Some(Version {
        lsn: base,
        place: Some((record, pieces)),
    }) = recovered.index.get(view.key).cloned()
    else {
        return Err(wrong);
    };
    let is_merge = view.kind == RecordKind::Merge;
    if base >= lsn || (is_merge && base != change.base) {
        return Ok(());
    }
    let old = pieces.or_else(|| recovered.pieces_of(sector, record));
    let Some(old) = old.filter(|_| base == change.base) else {
        return Err(wrong);
    };
    // Where each byte lies: LSN and offset.
    let bytes = |pieces: &[ExtentRef]| -> Vec<(u64, u32)> {
        let of = |piece: &ExtentRef| {
            let (lsn, from) = (piece.lsn.get(), piece.offset.get());
            (0..piece.length.get()).map(move |at| (lsn, if lsn == 0 { 0 } else { from + at }))
        };
        pieces.iter().flat_map(of).collect()
    };
    let (mut all, new) = (bytes(&old), bytes(new));
    let start = change.start as usize;
    all.resize(all.len().max(start + new.len()), (0, 0));
    all[start..start + new.len()].copy_from_slice(&new);
    if all.len() as u64 != change.size {
        return Err(wrong);
    }
    let single = |&(lsn, offset): &(u64, u32)| ExtentRef {
        lsn: lsn.into(),
        offset: offset.into(),
        length: 1.into(),
    };
    let pieces = all.iter().map(single).collect();
    let version = Version {
        lsn: if is_merge { base } else { lsn },
        place: Some((record, Some(pieces))),
    };
    recovered.index.insert(view.key.to_vec(), version);
    Ok(())
}

/// [F-52]: the highest LSN of a key wins; of equal ones the later frame.
fn apply(recovered: &mut Recovered, place: u64, view: &RecordView<'_>) {
    let lsn = view.header.lsn.get();
    if matches!(view.kind, RecordKind::Extent | RecordKind::Blob) {
        recovered.payloads.insert(lsn, place);
    }
    let version = match view.kind {
        RecordKind::Extent => return,
        RecordKind::Tombstone => None,
        RecordKind::Blob | RecordKind::Manifest => Some((place, None)),
        RecordKind::Range | RecordKind::Splice | RecordKind::Merge => {
            unreachable!("they change what is there")
        }
    };
    let newer = recovered
        .index
        .get(view.key)
        .is_none_or(|old| old.lsn <= lsn);
    if newer {
        let version = Version {
            lsn,
            place: version,
        };
        recovered.index.insert(view.key.to_vec(), version);
    }
}

/// Recovers a sector.
pub fn recover(sector: &[u8]) -> Result<Recovered, Failure> {
    let superblock = superblock(sector)?;
    let (identity, geometry) = (superblock.identity(), superblock.geometry());
    let headers = (0..geometry.segment_count)
        .map(|segment| {
            let address = geometry.segment_offset(segment);
            // [F-67]: as good as zeros.
            let copy = Superblock::decode(at(sector, address, 512), address);
            if copy.is_ok_and(|copy| copy.identity() == identity) {
                return SegmentHeader::decode(&[0; 128], &identity, &geometry, segment);
            }
            SegmentHeader::decode(at(sector, address, 128), &identity, &geometry, segment)
        })
        .collect();
    let reader = Reader {
        sector,
        identity,
        geometry,
        headers,
    };
    let roots = reader.roots();
    // [F-37]: the newest root whose image is good.
    let (recovered, sealed, root) = roots
        .iter()
        .find_map(|(root, segments)| {
            let image = reader.image(root, segments)?;
            let table = (0..).zip(image.segments());
            let sealed = table.filter(|(_, entry)| entry.state == SEALED);
            let sealed = sealed.map(|(segment, _)| segment).collect();
            Some((reader.seed(root, &image)?, sealed, root))
        })
        .ok_or(Failure::NoCheckpoint)?;
    let newest_root = roots.first().map_or(0, |(root, _)| root.lsn.get());
    let generation = if root.tail_segment == NONE {
        0
    } else {
        root.tail_generation.get()
    };
    let mut state = State {
        root_tail: (root.tail_segment.get(), generation),
        sealed,
        segment: root.tail_segment.get(),
        offset: root.tail_offset.get().into(),
        generation,
        checksum: root.tail_checksum.get(),
        recovered,
    };
    if state.segment != NONE {
        reader.replay(&mut state, newest_root)?;
    }
    // A durable header is told of by the first frame [F-58].
    let mut header_lsn = 0;
    while let Some(header) = reader.next_segment(&state) {
        header_lsn = header.first_lsn.get();
        state.segment = header.segment.get();
        state.offset = geometry.block_size.into();
        state.generation = header.generation.get();
        state.checksum = header.checksum.get();
        reader.replay(&mut state, newest_root)?;
    }
    let durable = reader.evidence(&state, newest_root);
    let last = state.recovered.last_lsn;
    if durable > last.max(header_lsn) {
        return Err(Failure::Corruption {
            address: if state.segment == NONE {
                0
            } else {
                geometry.segment_offset(state.segment) + state.offset
            },
            last,
            durable,
        });
    }
    state.recovered.tail = (state.segment, state.offset);
    Ok(state.recovered)
}

impl Recovered {
    fn record(&self, sector: &[u8], address: u64) -> Result<(RecordHeader, Vec<u8>), FormatError> {
        let (identity, geometry) = (self.superblock.identity(), self.superblock.geometry());
        let rest = at(sector, address, geometry.segment_size);
        let view = RecordView::decode(rest, &identity, &geometry, address)?;
        let start = view.payload_offset();
        let stored = at(sector, address + start as u64, view.stored_payload());
        let mut payload = stored.to_vec();
        let mask = identity.chunk_mask(view.header.lsn.get());
        let length = gather_chunks(&mut payload, mask, address + start as u64)
            .map_err(|(_, error)| error)?;
        payload.truncate(length);
        Ok((view.header, payload))
    }

    /// The bytes of what has this stored key, every one of them verified; `None` if there is none.
    pub fn read(&self, sector: &[u8], key: &[u8]) -> Result<Option<Vec<u8>>, String> {
        let Some((address, pieces)) = self
            .index
            .get(key)
            .and_then(|version| version.place.as_ref())
        else {
            return Ok(None);
        };
        let (header, payload) = self
            .record(sector, *address)
            .map_err(|error| error.to_string())?;
        let is_changed = pieces.is_some() && header.lsn <= self.index[key].lsn;
        if header.lsn != self.index[key].lsn && !is_changed {
            return Err("a record of another version".to_owned());
        }
        if header.kind == RecordKind::Blob as u8 && !is_changed {
            return Ok(Some(payload));
        }
        let pieces = match pieces {
            Some(pieces) if is_changed => pieces.clone(),
            _ => {
                Manifest::decode(&payload)
                    .map_err(|error| error.to_string())?
                    .extents
            }
        };
        let mut blob = Vec::new();
        for piece in &pieces {
            if piece.is_hole() {
                blob.resize(blob.len() + piece.length.get() as usize, 0);
                continue;
            }
            // [F-53]: the piece's record is found through its LSN, wherever it lies now.
            let place = self
                .payloads
                .get(&piece.lsn.get())
                .ok_or("a piece of an unknown extent")?;
            let (header, payload) = self
                .record(sector, *place)
                .map_err(|error| error.to_string())?;
            let start = piece.offset.get() as usize;
            let bytes = payload
                .get(start..start + piece.length.get() as usize)
                .filter(|_| header.lsn == piece.lsn)
                .ok_or("a piece past the end of its extent")?;
            blob.extend_from_slice(bytes);
        }
        Ok(Some(blob))
    }

    /// The pieces of the blob whose record this is.
    fn pieces_of(&self, sector: &[u8], address: u64) -> Option<Vec<ExtentRef>> {
        let (header, payload) = self.record(sector, address).ok()?;
        if header.kind != RecordKind::Blob as u8 {
            return Some(Manifest::decode(&payload).ok()?.extents);
        }
        Some(vec![ExtentRef {
            lsn: header.lsn,
            offset: 0.into(),
            length: header.payload_length,
        }])
    }

    /// Every blob there is, by its key.
    pub fn blobs(&self, sector: &[u8]) -> BTreeMap<Vec<u8>, Result<Vec<u8>, String>> {
        let blob = |stored: &Vec<u8>| match StoredKey::decode(stored) {
            Ok(StoredKey::Blob(key)) => {
                Some((key.to_vec(), self.read(sector, stored).transpose()?))
            }
            _ => None,
        };
        self.index.keys().filter_map(blob).collect()
    }
}

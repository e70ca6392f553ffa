//! A small sector with fixed ids and times, written by the encoders: every structure occurs in it.

use std::collections::BTreeMap;

use graviton_format::checkpoint::{self, CheckpointRoot, seal_image};
use graviton_format::checksum::{Identity, write_chunks};
use graviton_format::frame::{self, FrameHeader, records_checksum};
use graviton_format::image::{ExtentEntry, ImageBuilder, ImageEntry, ImageValue, SegmentEntry};
use graviton_format::key::StoredKey;
use graviton_format::meta::{self, MetaItem};
use graviton_format::record::{
    Change, ExtentRef, FLAG_MOVED, Manifest, RecordKind, record_length, seal_record,
    write_record_head,
};
use graviton_format::segment::{self, KIND_CHECKPOINT, KIND_LOG, NONE, SegmentHeader};
use graviton_format::store_file::StoreFileCopy;
use graviton_format::superblock::Superblock;
use graviton_format::{Geometry, Structure, ranges};
use zerocopy::IntoBytes;

pub const IDENTITY: Identity = Identity {
    store_id: *b"\x8f\x1c\x50\x21\xd9\xe4\x4b\x07\xa6\x33\x9e\xf0\x12\x7d\x5a\xc8",
    sector_id: 0x2b7e_1516_28ae_d2a6,
};
pub const GEOMETRY: Geometry = Geometry {
    block_size: 512,
    segment_size: 64 * 1024,
    segment_count: 16,
};
/// 2026-01-01 00:00:00 UTC, in milliseconds since 1970.
pub const CREATED: u64 = 1_767_225_600_000;

/// The store file, of which the sector holds copies.
pub const STORE_FILE: &str = "\
format_version = 1
store_id = \"8f1c5021d9e44b07a6339ef0127d5ac8\"
revision = 1
replicas = 1

[[sector]]
number = 0
file = \"sector.bin\"
id = \"2b7e151628aed2a6\"
";

/// A blob's key as it is stored.
pub fn stored(key: &[u8]) -> Vec<u8> {
    StoredKey::Blob(key).encode()
}

/// A record to be written. With `lsn`, it is a moved one.
#[derive(Clone)]
pub struct Draft {
    pub kind: RecordKind,
    pub key: &'static [u8],
    pub meta: Vec<u8>,
    pub payload: Vec<u8>,
    pub moved: Option<u64>,
}

pub fn draft(kind: RecordKind, key: &'static [u8], payload: impl Into<Vec<u8>>) -> Draft {
    Draft {
        kind,
        key,
        meta: Vec::new(),
        payload: payload.into(),
        moved: None,
    }
}

/// A record of `kind` that changes version `base` from `start` on; `size` bytes afterwards.
pub fn change(
    kind: RecordKind,
    key: &'static [u8],
    (base, start, size): (u64, u64, u64),
    payload: impl Into<Vec<u8>>,
) -> Draft {
    let mut draft = draft(kind, key, payload);
    let change = Change { base, start, size };
    meta::put(&mut draft.meta, MetaItem::Change(change));
    draft
}

/// `length` bytes that differ from one another and from `seed` to seed.
pub fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length)
        .map(|at| ((at * 7 + seed * 31) % 251) as u8 + 1)
        .collect()
}

pub fn piece(lsn: u64, offset: u32, length: u32) -> ExtentRef {
    ExtentRef {
        lsn: lsn.into(),
        offset: offset.into(),
        length: length.into(),
    }
}

pub fn manifest(pieces: &[ExtentRef]) -> Vec<u8> {
    let size = pieces
        .iter()
        .map(|piece| u64::from(piece.length.get()))
        .sum();
    Manifest {
        size,
        extents: pieces.to_vec(),
    }
    .encode()
}

/// Where and under which LSN a record was written.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    pub address: u64,
    pub length: u64,
    pub lsn: u64,
}

struct Tail {
    segment: u32,
    offset: u64,
    generation: u64,
    checksum: u32,
}

/// Writes a sector, one structure after the other.
pub struct Writer {
    pub bytes: Vec<u8>,
    /// The log's segments, in order.
    pub log: Vec<u32>,
    /// Addresses and lengths of the frames, in order.
    pub frames: Vec<(u64, u32)>,
    pub lsn: u64,
    pub time: u64,
    /// What a frame says is known durable: the frame before, unless a test holds it back.
    pub durable: u64,
    generation: u64,
    tail: Option<Tail>,
    index: BTreeMap<Vec<u8>, ImageEntry>,
    extents: BTreeMap<u64, ExtentEntry>,
    segments: Vec<SegmentEntry>,
}

impl Writer {
    pub fn new() -> Self {
        let mut bytes = vec![0; GEOMETRY.sector_size() as usize];
        for address in GEOMETRY.superblocks() {
            let copy = Superblock::new(IDENTITY, 0, 1, &GEOMETRY, CREATED).sealed(address);
            bytes[address as usize..][..Superblock::SIZE].copy_from_slice(copy.as_bytes());
        }
        for address in GEOMETRY.store_file_copies() {
            let copy = StoreFileCopy::encode(&IDENTITY, address, 1, STORE_FILE).unwrap();
            bytes[address as usize..][..copy.len()].copy_from_slice(&copy);
        }
        let unused = SegmentEntry {
            generation: 0.into(),
            live: 0.into(),
            written: 0.into(),
            state: 0,
            zeroed: 1,
            reserved: 0.into(),
        };
        Self {
            bytes,
            log: Vec::new(),
            frames: Vec::new(),
            lsn: 0,
            time: CREATED,
            durable: 0,
            generation: 0,
            tail: None,
            index: BTreeMap::new(),
            extents: BTreeMap::new(),
            segments: vec![unused; GEOMETRY.segment_count as usize],
        }
    }

    pub fn put(&mut self, address: u64, bytes: &[u8]) {
        self.bytes[address as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn header(&mut self, kind: u32, segment: u32, state: u8) -> SegmentHeader {
        // A segment is taken from the free ones only [F-55], with a new generation [F-17].
        assert_eq!(self.segments[segment as usize].state, 0);
        self.generation += 1;
        self.segments[segment as usize].generation = self.generation.into();
        self.segments[segment as usize].state = state;
        SegmentHeader {
            magic: segment::MAGIC.into(),
            checksum: 0.into(),
            kind: kind.into(),
            segment: segment.into(),
            generation: self.generation.into(),
            first_lsn: 0.into(),
            durable_lsn: self.durable.into(),
            previous_segment: NONE.into(),
            previous_end: 0.into(),
            previous_generation: 0.into(),
            previous_lsn: 0.into(),
            previous_checksum: 0.into(),
            reserved: [0; 60],
        }
    }

    /// Takes `segment` into use for the log.
    pub fn log_segment(&mut self, segment: u32) {
        let mut header = self.header(KIND_LOG, segment, 1);
        header.first_lsn = (self.lsn + 1).into();
        if let Some(tail) = &self.tail {
            self.segments[tail.segment as usize].state = 2;
            header.previous_segment = tail.segment.into();
            header.previous_end = (tail.offset as u32).into();
            header.previous_generation = tail.generation.into();
            header.previous_lsn = self.lsn.into();
            header.previous_checksum = tail.checksum.into();
        }
        let address = GEOMETRY.segment_offset(segment);
        let header = header.sealed(&IDENTITY, address);
        self.put(address, header.as_bytes());
        self.log.push(segment);
        self.tail = Some(Tail {
            segment,
            offset: GEOMETRY.block_size.into(),
            generation: self.generation,
            checksum: header.checksum.get(),
        });
    }

    /// Appends a frame of `drafts`; with none, it is a durable note.
    pub fn frame(&mut self, drafts: &[Draft]) -> Vec<Written> {
        let tail = self.tail.as_ref().unwrap();
        let address = GEOMETRY.segment_offset(tail.segment) + tail.offset;
        let (segment, offset, generation, previous) =
            (tail.segment, tail.offset, tail.generation, tail.checksum);
        let mut bytes = vec![0; FrameHeader::SIZE];
        let mut written = Vec::new();
        let mut checksums = Vec::new();
        // A frame's time is never less than that of the one before [F-54].
        self.time += 1000;
        for draft in drafts {
            let lsn = draft.moved.unwrap_or_else(|| {
                self.lsn += 1;
                self.lsn
            });
            let length = record_length(
                stored(draft.key).len(),
                draft.meta.len(),
                draft.payload.len() as u64,
            );
            let mut record = vec![0; length as usize];
            let payload_length = draft.payload.len() as u32;
            let time = if draft.moved.is_some() {
                CREATED + 1000
            } else {
                self.time
            };
            write_record_head(
                &mut record,
                draft.kind,
                &stored(draft.key),
                &draft.meta,
                payload_length,
                time,
            );
            let head = 32 + stored(draft.key).len() + draft.meta.len();
            write_chunks(&draft.payload, &mut record[head..]);
            let at = address + bytes.len() as u64;
            let flags = if draft.moved.is_some() { FLAG_MOVED } else { 0 };
            checksums.push(seal_record(&mut record, &IDENTITY, at, lsn, flags));
            self.apply(draft, lsn, at, head as u32, time);
            bytes.extend_from_slice(&record);
            written.push(Written {
                address: at,
                length,
                lsn,
            });
        }
        if drafts.iter().all(|draft| draft.moved.is_some()) {
            self.lsn += 1;
        }
        let used = bytes.len() as u64;
        bytes.resize(GEOMETRY.round_up(used) as usize, 0);
        let header = FrameHeader {
            magic: frame::MAGIC.into(),
            checksum: 0.into(),
            generation: generation.into(),
            lsn: self.lsn.into(),
            durable_lsn: self.durable.into(),
            previous: previous.into(),
            length: (bytes.len() as u32).into(),
            used: (used as u32).into(),
            records: (drafts.len() as u32).into(),
            records_checksum: records_checksum(checksums.into_iter()).into(),
            reserved: 0.into(),
            time: self.time.into(),
        }
        .sealed(&IDENTITY, address);
        bytes[..FrameHeader::SIZE].copy_from_slice(header.as_bytes());
        self.put(address, &bytes);
        self.durable = self.lsn;
        self.frames.push((address, bytes.len() as u32));
        let end = offset + bytes.len() as u64;
        let entry = &mut self.segments[segment as usize];
        entry.written = (end as u32).into();
        entry.live = (entry.live.get() + used - 64).into();
        self.tail = Some(Tail {
            segment,
            offset: end,
            generation,
            checksum: header.checksum.get(),
        });
        written
    }

    fn apply(&mut self, draft: &Draft, lsn: u64, address: u64, head: u32, time: u64) {
        let length = draft.payload.len() as u64;
        let extents = match draft.kind {
            RecordKind::Manifest => Some(Manifest::decode(&draft.payload).unwrap().extents),
            _ => None,
        };
        match draft.kind {
            RecordKind::Extent => {
                let references = self.extents.get(&lsn).map_or(0, |old| old.references.get());
                let entry = ExtentEntry {
                    lsn: lsn.into(),
                    address: (address + u64::from(head)).into(),
                    payload_length: (length as u32).into(),
                    head_length: head.into(),
                    references: references.into(),
                    reserved: 0.into(),
                };
                self.extents.insert(lsn, entry);
                return;
            }
            RecordKind::Tombstone => {
                let value = ImageValue::Tombstone;
                self.index
                    .insert(stored(draft.key), ImageEntry { lsn, value });
                return;
            }
            // No checkpoint follows them.
            RecordKind::Range | RecordKind::Splice | RecordKind::Merge => return,
            RecordKind::Blob | RecordKind::Manifest => {}
        }
        for piece in extents.iter().flatten() {
            if let Some(entry) = self.extents.get_mut(&piece.lsn.get()) {
                entry.references = (entry.references.get() + 1).into();
            }
        }
        let size = extents
            .iter()
            .flatten()
            .map(|piece| u64::from(piece.length.get()))
            .sum();
        let value = ImageValue::Blob {
            address,
            size: if extents.is_some() { size } else { length },
            time,
            meta_length: draft.meta.len() as u32,
            changed: None,
            life: meta::items(&draft.meta).find_map(|item| match item {
                Ok(MetaItem::Life(lsn)) => Some(lsn),
                _ => None,
            }),
            replicas: meta::replicas(&draft.meta),
            extents,
        };
        self.index
            .insert(stored(draft.key), ImageEntry { lsn, value });
    }

    /// Writes a checkpoint, its image into `segments`.
    pub fn checkpoint(&mut self, sequence: u64, segments: &[u32]) {
        let mut builder = ImageBuilder::new(self.lsn, CREATED);
        let (mut blobs, mut logical_bytes) = (0_u64, 0);
        for (key, entry) in &self.index {
            builder.push(key, entry);
            if let ImageValue::Blob { size, .. } = entry.value {
                blobs += 1;
                logical_bytes += size;
            }
        }
        let headers: Vec<_> = (0..)
            .zip(segments)
            .map(|(part, &segment)| {
                let mut header = self.header(KIND_CHECKPOINT, segment, 4);
                header.previous_segment = part.into();
                header.previous_generation = sequence.into();
                header.sealed(&IDENTITY, GEOMETRY.segment_offset(segment))
            })
            .collect();
        let extents: Vec<_> = self.extents.values().copied().collect();
        let mut image = builder.finish(&extents, &self.segments);
        let image_length = image.len() as u64;
        let pages_checksum = seal_image(&mut image, sequence);
        let parts = image.chunks(GEOMETRY.image_bytes_per_segment() as usize);
        assert_eq!(parts.len(), segments.len());
        for (header, part) in headers.iter().zip(parts) {
            let address = GEOMETRY.segment_offset(header.segment.get());
            self.put(address, header.as_bytes());
            self.put(address + u64::from(GEOMETRY.block_size), part);
        }
        let tail = self.tail.as_ref();
        let root = CheckpointRoot {
            magic: checkpoint::MAGIC.into(),
            checksum: 0.into(),
            sequence: sequence.into(),
            lsn: self.lsn.into(),
            store_lsn: self.lsn.into(),
            taken: self.time.into(),
            tail_segment: tail.map_or(NONE, |tail| tail.segment).into(),
            tail_offset: tail.map_or(0, |tail| tail.offset as u32).into(),
            tail_generation: tail.map_or(0, |tail| tail.generation).into(),
            tail_checksum: tail.map_or(0, |tail| tail.checksum).into(),
            segments: 0.into(),
            image_length: image_length.into(),
            pages_checksum: pages_checksum.into(),
            blobs: blobs.into(),
            logical_bytes: logical_bytes.into(),
            forgotten_lsn: self.lsn.into(),
            reserved: [0; 24],
        };
        for address in GEOMETRY.roots(sequence) {
            let copy = root.encode(&IDENTITY, address, segments);
            self.put(address, &copy);
        }
    }
}

/// Where things of the sample lie that tests look at one by one.
pub struct Sample {
    pub writer: Writer,
    pub blob: Written,
    pub empty: Written,
    pub extent: Written,
    pub manifest: Written,
    pub moved: Written,
    pub tombstone: Written,
    pub note: u64,
}

pub fn hello_meta() -> Vec<u8> {
    let mut bytes = Vec::new();
    meta::put(
        &mut bytes,
        MetaItem::Attribute {
            name: "content-type",
            value: b"text/plain",
        },
    );
    bytes
}

pub fn every_meta() -> Vec<u8> {
    let mut bytes = Vec::new();
    meta::put(&mut bytes, MetaItem::Created(CREATED));
    let digest = MetaItem::Digest {
        algorithm: 1,
        bytes: std::array::from_fn(|at| at as u8),
    };
    meta::put(&mut bytes, digest);
    bytes.extend(hello_meta());
    let origin = MetaItem::Origin {
        time: CREATED + 5,
        name: "importer",
    };
    meta::put(&mut bytes, origin);
    let attribute = MetaItem::Attribute {
        name: "colour",
        value: b"blue",
    };
    meta::put(&mut bytes, attribute);
    meta::put(&mut bytes, MetaItem::Replicas(3));
    meta::put(&mut bytes, MetaItem::Life(1));
    bytes
}

/// What the sample's blobs hold, newest versions.
pub fn expected() -> BTreeMap<Vec<u8>, Vec<u8>> {
    let large = [pattern(4100, 4), pattern(300, 5)].concat();
    let slice = large[4000..4200].to_vec();
    [
        (&b"docs/empty"[..], Vec::new()),
        (b"docs/greeting", b"Hello, Graviton!\n".to_vec()),
        (b"docs/hello.txt", b"Hello, Graviton!\n".to_vec()),
        (b"large", large),
        (b"slice", slice),
        (b"\x00\xff", b"binary key".to_vec()),
    ]
    .into_iter()
    .map(|(key, payload)| (key.to_vec(), payload))
    .collect()
}

pub fn sample() -> Sample {
    use RecordKind::{Blob, Extent, Manifest, Tombstone};
    let mut writer = Writer::new();
    // Creating a sector writes checkpoint 1, of an empty index.
    writer.checkpoint(1, &[0, 1]);
    writer.log_segment(2);
    let mut hello = draft(Blob, b"docs/hello.txt", b"Hello, Graviton!\n");
    hello.meta = hello_meta();
    let first = writer.frame(&[hello, draft(Blob, b"docs/empty", [])]);
    // 4089 bytes: one byte more than fits a chunk.
    writer.frame(&[draft(Blob, b"docs/two-chunks", pattern(4089, 3))]);
    let extents = writer.frame(&[
        draft(Extent, b"large", pattern(4100, 4)),
        draft(Extent, b"large", pattern(300, 5)),
    ]);
    let mut large = draft(
        Manifest,
        b"large",
        manifest(&[piece(4, 0, 4100), piece(5, 0, 300)]),
    );
    large.meta = every_meta();
    let manifests = writer.frame(&[large, draft(Blob, b"gone", b"soon")]);
    let tombstones = writer.frame(&[draft(Tombstone, b"gone", [])]);
    // The tombstone stays in the image: checkpoint 1, still retained, does not cover it [F-56].
    writer.checkpoint(2, &[3, 4]);
    // A copy that shares the payload of a blob's record, which is in the image as a blob only.
    writer.frame(&[draft(
        Manifest,
        b"docs/greeting",
        manifest(&[piece(1, 0, 17)]),
    )]);
    writer.log_segment(5);
    // Compaction moved an extent; a range of the large blob was copied; a blob was deleted.
    let mut moved = draft(Extent, b"large", pattern(4100, 4));
    moved.moved = Some(4);
    let slice = manifest(&[piece(4, 4000, 100), piece(5, 0, 100)]);
    let later = writer.frame(&[moved, draft(Manifest, b"slice", slice)]);
    writer.frame(&[
        draft(Tombstone, b"docs/two-chunks", []),
        draft(Blob, b"\x00\xff", b"binary key"),
    ]);
    writer.frame(&[]);
    Sample {
        blob: first[0],
        empty: first[1],
        extent: extents[0],
        manifest: manifests[0],
        moved: later[0],
        tombstone: tombstones[0],
        note: writer.frames.last().unwrap().0,
        writer,
    }
}

/// A log in which versions are made out of others, and the records that do it.
pub fn changes() -> (Writer, [Written; 3]) {
    use RecordKind::{Blob, Extent, Merge, Range, Splice};
    let mut writer = Writer::new();
    writer.checkpoint(1, &[0, 1]);
    writer.log_segment(2);
    writer.frame(&[draft(Blob, b"key", b"0123456789")]);
    let range = writer.frame(&[
        change(Range, b"key", (1, 2, 10), b"abc"),
        draft(Extent, b"key", b"ABCDEF"),
    ]);
    let pieces = [piece(3, 1, 2), piece(2, 2, 1), ExtentRef::hole(1)];
    let splice = writer.frame(&[change(Splice, b"key", (2, 12, 16), manifest(&pieces))]);
    let merge = writer.frame(&[
        draft(Extent, b"key", b"01abc56789"),
        change(Merge, b"key", (4, 0, 16), manifest(&[piece(5, 0, 10)])),
    ]);
    (writer, [range[0], splice[0], merge[1]])
}

/// What is complete of bytes held elsewhere.
pub fn tracker() -> Vec<u8> {
    const WINDOW: u64 = ranges::WINDOW;
    let header = ranges::Header {
        generation: 0,
        total: None,
    };
    let mut bytes = header.encode();
    for entry in [
        ranges::Entry::Added(vec![10..20, 5000..9000, WINDOW..4 * WINDOW + 1]),
        ranges::Entry::Removed(vec![15..16, 2 * WINDOW..2 * WINDOW + 4096]),
        ranges::Entry::Total(5 * WINDOW),
    ] {
        entry.encode_to(&mut bytes);
    }
    bytes
}

/// The same, of so many spans that a bitmap is shorter.
pub fn tracker_of_bits() -> Vec<u8> {
    let header = ranges::Header {
        generation: 7,
        total: Some(ranges::WINDOW),
    };
    let mut bytes = header.encode();
    let blocks = (0..ranges::WINDOW / ranges::BLOCK).step_by(2);
    let mut spans: Vec<_> = blocks
        .map(|block| block * ranges::BLOCK..(block + 1) * ranges::BLOCK)
        .collect();
    spans[1].end += 7;
    ranges::Entry::Added(spans).encode_to(&mut bytes);
    bytes
}

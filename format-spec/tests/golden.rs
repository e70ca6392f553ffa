//! Golden vectors: what the encoders write is what `vectors/v1/` holds, and the decoders read it
//! back; damaged vectors give the errors they name. `UPDATE_VECTORS=1` writes the files anew, which
//! only a new format version has a reason for.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod support;

use graviton_format::checkpoint::{CheckpointRoot, stored_image_length, verify_image_pages};
use graviton_format::checksum::{gather_chunks, stored_length, verify_chunk};
use graviton_format::frame::FrameHeader;
use graviton_format::image::{Image, ImageBuilder};
use graviton_format::meta;
use graviton_format::record::{
    ExtentRef, Manifest, RecordHeader, RecordView, seal_record, write_record_head,
};
use graviton_format::segment::SegmentHeader;
use graviton_format::store_file::StoreFileCopy;
use graviton_format::superblock::Superblock;
use graviton_format::{Geometry, Structure, ranges};
use support::reader::recover;
use support::sample::{self, CREATED, GEOMETRY, IDENTITY, Sample, Written};
use support::vectors::{self, Vector};
use zerocopy::IntoBytes;

/// The LSN and the sequence that the vectors of a chunk and of a stored image belong to.
const CHUNK_LSN: u64 = 3;

fn vector(name: &str, kind: &str, address: u64, comment: &str, bytes: &[u8]) -> Vector {
    Vector {
        name: name.to_owned(),
        comment: comment.to_owned(),
        kind: kind.to_owned(),
        address,
        expect: None,
        base: None,
        bytes: bytes.to_vec(),
    }
}

/// Damages a vector; what reading it must say is filled in by [`all`].
fn damaged(of: &Vector, name: &str, comment: &str, damage: impl FnOnce(&mut Vec<u8>)) -> Vector {
    let mut damaged = Vector {
        name: format!("{}-{name}", of.name),
        comment: comment.to_owned(),
        expect: Some(String::new()),
        ..of.clone()
    };
    damage(&mut damaged.bytes);
    if of.kind == "sector" {
        damaged.base = Some(of.name.clone());
    }
    damaged
}

fn cut(sector: &[u8], address: u64, length: u64) -> &[u8] {
    &sector[address as usize..(address + length) as usize]
}

fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Sets the header checksum that `bytes` lack after a deliberate change.
fn reseal(bytes: &mut [u8], checksum_at: usize, address: u64, identity: graviton_format::Identity) {
    let parts = [&bytes[..checksum_at], &bytes[checksum_at + 4..]];
    let checksum = identity.header_checksum(address, &parts);
    put_u32(bytes, checksum_at, checksum);
}

fn whole(sample: &Sample) -> Vec<Vector> {
    let sector = &sample.writer.bytes;
    let geometry = GEOMETRY;
    let record = |name, comment, written: Written| {
        let bytes = cut(sector, written.address, written.length);
        vector(name, "record", written.address, comment, bytes)
    };
    let (changes, records) = sample::changes();
    let changed = |number: usize, name, comment| {
        let Written {
            address, length, ..
        } = records[number];
        let bytes = cut(&changes.bytes, address, length);
        vector(name, "record", address, comment, bytes)
    };
    let root_address = geometry.roots(2)[1];
    let log = geometry.segment_offset(5);
    let checkpoint = geometry.segment_offset(4);
    let (frame, frame_length) = sample.writer.frames[0];
    let two_chunks = sample.writer.frames[1].0 + 64 + 32 + 16;
    let (root, segments) = CheckpointRoot::decode(
        &sector[root_address as usize..],
        &IDENTITY,
        &geometry,
        root_address,
    )
    .unwrap();
    let room = geometry.image_bytes_per_segment();
    let mut stored: Vec<u8> = segments
        .iter()
        .flat_map(|&segment| cut(sector, geometry.segment_offset(segment) + 512, room))
        .copied()
        .collect();
    let image_length = root.image_length.get();
    stored.truncate(stored_image_length(image_length).unwrap() as usize);
    let image = stored[..image_length as usize].to_vec();
    let manifest = sample::manifest(&[sample::piece(4, 4000, 100), sample::piece(5, 0, 100)]);
    vec![
        vector(
            "superblock",
            "superblock",
            0,
            "The front copy.",
            cut(sector, 0, 512),
        ),
        vector(
            "superblock-back",
            "superblock",
            geometry.back_area(),
            "The back copy: only the checksum differs.",
            cut(sector, geometry.back_area(), 512),
        ),
        vector(
            "checkpoint-root",
            "checkpoint-root",
            root_address,
            "The back copy of the root of checkpoint 2, with its list of two segments.",
            cut(sector, root_address, 136),
        ),
        vector(
            "store-file-copy",
            "store-file-copy",
            geometry.store_file_copies()[0],
            "The front copy of the store file, revision 1.",
            cut(
                sector,
                geometry.store_file_copies()[0],
                StoreFileCopy::SIZE as u64 + sample::STORE_FILE.len() as u64,
            ),
        ),
        vector(
            "segment-header-log",
            "segment-header",
            log,
            "Segment 5 goes on where the log leaves segment 2.",
            cut(sector, log, 128),
        ),
        vector(
            "segment-header-first",
            "segment-header",
            geometry.segment_offset(2),
            "The first segment of a log: it links to none.",
            cut(sector, geometry.segment_offset(2), 128),
        ),
        vector(
            "segment-header-checkpoint",
            "segment-header",
            checkpoint,
            "The second part of the image of checkpoint 2.",
            cut(sector, checkpoint, 128),
        ),
        vector(
            "frame",
            "frame",
            frame,
            "The first frame of the log: a blob of 17 bytes with an attribute, and an empty blob.",
            cut(sector, frame, frame_length.into()),
        ),
        vector(
            "frame-note",
            "frame",
            sample.note,
            "A durable note: a frame without records.",
            cut(sector, sample.note, 512),
        ),
        record("record-blob", "A blob with an attribute.", sample.blob),
        record("record-blob-empty", "A blob of no bytes.", sample.empty),
        record(
            "record-extent",
            "An extent of 4100 bytes, in two chunks.",
            sample.extent,
        ),
        record(
            "record-extent-moved",
            "The same extent, moved by compaction.",
            sample.moved,
        ),
        record(
            "record-manifest",
            "A blob of two pieces, with every kind of metadata.",
            sample.manifest,
        ),
        record("record-tombstone", "A delete.", sample.tombstone),
        changed(
            0,
            "record-range",
            "Three bytes of version 1, from 2 on, are others.",
        ),
        changed(
            1,
            "record-splice",
            "Of version 2, what lies from 12 on: a piece of a payload, and a hole.",
        ),
        changed(
            2,
            "record-merge",
            "The first ten bytes of version 4 lie elsewhere from here on.",
        ),
        vector(
            "chunk",
            "chunk",
            two_chunks + 4096,
            "The second chunk of a payload of 4089 bytes, at LSN 3: one byte and its checksum.",
            cut(sector, two_chunks + 4096, 9),
        ),
        vector(
            "meta",
            "meta",
            0,
            "Every kind of item.",
            &sample::every_meta(),
        ),
        vector(
            "manifest",
            "manifest",
            0,
            "A manifest's payload: two pieces.",
            &manifest,
        ),
        vector(
            "manifest-sparse",
            "manifest",
            0,
            "A manifest's payload: a hole, a piece, and a hole.",
            &sample::manifest(&[
                ExtentRef::hole(4096),
                sample::piece(2, 0, 100),
                ExtentRef::hole(1 << 30),
            ]),
        ),
        vector(
            "tracker",
            "tracker",
            0,
            "Of bytes held elsewhere: runs and whole windows added, some taken away, and a total.",
            &sample::tracker(),
        ),
        vector(
            "tracker-bits",
            "tracker",
            0,
            "Every other block of a window, and some bytes of a block.",
            &sample::tracker_of_bits(),
        ),
        vector("image", "image", 0, "The image of checkpoint 2.", &image),
        vector(
            "image-stored",
            "image-stored",
            0,
            "The image of checkpoint 2 as it is stored: one page, then its checksum.",
            &stored,
        ),
        vector(
            "sector",
            "sector",
            0,
            "A whole sector: two checkpoints, a log in two segments, every kind of record.",
            sector,
        ),
    ]
}

fn broken(whole: &[Vector], sample: &Sample) -> Vec<Vector> {
    let of = |name: &str| whole.iter().find(|vector| vector.name == name).unwrap();
    let superblock = of("superblock");
    let root = of("checkpoint-root");
    let store_file = of("store-file-copy");
    let segment = of("segment-header-log");
    let note = of("frame-note");
    let blob = of("record-blob");
    let tombstone = of("record-tombstone");
    let (meta, manifest, image, stored) =
        (of("meta"), of("manifest"), of("image"), of("image-stored"));
    let default = graviton_format::Identity::default();
    let other = graviton_format::Identity {
        sector_id: 1,
        ..IDENTITY
    };
    let address_of_copy = store_file.address;
    let mut all = vec![
        damaged(superblock, "foreign", "Another program's file.", |bytes| {
            bytes[..16].copy_from_slice(b"SQLite format 3\0");
        }),
        damaged(
            superblock,
            "flipped-bit",
            "One bit of the store id.",
            |bytes| bytes[16] ^= 1,
        ),
        damaged(superblock, "newer-version", "Format version 2.", |bytes| {
            bytes[8] = 2
        }),
        damaged(superblock, "zeros", "Never written.", |bytes| bytes.fill(0)),
        damaged(superblock, "misplaced", "The back copy's bytes.", |bytes| {
            bytes.copy_from_slice(&of("superblock-back").bytes);
        }),
        damaged(
            store_file,
            "flipped-text",
            "One bit of the text.",
            |bytes| bytes[90] ^= 1,
        ),
        damaged(
            store_file,
            "too-long",
            "It says it has a byte more than the slot takes.",
            |bytes| put_u32(bytes, 16, 16321),
        ),
        damaged(
            store_file,
            "of-other-sector",
            "As another sector of the store would have it.",
            |bytes| reseal(bytes, 4, address_of_copy, other),
        ),
        damaged(
            store_file,
            "not-text",
            "A byte that UTF-8 does not have, checksum right.",
            |bytes| {
                bytes[90] = 0xff;
                reseal(bytes, 4, address_of_copy, IDENTITY);
            },
        ),
        damaged(
            superblock,
            "block-size",
            "Blocks of 520 bytes, checksum right.",
            |bytes| {
                put_u32(bytes, 44, 520);
                reseal(bytes, 12, 0, default);
            },
        ),
        damaged(superblock, "cut", "The first 511 bytes.", |bytes| {
            bytes.truncate(511)
        }),
        damaged(
            root,
            "flipped-list",
            "One bit of the list of segments.",
            |bytes| bytes[132] ^= 1,
        ),
        damaged(
            root,
            "other-slot",
            "Sequence 3 in the slot of 2, checksum right.",
            |bytes| {
                bytes[8] = 3;
                reseal(bytes, 4, root.address, IDENTITY);
            },
        ),
        damaged(
            root,
            "list-too-long",
            "4065 segments: more than a slot holds.",
            |bytes| {
                put_u32(bytes, 68, 4065);
            },
        ),
        damaged(
            root,
            "segment-out-of-range",
            "Segment 16 of 16, checksum right.",
            |bytes| {
                bytes[132] = 16;
                reseal(bytes, 4, root.address, IDENTITY);
            },
        ),
        damaged(
            segment,
            "flipped-bit",
            "One bit of the generation.",
            |bytes| bytes[16] ^= 1,
        ),
        damaged(
            segment,
            "other-sector",
            "The same header of another sector.",
            |bytes| {
                reseal(bytes, 4, segment.address, other);
            },
        ),
        damaged(
            segment,
            "unknown-kind",
            "Kind 3, checksum right.",
            |bytes| {
                bytes[8] = 3;
                reseal(bytes, 4, segment.address, IDENTITY);
            },
        ),
        damaged(
            segment,
            "unaligned-link",
            "Linked to offset 1000, checksum right.",
            |bytes| {
                put_u32(bytes, 44, 1000);
                reseal(bytes, 4, segment.address, IDENTITY);
            },
        ),
        damaged(note, "flipped-bit", "One bit of the time.", |bytes| {
            bytes[57] ^= 0x10
        }),
        damaged(
            note,
            "length",
            "Length 1000: no whole blocks. Checksum right.",
            |bytes| {
                put_u32(bytes, 36, 1000);
                reseal_front(bytes, 64, note.address);
            },
        ),
        damaged(
            note,
            "durable-itself",
            "Says of itself that it is durable.",
            |bytes| {
                let lsn: [u8; 8] = bytes[16..24].try_into().unwrap();
                bytes[24..32].copy_from_slice(&lsn);
                reseal_front(bytes, 64, note.address);
            },
        ),
        damaged(
            note,
            "records",
            "Says that it has a record. Checksum right.",
            |bytes| {
                bytes[44] = 1;
                reseal_front(bytes, 64, note.address);
            },
        ),
        damaged(blob, "no-lsn", "LSN 0, checksum right.", |bytes| {
            bytes[8] = 0;
            reseal_record(bytes, blob.address);
        }),
        damaged(blob, "flipped-key", "One bit of the key.", |bytes| {
            bytes[33] ^= 1
        }),
        damaged(
            blob,
            "flipped-payload",
            "One bit of the payload.",
            |bytes| {
                let at = bytes.len() - 9;
                bytes[at] ^= 1;
            },
        ),
        damaged(blob, "unknown-kind", "Kind 8.", |bytes| bytes[4] = 8),
        damaged(blob, "no-key", "A key of no bytes.", |bytes| bytes[6] = 0),
        damaged(
            blob,
            "unknown-space",
            "A key of space 5, checksum right.",
            |bytes| {
                bytes[32] = 5;
                reseal_record(bytes, blob.address);
            },
        ),
        damaged(
            blob,
            "older-version",
            "Payload of LSN 1 in a header of LSN 2.",
            |bytes| {
                bytes[8] = 2;
                reseal_record(bytes, blob.address);
            },
        ),
        damaged(
            tombstone,
            "with-payload",
            "A delete with payload.",
            |bytes| {
                put_u32(bytes, 24, 1);
                reseal_record(bytes, tombstone.address);
            },
        ),
        damaged(meta, "cut", "The last byte is missing.", |bytes| {
            bytes.pop();
        }),
        damaged(
            meta,
            "unknown-tag",
            "Tag 8, which a reader would have to know.",
            |bytes| {
                bytes.extend([8, 0]);
            },
        ),
        damaged(
            meta,
            "no-life",
            "A life that began with no record.",
            |bytes| {
                let end = bytes.len() - 8;
                bytes[end..].fill(0);
            },
        ),
        damaged(
            meta,
            "no-replicas",
            "A blob that is to lie in no sector.",
            |bytes| {
                // Before the last item, which is a life.
                let at = bytes.len() - 10 - 1;
                bytes[at] = 0;
            },
        ),
        damaged(
            manifest,
            "wrong-sum",
            "A size one byte above the pieces' sum.",
            |bytes| {
                bytes[0] += 1;
            },
        ),
        damaged(
            of("record-range"),
            "past-the-end",
            "It changes bytes past the end that the blob has afterwards.",
            |bytes| {
                let size = bytes.len() - 11 - 8;
                bytes[size] = 4;
                reseal_record(bytes, of("record-range").address);
            },
        ),
        damaged(
            of("record-range"),
            "no-change",
            "Its metadata does not say what it changes.",
            |bytes| {
                bytes[32 + 4] = 200;
                reseal_record(bytes, of("record-range").address);
            },
        ),
        damaged(
            of("manifest-sparse"),
            "hole-with-offset",
            "A hole that begins in no payload at 1.",
            |bytes| bytes[8 + 8] = 1,
        ),
        damaged(of("tracker"), "cut", "Half an entry.", |bytes| {
            bytes.truncate(ranges::HEADER_LEN + 8);
        }),
        damaged(of("tracker"), "empty-run", "A run of no bytes.", |bytes| {
            bytes[ranges::HEADER_LEN + 5 + 4] = 0;
        }),
        damaged(manifest, "cut", "Half a piece.", |bytes| {
            bytes.truncate(8 + 16 + 8)
        }),
        damaged(image, "cut", "The last byte is missing.", |bytes| {
            bytes.pop();
        }),
        damaged(
            image,
            "unordered",
            "Two keys in the wrong order.",
            |bytes| {
                let at = bytes.windows(4).position(|bytes| bytes == b"gone").unwrap();
                bytes[at] = b'a';
            },
        ),
        damaged(
            image,
            "shares-too-little",
            "A key shares more than it says.",
            |bytes| {
                let at = bytes
                    .windows(10)
                    .position(|bytes| bytes == b"two-chunks")
                    .unwrap();
                bytes[at] = b'h';
            },
        ),
        damaged(
            image,
            "entry-count",
            "Fewer entries than the group holds.",
            |bytes| bytes[8] -= 1,
        ),
        damaged(
            image,
            "segment-state",
            "The last segment is in state 9.",
            |bytes| {
                let at = bytes.len() - 4;
                bytes[at] = 9;
            },
        ),
        damaged(
            image,
            "extent-order",
            "The first extent has LSN 200.",
            |bytes| {
                let at = bytes[48..52].try_into().unwrap();
                bytes[u32::from_le_bytes(at) as usize] = 200;
            },
        ),
        damaged(stored, "flipped-page", "One bit of the image.", |bytes| {
            bytes[200] ^= 1
        }),
        damaged(
            stored,
            "flipped-table",
            "One bit of a page's checksum.",
            |bytes| {
                bytes[65540] ^= 1;
            },
        ),
    ];
    all.extend(broken_sectors(of("sector"), sample));
    all
}

fn reseal_front(bytes: &mut [u8], length: usize, address: u64) {
    reseal(&mut bytes[..length], 4, address, IDENTITY);
}

fn reseal_record(bytes: &mut [u8], address: u64) {
    let head = 32 + usize::from(bytes[6]) + usize::from(bytes[28]);
    let checksum = IDENTITY.header_checksum(address, &[&bytes[4..head]]);
    put_u32(bytes, 0, checksum);
}

fn broken_sectors(sector: &Vector, sample: &Sample) -> Vec<Vector> {
    let frames = &sample.writer.frames;
    let at = |segment| GEOMETRY.segment_offset(segment) as usize;
    vec![
        damaged(
            sector,
            "torn-tail",
            "The last frame with records never arrived whole, nor did the note after it.",
            |bytes| bytes[frames[7].0 as usize + 40..sample.note as usize + 512].fill(0),
        ),
        damaged(
            sector,
            "rotten-frame",
            "One bit of a frame that was acknowledged: frames after it say so.",
            |bytes| bytes[frames[6].0 as usize + 17] ^= 1,
        ),
        damaged(
            sector,
            "lost-link",
            "The header of the log's second segment is gone; frames behind it are there.",
            |bytes| bytes[at(5)..at(5) + 512].fill(0),
        ),
        damaged(
            sector,
            "front-superblock-gone",
            "The back copy stands in.",
            |bytes| bytes[..512].fill(0xff),
        ),
        damaged(
            sector,
            "newest-image-rotten",
            "The older checkpoint stands in, and more of the log is replayed.",
            |bytes| bytes[at(3) + 700] ^= 1,
        ),
        damaged(sector, "no-image", "Both images are rotten.", |bytes| {
            bytes[at(0) + 520] ^= 1;
            bytes[at(3) + 520] ^= 1;
        }),
        damaged(sector, "cut", "The file lost its last block.", |bytes| {
            bytes.truncate(bytes.len() - 512);
        }),
    ]
}

fn all() -> Vec<Vector> {
    let sample = sample::sample();
    let whole = whole(&sample);
    let mut broken = broken(&whole, &sample);
    for vector in &mut broken {
        vector.expect = Some(match read(vector) {
            Ok(_) => panic!("{} reads well", vector.name),
            Err(error) => error,
        });
    }
    [whole, broken].concat()
}

/// Decodes a vector; gives its bytes as encoded again from what was decoded.
fn read(vector: &Vector) -> Result<Vec<u8>, String> {
    let (bytes, address) = (vector.bytes.as_slice(), vector.address);
    let text = |error: graviton_format::FormatError| error.to_string();
    match vector.kind.as_str() {
        "superblock" => {
            let found = Superblock::decode(bytes, address).map_err(text)?;
            let made =
                Superblock::new(found.identity(), 0, 1, &found.geometry(), CREATED).sealed(address);
            Ok(made.as_bytes().to_vec())
        }
        "checkpoint-root" => {
            let (root, list) =
                CheckpointRoot::decode(bytes, &IDENTITY, &GEOMETRY, address).map_err(text)?;
            Ok(root.encode(&IDENTITY, address, &list))
        }
        "store-file-copy" => {
            let (revision, content) =
                StoreFileCopy::decode(bytes, &IDENTITY, address).map_err(text)?;
            Ok(StoreFileCopy::encode(&IDENTITY, address, revision, content).unwrap())
        }
        "segment-header" => {
            let (segment, _) = GEOMETRY.segment_of(address).unwrap();
            let mut header =
                SegmentHeader::decode(bytes, &IDENTITY, &GEOMETRY, segment).map_err(text)?;
            header.checksum = 0.into();
            Ok(header.sealed(&IDENTITY, address).as_bytes().to_vec())
        }
        "frame" => read_frame(bytes, address),
        "record" => read_record(bytes, address).map(|(again, _)| again),
        "chunk" => {
            verify_chunk(bytes, IDENTITY.chunk_mask(CHUNK_LSN), address).map_err(text)?;
            Ok(bytes.to_vec())
        }
        "meta" => {
            let mut again = Vec::new();
            for item in meta::items(bytes) {
                meta::put(&mut again, item.map_err(text)?);
            }
            Ok(again)
        }
        "manifest" => Ok(Manifest::decode(bytes).map_err(text)?.encode()),
        "tracker" => {
            let (header, mut rest) = ranges::Header::decode(bytes).map_err(text)?;
            let mut again = header.encode();
            while !rest.is_empty() {
                let (entry, behind) = ranges::Entry::decode(rest, usize::MAX).map_err(text)?;
                entry.encode_to(&mut again);
                rest = behind;
            }
            Ok(again)
        }
        "image" => read_image(bytes).map_err(text),
        "image-stored" => {
            let (root, _) = sample_root();
            verify_image_pages(bytes, &root)
                .map_err(|(place, error)| format!("at {place}: {error}"))?;
            Ok(bytes.to_vec())
        }
        "sector" => read_sector(bytes),
        kind => panic!("no such kind: {kind}"),
    }
}

fn sample_root() -> (CheckpointRoot, Vec<u32>) {
    let sector = sample::sample().writer.bytes;
    let address = GEOMETRY.roots(2)[0];
    CheckpointRoot::decode(&sector[address as usize..], &IDENTITY, &GEOMETRY, address).unwrap()
}

fn read_record(bytes: &[u8], address: u64) -> Result<(Vec<u8>, u64), String> {
    let view = RecordView::decode(bytes, &IDENTITY, &GEOMETRY, address)
        .map_err(|error| error.to_string())?;
    let length = view.length() as usize;
    let start = view.payload_offset();
    let mut payload = bytes[start..length].to_vec();
    let (lsn, time) = (view.header.lsn.get(), view.header.time.get());
    gather_chunks(
        &mut payload,
        IDENTITY.chunk_mask(lsn),
        address + start as u64,
    )
    .map_err(|(place, error)| format!("at {place}: {error}"))?;
    payload.truncate(view.header.payload_length.get() as usize);
    for item in meta::items(view.meta) {
        item.map_err(|error| error.to_string())?;
    }
    let mut again = vec![0; length];
    let payload_length = payload.len() as u32;
    write_record_head(
        &mut again,
        view.kind,
        view.key,
        view.meta,
        payload_length,
        time,
    );
    assert_eq!(length - start, stored_length(payload.len() as u64) as usize);
    graviton_format::checksum::write_chunks(&payload, &mut again[start..]);
    seal_record(&mut again, &IDENTITY, address, lsn, view.header.flags);
    Ok((again, length as u64))
}

fn read_frame(bytes: &[u8], address: u64) -> Result<Vec<u8>, String> {
    let header = FrameHeader::decode(bytes, &IDENTITY, &GEOMETRY, address)
        .map_err(|error| error.to_string())?;
    let mut again = header.sealed(&IDENTITY, address).as_bytes().to_vec();
    while again.len() < header.used.get() as usize {
        let at = again.len();
        again.extend(read_record(&bytes[at..], address + at as u64)?.0);
    }
    again.resize(header.length.get() as usize, 0);
    Ok(again)
}

fn read_image(bytes: &[u8]) -> Result<Vec<u8>, graviton_format::FormatError> {
    let image = Image::open(bytes)?;
    image.check(&GEOMETRY)?;
    let header = image.header();
    let mut builder = ImageBuilder::new(header.lsn_base.get(), header.time_base.get());
    let mut cursor = image.seek(b"")?;
    while let Some(entry) = cursor.next()? {
        assert_eq!(image.get(cursor.key())?.as_ref(), Some(&entry));
        builder.push(cursor.key(), &entry);
    }
    let extents: Vec<_> = image.extents().collect();
    let segments: Vec<_> = image.segments().collect();
    Ok(builder.finish(&extents, &segments))
}

/// Of a sector, the sample's whole content is a success; all else is told in words.
fn read_sector(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let state = recover(bytes).map_err(|failure| format!("{failure:?}"))?;
    let blobs = state.blobs(bytes);
    let (segment, offset) = state.tail;
    let told = format!(
        "opens from checkpoint {}, {} blobs, last LSN {}, log goes on in segment {segment} at {offset}",
        state.checkpoint,
        blobs.len(),
        state.last_lsn,
    );
    let wanted = sample::expected();
    let same = blobs.len() == wanted.len()
        && blobs
            .iter()
            .all(|(key, payload)| payload.as_ref().ok() == wanted.get(key));
    let untouched = bytes == sample::sample().writer.bytes;
    match (same, untouched) {
        (true, true) => Ok(bytes.to_vec()),
        (true, false) => Err(format!("{told}; nothing is missing")),
        (false, _) => Err(told),
    }
}

#[test]
fn the_encoders_write_the_vectors() {
    let all = all();
    let update = std::env::var_os("UPDATE_VECTORS").is_some();
    for vector in &all {
        let base = vector.base.as_ref().map(|base| {
            let base = all.iter().find(|vector| vector.name == *base).unwrap();
            base.bytes.as_slice()
        });
        let text = vectors::render(vector, base);
        let path = vectors::folder().join(format!("{}.hex", vector.name));
        if update {
            std::fs::create_dir_all(vectors::folder()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == text,
            "{} is not what the encoders write",
            path.display()
        );
    }
    let mut made: Vec<_> = all.into_iter().map(|vector| vector.name).collect();
    made.sort();
    assert_eq!(vectors::names(), made, "every file is made by this test");
}

#[test]
fn the_decoders_read_the_vectors() {
    let mut damaged = 0;
    for name in vectors::names() {
        let vector = vectors::load(&name);
        match (&vector.expect, read(&vector)) {
            (None, Ok(again)) => assert!(again == vector.bytes, "{name} is encoded differently"),
            (Some(expected), Err(error)) => {
                assert_eq!(error, *expected, "{name}");
                damaged += 1;
            }
            (expected, found) => panic!("{name}: expected {expected:?}, {:?}", found.map(|_| ())),
        }
    }
    assert!(damaged > 30);
}

#[test]
fn the_measures_of_the_structures_are_what_they_were() {
    let sizes = [
        Superblock::SIZE,
        CheckpointRoot::SIZE,
        StoreFileCopy::SIZE,
        SegmentHeader::SIZE,
        FrameHeader::SIZE,
        RecordHeader::SIZE,
        ExtentRef::SIZE,
    ];
    assert_eq!(sizes, [512, 128, 64, 128, 64, 32, 16]);
    let largest = Geometry {
        block_size: 4096,
        segment_size: 1 << 30,
        segment_count: 1 << 24,
    };
    assert!(largest.check().is_ok());
    assert_eq!(largest.sector_size(), (1 << 54) + 128 * 1024);
}

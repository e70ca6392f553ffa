//! The targets of the format's decoders. The format's tests include this file, and run it over
//! damaged seeds and random bytes too.
//!
//! An input is a mode (one byte), an address (eight, little-endian), and the bytes to decode. Mode
//! bit 0 puts the checksums (and magics) right first, since a fuzzer does not get past them by
//! chance; bit 1 takes blocks of 4096 bytes instead of 512. Every target asserts more than the
//! absence of panics: what decodes is within bounds, and is encoded to the same bytes again.
use std::ops::Range;

use graviton_format::checkpoint::{
    self, CheckpointRoot, seal_image, stored_image_length, verify_image_pages,
};
use graviton_format::checksum::{
    gather_chunks, mask_chunks, stored_length, verify_chunk, write_chunks,
};
use graviton_format::frame::{self, FrameHeader};
use graviton_format::image::{self, Image, ImageBuilder, ImageHeader};
use graviton_format::record::{Manifest, RecordHeader, RecordView};
use graviton_format::segment::{self, SegmentHeader};
use graviton_format::store_file::{self, StoreFileCopy};
use graviton_format::superblock::{self, Superblock};
use graviton_format::{Geometry, Identity, Structure, meta, ranges, varint};
use zerocopy::IntoBytes;

/// The sector that the golden vectors are of.
pub const IDENTITY: Identity = Identity {
    store_id: *b"\x8f\x1c\x50\x21\xd9\xe4\x4b\x07\xa6\x33\x9e\xf0\x12\x7d\x5a\xc8",
    sector_id: 0x2b7e_1516_28ae_d2a6,
};

/// Puts checksums right before decoding.
pub const MODE_FIX: u8 = 1;
/// Blocks of 4096 bytes.
pub const MODE_LARGE_BLOCKS: u8 = 2;

/// A target: takes any bytes and panics if something does not hold.
pub type Target = fn(&[u8]);

/// Every decoder's target with its name, which is that of its corpus.
pub const DECODERS: &[(&str, Target)] = &[
    ("superblock", superblock),
    ("segment_header", segment_header),
    ("frame_header", frame_header),
    ("record", record),
    ("meta", metadata),
    ("manifest", manifest),
    ("tracker", tracker),
    ("checkpoint_root", checkpoint_root),
    ("store_file_copy", store_file_copy),
    ("image", image),
    ("parts", parts),
];

struct Input<'a> {
    fix: bool,
    address: u64,
    geometry: Geometry,
    bytes: &'a [u8],
}

fn input(data: &[u8]) -> Option<Input<'_>> {
    let (&mode, rest) = data.split_first()?;
    let (address, bytes) = rest.split_first_chunk()?;
    let large = mode & MODE_LARGE_BLOCKS != 0;
    Some(Input {
        fix: mode & MODE_FIX != 0,
        address: u64::from_le_bytes(*address),
        geometry: Geometry {
            block_size: if large { 4096 } else { 512 },
            segment_size: 64 * 1024,
            segment_count: 16,
        },
        bytes,
    })
}

/// An input that makes `bytes` lie at `address`.
#[must_use]
pub fn seed(mode: u8, address: u64, bytes: &[u8]) -> Vec<u8> {
    [&[mode], &address.to_le_bytes()[..], bytes].concat()
}

/// Superblocks; the superblock itself tells identity and measures.
pub fn superblock(data: &[u8]) {
    let Some(Input {
        fix,
        address,
        bytes,
        ..
    }) = input(data)
    else {
        return;
    };
    let _ = Superblock::rows(bytes, address);
    let mut bytes = bytes.to_vec();
    if fix && let Ok(view) = Superblock::view(&bytes) {
        let mut fixed = *view;
        fixed.magic = superblock::MAGIC;
        fixed.version = graviton_format::FORMAT_VERSION.into();
        fixed.chunk_size = 4096.into();
        let geometry = fixed.geometry();
        if geometry.check().is_ok() {
            fixed.sector_size = geometry.sector_size().into();
        }
        bytes = fixed.sealed(address).as_bytes().to_vec();
    }
    let Ok(found) = Superblock::decode(&bytes, address) else {
        return;
    };
    let geometry = found.geometry();
    assert!(geometry.check().is_ok());
    assert_eq!(geometry.sector_size(), found.sector_size.get());
    let last = geometry.segment_count - 1;
    let begin = geometry.segment_offset(last);
    assert_eq!(geometry.segment_of(begin), Some((last, 0)));
    assert_eq!(geometry.segment_of(geometry.back_area()), None);
    assert_eq!(found.sealed(address), found);
}

/// Segment headers.
pub fn segment_header(data: &[u8]) {
    let Some(Input {
        fix,
        address,
        geometry,
        bytes,
    }) = input(data)
    else {
        return;
    };
    let _ = SegmentHeader::rows(bytes, address);
    let Some((number, _)) = geometry.segment_of(address) else {
        return;
    };
    let place = geometry.segment_offset(number);
    let mut bytes = bytes.to_vec();
    if fix && let Ok(view) = SegmentHeader::view(&bytes) {
        let mut fixed = *view;
        fixed.magic = segment::MAGIC.into();
        fixed.segment = number.into();
        fixed.reserved = [0; 60];
        bytes = fixed.sealed(&IDENTITY, place).as_bytes().to_vec();
    }
    let Ok(header) = SegmentHeader::decode(&bytes, &IDENTITY, &geometry, number) else {
        return;
    };
    assert_eq!(header.segment.get(), number);
    assert_ne!(header.generation.get(), 0);
    if header.kind == segment::KIND_LOG && header.previous_segment != segment::NONE {
        assert!(header.previous_segment < geometry.segment_count);
        assert!(u64::from(header.previous_end.get()) <= geometry.segment_size);
    }
    assert_eq!(header.sealed(&IDENTITY, place), header);
}

/// Frame headers.
pub fn frame_header(data: &[u8]) {
    let Some(Input {
        fix,
        address,
        geometry,
        bytes,
    }) = input(data)
    else {
        return;
    };
    let _ = FrameHeader::rows(bytes, address);
    let mut bytes = bytes.to_vec();
    if fix && let Ok(view) = FrameHeader::view(&bytes) {
        let mut fixed = *view;
        fixed.magic = frame::MAGIC.into();
        fixed.reserved = 0.into();
        bytes = fixed.sealed(&IDENTITY, address).as_bytes().to_vec();
    }
    let Ok(header) = FrameHeader::decode(&bytes, &IDENTITY, &geometry, address) else {
        return;
    };
    let (_, offset) = geometry.segment_of(address).expect("a frame in a segment");
    let (length, used) = (header.length.get(), header.used.get());
    assert!(offset + u64::from(length) <= geometry.segment_size);
    assert!(length % geometry.block_size == 0 && used >= 64 && used <= length);
    assert!(header.durable_lsn < header.lsn);
    assert!(header.records.get() <= (used - 64) / 33);
    assert_eq!(header.sealed(&IDENTITY, address), header);
}

/// Records, with their metadata and payload.
pub fn record(data: &[u8]) {
    let Some(Input {
        fix,
        address,
        geometry,
        bytes,
    }) = input(data)
    else {
        return;
    };
    let _ = RecordHeader::rows(bytes, address);
    let mut bytes = bytes.to_vec();
    if fix {
        fix_record(&mut bytes, address);
    }
    let Ok(view) = RecordView::decode(&bytes, &IDENTITY, &geometry, address) else {
        return;
    };
    let (_, offset) = geometry.segment_of(address).expect("a record in a segment");
    assert!(offset + view.length() <= geometry.segment_size);
    assert!(!view.key.is_empty() && view.header.lsn != 0);
    let start = view.payload_offset();
    let first = address + start as u64;
    let mask = IDENTITY.chunk_mask(view.header.lsn.get());
    let length = usize::try_from(view.length()).expect("less than a segment");
    if let Some(stored) = bytes.get(start..length) {
        let mut stored = stored.to_vec();
        if fix {
            let payload: Vec<u8> = stored
                .chunks(4096)
                .flat_map(|chunk| &chunk[..chunk.len() - 8])
                .copied()
                .collect();
            assert_eq!(
                payload.len() as u64,
                u64::from(view.header.payload_length.get())
            );
            write_chunks(&payload, &mut stored);
            mask_chunks(&mut stored, mask, first);
        }
        let gathered = gather_chunks(&mut stored, mask, first);
        assert!(gathered.is_ok() || !fix);
        if let Ok(gathered) = gathered {
            assert_eq!(stored_length(gathered as u64), stored.len() as u64);
            if view.kind.lists_pieces() {
                check_manifest(&stored[..gathered]);
            }
        }
    }
    check_meta(view.meta);
}

/// Puts the header checksum of a record right, if its lengths fit.
fn fix_record(bytes: &mut [u8], address: u64) {
    let Ok(header) = RecordHeader::view(bytes) else {
        return;
    };
    let meta_length = usize::try_from(header.meta_length.get()).unwrap_or(usize::MAX);
    let covered = meta_length.saturating_add(32 + usize::from(header.key_length));
    let Some(covered) = bytes.get(4..covered) else {
        return;
    };
    let checksum = IDENTITY.header_checksum(address, &[covered]);
    bytes[..4].copy_from_slice(&checksum.to_le_bytes());
}

/// Metadata.
pub fn metadata(data: &[u8]) {
    if let Some(input) = input(data) {
        check_meta(input.bytes);
    }
}

fn check_meta(bytes: &[u8]) {
    let mut again = Vec::new();
    let mut found = Vec::new();
    for item in meta::items(bytes).flatten() {
        meta::put(&mut again, item);
        found.push(item);
    }
    let read: Result<Vec<_>, _> = meta::items(&again).collect();
    assert_eq!(read, Ok(found));
}

/// Payloads of manifests.
pub fn manifest(data: &[u8]) {
    if let Some(input) = input(data) {
        check_manifest(input.bytes);
        if input.fix && input.bytes.len() >= 8 {
            // The size put right.
            let mut bytes = input.bytes.to_vec();
            let lengths = bytes[8..].chunks_exact(16).map(|piece| {
                let length = [piece[12], piece[13], piece[14], piece[15]];
                u64::from(u32::from_le_bytes(length))
            });
            let size: u64 = lengths.sum();
            bytes[..8].copy_from_slice(&size.to_le_bytes());
            check_manifest(&bytes);
        }
    }
}

fn check_manifest(payload: &[u8]) {
    let Ok(manifest) = Manifest::decode(payload) else {
        return;
    };
    assert_eq!(manifest.encode(), payload);
    assert!(manifest.extents.iter().all(|piece| piece.length != 0));
}

/// What is complete of bytes held elsewhere.
pub fn tracker(data: &[u8]) {
    /// So that no input takes much memory.
    const LIMIT: usize = 1 << 16;
    let Some(input) = input(data) else { return };
    // The set of an entry, and a tracker of several.
    if let Ok(spans) = ranges::unpack(input.bytes, LIMIT) {
        check_spans(&spans);
    }
    let Ok((header, mut rest)) = ranges::Header::decode(input.bytes) else {
        return;
    };
    assert_eq!(header.encode(), &input.bytes[..ranges::HEADER_LEN]);
    while let Ok((entry, behind)) = ranges::Entry::decode(rest, LIMIT) {
        assert!(behind.len() < rest.len());
        rest = behind;
        if let ranges::Entry::Added(spans) | ranges::Entry::Removed(spans) = &entry {
            check_spans(spans);
        }
        let mut again = Vec::new();
        entry.encode_to(&mut again);
        assert_eq!(ranges::Entry::decode(&again, LIMIT), Ok((entry, &[][..])));
    }
}

fn check_spans(spans: &[Range<u64>]) {
    assert!(spans.iter().all(|span| span.start < span.end));
    assert!(spans.windows(2).all(|pair| pair[0].end < pair[1].start));
    let packed = ranges::pack(spans);
    assert_eq!(ranges::unpack(&packed, spans.len()).as_deref(), Ok(spans));
}

/// Checkpoint roots.
pub fn checkpoint_root(data: &[u8]) {
    let Some(Input {
        fix,
        address,
        geometry,
        bytes,
    }) = input(data)
    else {
        return;
    };
    let _ = CheckpointRoot::rows(bytes, address);
    let mut bytes = bytes.to_vec();
    if fix && let Ok(view) = CheckpointRoot::view(&bytes) {
        let mut fixed = *view;
        fixed.magic = checkpoint::MAGIC.into();
        fixed.reserved = [0; 24];
        let wanted = usize::try_from(fixed.segments.get()).unwrap_or(usize::MAX);
        let list: Vec<u32> = bytes[CheckpointRoot::SIZE..]
            .chunks_exact(4)
            .take(wanted)
            .map(|number| u32::from_le_bytes([number[0], number[1], number[2], number[3]]) % 20)
            .collect();
        bytes = fixed.encode(&IDENTITY, address, &list);
    }
    let Ok((root, segments)) = CheckpointRoot::decode(&bytes, &IDENTITY, &geometry, address) else {
        return;
    };
    assert_eq!(segments.len() as u64, u64::from(root.segments.get()));
    assert!(
        segments
            .iter()
            .all(|&segment| segment < geometry.segment_count)
    );
    let room = segments.len() as u64 * geometry.image_bytes_per_segment();
    assert!(root.image_length.get() <= room);
    let again = root.encode(&IDENTITY, address, &segments);
    assert_eq!(again, bytes[..again.len()]);
}

/// Copies of the store file.
pub fn store_file_copy(data: &[u8]) {
    let Some(Input {
        fix,
        address,
        bytes,
        ..
    }) = input(data)
    else {
        return;
    };
    let _ = StoreFileCopy::rows(bytes, address);
    let mut bytes = bytes.to_vec();
    if fix && let Ok(view) = StoreFileCopy::view(&bytes) {
        let text = String::from_utf8_lossy(&bytes[StoreFileCopy::SIZE..]);
        match StoreFileCopy::encode(&IDENTITY, address, view.revision.get(), &text) {
            Some(fixed) => bytes = fixed,
            None => assert!(text.len() > store_file::TEXT_MAX),
        }
    }
    let Ok((revision, text)) = StoreFileCopy::decode(&bytes, &IDENTITY, address) else {
        return;
    };
    let again = StoreFileCopy::encode(&IDENTITY, address, revision, text).expect("it fits");
    assert_eq!(again, bytes[..again.len()]);
}

/// Images: opened, checked, walked, and searched for every key of them.
pub fn image(data: &[u8]) {
    let Some(Input {
        fix,
        address,
        geometry,
        bytes,
    }) = input(data)
    else {
        return;
    };
    let mut bytes = bytes.to_vec();
    if fix {
        fix_image(&mut bytes);
        check_pages(&bytes, address);
    }
    let Ok(image) = Image::open(bytes) else {
        return;
    };
    if image.check(&geometry).is_ok() {
        assert!(image.segments().count() as u64 <= u64::from(geometry.segment_count));
    }
    let _ = image.get(&address.to_le_bytes());
    if let Ok(mut cursor) = image.seek(&address.to_le_bytes()) {
        while let Ok(Some(_)) = cursor.next() {
            assert!(cursor.key() >= &address.to_le_bytes()[..]);
        }
    }
    walk(&image);
}

/// Walks a whole image; if it is good all along, every key is found, and what is built of its
/// entries is an image of the same.
fn walk(image: &Image<Vec<u8>>) {
    let header = image.header();
    let mut builder = ImageBuilder::new(header.lsn_base.get(), header.time_base.get());
    let mut entries = Vec::new();
    let Ok(mut cursor) = image.seek(b"") else {
        return;
    };
    loop {
        match cursor.next() {
            Ok(Some(entry)) => {
                builder.push(cursor.key(), &entry);
                entries.push((cursor.key().to_vec(), entry));
            }
            Ok(None) => break,
            Err(_) => return,
        }
    }
    assert_eq!(entries.len() as u64, header.entries.get());
    let segments: Vec<_> = image.segments().collect();
    let extents: Vec<_> = image.extents().collect();
    let again = Image::open(builder.finish(&extents, &segments)).expect("a built image opens");
    // Keys too many for the time of a run are sampled.
    let stride = entries.len() / 64 + 1;
    for (key, entry) in entries.iter().step_by(stride) {
        assert_eq!(image.get(key).as_ref(), Ok(&Some(entry.clone())));
        assert_eq!(again.get(key).as_ref(), Ok(&Some(entry.clone())));
    }
}

/// Makes the image's header agree with its counts.
fn fix_image(bytes: &mut [u8]) {
    let Ok(view) = ImageHeader::view(bytes) else {
        return;
    };
    let mut fixed = *view;
    let length = bytes.len() as u64;
    fixed.magic = image::MAGIC.into();
    fixed.group_size = 16.into();
    fixed.reserved = 0.into();
    fixed.groups = fixed.entries.get().div_ceil(16).into();
    fixed.length = length.into();
    let back = |from: u64, count: u64, size: u64| {
        count
            .checked_mul(size)
            .and_then(|taken| from.checked_sub(taken))
    };
    let segments = back(length, fixed.segments.get(), 24);
    let extents = segments.and_then(|from| back(from, fixed.extents.get(), 32));
    let groups = extents.and_then(|from| back(from, fixed.groups.get(), 8));
    if let (Some(segments), Some(extents), Some(groups)) = (segments, extents, groups) {
        fixed.segments_offset = segments.into();
        fixed.extents_offset = extents.into();
        fixed.groups_offset = groups.into();
        bytes[..ImageHeader::SIZE].copy_from_slice(fixed.as_bytes());
    }
}

/// Whatever is stored as an image comes back from its pages, and no other sequence's does.
fn check_pages(image: &[u8], sequence: u64) {
    if image.is_empty() {
        return;
    }
    let mut stored = image.to_vec();
    let checksum = seal_image(&mut stored, sequence);
    let zeros = [0; CheckpointRoot::SIZE];
    let mut root = *CheckpointRoot::view(&zeros).expect("as long as a root");
    root.sequence = sequence.into();
    root.image_length = (image.len() as u64).into();
    root.pages_checksum = checksum.into();
    assert_eq!(verify_image_pages(&stored, &root), Ok(image));
    root.sequence = sequence.wrapping_add(1).into();
    assert!(verify_image_pages(&stored, &root).is_err());
}

/// What structures are made of: chunks of payload, pages of images, variable-length integers,
/// and the measures of a sector.
pub fn parts(data: &[u8]) {
    let Some(Input {
        fix,
        address,
        bytes,
        ..
    }) = input(data)
    else {
        return;
    };
    chunks(fix, address, bytes);
    pages(address, bytes);
    integers(bytes);
    measures(bytes);
}

/// Stored chunks, as they are and with their checksums put right. The address is also the LSN.
fn chunks(fix: bool, address: u64, bytes: &[u8]) {
    let mask = IDENTITY.chunk_mask(address);
    for piece in [bytes, &bytes[..bytes.len().min(4096)]] {
        if let Ok(length) = verify_chunk(piece, mask, address) {
            assert_eq!(length + 8, piece.len());
        }
    }
    let mut stored = bytes.to_vec();
    if let Ok(length) = gather_chunks(&mut stored, mask, address) {
        assert_eq!(stored_length(length as u64), bytes.len() as u64);
    }
    if fix {
        let length = usize::try_from(stored_length(bytes.len() as u64)).expect("little");
        let mut stored = vec![0; length];
        write_chunks(bytes, &mut stored);
        mask_chunks(&mut stored, mask, address);
        let elsewhere = gather_chunks(&mut stored.clone(), mask, address.wrapping_add(4096));
        assert!(elsewhere.is_err() || bytes.is_empty());
        assert_eq!(gather_chunks(&mut stored, mask, address), Ok(bytes.len()));
        assert_eq!(&stored[..bytes.len()], bytes);
    }
}

/// An image as it is stored, whose root says anything.
fn pages(address: u64, bytes: &[u8]) {
    let Ok(root) = CheckpointRoot::view(bytes) else {
        return;
    };
    let stored = &bytes[CheckpointRoot::SIZE..];
    if let Some(needed) = stored_image_length(root.image_length.get()) {
        assert!(needed >= root.image_length.get());
    }
    if let Ok(image) = verify_image_pages(stored, root) {
        assert_eq!(image.len() as u64, root.image_length.get());
    }
    let _ = stored_image_length(address);
}

fn integers(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let before = bytes;
        let Some(value) = varint::take(&mut bytes) else {
            return;
        };
        let mut again = Vec::new();
        varint::put(&mut again, value);
        assert!(again.len() <= before.len() - bytes.len());
        assert_eq!(varint::take(&mut again.as_slice()), Some(value));
        assert_eq!(
            varint::unzigzag(varint::zigzag(value.cast_signed())),
            value.cast_signed()
        );
    }
}

/// Measures that pass are computed with as if nothing could overflow.
fn measures(bytes: &[u8]) {
    let Some((&[choice, power, a, b, c, d], rest)) = bytes.split_first_chunk() else {
        return;
    };
    let number = u32::from_le_bytes([a, b, c, d]);
    let geometry = Geometry {
        block_size: [512, 4096, number, 0][usize::from(choice % 4)],
        segment_size: match power {
            0..64 => 1 << power,
            _ => u64::from(number) << (power % 32),
        },
        segment_count: number >> (choice >> 3),
    };
    if geometry.check().is_err() {
        return;
    }
    let last = geometry.segment_count - 1;
    let (begin, end) = (geometry.segment_offset(last), geometry.back_area());
    assert!(begin + geometry.segment_size == end && end < geometry.sector_size());
    assert_eq!(
        geometry.segment_of(end - 1),
        Some((last, geometry.segment_size - 1))
    );
    assert_eq!(geometry.segment_of(end), None);
    assert!(geometry.image_bytes_per_segment() < geometry.segment_size);
    if let Some(address) = rest.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)) {
        if let Some((segment, offset)) = geometry.segment_of(address) {
            assert_eq!(geometry.segment_offset(segment) + offset, address);
        }
        for root in geometry.roots(address) {
            assert!(root < geometry.sector_size() && geometry.segment_of(root).is_none());
        }
    }
}

//! What the fuzz target `table` calls: decoders of the engine that no caller reaches.

use graviton_format::image::SegmentEntry;
use graviton_format::{Geometry, Structure, meta};

use super::record::{Details, put_source};
use crate::log::segments::{Purpose, Segments};

/// Reads the bytes after the first as metadata of a blob, or as the table of a sector's segments.
///
/// # Panics
/// If something does not hold.
pub fn table(data: &[u8]) {
    match data.split_first() {
        Some((0x80.., bytes)) => details(bytes),
        Some((&zeroed, bytes)) => segments(zeroed, bytes),
        None => {}
    }
}

/// What is read of metadata is read again once it is written.
fn details(bytes: &[u8]) {
    let Ok(details) = Details::decode(bytes) else {
        assert!(meta::items(bytes).any(|item| item.is_err()));
        return;
    };
    let mut again = details.encode();
    if let Some(source) = &details.source {
        put_source(&mut again, source);
    }
    assert_eq!(Details::decode(&again), Ok(details));
}

/// A table that fits its sector: its figures add up, and it is read again once it is written.
fn segments(sequence: u8, bytes: &[u8]) {
    let entries: Vec<SegmentEntry> = bytes
        .chunks_exact(SegmentEntry::SIZE)
        .filter_map(|entry| SegmentEntry::view(entry).ok().copied())
        .collect();
    let geometry = Geometry {
        block_size: 512,
        segment_size: 64 * 1024,
        segment_count: u32::try_from(entries.len()).unwrap_or(u32::MAX),
    };
    let decode = |entries: Vec<SegmentEntry>, count| {
        let geometry = Geometry {
            segment_count: count,
            ..geometry
        };
        Segments::decode(entries.into_iter(), &geometry, sequence.into())
    };
    let count = geometry.segment_count;
    let Some(segments) = decode(entries.clone(), count) else {
        return;
    };
    if let Some(fewer) = count.checked_sub(1) {
        assert!(decode(entries.clone(), fewer).is_none());
    }
    // As in a sector that has grown since.
    let mut grown = segments.clone();
    grown.grow(count + 1);
    let found = decode(entries, count + 1).map(|segments| segments.encode());
    assert_eq!(found, Some(grown.encode()));
    assert_eq!(grown.free(), segments.free() + 1);
    assert!(segments.count() == count && segments.free() <= count);
    for (_, segment) in segments.iter() {
        assert!(segment.written <= geometry.segment_size && segment.live <= geometry.segment_size);
    }
    assert!(segments.reserve(Purpose::Delete) <= segments.reserve(Purpose::Put));
    let _ = segments.wants_zeroing(2);
    let encoded = segments.encode();
    let again = decode(encoded.clone(), count).map(|segments| segments.encode());
    assert_eq!(again, Some(encoded));
}

//! One bit flipped anywhere in a structure is always detected; zeros are never one; cuts are errors.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod support;

use graviton_format::checkpoint::CheckpointRoot;
use graviton_format::frame::FrameHeader;
use graviton_format::image::Image;
use graviton_format::record::{Manifest, RecordView};
use graviton_format::segment::SegmentHeader;
use graviton_format::store_file::StoreFileCopy;
use graviton_format::superblock::Superblock;
use graviton_format::{FormatError, STRUCTURES};
use support::sample::{GEOMETRY, IDENTITY};
use support::vectors::{self, Vector};

/// Decodes a header and says how many bytes its checksum vouches for.
fn decode(vector: &Vector, bytes: &[u8]) -> Option<Result<usize, FormatError>> {
    let address = vector.address;
    Some(match vector.kind.as_str() {
        "superblock" => Superblock::decode(bytes, address).map(|_| 512),
        "checkpoint-root" => CheckpointRoot::decode(bytes, &IDENTITY, &GEOMETRY, address)
            .map(|(_, list)| 128 + 4 * list.len()),
        "store-file-copy" => {
            StoreFileCopy::decode(bytes, &IDENTITY, address).map(|(_, text)| 64 + text.len())
        }
        "segment-header" => {
            let (segment, _) = GEOMETRY.segment_of(address)?;
            SegmentHeader::decode(bytes, &IDENTITY, &GEOMETRY, segment).map(|_| 128)
        }
        "frame" => FrameHeader::decode(bytes, &IDENTITY, &GEOMETRY, address).map(|_| 64),
        "record" => RecordView::decode(bytes, &IDENTITY, &GEOMETRY, address)
            .map(|view| view.payload_offset()),
        _ => return None,
    })
}

fn whole_headers() -> Vec<(Vector, usize)> {
    vectors::names()
        .iter()
        .map(|name| vectors::load(name))
        .filter(|vector| vector.expect.is_none())
        .filter_map(|vector| {
            let covered = decode(&vector, &vector.bytes)?.unwrap();
            Some((vector, covered))
        })
        .collect()
}

/// [F-2]
#[test]
fn every_flipped_bit_of_a_header_is_detected() {
    let headers = whole_headers();
    assert_eq!(headers.len(), 18);
    for (vector, covered) in headers {
        for bit in 0..covered * 8 {
            let mut bytes = vector.bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let found = decode(&vector, &bytes).unwrap();
            assert!(found.is_err(), "{}: bit {bit}", vector.name);
        }
        for cut in 0..covered {
            let found = decode(&vector, &vector.bytes[..cut]).unwrap();
            assert!(found.is_err(), "{}: cut at {cut}", vector.name);
        }
    }
}

/// [F-2]: the same bytes are nothing at any other address, or in another sector or store.
#[test]
fn headers_are_bound_to_their_place() {
    for (mut vector, _) in whole_headers() {
        let bytes = vector.bytes.clone();
        let home = vector.address;
        for address in (0..GEOMETRY.sector_size()).step_by(512) {
            vector.address = address;
            // A segment's header is asked for by number, so any address in it will do.
            let same = vector.kind == "segment-header"
                && GEOMETRY.segment_of(address).map(|(segment, _)| segment)
                    == GEOMETRY.segment_of(home).map(|(segment, _)| segment);
            if address == home || same {
                continue;
            }
            let found = decode(&vector, &bytes);
            assert!(found.is_none_or(|found| found.is_err()), "{}", vector.name);
        }
    }
}

/// [F-1]
#[test]
fn zeros_are_never_a_structure() {
    for (mut vector, _) in whole_headers() {
        for length in [0, 64, 512, 65536] {
            for address in [0, 16384, 32768, vector.address, GEOMETRY.back_area()] {
                vector.address = address;
                let zeros = vec![0; length];
                if let Some(found) = decode(&vector, &zeros) {
                    assert!(found.is_err(), "{}", vector.name);
                }
            }
        }
    }
    assert!(Image::open(vec![0; 65536]).is_err());
    // A manifest of zeros says: no bytes, in no pieces. It has only 8 bytes then, and no manifest
    // is read but from a record, which zeros are not.
    assert!(Manifest::decode(&[0; 24]).is_err());
}

#[test]
fn field_tables_cover_every_byte() {
    for (name, size, fields) in STRUCTURES {
        let mut end = 0;
        for field in *fields {
            assert_eq!(field.offset, end, "{name}.{}", field.name);
            assert!(!field.doc.is_empty());
            end += field.size;
        }
        assert_eq!(end, *size, "{name}");
    }
}

//! Whole sectors: recovery by the rules of `SPEC.md`, whole, torn and damaged.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod support;

use std::collections::BTreeMap;

use graviton_format::checkpoint::CheckpointRoot;
use graviton_format::frame::FrameHeader;
use graviton_format::geometry::AREA_SIZE;
use graviton_format::image::Image;
use graviton_format::record::RecordKind;
use graviton_format::superblock::Superblock;
use graviton_format::{Geometry, Structure};
use support::reader::{Failure, recover};
use support::sample::{self, GEOMETRY, IDENTITY, Sample};
use support::vectors;

fn blobs(sector: &[u8]) -> BTreeMap<Vec<u8>, Result<Vec<u8>, String>> {
    recover(sector).unwrap().blobs(sector)
}

fn expected() -> BTreeMap<Vec<u8>, Result<Vec<u8>, String>> {
    sample::expected()
        .into_iter()
        .map(|(key, payload)| (key, Ok(payload)))
        .collect()
}

fn zero(sector: &mut [u8], address: u64, length: u64) {
    sector[address as usize..(address + length) as usize].fill(0);
}

#[test]
fn the_sample_is_recovered_from_either_checkpoint() {
    let Sample { writer, .. } = sample::sample();
    let whole = recover(&writer.bytes).unwrap();
    assert_eq!((whole.checkpoint, whole.frames), (2, 4));
    assert_eq!(blobs(&writer.bytes), expected());
    // [F-37]: without the newest root the older one serves; the log it needs is still there [F-55].
    let mut older = writer.bytes.clone();
    for address in GEOMETRY.roots(2) {
        zero(&mut older, address, 512);
    }
    let older_state = recover(&older).unwrap();
    assert_eq!((older_state.checkpoint, older_state.frames), (1, 9));
    assert_eq!(older_state.blobs(&older), expected());
    assert_eq!(older_state.tail, whole.tail);
    // One copy of a root is enough.
    for address in GEOMETRY.roots(2) {
        let mut one = writer.bytes.clone();
        zero(&mut one, address, 512);
        assert_eq!(recover(&one).unwrap().checkpoint, 2);
    }
    // Its image damaged: the same, and replay must reach what the root covers.
    let mut rotten = writer.bytes.clone();
    rotten[GEOMETRY.segment_offset(3) as usize + 600] ^= 1;
    assert_eq!(recover(&rotten).unwrap().checkpoint, 1);
    assert_eq!(blobs(&rotten), expected());
    let mut neither = rotten;
    neither[GEOMETRY.segment_offset(0) as usize + 600] ^= 1;
    assert_eq!(recover(&neither), Err(Failure::NoCheckpoint));
}

#[test]
fn every_prefix_of_the_log_opens_and_no_acknowledged_frame_is_cut() {
    let Sample { writer, .. } = sample::sample();
    let frames = &writer.frames[5..];
    for (number, &(address, length)) in frames.iter().enumerate() {
        // The tail torn at every block of the frame, with all after it gone: cut.
        let mut torn = writer.bytes.clone();
        for &(address, length) in &frames[number + 1..] {
            zero(&mut torn, address, length.into());
        }
        if number == 0 {
            zero(&mut torn, GEOMETRY.segment_offset(5), 512);
        }
        for kept in (0..length).step_by(512) {
            let mut torn = torn.clone();
            zero(&mut torn, address + u64::from(kept), (length - kept).into());
            let state = recover(&torn).unwrap();
            assert_eq!(state.frames, number, "frame {number} torn at {kept}");
            let (segment, offset) = state.tail;
            let linked = GEOMETRY.segment_offset(5) + 512;
            let end = GEOMETRY.segment_offset(segment) + offset;
            assert!(end == address || (number == 1 && end == linked));
        }
        // The same damage with what came later in place: corruption [F-51], but for the last.
        let mut rotten = writer.bytes.clone();
        rotten[address as usize + 20] ^= 1;
        let last = number + 1 == frames.len();
        match recover(&rotten) {
            Ok(state) => assert!(last && state.frames == number),
            Err(Failure::Corruption { address: found, .. }) => assert!(!last && found == address),
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_lost_link_is_corruption_even_if_only_frames_behind_it_tell() {
    let Sample { writer, .. } = sample::sample();
    for damage in [0, 4, 40, 100] {
        let mut lost = writer.bytes.clone();
        let header = GEOMETRY.segment_offset(5);
        if damage == 0 {
            zero(&mut lost, header, 512);
        }
        lost[header as usize + damage] ^= 8 * u8::from(damage != 0);
        let Failure::Corruption { last, durable, .. } = recover(&lost).unwrap_err() else {
            panic!("byte {damage} of the header");
        };
        // The frames claim up to 12; behind a header that no crash leaves, the note counts as well.
        assert_eq!((last, durable), (9, if damage == 0 { 12 } else { 13 }));
    }
    // The header of the next segment was written while the last frame was still on its way, and so
    // does not vouch for it; the frames after it do.
    let mut writer = sample::Writer::new();
    let blob = |key: &'static [u8]| sample::draft(RecordKind::Blob, key, key);
    writer.checkpoint(1, &[0, 1]);
    writer.log_segment(2);
    writer.frame(&[blob(b"a")]);
    writer.frame(&[blob(b"b")]);
    writer.durable = 1;
    writer.log_segment(3);
    writer.durable = 2;
    writer.frame(&[blob(b"c")]);
    let mut rotten = writer.bytes.clone();
    rotten[writer.frames[1].0 as usize + 70] ^= 1;
    assert!(matches!(
        recover(&rotten),
        Err(Failure::Corruption {
            last: 1,
            durable: 2,
            ..
        })
    ));
}

/// Nothing on the disk claims the only frame of a segment whose header is damaged, yet no crash
/// leaves such a header.
#[test]
fn frames_behind_a_damaged_header_count_as_acknowledged() {
    let blob = |key: &'static [u8]| sample::draft(RecordKind::Blob, key, key);
    let mut writer = sample::Writer::new();
    writer.checkpoint(1, &[0, 1]);
    writer.log_segment(2);
    writer.frame(&[blob(b"a")]);
    writer.log_segment(3);
    writer.frame(&[blob(b"b")]);
    let mut rotten = writer.bytes.clone();
    rotten[GEOMETRY.segment_offset(3) as usize + 40] ^= 1;
    let error = recover(&rotten).unwrap_err();
    assert!(matches!(error, Failure::Corruption { last: 1, .. }));
    // A header of zeros is what a crash leaves, if the frame went ahead of it.
    zero(&mut rotten, GEOMETRY.segment_offset(3), 512);
    assert_eq!(recover(&rotten).unwrap().last_lsn, 1);
}

#[test]
fn bad_payload_of_an_acknowledged_frame_fails_reads_of_it_alone() {
    let Sample { writer, moved, .. } = sample::sample();
    let mut rotten = writer.bytes.clone();
    rotten[(moved.address + 200) as usize] ^= 1;
    let state = recover(&rotten).unwrap();
    assert_eq!(state.damaged, [writer.frames[6].0]);
    let mut found = state.blobs(&rotten);
    assert!(found.remove(&b"large"[..]).unwrap().is_err());
    assert!(found.remove(&b"slice"[..]).unwrap().is_err());
    let mut wanted = expected();
    wanted.retain(|key, _| key != b"large" && key != b"slice");
    assert_eq!(found, wanted);
}

#[test]
fn changes_make_versions_out_of_others() {
    let (mut writer, _) = sample::changes();
    let state = recover(&writer.bytes).unwrap();
    let found = state.blobs(&writer.bytes).remove(&b"key"[..]).unwrap();
    assert_eq!(found.unwrap(), b"01abc56789\0\0BCc\0");
    // Bytes of another version than is there lie elsewhere: that says nothing of this one.
    let elsewhere = sample::manifest(&[sample::piece(5, 0, 2)]);
    writer.frame(&[sample::change(
        RecordKind::Merge,
        b"key",
        (3, 4, 16),
        elsewhere,
    )]);
    let state = recover(&writer.bytes).unwrap();
    let found = state.blobs(&writer.bytes).remove(&b"key"[..]).unwrap();
    assert_eq!(found.unwrap(), b"01abc56789\0\0BCc\0");
    // Of another version than is there.
    writer.frame(&[sample::change(RecordKind::Range, b"key", (3, 0, 16), b"a")]);
    assert!(matches!(recover(&writer.bytes), Err(Failure::Change(_))));
}

/// A crash loses the second frame, while what follows it arrives: `follow` says where it is. Then a
/// new frame is written in place of the lost one, with LSN `lsn`. Gives the keys that are found.
fn after_a_cut(follow_in_next_segment: bool, lsn: u64) -> Vec<Vec<u8>> {
    let blob = |key: &'static [u8]| sample::draft(RecordKind::Blob, key, key);
    let start = || {
        let mut writer = sample::Writer::new();
        writer.checkpoint(1, &[0, 1]);
        writer.log_segment(2);
        writer.frame(&[blob(b"kept")]);
        writer
    };
    let mut first = start();
    first.frame(&[blob(b"lost")]);
    first.durable = 1;
    if follow_in_next_segment {
        first.log_segment(3);
        first.durable = 1;
    }
    first.frame(&[blob(b"left over")]);
    let lost = first.frames[1].0 as usize..first.frames[1].0 as usize + 512;
    let mut crashed = first.bytes;
    crashed[lost.clone()].fill(0);
    let state = recover(&crashed).unwrap();
    assert_eq!((state.last_lsn, state.frames), (1, 1));
    let mut second = start();
    second.lsn = lsn - 1;
    second.frame(&[blob(b"new!")]);
    crashed[lost.clone()].copy_from_slice(&second.bytes[lost]);
    recover(&crashed)
        .unwrap()
        .blobs(&crashed)
        .into_keys()
        .collect()
}

#[test]
fn leftovers_behind_a_cut_are_not_taken_for_continuations() {
    for follow_in_next_segment in [false, true] {
        // LSNs go on above all seen; even if they did not, the chain of checksums would hold [F-22].
        for lsn in [4, 2] {
            let keys = after_a_cut(follow_in_next_segment, lsn);
            assert_eq!(keys, [b"kept".to_vec(), b"new!".to_vec()]);
        }
    }
}

#[test]
fn superblocks_stand_in_for_each_other_and_short_files_are_refused() {
    let Sample { writer, .. } = sample::sample();
    let size = writer.bytes.len();
    for address in GEOMETRY.superblocks() {
        let mut damaged = writer.bytes.clone();
        damaged[address as usize + 70] ^= 1;
        assert_eq!(blobs(&damaged), expected());
    }
    // Bytes behind the sector do not matter, as long as the front copy tells where it ends.
    let mut longer = writer.bytes.clone();
    longer.extend([7; 4096]);
    assert_eq!(blobs(&longer), expected());
    assert_eq!(recover(&writer.bytes[..size - 1]), Err(Failure::Truncated));
    for length in [0, 1, 511, 512, 65536, 1 << 20] {
        assert!(recover(&writer.bytes[..length]).is_err());
    }
    assert!(recover(&vec![0; size]).is_err());
}

/// Every byte that was ever written, damaged one at a time: what comes back is right or an error.
#[test]
fn no_damage_of_one_byte_gives_wrong_bytes_or_loses_other_blobs() {
    let Sample { writer, note, .. } = sample::sample();
    let whole = recover(&writer.bytes).unwrap();
    let wanted = expected();
    let written = (0..writer.bytes.len()).filter(|&at| writer.bytes[at] != 0);
    // All structures bit by bit in `decoders.rs`; here a stride through all, headers included.
    for place in written.step_by(11) {
        let mut damaged = writer.bytes.clone();
        damaged[place] ^= 1 << (place % 8);
        let state = match recover(&damaged) {
            Ok(state) => state,
            Err(Failure::Corruption { .. }) => continue,
            Err(other) => panic!("byte {place}: {other:?}"),
        };
        let in_note = (note..note + FrameHeader::SIZE as u64).contains(&(place as u64));
        assert_eq!(
            state.last_lsn,
            whole.last_lsn - u64::from(in_note),
            "byte {place}"
        );
        let found = state.blobs(&damaged);
        assert_eq!(found.len(), wanted.len(), "byte {place}");
        for (key, payload) in found {
            assert!(payload.is_err() || payload == wanted[&key], "byte {place}");
        }
    }
}

/// The steps in which a sector grows [F-67], each on what the one before has left.
fn growth(sector: &[u8], grown: Geometry) -> Vec<Vec<u8>> {
    let mut bytes = sector.to_vec();
    let mut steps = vec![bytes.clone()];
    bytes.resize(grown.sector_size() as usize, 0);
    steps.push(bytes.clone());
    let mut put = |address: u64, part: &[u8]| {
        bytes[address as usize..][..part.len()].copy_from_slice(part);
        steps.push(bytes.clone());
    };
    for slot in [0, 1] {
        let [front, _] = GEOMETRY.roots(slot);
        let (root, segments) =
            CheckpointRoot::decode(&sector[front as usize..], &IDENTITY, &GEOMETRY, front).unwrap();
        let [_, back] = grown.roots(slot);
        put(back, &root.encode(&IDENTITY, back, &segments));
    }
    let mut superblock = Superblock::decode(sector, 0).unwrap();
    superblock.segment_count = grown.segment_count.into();
    superblock.sector_size = grown.sector_size().into();
    superblock.sequence = (superblock.sequence.get() + 1).into();
    put(
        grown.back_area(),
        superblock.sealed(grown.back_area()).bytes(),
    );
    put(0, superblock.sealed(0).bytes());
    put(GEOMETRY.back_area(), &[0; AREA_SIZE as usize]);
    steps
}

#[test]
fn a_sector_that_grows_is_one_or_the_other_at_each_moment() {
    let Sample { writer, .. } = sample::sample();
    let grown = Geometry {
        segment_count: GEOMETRY.segment_count + 3,
        ..GEOMETRY
    };
    let steps = growth(&writer.bytes, grown);
    for (number, step) in steps.iter().enumerate() {
        let state = recover(step).unwrap();
        let expected_now = if number < 4 { GEOMETRY } else { grown };
        assert_eq!(state.superblock.geometry(), expected_now, "step {number}");
        assert_eq!(state.blobs(step), expected(), "step {number}");
        // The front copy is not needed, once the file is no longer than the sector.
        if !(1..4).contains(&number) {
            let mut rotten = step.clone();
            rotten[100] ^= 1;
            let state = recover(&rotten).unwrap();
            assert_eq!(state.superblock.geometry(), expected_now, "step {number}");
            assert_eq!(state.blobs(&rotten), expected(), "step {number}");
        }
    }
    // Nor is it, if what was written to it was lost.
    let mut lost = steps[steps.len() - 1].clone();
    lost[..512].copy_from_slice(&writer.bytes[..512]);
    assert_eq!(recover(&lost).unwrap().superblock.geometry(), grown);
    // The images know of no segments that there are not, and of no fewer than there ever were.
    let image = Image::open(vectors::load("image").bytes).unwrap();
    image.check(&grown).unwrap();
    for segment_count in [GEOMETRY.segment_count - 1, 0] {
        let fewer = Geometry {
            segment_count,
            ..GEOMETRY
        };
        image.check(&fewer).unwrap_err();
    }
}

#[test]
fn the_back_area_is_found_by_the_size_of_the_file() {
    for segment_size in [64 << 10, 1 << 20, 1 << 30] {
        for segment_count in [16, 17, 100] {
            let geometry = Geometry {
                block_size: 512,
                segment_size,
                segment_count,
            };
            for more in [0, 512, segment_size - 1] {
                let size = geometry.sector_size() + more;
                assert_eq!(geometry.fitted(size), Some(geometry));
                let areas: Vec<_> = Geometry::back_areas(size).collect();
                assert!(areas.contains(&geometry.back_area()));
                assert!(areas.is_sorted_by(|one, next| one > next) && areas.len() <= 15);
            }
            assert_ne!(geometry.fitted(geometry.sector_size() - 1), Some(geometry));
        }
    }
    for size in [0, AREA_SIZE, 2 * AREA_SIZE + 16 * 65536 - 1, u64::MAX] {
        let few = Geometry::back_areas(size).count();
        assert_eq!(few, 0, "{size}");
    }
}

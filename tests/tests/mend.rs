//! Damage that lies around records is mended in the sector that it is in, be it the only one: what can be read
//! is saved, and what can't be stays where it is, and is named.

use std::ops::ControlFlow;

use graviton_engine::io::sim::Sim;
use graviton_engine::port::{
    BinaryKey, BlobStore, CopyOptions, DeleteOptions, GetOptions, MutableObjectStore, PutOptions,
    PutRangeOptions, Span,
};
use graviton_engine::store::{
    Access, CreateOptions, Finding, OpenOptions, ScrubDepth, ScrubOptions, SegmentState, Store,
};
use graviton_tests::history::Plan;
use graviton_tests::random::payload;
use graviton_tests::{bytes_of, geometry, settle};

const PATH: &str = "/store";

fn options() -> CreateOptions {
    Plan::SMALL.create_options()
}

fn open(sim: &Sim) -> Store {
    let options = OpenOptions {
        access: Access::ReadWrite,
        ..options().open
    };
    Store::open_on(sim.backend(), PATH, options).expect("it opens")
}

fn key(number: usize) -> BinaryKey {
    BinaryKey::new(format!("key/{number:02}")).expect("a short key")
}

/// Blobs, of which some were deleted, copied, and changed in part: what they should be, by number.
fn filled() -> (Sim, Store, Vec<Option<Vec<u8>>>) {
    let sim = Sim::new(512, 1);
    sim.record(false);
    let store = Store::create_on(sim.backend(), PATH, options()).expect("it is made");
    let mut blobs: Vec<Option<Vec<u8>>> = (0..40)
        .map(|number| Some(payload(number as u64 + 1, 50 + 170 * number).to_vec()))
        .collect();
    for (number, blob) in blobs.iter().enumerate() {
        let blob = blob.clone().expect("there is one");
        let put = store.put(&key(number), blob.into(), PutOptions::default());
        put.wait().expect("it is put");
    }
    for number in (0..40).step_by(7) {
        let deleted = store.delete(&key(number), DeleteOptions::default()).wait();
        assert!(deleted.expect("it is deleted").existed);
        blobs[number] = None;
    }
    for number in (10..40).step_by(9) {
        if blobs[number].is_none() {
            continue;
        }
        blobs.push(blobs[number].clone());
        let target = key(blobs.len() - 1);
        let copied = store.copy(&key(number), &target, CopyOptions::default());
        copied.wait().expect("it is copied");
        let bytes = payload(100 + number as u64, 300);
        let span = Span::new(200, 500).expect("in order");
        let ranged = store.put_range(
            &key(number),
            span,
            bytes.clone(),
            PutRangeOptions::default(),
        );
        ranged.wait().expect("some of it is replaced");
        if let Some(blob) = &mut blobs[number] {
            blob[200..500].copy_from_slice(&bytes);
        }
    }
    (sim, store, blobs)
}

fn scrub(store: &Store, depth: ScrubDepth) -> Vec<Finding> {
    let options = ScrubOptions {
        depth,
        ..ScrubOptions::default()
    };
    let report = store.scrub(&options, &mut |_| ControlFlow::Continue(()));
    report.expect("it is scrubbed").findings
}

fn verify(store: &Store) -> Vec<Finding> {
    let report = store.verify(&mut |_| {});
    report.expect("it is verified").findings
}

/// Which blobs can't be read; the others are right.
fn damaged(store: &Store, blobs: &[Option<Vec<u8>>]) -> Vec<usize> {
    let mut damaged = Vec::new();
    for (number, expected) in blobs.iter().enumerate() {
        let found = store.get(&key(number), GetOptions::default()).wait();
        match (found, expected) {
            (Ok(blob), Some(expected)) => assert_eq!(blob.bytes, expected[..], "{number}"),
            (Err(_), Some(_)) => damaged.push(number),
            (found, None) => assert!(found.is_err(), "{number}"),
        }
    }
    damaged
}

fn is_clean(store: &Store) {
    assert_eq!(verify(store), []);
    assert_eq!(store.info().health, Vec::<String>::new());
}

/// Of a store that is open, any bit may flip: what is lost is what it lies in, if that lives. Everything else is
/// saved, and nothing is wrong with it then.
#[test]
fn any_bit_of_the_only_sector_may_flip() {
    let (sim, store, _) = filled();
    store.checkpoint().expect("a checkpoint");
    drop(store);
    let blocks = bytes_of(&sim.image(), 0);
    let in_use = |block: &usize| blocks[block * 512..][..512].iter().any(|&byte| byte != 0);
    let blocks: Vec<usize> = (0..blocks.len() / 512).filter(in_use).collect();
    let (mut tried, mut whole, mut lost) = (0, 0, 0);
    let bits = blocks.len() * 512 * 8;
    for bit in (0..bits).step_by((bits / 400) | 1) {
        let offset = blocks[bit / 8 / 512] * 512 + bit / 8 % 512;
        let (sim, store, blobs) = filled();
        store.checkpoint().expect("a checkpoint");
        tried += 1;
        sim.rot(0, offset, u8::try_from(bit % 8).expect("of eight"));
        let hit = damaged(&store, &blobs);
        let first = verify(&store);
        let found = scrub(&store, ScrubDepth::Everything);
        assert_eq!(found.is_empty(), first.is_empty(), "{offset}: {first:?}");
        store.repair(&mut |_| {}).expect("it is mended");
        assert_eq!(damaged(&store, &blobs), hit, "{offset}");
        let left = verify(&store);
        match (left.is_empty(), hit.is_empty()) {
            (true, _) => whole += 1,
            (false, false) => lost += 1,
            // What is said of a blob, or the record of one that was changed.
            (false, true) => eprintln!("{offset}: {}", left[0].what),
        }
        if left.is_empty() {
            is_clean(&store);
            drop(store);
            let store = open(&sim);
            is_clean(&store);
            assert_eq!(damaged(&store, &blobs), []);
        }
    }
    eprintln!("{whole} of {tried} times all was mended, {lost} times a blob was damaged");
    assert!(whole > 100 && lost > 10 && (whole + lost) * 50 > tried * 49);
}

/// Addresses of the frames in a segment, which are behind its header, block by block.
fn frames(sim: &Sim, store: &Store, segment: u32) -> Vec<usize> {
    let sector = &store.info().sectors[0];
    let block = sector.block_size as usize;
    let size = usize::try_from(sector.segment_size).expect("it is in memory");
    let start = (64 << 10) + segment as usize * size;
    let bytes = bytes_of(&sim.image(), 0);
    let blocks = (start + block..start + size).step_by(block);
    let is_frame = |at: &usize| bytes[*at..][..4] == graviton_format::frame::MAGIC.to_le_bytes();
    blocks.filter(is_frame).collect()
}

fn segments_of_log(store: &Store) -> Vec<u32> {
    let segments = store.segments(0).into_iter();
    let of_log = |state| matches!(state, SegmentState::Open | SegmentState::Sealed);
    let of_log = segments.filter(|segment| of_log(segment.state));
    of_log.map(|segment| segment.index).collect()
}

/// A frame's header is damaged: the records in it, and behind it, are saved all the same; where a scrub is told to
/// look at headers alone, too, and by maintenance alone.
#[test]
fn segments_that_can_not_be_walked_are_emptied() {
    let mut emptied = 0;
    for number in 0.. {
        let (sim, store, blobs) = filled();
        let segments = segments_of_log(&store);
        let places = segments
            .iter()
            .flat_map(|&segment| frames(&sim, &store, segment));
        let Some(at) = places.step_by(5).nth(number) else {
            break;
        };
        sim.rot(0, at + 20, 3);
        let depth = match number % 2 {
            0 => ScrubDepth::Headers,
            _ => ScrubDepth::Everything,
        };
        let found = scrub(&store, depth);
        assert!(found[0].what.contains("can't be walked"), "{found:?}");
        match number % 3 {
            0 => drop(store.repair(&mut |_| {}).expect("it is mended")),
            _ => settle(&store).expect("it is mended"),
        }
        assert_eq!(scrub(&store, ScrubDepth::Everything), []);
        is_clean(&store);
        assert_eq!(damaged(&store, &blobs), []);
        drop(store);
        let store = open(&sim);
        is_clean(&store);
        assert_eq!(damaged(&store, &blobs), []);
        emptied += 1;
    }
    assert!(emptied > 5, "{emptied}");
}

/// Of a segment in which one blob is damaged everything else is saved; it is given up when that blob is gone.
#[test]
fn what_can_not_be_read_stays_and_is_named() {
    let (sim, store, mut blobs) = filled();
    let blob = blobs[20].clone().expect("there is one");
    let bytes = bytes_of(&sim.image(), 0);
    let at = bytes
        .windows(64)
        .position(|bytes| *bytes == blob[1000..1064]);
    let at = at.expect("its bytes are on the disk");
    sim.rot(0, at, 0);
    let frames = frames(
        &sim,
        &store,
        u32::try_from((at - (64 << 10)) >> 16).expect("few"),
    );
    let next = frames.into_iter().find(|frame| *frame > at);
    sim.rot(0, next.expect("another frame") + 20, 0);
    assert_eq!(scrub(&store, ScrubDepth::Everything).len(), 2);
    settle(&store).expect("what can be is mended");
    assert_eq!(damaged(&store, &blobs), [20]);
    assert!(!scrub(&store, ScrubDepth::Everything).is_empty());
    settle(&store).expect("nothing more can be");
    let health = store.info().health;
    assert!(
        health.iter().all(|line| line.contains("left where it is")),
        "{health:?}"
    );
    assert!(!verify(&store).is_empty());
    drop(store);
    let store = open(&sim);
    assert_eq!(damaged(&store, &blobs), [20]);
    assert!(!scrub(&store, ScrubDepth::Headers).is_empty());
    store
        .delete(&key(20), DeleteOptions::default())
        .wait()
        .expect("it is deleted");
    blobs[20] = None;
    settle(&store).expect("the rest is mended");
    is_clean(&store);
    assert_eq!(damaged(&store, &blobs), []);
}

/// A scrub that is broken off behind the keys goes on there.
#[test]
fn a_scrub_goes_on_around_replicas() {
    let (sim, store, _) = filled();
    let last = segments_of_log(&store).pop().expect("a log");
    let at = *frames(&sim, &store, last).last().expect("a frame");
    sim.rot(0, at + 20, 3);
    let (mut next, mut parts, mut found) = (None, 0, 0);
    loop {
        let options = ScrubOptions {
            from: next.take(),
            ..ScrubOptions::default()
        };
        let report = store.scrub(&options, &mut |_| ControlFlow::Break(()));
        let report = report.expect("it is scrubbed");
        parts += 1;
        found += report.findings.len();
        match report.next {
            Some(more) => next = Some(more),
            None => break,
        }
    }
    assert!(parts > 40 && found == 1, "{parts} parts, {found} findings");
}

/// Of superblocks, roots and images, whatever of a store that is open is damaged is written anew.
#[test]
fn copies_are_written_anew() {
    let (_, store, _) = filled();
    let geometry = geometry(&store);
    drop(store);
    let copies = [0, 1, 2, 3].map(|copy| match copy {
        0 | 1 => geometry.roots(0)[copy],
        _ => geometry.roots(1)[copy - 2],
    });
    let copies = copies.into_iter().chain(geometry.superblocks());
    let copies: Vec<usize> = copies
        .map(|at| usize::try_from(at).expect("it is in memory"))
        .collect();
    for number in 0..=copies.len() {
        let (sim, store, blobs) = filled();
        store.checkpoint().expect("a checkpoint");
        match copies.get(number) {
            Some(at) => sim.rot(0, at + 40, 1),
            None => {
                let mut segments = store.segments(0).into_iter();
                let image = segments.find(|segment| segment.state == SegmentState::Checkpoint);
                let start = geometry.segment_offset(image.expect("an image").index);
                sim.rot(0, usize::try_from(start).expect("it is in memory") + 600, 1);
            }
        }
        assert!(!scrub(&store, ScrubDepth::Headers).is_empty(), "{number}");
        store.repair(&mut |_| {}).expect("it is mended");
        is_clean(&store);
        drop(store);
        let store = open(&sim);
        is_clean(&store);
        assert_eq!(damaged(&store, &blobs), []);
    }
}

/// What can't be moved out of a damaged segment is made anew of another sector's: payload that a copy shares, and
/// the list of pieces of a blob that was changed since.
#[test]
fn what_can_not_be_moved_is_repaired() {
    for is_list in [false, true] {
        let sim = Sim::new(512, 1);
        sim.record(false);
        let two = CreateOptions {
            sectors: 2,
            replicas: 2,
            ..options()
        };
        let store = Store::create_on(sim.backend(), PATH, two).expect("it is made");
        let mut blob = payload(1, 9000).to_vec();
        let put = store.put(&key(0), blob.clone().into(), PutOptions::default());
        put.wait().expect("it is put");
        let copied = store.copy(&key(0), &key(1), CopyOptions::default());
        copied.wait().expect("it is copied");
        let bytes = bytes_of(&sim.image(), 0);
        let find = |what: &[u8]| {
            let found: Vec<usize> = (0..bytes.len() - what.len())
                .filter(|at| bytes[*at..].starts_with(what))
                .collect();
            *found.last().expect("it is on the disk")
        };
        let at = match is_list {
            false => find(&blob[1000..1064]),
            // It begins with the size, behind the first chunk's checksum.
            true => find(&9000_u64.to_le_bytes()),
        };
        let span = Span::new(200, 500).expect("in order");
        let new = payload(2, 300);
        let options = PutRangeOptions::default();
        let ranged = store.put_range(&key(1), span, new.clone(), options);
        ranged.wait().expect("some of it is replaced");
        let segment = segments_of_log(&store)[0];
        let frames = frames(&sim, &store, segment);
        sim.rot(0, at, 0);
        sim.rot(0, frames[0] + 20, 0);
        assert!(!scrub(&store, ScrubDepth::Headers).is_empty());
        assert_eq!(store.repair(&mut |_| {}).expect("it is mended"), 0);
        assert_eq!(scrub(&store, ScrubDepth::Everything), []);
        is_clean(&store);
        let before = store.get(&key(0), GetOptions::default()).wait();
        assert_eq!(before.expect("it is read").bytes, blob[..]);
        blob[200..500].copy_from_slice(&new);
        let after = store.get(&key(1), GetOptions::default()).wait();
        assert_eq!(after.expect("it is read").bytes, blob[..]);
    }
}

//! Blocks that can't be read when a store is opened, at places where that is not to be told from
//! nothing having been there: what was acknowledged is not lost by it, now or when the block can be
//! read again.

use std::collections::BTreeMap;
use std::ops::Range;

use graviton_engine::io::sim::{Image, Loss, Sim};
use graviton_engine::port::{
    BinaryKey, BlobStore, Durability, ErrorKind, GetOptions, StorageError,
};
use graviton_engine::store::{Access, SegmentInfo, SegmentState, Store};
use graviton_engine::testing::{Subject, contents_of};
use graviton_format::Identity;
use graviton_format::checkpoint::CheckpointRoot;
use graviton_format::frame::FrameHeader;
use graviton_format::geometry::ROOT_SLOT_SIZE;
use graviton_format::segment::{KIND_CHECKPOINT, SegmentHeader};
use graviton_tests::history::{Machine, Plan};
use graviton_tests::{geometry, put_options};

const PLAN: Plan = Plan::SMALL;
/// Fills some sixteenth of a segment.
const LENGTH: usize = 3000;

fn key(number: usize) -> BinaryKey {
    BinaryKey::new(format!("key/{number:03}")).expect("a short key")
}

fn fresh() -> Machine {
    let mut machine = Machine::new(PLAN, 1);
    drop(machine.fresh());
    machine
}

fn boot(image: &Image) -> Machine {
    Machine::boot(PLAN, image, 1)
}

fn put(store: &Store, number: usize, length: usize, durability: Durability) {
    let bytes = vec![7; length].into();
    let put = store.put(&key(number), bytes, put_options(durability));
    put.wait().expect("it is put");
}

fn identity(store: &Store) -> Identity {
    let info = store.info();
    let id = u128::from_str_radix(&info.store_id, 16).expect("32 hex digits");
    Identity {
        store_id: id.to_be_bytes(),
        sector_id: u64::from_str_radix(&info.sectors[0].sector_id, 16).expect("16 hex digits"),
    }
}

fn segments_that_are(store: &Store, state: SegmentState) -> Vec<u32> {
    let segments = store.segments(0).into_iter();
    let are = segments.filter(|segment| segment.state == state);
    are.map(|segment| segment.index).collect()
}

/// The segment where the log ends.
fn open_info(store: &Store) -> Option<SegmentInfo> {
    let mut segments = store.segments(0).into_iter();
    segments.find(|segment| segment.state == SegmentState::Open)
}

/// The segment where the log ends, and the bytes of its first block.
fn open_segment(store: &Store) -> Option<(u32, Range<usize>)> {
    open_info(store).map(|segment| (segment.index, header(store, segment.index)))
}

fn header(store: &Store, segment: u32) -> Range<usize> {
    let geometry = geometry(store);
    let start = usize::try_from(geometry.segment_offset(segment)).expect("it is in memory");
    start..start + geometry.block_size as usize
}

/// It does not open but for salvage; then it says what is wrong.
fn is_refused(image: &Image, damage: impl Fn(&Sim), kind: ErrorKind, what: &str) {
    for access in [Access::ReadOnly, Access::ReadWrite] {
        let mut machine = boot(image);
        damage(machine.sim());
        match machine.open_for(access) {
            Err(error) => assert_eq!(error.kind(), kind, "{what}: {error}"),
            Ok(_) => panic!("{what}: it opens"),
        }
    }
    let mut machine = boot(image);
    damage(machine.sim());
    let store = machine.open_for(Access::Salvage).expect("it is salvaged");
    assert_ne!(store.info().health, Vec::<String>::new(), "{what}");
    let report = store.verify(&mut |_| {}).expect("it is verified");
    assert!(!report.findings.is_empty(), "{what}");
}

/// The frame that opened a segment was made durable by a sync, which nothing on the disk tells of
/// yet. The segment's header is bad: that frame is not taken for what a crash has left.
#[test]
fn the_header_of_a_segment_with_one_frame() {
    let mut opened = 0;
    for number in 0..40 {
        let machine = fresh();
        let store = machine.store();
        (0..number).for_each(|number| put(&store, number, LENGTH, Durability::Durable));
        put(&store, 100, 10, Durability::Written);
        let before = open_segment(&store);
        put(&store, 101, LENGTH, Durability::Durable);
        let Some((segment, header)) = open_segment(&store) else {
            panic!("the log ends in a segment")
        };
        if before.is_none_or(|(before, _)| before == segment) {
            continue;
        }
        opened += 1;
        let image = machine.sim().image();
        let unreadable = |sim: &Sim| sim.make_unreadable(0, header.clone());
        is_refused(&image, unreadable, ErrorKind::Io, "unreadable");
        let rotten = |sim: &Sim| sim.rot(0, header.start + 20, 3);
        is_refused(&image, rotten, ErrorKind::Corruption, "rotten");
    }
    assert!(opened > 1, "no segment was opened");
}

/// Images of the moments at which a segment is opened: its header landed, its frame did not. It is
/// one that was used before; or the last of all, which is not what another opening would take, while a
/// checkpoint had begun.
fn images_of_an_opening() -> Vec<Image> {
    let mut machine = fresh();
    let mut number = 0;
    let mut put_next = |store: &Store| {
        put(store, number % 10, LENGTH, Durability::Durable);
        number += 1;
    };
    for _ in 0..3 {
        (0..30).for_each(|_| put_next(&machine.store()));
        machine.store().checkpoint().expect("a checkpoint");
    }
    let before = machine.sim().image();
    machine.come_up(&before);
    let store = machine.open().expect("it opens");
    let open = || open_segment(&store).expect("the log ends in a segment");
    let (segment, _) = open();
    while open().0 == segment {
        put_next(&store);
    }
    let (_, opened) = open();
    let last = geometry(&store).segment_count - 1;
    let mut crasher = machine.crasher();
    let mut images = Vec::new();
    let end = crasher.events();
    for moment in end.saturating_sub(4)..=end {
        crasher.advance(moment);
        let image = crasher.image(Loss::Nothing);
        let read = |image: &Image, at| {
            let mut block = vec![0; opened.len()];
            image.read(0, at, &mut block);
            block
        };
        let (old, new) = (read(&before, opened.start), read(&image, opened.start));
        let has_frame = read(&before, opened.end) != read(&image, opened.end);
        if old != new && !has_frame {
            let mut image = image.clone();
            image.edit(0, opened.start, &old);
            let mut write = |header: SegmentHeader| {
                let at = self::header(&store, header.segment.get()).start;
                let sealed = header.sealed(&identity(&store), at as u64);
                image.edit(0, at, sealed.bytes());
            };
            let mut moved = *SegmentHeader::view(&new).expect("a whole block");
            moved.segment = last.into();
            write(moved);
            write(SegmentHeader {
                kind: KIND_CHECKPOINT.into(),
                segment: (last - 1).into(),
                generation: (moved.generation.get() + 1).into(),
                previous_segment: 0.into(),
                ..moved
            });
            images.push(image);
        }
        images.push(image);
    }
    images
}

/// Each header in turn can't be read when the store is opened and used, and can be read later: all
/// that was put then is there.
#[test]
fn a_header_that_comes_back() {
    let (mut tried, mut refused) = (0, 0);
    for image in images_of_an_opening() {
        let whole = boot(&image).open().expect("it opens");
        for segment in 0..geometry(&whole).segment_count {
            let mut machine = boot(&image);
            machine.sim().make_unreadable(0, header(&whole, segment));
            let store = match machine.open() {
                Ok(store) => store,
                Err(error) => {
                    let kinds = [ErrorKind::Io, ErrorKind::Corruption];
                    assert!(kinds.contains(&error.kind()), "{error}");
                    refused += 1;
                    continue;
                }
            };
            tried += 1;
            let mut expected: BTreeMap<BinaryKey, usize> = BTreeMap::new();
            for number in 0..12 {
                put(&store, number, LENGTH + number, Durability::Durable);
                expected.insert(key(number), LENGTH + number);
                let image = machine.sim().image();
                let store = boot(&image).open();
                let store = store.unwrap_or_else(|error| panic!("segment {segment}: {error}"));
                let found = contents_of(&*store).expect("it is read");
                let found = found.into_iter().map(|(key, held)| (key, held.bytes.len()));
                let mut found: BTreeMap<_, _> = found.collect();
                found.retain(|key, _| expected.contains_key(key));
                assert_eq!(found, expected, "segment {segment}");
            }
        }
    }
    println!("{tried} tried, {refused} refused");
    assert!(tried > 100, "{tried} tried, {refused} refused");
}

/// The header of a checkpoint's image is rotten: the segment is used for something else, while a root
/// still names it.
#[test]
fn a_checkpoint_that_is_gone() {
    let machine = fresh();
    for number in 0..2 {
        put(&machine.store(), number, LENGTH, Durability::Durable);
        machine.store().checkpoint().expect("a checkpoint");
    }
    let image = machine.sim().image();
    let of_images = segments_that_are(&machine.store(), SegmentState::Checkpoint);
    assert!(of_images.len() > 1);
    for segment in of_images {
        let mut machine = boot(&image);
        let rotten = header(&boot(&image).open().expect("it opens"), segment).start + 20;
        machine.sim().rot(0, rotten, 5);
        let mut store = machine.open().expect("it opens");
        let mut expected = 2;
        for round in 0..4 {
            for number in expected..expected + 60 {
                put(&store, number, LENGTH, Durability::Durable);
            }
            expected += 60;
            let image = machine.sim().image();
            drop(store);
            machine.come_up(&image);
            store = machine.open().expect("it opens again");
            let found = contents_of(&*store).expect("it is read");
            let found: Vec<BinaryKey> = found.into_keys().collect();
            let expected: Vec<BinaryKey> = (0..expected).map(key).collect();
            assert_eq!(found, expected, "segment {segment}, round {round}");
            if round > 0 {
                store.checkpoint().expect("a checkpoint");
            }
        }
        let report = store.verify(&mut |_| {}).expect("it is verified");
        assert_eq!(report.findings, [], "segment {segment}");
    }
}

/// The two copies of the newest root: where, and their slots' bytes; and the segments of its image.
fn newest_root(store: &Store, image: &Image) -> ([(usize, Vec<u8>); 2], Vec<u32>) {
    let (geometry, identity) = (geometry(store), identity(store));
    let slots = [0, 1].map(|slot| {
        let copies = geometry.roots(slot).map(|address| {
            let at = usize::try_from(address).expect("it is in memory");
            let mut bytes = vec![0; ROOT_SLOT_SIZE];
            image.read(0, at, &mut bytes);
            (at, bytes)
        });
        let (at, bytes) = &copies[0];
        let decoded = CheckpointRoot::decode(bytes, &identity, &geometry, *at as u64);
        let (root, segments) = decoded.expect("a root");
        (root.sequence.get(), copies, segments)
    });
    let newest = slots.into_iter().max_by_key(|(sequence, ..)| *sequence);
    let (_, copies, segments) = newest.expect("there are two");
    (copies, segments)
}

/// A checkpoint's root never arrived, and what is in its slot is one whose image is gone: live blobs
/// are in its segments now. They are not given back with it.
#[test]
fn an_older_root_in_the_slot() {
    let mut machine = fresh();
    let store = machine.store();
    let mut number = 0;
    let mut put_next = || {
        put(&store, number, LENGTH, Durability::Durable);
        number += 1;
    };
    let checkpoint = || drop(store.checkpoint().expect("a checkpoint"));
    for _ in 0..3 {
        put_next();
        checkpoint();
    }
    let (older, of_older) = newest_root(&store, &machine.sim().image());
    for _ in 0..2 {
        put_next();
        checkpoint();
    }
    let sealed = || segments_that_are(&store, SegmentState::Sealed);
    while !of_older.iter().any(|segment| sealed().contains(segment)) {
        put_next();
    }
    // It takes the other slot.
    checkpoint();
    let mut image = machine.sim().image();
    for (at, bytes) in older {
        image.edit(0, at, &bytes);
    }
    let in_use = sealed();
    let expected = contents_of(&*store).expect("it is read");
    machine.come_up(&image);
    let store = machine.open().expect("it opens");
    for segment in in_use {
        let state = store.segments(0)[segment as usize].state;
        assert_eq!(state, SegmentState::Sealed, "segment {segment}");
    }
    for number in 1000..1040 {
        store.checkpoint().expect("a checkpoint");
        put(&store, number, LENGTH, Durability::Durable);
    }
    let mut found = contents_of(&*store).expect("it is read");
    found.retain(|key, _| expected.contains_key(key));
    assert!(found == expected, "live blobs were written over");
}

/// The last frame is rotten, and the note behind it, which says that it was acknowledged, can't be
/// read.
#[test]
fn what_lies_behind_a_rotten_frame() {
    let machine = fresh();
    let store = machine.store();
    put(&store, 0, 100, Durability::Durable);
    put(&store, 1, 100, Durability::Durable);
    while store.step().expect("a step") {}
    let image = machine.sim().image();
    let geometry = geometry(&store);
    let (_, header) = open_segment(&store).expect("a log");
    let block = geometry.block_size as usize;
    let identity = identity(&store);
    let mut frames: Vec<usize> = Vec::new();
    let mut bytes = vec![0; block];
    for at in (header.end..header.start + 64 * 1024).step_by(block) {
        image.read(0, at, &mut bytes);
        if FrameHeader::decode(&bytes, &identity, &geometry, at as u64).is_ok() {
            frames.push(at);
        }
    }
    let [.., last, note] = frames.as_slice() else {
        panic!("{} frames", frames.len())
    };
    let damage = |sim: &Sim| {
        sim.rot(0, last + 100, 0);
        sim.make_unreadable(0, *note..note + block);
    };
    is_refused(&image, damage, ErrorKind::Io, "rotten");
    // Either alone.
    let mut machine = boot(&image);
    machine.sim().rot(0, last + 100, 0);
    assert!(matches!(
        machine.open(),
        Err(StorageError::Corruption { .. })
    ));
}

/// Many small frames in front of payload that can't be read: it is met with each of them.
#[test]
fn payload_behind_many_small_frames() {
    let machine = fresh();
    let store = machine.store();
    (0..100).for_each(|number| put(&store, number, 10, Durability::Durable));
    put(&store, 200, 4000, Durability::Durable);
    let image = machine.sim().image();
    let (_, header) = open_segment(&store).expect("a log");
    let written = store.info().sectors[0].replay_bytes;
    let end = header.start + usize::try_from(written).expect("it is in memory");
    let mut machine = boot(&image);
    machine.sim().make_unreadable(0, end - 2048..end - 1024);
    let store = machine.open().expect("the index needs none of it");
    for number in 0..100 {
        let got = store.get(&key(number), GetOptions::default()).wait();
        assert_eq!(got.expect("it is read").bytes.len(), 10);
    }
    let got = store.get(&key(200), GetOptions::default()).wait();
    assert_eq!(got.err().map(|error| error.kind()), Some(ErrorKind::Io));
}

/// Behind the log's end lies what was written in an earlier life of the segment, and a block of it
/// can't be read: nothing was there since, and nothing is lost.
#[test]
fn what_was_there_in_an_earlier_life() {
    let machine = fresh();
    let store = machine.store();
    for number in 0..239 {
        put(&store, number % 10, 10 * LENGTH, Durability::Durable);
        while number % 20 == 0 && store.step().expect("it is tidied up") {}
    }
    put(&store, 100, 10, Durability::Durable);
    let open = open_info(&store).expect("the log ends in a segment");
    let geometry = geometry(&store);
    assert!(
        open.generation > u64::from(geometry.segment_count),
        "{open:?}"
    );
    let image = machine.sim().image();
    let expected = contents_of(&*store).expect("it is read");
    let block = u64::from(geometry.block_size);
    let behind = open.written + block..geometry.segment_size;
    assert!(behind.end - behind.start > 10 * block, "{open:?}");
    for offset in behind.step_by(geometry.block_size as usize) {
        let at = geometry.segment_offset(open.index) + offset;
        let at = usize::try_from(at).expect("it is in memory");
        let mut machine = boot(&image);
        let unreadable = at..at + geometry.block_size as usize;
        machine.sim().make_unreadable(0, unreadable);
        let store = machine.open().expect("it opens");
        assert_eq!(contents_of(&*store).expect("it is read"), expected);
    }
}

/// The last frame can't be read, and nothing on the disk tells of it: it is not taken for one that a
/// crash has torn.
#[test]
fn the_last_frame() {
    let machine = fresh();
    let store = machine.store();
    put(&store, 1, LENGTH, Durability::Durable);
    put(&store, 2, 10, Durability::Durable);
    let image = machine.sim().image();
    let open = open_info(&store).expect("the log ends in a segment");
    let geometry = geometry(&store);
    let end = geometry.segment_offset(open.index) + open.written;
    let end = usize::try_from(end).expect("it is in memory");
    let frame = end - geometry.block_size as usize..end;
    let unreadable = |sim: &Sim| sim.make_unreadable(0, frame.clone());
    is_refused(&image, unreadable, ErrorKind::Io, "the last frame");
}

//! What the simulated machine may do, and what it may not.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::io::{AlignedBuf, Backend, BufferPool, Disk, LockError, OpenAccess, WriteSync};
use crate::port::op::wait_for;

const BLOCK: usize = 512;
const SIZE: usize = 64 * BLOCK;
const PATH: &str = "/disk";

fn machine(seed: u64) -> (Sim, Arc<dyn Disk>) {
    let sim = Sim::new(512, seed);
    let disk = sim.create(Path::new(PATH), SIZE as u64).unwrap();
    sim.record(true);
    (sim, disk)
}

/// `blocks` blocks of one byte.
fn buffer(byte: u8, blocks: usize) -> AlignedBuf {
    let mut buffer = BufferPool::global().take(blocks * BLOCK);
    buffer.fill(byte);
    buffer
}

fn write(
    disk: &Arc<dyn Disk>,
    byte: u8,
    place: usize,
    blocks: usize,
    sync: WriteSync,
) -> io::Result<()> {
    let offset = (place * BLOCK) as u64;
    wait_for(disk.write(buffer(byte, blocks), offset, sync)).1
}

fn put(disk: &Arc<dyn Disk>, byte: u8, place: usize, blocks: usize) {
    write(disk, byte, place, blocks, WriteSync::None).unwrap();
}

fn sync(disk: &Arc<dyn Disk>) -> io::Result<()> {
    wait_for(disk.sync()).1
}

fn read(disk: &Arc<dyn Disk>, place: usize, blocks: usize) -> io::Result<Vec<u8>> {
    let (buffer, outcome) = wait_for(disk.read(buffer(0xaa, blocks), (place * BLOCK) as u64));
    outcome.map(|()| buffer.to_vec())
}

/// The first byte of each of the first `blocks` blocks of a disk, all of whose blocks must be of
/// one byte.
fn blocks(disk: &Arc<dyn Disk>, blocks: usize) -> Vec<u8> {
    let bytes = read(disk, 0, blocks).unwrap();
    let first = |block: &[u8]| {
        assert!(block.iter().all(|byte| *byte == block[0]), "half a block");
        block[0]
    };
    bytes.chunks(BLOCK).map(first).collect()
}

/// The same, of what a crash leaves.
fn left(crasher: &Crasher, loss: Loss, count: usize) -> Vec<u8> {
    let sim = Sim::boot(&crasher.image(loss), 512, 0);
    blocks(
        &sim.open(Path::new(PATH), OpenAccess::ReadOnly).unwrap(),
        count,
    )
}

/// At the end of the recording.
fn at_end(sim: &Sim) -> Crasher {
    let mut crasher = sim.crasher();
    crasher.advance(sim.position());
    crasher
}

fn fault(kind: FaultKind) -> Fault {
    Fault {
        kind,
        after: 0,
        times: 1,
        disk: None,
    }
}

fn code(outcome: io::Result<()>) -> Option<i32> {
    outcome.unwrap_err().raw_os_error()
}

#[test]
fn what_was_synced_is_durable_and_nothing_else() {
    let (sim, disk) = machine(1);
    put(&disk, 1, 0, 1);
    sync(&disk).unwrap();
    put(&disk, 2, 1, 1);
    write(&disk, 3, 2, 1, WriteSync::Data).unwrap();
    let crasher = at_end(&sim);
    assert_eq!(crasher.doubts(), 1);
    assert_eq!(left(&crasher, Loss::All, 3), [1, 0, 3]);
    assert_eq!(left(&crasher, Loss::Nothing, 3), [1, 2, 3]);
}

#[test]
fn a_sync_covers_only_what_had_completed_when_it_was_submitted() {
    let mut covered = BTreeSet::new();
    for seed in 0..20 {
        let (sim, disk) = machine(seed);
        // Both in flight: whichever comes first, the sync says nothing of the write.
        let written = disk.write(buffer(1, 1), 0, WriteSync::None);
        let synced = disk.sync();
        wait_for(written).1.unwrap();
        wait_for(synced).1.unwrap();
        let crasher = at_end(&sim);
        assert_eq!(crasher.doubts(), 1, "seed {seed}");
        covered.insert(left(&crasher, Loss::All, 1));
    }
    assert_eq!(covered, BTreeSet::from([vec![0]]));
}

#[test]
fn after_a_sync_that_failed_no_other_makes_the_same_writes_durable() {
    let (sim, disk) = machine(1);
    put(&disk, 1, 0, 1);
    sim.set_faults(&[fault(FaultKind::Sync)]);
    assert_eq!(code(sync(&disk)), Some(5));
    put(&disk, 2, 1, 1);
    sync(&disk).unwrap();
    let crasher = at_end(&sim);
    assert_eq!(left(&crasher, Loss::All, 2), [0, 2]);
    assert_eq!(left(&crasher, Loss::Nothing, 2), [1, 2]);
    // The machine itself sees what it wrote.
    assert_eq!(blocks(&disk, 2), [1, 2]);
}

#[test]
fn a_sync_is_of_one_disk() {
    let (sim, disk) = machine(1);
    let other = sim.create(Path::new("/other"), SIZE as u64).unwrap();
    put(&disk, 1, 0, 1);
    sync(&other).unwrap();
    assert_eq!(left(&at_end(&sim), Loss::All, 1), [0]);
}

#[test]
fn what_is_durable_above_what_is_in_doubt_stays_there() {
    let (sim, disk) = machine(1);
    put(&disk, 1, 0, 3);
    write(&disk, 2, 1, 1, WriteSync::Data).unwrap();
    let crasher = at_end(&sim);
    assert_eq!(left(&crasher, Loss::Nothing, 3), [1, 2, 1]);
    assert_eq!(left(&crasher, Loss::All, 3), [0, 2, 0]);
}

#[test]
fn what_is_in_flight_may_be_there_before_it_is_carried_out() {
    let (sim, disk) = machine(1);
    let ops =
        [1, 2].map(|byte| disk.write(buffer(byte, 1), u64::from(byte) * 512, WriteSync::Data));
    for op in ops {
        wait_for(op).1.unwrap();
    }
    let mut crasher = sim.crasher();
    assert_eq!(crasher.doubts(), 2);
    assert_eq!(left(&crasher, Loss::Nothing, 3), [0, 1, 2]);
    crasher.advance(1);
    assert_eq!(crasher.doubts(), 1);
    crasher.advance(2);
    assert_eq!(crasher.doubts(), 0);
    // One that waited for long is in flight all the while.
    let waited = (0..50).any(|seed| {
        let (sim, disk) = machine(seed);
        let first = disk.write(buffer(1, 1), 0, WriteSync::None);
        for _ in 0..40 {
            drop(disk.write(buffer(2, 1), 512, WriteSync::None));
        }
        wait_for(first).1.unwrap();
        drop(disk.reap_in_background());
        assert_eq!(sim.crasher().doubts(), 41, "seed {seed}");
        sim.crasher().events() > 30
    });
    assert!(waited);
}

/// Each shape of loss, on writes of four blocks each.
#[test]
fn losses_are_what_they_are_called() {
    let (sim, disk) = machine(1);
    for (byte, place) in [(1, 0), (2, 4), (3, 8)] {
        put(&disk, byte, place, 4);
    }
    let crasher = at_end(&sim);
    let cases: [(Loss, [u8; 12]); 11] = [
        (Loss::All, [0; 12]),
        (Loss::Nothing, [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]),
        (Loss::KeepFirst(1), [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
        (Loss::LoseFirst(1), [0, 0, 0, 0, 2, 2, 2, 2, 3, 3, 3, 3]),
        (Loss::Single(1), [0, 0, 0, 0, 2, 2, 2, 2, 0, 0, 0, 0]),
        (Loss::AllBut(1), [1, 1, 1, 1, 0, 0, 0, 0, 3, 3, 3, 3]),
        (
            Loss::Torn(1, Tear::FirstHalf),
            [1, 1, 1, 1, 2, 2, 0, 0, 3, 3, 3, 3],
        ),
        (
            Loss::Torn(1, Tear::LastHalf),
            [1, 1, 1, 1, 0, 0, 2, 2, 3, 3, 3, 3],
        ),
        (
            Loss::Torn(1, Tear::Alternate),
            [1, 1, 1, 1, 2, 0, 2, 0, 3, 3, 3, 3],
        ),
        (
            Loss::TornAlone(2, Tear::FirstHalf),
            [0, 0, 0, 0, 0, 0, 0, 0, 3, 3, 0, 0],
        ),
        (
            Loss::TornAlone(0, Tear::Alternate),
            [1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
    ];
    for (loss, expected) in cases {
        assert_eq!(left(&crasher, loss, 12), expected, "{loss:?}");
    }
    let random: BTreeSet<Vec<u8>> = (0..300)
        .map(|seed| {
            let once = left(&crasher, Loss::Random(seed), 12);
            assert_eq!(once, left(&crasher, Loss::Random(seed), 12), "seed {seed}");
            once
        })
        .collect();
    assert!(random.len() > 100, "only {} images", random.len());
}

#[test]
fn every_loss_gives_an_image_of_its_own() {
    for count in 0..7_usize {
        let (sim, disk) = machine(1);
        // Of one, two, three, ... blocks.
        let mut place = 0;
        for blocks in 1..=count {
            put(&disk, 9, place, blocks);
            place += blocks;
        }
        let crasher = at_end(&sim);
        let losses: Vec<Loss> = crasher.losses().collect();
        let images: BTreeSet<Vec<u8>> = losses
            .iter()
            .map(|&loss| left(&crasher, loss, place.max(1)))
            .collect();
        assert_eq!(images.len(), losses.len(), "{losses:?}");
        let mut wanted = vec![Loss::All, Loss::Nothing];
        for number in 0..count {
            wanted.extend([Loss::KeepFirst(number), Loss::LoseFirst(number)]);
            wanted.extend([Loss::Single(number), Loss::AllBut(number)]);
            for tear in [Tear::FirstHalf, Tear::LastHalf, Tear::Alternate] {
                // A single block can't be torn.
                if number > 0 {
                    wanted.extend([Loss::Torn(number, tear), Loss::TornAlone(number, tear)]);
                }
            }
        }
        for loss in wanted {
            let image = left(&crasher, loss, place.max(1));
            assert!(images.contains(&image), "{count}: {loss:?} is left out");
        }
    }
    let counts: Vec<usize> = (0..6).map(|count| Loss::every(count).count()).collect();
    assert_eq!(counts, [1, 5, 16, 26, 36, 46]);
}

#[test]
fn a_small_file_is_replaced_whole_and_durable_on_return() {
    let sim = Sim::new(512, 1);
    let (path, limit) = (Path::new("/file"), 100);
    sim.replace_file(path, b"old").unwrap();
    sim.record(true);
    sim.replace_file(path, b"newer").unwrap();
    sim.remove_file(path).unwrap();
    let mut crasher = sim.crasher();
    let found = |crasher: &Crasher| -> BTreeSet<Option<Vec<u8>>> {
        let mut losses: Vec<Loss> = crasher.losses().collect();
        losses.extend((0..30).map(Loss::Random));
        let files = losses.into_iter().map(|loss| {
            let sim = Sim::boot(&crasher.image(loss), 512, 0);
            sim.read_file(path, limit).ok()
        });
        files.collect()
    };
    let file = |text: &str| Some(text.as_bytes().to_vec());
    assert_eq!(
        found(&crasher),
        BTreeSet::from([file("old"), file("newer")])
    );
    crasher.advance(1);
    assert_eq!(found(&crasher), BTreeSet::from([file("newer"), None]));
    crasher.advance(2);
    assert_eq!(found(&crasher), BTreeSet::from([None]));
}

#[test]
fn a_disk_whose_creation_was_cut_short_is_absent_whole_or_short() {
    let sim = Sim::new(512, 1);
    let path = Path::new(PATH);
    sim.create(path, SIZE as u64).unwrap();
    let size = |crasher: &Crasher, loss| {
        let sim = Sim::boot(&crasher.image(loss), 512, 0);
        sim.open(path, OpenAccess::ReadOnly)
            .ok()
            .map(|disk| disk.size())
    };
    let mut crasher = sim.crasher();
    let sizes: Vec<_> = crasher.losses().map(|loss| size(&crasher, loss)).collect();
    let (whole, half) = (SIZE as u64, SIZE as u64 / 2);
    assert_eq!(sizes, [None, Some(whole), Some(half)]);
    crasher.advance(1);
    assert_eq!(size(&crasher, Loss::All), Some(whole));
}

type Call = fn(&Sim, &Arc<dyn Disk>) -> io::Result<()>;

#[test]
fn every_call_can_fail_with_an_error_of_choice() {
    let calls: [(FaultKind, Call); 11] = [
        (FaultKind::Read, |_, disk| read(disk, 0, 1).map(drop)),
        (FaultKind::Write, |_, disk| {
            write(disk, 1, 0, 1, WriteSync::None)
        }),
        (FaultKind::Sync, |_, disk| sync(disk)),
        (FaultKind::Create, |sim, _| {
            let path = format!("/disk-{}", sim.disks());
            sim.create(Path::new(&path), 4096).map(drop)
        }),
        (FaultKind::Open, |sim, _| {
            sim.open(Path::new(PATH), OpenAccess::ReadWrite).map(drop)
        }),
        (FaultKind::ReadFile, |sim, _| {
            sim.read_file(Path::new("/kept"), 10).map(drop)
        }),
        (FaultKind::ReplaceFile, |sim, _| {
            sim.replace_file(Path::new("/file"), b"new")
        }),
        (FaultKind::RemoveFile, |sim, _| {
            sim.remove_file(Path::new("/file"))
        }),
        (FaultKind::CreateDirectory, |sim, _| {
            sim.create_directory(Path::new("/directory"))
        }),
        (FaultKind::Lock, |sim, _| {
            match sim.lock(Path::new("/lock"), true) {
                Ok(_) => Ok(()),
                Err(LockError::File(error)) => Err(error),
                Err(error) => panic!("{error}"),
            }
        }),
        (FaultKind::Random, |sim, _| sim.random(&mut [0; 4])),
    ];
    let errors = [
        (FaultError::Io, 5),
        (FaultError::NoSpace, 28),
        (FaultError::TooManyFiles, 24),
        (FaultError::NoMemory, 12),
    ];
    for (kind, call) in &calls {
        for (error, raw) in errors {
            let (sim, disk) = machine(1);
            sim.replace_file(Path::new("/kept"), b"old").unwrap();
            let second = Fault {
                after: 1,
                ..fault(*kind)
            };
            sim.add_faults(&[second], error);
            // Calls of other kinds are neither counted nor hit.
            for (_, other) in calls.iter().filter(|(other, _)| other != kind) {
                other(&sim, &disk).unwrap();
            }
            call(&sim, &disk).unwrap();
            assert_eq!(code(call(&sim, &disk)), Some(raw), "{kind:?}");
            assert_eq!(sim.failures(), 1, "{kind:?}");
            call(&sim, &disk).unwrap_or_else(|error| panic!("{kind:?} fails twice: {error}"));
        }
    }
}

#[test]
fn a_durable_write_fails_as_a_sync_does() {
    let (sim, disk) = machine(1);
    sim.set_faults(&[fault(FaultKind::Sync)]);
    put(&disk, 1, 0, 1);
    assert_eq!(code(write(&disk, 2, 1, 1, WriteSync::Data)), Some(5));
    sync(&disk).unwrap();
    assert_eq!(left(&at_end(&sim), Loss::All, 2), [1, 0]);
}

#[test]
fn a_write_that_failed_is_there_in_part_and_never_durable() {
    let mut parts = BTreeSet::new();
    for seed in 0..60 {
        let (sim, disk) = machine(seed);
        sim.set_faults(&[fault(FaultKind::Write)]);
        assert_eq!(code(write(&disk, 1, 0, 4, WriteSync::Data)), Some(5));
        sync(&disk).unwrap();
        let there = blocks(&disk, 4);
        assert!(there.is_sorted_by(|a, b| a >= b), "{there:?}");
        parts.insert(there.iter().filter(|byte| **byte == 1).count());
        assert_eq!(left(&at_end(&sim), Loss::All, 4), [0; 4]);
    }
    assert_eq!(parts, (0..=4).collect());
}

#[test]
fn a_replacement_that_failed_may_have_happened_and_is_not_durable() {
    let mut seen = BTreeSet::new();
    for seed in 0..30 {
        let sim = Sim::new(512, seed);
        let path = Path::new("/file");
        sim.replace_file(path, b"old").unwrap();
        sim.set_faults(&[fault(FaultKind::ReplaceFile), fault(FaultKind::RemoveFile)]);
        sim.replace_file(path, b"new").unwrap_err();
        let now = sim.read_file(path, 10).unwrap();
        let mut crasher = sim.crasher();
        crasher.advance(sim.position());
        let lost = Sim::boot(&crasher.image(Loss::All), 512, 0);
        assert_eq!(lost.read_file(path, 10).unwrap(), b"old");
        sim.remove_file(path).unwrap_err();
        seen.insert((now, sim.read_file(path, 10).is_ok()));
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
}

#[test]
fn faults_hit_the_disk_they_are_for() {
    let (sim, disk) = machine(1);
    let other = sim.create(Path::new("/other"), SIZE as u64).unwrap();
    sim.set_faults(&[Fault {
        disk: Some(1),
        ..fault(FaultKind::Read)
    }]);
    read(&disk, 0, 1).unwrap();
    assert!(read(&other, 0, 1).is_err());
    read(&other, 0, 1).unwrap();
}

#[test]
fn a_dead_disk_fails_for_ever_and_an_absent_one_is_not_found() {
    let (sim, disk) = machine(1);
    let other = sim.create(Path::new("/other"), SIZE as u64).unwrap();
    sim.set_faults(&[Fault {
        after: 2,
        disk: Some(0),
        ..fault(FaultKind::Death)
    }]);
    put(&disk, 1, 0, 1);
    read(&disk, 0, 1).unwrap();
    assert_eq!(code(sync(&disk)), Some(5));
    sim.set_faults(&[]);
    let failures = |disk: &Arc<dyn Disk>| {
        let outcomes = [
            read(disk, 0, 1).map(drop),
            write(disk, 2, 0, 1, WriteSync::Data),
            sync(disk),
        ];
        outcomes.into_iter().map(code).collect::<Vec<_>>()
    };
    let open = || sim.open(Path::new(PATH), OpenAccess::ReadWrite);
    assert_eq!(failures(&disk), [Some(5); 3]);
    assert_eq!(open().unwrap_err().raw_os_error(), Some(5));
    sim.set_condition(0, DiskCondition::Absent);
    assert_eq!(failures(&disk), [Some(5); 3]);
    assert_eq!(open().unwrap_err().kind(), io::ErrorKind::NotFound);
    sim.set_condition(0, DiskCondition::Well);
    assert_eq!(blocks(&open().unwrap(), 1), [1]);
    put(&other, 1, 0, 1);
    // The sync that failed as the disk died has made nothing durable, nor let another do so.
    sync(&disk).unwrap();
    assert_eq!(left(&at_end(&sim), Loss::All, 1), [0]);
}

#[test]
fn rot_stays_and_a_flip_in_a_read_does_not() {
    for (kind, stays) in [(FaultKind::Rot, true), (FaultKind::FlippedRead, false)] {
        let (sim, disk) = machine(3);
        sim.set_faults(&[fault(kind)]);
        let once = read(&disk, 4, 2).unwrap();
        assert_eq!(
            once.iter().map(|byte| byte.count_ones()).sum::<u32>(),
            1,
            "{kind:?}"
        );
        let again = read(&disk, 4, 2).unwrap();
        assert_eq!(again == once, stays, "{kind:?}");
        let crasher = at_end(&sim);
        let after = Sim::boot(&crasher.image(Loss::All), 512, 0);
        let disk = after.open(Path::new(PATH), OpenAccess::ReadOnly).unwrap();
        assert_eq!(read(&disk, 4, 2).unwrap() == once, stays, "{kind:?}");
    }
    let (sim, disk) = machine(1);
    sim.rot(0, 513, 7);
    assert_eq!(read(&disk, 1, 1).unwrap()[..3], [0, 0x80, 0]);
}

#[test]
fn a_lost_write_is_nowhere() {
    let (sim, disk) = machine(1);
    sim.set_faults(&[fault(FaultKind::LostWrite)]);
    put(&disk, 1, 0, 1);
    put(&disk, 2, 1, 1);
    assert_eq!(blocks(&disk, 2), [0, 2]);
    assert_eq!(left(&at_end(&sim), Loss::Nothing, 2), [0, 2]);
}

#[test]
fn a_misdirected_write_is_elsewhere_and_so_is_what_a_misdirected_read_gives() {
    for seed in 0..40 {
        let (sim, disk) = machine(seed);
        sim.set_faults(&[fault(FaultKind::MisdirectedWrite)]);
        write(&disk, 1, 5, 2, WriteSync::Data).unwrap();
        let now = blocks(&disk, 64);
        assert_ne!(now[5..7], [1, 1], "seed {seed}");
        assert_eq!(
            now.iter().filter(|byte| **byte == 1).count(),
            2,
            "seed {seed}"
        );
        assert_eq!(left(&at_end(&sim), Loss::All, 64), now, "seed {seed}");

        let (sim, disk) = machine(seed);
        for place in 0..64 {
            put(&disk, place, place.into(), 1);
        }
        sim.set_faults(&[fault(FaultKind::MisdirectedRead)]);
        assert_ne!(read(&disk, 5, 1).unwrap()[0], 5, "seed {seed}");
        assert_eq!(read(&disk, 5, 1).unwrap()[0], 5, "seed {seed}");
    }
}

#[test]
fn a_stale_read_gives_what_was_there_before_the_last_write() {
    let (sim, disk) = machine(1);
    put(&disk, 1, 0, 1);
    sim.set_faults(&[Fault {
        times: 2,
        ..fault(FaultKind::StaleRead)
    }]);
    put(&disk, 2, 0, 1);
    put(&disk, 3, 0, 1);
    assert_eq!(blocks(&disk, 1), [2]);
    // What was not written since is what it is.
    assert_eq!(read(&disk, 1, 1).unwrap()[0], 0);
    assert_eq!(blocks(&disk, 1), [3]);
}

#[test]
fn a_short_write_completes_as_a_whole_but_a_crash_can_fall_between() {
    for seed in 0..20 {
        let (sim, disk) = machine(seed);
        sim.set_faults(&[fault(FaultKind::ShortWrite)]);
        write(&disk, 1, 0, 4, WriteSync::Data).unwrap();
        assert_eq!(blocks(&disk, 4), [1; 4]);
        assert_eq!(sim.position(), 2);
        let mut crasher = sim.crasher();
        crasher.advance(1);
        let half = left(&crasher, Loss::All, 4);
        assert!(half.contains(&0) && half[0] == 1, "seed {seed}: {half:?}");
        crasher.advance(2);
        assert_eq!(left(&crasher, Loss::All, 4), [1; 4]);
    }
}

#[test]
fn a_short_read_can_see_half_of_a_write() {
    let torn = (0..50).any(|seed| {
        let (sim, disk) = machine(seed);
        sim.set_faults(&[fault(FaultKind::ShortRead)]);
        let reading = disk.read(buffer(0xaa, 4), 0);
        let writing = disk.write(buffer(1, 4), 0, WriteSync::None);
        let (bytes, outcome) = wait_for(reading);
        outcome.unwrap();
        wait_for(writing).1.unwrap();
        assert!(!bytes.contains(&0xaa), "seed {seed}");
        bytes.contains(&0) && bytes.contains(&1)
    });
    assert!(torn);
}

#[test]
fn reads_race_with_writes() {
    let seen: BTreeSet<u8> = (0..20)
        .map(|seed| {
            let (_sim, disk) = machine(seed);
            let reading = disk.read(buffer(0xaa, 1), 0);
            let writing = disk.write(buffer(1, 1), 0, WriteSync::None);
            wait_for(writing).1.unwrap();
            wait_for(reading).0[0]
        })
        .collect();
    assert_eq!(seen, BTreeSet::from([0, 1]));
}

#[test]
fn one_seed_gives_one_history() {
    let history = |seed| {
        let (sim, disk) = machine(seed);
        let kinds = [
            FaultKind::Write,
            FaultKind::ShortWrite,
            FaultKind::MisdirectedWrite,
        ];
        let faults = kinds.map(|kind| Fault {
            after: 3,
            ..fault(kind)
        });
        sim.set_faults(&faults);
        let ops: Vec<_> = (1..20_u8)
            .map(|byte| disk.write(buffer(byte, 3), u64::from(byte % 5) * 512, WriteSync::None))
            .collect();
        let outcomes: Vec<bool> = ops.into_iter().map(|op| wait_for(op).1.is_ok()).collect();
        let found = blocks(&disk, 64);
        (outcomes, left(&at_end(&sim), Loss::Random(seed), 64), found)
    };
    assert_eq!(history(5), history(5));
    assert_ne!(history(5), history(6));
}

#[test]
fn images_and_machines_do_not_share_what_they_write() {
    let (sim, disk) = machine(1);
    put(&disk, 1, 0, 1);
    let image = sim.image();
    let other = Sim::boot(&image, 512, 2);
    let copy = other.open(Path::new(PATH), OpenAccess::ReadWrite).unwrap();
    put(&copy, 2, 0, 1);
    put(&disk, 3, 1, 1);
    assert_eq!(
        (blocks(&disk, 2), blocks(&copy, 2)),
        (vec![1, 3], vec![2, 0])
    );
    assert_eq!(other.disks(), 1);
}

#[test]
fn locks_exclude_each_other() {
    let (sim, _disk) = machine(1);
    let lock = |exclusive| sim.lock(Path::new("/lock"), exclusive);
    let shared = (lock(false).unwrap(), lock(false).unwrap());
    assert!(matches!(lock(true), Err(LockError::Held { .. })));
    drop(shared.0);
    assert!(matches!(lock(true), Err(LockError::Held { .. })));
    drop(shared.1);
    let alone = lock(true).unwrap();
    assert!(matches!(lock(false), Err(LockError::Held { .. })));
    drop(alone);
    lock(false).unwrap();
}

#[test]
fn the_clock_is_the_machines_own() {
    let (sim, _disk) = machine(1);
    let time = sim.time();
    let millisecond = Duration::from_millis(1);
    assert_eq!(
        [sim.now(), sim.now()],
        [time + millisecond, time + 2 * millisecond]
    );
    sim.set_time(UNIX_EPOCH + Duration::from_secs(1000));
    sim.set_pace(-400);
    let shown = [sim.now(), sim.now(), sim.now()].map(|time| time.duration_since(UNIX_EPOCH));
    assert_eq!(
        shown.map(|since| since.unwrap().as_millis()),
        [999_600, 999_200, 998_800]
    );
    sim.set_time(UNIX_EPOCH - Duration::from_secs(1));
    assert_eq!(sim.now(), UNIX_EPOCH);
}

#[test]
fn transfers_are_checked_as_real_disks_check_them() {
    let (sim, disk) = machine(1);
    let kind = |outcome: io::Result<()>| outcome.unwrap_err().kind();
    let end = (SIZE / BLOCK) as u64;
    let past = wait_for(disk.read(buffer(0, 1), end * 512)).1;
    assert_eq!(kind(past), io::ErrorKind::UnexpectedEof);
    assert_eq!(
        kind(wait_for(disk.read(buffer(0, 1), 8)).1),
        io::ErrorKind::InvalidInput
    );
    let mut misplaced = buffer(0, 2).split_off(BLOCK / 2);
    misplaced.set_len(BLOCK);
    assert_eq!(
        kind(wait_for(disk.read(misplaced, 0)).1),
        io::ErrorKind::InvalidInput
    );
    assert_eq!(
        kind(write(&disk, 1, 63, 2, WriteSync::None)),
        io::ErrorKind::InvalidInput
    );
    let reader = sim.open(Path::new(PATH), OpenAccess::ReadOnly).unwrap();
    assert_eq!(
        kind(write(&reader, 1, 0, 1, WriteSync::None)),
        io::ErrorKind::PermissionDenied
    );
    assert_eq!(kind(sync(&reader)), io::ErrorKind::PermissionDenied);
}

/// Threads that wait for what others carry out are woken, not left to look again.
#[test]
fn threads_drive_each_other() {
    let (_sim, disk) = machine(1);
    std::thread::scope(|scope| {
        for place in 0..4 {
            let disk = &disk;
            scope.spawn(move || {
                for byte in 0..200 {
                    put(disk, byte, place, 1);
                    assert_eq!(read(disk, place, 1).unwrap()[0], byte);
                }
            });
        }
    });
}

#[test]
fn a_thread_of_its_own_carries_out_what_nobody_waits_for() {
    let (sim, disk) = machine(1);
    sim.carry_out_in_background();
    let (sender, outcomes) = crate::sync::channel::bounded(1);
    for place in 0..8 {
        let sender = sender.clone();
        let written = disk.write(buffer(1, 1), place * BLOCK as u64, WriteSync::None);
        written.then(move |_, outcome| sender.try_send(outcome.is_ok()).unwrap());
        assert_eq!(outcomes.recv_timeout(Duration::from_secs(60)), Ok(true));
    }
    assert_eq!(sim.written(), 8 * BLOCK);
}

//! The store file is lost or damaged, and written anew from what the sectors hold of it.

use std::path::{Path, PathBuf};

use graviton_engine::io::OpenAccess;
use graviton_engine::io::sim::{DiskCondition, Image, Loss, Sim};
use graviton_engine::port::{BinaryKey, BlobStore, Labels, PutOptions, SectorState, StorageError};
use graviton_engine::store::{
    MIB, NewSector, OpenOptions, RecoveredStoreFile, RemoveOptions, Store,
};
use graviton_engine::testing::contents_of;
use graviton_tests::history::{Machine, PATH, Plan, check_store, used};
use graviton_tests::settle;

fn store_file() -> PathBuf {
    Path::new(PATH).join("graviton.toml")
}

fn lose(sim: &Sim) {
    sim.backend()
        .remove_file(&store_file())
        .expect("it is removed");
}

fn recover(sim: &Sim) -> Result<RecoveredStoreFile, StorageError> {
    Store::recover_store_file_on(sim.backend().as_ref(), PATH, &[])
}

fn text(sim: &Sim) -> String {
    let bytes = sim.backend().read_file(&store_file(), 1 << 20);
    String::from_utf8(bytes.expect("it is there")).expect("it is a text")
}

/// What a store file says, but for its revision, and that something may be short.
fn said(text: &str) -> Vec<&str> {
    let is_told_anew = |line: &str| line.starts_with("revision") || line.starts_with("short");
    text.lines().filter(|line| !is_told_anew(line)).collect()
}

#[test]
fn a_store_file_comes_back_as_it_was() {
    for plan in [Plan::SMALL, Plan::THREE_SECTORS, Plan::REPLICAS] {
        let (mut machine, store, contents) = used(&plan);
        let labels = Labels {
            rack: Some("left".to_owned()),
            ..Labels::default()
        };
        store.relabel(0, labels.clone()).expect("it is labelled");
        store.close().expect("it is closed");
        drop(store);
        let before = text(machine.sim());
        for damage in [None, Some(&b""[..]), Some(b"format_version = 1\n\0\0")] {
            match damage {
                None => lose(machine.sim()),
                Some(bytes) => {
                    let written = machine.sim().backend().replace_file(&store_file(), bytes);
                    written.expect("it is damaged");
                }
            }
            let found = recover(machine.sim()).expect("it is written anew");
            assert!(found.sectors.iter().all(|sector| sector.is_as_left));
            assert_eq!(found.unnamed, Vec::<PathBuf>::new());
            assert_eq!(said(&text(machine.sim())), said(&before));
        }
        let kept = Path::new(PATH).join("graviton.toml.damaged");
        let kept = machine.sim().backend().read_file(&kept, 100);
        assert_eq!(kept.expect("it is kept"), b"format_version = 1\n\0\0");
        // A good one is left alone.
        let refused = recover(machine.sim());
        assert!(matches!(refused, Err(StorageError::AlreadyExists { .. })));
        let image = machine.sim().image();
        machine.come_up(&image);
        let store = machine.open().expect("it opens");
        assert_eq!(store.info().sectors[0].labels, labels);
        assert_eq!(contents_of(&*store).expect("it is read"), contents);
        check_store(&store).expect("it is whole");
    }
}

/// The power fails at each moment while sectors come and go, fail, and the store is opened; and the store file is
/// lost in it. Nothing is, as long as the sectors are there; and the store does not open without one.
#[test]
fn a_store_file_is_lost_in_a_crash() {
    let (mut machine, store, contents) = used(&Plan::REPLICAS);
    drop(store);
    let image = machine.sim().image();
    machine.come_up(&image);
    machine.sim().record(true);
    let store = machine.open().expect("it opens");
    let added = store.add_sector(&NewSector {
        size: 4 * MIB,
        ..NewSector::default()
    });
    added.expect("it is added");
    store.drain_sector(1).expect("it is to be drained");
    settle(&store).expect("it is drained");
    store
        .remove_sector(1, RemoveOptions::default())
        .expect("nothing needs it");
    store.relabel(2, Labels::default()).expect("it is labelled");
    store.close().expect("it is closed");
    drop(store);
    let mut crasher = machine.crasher();
    let (mut images, mut opened, mut refused) = (0, 0, 0);
    for position in 0..=machine.position() {
        crasher.advance(position);
        for loss in crasher.losses() {
            images += 1;
            if images % 5 != position % 5 {
                continue;
            }
            let image = crasher.image(loss);
            let sim = Sim::boot(&image, Plan::REPLICAS.block_size, 3);
            sim.record(false);
            lose(&sim);
            recover(&sim).expect("it is written anew");
            let mut machine = Machine::boot(Plan::REPLICAS, &sim.image(), 4);
            match machine.open() {
                Ok(store) => {
                    assert_eq!(contents_of(&*store).expect("it is read"), contents);
                    opened += 1;
                }
                // A sector that was just named in the store file alone.
                Err(StorageError::TooFewSectors { .. }) => refused += 1,
                Err(error) => panic!("{error}"),
            }
            missing_one(&image, position % 3);
        }
    }
    eprintln!("{opened} images opened, {refused} refused");
    assert!(opened > 100 && refused * 20 < opened);
}

/// One of the copies in a sector is whole all along, whatever is left of the other: also where there is no other
/// sector.
#[test]
fn a_copy_of_the_store_file_is_whole_in_every_sector() {
    let (machine, store, _) = used(&Plan::SMALL);
    // With this name in it, a copy takes more than one block.
    let file = PathBuf::from(format!("/{}/sector", "long".repeat(100)));
    let new = NewSector {
        file: Some(file.clone()),
        size: 4 * MIB,
        ..NewSector::default()
    };
    store.add_sector(&new).expect("it is added");
    store.drain_sector(0).expect("it is to be drained");
    settle(&store).expect("it is drained");
    let removed = store.remove_sector(0, RemoveOptions::default());
    removed.expect("nothing needs it");
    let mut texts = Vec::new();
    for rack in ["left", "right", "middle"] {
        let labels = Labels {
            rack: Some(rack.to_owned()),
            ..Labels::default()
        };
        store.relabel(1, labels).expect("it is labelled");
        settle(&store).expect("its sector knows of it");
        if texts.is_empty() {
            machine.sim().record(true);
        }
        texts.push(text(machine.sim()));
    }
    let mut crasher = machine.crasher();
    for position in 0..=machine.position() {
        crasher.advance(position);
        let at_random = (0..300).map(Loss::Random);
        for loss in crasher.losses().chain(at_random).collect::<Vec<_>>() {
            let sim = Sim::boot(&crasher.image(loss), Plan::SMALL.block_size, 3);
            sim.record(false);
            lose(&sim);
            let backend = sim.backend();
            let found =
                Store::recover_store_file_on(backend.as_ref(), PATH, std::slice::from_ref(&file));
            found.unwrap_or_else(|error| panic!("{position}, {loss:?}: {error}"));
            let found = text(&sim);
            let is_one_of_them = texts.iter().any(|text| said(text) == said(&found));
            assert!(is_one_of_them, "{position}, {loss:?}: {found}");
        }
    }
}

/// With a sector away, nobody knows whether it alone has something.
fn missing_one(image: &Image, away: usize) {
    let sim = Sim::boot(image, Plan::REPLICAS.block_size, 3);
    sim.record(false);
    sim.set_condition(away, DiskCondition::Absent);
    lose(&sim);
    let found = recover(&sim).expect("it is written anew");
    let mut machine = Machine::boot(Plan::REPLICAS, &sim.image(), 4);
    machine.sim().set_condition(away, DiskCondition::Absent);
    let needs = |number: u16| {
        let mut sectors = found.sectors.iter();
        sectors.any(|sector| sector.number == number && !sector.is_behind && !sector.is_there)
    };
    if (0..4).any(needs) {
        let refused = machine.open().expect_err("a sector is missing");
        assert!(
            matches!(refused, StorageError::TooFewSectors { .. }),
            "{refused}"
        );
    }
}

#[test]
fn a_store_opens_without_a_sector_whose_loss_is_accepted() {
    let (mut machine, store, contents) = used(&Plan::REPLICAS);
    settle(&store).expect("all is whole");
    store.close().expect("it is closed");
    drop(store);
    let image = machine.sim().image();
    machine.come_up(&image);
    machine.sim().set_condition(0, DiskCondition::Absent);
    lose(machine.sim());
    let found = recover(machine.sim()).expect("it is written anew");
    assert!(!found.sectors[0].is_there);
    let refused = machine.open().expect_err("a sector is missing");
    assert!(
        refused.to_string().contains("none may be missing"),
        "{refused}"
    );
    let options = OpenOptions {
        accept_loss_of: vec![0],
        ..Plan::REPLICAS.create_options().open
    };
    let store = Store::open_on(machine.sim().backend(), PATH, options).expect("it is accepted");
    assert_eq!(contents_of(&store).expect("it is read"), contents);
    assert_eq!(store.info().sectors[0].state, SectorState::Absent);
}

/// A sector that is an older copy of itself is told from what it should be, as it is by the store file.
#[test]
fn an_older_copy_of_a_sector_is_told() {
    let (mut machine, store, _) = used(&Plan::REPLICAS);
    store.close().expect("it is closed");
    drop(store);
    let older = machine.sim().image();
    machine.come_up(&older);
    machine
        .open()
        .expect("it opens")
        .close()
        .expect("it is closed");
    let mut mixed = machine.sim().image();
    let mut bytes = vec![0; older.size(0).expect("it is there")];
    older.read(0, 0, &mut bytes);
    mixed.edit(0, 0, &bytes);
    machine.come_up(&mixed);
    lose(machine.sim());
    let found = recover(machine.sim()).expect("it is written anew");
    let as_left: Vec<bool> = found
        .sectors
        .iter()
        .map(|sector| sector.is_as_left)
        .collect();
    assert_eq!(as_left, [false, true, true]);
    let refused = machine.open().expect_err("one is an older copy");
    assert!(refused.to_string().contains("an older copy"), "{refused}");
}

/// An older store file of the same session does not name a sector that was added since: the others know of it.
#[test]
fn an_older_store_file_names_too_few() {
    let (mut machine, store, _) = used(&Plan::REPLICAS);
    let older = text(machine.sim());
    let new = NewSector {
        size: 4 * MIB,
        ..NewSector::default()
    };
    store.add_sector(&new).expect("it is added");
    let killed = machine.sim().image();
    drop(store);
    machine.come_up(&killed);
    let written = (machine.sim().backend()).replace_file(&store_file(), older.as_bytes());
    written.expect("it is put back");
    let refused = machine.open().expect_err("a sector is not named");
    assert!(refused.to_string().contains("does not list"), "{refused}");
}

/// A copy is older than what came about in one sector alone. So none may be missing, be it said to be behind.
#[test]
fn what_lies_in_one_sector_alone_is_missed() {
    for returns in [false, true] {
        let (mut machine, store, _) = used(&Plan::REPLICAS);
        settle(&store).expect("all is whole");
        store.close().expect("it is closed");
        drop(store);
        let mut alone = 0;
        if returns {
            // One is away, and back: the copies that were written when the session began say that it is behind.
            let image = machine.sim().image();
            machine.come_up(&image);
            machine.sim().set_condition(2, DiskCondition::Absent);
            drop(machine.open().expect("it opens"));
            alone = 2;
        }
        let image = machine.sim().image();
        machine.come_up(&image);
        let store = machine.open().expect("it opens");
        for disk in (0..3).filter(|&disk| disk != alone) {
            machine.sim().set_condition(disk, DiskCondition::ReadOnly);
        }
        let key = BinaryKey::new("alone").expect("a short key");
        let put = || {
            store
                .put(&key, "alone".into(), PutOptions::default())
                .wait()
        };
        // Which sectors can't be written to is known once it was tried.
        (0..3).find_map(|_| put().ok()).expect("one sector is left");
        drop(store);
        let image = machine.sim().image();
        machine.come_up(&image);
        lose(machine.sim());
        recover(machine.sim()).expect("it is written anew");
        let image = machine.sim().image();
        machine.come_up(&image);
        let opened = machine.open().expect("all are there");
        opened.stat(&key).wait().expect("it is there");
        drop(opened);
        machine.come_up(&image);
        machine.sim().set_condition(alone, DiskCondition::Absent);
        let refused = machine.open().expect_err("it has something alone");
        assert!(
            matches!(refused, StorageError::TooFewSectors { .. }),
            "{refused}"
        );
    }
}

/// A note of a creation that was cut short may be left over beside a store that is in use: nothing is taken for what
/// that creation has left.
#[test]
fn a_note_of_a_creation_is_left_over() {
    let (mut machine, store, contents) = used(&Plan::REPLICAS);
    store.close().expect("it is closed");
    drop(store);
    let note = Path::new(PATH).join("graviton.creating");
    let written = machine.sim().backend().replace_file(&note, b"3");
    written.expect("it is written");
    let image = machine.sim().image();
    machine.come_up(&image);
    machine
        .open()
        .expect("it opens")
        .close()
        .expect("it is closed");
    lose(machine.sim());
    let create =
        || Store::create_on(machine.sim().backend(), PATH, Plan::SMALL.create_options()).map(drop);
    let refused = create().expect_err("there are sectors");
    assert!(
        matches!(refused, StorageError::AlreadyExists { .. }),
        "{refused}"
    );
    recover(machine.sim()).expect("it is written anew");
    let image = machine.sim().image();
    machine.come_up(&image);
    let store = machine.open().expect("it opens");
    assert_eq!(contents_of(&*store).expect("it is read"), contents);
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let (machine, store, _) = used(&Plan::REPLICAS);
    store.close().expect("it is closed");
    drop(store);
    let image = machine.sim().image();
    let boot = || {
        let sim = Sim::boot(&image, Plan::REPLICAS.block_size, 1);
        sim.record(false);
        lose(&sim);
        sim
    };
    let sector = |number: usize| Path::new(PATH).join(format!("sector-00{number}.graviton"));

    // Nothing is there, or nothing that has a copy.
    let sim = boot();
    (0..3).for_each(|number| sim.set_condition(number, DiskCondition::Absent));
    let refused = recover(&sim).expect_err("nothing is there");
    assert!(
        refused.to_string().contains("no sectors were found"),
        "{refused}"
    );
    let sim = boot();
    let size = image.size(0).expect("it is there");
    for (number, area) in (0..3).flat_map(|number| [(number, 0), (number, size - 65536)]) {
        sim.rot(number, area + 49152 + 20, 1);
    }
    let refused = recover(&sim).expect_err("no copy is good");
    assert!(
        refused.to_string().contains("no sector has a good copy"),
        "{refused}"
    );

    // A file that is none of a sector is named, and one that is not there.
    let sim = boot();
    let text = Path::new(PATH).join("text");
    sim.backend().replace_file(&text, b"text").expect("written");
    for file in [text, sector(7)] {
        let files = [file.clone()];
        let refused = Store::recover_store_file_on(sim.backend().as_ref(), PATH, &files);
        let refused = refused.expect_err("it is no sector").to_string();
        assert!(refused.contains(file.to_str().expect("UTF-8")), "{refused}");
    }

    // A sector of another store.
    let sim = boot();
    let other = Path::new("/other");
    let made = Store::create_on(sim.backend(), other, Plan::SMALL.create_options());
    drop(made.expect("it is made"));
    let files = [other.join("sector-000.graviton")];
    let refused = Store::recover_store_file_on(sim.backend().as_ref(), PATH, &files);
    let refused = refused.expect_err("there are two stores").to_string();
    assert!(refused.contains("belongs to store"), "{refused}");
    assert!(
        sim.backend()
            .open(&store_file(), OpenAccess::ReadOnly)
            .is_err()
    );
}

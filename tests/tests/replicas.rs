//! Sectors as replicas: random histories on two replicas over three sectors, in the course of which one of
//! the sectors is damaged or fails. No call fails that a second copy could have answered, nothing is wrong
//! or stale, and in the end every blob is whole in two sectors again. And blobs whose puts ask for more replicas
//! than the store keeps.
//!
//! How to run more of it, or one of it again: `graviton_tests::history` and `tests/README.md`.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use graviton_engine::io::sim::{DiskCondition, Fault, FaultKind, Random, Sim};
use graviton_engine::policy::RackAware;
use graviton_engine::port::{
    Attributes, AttributesUpdate, Batch, BatchItem, BinaryKey, BlobStore, CompleteOptions,
    CopyOptions, DeleteOptions, GetOptions, Labels, MutableObjectStore, PutOptions,
    PutRangeOptions, RangeSet, Span, StorageError, UpdateOptions, UploadOptions,
};
use graviton_engine::store::{
    CreateOptions, Finding, MIB, NewSector, OpenOptions, RemoveOptions, ScrubDepth, ScrubOptions,
    Store,
};
use graviton_engine::testing::{Difference, Pair, Step, Subject};
use graviton_tests::history::{Action, Ground, Machine, Plan, Tally, Trials, open, perform};
use graviton_tests::random::payload;
use graviton_tests::{bytes_of, check_two_replicas, rebalance, settle};

/// What happens to one sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// Bits of it flip.
    Rot,
    /// Some of its blocks can't be read.
    Unreadable,
    /// Nothing can be read or written any more.
    Death,
    /// A write fails.
    FailedWrite,
    /// A sync fails.
    FailedSync,
}

impl Trouble {
    fn strike(self, machine: &Machine, sector: usize, random: &mut Random) {
        let sim = machine.sim();
        let fault = |kind| Fault {
            kind,
            after: 0,
            times: 1,
            disk: Some(sector),
        };
        // What is needed to open the store is another matter.
        let segments = graviton_format::geometry::AREA_SIZE;
        let first = usize::try_from(segments).expect("it is small");
        let length = 4 << 20;
        match self {
            Self::Rot => {
                for _ in 0..200 {
                    let bit = u8::try_from(random.below(8)).expect("of eight");
                    sim.rot(sector, first + random.below(length - 2 * first), bit);
                }
            }
            Self::Unreadable => {
                for _ in 0..20 {
                    let start = first + random.below(length - 2 * first);
                    sim.make_unreadable(sector, start..start + 1 + random.below(40_000));
                }
            }
            Self::Death => sim.set_condition(sector, DiskCondition::Dead),
            Self::FailedWrite => sim.set_faults(&[fault(FaultKind::Write)]),
            Self::FailedSync => sim.set_faults(&[fault(FaultKind::Sync)]),
        }
    }

    fn end(machine: &Machine, sector: usize) {
        machine.sim().set_faults(&[]);
        machine.sim().set_condition(sector, DiskCondition::Well);
    }
}

/// All is right though any one of the sectors can't be read.
fn compare_without_each(pair: &mut Pair<'_, Machine>) -> Result<(), Difference> {
    for sector in 0..3 {
        let sim = pair.subject().sim().clone();
        sim.set_condition(sector, DiskCondition::Dead);
        let compared = pair.run(&Step::compare_all());
        sim.set_condition(sector, DiskCondition::Well);
        compared.map_err(|what| format!("without sector {sector}: {what}"))?;
        // What could not be read is read again, and found to be well.
        settle(&pair.subject().store())?;
    }
    Ok(())
}

fn trouble(
    ground: &Ground,
    seed: u64,
    actions: &[Action],
    trouble: Trouble,
) -> Result<Tally, Difference> {
    let mut machine = Machine::boot(ground.plan.clone(), &ground.image, seed);
    let store = open(&mut machine)?;
    let mut pair = Pair::over(&mut machine, Arc::<Store>::clone(&store));
    pair.adopt(store)?;
    let mut random = Random::new(seed);
    let sector = random.below(3);
    let moment = random.below(actions.len().max(1));
    for (number, action) in actions.iter().enumerate() {
        if number == moment {
            trouble.strike(pair.subject(), sector, &mut random);
        }
        let done = perform(&mut pair, action);
        // Maintenance of a sector that can't be read or written fails, and that is all.
        if !matches!(action, Action::Step(_)) && number >= moment {
            continue;
        }
        done.map_err(|what| format!("{action:?}: {what}"))?;
    }
    pair.run(&Step::compare_all())?;
    settle(&pair.subject().store())?;
    pair.run(&Step::compare_all())?;
    Trouble::end(pair.subject(), sector);
    let tally = Tally {
        histories: 1,
        actions: actions.len(),
        images: 0,
    };
    if matches!(trouble, Trouble::Rot | Trouble::Unreadable) {
        // A store does not open yet if the log of one sector has lost records.
        settle(&pair.subject().store())?;
        return Ok(tally);
    }
    // The sector is opened again, and catches up.
    let store = pair.release();
    let store = pair.subject().reopen(store);
    pair.resume(store);
    pair.run(&Step::compare_all())?;
    settle(&pair.subject().store())?;
    check_two_replicas(&pair.subject().store())?;
    compare_without_each(&mut pair)?;
    Ok(tally)
}

fn troubled(what: Trouble) {
    let trials = Trials::undisturbed(Plan::REPLICAS, 40, 300);
    trials.run(&|ground, seed, actions| trouble(ground, seed, actions, what));
}

#[test]
fn bits_of_a_sector_flip() {
    troubled(Trouble::Rot);
}

#[test]
fn blocks_of_a_sector_cannot_be_read() {
    troubled(Trouble::Unreadable);
}

#[test]
fn a_sector_dies() {
    troubled(Trouble::Death);
}

#[test]
fn a_write_of_a_sector_fails() {
    troubled(Trouble::FailedWrite);
}

#[test]
fn a_sync_of_a_sector_fails() {
    troubled(Trouble::FailedSync);
}

/// A blob is replaced, and put elsewhere, at each moment of a repair that makes a replica of what it was:
/// nothing comes of that one.
#[test]
fn what_is_replaced_under_repair_is_not_made() {
    let mut moments = 0;
    while is_replaced_under_repair(moments) {
        moments += 1;
    }
    assert!(moments > 4, "repair takes some steps");
}

/// `false`: there was nothing to repair any more after so many steps.
fn is_replaced_under_repair(steps: usize) -> bool {
    let sim = Sim::new(512, 1);
    sim.record(false);
    let options = CreateOptions {
        sectors: 4,
        replicas: 2,
        sector_size: 8 * MIB,
        open: OpenOptions {
            background: false,
            reader_patience: Duration::ZERO,
            ..OpenOptions::default()
        },
        ..CreateOptions::default()
    };
    let store = Store::create_on(sim.backend(), "/store", options).expect("it is made");
    let key = BinaryKey::new("blob").expect("a short key");
    let put = |size: usize| {
        let put = store.put(&key, payload(1, size), PutOptions::default());
        put.wait().expect("it is put");
        store.stat(&key).wait().expect("it is there").sectors
    };
    while store.step().expect("it is tidied up") {}
    assert_eq!(put(100_000), [0, 1]);
    sim.set_condition(1, DiskCondition::Dead);
    assert_eq!(put(90_000), [0], "it came about where it could");
    for _ in 0..steps {
        store.step().expect("it is mended");
    }
    let is_short = store.info().replication.backlog > 0;
    assert_eq!(put(80_000).len(), 2);
    while store.step().expect("it is mended") {}
    let report = store.verify(&mut |_| {}).expect("it is verified");
    let older = |found: &&Finding| found.what.contains("older version");
    let older = report.findings.iter().find(older);
    assert_eq!(older, None, "after {steps} steps");
    is_short
}

/// A store on simulated disks, whose blobs ask for more replicas than it keeps.
struct Asked {
    sim: Sim,
    store: Arc<Store>,
    options: CreateOptions,
}

/// The blobs of [`Asked::fill`], put in every way there is.
const WAYS: [&str; 6] = [
    "small", "large", "streamed", "sparse", "batched", "uploaded",
];

impl Asked {
    fn new(sectors: u16, replicas: u16) -> Self {
        let sim = Sim::new(512, 1);
        sim.record(false);
        let options = CreateOptions {
            sectors,
            replicas,
            sector_size: 4 * MIB,
            open: OpenOptions {
                background: false,
                reader_patience: Duration::ZERO,
                ..OpenOptions::default()
            },
            ..CreateOptions::default()
        };
        let store = Store::create_on(sim.backend(), "/store", options.clone());
        let store = Arc::new(store.expect("it is made"));
        Self {
            sim,
            store,
            options,
        }
    }

    fn try_open(&mut self) -> Result<(), StorageError> {
        self.store.close().expect("it closes");
        let opened = Store::open_on(self.sim.backend(), "/store", self.options.open.clone());
        self.store = Arc::new(opened?);
        Ok(())
    }

    /// Opens the store again, by replay of the log, or by a checkpoint that has everything.
    fn reopen(&mut self, by_checkpoint: bool) {
        if by_checkpoint {
            self.store.checkpoint().expect("a checkpoint is taken");
        }
        self.try_open().expect("it opens");
    }

    fn settle(&self) {
        settle(&self.store).expect("it comes to an end");
    }

    fn put(&self, name: &str, replicas: Option<u16>, size: usize) {
        let put = self
            .store
            .put(&name.into_key(), payload(7, size), asking(replicas));
        put.wait().expect("it is put");
    }

    /// Puts a blob in every way, each asking for so many.
    fn fill(&self, replicas: u16) {
        let (store, options) = (&self.store, asking(Some(replicas)));
        self.put("small", Some(replicas), 100);
        self.put("large", Some(replicas), 100_000);
        let mut writer = store
            .put_stream(&"streamed".into_key(), options.clone())
            .expect("it is begun");
        writer
            .write(payload(7, 50_000))
            .wait()
            .expect("it is taken in");
        writer.finish().wait().expect("it is put");
        let sparse = store.create_sparse(&"sparse".into_key(), 40_000, options.clone());
        sparse.wait().expect("it is made");
        let mut batch = Batch::new();
        batch.put("plain".into_key(), "plain");
        batch.put("batched".into_key(), "batched");
        if let Some(BatchItem::Put { options, .. }) = batch.items.last_mut() {
            options.replicas = Some(replicas);
        }
        store.batch(batch).wait().expect("it is put");
        let key = "uploaded".into_key();
        let upload = UploadOptions {
            replicas: Some(replicas),
            ..UploadOptions::default()
        };
        let upload = store.start_upload(&key, upload).wait().expect("it begins");
        let parts = [(1, 60_000), (2, 10)].map(|(number, size)| {
            let part = payload(u64::from(number), size);
            let put = store.upload_part(upload, number, part, PutOptions::default());
            (number, put.wait().expect("it is put").etag)
        });
        let completed = store.complete_upload(upload, &parts, CompleteOptions::default());
        completed.wait().expect("it is completed");
    }

    fn sectors(&self, name: &str) -> Vec<u16> {
        let found = self.store.stat(&name.into_key()).wait();
        found.expect("it is there").sectors
    }

    /// A blob is to lie in so many sectors, and lies in so many of them.
    #[track_caller]
    fn check(&self, name: &str, wanted: u16, actual: usize) {
        let key = name.into_key();
        let found = self.store.stat(&key).wait().expect("it is there");
        assert_eq!(found.replicas, wanted, "{name}");
        assert_eq!(found.sectors.len(), actual, "{name}: {:?}", found.sectors);
        let status = self.store.replicas().status(&key).wait();
        let status = status.expect("it is there");
        assert_eq!(
            (status.target, status.actual),
            (wanted.into(), actual),
            "{name}"
        );
    }

    #[track_caller]
    fn check_ways(&self, wanted: u16, actual: usize) {
        WAYS.iter()
            .for_each(|name| self.check(name, wanted, actual));
    }

    #[track_caller]
    fn lacking(&self) -> u64 {
        self.store.lacking().expect("the index is well")
    }

    fn add(&self) -> u16 {
        let added = self.store.add_sector(&NewSector {
            size: 4 * MIB,
            ..NewSector::default()
        });
        added.expect("it is added")
    }
}

fn asking(replicas: Option<u16>) -> PutOptions {
    PutOptions {
        replicas,
        ..PutOptions::default()
    }
}

trait IntoKey {
    fn into_key(self) -> BinaryKey;
}

impl IntoKey for &str {
    fn into_key(self) -> BinaryKey {
        BinaryKey::new(self).expect("a short key")
    }
}

/// A put that asks for three replicas where the store keeps two has three, after a restart too, whatever becomes
/// of the blob; others have two.
#[test]
fn a_put_asks_for_more_replicas() {
    let mut asked = Asked::new(4, 2);
    asked.fill(3);
    asked.put("usual", None, 1000);
    asked.put("own number", Some(2), 1000);
    for by_checkpoint in [false, true, false] {
        asked.check_ways(3, 3);
        asked.check("usual", 2, 2);
        asked.check("own number", 2, 2);
        assert_eq!(asked.lacking(), 0);
        asked.reopen(by_checkpoint);
    }
    for (round, by_checkpoint) in [false, true].into_iter().enumerate() {
        let store = &asked.store;
        for (name, start) in WAYS.iter().zip(0..) {
            let key = name.into_key();
            // So many that they are merged.
            for number in 0..40 {
                let size = store.stat(&key).wait().expect("it is there").size;
                let start = (number * 701 + start) % size;
                let range = Span::new(start, start + 1).expect("it runs forwards");
                let put =
                    store.put_range(&key, range, payload(number, 1), PutRangeOptions::default());
                put.wait().expect("it is put");
            }
            let value = Attributes::from([("round".to_owned(), round.to_string().into())]);
            let update = AttributesUpdate::merge(value);
            let manifests = store.manifests();
            let updated = manifests.update_attributes(&key, update, UpdateOptions::default());
            updated.wait().expect("it is there");
            let copy = format!("copy of {name}").as_str().into_key();
            let copied = store.copy(&key, &copy, CopyOptions::default());
            copied.wait().expect("it is copied");
            let renamed = format!("renamed {name}").as_str().into_key();
            let done = store.rename(&copy, &renamed, CopyOptions::default());
            done.wait().expect("it is renamed");
        }
        asked.settle();
        store.compact().expect("it is compacted");
        asked.reopen(by_checkpoint);
        asked.check_ways(3, 3);
        for name in WAYS {
            asked.check(&format!("renamed {name}"), 3, 3);
        }
        assert_eq!(asked.lacking(), 0);
    }
    // A put states its own number.
    asked.put("small", None, 100);
    asked.put("large", Some(4), 100_000);
    for by_checkpoint in [false, true, false] {
        asked.check("small", 2, 2);
        asked.check("large", 4, 4);
        asked.reopen(by_checkpoint);
    }
    let deleted = asked
        .store
        .delete(&"large".into_key(), DeleteOptions::default());
    assert!(deleted.wait().expect("it is deleted").existed);
    asked.reopen(false);
    let gone = asked.store.stat(&"large".into_key()).wait();
    assert!(matches!(gone, Err(StorageError::NotFound { .. })));
    let report = asked.store.verify(&mut |_| {}).expect("it is verified");
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
}

/// Sectors go one after the other, until all replicas are such as repair has made: they are as many as were asked
/// for, and say so themselves.
#[test]
fn repair_makes_as_many_as_were_asked_for() {
    let mut asked = Asked::new(4, 2);
    asked.fill(3);
    asked.put("usual", None, 1000);
    // One is lost.
    let lost = asked.sectors("large")[0];
    asked.sim.set_condition(lost.into(), DiskCondition::Dead);
    asked.reopen(false);
    assert!(asked.lacking() > 0);
    asked.settle();
    assert_eq!(asked.lacking(), 0);
    asked.check_ways(3, 3);
    asked.check("usual", 2, 2);
    assert!(!asked.sectors("large").contains(&lost));
    asked.sim.set_condition(lost.into(), DiskCondition::Well);
    asked.reopen(true);
    // And all are taken away that were there at first; others get their numbers.
    for (number, by_checkpoint) in (0..4).zip([false, true, false, true]) {
        asked.add();
        asked.store.drain_sector(number).expect("there are others");
        asked.settle();
        let removed = asked.store.remove_sector(number, RemoveOptions::default());
        removed.expect("it is drained");
        asked.reopen(by_checkpoint);
        for name in WAYS {
            let found = asked.store.stat(&name.into_key()).wait();
            let found = found.expect("it is there");
            assert_eq!(found.replicas, 3, "{name} without {number}");
            assert!(found.sectors.len() >= 3, "{name} without {number}");
        }
        assert_eq!(asked.lacking(), 0);
    }
}

/// Of a blob that asks for more sectors than there are, what is lacking is told, and is made as they come.
#[test]
fn what_is_asked_for_is_made_when_sectors_come() {
    for (sectors, replicas) in [(1, 1), (2, 2)] {
        let mut asked = Asked::new(sectors, replicas);
        let there = usize::from(sectors);
        asked.fill(4);
        let all = WAYS.len() as u64;
        for by_checkpoint in [false, true] {
            asked.settle();
            asked.check_ways(4, there);
            assert_eq!(asked.lacking(), all);
            // That concerns nobody else.
            assert!(!asked.store.info().replication.is_short);
            assert_eq!(
                asked.store.info().replication.backlog,
                0,
                "nothing can be done"
            );
            asked.reopen(by_checkpoint);
        }
        for more in there + 1..=5 {
            asked.add();
            let backlog = asked.store.info().replication.backlog;
            // It goes on after a restart, too.
            asked.reopen(more % 2 == 0);
            asked.settle();
            asked.check_ways(4, more.min(4));
            asked.check("plain", replicas, asked.sectors("plain").len());
            assert_eq!(asked.lacking(), if more < 4 { all } else { 0 }, "{backlog}");
        }
        // Where there are too few again, that keeps no sector.
        for number in 0..2 {
            asked.store.drain_sector(number).expect("there are others");
            asked.settle();
            let removed = asked.store.remove_sector(number, RemoveOptions::default());
            removed.expect("it is drained");
        }
        asked.check_ways(4, 3);
        assert_eq!(asked.lacking(), all);
    }
}

/// A sector that has what was asked for is needed for it.
#[test]
fn what_is_asked_for_keeps_its_sectors() {
    let asked = Asked::new(4, 1);
    asked.put("blob", Some(3), 1000);
    let sector = asked.sectors("blob")[1];
    assert_eq!(asked.store.needed(sector).expect("it is one"), 1);
    let removed = asked.store.remove_sector(sector, RemoveOptions::default());
    assert!(
        matches!(removed, Err(StorageError::StillNeeded { keys: 1, .. })),
        "{removed:?}"
    );
}

/// Whatever looks after a store changes nothing where nothing is wrong: not a byte, whether it is done for the first
/// time, or once more after there was something to do.
#[test]
fn what_is_well_is_left_as_it_is() {
    for (sectors, replicas) in [(1, 1), (3, 2), (3, 3)] {
        let asked = Asked::new(sectors, replicas);
        asked.fill(replicas);
        // What is merged and moved before it is well.
        asked.put("large", Some(replicas), 100_000);
        asked.settle();
        asked.store.checkpoint().expect("a checkpoint is taken");
        asked.settle();
        let look_after = |what: &str| {
            let before = asked.sim.image();
            for _ in 0..2 {
                assert_eq!(asked.store.repair(&mut |_| {}).expect("it is mended"), 0);
                let report = asked.store.verify(&mut |_| {}).expect("it is verified");
                assert_eq!(report.findings, []);
                for depth in [ScrubDepth::Headers, ScrubDepth::Everything] {
                    let options = ScrubOptions {
                        depth,
                        ..ScrubOptions::default()
                    };
                    let report = asked
                        .store
                        .scrub(&options, &mut |_| ControlFlow::Continue(()));
                    assert_eq!(report.expect("it is scrubbed").findings, []);
                }
                let report = rebalance(&asked.store).expect("there is room");
                assert_eq!((report.added, report.removed), (0, 0));
                asked.settle();
            }
            let after = asked.sim.image();
            for disk in 0..usize::from(sectors) {
                let (before, after) = (bytes_of(&before, disk), bytes_of(&after, disk));
                let other = before.iter().zip(&after).position(|(one, two)| one != two);
                assert_eq!(other, None, "{what}: sector {disk} of {sectors}");
            }
        };
        look_after("well from the start");
        if replicas == 1 {
            continue;
        }
        let found = asked.store.stat(&"large".into_key()).wait();
        let ranges: RangeSet = [Span::at(0, 4096).expect("in order")].into_iter().collect();
        let version = found.expect("it is there").version;
        let sector = asked.sectors("large")[0];
        let index = asked.store.replicas();
        let marked = index.mark_unhealthy(&"large".into_key(), sector, version, "told", &ranges);
        marked.wait().expect("there is such a replica");
        assert_eq!(asked.lacking(), 1);
        asked.settle();
        asked.store.checkpoint().expect("a checkpoint is taken");
        asked.settle();
        look_after("mended");
    }
}

/// So many sectors may be missing as the store's own number says, whatever puts have asked for.
#[test]
fn what_is_asked_for_is_no_promise_of_the_store() {
    let mut asked = Asked::new(3, 2);
    asked.fill(3);
    asked.sim.set_condition(1, DiskCondition::Dead);
    asked.try_open().expect("one may be missing");
    asked.check_ways(3, 2);
    assert_eq!(asked.lacking(), WAYS.len() as u64);
    asked.settle();
    assert!(!asked.store.info().replication.is_short);
    asked.sim.set_condition(1, DiskCondition::Well);
    asked.reopen(false);
    asked.settle();
    asked.check_ways(3, 3);
    asked.sim.set_condition(1, DiskCondition::Dead);
    asked.sim.set_condition(2, DiskCondition::Dead);
    let refused = asked.try_open();
    assert!(
        matches!(refused, Err(StorageError::TooFewSectors { .. })),
        "{refused:?}"
    );
}

/// A policy is told how many sectors a blob is to lie in.
#[test]
fn policies_choose_as_many_as_were_asked_for() {
    let mut asked = Asked::new(4, 2);
    asked.options.open.replication = Some(Arc::new(RackAware::default()));
    for (number, rack) in (0..).zip(["left", "left", "right", "middle"]) {
        let labels = Labels {
            rack: Some(rack.to_owned()),
            ..Labels::default()
        };
        asked.store.relabel(number, labels).expect("it is written");
    }
    asked.reopen(false);
    asked.fill(3);
    for name in WAYS {
        assert_eq!(asked.sectors(name)[1..], [2, 3], "{name}: of each rack one");
    }
    let lost = 3;
    asked.sim.set_condition(lost, DiskCondition::Dead);
    asked.reopen(false);
    asked.settle();
    for name in WAYS {
        assert_eq!(asked.sectors(name), [0, 1, 2], "{name}");
    }
}

/// A store on simulated disks with a blob, and a sector that has it.
fn with_a_blob(plan: &Plan) -> (Sim, Store, BinaryKey, u16) {
    let sim = Sim::new(512, 1);
    sim.record(false);
    let store = Store::create_on(sim.backend(), "/store", plan.create_options());
    let store = store.expect("it is made");
    let key = BinaryKey::new("blob").expect("a short key");
    let put = store.put(&key, payload(1, 3000), PutOptions::default());
    put.wait().expect("it is put");
    let found = store.stat(&key).wait().expect("it is there");
    (sim, store, key, found.sectors[0])
}

/// What is known of a replica is forgotten with it: whatever comes after the blob is not the worse for it.
#[test]
fn what_is_known_of_a_version_ends_with_it() {
    for is_deleted in [false, true] {
        let (sim, store, key, sector) = with_a_blob(&Plan::REPLICAS);
        let failing = Fault {
            kind: FaultKind::Read,
            after: 0,
            times: 4,
            disk: Some(sector.into()),
        };
        sim.set_faults(&[failing]);
        let read = store.get(&key, GetOptions::default()).wait();
        assert_eq!(read.expect("another has it").bytes, payload(1, 3000));
        sim.set_faults(&[]);
        assert_eq!(store.info().replication.damaged, 1);
        match is_deleted {
            true => drop(store.delete(&key, DeleteOptions::default()).wait()),
            false => drop(
                store
                    .put(&key, payload(2, 3000), PutOptions::default())
                    .wait(),
            ),
        }
        assert_eq!(store.repair(&mut |_| {}).expect("it is repaired"), 0);
        let replication = store.info().replication;
        assert_eq!((replication.damaged, replication.backlog), (0, 0));
        check_two_replicas(&store).expect("two replicas");
    }
}

/// A look at its headers alone does not make a replica well whose payload was found damaged.
#[test]
fn headers_that_are_well_heal_nothing() {
    let (_sim, store, key, sector) = with_a_blob(&Plan::REPLICAS);
    let version = store.stat(&key).wait().expect("it is there").version;
    let marked =
        store
            .replicas()
            .mark_unhealthy(&key, sector, version, "told", &RangeSet::default());
    marked.wait().expect("there is such a replica");
    for (depth, damaged) in [(ScrubDepth::Headers, 1), (ScrubDepth::Everything, 0)] {
        let options = ScrubOptions {
            depth,
            ..ScrubOptions::default()
        };
        let report = store.scrub(&options, &mut |_| ControlFlow::Continue(()));
        assert_eq!(report.expect("it is scrubbed").findings, []);
        assert_eq!(store.info().replication.damaged, damaged, "{depth:?}");
    }
}

/// A replica that repair makes is of the same life of its key: what was known of that holds on.
#[test]
fn a_life_goes_on_in_the_replicas_that_repair_makes() {
    let mut asked = Asked::new(3, 2);
    asked.put("blob", None, 100_000);
    let first = asked.sectors("blob");
    let range = Span::at(10, 5).expect("in order");
    let ranged = asked.store.put_range(
        &"blob".into_key(),
        range,
        payload(1, 5),
        PutRangeOptions::default(),
    );
    ranged.wait().expect("it is put");
    let life = |asked: &Asked| {
        let tracker = asked.store.ranges();
        let known = tracker.get_completed(&"blob".into_key()).wait();
        known.expect("it is known").generation
    };
    let before = life(&asked);
    for gone in first {
        asked.add();
        asked.store.drain_sector(gone).expect("it is drained");
        assert_eq!(asked.store.repair(&mut |_| {}).expect("it is repaired"), 0);
        let removed = asked.store.remove_sector(gone, RemoveOptions::default());
        removed.expect("nothing needs it");
        assert!(!asked.sectors("blob").contains(&gone));
        assert_eq!(life(&asked), before);
        for by_checkpoint in [false, true] {
            asked.reopen(by_checkpoint);
            assert_eq!(life(&asked), before);
        }
    }
}

/// An only copy that was found wanting is not mended out of itself: another is made of it, if it can be read.
#[test]
fn an_only_copy_that_is_marked_gets_company() {
    for plan in [Plan::ASYNC, Plan::THREE_SECTORS] {
        let (_sim, store, key, sector) = with_a_blob(&plan);
        let version = store.stat(&key).wait().expect("it is there").version;
        let ranges = RangeSet::default();
        let marked = store
            .replicas()
            .mark_unhealthy(&key, sector, version, "told", &ranges);
        marked.wait().expect("it is marked");
        if plan.replicas == 1 {
            store.drain_sector(sector).expect("it is drained");
        }
        assert_eq!(store.repair(&mut |_| {}).expect("it is repaired"), 0);
        let sectors = store.stat(&key).wait().expect("it is there").sectors;
        assert_eq!(sectors.len(), 2);
        if plan.replicas == 1 {
            let removed = store.remove_sector(sector, RemoveOptions::default());
            removed.expect("nothing is missing without it");
        }
        let read = store.get(&key, GetOptions::default()).wait();
        assert_eq!(read.expect("it is read").bytes, payload(1, 3000));
    }
}

//! Calls to the disk that fail: the n-th read, write or sync of a history, once or from then on.
//! No answer is wrong then, and what was acknowledged is there when the disk works again.
//!
//! `GRAVITON_SEEDS` asks for more histories, `GRAVITON_SEED` for one of them.

use std::time::Duration;

use graviton_engine::port::{BlobStore, ErrorKind, GetOptions, StorageError};
use graviton_engine::store::{CreateOptions, KIB, MIB, OpenOptions, Store};
use graviton_tests::number_from;
use graviton_tests::random::Random;
use graviton_tests::sim::{Fault, FaultKind, Image, Loss, Sim};
use graviton_tests::workload::{
    Change, Contents, History, Mix, Worker, apply, difference, read_all,
};

const PATH: &str = "/simulated/store";
const BLOCK: u32 = 512;
const STEPS: usize = 40;

/// A kind of store, at the end of a history that has filled it.
struct Ground {
    sectors: u16,
    seed: u64,
    image: Image,
    contents: Contents,
}

fn options() -> OpenOptions {
    OpenOptions {
        background: false,
        checkpoint_interval: Some(128 * KIB),
        reader_patience: Duration::ZERO,
        ..OpenOptions::default()
    }
}

fn create_options(sectors: u16) -> CreateOptions {
    CreateOptions {
        sectors,
        sector_size: 4 * MIB,
        segment_size: Some(64 * KIB),
        block_size: Some(BLOCK),
        open: options(),
    }
}

fn worker(contents: Contents, seed: u64) -> Worker {
    let mix = Mix {
        keys: 24,
        largest: 36 << 10,
        maintenance: true,
    };
    Worker::new("key", contents, Random::new(seed), mix)
}

impl Ground {
    fn new(sectors: u16, seed: u64) -> Self {
        let sim = Sim::new(BLOCK, seed);
        sim.record(false);
        let store = Store::create_on(sim.backend(), PATH, create_options(sectors)).expect("made");
        let mut worker = worker(Contents::new(), seed);
        for _ in 0..200 {
            let (step, outcome) = worker.step(&store, || 0);
            outcome.unwrap_or_else(|error| panic!("{}: {error}", step.what));
        }
        store.close().expect("it closes");
        Self {
            sectors,
            seed,
            image: sim.image(),
            contents: worker.contents,
        }
    }

    /// Opens the store, goes on and closes it while calls fail; then looks at what is left.
    /// Returns how many calls failed: 0 if the history was over before.
    fn try_with(&self, fault: Fault) -> usize {
        let place = format!(
            "GRAVITON_SEED={} {} sectors, {fault:?}",
            self.seed, self.sectors
        );
        let sim = Sim::boot(&self.image, BLOCK, self.seed);
        sim.set_faults(&[fault]);
        let mut history = History {
            base: self.contents.clone(),
            ..History::default()
        };
        match Store::open_on(sim.backend(), PATH, options()) {
            Ok(store) => self.go_on(&store, &sim, &mut history, &place),
            Err(error) => check_error(&error, &place),
        }
        let failures = sim.failures();
        sim.set_faults(&[]);
        let position = sim.position();
        let mut crasher = sim.crasher();
        crasher.advance(position);
        check(&sim, &history, position, &format!("{place}, disk healed"));
        for loss in [Loss::All, Loss::Random(fault.after as u64)] {
            let sim = Sim::boot(&crasher.image(loss), BLOCK, self.seed);
            check(&sim, &history, position, &format!("{place}, {loss:?}"));
        }
        failures
    }

    fn go_on(&self, store: &Store, sim: &Sim, history: &mut History, place: &str) {
        let mut worker = worker(self.contents.clone(), self.seed ^ 1);
        for _ in 0..STEPS {
            let (step, outcome) = worker.step(store, || sim.position());
            let place = format!("{place}, {}", step.what);
            if let Err(error) = outcome {
                check_error(&error, &place);
                // An error of the disk leaves open whether an operation happened; but it is whole.
                for operation in &step.operations {
                    if happened(store, operation) {
                        apply(operation, &mut worker.contents);
                    }
                }
                check_reads(store, &worker.contents, &place);
            }
            history.steps.push(step);
        }
        check_reads(store, &worker.contents, place);
        if let Err(error) = store.close() {
            check_error(&error, place);
        }
    }
}

fn happened(store: &Store, operation: &[Change]) -> bool {
    operation.iter().all(|change| {
        let found = store.get(&change.key, GetOptions::default()).wait();
        match (&change.blob, found) {
            (Some(blob), Ok(found)) => *blob == found.bytes,
            (None, Err(error)) => matches!(error.kind(), ErrorKind::NotFound),
            _ => false,
        }
    })
}

/// A disk that fails is reported as that, not as damage.
fn check_error(error: &StorageError, place: &str) {
    assert!(
        matches!(error.kind(), ErrorKind::Io | ErrorKind::Unavailable),
        "{place}: {error} ({:?})",
        error.kind()
    );
}

/// What happened can be read, unless the disk fails again.
fn check_reads(store: &Store, contents: &Contents, place: &str) {
    for (key, blob) in contents {
        match store.get(key, GetOptions::default()).wait() {
            Ok(found) => assert!(found.bytes == *blob, "{place}: {key} has other bytes"),
            Err(error) => check_error(&error, place),
        }
    }
    assert_eq!(store.info().blobs, contents.len() as u64, "{place}");
}

fn check(sim: &Sim, history: &History, position: usize, place: &str) {
    let outcome = (|| {
        let store = Store::open_on(sim.backend(), PATH, options())?;
        let found = read_all(&store)?;
        let report = store.verify(&mut |_| {})?;
        Ok::<_, StorageError>((store, found, report))
    })();
    let (store, found, report) = match outcome {
        Ok(outcome) => outcome,
        Err(error) => fail(history, place, &error.to_string()),
    };
    if let Err(what) = history.check_keys(&found, position) {
        fail(history, place, &what);
    }
    if !report.findings.is_empty() {
        fail(history, place, &format!("{:#?}", report.findings));
    }
    let again = store.close().and_then(|()| {
        drop(store);
        read_all(&Store::open_on(sim.backend(), PATH, options())?)
    });
    match again {
        Ok(again) if again == found => {}
        Ok(again) => fail(history, place, &difference(&found, &again)),
        Err(error) => fail(history, place, &error.to_string()),
    }
}

fn fail(history: &History, place: &str, what: &str) -> ! {
    for (number, step) in history.steps.iter().enumerate() {
        let acknowledged = step.acknowledged;
        eprintln!(
            "{number:4} {:5}..{acknowledged:?} {}",
            step.started, step.what
        );
    }
    panic!("{place}: {what}");
}

/// Fails the n-th call of a kind on each disk, for every n until the history is over before it.
fn every(sectors: u16, kind: FaultKind, times: usize) {
    let one = number_from("GRAVITON_SEED");
    let seeds = number_from("GRAVITON_SEEDS").unwrap_or(2);
    for seed in one.map_or(0..seeds, |seed| seed..seed + 1) {
        let ground = Ground::new(sectors, seed);
        let mut histories = 0;
        for disk in 0..usize::from(sectors) {
            let fault = |after| Fault {
                kind,
                after,
                times,
                disk: Some(disk),
            };
            histories += (0..)
                .take_while(|&after| ground.try_with(fault(after)) > 0)
                .count();
        }
        assert!(histories > 20, "only {histories} calls");
        eprintln!("seed {seed}: {histories} histories");
    }
}

#[test]
fn each_write_fails_once() {
    every(1, FaultKind::Write, 1);
}

#[test]
fn each_write_and_all_after_it_fail() {
    every(1, FaultKind::Write, usize::MAX);
}

#[test]
fn each_sync_fails_once() {
    every(1, FaultKind::Sync, 1);
}

#[test]
fn each_sync_and_all_after_it_fail() {
    every(1, FaultKind::Sync, usize::MAX);
}

#[test]
fn each_read_fails_once() {
    every(1, FaultKind::Read, 1);
}

#[test]
fn each_read_and_all_after_it_fail() {
    every(1, FaultKind::Read, usize::MAX);
}

#[test]
fn each_write_fails_once_in_one_of_three_sectors() {
    every(3, FaultKind::Write, 1);
}

#[test]
fn each_sync_and_all_after_it_fail_in_one_of_three_sectors() {
    every(3, FaultKind::Sync, usize::MAX);
}

/// A store that can't be made leaves nothing that keeps it from being made.
#[test]
fn each_call_of_a_creation_fails() {
    for kind in [FaultKind::Read, FaultKind::Write, FaultKind::Sync] {
        for after in 0..1000 {
            let sim = Sim::new(BLOCK, after as u64);
            sim.set_faults(&[Fault {
                kind,
                after,
                times: 1,
                disk: None,
            }]);
            let outcome = Store::create_on(sim.backend(), PATH, create_options(2));
            let over = sim.failures() == 0;
            sim.set_faults(&[]);
            match outcome {
                Ok(store) => drop(store),
                Err(error) => {
                    check_error(&error, &format!("{kind:?} {after}"));
                    Store::create_on(sim.backend(), PATH, create_options(2))
                        .unwrap_or_else(|error| panic!("{kind:?} {after}: again: {error}"));
                }
            }
            let store = Store::open_on(sim.backend(), PATH, options()).expect("it opens");
            assert_eq!(store.info().blobs, 0);
            if over {
                break;
            }
        }
    }
}

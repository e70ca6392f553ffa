//! The models.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use graviton_engine::io::sim::{Fault, FaultKind, Image, Loss};
use graviton_engine::port::{BlobStore, DeleteOptions, Durability, GetOptions, PutOptions};
use graviton_engine::store::{OpenOptions, Store, WriteMode};
use graviton_engine::sync::thread::{self, JoinHandle};
use graviton_tests::put_options;
use graviton_tests::random::Random;

use crate::support::{
    Answer, Call, Patience, Subject, check, image, key, open, open_options, random, says_short,
    tag_of, tagged, verify,
};

const SMALL: usize = 40;
/// Of a blob that is put in several steps.
const LARGE: usize = 6000;

fn empty(sectors: u16) -> Image {
    static ONE: OnceLock<Image> = OnceLock::new();
    static TWO: OnceLock<Image> = OnceLock::new();
    let made = if sectors == 1 { &ONE } else { &TWO };
    made.get_or_init(|| image(sectors, 1, |_| ())).clone()
}

fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        thread.join().expect("a thread of the model ends");
    }
}

/// A few turns of maintenance on a thread of its own.
fn stepper(subject: &Subject, steps: usize) -> JoinHandle<()> {
    subject.spawn(move |subject| {
        for _ in 0..steps {
            // Closed, or a sector given up: other calls tell.
            if subject.store.step().is_err() {
                return;
            }
        }
    })
}

/// A change, a read or a flush of one of two keys.
fn any_call(subject: &Subject, random: &mut Random) -> (Call, bool) {
    let names = ["a", "b"];
    let name = names[random.below(2)];
    let call = match random.below(8) {
        0..3 => Call::Change(vec![(name, Some(subject.record.tag()))]),
        3 => Call::Change(vec![(name, None)]),
        4 => Call::Change(vec![
            ("a", Some(subject.record.tag())),
            ("b", random.one_in(2).then(|| subject.record.tag())),
        ]),
        5 => Call::Flush,
        _ => Call::Get(name),
    };
    (call, random.one_in(2))
}

fn group_commit(sectors: u16, options: &OpenOptions, crashes: usize) {
    let subject = Subject::new(&empty(sectors), options.clone());
    let mut threads: Vec<_> = (0..3)
        .map(|_| {
            let mut random = random();
            subject.spawn(move |subject| {
                for _ in 0..3 {
                    let (call, durable) = any_call(subject, &mut random);
                    subject.call(call, durable, SMALL, Patience::Waits);
                }
            })
        })
        .collect();
    if !options.background {
        threads.push(stepper(&subject, 1));
    }
    join(threads);
    subject.store.close().expect("it closes");
    subject.check_to_the_end();
    subject.check_crashes(crashes);
}

#[test]
fn group_commit_is_linearizable_and_durable() {
    check(1000, || {
        let crashes = usize::from(random().one_in(3)) * 2;
        group_commit(1, &open_options(), crashes);
    });
}

/// What is ordered in one sector may wait for what is ordered in another.
#[test]
fn group_commit_over_two_sectors_is_linearizable() {
    check(1000, || group_commit(2, &open_options(), 0));
}

#[test]
fn group_commit_beside_the_thread_of_the_store_is_linearizable() {
    let options = OpenOptions {
        background: true,
        ..open_options()
    };
    check(1000, move || group_commit(1, &options, 0));
}

/// Counters that several threads raise, each if it is still what they read: none is raised in vain.
#[test]
fn no_update_by_compare_and_set_is_lost() {
    const THREADS: u64 = 3;
    const TURNS: u64 = 2;
    check(1000, || {
        let subject = Subject::new(&empty(1), open_options());
        let first = Call::Change(vec![("counter", Some(1))]);
        subject.call(first, true, SMALL, Patience::Waits);
        let threads = (0..THREADS).map(|_| {
            subject.spawn(|subject| {
                for _ in 0..TURNS {
                    loop {
                        let get = Call::Get("counter");
                        let found = subject.call(get, false, SMALL, Patience::Waits);
                        let Answer::Found(Some((version, count))) = found else {
                            panic!("the counter is gone: {found:?}");
                        };
                        let put = Call::PutIf("counter", version, count + 1);
                        match subject.call(put, true, SMALL, Patience::Waits) {
                            Answer::Changed(_) => break,
                            Answer::Refused => {}
                            other => panic!("neither put nor refused: {other:?}"),
                        }
                    }
                }
            })
        });
        join(threads.collect());
        let found = subject.call(Call::Get("counter"), false, SMALL, Patience::Waits);
        let Answer::Found(Some((_, count))) = found else {
            panic!("the counter is gone: {found:?}");
        };
        assert_eq!(count, 1 + THREADS * TURNS);
        subject.store.close().expect("it closes");
        check_counter(&subject);
    });
}

/// After a power loss the counter is what was acknowledged, or what was under way besides.
fn check_counter(subject: &Subject) {
    let mut random = random();
    let events = subject.record.events();
    let is_raise = |call: &Call| !matches!(call, Call::Get(_));
    let mut crasher = subject.sim.crasher();
    let position = random.below(crasher.events() + 1);
    crasher.advance(position);
    let loss = Loss::Random(random.number());
    let (_, store) = open(&crasher.image(loss), open_options());
    let count = match store.get(&key("counter"), GetOptions::default()).wait() {
        Ok(blob) => tag_of(&blob.bytes),
        Err(_) => 0,
    };
    let raised = events
        .iter()
        .filter(|event| is_raise(&event.call) && matches!(event.answer, Answer::Changed(_)));
    let acknowledged = raised
        .clone()
        .filter(|event| event.position_after <= position)
        .count() as u64;
    let begun = raised
        .filter(|event| event.position_before <= position)
        .count() as u64;
    assert!(
        (acknowledged..=begun).contains(&count),
        "{count} after a power loss at {position}, {acknowledged} acknowledged, {begun} begun"
    );
}

/// Copies, renames, deletes and puts of the same keys; some are not waited for.
#[test]
fn copies_and_renames_race_deletes() {
    check(1000, || {
        let subject = Subject::new(&empty(1), open_options());
        let first = Call::Change(vec![("a", Some(subject.record.tag()))]);
        subject.call(first, true, LARGE, Patience::Waits);
        let threads = (0..3).map(|_| {
            let mut random = random();
            subject.spawn(move |subject| {
                for _ in 0..3 {
                    let (from, to) = [("a", "b"), ("b", "a"), ("a", "c")][random.below(3)];
                    let call = match random.below(6) {
                        0 => Call::Copy(from, to),
                        1 => Call::Rename(from, to),
                        2 => Call::Change(vec![(from, None)]),
                        3 | 4 => Call::Change(vec![(from, Some(subject.record.tag()))]),
                        _ => Call::Get(to),
                    };
                    let patience = if random.one_in(3) {
                        Patience::Drops
                    } else {
                        Patience::Waits
                    };
                    let size = [SMALL, LARGE][random.below(2)];
                    subject.call(call, random.one_in(2), size, patience);
                }
            })
        });
        join(threads.collect());
        subject.store.close().expect("it closes");
        subject.check_to_the_end();
    });
}

/// Whatever is under way when a store is closed is done, or answered `Closed` and not done.
fn close_races(sectors: u16, options: &OpenOptions) {
    let subject = Subject::new(&empty(sectors), options.clone());
    let mut threads: Vec<_> = (0..3)
        .map(|_| {
            let mut random = random();
            subject.spawn(move |subject| {
                for _ in 0..2 {
                    let (call, durable) = any_call(subject, &mut random);
                    let size = [SMALL, LARGE][random.below(2)];
                    subject.call(call, durable, size, Patience::Waits);
                }
            })
        })
        .collect();
    let mut turns = random();
    threads.push(subject.spawn(move |subject| {
        let outcome = match turns.below(3) {
            0 => subject.store.checkpoint().map(drop),
            1 => subject.store.compact().map(drop),
            _ => subject.store.step().map(drop),
        };
        if let Err(error) = outcome {
            assert_eq!(error.kind(), graviton_engine::port::ErrorKind::Unavailable);
        }
    }));
    let closed = Arc::new(AtomicUsize::new(usize::MAX));
    threads.push(subject.spawn({
        let closed = Arc::clone(&closed);
        move |subject| {
            subject.store.close().expect("it closes");
            closed.store(subject.sim.position(), Ordering::SeqCst);
            subject.store.close().expect("it is closed already");
        }
    }));
    join(threads);
    assert_eq!(
        subject.sim.position(),
        closed.load(Ordering::SeqCst),
        "the disk was touched after the store was closed"
    );
    subject.check_to_the_end();
}

#[test]
fn closing_races_everything() {
    check(1000, || close_races(1, &open_options()));
}

#[test]
fn closing_two_sectors_races_everything() {
    check(1000, || close_races(2, &open_options()));
}

#[test]
fn closing_races_the_thread_of_the_store() {
    let options = OpenOptions {
        background: true,
        ..open_options()
    };
    check(1000, move || close_races(1, &options));
}

/// A sector that is given up in the middle of things: everyone gets an answer, and what was
/// acknowledged before is there afterwards.
fn sector_fails(sectors: u16) {
    let subject = Subject::new(&empty(sectors), open_options());
    let mut decided = random();
    let fault = Fault {
        kind: [FaultKind::Write, FaultKind::Sync][decided.below(2)],
        after: decided.below(4),
        times: 1,
        disk: Some(0),
    };
    subject.sim.set_faults(&[fault]);
    let mut threads: Vec<_> = (0..3)
        .map(|_| {
            let mut random = random();
            subject.spawn(move |subject| {
                for _ in 0..3 {
                    let (call, durable) = any_call(subject, &mut random);
                    let size = [SMALL, LARGE][random.below(2)];
                    subject.call(call, durable, size, Patience::Waits);
                }
            })
        })
        .collect();
    threads.push(stepper(&subject, 2));
    join(threads);
    let closed = subject.store.close();
    if subject.sim.failures() == 0 {
        closed.expect("it closes");
    }
    subject.sim.set_faults(&[]);
    if sectors == 1 {
        subject.check_failed();
    }
}

#[test]
fn a_sector_that_is_given_up_answers_everyone() {
    check(1000, || sector_fails(1));
}

#[test]
fn a_sector_that_is_given_up_answers_everyone_beside_another() {
    check(1000, || sector_fails(2));
}

/// A sector fails under what is put into two: until repair has brought it to a third, the store file says that
/// something is short, so that nobody goes on without the only sector that has it.
#[test]
fn what_lies_in_too_few_sectors_is_noted_all_along() {
    static MADE: OnceLock<Image> = OnceLock::new();
    check(1000, || {
        let image = MADE.get_or_init(|| image(3, 2, |_| ())).clone();
        let options = OpenOptions {
            write_mode: WriteMode::Async,
            ..open_options()
        };
        let (sim, store) = open(&image, options);
        // Nothing is left to be done but what the failure asks for.
        while store.step().expect("it is tidied up") {}
        let fault = Fault {
            kind: FaultKind::Write,
            after: random().below(3),
            times: 1,
            disk: Some(random().below(3)),
        };
        sim.set_faults(&[fault]);
        let stepping = Arc::clone(&store);
        let mut threads = vec![thread::spawn(move || {
            for _ in 0..8 {
                // What a failed sector keeps from being done is done when there is more to do.
                let _ = stepping.step();
            }
        })];
        threads.extend(["a", "b"].map(|name| {
            let (sim, store) = (sim.clone(), Arc::clone(&store));
            thread::spawn(move || {
                let put = store.put(&key(name), tagged(1, SMALL), PutOptions::default());
                // It fails if its first sector does.
                if put.wait().is_err() {
                    return;
                }
                let lies_in = || {
                    let found = store.stat(&key(name)).wait();
                    found.expect("it is there").sectors.len()
                };
                if lies_in() < 2 && !says_short(&sim) {
                    assert!(
                        lies_in() == 2,
                        "{name} lies in one sector, and nothing says so"
                    );
                }
            })
        }));
        join(threads);
        store.close().expect("it closes");
    });
}

/// A store with little room left, and some blobs.
fn crowded() -> Image {
    static MADE: OnceLock<Image> = OnceLock::new();
    MADE.get_or_init(|| {
        image(1, 1, |store| {
            let fill = |name: &str, tag| {
                let payload = tagged(tag, CROWD);
                let put = store.put(&key(name), payload, put_options(Durability::Written));
                put.wait().is_ok()
            };
            for number in 0..4 {
                assert!(fill(&format!("old-{number}"), number));
            }
            let mut number = 100;
            while fill(&format!("fill-{number}"), number) {
                number += 1;
            }
            for number in number - 4..number {
                let gone = store.delete(&key(&format!("fill-{number}")), DeleteOptions::default());
                gone.wait().expect("it is deleted");
            }
        })
    })
    .clone()
}

const CROWD: usize = 50_000;

fn read_slowly(store: &Store, number: u64) -> bool {
    let name = key(&format!("old-{number}"));
    let opened = store.get_stream(&name, GetOptions::default()).wait();
    let Ok(mut reader) = opened else {
        return false;
    };
    for _ in 0..3 {
        thread::yield_now();
    }
    let mut bytes = Vec::new();
    while let Some(piece) = reader.next().wait().expect("it can be read to its end") {
        bytes.extend_from_slice(&piece);
    }
    assert_eq!(tag_of(&bytes.into()), number);
    true
}

/// Segments are reused while readers hold what was in them.
#[test]
fn no_reader_sees_the_bytes_of_another_blob() {
    check(100, || {
        let image = crowded();
        let (_, store) = open(&image, open_options());
        let mut threads = Vec::new();
        let mut spawn = |run: Box<dyn FnOnce(&Store) + Send>| {
            let store = Arc::clone(&store);
            threads.push(thread::spawn(move || run(&store)));
        };
        for number in 0..2 {
            spawn(Box::new(move |store| {
                for turn in 0..2 {
                    if !read_slowly(store, (number + turn) % 4) {
                        return;
                    }
                }
            }));
        }
        spawn(Box::new(|store| {
            for number in 0..4 {
                let name = key(&format!("old-{number}"));
                let gone = store.delete(&name, DeleteOptions::default());
                gone.wait().expect("it is deleted");
            }
            store.compact().expect("it is compacted");
            store.checkpoint().expect("a checkpoint is taken");
        }));
        spawn(Box::new(|store| {
            for number in 0..6 {
                let name = key(&format!("new-{}", number % 3));
                let payload = tagged(1000 + number, CROWD);
                // There may be no room for it yet.
                let _ = store.put(&name, payload, PutOptions::default()).wait();
            }
        }));
        join(threads);
        verify(&store);
        store.close().expect("it closes");
    });
}

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bytes::Bytes;

use crate::port::{
    Batch, BatchItem, CopyOptions, ErrorKind, GetOptions, Precondition, PutOptions, PutOutcome,
    StorageError,
};
use crate::testing::Subject;
use crate::testing::support::{Short, delete_if, if_version, key, put_if};

const THREADS: u8 = 8;

/// Runs `body` on several threads that start together; what each returns.
fn together<T: Send>(body: impl Fn(u8) -> T + Sync) -> Vec<T> {
    let barrier = Barrier::new(usize::from(THREADS));
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|number| {
                let (body, barrier) = (&body, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    body(number)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("the thread ends well"))
            .collect()
    })
}

/// Of a blob written by [`racing_puts_never_mix`]: one byte over and over, whose number and whose
/// length say who wrote it.
#[track_caller]
fn assert_unmixed(bytes: &[u8]) {
    let writer = bytes[0];
    assert!(bytes.iter().all(|byte| *byte == writer), "bytes are mixed");
    assert_eq!(
        bytes.len(),
        racing_size(writer),
        "length of {writer}'s blob"
    );
}

fn racing_size(writer: u8) -> usize {
    [100, 4088, 5000, 70_000][usize::from(writer) % 4] + usize::from(writer)
}

pub(super) fn racing_puts_never_mix(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    store.save("k", vec![0; racing_size(0)]);
    let made: Vec<(u64, u8)> = together(|number| {
        let bytes = Bytes::from(vec![number; racing_size(number)]);
        let mut made = Vec::new();
        let mut seen = 0;
        for round in 0..20 {
            let put = if round % 4 == 3 {
                let pieces = bytes.chunks(3000).map(Bytes::copy_from_slice);
                let put = store.stream_in("k", pieces, PutOptions::default());
                put.expect("both puts of a race succeed")
            } else {
                store.save("k", bytes.clone())
            };
            made.push((put.version, number));
            let blob = store.load("k");
            assert_unmixed(&blob.bytes);
            assert!(blob.version >= put.version, "a put is seen by its thread");
            assert!(blob.version >= seen, "versions go back");
            seen = blob.version;
            let streamed = store.stream_out("k", GetOptions::default());
            assert_unmixed(&streamed.expect("it is there"));
        }
        made
    })
    .concat();
    let (version, writer) = *made.iter().max().expect("puts were made");
    for reopened in [false, true] {
        if reopened {
            store = subject.reopen(store);
        }
        assert_eq!(store.load("k").version, version, "the last version wins");
        store.assert_holds("k", vec![writer; racing_size(writer)]);
    }
    let mut versions: Vec<u64> = made.into_iter().map(|(version, _)| version).collect();
    versions.sort_unstable();
    versions.dedup();
    assert_eq!(versions.len(), usize::from(THREADS) * 20, "each its own");
}

fn number_in(bytes: &[u8]) -> u64 {
    let text = std::str::from_utf8(bytes).expect("digits");
    text.parse().expect("digits")
}

pub(super) fn conditional_increments_are_never_lost(subject: &mut dyn Subject) {
    const EACH: u64 = 20;
    let total = EACH * u64::from(THREADS);
    let mut store = subject.fresh();
    store.save("counter", "0");
    together(|number| {
        let mut conflicts = 0;
        for _ in 0..EACH {
            loop {
                let blob = store.load("counter");
                let next = (number_in(&blob.bytes) + 1).to_string();
                let options = if number % 2 == 0 {
                    if_version(blob.version)
                } else {
                    put_if(Precondition::IfETag(blob.etag))
                };
                let put = if number % 4 == 3 {
                    store.stream_in("counter", [next.into()], options)
                } else {
                    store.save_with("counter", next, options)
                };
                match put {
                    Ok(_) => break,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}"),
                }
                conflicts += 1;
                assert!(conflicts < total, "conflicts with increments nobody made");
            }
        }
    });
    store = subject.reopen(store);
    assert_eq!(number_in(&store.load("counter").bytes), total);
}

pub(super) fn one_of_many_ifabsent_wins(subject: &mut dyn Subject) {
    let store = subject.fresh();
    for round in 0..15 {
        let name = &format!("k{round}");
        let outcomes: Vec<Result<PutOutcome, StorageError>> = together(|number| {
            let bytes = vec![number; racing_size(number)];
            let if_absent = put_if(Precondition::IfAbsent);
            if (u32::from(number) + round) % 3 == 0 {
                store.stream_in(name, [bytes.into()], if_absent)
            } else {
                store.save_with(name, bytes, if_absent)
            }
        });
        let mut winners = Vec::new();
        for (number, outcome) in (0_u8..).zip(outcomes) {
            match outcome {
                Ok(put) => winners.push((number, put)),
                Err(StorageError::PreconditionFailed { actual, .. }) => {
                    assert!(actual.is_some(), "it failed since the key exists");
                }
                Err(error) => panic!("{error:?}"),
            }
        }
        assert_eq!(winners.len(), 1, "{winners:?}");
        let (winner, put) = &winners[0];
        assert_eq!(store.load(name).version, put.version);
        store.assert_holds(name, vec![*winner; racing_size(*winner)]);
    }
}

pub(super) fn one_of_many_conditional_calls_wins(subject: &mut dyn Subject) {
    let store = subject.fresh();
    let name = key("k");
    for round in 0..16 {
        let current = store.save("k", "current").version;
        for number in 0..THREADS {
            store.save(format!("source {number}"), vec![number; 100]);
            store.remove(format!("target {number}"));
        }
        let held = Precondition::IfVersion(current);
        let on_target = CopyOptions {
            target_precondition: held,
            ..CopyOptions::default()
        };
        let on_source = CopyOptions {
            source_precondition: held,
            ..CopyOptions::default()
        };
        let batch = |item: BatchItem, number: u8| {
            let mut batch = Batch::new();
            batch.put(key(format!("target {number}")), "beside it");
            batch.items.push(item);
            store.batch(batch).wait().map(drop)
        };
        let call = |number: u8| {
            let (source, target) = (
                key(format!("source {number}")),
                key(format!("target {number}")),
            );
            // Another thread for each kind every time.
            match (number + round) % THREADS {
                0 => store.save_with("k", "put", put_if(held)).map(drop),
                1 => store
                    .stream_in("k", ["stream".into()], put_if(held))
                    .map(drop),
                2 => store.delete(&name, delete_if(held)).wait().map(drop),
                3 => store
                    .copy(&source, &name, on_target.clone())
                    .wait()
                    .map(drop),
                4 => store
                    .rename(&source, &name, on_target.clone())
                    .wait()
                    .map(drop),
                5 => store
                    .rename(&name, &target, on_source.clone())
                    .wait()
                    .map(drop),
                6 => batch(
                    BatchItem::Put {
                        key: name.clone(),
                        payload: "batch".into(),
                        options: put_if(held),
                    },
                    number,
                ),
                _ => batch(
                    BatchItem::Delete {
                        key: name.clone(),
                        options: delete_if(held),
                    },
                    number,
                ),
            }
        };
        let outcomes = together(call);
        let mut winner = None;
        for (number, outcome) in (0_u8..).zip(outcomes) {
            match outcome {
                Ok(()) => assert_eq!(winner.replace(number), None, "two win"),
                Err(StorageError::PreconditionFailed { key, .. }) => assert_eq!(key, name),
                // What was to be renamed is gone.
                Err(StorageError::NotFound { key }) if key == name => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        let winner = winner.expect("one wins");
        let kind = (winner + round) % THREADS;
        match kind {
            0 => store.assert_holds("k", "put"),
            1 => store.assert_holds("k", "stream"),
            3 | 4 => store.assert_holds("k", [winner; 100]),
            6 => store.assert_holds("k", "batch"),
            _ => store.assert_absent("k"),
        }
        for number in 0..THREADS {
            let (source, target) = (format!("source {number}"), format!("target {number}"));
            if number == winner && kind == 4 {
                store.assert_absent(source);
            } else {
                store.assert_holds(source, [number; 100]);
            }
            match (number == winner, kind) {
                (true, 5) => store.assert_holds(target, "current"),
                (true, 6 | 7) => store.assert_holds(target, "beside it"),
                _ => store.assert_absent(target),
            }
        }
    }
}

pub(super) fn a_batch_is_seen_whole(subject: &mut dyn Subject) {
    let store = subject.fresh();
    let write = |round: u64| {
        let mut batch = Batch::new();
        for name in ["a", "b", "c"] {
            batch.put(key(name), round.to_string());
        }
        store.batch(batch).wait().expect("a plain batch");
    };
    write(0);
    let written = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let _done = Raise(&written);
            (1..=200).for_each(write);
        });
        let orders = [["a", "b", "c"], ["c", "b", "a"], ["b", "a", "c"]];
        while !written.load(Ordering::Acquire) {
            for order in orders {
                let rounds = order.map(|name| number_in(&store.load(name).bytes));
                assert!(
                    rounds.is_sorted(),
                    "read one after the other, {order:?} are of rounds {rounds:?}"
                );
            }
        }
    });
    for name in ["a", "b", "c"] {
        store.assert_holds(name, "200");
    }
}

pub(super) fn a_rename_is_seen_whole(subject: &mut dyn Subject) {
    const COUNT: u64 = 60;
    let store = subject.fresh();
    let from = |n: u64| key(format!("from/{n}"));
    let to = |n: u64| key(format!("to/{n}"));
    store.fill((0..COUNT).map(from));
    let moved = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let _done = Raise(&moved);
            for n in 0..COUNT {
                store.move_to(from(n), to(n));
            }
        });
        let exists = |key| store.exists(&key).wait().expect("exists answers");
        for n in 0..COUNT {
            loop {
                let last_look = moved.load(Ordering::Acquire);
                if exists(to(n)) {
                    assert!(!exists(from(n)), "blob {n} is in two places");
                    break;
                }
                if !exists(from(n)) {
                    assert!(exists(to(n)), "blob {n} is nowhere");
                    break;
                }
                assert!(!last_look, "blob {n} did not move");
            }
        }
    });
    for n in 0..COUNT {
        store.assert_absent(from(n));
        store.assert_holds(to(n), from(n));
    }
}

/// Raises its flag when it goes, also by a panic: else others would wait for ever.
struct Raise<'a>(&'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

//! What many do to one blob at once: trackers under compare-and-set, by recorded histories, also
//! across power losses; and what the completion of a large upload costs.

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use graviton_engine::io::BackendChoice;
use graviton_engine::io::sim::{Fault, FaultKind, Loss, Random, Sim};
use graviton_engine::port::{
    Attributes, AttributesUpdate, BinaryKey, BlobStore, CompleteOptions, Completed, CopyOptions,
    Durability, ETag, ErrorKind, Expected, GetOptions, MutableObjectStore, PutOptions,
    PutRangeOptions, RangeSet, RangeTracker, Span, StorageError, TrackOptions, TrackerError,
    UpdateOptions, UploadId, UploadOptions,
};
use graviton_engine::store::{CreateOptions, GIB, MIB, OpenOptions, Store};
use graviton_tests::{contract_options, io, number_from, put_options, test_directory};

const PATH: &str = "/store";

fn key() -> BinaryKey {
    BinaryKey::new("key").expect("a short key")
}

/// The piece with this number: none touches another.
fn piece(number: usize) -> Span {
    Span::at(number as u64 * 20, 10).expect("it ends")
}

/// Adds a piece by compare-and-set, however often that takes. Returns how often.
fn raise(tracker: &dyn RangeTracker, number: usize) -> usize {
    let mut known = tracker.get_completed(&key()).wait().unwrap_or_default();
    for tries in 1.. {
        let mut update = known.set.clone();
        update.insert(piece(number));
        let expected = Expected::from(known.set);
        let options = TrackOptions::default();
        match tracker
            .compare_and_set(&key(), expected, &update, options)
            .wait()
        {
            Ok(_) => return tries,
            Err(TrackerError::Mismatch { actual, .. }) => known = *actual,
            Err(error) => panic!("{error}"),
        }
    }
    unreachable!("it succeeds in the end")
}

/// 64 threads raise the set of one key: no update is lost, and all of them are there when the store is
/// opened again.
#[test]
fn threads_lose_no_update() {
    const THREADS: usize = 64;
    const EACH: usize = 4;
    let Some(io) = io(BackendChoice::Auto) else {
        return;
    };
    let directory = test_directory();
    let path = directory.path().join("store");
    let options = contract_options(&io);
    let store = Store::create(&path, options.clone()).expect("it is made");
    let tracker = store.ranges_elsewhere();
    let tries = AtomicUsize::new(0);
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (tracker, tries) = (&tracker, &tries);
            scope.spawn(move || {
                for own in 0..EACH {
                    let took = raise(&**tracker, own * THREADS + number);
                    tries.fetch_add(took, Ordering::Relaxed);
                }
            });
        }
    });
    let all: RangeSet = (0..THREADS * EACH).map(piece).collect();
    let found = |store: &Store| store.ranges_elsewhere().get_completed(&key()).wait();
    assert_eq!(found(&store).expect("it is known").set, all);
    println!("{} updates in {tries:?} tries", THREADS * EACH);
    drop(tracker);
    store.close().expect("it closes");
    let store = Store::open_with(&path, options.open).expect("it opens");
    assert_eq!(found(&store).expect("it is known").set, all);
    check_whole(&store);
}

/// One operation.
struct Seen {
    began: Moment,
    ended: Moment,
    what: What,
}

/// When something was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Moment {
    /// No two are at one time.
    time: usize,
    /// Events that the disks had seen.
    events: usize,
}

enum What {
    /// A set was replaced.
    Set {
        expected: RangeSet,
        update: RangeSet,
    },
    /// This is what there was.
    Read(RangeSet),
}

/// The states that a set went through, in order, by what succeeded: each adds a piece of its own, so
/// there is one order at most.
fn chain(history: &[Seen]) -> Vec<(RangeSet, Moment, Moment)> {
    let mut left: Vec<&Seen> = history.iter().collect();
    let mut states = vec![(RangeSet::new(), Moment::default(), Moment::default())];
    loop {
        let (now, ..) = &states[states.len() - 1];
        let next = left
            .iter()
            .position(|seen| matches!(&seen.what, What::Set { expected, .. } if expected == now));
        let Some(next) = next else { break };
        let seen = left.swap_remove(next);
        if let What::Set { update, .. } = &seen.what {
            states.push((update.clone(), seen.began, seen.ended));
        }
    }
    let stray = |seen: &&Seen| matches!(seen.what, What::Set { .. });
    assert_eq!(
        left.into_iter().filter(stray).count(),
        0,
        "an update was lost"
    );
    states
}

/// Histories of threads that read and compare-and-set are linearizable, and so is what a power loss at
/// any moment leaves: a state that was, not before what was acknowledged, nor after what had begun.
#[test]
fn histories_are_linearizable_across_power_losses() {
    for seed in 0..number_from("GRAVITON_SEEDS").unwrap_or(6) {
        linearizable(seed);
    }
}

fn linearizable(seed: u64) {
    const THREADS: usize = 6;
    const EACH: usize = 12;
    let sim = Sim::new(512, seed);
    sim.carry_out_in_background();
    let options = CreateOptions {
        sectors: 1 + 2 * u16::try_from(seed % 2).expect("small"),
        sector_size: 16 * MIB,
        open: OpenOptions {
            background: false,
            ..OpenOptions::default()
        },
        ..CreateOptions::default()
    };
    let open_options = options.open.clone();
    let store = Store::create_on(sim.backend(), PATH, options).expect("it is made");
    let tracker = store.ranges_elsewhere();
    let history = Mutex::new(Vec::new());
    let clock = AtomicUsize::new(1);
    let now = || Moment {
        time: clock.fetch_add(1, Ordering::SeqCst),
        events: sim.position(),
    };
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (tracker, history, now) = (&tracker, &history, &now);
            scope.spawn(move || {
                let mut random = Random::new(seed << 8 | number as u64);
                let mut known = RangeSet::new();
                for own in 0..EACH {
                    let began = now();
                    let set = random.one_in(2).then(|| {
                        let mut update = known.clone();
                        update.insert(piece(own * THREADS + number));
                        update
                    });
                    let expected = known.clone();
                    let outcome = match &set {
                        Some(update) => {
                            let expected = Expected::from(known.clone());
                            let options = TrackOptions::default();
                            tracker
                                .compare_and_set(&key(), expected, update, options)
                                .wait()
                        }
                        None => tracker.get_completed(&key()).wait(),
                    };
                    let ended = now();
                    let what = match (outcome, set) {
                        (Ok(now), Some(update)) => {
                            assert_eq!(now.set, update);
                            What::Set { expected, update }
                        }
                        (Ok(now), None) => What::Read(now.set),
                        (Err(TrackerError::Mismatch { actual, .. }), _) => What::Read(actual.set),
                        (Err(TrackerError::NotFound { .. }), _) => What::Read(RangeSet::new()),
                        (Err(error), _) => panic!("{error}"),
                    };
                    known = match &what {
                        What::Set { update, .. } => update.clone(),
                        What::Read(now) => now.clone(),
                    };
                    let seen = Seen { began, ended, what };
                    history.lock().expect("no panic under it").push(seen);
                }
            });
        }
    });
    let history = history.into_inner().expect("no panic under it");
    let states = chain(&history);
    // Whatever ended before something began comes before it.
    for (place, (_, _, ended)) in states.iter().enumerate() {
        let overtaken = |(_, began, _): &&(_, Moment, _)| began.time > ended.time;
        let earlier = states[..place].iter().find(overtaken);
        assert!(earlier.is_none(), "seed {seed}: an update overtook another");
    }
    let between = |is_over: &dyn Fn(Moment) -> bool, has_begun: &dyn Fn(Moment) -> bool| {
        let first = states.iter().rposition(|(_, _, ended)| is_over(*ended));
        let last = states.iter().rposition(|(_, began, _)| has_begun(*began));
        first.unwrap_or(0)..=last.unwrap_or(0)
    };
    for seen in &history {
        if let What::Read(found) = &seen.what {
            let place = states.iter().position(|(state, ..)| state == found);
            let place = place.expect("it is a state that was");
            let may = between(&|ended| ended.time < seen.began.time, &|began| {
                began.time < seen.ended.time
            });
            assert!(
                may.contains(&place),
                "seed {seed}: read {place}, may be {may:?}"
            );
        }
    }
    let mut random = Random::new(seed);
    let mut crasher = sim.crasher();
    let first = history
        .iter()
        .map(|seen| seen.began.events)
        .min()
        .unwrap_or(0);
    let mut moments: Vec<usize> = (0..30)
        .map(|_| first + random.below(crasher.events() + 1 - first))
        .collect();
    moments.sort_unstable();
    for moment in moments {
        crasher.advance(moment);
        let image = crasher.image(Loss::Random(random.number()));
        let sim = Sim::boot(&image, 512, seed);
        let store = Store::open_on(sim.backend(), PATH, open_options.clone()).expect("it opens");
        let found = match store.ranges_elsewhere().get_completed(&key()).wait() {
            Err(TrackerError::NotFound { .. }) => Completed::default(),
            outcome => outcome.expect("it is read"),
        };
        let place = states.iter().position(|(state, ..)| *state == found.set);
        let place = place.expect("it is a state that was");
        // Whoever was told of it was told when these events were over.
        let may = between(&|ended| ended.events <= moment, &|began| {
            began.events <= moment
        });
        assert!(
            may.contains(&place),
            "seed {seed}, moment {moment}: {place}, may be {may:?}"
        );
    }
}

/// Who waits for a range is woken by whoever completes it, and by the end of the store.
#[test]
fn those_who_wait_are_woken() {
    let sim = Sim::new(512, 1);
    sim.carry_out_in_background();
    let options = CreateOptions {
        sector_size: 16 * MIB,
        ..CreateOptions::default()
    };
    let store = Arc::new(Store::create_on(sim.backend(), PATH, options).expect("it is made"));
    let tracker = store.ranges();
    let made = store.create_sparse(&key(), 100, PutOptions::default());
    made.wait().expect("it is made");
    let waiting = tracker.wait_for(&key(), Span::first(100));
    let heard = in_time(move || waiting.wait());
    for number in 0..10 {
        let range = Span::at(number * 10, 10).expect("it ends");
        let bytes = Bytes::from(vec![1; 10]);
        let put = store.put_range(&key(), range, bytes, PutRangeOptions::default());
        put.wait().expect("it is put");
    }
    heard().expect("it is complete");
    let never = tracker.wait_for(&key(), Span::first(101));
    let heard = in_time(move || never.wait());
    store.close().expect("it closes");
    heard().expect_err("the store is closed");
}

/// Waits on another thread, so that who is never told of something fails, and does not wait for ever. What is returned
/// gives the outcome.
fn in_time<T: Send + 'static>(wait: impl FnOnce() -> T + Send + 'static) -> impl FnOnce() -> T {
    const PATIENCE: Duration = Duration::from_secs(60);
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(wait()));
    move || told.recv_timeout(PATIENCE).expect("it is told in time")
}

/// An upload of 10,000 parts is completed by writing little: as much as for parts of any size, for none
/// of their payload is moved.
#[test]
fn completing_an_upload_writes_little() {
    const PARTS: u16 = 10_000;
    const IN_FLIGHT: usize = 1000;
    let size = number_from("GRAVITON_PART_BYTES").unwrap_or(1000);
    let Some(io) = io(BackendChoice::Auto) else {
        return;
    };
    let directory = test_directory();
    let path = directory.path().join("store");
    let total = u64::from(PARTS) * size;
    let options = CreateOptions {
        sector_size: GIB / 4 + total + total / 8,
        ..contract_options(&io)
    };
    let store = Store::create(&path, options.clone()).expect("it is made");
    let started = store.start_upload(&key(), UploadOptions::default()).wait();
    let upload = started.expect("it is begun");
    let content = |number: u16| -> Bytes {
        let size = usize::try_from(size).expect("it is in memory");
        number.to_le_bytes().repeat(size.div_ceil(2))[..size]
            .to_vec()
            .into()
    };
    let numbers: Vec<u16> = (1..=PARTS).collect();
    let mut parts: Vec<(u16, ETag)> = Vec::new();
    for some in numbers.chunks(IN_FLIGHT.min(usize::try_from(GIB / 4 / size).unwrap_or(1))) {
        let put = |&number: &u16| {
            let options = put_options(Durability::Written);
            store.upload_part(upload, number, content(number), options)
        };
        let puts: Vec<_> = some.iter().map(put).collect();
        let etags = puts
            .into_iter()
            .map(|put| put.wait().expect("it is put").etag);
        parts.extend(some.iter().copied().zip(etags));
    }
    store.checkpoint().expect("a checkpoint");
    let before = store.info().sectors[0].replay_bytes;
    let completed = store.complete_upload(upload, &parts, CompleteOptions::default());
    let made = completed.wait().expect("it is completed");
    let written = store.info().sectors[0].replay_bytes - before;
    println!("{written} bytes written for {} of payload", made.size);
    assert!(written < 2 * MIB, "{written}");
    assert_eq!(made.size, total);
    store.close().expect("it closes");
    let store = Store::open_with(&path, options.open).expect("it opens");
    let mut reader = store
        .get_stream(&key(), GetOptions::default())
        .wait()
        .expect("it is read");
    for number in numbers {
        let mut part = vec![0; content(number).len()];
        reader.read_exact(&mut part).expect("all of it is there");
        assert!(part == content(number), "part {number}");
    }
    assert!(
        store
            .list_uploads(None, 1)
            .wait()
            .expect("they are listed")
            .is_empty()
    );
    let again = store.complete_upload(upload, &parts, CompleteOptions::default());
    assert_eq!(again.wait().expect("the same answer"), made);
    check_whole(&store);
}

/// What is kept of uploads that were completed goes when their blobs have changed or are gone.
#[test]
fn completed_uploads_are_forgotten_with_their_blobs() {
    let (sim, store) = new_store();
    let name = |number: usize| BinaryKey::new(format!("key/{number:04}")).expect("a short key");
    let live = |store: &Store| store.info().sectors[0].space.live;
    let complete = |number| {
        let (upload, parts) = begin(&store, &name(number), UploadOptions::default());
        let made = store.complete_upload(upload, &parts, CompleteOptions::default());
        made.wait().expect("it is completed");
        (upload, parts)
    };
    let uploads: Vec<_> = (0..600).map(complete).collect();
    store.checkpoint().expect("a checkpoint");
    let completed = live(&store) / 600;
    let put = |number| {
        let put = store.put(&name(number), "other".into(), PutOptions::default());
        put.wait().expect("it is put");
    };
    let before = live(&store);
    put(9999);
    let plain = live(&store) - before;
    (0..599).for_each(put);
    store.checkpoint().expect("a checkpoint");
    assert_eq!(live(&store), completed + 600 * plain);
    let again = |store: &Store, number: usize| {
        let (upload, parts) = &uploads[number];
        let completed = store.complete_upload(*upload, parts, CompleteOptions::default());
        completed.wait().is_ok()
    };
    let opened = open(&Sim::boot(&sim.image(), 512, 1));
    for store in [&store, &opened] {
        assert!(again(store, 599));
        assert!(!again(store, 0) && !again(store, 598));
        check_whole(store);
    }
}

/// What is complete already is no record; but if it was only written, a mark that is to be durable
/// makes it so.
#[test]
fn what_is_marked_again_is_durable() {
    let (sim, store) = new_store();
    let made = store.create_sparse(&key(), 100, PutOptions::default());
    made.wait().expect("it is made");
    let range = Span::first(10);
    let put_options = PutRangeOptions {
        durability: Durability::Written,
        ..PutRangeOptions::default()
    };
    let put = store.put_range(&key(), range, vec![1; 10].into(), put_options);
    put.wait().expect("it is put");
    let survives = |tracker: fn(&Store) -> Arc<dyn RangeTracker>| {
        let mark = |durability| {
            let options = TrackOptions {
                durability,
                ..TrackOptions::default()
            };
            let marked = tracker(&store).mark_complete(&key(), &range.into(), options);
            marked.wait().expect("it is marked");
        };
        let is_found = || {
            let store = after_power_loss(&sim);
            let known = tracker(&store).get_completed(&key()).wait();
            known.is_ok_and(|known| known.set.covers(range))
        };
        mark(Durability::Written);
        assert!(!is_found(), "nothing is shown by it");
        mark(Durability::Durable);
        assert!(is_found());
    };
    survives(|store| store.ranges());
    survives(|store| store.ranges_elsewhere());
}

/// What is said of a blob already makes no record; but if it was only written, an update that is to be
/// durable makes it so.
#[test]
fn what_is_said_again_is_durable() {
    let (sim, store) = new_store();
    let put = store.put(&key(), "bytes".into(), PutOptions::default());
    put.wait().expect("it is put");
    let say = |durability| {
        let update = AttributesUpdate::merge([("name".to_owned(), "value".into())].into());
        let options = UpdateOptions {
            durability,
            ..UpdateOptions::default()
        };
        let updated = store.manifests().update_attributes(&key(), update, options);
        updated.wait().expect("it is there").version
    };
    let is_found = || {
        let info = after_power_loss(&sim).stat(&key()).wait();
        info.expect("it is there").attributes.len() == 1
    };
    let said = say(Durability::Written);
    assert_eq!(say(Durability::Written), said);
    assert!(!is_found(), "nothing is shown by it");
    assert_eq!(say(Durability::Durable), said);
    assert!(is_found());
}

/// A part that is put when its upload is being given up comes too late; those put before are gone.
#[test]
fn a_part_that_is_late_fails() {
    let (_sim, store) = new_store();
    for size in [10, 1_000_000] {
        let begun = store.start_upload(&key(), UploadOptions::default()).wait();
        let upload = begun.expect("it is begun");
        let early = store.upload_part(upload, 2, vec![1; size].into(), PutOptions::default());
        early.wait().expect("it is put");
        let aborted = store.abort_upload(upload);
        let part = store.upload_part(upload, 1, vec![1; size].into(), PutOptions::default());
        aborted.wait().expect("it is given up");
        match part.wait() {
            Err(StorageError::NoSuchUpload { upload: named }) => assert_eq!(named, upload),
            other => panic!("{other:?}"),
        }
        let live = store.info().sectors[0].space.live;
        assert_eq!(live, 0, "bytes are left");
    }
}

/// Completing again answers as durably as it is asked to, though the first time less was asked for.
#[test]
fn what_is_completed_again_is_durable() {
    let (sim, store) = new_store();
    let (upload, parts) = begin(&store, &key(), UploadOptions::default());
    let complete = |durability| {
        let options = CompleteOptions {
            durability,
            ..CompleteOptions::default()
        };
        let completed = store.complete_upload(upload, &parts, options).wait();
        completed.expect("it is completed")
    };
    let survives = || {
        let exists = after_power_loss(&sim).exists(&key()).wait();
        exists.expect("it answers")
    };
    let made = complete(Durability::Written);
    assert!(!survives(), "nothing is shown by it");
    assert_eq!(complete(Durability::Durable), made);
    assert!(survives());
}

/// As many attributes as may be, on an upload of small parts for the longest key: there is room for
/// what its completion adds. More are refused when it is begun.
#[test]
fn attributes_leave_room_for_what_is_kept_with_them() {
    let (_sim, store) = new_store();
    let longest = BinaryKey::new([7; BinaryKey::MAX_LEN]).expect("a key");
    let many = |count: usize, length: usize| -> Attributes {
        let attribute = |number| (format!("{number:04}"), Bytes::from(vec![1; length]));
        (0..count).map(attribute).collect()
    };
    for (count, length) in [(3686, 0), (682, 44), (1000, 26), (1, 32 * 1024 - 4)] {
        let options = UploadOptions {
            attributes: many(count, length),
            ..UploadOptions::default()
        };
        let (upload, parts) = begin(&store, &longest, options.clone());
        let completed = store.complete_upload(upload, &parts, CompleteOptions::default());
        completed.wait().expect("it is completed");
        let copy = BinaryKey::new([8; BinaryKey::MAX_LEN]).expect("a key");
        let copied = store.copy(&longest, &copy, CopyOptions::default()).wait();
        copied.expect("it is copied");
        let info = store.stat(&copy).wait().expect("it is there");
        assert_eq!(info.attributes, options.attributes);
    }
    for (count, length) in [(3687, 0), (8193, 0), (700, 44), (1, 32 * 1024 - 3)] {
        let attributes = many(count, length);
        let put = PutOptions {
            attributes: attributes.clone(),
            ..PutOptions::default()
        };
        let put = store.put(&key(), Bytes::new(), put).wait();
        assert!(
            matches!(put, Err(StorageError::InvalidArgument { .. })),
            "{put:?}"
        );
        let options = UploadOptions {
            attributes,
            ..UploadOptions::default()
        };
        let begun = store.start_upload(&longest, options).wait();
        assert!(
            matches!(begun, Err(StorageError::InvalidArgument { .. })),
            "{begun:?}"
        );
    }
}

/// Nobody waits for ever for what can't come: the sector was given up.
#[test]
fn those_who_wait_hear_of_a_sector_that_is_given_up() {
    let (sim, store) = new_store();
    let made = store.create_sparse(&key(), 100, PutOptions::default());
    made.wait().expect("it is made");
    let tracker = store.ranges();
    let waiting = tracker.wait_for(&key(), Span::first(100));
    sim.set_faults(&[Fault {
        kind: FaultKind::Write,
        after: 0,
        times: 1,
        disk: None,
    }]);
    let put = store
        .put(&key(), Bytes::new(), PutOptions::default())
        .wait();
    put.expect_err("its write fails");
    let heard = in_time(move || waiting.wait());
    heard().expect_err("nothing is written any more");
    let waiting = tracker.wait_for(&key(), Span::first(100));
    let heard = in_time(move || waiting.wait());
    heard().expect_err("nor from here on");
}

/// A sweep leaves an upload that is put into while it is at others.
#[test]
fn a_sweep_leaves_what_is_put_into_meanwhile() {
    const HOUR: Duration = Duration::from_secs(3600);
    let (sim, store) = new_store();
    let uploads = [0; 2].map(|_| begin(&store, &key(), UploadOptions::default()).0);
    sim.set_time(sim.backend().now() + 48 * HOUR);
    let sweep = store.sweep_uploads(24 * HOUR);
    let put = |upload| store.upload_part(upload, 2, "late".into(), PutOptions::default());
    // Which of them is swept first is the store's affair: that is over when its part comes.
    let outcomes = uploads.map(put).map(|part| part.wait().is_ok());
    assert!(outcomes[0] != outcomes[1], "{outcomes:?}");
    assert_eq!(sweep.wait().expect("it is swept").uploads, 1);
    for (upload, is_put) in uploads.into_iter().zip(outcomes) {
        let parts = store.list_parts(upload, 0, 10).wait();
        assert_eq!(
            parts.map_or(0, |parts| parts.len()),
            if is_put { 2 } else { 0 }
        );
    }
}

/// What was tracked under a higher limit is not taken for damage.
#[test]
fn a_lower_limit_damages_no_set() {
    const SPANS: u64 = 6000;
    let (sim, store) = new_store();
    let spans = (0..SPANS).map(|number| Span::at(10_000 * number, 5000).expect("in order"));
    let set: RangeSet = spans.collect();
    let marked = store
        .ranges_elsewhere()
        .mark_complete(&key(), &set, TrackOptions::default());
    marked.wait().expect("it is marked");
    store.close().expect("it closes");
    let options = OpenOptions {
        max_fragments: 100,
        ..without_background().open
    };
    let store = Store::open_on(sim.backend(), PATH, options).expect("it opens");
    let tracker = store.ranges_elsewhere();
    let known = tracker.get_completed(&key()).wait().expect("it is known");
    assert_eq!(known.set, set);
    let all = Span::first(10_000 * SPANS);
    let marked = tracker.mark_complete(&key(), &all.into(), TrackOptions::default());
    marked.wait().expect("it has fewer pieces then");
}

/// A total that can't be kept is refused; the largest that can is there again.
#[test]
fn totals_are_limited() {
    let (sim, store) = new_store();
    let mark = |total| {
        let options = TrackOptions {
            total: Some(total),
            ..TrackOptions::default()
        };
        let range = Span::first(u64::MAX - 1);
        let tracker = store.ranges_elsewhere();
        tracker.mark_complete(&key(), &range.into(), options).wait()
    };
    let error = mark(u64::MAX).expect_err("it can't be kept");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    mark(u64::MAX - 1).expect("it is the most there may be");
    let store = open(&Sim::boot(&sim.image(), 512, 1));
    let known = store.ranges_elsewhere().get_completed(&key()).wait();
    let known = known.expect("it is known");
    assert_eq!(known.total, Some(u64::MAX - 1));
    assert!(known.is_complete());
}

fn check_whole(store: &Store) {
    let report = store.verify(&mut |_| {}).expect("it is verified");
    assert_eq!(report.findings, []);
}

/// The store as the power leaves it that fails now, and takes all that is in doubt.
fn after_power_loss(sim: &Sim) -> Store {
    let mut crasher = sim.crasher();
    crasher.advance(crasher.events());
    open(&Sim::boot(&crasher.image(Loss::All), 512, 1))
}

fn open(sim: &Sim) -> Store {
    let store = Store::open_on(sim.backend(), PATH, without_background().open);
    store.expect("it opens")
}

/// A store on one simulated disk.
fn new_store() -> (Sim, Store) {
    let sim = Sim::new(512, 1);
    let store = Store::create_on(sim.backend(), PATH, without_background());
    (sim, store.expect("it is made"))
}

/// An upload of one part.
fn begin(store: &Store, key: &BinaryKey, options: UploadOptions) -> (UploadId, [(u16, ETag); 1]) {
    let upload = store.start_upload(key, options).wait();
    let upload = upload.expect("it is begun");
    let part = store.upload_part(upload, 1, "part".into(), PutOptions::default());
    (upload, [(1, part.wait().expect("it is put").etag)])
}

fn without_background() -> CreateOptions {
    CreateOptions {
        sector_size: 16 * MIB,
        open: OpenOptions {
            background: false,
            ..OpenOptions::default()
        },
        ..CreateOptions::default()
    }
}

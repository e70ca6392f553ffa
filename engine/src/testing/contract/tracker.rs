use std::sync::Arc;
use std::thread;

use bytes::Bytes;

use crate::port::{
    CompleteOptions, CopyOptions, Expected, GetOptions, MutableObjectStore, PastEnd, PutOptions,
    PutRangeOptions, RangeSet, RangeTracker, Span, StorageError, TrackOptions, TrackerError,
    UploadOptions,
};
use crate::testing::Subject;
use crate::testing::support::{Short, assert_fails, key, part, payload};

type MutableSubject<'a> = &'a mut dyn Subject<dyn MutableObjectStore>;
type Tracker = Arc<dyn RangeTracker>;

fn set(text: &str) -> RangeSet {
    text.parse().expect("the kit writes sets that are some")
}

fn total(bytes: u64) -> TrackOptions {
    TrackOptions {
        total: Some(bytes),
        ..TrackOptions::default()
    }
}

fn mark(tracker: &Tracker, ranges: &str) -> RangeSet {
    let marked = tracker.mark_complete(&key("k"), &set(ranges), TrackOptions::default());
    marked.wait().expect("it is marked").new
}

fn completed(tracker: &Tracker, name: &str) -> RangeSet {
    let completed = tracker.get_completed(&key(name)).wait();
    completed.expect("it is known").set
}

pub(super) fn marking_is_a_union(subject: MutableSubject<'_>) {
    let mut store = subject.fresh();
    let tracker = store.ranges_elsewhere();
    assert_fails!(tracker.get_completed(&key("k")).wait(), TrackerError::NotFound { key } if key.as_bytes() == b"k");
    assert_eq!(mark(&tracker, "10..20"), set("10..20"));
    assert_eq!(mark(&tracker, "30..40,5..12"), set("5..10,30..40"));
    let before = tracker
        .get_completed(&key("k"))
        .wait()
        .expect("it is known");
    assert_eq!(mark(&tracker, "6..7,30..40"), set(""));
    assert_eq!(mark(&tracker, ""), set(""));
    assert_eq!(
        mark(&tracker, "20..30,18446744073709551614.."),
        set("20..30,18446744073709551614..")
    );
    drop(tracker);
    store = subject.reopen(store);
    let after = store.ranges_elsewhere().get_completed(&key("k")).wait();
    let after = after.expect("it is known");
    assert_eq!(after.set, set("5..40,18446744073709551614.."));
    assert_eq!(after.generation, before.generation);
    assert_ne!(after.generation, 0);
}

pub(super) fn pending_is_the_total_minus_what_is_complete(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    let tracker = store.ranges_elsewhere();
    let name = key("k");
    assert_fails!(
        tracker.get_pending(&name, Some(5)).wait(),
        TrackerError::NotFound { .. }
    );
    assert_fails!(
        tracker.is_complete(&name).wait(),
        TrackerError::NotFound { .. }
    );
    mark(&tracker, "10..20");
    let pending = |total| tracker.get_pending(&name, total).wait();
    assert_fails!(
        pending(None),
        TrackerError::Storage(StorageError::InvalidArgument { .. })
    );
    assert_eq!(pending(Some(30)).expect("it is known"), set("0..10,20..30"));
    assert_eq!(pending(Some(15)).expect("it is known"), set("0..10"));
    let is_complete = || tracker.is_complete(&name).wait().expect("it is known");
    assert!(!is_complete());
    let marked = tracker
        .mark_complete(&name, &set("0..10"), total(25))
        .wait();
    assert_eq!(marked.expect("it is marked").completed.total, Some(25));
    assert_eq!(pending(None).expect("it is known"), set("20..25"));
    assert!(!is_complete());
    mark(&tracker, "20..25");
    assert!(is_complete());
    let empty = tracker
        .mark_complete(&key("empty"), &set(""), total(0))
        .wait();
    empty.expect("it is created");
    let is_complete = tracker.is_complete(&key("empty")).wait();
    assert!(is_complete.expect("it is known"));
}

pub(super) fn totals_stay(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    let tracker = store.ranges_elsewhere();
    let name = key("k");
    let beyond = tracker
        .mark_complete(&name, &set("0..11"), total(10))
        .wait();
    assert_fails!(
        beyond,
        TrackerError::Storage(StorageError::InvalidArgument { .. })
    );
    assert_fails!(
        tracker.get_completed(&name).wait(),
        TrackerError::NotFound { .. }
    );
    tracker
        .mark_complete(&name, &set("0..5"), total(10))
        .wait()
        .expect("it is marked");
    for (ranges, options) in [("5..11", TrackOptions::default()), ("5..6", total(11))] {
        let refused = tracker.mark_complete(&name, &set(ranges), options).wait();
        assert_fails!(
            refused,
            TrackerError::Storage(StorageError::InvalidArgument { .. })
        );
        let refused = tracker.compare_and_set(&name, set("0..5").into(), &set(ranges), options);
        assert_fails!(
            refused.wait(),
            TrackerError::Storage(StorageError::InvalidArgument { .. })
        );
    }
    assert_eq!(completed(&tracker, "k"), set("0..5"));
}

pub(super) fn compare_and_set_compares_sets(subject: MutableSubject<'_>) {
    let mut store = subject.fresh();
    let tracker = store.ranges_elsewhere();
    let name = key("k");
    let cas = |expected: Expected, update: &str| {
        let options = TrackOptions::default();
        tracker
            .compare_and_set(&name, expected, &set(update), options)
            .wait()
    };
    let absent = cas(set("0..1").into(), "0..2");
    assert_fails!(absent, TrackerError::Mismatch { actual, .. } if actual.set.is_empty());
    assert_fails!(
        tracker.get_completed(&name).wait(),
        TrackerError::NotFound { .. }
    );
    let created = cas(Expected::default(), "0..10").expect("nothing is there");
    assert_eq!(created.set, set("0..10"));
    // The same set, in other pieces.
    let grown = cas(set("5..10,0..3,2..6").into(), "0..10,20..30").expect("it is what is there");
    assert_eq!(grown.generation, created.generation);
    let Err(TrackerError::Mismatch { actual, key }) = cas(set("0..10").into(), "0..40") else {
        panic!("something else is there");
    };
    assert_eq!((actual.as_ref(), key.as_bytes()), (&grown, &b"k"[..]));
    // What an error hands back is all that the next attempt needs.
    let shrunk = cas((*actual).into(), "20..25").expect("it is what is there");
    let same = cas(shrunk.clone().into(), "20..25").expect("there is nothing to do");
    assert_eq!(same, shrunk);
    drop(tracker);
    store = subject.reopen(store);
    assert_eq!(completed(&store.ranges_elsewhere(), "k"), set("20..25"));
}

pub(super) fn an_earlier_life_is_not_expected(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    let tracker = store.ranges_elsewhere();
    let name = key("k");
    let old = tracker.compare_and_set(&name, Expected::default(), &set("0..10"), total(10));
    let old = old.wait().expect("nothing is there");
    assert!(tracker.forget(&name).wait().expect("it is forgotten"));
    assert!(!tracker.forget(&name).wait().expect("there is none"));
    assert_fails!(
        tracker.get_completed(&name).wait(),
        TrackerError::NotFound { .. }
    );
    let new = tracker.compare_and_set(&name, Expected::default(), &set("0..10"), total(20));
    let new = new.wait().expect("nothing is there");
    assert!(new.generation > old.generation);
    let late = tracker.compare_and_set(&name, old.into(), &set(""), TrackOptions::default());
    assert_fails!(late.wait(), TrackerError::Mismatch { actual, .. } if *actual == new);

    // The same of a blob.
    let tracker = store.ranges();
    store.save("k", payload(1, 10));
    let old = tracker.get_completed(&name).wait().expect("it is there");
    let refused = tracker.forget(&name).wait();
    assert_fails!(
        refused,
        TrackerError::Storage(StorageError::InvalidArgument { .. })
    );
    store.remove("k");
    store.save("k", payload(2, 10));
    let late = tracker.compare_and_set(&name, old.into(), &set(""), TrackOptions::default());
    assert_fails!(late.wait(), TrackerError::Mismatch { .. });
    store.assert_holds("k", payload(2, 10));
}

pub(super) fn blobs_are_tracked_by_what_is_written(subject: MutableSubject<'_>) {
    let mut store = subject.fresh();
    let name = key("k");
    let written = |store: &Arc<dyn MutableObjectStore>| {
        store
            .ranges()
            .get_completed(&name)
            .wait()
            .expect("it is there")
    };
    assert_fails!(
        store.ranges().get_completed(&name).wait(),
        TrackerError::NotFound { .. }
    );
    store
        .create_sparse(&name, 1000, PutOptions::default())
        .wait()
        .expect("it is created");
    let created = written(&store);
    assert_eq!((created.set, created.total), (set(""), Some(1000)));
    for (start, end, expected) in [(10, 20, "10..20"), (500, 1000, "10..20,500..1000")] {
        let bytes = Bytes::from(vec![1; end - start]);
        let range = Span::new(start as u64, end as u64).expect("forwards");
        let put = store.put_range(&name, range, bytes, PutRangeOptions::default());
        put.wait().expect("it lies within the blob");
        let now = written(&store);
        assert_eq!(
            (now.set, now.generation),
            (set(expected), created.generation)
        );
    }
    let options = PutRangeOptions {
        past_end: PastEnd::Sparse,
        ..PutRangeOptions::default()
    };
    let range = Span::new(2000, 2010).expect("forwards");
    let put = store
        .put_range(&name, range, payload(1, 10), options)
        .wait();
    put.expect("it leaves a hole");
    let copied = store.copy(&name, &key("copy"), CopyOptions::default());
    copied.wait().expect("it is copied");
    for _ in 0..2 {
        let now = written(&store);
        assert_eq!(now.set, set("10..20,500..1000,2000..2010"));
        assert_eq!(
            (now.total, now.generation),
            (Some(2010), created.generation)
        );
        let copy = store.ranges().get_completed(&key("copy")).wait();
        let copy = copy.expect("it is there");
        assert_eq!(copy.set, now.set);
        assert_ne!(copy.generation, now.generation);
        assert!(
            !store
                .ranges()
                .is_complete(&name)
                .wait()
                .expect("it is there")
        );
        store = subject.reopen(store);
    }
    let upload = store.start_upload(&name, UploadOptions::default()).wait();
    let upload = upload.expect("it begins");
    let part = store.upload_part(upload, 1, payload(1, 700), PutOptions::default());
    let parts = [(1, part.wait().expect("it is put").etag)];
    assert_eq!(written(&store).total, Some(2010));
    let completed = store.complete_upload(upload, &parts, CompleteOptions::default());
    completed.wait().expect("it is completed");
    let now = written(&store);
    assert_eq!((now.set, now.total), (set("0..700"), Some(700)));
    assert_ne!(now.generation, created.generation);
    assert!(
        store
            .ranges()
            .is_complete(&name)
            .wait()
            .expect("it is there")
    );
    store.save("k", "");
    assert!(
        store
            .ranges()
            .is_complete(&name)
            .wait()
            .expect("it is there")
    );
    store.remove("k");
    assert_fails!(
        store.ranges().is_complete(&name).wait(),
        TrackerError::NotFound { .. }
    );
}

pub(super) fn nothing_unwritten_is_marked(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    let tracker = store.ranges();
    let name = key("k");
    let absent = tracker
        .mark_complete(&name, &set("0..1"), TrackOptions::default())
        .wait();
    assert_fails!(absent, TrackerError::NotFound { .. });
    let absent = tracker.compare_and_set(
        &name,
        Expected::default(),
        &set(""),
        TrackOptions::default(),
    );
    assert_fails!(absent.wait(), TrackerError::NotFound { .. });
    store
        .create_sparse(&name, 1000, PutOptions::default())
        .wait()
        .expect("it is created");
    let range = Span::new(100, 200).expect("forwards");
    let put = store.put_range(&name, range, payload(1, 100), PutRangeOptions::default());
    let put = put.wait().expect("it lies within the blob");
    let missing = set("90..100,200..210");
    let refused = tracker
        .mark_complete(&name, &set("90..210"), TrackOptions::default())
        .wait();
    assert_fails!(refused, TrackerError::NotWritten { missing: of, .. } if of == missing);
    let refused =
        tracker.compare_and_set(&name, set("100..200").into(), &set("90..210"), total(1000));
    assert_fails!(refused.wait(), TrackerError::NotWritten { missing: of, .. } if of == missing);
    let marked = tracker
        .mark_complete(&name, &set("110..120"), total(1000))
        .wait();
    assert!(marked.expect("it was written").new.is_empty());
    assert_eq!(store.info("k").version, put.version);
}

pub(super) fn taken_away_bytes_are_holes(subject: MutableSubject<'_>) {
    let mut store = subject.fresh();
    let name = key("k");
    let bytes = payload(1, 100_000);
    let old = store.save("k", bytes.clone());
    let tracker = store.ranges();
    let before = tracker.get_completed(&name).wait().expect("it is there");
    let update = set("0..50000,60001..100000");
    let shrunk = tracker.compare_and_set(&name, before.clone().into(), &update, total(100_000));
    let shrunk = shrunk.wait().expect("it is what is there");
    assert_eq!(
        (&shrunk.set, shrunk.generation),
        (&update, before.generation)
    );
    drop(tracker);
    for _ in 0..2 {
        let info = store.info("k");
        assert!(info.version > old.version);
        assert_eq!((info.size, info.missing), (100_000, set("50000..60001")));
        let whole = store.get(&name, GetOptions::default()).wait();
        assert_fails!(whole, StorageError::MissingRanges { missing, .. } if missing == set("50000..60001"));
        let rest = store.get(&name, part(60_001..100_000)).wait();
        assert!(rest.expect("it is there").bytes == bytes[60_001..]);
        store = subject.reopen(store);
    }
    let range = Span::new(50_000, 60_001).expect("forwards");
    let put = store.put_range(
        &name,
        range,
        bytes.slice(50_000..60_001),
        PutRangeOptions::default(),
    );
    put.wait().expect("it lies within the blob");
    store.assert_holds("k", &bytes);
}

pub(super) fn no_update_is_lost(subject: MutableSubject<'_>) {
    const THREADS: usize = 8;
    const PIECES: u64 = 25;
    let store = subject.fresh();
    let tracker = store.ranges_elsewhere();
    let whole = THREADS as u64 * PIECES * 10;
    let created = tracker
        .mark_complete(&key("k"), &set(""), total(whole))
        .wait();
    created.expect("it is created");
    // Each claims the first piece that is pending, until none is.
    let claims: Vec<Vec<Span>> = thread::scope(|scope| {
        let claim = || {
            let mut known = tracker
                .get_completed(&key("k"))
                .wait()
                .expect("it is known");
            let mut claimed = Vec::new();
            while let Some(&pending) = known.pending(whole).spans().first() {
                let piece = Span::at(pending.start(), 10).expect("it is small");
                let mut update = known.set.clone();
                update.insert(piece);
                let options = TrackOptions::default();
                let set = tracker.compare_and_set(&key("k"), known.into(), &update, options);
                known = match set.wait() {
                    Ok(now) => {
                        claimed.push(piece);
                        now
                    }
                    Err(TrackerError::Mismatch { actual, .. }) => *actual,
                    Err(error) => panic!("{error}"),
                };
            }
            claimed
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(claim)).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join().expect("it claims");
        threads.into_iter().map(join).collect()
    });
    let all: Vec<Span> = claims.into_iter().flatten().collect();
    assert_eq!(
        all.len() as u64,
        THREADS as u64 * PIECES,
        "each is claimed once"
    );
    assert_eq!(
        all.into_iter().collect::<RangeSet>(),
        Span::first(whole).into()
    );
    assert!(tracker.is_complete(&key("k")).wait().expect("it is known"));
}

pub(super) fn marks_of_many_threads_add_up(subject: MutableSubject<'_>) {
    const THREADS: u64 = 8;
    const PIECES: u64 = 25;
    let store = subject.fresh();
    let tracker = store.ranges_elsewhere();
    let new: u64 = thread::scope(|scope| {
        let tracker = &tracker;
        let mark = |thread: u64| {
            move || {
                // Neighbours share half of each piece.
                let pieces = (0..PIECES).map(|piece| (piece * THREADS + thread) * 10);
                let ranges = pieces.map(|start| Span::at(start, 15).expect("it is small"));
                let mark = |range: Span| {
                    let options = TrackOptions::default();
                    let marked = tracker.mark_complete(&key("k"), &range.into(), options);
                    marked.wait().expect("it is marked").new.len()
                };
                ranges.map(mark).sum::<u64>()
            }
        };
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(mark(thread)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("it marks"))
            .sum()
    });
    let whole = THREADS * PIECES * 10 + 5;
    assert_eq!(new, whole, "each byte is new once");
    assert_eq!(completed(&tracker, "k"), Span::first(whole).into());
}

pub(super) fn waiting_for_ranges(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    let name = key("k");
    let tracker = store.ranges();
    let range = |start, end| Span::new(start, end).expect("forwards");
    assert_fails!(
        tracker.wait_for(&name, range(0, 1)).wait(),
        TrackerError::NotFound { .. }
    );
    store
        .create_sparse(&name, 1000, PutOptions::default())
        .wait()
        .expect("it is created");
    tracker
        .wait_for(&name, range(7, 7))
        .wait()
        .expect("there is nothing to wait for");
    let put = |start, end| {
        let options = PutRangeOptions::default();
        let bytes = Bytes::from(vec![1; usize::try_from(end - start).expect("it is small")]);
        let put = store
            .put_range(&name, range(start, end), bytes, options)
            .wait();
        put.expect("it lies within the blob");
    };
    thread::scope(|scope| {
        let waiters: Vec<_> = [range(0, 300), range(100, 101), range(250, 600)]
            .map(|of| {
                let waiting = tracker.wait_for(&name, of);
                let tracker = &tracker;
                let name = &name;
                scope.spawn(move || {
                    waiting.wait().expect("it is complete in the end");
                    let now = tracker.get_completed(name).wait().expect("it is there");
                    assert!(now.set.covers(of), "{of} of {now:?}");
                })
            })
            .into_iter()
            .collect();
        for (start, end) in [(0, 100), (100, 300), (590, 700), (300, 590)] {
            put(start, end);
        }
        for waiter in waiters {
            waiter.join().expect("it saw nothing wrong");
        }
    });
    tracker
        .wait_for(&name, range(0, 700))
        .wait()
        .expect("it is complete");
    let waiting = tracker.wait_for(&name, range(0, 1000));
    store.remove("k");
    assert_fails!(waiting.wait(), TrackerError::NotFound { .. });
}

pub(super) fn observers_see_changes(subject: MutableSubject<'_>) {
    let store = subject.fresh();
    let name = key("k");
    let tracker = store.ranges_elsewhere();
    assert_fails!(tracker.observe(&name).wait(), TrackerError::NotFound { .. });
    mark(&tracker, "0..10");
    let mut observer = tracker.observe(&name).wait().expect("it is known");
    let mut next = || observer.next().wait().expect("it is told");
    assert_eq!(next().expect("it is there").set, set("0..10"));
    mark(&tracker, "0..5");
    mark(&tracker, "20..30");
    assert_eq!(next().expect("it is there").set, set("0..10,20..30"));
    thread::scope(|scope| {
        let marker = scope.spawn(|| mark(&tracker, "10..20"));
        assert_eq!(next().expect("it is there").set, set("0..30"));
        marker.join().expect("it is marked");
    });
    tracker.forget(&name).wait().expect("it is forgotten");
    assert_eq!(next(), None);
}

pub(super) fn what_is_elsewhere_is_apart(subject: MutableSubject<'_>) {
    let mut store = subject.fresh();
    store.save("k", payload(1, 100));
    let elsewhere = store.ranges_elsewhere();
    assert_fails!(
        elsewhere.get_completed(&key("k")).wait(),
        TrackerError::NotFound { .. }
    );
    mark(&elsewhere, "500..600");
    elsewhere
        .mark_complete(&key("other"), &set("0..1"), TrackOptions::default())
        .wait()
        .expect("it is marked");
    drop(elsewhere);
    for _ in 0..2 {
        assert_eq!(completed(&store.ranges(), "k"), set("0..100"));
        assert_eq!(completed(&store.ranges_elsewhere(), "k"), set("500..600"));
        assert_eq!(store.keys(), [key("k")]);
        store.assert_absent("other");
        store = subject.reopen(store);
    }
    store.remove("k");
    assert_eq!(completed(&store.ranges_elsewhere(), "k"), set("500..600"));
}

//! The read cache: whole small blobs in memory, handed out without a copy. Direct I/O has no page cache behind it.
//!
//! An entry is keyed by the version of the blob, which names its bytes for ever: so nothing that is stale is ever
//! found, whoever reads slowly, and nothing has to be taken out when a blob is replaced or deleted. Only what was
//! verified comes in, and errors never do. What is read once does not push out what is read often (S3-FIFO in
//! `quick_cache`; Yang et al., SOSP 2023). Of several who want the same version at once one reads it from the device,
//! and all of them drive that read on: it does not hang on whoever began it.
//!
//! Before it stands a table of keys that were found in it, with their current versions, so that what is hot needs
//! no search in the index. A key comes in while the index is locked for reading, and goes, while it is locked for
//! writing, with whatever makes another version of it.
//!
//! Scrub, verify, repair and compaction read past it.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use foldhash::fast::RandomState;
use quick_cache::Weighter;
use quick_cache::sync::{Cache, DefaultLifecycle};
use xxhash_rust::xxh3::xxh3_64;

use crate::port::{BinaryKey, StorageError};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Blobs of more bytes are not cached.
pub const BLOB_MAX: u64 = 256 << 10;
/// No blob takes more than this part of the budget.
const SHARE: u64 = 16;
/// Bytes that an entry takes beside its blob, about.
const OVERHEAD: u64 = 128;
/// Keys that the table before it has at most.
const HOT_MAX: usize = 1 << 16;
/// What a blob is taken to have when the cache lays out its own tables.
const TYPICAL: u64 = 4 << 10;

type ReadOutcome = Result<Bytes, StorageError>;

#[derive(Debug, Clone, Copy)]
struct ByBytes;

impl Weighter<u64, Bytes> for ByBytes {
    fn weight(&self, _version: &u64, bytes: &Bytes) -> u64 {
        bytes.len() as u64 + OVERHEAD
    }
}

/// A version that is current.
#[derive(Debug)]
struct Hot {
    /// Of the key, so that others in its place are told apart without a look at theirs.
    hash: u64,
    key: BinaryKey,
    version: u64,
}

/// Those whose keys have a part of their hashes in common.
#[derive(Debug, Default)]
struct Place {
    hot: [Option<Hot>; Self::HOT_MAX],
    /// The one that goes next, if there is no room.
    oldest: usize,
    /// Gets that found here what they asked for: counted where they are, no thread waits for another's count.
    hits: u64,
}

impl Place {
    /// With half as many keys as there is room for in all, one in twenty places has more than this.
    const HOT_MAX: usize = 4;

    fn position(&self, hash: u64, key: &BinaryKey) -> Option<usize> {
        let is_it = |hot: &Hot| hot.hash == hash && hot.key == *key;
        self.hot
            .iter()
            .position(|hot| hot.as_ref().is_some_and(is_it))
    }
}

/// See the [module's page](self).
pub struct ReadCache {
    blobs: Cache<u64, Bytes, ByBytes, RandomState>,
    /// By a hash of the key; those that share a place take it from each other. A power of two.
    hot: Box<[Mutex<Place>]>,
    blob_max: u64,
    /// Beside those that are counted in places.
    hits: AtomicU64,
    misses: AtomicU64,
    /// What is being read, by version.
    reads: Mutex<HashMap<u64, Weak<SharedRead>>>,
}

impl fmt::Debug for ReadCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadCache")
            .field("capacity", &self.blobs.capacity())
            .field("bytes", &self.blobs.weight())
            .finish_non_exhaustive()
    }
}

/// What a cache holds, and how much use it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheFigures {
    /// The most bytes of memory that blobs in it take, beside the keys of those that are hot; 0: there is none.
    pub capacity: u64,
    /// Bytes that it takes.
    pub bytes: u64,
    /// Gets of small blobs that were answered from it since the store was opened.
    pub hits: u64,
    /// Those that were not.
    pub misses: u64,
}

impl ReadCache {
    /// One of at most so many bytes.
    pub fn new(capacity: u64) -> Arc<Self> {
        let items = usize::try_from(capacity / TYPICAL)
            .unwrap_or(usize::MAX)
            .max(16);
        let places = (items.min(HOT_MAX) / Place::HOT_MAX).next_power_of_two();
        let (by_version, lifecycle) = (RandomState::default(), DefaultLifecycle::default());
        Arc::new(Self {
            blobs: Cache::with(items, capacity, ByBytes, by_version, lifecycle),
            hot: (0..places).map(|_| Mutex::default()).collect(),
            blob_max: BLOB_MAX.min(capacity / SHARE),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            reads: Mutex::default(),
        })
    }

    /// Whether blobs of this size are cached.
    pub fn takes(&self, size: u64) -> bool {
        size <= self.blob_max && size > 0
    }

    /// The bytes of a version, if it has them.
    pub fn get(&self, version: u64) -> Option<Bytes> {
        let found = self.blobs.get(&version);
        let count = match found {
            Some(_) => &self.hits,
            None => &self.misses,
        };
        count.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// Hash and place of a key.
    fn place(&self, key: &BinaryKey) -> (u64, &Mutex<Place>) {
        let hash = xxh3_64(key.stored());
        let place = usize::try_from(hash >> 32).unwrap_or(0);
        (hash, &self.hot[place & (self.hot.len() - 1)])
    }

    /// The current version of a blob, and its bytes, if it was found here before.
    pub fn get_hot(&self, key: &BinaryKey) -> Option<(u64, Bytes)> {
        let (hash, place) = self.place(key);
        let mut place = place.lock();
        let hot = &place.hot[place.position(hash, key)?];
        let version = hot.as_ref()?.version;
        let bytes = self.blobs.get(&version)?;
        place.hits += 1;
        Some((version, bytes))
    }

    /// The current version of a blob was found here. The index is locked, so that it stays current meanwhile.
    pub fn found(&self, key: &BinaryKey, version: u64) {
        let (hash, place) = self.place(key);
        let key = key.owned();
        let mut place = place.lock();
        let free = || place.hot.iter().position(Option::is_none);
        let position = place.position(hash, &key).or_else(free);
        let position = position.unwrap_or_else(|| {
            place.oldest = (place.oldest + 1) % Place::HOT_MAX;
            place.oldest
        });
        place.hot[position] = Some(Hot { hash, key, version });
    }

    /// The current version of a blob is another from here on. The index is locked for writing.
    pub fn forget(&self, key: &BinaryKey) {
        let (hash, place) = self.place(key);
        let mut place = place.lock();
        if let Some(position) = place.position(hash, key) {
            place.hot[position] = None;
        }
    }

    /// Whether it has a version for current of a blob.
    pub fn knows(&self, key: &BinaryKey) -> bool {
        let (hash, place) = self.place(key);
        place.lock().position(hash, key).is_some()
    }

    /// What is current is another from here on, of any blob.
    pub fn forget_all(&self) {
        self.hot
            .iter()
            .for_each(|place| place.lock().hot = Default::default());
    }

    /// What it holds, and how much use it was.
    pub fn figures(&self) -> CacheFigures {
        let hits = self.hot.iter().map(|place| place.lock().hits);
        CacheFigures {
            capacity: self.blobs.capacity(),
            bytes: self.blobs.weight(),
            hits: self.hits.load(Ordering::Relaxed) + hits.sum::<u64>(),
            misses: self.misses.load(Ordering::Relaxed),
        }
    }

    /// Reads all of a version by `read`, unless somebody is at it: then both wait for that.
    pub fn read_through<F>(self: &Arc<Self>, version: u64, read: impl FnOnce() -> F) -> Joined
    where
        F: Future<Output = ReadOutcome> + Send + 'static,
    {
        let mut reads = self.reads.lock();
        if let Some(running) = reads.get(&version).and_then(Weak::upgrade) {
            return Joined::new(running);
        }
        let read = read();
        let begun = Begun {
            cache: Arc::clone(self),
            version,
        };
        let future = async move {
            // What was read lies in a buffer that may be much larger.
            let outcome = read.await.map(|bytes| Bytes::copy_from_slice(&bytes));
            if let Ok(bytes) = &outcome {
                begun.cache.blobs.insert(version, bytes.clone());
            }
            begun.cache.reads.lock().remove(&version);
            outcome
        };
        let shared = Arc::new(SharedRead {
            state: Mutex::new(State::Running(Box::pin(future))),
            wakers: Arc::default(),
        });
        reads.insert(version, Arc::downgrade(&shared));
        Joined::new(shared)
    }
}

/// A read that was begun. Dropped, it is over, or was given up by all: then another may have been begun.
struct Begun {
    cache: Arc<ReadCache>,
    version: u64,
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut reads = self.cache.reads.lock();
        if reads
            .get(&self.version)
            .is_some_and(|read| read.strong_count() == 0)
        {
            reads.remove(&self.version);
        }
    }
}

/// One read that several wait for.
struct SharedRead {
    state: Mutex<State>,
    wakers: Arc<Wakers>,
}

enum State {
    Running(Pin<Box<dyn Future<Output = ReadOutcome> + Send>>),
    Over(ReadOutcome),
}

/// Those who wait, each in a slot of its own.
#[derive(Default)]
struct Wakers {
    slots: Mutex<Vec<Option<Waker>>>,
}

impl Wake for Wakers {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let wakers: Vec<Waker> = self
            .slots
            .lock()
            .iter_mut()
            .filter_map(Option::take)
            .collect();
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// One who waits for a [`SharedRead`], and drives it on.
pub struct Joined {
    read: Arc<SharedRead>,
    slot: usize,
}

impl Joined {
    fn new(read: Arc<SharedRead>) -> Self {
        let mut slots = read.wakers.slots.lock();
        slots.push(None);
        let slot = slots.len() - 1;
        drop(slots);
        Self { read, slot }
    }
}

impl Future for Joined {
    type Output = ReadOutcome;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<ReadOutcome> {
        let wakers = &self.read.wakers;
        // Before it is polled: it may be over in the next moment.
        wakers.slots.lock()[self.slot] = Some(context.waker().clone());
        let mut state = self.read.state.lock();
        let future = match &mut *state {
            State::Running(future) => future,
            State::Over(outcome) => return Poll::Ready(outcome.clone()),
        };
        let waker = Waker::from(Arc::clone(wakers));
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(outcome) => {
                let ended = std::mem::replace(&mut *state, State::Over(outcome.clone()));
                drop(state);
                drop(ended);
                wakers.wake_by_ref();
                Poll::Ready(outcome)
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;
    use crate::port::op::wait_for;
    use crate::sync::atomic::AtomicUsize;

    fn bytes(length: usize) -> Bytes {
        Bytes::from(vec![7; length])
    }

    fn filled(cache: &Arc<ReadCache>, version: u64, length: usize) {
        let read = wait_for(cache.read_through(version, || async move { Ok(bytes(length)) }));
        assert_eq!(read.expect("it is read").len(), length);
    }

    #[test]
    fn what_was_read_is_there_without_a_copy() {
        let cache = ReadCache::new(1 << 20);
        assert_eq!(cache.get(5), None);
        filled(&cache, 5, 4096);
        let first = cache.get(5).expect("it is there");
        let second = cache.get(5).expect("it is there");
        assert_eq!(first.as_ptr(), second.as_ptr());
        assert!(cache.reads.lock().is_empty());
        let figures = cache.figures();
        assert_eq!(
            (figures.hits, figures.misses, figures.bytes),
            (2, 1, 4096 + OVERHEAD)
        );
    }

    #[test]
    fn it_takes_no_more_than_its_budget_and_no_blob_too_large_for_it() {
        let cache = ReadCache::new(1 << 20);
        assert!(cache.takes(64 << 10) && !cache.takes((64 << 10) + 1) && !cache.takes(0));
        for version in 1..1000 {
            filled(&cache, version, 10_000);
            assert!(cache.figures().bytes <= 1 << 20);
        }
        assert!(cache.figures().bytes > 1 << 19);
        assert!(!ReadCache::new(1 << 30).takes(BLOB_MAX + 1));
    }

    #[test]
    fn what_is_read_often_outlives_what_is_read_once() {
        let cache = ReadCache::new(1 << 20);
        // Many small ones: which of its parts takes which is drawn by lot.
        for round in 0..20 {
            for often in 0..300 {
                if cache.get(often).is_none() {
                    filled(&cache, often, 900);
                }
            }
            for once in 0..1000 {
                filled(&cache, 1000 + round * 1000 + once, 900);
            }
        }
        // By age alone it would be none.
        let kept = (0..300).filter(|&often| cache.get(often).is_some()).count();
        assert!(kept >= 150, "{kept}");
    }

    #[test]
    fn a_key_is_hot_until_it_has_another_version() {
        let cache = ReadCache::new(1 << 20);
        let key = |number: u32| BinaryKey::new(format!("key {number}")).expect("a short key");
        filled(&cache, 5, 100);
        assert!(cache.get_hot(&key(1)).is_none());
        cache.found(&key(1), 5);
        let (version, found) = cache.get_hot(&key(1)).expect("it is there");
        assert_eq!((version, found), (5, bytes(100)));
        assert!(cache.get_hot(&key(2)).is_none());
        cache.forget(&key(2));
        assert!(cache.get_hot(&key(1)).is_some());
        cache.forget(&key(1));
        assert!(cache.get_hot(&key(1)).is_none());
        // What is not in the cache itself is not found, nor what shares a place with others.
        cache.found(&key(3), 6);
        assert!(cache.get_hot(&key(3)).is_none());
        (0..10_000).for_each(|number| cache.found(&key(number), 5));
        let hot = (0..10_000).filter(|&number| cache.get_hot(&key(number)).is_some());
        assert!((1..=cache.hot.len() * Place::HOT_MAX).contains(&hot.count()));
        cache.forget_all();
        assert!((0..10_000).all(|number| cache.get_hot(&key(number)).is_none()));
    }

    #[test]
    fn keys_that_share_a_place_leave_each_other_there_while_there_is_room() {
        let cache = ReadCache::new(1 << 20);
        filled(&cache, 5, 100);
        let keys = (0_u32..).map(|number| BinaryKey::new(number.to_string()).expect("a short key"));
        let is_of_first =
            |key: &BinaryKey| std::ptr::eq(cache.place(key).1, &raw const cache.hot[0]);
        let keys: Vec<BinaryKey> = keys.filter(is_of_first).take(Place::HOT_MAX + 1).collect();
        let hot = || {
            keys.iter()
                .filter(|key| cache.get_hot(key).is_some())
                .count()
        };
        for (before, key) in keys.iter().enumerate() {
            cache.found(key, 5);
            cache.found(key, 5);
            assert!(cache.get_hot(key).is_some());
            assert_eq!(hot(), Place::HOT_MAX.min(before + 1));
        }
        // Those that were found above: one each time, and all that were there.
        assert_eq!(cache.figures().hits, 5 + (1 + 2 + 3 + 4 + 4));
        // One that goes leaves room for another.
        let is_hot = |key: &&BinaryKey| cache.get_hot(key).is_some();
        let [out, gone] = [false, true].map(|wanted| {
            let mut those = keys.iter().filter(|key| is_hot(key) == wanted);
            those.next_back().expect("there is one")
        });
        cache.forget(gone);
        cache.found(out, 5);
        assert_eq!(hot(), Place::HOT_MAX);
    }

    #[test]
    fn errors_are_not_kept() {
        let cache = ReadCache::new(1 << 20);
        let failed = cache.read_through(1, || async { Err(StorageError::Closed) });
        assert!(wait_for(failed).is_err());
        assert_eq!(cache.get(1), None);
        filled(&cache, 1, 10);
    }

    /// Those who want the same share one read, whoever of them goes on with it.
    #[test]
    fn one_reads_for_all() {
        let cache = ReadCache::new(1 << 20);
        let reads = Arc::new(AtomicUsize::new(0));
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let receiver = Arc::new(std::sync::Mutex::new(receiver));
        let waiting: Arc<Mutex<Option<Waker>>> = Arc::default();
        let join = || {
            let (reads, receiver) = (Arc::clone(&reads), Arc::clone(&receiver));
            let waiting = Arc::clone(&waiting);
            cache.read_through(9, move || {
                reads.fetch_add(1, Ordering::Relaxed);
                std::future::poll_fn(move |context| {
                    *waiting.lock() = Some(context.waker().clone());
                    let arrived = receiver.lock().expect("nobody panics").try_recv();
                    match arrived {
                        Ok(()) => Poll::Ready(Ok(bytes(100))),
                        Err(_) => Poll::Pending,
                    }
                })
            })
        };
        let mut noop = Context::from_waker(Waker::noop());
        let (mut first, mut second, third) = (join(), join(), join());
        // The first is polled by nobody any more, the third never was, and goes.
        assert!(Pin::new(&mut first).poll(&mut noop).is_pending());
        drop(third);
        let handle = std::thread::spawn(move || wait_for(Pin::new(&mut second)));
        sender.send(()).expect("somebody waits");
        loop {
            if let Some(waker) = waiting.lock().clone() {
                waker.wake();
            }
            if handle.is_finished() {
                break;
            }
            std::thread::yield_now();
        }
        let read = handle.join().expect("it does not panic");
        assert_eq!(read.expect("it is read").len(), 100);
        let first = wait_for(first).expect("it is read");
        assert_eq!(first.as_ptr(), cache.get(9).expect("it is there").as_ptr());
        assert_eq!(reads.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_read_that_all_gave_up_is_begun_anew() {
        let cache = ReadCache::new(1 << 20);
        let mut given_up = cache.read_through(3, std::future::pending::<ReadOutcome>);
        let mut noop = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut given_up).poll(&mut noop).is_pending());
        drop(given_up);
        filled(&cache, 3, 10);
    }
}

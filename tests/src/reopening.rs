//! Stores on simulated disks for the contract kit: as they are, and as a [`Reopening`] one, which
//! between any two calls is closed, killed, or loses power, and comes up again.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use graviton_engine::io::sim::{Image, Loss, Sim};
use graviton_engine::port::blob::BatchItemOutcome;
use graviton_engine::port::{
    AttributesUpdate, Batch, BinaryKey, Blob, BlobInfo, BlobManifest, BlobRanges, BlobReader,
    BlobStore, BlobWriter, CompleteOptions, Completed, CopyOptions, DeleteOptions, DeleteOutcome,
    Durability, ETag, Expected, GetOptions, GetRangesOptions, ListPage, ListRequest, ManifestOp,
    ManifestPage, ManifestStore, Marked, MutableObjectStore, NewManifest, ObserveRanges, Op,
    PartInfo, PutManifestOptions, PutOptions, PutOutcome, PutRangeOptions, RangeSet, RangeTracker,
    ReadBlob, Span, StorageError, StoreOp, SweptUploads, TrackOptions, TrackerError, TrackerOp,
    UpdateOptions, UploadId, UploadInfo, UploadOptions, WriteBlob,
};
use graviton_engine::store::{CreateOptions, MIB, OpenOptions, Store};
use graviton_engine::testing::{Replicated, Subject};
use parking_lot::{Mutex, MutexGuard};

use crate::random::Random;
use crate::replicated;

const PATH: &str = "/simulated/store";
/// Blocks of the disks that stores are reopened on.
const BLOCK: u32 = 512;
/// Clauses about many blobs make thousands of calls: so many have a reopening each.
const OFTEN: usize = 128;
/// And of the calls after them one of so many.
const SELDOM: usize = 8;

fn create_options(sectors: u16, background: bool) -> CreateOptions {
    CreateOptions {
        sectors,
        sector_size: 128 * MIB / u64::from(sectors),
        open: OpenOptions {
            background,
            // Little to replay: it is opened often.
            checkpoint_interval: Some(MIB),
            ..OpenOptions::default()
        },
        ..CreateOptions::default()
    }
}

/// Stores on simulated disks, for the contract kit. Reopened, they have lost power.
#[derive(Debug)]
pub struct SimSubject {
    options: CreateOptions,
    block_size: u32,
    sim: Sim,
    seed: u64,
}

impl SimSubject {
    /// Stores of so many sectors on disks with such blocks; without a `background` thread whoever
    /// waits does its work.
    #[must_use]
    pub fn new(sectors: u16, block_size: u32, background: bool) -> Self {
        Self {
            options: create_options(sectors, background),
            block_size,
            sim: Sim::new(block_size, 0),
            seed: 0,
        }
    }

    /// With so many replicas.
    #[must_use]
    pub fn with_replicas(mut self, replicas: u16) -> Self {
        self.options.replicas = replicas;
        self
    }

    fn boot(&mut self, image: &Image) {
        self.sim = Sim::boot(image, self.block_size, self.seed);
        if self.options.open.background {
            self.sim.carry_out_in_background();
        }
    }
}

impl SimSubject {
    fn make(&mut self) -> Arc<Store> {
        self.seed += 1;
        self.boot(&Image::default());
        let store = Store::create_on(self.sim.backend(), PATH, self.options.clone());
        Arc::new(store.expect("a store can be made"))
    }

    /// The power fails; then `store`, which saw it, goes.
    fn open_again<S: ?Sized>(&mut self, store: Arc<S>) -> Arc<Store> {
        self.seed += 1;
        let image = fail_power(&self.sim, Loss::Random(self.seed));
        self.boot(&image);
        drop(store);
        let store = Store::open_on(self.sim.backend(), PATH, self.options.open.clone());
        Arc::new(store.expect("the store opens again"))
    }
}

impl Subject for SimSubject {
    fn fresh(&mut self) -> Arc<dyn BlobStore> {
        self.make()
    }

    fn reopen(&mut self, store: Arc<dyn BlobStore>) -> Arc<dyn BlobStore> {
        self.open_again(store)
    }
}

impl Subject<dyn MutableObjectStore> for SimSubject {
    fn fresh(&mut self) -> Arc<dyn MutableObjectStore> {
        self.make()
    }

    fn reopen(&mut self, store: Arc<dyn MutableObjectStore>) -> Arc<dyn MutableObjectStore> {
        self.open_again(store)
    }
}

impl Subject<Replicated> for SimSubject {
    fn fresh(&mut self) -> Arc<Replicated> {
        replicated(self.make())
    }

    fn reopen(&mut self, store: Arc<Replicated>) -> Arc<Replicated> {
        replicated(self.open_again(store))
    }

    fn has_partial_replicas(&self) -> bool {
        false
    }
}

/// What is on the disks of a machine whose power fails now.
fn fail_power(sim: &Sim, loss: Loss) -> Image {
    let position = sim.position();
    let mut crasher = sim.crasher();
    crasher.advance(position);
    crasher.image(loss)
}

/// A store that is opened anew before every call that comes after a change; when there were many,
/// before one such call of several.
///
/// What outlives a single call is done in one: a reader has read everything when it is handed out,
/// a writer keeps its pieces until it finishes (or is dropped: then the machine fails in the middle
/// of the stream), and an `Op` is over when it is returned.
#[derive(Clone)]
pub struct Reopening(Arc<Mutex<Machine>>);

struct Machine {
    options: OpenOptions,
    sim: Sim,
    store: Option<Store>,
    random: Random,
    /// Something changed since it was opened.
    changed: bool,
    /// Something was acknowledged that a power failure may take.
    unflushed: bool,
    /// How often it was opened again.
    reopened: usize,
    /// Those who wait for a change.
    waiting: Vec<Waker>,
}

impl Machine {
    fn create(options: &CreateOptions, seed: u64) -> Self {
        let sim = Sim::new(BLOCK, seed);
        let store = Store::create_on(sim.backend(), PATH, options.clone());
        Self {
            options: options.open.clone(),
            sim,
            store: Some(store.expect("a store can be made")),
            random: Random::new(seed),
            changed: true,
            unflushed: false,
            reopened: 0,
            waiting: Vec::new(),
        }
    }

    fn is_due(&mut self) -> bool {
        self.changed && (self.reopened < OFTEN || self.random.one_in(SELDOM))
    }

    /// Ends the store in one of the ways in which one ends, and opens it again.
    fn reopen(&mut self) {
        let seed = self.random.number();
        match self.random.below(3) {
            0 => {
                let store = self.store.take().expect("it is open");
                store.close().expect("it closes");
                self.boot(&self.sim.image(), seed);
            }
            1 if !self.unflushed => {
                let loss = [Loss::All, Loss::Random(seed)][self.random.below(2)];
                self.boot(&fail_power(&self.sim, loss), seed);
            }
            // Killed: what was written is there, nothing was said to be its end.
            _ => self.boot(&self.sim.image(), seed),
        }
        self.changed = false;
        self.reopened += 1;
    }

    /// Goes on with what is in the image; what the store still does where it was is lost.
    fn boot(&mut self, image: &Image, seed: u64) {
        self.sim = Sim::boot(image, BLOCK, seed);
        self.store = None;
        let store = Store::open_on(self.sim.backend(), PATH, self.options.clone());
        self.store = Some(store.expect("the store opens again"));
    }
}

impl Reopening {
    fn store(&self) -> MutexGuard<'_, Machine> {
        let mut machine = self.0.lock();
        if machine.is_due() {
            machine.reopen();
        }
        machine
    }

    fn read<T: Send + 'static, E: Send + 'static>(
        &self,
        call: impl FnOnce(&Store) -> Op<T, E>,
    ) -> Op<T, E> {
        let machine = self.store();
        let store = machine.store.as_ref().expect("it is open");
        Op::ready(call(store).wait())
    }

    fn change<T: Send + 'static, E: Send + 'static>(
        &self,
        durability: Durability,
        call: impl FnOnce(&Store) -> Op<T, E>,
    ) -> Op<T, E> {
        let mut machine = self.store();
        machine.changed = true;
        machine.unflushed |= durability == Durability::Written;
        let store = machine.store.as_ref().expect("it is open");
        let outcome = call(store).wait();
        let wakers = std::mem::take(&mut machine.waiting);
        drop(machine);
        wakers.into_iter().for_each(Waker::wake);
        Op::ready(outcome)
    }

    fn writer(&self, options: PutOptions, target: Target) -> Result<BlobWriter, StorageError> {
        let machine = self.store();
        let store = machine.store.as_ref().expect("it is open");
        // Whether it can be begun is known at once.
        drop(target.begin(store, options.clone())?);
        Ok(BlobWriter::new(Writer {
            store: self.clone(),
            target,
            options,
            pieces: Vec::new(),
            over: false,
        }))
    }

    fn tracker(&self, elsewhere: bool) -> Arc<dyn RangeTracker> {
        Arc::new(Tracker {
            store: self.clone(),
            elsewhere,
        })
    }
}

impl BlobStore for Reopening {
    fn put(&self, key: &BinaryKey, payload: Bytes, options: PutOptions) -> StoreOp<PutOutcome> {
        self.change(options.durability, |store| store.put(key, payload, options))
    }

    fn put_stream(&self, key: &BinaryKey, options: PutOptions) -> Result<BlobWriter, StorageError> {
        self.writer(options, Target::Blob(key.clone()))
    }

    fn get(&self, key: &BinaryKey, options: GetOptions) -> StoreOp<Blob> {
        self.read(|store| store.get(key, options))
    }

    fn get_stream(&self, key: &BinaryKey, options: GetOptions) -> StoreOp<BlobReader> {
        self.read(|store| {
            Op::ready((|| {
                let mut reader = store.get_stream(key, options).wait()?;
                let mut pieces = VecDeque::new();
                while let Some(piece) = reader.next().wait()? {
                    pieces.push_back(piece);
                }
                let range: Range<u64> = reader.range.clone();
                Ok(BlobReader::new(
                    Reader(pieces),
                    range,
                    reader.size,
                    reader.version,
                ))
            })())
        })
    }

    fn exists(&self, key: &BinaryKey) -> StoreOp<bool> {
        self.read(|store| store.exists(key))
    }

    fn stat(&self, key: &BinaryKey) -> StoreOp<BlobInfo> {
        self.read(|store| store.stat(key))
    }

    fn delete(&self, key: &BinaryKey, options: DeleteOptions) -> StoreOp<DeleteOutcome> {
        self.change(options.durability, |store| store.delete(key, options))
    }

    fn list(&self, request: ListRequest) -> StoreOp<ListPage> {
        self.read(|store| store.list(request))
    }

    fn batch(&self, batch: Batch) -> StoreOp<Vec<BatchItemOutcome>> {
        self.change(batch.durability, |store| store.batch(batch))
    }

    fn copy(
        &self,
        source: &BinaryKey,
        target: &BinaryKey,
        options: CopyOptions,
    ) -> StoreOp<PutOutcome> {
        self.change(options.durability, |store| {
            store.copy(source, target, options)
        })
    }

    fn rename(
        &self,
        source: &BinaryKey,
        target: &BinaryKey,
        options: CopyOptions,
    ) -> StoreOp<PutOutcome> {
        self.change(options.durability, |store| {
            store.rename(source, target, options)
        })
    }

    fn flush(&self) -> StoreOp<()> {
        let flushed = self.change(Durability::Durable, BlobStore::flush);
        self.0.lock().unflushed = false;
        flushed
    }
}

impl MutableObjectStore for Reopening {
    fn create_sparse(
        &self,
        key: &BinaryKey,
        size: u64,
        options: PutOptions,
    ) -> StoreOp<PutOutcome> {
        self.change(options.durability, |store| {
            store.create_sparse(key, size, options)
        })
    }

    fn put_range(
        &self,
        key: &BinaryKey,
        range: Span,
        bytes: Bytes,
        options: PutRangeOptions,
    ) -> StoreOp<PutOutcome> {
        self.change(options.durability, |store| {
            store.put_range(key, range, bytes, options)
        })
    }

    fn get_ranges(
        &self,
        key: &BinaryKey,
        ranges: &[Span],
        options: GetRangesOptions,
    ) -> StoreOp<BlobRanges> {
        self.read(|store| store.get_ranges(key, ranges, options))
    }

    fn start_upload(&self, key: &BinaryKey, options: UploadOptions) -> StoreOp<UploadId> {
        self.change(options.durability, |store| store.start_upload(key, options))
    }

    fn upload_part(
        &self,
        upload: UploadId,
        number: u16,
        bytes: Bytes,
        options: PutOptions,
    ) -> StoreOp<PutOutcome> {
        self.change(options.durability, |store| {
            store.upload_part(upload, number, bytes, options)
        })
    }

    fn upload_part_stream(
        &self,
        upload: UploadId,
        number: u16,
        options: PutOptions,
    ) -> Result<BlobWriter, StorageError> {
        self.writer(options, Target::Part(upload, number))
    }

    fn complete_upload(
        &self,
        upload: UploadId,
        parts: &[(u16, ETag)],
        options: CompleteOptions,
    ) -> StoreOp<PutOutcome> {
        self.change(options.durability, |store| {
            store.complete_upload(upload, parts, options)
        })
    }

    fn abort_upload(&self, upload: UploadId) -> StoreOp<()> {
        self.change(Durability::Durable, |store| store.abort_upload(upload))
    }

    fn list_uploads(
        &self,
        after: Option<(BinaryKey, UploadId)>,
        max: usize,
    ) -> StoreOp<Vec<UploadInfo>> {
        self.read(|store| store.list_uploads(after, max))
    }

    fn list_parts(&self, upload: UploadId, after: u16, max: usize) -> StoreOp<Vec<PartInfo>> {
        self.read(|store| store.list_parts(upload, after, max))
    }

    fn sweep_uploads(&self, age: Duration) -> StoreOp<SweptUploads> {
        self.change(Durability::Durable, |store| store.sweep_uploads(age))
    }

    fn ranges(&self) -> Arc<dyn RangeTracker> {
        self.tracker(false)
    }

    fn ranges_elsewhere(&self) -> Arc<dyn RangeTracker> {
        self.tracker(true)
    }

    fn manifests(&self) -> Arc<dyn ManifestStore> {
        Arc::new(Manifests(self.clone()))
    }
}

/// Its manifests.
struct Manifests(Reopening);

impl ManifestStore for Manifests {
    fn put(
        &self,
        key: &BinaryKey,
        manifest: &NewManifest,
        options: PutManifestOptions,
    ) -> ManifestOp<PutOutcome> {
        self.0.change(options.durability, |store| {
            store.manifests().put(key, manifest, options)
        })
    }

    fn get(&self, key: &BinaryKey) -> ManifestOp<BlobManifest> {
        self.0.read(|store| store.manifests().get(key))
    }

    fn list(&self, request: ListRequest) -> ManifestOp<ManifestPage> {
        self.0.read(|store| store.manifests().list(request))
    }

    fn update_attributes(
        &self,
        key: &BinaryKey,
        update: AttributesUpdate,
        options: UpdateOptions,
    ) -> ManifestOp<PutOutcome> {
        self.0.change(options.durability, |store| {
            store.manifests().update_attributes(key, update, options)
        })
    }
}

/// A tracker over it. What waits looks again after each change.
#[derive(Clone)]
struct Tracker {
    store: Reopening,
    elsewhere: bool,
}

impl Tracker {
    fn of(&self, store: &Store) -> Arc<dyn RangeTracker> {
        match self.elsewhere {
            true => store.ranges_elsewhere(),
            false => store.ranges(),
        }
    }

    /// What is complete now; it will be looked at again.
    fn look(&self, key: &BinaryKey, context: &Context<'_>) -> Result<Completed, TrackerError> {
        let mut machine = self.store.store();
        machine.waiting.push(context.waker().clone());
        let store = machine.store.as_ref().expect("it is open");
        self.of(store).get_completed(key).wait()
    }
}

impl RangeTracker for Tracker {
    fn mark_complete(
        &self,
        key: &BinaryKey,
        ranges: &RangeSet,
        options: TrackOptions,
    ) -> TrackerOp<Marked> {
        self.store.change(options.durability, |store| {
            self.of(store).mark_complete(key, ranges, options)
        })
    }

    fn get_completed(&self, key: &BinaryKey) -> TrackerOp<Completed> {
        self.store.read(|store| self.of(store).get_completed(key))
    }

    fn get_pending(&self, key: &BinaryKey, total: Option<u64>) -> TrackerOp<RangeSet> {
        self.store
            .read(|store| self.of(store).get_pending(key, total))
    }

    fn is_complete(&self, key: &BinaryKey) -> TrackerOp<bool> {
        self.store.read(|store| self.of(store).is_complete(key))
    }

    fn compare_and_set(
        &self,
        key: &BinaryKey,
        expected: Expected,
        update: &RangeSet,
        options: TrackOptions,
    ) -> TrackerOp<Completed> {
        self.store.change(options.durability, |store| {
            self.of(store)
                .compare_and_set(key, expected, update, options)
        })
    }

    fn wait_for(&self, key: &BinaryKey, range: Span) -> TrackerOp<()> {
        let (tracker, key) = (self.clone(), key.clone());
        Op::start(poll_fn(move |context| match tracker.look(&key, context) {
            Ok(now) if now.set.covers(range) => Poll::Ready(Ok(())),
            Ok(_) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }))
    }

    fn observe(&self, key: &BinaryKey) -> TrackerOp<Box<dyn ObserveRanges>> {
        let known = self.get_completed(key).wait();
        Op::ready(known.map(|_| {
            let observer: Box<dyn ObserveRanges> = Box::new(Observer {
                tracker: self.clone(),
                key: key.clone(),
                last: Arc::default(),
            });
            observer
        }))
    }

    fn forget(&self, key: &BinaryKey) -> TrackerOp<bool> {
        self.store
            .change(Durability::Durable, |store| self.of(store).forget(key))
    }
}

struct Observer {
    tracker: Tracker,
    key: BinaryKey,
    last: Arc<Mutex<Option<Completed>>>,
}

impl ObserveRanges for Observer {
    fn next(&mut self) -> TrackerOp<Option<Completed>> {
        let (tracker, key) = (self.tracker.clone(), self.key.clone());
        let last = Arc::clone(&self.last);
        Op::start(poll_fn(move |context| {
            let now = match tracker.look(&key, context) {
                Ok(now) => Some(now),
                Err(TrackerError::NotFound { .. }) => None,
                Err(error) => return Poll::Ready(Err(error)),
            };
            let mut last = last.lock();
            if now.is_some() && *last == now {
                return Poll::Pending;
            }
            last.clone_from(&now);
            Poll::Ready(Ok(now))
        }))
    }
}

struct Reader(VecDeque<Bytes>);

impl ReadBlob for Reader {
    fn next(&mut self) -> StoreOp<Option<Bytes>> {
        Op::ready(Ok(self.0.pop_front()))
    }
}

/// What a stream becomes.
enum Target {
    Blob(BinaryKey),
    Part(UploadId, u16),
}

impl Target {
    fn begin(&self, store: &Store, options: PutOptions) -> Result<BlobWriter, StorageError> {
        match self {
            Self::Blob(key) => store.put_stream(key, options),
            Self::Part(upload, number) => store.upload_part_stream(*upload, *number, options),
        }
    }
}

struct Writer {
    store: Reopening,
    target: Target,
    options: PutOptions,
    pieces: Vec<Bytes>,
    over: bool,
}

impl Writer {
    /// Streams everything it was given into the store, and ends there.
    fn stream(&mut self, store: &Store) -> Result<BlobWriter, StorageError> {
        let mut writer = self.target.begin(store, self.options.clone())?;
        for piece in self.pieces.drain(..) {
            writer.write(piece).wait()?;
        }
        Ok(writer)
    }
}

impl WriteBlob for Writer {
    fn write(&mut self, piece: Bytes) -> StoreOp<()> {
        self.pieces.push(piece);
        Op::ready(Ok(()))
    }

    fn finish(mut self: Box<Self>) -> StoreOp<PutOutcome> {
        self.over = true;
        let store = self.store.clone();
        store.change(self.options.durability, |store| match self.stream(store) {
            Ok(writer) => writer.finish(),
            Err(error) => Op::fail(error),
        })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.over || self.pieces.is_empty() {
            return;
        }
        // The next call finds what a machine leaves that failed in the middle of the stream.
        let store = self.store.clone();
        let mut machine = store.store();
        let begun = self.stream(machine.store.as_ref().expect("it is open"));
        let image = machine.sim.image();
        drop(begun);
        let seed = machine.random.number();
        machine.boot(&image, seed);
    }
}

/// Stores that are opened anew between any two calls, for the contract kit.
#[derive(Debug)]
pub struct ReopeningSubject {
    options: CreateOptions,
    made: u64,
}

impl ReopeningSubject {
    /// Stores of so many sectors.
    #[must_use]
    pub fn new(sectors: u16) -> Self {
        Self {
            options: create_options(sectors, false),
            made: 0,
        }
    }
}

impl ReopeningSubject {
    fn make(&mut self) -> Arc<Reopening> {
        self.made += 1;
        let machine = Machine::create(&self.options, self.made);
        Arc::new(Reopening(Arc::new(Mutex::new(machine))))
    }
}

impl Subject for ReopeningSubject {
    fn fresh(&mut self) -> Arc<dyn BlobStore> {
        self.make()
    }
}

impl Subject<dyn MutableObjectStore> for ReopeningSubject {
    fn fresh(&mut self) -> Arc<dyn MutableObjectStore> {
        self.make()
    }
}

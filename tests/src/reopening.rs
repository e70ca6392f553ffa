//! Stores on simulated disks for the contract kit: as they are, and as a [`Reopening`] one, which
//! between any two calls is closed, killed, or loses power, and comes up again.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use graviton_engine::io::sim::{Image, Loss, Sim};
use graviton_engine::port::blob::BatchItemOutcome;
use graviton_engine::port::{
    Batch, BinaryKey, Blob, BlobInfo, BlobReader, BlobStore, BlobWriter, CopyOptions,
    DeleteOptions, DeleteOutcome, Durability, GetOptions, ListPage, ListRequest, Op, PutOptions,
    PutOutcome, ReadBlob, StorageError, StoreOp, WriteBlob,
};
use graviton_engine::store::{CreateOptions, MIB, OpenOptions, Store};
use graviton_engine::testing::Subject;
use parking_lot::{Mutex, MutexGuard};

use crate::random::Random;

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

    fn boot(&mut self, image: &Image) {
        self.sim = Sim::boot(image, self.block_size, self.seed);
        if self.options.open.background {
            self.sim.carry_out_in_background();
        }
    }
}

impl Subject for SimSubject {
    fn fresh(&mut self) -> Arc<dyn BlobStore> {
        self.seed += 1;
        self.boot(&Image::default());
        let store = Store::create_on(self.sim.backend(), PATH, self.options.clone());
        Arc::new(store.expect("a store can be made"))
    }

    fn reopen(&mut self, store: Arc<dyn BlobStore>) -> Arc<dyn BlobStore> {
        self.seed += 1;
        let image = fail_power(&self.sim, Loss::Random(self.seed));
        self.boot(&image);
        drop(store);
        let store = Store::open_on(self.sim.backend(), PATH, self.options.open.clone());
        Arc::new(store.expect("the store opens again"))
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

    fn read<T: Send + 'static>(&self, call: impl FnOnce(&Store) -> StoreOp<T>) -> StoreOp<T> {
        let machine = self.store();
        let store = machine.store.as_ref().expect("it is open");
        Op::ready(call(store).wait())
    }

    fn change<T: Send + 'static>(
        &self,
        durability: Durability,
        call: impl FnOnce(&Store) -> StoreOp<T>,
    ) -> StoreOp<T> {
        let mut machine = self.store();
        machine.changed = true;
        machine.unflushed |= durability == Durability::Written;
        let store = machine.store.as_ref().expect("it is open");
        Op::ready(call(store).wait())
    }
}

impl BlobStore for Reopening {
    fn put(&self, key: &BinaryKey, payload: Bytes, options: PutOptions) -> StoreOp<PutOutcome> {
        self.change(options.durability, |store| store.put(key, payload, options))
    }

    fn put_stream(&self, key: &BinaryKey, options: PutOptions) -> Result<BlobWriter, StorageError> {
        let machine = self.store();
        let store = machine.store.as_ref().expect("it is open");
        // Whether it can be begun is known at once.
        drop(store.put_stream(key, options.clone())?);
        Ok(BlobWriter::new(Writer {
            store: Self(Arc::clone(&self.0)),
            key: key.clone(),
            options,
            pieces: Vec::new(),
            over: false,
        }))
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

struct Reader(VecDeque<Bytes>);

impl ReadBlob for Reader {
    fn next(&mut self) -> StoreOp<Option<Bytes>> {
        Op::ready(Ok(self.0.pop_front()))
    }
}

struct Writer {
    store: Reopening,
    key: BinaryKey,
    options: PutOptions,
    pieces: Vec<Bytes>,
    over: bool,
}

impl Writer {
    /// Streams everything it was given into the store, and ends there.
    fn stream(&mut self, store: &Store) -> Result<BlobWriter, StorageError> {
        let mut writer = store.put_stream(&self.key, self.options.clone())?;
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
        let store = Reopening(Arc::clone(&self.store.0));
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
        let store = Reopening(Arc::clone(&self.store.0));
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

impl Subject for ReopeningSubject {
    fn fresh(&mut self) -> Arc<dyn BlobStore> {
        self.made += 1;
        let machine = Machine::create(&self.options, self.made);
        Arc::new(Reopening(Arc::new(Mutex::new(machine))))
    }
}

//! The kit itself, over a store whose operations take their time: none is over when it is
//! returned, and a store that is reopened has no other handle.

mod replica;

use std::ops::Range;
use std::sync::mpsc;
use std::task::{Poll, Waker};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use parking_lot::Mutex;

use super::*;
use crate::memory::MemoryStore;
use crate::port::{
    Batch, BatchItemOutcome, BinaryKey, Blob, BlobInfo, BlobReader, BlobWriter, CopyOptions,
    DeleteOptions, DeleteOutcome, GetOptions, ListPage, ListRequest, Op, PutOptions, PutOutcome,
    ReadBlob, StorageError, StoreOp, WriteBlob,
};

/// Does everything on a thread of its own, in the order it was submitted.
struct Deferred {
    worker: Arc<Worker>,
    store: MemoryStore,
}

type Job = Box<dyn FnOnce() + Send>;

struct Worker {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Worker {
    fn start() -> Arc<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let thread = thread::spawn(move || queue.into_iter().for_each(|job| job()));
        Arc::new(Self {
            jobs: Mutex::new(Some(jobs)),
            thread: Mutex::new(Some(thread)),
        })
    }

    fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
    ) -> StoreOp<T> {
        struct Slot<T> {
            outcome: Option<Result<T, StorageError>>,
            waker: Option<Waker>,
        }
        let slot = Arc::new(Mutex::new(Slot {
            outcome: None,
            waker: None,
        }));
        let filled = Arc::clone(&slot);
        let jobs = self.jobs.lock();
        let sent = jobs.as_ref().map(|jobs| {
            jobs.send(Box::new(move || {
                let outcome = job();
                let mut slot = filled.lock();
                slot.outcome = Some(outcome);
                if let Some(waker) = slot.waker.take() {
                    waker.wake();
                }
            }))
        });
        if !matches!(sent, Some(Ok(()))) {
            return Op::fail(StorageError::Closed);
        }
        Op::start(std::future::poll_fn(move |context| {
            let mut slot = slot.lock();
            if let Some(outcome) = slot.outcome.take() {
                return Poll::Ready(outcome);
            }
            slot.waker = Some(context.waker().clone());
            Poll::Pending
        }))
    }

    fn stop(&self) {
        drop(self.jobs.lock().take());
        if let Some(thread) = self.thread.lock().take() {
            thread.join().expect("the jobs are done");
        }
    }
}

struct DeferredWriter(Arc<Worker>, Arc<Mutex<Option<BlobWriter>>>);

impl WriteBlob for DeferredWriter {
    fn write(&mut self, piece: Bytes) -> StoreOp<()> {
        let writer = Arc::clone(&self.1);
        self.0.run(move || {
            let mut writer = writer.lock();
            let writer = writer.as_mut().expect("not finished yet");
            writer.write(piece).wait()
        })
    }

    fn finish(self: Box<Self>) -> StoreOp<PutOutcome> {
        let writer = Arc::clone(&self.1);
        self.0.run(move || {
            let writer = writer.lock().take().expect("finished once");
            writer.finish().wait()
        })
    }
}

struct DeferredReader(Arc<Worker>, Arc<Mutex<BlobReader>>);

impl ReadBlob for DeferredReader {
    fn next(&mut self) -> StoreOp<Option<Bytes>> {
        let reader = Arc::clone(&self.1);
        self.0.run(move || reader.lock().next().wait())
    }
}

impl Deferred {
    fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(MemoryStore) -> Result<T, StorageError> + Send + 'static,
    ) -> StoreOp<T> {
        let store = self.store.clone();
        self.worker.run(move || job(store))
    }
}

impl BlobStore for Deferred {
    fn put(&self, key: &BinaryKey, payload: Bytes, options: PutOptions) -> StoreOp<PutOutcome> {
        let key = key.clone();
        self.run(move |store| store.put(&key, payload, options).wait())
    }

    fn put_stream(&self, key: &BinaryKey, options: PutOptions) -> Result<BlobWriter, StorageError> {
        let writer = self.store.put_stream(key, options)?;
        Ok(BlobWriter::new(DeferredWriter(
            Arc::clone(&self.worker),
            Arc::new(Mutex::new(Some(writer))),
        )))
    }

    fn get(&self, key: &BinaryKey, options: GetOptions) -> StoreOp<Blob> {
        let key = key.clone();
        self.run(move |store| store.get(&key, options).wait())
    }

    fn get_stream(&self, key: &BinaryKey, options: GetOptions) -> StoreOp<BlobReader> {
        let (key, worker) = (key.clone(), Arc::clone(&self.worker));
        self.run(move |store| {
            let reader = store.get_stream(&key, options).wait()?;
            let (range, size, version): (Range<u64>, _, _) =
                (reader.range.clone(), reader.size, reader.version);
            let reader = DeferredReader(worker, Arc::new(Mutex::new(reader)));
            Ok(BlobReader::new(reader, range, size, version))
        })
    }

    fn exists(&self, key: &BinaryKey) -> StoreOp<bool> {
        let key = key.clone();
        self.run(move |store| store.exists(&key).wait())
    }

    fn stat(&self, key: &BinaryKey) -> StoreOp<BlobInfo> {
        let key = key.clone();
        self.run(move |store| store.stat(&key).wait())
    }

    fn delete(&self, key: &BinaryKey, options: DeleteOptions) -> StoreOp<DeleteOutcome> {
        let key = key.clone();
        self.run(move |store| store.delete(&key, options).wait())
    }

    fn list(&self, request: ListRequest) -> StoreOp<ListPage> {
        self.run(move |store| store.list(request).wait())
    }

    fn batch(&self, batch: Batch) -> StoreOp<Vec<BatchItemOutcome>> {
        self.run(move |store| store.batch(batch).wait())
    }

    fn copy(
        &self,
        source: &BinaryKey,
        target: &BinaryKey,
        options: CopyOptions,
    ) -> StoreOp<PutOutcome> {
        let (source, target) = (source.clone(), target.clone());
        self.run(move |store| store.copy(&source, &target, options).wait())
    }

    fn rename(
        &self,
        source: &BinaryKey,
        target: &BinaryKey,
        options: CopyOptions,
    ) -> StoreOp<PutOutcome> {
        let (source, target) = (source.clone(), target.clone());
        self.run(move |store| store.rename(&source, &target, options).wait())
    }

    fn flush(&self) -> StoreOp<()> {
        self.run(|store| store.flush().wait())
    }
}

#[derive(Default)]
struct DeferredSubject {
    /// The worker and the blobs of the store that is open.
    open: Option<(Arc<Worker>, MemoryStore)>,
}

impl DeferredSubject {
    fn open(&mut self, store: MemoryStore) -> Arc<dyn BlobStore> {
        let worker = Worker::start();
        self.open = Some((Arc::clone(&worker), store.clone()));
        Arc::new(Deferred { worker, store })
    }
}

impl Subject for DeferredSubject {
    fn fresh(&mut self) -> Arc<dyn BlobStore> {
        self.open(MemoryStore::new())
    }

    fn reopen(&mut self, store: Arc<dyn BlobStore>) -> Arc<dyn BlobStore> {
        assert_eq!(Arc::strong_count(&store), 1, "the last handle");
        drop(store);
        let (worker, blobs) = self.open.take().expect("a store is open");
        worker.stop();
        self.open(blobs)
    }
}

mod contract {
    crate::contract_tests!(super::DeferredSubject::default());
}

#[test]
fn random_histories() {
    for seed in 100..110 {
        check_against_model(&mut DeferredSubject::default(), seed, 400);
    }
}

#[test]
fn clauses_have_names_and_statements_of_their_own() {
    let clauses = blob_store_contract();
    let names: std::collections::BTreeSet<_> = clauses.iter().map(|clause| clause.name).collect();
    let statements: std::collections::BTreeSet<_> =
        clauses.iter().map(|clause| clause.statement).collect();
    assert_eq!(
        (names.len(), statements.len()),
        (clauses.len(), clauses.len())
    );
    assert_eq!(
        clause("a_rename_is_seen_whole").name,
        "a_rename_is_seen_whole"
    );
}

#[test]
fn run_all_names_the_clauses_that_are_broken() {
    /// Forgets everything when it is reopened.
    struct Forgetful;
    impl Subject for Forgetful {
        fn fresh(&mut self) -> Arc<dyn BlobStore> {
            Arc::new(MemoryStore::new())
        }
        fn reopen(&mut self, _store: Arc<dyn BlobStore>) -> Arc<dyn BlobStore> {
            self.fresh()
        }
    }
    let message = |panic: Box<dyn std::any::Any + Send>| {
        let message = panic.downcast::<String>().expect("a formatted message");
        *message
    };
    let broken = catch_unwind(|| run_all(&mut Forgetful)).map_err(message);
    let broken = broken.expect_err("it is broken");
    let name = "what_is_acknowledged_is_there_after_a_reopen";
    assert!(broken.contains(&format!("\n  {name}: ")), "{broken}");
    assert!(!broken.contains("\n  get_is_conditional: "), "{broken}");

    let history = catch_unwind(|| check_against_model(&mut Forgetful, 3, 1000)).map_err(message);
    let history = history.expect_err("it forgets");
    assert!(history.starts_with("seed 3, steps ["), "{history}");
    let (steps, mismatch) = history
        .split_once("\n=> ")
        .expect("steps, and what differs");
    assert!(steps.lines().count() <= 3, "made short: {history}");
    assert!(mismatch.contains("Reopen: "), "{history}");
}

#[test]
fn a_mutation_in_doubt_excuses_one_version_that_is_newer_than_all_before() {
    let key = BinaryKey::new("key").unwrap();
    let mut versions = Versions::default();
    assert!(!versions.come_to_light(&key, 3));
    assert!(versions.give(7));
    versions.begin();
    versions.doubt(&key);
    assert!(!versions.come_to_light(&key, 6));
    assert!(!versions.come_to_light(&BinaryKey::new("other").unwrap(), 8));
    assert!(versions.come_to_light(&key, 9));
    assert!(versions.come_to_light(&key, 9));
    assert!(!versions.come_to_light(&key, 10));
}

//! The ports in memory: small enough to be read as their specification, and the model that every
//! other implementation is checked against.

mod content;
mod manifest;
mod replica;
mod state;
mod tracker;
mod uploads;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use self::state::State;
use crate::port::blob::{ATTRIBUTES_MAX_LEN, check_attributes, check_replicas, resolve_range};
use crate::port::tracker::{FRAGMENTS_MAX, Watches};
use crate::port::{
    Batch, BatchItem, BatchItemOutcome, BinaryKey, Blob, BlobInfo, BlobReader, BlobStore,
    BlobWriter, CopyOptions, DeleteOptions, DeleteOutcome, Digest, ETag, GetOptions, Holes,
    ListPage, ListRequest, Op, PutOptions, PutOutcome, ReadBlob, Span, StorageError, StoreOp,
    WriteBlob,
};
use crate::sync::Mutex;

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// How a [`MemoryStore`] is made. The default: the system's clock, no capacity but memory's, blobs
/// of up to 100 GB, one sector.
#[derive(Clone)]
pub struct MemoryOptions {
    /// Where `created` and `modified` come from.
    pub clock: Clock,
    /// The most bytes of payload, all blobs together (copies count as blobs of their own); what
    /// would exceed it fails with `NoSpace`.
    pub capacity: Option<u64>,
    /// The largest blob, in bytes; a larger one is `TooLarge`.
    pub max_blob_size: u64,
    /// The most spans that are tracked of one key; more is `TooFragmented`.
    pub max_fragments: usize,
    /// The most bytes that the attributes of a blob may have, names and values together; no more than
    /// 32 KiB.
    pub max_attributes_len: usize,
    /// How many sectors replicas can be in, numbered from 0. Its blobs are in none of them: that is for
    /// a [`ReplicaIndex`](crate::port::ReplicaIndex) to be told.
    pub sectors: u16,
    /// How many replicas there are to be of each blob, at least: a put can ask for more.
    pub replicas: u16,
}

impl Default for MemoryOptions {
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemTime::now),
            capacity: None,
            max_blob_size: 100_000_000_000,
            max_fragments: FRAGMENTS_MAX,
            max_attributes_len: ATTRIBUTES_MAX_LEN,
            sectors: 1,
            replicas: 1,
        }
    }
}

impl fmt::Debug for MemoryOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryOptions")
            .field("capacity", &self.capacity)
            .field("max_blob_size", &self.max_blob_size)
            .finish_non_exhaustive()
    }
}

/// A [`BlobStore`] in memory. Its clones are the same store.
///
/// ```
/// use graviton_engine::memory::MemoryStore;
/// use graviton_engine::port::{BinaryKey, BlobStore, GetOptions, PutOptions};
///
/// let store = MemoryStore::new();
/// let key = BinaryKey::new("greeting")?;
/// store.put(&key, "hello".into(), PutOptions::default()).wait()?;
/// assert_eq!(store.get(&key, GetOptions::default()).wait()?.bytes, "hello");
/// # Ok::<(), graviton_engine::port::StorageError>(())
/// ```
#[derive(Debug, Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

/// What a [`MemoryStore`] held at a moment.
#[derive(Debug, Clone)]
pub struct MemorySnapshot(State);

#[derive(Debug)]
struct Shared {
    options: MemoryOptions,
    state: Mutex<State>,
    watches: Arc<Watches>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store with default options.
    #[must_use]
    pub fn new() -> Self {
        Self::with_options(MemoryOptions::default())
    }

    /// An empty store.
    #[must_use]
    pub fn with_options(options: MemoryOptions) -> Self {
        let state = State::new(options.capacity, options.sectors, options.replicas);
        let state = Mutex::new(state);
        let watches = Arc::default();
        Self {
            shared: Arc::new(Shared {
                options,
                state,
                watches,
            }),
        }
    }

    /// What the store holds now, to come back to with [`MemoryStore::restore`]. It costs the keys,
    /// not the payloads.
    #[must_use]
    pub fn snapshot(&self) -> MemorySnapshot {
        MemorySnapshot(self.shared.state.lock().clone())
    }

    /// Makes the store what it was at `snapshot`, which may be another store's. Readers keep what
    /// they read, writers go on.
    pub fn restore(&self, snapshot: &MemorySnapshot) {
        self.shared.change(|state| state.clone_from(&snapshot.0));
    }

    /// A blob's version, and the bytes of it that `options` ask for.
    fn read(&self, key: &BinaryKey, options: &GetOptions) -> Result<Blob, StorageError> {
        let state = self.shared.state.lock();
        let version = state.existing(key, options.precondition)?;
        let size = version.size();
        let range = resolve_range(key, options.range.as_ref(), size)?;
        let span = Span::try_from(range.clone())?;
        let missing = version.content.missing(span);
        if options.holes == Holes::Refuse && !missing.is_empty() {
            let key = key.clone();
            return Err(StorageError::MissingRanges { key, missing });
        }
        Ok(Blob {
            bytes: version.content.read(span),
            range,
            size,
            etag: ETag::of_version(version.number),
            version: version.number,
        })
    }

    fn apply(&self, batch: Batch) -> Result<Vec<BatchItemOutcome>, StorageError> {
        let apply = |state: &mut State, item| match item {
            BatchItem::Put {
                key,
                payload,
                options,
            } => {
                self.shared.check(&key, &payload, &options)?;
                let now = self.shared.now();
                let put = state.put(&key, payload.into(), options, now)?;
                Ok(BatchItemOutcome::Put(put))
            }
            BatchItem::Delete { key, options } => {
                Ok(BatchItemOutcome::Delete(state.delete(&key, &options)?))
            }
        };
        self.shared.change(|state| {
            state.all_or_nothing(|state| {
                let items = batch.items.into_iter();
                items.map(|item| apply(state, item)).collect()
            })
        })
    }
}

impl Shared {
    /// Changes the state, and then wakes those who wait for that.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let (outcome, touched) = {
            let mut state = self.state.lock();
            let outcome = change(&mut state);
            (outcome, std::mem::take(&mut state.touched))
        };
        touched.iter().for_each(|key| self.watches.changed(key));
        outcome
    }

    /// The time, at the resolution a blob keeps.
    fn now(&self) -> SystemTime {
        let now = (self.options.clock)();
        let since_epoch = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        now - Duration::from_nanos(u64::from(since_epoch.subsec_nanos() % 1_000_000))
    }

    /// Checks what can be said of a put before its payload is seen.
    fn check_options(&self, key: &BinaryKey, options: &PutOptions) -> Result<(), StorageError> {
        check_attributes(&options.attributes, self.options.max_attributes_len)?;
        check_replicas(options.replicas, self.options.replicas)?;
        self.check_size(key, options.size.unwrap_or(0))
    }

    fn check_size(&self, key: &BinaryKey, size: u64) -> Result<(), StorageError> {
        let limit = self.options.max_blob_size;
        if size > limit {
            let key = key.clone();
            return Err(StorageError::TooLarge { key, size, limit });
        }
        Ok(())
    }

    /// Checks a put whose payload is here: against the limits, and against what was declared of it.
    fn check(
        &self,
        key: &BinaryKey,
        payload: &Bytes,
        options: &PutOptions,
    ) -> Result<(), StorageError> {
        self.check_options(key, options)?;
        let actual = payload.len() as u64;
        self.check_size(key, actual)?;
        if let Some(declared) = options.size.filter(|&declared| declared != actual) {
            return Err(StorageError::SizeMismatch {
                key: key.clone(),
                declared,
                actual,
            });
        }
        if let Some(declared) = options.digest {
            let actual = Digest::of(declared.algorithm, payload);
            if declared != actual {
                return Err(StorageError::DigestMismatch {
                    key: key.clone(),
                    declared: declared.to_string(),
                    actual: actual.to_string(),
                });
            }
        }
        Ok(())
    }

    fn put(
        &self,
        key: &BinaryKey,
        payload: Bytes,
        options: PutOptions,
    ) -> Result<PutOutcome, StorageError> {
        self.check(key, &payload, &options)?;
        let now = self.now();
        self.change(|state| state.put(key, payload.into(), options, now))
    }
}

impl BlobStore for MemoryStore {
    fn put(&self, key: &BinaryKey, payload: Bytes, options: PutOptions) -> StoreOp<PutOutcome> {
        Op::ready(self.shared.put(key, payload, options))
    }

    fn put_stream(&self, key: &BinaryKey, options: PutOptions) -> Result<BlobWriter, StorageError> {
        self.shared.check_options(key, &options)?;
        let shared = Arc::clone(&self.shared);
        let name = key.clone();
        let commit = move |payload| shared.put(&name, payload, options);
        Ok(BlobWriter::new(Writer {
            shared: Arc::clone(&self.shared),
            key: key.clone(),
            received: Ok(Vec::new()),
            commit: Box::new(commit),
        }))
    }

    fn get(&self, key: &BinaryKey, options: GetOptions) -> StoreOp<Blob> {
        Op::ready(self.read(key, &options))
    }

    fn get_stream(&self, key: &BinaryKey, options: GetOptions) -> StoreOp<BlobReader> {
        Op::ready(self.read(key, &options).map(|blob| {
            let reader = Reader { rest: blob.bytes };
            BlobReader::new(reader, blob.range, blob.size, blob.version)
        }))
    }

    fn exists(&self, key: &BinaryKey) -> StoreOp<bool> {
        Op::ready(Ok(self.shared.state.lock().blobs.contains_key(key)))
    }

    fn stat(&self, key: &BinaryKey) -> StoreOp<BlobInfo> {
        Op::ready(self.shared.state.lock().stat(key))
    }

    fn delete(&self, key: &BinaryKey, options: DeleteOptions) -> StoreOp<DeleteOutcome> {
        Op::ready(self.shared.change(|state| state.delete(key, &options)))
    }

    fn list(&self, request: ListRequest) -> StoreOp<ListPage> {
        Op::ready(self.shared.state.lock().list(&request))
    }

    fn batch(&self, batch: Batch) -> StoreOp<Vec<BatchItemOutcome>> {
        Op::ready(self.apply(batch))
    }

    fn copy(
        &self,
        source: &BinaryKey,
        target: &BinaryKey,
        options: CopyOptions,
    ) -> StoreOp<PutOutcome> {
        let now = self.shared.now();
        let copy = |state: &mut State| state.copy(source, target, &options, now);
        Op::ready(self.shared.change(copy))
    }

    fn rename(
        &self,
        source: &BinaryKey,
        target: &BinaryKey,
        options: CopyOptions,
    ) -> StoreOp<PutOutcome> {
        let now = self.shared.now();
        let rename = |state: &mut State| state.rename(source, target, &options, now);
        Op::ready(self.shared.change(rename))
    }

    fn flush(&self) -> StoreOp<()> {
        Op::ready(Ok(()))
    }
}

/// A blob on its way in: it is in nobody's sight until `finish`.
struct Writer {
    shared: Arc<Shared>,
    key: BinaryKey,
    /// The bytes so far, or why it can't become a blob any more.
    received: Result<Vec<u8>, StorageError>,
    commit: Commit,
}

/// What makes a blob, or a part of one, of the bytes that were received.
type Commit = Box<dyn FnOnce(Bytes) -> Result<PutOutcome, StorageError> + Send>;

impl Writer {
    fn take_in(&mut self, piece: &[u8]) -> Result<(), StorageError> {
        let received = self.received.as_mut().map_err(|error| error.clone())?;
        self.shared
            .check_size(&self.key, (received.len() + piece.len()) as u64)?;
        received.extend_from_slice(piece);
        Ok(())
    }
}

impl WriteBlob for Writer {
    fn write(&mut self, piece: Bytes) -> StoreOp<()> {
        let outcome = self.take_in(&piece);
        if let Err(error) = &outcome {
            self.received = Err(error.clone());
        }
        Op::ready(outcome)
    }

    fn finish(self: Box<Self>) -> StoreOp<PutOutcome> {
        let Self {
            received, commit, ..
        } = *self;
        Op::ready(received.and_then(|payload| commit(payload.into())))
    }
}

/// A blob on its way out. It shares the payload of the version it was opened on, so nothing that
/// happens to the key reaches it.
struct Reader {
    rest: Bytes,
}

impl Reader {
    const PIECE: usize = 64 * 1024;
}

impl ReadBlob for Reader {
    fn next(&mut self) -> StoreOp<Option<Bytes>> {
        let length = self.rest.len().min(Self::PIECE);
        let piece = self.rest.split_to(length);
        Op::ready(Ok(Some(piece).filter(|piece| !piece.is_empty())))
    }
}

#[cfg(test)]
mod tests;

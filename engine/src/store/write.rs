//! Writing blobs: puts, streams, deletes, copies, batches; everything up to the queue of the log.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use graviton_format::Geometry;
use graviton_format::checksum::{CHUNK_CHECKSUM, CHUNK_SIZE, stored_length};
use graviton_format::record::{BLOB_MAX_LEN, ExtentRef, Manifest, RecordKind, record_length};

use super::commit::{Done, Mutation, MutationOutcome, Work};
use super::index::{Hold, holes};
use super::inner::Inner;
use super::record::{self, Details};
use super::set::SectorSet;
use super::ticket::Ticket;
use super::tracker::Known;
use crate::log::Encoded;
use crate::log::append::frame_length;
use crate::port::blob::{BatchItemOutcome, check_attributes, check_replicas};
use crate::port::mutable::{check_length, check_sparse};
use crate::port::{
    Batch, BatchItem, BinaryKey, BlobWriter, CopyOptions, DeleteOptions, DeleteOutcome, Digest,
    DigestHasher, Durability, ETag, Op, PastEnd, Place, Precondition, PutOptions, PutOutcome,
    PutRangeOptions, Span, StorageError, StoreOp, WriteBlob,
};
use crate::sync::Mutex;

/// Extents of one stream that are on their way to the log at once.
const EXTENTS_IN_FLIGHT: usize = 2;

/// Bytes of a batch's extents that are on their way to the log at once.
const BATCH_IN_FLIGHT: usize = 8 << 20;

/// The longest payload whose extents and manifest are written as one frame.
const IN_PIECES_MAX: usize = 1 << 20;

/// The longest payload that stays in its own record in a batch that would not fit one frame.
const CROWDED_INLINE_MAX: usize = 64;

/// How often a mutation that moves no payload is planned anew before others have to wait for it.
pub const TRIES_MAX: usize = 8;

pub fn durable(durability: Durability) -> bool {
    durability == Durability::Durable
}

pub fn put_outcome(outcome: &MutationOutcome) -> Option<PutOutcome> {
    match outcome {
        MutationOutcome::Put { version, size } => Some(PutOutcome {
            etag: ETag::of_version(*version),
            version: *version,
            size: *size,
        }),
        MutationOutcome::Deleted { .. } | MutationOutcome::Aborted { .. } => None,
    }
}

/// The log answers a request with what was asked for; anything else is a bug of ours, reported
/// without taking the program down.
pub fn unexpected() -> StorageError {
    StorageError::Corruption {
        place: Place {
            sector: 0,
            offset: 0,
        },
        key: None,
        what: "the log gave an answer to another question".to_owned(),
    }
}

pub async fn committed(
    ticket: Ticket<Result<Done, StorageError>>,
) -> Result<Vec<MutationOutcome>, StorageError> {
    match ticket.await? {
        Done::Mutations(outcomes) => Ok(outcomes),
        _ => Err(unexpected()),
    }
}

pub async fn committed_put(
    ticket: Ticket<Result<Done, StorageError>>,
) -> Result<PutOutcome, StorageError> {
    committed(ticket)
        .await?
        .first()
        .and_then(put_outcome)
        .ok_or_else(unexpected)
}

/// Checks size and digest of a payload against what was declared.
fn check_declared(
    key: &BinaryKey,
    options: &PutOptions,
    size: u64,
    digest: Option<Digest>,
) -> Result<(), StorageError> {
    if let Some(declared) = options.size
        && declared != size
    {
        return Err(StorageError::SizeMismatch {
            key: key.clone(),
            declared,
            actual: size,
        });
    }
    match (options.digest, digest) {
        (Some(declared), Some(actual)) if declared != actual => Err(StorageError::DigestMismatch {
            key: key.clone(),
            declared: declared.to_string(),
            actual: actual.to_string(),
        }),
        _ => Ok(()),
    }
}

/// The record of an extent, and how many bytes of payload it has.
fn extent_record(key: &BinaryKey, payload: Bytes, time: u64) -> (Encoded, u32) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let record = record::encode_shared(RecordKind::Extent, key, &[], payload, time);
    (record, length)
}

fn metadata(options: &PutOptions, replicas: u8) -> Vec<u8> {
    if options.digest.is_none() && options.attributes.is_empty() && replicas == 0 {
        return Vec::new();
    }
    Details {
        digests: options.digest.into_iter().collect(),
        attributes: options.attributes.clone(),
        replicas,
        ..Details::default()
    }
    .encode()
}

impl Inner {
    /// The geometry of a sector.
    pub fn geometry(&self, number: usize) -> Geometry {
        self.sectors[number].geometry()
    }

    /// The longest payload that lies in its blob's own record, in each of these sectors.
    pub fn inline_max(&self, sectors: SectorSet) -> usize {
        let sixteenths = sectors
            .iter()
            .map(|number| self.geometry(number).segment_size / 16);
        usize::try_from(sixteenths.fold(1 << 20, u64::min)).unwrap_or(1 << 20)
    }

    /// The longest extent in each of these sectors. A frame that holds one alone takes whole blocks, and
    /// sixteen such frames fill a segment: nothing is lost to padding or at its end.
    pub fn extent_max(&self, sectors: SectorSet, key: &BinaryKey) -> usize {
        let longest = sectors.iter().map(|number| self.extent_max_in(number, key));
        longest.min().unwrap_or(usize::MAX)
    }

    fn extent_max_in(&self, number: usize, key: &BinaryKey) -> usize {
        let geometry = self.geometry(number);
        let block = u64::from(geometry.block_size);
        let blocks = (geometry.segment_size / block - 1) / 16;
        let frame = blocks.clamp(1, (4 << 20) / block) * block;
        let head = record_length(key.stored().len(), 0, 0);
        let stored = frame - frame_length(head);
        let chunks = stored.div_ceil(CHUNK_SIZE as u64);
        usize::try_from(stored - chunks * CHUNK_CHECKSUM as u64).unwrap_or(usize::MAX)
    }

    /// Starts a mutation of `keys` that takes several steps, and goes on if its caller gives up.
    pub fn start_kept<T: Send + 'static, E: Send + 'static>(
        self: &Arc<Self>,
        keys: Vec<BinaryKey>,
        mutation: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Op<T, E> {
        let detached = Arc::clone(&self.detached);
        Op::start_kept(mutation, move |rest| detached.keep(keys, rest))
    }

    /// The same, behind those of `keys` that were given up and go on by themselves.
    pub fn start_in_order<T: Send + 'static, E: Send + 'static>(
        self: &Arc<Self>,
        keys: Vec<BinaryKey>,
        mutation: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Op<T, E> {
        let earlier = self.detached.before(&keys.iter().collect::<Vec<_>>());
        self.start_kept(keys, async move {
            if let Some(earlier) = earlier {
                earlier.await;
            }
            mutation.await
        })
    }

    /// How many sectors a blob is to lie in that asks for so many; 0: as many as the store says.
    ///
    /// # Errors
    /// As [`check_replicas`].
    pub fn asked(&self, replicas: Option<u16>) -> Result<u8, StorageError> {
        let own = u16::try_from(self.replicas).unwrap_or(u16::MAX);
        let wanted = check_replicas(replicas, own)?;
        Ok(match wanted > own {
            true => u8::try_from(wanted).unwrap_or(0),
            false => 0,
        })
    }

    /// How many sectors a blob is to lie in that is put with these options, which were checked.
    fn wanted_by(&self, options: &PutOptions) -> usize {
        self.replicas.max(options.replicas.unwrap_or(0).into())
    }

    /// How many sectors should have what there is of a key.
    fn wanted_of(&self, key: &BinaryKey) -> Result<usize, StorageError> {
        if self.sectors.len() == 1 {
            return Ok(self.replicas);
        }
        let found = self.index.read().lookup(key.stored())?;
        Ok(self.wanted(found.map_or(0, |found| found.entry.replicas)))
    }

    pub fn check_put(&self, key: &BinaryKey, options: &PutOptions) -> Result<(), StorageError> {
        self.check_access()?;
        check_attributes(&options.attributes, self.options.max_attributes_len)?;
        self.asked(options.replicas)?;
        match options.size {
            Some(size) if size > BLOB_MAX_LEN => Err(StorageError::TooLarge {
                key: key.clone(),
                size,
                limit: BLOB_MAX_LEN,
            }),
            _ => Ok(()),
        }
    }

    /// See [`BlobStore::put`](crate::port::BlobStore::put).
    pub fn put(
        self: &Arc<Self>,
        key: &BinaryKey,
        payload: &Bytes,
        options: PutOptions,
    ) -> StoreOp<PutOutcome> {
        let started = self.check_put(key, &options).and_then(|()| {
            let needed = payload.len() as u64 + 4096;
            self.place(key, needed, self.wanted_by(&options))
        });
        let sectors = match started {
            Ok(sectors) => sectors,
            Err(error) => return Op::fail(error),
        };
        self.put_at(sectors, Target::of_blob(key.clone()), payload, options)
    }

    /// Puts what was checked, and is to lie in these sectors.
    pub fn put_at(
        self: &Arc<Self>,
        sectors: SectorSet,
        target: Target,
        payload: &Bytes,
        options: PutOptions,
    ) -> StoreOp<PutOutcome> {
        let is_large = payload.len() > self.inline_max(sectors);
        let is_in_pieces = is_large && self.fits_frame(sectors, &target, payload.len(), &options);
        if is_large && !is_in_pieces {
            let keys = target.keys();
            let mut incoming =
                match Incoming::new(self, target, sectors, options, Some(payload.len() as u64)) {
                    Ok(incoming) => incoming,
                    Err(error) => return Op::fail(error),
                };
            let payload = payload.clone();
            return self.start_kept(keys, async move {
                incoming.take_all(&payload).await?;
                let mutation = poll_fn(|context| incoming.poll_mutation(context)).await?;
                committed_put(incoming.commit(mutation)).await
            });
        }
        let digest = options
            .digest
            .map(|declared| Digest::of(declared.algorithm, payload));
        let size = payload.len() as u64;
        if let Err(error) = check_declared(&target.named(), &options, size, digest) {
            return Op::fail(error);
        }
        let mutation = match is_in_pieces {
            true => self.put_in_pieces(sectors, target, payload, &options),
            false => self.inline_put(target, payload.clone(), &options, None, self.now()),
        };
        let ticket = self.submit(
            sectors,
            Work::Mutations(vec![mutation]),
            durable(options.durability),
        );
        Op::start(committed_put(ticket))
    }

    /// Whether the extents of a payload and their manifest are better written together, which takes one write
    /// instead of some one after the other: unless that leaves much of a segment unused, which a part of them
    /// fills.
    fn fits_frame(
        &self,
        sectors: SectorSet,
        target: &Target,
        payload: usize,
        options: &PutOptions,
    ) -> bool {
        if payload > IN_PIECES_MAX {
            return false;
        }
        let key = target.key.stored().len();
        let pieces = payload.div_ceil(self.extent_max(sectors, &target.key));
        let meta = metadata(options, self.asked(options.replicas).unwrap_or(0)).len();
        let manifest = record_length(key, meta, Manifest::payload_length(pieces) as u64);
        // Each piece may have one chunk more than its share.
        let head = record_length(key, 0, 0) + CHUNK_CHECKSUM as u64;
        let records = stored_length(payload as u64) + pieces as u64 * head + manifest;
        let length = frame_length(records);
        let commits = self.commits.lock();
        sectors.iter().all(|number| {
            let room = commits.room_ahead(number, &self.geometry(number));
            length <= room
        })
    }

    fn put_in_pieces(
        &self,
        sectors: SectorSet,
        target: Target,
        payload: &Bytes,
        options: &PutOptions,
    ) -> Mutation {
        let time = self.now();
        let replicas = self.asked(options.replicas).unwrap_or(0);
        let extent_max = self.extent_max(sectors, &target.key);
        let mut left = payload.clone();
        let mut extents = Vec::with_capacity(left.len().div_ceil(extent_max));
        while !left.is_empty() {
            let piece = left.split_to(left.len().min(extent_max));
            extents.push(extent_record(&target.key, piece, time));
        }
        Mutation::PutInPieces {
            key: target.key,
            upload: target.upload,
            precondition: options.precondition,
            extents,
            meta: metadata(options, replicas),
            size: payload.len() as u64,
            replicas,
            time,
        }
    }

    /// `known`: what a tracker knows by it.
    pub fn inline_put(
        &self,
        target: Target,
        payload: Bytes,
        options: &PutOptions,
        known: Option<Box<Known>>,
        time: u64,
    ) -> Mutation {
        let replicas = self.asked(options.replicas).unwrap_or(0);
        let meta = metadata(options, replicas);
        let payload_length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        Mutation::Put {
            record: record::encode_shared(RecordKind::Blob, &target.key, &meta, payload, time),
            key: target.key,
            upload: target.upload,
            precondition: options.precondition,
            kind: RecordKind::Blob,
            time,
            meta_length: u32::try_from(meta.len()).unwrap_or(u32::MAX),
            payload_length,
            manifest: None,
            replicas,
            known,
        }
    }

    fn manifest_put(
        &self,
        target: Target,
        manifest: Manifest,
        options: &PutOptions,
        time: u64,
    ) -> Mutation {
        let replicas = self.asked(options.replicas).unwrap_or(0);
        let meta = metadata(options, replicas);
        let payload = manifest.encode();
        Mutation::Put {
            record: record::encode(RecordKind::Manifest, &target.key, &meta, &payload, time),
            key: target.key,
            upload: target.upload,
            precondition: options.precondition,
            kind: RecordKind::Manifest,
            time,
            meta_length: u32::try_from(meta.len()).unwrap_or(u32::MAX),
            payload_length: u32::try_from(payload.len()).unwrap_or(u32::MAX),
            manifest: Some((manifest.size, manifest.extents.into())),
            replicas,
            known: None,
        }
    }

    /// See [`Store::create_sparse`](super::Store::create_sparse).
    pub fn create_sparse(
        self: &Arc<Self>,
        key: &BinaryKey,
        size: u64,
        options: PutOptions,
    ) -> StoreOp<PutOutcome> {
        let sized = PutOptions {
            size: Some(size),
            ..options.clone()
        };
        let started = check_sparse(&options)
            .and_then(|()| self.check_put(key, &sized))
            .and_then(|()| self.place(key, 4096, self.wanted_by(&options)));
        let sectors = match started {
            Ok(sectors) => sectors,
            Err(error) => return Op::fail(error),
        };
        let manifest = Manifest {
            size,
            extents: holes(size).collect(),
        };
        let mutation =
            self.manifest_put(Target::of_blob(key.clone()), manifest, &options, self.now());
        let ticket = self.submit(
            sectors,
            Work::Mutations(vec![mutation]),
            durable(options.durability),
        );
        Op::start(committed_put(ticket))
    }

    /// See [`Store::put_range`](super::Store::put_range).
    pub fn put_range(
        self: &Arc<Self>,
        key: &BinaryKey,
        range: Span,
        bytes: Bytes,
        options: PutRangeOptions,
    ) -> StoreOp<PutOutcome> {
        let checked = self
            .check_access()
            .and_then(|()| check_length(key, range, bytes.len() as u64));
        if let Err(error) = checked {
            return Op::fail(error);
        }
        let (inner, key) = (Arc::clone(self), key.clone());
        self.start_kept(vec![key.clone()], async move {
            let mut is_merged = false;
            loop {
                let found = inner.index.read().lookup(key.stored())?;
                let sectors = match found {
                    Some(found) => inner.to_change(found.holders),
                    None => inner.place(&key, range.len(), inner.replicas)?,
                };
                // It holds its extents until the change is committed.
                let (mutation, incoming) =
                    inner.change(&key, sectors, range, &bytes, &options).await?;
                let landed = incoming.as_ref().map_or(sectors, Incoming::sectors);
                let ticket = inner.submit(
                    landed,
                    Work::Mutations(vec![mutation]),
                    durable(options.durability),
                );
                match ticket.await {
                    Ok(Done::Mutations(outcomes)) => {
                        let outcome = outcomes.first().and_then(put_outcome);
                        inner.merge_fragments(&key).await;
                        return outcome.ok_or_else(unexpected);
                    }
                    // The blob lies in other sectors by now.
                    Ok(Done::Changed) => {}
                    Ok(_) => return Err(unexpected()),
                    Err(StorageError::TooFragmented { .. }) if !is_merged => {
                        inner.merge_fragments(&key).await;
                        is_merged = true;
                    }
                    Err(error) => return Err(error),
                }
            }
        })
    }

    /// Makes what puts `bytes` into a blob of these sectors; they go ahead as extents if they are many.
    async fn change(
        self: &Arc<Self>,
        key: &BinaryKey,
        sectors: SectorSet,
        range: Span,
        bytes: &Bytes,
        options: &PutRangeOptions,
    ) -> Result<(Mutation, Option<Incoming>), StorageError> {
        let meta = record::change_meta();
        let encode = |kind, payload, time| match bytes.is_empty() {
            true => Encoded::default(),
            false => record::encode_shared(kind, key, &meta, payload, time),
        };
        let (time, record, payload_length, pieces, incoming);
        if bytes.len() <= self.inline_max(sectors) {
            time = self.now();
            record = encode(RecordKind::Range, bytes.clone(), time);
            payload_length = bytes.len();
            (pieces, incoming) = (None, None);
        } else {
            let (target, options) = (Target::of_blob(key.clone()), PutOptions::default());
            let mut whole = Incoming::new(self, target, sectors, options, Some(range.len()))?;
            whole.take_all(bytes).await?;
            let manifest = poll_fn(|context| whole.poll_pieces(context)).await?;
            let payload = Bytes::from(manifest.encode());
            time = self.now();
            payload_length = payload.len();
            record = encode(RecordKind::Splice, payload, time);
            (pieces, incoming) = (Some(manifest.extents.into()), Some(whole));
        }
        let mutation = Mutation::Change {
            key: key.clone(),
            precondition: options.precondition,
            past_end: options.past_end,
            range,
            record,
            time,
            payload_length: u32::try_from(payload_length).unwrap_or(u32::MAX),
            pieces,
            expected: None,
            known: None,
        };
        Ok((mutation, incoming))
    }

    /// See [`BlobStore::put_stream`](crate::port::BlobStore::put_stream).
    pub fn put_stream(
        self: &Arc<Self>,
        key: &BinaryKey,
        options: PutOptions,
    ) -> Result<BlobWriter, StorageError> {
        self.check_open()?;
        self.check_put(key, &options)?;
        // Of what is not known it is only hoped that it fits where there is room for much.
        let unknown = self.sectors[0].geometry().sector_size() / 16;
        let needed = options.size.unwrap_or(unknown);
        let sectors = self.place(key, needed, self.wanted_by(&options))?;
        self.stream_to(sectors, Target::of_blob(key.clone()), options)
    }

    /// A stream of what was checked, and is to lie in these sectors.
    pub fn stream_to(
        self: &Arc<Self>,
        sectors: SectorSet,
        target: Target,
        options: PutOptions,
    ) -> Result<BlobWriter, StorageError> {
        let size = options.size;
        let incoming = Incoming::new(self, target, sectors, options, size)?;
        Ok(BlobWriter::new(Writer {
            incoming: Arc::new(Mutex::new(incoming)),
        }))
    }

    /// See [`BlobStore::delete`](crate::port::BlobStore::delete).
    pub fn delete(
        self: &Arc<Self>,
        key: &BinaryKey,
        options: &DeleteOptions,
    ) -> StoreOp<DeleteOutcome> {
        let started = self
            .check_access()
            .and_then(|()| self.wanted_of(key))
            .and_then(|wanted| self.place(key, 0, wanted));
        let sectors = match started {
            Ok(sectors) => sectors,
            Err(error) => return Op::fail(error),
        };
        let mutation = Mutation::Delete {
            key: key.clone(),
            precondition: options.precondition,
            strict: options.strict,
            time: self.now(),
        };
        let ticket = self.submit(
            sectors,
            Work::Mutations(vec![mutation]),
            durable(options.durability),
        );
        Op::start(async move {
            let outcomes = committed(ticket).await?;
            match outcomes.first() {
                Some(MutationOutcome::Deleted { existed }) => {
                    Ok(DeleteOutcome { existed: *existed })
                }
                _ => Err(unexpected()),
            }
        })
    }

    /// See [`BlobStore::copy`](crate::port::BlobStore::copy) and
    /// [`BlobStore::rename`](crate::port::BlobStore::rename).
    pub fn copy(
        self: &Arc<Self>,
        source: &BinaryKey,
        target: &BinaryKey,
        options: CopyOptions,
        rename: bool,
    ) -> StoreOp<PutOutcome> {
        if let Err(error) = self.check_access() {
            return Op::fail(error);
        }
        let (inner, source, target) = (Arc::clone(self), source.clone(), target.clone());
        let keys = vec![source.clone(), target.clone()];
        self.start_kept(keys.clone(), async move {
            let attempt = {
                let inner = Arc::clone(&inner);
                move || {
                    let (inner, source) = (Arc::clone(&inner), source.clone());
                    let (target, options) = (target.clone(), options.clone());
                    async move { inner.try_copy(source, target, options, rename).await }
                }
            };
            inner.until_settled(keys, TRIES_MAX, attempt).await
        })
    }

    /// `None`: the source was replaced meanwhile.
    async fn try_copy(
        self: &Arc<Self>,
        source: BinaryKey,
        target: BinaryKey,
        options: CopyOptions,
        rename: bool,
    ) -> Result<Option<PutOutcome>, StorageError> {
        let held = match self.hold(&source) {
            Err(refusal @ StorageError::NotFound { .. }) => {
                let is_so = self.is_still(&source, None, false).await?;
                return if is_so { Err(refusal) } else { Ok(None) };
            }
            held => held?,
        };
        let (sectors, expected) = (held.to_share()?, held.entry.lsn);
        let details = held.details_to_copy().await?;
        drop(held);
        let mutation = Mutation::Copy {
            source,
            expected,
            source_precondition: options.source_precondition,
            target,
            target_precondition: options.target_precondition,
            meta: details.encode(),
            life: None,
            time: self.now(),
            rename,
        };
        self.try_planned(sectors, mutation, options.durability)
            .await
    }

    /// Whether `key` still has this version, or still none, once everything is decided that was asked for
    /// before: a put that nobody waits for is not to land after an answer that did not know of it.
    pub async fn is_still(
        self: &Arc<Self>,
        key: &BinaryKey,
        seen: Option<u64>,
        durable: bool,
    ) -> Result<bool, StorageError> {
        let nothing = Mutation::Change {
            key: key.clone(),
            precondition: seen.map_or(Precondition::None, Precondition::IfVersion),
            past_end: PastEnd::Refuse,
            range: Span::first(0),
            record: Encoded::default(),
            time: self.now(),
            payload_length: 0,
            pieces: None,
            expected: None,
            known: None,
        };
        let found = self.index.read().lookup(key.stored())?;
        let sectors = match found {
            Some(found) => self.to_change(found.holders),
            None => self.place(key, 0, self.replicas)?,
        };
        let work = Work::Mutations(vec![nothing]);
        match self.submit(sectors, work, durable).await {
            Ok(Done::Mutations(_)) => Ok(seen.is_some()),
            // It lies in other sectors by now.
            Ok(Done::Changed) => Ok(false),
            Ok(_) => Err(unexpected()),
            Err(StorageError::NotFound { .. }) => Ok(seen.is_none()),
            Err(StorageError::PreconditionFailed { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Commits a mutation that was planned by what there was. `None`: that has changed meanwhile.
    pub async fn try_planned(
        self: &Arc<Self>,
        sectors: SectorSet,
        mutation: Mutation,
        durability: Durability,
    ) -> Result<Option<PutOutcome>, StorageError> {
        let work = Work::Mutations(vec![mutation]);
        match self.submit(sectors, work, durable(durability)).await? {
            Done::Mutations(outcomes) => {
                let outcome = outcomes.first().and_then(put_outcome);
                outcome.ok_or_else(unexpected).map(Some)
            }
            Done::Changed => Ok(None),
            _ => Err(unexpected()),
        }
    }

    /// Tries a mutation of `keys` until what it was planned by is still there when it is decided:
    /// `attempt` hands back `None` if it is not. After so many tries, others have to wait for it.
    pub async fn until_settled<T, E, F>(
        self: &Arc<Self>,
        keys: Vec<BinaryKey>,
        tries: usize,
        attempt: impl Fn() -> F + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: Send + 'static,
        F: Future<Output = Result<Option<T>, E>> + Send,
    {
        for _ in 0..tries {
            if let Some(done) = attempt().await? {
                return Ok(done);
            }
        }
        let rest = async move {
            loop {
                if let Some(done) = attempt().await? {
                    return Ok(done);
                }
            }
        };
        self.detached.see_through(keys, rest).await
    }

    /// See [`BlobStore::batch`](crate::port::BlobStore::batch).
    pub fn batch(self: &Arc<Self>, batch: Batch) -> StoreOp<Vec<BatchItemOutcome>> {
        if let Err(error) = self.check_batch(&batch) {
            return Op::fail(error);
        }
        let Some(first) = batch.items.first() else {
            return Op::ready(Ok(Vec::new()));
        };
        let (BatchItem::Put { key, .. } | BatchItem::Delete { key, .. }) = first;
        let total: u64 = batch
            .items
            .iter()
            .map(|item| {
                if let BatchItem::Put { payload, .. } = item {
                    payload.len() as u64
                } else {
                    0
                }
            })
            .sum();
        // Of all items in the same sectors: as many as the one that asks for most.
        let wanted = batch.items.iter().map(|item| match item {
            BatchItem::Put { options, .. } => self.wanted_by(options),
            BatchItem::Delete { .. } => self.replicas,
        });
        let wanted = wanted.max().unwrap_or(self.replicas);
        let sectors = match self.place(key, total, wanted) {
            Ok(sectors) => sectors,
            Err(error) => return Op::fail(error),
        };
        // What does not fit a record, or all together one frame, goes ahead as extents.
        let segments = sectors
            .iter()
            .map(|number| self.geometry(number).segment_size);
        let frame = usize::try_from(segments.min().unwrap_or(0) / 2).unwrap_or(usize::MAX);
        let inline_max = match usize::try_from(total).is_ok_and(|total| total <= frame) {
            true => self.inline_max(sectors),
            false => CROWDED_INLINE_MAX.min(self.inline_max(sectors)),
        };
        let goes_ahead = move |payload: &Bytes| payload.len() > inline_max;
        let is_ahead = |item: &BatchItem| matches!(item, BatchItem::Put { payload, .. } if goes_ahead(payload));
        let inner = Arc::clone(self);
        // What is queued at once needs no keeper, nor anybody who asks by which keys it is kept.
        let keys = match batch.items.iter().any(is_ahead) {
            true => batch.items.iter().map(|item| item.key().clone()).collect(),
            false => Vec::new(),
        };
        self.start_kept(keys, async move {
            // They hold the extents until the batch is committed.
            let mut ahead = Vec::new();
            let (mut on_the_way, mut settled) = (0, 0);
            for item in &batch.items {
                let BatchItem::Put {
                    key,
                    payload,
                    options,
                } = item
                else {
                    continue;
                };
                if !goes_ahead(payload) {
                    continue;
                }
                on_the_way += payload.len();
                let (target, options) = (Target::of_blob(key.clone()), options.clone());
                ahead.push(Incoming::whole(&inner, target, sectors, options, payload).await?);
                if on_the_way > BATCH_IN_FLIGHT {
                    for incoming in &mut ahead[settled..] {
                        poll_fn(|context| incoming.poll_in_flight(context, 0)).await?;
                    }
                    (on_the_way, settled) = (0, ahead.len());
                }
            }
            let mut manifests = VecDeque::with_capacity(ahead.len());
            let mut landed = sectors;
            for incoming in &mut ahead {
                manifests.push_back(poll_fn(|context| incoming.poll_pieces(context)).await?);
                landed = landed.within(incoming.sectors());
            }
            // They come about together, and have one time.
            let time = inner.now();
            let mut mutations = Vec::with_capacity(batch.items.len());
            for item in batch.items {
                mutations.push(match item {
                    BatchItem::Put {
                        key,
                        payload,
                        options,
                    } => {
                        let target = Target::of_blob(key);
                        match goes_ahead(&payload)
                            .then(|| manifests.pop_front())
                            .flatten()
                        {
                            Some(manifest) => inner.manifest_put(target, manifest, &options, time),
                            None => inner.inline_put(target, payload, &options, None, time),
                        }
                    }
                    BatchItem::Delete { key, options } => Mutation::Delete {
                        key,
                        precondition: options.precondition,
                        strict: options.strict,
                        time,
                    },
                });
            }
            let ticket = inner.submit(
                landed,
                Work::Mutations(mutations),
                durable(batch.durability),
            );
            let outcomes = committed(ticket).await?;
            let outcome = |outcome: &MutationOutcome| match outcome {
                MutationOutcome::Deleted { existed } => {
                    Some(BatchItemOutcome::Delete(DeleteOutcome {
                        existed: *existed,
                    }))
                }
                put @ MutationOutcome::Put { .. } => put_outcome(put).map(BatchItemOutcome::Put),
                MutationOutcome::Aborted { .. } => None,
            };
            outcomes
                .iter()
                .map(outcome)
                .collect::<Option<Vec<_>>>()
                .ok_or_else(unexpected)
        })
    }

    fn check_batch(&self, batch: &Batch) -> Result<(), StorageError> {
        self.check_access()?;
        for item in &batch.items {
            if let BatchItem::Put {
                key,
                payload,
                options,
            } = item
            {
                self.check_put(key, options)?;
                let digest = options
                    .digest
                    .map(|declared| Digest::of(declared.algorithm, payload));
                check_declared(key, options, payload.len() as u64, digest)?;
            }
        }
        Ok(())
    }

    /// See [`BlobStore::flush`](crate::port::BlobStore::flush).
    pub fn flush(self: &Arc<Self>) -> StoreOp<()> {
        if let Err(error) = self.check_writable() {
            return Op::fail(error);
        }
        Op::start(self.sync(self.taking_part()))
    }

    /// Of so many sectors, in how many nothing need be durable for no replica which is lost to be the last.
    fn dispensable(&self, sectors: usize) -> usize {
        // What was not waited for may be in none of the others yet.
        let others = self.options.write_mode.waits_for(self.replicas) - 1;
        others.min(sectors.saturating_sub(1))
    }

    /// Whether everything that has landed is durable, as by [`Inner::sync`]. Nothing is under way any more.
    ///
    /// # Errors
    /// `SectorPoisoned` if what was acknowledged may be lost with a sector that failed.
    pub fn check_durable(&self) -> Result<(), StorageError> {
        let sectors = self.taking_part();
        let lost: SectorSet = {
            let commits = self.commits.lock();
            let lost = sectors.iter().filter(|number| commits.is_unsynced(*number));
            lost.collect()
        };
        match lost.iter().next() {
            None => Ok(()),
            Some(_) if lost.len() <= self.dispensable(sectors.len()) => self.note_failed(lost),
            Some(first) => Err(StorageError::SectorPoisoned {
                sector: self.sectors[first].number(),
                cause: self.sectors[first]
                    .poisoned()
                    .unwrap_or("not synced")
                    .to_owned(),
            }),
        }
    }

    /// Makes durable what was submitted to these sectors: in so many of them that no replica which is lost
    /// was the last.
    pub fn sync(
        self: &Arc<Self>,
        sectors: SectorSet,
    ) -> impl Future<Output = Result<(), StorageError>> + Send + use<> {
        let tickets = self.sync_each(sectors);
        let dispensable = self.dispensable(tickets.len());
        let inner = Arc::clone(self);
        async move {
            let mut failed = SectorSet::NONE;
            for (number, ticket) in sectors.iter().zip(tickets) {
                // What one had that has been taken away is in others.
                if let Err(error) = ticket.await
                    && !inner.sectors[number].is_withheld()
                {
                    failed = failed.and(SectorSet::one(number));
                    if failed.len() > dispensable {
                        return Err(error);
                    }
                }
            }
            inner.note_failed(failed)
        }
    }
}

/// What a payload is put as.
#[derive(Debug, Clone)]
pub struct Target {
    /// What it is stored under.
    pub key: BinaryKey,
    /// The upload that it is a part of.
    pub upload: Option<BinaryKey>,
}

impl Target {
    /// A blob.
    pub fn of_blob(key: BinaryKey) -> Self {
        Self { key, upload: None }
    }

    /// The key that errors are about.
    fn named(&self) -> BinaryKey {
        self.upload.as_ref().unwrap_or(&self.key).of_blob()
    }

    /// The keys whose mutations it has an order with.
    fn keys(&self) -> Vec<BinaryKey> {
        let keys = std::iter::once(&self.key).chain(&self.upload);
        keys.cloned().collect()
    }
}

/// A payload on its way in: it becomes extents as it comes, and a manifest at the end. Dropped before
/// that, it gives its extents up.
pub struct Incoming {
    inner: Arc<Inner>,
    /// The sectors that have all of what came.
    sectors: SectorSet,
    target: Target,
    options: PutOptions,
    hold: Arc<Hold>,
    extent_max: usize,
    /// Payload that is not yet an extent.
    buffer: BytesMut,
    extents: Vec<ExtentRef>,
    in_flight: VecDeque<(u32, Ticket<Result<Done, StorageError>>)>,
    size: u64,
    hasher: Option<DigestHasher>,
    /// Its end has come: size and digest are checked, the last extent is sent.
    checked: bool,
    /// The first failure: nothing can come of the blob any more.
    failed: Option<StorageError>,
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.inner.index.write().let_go(&self.hold);
    }
}

impl Incoming {
    /// Begins one of `size` bytes, if that is known.
    pub fn new(
        inner: &Arc<Inner>,
        target: Target,
        sectors: SectorSet,
        options: PutOptions,
        size: Option<u64>,
    ) -> Result<Self, StorageError> {
        let sectors = inner.to_change(sectors);
        for number in sectors.iter() {
            inner.sectors[number].check_writable()?;
            // What is known not to fit is refused before anything is written.
            let available = inner.available(&inner.index.read(), number);
            if let Some(needed) = size.filter(|size| *size > available) {
                return Err(StorageError::NoSpace { needed, available });
            }
        }
        Ok(Self {
            inner: Arc::clone(inner),
            sectors,
            hold: Hold::new(),
            extent_max: inner.extent_max(sectors, &target.key),
            target,
            buffer: BytesMut::new(),
            extents: Vec::new(),
            in_flight: VecDeque::new(),
            size: 0,
            hasher: options
                .digest
                .map(|declared| DigestHasher::new(declared.algorithm)),
            options,
            checked: false,
            failed: None,
        })
    }

    /// One whose payload is sent to the log, all of it, and only the manifest is lacking.
    async fn whole(
        inner: &Arc<Inner>,
        target: Target,
        sectors: SectorSet,
        options: PutOptions,
        payload: &Bytes,
    ) -> Result<Self, StorageError> {
        let size = Some(payload.len() as u64);
        let mut whole = Self::new(inner, target, sectors, options, size)?;
        whole.take_all(payload).await?;
        whole.end()?;
        Ok(whole)
    }

    /// The sectors that have all of what came.
    pub fn sectors(&self) -> SectorSet {
        self.sectors
    }

    /// Takes in payload as fast as the log takes its extents.
    pub async fn take_all(&mut self, payload: &Bytes) -> Result<(), StorageError> {
        let mut payload = payload.clone();
        while !payload.is_empty() {
            self.take(payload.split_to(payload.len().min(self.extent_max)))?;
            self.wait_for_room().await?;
        }
        Ok(())
    }

    /// Takes in payload; whole extents go to the log.
    fn take(&mut self, mut piece: Bytes) -> Result<(), StorageError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.size += piece.len() as u64;
        if self.size > BLOB_MAX_LEN {
            return Err(self.fail(StorageError::TooLarge {
                key: self.target.named(),
                size: self.size,
                limit: BLOB_MAX_LEN,
            }));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&piece);
        }
        // What makes a whole extent is not copied.
        while self.buffer.is_empty() && piece.len() >= self.extent_max {
            let extent = piece.split_to(self.extent_max);
            self.send_extent(extent);
        }
        while !piece.is_empty() {
            let room = self.extent_max - self.buffer.len();
            self.buffer
                .extend_from_slice(&piece.split_to(piece.len().min(room)));
            if self.buffer.len() == self.extent_max {
                self.send_buffer();
            }
        }
        Ok(())
    }

    fn fail(&mut self, error: StorageError) -> StorageError {
        self.failed.get_or_insert(error).clone()
    }

    /// While nothing of it has gone anywhere: the sectors that were chosen when it began may be taken away.
    fn place_anew(&mut self) {
        let is_new = self.extents.is_empty() && self.in_flight.is_empty();
        if !is_new || self.sectors.is_within(self.inner.keepers()) {
            return;
        }
        let placed = match &self.target.upload {
            None => {
                let wanted = self.inner.wanted_by(&self.options);
                self.inner.place(&self.target.key, self.size, wanted).ok()
            }
            Some(upload) => {
                let found = self.inner.index.read().lookup(upload.stored());
                let found = found.ok().flatten();
                found.map(|found| self.inner.to_change(found.holders))
            }
        };
        self.sectors = placed.unwrap_or(self.sectors);
    }

    /// Hands the buffer to the log as one extent.
    fn send_buffer(&mut self) {
        let extent = std::mem::take(&mut self.buffer).freeze();
        self.send_extent(extent);
    }

    /// Hands payload to the log as one extent.
    fn send_extent(&mut self, payload: Bytes) {
        let time = self.inner.now();
        let key = &self.target.key;
        let (record, length) = extent_record(key, payload, time);
        let work = Work::Extent {
            key: key.clone(),
            time,
            payload_length: length,
            record,
            hold: Arc::clone(&self.hold),
            replica_of: None,
        };
        // Not durable by itself: the manifest's frame makes durable what comes before it.
        self.in_flight
            .push_back((length, self.inner.submit(self.sectors, work, false)));
    }

    /// Ready once at most `most` extents are on their way.
    fn poll_in_flight(
        &mut self,
        context: &mut Context<'_>,
        most: usize,
    ) -> Poll<Result<(), StorageError>> {
        while self.in_flight.len() > most
            && let Some((length, ticket)) = self.in_flight.front_mut()
        {
            let Poll::Ready(landed) = Pin::new(ticket).poll(context) else {
                return Poll::Pending;
            };
            let length = *length;
            self.in_flight.pop_front();
            match landed {
                Ok(Done::Extent { lsn, sectors }) => {
                    self.sectors = self.sectors.within(sectors);
                    self.extents.push(ExtentRef {
                        lsn: lsn.into(),
                        offset: 0.into(),
                        length: length.into(),
                    });
                }
                Ok(_) => return Poll::Ready(Err(self.fail(unexpected()))),
                Err(error) => return Poll::Ready(Err(self.fail(error))),
            }
        }
        Poll::Ready(Ok(()))
    }

    async fn wait_for_room(&mut self) -> Result<(), StorageError> {
        poll_fn(|context| self.poll_in_flight(context, EXTENTS_IN_FLIGHT)).await
    }

    fn check_complete(&mut self) -> Result<(), StorageError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let digest = self.hasher.take().map(DigestHasher::finish);
        check_declared(&self.target.named(), &self.options, self.size, digest)
    }

    /// No more payload comes: checks what did, and sends what is left as an extent.
    fn end(&mut self) -> Result<(), StorageError> {
        if !self.checked {
            self.checked = true;
            self.check_complete()?;
            if !self.buffer.is_empty() {
                self.send_buffer();
            }
        }
        Ok(())
    }

    /// Ends the payload, and waits for all extents.
    pub fn poll_pieces(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Manifest, StorageError>> {
        self.end()?;
        ready!(self.poll_in_flight(context, 0))?;
        Poll::Ready(Ok(Manifest {
            size: self.size,
            extents: std::mem::take(&mut self.extents),
        }))
    }

    /// Ends the payload, waits for all extents, and makes the manifest that names them.
    fn poll_manifest(&mut self, context: &mut Context<'_>) -> Poll<Result<Mutation, StorageError>> {
        let manifest = ready!(self.poll_pieces(context))?;
        Poll::Ready(Ok(self.inner.manifest_put(
            self.target.clone(),
            manifest,
            &self.options,
            self.inner.now(),
        )))
    }

    /// Makes what commits the blob: a record of its own if it is small, else a manifest.
    fn poll_mutation(&mut self, context: &mut Context<'_>) -> Poll<Result<Mutation, StorageError>> {
        let whole = !self.checked
            && self.extents.is_empty()
            && self.in_flight.is_empty()
            && self.buffer.len() <= self.inner.inline_max(self.sectors);
        if whole {
            self.check_complete()?;
            let payload = std::mem::take(&mut self.buffer).freeze();
            return Poll::Ready(Ok(self.inner.inline_put(
                self.target.clone(),
                payload,
                &self.options,
                None,
                self.inner.now(),
            )));
        }
        self.poll_manifest(context)
    }

    /// Commits it. It must live until the ticket is answered: it holds the extents.
    fn commit(&self, mutation: Mutation) -> Ticket<Result<Done, StorageError>> {
        self.inner.submit(
            self.sectors,
            Work::Mutations(vec![mutation]),
            durable(self.options.durability),
        )
    }
}

/// The port's face of a payload on its way in. Pieces are taken in when they come, in order; an `Op`
/// only waits until few enough of them are on their way.
struct Writer {
    incoming: Arc<Mutex<Incoming>>,
}

impl WriteBlob for Writer {
    fn write(&mut self, piece: Bytes) -> StoreOp<()> {
        let incoming = Arc::clone(&self.incoming);
        let taken = {
            let mut incoming = incoming.lock();
            incoming.place_anew();
            incoming.take(piece)
        };
        if let Err(error) = taken {
            return Op::fail(error);
        }
        Op::start(poll_fn(move |context| {
            incoming.lock().poll_in_flight(context, EXTENTS_IN_FLIGHT)
        }))
    }

    fn finish(self: Box<Self>) -> StoreOp<PutOutcome> {
        let Self { incoming } = *self;
        let (inner, keys) = {
            let incoming = incoming.lock();
            (Arc::clone(&incoming.inner), incoming.target.keys())
        };
        inner.start_in_order(keys, async move {
            incoming.lock().place_anew();
            let mutation = poll_fn(|context| incoming.lock().poll_mutation(context)).await?;
            let ticket = incoming.lock().commit(mutation);
            committed_put(ticket).await
        })
    }
}

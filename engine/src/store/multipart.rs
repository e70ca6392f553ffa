//! Uploads of parts. An upload is an entry of the index under its id, a part one under the upload's id
//! and its number, all in the same sectors; their records are those of blobs in other spaces of keys. Parts
//! lie where they will stay: completing an upload writes a manifest over their extents \[F-62\].

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use graviton_format::key::{SPACE_COMPLETED, SPACE_UPLOAD, StoredKey};
use graviton_format::record::RecordKind;
use sha2::{Digest as _, Sha256};

use super::assembly::upload_id;
use super::commit::{Mutation, MutationOutcome, Work};
use super::index::{Entry, Found, part_key};
use super::inner::Inner;
use super::record::{self, Details, milliseconds, system_time};
use super::set::SectorSet;
use super::write::{Target, committed, committed_put, durable, unexpected};
use crate::port::blob::check_attributes;
use crate::port::mutable::{check_part_number, check_part_order};
use crate::port::{
    Attributes, BinaryKey, BlobWriter, CompleteOptions, Durability, ETag, GetOptions, Op, PartInfo,
    PutOptions, PutOutcome, StorageError, StoreOp, SweptUploads, UploadId, UploadInfo,
    UploadOptions,
};

/// What is kept of the list of parts that an upload was completed with: SHA-256 of the numbers (u16)
/// and ETags (u64), in order.
fn digest_of(parts: &[(u16, ETag)]) -> Bytes {
    let mut hasher = Sha256::new();
    for (number, etag) in parts {
        hasher.update(number.to_le_bytes());
        hasher.update(etag.version().to_le_bytes());
    }
    Bytes::copy_from_slice(&hasher.finalize())
}

/// The later of when an upload was begun and when the last of its parts was put.
fn modified(begun: &Entry, parts: &[(u16, Entry)]) -> u64 {
    let times = parts.iter().map(|(_, part)| part.time);
    times.fold(begun.time, u64::max)
}

impl Inner {
    /// See [`MutableObjectStore::start_upload`](crate::port::MutableObjectStore::start_upload).
    pub fn start_upload(
        self: &Arc<Self>,
        key: &BinaryKey,
        options: &UploadOptions,
    ) -> StoreOp<UploadId> {
        // Nothing is known of what is to come: it goes where there is room for much.
        let much = self.sectors[0].geometry().sector_size() / 16;
        let started = self
            .check_writable()
            .and_then(|()| check_attributes(&options.attributes, self.options.max_attributes_len))
            .and_then(|()| self.asked(options.replicas))
            .and_then(|asked| Ok((asked, self.place(key, much, self.wanted(asked))?)));
        let (replicas, sectors) = match started {
            Ok(started) => started,
            Err(error) => return Op::fail(error),
        };
        let upload = BinaryKey::beside(&StoredKey::Upload {
            upload: 0,
            key: key.as_bytes(),
        });
        let time = self.now();
        let meta = Details {
            attributes: options.attributes.clone(),
            replicas,
            ..Details::default()
        }
        .encode();
        let mutation = Mutation::Start {
            record: record::encode(RecordKind::Blob, &upload, &meta, &[], time),
            upload,
            time,
            meta_length: u32::try_from(meta.len()).unwrap_or(u32::MAX),
            replicas,
        };
        let work = Work::Mutations(vec![mutation]);
        let ticket = self.submit(sectors, work, durable(options.durability));
        Op::start(async move {
            let begun = committed_put(ticket).await?;
            Ok(UploadId::of_lsn(begun.version))
        })
    }

    /// The upload that is open: its stored key, and the sectors that take its parts.
    fn open_upload(&self, upload: UploadId) -> Result<(BinaryKey, SectorSet), StorageError> {
        let found = self.index.read().find_upload(upload.lsn())?;
        let (key, found) = found.ok_or(StorageError::NoSuchUpload { upload })?;
        Ok((key, self.to_change(found.holders)))
    }

    /// Starts an operation on an upload that is open, after those on it that were given up and go on
    /// by themselves.
    fn on_upload<T: Send + Unpin + 'static>(
        self: &Arc<Self>,
        upload: UploadId,
        operation: impl FnOnce(&Arc<Self>, SectorSet, BinaryKey) -> StoreOp<T> + Send + 'static,
    ) -> StoreOp<T> {
        let found = self
            .check_writable()
            .and_then(|()| self.open_upload(upload));
        let (key, sectors) = match found {
            Ok(found) => found,
            Err(error) => return Op::fail(error),
        };
        let Some(earlier) = self.detached.before(&[&key]) else {
            return operation(self, sectors, key);
        };
        let inner = Arc::clone(self);
        self.start_kept(vec![key], async move {
            earlier.await;
            let (key, sectors) = inner.open_upload(upload)?;
            operation(&inner, sectors, key).await
        })
    }

    /// See [`MutableObjectStore::upload_part`](crate::port::MutableObjectStore::upload_part).
    pub fn upload_part(
        self: &Arc<Self>,
        upload: UploadId,
        number: u16,
        payload: Bytes,
        options: PutOptions,
    ) -> StoreOp<PutOutcome> {
        if let Err(error) = check_part_number(number) {
            return Op::fail(error);
        }
        self.on_upload(upload, move |inner, sectors, key| {
            let (target, options) = match inner.check_part(number, key, options) {
                Ok(checked) => checked,
                Err(error) => return Op::fail(error),
            };
            inner.put_at(sectors, target, &payload, options)
        })
    }

    /// See
    /// [`MutableObjectStore::upload_part_stream`](crate::port::MutableObjectStore::upload_part_stream).
    pub fn upload_part_stream(
        self: &Arc<Self>,
        upload: UploadId,
        number: u16,
        options: PutOptions,
    ) -> Result<BlobWriter, StorageError> {
        check_part_number(number)?;
        self.check_writable()?;
        let (key, sectors) = self.open_upload(upload)?;
        let (target, options) = self.check_part(number, key, options)?;
        self.stream_to(sectors, target, options)
    }

    /// What a part is put as, and with which options.
    fn check_part(
        &self,
        number: u16,
        upload: BinaryKey,
        options: PutOptions,
    ) -> Result<(Target, PutOptions), StorageError> {
        self.check_put(&upload.of_blob(), &options)?;
        // It is to lie where its upload does.
        let found = self.index.read().lookup(upload.stored())?;
        let asked = found.map_or(0, |found| found.entry.replicas);
        let target = Target {
            key: part_key(upload_id(&upload).lsn(), number),
            upload: Some(upload),
        };
        let options = PutOptions {
            attributes: Attributes::new(),
            replicas: (asked > 0).then_some(asked.into()),
            ..options
        };
        Ok((target, options))
    }

    /// See [`MutableObjectStore::complete_upload`](crate::port::MutableObjectStore::complete_upload).
    pub fn complete_upload(
        self: &Arc<Self>,
        upload: UploadId,
        parts: &[(u16, ETag)],
        options: CompleteOptions,
    ) -> StoreOp<PutOutcome> {
        if let Err(error) = self.check_writable() {
            return Op::fail(error);
        }
        let inner = Arc::clone(self);
        let parts = parts.to_vec();
        // Those that were given up and go on by themselves: on this upload and, in the end, on its blob.
        let keys = match self.index.read().find_upload(upload.lsn()) {
            Ok(Some((key, _))) => vec![key.of_blob(), key],
            Ok(None) => Vec::new(),
            Err(error) => return Op::fail(error),
        };
        let earlier = match keys.is_empty() {
            true => None,
            false => self.detached.before(&keys.iter().collect::<Vec<_>>()),
        };
        self.start_kept(keys, async move {
            if let Some(earlier) = earlier {
                earlier.await;
            }
            match inner.complete_open(upload, &parts, &options).await {
                Err(StorageError::NoSuchUpload { .. }) => {
                    inner.completed(upload, &parts, options.durability).await
                }
                outcome => outcome,
            }
        })
    }

    async fn complete_open(
        self: &Arc<Self>,
        upload: UploadId,
        parts: &[(u16, ETag)],
        options: &CompleteOptions,
    ) -> Result<PutOutcome, StorageError> {
        let held = {
            let index = self.index.read();
            let found = index.find_upload(upload.lsn())?;
            let (key, _) = found.ok_or(StorageError::NoSuchUpload { upload })?;
            self.hold_in(&index, &key)?
        };
        check_part_order(parts)?;
        if parts.is_empty() && options.refuse_empty {
            return Err(StorageError::invalid("an upload completed with no parts"));
        }
        let details = held.details().await?;
        let (key, holders) = (held.key.clone(), held.holders);
        drop(held);
        self.gather_parts(upload, holders, parts).await?;
        let mutation = Mutation::Complete {
            blob: key.of_blob(),
            upload: key,
            parts: parts.to_vec(),
            precondition: options.precondition,
            meta: details.encode(),
            replicas: details.replicas,
            digest: digest_of(parts),
            time: self.now(),
        };
        let work = Work::Mutations(vec![mutation]);
        let sectors = self.to_change(holders);
        committed_put(self.submit(sectors, work, durable(options.durability))).await
    }

    /// Has all parts that are named, and are there, in one sector that has the upload: repair puts replicas of them
    /// where there is room.
    async fn gather_parts(
        self: &Arc<Self>,
        upload: UploadId,
        holders: SectorSet,
        named: &[(u16, ETag)],
    ) -> Result<(), StorageError> {
        if self.sectors.len() < 2 {
            return Ok(());
        }
        let mut there: Vec<HashSet<(u16, ETag)>> = Vec::new();
        for sector in &self.index.read().sectors {
            let parts = sector.parts(upload.lsn())?;
            let etag = |(number, part): &(u16, Entry)| (*number, ETag::of_version(part.lsn));
            there.push(parts.iter().map(etag).collect());
        }
        // What no sector has as it is named is told when that is decided.
        let lacks = |holder: usize| {
            let is_elsewhere = |part: &(u16, ETag)| there.iter().any(|parts| parts.contains(part));
            let lacks = named.iter().filter(|part| !there[holder].contains(part));
            let lacks = lacks.filter(|part| is_elsewhere(part));
            lacks.map(|(number, _)| *number).collect::<Vec<u16>>()
        };
        let holders = self.to_change(holders);
        let best = holders.iter().map(|holder| (lacks(holder), holder));
        let Some((lacking, number)) = best.min_by_key(|(lacks, _)| lacks.len()) else {
            return Ok(());
        };
        for part in lacking {
            self.bring(&part_key(upload.lsn(), part), number).await?;
        }
        Ok(())
    }

    /// The answer once more, if the upload was completed with these parts, and the blob is still what
    /// it became then.
    async fn completed(
        self: &Arc<Self>,
        upload: UploadId,
        parts: &[(u16, ETag)],
        durability: Durability,
    ) -> Result<PutOutcome, StorageError> {
        let none = || StorageError::NoSuchUpload { upload };
        let (key, holders, blob) = {
            let index = self.index.read();
            let (key, kept) = index.find_completed(upload.lsn())?.ok_or_else(none)?;
            let blob = index.completed_blob(&key, &kept.entry)?;
            (key, kept.holders, blob.ok_or_else(none)?)
        };
        let kept = self.get(&key, &GetOptions::default()).await?;
        if kept.bytes != digest_of(parts) {
            return Err(none());
        }
        if durable(durability) {
            // Whoever completed it may have asked for less.
            self.sync(holders).await?;
        }
        Ok(PutOutcome {
            etag: ETag::of_version(blob.lsn),
            version: blob.lsn,
            size: blob.size,
        })
    }

    /// See [`MutableObjectStore::abort_upload`](crate::port::MutableObjectStore::abort_upload).
    pub fn abort_upload(self: &Arc<Self>, upload: UploadId) -> StoreOp<()> {
        self.on_upload(upload, move |inner, sectors, key| {
            let aborted = inner.abort(sectors, key, None);
            Op::start(async move { aborted.await.map(drop) })
        })
    }

    /// Returns the bytes that are gone with it, unless something was put into it after `idle_since`.
    fn abort(
        self: &Arc<Self>,
        sectors: SectorSet,
        upload: BinaryKey,
        idle_since: Option<u64>,
    ) -> impl Future<Output = Result<Option<u64>, StorageError>> + Send + Unpin + use<> {
        let mutation = Mutation::Abort {
            upload,
            idle_since,
            time: self.now(),
        };
        let ticket = self.submit(sectors, Work::Mutations(vec![mutation]), true);
        Box::pin(async move {
            match committed(ticket).await?.first() {
                Some(MutationOutcome::Aborted { bytes }) => Ok(*bytes),
                _ => Err(unexpected()),
            }
        })
    }

    /// See [`MutableObjectStore::list_uploads`](crate::port::MutableObjectStore::list_uploads).
    pub fn list_uploads(
        &self,
        after: Option<(BinaryKey, UploadId)>,
        max: usize,
    ) -> Result<Vec<UploadInfo>, StorageError> {
        self.check_open()?;
        let index = self.index.read();
        // The index has them by age, and not by key.
        let mut first: BTreeMap<(BinaryKey, UploadId), Entry> = BTreeMap::new();
        index.scan(&[SPACE_UPLOAD], |_, stored, entry| {
            let Ok(StoredKey::Upload { upload, key }) = StoredKey::decode(stored) else {
                return Ok(false);
            };
            let name = (BinaryKey::bound(key), UploadId::of_lsn(upload));
            if after.as_ref().is_none_or(|after| name > *after) {
                first.insert(name, entry.clone());
            }
            if first.len() > max {
                first.pop_last();
            }
            Ok(true)
        })?;
        let info = |((key, upload), begun): ((_, UploadId), Entry)| {
            let parts = index.parts(upload.lsn())?;
            Ok(UploadInfo {
                upload,
                key,
                started: system_time(begun.time),
                modified: system_time(modified(&begun, &parts)),
                parts: parts.len(),
                bytes: parts.iter().map(|(_, part)| part.size).sum(),
            })
        };
        first.into_iter().map(info).collect()
    }

    /// See [`MutableObjectStore::list_parts`](crate::port::MutableObjectStore::list_parts).
    pub fn list_parts(
        &self,
        upload: UploadId,
        after: u16,
        max: usize,
    ) -> Result<Vec<PartInfo>, StorageError> {
        self.check_open()?;
        let index = self.index.read();
        let found = index.find_upload(upload.lsn())?;
        found.ok_or(StorageError::NoSuchUpload { upload })?;
        let parts = index.parts(upload.lsn())?.into_iter();
        let info = |(number, part): (u16, Entry)| PartInfo {
            number,
            etag: ETag::of_version(part.lsn),
            size: part.size,
            modified: system_time(part.time),
        };
        let above = parts.filter(|(number, _)| *number > after);
        Ok(above.take(max).map(info).collect())
    }

    /// See [`MutableObjectStore::sweep_uploads`](crate::port::MutableObjectStore::sweep_uploads).
    pub fn sweep_uploads(self: &Arc<Self>, age: Duration) -> StoreOp<SweptUploads> {
        if let Err(error) = self.check_writable() {
            return Op::fail(error);
        }
        let now = system_time(self.now());
        let since = now.checked_sub(age).map(milliseconds);
        let inner = Arc::clone(self);
        self.start_kept(Vec::new(), async move {
            let mut swept = SweptUploads::default();
            let Some(since) = since else {
                return Ok(swept);
            };
            for (key, holders) in inner.idle_uploads(since)? {
                let sectors = inner.to_change(holders);
                match inner.abort(sectors, key, Some(since)).await {
                    Ok(Some(bytes)) => {
                        swept.uploads += 1;
                        swept.bytes += bytes;
                    }
                    // It was put into, or is over, by now.
                    Ok(None) | Err(StorageError::NoSuchUpload { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(swept)
        })
    }

    /// Forgets, before a checkpoint is taken, what is kept of uploads whose blobs have changed or are
    /// gone: nobody asks for it any more. No record says so, since anybody who finds it again sees that.
    pub fn forget_completed(&self, number: usize) -> Result<(), StorageError> {
        /// Looked at under one lock.
        const AT_ONCE: usize = 256;
        let mut from = vec![SPACE_COMPLETED];
        while self
            .index
            .write()
            .forget_completed(number, &mut from, AT_ONCE)?
        {}
        Ok(())
    }

    fn idle_uploads(&self, since: u64) -> Result<Vec<(BinaryKey, SectorSet)>, StorageError> {
        let index = self.index.read();
        let mut idle = Vec::new();
        index.scan(&[SPACE_UPLOAD], |number, stored, entry| {
            let Ok(StoredKey::Upload { upload, .. }) = StoredKey::decode(stored) else {
                return Ok(false);
            };
            let parts = index.parts(upload)?;
            if modified(entry, &parts) <= since
                && let Some(Found { holders, .. }) = index.lookup(stored)?
            {
                let key = BinaryKey::of_stored(stored);
                let key = key.map_err(|error| self.sectors[number].corruption(0, error))?;
                idle.push((key, holders));
            }
            Ok(true)
        })?;
        Ok(idle)
    }
}

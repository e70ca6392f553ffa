//! [`MutableObjectStore`] in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::content::Content;
use super::manifest::MemoryManifests;
use super::replica::Copies;
use super::state::{State, Version};
use super::tracker::{MemoryTracker, Of};
use super::{MemoryStore, Shared, Writer};
use crate::port::blob::{check_attributes, check_replicas, resolve_range};
use crate::port::manifest::of_put;
use crate::port::mutable::{check_part_number, check_part_order, check_sparse, resolve_put_range};
use crate::port::{
    Attributes, BinaryKey, BlobRanges, BlobWriter, CompleteOptions, ETag, GetRangesOptions, Holes,
    ManifestStore, MutableObjectStore, Op, PartInfo, Precondition, PutOptions, PutOutcome,
    PutRangeOptions, RangeSet, RangeTracker, Span, StorageError, StoreOp, SweptUploads, UploadId,
    UploadInfo, UploadOptions,
};

/// An upload that is neither completed nor aborted.
#[derive(Debug, Clone)]
pub(super) struct Upload {
    key: BinaryKey,
    attributes: Attributes,
    /// How many sectors its blob is to be in.
    replicas: u16,
    started: SystemTime,
    modified: SystemTime,
    parts: BTreeMap<u16, Part>,
}

#[derive(Debug, Clone)]
struct Part {
    /// Its LSN.
    number: u64,
    payload: Bytes,
    modified: SystemTime,
}

impl Upload {
    fn bytes(&self) -> u64 {
        self.parts.values().map(Part::size).sum()
    }
}

impl Part {
    fn size(&self) -> u64 {
        self.payload.len() as u64
    }
}

impl State {
    fn upload(&self, upload: UploadId) -> Result<&Upload, StorageError> {
        let none = StorageError::NoSuchUpload { upload };
        self.uploads.get(&upload).ok_or(none)
    }

    fn put_range(
        &mut self,
        key: &BinaryKey,
        range: Span,
        bytes: Bytes,
        options: &PutRangeOptions,
        now: SystemTime,
    ) -> Result<PutOutcome, StorageError> {
        let mut version = self.existing(key, options.precondition)?.clone();
        if range.is_empty() {
            return Ok(version.outcome());
        }
        version.content.write(range.start(), bytes);
        version.bytes_changed(now);
        self.install(key, version)
    }

    fn start_upload(
        &mut self,
        key: &BinaryKey,
        options: UploadOptions,
        now: SystemTime,
    ) -> UploadId {
        self.lsn += 1;
        let upload = UploadId::of_lsn(self.lsn);
        let begun = Upload {
            key: key.clone(),
            attributes: options.attributes,
            replicas: options.replicas.unwrap_or(self.replicas),
            started: now,
            modified: now,
            parts: BTreeMap::new(),
        };
        self.uploads.insert(upload, begun);
        upload
    }

    fn put_part(
        &mut self,
        upload: UploadId,
        number: u16,
        payload: Bytes,
        precondition: Precondition,
        now: SystemTime,
    ) -> Result<PutOutcome, StorageError> {
        let open = self.upload(upload)?;
        let old = open.parts.get(&number);
        let current = old.map(|part| part.number);
        if !precondition.holds(current) {
            return Err(StorageError::PreconditionFailed {
                key: open.key.clone(),
                actual: current.map(ETag::of_version),
            });
        }
        let (size, freed) = (payload.len() as u64, old.map_or(0, Part::size));
        self.require_room(size, freed)?;
        self.lsn += 1;
        self.used = self.used - freed + size;
        let lsn = self.lsn;
        let part = Part {
            number: lsn,
            payload,
            modified: now,
        };
        if let Some(open) = self.uploads.get_mut(&upload) {
            open.modified = now;
            open.parts.insert(number, part);
        }
        Ok(PutOutcome {
            etag: ETag::of_version(lsn),
            version: lsn,
            size,
        })
    }

    /// The version that the upload was completed to with these parts, if it is still there.
    fn completed(&self, upload: UploadId, parts: &[(u16, ETag)]) -> Option<&Version> {
        self.blobs.values().find(|version| {
            let completed = version.completed.as_ref();
            completed.is_some_and(|(of, with)| *of == upload && with == parts)
        })
    }

    fn complete_upload(
        &mut self,
        upload: UploadId,
        parts: &[(u16, ETag)],
        options: &CompleteOptions,
        limit: u64,
        now: SystemTime,
    ) -> Result<PutOutcome, StorageError> {
        if let Some(version) = self.completed(upload, parts) {
            return Ok(version.outcome());
        }
        let open = self.upload(upload)?;
        check_part_order(parts)?;
        if parts.is_empty() && options.refuse_empty {
            return Err(StorageError::invalid("an upload completed with no parts"));
        }
        let mut content = Content::default();
        for &(number, etag) in parts {
            let wrong = |why| StorageError::InvalidPart { number, why };
            let part = open.parts.get(&number);
            let part = part.ok_or_else(|| wrong("it was never put"))?;
            if ETag::of_version(part.number) != etag {
                return Err(wrong("it has another ETag"));
            }
            content.append(part.payload.clone());
        }
        let key = open.key.clone();
        let size = content.size();
        if size > limit {
            return Err(StorageError::TooLarge { key, size, limit });
        }
        self.require(&key, options.precondition)?;
        let version = Version {
            number: 0,
            generation: 0,
            content,
            created: now,
            modified: now,
            digests: Vec::new(),
            advertised: of_put(open.attributes.clone(), now),
            replicas: open.replicas,
            completed: Some((upload, parts.to_vec())),
            copies: Copies::new(),
        };
        // There is room: the parts are gone with the upload.
        self.give_up(upload)?;
        self.install(&key, version)
    }

    /// Returns how many bytes are gone with it.
    fn give_up(&mut self, upload: UploadId) -> Result<u64, StorageError> {
        let bytes = self.upload(upload)?.bytes();
        self.used -= bytes;
        self.uploads.remove(&upload);
        Ok(bytes)
    }

    fn sweep(&mut self, age: Duration, now: SystemTime) -> Result<SweptUploads, StorageError> {
        let is_old = |upload: &Upload| {
            let since = now.duration_since(upload.modified);
            since.is_ok_and(|since| since >= age)
        };
        let old = self.uploads.iter().filter(|(_, upload)| is_old(upload));
        let old: Vec<UploadId> = old.map(|(upload, _)| *upload).collect();
        let mut swept = SweptUploads::default();
        for upload in old {
            swept.uploads += 1;
            swept.bytes += self.give_up(upload)?;
        }
        Ok(swept)
    }
}

impl Shared {
    fn upload_part(
        &self,
        upload: UploadId,
        number: u16,
        payload: Bytes,
        options: &PutOptions,
    ) -> Result<PutOutcome, StorageError> {
        check_part_number(number)?;
        let now = self.now();
        self.change(|state| {
            let key = state.upload(upload)?.key.clone();
            self.check(&key, &payload, options)?;
            state.put_part(upload, number, payload, options.precondition, now)
        })
    }
}

impl MemoryStore {
    fn tracker(&self, of: Of) -> Arc<dyn RangeTracker> {
        let shared = Arc::clone(&self.shared);
        Arc::new(MemoryTracker { shared, of })
    }

    fn read_ranges(
        &self,
        key: &BinaryKey,
        ranges: &[Span],
        options: &GetRangesOptions,
    ) -> Result<BlobRanges, StorageError> {
        let state = self.shared.state.lock();
        let version = state.existing(key, options.precondition)?;
        let (mut pieces, mut missing) = (Vec::new(), RangeSet::new());
        for &range in ranges {
            let range = resolve_range(key, Some(&range.into()), version.size())?;
            let span = Span::try_from(range)?;
            missing = missing.union(&version.content.missing(span));
            pieces.push(version.content.read(span));
        }
        if options.holes == Holes::Refuse && !missing.is_empty() {
            let key = key.clone();
            return Err(StorageError::MissingRanges { key, missing });
        }
        Ok(BlobRanges {
            pieces,
            size: version.size(),
            etag: ETag::of_version(version.number),
            version: version.number,
        })
    }

    fn make_sparse(
        &self,
        key: &BinaryKey,
        size: u64,
        options: PutOptions,
    ) -> Result<PutOutcome, StorageError> {
        check_sparse(&options)?;
        check_attributes(&options.attributes, self.shared.options.max_attributes_len)?;
        check_replicas(options.replicas, self.shared.options.replicas)?;
        self.shared.check_size(key, size)?;
        let now = self.shared.now();
        self.shared
            .change(|state| state.put(key, Content::hole(size), options, now))
    }

    fn write_range(
        &self,
        key: &BinaryKey,
        range: Span,
        bytes: Bytes,
        options: &PutRangeOptions,
    ) -> Result<PutOutcome, StorageError> {
        let now = self.shared.now();
        self.shared.change(|state| {
            let size = state.existing(key, options.precondition)?.size();
            let size = resolve_put_range(key, range, bytes.len() as u64, size, options.past_end)?;
            self.shared.check_size(key, size)?;
            state.put_range(key, range, bytes, options, now)
        })
    }
}

impl MutableObjectStore for MemoryStore {
    fn create_sparse(
        &self,
        key: &BinaryKey,
        size: u64,
        options: PutOptions,
    ) -> StoreOp<PutOutcome> {
        Op::ready(self.make_sparse(key, size, options))
    }

    fn put_range(
        &self,
        key: &BinaryKey,
        range: Span,
        bytes: Bytes,
        options: PutRangeOptions,
    ) -> StoreOp<PutOutcome> {
        Op::ready(self.write_range(key, range, bytes, &options))
    }

    fn get_ranges(
        &self,
        key: &BinaryKey,
        ranges: &[Span],
        options: GetRangesOptions,
    ) -> StoreOp<BlobRanges> {
        Op::ready(self.read_ranges(key, ranges, &options))
    }

    fn start_upload(&self, key: &BinaryKey, options: UploadOptions) -> StoreOp<UploadId> {
        let now = self.shared.now();
        let limit = self.shared.options.max_attributes_len;
        let checked = check_attributes(&options.attributes, limit)
            .and_then(|()| check_replicas(options.replicas, self.shared.options.replicas));
        Op::ready(checked.map(|_| {
            let mut state = self.shared.state.lock();
            state.start_upload(key, options, now)
        }))
    }

    fn upload_part(
        &self,
        upload: UploadId,
        number: u16,
        bytes: Bytes,
        options: PutOptions,
    ) -> StoreOp<PutOutcome> {
        Op::ready(self.shared.upload_part(upload, number, bytes, &options))
    }

    fn upload_part_stream(
        &self,
        upload: UploadId,
        number: u16,
        options: PutOptions,
    ) -> Result<BlobWriter, StorageError> {
        check_part_number(number)?;
        let key = self.shared.state.lock().upload(upload)?.key.clone();
        self.shared.check_options(&key, &options)?;
        let shared = Arc::clone(&self.shared);
        let commit = move |payload| shared.upload_part(upload, number, payload, &options);
        Ok(BlobWriter::new(Writer {
            shared: Arc::clone(&self.shared),
            key,
            received: Ok(Vec::new()),
            commit: Box::new(commit),
        }))
    }

    fn complete_upload(
        &self,
        upload: UploadId,
        parts: &[(u16, ETag)],
        options: CompleteOptions,
    ) -> StoreOp<PutOutcome> {
        let (limit, now) = (self.shared.options.max_blob_size, self.shared.now());
        Op::ready(
            self.shared
                .change(|state| state.complete_upload(upload, parts, &options, limit, now)),
        )
    }

    fn abort_upload(&self, upload: UploadId) -> StoreOp<()> {
        Op::ready(self.shared.state.lock().give_up(upload).map(drop))
    }

    fn list_uploads(
        &self,
        after: Option<(BinaryKey, UploadId)>,
        max: usize,
    ) -> StoreOp<Vec<UploadInfo>> {
        let state = self.shared.state.lock();
        let info = |(&upload, open): (&UploadId, &Upload)| UploadInfo {
            upload,
            key: open.key.clone(),
            started: open.started,
            modified: open.modified,
            parts: open.parts.len(),
            bytes: open.bytes(),
        };
        let mut uploads: Vec<UploadInfo> = state.uploads.iter().map(info).collect();
        uploads.sort_by(|one, other| (&one.key, one.upload).cmp(&(&other.key, other.upload)));
        if let Some((key, upload)) = after {
            uploads.retain(|info| (&info.key, info.upload) > (&key, upload));
        }
        uploads.truncate(max);
        Op::ready(Ok(uploads))
    }

    fn list_parts(&self, upload: UploadId, after: u16, max: usize) -> StoreOp<Vec<PartInfo>> {
        let state = self.shared.state.lock();
        Op::ready(state.upload(upload).map(|open| {
            let info = |(&number, part): (&u16, &Part)| PartInfo {
                number,
                etag: ETag::of_version(part.number),
                size: part.size(),
                modified: part.modified,
            };
            let above = open.parts.iter().filter(|(number, _)| **number > after);
            above.take(max).map(info).collect()
        }))
    }

    fn sweep_uploads(&self, age: Duration) -> StoreOp<SweptUploads> {
        let now = self.shared.now();
        Op::ready(self.shared.state.lock().sweep(age, now))
    }

    fn ranges(&self) -> Arc<dyn RangeTracker> {
        self.tracker(Of::Blobs)
    }

    fn ranges_elsewhere(&self) -> Arc<dyn RangeTracker> {
        self.tracker(Of::Elsewhere)
    }

    fn manifests(&self) -> Arc<dyn ManifestStore> {
        Arc::new(MemoryManifests {
            shared: Arc::clone(&self.shared),
        })
    }
}

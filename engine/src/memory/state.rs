//! What every mutation of a [`MemoryStore`](super::MemoryStore) does, under its one lock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use super::content::Content;
use super::replica::Copies;
use super::uploads::Upload;
use crate::port::list::build_page;
use crate::port::manifest::{of_put, plain};
use crate::port::{
    AdvertisedAttributes, BinaryKey, BlobInfo, Completed, CopyOptions, DeleteOptions,
    DeleteOutcome, Digest, ETag, ListEntry, ListPage, ListRequest, Precondition, PutOptions,
    PutOutcome, Span, StorageError, UploadId,
};

/// One version of one blob.
#[derive(Debug, Clone)]
pub(super) struct Version {
    /// Its LSN.
    pub(super) number: u64,
    /// The LSN of the put, copy or creation that it came from by changes of its bytes; 0: its own.
    pub(super) generation: u64,
    pub(super) content: Content,
    pub(super) created: SystemTime,
    pub(super) modified: SystemTime,
    pub(super) digests: Vec<Digest>,
    pub(super) advertised: AdvertisedAttributes,
    /// How many sectors it is to be in.
    pub(super) replicas: u16,
    /// The upload that it came from, and the parts it was completed with.
    pub(super) completed: Option<(UploadId, Vec<(u16, ETag)>)>,
    /// What the sectors have of the blob, of this version or an older one.
    pub(super) copies: Copies,
}

impl Version {
    pub(super) fn size(&self) -> u64 {
        self.content.size()
    }

    /// Some of its bytes are others now.
    pub(super) fn bytes_changed(&mut self, now: SystemTime) {
        self.modified = now;
        self.digests.clear();
        self.completed = None;
    }

    pub(super) fn outcome(&self) -> PutOutcome {
        PutOutcome {
            etag: ETag::of_version(self.number),
            version: self.number,
            size: self.size(),
        }
    }
}

#[derive(Debug, Default, Clone)]
pub(super) struct State {
    pub(super) blobs: BTreeMap<BinaryKey, Version>,
    /// The highest LSN given out. It never goes back: a key that was deleted and comes again has
    /// versions of its own.
    pub(super) lsn: u64,
    pub(super) uploads: BTreeMap<UploadId, Upload>,
    /// What is complete of bytes that are held elsewhere.
    pub(super) elsewhere: BTreeMap<BinaryKey, Completed>,
    /// The sectors that replicas can be in.
    pub(super) sectors: BTreeSet<u16>,
    /// How many of them each blob is to be in, at least.
    pub(super) replicas: u16,
    /// Keys of which something changed since somebody asked.
    pub(super) touched: Vec<BinaryKey>,
    /// Bytes of payload.
    pub(super) used: u64,
    capacity: Option<u64>,
    /// While a group of mutations is not decided: what each of them replaced.
    undo: Option<Vec<(BinaryKey, Option<Version>)>>,
}

impl State {
    pub(super) fn new(capacity: Option<u64>, sectors: u16, replicas: u16) -> Self {
        Self {
            capacity,
            sectors: (0..sectors).collect(),
            replicas,
            ..Self::default()
        }
    }

    /// Of a mutation that makes the key exist or may find it absent: only the precondition decides.
    pub(super) fn require(
        &self,
        key: &BinaryKey,
        precondition: Precondition,
    ) -> Result<(), StorageError> {
        let current = self.blobs.get(key).map(|version| version.number);
        if precondition.holds(current) {
            return Ok(());
        }
        Err(StorageError::PreconditionFailed {
            key: key.clone(),
            actual: current.map(ETag::of_version),
        })
    }

    /// Of an operation that needs the blob: absence is `NotFound`, whatever the precondition says.
    pub(super) fn existing(
        &self,
        key: &BinaryKey,
        precondition: Precondition,
    ) -> Result<&Version, StorageError> {
        let not_found = || StorageError::NotFound { key: key.clone() };
        let version = self.blobs.get(key).ok_or_else(not_found)?;
        self.require(key, precondition)?;
        Ok(version)
    }

    pub(super) fn stat(&self, key: &BinaryKey) -> Result<BlobInfo, StorageError> {
        let version = self.existing(key, Precondition::None)?;
        Ok(BlobInfo {
            key: key.clone(),
            size: version.size(),
            allocated: version.content.written(),
            etag: ETag::of_version(version.number),
            version: version.number,
            created: version.created,
            modified: version.modified,
            digests: version.digests.clone(),
            attributes: plain(&version.advertised),
            missing: version.content.missing(Span::first(version.size())),
            fragments: version.content.written_set().spans().len(),
            sectors: version.sectors(),
            replicas: version.replicas,
        })
    }

    pub(super) fn list(&self, request: &ListRequest) -> Result<ListPage, StorageError> {
        self.list_those(request, |_| true)
    }

    /// As [`State::list`], of some of the blobs.
    pub(super) fn list_those(
        &self,
        request: &ListRequest,
        is_one: impl Fn(&Version) -> bool,
    ) -> Result<ListPage, StorageError> {
        build_page(request, |from, limit| {
            let found = self.blobs.range(BinaryKey::bound(from)..);
            let found = found.filter(|(_, blob)| is_one(blob)).take(limit);
            let entry = |(key, blob): (&BinaryKey, &Version)| {
                ListEntry::new(key.clone(), blob.size(), blob.number, blob.modified)
            };
            Ok(found.map(entry).collect())
        })
    }

    pub(super) fn put(
        &mut self,
        key: &BinaryKey,
        content: Content,
        options: PutOptions,
        now: SystemTime,
    ) -> Result<PutOutcome, StorageError> {
        self.require(key, options.precondition)?;
        let version = Version {
            number: 0,
            generation: 0,
            content,
            created: now,
            modified: now,
            digests: options.digest.into_iter().collect(),
            advertised: of_put(options.attributes, now),
            replicas: options.replicas.unwrap_or(self.replicas),
            completed: None,
            copies: Copies::new(),
        };
        self.install(key, version)
    }

    pub(super) fn delete(
        &mut self,
        key: &BinaryKey,
        options: &DeleteOptions,
    ) -> Result<DeleteOutcome, StorageError> {
        if options.strict {
            self.existing(key, options.precondition)?;
        } else {
            self.require(key, options.precondition)?;
        }
        let existed = self.replace(key, None);
        Ok(DeleteOutcome { existed })
    }

    pub(super) fn copy(
        &mut self,
        source: &BinaryKey,
        target: &BinaryKey,
        options: &CopyOptions,
        now: SystemTime,
    ) -> Result<PutOutcome, StorageError> {
        let mut version = self.existing(source, options.source_precondition)?.clone();
        self.require(target, options.target_precondition)?;
        version.modified = now;
        version.completed = None;
        version.generation = 0;
        self.install(target, version)
    }

    pub(super) fn rename(
        &mut self,
        source: &BinaryKey,
        target: &BinaryKey,
        options: &CopyOptions,
        now: SystemTime,
    ) -> Result<PutOutcome, StorageError> {
        let mut version = self.existing(source, options.source_precondition)?.clone();
        self.require(target, options.target_precondition)?;
        version.modified = now;
        version.completed = None;
        version.generation = 0;
        // There is room: this frees as much as the new version takes.
        self.replace(source, None);
        self.install(target, version)
    }

    /// Runs `mutations`; if they fail, everything is as it was before (but for the LSN).
    pub(super) fn all_or_nothing<T>(
        &mut self,
        mutations: impl FnOnce(&mut Self) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        self.undo = Some(Vec::new());
        let outcome = mutations(self);
        let undo = self.undo.take().unwrap_or_default();
        if outcome.is_err() {
            for (key, version) in undo.into_iter().rev() {
                self.replace(&key, version);
            }
        }
        outcome
    }

    /// Makes `version` the current one under the next LSN, if there is room.
    pub(super) fn install(
        &mut self,
        key: &BinaryKey,
        mut version: Version,
    ) -> Result<PutOutcome, StorageError> {
        let old = self.blobs.get(key);
        let freed = old.map_or(0, |old| old.content.written());
        // Of an older version from now on.
        version.copies = old.map(|old| old.copies.clone()).unwrap_or_default();
        self.require_room(version.content.written(), freed)?;
        self.lsn += 1;
        version.number = self.lsn;
        if version.generation == 0 {
            version.generation = self.lsn;
        }
        let outcome = version.outcome();
        self.replace(key, Some(version));
        Ok(outcome)
    }

    /// Whether `needed` bytes fit in once `freed` are gone.
    pub(super) fn require_room(&self, needed: u64, freed: u64) -> Result<(), StorageError> {
        let Some(capacity) = self.capacity else {
            return Ok(());
        };
        let available = capacity.saturating_sub(self.used - freed);
        if needed > available {
            return Err(StorageError::NoSpace { needed, available });
        }
        Ok(())
    }

    /// The one place where the map changes. Whether there was a blob before.
    fn replace(&mut self, key: &BinaryKey, version: Option<Version>) -> bool {
        let written = |version: &Version| version.content.written();
        self.used += version.as_ref().map_or(0, written);
        let old = match version {
            Some(version) => self.blobs.insert(key.clone(), version),
            None => self.blobs.remove(key),
        };
        self.used -= old.as_ref().map_or(0, written);
        self.touched.push(key.clone());
        let existed = old.is_some();
        if let Some(undo) = &mut self.undo {
            undo.push((key.clone(), old));
        }
        existed
    }
}

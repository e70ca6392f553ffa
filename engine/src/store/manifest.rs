//! [`ManifestStore`] over sectors: a blob's manifest is its own record.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;

use graviton_format::record::{BLOB_MAX_LEN, ExtentRef};

use super::commit::{Done, Mutation, Shared, Work};
use super::index::{Entry, Index, holes, join};
use super::inner::Inner;
use super::read::{HeldRecord, Reader, Snapshot};
use super::record::{Details, system_time};
use super::write::{Incoming, Target, durable, put_outcome, unexpected};
use crate::port::blob::{ReadBlob, check_attributes};
use crate::port::manifest::source_range;
use crate::port::{
    AttributesUpdate, BinaryKey, BlobManifest, ETag, EntryContent, ListRequest, ListToken,
    Location, ManifestEntry, ManifestError, ManifestItem, ManifestOp, ManifestPage, ManifestStore,
    NewEntry, NewManifest, Op, Precondition, PutManifestOptions, PutOptions, PutOutcome, Span,
    StorageError, UpdateOptions,
};

/// Manifests of a listing that are read at once.
const READ_AHEAD: usize = 16;
/// Entries that the manifests of a page have, about, at most.
const PAGE_ENTRIES_MAX: usize = 1 << 16;

/// The manifests of a store.
#[derive(Debug)]
struct StoreManifests {
    inner: Arc<Inner>,
}

impl Inner {
    /// See [`MutableObjectStore::manifests`](crate::port::MutableObjectStore::manifests).
    pub fn manifests(self: &Arc<Self>) -> Arc<dyn ManifestStore> {
        let inner = Arc::clone(self);
        Arc::new(StoreManifests { inner })
    }

    /// Waits until what was submitted before is decided, if anything is under way: a put that nobody
    /// waits for is not to land after what comes now.
    async fn settle_queues(self: &Arc<Self>) {
        let is_idle = self.commits.lock().is_all_idle();
        if !is_idle {
            self.after_what_is_queued().await;
        }
    }

    fn read_manifest(&self, key: &BinaryKey) -> ManifestOp<BlobManifest> {
        let held = match self.hold(key) {
            Ok(held) => held,
            Err(error) => return Op::fail(ManifestError::from(error)),
        };
        Op::start(async move {
            let details = held.details().await?;
            Ok(manifest(&held, &details))
        })
    }

    async fn list_manifests(
        self: &Arc<Self>,
        request: &ListRequest,
    ) -> Result<ManifestPage, ManifestError> {
        let listed = self.list(request)?;
        let mut page = ManifestPage {
            common_prefixes: listed.common_prefixes,
            next: listed.next,
            ..ManifestPage::default()
        };
        let mut keys = listed.blobs.into_iter().map(|blob| blob.key);
        let mut ahead = VecDeque::new();
        let mut entries = 0;
        loop {
            while ahead.len() < READ_AHEAD
                && let Some(key) = keys.next()
            {
                let read = self.read_manifest(&key);
                ahead.push_back((key, read));
            }
            let Some((key, read)) = ahead.pop_front() else {
                return Ok(page);
            };
            if entries >= PAGE_ENTRIES_MAX {
                let next = key.as_bytes();
                page.common_prefixes
                    .retain(|prefix| prefix.as_slice() < next);
                page.next = Some(ListToken::resume_at(next.to_vec()));
                return Ok(page);
            }
            match read.await {
                // It was deleted meanwhile.
                Err(ManifestError::NotFound { .. }) => {}
                manifest => {
                    entries += manifest.as_ref().map_or(0, |found| found.entries.len());
                    page.items.push(ManifestItem { key, manifest });
                }
            }
        }
    }

    fn update_attributes(
        self: &Arc<Self>,
        key: &BinaryKey,
        update: AttributesUpdate,
        options: UpdateOptions,
    ) -> ManifestOp<PutOutcome> {
        let limit = self.options.max_attributes_len;
        if let Err(error) = self.check_access().and_then(|()| update.check(limit)) {
            return Op::fail(ManifestError::from(error));
        }
        let (inner, key) = (Arc::clone(self), key.clone());
        self.start_in_order(vec![key.clone()], async move {
            inner.settle_queues().await;
            loop {
                let held = inner.hold(&key)?;
                let version = held.entry.lsn;
                if !options.precondition.holds(Some(version)) {
                    let actual = Some(ETag::of_version(version));
                    return Err(StorageError::PreconditionFailed { key, actual }.into());
                }
                let details = held.details_to_copy().await?;
                let now = inner.now();
                let Some(details) = updated(&held.entry, details, &update, now, limit)? else {
                    if durable(options.durability) {
                        // What was written before may not be as durable yet.
                        inner.submit(held.number, Work::Sync, true).await?;
                    }
                    return Ok(PutOutcome {
                        etag: ETag::of_version(version),
                        version,
                        size: held.entry.size,
                    });
                };
                let mutation = Mutation::Copy {
                    source: key.clone(),
                    expected: version,
                    source_precondition: options.precondition,
                    target: key.clone(),
                    target_precondition: Precondition::None,
                    meta: details.encode(),
                    life: details.life,
                    time: now,
                    rename: false,
                };
                let number = held.number;
                drop(held);
                let work = Work::Mutations(vec![mutation]);
                match inner
                    .submit(number, work, durable(options.durability))
                    .await?
                {
                    Done::Mutations(outcomes) => {
                        let outcome = outcomes.first().and_then(put_outcome);
                        return Ok(outcome.ok_or_else(unexpected)?);
                    }
                    // It has another version by now.
                    Done::Changed => {}
                    _ => return Err(unexpected().into()),
                }
            }
        })
    }

    fn put_manifest(
        self: &Arc<Self>,
        key: &BinaryKey,
        new: &NewManifest,
        options: PutManifestOptions,
    ) -> ManifestOp<PutOutcome> {
        if let Err(error) = self.check_manifest(key, new, &options) {
            return Op::fail(error);
        }
        let mut keys = vec![key.clone()];
        keys.extend(new.entries.iter().filter_map(source).cloned());
        keys.sort_unstable();
        keys.dedup();
        let (inner, key, new) = (Arc::clone(self), key.clone(), new.clone());
        self.start_in_order(keys, async move {
            inner.settle_queues().await;
            loop {
                inner.check_target(&key, &options)?;
                let number = inner.place_manifest(&key, &new)?;
                let plan = inner.plan_manifest(&key, &new, number)?;
                // They hold what is copied until it is named.
                let (mutation, _copies) = inner
                    .compose(&key, new.size, number, plan, &options)
                    .await?;
                let work = Work::Mutations(vec![mutation]);
                let ticket = inner.submit(number, work, durable(options.durability));
                return match ticket.await {
                    Ok(Done::Mutations(outcomes)) => {
                        let outcome = outcomes.first().and_then(put_outcome);
                        Ok(outcome.ok_or_else(unexpected)?)
                    }
                    // What it is to be made of has other versions by now, or lies elsewhere.
                    Ok(Done::Changed) => continue,
                    Ok(_) => Err(unexpected().into()),
                    Err(StorageError::PreconditionFailed { key, actual }) => {
                        Err(refused(key, actual, &options))
                    }
                    Err(error) => Err(error.into()),
                };
            }
        })
    }

    fn check_manifest(
        &self,
        key: &BinaryKey,
        new: &NewManifest,
        options: &PutManifestOptions,
    ) -> Result<(), ManifestError> {
        self.check_access()?;
        check_attributes(&options.attributes, self.options.max_attributes_len)?;
        if new.size > BLOB_MAX_LEN {
            let (key, size, limit) = (key.clone(), new.size, BLOB_MAX_LEN);
            return Err(StorageError::TooLarge { key, size, limit }.into());
        }
        new.check(key)
    }

    /// Sees whether a manifest may be put as it is now: that is decided once more when it is committed.
    fn check_target(
        &self,
        key: &BinaryKey,
        options: &PutManifestOptions,
    ) -> Result<(), ManifestError> {
        let found = self.index.read().lookup(key.stored())?;
        let current = found.map(|(_, entry)| entry.lsn);
        if precondition(options).holds(current) {
            return Ok(());
        }
        Err(refused(key.clone(), current.map(ETag::of_version), options))
    }

    /// The sector that a new blob is to lie in: where most of what it can share is, if it takes records
    /// and has room for the rest.
    fn place_manifest(&self, key: &BinaryKey, new: &NewManifest) -> Result<usize, StorageError> {
        let most = {
            let index = self.index.read();
            let mut shareable: BTreeMap<usize, u64> = BTreeMap::new();
            let mut copied = 0;
            for (entry, source) in new.entries.iter().zip(new.entries.iter().map(source)) {
                let Some(source) = source else { continue };
                copied += entry.span.len();
                if let Some((number, found)) = index.lookup(source.stored())?
                    && found.extents.is_some()
                {
                    *shareable.entry(number).or_default() += entry.span.len();
                }
            }
            let fits = |(number, shared): &(usize, u64)| {
                let is_healthy = self.sectors[*number].poisoned().is_none();
                is_healthy && self.available(&index, *number) >= copied - shared
            };
            let fitting = shareable.into_iter().filter(fits);
            fitting.max_by_key(|(_, shared)| *shared)
        };
        match most {
            Some((number, _)) => Ok(number),
            None => self.place(key, new.size),
        }
    }

    /// Sees what a new blob in sector `number` is made of, as it is now.
    fn plan_manifest(
        &self,
        key: &BinaryKey,
        new: &NewManifest,
        number: usize,
    ) -> Result<Plan, ManifestError> {
        let index = self.index.read();
        let mut plan = Plan::default();
        for entry in &new.entries {
            self.plan_entry(&index, number, entry, &mut plan)
                .map_err(|error| ManifestError::unavailable(key, entry.span, error))?;
        }
        Ok(plan)
    }

    fn plan_entry(
        &self,
        index: &Index,
        number: usize,
        entry: &NewEntry,
        plan: &mut Plan,
    ) -> Result<(), StorageError> {
        let (key, start, precondition) = match &entry.content {
            EntryContent::Hole => {
                let pieces = holes(entry.span.len()).collect();
                plan.parts.push(Part::Pieces(pieces));
                return Ok(());
            }
            EntryContent::Blob {
                key,
                start,
                precondition,
            } => (key, *start, *precondition),
        };
        let Some((holder, found)) = index.lookup(key.stored())? else {
            return Err(StorageError::NotFound { key: key.clone() });
        };
        if !precondition.holds(Some(found.lsn)) {
            let (key, actual) = (key.clone(), Some(ETag::of_version(found.lsn)));
            return Err(StorageError::PreconditionFailed { key, actual });
        }
        let range = source_range(key, start, entry.span.len(), found.size)?;
        plan.sources.insert(key.clone(), found.lsn);
        if holder == number && found.extents.is_some() {
            let pieces = found.pieces_of(range);
            plan.parts.push(Part::Pieces(pieces.clone()));
            let key = key.clone();
            plan.shared.push(Shared { key, range, pieces });
            return Ok(());
        }
        let missing = found.missing();
        let written = missing.complement(range);
        let within = missing.intersection(&range.into());
        let parts = written.spans().iter().map(|span| (span, true));
        let mut parts: Vec<_> = parts
            .chain(within.spans().iter().map(|span| (span, false)))
            .collect();
        parts.sort_by_key(|(span, _)| span.start());
        for (&span, is_written) in parts {
            if !is_written {
                plan.parts.push(Part::Pieces(holes(span.len()).collect()));
                continue;
            }
            plan.copied += span.len();
            let snapshot = self.pinned(index, holder, key, found.clone(), span.into())?;
            plan.parts.push(Part::Copied {
                entry: entry.span,
                snapshot,
            });
        }
        Ok(())
    }

    /// Copies what is to be copied, and makes the mutation that puts the manifest. What holds the copies
    /// must live until that is done.
    async fn compose(
        self: &Arc<Self>,
        key: &BinaryKey,
        size: u64,
        number: usize,
        plan: Plan,
        options: &PutManifestOptions,
    ) -> Result<(Mutation, Vec<Incoming>), ManifestError> {
        let mut pieces: Vec<ExtentRef> = Vec::new();
        let mut copies: Vec<Incoming> = Vec::new();
        // What is known not to fit is refused at first.
        let mut needed = Some(plan.copied);
        let mut is_copying = false;
        for part in plan.parts {
            match part {
                Part::Pieces(more) => {
                    if std::mem::take(&mut is_copying) {
                        pieces.extend(end_copy(&mut copies).await?);
                    }
                    pieces.extend(more);
                }
                Part::Copied { entry, snapshot } => {
                    if !std::mem::replace(&mut is_copying, true) {
                        let (target, options) = (Target::of_blob(key), PutOptions::default());
                        copies.push(Incoming::new(self, target, number, options, needed.take())?);
                    }
                    let mut reader = Reader::new(Arc::new(snapshot));
                    let unavailable = |error| ManifestError::unavailable(key, entry, error);
                    while let Some(bytes) = reader.next().await.map_err(unavailable)? {
                        if let Some(copy) = copies.last_mut() {
                            copy.take_all(&bytes).await?;
                        }
                    }
                }
            }
        }
        if is_copying {
            pieces.extend(end_copy(&mut copies).await?);
        }
        let details = Details {
            attributes: options.attributes.clone(),
            ..Details::default()
        };
        let mutation = Mutation::Compose {
            target: key.clone(),
            precondition: precondition(options),
            sources: plan.sources.into_iter().collect(),
            shared: plan.shared,
            manifest: (size, join(pieces).into()),
            meta: details.encode(),
            time: self.now(),
        };
        Ok((mutation, copies))
    }
}

/// What a new blob is made of.
#[derive(Default)]
struct Plan {
    /// In order.
    parts: Vec<Part>,
    /// The blobs that it is made of, and their versions.
    sources: BTreeMap<BinaryKey, u64>,
    shared: Vec<Shared>,
    /// Bytes that are copied.
    copied: u64,
}

enum Part {
    /// Holes, and payload that is shared.
    Pieces(Vec<ExtentRef>),
    /// Payload that is copied for an entry.
    Copied { entry: Span, snapshot: Snapshot },
}

/// Ends the copy that was begun last: its pieces.
async fn end_copy(copies: &mut [Incoming]) -> Result<Vec<ExtentRef>, StorageError> {
    let Some(copy) = copies.last_mut() else {
        return Ok(Vec::new());
    };
    let manifest = poll_fn(|context| copy.poll_pieces(context)).await?;
    Ok(manifest.extents)
}

fn must_be_new(options: &PutManifestOptions) -> bool {
    options.precondition == Precondition::None && !options.replace
}

/// What must hold of the key that a manifest is put under.
fn precondition(options: &PutManifestOptions) -> Precondition {
    match must_be_new(options) {
        true => Precondition::IfAbsent,
        false => options.precondition,
    }
}

/// It did not hold.
fn refused(key: BinaryKey, actual: Option<ETag>, options: &PutManifestOptions) -> ManifestError {
    match actual {
        Some(etag) if must_be_new(options) => ManifestError::Exists { key, etag },
        _ => StorageError::PreconditionFailed { key, actual }.into(),
    }
}

/// The blob that an entry names.
fn source(entry: &NewEntry) -> Option<&BinaryKey> {
    match &entry.content {
        EntryContent::Blob { key, .. } => Some(key),
        EntryContent::Hole => None,
    }
}

/// What an update makes of what is known of a version; `None` if that stays as it is.
fn updated(
    entry: &Entry,
    mut details: Details,
    update: &AttributesUpdate,
    now: u64,
    limit: usize,
) -> Result<Option<Details>, StorageError> {
    let created = details.created(entry);
    let before = details.advertised(created);
    let after = update.apply(&before, created, system_time(now), limit)?;
    Ok(after.map(|after| {
        details.advertise(&after, created);
        details.life = Some(entry.life());
        details
    }))
}

fn manifest(held: &HeldRecord, details: &Details) -> BlobManifest {
    let entry = &held.entry;
    let created = details.created(entry);
    BlobManifest::new(
        held.key.clone(),
        entry.lsn,
        (created, system_time(entry.time)),
        entries(held.sector.number(), entry),
        &details.digests,
        details.advertised(created),
    )
}

fn entries(sector: u16, entry: &Entry) -> Vec<ManifestEntry> {
    let mut position = 0;
    let pieces = entry.pieces_of(Span::first(entry.size)).into_iter();
    let entry = |piece: ExtentRef| {
        let span = Span::at(position, piece.length.get().into()).ok()?;
        position = span.end();
        let location = match piece.is_hole() {
            true => Location::Hole,
            false => Location::Payload {
                sector,
                lsn: piece.lsn.get(),
                offset: piece.offset.get().into(),
            },
        };
        Some(ManifestEntry { span, location })
    };
    pieces.filter_map(entry).collect()
}

impl ManifestStore for StoreManifests {
    fn put(
        &self,
        key: &BinaryKey,
        manifest: &NewManifest,
        options: PutManifestOptions,
    ) -> ManifestOp<PutOutcome> {
        self.inner.put_manifest(key, manifest, options)
    }

    fn get(&self, key: &BinaryKey) -> ManifestOp<BlobManifest> {
        self.inner.read_manifest(key)
    }

    fn list(&self, request: ListRequest) -> ManifestOp<ManifestPage> {
        let inner = Arc::clone(&self.inner);
        Op::start(async move { inner.list_manifests(&request).await })
    }

    fn update_attributes(
        &self,
        key: &BinaryKey,
        update: AttributesUpdate,
        options: UpdateOptions,
    ) -> ManifestOp<PutOutcome> {
        self.inner.update_attributes(key, update, options)
    }
}

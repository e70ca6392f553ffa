//! [`ManifestStore`] over sectors: a blob's manifest is its own record.

use std::collections::btree_map::Entry::{Occupied, Vacant};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;

use graviton_format::record::{BLOB_MAX_LEN, ExtentRef};

use super::assembly::check_pieces;
use super::commit::{Mutation, PlannedSource};
use super::index::{Entry, Found, holes, join, joined, punch};
use super::inner::Inner;
use super::read::{HeldRecord, Reader, Snapshot};
use super::record::{Details, system_time};
use super::set::SectorSet;
use super::write::{self, Incoming, Target, durable};
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
/// Bytes that the manifests of a page take, about, at most; one may take more.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// How often a manifest is planned anew before others have to wait for it: each time payload may be
/// copied.
const TRIES_MAX: usize = 2;

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

    fn get_manifest(self: &Arc<Self>, key: &BinaryKey) -> ManifestOp<BlobManifest> {
        let held = match self.check_open().and_then(|()| self.hold(key)) {
            Ok(held) => held,
            Err(error) => return Op::fail(ManifestError::from(error)),
        };
        Op::start(read_manifest(held))
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
        let mut ahead = VecDeque::new();
        let mut bytes = 0;
        for key in listed.blobs.into_iter().map(|blob| blob.key) {
            let held = match self.hold(&key) {
                // It was deleted meanwhile.
                Err(StorageError::NotFound { .. }) => continue,
                held => held?,
            };
            bytes += bytes_of(&held.entry);
            if bytes > PAGE_BYTES_MAX && !(ahead.is_empty() && page.items.is_empty()) {
                let next = key.as_bytes();
                page.common_prefixes
                    .retain(|prefix| prefix.as_slice() < next);
                page.next = Some(ListToken::resume_at(next.to_vec()));
                break;
            }
            ahead.push_back((key, Op::start(read_manifest(held))));
            if ahead.len() == READ_AHEAD {
                page.items.extend(take_item(&mut ahead).await);
            }
        }
        while !ahead.is_empty() {
            page.items.extend(take_item(&mut ahead).await);
        }
        Ok(page)
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
        let (inner, keys) = (Arc::clone(self), vec![key.clone()]);
        let update = Arc::new(update);
        self.start_in_order(keys.clone(), async move {
            let attempt = {
                let (inner, keys) = (Arc::clone(&inner), keys.clone());
                move || {
                    let (inner, key) = (Arc::clone(&inner), keys[0].clone());
                    let update = Arc::clone(&update);
                    async move { inner.try_update(&key, &update, options).await }
                }
            };
            inner.until_settled(keys, write::TRIES_MAX, attempt).await
        })
    }

    /// `None`: it has another version by now.
    async fn try_update(
        self: &Arc<Self>,
        key: &BinaryKey,
        update: &AttributesUpdate,
        options: UpdateOptions,
    ) -> Result<Option<PutOutcome>, ManifestError> {
        let held = match self.hold(key) {
            Err(refusal @ StorageError::NotFound { .. }) => {
                return self.refuse(key, None, refusal.into()).await;
            }
            held => held?,
        };
        let version = held.entry.lsn;
        if !options.precondition.holds(Some(version)) {
            let actual = Some(ETag::of_version(version));
            let refusal = StorageError::PreconditionFailed {
                key: key.clone(),
                actual,
            };
            return self.refuse(key, Some(version), refusal.into()).await;
        }
        let details = held.details_to_copy().await?;
        let (now, limit) = (self.now(), self.options.max_attributes_len);
        let details = match updated(&held.entry, details, update, now, limit) {
            Ok(Some(details)) => details,
            Ok(None) => {
                // What was written before may not be as durable yet.
                let is_durable = durable(options.durability);
                let is_so = self.is_still(key, Some(version), is_durable).await?;
                return Ok(is_so.then_some(PutOutcome {
                    etag: ETag::of_version(version),
                    version,
                    size: held.entry.size,
                }));
            }
            Err(refusal) => return self.refuse(key, Some(version), refusal.into()).await,
        };
        let sectors = held.to_share()?;
        drop(held);
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
        let updated = self.try_planned(sectors, mutation, options.durability);
        Ok(updated.await?)
    }

    /// A refusal for what was seen of a key, if that is still so; else `None`.
    async fn refuse<T>(
        self: &Arc<Self>,
        key: &BinaryKey,
        seen: Option<u64>,
        refusal: ManifestError,
    ) -> Result<Option<T>, ManifestError> {
        match self.is_still(key, seen, false).await? {
            true => Err(refusal),
            false => Ok(None),
        }
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
        let inner = Arc::clone(self);
        let asked = Arc::new((key.clone(), new.clone(), options));
        self.start_in_order(keys.clone(), async move {
            let attempt = {
                let inner = Arc::clone(&inner);
                move || {
                    let (inner, asked) = (Arc::clone(&inner), Arc::clone(&asked));
                    async move {
                        let (key, new, options) = &*asked;
                        inner.try_manifest(key, new, options).await
                    }
                }
            };
            inner.until_settled(keys, TRIES_MAX, attempt).await
        })
    }

    /// `None`: what it is to be made of has other versions by now, or lies elsewhere.
    async fn try_manifest(
        self: &Arc<Self>,
        key: &BinaryKey,
        new: &NewManifest,
        options: &PutManifestOptions,
    ) -> Result<Option<PutOutcome>, ManifestError> {
        let found = self.index.read().lookup(key.stored())?;
        let current = found.map(|found| found.entry.lsn);
        if !options.required().holds(current) {
            let refusal = options.refused(key, current.map(ETag::of_version));
            return self.refuse(key, current, refusal).await;
        }
        let sectors = self.place_manifest(key, new)?;
        let plan = match self.plan_manifest(key, new, sectors)? {
            Ok(plan) => plan,
            Err(Missing { source, seen, why }) => return self.refuse(&source, seen, why).await,
        };
        // It holds what is copied until that is named.
        let (mutation, copies) = self.compose(key, new.size, sectors, plan, options).await?;
        let planned = self.try_planned(copies.sectors(), mutation, options.durability);
        match planned.await {
            Ok(Some(made)) => {
                self.merge_fragments(key).await;
                Ok(Some(made))
            }
            Err(StorageError::PreconditionFailed { key, actual }) => {
                Err(options.refused(&key, actual))
            }
            outcome => Ok(outcome?),
        }
    }

    fn check_manifest(
        &self,
        key: &BinaryKey,
        new: &NewManifest,
        options: &PutManifestOptions,
    ) -> Result<(), ManifestError> {
        self.check_access()?;
        new.check(key)?;
        check_attributes(&options.attributes, self.options.max_attributes_len)?;
        if new.size > BLOB_MAX_LEN {
            let (key, size, limit) = (key.clone(), new.size, BLOB_MAX_LEN);
            return Err(StorageError::TooLarge { key, size, limit }.into());
        }
        Ok(())
    }

    /// The sectors that a new blob is to lie in: where most of what it can share is, if they take records
    /// and have room for the rest.
    fn place_manifest(
        &self,
        key: &BinaryKey,
        new: &NewManifest,
    ) -> Result<SectorSet, StorageError> {
        let mut bytes: BTreeMap<&BinaryKey, u64> = BTreeMap::new();
        for entry in &new.entries {
            if let Some(source) = source(entry) {
                *bytes.entry(source).or_default() += entry.span.len();
            }
        }
        let copied: u64 = bytes.values().sum();
        let writable = self.keepers();
        let mut sources: BTreeMap<SectorSet, u64> = BTreeMap::new();
        for (source, bytes) in bytes {
            if let Some(found) = self.index.read().alike(source.stored())?
                && found.entry.extents.is_some()
            {
                *sources.entry(found.holders.within(writable)).or_default() += bytes;
            }
        }
        // What lies in more sectors can be shared in some of them.
        let shared = |sectors: SectorSet| -> u64 {
            let larger = sources.iter().filter(|(of, _)| sectors.is_within(**of));
            larger.map(|(_, bytes)| bytes).sum()
        };
        let most = {
            let commits = self.commits.lock();
            let index = self.index.read();
            let fits = |&(sectors, shared): &(SectorSet, u64)| {
                let room = |number| {
                    let available = self.available(&index, number);
                    available.saturating_sub(commits.pending(number))
                };
                sectors.iter().all(|number| room(number) >= copied - shared)
            };
            let wanted = self.replicas.min(writable.len());
            let places = sources.keys().filter(|sectors| sectors.len() >= wanted);
            let fitting = places
                .map(|&sectors| (sectors, shared(sectors)))
                .filter(fits);
            fitting.max_by_key(|(sectors, shared)| (*shared, sectors.len()))
        };
        match most {
            Some((sectors, _)) => Ok(sectors),
            None => self.place(key, copied, self.replicas),
        }
    }

    /// Sees what a new blob in these sectors is made of, as it is now.
    fn plan_manifest(
        self: &Arc<Self>,
        key: &BinaryKey,
        new: &NewManifest,
        sectors: SectorSet,
    ) -> Result<Result<Plan, Missing>, ManifestError> {
        let index = self.index.read();
        let mut sources: BTreeMap<&BinaryKey, PlannedBlob> = BTreeMap::new();
        let mut plan = Plan::default();
        for entry in &new.entries {
            let EntryContent::Blob {
                key: source,
                start,
                precondition,
            } = &entry.content
            else {
                plan.push_hole(entry.span.len());
                continue;
            };
            let missing = |seen, error| Missing {
                source: source.clone(),
                seen,
                why: ManifestError::unavailable(key, entry.span, error),
            };
            let planned = match sources.entry(source) {
                Occupied(planned) => planned.into_mut(),
                Vacant(place) => match index.alike(source.stored())? {
                    Some(found) => place.insert(PlannedBlob::new(found)),
                    None => {
                        let error = StorageError::NotFound {
                            key: source.clone(),
                        };
                        return Ok(Err(missing(None, error)));
                    }
                },
            };
            let version = planned.found.entry.lsn;
            if !precondition.holds(Some(version)) {
                let error = StorageError::PreconditionFailed {
                    key: source.clone(),
                    actual: Some(ETag::of_version(version)),
                };
                return Ok(Err(missing(Some(version), error)));
            }
            let range =
                match source_range(source, *start, entry.span.len(), planned.found.entry.size) {
                    Ok(range) => range,
                    Err(error) => return Ok(Err(missing(Some(version), error))),
                };
            // What is too much is not gathered to the end.
            self.check_fragments(key, new.size, sectors, plan.fragments)?;
            let of = &planned.found;
            if sectors.is_within(of.holders) && of.entry.extents.is_some() {
                planned.is_shared = true;
                let pieces = planned.pieces_of(range);
                plan.push_pieces(pieces);
                continue;
            }
            for (span, pieces) in planned.runs_of(range) {
                if pieces.iter().all(ExtentRef::is_hole) {
                    plan.push_pieces(pieces);
                    continue;
                }
                let of = &planned.found;
                let snapshot = self.pinned_pieces(&index, source, of, span, &pieces)?;
                plan.push_copy(entry.span, snapshot);
            }
        }
        let planned = sources.into_iter().map(|(key, planned)| PlannedSource {
            key: key.clone(),
            version: planned.found.entry.lsn,
            shared: planned.found.entry.extents.filter(|_| planned.is_shared),
        });
        plan.sources = planned.collect();
        self.check_fragments(key, new.size, sectors, plan.fragments)?;
        Ok(Ok(plan))
    }

    /// Whether a new blob of `size` bytes may have so many pieces.
    fn check_fragments(
        &self,
        key: &BinaryKey,
        size: u64,
        sectors: SectorSet,
        fragments: usize,
    ) -> Result<(), StorageError> {
        let geometry = self.geometry(sectors.first().unwrap_or(0));
        check_pieces(key, self.options.max_fragments, &geometry, size, fragments)
    }

    /// Copies what is to be copied, and makes the mutation that puts the manifest. What holds the copies
    /// must live until that is done.
    async fn compose(
        self: &Arc<Self>,
        key: &BinaryKey,
        size: u64,
        sectors: SectorSet,
        plan: Plan,
        options: &PutManifestOptions,
    ) -> Result<(Mutation, Incoming), ManifestError> {
        let (target, put) = (Target::of_blob(key.clone()), PutOptions::default());
        // What is known not to fit is refused at first.
        let mut copies = Incoming::new(self, target, sectors, put, Some(plan.copied))?;
        let mut parts = Vec::with_capacity(plan.parts.len());
        for part in plan.parts {
            parts.push(match part {
                Part::Pieces(pieces) => Composed::Pieces(pieces),
                Part::Copied { entry, snapshot } => {
                    let unavailable = |error| ManifestError::unavailable(key, entry, error);
                    let length = snapshot.range.end - snapshot.range.start;
                    let mut reader = Reader::new(Arc::new(snapshot));
                    while let Some(bytes) = reader.next().await.map_err(unavailable)? {
                        copies.take_all(&bytes).await?;
                    }
                    Composed::Copied(length)
                }
            });
        }
        let copied = poll_fn(|context| copies.poll_pieces(context))
            .await?
            .extents;
        let starts = starts(&copied);
        let mut position = 0;
        let mut pieces: Vec<ExtentRef> = Vec::new();
        for part in parts {
            match part {
                Composed::Pieces(more) => pieces.extend(more),
                Composed::Copied(length) => {
                    let range = Span::at(position, length)?;
                    pieces.extend(within(&copied, &starts, range));
                    position += length;
                }
            }
        }
        let pieces = join(pieces);
        self.check_fragments(key, size, sectors, pieces.len())?;
        let details = Details {
            attributes: options.attributes.clone(),
            ..Details::default()
        };
        let mutation = Mutation::Compose {
            target: key.clone(),
            precondition: options.required(),
            sources: plan.sources,
            manifest: (size, pieces.into()),
            meta: details.encode(),
            time: self.now(),
        };
        Ok((mutation, copies))
    }
}

/// What a new blob can't be made of.
struct Missing {
    source: BinaryKey,
    /// The version that it was seen to have.
    seen: Option<u64>,
    why: ManifestError,
}

/// A blob that another is to be made of.
struct PlannedBlob {
    found: Found,
    /// Its payload is shared.
    is_shared: bool,
    /// Where its pieces begin.
    starts: Vec<u64>,
}

impl PlannedBlob {
    fn new(found: Found) -> Self {
        Self {
            is_shared: false,
            starts: starts(found.entry.extents.as_deref().unwrap_or_default()),
            found,
        }
    }

    /// The pieces that make up a range of it; it has some.
    fn pieces_of(&self, range: Span) -> Vec<ExtentRef> {
        let pieces = self.found.entry.extents.as_deref().unwrap_or_default();
        within(pieces, &self.starts, range)
    }

    /// The runs of a range of it that were written, and those that were not, with their pieces.
    fn runs_of(&self, range: Span) -> Vec<(Span, Vec<ExtentRef>)> {
        if self.found.entry.extents.is_none() {
            return vec![(range, self.found.entry.pieces_of(range))];
        }
        let pieces = self.pieces_of(range);
        let mut position = range.start();
        let runs = pieces.chunk_by(|one, next| one.is_hole() == next.is_hole());
        let run = |pieces: &[ExtentRef]| {
            let lengths = pieces.iter().map(|piece| u64::from(piece.length.get()));
            let span = Span::at(position, lengths.sum()).ok()?;
            position = span.end();
            Some((span, pieces.to_vec()))
        };
        runs.filter_map(run).collect()
    }
}

/// Where pieces begin, one behind the other.
fn starts(pieces: &[ExtentRef]) -> Vec<u64> {
    let mut position = 0;
    let start = |piece: &ExtentRef| {
        let start = position;
        position += u64::from(piece.length.get());
        start
    };
    pieces.iter().map(start).collect()
}

/// Those of the pieces, which begin at `starts`, that make up a range.
fn within(pieces: &[ExtentRef], starts: &[u64], range: Span) -> Vec<ExtentRef> {
    let after = starts.partition_point(|start| *start <= range.start());
    let Some(first) = after.checked_sub(1) else {
        return Vec::new();
    };
    let shift = starts[first];
    match Span::new(range.start() - shift, range.end() - shift) {
        Ok(range) => punch(&pieces[first..], range, &[]),
        Err(_) => Vec::new(),
    }
}

/// What a new blob is made of.
#[derive(Default)]
struct Plan {
    /// In order.
    parts: Vec<Part>,
    /// The blobs that it is made of.
    sources: Vec<PlannedSource>,
    /// Bytes that are copied.
    copied: u64,
    /// In how many pieces it will be, at least.
    fragments: usize,
    /// The last of them, unless it is copied.
    last: Option<ExtentRef>,
}

enum Part {
    /// Holes, and payload that is shared.
    Pieces(Vec<ExtentRef>),
    /// Payload that is copied for an entry.
    Copied { entry: Span, snapshot: Snapshot },
}

/// The same, once it is copied.
enum Composed {
    Pieces(Vec<ExtentRef>),
    /// So many of the bytes that were copied, behind those before.
    Copied(u64),
}

impl Plan {
    fn push_hole(&mut self, length: u64) {
        self.push_pieces(holes(length).collect());
    }

    fn push_pieces(&mut self, pieces: Vec<ExtentRef>) {
        let both = self.last.zip(pieces.first().copied());
        let continues = both.is_some_and(|(last, first)| joined(&last, &first).is_some());
        self.fragments += pieces.len() - usize::from(continues);
        self.last = pieces.last().copied();
        self.parts.push(Part::Pieces(pieces));
    }

    fn push_copy(&mut self, entry: Span, snapshot: Snapshot) {
        self.copied += snapshot.range.end - snapshot.range.start;
        // What is copied lies together.
        let continues = matches!(self.parts.last(), Some(Part::Copied { .. }));
        self.fragments += usize::from(!continues);
        self.last = None;
        self.parts.push(Part::Copied { entry, snapshot });
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

/// About how many bytes the manifest of a version takes in memory.
fn bytes_of(entry: &Entry) -> usize {
    let pieces = entry.extents.as_ref().map_or(1, |extents| extents.len());
    size_of::<BlobManifest>() + pieces * size_of::<ManifestEntry>() + entry.meta_length as usize
}

async fn read_manifest(held: HeldRecord) -> Result<BlobManifest, ManifestError> {
    let details = held.details().await?;
    Ok(manifest(&held, &details))
}

/// The first of the manifests that are being read.
async fn take_item(
    ahead: &mut VecDeque<(BinaryKey, ManifestOp<BlobManifest>)>,
) -> Option<ManifestItem> {
    let (key, read) = ahead.pop_front()?;
    let manifest = read.await;
    Some(ManifestItem { key, manifest })
}

fn manifest(held: &HeldRecord, details: &Details) -> BlobManifest {
    let entry = &held.entry;
    let created = details.created(entry);
    BlobManifest::new(
        held.key.clone(),
        entry.lsn,
        (created, system_time(entry.time)),
        entries(held.holders, entry),
        &details.digests,
        details.advertised(created),
    )
}

fn entries(holders: SectorSet, entry: &Entry) -> Vec<ManifestEntry> {
    let sector = u16::try_from(holders.first().unwrap_or(0)).unwrap_or(u16::MAX);
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
        self.inner.get_manifest(key)
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

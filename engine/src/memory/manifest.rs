//! [`ManifestStore`] in memory.

use std::sync::Arc;

use super::Shared;
use super::content::Content;
use super::state::{State, Version};
use crate::port::blob::check_attributes;
use crate::port::manifest::source_range;
use crate::port::{
    AttributesUpdate, BinaryKey, BlobManifest, ETag, EntryContent, ListEntry, ListRequest,
    Location, ManifestEntry, ManifestError, ManifestItem, ManifestOp, ManifestPage, ManifestStore,
    NewEntry, NewManifest, Op, Precondition, PutManifestOptions, PutOptions, PutOutcome, Span,
    StorageError, UpdateOptions,
};

/// The manifests of a store.
#[derive(Debug)]
pub(super) struct MemoryManifests {
    pub(super) shared: Arc<Shared>,
}

fn manifest(key: &BinaryKey, version: &Version) -> BlobManifest {
    let written = version.content.written_set();
    let holes = written.complement(Span::first(version.size()));
    let place = |span: &Span| ManifestEntry {
        span: *span,
        location: Location::Payload {
            sector: 0,
            lsn: version.number,
            offset: span.start(),
        },
    };
    let hole = |span: &Span| ManifestEntry {
        span: *span,
        location: Location::Hole,
    };
    let mut entries: Vec<_> = written.spans().iter().map(place).collect();
    entries.extend(holes.spans().iter().map(hole));
    entries.sort_by_key(|entry| entry.span.start());
    BlobManifest::new(
        key.clone(),
        version.number,
        (version.created, version.modified),
        entries,
        &version.digests,
        version.advertised.clone(),
    )
}

impl State {
    /// The bytes of a new blob that an entry names.
    fn take(&self, entry: &NewEntry, into: &mut Content) -> Result<(), StorageError> {
        let (key, start, precondition) = match &entry.content {
            EntryContent::Hole => return Ok(()),
            EntryContent::Blob {
                key,
                start,
                precondition,
            } => (key, *start, *precondition),
        };
        let from = self.existing(key, precondition)?;
        let range = source_range(key, start, entry.span.len(), from.size())?;
        for &span in from.content.missing(range).complement(range).spans() {
            let at = entry.span.start() + (span.start() - range.start());
            into.write(at, from.content.read(span));
        }
        Ok(())
    }
}

impl MemoryManifests {
    fn compose(
        &self,
        key: &BinaryKey,
        new: &NewManifest,
        options: PutManifestOptions,
    ) -> Result<PutOutcome, ManifestError> {
        new.check(key)?;
        let shared = &self.shared;
        check_attributes(&options.attributes, shared.options.max_attributes_len)?;
        shared.check_size(key, new.size)?;
        let now = shared.now();
        shared.change(|state| {
            let precondition = options.required();
            let current = state.blobs.get(key).map(|version| version.number);
            if !precondition.holds(current) {
                return Err(options.refused(key, current.map(ETag::of_version)));
            }
            let mut content = Content::hole(new.size);
            for entry in &new.entries {
                let taken = state.take(entry, &mut content);
                taken.map_err(|error| ManifestError::unavailable(key, entry.span, error))?;
            }
            let put = PutOptions {
                precondition,
                attributes: options.attributes,
                ..PutOptions::default()
            };
            Ok(state.put(key, content, put, now)?)
        })
    }

    fn update(
        &self,
        key: &BinaryKey,
        update: &AttributesUpdate,
        options: UpdateOptions,
    ) -> Result<PutOutcome, ManifestError> {
        let limit = self.shared.options.max_attributes_len;
        update.check(limit)?;
        let now = self.shared.now();
        self.shared.change(|state| {
            let mut version = state.existing(key, options.precondition)?.clone();
            match update.apply(&version.advertised, version.created, now, limit)? {
                None => return Ok(version.outcome()),
                Some(advertised) => version.advertised = advertised,
            }
            version.modified = now;
            version.completed = None;
            Ok(state.install(key, version)?)
        })
    }
}

impl ManifestStore for MemoryManifests {
    fn put(
        &self,
        key: &BinaryKey,
        manifest: &NewManifest,
        options: PutManifestOptions,
    ) -> ManifestOp<PutOutcome> {
        Op::ready(self.compose(key, manifest, options))
    }

    fn get(&self, key: &BinaryKey) -> ManifestOp<BlobManifest> {
        let state = self.shared.state.lock();
        let version = state.existing(key, Precondition::None);
        Op::ready(
            version
                .map(|version| manifest(key, version))
                .map_err(Into::into),
        )
    }

    fn list(&self, request: ListRequest) -> ManifestOp<ManifestPage> {
        let state = self.shared.state.lock();
        let page = state.list(&request);
        let item = |entry: ListEntry| {
            let version = state.blobs.get(&entry.key)?;
            Some(ManifestItem {
                manifest: Ok(manifest(&entry.key, version)),
                key: entry.key,
            })
        };
        Op::ready(page.map_err(ManifestError::from).map(|page| ManifestPage {
            items: page.blobs.into_iter().filter_map(item).collect(),
            common_prefixes: page.common_prefixes,
            next: page.next,
        }))
    }

    fn update_attributes(
        &self,
        key: &BinaryKey,
        update: AttributesUpdate,
        options: UpdateOptions,
    ) -> ManifestOp<PutOutcome> {
        Op::ready(self.update(key, &update, options))
    }
}

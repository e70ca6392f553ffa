//! The part of [`Pair`] that is about manifests: blobs that are made of others, and what is said of
//! blobs.

use std::collections::BTreeMap;

use super::Subject;
use super::beside::as_storage as tracker_as_storage;
use super::history::{Compose, Update};
use super::pair::{Difference, Held, Pair, attributes, differ, expect};
use crate::port::{
    AttributesUpdate, BinaryKey, Location, ManifestEntry, ManifestError, MutableObjectStore,
    NewManifest, PutManifestOptions, PutOutcome, RangeSet, StorageError, UpdateOptions,
};

/// What the manifests say, in the words of a store.
fn as_storage(error: ManifestError) -> StorageError {
    match error {
        ManifestError::NotFound { key } => StorageError::NotFound { key },
        ManifestError::Exists { key, etag } => {
            let actual = Some(etag);
            StorageError::PreconditionFailed { key, actual }
        }
        ManifestError::NotTiled { .. } => StorageError::invalid(error.to_string()),
        ManifestError::Unavailable { error, .. } => *error,
        ManifestError::Storage(error) => error,
    }
}

/// Who set the attributes of a blob, of those that did not come with it.
pub(super) fn sources_of(
    store: &dyn MutableObjectStore,
    key: &BinaryKey,
) -> Result<BTreeMap<String, String>, StorageError> {
    let manifest = store.manifests().get(key).wait().map_err(as_storage)?;
    let advertised = manifest.advertised.into_iter();
    let named = advertised.filter(|(_, one)| !one.source.is_empty());
    Ok(named.map(|(name, one)| (name, one.source)).collect())
}

impl<S: Subject + ?Sized> Pair<'_, S> {
    /// Sets attributes in the model, which has the others, as they were set in the store.
    pub(super) fn adopt_sources(
        &self,
        key: &BinaryKey,
        held: &Held,
        mut made: PutOutcome,
    ) -> Result<PutOutcome, StorageError> {
        for (name, source) in &held.sources {
            let value = held.attributes.get(name).cloned().unwrap_or_default();
            let update = AttributesUpdate {
                source: source.clone(),
                ..AttributesUpdate::merge([(name.clone(), value)].into())
            };
            let manifests = self.model().manifests();
            let updated = manifests.update_attributes(key, update, UpdateOptions::default());
            made = updated.wait().map_err(as_storage)?;
        }
        Ok(made)
    }

    /// What the manifest and the tracker of a blob say that both have.
    pub(super) fn compare_manifest(&mut self, key: &BinaryKey) -> Result<(), Difference> {
        let Some(store) = self.mutable() else {
            return Ok(());
        };
        let look = |store: &dyn MutableObjectStore| {
            let manifest = store.manifests().get(key).wait().map_err(as_storage)?;
            let completed = store.ranges().get_completed(key).wait();
            let generation = completed.map_err(tracker_as_storage)?.generation;
            Ok((manifest, sources_of(store, key)?, generation))
        };
        let model = look(self.model());
        let Some((model, found)) = self.compare(model, look(&*store))? else {
            return Ok(());
        };
        if found.1 != model.1 {
            differ!("{key}: attributes of {:?}, expected {:?}", found.1, model.1);
        }
        let life = *self.lives().entry(model.2).or_insert(found.2);
        if life != found.2 {
            differ!("{key}: life {}, before it was {life}", found.2);
        }
        let mut end = 0;
        let mut holes = RangeSet::new();
        for entry in &found.0.entries {
            if entry.span.start() != end || entry.span.is_empty() {
                differ!("{key}: {:?} do not tile it", found.0.entries);
            }
            end = entry.span.end();
            if entry.location == Location::Hole {
                holes.insert(entry.span);
            }
        }
        let is_hole = |entry: &&ManifestEntry| entry.location == Location::Hole;
        let expected = model
            .0
            .entries
            .iter()
            .filter(is_hole)
            .map(|entry| entry.span);
        let expected: RangeSet = expected.collect();
        if end != model.0.size || holes != expected {
            differ!("{key}: entries up to {end}, holes {holes}, expected {expected}");
        }
        Ok(())
    }

    pub(super) fn compose(&mut self, compose: &Compose) -> Result<(), Difference> {
        /// So that nothing that is read whole is large.
        const LENGTH_MAX: u64 = 1 << 17;
        let Some(store) = self.mutable() else {
            return Ok(());
        };
        let key = &compose.key;
        let mut new = NewManifest::default();
        for (source, one, other) in &compose.entries {
            let of = source.as_ref().unwrap_or(key);
            let (one, other) = (self.place(of, *one), self.place(of, *other));
            let (start, end) = (one.min(other), one.max(other));
            let end = end.min(start.saturating_add(LENGTH_MAX));
            expect(match source {
                Some(source) => new.append(source, start, end).map_err(as_storage),
                None => new.append_hole(end - start).map_err(as_storage),
            })?;
        }
        if compose.gap && !new.entries.is_empty() {
            new.entries.remove(0);
        }
        let options = PutManifestOptions {
            precondition: self.precise(key, compose.condition),
            replace: compose.replace,
            durability: compose.durability,
            attributes: attributes(compose.attributes),
        };
        let mut for_store = options.clone();
        for_store.precondition = self.translate(options.precondition);
        let put = |store: &dyn MutableObjectStore, options| {
            let put = store.manifests().put(key, &new, options);
            put.wait().map_err(as_storage)
        };
        let made = put(&*store, for_store);
        match self.settle(&[key], compose.durability, made, |model| {
            put(model, options)
        })? {
            Some((model, made)) => self.record(key, &model, &made),
            None => Ok(()),
        }
    }

    pub(super) fn update(&mut self, update: &Update) -> Result<(), Difference> {
        let Some(store) = self.mutable() else {
            return Ok(());
        };
        let key = &update.key;
        let names = attributes(update.set + update.remove);
        let change = AttributesUpdate {
            replace: update.replace,
            set: attributes(update.set),
            remove: names.into_keys().skip(update.set).collect(),
            source: format!("source {}", update.set % 2),
        };
        let options = UpdateOptions {
            precondition: self.precise(key, update.condition),
            durability: update.durability,
        };
        let for_store = UpdateOptions {
            precondition: self.translate(options.precondition),
            ..options
        };
        let run = |store: &dyn MutableObjectStore, options| {
            let manifests = store.manifests();
            let updated = manifests.update_attributes(key, change.clone(), options);
            updated.wait().map_err(as_storage)
        };
        let made = run(&*store, for_store);
        let before = self.current(key).map(|info| info.version);
        let snapshot = self.model().snapshot();
        let model = run(self.model(), options);
        if model
            .as_ref()
            .is_ok_and(|model| Some(model.version) == before)
        {
            return match self.compare(model, made)? {
                Some((model, made)) => self.check_version(key, model.version, made.version),
                None => Ok(()),
            };
        }
        self.model().restore(&snapshot);
        match self.settle(&[key], update.durability, made, |model| run(model, options))? {
            Some((model, made)) => self.record(key, &model, &made),
            None => Ok(()),
        }
    }
}

//! What is known of the versions that a store gave: whatever a crash or a failure leaves must be
//! one of them, as it was.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::pair::Difference;
use crate::port::{
    Attributes, BinaryKey, BlobInfo, BlobStore, Digest, ListEntry, ListRequest, StorageError,
};

/// What belongs to a version for good.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    key: BinaryKey,
    size: u64,
    created: SystemTime,
    modified: SystemTime,
    digests: Vec<Digest>,
    attributes: Attributes,
}

impl From<BlobInfo> for Facts {
    fn from(info: BlobInfo) -> Self {
        Self {
            key: info.key,
            size: info.size,
            created: info.created,
            modified: info.modified,
            digests: info.digests,
            attributes: info.attributes,
        }
    }
}

/// The versions that a store gave, in all of its lives.
#[derive(Debug, Clone, Default)]
pub struct Versions {
    /// Facts are `None` as long as nobody has asked for them.
    given: BTreeMap<u64, Option<Facts>>,
    /// The highest version given before the step that runs.
    highest_before: u64,
    /// Mutations that failed, and may have made a version all the same, by key: each of them one
    /// that is higher than all that were given before.
    in_doubt: BTreeMap<BinaryKey, Vec<u64>>,
}

impl Versions {
    /// Whether the store ever gave this version.
    #[must_use]
    pub fn contains(&self, version: u64) -> bool {
        self.given.contains_key(&version)
    }

    /// The store gave a version; whether it was the first time.
    pub(super) fn give(&mut self, version: u64) -> bool {
        let is_new = !self.contains(version);
        self.given.entry(version).or_default();
        is_new
    }

    /// A step begins, and with it all mutations that it gives versions to.
    pub(super) fn begin(&mut self) {
        self.highest_before = self.given.last_key_value().map_or(0, |(last, _)| *last);
    }

    /// A mutation of `key` failed in a way that leaves open whether it happened.
    pub(super) fn doubt(&mut self, key: &BinaryKey) {
        let floors = self.in_doubt.entry(key.clone()).or_default();
        floors.push(self.highest_before);
    }

    /// The place, among a key's mutations in doubt, of the last that may have made this version.
    fn maker(&self, key: &BinaryKey, version: u64) -> Option<usize> {
        let floors = self.in_doubt.get(key)?;
        floors.iter().rposition(|floor| *floor < version)
    }

    /// This version of a key is there; whether it may be. If the store never gave it, one of the
    /// mutations in doubt made it.
    pub(super) fn come_to_light(&mut self, key: &BinaryKey, version: u64) -> bool {
        let maker = self.maker(key, version);
        if !self.give(version) {
            return true;
        }
        if let (Some(maker), Some(floors)) = (maker, self.in_doubt.get_mut(key)) {
            floors.remove(maker);
        }
        maker.is_some()
    }

    /// The store says this of a blob; it said the same of the version whenever it was asked before.
    pub(super) fn see(&mut self, info: BlobInfo) -> Result<(), Difference> {
        let version = info.version;
        let seen = Facts::from(info);
        match self.given.entry(version).or_default() {
            None => {}
            Some(known) if *known == seen => return Ok(()),
            Some(known) => {
                return Err(format!(
                    "version {version} is {seen:?}, before it was {known:?}"
                ));
            }
        }
        self.given.insert(version, Some(seen));
        Ok(())
    }

    /// Checks that all that `store` holds are versions that it gave, with the times, digests and
    /// attributes that they had.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self, store: &dyn BlobStore) -> Result<(), Difference> {
        let entries = list_all(store).map_err(|error| format!("can't be listed: {error}"))?;
        for ListEntry { key, version, .. } in entries {
            let Some(known) = self.given.get(&version) else {
                if self.maker(&key, version).is_some() {
                    continue;
                }
                return Err(format!("{key}: version {version}, which was never given"));
            };
            let info = store.stat(&key).wait();
            let found = Facts::from(info.map_err(|error| format!("{key}: {error}"))?);
            if known.as_ref().is_some_and(|known| *known != found) {
                return Err(format!("version {version} is {found:?}, it was {known:?}"));
            }
        }
        Ok(())
    }
}

/// All of a store's list.
pub(super) fn list_all(store: &dyn BlobStore) -> Result<Vec<ListEntry>, StorageError> {
    let mut entries = Vec::new();
    let mut request = ListRequest::default();
    loop {
        let page = store.list(request.clone()).wait()?;
        entries.extend(page.blobs);
        match page.next {
            Some(token) => request.token = Some(token),
            None => return Ok(entries),
        }
    }
}

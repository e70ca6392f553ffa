//! Records in memory: encoding them and their metadata, and reading metadata back.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use graviton_format::FormatError;
use graviton_format::key::StoredKey;
use graviton_format::meta::{self, CHANGE_LEN, MetaItem};
use graviton_format::record::{Change, RecordKind};

use super::catalog::SECTORS_MAX;
use super::index::Entry;
use crate::log::Encoded;
use crate::port::blob::REPLICAS_MAX;
use crate::port::manifest::{is_of_put, of_put, plain};
use crate::port::{
    Advertised, AdvertisedAttributes, Attributes, BinaryKey, Digest, DigestAlgorithm,
};

const _: () = assert!(REPLICAS_MAX as usize == SECTORS_MAX);
const _: () = assert!(meta::REPLICAS_MAX as usize == SECTORS_MAX);

/// Encodes a record but for what depends on its place, with a copy of its payload.
///
/// # Panics
/// If the payload does not fit a record: callers cut it to size.
pub fn encode(
    kind: RecordKind,
    key: &BinaryKey,
    meta: &[u8],
    payload: &[u8],
    time: u64,
) -> Encoded {
    Encoded::new(kind, key.stored(), meta, payload, time)
}

/// The same, with the payload itself if that is large.
///
/// # Panics
/// As [`encode`].
pub fn encode_shared(
    kind: RecordKind,
    key: &BinaryKey,
    meta: &[u8],
    payload: Bytes,
    time: u64,
) -> Encoded {
    Encoded::of_shared(kind, key.stored(), meta, payload, time)
}

/// What the metadata of a blob says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    /// When the payload was put, if that is not when the record was written.
    pub created: Option<u64>,
    /// Confirmed digests.
    pub digests: Vec<Digest>,
    /// The caller's attributes.
    pub attributes: Attributes,
    /// Who set some of them, by name, and when: the others came with the blob.
    pub origins: BTreeMap<String, Origin>,
    /// The key whose blob record a manifest shares.
    pub source: Option<BinaryKey>,
    /// LSN of the record that the life began with that a manifest goes on with.
    pub life: Option<u64>,
    /// How many sectors the blob is to lie in; 0: as many as the store says.
    pub replicas: u8,
}

/// Who set an attribute, and when.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// In milliseconds since 1970.
    time: u64,
    name: String,
}

impl Details {
    /// Encodes all but the source, which depends on the time of commit.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Some(created) = self.created {
            meta::put(&mut bytes, MetaItem::Created(created));
        }
        for digest in &self.digests {
            let algorithm = match digest.algorithm {
                DigestAlgorithm::Sha256 => 1,
                DigestAlgorithm::Blake3 => 2,
            };
            meta::put(
                &mut bytes,
                MetaItem::Digest {
                    algorithm,
                    bytes: digest.bytes,
                },
            );
        }
        let mut by_origin: BTreeMap<Option<&Origin>, Vec<MetaItem<'_>>> = BTreeMap::new();
        for (name, value) in &self.attributes {
            let same = by_origin.entry(self.origins.get(name)).or_default();
            same.push(MetaItem::Attribute { name, value });
        }
        // Those that came with the blob are first.
        for (origin, attributes) in by_origin {
            if let Some(Origin { time, name }) = origin {
                meta::put(&mut bytes, MetaItem::Origin { time: *time, name });
            }
            for attribute in attributes {
                meta::put(&mut bytes, attribute);
            }
        }
        if let Some(life) = self.life {
            meta::put(&mut bytes, MetaItem::Life(life));
        }
        if meta::is_count(self.replicas) {
            meta::put(&mut bytes, MetaItem::Replicas(self.replicas));
        }
        bytes
    }

    /// When the payload of a version was put.
    pub fn created(&self, entry: &Entry) -> SystemTime {
        system_time(self.created.unwrap_or(entry.time))
    }

    /// The attributes with who set them, and when.
    pub fn advertised(&self, created: SystemTime) -> AdvertisedAttributes {
        let mut advertised = of_put(self.attributes.clone(), created);
        for (name, origin) in &self.origins {
            if let Some(one) = advertised.get_mut(name) {
                one.source.clone_from(&origin.name);
                one.time = system_time(origin.time);
            }
        }
        advertised
    }

    /// Takes others in their place.
    pub fn advertise(&mut self, advertised: &AdvertisedAttributes, created: SystemTime) {
        self.attributes = plain(advertised);
        let others = advertised
            .iter()
            .filter(|(_, one)| !is_of_put(&one.source, one.time, created));
        let origin = |(name, one): (&String, &Advertised)| {
            let time = milliseconds(one.time);
            let origin = Origin {
                time,
                name: one.source.clone(),
            };
            (name.clone(), origin)
        };
        self.origins = others.map(origin).collect();
    }

    /// Decodes a record's metadata.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut details = Self::default();
        let mut origin = None;
        for item in meta::items(bytes) {
            match item? {
                MetaItem::Created(time) => details.created = details.created.or(Some(time)),
                MetaItem::Digest { algorithm, bytes } => {
                    let algorithm = match algorithm {
                        1 => DigestAlgorithm::Sha256,
                        2 => DigestAlgorithm::Blake3,
                        // Of no use to this build, and no harm to the blob.
                        _ => continue,
                    };
                    let is_other = |digest: &Digest| digest.algorithm != algorithm;
                    if details.digests.iter().all(is_other) {
                        details.digests.push(Digest { algorithm, bytes });
                    }
                }
                MetaItem::Origin { time, name } => {
                    let name = name.to_owned();
                    origin = Some(Origin { time, name });
                }
                MetaItem::Attribute { name, value } => {
                    // Of several with one name, the first.
                    if details.attributes.contains_key(name) {
                        continue;
                    }
                    if let Some(origin) = &origin {
                        details.origins.insert(name.to_owned(), origin.clone());
                    }
                    let value = Bytes::copy_from_slice(value);
                    details.attributes.insert(name.to_owned(), value);
                }
                MetaItem::Life(lsn) => details.life = details.life.or(Some(lsn)),
                MetaItem::Replicas(count) if details.replicas == 0 => details.replicas = count,
                MetaItem::Source(key) => {
                    let source = BinaryKey::of_stored(key).ok();
                    details.source = details.source.or(source);
                }
                _ => {}
            }
        }
        Ok(details)
    }
}

/// Appends the name of the key whose blob record a manifest shares.
pub fn put_source(meta: &mut Vec<u8>, source: &BinaryKey) {
    meta::put(meta, MetaItem::Source(source.stored()));
}

/// The metadata of a record that changes something, which is said by [`set_change`].
pub fn change_meta() -> Vec<u8> {
    let nothing = Change {
        base: 0,
        start: 0,
        size: 0,
    };
    let mut meta = Vec::with_capacity(CHANGE_LEN);
    meta::put(&mut meta, MetaItem::Change(nothing));
    meta
}

/// Says in a record of `key`, made with [`change_meta`], what it changes.
pub fn set_change(record: &mut Encoded, key: &BinaryKey, change: Change) {
    let mut meta = Vec::with_capacity(CHANGE_LEN);
    meta::put(&mut meta, MetaItem::Change(change));
    record.amend(key.stored().len(), &meta);
}

/// Names an upload by its LSN, in its record, which was made with `key`.
pub fn name_upload(record: &mut Encoded, key: &BinaryKey, lsn: u64) -> BinaryKey {
    let blob = key.of_blob();
    let named = BinaryKey::beside(&StoredKey::Upload {
        upload: lsn,
        key: blob.as_bytes(),
    });
    record.amend(0, named.stored());
    named
}

/// A time of the format as a time of the API.
pub fn system_time(milliseconds: u64) -> SystemTime {
    UNIX_EPOCH
        .checked_add(Duration::from_millis(milliseconds))
        .unwrap_or(UNIX_EPOCH)
}

/// A time of the API as a time of the format.
pub fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

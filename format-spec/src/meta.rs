//! Metadata of a record: a sequence of items, each a tag (u8), a length (LEB128) and so many bytes.
//! Tags below 128 must be understood, others may be skipped \[F-28\].

use crate::FormatError;
use crate::error::require;
use crate::key::{STORED_KEY_MAX_LEN, STORED_KEY_MIN_LEN};
use crate::record::Change;
use crate::varint;

const TAG_CREATED: u8 = 1;
const TAG_DIGEST: u8 = 2;
const TAG_ATTRIBUTE: u8 = 3;
const TAG_SOURCE: u8 = 4;
const TAG_CHANGE: u8 = 5;
const TAG_ORIGIN: u8 = 6;
const TAG_LIFE: u8 = 7;
const TAG_REPLICAS: u8 = 128;

/// The most sectors that a blob can be asked to lie in: a store has no more.
pub const REPLICAS_MAX: u8 = 64;

/// One item of metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetaItem<'a> {
    /// Tag 1: when the payload was put, in milliseconds since 1970 (u64), if that is not the
    /// record's time.
    Created(u64),
    /// Tag 2: a confirmed digest of the payload: algorithm (1: SHA-256, 2: BLAKE3), then 32 bytes.
    Digest {
        /// 1: SHA-256. 2: BLAKE3.
        algorithm: u8,
        /// The digest.
        bytes: [u8; 32],
    },
    /// Tag 3: an attribute: length of the name (u8, not 0), name (UTF-8), value.
    Attribute {
        /// Its name.
        name: &'a str,
        /// Its value.
        value: &'a [u8],
    },
    /// Tag 4, in a manifest that shares the payload of a blob record: the key that record was
    /// current for when the manifest was written, as it is stored.
    Source(&'a [u8]),
    /// Tag 5, in a record that makes a version out of another: the version before, where the bytes
    /// begin that are others now, and the blob's size afterwards (three u64).
    Change(Change),
    /// Tag 6: who set the attributes that follow, up to the next such item, and when: milliseconds
    /// since 1970 (u64), name (UTF-8).
    Origin {
        /// When.
        time: u64,
        /// Who.
        name: &'a str,
    },
    /// Tag 7, in a manifest: the LSN of the record that the blob's life began with (u64), if that is
    /// not the manifest itself.
    Life(u64),
    /// Tag 128: how many sectors the blob is to lie in (u8), if that is more than the store file says:
    /// 1 to [`REPLICAS_MAX`].
    Replicas(u8),
}

/// Bytes of an item that says what a record changes, tag and length included.
pub const CHANGE_LEN: usize = 2 + 24;

/// Appends an item.
///
/// # Panics
/// If the name of an attribute is empty or longer than 255 bytes, or a number of replicas is none.
pub fn put(target: &mut Vec<u8>, item: MetaItem<'_>) {
    let (tag, parts): (u8, [&[u8]; 3]) = match &item {
        MetaItem::Created(time) => (TAG_CREATED, [&time.to_le_bytes(), &[], &[]]),
        MetaItem::Digest { algorithm, bytes } => (TAG_DIGEST, [&[*algorithm], bytes, &[]]),
        MetaItem::Source(key) => (TAG_SOURCE, [key, &[], &[]]),
        MetaItem::Change(change) => (
            TAG_CHANGE,
            [
                &change.base.to_le_bytes(),
                &change.start.to_le_bytes(),
                &change.size.to_le_bytes(),
            ],
        ),
        MetaItem::Attribute { name, value } => (
            TAG_ATTRIBUTE,
            [&[name_length(name)], name.as_bytes(), value],
        ),
        MetaItem::Origin { time, name } => {
            (TAG_ORIGIN, [&time.to_le_bytes(), name.as_bytes(), &[]])
        }
        MetaItem::Life(lsn) => (TAG_LIFE, [&lsn.to_le_bytes(), &[], &[]]),
        MetaItem::Replicas(count) => {
            assert!(is_count(*count), "{count} replicas");
            (TAG_REPLICAS, [std::slice::from_ref(count), &[], &[]])
        }
    };
    target.push(tag);
    varint::put(target, parts.iter().map(|part| part.len() as u64).sum());
    parts.iter().for_each(|part| target.extend_from_slice(part));
}

fn name_length(name: &str) -> u8 {
    let length = u8::try_from(name.len()).unwrap_or(0);
    assert!(length != 0, "a name of {} bytes", name.len());
    length
}

/// Whether a blob can be asked to lie in so many sectors \[F-70\].
#[must_use]
pub fn is_count(replicas: u8) -> bool {
    (1..=REPLICAS_MAX).contains(&replicas)
}

/// How many sectors a record's blob is to lie in, if its metadata says so: what can't be read of that says
/// nothing.
#[must_use]
pub fn replicas(meta: &[u8]) -> Option<u8> {
    items(meta).find_map(|item| match item {
        Ok(MetaItem::Replicas(count)) => Some(count),
        _ => None,
    })
}

/// Checks that a life began before the record of LSN `lsn`, which goes on with it \[F-64\].
///
/// # Errors
/// If it did not.
pub fn check_life(life: u64, lsn: u64) -> Result<(), FormatError> {
    require(life < lsn, "metadata", "item", "F-64", || {
        format!("has a life that began at LSN {life}, not before the record at {lsn}")
    })
}

/// The items of `meta`, in order; ends with the first that does not decode.
pub fn items(meta: &[u8]) -> impl Iterator<Item = Result<MetaItem<'_>, FormatError>> {
    let mut rest = meta;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            match take(&mut rest) {
                Ok(None) => {}
                Ok(Some(item)) => return Some(Ok(item)),
                Err(error) => {
                    rest = &[];
                    return Some(Err(error));
                }
            }
        }
        None
    })
}

fn take<'a>(rest: &mut &'a [u8]) -> Result<Option<MetaItem<'a>>, FormatError> {
    let bad = |what: &str| FormatError::field("metadata", "item", "F-28", what);
    let (&tag, mut after) = rest.split_first().ok_or_else(|| bad("is cut off"))?;
    let length = varint::take(&mut after)
        .and_then(|length| usize::try_from(length).ok())
        .ok_or_else(|| bad("has no length"))?;
    let value = after.get(..length).ok_or_else(|| bad("is cut off"))?;
    *rest = &after[length..];
    match tag {
        TAG_CREATED => {
            let bytes = value
                .try_into()
                .map_err(|_| bad("has a creation time of another length than 8"))?;
            Ok(Some(MetaItem::Created(u64::from_le_bytes(bytes))))
        }
        TAG_DIGEST => {
            let (&algorithm, bytes) = value
                .split_first()
                .ok_or_else(|| bad("is an empty digest"))?;
            let bytes = bytes
                .try_into()
                .map_err(|_| bad("has a digest of another length than 32"))?;
            Ok(Some(MetaItem::Digest { algorithm, bytes }))
        }
        TAG_ATTRIBUTE => {
            let (&name_length, named) = value
                .split_first()
                .ok_or_else(|| bad("is an empty attribute"))?;
            let name = named
                .get(..name_length.into())
                .filter(|name| !name.is_empty())
                .ok_or_else(|| bad("is an attribute without a name"))?;
            let value = &named[name.len()..];
            let name = std::str::from_utf8(name)
                .map_err(|_| bad("is an attribute whose name is not UTF-8"))?;
            Ok(Some(MetaItem::Attribute { name, value }))
        }
        TAG_SOURCE if (STORED_KEY_MIN_LEN..=STORED_KEY_MAX_LEN).contains(&value.len()) => {
            Ok(Some(MetaItem::Source(value)))
        }
        TAG_CHANGE => {
            let [base, start, size] = value
                .as_chunks::<8>()
                .0
                .iter()
                .map(|bytes| u64::from_le_bytes(*bytes))
                .collect::<Vec<_>>()
                .try_into()
                .ok()
                .filter(|_| value.len() == 24)
                .ok_or_else(|| bad("has a change of another length than 24"))?;
            Ok(Some(MetaItem::Change(Change { base, start, size })))
        }
        TAG_ORIGIN => {
            let (time, name) = value
                .split_first_chunk()
                .ok_or_else(|| bad("has an origin without a time"))?;
            let name = std::str::from_utf8(name)
                .map_err(|_| bad("has an origin whose name is not UTF-8"))?;
            Ok(Some(MetaItem::Origin {
                time: u64::from_le_bytes(*time),
                name,
            }))
        }
        TAG_LIFE => {
            let lsn = value.try_into().map(u64::from_le_bytes);
            let lsn = lsn.ok().filter(|lsn| *lsn != 0);
            lsn.map(|lsn| Some(MetaItem::Life(lsn)))
                .ok_or_else(|| bad("has a life that began with no record"))
        }
        TAG_REPLICAS => match value {
            &[count] if is_count(count) => Ok(Some(MetaItem::Replicas(count))),
            _ => {
                let what = "has an impossible number of replicas";
                Err(FormatError::field("metadata", "item", "F-70", what))
            }
        },
        TAG_SOURCE => Err(bad("names a source whose key is empty or too long")),
        129.. => Ok(None),
        _ => Err(bad(&format!("has the unknown tag {tag}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_round_trip_and_cuts_are_errors() {
        let all = [
            MetaItem::Created(17),
            MetaItem::Digest {
                algorithm: 1,
                bytes: [9; 32],
            },
            MetaItem::Attribute {
                name: "colour",
                value: b"blue",
            },
            MetaItem::Attribute {
                name: "empty",
                value: b"",
            },
            MetaItem::Change(Change {
                base: 1,
                start: 2,
                size: 3,
            }),
            MetaItem::Origin {
                time: 4,
                name: "importer",
            },
            MetaItem::Origin { time: 5, name: "" },
            MetaItem::Life(6),
            MetaItem::Replicas(1),
            MetaItem::Replicas(REPLICAS_MAX),
        ];
        for item in all {
            let mut bytes = Vec::new();
            put(&mut bytes, item);
            assert_eq!(
                items(&bytes).collect::<Result<Vec<_>, _>>().unwrap(),
                [item]
            );
            for cut in 1..bytes.len() {
                assert!(
                    items(&bytes[..cut]).any(|item| item.is_err()),
                    "{item:?} cut at {cut}"
                );
            }
        }
    }

    #[test]
    fn unknown_tags_are_skipped_or_refused() {
        assert_eq!(items(&[200, 2, 1, 1]).count(), 0);
        assert!(
            items(&[7, 8, 0, 0, 0, 0, 0, 0, 0, 0])
                .next()
                .unwrap()
                .is_err()
        );
        assert!(items(&[8, 0]).next().unwrap().is_err());
        assert!(items(&[0, 0]).next().unwrap().is_err());
    }

    /// \[F-70\]
    #[test]
    fn a_number_of_replicas_is_one_that_can_be() {
        for wrong in [&[128, 1, 0][..], &[128, 1, 65], &[128, 0], &[128, 2, 3, 0]] {
            assert!(items(wrong).next().unwrap().is_err(), "{wrong:?}");
            assert_eq!(replicas(wrong), None);
        }
        assert_eq!(replicas(&[200, 0, 128, 1, 3, 128, 1, 4]), Some(3));
        assert_eq!(replicas(&[]), None);
    }
}

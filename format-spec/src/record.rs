//! Records: the log's entries. Header, key, metadata, then payload in chunks.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::checksum::{Identity, mask_chunks, stored_length};
use crate::error::require;
use crate::key::{STORED_KEY_MAX_LEN, STORED_KEY_MIN_LEN, StoredKey};
use crate::meta::{self, MetaItem};
use crate::structure::on_disk;
use crate::{FormatError, Geometry};

/// The most metadata a record has, in bytes.
pub const META_MAX_LEN: usize = 40 * 1024;
/// The largest blob in bytes.
pub const BLOB_MAX_LEN: u64 = 1 << 40;
/// `flags`: the record was copied by compaction and keeps its old LSN.
pub const FLAG_MOVED: u8 = 1;
/// `flags`: the record is a replica of what another sector has, and keeps its LSN \[F-65\].
pub const FLAG_REPLICA: u8 = 2;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// A blob whose payload is the record's.
    Blob = 1,
    /// A piece of a larger blob's payload; nothing until a manifest names it.
    Extent = 2,
    /// A blob whose payload lies in extents; the record's payload is their list.
    Manifest = 3,
    /// The delete of a blob.
    Tombstone = 4,
    /// A blob that is another version but for some bytes, which are the record's payload.
    Range = 5,
    /// A blob that is another version but for some bytes; the record's payload is the list of pieces
    /// that make them up.
    Splice = 6,
    /// The same version of a blob, some of whose bytes lie elsewhere from here on; the record's payload
    /// is the list of pieces that make them up \[F-63\].
    Merge = 7,
}

impl RecordKind {
    fn decode(kind: u8) -> Option<Self> {
        [
            Self::Blob,
            Self::Extent,
            Self::Manifest,
            Self::Tombstone,
            Self::Range,
            Self::Splice,
            Self::Merge,
        ]
        .into_iter()
        .find(|known| *known as u8 == kind)
    }

    /// Whether the payload is a list of pieces.
    #[must_use]
    pub fn lists_pieces(self) -> bool {
        matches!(self, Self::Manifest | Self::Splice | Self::Merge)
    }

    /// Whether it says something of a version that was there before.
    #[must_use]
    pub fn changes(self) -> bool {
        matches!(self, Self::Range | Self::Splice | Self::Merge)
    }
}

on_disk! {
    /// Starts a record; key, metadata and payload chunks follow without gaps.
    RecordHeader: 32 {
        /// CRC-32 of identity, address, the rest of the header, key and metadata.
        checksum: U32,
        /// 1: blob. 2: extent. 3: manifest. 4: tombstone. 5: range. 6: splice. 7: merge.
        kind: u8,
        /// Bit 0: copied by compaction. Bit 1: copied from another sector. The LSN is older than the frame
        /// then. Others: zero.
        flags: u8,
        /// Bytes of the key: 2 to 1033.
        key_length: U16,
        /// The record's LSN: the version of a blob, the name of an extent.
        lsn: U64,
        /// When the record was first written, in milliseconds since 1970.
        time: U64,
        /// Bytes of payload, chunk checksums not counted.
        payload_length: U32,
        /// Bytes of metadata: at most 40960.
        meta_length: U32,
    }
}

on_disk! {
    /// Names a piece of an extent in a manifest's payload, which is the blob's size (u64), then these.
    ExtentRef: 16 {
        /// LSN of a record whose payload holds the piece; 0: a hole, none of which was ever written.
        lsn: U64,
        /// Where the piece begins in that payload; of a hole 0.
        offset: U32,
        /// Bytes of the piece; not 0.
        length: U32,
    }
}

impl ExtentRef {
    /// Bytes that were never written.
    #[must_use]
    pub fn hole(length: u32) -> Self {
        Self {
            lsn: 0.into(),
            offset: 0.into(),
            length: length.into(),
        }
    }

    /// Whether it is a hole.
    #[must_use]
    pub fn is_hole(&self) -> bool {
        self.lsn == 0
    }
}

/// Bytes a record takes on disk.
#[must_use]
pub fn record_length(key_length: usize, meta_length: usize, payload_length: u64) -> u64 {
    (size_of::<RecordHeader>() + key_length + meta_length) as u64 + stored_length(payload_length)
}

/// A decoded record header with what it covers.
#[derive(Debug, Clone, Copy)]
pub struct RecordView<'a> {
    /// The fixed part.
    pub header: RecordHeader,
    /// What it is.
    pub kind: RecordKind,
    /// The stored key; see [`crate::key`].
    pub key: &'a [u8],
    /// The metadata; see [`crate::meta`].
    pub meta: &'a [u8],
    /// What it changes, if it says something of a version that was there before.
    pub change: Option<Change>,
}

/// What a record changes of the version that its blob had before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The version before.
    pub base: u64,
    /// Where the bytes begin that are others now.
    pub start: u64,
    /// The blob's size in bytes afterwards.
    pub size: u64,
}

impl Change {
    /// Checks that `length` bytes, not 0, lie within the blob \[F-59\].
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self, length: u64) -> Result<(), FormatError> {
        let fits = length > 0
            && self.size <= BLOB_MAX_LEN
            && self
                .start
                .checked_add(length)
                .is_some_and(|end| end <= self.size);
        require(fits, "RecordHeader", "change", "F-59", || {
            format!(
                "is of {length} bytes from {} of a blob of {}",
                self.start, self.size
            )
        })
    }
}

impl<'a> RecordView<'a> {
    /// Decodes the record at `address` from `bytes`, which must hold header, key and metadata;
    /// the payload need not be there and is not looked at.
    ///
    /// # Errors
    /// What is wrong.
    pub fn decode(
        bytes: &'a [u8],
        identity: &Identity,
        geometry: &Geometry,
        address: u64,
    ) -> Result<Self, FormatError> {
        let name = "RecordHeader";
        let header = *RecordHeader::view(bytes)?;
        let kind = RecordKind::decode(header.kind).ok_or_else(|| {
            FormatError::field(name, "kind", "F-25", format!("is {}", header.kind))
        })?;
        let (key_length, meta_length) = (
            usize::from(header.key_length),
            header.meta_length.get() as usize,
        );
        require(
            (STORED_KEY_MIN_LEN..=STORED_KEY_MAX_LEN).contains(&key_length),
            name,
            "key_length",
            "F-25",
            || format!("is {key_length}"),
        )?;
        require(
            meta_length <= META_MAX_LEN,
            name,
            "meta_length",
            "F-25",
            || format!("is {meta_length}"),
        )?;
        let covered = size_of::<RecordHeader>() + key_length + meta_length;
        let Some(bytes) = bytes.get(..covered) else {
            return Err(FormatError::Truncated {
                structure: name,
                needed: covered,
                found: bytes.len(),
            });
        };
        let stored = header.checksum.get();
        let computed = identity.header_checksum(address, &[&bytes[4..]]);
        if stored != computed {
            return Err(FormatError::Checksum {
                structure: name,
                stored: stored.into(),
                computed: computed.into(),
            });
        }
        require(
            header.flags & !(FLAG_MOVED | FLAG_REPLICA) == 0,
            name,
            "flags",
            "F-25",
            || format!("is {:#x}", header.flags),
        )?;
        let is_replica = header.flags & FLAG_REPLICA != 0;
        require(
            !is_replica || !kind.changes(),
            name,
            "flags",
            "F-65",
            || "is of a replica, of a record that changes another".to_owned(),
        )?;
        require(header.lsn != 0, name, "lsn", "F-25", || "is 0".to_owned())?;
        let (key, meta) = bytes[size_of::<RecordHeader>()..].split_at(key_length);
        StoredKey::decode(key)?;
        let view = Self {
            header,
            kind,
            key,
            meta,
            change: kind.changes().then(|| find_change(meta)).transpose()?,
        };
        let room = geometry
            .segment_of(address)
            .map_or(0, |(_, offset)| geometry.segment_size - offset);
        require(
            view.length() <= room,
            name,
            "payload_length",
            "F-25",
            || {
                format!(
                    "is {}, {room} bytes are left in the segment",
                    header.payload_length
                )
            },
        )?;
        let payload_holds = kind != RecordKind::Tombstone
            || (header.payload_length == 0 && header.meta_length == 0);
        require(payload_holds, name, "payload_length", "F-26", || {
            "is not 0 in a tombstone".to_owned()
        })?;
        if let Some(change) = &view.change {
            require(
                change.base < header.lsn.get(),
                name,
                "change",
                "F-59",
                || format!("is of version {}, its own is {}", change.base, header.lsn),
            )?;
            if kind == RecordKind::Range {
                change.check(header.payload_length.get().into())?;
            }
        }
        Ok(view)
    }

    /// Bytes before the payload.
    #[must_use]
    pub fn payload_offset(&self) -> usize {
        size_of::<RecordHeader>() + self.key.len() + self.meta.len()
    }

    /// Bytes of the payload on disk, chunk checksums included.
    #[must_use]
    pub fn stored_payload(&self) -> u64 {
        stored_length(self.header.payload_length.get().into())
    }

    /// Bytes of the whole record on disk.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.payload_offset() as u64 + self.stored_payload()
    }
}

fn find_change(meta: &[u8]) -> Result<Change, FormatError> {
    let missing = || FormatError::field("RecordHeader", "change", "F-59", "is missing");
    for item in meta::items(meta) {
        if let MetaItem::Change(change) = item? {
            return Ok(change);
        }
    }
    Err(missing())
}

/// Writes the header, key and metadata of a record into the front of `target`, unsealed: LSN,
/// flags and checksum are set by [`seal_record`], once the record's place is known.
///
/// # Panics
/// If `target` is too short, or key or metadata longer than the format allows: callers check both.
pub fn write_record_head(
    target: &mut [u8],
    kind: RecordKind,
    key: &[u8],
    meta: &[u8],
    payload_length: u32,
    time: u64,
) {
    let lengths = STORED_KEY_MIN_LEN..=STORED_KEY_MAX_LEN;
    assert!(lengths.contains(&key.len()) && meta.len() <= META_MAX_LEN);
    let header = RecordHeader {
        checksum: 0.into(),
        kind: kind as u8,
        flags: 0,
        key_length: u16::try_from(key.len()).unwrap_or(0).into(),
        lsn: 0.into(),
        time: time.into(),
        payload_length: payload_length.into(),
        meta_length: u32::try_from(meta.len()).unwrap_or(0).into(),
    };
    let (head, rest) = target.split_at_mut(size_of::<RecordHeader>());
    head.copy_from_slice(header.as_bytes());
    rest[..key.len()].copy_from_slice(key);
    rest[key.len()..key.len() + meta.len()].copy_from_slice(meta);
}

/// Seals the record that fills `record`, to lie at `address` with `lsn`: sets LSN, flags and
/// checksum, and masks the chunks, whose checksums must be unmasked. Returns the record's checksum.
///
/// # Panics
/// If `record` was not written by [`write_record_head`].
pub fn seal_record(
    record: &mut [u8],
    identity: &Identity,
    address: u64,
    lsn: u64,
    flags: u8,
) -> u32 {
    let (key_length, meta_length) = {
        let header = RecordHeader::view(record).expect("the head was written");
        (
            usize::from(header.key_length),
            header.meta_length.get() as usize,
        )
    };
    record[5] = flags;
    record[8..16].copy_from_slice(&lsn.to_le_bytes());
    let payload_offset = size_of::<RecordHeader>() + key_length + meta_length;
    let checksum = identity.header_checksum(address, &[&record[4..payload_offset]]);
    record[..4].copy_from_slice(&checksum.to_le_bytes());
    mask_chunks(
        &mut record[payload_offset..],
        identity.chunk_mask(lsn),
        address + payload_offset as u64,
    );
    checksum
}

const _: () = assert!(
    std::mem::offset_of!(RecordHeader, flags) == 5 && std::mem::offset_of!(RecordHeader, lsn) == 8
);

/// The payload of a manifest record.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    /// The blob's size in bytes.
    pub size: u64,
    /// The pieces, in order; they add up to the size.
    pub extents: Vec<ExtentRef>,
}

impl Manifest {
    /// Bytes of the payload of a manifest with `extents` pieces.
    #[must_use]
    pub fn payload_length(extents: usize) -> usize {
        8 + extents * size_of::<ExtentRef>()
    }

    /// Encodes it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::payload_length(self.extents.len()));
        bytes.extend(self.size.to_le_bytes());
        bytes.extend(self.extents.as_bytes());
        bytes
    }

    /// Decodes the gathered payload of a manifest record.
    ///
    /// # Errors
    /// What is wrong.
    pub fn decode(payload: &[u8]) -> Result<Self, FormatError> {
        let name = "Manifest";
        let Ok((size, list)) = U64::read_from_prefix(payload) else {
            return Err(FormatError::Truncated {
                structure: name,
                needed: 8,
                found: payload.len(),
            });
        };
        let size = size.get();
        require(
            list.len() % size_of::<ExtentRef>() == 0,
            name,
            "extents",
            "F-27",
            || format!("take {} bytes", list.len()),
        )?;
        let extents = list
            .chunks_exact(size_of::<ExtentRef>())
            .map(|bytes| ExtentRef::view(bytes).copied())
            .collect::<Result<Vec<_>, _>>()?;
        check_extents(size, &extents)?;
        Ok(Self { size, extents })
    }
}

/// Checks that `extents` are pieces that add up to `size` \[F-27\].
pub(crate) fn check_extents(size: u64, extents: &[ExtentRef]) -> Result<(), FormatError> {
    let name = "Manifest";
    require(size <= BLOB_MAX_LEN, name, "size", "F-27", || {
        format!("is {size}")
    })?;
    // Neither sum overflows: a list that fits memory has fewer than 2^32 pieces of less than 2^32 bytes.
    let total: u64 = extents
        .iter()
        .map(|extent| u64::from(extent.length.get()))
        .sum();
    require(total == size, name, "extents", "F-27", || {
        format!("add up to {total} bytes, the blob has {size}")
    })?;
    let pieces_hold = extents.iter().all(|extent| {
        extent.length != 0
            && extent
                .offset
                .get()
                .checked_add(extent.length.get())
                .is_some()
    });
    require(pieces_hold, name, "extents", "F-27", || {
        "has an empty or oversized piece".to_owned()
    })?;
    let holes = extents.iter().filter(|extent| extent.is_hole());
    let holes_hold = holes.into_iter().all(|hole| hole.offset == 0);
    require(holes_hold, name, "extents", "F-27", || {
        "has a hole with an offset".to_owned()
    })
}

//! The checkpoint's image: a sector's index as one run of bytes that is searched where it lies.
//!
//! ```text
//! [ImageHeader][group 0][group 1]…[group offsets: u64 each][ExtentEntry…][SegmentEntry…]
//! ```
//!
//! Entries are sorted by key, 16 to a group. The first key of a group is whole, each later one
//! shares a prefix with the key before it; the group offsets are searched by halving. Opening a
//! store costs the read of these bytes, and a blob at rest little more than its key.

use std::cmp::Ordering;
use std::fmt;
use std::sync::OnceLock;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::checksum::stored_length;
use crate::error::require;
use crate::fences::Fences;
use crate::geometry::SEGMENT_COUNTS;
use crate::key::{STORED_KEY_MAX_LEN, STORED_KEY_MIN_LEN};
use crate::meta;
use crate::record::{ExtentRef, META_MAX_LEN, check_extents};
use crate::structure::on_disk;
use crate::varint::{put, skip, take, unzigzag, zigzag};
use crate::{FormatError, Geometry};

/// The first bytes of an image: `GIMG`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"GIMG");
/// Bytes of a page: the unit of an image's checksums.
pub const PAGE_SIZE: usize = 64 * 1024;
/// Entries of a group, except the last.
pub const GROUP_SIZE: u64 = 16;

/// The highest `state` of a segment.
const STATE_CHECKPOINT: u8 = 4;
/// The least bytes before a record's payload: its header, and a key of one byte.
const HEAD_MIN_LEN: u64 = 34;
const KIND_BLOB: u8 = 1;
const KIND_MANIFEST: u8 = 2;
const KIND_TOMBSTONE: u8 = 3;
const FLAG_META: u8 = 0x10;
const FLAG_CHANGED: u8 = 0x20;
const FLAG_LIFE: u8 = 0x40;
const FLAG_REPLICAS: u8 = 0x80;

on_disk! {
    /// Starts an image.
    ImageHeader: 96 {
        /// `GIMG`.
        magic: U32,
        /// Entries of a group: 16.
        group_size: U32,
        /// Number of entries.
        entries: U64,
        /// Entries' LSNs count down from here.
        lsn_base: U64,
        /// Entries' times count from here, in milliseconds since 1970.
        time_base: U64,
        /// Offset of the group offsets, where the groups end.
        groups_offset: U64,
        /// Number of groups.
        groups: U64,
        /// Offset of the extent entries.
        extents_offset: U64,
        /// Number of extent entries.
        extents: U64,
        /// Offset of the segment entries.
        segments_offset: U64,
        /// Number of segment entries: the segments that the sector had when it was taken.
        segments: U64,
        /// Bytes of the whole image.
        length: U64,
        /// Zeros.
        reserved: U64,
    }
}

on_disk! {
    /// One extent that manifests (or a blob on its way in) may name. Sorted by LSN.
    ExtentEntry: 32 {
        /// LSN of the record whose payload it is.
        lsn: U64,
        /// Address of the payload's first chunk.
        address: U64,
        /// Bytes of payload.
        payload_length: U32,
        /// Bytes of the record before the payload.
        head_length: U32,
        /// Number of pieces that manifests and blobs have of it.
        references: U32,
        /// Zeros.
        reserved: U32,
    }
}

on_disk! {
    /// One segment of the sector, by number.
    SegmentEntry: 24 {
        /// Generation it was last used in; 0: never used.
        generation: U64,
        /// Bytes of live records in it.
        live: U64,
        /// Bytes written, up to the end of its last frame.
        written: U32,
        /// 0: free. 1: open. 2: sealed. 3: reclaimed. 4: checkpoint.
        state: u8,
        /// 1 if its blocks have been written at least once, with zeros if nothing else.
        zeroed: u8,
        /// Zeros.
        reserved: U16,
    }
}

/// One entry: a version of a blob, or its delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageEntry {
    /// The record's LSN.
    pub lsn: u64,
    /// What and where it is.
    pub value: ImageValue,
}

/// What an entry says of its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageValue {
    /// Deleted; kept while another sector may still hold the blob.
    Tombstone,
    /// A blob.
    Blob {
        /// Address of its record: a blob record, or the manifest if there are extents.
        address: u64,
        /// Its size in bytes.
        size: u64,
        /// The record's time, in milliseconds since 1970.
        time: u64,
        /// Bytes of the record's metadata.
        meta_length: u32,
        /// The record, if it is of an older version that this one came from by changes of its bytes, or
        /// if its bytes lie elsewhere by now.
        changed: Option<ChangedRecord>,
        /// LSN of the record that the blob's life began with, if that is an older one than the record.
        life: Option<u64>,
        /// How many sectors it is to lie in, if that is more than the store file says.
        replicas: Option<u8>,
        /// Its pieces, if its payload is not in the record itself.
        extents: Option<Vec<ExtentRef>>,
    },
}

/// The record of a version that does not say all of it: that came from the record's by changes of its
/// bytes, or some of whose bytes lie elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangedRecord {
    /// Its LSN.
    pub lsn: u64,
    /// Bytes of its payload.
    pub payload_length: u32,
}

/// Writes an image, entry by entry in ascending order of keys.
#[derive(Debug)]
pub struct ImageBuilder {
    bytes: Vec<u8>,
    groups: Vec<u64>,
    entries: u64,
    lsn_base: u64,
    time_base: u64,
    last_key: Vec<u8>,
}

impl ImageBuilder {
    /// Starts an image. No entry may have an LSN above `lsn_base`; `time_base` should be near the
    /// entries' times.
    #[must_use]
    pub fn new(lsn_base: u64, time_base: u64) -> Self {
        Self {
            bytes: vec![0; size_of::<ImageHeader>()],
            groups: Vec::new(),
            entries: 0,
            lsn_base,
            time_base,
            last_key: Vec::new(),
        }
    }

    /// Appends an entry.
    ///
    /// # Panics
    /// If `key` is not greater than the one before or not 2 to 1033 bytes long, an LSN is above
    /// the base, or a number of replicas is none.
    pub fn push(&mut self, key: &[u8], entry: &ImageEntry) {
        assert!(
            self.entries == 0 || key > self.last_key.as_slice(),
            "keys must ascend"
        );
        assert!(
            (STORED_KEY_MIN_LEN..=STORED_KEY_MAX_LEN).contains(&key.len()),
            "a key of {} bytes",
            key.len()
        );
        assert!(
            entry.lsn <= self.lsn_base,
            "LSN {} above the base {}",
            entry.lsn,
            self.lsn_base
        );
        let shared = if self.entries.is_multiple_of(GROUP_SIZE) {
            self.groups.push(self.bytes.len() as u64);
            0
        } else {
            key.iter()
                .zip(&self.last_key)
                .take_while(|(a, b)| a == b)
                .count()
        };
        let bytes = &mut self.bytes;
        put(bytes, shared as u64);
        put(bytes, (key.len() - shared) as u64);
        bytes.extend_from_slice(&key[shared..]);
        match &entry.value {
            ImageValue::Tombstone => {
                bytes.push(KIND_TOMBSTONE);
                put(bytes, self.lsn_base - entry.lsn);
            }
            ImageValue::Blob {
                address,
                size,
                time,
                meta_length,
                changed,
                life,
                replicas,
                extents,
            } => {
                let kind = if extents.is_some() {
                    KIND_MANIFEST
                } else {
                    KIND_BLOB
                };
                let flag = |is_set, flag| if is_set { flag } else { 0 };
                let meta = flag(*meta_length > 0, FLAG_META);
                let changed_or_not = flag(changed.is_some(), FLAG_CHANGED);
                let life_or_not = flag(life.is_some(), FLAG_LIFE);
                let replicas_or_not = flag(replicas.is_some(), FLAG_REPLICAS);
                bytes.push(kind | meta | changed_or_not | life_or_not | replicas_or_not);
                put(bytes, self.lsn_base - entry.lsn);
                put(bytes, *size);
                put(
                    bytes,
                    zigzag(time.wrapping_sub(self.time_base).cast_signed()),
                );
                put(bytes, *address);
                if *meta_length > 0 {
                    put(bytes, u64::from(*meta_length));
                }
                if let Some(changed) = changed {
                    assert!(
                        changed.lsn <= entry.lsn && extents.is_some(),
                        "no version that its record does not say all of"
                    );
                    put(bytes, self.lsn_base - changed.lsn);
                    put(bytes, changed.payload_length.into());
                }
                if let Some(life) = life {
                    assert!(
                        *life < changed.map_or(entry.lsn, |record| record.lsn)
                            && *life > 0
                            && extents.is_some(),
                        "no life that began before its record"
                    );
                    put(bytes, self.lsn_base - life);
                }
                if let Some(replicas) = replicas {
                    assert!(meta::is_count(*replicas), "{replicas} replicas");
                    bytes.push(*replicas);
                }
                if let Some(extents) = extents {
                    put(bytes, extents.len() as u64);
                    for extent in extents {
                        let lsn = extent.lsn.get();
                        assert!(
                            lsn <= self.lsn_base,
                            "LSN {lsn} above the base {}",
                            self.lsn_base
                        );
                        put(bytes, self.lsn_base - lsn);
                        put(bytes, extent.offset.get().into());
                        put(bytes, extent.length.get().into());
                    }
                }
            }
        }
        self.entries += 1;
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
    }

    /// Ends the image. `extents` must be sorted by LSN.
    #[must_use]
    pub fn finish(mut self, extents: &[ExtentEntry], segments: &[SegmentEntry]) -> Vec<u8> {
        let groups_offset = self.bytes.len() as u64;
        self.groups
            .iter()
            .for_each(|offset| self.bytes.extend(offset.to_le_bytes()));
        let extents_offset = self.bytes.len() as u64;
        self.bytes.extend_from_slice(extents.as_bytes());
        let segments_offset = self.bytes.len() as u64;
        self.bytes.extend_from_slice(segments.as_bytes());
        let header = ImageHeader {
            magic: MAGIC.into(),
            group_size: u32::try_from(GROUP_SIZE).unwrap_or(0).into(),
            entries: self.entries.into(),
            lsn_base: self.lsn_base.into(),
            time_base: self.time_base.into(),
            groups_offset: groups_offset.into(),
            groups: (self.groups.len() as u64).into(),
            extents_offset: extents_offset.into(),
            extents: (extents.len() as u64).into(),
            segments_offset: segments_offset.into(),
            segments: (segments.len() as u64).into(),
            length: (self.bytes.len() as u64).into(),
            reserved: 0.into(),
        };
        self.bytes[..size_of::<ImageHeader>()].copy_from_slice(header.as_bytes());
        self.bytes
    }
}

/// An image in memory, searched in place. Its page checksums have been verified by whoever read
/// it; still nothing in it is trusted to be in bounds or in order.
pub struct Image<B> {
    bytes: B,
    header: ImageHeader,
    guide: OnceLock<Guide>,
}

/// What lookups begin with, instead of with the image itself.
#[derive(Debug)]
struct Guide {
    fences: Fences,
    /// The greatest key, if there is one and it could be read.
    last: Option<Box<[u8]>>,
}

impl<B: AsRef<[u8]>> fmt::Debug for Image<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("entries", &self.header.entries)
            .field("length", &self.header.length)
            .finish()
    }
}

fn bad(field: &'static str, what: impl Into<String>) -> FormatError {
    FormatError::field("Image", field, "F-35", what)
}

impl<B: AsRef<[u8]>> Image<B> {
    /// Takes the image at the front of `bytes`.
    ///
    /// # Errors
    /// What is wrong with its header.
    pub fn open(bytes: B) -> Result<Self, FormatError> {
        let name = "ImageHeader";
        let slice = bytes.as_ref();
        let header = *ImageHeader::view(slice)?;
        if header.magic != MAGIC {
            return Err(FormatError::Magic {
                structure: name,
                found: header.magic.get().into(),
            });
        }
        let start = size_of::<ImageHeader>() as u64;
        let section = |offset: u64, count: u64, size: usize| {
            count
                .checked_mul(size as u64)
                .and_then(|length| offset.checked_add(length))
        };
        let groups_offset = header.groups_offset.get();
        let sections = groups_offset >= start
            && section(groups_offset, header.groups.get(), 8) == Some(header.extents_offset.get())
            && section(
                header.extents_offset.get(),
                header.extents.get(),
                size_of::<ExtentEntry>(),
            ) == Some(header.segments_offset.get())
            && section(
                header.segments_offset.get(),
                header.segments.get(),
                size_of::<SegmentEntry>(),
            ) == Some(header.length.get());
        require(sections, name, "length", "F-34", || {
            "does not fit its sections".to_owned()
        })?;
        require(
            header.length.get() <= slice.len() as u64,
            name,
            "length",
            "F-34",
            || format!("is {}, there are {} bytes", header.length, slice.len()),
        )?;
        require(
            u64::from(header.group_size) == GROUP_SIZE,
            name,
            "group_size",
            "F-34",
            || format!("is {}", header.group_size),
        )?;
        require(
            header.entries.get().div_ceil(GROUP_SIZE) == header.groups.get(),
            name,
            "groups",
            "F-34",
            || format!("is {}, there are {} entries", header.groups, header.entries),
        )?;
        require(header.reserved == 0, name, "reserved", "F-4", || {
            "is not zero".to_owned()
        })?;
        Ok(Self {
            bytes,
            header,
            guide: OnceLock::new(),
        })
    }

    /// Makes what lookups begin with, as the first of them does else: it looks at each group.
    pub fn prepare(&self) {
        self.guide();
    }

    fn guide(&self) -> &Guide {
        self.guide.get_or_init(|| {
            let groups = usize::try_from(self.header.groups.get()).unwrap_or(0);
            Guide {
                fences: Fences::new(groups, |group| self.first_key(group as u64).ok()),
                last: self.last_key().ok(),
            }
        })
    }

    /// Bytes of memory that it takes.
    #[must_use]
    pub fn memory(&self) -> usize {
        let guide = self.guide.get().map_or(0, |guide| {
            guide.fences.memory() + guide.last.as_ref().map_or(0, |last| last.len())
        });
        self.bytes().len() + guide
    }

    /// Its header.
    #[must_use]
    pub fn header(&self) -> &ImageHeader {
        &self.header
    }

    /// All its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.slice(0, self.header.length.get())
    }

    /// The extents it lists.
    pub fn extents(&self) -> impl Iterator<Item = ExtentEntry> + '_ {
        let bytes = self.slice(
            self.header.extents_offset.get(),
            self.header.segments_offset.get(),
        );
        bytes
            .chunks_exact(size_of::<ExtentEntry>())
            .filter_map(|bytes| ExtentEntry::view(bytes).ok().copied())
    }

    /// The segments it lists.
    pub fn segments(&self) -> impl Iterator<Item = SegmentEntry> + '_ {
        let bytes = self.slice(self.header.segments_offset.get(), self.header.length.get());
        bytes
            .chunks_exact(size_of::<SegmentEntry>())
            .filter_map(|bytes| SegmentEntry::view(bytes).ok().copied())
    }

    /// Checks the tables of extents and segments against the sector's measures \[F-36\].
    ///
    /// # Errors
    /// The first entry that is wrong.
    pub fn check(&self, geometry: &Geometry) -> Result<(), FormatError> {
        let name = "Image";
        let count = self.header.segments.get();
        let (fewest, _) = SEGMENT_COUNTS;
        // Fewer, if the sector has grown since [F-67].
        let fits = u64::from(fewest) <= count && count <= u64::from(geometry.segment_count);
        require(fits, name, "segments", "F-36", || {
            format!(
                "has {count} entries, the sector has {}",
                geometry.segment_count
            )
        })?;
        let wrong = |entry: &SegmentEntry| {
            entry.state > STATE_CHECKPOINT
                || entry.zeroed > 1
                || entry.reserved != 0
                || entry.live > geometry.segment_size
                || u64::from(entry.written.get()) > geometry.segment_size
        };
        if let Some(segment) = self.segments().position(|entry| wrong(&entry)) {
            let what = format!("has an impossible entry for segment {segment}");
            return Err(FormatError::field(name, "segments", "F-36", what));
        }
        let mut last = 0;
        for extent in self.extents() {
            let head = u64::from(extent.head_length.get());
            let stored = stored_length(extent.payload_length.get().into());
            let begin = extent.address.get().checked_sub(head);
            let holds = begin
                .and_then(|begin| geometry.segment_of(begin))
                .is_some_and(|(_, offset)| {
                    offset != 0
                        && offset
                            .checked_add(head + stored)
                            .is_some_and(|end| end <= geometry.segment_size)
                });
            require(
                holds && head >= HEAD_MIN_LEN && extent.reserved == 0 && extent.lsn > last,
                name,
                "extents",
                "F-36",
                || format!("has an impossible entry for LSN {}", extent.lsn),
            )?;
            last = extent.lsn.get();
        }
        Ok(())
    }

    // Sections were checked to lie within the bytes.
    fn slice(&self, start: u64, end: u64) -> &[u8] {
        let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
        range
            .and_then(|(start, end)| self.bytes.as_ref().get(start..end))
            .unwrap_or_default()
    }

    fn group(&self, group: u64) -> Result<&[u8], FormatError> {
        let table = self.header.groups_offset.get();
        let offset = |group: u64| {
            if group == self.header.groups.get() {
                return Some(table);
            }
            let bytes = self.slice(table + group * 8, table + group * 8 + 8);
            bytes.try_into().ok().map(u64::from_le_bytes)
        };
        let range = offset(group).zip(offset(group + 1));
        range
            .filter(|&(start, end)| {
                size_of::<ImageHeader>() as u64 <= start && start < end && end <= table
            })
            .map(|(start, end)| self.slice(start, end))
            .ok_or_else(|| bad("groups", format!("place group {group} out of bounds")))
    }

    fn first_key(&self, group: u64) -> Result<&[u8], FormatError> {
        let mut bytes = self.group(group)?;
        take_key(&mut bytes, 0).map(|(_, suffix)| suffix)
    }

    /// The greatest key, of an image that has any.
    fn last_key(&self) -> Result<Box<[u8]>, FormatError> {
        let last = self.header.groups.get().checked_sub(1);
        let mut bytes = self.group(last.ok_or_else(|| bad("groups", "are none"))?)?;
        let mut key = Vec::new();
        while !bytes.is_empty() {
            let (shared, suffix) = take_key(&mut bytes, key.len())?;
            key.truncate(shared);
            key.extend_from_slice(suffix);
            self.skip_value(&mut bytes)?;
        }
        Ok(key.into())
    }

    /// The number of the last group whose first key is not greater than `key`, or 0.
    fn find_group(&self, key: &[u8]) -> Result<u64, FormatError> {
        let groups = usize::try_from(self.header.groups.get()).unwrap_or(0);
        let candidates = self.guide().fences.candidates(groups, key);
        let (mut low, mut high) = (candidates.start as u64, candidates.end as u64);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.first_key(middle)? <= key {
                low = middle
            } else {
                high = middle
            }
        }
        Ok(low)
    }

    /// The entry of `key`.
    ///
    /// # Errors
    /// Where the image does not decode.
    pub fn get(&self, key: &[u8]) -> Result<Option<ImageEntry>, FormatError> {
        // Who puts keys in their order asks for one behind all others each time.
        let is_behind = self.guide().last.as_deref().is_some_and(|last| key > last);
        if self.header.entries == 0 || is_behind {
            return Ok(None);
        }
        let mut bytes = self.group(self.find_group(key)?)?;
        // `matched` bytes of the wanted key equal the current one's; keys ascend, so a later key
        // that shares fewer than that is greater than the wanted one.
        let mut current: &[u8];
        let mut matched = 0;
        let mut length = 0;
        while !bytes.is_empty() {
            let (shared, suffix) = take_key(&mut bytes, length)?;
            length = shared + suffix.len();
            match shared.cmp(&matched) {
                Ordering::Less => return Ok(None),
                Ordering::Greater => {
                    self.skip_value(&mut bytes)?;
                    continue;
                }
                Ordering::Equal => {}
            }
            current = suffix;
            let rest = &key[matched..];
            let common = rest.iter().zip(current).take_while(|(a, b)| a == b).count();
            matched += common;
            match (rest.get(common), current.get(common)) {
                (None, None) => return self.take_value(&mut bytes).map(Some),
                (None, Some(_)) => return Ok(None),
                (Some(wanted), Some(found)) if wanted < found => return Ok(None),
                _ => self.skip_value(&mut bytes)?,
            }
        }
        Ok(None)
    }

    /// Steps over a value, which need not be a good one.
    fn skip_value(&self, bytes: &mut &[u8]) -> Result<(), FormatError> {
        // LSN, size, time, address, and perhaps the length of metadata.
        let numbers = match bytes.first() {
            Some(&KIND_BLOB) => 4,
            Some(&kind) if kind == KIND_BLOB | FLAG_META => 5,
            _ => return self.take_value(bytes).map(|_| ()),
        };
        *bytes = &bytes[1..];
        skip(bytes, numbers).ok_or_else(|| bad("entry", "is cut off"))
    }

    fn take_value(&self, bytes: &mut &[u8]) -> Result<ImageEntry, FormatError> {
        let cut = || bad("entry", "is cut off");
        let (&flags, rest) = bytes.split_first().ok_or_else(cut)?;
        *bytes = rest;
        let mut number = || take(bytes).ok_or_else(cut);
        let base = self.header.lsn_base.get();
        let lsn = |back: u64| {
            base.checked_sub(back)
                .ok_or_else(|| bad("entry", "has an LSN below 0"))
        };
        let entry_lsn = lsn(number()?)?;
        let kind = flags & !(FLAG_META | FLAG_CHANGED | FLAG_LIFE | FLAG_REPLICAS);
        if flags == KIND_TOMBSTONE {
            return Ok(ImageEntry {
                lsn: entry_lsn,
                value: ImageValue::Tombstone,
            });
        }
        if kind != KIND_BLOB && kind != KIND_MANIFEST {
            return Err(bad("entry", format!("has the unknown kind {flags:#x}")));
        }
        let size = number()?;
        let time = self
            .header
            .time_base
            .get()
            .wrapping_add(unzigzag(number()?).cast_unsigned());
        let address = number()?;
        let meta_length = if flags & FLAG_META == 0 { 0 } else { number()? };
        let meta_length = u32::try_from(meta_length)
            .ok()
            .filter(|&length| length as usize <= META_MAX_LEN)
            .ok_or_else(|| bad("entry", format!("has {meta_length} bytes of metadata")))?;
        let narrow = |value: u64| {
            u32::try_from(value).map_err(|_| bad("entry", "has an oversized piece or payload"))
        };
        let changed = match flags & FLAG_CHANGED {
            0 => None,
            _ => Some(ChangedRecord {
                lsn: lsn(number()?)?,
                payload_length: narrow(number()?)?,
            }),
        };
        if changed.is_some_and(|changed| changed.lsn > entry_lsn || kind != KIND_MANIFEST) {
            return Err(bad(
                "entry",
                "has a record of a newer version, or no pieces",
            ));
        }
        let life = match flags & FLAG_LIFE {
            0 => None,
            _ => Some(lsn(number()?)?),
        };
        let record_lsn = changed.map_or(entry_lsn, |changed| changed.lsn);
        if life.is_some_and(|life| life == 0 || life >= record_lsn || kind != KIND_MANIFEST) {
            return Err(bad(
                "entry",
                "has a life that began no earlier, or no pieces",
            ));
        }
        let replicas = match flags & FLAG_REPLICAS {
            0 => None,
            _ => Some(take_replicas(bytes)?),
        };
        let extents = if kind == KIND_MANIFEST {
            let count = take(bytes).ok_or_else(cut)?;
            // A piece takes at least three bytes, which bounds what is allocated.
            let mut extents =
                Vec::with_capacity(usize::try_from(count.min(bytes.len() as u64 / 3)).unwrap_or(0));
            for _ in 0..count {
                let mut number = || take(bytes).ok_or_else(cut);
                extents.push(ExtentRef {
                    lsn: lsn(number()?)?.into(),
                    offset: narrow(number()?)?.into(),
                    length: narrow(number()?)?.into(),
                });
            }
            check_extents(size, &extents)?;
            Some(extents)
        } else if size > u32::MAX.into() {
            return Err(bad("entry", format!("has {size} bytes in one record")));
        } else {
            None
        };
        Ok(ImageEntry {
            lsn: entry_lsn,
            value: ImageValue::Blob {
                address,
                size,
                time,
                meta_length,
                changed,
                life,
                replicas,
                extents,
            },
        })
    }

    /// A cursor before the first entry whose key is `from` or greater.
    ///
    /// # Errors
    /// Where the image does not decode.
    pub fn seek(&self, from: &[u8]) -> Result<Cursor<'_, B>, FormatError> {
        let mut cursor = Cursor {
            image: self,
            next_group: 0,
            rest: &[],
            left: 0,
            key: Vec::new(),
            pending: None,
        };
        if self.header.entries == 0 {
            return Ok(cursor);
        }
        cursor.next_group = self.find_group(from)?;
        while let Some(entry) = cursor.advance()? {
            if cursor.key.as_slice() >= from {
                cursor.pending = Some(entry);
                break;
            }
        }
        Ok(cursor)
    }
}

/// Takes a number of replicas off `bytes` \[F-70\].
fn take_replicas(bytes: &mut &[u8]) -> Result<u8, FormatError> {
    let (&count, rest) = bytes
        .split_first()
        .ok_or_else(|| bad("entry", "is cut off"))?;
    *bytes = rest;
    if !meta::is_count(count) {
        let what = format!("has {count} replicas");
        return Err(FormatError::field("Image", "entry", "F-70", what));
    }
    Ok(count)
}

/// Takes an entry's key off `bytes`: how many bytes it shares with the one before (which has
/// `previous` bytes), and the rest of it.
fn take_key<'a>(bytes: &mut &'a [u8], previous: usize) -> Result<(usize, &'a [u8]), FormatError> {
    let cut = || bad("key", "is cut off");
    let shared = take(bytes)
        .and_then(|shared| usize::try_from(shared).ok())
        .ok_or_else(cut)?;
    let length = take(bytes)
        .and_then(|length| usize::try_from(length).ok())
        .ok_or_else(cut)?;
    if shared > previous
        || !(STORED_KEY_MIN_LEN..=STORED_KEY_MAX_LEN).contains(&shared.saturating_add(length))
        || length == 0
    {
        return Err(bad(
            "key",
            format!("shares {shared} of {previous} bytes and adds {length}"),
        ));
    }
    let whole: &'a [u8] = bytes;
    let suffix = whole.get(..length).ok_or_else(cut)?;
    *bytes = &whole[length..];
    Ok((shared, suffix))
}

/// Walks an image's entries in order.
pub struct Cursor<'a, B> {
    image: &'a Image<B>,
    next_group: u64,
    rest: &'a [u8],
    /// Entries that are still to come in `rest`.
    left: u64,
    key: Vec<u8>,
    pending: Option<ImageEntry>,
}

impl<B: AsRef<[u8]>> fmt::Debug for Cursor<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor")
            .field("next_group", &self.next_group)
            .finish_non_exhaustive()
    }
}

impl<B: AsRef<[u8]>> Cursor<'_, B> {
    /// The key of the entry that [`Cursor::next`] returned last.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The next entry; its key is [`Cursor::key`].
    ///
    /// # Errors
    /// Where the image does not decode, or is out of order.
    #[expect(clippy::should_implement_trait, reason = "the key is lent, not owned")]
    pub fn next(&mut self) -> Result<Option<ImageEntry>, FormatError> {
        match self.pending.take() {
            Some(entry) => Ok(Some(entry)),
            None => self.advance(),
        }
    }

    fn advance(&mut self) -> Result<Option<ImageEntry>, FormatError> {
        let header = &self.image.header;
        let first_of_group = self.rest.is_empty();
        if first_of_group != (self.left == 0) {
            return Err(bad("groups", "have other than the stated entries"));
        }
        if first_of_group {
            if self.next_group == header.groups.get() {
                return Ok(None);
            }
            self.rest = self.image.group(self.next_group)?;
            let before = self.next_group * GROUP_SIZE;
            self.left = GROUP_SIZE.min(header.entries.get().saturating_sub(before));
            self.next_group += 1;
        }
        self.left = self.left.saturating_sub(1);
        let previous = if first_of_group { 0 } else { self.key.len() };
        let (shared, suffix) = take_key(&mut self.rest, previous)?;
        let replaced = &self.key[shared..];
        if !self.key.is_empty() && replaced >= suffix {
            return Err(bad("key", "is not greater than the one before"));
        }
        // `get` relies on it.
        if !first_of_group && replaced.first() == suffix.first() {
            return Err(bad("key", "shares more than it says with the one before"));
        }
        self.key.truncate(shared);
        self.key.extend_from_slice(suffix);
        self.image.take_value(&mut self.rest).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn entry(lsn: u64) -> ImageEntry {
        let value = match lsn % 4 {
            0 => ImageValue::Tombstone,
            1 => ImageValue::Blob {
                address: lsn * 512,
                size: 12,
                time: 1_700_000_000_000 + lsn,
                meta_length: 5,
                changed: (lsn > 8).then_some(ChangedRecord {
                    lsn: lsn - 1,
                    payload_length: 77,
                }),
                life: (lsn > 16).then(|| lsn - 2),
                replicas: (lsn > 24).then_some(64),
                extents: Some(vec![
                    ExtentRef {
                        lsn: 1.into(),
                        offset: 0.into(),
                        length: 4.into(),
                    },
                    ExtentRef::hole(3),
                    ExtentRef {
                        lsn: lsn.into(),
                        offset: 7.into(),
                        length: 5.into(),
                    },
                ]),
            },
            _ => ImageValue::Blob {
                address: lsn * 512,
                size: lsn,
                time: 1_690_000_000_000,
                meta_length: 0,
                changed: None,
                life: None,
                replicas: (lsn % 4 == 3).then_some(3),
                extents: None,
            },
        };
        ImageEntry { lsn, value }
    }

    fn sample(
        keys: impl Iterator<Item = Vec<u8>>,
    ) -> (BTreeMap<Vec<u8>, ImageEntry>, Image<Vec<u8>>) {
        let entries: BTreeMap<_, _> = keys.zip(1..).map(|(key, lsn)| (key, entry(lsn))).collect();
        let mut builder = ImageBuilder::new(1_000_000, 1_700_000_000_000);
        entries
            .iter()
            .for_each(|(key, entry)| builder.push(key, entry));
        let image = Image::open(builder.finish(&[], &[])).unwrap();
        (entries, image)
    }

    fn key_sets() -> Vec<Vec<Vec<u8>>> {
        let dense = (0..300_u32)
            .map(|n| format!("key/{n:05}").into_bytes())
            .collect();
        let nested = (2..100).map(|length| vec![b'a'; length]).collect();
        let binary = (0..=255_u8)
            .flat_map(|a| [vec![0, a], vec![a, 0, 0], vec![a, 255, a]])
            .collect();
        vec![
            vec![],
            vec![b"one".to_vec()],
            dense,
            nested,
            binary,
            vec![vec![0; STORED_KEY_MAX_LEN], vec![255; STORED_KEY_MAX_LEN]],
        ]
    }

    #[test]
    fn every_key_is_found_and_no_other() {
        for keys in key_sets() {
            let (entries, image) = sample(keys.into_iter());
            for (key, entry) in &entries {
                assert_eq!(image.get(key).unwrap().as_ref(), Some(entry));
                for near in [
                    [key, b"\0".as_slice()].concat(),
                    key[..key.len() - 1].to_vec(),
                    [key, b"\xff".as_slice()].concat(),
                ] {
                    assert_eq!(
                        image.get(&near).unwrap(),
                        entries.get(&near).cloned(),
                        "{near:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn cursors_walk_in_order_from_anywhere() {
        for keys in key_sets() {
            let (entries, image) = sample(keys.iter().cloned());
            for from in
                keys.iter()
                    .cloned()
                    .chain([vec![], vec![255; 2000], b"key/00100x".to_vec()])
            {
                let mut cursor = image.seek(&from).unwrap();
                let mut found = Vec::new();
                while let Some(entry) = cursor.next().unwrap() {
                    found.push((cursor.key().to_vec(), entry));
                }
                let expected: Vec<_> = entries
                    .range(from..)
                    .map(|(key, entry)| (key.clone(), entry.clone()))
                    .collect();
                assert_eq!(found, expected);
            }
        }
    }

    /// \[F-70\]
    #[test]
    fn a_number_of_replicas_is_one_that_can_be() {
        let (_, image) = sample((1..4).map(|n| vec![0, n]));
        // Of the last entry it is the last byte.
        let at = image.header().groups_offset.get() as usize - 1;
        let mut bytes = image.bytes().to_vec();
        assert_eq!(bytes[at], 3);
        let counts = [(0, false), (1, true), (64, true), (65, false), (255, false)];
        for (count, is_good) in counts {
            bytes[at] = count;
            let found = Image::open(&bytes).unwrap().get(&[0, 3]);
            assert_eq!(found.is_ok(), is_good, "{count}: {found:?}");
        }
        // A tombstone has none.
        bytes[at] = 3;
        let entry = [1, 1, 3, KIND_BLOB | FLAG_REPLICAS];
        let flags = bytes.windows(4).position(|bytes| bytes == entry).unwrap() + 3;
        bytes[flags] = KIND_TOMBSTONE | FLAG_REPLICAS;
        assert!(Image::open(&bytes).unwrap().get(&[0, 3]).is_err());
    }

    #[test]
    fn damage_is_an_error_or_another_answer_but_never_a_panic() {
        let (_, image) = sample((0..40_u32).map(|n| format!("key/{n:05}").into_bytes()));
        let bytes = image.bytes().to_vec();
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff, bytes[at] ^ 1] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                let Ok(image) = Image::open(damaged) else {
                    continue;
                };
                let _ = image.get(b"key/00020");
                if let Ok(mut cursor) = image.seek(b"") {
                    while let Ok(Some(_)) = cursor.next() {}
                }
            }
        }
        for cut in 0..bytes.len() {
            assert!(Image::open(&bytes[..cut]).is_err());
        }
    }
}

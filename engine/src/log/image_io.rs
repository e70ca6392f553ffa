//! Checkpoints on disk: writing an image and its root, and reading them back.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::sync::Arc;

use bytes::Bytes;
use graviton_format::checkpoint::{
    CheckpointRoot, image_page_checksum, stored_image_length, verify_summed_pages,
};
use graviton_format::geometry::ROOT_SLOT_SIZE;
use graviton_format::image::{Image, PAGE_SIZE};
use graviton_format::segment::{self, SegmentHeader};
use graviton_format::{FormatError, Geometry};

use super::sector::{Sector, until_whole};
use crate::io::{AlignedBuf, IoOp, WriteSync};
use crate::port::StorageError;

/// Bytes of an image moved by one device call, and how many calls are under way at once.
const TRANSFER: usize = 1 << 20;
const TRANSFERS: usize = 8;

/// An image in memory.
pub type LoadedImage = Image<Bytes>;

/// A checkpoint root that is valid, with the segments of its image.
#[derive(Debug, Clone)]
pub struct Root {
    /// The root itself.
    pub root: CheckpointRoot,
    /// The segments of its image, in order.
    pub segments: Vec<u32>,
}

/// Bytes an image takes in its segments.
///
/// # Panics
/// If the image is larger than any sector can be.
#[must_use]
pub fn image_stored_length(length: usize) -> u64 {
    stored_image_length(length as u64).expect("an image in memory is far below 2^64 bytes")
}

/// How many segments an image of `length` bytes takes.
#[must_use]
pub fn image_segments(geometry: &Geometry, length: usize) -> u32 {
    u32::try_from(image_stored_length(length).div_ceil(geometry.image_bytes_per_segment()))
        .unwrap_or(u32::MAX)
}

/// Writes a sealed image ([`graviton_format::checkpoint::seal_image`]) into `segments` (numbers and
/// generations) as part of checkpoint `sequence`, and makes it, and the log before it, durable.
///
/// # Errors
/// `Io`.
pub async fn write_image(
    sector: &Sector,
    stored: &[u8],
    sequence: u64,
    segments: &[(u32, u64)],
) -> Result<(), StorageError> {
    let mut writes = VecDeque::new();
    let mut outcome = send_image(sector, stored, sequence, segments, &mut writes).await;
    // Whatever failed: no write may land in a segment that is given back.
    while !writes.is_empty() {
        outcome = outcome.and(finish_write(sector, writes.pop_front()).await);
    }
    outcome?;
    sector.sync().await
}

async fn send_image(
    sector: &Sector,
    stored: &[u8],
    sequence: u64,
    segments: &[(u32, u64)],
    writes: &mut VecDeque<(u64, IoOp)>,
) -> Result<(), StorageError> {
    let geometry = sector.geometry();
    let per_segment =
        usize::try_from(geometry.image_bytes_per_segment()).expect("a segment fits memory");
    for (part, &(index, generation)) in segments.iter().enumerate() {
        let base = geometry.segment_offset(index);
        let mut header = sector.buffer(geometry.block_size.into())?;
        header.fill(0);
        let written = SegmentHeader {
            magic: segment::MAGIC.into(),
            checksum: 0.into(),
            kind: segment::KIND_CHECKPOINT.into(),
            segment: index.into(),
            generation: generation.into(),
            first_lsn: 0.into(),
            durable_lsn: 0.into(),
            previous_segment: u32::try_from(part).unwrap_or(u32::MAX).into(),
            previous_end: 0.into(),
            previous_generation: sequence.into(),
            previous_lsn: 0.into(),
            previous_checksum: 0.into(),
            reserved: [0; 60],
        };
        header[..size_of::<SegmentHeader>()]
            .copy_from_slice(written.sealed(sector.identity(), base).bytes());
        writes.push_back((base, sector.disk().write(header, base, WriteSync::None)));
        let bytes = stored.chunks(per_segment).nth(part).unwrap_or_default();
        for (piece, at) in bytes.chunks(TRANSFER).zip((0..).step_by(TRANSFER)) {
            let address = base + u64::from(geometry.block_size) + at;
            let mut buffer = sector.buffer(geometry.round_up(piece.len() as u64))?;
            buffer[..piece.len()].copy_from_slice(piece);
            buffer[piece.len()..].fill(0);
            writes.push_back((
                address,
                sector.disk().write(buffer, address, WriteSync::None),
            ));
            while writes.len() > TRANSFERS {
                finish_write(sector, writes.pop_front()).await?;
            }
        }
    }
    Ok(())
}

async fn finish_write(sector: &Sector, write: Option<(u64, IoOp)>) -> Result<(), StorageError> {
    let Some((address, write)) = write else {
        return Ok(());
    };
    let (_, outcome) = write.await;
    sector.written("write", address, outcome)
}

/// Writes both copies of a root, durably. The image must be durable already.
///
/// # Errors
/// `Io`.
pub async fn write_root(
    sector: &Sector,
    root: &CheckpointRoot,
    segments: &[u32],
) -> Result<(), StorageError> {
    let addresses = sector.geometry().roots(root.sequence.get());
    // If there is no memory for one of them, none is written: the image comes to nothing then.
    let copies =
        addresses.map(|address| Ok((address, root_copy(sector, root, segments, address)?)));
    for copy in copies
        .into_iter()
        .collect::<Result<Vec<_>, StorageError>>()?
    {
        write_root_copy(sector, copy).await?;
    }
    Ok(())
}

/// All of a slot, which is read as a whole, with the copy of a root for `address`.
///
/// # Errors
/// `Io` when there is no memory.
pub fn root_copy(
    sector: &Sector,
    root: &CheckpointRoot,
    segments: &[u32],
    address: u64,
) -> Result<AlignedBuf, StorageError> {
    let bytes = root.encode(sector.identity(), address, segments);
    let mut slot = sector.buffer(ROOT_SLOT_SIZE as u64)?;
    slot.fill(0);
    slot[..bytes.len()].copy_from_slice(&bytes);
    Ok(slot)
}

async fn write_root_copy(
    sector: &Sector,
    (address, slot): (u64, AlignedBuf),
) -> Result<(), StorageError> {
    sector.write(slot, address, WriteSync::None).await?;
    sector.sync().await
}

/// Writes the copies of roots that are not like their others, as after a crash between the writes.
/// Else an older root would stay whose image's segments are used anew.
///
/// # Errors
/// `Io`; the sector is poisoned then.
pub async fn mend_roots(sector: &Sector, behind: &[(u64, Root)]) -> Result<(), StorageError> {
    for (address, root) in behind {
        let slot = root_copy(sector, &root.root, &root.segments, *address)?;
        write_root_copy(sector, (*address, slot)).await?;
    }
    Ok(())
}

/// What is wrong with a copy of a root.
enum BadRoot {
    /// It was never written.
    Missing,
    Damaged(FormatError),
    Unreadable(StorageError),
}

async fn read_root_copy(sector: &Sector, address: u64) -> Result<Root, BadRoot> {
    let decode = |bytes: &[u8]| {
        let decoded = CheckpointRoot::decode(bytes, sector.identity(), &sector.geometry(), address);
        match decoded {
            Ok((root, segments)) => Ok(Root { root, segments }),
            Err(FormatError::Magic { found: 0, .. }) if bytes.iter().all(|&byte| byte == 0) => {
                Err(BadRoot::Missing)
            }
            Err(error) => Err(BadRoot::Damaged(error)),
        }
    };
    let slot = address..address + ROOT_SLOT_SIZE as u64;
    let read = sector.read_whole(slot, decode).await;
    read.unwrap_or_else(|error| Err(BadRoot::Unreadable(error)))
}

/// The valid roots, newest first, and what was found wrong with the others. Nothing is wrong with a
/// checkpoint that a crash has cut short between the two copies of its root: of the newest, the
/// second may be an older one, or none.
pub async fn read_roots(sector: &Sector) -> (Vec<Root>, RootNotes) {
    let mut roots: Vec<Root> = Vec::new();
    let mut notes = RootNotes::default();
    let mut behind = Vec::new();
    let sequence = |root: &&Root| root.root.sequence.get();
    for slot in [0, 1] {
        let mut damaged = Vec::new();
        let mut empty = Vec::new();
        let mut whole = Vec::new();
        let [_, last] = sector.geometry().roots(slot);
        for address in sector.geometry().roots(slot) {
            match read_root_copy(sector, address).await {
                Ok(root) => whole.push((address, root)),
                Err(BadRoot::Missing) => empty.push(address),
                Err(BadRoot::Damaged(error)) => {
                    damaged.push((address, format!("a checkpoint root is damaged: {error}")));
                }
                Err(BadRoot::Unreadable(error)) => {
                    damaged.push((address, format!("a checkpoint root can't be read: {error}")));
                    notes.unreadable = Some(error);
                }
            }
        }
        let Some(newest) = whole.iter().map(|(_, root)| root).max_by_key(sequence) else {
            // Where both are empty, the slot was never used.
            notes.lost.extend(damaged);
            continue;
        };
        let newest = newest.clone();
        let number = sequence(&&newest);
        let mut late: Vec<(u64, String)> = Vec::new();
        for (address, root) in whole {
            let other = sequence(&&root);
            if other != number {
                let what = format!("a checkpoint root is {other}, its other copy {number}");
                late.push((address, what));
                roots.push(root);
            }
        }
        let missing = |address| (address, "a copy of a checkpoint root is missing".to_owned());
        late.extend(empty.into_iter().map(missing));
        let bad = damaged.iter().chain(&late);
        notes
            .behind
            .extend(bad.map(|(address, _)| (*address, newest.clone())));
        notes.to_mend.extend(damaged);
        behind.extend(late.into_iter().map(|note| (number, note.0 == last, note)));
        roots.push(newest);
    }
    roots.sort_by_key(|root| std::cmp::Reverse(sequence(&root)));
    let newest = roots.first().map(|root| sequence(&root));
    let wrong = behind
        .into_iter()
        .filter(|(number, is_last, _)| !is_last || Some(*number) != newest)
        .map(|(.., note)| note);
    notes.to_mend.extend(wrong);
    (roots, notes)
}

/// What is wrong with a sector's roots.
#[derive(Debug, Default)]
pub struct RootNotes {
    /// Both copies of a slot are bad: their addresses, and in what way.
    pub lost: Vec<(u64, String)>,
    /// One is, or is missing or older, and the other will do: rot, or a crash while it was written.
    pub to_mend: Vec<(u64, String)>,
    /// All copies that are not like their others, whatever the cause, and what is to be there.
    pub behind: Vec<(u64, Root)>,
    /// Why one can't be read, if that is so.
    pub unreadable: Option<StorageError>,
}

/// Whether the segments that a root names still hold its image, by their headers; those that can't be
/// read may.
pub async fn has_image(sector: &Sector, root: &Root) -> bool {
    for (part, &segment) in (0..).zip(&root.segments) {
        let part = check_part(sector, segment, part, root.root.sequence.get());
        if let Err(StorageError::Corruption { .. }) = part.await {
            return false;
        }
    }
    true
}

/// Reads and verifies the image of a root.
///
/// # Errors
/// `Io`, or `Corruption` where the image is damaged.
pub async fn read_image(sector: &Arc<Sector>, root: &Root) -> Result<LoadedImage, StorageError> {
    until_whole(async || read_image_once(sector, root).await, Result::is_ok).await
}

async fn read_image_once(sector: &Arc<Sector>, root: &Root) -> Result<LoadedImage, StorageError> {
    let geometry = sector.geometry();
    let length = root.root.image_length.get();
    let stored =
        stored_image_length(length).ok_or_else(|| sector.corruption(0, "oversized image"))?;
    let per_segment = geometry.image_bytes_per_segment();
    let mut image = AlignedBuf::empty();
    // Parts of it are read where they lie.
    let mut rest = sector.buffer(geometry.round_up(stored))?;
    let mut reads: VecDeque<(u64, IoOp)> = VecDeque::new();
    let mut sums = PageSums {
        sequence: root.root.sequence.get(),
        sums: Vec::new(),
    };
    let starts = (0..stored).step_by(usize::try_from(per_segment).unwrap_or(usize::MAX));
    for ((&segment, start), part) in root.segments.iter().zip(starts).zip(0_u32..) {
        check_part(sector, segment, part, root.root.sequence.get()).await?;
        let base = geometry.segment_offset(segment) + u64::from(geometry.block_size);
        let end = geometry.round_up(stored).min(start + per_segment);
        for at in (start..end).step_by(TRANSFER) {
            let left = usize::try_from(end - at).unwrap_or(TRANSFER);
            let behind = rest.split_off(left.min(TRANSFER));
            let buffer = mem::replace(&mut rest, behind);
            let address = base + (at - start);
            reads.push_back((address, sector.disk().read(buffer, address)));
            if reads.len() > TRANSFERS {
                finish_read(sector, reads.pop_front(), &mut image, &mut sums).await?;
            }
        }
    }
    while !reads.is_empty() {
        finish_read(sector, reads.pop_front(), &mut image, &mut sums).await?;
    }
    let corruption = |(at, error): (usize, FormatError)| {
        let part = at as u64 / per_segment;
        let base = usize::try_from(part)
            .ok()
            .and_then(|part| root.segments.get(part))
            .map_or(0, |&segment| {
                geometry.segment_offset(segment) + u64::from(geometry.block_size)
            });
        sector.corruption(
            base + at as u64 % per_segment,
            format!("checkpoint {}: {error}", root.root.sequence),
        )
    };
    let length = verify_summed_pages(&image, &root.root, &sums.sums)
        .map_err(corruption)?
        .len();
    let image = Image::open(Bytes::from_owner(image).slice(..length))
        .map_err(|error| corruption((0, error)))?;
    image
        .check(&geometry)
        .map_err(|error| corruption((0, error)))?;
    Ok(image)
}

/// Checks that a segment holds the part of the checkpoint that its root says \[F-37\].
async fn check_part(
    sector: &Sector,
    segment: u32,
    part: u32,
    sequence: u64,
) -> Result<(), StorageError> {
    let geometry = &sector.geometry();
    let base = geometry.segment_offset(segment);
    let wrong = |what: String| sector.corruption(base, what);
    let block = base..base + u64::from(geometry.block_size);
    let check = |bytes: &[u8]| {
        let header = SegmentHeader::decode(bytes, sector.identity(), geometry, segment)
            .map_err(|error| wrong(format!("checkpoint {sequence}: {error}")))?;
        if header.kind == segment::KIND_CHECKPOINT
            && header.previous_segment == part
            && header.previous_generation == sequence
        {
            return Ok(());
        }
        Err(wrong(format!(
            "segment {segment} does not hold part {part} of checkpoint {sequence} [F-37]"
        )))
    };
    sector.read_whole(block, check).await?
}

/// Checksums of an image's pages, summed as it is read: the device has the next ones under way meanwhile.
struct PageSums {
    sequence: u64,
    sums: Vec<u64>,
}

impl PageSums {
    /// Goes on to the end of what was read.
    fn go_on(&mut self, read: &[u8]) {
        let left = read[self.sums.len() * PAGE_SIZE..].chunks_exact(PAGE_SIZE);
        for page in left {
            let number = self.sums.len() as u64;
            self.sums
                .push(image_page_checksum(page, number, self.sequence));
        }
    }
}

/// Reads come in their order.
async fn finish_read(
    sector: &Sector,
    read: Option<(u64, IoOp)>,
    image: &mut AlignedBuf,
    sums: &mut PageSums,
) -> Result<(), StorageError> {
    let Some((address, read)) = read else {
        return Ok(());
    };
    let (buffer, outcome) = read.await;
    outcome.map_err(|source| sector.io_error("read", address, source))?;
    // It is what was to be filled, or the disk has mistaken it for another.
    let joined = image.unsplit(buffer);
    joined.map_err(|_| sector.io_error("read", address, io::ErrorKind::InvalidData.into()))?;
    sums.go_on(image);
    Ok(())
}

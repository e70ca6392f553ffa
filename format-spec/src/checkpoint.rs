//! The checkpoint root: says where the newest image of a sector's index lies, and where replay
//! begins.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::checksum::Identity;
use crate::error::require;
use crate::geometry::ROOT_SLOT_SIZE;
use crate::image::PAGE_SIZE;
use crate::segment::NONE;
use crate::structure::on_disk;
use crate::{FormatError, Geometry};

/// The first bytes of a checkpoint root: `GCKP`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"GCKP");
/// The most segments an image can take.
pub const SEGMENTS_MAX: usize = (ROOT_SLOT_SIZE - size_of::<CheckpointRoot>()) / 4;

on_disk! {
    /// Root of a checkpoint; the numbers of the image's segments (u32 each) follow.
    CheckpointRoot: 128 {
        /// `GCKP`.
        magic: U32,
        /// CRC-32 of identity, address, all other bytes of the root and the list after it.
        checksum: U32,
        /// Counts the sector's checkpoints. The root lies in slot `sequence` modulo 2.
        sequence: U64,
        /// Every frame of this sector up to this LSN is reflected in the image.
        lsn: U64,
        /// Every frame of any sector of the store up to this LSN is.
        store_lsn: U64,
        /// When it was taken, in milliseconds since 1970.
        taken: U64,
        /// The segment in which the log goes on, or 4294967295 if there is no log yet.
        tail_segment: U32,
        /// Where in it replay begins.
        tail_offset: U32,
        /// Its generation.
        tail_generation: U64,
        /// Checksum of the last frame before, or of the segment's header.
        tail_checksum: U32,
        /// Number of segments the image takes.
        segments: U32,
        /// Bytes of the image, without the page checksums that follow it.
        image_length: U64,
        /// xxh3_64 of the page checksums.
        pages_checksum: U64,
        /// Number of blobs in the image.
        blobs: U64,
        /// Their sizes in bytes, summed.
        logical_bytes: U64,
        /// Tombstones up to this LSN may have been left out, of this image or one before it.
        forgotten_lsn: U64,
        /// Zeros.
        reserved: [u8; 24],
    }
}

impl CheckpointRoot {
    fn computed(&self, identity: &Identity, address: u64, list: &[u8]) -> u32 {
        let bytes = self.as_bytes();
        identity.header_checksum(address, &[&bytes[..4], &bytes[8..], list])
    }

    /// The bytes of the root's copy at `address`, with the list of the image's `segments`.
    #[must_use]
    pub fn encode(mut self, identity: &Identity, address: u64, segments: &[u32]) -> Vec<u8> {
        let list: Vec<u8> = segments
            .iter()
            .flat_map(|segment| segment.to_le_bytes())
            .collect();
        self.segments = u32::try_from(segments.len()).unwrap_or(u32::MAX).into();
        self.checksum = self.computed(identity, address, &list).into();
        [self.as_bytes(), &list].concat()
    }

    /// Decodes the copy at `address`, with the list of the image's segments.
    ///
    /// # Errors
    /// What is wrong. A slot that was never used has no magic.
    pub fn decode(
        bytes: &[u8],
        identity: &Identity,
        geometry: &Geometry,
        address: u64,
    ) -> Result<(Self, Vec<u32>), FormatError> {
        let name = "CheckpointRoot";
        let root = *Self::view(bytes)?;
        if root.magic != MAGIC {
            return Err(FormatError::Magic {
                structure: name,
                found: root.magic.get().into(),
            });
        }
        let segments = root.segments.get() as usize;
        require(segments <= SEGMENTS_MAX, name, "segments", "F-31", || {
            format!("is {segments}")
        })?;
        let end = size_of::<Self>() + segments * 4;
        let list = bytes
            .get(size_of::<Self>()..end)
            .ok_or(FormatError::Truncated {
                structure: name,
                needed: end,
                found: bytes.len(),
            })?;
        let stored = root.checksum.get();
        let computed = root.computed(identity, address, list);
        if stored != computed {
            return Err(FormatError::Checksum {
                structure: name,
                stored: stored.into(),
                computed: computed.into(),
            });
        }
        require(
            geometry.roots(root.sequence.get()).contains(&address),
            name,
            "sequence",
            "F-30",
            || format!("is {}, of the other slot", root.sequence),
        )?;
        let list = list
            .chunks_exact(4)
            .filter_map(|bytes| U32::read_from_bytes(bytes).ok())
            .map(U32::get)
            .collect::<Vec<_>>();
        require(
            list.iter().all(|&segment| segment < geometry.segment_count),
            name,
            "segments",
            "F-31",
            || "names a segment past the sector's end".to_owned(),
        )?;
        let room = list.len() as u64 * geometry.image_bytes_per_segment();
        let image_holds =
            stored_image_length(root.image_length.get()).is_some_and(|length| length <= room);
        require(image_holds, name, "image_length", "F-31", || {
            format!("is {}, its segments hold {room}", root.image_length)
        })?;
        let tail = root.tail_segment.get();
        let tail_holds = tail == NONE
            || (tail < geometry.segment_count
                && u64::from(root.tail_offset.get()) <= geometry.segment_size
                && root.tail_offset.get() >= geometry.block_size
                && root.tail_offset.get() % geometry.block_size == 0);
        require(tail_holds, name, "tail_segment", "F-32", || {
            format!("is {tail} at {}", root.tail_offset)
        })?;
        require(root.reserved == [0; 24], name, "reserved", "F-4", || {
            "is not zero".to_owned()
        })?;
        Ok((root, list))
    }
}

/// The checksum of page `number` of the image of checkpoint `sequence` \[F-33\]. It binds both, so
/// that neither an older image nor a misplaced page passes.
#[must_use]
pub fn image_page_checksum(page: &[u8], number: u64, sequence: u64) -> u64 {
    xxh3_64(page) ^ xxh3_64_with_seed(&number.to_le_bytes(), sequence)
}

/// The checksums of an image's pages, the last of which counts as filled up with zeros \[F-33\].
#[must_use]
pub fn image_pages_checksums(image: &[u8], sequence: u64) -> Vec<u64> {
    let checksum = |(number, page): (u64, &[u8])| {
        if page.len() == PAGE_SIZE {
            return image_page_checksum(page, number, sequence);
        }
        let mut whole = page.to_vec();
        whole.resize(PAGE_SIZE, 0);
        image_page_checksum(&whole, number, sequence)
    };
    (0..).zip(image.chunks(PAGE_SIZE)).map(checksum).collect()
}

/// The checksum of the page checksums: the root's `pages_checksum`.
#[must_use]
pub fn pages_checksum(pages: &[u64]) -> u64 {
    xxh3_64(&table_bytes(pages))
}

fn table_bytes(pages: &[u64]) -> Vec<u8> {
    pages.iter().flat_map(|page| page.to_le_bytes()).collect()
}

/// Makes `image` what is stored: fills it up to whole pages with zeros and appends the page
/// checksums. Returns the root's `pages_checksum`.
pub fn seal_image(image: &mut Vec<u8>, sequence: u64) -> u64 {
    image.resize(image.len().next_multiple_of(PAGE_SIZE), 0);
    let pages = image_pages_checksums(image, sequence);
    image.extend_from_slice(&table_bytes(&pages));
    pages_checksum(&pages)
}

/// Verifies the stored image that `root` names (whole pages, then their checksums; what follows
/// is not looked at), and returns the image without the zeros that fill its last page.
///
/// # Errors
/// Where in `stored` the first damage lies, and what it is. Damage of the table comes before
/// damage of a page.
pub fn verify_image_pages<'a>(
    stored: &'a [u8],
    root: &CheckpointRoot,
) -> Result<&'a [u8], (usize, FormatError)> {
    verify_summed_pages(stored, root, &[])
}

/// The same, where the [checksums](image_page_checksum) of the first pages have been computed already: when they were
/// read, say, and lay in the processor's cache.
///
/// # Errors
/// As [`verify_image_pages`].
pub fn verify_summed_pages<'a>(
    stored: &'a [u8],
    root: &CheckpointRoot,
    summed: &[u64],
) -> Result<&'a [u8], (usize, FormatError)> {
    let length = root.image_length.get();
    let needed = stored_image_length(length).and_then(|needed| usize::try_from(needed).ok());
    let sizes = needed.zip(usize::try_from(length).ok());
    let Some((bytes, needed, length)) =
        sizes.and_then(|(needed, length)| Some((stored.get(..needed)?, needed, length)))
    else {
        let error = FormatError::Truncated {
            structure: "Image",
            needed: needed.unwrap_or(usize::MAX),
            found: stored.len(),
        };
        return Err((stored.len(), error));
    };
    let (pages, table) = bytes.split_at(needed / (PAGE_SIZE + 8) * PAGE_SIZE);
    let same = |stored: u64, computed: u64, at: usize, structure: &'static str| {
        if stored == computed {
            return Ok(());
        }
        let error = FormatError::Checksum {
            structure,
            stored,
            computed,
        };
        Err((at, error))
    };
    same(
        root.pages_checksum.get(),
        xxh3_64(table),
        pages.len(),
        "image page table",
    )?;
    let checksums = table
        .chunks_exact(8)
        .filter_map(|bytes| U64::read_from_bytes(bytes).ok());
    for (number, (page, checksum)) in pages.chunks_exact(PAGE_SIZE).zip(checksums).enumerate() {
        let sequence = root.sequence.get();
        let compute = || image_page_checksum(page, number as u64, sequence);
        let computed = summed.get(number).copied().unwrap_or_else(compute);
        same(checksum.get(), computed, number * PAGE_SIZE, "image page")?;
    }
    Ok(&pages[..length])
}

/// Bytes an image of `length` bytes takes in its segments: whole pages, then their checksums.
#[must_use]
pub fn stored_image_length(length: u64) -> Option<u64> {
    let pages = length.div_ceil(PAGE_SIZE as u64);
    pages.checked_mul(PAGE_SIZE as u64 + 8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    fn stored(length: usize, sequence: u64) -> (CheckpointRoot, Vec<u8>) {
        let mut image: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
        let pages_checksum = seal_image(&mut image, sequence);
        let mut root = CheckpointRoot::new_zeroed();
        root.sequence = sequence.into();
        root.image_length = (length as u64).into();
        root.pages_checksum = pages_checksum.into();
        (root, image)
    }

    #[test]
    fn pages_verify_and_damage_is_placed() {
        for length in [
            1,
            96,
            PAGE_SIZE - 1,
            PAGE_SIZE,
            PAGE_SIZE + 1,
            3 * PAGE_SIZE,
        ] {
            let (root, image) = stored(length, 7);
            assert_eq!(stored_image_length(length as u64), Some(image.len() as u64));
            let verified = verify_image_pages(&image, &root).unwrap();
            assert_eq!(verified, &image[..length]);
            assert_eq!(
                image_pages_checksums(&image[..length], 7),
                image_pages_checksums(&image[..length.next_multiple_of(PAGE_SIZE)], 7)
            );
            let pages = length.next_multiple_of(PAGE_SIZE);
            for at in (0..image.len()).step_by(997).chain([image.len() - 1]) {
                let mut damaged = image.clone();
                damaged[at] ^= 4;
                let (place, _) = verify_image_pages(&damaged, &root).unwrap_err();
                let page = if at < pages {
                    at - at % PAGE_SIZE
                } else {
                    pages
                };
                assert_eq!(place, page);
            }
            assert!(verify_image_pages(&image[..image.len() - 1], &root).is_err());
        }
    }

    #[test]
    fn pages_of_another_checkpoint_or_place_do_not_verify() {
        let (root, image) = stored(2 * PAGE_SIZE, 7);
        let (_, other) = stored(2 * PAGE_SIZE, 9);
        assert!(verify_image_pages(&other, &root).is_err());
        let mut mixed = image.clone();
        mixed[..2 * PAGE_SIZE].rotate_left(PAGE_SIZE);
        assert_eq!(verify_image_pages(&mixed, &root).unwrap_err().0, 0);
        assert!(verify_image_pages(&vec![0; image.len()], &root).is_err());
    }

    #[test]
    fn checksums_at_hand_are_those_of_the_first_pages() {
        let (root, image) = stored(3 * PAGE_SIZE, 7);
        let sums = image_pages_checksums(&image[..3 * PAGE_SIZE], 7);
        for count in 0..=3 {
            let verified = verify_summed_pages(&image, &root, &sums[..count]);
            assert_eq!(verified.unwrap(), &image[..3 * PAGE_SIZE]);
            let mut wrong = sums[..count].to_vec();
            if let Some(last) = wrong.last_mut() {
                *last ^= 1;
                let (place, _) = verify_summed_pages(&image, &root, &wrong).unwrap_err();
                assert_eq!(place, (count - 1) * PAGE_SIZE);
            }
            let mut damaged = image.clone();
            damaged[3 * PAGE_SIZE - 1] ^= 1;
            // Whoever has summed all of them has the damaged one as it was read.
            let found = image_pages_checksums(&damaged[..3 * PAGE_SIZE], 7);
            assert!(verify_summed_pages(&damaged, &root, &found[..count]).is_err());
        }
    }

    #[test]
    fn lengths_that_overflow_are_refused() {
        let mut root = CheckpointRoot::new_zeroed();
        for length in [u64::MAX, u64::MAX / 2, 1 << 60] {
            root.image_length = length.into();
            assert!(verify_image_pages(&[0; 100], &root).is_err());
        }
    }
}

//! Where things lie in a sector.

use crate::error::{FormatError, require};

/// Bytes kept at the front and at the back of a sector for superblocks, checkpoint roots and copies of the store file.
pub const AREA_SIZE: u64 = 64 * 1024;
/// Bytes of a checkpoint root's slot.
pub const ROOT_SLOT_SIZE: usize = 16 * 1024;
/// Root slots; checkpoints take them in turn.
pub const ROOT_SLOTS: u64 = 2;
/// Bytes of the slot for a copy of the store file.
pub const STORE_FILE_SLOT_SIZE: usize = 16 * 1024;
/// The least and the greatest size of a segment, in bytes.
pub const SEGMENT_SIZES: (u64, u64) = (64 * 1024, 1024 * 1024 * 1024);
/// The least and the greatest number of segments in a sector.
pub const SEGMENT_COUNTS: (u32, u32) = (16, 1 << 24);

/// The measures of a sector, as its superblock states them. Measures from a disk are to pass
/// [`Geometry::check`] before anything is computed with them.
///
/// ```text
/// 0         64 KiB                                        64 KiB + n × segment_size
/// [front area][segment 0][segment 1] … [segment n-1][back area]
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Alignment of segment headers and frames in bytes: 512 or 4096.
    pub block_size: u32,
    /// Bytes of a segment: a power of two.
    pub segment_size: u64,
    /// Number of segments.
    pub segment_count: u32,
}

impl Geometry {
    /// Checks the measures \[F-12\].
    ///
    /// # Errors
    /// [`FormatError::Field`] naming the one that is wrong.
    pub fn check(&self) -> Result<(), FormatError> {
        let name = "Superblock";
        require(
            matches!(self.block_size, 512 | 4096),
            name,
            "block_size",
            "F-12",
            || format!("is {}, must be 512 or 4096", self.block_size),
        )?;
        let (least, greatest) = SEGMENT_SIZES;
        let sizes_hold =
            self.segment_size.is_power_of_two() && (least..=greatest).contains(&self.segment_size);
        require(sizes_hold, name, "segment_size", "F-12", || {
            format!(
                "is {}, must be a power of two from {least} to {greatest}",
                self.segment_size
            )
        })?;
        let (fewest, most) = SEGMENT_COUNTS;
        require(
            (fewest..=most).contains(&self.segment_count),
            name,
            "segment_count",
            "F-12",
            || format!("is {}, must be {fewest} to {most}", self.segment_count),
        )
    }

    /// The same measures with as many segments as `size` bytes have room for; `None` if those are too few, or
    /// too many.
    #[must_use]
    pub fn fitted(&self, size: u64) -> Option<Self> {
        let count = size
            .checked_sub(2 * AREA_SIZE)?
            .checked_div(self.segment_size)?;
        let (fewest, most) = SEGMENT_COUNTS;
        let segment_count = u32::try_from(count).ok()?;
        (fewest..=most).contains(&segment_count).then_some(Self {
            segment_count,
            ..*self
        })
    }

    /// Where the back copy of the superblock may lie in a sector of `size` bytes of which nothing is known:
    /// where the back area begins if all of them are taken, by segments of each size \[F-13\].
    pub fn back_areas(size: u64) -> impl Iterator<Item = u64> {
        let (least, greatest) = SEGMENT_SIZES;
        let sizes = std::iter::successors(Some(least), |size| Some(size * 2));
        let fitted =
            sizes
                .take_while(move |size| *size <= greatest)
                .filter_map(move |segment_size| {
                    let measures = Self {
                        block_size: 512,
                        segment_size,
                        segment_count: 0,
                    };
                    Some(measures.fitted(size)?.back_area())
                });
        let mut last = None;
        // They descend.
        fitted.filter(move |area| last.replace(*area) != Some(*area))
    }

    /// Bytes of the whole sector.
    #[must_use]
    pub fn sector_size(&self) -> u64 {
        self.back_area() + AREA_SIZE
    }

    /// Where a segment begins.
    #[must_use]
    pub fn segment_offset(&self, segment: u32) -> u64 {
        AREA_SIZE + u64::from(segment) * self.segment_size
    }

    /// The segment that `address` lies in, and the offset in it.
    #[must_use]
    pub fn segment_of(&self, address: u64) -> Option<(u32, u64)> {
        let offset = address.checked_sub(AREA_SIZE)?;
        let segment = u32::try_from(offset.checked_div(self.segment_size)?).ok()?;
        (segment < self.segment_count).then_some((segment, offset % self.segment_size))
    }

    /// Where the back area begins.
    #[must_use]
    pub fn back_area(&self) -> u64 {
        self.segment_offset(self.segment_count)
    }

    /// Where the superblock's copies lie.
    #[must_use]
    pub fn superblocks(&self) -> [u64; 2] {
        [0, self.back_area()]
    }

    /// Where the two copies of a checkpoint root lie. Slots are taken in turn, by the checkpoint's
    /// sequence number \[F-30\].
    #[must_use]
    pub fn roots(&self, sequence: u64) -> [u64; 2] {
        let slot = ROOT_SLOT_SIZE as u64 * (1 + sequence % ROOT_SLOTS);
        [slot, self.back_area() + slot]
    }

    /// Where the copies of the store file lie \[F-71\].
    #[must_use]
    pub fn store_file_copies(&self) -> [u64; 2] {
        let slot = ROOT_SLOT_SIZE as u64 * (1 + ROOT_SLOTS);
        [slot, self.back_area() + slot]
    }

    /// Image bytes a checkpoint segment holds: all but the block of its header.
    #[must_use]
    pub fn image_bytes_per_segment(&self) -> u64 {
        self.segment_size - u64::from(self.block_size)
    }

    /// `length` rounded up to whole blocks.
    #[must_use]
    pub fn round_up(&self, length: u64) -> u64 {
        length.next_multiple_of(u64::from(self.block_size))
    }
}

//! A sector becomes larger, at its end \[F-67\].
//!
//! ```text
//! [front area][segment 0] … [segment n-1][back area]
//! [front area][segment 0] … [segment n-1][segment n] … [segment m-1][back area]
//! ```
//!
//! The new back area is complete and durable before the front copy of the superblock says that it is one. So a
//! crash leaves the one sector or the other, and each thing in the areas is there twice all along.

use graviton_format::Geometry;
use graviton_format::geometry::AREA_SIZE;

use super::image_io::{Root, root_copy};
use super::sector::Sector;
use super::store_file::{StoreFileText, encode_copy};
use crate::io::WriteSync;
use crate::port::StorageError;

/// Makes room behind the sector's end for what `grown` has more, and the sector so large on disk. `roots` are those of
/// the checkpoints that are kept. Neither they nor the superblock or a copy of the store file may be written until the
/// sector [counts](Sector::count_segments) them.
///
/// # Errors
/// `File` if there is no room for it: nothing changed then. `Io`; the sector is poisoned then, but for want of
/// memory, and has the one size or the other when it is opened next.
pub async fn grow(
    sector: &Sector,
    grown: Geometry,
    roots: &[Root],
    store_file: &StoreFileText,
) -> Result<(), StorageError> {
    let before = sector.geometry();
    let extended = sector
        .disk()
        .extend(before.sector_size(), grown.sector_size());
    extended.map_err(|source| StorageError::File {
        operation: "grow",
        path: sector.path().to_owned(),
        source: source.into(),
    })?;
    for root in roots {
        let [_, back] = grown.roots(root.root.sequence.get());
        let copy = root_copy(sector, &root.root, &root.segments, back)?;
        sector.write(copy, back, WriteSync::None).await?;
    }
    let [_, back] = grown.store_file_copies();
    if let Some(copy) = encode_copy(sector, store_file, back)? {
        sector.write(copy, back, WriteSync::None).await?;
    }
    sector.sync().await?;
    sector.take_measures(grown).await
}

/// Zeroes what was the back area of a sector that has grown from `before`: it lies in a segment now.
///
/// # Errors
/// `Io`; the sector is poisoned then, but for want of memory.
pub async fn wipe_outgrown(sector: &Sector, before: Geometry) -> Result<(), StorageError> {
    let mut zeros = sector.buffer(AREA_SIZE)?;
    zeros.fill(0);
    let area = before.back_area();
    sector.write(zeros, area, WriteSync::None).await?;
    sector.sync().await
}

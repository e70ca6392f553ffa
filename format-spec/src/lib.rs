//! The on-disk format of Graviton, and the one place where its bytes are defined.
//!
//! `SPEC.md` beside this crate tells a stranger how to read a sector without this code; the
//! tables in it are checked against the declarations here. Everything is pure: no I/O, no clock,
//! and no input makes it panic. Rules of the specification are tagged (`[F-12]`) and quoted where
//! they are upheld.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::cast_possible_truncation))]

pub mod checkpoint;
pub mod checksum;
pub mod error;
mod fences;
pub mod frame;
pub mod geometry;
pub mod image;
pub mod key;
pub mod meta;
pub mod ranges;
pub mod record;
pub mod segment;
pub mod store_file;
pub mod structure;
pub mod superblock;
pub mod varint;

pub use checksum::Identity;
pub use error::FormatError;
pub use geometry::Geometry;
pub use structure::{Field, Row, Structure};

/// The version of the format written by this crate, and the newest it reads.
pub const FORMAT_VERSION: u32 = 1;

/// Every structure's declared table, for dumps and for the check of `SPEC.md`.
pub const STRUCTURES: &[(&str, usize, &[Field])] = &[
    (
        superblock::Superblock::NAME,
        superblock::Superblock::SIZE,
        superblock::Superblock::FIELDS,
    ),
    (
        store_file::StoreFileCopy::NAME,
        store_file::StoreFileCopy::SIZE,
        store_file::StoreFileCopy::FIELDS,
    ),
    (
        checkpoint::CheckpointRoot::NAME,
        checkpoint::CheckpointRoot::SIZE,
        checkpoint::CheckpointRoot::FIELDS,
    ),
    (
        segment::SegmentHeader::NAME,
        segment::SegmentHeader::SIZE,
        segment::SegmentHeader::FIELDS,
    ),
    (
        frame::FrameHeader::NAME,
        frame::FrameHeader::SIZE,
        frame::FrameHeader::FIELDS,
    ),
    (
        record::RecordHeader::NAME,
        record::RecordHeader::SIZE,
        record::RecordHeader::FIELDS,
    ),
    (
        record::ExtentRef::NAME,
        record::ExtentRef::SIZE,
        record::ExtentRef::FIELDS,
    ),
    (
        image::ImageHeader::NAME,
        image::ImageHeader::SIZE,
        image::ImageHeader::FIELDS,
    ),
    (
        image::ExtentEntry::NAME,
        image::ExtentEntry::SIZE,
        image::ExtentEntry::FIELDS,
    ),
    (
        image::SegmentEntry::NAME,
        image::SegmentEntry::SIZE,
        image::SegmentEntry::FIELDS,
    ),
];

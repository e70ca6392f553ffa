//! What lies where in a sector, found by the format's own decoders.

use std::ops::Range;

use graviton_engine::port::BinaryKey;
use graviton_engine::store::{SegmentInfo, SegmentState};
use graviton_format::checkpoint::{CheckpointRoot, stored_image_length};
use graviton_format::frame::FrameHeader;
use graviton_format::geometry::ROOT_SLOT_SIZE;
use graviton_format::image::PAGE_SIZE;
use graviton_format::key::StoredKey;
use graviton_format::record::RecordView;
use graviton_format::segment::{KIND_LOG, SegmentHeader};
use graviton_format::superblock::Superblock;
use graviton_format::{Geometry, Identity};

/// What lies at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Superblock,
    Root,
    SegmentHeader,
    /// Zeros behind a segment header, to the end of its block.
    SegmentHeaderPadding,
    Image,
    /// Zeros that fill an image's last page.
    ImagePadding,
    /// The checksums of an image's pages.
    PageTable,
    FrameHeader,
    RecordHead,
    Payload,
    /// The list of extents that is a manifest's payload.
    Extents,
    /// Zeros at the end of a frame.
    FramePadding,
    /// What is behind a superblock, a root or an image to the end of their last block: it is
    /// written as zeros, and means nothing.
    Meaningless,
    /// The log of segments in which nothing lives, kept for recovery from the older checkpoint.
    Reclaimed,
    /// All else: it was never written, or will be anew.
    Unused,
}

impl Kind {
    /// Whether verify answers for it.
    pub fn is_needed(self) -> bool {
        !matches!(self, Self::Meaningless | Self::Reclaimed | Self::Unused)
    }

    /// Whether the index is right without it, so that the store opens. Of the areas' structures
    /// there are two copies.
    pub fn is_no_index(self) -> bool {
        use Kind::{FramePadding, Payload, Root, SegmentHeaderPadding, Superblock};
        let is_kept_twice_or_beside = matches!(
            self,
            Superblock
                | Root
                | SegmentHeaderPadding
                | Payload
                | FramePadding
                | Kind::Image
                | Kind::ImagePadding
                | Kind::PageTable
        );
        is_kept_twice_or_beside || !self.is_needed()
    }
}

/// Bytes of one kind.
#[derive(Debug, Clone)]
pub struct Region {
    pub kind: Kind,
    pub range: Range<usize>,
    /// The frame of the log that it belongs to, by its number in [`Layout::frames`].
    pub frame: Option<usize>,
    /// The key of the record that it belongs to.
    pub key: Option<BinaryKey>,
}

impl Region {
    /// The frame that is lost with it.
    pub fn takes(&self) -> Option<usize> {
        self.frame
            .filter(|_| self.kind != Kind::SegmentHeaderPadding)
    }
}

/// A frame of the log.
#[derive(Debug, Clone)]
pub struct Frame {
    pub lsn: u64,
    /// LSNs of its records, of those that compaction moved apart.
    pub records: Vec<u64>,
}

/// One sector.
#[derive(Debug)]
pub struct Layout {
    /// In order, without gaps.
    pub regions: Vec<Region>,
    /// The frames of the log, in its order.
    pub frames: Vec<Frame>,
    /// Frames up to this LSN are in the newest checkpoint.
    pub checkpointed: u64,
    pub geometry: Geometry,
}

fn at(address: u64) -> usize {
    usize::try_from(address).expect("it is in memory")
}

struct Reader<'a> {
    sector: &'a [u8],
    identity: Identity,
    geometry: Geometry,
    regions: Vec<Region>,
    frames: Vec<Frame>,
}

impl Layout {
    /// The layout of a sector whose segments are in these states.
    pub fn read(sector: &[u8], segments: &[SegmentInfo]) -> Self {
        let superblock = Superblock::decode(sector, 0).expect("a superblock");
        let mut reader = Reader {
            sector,
            identity: superblock.identity(),
            geometry: superblock.geometry(),
            regions: Vec::new(),
            frames: Vec::new(),
        };
        for address in reader.geometry.superblocks() {
            reader.add(Kind::Superblock, at(address), 512, None);
            reader.fill_block(at(address) + 512);
        }
        let newest = reader.roots();
        let mut log: Vec<SegmentInfo> = segments.to_vec();
        log.retain(|info| matches!(info.state, SegmentState::Open | SegmentState::Sealed));
        log.sort_by_key(|info| info.generation);
        for info in &log {
            reader.log(info, newest.tail_generation.get());
        }
        for info in segments {
            if info.state == SegmentState::Reclaimed {
                let base = at(reader.geometry.segment_offset(info.index));
                reader.add(Kind::Reclaimed, base, at(info.written), None);
            }
        }
        Self {
            frames: std::mem::take(&mut reader.frames),
            checkpointed: newest.lsn.get(),
            geometry: reader.geometry,
            regions: reader.all(),
        }
    }

    /// The regions that `range` has a share in.
    pub fn within(&self, range: Range<usize>) -> impl Iterator<Item = &Region> {
        let first = self
            .regions
            .partition_point(|region| region.range.end <= range.start);
        self.regions[first..]
            .iter()
            .take_while(move |region| region.range.start < range.end)
    }
}

impl Reader<'_> {
    fn add(&mut self, kind: Kind, start: usize, length: usize, frame: Option<usize>) {
        if length > 0 {
            let range = start..start + length;
            self.regions.push(Region {
                kind,
                range,
                frame,
                key: None,
            });
        }
    }

    /// A part of a record.
    fn add_of_record(&mut self, kind: Kind, start: usize, length: usize, frame: usize, key: &[u8]) {
        if length > 0 {
            self.regions.push(Region {
                kind,
                range: start..start + length,
                frame: Some(frame),
                key: match StoredKey::decode(key) {
                    Ok(StoredKey::Blob(key)) => BinaryKey::new(key).ok(),
                    _ => None,
                },
            });
        }
    }

    /// From `start` to the end of the block.
    fn fill_block(&mut self, start: usize) {
        let end = start.next_multiple_of(self.geometry.block_size as usize);
        self.add(Kind::Meaningless, start, end - start, None);
    }

    /// A segment header with what fills its block.
    fn header(&mut self, base: usize, frame: Option<usize>) {
        let size = size_of::<SegmentHeader>();
        let block = self.geometry.block_size as usize;
        self.add(Kind::SegmentHeader, base, size, frame);
        self.add(Kind::SegmentHeaderPadding, base + size, block - size, frame);
    }

    /// Roots and their images. Returns the newest root.
    fn roots(&mut self) -> CheckpointRoot {
        let mut newest: Option<CheckpointRoot> = None;
        for slot in [0, 1] {
            for (copy, address) in self.geometry.roots(slot).into_iter().enumerate() {
                let bytes = &self.sector[at(address)..][..ROOT_SLOT_SIZE];
                let (root, segments) =
                    CheckpointRoot::decode(bytes, &self.identity, &self.geometry, address)
                        .expect("a root");
                let length = size_of::<CheckpointRoot>() + 4 * segments.len();
                self.add(Kind::Root, at(address), length, None);
                self.fill_block(at(address) + length);
                if copy == 0 {
                    self.image(&root, &segments);
                }
                if newest.is_none_or(|newest| newest.sequence < root.sequence) {
                    newest = Some(root);
                }
            }
        }
        newest.expect("every store has a checkpoint")
    }

    fn image(&mut self, root: &CheckpointRoot, segments: &[u32]) {
        let length = at(root.image_length.get());
        let stored = at(stored_image_length(root.image_length.get()).expect("a length"));
        let pages = length.next_multiple_of(PAGE_SIZE);
        let per_segment = at(self.geometry.image_bytes_per_segment());
        for (&segment, start) in segments.iter().zip((0..).step_by(per_segment)) {
            let base = at(self.geometry.segment_offset(segment));
            let first = base + self.geometry.block_size as usize;
            self.header(base, None);
            let end = stored.min(start + per_segment);
            for (kind, from, to) in [
                (Kind::Image, 0, length),
                (Kind::ImagePadding, length, pages),
                (Kind::PageTable, pages, stored),
            ] {
                let (from, to) = (from.max(start), to.min(end));
                self.add(
                    kind,
                    first + from - start.min(from),
                    to.saturating_sub(from),
                    None,
                );
            }
            self.fill_block(first + end - start);
        }
    }

    fn log(&mut self, info: &SegmentInfo, tail_generation: u64) {
        let (sector, geometry) = (self.sector, self.geometry);
        let base = at(geometry.segment_offset(info.index));
        let header = SegmentHeader::decode(&sector[base..], &self.identity, &geometry, info.index)
            .expect("a segment in use has a header");
        assert_eq!(header.kind, KIND_LOG);
        // Replay begins in the checkpoint's tail segment without its header.
        let is_needed = info.generation > tail_generation;
        self.header(base, is_needed.then_some(self.frames.len()));
        let mut offset = geometry.block_size as usize;
        while offset < at(info.written) {
            let start = base + offset;
            let header =
                FrameHeader::decode(&sector[start..], &self.identity, &geometry, start as u64)
                    .expect("frames follow each other");
            let (length, used) = (header.length.get() as usize, header.used.get() as usize);
            let number = self.frames.len();
            let mut frame = Frame {
                lsn: header.lsn.get(),
                records: Vec::new(),
            };
            self.add(Kind::FrameHeader, start, 64, Some(number));
            let mut position = 64;
            while position < used {
                let here = start + position;
                let record =
                    RecordView::decode(&sector[here..], &self.identity, &geometry, here as u64)
                        .expect("records follow each other");
                let (head, whole) = (record.payload_offset(), at(record.length()));
                if record.header.flags == 0 {
                    frame.records.push(record.header.lsn.get());
                }
                let payload = match record.kind.lists_pieces() {
                    true => Kind::Extents,
                    false => Kind::Payload,
                };
                for (kind, from, to) in [(Kind::RecordHead, 0, head), (payload, head, whole)] {
                    self.add_of_record(kind, here + from, to - from, number, record.key);
                }
                position += whole;
            }
            self.add(
                Kind::FramePadding,
                start + used,
                length - used,
                Some(number),
            );
            self.frames.push(frame);
            offset += length;
        }
    }

    /// All regions in order, with what lies between them.
    fn all(mut self) -> Vec<Region> {
        self.regions.sort_by_key(|region| region.range.start);
        let mut all: Vec<Region> = Vec::new();
        let unused = |range| Region {
            kind: Kind::Unused,
            range,
            frame: None,
            key: None,
        };
        let mut end = 0;
        for region in self.regions {
            assert!(region.range.start >= end, "{region:?} overlaps another");
            if region.range.start > end {
                all.push(unused(end..region.range.start));
            }
            end = region.range.end;
            all.push(region);
        }
        if end < self.sector.len() {
            all.push(unused(end..self.sector.len()));
        }
        all
    }
}

//! The log's end, and the frames that are written there.

use graviton_format::frame::{self, FrameHeader};
use graviton_format::record::seal_record;
use graviton_format::segment::{self, SegmentHeader};

use super::record::Encoded;
use super::sector::Sector;
use crate::io::AlignedBuf;
use crate::port::StorageError;

const FRAME_HEADER: usize = size_of::<FrameHeader>();

/// Where the log ends, and what the next frame continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tail {
    /// The segment, and its generation; `None` before the first.
    pub segment: Option<(u32, u64)>,
    /// Offset in the segment at which the next frame goes.
    pub offset: u64,
    /// Checksum of the last frame in the segment, or of the segment's header.
    pub checksum: u32,
    /// LSN of the last frame.
    pub lsn: u64,
    /// Time of the last frame, in milliseconds since 1970.
    pub time: u64,
}

impl Tail {
    /// Bytes left in the segment.
    #[must_use]
    pub fn room(&self, segment_size: u64) -> u64 {
        if self.segment.is_some() {
            segment_size.saturating_sub(self.offset)
        } else {
            0
        }
    }
}

/// Bytes a frame of records of `records` bytes takes, without padding.
#[must_use]
pub fn frame_length(records: u64) -> u64 {
    FRAME_HEADER as u64 + records
}

/// Builds one frame in a buffer, record by record, in place.
#[derive(Debug)]
pub struct FrameBuilder<'a> {
    sector: &'a Sector,
    /// The block with the header of the segment that it opens, and where that goes.
    opening: Option<(AlignedBuf, u64)>,
    /// LSN of that header; 0: it opens none.
    header_lsn: u64,
    buffer: AlignedBuf,
    /// Where the frame goes.
    address: u64,
    used: usize,
    records: u32,
    checksums: Vec<u32>,
    tail: Tail,
}

/// A frame ready to be written.
#[derive(Debug)]
pub struct BuiltFrame {
    /// The header of the segment that it opens, a block, and where that goes: a write of its own,
    /// before the frame's. Whichever of them is lost, the other tells of it \[F-58\].
    pub opening: Option<(AlignedBuf, u64)>,
    /// Its bytes, whole blocks.
    pub buffer: AlignedBuf,
    /// Where they go.
    pub address: u64,
    /// The log's end once they are there.
    pub tail: Tail,
}

impl<'a> FrameBuilder<'a> {
    /// Starts a frame of at most `length` bytes ([`frame_length`]) at `tail`, or in the new segment
    /// `opened` (number and generation).
    ///
    /// # Errors
    /// `Io` when there is no memory.
    ///
    /// # Panics
    /// If the frame does not fit the segment.
    pub fn new(
        sector: &'a Sector,
        tail: Tail,
        opened: Option<(u32, u64)>,
        length: u64,
        durable_lsn: u64,
    ) -> Result<Self, StorageError> {
        let geometry = sector.geometry();
        let mut tail = tail;
        let (mut opening, mut header_lsn) = (None, 0);
        if let Some((segment, generation)) = opened {
            let (previous, previous_generation) = tail.segment.unwrap_or((segment::NONE, 0));
            header_lsn = tail.lsn + 1;
            let address = geometry.segment_offset(segment);
            let header = SegmentHeader {
                magic: segment::MAGIC.into(),
                checksum: 0.into(),
                kind: segment::KIND_LOG.into(),
                segment: segment.into(),
                generation: generation.into(),
                first_lsn: header_lsn.into(),
                durable_lsn: durable_lsn.into(),
                previous_segment: previous.into(),
                previous_end: u32::try_from(tail.offset).unwrap_or(u32::MAX).into(),
                previous_generation: previous_generation.into(),
                previous_lsn: tail.lsn.into(),
                previous_checksum: tail.checksum.into(),
                reserved: [0; 60],
            }
            .sealed(sector.identity(), address);
            let mut block = sector.buffer(geometry.block_size.into())?;
            block.fill(0);
            block[..size_of::<SegmentHeader>()].copy_from_slice(header.bytes());
            opening = Some((block, address));
            tail = Tail {
                segment: opened,
                offset: geometry.block_size.into(),
                checksum: header.checksum.get(),
                ..tail
            };
        }
        let (segment, _) = tail.segment.expect("a frame lies in a segment");
        let length = geometry.round_up(length);
        assert!(
            tail.offset + length <= geometry.segment_size,
            "a frame fits its segment"
        );
        Ok(Self {
            sector,
            opening,
            header_lsn,
            buffer: sector.buffer(length)?,
            address: geometry.segment_offset(segment) + tail.offset,
            used: FRAME_HEADER,
            records: 0,
            checksums: Vec::new(),
            tail,
        })
    }

    /// The LSN of the header of the segment that it opens; 0 if it opens none. A frame that is written
    /// when that header is durable claims it \[F-58\].
    #[must_use]
    pub fn header_lsn(&self) -> u64 {
        self.header_lsn
    }

    /// Appends a record; returns its address.
    ///
    /// # Panics
    /// If the frame was not made long enough.
    pub fn push(&mut self, record: &Encoded, lsn: u64, flags: u8) -> u64 {
        let start = self.used;
        let address = self.address + start as u64;
        let length = usize::try_from(record.length()).expect("it is in memory");
        let target = &mut self.buffer[start..start + length];
        record.write(target);
        self.checksums.push(seal_record(
            target,
            self.sector.identity(),
            address,
            lsn,
            flags,
        ));
        self.used += length;
        self.records += 1;
        address
    }

    /// Ends the frame: pads it to whole blocks and seals its header.
    ///
    /// # Panics
    /// If `lsn` is not above the last frame's and `durable_lsn`.
    #[must_use]
    pub fn finish(mut self, lsn: u64, durable_lsn: u64, time: u64) -> BuiltFrame {
        assert!(
            lsn > self.tail.lsn && lsn > durable_lsn,
            "LSNs ascend: {lsn} after {}, durable {durable_lsn}",
            self.tail.lsn
        );
        let length = usize::try_from(self.sector.geometry().round_up(self.used as u64))
            .expect("it is in memory");
        let address = self.address;
        let narrow = |value: usize| u32::try_from(value).expect("a frame fits a segment").into();
        let header = FrameHeader {
            magic: frame::MAGIC.into(),
            checksum: 0.into(),
            generation: self
                .tail
                .segment
                .map_or(0, |(_, generation)| generation)
                .into(),
            lsn: lsn.into(),
            durable_lsn: durable_lsn.into(),
            previous: self.tail.checksum.into(),
            length: narrow(length),
            used: narrow(self.used),
            records: self.records.into(),
            records_checksum: frame::records_checksum(self.checksums.into_iter()).into(),
            reserved: 0.into(),
            time: time.into(),
        }
        .sealed(self.sector.identity(), address);
        self.buffer[..FRAME_HEADER].copy_from_slice(header.bytes());
        self.buffer[self.used..length].fill(0);
        self.buffer.set_len(length);
        let tail = Tail {
            offset: self.tail.offset + length as u64,
            checksum: header.checksum.get(),
            lsn,
            time,
            ..self.tail
        };
        BuiltFrame {
            opening: self.opening,
            buffer: self.buffer,
            address,
            tail,
        }
    }
}

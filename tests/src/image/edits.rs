//! Edits of the sectors of a store: accidents, and forgeries that put every checksum right.

use std::sync::Arc;

use graviton_engine::io::sim::Sim;
use graviton_engine::io::{Backend, BufferPool, OpenAccess, WriteSync};
use graviton_format::checkpoint::{
    self, CheckpointRoot, seal_image, stored_image_length, verify_image_pages,
};
use graviton_format::checksum::{gather_chunks, mask_chunks, write_chunks};
use graviton_format::frame::{self, FrameHeader, records_checksum};
use graviton_format::record::{RecordHeader, RecordView};
use graviton_format::segment::{self, SegmentHeader};
use graviton_format::store_file::{self, StoreFileCopy};
use graviton_format::superblock::Superblock;
use graviton_format::{Geometry, Identity, Structure};

use super::original::{BLOCK, SectorFile, Snapshot};

/// Bytes of one edit in an input: what (one byte), which block (two; the highest bit: of the other
/// sector), where in it (two), operands (three).
pub const EDIT_LEN: usize = 8;
/// Kinds of edits below this are accidents, the others forgeries.
pub const ACCIDENTS: u8 = 8;
/// Kinds of edits.
pub const KINDS: u8 = 12;

/// The sectors of a store that is edited.
#[derive(Debug)]
pub struct Edited<'a> {
    /// Those of the store at its age.
    sectors: Vec<Sector<'a>>,
    /// The store at the age before: what a write that was lost leaves.
    before: &'a Snapshot,
    /// Whether checksums were put right: then anything may be read, but nothing may break.
    pub forged: bool,
}

#[derive(Debug)]
struct Sector<'a> {
    file: &'a SectorFile,
    bytes: Vec<u8>,
}

impl<'a> Edited<'a> {
    /// As it was.
    #[must_use]
    pub fn new(now: &'a Snapshot, before: &'a Snapshot) -> Self {
        let sector = |file: &'a SectorFile| Sector {
            file,
            bytes: file.bytes.clone(),
        };
        Self {
            sectors: now.sectors.iter().map(sector).collect(),
            before,
            forged: false,
        }
    }

    /// Edits it once.
    pub fn apply(&mut self, edit: [u8; EDIT_LEN]) {
        let [what, block, high, at, at_high, value, other, other_high] = edit;
        let chosen = usize::from(high >> 7) % self.sectors.len();
        let pick = |choices: &[usize], number: [u8; 2]| {
            choices[usize::from(u16::from_le_bytes(number)) % choices.len()]
        };
        let source_of = |file: &SectorFile| pick(&file.used, [other, other_high]);
        let at = usize::from(u16::from_le_bytes([at, at_high]));
        let kind = what % KINDS;
        let elsewhere = (chosen + 1) % self.sectors.len();
        let foreign = {
            let Sector { file, bytes } = &self.sectors[elsewhere];
            let start = source_of(file).min(bytes.len());
            let end = bytes.len().min(start + BLOCK);
            (kind == 6).then(|| bytes[start..end].to_vec())
        };
        let sector = &mut self.sectors[chosen];
        let choices = match kind {
            ACCIDENTS.. => &sector.file.heads,
            _ => &sector.file.used,
        };
        let start = pick(choices, [block, high & 0x7f]);
        if start >= sector.bytes.len() {
            return;
        }
        let end = sector.bytes.len().min(start + BLOCK);
        match kind {
            0 => sector.bytes[start + at % (end - start)] = value,
            1 => sector.bytes[start + at % (end - start)] ^= 1 << (value % 8),
            2 => sector.bytes[start..end].fill(value),
            3 => {
                let source = source_of(sector.file).min(sector.bytes.len());
                let source_end = sector.bytes.len().min(source + end - start);
                sector.bytes.copy_within(source..source_end, start);
            }
            4 if value == 0 => sector.bytes.truncate(start + at % BLOCK),
            4 => sector.bytes[start..]
                .iter_mut()
                .take(at * 16)
                .for_each(|byte| *byte = 0),
            // A write that was lost: of a block or of many.
            5 => {
                let stale = &self.before.sectors[chosen].bytes;
                let length = if value % 2 == 0 { BLOCK } else { at * 16 };
                let end = sector.bytes.len().min(start + length);
                sector.bytes[start..end].copy_from_slice(&stale[start..end]);
            }
            // One that went to another sector, or to another place of this one.
            6 => {
                let foreign = foreign.unwrap_or_default();
                let end = end.min(start + foreign.len());
                sector.bytes[start..end].copy_from_slice(&foreign[..end - start]);
            }
            // A chunk's worth of noise.
            7 => {
                let noise = sector.bytes[start..].iter_mut().take(at % 4096);
                for (place, byte) in noise.enumerate() {
                    *byte ^= value.wrapping_mul(place.to_le_bytes()[0] | 1);
                }
            }
            _ => self.forged |= sector.forge(start, at, value, other).is_some(),
        }
    }

    /// A machine with what was edited on its disks.
    #[must_use]
    pub fn boot(&self, now: &Snapshot, block_size: u32) -> Sim {
        let sim = Sim::boot(&now.machine, block_size, 0);
        sim.record(false);
        let backend = sim.backend();
        for sector in &self.sectors {
            sector.store(backend.as_ref());
        }
        sim
    }

    /// The bytes of each sector.
    pub fn bytes(&self) -> impl Iterator<Item = &[u8]> {
        self.sectors.iter().map(|sector| sector.bytes.as_slice())
    }
}

impl Sector<'_> {
    /// Writes what is not as it was.
    fn store(&self, backend: &dyn Backend) {
        const PIECE: usize = 4096;
        let path = &self.file.path;
        let write = |disk: &Arc<dyn graviton_engine::io::Disk>, start: usize, bytes: &[u8]| {
            let mut buffer = BufferPool::global().take(bytes.len());
            buffer.copy_from_slice(bytes);
            drop(disk.write(buffer, start as u64, WriteSync::Data));
        };
        if self.bytes.len() < self.file.bytes.len() {
            backend.remove_file(path).expect("a file is removed");
            let whole = self.bytes.len() / PIECE * PIECE;
            let disk = backend
                .create(path, self.bytes.len() as u64)
                .expect("a sector is made");
            if whole > 0 {
                write(&disk, 0, &self.bytes[..whole]);
            }
            return drop(disk.reap_in_background());
        }
        let disk = backend
            .open(path, OpenAccess::ReadWrite)
            .expect("a sector opens");
        let (old, new) = (self.file.bytes.chunks(PIECE), self.bytes.chunks(PIECE));
        for (number, (_, new)) in old
            .zip(new)
            .enumerate()
            .filter(|(_, (old, new))| old != new)
        {
            write(&disk, number * PIECE, new);
        }
        drop(disk.reap_in_background());
    }

    /// Changes a byte of the structure in the block at `start`, if there is one, and puts every
    /// checksum over it right.
    fn forge(&mut self, start: usize, at: usize, value: u8, which: u8) -> Option<()> {
        let magic = self.bytes[start..].first_chunk().copied()?;
        match u32::from_le_bytes(magic) {
            frame::MAGIC => self.forge_frame(start, at, value, which),
            segment::MAGIC => self.forge_segment(start, at, value),
            checkpoint::MAGIC if which.is_multiple_of(2) => self.forge_root(start, at, value),
            checkpoint::MAGIC => self.forge_checkpoint(start, at, value),
            store_file::MAGIC => self.forge_store_file(start, at, value),
            _ => self.forge_superblock(start, at, value),
        }
    }

    fn forge_superblock(&mut self, start: usize, at: usize, value: u8) -> Option<()> {
        let bytes = self.bytes.get_mut(start..start + Superblock::SIZE)?;
        Superblock::decode(bytes, start as u64).ok()?;
        bytes[at % Superblock::SIZE] = value;
        let sealed = Superblock::view(bytes).ok()?.sealed(start as u64);
        bytes.copy_from_slice(sealed.bytes());
        Some(())
    }

    fn forge_store_file(&mut self, start: usize, at: usize, value: u8) -> Option<()> {
        let (identity, address) = (&self.file.identity, start as u64);
        let (revision, text) =
            StoreFileCopy::decode(&self.bytes[start..], identity, address).ok()?;
        let mut text = text.as_bytes().to_vec();
        let at = at % text.len().max(1);
        *text.get_mut(at)? = value;
        let text = String::from_utf8(text).ok()?;
        let forged = StoreFileCopy::encode(identity, address, revision, &text)?;
        self.bytes[start..start + forged.len()].copy_from_slice(&forged);
        Some(())
    }

    fn forge_segment(&mut self, start: usize, at: usize, value: u8) -> Option<()> {
        let bytes = self.bytes.get_mut(start..start + SegmentHeader::SIZE)?;
        bytes[at % SegmentHeader::SIZE] = value;
        let sealed = SegmentHeader::view(bytes)
            .ok()?
            .sealed(&self.file.identity, start as u64);
        bytes.copy_from_slice(sealed.bytes());
        Some(())
    }

    fn forge_root(&mut self, start: usize, at: usize, value: u8) -> Option<()> {
        let (identity, geometry) = (&self.file.identity, &self.file.geometry);
        let (root, list) =
            CheckpointRoot::decode(&self.bytes[start..], identity, geometry, start as u64).ok()?;
        let mut bytes = [
            root.bytes(),
            &list
                .iter()
                .flat_map(|number| number.to_le_bytes())
                .collect::<Vec<u8>>(),
        ]
        .concat();
        let at = at % bytes.len();
        bytes[at] = value;
        let list: Vec<u32> = bytes[CheckpointRoot::SIZE..]
            .chunks_exact(4)
            .map(|number| u32::from_le_bytes([number[0], number[1], number[2], number[3]]))
            .collect();
        let root = *CheckpointRoot::view(&bytes).ok()?;
        self.write_root(root, &list);
        Some(())
    }

    /// Writes both copies of a root, where its sequence says.
    fn write_root(&mut self, root: CheckpointRoot, list: &[u32]) {
        let (identity, geometry) = (&self.file.identity, &self.file.geometry);
        for address in geometry.roots(root.sequence.get()) {
            let encoded = root.encode(identity, address, list);
            let place = usize::try_from(address)
                .ok()
                .and_then(|start| self.bytes.get_mut(start..start + encoded.len()));
            if let Some(place) = place {
                place.copy_from_slice(&encoded);
            }
        }
    }

    /// Changes a byte of the checkpoint's image.
    fn forge_checkpoint(&mut self, start: usize, at: usize, value: u8) -> Option<()> {
        let (identity, geometry) = (&self.file.identity, &self.file.geometry);
        let (mut root, list) =
            CheckpointRoot::decode(&self.bytes[start..], identity, geometry, start as u64).ok()?;
        let needed = usize::try_from(stored_image_length(root.image_length.get())?).ok()?;
        let part = usize::try_from(geometry.image_bytes_per_segment()).ok()?;
        let begins: Vec<usize> = list
            .iter()
            .filter_map(|&number| {
                usize::try_from(geometry.segment_offset(number) + u64::from(geometry.block_size))
                    .ok()
            })
            .collect();
        let mut stored = Vec::new();
        for &begin in &begins {
            stored.extend_from_slice(self.bytes.get(begin..begin + part)?);
        }
        stored.truncate(needed);
        let mut image = verify_image_pages(&stored, &root).ok()?.to_vec();
        let at = at % image.len();
        image[at] = value;
        root.pages_checksum = seal_image(&mut image, root.sequence.get()).into();
        for (piece, &begin) in image.chunks(part).zip(&begins) {
            self.bytes[begin..begin + piece.len()].copy_from_slice(piece);
        }
        self.write_root(root, &list);
        Some(())
    }

    /// Changes a byte of a frame's header (`which` is 0) or of one of its records.
    fn forge_frame(&mut self, start: usize, at: usize, value: u8, which: u8) -> Option<()> {
        let (identity, geometry) = (&self.file.identity, &self.file.geometry);
        let address = start as u64;
        let mut header =
            FrameHeader::decode(&self.bytes[start..], identity, geometry, address).ok()?;
        let frame = self
            .bytes
            .get_mut(start..start + usize::try_from(header.length.get()).ok()?)?;
        if which == 0 {
            frame[at % FrameHeader::SIZE] = value;
            header = *FrameHeader::view(frame).ok()?;
        } else {
            let mut checksums = Vec::new();
            let mut offset = FrameHeader::SIZE;
            for number in 0..header.records.get() {
                let place = address + offset as u64;
                let record = frame.get_mut(offset..)?;
                let length = usize::try_from(
                    RecordView::decode(record, identity, geometry, place)
                        .ok()?
                        .length(),
                )
                .ok()?;
                let record = record.get_mut(..length)?;
                if number == (u32::from(which) - 1) % header.records.get() {
                    forge_record(record, identity, geometry, place, at, value)?;
                }
                checksums.push(RecordHeader::view(record).ok()?.checksum.get());
                offset += length;
            }
            header.records_checksum = records_checksum(checksums.into_iter()).into();
        }
        let sealed = header.sealed(identity, address);
        frame[..FrameHeader::SIZE].copy_from_slice(sealed.bytes());
        Some(())
    }
}

/// Changes a byte of a record: of header, key and metadata, or of its payload.
fn forge_record(
    record: &mut [u8],
    identity: &Identity,
    geometry: &Geometry,
    address: u64,
    at: usize,
    value: u8,
) -> Option<()> {
    let view = RecordView::decode(record, identity, geometry, address).ok()?;
    let (head, mask) = (
        view.payload_offset(),
        identity.chunk_mask(view.header.lsn.get()),
    );
    let at = at % (head + usize::try_from(view.header.payload_length.get()).ok()?);
    if at < head {
        record[at] = value;
        let checksum = identity.header_checksum(address, &[&record[4..head]]);
        record[..4].copy_from_slice(&checksum.to_le_bytes());
    } else {
        let stored = &mut record[head..];
        let first = address + head as u64;
        let length = gather_chunks(stored, mask, first).ok()?;
        let mut payload = stored[..length].to_vec();
        payload[at - head] = value;
        write_chunks(&payload, stored);
        mask_chunks(stored, mask, first);
    }
    Some(())
}

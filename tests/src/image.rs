//! Whole stores damaged or forged: what the fuzz target `store` does with its bytes.
//!
//! An input is a list of edits to the sector file of a small store that was made beforehand; the
//! store is then read, written, compacted and opened again. Whatever the edits, nothing panics or
//! hangs. As long as they are accidents (no checksum was put right), more holds: a blob that is
//! read has bytes that were once put under its key, a store that opens for writing keeps what it
//! acknowledges, and it opens again.
//!
//! It needs neither nightly nor libFuzzer: `tests/image.rs` runs it over random inputs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use bytes::Bytes;
use graviton_engine::port::{
    Batch, BinaryKey, BlobStore, CopyOptions, DeleteOptions, ErrorKind, GetOptions, ListRequest,
    PutOptions, StorageError,
};
use graviton_engine::store::{Access, CreateOptions, MIB, OpenOptions, Store};
use graviton_format::checkpoint::{
    self, CheckpointRoot, seal_image, stored_image_length, verify_image_pages,
};
use graviton_format::checksum::{gather_chunks, mask_chunks, write_chunks};
use graviton_format::frame::{self, FrameHeader, records_checksum};
use graviton_format::record::{RecordHeader, RecordView};
use graviton_format::segment::{self, SegmentHeader};
use graviton_format::superblock::Superblock;
use graviton_format::{Geometry, Identity, Structure};
use tempfile::TempDir;

use crate::{buffered, test_directory};

const SECTOR: &str = "sector-000.graviton";
const BLOCK: usize = 512;
/// Edits of one input at most; the rest of it is not looked at.
const EDITS_MAX: usize = 16;
/// Bytes of one edit in an input.
const EDIT_LEN: usize = 8;

/// What a store that is damaged was, and what was ever put in it.
struct Template {
    store_file: Vec<u8>,
    /// The sector after a kill, and after an orderly close.
    images: [Vec<u8>; 2],
    history: BTreeMap<BinaryKey, Vec<Bytes>>,
    identity: Identity,
    geometry: Geometry,
}

static TEMPLATE: LazyLock<Template> =
    LazyLock::new(|| Template::make().expect("the store that is damaged can be made"));

fn options() -> OpenOptions {
    OpenOptions {
        io: buffered(),
        background: false,
        ..OpenOptions::default()
    }
}

fn key(name: &str) -> BinaryKey {
    BinaryKey::new(name).expect("a good key")
}

fn payload(seed: usize, length: usize) -> Bytes {
    let byte =
        |at: usize| (at.wrapping_mul(31) ^ (at >> 8) ^ seed.wrapping_mul(97)).to_le_bytes()[0];
    (0..length).map(byte).collect()
}

/// Puts a blob and notes its bytes.
fn put(
    store: &Store,
    history: &mut BTreeMap<BinaryKey, Vec<Bytes>>,
    name: &str,
    bytes: Bytes,
) -> Result<(), StorageError> {
    store
        .put(&key(name), bytes.clone(), PutOptions::default())
        .wait()?;
    history.entry(key(name)).or_default().push(bytes);
    Ok(())
}

impl Template {
    fn make() -> Result<Self, StorageError> {
        let directory = test_directory();
        let path = directory.path().join("store");
        let mut history = BTreeMap::new();
        let create = CreateOptions {
            sector_size: 4 * MIB,
            block_size: Some(512),
            open: options(),
            ..CreateOptions::default()
        };
        let store = Store::create(&path, create)?;
        for round in 0..3 {
            for number in 0..20 {
                put(
                    &store,
                    &mut history,
                    &format!("small/{number:02}"),
                    payload(round * 100 + number, 40 * number),
                )?;
            }
            put(&store, &mut history, "middling", payload(round, 10_000))?;
            // Larger than a segment: extents and a manifest.
            put(&store, &mut history, "large", payload(round, 150_000))?;
            store
                .delete(&key("small/07"), DeleteOptions::default())
                .wait()?;
            store
                .copy(&key("large"), &key("copy"), CopyOptions::default())
                .wait()?;
            history
                .entry(key("copy"))
                .or_default()
                .push(payload(round, 150_000));
            let mut batch = Batch::new();
            for number in 0..5 {
                let bytes = payload(round * 7 + number, 100);
                history
                    .entry(key(&format!("batch/{number}")))
                    .or_default()
                    .push(bytes.clone());
                batch.put(key(&format!("batch/{number}")), bytes);
            }
            store.batch(batch).wait()?;
            // The last round stays in the log.
            if round < 2 {
                store.checkpoint()?;
            }
            if round == 1 {
                store.compact()?;
            }
        }
        let read = |name: &str| std::fs::read(path.join(name)).expect("a file of the store");
        let killed = read(SECTOR);
        store.close()?;
        let superblock = Superblock::decode(&killed, 0).expect("a superblock");
        let (identity, geometry) = (superblock.identity(), superblock.geometry());
        Ok(Self {
            store_file: read("graviton.toml"),
            images: [killed, read(SECTOR)],
            history,
            identity,
            geometry,
        })
    }
}

/// Takes any bytes, and panics if something does not hold.
pub fn store(data: &[u8]) {
    let Some((&mode, edits)) = data.split_first() else {
        return;
    };
    let template = &*TEMPLATE;
    let mut image = Image {
        bytes: template.images[usize::from(mode & 1)].clone(),
        template,
        forged: false,
    };
    for edit in edits.chunks_exact(EDIT_LEN).take(EDITS_MAX) {
        image.apply(edit);
    }
    let directory = test_directory();
    std::fs::write(directory.path().join("graviton.toml"), &template.store_file)
        .expect("a file is written");
    std::fs::write(directory.path().join(SECTOR), &image.bytes).expect("a file is written");
    let trial = Trial {
        directory,
        forged: image.forged,
    };
    trial.run();
}

/// The sector file that is edited.
struct Image {
    bytes: Vec<u8>,
    template: &'static Template,
    /// Whether checksums were put right: then anything may be read, but nothing may break.
    forged: bool,
}

impl Image {
    /// One edit: what (one byte), which used block (two), where in it (two), operands (three).
    fn apply(&mut self, edit: &[u8]) {
        let &[
            what,
            block,
            block_high,
            at,
            at_high,
            value,
            other,
            other_high,
        ] = edit
        else {
            return;
        };
        let used = self.used_blocks();
        let pick = |low, high| {
            used.get(usize::from(u16::from_le_bytes([low, high])) % used.len().max(1))
                .copied()
        };
        let (Some(start), Some(source)) = (pick(block, block_high), pick(other, other_high)) else {
            return;
        };
        let at = usize::from(u16::from_le_bytes([at, at_high]));
        let end = self.bytes.len().min(start + BLOCK);
        match what % 8 {
            0 => self.bytes[start + at % (end - start)] = value,
            1 => self.bytes[start + at % (end - start)] ^= 1 << (value % 8),
            2 => self.bytes[start..end].fill(value),
            3 => {
                let source_end = self.bytes.len().min(source + end - start);
                self.bytes.copy_within(source..source_end, start);
            }
            4 if value == 0 => self.bytes.truncate(start + at % BLOCK),
            4 => self.bytes[start..]
                .iter_mut()
                .take(at * 16)
                .for_each(|byte| *byte = 0),
            _ => self.forge(start, at, value, other),
        }
    }

    /// Addresses of the blocks that are not all zeros.
    fn used_blocks(&self) -> Vec<usize> {
        let blocks = self.bytes.chunks(BLOCK).enumerate();
        blocks
            .filter(|(_, block)| block.iter().any(|&byte| byte != 0))
            .map(|(number, _)| number * BLOCK)
            .collect()
    }

    /// Changes a byte of the structure in the block at `start`, if there is one, and puts every
    /// checksum over it right.
    fn forge(&mut self, start: usize, at: usize, value: u8, which: u8) {
        let Some(magic) = self.bytes[start..].first_chunk().copied() else {
            return;
        };
        let done = match u32::from_le_bytes(magic) {
            frame::MAGIC => self.forge_frame(start, at, value, which),
            segment::MAGIC => self.forge_segment(start, at, value),
            checkpoint::MAGIC if which.is_multiple_of(2) => self.forge_root(start, at, value),
            checkpoint::MAGIC => self.forge_checkpoint(start, at, value),
            _ => self.forge_superblock(start, at, value),
        };
        self.forged |= done.is_some();
    }

    fn forge_superblock(&mut self, start: usize, at: usize, value: u8) -> Option<()> {
        let bytes = self.bytes.get_mut(start..start + Superblock::SIZE)?;
        Superblock::decode(bytes, start as u64).ok()?;
        bytes[at % Superblock::SIZE] = value;
        let sealed = Superblock::view(bytes).ok()?.sealed(start as u64);
        bytes.copy_from_slice(sealed.bytes());
        Some(())
    }

    fn forge_segment(&mut self, start: usize, at: usize, value: u8) -> Option<()> {
        let bytes = self.bytes.get_mut(start..start + SegmentHeader::SIZE)?;
        bytes[at % SegmentHeader::SIZE] = value;
        let sealed = SegmentHeader::view(bytes)
            .ok()?
            .sealed(&self.template.identity, start as u64);
        bytes.copy_from_slice(sealed.bytes());
        Some(())
    }

    fn forge_root(&mut self, start: usize, at: usize, value: u8) -> Option<()> {
        let Template {
            identity, geometry, ..
        } = self.template;
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
        let Template {
            identity, geometry, ..
        } = self.template;
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
        let Template {
            identity, geometry, ..
        } = self.template;
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
        let Template {
            identity, geometry, ..
        } = self.template;
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

/// A store with an edited sector.
struct Trial {
    directory: TempDir,
    forged: bool,
}

impl Trial {
    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn sector(&self) -> PathBuf {
        self.path().join(SECTOR)
    }

    fn run(&self) {
        let before = std::fs::read(self.sector()).expect("the sector is read");
        if let Ok(store) = Store::open_with(
            self.path(),
            OpenOptions {
                access: Access::Salvage,
                ..options()
            },
        ) {
            self.read_all(&store);
            let _ = store.verify(&mut |_| {});
        }
        let after = std::fs::read(self.sector()).expect("the sector is read");
        assert!(
            before == after,
            "a store that was open for reading only was written to"
        );
        let Ok(store) = Store::open_with(self.path(), options()) else {
            return;
        };
        let kept = self.write(&store);
        self.read_all(&store);
        let closed = store.close();
        let store = match Store::open_with(self.path(), options()) {
            Ok(store) => store,
            Err(error) => {
                assert!(
                    self.forged || closed.is_err(),
                    "it does not open again: {error}"
                );
                return;
            }
        };
        self.read_all(&store);
        for (key, bytes) in kept {
            match store.get(&key, GetOptions::default()).wait() {
                Ok(blob) => assert!(
                    self.forged || blob.bytes == bytes,
                    "{key} has other bytes than were acknowledged"
                ),
                Err(error) => assert!(self.forged, "{key} was acknowledged and is lost: {error}"),
            }
        }
        let _ = store.verify(&mut |_| {});
    }

    /// Lists the store and reads every blob, whole and in part.
    fn read_all(&self, store: &Store) {
        let mut request = ListRequest {
            max: 7,
            ..ListRequest::default()
        };
        loop {
            let Ok(page) = store.list(request.clone()).wait() else {
                return;
            };
            for entry in page.blobs {
                // A forged size can be anything; a read of it all would take that much memory.
                if entry.size > 16 * MIB {
                    assert!(self.forged, "{} has {} bytes", entry.key, entry.size);
                    continue;
                }
                self.read(store, &entry.key);
            }
            if page.next.is_none() {
                return;
            }
            request.token = page.next;
        }
    }

    fn read(&self, store: &Store, key: &BinaryKey) {
        let _ = store.stat(key).wait();
        let whole = store.get(key, GetOptions::default()).wait();
        let part = store
            .get(
                key,
                GetOptions {
                    range: Some(10..5000),
                    ..GetOptions::default()
                },
            )
            .wait();
        if self.forged {
            return;
        }
        match &whole {
            Ok(blob) if key.as_bytes().starts_with(b"new/") => assert!(!blob.bytes.is_empty()),
            Ok(blob) => {
                let known = TEMPLATE
                    .history
                    .get(key)
                    .is_some_and(|values| values.contains(&blob.bytes));
                assert!(known, "{key} has bytes that were never put under it");
                if let Ok(part) = part {
                    assert!(
                        blob.bytes.slice(10..blob.bytes.len().min(5000)) == part.bytes,
                        "a part of {key} is not what the whole has there"
                    );
                }
            }
            Err(error) => assert!(
                matches!(error.kind(), ErrorKind::Corruption | ErrorKind::Io),
                "{key} is listed, and reading it says: {error}"
            ),
        }
    }

    /// Writes to the store, tidies it up, and returns what it acknowledged.
    fn write(&self, store: &Store) -> Vec<(BinaryKey, Bytes)> {
        let mut kept = Vec::new();
        for (number, length) in [100, 5000, 90_000, 30_000].into_iter().enumerate() {
            let (key, bytes) = (key(&format!("new/{number}")), payload(number, length));
            if store
                .put(&key, bytes.clone(), PutOptions::default())
                .wait()
                .is_ok()
            {
                kept.push((key, bytes));
            }
        }
        let _ = store
            .delete(&key("middling"), DeleteOptions::default())
            .wait();
        let _ = store.checkpoint();
        let _ = store.compact();
        // Bounded: a step that always finds something to do would be found here, not waited for.
        let steps = (0..1000)
            .take_while(|_| matches!(store.step(), Ok(true)))
            .count();
        assert!(steps < 1000, "maintenance never comes to an end");
        kept
    }
}

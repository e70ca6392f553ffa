//! The stores that are damaged: one history on a simulated machine, kept at several ages.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bytes::Bytes;
use graviton_engine::io::sim::{self, Sim};
use graviton_engine::io::{Backend, BufferPool, OpenAccess};
use graviton_engine::port::op::wait_for;
use graviton_engine::port::{
    AttributesUpdate, Batch, BinaryKey, BlobStore, CompleteOptions, CopyOptions, DeleteOptions,
    ManifestError, MutableObjectStore, NewManifest, PastEnd, PutManifestOptions, PutOptions,
    PutRangeOptions, RangeSet, Span, StorageError, TrackOptions, UpdateOptions, UploadOptions,
};
use graviton_engine::store::{CreateOptions, KIB, MIB, OpenOptions, Store};
use graviton_format::superblock::Superblock;
use graviton_format::{Geometry, Identity, checkpoint, frame, segment, store_file};

use crate::random::payload;

/// Where the store lies on its machine.
pub const DIRECTORY: &str = "/simulated/store";
/// Edits know no smaller unit; it is also the least block of a device.
pub const BLOCK: usize = 512;

/// What was ever put under each key.
pub type History = BTreeMap<BinaryKey, Vec<Bytes>>;

/// How old a store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    /// Made a moment ago, and closed with little in it.
    Fresh,
    /// Closed after some use: a checkpoint, and nothing to replay.
    Checkpointed,
    /// Killed later: a log to replay, on top of two checkpoints.
    Killed,
    /// Killed after its log has gone round: segments that were reclaimed are written again.
    Reused,
}

impl Age {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Fresh, Self::Checkpointed, Self::Killed, Self::Reused];
}

/// A store at all ages.
#[derive(Debug)]
pub struct Original {
    /// Physical block of its machine.
    pub block_size: u32,
    /// It at each age.
    pub ages: [Snapshot; Age::ALL.len()],
    /// What was ever put in it, up to the last age.
    pub history: History,
}

/// A store at one age.
#[derive(Debug)]
pub struct Snapshot {
    /// The machine it lies on.
    pub machine: sim::Image,
    /// Its sectors.
    pub sectors: Vec<SectorFile>,
}

/// A sector as it lies on disk.
#[derive(Debug)]
pub struct SectorFile {
    /// Where.
    pub path: PathBuf,
    /// What.
    pub bytes: Vec<u8>,
    /// What its superblock says of it.
    pub identity: Identity,
    /// What its superblock says of it.
    pub geometry: Geometry,
    /// Addresses of the blocks that are not all zeros.
    pub used: Vec<usize>,
    /// Addresses of the blocks that begin a structure.
    pub heads: Vec<usize>,
}

/// How the stores here are opened.
#[must_use]
pub fn options() -> OpenOptions {
    OpenOptions {
        background: false,
        checkpoint_interval: Some(512 * KIB),
        ..OpenOptions::default()
    }
}

/// A good key.
///
/// # Panics
/// If it is none.
#[must_use]
pub fn key(name: &str) -> BinaryKey {
    BinaryKey::new(name).expect("a good key")
}

/// The store with one sector or with two, on blocks of 512 or 4096 bytes.
///
/// # Panics
/// If it can't be made.
pub fn original(two_sectors: bool, large_blocks: bool) -> &'static Original {
    static ALL: [OnceLock<Original>; 4] = [const { OnceLock::new() }; 4];
    let number = usize::from(two_sectors) + 2 * usize::from(large_blocks);
    ALL[number].get_or_init(|| {
        let block_size = if large_blocks { 4096 } else { 512 };
        Maker::make(1 + u16::from(two_sectors), block_size).expect("the store can be made")
    })
}

struct Maker {
    sim: Sim,
    store: Store,
    history: History,
    sectors: u16,
}

impl Maker {
    fn make(sectors: u16, block_size: u32) -> Result<Original, StorageError> {
        let sim = Sim::new(block_size, 1);
        sim.record(false);
        let create = CreateOptions {
            sectors,
            replicas: 1,
            sector_size: 4 * MIB,
            segment_size: Some(64 * KIB),
            block_size: Some(block_size),
            open: options(),
        };
        let store = Store::create_on(sim.backend(), DIRECTORY, create)?;
        let mut maker = Self {
            sim,
            store,
            history: History::new(),
            sectors,
        };
        maker.put("small/00", 1, 40)?;
        let fresh = maker.reopened()?;
        for round in 0..2 {
            maker.round(round)?;
            maker.store.checkpoint()?;
        }
        maker.store.compact()?;
        let checkpointed = maker.reopened()?;
        maker.round(2)?;
        let killed = maker.snapshot();
        for round in 3..3 + 24 * u64::from(sectors) {
            maker.round(round)?;
            while maker.store.step()? {}
        }
        maker.round(1000)?;
        let reused = maker.snapshot();
        Ok(Original {
            block_size,
            ages: [fresh, checkpointed, killed, reused],
            history: maker.history,
        })
    }

    fn put(&mut self, name: &str, seed: u64, length: usize) -> Result<(), StorageError> {
        let bytes = payload(seed, length);
        let done = self
            .store
            .put(&key(name), bytes.clone(), PutOptions::default());
        done.wait()?;
        self.note(name, bytes);
        Ok(())
    }

    /// One upload becomes a blob, another stays open.
    fn upload(&mut self, seed: u64) -> Result<(), StorageError> {
        let sizes = [30_000, 100];
        let payloads: Vec<Bytes> = (0..)
            .zip(sizes)
            .map(|(n, size)| payload(seed + 300 + n, size))
            .collect();
        for is_completed in [false, true] {
            let options = UploadOptions::default();
            let upload = self.store.start_upload(&key("uploaded"), options).wait()?;
            let mut parts = Vec::new();
            for (number, payload) in (1..).zip(&payloads) {
                let options = PutOptions::default();
                let part = self
                    .store
                    .upload_part(upload, number, payload.clone(), options);
                parts.push((number, part.wait()?.etag));
            }
            if is_completed {
                let options = CompleteOptions::default();
                self.store.complete_upload(upload, &parts, options).wait()?;
            }
        }
        self.note("uploaded", payloads.concat().into());
        // Of those before only the last is left.
        let open = self.store.list_uploads(None, usize::MAX).wait()?;
        for older in open.iter().rev().skip(1) {
            self.store.abort_upload(older.upload).wait()?;
        }
        Ok(())
    }

    /// Puts a range into the newest version.
    fn change(&mut self, name: &str, start: usize, bytes: Bytes) -> Result<(), StorageError> {
        let versions = &self.history[&key(name)];
        let mut whole = versions.last().expect("it was put").to_vec();
        let end = start + bytes.len();
        whole.resize(whole.len().max(end), 0);
        whole[start..end].copy_from_slice(&bytes);
        let range = Span::at(start as u64, bytes.len() as u64)?;
        let options = PutRangeOptions {
            past_end: PastEnd::Sparse,
            ..PutRangeOptions::default()
        };
        let put = self.store.put_range(&key(name), range, bytes, options);
        put.wait()?;
        self.note(name, whole.into());
        Ok(())
    }

    /// Makes a blob of the ends of others, with a hole between, and says something of it.
    fn compose(&mut self, name: &str, sources: [&str; 2], round: u64) -> Result<(), ManifestError> {
        let mut new = NewManifest::default();
        let mut whole = vec![0; 5];
        new.append_hole(5)?;
        for source in sources {
            let bytes = self.history[&key(source)].last().expect("it was put");
            new.append(&key(source), 7, bytes.len() as u64)?;
            whole.extend_from_slice(&bytes[7..]);
        }
        let options = PutManifestOptions {
            replace: true,
            ..PutManifestOptions::default()
        };
        let manifests = self.store.manifests();
        manifests.put(&key(name), &new, options).wait()?;
        for source in ["somebody", "somebody else"] {
            let update = AttributesUpdate {
                source: source.to_owned(),
                ..AttributesUpdate::merge([(source.to_owned(), round.to_string().into())].into())
            };
            let updated = manifests.update_attributes(&key(name), update, UpdateOptions::default());
            updated.wait()?;
        }
        self.note(name, whole.into());
        Ok(())
    }

    fn note(&mut self, name: &str, bytes: Bytes) {
        self.history.entry(key(name)).or_default().push(bytes);
    }

    /// Something of everything.
    fn round(&mut self, round: u64) -> Result<(), StorageError> {
        let seed = round * 1000;
        for number in 0..20 {
            let length = 40 * usize::try_from(number).expect("small");
            self.put(&format!("small/{number:02}"), seed + number, length)?;
        }
        self.put("middling", seed + 100, 10_000)?;
        // Larger than a segment: extents and a manifest.
        self.put("large", seed + 101, 150_000)?;
        let delete = self
            .store
            .delete(&key("small/07"), DeleteOptions::default());
        delete.wait()?;
        self.put("changed", seed + 102, 9000)?;
        self.change("changed", 100, payload(seed + 103, 50))?;
        // Longer than a segment, and behind a hole.
        self.change("changed", 20_000, payload(seed + 104, 70_000))?;
        let copy = self
            .store
            .copy(&key("large"), &key("copy"), CopyOptions::default());
        copy.wait()?;
        self.note("copy", payload(seed + 101, 150_000));
        self.upload(seed)?;
        self.compose("composed", ["large", "middling"], round)
            .expect("all of it is there");
        self.change("composed", 30, payload(seed + 105, 40))?;
        let ranges: RangeSet = format!("{round}..{},5000..6000", round + 7).parse()?;
        let tracker = self.store.ranges_elsewhere();
        let marked = tracker.mark_complete(&key("elsewhere"), &ranges, TrackOptions::default());
        marked.wait().expect("ranges can be marked");
        let mut batch = Batch::new();
        for number in 0..5 {
            let (name, bytes) = (format!("batch/{number}"), payload(seed + 200 + number, 100));
            self.note(&name, bytes.clone());
            batch.put(key(&name), bytes);
        }
        self.store.batch(batch).wait()?;
        Ok(())
    }

    /// Closes the store, keeps what is there then, and opens it again.
    fn reopened(&mut self) -> Result<Snapshot, StorageError> {
        self.store.close()?;
        let image = self.sim.image();
        self.store = Store::open_on(self.sim.backend(), DIRECTORY, options())?;
        Ok(self.keep(image))
    }

    /// What a kill leaves now.
    fn snapshot(&self) -> Snapshot {
        self.keep(self.sim.image())
    }

    fn block_size(&self) -> u32 {
        self.store.info().sectors[0].block_size
    }

    fn keep(&self, machine: sim::Image) -> Snapshot {
        let backend = Sim::boot(&machine, self.block_size(), 1).backend();
        let sectors = (0..self.sectors)
            .map(|number| {
                let file = format!("sector-{number:03}.graviton");
                SectorFile::read(backend.as_ref(), Path::new(DIRECTORY).join(file))
            })
            .collect();
        Snapshot { machine, sectors }
    }
}

impl SectorFile {
    fn read(backend: &dyn Backend, path: PathBuf) -> Self {
        let bytes = read_disk(backend, &path);
        let superblock = Superblock::decode(&bytes, 0).expect("a superblock");
        let blocks = || (0..bytes.len()).step_by(BLOCK);
        let magic = |at: usize| bytes[at..].first_chunk().map(|m| u32::from_le_bytes(*m));
        let is_head = |&at: &usize| {
            Superblock::decode(&bytes[at..], at as u64).is_ok()
                || matches!(
                    magic(at),
                    Some(frame::MAGIC | segment::MAGIC | checkpoint::MAGIC | store_file::MAGIC)
                )
        };
        Self {
            path,
            identity: superblock.identity(),
            geometry: superblock.geometry(),
            used: blocks()
                .filter(|&at| bytes[at..at + BLOCK].iter().any(|&byte| byte != 0))
                .collect(),
            heads: blocks().filter(is_head).collect(),
            bytes,
        }
    }
}

/// All bytes of a simulated disk.
fn read_disk(backend: &dyn Backend, path: &Path) -> Vec<u8> {
    let disk = backend
        .open(path, OpenAccess::ReadOnly)
        .expect("a sector opens");
    let size = usize::try_from(disk.size()).expect("a small sector");
    let (buffer, outcome) = wait_for(disk.read(BufferPool::global().take(size), 0));
    outcome.expect("a sector is read");
    buffer.to_vec()
}

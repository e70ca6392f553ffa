//! What a store tells of itself: figures, health, the map of its segments, reports.

use std::path::PathBuf;
use std::time::SystemTime;

use super::cache::CacheFigures;
use super::options::Access;
use crate::port::{BinaryKey, Labels, Place, Rebalance, SectorState};

/// A store's figures at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StoreInfo {
    /// Its directory.
    pub path: PathBuf,
    /// Its id, 32 hex digits.
    pub store_id: String,
    /// Version of its format.
    pub format_version: u32,
    /// How it is open.
    pub access: Access,
    /// The I/O backend.
    pub backend: &'static str,
    /// Why the backend is not the preferred one.
    pub notice: Option<String>,
    /// How its blobs are spread over its sectors.
    pub replication: ReplicationInfo,
    /// How many blobs it holds, however many replicas there are of each.
    pub blobs: u64,
    /// Their sizes, summed, in bytes.
    pub logical_bytes: u64,
    /// The highest LSN assigned.
    pub lsn: u64,
    /// Bytes of memory its index takes, about.
    pub index_bytes: u64,
    /// What its read cache holds.
    pub cache: CacheFigures,
    /// All sectors' space, summed.
    pub space: Space,
    /// Its sectors, by number.
    pub sectors: Vec<SectorInfo>,
    /// What is wrong with it, a line each; empty when it is healthy.
    pub health: Vec<String>,
}

/// How a store's blobs are spread over its sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplicationInfo {
    /// How many sectors are to have each blob whose put has not asked for more.
    pub replicas: u16,
    /// Blobs (and uploads, parts and tracked sets) that are known to have fewer good replicas, or a damaged
    /// one: repair is on its way, unless there is no sector for it.
    pub backlog: u64,
    /// Whether there may be others: the index has not been looked through since a sector failed, or since
    /// the store was opened and some were found.
    pub is_scan_due: bool,
    /// Whether the store file says that something lies in fewer sectors than `replicas`: then the store does
    /// not open without any of the sectors that take part now.
    pub is_short: bool,
    /// Replicas that could not be read, and have neither been read nor written anew since.
    pub damaged: u64,
}

/// Where a sector's bytes are: `total = metadata + live + garbage + free`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// The whole, in bytes.
    pub total: u64,
    /// Superblocks, checkpoint roots, segment headers, checkpoints.
    pub metadata: u64,
    /// Records of blobs that exist, or are on their way in.
    pub live: u64,
    /// Written bytes that nothing needs any more: compaction turns them into free ones.
    pub garbage: u64,
    /// Never written, or reclaimed.
    pub free: u64,
    /// Bytes of records that puts can still add. Less than `free + garbage`: room is kept so that
    /// deletes, checkpoints and compaction can always proceed.
    pub available: u64,
}

impl Space {
    /// The sum of two.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            total: self.total + other.total,
            metadata: self.metadata + other.metadata,
            live: self.live + other.live,
            garbage: self.garbage + other.garbage,
            free: self.free + other.free,
            available: self.available + other.available,
        }
    }
}

/// One sector's figures.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SectorInfo {
    /// Its number in the store.
    pub number: u16,
    /// Its id, 16 hex digits.
    pub sector_id: String,
    /// Its file, or its block device.
    pub path: PathBuf,
    /// Whether it is a block device.
    pub is_device: bool,
    /// Whether its replicas are to move elsewhere, be it that it is missing or broken.
    pub draining: bool,
    /// The number of the sector that it came for, as long as that is there.
    pub replaces: Option<u16>,
    /// What it can be used for.
    pub state: SectorState,
    /// What its operator says of it.
    pub labels: Labels,
    /// Whether its I/O bypasses the page cache.
    pub direct: bool,
    /// Alignment of its writes in bytes.
    pub block_size: u32,
    /// Size of a segment in bytes.
    pub segment_size: u64,
    /// How many segments it has; 0 if it can't be used.
    pub segment_count: u32,
    /// How many of them have been zeroed ahead of use, or used.
    pub segments_zeroed: u32,
    /// Its space.
    pub space: Space,
    /// Its newest checkpoint.
    pub checkpoint: Option<CheckpointInfo>,
    /// Log bytes written since: what recovery would replay.
    pub replay_bytes: u64,
    /// Whether a write or sync failed: it takes no writes until the store is opened again.
    pub poisoned: Option<String>,
}

/// A checkpoint's figures.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckpointInfo {
    /// The LSN up to which it holds everything.
    pub lsn: u64,
    /// When it was taken.
    pub taken: SystemTime,
    /// Its size in bytes.
    pub bytes: u64,
    /// How many blobs it lists.
    pub entries: u64,
}

/// What a segment is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SegmentState {
    /// Can be taken into use.
    Free,
    /// The log's end lies in it.
    Open,
    /// Part of the log, written to its end.
    Sealed,
    /// Holds nothing live; free once no checkpoint (and no reader) needs it.
    Reclaimed,
    /// Holds a checkpoint.
    Checkpoint,
}

/// One segment, as `map` draws it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentInfo {
    /// Its number in the sector.
    pub index: u32,
    /// What it is used for.
    pub state: SegmentState,
    /// How often it has been taken into use.
    pub generation: u64,
    /// Bytes written, its header included.
    pub written: u64,
    /// Bytes of live records among them.
    pub live: u64,
}

/// What a verify found.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Segments read.
    pub segments: u64,
    /// Frames checked.
    pub frames: u64,
    /// Records checked, live or not.
    pub records: u64,
    /// Blobs whose every byte was read back through the index.
    pub blobs: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What is wrong, in the order it was found; empty when all is well.
    pub findings: Vec<Finding>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// Where.
    pub place: Place,
    /// The blob that is hit, if it is known.
    pub key: Option<BinaryKey>,
    /// What does not hold.
    pub what: String,
}

/// How far a verify is.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct VerifyProgress {
    /// Bytes checked.
    pub done: u64,
    /// Bytes to check in all.
    pub total: u64,
}

/// What a scrub has found.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ScrubReport {
    /// Keys that were looked at: blobs, uploads, parts, tracked sets.
    pub keys: u64,
    /// Replicas that were looked at; those around damage perhaps more than once.
    pub replicas: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// What is wrong, in the order it was found, 10,000 things at most. First, with each replica of which something
    /// is damaged: they are marked, and repaired if another has what is. Then around them, which is mended in
    /// the sector itself.
    pub findings: Vec<Finding>,
    /// Where to go on, if it was broken off.
    pub next: Option<Vec<u8>>,
}

/// How far a scrub is.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct ScrubProgress {
    /// Keys that were looked at.
    pub keys: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Things that are damaged.
    pub damaged: u64,
}

/// How far a repair is.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct RepairProgress {
    /// Keys that are known to lack something.
    pub left: u64,
}

/// How far a rebalance is: the next step has just been taken, or, in a dry run, been found.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct RebalanceProgress<'a> {
    /// Blobs that were looked at, or are next.
    pub keys: u64,
    /// Replicas that were made.
    pub added: u64,
    /// Replicas that were taken away.
    pub removed: u64,
    /// Bytes of blobs that were copied.
    pub bytes: u64,
    /// The blob that the step is for.
    pub key: &'a BinaryKey,
    /// The step, and what it is good for.
    pub step: &'a Rebalance,
}

/// What a rebalance did, or would do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RebalanceReport {
    /// Blobs that were looked at.
    pub keys: u64,
    /// Replicas that were made.
    pub added: u64,
    /// Replicas that were taken away.
    pub removed: u64,
    /// Bytes of blobs that were copied.
    pub bytes: u64,
    /// Steps that could not be taken: there was no room, the blob was in use, or other replicas were not well.
    pub left: u64,
}

/// What a compaction did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompactReport {
    /// Segments emptied.
    pub segments: u64,
    /// Segments that could not be emptied, since something in them can't be read: what can be is moved later.
    pub damaged: u64,
    /// Bytes of live records that were copied out of them.
    pub moved: u64,
    /// Bytes that became free.
    pub freed: u64,
}

/// What came of [`Store::recover_store_file`](super::Store::recover_store_file).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoveredStoreFile {
    /// Which revision of the store file the newest copy was.
    pub revision: u64,
    /// The sectors that it names, by number.
    pub sectors: Vec<FoundSector>,
    /// Sectors of the same store that it does not name: they were removed, or were being added.
    pub unnamed: Vec<PathBuf>,
}

/// What was found of a sector that a copy of the store file names.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FoundSector {
    /// Its number.
    pub number: u16,
    /// Where it is, or was when the copy was written.
    pub path: PathBuf,
    /// Whether it was found.
    pub is_there: bool,
    /// Whether it is as new as the copy says, and no older copy of itself.
    pub is_as_left: bool,
    /// It took no part when the copy was written.
    pub is_behind: bool,
}

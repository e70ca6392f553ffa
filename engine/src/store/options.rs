//! How a store is created and opened.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::io::IoOptions;
use crate::port::blob::ATTRIBUTES_MAX_LEN;
use crate::port::tracker::FRAGMENTS_MAX;
use crate::port::{Labels, ReplicationPolicy};

/// One kibibyte and its larger kin, in bytes.
pub const KIB: u64 = 1 << 10;
/// One mebibyte, in bytes.
pub const MIB: u64 = 1 << 20;
/// One gibibyte, in bytes.
pub const GIB: u64 = 1 << 30;

/// How a store is created. The default: one sector of 1 GiB, all else fitted to it.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// How many sectors (1 to 64), all of one size, in the store's directory.
    pub sectors: u16,
    /// How many sectors each blob is put into (1 to the number of sectors): so many less one may be
    /// lost. A put can ask for more, which changes nothing of that.
    pub replicas: u16,
    /// Size of each sector in bytes, preallocated; rounded down to whole segments. At least 4 MiB.
    pub sector_size: u64,
    /// Size of a segment in bytes: a power of two from 64 KiB to 1 GiB, or `None` to fit it to the
    /// sector (about 1/128 of it, from 64 KiB to 64 MiB). A sector has at least 16 segments.
    pub segment_size: Option<u64>,
    /// Alignment of writes in bytes (512 or 4096), or `None` to take the device's.
    pub block_size: Option<u32>,
    /// How the store is opened once it is created.
    pub open: OpenOptions,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self {
            sectors: 1,
            replicas: 1,
            sector_size: GIB,
            segment_size: None,
            block_size: None,
            open: OpenOptions::default(),
        }
    }
}

/// A sector that is to be added to a store. The default: a file of 1 GiB in the store's directory.
#[derive(Debug, Clone)]
pub struct NewSector {
    /// Its file, which must not exist, or a block device that nobody else uses; relative to the store's directory.
    /// `None`: a file there, named by its number.
    pub file: Option<PathBuf>,
    /// Its size in bytes, preallocated; rounded down to whole segments, which are as large as the other
    /// sectors'. At least 16 of them. Of a block device, no more than it has: [`u64::MAX`] is all of it. Of one
    /// that is not taken as a whole, what says where things lie is found only as long as its first block is good.
    pub size: u64,
    /// Even if there is something on the block device, which is lost then. Nothing is ever made of a device that
    /// is a sector of the store, and a file is never overwritten.
    pub overwrite: bool,
    /// What its operator says of it.
    pub labels: Labels,
    /// The sector that it comes for: that is being drained from the same moment on.
    pub replaces: Option<u16>,
}

impl Default for NewSector {
    fn default() -> Self {
        Self {
            file: None,
            size: GIB,
            overwrite: false,
            labels: Labels::default(),
            replaces: None,
        }
    }
}

/// How a sector is taken away. The default: only if nothing is the worse for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RemoveOptions {
    /// Even if something has too few replicas then, or none.
    pub accept_loss: bool,
}

/// How much of each replica a scrub reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ScrubDepth {
    /// Nothing: what the index says must fit together.
    Index,
    /// The front of each record, with what is said of the blob; superblocks, checkpoints, and the headers of
    /// segments and frames.
    Headers,
    /// Every byte, be it of what is dead but still there.
    #[default]
    Everything,
}

/// How a scrub goes about it. The default: every byte, as fast as the disks go.
#[derive(Debug, Clone, Default)]
pub struct ScrubOptions {
    /// How much of each replica is read.
    pub depth: ScrubDepth,
    /// The most bytes that are read in a second; `None`: no limit.
    pub bytes_per_second: Option<u64>,
    /// Where to begin: [`ScrubReport::next`](super::ScrubReport) of one that was broken off. `None`: with the
    /// first key.
    pub from: Option<Vec<u8>>,
}

/// How a rebalance goes about it. The default: does what it finds, as fast as the disks go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RebalanceOptions {
    /// Only says what it would do.
    pub dry_run: bool,
    /// The most bytes of blobs that are copied in a second; `None`: no limit.
    pub bytes_per_second: Option<u64>,
}

/// Whether a store is opened for writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// Reads and writes, as the store's one owner.
    #[default]
    ReadWrite,
    /// Reads only: nothing on disk is touched. Several readers may share a store, but not with an
    /// owner.
    ReadOnly,
    /// As [`Access::ReadOnly`], of a store that no longer opens otherwise: damage to its log or to
    /// every checkpoint has taken changes that were acknowledged, or sectors are missing. Nobody can tell which, so any
    /// blob may be missing, be an older version, or show again though it was deleted; but what is
    /// read verifies. [`StoreInfo::health`](super::StoreInfo) says what is damaged.
    Salvage,
}

/// How many of the replicas of a blob a write waits for. The others are made behind it, as repair makes them:
/// [`ReplicationInfo::backlog`](super::ReplicationInfo::backlog) says of how many blobs. Until they are,
/// what was written may lie in one sector alone (or in a quorum of them): the store file says that something is
/// [short](super::ReplicationInfo::is_short), and with that no sector may be missing when the store is opened.
/// Once a sector has failed, [`flush`](crate::port::BlobStore::flush) can't promise anything but with `All`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum WriteMode {
    /// All of them.
    #[default]
    All,
    /// More than half of them.
    Quorum,
    /// The first.
    Async,
}

impl WriteMode {
    /// How many of so many replicas are waited for.
    #[must_use]
    pub fn waits_for(self, replicas: usize) -> usize {
        match self {
            Self::All => replicas,
            Self::Quorum => replicas / 2 + 1,
            Self::Async => 1,
        }
        .min(replicas)
    }
}

/// How a store is opened. The default: for writing, io_uring if it works, in the background
/// everything that keeps it tidy.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// For writing or reading.
    pub access: Access,
    /// Backend and direct I/O.
    pub io: IoOptions,
    /// Whether a thread of the store checkpoints, compacts and zeroes segments ahead of use. When
    /// `false`, [`Store::step`](super::Store::step) does it, or a thread that blocks on a put which
    /// waits for room; a put that is awaited waits until one of them does.
    pub background: bool,
    /// Decides which sectors the replicas of a blob go to, for every put. `None`: to where it lies already, then to
    /// those with most room, whatever their labels say.
    pub replication: Option<Arc<dyn ReplicationPolicy>>,
    /// How many of its replicas a write waits for.
    pub write_mode: WriteMode,
    /// Whether writes go on if fewer sectors than [`OpenOptions::write_mode`] wants can take them, and the others are
    /// made up for later. When `false` they are refused with `Insufficient`; those that are under way when a
    /// sector fails come about all the same.
    pub degraded_writes: bool,
    /// Sectors that may be missing though they may have the only copy of something that was acknowledged: if all that
    /// are missing are among them, the store is opened for writing without them, instead of refused with
    /// `TooFewSectors`. What only they have is gone, unless they come back, and then only what was not written anew
    /// meanwhile.
    pub accept_loss_of: Vec<u16>,
    /// The most bytes of memory that the read cache takes: whole blobs of up to 256 KiB, or a sixteenth of this if
    /// that is less, that were read not long ago, or often. 64 MiB; 0: none.
    pub cache_bytes: u64,
    /// Log bytes after which a checkpoint is taken: what recovery must replay, at most about
    /// twice this. `None`: 256 MiB, or less in a small sector.
    pub checkpoint_interval: Option<u64>,
    /// How long puts that need room wait for readers of segments in which nothing lives any more,
    /// before they fail with `NoSpace`; not for ever, for a reader may be idle, or on the very
    /// thread that waits. With [`Duration::ZERO`] they don't, and the store looks at no clock but
    /// that of its backend.
    pub reader_patience: Duration,
    /// The most spans that are tracked of one key whose bytes are held elsewhere, and the most pieces
    /// that puts of ranges make of a blob beside those of its size, if that is less than 1,048,576; more is
    /// `TooFragmented`.
    pub max_fragments: usize,
    /// How many pieces ranges may make of a blob of any size, before those that lie close together are
    /// written anew as one: 256. One more is granted for each 64 KiB of the blob, or for each 256th of a
    /// segment if that is less.
    pub merge_above: usize,
    /// The most bytes that the attributes of a blob may have, names and values together; 32 KiB, and no
    /// more.
    pub max_attributes_len: usize,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            access: Access::default(),
            io: IoOptions::default(),
            background: true,
            replication: None,
            write_mode: WriteMode::All,
            degraded_writes: true,
            accept_loss_of: Vec::new(),
            cache_bytes: 64 * MIB,
            checkpoint_interval: None,
            reader_patience: Duration::from_secs(1),
            max_fragments: FRAGMENTS_MAX,
            merge_above: 256,
            max_attributes_len: ATTRIBUTES_MAX_LEN,
        }
    }
}

impl OpenOptions {
    /// For reading only.
    #[must_use]
    pub fn read_only() -> Self {
        Self {
            access: Access::ReadOnly,
            ..Self::default()
        }
    }
}

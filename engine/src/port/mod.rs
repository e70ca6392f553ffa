//! The traits and domain types callers see. No I/O, and no knowledge of any other floor.

pub mod blob;
pub mod digest;
pub mod error;
pub mod key;
pub(crate) mod latch;
pub mod list;
pub mod manifest;
pub mod mutable;
pub mod op;
pub mod replica;
pub mod replication;
pub mod sector;
pub mod span;
pub mod tracker;

pub use blob::{
    Attributes, Batch, BatchItem, BatchItemOutcome, Blob, BlobInfo, BlobReader, BlobStore,
    BlobWriter, CopyOptions, DeleteOptions, DeleteOutcome, Durability, ETag, GetOptions,
    Precondition, PutOptions, PutOutcome, ReadBlob, StoreOp, WriteBlob,
};
pub use digest::{Digest, DigestAlgorithm, DigestHasher};
pub use error::{ErrorKind, Place, PolicyError, StorageError};
pub use key::BinaryKey;
pub use list::{ListEntry, ListPage, ListRequest, ListToken};
pub use manifest::{
    Advertised, AdvertisedAttributes, AttributesUpdate, BlobManifest, Confirmed, EntryContent,
    Fact, Location, ManifestEntry, ManifestError, ManifestItem, ManifestOp, ManifestPage,
    ManifestStore, NewEntry, NewManifest, PutManifestOptions, UpdateOptions,
};
pub use mutable::{
    BlobRanges, CompleteOptions, GetRangesOptions, Holes, MutableObjectStore, PartInfo, PastEnd,
    PutRangeOptions, SweptUploads, UploadId, UploadInfo, UploadOptions,
};
pub use op::Op;
pub use replica::{Health, Replica, ReplicaError, ReplicaIndex, ReplicaOp, ReplicaStatus, Trouble};
pub use replication::{
    Choice, Gain, PartialCopy, Placement, Reason, Rebalance, ReplicationPolicy, Verdict,
};
pub use sector::{Labels, Price, SectorFacts, SectorState};
pub use span::{RangeSet, Span};
pub use tracker::{
    Completed, Expected, Marked, ObserveRanges, RangeTracker, TrackOptions, TrackerError, TrackerOp,
};

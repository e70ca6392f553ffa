//! Group commit: requests queue, each for the sectors that its records go to, and whoever waits for one and finds
//! the logs of these idle writes everything queued so far, as one frame in each.
//!
//! A *flight* of frames is assembled (preconditions decided, LSNs given out, in the order of the
//! requests), written, and once all of it is as durable as its requests ask, *applied* to the index and
//! answered; then the next is assembled. So the records of one request have the same LSNs in all their
//! sectors, and in the log of each they follow in the order in which they were decided.
//! Completion drives the pipeline: the thread that reaps the last of a flight's writes applies it and
//! submits the next one, whoever it waits for itself.
//!
//! A decision sees the effect of everything before it, since a sector has one frame under way at a time.
//! But what is put meanwhile, if nothing under way is about the same keys, can go *behind* it, while its write
//! is still to end: into the same segment, in a frame of its own. Flights land and are answered in their
//! order; the failure of one is that of those behind it. A power failure may leave a frame and not the one
//! before it: the log ends before both then, and neither was acknowledged \[F-51\].
//!
//! Which sectors take part in a flight: those of the oldest request of which none is under way, and
//! those that share one with them. A sector for which an older request waits is left alone until that
//! can go: so nobody waits for ever.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

use bytes::Bytes;
use graviton_format::geometry::Geometry;
use graviton_format::image::ExtentEntry;
use graviton_format::record::{ExtentRef, Manifest, RecordKind, record_length};

use super::assembly::{Assembly, Busy, Decided, Doubt, Draft, check_fits_frame};
use super::index::{Applied, Hold};
use super::inner::Inner;
use super::set::SectorSet;
use super::ticket::{Answer, Ticket, ticket};
use super::tracker::Known;
use crate::io::{AlignedBuf, WriteSync};
use crate::log::append::{BuiltFrame, frame_length};
use crate::log::{Encoded, FrameBuilder, Purpose, Sector, Tail};
use crate::port::op::{offer_driver, wait_for};
use crate::port::{BinaryKey, ETag, PastEnd, Precondition, Span, StorageError};
use crate::sync::Mutex;
use crate::sync::atomic::Ordering;

/// One change to a key.
#[derive(Debug)]
pub enum Mutation {
    /// A version whose record is ready: a blob record, or a manifest over extents of its sectors.
    Put {
        key: BinaryKey,
        /// The upload that it is a part of, which must be open.
        upload: Option<BinaryKey>,
        precondition: Precondition,
        record: Encoded,
        kind: RecordKind,
        time: u64,
        meta_length: u32,
        payload_length: u32,
        manifest: Option<(u64, Arc<[ExtentRef]>)>,
        /// How many sectors it is to lie in; 0: as many as the store says.
        replicas: u8,
        /// What a tracker knows by it.
        known: Option<Box<Known>>,
    },
    /// A version whose extents come with its manifest.
    PutInPieces {
        key: BinaryKey,
        /// The upload that it is a part of, which must be open.
        upload: Option<BinaryKey>,
        precondition: Precondition,
        /// The records of the extents, in order, and how many bytes of payload each has.
        extents: Vec<(Encoded, u32)>,
        /// Metadata of the manifest.
        meta: Vec<u8>,
        /// Bytes of the blob.
        size: u64,
        /// How many sectors it is to lie in; 0: as many as the store says.
        replicas: u8,
        time: u64,
    },
    /// A version that is the current one but for some bytes.
    Change {
        key: BinaryKey,
        precondition: Precondition,
        past_end: PastEnd,
        /// Where the bytes go.
        range: Span,
        /// The record, ready but for what it changes, which is behind the key.
        record: Encoded,
        time: u64,
        payload_length: u32,
        /// The pieces that hold the bytes, unless they are the record's payload.
        pieces: Option<Arc<[ExtentRef]>>,
        /// The pieces that were there until now, if some of these are made of them.
        expected: Option<Vec<ExtentRef>>,
        /// What a tracker knows by it.
        known: Option<Box<Known>>,
    },
    /// Bytes of the version that is current lie elsewhere from here on.
    Merge {
        key: BinaryKey,
        /// Where they are in the blob.
        range: Span,
        /// Their pieces until now, else it is another version.
        expected: Vec<ExtentRef>,
        /// The record, ready but for the version.
        record: Encoded,
        time: u64,
        /// Their pieces.
        pieces: Arc<[ExtentRef]>,
    },
    /// An upload, which is named by the LSN of its record.
    Start {
        /// Its key, but for the name.
        upload: BinaryKey,
        record: Encoded,
        time: u64,
        meta_length: u32,
        /// How many sectors it is to lie in, with all its parts; 0: as many as the store says.
        replicas: u8,
    },
    /// An upload becomes a blob.
    Complete {
        upload: BinaryKey,
        blob: BinaryKey,
        /// The parts that it is made of, in order.
        parts: Vec<(u16, ETag)>,
        precondition: Precondition,
        /// Metadata of the blob, but for the name of its source.
        meta: Vec<u8>,
        /// How many sectors the blob is to lie in; 0: as many as the store says.
        replicas: u8,
        /// What is kept of the list.
        digest: Bytes,
        time: u64,
    },
    /// An upload is given up.
    Abort {
        upload: BinaryKey,
        /// Unless something was put into it after this time.
        idle_since: Option<u64>,
        time: u64,
    },
    /// A delete.
    Delete {
        key: BinaryKey,
        precondition: Precondition,
        strict: bool,
        time: u64,
    },
    /// A manifest for `target` that shares the payload of version `expected` of `source`.
    Copy {
        source: BinaryKey,
        expected: u64,
        source_precondition: Precondition,
        target: BinaryKey,
        target_precondition: Precondition,
        /// Metadata of the new version, but for the name of its source.
        meta: Vec<u8>,
        /// If the new version goes on with a life: LSN of the record that it began with.
        life: Option<u64>,
        time: u64,
        rename: bool,
    },
    /// What other sectors have of a version, for one that has not, or can't read it.
    Replica {
        key: BinaryKey,
        /// The version, which must be current.
        version: u64,
        /// LSN of the record.
        lsn: u64,
        record: Encoded,
        kind: RecordKind,
        time: u64,
        meta_length: u32,
        payload_length: u32,
        /// The blob's size and pieces, all of which the sector has.
        manifest: Option<(u64, Arc<[ExtentRef]>)>,
        life: Option<u64>,
        replicas: u8,
    },
    /// A manifest for `target` over payload of others, as they were when it was planned, and extents of
    /// its own.
    Compose {
        target: BinaryKey,
        precondition: Precondition,
        /// The blobs that it is made of.
        sources: Vec<PlannedSource>,
        /// All its pieces.
        manifest: (u64, Arc<[ExtentRef]>),
        meta: Vec<u8>,
        time: u64,
    },
}

/// A blob that another is made of, as it was when that was planned.
#[derive(Debug)]
pub struct PlannedSource {
    pub key: BinaryKey,
    /// Its version.
    pub version: u64,
    /// Its pieces, if they are shared: then it lies in the same sectors.
    pub shared: Option<Arc<[ExtentRef]>>,
}

impl Mutation {
    /// The keys it is about.
    pub fn keys(&self) -> impl Iterator<Item = &BinaryKey> {
        let sources = match self {
            Self::Compose { sources, .. } => sources.as_slice(),
            _ => &[],
        };
        let (first, second) = match self {
            Self::Put { key, upload, .. } | Self::PutInPieces { key, upload, .. } => {
                (key, upload.as_ref())
            }
            Self::Replica { key, .. } => (key, None),
            Self::Change { key, .. } | Self::Merge { key, .. } | Self::Delete { key, .. } => {
                (key, None)
            }
            Self::Copy { source, target, .. } => (source, Some(target)),
            Self::Start { upload, .. } | Self::Abort { upload, .. } => (upload, None),
            Self::Complete { upload, blob, .. } => (upload, Some(blob)),
            Self::Compose { target, .. } => (target, None),
        };
        std::iter::once(first)
            .chain(second)
            .chain(sources.iter().map(|source| &source.key))
    }

    /// Whether it is decided by what the index says of its keys, and not what is yet to be applied.
    pub fn reads_index(&self) -> bool {
        matches!(
            self,
            Self::Copy { .. }
                | Self::Compose { .. }
                | Self::Replica { .. }
                | Self::Merge { .. }
                | Self::Complete { .. }
                | Self::Abort { .. }
        ) || matches!(self, Self::Change { expected, .. } if expected.is_some())
    }

    /// Bytes it adds to the log, at most.
    fn length_max(&self) -> u64 {
        match self {
            Self::Put { record, .. }
            | Self::Change { record, .. }
            | Self::Merge { record, .. }
            | Self::Replica { record, .. }
            | Self::Start { record, .. } => record.length(),
            Self::PutInPieces {
                key, extents, meta, ..
            } => {
                let payload = Manifest::payload_length(extents.len()) as u64;
                let records = extents.iter().map(|(record, _)| record.length());
                records.sum::<u64>() + record_length(key.stored().len(), meta.len(), payload)
            }
            Self::Delete { key: gone, .. } | Self::Abort { upload: gone, .. } => {
                record_length(gone.stored().len(), 0, 0)
            }
            // The manifest's size is known when it is decided.
            Self::Copy { .. } | Self::Compose { .. } | Self::Complete { .. } => 0,
        }
    }
}

/// What a mutation did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MutationOutcome {
    /// A new version.
    Put { version: u64, size: u64 },
    /// A delete.
    Deleted { existed: bool },
    /// An upload was given up, with so many bytes of parts, unless it is still in use.
    Aborted { bytes: Option<u64> },
}

/// A record that compaction copies.
#[derive(Debug)]
pub struct Move {
    pub kind: RecordKind,
    pub key: BinaryKey,
    pub lsn: u64,
    pub time: u64,
    /// Where it lies now.
    pub from: u64,
    /// It is a replica of what another sector has.
    pub replica: bool,
    pub meta_length: u32,
    pub payload_length: u32,
    pub record: Encoded,
}

impl Move {
    /// Bytes it adds to the log.
    pub fn length(&self) -> u64 {
        self.record.length()
    }
}

/// What is asked of the log.
#[derive(Debug)]
pub enum Work {
    /// Changes that happen all or not at all.
    Mutations(Vec<Mutation>),
    /// A piece of a blob on its way in.
    Extent {
        key: BinaryKey,
        time: u64,
        payload_length: u32,
        record: Encoded,
        hold: Arc<Hold>,
        /// It is a replica of what has this LSN.
        replica_of: Option<u64>,
    },
    /// Records on their way out of a segment.
    Moves(Vec<Move>),
    /// Make everything before durable.
    Sync,
    /// Write a note of what is durable, if there is none yet.
    Note,
}

impl Work {
    /// How deep into the reserve it may go.
    pub fn purpose(&self) -> Purpose {
        match self {
            Self::Mutations(mutations)
                if mutations.iter().all(|mutation| {
                    matches!(mutation, Mutation::Delete { .. } | Mutation::Abort { .. })
                }) =>
            {
                Purpose::Delete
            }
            Self::Mutations(_) | Self::Extent { .. } => Purpose::Put,
            Self::Moves(_) => Purpose::Compaction,
            Self::Sync | Self::Note => Purpose::Delete,
        }
    }

    /// Whether it waits if there is no room for it. Maintenance makes the room that others wait for; it
    /// must not wait for itself.
    pub fn waits_for_room(&self) -> bool {
        match self {
            Self::Mutations(mutations) => !mutations
                .iter()
                .any(|mutation| matches!(mutation, Mutation::Replica { .. })),
            Self::Extent { replica_of, .. } => replica_of.is_none(),
            Self::Moves(_) | Self::Note => false,
            Self::Sync => true,
        }
    }

    /// Whether it makes only versions of their own, or pieces of them: those behind it need not see what it does.
    pub fn is_plain(&self) -> bool {
        let is_plain = |mutation: &Mutation| {
            matches!(
                mutation,
                Mutation::Put { upload: None, .. } | Mutation::PutInPieces { upload: None, .. }
            )
        };
        match self {
            Self::Mutations(mutations) => mutations.iter().all(is_plain),
            Self::Extent { replica_of, .. } => replica_of.is_none(),
            Self::Moves(_) | Self::Sync | Self::Note => false,
        }
    }

    /// Its mutations, if that is what it is.
    pub fn mutations(&self) -> &[Mutation] {
        match self {
            Self::Mutations(mutations) => mutations,
            _ => &[],
        }
    }

    /// Bytes of records it adds, at most.
    pub fn length_max(&self) -> u64 {
        match self {
            Self::Mutations(mutations) => mutations.iter().map(Mutation::length_max).sum(),
            Self::Extent { record, .. } => record.length(),
            Self::Moves(moves) => moves.iter().map(Move::length).sum(),
            Self::Sync | Self::Note => 0,
        }
    }

    /// Bytes by which it makes an image grow, at most, beside those of its records.
    pub fn growth_beside(&self) -> u64 {
        /// A range of one byte makes three pieces of a blob, and two extents.
        const CHANGE: u64 = 160;
        let growth = |mutation: &Mutation| match mutation {
            Mutation::Change { .. } | Mutation::Merge { .. } => CHANGE,
            // Payload of a part's record becomes an extent.
            Mutation::Complete { parts, .. } => (parts.len() * size_of::<ExtentEntry>()) as u64,
            _ => 0,
        };
        self.mutations().iter().map(growth).sum()
    }
}

/// What became of work that was done.
#[derive(Debug)]
pub enum Done {
    /// Outcomes of the mutations, in order.
    Mutations(Vec<MutationOutcome>),
    /// The extent's LSN, and the sectors that have it.
    Extent { lsn: u64, sectors: SectorSet },
    /// Moves, sync, note.
    Nothing,
    /// The source of a copy changed meanwhile, or what is to be changed lies in other sectors: look
    /// again.
    Changed,
}

/// The answer to work.
pub type Reply = Result<Done, StorageError>;

/// The place of a request among all of them.
#[derive(Debug, Default)]
pub struct Claim {
    /// Lower ones come first.
    pub turn: u64,
    /// The keys it is about; kept only when there are several sectors.
    pub keys: Vec<BinaryKey>,
}

/// Who is to change which key, in which order.
#[derive(Debug, Default)]
pub struct Claims {
    turn: u64,
    by_key: HashMap<BinaryKey, Vec<u64>>,
}

impl Claims {
    /// Takes the next turn, for the keys of `work` if it may meet others on its way.
    fn stake(&mut self, work: &Work, is_alone: bool) -> Claim {
        self.turn += 1;
        let mut claim = Claim {
            turn: self.turn,
            keys: Vec::new(),
        };
        if !is_alone {
            self.stake_keys(&mut claim, work);
        }
        claim
    }

    fn stake_keys(&mut self, claim: &mut Claim, work: &Work) {
        let keys = work.mutations().iter().flat_map(Mutation::keys);
        claim.keys = keys.cloned().collect();
        for key in &claim.keys {
            let turns = self.by_key.entry(key.clone()).or_default();
            turns.push(claim.turn);
        }
    }

    fn release(&mut self, claim: &Claim) {
        for key in &claim.keys {
            if let Some(turns) = self.by_key.get_mut(key) {
                turns.retain(|turn| *turn != claim.turn);
                if turns.is_empty() {
                    self.by_key.remove(key);
                }
            }
        }
    }

    /// Whether somebody is about a key.
    fn is_claimed(&self, key: &BinaryKey) -> bool {
        self.by_key.contains_key(key)
    }

    /// Whether one of the keys is to be changed by another first, who is not among those of this flight.
    pub fn must_wait(&self, claim: &Claim, flight: &HashSet<u64>) -> bool {
        claim.keys.iter().any(|key| {
            let mut turns = self.by_key.get(key).into_iter().flatten();
            turns.any(|turn| *turn < claim.turn && !flight.contains(turn))
        })
    }
}

/// Work in a queue.
#[derive(Debug)]
pub struct Request {
    pub work: Work,
    pub durable: bool,
    pub claim: Claim,
    /// Bytes that were counted as pending in each of its sectors when it was admitted.
    pub pending: u64,
    pub answer: Answer<Reply>,
}

/// Frames of a sector that are under way at once, at most.
const UNDER_WAY_MAX: usize = 2;
/// Records that a frame has at most that another goes behind: their keys are looked through.
const FOLLOWED_MAX: usize = 256;
/// What is queued at most before it begins though nobody waits for it yet.
const HELD_BACK_MAX: HeldBack = HeldBack {
    requests: 64,
    bytes: 4 << 20,
};
/// Bytes of that while nothing is under way: the device has something to do while more are made.
const HELD_BACK_IDLE_MAX: u64 = 512 << 10;

/// What was queued since it was last seen what can begin.
#[derive(Debug, Clone, Copy, Default)]
struct HeldBack {
    requests: usize,
    bytes: u64,
}

/// A flight as a sector knows it that has a frame of it.
struct UnderWay {
    flight: u64,
    /// It gave out no lower LSN.
    first_lsn: u64,
    /// Every LSN up to this one was applied when it was decided.
    floor: u64,
    /// Where the log goes on behind it; `None`: nothing can follow, or not yet.
    end: Option<End>,
    /// It is over, but one before it is not.
    over: Option<Flight>,
}

/// The end of a frame that another may go behind.
struct End {
    tail: Tail,
    durable: bool,
    /// Bytes by which it makes an image grow, and those before it, at most.
    growth: u64,
    flight: Arc<Mutex<Option<Flight>>>,
}

/// The state of one sector's log's end.
#[derive(Default)]
pub struct Lane {
    /// Flights that have a frame of it, the oldest first.
    under_way: VecDeque<UnderWay>,
    /// The last flight behind which what waits could not go.
    not_behind: u64,
    /// Puts wait for compaction to free a segment.
    stalled: bool,
    tail: Tail,
    /// The segment of the tail is damaged: the log goes on in another.
    left: Option<(u32, u64)>,
    /// The highest LSN known durable.
    durable_lsn: u64,
    /// Frames were written that no sync has covered.
    unsynced: bool,
    /// LSN of the last frame with records, if no later frame says that it is durable.
    unnoted: Option<u64>,
    /// No frame that failed has an LSN above this one; 0: none failed.
    failed_lsn: u64,
    /// Woken when no frame is under way.
    idle: Vec<Waker>,
    /// Bytes admitted but not yet applied.
    pending: u64,
}

/// The commit pipeline of a store.
pub struct Commits {
    lanes: Vec<Lane>,
    /// How many flights there were.
    flights: u64,
    /// Requests by the sectors that their records go to, each queue in the order of turns.
    waiting: BTreeMap<SectorSet, VecDeque<Request>>,
    held_back: HeldBack,
    next_lsn: u64,
    /// The highest LSN that was given to a frame.
    newest: u64,
    claims: Claims,
    /// The store is being closed: nothing new comes in from outside.
    closing: bool,
}

/// An answer that a flight gives, and the sectors that its records are in.
#[derive(Debug)]
pub struct Answering {
    pub answer: Answer<Reply>,
    pub reply: Reply,
    pub sectors: SectorSet,
}

/// Frames under way that were decided together.
struct Flight {
    number: u64,
    decided: Decided,
    frames: Vec<Frame>,
    /// How many of the frames are still to come.
    left: usize,
}

/// One frame of a flight.
struct Frame {
    number: usize,
    /// Which of the decisions its records are, ascending.
    records: Vec<usize>,
    /// Their addresses.
    addresses: Vec<u64>,
    /// `None` if there is nothing to write, only to sync.
    tail: Option<Tail>,
    durable: bool,
    /// Bytes of the frame.
    length: u64,
    /// Durable LSN that the frame's header states.
    noted: u64,
    outcome: Result<(), StorageError>,
}

/// Where a frame goes, and what is known of those before it.
struct LaneState {
    tail: Tail,
    unsynced: bool,
    /// The highest LSN known durable.
    noted: u64,
}

/// What assembly decided.
struct Plan {
    flight: u64,
    decided: Decided,
    /// Of each draft.
    states: Vec<LaneState>,
    /// LSN of all frames.
    lsn: u64,
}

/// A frame that is built.
struct Built {
    frame: Frame,
    /// `None`: there is nothing to write.
    written: Option<BuiltFrame>,
    sync: WriteSync,
    /// A sync makes it durable, or what is before it.
    needs_sync: bool,
}

/// A frame on its way.
struct Landing {
    inner: Arc<Inner>,
    flight: Arc<Mutex<Option<Flight>>>,
    frame: Frame,
    needs_sync: bool,
}

impl Commits {
    /// The pipeline of a store whose logs end at `tails`, the highest LSN in them being `newest`;
    /// so many LSNs after it are skipped.
    pub fn new(tails: &[Tail], newest: u64, skip: u64) -> Self {
        let lane = |tail: &Tail| Lane {
            tail: *tail,
            durable_lsn: tail.lsn,
            unnoted: Some(tail.lsn),
            ..Lane::default()
        };
        Self {
            lanes: tails.iter().map(lane).collect(),
            flights: 0,
            waiting: BTreeMap::new(),
            held_back: HeldBack::default(),
            next_lsn: newest + 1 + skip,
            newest,
            claims: Claims::default(),
            closing: false,
        }
    }

    /// Requests that were queued when there was one sector get the claims that they need when there are more.
    pub fn stake_waiting(&mut self) {
        let Self {
            waiting, claims, ..
        } = self;
        for request in waiting.values_mut().flatten() {
            if request.claim.keys.is_empty() {
                claims.stake_keys(&mut request.claim, &request.work);
            }
        }
    }

    /// There is room for so many sectors.
    pub fn make_room(&mut self, sectors: usize) {
        let lanes = self.lanes.len().max(sectors);
        self.lanes.resize_with(lanes, Lane::default);
    }

    /// The highest LSN that was given to a frame, be it of an earlier owner.
    pub fn last_lsn(&self) -> u64 {
        self.newest
    }

    /// Whether something about a key waits, or is under way.
    pub fn is_claimed(&self, key: &BinaryKey) -> bool {
        self.claims.is_claimed(key)
    }

    /// Bytes admitted to a sector but not yet applied.
    pub fn pending(&self, number: usize) -> u64 {
        self.lanes[number].pending
    }

    /// Whether a sector's puts wait for room.
    pub fn is_stalled(&self, number: usize) -> bool {
        self.lanes[number].stalled
    }

    /// Whether a sector's log ends with records that no note says to be durable.
    pub fn lacks_note(&self, number: usize) -> bool {
        self.lanes[number].lacks_note()
    }

    /// Whether a sector has frames that landed and that no sync has covered.
    pub fn is_unsynced(&self, number: usize) -> bool {
        self.lanes[number].unsynced
    }

    /// Whether no frame of a sector is under way, and none is wanted.
    pub fn is_idle(&self, number: usize) -> bool {
        let mut wanted = self.waiting.keys();
        !self.lanes[number].is_busy() && !wanted.any(|sectors| sectors.contains(number))
    }

    /// Whether no frame of any sector is under way, and none is wanted.
    pub fn is_all_idle(&self) -> bool {
        self.waiting.is_empty() && !self.lanes.iter().any(Lane::is_busy)
    }

    /// Every frame of any sector up to this LSN is applied, and no frame under way was decided
    /// without the knowledge of them.
    pub fn settled_lsn(&self) -> u64 {
        let floors = self.under_way().map(|flight| flight.floor);
        floors.min().unwrap_or(self.newest)
    }

    /// Every frame of any sector up to this LSN is applied.
    fn applied_lsn(&self) -> u64 {
        let applied = self.under_way().map(|flight| flight.first_lsn - 1);
        applied.min().unwrap_or(self.newest)
    }

    fn under_way(&self) -> impl Iterator<Item = &UnderWay> {
        self.lanes.iter().flat_map(|lane| &lane.under_way)
    }

    /// Whether puts of any sector wait for room.
    pub fn is_any_stalled(&self) -> bool {
        self.lanes.iter().any(|lane| lane.stalled)
    }

    /// A sector with a frame under way, `number` itself if it can be.
    pub fn in_flight(&self, number: usize) -> Option<usize> {
        let others = (0..self.lanes.len()).filter(|other| *other != number);
        std::iter::once(number)
            .chain(others)
            .find(|&number| self.lanes[number].is_busy())
    }

    /// Adds what wakes those who wait for a frame of a sector: see [`Answer::take_wakers`].
    fn take_wakers(&self, number: usize, wakers: &mut Vec<Waker>) {
        for (sectors, queue) in &self.waiting {
            if sectors.contains(number) {
                queue
                    .iter()
                    .for_each(|request| request.answer.take_wakers(wakers));
            }
        }
    }

    /// The sectors of the next flight: see the [module's page](self). Those in `tried` have nothing that
    /// could go.
    fn next_members(&self, tried: SectorSet) -> Option<SectorSet> {
        let busy = (0..self.lanes.len()).filter(|&number| self.lanes[number].is_busy());
        let mut kept_free: SectorSet = busy.collect();
        let follows = |sectors: SectorSet| match sectors.only() {
            Some(number) => self.lanes[number].end().is_some(),
            None => false,
        };
        let mut waiting_for = SectorSet::NONE;
        let mut members: Option<SectorSet> = None;
        let oldest = |(sectors, queue): (&SectorSet, &VecDeque<Request>)| {
            queue.front().map(|request| (request.claim.turn, *sectors))
        };
        let mut heads: Vec<(u64, SectorSet)> = self.waiting.iter().filter_map(oldest).collect();
        heads.sort_unstable();
        for (_, sectors) in heads {
            if members.is_none()
                && follows(sectors)
                && !sectors.meets(waiting_for)
                && !sectors.is_within(tried)
            {
                return Some(sectors);
            }
            if sectors.meets(kept_free) {
                kept_free = kept_free.and(sectors);
                waiting_for = waiting_for.and(sectors);
            } else if members.is_some_and(|members| members.meets(sectors)) {
                members = members.map(|members| members.and(sectors));
            } else if members.is_none() && !sectors.is_within(tried) {
                members = Some(sectors);
            }
        }
        members
    }

    /// Requests go where records can still be written. Returns those for which that is nowhere, or not `enough`.
    fn narrow(
        &mut self,
        writable: SectorSet,
        enough: impl Fn(SectorSet, &Work) -> bool,
    ) -> Vec<(SectorSet, Request)> {
        let mut over = Vec::new();
        let hit = |sectors: &SectorSet| !sectors.is_within(writable);
        let hit: Vec<SectorSet> = self.waiting.keys().copied().filter(hit).collect();
        for sectors in hit {
            let given_up = sectors.without(writable);
            for request in self.waiting.remove(&sectors).into_iter().flatten() {
                for number in given_up.iter() {
                    self.lanes[number].pending -= request.pending;
                    self.lanes[number].stalled = false;
                }
                let left = sectors.within(writable);
                if left.is_empty() || !enough(left, &request.work) {
                    for number in left.iter() {
                        self.lanes[number].pending -= request.pending;
                    }
                    self.claims.release(&request.claim);
                    over.push((sectors, request));
                    continue;
                }
                let queue = self.waiting.entry(left).or_default();
                let place = queue.partition_point(|other| other.claim.turn < request.claim.turn);
                queue.insert(place, request);
            }
        }
        over
    }

    /// Frames of these sectors are under way. Returns the number of the flight.
    fn begin_flight(&mut self, sectors: SectorSet, first_lsn: u64, floor: u64) -> u64 {
        self.flights += 1;
        for number in sectors.iter() {
            self.lanes[number].under_way.push_back(UnderWay {
                flight: self.flights,
                first_lsn,
                floor,
                end: None,
                over: None,
            });
        }
        self.flights
    }

    /// Frames of these sectors are not under way any more. Returns what wakes those who waited for that.
    fn end_flight(&mut self, flight: u64, sectors: SectorSet, decided: &Decided) -> Vec<Waker> {
        for &(sectors, pending) in &decided.pending {
            for number in sectors.iter() {
                self.lanes[number].pending -= pending;
            }
        }
        for claim in &decided.claims {
            self.claims.release(claim);
        }
        let mut wakers = Vec::new();
        for number in sectors.iter() {
            let lane = &mut self.lanes[number];
            lane.under_way.retain(|other| other.flight != flight);
            if !lane.is_busy() {
                wakers.append(&mut lane.idle);
            }
            if self.lanes[number].stalled {
                // Threads that drove this frame, which was not theirs, have room to make now.
                self.take_wakers(number, &mut wakers);
            }
        }
        wakers
    }

    /// Keeps a flight that is over until those before it are. Returns it if there is none.
    fn keep_in_order(&mut self, flight: Flight) -> Option<Flight> {
        for frame in &flight.frames {
            let under_way = &mut self.lanes[frame.number].under_way;
            let this = under_way
                .iter()
                .position(|other| other.flight == flight.number);
            if let Some(place @ 1..) = this {
                under_way[place].over = Some(flight);
                return None;
            }
        }
        Some(flight)
    }

    /// The flight that had waited for the one before it in these sectors.
    fn next_over(&mut self, sectors: SectorSet) -> Option<Flight> {
        let mut lanes = sectors.iter();
        lanes.find_map(|number| self.lanes[number].under_way.front_mut()?.over.take())
    }

    /// Whether so much is queued for these sectors that it begins though nobody waits for it.
    fn is_much_held_back(&self, sectors: SectorSet) -> bool {
        let mut lanes = sectors.iter().map(|number| &self.lanes[number]);
        let bytes_max = match lanes.any(Lane::is_busy) {
            true => HELD_BACK_MAX.bytes,
            false => HELD_BACK_IDLE_MAX,
        };
        self.held_back.requests >= HELD_BACK_MAX.requests || self.held_back.bytes >= bytes_max
    }

    /// Bytes left in the segment where a sector's log ends.
    pub fn room(&self, number: usize, segment_size: u64) -> u64 {
        match &self.lanes[number] {
            lane if lane.leaves() => 0,
            lane => lane.tail.room(segment_size),
        }
    }

    /// Bytes left in the segment where it will go on once all that is queued is written, but for the padding of
    /// frames; at least 1.
    pub fn room_ahead(&self, number: usize, geometry: &Geometry) -> u64 {
        let room = self.room(number, geometry.segment_size);
        let (ahead, capacity) = (
            self.lanes[number].pending,
            geometry.image_bytes_per_segment(),
        );
        match ahead < room {
            true => room - ahead,
            false => capacity - (ahead - room) % capacity,
        }
    }

    /// The next frame of a sector begins a segment, whatever room there is left.
    pub fn leave_segment(&mut self, number: usize) {
        let lane = &mut self.lanes[number];
        lane.left = lane.tail.segment;
    }
}

impl Inner {
    /// Queues `work` for `sectors`. It begins when somebody waits for the ticket, or for another, or when much is
    /// queued; pieces of a blob, since more of it are made meanwhile, at once.
    pub fn submit(
        self: &Arc<Self>,
        sectors: SectorSet,
        work: Work,
        durable: bool,
    ) -> Ticket<Reply> {
        let is_piece = matches!(work, Work::Extent { .. });
        let (waiter, is_much) = {
            let mut commits = self.commits.lock();
            let waiter = self.queue(&mut commits, sectors, work, durable);
            (waiter, commits.is_much_held_back(sectors))
        };
        if is_piece || is_much {
            self.pump();
        }
        waiter
    }

    /// The sectors that the store was opened with for writing, be it that they have failed since.
    pub fn taking_part(&self) -> SectorSet {
        let sectors = self.sectors.iter().enumerate();
        sectors
            .filter(|(_, sector)| !sector.is_left_out() && !sector.is_withheld())
            .map(|(number, _)| number)
            .collect()
    }

    /// The sectors that take records.
    pub fn writable(&self) -> SectorSet {
        let writable = self.sectors.iter().enumerate();
        writable
            .filter(|(_, sector)| sector.is_writable())
            .map(|(number, _)| number)
            .collect()
    }

    /// Those of them that are to keep what they get.
    pub fn keepers(&self) -> SectorSet {
        let draining = |number: &usize| self.sectors[*number].is_draining();
        let writable = self.writable();
        writable.without(writable.iter().filter(draining).collect())
    }

    /// Asks each of these sectors for a sync, behind everything that was asked before.
    pub fn sync_each(self: &Arc<Self>, sectors: SectorSet) -> Vec<Ticket<Reply>> {
        let sync = |number| self.submit(SectorSet::one(number), Work::Sync, true);
        sectors.iter().map(sync).collect()
    }

    fn queue(
        self: &Arc<Self>,
        commits: &mut Commits,
        sectors: SectorSet,
        work: Work,
        durable: bool,
    ) -> Ticket<Reply> {
        let (waiter, answer) = ticket(self.commit_source(sectors.first().unwrap_or(0)));
        let pending = if work.purpose() == Purpose::Put {
            work.length_max()
        } else {
            0
        };
        match self.admit(commits, sectors, &work, pending) {
            Err(error) => answer.send(Err(error)),
            Ok(sectors) => {
                for number in sectors.iter() {
                    commits.lanes[number].pending += pending;
                }
                let claim = commits
                    .claims
                    .stake(&work, !self.has_company.load(Ordering::SeqCst));
                commits.held_back.requests += 1;
                commits.held_back.bytes += work.length_max();
                let queue = commits.waiting.entry(sectors).or_default();
                queue.push_back(Request {
                    work,
                    durable,
                    claim,
                    pending,
                    answer,
                });
            }
        }
        waiter
    }

    /// Decides whether work can be taken, and by which of the sectors, before anything is written. Under
    /// the lock of the queues, like the end of a frame that failed: nothing is queued behind it.
    fn admit(
        &self,
        commits: &Commits,
        sectors: SectorSet,
        work: &Work,
        needed: u64,
    ) -> Result<SectorSet, StorageError> {
        let writable = sectors.within(self.writable());
        let Some(first) = writable.first() else {
            let first = sectors.first().unwrap_or(0);
            self.sectors[first].check_writable()?;
            return Err(StorageError::invalid("nothing is written to no sector"));
        };
        self.sectors[first].check_writable()?;
        if commits.closing && matches!(work, Work::Mutations(_) | Work::Extent { .. }) {
            return Err(StorageError::Closed);
        }
        self.check_sufficient(writable, work)?;
        for number in writable.iter() {
            check_fits_frame(&self.sectors[number].geometry(), work.length_max())?;
        }
        if needed == 0 {
            return Ok(writable);
        }
        let index = self.index.read();
        for number in writable.iter() {
            let available = self
                .available(&index, number)
                .saturating_sub(commits.pending(number));
            if needed > available {
                return Err(StorageError::NoSpace { needed, available });
            }
        }
        Ok(writable)
    }

    /// Whether so many sectors are enough for what is written.
    ///
    /// # Errors
    /// `Insufficient`.
    fn check_sufficient(&self, writable: SectorSet, work: &Work) -> Result<(), StorageError> {
        let wanted = self.options.write_mode.waits_for(self.replicas);
        let chosen = writable.len();
        let is_enough = chosen >= wanted || self.options.degraded_writes;
        // What maintenance writes makes up for what is lacking.
        if is_enough || !work.waits_for_room() || matches!(work, Work::Sync) {
            return Ok(());
        }
        Err(StorageError::Insufficient { wanted, chosen })
    }

    /// Turns away new work from outside, and waits until what was queued is over, in all sectors:
    /// what waits in one may come after what waits in another.
    ///
    /// # Errors
    /// What keeps a sector that takes writes from being synced, once nothing is under way anywhere.
    pub fn drain(self: &Arc<Self>) -> Result<(), StorageError> {
        self.commits.lock().closing = true;
        loop {
            let mut outcome = Ok(());
            for number in 0..self.sectors.len() {
                self.fail_stalled(number, &StorageError::Closed);
            }
            self.pump();
            for number in 0..self.sectors.len() {
                if !self.sectors[number].is_writable() {
                    self.wait_until_idle(number);
                    continue;
                }
                // Everything queued before it is decided before this sync ends, or waits.
                let synced = wait_for(self.submit(SectorSet::one(number), Work::Sync, true));
                if self.sectors[number].is_writable() {
                    outcome = outcome.and(synced.map(|_| ()));
                }
            }
            let commits = self.commits.lock();
            if commits.is_all_idle() {
                return outcome;
            }
        }
    }

    /// Waits until no frame of a sector is under way.
    pub fn wait_until_idle(self: &Arc<Self>, number: usize) {
        wait_for(poll_fn(|context| {
            {
                let lane = &mut self.commits.lock().lanes[number];
                if !lane.is_busy() {
                    return Poll::Ready(());
                }
                lane.idle.push(context.waker().clone());
            }
            offer_driver(self.commit_source(number).driver());
            Poll::Pending
        }));
    }

    /// Makes all who wait look again at what they can do for it.
    pub fn wake_all(&self) {
        let mut wakers = Vec::new();
        for request in self.commits.lock().waiting.values().flatten() {
            request.answer.take_wakers(&mut wakers);
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Assembles and submits frames while there is work whose logs are idle.
    pub fn pump(self: &Arc<Self>) {
        while let Some(plan) = self.next_plan() {
            self.write(plan);
        }
    }

    /// Assembles the next flight, if there is work whose logs are idle.
    fn next_plan(self: &Arc<Self>) -> Option<Plan> {
        let mut wakers = Vec::new();
        let (over, plan) = {
            let mut commits = self.commits.lock();
            commits.held_back = HeldBack::default();
            if commits.waiting.is_empty() {
                return None;
            }
            let enough = |left, work: &Work| self.check_sufficient(left, work).is_ok();
            let over = commits.narrow(self.writable(), enough);
            let plan = self.assemble_next(&mut commits, &mut wakers);
            (over, plan)
        };
        wakers.into_iter().for_each(Waker::wake);
        for (sectors, request) in over {
            let left = sectors.within(self.writable());
            let error = match self.check_sufficient(left, &request.work) {
                Err(error) if !left.is_empty() => Some(error),
                _ => sectors
                    .iter()
                    .find_map(|number| self.sectors[number].check_writable().err()),
            };
            request
                .answer
                .send(Err(error.unwrap_or(StorageError::Closed)));
        }
        plan
    }

    /// Assembles the next flight of which something comes.
    fn assemble_next(&self, commits: &mut Commits, wakers: &mut Vec<Waker>) -> Option<Plan> {
        let mut tried = SectorSet::NONE;
        loop {
            let members = commits.next_members(tried)?;
            let plan = self.assemble(commits, members, wakers);
            if plan.is_some() {
                return plan;
            }
            if let Some(lane) = members.only().map(|number| &mut commits.lanes[number]) {
                // Nor what comes after it: it would overtake it.
                lane.not_behind = lane.under_way.back().map_or(0, |last| last.flight);
            }
            tried = tried.and(members);
        }
    }

    /// Decides as many requests as fit one frame in each sector, or as can go behind those under way in one.
    /// Adds to `wakers` whoever has something else to drive then.
    fn assemble(
        &self,
        commits: &mut Commits,
        members: SectorSet,
        wakers: &mut Vec<Waker>,
    ) -> Option<Plan> {
        let floor = commits.applied_lsn();
        let busy = match members.only().map(|number| &commits.lanes[number]) {
            Some(lane) if lane.is_busy() => Some(lane.behind()?),
            _ => None,
        };
        let mut index = self.index.write();
        let Commits {
            lanes,
            waiting,
            next_lsn,
            claims,
            ..
        } = commits;
        let first_lsn = *next_lsn;
        let doubt = |(lane, sector): (&Lane, &Arc<Sector>)| Doubt {
            in_doubt: lane.unsynced || (sector.poisoned().is_some() && !sector.is_gone()),
            failed: lane.failed_lsn,
        };
        let doubts = lanes.iter().zip(self.sectors.iter()).map(doubt).collect();
        let draft = |number: usize| {
            let lane = &lanes[number];
            let geometry = self.sectors[number].geometry();
            if let Some(end) = lane.end() {
                return Draft::new(number, geometry, end.tail).behind(end.growth);
            }
            let draft = Draft::new(number, geometry, lane.tail);
            match lane.leaves() {
                true => draft.in_next_segment(),
                false => draft,
            }
        };
        let drafts = members.iter().map(draft).collect();
        let follows = busy.is_some();
        let mut assembly = Assembly::new(&mut index, drafts, next_lsn, claims, doubts)
            .with_writable(self.writable())
            .with_fragments_max(self.options.max_fragments)
            .behind(busy);
        let queues = waiting.extract_if(.., |sectors, _| sectors.is_within(members));
        let mut queues: Vec<(SectorSet, VecDeque<Request>, Vec<Request>)> = queues
            .map(|(sectors, queue)| (sectors, queue, Vec::new()))
            .collect();
        loop {
            let open = queues.iter_mut().filter_map(|(sectors, queue, left)| {
                let turn = queue.front()?.claim.turn;
                (!assembly.is_closed(*sectors)).then_some((turn, *sectors, queue, left))
            });
            let next = open.min_by_key(|(turn, ..)| *turn);
            let Some((_, sectors, queue, left)) = next else {
                break;
            };
            if let Some(request) = queue.pop_front() {
                left.extend(assembly.offer(sectors, request));
            }
        }
        let mut decided = assembly.end();
        drop(index);
        for (sectors, mut queue, left) in queues {
            left.into_iter()
                .rev()
                .for_each(|request| queue.push_front(request));
            if !queue.is_empty() {
                waiting.insert(sectors, queue);
            }
        }
        for draft in &mut decided.drafts {
            draft.notes &= lanes[draft.number].unnoted.is_some();
        }
        if !follows {
            self.note_stalls(commits, &decided, wakers);
        }
        if decided.answers.is_empty() {
            return None;
        }
        let drafts = || decided.drafts.iter();
        if drafts().any(Draft::is_written) {
            let only_a_note = |draft: &Draft| draft.is_written() && draft.records.is_empty();
            // So that a frame can claim the header of its segment, which has an LSN between [F-58].
            let opens = |draft: &Draft| draft.opened.is_some();
            let more = u64::from(drafts().any(only_a_note)) + u64::from(drafts().any(opens));
            commits.next_lsn += more;
        }
        if commits.next_lsn > first_lsn {
            commits.newest = commits.next_lsn - 1;
        }
        let lsn = commits.next_lsn - 1;
        let state = |draft: &Draft| {
            let lane = &commits.lanes[draft.number];
            LaneState {
                tail: lane.end().map_or(lane.tail, |end| end.tail),
                unsynced: lane.unsynced,
                noted: lane.durable_lsn,
            }
        };
        let states = decided.drafts.iter().map(state).collect();
        Some(Plan {
            flight: commits.begin_flight(members, first_lsn, floor),
            decided,
            states,
            lsn,
        })
    }

    /// Sees which sectors have no room for their puts, after an attempt to assemble.
    fn note_stalls(&self, commits: &mut Commits, decided: &Decided, wakers: &mut Vec<Waker>) {
        for draft in &decided.drafts {
            let (number, stalled) = (draft.number, draft.stalled);
            let was_stalled = std::mem::replace(&mut commits.lanes[number].stalled, stalled);
            if stalled {
                self.kick_maintenance();
            }
            if stalled != was_stalled || (stalled && !decided.answers.is_empty()) {
                // Their threads look again at what there is to drive: maintenance, or this frame.
                commits.take_wakers(number, wakers);
                for answering in &decided.answers {
                    answering.answer.take_wakers(wakers);
                }
            }
        }
    }

    /// Builds the frames and submits their writes.
    fn write(self: &Arc<Self>, plan: Plan) {
        let Plan {
            flight: number,
            mut decided,
            states,
            lsn,
        } = plan;
        let drafts = std::mem::take(&mut decided.drafts);
        let records = std::mem::take(&mut decided.records);
        let built = drafts
            .iter()
            .zip(states)
            .map(|(draft, state)| self.build(draft, &decided.applied, &records, state, lsn))
            .collect::<Result<Vec<_>, _>>();
        let built = match built {
            Ok(built) => built,
            Err(error) => return self.came_to_nothing(number, decided, &drafts, &error),
        };
        let may_be_followed = match (drafts.as_slice(), built.as_slice()) {
            ([draft], [built])
                if decided.is_plain
                    && draft.opened.is_none()
                    && decided.applied.len() <= FOLLOWED_MAX =>
            {
                built.frame.tail.map(|tail| (tail, draft.growth()))
            }
            _ => None,
        };
        drop((drafts, records));
        let flight = Arc::new(Mutex::new(Some(Flight {
            number,
            decided,
            frames: Vec::with_capacity(built.len()),
            left: built.len(),
        })));
        if let (Some((tail, growth)), [built]) = (may_be_followed, built.as_slice()) {
            let end = End {
                tail,
                durable: built.frame.durable,
                growth,
                flight: Arc::clone(&flight),
            };
            let mut commits = self.commits.lock();
            let under_way = &mut commits.lanes[built.frame.number].under_way;
            let this = under_way.iter_mut().find(|other| other.flight == number);
            this.expect("it is under way").end = Some(end);
        }
        for frame in built {
            self.write_built(&flight, frame);
        }
    }

    /// Builds the frame of one sector, of some of the records of a flight.
    fn build(
        &self,
        draft: &Draft,
        applied: &[(SectorSet, Applied)],
        records: &[Encoded],
        state: LaneState,
        lsn: u64,
    ) -> Result<Built, StorageError> {
        let LaneState {
            tail,
            unsynced,
            noted,
        } = state;
        // A DSYNC write is durable by itself, but says nothing of unsynced frames before it.
        let sync = if draft.durable && !unsynced {
            WriteSync::Data
        } else {
            WriteSync::None
        };
        let mut frame = Frame {
            number: draft.number,
            records: draft.records.iter().map(|record| record.decision).collect(),
            addresses: Vec::with_capacity(draft.records.len()),
            tail: None,
            durable: draft.durable,
            length: 0,
            noted,
            outcome: Ok(()),
        };
        let mut written = None;
        if draft.is_written() {
            let sector = &self.sectors[draft.number];
            let length = frame_length(draft.length());
            let mut builder = FrameBuilder::new(sector, tail, draft.opened, length, noted)?;
            for record in &draft.records {
                let (_, applied) = &applied[record.decision];
                let address = builder.push(&records[record.decision], applied.lsn, record.flags);
                frame.addresses.push(address);
            }
            let claimed = match sync {
                // The header is durable before the frame is written.
                WriteSync::Data => noted.max(builder.header_lsn()),
                WriteSync::None => noted,
            };
            let built = builder.finish(lsn, claimed, self.now().max(tail.time));
            frame.tail = Some(built.tail);
            frame.length = built.buffer.len() as u64;
            written = Some(built);
        }
        Ok(Built {
            needs_sync: draft.durable && unsynced,
            frame,
            written,
            sync,
        })
    }

    fn write_built(self: &Arc<Self>, flight: &Arc<Mutex<Option<Flight>>>, built: Built) {
        let Built {
            frame,
            written,
            sync,
            needs_sync,
        } = built;
        let landing = Landing {
            inner: Arc::clone(self),
            flight: Arc::clone(flight),
            frame,
            needs_sync,
        };
        let Some(BuiltFrame {
            opening,
            buffer,
            address,
            ..
        }) = written
        else {
            return landing.written(Ok(()));
        };
        let Some((block, start)) = opening else {
            return landing.write(buffer, address, sync);
        };
        let disk = Arc::clone(landing.sector().disk());
        disk.write(block, start, sync).then(move |_, outcome| {
            let written = landing.sector().written("write", start, outcome);
            match written.and_then(|()| landing.sector().check_well()) {
                Ok(()) => landing.write(buffer, address, sync),
                failed => landing.end(failed),
            }
        });
    }

    /// There was no memory to build a frame in: the requests of its flight fail, and nothing else is the
    /// worse for it.
    fn came_to_nothing(
        self: &Arc<Self>,
        flight: u64,
        decided: Decided,
        drafts: &[Draft],
        error: &StorageError,
    ) {
        let opened = drafts
            .iter()
            .filter_map(|draft| Some((draft.number, draft.opened?.0)));
        for (number, segment) in opened {
            let index = &mut self.index.write();
            index.sectors[number].segments.give_back(segment);
        }
        let members = drafts.iter().map(|draft| draft.number).collect();
        let wakers = self.commits.lock().end_flight(flight, members, &decided);
        wakers.into_iter().for_each(Waker::wake);
        for answering in decided.answers {
            answering.answer.send(Err(error.clone()));
        }
        self.pump();
    }

    /// All frames of a flight are as durable as they were asked to be, or have failed: it lands, unless one before
    /// it is still under way, and so do those that have waited for it.
    fn over(self: &Arc<Self>, flight: Flight) {
        let mut next = self.commits.lock().keep_in_order(flight);
        let mut any = false;
        while let Some(flight) = next {
            next = self.landed(flight);
            any = true;
        }
        if any {
            self.pump();
        }
    }

    /// A flight is over, and all before it have landed. Returns the one that has waited for it.
    fn landed(self: &Arc<Self>, flight: Flight) -> Option<Flight> {
        let Flight {
            number: flight,
            mut decided,
            mut frames,
            ..
        } = flight;
        frames.sort_unstable_by_key(|frame| frame.number);
        for frame in &mut frames {
            if frame.outcome.is_ok() {
                // A sync that succeeds after one that failed says nothing: not even of this frame. What is on its way
                // to a sector that is being taken away arrives.
                frame.outcome = self.sectors[frame.number].check_well();
            }
        }
        self.give_up_failed(&frames);
        let is_lacking = self.replicas > 1 && self.note_lacking(&decided.applied, &mut frames);
        self.apply_flight(&mut decided.applied, &mut frames);
        self.give_up_failed(&frames);
        let members = frames.iter().map(|frame| frame.number).collect();
        let landed: SectorSet = frames
            .iter()
            .filter(|frame| frame.outcome.is_ok())
            .map(|frame| frame.number)
            .collect();
        let mut wants_note = SectorSet::NONE;
        let (wakers, next);
        {
            let mut commits = self.commits.lock();
            wakers = commits.end_flight(flight, members, &decided);
            next = commits.next_over(members);
            let newest = commits.newest;
            for frame in &frames {
                let lane = &mut commits.lanes[frame.number];
                match &frame.outcome {
                    Ok(()) if lane.land(frame) => {
                        wants_note = wants_note.and(SectorSet::one(frame.number));
                    }
                    Ok(()) => {}
                    Err(_) => lane.failed_lsn = newest,
                }
            }
        }
        wakers.into_iter().for_each(Waker::wake);
        if !landed.is_empty() {
            for (key, known) in std::mem::take(&mut decided.known) {
                self.trackers.remember(&key, known);
            }
        }
        if self.sectors.len() > 1 {
            self.note_short(&decided.applied, landed);
        }
        if is_lacking {
            self.shortage.landed();
        }
        for Answering {
            answer,
            reply,
            sectors,
        } in std::mem::take(&mut decided.answers)
        {
            answer.send(reply_of(reply, sectors, landed, &frames));
        }
        if landed != members {
            // Nothing changes in the others any more, and what is there alone is on its own.
            self.trackers.watches.all_changed();
            self.marks.want_scan();
        }
        if !self.trackers.watches.is_empty() {
            let has_changed = |(sectors, applied): &&(SectorSet, Applied)| {
                !applied.moved && !applied.replica && sectors.meets(landed)
            };
            let changed = decided.applied.iter().filter(has_changed);
            changed.for_each(|(_, applied)| self.trackers.watches.changed(&applied.key));
        }
        for number in landed.iter() {
            self.note_progress(number, wants_note.contains(number));
        }
        next
    }

    /// Sectors whose frames failed take no more.
    fn give_up_failed(&self, frames: &[Frame]) {
        for frame in frames {
            if let Err(error) = &frame.outcome {
                self.sectors[frame.number].poison(error);
            }
        }
    }

    /// What comes about, or is made durable, in fewer sectors than it should is told in the store file before anybody
    /// learns of it. If that can't be, it does not come about. Returns whether repair is to be told of some.
    fn note_lacking(&self, applied: &[(SectorSet, Applied)], frames: &mut [Frame]) -> bool {
        let mut sectors: Vec<SectorSet> = vec![SectorSet::NONE; applied.len()];
        for frame in frames.iter().filter(|frame| frame.outcome.is_ok()) {
            for &decision in &frame.records {
                sectors[decision] = sectors[decision].and(SectorSet::one(frame.number));
            }
        }
        let is_short = |(sectors, (_, applied)): (&SectorSet, &(SectorSet, Applied))| {
            let is_copy = applied.moved || applied.replica;
            let counts = !is_copy && applied.kind != RecordKind::Extent;
            counts && !sectors.is_empty() && sectors.len() < self.replicas
        };
        let is_lacking = sectors.iter().zip(applied.iter()).any(is_short);
        let failed = frames.iter().filter(|frame| frame.outcome.is_err());
        let failed: SectorSet = failed.map(|frame| frame.number).collect();
        let noted = match is_lacking {
            true => self.note_landing(),
            // What makes no record may be acknowledged for what was written before.
            false if failed.len() < frames.len() => self.note_failed(failed),
            false => Ok(()),
        };
        if let Err(error) = &noted {
            for frame in frames.iter_mut().filter(|frame| frame.outcome.is_ok()) {
                frame.outcome = Err(error.clone());
            }
        }
        is_lacking && noted.is_ok()
    }

    /// Remembers what came about in fewer sectors than it should.
    fn note_short(&self, applied: &[(SectorSet, Applied)], landed: SectorSet) {
        let keepers = self.keepers();
        for (sectors, applied) in applied {
            let is_copy = applied.moved || applied.replica;
            let counts = !is_copy && applied.kind != RecordKind::Extent;
            let have = sectors.within(landed);
            let kept = have.within(keepers);
            if counts && !have.is_empty() && kept.len() < self.wanted(self.asked_for(applied)) {
                self.marks.want_repair(&applied.key);
            }
        }
    }

    /// How many sectors the version is to lie in that a record has made; 0: as many as the store says.
    fn asked_for(&self, applied: &Applied) -> u8 {
        if applied.change.is_none() {
            return applied.replicas;
        }
        // That of the version which it has changed.
        let found = self.index.read().lookup(applied.key.stored());
        let found = found.ok().flatten();
        found.map_or(0, |found| found.entry.replicas)
    }

    /// Takes what a flight has written into the index, in the order in which it was decided.
    fn apply_flight(&self, applied: &mut [(SectorSet, Applied)], frames: &mut [Frame]) {
        let mut index = self.index.write();
        let mut next = vec![0; frames.len()];
        for (decision, (_, applied)) in applied.iter_mut().enumerate() {
            if let Some(cache) = self.cache.as_ref().filter(|_| !applied.moved) {
                match applied.is_new {
                    // There was no version that could have been found.
                    true => debug_assert!(!cache.knows(&applied.key)),
                    false => cache.forget(&applied.key),
                }
            }
            let mut landed = SectorSet::NONE;
            for (frame, next) in frames.iter_mut().zip(&mut next) {
                if frame.records.get(*next) != Some(&decision) {
                    continue;
                }
                if frame.outcome.is_ok() {
                    applied.address = frame.addresses[*next];
                    frame.outcome = index.apply(frame.number, applied);
                }
                *next += 1;
                if frame.outcome.is_ok() {
                    landed = landed.and(SectorSet::one(frame.number));
                }
            }
            if !landed.is_empty()
                && let Err(error) = index.outdate_others(landed, applied)
                && let Some(frame) = frames.iter_mut().find(|frame| frame.outcome.is_ok())
            {
                frame.outcome = Err(error);
            }
        }
        for frame in frames.iter().filter(|frame| frame.outcome.is_ok()) {
            let Some(tail) = frame.tail else { continue };
            let sector = &mut index.sectors[frame.number];
            if let (Some((old, _)), true) =
                (sector.tail.segment, sector.tail.segment != tail.segment)
            {
                sector.segments.seal(old);
            }
            if let Some((segment, _)) = tail.segment {
                sector.segments.set_written(segment, tail.offset);
            }
            sector.tail = tail;
            sector.replay_bytes += frame.length;
            sector.update_reserve();
        }
    }

    /// Fails the puts that wait for room in a sector which will not come, or else its deletes. `false`
    /// if none wait, or a frame is under way, after which they are looked at again.
    pub fn fail_stalled(self: &Arc<Self>, number: usize, error: &StorageError) -> bool {
        let mut failed = Vec::new();
        {
            let mut commits = self.commits.lock();
            let lane = &mut commits.lanes[number];
            if !lane.stalled || lane.is_busy() {
                return false;
            }
            lane.stalled = false;
            let waiting = commits
                .waiting
                .extract_if(.., |sectors, _| sectors.contains(number));
            let waiting: Vec<_> = waiting.collect();
            // Deletes fail only when no put is left to fail.
            let is_put = |request: &Request| request.work.purpose() == Purpose::Put;
            let any_put = waiting.iter().any(|(_, queue)| queue.iter().any(is_put));
            for (sectors, queue) in waiting {
                let (over, others): (VecDeque<_>, VecDeque<_>) =
                    queue.into_iter().partition(|request| {
                        is_put(request) || (!any_put && !request.work.mutations().is_empty())
                    });
                if !others.is_empty() {
                    commits.waiting.insert(sectors, others);
                }
                for request in over {
                    for number in sectors.iter() {
                        commits.lanes[number].pending -= request.pending;
                    }
                    commits.claims.release(&request.claim);
                    failed.push(request);
                }
            }
        }
        for request in failed {
            request.answer.send(Err(match error {
                &StorageError::NoSpace { available, .. } => {
                    let needed = request.pending.max(1);
                    StorageError::NoSpace {
                        needed,
                        available: available.min(needed - 1),
                    }
                }
                other => other.clone(),
            }));
        }
        self.pump();
        true
    }
}

impl fmt::Debug for Commits {
    // What waits may be much.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Commits")
            .field("newest", &self.newest)
            .finish_non_exhaustive()
    }
}

impl Lane {
    /// Whether a frame is under way.
    fn is_busy(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// The end of the last frame under way, if another can go behind it.
    fn end(&self) -> Option<&End> {
        let last = self.under_way.back()?;
        let is_full = self.under_way.len() >= UNDER_WAY_MAX;
        let is_barred = is_full || self.stalled || self.leaves() || self.not_behind == last.flight;
        last.end.as_ref().filter(|_| !is_barred)
    }

    /// What goes behind the frames under way has to heed of them; `None` if nothing can.
    fn behind(&self) -> Option<Busy> {
        let mut busy = Busy {
            durable: true,
            keys: HashSet::default(),
        };
        for flight in &self.under_way {
            let end = flight.end.as_ref()?;
            busy.durable &= end.durable;
            let slot = end.flight.lock();
            let flight = slot.as_ref().or(flight.over.as_ref())?;
            let applied = flight.decided.applied.iter();
            busy.keys
                .extend(applied.map(|(_, applied)| applied.key.clone()));
        }
        Some(busy)
    }

    /// Whether nothing more is written to the segment where the log ends.
    fn leaves(&self) -> bool {
        self.left.is_some() && self.left == self.tail.segment
    }

    /// Whether the log ends with records that no note says to be durable.
    fn lacks_note(&self) -> bool {
        self.unnoted.is_some() && self.tail.segment.is_some()
    }

    /// Takes in that a frame has landed. Returns whether a note of it is wanted now and was not before.
    fn land(&mut self, frame: &Frame) -> bool {
        let lacked_note = self.lacks_note();
        if let Some(tail) = frame.tail {
            self.tail = tail;
            self.unsynced |= !frame.durable;
            match (!frame.records.is_empty(), self.unnoted) {
                (true, _) => self.unnoted = Some(tail.lsn),
                (false, Some(unnoted)) if frame.noted >= unnoted => self.unnoted = None,
                (false, _) => {}
            }
        }
        if frame.durable {
            self.unsynced = false;
            self.durable_lsn = self.tail.lsn;
        }
        self.lacks_note() && !lacked_note
    }
}

impl Landing {
    fn sector(&self) -> &Arc<Sector> {
        &self.inner.sectors[self.frame.number]
    }

    fn write(self, buffer: AlignedBuf, address: u64, sync: WriteSync) {
        let disk = Arc::clone(self.sector().disk());
        disk.write(buffer, address, sync).then(move |_, outcome| {
            let outcome = self.sector().written("write", address, outcome);
            self.written(outcome);
        });
    }

    fn written(self, outcome: Result<(), StorageError>) {
        if outcome.is_err() || !self.needs_sync {
            return self.end(outcome);
        }
        let disk = Arc::clone(self.sector().disk());
        disk.sync().then(move |_, outcome| {
            let outcome = self.sector().written("sync", 0, outcome);
            self.end(outcome);
        });
    }

    /// The frame is as durable as it was asked to be, or has failed: the last of its flight ends that.
    fn end(self, outcome: Result<(), StorageError>) {
        let Self {
            inner,
            flight,
            frame,
            ..
        } = self;
        let over = {
            let mut slot = flight.lock();
            if let Some(flight) = slot.as_mut() {
                flight.frames.push(Frame { outcome, ..frame });
                flight.left -= 1;
            }
            slot.take_if(|flight| flight.left == 0)
        };
        if let Some(flight) = over {
            inner.over(flight);
        }
    }
}

/// The answer to a request whose records were to be in `sectors`, of which those that have `landed` have
/// them.
fn reply_of(reply: Reply, sectors: SectorSet, landed: SectorSet, frames: &[Frame]) -> Reply {
    let have = sectors.within(landed);
    if have.is_empty() {
        let failed = |frame: &&Frame| sectors.contains(frame.number);
        if let Some(Err(error)) = frames.iter().find(failed).map(|frame| &frame.outcome) {
            return Err(error.clone());
        }
    }
    match reply {
        Ok(Done::Extent { lsn, .. }) => Ok(Done::Extent { lsn, sectors: have }),
        reply => reply,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also the first frame of a new log: maintenance may have looked while that was under way, and waits to be told.
    #[test]
    fn a_note_is_wanted_after_the_first_frame() {
        let mut lane = Lane {
            unnoted: Some(0),
            ..Lane::default()
        };
        let mut frame = Frame {
            number: 0,
            records: vec![0],
            addresses: vec![4096],
            tail: Some(Tail {
                segment: Some((0, 1)),
                lsn: 7,
                ..Tail::default()
            }),
            durable: true,
            length: 4096,
            noted: 0,
            outcome: Ok(()),
        };
        assert!(!lane.lacks_note());
        assert!(lane.land(&frame));
        assert!(!lane.land(&frame), "it is known");
        (frame.records, frame.noted) = (Vec::new(), 7);
        assert!(!lane.land(&frame));
        assert!(!lane.lacks_note());
        (frame.records, frame.noted) = (vec![0], 7);
        assert!(lane.land(&frame), "and again");
    }

    /// Also where frames of several sectors are under way without a pause.
    #[test]
    fn what_is_settled_goes_on() {
        let mut commits = Commits::new(&[Tail::default(); 2], 100, 0);
        assert_eq!(commits.settled_lsn(), 100);
        let begin = |commits: &mut Commits, number: usize| {
            let (first_lsn, floor) = (commits.next_lsn, commits.applied_lsn());
            commits.next_lsn += 10;
            commits.newest = commits.next_lsn - 1;
            commits.begin_flight(SectorSet::one(number), first_lsn, floor)
        };
        let mut before = begin(&mut commits, 0);
        for round in 1..10 {
            let number = usize::from(round % 2 == 1);
            let next = begin(&mut commits, number);
            let other = SectorSet::one(1 - number);
            commits.end_flight(before, other, &Decided::default());
            before = next;
            // All but the last two: the last was decided without the knowledge of the one before.
            assert_eq!(commits.settled_lsn(), 100 + 10 * (round - 1));
            assert_eq!(commits.applied_lsn(), 100 + 10 * round);
        }
        let last = SectorSet::one(1);
        commits.end_flight(before, last, &Decided::default());
        assert_eq!(commits.settled_lsn(), commits.newest);
    }
}

//! Group commit: requests queue per sector, and whoever finds the log idle writes everything
//! queued so far as one frame.
//!
//! A frame is *assembled* (preconditions decided, LSNs given out, in the order of the queue),
//! written, and once it is as durable as its requests ask, *applied* to the index and answered;
//! then the next is assembled. One frame per sector is under way at a time, so a decision always
//! sees the effect of everything before it. Completion drives the pipeline: the thread that reaps
//! a frame's write applies it and submits the next one, whoever it waits for itself.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

use bytes::Bytes;
use graviton_format::image::ExtentEntry;
use graviton_format::record::{ExtentRef, RecordKind, record_length};

use super::assembly::{Assembly, Others, check_fits_frame};
use super::index::{Applied, Hold};
use super::inner::Inner;
use super::ticket::{Answer, Ticket, ticket};
use super::tracker::Known;
use crate::io::{AlignedBuf, WriteSync};
use crate::log::append::{BuiltFrame, frame_length};
use crate::log::{FrameBuilder, Purpose, Sector, Tail};
use crate::port::op::{offer_driver, wait_for};
use crate::port::{BinaryKey, ETag, PastEnd, Precondition, Span, StorageError};

/// One record, encoded but for what depends on its place: head, then chunks.
pub type Encoded = Vec<u8>;

/// One change to a key.
#[derive(Debug)]
pub enum Mutation {
    /// A version whose record is ready: a blob record, or a manifest over extents of this sector.
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
        /// What a tracker knows by it.
        known: Option<Box<Known>>,
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
        /// The pieces of this sector that hold the bytes, unless they are the record's payload.
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
        /// Their pieces, of this sector.
        pieces: Arc<[ExtentRef]>,
    },
    /// An upload, which is named by the LSN of its record.
    Start {
        /// Its key, but for the name.
        upload: BinaryKey,
        record: Encoded,
        time: u64,
        meta_length: u32,
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
    /// A manifest for `target` over payload of others, as they were when it was planned, and extents of
    /// this sector.
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
    /// Its pieces, if they are shared: then it lies in the same sector.
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
            Self::Put { key, upload, .. } => (key, upload.as_ref()),
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
            | Self::Start { record, .. } => record.len() as u64,
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
    pub meta_length: u32,
    pub payload_length: u32,
    /// Head, then chunks with unmasked checksums.
    pub record: Encoded,
}

impl Move {
    /// Bytes it adds to the log.
    pub fn length(&self) -> u64 {
        self.record.len() as u64
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
            Self::Extent { record, .. } => record.len() as u64,
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
    /// The extent's LSN.
    Extent(u64),
    /// Moves, sync, note.
    Nothing,
    /// The source of a copy changed meanwhile, or what is to be changed lies in another sector: look
    /// again.
    Changed,
}

/// The answer to work.
pub type Reply = Result<Done, StorageError>;

/// The place of a request among those of all sectors about the same keys.
#[derive(Debug, Default)]
pub struct Claim {
    /// Lower ones come first.
    pub turn: u64,
    /// The keys it is about.
    pub keys: Vec<BinaryKey>,
}

/// Who is to change which key, in which order, and in which sector; kept only when there are
/// several sectors.
#[derive(Debug, Default)]
pub struct Claims {
    turn: u64,
    by_key: HashMap<BinaryKey, Vec<(u64, usize)>>,
}

impl Claims {
    /// Takes the next turn for work of sector `number`.
    fn stake(&mut self, number: usize, work: &Work) -> Claim {
        self.turn += 1;
        let keys = work.mutations().iter().flat_map(Mutation::keys);
        let claim = Claim {
            turn: self.turn,
            keys: keys.cloned().collect(),
        };
        for key in &claim.keys {
            let turns = self.by_key.entry(key.clone()).or_default();
            turns.push((claim.turn, number));
        }
        claim
    }

    fn release(&mut self, claim: &Claim) {
        for key in &claim.keys {
            if let Some(turns) = self.by_key.get_mut(key) {
                turns.retain(|(turn, _)| *turn != claim.turn);
                if turns.is_empty() {
                    self.by_key.remove(key);
                }
            }
        }
    }

    /// Whether another sector than `number` is to change one of the keys first.
    pub fn must_wait(&self, number: usize, claim: &Claim) -> bool {
        claim.keys.iter().any(|key| {
            let mut turns = self.by_key.get(key).into_iter().flatten();
            turns.any(|&(turn, other)| turn < claim.turn && other != number)
        })
    }
}

/// Work in a queue.
#[derive(Debug)]
pub struct Request {
    pub work: Work,
    pub durable: bool,
    pub claim: Claim,
    /// Bytes that were counted as pending when it was admitted.
    pub pending: u64,
    pub answer: Answer<Reply>,
}

/// One sector's queue and the state of its log's end.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: VecDeque<Request>,
    in_flight: bool,
    /// Puts wait for compaction to free a segment.
    stalled: bool,
    tail: Tail,
    /// The highest LSN known durable.
    durable_lsn: u64,
    /// Frames were written that no sync has covered.
    unsynced: bool,
    /// LSN of the last frame with records, if no later frame says that it is durable.
    unnoted: Option<u64>,
    /// Every LSN up to this one was applied when the frame under way was decided.
    floor: u64,
    /// No frame that failed has an LSN above this one; 0: none failed.
    failed_lsn: u64,
    /// Woken when the frame under way is over.
    idle: Vec<Waker>,
}

impl Queue {
    /// What wakes those who wait in it: see [`Answer::take_wakers`].
    fn take_wakers(&self, wakers: &mut Vec<Waker>) {
        for request in &self.waiting {
            request.answer.take_wakers(wakers);
        }
    }
}

/// The commit pipeline of a store.
#[derive(Debug)]
pub struct Commits {
    queues: Vec<Queue>,
    next_lsn: u64,
    /// The highest LSN that was given to a frame.
    newest: u64,
    claims: Claims,
    /// Bytes admitted but not yet applied, by sector.
    pending: Vec<u64>,
    /// The store is being closed: nothing new comes in from outside.
    closing: bool,
}

/// A frame under way.
struct InFlight {
    number: usize,
    answers: Vec<(Answer<Reply>, Reply)>,
    applied: Vec<Applied>,
    known: Vec<(BinaryKey, Known)>,
    /// `None` if there is nothing to write, only to sync.
    tail: Option<Tail>,
    durable: bool,
    pending: u64,
    claims: Vec<Claim>,
    has_records: bool,
    /// Bytes of the frame.
    length: u64,
    /// Durable LSN that the frame's header states.
    noted: u64,
}

/// What assembly decided.
struct Plan {
    flight: InFlight,
    records: Vec<(Encoded, u64, u8)>,
    opened: Option<(u32, u64)>,
    tail: Tail,
    lsn: u64,
    unsynced: bool,
}

impl Commits {
    /// The pipeline of a store whose logs end at `tails`, the highest LSN in them being `newest`;
    /// so many LSNs after it are skipped.
    pub fn new(tails: &[Tail], newest: u64, skip: u32) -> Self {
        let queue = |tail: &Tail| Queue {
            tail: *tail,
            durable_lsn: tail.lsn,
            unnoted: Some(tail.lsn),
            ..Queue::default()
        };
        Self {
            queues: tails.iter().map(queue).collect(),
            next_lsn: newest + 1 + u64::from(skip),
            newest,
            claims: Claims::default(),
            pending: vec![0; tails.len()],
            closing: false,
        }
    }

    /// The highest LSN that was given to a frame, be it of an earlier owner.
    pub fn last_lsn(&self) -> u64 {
        self.newest
    }

    /// Bytes admitted to a sector but not yet applied.
    pub fn pending(&self, number: usize) -> u64 {
        self.pending[number]
    }

    /// Whether a sector's puts wait for room.
    pub fn is_stalled(&self, number: usize) -> bool {
        self.queues[number].stalled
    }

    /// Whether a sector's log ends with records that no note says to be durable.
    pub fn lacks_note(&self, number: usize) -> bool {
        let queue = &self.queues[number];
        queue.unnoted.is_some() && queue.tail.segment.is_some()
    }

    /// Whether no frame of a sector is under way, and none is wanted.
    pub fn is_idle(&self, number: usize) -> bool {
        let queue = &self.queues[number];
        !queue.in_flight && queue.waiting.is_empty()
    }

    /// Whether no frame of any sector is under way, and none is wanted.
    pub fn is_all_idle(&self) -> bool {
        (0..self.queues.len()).all(|number| self.is_idle(number))
    }

    /// Every frame of any sector up to this LSN is applied, and no frame under way was decided
    /// without the knowledge of them.
    pub fn settled_lsn(&self) -> u64 {
        let floors = self
            .queues
            .iter()
            .filter(|queue| queue.in_flight)
            .map(|queue| queue.floor);
        floors.min().unwrap_or(self.newest)
    }

    /// Whether puts of any sector wait for room.
    pub fn is_any_stalled(&self) -> bool {
        self.queues.iter().any(|queue| queue.stalled)
    }

    /// A sector with a frame under way, `number` itself if it can be.
    pub fn in_flight(&self, number: usize) -> Option<usize> {
        let others = (0..self.queues.len()).filter(|other| *other != number);
        std::iter::once(number)
            .chain(others)
            .find(|&number| self.queues[number].in_flight)
    }

    /// Takes everything that waits out of a sector's queue.
    fn give_up(&mut self, number: usize) -> VecDeque<Request> {
        let queue = &mut self.queues[number];
        queue.stalled = false;
        let failed = std::mem::take(&mut queue.waiting);
        failed
            .iter()
            .for_each(|request| self.forget(number, request));
        failed
    }

    /// A request leaves the queue without an effect.
    fn forget(&mut self, number: usize, request: &Request) {
        self.pending[number] -= request.pending;
        self.claims.release(&request.claim);
    }

    /// A sector's frame is not under way any more. Returns what wakes those who waited for that.
    fn end_flight(&mut self, number: usize, pending: u64, claims: &[Claim]) -> Vec<Waker> {
        self.pending[number] -= pending;
        for claim in claims {
            self.claims.release(claim);
        }
        let queue = &mut self.queues[number];
        queue.in_flight = false;
        let mut wakers = std::mem::take(&mut queue.idle);
        if queue.stalled {
            // Threads that drove this frame, which was not theirs, have room to make now.
            queue.take_wakers(&mut wakers);
        }
        wakers
    }

    /// Bytes left in the segment where a sector's log ends.
    pub fn room(&self, number: usize, segment_size: u64) -> u64 {
        self.queues[number].tail.room(segment_size)
    }
}

impl Inner {
    /// Queues `work` for sector `number`, and starts it if the log is idle.
    pub fn submit(self: &Arc<Self>, number: usize, work: Work, durable: bool) -> Ticket<Reply> {
        let waiter = self.queue(&mut self.commits.lock(), number, work, durable);
        self.pump(number);
        waiter
    }

    /// Queues several works at once, so that they share frames.
    pub fn submit_all(
        self: &Arc<Self>,
        number: usize,
        works: impl Iterator<Item = Work>,
    ) -> Vec<Ticket<Reply>> {
        let waiters = {
            let mut commits = self.commits.lock();
            works
                .map(|work| self.queue(&mut commits, number, work, false))
                .collect()
        };
        self.pump(number);
        waiters
    }

    fn queue(
        self: &Arc<Self>,
        commits: &mut Commits,
        number: usize,
        work: Work,
        durable: bool,
    ) -> Ticket<Reply> {
        let (waiter, answer) = ticket(self.commit_source(number));
        let pending = if work.purpose() == Purpose::Put {
            work.length_max()
        } else {
            0
        };
        match self.admit(commits, number, &work, pending) {
            Err(error) => answer.send(Err(error)),
            Ok(()) => {
                commits.pending[number] += pending;
                let claim = if self.sectors.len() > 1 {
                    commits.claims.stake(number, &work)
                } else {
                    Claim::default()
                };
                commits.queues[number].waiting.push_back(Request {
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

    /// Decides whether work can be taken, before anything is written. Under the lock of the
    /// queues, like the end of a frame that failed: nothing is queued behind it.
    fn admit(
        &self,
        commits: &Commits,
        number: usize,
        work: &Work,
        needed: u64,
    ) -> Result<(), StorageError> {
        self.sectors[number].check_writable()?;
        if commits.closing && matches!(work, Work::Mutations(_) | Work::Extent { .. }) {
            return Err(StorageError::Closed);
        }
        check_fits_frame(self.sectors[number].geometry(), work.length_max())?;
        if needed == 0 {
            return Ok(());
        }
        let available = self
            .available(&self.index.read(), number)
            .saturating_sub(commits.pending(number));
        if needed > available {
            return Err(StorageError::NoSpace { needed, available });
        }
        Ok(())
    }

    /// Turns away new work from outside, and waits until what was queued is over, in all sectors:
    /// what waits in one may come after what waits in another.
    ///
    /// # Errors
    /// What the disks report, of sectors that were not given up before.
    pub fn drain(self: &Arc<Self>) -> Result<(), StorageError> {
        self.commits.lock().closing = true;
        loop {
            for number in 0..self.sectors.len() {
                self.fail_stalled(number, &StorageError::Closed);
                self.pump(number);
            }
            for number in 0..self.sectors.len() {
                if self.sectors[number].poisoned().is_some() {
                    self.wait_until_idle(number);
                    continue;
                }
                // Everything queued before it is decided before this sync ends, or waits.
                let synced = wait_for(self.submit(number, Work::Sync, true));
                if self.sectors[number].poisoned().is_none() {
                    synced?;
                }
            }
            let commits = self.commits.lock();
            if commits.is_all_idle() {
                return Ok(());
            }
        }
    }

    /// Waits until no frame of a sector is under way.
    fn wait_until_idle(self: &Arc<Self>, number: usize) {
        wait_for(poll_fn(|context| {
            {
                let queue = &mut self.commits.lock().queues[number];
                if !queue.in_flight {
                    return Poll::Ready(());
                }
                queue.idle.push(context.waker().clone());
            }
            let source = self.commit_source(number);
            if !offer_driver(source.driver()) {
                source.complete_in_background();
            }
            Poll::Pending
        }));
    }

    /// Makes all who wait look again at what they can do for it.
    pub fn wake_all(&self) {
        let mut wakers = Vec::new();
        for queue in &self.commits.lock().queues {
            queue.take_wakers(&mut wakers);
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Assembles and submits frames of sector `number` while there is work and the log is idle.
    pub fn pump(self: &Arc<Self>, number: usize) {
        loop {
            let mut wakers = Vec::new();
            let plan = {
                let mut commits = self.commits.lock();
                let queue = &mut commits.queues[number];
                if queue.in_flight || queue.waiting.is_empty() {
                    return;
                }
                if let Err(error) = self.sectors[number].check_writable() {
                    let failed = commits.give_up(number);
                    drop(commits);
                    fail(failed, &error);
                    return self.pump_others(number);
                }
                let plan = self.assemble(&mut commits, number, &mut wakers);
                commits.queues[number].in_flight = plan.is_some();
                plan
            };
            wakers.into_iter().for_each(Waker::wake);
            match plan {
                Some(plan) => self.write(plan),
                None => return,
            }
        }
    }

    /// Pumps the sectors in which requests may have waited for one of sector `number`.
    fn pump_others(self: &Arc<Self>, number: usize) {
        let others = (0..self.sectors.len()).filter(|&other| other != number);
        others.for_each(|other| self.pump(other));
    }

    /// Decides as many requests as fit one frame. Adds to `wakers` whoever has something else to
    /// drive then.
    fn assemble(
        &self,
        commits: &mut Commits,
        number: usize,
        wakers: &mut Vec<Waker>,
    ) -> Option<Plan> {
        let floor = commits.settled_lsn();
        let mut index = self.index.write();
        let Commits {
            queues,
            next_lsn,
            newest,
            claims,
            ..
        } = commits;
        let first_lsn = *next_lsn;
        let mut others = Others::default();
        for (other, queue) in queues.iter().enumerate() {
            if other != number {
                others.in_doubt |= queue.unsynced || self.sectors[other].poisoned().is_some();
                others.failed = others.failed.max(queue.failed_lsn);
            }
        }
        let queue = &mut queues[number];
        let mut assembly = Assembly::new(
            number,
            &mut index,
            self.sectors[number].geometry(),
            queue.tail,
            next_lsn,
            claims,
            others,
        )
        .with_fragments_max(self.options.max_fragments);
        let mut left = Vec::new();
        while !assembly.is_closed()
            && let Some(request) = queue.waiting.pop_front()
        {
            left.extend(assembly.offer(request));
        }
        for request in left.into_iter().rev() {
            queue.waiting.push_front(request);
        }
        let decided = assembly.end();
        drop(index);
        queue.floor = floor;
        let was_stalled = std::mem::replace(&mut queue.stalled, decided.stalled);
        if decided.stalled {
            self.kick_maintenance();
        }
        if decided.stalled != was_stalled || (decided.stalled && !decided.answers.is_empty()) {
            // Their threads look again at what there is to drive: maintenance, or this frame.
            queue.take_wakers(wakers);
            for (answer, _) in &decided.answers {
                answer.take_wakers(wakers);
            }
        }
        if decided.answers.is_empty() {
            return None;
        }
        let has_records = !decided.records.is_empty();
        let notes = decided.notes && queue.unnoted.is_some();
        let writes = has_records || notes || decided.opened.is_some();
        if writes {
            // So that the frame can claim the header of its segment, which has one between [F-58].
            let of_header = u64::from(decided.opened.is_some());
            *next_lsn += u64::from(!has_records) + of_header;
        }
        if *next_lsn > first_lsn {
            *newest = *next_lsn - 1;
        }
        Some(Plan {
            flight: InFlight {
                number,
                answers: decided.answers,
                applied: decided.applied,
                known: decided.known,
                tail: writes.then_some(queue.tail),
                durable: decided.durable,
                pending: decided.pending,
                claims: decided.claims,
                has_records,
                length: 0,
                noted: queue.durable_lsn,
            },
            records: decided.records,
            opened: decided.opened,
            tail: queue.tail,
            lsn: if writes { *next_lsn - 1 } else { *next_lsn },
            unsynced: queue.unsynced,
        })
    }

    /// Builds the frame and submits its write.
    fn write(self: &Arc<Self>, plan: Plan) {
        let Plan {
            mut flight,
            records,
            opened,
            tail,
            lsn,
            unsynced,
        } = plan;
        let sector = Arc::clone(&self.sectors[flight.number]);
        if flight.tail.is_none() {
            if flight.durable && unsynced {
                self.sync_then_land(sector, flight);
            } else {
                self.landed(flight, Ok(()));
            }
            return;
        }
        // A DSYNC write is durable by itself, but says nothing of unsynced frames before it.
        let sync = if flight.durable && !unsynced {
            WriteSync::Data
        } else {
            WriteSync::None
        };
        let length = frame_length(records.iter().map(|(record, ..)| record.len() as u64).sum());
        let built =
            FrameBuilder::new(&sector, tail, opened, length, flight.noted).map(|mut builder| {
                for (position, (record, lsn, flags)) in records.iter().enumerate() {
                    flight.applied[position].address = builder.push(record, *lsn, *flags);
                }
                let claimed = match sync {
                    // The header is durable before the frame is written.
                    WriteSync::Data => flight.noted.max(builder.header_lsn()),
                    WriteSync::None => flight.noted,
                };
                builder.finish(lsn, claimed, self.now().max(tail.time))
            });
        drop(records);
        let built = match built {
            Ok(built) => built,
            Err(error) => return self.came_to_nothing(flight, opened, &error),
        };
        flight.tail = Some(built.tail);
        flight.length = built.buffer.len() as u64;
        let BuiltFrame {
            opening,
            buffer,
            address,
            ..
        } = built;
        let Some((block, start)) = opening else {
            return self.write_frame(flight, buffer, address, sync);
        };
        let inner = Arc::clone(self);
        let header = sector.disk().write(block, start, sync);
        header.then(move |_, outcome| {
            let sector = &inner.sectors[flight.number];
            let written = sector.written("write", start, outcome);
            match written.and_then(|()| sector.check_writable()) {
                Ok(()) => inner.write_frame(flight, buffer, address, sync),
                failed => inner.landed(flight, failed),
            }
        });
    }

    fn write_frame(
        self: &Arc<Self>,
        flight: InFlight,
        buffer: AlignedBuf,
        address: u64,
        sync: WriteSync,
    ) {
        let inner = Arc::clone(self);
        let disk = Arc::clone(self.sectors[flight.number].disk());
        disk.write(buffer, address, sync).then(move |_, outcome| {
            let sector = Arc::clone(&inner.sectors[flight.number]);
            match sector.written("write", address, outcome) {
                Ok(()) if flight.durable && sync == WriteSync::None => {
                    inner.sync_then_land(sector, flight);
                }
                outcome => inner.landed(flight, outcome),
            }
        });
    }

    fn sync_then_land(self: &Arc<Self>, sector: Arc<Sector>, flight: InFlight) {
        let inner = Arc::clone(self);
        sector.disk().sync().then(move |_, outcome| {
            let outcome = inner.sectors[flight.number].written("sync", 0, outcome);
            inner.landed(flight, outcome);
        });
    }

    /// There was no memory to build a frame in: its requests fail, and nothing else is the worse for
    /// it.
    fn came_to_nothing(
        self: &Arc<Self>,
        flight: InFlight,
        opened: Option<(u32, u64)>,
        error: &StorageError,
    ) {
        let number = flight.number;
        if let Some((segment, _)) = opened {
            let index = &mut self.index.write();
            index.sectors[number].segments.give_back(segment);
        }
        let wakers = {
            let mut commits = self.commits.lock();
            commits.end_flight(number, flight.pending, &flight.claims)
        };
        wakers.into_iter().for_each(Waker::wake);
        for (answer, _) in flight.answers {
            answer.send(Err(error.clone()));
        }
        self.pump(number);
        self.pump_others(number);
    }

    /// A frame is as durable as it was asked to be, or has failed.
    fn landed(self: &Arc<Self>, flight: InFlight, outcome: Result<(), StorageError>) {
        let InFlight {
            number,
            answers,
            applied,
            known,
            tail,
            durable,
            pending,
            claims,
            has_records,
            length,
            noted,
        } = flight;
        // A sync that succeeds after one that failed says nothing: not even of this frame.
        let outcome = outcome.and_then(|()| self.sectors[number].check_writable());
        let outcome = outcome.and_then(|()| {
            let mut index = self.index.write();
            for applied in &applied {
                index.apply(number, applied)?;
            }
            if let Some(tail) = tail {
                let sector = &mut index.sectors[number];
                if let (Some((old, _)), true) =
                    (sector.tail.segment, sector.tail.segment != tail.segment)
                {
                    sector.segments.seal(old);
                }
                if let Some((segment, _)) = tail.segment {
                    sector.segments.set_written(segment, tail.offset);
                }
                sector.tail = tail;
                sector.replay_bytes += length;
                sector.update_reserve();
            }
            Ok(())
        });
        let mut failed = VecDeque::new();
        let mut wants_note = false;
        if let Err(error) = &outcome {
            self.sectors[number].poison(error);
        }
        let wakers;
        {
            let mut commits = self.commits.lock();
            wakers = commits.end_flight(number, pending, &claims);
            let newest = commits.newest;
            let queue = &mut commits.queues[number];
            if outcome.is_ok() {
                if let Some(tail) = tail {
                    queue.tail = tail;
                    queue.unsynced |= !durable;
                    match (has_records, queue.unnoted) {
                        (true, before) => {
                            wants_note = before.is_none();
                            queue.unnoted = Some(tail.lsn);
                        }
                        (false, Some(unnoted)) if noted >= unnoted => queue.unnoted = None,
                        (false, _) => {}
                    }
                }
                if durable {
                    queue.unsynced = false;
                    queue.durable_lsn = queue.tail.lsn;
                }
            } else {
                queue.failed_lsn = newest;
                failed = commits.give_up(number);
            }
        }
        wakers.into_iter().for_each(Waker::wake);
        if outcome.is_ok() {
            for (key, known) in known {
                self.trackers.remember(&key, known);
            }
        }
        for (answer, reply) in answers {
            answer.send(match &outcome {
                Ok(()) => reply,
                Err(error) => Err(error.clone()),
            });
        }
        if let Err(error) = self.sectors[number].check_writable() {
            fail(failed, &error);
            // Nothing changes there any more.
            self.trackers.watches.all_changed();
        }
        if outcome.is_ok() {
            if !self.trackers.watches.is_empty() {
                let changed = applied.iter().filter(|applied| !applied.moved);
                changed.for_each(|applied| self.trackers.watches.changed(&applied.key));
            }
            self.note_progress(number, wants_note);
        }
        self.pump(number);
        self.pump_others(number);
    }

    /// Fails the puts of a sector that wait for room which will not come, or else its deletes.
    /// `false` if none wait, or a frame is under way, after which they are looked at again.
    pub fn fail_stalled(self: &Arc<Self>, number: usize, error: &StorageError) -> bool {
        let mut failed = Vec::new();
        {
            let mut commits = self.commits.lock();
            let queue = &mut commits.queues[number];
            if !queue.stalled || queue.in_flight {
                return false;
            }
            let waiting = std::mem::take(&mut queue.waiting);
            // Deletes fail only when no put is left to fail.
            let is_put = |request: &Request| request.work.purpose() == Purpose::Put;
            let any_put = waiting.iter().any(is_put);
            let (over, others): (VecDeque<_>, VecDeque<_>) =
                waiting.into_iter().partition(|request| {
                    is_put(request) || (!any_put && !request.work.mutations().is_empty())
                });
            queue.waiting = others;
            queue.stalled = false;
            for request in over {
                commits.forget(number, &request);
                failed.push(request);
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
        self.pump(number);
        self.pump_others(number);
        true
    }
}

/// Answers requests that come to nothing.
fn fail(requests: VecDeque<Request>, error: &StorageError) {
    for request in requests {
        request.answer.send(Err(error.clone()));
    }
}

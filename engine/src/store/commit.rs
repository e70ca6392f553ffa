//! Group commit: requests queue per sector, and whoever finds the log idle writes everything
//! queued so far as one frame.
//!
//! A frame is *assembled* (preconditions decided, LSNs given out, in the order of the queue),
//! written, and once it is as durable as its requests ask, *applied* to the index and answered;
//! then the next is assembled. One frame per sector is under way at a time, so a decision always
//! sees the effect of everything before it. Completion drives the pipeline: the thread that reaps
//! a frame's write applies it and submits the next one, whoever it waits for itself.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use graviton_format::checksum::stored_length;
use graviton_format::record::{ExtentRef, FLAG_MOVED, Manifest, RecordKind, record_length};

use super::index::{Applied, Entry, Hold, Index};
use super::inner::Inner;
use super::record;
use super::ticket::{Answer, Ticket, ticket};
use crate::io::WriteSync;
use crate::log::append::{BuiltFrame, frame_length};
use crate::log::{FrameBuilder, Purpose, Sector, State, Tail};
use crate::port::op::wait_for;
use crate::port::{BinaryKey, ETag, Precondition, StorageError};

/// Frames grow to about this many bytes by grouping; a single request may be longer.
const FRAME_TARGET: u64 = 4 << 20;

/// One record, encoded but for what depends on its place: head, then chunks.
pub type Encoded = Vec<u8>;

/// One change to a key.
#[derive(Debug)]
pub enum Mutation {
    /// A version whose record is ready: a blob record, or a manifest over extents of this sector.
    Put {
        key: BinaryKey,
        precondition: Precondition,
        record: Encoded,
        kind: RecordKind,
        time: u64,
        meta_length: u32,
        payload_length: u32,
        manifest: Option<(u64, Arc<[ExtentRef]>)>,
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
        time: u64,
        rename: bool,
    },
}

impl Mutation {
    /// The keys it is about.
    fn keys(&self) -> impl Iterator<Item = &BinaryKey> {
        let (first, second) = match self {
            Self::Put { key, .. } | Self::Delete { key, .. } => (key, None),
            Self::Copy { source, target, .. } => (source, Some(target)),
        };
        std::iter::once(first).chain(second)
    }

    /// Bytes it adds to the log, at most.
    fn length_max(&self) -> u64 {
        match self {
            Self::Put { record, .. } => record.len() as u64,
            Self::Delete { key, .. } => record_length(key.as_bytes().len(), 0, 0),
            // The manifest's size is known when it is decided.
            Self::Copy { .. } => 0,
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
    fn purpose(&self) -> Purpose {
        match self {
            Self::Mutations(mutations)
                if mutations
                    .iter()
                    .all(|mutation| matches!(mutation, Mutation::Delete { .. })) =>
            {
                Purpose::Delete
            }
            Self::Mutations(_) | Self::Extent { .. } => Purpose::Put,
            Self::Moves(_) => Purpose::Compaction,
            Self::Sync | Self::Note => Purpose::Delete,
        }
    }

    fn mutations(&self) -> &[Mutation] {
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
    /// The source of a copy changed meanwhile: look again.
    Changed,
}

type Reply = Result<Done, StorageError>;

#[derive(Debug)]
struct Request {
    work: Work,
    durable: bool,
    /// Bytes that were counted as pending when it was admitted.
    pending: u64,
    answer: Answer<Reply>,
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
}

/// The commit pipeline of a store.
#[derive(Debug)]
pub struct Commits {
    queues: Vec<Queue>,
    next_lsn: u64,
    /// Keys in frames under way, by sector; only kept when there are several sectors.
    keys_in_flight: HashMap<BinaryKey, usize>,
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
    /// `None` if there is nothing to write, only to sync.
    tail: Option<Tail>,
    durable: bool,
    pending: u64,
    keys: Vec<BinaryKey>,
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
    /// The pipeline of a store whose logs end at `tails`.
    pub fn new(tails: &[Tail], next_lsn: u64) -> Self {
        let queue = |tail: &Tail| Queue {
            tail: *tail,
            durable_lsn: tail.lsn,
            unnoted: Some(tail.lsn),
            ..Queue::default()
        };
        Self {
            queues: tails.iter().map(queue).collect(),
            next_lsn,
            keys_in_flight: HashMap::new(),
            pending: vec![0; tails.len()],
            closing: false,
        }
    }

    /// The highest LSN given out.
    pub fn last_lsn(&self) -> u64 {
        self.next_lsn - 1
    }

    /// Bytes admitted to a sector but not yet applied.
    pub fn pending(&self, number: usize) -> u64 {
        self.pending[number]
    }

    /// Whether a sector's puts wait for room.
    pub fn is_stalled(&self, number: usize) -> bool {
        self.queues[number].stalled
    }

    /// Whether the last frames of a sector lack a note that they are durable.
    pub fn lacks_note(&self, number: usize) -> bool {
        let queue = &self.queues[number];
        queue.unnoted.is_some()
            && !queue.in_flight
            && queue.waiting.is_empty()
            && queue.tail.segment.is_some()
    }

    /// Every frame of any sector up to this LSN is applied, and no frame under way was decided
    /// without the knowledge of them.
    pub fn settled_lsn(&self) -> u64 {
        let floors = self
            .queues
            .iter()
            .filter(|queue| queue.in_flight)
            .map(|queue| queue.floor);
        floors.min().unwrap_or(self.next_lsn - 1)
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
        self.pending[number] -= failed.iter().map(|request| request.pending).sum::<u64>();
        failed
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
                commits.queues[number].waiting.push_back(Request {
                    work,
                    durable,
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
        self.check_fits_frame(number, work.length_max())?;
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

    /// What happens all or not at all is one frame, and a frame lies in one segment.
    fn check_fits_frame(&self, number: usize, length: u64) -> Result<(), StorageError> {
        let capacity = self.sectors[number].geometry().image_bytes_per_segment();
        if frame_length(length) <= capacity {
            return Ok(());
        }
        Err(StorageError::invalid(format!(
            "one frame would take {length} bytes, a segment holds {capacity}"
        )))
    }

    /// Turns away new work from outside, and waits until what was queued is over.
    ///
    /// # Errors
    /// What the disk reports.
    pub fn drain(self: &Arc<Self>, number: usize) -> Result<(), StorageError> {
        self.commits.lock().closing = true;
        loop {
            self.fail_stalled(number);
            self.pump(number);
            self.sectors[number].check_writable()?;
            // Everything queued before it is decided before this sync ends, or stalled.
            wait_for(self.submit(number, Work::Sync, true))?;
            let commits = self.commits.lock();
            let queue = &commits.queues[number];
            if queue.waiting.is_empty() && !queue.in_flight {
                return Ok(());
            }
        }
    }

    /// Assembles and submits frames of sector `number` while there is work and the log is idle.
    pub fn pump(self: &Arc<Self>, number: usize) {
        loop {
            let plan = {
                let mut commits = self.commits.lock();
                let queue = &mut commits.queues[number];
                if queue.in_flight || queue.waiting.is_empty() {
                    return;
                }
                if let Err(error) = self.sectors[number].check_writable() {
                    let failed = commits.give_up(number);
                    drop(commits);
                    return fail(failed, &error);
                }
                let plan = self.assemble(&mut commits, number);
                commits.queues[number].in_flight = plan.is_some();
                plan
            };
            match plan {
                Some(plan) => self.write(plan),
                None => return,
            }
        }
    }

    /// Decides as many requests as fit one frame.
    fn assemble(&self, commits: &mut Commits, number: usize) -> Option<Plan> {
        let sector = &self.sectors[number];
        let geometry = *sector.geometry();
        let several = self.sectors.len() > 1;
        let floor = commits.settled_lsn();
        let mut index = self.index.write();
        let Commits {
            queues,
            next_lsn,
            keys_in_flight,
            ..
        } = commits;
        let queue = &mut queues[number];
        let mut assembly = Assembly {
            number,
            next_lsn,
            overlay: HashMap::new(),
            records: Vec::new(),
            applied: Vec::new(),
            length: 0,
            crosses: false,
        };
        let mut answers = Vec::new();
        let mut durable = false;
        let mut pending = 0;
        let mut wants_frame = false;
        let mut opened = None;
        let mut room = queue.tail.room(geometry.segment_size).saturating_sub(64);
        let mut blocked: HashSet<BinaryKey> = HashSet::new();
        let mut left = VecDeque::new();
        let mut stalled = false;
        let mut closed = false;
        while let Some(request) = queue.waiting.pop_front() {
            let waits = closed
                || request
                    .work
                    .mutations()
                    .iter()
                    .flat_map(Mutation::keys)
                    .any(|key| {
                        blocked.contains(key)
                            || (several
                                && keys_in_flight
                                    .get(key)
                                    .is_some_and(|other| *other != number))
                    })
                || assembly.must_wait(&request.work);
            if waits {
                blocked.extend(
                    request
                        .work
                        .mutations()
                        .iter()
                        .flat_map(Mutation::keys)
                        .cloned(),
                );
                // What must see the effect of this frame ends it, so that order is kept.
                closed |= assembly.length > 0;
                left.push_back(request);
                continue;
            }
            let length = request
                .work
                .length_max()
                .max(assembly.copy_length(&index, &request.work));
            let purpose = request.work.purpose();
            let within_target = assembly.length == 0 || assembly.length + length <= FRAME_TARGET;
            let fits = assembly.length + length <= room && within_target;
            // Room that compaction or deletes took out of the reserve is not for puts.
            let held_back =
                purpose == Purpose::Put && index.sectors[number].segments.is_reserve_in_use();
            if !fits && !held_back && assembly.length > 0 {
                // Moves have no order among them: a smaller one may still fill the segment.
                closed |= purpose != Purpose::Compaction || !within_target;
                left.push_back(request);
                continue;
            }
            let empty_frame_needs_room = matches!(request.work, Work::Note) && room == 0;
            if held_back || !fits || empty_frame_needs_room {
                let refused = self.check_fits_frame(number, length);
                let segments = &mut index.sectors[number].segments;
                let taken = if held_back || refused.is_err() {
                    None
                } else {
                    segments.take(purpose, State::Open)
                };
                match (taken, refused) {
                    (Some(taken), _) => {
                        opened = Some(taken);
                        room = geometry.image_bytes_per_segment() - 64;
                    }
                    // A copy, whose length was not known before.
                    (None, Err(error)) => {
                        pending += request.pending;
                        answers.push((request.answer, Err(error)));
                        continue;
                    }
                    (None, Ok(())) if purpose == Purpose::Compaction => {
                        // Compaction looks for room itself; it must not wait for its own end.
                        let error = StorageError::NoSpace {
                            needed: length,
                            available: 0,
                        };
                        answers.push((request.answer, Err(error)));
                        continue;
                    }
                    (None, Ok(())) => {
                        stalled = true;
                        blocked.extend(
                            request
                                .work
                                .mutations()
                                .iter()
                                .flat_map(Mutation::keys)
                                .cloned(),
                        );
                        left.push_back(request);
                        continue;
                    }
                }
            }
            durable |= request.durable;
            pending += request.pending;
            wants_frame |= matches!(request.work, Work::Note) && queue.unnoted.is_some();
            let reply = assembly.decide(&index, request.work);
            answers.push((request.answer, reply));
        }
        queue.floor = floor;
        let was_stalled = std::mem::replace(&mut queue.stalled, stalled);
        queue.waiting = left;
        if stalled {
            self.kick_maintenance();
        }
        if stalled != was_stalled || (stalled && !answers.is_empty()) {
            // Their threads look again at what there is to drive: maintenance, or this frame.
            let waiting = queue.waiting.iter().map(|request| &request.answer);
            let decided = answers.iter().map(|(answer, _)| answer);
            waiting.chain(decided).for_each(Answer::nudge);
        }
        if answers.is_empty() {
            return None;
        }
        let Assembly {
            records,
            applied,
            overlay,
            crosses,
            ..
        } = assembly;
        // The sector that held the version before forgets it in a checkpoint that makes only
        // itself durable: what replaces it must not be lost then.
        let durable = durable || crosses;
        let keys: Vec<BinaryKey> = if several {
            overlay.into_keys().collect()
        } else {
            Vec::new()
        };
        keys_in_flight.extend(keys.iter().map(|key| (key.clone(), number)));
        let has_records = !records.is_empty();
        let writes = has_records || wants_frame || opened.is_some();
        let lsn = if has_records {
            *next_lsn - 1
        } else {
            *next_lsn
        };
        if writes && !has_records {
            *next_lsn += 1;
        }
        Some(Plan {
            flight: InFlight {
                number,
                answers,
                applied,
                tail: writes.then_some(queue.tail),
                durable,
                pending,
                keys,
                has_records,
                length: 0,
                noted: queue.durable_lsn,
            },
            records,
            opened,
            tail: queue.tail,
            lsn,
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
        let length = frame_length(records.iter().map(|(record, ..)| record.len() as u64).sum());
        let built =
            FrameBuilder::new(&sector, tail, opened, length, flight.noted).map(|mut builder| {
                for (position, (record, lsn, flags)) in records.iter().enumerate() {
                    flight.applied[position].address = builder.push(record, *lsn, *flags);
                }
                builder.finish(lsn, flight.noted, self.now().max(tail.time))
            });
        drop(records);
        let BuiltFrame {
            buffer,
            address,
            tail,
        } = match built {
            Ok(built) => built,
            Err(error) => return self.landed(flight, Err(error)),
        };
        flight.tail = Some(tail);
        flight.length = buffer.len() as u64;
        // A DSYNC write is durable by itself, but says nothing of unsynced frames before it.
        let sync = if flight.durable && !unsynced {
            WriteSync::Data
        } else {
            WriteSync::None
        };
        let inner = Arc::clone(self);
        sector
            .disk()
            .write(buffer, address, sync)
            .then(move |_, outcome| {
                let outcome = inner.sectors[flight.number].written("write", address, outcome);
                match outcome {
                    Ok(()) if flight.durable && sync == WriteSync::None => {
                        let sector = Arc::clone(&inner.sectors[flight.number]);
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

    /// A frame is as durable as it was asked to be, or has failed.
    fn landed(self: &Arc<Self>, flight: InFlight, outcome: Result<(), StorageError>) {
        let InFlight {
            number,
            answers,
            applied,
            tail,
            durable,
            pending,
            keys,
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
        if let Err(error) = &outcome {
            self.sectors[number].poison(error);
        }
        {
            let mut commits = self.commits.lock();
            commits.pending[number] -= pending;
            for key in &keys {
                commits.keys_in_flight.remove(key);
            }
            let queue = &mut commits.queues[number];
            queue.in_flight = false;
            if outcome.is_ok() {
                if let Some(tail) = tail {
                    queue.tail = tail;
                    queue.unsynced |= !durable;
                    match (has_records, queue.unnoted) {
                        (true, _) => queue.unnoted = Some(tail.lsn),
                        (false, Some(unnoted)) if noted >= unnoted => queue.unnoted = None,
                        (false, _) => {}
                    }
                }
                if durable {
                    queue.unsynced = false;
                    queue.durable_lsn = queue.tail.lsn;
                }
            } else {
                failed = commits.give_up(number);
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
        }
        if outcome.is_ok() {
            self.note_progress(number);
        }
        if self.sectors.len() > 1 {
            (0..self.sectors.len()).for_each(|number| self.pump(number));
        } else {
            self.pump(number);
        }
    }

    /// Fails the puts of a sector that wait for room which will not come.
    pub fn fail_stalled(self: &Arc<Self>, number: usize) {
        let available = self.available(&self.index.read(), number);
        let mut failed = Vec::new();
        {
            let mut commits = self.commits.lock();
            let queue = &mut commits.queues[number];
            if !queue.stalled || queue.in_flight {
                return;
            }
            let waiting = std::mem::take(&mut queue.waiting);
            // Deletes fail only when no put is left to fail.
            let is_put = |request: &Request| request.work.purpose() == Purpose::Put;
            let any_put = waiting.iter().any(is_put);
            let (over, others): (VecDeque<_>, VecDeque<_>) = waiting
                .into_iter()
                .partition(|request| is_put(request) || !any_put);
            queue.waiting = others;
            queue.stalled = false;
            for request in over {
                commits.pending[number] -= request.pending;
                failed.push(request);
            }
        }
        for request in failed {
            let needed = request.pending.max(1);
            request.answer.send(Err(StorageError::NoSpace {
                needed,
                available: available.min(needed - 1),
            }));
        }
        self.pump(number);
    }
}

/// Answers requests that come to nothing.
fn fail(requests: VecDeque<Request>, error: &StorageError) {
    for request in requests {
        request.answer.send(Err(error.clone()));
    }
}

/// The frame being decided.
struct Assembly<'a> {
    number: usize,
    next_lsn: &'a mut u64,
    /// Keys that records of this frame change: to which version, if any.
    overlay: HashMap<BinaryKey, Option<u64>>,
    records: Vec<(Encoded, u64, u8)>,
    applied: Vec<Applied>,
    length: u64,
    /// It replaces or deletes what lies in another sector.
    crosses: bool,
}

impl Assembly<'_> {
    /// Whether the work needs the applied effect of what is in this frame.
    fn must_wait(&self, work: &Work) -> bool {
        let needs = |mutation: &Mutation| {
            matches!(mutation, Mutation::Copy { .. })
                && mutation.keys().any(|key| self.overlay.contains_key(key))
        };
        work.mutations().iter().any(needs)
    }

    /// Bytes of the manifests that copies in the work will write.
    fn copy_length(&self, index: &Index, work: &Work) -> u64 {
        let length = |mutation: &Mutation| match mutation {
            Mutation::Copy {
                source,
                target,
                meta,
                ..
            } => {
                let pieces = match index.lookup(source.as_bytes()) {
                    Ok(Some((_, entry))) => entry.extents.map_or(1, |extents| extents.len()),
                    _ => 0,
                };
                let manifest = Manifest::payload_length(pieces) as u64;
                let record = record_length(
                    target.as_bytes().len(),
                    meta.len() + source.as_bytes().len() + 16,
                    manifest,
                );
                record + record_length(source.as_bytes().len(), 0, 0)
            }
            _ => 0,
        };
        work.mutations().iter().map(length).sum()
    }

    fn lsn(&mut self) -> u64 {
        let lsn = *self.next_lsn;
        *self.next_lsn += 1;
        lsn
    }

    fn current(&self, index: &Index, key: &BinaryKey) -> Result<Option<u64>, StorageError> {
        if let Some(version) = self.overlay.get(key) {
            return Ok(*version);
        }
        Ok(index.lookup(key.as_bytes())?.map(|(_, entry)| entry.lsn))
    }

    fn push(&mut self, record: Encoded, flags: u8, applied: Applied) {
        self.length += record.len() as u64;
        self.records.push((record, applied.lsn, flags));
        self.applied.push(applied);
    }

    fn decide(&mut self, index: &Index, work: Work) -> Reply {
        match work {
            Work::Mutations(mutations) => self.decide_mutations(index, mutations),
            Work::Extent {
                key,
                time,
                payload_length,
                record,
                hold,
            } => {
                let lsn = self.lsn();
                let applied = Applied {
                    payload_length,
                    hold: Some(hold),
                    ..applied(RecordKind::Extent, key, lsn, time)
                };
                self.push(record, 0, applied);
                Ok(Done::Extent(lsn))
            }
            Work::Moves(moves) => {
                for moved in moves {
                    // Decided here, where nothing is under way: what is live now is live when the
                    // copy is in the log.
                    if index.sectors[self.number].is_live(
                        moved.kind,
                        moved.key.as_bytes(),
                        moved.lsn,
                        moved.from,
                    )? {
                        // A frame of moves alone has an LSN of its own above theirs.
                        let applied = Applied {
                            moved: true,
                            meta_length: moved.meta_length,
                            payload_length: moved.payload_length,
                            ..applied(moved.kind, moved.key, moved.lsn, moved.time)
                        };
                        self.push(moved.record, FLAG_MOVED, applied);
                    }
                }
                if !self.records.is_empty() {
                    self.lsn();
                }
                Ok(Done::Nothing)
            }
            Work::Sync | Work::Note => Ok(Done::Nothing),
        }
    }

    /// All or nothing: on an error what was decided before is taken back.
    fn decide_mutations(&mut self, index: &Index, mutations: Vec<Mutation>) -> Reply {
        let (records, length, lsn) = (self.records.len(), self.length, *self.next_lsn);
        let mut overlay_before: Vec<(BinaryKey, Option<Option<u64>>)> = Vec::new();
        let mut outcomes = Vec::with_capacity(mutations.len());
        for mutation in mutations {
            for key in mutation.keys() {
                overlay_before.push((key.clone(), self.overlay.get(key).copied()));
            }
            match self.decide_mutation(index, mutation) {
                Ok(Some(outcome)) => outcomes.push(outcome),
                other => {
                    self.records.truncate(records);
                    self.applied.truncate(records);
                    self.length = length;
                    *self.next_lsn = lsn;
                    for (key, before) in overlay_before.into_iter().rev() {
                        match before {
                            Some(version) => self.overlay.insert(key, version),
                            None => self.overlay.remove(&key),
                        };
                    }
                    return other.map(|_| Done::Changed);
                }
            }
        }
        Ok(Done::Mutations(outcomes))
    }

    fn check(
        &self,
        index: &Index,
        key: &BinaryKey,
        precondition: Precondition,
    ) -> Result<Option<u64>, StorageError> {
        let current = self.current(index, key)?;
        if precondition.holds(current) {
            Ok(current)
        } else {
            Err(StorageError::PreconditionFailed {
                key: key.clone(),
                actual: current.map(ETag::of_version),
            })
        }
    }

    /// Sees whether a new version of `key`, or its delete, is about a blob of another sector.
    fn note_crossing(&mut self, index: &Index, key: &BinaryKey) -> Result<(), StorageError> {
        if index.sectors.len() > 1
            && let Some((number, _)) = index.lookup(key.as_bytes())?
        {
            self.crosses |= number != self.number;
        }
        Ok(())
    }

    /// `None` if the source of a copy is not what it was.
    fn decide_mutation(
        &mut self,
        index: &Index,
        mutation: Mutation,
    ) -> Result<Option<MutationOutcome>, StorageError> {
        match mutation {
            Mutation::Put {
                key,
                precondition,
                record,
                kind,
                time,
                meta_length,
                payload_length,
                manifest,
            } => {
                self.check(index, &key, precondition)?;
                let size = manifest
                    .as_ref()
                    .map_or(u64::from(payload_length), |(size, _)| *size);
                self.note_crossing(index, &key)?;
                let lsn = self.lsn();
                self.overlay.insert(key.clone(), Some(lsn));
                let applied = Applied {
                    meta_length,
                    payload_length,
                    manifest,
                    ..applied(kind, key, lsn, time)
                };
                self.push(record, 0, applied);
                Ok(Some(MutationOutcome::Put { version: lsn, size }))
            }
            Mutation::Delete {
                key,
                precondition,
                strict,
                time,
            } => {
                let existed = self.check(index, &key, precondition)?.is_some();
                if existed {
                    self.note_crossing(index, &key)?;
                    self.push_tombstone(key, time);
                } else if strict {
                    return Err(StorageError::NotFound { key });
                }
                Ok(Some(MutationOutcome::Deleted { existed }))
            }
            Mutation::Copy {
                source,
                expected,
                source_precondition,
                target,
                target_precondition,
                meta,
                time,
                rename,
            } => {
                let Some((number, entry)) = index.lookup(source.as_bytes())? else {
                    return Err(StorageError::NotFound { key: source });
                };
                self.check(index, &source, source_precondition)?;
                self.check(index, &target, target_precondition)?;
                if entry.lsn != expected || number != self.number {
                    return Ok(None);
                }
                self.note_crossing(index, &target)?;
                let outcome = self.push_copy(&source, &entry, target.clone(), meta, time);
                if rename && source != target {
                    self.push_tombstone(source, time);
                }
                Ok(Some(outcome))
            }
        }
    }

    fn push_tombstone(&mut self, key: BinaryKey, time: u64) {
        let lsn = self.lsn();
        self.overlay.insert(key.clone(), None);
        let record = record::encode(RecordKind::Tombstone, &key, &[], &[], time);
        self.push(record, 0, applied(RecordKind::Tombstone, key, lsn, time));
    }

    fn push_copy(
        &mut self,
        source: &BinaryKey,
        entry: &Entry,
        target: BinaryKey,
        mut meta: Vec<u8>,
        time: u64,
    ) -> MutationOutcome {
        let lsn = self.lsn();
        let shared = match &entry.extents {
            Some(extents) => Arc::clone(extents),
            None if entry.size == 0 => Arc::new([]),
            None => {
                record::put_source(&mut meta, source);
                let whole = ExtentRef {
                    lsn: entry.lsn.into(),
                    offset: 0.into(),
                    length: u32::try_from(entry.size).unwrap_or(u32::MAX).into(),
                };
                Arc::new([whole])
            }
        };
        let inline = entry.extents.is_none() && entry.size > 0;
        let payload = Manifest {
            size: entry.size,
            extents: shared.to_vec(),
        }
        .encode();
        let record = record::encode(RecordKind::Manifest, &target, &meta, &payload, time);
        self.overlay.insert(target.clone(), Some(lsn));
        let applied = Applied {
            meta_length: u32::try_from(meta.len()).unwrap_or(u32::MAX),
            payload_length: u32::try_from(payload.len()).unwrap_or(u32::MAX),
            manifest: Some((entry.size, shared)),
            source: inline.then(|| source.clone()),
            ..applied(RecordKind::Manifest, target, lsn, time)
        };
        debug_assert_eq!(
            record.len() as u64,
            record_length(applied.key.as_bytes().len(), meta.len(), 0)
                + stored_length(payload.len() as u64)
        );
        self.push(record, 0, applied);
        MutationOutcome::Put {
            version: lsn,
            size: entry.size,
        }
    }
}

/// A record of `kind`, with everything else empty.
fn applied(kind: RecordKind, key: BinaryKey, lsn: u64, time: u64) -> Applied {
    Applied {
        kind,
        moved: false,
        key,
        lsn,
        time,
        address: 0,
        meta_length: 0,
        payload_length: 0,
        manifest: None,
        source: None,
        hold: None,
    }
}

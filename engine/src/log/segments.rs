//! The table of a sector's segments: what each is used for, and how many of its bytes still live.

use graviton_format::Geometry;
use graviton_format::image::SegmentEntry;

use super::sector::Sector;

/// What a segment is used for. The numbers are those of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Can be taken into use.
    Free = 0,
    /// The log's end lies in it.
    Open = 1,
    /// A part of the log that is written to its end.
    Sealed = 2,
    /// Nothing in it lives, but a checkpoint that is kept may still name it.
    Reclaimed = 3,
    /// Holds a part of a checkpoint's image.
    Checkpoint = 4,
}

impl State {
    fn decode(state: u8) -> Option<Self> {
        [
            Self::Free,
            Self::Open,
            Self::Sealed,
            Self::Reclaimed,
            Self::Checkpoint,
        ]
        .into_iter()
        .find(|known| *known as u8 == state)
    }
}

/// One segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// What it is used for.
    pub state: State,
    /// Generation it was last taken into use with; 0: never.
    pub generation: u64,
    /// Bytes of live records in it.
    pub live: u64,
    /// Bytes written, up to the end of its last frame.
    pub written: u64,
    /// Whether all its blocks have been written before, with zeros if nothing else.
    pub zeroed: bool,
    /// Being zeroed, and not to be taken into use meanwhile.
    pub busy: bool,
    /// Reclaimed: the first checkpoint (by sequence) that lists it as reclaimed.
    pub reclaimed_at: u64,
    /// Bytes of it could not be read back: it is left as it is, for whatever may still be saved.
    pub damaged: bool,
}

impl Segment {
    const NEVER_USED: Self = Self {
        state: State::Free,
        generation: 0,
        live: 0,
        written: 0,
        zeroed: false,
        busy: false,
        reclaimed_at: 0,
        damaged: false,
    };

    /// Nothing of its present life counts: it is free.
    fn give_back(&mut self) {
        *self = Self {
            generation: self.generation,
            zeroed: self.zeroed,
            ..Self::NEVER_USED
        };
    }
}

/// For what a segment is wanted: how deep into the reserve the taking may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Payload of callers.
    Put,
    /// Tombstones: deleting must always be possible.
    Delete,
    /// Records that compaction moves: some segments are lent to it, and it gives back more. Not
    /// even deletes may use them up, for what they take comes back by compaction alone.
    Compaction,
    /// A checkpoint: the last reserve, since all reclaiming ends with one.
    Checkpoint,
}

/// Segments kept back from puts for the tombstones of deletes.
const RESERVE_DELETE: u32 = 1;

/// Two checkpoints are kept, and the next comes beside them.
const CHECKPOINTS: u32 = 3;

/// Sums over a table, kept as it changes: there are many segments, and puts ask for them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    /// How many are free.
    free: u32,
    /// How many of these can be taken, and were written before.
    ready: u32,
    /// How many of these can be taken, and were not.
    blank: u32,
    /// How many hold images.
    images: u32,
    /// Bytes of live records.
    live: u64,
}

impl Counts {
    fn of(segment: &Segment) -> Self {
        let is_free = segment.state == State::Free;
        Self {
            free: u32::from(is_free),
            ready: u32::from(is_free && !segment.busy && segment.zeroed),
            blank: u32::from(is_free && !segment.busy && !segment.zeroed),
            images: u32::from(segment.state == State::Checkpoint),
            live: segment.live,
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            free: self.free + other.free,
            ready: self.ready + other.ready,
            blank: self.blank + other.blank,
            images: self.images + other.images,
            live: self.live + other.live,
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            free: self.free - other.free,
            ready: self.ready - other.ready,
            blank: self.blank - other.blank,
            images: self.images - other.images,
            live: self.live - other.live,
        }
    }
}

/// The table of a sector's segments.
#[derive(Debug, Clone)]
pub struct Segments {
    table: Vec<Segment>,
    counts: Counts,
    /// The highest generation given out.
    generation: u64,
    /// Segments that the next checkpoint will take, at most.
    checkpoint_reserve: u32,
    /// The same, if puts go on before their effect on it is counted.
    checkpoint_after_puts: u32,
    /// Segments that the checkpoint being written has taken out of that reserve.
    checkpoint_taken: u32,
}

impl Segments {
    /// The table of a new sector.
    #[must_use]
    pub fn new(geometry: &Geometry) -> Self {
        Self {
            table: vec![Segment::NEVER_USED; geometry.segment_count as usize],
            counts: Counts {
                free: geometry.segment_count,
                blank: geometry.segment_count,
                ..Counts::default()
            },
            generation: 0,
            checkpoint_reserve: 1,
            checkpoint_after_puts: 1,
            checkpoint_taken: 0,
        }
    }

    /// The table as a checkpoint has it; the sector may have grown since \[F-67\]. `None` if it does not fit the
    /// sector.
    #[must_use]
    pub fn decode(
        entries: impl Iterator<Item = SegmentEntry>,
        geometry: &Geometry,
        sequence: u64,
    ) -> Option<Self> {
        let mut table = entries
            .map(|entry| {
                Some(Segment {
                    state: State::decode(entry.state)?,
                    generation: entry.generation.get(),
                    live: entry.live.get(),
                    written: u64::from(entry.written.get()),
                    zeroed: entry.zeroed == 1,
                    reclaimed_at: sequence,
                    ..Segment::NEVER_USED
                })
                .filter(|segment| {
                    segment.written <= geometry.segment_size
                        && segment.live <= geometry.segment_size
                })
            })
            .collect::<Option<Vec<_>>>()?;
        let count = geometry.segment_count as usize;
        if table.len() > count {
            return None;
        }
        table.resize(count, Segment::NEVER_USED);
        let mut segments = Self {
            table,
            counts: Counts::default(),
            generation: 0,
            checkpoint_reserve: 1,
            checkpoint_after_puts: 1,
            checkpoint_taken: 0,
        };
        segments.recount();
        Some(segments)
    }

    /// The table as a checkpoint keeps it.
    #[must_use]
    pub fn encode(&self) -> Vec<SegmentEntry> {
        let entry = |segment: &Segment| SegmentEntry {
            generation: segment.generation.into(),
            live: segment.live.into(),
            written: u32::try_from(segment.written).unwrap_or(u32::MAX).into(),
            state: segment.state as u8,
            zeroed: u8::from(segment.zeroed),
            reserved: 0.into(),
        };
        self.table.iter().map(entry).collect()
    }

    /// The sector has `count` segments now.
    pub fn grow(&mut self, count: u32) {
        let count = self.table.len().max(count as usize);
        self.table.resize(count, Segment::NEVER_USED);
        self.recount();
    }

    fn recount(&mut self) {
        let counts = self.table.iter().map(Counts::of);
        self.counts = counts.fold(Counts::default(), Counts::plus);
    }

    /// Changes a segment, and what is counted of it.
    fn change(&mut self, segment: u32, change: impl FnOnce(&mut Segment)) {
        let segment = &mut self.table[segment as usize];
        let before = Counts::of(segment);
        change(segment);
        self.counts = self.counts.minus(before).plus(Counts::of(segment));
    }

    /// One segment.
    #[must_use]
    pub fn get(&self, segment: u32) -> &Segment {
        &self.table[segment as usize]
    }

    /// All, by number.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Segment)> {
        (0..).zip(&self.table)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        u32::try_from(self.table.len()).unwrap_or(u32::MAX)
    }

    /// Whether fewer than `ahead` free segments are zeroed, and one could be.
    #[must_use]
    pub fn wants_zeroing(&self, ahead: usize) -> bool {
        (self.counts.ready as usize) < ahead && self.counts.blank > 0
    }

    /// How many are free.
    #[must_use]
    pub fn free(&self) -> u32 {
        self.counts.free
    }

    /// The highest generation given out.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Generations up to this one have been seen on disk.
    pub fn raise_generation(&mut self, generation: u64) {
        self.generation = self.generation.max(generation);
    }

    /// Keeps room for a checkpoint of so many segments, and of how many after some more puts.
    pub fn set_checkpoint_reserve(&mut self, segments: u32, after_puts: u32) {
        self.checkpoint_reserve = segments.max(1);
        self.checkpoint_after_puts = after_puts.max(segments).max(1);
    }

    /// Segments lent to compaction: the more, the fewer checkpoints it takes to free a segment.
    fn reserve_compaction(&self) -> u32 {
        (self.count() / 48).clamp(2, 16)
    }

    /// Segments kept back from `purpose`.
    #[must_use]
    pub fn reserve(&self, purpose: Purpose) -> u32 {
        // Three images lie on the disk while a checkpoint is written, and each may be larger than
        // the one before it.
        let checkpoints = |next: u32| {
            CHECKPOINTS
                .saturating_mul(next)
                .saturating_sub(self.counts.images)
                .max(next.saturating_sub(self.checkpoint_taken))
        };
        match purpose {
            Purpose::Put => checkpoints(self.checkpoint_after_puts)
                .saturating_add(RESERVE_DELETE + self.reserve_compaction()),
            Purpose::Delete => {
                checkpoints(self.checkpoint_reserve).saturating_add(self.reserve_compaction())
            }
            Purpose::Compaction => checkpoints(self.checkpoint_reserve),
            Purpose::Checkpoint => 0,
        }
    }

    /// Whether less is free than is kept back from puts: compaction or deletes are using their
    /// share, and what they have opened is not to be filled by puts.
    #[must_use]
    pub fn is_reserve_in_use(&self) -> bool {
        self.counts.free < self.reserve(Purpose::Put)
    }

    /// Whether images may take so many segments more than what is kept back for them.
    #[must_use]
    pub fn has_room_for_images(&self, more: u32) -> bool {
        let reserve = self.reserve(Purpose::Put);
        self.counts.free > reserve.saturating_add(CHECKPOINTS.saturating_mul(more))
    }

    /// Whether images are kept that are larger than the next will be: checkpoints free them.
    #[must_use]
    pub fn has_large_images(&self) -> bool {
        self.counts.images > 2_u32.saturating_mul(self.checkpoint_reserve)
    }

    /// Segments that the checkpoint being written has taken; 0 when it is over.
    pub fn set_checkpoint_taken(&mut self, segments: u32) {
        self.checkpoint_taken = segments;
    }

    /// Segments of the sector that can hold live records: all but the reserve and the checkpoints.
    #[must_use]
    pub fn usable(&self) -> u32 {
        self.count()
            .saturating_sub(CHECKPOINTS.saturating_mul(self.checkpoint_after_puts))
            .saturating_sub(RESERVE_DELETE + self.reserve_compaction())
    }

    /// Takes a free segment into use as `state`, with a new generation. `None` if what is free is
    /// kept back from `purpose`.
    pub fn take(&mut self, purpose: Purpose, state: State) -> Option<(u32, u64)> {
        if self.counts.free <= self.reserve(purpose) {
            return None;
        }
        let free = |segment: &Segment| segment.state == State::Free && !segment.busy;
        let index = self
            .table
            .iter()
            .position(|segment| free(segment) && segment.zeroed)
            .or_else(|| self.table.iter().position(free))?;
        let index = u32::try_from(index).ok()?;
        self.generation += 1;
        let generation = self.generation;
        self.change(index, |segment| {
            *segment = Segment {
                state,
                generation,
                zeroed: segment.zeroed,
                ..Segment::NEVER_USED
            }
        });
        Some((index, generation))
    }

    /// A free segment was never used and should be zeroed: takes it for that.
    pub fn take_for_zeroing(&mut self, ahead: usize) -> Option<u32> {
        match (self.counts.ready as usize) < ahead {
            true => self.take_unzeroed(0),
            false => None,
        }
    }

    /// The first free segment from `from` on that was never used: takes it for zeroing.
    pub fn take_unzeroed(&mut self, from: u32) -> Option<u32> {
        let from = from as usize;
        let wanted =
            |segment: &Segment| segment.state == State::Free && !segment.zeroed && !segment.busy;
        let index = from + self.table.get(from..)?.iter().position(wanted)?;
        let index = u32::try_from(index).ok()?;
        self.change(index, |segment| segment.busy = true);
        Some(index)
    }

    /// Takes a free segment, which is damaged, for zeroing. `false` if it is in use.
    pub fn take_damaged(&mut self, segment: u32) -> bool {
        let found = self.get(segment);
        let is_free = found.state == State::Free && !found.busy;
        self.change(segment, |segment| segment.busy |= is_free);
        is_free
    }

    /// Ends what [`Segments::take_for_zeroing`], [`Segments::take_unzeroed`] or [`Segments::take_damaged`] began.
    pub fn zeroing_done(&mut self, segment: u32, zeroed: bool) {
        self.change(segment, |segment| {
            segment.busy = false;
            segment.zeroed |= zeroed;
        });
    }

    /// Puts a segment into a state that was learned from the disk.
    pub fn set(&mut self, segment: u32, state: State, generation: u64, written: u64) {
        let live = if generation == self.get(segment).generation {
            self.get(segment).live
        } else {
            0
        };
        self.change(segment, |segment| {
            *segment = Segment {
                state,
                generation,
                live,
                written,
                zeroed: segment.zeroed || state == State::Sealed,
                ..Segment::NEVER_USED
            }
        });
        self.raise_generation(generation);
    }

    /// Segments that are open, but for `tail`, become free.
    pub fn free_open_except(&mut self, tail: u32) {
        for (index, segment) in (0..).zip(&mut self.table) {
            if segment.state == State::Open && index != tail {
                segment.give_back();
            }
        }
        self.recount();
    }

    /// A segment that was taken into use becomes free again: for a frame that was never written, or a
    /// checkpoint that failed.
    pub fn give_back(&mut self, segment: u32) {
        self.change(segment, Segment::give_back);
    }

    /// The log ends at `written` in this segment.
    pub fn set_written(&mut self, segment: u32, written: u64) {
        self.table[segment as usize].written = written;
    }

    /// The log went on elsewhere.
    pub fn seal(&mut self, segment: u32) {
        self.change(segment, |segment| {
            segment.state = State::Sealed;
            segment.zeroed = true;
        });
    }

    /// A segment of a checkpoint is written to `written`; `whole`: all of it, by the image.
    pub fn set_image(&mut self, segment: u32, written: u64, whole: bool) {
        self.change(segment, |segment| {
            segment.written = written;
            segment.zeroed |= whole;
        });
    }

    /// `bytes` of live records were added.
    pub fn add_live(&mut self, segment: u32, bytes: u64) {
        self.change(segment, |segment| segment.live += bytes);
    }

    /// `bytes` of live records died.
    pub fn remove_live(&mut self, segment: u32, bytes: u64) {
        // A hostile checkpoint can count too few; verify compares the counts with the index.
        self.change(segment, |segment| {
            segment.live = segment.live.saturating_sub(bytes);
        });
    }

    /// Something that lives in this segment can't be read back; it is kept from compaction.
    pub fn set_damaged(&mut self, segment: u32) {
        self.table[segment as usize].damaged = true;
    }

    /// Sealed segments in which nothing lives become reclaimed; `next_checkpoint` is the sequence
    /// of the checkpoint that will be the first to list them so.
    pub fn reclaim_dead(&mut self, next_checkpoint: u64) -> u32 {
        let mut reclaimed = 0;
        for segment in &mut self.table {
            if segment.state == State::Sealed && segment.live == 0 {
                segment.state = State::Reclaimed;
                segment.reclaimed_at = next_checkpoint;
                reclaimed += 1;
            }
        }
        reclaimed
    }

    /// Frees what no kept checkpoint needs: reclaimed segments that `oldest_kept`, the older of
    /// the two kept checkpoints, lists as such, and images of checkpoints that are not in `images`.
    /// Segments that `sector`'s readers are at work in stay as they are.
    pub fn release(&mut self, oldest_kept: u64, images: &[&[u32]], sector: &Sector) -> u32 {
        let mut released = 0;
        for index in 0..self.count() {
            let segment = self.get(index);
            let over = match segment.state {
                State::Reclaimed => segment.reclaimed_at <= oldest_kept && !sector.is_pinned(index),
                State::Checkpoint => {
                    !segment.busy && !images.iter().any(|image| image.contains(&index))
                }
                _ => false,
            };
            if over {
                self.change(index, |segment| {
                    segment.state = State::Free;
                    segment.written = 0;
                    segment.live = 0;
                    segment.damaged = false;
                });
                released += 1;
            }
        }
        released
    }

    /// Marks a segment of an image as being written, so that it is not taken for a leftover.
    pub fn set_busy(&mut self, segment: u32, busy: bool) {
        self.change(segment, |segment| segment.busy = busy);
    }

    /// Bytes of live records.
    #[must_use]
    pub fn live(&self) -> u64 {
        self.counts.live
    }

    /// The sealed segment in which the least lives, of those that are not damaged and have a
    /// generation up to `horizon`; without readers, if a `sector` is given that knows of them.
    #[must_use]
    pub fn victim(&self, horizon: u64, sector: Option<&Sector>) -> Option<(u32, &Segment)> {
        self.iter()
            .filter(|(_, segment)| segment.state == State::Sealed && !segment.damaged)
            .filter(|(_, segment)| segment.generation <= horizon)
            .filter(|(index, _)| sector.is_none_or(|sector| !sector.is_pinned(*index)))
            .min_by_key(|(_, segment)| segment.live)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry {
        block_size: 4096,
        segment_size: 1 << 20,
        segment_count: 40,
    };

    /// What the newest checkpoint lists as reclaimed and the older does not stays as it is: recovery may have to begin
    /// with the older one, whose index names what lies there.
    #[test]
    fn what_the_older_checkpoint_names_stays() {
        let sector = crate::log::sector::tests::sector();
        let mut segments = Segments::new(&GEOMETRY);
        segments.set(3, State::Sealed, 0, 4096);
        segments.reclaim_dead(7);
        let mut found = Segments::decode(segments.encode().into_iter(), &GEOMETRY, 7).unwrap();
        for table in [&mut segments, &mut found] {
            assert_eq!(table.release(6, &[], &sector), 0);
            assert_eq!(table.release(7, &[], &sector), 1);
        }
    }

    /// What is counted as the table changes is what counting all of it finds.
    #[test]
    fn counts_are_kept() {
        let mut segments = Segments::new(&GEOMETRY);
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |below: u32| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            u32::try_from(state % u64::from(below)).unwrap_or(0)
        };
        let mut is_taken = false;
        for _ in 0..20_000 {
            let segment = random(GEOMETRY.segment_count);
            match random(13) {
                0 => drop(segments.take(Purpose::Checkpoint, State::Open)),
                1 => drop(segments.take(Purpose::Put, State::Checkpoint)),
                2 => is_taken |= segments.take_for_zeroing(2).is_some(),
                3 => is_taken |= segments.take_unzeroed(segment).is_some(),
                4 => is_taken |= segments.take_damaged(segment),
                5 => segments.zeroing_done(segment, random(2) == 0),
                6 => segments.set(segment, State::Sealed, random(100).into(), 4096),
                7 => segments.give_back(segment),
                8 => segments.seal(segment),
                9 => segments.set_image(segment, 4096, random(2) == 0),
                10 => segments.add_live(segment, random(1000).into()),
                11 => segments.remove_live(segment, random(2000).into()),
                _ => segments.set_busy(segment, random(2) == 0),
            }
            let kept = segments.counts;
            segments.recount();
            assert_eq!(kept, segments.counts);
        }
        assert!(is_taken);
    }
}

//! Crash images: what a machine finds when it comes up after a power loss at any moment of a
//! recording.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use super::medium::{Image, Medium, Node, UNIT};
use super::random::Random;

/// Something that was done to the machine's disks or names.
#[derive(Debug, Clone)]
pub(super) enum Change {
    /// Bytes were written.
    Write {
        disk: usize,
        offset: usize,
        bytes: Arc<[u8]>,
    },
    /// Zeros became the last bytes of a disk.
    Extend { disk: usize, from: usize, to: usize },
    /// The medium lost a bit.
    Flip { disk: usize, offset: usize, bit: u8 },
    /// A path names something else, or (`None`) nothing.
    Name { path: PathBuf, node: Option<Node> },
}

impl Change {
    /// Disk and bytes that it is about.
    fn range(&self) -> Option<(usize, usize, usize)> {
        match self {
            Self::Write {
                disk,
                offset,
                bytes,
            } => Some((*disk, *offset, offset + bytes.len())),
            Self::Extend { disk, from, .. } => Some((*disk, *from, usize::MAX)),
            Self::Flip { disk, offset, .. } => Some((*disk, *offset, offset + 1)),
            Self::Name { .. } => None,
        }
    }

    fn disk(&self) -> Option<usize> {
        self.range().map(|(disk, ..)| disk)
    }

    fn is_on(&self, disk: usize) -> bool {
        self.disk() == Some(disk)
    }

    fn overlaps(&self, other: &Self) -> bool {
        match (self.range(), other.range()) {
            (Some((disk, start, end)), Some((other, other_start, other_end))) => {
                disk == other && start < other_end && other_start < end
            }
            (None, None) => match (self, other) {
                (Self::Name { path, .. }, Self::Name { path: other, .. }) => path == other,
                _ => false,
            },
            _ => false,
        }
    }

    /// Parts that a crash can tell apart.
    fn units(&self) -> usize {
        match self {
            Self::Write { bytes, .. } => bytes.len() / UNIT,
            Self::Extend { .. } | Self::Flip { .. } | Self::Name { .. } => 1,
        }
    }

    /// A disk that is there in part is a shorter one.
    fn is_of_length(&self) -> bool {
        matches!(
            self,
            Self::Extend { .. }
                | Self::Name {
                    node: Some(Node::Disk(_)),
                    ..
                }
        )
    }

    fn apply(&self, image: &mut Image) {
        match self {
            Self::Write {
                disk,
                offset,
                bytes,
            } => image.media[*disk].write(*offset, bytes),
            Self::Extend { disk, from, to } => image.media[*disk].extend(*from, *to),
            Self::Flip { disk, offset, bit } => image.media[*disk].flip(*offset, *bit),
            Self::Name { path, node } => match node {
                Some(node) => {
                    image.names.insert(path.clone(), node.clone());
                }
                None => {
                    image.names.remove(path);
                }
            },
        }
    }

    /// Does the part of it that `keeps` chooses.
    fn apply_torn(&self, image: &mut Image, mut keeps: impl FnMut(usize) -> bool) {
        match self {
            Self::Write {
                disk,
                offset,
                bytes,
            } => {
                for (unit, bytes) in bytes.chunks(UNIT).enumerate() {
                    if keeps(unit) {
                        image.media[*disk].write(offset + unit * UNIT, bytes);
                    }
                }
            }
            Self::Name {
                node: Some(Node::Disk(disk)),
                ..
            } => {
                let medium: &mut Medium = &mut image.media[*disk];
                medium.truncate(medium.size() / 2 / UNIT * UNIT);
                self.apply(image);
            }
            Self::Extend { disk, from, to } => {
                let half = from + (to - from) / 2 / UNIT * UNIT;
                image.media[*disk].extend(*from, half);
            }
            // The old one, whole.
            Self::Name { .. } | Self::Flip { .. } => {}
        }
    }
}

#[derive(Debug, Clone)]
pub(super) enum Event {
    Change {
        change: Change,
        /// Durable by itself.
        durable: bool,
        /// Answered with an error: nothing ever makes it certain.
        failed: bool,
        /// How many events were recorded when it was submitted.
        submitted: usize,
    },
    Sync {
        disk: usize,
        failed: bool,
        /// As above: only what completed before is covered.
        submitted: usize,
    },
}

/// How a write is torn, in units of 512 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tear {
    /// Only the first half is there.
    FirstHalf,
    /// Only the last half is there.
    LastHalf,
    /// The first unit is there, the second is not, and so on.
    Alternate,
}

impl Tear {
    const ALL: [Self; 3] = [Self::FirstHalf, Self::LastHalf, Self::Alternate];

    fn keeps(self, unit: usize, units: usize) -> bool {
        match self {
            Self::FirstHalf => unit < units / 2,
            Self::LastHalf => unit >= units / 2,
            Self::Alternate => unit.is_multiple_of(2),
        }
    }
}

/// What becomes of the changes that were not durable when the power failed: of those in doubt and
/// those in flight, in the order in which they were, or would have been, carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// All are lost.
    All,
    /// None is lost.
    Nothing,
    /// The first so many stay.
    KeepFirst(usize),
    /// The first so many are lost.
    LoseFirst(usize),
    /// Only this one stays, counted from 0.
    Single(usize),
    /// Only this one is lost.
    AllBut(usize),
    /// Those of this disk stay, all others are lost: a cache each, which is as quick as it likes.
    OnlyOf(usize),
    /// Those of this disk are lost, all others stay.
    AllButOf(usize),
    /// This one is torn, the others stay.
    Torn(usize, Tear),
    /// This one is torn, the others are lost.
    TornAlone(usize, Tear),
    /// Each is kept, lost or torn, as the seed has it.
    Random(u64),
}

impl Loss {
    /// Every shape of a loss of so many changes once: none, all, each prefix, each suffix, each
    /// alone, all but each, each torn among the others and alone. Shapes that come to the same
    /// (with one change, nothing lost and the first kept) are not repeated. That is about ten times
    /// as many as there are changes; [`Crasher::losses`] leaves out what can't be torn.
    pub fn every(doubts: usize) -> impl Iterator<Item = Self> {
        let ends = doubts.min(1);
        let middle = 1..doubts.max(1);
        // The first and the last alone are a prefix and a suffix; so are all but them.
        let inner = 1..doubts.saturating_sub(1).max(1);
        let torn = (0..doubts).flat_map(move |number| {
            Tear::ALL.into_iter().flat_map(move |tear| {
                let alone = (doubts > 1).then_some(Self::TornAlone(number, tear));
                std::iter::once(Self::Torn(number, tear)).chain(alone)
            })
        });
        std::iter::once(Self::All)
            .chain((0..ends).map(|_| Self::Nothing))
            .chain(middle.clone().map(Self::KeepFirst))
            .chain(middle.map(Self::LoseFirst))
            .chain(inner.clone().map(Self::Single))
            .chain(inner.map(Self::AllBut))
            .chain(torn)
    }

    /// What becomes of the change of this number, on this disk.
    fn fate(self, number: usize, disk: Option<usize>, random: &mut Random) -> Fate {
        let kept = |kept: bool| if kept { Fate::Kept } else { Fate::Lost };
        match self {
            Self::All => Fate::Lost,
            Self::Nothing => Fate::Kept,
            Self::KeepFirst(count) => kept(number < count),
            Self::LoseFirst(count) => kept(number >= count),
            Self::Single(only) => kept(number == only),
            Self::AllBut(lost) => kept(number != lost),
            Self::OnlyOf(only) => kept(disk == Some(only)),
            Self::AllButOf(lost) => kept(disk != Some(lost)),
            Self::Torn(torn, tear) | Self::TornAlone(torn, tear) if number == torn => {
                Fate::Torn(tear)
            }
            Self::Torn(..) => Fate::Kept,
            Self::TornAlone(..) => Fate::Lost,
            Self::Random(_) => match random.below(3) {
                0 => Fate::Lost,
                1 => Fate::Kept,
                _ => Fate::TornAnyhow,
            },
        }
    }
}

/// What becomes of one change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    Lost,
    Torn(Tear),
    TornAnyhow,
}

/// A change that was carried out and is not part of the base.
#[derive(Debug, Clone, Copy)]
struct Doubt {
    /// The number of its event.
    event: usize,
    certain: bool,
    doomed: bool,
}

/// Builds images along a recording, event by event.
#[derive(Debug, Clone)]
pub struct Crasher {
    events: Arc<[Event]>,
    /// What is certain at `position`.
    base: Image,
    doubts: Vec<Doubt>,
    position: usize,
    /// No more than this many events lie between the submission and the end of any change.
    reach: usize,
}

impl Crasher {
    pub(super) fn new(events: Arc<[Event]>, base: Image) -> Self {
        let waited = events
            .iter()
            .enumerate()
            .map(|(number, event)| match event {
                Event::Change { submitted, .. } => number - submitted,
                Event::Sync { .. } => 0,
            });
        Self {
            reach: waited.max().unwrap_or(0) + 1,
            events,
            base,
            doubts: Vec::new(),
            position: 0,
        }
    }

    /// How many events were recorded.
    #[must_use]
    pub fn events(&self) -> usize {
        self.events.len()
    }

    /// Goes on to the moment before event `position`, which is not before the one it is at.
    pub fn advance(&mut self, position: usize) {
        while self.position < position {
            self.happen(self.position);
            self.position += 1;
            self.settle();
        }
    }

    fn happen(&mut self, number: usize) {
        match &self.events[number] {
            Event::Change {
                durable, failed, ..
            } => self.doubts.push(Doubt {
                event: number,
                certain: *durable && !failed,
                doomed: *failed,
            }),
            Event::Sync {
                disk,
                failed,
                submitted,
            } => {
                for doubt in &mut self.doubts {
                    if !change(&self.events, doubt.event).is_on(*disk) {
                        continue;
                    }
                    if *failed {
                        // The system takes the pages for clean now: no later sync writes them.
                        doubt.doomed |= !doubt.certain;
                    } else if doubt.event < *submitted {
                        doubt.certain |= !doubt.doomed;
                    }
                }
            }
        }
    }

    /// Certain changes with no doubtful one under them become part of the base.
    fn settle(&mut self) {
        let mut left: Vec<Doubt> = Vec::with_capacity(self.doubts.len());
        for doubt in self.doubts.drain(..) {
            let this = change(&self.events, doubt.event);
            let covered = |other: &Doubt| change(&self.events, other.event).overlaps(this);
            if doubt.certain && !left.iter().any(covered) {
                this.apply(&mut self.base);
            } else {
                left.push(doubt);
            }
        }
        self.doubts = left;
    }

    /// The changes that may or may not be there, and the certain ones among them: those in doubt,
    /// and those in flight.
    fn in_doubt(&self) -> impl Iterator<Item = (&Change, bool)> {
        let known = self
            .doubts
            .iter()
            .map(|doubt| (change(&self.events, doubt.event), doubt.certain));
        let ahead = self.events.iter().skip(self.position).take(self.reach);
        let in_flight = ahead.filter_map(|event| match event {
            Event::Change {
                change, submitted, ..
            } if *submitted <= self.position => Some((change, false)),
            _ => None,
        });
        known.chain(in_flight)
    }

    /// How many changes are in doubt here.
    #[must_use]
    pub fn doubts(&self) -> usize {
        self.in_doubt().filter(|(_, certain)| !certain).count()
    }

    /// Every shape of loss here that gives an image of its own: [`Loss::every`], without the ways
    /// of tearing what is too short to be torn so, and, where changes of several disks are in doubt, what only one
    /// of them keeps or loses.
    pub fn losses(&self) -> impl Iterator<Item = Loss> {
        let tears = |(change, certain): (&Change, bool)| {
            let tears: &[Tear] = match change.units() {
                _ if change.is_of_length() => &Tear::ALL[..1],
                0 | 1 => &[],
                2 => &Tear::ALL[..2],
                _ => &Tear::ALL,
            };
            (!certain).then_some(tears)
        };
        let tears: Vec<&[Tear]> = self.in_doubt().filter_map(tears).collect();
        let every = Loss::every(tears.len()).filter(move |loss| match loss {
            Loss::Torn(number, tear) | Loss::TornAlone(number, tear) => {
                tears[*number].contains(tear)
            }
            _ => true,
        });
        let disks = self.in_doubt().filter(|(_, certain)| !certain);
        let disks: BTreeSet<Option<usize>> = disks.map(|(change, _)| change.disk()).collect();
        let are_several = disks.len() > 1;
        let each = disks.into_iter().flatten().filter(move |_| are_several);
        every.chain(each.flat_map(|disk| [Loss::OnlyOf(disk), Loss::AllButOf(disk)]))
    }

    /// What a machine finds if the power fails here.
    #[must_use]
    pub fn image(&self, loss: Loss) -> Image {
        let mut image = self.base.clone();
        let mut random = Random::new(match loss {
            Loss::Random(seed) => seed,
            _ => 0,
        });
        let mut number = 0;
        for (change, certain) in self.in_doubt() {
            if certain {
                change.apply(&mut image);
                continue;
            }
            let units = change.units();
            match loss.fate(number, change.disk(), &mut random) {
                Fate::Kept => change.apply(&mut image),
                Fate::Lost => {}
                Fate::Torn(tear) => change.apply_torn(&mut image, |unit| tear.keeps(unit, units)),
                Fate::TornAnyhow => {
                    let (how, at) = (random.below(3), random.below(units + 1));
                    change.apply_torn(&mut image, |unit| match how {
                        0 => unit < at,
                        1 => unit >= at,
                        _ => random.one_in(2),
                    });
                }
            }
            number += 1;
        }
        image
    }
}

/// The change that event `number` is.
fn change(events: &[Event], number: usize) -> &Change {
    match &events[number] {
        Event::Change { change, .. } => change,
        Event::Sync { .. } => unreachable!("a sync is never in doubt"),
    }
}

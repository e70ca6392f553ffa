//! Random histories: what the steps are, and how the next one is chosen.
//!
//! A step is chosen by its generator alone, never by what a store answered: what it says of
//! versions and places in a blob ([`Condition`], [`Border`]) is made precise when it is run. So the
//! same seed is the same history against any store, and any part of it is a history too.

use std::fmt;

use bytes::Bytes;

use super::support::{KIB, MIB, key, payload};
use crate::io::sim::Random;
use crate::port::{BinaryKey, Durability, ListRequest, PastEnd};

/// A payload, in short: its size and what it was made from.
#[derive(Clone, Copy)]
pub(super) struct Content {
    seed: u64,
    pub(super) size: usize,
}

impl Content {
    pub(super) fn bytes(self) -> Bytes {
        payload(self.seed, self.size)
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.size)
    }
}

/// A precondition, told without knowing any version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    None,
    Absent,
    /// The version the key has when the step is run.
    Current,
    CurrentETag,
    /// Some version of the store's past, of whatever key, or 0, which never is one.
    Earlier(u64),
    EarlierETag(u64),
}

/// A place in a blob, or beyond it, told without knowing its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Border {
    At(u64),
    /// So many bytes before the end.
    BeforeEnd(u64),
    /// So many bytes after the end.
    AfterEnd(u64),
    /// So many 65536ths of the blob.
    Share(u64),
}

/// What is declared of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Declared {
    Nothing,
    Size,
    Sha256,
    SizeAndBlake3,
    WrongSize,
    WrongDigest,
    WrongAttributes,
}

impl Declared {
    fn is_wrong(self) -> bool {
        use Declared::{WrongAttributes, WrongDigest, WrongSize};
        matches!(self, WrongSize | WrongDigest | WrongAttributes)
    }
}

/// A put, by whatever way.
#[derive(Debug, Clone)]
pub(super) struct Put {
    pub(super) key: BinaryKey,
    pub(super) content: Content,
    pub(super) condition: Condition,
    pub(super) declared: Declared,
    pub(super) attributes: usize,
    pub(super) durability: Durability,
}

/// A delete.
#[derive(Debug, Clone)]
pub(super) struct Delete {
    pub(super) key: BinaryKey,
    pub(super) condition: Condition,
    pub(super) strict: bool,
    pub(super) durability: Durability,
}

/// A mutation of a batch, or of several that are under way together.
#[derive(Debug, Clone)]
pub(super) enum Item {
    Put(Put),
    Delete(Delete),
}

impl Item {
    pub(super) fn key(&self) -> &BinaryKey {
        match self {
            Self::Put(put) => &put.key,
            Self::Delete(delete) => &delete.key,
        }
    }
}

/// What is submitted one after the other, and only then awaited.
#[derive(Debug, Clone)]
pub(super) struct Burst {
    /// On different keys.
    pub(super) items: Vec<Item>,
    /// And then a flush.
    pub(super) flush: bool,
}

/// A blob that is made as one hole.
#[derive(Debug, Clone)]
pub(super) struct Create {
    pub(super) key: BinaryKey,
    pub(super) size: u64,
    pub(super) condition: Condition,
    pub(super) attributes: usize,
    pub(super) durability: Durability,
}

/// A put of a range.
#[derive(Debug, Clone)]
pub(super) struct PutRange {
    pub(super) key: BinaryKey,
    pub(super) start: Border,
    pub(super) content: Content,
    pub(super) past_end: PastEnd,
    pub(super) condition: Condition,
    pub(super) durability: Durability,
}

/// A part of the upload that is open for a key. Its bytes are made of its number and its size: so
/// whoever finds it knows them.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) key: BinaryKey,
    pub(super) number: u16,
    pub(super) size: usize,
    pub(super) stream: bool,
    pub(super) durability: Durability,
}

/// Which parts an upload is completed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parts {
    All,
    /// Those whose bits are set.
    Some(u64),
    /// The last one first.
    Disordered,
    /// One is named by an ETag that it does not have.
    WrongETag,
    /// And one that there is not.
    OneMore,
}

/// The end of the upload that is open for a key.
#[derive(Debug, Clone)]
pub(super) struct Complete {
    pub(super) key: BinaryKey,
    pub(super) parts: Parts,
    pub(super) condition: Condition,
    /// Twice.
    pub(super) again: bool,
}

/// What a blob is made of that is made of others: up to so many bytes of each.
#[derive(Debug, Clone)]
pub(super) struct Compose {
    pub(super) key: BinaryKey,
    /// Between two places of each; `None`: a hole that is as long as the second place is far in the blob
    /// that has the key now.
    pub(super) entries: Vec<(Option<BinaryKey>, Border, Border)>,
    /// The first entry is left out, and nothing is in its place.
    pub(super) gap: bool,
    pub(super) replace: bool,
    pub(super) condition: Condition,
    pub(super) attributes: usize,
    pub(super) durability: Durability,
}

/// A change of what is said of a blob.
#[derive(Debug, Clone)]
pub(super) struct Update {
    pub(super) key: BinaryKey,
    /// How many of the attributes of puts are set.
    pub(super) set: usize,
    /// And how many more are removed.
    pub(super) remove: usize,
    pub(super) replace: bool,
    pub(super) condition: Condition,
    pub(super) durability: Durability,
}

/// How many keys have bytes elsewhere that are tracked.
pub(super) const TRACKED: usize = 4;

/// A change of what is complete elsewhere.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    /// Which of the keys.
    pub(super) key: usize,
    pub(super) start: u64,
    pub(super) length: u64,
    /// With a compare-and-set, bytes are taken away.
    pub(super) take: bool,
    pub(super) total: Option<u64>,
    pub(super) durability: Durability,
}

/// A copy or a rename.
#[derive(Debug, Clone)]
pub(super) struct Copy {
    pub(super) source: BinaryKey,
    pub(super) target: BinaryKey,
    pub(super) source_condition: Condition,
    pub(super) target_condition: Condition,
    pub(super) rename: bool,
    pub(super) durability: Durability,
}

/// One step of a history.
#[derive(Clone)]
pub struct Step(pub(super) Kind);

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Step {
    /// The steps that end a history: they look at everything, also after it was opened again.
    #[must_use]
    pub fn last() -> [Self; 3] {
        [Kind::Flush, Kind::CompareAll, Kind::Reopen].map(Self)
    }

    /// Reads everything and compares it.
    #[must_use]
    pub fn compare_all() -> Self {
        Self(Kind::CompareAll)
    }
}

/// What a step does.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    Put(Put),
    PutStream {
        put: Put,
        piece: usize,
    },
    /// Submitted, not awaited, flushed.
    Forget(Item),
    Burst(Burst),
    Get {
        key: BinaryKey,
        range: Option<(Border, Border)>,
        condition: Condition,
        stream: bool,
    },
    Stat(BinaryKey),
    Delete(Delete),
    List(ListRequest),
    Batch(Vec<Item>, Durability),
    Copy(Copy),
    Create(Create),
    PutRange(PutRange),
    Compose(Compose),
    Update(Update),
    /// By the tracker of a blob: what lies between two places is a hole from here on.
    Erase {
        key: BinaryKey,
        range: (Border, Border),
        durability: Durability,
    },
    /// Unless an upload is open for the key.
    Start(BinaryKey, Durability),
    PutPart(Part),
    Complete(Complete),
    Abort(BinaryKey),
    /// Of bytes held elsewhere.
    Mark(Mark),
    /// The same; whether what is expected is wrong.
    CompareAndSet(Mark, bool),
    /// A tracker forgets a key.
    Forgo(usize),
    OpenWriter(Put),
    Write(Content),
    Finish,
    DropWriter,
    OpenReader(BinaryKey),
    ReadOn,
    ReadToEnd,
    Flush,
    Reopen,
    CompareAll,
}

/// How many keys there are, and how large the blobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mix {
    /// How many keys, 1 or more; the first dozen have odd names.
    pub keys: usize,
    /// The largest blob in bytes.
    pub largest: usize,
    /// Whether the store is closed and opened again now and then.
    pub reopen: bool,
    /// Whether blobs are changed in place, and uploads and trackers used, if the subject says what
    /// does it ([`Subject::mutable`](super::Subject::mutable)).
    pub mutable: bool,
}

impl Default for Mix {
    fn default() -> Self {
        Self {
            keys: 12,
            largest: MIB + 4,
            reopen: true,
            mutable: false,
        }
    }
}

/// Where implementations cut payloads, or might.
const SIZES: [usize; 24] = [
    0,
    1,
    2,
    10,
    100,
    511,
    512,
    1000,
    4087,
    4088,
    4089,
    4095,
    4096,
    4097,
    8175,
    8176,
    8177,
    12_264,
    30_000,
    65_535,
    65_536,
    65_537,
    64 * KIB + 4088,
    200_000,
];

/// The steps of a seed, without end.
#[derive(Debug, Clone)]
pub struct Steps {
    random: Random,
    keys: Vec<BinaryKey>,
    sizes: Vec<usize>,
    mix: Mix,
    contents: u64,
    /// A writer was opened, and not finished since.
    writing: bool,
    reading: bool,
}

impl Iterator for Steps {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let kind = self.kind();
        match &kind {
            Kind::OpenWriter(_) => self.writing = true,
            Kind::Finish | Kind::DropWriter => self.writing = false,
            Kind::OpenReader(_) => self.reading = true,
            Kind::ReadToEnd => self.reading = false,
            _ => {}
        }
        Some(Step(kind))
    }
}

impl Steps {
    /// The steps of this seed.
    #[must_use]
    pub fn new(seed: u64, mix: Mix) -> Self {
        Self::chosen_by(Random::new(seed), seed, mix)
    }

    /// The steps that `random` chooses; payloads are made of `seed`.
    #[must_use]
    pub fn chosen_by(random: Random, seed: u64, mix: Mix) -> Self {
        let names: [&[u8]; 12] = [
            b"a",
            b"a/",
            b"a/b",
            b"a/b/c",
            b"a//b",
            b"a\xff",
            b"b",
            b"b/1",
            b"\0",
            b"\xff",
            b"\xff\xff",
            &[b'k'; BinaryKey::MAX_LEN],
        ];
        let more = (names.len()..mix.keys).map(|number| key(format!("key/{number:03}")));
        Self {
            random,
            keys: names
                .into_iter()
                .map(key)
                .take(mix.keys)
                .chain(more)
                .collect(),
            sizes: SIZES
                .into_iter()
                .filter(|size| *size <= mix.largest)
                .collect(),
            mix,
            contents: seed << 32,
            writing: false,
            reading: false,
        }
    }

    /// A step of several operations that are under way together.
    pub fn together(&mut self) -> Step {
        Step(Kind::Burst(self.burst()))
    }

    /// What chooses.
    pub fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    /// Any of the keys; the first ones are more popular.
    fn key(&mut self) -> BinaryKey {
        let end = 1 + self.random.below(self.keys.len());
        self.keys[self.random.below(end)].clone()
    }

    fn kind(&mut self) -> Kind {
        if self.mix.mutable && self.random.one_in(4) {
            return self.mutable_kind();
        }
        match self.random.below(100) {
            0..20 => Kind::Put(self.put()),
            20..28 => Kind::PutStream {
                put: self.put(),
                piece: *self.random.pick(&[1, 1000, 4088, 4096, 50_000, usize::MAX]),
            },
            28..30 => Kind::Forget(self.plain_item()),
            30..35 => Kind::Burst(self.burst()),
            35..47 => self.get(),
            47..50 => Kind::Stat(self.key()),
            50..60 => Kind::Delete(self.delete()),
            60..66 => Kind::List(self.list()),
            66..75 => Kind::Batch(self.batch(), self.durability()),
            75..83 => Kind::Copy(self.copy()),
            83..88 if self.writing => match self.random.below(5) {
                0 => Kind::DropWriter,
                1 | 2 => Kind::Finish,
                _ => Kind::Write(self.content()),
            },
            83..88 => Kind::OpenWriter(self.put()),
            88..94 if self.reading => match self.random.below(3) {
                0 => Kind::ReadToEnd,
                _ => Kind::ReadOn,
            },
            88..94 => Kind::OpenReader(self.key()),
            94..96 => Kind::Flush,
            96..98 if self.mix.reopen => Kind::Reopen,
            _ => Kind::CompareAll,
        }
    }

    fn mutable_kind(&mut self) -> Kind {
        match self.random.below(30) {
            24..27 => Kind::Compose(self.compose()),
            27..30 => Kind::Update(self.update()),
            0 => Kind::Create(self.create()),
            1..9 => Kind::PutRange(self.put_range()),
            9 => Kind::Erase {
                key: self.key(),
                range: (self.border(), self.border()),
                durability: self.durability(),
            },
            10 | 11 => Kind::Start(self.upload_key(), self.durability()),
            12..16 => Kind::PutPart(self.part()),
            16 | 17 => Kind::Complete(self.complete()),
            18 if self.random.one_in(2) => Kind::Abort(self.upload_key()),
            19 => Kind::Forgo(self.tracked()),
            20 | 21 => Kind::CompareAndSet(self.mark(), self.random.one_in(4)),
            _ => Kind::Mark(self.mark()),
        }
    }

    /// One of few, so that an upload gets parts, and is completed.
    fn upload_key(&mut self) -> BinaryKey {
        let few = self.keys.len().min(3);
        self.keys[self.random.below(few)].clone()
    }

    fn part(&mut self) -> Part {
        let number = match self.random.below(20) {
            0 => 0,
            1 => 10_001,
            2 => 10_000,
            _ => 1 + u16::try_from(self.random.below(4)).unwrap_or(0),
        };
        Part {
            key: self.upload_key(),
            number,
            size: self.content().size,
            stream: self.random.one_in(4),
            durability: self.durability(),
        }
    }

    fn complete(&mut self) -> Complete {
        Complete {
            key: self.upload_key(),
            parts: match self.random.below(10) {
                0 => Parts::Disordered,
                1 => Parts::WrongETag,
                2 => Parts::OneMore,
                3 | 4 => Parts::Some(self.random.number()),
                _ => Parts::All,
            },
            condition: self.condition(),
            again: self.random.one_in(3),
        }
    }

    /// Which of the keys that are tracked.
    fn tracked(&mut self) -> usize {
        self.random.below(TRACKED)
    }

    fn mark(&mut self) -> Mark {
        const LENGTH: usize = 1 << 20;
        let unit = *self.random.pick(&[1, 1, 100, 4096]);
        let start = self.random.below(LENGTH) / unit * unit;
        let length = match self.random.below(8) {
            0 => 0,
            1 => self.random.below(LENGTH - start),
            _ => unit * self.random.below(40),
        };
        Mark {
            key: self.tracked(),
            start: start as u64,
            length: length as u64,
            take: self.random.one_in(3),
            total: self.random.one_in(10).then_some(2 * LENGTH as u64),
            durability: self.durability(),
        }
    }

    fn content(&mut self) -> Content {
        self.contents += 1;
        let largest = self.mix.largest;
        let size = match self.random.below(20) {
            0 => self.random.below(largest.min(300_000) + 1),
            1 if self.random.one_in(6) => largest - self.random.below(largest.min(5)),
            1..5 => self.random.below(largest.min(10_000)),
            _ => *self.random.pick(&self.sizes),
        };
        Content {
            seed: self.contents,
            size,
        }
    }

    fn durability(&mut self) -> Durability {
        match self.random.below(3) {
            0 => Durability::Written,
            _ => Durability::Durable,
        }
    }

    fn plain_put(&mut self) -> Put {
        Put {
            key: self.key(),
            content: self.content(),
            condition: Condition::None,
            declared: Declared::Nothing,
            attributes: self.random.below(3),
            durability: self.durability(),
        }
    }

    fn plain_item(&mut self) -> Item {
        match self.random.below(4) {
            0 => Item::Delete(Delete {
                condition: Condition::None,
                strict: false,
                ..self.delete()
            }),
            _ => Item::Put(self.plain_put()),
        }
    }

    /// A put with one thing wrong with it at most: which of two faults is reported is nobody's
    /// business.
    fn put(&mut self) -> Put {
        let mut put = self.plain_put();
        put.declared = match self.random.below(24) {
            0..4 => Declared::Size,
            4..6 => Declared::Sha256,
            6..8 => Declared::SizeAndBlake3,
            8 => Declared::WrongSize,
            9 => Declared::WrongDigest,
            10 => Declared::WrongAttributes,
            _ => Declared::Nothing,
        };
        if !put.declared.is_wrong() {
            put.condition = self.condition();
        }
        put
    }

    fn burst(&mut self) -> Burst {
        let mut items: Vec<Item> = (0..2 + self.random.below(6))
            .map(|_| self.plain_item())
            .collect();
        items.sort_by(|a, b| a.key().cmp(b.key()));
        items.dedup_by(|a, b| a.key() == b.key());
        let flush = self.random.one_in(3);
        Burst { items, flush }
    }

    fn condition(&mut self) -> Condition {
        let version = self.random.number();
        match self.random.below(15) {
            0 | 1 => Condition::Absent,
            2 | 3 => Condition::Current,
            4 => Condition::CurrentETag,
            5 => Condition::Earlier(version),
            6 => Condition::EarlierETag(version),
            _ => Condition::None,
        }
    }

    fn get(&mut self) -> Kind {
        let (mut range, mut condition) = (None, Condition::None);
        match self.random.below(4) {
            0 => {}
            1 => condition = self.condition(),
            _ => range = Some((self.border(), self.border())),
        }
        Kind::Get {
            key: self.key(),
            range,
            condition,
            stream: self.random.one_in(3),
        }
    }

    /// A place in a blob, or a little past it.
    fn border(&mut self) -> Border {
        let little = self.random.number() % 3;
        match self.random.below(8) {
            0 => Border::At(0),
            1 => Border::BeforeEnd(little),
            2 => Border::AfterEnd(little),
            3 | 4 => Border::At(*self.random.pick(&SIZES) as u64),
            5 if self.random.one_in(3) => Border::At(u64::MAX),
            _ => Border::Share(self.random.number() % 65_537),
        }
    }

    fn delete(&mut self) -> Delete {
        let strict = self.random.one_in(3);
        Delete {
            key: self.key(),
            condition: if strict {
                Condition::None
            } else {
                self.condition()
            },
            strict,
            durability: self.durability(),
        }
    }

    fn list(&mut self) -> ListRequest {
        let prefixes: [&[u8]; 7] = [b"", b"a", b"a/", b"b", b"\xff", b"k", b"absent"];
        let delimiters: [&[u8]; 5] = [b"/", b"/", b"//", b"\xff", b"b"];
        ListRequest {
            prefix: self.random.pick(&prefixes).to_vec(),
            start_after: self.random.one_in(3).then(|| {
                let mut after = self.key().as_bytes().to_vec();
                if self.random.one_in(3) {
                    after.pop();
                }
                after
            }),
            delimiter: (self.random.one_in(2)).then(|| self.random.pick(&delimiters).to_vec()),
            max: *self.random.pick(&[0, 1, 2, 3, 5, 1000]),
            ..ListRequest::default()
        }
    }

    fn batch(&mut self) -> Vec<Item> {
        let mut items = Vec::new();
        let conditional = self.random.one_in(2);
        for _ in 0..self.random.below(8) {
            let mut item = self.plain_item();
            if conditional {
                match &mut item {
                    Item::Put(put) if self.random.one_in(2) => put.condition = self.condition(),
                    Item::Put(_) => {}
                    Item::Delete(delete) => {
                        *delete = Delete {
                            key: delete.key.clone(),
                            ..self.delete()
                        };
                    }
                }
            }
            items.push(item);
        }
        if !conditional && self.random.one_in(3) {
            let at = self.random.below(items.len() + 1);
            let mut wrong = self.plain_put();
            wrong.declared = *self.random.pick(&[
                Declared::WrongSize,
                Declared::WrongDigest,
                Declared::WrongAttributes,
            ]);
            items.insert(at, Item::Put(wrong));
        }
        items
    }

    fn create(&mut self) -> Create {
        Create {
            key: self.key(),
            size: self.content().size as u64,
            condition: self.condition(),
            attributes: self.random.below(3),
            durability: self.durability(),
        }
    }

    fn put_range(&mut self) -> PutRange {
        let mut content = self.content();
        if self.random.one_in(2) {
            content.size = content.size.min(1 + self.random.below(300));
        }
        let past_ends = [PastEnd::Refuse, PastEnd::Extend, PastEnd::Sparse];
        PutRange {
            key: self.key(),
            start: self.border(),
            content,
            past_end: *self.random.pick(&past_ends),
            condition: self.condition(),
            durability: self.durability(),
        }
    }

    fn compose(&mut self) -> Compose {
        let mut entries = Vec::new();
        for _ in 0..self.random.below(5) {
            let source = (!self.random.one_in(4)).then(|| self.key());
            let mut borders = || match self.random.one_in(4) {
                true => self.border(),
                false => Border::Share(self.random.number() % 65_537),
            };
            entries.push((source, borders(), borders()));
        }
        Compose {
            key: self.key(),
            entries,
            gap: self.random.one_in(12),
            replace: self.random.one_in(2),
            condition: self.condition(),
            attributes: self.random.below(3),
            durability: self.durability(),
        }
    }

    fn update(&mut self) -> Update {
        Update {
            key: self.key(),
            set: self.random.below(4),
            remove: self.random.below(2),
            replace: self.random.one_in(3),
            condition: self.condition(),
            durability: self.durability(),
        }
    }

    fn copy(&mut self) -> Copy {
        Copy {
            source: self.key(),
            target: self.key(),
            source_condition: self.condition(),
            target_condition: self.condition(),
            rename: self.random.one_in(2),
            durability: self.durability(),
        }
    }
}

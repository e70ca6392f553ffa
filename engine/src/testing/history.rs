//! Random histories: what the steps are, and how the next one is chosen.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;

use super::support::{KIB, MIB, key, payload};
use crate::io::sim::Random;
use crate::port::{BinaryKey, Durability, ETag, ListRequest, Precondition};

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
    pub(super) precondition: Precondition,
    pub(super) declared: Declared,
    pub(super) attributes: usize,
    pub(super) durability: Durability,
}

/// A mutation in a batch.
#[derive(Debug, Clone)]
pub(super) enum Item {
    Put(Put),
    Delete {
        key: BinaryKey,
        precondition: Precondition,
        strict: bool,
    },
}

/// One step of a history. Preconditions name versions of the model.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Put(Put),
    PutStream {
        put: Put,
        piece: usize,
    },
    /// Submitted, not awaited, flushed.
    PutAndForget(Put),
    /// Submitted one after the other, then awaited.
    PutMany(Vec<Put>),
    Get {
        key: BinaryKey,
        range: Option<Range<u64>>,
        precondition: Precondition,
        stream: bool,
    },
    Stat(BinaryKey),
    Delete {
        key: BinaryKey,
        precondition: Precondition,
        strict: bool,
    },
    List(ListRequest),
    Batch(Vec<Item>),
    Copy {
        source: BinaryKey,
        target: BinaryKey,
        source_precondition: Precondition,
        target_precondition: Precondition,
        and_delete_source: bool,
    },
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

/// What the choice of a step depends on.
pub(super) trait Facts {
    /// The key's current version in the model.
    fn current(&self, key: &BinaryKey) -> Option<u64>;
    /// The key's size in the model.
    fn size(&self, key: &BinaryKey) -> Option<u64>;
    /// The versions of the model so far.
    fn versions(&self) -> u64;
    /// Whether a writer is open.
    fn writing(&self) -> bool;
    /// Whether a reader is open.
    fn reading(&self) -> bool;
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

pub(super) struct Chooser {
    pub(super) random: Random,
    keys: Vec<BinaryKey>,
    contents: u64,
}

impl Chooser {
    pub(super) fn new(seed: u64) -> Self {
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
        Self {
            random: Random::new(seed),
            keys: names.into_iter().map(key).collect(),
            contents: seed << 32,
        }
    }

    pub(super) fn step(&mut self, facts: &dyn Facts) -> Step {
        match self.random.below(100) {
            0..20 => Step::Put(self.put(facts)),
            20..28 => Step::PutStream {
                put: self.put(facts),
                piece: *self.random.pick(&[1, 1000, 4088, 4096, 50_000, usize::MAX]),
            },
            28..30 => Step::PutAndForget(self.plain_put()),
            30..33 => Step::PutMany(self.several_puts()),
            33..48 => self.get(facts),
            48..52 => Step::Stat(self.key()),
            52..60 => {
                let (key, precondition, strict) = self.delete(facts);
                Step::Delete {
                    key,
                    precondition,
                    strict,
                }
            }
            60..68 => Step::List(self.list()),
            68..75 => Step::Batch(self.batch(facts)),
            75..83 => self.copy(facts),
            83..88 if facts.writing() => match self.random.below(5) {
                0 => Step::DropWriter,
                1 | 2 => Step::Finish,
                _ => Step::Write(self.content()),
            },
            83..88 => Step::OpenWriter(self.put(facts)),
            88..94 if facts.reading() => match self.random.below(3) {
                0 => Step::ReadToEnd,
                _ => Step::ReadOn,
            },
            88..94 => Step::OpenReader(self.key()),
            94..96 => Step::Flush,
            96..98 => Step::Reopen,
            _ => Step::CompareAll,
        }
    }

    fn key(&mut self) -> BinaryKey {
        // The first ones are more popular.
        let end = 1 + self.random.below(self.keys.len());
        self.keys[self.random.below(end)].clone()
    }

    fn content(&mut self) -> Content {
        self.contents += 1;
        let size = match self.random.below(20) {
            0 => self.random.below(300_000),
            1 if self.random.one_in(6) => MIB + self.random.below(5),
            1..5 => self.random.below(10_000),
            _ => *self.random.pick(&SIZES),
        };
        Content {
            seed: self.contents,
            size,
        }
    }

    fn plain_put(&mut self) -> Put {
        Put {
            key: self.key(),
            content: self.content(),
            precondition: Precondition::None,
            declared: Declared::Nothing,
            attributes: self.random.below(3),
            durability: match self.random.below(4) {
                0 => Durability::Written,
                _ => Durability::Durable,
            },
        }
    }

    /// A put with one thing wrong with it at most: which of two faults is reported is nobody's
    /// business.
    fn put(&mut self, facts: &dyn Facts) -> Put {
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
            put.precondition = self.precondition(facts, &put.key);
        }
        put
    }

    fn several_puts(&mut self) -> Vec<Put> {
        let mut puts: Vec<Put> = (0..2 + self.random.below(6))
            .map(|_| self.plain_put())
            .collect();
        puts.sort_by(|a, b| a.key.cmp(&b.key));
        puts.dedup_by(|a, b| a.key == b.key);
        puts
    }

    fn precondition(&mut self, facts: &dyn Facts, key: &BinaryKey) -> Precondition {
        let some_version = match (facts.current(key), self.random.below(3)) {
            (Some(current), 1..) => current,
            _ => self.random.number() % (facts.versions() + 1),
        };
        match self.random.below(10) {
            0 | 1 => Precondition::IfAbsent,
            2 | 3 => Precondition::IfVersion(some_version),
            4 => Precondition::IfETag(ETag::of_version(some_version)),
            _ => Precondition::None,
        }
    }

    fn get(&mut self, facts: &dyn Facts) -> Step {
        let key = self.key();
        let stream = self.random.one_in(3);
        let mut get = Step::Get {
            key: key.clone(),
            range: None,
            precondition: Precondition::None,
            stream,
        };
        if let Step::Get {
            range,
            precondition,
            ..
        } = &mut get
        {
            match (self.random.below(4), facts.size(&key)) {
                (0, _) => {}
                (1, _) => *precondition = self.precondition(facts, &key),
                (_, size) => {
                    let size = size.unwrap_or(100);
                    let (mut start, mut end) = (self.border(size), self.border(size));
                    if start > end && !(facts.size(&key).is_some() && self.random.one_in(8)) {
                        (start, end) = (end, start);
                    }
                    *range = Some(Range { start, end });
                }
            }
        }
        get
    }

    /// A place in a blob of `size` bytes, or a little past it.
    fn border(&mut self, size: u64) -> u64 {
        match self.random.below(8) {
            0 => 0,
            1 => size.saturating_sub(self.random.number() % 3),
            2 => size + self.random.number() % 3,
            3 | 4 => *self.random.pick(&SIZES) as u64,
            5 if self.random.one_in(3) => u64::MAX,
            _ => self.random.number() % (size + 1),
        }
    }

    fn delete(&mut self, facts: &dyn Facts) -> (BinaryKey, Precondition, bool) {
        let key = self.key();
        if self.random.one_in(3) {
            return (key, Precondition::None, true);
        }
        let precondition = self.precondition(facts, &key);
        (key, precondition, false)
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

    fn batch(&mut self, facts: &dyn Facts) -> Vec<Item> {
        let mut items = Vec::new();
        let conditional = self.random.one_in(2);
        for _ in 0..self.random.below(8) {
            items.push(match self.random.below(3) {
                0 => {
                    let (key, precondition, strict) = self.delete(facts);
                    Item::Delete {
                        key,
                        precondition: [Precondition::None, precondition][usize::from(conditional)],
                        strict: strict && conditional,
                    }
                }
                _ => {
                    let mut put = self.plain_put();
                    if conditional && self.random.one_in(2) {
                        put.precondition = self.precondition(facts, &put.key);
                    }
                    Item::Put(put)
                }
            });
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

    fn copy(&mut self, facts: &dyn Facts) -> Step {
        let (source, target) = (self.key(), self.key());
        Step::Copy {
            source_precondition: self.precondition(facts, &source),
            target_precondition: self.precondition(facts, &target),
            and_delete_source: self.random.one_in(2),
            source,
            target,
        }
    }
}

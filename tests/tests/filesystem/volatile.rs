//! A file system in memory that knows which of its changes a power failure may take.
//!
//! The rules are the least that POSIX and Linux promise, and not what one file system does: bytes and lengths are
//! durable after a sync of their file, or at once if they were written with `O_DSYNC` or `RWF_DSYNC`; names are durable
//! after a sync of their directory, and of nothing else. What is not durable is there or not, in any combination.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use graviton_engine::io::sim::Random;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// What the root directory is called.
pub const ROOT: u64 = 1;
/// Bytes a device writes as a whole.
const UNIT: usize = 512;

/// What a number stands for.
#[derive(Debug, Clone)]
pub enum Node {
    /// A file's bytes.
    File(Vec<u8>),
    /// A directory's names.
    Directory(BTreeMap<OsString, u64>),
}

impl Node {
    fn file(&self) -> Result<&Vec<u8>, Errno> {
        match self {
            Self::File(bytes) => Ok(bytes),
            Self::Directory(_) => Err(Errno::ISDIR),
        }
    }

    fn directory(&self) -> Result<&BTreeMap<OsString, u64>, Errno> {
        match self {
            Self::Directory(names) => Ok(names),
            Self::File(_) => Err(Errno::NOTDIR),
        }
    }

    fn apply(&mut self, change: &Change) {
        match (self, change) {
            (Self::File(held), Change::Bytes { offset, bytes }) => put(held, *offset, bytes),
            (Self::File(held), Change::Length(length)) => held.resize(*length, 0),
            (Self::Directory(held), Change::Names(names)) => {
                for (name, node) in names {
                    match node {
                        Some(node) => held.insert(name.clone(), *node),
                        None => held.remove(name),
                    };
                }
            }
            (node, change) => unreachable!("{change:?} of {node:?}"),
        }
    }

    /// As [`Node::apply`], but of bytes only some units.
    fn apply_torn(&mut self, change: &Change, random: &mut Random) {
        match (&mut *self, change) {
            (Self::File(held), Change::Bytes { offset, bytes }) => {
                for (unit, bytes) in bytes.chunks(UNIT).enumerate() {
                    if random.one_in(2) {
                        put(held, offset + unit * UNIT, bytes);
                    }
                }
            }
            _ => self.apply(change),
        }
    }
}

fn put(held: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if held.len() < end {
        held.resize(end, 0);
    }
    held[offset..end].copy_from_slice(bytes);
}

/// Something that was done to a node.
#[derive(Debug, Clone)]
enum Change {
    Bytes {
        offset: usize,
        bytes: Arc<[u8]>,
    },
    Length(usize),
    /// Names that stand for something else from now on, all of them at once, or (`None`) for nothing.
    Names(Vec<(OsString, Option<u64>)>),
}

#[derive(Debug, Clone)]
enum Event {
    Change {
        node: u64,
        change: Change,
        durable: bool,
    },
    /// The changes of a node that came before are durable.
    Sync(u64),
    /// The changes of a file that came before never will be durable, whatever comes later: the kernel has forgotten them.
    SyncFailed(u64),
}

/// What becomes of the changes that are not durable.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Loss {
    /// All are lost.
    All,
    /// None is lost.
    Nothing,
    /// The last so many are lost.
    Last(usize),
    /// Each is kept, lost or torn, as the seed has it.
    Random(u32),
}

/// Calls that are answered with an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// Of a file's bytes.
    Read,
    /// Of a file's bytes.
    Write,
    /// Of a file or a directory.
    Sync,
    /// Creations, renamings and removals.
    Name,
}

/// What moves a file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transfer {
    Read,
    Write,
}

/// How the file system behaves.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Manner {
    /// Direct transfers are refused.
    pub refuses_direct: bool,
    /// Direct transfers that are not aligned to this are refused, if it is not zero.
    pub alignment: usize,
    /// Space can't be preallocated.
    pub refuses_allocation: bool,
    /// Of three of these, one is answered in part, and one interrupted. Of reads, from the mounting on.
    pub cuts_short: Option<Transfer>,
    /// Calls that fail.
    pub fails: Option<Failure>,
}

/// Calls of a kind that fail.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Failure {
    pub call: Call,
    /// How many come before the first.
    pub after: usize,
    /// And all that come after it.
    pub for_ever: bool,
}

/// The file system.
#[derive(Debug, Default)]
pub struct Volatile {
    nodes: BTreeMap<u64, Node>,
    events: Vec<Event>,
    /// How it behaves from now on.
    pub manner: Manner,
    transfers: usize,
    /// Whether the kernel follows a durable write with a sync of the whole file. On other file systems such a write
    /// covers itself alone: so these syncs do not count.
    pub follows: bool,
    /// How many durable writes of a file are yet to be followed.
    to_follow: BTreeMap<u64, usize>,
    /// Syncs that were asked for.
    pub syncs: usize,
    /// Whether the call that was to fail has.
    pub has_failed: bool,
}

impl Volatile {
    pub fn new(manner: Manner) -> Self {
        Self {
            manner,
            nodes: BTreeMap::from([(ROOT, Node::Directory(BTreeMap::new()))]),
            ..Self::default()
        }
    }

    /// How many events there were: changes and syncs.
    pub fn position(&self) -> usize {
        self.events.len()
    }

    pub fn node(&self, number: u64) -> Result<&Node, Errno> {
        self.nodes.get(&number).ok_or(Errno::NOENT)
    }

    pub fn lookup(&self, directory: u64, name: &OsStr) -> Result<u64, Errno> {
        let names = self.node(directory)?.directory()?;
        names.get(name).copied().ok_or(Errno::NOENT)
    }

    fn check(&mut self, call: Call) -> Result<(), Errno> {
        let Some(failure) = self.manner.fails.as_mut().filter(|one| one.call == call) else {
            return Ok(());
        };
        if failure.after > 0 {
            failure.after -= 1;
            return Ok(());
        }
        if !failure.for_ever {
            self.manner.fails = None;
        }
        self.has_failed = true;
        Err(Errno::IO)
    }

    fn change(&mut self, node: u64, change: Change, durable: bool) {
        if let Some(changed) = self.nodes.get_mut(&node) {
            changed.apply(&change);
            self.events.push(Event::Change {
                node,
                change,
                durable,
            });
        }
    }

    pub fn create(&mut self, directory: u64, name: &OsStr, node: Node) -> Result<u64, Errno> {
        self.check(Call::Name)?;
        if self.lookup(directory, name).is_ok() {
            return Err(Errno::EXIST);
        }
        let number = ROOT + self.nodes.len() as u64;
        self.nodes.insert(number, node);
        let names = vec![(name.to_owned(), Some(number))];
        self.change(directory, Change::Names(names), false);
        Ok(number)
    }

    pub fn remove(&mut self, directory: u64, name: &OsStr) -> Result<(), Errno> {
        self.check(Call::Name)?;
        self.lookup(directory, name)?;
        let names = vec![(name.to_owned(), None)];
        self.change(directory, Change::Names(names), false);
        Ok(())
    }

    /// Within a directory: nobody asks for more.
    pub fn rename(&mut self, directory: u64, from: &OsStr, to: &OsStr) -> Result<(), Errno> {
        self.check(Call::Name)?;
        let node = self.lookup(directory, from)?;
        let names = vec![(from.to_owned(), None), (to.to_owned(), Some(node))];
        self.change(directory, Change::Names(names), false);
        Ok(())
    }

    pub fn set_length(&mut self, file: u64, length: usize) -> Result<(), Errno> {
        self.node(file)?.file()?;
        self.change(file, Change::Length(length), false);
        Ok(())
    }

    pub fn allocate(&mut self, file: u64, end: usize) -> Result<(), Errno> {
        if self.manner.refuses_allocation {
            return Err(Errno::OPNOTSUPP);
        }
        if end > self.node(file)?.file()?.len() {
            self.set_length(file, end)?;
        }
        Ok(())
    }

    /// How much of a transfer is done, if it is not refused.
    fn transfer(
        &mut self,
        kind: Transfer,
        offset: usize,
        length: usize,
        direct: bool,
    ) -> Result<usize, Errno> {
        let Manner {
            refuses_direct,
            alignment,
            ..
        } = self.manner;
        let aligned = alignment == 0 || (offset | length).is_multiple_of(alignment);
        if direct && (refuses_direct || !aligned) {
            return Err(Errno::INVAL);
        }
        if self.manner.cuts_short != Some(kind) {
            return Ok(length);
        }
        self.transfers += 1;
        let half = length / 2;
        match self.transfers % 3 {
            0 => Err(Errno::INTR),
            // Some whole units, and a bit more of what was not opened for direct I/O.
            1 if half > UNIT => Ok(half / UNIT * UNIT + usize::from(!direct)),
            _ => Ok(length),
        }
    }

    pub fn read(
        &mut self,
        file: u64,
        offset: usize,
        length: usize,
        direct: bool,
    ) -> Result<Vec<u8>, Errno> {
        self.check(Call::Read)?;
        let length = self.transfer(Transfer::Read, offset, length, direct)?;
        let bytes = self.node(file)?.file()?;
        let end = bytes.len().min(offset.saturating_add(length));
        Ok(bytes.get(offset..end).unwrap_or_default().to_vec())
    }

    pub fn write(
        &mut self,
        file: u64,
        offset: usize,
        bytes: &[u8],
        direct: bool,
        durable: bool,
    ) -> Result<usize, Errno> {
        self.check(Call::Write)?;
        self.node(file)?.file()?;
        let length = self.transfer(Transfer::Write, offset, bytes.len(), direct)?;
        let bytes = Arc::from(&bytes[..length]);
        self.change(file, Change::Bytes { offset, bytes }, durable);
        if durable && self.follows {
            let to_follow = self.to_follow.entry(file).or_default();
            // What goes by the page cache comes in several pieces, as does what is cut short, whose rest the kernel
            // writes by that; and one sync follows them all.
            let is_whole = direct && self.manner.cuts_short.is_none();
            *to_follow = if is_whole { *to_follow + 1 } else { 1 };
        }
        Ok(length)
    }

    pub fn sync(&mut self, node: u64) -> Result<(), Errno> {
        self.node(node)?;
        self.syncs += 1;
        let checked = self.check(Call::Sync);
        let to_follow = self.to_follow.entry(node).or_default();
        if *to_follow > 0 {
            *to_follow -= 1;
            return checked;
        }
        match checked {
            Ok(()) => self.events.push(Event::Sync(node)),
            // Pages are taken for clean then; names are not.
            Err(_) if self.node(node)?.file().is_ok() => self.events.push(Event::SyncFailed(node)),
            Err(_) => {}
        }
        checked
    }

    /// How many of the first `position` events are changes that are not durable then.
    pub fn doubts(&self, position: usize) -> usize {
        let durable = self.durable(position).into_iter();
        durable.filter(|durable| !durable).count()
    }

    /// Of each change among the first `position` events, whether it is durable then.
    fn durable(&self, position: usize) -> Vec<bool> {
        let mut changes = Vec::new();
        // Of each node, those that a sync will make durable.
        let mut pending: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for event in &self.events[..position] {
            match event {
                Event::Change { node, durable, .. } => {
                    if !durable {
                        pending.entry(*node).or_default().push(changes.len());
                    }
                    changes.push(*durable);
                }
                Event::Sync(node) => {
                    let synced = pending.remove(node).unwrap_or_default();
                    synced.into_iter().for_each(|number| changes[number] = true);
                }
                Event::SyncFailed(node) => drop(pending.remove(node)),
            }
        }
        changes
    }

    /// Puts into an empty directory what is there after a power failure behind the first `position` events.
    pub fn leave(&self, position: usize, loss: Loss, directory: &Path) {
        let empty = |node: &Node| match node {
            Node::File(_) => Node::File(Vec::new()),
            Node::Directory(_) => Node::Directory(BTreeMap::new()),
        };
        let nodes = self.nodes.iter();
        let mut nodes: BTreeMap<u64, Node> =
            nodes.map(|(number, node)| (*number, empty(node))).collect();
        let changes = self.events[..position].iter();
        let changes = changes.filter_map(|event| match event {
            Event::Change { node, change, .. } => Some((node, change)),
            Event::Sync(_) | Event::SyncFailed(_) => None,
        });
        let mut random = Random::new(match loss {
            Loss::Random(seed) => seed.into(),
            _ => 0,
        });
        let mut left = self.doubts(position);
        for ((number, change), durable) in changes.zip(self.durable(position)) {
            let Some(node) = nodes.get_mut(number) else {
                continue;
            };
            if durable {
                node.apply(change);
                continue;
            }
            match loss {
                Loss::All => {}
                Loss::Nothing => node.apply(change),
                Loss::Last(count) if left <= count => {}
                Loss::Last(_) => node.apply(change),
                Loss::Random(_) => match random.below(3) {
                    0 => {}
                    1 => node.apply(change),
                    _ => node.apply_torn(change, &mut random),
                },
            }
            left -= 1;
        }
        write_out(&nodes, ROOT, directory);
    }
}

fn write_out(nodes: &BTreeMap<u64, Node>, number: u64, path: &Path) {
    match &nodes[&number] {
        Node::File(bytes) => write_sparsely(bytes, path).expect("a file is written"),
        Node::Directory(names) => {
            if number != ROOT {
                fs::create_dir(path).expect("a directory is made");
            }
            for (name, node) in names {
                write_out(nodes, *node, &path.join(name));
            }
        }
    }
}

/// Zeros take time to write, and again to read.
fn write_sparsely(bytes: &[u8], path: &Path) -> io::Result<()> {
    const PIECE: usize = 4096;
    let file = File::create(path)?;
    file.set_len(bytes.len() as u64)?;
    for (offset, piece) in (0..).step_by(PIECE).zip(bytes.chunks(PIECE)) {
        if piece.iter().any(|byte| *byte != 0) {
            file.write_all_at(piece, offset)?;
        }
    }
    Ok(())
}

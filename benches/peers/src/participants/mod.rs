//! The stores that are compared, each behind the same few calls.

mod files;
mod fjall;
mod graviton;
mod lmdb;
mod object_store;
mod redb;
#[cfg(feature = "rocksdb")]
mod rocksdb;
mod sqlite;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::data::Blob;
use crate::meter;

/// A kind of store: what it promises, what it can do, how it is opened.
#[derive(Debug)]
pub struct Kind {
    /// Its name in tables and on the command line.
    pub name: &'static str,
    /// By which means a put is on the device when it is acknowledged.
    pub durability: &'static str,
    /// How it has sixteen puts in flight.
    pub together: Together,
    /// What is checked of bytes before they are handed out.
    pub verification: &'static str,
    /// Whether it reads a range of a blob without the rest.
    pub reads_ranges: bool,
    /// Whether one thread can have many gets under way ([`Participant::get_in_flight`]).
    pub pipelines_gets: bool,
    /// Whether there is anything to do when it is opened.
    pub has_state: bool,
    /// Opens it in a directory, where it is created if it is not there.
    pub open: fn(&Path, Sizing) -> Result<Box<dyn Participant>>,
}

/// How sixteen puts are in flight: whatever the store does best.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Together {
    /// Sixteen threads put one each.
    Threads,
    /// One thread makes sixteen puts before it waits for the first.
    Pipeline,
    /// One thread puts sixteen by one transaction or batch.
    Batch,
}

impl Together {
    /// What it is called in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Threads => "16 threads",
            Self::Pipeline => "1 thread, 16 puts under way",
            Self::Batch => "1 thread, 16 by one commit",
        }
    }
}

/// What a store is told of what it will hold.
#[derive(Debug, Clone, Copy)]
pub struct Sizing {
    /// Size of most of its blobs in bytes.
    pub blob_size: usize,
    /// Bytes that it may preallocate.
    pub capacity: u64,
}

/// An open store. Keys are known to it, or it fails.
pub trait Participant: Send + Sync {
    /// Puts a blob, replacing one that is there; durable on return.
    fn put(&self, blob: &Blob) -> Result<()>;

    /// Puts some blobs by one thread, as [`Together`] says; all are durable on return.
    fn put_together(&self, blobs: &[Blob]) -> Result<()> {
        blobs.iter().try_for_each(|blob| self.put(blob))
    }

    /// Puts many blobs, durable only at the end: whatever is fastest.
    fn load(&self, blobs: &[Blob]) -> Result<()>;

    /// Reads a blob and shows it to `look`, without a copy more than the store needs.
    fn get(&self, key: &str, look: &mut dyn FnMut(&[u8])) -> Result<()>;

    /// Reads a range of a blob and shows it to `look`.
    fn get_range(&self, key: &str, _range: Range<u64>, _look: &mut dyn FnMut(&[u8])) -> Result<()> {
        bail!("the range of {key} can't be read alone")
    }

    /// Reads the blobs that `next` names, `depth` of them at a time, on this thread; shows each to
    /// `done`, with the time from submission to arrival.
    fn get_in_flight<'a>(
        &self,
        depth: usize,
        _next: &mut dyn FnMut() -> Option<&'a Blob>,
        _done: &mut dyn FnMut(&'a Blob, &[u8], Duration),
    ) -> Result<()> {
        bail!("one thread can't have {depth} gets under way")
    }

    /// Reads all keys in order, and says how many there are.
    fn list(&self) -> Result<usize>;

    /// Deletes a blob.
    fn delete(&self, key: &str) -> Result<()>;

    /// Makes the connections that so many threads need.
    fn prepare(&self, _threads: usize) -> Result<()> {
        Ok(())
    }

    /// Brings everything to its final place on disk: flushes, compacts.
    fn settle(&mut self) -> Result<()> {
        Ok(())
    }

    /// Bytes of its files that it could not give to another blob, if it knows; else all are.
    fn space_in_use(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Bytes of what it reads when it is opened, if that is all of its index.
    fn checkpoint_bytes(&self) -> Option<u64> {
        None
    }

    /// Closes it.
    fn close(self: Box<Self>) -> Result<()>;
}

/// Graviton.
pub const GRAVITON: &Kind = &graviton::KIND;

/// All that it is compared with.
pub const PEERS: &[&Kind] = &[
    #[cfg(feature = "rocksdb")]
    &rocksdb::KIND,
    &fjall::KIND,
    &redb::KIND,
    &lmdb::KIND,
    &sqlite::KIND,
    &object_store::KIND,
    &files::KIND,
];

/// The kind with this name.
pub fn kind(name: &str) -> Option<&'static Kind> {
    std::iter::once(GRAVITON)
        .chain(PEERS.iter().copied())
        .find(|kind| kind.name.eq_ignore_ascii_case(name))
}

/// A store in a directory of its own, open or not.
pub struct Contender {
    /// What it is.
    pub kind: &'static Kind,
    /// Where it lies.
    pub directory: PathBuf,
    /// How it is opened.
    pub sizing: Sizing,
    store: Option<Box<dyn Participant>>,
}

impl Contender {
    /// One that is created when it is first opened.
    pub fn new(kind: &'static Kind, parent: &Path, sizing: Sizing) -> Self {
        Self {
            kind,
            directory: parent.join(kind.name),
            sizing,
            store: None,
        }
    }

    /// The store, which is opened if it is not.
    pub fn store(&mut self) -> Result<&mut dyn Participant> {
        let opened = match self.store.take() {
            Some(store) => store,
            None => {
                std::fs::create_dir_all(&self.directory).context("make its directory")?;
                (self.kind.open)(&self.directory, self.sizing)?
            }
        };
        Ok(&mut **self.store.insert(opened))
    }

    /// Closes it.
    pub fn close(&mut self) -> Result<()> {
        self.store.take().map_or(Ok(()), Participant::close)
    }

    /// Closes it, empties the page cache of its files, and opens it.
    pub fn cool(&mut self) -> Result<()> {
        self.close()?;
        meter::drop_cache(&self.directory)?;
        self.store().map(drop)
    }

    /// Closes and removes it.
    pub fn remove(&mut self) -> Result<()> {
        self.close()?;
        match self.directory.exists() {
            true => std::fs::remove_dir_all(&self.directory).context("remove its directory"),
            false => Ok(()),
        }
    }
}

//! LMDB, by heed.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result};
use heed::types::{Bytes, Str};
use heed::{Database, Env, EnvFlags, EnvOpenOptions};

use super::{Kind, Participant, Sizing, Together};
use crate::data::{Blob, KIB};

pub const KIND: Kind = Kind {
    name: "LMDB",
    durability: "the default: one transaction per put, fdatasync, then a synchronous write of the meta page",
    together: Together::Batch,
    verification: "none",
    reads_ranges: true,
    pipelines_gets: false,
    has_state: true,
    open,
};

/// Room in the address space: nothing is allocated for it.
const MAP_SIZE: usize = 16 << 30;
const READERS_MAX: u32 = 512;

#[expect(
    unsafe_code,
    reason = "heed leaves it to its caller that nobody else changes the file"
)]
fn open(directory: &Path, sizing: Sizing) -> Result<Box<dyn Participant>> {
    let mut options = EnvOpenOptions::new();
    options.map_size(MAP_SIZE).max_readers(READERS_MAX);
    if sizing.blob_size < 64 * KIB {
        // As LMDB's documentation advises for random reads of what is not in memory; whole large blobs would come
        // page by page.
        // SAFETY: this flag changes only how the kernel reads ahead.
        unsafe { options.flags(EnvFlags::NO_READ_AHEAD) };
    }
    // SAFETY: the directory was made by this program for this store, and only it opens the files in it, in one
    // process at a time.
    let env = unsafe { options.open(directory) }?;
    let mut transaction = env.write_txn()?;
    let blobs = env.create_database(&mut transaction, None)?;
    transaction.commit()?;
    Ok(Box::new(Lmdb { env, blobs }))
}

struct Lmdb {
    env: Env,
    blobs: Database<Str, Bytes>,
}

impl Participant for Lmdb {
    fn put(&self, blob: &Blob) -> Result<()> {
        self.put_together(std::slice::from_ref(blob))
    }

    fn put_together(&self, blobs: &[Blob]) -> Result<()> {
        let mut transaction = self.env.write_txn()?;
        for blob in blobs {
            self.blobs.put(&mut transaction, &blob.key, &blob.payload)?;
        }
        Ok(transaction.commit()?)
    }

    fn load(&self, blobs: &[Blob]) -> Result<()> {
        // A transaction keeps its pages in memory up to a limit.
        const BATCH: usize = 10_000;
        blobs
            .chunks(BATCH)
            .try_for_each(|batch| self.put_together(batch))
    }

    fn get(&self, key: &str, look: &mut dyn FnMut(&[u8])) -> Result<()> {
        let transaction = self.env.read_txn()?;
        look(self.blobs.get(&transaction, key)?.context("it is there")?);
        Ok(())
    }

    fn get_range(&self, key: &str, range: Range<u64>, look: &mut dyn FnMut(&[u8])) -> Result<()> {
        let (start, end) = (usize::try_from(range.start)?, usize::try_from(range.end)?);
        let transaction = self.env.read_txn()?;
        look(&self.blobs.get(&transaction, key)?.context("it is there")?[start..end]);
        Ok(())
    }

    fn list(&self) -> Result<usize> {
        let transaction = self.env.read_txn()?;
        let mut keys = 0;
        for entry in self.blobs.lazily_decode_data().iter(&transaction)? {
            entry?;
            keys += 1;
        }
        Ok(keys)
    }

    fn delete(&self, key: &str) -> Result<()> {
        let mut transaction = self.env.write_txn()?;
        self.blobs.delete(&mut transaction, key)?;
        Ok(transaction.commit()?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        // The next one to open it must not find it open in this process.
        self.env.prepare_for_closing().wait();
        Ok(())
    }
}

//! RocksDB, its values in blob files.

use std::path::Path;

use anyhow::{Context, Result};
use rocksdb::{DB, Options, WriteBatch, WriteOptions};

use super::{Kind, Participant, Sizing, Together};
use crate::data::Blob;

pub const KIND: Kind = Kind {
    name: "RocksDB",
    durability: "WriteOptions::sync: its log is synced; BlobDB for values of 1 KiB and more",
    together: Together::Batch,
    verification: "checksums of blocks and blobs",
    reads_ranges: false,
    pipelines_gets: false,
    has_state: true,
    open,
};

/// Values below this stay with their keys, as fjall has it by default.
const SEPARATION_MIN: u64 = 1024;

fn open(directory: &Path, _sizing: Sizing) -> Result<Box<dyn Participant>> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_enable_blob_files(true);
    options.set_min_blob_size(SEPARATION_MIN);
    options.set_enable_blob_gc(true);
    Ok(Box::new(Rocks(DB::open(&options, directory)?)))
}

struct Rocks(DB);

fn synced(is_synced: bool) -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_sync(is_synced);
    options
}

impl Rocks {
    fn commit(&self, blobs: &[Blob], is_synced: bool) -> Result<()> {
        let mut batch = WriteBatch::default();
        for blob in blobs {
            batch.put(&blob.key, &blob.payload);
        }
        Ok(self.0.write_opt(batch, &synced(is_synced))?)
    }
}

impl Participant for Rocks {
    fn put(&self, blob: &Blob) -> Result<()> {
        Ok(self.0.put_opt(&blob.key, &blob.payload, &synced(true))?)
    }

    fn put_together(&self, blobs: &[Blob]) -> Result<()> {
        self.commit(blobs, true)
    }

    fn load(&self, blobs: &[Blob]) -> Result<()> {
        const BATCH_BYTES: usize = 1 << 20;
        let size = blobs.first().map_or(1, |blob| blob.payload.len().max(1));
        for batch in blobs.chunks((BATCH_BYTES / size).max(1)) {
            self.commit(batch, false)?;
        }
        Ok(self.0.flush_wal(true)?)
    }

    fn get(&self, key: &str, look: &mut dyn FnMut(&[u8])) -> Result<()> {
        look(&self.0.get_pinned(key)?.context("it is there")?);
        Ok(())
    }

    fn list(&self) -> Result<usize> {
        let mut keys = 0;
        let mut entries = self.0.raw_iterator();
        entries.seek_to_first();
        while entries.key().is_some() {
            keys += 1;
            entries.next();
        }
        entries.status()?;
        Ok(keys)
    }

    fn delete(&self, key: &str) -> Result<()> {
        Ok(self.0.delete_opt(key, &synced(true))?)
    }

    fn settle(&mut self) -> Result<()> {
        self.0.flush()?;
        self.0.compact_range(None::<&[u8]>, None::<&[u8]>);
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

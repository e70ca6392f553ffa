//! fjall, its values apart from its keys.

use std::path::Path;

use anyhow::{Context, Result};
use fjall::config::CompressionPolicy;
use fjall::{
    CompressionType, Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode,
};

use super::{Kind, Participant, Sizing, Together};
use crate::data::Blob;

pub const KIND: Kind = Kind {
    name: "fjall",
    durability: "insert, then persist(SyncAll): its journal is fsynced",
    together: Together::Batch,
    verification: "checksums of blocks and of separated values",
    reads_ranges: false,
    pipelines_gets: false,
    has_state: true,
    open,
};

/// The least that it can be told, so that the disk is not full of journals.
const JOURNAL_MAX: u64 = 64 << 20;

fn open(directory: &Path, _sizing: Sizing) -> Result<Box<dyn Participant>> {
    let database = Database::builder(directory)
        .max_journaling_size(JOURNAL_MAX)
        .open()?;
    let blobs = database.keyspace("blobs", || {
        // Payloads do not compress: to try would cost it time.
        let values = KvSeparationOptions::default().compression(CompressionType::None);
        KeyspaceCreateOptions::default()
            .data_block_compression_policy(CompressionPolicy::disabled())
            .with_kv_separation(Some(values))
    })?;
    Ok(Box::new(Fjall { database, blobs }))
}

struct Fjall {
    database: Database,
    blobs: Keyspace,
}

impl Fjall {
    fn commit(&self, blobs: &[Blob], durability: Option<PersistMode>) -> Result<()> {
        let mut batch = self.database.batch().durability(durability);
        for blob in blobs {
            batch.insert(&self.blobs, blob.key.as_str(), &*blob.payload);
        }
        Ok(batch.commit()?)
    }
}

impl Participant for Fjall {
    fn put(&self, blob: &Blob) -> Result<()> {
        self.blobs.insert(blob.key.as_str(), &*blob.payload)?;
        Ok(self.database.persist(PersistMode::SyncAll)?)
    }

    fn put_together(&self, blobs: &[Blob]) -> Result<()> {
        self.commit(blobs, Some(PersistMode::SyncAll))
    }

    fn load(&self, blobs: &[Blob]) -> Result<()> {
        const BATCH_BYTES: usize = 1 << 20;
        let size = blobs.first().map_or(1, |blob| blob.payload.len().max(1));
        for batch in blobs.chunks((BATCH_BYTES / size).max(1)) {
            self.commit(batch, None)?;
        }
        Ok(self.database.persist(PersistMode::SyncAll)?)
    }

    fn get(&self, key: &str, look: &mut dyn FnMut(&[u8])) -> Result<()> {
        look(&self.blobs.get(key)?.context("it is there")?);
        Ok(())
    }

    fn list(&self) -> Result<usize> {
        let mut keys = 0;
        for entry in self.blobs.iter() {
            entry.key()?;
            keys += 1;
        }
        Ok(keys)
    }

    fn delete(&self, key: &str) -> Result<()> {
        self.blobs.remove(key)?;
        Ok(self.database.persist(PersistMode::SyncAll)?)
    }

    fn settle(&mut self) -> Result<()> {
        self.blobs.rotate_memtable_and_wait()?;
        // The first finds out what is stale in files of values, the second leaves it behind.
        self.blobs.major_compact()?;
        Ok(self.blobs.major_compact()?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.database.persist(PersistMode::SyncAll)?)
    }
}

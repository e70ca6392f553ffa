//! redb.

use std::path::Path;

use anyhow::{Context, Result};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use super::{Kind, Participant, Sizing, Together};
use crate::data::Blob;

pub const KIND: Kind = Kind {
    name: "redb",
    durability: "Durability::Immediate: one transaction per put, fdatasync",
    together: Together::Batch,
    verification: "none when reading; pages have checksums, which recovery uses",
    reads_ranges: false,
    pipelines_gets: false,
    has_state: true,
    open,
};

const BLOBS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("blobs");

fn open(directory: &Path, _sizing: Sizing) -> Result<Box<dyn Participant>> {
    let path = directory.join("redb");
    let is_new = !path.exists();
    let redb = Redb(Database::create(path)?);
    if is_new {
        redb.put_together(&[])?;
    }
    Ok(Box::new(redb))
}

struct Redb(Database);

impl Participant for Redb {
    fn put(&self, blob: &Blob) -> Result<()> {
        self.put_together(std::slice::from_ref(blob))
    }

    fn put_together(&self, blobs: &[Blob]) -> Result<()> {
        let mut transaction = self.0.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        {
            let mut table = transaction.open_table(BLOBS)?;
            for blob in blobs {
                table.insert(blob.key.as_str(), &*blob.payload)?;
            }
        }
        Ok(transaction.commit()?)
    }

    fn load(&self, blobs: &[Blob]) -> Result<()> {
        self.put_together(blobs)
    }

    fn get(&self, key: &str, look: &mut dyn FnMut(&[u8])) -> Result<()> {
        let table = self.0.begin_read()?.open_table(BLOBS)?;
        look(table.get(key)?.context("it is there")?.value());
        Ok(())
    }

    fn list(&self) -> Result<usize> {
        let table = self.0.begin_read()?.open_table(BLOBS)?;
        let mut keys = 0;
        for entry in table.iter()? {
            entry?;
            keys += 1;
        }
        Ok(keys)
    }

    fn delete(&self, key: &str) -> Result<()> {
        let transaction = self.0.begin_write()?;
        transaction.open_table(BLOBS)?.remove(key)?;
        Ok(transaction.commit()?)
    }

    fn settle(&mut self) -> Result<()> {
        self.0.compact()?;
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.0.close()?)
    }
}

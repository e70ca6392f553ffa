//! object_store's `LocalFileSystem`, with fsync of files and directories.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Result;
use futures::TryStreamExt;
use futures::executor::block_on;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Location;
use object_store::{ObjectStore, ObjectStoreExt};
use rustix::fs::syncfs;

use super::{Kind, Participant, Sizing, Together};
use crate::data::Blob;

pub const KIND: Kind = Kind {
    name: "object_store",
    durability: "LocalFileSystem::with_fsync: temporary file, fsync, rename, fsync of directories",
    together: Together::Threads,
    verification: "none",
    reads_ranges: true,
    pipelines_gets: false,
    has_state: false,
    open,
};

fn open(directory: &Path, _sizing: Sizing) -> Result<Box<dyn Participant>> {
    Ok(Box::new(Local {
        directory: directory.to_owned(),
        durable: LocalFileSystem::new_with_prefix(directory)?.with_fsync(true),
        unsynced: LocalFileSystem::new_with_prefix(directory)?,
    }))
}

/// Its futures do their work where they are polled: there is no runtime of tokio here that they would hand it to.
struct Local {
    directory: PathBuf,
    durable: LocalFileSystem,
    /// For loads, which are synced in the end.
    unsynced: LocalFileSystem,
}

impl Participant for Local {
    fn put(&self, blob: &Blob) -> Result<()> {
        let location = Location::from(blob.key.as_str());
        block_on(self.durable.put(&location, blob.payload.clone().into()))?;
        Ok(())
    }

    fn load(&self, blobs: &[Blob]) -> Result<()> {
        for blob in blobs {
            let location = Location::from(blob.key.as_str());
            block_on(self.unsynced.put(&location, blob.payload.clone().into()))?;
        }
        Ok(syncfs(File::open(&self.directory)?)?)
    }

    fn get(&self, key: &str, look: &mut dyn FnMut(&[u8])) -> Result<()> {
        let location = Location::from(key);
        let bytes = block_on(async { self.durable.get(&location).await?.bytes().await })?;
        look(&bytes);
        Ok(())
    }

    fn get_range(&self, key: &str, range: Range<u64>, look: &mut dyn FnMut(&[u8])) -> Result<()> {
        let location = Location::from(key);
        look(&block_on(self.durable.get_range(&location, range))?);
        Ok(())
    }

    fn list(&self) -> Result<usize> {
        let mut keys: Vec<Location> = block_on(
            self.durable
                .list(None)
                .map_ok(|about| about.location)
                .try_collect(),
        )?;
        keys.sort_unstable();
        Ok(keys.len())
    }

    fn delete(&self, key: &str) -> Result<()> {
        Ok(block_on(self.durable.delete(&Location::from(key)))?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

//! Graviton: one sector, no larger than the disk allows, zeroed when it is made, as that of a store that has been in use
//! for a while has been written; all else as it is by default.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use graviton_engine::port::{
    Batch, BinaryKey, BlobStore, DeleteOptions, Durability, GetOptions, ListRequest, PutOptions,
};
use graviton_engine::store::{CreateOptions, Store};

use super::{Kind, Participant, Sizing, Together};
use crate::data::{Blob, MIB};

pub const KIND: Kind = Kind {
    name: "Graviton",
    durability: "the default: one RWF_DSYNC write, or write and fdatasync, per group commit; sectors zeroed before \
                 (init --zero)",
    together: Together::Pipeline,
    verification: "checksum of every byte, bound to its place and version",
    reads_ranges: true,
    pipelines_gets: true,
    has_state: true,
    open,
};

fn open(directory: &Path, sizing: Sizing) -> Result<Box<dyn Participant>> {
    let path = directory.join("store");
    let store = match path.exists() {
        true => Store::open(path)?,
        false => {
            let store = Store::create(
                path,
                CreateOptions {
                    sector_size: sizing.capacity,
                    // As in a sector of the default size: this one is smaller, which is no reason for smaller segments.
                    segment_size: Some(8 * MIB as u64),
                    ..CreateOptions::default()
                },
            )?;
            store.zero_free_segments()?;
            store
        }
    };
    Ok(Box::new(Graviton(store)))
}

struct Graviton(Store);

impl Graviton {
    /// Puts blobs, the next ones under way before the first are done.
    fn put_all(&self, blobs: &[Blob], durability: Durability) -> Result<()> {
        const IN_FLIGHT: usize = 16;
        let mut under_way = VecDeque::new();
        for blob in blobs {
            if under_way.len() == IN_FLIGHT {
                wait_first(&mut under_way)?;
            }
            let options = PutOptions {
                durability,
                ..PutOptions::default()
            };
            let key = BinaryKey::new(&blob.key)?;
            under_way.push_back(self.0.put(&key, blob.payload.clone(), options));
        }
        while !under_way.is_empty() {
            wait_first(&mut under_way)?;
        }
        Ok(())
    }

    /// As [`Self::put_all`], of small blobs, a thousand of which fit in one frame.
    fn load_batches(&self, blobs: &[Blob]) -> Result<()> {
        const IN_FLIGHT: usize = 4;
        const BATCH: usize = 1000;
        let mut under_way = VecDeque::new();
        for blobs in blobs.chunks(BATCH) {
            let mut batch = Batch::new();
            batch.durability = Durability::Written;
            for blob in blobs {
                batch.put(BinaryKey::new(&blob.key)?, blob.payload.clone());
            }
            if under_way.len() == IN_FLIGHT {
                wait_first(&mut under_way)?;
            }
            under_way.push_back(self.0.batch(batch));
        }
        while !under_way.is_empty() {
            wait_first(&mut under_way)?;
        }
        Ok(())
    }
}

type Op<T> = graviton_engine::port::StoreOp<T>;

fn wait_first<T>(under_way: &mut VecDeque<Op<T>>) -> Result<()> {
    if let Some(first) = under_way.pop_front() {
        first.wait()?;
    }
    Ok(())
}

impl Participant for Graviton {
    fn put(&self, blob: &Blob) -> Result<()> {
        let key = BinaryKey::new(&blob.key)?;
        self.0
            .put(&key, blob.payload.clone(), PutOptions::default())
            .wait()?;
        Ok(())
    }

    fn put_together(&self, blobs: &[Blob]) -> Result<()> {
        self.put_all(blobs, Durability::Durable)
    }

    fn load(&self, blobs: &[Blob]) -> Result<()> {
        let are_small = blobs.iter().all(|blob| blob.payload.len() <= MIB / 1024);
        match are_small {
            true => self.load_batches(blobs)?,
            false => self.put_all(blobs, Durability::Written)?,
        }
        self.0.flush().wait()?;
        Ok(())
    }

    fn get(&self, key: &str, look: &mut dyn FnMut(&[u8])) -> Result<()> {
        let key = BinaryKey::new(key)?;
        look(&self.0.get(&key, GetOptions::default()).wait()?.bytes);
        Ok(())
    }

    fn get_range(&self, key: &str, range: Range<u64>, look: &mut dyn FnMut(&[u8])) -> Result<()> {
        let options = GetOptions {
            range: Some(range),
            ..GetOptions::default()
        };
        look(&self.0.get(&BinaryKey::new(key)?, options).wait()?.bytes);
        Ok(())
    }

    fn get_in_flight<'a>(
        &self,
        depth: usize,
        next: &mut dyn FnMut() -> Option<&'a Blob>,
        done: &mut dyn FnMut(&'a Blob, &[u8], Duration),
    ) -> Result<()> {
        let mut under_way = VecDeque::new();
        loop {
            while under_way.len() < depth
                && let Some(blob) = next()
            {
                let before = Instant::now();
                let key = BinaryKey::new(&blob.key)?;
                let op = self.0.get(&key, GetOptions::default());
                under_way.push_back((before, blob, op));
            }
            let Some((before, blob, op)) = under_way.pop_front() else {
                return Ok(());
            };
            let got = op.wait()?;
            done(blob, &got.bytes, before.elapsed());
        }
    }

    fn list(&self) -> Result<usize> {
        let mut request = ListRequest {
            max: ListRequest::MAX,
            ..ListRequest::default()
        };
        let mut blobs = 0;
        loop {
            let page = self.0.list(request.clone()).wait()?;
            blobs += page.blobs.len();
            match page.next {
                Some(token) => request.token = Some(token),
                None => return Ok(blobs),
            }
        }
    }

    fn delete(&self, key: &str) -> Result<()> {
        let key = BinaryKey::new(key)?;
        self.0.delete(&key, DeleteOptions::default()).wait()?;
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        self.0.compact()?;
        self.0.checkpoint()?;
        Ok(())
    }

    fn space_in_use(&self) -> Result<Option<u64>> {
        let space = self.0.info().space;
        Ok(Some(space.total - space.free))
    }

    fn checkpoint_bytes(&self) -> Option<u64> {
        let sectors = self.0.info().sectors;
        Some(sectors.first()?.checkpoint.as_ref()?.bytes)
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.0.close().context("close the store")
    }
}

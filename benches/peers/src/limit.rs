//! What the device can do: raw direct I/O to a file whose blocks were all written before. No store, and no code of
//! Graviton's.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::{ReadWriteFlags, pwritev2};

use crate::data::{MIB, Random, shuffled};
use crate::memory::Memory;
use crate::ring::{Place, Ring};
use crate::slice::{Run, by_threads, nanoseconds};

/// Puts that are in flight together, in works that have many.
pub const GROUP: usize = 16;

/// The file of raw transfers.
pub struct Limit {
    file: File,
    /// Where it lies.
    pub path: PathBuf,
    size: usize,
    /// Where the next sequential write goes.
    end: usize,
    /// Bytes of the checkpoint that Graviton opens with, once there is one.
    pub checkpoint_bytes: Option<u64>,
}

impl Limit {
    /// A file of `size` bytes, all of which are written: durable writes to blocks that were only allocated commit
    /// metadata of the file system.
    pub fn create(directory: &Path, size: usize) -> Result<Self> {
        let path = directory.join("limit");
        let flags = i32::try_from(OFlags::DIRECT.bits())?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .custom_flags(flags)
            .open(&path)
            .context("create a file for direct I/O (is the directory on a disk?)")?;
        fallocate(&file, FallocateFlags::empty(), 0, size as u64).context("preallocate")?;
        let mut buffer = Memory::filled(MIB, 0);
        let mut random = Random::new(2);
        for offset in (0..size).step_by(MIB) {
            for word in buffer.chunks_exact_mut(8) {
                word.copy_from_slice(&random.next().to_le_bytes());
            }
            file.write_all_at(&buffer, offset as u64)
                .context("write the file of the limit")?;
        }
        file.sync_all()?;
        Ok(Self {
            file,
            path,
            size,
            end: 0,
            checkpoint_bytes: None,
        })
    }

    /// The next place for `length` bytes; from the front again at the end.
    fn next_place(&mut self, length: usize) -> u64 {
        if self.end + length > self.size {
            self.end = 0;
        }
        let place = self.end;
        self.end += length;
        place as u64
    }

    /// Durable writes of `length` bytes (`RWF_DSYNC`), one after the other.
    pub fn write_durably(&mut self, length: usize, time: Duration, count: usize) -> Result<Run> {
        let buffer = Memory::filled(length, 0x5a);
        let places: Vec<u64> = (0..count).map(|_| self.next_place(length)).collect();
        by_threads(1, time, &places, |place| {
            let slices = [std::io::IoSlice::new(&buffer)];
            let written = pwritev2(&self.file, &slices, place, ReadWriteFlags::DSYNC)?;
            anyhow::ensure!(written == length, "wrote {written} of {length} bytes");
            Ok(())
        })
    }

    /// Sixteen writes of `length` bytes side by side, then one `fdatasync`, and again. A run's operations are
    /// single writes, its latencies those of sixteen.
    pub fn write_groups(&mut self, length: usize, time: Duration, count: usize) -> Result<Run> {
        let mut ring = Ring::new(GROUP, length)?;
        let mut run = Run::default();
        let from = Instant::now();
        let mut before = from;
        while run.operations < count && before.duration_since(from) < time {
            let place = self.next_place(GROUP * length);
            ring.write_all(&self.file, place)?;
            self.file.sync_data()?;
            let after = Instant::now();
            run.latencies
                .push(nanoseconds(after.duration_since(before)));
            run.operations += GROUP;
            before = after;
        }
        run.seconds = from.elapsed().as_secs_f64();
        Ok(run)
    }

    /// Reads `bytes` bytes from the front, some MiB under way, and again from there if the file is shorter. Returns
    /// seconds.
    pub fn read_through(&self, bytes: u64) -> Result<f64> {
        const UNDER_WAY: usize = 8;
        const ALIGNMENT: usize = 4096;
        let mut ring = Ring::new(UNDER_WAY, MIB)?;
        let bytes = usize::try_from(bytes)?.next_multiple_of(ALIGNMENT);
        let mut starts = (0..bytes).step_by(MIB);
        let mut next = || {
            let start = starts.next()?;
            Some(Place {
                offset: (start % self.size) as u64,
                length: MIB.min(bytes - start),
            })
        };
        let from = Instant::now();
        ring.read(&self.file, &mut next, &mut |_| ())?;
        Ok(from.elapsed().as_secs_f64())
    }

    /// Reads of `length` bytes from places in an order that `seed` decides, `depth` under way.
    pub fn read(&self, length: usize, depth: usize, time: Duration, seed: u64) -> Result<Run> {
        let mut ring = Ring::new(depth, length)?;
        let mut places = shuffled(self.size / length, seed).into_iter();
        let mut run = Run::default();
        let from = Instant::now();
        let mut next = || {
            let place = places.next().filter(|_| from.elapsed() < time)?;
            let offset = (place * length) as u64;
            Some(Place { offset, length })
        };
        let mut done = |latency| run.latencies.push(nanoseconds(latency));
        ring.read(&self.file, &mut next, &mut done)?;
        run.seconds = from.elapsed().as_secs_f64();
        run.operations = run.latencies.len();
        Ok(run)
    }
}

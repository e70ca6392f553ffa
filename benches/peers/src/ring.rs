//! A raw ring: reads and writes of one file, as many under way as are asked for. All `unsafe` of the limit is here.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use io_uring::{IoUring, opcode, squeue, types};

use crate::memory::Memory;

/// Where a transfer is made, and of how many bytes.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Offset in the file.
    pub offset: u64,
    /// Length in bytes.
    pub length: usize,
}

/// Buffers that the kernel may use, and the ring that hands them over.
pub struct Ring {
    ring: IoUring,
    slots: Vec<Memory>,
    /// Requests that the kernel may still be carrying out.
    under_way: usize,
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.under_way > 0 {
            // After an error: the kernel may write to the buffers even when the ring is closed. They are lost.
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}

impl Ring {
    /// A ring with so many buffers of this length.
    pub fn new(depth: usize, length: usize) -> Result<Self> {
        let entries = u32::try_from(depth)?.next_power_of_two();
        // One thread submits and reaps: the kernel need not guard against others, or interrupt it.
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(entries)
            // Kernels before 6.1 do not know these flags.
            .or_else(|_| IoUring::new(entries))
            .context("set up io_uring, which the limit needs")?;
        let mut slots = vec![];
        for slot in 0..depth {
            slots.push(Memory::filled(length, u8::try_from(slot % 251)?));
        }
        Ok(Self {
            ring,
            slots,
            under_way: 0,
        })
    }

    /// Reads from the places that `next` names, all buffers in use, and tells `done` how long each took.
    pub fn read(
        &mut self,
        file: &File,
        next: &mut dyn FnMut() -> Option<Place>,
        done: &mut dyn FnMut(Duration),
    ) -> Result<()> {
        let mut begun: Vec<Option<(Instant, Place)>> = vec![None; self.slots.len()];
        let mut idle: Vec<usize> = (0..self.slots.len()).collect();
        loop {
            while let Some(slot) = idle.pop() {
                let Some(place) = next() else {
                    idle.push(slot);
                    break;
                };
                begun[slot] = Some((Instant::now(), place));
                let buffer = &mut self.slots[slot];
                ensure!(buffer.len() >= place.length, "the buffer is too small");
                let length = u32::try_from(place.length)?;
                let read = opcode::Read::new(target(file), buffer.as_mut_ptr(), length)
                    .offset(place.offset)
                    .build()
                    .user_data(slot as u64);
                self.push(&read)?;
            }
            if idle.len() == self.slots.len() {
                return Ok(());
            }
            self.submit_and_wait(1)?;
            let now = Instant::now();
            for completion in self.ring.completion() {
                self.under_way -= 1;
                let slot = usize::try_from(completion.user_data())?;
                let (before, place) = begun[slot].take().context("the ring answers once")?;
                check(completion.result(), place.length)?;
                done(now.duration_since(before));
                idle.push(slot);
            }
        }
    }

    /// Writes one buffer each to consecutive places from `offset` on, all at once, and waits for them.
    pub fn write_all(&mut self, file: &File, offset: u64) -> Result<()> {
        for slot in 0..self.slots.len() {
            let buffer = &self.slots[slot];
            let place = offset + (slot * buffer.len()) as u64;
            let length = u32::try_from(buffer.len())?;
            let write = opcode::Write::new(target(file), buffer.as_ptr(), length)
                .offset(place)
                .build()
                .user_data(slot as u64);
            self.push(&write)?;
        }
        self.submit_and_wait(self.slots.len())?;
        let length = self.slots.first().map_or(0, |buffer| buffer.len());
        for completion in self.ring.completion() {
            self.under_way -= 1;
            check(completion.result(), length)?;
        }
        Ok(())
    }

    fn push(&mut self, entry: &squeue::Entry) -> Result<()> {
        self.under_way += 1;
        // SAFETY: the entry points at a buffer of `self.slots`, with its length, which nobody touches before its
        // completion was reaped: `read` has one request for each, `write_all` waits for all. While any is under way,
        // `drop` does not free them. The file is open when the entry is submitted, by the same call, and the kernel
        // keeps it from then on.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.context("the ring has an entry for each buffer")
    }

    fn submit_and_wait(&self, completions: usize) -> Result<()> {
        loop {
            match self.ring.submit_and_wait(completions) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => return outcome.map(drop).context("wait for the ring"),
            }
        }
    }
}

fn target(file: &File) -> types::Fd {
    types::Fd(file.as_raw_fd())
}

fn check(result: i32, length: usize) -> Result<()> {
    let moved = usize::try_from(result)
        .map_err(|_| io::Error::from_raw_os_error(-result))
        .context("a raw transfer")?;
    ensure!(
        moved == length,
        "a raw transfer moved {moved} of {length} bytes"
    );
    Ok(())
}

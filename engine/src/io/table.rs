//! The requests of one ring: those in the kernel's hands, those on their way to it, and those that
//! failed before they got there.
//!
//! The table, and not the future, owns each buffer and file from submission to completion. What
//! the kernel was told of leaves the table only by its completion; if that can never be learnt
//! (the ring is broken), the buffer stays here for good and is leaked with the table.
//!
//! The submission queue is touched only here, under the table's lock, and the kernel reads it only
//! while we are inside `io_uring_enter` with a count. So whatever was pushed but not yet counted
//! as taken is certainly not known to the kernel.

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, squeue, types};
use rustix::io::Errno;

use super::buffer::AlignedBuf;
use super::disk::WriteSync;
use super::request::{Action, Finished, Progress, Request};

/// `RWF_DSYNC` of `linux/fs.h`.
const RWF_DSYNC: i32 = 0x2;
/// How long the kernel may refuse to take a request while it has none of ours, before the ring
/// counts as broken.
const STALL_MAX: Duration = Duration::from_secs(5);

#[derive(Debug)]
enum Slot {
    Free,
    Busy(Request),
    /// Answered with an error, though the kernel may still write to this buffer.
    Lost(ManuallyDrop<AlignedBuf>),
}

/// What a reaper can expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outlook {
    /// Nothing is under way.
    Idle,
    /// The kernel has requests: a completion will come.
    InKernel,
    /// The kernel has none, and takes none at the moment.
    Stalled,
}

#[derive(Debug)]
pub(super) struct Table {
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Slots the kernel has not taken; the first `pushed` of them lie in the submission queue.
    queue: VecDeque<usize>,
    pushed: usize,
    in_kernel: usize,
    in_kernel_max: usize,
    failed: Vec<Finished>,
    stalled_since: Option<Instant>,
    broken: Option<i32>,
}

impl Table {
    /// A table that lets the kernel have at most `in_kernel_max` requests at a time: the size of
    /// the completion queue, which thus never overflows.
    pub(super) fn new(in_kernel_max: usize) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            queue: VecDeque::new(),
            pushed: 0,
            in_kernel: 0,
            in_kernel_max,
            failed: Vec::new(),
            stalled_since: None,
            broken: None,
        }
    }

    /// Why the ring is of no more use, if it is.
    pub(super) fn broken(&self) -> Option<io::Error> {
        let cause = io::Error::from_raw_os_error(self.broken?);
        Some(io::Error::new(
            cause.kind(),
            format!("this io_uring ring is broken: {cause}"),
        ))
    }

    /// Whether nothing is under way, and no answer is left to be delivered.
    pub(super) fn is_quiet(&self) -> bool {
        self.in_kernel == 0 && self.queue.is_empty() && self.failed.is_empty()
    }

    pub(super) fn insert(&mut self, request: Request) {
        let key = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::Free);
            self.slots.len() - 1
        });
        self.slots[key] = Slot::Busy(request);
        self.queue.push_back(key);
    }

    fn remove(&mut self, key: usize) -> Option<Slot> {
        let slot = std::mem::replace(self.slots.get_mut(key)?, Slot::Free);
        if matches!(slot, Slot::Free) {
            return None;
        }
        self.free.push(key);
        Some(slot)
    }

    /// Offers to the kernel as much as it takes. `enter` submits that many entries of the queue.
    pub(super) fn pump(&mut self, ring: &IoUring, enter: impl Fn(u32) -> io::Result<usize>) {
        while self.broken.is_none() && !self.queue.is_empty() {
            self.push(ring);
            if self.pushed == 0 {
                return;
            }
            let count = u32::try_from(self.pushed).expect("a queue has at most 32,768 entries");
            match enter(count) {
                Ok(0) => return self.stalled(Errno::AGAIN),
                Ok(taken) => self.taken(taken),
                Err(error) => match Errno::from_io_error(&error).unwrap_or(Errno::IO) {
                    Errno::INTR => {}
                    errno @ (Errno::AGAIN | Errno::BUSY | Errno::NOMEM) => {
                        return self.stalled(errno);
                    }
                    errno => self.break_with(errno),
                },
            }
        }
    }

    /// Fills the submission queue.
    fn push(&mut self, ring: &IoUring) {
        // SAFETY: this is the only place that uses the submission queue, and `&mut self` (the
        // table's lock) excludes a second caller.
        let mut submissions = unsafe { ring.submission_shared() };
        while self.pushed < self.queue.len() && self.in_kernel + self.pushed < self.in_kernel_max {
            let key = self.queue[self.pushed];
            let Slot::Busy(request) = &mut self.slots[key] else {
                unreachable!("what is queued has a request");
            };
            let entry = entry_of(request).user_data(key as u64);
            // SAFETY: the buffer and the file of the entry belong to the request in the table,
            // which stays there until its completion arrives, and is leaked if that never does.
            let pushed = unsafe { submissions.push(&entry) };
            if pushed.is_err() {
                break;
            }
            self.pushed += 1;
        }
    }

    fn taken(&mut self, count: usize) {
        assert!(count <= self.pushed, "the kernel takes what it was given");
        self.queue.drain(..count);
        self.pushed -= count;
        self.in_kernel += count;
        self.stalled_since = None;
    }

    fn stalled(&mut self, errno: Errno) {
        if self.in_kernel > 0 {
            return;
        }
        let since = *self.stalled_since.get_or_insert_with(Instant::now);
        if since.elapsed() > STALL_MAX {
            self.break_with(errno);
        }
    }

    /// Gives up the ring: what the kernel has not taken fails, and nothing is submitted again. The
    /// entries left in the submission queue are never seen by the kernel.
    fn break_with(&mut self, errno: Errno) {
        tracing::error!(%errno, "an io_uring ring is broken");
        self.broken.get_or_insert(errno.raw_os_error());
        self.pushed = 0;
        for key in std::mem::take(&mut self.queue) {
            if let Some(Slot::Busy(request)) = self.remove(key) {
                let error = self.broken().unwrap_or_else(|| errno.into());
                self.failed.push(request.finish(Err(error)));
            }
        }
    }

    /// Gives up even what the kernel has, since its completions can't be waited for: the answers
    /// are errors, the buffers stay here.
    pub(super) fn abandon(&mut self, errno: Errno) {
        self.break_with(errno);
        self.in_kernel = 0;
        let error = self.broken;
        for slot in &mut self.slots {
            match std::mem::replace(slot, Slot::Free) {
                Slot::Busy(request) => {
                    let error = io::Error::from_raw_os_error(error.unwrap_or_default());
                    let (finished, buffer) = request.abandon(error);
                    self.failed.push(finished);
                    *slot = Slot::Lost(ManuallyDrop::new(buffer));
                }
                other => *slot = other,
            }
        }
    }

    /// Takes in one completion.
    pub(super) fn complete(&mut self, key: u64, result: i32, finished: &mut Vec<Finished>) {
        let key = usize::try_from(key).unwrap_or(usize::MAX);
        let mut request = match self.remove(key) {
            Some(Slot::Busy(request)) => request,
            Some(Slot::Lost(buffer)) => return drop(ManuallyDrop::into_inner(buffer)),
            _ => return tracing::error!(key, "a completion for nothing"),
        };
        self.in_kernel -= 1;
        let result = usize::try_from(result).map_err(|_| Errno::from_raw_os_error(-result));
        match request.advance(result) {
            Progress::Over(outcome) => finished.push(request.finish(outcome)),
            Progress::Again => match self.broken() {
                Some(error) => finished.push(request.finish(Err(error))),
                None => self.insert(request),
            },
        }
    }

    /// Adds what failed without the kernel's doing, and says what to expect next.
    pub(super) fn outlook(&mut self, finished: &mut Vec<Finished>) -> Outlook {
        finished.append(&mut self.failed);
        if self.in_kernel > 0 {
            Outlook::InKernel
        } else if self.queue.is_empty() {
            Outlook::Idle
        } else {
            Outlook::Stalled
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        if self.in_kernel > 0 {
            // Not to be reached: a ring is drained first. Should it be, memory is the lesser loss.
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}

fn entry_of(request: &mut Request) -> squeue::Entry {
    let action = request.action();
    let (file, bytes, offset) = request.remaining();
    let file = types::Fd(file.as_raw_fd());
    let len = u32::try_from(bytes.len()).expect("one call transfers at most 1 GiB");
    match action {
        Action::Read => opcode::Read::new(file, bytes.as_mut_ptr(), len)
            .offset(offset)
            .build(),
        Action::Write(sync) => opcode::Write::new(file, bytes.as_ptr(), len)
            .offset(offset)
            .rw_flags(match sync {
                WriteSync::None => 0,
                WriteSync::Data => RWF_DSYNC,
            })
            .build(),
        Action::Sync => opcode::Fsync::new(file)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
    }
}

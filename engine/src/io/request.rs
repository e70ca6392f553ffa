//! One transfer as the backends see it, and the one place that knows what its results mean.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::buffer::AlignedBuf;
use super::completion::Completer;
use super::disk::WriteSync;

/// Most bytes asked of the kernel in one call; it transfers at most 2 GiB less a page anyway.
const TRANSFER_SIZE_MAX: usize = 1 << 30;
/// How often a transfer that makes no progress is tried again before it fails.
const RETRIES_MAX: u32 = 1000;

const _: () = assert!(TRANSFER_SIZE_MAX.is_power_of_two());

/// What to do with the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Read,
    Write(WriteSync),
    Sync,
}

/// What is to be transferred; checked already.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) action: Action,
    pub(super) file: Arc<OwnedFd>,
    pub(super) buffer: AlignedBuf,
    pub(super) offset: u64,
    pub(super) block_size: usize,
}

/// A transfer under way. It owns its buffer and its file until the device is done with both.
#[derive(Debug)]
pub(super) struct Request {
    transfer: Transfer,
    completer: Completer,
    /// Bytes that need no further attention; a multiple of `block_size`, or all.
    done: usize,
    /// The farthest byte a transfer reached.
    reached: usize,
    retries: u32,
}

/// What a result from the kernel means for its request.
#[derive(Debug)]
pub(super) enum Progress {
    /// It is over.
    Over(io::Result<()>),
    /// It goes to the kernel again, with what [`Request::remaining`] gives now.
    Again,
}

impl Request {
    pub(super) fn new(transfer: Transfer, completer: Completer) -> Self {
        Self {
            transfer,
            completer,
            done: 0,
            reached: 0,
            retries: 0,
        }
    }

    pub(super) fn action(&self) -> Action {
        self.transfer.action
    }

    /// The file of the next call, the bytes to transfer, and where in the file they belong.
    pub(super) fn remaining(&mut self) -> (&OwnedFd, &mut [u8], u64) {
        let transfer = &mut self.transfer;
        let end = transfer.buffer.len().min(self.done + TRANSFER_SIZE_MAX);
        let offset = transfer.offset + self.done as u64;
        (&transfer.file, &mut transfer.buffer[self.done..end], offset)
    }

    /// Takes in what a call returned: the number of bytes transferred (anything for a sync), or
    /// an error.
    pub(super) fn advance(&mut self, result: Result<usize, Errno>) -> Progress {
        match result {
            Ok(_) if self.action() == Action::Sync => Progress::Over(Ok(())),
            Ok(count) => self.transferred(count),
            Err(errno) if is_transient(errno) => self.retry(errno),
            Err(errno) => Progress::Over(Err(errno.into())),
        }
    }

    fn transferred(&mut self, count: usize) -> Progress {
        let reached = self.done + count;
        if reached > self.transfer.buffer.len() {
            let message = "the kernel reports more bytes than were asked for";
            return Progress::Over(Err(io::Error::new(io::ErrorKind::InvalidData, message)));
        }
        if reached == self.transfer.buffer.len() {
            return Progress::Over(Ok(()));
        }
        // Going on means going back to a block's boundary, for direct I/O takes nothing else. So
        // the end of a file that is no multiple of the block would be read over and over: what
        // tells it from a short transfer is that the second attempt gets no farther.
        if reached <= self.reached {
            return Progress::Over(Err(self.no_progress()));
        }
        self.reached = reached;
        self.done = reached - reached % self.transfer.block_size;
        self.retries = 0;
        Progress::Again
    }

    fn no_progress(&self) -> io::Error {
        match self.action() {
            Action::Read => io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file ends before the read does",
            ),
            _ => io::Error::new(io::ErrorKind::WriteZero, "the file takes no more bytes"),
        }
    }

    fn retry(&mut self, errno: Errno) -> Progress {
        self.retries += 1;
        if self.retries > RETRIES_MAX {
            return Progress::Over(Err(errno.into()));
        }
        Progress::Again
    }

    /// Ends the request.
    pub(super) fn finish(self, outcome: io::Result<()>) -> Finished {
        Finished {
            completer: self.completer,
            buffer: self.transfer.buffer,
            outcome,
        }
    }

    /// Ends a request whose buffer the kernel may still hold: the waiter gets an empty one, and
    /// the true one is given to the caller, who must keep it.
    pub(super) fn abandon(self, error: io::Error) -> (Finished, AlignedBuf) {
        let finished = Finished {
            completer: self.completer,
            buffer: AlignedBuf::empty(),
            outcome: Err(error),
        };
        (finished, self.transfer.buffer)
    }
}

/// Whether a call that failed so has done nothing and may simply be made again.
///
/// `ECANCELED` is what io_uring reports for a request that still waited for one of its own worker
/// threads when the thread that submitted it ended; older kernels say `EFAULT` where a buffer of
/// ours is never at fault.
fn is_transient(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::INTR | Errno::AGAIN | Errno::CANCELED | Errno::FAULT
    )
}

/// A request that is over, whose answer is still to be delivered.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) completer: Completer,
    pub(super) buffer: AlignedBuf,
    pub(super) outcome: io::Result<()>,
}

impl Finished {
    /// Delivers the answer; see [`Completer::complete`].
    pub(super) fn deliver(self) -> bool {
        self.completer.complete(self.buffer, self.outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::buffer::BufferPool;
    use crate::io::completion::IoOp;

    fn request(action: Action, len: usize) -> Request {
        let file = std::fs::File::open("/dev/null").unwrap();
        let (_, completer) = IoOp::pending(None);
        let transfer = Transfer {
            action,
            file: Arc::new(file.into()),
            buffer: BufferPool::global().take(len),
            offset: 8192,
            block_size: 512,
        };
        Request::new(transfer, completer)
    }

    fn kind(progress: Progress) -> Option<io::ErrorKind> {
        match progress {
            Progress::Over(outcome) => outcome.err().map(|error| error.kind()),
            Progress::Again => panic!("it should be over"),
        }
    }

    #[test]
    fn a_short_transfer_goes_on_from_the_last_block() {
        for action in [
            Action::Read,
            Action::Write(WriteSync::None),
            Action::Write(WriteSync::Data),
        ] {
            let mut request = request(action, 4096);
            assert!(matches!(request.advance(Ok(1000)), Progress::Again));
            let (_, rest, offset) = request.remaining();
            assert_eq!((rest.len(), offset), (4096 - 512, 8192 + 512));
            assert!(matches!(request.advance(Ok(512)), Progress::Again));
            let (_, rest, offset) = request.remaining();
            assert_eq!((rest.len(), offset), (4096 - 1024, 8192 + 1024));
            assert_eq!(kind(request.advance(Ok(4096 - 1024))), None);
        }
    }

    #[test]
    fn the_end_of_a_ragged_file_is_found() {
        let mut request = request(Action::Read, 4096);
        assert!(matches!(request.advance(Ok(1000)), Progress::Again));
        let end = request.advance(Ok(1000 - 512));
        assert_eq!(kind(end), Some(io::ErrorKind::UnexpectedEof));
    }

    #[test]
    fn zero_is_an_error() {
        let end = request(Action::Read, 512).advance(Ok(0));
        assert_eq!(kind(end), Some(io::ErrorKind::UnexpectedEof));
        let end = request(Action::Write(WriteSync::Data), 512).advance(Ok(0));
        assert_eq!(kind(end), Some(io::ErrorKind::WriteZero));
    }

    #[test]
    fn transient_errors_are_retried_but_not_for_ever() {
        for errno in [Errno::INTR, Errno::AGAIN, Errno::CANCELED] {
            let mut request = request(Action::Write(WriteSync::None), 512);
            for _ in 0..RETRIES_MAX {
                let again = request.advance(Err(errno));
                assert!(matches!(again, Progress::Again));
            }
            let Progress::Over(Err(error)) = request.advance(Err(errno)) else {
                panic!("{errno} should end it in the end");
            };
            assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()));
        }
    }

    #[test]
    fn other_errors_end_it() {
        for errno in [Errno::IO, Errno::NOSPC, Errno::BADF] {
            let mut request = request(Action::Sync, 0);
            let Progress::Over(Err(error)) = request.advance(Err(errno)) else {
                panic!("{errno} should end it");
            };
            assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()));
        }
    }

    #[test]
    fn a_sync_succeeds_with_zero() {
        assert_eq!(kind(request(Action::Sync, 0).advance(Ok(0))), None);
    }

    #[test]
    fn more_than_was_asked_for_is_refused() {
        let end = request(Action::Read, 512).advance(Ok(513));
        assert_eq!(kind(end), Some(io::ErrorKind::InvalidData));
    }
}

//! The io floor: aligned buffers and the disks behind one small trait.
//!
//! [`open_backend`] gives the [`Backend`] over real files: io_uring where it works, plain system
//! calls elsewhere; `sim` is a machine that is not there. Reading order: `disk` (the traits), `completion` (how a transfer answers),
//! `request` (what a result means), `ring` and `role` (who reaps), `table` (who owns the buffers).

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, reason = "in a test a panic is the report")
)]

mod absent;
pub mod buffer;
pub mod completion;
pub mod disk;
mod file;
mod host;
mod options;
mod request;
mod ring;
mod role;
#[cfg(any(test, feature = "testing"))]
pub mod sim;
mod small;
mod syscall;
mod table;
#[cfg(test)]
mod tests;
mod uring;

pub use absent::AbsentDisk;
pub use buffer::{AlignedBuf, BUFFER_ALIGNMENT, BufferPool};
pub use completion::{Completer, CompletionSource, Reaping};
pub use disk::{Backend, Disk, DiskInfo, IoOp, Lock, LockError, OpenAccess, WriteSync};
pub use options::{BackendChoice, DirectIo, IoOptions, open_backend};

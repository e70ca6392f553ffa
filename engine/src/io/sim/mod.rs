//! A simulated machine: the third family behind [`Backend`](super::Backend), in which one seed
//! decides everything that the outside world may do.
//!
//! *What is in flight.* Reads, writes and syncs queue. They are carried out one at a time when a
//! waiting thread drives them, in an order that the seed decides: what is submitted without waiting
//! races. (A thread of the machine's own can be asked for:
//! [`Sim::carry_out_in_background`].) Calls beside the disks (create, rename, ...) happen at once.
//!
//! *What is durable.* The machine records every change in order ([`Sim::record`]), and a
//! [`Crasher`] makes of the recording what a machine finds after a power loss at any moment of it:
//!
//! - A write is durable when it completed, if it was a DSYNC write; else after a sync of its disk
//!   that was submitted after the write completed, and that succeeded. Until then it is in doubt.
//! - A write in doubt, or in flight, is there, or not, or in part, in units of 512 bytes, each
//!   independent of all others ([`Loss`]). Where two writes in doubt overlap, what is there of the
//!   later one lies above: a device forgets writes, it does not swap two that it took in order.
//! - After a sync that failed the system takes what it could not write for clean: no later sync
//!   makes it durable. The same holds of a write that failed, which is there in part.
//! - Small files are replaced whole: the old one or the new one is there, and the new one for sure
//!   once the call returned. A disk whose creation was cut short is absent, or there, or shorter.
//!   A replacement or removal that failed may have happened, and is never durable.
//! - Nothing happens to what is durable, unless a fault says so.
//!
//! *What goes wrong.* Nothing, unless it is asked for: calls that fail, once or for ever, with an
//! error of choice; disks that die or are gone; transfers in two steps, between which others are
//! carried out and the power may fail; and silent damage, to the medium or to one transfer. See
//! [`FaultKind`].
//!
//! *Time.* The clock is the machine's own. It goes on by a millisecond whenever it is looked at,
//! and can be set, or made to run backwards. Nothing waits on any clock.
//!
//! The same seed and the same calls on one thread give the same history, to the byte.

#![forbid(unsafe_code)]

mod backend;
mod crash;
mod disk;
mod fault;
mod machine;
mod medium;
mod random;
#[cfg(test)]
mod tests;

pub use crash::{Crasher, Loss, Tear};
pub use fault::{DiskCondition, Fault, FaultError, FaultKind};
pub use machine::Sim;
pub use medium::Image;
pub use random::Random;

//! Simulated disks that remember: every write and sync in order, from which the state of the disk
//! after a power loss at any moment is made; and that fail when they are told to.
//!
//! What a device may do to a write that is not durable is taken from the assumptions of the
//! format: it is there, or not, or in part, in units of 512 bytes, independent of all others.
//!
//! Writes and syncs are carried out when a waiting thread drives them, one at a time, in an order
//! that the seed decides: what is submitted without waiting is in flight together.

#![forbid(unsafe_code)]

mod backend;
mod crash;
mod disk;
mod fault;
mod machine;
mod medium;
mod random;

pub use crash::{Crasher, Loss};
pub use fault::{Fault, FaultKind};
pub use machine::Sim;
pub use medium::Image;
pub use random::Random;

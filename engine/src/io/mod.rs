//! The io floor: aligned buffers and the disks behind one small trait.

pub mod disk;

pub use disk::{Backend, Disk, DiskInfo, IoOp, Lock, OpenAccess, WriteSync};

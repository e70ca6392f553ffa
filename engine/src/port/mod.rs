//! The traits and domain types callers see. No I/O, and no knowledge of any other floor.

pub mod op;

pub use op::Op;

//! One sector: its superblock, its segments, frames written at the log's end, verified reads,
//! checkpoints on disk, and the replay of the log. Knows bytes and addresses; what a record means
//! for the index is the business of the `store` floor.

pub mod append;
pub mod growth;
pub mod image_io;
pub mod record;
pub mod replay;
pub mod sector;
pub mod segments;
pub mod store_file;

pub use append::{FrameBuilder, Tail};
pub use record::Encoded;
pub use replay::Replay;
pub use sector::Sector;
pub use segments::{Purpose, Segment, Segments, State};

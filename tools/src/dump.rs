//! `dump`: structures as they lie on disk, read past the engine.

use crate::cli::{DumpArgs, DumpWhat};
use crate::failure::Failure;
use crate::session::Session;

/// `dump`.
pub fn run(session: &Session, args: &DumpArgs) -> Result<(), Failure> {
    let what = match &args.what {
        DumpWhat::Superblock => "superblock",
        DumpWhat::Segments { .. } => "segments",
        DumpWhat::Frames { .. } => "frames",
        DumpWhat::Record { key } => {
            session.key(key)?;
            "record"
        }
        DumpWhat::Checkpoint => "checkpoint",
    };
    Err(Failure::failed(format!(
        "dump {what} is not part of this build yet"
    )))
}

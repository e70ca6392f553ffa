//! Sees how much is asked of a backend: hostile bytes must not make the engine read more at once than there is,
//! nor read for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use graviton_engine::io::{AlignedBuf, Disk, IoOp};

use crate::between::Between;

/// The most bytes that one read takes, and so the most memory that what is on disk can ask for:
/// an image of the whole index, or a long piece of the log.
const READ_MAX: usize = 4 << 20;
/// Calls after which there will be no end.
const CALLS_MAX: usize = 200_000;

/// Panics when it is asked for too much.
#[derive(Debug, Default)]
pub struct Watched {
    calls: AtomicUsize,
}

impl Between for Watched {
    fn asked(&self) {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed);
        assert!(calls < CALLS_MAX, "the store comes to no end");
    }

    fn read(&self, disk: &Arc<dyn Disk>, buffer: AlignedBuf, offset: u64) -> IoOp {
        let length = buffer.len();
        assert!(length <= READ_MAX, "{length} bytes are read at once");
        disk.read(buffer, offset)
    }
}

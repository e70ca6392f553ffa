//! A backend that sees how much is asked of it: hostile bytes must not make the engine read more at
//! once than there is, nor read for ever.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use graviton_engine::io::{
    AlignedBuf, Backend, Disk, DiskInfo, IoOp, Lock, LockError, OpenAccess, WriteSync,
};
use graviton_engine::port::op::Driver;

/// The most bytes that one read takes, and so the most memory that what is on disk can ask for:
/// an image of the whole index, or a long piece of the log.
const READ_MAX: usize = 4 << 20;
/// Calls after which there will be no end.
const CALLS_MAX: usize = 200_000;

/// A backend that panics when it is asked for too much.
#[derive(Debug)]
pub struct Watched {
    beneath: Arc<dyn Backend>,
    calls: Arc<AtomicUsize>,
}

impl Watched {
    /// Watches over `beneath`.
    pub fn new(beneath: Arc<dyn Backend>) -> Self {
        Self {
            beneath,
            calls: Arc::default(),
        }
    }

    fn watch(&self, disk: Arc<dyn Disk>) -> Arc<dyn Disk> {
        Arc::new(WatchedDisk {
            beneath: disk,
            calls: Arc::clone(&self.calls),
        })
    }
}

impl Backend for Watched {
    fn name(&self) -> &'static str {
        self.beneath.name()
    }

    fn create(&self, path: &Path, size: u64) -> io::Result<Arc<dyn Disk>> {
        self.beneath.create(path, size).map(|disk| self.watch(disk))
    }

    fn open(&self, path: &Path, access: OpenAccess) -> io::Result<Arc<dyn Disk>> {
        self.beneath.open(path, access).map(|disk| self.watch(disk))
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.beneath.create_directory(path)
    }

    fn read_file(&self, path: &Path, limit: usize) -> io::Result<Vec<u8>> {
        self.beneath.read_file(path, limit)
    }

    fn replace_file(&self, path: &Path, contents: &[u8]) -> io::Result<()> {
        self.beneath.replace_file(path, contents)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.beneath.remove_file(path)
    }

    fn random(&self, bytes: &mut [u8]) -> io::Result<()> {
        self.beneath.random(bytes)
    }

    fn now(&self) -> SystemTime {
        self.beneath.now()
    }

    fn lock(&self, path: &Path, exclusive: bool) -> Result<Box<dyn Lock>, LockError> {
        self.beneath.lock(path, exclusive)
    }
}

#[derive(Debug)]
struct WatchedDisk {
    beneath: Arc<dyn Disk>,
    calls: Arc<AtomicUsize>,
}

impl WatchedDisk {
    fn count(&self) {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed);
        assert!(calls < CALLS_MAX, "the store comes to no end");
    }
}

impl Disk for WatchedDisk {
    fn info(&self) -> &DiskInfo {
        self.beneath.info()
    }

    fn size(&self) -> u64 {
        self.beneath.size()
    }

    fn extend(&self, from: u64, to: u64) -> io::Result<()> {
        self.count();
        self.beneath.extend(from, to)
    }

    fn read(&self, buffer: AlignedBuf, offset: u64) -> IoOp {
        self.count();
        let length = buffer.len();
        assert!(length <= READ_MAX, "{length} bytes are read at once");
        self.beneath.read(buffer, offset)
    }

    fn write(&self, buffer: AlignedBuf, offset: u64, sync: WriteSync) -> IoOp {
        self.count();
        self.beneath.write(buffer, offset, sync)
    }

    fn sync(&self) -> IoOp {
        self.count();
        self.beneath.sync()
    }

    fn driver(&self) -> Option<Arc<dyn Driver>> {
        self.beneath.driver()
    }

    fn reap_in_background(&self) {
        self.beneath.reap_in_background();
    }
}

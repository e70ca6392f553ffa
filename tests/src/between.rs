//! A backend between a store and another backend, which sees what is asked of it.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use graviton_engine::io::{
    AlignedBuf, Backend, Disk, DiskInfo, IoOp, Lock, LockError, OpenAccess, Reaping, WriteSync,
};
use graviton_engine::port::op::{Driver, wait_for};
use parking_lot::{Condvar, Mutex};

/// Between two looks at whether a thread is at an end.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// What is done with that.
pub trait Between: fmt::Debug + Send + Sync + 'static {
    /// A disk is opened.
    fn opened(&self, _path: &Path) {}

    /// A lock is asked for.
    ///
    /// # Errors
    /// What the backend reports.
    fn lock(
        &self,
        backend: &dyn Backend,
        path: &Path,
        exclusive: bool,
    ) -> Result<Box<dyn Lock>, LockError> {
        backend.lock(path, exclusive)
    }

    /// Something is asked of a disk.
    fn asked(&self) {}

    /// A read is.
    fn read(&self, disk: &Arc<dyn Disk>, buffer: AlignedBuf, offset: u64) -> IoOp {
        disk.read(buffer, offset)
    }

    /// A write is.
    fn write(
        &self,
        disk: &Arc<dyn Disk>,
        buffer: AlignedBuf,
        offset: u64,
        sync: WriteSync,
    ) -> IoOp {
        disk.write(buffer, offset, sync)
    }
}

/// A backend whose disks are those of another.
#[derive(Debug)]
pub struct BetweenBackend<B> {
    beneath: Arc<dyn Backend>,
    between: Arc<B>,
}

impl<B: Between> BetweenBackend<B> {
    /// Puts `between` before a backend.
    pub fn new(beneath: Arc<dyn Backend>, between: &Arc<B>) -> Arc<Self> {
        Arc::new(Self {
            beneath,
            between: Arc::clone(between),
        })
    }

    fn before(&self, beneath: Arc<dyn Disk>) -> Arc<dyn Disk> {
        Arc::new(BetweenDisk {
            beneath,
            between: Arc::clone(&self.between),
        })
    }
}

impl<B: Between> Backend for BetweenBackend<B> {
    fn name(&self) -> &'static str {
        self.beneath.name()
    }

    fn create(&self, path: &Path, size: u64) -> io::Result<Arc<dyn Disk>> {
        let disk = self.beneath.create(path, size)?;
        Ok(self.before(disk))
    }

    fn open(&self, path: &Path, access: OpenAccess) -> io::Result<Arc<dyn Disk>> {
        self.between.opened(path);
        let disk = self.beneath.open(path, access)?;
        Ok(self.before(disk))
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
        self.between.lock(self.beneath.as_ref(), path, exclusive)
    }
}

#[derive(Debug)]
struct BetweenDisk<B> {
    beneath: Arc<dyn Disk>,
    between: Arc<B>,
}

impl<B: Between> Disk for BetweenDisk<B> {
    fn info(&self) -> &DiskInfo {
        self.beneath.info()
    }

    fn size(&self) -> u64 {
        self.beneath.size()
    }

    fn extend(&self, from: u64, to: u64) -> io::Result<()> {
        self.between.asked();
        self.beneath.extend(from, to)
    }

    fn read(&self, buffer: AlignedBuf, offset: u64) -> IoOp {
        self.between.asked();
        self.between.read(&self.beneath, buffer, offset)
    }

    fn write(&self, buffer: AlignedBuf, offset: u64, sync: WriteSync) -> IoOp {
        self.between.asked();
        self.between.write(&self.beneath, buffer, offset, sync)
    }

    fn sync(&self) -> IoOp {
        self.between.asked();
        self.beneath.sync()
    }

    fn driver(&self) -> Option<Arc<dyn Driver>> {
        self.beneath.driver()
    }

    fn reap_in_background(&self) -> Reaping {
        self.beneath.reap_in_background()
    }

    fn unlock(&self) {
        self.beneath.unlock();
    }
}

/// What is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// A read.
    Read,
    /// A write that is not durable by itself.
    Write,
}

/// Keeps one transfer from its disk, so that anything can overtake it.
#[derive(Debug, Default)]
pub struct Held {
    state: Mutex<State>,
    is_held: Condvar,
}

#[derive(Default)]
enum State {
    #[default]
    Nothing,
    /// The one of this kind after so many will be held.
    Expected(Transfer, usize),
    Held(Box<dyn FnOnce() + Send>),
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "Nothing",
            Self::Expected(..) => "Expected",
            Self::Held(_) => "Held",
        })
    }
}

impl Held {
    /// The transfer of this kind after so many others is to be held.
    pub fn expect(&self, kind: Transfer, after: usize) {
        *self.state.lock() = State::Expected(kind, after);
    }

    /// Whether one is.
    pub fn is_held(&self) -> bool {
        matches!(*self.state.lock(), State::Held(_))
    }

    /// Waits until one is, or whoever makes transfers is at an end. Returns whether one is.
    pub fn wait_unless(&self, is_over: impl Fn() -> bool) -> bool {
        let mut state = self.state.lock();
        loop {
            if matches!(*state, State::Held(_)) {
                return true;
            }
            if is_over() {
                return false;
            }
            self.is_held.wait_for(&mut state, LOOK_AGAIN);
        }
    }

    /// Lets it go on now.
    pub fn release(&self) {
        let state = std::mem::take(&mut *self.state.lock());
        if let State::Held(go_on) = state {
            go_on();
        }
    }

    /// The transfer, by `make`: now, or when it is let go on.
    fn transfer(&self, kind: Transfer, make: impl FnOnce() -> IoOp + Send + 'static) -> IoOp {
        let mut state = self.state.lock();
        match &mut *state {
            State::Expected(expected, 0) if *expected == kind => {}
            State::Expected(expected, after) if *expected == kind => {
                *after -= 1;
                return make();
            }
            _ => return make(),
        }
        let (op, completer) = IoOp::pending(None);
        *state = State::Held(Box::new(move || {
            let (buffer, outcome) = wait_for(make());
            completer.complete(buffer, outcome);
        }));
        self.is_held.notify_all();
        op
    }
}

impl Between for Held {
    fn read(&self, disk: &Arc<dyn Disk>, buffer: AlignedBuf, offset: u64) -> IoOp {
        let disk = Arc::clone(disk);
        self.transfer(Transfer::Read, move || disk.read(buffer, offset))
    }

    fn write(
        &self,
        disk: &Arc<dyn Disk>,
        buffer: AlignedBuf,
        offset: u64,
        sync: WriteSync,
    ) -> IoOp {
        if sync == WriteSync::Data {
            return disk.write(buffer, offset, sync);
        }
        let disk = Arc::clone(disk);
        self.transfer(Transfer::Write, move || disk.write(buffer, offset, sync))
    }
}

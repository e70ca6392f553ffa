//! The machine as a [`Backend`]: its files, locks and clock.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::io::Errno;

use super::disk::SimDisk;
use super::fault::{DiskCondition, FaultError, FaultKind};
use super::machine::{Held, Shared, Sim};
use super::medium::Node;
use crate::io::{Backend, Disk, DiskInfo, Lock, LockError, OpenAccess};
use crate::sync::atomic::AtomicU64;

fn absent() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Sim {
    fn disk(&self, number: usize, path: &Path, access: OpenAccess) -> Arc<dyn Disk> {
        let size = self.shared.state.lock().disks[number].medium.size() as u64;
        Arc::new(SimDisk {
            info: DiskInfo {
                path: path.to_owned(),
                backend: self.name(),
                is_device: false,
                direct: true,
                block_size: self.shared.block_size,
                physical_block_size: self.shared.block_size,
            },
            number,
            size: AtomicU64::new(size),
            writable: access == OpenAccess::ReadWrite,
            shared: Arc::clone(&self.shared),
        })
    }
}

impl Backend for Sim {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn create(&self, path: &Path, size: u64) -> io::Result<Arc<dyn Disk>> {
        let size = usize::try_from(size).map_err(io::Error::other)?;
        let number = {
            let mut state = self.shared.state.lock();
            if state.names.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let number = state.disks.len();
            state.faults.check(FaultKind::Create, Some(number))?;
            let number = state.add_disk(size);
            state.name(path.to_owned(), Some(Node::Disk(number)), true);
            number
        };
        Ok(self.disk(number, path, OpenAccess::ReadWrite))
    }

    fn open(&self, path: &Path, access: OpenAccess) -> io::Result<Arc<dyn Disk>> {
        let number = {
            let mut state = self.shared.state.lock();
            let number = match state.names.get(path) {
                Some(Node::Disk(number)) => *number,
                Some(Node::File(_)) => return Err(io::ErrorKind::InvalidInput.into()),
                None => return Err(absent()),
            };
            state.faults.check(FaultKind::Open, Some(number))?;
            match state.disks[number].condition {
                DiskCondition::Well => number,
                DiskCondition::Dead => return Err(FaultError::Io.into()),
                DiskCondition::Absent => return Err(absent()),
                DiskCondition::ReadOnly if access == OpenAccess::ReadOnly => number,
                DiskCondition::ReadOnly => return Err(Errno::ROFS.into()),
            }
        };
        Ok(self.disk(number, path, access))
    }

    fn create_directory(&self, _path: &Path) -> io::Result<()> {
        let faults = &mut self.shared.state.lock().faults;
        faults.check(FaultKind::CreateDirectory, None)
    }

    fn read_file(&self, path: &Path, limit: usize) -> io::Result<Vec<u8>> {
        let mut state = self.shared.state.lock();
        state.faults.check(FaultKind::ReadFile, None)?;
        match state.names.get(path) {
            Some(Node::File(bytes)) if bytes.len() <= limit => Ok(bytes.to_vec()),
            Some(_) => Err(io::ErrorKind::InvalidData.into()),
            None => Err(absent()),
        }
    }

    fn replace_file(&self, path: &Path, contents: &[u8]) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        let outcome = state.faults.check(FaultKind::ReplaceFile, None);
        if outcome.is_ok() || state.random.one_in(2) {
            let node = Node::File(contents.into());
            state.name(path.to_owned(), Some(node), outcome.is_ok());
        }
        outcome
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        let outcome = state.faults.check(FaultKind::RemoveFile, None);
        let there = state.names.contains_key(path);
        if there && (outcome.is_ok() || state.random.one_in(2)) {
            state.name(path.to_owned(), None, outcome.is_ok());
        }
        outcome
    }

    fn random(&self, bytes: &mut [u8]) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        state.faults.check(FaultKind::Random, None)?;
        bytes.copy_from_slice(&state.random.bytes(bytes.len()));
        Ok(())
    }

    fn now(&self) -> SystemTime {
        self.look_at_clock()
    }

    fn lock(&self, path: &Path, exclusive: bool) -> Result<Box<dyn Lock>, LockError> {
        let mut state = self.shared.state.lock();
        state.faults.check(FaultKind::Lock, None)?;
        let held = match (state.locks.get(path), exclusive) {
            (None, true) => Held::Exclusively,
            (None, false) => Held::By(1),
            (Some(Held::By(readers)), false) => Held::By(readers + 1),
            _ => return Err(LockError::Held { owner: None }),
        };
        state.locks.insert(path.to_owned(), held);
        Ok(Box::new(SimLock {
            path: path.to_owned(),
            shared: Arc::clone(&self.shared),
        }))
    }
}

#[derive(Debug)]
struct SimLock {
    path: PathBuf,
    shared: Arc<Shared>,
}

impl Lock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        match state.locks.get_mut(&self.path) {
            Some(Held::By(readers)) if *readers > 1 => *readers -= 1,
            _ => {
                state.locks.remove(&self.path);
            }
        }
    }
}

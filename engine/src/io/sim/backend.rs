//! The machine as a [`Backend`]: its files and locks.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::machine::{Shared, Sim};
use super::medium::Medium;
use crate::io::{Backend, Disk, Lock, OpenAccess};

fn absent() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Backend for Sim {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn create(&self, path: &Path, size: u64) -> io::Result<Arc<dyn Disk>> {
        let number = {
            let mut state = self.shared.state.lock();
            if state.disks.iter().any(|(other, _)| other == path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let medium = Medium::new(usize::try_from(size).map_err(io::Error::other)?);
            state.base.push(medium.clone());
            state.disks.push((path.to_owned(), medium));
            state.disks.len() - 1
        };
        Ok(self.disk(number, path))
    }

    fn open(&self, path: &Path, _access: OpenAccess) -> io::Result<Arc<dyn Disk>> {
        let number = {
            let state = self.shared.state.lock();
            state.disks.iter().position(|(other, _)| other == path)
        };
        Ok(self.disk(number.ok_or_else(absent)?, path))
    }

    fn create_directory(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn read_file(&self, path: &Path, limit: usize) -> io::Result<Vec<u8>> {
        let state = self.shared.state.lock();
        let bytes = state.files.get(path).ok_or_else(absent)?;
        if bytes.len() > limit {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(bytes.clone())
    }

    fn replace_file(&self, path: &Path, contents: &[u8]) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        state.files.insert(path.to_owned(), contents.to_vec());
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        state.files.remove(path);
        // Its number stays taken, for whoever has it open.
        for (disk, _) in &mut state.disks {
            if disk == path {
                *disk = PathBuf::new();
            }
        }
        Ok(())
    }

    fn random(&self, bytes: &mut [u8]) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        bytes.copy_from_slice(&state.random.bytes(bytes.len()));
        Ok(())
    }

    fn lock(&self, path: &Path, _exclusive: bool) -> io::Result<Box<dyn Lock>> {
        if !self.shared.state.lock().locked.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
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
        self.shared.state.lock().locked.remove(&self.path);
    }
}

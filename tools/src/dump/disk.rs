//! [`Disk`]: a sector's file, read past the engine. No lock, no direct I/O, and nothing in the file
//! is believed: what lies past its end is simply not there.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::failure::Failure;

/// Bytes read at once while walking.
const WINDOW: usize = 256 * 1024;
/// The most bytes that one read hands out.
pub const READ_MAX: usize = 1 << 20;
/// Failed reads after which further ones are only counted.
const TROUBLES_MAX: usize = 16;

/// A sector's file.
#[derive(Debug)]
pub struct Disk {
    file: File,
    size: u64,
    window: RefCell<Window>,
    troubles: RefCell<Troubles>,
}

#[derive(Debug, Default)]
struct Window {
    start: u64,
    bytes: Vec<u8>,
}

/// Reads that failed.
#[derive(Debug, Default)]
pub struct Troubles {
    /// The first of them: where, and why.
    pub first: Vec<(u64, String)>,
    /// How many.
    pub count: u64,
}

/// Opens a file for reading if it is one that can be read in place: opening a pipe would wait.
fn open_plain(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let kind = file.metadata()?.file_type();
    if kind.is_file() || kind.is_block_device() {
        Ok(file)
    } else {
        Err(io::Error::other("neither a file nor a block device"))
    }
}

/// The bytes of a small file, of which there may be at most `most`.
pub fn read_small(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_plain(path)?
        .take(most.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("longer than {most} bytes")));
    }
    Ok(bytes)
}

impl Disk {
    /// Opens the file at `path`.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let opened = open_plain(path).and_then(|mut file| {
            // The end of a block device is found by seeking only.
            let size = file.seek(SeekFrom::End(0))?;
            Ok((file, size))
        });
        let (file, size) = opened.map_err(|error| Failure::file("read", path, &error))?;
        Ok(Self {
            file,
            size,
            window: RefCell::default(),
            troubles: RefCell::default(),
        })
    }

    /// Bytes of the file when it was opened.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads anew what was read before.
    pub fn forget(&self) {
        self.window.borrow_mut().bytes.clear();
    }

    /// Takes the reads that failed since the last call.
    pub fn troubles(&self) -> Troubles {
        self.troubles.take()
    }

    /// Up to `length` bytes at `address`, as many as there are.
    pub fn peek(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.clip(address, length)];
        let read = self.fill(address, &mut bytes);
        bytes.truncate(read);
        bytes
    }

    /// Shows up to `length` bytes at `address` to `look`, which must not read by itself. For walks:
    /// what follows is read along.
    pub fn with<T>(&self, address: u64, length: usize, look: impl FnOnce(&[u8]) -> T) -> T {
        let wanted = self.clip(address, length);
        let mut window = self.window.borrow_mut();
        let mut shown = window.get(address, wanted);
        if shown.is_none() {
            window.start = address;
            window
                .bytes
                .resize(self.clip(address, wanted.max(WINDOW)), 0);
            let read = self.fill(address, &mut window.bytes);
            if read < wanted {
                // Perhaps only what would have been read along can't be read.
                window.bytes.resize(wanted, 0);
                let read = self.fill(address, &mut window.bytes);
                window.bytes.truncate(read);
            } else {
                window.bytes.truncate(read);
            }
            shown = window.get(address, wanted.min(window.bytes.len()));
        }
        look(shown.map_or(&[], |range| window.bytes.get(range).unwrap_or(&[])))
    }

    fn clip(&self, address: u64, length: usize) -> usize {
        let left = self.size.saturating_sub(address);
        usize::try_from(left)
            .map_or(length, |left| length.min(left))
            .min(READ_MAX)
    }

    /// Fills `target` from `address` on, as far as possible.
    fn fill(&self, address: u64, target: &mut [u8]) -> usize {
        let mut filled = 0;
        while let Some(rest) = target.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let at = address.saturating_add(filled as u64);
            match self.file.read_at(rest, at) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let mut troubles = self.troubles.borrow_mut();
                    troubles.count += 1;
                    if troubles.first.len() < TROUBLES_MAX {
                        troubles.first.push((at, error.to_string()));
                    }
                    break;
                }
            }
        }
        filled
    }
}

impl Window {
    /// Where in the window the bytes lie, if all of them do.
    fn get(&self, address: u64, length: usize) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(address.checked_sub(self.start)?).ok()?;
        let end = start.checked_add(length)?;
        (end <= self.bytes.len()).then_some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_not_shown() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("sector");
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|at| at.to_le_bytes()[0]).collect();
        std::fs::write(&path, &bytes).expect("written");
        let disk = Disk::open(&path).expect("opens");
        for (address, length, found) in [
            (0, 10, 10),
            (5, WINDOW + 1, WINDOW + 1),
            (999_990, 64, 10),
            (3, 64, 64),
            (1_000_000, 64, 0),
            (u64::MAX, usize::MAX, 0),
            (0, usize::MAX, 1_000_000),
        ] {
            let shown = disk.with(address, length, <[u8]>::to_vec);
            assert_eq!(shown.len(), found, "{length} at {address}");
            assert_eq!(shown, disk.peek(address, length));
            if let Ok(start) = usize::try_from(address)
                && found > 0
            {
                assert_eq!(shown, bytes[start..start + found]);
            }
        }
        assert_eq!(disk.troubles().count, 0);
    }

    #[test]
    fn only_files_are_opened() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(Disk::open(directory.path()).is_err());
        assert!(Disk::open(Path::new("/dev/zero")).is_err());
        assert!(read_small(Path::new("/dev/zero"), 100).is_err());
        let path = directory.path().join("long");
        std::fs::write(&path, [0; 101]).expect("written");
        assert!(read_small(&path, 100).is_err());
        assert_eq!(read_small(&path, 101).expect("fits").len(), 101);
    }
}

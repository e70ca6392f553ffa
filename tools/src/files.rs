//! Files as they are read and made: what is remembered of one, and new ones that appear only when
//! they are complete.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use graviton_engine::port::Attributes;
use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags, RenameFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::failure::Failure;

/// Attribute: the file's time of modification, nanoseconds since 1970, in decimal.
const MTIME: &str = "mtime";
/// Attribute: the file's time of change, likewise; absent if it was too fresh to be trusted.
const CTIME: &str = "ctime";
/// Attribute: the file's permission bits, in octal.
const MODE: &str = "mode";

/// Every attribute of a file.
#[cfg(feature = "testing")]
pub const KEPT: [&str; 3] = [MTIME, CTIME, MODE];

/// File systems stamp times with the tick of a coarse clock: a file can change twice within one
/// tick. A stamp this much older than the moment of reading can't be hit by that.
const FRESH: Duration = Duration::from_secs(2);

/// What tells one state of a file from another without reading it. The time of change is what
/// makes it trustworthy: programs can set back the time of modification, but not that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Its size in bytes.
    pub size: u64,
    /// Nanoseconds since 1970.
    mtime: i128,
    /// Nanoseconds since 1970.
    ctime: i128,
    mode: u32,
}

impl Stamp {
    /// The stamp of an open regular file; `None` if it is not one.
    pub fn of(file: &File) -> io::Result<Option<Self>> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Ok(None);
        }
        let nanoseconds =
            |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Ok(Some(Self {
            size: metadata.len(),
            mtime: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            ctime: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
            mode: metadata.mode() & 0o777,
        }))
    }

    /// What is kept with the blob of a file that was read at `read_at`.
    pub fn attributes(&self, read_at: SystemTime) -> Attributes {
        let mut attributes = Attributes::new();
        attributes.insert(MTIME.to_owned(), self.mtime.to_string().into());
        attributes.insert(MODE.to_owned(), format!("{:o}", self.mode).into());
        let now = read_at
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos());
        let settled = self
            .mtime
            .max(self.ctime)
            .saturating_add_unsigned(FRESH.as_nanos());
        if i128::try_from(now).is_ok_and(|now| settled < now) {
            attributes.insert(CTIME.to_owned(), self.ctime.to_string().into());
        }
        attributes
    }

    /// Whether a blob with these attributes, of this file's size, has this file's content for
    /// sure. If not, only reading both tells.
    pub fn is_recorded_in(&self, attributes: &Attributes) -> bool {
        number(attributes, MTIME) == Some(self.mtime)
            && number(attributes, CTIME) == Some(self.ctime)
    }

    /// Whether these attributes give a file that is written out the mode and time of this one.
    pub fn is_restored_by(&self, attributes: &Attributes) -> bool {
        let restored = Restored::from_attributes(attributes);
        restored.mode == Some(self.mode) && restored.mtime == Some(self.mtime)
    }
}

fn number(attributes: &Attributes, name: &str) -> Option<i128> {
    std::str::from_utf8(attributes.get(name)?)
        .ok()?
        .parse()
        .ok()
}

/// What a file that is written out is given of what was kept with its blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// Permission bits, before the umask, if any were kept.
    pub mode: Option<u32>,
    /// Time of modification, nanoseconds since 1970.
    pub mtime: Option<i128>,
}

impl Restored {
    /// Reads what was kept. Attributes are anybody's: nonsense is ignored, and only plain
    /// permission bits are taken.
    pub fn from_attributes(attributes: &Attributes) -> Self {
        let mode = attributes
            .get(MODE)
            .and_then(|mode| std::str::from_utf8(mode).ok())
            .and_then(|mode| u32::from_str_radix(mode, 8).ok());
        Self {
            mode: mode.map(|mode| mode & 0o777),
            mtime: number(attributes, MTIME),
        }
    }

    /// The permission bits that a new file is made with, before the umask.
    pub fn creation_mode(&self) -> u32 {
        self.mode.unwrap_or(0o666)
    }

    /// Sets the time; one that the file system can't keep is left.
    pub fn set_time(&self, file: &File) {
        let Some(mtime) = self.mtime else { return };
        let (Ok(tv_sec), Ok(tv_nsec)) = (
            i64::try_from(mtime.div_euclid(1_000_000_000)),
            mtime.rem_euclid(1_000_000_000).try_into(),
        ) else {
            return;
        };
        let times = Timestamps {
            last_access: Timespec {
                tv_sec: 0,
                tv_nsec: fs::UTIME_OMIT,
            },
            last_modification: Timespec { tv_sec, tv_nsec },
        };
        // Times are a courtesy; content is the promise.
        let _ = fs::futimens(file, &times);
    }
}

/// Reads `file` to its end; an error if it is not exactly `size` bytes.
pub fn read_exactly(file: &mut File, size: u64) -> io::Result<Bytes> {
    let mut payload = Vec::with_capacity(usize::try_from(size).unwrap_or(0).saturating_add(1));
    file.take(size.saturating_add(1))
        .read_to_end(&mut payload)?;
    if u64::try_from(payload.len()).ok() != Some(size) {
        return Err(io::Error::other("it changed while it was read"));
    }
    Ok(payload.into())
}

/// A file under a temporary name. It takes its name once it is complete; dropped before, it is
/// gone.
#[derive(Debug)]
pub struct NewFile<'a> {
    directory: BorrowedFd<'a>,
    name: String,
    /// To be written.
    pub file: File,
    placed: bool,
}

impl<'a> NewFile<'a> {
    /// Makes a file in `directory`, exclusively; `mode` is subject to the umask.
    pub fn create(directory: BorrowedFd<'a>, mode: u32) -> Result<Self, Errno> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        loop {
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let name = format!(".graviton-{}-{number}.tmp", std::process::id());
            match fs::openat(directory, &name, flags, Mode::from_raw_mode(mode)) {
                Ok(descriptor) => {
                    // Says that somebody is at it, wherever process ids can't: in other
                    // containers, on other hosts. Not every file system can.
                    let _ = fs::flock(&descriptor, FlockOperation::NonBlockingLockExclusive);
                    return Ok(Self {
                        directory,
                        name,
                        file: descriptor.into(),
                        placed: false,
                    });
                }
                // Left behind by a killed process that had this id.
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives it its name; what has that name (no directory) is replaced.
    pub fn replace(mut self, name: &[u8]) -> Result<(), Errno> {
        // Nothing to do if it was asked to have the name it has.
        if name != self.name.as_bytes() {
            fs::renameat(self.directory, self.name.as_str(), self.directory, name)?;
        }
        self.placed = true;
        Ok(())
    }

    /// Gives it its name, if nothing has that name; else fails with `EXIST`, and can be tried again.
    pub fn place(&mut self, name: &[u8]) -> Result<(), Errno> {
        let from = self.name.as_str();
        let at = self.directory;
        if name == from.as_bytes() {
            self.placed = true;
            return Ok(());
        }
        match fs::renameat_with(at, from, at, name, RenameFlags::NOREPLACE) {
            // Not every file system can. The name is taken with an empty file first then, as
            // exclusively, and that is replaced.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                fs::openat(at, name, flags, Mode::from_raw_mode(0o600))?;
                fs::renameat(at, from, at, name)?;
            }
            outcome => outcome?,
        }
        self.placed = true;
        Ok(())
    }
}

/// The process that made a temporary file of this name, if it is the name of one.
pub fn maker(name: &[u8]) -> Option<i32> {
    let name = std::str::from_utf8(name).ok()?;
    let numbers = name.strip_prefix(".graviton-")?.strip_suffix(".tmp")?;
    let (process, number) = numbers.split_once('-')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(process) && digits(number))
        .then(|| process.parse().ok())
        .flatten()
}

/// Whether this is the name of a file that is being written, or was when its process was killed.
pub fn is_temporary(name: &[u8]) -> bool {
    maker(name).is_some()
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if !self.placed {
            // Nothing better can be done about a failure here.
            let _ = fs::unlinkat(self.directory, self.name.as_str(), AtFlags::empty());
        }
    }
}

/// Writes the file at `path` by way of `write`: it appears, or is replaced, only once it is
/// complete and on disk; and that it did is on disk in the end. Devices and pipes are written to directly.
pub fn replace_file<T>(
    path: &Path,
    write: impl FnOnce(&mut File) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::file("write", path, error);
    let mut target: PathBuf = path.to_owned();
    let mut existing_mode = None;
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => return Err(failed(&"it is a directory")),
        Ok(metadata) if metadata.is_file() => {
            existing_mode = Some(metadata.permissions().mode() & 0o777);
            // Through a symbolic link, the file it names is replaced, not the link.
            target = std::fs::canonicalize(path).map_err(|error| failed(&error))?;
        }
        Ok(metadata) if metadata.file_type().is_socket() => {
            return Err(failed(&"it is a socket"));
        }
        Ok(_) => {
            let mut file = File::options()
                .write(true)
                .open(path)
                .map_err(|error| failed(&error))?;
            return write(&mut file);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(&error)),
    }
    let Some(name) = target.file_name() else {
        return Err(failed(&"it names no file"));
    };
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory: OwnedFd =
        fs::open(parent, flags, Mode::empty()).map_err(|error| failed(&error))?;
    let mut new = NewFile::create(directory.as_fd(), existing_mode.unwrap_or(0o666))
        .map_err(|error| failed(&error))?;
    let value = write(&mut new.file)?;
    new.file.sync_all().map_err(|error| failed(&error))?;
    new.replace(name.as_bytes())
        .map_err(|error| failed(&error))?;
    match fs::fsync(&directory) {
        // Not every file system has its directories synced.
        Ok(()) | Err(Errno::INVAL) => Ok(value),
        Err(error) => Err(failed(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::symlink;

    #[test]
    fn fresh_times_are_not_trusted() {
        let second = 1_000_000_000;
        let stamp = Stamp {
            size: 5,
            mtime: 100 * second,
            ctime: 200 * second,
            mode: 0o644,
        };
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert!(stamp.is_recorded_in(&stamp.attributes(at(300))));
        assert!(!stamp.is_recorded_in(&stamp.attributes(at(201))));
        assert!(!stamp.is_recorded_in(&stamp.attributes(at(50))));
        let changed = Stamp {
            ctime: 201 * second,
            ..stamp
        };
        assert!(!changed.is_recorded_in(&stamp.attributes(at(300))));
        assert!(!stamp.is_recorded_in(&Attributes::new()));
    }

    #[test]
    fn restored_attributes_are_tame() {
        let with = |name: &str, value: &'static [u8]| {
            let mut attributes = Attributes::new();
            attributes.insert(name.to_owned(), Bytes::from_static(value));
            Restored::from_attributes(&attributes)
        };
        assert_eq!(with(MODE, b"755").mode, Some(0o755));
        assert_eq!(with(MODE, b"6755").mode, Some(0o755));
        assert_eq!(with(MODE, b"rwx").mode, None);
        assert_eq!(with(MODE, b"rwx").creation_mode(), 0o666);
        assert_eq!(with(MTIME, b"-1").mtime, Some(-1));
        assert_eq!(with(MTIME, b"\xff").mtime, None);
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(directory)
            .expect("listed")
            .map(|entry| entry.expect("read").file_name().to_string_lossy().into())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_only_when_complete() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        let failed: Result<(), Failure> = replace_file(&path, |file| {
            file.write_all(b"half").expect("written");
            Err(Failure::failed("broken off"))
        });
        assert!(failed.is_err());
        assert!(names(directory.path()).is_empty());
        replace_file(&path, |file| {
            file.write_all(b"whole").expect("written");
            Ok(())
        })
        .expect("done");
        assert_eq!(names(directory.path()), ["file"]);
        // Through a link the file is replaced, and the link stays.
        symlink("file", directory.path().join("link")).expect("linked");
        replace_file(&directory.path().join("link"), |file| {
            file.write_all(b"new").expect("written");
            Ok(())
        })
        .expect("done");
        assert_eq!(std::fs::read(&path).expect("read"), b"new");
        assert!(directory.path().join("link").is_symlink());
        assert!(replace_file(directory.path(), |_| Ok(())).is_err());
        assert!(replace_file(Path::new("/dev/null"), |_| Ok(())).is_ok());
    }

    #[test]
    fn placing_is_exclusive() {
        let directory = tempfile::tempdir().expect("a directory");
        let open = File::open(directory.path()).expect("opened");
        std::fs::write(directory.path().join("taken"), b"old").expect("written");
        let mut new = NewFile::create(open.as_fd(), 0o600).expect("made");
        assert_eq!(new.place(b"taken"), Err(Errno::EXIST));
        assert_eq!(new.place(b"free"), Ok(()));
        drop(new);
        assert_eq!(names(directory.path()), ["free", "taken"]);
        assert_eq!(
            std::fs::read(directory.path().join("taken")).expect("read"),
            b"old"
        );
    }
}

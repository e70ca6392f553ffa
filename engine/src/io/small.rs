//! The small files beside the sectors: directories, atomic replacement, locks.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use super::disk::{Lock, LockError};

/// How often a lock is tried anew when its file is replaced under our hands, and a temporary
/// name when it is taken.
const ATTEMPTS_MAX: u32 = 16;
/// How long a lock is waited for whose owner is dead: a ring can hold its files a moment longer.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// The directory that holds `path`'s name.
fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        Some(_) => Path::new("."),
        None => Path::new("/"),
    }
}

/// Makes what was created, renamed or removed beside `path` durable.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(parent_of(path))?.sync_all()
}

pub(super) fn create_directory(path: &Path) -> io::Result<()> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    if parent != Path::new("") {
        create_directory(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {
            // Whatever the umask left of it.
            fs::set_permissions(path, Permissions::from_mode(0o700))?;
            sync_parent(path)
        }
        // Who made it may not have come to sync its name. What can't be synced was not made by whoever calls: a
        // directory that can't be read, or is of the system.
        Err(_) if path.is_dir() => sync_parent(path).or_else(|error| match error.kind() {
            io::ErrorKind::PermissionDenied
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::ReadOnlyFilesystem => Ok(()),
            _ => Err(error),
        }),
        Err(error) => Err(error),
    }
}

pub(super) fn read_file(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    // Without NONBLOCK, opening a pipe would block.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let file = File::from(open(path, flags, Mode::empty())?);
    check_is_file(&file, path)?;
    let mut contents = Vec::new();
    file.take((limit as u64).saturating_add(1))
        .read_to_end(&mut contents)?;
    if contents.len() > limit {
        let message = format!("{} is larger than {limit} bytes", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(contents)
}

fn check_is_file(file: &File, path: &Path) -> io::Result<()> {
    if file.metadata()?.is_file() {
        return Ok(());
    }
    let message = format!("{} is not a regular file", path.display());
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}

pub(super) fn replace_file(path: &Path, contents: &[u8]) -> io::Result<()> {
    let (temporary, file) = create_temporary(path)?;
    write_whole(file, contents)
        .and_then(|()| fs::rename(&temporary, path))
        .inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })?;
    sync_parent(path)
}

fn write_whole(mut file: File, contents: &[u8]) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(contents)?;
    file.sync_all()
}

/// Creates a file beside `path`, in the place of one that a crash has left. Whoever replaces a file holds the store's
/// lock.
fn create_temporary(path: &Path) -> io::Result<(PathBuf, File)> {
    let name = path.file_name().ok_or_else(|| {
        let message = format!("{} names no file", path.display());
        io::Error::new(io::ErrorKind::InvalidInput, message)
    })?;
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(".tmp");
    let temporary = parent_of(path).join(temporary);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for _ in 0..ATTEMPTS_MAX {
        match open(&temporary, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => return Ok((temporary, File::from(file))),
            Err(Errno::EXIST) => fs::remove_file(&temporary)?,
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(Errno::EXIST.into())
}

/// Fills `bytes`, which are few: such requests are never answered in part.
pub(super) fn random(bytes: &mut [u8]) -> io::Result<()> {
    getrandom(bytes, GetRandomFlags::empty())?;
    Ok(())
}

pub(super) fn remove_file(path: &Path) -> io::Result<()> {
    // No name of a device is ours, whatever a store file or a note says.
    if fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device()) {
        return Ok(());
    }
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// A lock by `flock`, which the kernel gives back when the last descriptor of it is closed: also
/// when the process dies.
#[derive(Debug)]
struct FileLock {
    file: File,
    exclusive: bool,
}

impl Lock for FileLock {}

impl Drop for FileLock {
    fn drop(&mut self) {
        if self.exclusive {
            // Still under the lock: a later shared holder must not be taken for this process.
            let _ = self.file.set_len(0);
        }
    }
}

/// Whether a process is gone, or a zombie: killed, but not yet waited for by its parent.
fn is_dead(process: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{process}/stat")) else {
        return !Path::new(&format!("/proc/{process}")).exists();
    };
    // The state follows the name, which is in parentheses and may contain any.
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
    state.is_some_and(|state| state.starts_with(['Z', 'X']))
}

/// Takes a lock. A living owner is reported at once, a dead one is outwaited.
pub(super) fn lock_patiently(path: &Path, exclusive: bool) -> Result<Box<dyn Lock>, LockError> {
    let begun = Instant::now();
    loop {
        let owner = match lock(path, exclusive) {
            Err(LockError::Held { owner }) => owner,
            result => return result,
        };
        let dead = owner.is_none_or(|owner| owner != std::process::id() && is_dead(owner));
        if !dead || begun.elapsed() > LOCK_PATIENCE {
            let owner = owner.filter(|_| !dead);
            return Err(LockError::Held { owner });
        }
        std::thread::sleep(LOCK_RETRY);
    }
}

fn lock(path: &Path, exclusive: bool) -> Result<Box<dyn Lock>, LockError> {
    for _ in 0..ATTEMPTS_MAX {
        let file = open_lock_file(path, exclusive)?;
        check_is_file(&file, path)?;
        let operation = if exclusive {
            FlockOperation::NonBlockingLockExclusive
        } else {
            FlockOperation::NonBlockingLockShared
        };
        match flock(&file, operation) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(is_held(&file)),
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
        // A lock on a file that no longer bears the name excludes nobody.
        if !bears_name(&file, path)? {
            continue;
        }
        if exclusive {
            // For messages only: on a full file system the lock does without.
            let owner = std::process::id().to_string();
            let _ = file
                .set_len(0)
                .and_then(|()| file.write_all_at(owner.as_bytes(), 0));
        }
        return Ok(Box::new(FileLock { file, exclusive }));
    }
    let message = format!("{} is replaced over and over", path.display());
    Err(io::Error::other(message).into())
}

fn open_lock_file(path: &Path, exclusive: bool) -> io::Result<File> {
    let flags = OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::NONBLOCK;
    let mode = Mode::RUSR | Mode::WUSR;
    match open(path, flags | OFlags::RDWR | OFlags::CREATE, mode) {
        // A store on a read-only medium may still be shared.
        Err(Errno::ROFS | Errno::ACCESS) if !exclusive => {
            Ok(open(path, flags | OFlags::RDONLY, mode)?.into())
        }
        result => Ok(result?.into()),
    }
}

fn bears_name(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The error of the loser, which names the owner if it left its number.
fn is_held(file: &File) -> LockError {
    let mut owner = [0; 16];
    let len = file.read_at(&mut owner, 0).unwrap_or(0);
    let owner = std::str::from_utf8(&owner[..len])
        .ok()
        .and_then(|text| text.trim().parse::<u32>().ok());
    LockError::Held { owner }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode_of(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn kind<T>(result: io::Result<T>) -> io::ErrorKind {
        result.map(drop).expect_err("it should fail").kind()
    }

    #[test]
    fn an_exclusive_lock_excludes_all_and_names_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = lock(&path, true).unwrap();
        assert_eq!(mode_of(&path), 0o600);
        for exclusive in [true, false] {
            let error = lock(&path, exclusive).map(drop).unwrap_err();
            let owner = format!("process {}", std::process::id());
            assert!(error.to_string().contains(&owner), "{error}");
        }
        drop(held);
        lock(&path, true).unwrap();
    }

    #[test]
    fn shared_locks_exclude_only_exclusive_ones() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        drop(lock(&path, true).unwrap());
        let (first, second) = (lock(&path, false).unwrap(), lock(&path, false).unwrap());
        let error = lock(&path, true).map(drop).unwrap_err();
        assert!(error.to_string().contains("another process"), "{error}");
        drop((first, second));
        lock(&path, true).unwrap();
    }

    #[test]
    fn a_dead_owner_is_outwaited() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = lock(&path, true).unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        fs::write(&path, child.id().to_string()).unwrap();
        let waiting = std::thread::scope(|scope| {
            let waiter = scope.spawn(|| lock_patiently(&path, true).map(drop));
            drop(held);
            waiter.join().unwrap()
        });
        waiting.unwrap();
        // A living one is not.
        let _held = lock(&path, true).unwrap();
        let error = lock_patiently(&path, true).map(drop).unwrap_err();
        let own = std::process::id();
        assert!(matches!(error, LockError::Held { owner: Some(owner) } if owner == own));
    }

    #[test]
    fn the_loser_does_not_touch_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = lock(&path, true).unwrap();
        let before = fs::read(&path).unwrap();
        let _ = lock(&path, true);
        assert_eq!(fs::read(&path).unwrap(), before);
        drop(held);
    }

    #[test]
    fn a_lock_follows_no_symlink() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        fs::write(&target, "precious").unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        lock(&link, true).map(drop).unwrap_err();
        assert_eq!(fs::read(&target).unwrap(), b"precious");
    }

    #[test]
    fn threads_that_race_for_a_lock_never_share_it() {
        use std::sync::atomic::{AtomicU32, Ordering};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let (holders, won) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        if let Ok(held) = lock(&path, true) {
                            assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                            won.fetch_add(1, Ordering::SeqCst);
                            holders.fetch_sub(1, Ordering::SeqCst);
                            drop(held);
                        }
                    }
                });
            }
        });
        assert!(won.load(Ordering::SeqCst) > 0);
    }

    #[test]
    fn replacing_leaves_the_new_contents_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        replace_file(&path, b"first").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        replace_file(&path, b"second").unwrap();
        assert_eq!(read_file(&path, 6).unwrap(), b"second");
        assert_eq!(mode_of(&path), 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_replacement_leaves_the_old_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("occupied");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), "x").unwrap();
        replace_file(&path, b"new").unwrap_err();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert_eq!(fs::read(path.join("inside")).unwrap(), b"x");
    }

    #[test]
    fn a_reader_sees_the_old_or_the_new_contents() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let contents = [vec![b'a'; 10_000], vec![b'b'; 20_000]];
        replace_file(&path, &contents[0]).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for turn in 0..50 {
                    replace_file(&path, &contents[turn % 2]).unwrap();
                }
            });
            while !writer.is_finished() {
                assert!(contents.contains(&read_file(&path, 20_000).unwrap()));
            }
        });
    }

    #[test]
    fn reading_respects_its_limit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read_file(&path, 5).unwrap(), b"12345");
        assert_eq!(kind(read_file(&path, 4)), io::ErrorKind::InvalidData);
        let directory = directory.path();
        assert_eq!(kind(read_file(directory, 4)), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn directories_are_private_and_may_exist() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        create_directory(&path).unwrap();
        create_directory(&path).unwrap();
        assert_eq!(mode_of(&path), 0o700);
        assert_eq!(mode_of(&directory.path().join("a")), 0o700);
        fs::write(path.join("file"), "").unwrap();
        create_directory(&path.join("file")).unwrap_err();
    }

    #[test]
    fn removing_what_is_not_there_is_fine() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "").unwrap();
        remove_file(&path).unwrap();
        remove_file(&path).unwrap();
        assert!(!path.exists());
    }
}

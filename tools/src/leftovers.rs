//! What is left of files that were being written when their process was killed.

use std::fs::File;
use std::os::fd::BorrowedFd;

use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, getpid, test_kill_process};

use crate::files::maker;
use crate::tree::names_in;

/// Removes the temporary files that processes left in `directory` when they were killed. Returns
/// how many; what can't be removed is left. Nothing of this process's own may be there.
pub fn remove_leftovers(directory: BorrowedFd<'_>) -> u64 {
    let mut removed = 0;
    for name in names_in(directory).unwrap_or_default() {
        let Some(process) = maker(&name) else {
            continue;
        };
        if !is_running(process) && is_forsaken(directory, &name) {
            let gone = fs::unlinkat(directory, name.as_slice(), AtFlags::empty());
            removed += u64::from(gone.is_ok());
        }
    }
    removed
}

fn is_running(process: i32) -> bool {
    // A process that has this id now is this one: an earlier one had it when it made the file.
    let Some(process) = Pid::from_raw(process).filter(|&process| process != getpid()) else {
        return false;
    };
    test_kill_process(process) != Err(Errno::SRCH)
}

/// Whether nobody holds the lock that a regular file is written under.
fn is_forsaken(directory: BorrowedFd<'_>, name: &[u8]) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = fs::openat(directory, name, flags, Mode::empty()).map(File::from) else {
        return false;
    };
    let regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
    let held = fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    regular && held != Err(Errno::WOULDBLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    use crate::files::NewFile;

    #[test]
    fn only_what_the_dead_left_is_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut dead = std::process::Command::new("true").spawn().expect("started");
        let alive = std::os::unix::process::parent_id();
        dead.wait().expect("ended");
        let dead = dead.id();
        let (gone, kept) = (
            [
                format!(".graviton-{dead}-0.tmp"),
                format!(".graviton-{}-7.tmp", std::process::id()),
            ],
            [
                format!(".graviton-{alive}-0.tmp"),
                format!(".graviton-{dead}-.tmp"),
                format!(".graviton-{dead}-0.tmp2"),
                format!("graviton-{dead}-0.tmp"),
                format!(".graviton-{dead}-1.tmp"),
            ],
        );
        for name in gone.iter().chain(&kept) {
            std::fs::write(directory.path().join(name), b"part").expect("written");
        }
        // Its maker is not to be seen from here, but holds it.
        let held = File::open(directory.path().join(&kept[4])).expect("opened");
        fs::flock(&held, FlockOperation::NonBlockingLockExclusive).expect("locked");
        let linked = format!(".graviton-{dead}-2.tmp");
        std::os::unix::fs::symlink("elsewhere", directory.path().join(&linked)).expect("linked");

        let open = File::open(directory.path()).expect("opened");
        assert_eq!(remove_leftovers(open.as_fd()), 2);
        let mut expected: Vec<_> = kept.into_iter().chain([linked]).collect();
        expected.sort();
        let names = names_in(&open).expect("listed");
        let names: Vec<_> = names
            .iter()
            .map(|name| String::from_utf8_lossy(name))
            .collect();
        assert_eq!(names, expected);
    }

    #[test]
    fn a_file_that_is_being_written_is_held() {
        let directory = tempfile::tempdir().expect("a directory");
        let open = File::open(directory.path()).expect("opened");
        let new = NewFile::create(open.as_fd(), 0o600).expect("made");
        assert_eq!(remove_leftovers(open.as_fd()), 0);
        drop(new);
        assert!(names_in(&open).expect("listed").is_empty());
    }
}

//! [`Root`]: a directory that nothing opened through it can leave.
//!
//! Where the kernel has `openat2`, it resolves a relative path in one call and refuses symbolic
//! links, `..` and anything else that leads out. Elsewhere (old kernels, strict container profiles)
//! each component is opened by itself with `O_NOFOLLOW`, below the one before it. Either way a
//! directory that is swapped for a symbolic link in the meantime is refused, not followed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// The longest name of a file that file systems here take.
const NAME_MAX_LEN: usize = 255;

/// A directory, and the way to everything below it.
#[derive(Debug)]
pub struct Root {
    directory: OwnedFd,
}

impl Root {
    /// Opens the directory at `path`, which may itself be reached through symbolic links.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            directory: fs::open(path, flags, Mode::empty())?,
        })
    }

    /// The directory itself.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Opens what lies at `relative`, never through a symbolic link.
    pub fn open_at(&self, relative: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if relative.is_empty() {
            return fs::openat(&self.directory, c".", flags, Mode::empty());
        }
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match fs::openat2(&self.directory, relative, flags, Mode::empty(), resolve) {
            // Unknown to the kernel, forbidden by a profile, or disturbed by a rename: the other
            // way gives the answer, or the true error.
            Err(Errno::NOSYS | Errno::PERM | Errno::AGAIN | Errno::INVAL) => {
                self.open_by_components(relative, flags)
            }
            outcome => outcome,
        }
    }

    fn open_by_components(&self, relative: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        if check_relative(relative).is_err() {
            return Err(Errno::INVAL);
        }
        let mut components = relative.split(|&byte| byte == b'/').peekable();
        let mut directory: Option<OwnedFd> = None;
        while let Some(component) = components.next() {
            let at = directory.as_ref().unwrap_or(&self.directory);
            if components.peek().is_none() {
                return fs::openat(at, component, flags, Mode::empty());
            }
            directory = Some(fs::openat(at, component, DIRECTORY, Mode::empty())?);
        }
        Err(Errno::INVAL)
    }

    /// Opens the directory at `relative`.
    pub fn directory(&self, relative: &[u8]) -> Result<OwnedFd, Errno> {
        self.open_at(relative, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Opens the directory at `relative`; it and those above it are made where they are absent.
    pub fn make_directory(&self, relative: &[u8]) -> Result<OwnedFd, Errno> {
        match self.directory(relative) {
            Err(Errno::NOENT) => {}
            outcome => return outcome,
        }
        let mut directory: Option<OwnedFd> = None;
        for component in relative.split(|&byte| byte == b'/') {
            let at = directory.as_ref().unwrap_or(&self.directory);
            let opened = match fs::openat(at, component, DIRECTORY, Mode::empty()) {
                Err(Errno::NOENT) => {
                    match fs::mkdirat(at, component, Mode::from_raw_mode(0o777)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(error),
                    }
                    fs::openat(at, component, DIRECTORY, Mode::empty())
                }
                outcome => outcome,
            };
            directory = Some(opened?);
        }
        directory.ok_or(Errno::INVAL)
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Whether `path` names a file below a directory, and can only name one there; if not, why.
pub fn check_relative(path: &[u8]) -> Result<(), &'static str> {
    if path.is_empty() {
        return Err("it is empty");
    }
    if path.contains(&0) {
        return Err("it contains a NUL byte");
    }
    if path.starts_with(b"/") {
        return Err("it begins with '/'");
    }
    for component in path.split(|&byte| byte == b'/') {
        match component {
            b"" => return Err("it has an empty component ('//' or a '/' at the end)"),
            b"." => return Err("it has a component '.'"),
            b".." => return Err("it has a component '..'"),
            name if name.len() > NAME_MAX_LEN => {
                return Err("it has a component of more than 255 bytes");
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_plain_relative_paths_pass() {
        for good in [
            b"a".as_slice(),
            b"a/b/c",
            b"...",
            b"..a/b..",
            b".hidden",
            b"-rf",
            b"a b\n\xff",
            &[b'x'; 255],
        ] {
            assert_eq!(check_relative(good), Ok(()), "{good:?}");
        }
        for bad in [
            b"".as_slice(),
            b"/",
            b"/etc/passwd",
            b"//a",
            b"a//b",
            b"a/",
            b".",
            b"./a",
            b"a/./b",
            b"a/.",
            b"..",
            b"../a",
            b"a/../b",
            b"a/..",
            b"a\0b",
            b"\0",
            &[b'x'; 256],
        ] {
            assert!(check_relative(bad).is_err(), "{bad:?}");
        }
    }

    /// A root with a file, a directory, and links that lead out.
    fn tree() -> (tempfile::TempDir, Root) {
        let outer = tempfile::tempdir().expect("a directory");
        let inner = outer.path().join("root");
        std::fs::create_dir_all(inner.join("sub/deep")).expect("made");
        std::fs::write(inner.join("sub/deep/file"), b"in").expect("written");
        std::fs::write(outer.path().join("secret"), b"out").expect("written");
        symlink(outer.path(), inner.join("up")).expect("linked");
        symlink("../secret", inner.join("leak")).expect("linked");
        symlink("sub", inner.join("inside")).expect("linked");
        let root = Root::open(&inner).expect("opened");
        (outer, root)
    }

    #[test]
    fn nothing_leads_out_either_way() {
        let (_outer, root) = tree();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for bad in [
            b"up/secret".as_slice(),
            b"leak",
            b"../secret",
            b"sub/../../secret",
            b"inside/deep/file",
        ] {
            assert!(root.open_at(bad, flags).is_err(), "{bad:?}");
            assert!(root.open_by_components(bad, flags).is_err(), "{bad:?}");
        }
        assert!(root.open_at(b"sub/deep/file", flags).is_ok());
        assert!(root.open_by_components(b"sub/deep/file", flags).is_ok());
    }

    #[test]
    fn directories_are_made_inside_only() {
        let (outer, root) = tree();
        assert!(root.make_directory(b"new/and/deep").is_ok());
        assert!(root.make_directory(b"sub/deep/more").is_ok());
        assert!(outer.path().join("root/new/and/deep").is_dir());
        for bad in [
            b"up/new".as_slice(),
            b"inside/new",
            b"sub/deep/file/new",
            b"leak/new",
        ] {
            assert!(root.make_directory(bad).is_err(), "{bad:?}");
        }
        assert!(!outer.path().join("new").exists());
        assert!(!outer.path().join("root/sub/new").exists());
    }
}

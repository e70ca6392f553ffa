//! [`Target`]: the directory that an export writes to, and never leaves.
//!
//! Directories are opened below the root without following links ([`Root`]). A file is written
//! under a temporary name and takes its own only if nothing has that name, so that no existing
//! file, no other key's file (a file system that folds case makes `A` and `a` one) and no link is
//! ever written through.

use std::collections::HashSet;
use std::fs::{File, Permissions};
use std::io::{self, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::beneath::Root;
use crate::cli::ExportArgs;
use crate::failure::Failure;
use crate::files::{NewFile, Restored};
use crate::leftovers::remove_leftovers;
use crate::session::Session;
use crate::transfer::read_piece;
use crate::tree::Identity;

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// It is new.
    Written,
    /// It was there with the same content.
    Identical,
    /// It was there with the same content, and was given its mode.
    ModeSet,
}

/// Something said about the blob at hand.
pub type About<'a> = &'a dyn Fn(&dyn std::fmt::Display) -> Failure;

/// The directory that is written to.
pub struct Target {
    root: Root,
    overwrite: bool,
    /// Where the store itself lies in it, if it does: nothing is written there.
    store: Option<Vec<u8>>,
    /// The directory the last file went to: keys come in order, so the next mostly goes there too.
    last: Option<(Vec<u8>, OwnedFd)>,
    /// Time of change of the first file that was written: what is not older was written by this
    /// export, and is not overwritten by it.
    began: Option<(i64, i64)>,
    /// Directories that were rid of what interrupted exports left in them.
    cleaned: HashSet<Identity>,
    /// How many files that were.
    pub leftovers: u64,
}

impl Target {
    /// Opens the directory that `args` name, made if absent.
    pub fn open(session: &Session, args: &ExportArgs) -> Result<Self, Failure> {
        let path = &args.directory;
        let canonical = |path: &Path| {
            std::fs::canonicalize(path).map_err(|error| Failure::file("look at", path, &error))
        };
        let store = canonical(&session.global.store)?;
        let refuse_store = |target: &Path| {
            if target.starts_with(&store) {
                let why = "it lies in the store's own directory";
                return Err(Failure::file("export to", path, why));
            }
            Ok(())
        };
        // Once before anything is made, and once more for where it really is.
        let absolute =
            std::path::absolute(path).map_err(|error| Failure::file("look at", path, &error))?;
        if let Some(nearest) = absolute.ancestors().find_map(|path| canonical(path).ok()) {
            refuse_store(&nearest)?;
        }
        std::fs::create_dir_all(path).map_err(|error| Failure::file("make", path, &error))?;
        let root = Root::open(path).map_err(|error| Failure::file("open", path, &error))?;
        let target = canonical(path)?;
        refuse_store(&target)?;
        let store = store
            .strip_prefix(&target)
            .ok()
            .map(|relative| relative.as_os_str().as_bytes().to_vec());
        Ok(Self::new(root, store, args.overwrite))
    }

    fn new(root: Root, store: Option<Vec<u8>>, overwrite: bool) -> Self {
        Self {
            root,
            overwrite,
            store,
            last: None,
            began: None,
            cleaned: HashSet::new(),
            leftovers: 0,
        }
    }

    /// The directory itself.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Whether `path` leads into the store's own directory, or stands in its place.
    fn is_in_store(&self, path: &[u8]) -> bool {
        self.store
            .as_deref()
            .and_then(|store| path.strip_prefix(store))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    }

    /// Makes the file at `path` of what `write` writes.
    pub fn place(
        &mut self,
        path: &[u8],
        restored: Restored,
        about: About<'_>,
        write: &mut dyn FnMut(&mut File) -> Result<(), Failure>,
    ) -> Result<Placed, Failure> {
        let (parent, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b""[..], path),
        };
        if self.is_in_store(path) {
            return Err(about(&"it would lie in the store's own directory"));
        }
        self.enter(parent, about)?;
        let Some((_, directory)) = &self.last else {
            return Err(about(&"its directory is gone"));
        };
        let mut new = NewFile::create(directory.as_fd(), restored.creation_mode())
            .map_err(|error| about(&error))?;
        if self.began.is_none() {
            self.began = changed(&new.file);
        }
        write(&mut new.file)?;
        restored.set_time(&new.file);
        match new.place(name) {
            Ok(()) => return Ok(Placed::Written),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(about(&error)),
        }
        // Something has the name. Nothing is ever opened for writing here, and links and pipes
        // are neither followed nor waited for.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let existing = rustix::fs::openat(directory, name, flags, rustix::fs::Mode::empty())
            .map(File::from)
            .ok()
            .filter(|file| file.metadata().is_ok_and(|metadata| metadata.is_file()));
        let Some(mut existing) = existing else {
            return Err(about(
                &"a directory, a link or something else that is no file has its name",
            ));
        };
        if same_content(&mut new.file, &mut existing).map_err(|error| about(&error))? {
            // A blob that no import made has no mode.
            if restored.mode.is_none() {
                return Ok(Placed::Identical);
            }
            let set = take_mode(&new.file, &existing).map_err(|error| {
                about(&format!("it is there, but its mode can't be set: {error}"))
            })?;
            return Ok(if set {
                Placed::ModeSet
            } else {
                Placed::Identical
            });
        }
        if !self.overwrite {
            return Err(about(
                &"a file with other content has its name (--overwrite replaces it)",
            ));
        }
        if changed(&existing) >= self.began {
            return Err(about(
                &"another blob of this export has the same name on this file system",
            ));
        }
        new.replace(name).map_err(|error| about(&error))?;
        Ok(Placed::Written)
    }

    /// Makes `parent` the directory that is written to.
    fn enter(&mut self, parent: &[u8], about: About<'_>) -> Result<(), Failure> {
        if self.last.as_ref().is_some_and(|(path, _)| path == parent) {
            return Ok(());
        }
        let opened = if parent.is_empty() {
            self.root.directory(parent)
        } else {
            self.root.make_directory(parent)
        };
        let directory = opened.map_err(|error| match error {
            Errno::NOTDIR | Errno::LOOP | Errno::EXIST => {
                about(&"a file or a link stands where it needs a directory")
            }
            error => about(&error),
        })?;
        // Once for each directory, before the first file is placed in it: a blob's own name may be
        // that of a leftover, and listing again and again would take long.
        if let Ok(identity) = Identity::of(&directory)
            && self.cleaned.insert(identity)
        {
            self.leftovers += remove_leftovers(directory.as_fd());
        }
        self.last = Some((parent.to_vec(), directory));
        Ok(())
    }
}

fn changed(file: &File) -> Option<(i64, i64)> {
    let metadata = file.metadata().ok()?;
    Some((metadata.ctime(), metadata.ctime_nsec()))
}

/// Gives `existing` the permission bits of `new`, which the umask was applied to. Returns whether
/// it had others.
fn take_mode(new: &File, existing: &File) -> io::Result<bool> {
    let mode = |file: &File| Ok::<_, io::Error>(file.metadata()?.mode() & 0o777);
    let wanted = mode(new)?;
    if mode(existing)? == wanted {
        return Ok(false);
    }
    existing.set_permissions(Permissions::from_mode(wanted))?;
    Ok(true)
}

fn same_content(left: &mut File, right: &mut File) -> io::Result<bool> {
    if left.metadata()?.len() != right.metadata()?.len() {
        return Ok(false);
    }
    left.rewind()?;
    right.rewind()?;
    loop {
        let piece = read_piece(left)?;
        if piece != read_piece(right)? {
            return Ok(false);
        }
        if piece.is_empty() {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::symlink;

    fn about(why: &dyn std::fmt::Display) -> Failure {
        Failure::failed(why.to_string())
    }

    fn place(target: &mut Target, path: &str, content: &[u8]) -> Result<Placed, Failure> {
        let restored = Restored {
            mode: Some(0o644),
            mtime: Some(1_700_000_000_123_456_789),
        };
        target.place(path.as_bytes(), restored, &about, &mut |file| {
            file.write_all(content).map_err(|error| about(&error))
        })
    }

    /// A directory to export to, with something outside of it, and links that lead there.
    fn scene(overwrite: bool) -> (tempfile::TempDir, Target) {
        let outer = tempfile::tempdir().expect("a directory");
        let inner = outer.path().join("inner");
        std::fs::create_dir_all(inner.join("folder")).expect("made");
        std::fs::create_dir(inner.join("store")).expect("made");
        std::fs::write(outer.path().join("precious"), b"precious").expect("written");
        symlink("../precious", inner.join("link")).expect("linked");
        symlink("..", inner.join("up")).expect("linked");
        std::fs::write(inner.join("old"), b"old").expect("written");
        let root = Root::open(&inner).expect("opened");
        let target = Target::new(root, Some(b"store".to_vec()), overwrite);
        (outer, target)
    }

    #[test]
    fn files_are_placed_with_their_times() {
        let (outer, mut target) = scene(false);
        let placed = place(&mut target, "a/b/c", b"content").expect("placed");
        assert_eq!(placed, Placed::Written);
        let path = outer.path().join("inner/a/b/c");
        assert_eq!(std::fs::read(&path).expect("read"), b"content");
        let metadata = std::fs::metadata(&path).expect("there");
        assert_eq!(
            (metadata.mtime(), metadata.mtime_nsec()),
            (1_700_000_000, 123_456_789)
        );
        let again = place(&mut target, "a/b/c", b"content").expect("there already");
        assert_eq!(again, Placed::Identical);
    }

    #[test]
    fn nothing_in_the_way_is_written_through() {
        for overwrite in [false, true] {
            let (outer, mut target) = scene(overwrite);
            for path in [
                "up/new",
                "up/precious",
                "link/new",
                "old/new",
                "folder",
                "link",
                "store",
                "store/sector-0",
                "store/new/deep",
            ] {
                assert!(place(&mut target, path, b"evil").is_err(), "{path}");
            }
            let mut names: Vec<String> = std::fs::read_dir(outer.path())
                .expect("listed")
                .chain(std::fs::read_dir(outer.path().join("inner")).expect("listed"))
                .map(|entry| entry.expect("read").file_name().to_string_lossy().into())
                .collect();
            names.sort();
            assert_eq!(
                names,
                ["folder", "inner", "link", "old", "precious", "store", "up"]
            );
            let precious = std::fs::read(outer.path().join("precious")).expect("read");
            assert_eq!(precious, b"precious");
        }
    }

    #[test]
    fn files_with_other_content_are_replaced_only_when_told_to() {
        let (outer, mut target) = scene(false);
        assert!(place(&mut target, "old", b"new").is_err());
        let (outer_too, mut target) = scene(true);
        // What this export wrote itself stays: on a file system that folds case, two keys would
        // fight for one name.
        assert!(place(&mut target, "mine", b"first").is_ok());
        assert!(place(&mut target, "mine", b"second").is_err());
        let read = |outer: &tempfile::TempDir, name| {
            std::fs::read(outer.path().join("inner").join(name)).expect("read")
        };
        assert_eq!(read(&outer, "old"), b"old");
        assert_eq!(read(&outer_too, "mine"), b"first");
    }

    #[test]
    fn old_files_are_overwritten() {
        let (outer, mut target) = scene(true);
        // Older than the export by more than one tick of the file system's clock.
        std::thread::sleep(std::time::Duration::from_millis(30));
        assert_eq!(
            place(&mut target, "old", b"new").expect("replaced"),
            Placed::Written
        );
        let content = std::fs::read(outer.path().join("inner/old")).expect("read");
        assert_eq!(content, b"new");
    }
}

//! Walks a directory tree: every regular file, and word of everything that is not one.

use std::ops::ControlFlow;
use std::os::fd::AsFd;

use graviton_engine::port::BinaryKey;
use rustix::fs::{self, AtFlags, Dir, FileType};
use rustix::io::Errno;

use crate::beneath::Root;
use crate::files::is_temporary;

/// What a walk comes across. Paths are relative to the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A regular file.
    File {
        /// Where.
        path: Vec<u8>,
        /// Its size in bytes, for now.
        size: u64,
    },
    /// Something that has no bytes to take, or must not be taken.
    Skipped {
        /// Where.
        path: Vec<u8>,
        /// What it is.
        what: &'static str,
    },
    /// A directory in which nothing is.
    EmptyDirectory,
    /// Something that could not be looked at.
    Failed {
        /// Where.
        path: Vec<u8>,
        /// Why.
        why: String,
    },
}

/// Names one file system object: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    /// The identity of something open.
    pub fn of(file: impl AsFd) -> Result<Self, Errno> {
        let stat = fs::fstat(file)?;
        Ok(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        })
    }
}

/// A directory deeper than this can't hold a file whose path is still a key.
const PATH_MAX_LEN: usize = BinaryKey::MAX_LEN;

/// Walks the tree below `root`, directory by directory, names in order. The directory `exclude`
/// (the store itself, should it lie in the tree) is skipped. Memory grows with the widest
/// directory and the number of directories still to come, not with the number of files.
pub fn walk(
    root: &Root,
    exclude: Option<Identity>,
    visit: &mut dyn FnMut(Found) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let mut pending: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        if path.len() >= PATH_MAX_LEN {
            let why = format!("its path has {} bytes, too long for keys", path.len());
            visit(Found::Failed { path, why })?;
            continue;
        }
        let directory = match root.directory(&path) {
            Ok(directory) => directory,
            Err(error) => {
                let why = error.to_string();
                visit(Found::Failed { path, why })?;
                continue;
            }
        };
        if exclude.is_some() && Identity::of(&directory).ok() == exclude {
            let what = "the store itself";
            visit(Found::Skipped { path, what })?;
            continue;
        }
        let names = match names_in(&directory) {
            Ok(names) => names,
            Err(error) => {
                let why = error.to_string();
                visit(Found::Failed { path, why })?;
                continue;
            }
        };
        if names.is_empty() && !path.is_empty() {
            visit(Found::EmptyDirectory)?;
        }
        let first_child = pending.len();
        for name in names {
            let path = join(&path, &name);
            match fs::statat(&directory, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
                Err(error) => {
                    let why = error.to_string();
                    visit(Found::Failed { path, why })?;
                }
                Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => pending.push(path),
                    FileType::RegularFile if is_temporary(&name) => {
                        let what = "unfinished file of an export or get";
                        visit(Found::Skipped { path, what })?;
                    }
                    FileType::RegularFile => {
                        let size = u64::try_from(stat.st_size).unwrap_or(0);
                        visit(Found::File { path, size })?;
                    }
                    kind => {
                        let what = describe(kind);
                        visit(Found::Skipped { path, what })?;
                    }
                },
            }
        }
        // The last one pushed is the next one walked: in order, please.
        pending[first_child..].reverse();
    }
    ControlFlow::Continue(())
}

/// The names in a directory, in order.
pub fn names_in(directory: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(directory.len() + 1 + name.len());
    path.extend_from_slice(directory);
    if !directory.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

fn describe(kind: FileType) -> &'static str {
    match kind {
        FileType::Symlink => "symbolic link",
        FileType::Fifo => "named pipe",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        _ => "special file",
    }
}

/// How much there is in a tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Survey {
    /// Regular files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Counts the files of a tree and their bytes; what can't be looked at counts nothing.
pub fn survey(root: &Root, exclude: Option<Identity>) -> Survey {
    let mut survey = Survey::default();
    let _ = walk(root, exclude, &mut |found| {
        if let Found::File { size, .. } = found {
            survey.files += 1;
            survey.bytes = survey.bytes.saturating_add(size);
        }
        ControlFlow::Continue(())
    });
    survey
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn everything_is_found_and_nothing_followed() {
        let outer = tempfile::tempdir().expect("a directory");
        let top = outer.path().join("top");
        for directory in ["b/c", "empty", "store"] {
            std::fs::create_dir_all(top.join(directory)).expect("made");
        }
        let files = [
            ("z", 3),
            ("a", 1),
            ("b/c/x", 5),
            ("store/sector", 9),
            (".graviton-12-0.tmp", 7),
        ];
        for (file, bytes) in files {
            std::fs::write(top.join(file), vec![0; bytes]).expect("written");
        }
        std::fs::write(outer.path().join("outside"), b"no").expect("written");
        symlink("../outside", top.join("link")).expect("linked");
        symlink("..", top.join("loop")).expect("linked");
        let _socket = std::os::unix::net::UnixListener::bind(top.join("socket")).expect("bound");

        let root = Root::open(&top).expect("opened");
        let store = Identity::of(root.directory(b"store").expect("opened")).expect("known");
        let mut found = Vec::new();
        let _ = walk(&root, Some(store), &mut |entry| {
            found.push(entry);
            ControlFlow::Continue(())
        });
        let file = |path: &str, size| Found::File {
            path: path.into(),
            size,
        };
        let skipped = |path: &str, what| Found::Skipped {
            path: path.into(),
            what,
        };
        assert_eq!(
            found,
            [
                skipped(".graviton-12-0.tmp", "unfinished file of an export or get"),
                file("a", 1),
                skipped("link", "symbolic link"),
                skipped("loop", "symbolic link"),
                skipped("socket", "socket"),
                file("z", 3),
                file("b/c/x", 5),
                Found::EmptyDirectory,
                skipped("store", "the store itself"),
            ]
        );
        let counted = survey(&root, Some(store));
        assert_eq!((counted.files, counted.bytes), (3, 9));
    }
}

//! Directory trees for import and export: generated, and read back.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::random::Random;

/// The regular files of a tree: relative path to content.
pub type Files = BTreeMap<Vec<u8>, Vec<u8>>;

/// A path of arbitrary bytes.
#[must_use]
pub fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

/// `small` files of up to 200 KiB (some empty, most small), and `large` of 2 to 5 MiB among them.
#[must_use]
pub fn generate(seed: u64, small: usize, large: usize) -> Files {
    let mut random = Random::new(seed);
    let mut files = Files::new();
    for number in 0..small {
        let path = format!(
            "dir-{:02}/part-{}/file-{number:05}",
            number / 97,
            number % 3
        );
        let length = random.up_to(200 << 10);
        files.insert(path.into_bytes(), random.bytes(length));
    }
    for number in 0..large {
        let path = format!(
            "dir-{:02}/part-9/large-{number}",
            number * small / large.max(1) / 97
        );
        let length = (2 << 20) + random.below(3 << 20);
        files.insert(path.into_bytes(), random.bytes(length));
    }
    files
}

/// Writes the files below `root`, which is made.
///
/// # Panics
/// If that fails.
pub fn write(root: &Path, files: &Files) {
    fs::create_dir_all(root).expect("the root can be made");
    for (path, content) in files {
        let path = root.join(path_of(path));
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory can be made");
        fs::write(path, content).expect("a file can be written");
    }
}

/// Everything below a directory that an import takes in, with its permissions and time.
pub type Listing = BTreeMap<Vec<u8>, (Vec<u8>, u32, i64, i64)>;

/// Reads the regular files below `root`.
///
/// # Panics
/// If that fails.
#[must_use]
pub fn read(root: &Path) -> Listing {
    let mut listing = Listing::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).expect("a directory can be listed") {
            let path = entry.expect("an entry").path();
            let metadata = fs::symlink_metadata(&path).expect("known");
            if metadata.is_dir() {
                pending.push(path);
            } else if metadata.is_file() {
                let relative = path.strip_prefix(root).expect("below the root");
                let content = fs::read(&path).expect("a file can be read");
                let known = (
                    content,
                    metadata.mode() & 0o777,
                    metadata.mtime(),
                    metadata.mtime_nsec(),
                );
                listing.insert(relative.as_os_str().as_bytes().to_vec(), known);
            }
        }
    }
    listing
}

/// Compares two trees, and says where they first differ rather than printing all of both.
///
/// # Panics
/// If they differ.
pub fn assert_same(left: &Path, right: &Path) {
    let (left, right) = (read(left), read(right));
    let paths: Vec<_> = left.keys().chain(right.keys()).collect();
    for path in paths {
        let name = String::from_utf8_lossy(path);
        let (Some(here), Some(there)) = (left.get(path), right.get(path)) else {
            panic!("{name} is in one tree only");
        };
        assert!(here.0 == there.0, "{name}: contents differ");
        assert_eq!(
            (here.1, here.2, here.3),
            (there.1, there.2, there.3),
            "{name}: mode or time differ"
        );
    }
}

//! How large a store must be for a tree to fit in it, on the disk there is.

use std::path::Path;

use crate::failure::Failure;
use crate::size::Human;
use crate::tree::Survey;

const MIB: u64 = 1 << 20;
/// A store that is made for a tree is never smaller, so that there is room to go on with.
const LEAST: u64 = 256 * MIB;
/// Bytes of headers and padding that a small file costs, generously.
const PER_FILE: u64 = 512;
/// What is left free on the disk.
const LEFT_FREE: u64 = 64 * MIB;

/// What a tree needs, and what it had better get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Needs {
    least: u64,
    wanted: u64,
}

impl Needs {
    fn of(tree: Survey) -> Self {
        let records = tree.files.saturating_mul(PER_FILE);
        Self {
            // A tenth for what the store keeps in reserve, and for checkpoints.
            least: (tree.bytes / 10)
                .saturating_add(tree.bytes)
                .saturating_add(records)
                .saturating_add(16 * MIB),
            wanted: (tree.bytes / 2)
                .saturating_add(tree.bytes)
                .saturating_add(records)
                .max(LEAST),
        }
    }

    /// The store's size on a disk with so much free space; `None` if the tree does not fit.
    fn fit(self, free: u64) -> Option<u64> {
        let free = free.saturating_sub(LEFT_FREE);
        if self.wanted <= free {
            return Some(self.wanted);
        }
        (self.least <= free).then_some(free)
    }
}

/// The size of each of `sectors` sectors of a store at `path` that takes `tree` in.
pub fn fitted_sector_size(tree: Survey, sectors: u16, path: &Path) -> Result<u64, Failure> {
    let free = free_space(path)?;
    let needs = Needs::of(tree);
    let Some(size) = needs.fit(free) else {
        return Err(no_room(path, needs, free));
    };
    Ok((size / u64::from(sectors.max(1))).next_multiple_of(MIB))
}

fn no_room(path: &Path, needs: Needs, free: u64) -> Failure {
    Failure::failed(format!(
        "not enough room at {}: the tree needs a store of {}, and {} of the disk are to stay free; \
         {} are free now (--sector-size overrules this)",
        path.display(),
        Human(needs.least),
        Human(LEFT_FREE),
        Human(free)
    ))
}

/// What an ordinary user may still write where `path` is, or will be.
fn free_space(path: &Path) -> Result<u64, Failure> {
    let absolute =
        std::path::absolute(path).map_err(|error| Failure::file("look at", path, &error))?;
    let mut last_error = None;
    for ancestor in absolute.ancestors() {
        match rustix::fs::statvfs(ancestor) {
            Ok(figures) => return Ok(figures.f_bavail.saturating_mul(figures.f_frsize)),
            Err(error) => last_error = Some(error),
        }
    }
    let why = last_error.map_or_else(String::new, |error| error.to_string());
    Err(Failure::file("find the free space at", path, &why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_fit_the_tree_and_the_disk() {
        let tree = |files, bytes| Needs::of(Survey { files, bytes });
        let gib = 1 << 30;
        assert_eq!(tree(10, 1000).fit(100 * gib), Some(LEAST));
        assert_eq!(
            tree(1000, 10 * gib).fit(100 * gib),
            Some(15 * gib + 512_000)
        );
        // Not as much as wanted, but enough.
        assert_eq!(tree(0, 10 * gib).fit(12 * gib), Some(12 * gib - LEFT_FREE));
        assert_eq!(tree(0, 10 * gib).fit(11 * gib), None);
        assert_eq!(tree(0, u64::MAX).fit(100 * gib), None);
        assert_eq!(tree(u64::MAX, 0).fit(100 * gib), None);
    }

    #[test]
    fn what_is_left_free_is_said() {
        let (files, bytes) = (0, 1000);
        let needs = Needs::of(Survey { files, bytes });
        let free = 50 * MIB;
        assert_eq!(needs.fit(free), None);
        let Failure::Error { message, .. } = no_room(Path::new("store"), needs, free) else {
            panic!("it has a message");
        };
        assert_eq!(
            message,
            "not enough room at store: the tree needs a store of 16.0 MiB, and 64.0 MiB of the \
             disk are to stay free; 50.0 MiB are free now (--sector-size overrules this)"
        );
    }

    #[test]
    fn free_space_is_that_of_the_nearest_directory() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(free_space(&directory.path().join("not/yet/there")).is_ok());
    }
}

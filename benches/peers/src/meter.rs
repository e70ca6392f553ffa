//! What the kernel counts: bytes read and written, memory, room on disk; and how its cache is emptied.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{Advice, fadvise, major, minor, syncfs};

/// Bytes that went through the block layer so far, or between two moments.
#[derive(Debug, Clone, Copy, Default)]
pub struct Io {
    /// Read from the device for this process (`/proc/self/io`).
    pub read: u64,
    /// Written for this process, counted when a page becomes dirty or a direct write is made; journals
    /// of the file system are not in it.
    pub written: u64,
    /// Written to the whole device by anybody, journals and other processes included.
    pub device_written: u64,
}

impl Io {
    /// The counts so far. Those of the device are 0 where it has none.
    pub fn now(directory: &Path) -> Result<Self> {
        let text = fs::read_to_string("/proc/self/io").context("read /proc/self/io")?;
        let cancelled = field(&text, "cancelled_write_bytes:");
        Ok(Self {
            read: field(&text, "read_bytes:"),
            written: field(&text, "write_bytes:").saturating_sub(cancelled),
            device_written: device_written(directory).unwrap_or(0),
        })
    }

    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            read: self.read + other.read,
            written: self.written + other.written,
            device_written: self.device_written + other.device_written,
        }
    }

    /// What came after `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            read: self.read.saturating_sub(earlier.read),
            written: self.written.saturating_sub(earlier.written),
            device_written: self.device_written.saturating_sub(earlier.device_written),
        }
    }
}

fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

/// Sectors written to the device that has `directory`, in bytes.
fn device_written(directory: &Path) -> Option<u64> {
    const SECTOR: u64 = 512;
    let device = fs::metadata(directory).ok()?.dev();
    let counts = format!("/sys/dev/block/{}:{}/stat", major(device), minor(device));
    let text = fs::read_to_string(counts).ok()?;
    let sectors: u64 = text.split_whitespace().nth(6)?.parse().ok()?;
    Some(sectors * SECTOR)
}

/// The file system that has `directory`: its type and its options; empty if it can't be told.
pub fn file_system(directory: &Path) -> Result<String> {
    let device = fs::metadata(directory)?.dev();
    let number = format!("{}:{}", major(device), minor(device));
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read mounts")?;
    // `36 35 98:0 / /place rw,noatime - ext4 /dev/root rw,errors=continue`
    let mount = mounts
        .lines()
        .filter(|line| line.split(' ').nth(2) == Some(&number))
        .find_map(|line| line.split_once(" - "));
    let fields = mount.map(|(_, rest)| rest.split(' ').collect::<Vec<_>>());
    Ok(match fields.as_deref() {
        Some([kind, _, options, ..]) => format!("{kind} {options}"),
        _ => String::new(),
    })
}

/// How much the kernel reads ahead on the device of `directory`, in KiB.
pub fn read_ahead_kib(directory: &Path) -> Option<u64> {
    let device = fs::metadata(directory).ok()?.dev();
    let number = format!("{}:{}", major(device), minor(device));
    let text = fs::read_to_string(format!("/sys/class/bdi/{number}/read_ahead_kb")).ok()?;
    text.trim().parse().ok()
}

/// Memory of this process that is resident, in bytes.
pub fn resident() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    Ok(field(&text, "VmRSS:") * 1024)
}

/// Bytes that the files of a directory take on the file system.
pub fn disk_usage(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for file in files(directory)? {
        // A store's threads may remove a file meanwhile.
        bytes += fs::metadata(&file).map_or(0, |about| about.blocks() * 512);
    }
    Ok(bytes)
}

/// Writes out what is dirty and drops the pages of the files of a directory from the page cache. No
/// root is needed; entries of directories and inodes stay cached.
pub fn drop_cache(directory: &Path) -> Result<()> {
    syncfs(File::open(directory)?).context("sync the file system")?;
    for path in files(directory)? {
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        fadvise(&file, 0, None, Advice::DontNeed)
            .with_context(|| format!("drop {} from the page cache", path.display()))?;
    }
    Ok(())
}

/// All files below a directory.
pub fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(next) = left.pop() {
        let entries = fs::read_dir(&next).with_context(|| format!("list {}", next.display()))?;
        for entry in entries {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => left.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_found_by_their_whole_name() {
        let text = "read_bytes: 7\nwrite_bytes: 9\ncancelled_write_bytes: 4\n";
        assert_eq!(field(text, "write_bytes:"), 9);
        assert_eq!(field(text, "cancelled_write_bytes:"), 4);
        assert_eq!(field(text, "absent:"), 0);
    }

    #[test]
    fn usage_counts_what_is_written_in_folders_too() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("folder")).expect("a folder");
        fs::write(directory.path().join("folder/file"), [1; 10_000]).expect("a file");
        drop_cache(directory.path()).expect("its pages are dropped");
        let usage = disk_usage(directory.path()).expect("usage is known");
        assert!((10_000..100_000).contains(&usage), "{usage}");
    }
}

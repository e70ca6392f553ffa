//! Plain files: one per blob, in folders.

use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use rustix::fs::syncfs;

use super::{Kind, Participant, Sizing, Together};
use crate::data::Blob;
use crate::meter;

pub const KIND: Kind = Kind {
    name: "files",
    durability: "write a temporary file, fsync it, rename it, fsync its directory",
    together: Together::Threads,
    verification: "none",
    reads_ranges: true,
    pipelines_gets: false,
    has_state: false,
    open,
};

fn open(directory: &Path, _sizing: Sizing) -> Result<Box<dyn Participant>> {
    Ok(Box::new(Files {
        root: directory.to_owned(),
        temporary: AtomicU64::new(0),
    }))
}

struct Files {
    root: PathBuf,
    /// Numbers temporary files.
    temporary: AtomicU64,
}

impl Files {
    /// Writes a blob beside its place, and moves it there. Returns its folder.
    fn write(&self, blob: &Blob, finish: impl FnOnce(&File) -> Result<()>) -> Result<PathBuf> {
        let target = self.root.join(&blob.key);
        let folder = target.parent().context("a key is in a folder")?;
        let number = self.temporary.fetch_add(1, Ordering::Relaxed);
        let source = folder.join(format!(".temporary-{number}"));
        let mut file = match File::create_new(&source) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                fs::create_dir_all(folder)?;
                File::open(&self.root)?.sync_all()?;
                File::create_new(&source)?
            }
            made => made?,
        };
        file.write_all(&blob.payload)?;
        finish(&file)?;
        fs::rename(&source, &target)?;
        Ok(folder.to_owned())
    }
}

impl Participant for Files {
    fn put(&self, blob: &Blob) -> Result<()> {
        let folder = self.write(blob, |file| Ok(file.sync_all()?))?;
        Ok(File::open(folder)?.sync_all()?)
    }

    fn load(&self, blobs: &[Blob]) -> Result<()> {
        for blob in blobs {
            self.write(blob, |_| Ok(()))?;
        }
        Ok(syncfs(File::open(&self.root)?)?)
    }

    fn get(&self, key: &str, look: &mut dyn FnMut(&[u8])) -> Result<()> {
        look(&fs::read(self.root.join(key))?);
        Ok(())
    }

    fn get_range(&self, key: &str, range: Range<u64>, look: &mut dyn FnMut(&[u8])) -> Result<()> {
        let mut bytes = vec![0; usize::try_from(range.end - range.start)?];
        File::open(self.root.join(key))?.read_exact_at(&mut bytes, range.start)?;
        look(&bytes);
        Ok(())
    }

    fn list(&self) -> Result<usize> {
        let mut files = meter::files(&self.root)?;
        files.sort_unstable();
        Ok(files.len())
    }

    fn delete(&self, key: &str) -> Result<()> {
        let path = self.root.join(key);
        fs::remove_file(&path)?;
        let folder = path.parent().context("a key is in a folder")?;
        Ok(File::open(folder)?.sync_all()?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

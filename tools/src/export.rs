//! `export`: writes blobs out as a directory tree, and never a byte outside of it.
//!
//! Keys are anybody's. Three things keep them in: only plain relative paths are taken
//! ([`check_relative`]); directories are opened below the root without following links ([`Root`]);
//! and a file is written under a temporary name and takes its own only if nothing has that name,
//! so that no existing file, no other key's file (a file system that folds case makes `A` and `a`
//! one) and no link is ever written through.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use graviton_engine::port::{Blob, BlobInfo, BlobStore, ErrorKind, GetOptions, ListEntry, StoreOp};
use graviton_engine::store::Store;
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde_json::json;

use crate::beneath::{Root, check_relative};
use crate::cli::ExportArgs;
use crate::failure::{Exit, Failure};
use crate::files::{NewFile, Restored};
use crate::listing::{Listed, each};
use crate::output::with_key;
use crate::progress::Progress;
use crate::session::Session;
use crate::size::human_rate;
use crate::transfer::{PIECE, pour_out, read_piece};

/// Reads that are on their way at once.
const GETS_IN_FLIGHT: usize = 32;

/// Writes blobs out.
pub fn run(session: &Session, args: &ExportArgs) -> Result<(), Failure> {
    let prefix = session.bytes(&args.prefix)?;
    session.read(|store| {
        let target = Target::open(session, args)?;
        let shown = Progress::would_show(session.output.is_json());
        let total = if shown {
            total_bytes(store, &prefix)?
        } else {
            0
        };
        let mut export = Export {
            session,
            store,
            prefix_len: prefix.len(),
            target,
            progress: Progress::new(shown, "exporting", total),
            tally: Tally::default(),
        };
        export.run(&prefix)
    })
}

fn total_bytes(store: &Store, prefix: &[u8]) -> Result<u64, Failure> {
    let mut total = 0_u64;
    each(store, prefix, None, None, &mut |listed| {
        if let Listed::Blob(entry) = listed {
            total = total.saturating_add(entry.size);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(total)
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placed {
    /// It is new.
    Written,
    /// It was there with the same content.
    Identical,
}

#[derive(Default)]
struct Tally {
    written: u64,
    bytes: u64,
    identical: u64,
    skipped: u64,
    exit: Option<Exit>,
}

/// A blob on its way.
struct Flying {
    entry: ListEntry,
    info: StoreOp<BlobInfo>,
    /// Its bytes, unless it is large.
    blob: Option<StoreOp<Blob>>,
}

struct Export<'a> {
    session: &'a Session,
    store: &'a Store,
    prefix_len: usize,
    target: Target,
    progress: Progress,
    tally: Tally,
}

impl Export<'_> {
    fn run(&mut self, prefix: &[u8]) -> Result<(), Failure> {
        let started = Instant::now();
        let mut flying = VecDeque::new();
        let store = self.store;
        each(store, prefix, None, None, &mut |listed| {
            let Listed::Blob(entry) = listed else {
                return Ok(ControlFlow::Continue(()));
            };
            if let Err(why) = check_relative(&entry.key.as_bytes()[self.prefix_len..]) {
                let failure = Failure::failed(format!("skipped {}: as a path, {why}", entry.key));
                self.failed(&failure);
                return Ok(ControlFlow::Continue(()));
            }
            let blob = (entry.size <= PIECE).then(|| store.get(&entry.key, GetOptions::default()));
            let info = store.stat(&entry.key);
            flying.push_back(Flying { entry, info, blob });
            if flying.len() == GETS_IN_FLIGHT
                && let Some(oldest) = flying.pop_front()
            {
                self.land(oldest)?;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        for oldest in flying {
            self.land(oldest)?;
        }
        // One flush for all: a flush for each would take longer than everything else.
        rustix::fs::syncfs(self.target.root.as_fd()).map_err(|error| {
            Failure::failed(format!("cannot flush the files that were written: {error}"))
        })?;
        self.progress.clear();
        self.finish(started.elapsed().as_secs_f64())
    }

    /// Writes one blob out. Only what ends the export is an error.
    fn land(&mut self, flying: Flying) -> Result<(), Failure> {
        let Flying { entry, info, blob } = flying;
        let outcome = self.write(&entry, info, blob);
        let output = &self.session.output;
        match outcome {
            Ok(Placed::Written) => {
                self.tally.written += 1;
                self.tally.bytes += entry.size;
                if output.is_json() {
                    let object = json!({"event": "exported", "size": entry.size});
                    output.event(&with_key(&entry.key, object))?;
                }
            }
            Ok(Placed::Identical) => self.tally.identical += 1,
            Err(Failure::BrokenPipe) => return Err(Failure::BrokenPipe),
            Err(failure) => self.failed(&failure),
        }
        Ok(())
    }

    fn failed(&mut self, failure: &Failure) {
        self.tally.skipped += 1;
        let exit = match failure.exit() {
            Exit::Corruption => Exit::Corruption,
            _ => Exit::Failed,
        };
        self.tally.exit = Some(self.tally.exit.map_or(exit, |before| before.worse(exit)));
        self.session
            .output
            .report_under(failure, Some(&self.progress));
    }

    fn write(
        &mut self,
        entry: &ListEntry,
        info: StoreOp<BlobInfo>,
        blob: Option<StoreOp<Blob>>,
    ) -> Result<Placed, Failure> {
        let restored = match info.wait() {
            Ok(info) => Restored::from_attributes(&info.attributes),
            // Its bytes may be whole all the same, and the get below tells.
            Err(error) if error.kind() == ErrorKind::Corruption => {
                Restored::from_attributes(&graviton_engine::port::Attributes::new())
            }
            Err(error) => return Err(error.into()),
        };
        let path = &entry.key.as_bytes()[self.prefix_len..];
        let about =
            |why: &dyn std::fmt::Display| Failure::failed(format!("skipped {}: {why}", entry.key));
        let progress = &self.progress;
        match blob {
            Some(blob) => {
                let blob = blob.wait()?;
                self.target.place(path, restored, &about, &mut |file| {
                    file.write_all(&blob.bytes).map_err(|error| about(&error))?;
                    progress.advance(entry.size);
                    Ok(())
                })
            }
            None => {
                let store = self.store;
                self.target.place(path, restored, &about, &mut |file| {
                    let reader = store.get_stream(&entry.key, GetOptions::default()).wait()?;
                    pour_out(reader, &mut |piece| {
                        file.write_all(piece).map_err(|error| about(&error))?;
                        progress.advance(crate::transfer::length(piece));
                        Ok(())
                    })?;
                    Ok(())
                })
            }
        }
    }

    fn finish(&self, seconds: f64) -> Result<(), Failure> {
        let output = &self.session.output;
        let tally = &self.tally;
        output.event(&json!({
            "event": "summary",
            "exported": tally.written,
            "exported_bytes": tally.bytes,
            "identical": tally.identical,
            "skipped": tally.skipped,
            "seconds": seconds,
        }))?;
        output.line(format!(
            "{} exported, {} identical already, {} skipped; {} in {seconds:.1} s, {}",
            tally.written,
            tally.identical,
            tally.skipped,
            output.bytes(tally.bytes),
            human_rate(tally.bytes, seconds)
        ))?;
        match tally.exit {
            Some(exit) => Err(Failure::Reported(exit)),
            None => Ok(()),
        }
    }
}

/// Something said about the blob at hand.
type About<'a> = &'a dyn Fn(&dyn std::fmt::Display) -> Failure;

/// The directory that is written to.
struct Target {
    root: Root,
    overwrite: bool,
    /// Where the store itself lies in it, if it does: nothing is written there.
    store: Option<Vec<u8>>,
    /// The directory the last file went to: keys come in order, so the next mostly goes there too.
    last: Option<(Vec<u8>, OwnedFd)>,
    /// Time of change of the first file that was written: what is not older was written by this
    /// export, and is not overwritten by it.
    began: Option<(i64, i64)>,
}

impl Target {
    fn open(session: &Session, args: &ExportArgs) -> Result<Self, Failure> {
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
        }
    }

    /// Whether `path` leads into the store's own directory, or stands in its place.
    fn is_in_store(&self, path: &[u8]) -> bool {
        self.store
            .as_deref()
            .and_then(|store| path.strip_prefix(store))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    }

    /// Makes the file at `path` of what `write` writes.
    fn place(
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
        let mut new =
            NewFile::create(directory.as_fd(), restored.mode).map_err(|error| about(&error))?;
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
            return Ok(Placed::Identical);
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
        self.last = Some((parent.to_vec(), directory));
        Ok(())
    }
}

fn changed(file: &File) -> Option<(i64, i64)> {
    let metadata = file.metadata().ok()?;
    Some((metadata.ctime(), metadata.ctime_nsec()))
}

fn same_content(left: &mut File, right: &mut File) -> std::io::Result<bool> {
    use std::io::Seek;
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
    use std::os::unix::fs::symlink;

    fn about(why: &dyn std::fmt::Display) -> Failure {
        Failure::failed(why.to_string())
    }

    fn place(target: &mut Target, path: &str, content: &[u8]) -> Result<Placed, Failure> {
        let restored = Restored {
            mode: 0o644,
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

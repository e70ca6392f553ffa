//! `import`: takes a directory tree in.
//!
//! One thread walks the tree, a few look at the files and read them, and one keeps puts in flight:
//!
//! ```text
//!   walker ──paths──▶ readers ──payloads, outcomes──▶ committer ──▶ store
//!                        └────── large files, as streams ──────────────┘
//! ```
//!
//! Every queue is bounded, so memory is too. A file counts as imported when the store has
//! acknowledged it as durable; only then is it reported. So a killed import loses nothing that it
//! said it had, and is simply repeated.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use crossbeam::channel::{Receiver, Sender, bounded};
use graviton_engine::port::{
    Attributes, BinaryKey, BlobInfo, BlobStore, ErrorKind, GetOptions, PutOptions, PutOutcome,
    StorageError, StoreOp,
};
use graviton_engine::store::{Access, Store};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::beneath::Root;
use crate::cli::ImportArgs;
use crate::failure::Failure;
use crate::files::{Stamp, read_exactly};
use crate::fit::fitted_sector_size;
use crate::keys;
use crate::progress::Progress;
use crate::session::Session;
use crate::tally::{Settled, Tally};
use crate::transfer::{PIECE, TransferError, pour_in, same_bytes};
use crate::tree::{Found, Identity, Survey, survey, walk};

/// Threads that look at files and read them.
const READERS: usize = 4;
/// Puts that are on their way at once.
const PUTS_IN_FLIGHT: usize = 32;
/// Bytes in them, and so about half of what an import holds in memory.
const BYTES_IN_FLIGHT: u64 = 16 * PIECE;
/// Paths, and files read, that wait for the next thread.
const QUEUE: usize = 32;

/// Takes a tree in.
pub fn run(session: &Session, args: &ImportArgs) -> Result<(), Failure> {
    let prefix = session.bytes(&args.prefix)?;
    let root = Root::open(&args.directory)
        .map_err(|error| Failure::file("open", &args.directory, &error))?;
    let (store, surveyed) = open_or_create(session, args, &root)?;
    session.use_store(store, |store| {
        let identity = Root::open(&session.global.store)
            .ok()
            .and_then(|directory| Identity::of(directory.as_fd()).ok());
        let shown = Progress::would_show(session.output.is_json());
        let expected = match surveyed {
            Some(expected) => expected,
            None if shown => survey(&root, identity),
            None => Survey::default(),
        };
        let import = Import {
            root: &root,
            store,
            prefix: &prefix,
            exclude: identity,
            compare_content: args.compare_content,
            was_empty: store.info().blobs == 0,
            stop: AtomicBool::new(false),
            progress: Progress::new(shown, "importing", expected.bytes),
        };
        import.run(session)
    })
}

/// Opens the store, or creates one that the tree fits in; then the tree has been surveyed.
fn open_or_create(
    session: &Session,
    args: &ImportArgs,
    root: &Root,
) -> Result<(Store, Option<Survey>), Failure> {
    let path = &session.global.store;
    session.check_writing()?;
    match Store::open_with(path, session.open_options(Access::ReadWrite)) {
        Ok(store) => {
            if args.geometry.is_given() {
                let note = format!(
                    "{} exists already: its shape is not changed",
                    path.display()
                );
                session.output.note(note, None);
            }
            return Ok((store, None));
        }
        Err(StorageError::NoStore { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let surveyed = survey(root, None);
    let size = match args.geometry.sector_size {
        Some(size) => size,
        None => fitted_sector_size(surveyed, args.geometry.sectors.unwrap_or(1), path)?,
    };
    let store = session.create(&args.geometry, size)?;
    let note = format!(
        "created a store of {} at {}",
        session.output.bytes(store.info().space.total),
        path.display()
    );
    session.output.note(note, None);
    Ok((store, Some(surveyed)))
}

/// What the readers tell the committer.
enum Work {
    /// A small file, to be put.
    Put(SmallFile),
    /// A file about which nothing is left to do.
    Settled(Settled),
}

struct SmallFile {
    key: BinaryKey,
    payload: Bytes,
    attributes: Attributes,
}

struct Import<'a> {
    root: &'a Root,
    store: &'a Store,
    prefix: &'a [u8],
    exclude: Option<Identity>,
    compare_content: bool,
    /// The store held nothing, so that no file needs to be looked up.
    was_empty: bool,
    /// The store or standard output failed: no more files.
    stop: AtomicBool,
    progress: Progress,
}

impl Import<'_> {
    fn run(&self, session: &Session) -> Result<(), Failure> {
        let started = Instant::now();
        let mut tally = Tally::default();
        let (path_sender, paths) = bounded::<Vec<u8>>(QUEUE);
        let (work_sender, work) = bounded::<Work>(QUEUE);
        std::thread::scope(|scope| {
            let walk_sender = work_sender.clone();
            scope.spawn(move || self.walk(&path_sender, &walk_sender));
            for _ in 0..READERS {
                let (paths, work_sender) = (paths.clone(), work_sender.clone());
                scope.spawn(move || self.read(&paths, &work_sender));
            }
            drop((work_sender, paths));
            self.commit(session, &work, &mut tally);
        });
        self.progress.clear();
        tally.finish(session, started.elapsed())
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The walker: hands files to the readers, and everything else to the committer.
    fn walk(&self, paths: &Sender<Vec<u8>>, work: &Sender<Work>) {
        let _ = walk(self.root, self.exclude, &mut |found| {
            let settled = match found {
                Found::File { path, .. } => {
                    return if self.stopped() || paths.send(path).is_err() {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    };
                }
                Found::Skipped { path, what } => Settled::Skipped { path, what },
                Found::EmptyDirectory => Settled::EmptyDirectory,
                Found::Failed { path, why } => Settled::Failed {
                    failure: about(&path, &why),
                },
            };
            match work.send(Work::Settled(settled)) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        });
    }

    /// A reader: decides what is to be done about each file, and does it if the file is large.
    fn read(&self, paths: &Receiver<Vec<u8>>, work: &Sender<Work>) {
        for path in paths {
            if self.stopped() {
                // The walker may be waiting for room in the queue.
                continue;
            }
            let done = self
                .take_in(&path)
                .unwrap_or_else(|failure| Work::Settled(Settled::Failed { failure }));
            if work.send(done).is_err() {
                return;
            }
        }
    }

    fn take_in(&self, path: &[u8]) -> Result<Work, Failure> {
        let key = self.key_of(path)?;
        self.take_in_as(path, key.clone())
            .map_err(|failure| naming(&key, failure))
    }

    fn key_of(&self, path: &[u8]) -> Result<BinaryKey, Failure> {
        let mut key = self.prefix.to_vec();
        key.extend_from_slice(path);
        BinaryKey::new(&key).map_err(|_| {
            let why = format!(
                "its key would have {} bytes, at most {} are allowed",
                key.len(),
                BinaryKey::MAX_LEN
            );
            about(path, &why)
        })
    }

    fn take_in_as(&self, path: &[u8], key: BinaryKey) -> Result<Work, Failure> {
        let skipped = |what| {
            let path = path.to_vec();
            Ok(Work::Settled(Settled::Skipped { path, what }))
        };
        // Non-blocking: were the file replaced by a pipe meanwhile, opening it would wait for ever.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let read_at = SystemTime::now();
        let mut file = match self.root.open_at(path, flags) {
            Ok(descriptor) => File::from(descriptor),
            Err(Errno::LOOP) => return skipped("symbolic link"),
            Err(error) => return Err(about(path, &error)),
        };
        let Some(stamp) = Stamp::of(&file).map_err(|error| about(path, &error))? else {
            return skipped("special file");
        };
        // With another mode or time the blob is put again, whatever its content: attributes can't
        // be changed alone.
        let existing = self.existing(&key)?.filter(|existing| {
            existing.size == stamp.size && stamp.is_restored_by(&existing.attributes)
        });
        if let Some(existing) = &existing
            && !self.compare_content
            && stamp.is_recorded_in(&existing.attributes)
        {
            return Ok(self.unchanged(key, stamp.size));
        }
        let compare = existing.is_some();
        if stamp.size > PIECE {
            return self.take_in_large(path, key, file, stamp, read_at, compare);
        }
        let payload = read_exactly(&mut file, stamp.size).map_err(|error| about(path, &error))?;
        check_unchanged(&file, stamp).map_err(|error| about(path, &error))?;
        if compare && self.is_stored(&key, &payload)? {
            return Ok(self.unchanged(key, stamp.size));
        }
        let attributes = stamp.attributes(read_at);
        Ok(Work::Put(SmallFile {
            key,
            payload,
            attributes,
        }))
    }

    fn take_in_large(
        &self,
        path: &[u8],
        key: BinaryKey,
        mut file: File,
        stamp: Stamp,
        read_at: SystemTime,
        compare: bool,
    ) -> Result<Work, Failure> {
        if compare {
            let opened = self.store.get_stream(&key, GetOptions::default()).wait();
            let same = match opened {
                Ok(reader) => same_bytes(reader, &mut file),
                Err(error) => Err(TransferError::Store(error)),
            };
            match same {
                Ok(true) => return Ok(self.unchanged(key, stamp.size)),
                Ok(false) => {}
                // What can't be read is put anew.
                Err(TransferError::Store(error)) if error.kind() == ErrorKind::Corruption => {}
                Err(error) => return Err(error.reading_from(&keys::text(path))),
            }
            file.rewind().map_err(|error| about(path, &error))?;
        }
        let options = PutOptions {
            size: Some(stamp.size),
            attributes: stamp.attributes(read_at),
            ..PutOptions::default()
        };
        let source = StopAt {
            file: &file,
            stop: &self.stop,
        };
        self.put_large(path, key, options, source, &file, stamp)
    }

    /// Puts what `source` reads from the file, if the file has not changed by its end.
    fn put_large(
        &self,
        path: &[u8],
        key: BinaryKey,
        options: PutOptions,
        mut source: impl io::Read,
        file: &File,
        stamp: Stamp,
    ) -> Result<Work, Failure> {
        let mut writer = self.store.put_stream(&key, options)?;
        pour_in(&mut source, &mut writer, &mut |bytes| {
            self.progress.advance(bytes);
        })
        .map_err(|error| error.reading_from(&keys::text(path)))?;
        // Dropped unfinished, the writer leaves nothing behind.
        check_unchanged(file, stamp).map_err(|error| about(path, &error))?;
        let outcome = writer.finish().wait()?;
        Ok(Work::Settled(Settled::Imported { key, outcome }))
    }

    /// What the store has under `key`; what it has but can't read counts as nothing, and is put
    /// anew.
    fn existing(&self, key: &BinaryKey) -> Result<Option<BlobInfo>, Failure> {
        if self.was_empty {
            return Ok(None);
        }
        match self.store.stat(key).wait() {
            Ok(info) => Ok(Some(info)),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corruption) => {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the blob's bytes are these.
    fn is_stored(&self, key: &BinaryKey, payload: &Bytes) -> Result<bool, Failure> {
        match self.store.get(key, GetOptions::default()).wait() {
            Ok(blob) => Ok(blob.bytes == payload),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corruption) => {
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn unchanged(&self, key: BinaryKey, size: u64) -> Work {
        self.progress.advance(size);
        Work::Settled(Settled::Unchanged { key, size })
    }

    /// The committer: keeps puts in flight, and says what became of everything.
    fn commit(&self, session: &Session, work: &Receiver<Work>, tally: &mut Tally) {
        let mut flying: VecDeque<(BinaryKey, u64, StoreOp<PutOutcome>)> = VecDeque::new();
        let mut bytes_flying = 0;
        loop {
            while flying.len() < PUTS_IN_FLIGHT && bytes_flying < BYTES_IN_FLIGHT {
                // With puts in flight, only what is there already is taken; then the oldest put
                // is waited for.
                let next = if flying.is_empty() {
                    work.recv().ok()
                } else {
                    work.try_recv().ok()
                };
                match next {
                    None => break,
                    Some(Work::Settled(settled)) => self.settle(session, settled, tally),
                    Some(Work::Put(_)) if self.stopped() => {}
                    Some(Work::Put(small)) => {
                        let size = crate::transfer::length(&small.payload);
                        let options = PutOptions {
                            size: Some(size),
                            attributes: small.attributes,
                            ..PutOptions::default()
                        };
                        let op = self.store.put(&small.key, small.payload, options);
                        bytes_flying += size;
                        flying.push_back((small.key, size, op));
                    }
                }
            }
            let Some((key, size, op)) = flying.pop_front() else {
                return;
            };
            bytes_flying -= size;
            let settled = match op.wait() {
                Ok(outcome) => {
                    self.progress.advance(size);
                    Settled::Imported { key, outcome }
                }
                Err(error) => Settled::Failed {
                    failure: naming(&key, error.into()),
                },
            };
            self.settle(session, settled, tally);
        }
    }

    fn settle(&self, session: &Session, settled: Settled, tally: &mut Tally) {
        let said = tally.settle(session, &self.progress, settled);
        if let Err(failure) = said {
            self.stop.store(true, Ordering::Relaxed);
            tally.ended_by.get_or_insert(failure);
        }
    }
}

/// Reads a file until the import is stopped.
struct StopAt<'a> {
    file: &'a File,
    stop: &'a AtomicBool,
}

impl io::Read for StopAt<'_> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("the import ended"));
        }
        self.file.read(target)
    }
}

/// A failure about one path in the tree.
fn about(path: &[u8], why: &(impl std::fmt::Display + ?Sized)) -> Failure {
    Failure::failed(format!("{}: {why}", keys::text(path)))
}

/// The failure with the key it is about, if it does not name it already.
fn naming(key: &BinaryKey, failure: Failure) -> Failure {
    // A short key may be found in any message.
    let named = |kind: &str, message: &str| match kind {
        "failed" => true,
        "no_space" | "io" | "unavailable" => false,
        "corruption" => message.contains(&format!("({key})")),
        _ => message.contains(&key.to_string()),
    };
    match failure {
        Failure::Error {
            exit,
            kind,
            message,
        } if !named(kind, &message) => Failure::Error {
            exit,
            kind,
            message: format!("{key}: {message}"),
        },
        other => other,
    }
}

/// An error if the file is not as it was when its stamp was taken.
fn check_unchanged(file: &File, stamp: Stamp) -> io::Result<()> {
    if Stamp::of(file)? == Some(stamp) {
        Ok(())
    } else {
        Err(io::Error::other("it changed while it was read"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use graviton_engine::store::{CreateOptions, MIB};
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_file_that_changes_while_it_is_read_is_noticed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        std::fs::write(&path, b"12345").expect("written");
        let mut file = File::open(&path).expect("opened");
        let stamp = Stamp::of(&file).expect("known").expect("regular");
        std::fs::write(&path, b"1234567").expect("written");
        assert!(read_exactly(&mut file, stamp.size).is_err());
        assert!(check_unchanged(&file, stamp).is_err());
    }

    /// Reads a file that is written to in place as soon as a piece of it was read.
    struct WrittenTo<'a>(&'a File);

    impl io::Read for WrittenTo<'_> {
        fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
            let read = self.0.read(target)?;
            self.0.write_all_at(b"new", 2 * PIECE)?;
            Ok(read)
        }
    }

    /// A blob is what a file was at one time, and no mixture; what was imported before stays.
    #[test]
    fn a_large_file_that_changes_while_it_is_imported_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        std::fs::write(&path, vec![b'o'; 3 << 20]).expect("written");
        let file = File::options().read(true).write(true).open(&path);
        let file = file.expect("opened");
        // It has not been written to for long: the clock of such times need not tick for the change to show.
        file.set_modified(SystemTime::UNIX_EPOCH).expect("set");
        let stamp = Stamp::of(&file).expect("known").expect("regular");
        let options = CreateOptions {
            sector_size: 16 * MIB,
            ..CreateOptions::default()
        };
        let store = Store::create(directory.path().join("store"), options).expect("made");
        let key = BinaryKey::new("file").expect("a key");
        let put = store.put(&key, "before".into(), PutOptions::default());
        put.wait().expect("put");
        let import = Import {
            root: &Root::open(directory.path()).expect("opened"),
            store: &store,
            prefix: b"",
            exclude: None,
            compare_content: false,
            was_empty: false,
            stop: AtomicBool::new(false),
            progress: Progress::new(false, "importing", stamp.size),
        };
        let options = PutOptions {
            size: Some(stamp.size),
            ..PutOptions::default()
        };
        let source = WrittenTo(&file);
        let put = import.put_large(b"file", key.clone(), options, source, &file, stamp);
        let Err(Failure::Error { message, .. }) = put else {
            panic!("it was imported");
        };
        assert_eq!(message, "file: it changed while it was read");
        let got = store.get(&key, GetOptions::default()).wait();
        assert_eq!(got.expect("got").bytes, "before");
    }
}

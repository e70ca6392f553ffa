//! Fetches a file into a blob with many threads, in pieces and in any order. Killed at any moment and
//! started again, it goes on where it was: what lacks is what was on its way.
//!
//! ```text
//! cargo run --release -p graviton-engine --example fetch -- FILE STORE KEY [THREADS]
//! ```

use std::error::Error;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use graviton_engine::port::{
    BinaryKey, BlobStore, Completed, Digest, DigestAlgorithm, DigestHasher, Durability, ErrorKind,
    Expected, GetOptions, MutableObjectStore, Precondition, PutOptions, PutRangeOptions, RangeSet,
    RangeTracker, Span, StorageError, TrackOptions, TrackerError,
};
use graviton_engine::store::{CreateOptions, MIB, Store};

/// The most threads.
const THREADS_MAX: usize = 256;
/// Bytes that a thread fetches at once.
pub const PIECE: u64 = MIB;

/// Where the bytes come from.
pub trait Origin: Sync {
    /// How many there are.
    fn size(&self) -> u64;

    /// Some of them.
    fn read(&self, range: Span) -> std::io::Result<Vec<u8>>;
}

/// Hears what happens.
pub trait Progress: Sync {
    /// At the start: what is to be fetched.
    fn begins(&self, pending: &RangeSet);

    /// A piece is there, and durable.
    fn fetched(&self, piece: Span);
}

/// Fetches all of `origin` that the blob `key` lacks, and returns the blob's digest.
pub fn fetch(
    store: &Store,
    key: &BinaryKey,
    origin: &dyn Origin,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Digest, Box<dyn Error + Send + Sync>> {
    let size = origin.size();
    let new = PutOptions {
        precondition: Precondition::IfAbsent,
        ..PutOptions::default()
    };
    match store.create_sparse(key, size, new).wait() {
        // It was begun before.
        Err(error) if error.kind() == ErrorKind::Conflict => {}
        Err(error) => return Err(error.into()),
        Ok(_) => {}
    }
    let blob = store.ranges().get_completed(key).wait()?;
    if blob.total != Some(size) {
        let total = blob.total.unwrap_or(0);
        return Err(format!("{key} has {total} bytes, the origin {size}").into());
    }
    progress.begins(&blob.pending(size));

    // What a thread is at, nobody else begins. That concerns this process alone: claims of one that
    // was killed are forgotten.
    let claims = store.ranges_elsewhere();
    claims.forget(key).wait()?;
    if !blob.set.is_empty() {
        claims.mark_complete(key, &blob.set, lasting(size)).wait()?;
    }
    let failure = Mutex::new(None);
    thread::scope(|scope| {
        for number in 0..threads {
            let (claims, failure) = (&*claims, &failure);
            scope.spawn(move || {
                let fetched = fetch_pieces(store, key, origin, claims, number, progress);
                if let Err(error) = fetched {
                    failure.lock().expect("nobody panics").get_or_insert(error);
                }
            });
        }
    });
    claims.forget(key).wait()?;
    if let Some(error) = failure.into_inner()? {
        return Err(error);
    }

    // It is an error if anything is missing.
    let mut reader = store.get_stream(key, GetOptions::default()).wait()?;
    let mut hasher = DigestHasher::new(DigestAlgorithm::Blake3);
    while let Some(bytes) = reader.next().wait()? {
        hasher.update(&bytes);
    }
    Ok(hasher.finish())
}

/// Claims need not outlive a power loss.
fn lasting(total: u64) -> TrackOptions {
    TrackOptions {
        total: Some(total),
        durability: Durability::Written,
    }
}

/// Fetches pieces until nothing is left that nobody is at.
fn fetch_pieces(
    store: &Store,
    key: &BinaryKey,
    origin: &dyn Origin,
    claims: &dyn RangeTracker,
    thread: usize,
    progress: &dyn Progress,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut random =
        0x9e37_79b9_7f4a_7c15_u64 ^ (thread as u64 + 1) << 32 ^ std::process::id() as u64;
    let mut known = match claims.get_completed(key).wait() {
        Err(TrackerError::NotFound { .. }) => Completed::default(),
        known => known?,
    };
    loop {
        let free = known.pending(origin.size());
        // Marsaglia's xorshift64.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let Some(piece) = choose(&free, random)? else {
            return Ok(());
        };
        let mut update = known.set.clone();
        update.insert(piece);
        let claimed = claims
            .compare_and_set(
                key,
                Expected::from(known.set),
                &update,
                lasting(origin.size()),
            )
            .wait();
        known = match claimed {
            Ok(known) => known,
            // Another thread was faster: this is what is claimed now.
            Err(TrackerError::Mismatch { actual, .. }) => {
                known = *actual;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let bytes = origin.read(piece)?.into();
        // It is in the blob's tracker once it is durable, and not before.
        store
            .put_range(key, piece, bytes, PutRangeOptions::default())
            .wait()?;
        progress.fetched(piece);
    }
}

/// A piece of what is free, wherever `random` falls.
fn choose(free: &RangeSet, random: u64) -> Result<Option<Span>, StorageError> {
    if free.is_empty() {
        return Ok(None);
    }
    let pick = usize::try_from(random % free.spans().len() as u64).unwrap_or(0);
    let span = free.spans()[pick];
    let first = span.start() / PIECE;
    let last = (span.end() - 1) / PIECE;
    let piece = Span::at((first + (random >> 32) % (last - first + 1)) * PIECE, PIECE)?;
    Ok(Some(piece.intersection(span)))
}

/// A file.
struct Local {
    file: File,
    size: u64,
}

impl Local {
    fn open(path: &Path) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(format!("{} is no regular file", path.display()).into());
        }
        let size = metadata.len();
        Ok(Self { file, size })
    }
}

impl Origin for Local {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, range: Span) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(range.len()).map_err(std::io::Error::other)?];
        self.file.read_exact_at(&mut bytes, range.start())?;
        Ok(bytes)
    }
}

/// Says it on the standard output.
#[derive(Default)]
struct Told {
    pieces: AtomicUsize,
}

impl Progress for Told {
    fn begins(&self, pending: &RangeSet) {
        println!(
            "{} bytes to fetch, in {} spans",
            pending.len(),
            pending.spans().len()
        );
    }

    fn fetched(&self, _: Span) {
        let pieces = self.pieces.fetch_add(1, Ordering::Relaxed) + 1;
        if pieces.is_multiple_of(100) {
            println!("{pieces} pieces");
        }
    }
}

#[allow(dead_code, reason = "a test has this file as a module")]
fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fetch: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error + Send + Sync>> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let (file, store, key, threads) = match arguments.as_slice() {
        [file, store, key] => (file, store, key, 8),
        [file, store, key, threads] => {
            let threads = threads.to_str().and_then(|threads| threads.parse().ok());
            let threads = threads.filter(|threads| (1..=THREADS_MAX).contains(threads));
            let expected = format!("expected 1 to {THREADS_MAX} threads");
            (file, store, key, threads.ok_or(expected)?)
        }
        _ => return Err("expected FILE STORE KEY [THREADS]".into()),
    };
    let (origin, key) = (
        Local::open(Path::new(file))?,
        BinaryKey::new(key.as_bytes())?,
    );
    let store = open(Path::new(store), origin.size())?;
    let digest = fetch(&store, &key, &origin, threads, &Told::default())?;
    let expected = digest_of(&origin)?;
    if digest != expected {
        return Err(format!(
            "{key} has the digest {digest}, the origin {expected}: it has changed since; delete the blob, and \
             fetch it again"
        )
        .into());
    }
    println!("{key}: {digest}");
    Ok(store.close()?)
}

/// The digest that the blob is to have.
pub fn digest_of(origin: &dyn Origin) -> Result<Digest, Box<dyn Error + Send + Sync>> {
    let mut hasher = DigestHasher::new(DigestAlgorithm::Blake3);
    for start in (0..origin.size()).step_by(usize::try_from(PIECE)?) {
        let range = Span::new(start, origin.size().min(start + PIECE))?;
        hasher.update(&origin.read(range)?);
    }
    Ok(hasher.finish())
}

/// Opens a store; creates one with room for a blob of `size` bytes if there is none.
pub fn open(path: &Path, size: u64) -> Result<Store, StorageError> {
    match Store::open(path) {
        Err(StorageError::NoStore { .. }) => {
            let sector_size = size + size / 4 + 64 * MIB;
            let options = CreateOptions {
                sector_size,
                ..CreateOptions::default()
            };
            Store::create(path, options)
        }
        opened => opened,
    }
}

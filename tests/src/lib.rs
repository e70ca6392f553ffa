//! Helpers of the whole-store tests: stores in temporary directories, on every backend.

pub mod between;
pub mod command;
pub mod history;
pub mod image;
pub mod mutations;
pub mod policies;
pub mod random;
pub mod reopening;
pub mod trees;

use std::io::Write;
use std::ops::{ControlFlow, RangeInclusive};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

pub use graviton_engine::io::sim;
use graviton_engine::io::sim::{Fault, FaultKind, Image, Sim};
use graviton_engine::io::{BackendChoice, DirectIo, IoOptions};
use graviton_engine::port::{
    BinaryKey, BlobStore, Durability, GetOptions, Holes, ListRequest, MutableObjectStore,
    PutOptions, StorageError, StoreOp,
};
use graviton_engine::store::{
    CreateOptions, KIB, MIB, OpenOptions, RebalanceOptions, RebalanceReport, Store,
};
use graviton_engine::testing::{Difference, Replicated, Subject};
use graviton_format::Geometry;
use tempfile::TempDir;

/// Where test stores lie: `GRAVITON_TEST_DIR` if it is set (another file system, say), else the
/// system's place for temporary files.
///
/// # Panics
/// If no directory can be made there.
#[must_use]
pub fn test_directory() -> TempDir {
    let made = match std::env::var_os("GRAVITON_TEST_DIR") {
        Some(place) => TempDir::with_prefix_in("graviton-test-", PathBuf::from(place)),
        None => TempDir::with_prefix("graviton-test-"),
    };
    made.expect("a temporary directory can be made")
}

/// As [`test_directory`], but in memory if there is such a place and no other was asked for: for
/// tests of bytes, which a disk only slows down.
///
/// # Panics
/// If no directory can be made there.
#[must_use]
pub fn memory_directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    if std::env::var_os("GRAVITON_TEST_DIR").is_none()
        && let Ok(made) = TempDir::with_prefix_in("graviton-test-", memory)
    {
        return made;
    }
    test_directory()
}

/// I/O through one backend; `None`, with a line that says so, where it does not work.
///
/// # Panics
/// If plain system calls do not work.
#[must_use]
pub fn io(backend: BackendChoice) -> Option<IoOptions> {
    let options = IoOptions {
        backend,
        ..IoOptions::default()
    };
    match graviton_engine::io::open_backend(&options) {
        Ok(_) => Some(options),
        Err(error) => {
            assert!(
                backend != BackendChoice::Syscall,
                "plain system calls work everywhere: {error}"
            );
            skipped(&format!("{backend:?} does not work here: {error}"));
            None
        }
    }
}

/// Says that a test is skipped, and why, also where what tests print is seen only if they fail.
pub fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// Buffered I/O through plain system calls.
#[must_use]
pub fn buffered() -> IoOptions {
    IoOptions {
        backend: BackendChoice::Syscall,
        direct: DirectIo::Never,
        ..IoOptions::default()
    }
}

/// A store of `sectors` sectors of `sector_size` bytes.
#[must_use]
pub fn create_options(io: &IoOptions, sectors: u16, sector_size: u64) -> CreateOptions {
    let open = OpenOptions {
        io: io.clone(),
        ..OpenOptions::default()
    };
    CreateOptions {
        sectors,
        sector_size,
        open,
        ..CreateOptions::default()
    }
}

/// The next operation of a kind fails, on one disk.
pub fn fail_next(sim: &Sim, disk: usize, kind: FaultKind) {
    sim.set_faults(&[Fault {
        kind,
        after: 0,
        times: 1,
        disk: Some(disk),
    }]);
}

/// An image, but for one disk, which is as in another.
///
/// # Panics
/// If there is no such disk.
#[must_use]
pub fn with_disk_of(image: &Image, disk: usize, other: &Image) -> Image {
    let mut mixed = image.clone();
    mixed.edit(disk, 0, &bytes_of(other, disk));
    mixed
}

/// Everything that one disk of an image has.
///
/// # Panics
/// If there is no such disk.
#[must_use]
pub fn bytes_of(image: &Image, disk: usize) -> Vec<u8> {
    let mut bytes = vec![0; image.size(disk).expect("there is such a disk")];
    image.read(disk, 0, &mut bytes);
    bytes
}

/// Where the blocks of 512 bytes lie, between the superblocks, in which two images of a store's first sector differ.
///
/// # Panics
/// If there is no such sector.
#[must_use]
pub fn blocks_that_differ(one: &Image, other: &Image) -> Vec<usize> {
    /// Superblocks and roots lie within this of either end.
    const ENDS: usize = 64 << 10;
    let (one, other) = (bytes_of(one, 0), bytes_of(other, 0));
    let blocks = (ENDS..one.len() - ENDS).step_by(512);
    let differ = |at: &usize| one[*at..*at + 512] != other[*at..*at + 512];
    blocks.filter(differ).collect()
}

/// Stores in a temporary directory, for the contract kit.
#[derive(Debug)]
pub struct StoreSubject {
    options: CreateOptions,
    directory: TempDir,
    made: u32,
    path: PathBuf,
}

impl StoreSubject {
    /// Stores made with these options.
    #[must_use]
    pub fn new(options: CreateOptions) -> Self {
        Self {
            options,
            directory: test_directory(),
            made: 0,
            path: PathBuf::new(),
        }
    }

    /// Where the store last made lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn make(&mut self) -> Arc<Store> {
        if self.made > 0 {
            std::fs::remove_dir_all(&self.path).expect("the store before can be removed");
        }
        self.made += 1;
        self.path = self.directory.path().join(format!("store-{}", self.made));
        Arc::new(Store::create(&self.path, self.options.clone()).expect("a store can be made"))
    }

    fn open(&self) -> Arc<Store> {
        let store = Store::open_with(&self.path, self.options.open.clone());
        Arc::new(store.expect("the store opens again"))
    }
}

impl Subject for StoreSubject {
    fn fresh(&mut self) -> Arc<dyn BlobStore> {
        self.make()
    }

    fn reopen(&mut self, store: Arc<dyn BlobStore>) -> Arc<dyn BlobStore> {
        drop(store);
        self.open()
    }
}

impl Subject<dyn MutableObjectStore> for StoreSubject {
    fn fresh(&mut self) -> Arc<dyn MutableObjectStore> {
        self.make()
    }

    fn reopen(&mut self, store: Arc<dyn MutableObjectStore>) -> Arc<dyn MutableObjectStore> {
        drop(store);
        self.open()
    }
}

/// A store and the index of its replicas, for the contract kit.
#[must_use]
pub fn replicated(store: Arc<Store>) -> Arc<Replicated> {
    let index = store.replicas();
    Arc::new(Replicated { store, index })
}

impl Subject<Replicated> for StoreSubject {
    fn fresh(&mut self) -> Arc<Replicated> {
        replicated(self.make())
    }

    fn reopen(&mut self, store: Arc<Replicated>) -> Arc<Replicated> {
        drop(store);
        replicated(self.open())
    }

    fn has_partial_replicas(&self) -> bool {
        false
    }
}

/// Options of the store most contract tests run on.
#[must_use]
pub fn contract_options(io: &IoOptions) -> CreateOptions {
    create_options(io, 1, 128 * MIB)
}

/// All keys of a store, in order.
///
/// # Errors
/// What the store reports.
pub fn all_keys(store: &dyn BlobStore) -> Result<Vec<BinaryKey>, StorageError> {
    let mut keys = Vec::new();
    let mut request = ListRequest::default();
    loop {
        let page = store.list(request.clone()).wait()?;
        keys.extend(page.blobs.into_iter().map(|entry| entry.key));
        match page.next {
            Some(token) => request.token = Some(token),
            None => return Ok(keys),
        }
    }
}

/// Does maintenance until there is none left to do.
///
/// # Errors
/// If it comes to no end.
pub fn settle(store: &Store) -> Result<(), Difference> {
    for _ in 0..100_000 {
        // A sector that can't be read keeps compaction from going on there, and nothing else.
        if let Ok(false) = store.step() {
            return Ok(());
        }
    }
    let step = store.step();
    let info = store.info();
    Err(format!("maintenance comes to no end: {step:?}, {info:#?}"))
}

/// Moves replicas to better places, as fast as it goes.
///
/// # Errors
/// What the store reports.
pub fn rebalance(store: &Store) -> Result<RebalanceReport, StorageError> {
    let options = RebalanceOptions::default();
    store.rebalance(&options, &mut |_| ControlFlow::Continue(()))
}

/// Checks that every blob lies in two sectors, or in more.
///
/// # Errors
/// The first that does not.
pub fn check_two_replicas(store: &Store) -> Result<(), Difference> {
    check_replicas(store, 2..=usize::MAX)
}

/// Checks that every blob lies in so many sectors.
///
/// # Errors
/// The first that does not.
pub fn check_replicas(store: &Store, wanted: RangeInclusive<usize>) -> Result<(), Difference> {
    let keys = all_keys(store).map_err(|error| format!("list: {error}"))?;
    for key in keys {
        let found = store.stat(&key).wait().map_err(|error| error.to_string())?;
        if !wanted.contains(&found.sectors.len()) {
            return Err(format!("{key} lies in {:?}", found.sectors));
        }
    }
    Ok(())
}

/// Checks that every sector's bytes are accounted for, and nothing ails the store.
///
/// # Panics
/// If that is not so.
pub fn check_figures(store: &Store) {
    let info = store.info();
    assert_eq!(info.health, Vec::<String>::new());
    for sector in &info.sectors {
        let space = sector.space;
        assert_eq!(
            space.metadata + space.live + space.garbage + space.free,
            space.total,
            "{space:?}"
        );
        assert_eq!(space.total % KIB, 0);
    }
}

/// The measures of a store's first sector.
#[must_use]
pub fn geometry(store: &Store) -> Geometry {
    let sector = &store.info().sectors[0];
    Geometry {
        block_size: sector.block_size,
        segment_size: sector.segment_size,
        segment_count: sector.segment_count,
    }
}

/// A plain put, as durable as this.
#[must_use]
pub fn put_options(durability: Durability) -> PutOptions {
    PutOptions {
        durability,
        ..PutOptions::default()
    }
}

/// A get of all of a blob, holes and all.
#[must_use]
pub fn with_holes() -> GetOptions {
    GetOptions {
        holes: Holes::Zeros,
        ..GetOptions::default()
    }
}

/// The number an environment variable holds, if it is set.
///
/// # Panics
/// If it holds anything else: a run that takes it for unset would seem to have done what was asked.
#[must_use]
pub fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    match text.parse() {
        Ok(number) => Some(number),
        Err(error) => panic!("{variable}={text} is not a number here: {error}"),
    }
}

/// Asks an operation once whether it is over. What is queued begins by that, and stays under way where a simulated
/// machine leaves in flight what nobody waits for.
pub fn begin<T: Unpin>(mut op: StoreOp<T>) -> StoreOp<T> {
    let mut context = Context::from_waker(Waker::noop());
    match Pin::new(&mut op).poll(&mut context) {
        Poll::Ready(answer) => StoreOp::ready(answer),
        Poll::Pending => op,
    }
}

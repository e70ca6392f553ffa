//! What is done over and over, and what fails over and over, leaves nothing behind in the process: no descriptor, no
//! thread, no memory. `GRAVITON_CYCLES` says how often; the only test here, for it counts what the process has.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use graviton_engine::io::BackendChoice;
use graviton_engine::port::{
    BinaryKey, BlobStore, CompleteOptions, CopyOptions, DeleteOptions, Durability, GetOptions,
    ListRequest, MutableObjectStore, Precondition, PutOptions, PutRangeOptions, Span, StorageError,
    UploadOptions,
};
use graviton_engine::store::{CreateOptions, MIB, OpenOptions, Store};
use graviton_tests::random::{Random, payload};
use graviton_tests::{create_options, io, memory_directory, number_from, put_options};

/// What differs between two moments at which as much is there: pages that an allocator keeps.
const SLACK_KIB: u64 = 6 << 10;
/// How long what is given up may take to be gone.
const PATIENCE: Duration = Duration::from_secs(20);
/// So many operations for each time that a store is opened.
const PER_OPENING: u64 = 100;

fn cycles() -> u64 {
    number_from("GRAVITON_CYCLES").unwrap_or(8_000)
}

/// What the process has.
#[derive(Debug, Clone, Copy)]
struct Held {
    descriptors: usize,
    threads: usize,
    /// Memory in use, in KiB.
    memory: u64,
}

impl Held {
    fn now() -> Self {
        let count = |path: &str| fs::read_dir(path).expect("the system tells").count();
        let status = fs::read_to_string("/proc/self/status").expect("the system tells");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|line| line.split_whitespace().next());
        Self {
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            memory: resident.and_then(|text| text.parse().ok()).unwrap_or(0),
        }
    }

    /// Whether it is no more than that, but for the slack of memory.
    fn is_within(self, other: Self) -> bool {
        self.descriptors <= other.descriptors
            && self.threads <= other.threads
            && self.memory <= other.memory + SLACK_KIB
    }
}

fn key(number: usize) -> BinaryKey {
    BinaryKey::new(format!("key/{number:02}")).expect("a short key")
}

/// Does something, much of which fails.
fn act(store: &Store, random: &mut Random) -> Result<(), StorageError> {
    let (one, other) = (key(random.below(20)), key(random.below(20)));
    match random.below(12) {
        0..=2 => {
            let durability = *random.pick(&[Durability::Written, Durability::Durable]);
            let bytes = payload(random.number(), random.size(1, 40_000));
            store.put(&one, bytes, put_options(durability)).wait()?;
        }
        3 => {
            let only_new = PutOptions {
                precondition: Precondition::IfAbsent,
                ..PutOptions::default()
            };
            store
                .put(&one, Bytes::from_static(b"new"), only_new)
                .wait()?;
        }
        4 => {
            store.get(&one, GetOptions::default()).wait()?;
        }
        5 => {
            let beyond = GetOptions {
                range: Some(1 << 30..(1 << 30) + 10),
                ..GetOptions::default()
            };
            store.get(&one, beyond).wait()?;
        }
        6 => {
            store.copy(&one, &other, CopyOptions::default()).wait()?;
        }
        7 => {
            store.delete(&one, DeleteOptions::default()).wait()?;
        }
        8 => {
            store.list(ListRequest::default()).wait()?;
        }
        9 => {
            let span = Span::at(random.below(1000) as u64, 100)?;
            let options = PutRangeOptions::default();
            store
                .put_range(&one, span, payload(1, 100), options)
                .wait()?;
        }
        10 => {
            let upload = store.start_upload(&one, UploadOptions::default()).wait()?;
            let part = store.upload_part(upload, 1, payload(2, 5000), PutOptions::default());
            let part = part.wait()?;
            match random.below(3) {
                0 => store.abort_upload(upload).wait()?,
                1 => {
                    let parts = [(1, part.etag)];
                    store
                        .complete_upload(upload, &parts, CompleteOptions::default())
                        .wait()?;
                }
                _ => {
                    let wrong = [(2, part.etag)];
                    let wrong = store.complete_upload(upload, &wrong, CompleteOptions::default());
                    assert!(wrong.wait().is_err());
                    store.abort_upload(upload).wait()?;
                }
            }
        }
        _ => {
            // Begun, and given up.
            let mut writer = store.put_stream(&one, PutOptions::default())?;
            writer.write(payload(3, 20_000)).wait()?;
        }
    }
    Ok(())
}

/// Opens the store, uses it, and closes it; opens what is none, and what is in use.
fn cycle(path: &Path, options: &OpenOptions, random: &mut Random) {
    let store = Store::open_with(path, options.clone()).expect("it opens");
    let second = Store::open_with(path, options.clone());
    assert!(matches!(second, Err(StorageError::Locked { .. })));
    let none = Store::open_with(path.join("none"), options.clone());
    assert!(matches!(none, Err(StorageError::NoStore { .. })));
    for _ in 0..PER_OPENING {
        match act(&store, random) {
            Ok(())
            | Err(
                StorageError::NotFound { .. }
                | StorageError::PreconditionFailed { .. }
                | StorageError::InvalidRange { .. }
                | StorageError::InvalidArgument { .. },
            ) => {}
            Err(error) => panic!("{error}"),
        }
    }
    if random.one_in(4) {
        store.checkpoint().expect("a checkpoint is taken");
    }
}

#[test]
fn nothing_is_left_behind() {
    for backend in [BackendChoice::Uring, BackendChoice::Syscall] {
        let Some(io) = io(backend) else { continue };
        let directory = memory_directory();
        let path = directory.path().join("store");
        let options = CreateOptions {
            replicas: 2,
            ..create_options(&io, 2, 32 * MIB)
        };
        let open = OpenOptions {
            cache_bytes: MIB,
            ..options.open.clone()
        };
        drop(Store::create(&path, options).expect("it is made"));
        let mut random = Random::new(1);
        let openings = (cycles() / PER_OPENING).max(8);
        let mut first = None;
        for opening in 0..openings {
            if opening == openings / 4 {
                first = Some(Held::now());
            }
            cycle(&path, &open, &mut random);
        }
        let first = first.expect("there was one");
        // The kernel takes down rings and threads behind those who gave them up.
        let begun = Instant::now();
        let last = loop {
            let held = Held::now();
            if held.is_within(first) || begun.elapsed() > PATIENCE {
                break held;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        println!("{backend:?}: {openings} openings, {first:?}, then {last:?}");
        assert!(
            last.is_within(first),
            "{backend:?}: {first:?}, then {last:?}"
        );
    }
}

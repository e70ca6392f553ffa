//! What the system keeps from a store: io_uring, as the profile of a container does, and threads. A filter of system
//! calls takes them from one thread of the test, and from those that it starts.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use graviton_engine::io::{BackendChoice, IoOptions};
use graviton_engine::port::{
    BinaryKey, BlobStore, DeleteOptions, ErrorKind, GetOptions, MutableObjectStore, PutOptions,
    PutRangeOptions, Span, StorageError,
};
use graviton_engine::store::{CreateOptions, MIB, OpenOptions, Store};
use graviton_tests::random::payload;
use graviton_tests::{memory_directory, test_directory};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

const IO_URING_SETUP: i64 = 425;
const CLONE3: i64 = 435;
const EPERM: u32 = 1;
const EAGAIN: u32 = 11;
const ENOMEM: u32 = 12;
const ENOSYS: u32 = 38;

/// From here on this system call fails with this error, in this thread.
fn forbid(call: i64, errno: u32) {
    let architecture = TargetArch::try_from(std::env::consts::ARCH).expect("one that is known");
    let filter = SeccompFilter::new(
        BTreeMap::from([(call, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(errno),
        architecture,
    );
    let program: BpfProgram = filter.and_then(TryInto::try_into).expect("it is a filter");
    apply_filter(&program).expect("it is put in place");
}

/// In a thread of its own, which takes along what is forbidden there.
fn apart(run: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(run);
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn key(name: &str) -> BinaryKey {
    BinaryKey::new(name).expect("a short key")
}

fn options(backend: BackendChoice) -> CreateOptions {
    CreateOptions {
        sector_size: 32 * MIB,
        open: OpenOptions {
            io: IoOptions {
                backend,
                ..IoOptions::default()
            },
            ..OpenOptions::default()
        },
        ..CreateOptions::default()
    }
}

/// Puts blobs of every kind, and reads them.
fn use_store(store: &Store) {
    for (name, size) in [("small", 100), ("large", 300_000), ("longer", 5 << 20)] {
        let put = store.put(&key(name), payload(1, size), PutOptions::default());
        put.wait().expect("it is put");
    }
    let range = Span::at(10, 100).expect("in order");
    let bytes = payload(2, 100);
    let put = store.put_range(&key("large"), range, bytes, PutRangeOptions::default());
    put.wait().expect("it is put");
    // What nobody waits for comes about as well.
    drop(store.put(&key("dropped"), payload(3, 5 << 20), PutOptions::default()));
    drop(store.delete(&key("small"), DeleteOptions::default()));
    store.flush().wait().expect("it is flushed");
    store.checkpoint().expect("a checkpoint is taken");
    check(store);
}

fn check(store: &Store) {
    let get = |name: &str| {
        let got = store.get(&key(name), GetOptions::default()).wait();
        got.map(|blob| blob.bytes)
    };
    let mut large = payload(1, 300_000).to_vec();
    large[10..110].copy_from_slice(&payload(2, 100));
    assert_eq!(get("large").expect("it is there"), large);
    let longer = get("longer").expect("it is there");
    assert!(longer == payload(1, 5 << 20));
    assert!(get("dropped").expect("it is there") == payload(3, 5 << 20));
    assert!(matches!(get("small"), Err(StorageError::NotFound { .. })));
    assert_eq!(
        store.verify(&mut |_| {}).expect("it is verified").findings,
        []
    );
}

/// Where io_uring is forbidden plain system calls do all that it does, and that it is so is said.
#[test]
fn plain_calls_take_the_place_of_io_uring() {
    for (errno, said) in [(EPERM, "EPERM"), (ENOSYS, "ENOSYS"), (ENOMEM, "ENOMEM")] {
        let directory = test_directory();
        let path = directory.path().join("store");
        let used = path.clone();
        apart(move || {
            forbid(IO_URING_SETUP, errno);
            let refused = Store::create(&used, options(BackendChoice::Uring));
            let error = refused.expect_err("it is forbidden");
            assert!(error.to_string().contains(said), "{error}");
            assert!(!Path::new(&used).exists(), "it is left behind");
            let store = Store::create(&used, options(BackendChoice::Auto)).expect("it is made");
            let info = store.info();
            assert_eq!(info.backend, "syscall");
            let notice = info.notice.expect("it is said");
            assert!(
                notice.contains(said) && notice.contains("plain system calls"),
                "{notice}"
            );
            use_store(&store);
            store.close().expect("it closes");
        });
        let store = Store::open(&path).expect("it opens");
        check(&store);
    }
}

/// A future that is polled by nobody who could drive it, until it is over.
fn polled<T>(mut future: impl Future<Output = T> + Unpin) -> T {
    loop {
        let polled = Pin::new(&mut future).poll(&mut Context::from_waker(Waker::noop()));
        match polled {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::yield_now(),
        }
    }
}

/// Where no thread can be started a store is not opened, and says why; one that is open goes on, whoever waits or polls;
/// and once there are threads again all is well.
#[test]
fn no_thread_can_be_started() {
    for backend in [BackendChoice::Uring, BackendChoice::Syscall] {
        let directory = memory_directory();
        let path = directory.path().join("store");
        let used = path.clone();
        apart(move || {
            let store = match Store::create(&used, options(backend)) {
                Ok(store) => store,
                Err(error) if backend == BackendChoice::Uring => {
                    eprintln!("skipped: {error}");
                    return;
                }
                Err(error) => panic!("{error}"),
            };
            forbid(CLONE3, EAGAIN);
            if std::thread::Builder::new().spawn(|| ()).is_ok() {
                eprintln!("skipped: threads are started by another system call here");
                return;
            }
            use_store(&store);
            let put = store.put(
                &key("polled"),
                Bytes::from("by nobody"),
                PutOptions::default(),
            );
            polled(put).expect("it is put");
            let got = polled(store.get(&key("polled"), GetOptions::default()));
            assert_eq!(got.expect("it is there").bytes, "by nobody");
            store.close().expect("it closes");
            drop(store);
            match Store::open_with(&used, options(backend).open) {
                Ok(_) => panic!("it has a thread of its own"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
                    assert!(
                        error.to_string().contains("no thread can be started"),
                        "{error}"
                    );
                }
            }
        });
        if path.exists() {
            let store = Store::open(&path).expect("it opens");
            check(&store);
        }
    }
}

//! One suite for every backend over real files, and what concerns io_uring alone.
//!
//! Nothing here sleeps and hopes: a test ends when what it waits for has happened, and a watchdog
//! ends the process, naming the test, if that takes absurdly long.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::host::HostBackend;
use super::uring::Uring;
use super::*;
use crate::port::op::{Op, wait_for};

const BLOCK: usize = 4096;
const HANG: Duration = Duration::from_secs(120);

/// Aborts the process if it is still alive after [`HANG`].
struct Watchdog(Option<mpsc::Sender<()>>);

impl Watchdog {
    fn watch(name: &'static str) -> Self {
        let (sender, receiver) = mpsc::channel::<()>();
        thread::spawn(move || {
            if receiver.recv_timeout(HANG) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{name} hangs");
                std::process::abort();
            }
        });
        Self(Some(sender))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.take();
    }
}

/// An executor as foreign as can be: it parks its thread and knows of no driver.
fn foreign_block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

struct Bench {
    backend: Arc<dyn Backend>,
    directory: TempDir,
    pool: BufferPool,
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn disk(&self, blocks: usize) -> Arc<dyn Disk> {
        let size = (blocks * BLOCK) as u64;
        self.backend.create(&self.path("disk"), size).unwrap()
    }

    fn block(&self, value: usize) -> AlignedBuf {
        let mut buffer = self.pool.take(BLOCK);
        for chunk in buffer.chunks_exact_mut(8) {
            chunk.copy_from_slice(&(value as u64).to_le_bytes());
        }
        buffer
    }

    fn write(&self, disk: &dyn Disk, index: usize, value: usize) -> IoOp {
        disk.write(self.block(value), at(index), WriteSync::None)
    }

    fn read(&self, disk: &dyn Disk, index: usize) -> IoOp {
        disk.read(self.pool.take(BLOCK), at(index))
    }

    /// Writes block `index` with the value `index` for all blocks.
    fn fill(&self, disk: &dyn Disk, blocks: usize) {
        let ops: Vec<_> = (0..blocks)
            .map(|index| self.write(disk, index, index))
            .collect();
        for op in ops {
            wait_for(op).1.unwrap();
        }
    }
}

fn at(index: usize) -> u64 {
    (index * BLOCK) as u64
}

#[track_caller]
fn assert_block(answer: (AlignedBuf, io::Result<()>), value: usize) {
    answer.1.unwrap();
    assert_eq!(answer.0.len(), BLOCK);
    for chunk in answer.0.chunks_exact(8) {
        assert_eq!(chunk, (value as u64).to_le_bytes());
    }
}

/// The smallest rings, so that queues fill up and rings are shared.
fn options(backend: BackendChoice) -> IoOptions {
    IoOptions {
        backend,
        read_rings: 1,
        ring_entries: 16,
        ..IoOptions::default()
    }
}

/// Runs a test over every backend, with and without direct I/O.
fn on_every_backend(name: &'static str, test: impl Fn(&Bench)) {
    let _watchdog = Watchdog::watch(name);
    for choice in [BackendChoice::Uring, BackendChoice::Syscall] {
        for direct in [DirectIo::Auto, DirectIo::Never] {
            let options = IoOptions {
                direct,
                ..options(choice)
            };
            let backend = match open_backend(&options) {
                Ok((backend, _)) => backend,
                Err(error) if choice == BackendChoice::Uring => {
                    eprintln!("{name}: skipped over io_uring: {error}");
                    continue;
                }
                Err(error) => panic!("plain system calls always work: {error}"),
            };
            test(&Bench {
                backend,
                directory: tempfile::tempdir().unwrap(),
                pool: BufferPool::default(),
            });
        }
    }
}

#[test]
fn what_is_written_is_read_back() {
    on_every_backend("round trip", |bench| {
        let disk = bench.disk(64);
        for sync in [WriteSync::None, WriteSync::Data] {
            let mut buffer = bench.pool.take(16 * BLOCK);
            for (byte, value) in buffer.iter_mut().zip((0..251).cycle()) {
                *byte = value;
            }
            let (written, outcome) = wait_for(disk.write(buffer, at(3), sync));
            outcome.unwrap();
            let (nothing, outcome) = wait_for(disk.sync());
            outcome.unwrap();
            assert!(nothing.is_empty());
            let (read, outcome) = wait_for(disk.read(bench.pool.take(16 * BLOCK), at(3)));
            outcome.unwrap();
            assert_eq!(*read, *written);
        }
        drop(disk);
        let path = bench.path("disk");
        let disk = bench.backend.open(&path, OpenAccess::ReadOnly).unwrap();
        assert_eq!(disk.size(), at(64));
        assert_eq!(disk.info().backend, bench.backend.name());
        let (read, outcome) = wait_for(disk.read(bench.pool.take(BLOCK), at(4)));
        outcome.unwrap();
        assert_eq!(read[..3], [80, 81, 82]);
        assert_block(wait_for(bench.read(&*disk, 40)), 0);
    });
}

#[test]
fn large_transfers_are_whole() {
    on_every_backend("large", |bench| {
        let disk = bench.disk(5000);
        let mut buffer = bench.pool.take(5000 * BLOCK);
        for (index, chunk) in buffer.chunks_exact_mut(BLOCK).enumerate() {
            chunk[..8].copy_from_slice(&index.to_le_bytes());
        }
        let (written, outcome) = wait_for(disk.write(buffer, 0, WriteSync::Data));
        outcome.unwrap();
        let (read, outcome) = wait_for(disk.read(bench.pool.take(5000 * BLOCK), 0));
        outcome.unwrap();
        assert!(*read == *written);
    });
}

#[test]
fn unaligned_and_impossible_requests_are_refused() {
    on_every_backend("refusals", |bench| {
        let disk = bench.disk(4);
        let kind = |op: IoOp| wait_for(op).1.unwrap_err().kind();
        let take = |len| bench.pool.take_zeroed(len);
        for (len, offset) in [(BLOCK, 1), (BLOCK, 256), (100, 0), (BLOCK + 1, 0)] {
            let write = disk.write(take(len), offset, WriteSync::None);
            assert_eq!(kind(write), io::ErrorKind::InvalidInput);
            let read = disk.read(take(len), offset);
            assert_eq!(kind(read), io::ErrorKind::InvalidInput);
        }
        let misplaced = || {
            let mut buffer = take(2 * BLOCK).split_off(256);
            buffer.set_len(BLOCK);
            buffer
        };
        let write = disk.write(misplaced(), 0, WriteSync::None);
        assert_eq!(kind(write), io::ErrorKind::InvalidInput);
        assert_eq!(kind(disk.read(misplaced(), 0)), io::ErrorKind::InvalidInput);
        let aligned_max = u64::MAX - (BLOCK as u64 - 1);
        for offset in [at(3), at(4), at(1000), aligned_max] {
            let read = disk.read(take(2 * BLOCK), offset);
            assert_eq!(kind(read), io::ErrorKind::UnexpectedEof);
            let write = disk.write(take(2 * BLOCK), offset, WriteSync::Data);
            assert_eq!(kind(write), io::ErrorKind::InvalidInput);
        }
        let (buffer, outcome) = wait_for(disk.read(AlignedBuf::empty(), 0));
        outcome.unwrap();
        assert!(buffer.is_empty());
        // It is locked while it is open.
        drop(disk);
        let path = bench.path("disk");
        let reader = bench.backend.open(&path, OpenAccess::ReadOnly).unwrap();
        bench.backend.open(&path, OpenAccess::ReadOnly).unwrap();
        let write = bench.write(&*reader, 0, 1);
        assert_eq!(kind(write), io::ErrorKind::PermissionDenied);
        assert_eq!(kind(reader.sync()), io::ErrorKind::PermissionDenied);
    });
}

#[test]
fn a_file_that_shrank_ends_early() {
    on_every_backend("shrunk", |bench| {
        let disk = bench.disk(16);
        let path = bench.path("disk");
        for len in [at(2), at(2) + 1000, 0] {
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(len).unwrap();
            let (_, outcome) = wait_for(disk.read(bench.pool.take(8 * BLOCK), 0));
            assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    });
}

#[test]
fn one_thread_keeps_256_in_flight() {
    on_every_backend("256 in flight", |bench| {
        let disk = bench.disk(256);
        bench.fill(&*disk, 256);
        let reads: Vec<_> = (0..256).map(|index| bench.read(&*disk, index)).collect();
        for (index, read) in reads.into_iter().enumerate().rev() {
            assert_block(wait_for(read), index);
        }
    });
}

#[test]
fn sixty_four_threads_share_one_ring() {
    on_every_backend("64 threads", |bench| {
        let disk = bench.disk(64 * 4);
        thread::scope(|scope| {
            for number in 0..64 {
                let disk = &disk;
                scope.spawn(move || {
                    for turn in 0..20 {
                        let index = number * 4 + turn % 4;
                        wait_for(bench.write(&**disk, index, turn)).1.unwrap();
                        assert_block(wait_for(bench.read(&**disk, index)), turn);
                        if turn % 10 == 0 {
                            wait_for(disk.sync()).1.unwrap();
                        }
                    }
                });
            }
        });
    });
}

#[test]
fn dropped_operations_complete_and_return_their_buffers() {
    on_every_backend("dropped", |bench| {
        let disk = bench.disk(100);
        let ops: Vec<_> = (0..100)
            .flat_map(|index| [bench.write(&*disk, index, index), bench.read(&*disk, index)])
            .collect();
        drop(ops);
        // Nobody waits for anything here: the background alone brings the buffers back.
        while bench.pool.retained_bytes() < 200 * BLOCK {
            thread::yield_now();
        }
        for index in 0..100 {
            assert_block(wait_for(bench.read(&*disk, index)), index);
        }
    });
}

#[test]
fn dropping_the_backend_drains_it() {
    on_every_backend("drain", |bench| {
        let (opened, _) = open_backend(&options(match bench.backend.name() {
            "io_uring" => BackendChoice::Uring,
            _ => BackendChoice::Syscall,
        }))
        .unwrap();
        let disk = opened.create(&bench.path("drained"), at(64)).unwrap();
        let called = Arc::new(AtomicUsize::new(0));
        for index in 0..64 {
            let called = Arc::clone(&called);
            bench.write(&*disk, index, index).then(move |_, outcome| {
                outcome.unwrap();
                called.fetch_add(1, Ordering::SeqCst);
            });
        }
        let waiting = bench.read(&*disk, 0);
        drop((disk, opened));
        assert_eq!(called.load(Ordering::SeqCst), 64);
        wait_for(waiting).1.unwrap();
        let path = bench.path("drained");
        let disk = bench.backend.open(&path, OpenAccess::ReadOnly).unwrap();
        for index in 0..64 {
            assert_block(wait_for(bench.read(&*disk, index)), index);
        }
    });
}

#[test]
fn a_foreign_executor_needs_no_waiter() {
    on_every_backend("foreign", |bench| {
        let disk = bench.disk(32);
        thread::scope(|scope| {
            for number in 0..4 {
                let disk = &disk;
                scope.spawn(move || {
                    for turn in 0..200 {
                        let index = number * 8 + turn % 8;
                        foreign_block_on(async {
                            let write = bench.write(&**disk, index, turn);
                            let other = bench.read(&**disk, (index + 8) % 32);
                            write.await.1.unwrap();
                            other.await.1.unwrap();
                            assert_block(bench.read(&**disk, index).await, turn);
                        });
                    }
                });
            }
        });
    });
}

#[test]
fn an_op_started_here_and_awaited_there_is_reaped() {
    on_every_backend("started, then awaited", |bench| {
        let disk = bench.disk(1);
        for turn in 0..200 {
            let write = bench.write(&*disk, 0, turn);
            let op: Op<(), io::Error> = Op::start(async { write.await.1 });
            foreign_block_on(op).unwrap();
            let read = bench.read(&*disk, 0);
            let op: Op<AlignedBuf, io::Error> = Op::start(async {
                let (buffer, outcome) = read.await;
                outcome.map(|()| buffer)
            });
            assert_block((foreign_block_on(op).unwrap(), Ok(())), turn);
        }
    });
}

/// Writes block 0 over and over, each write submitted by the callback of the one before.
fn chain(bench: &Bench, disk: &Arc<dyn Disk>, left: usize, done: mpsc::Sender<()>) {
    fn link(disk: Arc<dyn Disk>, buffer: AlignedBuf, left: usize, done: mpsc::Sender<()>) {
        if left == 0 {
            return done.send(()).unwrap();
        }
        let op = disk.write(buffer, 0, WriteSync::None);
        op.then(move |buffer, outcome| {
            outcome.unwrap();
            link(disk, buffer, left - 1, done);
        });
    }
    link(Arc::clone(disk), bench.block(left), left, done);
}

#[test]
fn a_chain_of_callbacks_runs_in_the_background() {
    on_every_backend("chain", |bench| {
        let disk = bench.disk(1);
        let (done, finished) = mpsc::channel();
        let _reaping = [disk.reap_in_background(), disk.reap_in_background()];
        chain(bench, &disk, 10_000, done);
        finished.recv().unwrap();
    });
}

/// A future that is ready once a flag is set, driven through the disk's driver: what a commit
/// ticket looks like from here.
struct Ticket {
    state: Arc<parking_lot::Mutex<(bool, Option<Waker>)>>,
    disk: Arc<dyn Disk>,
    reaping: Option<Reaping>,
}

impl Ticket {
    fn new(disk: &Arc<dyn Disk>) -> (Self, impl FnOnce() + Send + 'static) {
        let state = Arc::new(parking_lot::Mutex::new((false, None::<Waker>)));
        let ticket = Self {
            state: Arc::clone(&state),
            disk: Arc::clone(disk),
            reaping: None,
        };
        let redeem = move || {
            let waker = {
                let mut state = state.lock();
                state.0 = true;
                state.1.take()
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        };
        (ticket, redeem)
    }
}

impl Future for Ticket {
    type Output = ();

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.0 {
            return Poll::Ready(());
        }
        state.1 = Some(context.waker().clone());
        drop(state);
        let driver = self.disk.driver().unwrap();
        if !crate::port::op::offer_driver(&driver) {
            self.reaping = Some(self.disk.reap_in_background());
        }
        Poll::Pending
    }
}

#[test]
fn tickets_are_driven_by_whoever_waits_for_them() {
    on_every_backend("tickets", |bench| {
        let disk = bench.disk(16);
        thread::scope(|scope| {
            for number in 0..8 {
                let disk = &disk;
                scope.spawn(move || {
                    for turn in 0..100 {
                        let (ticket, redeem) = Ticket::new(disk);
                        let op = bench.write(&**disk, number, turn);
                        let (next_disk, buffer) = (Arc::clone(disk), bench.block(turn));
                        op.then(move |_, outcome| {
                            outcome.unwrap();
                            let op = next_disk.write(buffer, at(number + 8), WriteSync::Data);
                            op.then(move |_, outcome| {
                                outcome.unwrap();
                                redeem();
                            });
                        });
                        if number == 7 && turn >= 50 {
                            foreign_block_on(ticket);
                        } else {
                            wait_for(ticket);
                        }
                    }
                });
            }
        });
    });
}

#[test]
fn a_waiter_that_comes_before_the_submission_is_woken_to_reap() {
    on_every_backend("early waiter", |bench| {
        let disk = bench.disk(1);
        for turn in 0..200 {
            let (ticket, redeem) = Ticket::new(&disk);
            thread::scope(|scope| {
                scope.spawn(move || wait_for(ticket));
                let op = bench.write(&*disk, 0, turn);
                op.then(move |_, outcome| {
                    outcome.unwrap();
                    redeem();
                });
                // Nobody but the waiting thread can reap this.
            });
        }
    });
}

#[test]
fn a_callback_may_wait_for_more() {
    on_every_backend("waiting callback", |bench| {
        let disk = bench.disk(4);
        for turn in 0..100 {
            let (ticket, redeem) = Ticket::new(&disk);
            let inner = Arc::clone(&disk);
            let (buffer, other) = (bench.block(turn), bench.block(turn + 1));
            let read = bench.pool.take(BLOCK);
            bench.write(&*disk, 0, turn).then(move |_, outcome| {
                outcome.unwrap();
                wait_for(inner.write(buffer, at(1), WriteSync::None))
                    .1
                    .unwrap();
                let deferred = inner.write(other, at(2), WriteSync::None);
                assert_block(wait_for(inner.read(read, at(1))), turn);
                deferred.then(move |_, outcome| {
                    outcome.unwrap();
                    redeem();
                });
            });
            wait_for(ticket);
        }
    });
}

#[test]
fn threads_that_submit_and_end_lose_nothing() {
    on_every_backend("ending threads", |bench| {
        let disk = bench.disk(64);
        bench.fill(&*disk, 64);
        for _ in 0..5 {
            let ops: Vec<_> = (0..64)
                .map(|index| {
                    thread::scope(|scope| {
                        let submit = || {
                            let sync = (index % 8 == 0).then(|| disk.sync());
                            (
                                bench.read(&*disk, index),
                                bench.write(&*disk, index, index),
                                sync,
                            )
                        };
                        scope.spawn(submit).join().unwrap()
                    })
                })
                .collect();
            for (index, (read, write, sync)) in ops.into_iter().enumerate() {
                // The write may be seen or not; it writes the same.
                assert_block(wait_for(read), index);
                wait_for(write).1.unwrap();
                if let Some(sync) = sync {
                    wait_for(sync).1.unwrap();
                }
            }
        }
    });
}

#[test]
fn operations_may_be_waited_for_elsewhere() {
    on_every_backend("moved", |bench| {
        let disk = bench.disk(32);
        bench.fill(&*disk, 32);
        let (sender, receiver) = crossbeam::channel::unbounded();
        thread::scope(|scope| {
            for number in 0..4 {
                let receiver = receiver.clone();
                scope.spawn(move || {
                    for (index, op) in receiver {
                        match number % 2 {
                            0 => assert_block(wait_for(op), index),
                            _ => assert_block(foreign_block_on(op), index),
                        }
                    }
                });
            }
            for turn in 0..500 {
                let index = turn % 32;
                sender.send((index, bench.read(&*disk, index))).unwrap();
            }
            drop(sender);
        });
    });
}

/// A small generator, so that a failure can be replayed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }
}

fn stress(bench: &Bench, disk: &Arc<dyn Disk>, number: usize, over: &AtomicBool) {
    let mut random = Random(number as u64 * 0x9E37_79B9 + 1);
    let mut later = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let index = number * 4 + random.below(4);
        let op = match random.below(4) {
            0 => bench.write(&**disk, index, index),
            1 if random.below(8) == 0 => disk.sync(),
            _ => bench.read(&**disk, index),
        };
        match random.below(8) {
            0 => drop(op),
            1 => foreign_block_on(op).1.unwrap(),
            2 => later.push(op),
            3 => {
                let (ticket, redeem) = Ticket::new(disk);
                let (inner, buffer) = (Arc::clone(disk), bench.block(index));
                op.then(move |_, outcome| {
                    outcome.unwrap();
                    let op = inner.write(buffer, at(index), WriteSync::None);
                    op.then(move |_, _| redeem());
                });
                // The first operation may have been a read: nothing drives those here.
                foreign_block_on(async {
                    let (op, _) = bench.read(&**disk, index).await;
                    drop(op);
                });
                drop(ticket);
            }
            _ => wait_for(op).1.unwrap(),
        }
        if later.len() > 16 {
            later.drain(..).for_each(|op: IoOp| wait_for(op).1.unwrap());
        }
    }
}

#[test]
fn waiters_executors_and_dropped_operations_mix() {
    on_every_backend("stress", |bench| {
        let disk = bench.disk(16 * 4);
        bench.fill(&*disk, 64);
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            for number in 0..16 {
                let (disk, over) = (&disk, &over);
                scope.spawn(move || stress(bench, disk, number, over));
            }
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(2) {
                thread::park_timeout(Duration::from_millis(50));
            }
            over.store(true, Ordering::Relaxed);
        });
        for index in 0..64 {
            assert_block(wait_for(bench.read(&*disk, index)), index);
        }
    });
}

#[test]
fn io_uring_is_preferred_and_a_fallback_explains_itself() {
    let (backend, notice) = open_backend(&IoOptions::default()).unwrap();
    match backend.name() {
        "io_uring" => assert_eq!(notice, None),
        "syscall" => assert!(notice.unwrap().ends_with("using plain system calls")),
        other => panic!("unexpected backend {other}"),
    }
}

/// Whether io_uring works here; says so if not.
fn has_uring() -> bool {
    open_backend(&options(BackendChoice::Uring))
        .inspect_err(|error| eprintln!("skipped: {error}"))
        .is_ok()
}

/// A backend over io_uring whose rings can be made to fail.
fn breakable() -> Option<(Arc<Uring>, HostBackend, TempDir)> {
    if !has_uring() {
        return None;
    }
    let uring = Arc::new(Uring::new(1, 16).unwrap());
    let backend = HostBackend::new(Arc::clone(&uring), true);
    Some((uring, backend, tempfile::tempdir().unwrap()))
}

impl host::Transport for Arc<Uring> {
    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn submit(&self, transfer: request::Transfer) -> IoOp {
        (**self).submit(transfer)
    }

    fn driver(&self) -> Arc<dyn crate::port::op::Driver> {
        (**self).driver()
    }

    fn reap_in_background(&self) -> Reaping {
        (**self).reap_in_background()
    }
}

#[test]
fn threads_have_rings_of_their_own_while_there_are_enough() {
    const RINGS_MAX: usize = 3;
    const THREADS: usize = 8;
    let _watchdog = Watchdog::watch("rings of threads");
    if !has_uring() {
        return;
    }
    let uring = Arc::new(Uring::new(RINGS_MAX, 16).unwrap());
    let bench = Bench {
        backend: Arc::new(HostBackend::new(Arc::clone(&uring), true)),
        directory: tempfile::tempdir().unwrap(),
        pool: BufferPool::default(),
    };
    let disk = bench.disk(THREADS);
    let rings_of_reads = || uring.rings().count() - 1;
    assert_eq!(rings_of_reads(), 1);
    bench.fill(&*disk, THREADS);
    thread::scope(|scope| {
        for index in 0..THREADS {
            let (bench, disk) = (&bench, &disk);
            scope.spawn(move || assert_block(wait_for(bench.read(&**disk, index)), index));
        }
    });
    assert_eq!(rings_of_reads(), RINGS_MAX);
}

fn inject(uring: &Uring, submit: i32, wait: i32) {
    for ring in uring.rings() {
        ring.faults.submit.store(submit, Ordering::SeqCst);
        ring.faults.wait.store(wait, Ordering::SeqCst);
    }
}

const EIO: i32 = 5;
const EAGAIN: i32 = 11;
const ENOMEM: i32 = 12;
const EBUSY: i32 = 16;

#[test]
fn a_ring_that_takes_nothing_for_a_while_recovers() {
    let _watchdog = Watchdog::watch("stalled ring");
    for for_a_while in [EAGAIN, EBUSY, ENOMEM] {
        let Some((uring, backend, directory)) = breakable() else {
            return;
        };
        let disk = backend
            .create(&directory.path().join("disk"), at(4))
            .unwrap();
        inject(&uring, for_a_while, 0);
        thread::scope(|scope| {
            let read = disk.read(BufferPool::global().take(BLOCK), 0);
            let waiter = scope.spawn(|| wait_for(read));
            let write = disk.write(BufferPool::global().take_zeroed(BLOCK), 0, WriteSync::Data);
            inject(&uring, 0, 0);
            foreign_block_on(write).1.unwrap();
            assert_block(waiter.join().unwrap(), 0);
        });
    }
}

#[test]
fn a_ring_that_refuses_fails_its_operations_and_later_ones() {
    let _watchdog = Watchdog::watch("refusing ring");
    let Some((uring, backend, directory)) = breakable() else {
        return;
    };
    let disk = backend
        .create(&directory.path().join("disk"), at(4))
        .unwrap();
    let before = disk.read(BufferPool::global().take(BLOCK), 0);
    inject(&uring, EIO, 0);
    let take = || BufferPool::global().take_zeroed(BLOCK);
    for _ in 0..3 {
        let (buffer, outcome) = wait_for(disk.read(take(), 0));
        assert!(outcome.unwrap_err().to_string().contains("broken"));
        assert_eq!(buffer.len(), BLOCK);
        let (_, outcome) = foreign_block_on(disk.write(take(), 0, WriteSync::Data));
        outcome.unwrap_err();
        drop(disk.read(take(), 0));
        let (sender, receiver) = mpsc::channel();
        let _reaping = disk.reap_in_background();
        disk.sync()
            .then(move |_, outcome| sender.send(outcome).unwrap());
        receiver.recv().unwrap().unwrap_err();
    }
    // What the kernel had before comes back as if nothing had happened.
    assert_block(wait_for(before), 0);
}

#[test]
fn completions_are_found_even_if_they_cannot_be_waited_for() {
    let _watchdog = Watchdog::watch("silent ring");
    let Some((uring, backend, directory)) = breakable() else {
        return;
    };
    let path = directory.path().join("disk");
    let disk = backend.create(&path, at(4)).unwrap();
    inject(&uring, 0, EIO);
    for _ in 0..10 {
        let read = disk.read(BufferPool::global().take(BLOCK), 0);
        assert_block(wait_for(read), 0);
    }
}

#[test]
fn a_mute_ring_gives_up_and_keeps_the_buffers() {
    let _watchdog = Watchdog::watch("mute ring");
    if !has_uring() {
        return;
    }
    let ring = ring::Ring::new(16).unwrap();
    let pool = BufferPool::default();
    // A read that stays in the kernel: nobody writes to this pipe.
    let (reader, writer) = io::pipe().unwrap();
    let reader: Arc<std::os::fd::OwnedFd> = Arc::new(reader.into());
    let read = || {
        ring.submit(request::Transfer {
            action: request::Action::Read,
            file: Arc::clone(&reader),
            buffer: pool.take(BLOCK),
            offset: 0,
            block_size: BLOCK,
        })
    };
    let (waited, dropped) = (read(), read());
    drop(dropped);
    ring.faults.wait.store(EIO, Ordering::SeqCst);
    let (buffer, outcome) = wait_for(waited);
    assert_eq!(outcome.unwrap_err().raw_os_error(), Some(EIO));
    assert_eq!(buffer.capacity(), 0);
    assert_eq!(pool.retained_bytes(), 0);
    let (buffer, outcome) = wait_for(read());
    assert!(outcome.unwrap_err().to_string().contains("broken"));
    drop(buffer);
    ring.shut_down();
    drop(ring);
    assert_eq!(pool.retained_bytes(), BLOCK);
    drop(writer);
}

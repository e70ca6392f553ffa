//! Stores on a file system that is served here, by way of the kernel: io_uring and plain system calls, direct and
//! buffered, small files and directories are the real ones, and yet it is known what a power failure may take of what
//! they wrote. It also does what real ones do now and then: refuses direct I/O, or space in advance; cuts transfers
//! short; fails.

mod mount;
mod volatile;
mod volume;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use graviton_engine::io::sim::Random;
use graviton_engine::io::{BackendChoice, DirectIo, IoOptions};
use graviton_engine::port::{
    BinaryKey, BlobStore, DeleteOptions, Durability, GetOptions, Labels, StorageError,
};
use graviton_engine::store::{CreateOptions, MIB, NewSector, OpenOptions, RemoveOptions, Store};
use graviton_engine::testing::{Contents, Difference, Pair, Step, Subject, contents_of};
use graviton_tests::history::{
    Action, Host, Maintenance, Plan, Record, actions, check_contents, check_store, do_all, seeds,
};
use graviton_tests::random::payload;
use graviton_tests::{io, memory_directory, put_options};

use self::volatile::{Call, Failure, Loss, Manner, Transfer};
use self::volume::Volume;

/// Where the store lies: directories that nobody has made.
const PLACE: &str = "some/where";
/// The file of its first sector.
const FIRST: &str = "sector-000.graviton";

/// A store on a volume, which outlives it.
struct Mounted {
    store: Option<Arc<Store>>,
    options: CreateOptions,
    volume: Volume,
}

impl Mounted {
    /// With a new store; `None` where nothing can be mounted.
    fn new(options: CreateOptions) -> Option<Self> {
        Self::with(options, Manner::default())
    }

    /// The same, on a file system of this manner.
    fn with(options: CreateOptions, manner: Manner) -> Option<Self> {
        let mut mounted = Self {
            volume: Volume::new(&manner)?,
            options,
            store: None,
        };
        mounted.fresh();
        Some(mounted)
    }

    fn path(&self) -> PathBuf {
        self.volume.path().join(PLACE)
    }
}

impl Subject for Mounted {
    fn fresh(&mut self) -> Arc<dyn BlobStore> {
        let made = Store::create(self.path(), self.options.clone()).expect("a store is made");
        let made = Arc::new(made);
        self.store = Some(Arc::clone(&made));
        made
    }

    fn reopen(&mut self, store: Arc<dyn BlobStore>) -> Arc<dyn BlobStore> {
        drop(store);
        let before = self.store.take().expect("a store is open");
        before.close().expect("it closes");
        drop(before);
        let opened = Store::open_with(self.path(), self.options.open.clone());
        let opened = Arc::new(opened.expect("it opens again"));
        self.store = Some(Arc::clone(&opened));
        opened
    }

    fn events(&self) -> usize {
        self.volume.position()
    }
}

impl Host for Mounted {
    fn store(&self) -> Arc<Store> {
        Arc::clone(self.store.as_ref().expect("a store is open"))
    }

    fn position(&self) -> usize {
        self.volume.position()
    }
}

/// Not a test: what serves the others' file systems.
#[test]
#[ignore = "the server of the other tests"]
fn serve() {
    volume::serve();
}

/// The ways to the disks that work here.
fn ways() -> Vec<IoOptions> {
    let backends = [BackendChoice::Uring, BackendChoice::Syscall];
    let ways = backends.into_iter().filter_map(io).flat_map(|options| {
        [DirectIo::Auto, DirectIo::Never].map(|direct| IoOptions {
            direct,
            ..options.clone()
        })
    });
    ways.collect()
}

/// Options for a store of this plan.
fn options_of(plan: &Plan, io: &IoOptions) -> CreateOptions {
    let made = plan.create_options();
    CreateOptions {
        open: OpenOptions {
            io: io.clone(),
            ..made.open
        },
        ..made
    }
}

/// Opens what a power failure has left, and checks it.
fn check_image(
    mounted: &Mounted,
    (position, loss): (usize, Loss),
    check: impl FnOnce(&Path, OpenOptions) -> Result<(), Difference>,
) -> Result<(), Difference> {
    let directory = memory_directory();
    mounted.volume.leave(position, loss, directory.path());
    let open = mounted.options.open.clone();
    check(&directory.path().join(PLACE), open)
        .map_err(|what| format!("power failure behind event {position}, {loss:?}: {what}"))
}

fn losses(random: &mut Random, doubts: usize) -> Vec<Loss> {
    if doubts == 0 {
        return vec![Loss::All];
    }
    vec![
        Loss::All,
        Loss::Nothing,
        Loss::Last(1 + random.below(doubts)),
        Loss::Random(u32::try_from(random.below(1 << 30)).unwrap_or(0)),
    ]
}

#[test]
fn a_power_failure_takes_what_was_not_synced() {
    power_failures(&[Plan::SMALL, Plan::REPLICAS], &Manner::default());
}

/// What is left of a durable write that was cut short is as durable.
#[test]
fn a_power_failure_after_writes_that_were_cut_short() {
    let manner = Manner {
        cuts_short: Some(Transfer::Write),
        ..Manner::default()
    };
    power_failures(&[Plan::SMALL], &manner);
}

/// Power failures in histories of these plans on a file system of this manner.
fn power_failures(plans: &[Plan], manner: &Manner) {
    let mut images = 0;
    for (number, io) in ways().into_iter().enumerate() {
        for plan in plans {
            for seed in seeds(2) {
                let of_way = seed + 100 * number as u64;
                let Some(mut mounted) = Mounted::with(options_of(plan, &io), manner.clone()) else {
                    return;
                };
                let store = mounted.store();
                let mut pair = Pair::over(&mut mounted, Arc::<Store>::clone(&store));
                pair.adopt(store).expect("it is empty");
                let created = pair.subject().position();
                let mut record = Record::new(Contents::new());
                let history = actions(of_way, 40, plan, false);
                let done = do_all(&mut pair, &history, &mut record);
                let given = pair.given().clone();
                drop(pair);
                let checked = done.and_then(|()| {
                    look_back(&mounted, created, 8, |path, open, position| {
                        let store = open_left(path, open)?;
                        check_contents(&store, &record, &given, position)?;
                        check_store(&store)
                    })
                });
                images += checked.unwrap_or_else(|what| {
                    panic!("GRAVITON_SEED={seed}, {io:?}, {}: {what}", plan.name)
                });
            }
        }
    }
    println!("{images} images");
}

/// Looks at what power failures could have left at every so many events from one on; how many images there were.
fn look_back(
    mounted: &Mounted,
    from: usize,
    stride: usize,
    check: impl Fn(&Path, OpenOptions, usize) -> Result<(), Difference>,
) -> Result<usize, Difference> {
    let mut random = Random::new(1);
    let (mut images, mut position) = (0, from);
    let end = mounted.position();
    while position <= end {
        let doubts = mounted.volume.doubts(position);
        for loss in losses(&mut random, doubts) {
            images += 1;
            check_image(mounted, (position, loss), |path, open| {
                check(path, open, position)
            })?;
        }
        position += 1 + random.below(stride);
    }
    Ok(images)
}

/// Opens what a power failure has left.
fn open_left(path: &Path, open: OpenOptions) -> Result<Store, Difference> {
    Store::open_with(path, open).map_err(|error| format!("does not open: {error}"))
}

/// A power loss while a store is made leaves an empty store, or something that keeps nobody from making one there.
#[test]
fn a_power_failure_while_a_store_is_made() {
    let mut images = 0;
    for io in ways() {
        let plan = Plan {
            sectors: 2,
            ..Plan::SMALL
        };
        let Some(mounted) = Mounted::new(options_of(&plan, &io)) else {
            return;
        };
        let end = mounted.position();
        let checked = look_back(&mounted, 0, 1, |path, open, position| {
            let opened = match Store::open_with(path, open) {
                // Whoever made it was told that it is there.
                Err(_) if position < end => Store::create(path, mounted.options.clone()),
                opened => opened,
            };
            let store = opened.map_err(|error| error.to_string())?;
            check_store(&store)?;
            let found = contents_of(&store).map_err(|error| error.to_string())?;
            match found.is_empty() {
                true => Ok(()),
                false => Err(format!("{found:?}")),
            }
        });
        images += checked.unwrap_or_else(|what| panic!("{io:?}: {what}"));
    }
    println!("{images} images");
}

fn key(number: usize) -> BinaryKey {
    BinaryKey::new(format!("key/{number:03}")).expect("a short key")
}

/// Blobs that a store was given, and what must be there of them.
#[derive(Default)]
struct Given {
    /// At which position each was known to be durable; `None`: it may be there or not.
    blobs: Vec<Option<usize>>,
}

impl Given {
    const SIZES: [usize; 3] = [100, 5_000, 70_000];

    fn bytes(number: usize) -> bytes::Bytes {
        payload(number as u64, Self::SIZES[number % Self::SIZES.len()])
    }

    fn put(&mut self, mounted: &Mounted) -> Result<(), StorageError> {
        let number = self.blobs.len();
        let put = mounted.store().put(
            &key(number),
            Self::bytes(number),
            put_options(Durability::Durable),
        );
        let outcome = put.wait().map(drop);
        let position = mounted.position();
        self.blobs.push(outcome.is_ok().then_some(position));
        outcome
    }

    /// Whether they are there that must be behind the first `position` events, and are what they were.
    fn check(&self, store: &Store, position: usize) -> Result<(), Difference> {
        for (number, durable) in self.blobs.iter().enumerate() {
            let got = store.get(&key(number), GetOptions::default()).wait();
            match got {
                Ok(got) if got.bytes == Self::bytes(number) => {}
                Ok(_) => return Err(format!("{} is something else", key(number))),
                Err(StorageError::NotFound { .. })
                    if durable.is_none_or(|durable| durable > position) => {}
                Err(error) => return Err(format!("{}: {error}", key(number))),
            }
        }
        check_store(store)
    }
}

#[test]
fn a_power_failure_while_sectors_come_and_go() {
    let mut images = 0;
    for io in ways() {
        let Some(mut mounted) = Mounted::new(options_of(&Plan::SMALL, &io)) else {
            return;
        };
        let mut given = Given::default();
        let begun = mounted.position();
        let removed = come_and_go(&mut mounted, &mut given).expect("nothing fails");
        let checked = look_back(&mounted, begun, 3, |path, open, position| {
            let store = open_left(path, open)?;
            if position >= removed && path.join(FIRST).exists() {
                return Err(format!("{FIRST} is there again"));
            }
            given.check(&store, position)
        });
        images += checked.unwrap_or_else(|what| panic!("{io:?}: {what}"));
    }
    println!("{images} images");
}

/// A sector is added, the first is emptied and taken away, what is left grows. Returns at which position it is gone.
fn come_and_go(mounted: &mut Mounted, given: &mut Given) -> Result<usize, StorageError> {
    for _ in 0..4 {
        given.put(mounted)?;
    }
    let store = mounted.store();
    let new = NewSector {
        size: 4 * MIB,
        ..NewSector::default()
    };
    let added = store.add_sector(&new)?;
    for _ in 0..3 {
        given.put(mounted)?;
    }
    store.drain_sector(0)?;
    store.repair(&mut |_| {})?;
    assert!(mounted.path().join(FIRST).exists());
    store.remove_sector(0, RemoveOptions::default())?;
    let removed = mounted.position();
    given.put(mounted)?;
    store.grow_sector(added, 5 * MIB)?;
    store.relabel(added, Labels::default())?;
    given.put(mounted)?;
    let store: Arc<dyn BlobStore> = store;
    mounted.reopen(store);
    given.put(mounted)?;
    Ok(removed)
}

/// A history on a file system of some manner, against the model; and then all is read from a store opened anew.
fn use_a_store(options: CreateOptions, manner: &Manner, seed: u64) -> Option<Arc<Store>> {
    let history = actions(seed, 60, &Plan::SMALL, false);
    let mut mounted = Mounted::with(options.clone(), manner.clone())?;
    let store = mounted.store();
    let mut pair = Pair::over(&mut mounted, Arc::<Store>::clone(&store));
    pair.adopt(store).expect("it is empty");
    let mut record = Record::new(Contents::new());
    let at = |what| panic!("{manner:?}, {:?}, {seed}: {what}", options.open.io);
    do_all(&mut pair, &history, &mut record).unwrap_or_else(at);
    let last = [Maintenance::Checkpoint, Maintenance::Compact].map(Action::Maintain);
    do_all(&mut pair, &last, &mut record).unwrap_or_else(at);
    let before = pair.release();
    let after = pair.subject().reopen(before);
    pair.resume(after);
    pair.run(&Step::compare_all()).map(drop).unwrap_or_else(at);
    drop(pair);
    let store = mounted.store();
    check_store(&store).unwrap_or_else(at);
    Some(store)
}

#[test]
fn transfers_are_cut_short_and_interrupted() {
    for transfers in [Transfer::Read, Transfer::Write] {
        let manner = Manner {
            cuts_short: Some(transfers),
            ..Manner::default()
        };
        for (io, seed) in ways().into_iter().zip(1..) {
            if use_a_store(options_of(&Plan::SMALL, &io), &manner, seed).is_none() {
                return;
            }
        }
    }
}

#[test]
fn space_in_advance_is_refused() {
    let manner = Manner {
        refuses_allocation: true,
        ..Manner::default()
    };
    for io in ways() {
        if use_a_store(options_of(&Plan::SMALL, &io), &manner, 1).is_none() {
            return;
        }
    }
}

/// Each transfer goes by the page cache then, and that is told.
#[test]
fn direct_io_is_refused() {
    let manner = Manner {
        refuses_direct: true,
        ..Manner::default()
    };
    for io in ways() {
        let Some(store) = use_a_store(options_of(&Plan::SMALL, &io), &manner, 1) else {
            return;
        };
        assert!(!store.info().sectors[0].direct);
    }
}

/// A store is made with blocks that direct I/O takes.
#[test]
fn direct_io_wants_larger_blocks() {
    let manner = Manner {
        alignment: 4096,
        ..Manner::default()
    };
    for io in ways() {
        let options = CreateOptions {
            block_size: None,
            ..options_of(&Plan::LARGE_BLOCKS, &io)
        };
        let Some(store) = use_a_store(options, &manner, 1) else {
            return;
        };
        let sector = &store.info().sectors[0];
        let direct = io.direct == DirectIo::Auto;
        assert_eq!(sector.direct, direct);
        if direct {
            assert_eq!(sector.block_size, 4096);
        }
    }
}

/// A store moves to where larger blocks are wanted than it was made with, and back: there it goes by the page cache, and
/// says so.
#[test]
fn a_store_moves_to_larger_blocks_and_back() {
    for io in ways() {
        let Some(mut mounted) = Mounted::new(options_of(&Plan::SMALL, &io)) else {
            return;
        };
        let mut given = Given::default();
        for alignment in [0, 4096, 0] {
            let manner = Manner {
                alignment,
                ..Manner::default()
            };
            let store: Arc<dyn BlobStore> = mounted.store();
            mounted.volume.behave(&manner);
            mounted.reopen(store);
            let store = mounted.store();
            let info = store.info();
            let direct = io.direct == DirectIo::Auto;
            assert_eq!(info.sectors[0].direct, direct && alignment == 0, "{io:?}");
            let says_so = info
                .notice
                .is_some_and(|notice| notice.contains("wants 4096"));
            assert_eq!(says_so, direct && alignment > 0, "{io:?}");
            for _ in 0..3 {
                given.put(&mounted).expect("it is put");
            }
            store.checkpoint().expect("a checkpoint is taken");
            let looked = given
                .check(&store, usize::MAX)
                .and_then(|()| check_store(&store));
            looked.unwrap_or_else(|what| panic!("{io:?}, {alignment}: {what}"));
        }
    }
}

/// Whatever fails is told to whoever called, and what was told to be durable is there in spite of it: for who opens the
/// store again, and after a power failure.
#[test]
fn each_call_fails() {
    let mut failures = 0;
    let calls = [Call::Read, Call::Write, Call::Sync, Call::Name];
    let ways = ways().into_iter().flat_map(|io| {
        calls.into_iter().flat_map(move |call| {
            let io = io.clone();
            [false, true].map(move |for_ever| (io.clone(), call, for_ever))
        })
    });
    for (io, call, for_ever) in ways {
        for after in 0.. {
            let Some(mut mounted) = Mounted::new(options_of(&Plan::SMALL, &io)) else {
                return;
            };
            mounted.volume.behave(&Manner {
                fails: Some(Failure {
                    call,
                    after,
                    for_ever,
                }),
                ..Manner::default()
            });
            let mut given = Given::default();
            let outcome = work(&mounted, &mut given);
            let position = mounted.position();
            if !mounted.volume.has_failed() {
                outcome.expect("nothing failed");
                break;
            }
            failures += 1;
            let at = |what| panic!("{io:?}, {call:?} {after}, for ever: {for_ever}: {what}");
            for loss in [Loss::All, Loss::Nothing, Loss::Random(7)] {
                check_image(&mounted, (position, loss), |path, open| {
                    given.check(&open_left(path, open)?, position)
                })
                .unwrap_or_else(at);
            }
            mounted.store = None;
            mounted.volume.behave(&Manner::default());
            let opened = Store::open_with(mounted.path(), mounted.options.open.clone());
            opened
                .map_err(|error| format!("does not open again: {error}"))
                .and_then(|store| given.check(&store, position))
                .unwrap_or_else(at);
        }
    }
    println!("{failures} failures");
}

/// A store is made where making one has failed: the names that the first left behind are durable, too.
#[test]
fn a_power_failure_after_a_store_is_made_on_the_second_try() {
    for io in ways() {
        for call in [Call::Write, Call::Sync, Call::Name] {
            for after in 0.. {
                let options = options_of(&Plan::SMALL, &io);
                let Some(volume) = Volume::new(&Manner::default()) else {
                    return;
                };
                volume.behave(&Manner {
                    fails: Some(Failure {
                        call,
                        after,
                        for_ever: false,
                    }),
                    ..Manner::default()
                });
                let mut mounted = Mounted {
                    volume,
                    options,
                    store: None,
                };
                let first = Store::create(mounted.path(), mounted.options.clone());
                if !mounted.volume.has_failed() {
                    first.expect("nothing failed");
                    break;
                }
                match first {
                    Ok(store) => mounted.store = Some(Arc::new(store)),
                    Err(_) => drop(mounted.fresh()),
                }
                let mut given = Given::default();
                given.put(&mounted).expect("it is put");
                let position = mounted.position();
                let checked = check_image(&mounted, (position, Loss::All), |path, open| {
                    given.check(&open_left(path, open)?, position)
                });
                checked.unwrap_or_else(|what| panic!("{io:?}, {call:?} {after}: {what}"));
            }
        }
    }
}

/// Some of everything, whatever fails of it; the first error.
fn work(mounted: &Mounted, given: &mut Given) -> Result<(), StorageError> {
    let store = mounted.store();
    let mut outcomes = Vec::new();
    for _ in 0..4 {
        outcomes.push(given.put(mounted));
    }
    outcomes.push(store.checkpoint().map(drop));
    let absent = store.delete(&key(900), DeleteOptions::default());
    outcomes.push(absent.wait().map(drop));
    outcomes.push(given.put(mounted));
    let first = store.get(&key(0), GetOptions::default());
    outcomes.push(first.wait().map(drop));
    outcomes.push(store.relabel(0, Labels::default()));
    outcomes.push(store.compact().map(drop));
    outcomes.push(given.put(mounted));
    outcomes.push(store.close());
    outcomes.into_iter().collect()
}

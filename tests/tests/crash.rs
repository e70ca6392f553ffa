//! Power loss at any moment: random histories on simulated disks, and for every few events of each
//! the images that a crash there can leave, opened, compared, verified, used, and crashed again.
//!
//! `GRAVITON_SEEDS` asks for more histories, `GRAVITON_SEED` for one of them.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use graviton_engine::port::{BinaryKey, BlobStore, DeleteOptions, PutOptions};
use graviton_engine::store::{CreateOptions, KIB, MIB, OpenOptions, Store};
use graviton_tests::number_from;
use graviton_tests::random::{Random, payload};
use graviton_tests::sim::{Crasher, Image, Loss, Sim};
use graviton_tests::workload::{Contents, History, Mix, Worker, difference, read_all};

const PATH: &str = "/simulated/store";

/// A kind of history.
#[derive(Debug, Clone, Copy)]
struct Plan {
    sectors: u16,
    segment_size: u64,
    block_size: u32,
    mix: Mix,
    /// Steps before anything is recorded: they fill the sectors, so that segments are reused.
    before: usize,
    /// Steps that are recorded.
    steps: usize,
    /// Every so many events the power fails.
    stride: usize,
}

impl Plan {
    fn open(self) -> OpenOptions {
        OpenOptions {
            background: false,
            checkpoint_interval: Some(128 * KIB),
            reader_patience: Duration::ZERO,
            ..OpenOptions::default()
        }
    }

    fn create(self) -> CreateOptions {
        CreateOptions {
            sectors: self.sectors,
            sector_size: 4 * MIB,
            segment_size: Some(self.segment_size),
            block_size: Some(self.block_size),
            open: self.open(),
        }
    }
}

/// One history and the images made of it; says how to make it again when something is wrong.
struct Trial {
    plan: Plan,
    seed: u64,
    images: usize,
}

impl Trial {
    fn fail(&self, place: &str, history: &History, what: &str) -> ! {
        for (number, step) in history.steps.iter().enumerate() {
            eprintln!(
                "{number:4} {:5}..{:5} {}",
                step.started,
                step.acknowledged
                    .map_or(-1, |at| i64::try_from(at).unwrap_or(0)),
                step.what
            );
        }
        panic!(
            "GRAVITON_SEED={} ({:?}), {place}: {what}",
            self.seed, self.plan
        );
    }

    /// Opens what a crash has left, and checks it against the history. Hands the store back, its
    /// machine, and what it holds.
    fn open(
        &mut self,
        image: &Image,
        history: &History,
        position: usize,
        place: &str,
    ) -> (Store, Sim, Contents) {
        self.images += 1;
        let sim = Sim::boot(image, self.plan.block_size, self.seed ^ position as u64);
        let store = match Store::open_on(sim.backend(), PATH, self.plan.open()) {
            Ok(store) => store,
            Err(error) => self.fail(place, history, &format!("does not open: {error}")),
        };
        let found = match read_all(&store) {
            Ok(found) => found,
            Err(error) => self.fail(place, history, &format!("can't be read: {error}")),
        };
        let outcome = if self.plan.sectors == 1 {
            history.check_prefix(&found, position)
        } else {
            history.check_keys(&found, position)
        };
        if let Err(what) = outcome {
            self.fail(place, history, &what);
        }
        self.verify(&store, history, place);
        (store, sim, found)
    }

    fn verify(&self, store: &Store, history: &History, place: &str) {
        match store.verify(&mut |_| {}) {
            Ok(report) if report.findings.is_empty() => {}
            Ok(report) => self.fail(place, history, &format!("{:#?}", report.findings)),
            Err(error) => self.fail(place, history, &format!("verify: {error}")),
        }
        for sector in store.info().sectors {
            let space = sector.space;
            let sum = space.metadata + space.live + space.garbage + space.free;
            if sum != space.total {
                self.fail(place, history, &format!("{space:?} does not add up"));
            }
        }
    }

    /// The store can be written to, tidied up, closed and opened.
    fn use_it(&self, store: Store, sim: &Sim, contents: &Contents, history: &History, place: &str) {
        let mut contents = contents.clone();
        let outcome = (|| {
            for number in 0..4 {
                let key = BinaryKey::new(format!("after/{number}"))?;
                let blob = payload(number, 9000);
                store
                    .put(&key, blob.clone(), PutOptions::default())
                    .wait()?;
                contents.insert(key, blob);
            }
            if let Some(key) = contents.keys().next().cloned() {
                store.delete(&key, DeleteOptions::default()).wait()?;
                contents.remove(&key);
            }
            store.compact()?;
            store.checkpoint()?;
            store.close()?;
            drop(store);
            let store = Store::open_on(sim.backend(), PATH, self.plan.open())?;
            let found = read_all(&store)?;
            Ok::<_, graviton_engine::port::StorageError>((store, found))
        })();
        match outcome {
            Err(error) => self.fail(place, history, &format!("can't be used: {error}")),
            Ok((_, found)) if found != contents => {
                let what = format!("after use: {}", difference(&contents, &found));
                self.fail(place, history, &what);
            }
            Ok((store, _)) => self.verify(&store, history, place),
        }
    }

    /// Crashes at every few events of a recording, and after that again, `depth` times in all.
    fn crash(
        &mut self,
        mut crasher: Crasher,
        history: &History,
        stride: usize,
        depth: usize,
        place: &str,
    ) {
        let mut random = Random::new(self.seed ^ 0x00c0_ffee ^ depth as u64);
        let mut position = random.below(stride.min(crasher.events() + 1));
        while position <= crasher.events() {
            crasher.advance(position);
            for loss in losses(crasher.doubts(), &mut random, depth) {
                let place = format!("{place} event {position} {loss:?}");
                let (store, sim, found) =
                    self.open(&crasher.image(loss), history, position, &place);
                match random.below(4) {
                    0 => self.use_it(store, &sim, &found, history, &place),
                    1 | 2 if depth > 1 => self.again(store, &sim, found, depth - 1, &place),
                    _ => {}
                }
            }
            position += 1 + random.below(2 * stride - 1);
        }
    }

    /// Goes on for a little after a crash, and crashes again.
    fn again(&mut self, store: Store, sim: &Sim, found: Contents, depth: usize, place: &str) {
        let mut history = History {
            base: found.clone(),
            ..History::default()
        };
        let random = Random::new(self.seed ^ found.len() as u64);
        let mut worker = Worker::new("key", found, random, self.plan.mix);
        self.run(&store, sim, &mut worker, &mut history, 6, place);
        let crasher = sim.crasher();
        let stride = crasher.events() / 2 + 1;
        drop(store);
        self.crash(crasher, &history, stride, depth, place);
    }

    fn run(
        &self,
        store: &Store,
        sim: &Sim,
        worker: &mut Worker,
        history: &mut History,
        steps: usize,
        place: &str,
    ) {
        for _ in 0..steps {
            let (step, outcome) = worker.step(store, || sim.position());
            history.steps.push(step);
            if let Err(error) = outcome {
                self.fail(place, history, &format!("the last step failed: {error}"));
            }
        }
    }

    fn history(&mut self) {
        let sim = Sim::new(self.plan.block_size, self.seed);
        let store = Store::create_on(sim.backend(), PATH, self.plan.create()).expect("it is made");
        sim.record(false);
        let mut worker = Worker::new(
            "key",
            Contents::new(),
            Random::new(self.seed),
            self.plan.mix,
        );
        let mut history = History::default();
        self.run(
            &store,
            &sim,
            &mut worker,
            &mut history,
            self.plan.before,
            "before",
        );
        store.flush().wait().expect("it flushes");
        sim.record(true);
        let mut history = History {
            base: worker.contents.clone(),
            ..History::default()
        };
        let steps = self.plan.steps;
        self.run(
            &store,
            &sim,
            &mut worker,
            &mut history,
            steps,
            "while recording",
        );
        if self.seed.is_multiple_of(2) {
            drop(store);
        }
        self.crash(sim.crasher(), &history, self.plan.stride, 2, "");
    }
}

/// Ways to lose what is in doubt.
fn losses(doubts: usize, random: &mut Random, depth: usize) -> Vec<Loss> {
    if doubts == 0 {
        return vec![Loss::All];
    }
    let any = Loss::Random(random.number());
    if depth < 2 {
        return vec![any];
    }
    let mut losses = vec![Loss::All, Loss::Nothing, any];
    if doubts > 1 {
        losses.push(Loss::KeepFirst(1 + random.below(doubts - 1)));
        losses.push(Loss::LoseFirst(1 + random.below(doubts - 1)));
    }
    losses
}

fn run(plan: Plan, seeds: u64) {
    static IMAGES: AtomicUsize = AtomicUsize::new(0);
    let begun = std::time::Instant::now();
    let one = number_from("GRAVITON_SEED");
    let seeds = number_from("GRAVITON_SEEDS").unwrap_or(seeds);
    let mut images = 0;
    for seed in one.map_or(0..seeds, |seed| seed..seed + 1) {
        let mut trial = Trial {
            plan,
            seed,
            images: 0,
        };
        trial.history();
        images += trial.images;
    }
    IMAGES.fetch_add(images, Ordering::Relaxed);
    eprintln!("{images} images in {:.1?}", begun.elapsed());
}

const MIX: Mix = Mix {
    keys: 24,
    largest: 36 << 10,
    maintenance: true,
};

#[test]
fn short_histories_of_a_new_store() {
    let mix = Mix {
        maintenance: false,
        ..MIX
    };
    run(
        Plan {
            sectors: 1,
            segment_size: 64 * KIB,
            block_size: 512,
            mix,
            before: 0,
            steps: 12,
            stride: 2,
        },
        6,
    );
}

#[test]
fn histories_in_which_segments_are_reused() {
    run(
        Plan {
            sectors: 1,
            segment_size: 64 * KIB,
            block_size: 512,
            mix: MIX,
            before: 400,
            steps: 60,
            stride: 8,
        },
        6,
    );
}

#[test]
fn histories_on_blocks_of_4096_bytes() {
    run(
        Plan {
            sectors: 1,
            segment_size: 128 * KIB,
            block_size: 4096,
            mix: MIX,
            before: 300,
            steps: 40,
            stride: 8,
        },
        4,
    );
}

#[test]
fn histories_over_three_sectors() {
    run(
        Plan {
            sectors: 3,
            segment_size: 64 * KIB,
            block_size: 512,
            mix: Mix { keys: 60, ..MIX },
            before: 300,
            steps: 60,
            stride: 8,
        },
        4,
    );
}

#[test]
fn the_creation_of_a_store() {
    let sim = Sim::new(512, 1);
    let plan = Plan {
        sectors: 2,
        segment_size: 64 * KIB,
        block_size: 512,
        mix: MIX,
        before: 0,
        steps: 0,
        stride: 1,
    };
    let store = Store::create_on(sim.backend(), PATH, plan.create()).expect("it is made");
    drop(store);
    let sim = Sim::boot(&sim.image(), 512, 1);
    let store = Store::open_on(sim.backend(), Path::new(PATH), plan.open()).expect("it opens");
    assert_eq!(read_all(&store).expect("it is read"), Contents::new());
}

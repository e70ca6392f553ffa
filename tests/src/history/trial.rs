//! Many histories on all cores; of the first that fails, the shortest part that still does.
//!
//! `GRAVITON_SEEDS` says which: `500` the first so many, `2000..3000` those from there to there.
//! `GRAVITON_SEED` asks for one, and `GRAVITON_KEEP` for some of its actions, by number, as the
//! message of a failure has it.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use graviton_engine::port::BinaryKey;
use graviton_engine::testing::{Difference, minimise, panic_message};

use super::action::{Action, actions};
use super::ground::{Ground, Plan};
use super::run::Tally;
use crate::number_from;

/// Seeds that begin on the same few grounds.
const SHARE: u64 = 200;
/// How old grounds are, in actions.
const AGES: [usize; 4] = [0, 30, 150, 400];
/// How many shorter histories are tried when one fails.
const TRIES: usize = 400;

/// A kind of trial: a plan, and what is done with its histories.
#[derive(Debug, Clone)]
pub struct Trials {
    /// Stores, keys and sizes.
    pub plan: Plan,
    /// How many actions a history has.
    pub length: usize,
    /// Whether kills and power losses are among them.
    pub disasters: bool,
    /// How many histories there are if nobody asks for others.
    pub seeds: u64,
}

/// What is done with a history.
type Try<'a> = &'a (dyn Fn(&Ground, u64, &[Action]) -> Result<Tally, Difference> + Sync);

impl Trials {
    /// Histories that leave the machine up and the store open: what goes wrong is the test's to say.
    #[must_use]
    pub fn undisturbed(plan: Plan, length: usize, seeds: u64) -> Self {
        let mut plan = plan;
        plan.mix.reopen = false;
        Self {
            plan,
            length,
            disasters: false,
            seeds,
        }
    }

    /// Tries the histories of all seeds, and says how many there were.
    ///
    /// # Panics
    /// If one fails, with what runs it again.
    pub fn run(&self, attempt: Try<'_>) -> Tally {
        let begun = Instant::now();
        let seeds = seeds(self.seeds);
        let next = AtomicU64::new(seeds.start);
        let failed = AtomicBool::new(false);
        let failure = Mutex::new(None);
        let tally = Mutex::new(Tally::default());
        let work = || {
            let mut grounds = Grounds::default();
            while !failed.load(Ordering::Relaxed) {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds.end {
                    return;
                }
                match self.try_seed(grounds.of(seed, &self.plan), seed, attempt) {
                    Ok(more) => *tally.lock().expect("no panic under it") += more,
                    Err(what) => {
                        if !failed.swap(true, Ordering::Relaxed) {
                            *failure.lock().expect("no panic under it") = Some(what);
                        }
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(work);
            }
        });
        if let Some(what) = failure.into_inner().expect("no panic under it") {
            panic!("{what}");
        }
        let tally = tally.into_inner().expect("no panic under it");
        let Tally {
            histories,
            actions,
            images,
        } = tally;
        eprintln!(
            "{}: {histories} histories, {actions} actions, {images} images in {:.1?}",
            self.plan.name,
            begun.elapsed()
        );
        tally
    }

    fn try_seed(&self, ground: &Ground, seed: u64, attempt: Try<'_>) -> Result<Tally, String> {
        let history = actions(seed, self.length, &self.plan, self.disasters);
        let try_some = |kept: &[usize]| {
            let some: Vec<Action> = kept.iter().map(|&number| history[number].clone()).collect();
            catch_unwind(AssertUnwindSafe(|| attempt(ground, seed, &some)))
                .unwrap_or_else(|panic| Err(panic_message(&*panic)))
        };
        let kept = kept(history.len());
        let failure = match try_some(&kept) {
            Ok(tally) => return Ok(tally),
            Err(failure) => failure,
        };
        let (kept, failure) = minimise(&kept, failure, TRIES, |kept| try_some(kept).err());
        let lines: Vec<String> = kept
            .iter()
            .map(|&number| format!("{number:5} {:?}\n", history[number]))
            .collect();
        let numbers: Vec<String> = kept.iter().map(usize::to_string).collect();
        // Nobody wants to read the longest key.
        let longest = "k".repeat(BinaryKey::MAX_LEN);
        Err(format!(
            "{} fails; again with GRAVITON_SEED={seed} GRAVITON_KEEP={}\n{}=> {failure}",
            self.plan.name,
            numbers.join(","),
            lines.concat()
        )
        .replace(&longest, "kkk..."))
    }
}

/// The grounds that a thread has at hand.
#[derive(Default)]
struct Grounds {
    share: u64,
    aged: [Option<Ground>; AGES.len()],
}

impl Grounds {
    /// The one that the history of a seed begins on.
    fn of(&mut self, seed: u64, plan: &Plan) -> &Ground {
        let share = seed / SHARE;
        if self.share != share {
            *self = Self::default();
            self.share = share;
        }
        let which = usize::try_from(seed % AGES.len() as u64).unwrap_or(0);
        self.aged[which].get_or_insert_with(|| Ground::new(plan, share, AGES[which]))
    }
}

/// The seeds to try: those asked for, else the first so many.
///
/// # Panics
/// If it can't be understood what is asked for.
#[must_use]
pub fn seeds(default: u64) -> Range<u64> {
    if let Some(seed) = number_from("GRAVITON_SEED") {
        return seed..seed.saturating_add(1);
    }
    let Ok(text) = std::env::var("GRAVITON_SEEDS") else {
        return 0..default;
    };
    let parsed = match text.split_once("..") {
        Some((first, end)) => first.parse().ok().zip(end.parse().ok()),
        None => text.parse().ok().map(|end| (0, end)),
    };
    let (first, end) = parsed
        .filter(|(first, end)| first < end)
        .expect("GRAVITON_SEEDS is a number, or two with `..` between, the greater one last");
    first..end
}

/// The actions to keep of so many.
fn kept(count: usize) -> Vec<usize> {
    let Ok(text) = std::env::var("GRAVITON_KEEP") else {
        return (0..count).collect();
    };
    let numbers = text.split(',').filter(|number| !number.is_empty());
    let kept = numbers.map(|number| number.parse().ok().filter(|&number| number < count));
    let kept: Option<_> = kept.collect();
    kept.unwrap_or_else(|| {
        panic!("GRAVITON_KEEP={text} lists numbers below {count}, with commas between")
    })
}

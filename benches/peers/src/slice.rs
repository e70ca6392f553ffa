//! One slice of a work: operations until the time is over, each timed.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

/// What was done in a slice, and how long it took.
#[derive(Debug, Default)]
pub struct Run {
    /// How many operations were done.
    pub operations: usize,
    /// In how long altogether, in seconds.
    pub seconds: f64,
    /// How long each took, in nanoseconds; of a group that is done in one call, the call.
    pub latencies: Vec<u64>,
}

impl Run {
    /// Operations done in a second.
    pub fn per_second(&self) -> f64 {
        self.operations as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// How long it lasted.
    pub fn lasted(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// Counts what was done later, too.
    pub fn add(&mut self, later: Self) {
        self.operations += later.operations;
        self.seconds += later.seconds;
        self.latencies.extend(later.latencies);
    }

    /// The same run, each of whose operations was a group of so many.
    pub fn of_groups(mut self, size: usize) -> Self {
        self.operations *= size;
        self
    }
}

/// A duration in nanoseconds.
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Runs `step` for each of the items, in order, by so many threads that each take the next one, until there is none
/// left or the time is over.
pub fn by_threads<T: Copy + Sync>(
    threads: usize,
    time: Duration,
    items: &[T],
    step: impl Fn(T) -> Result<()> + Sync,
) -> Result<Run> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<Shift> {
        let from = Instant::now();
        let mut shift = Shift {
            from,
            until: from,
            latencies: Vec::new(),
        };
        while shift.until.duration_since(from) < time {
            let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) else {
                break;
            };
            step(*item)?;
            let after = Instant::now();
            let latency = after.duration_since(shift.until);
            shift.latencies.push(nanoseconds(latency));
            shift.until = after;
        }
        Ok(shift)
    };
    let shifts = match threads {
        // No thread to be woken: what is measured of one caller is one caller.
        0 | 1 => vec![work()?],
        _ => side_by_side(threads, &work)?,
    };
    let from = shifts.iter().map(|shift| shift.from).min();
    let until = shifts.iter().map(|shift| shift.until).max();
    let lasted = from.zip(until).map(|(from, until)| until - from);
    let latencies: Vec<u64> = shifts
        .into_iter()
        .flat_map(|shift| shift.latencies)
        .collect();
    Ok(Run {
        operations: latencies.len(),
        seconds: lasted.unwrap_or_default().as_secs_f64(),
        latencies,
    })
}

/// What one thread did.
struct Shift {
    from: Instant,
    until: Instant,
    latencies: Vec<u64>,
}

/// Runs `work` by so many threads that begin together.
fn side_by_side(threads: usize, work: &(impl Fn() -> Result<Shift> + Sync)) -> Result<Vec<Shift>> {
    let all_here = Barrier::new(threads);
    let wait_and_work = || {
        all_here.wait();
        work()
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(wait_and_work)).collect();
        let joined = workers.into_iter().map(|worker| worker.join());
        joined
            .map(|shift| shift.expect("a worker does not panic"))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_item_is_done_once_by_however_many_threads() {
        let items: Vec<usize> = (1..=100).collect();
        for threads in [1, 4] {
            let sum = AtomicUsize::new(0);
            let run = by_threads(threads, Duration::from_secs(60), &items, |item| {
                sum.fetch_add(item, Ordering::Relaxed);
                Ok(())
            })
            .expect("no step fails");
            assert_eq!((run.operations, sum.into_inner()), (100, 5050));
            assert_eq!(run.latencies.len(), 100);
        }
    }

    #[test]
    fn it_ends_when_the_time_is_over() {
        let run = by_threads(1, Duration::ZERO, &[1, 2, 3], |_| Ok(())).expect("no step fails");
        assert_eq!(run.operations, 0);
    }
}

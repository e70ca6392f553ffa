//! Mutations of several steps whose `Op` was dropped, or that others would keep from ever ending: they
//! are seen through on a thread of their own, and whatever comes later waits for them, so that none
//! lands after a later one on its key.

use std::sync::Arc;

use crate::port::BinaryKey;
use crate::port::latch::Latch;
use crate::port::op::{Detached, wait_for};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutex, thread};

/// The mutations that go on without their callers.
#[derive(Debug, Default)]
pub struct DetachedMutations {
    /// How many there are: the common case is none, and costs one load.
    count: AtomicUsize,
    running: Mutex<Vec<(Vec<BinaryKey>, Arc<Latch>)>>,
}

impl DetachedMutations {
    /// Sees a mutation of `keys` through.
    pub fn keep(self: &Arc<Self>, keys: Vec<BinaryKey>, mutation: Detached) {
        let latch = Arc::new(Latch::default());
        self.running.lock().push((keys, Arc::clone(&latch)));
        self.count.fetch_add(1, Ordering::AcqRel);
        let this = Arc::clone(self);
        let run = move || {
            wait_for(mutation);
            this.running
                .lock()
                .retain(|(_, running)| !Arc::ptr_eq(running, &latch));
            this.count.fetch_sub(1, Ordering::AcqRel);
            latch.raise();
        };
        // Without a thread to be had it ends here and now; it is never given up.
        let run = Arc::new(Mutex::new(Some(run)));
        let handed = Arc::clone(&run);
        let call = move || {
            let run = handed.lock().take();
            if let Some(run) = run {
                run();
            }
        };
        if thread::Builder::new()
            .name("graviton-detached".to_owned())
            .spawn(call)
            .is_err()
        {
            let run = run.lock().take();
            if let Some(run) = run {
                run();
            }
        }
    }

    /// Sees a mutation of `keys` through in the same way, for somebody who waits for it.
    pub fn see_through<T: Send + 'static>(
        self: &Arc<Self>,
        keys: Vec<BinaryKey>,
        mutation: impl Future<Output = T> + Send + 'static,
    ) -> impl Future<Output = T> + Send {
        let over = Arc::new((Mutex::new(None), Latch::default()));
        let told = Arc::clone(&over);
        self.keep(
            keys,
            Box::pin(async move {
                let outcome = mutation.await;
                *told.0.lock() = Some(outcome);
                told.1.raise();
            }),
        );
        async move {
            let (outcome, latch) = &*over;
            latch.raised().await;
            outcome.lock().take().expect("it is over")
        }
    }

    /// Waits for those that touch one of `keys`; for all of them if there are no keys.
    pub fn before(
        self: &Arc<Self>,
        keys: &[&BinaryKey],
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let latches: Vec<Arc<Latch>> = self
            .running
            .lock()
            .iter()
            .filter(|(touched, _)| keys.is_empty() || touched.iter().any(|key| keys.contains(&key)))
            .map(|(_, latch)| Arc::clone(latch))
            .collect();
        (!latches.is_empty()).then_some(async move {
            for latch in latches {
                latch.raised().await;
            }
        })
    }
}

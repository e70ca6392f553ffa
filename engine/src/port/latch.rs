//! [`Latch`]: something that happens once, and that many may wait for.

use std::future::poll_fn;
use std::task::{Poll, Waker};

use crate::sync::Mutex;

/// Raised once.
#[derive(Debug, Default)]
pub(crate) struct Latch {
    state: Mutex<(bool, Vec<Waker>)>,
}

impl Latch {
    /// Wakes those who wait.
    pub(crate) fn raise(&self) {
        let wakers = {
            let mut state = self.state.lock();
            state.0 = true;
            std::mem::take(&mut state.1)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Waits until it is raised.
    pub(crate) async fn raised(&self) {
        poll_fn(|context| {
            let mut state = self.state.lock();
            if state.0 {
                return Poll::Ready(());
            }
            if !state.1.iter().any(|waker| waker.will_wake(context.waker())) {
                state.1.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

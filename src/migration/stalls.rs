//! How long requests have to wait for a change of the phase.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::types::Epoch;

/// What requests through one proxy have waited.
#[derive(Default)]
pub(super) struct Stalls {
    /// Requests that wait now.
    waiting: AtomicUsize,
    longest: Mutex<Longest>,
}

/// Only requests that waited come here, so the lock is rarely taken.
#[derive(Default)]
struct Longest {
    ever: Duration,
    /// The latest epoch that a request waited for, and the longest wait for it.
    latest: (Epoch, Duration),
}

/// A request that waits.
pub(super) struct Stall<'a> {
    stalls: &'a Stalls,
    /// Since when.
    pub(super) since: Instant,
}

impl Stalls {
    /// A request waits that was first sent, or would have been, at `since`.
    pub(super) fn begin(&self, since: Instant) -> Stall<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let stalls = self;
        Stall { stalls, since }
    }

    /// The longest wait so far of a request that was carried out in the end.
    pub(super) fn longest(&self) -> Duration {
        self.lock().ever
    }

    /// The longest wait for `epoch`; nothing while requests still wait.
    pub(super) fn of(&self, epoch: Epoch) -> Option<Duration> {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            return None;
        }
        let (latest, stall) = self.lock().latest;
        Some(if latest == epoch {
            stall
        } else {
            Duration::ZERO
        })
    }

    fn lock(&self) -> MutexGuard<'_, Longest> {
        self.longest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stall<'_> {
    /// The request was carried out, in `epoch`.
    pub(super) fn over(self, epoch: Epoch) {
        let waited = self.since.elapsed();
        let mut longest = self.stalls.lock();
        longest.ever = longest.ever.max(waited);
        let (latest, stall) = &mut longest.latest;
        match epoch.cmp(latest) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => *stall = waited.max(*stall),
            std::cmp::Ordering::Greater => longest.latest = (epoch, waited),
        }
    }
}

impl Drop for Stall<'_> {
    fn drop(&mut self) {
        self.stalls.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_epoch_has_its_own_longest_wait_once_nobody_waits_any_more() {
        let stalls = Stalls::default();
        let since = |seconds| Instant::now() - Duration::from_secs(seconds);
        let of = |epoch| stalls.of(Epoch(epoch)).map(|stall| stall.as_secs());
        stalls.begin(since(30)).over(Epoch(2));
        stalls.begin(since(20)).over(Epoch(2));
        assert_eq!(of(2), Some(30));
        stalls.begin(since(10)).over(Epoch(3));
        stalls.begin(since(15)).over(Epoch(2));
        assert_eq!((of(3), of(4)), (Some(10), Some(0)));
        assert_eq!(stalls.longest().as_secs(), 30);
        let given_up = stalls.begin(since(99));
        assert_eq!(of(3), None);
        drop(given_up);
        assert_eq!(of(3), Some(10));
        assert_eq!(stalls.longest().as_secs(), 30);
    }
}

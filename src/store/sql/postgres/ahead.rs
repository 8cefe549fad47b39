//! The next batch is begun while the one before it is being committed.
//!
//! A batch takes two flights. Between them, and while its log is flushed, the database has nothing to do.
//! So the first flight of the next batch goes out behind the commit as soon as enough waits for it. It is
//! on the same connection: there the lock of the head row passes from one transaction to the next without
//! anybody having to be woken up. A second connection that waits for the lock costs more than it wins.
//!
//! Others who wait for the lock would never get it in this way; [`Turns`] sees to that.

use std::future::ready;
use std::pin::pin;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use crate::store::sql::backend::{Head, Next, Prefetch};

/// A batch whose first flight has gone out behind the commit of the one before. What that finds is a `T`.
pub(super) struct Ahead<T> {
    want: Arc<Prefetch>,
    flight: BoxFuture<'static, T>,
}

impl<T: Send + 'static> Ahead<T> {
    /// Waits for `commit`, which has to be sent when it is first polled; has `begin` send the first flight
    /// of the `next` batch meanwhile, if there is one in time.
    pub(super) async fn behind<C>(
        commit: impl Future<Output = C>,
        next: Option<Next<'_>>,
        begin: impl FnOnce(Arc<Prefetch>) -> BoxFuture<'static, T>,
    ) -> (C, Option<Self>) {
        let mut commit = pin!(commit);
        let Some(next) = next else {
            return (commit.await, None);
        };
        let want = tokio::select! {
            biased;
            done = &mut commit => return (done, None),
            want = next => want,
        };
        let mut flight = begin(want.clone());
        tokio::select! {
            biased;
            done = &mut commit => (done, Some(Self { want, flight })),
            found = &mut flight => {
                let flight = ready(found).boxed();
                (commit.await, Some(Self { want, flight }))
            }
        }
    }

    /// Whether it is this batch.
    pub(super) fn is_for(&self, want: &Arc<Prefetch>) -> bool {
        Arc::ptr_eq(&self.want, want)
    }

    /// What the first flight has found.
    pub(super) async fn found(self) -> T {
        self.flight.await
    }
}

/// Batches that keep the lock from one to the next, before others get a chance to have it: a hundredth of
/// a second under load.
const IN_A_ROW: u32 = 8;

/// After so many batches without anybody else's, nobody else is thought to write.
const ALONE_AFTER: u32 = 64;

/// When a batch may be begun ahead, and so keep the lock: as long as nobody else writes, and not always,
/// so that it is noticed when somebody wants to.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The head row as the last batch has left it.
    left: Option<Head>,
    in_a_row: u32,
    /// How many batches it is yet until we are thought to be alone.
    crowded: u32,
}

impl Turns {
    /// A batch was begun, ahead or not, and found the head row like this.
    pub(super) fn began(&mut self, ahead: bool, found: &Head) {
        self.in_a_row = if ahead { self.in_a_row + 1 } else { 0 };
        self.crowded = if self.left.is_some_and(|left| left != *found) {
            ALONE_AFTER
        } else {
            self.crowded.saturating_sub(1)
        };
    }

    /// The batch leaves the head row like this.
    pub(super) fn leaves(&mut self, head: Head) {
        self.left = Some(head);
    }

    /// Whether the next one may be begun ahead.
    pub(super) fn keep(&self) -> bool {
        self.crowded == 0 && self.in_a_row < IN_A_ROW
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many batches are begun ahead, if somebody else wants to write before those, and waits
    /// until he can.
    fn ahead(batches: i64, others: impl Fn(i64) -> bool) -> i64 {
        let mut turns = Turns::default();
        let mut revision = 1;
        let mut begun = 0;
        let mut waits = false;
        for batch in 0..batches {
            let keep = turns.keep();
            waits |= others(batch);
            if waits && !keep {
                revision += 1;
                waits = false;
            }
            begun += i64::from(keep);
            turns.began(keep, &Head::at(revision));
            revision += 1;
            turns.leaves(Head::at(revision));
        }
        begun
    }

    #[test]
    fn who_is_alone_keeps_the_lock_mostly_and_never_for_long() {
        assert_eq!(ahead(900, |_| false), 800);
    }

    #[test]
    fn who_is_not_alone_does_not_keep_the_lock() {
        assert_eq!(ahead(900, |batch| batch > 0), i64::from(IN_A_ROW));
        assert_eq!(ahead(900, |batch| batch > 0 && batch % 20 == 0), 24);
    }

    #[test]
    fn who_is_alone_again_keeps_the_lock_again() {
        let begun = ahead(900, |batch| batch < 450);
        assert!(begun > 300, "{begun}");
    }
}

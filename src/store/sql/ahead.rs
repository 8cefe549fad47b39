//! The next batch is begun while the one before it is being committed.
//!
//! A batch takes two round trips. Between them, and while its log is flushed, the database has nothing to
//! do. So the first one of the next batch is made beside the commit as soon as enough waits for it.

use std::future::ready;
use std::pin::pin;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::backend::{Next, Prefetch};

/// A batch whose first round trip is made beside the commit of the one before. What that finds is a `T`.
pub(super) struct Ahead<T> {
    want: Arc<Prefetch>,
    trip: BoxFuture<'static, T>,
}

impl<T: Send + 'static> Ahead<T> {
    /// Waits for `commit`, which has to be sent when it is first polled; has `begin` make the first
    /// trip of the `next` batch meanwhile, if there is one in time.
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
        let mut trip = begin(want.clone());
        tokio::select! {
            biased;
            done = &mut commit => (done, Some(Self { want, trip })),
            found = &mut trip => {
                let trip = ready(found).boxed();
                (commit.await, Some(Self { want, trip }))
            }
        }
    }

    /// Whether it is this batch.
    pub(super) fn is_for(&self, want: &Arc<Prefetch>) -> bool {
        Arc::ptr_eq(&self.want, want)
    }

    /// What the first trip has found.
    pub(super) async fn found(self) -> T {
        self.trip.await
    }
}

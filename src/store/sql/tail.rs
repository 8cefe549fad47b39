//! The changes that other processes make, and those between which theirs came.
//!
//! A batch of this process whose changes join those that were published before goes straight to the
//! feed. Where others have committed in between, everything is read from the log instead.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::backend::{Backend, Found, LogScan, Query, Snapshot};
use super::height::Height;
use super::unanswered;
use crate::store::feed::Feed;
use crate::store::{Result, StoreError};
use crate::types::{KeyRange, Revision};

/// Events that are read at a time, and bytes of keys and values.
const EVENTS: usize = 4096;
const BYTES: usize = 4 << 20;

/// How long a database that fails is left alone.
const PAUSE: Duration = Duration::from_millis(200);

/// Brings the feed what the log has.
pub(super) struct Tail<B> {
    pub(super) backend: Arc<B>,
    pub(super) feed: Arc<Feed>,
    /// The writer says that the feed is behind.
    pub(super) behind: Arc<Notify>,
    pub(super) height: Arc<Height>,
    pub(super) cancel: CancellationToken,
}

impl<B: Backend> Tail<B> {
    /// Runs until it is cancelled.
    pub(super) async fn run(self) {
        loop {
            let published = self.feed.published();
            let watched = self.feed.attached() > 0;
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = self.behind.notified() => {}
                () = self.backend.moved(published, watched) => {}
            }
            let done = tokio::select! {
                () = self.cancel.cancelled() => return,
                done = self.catch_up() => done,
            };
            if let Err(err) = done {
                if let StoreError::Broken(reason) = &err {
                    self.feed.end_all(reason);
                }
                warn!("cannot read the changes of other processes, will try again: {err}");
                // What the writer told before must not be forgotten.
                self.behind.notify_one();
                tokio::select! {
                    () = self.cancel.cancelled() => return,
                    () = tokio::time::sleep(PAUSE) => {}
                }
            }
        }
    }

    async fn catch_up(&self) -> Result<()> {
        loop {
            let from = self.feed.published();
            let floor = self.height.get();
            let read = self.backend.read(scan(from)).await?;
            self.height.reach(floor, read.head.revision)?;
            let Some(Found::Log { batches, reached }) = read.found.into_iter().next() else {
                return Err(unanswered());
            };
            if read.head.swept > from {
                // Whoever waits for the changes in between would not notice that some are missing.
                self.feed
                    .end_all("another process has compacted changes that were not read yet");
            }
            // The log is whole, so what was read joins what was published even if the writer has
            // published more meanwhile; that part is dropped as a repetition.
            self.feed.publish(&batches);
            self.feed.advance(reached);
            if reached >= read.head.revision || reached <= from {
                return Ok(());
            }
        }
    }
}

fn scan(published: Revision) -> Snapshot {
    Snapshot::latest(vec![Query::Log(LogScan {
        parts: vec![KeyRange::all()],
        from: published.next(),
        to: Revision(i64::MAX),
        max_events: EVENTS,
        max_bytes: BYTES,
        prev_kv: true,
    })])
}

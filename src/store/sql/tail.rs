//! The changes that other processes make, and those between which theirs came.
//!
//! A batch of this process whose changes join those that were published before goes straight to the
//! feed. Where others have committed in between, everything is read from the log instead, as far as
//! anybody watches.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::backend::{Backend, Found, LogScan, Query, Read, Snapshot};
use super::height::Height;
use super::unanswered;
use crate::store::feed::Feed;
use crate::store::{Result, StoreError};
use crate::types::{KeyRange, Revision};

/// Events that are read at a time, and bytes of keys and values.
const EVENTS: usize = 4096;
const BYTES: usize = 4 << 20;

/// Before the next look at where others are, as long as nobody watches. What they have written since has to be
/// read when somebody comes to, and must not be gone by then: see [`super::tables::LINGER`].
const UNWATCHED: Duration = Duration::from_millis(500);

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

/// How the feed got to where the log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reached {
    /// It has handed out everything.
    All,
    /// Nobody watches.
    PassedBy,
}

impl<B: Backend> Tail<B> {
    /// Runs until it is cancelled.
    pub(super) async fn run(self) {
        self.cancel.run_until_cancelled(self.follow()).await;
    }

    async fn follow(&self) {
        loop {
            let watched = self.feed.is_watched();
            tokio::select! {
                () = self.behind.notified() => {}
                () = self.backend.moved(|| self.feed.published(), watched) => {}
                () = self.feed.until_watched(), if !watched => continue,
            }
            match self.catch_up().await {
                Ok(Reached::All) => {}
                // Whoever comes finds little that he has to wait for.
                Ok(Reached::PassedBy) => tokio::select! {
                    () = self.feed.until_watched() => {}
                    () = sleep(UNWATCHED) => {}
                },
                Err(err) => {
                    if let StoreError::Broken(reason) = &err {
                        self.feed.end_all(reason);
                    }
                    warn!("cannot read the changes of other processes, will try again: {err}");
                    // What the writer told before must not be forgotten.
                    self.behind.notify_one();
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn catch_up(&self) -> Result<Reached> {
        loop {
            if !self.feed.is_watched() && self.pass_by().await? {
                return Ok(Reached::PassedBy);
            }
            let from = self.feed.published();
            let read = self.read(scan(from)).await?;
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
                return Ok(Reached::All);
            }
        }
    }

    /// Passes by what was committed without reading it, unless somebody has come to watch meanwhile: then
    /// answers `false`. A member whose clients do not watch would else read all that the others write.
    async fn pass_by(&self) -> Result<bool> {
        let read = self.read(Snapshot::latest(Vec::new())).await?;
        Ok(self.feed.pass_by(read.head.revision))
    }

    async fn read(&self, snapshot: Snapshot) -> Result<Read> {
        self.height.read(&*self.backend, snapshot).await
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sql::history::Log;
    use crate::store::sql::sqlite::Sqlite;
    use crate::store::sql::{Options, SqlStore};
    use crate::store::{Store as _, Watch};
    use crate::types::{Put, Reserved};

    #[tokio::test]
    async fn what_others_write_is_read_only_if_somebody_watches() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        let open = || Sqlite::open(&path, "segue_", true).unwrap();
        let store = SqlStore::start(open(), Options::default()).await.unwrap();
        store.put(Put::new("a", "")).await.unwrap();
        store.close().await;
        drop(store);
        // Whoever reads the log fails.
        let database = rusqlite::Connection::open(&path).unwrap();
        database.execute_batch("DROP TABLE segue_log").unwrap();
        drop(database);
        let backend = Arc::new(open());
        let log = Log {
            backend: backend.clone(),
            reserved: Reserved::default(),
        };
        let tail = Tail {
            backend,
            feed: Arc::new(Feed::new(Arc::new(log), Reserved::default(), Revision(1))),
            behind: Arc::default(),
            height: Arc::new(Height::new(Revision(1))),
            cancel: CancellationToken::new(),
        };
        assert_eq!(tail.catch_up().await.unwrap(), Reached::PassedBy);
        assert_eq!(tail.feed.published(), Revision(2));
        let _watching = tail
            .feed
            .watch(Watch::of(KeyRange::all(), None), Revision(2));
        tail.catch_up().await.unwrap_err();
    }
}

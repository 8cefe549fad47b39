//! The fan-out of committed changes to watchers.
//!
//! Whoever commits changes publishes them here, in the order of their revisions, and never waits:
//! every watcher has a queue with a bound, of batches and of bytes. A watcher whose queue is full is
//! not skipped. It is taken off the feed, works off its queue, reads on in the store's history until it
//! has caught up, and is put back on the feed, with no change left out and none twice. A watch that
//! starts in the past begins in the same way.

mod hub;
#[cfg(test)]
mod tests;
mod watcher;

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};
use tokio::sync::Notify;

use super::{Result, Watch, WatchItem, Watching};
use crate::types::{EventBatch, Reserved, Revision};

use hub::Hub;
use watcher::Watcher;

/// A watcher that reads has a few batches waiting for it; one that does not is served from history.
/// Values may be as large as requests, and more than a few such ones need not be kept.
const ROOM: Room = Room {
    batches: 256,
    bytes: 8 << 20,
};

/// What may wait for one watcher, at most.
#[derive(Clone, Copy)]
struct Room {
    batches: usize,
    /// One batch may wait whatever its size.
    bytes: usize,
}

/// The changes of the past, as a store keeps them.
#[async_trait]
pub trait History: Send + Sync + 'static {
    /// What happened after the revision `after`, oldest first, about `limit` events at a time but
    /// never a part of a revision; also less, where it takes long to find so many.
    ///
    /// What `watch` does not ask for may be left out; the feed looks at its keys, filters and
    /// `prev_kv`, not at its start. Changes that were published before the call must be seen.
    ///
    /// Fails with [`super::RequestError::Compacted`] if `after + 1` lies below the compacted
    /// revision.
    async fn history(&self, watch: &Watch, after: Revision, limit: usize) -> Result<Stretch>;
}

/// A part of the past.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stretch {
    /// The changes, in the order of their revisions.
    pub batches: Vec<Arc<EventBatch>>,
    /// All changes up to this revision (those before it have no events that were asked for) are in
    /// `batches`. At least the `after` of the request; higher where anything was published after it.
    pub through: Revision,
}

/// Hands committed changes to watchers.
///
/// The history must not own the feed, directly or not, since the feed owns the history. Dropping the
/// feed ends all watches.
pub struct Feed {
    shared: Arc<Shared>,
}

struct Shared {
    hub: Hub,
    history: Arc<dyn History>,
    reserved: Reserved,
    room: Room,
}

impl Feed {
    /// A feed that goes on after the revision `published`.
    #[must_use]
    pub fn new(history: Arc<dyn History>, reserved: Reserved, published: Revision) -> Self {
        Self::with_room(history, reserved, published, ROOM)
    }

    fn with_room(
        history: Arc<dyn History>,
        reserved: Reserved,
        published: Revision,
        room: Room,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                hub: Hub::new(published),
                history,
                reserved,
                room,
            }),
        }
    }

    /// Hands out changes. Never waits.
    ///
    /// Batches come in the order of their revisions and without gaps: all changes between the last
    /// published revision and a batch's have to be published before it. A store whose changes
    /// come in on two ways (its own commits and the log of other processes) fills the gap from its
    /// log first. A batch at or below the last published revision is a repetition and is dropped.
    ///
    /// Publish behind the commit and before anybody is told of it.
    pub fn publish(&self, batches: &[Arc<EventBatch>]) {
        self.shared.hub.publish(batches);
    }

    /// Hands out all changes of `(before, through]`, if everything up to `before` was published;
    /// else does nothing and answers `false`.
    #[must_use]
    pub fn publish_behind(
        &self,
        before: Revision,
        batches: &[Arc<EventBatch>],
        through: Revision,
    ) -> bool {
        self.shared.hub.publish_behind(before, batches, through)
    }

    /// Says that nothing happened up to `revision`: the line's base was raised, or the source of
    /// the changes says so.
    pub fn advance(&self, revision: Revision) {
        self.shared.hub.advance(revision);
    }

    /// Returns when a watcher has got on the feed on which there was none. Also without any, where one did while
    /// nobody waited for this.
    pub async fn until_watched(&self) {
        self.shared.hub.until_watched().await;
    }

    /// Counts all changes up to `revision` as published, which history has, if no watcher is on the feed that
    /// would have to get them; else does nothing and answers `false`.
    #[must_use]
    pub fn pass_by(&self, revision: Revision) -> bool {
        self.shared.hub.pass_by(revision)
    }

    /// The last revision that was published.
    #[must_use]
    pub fn published(&self) -> Revision {
        self.shared.hub.published()
    }

    /// Whether there are watchers on the feed now; those that read history do not count.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.shared.hub.is_watched()
    }

    /// How many they are.
    #[cfg(test)]
    fn attached(&self) -> usize {
        self.shared.hub.attached()
    }

    /// Opens a watch on a store that is at `current`, which may be ahead of what was published.
    #[must_use]
    pub fn watch(&self, request: Watch, current: Revision) -> Watching {
        let revision = current.max(self.published());
        let seen = match request.start {
            Some(start) => Revision(start.0 - 1),
            None => revision,
        };
        let progress = Arc::new(Notify::new());
        let watcher = Watcher::new(
            self.shared.clone(),
            request,
            seen,
            revision,
            progress.clone(),
        );
        let items = stream::unfold(Some(watcher), |watcher| async move {
            let mut watcher = watcher?;
            let item = watcher.next().await;
            let last = matches!(item, WatchItem::End(_));
            Some((item, (!last).then_some(watcher)))
        });
        Watching {
            revision,
            items: items.boxed(),
            progress,
        }
    }

    /// Ends all watches that are open now as lost, for this reason, behind what was published
    /// before. Watches that are opened later are not concerned.
    pub fn end_all(&self, reason: &str) {
        self.shared.hub.end_all(reason);
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.end_all("the store was closed");
    }
}

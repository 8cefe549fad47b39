//! A watch as stores offer it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::BoxStream;
use tokio::sync::Notify;

use super::{RequestError, StoreError};
use crate::types::{Epoch, EventBatch, KeyRange, Revision};

/// A request for the changes of some keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Which keys.
    pub keys: KeyRange,
    /// First revision to deliver, which may lie ahead; nothing is "from now".
    pub start: Option<Revision>,
    /// Deliver puts.
    pub puts: bool,
    /// Deliver deletes.
    pub deletes: bool,
    /// Deliver the pair before each change, where it is not compacted.
    pub prev_kv: bool,
}

impl Watch {
    /// Every change of `keys` from `start` on.
    #[must_use]
    pub fn of(keys: KeyRange, start: Option<Revision>) -> Self {
        Self {
            keys,
            start,
            puts: true,
            deletes: true,
            prev_kv: false,
        }
    }
}

/// An open watch. Dropping it closes it.
pub struct Watching {
    /// The store's current revision when the watch was opened. A watch "from now" delivers
    /// everything above it.
    pub revision: Revision,
    /// What happens, in order, nothing left out and nothing twice. Ends only behind an
    /// [`WatchItem::End`]. A consumer that is slow is waited for or ended, never skipped.
    pub items: BoxStream<'static, WatchItem>,
    /// A notification makes the watch yield one [`WatchItem::Progress`] as soon as it has delivered
    /// everything up to the store's revision of that moment.
    pub progress: Arc<Notify>,
}

/// How long until a store that has not come far enough is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// Asks a watch for progress once more, in a moment. Where there is nothing new it answers at once: whoever
/// asked again at once would keep the thread from what brings something.
pub async fn ask_again(progress: &Notify) {
    tokio::time::sleep(ASK_AGAIN).await;
    progress.notify_one();
}

/// What an open watch yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchItem {
    /// The changes of one revision.
    Events(EventBatch),
    /// Everything up to this revision has been delivered.
    Progress(Revision),
    /// What comes next happened after the store was given this epoch, or a fence in its name. Only from
    /// stores that change by themselves, whatever the epoch: an etcd goes on ending leases. Comes before the
    /// first item of which that is true, and not for epochs from before the watch was opened.
    Epoch(Epoch),
    /// The watch is over.
    End(WatchEnd),
}

/// Why a watch is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEnd {
    /// What would come next was compacted; the oldest revision that a watch can start at.
    Compacted(Revision),
    /// The store is gone; a new watch from the last delivered revision + 1 may work later.
    Lost(String),
    /// The store cannot tell what would come next, and a new watch would end in the same way.
    Failed(StoreError),
}

impl From<StoreError> for WatchEnd {
    /// How a watch is over whose history failed to be read.
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Request(RequestError::Compacted(oldest)) => Self::Compacted(oldest),
            error if error.is_final() => Self::Failed(error),
            error => Self::Lost(error.to_string()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::stream::{self, StreamExt as _};

    use super::*;

    /// Asked more often than this, a [`slow_watch`] gives up.
    const ASKED_MAX: usize = 1000;

    /// A watch in a store that stays at revision 1, and how often it was asked for progress.
    pub(crate) fn slow_watch() -> (Watching, Arc<AtomicUsize>) {
        let (progress, asked) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
        let state = (progress.clone(), asked.clone());
        let items = stream::unfold(state, |(progress, asked)| async move {
            progress.notified().await;
            let item = if asked.fetch_add(1, Ordering::Relaxed) < ASKED_MAX {
                WatchItem::Progress(Revision(1))
            } else {
                WatchItem::End(WatchEnd::Lost("asked too often".into()))
            };
            Some((item, (progress, asked)))
        });
        let watching = Watching {
            revision: Revision(1),
            items: items.boxed(),
            progress,
        };
        (watching, asked)
    }
}

//! Whether the old store stands still, as an offline copy needs it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;

use crate::migration::records::readable;
use crate::store::{OldStore, Result, Watch, WatchEnd, WatchItem, Watching};
use crate::types::event::Change;
use crate::types::{KeyRange, Revision};

/// How long the store may take to tell of its changes.
const WITHIN: Duration = Duration::from_secs(30);

/// What was changed in the old store behind `base`, if anything was. Keys whose leases have run out
/// are none of it: nobody keeps them alive while the application is stopped.
pub(super) async fn changed(old: &Arc<dyn OldStore>, base: Revision) -> Result<Option<String>> {
    let now = old.revision().await?;
    if now <= base {
        return Ok(None);
    }
    let moved = format!("its revision was {base} and is {now}");
    let watch = Watch {
        prev_kv: true,
        ..Watch::of(KeyRange::all(), Some(base.next()))
    };
    let Some(watching) = old.watch(watch).await? else {
        // A store without a history: what has expired there counts like any other change.
        let leases = !old.leases().await?.is_empty();
        return Ok((!leases).then_some(moved));
    };
    match tokio::time::timeout(WITHIN, first_write(watching, now)).await {
        Ok(Some(what)) => Ok(Some(format!("{moved}; {what}"))),
        Ok(None) => Ok(None),
        Err(_) => Ok(Some(moved)),
    }
}

/// The first change up to `last` that is not a lease's end.
async fn first_write(mut watching: Watching, last: Revision) -> Option<String> {
    // What has changed may be hidden from watches, and then no event would ever come.
    watching.progress.notify_one();
    while let Some(item) = watching.items.next().await {
        match item {
            WatchItem::Events(batch) => {
                let write = batch.events.iter().find(|event| match &event.change {
                    Change::Put(_) => true,
                    Change::Delete { .. } => {
                        event.prev.as_ref().is_none_or(|kv| !kv.lease.is_some())
                    }
                });
                if let Some(event) = write {
                    return Some(format!("{} was written", readable(event.key())));
                }
                if batch.revision >= last {
                    return None;
                }
            }
            WatchItem::Progress(reached) if reached >= last => return None,
            WatchItem::Progress(_) | WatchItem::Epoch(_) => {}
            WatchItem::End(WatchEnd::Compacted(_)) => {
                return Some("what has changed is compacted".to_owned());
            }
            WatchItem::End(WatchEnd::Lost(why)) => return Some(why),
        }
    }
    Some("its history has ended".to_owned())
}

//! Whether the old store stands still, as an offline copy needs it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;

use crate::migration::records::readable;
use crate::store::foreign::Bookmark;
use crate::store::mark::Mark;
use crate::store::{OldStore, Result, Watch, WatchEnd, WatchItem, Watching};
use crate::types::event::Change;
use crate::types::{KeyRange, Revision};

/// How long the store may take to tell of its changes.
const WITHIN: Duration = Duration::from_secs(30);
/// The same where one change is asked for at a time, and a wait that comes to nothing takes half of it.
const ONE_BY_ONE_WITHIN: Duration = Duration::from_mins(1);

/// What was changed in the old store behind `base`, if anything was; where its revisions do not tell, since
/// its `mark` was taken. Keys whose leases have run out
/// are none of it: nobody keeps them alive while the application is stopped.
pub(super) async fn changed(
    old: &Arc<dyn OldStore>,
    base: Revision,
    mark: Option<&Mark>,
) -> Result<Option<String>> {
    if let Some(mark) = mark {
        let now = old.mark(Some(mark)).await?;
        let same = now.is_some_and(|now| mark.lasts_until(&now));
        return Ok((!same).then(|| "its rows are not the same as before".to_owned()));
    }
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
        // It keeps no history for clients, but may know what it is that has changed.
        let first = first_foreign(old, base, now);
        return match tokio::time::timeout(ONE_BY_ONE_WITHIN, first).await {
            Ok(what) => Ok(what?.map(|what| format!("{moved}; {what}"))),
            Err(_) => Ok(Some(format!("{moved}, and it does not say in time why"))),
        };
    };
    match tokio::time::timeout(WITHIN, first_write(watching, now)).await {
        Ok(Some(what)) => Ok(Some(format!("{moved}; {what}"))),
        Ok(None) => Ok(None),
        Err(_) => Ok(Some(moved)),
    }
}

/// The first change behind `base` up to `last` that is not a lease's end, as told to those who watch for
/// foreign writes.
async fn first_foreign(
    old: &Arc<dyn OldStore>,
    base: Revision,
    last: Revision,
) -> Result<Option<String>> {
    let seen = Bookmark {
        through: base,
        mark: None,
    };
    let Some(mut batches) = old.foreign(seen).await? else {
        return Ok(Some("it cannot tell why".to_owned()));
    };
    while let Some(batch) = batches.next().await {
        let batch = batch?;
        if batch.missed {
            return Ok(Some(
                "what has changed is no longer known there: keys may have expired or been written. If there \
                 are very many with a time to live, wait until they have run out"
                    .to_owned(),
            ));
        }
        if let Some(change) = batch.changes.first() {
            return Ok(Some(format!("{} was written", readable(change.key()))));
        }
        if batch.through >= last {
            return Ok(None);
        }
    }
    Ok(Some("its history has ended".to_owned()))
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
            WatchItem::End(WatchEnd::Failed(error)) => return Some(error.to_string()),
        }
    }
    Some("its history has ended".to_owned())
}

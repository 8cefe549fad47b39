//! What happens between the first start and the first request: leases, and the keys attached to
//! them, are brought into the new store, since in the old one they would expire on their own.
//!
//! An etcd lets them expire behind the fence as well. What ends there until it is copied is taken from
//! the history, as it was at the base revision, and ends in the new store once more: only that end is
//! on the line of revisions that clients see.
//!
//! All of it may be repeated and may be done by several members at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;

use super::copier::Copier;
use super::ledger::Ledger;
use crate::store::{Guard, GuardedStore, OldStore, Result, StoreError, Watch, WatchItem};
use crate::types::{KeyRange, KeyValue, Revision};

/// Keys that are asked for at a time.
const CHUNK: usize = 512;

/// The time to live of a lease that has ended in the old store behind the base, in seconds: a short one,
/// since nobody kept it alive.
const ENDED_TTL_S: i64 = 2;

/// Grants all leases of the old store in the new one with their full time to live, and copies up
/// the keys attached to them, as they were at `base`.
///
/// In the order of their create revisions: a store that assigns revisions by itself then has them
/// in the order in which locks and elections queue.
pub async fn copy_leased(
    ledger: &Ledger,
    old: &Arc<dyn OldStore>,
    new: &Arc<dyn GuardedStore>,
    base: Revision,
) -> Result<usize> {
    let copier = Copier::new(ledger.clone(), old.clone(), new.clone());
    let mut queue: Vec<(Revision, Bytes)> = Vec::new();
    for lease in old.leases().await? {
        copier.grant(lease.id, lease.ttl_s).await?;
        for chunk in lease.keys.chunks(CHUNK) {
            let pairs = old.get(chunk.to_vec()).await?;
            let found = pairs.into_iter().flatten();
            queue.extend(found.map(|kv| (kv.create_revision, kv.key)));
        }
    }
    let ended = ended_behind(old, base).await?;
    queue.extend(
        ended
            .values()
            .map(|kv| (kv.create_revision, kv.key.clone())),
    );
    queue.sort_unstable();
    queue.dedup();
    for chunk in queue.chunks(CHUNK) {
        let keys: Vec<Bytes> = chunk.iter().map(|(_, key)| key.clone()).collect();
        let found = old.get(keys.clone()).await?;
        let as_it_was =
            |(found, key): (Option<KeyValue>, &Bytes)| found.or_else(|| ended.get(key).cloned());
        let pairs: Vec<_> = found.into_iter().zip(&keys).filter_map(as_it_was).collect();
        copy(&copier, &pairs, &ended).await?;
    }
    // Those that ended while the others were copied.
    let mut late = ended_behind(old, base).await?;
    late.retain(|key, _| !ended.contains_key(key));
    let pairs: Vec<_> = late.values().cloned().collect();
    copy(&copier, &pairs, &late).await?;
    Ok(queue.len())
}

/// Forgets in the new store what lies before `base` if the old store has. A client that compacts at the
/// base once more is to be told so, and when the migration is settled the new store alone can tell.
pub async fn forget_past(
    old: &Arc<dyn OldStore>,
    new: &Arc<dyn GuardedStore>,
    base: Revision,
) -> Result<()> {
    let Some(old) = old.fenceable() else {
        return Ok(());
    };
    if old.guarded(Guard::None).status().await?.compacted < base {
        return Ok(());
    }
    new.forget(base).await
}

/// Copies `pairs` up, with the leases of those that have `ended`.
async fn copy(
    copier: &Copier,
    pairs: &[KeyValue],
    ended: &BTreeMap<Bytes, KeyValue>,
) -> Result<()> {
    for kv in pairs.iter().filter(|kv| ended.contains_key(&kv.key)) {
        copier.grant(kv.lease, ENDED_TTL_S).await?;
    }
    copier.copy(pairs, None).await.map(drop)
}

/// The pairs that have ended with their leases in the old store behind `base`, as they were before;
/// nothing where the store keeps no history that could tell.
async fn ended_behind(
    old: &Arc<dyn OldStore>,
    base: Revision,
) -> Result<BTreeMap<Bytes, KeyValue>> {
    let mut ended = BTreeMap::new();
    if old.revision().await? <= base {
        return Ok(ended);
    }
    let request = Watch {
        puts: false,
        prev_kv: true,
        ..Watch::of(KeyRange::all(), Some(base.next()))
    };
    let Some(mut watching) = old.watch(request).await? else {
        return Ok(ended);
    };
    watching.progress.notify_one();
    loop {
        match watching.items.next().await {
            Some(WatchItem::Events(batch)) => {
                let leased = |kv: &KeyValue| kv.lease.is_some();
                let before = batch.events.into_iter().filter_map(|event| event.prev);
                ended.extend(before.filter(leased).map(|kv| (kv.key.clone(), kv)));
            }
            Some(WatchItem::Epoch(_)) => {}
            Some(WatchItem::Progress(_)) => return Ok(ended),
            Some(WatchItem::End(_)) | None => {
                let why = "the old store cannot tell which leases have ended behind its fence";
                return Err(StoreError::Unavailable(why.into()));
            }
        }
    }
}

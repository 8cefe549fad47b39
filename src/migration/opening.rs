//! What happens between the first start and the first request: leases, and the keys attached to
//! them, are brought into the new store, since in the old one they would expire on their own.
//!
//! An etcd lets them expire behind the fence as well. What ends there until it is copied is taken from
//! the history, as it was at the base revision, and ends in the new store once more, unless its holder
//! renews it there: only that end is on the line of revisions that clients see.
//!
//! All of it may be repeated and may be done by several members at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::time::Instant;

use super::copier::Copier;
use super::held::{Leases, each};
use super::ledger::Ledger;
use crate::store::{Guard, GuardedStore, OldStore, Result, StoreError, Watch, WatchItem};
use crate::types::{KeyRange, KeyValue, LeaseId, Revision};

/// Keys that are asked for at a time.
const CHUNK: usize = 512;

/// The time to live of a lease that has ended in the old store behind the base before anybody has seen how
/// long it lives, in seconds: a short one, since nobody kept it alive.
const ENDED_TTL_S: i64 = 2;

/// Grants all leases of the old store in the new one with their full time to live, and copies up
/// the keys attached to them, as they were at `base`.
///
/// In the order of their create revisions: a store that assigns revisions by itself then has them
/// in the order in which locks and elections queue.
///
/// What it learns of the leases it tells `leases`, for somebody to renew them meanwhile.
pub async fn copy_leased(
    ledger: &Ledger,
    old: &Arc<dyn OldStore>,
    new: &Arc<dyn GuardedStore>,
    base: Revision,
    leases: &Leases,
) -> Result<usize> {
    let copying = Copying {
        copier: Copier::new(ledger.clone(), old.clone(), new.clone()),
        new,
        leases,
    };
    let listed = old.leases().await?;
    for lease in &listed {
        leases.old.see(lease.id, lease.ttl_s, None);
    }
    let ids: BTreeSet<LeaseId> = listed.iter().map(|lease| lease.id).collect();
    let mut granted = leases.old.ended_behind(&ids);
    granted.extend(listed.iter().map(|lease| (lease.id, lease.ttl_s)));
    copying.grant(granted).await?;

    let keys: Vec<Bytes> = listed.into_iter().flat_map(|lease| lease.keys).collect();
    let mut queue: Vec<(Revision, Bytes)> = Vec::with_capacity(keys.len());
    for chunk in keys.chunks(CHUNK) {
        let found = readable(old, chunk.to_vec()).await?.into_iter().flatten();
        queue.extend(found.map(|kv| (kv.create_revision, kv.key)));
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
        let found = readable(old, keys.clone()).await?;
        let as_it_was =
            |(found, key): (Option<KeyValue>, &Bytes)| found.or_else(|| ended.get(key).cloned());
        let pairs: Vec<_> = found.into_iter().zip(&keys).filter_map(as_it_was).collect();
        copying.copy(&pairs, &ended).await?;
    }
    // Those that ended while the others were copied.
    let mut late = ended_behind(old, base).await?;
    late.retain(|key, _| !ended.contains_key(key));
    let pairs: Vec<_> = late.values().cloned().collect();
    copying.copy(&pairs, &late).await?;
    Ok(queue.len())
}

/// The latest state of each of `keys`; nothing also for one that cannot be read. The backfill meets it
/// again, and tells of it: clients do not wait for what somebody has to mend in the old store.
async fn readable(old: &Arc<dyn OldStore>, keys: Vec<Bytes>) -> Result<Vec<Option<KeyValue>>> {
    let each = old.get_each(keys).await?.into_iter();
    Ok(each.map(|one| one.ok().flatten()).collect())
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

/// The way into the new store.
struct Copying<'a> {
    copier: Copier,
    new: &'a Arc<dyn GuardedStore>,
    leases: &'a Leases,
}

impl Copying<'_> {
    /// Copies `pairs` up, with the leases of those that have `ended`.
    async fn copy(&self, pairs: &[KeyValue], ended: &BTreeMap<Bytes, KeyValue>) -> Result<()> {
        let without = pairs.iter().filter(|kv| ended.contains_key(&kv.key));
        let lives = |id| (id, self.leases.old.ttl_s(id).unwrap_or(ENDED_TTL_S));
        let granted: BTreeMap<LeaseId, i64> = without.map(|kv| lives(kv.lease)).collect();
        self.grant(granted).await?;
        self.copier.copy(pairs, None).await.map(drop)
    }

    /// Grants leases, each with its time to live, or begins the time of those anew that are there.
    async fn grant(&self, leases: impl IntoIterator<Item = (LeaseId, i64)>) -> Result<()> {
        let grant = |(id, ttl_s)| async move {
            loop {
                let sent = Instant::now();
                // One that was granted before may be about to end.
                if self.copier.grant(id, ttl_s).await?
                    || self.new.keep_alive(id).await?.reply.is_some()
                {
                    self.leases.new.see(id, ttl_s, Some(sent));
                    return Ok(());
                }
            }
        };
        each(leases, grant).await.map(drop)
    }
}

/// The pairs that have ended with their leases in the old store behind `base`, as they were before;
/// nothing where the store keeps no history that could tell.
async fn ended_behind(
    old: &Arc<dyn OldStore>,
    base: Revision,
) -> Result<BTreeMap<Bytes, KeyValue>> {
    let mut ended = BTreeMap::new();
    // Where the store stands itself: as it is at the base, its revision is no later one.
    let state = old.state().await?;
    if state.is_some_and(|state| state.revision <= base) {
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
                let before = before.filter(leased).map(|kv| kv.at_latest(base));
                ended.extend(before.map(|kv| (kv.key.clone(), kv)));
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

//! Leases while clients wait for a transition. The renewals of their holders wait with everything else, so
//! they are renewed in their stead: however long it takes, none ends by it.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::Instant;
use tracing::debug;

use crate::store::{GuardedStore, Result};
use crate::types::{Epoch, LeaseId};

/// Leases that are seen to at the same time.
const AT_ONCE: usize = 64;

/// Between two rounds of renewals; the shortest lease lives for two seconds.
const PAUSE: Duration = Duration::from_millis(500);

/// The part of its time, one out of so many, after which a lease is renewed.
const DUE: u32 = 5;

/// The same when clients are about to be let in, who are to find leases nearly fresh.
const DUE_AT_LAST: u32 = 20;

/// Does something for each of many leases, some at a time: clients wait for it.
pub(super) async fn each<L, T, F>(
    leases: impl IntoIterator<Item = L>,
    act: impl Fn(L) -> F,
) -> Result<Vec<T>>
where
    F: Future<Output = Result<T>>,
{
    let done = stream::iter(leases).map(act).buffered(AT_ONCE);
    done.try_collect().await
}

/// What is known of the leases of both stores while a migration opens.
#[derive(Debug, Default)]
pub struct Leases {
    /// Those of the old store.
    pub old: Held,
    /// Those that were granted in the new one.
    pub new: Held,
}

/// The leases of the migration that opens in the epoch that is named, if one does.
#[derive(Debug, Default)]
pub(super) struct Opening(Mutex<Option<(Epoch, Arc<Leases>)>>);

impl Opening {
    /// What is known of them; nothing in an epoch that was not asked for before.
    pub(super) fn of(&self, epoch: Epoch) -> Arc<Leases> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some((of, leases)) if *of == epoch => leases.clone(),
            _ => known.insert((epoch, Arc::default())).1.clone(),
        }
    }

    /// Forgets all of it.
    pub(super) fn over(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The leases of one store.
#[derive(Debug, Default)]
pub struct Held(Mutex<BTreeMap<LeaseId, Life>>);

#[derive(Clone, Copy, Debug)]
struct Life {
    /// In full.
    ttl_s: i64,
    /// When it was renewed last, as far as that is known.
    renewed: Option<Instant>,
    /// It was seen alive behind the fence: no client can have ended it.
    behind: bool,
    /// It has ended all the same.
    over: bool,
}

impl Life {
    fn is_due(&self, part: u32) -> bool {
        let time = Duration::from_secs(u64::try_from(self.ttl_s).unwrap_or_default());
        let due = |at: Instant| at.elapsed().saturating_mul(part) >= time;
        !self.over && self.renewed.is_none_or(due)
    }
}

impl Held {
    fn lives(&self) -> MutexGuard<'_, BTreeMap<LeaseId, Life>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lease is alive. Its time has begun anew no earlier than it was `renewed`.
    pub(super) fn see(&self, id: LeaseId, ttl_s: i64, renewed: Option<Instant>) {
        let mut lives = self.lives();
        let known = lives.get(&id).filter(|known| known.ttl_s == ttl_s);
        let life = Life {
            ttl_s,
            renewed: renewed.max(known.and_then(|known| known.renewed)),
            behind: known.is_some_and(|known| known.behind),
            over: false,
        };
        lives.insert(id, life);
    }

    /// Those of the leases that were not seen yet.
    pub(super) fn unseen(&self, mut ids: Vec<LeaseId>) -> Vec<LeaseId> {
        let lives = self.lives();
        ids.retain(|id| !lives.contains_key(id));
        ids
    }

    /// These leases are alive behind the fence.
    pub(super) fn see_behind(&self, ids: &[LeaseId]) {
        let mut lives = self.lives();
        for id in ids {
            if let Some(life) = lives.get_mut(id) {
                life.behind = true;
            }
        }
    }

    /// The full time to live of a lease that was seen.
    pub(super) fn ttl_s(&self, id: LeaseId) -> Option<i64> {
        self.lives().get(&id).map(|life| life.ttl_s)
    }

    /// The leases, each with its time to live, that were alive behind the fence and are not among `listed`.
    pub(super) fn ended_behind(&self, listed: &BTreeSet<LeaseId>) -> Vec<(LeaseId, i64)> {
        let lives = self.lives();
        let ended = lives.iter();
        let ended = ended.filter(|(id, life)| life.behind && !listed.contains(id));
        ended.map(|(id, life)| (*id, life.ttl_s)).collect()
    }

    /// Those that are to be renewed, the most urgent first.
    fn due(&self, part: u32) -> Vec<LeaseId> {
        let lives = self.lives();
        let due = lives.iter().filter(|(_, life)| life.is_due(part));
        let mut due: Vec<_> = due.map(|(id, life)| (life.ttl_s, *id)).collect();
        due.sort_unstable();
        due.into_iter().map(|(_, id)| id).collect()
    }

    /// Begins the time of these leases anew, whether they were seen before or not.
    pub(super) async fn renew(&self, store: &dyn GuardedStore, ids: Vec<LeaseId>) -> Result<()> {
        each(ids, |id| async move {
            let sent = Instant::now();
            if let Some(ttl_s) = store.keep_alive(id).await?.reply {
                self.see(id, ttl_s, Some(sent));
            } else if let Some(life) = self.lives().get_mut(&id) {
                life.over = true;
            }
            Ok(())
        })
        .await
        .map(drop)
    }

    /// The last round before clients are let in.
    pub(super) async fn renew_at_last(&self, store: &dyn GuardedStore) -> Result<()> {
        self.renew(store, self.due(DUE_AT_LAST)).await
    }

    /// Renews leases in `store`, if there is one, for as long as it is polled.
    pub(super) async fn keep<F>(&self, store: impl Fn() -> F) -> Infallible
    where
        F: Future<Output = Result<Option<Arc<dyn GuardedStore>>>>,
    {
        loop {
            let due = self.due(DUE);
            if !due.is_empty() {
                let renewed = match store().await {
                    Ok(Some(store)) => self.renew(&*store, due).await,
                    Ok(None) => Ok(()),
                    Err(error) => Err(error),
                };
                if let Err(error) = renewed {
                    // What else is done in the store fails as well, and says so.
                    debug!(%error, "leases cannot be renewed now");
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_due_when_a_part_of_its_time_is_over() {
        let ago = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds));
        let held = Held::default();
        held.see(LeaseId(1), 600, ago(60));
        held.see(LeaseId(2), 600, None);
        held.see(LeaseId(3), 5, ago(2));
        // The most urgent comes first.
        assert_eq!(held.due(DUE), [LeaseId(3), LeaseId(2)]);
        let at_last = [LeaseId(3), LeaseId(1), LeaseId(2)];
        assert_eq!(held.due(DUE_AT_LAST), at_last);
        for id in [1, 2] {
            held.see(LeaseId(id), 600, ago(0));
        }
        assert_eq!(held.due(DUE_AT_LAST), [LeaseId(3)]);
        // To be listed is not to be renewed, nor to have ended sooner.
        for id in [1, 2] {
            held.see(LeaseId(id), 600, None);
        }
        assert_eq!(held.due(DUE_AT_LAST), [LeaseId(3)]);
    }

    #[test]
    fn only_what_was_alive_behind_the_fence_can_have_ended_there() {
        let held = Held::default();
        for id in 1..=3 {
            held.see(LeaseId(id), 10 * id, None);
        }
        held.see_behind(&[LeaseId(2), LeaseId(3), LeaseId(4)]);
        let listed = BTreeSet::from([LeaseId(3)]);
        assert_eq!(held.ended_behind(&listed), [(LeaseId(2), 20)]);
        assert_eq!(held.ttl_s(LeaseId(1)), Some(10));
        assert_eq!(held.ttl_s(LeaseId(4)), None);
    }

    #[test]
    fn what_is_known_belongs_to_one_epoch() {
        let opening = Opening::default();
        let first = opening.of(Epoch(2));
        first.old.see(LeaseId(1), 5, None);
        assert!(Arc::ptr_eq(&first, &opening.of(Epoch(2))));
        assert_eq!(opening.of(Epoch(5)).old.ttl_s(LeaseId(1)), None);
    }
}

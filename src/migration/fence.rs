//! The fence: what makes every further write by a proxy that still serves the old store fail there.
//!
//! Members stop by themselves when they learn that the phase has changed, but nothing can call back
//! a write that is on its way. So everything that is done in the passthrough phase has the condition
//! that there is no fence, in the old store's own transaction, and the migration begins by
//! putting one there: from then on nobody can change the old store, partitioned or not.

use std::cmp::Ordering;
use std::sync::Arc;

use super::held::Held;
use crate::store::{
    FENCE, Fence, Guard, NewStore, Record, RecordTxn, RecordWrite, RequestError, Result, StoreError,
};
use crate::types::Epoch;

/// Begins the time of every lease anew, so that none runs out in the old store between the fence and
/// the moment in which it is in the new one; and learns how long each lives.
pub async fn keep_leases_alive(old: &Arc<dyn NewStore>, held: &Held) -> Result<()> {
    let store = old.guarded(Guard::None);
    let leases = store.leases().await?.reply;
    held.renew(&*store, leases).await
}

/// Learns which leases are alive behind the fence, and how long those live that were granted at the last
/// moment.
pub async fn see_leases_behind(old: &Arc<dyn NewStore>, held: &Held) -> Result<()> {
    let store = old.guarded(Guard::None);
    let leases = store.leases().await?.reply;
    held.renew(&*store, held.unseen(leases.clone())).await?;
    held.see_behind(&leases);
    Ok(())
}

/// Fences the old store in the name of `migration`. May be repeated. Whoever serves it, be it because
/// there was no fence, be it since a rollback under its line, is refused from then on.
///
/// Fails if the store has the fence of another migration, and with [`StoreError::StaleEpoch`] if it
/// has one of a later epoch.
pub async fn raise(old: &Arc<dyn NewStore>, migration: &str, epoch: Epoch) -> Result<()> {
    loop {
        let present = present(old).await?;
        if let Some(fence) = &present {
            let found = Fence::read(&fence.value);
            if found.migration != migration {
                return Err(RequestError::Unacceptable(format!(
                    "the old store is fenced by another migration ({}), which has taken its data \
                     over: it cannot begin a second one",
                    found.migration
                ))
                .into());
            }
            match found.epoch.cmp(&epoch) {
                Ordering::Greater => return Err(StoreError::StaleEpoch),
                Ordering::Equal => return Ok(()),
                Ordering::Less => {}
            }
        }
        let fence = Fence {
            migration: migration.to_owned(),
            epoch,
        };
        let txn = RecordTxn {
            expect: vec![(FENCE.to_owned(), present.map_or(0, |fence| fence.version))],
            writes: vec![RecordWrite {
                name: FENCE.to_owned(),
                value: Some(fence.to_bytes()),
            }],
            line: Some(None),
            ..RecordTxn::default()
        };
        if old.write_records(txn).await? {
            return Ok(());
        }
    }
}

/// Whether this is the old store of a migration that has taken its data over: it is fenced, and no rollback has let
/// it in again.
pub async fn is_left_behind(store: &Arc<dyn NewStore>) -> Result<bool> {
    Ok(is_up(store).await? && store.line().await?.is_none())
}

/// What a store is asked under that is served alone: should it become the old one of a migration, nothing is done
/// behind its fence.
pub async fn guard_alone(store: &Arc<dyn NewStore>) -> Result<Guard> {
    let fenced = is_up(store).await?;
    Ok(match store.line().await? {
        Some(line) if fenced => Guard::Epoch {
            epoch: line.epoch,
            claims: line.claims,
        },
        None if fenced => Guard::None,
        _ => Guard::Unfenced,
    })
}

/// Whether there is a fence, whoever has put it there.
pub async fn is_up(old: &Arc<dyn NewStore>) -> Result<bool> {
    Ok(present(old).await?.is_some())
}

async fn present(old: &Arc<dyn NewStore>) -> Result<Option<Record>> {
    let mut records = old.records(FENCE).await?.into_iter();
    Ok(records.find(|record| record.name == FENCE))
}

/// Has `txn`, which removes the line of `new`, take the fence down there if it was the old store of an earlier
/// migration. Under the line it kept those out who still served it then; from now on it is a store like any
/// other, which is served, ends leases, and lets its claims go.
pub(super) async fn take_down_with(txn: &mut RecordTxn, new: &Arc<dyn NewStore>) -> Result<()> {
    if let Some(fence) = present(new).await? {
        txn.expect.push((FENCE.to_owned(), fence.version));
        txn.writes.push(RecordWrite {
            name: FENCE.to_owned(),
            value: None,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Line;
    use crate::store::memory::Memory;
    use crate::types::{Put, Revision};

    #[tokio::test]
    async fn nothing_is_done_behind_a_fence_in_a_store_that_is_served_alone() {
        let old: Arc<dyn NewStore> = Arc::new(Memory::new());
        let put = async |guard| old.guarded(guard).put(Put::new("k", "v")).await;
        let first = guard_alone(&old).await.unwrap();
        put(first).await.unwrap();
        raise(&old, "one", Epoch(2)).await.unwrap();
        assert!(is_left_behind(&old).await.unwrap());
        assert_eq!(put(first).await.err(), Some(StoreError::StaleEpoch));
        // Let in again, until the next migration begins.
        let line = Line {
            epoch: Epoch(6),
            claims: false,
            base: Revision(9),
        };
        let back = RecordTxn {
            line: Some(Some(line)),
            ..RecordTxn::default()
        };
        old.write_records(back).await.unwrap();
        assert!(!is_left_behind(&old).await.unwrap());
        let again = guard_alone(&old).await.unwrap();
        put(again).await.unwrap();
        raise(&old, "one", Epoch(7)).await.unwrap();
        assert_eq!(put(again).await.err(), Some(StoreError::StaleEpoch));
        // It was the new one of another.
        let mut over = RecordTxn::default();
        take_down_with(&mut over, &old).await.unwrap();
        assert!(old.write_records(over).await.unwrap());
        assert!(!is_left_behind(&old).await.unwrap());
        put(guard_alone(&old).await.unwrap()).await.unwrap();
    }

    #[tokio::test]
    async fn a_fence_is_put_once_per_epoch_and_belongs_to_one_migration() {
        let old: Arc<dyn NewStore> = Arc::new(Memory::new());
        let held = Held::default();
        keep_leases_alive(&old, &held).await.unwrap();
        raise(&old, "one", Epoch(2)).await.unwrap();
        keep_leases_alive(&old, &held).await.unwrap();
        raise(&old, "one", Epoch(2)).await.unwrap();
        raise(&old, "one", Epoch(7)).await.unwrap();
        let late = raise(&old, "one", Epoch(2)).await;
        assert_eq!(late, Err(StoreError::StaleEpoch));
        let told = raise(&old, "two", Epoch(9)).await.unwrap_err().to_string();
        assert!(told.contains("another migration (one)"), "{told}");
    }
}

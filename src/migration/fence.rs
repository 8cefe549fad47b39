//! The fence: what makes every further write by a proxy that still serves the old store fail there.
//!
//! Members stop by themselves when they learn that the phase has changed, but nothing can call back
//! a write that is on its way. So everything that is done in the passthrough phase has the condition
//! that there is no fence, in the old store's own transaction, and the migration begins by
//! putting one there: from then on nobody can change the old store, partitioned or not.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};

use crate::store::{
    FENCE, Guard, NewStore, RecordTxn, RecordWrite, RequestError, Result, StoreError,
};

/// Leases that are kept alive at a time.
const IN_FLIGHT: usize = 32;

/// Begins the time of every lease anew, so that none runs out in the old store between the fence and
/// the moment in which it is in the new one.
pub async fn keep_leases_alive(old: &Arc<dyn NewStore>) -> Result<()> {
    let store = old.guarded(Guard::Unfenced);
    let leases = match store.leases().await {
        // The fence is there already: whoever put it has done this before.
        Err(StoreError::StaleEpoch) => return Ok(()),
        leases => leases?.reply,
    };
    let kept = stream::iter(leases).map(|id| {
        let store = store.clone();
        async move { store.keep_alive(id).await }
    });
    let kept: Vec<_> = kept.buffer_unordered(IN_FLIGHT).collect().await;
    for kept in kept {
        match kept {
            Ok(_) | Err(StoreError::StaleEpoch) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Puts the fence of `migration` there. May be repeated.
///
/// Fails if the store has the fence of another migration.
pub async fn raise(old: &Arc<dyn NewStore>, migration: &str) -> Result<()> {
    loop {
        let records = old.records(FENCE).await?;
        if let Some(fence) = records.into_iter().find(|record| record.name == FENCE) {
            if fence.value == migration.as_bytes() {
                return Ok(());
            }
            return Err(RequestError::Unacceptable(format!(
                "the old store is fenced by another migration ({}), which has taken its data over: \
                 it cannot begin a second one",
                String::from_utf8_lossy(&fence.value)
            ))
            .into());
        }
        let txn = RecordTxn {
            expect: vec![(FENCE.to_owned(), 0)],
            writes: vec![RecordWrite {
                name: FENCE.to_owned(),
                value: Some(Bytes::copy_from_slice(migration.as_bytes())),
            }],
            line: None,
        };
        if old.write_records(txn).await? {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::Memory;

    #[tokio::test]
    async fn a_fence_is_put_once_and_belongs_to_one_migration() {
        let old: Arc<dyn NewStore> = Arc::new(Memory::new());
        keep_leases_alive(&old).await.unwrap();
        raise(&old, "one").await.unwrap();
        keep_leases_alive(&old).await.unwrap();
        raise(&old, "one").await.unwrap();
        let told = raise(&old, "two").await.unwrap_err().to_string();
        assert!(told.contains("another migration (one)"), "{told}");
    }
}

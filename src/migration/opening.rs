//! What happens between the first start and the first request: leases, and the keys attached to
//! them, are brought into the new store, since in the old one they would expire on their own.
//!
//! All of it may be repeated and may be done by several members at once.

use std::sync::Arc;

use bytes::Bytes;

use super::copier::Copier;
use super::ledger::Ledger;
use crate::store::{GuardedStore, OldStore, Result};
use crate::types::{KeyValue, Revision};

/// Keys that are asked for at a time.
const CHUNK: usize = 512;

/// Grants all leases of the old store in the new one with their full time to live, and copies up
/// the keys attached to them.
///
/// In the order of their create revisions: a store that assigns revisions by itself then has them
/// in the order in which locks and elections queue.
pub async fn copy_leased(
    ledger: &Ledger,
    old: &Arc<dyn OldStore>,
    new: &Arc<dyn GuardedStore>,
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
    queue.sort_unstable();
    for chunk in queue.chunks(CHUNK) {
        let keys = chunk.iter().map(|(_, key)| key.clone()).collect();
        // A key that has expired in between is gone for good: nobody was served yet.
        let pairs: Vec<KeyValue> = old.get(keys).await?.into_iter().flatten().collect();
        copier.copy(&pairs, None).await?;
    }
    Ok(queue.len())
}

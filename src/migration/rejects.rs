//! Keys that the new store could not take: another try, before each verification.

use std::sync::Arc;

use bytes::Bytes;

use super::copier::Copier;
use super::ledger::Ledger;
use super::records::{REJECTS, Reject};
use crate::store::{GuardedStore, OldStore, PageSize, Result};
use crate::types::{Content, KeyRange};

/// Goes through all rejects and forgets those that are none any more: the key is gone from the old
/// store, or clients have changed it since (it is claimed), or it can be copied now. Answers how
/// many are left.
pub async fn retry(
    ledger: &Ledger,
    old: &Arc<dyn OldStore>,
    new: &Arc<dyn GuardedStore>,
) -> Result<usize> {
    let copier = Copier::new(ledger.clone(), old.clone(), new.clone());
    let mut left = 0;
    for (name, entry) in ledger.list::<Reject>(REJECTS).await? {
        let key = &entry.value.key;
        let one = KeyRange::One(key.clone());
        let page = old.scan(one, PageSize::pairs(1), Content::Full).await?;
        if page.rejects.is_empty() {
            // Records the reject anew, in a new version, if the pair still cannot be taken.
            copier.copy(&page.kvs, None).await?;
        }
        let gone = page.kvs.is_empty() && page.rejects.is_empty();
        if gone || is_claimed(new, key).await? {
            let name = format!("{REJECTS}{name}");
            let version = ledger.get::<Reject>(&name).await?.unwrap_or(entry).version;
            ledger.remove(&name, version).await?;
        } else {
            left += 1;
        }
    }
    Ok(left)
}

/// The empty key is none, and an etcd refuses to look for it: it stands for rows of a table without a key.
async fn is_claimed(new: &Arc<dyn GuardedStore>, key: &Bytes) -> Result<bool> {
    let one = KeyRange::One(key.clone());
    Ok(!key.is_empty() && !new.claims(one, 0).await?.is_empty())
}

//! The old store as clients see it while it alone serves: before the migration begins, and after a
//! rollback.
//!
//! Requests go to the old store under the condition that it is not fenced. Keys under the reserved
//! prefix are the new store's in every phase: the switch key has to be found there.

use std::sync::Arc;

use async_trait::async_trait;

use crate::store::{GuardedStore, RequestError, Result, Status, Store, Watch, Watching};
use crate::types::{
    Answer, Delete, DeleteReply, Grant, Granted, KeyRange, LeaseId, LeaseStatus, Op, Put, PutReply,
    Range, RangeReply, Reserved, Revision, Txn, TxnReply,
};

/// The store of the passthrough phase.
pub(super) struct Passthrough {
    /// The old store, under the condition that it is not fenced.
    pub(super) old: Arc<dyn GuardedStore>,
    /// The new store, for reserved keys.
    pub(super) new: Arc<dyn GuardedStore>,
    pub(super) reserved: Reserved,
}

impl Passthrough {
    /// The store that has these keys.
    fn store_of(&self, keys: &KeyRange) -> &Arc<dyn GuardedStore> {
        if self.reserved.owns(keys) {
            &self.new
        } else {
            &self.old
        }
    }

    /// The store that has all keys of a transaction.
    fn store_of_txn(&self, txn: &Txn) -> Result<&Arc<dyn GuardedStore>> {
        let (mut reserved, mut others) = (false, false);
        let mut see = |keys: &KeyRange| {
            if self.reserved.owns(keys) {
                reserved = true;
            } else if !keys.is_empty() {
                others = true;
            }
        };
        txn.visit_compares(&mut |compare| see(&compare.keys));
        txn.visit(&mut |op| match op {
            Op::Range(range) => see(&range.keys),
            Op::Put(put) => see(&KeyRange::One(put.key.clone())),
            Op::Delete(delete) => see(&delete.keys),
            Op::Txn(_) => {}
        });
        match (reserved, others) {
            (true, true) => Err(RequestError::Unsupported(
                "a transaction cannot be about reserved keys and others at the same time".into(),
            )
            .into()),
            (true, false) => Ok(&self.new),
            (false, _) => Ok(&self.old),
        }
    }
}

#[async_trait]
impl Store for Passthrough {
    async fn range(&self, request: Range) -> Result<Answer<RangeReply>> {
        self.store_of(&request.keys).range(request).await
    }

    async fn txn(&self, request: Txn) -> Result<Answer<TxnReply>> {
        self.store_of_txn(&request)?.txn(request).await
    }

    async fn put(&self, request: Put) -> Result<Answer<PutReply>> {
        let keys = KeyRange::One(request.key.clone());
        self.store_of(&keys).put(request).await
    }

    async fn delete(&self, request: Delete) -> Result<Answer<DeleteReply>> {
        self.store_of(&request.keys).delete(request).await
    }

    async fn compact(&self, at: Revision) -> Result<Answer<()>> {
        self.old.compact(at).await
    }

    async fn watch(&self, request: Watch) -> Result<Watching> {
        self.store_of(&request.keys).watch(request).await
    }

    async fn grant(&self, request: Grant) -> Result<Answer<Granted>> {
        self.old.grant(request).await
    }

    async fn revoke(&self, id: LeaseId) -> Result<Answer<()>> {
        self.old.revoke(id).await
    }

    async fn keep_alive(&self, id: LeaseId) -> Result<Answer<Option<i64>>> {
        self.old.keep_alive(id).await
    }

    async fn time_to_live(&self, id: LeaseId, keys: bool) -> Result<Answer<Option<LeaseStatus>>> {
        self.old.time_to_live(id, keys).await
    }

    async fn leases(&self) -> Result<Answer<Vec<LeaseId>>> {
        self.old.leases().await
    }

    async fn status(&self) -> Result<Status> {
        self.old.status().await
    }

    async fn defragment(&self) -> Result<()> {
        self.old.defragment().await
    }
}

//! A new store that breaks one rule of the overlay.

use std::sync::Arc;

use async_trait::async_trait;
use segue::store::{
    Claim, CopyUp, GuardedStore, Read, ReadReply, Result, Status, Store, Watch, Watching,
};
use segue::types::{
    Answer, Grant, Granted, KeyRange, KeyValue, LeaseId, LeaseStatus, Op, Put, Range, RangeReply,
    Revision, Txn, TxnReply,
};

use super::flight::Sabotage;

pub(super) struct Sabotaged {
    pub inner: Arc<dyn GuardedStore>,
    pub sabotage: Sabotage,
}

impl Sabotaged {
    /// Copies as a client would write; with `claimed`, also over what is claimed.
    async fn write_copies(&self, kvs: Vec<KeyValue>, claimed: bool) -> Result<usize> {
        let mut copied = 0;
        for KeyValue {
            key, value, lease, ..
        } in kvs
        {
            let read = Read::Claims {
                keys: KeyRange::One(key.clone()),
                values: 1,
            };
            let unclaimed = self.inner.snapshot(None, vec![read]).await?.reply
                == [ReadReply::Claims(Vec::<Claim>::new())];
            if claimed || unclaimed {
                let put = Put {
                    lease: Some(lease),
                    ..Put::new(key, value)
                };
                self.inner.put(put).await?;
                copied += 1;
            }
        }
        Ok(copied)
    }
}

#[async_trait]
impl GuardedStore for Sabotaged {
    async fn snapshot(
        &self,
        at: Option<Revision>,
        reads: Vec<Read>,
    ) -> Result<Answer<Vec<ReadReply>>> {
        let mut answer = self.inner.snapshot(at, reads).await?;
        if self.sabotage == Sabotage::DeletesLeaveNoClaim {
            for reply in &mut answer.reply {
                if let ReadReply::Claims(claims) = reply {
                    claims.retain(|claim| claim.live().is_some());
                }
            }
        }
        Ok(answer)
    }

    async fn txn_over(&self, copies: Vec<KeyValue>, txn: Txn) -> Result<Answer<TxnReply>> {
        txn.visit(&mut |op| {
            if let Op::Range(range) = op {
                assert!(!range.serializable, "what was copied may be missing");
            }
        });
        self.copy_up(CopyUp {
            kvs: copies,
            record: None,
        })
        .await?;
        self.inner.txn_over(Vec::new(), txn).await
    }

    async fn copy_up(&self, copy_up: CopyUp) -> Result<Option<usize>> {
        let claimed = match self.sabotage {
            Sabotage::CopyUpOverwrites => true,
            Sabotage::CopyUpIsAChange => false,
            _ => return self.inner.copy_up(copy_up).await,
        };
        let CopyUp { kvs, record } = copy_up;
        let mark = self
            .inner
            .copy_up(CopyUp {
                kvs: Vec::new(),
                record,
            })
            .await?;
        if mark.is_none() {
            return Ok(None);
        }
        self.write_copies(kvs, claimed).await.map(Some)
    }

    async fn claim_present(&self) -> Result<()> {
        self.inner.claim_present().await
    }
}

#[async_trait]
impl Store for Sabotaged {
    async fn range(&self, request: Range) -> Result<Answer<RangeReply>> {
        assert!(!request.serializable, "what was copied may be missing");
        self.inner.range(request).await
    }

    async fn txn(&self, request: Txn) -> Result<Answer<TxnReply>> {
        self.inner.txn(request).await
    }

    async fn compact(&self, at: Revision) -> Result<Answer<()>> {
        self.inner.compact(at).await
    }

    async fn watch(&self, request: Watch) -> Result<Watching> {
        self.inner.watch(request).await
    }

    async fn grant(&self, request: Grant) -> Result<Answer<Granted>> {
        self.inner.grant(request).await
    }

    async fn revoke(&self, id: LeaseId) -> Result<Answer<()>> {
        self.inner.revoke(id).await
    }

    async fn keep_alive(&self, id: LeaseId) -> Result<Answer<Option<i64>>> {
        self.inner.keep_alive(id).await
    }

    async fn time_to_live(&self, id: LeaseId, keys: bool) -> Result<Answer<Option<LeaseStatus>>> {
        self.inner.time_to_live(id, keys).await
    }

    async fn leases(&self) -> Result<Answer<Vec<LeaseId>>> {
        self.inner.leases().await
    }

    async fn status(&self) -> Result<Status> {
        self.inner.status().await
    }

    async fn defragment(&self) -> Result<()> {
        self.inner.defragment().await
    }
}

//! The store's operations under a guard. Reads and writes of one key are as lean as they can be:
//! they are what most of an application's time goes into.

use async_trait::async_trait;

use super::numbers::Claimed;
use super::session::{Guarded, Session};
use super::txn::{claim_op, delete_parts, learn_claim, range_parts};
use super::view::{put_op, range_op, range_request, range_response};
use crate::proto::etcdserverpb as pb;
use crate::store::{Guard, Read, ReadReply, RequestError, Result, Status, Store, Watch, Watching};
use crate::types::{
    Answer, Content, Delete, DeleteReply, Grant, Granted, KeyRange, KeyValue, LeaseId, LeaseStatus,
    Op, Put, PutReply, Range, RangeReply, Reply, Revision, RevisionFilter, Txn, TxnReply,
};
use pb::response_op::Response;

#[async_trait]
impl Store for Guarded {
    async fn range(&self, request: Range) -> Result<Answer<RangeReply>> {
        let session = self.session().await?;
        match session.range(request).await {
            Ok(answer) => Ok(answer),
            Err(error) => Err(session.view.complete_error(error).await),
        }
    }

    async fn txn(&self, request: Txn) -> Result<Answer<TxnReply>> {
        let session = self.session().await?;
        match session.txn(request).await {
            Ok(answer) => Ok(answer),
            Err(error) => Err(session.view.complete_error(error).await),
        }
    }

    async fn put(&self, request: Put) -> Result<Answer<PutReply>> {
        self.session().await?.put(request).await
    }

    async fn delete(&self, request: Delete) -> Result<Answer<DeleteReply>> {
        self.session().await?.delete(request).await
    }

    /// etcd compacts outside of transactions: the epoch is asserted just before.
    async fn compact(&self, at: Revision) -> Result<Answer<()>> {
        let session = self.session().await?;
        let view = &session.view;
        session.epoch_stands_now().await?;
        if view.known.is_some() && at < view.numbers.base {
            // What lies there was never in this store.
            return Err(RequestError::Compacted(view.numbers.base).into());
        }
        let request = pb::CompactionRequest {
            revision: view.numbers.etcd(at),
            physical: false,
        };
        match view.client.compact(request).await {
            Ok(response) => Ok(Answer {
                revision: session.revision(response.header.as_ref()),
                reply: (),
            }),
            Err(error) => Err(view.complete_error(error).await),
        }
    }

    async fn watch(&self, request: Watch) -> Result<Watching> {
        let session = self.session().await?;
        let current = session.check_epoch().await?;
        let (watching, has_gap) = super::tail::open(&session.view, request, current).await?;
        // What has come in meanwhile may be of the next epoch.
        if has_gap || watching.revision > session.view.numbers.visible(current) {
            session.epoch_stands_now().await?;
        }
        Ok(watching)
    }

    /// etcd grants outside of transactions: the epoch is asserted before and behind it. A lease that
    /// a member of an earlier epoch grants all the same has no keys, nobody hears of it, and it
    /// expires.
    async fn grant(&self, request: Grant) -> Result<Answer<Granted>> {
        let session = self.session().await?;
        session.epoch_stands_now().await?;
        let response = session.view.client.grant(request.into()).await?;
        if let Err(stale) = session.epoch_stands_now().await {
            // It will be asked for again, and must not be there already.
            let revoke = pb::LeaseRevokeRequest { id: response.id };
            session.view.client.revoke(revoke).await.ok();
            return Err(stale);
        }
        Ok(Answer {
            revision: session.revision(response.header.as_ref()),
            reply: response.into(),
        })
    }

    /// etcd revokes outside of transactions. So the keys go in one that asserts the epoch, and what is
    /// revoked then is a lease without any.
    async fn revoke(&self, id: LeaseId) -> Result<Answer<()>> {
        let session = self.session().await?;
        session.epoch_stands_now().await?;
        let deleted = if matches!(self.guard, Guard::None | Guard::Raw) {
            None
        } else {
            session.delete_attached(id).await?
        };
        let request = pb::LeaseRevokeRequest { id: id.0 };
        let response = session.view.client.revoke(request).await?;
        // Copy-ups may have taken revisions in between, which nobody is told of.
        let revision = deleted.unwrap_or_else(|| session.revision(response.header.as_ref()));
        Ok(Answer {
            revision,
            reply: (),
        })
    }

    /// The epoch is read at the same time: to renew a lease for a member of an earlier one does no
    /// harm, but it has to learn that it is behind.
    async fn keep_alive(&self, id: LeaseId) -> Result<Answer<Option<i64>>> {
        let session = self.session().await?;
        let request = pb::LeaseKeepAliveRequest { id: id.0 };
        let keep_alive = session.view.client.keep_alive(request);
        let (standing, response) = tokio::try_join!(session.epoch_stands_at(), keep_alive)?;
        Ok(Answer {
            revision: session.revision_by(standing, response.header.as_ref()),
            reply: (response.ttl > 0).then_some(response.ttl),
        })
    }

    async fn time_to_live(&self, id: LeaseId, keys: bool) -> Result<Answer<Option<LeaseStatus>>> {
        let session = self.session().await?;
        let request = pb::LeaseTimeToLiveRequest { id: id.0, keys };
        let time_to_live = session.view.client.time_to_live(request);
        let (standing, response) = tokio::try_join!(session.epoch_stands_at(), time_to_live)?;
        let revision = session.revision_by(standing, response.header.as_ref());
        let alive = response.ttl >= 0;
        let mut status = LeaseStatus::from(response);
        status.keys.sort_unstable();
        Ok(Answer {
            revision,
            reply: alive.then_some(status),
        })
    }

    async fn leases(&self) -> Result<Answer<Vec<LeaseId>>> {
        let session = self.session().await?;
        let leases = session.view.client.leases();
        let (standing, response) = tokio::try_join!(session.epoch_stands_at(), leases)?;
        let mut leases: Vec<_> = response
            .leases
            .iter()
            .map(|lease| LeaseId(lease.id))
            .collect();
        leases.sort_unstable();
        Ok(Answer {
            revision: session.revision_by(standing, response.header.as_ref()),
            reply: leases,
        })
    }

    /// The epoch is read at the same time, as for leases.
    async fn status(&self) -> Result<Status> {
        let session = self.session().await?;
        let view = &session.view;
        let (standing, status, compacted) = tokio::try_join!(
            session.epoch_stands_at(),
            view.client.status(),
            view.client.compacted(&view.names.line)
        )?;
        let bytes = |size| u64::try_from(size).unwrap_or_default();
        Ok(Status {
            revision: session.revision_by(standing, status.header.as_ref()),
            compacted: match compacted {
                0 => Revision(0),
                compacted => view.numbers.visible(compacted).max(view.numbers.base),
            },
            size: bytes(status.db_size),
            size_in_use: bytes(status.db_size_in_use),
        })
    }

    async fn defragment(&self) -> Result<()> {
        let session = self.session().await?;
        session.view.client.defragment().await?;
        Ok(())
    }
}

impl Session {
    async fn range(&self, request: Range) -> Result<Answer<RangeReply>> {
        if let KeyRange::One(key) = &request.keys
            && request.at.is_none()
            && request.filter == RevisionFilter::default()
            && !self.view.names.is_own(key)
        {
            return self.get(request).await;
        }
        if self.view.known.is_none() && self.epoch.is_none() {
            let (mut parts, rest) = range_parts(&self.view, request.clone())?;
            if let (1, None) = (parts.len(), rest)
                && let Some(part) = parts.pop()
            {
                let response = self.view.client.long_range(part).await?;
                return Ok(Answer {
                    revision: self.revision(response.header.as_ref()),
                    reply: response.into(),
                });
            }
        }
        let at = request.at;
        let read = Read::Range(Range {
            at: None,
            ..request
        });
        Ok(self
            .snapshot(at, vec![read])
            .await?
            .map(|mut replies| match replies.pop() {
                Some(ReadReply::Range(range)) => range,
                _ => RangeReply::default(),
            }))
    }

    /// Reads one key as it is now.
    async fn get(&self, request: Range) -> Result<Answer<RangeReply>> {
        let view = &*self.view;
        let key = request.keys.start().clone();
        let claim_is_needed = request.content != Content::CountOnly && !view.is_known(&key);
        let mut ops = Vec::with_capacity(2);
        ops.push(range_op(request.into()));
        if claim_is_needed {
            let record = KeyRange::One(view.names.claim(&key));
            ops.push(range_op(range_request(&record)));
        }
        let response = self.run(ops, false).await?;
        let revision = self.revision(response.header.as_ref());
        let mut ranges = response.responses.into_iter().filter_map(range_response);
        let mut reply = RangeReply::from(ranges.next().unwrap_or_default());
        match ranges.next().as_ref().and_then(|claim| claim.kvs.first()) {
            Some(record) => {
                let (key, claim) = view.read_claim(record)?;
                view.learn(&key, claim);
                for kv in &mut reply.kvs {
                    view.numbers.translate(kv, claim);
                }
            }
            // Looked up just now: there is none.
            None if claim_is_needed => {
                if view.claims_stand() {
                    view.learn(&key, Claimed::Here);
                }
                for kv in &mut reply.kvs {
                    view.numbers.translate(kv, Claimed::Here);
                }
            }
            None => view.translate(reply.kvs.iter_mut().collect()).await?,
        }
        Ok(Answer { revision, reply })
    }

    async fn put(&self, put: Put) -> Result<Answer<PutReply>> {
        let view = &*self.view;
        view.check_key(&put.key)?;
        let claim_for = (self.leave_claims && !view.is_known(&put.key)).then(|| put.key.clone());
        if self.epoch.is_none() && claim_for.is_none() {
            let response = view.client.put(put.into()).await?;
            let revision = self.revision(response.header.as_ref());
            return self.put_reply(revision, response).await;
        }
        let mut ops = Vec::with_capacity(2);
        ops.push(put_op(put.into()));
        if let Some(key) = &claim_for {
            ops.push(claim_op(view, key));
        }
        let response = self.run(ops, true).await?;
        let revision = self.revision(response.header.as_ref());
        let mut responses = response.responses.into_iter();
        let put = match responses.next().and_then(|op| op.response) {
            Some(Response::ResponsePut(put)) => put,
            _ => pb::PutResponse::default(),
        };
        if let (Some(key), Some(response)) = (&claim_for, responses.next()) {
            learn_claim(view, key, response);
        }
        self.put_reply(revision, put).await
    }

    async fn put_reply(
        &self,
        revision: Revision,
        response: pb::PutResponse,
    ) -> Result<Answer<PutReply>> {
        let mut prev_kv = response.prev_kv.map(KeyValue::from);
        if prev_kv.is_some() {
            self.view.translate(prev_kv.iter_mut().collect()).await?;
        }
        Ok(Answer {
            revision,
            reply: PutReply { prev_kv },
        })
    }

    async fn delete(&self, delete: Delete) -> Result<Answer<DeleteReply>> {
        if self.epoch.is_none() {
            let mut parts = delete_parts(&self.view, &delete);
            if let (1, Some(part)) = (parts.len(), parts.pop()) {
                let response = self.view.client.delete(part).await?;
                let revision = self.revision(response.header.as_ref());
                let mut reply = DeleteReply::from(response);
                self.view
                    .translate(reply.prev_kvs.iter_mut().collect())
                    .await?;
                return Ok(Answer { revision, reply });
            }
        }
        let answer = self.txn(Txn::of(vec![Op::Delete(delete)])).await?;
        Ok(answer.map(|mut txn| match txn.replies.pop() {
            Some(Reply::Delete(delete)) => delete,
            _ => DeleteReply::default(),
        }))
    }
}

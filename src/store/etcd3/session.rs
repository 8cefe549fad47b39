//! Operations under a guard: what every one of them shares.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::OnceCell;

use super::Shared;
use super::copies::Copies;
use super::copy_up::copy_op;
use super::decide::Decided;
use super::reads::Reads;
use super::records::delete_op;
use super::txn::{Plan, Writer, finish_range, is_harmless, pairs, written_keys};
use super::view::{
    View, absent, compare, header_revision, range_op, range_request, range_response, txn_op,
};
use crate::proto::etcdserverpb as pb;
use crate::store::{
    CopyUp, FENCE, Guard, GuardedStore, Read, ReadReply, RequestError, Result, StoreError,
};
use crate::types::{Answer, KeyRange, KeyValue, LeaseId, Revision, Txn, TxnReply};
use pb::compare::{CompareResult, TargetUnion};

/// How often a transaction is tried again whose conditions had to be decided beforehand, while
/// others keep changing what they are about.
const TRIES_MAX: usize = 20;
/// Operations that a transaction may have so that claims can be added to it.
const OPS_WITH_CLAIMS_MAX: usize = 120;

/// A handle on the store that holds to a guard.
pub(super) struct Guarded {
    shared: Arc<Shared>,
    pub(super) guard: Guard,
    session: OnceCell<Session>,
}

/// What a handle knows once it has read the line.
pub(super) struct Session {
    pub(super) view: Arc<View>,
    /// The condition that the epoch still stands, or that there is no fence, where the guard names
    /// one.
    pub(super) epoch: Option<pb::Compare>,
    /// Small reads, under that condition.
    reads: Reads,
    /// Copy-ups for the sake of requests, under that condition.
    pub(super) copies: Copies,
    /// Writes of keys whose claim is not known leave one.
    pub(super) leave_claims: bool,
}

/// What comes before the operations of a client's transaction, and with them.
#[derive(Clone)]
struct Before {
    /// Writes of keys whose claim is not known leave one.
    leave_claims: bool,
    /// These are carried out first.
    ops: Vec<pb::RequestOp>,
}

impl Guarded {
    pub(super) fn new(shared: Arc<Shared>, guard: Guard) -> Self {
        Self {
            shared,
            guard,
            session: OnceCell::new(),
        }
    }

    /// The session. The line is read once: it does not change within an epoch, and a transaction of
    /// an earlier epoch fails.
    pub(super) async fn session(&self) -> Result<&Session> {
        self.session.get_or_try_init(|| self.begin()).await
    }

    async fn begin(&self) -> Result<Session> {
        let line = match self.guard {
            Guard::Raw => None,
            _ => self.shared.read_line().await?,
        };
        match self.guard {
            // With etcd's own numbers while a migration goes on: what is read through such a handle
            // before it begins, and by members that join later, is the same. Once it is settled, with
            // those that clients are used to, and so in an old store that went into service again.
            Guard::None | Guard::Raw | Guard::Unfenced | Guard::NoLine => {
                let view = match line {
                    Some(line) if line.epoch.is_none() || line.was_in_service() => {
                        self.shared.view(&line)
                    }
                    _ => self.shared.plain.clone(),
                };
                let condition = match self.guard {
                    Guard::Unfenced => Some(super::records::record_compare(&view.names, FENCE, 0)),
                    Guard::NoLine => Some(absent(&KeyRange::One(view.names.epoch.clone()))),
                    _ => None,
                };
                Ok(Session::new(view, condition, false))
            }
            Guard::Epoch { epoch, claims } => {
                let line = line
                    .filter(|line| line.epoch == Some(epoch))
                    .ok_or(StoreError::StaleEpoch)?;
                let view = self.shared.view(&line);
                let epoch = compare(
                    &KeyRange::One(view.names.epoch.clone()),
                    CompareResult::Equal,
                    TargetUnion::Value(super::records::epoch_value(epoch)),
                );
                Ok(Session::new(view, Some(epoch), claims))
            }
        }
    }
}

impl Session {
    fn new(view: Arc<View>, epoch: Option<pb::Compare>, leave_claims: bool) -> Self {
        Self {
            reads: Reads::new(view.client.clone(), epoch.clone()),
            copies: super::copies::copies(),
            view,
            epoch,
            leave_claims,
        }
    }

    /// Reads the epoch, so that a failed transaction can tell whether that was why.
    pub(super) fn epoch_op(&self) -> pb::RequestOp {
        range_op(range_request(&self.epoch_key()))
    }

    /// The key that the guard's condition is about.
    fn epoch_key(&self) -> KeyRange {
        let guarded = self.epoch.as_ref().map(|epoch| &epoch.key);
        KeyRange::One(guarded.unwrap_or(&self.view.names.epoch).clone())
    }

    /// Whether the epoch, as read by [`Self::epoch_op`], is the guard's.
    pub(super) fn epoch_stands(&self, response: Option<pb::ResponseOp>) -> bool {
        let Some(condition) = &self.epoch else {
            return true;
        };
        let range = response.and_then(range_response).unwrap_or_default();
        let present = range.kvs.first();
        match &condition.target_union {
            Some(TargetUnion::Value(wanted)) => present.is_some_and(|kv| kv.value == wanted),
            // There shall be no fence, or no epoch.
            _ => present.is_none(),
        }
    }

    /// The revision that clients see, from a response's header.
    pub(super) fn revision(&self, header: Option<&pb::ResponseHeader>) -> Revision {
        self.view.numbers.visible(header_revision(header))
    }

    /// Reads etcd's revision, and asserts the epoch if the guard names one.
    pub(super) async fn check_epoch(&self) -> Result<i64> {
        let mut request = range_request(&self.epoch_key());
        request.count_only = self.epoch.is_none();
        let response = self.view.client.range(request).await?;
        let revision = header_revision(response.header.as_ref());
        let op = pb::ResponseOp {
            response: Some(pb::response_op::Response::ResponseRange(response)),
        };
        if self.epoch_stands(Some(op)) {
            Ok(revision)
        } else {
            Err(StoreError::StaleEpoch)
        }
    }

    /// Asserts the epoch, if the guard names one, for an operation that etcd cannot run in a
    /// transaction.
    pub(super) async fn epoch_stands_now(&self) -> Result<()> {
        self.epoch_stands_at().await.map(drop)
    }

    /// The same; answers etcd's revision at which the epoch stood, if the guard names one.
    pub(super) async fn epoch_stands_at(&self) -> Result<Option<i64>> {
        match self.epoch {
            Some(_) => self.check_epoch().await.map(Some),
            None => Ok(None),
        }
    }

    /// The revision that clients see, from the header of a response that came at about the time at which
    /// the epoch was `standing`. What etcd has done since then may belong to the next epoch.
    pub(super) fn revision_by(
        &self,
        standing: Option<i64>,
        header: Option<&pb::ResponseHeader>,
    ) -> Revision {
        let found = header_revision(header);
        let known = standing.map_or(found, |standing| standing.min(found));
        self.view.numbers.visible(known)
    }

    /// Deletes the keys that are attached to a lease which is about to be revoked, under the guard.
    /// etcd's own revoke does so too, but whether or not the guard's condition holds. Answers the revision
    /// of the deletes, if there were any.
    pub(super) async fn delete_attached(&self, id: LeaseId) -> Result<Option<Revision>> {
        for _ in 0..TRIES_MAX {
            let request = pb::LeaseTimeToLiveRequest {
                id: id.0,
                keys: true,
            };
            let mut keys = self.view.client.time_to_live(request).await?.keys;
            keys.sort_unstable();
            // What is more than a transaction takes is left to the revoke, which follows at once.
            if keys.is_empty() || keys.len() > OPS_WITH_CLAIMS_MAX {
                return Ok(None);
            }
            let attached = |key: &Bytes| {
                let lease = TargetUnion::Lease(id.0);
                compare(&KeyRange::One(key.clone()), CompareResult::Equal, lease)
            };
            let request = pb::TxnRequest {
                compare: self
                    .epoch
                    .iter()
                    .cloned()
                    .chain(keys.iter().map(attached))
                    .collect(),
                success: keys
                    .into_iter()
                    .map(|key| delete_op(&KeyRange::One(key)))
                    .collect(),
                failure: vec![self.epoch_op()],
            };
            let mut response = self.send(request, true).await?;
            if response.succeeded {
                return Ok(Some(self.revision(response.header.as_ref())));
            }
            if !self.epoch_stands(response.responses.pop()) {
                return Err(StoreError::StaleEpoch);
            }
        }
        Err(StoreError::Unavailable(
            "too many others change the keys of the lease".into(),
        ))
    }

    /// Runs a transaction whose only condition is the epoch.
    pub(super) async fn run(
        &self,
        success: Vec<pb::RequestOp>,
        writes: bool,
    ) -> Result<pb::TxnResponse> {
        if !writes && Reads::takes(&success) {
            return self.reads.run(success).await;
        }
        let request = pb::TxnRequest {
            compare: self.epoch.iter().cloned().collect(),
            success,
            failure: Vec::new(),
        };
        let response = self.send(request, writes).await?;
        if response.succeeded {
            Ok(response)
        } else {
            Err(StoreError::StaleEpoch)
        }
    }

    async fn send(&self, request: pb::TxnRequest, writes: bool) -> Result<pb::TxnResponse> {
        if writes {
            self.view.client.txn(request).await
        } else {
            self.view.client.read(request).await
        }
    }

    /// Runs a client's transaction.
    pub(super) async fn txn(&self, txn: Txn) -> Result<Answer<TxnReply>> {
        let before = Before {
            leave_claims: self.leave_claims && self.claim_what_does_not_fit(&txn).await?,
            ops: Vec::new(),
        };
        let mut decided = Decided::read(self, &txn).await?;
        if decided.truths.is_empty() {
            let answer = self.attempt(txn, decided, before).await?;
            return answer.ok_or(StoreError::StaleEpoch);
        }
        for _ in 0..TRIES_MAX {
            let attempt = self.attempt(txn.clone(), decided, before.clone());
            if let Some(answer) = attempt.await? {
                return Ok(answer);
            }
            decided = Decided::read(self, &txn).await?;
        }
        Err(StoreError::Unavailable(
            "too many others change what the transaction compares".into(),
        ))
    }

    /// Runs a client's transaction over keys that cannot be copied up; see [`GuardedStore::replace`].
    ///
    /// All of it is one transaction of etcd's, whose order makes it one: a key that is put is claimed as one of
    /// this store, since etcd does not write a key twice. One that is deleted is copied up before, as it would
    /// have been otherwise, so that there is something to delete.
    pub(super) async fn replace(&self, unseen: &[KeyValue], txn: Txn) -> Result<Answer<TxnReply>> {
        let put = written_keys(&txn);
        let deleted = unseen.iter().filter(|kv| !put.contains(&kv.key));
        let before = Before {
            leave_claims: true,
            ops: deleted.map(|kv| copy_op(&self.view.names, kv)).collect(),
        };
        let (operations, unclaimed) = self.size(&txn);
        if operations + 2 * (unclaimed.len() + before.ops.len()) + 2 > OPS_WITH_CLAIMS_MAX {
            return Err(RequestError::TooManyOperations.into());
        }
        let answer = self.attempt(txn, Decided::default(), before).await?;
        answer.ok_or(StoreError::StaleEpoch)
    }

    /// Runs a client's transaction, unless what was decided beforehand is no longer so.
    async fn attempt(
        &self,
        txn: Txn,
        decided: Decided,
        before: Before,
    ) -> Result<Option<Answer<TxnReply>>> {
        let writes = !txn.is_read_only();
        let Before { leave_claims, ops } = before;
        let mut rewriting = Writer::new(&self.view, leave_claims, &decided.claims, &decided.truths);
        let (request, plan) = rewriting.txn(txn)?;
        let failure_may_run = request.compare.is_empty() || is_harmless(&request.failure);
        let within = !(decided.guards.is_empty() && ops.is_empty())
            || (self.epoch.is_some() && !failure_may_run);
        let before_base = rewriting.before_base;
        let sent = if within {
            self.run_within(ops, request, decided.guards, &plan, writes)
                .await
        } else {
            self.run_beside(request, &plan, writes).await.map(Some)
        };
        let sent = sent.map_err(|error| match error {
            StoreError::Request(RequestError::FutureRevision) if before_base => {
                RequestError::Compacted(self.view.numbers.base).into()
            }
            error => error,
        });
        let Some((revision, mut reply)) = sent? else {
            return Ok(None);
        };
        self.finish(&plan, &mut reply).await?;
        Ok(Some(Answer { revision, reply }))
    }

    /// Runs a transaction with the epoch as one more condition. Where it fails, the failure branch
    /// runs whether the epoch stands or not, so it has to be harmless. One without conditions has none:
    /// only the epoch could lead there.
    async fn run_beside(
        &self,
        mut request: pb::TxnRequest,
        plan: &Plan,
        writes: bool,
    ) -> Result<(Revision, TxnReply)> {
        let conditional = !request.compare.is_empty();
        if let Some(epoch) = &self.epoch {
            request.compare.push(epoch.clone());
            if conditional {
                request.failure.push(self.epoch_op());
            } else {
                request.failure.clear();
            }
        }
        let mut response = self.send(request, writes).await?;
        let revision = self.revision(response.header.as_ref());
        if self.epoch.is_some() && !response.succeeded {
            let epoch = response.responses.pop().filter(|_| conditional);
            if !conditional || !self.epoch_stands(epoch) {
                return Err(StoreError::StaleEpoch);
            }
        }
        Ok((revision, plan.read(&self.view, response)))
    }

    /// Runs a transaction behind other operations, within one whose conditions are the epoch and `guards`;
    /// answers nothing if only the guards failed.
    async fn run_within(
        &self,
        mut before: Vec<pb::RequestOp>,
        request: pb::TxnRequest,
        guards: Vec<pb::Compare>,
        plan: &Plan,
        writes: bool,
    ) -> Result<Option<(Revision, TxnReply)>> {
        before.push(txn_op(request));
        let outer = pb::TxnRequest {
            compare: self.epoch.iter().cloned().chain(guards).collect(),
            success: before,
            failure: vec![self.epoch_op()],
        };
        let mut response = self.send(outer, writes).await?;
        let revision = self.revision(response.header.as_ref());
        let inner = response.responses.pop();
        if !response.succeeded {
            return if self.epoch_stands(inner) {
                Ok(None)
            } else {
                Err(StoreError::StaleEpoch)
            };
        }
        let inner = match inner.and_then(|op| op.response) {
            Some(pb::response_op::Response::ResponseTxn(txn)) => txn,
            _ => pb::TxnResponse::default(),
        };
        Ok(Some((revision, plan.read(&self.view, inner))))
    }

    /// Gives the pairs of a reply the numbers that clients see, and makes its reads final.
    pub(super) async fn finish(&self, plan: &Plan, reply: &mut TxnReply) -> Result<()> {
        let mut found = Vec::new();
        pairs(reply, &mut found);
        if !found.is_empty() {
            self.view.translate(found).await?;
        }
        let mut unfinished = Vec::new();
        plan.unfinished(reply, &mut unfinished);
        for (asked, reply) in unfinished {
            finish_range(&self.view, asked, reply).await?;
        }
        Ok(())
    }

    /// How many operations a transaction has, and the keys that it may write and whose claims are not known.
    fn size(&self, txn: &Txn) -> (usize, Vec<Bytes>) {
        let mut keys = written_keys(txn);
        keys.retain(|key| !self.view.is_known(key));
        let mut operations = txn
            .compares
            .len()
            .max(txn.success.len())
            .max(txn.failure.len());
        txn.visit(&mut |op| {
            if let crate::types::Op::Txn(nested) = op {
                operations +=
                    nested.success.len().max(nested.failure.len()) + nested.compares.len();
            }
        });
        (operations, keys)
    }

    /// Whether the claims that a transaction has to leave can be added to it. Where they would make
    /// it larger than etcd takes they are left beforehand: the keys do not exist in the old store, or
    /// they would have been copied up, so a claim alone changes nothing that anybody sees.
    async fn claim_what_does_not_fit(&self, txn: &Txn) -> Result<bool> {
        let (operations, keys) = self.size(txn);
        if operations + 2 * keys.len() + 2 <= OPS_WITH_CLAIMS_MAX {
            return Ok(true);
        }
        for chunk in keys.chunks(OPS_WITH_CLAIMS_MAX / 2) {
            let claims = chunk
                .iter()
                .map(|key| super::txn::claim_op(&self.view, key));
            let response = self.run(claims.collect(), true).await?;
            for (key, response) in chunk.iter().zip(response.responses) {
                super::txn::learn_claim(&self.view, key, response);
            }
        }
        Ok(false)
    }
}

#[async_trait]
impl GuardedStore for Guarded {
    async fn snapshot(
        &self,
        at: Option<Revision>,
        reads: Vec<Read>,
    ) -> Result<Answer<Vec<ReadReply>>> {
        let session = self.session().await?;
        match session.snapshot(at, reads).await {
            Ok(answer) => Ok(answer),
            Err(error) => Err(session.view.complete_error(error).await),
        }
    }

    async fn txn_over(&self, copies: Vec<KeyValue>, txn: Txn) -> Result<Answer<TxnReply>> {
        let session = self.session().await?;
        if !copies.is_empty() {
            // Beforehand, since the conditions can only be put into etcd's numbers when the revision
            // of the copy-up is known. Once per key.
            session.copy_up_together(copies).await?;
        }
        match session.txn(txn).await {
            Ok(answer) => Ok(answer),
            Err(error) => Err(session.view.complete_error(error).await),
        }
    }

    async fn replace(&self, unseen: Vec<KeyValue>, txn: Txn) -> Result<Answer<TxnReply>> {
        self.session().await?.replace(&unseen, txn).await
    }

    async fn copy_up(&self, copy_up: CopyUp) -> Result<Option<usize>> {
        self.session().await?.copy_up(copy_up).await
    }

    async fn claim_present(&self) -> Result<()> {
        self.session().await?.claim_present().await
    }
}

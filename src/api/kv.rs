//! Reads and writes of keys.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::{Request, Response, Status};

use super::Context;
use super::errors::{Refusal, status};
use super::validate;
use crate::proto::etcdserverpb::{self as pb, kv_server};
use crate::types::{Answer, Range, Reply, Revision, Txn, TxnReply};

/// The service.
pub(super) struct Kv(pub Arc<Context>);

type Served<T> = Result<Response<T>, Status>;

#[async_trait]
impl kv_server::Kv for Kv {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Served<pb::RangeResponse> {
        let request = request.into_inner();
        validate::range(&request)?;
        let range = Range::try_from(request).map_err(Refusal::from)?;
        let answer = self.0.store.range(range).await;
        let Answer { revision, reply } = answer.map_err(|error| status(&error))?;
        let mut response = pb::RangeResponse::from(reply);
        response.header = self.0.header(revision);
        Ok(Response::new(response))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Served<pb::PutResponse> {
        let request = request.into_inner();
        validate::put(&request, &self.0.limits)?;
        let answer = self.0.store.put(request.into()).await;
        let Answer { revision, reply } = answer.map_err(|error| status(&error))?;
        let mut response = pb::PutResponse::from(reply);
        response.header = self.0.header(revision);
        Ok(Response::new(response))
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Served<pb::DeleteRangeResponse> {
        let request = request.into_inner();
        validate::delete(&request, &self.0.limits)?;
        let answer = self.0.store.delete(request.into()).await;
        let Answer { revision, reply } = answer.map_err(|error| status(&error))?;
        let mut response = pb::DeleteRangeResponse::from(reply);
        response.header = self.0.header(revision);
        Ok(Response::new(response))
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Served<pb::TxnResponse> {
        let request = request.into_inner();
        validate::txn(&request, &self.0.limits)?;
        let txn = Txn::try_from(request).map_err(Refusal::from)?;
        let answer = self.0.store.txn(txn).await;
        let Answer { revision, reply } = answer.map_err(|error| status(&error))?;
        // One revision for all that changed, so the one before it is where the operations began.
        let begun = if changes(&reply) {
            Revision(revision.0 - 1)
        } else {
            revision
        };
        let mut response = pb::TxnResponse::from(reply);
        stamp(&mut response, &mut Clock::at(begun));
        response.header = self.0.header(revision);
        Ok(Response::new(response))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Served<pb::CompactionResponse> {
        // `physical` asks to wait until the space is given back: stores always do what they can.
        let at = Revision(request.into_inner().revision);
        let answer = self.0.store.compact(at).await;
        let answer = answer.map_err(|error| status(&error))?;
        Ok(Response::new(pb::CompactionResponse {
            header: self.0.header(answer.revision),
        }))
    }
}

/// Whether anything was written.
fn changes(reply: &TxnReply) -> bool {
    reply.replies.iter().any(|reply| match reply {
        Reply::Range(_) => false,
        Reply::Put(_) => true,
        Reply::Delete(delete) => delete.deleted > 0,
        Reply::Txn(nested) => changes(nested),
    })
}

/// The revision as the operations of a transaction see it, one after the other.
struct Clock {
    begun: Revision,
    changed: bool,
}

impl Clock {
    fn at(begun: Revision) -> Self {
        Self {
            begun,
            changed: false,
        }
    }

    /// The header of an operation: nothing but the revision that it saw or made.
    fn header(&mut self, change: bool) -> pb::ResponseHeader {
        self.changed |= change;
        pb::ResponseHeader {
            revision: self.begun.0 + i64::from(self.changed),
            ..pb::ResponseHeader::default()
        }
    }
}

/// Gives the operations of a transaction the headers that they have in etcd.
fn stamp(response: &mut pb::TxnResponse, clock: &mut Clock) {
    use pb::response_op::Response as Op;
    for op in &mut response.responses {
        match &mut op.response {
            Some(Op::ResponseRange(range)) => range.header = Some(clock.header(false)),
            Some(Op::ResponsePut(put)) => put.header = Some(clock.header(true)),
            Some(Op::ResponseDeleteRange(delete)) => {
                delete.header = Some(clock.header(delete.deleted > 0));
            }
            Some(Op::ResponseTxn(nested)) => {
                stamp(nested, clock);
                nested.header = Some(pb::ResponseHeader::default());
            }
            None => {}
        }
    }
}

//! Replies to reads and writes.

use super::{count, length};
use crate::proto::etcdserverpb as pb;
use crate::proto::mvccpb;
use crate::types::{DeleteReply, KeyValue, PutReply, RangeReply, Reply, TxnReply};
use pb::response_op::Response;

impl From<pb::RangeResponse> for RangeReply {
    fn from(response: pb::RangeResponse) -> Self {
        Self {
            kvs: read_kvs(response.kvs),
            count: count(response.count),
            more: response.more,
        }
    }
}

impl From<RangeReply> for pb::RangeResponse {
    fn from(reply: RangeReply) -> Self {
        Self {
            header: None,
            kvs: write_kvs(reply.kvs),
            more: reply.more,
            count: length(reply.count),
        }
    }
}

impl From<pb::PutResponse> for PutReply {
    fn from(response: pb::PutResponse) -> Self {
        Self {
            prev_kv: response.prev_kv.map(KeyValue::from),
        }
    }
}

impl From<PutReply> for pb::PutResponse {
    fn from(reply: PutReply) -> Self {
        Self {
            header: None,
            prev_kv: reply.prev_kv.map(mvccpb::KeyValue::from),
        }
    }
}

impl From<pb::DeleteRangeResponse> for DeleteReply {
    fn from(response: pb::DeleteRangeResponse) -> Self {
        Self {
            deleted: count(response.deleted),
            prev_kvs: read_kvs(response.prev_kvs),
        }
    }
}

impl From<DeleteReply> for pb::DeleteRangeResponse {
    fn from(reply: DeleteReply) -> Self {
        Self {
            header: None,
            deleted: length(reply.deleted),
            prev_kvs: write_kvs(reply.prev_kvs),
        }
    }
}

impl From<pb::TxnResponse> for TxnReply {
    fn from(response: pb::TxnResponse) -> Self {
        Self {
            succeeded: response.succeeded,
            replies: response.responses.into_iter().map(Reply::from).collect(),
        }
    }
}

impl From<TxnReply> for pb::TxnResponse {
    fn from(reply: TxnReply) -> Self {
        Self {
            header: None,
            succeeded: reply.succeeded,
            responses: reply
                .replies
                .into_iter()
                .map(pb::ResponseOp::from)
                .collect(),
        }
    }
}

impl From<pb::ResponseOp> for Reply {
    fn from(op: pb::ResponseOp) -> Self {
        match op.response {
            Some(Response::ResponseRange(range)) => Self::Range(range.into()),
            Some(Response::ResponsePut(put)) => Self::Put(put.into()),
            Some(Response::ResponseDeleteRange(delete)) => Self::Delete(delete.into()),
            Some(Response::ResponseTxn(txn)) => Self::Txn(txn.into()),
            // A nested transaction without replies is written as nothing by some servers.
            None => Self::Txn(TxnReply::default()),
        }
    }
}

impl From<Reply> for pb::ResponseOp {
    fn from(reply: Reply) -> Self {
        Self {
            response: Some(match reply {
                Reply::Range(range) => Response::ResponseRange(range.into()),
                Reply::Put(put) => Response::ResponsePut(put.into()),
                Reply::Delete(delete) => Response::ResponseDeleteRange(delete.into()),
                Reply::Txn(txn) => Response::ResponseTxn(txn.into()),
            }),
        }
    }
}

fn read_kvs(kvs: Vec<mvccpb::KeyValue>) -> Vec<KeyValue> {
    kvs.into_iter().map(KeyValue::from).collect()
}

fn write_kvs(kvs: Vec<KeyValue>) -> Vec<mvccpb::KeyValue> {
    kvs.into_iter().map(mvccpb::KeyValue::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{LeaseId, Revision};

    #[test]
    fn replies_are_read_and_written_back() {
        let kv = KeyValue {
            key: "k".into(),
            create_revision: Revision(4),
            mod_revision: Revision(7),
            version: 2,
            value: "v".into(),
            lease: LeaseId(9),
        };
        let replies = TxnReply {
            succeeded: true,
            replies: vec![
                Reply::Range(RangeReply {
                    kvs: vec![kv.clone()],
                    count: 3,
                    more: true,
                }),
                Reply::Put(PutReply {
                    prev_kv: Some(kv.clone()),
                }),
                Reply::Delete(DeleteReply {
                    deleted: 1,
                    prev_kvs: vec![kv],
                }),
                Reply::Txn(TxnReply::default()),
            ],
        };
        assert_eq!(
            TxnReply::from(pb::TxnResponse::from(replies.clone())),
            replies
        );
    }
}

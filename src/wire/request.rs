//! Reads, writes, transactions and their conditions.

use super::{Malformed, count, length};
use crate::proto::etcdserverpb as pb;
use crate::types::{
    Compare, CompareResult, CompareTarget, Content, Delete, Direction, KeyRange, LeaseId, Op, Put,
    Range, Revision, RevisionFilter, SortTarget, Txn,
};
use pb::compare::TargetUnion;
use pb::request_op::Request;

impl TryFrom<pb::RangeRequest> for Range {
    type Error = Malformed;

    fn try_from(request: pb::RangeRequest) -> Result<Self, Malformed> {
        use pb::range_request::{SortOrder, SortTarget as Target};
        let order = SortOrder::try_from(request.sort_order).map_err(|_| Malformed::SortOption)?;
        let target = Target::try_from(request.sort_target).map_err(|_| Malformed::SortOption)?;
        Ok(Self {
            keys: KeyRange::from_etcd(request.key, request.range_end),
            at: (request.revision > 0).then_some(Revision(request.revision)),
            limit: count(request.limit),
            sort: match target {
                Target::Key => SortTarget::Key,
                Target::Version => SortTarget::Version,
                Target::Create => SortTarget::Create,
                Target::Mod => SortTarget::Mod,
                Target::Value => SortTarget::Value,
            },
            direction: match (order, target) {
                (SortOrder::Ascend, _) | (SortOrder::None, Target::Key) => Direction::Ascending,
                (SortOrder::None, _) => Direction::Unsaid,
                (SortOrder::Descend, _) => Direction::Descending,
            },
            content: match (request.count_only, request.keys_only) {
                (true, _) => Content::CountOnly,
                (false, true) => Content::KeysOnly,
                (false, false) => Content::Full,
            },
            filter: RevisionFilter {
                min_mod: Revision(request.min_mod_revision),
                max_mod: Revision(request.max_mod_revision),
                min_create: Revision(request.min_create_revision),
                max_create: Revision(request.max_create_revision),
            },
            serializable: request.serializable,
        })
    }
}

impl From<Range> for pb::RangeRequest {
    fn from(range: Range) -> Self {
        use pb::range_request::{SortOrder, SortTarget as Target};
        let (key, range_end) = range.keys.to_etcd();
        let order = match (range.direction, range.sort) {
            // The order that etcd reads in: naming it would keep the limit from being pushed down.
            (Direction::Ascending, SortTarget::Key) | (Direction::Unsaid, _) => SortOrder::None,
            (Direction::Ascending, _) => SortOrder::Ascend,
            (Direction::Descending, _) => SortOrder::Descend,
        };
        let target = match range.sort {
            SortTarget::Key => Target::Key,
            SortTarget::Version => Target::Version,
            SortTarget::Create => Target::Create,
            SortTarget::Mod => Target::Mod,
            SortTarget::Value => Target::Value,
        };
        Self {
            key,
            range_end,
            limit: length(range.limit),
            revision: range.at.unwrap_or_default().0,
            sort_order: order.into(),
            sort_target: target.into(),
            serializable: range.serializable,
            keys_only: range.content == Content::KeysOnly,
            count_only: range.content == Content::CountOnly,
            min_mod_revision: range.filter.min_mod.0,
            max_mod_revision: range.filter.max_mod.0,
            min_create_revision: range.filter.min_create.0,
            max_create_revision: range.filter.max_create.0,
        }
    }
}

impl From<pb::PutRequest> for Put {
    fn from(request: pb::PutRequest) -> Self {
        Self {
            key: request.key,
            value: (!request.ignore_value).then_some(request.value),
            lease: (!request.ignore_lease).then_some(LeaseId(request.lease)),
            prev_kv: request.prev_kv,
        }
    }
}

impl From<Put> for pb::PutRequest {
    fn from(put: Put) -> Self {
        Self {
            key: put.key,
            ignore_value: put.value.is_none(),
            ignore_lease: put.lease.is_none(),
            value: put.value.unwrap_or_default(),
            lease: put.lease.unwrap_or_default().0,
            prev_kv: put.prev_kv,
        }
    }
}

impl From<pb::DeleteRangeRequest> for Delete {
    fn from(request: pb::DeleteRangeRequest) -> Self {
        Self {
            keys: KeyRange::from_etcd(request.key, request.range_end),
            prev_kv: request.prev_kv,
        }
    }
}

impl From<Delete> for pb::DeleteRangeRequest {
    fn from(delete: Delete) -> Self {
        let (key, range_end) = delete.keys.to_etcd();
        Self {
            key,
            range_end,
            prev_kv: delete.prev_kv,
        }
    }
}

impl TryFrom<pb::TxnRequest> for Txn {
    type Error = Malformed;

    fn try_from(request: pb::TxnRequest) -> Result<Self, Malformed> {
        let ops = |ops: Vec<pb::RequestOp>| {
            ops.into_iter()
                .map(Op::try_from)
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            compares: request
                .compare
                .into_iter()
                .map(Compare::try_from)
                .collect::<Result<_, _>>()?,
            success: ops(request.success)?,
            failure: ops(request.failure)?,
        })
    }
}

impl From<Txn> for pb::TxnRequest {
    fn from(txn: Txn) -> Self {
        let ops = |ops: Vec<Op>| ops.into_iter().map(pb::RequestOp::from).collect();
        Self {
            compare: txn.compares.into_iter().map(pb::Compare::from).collect(),
            success: ops(txn.success),
            failure: ops(txn.failure),
        }
    }
}

impl TryFrom<pb::RequestOp> for Op {
    type Error = Malformed;

    fn try_from(op: pb::RequestOp) -> Result<Self, Malformed> {
        Ok(match op.request.ok_or(Malformed::EmptyOperation)? {
            Request::RequestRange(range) => {
                // By itself, a read at a revision below 0 is one of the latest.
                let at = (range.revision != 0).then_some(Revision(range.revision));
                Self::Range(Range {
                    at,
                    ..range.try_into()?
                })
            }
            Request::RequestPut(put) => Self::Put(put.into()),
            Request::RequestDeleteRange(delete) => Self::Delete(delete.into()),
            Request::RequestTxn(txn) => Self::Txn(txn.try_into()?),
        })
    }
}

impl From<Op> for pb::RequestOp {
    fn from(op: Op) -> Self {
        Self {
            request: Some(match op {
                Op::Range(range) => Request::RequestRange(range.into()),
                Op::Put(put) => Request::RequestPut(put.into()),
                Op::Delete(delete) => Request::RequestDeleteRange(delete.into()),
                Op::Txn(txn) => Request::RequestTxn(txn.into()),
            }),
        }
    }
}

impl TryFrom<pb::Compare> for Compare {
    type Error = Malformed;

    /// `target` names the property; an operand of another kind counts as left out, that is as 0 or
    /// empty.
    fn try_from(compare: pb::Compare) -> Result<Self, Malformed> {
        use pb::compare::{CompareResult as Wanted, CompareTarget as Target};
        let target = Target::try_from(compare.target).map_err(|_| Malformed::CompareOption)?;
        let result = Wanted::try_from(compare.result).map_err(|_| Malformed::CompareOption)?;
        let operand = compare.target_union;
        Ok(Self {
            keys: KeyRange::from_etcd(compare.key, compare.range_end),
            result: match result {
                Wanted::Equal => CompareResult::Equal,
                Wanted::Greater => CompareResult::Greater,
                Wanted::Less => CompareResult::Less,
                Wanted::NotEqual => CompareResult::NotEqual,
            },
            target: match (target, operand) {
                (Target::Version, Some(TargetUnion::Version(version))) => {
                    CompareTarget::Version(version)
                }
                (Target::Version, _) => CompareTarget::Version(0),
                (Target::Create, Some(TargetUnion::CreateRevision(revision))) => {
                    CompareTarget::Create(Revision(revision))
                }
                (Target::Create, _) => CompareTarget::Create(Revision(0)),
                (Target::Mod, Some(TargetUnion::ModRevision(revision))) => {
                    CompareTarget::Mod(Revision(revision))
                }
                (Target::Mod, _) => CompareTarget::Mod(Revision(0)),
                (Target::Value, Some(TargetUnion::Value(value))) => CompareTarget::Value(value),
                (Target::Value, _) => CompareTarget::Value(bytes::Bytes::new()),
                (Target::Lease, Some(TargetUnion::Lease(lease))) => {
                    CompareTarget::Lease(LeaseId(lease))
                }
                (Target::Lease, _) => CompareTarget::Lease(LeaseId::NONE),
            },
        })
    }
}

impl From<Compare> for pb::Compare {
    fn from(compare: Compare) -> Self {
        use pb::compare::{CompareResult as Wanted, CompareTarget as Target};
        let (key, range_end) = compare.keys.to_etcd();
        let result = match compare.result {
            CompareResult::Equal => Wanted::Equal,
            CompareResult::Greater => Wanted::Greater,
            CompareResult::Less => Wanted::Less,
            CompareResult::NotEqual => Wanted::NotEqual,
        };
        let (target, operand) = match compare.target {
            CompareTarget::Version(version) => (Target::Version, TargetUnion::Version(version)),
            CompareTarget::Create(revision) => {
                (Target::Create, TargetUnion::CreateRevision(revision.0))
            }
            CompareTarget::Mod(revision) => (Target::Mod, TargetUnion::ModRevision(revision.0)),
            CompareTarget::Value(value) => (Target::Value, TargetUnion::Value(value)),
            CompareTarget::Lease(lease) => (Target::Lease, TargetUnion::Lease(lease.0)),
        };
        Self {
            result: result.into(),
            target: target.into(),
            key,
            range_end,
            target_union: Some(operand),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything() -> Txn {
        let compares = [
            CompareTarget::Version(1),
            CompareTarget::Create(Revision(2)),
            CompareTarget::Mod(Revision(3)),
            CompareTarget::Value("v".into()),
            CompareTarget::Lease(LeaseId(4)),
        ]
        .into_iter()
        .zip([
            CompareResult::Equal,
            CompareResult::Greater,
            CompareResult::Less,
            CompareResult::NotEqual,
            CompareResult::Equal,
        ])
        .map(|(target, result)| Compare {
            keys: KeyRange::prefix("k"),
            result,
            target,
        })
        .collect();
        let range = Range {
            at: Some(Revision(5)),
            limit: 6,
            sort: SortTarget::Mod,
            direction: Direction::Descending,
            content: Content::KeysOnly,
            filter: RevisionFilter {
                min_mod: Revision(1),
                max_mod: Revision(2),
                min_create: Revision(3),
                max_create: Revision(4),
            },
            serializable: true,
            ..Range::of(KeyRange::all())
        };
        Txn {
            compares,
            success: vec![
                Op::Range(range),
                Op::Put(Put::new("k", "v")),
                Op::Put(Put {
                    value: None,
                    lease: None,
                    prev_kv: true,
                    ..Put::new("l", "")
                }),
                Op::Txn(Txn::default()),
            ],
            failure: vec![Op::Delete(Delete {
                keys: KeyRange::prefix("k"),
                prev_kv: true,
            })],
        }
    }

    #[test]
    fn requests_are_written_and_read_back() {
        let txn = everything();
        assert_eq!(Txn::try_from(pb::TxnRequest::from(txn.clone())), Ok(txn));
    }

    #[test]
    fn a_plain_read_asks_for_no_sorting() {
        let request = pb::RangeRequest::from(Range::of(KeyRange::all()));
        assert_eq!((request.sort_order, request.sort_target), (0, 0));
    }

    #[test]
    fn an_order_that_is_not_named_is_not_named_to_an_etcd_either() {
        let request = pb::RangeRequest {
            sort_target: pb::range_request::SortTarget::Value.into(),
            ..pb::RangeRequest::from(Range::of(KeyRange::all()))
        };
        let read = Range::try_from(request.clone()).expect("well formed");
        assert_eq!(read.direction, Direction::Unsaid);
        assert_eq!(pb::RangeRequest::from(read), request);
    }

    #[test]
    fn what_does_not_exist_on_the_wire_is_refused() {
        let range = pb::RangeRequest {
            sort_target: 9,
            ..pb::RangeRequest::default()
        };
        assert_eq!(Range::try_from(range), Err(Malformed::SortOption));
        let compare = pb::Compare {
            result: -1,
            ..pb::Compare::default()
        };
        assert_eq!(Compare::try_from(compare), Err(Malformed::CompareOption));
        let empty = pb::RequestOp { request: None };
        assert_eq!(Op::try_from(empty), Err(Malformed::EmptyOperation));
    }

    #[test]
    fn an_operand_of_another_kind_counts_as_left_out() {
        let compare = pb::Compare {
            target: pb::compare::CompareTarget::Mod.into(),
            target_union: Some(TargetUnion::Version(3)),
            ..pb::Compare::default()
        };
        let read = Compare::try_from(compare).expect("well formed");
        assert_eq!(read.target, CompareTarget::Mod(Revision(0)));
    }
}

//! What can be said of a request without asking a store, as etcd says it and in its order.

use std::collections::{BTreeMap, HashSet};

use prost::Message;

use super::errors::Refusal;
use crate::proto::etcdserverpb as pb;
use pb::request_op::Request;

/// What is more than this is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Operations in each list of a transaction. Nested lists share what the outer one leaves.
    pub txn_ops: usize,
    /// Bytes of a request that writes. Watches that accept fragments get responses up to this size.
    pub request_bytes: usize,
}

impl Default for Limits {
    /// etcd's own.
    fn default() -> Self {
        Self {
            txn_ops: 128,
            request_bytes: 3 * 512 * 1024,
        }
    }
}

/// etcd's longest lease, in seconds: nanoseconds of it still fit the clock of its language.
const LEASE_TTL_MAX_S: i64 = 9_000_000_000;

type Checked = Result<(), Refusal>;

pub(super) fn range(request: &pb::RangeRequest) -> Checked {
    not_empty(&request.key)?;
    let order = pb::range_request::SortOrder::try_from(request.sort_order);
    let target = pb::range_request::SortTarget::try_from(request.sort_target);
    match (order, target) {
        (Ok(_), Ok(_)) => Ok(()),
        _ => Err(Refusal::SortOption),
    }
}

pub(super) fn put(request: &pb::PutRequest, limits: &Limits) -> Checked {
    check_put(request)?;
    fits(request, limits)
}

pub(super) fn delete(request: &pb::DeleteRangeRequest, limits: &Limits) -> Checked {
    not_empty(&request.key)?;
    fits(request, limits)
}

pub(super) fn txn(request: &pb::TxnRequest, limits: &Limits) -> Checked {
    check_txn(request, limits.txn_ops)?;
    check_writes(&request.success)?;
    check_writes(&request.failure)?;
    fits(request, limits)
}

pub(super) fn grant(request: &pb::LeaseGrantRequest) -> Checked {
    if request.ttl > LEASE_TTL_MAX_S {
        return Err(Refusal::LeaseTtl);
    }
    Ok(())
}

pub(super) fn not_empty(key: &[u8]) -> Checked {
    if key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    Ok(())
}

fn fits(request: &impl Message, limits: &Limits) -> Checked {
    if request.encoded_len() > limits.request_bytes {
        return Err(Refusal::TooLarge);
    }
    Ok(())
}

fn check_put(request: &pb::PutRequest) -> Checked {
    not_empty(&request.key)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(Refusal::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Refusal::LeaseProvided);
    }
    Ok(())
}

/// `ops_max` is what is left for this transaction's longest list.
fn check_txn(request: &pb::TxnRequest, ops_max: usize) -> Checked {
    let longest = request
        .compare
        .len()
        .max(request.success.len())
        .max(request.failure.len());
    let left = ops_max
        .checked_sub(longest)
        .ok_or(Refusal::TooManyOperations)?;
    for compare in &request.compare {
        not_empty(&compare.key)?;
    }
    for op in request.success.iter().chain(&request.failure) {
        match op.request.as_ref().ok_or(Refusal::EmptyOperation)? {
            Request::RequestRange(op) => range(op)?,
            Request::RequestPut(op) => check_put(op)?,
            Request::RequestDeleteRange(op) => not_empty(&op.key)?,
            Request::RequestTxn(op) => check_txn(op, left)?,
        }
    }
    Ok(())
}

/// No key may be put twice, or put and deleted, on one path through the transaction.
fn check_writes(ops: &[pb::RequestOp]) -> Checked {
    // What most clients send: one operation cannot disagree with itself.
    if let [op] = ops
        && !matches!(op.request, Some(Request::RequestTxn(_)))
    {
        return Ok(());
    }
    Writes::of(ops).map(drop)
}

/// Keys that a list of operations may put, and the ranges that it may delete.
#[derive(Default)]
struct Writes<'a> {
    puts: HashSet<&'a [u8]>,
    deletes: HashSet<&'a [u8]>,
    spans: Spans<'a>,
}

/// Ranges of keys, those that touch each other as one: the end of each by its start.
#[derive(Default)]
struct Spans<'a>(BTreeMap<&'a [u8], &'a [u8]>);

impl<'a> Spans<'a> {
    fn add(&mut self, mut start: &'a [u8], mut end: &'a [u8]) {
        // As in etcd, a range without an end (`range_end` is one zero byte) is not noticed here: it
        // reads as one that ends before it begins.
        if end <= start {
            return;
        }
        if let Some((first, last)) = self.0.range(..start).next_back()
            && *last >= start
        {
            (start, end) = (*first, end.max(*last));
        }
        while let Some((&within, &last)) = self.0.range(start..=end).next() {
            self.0.remove(within);
            end = end.max(last);
        }
        self.0.insert(start, end);
    }

    fn contains(&self, key: &[u8]) -> bool {
        let before = self.0.range(..=key).next_back();
        before.is_some_and(|(_, end)| key < *end)
    }
}

impl<'a> Writes<'a> {
    /// Collects what `ops` write. The order of the checks is etcd's, quirks included: the deletes of
    /// a nested transaction are held against the puts of those that follow it and of this level, but
    /// not against those of transactions before it.
    fn of(ops: &'a [pb::RequestOp]) -> Result<Self, Refusal> {
        let mut writes = Self::default();
        for op in ops {
            if let Some(Request::RequestDeleteRange(delete)) = &op.request {
                match &delete.range_end[..] {
                    [] => drop(writes.deletes.insert(&delete.key)),
                    end => writes.spans.add(&delete.key, end),
                }
            }
        }
        for op in ops {
            if let Some(Request::RequestTxn(txn)) = &op.request {
                let success = Self::of(&txn.success)?;
                let failure = Self::of(&txn.failure)?;
                for key in &success.puts {
                    writes.add_put(key)?;
                }
                for key in &failure.puts {
                    // Only one of the two branches is taken: they may put the same key.
                    if !success.puts.contains(key) {
                        writes.add_put(key)?;
                    }
                }
                for branch in [success, failure] {
                    writes.deletes.extend(branch.deletes);
                    for (start, end) in branch.spans.0 {
                        writes.spans.add(start, end);
                    }
                }
            }
        }
        for op in ops {
            if let Some(Request::RequestPut(put)) = &op.request {
                writes.add_put(&put.key)?;
            }
        }
        Ok(writes)
    }

    fn add_put(&mut self, key: &'a [u8]) -> Checked {
        let deleted = self.deletes.contains(key) || self.spans.contains(key);
        if deleted || !self.puts.insert(key) {
            return Err(Refusal::DuplicateKey);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(request: Request) -> pb::RequestOp {
        pb::RequestOp {
            request: Some(request),
        }
    }

    fn put_op(key: &'static str) -> pb::RequestOp {
        op(Request::RequestPut(pb::PutRequest {
            key: key.into(),
            ..pb::PutRequest::default()
        }))
    }

    fn delete_op(key: &'static str, range_end: &'static str) -> pb::RequestOp {
        op(Request::RequestDeleteRange(pb::DeleteRangeRequest {
            key: key.into(),
            range_end: range_end.into(),
            prev_kv: false,
        }))
    }

    fn nested(success: Vec<pb::RequestOp>, failure: Vec<pb::RequestOp>) -> pb::RequestOp {
        op(Request::RequestTxn(txn_of(success, failure)))
    }

    fn txn_of(success: Vec<pb::RequestOp>, failure: Vec<pb::RequestOp>) -> pb::TxnRequest {
        pb::TxnRequest {
            compare: vec![],
            success,
            failure,
        }
    }

    #[test]
    fn puts_are_refused_as_etcd_refuses_them() {
        let good = pb::PutRequest {
            key: "k".into(),
            ..pb::PutRequest::default()
        };
        let limits = Limits::default();
        for (request, verdict) in [
            (good.clone(), Ok(())),
            (pb::PutRequest::default(), Err(Refusal::EmptyKey)),
            (
                pb::PutRequest {
                    ignore_value: true,
                    value: "v".into(),
                    ..good.clone()
                },
                Err(Refusal::ValueProvided),
            ),
            (
                pb::PutRequest {
                    ignore_lease: true,
                    lease: 7,
                    ..good.clone()
                },
                Err(Refusal::LeaseProvided),
            ),
            (
                pb::PutRequest {
                    value: vec![0; limits.request_bytes].into(),
                    ..good.clone()
                },
                Err(Refusal::TooLarge),
            ),
        ] {
            assert_eq!(put(&request, &limits), verdict, "{:?}", request.key);
        }
    }

    #[test]
    fn spans_hold_what_was_added_and_nothing_else() {
        let keys = ["a", "b", "c", "d", "e", "f", "g", "h"];
        for bits in 0..1_u32 << 12 {
            // Four ranges, each of up to four keys.
            let range = |number: u32| {
                let bits = bits >> (3 * number);
                let start = (2 * number + (bits & 1)) as usize % 8;
                (start, (start + (bits >> 1 & 3) as usize).min(7))
            };
            let ranges: Vec<(usize, usize)> = [2, 0, 3, 1].map(range).into();
            let mut spans = Spans::default();
            for (start, end) in &ranges {
                spans.add(keys[*start].as_bytes(), keys[*end].as_bytes());
            }
            for (at, key) in keys.iter().enumerate() {
                let expected = ranges
                    .iter()
                    .any(|(start, end)| (*start..*end).contains(&at));
                assert_eq!(
                    spans.contains(key.as_bytes()),
                    expected,
                    "{key} of {ranges:?}"
                );
            }
        }
    }

    #[test]
    fn a_key_is_written_once_on_every_path() {
        let dup = Err(Refusal::DuplicateKey);
        for (success, failure, verdict) in [
            (vec![put_op("a"), put_op("b")], vec![], Ok(())),
            (vec![put_op("a"), put_op("a")], vec![], dup),
            (vec![], vec![put_op("a"), put_op("a")], dup),
            (vec![put_op("a")], vec![put_op("a")], Ok(())),
            (vec![put_op("a"), delete_op("a", "")], vec![], dup),
            (vec![delete_op("a", "c"), put_op("b")], vec![], dup),
            (vec![delete_op("a", "c"), put_op("c")], vec![], Ok(())),
            (vec![delete_op("a", ""), delete_op("a", "")], vec![], Ok(())),
            (
                vec![put_op("a"), nested(vec![put_op("a")], vec![])],
                vec![],
                dup,
            ),
            (
                vec![nested(vec![put_op("a")], vec![put_op("a")])],
                vec![],
                Ok(()),
            ),
            (
                vec![
                    nested(vec![put_op("a")], vec![]),
                    nested(vec![], vec![put_op("a")]),
                ],
                vec![],
                dup,
            ),
            (
                vec![
                    nested(vec![delete_op("a", "")], vec![]),
                    nested(vec![put_op("a")], vec![]),
                ],
                vec![],
                dup,
            ),
            (
                vec![
                    nested(vec![put_op("a")], vec![]),
                    nested(vec![delete_op("a", "")], vec![]),
                ],
                vec![],
                Ok(()),
            ),
        ] {
            let request = txn_of(success, failure);
            assert_eq!(txn(&request, &Limits::default()), verdict, "{request:?}");
        }
    }

    #[test]
    fn nested_lists_share_what_the_outer_one_leaves() {
        let limits = Limits {
            txn_ops: 3,
            ..Limits::default()
        };
        let two = || vec![put_op("a"), put_op("b")];
        let three = vec![put_op("a"), put_op("b"), put_op("c")];
        let four = vec![put_op("a"), put_op("b"), put_op("c"), put_op("d")];
        assert_eq!(txn(&txn_of(three.clone(), two()), &limits), Ok(()));
        let verdict = Err(Refusal::TooManyOperations);
        assert_eq!(txn(&txn_of(four, vec![]), &limits), verdict);
        assert_eq!(
            txn(&txn_of(vec![nested(two(), vec![])], vec![]), &limits),
            Ok(())
        );
        assert_eq!(
            txn(&txn_of(vec![nested(three, vec![])], vec![]), &limits),
            verdict
        );
    }

    #[test]
    fn what_says_nothing_is_refused() {
        let limits = Limits::default();
        let empty = txn_of(vec![pb::RequestOp { request: None }], vec![]);
        assert_eq!(txn(&empty, &limits), Err(Refusal::EmptyOperation));
        let compare = pb::TxnRequest {
            compare: vec![pb::Compare::default()],
            ..pb::TxnRequest::default()
        };
        assert_eq!(txn(&compare, &limits), Err(Refusal::EmptyKey));
        let unknown = pb::RangeRequest {
            key: "k".into(),
            sort_order: 9,
            ..pb::RangeRequest::default()
        };
        assert_eq!(range(&unknown), Err(Refusal::SortOption));
        let forever = pb::LeaseGrantRequest {
            ttl: LEASE_TTL_MAX_S + 1,
            id: 0,
        };
        assert_eq!(grant(&forever), Err(Refusal::LeaseTtl));
    }
}

//! Transactions on their way to etcd and back.
//!
//! A client's transaction becomes one of etcd's: ranges are cut where they would show what is
//! reserved, conditions are put into etcd's numbers, writes leave claims. The [`Plan`] remembers what
//! was made of each operation, so that the answers can be put together again.

use std::collections::HashMap;

use bytes::Bytes;

use super::names::nothing;
use super::numbers::{Claimed, Rewritten};
use super::view::{View, absent, compare, put_op, range_op, range_request, txn_op};
use crate::proto::etcdserverpb as pb;
use crate::store::eval::finish;
use crate::store::{RequestError, Result};
use crate::types::{
    Compare, CompareTarget, Content, Delete, DeleteReply, KeyRange, KeyValue, Op, Put, PutReply,
    Range, RangeReply, Reply, Revision, RevisionFilter, SortTarget, Txn, TxnReply,
};
use pb::compare::{CompareResult, TargetUnion};
use pb::request_op::Request;
use pb::response_op::Response;

/// What was made of a transaction.
#[derive(Debug, Default)]
pub(super) struct Plan {
    success: Branch,
    failure: Branch,
}

/// What was made of one branch.
#[derive(Debug, Default)]
struct Branch {
    ops: Vec<Shape>,
    /// Keys whose claims were added behind the operations.
    claims: Vec<Bytes>,
}

/// What was made of one operation.
#[derive(Debug)]
enum Shape {
    /// So many reads. If the answer is not final yet: what was asked for.
    Range {
        parts: usize,
        rest: Option<Box<Range>>,
    },
    Put,
    /// So many removals.
    Delete {
        parts: usize,
    },
    Txn(Plan),
}

/// Turns a client's transactions into etcd's.
pub(super) struct Writer<'a> {
    pub(super) view: &'a View,
    /// Writes of keys whose claim is not known leave one.
    pub(super) leave_claims: bool,
    /// The claims of the keys whose numbers are compared.
    pub(super) claims: &'a HashMap<Bytes, Claimed>,
    /// Conditions that were decided already, by their place in the order of
    /// [`Txn::visit_compares`].
    pub(super) decided: &'a HashMap<usize, bool>,
    /// Conditions so far.
    compares: usize,
    /// It reads what lies before the base, which is told of as [`NEVER`] if it comes to that.
    pub(super) before_base: bool,
}

/// A revision that etcd does not have: it refuses the transaction that comes to such a read.
const NEVER: i64 = i64::MAX;

impl<'a> Writer<'a> {
    pub(super) fn new(
        view: &'a View,
        leave_claims: bool,
        claims: &'a HashMap<Bytes, Claimed>,
        decided: &'a HashMap<usize, bool>,
    ) -> Self {
        Self {
            view,
            leave_claims,
            claims,
            decided,
            compares: 0,
            before_base: false,
        }
    }

    /// The transaction as etcd is to run it.
    pub(super) fn txn(&mut self, txn: Txn) -> Result<(pb::TxnRequest, Plan)> {
        let mut compares = Vec::with_capacity(txn.compares.len() + 1);
        for condition in txn.compares {
            let decided = self.decided.get(&self.compares).copied();
            self.compares += 1;
            match decided {
                Some(true) => {}
                Some(false) => compares.push(never()),
                None => compares.extend(self.compare(condition)),
            }
        }
        let (success, success_plan) = self.branch(txn.success)?;
        let (failure, failure_plan) = self.branch(txn.failure)?;
        let request = pb::TxnRequest {
            compare: compares,
            success,
            failure,
        };
        let plan = Plan {
            success: success_plan,
            failure: failure_plan,
        };
        Ok((request, plan))
    }

    fn branch(&mut self, ops: Vec<Op>) -> Result<(Vec<pb::RequestOp>, Branch)> {
        let mut requests = Vec::with_capacity(ops.len() + 1);
        let mut branch = Branch {
            ops: Vec::with_capacity(ops.len()),
            claims: Vec::new(),
        };
        for op in ops {
            let shape = match op {
                Op::Range(range) => self.range(range, &mut requests)?,
                Op::Put(put) => {
                    self.view.check_key(&put.key)?;
                    if self.leave_claims && !self.view.is_known(&put.key) {
                        branch.claims.push(put.key.clone());
                    }
                    requests.push(put_op(put.into()));
                    Shape::Put
                }
                Op::Delete(delete) => {
                    let parts = delete_parts(self.view, &delete);
                    let shape = Shape::Delete { parts: parts.len() };
                    requests.extend(parts.into_iter().map(|part| pb::RequestOp {
                        request: Some(Request::RequestDeleteRange(part)),
                    }));
                    shape
                }
                Op::Txn(txn) => {
                    let (request, plan) = self.txn(txn)?;
                    requests.push(txn_op(request));
                    Shape::Txn(plan)
                }
            };
            branch.ops.push(shape);
        }
        requests.extend(branch.claims.iter().map(|key| claim_op(self.view, key)));
        Ok((requests, branch))
    }

    fn range(&mut self, range: Range, requests: &mut Vec<pb::RequestOp>) -> Result<Shape> {
        if is_before_base(self.view, &range) {
            // An error, but only if this branch is the one that runs, which etcd decides.
            self.before_base = true;
            requests.push(range_op(pb::RangeRequest {
                revision: NEVER,
                ..range_request(&nothing())
            }));
            return Ok(Shape::Range {
                parts: 1,
                rest: None,
            });
        }
        let (parts, rest) = range_parts(self.view, range)?;
        let shape = Shape::Range {
            parts: parts.len(),
            rest: rest.map(Box::new),
        };
        requests.extend(parts.into_iter().map(range_op));
        Ok(shape)
    }

    /// The condition in etcd's numbers; nothing where it always holds.
    fn compare(&self, condition: Compare) -> Option<pb::Compare> {
        let result = condition.result;
        let (operand, number): (_, fn(&super::numbers::Copied) -> Revision) =
            match &condition.target {
                CompareTarget::Create(operand) if operand.0 > 0 => (*operand, |it| it.create),
                CompareTarget::Mod(operand) if operand.0 > 0 => (*operand, |it| it.modified),
                // All else is the same in both: 0 is "does not exist", and the versions of keys
                // that were copied up are decided beforehand.
                _ => return Some(condition.into()),
            };
        if self.view.known.is_none() {
            return Some(condition.into());
        }
        // A key that nobody has claimed does not exist, in the old store either.
        let claim = self.claims.get(condition.keys.start());
        let claim = claim.copied().unwrap_or(Claimed::Here);
        let rewritten = self.view.numbers.rewrite(claim, number, result, operand);
        match rewritten {
            Rewritten::Always => None,
            Rewritten::Never => Some(never()),
            Rewritten::Compare(result, operand) => Some(
                Compare {
                    result,
                    target: match condition.target {
                        CompareTarget::Create(_) => CompareTarget::Create(Revision(operand)),
                        _ => CompareTarget::Mod(Revision(operand)),
                    },
                    keys: condition.keys,
                }
                .into(),
            ),
        }
    }
}

/// Whether a condition cannot be left to etcd: it has to be decided here, on what is read first.
pub(super) fn must_be_decided(
    view: &View,
    claims: &HashMap<Bytes, Claimed>,
    condition: &Compare,
) -> bool {
    let number = match condition.target {
        CompareTarget::Version(operand) => operand,
        CompareTarget::Create(operand) | CompareTarget::Mod(operand) => operand.0,
        CompareTarget::Value(_) | CompareTarget::Lease(_) => 0,
    };
    match &condition.keys {
        KeyRange::One(key) => {
            view.names.is_own(key)
                || (number > 0
                    && matches!(condition.target, CompareTarget::Version(_))
                    && matches!(claims.get(key), Some(Claimed::Copied(_))))
        }
        // Each key of a range may have numbers of another kind, and an empty part would count as a
        // key that does not exist.
        span @ KeyRange::Span { .. } => {
            (view.known.is_some() && number > 0) || view.names.visible(span).len() != 1
        }
    }
}

/// A condition that cannot hold.
fn never() -> pb::Compare {
    let nobody = KeyRange::One(Bytes::from_static(b"\0"));
    compare(&nobody, CompareResult::Less, TargetUnion::Version(0))
}

/// Whether a branch may run for nothing: it reads what is there now, which changes nothing and cannot
/// fail. A read of the past can, and the transaction with it.
pub(super) fn is_harmless(branch: &[pb::RequestOp]) -> bool {
    branch.iter().all(|op| match &op.request {
        Some(Request::RequestRange(range)) => range.revision == 0,
        _ => false,
    })
}

/// Claims `key` for this store unless it is claimed already, and tells what is the case.
pub(super) fn claim_op(view: &View, key: &[u8]) -> pb::RequestOp {
    let record = view.names.claim(key);
    let keys = KeyRange::One(record.clone());
    txn_op(pb::TxnRequest {
        compare: vec![absent(&keys)],
        success: vec![put_op(pb::PutRequest {
            key: record,
            value: Claimed::here(),
            ..pb::PutRequest::default()
        })],
        failure: vec![range_op(range_request(&keys))],
    })
}

/// Remembers what a [`claim_op`] told.
pub(super) fn learn_claim(view: &View, key: &[u8], response: pb::ResponseOp) {
    let Some(Response::ResponseTxn(txn)) = response.response else {
        return;
    };
    if txn.succeeded {
        view.learn(key, Claimed::Here);
        return;
    }
    for range in txn
        .responses
        .into_iter()
        .filter_map(super::view::range_response)
    {
        for record in &range.kvs {
            if let Ok((key, claim)) = view.read_claim(record) {
                view.learn(&key, claim);
            }
        }
    }
}

/// The removals that a client's is made of.
pub(super) fn delete_parts(view: &View, delete: &Delete) -> Vec<pb::DeleteRangeRequest> {
    let mut parts = view.names.visible(&delete.keys);
    if parts.is_empty() {
        parts.push(nothing());
    }
    let part = |keys| {
        Delete {
            keys,
            prev_kv: delete.prev_kv,
        }
        .into()
    };
    parts.into_iter().map(part).collect()
}

/// Whether this store never had what is asked for.
fn is_before_base(view: &View, range: &Range) -> bool {
    view.known.is_some() && range.at.is_some_and(|at| at < view.numbers.base)
}

/// The reads that a client's is made of and, unless etcd's answer is the final one, what is left to
/// be done.
pub(super) fn range_parts(
    view: &View,
    range: Range,
) -> Result<(Vec<pb::RangeRequest>, Option<Range>)> {
    let mut parts = view.names.visible(&range.keys);
    if parts.is_empty() {
        parts.push(nothing());
    }
    if is_before_base(view, &range) {
        return Err(RequestError::Compacted(view.numbers.base).into());
    }
    let at = range.at.map(|at| view.numbers.etcd(at));
    let late = at.is_some_and(|at| view.copied_after(at));
    let by_number = range.filter != RevisionFilter::default()
        || !matches!(range.sort, SortTarget::Key | SortTarget::Value);
    let is_final = parts.len() == 1 && !late && !(by_number && view.known.is_some());
    let mut request = Range {
        at: at.map(Revision),
        ..range.clone()
    };
    if !is_final {
        request.limit = match range.limit {
            // One more shows whether there are more.
            1.. if range.limit_can_be_pushed_down() => range.limit.saturating_add(1),
            _ => 0,
        };
        if range.content == Content::KeysOnly && range.sort == SortTarget::Value {
            request.content = Content::Full;
        }
        request.sort = SortTarget::Key;
        request.direction = crate::types::Direction::Ascending;
        request.filter = RevisionFilter::default();
    }
    let part = |keys| {
        Range {
            keys,
            ..request.clone()
        }
        .into()
    };
    let parts = parts.into_iter().map(part).collect();
    Ok((parts, (!is_final).then_some(range)))
}

impl Plan {
    /// Puts the answers together; pairs still have etcd's numbers.
    pub(super) fn read(&self, view: &View, response: pb::TxnResponse) -> TxnReply {
        let succeeded = response.succeeded;
        TxnReply {
            succeeded,
            replies: self.branch(succeeded).read(view, response.responses),
        }
    }

    fn branch(&self, succeeded: bool) -> &Branch {
        if succeeded {
            &self.success
        } else {
            &self.failure
        }
    }

    /// The reads that were carried out and are not final, each with what was asked for.
    pub(super) fn unfinished<'a>(
        &'a self,
        reply: &'a mut TxnReply,
        found: &mut Vec<(&'a Range, &'a mut RangeReply)>,
    ) {
        let shapes = &self.branch(reply.succeeded).ops;
        for (shape, reply) in shapes.iter().zip(&mut reply.replies) {
            match (shape, reply) {
                (
                    Shape::Range {
                        rest: Some(rest), ..
                    },
                    Reply::Range(reply),
                ) => {
                    found.push((rest, reply));
                }
                (Shape::Txn(plan), Reply::Txn(reply)) => plan.unfinished(reply, found),
                _ => {}
            }
        }
    }
}

impl Branch {
    fn read(&self, view: &View, responses: Vec<pb::ResponseOp>) -> Vec<Reply> {
        let mut responses = responses.into_iter();
        let mut replies = Vec::with_capacity(self.ops.len());
        for shape in &self.ops {
            replies.push(shape.read(view, &mut responses));
        }
        for (key, response) in self.claims.iter().zip(responses) {
            learn_claim(view, key, response);
        }
        replies
    }
}

impl Shape {
    fn read(&self, view: &View, responses: &mut std::vec::IntoIter<pb::ResponseOp>) -> Reply {
        let count = match self {
            Self::Range { parts, .. } | Self::Delete { parts } => *parts,
            Self::Put | Self::Txn(_) => 1,
        };
        let mut parts = responses.take(count).filter_map(|op| op.response);
        match self {
            Self::Range { .. } => Reply::Range(join_ranges(parts)),
            Self::Put => Reply::Put(match parts.next() {
                Some(Response::ResponsePut(put)) => put.into(),
                _ => PutReply::default(),
            }),
            Self::Delete { .. } => Reply::Delete(join_deletes(parts)),
            Self::Txn(plan) => Reply::Txn(match parts.next() {
                Some(Response::ResponseTxn(txn)) => plan.read(view, txn),
                _ => TxnReply::default(),
            }),
        }
    }
}

fn join_ranges(parts: impl Iterator<Item = Response>) -> RangeReply {
    parts
        .filter_map(|part| match part {
            Response::ResponseRange(range) => Some(RangeReply::from(range)),
            _ => None,
        })
        .reduce(|mut all, part| {
            all.kvs.extend(part.kvs);
            all.count += part.count;
            all.more |= part.more;
            all
        })
        .unwrap_or_default()
}

fn join_deletes(parts: impl Iterator<Item = Response>) -> DeleteReply {
    parts
        .filter_map(|part| match part {
            Response::ResponseDeleteRange(delete) => Some(DeleteReply::from(delete)),
            _ => None,
        })
        .reduce(|mut all, part| {
            all.prev_kvs.extend(part.prev_kvs);
            all.deleted += part.deleted;
            all
        })
        .unwrap_or_default()
}

/// Every pair of a reply.
pub(super) fn pairs<'a>(reply: &'a mut TxnReply, found: &mut Vec<&'a mut KeyValue>) {
    for reply in &mut reply.replies {
        match reply {
            Reply::Range(range) => found.extend(&mut range.kvs),
            Reply::Put(put) => found.extend(&mut put.prev_kv),
            Reply::Delete(delete) => found.extend(&mut delete.prev_kvs),
            Reply::Txn(txn) => pairs(txn, found),
        }
    }
}

/// Makes a read final whose pairs have their numbers: what was copied up after the revision that was
/// read at joins, then count, filters, order, limit.
pub(super) async fn finish_range(view: &View, asked: &Range, reply: &mut RangeReply) -> Result<()> {
    let mut kvs = std::mem::take(&mut reply.kvs);
    let mut count = reply.count;
    if let Some(at) = asked.at {
        let late = super::late::copied_after(view, &asked.keys, view.numbers.etcd(at)).await?;
        count += late.len();
        if !late.is_empty() {
            kvs.extend(late);
            kvs.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        }
    }
    *reply = finish(asked, kvs, count);
    Ok(())
}

/// Every key that a transaction may write.
pub(super) fn written_keys(txn: &Txn) -> Vec<Bytes> {
    let mut keys = Vec::new();
    txn.visit(&mut |op| {
        if let Op::Put(Put { key, .. }) = op {
            keys.push(key.clone());
        }
    });
    keys
}

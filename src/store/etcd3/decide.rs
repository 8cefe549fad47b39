//! Conditions that etcd cannot decide: the versions of keys that were copied up, and ranges whose
//! keys may have numbers of two kinds.
//!
//! They are decided here, on one snapshot, in the numbers that clients see. The transaction then runs
//! only if what decided them has not changed since (the guards), and is tried again if it has.

use std::collections::HashMap;

use bytes::Bytes;

use super::numbers::Claimed;
use super::session::Session;
use super::txn::must_be_decided;
use super::view::{absent, compare, header_revision, range_op, range_request, range_response};
use crate::proto::etcdserverpb as pb;
use crate::store::Result;
use crate::store::eval::holds_of_all;
use crate::types::{Compare, CompareTarget, KeyRange, KeyValue, Txn};
use pb::compare::{CompareResult, TargetUnion};

/// What is known of a transaction's conditions before it runs.
#[derive(Default)]
pub(super) struct Decided {
    /// Claims of the keys whose numbers are compared.
    pub(super) claims: HashMap<Bytes, Claimed>,
    /// The conditions that were decided here, by their place in the order of
    /// [`Txn::visit_compares`].
    pub(super) truths: HashMap<usize, bool>,
    /// What has to hold still for that.
    pub(super) guards: Vec<pb::Compare>,
}

/// A condition to be decided, and what it sees.
struct Question<'a> {
    place: usize,
    condition: &'a Compare,
    parts: Vec<KeyRange>,
    /// The pairs, with etcd's mod revision of each.
    kvs: Vec<(KeyValue, i64)>,
}

impl Decided {
    /// Decides what etcd cannot.
    pub(super) async fn read(session: &Session, txn: &Txn) -> Result<Self> {
        let mut decided = Self::default();
        let mut numbered = Vec::new();
        let mut any_span = false;
        txn.visit_compares(&mut |condition| match &condition.keys {
            KeyRange::One(key) if by_number(condition) => numbered.push(key.clone()),
            KeyRange::One(key) => any_span |= session.view.names.is_own(key),
            KeyRange::Span { .. } => any_span = true,
        });
        if !numbered.is_empty() {
            decided.claims = session.view.claims(numbered).await?;
        }
        if decided.claims.is_empty() && !any_span {
            return Ok(decided);
        }
        let mut questions = Vec::new();
        let mut place = 0;
        txn.visit_compares(&mut |condition| {
            if must_be_decided(&session.view, &decided.claims, condition) {
                questions.push(Question {
                    place,
                    condition,
                    parts: session.view.names.visible(&condition.keys),
                    kvs: Vec::new(),
                });
            }
            place += 1;
        });
        if !questions.is_empty() {
            let revision = look(session, &mut questions).await?;
            for question in &questions {
                let truth = holds_of_all(question.condition, question.kvs.iter().map(|(kv, _)| kv));
                decided.truths.insert(question.place, truth);
                question.guard(truth, revision, &mut decided.guards);
            }
        }
        Ok(decided)
    }
}

/// Reads what the questions are about in one snapshot; answers etcd's revision of it.
async fn look(session: &Session, questions: &mut [Question<'_>]) -> Result<i64> {
    let reads = questions.iter().flat_map(|question| {
        let values = matches!(question.condition.target, CompareTarget::Value(_));
        question.parts.iter().map(move |part| {
            let mut request = range_request(part);
            request.keys_only = !values;
            range_op(request)
        })
    });
    let response = session.run(reads.collect(), false).await?;
    let revision = header_revision(response.header.as_ref());
    let mut ranges = response.responses.into_iter().filter_map(range_response);
    for question in questions.iter_mut() {
        for range in ranges.by_ref().take(question.parts.len()) {
            let kvs = range.kvs.into_iter().map(KeyValue::from);
            question.kvs.extend(kvs.map(|kv| {
                let modified = kv.mod_revision.0;
                (kv, modified)
            }));
        }
    }
    let kvs = questions.iter_mut().flat_map(|question| &mut question.kvs);
    session
        .view
        .translate(kvs.map(|(kv, _)| kv).collect())
        .await?;
    Ok(revision)
}

impl Question<'_> {
    /// Adds what must not change for the answer to stay the same: one pair that shows that it does
    /// not hold; or that nothing was written and one pair is still there; or that there is nothing.
    fn guard(&self, truth: bool, revision: i64, guards: &mut Vec<pb::Compare>) {
        let unchanged = |(kv, modified): &(KeyValue, i64)| {
            compare(
                &KeyRange::One(kv.key.clone()),
                CompareResult::Equal,
                TargetUnion::ModRevision(*modified),
            )
        };
        if self.kvs.is_empty() {
            guards.extend(self.parts.iter().map(absent));
        } else if truth {
            guards.extend(self.kvs.first().map(unchanged));
            guards.extend(self.parts.iter().map(|part| {
                let next = TargetUnion::ModRevision(revision + 1);
                compare(part, CompareResult::Less, next)
            }));
        } else {
            let against = |(kv, _): &&(KeyValue, i64)| !holds_of_all(self.condition, [kv]);
            guards.extend(self.kvs.iter().find(against).map(unchanged));
        }
    }
}

/// Whether a key's claim matters to a condition.
fn by_number(condition: &Compare) -> bool {
    match condition.target {
        CompareTarget::Version(operand) => operand > 0,
        CompareTarget::Create(operand) | CompareTarget::Mod(operand) => operand.0 > 0,
        CompareTarget::Value(_) | CompareTarget::Lease(_) => false,
    }
}

//! Transactions that only read: what one snapshot has to answer for them. Pure.
//!
//! Ranges over spans are read like those that stand alone: a count comes from an index, keys come without
//! their values, and a limit ends the read. The rest (conditions, single keys) is evaluated over what was
//! fetched for it.

use super::backend::{Found, Head, Prefetch, Query};
use super::store::{finished, rows_of};
use super::table::Table;
use super::unanswered;
use super::work::want_txn;
use crate::store::Result;
use crate::store::eval::Working;
use crate::types::{Answer, KeyRange, Op, Range, Reply, Reserved, Txn, TxnReply};

/// A transaction that only reads, taken apart.
pub(super) struct Reading<'a> {
    txn: &'a Txn,
    /// All of it but the ranges that are read by themselves.
    rest: Txn,
    /// The ranges that are read by themselves: those of the success branch, then those of the other.
    spans: Vec<&'a Range>,
}

impl<'a> Reading<'a> {
    /// Where operations may run at another place than their own (nested transactions), conditions need the
    /// values of a span, or the past is read, nothing is read by itself.
    pub(super) fn of(txn: &'a Txn) -> Self {
        let apart = can_be_taken_apart(txn);
        let alone = |op: &&Op| apart && span_of(op).is_some();
        let of_rest = |ops: &'a [Op]| ops.iter().filter(|op| !alone(op)).cloned().collect();
        Self {
            txn,
            rest: Txn {
                compares: txn.compares.clone(),
                success: of_rest(&txn.success),
                failure: of_rest(&txn.failure),
            },
            spans: (txn.success.iter().chain(&txn.failure))
                .filter(alone)
                .filter_map(span_of)
                .collect(),
        }
    }

    /// What to read.
    pub(super) fn queries(&self, reserved: &Reserved) -> Vec<Query> {
        let mut want = Prefetch::default();
        want_txn(&self.rest, reserved, &mut want);
        want.tidy();
        let spans = self.spans.iter();
        let spans = spans.map(|range| Query::Rows(rows_of(range, reserved)));
        [Query::Prefetch(want)].into_iter().chain(spans).collect()
    }

    /// The answer, from what was found for [`Self::queries`].
    pub(super) fn answer(
        &self,
        head: &Head,
        found: Vec<Found>,
        reserved: &Reserved,
    ) -> Result<Answer<TxnReply>> {
        let mut found = found.into_iter();
        let Some(Found::Prefetched(fetched)) = found.next() else {
            return Err(unanswered());
        };
        let table = Table::new(fetched.rows, fetched.claimed, fetched.past, &fetched.leases);
        let mut working = Working::new(&table, reserved, head.revision, head.oldest());
        let mut answer = working.txn(&self.rest)?;
        if self.spans.is_empty() {
            return Ok(answer);
        }
        let spans_of = |ops: &[Op]| ops.iter().filter_map(span_of).count();
        let ops = if answer.reply.succeeded {
            &self.txn.success
        } else {
            found = found
                .skip(spans_of(&self.txn.success))
                .collect::<Vec<_>>()
                .into_iter();
            &self.txn.failure
        };
        let mut rest = std::mem::take(&mut answer.reply.replies).into_iter();
        for op in ops {
            let reply = match span_of(op) {
                Some(range) => found
                    .next()
                    .map(|found| finished(range, found))
                    .transpose()?
                    .map(Reply::Range),
                None => rest.next(),
            };
            answer.reply.replies.push(reply.ok_or_else(unanswered)?);
        }
        Ok(answer)
    }
}

fn can_be_taken_apart(txn: &Txn) -> bool {
    let simple = |op: &Op| matches!(op, Op::Range(Range { at: None, .. }));
    let of_one = |keys: &KeyRange| matches!(keys, KeyRange::One(_));
    txn.compares.iter().all(|compare| of_one(&compare.keys))
        && txn.success.iter().chain(&txn.failure).all(simple)
}

fn span_of(op: &Op) -> Option<&Range> {
    match op {
        Op::Range(range) if matches!(range.keys, KeyRange::Span { .. }) => Some(range),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sql::backend::Rows;
    use crate::types::{Compare, CompareResult, CompareTarget, Content, Revision};

    fn all(content: Content) -> Range {
        Range {
            content,
            ..Range::of(KeyRange::prefix("k"))
        }
    }

    fn condition(keys: KeyRange) -> Compare {
        Compare {
            keys,
            result: CompareResult::Equal,
            target: CompareTarget::Value("v".into()),
        }
    }

    /// How many rows of spans are fetched with everything, and which are read by themselves.
    fn queries(txn: &Txn) -> (usize, Vec<Rows>) {
        let mut queries = Reading::of(txn).queries(&Reserved::default()).into_iter();
        let Some(Query::Prefetch(want)) = queries.next() else {
            panic!("what is fetched comes first")
        };
        let rows = queries.map(|query| match query {
            Query::Rows(rows) => rows,
            other => panic!("{other:?}"),
        });
        (want.spans.len(), rows.collect())
    }

    #[test]
    fn counts_and_keys_are_read_without_values() {
        let contents = [Content::KeysOnly, Content::CountOnly, Content::Full];
        let mut txn = Txn::of(contents.map(|it| Op::Range(all(it))).into());
        txn.success.push(Op::Range(Range::key("k")));
        txn.compares.push(condition(KeyRange::One("k".into())));
        let (fetched, rows) = queries(&txn);
        assert_eq!((fetched, rows.len()), (0, 3));
        assert_eq!((rows[0].limit, rows[0].values), (None, 0));
        assert_eq!(rows[1].limit, Some(0));
        assert_eq!(rows[2].values, usize::MAX);
    }

    #[test]
    fn what_cannot_be_taken_apart_is_fetched() {
        let count = || Op::Range(all(Content::CountOnly));
        let nested = Txn::of(vec![Op::Txn(Txn::of(vec![count()]))]);
        let mut compared = Txn::of(vec![count()]);
        compared.compares.push(condition(KeyRange::prefix("k")));
        let mut past = Txn::of(vec![count()]);
        past.failure.push(Op::Range(Range {
            at: Some(Revision(1)),
            ..all(Content::Full)
        }));
        for txn in [nested, compared, past] {
            let (fetched, rows) = queries(&txn);
            assert!(fetched > 0 && rows.is_empty(), "{txn:?}");
        }
    }
}

//! Transactions through the overlay: copy up everything that is touched, then run whole on the new
//! store. There is no transaction across stores.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::Overlay;
use crate::store::{CopyUp, PageSize, RequestError, Result, StoreError};
use crate::types::{Answer, Content, KeyRange, KeyValue, LeaseId, Op, Txn, TxnReply};

/// Pairs of the old store that are read and copied up at once where a transaction touches a range.
const PAGE: usize = 500;
/// Copies that travel with the transaction itself; more go ahead of it in pages.
const COPIES_WITH_TXN_MAX: usize = 64;

/// What a transaction touches in either branch, its conditions included.
#[derive(Debug, Default, PartialEq, Eq)]
struct Footprint {
    keys: BTreeSet<Bytes>,
    ranges: Vec<KeyRange>,
}

impl Footprint {
    fn of(txn: &Txn) -> Self {
        let mut footprint = Self::default();
        txn.visit_compares(&mut |compare| footprint.add(&compare.keys));
        txn.visit(&mut |op| match op {
            Op::Range(range) => footprint.add(&range.keys),
            Op::Put(put) => {
                footprint.keys.insert(put.key.clone());
            }
            Op::Delete(delete) => footprint.add(&delete.keys),
            Op::Txn(_) => {}
        });
        footprint
    }

    fn add(&mut self, keys: &KeyRange) {
        match keys {
            KeyRange::One(key) => {
                self.keys.insert(key.clone());
            }
            KeyRange::Span { .. } => self.ranges.push(keys.clone()),
        }
    }
}

/// What the old store has of some keys.
#[derive(Debug, Default)]
struct Found {
    copies: Vec<KeyValue>,
    /// In place of those that are there and that it cannot read.
    unreadable: Vec<KeyValue>,
}

impl Overlay {
    /// Runs `txn` on the new store, after everything that it touches was copied up. A key that the
    /// old store does not have needs no copy: it is absent there for good as long as it is unclaimed.
    pub(super) async fn run(&self, mut txn: Txn) -> Result<Answer<TxnReply>> {
        // As for reads: what was copied may be missing where a server lags behind.
        txn.read_the_latest();
        let Footprint { keys, ranges } = Footprint::of(&txn);
        for range in &ranges {
            for gap in self.copied.load().gaps(range) {
                self.copy_up_gap(gap).await?;
            }
        }
        let asked: Vec<Bytes> = keys
            .into_iter()
            .filter(|key| !self.decided_by_new(key))
            .collect();
        let Found { copies, unreadable } = self.find(asked, &txn).await?;
        let claimed: Vec<Bytes> = copies
            .iter()
            .chain(&unreadable)
            .map(|kv| kv.key.clone())
            .collect();
        let answer = self.run_over(copies, unreadable, txn).await?;
        self.known.extend(&claimed);
        Ok(answer)
    }

    /// The pairs of these keys in the old store. One that cannot be read there need not be if `txn` replaces it:
    /// so a client can write it anew or delete it.
    async fn find(&self, asked: Vec<Bytes>, txn: &Txn) -> Result<Found> {
        let mut found = Found::default();
        if asked.is_empty() {
            return Ok(found);
        }
        let mut broken = None;
        let each = self.old.get_each(asked.clone()).await?;
        for (key, one) in asked.into_iter().zip(each) {
            match one {
                Ok(kv) => found.copies.extend(kv),
                Err(error) => {
                    broken.get_or_insert(error);
                    found.unreadable.push(KeyValue {
                        key,
                        version: 1,
                        ..KeyValue::default()
                    });
                }
            }
        }
        let Some(broken) = broken else {
            return Ok(found);
        };
        if !replaces_all(txn, &found.unreadable) {
            return Err(broken);
        }
        let base = self.old.revision().await?;
        for kv in &mut found.unreadable {
            kv.create_revision = base;
            kv.mod_revision = base;
        }
        Ok(found)
    }

    /// Runs `txn` over `copies`, with which it goes where that is possible, and in place of what is `unreadable`
    /// in the old store. A value that the new store cannot take need not be there if it goes at once: so a client
    /// can change or delete what could not be copied.
    async fn run_over(
        &self,
        copies: Vec<KeyValue>,
        unreadable: Vec<KeyValue>,
        txn: Txn,
    ) -> Result<Answer<TxnReply>> {
        if copies.is_empty() && unreadable.is_empty() {
            return self.new.txn_over(copies, txn).await;
        }
        let leased = copies.iter().any(|kv| kv.lease.is_some());
        if unreadable.is_empty() && !leased && copies.len() <= COPIES_WITH_TXN_MAX {
            let count = copies.len();
            match self.new.txn_over(copies.clone(), txn.clone()).await {
                Err(error) if is_refusal(&error) => {}
                done => {
                    self.counters.copied_up(done.as_ref().map_or(0, |_| count));
                    return done;
                }
            }
        }
        let mut unseen = unreadable;
        if let Some(refused) = self.copy_up_ahead(copies, &mut unseen).await?
            && !replaces_all(&txn, &unseen)
        {
            return Err(refused);
        }
        let count = unseen.len();
        let answer = if unseen.is_empty() {
            self.new.txn_over(unseen, txn).await?
        } else {
            self.new.replace(unseen, txn).await?
        };
        self.counters.copied_up(count);
        Ok(answer)
    }

    /// Copies up `copies`, and adds to `unseen` those that the new store cannot take. Answers why it cannot take
    /// the first.
    async fn copy_up_ahead(
        &self,
        copies: Vec<KeyValue>,
        unseen: &mut Vec<KeyValue>,
    ) -> Result<Option<StoreError>> {
        match self.copy_up(copies.clone()).await {
            Err(error) if is_refusal(&error) => {}
            done => return done.map(|()| None),
        }
        // One by one, so that those that are not to blame keep what they have.
        let mut why = None;
        for kv in copies {
            match self.copy_up(vec![kv.clone()]).await {
                Err(error) if is_refusal(&error) => {
                    unseen.push(KeyValue {
                        value: Bytes::new(),
                        lease: LeaseId::NONE,
                        ..kv
                    });
                    why.get_or_insert(error);
                }
                done => done?,
            }
        }
        Ok(why)
    }

    /// Copies up everything in `gap`, a page at a time. Afterwards every old key in it is claimed,
    /// since none can have come in behind the scan: unclaimed keys do not change in the old store.
    async fn copy_up_gap(&self, gap: KeyRange) -> Result<()> {
        let mut left = Some(gap);
        while let Some(keys) = left {
            let size = PageSize::pairs(PAGE);
            let page = self.old.scan(keys.clone(), size, Content::Full).await?;
            left = page.rest(&keys)?;
            self.copy_up(page.kvs).await?;
        }
        Ok(())
    }

    /// Copies up `kvs` where they are unclaimed, in as many pieces as the new store wants. A pair whose
    /// lease the new store does not know comes without it: all leases were granted before the phase
    /// began, so this one has been revoked or has expired since, or was granted past the proxy.
    async fn copy_up(&self, kvs: Vec<KeyValue>) -> Result<()> {
        let mut left = vec![kvs];
        while let Some(mut kvs) = left.pop().filter(|kvs| !kvs.is_empty()) {
            let copy_up = CopyUp {
                kvs: kvs.clone(),
                record: None,
            };
            let made = match self.new.copy_up(copy_up).await {
                Err(StoreError::Request(
                    RequestError::TooLarge | RequestError::TooManyOperations,
                )) if kvs.len() > 1 => {
                    let second = kvs.split_off(kvs.len() / 2);
                    left.extend([second, kvs]);
                    continue;
                }
                Err(StoreError::Request(RequestError::LeaseNotFound)) => {
                    self.copy_up_without_lost_leases(&kvs).await?
                }
                made => made?.unwrap_or_default(),
            };
            self.counters.copied_up(made);
            let keys: Vec<Bytes> = kvs.into_iter().map(|kv| kv.key).collect();
            self.known.extend(&keys);
        }
        Ok(())
    }

    async fn copy_up_without_lost_leases(&self, kvs: &[KeyValue]) -> Result<usize> {
        let mut made = 0;
        for kv in kvs {
            let one = |kv| CopyUp {
                kvs: vec![kv],
                record: None,
            };
            let copied = match self.new.copy_up(one(kv.clone())).await {
                Err(StoreError::Request(RequestError::LeaseNotFound)) => {
                    tracing::warn!(
                        lease = kv.lease.0,
                        "copied up a key without its unknown lease"
                    );
                    self.new
                        .copy_up(one(KeyValue {
                            lease: LeaseId::NONE,
                            ..kv.clone()
                        }))
                        .await
                }
                copied => copied,
            };
            made += copied?.unwrap_or_default();
        }
        Ok(made)
    }
}

/// Whether the new store cannot take what it was given, be it a copy or the transaction.
fn is_refusal(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Request(RequestError::Unacceptable(_) | RequestError::TooLarge)
    )
}

/// Whether the transaction overwrites or deletes all these pairs whatever they are, and shows none of their
/// values.
fn replaces_all(txn: &Txn, kvs: &[KeyValue]) -> bool {
    let replaces = |op: &Op, key: &Bytes| match op {
        Op::Put(put) => put.key == *key,
        Op::Delete(delete) => delete.keys.contains(key),
        Op::Range(_) | Op::Txn(_) => false,
    };
    let is_blind = |op: &Op| match op {
        Op::Put(put) => put.value.is_some() && put.lease.is_some() && !put.prev_kv,
        Op::Delete(delete) => !delete.prev_kv,
        Op::Range(_) | Op::Txn(_) => false,
    };
    let ops = &txn.success;
    txn.compares.is_empty()
        && ops.iter().all(is_blind)
        && (kvs.iter()).all(|kv| ops.iter().any(|op| replaces(op, &kv.key)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Compare, CompareResult, CompareTarget, Delete, Put, Range};

    #[test]
    fn only_what_is_replaced_unseen_may_lack_its_value() {
        let kv = |key: &'static str| KeyValue {
            key: key.into(),
            ..KeyValue::default()
        };
        let put = Put::new("a", "new");
        let delete = Delete {
            keys: KeyRange::prefix("a"),
            prev_kv: false,
        };
        let of = |op| Txn::of(vec![op]);
        for (txn, replaced) in [
            (of(Op::Put(put.clone())), true),
            (of(Op::Delete(delete.clone())), true),
            (of(Op::Range(Range::key("a"))), false),
            (of(Op::Txn(of(Op::Put(put.clone())))), false),
            (of(Op::Put(Put::new("b", "new"))), false),
            (
                of(Op::Put(Put {
                    prev_kv: true,
                    ..put.clone()
                })),
                false,
            ),
            (
                of(Op::Put(Put {
                    value: None,
                    ..put.clone()
                })),
                false,
            ),
            (
                of(Op::Delete(Delete {
                    prev_kv: true,
                    ..delete
                })),
                false,
            ),
            (
                Txn {
                    compares: vec![Compare {
                        keys: KeyRange::One("a".into()),
                        result: CompareResult::Equal,
                        target: CompareTarget::Version(0),
                    }],
                    ..of(Op::Put(put))
                },
                false,
            ),
        ] {
            assert_eq!(replaces_all(&txn, &[kv("a")]), replaced, "{txn:?}");
        }
    }

    #[test]
    fn the_footprint_covers_conditions_both_branches_and_nested_transactions() {
        let compare = |key: &'static str| Compare {
            keys: KeyRange::One(key.into()),
            result: CompareResult::Equal,
            target: CompareTarget::Version(0),
        };
        let nested = Txn {
            compares: vec![compare("nested-compare")],
            success: vec![Op::Put(Put::new("nested-put", ""))],
            failure: vec![],
        };
        let txn = Txn {
            compares: vec![compare("compare")],
            success: vec![Op::Range(Range::key("read")), Op::Txn(nested)],
            failure: vec![Op::Delete(Delete {
                keys: KeyRange::prefix("delete"),
                prev_kv: false,
            })],
        };
        assert_eq!(
            Footprint::of(&txn),
            Footprint {
                keys: ["compare", "nested-compare", "nested-put", "read"]
                    .map(Bytes::from)
                    .into_iter()
                    .collect(),
                ranges: vec![KeyRange::prefix("delete")],
            }
        );
    }
}

//! Transactions through the overlay: copy up everything that is touched, then run whole on the new
//! store. There is no transaction across stores.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::Overlay;
use crate::store::{CopyUp, RequestError, Result, StoreError};
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

impl Overlay {
    /// Runs `txn` on the new store, after everything that it touches was copied up. A key that the
    /// old store does not have needs no copy: it is absent there for good as long as it is unclaimed.
    pub(super) async fn run(&self, txn: Txn) -> Result<Answer<TxnReply>> {
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
        let mut copies = Vec::new();
        if !asked.is_empty() {
            copies.extend(self.old.get(asked).await?.into_iter().flatten());
        }
        let leased = copies.iter().any(|kv| kv.lease.is_some());
        if leased || copies.len() > COPIES_WITH_TXN_MAX {
            self.copy_up(std::mem::take(&mut copies)).await?;
        }
        let claimed: Vec<Bytes> = copies.iter().map(|kv| kv.key.clone()).collect();
        let answer = self.new.txn_over(copies, txn).await?;
        self.counters.copied_up(claimed.len());
        self.known.extend(&claimed);
        Ok(answer)
    }

    /// Copies up everything in `gap`, a page at a time. Afterwards every old key in it is claimed,
    /// since none can have come in behind the scan: unclaimed keys do not change in the old store.
    async fn copy_up_gap(&self, gap: KeyRange) -> Result<()> {
        let mut left = Some(gap);
        while let Some(keys) = left {
            let page = self.old.scan(keys.clone(), PAGE, Content::Full).await?;
            left = page.rest(&keys)?;
            self.copy_up(page.kvs).await?;
        }
        Ok(())
    }

    /// Copies up `kvs` where they are unclaimed. A pair whose lease the new store does not know
    /// comes without it: all leases were granted before the phase began, so this one has been
    /// revoked or has expired since, or was granted past the proxy.
    async fn copy_up(&self, kvs: Vec<KeyValue>) -> Result<()> {
        if kvs.is_empty() {
            return Ok(());
        }
        let keys: Vec<Bytes> = kvs.iter().map(|kv| kv.key.clone()).collect();
        let made = match self
            .new
            .copy_up(CopyUp {
                kvs: kvs.clone(),
                record: None,
            })
            .await
        {
            Err(StoreError::Request(RequestError::LeaseNotFound)) => {
                self.copy_up_without_lost_leases(kvs).await?
            }
            made => made?.unwrap_or_default(),
        };
        self.counters.copied_up(made);
        self.known.extend(&keys);
        Ok(())
    }

    async fn copy_up_without_lost_leases(&self, kvs: Vec<KeyValue>) -> Result<usize> {
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
                            ..kv
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Compare, CompareResult, CompareTarget, Delete, Put, Range};

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

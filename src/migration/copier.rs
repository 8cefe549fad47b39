//! Brings pairs into the new store, whatever size and however odd they are.
//!
//! The new store says by its errors what it can take. A batch that is refused is cut in halves until
//! the pair that is to blame stands alone: that one is recorded as a reject, with the reason, and
//! the rest goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tracing::{debug, warn};

use super::ledger::{Entry, Ledger, TOGETHER, write};
use super::records::{Reject, Shard, readable};
use crate::store::{
    CopyUp, GuardedStore, OldStore, Read, RecordTxn, RecordWrite, RequestError, Result, StoreError,
    miscounted,
};
use crate::types::range::successor;
use crate::types::{Epoch, Grant, KeyRange, KeyValue, LeaseId};

/// Most pairs in one transaction. Clients wait for as long as it takes, so it is far below what
/// would copy fastest.
const BATCH_KEYS: usize = 1000;
/// Most bytes in one transaction; etcd takes requests up to 1.5 MiB.
const BATCH_BYTES: usize = 1 << 20;

/// Claims that are looked up at once: an etcd looks twice for each, and does no more than 128 operations.
const CLAIMS: usize = 50;

/// Copies pairs from the old store to the new one, in one epoch.
pub struct Copier {
    ledger: Ledger,
    old: Arc<dyn OldStore>,
    new: Arc<dyn GuardedStore>,
    /// Pairs that the new store takes in one transaction, as far as it was found out.
    batch: AtomicUsize,
}

/// A shard's record, written together with what it says was copied.
pub struct Cursor {
    /// The record's name.
    pub name: String,
    /// What it says, and in which version.
    pub entry: Entry<Shard>,
    /// The epoch in which it is moved.
    pub epoch: Epoch,
}

impl Cursor {
    fn move_to(&mut self, next: Shard) {
        self.entry.value = next;
        self.entry.version += 1;
    }
}

/// What a step of copying came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It was done.
    Done,
    /// Another member has moved the cursor.
    Overtaken,
}

/// What became of a batch: what is left of it was claimed already.
struct Dealt {
    copied: usize,
    rejected: usize,
    /// Those of the rejects that are still to be recorded.
    rejects: Vec<Reject>,
}

impl Dealt {
    /// Nothing of it was copied.
    fn rejects(rejects: Vec<Reject>) -> Self {
        Self {
            copied: 0,
            rejected: rejects.len(),
            rejects,
        }
    }
}

/// How a refused batch is to be treated.
enum Refusal {
    /// It is too much at once.
    TooMuch,
    /// A pair in it cannot be taken.
    Pair(String),
    /// A lease of a pair is not known.
    Lease,
}

impl Copier {
    /// A copier under the guard that `new` was made with.
    #[must_use]
    pub fn new(ledger: Ledger, old: Arc<dyn OldStore>, new: Arc<dyn GuardedStore>) -> Self {
        Self {
            ledger,
            old,
            new,
            batch: AtomicUsize::new(BATCH_KEYS),
        }
    }

    /// The first of `pairs` that go into one transaction: all of them take few transactions, and equal
    /// ones.
    #[must_use]
    pub fn batch<'a>(&self, pairs: &'a [KeyValue]) -> &'a [KeyValue] {
        let most = self.batch.load(Ordering::Relaxed);
        let most = pairs.len().div_ceil(pairs.len().div_ceil(most).max(1));
        let mut bytes = 0;
        let fit = pairs.iter().take(most).take_while(|kv| {
            bytes += kv.weight();
            bytes <= BATCH_BYTES
        });
        &pairs[..fit.count().clamp(1.min(pairs.len()), pairs.len())]
    }

    /// Copies all of `pairs`, which are in key order if there is a cursor, and moves the cursor
    /// behind each that was dealt with.
    pub async fn copy(&self, pairs: &[KeyValue], cursor: Option<&mut Cursor>) -> Result<Step> {
        let (step, _) = self.copy_with(pairs, cursor, true).await?;
        Ok(step)
    }

    /// The same, and how many were rejected.
    async fn copy_with(
        &self,
        pairs: &[KeyValue],
        mut cursor: Option<&mut Cursor>,
        mend: bool,
    ) -> Result<(Step, usize)> {
        let mut rejected = 0;
        let mut rest = pairs;
        let mut most = usize::MAX;
        while !rest.is_empty() {
            let batch = self.batch(rest);
            let batch = &batch[..batch.len().min(most)];
            let refusal = match self.write(batch, cursor.as_deref_mut()).await {
                Ok(Step::Done) => {
                    rest = &rest[batch.len()..];
                    most = most.saturating_mul(2);
                    continue;
                }
                Ok(Step::Overtaken) => return Ok((Step::Overtaken, rejected)),
                Err(StoreError::Request(why)) => refusal(why)?,
                Err(error) => return Err(error),
            };
            match refusal {
                Refusal::Lease if mend => {
                    let (mended, rejects) = self.mend_leases(batch).await?;
                    let (_, refused) = Box::pin(self.copy_with(&mended, None, false)).await?;
                    let dealt = Dealt {
                        copied: mended.len() - refused,
                        rejected: rejects.len() + refused,
                        rejects,
                    };
                    rejected += dealt.rejected;
                    let cursor = cursor.as_deref_mut();
                    if self.pass(batch, dealt, cursor).await? == Step::Overtaken {
                        return Ok((Step::Overtaken, rejected));
                    }
                    rest = &rest[batch.len()..];
                }
                Refusal::Lease => {
                    return Err(StoreError::Unavailable(
                        "a lease ended while its keys were being copied".into(),
                    ));
                }
                Refusal::TooMuch | Refusal::Pair(_) if batch.len() > 1 => {
                    most = batch.len() / 2;
                    if matches!(refusal, Refusal::TooMuch) {
                        self.batch.fetch_min(most.max(1), Ordering::Relaxed);
                    }
                }
                Refusal::TooMuch | Refusal::Pair(_) => {
                    let reason = match refusal {
                        Refusal::Pair(reason) => reason,
                        _ => RequestError::TooLarge.to_string(),
                    };
                    let reject = Reject {
                        key: batch[0].key.clone(),
                        reason,
                    };
                    rejected += 1;
                    let dealt = Dealt::rejects(vec![reject]);
                    let cursor = cursor.as_deref_mut();
                    if self.pass(batch, dealt, cursor).await? == Step::Overtaken {
                        return Ok((Step::Overtaken, rejected));
                    }
                    rest = &rest[1..];
                }
            }
        }
        Ok((Step::Done, rejected))
    }

    /// Copies `batch` and moves the cursor behind it, in one transaction.
    async fn write(&self, batch: &[KeyValue], cursor: Option<&mut Cursor>) -> Result<Step> {
        let mut copy_up = CopyUp {
            kvs: batch.to_vec(),
            record: None,
        };
        let Some(cursor) = cursor else {
            self.new.copy_up(copy_up).await?;
            return Ok(Step::Done);
        };
        let count = batch.len() as u64;
        let mut next = advanced(&cursor.entry.value, batch);
        next.copied += count;
        copy_up.record = Some((write(&cursor.name, &next), cursor.entry.version));
        let Some(copied) = self.new.copy_up(copy_up).await? else {
            return Ok(Step::Overtaken);
        };
        // How many were claimed already is only known now: the next write of the record says so.
        let claimed = count.saturating_sub(copied as u64);
        next.copied -= claimed;
        next.claimed += claimed;
        cursor.move_to(next);
        Ok(Step::Done)
    }

    /// Moves the cursor behind `batch`, which was dealt with.
    async fn pass(
        &self,
        batch: &[KeyValue],
        dealt: Dealt,
        cursor: Option<&mut Cursor>,
    ) -> Result<Step> {
        for Reject { key, reason } in &dealt.rejects {
            warn!(key = %readable(key), reason, "the new store cannot take this key");
        }
        let writes = dealt
            .rejects
            .iter()
            .map(|reject| write(Reject::record(&reject.key), reject));
        let writes: Vec<RecordWrite> = writes.collect();
        // What does not fit into one transaction goes ahead of the cursor: it may be repeated.
        let (ahead, with_cursor) = writes.split_at(writes.len().saturating_sub(TOGETHER));
        let of = |writes: &[RecordWrite]| RecordTxn {
            writes: writes.to_vec(),
            ..RecordTxn::default()
        };
        for some in ahead.chunks(TOGETHER) {
            match &cursor {
                Some(cursor) => self.ledger.write_in(cursor.epoch, of(some)).await?,
                None => self.ledger.write_while_open(of(some)).await?,
            };
        }
        let mut txn = of(with_cursor);
        let Some(cursor) = cursor else {
            if !txn.writes.is_empty() {
                self.ledger.write_while_open(txn).await?;
            }
            return Ok(Step::Done);
        };
        let mut next = advanced(&cursor.entry.value, batch);
        next.rejected += dealt.rejected as u64;
        next.copied += dealt.copied as u64;
        next.claimed += batch.len().saturating_sub(dealt.copied + dealt.rejected) as u64;
        txn.expect = vec![(cursor.name.clone(), cursor.entry.version)];
        txn.writes.push(write(&cursor.name, &next));
        if !self.ledger.write_in(cursor.epoch, txn).await? {
            return Ok(Step::Overtaken);
        }
        cursor.move_to(next);
        Ok(Step::Done)
    }

    /// Records keys of the old store that are no keys of ours.
    pub async fn record_rejects(&self, rejects: &[(Bytes, String)]) -> Result<()> {
        let rejects = rejects.iter().map(|(key, reason)| Reject {
            key: key.clone(),
            reason: reason.clone(),
        });
        let dealt = Dealt::rejects(rejects.collect());
        self.pass(&[], dealt, None).await.map(|_| ())
    }

    /// What can be copied of `batch`, some of whose leases the new store does not know, and what
    /// cannot. A key whose lease has ended in the new store is claimed and needs no copy. A lease
    /// that came into the old store after the migration was opened is granted now.
    async fn mend_leases(&self, batch: &[KeyValue]) -> Result<(Vec<KeyValue>, Vec<Reject>)> {
        let claimed = self
            .claimed(batch.iter().filter(|kv| kv.lease.is_some()))
            .await?;
        let open: BTreeSet<LeaseId> = batch
            .iter()
            .filter(|kv| kv.lease.is_some() && !claimed.contains(&kv.key))
            .map(|kv| kv.lease)
            .collect();
        let mut known = BTreeMap::new();
        if !open.is_empty() {
            for lease in self.old.leases().await? {
                known.insert(lease.id, lease.ttl_s);
            }
        }
        for (id, ttl_s) in known.iter().filter(|(id, _)| open.contains(id)) {
            debug!(lease = id.0, "a lease that is new in the old store");
            self.grant(*id, *ttl_s).await?;
        }
        let mut mended = Vec::with_capacity(batch.len());
        let mut rejects = Vec::new();
        for kv in batch {
            if claimed.contains(&kv.key) {
                continue;
            }
            if !kv.lease.is_some() || known.contains_key(&kv.lease) {
                mended.push(kv.clone());
                continue;
            }
            // The lease has just ended, and the key with it, or the old store is not sane.
            match self.old.get(vec![kv.key.clone()]).await?.pop().flatten() {
                Some(now) if now.lease == kv.lease => rejects.push(Reject {
                    key: kv.key.clone(),
                    reason: format!(
                        "it is attached to lease {:x}, which is no lease",
                        kv.lease.0
                    ),
                }),
                Some(_) => {
                    return Err(StoreError::Unavailable(
                        "a key of the old store has just changed".into(),
                    ));
                }
                None => {}
            }
        }
        Ok((mended, rejects))
    }

    /// Grants a lease with the number that it has in the old store; answers whether it was not there.
    pub async fn grant(&self, id: LeaseId, ttl_s: i64) -> Result<bool> {
        let grant = Grant {
            id: Some(id),
            ttl_s,
        };
        match self.new.grant(grant).await {
            Ok(_) => Ok(true),
            Err(StoreError::Request(RequestError::LeaseExists)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Those of `kvs` whose keys are claimed.
    async fn claimed(&self, kvs: impl Iterator<Item = &KeyValue>) -> Result<BTreeSet<Bytes>> {
        let read = |kv: &KeyValue| Read::Claims {
            keys: KeyRange::One(kv.key.clone()),
            values: 0,
        };
        let reads: Vec<_> = kvs.map(read).collect();
        let mut claimed = BTreeSet::new();
        for some in reads.chunks(CLAIMS) {
            let replies = self.new.snapshot(None, some.to_vec()).await?.reply;
            if replies.len() != some.len() {
                return Err(miscounted(some.len(), replies.len()));
            }
            for reply in replies {
                let claims = reply.into_claims()?;
                claimed.extend(claims.iter().map(|claim| claim.key().clone()));
            }
        }
        Ok(claimed)
    }
}

/// The shard with its frontier behind `batch`.
fn advanced(shard: &Shard, batch: &[KeyValue]) -> Shard {
    let mut next = shard.clone();
    if let Some(last) = batch.last() {
        next.frontier = successor(&last.key);
    }
    next.bytes += batch.iter().map(KeyValue::weight).sum::<usize>() as u64;
    next
}

fn refusal(why: RequestError) -> Result<Refusal> {
    match why {
        RequestError::TooManyOperations | RequestError::TooLarge => Ok(Refusal::TooMuch),
        RequestError::Unacceptable(reason) => Ok(Refusal::Pair(reason)),
        RequestError::LeaseNotFound => Ok(Refusal::Lease),
        // The store's trouble, not the pair's: it is tried again.
        other => Err(StoreError::Request(other)),
    }
}

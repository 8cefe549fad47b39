//! Copy-up: claim and data in one transaction, only where the key is unclaimed.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::names::Names;
use super::numbers::{Claimed, Copied};
use super::records::{record_compare, record_op};
use super::session::Session;
use super::view::{absent, header_revision, put_op, txn_op};
use crate::proto::etcdserverpb as pb;
use crate::store::{CopyUp, RecordWrite, Result, StoreError};
use crate::types::range::successor;
use crate::types::{KeyRange, KeyValue};
use pb::response_op::Response;

/// Keys per transaction: claim and data are two operations, and etcd takes 128 with the record.
const KEYS_PER_TXN: usize = 60;
/// Transactions on their way at a time for one call; etcd took bulk loads fastest with about four.
const TXNS_IN_FLIGHT: usize = 4;
/// Bytes per transaction, of the 1.5 MiB that etcd takes. A single key may have more.
const BYTES_PER_TXN: usize = 1 << 20;
/// What a key costs besides itself (twice) and its value.
const OVERHEAD_BYTES: usize = 128;
/// So few keys may lie anywhere, so that a claim is likely to lie between them.
const SCATTERED_KEYS_MAX: usize = 8;
/// Claims of so few keys are worth remembering: somebody is about to use them.
const LEARNED_MAX: usize = 16;

impl Session {
    /// Copies keys up, in as many transactions as it takes, the record in one behind all others: it
    /// never says more than what is there. Each of them holds to the record's version.
    pub(super) async fn copy_up(&self, copy_up: CopyUp) -> Result<Option<usize>> {
        for kv in &copy_up.kvs {
            self.view.check_key(&kv.key)?;
        }
        let record = copy_up.record.as_ref();
        let mut batches = batches(&copy_up.kvs);
        let last = batches.pop().unwrap_or_default();
        let transactions: Vec<_> = batches
            .into_iter()
            .map(|batch| self.copy_batch(batch, record, false))
            .collect();
        // Those who wait for locks are told apart by the order in which their keys were made.
        let at_once = if copy_up.kvs.iter().any(|kv| kv.lease.is_some()) {
            1
        } else {
            TXNS_IN_FLIGHT
        };
        let mut transactions = stream::iter(transactions).buffer_unordered(at_once);
        let mut copied = 0;
        while let Some(count) = transactions.try_next().await? {
            match count {
                Some(count) => copied += count,
                None => return Ok(None),
            }
        }
        let count = self.copy_batch(last, record, true).await?;
        Ok(count.map(|count| copied + count))
    }

    /// Copies keys up that lie anywhere.
    pub(super) async fn copy_scattered(&self, kvs: &[KeyValue]) -> Result<()> {
        for batch in batches(kvs).into_iter().filter(|batch| !batch.is_empty()) {
            self.copy_each(batch, None, false).await?;
        }
        Ok(())
    }

    async fn copy_batch(
        &self,
        kvs: &[KeyValue],
        record: Option<&(RecordWrite, i64)>,
        write_record: bool,
    ) -> Result<Option<usize>> {
        if kvs.is_empty() && !(write_record && record.is_some()) {
            return Ok(Some(0));
        }
        if kvs.len() > SCATTERED_KEYS_MAX {
            let all = self.copy_all(kvs, record, write_record);
            if let Some(count) = all.await? {
                return Ok(Some(count));
            }
        }
        self.copy_each(kvs, record, write_record).await
    }

    /// Copies all, if none of the keys, nor any between them, is claimed. Answers nothing if it did
    /// not, for whatever reason.
    async fn copy_all(
        &self,
        kvs: &[KeyValue],
        record: Option<&(RecordWrite, i64)>,
        write_record: bool,
    ) -> Result<Option<usize>> {
        let first = kvs.iter().map(|kv| &kv.key).min().cloned();
        let last = kvs.iter().map(|kv| &kv.key).max();
        let span = KeyRange::span(first.unwrap_or_default(), last.map(|key| successor(key)));
        let mut request = self.copy_txn(record, write_record);
        request
            .compare
            .push(absent(&self.view.names.claims_of(&span)));
        for kv in kvs {
            request.success.extend(copy_ops(&self.view.names, kv));
        }
        let response = self.view.client.txn(request).await?;
        if !response.succeeded {
            return Ok(None);
        }
        self.learn_copies(kvs, header_revision(response.header.as_ref()));
        Ok(Some(kvs.len()))
    }

    /// Copies each key that is unclaimed.
    async fn copy_each(
        &self,
        kvs: &[KeyValue],
        record: Option<&(RecordWrite, i64)>,
        write_record: bool,
    ) -> Result<Option<usize>> {
        let mut request = self.copy_txn(record, write_record);
        let copies = kvs.iter().map(|kv| copy_op(&self.view.names, kv));
        request.success.extend(copies);
        if self.epoch.is_some() {
            request.failure.push(self.epoch_op());
        }
        let mut response = self.view.client.txn(request).await?;
        if !response.succeeded {
            return if self.epoch_stands(response.responses.pop()) {
                Ok(None)
            } else {
                Err(StoreError::StaleEpoch)
            };
        }
        let revision = header_revision(response.header.as_ref());
        let nested = response
            .responses
            .into_iter()
            .filter_map(|op| match op.response {
                Some(Response::ResponseTxn(txn)) => Some(txn.succeeded),
                _ => None,
            });
        let mut count = 0;
        for (kv, copied) in kvs.iter().zip(nested) {
            if copied {
                count += 1;
                self.learn_copies(std::slice::from_ref(kv), revision);
            }
        }
        Ok(Some(count))
    }

    /// A transaction with the epoch's and the record's conditions; the record's write is behind the
    /// copies, so that the answers to these come first.
    fn copy_txn(&self, record: Option<&(RecordWrite, i64)>, write_record: bool) -> pb::TxnRequest {
        let names = &self.view.names;
        let mut request = pb::TxnRequest {
            compare: self.epoch.iter().cloned().collect(),
            ..pb::TxnRequest::default()
        };
        if let Some((write, version)) = record {
            request
                .compare
                .push(record_compare(names, &write.name, *version));
            if write_record {
                request.success.push(record_op(names, write));
            }
        }
        request
    }

    fn learn_copies(&self, kvs: &[KeyValue], at: i64) {
        if kvs.len() > LEARNED_MAX {
            return;
        }
        for kv in kvs {
            let copied = Copied {
                at,
                create: kv.create_revision,
                modified: kv.mod_revision,
                version: kv.version,
            };
            self.view.learn(&kv.key, Claimed::Copied(copied));
        }
    }
}

/// Writes a pair with its claim, if its key is unclaimed.
pub(super) fn copy_op(names: &Names, kv: &KeyValue) -> pb::RequestOp {
    txn_op(pb::TxnRequest {
        compare: vec![absent(&KeyRange::One(names.claim(&kv.key)))],
        success: copy_ops(names, kv).into(),
        failure: Vec::new(),
    })
}

/// Writes a pair with its claim, which keeps its numbers.
pub(super) fn copy_ops(names: &Names, kv: &KeyValue) -> [pb::RequestOp; 2] {
    [
        put_op(pb::PutRequest {
            key: names.claim(&kv.key),
            value: Claimed::copied(kv),
            ..pb::PutRequest::default()
        }),
        put_op(pb::PutRequest {
            key: kv.key.clone(),
            value: kv.value.clone(),
            lease: kv.lease.0,
            ..pb::PutRequest::default()
        }),
    ]
}

/// Cuts copies into pieces of one transaction each.
fn batches(kvs: &[KeyValue]) -> Vec<&[KeyValue]> {
    pieces(kvs, |kv| 2 * kv.key.len() + kv.value.len())
}

/// Cuts what is about one key each into pieces of one transaction each, from what they weigh in bytes. The
/// record goes with the last, so behind one that may leave it no room there is another one with nothing else.
pub(super) fn pieces<T>(kvs: &[T], weigh: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let mut batches = Vec::with_capacity(kvs.len() / KEYS_PER_TXN + 1);
    let mut start = 0;
    let mut bytes = 0;
    for (index, kv) in kvs.iter().enumerate() {
        let size = weigh(kv) + OVERHEAD_BYTES;
        if index > start && (index - start == KEYS_PER_TXN || bytes + size > BYTES_PER_TXN) {
            batches.push(&kvs[start..index]);
            start = index;
            bytes = 0;
        }
        bytes += size;
    }
    batches.push(&kvs[start..]);
    if bytes > BYTES_PER_TXN {
        batches.push(&[]);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kvs(count: usize, value_len: usize) -> Vec<KeyValue> {
        (0..count)
            .map(|number| KeyValue {
                key: number.to_string().into(),
                value: vec![0; value_len].into(),
                ..KeyValue::default()
            })
            .collect()
    }

    #[test]
    fn batches_are_bounded_in_keys_and_bytes_and_leave_nothing_out() {
        for (count, value_len, expected) in [
            (0, 0, 1),
            (60, 10, 1),
            (61, 10, 2),
            (4, 600_000, 4),
            (3, 2_000_000, 4),
        ] {
            let kvs = kvs(count, value_len);
            let batches = batches(&kvs);
            assert_eq!(batches.len(), expected, "{count} of {value_len}");
            assert_eq!(batches.concat(), kvs);
        }
    }
}

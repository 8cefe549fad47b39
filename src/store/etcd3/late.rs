//! Reads of the past, of keys that had not been copied up by then.
//!
//! A key that was copied up belonged to the clients' past all along. A read at a revision before the
//! copy-up has to show it in the state in which it was copied up.

use super::numbers::Claimed;
use super::view::{READS_PER_TXN, View, range_op, range_request, range_response};
use crate::proto::etcdserverpb as pb;
use crate::store::Result;
use crate::types::{KeyRange, KeyValue};

/// The pairs of `keys` that were copied up after etcd's revision `at`, in the state of the copy-up
/// and with the numbers that clients see, in no particular order.
pub(super) async fn copied_after(view: &View, keys: &KeyRange, at: i64) -> Result<Vec<KeyValue>> {
    if !view.copied_after(at) {
        return Ok(Vec::new());
    }
    let mut copied = Vec::new();
    for part in view.names.visible(keys) {
        let mut request = range_request(&view.names.claims_of(&part));
        request.min_create_revision = at + 1;
        let response = view.client.long_range(request).await?;
        for record in &response.kvs {
            if let (key, claim @ Claimed::Copied(_)) = view.read_claim(record)? {
                copied.push((key, claim, record.create_revision));
            }
        }
    }
    let mut kvs = Vec::with_capacity(copied.len());
    for chunk in copied.chunks(READS_PER_TXN) {
        let reads = chunk.iter().map(|(key, _, at)| {
            let mut request = range_request(&KeyRange::One(key.clone()));
            request.revision = *at;
            range_op(request)
        });
        let request = pb::TxnRequest {
            success: reads.collect(),
            ..pb::TxnRequest::default()
        };
        let response = view.client.read(request).await?;
        let states = response.responses.into_iter().filter_map(range_response);
        for ((_, claim, _), state) in chunk.iter().zip(states) {
            for kv in state.kvs {
                let mut kv = KeyValue::from(kv);
                view.numbers.translate(&mut kv, *claim);
                kvs.push(kv);
            }
        }
    }
    Ok(kvs)
}

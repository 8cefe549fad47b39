//! Emptying the whole cluster.

use bytes::Bytes;

use super::Etcd3;
use super::view::range_request;
use crate::proto::etcdserverpb as pb;
use crate::store::{EMPTYING, RequestError, Result, StoreError};
use crate::types::KeyRange;
use crate::types::range::successor;

/// Keys that are removed in one transaction. etcd writes each of them down.
const KEYS_PER_TXN: i64 = 5_000;

impl Etcd3 {
    /// Removes every key of the cluster, its own first: whoever still works on a migration is refused
    /// from then on. The record that says what is going on is there from the beginning to the end.
    pub(super) async fn clear_all(&self) -> Result<()> {
        let shared = &self.shared;
        shared.forget_views();
        let emptying = shared.names.record(EMPTYING);
        let put = pb::PutRequest {
            key: emptying.clone(),
            value: "true".into(),
            ..pb::PutRequest::default()
        };
        shared.client.put(put).await?;
        self.delete(&KeyRange::One(shared.names.epoch.clone()))
            .await?;
        self.delete(&KeyRange::One(shared.names.line.clone()))
            .await?;
        for lease in shared.client.leases().await?.leases {
            let revoke = pb::LeaseRevokeRequest { id: lease.id };
            match shared.client.revoke(revoke).await {
                Ok(_) | Err(StoreError::Request(RequestError::LeaseNotFound)) => {}
                Err(error) => return Err(error),
            }
        }
        let below = KeyRange::span(Bytes::new(), Some(emptying.clone()));
        self.delete(&below).await?;
        let above = KeyRange::span(successor(&emptying), None);
        self.delete(&above).await?;
        self.delete(&KeyRange::One(emptying)).await
    }

    async fn delete(&self, keys: &KeyRange) -> Result<()> {
        loop {
            let mut request = range_request(keys);
            request.limit = KEYS_PER_TXN;
            request.keys_only = true;
            let response = self.shared.client.long_range(request).await?;
            let (Some(first), Some(last)) = (response.kvs.first(), response.kvs.last()) else {
                return Ok(());
            };
            let mut range_end = last.key.to_vec();
            range_end.push(0);
            let delete = pb::DeleteRangeRequest {
                key: first.key.clone(),
                range_end: range_end.into(),
                prev_kv: false,
            };
            self.shared.client.delete(delete).await?;
        }
    }
}

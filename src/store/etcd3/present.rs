//! Keys that the store held before the migration.

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::session::Session;
use super::txn::claim_op;
use super::view::{View, range_op, range_request, range_response};
use crate::store::Result;
use crate::types::KeyRange;

/// Keys that are listed at a time.
const PAGE: i64 = 5_000;
/// Keys per transaction: each is a transaction of its own within, of the 128 operations that etcd takes.
const KEYS_PER_TXN: usize = 60;
/// Transactions on their way at a time.
const TXNS_IN_FLIGHT: usize = 4;

impl Session {
    /// Claims every live key for this store, unless it is claimed already.
    pub(super) async fn claim_present(&self) -> Result<()> {
        for part in self.view.reserved.visible(&KeyRange::all()) {
            let mut rest = Some(part);
            while let Some(keys) = rest {
                let mut request = range_request(&keys);
                request.limit = PAGE;
                request.keys_only = true;
                let response = self.run(vec![range_op(request)], false).await?;
                let page = response.responses.into_iter().find_map(range_response);
                let page = page.unwrap_or_default();
                let found: Vec<Bytes> = page.kvs.into_iter().map(|kv| kv.key).collect();
                rest = found
                    .last()
                    .filter(|_| page.more)
                    .and_then(|last| keys.after(last));
                self.claim(&found).await?;
            }
        }
        Ok(())
    }

    async fn claim(&self, keys: &[Bytes]) -> Result<()> {
        let transactions: Vec<_> = keys
            .chunks(KEYS_PER_TXN)
            .map(|keys| {
                let claims = keys.iter().map(|key| claim_op(&self.view, key));
                self.run(claims.collect(), true)
            })
            .collect();
        stream::iter(transactions)
            .buffer_unordered(TXNS_IN_FLIGHT)
            .try_for_each(|_| std::future::ready(Ok(())))
            .await
    }
}

impl View {
    /// Whether the store holds any key of an application's.
    pub(super) async fn holds_keys(&self) -> Result<bool> {
        for part in self.reserved.visible(&KeyRange::all()) {
            let mut request = range_request(&part);
            request.limit = 1;
            request.keys_only = true;
            if !self.client.range(request).await?.kvs.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

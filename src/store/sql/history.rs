//! The past of the feed: the log.

use std::sync::Arc;

use async_trait::async_trait;

use super::backend::{Backend, Found, LogScan, Query, Snapshot};
use crate::store::eval::check_at;
use crate::store::feed::{History, Stretch};
use crate::store::{RequestError, Result, StoreError, Watch};
use crate::types::{Reserved, Revision};

/// Bytes of keys and values that are read from the log at a time.
const STRETCH_BYTES: usize = 1 << 20;

/// The log as watchers read it.
pub(super) struct Log<B> {
    pub(super) backend: Arc<B>,
    pub(super) reserved: Reserved,
}

#[async_trait]
impl<B: Backend> History for Log<B> {
    async fn history(&self, watch: &Watch, after: Revision, limit: usize) -> Result<Stretch> {
        let scan = LogScan {
            parts: self.reserved.visible(&watch.keys),
            from: after.next(),
            to: Revision(i64::MAX),
            max_events: limit,
            max_bytes: STRETCH_BYTES,
            prev_kv: watch.prev_kv,
        };
        let snapshot = Snapshot::latest(vec![Query::Log(scan)]);
        let mut read = self.backend.read(snapshot).await?;
        let head = read.head;
        // The changes of the origin itself were the old store's.
        if after < head.origin {
            return Err(RequestError::Compacted(head.compacted.max(head.origin.next())).into());
        }
        check_at(after.next(), Revision(i64::MAX), head.compacted)?;
        match read.found.pop() {
            Some(Found::Log { batches, reached }) => Ok(Stretch {
                batches,
                through: reached.max(after),
            }),
            _ => Err(StoreError::Broken("the log was not read".into())),
        }
    }
}

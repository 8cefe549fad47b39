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

/// Revisions that are looked through for each event that is wanted. A watch of what changes seldom passes by
/// all else: the fifty thousand of a whole stretch take tenths of a second, or seconds from a slow disk, while
/// a statement is ended after half a minute or a whole one.
const REVISIONS_PER_EVENT: usize = 100;

/// The log as watchers read it.
pub(super) struct Log<B> {
    pub(super) backend: Arc<B>,
    pub(super) reserved: Reserved,
}

#[async_trait]
impl<B: Backend> History for Log<B> {
    async fn history(&self, watch: &Watch, after: Revision, limit: usize) -> Result<Stretch> {
        let scan = self.scan(watch, after, limit);
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

impl<B> Log<B> {
    fn scan(&self, watch: &Watch, after: Revision, limit: usize) -> LogScan {
        let revisions = limit.saturating_mul(REVISIONS_PER_EVENT);
        let revisions = i64::try_from(revisions).unwrap_or(i64::MAX);
        LogScan {
            parts: self.reserved.visible(&watch.keys),
            from: after.next(),
            to: Revision(after.0.saturating_add(revisions)),
            max_events: limit,
            max_bytes: STRETCH_BYTES,
            prev_kv: watch.prev_kv,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::KeyRange;

    #[test]
    fn a_log_is_looked_through_in_stretches_however_little_is_found() {
        let log = Log {
            backend: Arc::new(()),
            reserved: Reserved::default(),
        };
        let watch = Watch::of(KeyRange::One("seldom".into()), None);
        let scan = log.scan(&watch, Revision(7), 10);
        assert_eq!((scan.from, scan.to), (Revision(8), Revision(1007)));
        let last = log.scan(&watch, Revision(i64::MAX - 1), 10);
        assert_eq!(last.to, Revision(i64::MAX));
    }
}

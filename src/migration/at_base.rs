//! The old store as the migration reads pairs from it: none is newer than the base revision.
//!
//! Somebody may change a key there behind the base: to mend a reject, or past the proxies. The key then
//! has whatever number the old store, or the application, gives it. But what lies behind the base is the
//! new store's, and clients hold to it: a watch from behind the key's revision would miss changes that
//! are made meanwhile, and the next change would set the revision back. So such a key counts as changed
//! at the base, wherever it is read: for clients, to be copied, and to be compared.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::store::foreign::{Bookmark, ForeignChanges};
use crate::store::mark::Mark;
use crate::store::{
    NewStore, OldLease, OldState, OldStore, Page, PageSize, Result, Watch, Watching,
};
use crate::types::{Content, KeyRange, KeyValue, Range, RangeReply, Revision};

/// An old store, none of whose pairs is newer than the base revision. Its history is as it is.
pub(super) struct AtBase {
    old: Arc<dyn OldStore>,
    base: Revision,
}

impl AtBase {
    /// Reads pairs of `old` as clients may see them behind `base`.
    pub(super) fn new(old: Arc<dyn OldStore>, base: Revision) -> Self {
        Self { old, base }
    }
}

#[async_trait]
impl OldStore for AtBase {
    async fn identity(&self) -> Result<String> {
        self.old.identity().await
    }

    async fn revision(&self) -> Result<Revision> {
        Ok(self.old.revision().await?.min(self.base))
    }

    async fn get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<KeyValue>>> {
        let found = self.old.get(keys).await?.into_iter();
        let at_latest = |kv: Option<KeyValue>| kv.map(|kv| kv.at_latest(self.base));
        Ok(found.map(at_latest).collect())
    }

    async fn scan(&self, keys: KeyRange, size: PageSize, content: Content) -> Result<Page> {
        let page = self.old.scan(keys, size, content).await?;
        let kvs = page.kvs.into_iter().map(|kv| kv.at_latest(self.base));
        Ok(Page {
            kvs: kvs.collect(),
            ..page
        })
    }

    async fn count(&self, keys: KeyRange) -> Result<usize> {
        self.old.count(keys).await
    }

    async fn state(&self) -> Result<Option<OldState>> {
        self.old.state().await
    }

    async fn leases(&self) -> Result<Vec<OldLease>> {
        self.old.leases().await
    }

    async fn range(&self, request: Range) -> Result<Option<RangeReply>> {
        self.old.range(request).await
    }

    async fn watch(&self, request: Watch) -> Result<Option<Watching>> {
        self.old.watch(request).await
    }

    async fn foreign(&self, seen: Bookmark) -> Result<Option<ForeignChanges>> {
        self.old.foreign(seen).await
    }

    async fn mark(&self, before: Option<&Mark>) -> Result<Option<Mark>> {
        self.old.mark(before).await
    }

    async fn scan_reserved(&self, keys: KeyRange, size: PageSize) -> Result<Page> {
        self.old.scan_reserved(keys, size).await
    }

    fn fenceable(&self) -> Option<Arc<dyn NewStore>> {
        self.old.fenceable()
    }

    async fn astray(&self) -> String {
        self.old.astray().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::AsOld;
    use crate::store::memory::Memory;

    #[tokio::test]
    async fn what_a_store_can_tell_is_told_through_it_too() {
        let inner = AsOld::of(Arc::new(Memory::new())).await.unwrap();
        let state = inner.state().await.unwrap();
        let old = AtBase::new(Arc::new(inner), Revision(1));
        assert!(state.is_some());
        // Else every page of a list reads all keys behind it.
        assert_eq!(old.state().await.unwrap(), state);
    }
}

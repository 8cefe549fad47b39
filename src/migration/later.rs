//! An old store that is connected to when it is first needed. In the normal phase that may be
//! never: a proxy must come up then even if the old store is gone.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::OnceCell;

use crate::store::foreign::{Bookmark, ForeignChanges};
use crate::store::mark::Mark;
use crate::store::{
    NewStore, OldLease, OldState, OldStore, Page, PageSize, Result, StoreError, Watch, Watching,
};
use crate::types::{Content, KeyRange, KeyValue, Range, RangeReply, Revision};

/// Opens the old store.
pub type Opener = Box<dyn Fn() -> BoxFuture<'static, Result<Arc<dyn OldStore>>> + Send + Sync>;

/// An old store that is opened on demand, and as often as it takes.
pub struct OldLater {
    open: Opener,
    /// What the store has to be; see [`OldStore::identity`].
    expected: Option<String>,
    store: OnceCell<Arc<dyn OldStore>>,
}

impl OldLater {
    /// An old store that `open` opens. If it turns out to be another one than `expected`, every
    /// operation fails.
    #[must_use]
    pub fn new(open: Opener, expected: Option<String>) -> Self {
        Self {
            open,
            expected,
            store: OnceCell::new(),
        }
    }

    async fn store(&self) -> Result<&Arc<dyn OldStore>> {
        let open = || async {
            let store = (self.open)().await?;
            if let Some(expected) = &self.expected {
                check_identity(&*store, expected).await?;
            }
            Ok(store)
        };
        self.store.get_or_try_init(open).await
    }
}

/// Fails with [`StoreError::Broken`] if `old` is another store than the one that is expected.
pub(super) async fn check_identity(old: &dyn OldStore, expected: &str) -> Result<()> {
    if old.identity().await? == expected {
        return Ok(());
    }
    Err(StoreError::Broken(
        "the old store is another one than the one that this migration began with".into(),
    ))
}

#[async_trait]
impl OldStore for OldLater {
    async fn identity(&self) -> Result<String> {
        self.store().await?.identity().await
    }

    async fn revision(&self) -> Result<Revision> {
        self.store().await?.revision().await
    }

    async fn get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<KeyValue>>> {
        self.store().await?.get(keys).await
    }

    async fn scan(&self, keys: KeyRange, size: PageSize, content: Content) -> Result<Page> {
        self.store().await?.scan(keys, size, content).await
    }

    async fn state(&self) -> Result<Option<OldState>> {
        self.store().await?.state().await
    }

    async fn count(&self, keys: KeyRange) -> Result<usize> {
        self.store().await?.count(keys).await
    }

    fn fenceable(&self) -> Option<Arc<dyn NewStore>> {
        self.store.get()?.fenceable()
    }

    async fn leases(&self) -> Result<Vec<OldLease>> {
        self.store().await?.leases().await
    }

    async fn range(&self, request: Range) -> Result<Option<RangeReply>> {
        self.store().await?.range(request).await
    }

    async fn watch(&self, request: Watch) -> Result<Option<Watching>> {
        self.store().await?.watch(request).await
    }

    async fn foreign(&self, seen: Bookmark) -> Result<Option<ForeignChanges>> {
        self.store().await?.foreign(seen).await
    }

    async fn mark(&self, before: Option<&Mark>) -> Result<Option<Mark>> {
        self.store().await?.mark(before).await
    }

    async fn scan_reserved(&self, keys: KeyRange, size: PageSize) -> Result<Page> {
        self.store().await?.scan_reserved(keys, size).await
    }
}

//! An old store that is connected to when it is first needed. In the normal phase that may be
//! never: a proxy must come up then even if the old store is gone.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, OnceCell};

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
    opened: Notify,
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
            opened: Notify::new(),
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
        if let Some(store) = self.store.get() {
            return Ok(store);
        }
        let opened = self.store.get_or_try_init(open).await;
        opened.inspect(|_| self.opened.notify_waiters())
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

    /// It is not opened for this.
    async fn astray(&self) -> String {
        loop {
            let opened = self.opened.notified();
            if let Some(store) = self.store.get() {
                return store.astray().await;
            }
            opened.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;

    use super::*;
    use crate::store::AsOld;
    use crate::store::memory::Memory;

    /// A store that has died.
    struct Dead(AsOld);

    #[async_trait]
    impl OldStore for Dead {
        async fn identity(&self) -> Result<String> {
            self.0.identity().await
        }

        async fn revision(&self) -> Result<Revision> {
            self.0.revision().await
        }

        async fn get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<KeyValue>>> {
            self.0.get(keys).await
        }

        async fn scan(&self, keys: KeyRange, size: PageSize, content: Content) -> Result<Page> {
            self.0.scan(keys, size, content).await
        }

        async fn count(&self, keys: KeyRange) -> Result<usize> {
            self.0.count(keys).await
        }

        async fn leases(&self) -> Result<Vec<OldLease>> {
            self.0.leases().await
        }

        async fn astray(&self) -> String {
            "a part of it".into()
        }
    }

    #[tokio::test]
    async fn it_is_told_that_it_has_died_also_to_those_who_asked_before_it_was_opened() {
        let opener: Opener = Box::new(|| {
            Box::pin(async {
                let store = AsOld::new(Arc::new(Memory::new()), "old".into());
                Ok(Arc::new(Dead(store)) as Arc<dyn OldStore>)
            })
        });
        let later = OldLater::new(opener, None);
        let mut astray = std::pin::pin!(later.astray());
        assert!(astray.as_mut().now_or_never().is_none());
        later.revision().await.unwrap();
        let told = tokio::time::timeout(Duration::from_secs(30), astray).await;
        assert_eq!(told.expect("it is told"), "a part of it");
        assert_eq!(later.astray().now_or_never().unwrap(), "a part of it");
    }
}

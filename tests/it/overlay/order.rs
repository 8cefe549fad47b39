//! Fact 6: the old store is read before the new one, and the new one in one snapshot.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use segue::overlay::Overlay;
use segue::store::memory::Memory;
use segue::store::{
    AsOld, Guard, Line, NewStore as _, OldLease, OldStore, Page, PageSize, RecordTxn, Result, Store,
};
use segue::types::{Content, Epoch, KeyRange, KeyValue, Put, Range, Reserved, Revision};

const EPOCH: Epoch = Epoch(1);

/// An old store in which, at the moment before it is read, another member's write arrives: done in
/// the new store, and mirrored back into this one.
struct Mirrored {
    inner: AsOld,
    old: Arc<dyn Store>,
    new: Arc<dyn Store>,
}

impl Mirrored {
    async fn other_member_writes(&self) {
        self.new.put(Put::new("k", "new")).await.unwrap();
        self.old.put(Put::new("k", "new")).await.unwrap();
    }
}

#[async_trait]
impl OldStore for Mirrored {
    async fn identity(&self) -> Result<String> {
        self.inner.identity().await
    }

    async fn revision(&self) -> Result<Revision> {
        self.inner.revision().await
    }

    async fn get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<KeyValue>>> {
        self.other_member_writes().await;
        self.inner.get(keys).await
    }

    async fn scan(&self, keys: KeyRange, size: PageSize, content: Content) -> Result<Page> {
        self.other_member_writes().await;
        self.inner.scan(keys, size, content).await
    }

    async fn count(&self, keys: KeyRange) -> Result<usize> {
        self.inner.count(keys).await
    }

    async fn leases(&self) -> Result<Vec<OldLease>> {
        self.inner.leases().await
    }
}

#[tokio::test]
async fn a_read_never_mixes_the_old_store_of_later_with_the_new_one_of_earlier() {
    for keys in [KeyRange::One("k".into()), KeyRange::all()] {
        let (old, new) = (Arc::new(Memory::default()), Arc::new(Memory::default()));
        old.put(Put::new("k", "old")).await.unwrap();
        let base = old.status().await.unwrap().revision;
        let line = Some(Some(Line {
            epoch: EPOCH,
            claims: true,
            base,
        }));
        assert!(
            new.write_records(RecordTxn {
                line,
                ..RecordTxn::default()
            })
            .await
            .unwrap()
        );
        let guarded = new.guarded(Guard::Epoch {
            epoch: EPOCH,
            claims: true,
        });
        let inner = AsOld::new(old.clone(), "old".into());
        let mirrored = Mirrored {
            inner,
            old,
            new: guarded.clone(),
        };
        let overlay = Overlay::new(Arc::new(mirrored), guarded.clone(), Reserved::default());

        let seen = overlay.range(Range::of(keys.clone())).await.unwrap();
        let view = guarded.range(Range::of(keys)).await.unwrap();
        assert_eq!(seen, view, "the answer is not the view at its own revision");
    }
}

//! What a page of a list costs the old store, and that its count is right.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use segue::overlay::Overlay;
use segue::store::memory::Memory;
use segue::store::{
    AsOld, Guard, NewStore as _, OldLease, OldState, OldStore, Page, PageSize, Result, Store,
};
use segue::types::{Content, Delete, KeyRange, KeyValue, Put, Range, Reserved, Revision};

use crate::contract::dsl::{guard, line, set_line};

const KEYS: usize = 2_000;

/// An old store that counts the pairs that it answers and looks for.
struct Counted {
    inner: AsOld,
    pairs: AtomicUsize,
    /// The mirror writes here, once, before keys are looked for.
    mirror: Mutex<Option<Arc<dyn Store>>>,
}

#[async_trait]
impl OldStore for Counted {
    async fn identity(&self) -> Result<String> {
        self.inner.identity().await
    }

    async fn revision(&self) -> Result<Revision> {
        self.inner.revision().await
    }

    async fn get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<KeyValue>>> {
        self.pairs.fetch_add(keys.len(), Ordering::Relaxed);
        let mirror = self.mirror.lock().unwrap().take();
        if let Some(mirror) = mirror {
            mirror.put(Put::new("k1000x", "new")).await.unwrap();
        }
        self.inner.get(keys).await
    }

    async fn scan(&self, keys: KeyRange, size: PageSize, content: Content) -> Result<Page> {
        let page = self.inner.scan(keys, size, content).await?;
        self.pairs.fetch_add(page.kvs.len(), Ordering::Relaxed);
        Ok(page)
    }

    async fn count(&self, keys: KeyRange) -> Result<usize> {
        self.inner.count(keys).await
    }

    async fn state(&self) -> Result<Option<OldState>> {
        self.inner.state().await
    }

    async fn leases(&self) -> Result<Vec<OldLease>> {
        self.inner.leases().await
    }
}

/// A migration from [`KEYS`] keys, of which a client has changed one and deleted one, and made another.
async fn changed() -> (Arc<Memory>, Arc<Counted>, Overlay) {
    let (old, new) = (Arc::new(Memory::default()), Arc::new(Memory::default()));
    let source = old.guarded(Guard::None);
    for number in 0..KEYS {
        let put = Put::new(format!("k{number:04}"), "old");
        source.put(put).await.unwrap();
    }
    let base = source.status().await.unwrap().revision;
    set_line(&*new, Some(segue::store::Line { base, ..line(1) })).await;
    let counted = Arc::new(Counted {
        inner: AsOld::of(old.clone()).await.unwrap(),
        pairs: AtomicUsize::new(0),
        mirror: Mutex::default(),
    });
    let overlay = Overlay::new(counted.clone(), new.guarded(guard(1)), Reserved::default());
    overlay.put(Put::new("k0900", "new")).await.unwrap();
    overlay.put(Put::new("k1000x", "new")).await.unwrap();
    let delete = Delete {
        keys: KeyRange::One("k1100".into()),
        prev_kv: false,
    };
    overlay.delete(delete).await.unwrap();
    (old, counted, overlay)
}

#[tokio::test]
async fn a_page_asks_the_old_store_for_its_pairs_and_for_what_is_claimed() {
    const LIMIT: usize = 100;
    let (_, counted, overlay) = changed().await;
    let mut rest = Some(KeyRange::prefix("k"));
    let mut seen = 0;
    while let Some(keys) = rest {
        counted.pairs.store(0, Ordering::Relaxed);
        let page = Range {
            limit: LIMIT,
            ..Range::of(keys.clone())
        };
        let reply = overlay.range(page).await.unwrap().reply;
        assert_eq!(reply.count, KEYS - seen);
        let asked = counted.pairs.load(Ordering::Relaxed);
        // Where a whiteout is among the first pairs, more are needed.
        assert!(asked <= 6 * LIMIT, "{asked} pairs behind {seen}");
        seen += reply.kvs.len();
        let last = reply.kvs.last().filter(|_| reply.more);
        rest = last.and_then(|last| keys.after(&last.key));
    }
    assert_eq!(seen, KEYS);
    counted.pairs.store(0, Ordering::Relaxed);
    let count = Range {
        content: Content::CountOnly,
        ..Range::of(KeyRange::all())
    };
    assert_eq!(overlay.range(count).await.unwrap().reply.count, KEYS);
    assert!(counted.pairs.load(Ordering::Relaxed) <= 3);
}

#[tokio::test]
async fn what_the_mirror_writes_while_keys_are_counted_is_not_counted_twice() {
    let (old, counted, overlay) = changed().await;
    *counted.mirror.lock().unwrap() = Some(old.guarded(Guard::None));
    let page = Range {
        limit: 10,
        ..Range::of(KeyRange::prefix("k"))
    };
    assert_eq!(overlay.range(page).await.unwrap().reply.count, KEYS);
    assert!(counted.mirror.lock().unwrap().is_none(), "it has written");
}

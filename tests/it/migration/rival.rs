//! A foreign change that is overtaken by a client on its way into the new store.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use segue::store::foreign::{Bookmark, ForeignBatch, ForeignChange, ForeignChanges};
use segue::store::memory::Memory;
use segue::store::{AsOld, NewStore as _, OldLease, OldStore, Page, PageSize, Result};
use segue::types::{Change, Content, Event, KeyRange, KeyValue, Revision};
use tokio::sync::watch;

use super::fleet::{Stores, key, put};
use super::picky::{Picky, Taste};
use crate::support::eventually;

/// An old store in which somebody writes past the proxies when the test says so.
struct Meddled {
    inner: AsOld,
    change: Event,
    now: watch::Sender<bool>,
}

#[async_trait]
impl OldStore for Meddled {
    async fn identity(&self) -> Result<String> {
        self.inner.identity().await
    }

    async fn revision(&self) -> Result<Revision> {
        self.inner.revision().await
    }

    async fn get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<KeyValue>>> {
        self.inner.get(keys).await
    }

    async fn scan(&self, keys: KeyRange, size: PageSize, content: Content) -> Result<Page> {
        self.inner.scan(keys, size, content).await
    }

    async fn count(&self, keys: KeyRange) -> Result<usize> {
        self.inner.count(keys).await
    }

    async fn leases(&self) -> Result<Vec<OldLease>> {
        self.inner.leases().await
    }

    async fn foreign(&self, seen: Bookmark) -> Result<Option<ForeignChanges>> {
        let through = self.change.revision();
        if seen.through >= through {
            return Ok(Some(stream::pending().boxed()));
        }
        let batch = ForeignBatch {
            changes: vec![ForeignChange::Key(self.change.clone())],
            through,
            ..ForeignBatch::default()
        };
        let mut now = self.now.subscribe();
        let first = stream::once(async move {
            now.wait_for(|now| *now).await.unwrap();
            Ok(batch)
        });
        Ok(Some(first.chain(stream::pending()).boxed()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_faster_than_a_foreign_change_is_not_undone() {
    let source = Arc::new(Memory::new());
    let contested = "key/000003";
    for number in 0..10 {
        put(&*source, &key(number), "old").await;
    }
    let inner = AsOld::new(source.clone(), source.identity().await.unwrap());
    let before = inner.get(vec![contested.into()]).await.unwrap().remove(0);
    let revision = Revision(100);
    let after = before.clone().map(|kv| KeyValue {
        value: "foreign".into(),
        mod_revision: revision,
        version: kv.version + 1,
        ..kv
    });
    let change = Event {
        change: Change::Put(after.unwrap()),
        prev: before,
    };
    let now = watch::Sender::new(false);
    let taste = Taste {
        pairs: usize::MAX,
        values: false,
        rival: Some(contested),
        door: None,
    };
    let stores = Stores {
        old: Arc::new(Meddled {
            inner,
            change,
            now: now.clone(),
        }),
        source,
        new: Arc::new(Picky(Memory::new(), taste)),
    };
    let follow = |options: &mut segue::migration::Options| options.follow = true;
    let member = stores.join_as("a", follow).await.unwrap();
    member.until_verified().await;
    now.send_replace(true);
    let told = eventually("the change is seen", async || {
        let foreign = member.controller.foreign();
        if foreign.changes == 1 {
            Ok(foreign)
        } else {
            Err(foreign)
        }
    })
    .await;
    assert_eq!((told.followed, told.conflicts), (0, 1));
    let content = stores.content().await;
    let value = content.iter().find(|kv| kv.key == contested);
    assert_eq!(value.unwrap().value, "by a client");
}

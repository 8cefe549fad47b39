//! An old store that meets faults: what is told of them, and that everything goes on behind them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use segue::store::foreign::{Bookmark, ForeignBatch, ForeignChanges};
use segue::store::memory::Memory;
use segue::store::{AsOld, NewStore as _, OldLease, OldStore, Page, Result, StoreError};
use segue::types::{Content, KeyRange, KeyValue, Revision};

use super::fleet::{Stores, key, put};
use crate::support::eventually;

/// The faults.
#[derive(Default)]
struct Faults {
    /// Whoever reads it meets a fault in the program.
    reads: AtomicBool,
    /// It cannot tell of foreign changes.
    foreign: AtomicBool,
}

struct Faulty {
    inner: AsOld,
    faults: Arc<Faults>,
}

#[async_trait]
impl OldStore for Faulty {
    async fn identity(&self) -> Result<String> {
        self.inner.identity().await
    }

    async fn revision(&self) -> Result<Revision> {
        self.inner.revision().await
    }

    async fn get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<KeyValue>>> {
        self.inner.get(keys).await
    }

    async fn scan(&self, keys: KeyRange, limit: usize, content: Content) -> Result<Page> {
        assert!(
            !self.faults.reads.load(Ordering::SeqCst),
            "a fault, on purpose"
        );
        self.inner.scan(keys, limit, content).await
    }

    async fn count(&self, keys: KeyRange) -> Result<usize> {
        self.inner.count(keys).await
    }

    async fn leases(&self) -> Result<Vec<OldLease>> {
        self.inner.leases().await
    }

    async fn foreign(&self, seen: Bookmark) -> Result<Option<ForeignChanges>> {
        let batch = if self.faults.foreign.load(Ordering::SeqCst) {
            Err(StoreError::Broken("its history is gone".into()))
        } else {
            Ok(ForeignBatch {
                through: seen.through,
                ..ForeignBatch::default()
            })
        };
        let ends = batch.is_err();
        let first = stream::once(async { batch });
        Ok(Some(if ends {
            first.boxed()
        } else {
            first.chain(stream::pending()).boxed()
        }))
    }
}

async fn faulty() -> (Stores, Arc<Faults>) {
    let source = Arc::new(Memory::new());
    for number in 0..10 {
        put(&*source, &key(number), "old").await;
    }
    let faults = Arc::<Faults>::default();
    let old = Faulty {
        inner: AsOld::new(source.clone(), source.identity().await.unwrap()),
        faults: faults.clone(),
    };
    let stores = Stores {
        old: Arc::new(old),
        source,
        new: Arc::new(Memory::new()),
    };
    (stores, faults)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_that_ends_by_a_fault_says_so_and_is_begun_again() {
    let (stores, faults) = faulty().await;
    let member = stores.join("a").await.unwrap();
    member.until_verified().await;
    faults.reads.store(true, Ordering::SeqCst);
    let number = member.controller.verify();
    eventually("it is told, and shown as under way no more", async || {
        let told = member.controller.trouble().unwrap_or_default();
        let under_way = member.controller.verifying();
        if told.contains("the verification has ended by a fault") && under_way.is_none() {
            Ok(())
        } else {
            Err((told, under_way))
        }
    })
    .await;
    faults.reads.store(false, Ordering::SeqCst);
    eventually("it is done, and nothing more is told", async || {
        let done = member.controller.verifications_done();
        let told = member.controller.trouble();
        if done >= number && told.is_none() {
            Ok(())
        } else {
            Err((done, told))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_store_that_cannot_tell_of_foreign_changes_any_more_is_told_of() {
    let (stores, faults) = faulty().await;
    faults.foreign.store(true, Ordering::SeqCst);
    let member = stores.join("a").await.unwrap();
    member.until_verified().await;
    let trouble = async |part: &'static str| {
        eventually(part, async || {
            let told = member.controller.trouble().unwrap_or_default();
            if told.contains(part) && told.is_empty() == part.is_empty() {
                Ok(())
            } else {
                Err(told)
            }
        })
        .await;
    };
    trouble("its history is gone").await;
    faults.foreign.store(false, Ordering::SeqCst);
    trouble("").await;
}

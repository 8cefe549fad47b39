//! An old store that meets faults: what is told of them, and that everything goes on behind them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use segue::migration::OpenError;
use segue::migration::status::Status;
use segue::store::foreign::{Bookmark, ForeignBatch, ForeignChanges};
use segue::store::memory::Memory;
use segue::store::{AsOld, NewStore as _, OldLease, OldStore, Page, PageSize, Result, StoreError};
use segue::types::{Content, KeyRange, KeyValue, LeaseId, Revision};

use super::fleet::{Stores, get, grant, key, put, put_leased};
use crate::support::eventually;

/// The faults.
#[derive(Default)]
struct Faults {
    /// Whoever reads it meets a fault in the program.
    reads: AtomicBool,
    /// It cannot tell of foreign changes.
    foreign: AtomicBool,
    /// [`UNREADABLE`] cannot be read, though it is named as a lease's.
    pair: AtomicBool,
    /// Its revisions are at their end.
    exhausted: AtomicBool,
}

const UNREADABLE: usize = 3;

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
        if self.faults.exhausted.load(Ordering::SeqCst) {
            return Ok(Revision(i64::MAX - 1));
        }
        self.inner.revision().await
    }

    async fn get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<KeyValue>>> {
        if self.faults.pair.load(Ordering::SeqCst) && keys.iter().any(|one| *one == key(UNREADABLE))
        {
            return Err(StoreError::Broken("a key cannot be read".into()));
        }
        self.inner.get(keys).await
    }

    async fn scan(&self, keys: KeyRange, size: PageSize, content: Content) -> Result<Page> {
        assert!(
            !self.faults.reads.load(Ordering::SeqCst),
            "a fault, on purpose"
        );
        let mut page = self.inner.scan(keys, size, content).await?;
        if self.faults.pair.load(Ordering::SeqCst) {
            let unreadable = page.kvs.extract_if(.., |kv| kv.key == key(UNREADABLE));
            let reject = |kv: KeyValue| (kv.key, "it cannot be read".to_owned());
            page.rejects.extend(unreadable.map(reject));
        }
        Ok(page)
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

#[tokio::test(flavor = "multi_thread")]
async fn a_leased_key_that_cannot_be_read_is_a_reject_and_the_migration_opens() {
    let (stores, faults) = faulty().await;
    grant(&*stores.source, 77, 600).await;
    for number in [UNREADABLE, UNREADABLE + 1] {
        put_leased(&*stores.source, &key(number), 77).await;
    }
    faults.pair.store(true, Ordering::SeqCst);
    let member = stores.join("a").await.unwrap();
    let copied = |status: &Status| status.stage == "open" && status.backfill_complete;
    let status = member.until("copied", copied).await;
    assert_eq!(status.rejects, 1);
    let rejects = member.controller.rejects().await.unwrap();
    assert_eq!(rejects[0].key, key(UNREADABLE));
    let found = get(&*member.store(), &key(UNREADABLE + 1)).await.unwrap();
    assert_eq!(found.lease, LeaseId(77));
    // Once it can be read it is copied, with its lease.
    faults.pair.store(false, Ordering::SeqCst);
    member.controller.verify();
    member.until_verified().await;
    let found = get(&*member.store(), &key(UNREADABLE)).await.unwrap();
    assert_eq!(found.lease, LeaseId(77));
    member.kill().await;
}

#[tokio::test]
async fn a_migration_that_revisions_would_run_out_in_does_not_begin() {
    let (stores, faults) = faulty().await;
    faults.exhausted.store(true, Ordering::SeqCst);
    let error = stores.join("a").await.err().expect("it is refused");
    let text = error.to_string();
    assert!(matches!(error, OpenError::Exhausted(_)), "{text}");
    assert!(text.contains("9223372036854775806"), "{text}");
    assert!(stores.new.is_empty().await.unwrap());
}

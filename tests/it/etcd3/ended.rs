//! Leases that end in the old store behind its fence, before they are copied.

use std::sync::Arc;

use segue::migration::held::Leases;
use segue::migration::ledger::Ledger;
use segue::migration::opening::copy_leased;
use segue::store::memory::Memory;
use segue::store::{Guard, Line, NewStore, RecordTxn, StoreUrl, open_old};
use segue::types::{Epoch, Grant, KeyRange, LeaseId, Put, Range, Reserved};

use super::open;
use crate::support::{Etcd, eventually};

#[tokio::test]
async fn a_lease_that_ends_behind_the_fence_ends_once_more_in_the_new_store() {
    let etcd = Etcd::start().await;
    let store = open(&etcd).await.guarded(Guard::None);
    for (id, key) in [(77, "lock/first"), (78, "lock/second")] {
        let (id, ttl_s) = (LeaseId(id), 600);
        let grant = Grant {
            id: Some(id),
            ttl_s,
        };
        store.grant(grant).await.unwrap();
        let put = Put {
            lease: Some(id),
            ..Put::new(key, "held")
        };
        store.put(put).await.unwrap();
    }
    let all = Range::of(KeyRange::all());
    let before = store.range(all.clone()).await.unwrap().reply.kvs;
    let url: StoreUrl = etcd.url().parse().unwrap();
    let old = open_old(&url, &Reserved::default()).await.unwrap();
    let base = old.revision().await.unwrap();
    // It has the same effect as if its time were over.
    store.revoke(LeaseId(77)).await.unwrap();

    let new: Arc<dyn NewStore> = Arc::new(Memory::new());
    let (epoch, claims) = (Epoch(1), true);
    let line = Line {
        epoch,
        claims,
        base,
    };
    let txn = RecordTxn {
        line: Some(Some(line)),
        ..RecordTxn::default()
    };
    assert!(new.write_records(txn).await.unwrap());
    let guarded = new.guarded(Guard::Epoch { epoch, claims });
    let ledger = Ledger::new(new.clone());
    let leases = Leases::default();
    let copied = copy_leased(&ledger, &old, &guarded, base, &leases);
    assert_eq!(copied.await.unwrap(), 2);
    let there = guarded.range(all.clone()).await.unwrap();
    assert_eq!(there.reply.kvs, before);
    eventually("it ends", async || {
        let now = guarded.range(all.clone()).await.unwrap();
        let ended = now.reply.kvs == before[1..] && now.revision == base.next();
        if ended { Ok(()) } else { Err(now) }
    })
    .await;
    let left = guarded.leases().await.unwrap().reply;
    assert_eq!(left, [LeaseId(78)]);
}

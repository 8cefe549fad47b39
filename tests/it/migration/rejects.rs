//! Keys that cannot be migrated: however many they are, and whatever comes of the migration.

use std::sync::Arc;

use futures_util::future::join_all;
use segue::migration::status::Status;
use segue::store::memory::Memory;
use segue::store::{AsOld, OldStore, open_new, open_old};
use segue::types::{LeaseId, Put, Reserved};

use super::fleet::{Member, Stores, get, grant, put, put_leased};
use super::picky::{Picky, Taste};
use super::rollback::{delete, roll_back};
use crate::support::tables::Home;
use crate::support::tables::Kind::Sqlite;
use crate::support::{Etcd, V2, eventually};

/// From `old` to an etcd.
async fn to_etcd(old: Arc<dyn OldStore>, etcd: &Etcd) -> Stores {
    let url = etcd.url().parse().unwrap();
    Stores {
        old,
        source: Arc::new(Memory::new()),
        new: open_new(&url, &Reserved::default()).await.unwrap(),
    }
}

async fn verify(member: &Member) {
    let number = member.controller.verify();
    eventually("it is verified", async || {
        if member.controller.verifications_done() >= number {
            Ok(())
        } else {
            Err(member.controller.trouble())
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_rejects_than_an_etcd_takes_at_once_do_not_stop_the_backfill() {
    // All of them are in one page of an etcd v2.
    const REJECTS: usize = 140;
    let (old, etcd) = tokio::join!(Etcd::start_v2(), Etcd::start());
    let v2 = V2::of(&old);
    let name = |number: usize| format!("/a{number:04}");
    let unreadable = (0..REJECTS).map(|number| {
        let v2 = v2.clone();
        async move { v2.set(name(number).as_bytes(), b"\xff", "").await }
    });
    join_all(unreadable).await;
    v2.put("/b", "old").await;
    let url = old.v2_url().parse().unwrap();
    let old = open_old(&url, &Reserved::default()).await.unwrap();
    let member = to_etcd(old, &etcd).await.join("a").await.unwrap();
    let copied = |status: &Status| status.stage == "open" && status.backfill_complete;
    let status = member.until("copied", copied).await;
    assert_eq!(status.rejects, REJECTS as u64);
    let store = member.store();
    assert_eq!(get(&*store, "/b").await.unwrap().value, "old");

    // What is written anew, or deleted, is none any more.
    put(&*store, &name(0), "new").await;
    delete(&*store, &name(1)).await;
    assert_eq!(get(&*store, &name(0)).await.unwrap().value, "new");
    assert_eq!(get(&*store, &name(1)).await, None);
    verify(&member).await;
    assert_eq!(member.status().await.rejects, REJECTS as u64 - 2);
    member.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_without_a_key_does_not_stop_the_verification() {
    let (home, etcd) = tokio::join!(Home::new(Sqlite), Etcd::start());
    home.run(
        "CREATE TABLE kv (k TEXT, v TEXT); \
         INSERT INTO kv VALUES (NULL, 'nowhere'), ('b', 'old')",
    )
    .await;
    let old = home.open("kv", "key=k&value=v").await;
    let member = to_etcd(old, &etcd).await.join("a").await.unwrap();
    let copied = |status: &Status| status.stage == "open" && status.backfill_complete;
    member.until("copied", copied).await;
    verify(&member).await;
    let rejects = member.controller.rejects().await.unwrap();
    assert_eq!(rejects.len(), 1, "{rejects:?}");
    assert_eq!(rejects[0].key, "");
    member.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leased_key_that_the_new_store_could_not_take_is_there_on_the_way_back() {
    let source = Arc::new(Memory::new());
    let taste = Taste::FOR_VALUES;
    let stores = Stores {
        old: Arc::new(AsOld::of(source.clone()).await.unwrap()),
        source,
        new: Arc::new(Picky(Memory::new(), taste)),
    };
    for lease in [77, 88] {
        grant(&*stores.source, lease, 600).await;
        let refused = Put {
            lease: Some(LeaseId(lease)),
            ..Put::new(format!("refused/{lease}"), "unpalatable")
        };
        stores.source.put(refused).await.unwrap();
    }
    put_leased(&*stores.source, "taken", 77).await;
    let before = get(&*stores.source, "refused/77").await.unwrap();
    let member = stores.join("a").await.unwrap();
    let copied = |status: &Status| status.stage == "open" && status.backfill_complete;
    let status = member.until("copied", copied).await;
    assert_eq!(status.rejects, 2);
    let store = member.store();
    put(&*store, "made in the new store", "1").await;
    // A lease that ends takes its keys with it.
    store.revoke(LeaseId(88)).await.unwrap();
    roll_back(&member).await;
    assert_eq!(get(&*store, "refused/77").await, Some(before));
    assert_eq!(get(&*store, "refused/88").await, None);
    let lease = store.time_to_live(LeaseId(77), true).await.unwrap().reply;
    let mut keys = lease.expect("it lives on").keys;
    keys.sort_unstable();
    assert_eq!(keys, ["refused/77", "taken"]);
    member.kill().await;
}

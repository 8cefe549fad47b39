//! A row that the old store could not give, and that somebody repairs there while clients work.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use segue::store::memory::Memory;
use segue::store::{Guard, NewStore, Store, Watch, WatchItem};
use segue::types::KeyRange;

use super::fleet::{Stores, get, put};
use crate::etcd3::open;
use crate::support::tables::{Home, Kind};
use crate::support::{Etcd, eventually};

async fn revision_of(store: &dyn Store) -> i64 {
    store.status().await.unwrap().revision.0
}

/// It takes the application's next number, which is far ahead of what clients have seen.
async fn from_a_table_to(new: Arc<dyn NewStore>) {
    let home = Home::new(Kind::Sqlite).await;
    home.run(
        "CREATE TABLE kv (k TEXT, v TEXT, r INTEGER);\n\
         INSERT INTO kv VALUES ('a', '1', 5), ('bad', NULL, 6), ('worse', NULL, 6), ('z', '2', 7)",
    )
    .await;
    let stores = Stores {
        old: home.open("kv", "key=k&value=v&revision=r").await,
        ..Stores::to(new).await
    };
    let member = stores.join("a").await.unwrap();
    member.until("rejected", |status| status.rejects == 2).await;
    home.run("UPDATE kv SET v = 'good', r = 5000 WHERE v IS NULL")
        .await;

    let store = member.store();
    let seen = get(&*store, "bad").await.expect("it can be read");
    assert_eq!((&*seen.value, seen.version), (&b"good"[..], 1));
    assert!(seen.create_revision <= seen.mod_revision);
    assert!(
        seen.mod_revision.0 <= revision_of(&*store).await,
        "{seen:?}"
    );
    // Copied, it shows the same.
    member.controller.verify();
    member.until_verified().await;
    assert_eq!(get(&*store, "bad").await, Some(seen.clone()));

    let behind = Some(seen.mod_revision.next());
    let watch = Watch::of(KeyRange::One("bad".into()), behind);
    let mut watching = store.watch(watch).await.unwrap();
    let changed = put(&*store, "bad", "changed").await;
    assert!(changed > seen.mod_revision, "{changed:?} after {seen:?}");
    let told = async {
        loop {
            match watching.items.next().await {
                Some(WatchItem::Events(batch)) => return batch.revision,
                Some(WatchItem::Progress(_) | WatchItem::Epoch(_)) => {}
                end => panic!("{end:?}"),
            }
        }
    };
    let told = tokio::time::timeout(Duration::from_secs(20), told).await;
    assert_eq!(told.expect("it is told"), changed);
    let now = get(&*store, "bad").await.unwrap();
    assert_eq!(
        (now.create_revision, now.version),
        (seen.create_revision, 2)
    );
    member.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repaired_row_is_not_newer_than_what_clients_have_seen() {
    from_a_table_to(Arc::new(Memory::new())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repaired_row_is_not_newer_in_an_etcd_either() {
    let etcd = Etcd::start().await;
    from_a_table_to(open(&etcd).await).await;
}

/// The same where somebody writes past the proxies to a store that was not fenced.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_past_the_proxies_is_not_newer_either() {
    let stores = Stores::in_memory().await;
    stores.fill(3).await;
    let member = stores
        .join_as("a", |options| options.control.paused = true)
        .await
        .unwrap();
    member.until("open", |status| status.stage == "open").await;
    for _ in 0..10 {
        put(&*stores.source, "late", "x").await;
    }
    let seen = eventually("it is seen", async || {
        get(&*member.store(), "late").await.ok_or(())
    })
    .await;
    let plain = stores.new.guarded(Guard::None);
    assert!(
        seen.mod_revision.0 <= revision_of(&*plain).await,
        "{seen:?}"
    );
    assert!(seen.create_revision <= seen.mod_revision);
    let changed = put(&*member.store(), "late", "changed").await;
    assert!(changed > seen.mod_revision);
    member.kill().await;
}

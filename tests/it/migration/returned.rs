//! What a migration that was rolled back leaves to the next one, and to those who come later.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use segue::migration::OldLater;
use segue::migration::controller::View;
use segue::migration::phase::Phase;
use segue::migration::switch::Request;
use segue::store::memory::Memory;
use segue::store::sql::{self, sqlite};
use segue::store::{AsOld, NewStore, StoreError, Watch, WatchItem, open_new};
use segue::types::{Change, Delete, KeyRange, Op, Put, Range, Reserved, Revision, Txn};

use super::fleet::{Member, Stores, get, key, passthrough, put};
use super::picky::{Picky, Taste};
use super::rollback::roll_back;
use crate::support::Etcd;

/// From a store in a file, which there is a way back to.
async fn from_file(dir: &Path, new: Arc<dyn NewStore>) -> Stores {
    let file = dir.join("old.db");
    let source = sqlite::open(file, sql::Options::default()).await.unwrap();
    Stores {
        old: Arc::new(AsOld::of(source.clone()).await.unwrap()),
        source,
        new,
    }
}

/// Asks by the switch key, as an operator does.
async fn switch(member: &Member, to: Phase) {
    let request = Request {
        to,
        when_ready: true,
    };
    member.controller.switch(request).await.unwrap();
    member.until_phase(to).await;
}

/// Waits until the member has looked at the records so many times more.
async fn looks(member: &Member, count: usize) {
    let seen = AtomicUsize::new(0);
    let enough = |_: &_| seen.fetch_add(1, Ordering::Relaxed) >= count;
    member.controller.wait_until(enough).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_event_tells_of_the_emptying_of_the_new_store() {
    let dir = tempfile::tempdir().unwrap();
    let new = dir.path().join("new.db");
    let new = sqlite::open(new, sql::Options::default()).await.unwrap();
    let stores = from_file(dir.path(), new).await;
    stores.fill(5).await;
    let member = stores.join_as("a", passthrough).await.unwrap();
    member.controller.ready().await;
    let store = member.store();
    switch(&member, Phase::Migration).await;
    member.until_verified().await;
    roll_back(&member).await;

    // Nobody writes in between, so the second migration begins where the first one did.
    let watch = Watch::of(KeyRange::prefix("key/"), None);
    let mut watching = store.watch(watch).await.unwrap();
    switch(&member, Phase::Migration).await;
    member.until_verified().await;
    let last = put(&*store, "key/last", "").await;
    let mut seen = Vec::new();
    while seen.last() != Some(&("key/last".into(), last)) {
        match watching.items.next().await.expect("no end") {
            WatchItem::Events(batch) => {
                for event in &batch.events {
                    assert!(matches!(event.change, Change::Put(_)), "{event:?}");
                    seen.push((event.key().clone(), batch.revision));
                }
            }
            WatchItem::Progress(_) | WatchItem::Epoch(_) => {}
            WatchItem::End(end) => panic!("{end:?} after {seen:?}"),
        }
    }
    assert_eq!(seen.len(), 1, "{seen:?}");
    let past = Range {
        at: Some(Revision(last.0 - 1)),
        ..Range::of(KeyRange::prefix("key/"))
    };
    let past = store.range(past).await.unwrap().reply;
    assert_eq!((past.count, past.kvs.len()), (5, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_joins_behind_a_rollback_takes_no_earlier_request_for_a_new_one() {
    let etcd = Etcd::start().await;
    let url = etcd.url().parse().unwrap();
    let stores = Stores {
        new: open_new(&url, &Reserved::default()).await.unwrap(),
        ..Stores::both_ways().await
    };
    stores.fill(50).await;
    let first = stores.join_as("a", passthrough).await.unwrap();
    first.controller.ready().await;
    switch(&first, Phase::Migration).await;
    first.until_verified().await;
    roll_back(&first).await;
    let before = first.status().await;
    first.kill().await;

    let second = stores.join_as("b", passthrough).await.unwrap();
    second.controller.ready().await;
    let emptied = |view: &View| view.owner.is_some() && !view.state.value.leftovers;
    second.controller.wait_until(emptied).await;
    looks(&second, 20).await;
    let after = second.status().await;
    assert_eq!(after.phase, "passthrough");
    assert_eq!(after.switch, before.switch);

    // Both see the same request, and it is decided once.
    let third = stores.join_as("c", passthrough).await.unwrap();
    switch(&third, Phase::Migration).await;
    let decided = third.status().await.switch;
    looks(&second, 20).await;
    looks(&third, 20).await;
    assert_eq!(second.status().await.switch, decided);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revision_with_more_keys_than_a_database_takes_at_once_is_mirrored() {
    const KEYS: usize = 10_001;
    let dir = tempfile::tempdir().unwrap();
    let stores = from_file(dir.path(), Arc::new(Memory::new())).await;
    for numbers in [0..KEYS / 2, KEYS / 2..KEYS] {
        let puts = numbers.map(|number| Op::Put(Put::new(key(number), "old")));
        stores.source.txn(Txn::of(puts.collect())).await.unwrap();
    }
    let member = stores.join("a").await.unwrap();
    member.until_verified().await;
    let all = Delete {
        keys: KeyRange::all(),
        prev_kv: false,
    };
    let deleted = member.store().delete(all).await.unwrap().reply.deleted;
    assert_eq!(deleted, KEYS);
    roll_back(&member).await;
    assert_eq!(stores.old_content().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_came_while_the_old_store_was_away_serves_from_it_behind_a_rollback() {
    let stores = Stores::both_ways().await;
    stores.fill(10).await;
    let first = stores.join("a").await.unwrap();
    first.until_verified().await;
    switch(&first, Phase::Normal).await;

    let identity = stores.old.identity().await.unwrap();
    let (old, away) = (stores.old.clone(), Arc::new(AtomicBool::new(true)));
    let is_away = away.clone();
    let open = Box::new(move || {
        let found = if is_away.load(Ordering::Relaxed) {
            Err(StoreError::Unavailable("it is away".into()))
        } else {
            Ok(old.clone())
        };
        std::future::ready(found).boxed()
    });
    let later = Stores {
        old: Arc::new(OldLater::new(open, Some(identity))),
        ..stores.clone()
    };
    let second = later.join("b").await.unwrap();
    // Not by its status, which would have it look at the old store.
    second.controller.ready().await;
    away.store(false, Ordering::Relaxed);
    roll_back(&first).await;
    let read = tokio::time::timeout(Duration::from_secs(5), get(&*second.store(), &key(1))).await;
    assert_eq!(read.expect("it serves").unwrap().value, "old");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_rejected_is_no_obstacle_on_the_way_back() {
    let taste = Taste::FOR_VALUES;
    let stores = Stores {
        new: Arc::new(Picky(Memory::new(), taste)),
        ..Stores::both_ways().await
    };
    stores.fill(20).await;
    put(&*stores.source, &key(7), "unpalatable").await;
    let member = stores.join("a").await.unwrap();
    member
        .until("complete", |status| {
            status.backfill_complete && status.rejects == 1
        })
        .await;
    put(&*member.store(), &key(20), "new").await;
    roll_back(&member).await;
    assert_eq!(stores.old_content().await.len(), 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_old_store_is_refused_in_every_phase_that_may_write_to_it() {
    let stores = Stores::both_ways().await;
    stores.fill(10).await;
    let member = stores.join("a").await.unwrap();
    let other = Stores {
        new: stores.new.clone(),
        ..Stores::both_ways().await
    };
    let refused = async |when| {
        let joined = other.join("b").await.map(drop).unwrap_err();
        assert!(
            matches!(joined, segue::migration::OpenError::OtherOldStore),
            "{when}: {joined}"
        );
    };
    member.until_verified().await;
    refused("migration").await;
    switch(&member, Phase::Normal).await;
    refused("normal").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_another_reserved_prefix_is_refused() {
    let stores = Stores::in_memory().await;
    let _first = stores.join("a").await.unwrap();
    let other = |options: &mut segue::migration::Options| options.reserved = Reserved::new("s/");
    let refused = stores.join_as("b", other).await.map(drop).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("give --reserved-prefix segue/"),
        "{refused}"
    );
    let same = stores.join("b").await;
    assert!(same.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn large_neighbours_are_copied_up_in_as_many_pieces_as_it_takes() {
    const KEYS: usize = 600;
    let dir = tempfile::tempdir().unwrap();
    let new = dir.path().join("new.db");
    let stores = Stores {
        new: sqlite::open(new, sql::Options::default()).await.unwrap(),
        ..Stores::both_ways().await
    };
    for number in 0..KEYS {
        put(&*stores.source, &key(number), &"x".repeat(68_000)).await;
    }
    let paused = |options: &mut segue::migration::Options| options.control.paused = true;
    let member = stores.join_as("a", paused).await.unwrap();
    let all = Delete {
        keys: KeyRange::all(),
        prev_kv: false,
    };
    let deleted = member.store().delete(all).await.unwrap().reply.deleted;
    assert_eq!(deleted, KEYS);
}

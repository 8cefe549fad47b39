//! The way back.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use segue::migration::Options;
use segue::migration::phase::Phase;
use segue::migration::status::Status;
use segue::migration::switch::Request;
use segue::store::memory::Memory;
use segue::store::{AsOld, Guard, RequestError, Store, StoreError, Watch, WatchItem};
use segue::tasks::spawn_owned;
use segue::types::{
    Compare, CompareResult, CompareTarget, Delete, KeyRange, KeyValue, LeaseId, Op, Put, Range,
    Revision, Txn,
};

use super::fleet::{Member, Stores, get, grant, key, passthrough, put, put_leased};
use super::gate::{Gate, Mode};
use super::picky::{KEY_BYTES_MAX, Picky, Taste};
use crate::support::eventually;

fn to(phase: Phase) -> Request {
    Request {
        to: phase,
        when_ready: false,
    }
}

pub(super) async fn roll_back(member: &Member) {
    member
        .until("the mirror is close", |status| {
            status
                .way_back
                .is_some_and(|standing| standing.behind < 100)
        })
        .await;
    member.controller.rollback().await.unwrap().unwrap();
    member.until_phase(Phase::Passthrough).await;
    member.controller.ready().await;
}

pub(super) async fn delete(store: &dyn Store, key: &str) {
    let delete = Delete {
        keys: KeyRange::One(key.to_owned().into()),
        prev_kv: false,
    };
    assert_eq!(store.delete(delete).await.unwrap().reply.deleted, 1);
}

async fn swap(store: &dyn Store, key: &str, seen: Revision) -> bool {
    let txn = Txn {
        compares: vec![Compare {
            keys: KeyRange::One(key.to_owned().into()),
            result: CompareResult::Equal,
            target: CompareTarget::Mod(seen),
        }],
        success: vec![Op::Put(Put::new(key.to_owned(), "swapped"))],
        failure: vec![],
    };
    store.txn(txn).await.unwrap().reply.succeeded
}

/// Fails with what differs, which is shorter than everything.
fn same(now: &[KeyValue], before: &[KeyValue], when: &str) {
    let only = |of: &[KeyValue], other: &[KeyValue]| -> Vec<String> {
        let only = of.iter().filter(|kv| !other.contains(kv)).take(5);
        only.map(|kv| format!("{kv:?}")).collect()
    };
    let differences = (only(now, before), only(before, now));
    assert_eq!(differences, (vec![], vec![]), "{when}");
}

/// Everything that a client can tell, but for the remaining time of leases.
async fn everything(store: &dyn Store) -> Vec<KeyValue> {
    let range = Range::of(KeyRange::all());
    store.range(range).await.unwrap().reply.kvs
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_copied_before_a_rollback_counts_for_nobody_who_slept_through_it() {
    let stores = Stores::both_ways().await;
    stores.fill(100).await;
    let member = stores.join("a").await.unwrap();
    member.until_verified().await;
    let mut asleep = Vec::new();
    for number in 0..30 {
        let name = format!("asleep {number}");
        asleep.push(stores.open(&name, |_| {}).await.unwrap());
    }
    let before = asleep[0].status().await;
    assert_eq!(before.keys_copied, 100);

    // Nobody writes anything, and the next migration copies nothing yet.
    roll_back(&member).await;
    member
        .controller
        .steer(|control| control.paused = true)
        .await
        .unwrap();
    eventually("the new store is empty again", async || {
        member.controller.go_to(Phase::Migration).await.unwrap()
    })
    .await;
    let status = member.until_phase(Phase::Migration).await;
    assert_eq!((status.base, status.keys_copied), (before.base, 0));

    for asleep in &asleep {
        // They wait until it is awake, and go by what it knows then.
        let reads: Vec<_> = (0..100)
            .map(|number| {
                let store = asleep.store();
                spawn_owned(async move { get(&*store, &key(number)).await })
            })
            .collect();
        let run = asleep.controller.clone().run();
        asleep.tasks.spawn("migration", run);
        for read in reads {
            let found = read.await.unwrap();
            assert_eq!(found.expect("it is in the old store").value, "old");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_on_the_way_back_and_numbers_stay() {
    let stores = Stores::both_ways().await;
    stores.fill(300).await;
    grant(&*stores.source, 77, 600).await;
    put_leased(&*stores.source, "leased", 77).await;
    let member = stores.join_as("a", passthrough).await.unwrap();
    let store = member.store();

    for turn in 0..3_u64 {
        member.until("empty", |status| status.stage == "open").await;
        member
            .until("begun", |status| status.phase == "passthrough")
            .await;
        let before = everything(&*store).await;
        loop {
            match member.controller.go_to(Phase::Migration).await.unwrap() {
                Ok(()) => break,
                Err(why) => assert!(why.contains("emptied"), "{why}"),
            }
        }
        member.until_phase(Phase::Migration).await;
        same(
            &everything(&*store).await,
            &before,
            &format!("turn {turn}: at the start"),
        );
        put(&*store, &key(1), "changed").await;
        let seen = put(&*store, "fresh", "made in the new store").await;
        delete(&*store, &key(2)).await;
        put(&*store, &key(2), "again").await;
        delete(&*store, &key(3 + usize::try_from(turn).unwrap())).await;
        grant(&*store, 88, 600).await;
        put_leased(&*store, "leased anew", 88).await;
        if turn > 0 {
            member.until_verified().await;
            member.controller.switch(to(Phase::Normal)).await.unwrap();
            member.until_phase(Phase::Normal).await;
            put(&*store, "in normal", "1").await;
            put(&*store, "gone", "1").await;
            delete(&*store, "gone").await;
        }
        let at_goal = everything(&*store).await;
        roll_back(&member).await;
        same(
            &everything(&*store).await,
            &at_goal,
            &format!("turn {turn}: on the way back"),
        );
        assert!(
            swap(&*store, "fresh", seen).await,
            "a number of before the rollback is good"
        );
        assert!(!swap(&*store, "fresh", seen).await);
        for id in [77, 88] {
            let lease = store
                .time_to_live(LeaseId(id), true)
                .await
                .unwrap()
                .reply
                .unwrap();
            assert_eq!(lease.keys.len(), 1, "{lease:?}");
            assert!(lease.remaining_ttl_s > 500, "{lease:?}");
        }
        store.revoke(LeaseId(88)).await.unwrap();
        assert_eq!(get(&*store, "leased anew").await, None);
    }
    eventually("nothing is left in the new store", async || {
        let left = stores.content().await.len();
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_across_every_border() {
    let stores = Stores::both_ways().await;
    stores.fill(10).await;
    let member = stores.join_as("a", passthrough).await.unwrap();
    member.controller.ready().await;
    let store = member.store();
    let mut watching = store
        .watch(Watch::of(KeyRange::prefix("w/"), None))
        .await
        .unwrap();
    let collected = spawn_owned(async move {
        let mut seen = Vec::new();
        while seen.len() < 100 {
            match watching.items.next().await.expect("no end") {
                WatchItem::Events(batch) => seen.push(batch.revision),
                WatchItem::Progress(_) | WatchItem::Epoch(_) => {}
                WatchItem::End(end) => panic!("{end:?} after {seen:?}"),
            }
        }
        seen
    });
    let mut revisions = Vec::new();
    let mut write = async |store: &dyn Store| {
        for n in 0..20 {
            revisions.push(put(store, &format!("w/{n}"), "1").await);
        }
    };
    write(&*store).await;
    for _ in 0..2 {
        eventually("it starts", async || {
            member.controller.go_to(Phase::Migration).await.unwrap()
        })
        .await;
        member.until_phase(Phase::Migration).await;
        write(&*store).await;
        roll_back(&member).await;
        write(&*store).await;
    }
    assert!(revisions.is_sorted(), "{revisions:?}");
    let count = revisions.len();
    let seen = tokio::time::timeout(Duration::from_secs(10), collected).await;
    let seen = seen.expect("every event arrives").unwrap();
    assert_eq!(count, 100);
    assert_eq!(seen, revisions);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_waits_for_watches_that_are_on_their_way_to_the_other_store() {
    let stores = Stores::both_ways().await;
    let member = stores.join_as("a", passthrough).await.unwrap();
    member.controller.ready().await;
    let store = member.store();
    // Its client does not read for a while.
    let watch = Watch::of(KeyRange::prefix("w/"), None);
    let mut watching = store.watch(watch).await.unwrap();
    let before = put(&*store, "w/a", "1").await;
    let started = member.controller.go_to(Phase::Migration).await.unwrap();
    assert_eq!(started, Ok(()));
    let begun = |status: &Status| status.phase == "migration" && status.stage == "open";
    member.until("begun", begun).await;
    let behind = put(&*store, "w/b", "1").await;
    let last = put(&*store, "w/c", "1").await;
    let compacting = spawn_owned({
        let store = store.clone();
        async move { store.compact(last).await }
    });
    let mut seen = Vec::new();
    // The events from before the border come from the store that is left.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!compacting.is_finished());
    while seen.last() != Some(&last) {
        match watching.items.next().await.expect("no end") {
            WatchItem::Events(batch) => seen.push(batch.revision),
            WatchItem::Progress(_) | WatchItem::Epoch(_) => {}
            WatchItem::End(end) => panic!("{end:?} after {seen:?}"),
        }
    }
    assert_eq!(seen, [before, behind, last]);
    compacting.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_believes_in_an_earlier_phase_is_refused_by_the_store() {
    let stores = Stores::both_ways().await;
    stores.fill(10).await;
    let member = stores.join_as("a", passthrough).await.unwrap();
    member.controller.ready().await;
    let fenceable = stores.old.fenceable().unwrap();
    let first = fenceable.guarded(Guard::Unfenced);
    first.put(Put::new("k", "1")).await.unwrap();
    member
        .controller
        .go_to(Phase::Migration)
        .await
        .unwrap()
        .unwrap();
    member.until_phase(Phase::Migration).await;
    let migration = stores
        .new
        .guarded(member.controller.view().state.value.guard());
    migration.put(Put::new("k", "2")).await.unwrap();
    roll_back(&member).await;
    let again = fenceable.guarded(member.controller.view().state.value.guard_of_old());
    again.put(Put::new("k", "3")).await.unwrap();
    for (whose, stale) in [
        ("the first passthrough", &first),
        ("the migration", &migration),
    ] {
        let done = stale.put(Put::new("k", "lost")).await;
        assert_eq!(done.err(), Some(StoreError::StaleEpoch), "{whose}");
        let read = stale.range(Range::key("k")).await;
        assert_eq!(read.err(), Some(StoreError::StaleEpoch), "{whose}");
    }
    assert_eq!(get(&*member.store(), "k").await.unwrap().value, "3");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_mirror_there_is_no_way_back_and_nothing_is_written_to_the_old_store() {
    let stores = Stores::both_ways().await;
    stores.fill(10).await;
    let without = |options: &mut segue::migration::Options| options.mirror = false;
    let member = stores.join_as("a", without).await.unwrap();
    member.until_phase(Phase::Migration).await;
    put(&*member.store(), &key(1), "new").await;
    let told = member.controller.rollback().await.unwrap().unwrap_err();
    assert!(told.contains("--no-mirror"), "{told}");
    let fenceable = stores.old.fenceable().unwrap();
    assert_eq!(fenceable.records("").await.unwrap(), []);
    assert_eq!(get(&*stores.source, &key(1)).await.unwrap().value, "old");
}

/// From a store that does not take everything, which there is a way back to.
async fn from_picky() -> Stores {
    let source = Memory::new();
    let taste = Taste::FOR_VALUES;
    let picky = Arc::new(Picky(source.clone(), taste));
    Stores {
        old: Arc::new(AsOld::of(picky).await.unwrap()),
        source: Arc::new(source),
        new: Arc::new(Memory::new()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_the_old_store_cannot_hold_is_refused_as_long_as_there_is_a_way_back() {
    let stores = from_picky().await;
    let member = stores.join("a").await.unwrap();
    member.until_verified().await;
    let store = member.store();
    let write = async |length: usize| {
        let put = || Put::new(vec![b'k'; length], "v");
        let txn = Txn::of(vec![Op::Put(put())]);
        [
            store.put(put()).await.map(drop),
            store.txn(txn).await.map(drop),
        ]
    };
    assert_eq!(write(KEY_BYTES_MAX).await, [Ok(()), Ok(())]);
    for refused in write(KEY_BYTES_MAX + 1).await {
        let told = refused.unwrap_err().to_string();
        assert!(told.contains("the key is unpalatable"), "{told}");
    }
    for phase in [Phase::Normal, Phase::Settled] {
        eventually("it goes on", async || {
            match member.controller.go_to(phase).await {
                Ok(Ok(())) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        member.until_phase(phase).await;
        let refused = phase != Phase::Settled;
        for written in write(KEY_BYTES_MAX + 1).await {
            assert_eq!(written.is_err(), refused, "{phase}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_old_store_does_not_take_shuts_the_way_back_until_it_is_written_anew() {
    let stores = from_picky().await;
    let first = stores.join("a").await.unwrap();
    first.until_phase(Phase::Migration).await;
    let second = stores.join("b").await.unwrap();
    second.until_phase(Phase::Migration).await;
    put(&*first.store(), "k", "unpalatable").await;
    for member in [&first, &second] {
        let shut = |status: &Status| {
            let why = status.way_back_closed.as_deref();
            why.is_some_and(|why| why.contains("the value is unpalatable"))
        };
        member.until("the way back is shut", shut).await;
        let told = member.controller.rollback().await.unwrap().unwrap_err();
        assert!(told.contains("the value is unpalatable"), "{told}");
    }
    put(&*second.store(), "k", "good").await;
    let open = |status: &Status| status.way_back_closed.is_none();
    second.until("the way back is open", open).await;
    roll_back(&second).await;
    assert_eq!(get(&*stores.source, "k").await.unwrap().value, "good");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_that_the_mirror_could_not_bring_into_the_old_store_is_refused_for_so_long() {
    let stores = Stores::both_ways().await;
    let start = |options: &mut Options| {
        passthrough(options);
        options.replayed_bytes_max = Some(10);
    };
    let member = stores.join_as("a", start).await.unwrap();
    member.until_phase(Phase::Passthrough).await;
    let store = member.store();
    let write = async |value: &'static str| {
        let nested = Txn {
            failure: vec![Op::Put(Put::new("k", value))],
            ..Txn::default()
        };
        let put = store.put(Put::new("k", value)).await.map(drop);
        let txn = store.txn(Txn::of(vec![Op::Txn(nested)])).await.map(drop);
        [put, txn]
    };
    let refused = || Err(RequestError::TooLarge.into());
    assert_eq!(write("more than ten").await, [Ok(()), Ok(())]);
    member
        .controller
        .go_to(Phase::Migration)
        .await
        .unwrap()
        .unwrap();
    member.until_phase(Phase::Migration).await;
    assert_eq!(write("is eight").await, [Ok(()), Ok(())]);
    assert_eq!(write("is nine, ").await, [refused(), refused()]);
    roll_back(&member).await;
    assert_eq!(write("more than ten").await, [Ok(()), Ok(())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_member_carries_the_mirror_and_the_rollback_on() {
    let stores = Stores::both_ways().await;
    stores.fill(50).await;
    let first = stores.join("a").await.unwrap();
    first.until_phase(Phase::Migration).await;
    let second = stores.join("b").await.unwrap();
    second.until_phase(Phase::Migration).await;
    put(&*second.store(), "a", "1").await;
    first.kill().await;
    for n in 0..200 {
        put(&*second.store(), &key(n), "by the second").await;
    }
    roll_back(&second).await;
    assert_eq!(everything(&*second.store()).await.len(), 201);
    assert_eq!(
        get(&*stores.source, &key(7)).await.unwrap().value,
        "by the second"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_held_up_while_it_empties_the_new_store_does_the_next_migration_no_harm() {
    let stores = Stores::both_ways().await;
    stores.fill(20).await;
    let gate = Gate::before(stores.new.clone());
    let behind_the_gate = Stores {
        new: gate.clone(),
        ..stores.clone()
    };
    let first = behind_the_gate.join_as("a", passthrough).await.unwrap();
    first.controller.ready().await;
    let started = first.controller.go_to(Phase::Migration).await.unwrap();
    assert_eq!(started, Ok(()));
    first.until_phase(Phase::Migration).await;
    first.until_verified().await;
    gate.set(Mode::HoldReplays);
    roll_back(&first).await;
    gate.holds().await;
    first.kill().await;

    let second = stores.join_as("b", passthrough).await.unwrap();
    eventually("it starts again", async || {
        second.controller.go_to(Phase::Migration).await.unwrap()
    })
    .await;
    second.until_verified().await;
    let store = second.store();
    put(&*store, &key(1), "of the next migration").await;
    let before = everything(&*store).await;
    gate.let_go().await;
    same(&everything(&*store).await, &before, "let go");
    assert_eq!(before.len(), 20);
}

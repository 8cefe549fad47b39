//! An old store while a migration goes on and behind its end: fenced, kept up to date, in service again.

use std::time::Duration;

use futures_util::StreamExt as _;
use segue::store::{
    FENCE, Guard, Line, NewStore, RecordTxn, Replay, Replayed, RequestError, StoreError, WatchItem,
};
use segue::types::CompareResult::{Equal, Greater, Less};
use segue::types::CompareTarget::{Create, Mod, Version};
use segue::types::{
    CompareTarget, Epoch, KeyRange, KeyValue, LeaseId, Put, Range, Revision, RevisionFilter, Txn,
};

use std::sync::Arc;

use super::NewFixture;
use super::dsl::*;

/// An old store on its way.
struct Old {
    new: Arc<dyn NewStore>,
    epoch: u64,
    gapless: bool,
    /// The version of the record `mirror`.
    position: i64,
    /// Leases end whatever the fence says.
    ends_leases: bool,
}

impl Old {
    /// One that was used: `untouched` has two versions, `changed` and `gone` one each.
    async fn of(fixture: &dyn NewFixture) -> Self {
        let old = Self {
            new: fixture.new_store().await,
            epoch: 0,
            gapless: fixture.gapless(),
            position: 0,
            ends_leases: fixture.ends_leases_by_itself(),
        };
        let store = old.serving();
        for (key, value) in [
            ("untouched", "1"),
            ("changed", "1"),
            ("gone", "1"),
            ("untouched", "2"),
        ] {
            store.put(key, value).await;
        }
        old
    }

    fn guard(&self) -> Guard {
        match self.epoch {
            0 => Guard::Unfenced,
            epoch => Guard::Epoch {
                epoch: Epoch(epoch),
                claims: false,
            },
        }
    }

    /// As its clients see it.
    fn serving(&self) -> Subject {
        Subject::new(self.new.guarded(self.guard()), self.gapless)
    }

    /// As a migration reads it.
    fn plain(&self) -> Subject {
        Subject::new(self.new.guarded(Guard::None), self.gapless)
    }

    /// Begins a migration; answers the base revision.
    async fn fence(&self) -> Revision {
        let txn = RecordTxn {
            writes: vec![record(FENCE, "somebody's")],
            line: Some(None),
            ..RecordTxn::default()
        };
        assert!(self.new.write_records(txn).await.unwrap());
        self.plain().store.status().await.unwrap().revision
    }

    async fn replay(&mut self, changes: Vec<Replayed>) {
        assert!(self.replay_at(self.position, changes).await.unwrap());
        self.position += 1;
    }

    async fn replay_at(&self, position: i64, changes: Vec<Replayed>) -> segue::store::Result<bool> {
        let record = (record("mirror", "a position"), position);
        self.new.replay(Replay { changes, record }).await
    }

    /// Ends the migration by a rollback: clients go on behind `goal`.
    async fn resume(&mut self, goal: Revision) -> Subject {
        self.epoch += 7;
        let line = Line {
            epoch: Epoch(self.epoch),
            claims: false,
            base: goal,
        };
        set_line(&*self.new, Some(line)).await;
        self.serving()
    }

    /// Everything with all numbers.
    async fn pairs(&self) -> Vec<KeyValue> {
        self.plain().range(Range::of(KeyRange::all())).await.kvs
    }
}

fn later(revision: Revision, steps: i64) -> Revision {
    Revision(revision.0 + steps)
}

/// A pair of the new store's.
fn pair(key: &str, value: &str, created: Revision, modified: Revision, version: i64) -> KeyValue {
    KeyValue {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        create_revision: created,
        mod_revision: modified,
        version,
        lease: LeaseId::NONE,
    }
}

fn deleted(key: &str, revision: Revision) -> Replayed {
    Replayed::Delete {
        key: key.to_owned().into(),
        revision,
    }
}

/// Changes that follow the base: `changed` was, `fresh` is new, `gone` is gone. Answers them with the pairs
/// that are to be seen then, but for `untouched`.
fn changes(base: Revision, created: Revision) -> (Vec<Replayed>, [KeyValue; 2]) {
    let changed = pair("changed", "2", created, later(base, 400), 9);
    let fresh = pair("fresh", "1", later(base, 200), later(base, 300), 3);
    let replayed = vec![
        Replayed::Put(fresh.clone()),
        deleted("gone", later(base, 350)),
        Replayed::Put(changed.clone()),
    ];
    (replayed, [changed, fresh])
}

pub async fn replayed_keys_have_the_numbers_they_came_with(fixture: &dyn NewFixture) {
    let mut old = Old::of(fixture).await;
    let base = old.fence().await;
    let before = old.plain().get("untouched").await.unwrap();
    let created = old.plain().get("changed").await.unwrap().create_revision;
    let (replayed, [changed, fresh]) = changes(base, created);
    old.replay(replayed.clone()).await;
    let expected = [changed, fresh, before];
    assert_eq!(old.pairs().await, expected);
    // The same again, as behind a crash, and another state of the same key.
    old.replay(replayed).await;
    assert_eq!(old.pairs().await, expected);
    let [changed, _, untouched] = expected;
    let fresh = pair("fresh", "2", later(base, 200), later(base, 410), 4);
    let again = pair("gone", "2", later(base, 420), later(base, 420), 1);
    let puts = [fresh.clone(), again.clone()].map(Replayed::Put);
    old.replay(puts.to_vec()).await;
    let expected = [changed, fresh, again, untouched];
    assert_eq!(old.pairs().await, expected);
    let goal = later(base, 500);
    let served = old.resume(goal).await;
    assert_eq!(served.range(Range::of(KeyRange::all())).await.kvs, expected);
    assert_eq!(served.range(at(goal, KeyRange::all())).await.kvs, expected);
    let since = Range {
        filter: RevisionFilter {
            min_mod: later(base, 410),
            ..RevisionFilter::default()
        },
        ..Range::of(KeyRange::all())
    };
    assert_eq!(served.keys(since).await, ["fresh", "gone"]);
}

pub async fn a_replay_of_a_stale_position_does_nothing(fixture: &dyn NewFixture) {
    let mut old = Old::of(fixture).await;
    let base = old.fence().await;
    let (replayed, _) = changes(base, Revision(2));
    old.replay(replayed).await;
    let before = old.pairs().await;
    for position in [0, 2] {
        let late = vec![
            deleted("untouched", later(base, 500)),
            deleted("fresh", later(base, 500)),
            Replayed::Put(pair("late", "1", base, base, 1)),
        ];
        assert!(!old.replay_at(position, late).await.unwrap());
        assert_eq!(old.pairs().await, before);
    }
    let records = old.new.records("mirror").await.unwrap();
    assert_eq!(records[0].version, 1);
    let unknown = KeyValue {
        lease: LeaseId(815),
        ..pair("leased", "1", later(base, 1), later(base, 1), 1)
    };
    let refused_lease = refused(old.replay_at(1, vec![Replayed::Put(unknown)]).await);
    assert_eq!(refused_lease, RequestError::LeaseNotFound);
    // Nothing at all still moves the position.
    old.replay(vec![]).await;
    assert_eq!(old.pairs().await, before);
    assert_eq!(old.new.records("mirror").await.unwrap()[0].version, 2);
}

pub async fn a_store_goes_on_from_the_goal(fixture: &dyn NewFixture) {
    let mut old = Old::of(fixture).await;
    let base = old.fence().await;
    let created = old.plain().get("changed").await.unwrap().create_revision;
    let (replayed, [changed, _]) = changes(base, created);
    old.replay(replayed).await;
    let goal = later(base, 500);
    let served = old.resume(goal).await;
    let now = served.revision().await;
    served.assert_no_step(goal, now);
    let mut watched = served.watch(KeyRange::all(), None).await;
    let first = served.put("changed", "3").await;
    served.assert_one_step(now, first);
    let kv = served.get("changed").await.unwrap();
    let expected = pair("changed", "3", changed.create_revision, first, 10);
    assert_eq!(kv, expected);
    assert_eq!(watched.words().await, ["put changed=3"]);
    // The changes behind the goal can be watched and know what was before; the rest is compacted.
    let deleted = served.delete(one("untouched")).await;
    assert_eq!(deleted.prev_kvs[0].version, 2);
    let second = served.put("gone", "3").await;
    let again = served.get("gone").await.unwrap();
    assert_eq!((again.create_revision, again.version), (second, 1));
    let watch = segue::store::Watch {
        prev_kv: true,
        ..segue::store::Watch::of(KeyRange::all(), Some(goal.next()))
    };
    let mut past = served.watching(watch).await;
    let batch = past.batch().await;
    assert_eq!(batch.revision, first);
    let prev = batch.events[0].prev.as_ref();
    assert_eq!(prev, Some(&changed));
    assert_eq!(past.words().await, ["delete untouched"]);
    assert_eq!(past.words().await, ["put gone=3"]);
    let state = served.range(at(first, KeyRange::all())).await;
    assert_eq!(keys_of(&state), ["changed", "fresh", "untouched"]);
    let state = served.range(at(goal, one("changed"))).await;
    assert_eq!(state.kvs, [changed]);
    assert_compacted(served.store.range(at(base, KeyRange::all())).await);
    let before_goal = Revision(goal.0 - 1);
    assert_compacted(served.store.range(at(before_goal, KeyRange::all())).await);
    for start in [base, goal] {
        let mut gone = served.watch(KeyRange::all(), Some(start)).await;
        assert!(matches!(gone.next().await, WatchItem::End(_)), "{start}");
    }
    // What the past of before left behind does no harm when it is compacted.
    served.store.compact(first).await.unwrap();
    assert_eq!(served.all().await, ["changed", "fresh", "gone"]);
    let state = served.range(at(first, KeyRange::all())).await;
    assert_eq!(keys_of(&state), ["changed", "fresh", "untouched"]);
}

pub async fn a_compare_and_swap_holds_across_a_resumption(fixture: &dyn NewFixture) {
    let mut old = Old::of(fixture).await;
    let base = old.fence().await;
    let created = old.plain().get("changed").await.unwrap().create_revision;
    let (replayed, _) = changes(base, created);
    old.replay(replayed).await;
    let served = old.resume(later(base, 500)).await;
    served.put("behind", "1").await;
    for key in ["changed", "fresh", "untouched", "behind"] {
        let kv = served.get(key).await.unwrap();
        let holds = async |result, target: CompareTarget| {
            let txn = Txn {
                compares: vec![compare(one(key), result, target)],
                ..Txn::default()
            };
            served.txn(txn).await.succeeded
        };
        for (number, target) in [
            (kv.mod_revision, Mod as fn(Revision) -> CompareTarget),
            (kv.create_revision, Create),
        ] {
            for step in [-300, -1, 0, 1, 300] {
                let operand = later(number, step);
                for (result, truth) in [(Equal, step == 0), (Greater, step < 0), (Less, step > 0)] {
                    let told = holds(result, target(operand)).await;
                    assert_eq!(told, truth, "{key} {number} {result:?} {operand}");
                }
            }
        }
        assert!(holds(Equal, Version(kv.version)).await, "{key}");
        assert!(!holds(Equal, Version(kv.version + 1)).await, "{key}");
        let swap = Txn {
            compares: vec![compare(one(key), Equal, Mod(kv.mod_revision))],
            success: vec![put_op(key, "swapped")],
            failure: vec![],
        };
        assert!(served.txn(swap.clone()).await.succeeded, "{key}");
        assert!(!served.txn(swap).await.succeeded, "{key}");
        let now = served.get(key).await.unwrap();
        assert_eq!(now.create_revision, kv.create_revision);
        assert_eq!(now.version, kv.version + 1);
    }
    let absent = Txn {
        compares: vec![missing("gone")],
        success: vec![put_op("gone", "3")],
        failure: vec![],
    };
    assert!(served.txn(absent.clone()).await.succeeded);
    assert!(!served.txn(absent).await.succeeded);
}

pub async fn history_of_before_stays_readable_while_changes_are_replayed(fixture: &dyn NewFixture) {
    let mut old = Old::of(fixture).await;
    let before = old.pairs().await;
    let first = before.iter().map(|kv| kv.create_revision).min().unwrap();
    let base = old.fence().await;
    for round in 1..=3 {
        let base_then = later(base, 1000 * round);
        let (mut replayed, _) = changes(base_then, Revision(2));
        if round == 3 {
            replayed.push(deleted("untouched", base_then));
        }
        old.replay(replayed).await;
        let again = later(base_then, 500);
        let put = pair("gone", "2", again, again, 1);
        old.replay(vec![Replayed::Put(put)]).await;
        let plain = old.plain();
        let then = plain.range(at(base, KeyRange::all())).await;
        assert_eq!((then.kvs, then.count), (before.clone(), 3));
        let early = plain.range(at(first, KeyRange::all())).await;
        assert_eq!(
            (keys_of(&early), early.count),
            (vec!["untouched".into()], 1)
        );
        let mut watched = plain.watch(KeyRange::all(), Some(first)).await;
        for change in ["untouched=1", "changed=1", "gone=1", "untouched=2"] {
            assert_eq!(watched.words().await, [format!("put {change}")]);
        }
    }
}

pub async fn the_past_shows_leases_that_a_replay_has_taken(fixture: &dyn NewFixture) {
    let mut old = Old::of(fixture).await;
    let store = old.serving();
    let lease = store.grant(600).await;
    store.put_leased("leased", "1", lease).await;
    let changed = store.put_leased("changed later", "1", lease).await;
    store.put("last", "1").await;
    let base = old.fence().await;
    let keys = ["changed later", "leased"];
    let leases_of = async |store: &Subject, revision: Option<Revision>| {
        let all = KeyRange::all();
        let range = revision.map_or_else(|| Range::of(all.clone()), |at_| at(at_, all.clone()));
        let kvs = store.range(range).await.kvs;
        let ours = kvs.iter().filter(|kv| keys.contains(&&*text(&kv.key)));
        ours.map(|kv| kv.lease).collect::<Vec<_>>()
    };
    let with = [lease; 2];
    let without = [LeaseId::NONE; 2];
    let pairs_of = async |old: &Old, lease| {
        let mut kvs = old.pairs().await;
        kvs.retain(|kv| keys.contains(&&*text(&kv.key)));
        let put = |kv| Replayed::Put(KeyValue { lease, ..kv });
        kvs.into_iter().map(put).collect::<Vec<_>>()
    };
    // Detached and attached again twice, as by a rollback that is called off.
    for _ in 0..2 {
        old.replay(pairs_of(&old, LeaseId::NONE).await).await;
        assert_eq!(leases_of(&old.plain(), None).await, without);
        assert_eq!(leases_of(&old.plain(), Some(changed)).await, with);
        old.replay(pairs_of(&old, lease).await).await;
        assert_eq!(leases_of(&old.plain(), None).await, with);
        assert_eq!(leases_of(&old.plain(), Some(changed)).await, with);
    }
    old.replay(pairs_of(&old, LeaseId::NONE).await).await;
    let again = later(base, 100);
    let put = pair("changed later", "2", changed, again, 2);
    old.replay(vec![Replayed::Put(put)]).await;
    assert_eq!(leases_of(&old.plain(), Some(changed)).await, with);
    old.replay(pairs_of(&old, lease).await).await;
    assert_eq!(leases_of(&old.plain(), Some(changed)).await, with);
    let goal = later(base, 200);
    let served = old.resume(goal).await;
    assert_eq!(leases_of(&served, None).await, with);
    assert_eq!(leases_of(&served, Some(goal)).await, with);
    // And the next migration.
    let since = served.put("last", "2").await;
    old.fence().await;
    for _ in 0..2 {
        old.replay(pairs_of(&old, LeaseId::NONE).await).await;
        assert_eq!(leases_of(&old.plain(), None).await, without);
        assert_eq!(leases_of(&old.plain(), Some(goal)).await, with);
        old.replay(pairs_of(&old, lease).await).await;
    }
    old.replay(pairs_of(&old, LeaseId::NONE).await).await;
    let put = pair("changed later", "3", changed, later(since, 100), 3);
    old.replay(vec![Replayed::Put(put)]).await;
    assert_eq!(leases_of(&old.plain(), Some(since)).await, with);
}

pub async fn what_is_replayed_makes_no_event(fixture: &dyn NewFixture) {
    let mut old = Old::of(fixture).await;
    let mut serving = old.serving().watch(KeyRange::all(), None).await;
    let base = old.fence().await;
    let mut plain = old.plain().watch(KeyRange::all(), None).await;
    let (replayed, _) = changes(base, Revision(2));
    old.replay(replayed).await;
    let goal = later(base, 500);
    let served = old.resume(goal).await;
    let mut behind = served.watch(KeyRange::all(), Some(goal.next())).await;
    served.put("behind", "1").await;
    assert_eq!(behind.words().await, ["put behind=1"]);
    // Those that were open before may go on behind the goal or not; they tell of no change before it.
    for watched in [&mut serving, &mut plain] {
        let next = tokio::time::timeout(Duration::from_secs(1), watched.0.items.next()).await;
        if let Ok(Some(WatchItem::Events(batch))) = next {
            assert_eq!(words(&batch), ["put behind=1"]);
        }
    }
}

pub async fn a_second_fence_locks_everybody_out_and_keeps_the_numbers(fixture: &dyn NewFixture) {
    let mut old = Old::of(fixture).await;
    let unfenced = old.serving();
    let base = old.fence().await;
    let created = old.plain().get("changed").await.unwrap().create_revision;
    let (replayed, _) = changes(base, created);
    old.replay(replayed).await;
    let goal = later(base, 500);
    let served = old.resume(goal).await;
    served.put("changed", "3").await;
    served.put("behind", "1").await;
    served.delete(one("untouched")).await;
    let state = served.range(Range::of(KeyRange::all())).await.kvs;
    let now = served.revision().await;
    let second = old.fence().await;
    served.assert_no_step(now, second);
    for locked_out in [&unfenced, &served] {
        let put = locked_out.store.put(Put::new("late", "1")).await;
        assert_eq!(put.map(drop), Err(StoreError::StaleEpoch));
        let get = locked_out.store.range(Range::key("changed")).await;
        assert_eq!(get.map(drop), Err(StoreError::StaleEpoch));
    }
    assert_eq!(old.pairs().await, state);
    let plain = old.plain();
    assert_eq!(
        plain.get("changed").await.as_ref(),
        state.iter().find(|kv| kv.key == "changed")
    );
    assert_eq!(
        plain.get("fresh").await.as_ref(),
        state.iter().find(|kv| kv.key == "fresh")
    );
    // What happened while it served can be watched, and nothing before.
    let mut past = plain.watch(KeyRange::all(), Some(goal.next())).await;
    for change in ["put changed=3", "put behind=1", "delete untouched"] {
        assert_eq!(past.words().await, [change]);
    }
    let mut gone = plain.watch(KeyRange::all(), Some(goal)).await;
    assert!(matches!(gone.next().await, WatchItem::End(_)));
}

pub async fn two_resumptions_in_a_row(fixture: &dyn NewFixture) {
    let mut old = Old::of(fixture).await;
    let base = old.fence().await;
    let created = old.plain().get("changed").await.unwrap().create_revision;
    let (first_changes, _) = changes(base, created);
    old.replay(first_changes).await;
    let served = old.resume(later(base, 500)).await;
    // One of each kind: of the first time, replayed, of the second time, and replayed and changed there.
    served.put("second", "1").await;
    served.put("both", "1").await;
    served.put("changed", "3").await;
    let since = served.put("untouched", "3").await;
    served.delete(one("fresh")).await;
    served.put("fresh", "a new life").await;
    let before = served.range(Range::of(KeyRange::all())).await.kvs;
    let base = old.fence().await;
    let both = pair("both", "2", later(base, 3), later(base, 30), 4);
    let changed = pair("changed", "4", created, later(base, 40), 11);
    let puts = [both.clone(), changed.clone()].map(Replayed::Put);
    old.replay(puts.to_vec()).await;
    let plain = old.plain();
    assert_eq!(plain.range(at(base, KeyRange::all())).await.kvs, before);
    let watch = segue::store::Watch {
        prev_kv: true,
        ..segue::store::Watch::of(KeyRange::all(), Some(since))
    };
    let mut past = plain.watching(watch).await;
    let batch = past.batch().await;
    assert_eq!(words(&batch), ["put untouched=3"]);
    assert_eq!(batch.revision, since);
    assert_eq!(past.words().await, ["delete fresh"]);
    assert_eq!(past.words().await, ["put fresh=a new life"]);
    let goal = later(base, 50);
    let served = old.resume(goal).await;
    let expected = before.into_iter().map(|kv| match &kv.key[..] {
        b"both" => both.clone(),
        b"changed" => changed.clone(),
        _ => kv,
    });
    let expected: Vec<_> = expected.collect();
    let state = served.range(Range::of(KeyRange::all())).await.kvs;
    assert_eq!(state, expected);
    for kv in &expected {
        let mut txn = Txn {
            success: vec![put_op(&text(&kv.key), "swapped")],
            ..Txn::default()
        };
        let key = || KeyRange::One(kv.key.clone());
        txn.compares = vec![compare(key(), Greater, Mod(kv.mod_revision))];
        assert!(!served.txn(txn.clone()).await.succeeded, "{kv:?}");
        txn.compares = vec![compare(key(), Less, Mod(kv.mod_revision))];
        assert!(!served.txn(txn.clone()).await.succeeded, "{kv:?}");
        txn.compares = vec![
            compare(key(), Equal, Mod(kv.mod_revision)),
            compare(key(), Equal, Create(kv.create_revision)),
            compare(key(), Equal, Version(kv.version)),
        ];
        assert!(served.txn(txn.clone()).await.succeeded, "{kv:?}");
        assert!(!served.txn(txn).await.succeeded, "{kv:?}");
    }
    let mut watched = served.watch(one("both"), Some(goal.next())).await;
    assert_eq!(watched.words().await, ["put both=swapped"]);
    assert_compacted(served.store.range(at(base, KeyRange::all())).await);
    old.fence().await;
    let state = old.pairs().await;
    assert!(state.iter().all(|kv| kv.mod_revision > goal), "{state:?}");
}

/// A lease of an old store ends behind its time if the store serves, and not while it does not.
pub async fn leases_end_only_while_the_store_serves(fixture: &dyn NewFixture) {
    let mut old = Old::of(fixture).await;
    let store = old.serving();
    let (short, long) = (store.grant(3).await, store.grant(600).await);
    store.put_leased("short", "1", short).await;
    store.put_leased("long", "1", long).await;
    let base = old.fence().await;
    let plain = old.plain();
    if old.ends_leases {
        // In its place stands one that whoever goes the way back grants.
        plain.wait_until_gone("short").await;
        let id = Some(LeaseId(4711));
        let grant = segue::types::Grant { id, ttl_s: 8 };
        plain.store.grant(grant).await.unwrap();
    } else {
        let kept = plain.grant(3).await;
        // Their time is over, while there is always something written, as by a mirror.
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(250)).await;
            old.replay(vec![]).await;
        }
        assert_eq!(plain.value("short").await.as_deref(), Some("1"));
        // What has not ended can be kept, until it does.
        let renewed = plain.store.keep_alive(kept).await.unwrap().reply;
        assert_eq!(renewed, Some(3));
        plain.store.revoke(kept).await.unwrap();
    }
    let short = plain.store.leases().await.unwrap().reply;
    let short = *short.iter().find(|id| **id != long).unwrap();
    let leased = |key, lease| {
        let kv = pair(key, "2", later(base, 10), later(base, 10), 1);
        KeyValue { lease, ..kv }
    };
    let puts = |lease_of: &dyn Fn(LeaseId) -> LeaseId| {
        let puts = [
            leased("short", lease_of(short)),
            leased("long", lease_of(long)),
        ];
        puts.map(Replayed::Put).to_vec()
    };
    // As the mirror does it, and then as the way back does.
    old.replay(puts(&|_| LeaseId::NONE)).await;
    let status = plain.store.time_to_live(long, true).await.unwrap().reply;
    assert_eq!(status.unwrap().keys, Vec::<bytes::Bytes>::new());
    old.replay(puts(&|lease| lease)).await;
    let served = old.resume(later(base, 500)).await;
    let kv = served.get("long").await.unwrap();
    assert_eq!(kv, leased("long", long));
    let status = served.store.time_to_live(long, true).await.unwrap().reply;
    assert_eq!(status.unwrap().keys, ["long"]);
    let status = served.store.time_to_live(short, true).await.unwrap().reply;
    let status = status.unwrap();
    assert!(status.remaining_ttl_s >= 1, "it has begun anew: {status:?}");
    let mut watched = served.watch(one("short"), None).await;
    served.wait_until_gone("short").await;
    assert_eq!(watched.words().await, ["delete short"]);
    served.put("long", "3").await;
    let watch = segue::store::Watch {
        prev_kv: true,
        ..segue::store::Watch::of(one("long"), Some(later(base, 501)))
    };
    let batch = served.watching(watch).await.batch().await;
    assert_eq!(batch.events[0].prev, Some(leased("long", long)));
}

pub async fn large_values_and_keys_of_any_bytes_are_replayed(fixture: &dyn NewFixture) {
    let mut old = Old::of(fixture).await;
    let base = old.fence().await;
    let mut puts: Vec<KeyValue> = (0..=255_u8)
        .map(|byte| KeyValue {
            key: vec![byte, 0, byte].into(),
            value: vec![byte; 10_000].into(),
            ..pair("", "", later(base, 5), later(base, 6 + i64::from(byte)), 2)
        })
        .collect();
    puts.push(KeyValue {
        value: vec![7; 1_400_000].into(),
        ..pair("large", "", later(base, 1), later(base, 2), 2)
    });
    puts.sort_by(|a, b| a.key.cmp(&b.key));
    for _ in 0..2 {
        old.replay(puts.iter().cloned().map(Replayed::Put).collect())
            .await;
    }
    let served = old.resume(later(base, 500)).await;
    let mut found = served.range(Range::of(KeyRange::all())).await.kvs;
    found.retain(|kv| !["changed", "gone", "untouched"].contains(&&*text(&kv.key)));
    assert_eq!(found.len(), puts.len());
    assert!(found == puts, "all are as they were");
}

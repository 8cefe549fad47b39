//! How the fleet goes from phase to phase.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use segue::migration::asking::Started;
use segue::migration::phase::Phase;
use segue::migration::records::{Outcome, VERIFY};
use segue::migration::status::Status;
use segue::migration::switch::Request;
use segue::store::{Guard, Store, Watch};
use segue::types::{
    Compare, CompareResult, CompareTarget, Delete, KeyRange, Op, Put, Range, Reply, Txn,
};

use super::fleet::{Member, Stores, get, key, passthrough, put};
use super::gate::{Gate, Mode};
use super::rollback::roll_back;
use super::witness::Witness;
use crate::support::eventually;

const SWITCH_KEY: &str = "segue/switch";

async fn outcome(member: &Member, outcome: Outcome) {
    member
        .until("decided", |status| status.switch.outcome == outcome)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_missing_while_the_backfill_ran_does_not_count_when_it_is_complete() {
    let stores = Stores::in_memory().await;
    stores.fill(10).await;
    let gate = Gate::before(stores.new.clone());
    let stores = Stores {
        new: gate.clone(),
        ..stores
    };
    let paused = |options: &mut segue::migration::Options| options.control.paused = true;
    let member = stores.join_as("a", paused).await.unwrap();
    member.until_phase(Phase::Migration).await;
    gate.set(Mode::Hold(VERIFY));
    member.controller.verify();
    gate.holds().await;
    member
        .controller
        .steer(|control| control.paused = false)
        .await
        .unwrap();
    member
        .until("copied", |status| status.backfill_complete)
        .await;
    gate.set(Mode::Open);
    member.until_verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_that_is_not_safe_is_refused_and_forgotten() {
    let stores = Stores::in_memory().await;
    stores.fill(10).await;
    let paused = |options: &mut segue::migration::Options| options.control.paused = true;
    let member = stores.join_as("a", paused).await.unwrap();
    member.controller.ready().await;
    put(&*member.store(), SWITCH_KEY, "true").await;
    outcome(&member, Outcome::Refused).await;
    let status = member.status().await;
    assert!(
        status.switch.reason.contains("backfill"),
        "{:?}",
        status.switch
    );

    member
        .controller
        .steer(|control| control.paused = false)
        .await
        .unwrap();
    member.until_verified().await;
    let status = member.status().await;
    assert_eq!(
        (&*status.phase, status.switch.outcome),
        ("migration", Outcome::Refused)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_that_may_wait_is_done_as_soon_as_it_is_safe() {
    let stores = Stores::in_memory().await;
    stores.fill(10).await;
    let paused = |options: &mut segue::migration::Options| options.control.paused = true;
    let member = stores.join_as("a", paused).await.unwrap();
    // Straight in the new store, as its own tools would.
    let plain = stores.new.guarded(Guard::None);
    put(&*plain, SWITCH_KEY, "normal when-ready").await;
    outcome(&member, Outcome::Waiting).await;
    member
        .controller
        .steer(|control| control.paused = false)
        .await
        .unwrap();
    member.until_phase(Phase::Normal).await;
    outcome(&member, Outcome::Done).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_ends_with_a_rollback_and_is_not_granted_in_the_next_migration() {
    let stores = Stores::both_ways().await;
    stores.fill(10).await;
    let paused = |options: &mut segue::migration::Options| options.control.paused = true;
    let member = stores.join_as("a", paused).await.unwrap();
    member.controller.ready().await;
    put(&*member.store(), SWITCH_KEY, "normal when-ready").await;
    outcome(&member, Outcome::Waiting).await;
    roll_back(&member).await;
    let told = member.status().await.switch;
    assert_eq!(told.outcome, Outcome::Refused);
    assert!(told.reason.contains("a rollback"), "{told:?}");

    let go_on = |control: &mut segue::migration::records::Control| control.paused = false;
    member.controller.steer(go_on).await.unwrap();
    eventually("it starts again", async || {
        member.controller.go_to(Phase::Migration).await.unwrap()
    })
    .await;
    let verified = member.until_verified().await;
    let looks = AtomicU64::new(0);
    let enough = |_: &_| looks.fetch_add(1, Ordering::Relaxed) >= 5;
    member.controller.wait_until(enough).await;
    let status = member.status().await;
    assert_eq!(
        (&status.phase, status.epoch),
        (&verified.phase, verified.epoch)
    );
    assert_eq!(status.switch, told);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_is_taken_back_by_another_one_or_with_the_switch_key() {
    let stores = Stores::in_memory().await;
    stores.fill(10).await;
    let paused = |options: &mut segue::migration::Options| options.control.paused = true;
    let member = stores.join_as("a", paused).await.unwrap();
    member.controller.ready().await;
    let store = member.store();
    put(&*store, SWITCH_KEY, "normal when-ready").await;
    outcome(&member, Outcome::Waiting).await;
    let key = Delete {
        keys: KeyRange::One(SWITCH_KEY.into()),
        prev_kv: false,
    };
    store.delete(key).await.unwrap();
    outcome(&member, Outcome::Refused).await;
    put(&*store, SWITCH_KEY, "normal when-ready").await;
    outcome(&member, Outcome::Waiting).await;
    let request = Request {
        to: Phase::Migration,
        when_ready: false,
    };
    let told = member.controller.switch(request).await.unwrap();
    assert_eq!(told.outcome, Outcome::Done, "{told:?}");
    let go_on = |control: &mut segue::migration::records::Control| control.paused = false;
    member.controller.steer(go_on).await.unwrap();
    assert_eq!(member.until_verified().await.phase, "migration");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_line_changes_with_the_state_in_every_transition() {
    let witness = Arc::new(Witness::default());
    let stores = Stores::to(witness.clone()).await;
    stores.fill(10).await;
    let member = stores.join("a").await.unwrap();
    member.until_verified().await;
    for to in [Phase::Normal, Phase::Migration, Phase::Normal] {
        let when_ready = true;
        let request = Request { to, when_ready };
        member.controller.switch(request).await.unwrap();
        member.until_phase(to).await;
    }
    member.controller.complete().await.unwrap().unwrap();
    member.until_phase(Phase::Settled).await;
    assert_eq!(witness.epochs(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(witness.disagreements(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_switch_key_said_before_the_migration_is_no_request() {
    let stores = Stores::in_memory().await;
    put(
        &*stores.new.guarded(Guard::None),
        SWITCH_KEY,
        "normal when-ready",
    )
    .await;
    let member = stores
        .join_as("a", |options| options.allow_nonempty = true)
        .await
        .unwrap();
    member.until_verified().await;
    let status = member.status().await;
    assert_eq!(
        (&*status.phase, status.switch.outcome),
        ("migration", Outcome::None)
    );
}

/// Adds one to a counter by compare-and-swap; answers whether this one did.
async fn increment(store: &dyn Store, counter: &str) -> bool {
    let now = get(store, counter).await.unwrap();
    let value: u64 = std::str::from_utf8(&now.value).unwrap().parse().unwrap();
    let txn = Txn {
        compares: vec![Compare {
            keys: KeyRange::One(now.key.clone()),
            result: CompareResult::Equal,
            target: CompareTarget::Mod(now.mod_revision),
        }],
        success: vec![Op::Put(Put::new(now.key, (value + 1).to_string()))],
        failure: vec![],
    };
    store.txn(txn).await.unwrap().reply.succeeded
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clients_of_two_members_notice_nothing_while_the_fleet_goes_to_and_fro() {
    let stores = Stores::in_memory().await;
    stores.fill(2_000).await;
    for counter in 0..4 {
        put(&*stores.source, &format!("counter/{counter}"), "0").await;
    }
    let members = [
        stores.join("a").await.unwrap(),
        stores.join("b").await.unwrap(),
    ];
    let stop = Arc::new(AtomicBool::new(false));
    let done: Arc<Vec<AtomicU64>> = Arc::new((0..4).map(|_| AtomicU64::new(0)).collect());
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let store = members[client % 2].store();
            let (stop, done) = (stop.clone(), done.clone());
            segue::tasks::spawn_owned(async move {
                let mut revision = 0;
                while !stop.load(Ordering::Relaxed) {
                    if increment(&*store, &format!("counter/{}", client % 4)).await {
                        done[client % 4].fetch_add(1, Ordering::Relaxed);
                    }
                    let answer = store.range(Range::key(key(client))).await.unwrap();
                    assert_eq!(answer.reply.kvs[0].value, "old");
                    assert!(answer.revision.0 >= revision, "revisions went back");
                    revision = answer.revision.0;
                    // The reference model keeps everything that ever was.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            })
        })
        .collect();
    for to in [
        Phase::Normal,
        Phase::Migration,
        Phase::Normal,
        Phase::Migration,
    ] {
        let request = Request {
            to,
            when_ready: true,
        };
        let asked = &members[usize::from(to == Phase::Normal)];
        asked.controller.switch(request).await.unwrap();
        for member in &members {
            member.until_phase(to).await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    for (counter, done) in done.iter().enumerate() {
        let value = get(&*members[0].store(), &format!("counter/{counter}"))
            .await
            .unwrap();
        let done = done.load(Ordering::Relaxed);
        assert_eq!(
            value.value,
            done.to_string(),
            "an increment was lost or done twice"
        );
        assert!(done > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_behind_is_waited_for_until_it_lapses() {
    let stores = Stores::in_memory().await;
    stores.fill(10).await;
    let member = stores.join("a").await.unwrap();
    let dead = stores.join("b").await.unwrap();
    member
        .until("joined", |status| status.members.len() == 2)
        .await;
    member.until_verified().await;
    // One that has not is waited for by the switch itself, which is another story.
    member
        .until("both acknowledged", |status| {
            let members = &status.members;
            members.len() == 2 && members.iter().all(|it| it.acknowledged == status.epoch)
        })
        .await;
    dead.kill().await;
    // It has acknowledged the present epoch, so it does not hold up this switch, but the next.
    let request = |to| Request {
        to,
        when_ready: false,
    };
    member
        .controller
        .switch(request(Phase::Normal))
        .await
        .unwrap();
    let refused = member.controller.complete().await.unwrap();
    assert!(refused.unwrap_err().contains("acknowledged"));
    eventually("the dead member lapses", async || {
        member.controller.complete().await.unwrap()
    })
    .await;
    assert_eq!(member.until_phase(Phase::Settled).await.members.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_under_an_epoch_that_is_over_does_not_happen() {
    let stores = Stores::in_memory().await;
    stores.fill(10).await;
    let member = stores.join("a").await.unwrap();
    member.until_verified().await;
    let view = member.controller.view();
    let stale = stores.new.guarded(view.state.value.guard());
    let request = Request {
        to: Phase::Normal,
        when_ready: false,
    };
    member.controller.switch(request).await.unwrap();
    member.until_phase(Phase::Normal).await;
    let late = stale
        .txn(Txn::of(vec![Op::Put(Put::new("late", "x"))]))
        .await;
    assert_eq!(late.unwrap_err(), segue::store::StoreError::StaleEpoch);
    let read = Txn::of(vec![Op::Range(Range::key("late"))]);
    let reply = member.store().txn(read).await.unwrap().reply.replies.pop();
    assert_eq!(
        reply,
        Some(Reply::Range(segue::types::RangeReply::default()))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_cut_off_asks_again_and_again_but_not_all_the_time() {
    let stores = Stores::both_ways().await;
    let gate = Gate::before(stores.new.clone());
    let behind_the_gate = Stores {
        new: gate.clone(),
        ..stores
    };
    let member = behind_the_gate.join_as("a", passthrough).await.unwrap();
    member.controller.ready().await;
    let store = member.store();
    // Until its client reads, it has not gone over and the member acknowledges nothing.
    let watch = Watch::of(KeyRange::all(), None);
    let watching = store.watch(watch).await.unwrap();
    let started = member.controller.go_to(Phase::Migration).await.unwrap();
    assert_eq!(started, Ok(()));
    let begun = |status: &Status| status.phase == "migration" && status.stage == "open";
    member.until("begun", begun).await;
    gate.set(Mode::Cut);
    eventually("it is in trouble", async || {
        member.controller.view().trouble.clone().ok_or(())
    })
    .await;
    // What it has waited for is there now, and it cannot say so.
    drop(watching);
    let before = gate.reads();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let asked = gate.reads() - before;
    assert!((1..100).contains(&asked), "{asked} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_is_repeated_while_it_begins_and_refused_afterwards() {
    let stores = Stores::both_ways().await;
    stores.fill(10).await;
    // Nothing goes on as long as the member does nothing.
    let member = stores.open("a", passthrough).await.unwrap();
    let Started::Begun(epoch) = member.controller.start().await.unwrap() else {
        panic!("it does not begin");
    };
    let again = member.controller.start().await.unwrap();
    assert_eq!(again, Started::Begun(epoch));
    let run = member.controller.clone().run();
    member.tasks.spawn("migration", run);
    member.until_phase(Phase::Migration).await;
    let now = member.until_verified().await;
    for phase in ["migration", "normal"] {
        match member.controller.start().await.unwrap() {
            Started::Refused(why) => assert!(why.contains(phase), "{why}"),
            other => panic!("{other:?}"),
        }
        let seen = member.controller.preview_start().await.unwrap();
        assert!(!seen.done && seen.why.contains(phase), "{seen:?}");
        if phase == "migration" {
            assert_eq!(member.status().await.epoch, now.epoch);
            let normal = member.controller.go_to(Phase::Normal).await.unwrap();
            normal.expect("it is verified");
            member.until_phase(Phase::Normal).await;
        }
    }
}

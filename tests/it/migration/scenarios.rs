//! How the data is moved.

use std::sync::Arc;

use segue::migration::OpenError;
use segue::migration::phase::Phase;
use segue::migration::records::Control;
use segue::migration::switch::Request;
use segue::store::memory::Memory;
use segue::store::{NewStore, RequestError, StoreError};
use segue::types::{Delete, KeyRange, LeaseId, Put};

use super::fleet::{Stores, get, grant, key, put, put_leased};
use super::picky::{Picky, Taste};

const NORMAL: Request = Request {
    to: Phase::Normal,
    when_ready: false,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_goes_from_its_beginning_to_its_end() {
    let stores = Stores::in_memory().await;
    stores.fill(10_000).await;
    grant(&*stores.source, 77, 600).await;
    put_leased(&*stores.source, "leased", 77).await;
    let before = stores.old_content().await;

    let member = stores.join("a").await.unwrap();
    let status = member.until_verified().await;
    assert_eq!(stores.content().await, before);
    assert_eq!(
        (status.keys_copied, status.keys_left, status.rejects),
        (10_001, 0, 0)
    );
    assert_eq!(status.phase, "migration");
    assert_eq!(status.blocked, None);

    member.controller.switch(NORMAL).await.unwrap();
    member.until_phase(Phase::Normal).await;
    put(&*member.store(), &key(1), "new").await;
    assert_eq!(get(&*stores.source, &key(1)).await.unwrap().value, "old");

    member.controller.complete().await.unwrap().unwrap();
    member.until_phase(Phase::Settled).await;
    assert_eq!(stores.new.line().await.unwrap(), None);
    assert_eq!(get(&*member.store(), &key(1)).await.unwrap().value, "new");
    assert_eq!(
        get(&*member.store(), "leased").await.unwrap().lease,
        LeaseId(77)
    );
    assert_eq!(stores.content().await.len(), 10_001);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_key_stays_deleted_while_the_backfill_passes() {
    let stores = Stores::in_memory().await;
    stores.fill(5_000).await;
    let member = stores
        .join_as("a", |options| options.control.paused = true)
        .await
        .unwrap();
    let store = member.store();
    for number in (0..5_000).step_by(100) {
        let delete = Delete {
            keys: KeyRange::One(key(number).into()),
            prev_kv: false,
        };
        assert_eq!(store.delete(delete).await.unwrap().reply.deleted, 1);
    }
    assert_eq!(member.status().await.keys_left, 5_000);
    member
        .controller
        .steer(|control| control.paused = false)
        .await
        .unwrap();
    member.until_verified().await;
    assert_eq!(stores.content().await.len(), 4_950);
    assert_eq!(get(&*store, &key(100)).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_backfill_copies_nothing_until_it_is_resumed() {
    let stores = Stores::in_memory().await;
    stores.fill(100).await;
    let paused = |options: &mut segue::migration::Options| options.control.paused = true;
    let member = stores.join_as("a", paused).await.unwrap();
    member
        .until("surveyed", |status| status.keys_left == 100)
        .await;
    // Another member takes over, and holds to it as well.
    member.kill().await;
    let other = stores.join("b").await.unwrap();
    other
        .until("taken over", |status| status.owner.as_deref() == Some("b"))
        .await;
    assert_eq!(stores.content().await, []);
    let status = other.status().await;
    assert!(status.paused && !status.backfill_complete && status.keys_copied == 0);
    other
        .controller
        .steer(|control| control.paused = false)
        .await
        .unwrap();
    other.until_verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_member_carries_on_when_the_owner_of_the_backfill_dies() {
    let stores = Stores::in_memory().await;
    stores.fill(6_000).await;
    let slow = |options: &mut segue::migration::Options| {
        options.control.rate_keys = Some(1_000);
    };
    let owner = stores.join_as("a", slow).await.unwrap();
    owner.until("begun", |status| status.keys_copied > 0).await;
    let heir = stores.join("b").await.unwrap();
    heir.until("joined", |status| status.members.len() == 2)
        .await;
    owner.kill().await;
    let copied = heir.status().await.keys_copied;
    assert!(copied < 6_000, "it was killed too late");

    heir.controller
        .steer(|control| control.rate_keys = None)
        .await
        .unwrap();
    let status = heir.until_verified().await;
    assert_eq!(status.owner.as_deref(), Some("b"));
    assert_eq!(status.members.len(), 1, "the dead member was let go");
    assert_eq!(status.keys_copied, 6_000);
    assert_eq!(stores.content().await, stores.old_content().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_compacted_at_the_base_stays_compacted_when_the_old_store_is_gone() {
    let stores = Stores::both_ways().await;
    stores.fill(10).await;
    let base = stores.source.status().await.unwrap().revision;
    stores.source.compact(base).await.unwrap();
    let member = stores.join("a").await.unwrap();
    member.until_verified().await;
    member.controller.switch(NORMAL).await.unwrap();
    member.until_phase(Phase::Normal).await;
    member.controller.complete().await.unwrap().unwrap();
    member.until_phase(Phase::Settled).await;
    let again = member.store().compact(base).await;
    let told = StoreError::Request(RequestError::Compacted(base));
    assert_eq!(again.unwrap_err(), told);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_knows_how_far_everything_is_before_its_first_look() {
    let stores = Stores::in_memory().await;
    stores.fill(1_000).await;
    let first = stores.join("a").await.unwrap();
    first.until_verified().await;
    // Refused: from this old store the way leads forward only.
    let back = Request {
        to: Phase::Passthrough,
        when_ready: false,
    };
    let refused = first.controller.switch(back).await.unwrap();
    first.kill().await;

    let status = stores.open("b", |_| {}).await.unwrap().status().await;
    assert!(status.backfill_complete && status.verified);
    assert_eq!((status.keys_copied, status.keys_left), (1_000, 0));
    assert_eq!(status.switch, refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_that_is_killed_again_and_again_comes_to_its_end() {
    let stores = Stores::in_memory().await;
    stores.fill(8_000).await;
    for attempt in 0..8 {
        let slow = |options: &mut segue::migration::Options| {
            options.control.rate_keys = Some(2_000);
        };
        let member = stores.join_as(&format!("m{attempt}"), slow).await.unwrap();
        let wanted = 900 * (attempt + 1);
        member
            .until("further", |status| status.keys_copied >= wanted)
            .await;
        member.kill().await;
    }
    let member = stores.join("last").await.unwrap();
    member
        .controller
        .steer(|control| control.rate_keys = None)
        .await
        .unwrap();
    member.until_verified().await;
    assert_eq!(stores.content().await, stores.old_content().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opening_that_was_interrupted_is_carried_on() {
    let stores = Stores::in_memory().await;
    grant(&*stores.source, 5, 600).await;
    put_leased(&*stores.source, "lock/b", 5).await;
    put_leased(&*stores.source, "lock/a", 5).await;
    let dead = stores.open("a", |_| {}).await.unwrap();
    assert_eq!(dead.status().await.stage, "opening");
    dead.kill().await;

    let member = stores.join("b").await.unwrap();
    // Waits until the migration is open, and finds the lease there.
    let keys = member
        .store()
        .time_to_live(LeaseId(5), true)
        .await
        .unwrap()
        .reply;
    assert_eq!(keys.unwrap().keys, ["lock/a", "lock/b"]);
    member
        .until("open", |status| status.epoch == 2 && status.stage == "open")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reject_among_keys_whose_lease_is_new_is_still_to_be_seen() {
    let taste = Taste {
        pairs: 1000,
        ..Taste::FOR_VALUES
    };
    let stores = Stores::to(Arc::new(Picky(Memory::new(), taste))).await;
    stores.fill(10).await;
    let member = stores
        .join_as("a", |options| options.control.paused = true)
        .await
        .unwrap();
    member.until("open", |status| status.stage == "open").await;
    // It may have read the first page already.
    member.kill().await;
    // Past the proxies, so that the lease is granted while its keys are copied.
    grant(&*stores.source, 77, 600).await;
    put_leased(&*stores.source, &key(3), 77).await;
    let unpalatable = Put {
        lease: Some(LeaseId(77)),
        ..Put::new(key(4), "unpalatable")
    };
    stores.source.put(unpalatable).await.unwrap();
    let member = stores.join("a").await.unwrap();
    let go_on = |control: &mut Control| control.paused = false;
    member.controller.steer(go_on).await.unwrap();
    let status = member
        .until("copied", |status| status.backfill_complete)
        .await;
    assert_eq!((status.rejects, status.keys_copied), (1, 9));
    let store = member.store();
    assert_eq!(get(&*store, &key(3)).await.unwrap().lease, LeaseId(77));
    assert_eq!(get(&*store, &key(4)).await.unwrap().value, "unpalatable");
    member.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rejects_do_not_stop_the_rest_but_hold_the_switch_back() {
    let taste = Taste {
        pairs: 7,
        ..Taste::FOR_VALUES
    };
    let stores = Stores::to(Arc::new(Picky(Memory::new(), taste))).await;
    stores.fill(3_000).await;
    for number in [0, 1, 1_500, 2_999] {
        put(&*stores.source, &key(number), "unpalatable").await;
    }
    let member = stores.join("a").await.unwrap();
    let status = member
        .until("complete", |status| {
            status.backfill_complete && status.rejects == 4
        })
        .await;
    assert_eq!(status.keys_copied, 2_996);
    assert_eq!(
        get(&*member.store(), &key(1_500)).await.unwrap().value,
        "unpalatable"
    );
    member
        .until("verified", |status| status.blocked.is_some())
        .await;
    let refused = member.controller.switch(NORMAL).await.unwrap();
    assert!(
        refused.reason.contains("4 keys were rejected"),
        "{refused:?}"
    );
    let rejects = member.controller.rejects().await.unwrap();
    assert_eq!(rejects[0].reason, "the value is unpalatable");

    // Clients see to it: two are changed, one is deleted, and one is gone from the old store.
    for number in [0, 1] {
        put(&*member.store(), &key(number), "palatable").await;
    }
    for (store, number) in [(member.store(), 1_500), (stores.source.clone(), 2_999)] {
        let keys = KeyRange::One(key(number).into());
        store
            .delete(Delete {
                keys,
                prev_kv: false,
            })
            .await
            .unwrap();
    }
    let number = member.controller.verify();
    let done = |_: &_| member.controller.verifications_done() >= number;
    member.until("verified again", done).await;
    member
        .until("ready", |status| {
            status.blocked.is_none() && status.rejects == 0
        })
        .await;
    member.controller.switch(NORMAL).await.unwrap();
    member.until_phase(Phase::Normal).await;
    assert_eq!(get(&*member.store(), &key(1_500)).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_notices_what_is_not_as_it_should_be() {
    let stores = Stores::in_memory().await;
    stores.fill(1_000).await;
    let member = stores
        .join_as("a", |options| options.auto_verify = false)
        .await
        .unwrap();
    member
        .until("complete", |status| status.backfill_complete)
        .await;
    // Somebody writes to the old store in spite of all.
    put(&*stores.source, &key(10), "foreign").await;
    put(&*stores.source, "unseen", "foreign").await;
    let keys = KeyRange::One(key(11).into());
    stores
        .source
        .delete(Delete {
            keys,
            prev_kv: false,
        })
        .await
        .unwrap();
    // And a client, who may, through the proxy.
    put(&*member.store(), &key(12), "changed").await;
    let number = member.controller.verify();
    let done = |_: &_| member.controller.verifications_done() >= number;
    let status = member.until("verified", done).await;
    let report = member.controller.report().await.unwrap().unwrap();
    let counts = (
        report.missing,
        report.different,
        report.stray,
        report.superseded,
    );
    assert_eq!(counts, (1, 1, 1, 1), "{report:?}");
    assert_eq!(report.equal, 997);
    assert!(!report.good && !status.verified);
    let refused = member.controller.switch(NORMAL).await.unwrap();
    assert!(refused.reason.contains("differences"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_makes_no_sense_is_not_begun() {
    let same: Arc<Memory> = Arc::new(Memory::new());
    let stores = Stores::in_memory().await;
    let twins = Stores {
        source: same.clone(),
        old: Arc::new(segue::store::AsOld::new(
            same.clone(),
            NewStore::identity(&*same).await.unwrap(),
        )),
        new: same,
    };
    assert!(matches!(twins.join("a").await.err(), Some(OpenError::Same)));

    put(
        &*stores.new.guarded(segue::store::Guard::None),
        "key",
        "there before",
    )
    .await;
    assert!(matches!(
        stores.join("a").await.err(),
        Some(OpenError::NotEmpty)
    ));
    for stores in [&twins, &stores] {
        assert_eq!(
            stores.new.records("").await.unwrap(),
            [],
            "something was written"
        );
        assert_eq!(stores.new.line().await.unwrap(), None);
    }

    put(&*stores.source, "key", "old").await;
    put(&*stores.source, "other", "old").await;
    let member = stores
        .join_as("a", |options| options.allow_nonempty = true)
        .await
        .unwrap();
    // What was there before is no wrong copy.
    member.until_verified().await;
    assert_eq!(
        get(&*member.store(), "key").await.unwrap().value,
        "there before"
    );
    assert_eq!(get(&*member.store(), "other").await.unwrap().value, "old");

    let others = Stores::in_memory().await;
    let elsewhere = Stores {
        new: stores.new.clone(),
        ..others
    };
    let refused = elsewhere.join("b").await.err();
    assert!(
        matches!(refused, Some(OpenError::OtherOldStore)),
        "{refused:?}"
    );
}

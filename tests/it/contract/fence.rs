//! The fence of a store that serves clients until a migration takes it over, and what holds leases in one
//! that is left.

use std::time::{Duration, Instant};

use segue::store::{FENCE, Guard, HOLD, RecordTxn, RecordWrite, StoreError};
use segue::types::{Delete, Grant, KeyRange, LeaseId, Put, Range};

use super::NewFixture;
use super::dsl::*;

/// The shortest lease that there is, in seconds.
const TTL_S: i64 = 2;

pub async fn nothing_is_done_behind_a_fence(fixture: &dyn NewFixture) {
    let new = fixture.new_store().await;
    let plain = new.guarded(Guard::None);
    let serving = new.guarded(Guard::Unfenced);
    let id = LeaseId(7);
    let grant = |id| Grant {
        id: Some(LeaseId(id)),
        ttl_s: 600,
    };
    serving.grant(grant(7)).await.unwrap();
    let leased = Put {
        lease: Some(id),
        ..Put::new("leased", "1")
    };
    serving.put(leased).await.unwrap();
    serving.put(Put::new("a", "1")).await.unwrap();
    let before = plain.range(Range::of(KeyRange::all())).await.unwrap();

    let raise = RecordTxn {
        writes: vec![record(FENCE, "somebody's")],
        ..RecordTxn::default()
    };
    assert!(new.write_records(raise).await.unwrap());
    let delete = || Delete {
        keys: KeyRange::all(),
        prev_kv: false,
    };
    let stale = Some(StoreError::StaleEpoch);
    assert_eq!(serving.put(Put::new("a", "2")).await.err(), stale);
    assert_eq!(serving.delete(delete()).await.err(), stale);
    for txn in txns_about("a") {
        assert_eq!(serving.txn(txn.clone()).await.err(), stale, "{txn:?}");
    }
    assert_eq!(serving.range(Range::key("a")).await.err(), stale);
    assert_eq!(serving.range(Range::of(KeyRange::all())).await.err(), stale);
    assert_eq!(serving.grant(grant(8)).await.err(), stale);
    assert_eq!(serving.keep_alive(id).await.err(), stale);
    assert_eq!(serving.revoke(id).await.err(), stale);
    assert_eq!(serving.leases().await.err(), stale);
    assert_eq!(serving.status().await.err(), stale);
    let after = plain.range(Range::of(KeyRange::all())).await.unwrap();
    assert_eq!(after.reply, before.reply);
    assert!(plain.time_to_live(id, true).await.unwrap().reply.is_some());

    let lower = RecordTxn {
        writes: vec![RecordWrite {
            name: FENCE.into(),
            value: None,
        }],
        ..RecordTxn::default()
    };
    assert!(new.write_records(lower).await.unwrap());
    let serving = new.guarded(Guard::Unfenced);
    serving.put(Put::new("a", "2")).await.unwrap();
    serving.revoke(id).await.unwrap();
    let left = plain.range(Range::of(KeyRange::all())).await.unwrap();
    assert_eq!(left.reply.count, 1);
}

pub async fn leases_that_are_held_do_not_end(fixture: &dyn NewFixture) {
    if fixture.ends_leases_by_itself() {
        return;
    }
    // With a line and without, which is how a rollback leaves it.
    let subject = NewSubject::of(fixture).await;
    let lease = subject.store.grant(TTL_S).await;
    let before = subject.store.put_leased("a", "1", lease).await;
    let write = |value: Option<&'static str>, line| RecordTxn {
        writes: vec![RecordWrite {
            name: HOLD.into(),
            value: value.map(Into::into),
        }],
        line,
        ..RecordTxn::default()
    };
    let hold = write(Some("held"), None);
    assert!(subject.new.write_records(hold).await.unwrap());
    let over = Duration::from_secs(TTL_S.unsigned_abs() + 1);
    tokio::time::sleep(over).await;
    assert_eq!(subject.store.value("a").await.as_deref(), Some("1"));
    set_line(&*subject.new, None).await;
    tokio::time::sleep(over).await;
    let idle = Subject::new(subject.new.guarded(Guard::NoLine), fixture.gapless());
    assert_eq!(idle.value("a").await.as_deref(), Some("1"));
    assert_eq!(idle.revision().await, before);
    // They could not be kept alive meanwhile, so their time begins anew.
    let begun = Instant::now();
    let let_go = write(None, Some(Some(line(2))));
    assert!(subject.new.write_records(let_go).await.unwrap());
    let now = NewSubject::with(subject.new.clone(), 2, fixture.gapless());
    now.store.wait_until_gone("a").await;
    assert!(begun.elapsed() >= Duration::from_secs(TTL_S.unsigned_abs() - 1));
    now.store
        .assert_one_step(before, now.store.revision().await);
}

//! The line and what holds to it.

use std::fmt::Debug;

use segue::store::{CopyUp, Guard, GuardedStore, Line, Read, ReadReply, Result, StoreError, Watch};
use segue::types::{Grant, KeyRange, Put, Range, Revision, Txn};

use super::NewFixture;
use super::dsl::*;

pub async fn revisions_go_on_behind_the_base(fixture: &dyn NewFixture) {
    let new = fixture.new_store().await;
    assert_eq!(new.line().await.unwrap(), None);
    set_line(&*new, Some(line(1))).await;
    assert_eq!(new.line().await.unwrap(), Some(line(1)));
    let subject = NewSubject::with(new.clone(), 1, fixture.gapless());
    let store = &subject.store;
    let before = store.revision().await;
    store.assert_no_step(BASE, before);
    assert_eq!(store.watch(one("a"), None).await.0.revision, before);
    let first = store.put("a", "1").await;
    store.assert_one_step(before, first);
    let kv = store.get("a").await.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision), (first, first));
    assert_eq!(store.store.status().await.unwrap().revision, first);
    // The next epoch goes on where this one was, and so does what comes behind the last.
    set_line(&*new, Some(line(2))).await;
    let subject = NewSubject::with(new.clone(), 2, fixture.gapless());
    assert_eq!(subject.store.get("a").await, Some(kv));
    let second = subject.store.put("a", "2").await;
    subject.store.assert_one_step(first, second);
}

pub async fn every_operation_of_another_epoch_fails_and_does_nothing(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    subject.store.put("a", "1").await;
    let lease = subject.store.grant(60).await;
    let before = subject.store.revision().await;
    set_line(&*subject.new, Some(line(2))).await;
    let now = NewSubject::with(subject.new.clone(), 2, fixture.gapless());
    for stale in [subject.handle, subject.new.guarded(guard(3))] {
        fails_everywhere(&*stale, lease).await;
        assert_eq!(now.store.value("a").await.as_deref(), Some("1"));
        assert_eq!(now.claims(KeyRange::all()).await, ["a=1"]);
        assert_eq!(now.handle.leases().await.unwrap().reply, [lease]);
        assert_eq!(now.new.records("cursor").await.unwrap(), []);
    }
    now.store.assert_no_step(before, now.store.revision().await);
}

pub async fn a_line_that_is_gone_fails_every_epoch(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    subject.store.put("a", "1").await;
    let lease = subject.store.grant(60).await;
    set_line(&*subject.new, None).await;
    assert_eq!(subject.new.line().await.unwrap(), None);
    fails_everywhere(&*subject.handle, lease).await;
}

pub async fn whoever_believes_in_no_line_is_refused_under_one(fixture: &dyn NewFixture) {
    let new = fixture.new_store().await;
    let idle = new.guarded(Guard::NoLine);
    let grant = Grant {
        id: None,
        ttl_s: 60,
    };
    let lease = idle.grant(grant).await.unwrap().reply.id;
    idle.put(leased("a", "1", lease)).await.unwrap();
    set_line(&*new, Some(line(1))).await;
    fails_everywhere(&*idle, lease).await;
    set_line(&*new, None).await;
    idle.revoke(lease).await.unwrap();
    let left = idle.range(Range::of(KeyRange::all())).await.unwrap();
    assert_eq!(left.reply.kvs, []);
}

/// Every operation of `stale` fails because of its epoch.
async fn fails_everywhere(stale: &dyn GuardedStore, lease: segue::types::LeaseId) {
    #[track_caller]
    fn check<T: Debug>(result: Result<T>) {
        assert_eq!(result.map(drop), Err(StoreError::StaleEpoch));
    }
    check(stale.range(Range::key("a")).await);
    check(stale.range(Range::of(KeyRange::all())).await);
    check(stale.put(Put::new("a", "stale")).await);
    check(stale.put(leased("a", "stale", lease)).await);
    check(stale.txn(Txn::of(vec![get_op("a")])).await);
    for txn in txns_about("a") {
        let result = stale.txn(txn.clone()).await;
        assert_eq!(result, Err(StoreError::StaleEpoch), "{txn:?}");
        check(stale.txn_over(vec![old("b", "stale")], txn).await);
    }
    let delete = segue::types::Delete {
        keys: KeyRange::all(),
        prev_kv: false,
    };
    check(stale.delete(delete).await);
    let id = Some(segue::types::LeaseId(815));
    check(stale.grant(Grant { id, ttl_s: 60 }).await);
    check(stale.revoke(lease).await);
    check(stale.keep_alive(lease).await);
    check(stale.time_to_live(lease, true).await);
    check(stale.leases().await);
    let watch = stale.watch(Watch::of(one("a"), None)).await;
    assert_eq!(watch.map(drop), Err(StoreError::StaleEpoch));
    check(
        stale
            .snapshot(None, vec![Read::Range(Range::key("a"))])
            .await,
    );
    let over = Txn::of(vec![put_op("b", "stale")]);
    check(stale.txn_over(vec![old("b", "stale")], over).await);
    let copy_up = CopyUp {
        kvs: vec![old("c", "stale")],
        record: Some((record("cursor", "stale"), 0)),
    };
    check(stale.copy_up(copy_up).await);
}

pub async fn several_reads_are_one_snapshot(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    subject.store.put("a", "0").await;
    subject.store.put("b", "0").await;
    let both = |value: &str| Txn::of(vec![put_op("a", value), put_op("b", value)]);
    let writer = async {
        for n in 0..50 {
            subject.store.txn(both(&n.to_string())).await;
        }
    };
    let reader = async {
        for _ in 0..50 {
            let claims = Read::Claims {
                keys: one("b"),
                values: 1,
            };
            let reads = vec![Read::Range(Range::key("a")), claims];
            let answer = subject.handle.snapshot(None, reads).await.unwrap();
            let [ReadReply::Range(a), ReadReply::Claims(b)] = &answer.reply[..] else {
                panic!("{answer:?}")
            };
            let segue::store::Claim::Live(b) = &b[0] else {
                panic!("{b:?}")
            };
            assert_eq!(a.kvs[0].value, b.value);
            assert!(answer.revision >= b.mod_revision);
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(writer, reader);
    assert_eq!(
        subject.handle.snapshot(None, vec![]).await.unwrap().reply,
        []
    );
}

pub async fn a_snapshot_of_the_past_shows_that_moment(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    let first = subject.store.put("a", "1").await;
    subject.store.put("b", "1").await;
    subject.store.delete(one("a")).await;
    let now = subject.store.put("c", "1").await;
    let reads = || vec![Read::Range(Range::of(KeyRange::all()))];
    let answer = subject.handle.snapshot(Some(first), reads()).await.unwrap();
    assert_eq!(answer.revision, now);
    let [ReadReply::Range(reply)] = &answer.reply[..] else {
        panic!("{answer:?}")
    };
    assert_eq!(keys_of(reply), ["a"]);
    let live = claims(&*subject.handle, Some(first), one("a"), 1).await;
    assert_eq!(live, ["a=1"]);
    let future = subject.handle.snapshot(Some(now.next()), reads()).await;
    let error = refused(future);
    assert_eq!(error, segue::store::RequestError::FutureRevision);
    subject.handle.compact(now).await.unwrap();
    assert_compacted(subject.handle.snapshot(Some(first), reads()).await);
}

pub async fn identities_tell_stores_apart(fixture: &dyn NewFixture) {
    let (one, other) = (fixture.new_store().await, fixture.new_store().await);
    let identity = one.identity().await.unwrap();
    assert_eq!(one.identity().await.unwrap(), identity);
    assert_ne!(other.identity().await.unwrap(), identity);
    let line = Line {
        base: Revision(7),
        ..line(1)
    };
    set_line(&*one, Some(line)).await;
    assert_eq!(one.identity().await.unwrap(), identity);
    assert_eq!(other.line().await.unwrap(), None);
}

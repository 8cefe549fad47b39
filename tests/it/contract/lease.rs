//! Leases.

use std::time::{Duration, Instant};

use segue::store::RequestError;
use segue::types::{Grant, KeyRange, LeaseId, Put};

use super::Fixture;
use super::dsl::*;

/// Short enough to wait for, and at least what every store grants.
const SHORT_TTL_S: i64 = 3;

pub async fn granted_leases_have_their_number_and_time(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let before = subject.revision().await;
    let grant = |id: Option<i64>, ttl_s| Grant {
        id: id.map(LeaseId),
        ttl_s,
    };
    let chosen = subject.store.grant(grant(None, 60)).await.unwrap();
    assert_eq!(chosen.revision, before, "a lease is no change");
    assert!(chosen.reply.id.0 > 0);
    assert_eq!(chosen.reply.ttl_s, 60);
    let wanted = subject.store.grant(grant(Some(7), 100)).await.unwrap();
    assert_eq!(wanted.reply.id, LeaseId(7));
    let status = subject.store.time_to_live(LeaseId(7), true).await.unwrap();
    let status = status.reply.unwrap();
    assert_eq!((status.id, status.granted_ttl_s), (LeaseId(7), 100));
    assert!((90..=100).contains(&status.remaining_ttl_s), "{status:?}");
    assert_eq!(status.keys, Vec::<bytes::Bytes>::new());
    let short = subject.store.grant(grant(None, 0)).await.unwrap().reply;
    assert!(short.ttl_s > 0, "there is a shortest time to live");
    subject.store.revoke(short.id).await.unwrap();
    let mut expected = vec![LeaseId(7), chosen.reply.id];
    expected.sort();
    assert_eq!(subject.store.leases().await.unwrap().reply, expected);
}

pub async fn a_number_that_is_taken_is_refused(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let id = subject.grant(60).await;
    let grant = Grant {
        id: Some(id),
        ttl_s: 100,
    };
    let error = refused(subject.store.grant(grant).await);
    assert_eq!(error, RequestError::LeaseExists);
    let status = subject.store.time_to_live(id, false).await.unwrap().reply;
    assert_eq!(status.unwrap().granted_ttl_s, 60);
    subject.store.revoke(id).await.unwrap();
    assert_eq!(subject.store.grant(grant).await.unwrap().reply.ttl_s, 100);
}

pub async fn a_time_to_live_that_is_too_long_is_refused(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let grant = |ttl_s| Grant { id: None, ttl_s };
    let error = refused(subject.store.grant(grant(9_000_000_001)).await);
    assert_eq!(error, RequestError::LeaseTtlTooLarge);
    let longest = subject.store.grant(grant(9_000_000_000)).await.unwrap();
    assert_eq!(longest.reply.ttl_s, 9_000_000_000);
}

pub async fn an_unknown_lease_is_not_found(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let id = LeaseId(4711);
    let error = refused(subject.store.revoke(id).await);
    assert_eq!(error, RequestError::LeaseNotFound);
    assert_eq!(subject.store.keep_alive(id).await.unwrap().reply, None);
    assert_eq!(
        subject.store.time_to_live(id, true).await.unwrap().reply,
        None
    );
}

pub async fn keys_are_attached_and_detached_by_puts(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let (first, second) = (subject.grant(60).await, subject.grant(60).await);
    for key in ["c", "a", "b", "d", "e"] {
        subject.put_leased(key, "", first).await;
    }
    assert_eq!(attached(&subject, first).await, ["a", "b", "c", "d", "e"]);
    subject.put("a", "").await;
    subject.put_leased("b", "", second).await;
    subject.delete(one("c")).await;
    let keep = Put {
        lease: None,
        ..Put::new("e", "kept")
    };
    subject.store.put(keep).await.unwrap();
    assert_eq!(attached(&subject, first).await, ["d", "e"]);
    assert_eq!(attached(&subject, second).await, ["b"]);
    subject.store.revoke(first).await.unwrap();
    assert_eq!(subject.all().await, ["a", "b"]);
}

pub async fn revoking_deletes_all_keys_in_one_revision(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let lease = subject.grant(60).await;
    for key in ["b", "a"] {
        subject.put_leased(key, "", lease).await;
    }
    let before = subject.put("c", "").await;
    let mut watched = subject.watch(KeyRange::all(), None).await;
    let revoked = subject.store.revoke(lease).await.unwrap();
    subject.assert_one_step(before, revoked.revision);
    let batch = watched.batch().await;
    assert_eq!(batch.revision, revoked.revision);
    assert_eq!(words(&batch), ["delete a", "delete b"]);
    assert_eq!(subject.all().await, ["c"]);
    let error = refused(subject.store.revoke(lease).await);
    assert_eq!(error, RequestError::LeaseNotFound);
    let put = subject.store.put(leased("a", "", lease)).await;
    assert_eq!(refused(put), RequestError::LeaseNotFound);
}

pub async fn expiry_deletes_all_keys_in_one_revision(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let lease = subject.grant(SHORT_TTL_S).await;
    let begin = Instant::now();
    for key in ["b", "a", "stays"] {
        subject.put_leased(key, "", lease).await;
    }
    let before = subject.put("stays", "").await;
    let mut watched = subject.watch(KeyRange::all(), None).await;
    let batch = watched.batch().await;
    assert_eq!(words(&batch), ["delete a", "delete b"]);
    subject.assert_one_step(before, batch.revision);
    // A lease lives at least its time; the clock's start is a little late.
    assert!(begin.elapsed() > Duration::from_millis(2900));
    assert_eq!(subject.all().await, ["stays"]);
    let status = subject.store.time_to_live(lease, true).await.unwrap();
    assert_eq!(status.reply, None);
}

pub async fn keeping_alive_holds_expiry_off(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let lease = subject.grant(SHORT_TTL_S).await;
    subject.put_leased("a", "", lease).await;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(6) {
        let ttl_s = subject.store.keep_alive(lease).await.unwrap().reply;
        assert_eq!(ttl_s, Some(SHORT_TTL_S));
        assert!(subject.get("a").await.is_some());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    subject.wait_until_gone("a").await;
    assert_eq!(subject.store.keep_alive(lease).await.unwrap().reply, None);
}

pub async fn a_lease_without_keys_ends_without_a_revision(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let before = subject.revision().await;
    let revoked = subject.grant(60).await;
    let answer = subject.store.revoke(revoked).await.unwrap();
    subject.assert_no_step(before, answer.revision);
    subject.grant(SHORT_TTL_S).await;
    within(async {
        while !subject.store.leases().await.unwrap().reply.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    subject.assert_no_step(before, subject.revision().await);
}

async fn attached(subject: &Subject, id: LeaseId) -> Vec<String> {
    let status = subject.store.time_to_live(id, true).await.unwrap();
    status.reply.unwrap().keys.iter().map(text).collect()
}

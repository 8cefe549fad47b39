//! Writes.

use segue::store::RequestError;
use segue::types::{LeaseId, Put};

use super::Fixture;
use super::dsl::*;

pub async fn each_change_counts_the_version_and_takes_a_revision(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let before = subject.revision().await;
    let created = subject.put("a", "1").await;
    subject.assert_one_step(before, created);
    let other = subject.put("b", "1").await;
    subject.assert_one_step(created, other);
    let changed = subject.put("a", "1").await;
    subject.assert_one_step(other, changed);
    let kv = subject.get("a").await.unwrap();
    assert_eq!(kv.create_revision, created);
    assert_eq!(kv.mod_revision, changed);
    assert_eq!((kv.version, kv.lease), (2, LeaseId::NONE));
}

pub async fn the_pair_before_is_answered_on_request(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    for prev_kv in [true, false, true] {
        let before = subject.get("a").await;
        let put = Put {
            prev_kv,
            ..Put::new("a", "1")
        };
        let reply = subject.store.put(put).await.unwrap().reply;
        assert_eq!(reply.prev_kv, before.filter(|_| prev_kv));
    }
}

pub async fn value_or_lease_can_be_kept(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let lease = subject.grant(60).await;
    subject.put_leased("a", "1", lease).await;
    let keep_lease = Put {
        lease: None,
        ..Put::new("a", "2")
    };
    subject.store.put(keep_lease).await.unwrap();
    let kv = subject.get("a").await.unwrap();
    assert_eq!((text(&kv.value).as_str(), kv.lease), ("2", lease));
    let keep_value = Put {
        value: None,
        ..Put::new("a", "")
    };
    subject.store.put(keep_value).await.unwrap();
    let kv = subject.get("a").await.unwrap();
    assert_eq!((text(&kv.value).as_str(), kv.lease), ("2", LeaseId::NONE));
    assert_eq!(kv.version, 3);
}

pub async fn keeping_what_does_not_exist_fails_and_does_nothing(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let before = subject.revision().await;
    let put = Put::new("a", "1");
    for put in [
        Put {
            value: None,
            ..put.clone()
        },
        Put { lease: None, ..put },
    ] {
        let error = refused(subject.store.put(put).await);
        assert_eq!(error, RequestError::KeyNotFound);
    }
    assert_eq!(subject.get("a").await, None);
    assert_eq!(subject.revision().await, before);
}

pub async fn a_lease_that_does_not_exist_fails_and_does_nothing(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let before = subject.put("a", "1").await;
    let put = leased("a", "2", LeaseId(4711));
    let error = refused(subject.store.put(put).await);
    assert_eq!(error, RequestError::LeaseNotFound);
    assert_eq!(subject.value("a").await.as_deref(), Some("1"));
    assert_eq!(subject.revision().await, before);
}

pub async fn values_may_be_empty_or_large(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    subject.put("empty", "").await;
    assert_eq!(subject.value("empty").await.as_deref(), Some(""));
    let large = "x".repeat(1 << 20);
    subject.put("large", &large).await;
    assert_eq!(subject.value("large").await, Some(large));
}

//! Forgetting the past.

use segue::store::RequestError;
use segue::types::{KeyRange, Revision};

use super::Fixture;
use super::dsl::*;

pub async fn the_past_below_is_gone_and_the_rest_stays(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let first = subject.put("a", "1").await;
    subject.put("b", "1").await;
    let at_compacted = subject.put("a", "2").await;
    let last = subject.put("a", "3").await;
    let answer = subject.store.compact(at_compacted).await.unwrap();
    assert_eq!(answer.revision, last, "compacting takes no revision");
    assert_compacted(subject.store.range(at(first, one("a"))).await);
    let reply = subject.range(at(at_compacted, KeyRange::all())).await;
    assert_eq!(keys_of(&reply), ["a", "b"]);
    assert_eq!(text(&reply.kvs[0].value), "2");
    assert_eq!(subject.value("a").await.as_deref(), Some("3"));
    assert_eq!(subject.get("a").await.unwrap().version, 3);
    let next = subject.put("a", "4").await;
    subject.assert_one_step(last, next);
}

pub async fn only_the_range_between_compacted_and_current_can_be_compacted(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let first = subject.put("a", "1").await;
    let last = subject.put("a", "2").await;
    let future = subject.store.compact(last.next()).await;
    assert_eq!(refused(future), RequestError::FutureRevision);
    subject.store.compact(first).await.unwrap();
    assert_compacted(subject.store.compact(first).await);
    assert_compacted(subject.store.compact(Revision(first.0 - 1)).await);
    subject.store.compact(last).await.unwrap();
    assert_compacted(subject.store.compact(last).await);
    assert_eq!(subject.value("a").await.as_deref(), Some("2"));
}

pub async fn deleted_keys_stay_deleted(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    subject.put("a", "1").await;
    subject.delete(one("a")).await;
    let last = subject.put("b", "1").await;
    subject.store.compact(last).await.unwrap();
    assert_eq!(subject.all().await, ["b"]);
    assert_eq!(subject.keys(at(last, KeyRange::all())).await, ["b"]);
    let reborn = subject.put("a", "2").await;
    let kv = subject.get("a").await.unwrap();
    assert_eq!((kv.create_revision, kv.version), (reborn, 1));
}

//! Removals.

use segue::types::{Delete, KeyRange};

use super::Fixture;
use super::dsl::*;

pub async fn a_deleted_key_is_gone_and_begins_a_new_life(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    subject.put("a", "1").await;
    let last = subject.put("a", "2").await;
    let before = subject.get("a").await;
    let request = Delete {
        keys: one("a"),
        prev_kv: true,
    };
    let answer = subject.store.delete(request).await.unwrap();
    subject.assert_one_step(last, answer.revision);
    assert_eq!(answer.reply.deleted, 1);
    assert_eq!(answer.reply.prev_kvs, Vec::from_iter(before));
    assert_eq!(subject.get("a").await, None);
    let reborn = subject.put("a", "3").await;
    subject.assert_one_step(answer.revision, reborn);
    let kv = subject.get("a").await.unwrap();
    assert_eq!((kv.create_revision, kv.version), (reborn, 1));
}

pub async fn a_range_is_deleted_in_one_revision(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    for key in ["b/2", "a", "b/1", "b/3"] {
        subject.put(key, key).await;
    }
    let before = subject.revision().await;
    let request = Delete {
        keys: prefix("b/"),
        prev_kv: false,
    };
    let answer = subject.store.delete(request).await.unwrap();
    subject.assert_one_step(before, answer.revision);
    assert_eq!(answer.reply.deleted, 3);
    assert_eq!(answer.reply.prev_kvs, []);
    assert_eq!(subject.all().await, ["a"]);
    for key in ["c", "b"] {
        subject.put(key, key).await;
    }
    let reply = subject.delete(KeyRange::all()).await;
    let keys: Vec<_> = reply.prev_kvs.iter().map(|kv| text(&kv.key)).collect();
    assert_eq!(keys, ["a", "b", "c"]);
    assert_eq!(subject.all().await, Vec::<String>::new());
}

pub async fn deleting_nothing_takes_no_revision(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let before = subject.put("a", "1").await;
    for keys in [one("b"), span("b", "c"), span("b", "a")] {
        let reply = subject.delete(keys).await;
        assert_eq!((reply.deleted, reply.prev_kvs), (0, vec![]));
    }
    assert_eq!(subject.revision().await, before);
}

pub async fn reserved_keys_are_spared_by_ranges_that_cross_them(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    for key in ["a", "segue/switch", "z"] {
        subject.put(key, "").await;
    }
    assert_eq!(subject.delete(KeyRange::all()).await.deleted, 2);
    assert!(subject.get("segue/switch").await.is_some());
    assert_eq!(subject.delete(prefix("segue/")).await.deleted, 1);
    assert!(subject.get("segue/switch").await.is_none());
}

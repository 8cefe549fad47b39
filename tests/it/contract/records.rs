//! The migration's own state.

use segue::store::{Guard, RecordTxn, RecordWrite};
use segue::types::KeyRange;

use super::NewFixture;
use super::dsl::*;

pub async fn records_are_compared_and_put(fixture: &dyn NewFixture) {
    let new = fixture.new_store().await;
    let txn = |expect: &[(&str, i64)], writes| RecordTxn {
        expect: expect
            .iter()
            .map(|(name, version)| ((*name).to_owned(), *version))
            .collect(),
        writes,
        line: None,
    };
    let write = |txn| async { new.write_records(txn).await.unwrap() };
    assert!(write(txn(&[("a", 0)], vec![record("a", "1")])).await);
    assert!(!write(txn(&[("a", 0)], vec![record("a", "2")])).await);
    assert!(
        write(txn(
            &[("a", 1), ("b", 0)],
            vec![record("a", "2"), record("b", "1")]
        ))
        .await
    );
    assert!(
        !write(txn(
            &[("a", 2), ("b", 0)],
            vec![record("a", "3"), record("c", "1")]
        ))
        .await
    );
    let state = async || {
        let records = new.records("").await.unwrap();
        let word = |record: &segue::store::Record| {
            format!(
                "{}={} v{}",
                record.name,
                text(&record.value),
                record.version
            )
        };
        records.iter().map(word).collect::<Vec<_>>()
    };
    assert_eq!(state().await, ["a=2 v2", "b=1 v1"]);
    // Without expectations a write goes through; a removed record begins anew.
    let removal = RecordWrite {
        name: "a".into(),
        value: None,
    };
    assert!(write(txn(&[], vec![removal, record("b", "2")])).await);
    assert_eq!(state().await, ["b=2 v2"]);
    assert!(write(txn(&[("a", 0)], vec![record("a", "4")])).await);
    assert_eq!(state().await, ["a=4 v1", "b=2 v2"]);
    // What is expected of records holds the line back too.
    let with_line = RecordTxn {
        line: Some(Some(line(9))),
        ..txn(&[("a", 7)], vec![])
    };
    assert!(!write(with_line).await);
    assert_eq!(new.line().await.unwrap(), None);
}

pub async fn records_are_listed_by_prefix_in_order(fixture: &dyn NewFixture) {
    let new = fixture.new_store().await;
    let names = [
        "shards/2",
        "shards/10",
        "state",
        "shards0",
        "rejects/a b%c",
        "shards/1",
    ];
    let txn = RecordTxn {
        writes: names.iter().map(|name| record(name, "x")).collect(),
        ..RecordTxn::default()
    };
    assert!(new.write_records(txn).await.unwrap());
    for (prefix, expected) in [
        ("shards/", vec!["shards/1", "shards/10", "shards/2"]),
        ("state", vec!["state"]),
        ("rejects/", vec!["rejects/a b%c"]),
        ("none", vec![]),
    ] {
        let records = new.records(prefix).await.unwrap();
        let names: Vec<_> = records.into_iter().map(|record| record.name).collect();
        assert_eq!(names, expected, "{prefix}");
    }
    assert_eq!(new.records("").await.unwrap().len(), names.len());
}

pub async fn records_are_no_keys(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    subject.store.put("a", "1").await;
    let before = subject.store.revision().await;
    let mut watched = subject.store.watch(KeyRange::all(), None).await;
    let txn = RecordTxn {
        writes: vec![record("a", "record"), record("segue/b", "record")],
        ..RecordTxn::default()
    };
    assert!(subject.new.write_records(txn).await.unwrap());
    let after = subject.store.revision().await;
    subject.store.assert_no_step(before, after);
    assert_eq!(subject.store.value("a").await.as_deref(), Some("1"));
    assert_eq!(subject.store.all().await, ["a"]);
    assert_eq!(subject.claims(KeyRange::all()).await, ["a=1"]);
    assert_eq!(subject.store.delete(KeyRange::all()).await.deleted, 1);
    assert_eq!(watched.words().await, ["delete a"]);
    assert_eq!(subject.new.records("segue/").await.unwrap().len(), 1);
    assert_eq!(subject.new.records("a").await.unwrap().len(), 1);
}

pub async fn a_store_is_empty_until_it_holds_something(fixture: &dyn NewFixture) {
    let with_key = fixture.new_store().await;
    assert!(with_key.is_empty().await.unwrap());
    let plain = Subject::new(with_key.guarded(Guard::None), fixture.gapless());
    plain.put("a", "1").await;
    assert!(!with_key.is_empty().await.unwrap());
    plain.delete(one("a")).await;
    assert!(with_key.is_empty().await.unwrap());

    let with_record = fixture.new_store().await;
    let txn = |value| RecordTxn {
        writes: vec![RecordWrite {
            name: "a".into(),
            value,
        }],
        ..RecordTxn::default()
    };
    let write = with_record.write_records(txn(Some("1".into()))).await;
    assert!(write.unwrap());
    assert!(!with_record.is_empty().await.unwrap());

    let with_whiteout = NewSubject::of(fixture).await;
    with_whiteout.store.put("a", "1").await;
    with_whiteout.store.delete(one("a")).await;
    let removal = RecordTxn {
        writes: vec![RecordWrite {
            name: "state".into(),
            value: None,
        }],
        ..RecordTxn::default()
    };
    assert!(with_whiteout.new.write_records(removal).await.unwrap());
    assert!(
        !with_whiteout.new.is_empty().await.unwrap(),
        "it decides about a key"
    );
}

//! The migration's own state.

use futures_util::StreamExt as _;
use segue::store::{Guard, RecordTxn, RecordWrite, StoreError};
use segue::types::{KeyRange, Put, Range};

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
        ..RecordTxn::default()
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

pub async fn a_key_that_is_forgotten_with_a_record_leaves_no_trace(fixture: &dyn NewFixture) {
    let new = fixture.new_store().await;
    let subject = Subject::new(new.guarded(Guard::None), fixture.gapless());
    subject.put("a", "1").await;
    // The last change of all, whose revision the next one must not take again.
    let before = subject.put("segue/switch", "normal").await;
    let mut watched = subject.watch(KeyRange::all(), None).await;
    let mut within = subject.watch(prefix("segue/"), None).await;
    let forget = |version| RecordTxn {
        expect: vec![("state".to_owned(), version)],
        writes: vec![record("state", "over")],
        forget: vec!["segue/switch".into(), "segue/none".into()],
        ..RecordTxn::default()
    };
    assert!(!new.write_records(forget(7)).await.unwrap());
    assert!(subject.value("segue/switch").await.is_some());
    assert!(new.write_records(forget(0)).await.unwrap());
    assert_eq!(new.records("").await.unwrap().len(), 1);
    assert_eq!(subject.value("segue/switch").await, None);
    let everything = Range::of(prefix("segue/"));
    assert_eq!(subject.keys(everything.clone()).await, [""; 0]);
    assert_eq!(subject.range(everything).await.count, 0);
    subject.assert_no_step(before, subject.revision().await);
    // Nothing is told of it, and it begins anew.
    let again = subject.put("segue/switch", "mine").await;
    let switch = subject.get("segue/switch").await.unwrap();
    assert_eq!((switch.create_revision, switch.version), (again, 1));
    assert_eq!(within.words().await, ["put segue/switch=mine"]);
    subject.put("a", "2").await;
    assert_eq!(watched.words().await, ["put a=2"]);
    // Nothing is left where records are written that nobody has claims of.
    subject.delete(prefix("segue/")).await;
    subject.delete(one("a")).await;
    new.drop_claims().await.unwrap();
    let last = RecordTxn {
        writes: vec![RecordWrite {
            name: "state".into(),
            value: None,
        }],
        ..RecordTxn::default()
    };
    assert!(new.write_records(last).await.unwrap());
    assert!(new.is_empty().await.unwrap());
}

pub async fn changes_of_a_key_are_told(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    let changes = subject.new.changes_of("segue/switch".into()).await;
    let mut changes = changes.unwrap();
    for value in ["normal", "migration"] {
        subject.store.put("other", value).await;
        subject.store.put("segue/switch", value).await;
        assert_eq!(within(changes.next()).await, Some(()));
    }
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

pub async fn a_cleared_store_is_empty_and_refuses_who_is_behind(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    let store = &subject.store;
    let lease = store.grant(60).await;
    for n in 0..30 {
        store.put(&format!("key/{n:02}"), "1").await;
    }
    store.put_leased("leased", "1", lease).await;
    store.put("segue/switch", "1").await;
    store.put("gone", "1").await;
    store.delete(one("gone")).await;
    subject.copy_up(vec![old("copied", "1")]).await;
    let txn = RecordTxn {
        writes: (0..150)
            .map(|n| record(&format!("shards/{n}"), "1"))
            .collect(),
        ..RecordTxn::default()
    };
    for writes in txn.writes.chunks(100) {
        let txn = RecordTxn {
            writes: writes.to_vec(),
            ..RecordTxn::default()
        };
        assert!(subject.new.write_records(txn).await.unwrap());
    }
    subject.new.clear().await.unwrap();
    assert!(subject.new.is_empty().await.unwrap());
    assert_eq!(subject.new.line().await.unwrap(), None);
    assert_eq!(subject.new.records("").await.unwrap(), []);
    let put = store.store.put(Put::new("key/00", "2")).await;
    assert_eq!(put.unwrap_err(), StoreError::StaleEpoch);
    let plain = Subject::new(subject.new.guarded(Guard::None), fixture.gapless());
    assert_eq!(plain.all().await, Vec::<String>::new());
    assert_eq!(plain.store.leases().await.unwrap().reply, []);
    // Twice does no harm, and a migration can begin in it.
    subject.new.clear().await.unwrap();
    set_line(&*subject.new, Some(line(5))).await;
    let again = NewSubject::with(subject.new.clone(), 5, fixture.gapless());
    assert_eq!(again.copy_up(vec![old("key/01", "3")]).await, 1);
    assert_eq!(again.store.all().await, ["key/01"]);
    assert_eq!(again.store.value("key/01").await.as_deref(), Some("3"));
}

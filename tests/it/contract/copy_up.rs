//! Bringing keys over from the old store.

use std::time::Duration;

use futures_util::future::join_all;
use segue::store::{CopyUp, RequestError, Watch};
use segue::types::CompareResult::Equal;
use segue::types::CompareTarget::{Mod, Version};
use segue::types::{KeyRange, KeyValue, LeaseId, Op, Put, Reply, Revision, Txn};

use super::NewFixture;
use super::dsl::*;

pub async fn copies_keep_all_their_numbers(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    let other = KeyValue {
        create_revision: Revision(3),
        mod_revision: Revision(999),
        version: 77,
        ..old("b", "")
    };
    let copies = vec![old("a", "0"), other];
    assert_eq!(subject.copy_up(copies.clone()).await, 2);
    let range = segue::types::Range::of(KeyRange::all());
    assert_eq!(subject.store.range(range).await.kvs, copies);
    assert_eq!(subject.store.get("a").await, Some(old("a", "0")));
}

pub async fn it_is_no_change(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    let before = subject.store.put("first", "").await;
    let mut watched = subject.store.watch(KeyRange::all(), None).await;
    subject.copy_up(vec![old("a", "0"), old("b", "0")]).await;
    let ops = vec![get_op("c")];
    subject
        .txn_over(vec![old("c", "0")], Txn::of(ops))
        .await
        .unwrap();
    let quiet = subject.store.revision().await;
    subject.store.assert_no_step(before, quiet);
    // A copy and a change in one transaction: the change alone is an event.
    let ops = vec![put_op("d", "1"), put_op("e", "1")];
    subject
        .txn_over(vec![old("d", "0"), old("f", "0")], Txn::of(ops))
        .await
        .unwrap();
    assert_eq!(watched.words().await, ["put d=1", "put e=1"]);
    watched.assert_quiet(subject.store.revision().await).await;
    let mut past = subject.store.watch(KeyRange::all(), Some(before)).await;
    assert_eq!(past.words().await, ["put first="]);
    assert_eq!(past.words().await, ["put d=1", "put e=1"]);
}

pub async fn only_unclaimed_keys_are_copied(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    subject.store.put("live", "new").await;
    subject.store.put("gone", "new").await;
    subject.store.delete(one("gone")).await;
    let copies = ["fresh", "gone", "live"].map(|key| old(key, "old"));
    assert_eq!(subject.copy_up(copies.to_vec()).await, 1);
    assert_eq!(subject.store.value("fresh").await.as_deref(), Some("old"));
    assert_eq!(subject.store.value("gone").await, None);
    assert_eq!(subject.store.value("live").await.as_deref(), Some("new"));
    let reads = Txn::of(vec![get_op("gone"), get_op("live")]);
    let reply = subject.txn_over(copies.to_vec(), reads).await.unwrap();
    assert_eq!(range_reply(&reply.replies[0]).count, 0);
    assert_eq!(text(&range_reply(&reply.replies[1]).kvs[0].value), "new");
}

pub async fn a_claim_is_found_among_many_keys(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    // More than a look at what is there would take in.
    let names: Vec<String> = (0..2200).map(|number| format!("m{number:04}")).collect();
    for names in names.chunks(100) {
        let puts = names.iter().map(|name| put_op(name, "new")).collect();
        subject.store.txn(Txn::of(puts)).await;
    }
    subject.store.put("n", "new").await;
    subject.store.put("o", "new").await;
    subject.store.delete(one("o")).await;
    let copies = ["a", "m1100", "n", "o", "z"].map(|key| old(key, "old"));
    assert_eq!(subject.copy_up(copies.to_vec()).await, 2);
    let claims = subject.claims(span("n", "zz")).await;
    assert_eq!(claims, ["n=new", "o whiteout", "z=old"]);
    assert_eq!(subject.store.value("m1100").await.as_deref(), Some("new"));
}

pub async fn repeating_it_does_nothing(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    assert_eq!(subject.copy_up(vec![old("a", "0"), old("b", "0")]).await, 2);
    assert_eq!(subject.copy_up(vec![old("a", "0"), old("c", "0")]).await, 1);
    subject.store.put("a", "1").await;
    assert_eq!(subject.copy_up(vec![old("a", "0")]).await, 0);
    assert_eq!(subject.copy_up(vec![]).await, 0);
    assert_eq!(subject.claims(KeyRange::all()).await, ["a=1", "b=0", "c=0"]);
}

pub async fn the_first_change_knows_what_was_before(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    let request = Watch {
        prev_kv: true,
        ..Watch::of(KeyRange::all(), None)
    };
    let mut watched = subject.store.watching(request.clone()).await;
    let start = subject.store.revision().await.next();
    subject.copy_up(vec![old("a", "0")]).await;
    let put = Put {
        prev_kv: true,
        ..Put::new("a", "1")
    };
    let answer = subject.handle.put(put).await.unwrap();
    assert_eq!(answer.reply.prev_kv, Some(old("a", "0")));
    let kv = subject.store.get("a").await.unwrap();
    assert_eq!((kv.create_revision, kv.version), (Revision(10), 6));
    assert_eq!(kv.mod_revision, answer.revision);
    assert!(answer.revision > BASE);
    // The same in one transaction with the copy.
    let txn = Txn::of(vec![put_op("b", "1")]);
    subject.txn_over(vec![old("b", "0")], txn).await.unwrap();
    assert_eq!(subject.store.get("b").await.unwrap().version, 6);
    let past = Watch {
        start: Some(start),
        ..request
    };
    let mut past = subject.store.watching(past).await;
    for watched in [&mut watched, &mut past] {
        for key in ["a", "b"] {
            let batch = watched.batch().await;
            assert_eq!(words(&batch), [format!("put {key}=1")]);
            assert_eq!(batch.events[0].prev, Some(old(key, "0")));
        }
    }
}

pub async fn a_deleted_copy_leaves_a_whiteout(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    subject.copy_up(vec![old("a", "0")]).await;
    let copies = vec![old("b", "0"), old("c", "0")];
    let txn = Txn::of(vec![delete_op(KeyRange::all())]);
    subject.txn_over(copies.clone(), txn).await.unwrap();
    assert_eq!(subject.store.all().await, [""; 0]);
    let expected = ["a whiteout", "b whiteout", "c whiteout"];
    assert_eq!(subject.claims(KeyRange::all()).await, expected);
    assert_eq!(subject.copy_up(copies).await, 0);
    let born = subject.store.put("a", "1").await;
    let kv = subject.store.get("a").await.unwrap();
    assert_eq!((kv.create_revision, kv.version), (born, 1));
}

pub async fn the_past_shows_copies_as_they_were(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    let before = subject.store.put("first", "").await;
    subject.copy_up(vec![old("a", "0"), old("b", "0")]).await;
    let changed = subject.store.put("a", "1").await;
    let txn = Txn::of(vec![put_op("c", "1")]);
    subject.txn_over(vec![old("c", "0")], txn).await.unwrap();
    subject.store.delete(one("b")).await;
    for (revision, expected) in [
        (before, vec![old("a", "0"), old("b", "0"), old("c", "0")]),
        (BASE, vec![old("a", "0"), old("b", "0"), old("c", "0")]),
    ] {
        let kvs = subject.store.range(at(revision, span("a", "d"))).await.kvs;
        assert_eq!(kvs, expected, "at {revision}");
    }
    let kvs = subject.store.range(at(changed, span("a", "d"))).await.kvs;
    let values: Vec<_> = kvs.iter().map(|kv| text(&kv.value)).collect();
    assert_eq!(values, ["1", "0", "0"]);
    let claims = claims(&*subject.handle, Some(changed), span("a", "d"), 9).await;
    assert_eq!(claims, ["a=1", "b=0", "c=0"]);
}

pub async fn its_record_is_written_with_it_or_nothing_is(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    let copy_up = |key, expected| CopyUp {
        kvs: vec![old(key, "0")],
        record: Some((record("cursor/1", "a key"), expected)),
    };
    let handle = &subject.handle;
    assert_eq!(handle.copy_up(copy_up("a", 0)).await.unwrap(), Some(1));
    let records = subject.new.records("cursor/").await.unwrap();
    assert_eq!((records.len(), records[0].version), (1, 1));
    assert_eq!(handle.copy_up(copy_up("b", 0)).await.unwrap(), None);
    assert_eq!(subject.store.all().await, ["a"]);
    assert_eq!(subject.claims(one("b")).await, [""; 0]);
    assert_eq!(handle.copy_up(copy_up("a", 1)).await.unwrap(), Some(0));
    let records = subject.new.records("cursor/").await.unwrap();
    assert_eq!(records[0].version, 2, "written although nothing was copied");
}

pub async fn its_record_is_never_ahead_of_the_data(fixture: &dyn NewFixture) {
    // More than one transaction's worth, where the store cuts them up; any of them may fail.
    const KEYS: usize = 200;
    let subject = NewSubject::of(fixture).await;
    for (round, failing) in [0, 70, KEYS - 1].into_iter().enumerate() {
        let name = |number| format!("{round}/{number:03}");
        let mut kvs: Vec<_> = (0..KEYS).map(|number| old(&name(number), "0")).collect();
        kvs[failing].lease = LeaseId(4711);
        let record = Some((record("cursor", "behind the last"), 0));
        let copy_up = CopyUp { kvs, record };
        let refusal = refused(subject.handle.copy_up(copy_up).await);
        assert_eq!(refusal, RequestError::LeaseNotFound);
        assert_eq!(subject.new.records("cursor").await.unwrap(), []);
    }
}

pub async fn copies_are_attached_to_their_leases(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    let lease = subject.store.grant(60).await;
    let copy = KeyValue {
        lease,
        ..old("a", "0")
    };
    subject.copy_up(vec![copy.clone()]).await;
    assert_eq!(subject.store.get("a").await, Some(copy));
    let status = subject.handle.time_to_live(lease, true).await.unwrap();
    assert_eq!(status.reply.unwrap().keys, ["a"]);
    subject.handle.revoke(lease).await.unwrap();
    assert_eq!(subject.claims(KeyRange::all()).await, ["a whiteout"]);
}

pub async fn a_copy_whose_lease_does_not_exist_is_refused(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    let leased = KeyValue {
        lease: LeaseId(4711),
        ..old("b", "0")
    };
    let kvs = vec![old("a", "0"), leased];
    let record = Some((record("cursor", "a key"), 0));
    let refusal = refused(subject.handle.copy_up(CopyUp { kvs, record }).await);
    assert_eq!(refusal, RequestError::LeaseNotFound);
    assert_eq!(subject.claims(KeyRange::all()).await, [""; 0]);
    assert_eq!(subject.new.records("cursor").await.unwrap(), []);
}

pub async fn a_transaction_runs_over_its_copies(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    // A compare-and-swap on numbers from before the migration.
    let swap = |key: &str, version| Txn {
        compares: vec![
            compare(one(key), Equal, Version(version)),
            compare(one(key), Equal, Mod(Revision(20))),
        ],
        ..Txn::of(vec![put_op(key, "swapped")])
    };
    let reply = subject.txn_over(vec![old("a", "0")], swap("a", 5)).await;
    assert!(reply.unwrap().succeeded);
    let reply = subject.txn_over(vec![old("a", "0")], swap("a", 5)).await;
    assert!(!reply.unwrap().succeeded);
    let reply = subject.txn_over(vec![old("b", "0")], swap("b", 4)).await;
    assert!(!reply.unwrap().succeeded);
    assert_eq!(subject.claims(KeyRange::all()).await, ["a=swapped", "b=0"]);
    let keep = Op::Put(Put {
        value: None,
        ..Put::new("c", "")
    });
    let txn = Txn::of(vec![keep, get_op("c")]);
    let reply = subject.txn_over(vec![old("c", "0")], txn).await.unwrap();
    assert_eq!(range_reply(&reply.replies[1]).kvs[0].version, 6);
}

pub async fn transactions_at_the_same_time_each_have_their_copies(fixture: &dyn NewFixture) {
    const MANY: usize = 60;
    const UNLUCKY: usize = 7;
    let subject = NewSubject::of(fixture).await;
    let own = |number: usize| format!("own/{number:02}");
    let transactions = (0..MANY).map(|number| {
        let mut copies = vec![old(&own(number), "0"), old("shared", "0")];
        if number == UNLUCKY {
            copies[0].lease = LeaseId(4711);
        }
        subject.txn_over(copies, Txn::of(vec![put_op(&own(number), "1")]))
    });
    let outcomes = join_all(transactions).await;
    for (number, outcome) in outcomes.into_iter().enumerate() {
        let kv = subject.store.get(&own(number)).await;
        if number == UNLUCKY {
            assert_eq!(refused(outcome), RequestError::LeaseNotFound);
            assert_eq!(kv, None);
            continue;
        }
        outcome.unwrap();
        let kv = kv.unwrap();
        assert_eq!(
            (kv.create_revision, kv.version),
            (Revision(10), 6),
            "{number}"
        );
        assert!(kv.mod_revision > BASE);
    }
    assert_eq!(subject.store.get("shared").await, Some(old("shared", "0")));
}

pub async fn copies_stay_if_the_transaction_fails(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    let before = subject.store.revision().await;
    let failing = Op::Put(leased("x", "", LeaseId(4711)));
    let txn = Txn::of(vec![put_op("a", "1"), failing]);
    let refusal = refused(subject.txn_over(vec![old("a", "0")], txn).await);
    assert_eq!(refusal, RequestError::LeaseNotFound);
    subject
        .store
        .assert_no_step(before, subject.store.revision().await);
    assert_eq!(subject.store.get("x").await, None);
    // Whether the copy is there is the store's choice where it is undone with the transaction:
    // the next one makes it again. The change must not be.
    let reply = subject
        .txn_over(vec![old("a", "0")], Txn::of(vec![get_op("a")]))
        .await
        .unwrap();
    assert_eq!(range_reply(&reply.replies[0]).kvs, [old("a", "0")]);
}

pub async fn racing_copies_of_a_key_agree(fixture: &dyn NewFixture) {
    let subject = NewSubject::of(fixture).await;
    let copies = || (0..20).map(|n| old(&format!("k{n:02}"), "old")).collect();
    let backfill = async { subject.copy_up(copies()).await };
    let increments = join_all((0..10).map(|n| {
        let subject = &subject;
        async move {
            let key = format!("k{n:02}");
            let txn = Txn::of(vec![put_op(&key, "new")]);
            let copies = vec![old(&key, "old")];
            subject.txn_over(copies, txn).await.unwrap();
        }
    }));
    let deletes = join_all((10..15).map(|n| {
        let subject = &subject;
        async move {
            let key = format!("k{n:02}");
            let txn = Txn::of(vec![delete_op(one(&key))]);
            let copies = vec![old(&key, "old")];
            subject.txn_over(copies, txn).await.unwrap();
        }
    }));
    let raced = async { tokio::join!(backfill, increments, deletes) };
    let raced = tokio::time::timeout(Duration::from_secs(30), raced).await;
    assert!(raced.is_ok(), "races end");
    assert_eq!(subject.copy_up(copies()).await, 0);
    for n in 0..20 {
        let kv = subject.store.get(&format!("k{n:02}")).await;
        let state = kv.map(|kv| (text(&kv.value), kv.version));
        let expected = match n {
            0..10 => Some(("new".to_owned(), 6)),
            10..15 => None,
            _ => Some(("old".to_owned(), 5)),
        };
        assert_eq!(state, expected, "k{n:02}");
    }
}

pub async fn what_cannot_be_copied_is_replaced_in_one_piece_or_left_alone(
    fixture: &dyn NewFixture,
) {
    let subject = NewSubject::of(fixture).await;
    let replace = async |unseen: &[&str], ops: Vec<Op>| {
        let unseen = unseen.iter().map(|key| old(key, "")).collect();
        let answer = subject.handle.replace(unseen, Txn::of(ops)).await?;
        segue::store::Result::Ok(answer.reply)
    };
    let mut watched = subject.store.watch(KeyRange::all(), None).await;
    let start = subject.store.revision().await.next();
    let failing = || Op::Put(leased("x", "", LeaseId(4711)));
    let both = || vec![put_op("a", "1"), delete_op(one("b"))];
    let refusal = refused(replace(&["a", "b"], [both(), vec![failing()]].concat()).await);
    assert_eq!(refusal, RequestError::LeaseNotFound);
    assert_eq!(subject.claims(KeyRange::all()).await, [""; 0]);

    let reply = replace(&["a", "b"], both()).await.unwrap();
    let deleted = matches!(&reply.replies[1], Reply::Delete(delete) if delete.deleted == 1);
    assert!(deleted, "{reply:?}");
    assert_eq!(subject.claims(KeyRange::all()).await, ["a=1", "b whiteout"]);
    assert_eq!(subject.store.value("b").await, None);
    let mut past = subject.store.watch(KeyRange::all(), Some(start)).await;
    for watched in [&mut watched, &mut past] {
        assert_eq!(watched.words().await, ["put a=1", "delete b"]);
    }
    // Who is claimed already is what it is here.
    let version = subject.store.get("a").await.unwrap().version;
    let reply = replace(&["a", "b"], both()).await.unwrap();
    let deleted = matches!(&reply.replies[1], Reply::Delete(delete) if delete.deleted == 0);
    assert!(deleted, "{reply:?}");
    let now = subject.store.get("a").await.unwrap();
    assert_eq!(now.version, version + 1);
    assert_eq!(subject.copy_up(vec![old("a", "0"), old("b", "0")]).await, 0);
}

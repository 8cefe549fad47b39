//! Transactions.

use segue::store::RequestError;
use segue::types::CompareResult::{Equal, Greater, Less, NotEqual};
use segue::types::CompareTarget::{Create, Lease, Mod, Value, Version};
use segue::types::{
    Compare, CompareTarget, Content, Delete, KeyRange, LeaseId, Op, Put, Range, Reply, Revision,
    SortTarget, Txn,
};

use super::Fixture;
use super::dsl::*;

pub async fn all_changes_share_one_revision(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let before = subject.put("gone", "").await;
    let ops = vec![
        put_op("a", "1"),
        put_op("b", "1"),
        delete_op(one("gone")),
        delete_op(one("gone")),
    ];
    let answer = subject.store.txn(Txn::of(ops)).await.unwrap();
    subject.assert_one_step(before, answer.revision);
    let deleted = |reply: &Reply| match reply {
        Reply::Delete(delete) => delete.deleted,
        _ => 0,
    };
    let deleted: Vec<_> = answer.reply.replies.iter().map(deleted).collect();
    assert_eq!(deleted, [0, 0, 1, 0]);
    for key in ["a", "b"] {
        let kv = subject.get(key).await.unwrap();
        assert_eq!(kv.create_revision, answer.revision);
    }
}

pub async fn conditions_choose_the_branch(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let txn = || Txn {
        compares: vec![missing("a"), missing("b")],
        success: vec![put_op("a", "1"), get_op("a")],
        failure: vec![get_op("a")],
    };
    let reply = subject.txn(txn()).await;
    assert!(reply.succeeded);
    assert_eq!(reply.replies.len(), 2);
    let before = subject.revision().await;
    let reply = subject.txn(txn()).await;
    assert!(!reply.succeeded);
    assert_eq!(reply.replies.len(), 1);
    assert_eq!(text(&range_reply(&reply.replies[0]).kvs[0].value), "1");
    assert_eq!(subject.revision().await, before);
}

pub async fn every_property_compares_as_in_etcd(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let lease = subject.grant(60).await;
    let created = subject.put("a", "m").await;
    let changed = subject.put_leased("a", "m", lease).await;
    let below = |revision: Revision| Revision(revision.0 - 1);
    for (target, equal, less, greater) in [
        (Version(2), true, false, false),
        (Version(3), false, true, false),
        (Version(1), false, false, true),
        (Create(created), true, false, false),
        (Create(changed), false, true, false),
        (Create(below(created)), false, false, true),
        (Mod(changed), true, false, false),
        (Mod(changed.next()), false, true, false),
        (Mod(created), false, false, true),
        (Value("m".into()), true, false, false),
        (Value("n".into()), false, true, false),
        (Value("mm".into()), false, true, false),
        (Value("".into()), false, false, true),
        (Lease(lease), true, false, false),
        (Lease(LeaseId::NONE), false, false, true),
    ] {
        for (result, expected) in [
            (Equal, equal),
            (NotEqual, !equal),
            (Less, less),
            (Greater, greater),
        ] {
            let condition = compare(one("a"), result, target.clone());
            assert_eq!(holds(&subject, &condition).await, expected, "{condition:?}");
        }
    }
    // A key that does not exist has numbers 0, and no value.
    let zeros = [
        Version(0),
        Create(Revision(0)),
        Mod(Revision(0)),
        Lease(LeaseId::NONE),
    ];
    for zero in zeros {
        for (result, expected) in [(Equal, true), (NotEqual, false), (Less, false)] {
            let condition = compare(one("missing"), result, zero.clone());
            assert_eq!(holds(&subject, &condition).await, expected, "{condition:?}");
        }
    }
    let above = compare(one("missing"), Less, Version(1));
    assert!(holds(&subject, &above).await);
    for result in [Equal, NotEqual, Less, Greater] {
        let condition = compare(one("missing"), result, Value("m".into()));
        assert!(!holds(&subject, &condition).await, "{condition:?}");
    }
}

pub async fn a_condition_on_a_range_holds_for_every_key_in_it(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    for key in ["a/1", "a/2", "a/2", "segue/switch"] {
        subject.put(key, "v").await;
    }
    let cases: [(KeyRange, _, CompareTarget, bool); 9] = [
        (prefix("a/"), Greater, Version(0), true),
        (prefix("a/"), Equal, Version(1), false),
        (prefix("a/"), Less, Version(3), true),
        (prefix("a/"), Equal, Value("v".into()), true),
        (prefix("a/"), NotEqual, Value("v".into()), false),
        (prefix("b/"), Equal, Version(0), true),
        (prefix("b/"), Greater, Create(Revision(0)), false),
        (prefix("b/"), NotEqual, Value("v".into()), false),
        (KeyRange::span("b", None), Equal, Version(0), true),
    ];
    for (keys, result, target, expected) in cases {
        let condition = compare(keys, result, target);
        assert_eq!(holds(&subject, &condition).await, expected, "{condition:?}");
    }
}

pub async fn operations_see_those_before_them(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    subject.put("a", "0").await;
    subject.put("c", "0").await;
    let put = |key: &str, value: &str| {
        Op::Put(Put {
            prev_kv: true,
            ..Put::new(key.to_owned(), value.to_owned())
        })
    };
    let delete = |keys| {
        let prev_kv = true;
        Op::Delete(Delete { keys, prev_kv })
    };
    let all = || Op::Range(Range::of(KeyRange::all()));
    let ops = vec![
        all(),
        put("a", "1"),
        put("b", "1"),
        all(),
        delete(one("c")),
        all(),
    ];
    let answer = subject.store.txn(Txn::of(ops)).await.unwrap();
    let replies = &answer.reply.replies;
    assert_eq!(keys_of(range_reply(&replies[0])), ["a", "c"]);
    let Reply::Put(a) = &replies[1] else {
        panic!("{replies:?}")
    };
    assert_eq!(text(&a.prev_kv.as_ref().unwrap().value), "0");
    let now = range_reply(&replies[3]);
    assert_eq!((keys_of(now), now.count), (keys(&["a", "b", "c"]), 3));
    assert_eq!(now.kvs[1].mod_revision, answer.revision);
    assert_eq!(now.kvs[0].version, 2);
    let Reply::Delete(c) = &replies[4] else {
        panic!("{replies:?}")
    };
    assert_eq!(text(&c.prev_kvs[0].value), "0");
    assert_eq!(keys_of(range_reply(&replies[5])), ["a", "b"]);
}

pub async fn a_failing_operation_undoes_the_whole_transaction(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let before = subject.put("a", "1").await;
    let mut watched = subject.watch(KeyRange::all(), None).await;
    let keep_missing = Op::Put(Put {
        value: None,
        ..Put::new("missing", "")
    });
    let failures = [
        (keep_missing, RequestError::KeyNotFound),
        (
            Op::Put(leased("c", "", LeaseId(4711))),
            RequestError::LeaseNotFound,
        ),
        (
            Op::Range(at(before.next(), one("a"))),
            RequestError::FutureRevision,
        ),
    ];
    for (failing, expected) in failures {
        let nested = Op::Txn(Txn::of(vec![failing]));
        let ops = vec![put_op("b", "2"), delete_op(one("a")), nested];
        let error = refused(subject.store.txn(Txn::of(ops)).await);
        assert_eq!(error, expected);
        assert_eq!(subject.all().await, ["a"]);
        assert_eq!(subject.revision().await, before);
    }
    let after = subject.put("c", "3").await;
    subject.assert_one_step(before, after);
    assert_eq!(watched.words().await, ["put c=3"]);
}

pub async fn nested_transactions_run_within_the_outer_one(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let before = subject.put("a", "1").await;
    let inner = Txn {
        compares: vec![missing("a")],
        success: vec![put_op("b", "wrong")],
        failure: vec![put_op("b", "right"), get_op("outer")],
    };
    let middle = Txn::of(vec![put_op("c", "1"), Op::Txn(inner)]);
    let txn = Txn {
        compares: vec![missing("nothing")],
        success: vec![put_op("outer", "1"), Op::Txn(middle), get_op("b")],
        failure: vec![],
    };
    let answer = subject.store.txn(txn).await.unwrap();
    subject.assert_one_step(before, answer.revision);
    let Reply::Txn(middle) = &answer.reply.replies[1] else {
        panic!("{answer:?}")
    };
    let Reply::Txn(inner) = &middle.replies[1] else {
        panic!("{answer:?}")
    };
    assert!(middle.succeeded && !inner.succeeded);
    assert_eq!(range_reply(&inner.replies[1]).count, 1);
    let b = &range_reply(&answer.reply.replies[2]).kvs[0];
    assert_eq!(
        (text(&b.value).as_str(), b.mod_revision),
        ("right", answer.revision)
    );
    assert_eq!(subject.all().await, ["a", "b", "c", "outer"]);
}

pub async fn nested_conditions_are_decided_before_any_operation(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let nested = Txn {
        compares: vec![missing("a")],
        success: vec![get_op("a")],
        failure: vec![],
    };
    let txn = Txn::of(vec![put_op("a", "1"), Op::Txn(nested)]);
    let reply = subject.txn(txn).await;
    let Reply::Txn(nested) = &reply.replies[1] else {
        panic!("{reply:?}")
    };
    assert!(nested.succeeded, "the state before the transaction decides");
    assert_eq!(range_reply(&nested.replies[0]).count, 1);
}

pub async fn one_that_changes_nothing_takes_no_revision(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let before = subject.put("a", "1").await;
    for ops in [
        vec![],
        vec![get_op("a")],
        vec![delete_op(one("b")), get_op("a")],
        vec![Op::Txn(Txn::of(vec![delete_op(prefix("b"))]))],
    ] {
        let answer = subject.store.txn(Txn::of(ops)).await.unwrap();
        assert_eq!(answer.revision, before);
        assert!(answer.reply.succeeded, "no conditions, no failure");
    }
    let after = subject.put("a", "2").await;
    subject.assert_one_step(before, after);
}

pub async fn the_past_can_be_read_within_one(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let first = subject.put("a", "1").await;
    let second = subject.put("a", "2").await;
    let past = |revision| Op::Range(at(revision, one("a")));
    let ops = vec![put_op("a", "3"), past(first), past(second), get_op("a")];
    let reply = subject.txn(Txn::of(ops)).await;
    let values = reply.replies[1..].iter();
    let values: Vec<_> = values
        .map(|reply| text(&range_reply(reply).kvs[0].value))
        .collect();
    assert_eq!(values, ["1", "2", "3"]);
    subject.store.compact(second).await.unwrap();
    let compacted = Txn::of(vec![put_op("a", "4"), past(first)]);
    assert_compacted(subject.store.txn(compacted).await);
    assert_eq!(subject.value("a").await.as_deref(), Some("3"));
}

pub async fn ranges_within_one_answer_like_those_that_stand_alone(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    for (key, value) in [
        ("a", "1"),
        ("b/1", "9"),
        ("b/2", "8"),
        ("b/3", "7"),
        ("c", "2"),
    ] {
        subject.put(key, value).await;
    }
    subject.put("segue/switch", "migration").await;
    let all = || Range::of(KeyRange::all());
    let ranges = [
        all(),
        Range::key("a"),
        Range {
            content: Content::KeysOnly,
            ..all()
        },
        Range {
            content: Content::CountOnly,
            ..all()
        },
        Range {
            limit: 2,
            ..Range::of(prefix("b/"))
        },
        Range {
            sort: SortTarget::Value,
            limit: 1,
            content: Content::KeysOnly,
            ..Range::of(prefix("b/"))
        },
        Range::of(prefix("nothing")),
        Range::key("b/2"),
    ];
    let mut expected = Vec::new();
    for range in &ranges {
        expected.push(subject.range(range.clone()).await);
    }
    let ops = || -> Vec<_> { ranges.iter().cloned().map(Op::Range).collect() };
    let other = || vec![Op::Range(all()), get_op("c")];
    for (compares, success, failure, succeeded) in [
        (vec![], ops(), other(), true),
        (vec![missing("none")], ops(), other(), true),
        (vec![missing("a")], other(), ops(), false),
    ] {
        let reads = Txn {
            compares,
            success,
            failure,
        };
        let mut writes = reads.clone();
        for branch in [&mut writes.success, &mut writes.failure] {
            branch.push(put_op("a", "1"));
        }
        for txn in [reads, writes] {
            let reply = subject.txn(txn).await;
            assert_eq!(reply.succeeded, succeeded);
            let replies = reply.replies.iter().take(ranges.len());
            for ((range, expected), reply) in ranges.iter().zip(&expected).zip(replies) {
                assert_eq!(range_reply(reply), expected, "{range:?}");
            }
        }
        // What was written has another mod revision now.
        for (range, expected) in ranges.iter().zip(&mut expected) {
            *expected = subject.range(range.clone()).await;
        }
    }
}

pub async fn a_hundred_and_twenty_eight_operations_are_one_transaction(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let before = subject.revision().await;
    let ops = (0..128).map(|n| put_op(&format!("k{n:03}"), "v"));
    let answer = subject.store.txn(Txn::of(ops.collect())).await.unwrap();
    subject.assert_one_step(before, answer.revision);
    assert_eq!(subject.all().await.len(), 128);
}

pub async fn concurrent_increments_are_serialized(fixture: &dyn Fixture) {
    const WORKERS: usize = 8;
    const EACH: usize = 10;
    let subject = Subject::of(fixture).await;
    subject.put("counter", "0").await;
    let worker = || async {
        for _ in 0..EACH {
            loop {
                let kv = subject.get("counter").await.unwrap();
                let next = text(&kv.value).parse::<usize>().unwrap() + 1;
                let unchanged = compare(one("counter"), Equal, Mod(kv.mod_revision));
                let txn = Txn {
                    compares: vec![unchanged],
                    ..Txn::of(vec![put_op("counter", &next.to_string())])
                };
                if subject.txn(txn).await.succeeded {
                    break;
                }
            }
        }
    };
    futures_util::future::join_all((0..WORKERS).map(|_| worker())).await;
    let kv = subject.get("counter").await.unwrap();
    assert_eq!(text(&kv.value), (WORKERS * EACH).to_string());
    assert_eq!(kv.version, i64::try_from(WORKERS * EACH).unwrap() + 1);
}

async fn holds(subject: &Subject, condition: &Compare) -> bool {
    let txn = Txn {
        compares: vec![condition.clone()],
        ..Txn::default()
    };
    subject.txn(txn).await.succeeded
}

fn keys(keys: &[&str]) -> Vec<String> {
    keys.iter().map(ToString::to_string).collect()
}

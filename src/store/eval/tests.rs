use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::types::{CompareResult, Content, Direction, SortTarget};

/// Rows at revision 10, each with its whiteouts; the past is empty.
#[derive(Default)]
struct Fixed {
    rows: BTreeMap<Bytes, KeyValue>,
    whiteouts: BTreeSet<Bytes>,
}

impl Rows for Fixed {
    fn get(&self, key: &[u8]) -> Option<&KeyValue> {
        self.rows.get(key)
    }

    fn range<'a>(&'a self, keys: &KeyRange) -> Box<dyn Iterator<Item = &'a KeyValue> + 'a> {
        Box::new(self.rows.range::<[u8], _>(keys.bounds()).map(|(_, kv)| kv))
    }

    fn past(&self, keys: &KeyRange, at: Revision) -> Vec<KeyValue> {
        let was_there = self.range(keys).filter(|kv| kv.mod_revision <= at);
        was_there.cloned().collect()
    }

    fn is_claimed(&self, key: &[u8]) -> bool {
        self.rows.contains_key(key) || self.whiteouts.contains(key)
    }

    fn has_lease(&self, id: LeaseId) -> bool {
        id == LeaseId(1)
    }

    fn attached(&self, id: LeaseId) -> Vec<Bytes> {
        let attached = self.rows.values().filter(|kv| kv.lease == id);
        attached.map(|kv| kv.key.clone()).collect()
    }
}

fn kv(key: &'static str, value: &'static str, create: i64, modified: i64) -> KeyValue {
    KeyValue {
        key: key.into(),
        create_revision: Revision(create),
        mod_revision: Revision(modified),
        version: modified - create + 1,
        value: value.into(),
        lease: LeaseId::NONE,
    }
}

fn rows(kvs: Vec<KeyValue>) -> Fixed {
    Fixed {
        rows: kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect(),
        whiteouts: BTreeSet::new(),
    }
}

fn check(rows: &Fixed, run: impl FnOnce(&mut Working<'_, Fixed>)) -> Outcome {
    let reserved = Reserved::default();
    let mut working = Working::new(rows, &reserved, Revision(10), Revision(3));
    run(&mut working);
    working.finish()
}

fn put(key: &'static str, value: &'static str) -> Txn {
    Txn::of(vec![Op::Put(Put::new(key, value))])
}

fn delete(keys: KeyRange) -> Txn {
    let prev_kv = false;
    Txn::of(vec![Op::Delete(Delete { keys, prev_kv })])
}

fn keys(reply: &RangeReply) -> Vec<&[u8]> {
    reply.kvs.iter().map(|kv| &kv.key[..]).collect()
}

#[test]
fn transactions_of_a_batch_have_their_own_revisions_and_see_each_other() {
    let outcome = check(&rows(vec![kv("a", "0", 4, 5)]), |working| {
        assert_eq!(working.txn(&put("a", "1")).map(|a| a.revision.0), Ok(11));
        assert_eq!(working.txn(&put("b", "1")).map(|a| a.revision.0), Ok(12));
        let nothing = working.txn(&delete(KeyRange::One("c".into())));
        assert_eq!(nothing.map(|a| a.revision.0), Ok(12));
        assert_eq!(
            working.txn(&delete(KeyRange::all())).map(|a| a.revision.0),
            Ok(13)
        );
    });
    assert_eq!(outcome.revision, Revision(13));
    let deleted = &outcome.batches[2].events;
    assert_eq!(deleted[0].prev.as_ref().map(|kv| kv.version), Some(3));
    assert_eq!(deleted[1].prev, Some(kv("b", "1", 12, 12)));
    assert_eq!(outcome.rows.len(), 2);
    assert_eq!(outcome.rows[0].before, Some(kv("a", "0", 4, 5)));
    assert_eq!(outcome.rows[0].after, None);
}

#[test]
fn a_transaction_that_fails_leaves_nothing_behind() {
    let old = kv("a", "0", 4, 5);
    let outcome = check(&rows(vec![old.clone()]), |working| {
        working.txn(&put("b", "1")).unwrap();
        let keep = Put {
            value: None,
            ..Put::new("missing", "")
        };
        let failing = Txn::of(vec![
            Op::Put(Put::new("a", "2")),
            Op::Put(Put::new("b", "2")),
            Op::Put(Put::new("c", "2")),
            Op::Put(keep),
        ]);
        assert_eq!(working.txn(&failing), Err(RequestError::KeyNotFound));
        assert_eq!(working.get(b"a"), Some(&old));
        assert_eq!(working.get(b"b"), Some(&kv("b", "1", 11, 11)));
        assert_eq!(working.get(b"c"), None);
    });
    assert_eq!(outcome.revision, Revision(11));
    assert_eq!(outcome.rows.len(), 1);
    assert_eq!(outcome.batches.len(), 1);
}

#[test]
fn conditions_of_nested_transactions_are_decided_before_any_operation() {
    let missing = Compare {
        keys: KeyRange::One("a".into()),
        result: CompareResult::Equal,
        target: CompareTarget::Version(0),
    };
    check(&rows(vec![]), |working| {
        let nested = Txn {
            compares: vec![missing],
            success: vec![Op::Range(Range::key("a"))],
            failure: vec![],
        };
        let txn = Txn::of(vec![Op::Put(Put::new("a", "1")), Op::Txn(nested)]);
        let reply = working.txn(&txn).unwrap().reply;
        let Reply::Txn(nested) = &reply.replies[1] else {
            panic!("{reply:?}")
        };
        assert!(nested.succeeded);
        let Reply::Range(range) = &nested.replies[0] else {
            panic!("{nested:?}")
        };
        assert_eq!(range.kvs, vec![kv("a", "1", 11, 11)]);
    });
}

#[test]
fn a_copy_up_takes_unclaimed_keys_only_and_no_revision() {
    let mut rows = rows(vec![kv("live", "new", 4, 5)]);
    rows.whiteouts.insert("gone".into());
    let outcome = check(&rows, |working| {
        let copies = [
            kv("fresh", "old", 1, 2),
            kv("gone", "old", 1, 2),
            kv("live", "old", 1, 2),
            kv("stays", "old", 1, 2),
        ];
        assert_eq!(working.copy_up(&copies), Ok(2));
        assert_eq!(working.copy_up(&copies), Ok(0));
        assert_eq!(
            working.txn(&put("fresh", "2")).map(|a| a.revision.0),
            Ok(11)
        );
        let past = Range {
            at: Some(Revision(10)),
            ..Range::of(KeyRange::all())
        };
        assert_eq!(
            keys(&working.range(&past).unwrap()),
            [&b"fresh"[..], b"live", b"stays"]
        );
        assert_eq!(working.range(&past).unwrap().kvs[0].value, "old");
    });
    assert_eq!(outcome.batches.len(), 1);
    let first_change = &outcome.batches[0].events[0];
    assert_eq!(first_change.prev, Some(kv("fresh", "old", 1, 2)));
    let Change::Put(after) = &first_change.change else {
        panic!("{first_change:?}")
    };
    assert_eq!((after.create_revision, after.version), (Revision(1), 3));
    assert_eq!(outcome.rows[0].copied, Some(kv("fresh", "old", 1, 2)));
    assert_eq!(outcome.rows[1].after, outcome.rows[1].copied);
}

#[test]
fn a_copy_stays_when_its_transaction_fails() {
    let outcome = check(&rows(vec![]), |working| {
        working.copy_up(&[kv("a", "old", 1, 2)]).unwrap();
        let lease = Some(LeaseId(9));
        let failing = Txn::of(vec![
            Op::Put(Put::new("a", "new")),
            Op::Put(Put {
                lease,
                ..Put::new("b", "")
            }),
        ]);
        assert_eq!(working.txn(&failing), Err(RequestError::LeaseNotFound));
    });
    assert_eq!(outcome.rows.len(), 1);
    assert_eq!(outcome.rows[0].after, Some(kv("a", "old", 1, 2)));
}

#[test]
fn revoking_deletes_what_is_attached_at_that_moment_in_one_revision() {
    let leased = |key| KeyValue {
        lease: LeaseId(1),
        ..kv(key, "", 4, 5)
    };
    let rows = rows(vec![leased("a"), leased("b")]);
    let outcome = check(&rows, |working| {
        working.txn(&put("a", "detached")).unwrap();
        let attach = Put {
            lease: Some(LeaseId(1)),
            ..Put::new("c", "")
        };
        working
            .txn(&Txn::of(vec![Op::Put(attach.clone())]))
            .unwrap();
        working.copy_up(&[leased("d")]).unwrap();
        assert_eq!(working.revoke(LeaseId(1)), Ok(Revision(13)));
        assert_eq!(working.revoke(LeaseId(1)), Err(RequestError::LeaseNotFound));
        let late = working.txn(&Txn::of(vec![Op::Put(attach)]));
        assert_eq!(late, Err(RequestError::LeaseNotFound));
    });
    let deleted: Vec<_> = outcome.batches[2].events.iter().map(Event::key).collect();
    assert_eq!(deleted, ["b", "c", "d"]);
}

#[test]
fn a_revision_below_0_is_compacted_like_any_other_that_is_behind() {
    let rows = rows(vec![kv("a", "0", 4, 5)]);
    let reserved = Reserved::default();
    for (compacted, at, is_read) in [(0, -1, true), (0, -2, false), (3, -1, false)] {
        let mut working = Working::new(&rows, &reserved, Revision(10), Revision(compacted));
        let read = Op::Range(Range {
            at: Some(Revision(at)),
            ..Range::key("a")
        });
        let read_and_write = Txn::of(vec![Op::Put(Put::new("b", "")), read.clone()]);
        for txn in [Txn::of(vec![read]), read_and_write] {
            let told = working.txn(&txn).map(drop);
            let expected = if is_read {
                Ok(())
            } else {
                Err(RequestError::Compacted(Revision(compacted)))
            };
            assert_eq!(told, expected, "{at}, compacted at {compacted}");
        }
        assert_eq!(working.finish().rows.is_empty(), !is_read);
    }
}

#[test]
fn reads_of_the_past_reach_into_the_batch() {
    check(&rows(vec![kv("a", "0", 4, 5)]), |working| {
        working.txn(&put("a", "1")).unwrap();
        working.txn(&delete(KeyRange::One("a".into()))).unwrap();
        for (at, expected) in [
            (2, Err(RequestError::Compacted(Revision(3)))),
            (10, Ok(vec![kv("a", "0", 4, 5)])),
            (11, Ok(vec![kv("a", "1", 4, 11)])),
            (12, Ok(vec![])),
            (13, Err(RequestError::FutureRevision)),
        ] {
            let at = Some(Revision(at));
            let reply = working.range(&Range {
                at,
                ..Range::key("a")
            });
            // The helper counts versions by revisions, which the jump from 5 to 11 breaks.
            let reply = reply.map(|reply| {
                let renumbered = |kv: KeyValue| KeyValue {
                    version: kv.mod_revision.0 - kv.create_revision.0 + 1,
                    ..kv
                };
                reply.kvs.into_iter().map(renumbered).collect::<Vec<_>>()
            });
            assert_eq!(reply, expected, "at {at:?}");
        }
    });
}

#[test]
fn reserved_keys_are_hidden_from_ranges_deletes_and_compares_that_cross_them() {
    let rows = rows(vec![
        kv("a", "", 4, 4),
        kv("segue/switch", "", 4, 5),
        kv("z", "", 4, 4),
    ]);
    let outcome = check(&rows, |working| {
        let all = working.range(&Range::of(KeyRange::all())).unwrap();
        assert_eq!((keys(&all), all.count), (vec![&b"a"[..], b"z"], 2));
        let own = working
            .range(&Range::of(KeyRange::prefix("segue/")))
            .unwrap();
        assert_eq!(own.count, 1);
        let all_new = Compare {
            keys: KeyRange::all(),
            result: CompareResult::Equal,
            target: CompareTarget::Version(1),
        };
        let txn = Txn {
            compares: vec![all_new],
            ..delete(KeyRange::all())
        };
        assert!(working.txn(&txn).unwrap().reply.succeeded);
    });
    assert_eq!(outcome.rows.len(), 2);
}

#[test]
fn replies_are_filtered_sorted_and_cut_in_this_order() {
    let rows = rows(vec![
        kv("a", "x", 4, 9),
        kv("b", "w", 5, 5),
        kv("c", "x", 6, 8),
        kv("d", "v", 7, 7),
    ]);
    let base = Range::of(KeyRange::all());
    let sorted = |sort, direction| Range {
        sort,
        direction,
        ..base.clone()
    };
    let filter = crate::types::RevisionFilter {
        min_mod: Revision(7),
        ..Default::default()
    };
    for (request, expected, more) in [
        (
            Range {
                limit: 2,
                ..base.clone()
            },
            "ab",
            true,
        ),
        (
            Range {
                limit: 4,
                ..base.clone()
            },
            "abcd",
            false,
        ),
        (
            Range {
                limit: 2,
                filter,
                ..base.clone()
            },
            "ac",
            true,
        ),
        (
            sorted(SortTarget::Key, Direction::Descending),
            "dcba",
            false,
        ),
        (sorted(SortTarget::Mod, Direction::Ascending), "bdca", false),
        (
            sorted(SortTarget::Create, Direction::Descending),
            "dcba",
            false,
        ),
        (
            sorted(SortTarget::Version, Direction::Ascending),
            "bdca",
            false,
        ),
        (
            sorted(SortTarget::Value, Direction::Ascending),
            "dbac",
            false,
        ),
        (
            sorted(SortTarget::Value, Direction::Descending),
            "acbd",
            false,
        ),
        (sorted(SortTarget::Value, Direction::Unsaid), "dbac", false),
        (
            Range {
                limit: 1,
                ..sorted(SortTarget::Value, Direction::Unsaid)
            },
            "b",
            true,
        ),
        (
            Range {
                limit: 1,
                content: Content::CountOnly,
                ..base.clone()
            },
            "",
            false,
        ),
    ] {
        check(&rows, |working| {
            let reply = working.range(&request).unwrap();
            let got: Vec<u8> = reply.kvs.iter().map(|kv| kv.key[0]).collect();
            assert_eq!(
                (got, reply.more),
                (expected.as_bytes().to_vec(), more),
                "{request:?}"
            );
            assert_eq!(reply.count, 4);
        });
    }
}

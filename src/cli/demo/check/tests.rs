//! Each way to break a promise is tried on a ledger that is otherwise in order.

use super::*;
use crate::cli::demo::ledger::{Fingerprint, Sum, Write};

fn facts(create: i64, modified: i64, version: i64, value: &str) -> Facts {
    Facts {
        create,
        modified,
        version,
        lease: 0,
        value: Fingerprint::of(value.as_bytes()),
    }
}

fn write(revision: i64, effects: Vec<Effect>) -> Write {
    Write { revision, effects }
}

fn put(key: &'static str, value: &str) -> Effect {
    Effect::put(&key.into(), value.as_bytes())
}

fn seen(key: &'static str, revision: i64, put: Option<Facts>, prev: Option<Facts>) -> Seen {
    let key = key.into();
    Seen {
        key,
        revision,
        put,
        prev,
    }
}

/// A store with `/a`, `/b` and `/c` at revision 10; then `/a` is written (11), `/b` deleted (12),
/// `/d` made and `/a` written in one transaction (13), and everything from `/c` on removed but
/// for `/z`, a session that ran out (14, 15). One watch saw it all.
fn story() -> (Entries, Finals) {
    let (a, b, c) = (
        facts(2, 5, 3, "a"),
        facts(3, 3, 1, "b"),
        facts(4, 4, 1, "c"),
    );
    let (a11, a13) = (facts(2, 11, 4, "a11"), facts(2, 13, 5, "a13"));
    let d13 = facts(13, 13, 1, "d");
    let z = facts(9, 9, 1, "z");
    let seeds = [("/a", a), ("/b", b), ("/c", c), ("/z", z)];
    let mut digest = Digest::default();
    digest.add(b"/a", 2, 11, 4);
    let entries = Entries {
        opened: 10,
        seeds: seeds.map(|(key, facts)| (key.into(), facts)).into(),
        writes: vec![
            write(13, vec![put("/d", "d"), put("/a", "a13")]),
            write(11, vec![put("/a", "a11")]),
            write(12, vec![Effect::Delete("/b".into())]),
            write(
                15,
                vec![Effect::Clear {
                    keys: KeyRange::span("/c", Some("/z".into())),
                    deleted: 2,
                }],
            ),
        ],
        expiring: [Bytes::from("/z")].into(),
        held: [7].into(),
        sums: [(
            "the sum",
            Sum {
                keys: ["/a".into(), "/none".into()].into(),
                total: 5,
            },
        )]
        .into(),
        doubts: BTreeSet::new(),
        doubtful_ranges: Vec::new(),
        reads: vec![KeyRead {
            key: "/a".into(),
            revision: 12,
            floor: 11,
            seen: Some(a11),
        }],
        lists: vec![ListRead {
            keys: KeyRange::prefix("/"),
            limit: 1,
            revision: 12,
            floor: 12,
            count: 3,
            digest: Some(digest),
        }],
        watches: vec![Watched {
            name: "all".into(),
            keys: KeyRange::all(),
            prev_kv: true,
            from: 11,
            events: vec![
                seen("/a", 11, Some(a11), Some(a)),
                seen("/b", 12, None, Some(b)),
                seen("/d", 13, Some(d13), None),
                seen("/a", 13, Some(a13), Some(a11)),
                seen("/z", 14, None, Some(z)),
                seen("/c", 15, None, Some(c)),
                seen("/d", 15, None, Some(d13)),
            ],
        }],
    };
    let finals = Finals {
        keys: [("/a".into(), a13)].into(),
        bytes: 0,
        numbers: [("/a".into(), 5)].into(),
        leases: [7, 8].into(),
    };
    (entries, finals)
}

/// What is found after `damage` was done to the story, as `kind count` per broken promise.
fn found(damage: impl FnOnce(&mut Entries, &mut Finals)) -> Vec<String> {
    let (mut entries, mut finals) = story();
    damage(&mut entries, &mut finals);
    check(&entries, &finals)
        .all()
        .into_iter()
        .filter(|(_, tally)| tally.count > 0)
        .map(|(kind, tally)| format!("{kind} {}", tally.count))
        .collect()
}

#[test]
fn a_ledger_in_order_has_no_findings() {
    assert_eq!(found(|_, _| {}), Vec::<String>::new());
}

#[test]
fn a_lost_key_is_noticed() {
    let lost = found(|_, finals| {
        finals.keys.clear();
    });
    assert_eq!(lost, ["lost keys 1"]);
}

#[test]
fn a_lost_write_is_noticed_though_the_key_is_there() {
    let lost = found(|_, finals| {
        finals.keys.insert("/a".into(), facts(2, 11, 4, "a11"));
    });
    assert_eq!(lost, ["lost keys 1"]);
}

#[test]
fn an_untouched_key_that_is_gone_is_noticed() {
    let lost = found(|entries, _| {
        entries.seeds.insert("/0".into(), facts(8, 8, 1, "0"));
        entries.lists.clear();
    });
    assert_eq!(lost, ["lost keys 1"]);
}

#[test]
fn a_resurrected_key_is_noticed() {
    for (key, facts) in [
        ("/b", facts(3, 3, 1, "b")),
        ("/c", facts(4, 4, 1, "c")),
        ("/z", facts(9, 9, 1, "z")),
        ("/deleted-before", facts(1, 1, 1, "x")),
    ] {
        let resurrected = found(|_, finals| {
            finals.keys.insert(key.into(), facts);
        });
        assert_eq!(resurrected, ["resurrected keys 1"], "{key}");
    }
}

#[test]
fn an_altered_key_is_noticed() {
    for other in [
        facts(2, 13, 5, "other"),
        facts(3, 13, 5, "a13"),
        facts(2, 13, 1, "a13"),
        Facts {
            lease: 7,
            ..facts(2, 13, 5, "a13")
        },
    ] {
        let altered = found(|_, finals| {
            finals.keys.insert("/a".into(), other);
        });
        assert_eq!(altered, ["altered keys 1"], "{other:?}");
    }
}

#[test]
fn a_missed_event_is_noticed() {
    for index in [0, 1, 2, 3, 5, 6] {
        let missed = found(|entries, _| {
            entries.watches[0].events.remove(index);
        });
        assert_eq!(missed, ["missed watch events 1"], "event {index}");
    }
}

#[test]
fn the_end_of_a_session_that_nobody_saw_is_a_missed_event() {
    let missed = found(|entries, _| {
        entries.watches[0].events.remove(4);
        entries.lists.clear();
    });
    assert_eq!(missed, ["missed watch events 1"]);
}

#[test]
fn a_repeated_event_is_noticed() {
    for index in 0..7 {
        let repeated = found(|entries, _| {
            let event = entries.watches[0].events[index].clone();
            entries.watches[0].events.push(event);
        });
        assert_eq!(repeated, ["repeated watch events 1"], "event {index}");
    }
}

#[test]
fn an_event_from_before_the_watch_is_a_repeated_one() {
    let repeated = found(|entries, _| {
        let old = seen("/c", 4, Some(facts(4, 4, 1, "c")), None);
        entries.watches[0].events.insert(0, old);
    });
    assert_eq!(repeated, ["repeated watch events 1"]);
}

#[test]
fn a_wrong_event_is_noticed() {
    let out_of_order = found(|entries, _| entries.watches[0].events.swap(0, 1));
    assert_eq!(out_of_order, ["wrong watch events 1"]);
    let invented = found(|entries, _| {
        let event = seen("/c", 16, Some(facts(4, 16, 2, "c")), None);
        entries.watches[0].events.push(event);
    });
    assert_eq!(invented, ["wrong watch events 1"]);
    let without_prev = found(|entries, _| entries.watches[0].events[1].prev = None);
    assert_eq!(without_prev, ["wrong watch events 1"]);
}

#[test]
fn a_wrong_answer_is_noticed() {
    let stale = found(|entries, _| entries.reads[0].floor = 13);
    assert_eq!(stale, ["wrong answers 1"]);
    let absent = found(|entries, _| entries.reads[0].seen = None);
    assert_eq!(absent, ["wrong answers 1"]);
    let miscounted = found(|entries, _| entries.lists[0].count = 4);
    assert_eq!(miscounted, ["wrong answers 1"]);
    let other_keys = found(|entries, _| entries.lists[0].digest = Some(Digest::default()));
    assert_eq!(other_keys, ["wrong answers 1"]);
}

#[test]
fn a_counter_that_lost_an_increment_and_a_lost_lease_are_noticed() {
    let wrong = found(|_, finals| {
        finals.numbers.insert("/a".into(), 4);
    });
    assert_eq!(wrong, ["wrong sums 1"]);
    let lost = found(|_, finals| {
        finals.leases.remove(&7);
    });
    assert_eq!(lost, ["lost leases 1"]);
}

#[test]
fn a_revision_that_is_given_out_twice_is_noticed() {
    for revision in [9, 13] {
        let twice = found(|entries, _| {
            entries.writes.push(write(revision, Vec::new()));
        });
        assert_eq!(twice, ["wrong answers 1"], "{revision}");
    }
}

#[test]
fn nothing_is_said_about_a_write_whose_outcome_nobody_knows() {
    let (_, finals) = story();
    let a = finals.keys[b"/a".as_slice()];
    for range in [false, true] {
        let nothing = found(|entries, finals| {
            if range {
                entries.doubtful_ranges.push(KeyRange::prefix("/a"));
            } else {
                entries.doubts.insert("/a".into());
            }
            finals.keys.insert("/a".into(), Facts { modified: 20, ..a });
            let event = seen("/a", 20, Some(a), None);
            entries.watches[0].events.push(event);
        });
        assert_eq!(nothing, Vec::<String>::new());
    }
}

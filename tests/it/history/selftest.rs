//! The check notices each kind of broken promise, and finds nothing where all are kept.

use std::time::Duration;

use super::{Batch, Call, Event, History, Operation, Outcome, Pair, Reply, Rule, WatchLog, check};

fn pair(key: &str, value: &str, created: i64, modified: i64, version: i64) -> Pair {
    Pair {
        key: key.into(),
        value: value.into(),
        created,
        modified,
        version,
        lease: 0,
    }
}

fn done(revision: i64, changed: bool, pairs: Vec<Pair>) -> Outcome {
    Outcome::Done(Reply {
        revision,
        pairs,
        changed,
    })
}

fn operation(client: usize, ms: (u64, u64), call: Call, outcome: Outcome) -> Operation {
    Operation {
        client,
        start: Duration::from_millis(ms.0),
        end: Duration::from_millis(ms.1),
        call,
        outcome,
    }
}

fn put(pairs: &[(&str, &str)]) -> Call {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    Call::Put {
        pairs: pairs.iter().map(owned).collect(),
        lease: 0,
    }
}

fn get(key: &str) -> Call {
    Call::Get { key: key.into() }
}

fn list(prefix: &str) -> Call {
    Call::List {
        prefix: prefix.into(),
    }
}

fn event(revision: i64, key: &str, pair: Option<Pair>, prev: Option<Pair>) -> Event {
    Event {
        revision,
        key: key.into(),
        pair,
        prev,
    }
}

fn batch(events: Vec<Event>) -> Batch {
    let at = Duration::ZERO;
    Batch { at, events }
}

/// Two keys before; then writes, a delete, a swap that succeeds and one that does not, a write of
/// two keys, and one that nobody knows the end of but everybody saw.
fn good() -> History {
    let old = pair("/old", "o", 3, 7, 1);
    let gone = pair("/gone", "g", 4, 4, 1);
    let a = pair("/a", "a1", 11, 11, 1);
    let swapped = pair("/old", "o2", 3, 13, 2);
    let (x, y) = (pair("/x", "x1", 14, 14, 1), pair("/y", "y1", 14, 14, 1));
    let a2 = pair("/a", "a2", 11, 16, 2);
    let swap = |expected, value: &str| Call::Swap {
        key: "/old".into(),
        expected,
        value: value.into(),
    };
    let delete = Call::Delete {
        key: "/gone".into(),
    };
    let operations = vec![
        operation(0, (0, 5), get("/old"), done(10, false, vec![old.clone()])),
        operation(0, (10, 15), put(&[("/a", "a1")]), done(11, true, vec![])),
        operation(1, (11, 30), delete.clone(), done(12, true, vec![])),
        operation(0, (31, 32), get("/gone"), done(12, false, vec![])),
        operation(1, (33, 35), swap(7, "o2"), done(13, true, vec![])),
        operation(1, (36, 37), swap(7, "o3"), done(13, false, vec![])),
        operation(1, (38, 39), delete, done(13, false, vec![])),
        operation(
            0,
            (40, 44),
            put(&[("/x", "x1"), ("/y", "y1")]),
            done(14, true, vec![]),
        ),
        operation(
            2,
            (45, 50),
            put(&[("/a", "a2")]),
            Outcome::Unknown("cut off".into()),
        ),
        operation(
            3,
            (45, 50),
            put(&[("/a", "a3")]),
            Outcome::Failed("refused".into()),
        ),
        operation(
            0,
            (60, 70),
            list("/"),
            done(
                16,
                false,
                vec![a2.clone(), swapped.clone(), x.clone(), y.clone()],
            ),
        ),
    ];
    let batches = vec![
        vec![event(11, "/a", Some(a.clone()), None)],
        vec![
            event(12, "/gone", None, Some(gone.clone())),
            event(13, "/old", Some(swapped.clone()), Some(old.clone())),
        ],
        vec![
            event(14, "/x", Some(x.clone()), None),
            event(14, "/y", Some(y.clone()), None),
        ],
        vec![event(16, "/a", Some(a2.clone()), Some(a))],
    ];
    let all = WatchLog {
        name: "all".into(),
        prefix: "/".into(),
        start: 11,
        batches: batches.into_iter().map(batch).collect(),
        through: 16,
    };
    let mut late = all.clone();
    late.name = "late".into();
    late.start = 13;
    late.batches.remove(0);
    late.batches[0].events.remove(0);
    History {
        initial: vec![old, gone],
        base: 10,
        operations,
        watches: vec![all, late],
        last: Some((16, vec![a2, swapped, x, y])),
        ..History::default()
    }
}

fn reply(history: &mut History, number: usize) -> &mut Reply {
    match &mut history.operations[number].outcome {
        Outcome::Done(reply) => reply,
        outcome => panic!("{outcome:?}"),
    }
}

#[test]
fn a_good_history_is_found_good() {
    assert!(check(&good()).is_empty(), "{:#?}", check(&good()));
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn each_broken_promise_is_noticed() {
    type Damage = fn(&mut History);
    let damages: &[(&str, Rule, Damage)] = &[
        (
            "an acknowledged write is in no read and no event",
            Rule::Lost,
            |it| {
                it.watches[0].batches.remove(0);
                it.watches.remove(1);
            },
        ),
        (
            "an acknowledged write was overwritten by another at its revision",
            Rule::Lost,
            |it| {
                for watch in &mut it.watches {
                    for event in watch.batches.iter_mut().flat_map(|batch| &mut batch.events) {
                        if event.key == "/x" {
                            event.pair.as_mut().unwrap().value = "other".into();
                        }
                    }
                }
            },
        ),
        ("a list leaves a key out", Rule::Lost, |it| {
            reply(it, 10).pairs.remove(1);
        }),
        (
            "a delete does not find a key that is there",
            Rule::Lost,
            |it| {
                it.operations[6].call = Call::Delete { key: "/old".into() };
            },
        ),
        ("a deleted key is read", Rule::Resurrected, |it| {
            reply(it, 3).pairs.push(pair("/gone", "g", 4, 4, 1));
        }),
        ("a deleted key is listed", Rule::Resurrected, |it| {
            reply(it, 10).pairs.insert(1, pair("/gone", "g", 4, 4, 1));
        }),
        ("a key is read that nobody wrote", Rule::FromNowhere, |it| {
            reply(it, 3).pairs.push(pair("/z", "z", 9, 9, 1));
        }),
        ("a write that failed is seen", Rule::FromNowhere, |it| {
            it.operations[8].outcome = Outcome::Failed("refused".into());
        }),
        (
            "a write of unknown outcome happens twice",
            Rule::FromNowhere,
            |it| {
                let again = event(18, "/a", Some(pair("/a", "a2", 11, 18, 3)), None);
                it.watches[0].batches.push(batch(vec![again]));
            },
        ),
        ("a key is deleted by nobody", Rule::FromNowhere, |it| {
            let events = vec![event(18, "/x", None, None)];
            it.watches[0].batches.push(batch(events));
        }),
        ("a lease ends that is kept alive", Rule::FromNowhere, |it| {
            it.initial.push(Pair {
                lease: 5,
                ..pair("/leased", "l", 5, 5, 1)
            });
            it.kept.insert(5);
            let events = vec![event(18, "/leased", None, None)];
            it.watches[0].batches.push(batch(events));
        }),
        (
            "a lease ends before its time is over",
            Rule::LeaseEnded,
            |it| {
                it.initial.push(Pair {
                    lease: 5,
                    ..pair("/leased", "l", 5, 5, 1)
                });
                it.due.insert(5, Duration::from_millis(1));
                let events = vec![event(18, "/leased", None, None)];
                it.watches[0].batches.push(batch(events));
            },
        ),
        ("a copy-up is told as a change", Rule::FromNowhere, |it| {
            let events = vec![event(15, "/old", Some(pair("/old", "o", 3, 7, 1)), None)];
            it.watches[0].batches.insert(3, batch(events));
        }),
        ("two writes share a revision", Rule::RevisionOrder, |it| {
            reply(it, 4).revision = 12;
        }),
        (
            "a write takes a revision of before the base",
            Rule::RevisionOrder,
            |it| {
                reply(it, 1).revision = 9;
            },
        ),
        (
            "a later read is older than an earlier write",
            Rule::RevisionOrder,
            |it| {
                let read = operation(9, (20, 21), get("/none"), done(10, false, vec![]));
                it.operations.push(read);
            },
        ),
        ("a client is taken back", Rule::ClientOrder, |it| {
            // Overlapping in time, so that only the client itself can tell.
            it.operations[3].start = Duration::from_millis(12);
            reply(it, 3).revision = 10;
            reply(it, 3).pairs.push(pair("/gone", "g", 4, 4, 1));
        }),
        ("a read shows an older value", Rule::Read, |it| {
            reply(it, 10).pairs[0] = pair("/a", "a1", 11, 11, 1);
        }),
        ("a read shows another mod revision", Rule::Read, |it| {
            reply(it, 0).pairs[0].modified = 8;
        }),
        ("a read shows another create revision", Rule::Read, |it| {
            reply(it, 0).pairs[0].created = 7;
        }),
        ("a list is out of order", Rule::Read, |it| {
            reply(it, 10).pairs.swap(0, 1);
        }),
        ("a list repeats a key", Rule::Read, |it| {
            reply(it, 10).pairs.push(pair("/y", "y1", 14, 14, 1));
        }),
        (
            "a swap succeeds against another revision",
            Rule::Condition,
            |it| {
                it.operations[4].call = Call::Swap {
                    key: "/old".into(),
                    expected: 6,
                    value: "o2".into(),
                };
            },
        ),
        ("a swap fails that should not", Rule::Condition, |it| {
            it.operations[5].call = Call::Swap {
                key: "/old".into(),
                expected: 13,
                value: "o3".into(),
            };
        }),
        (
            "a change forgets the create revision",
            Rule::Numbers,
            |it| {
                for watch in &mut it.watches {
                    for event in watch.batches.iter_mut().flat_map(|batch| &mut batch.events) {
                        if event.revision == 13 && event.key == "/old" {
                            event.pair.as_mut().unwrap().created = 13;
                        }
                    }
                }
            },
        ),
        ("events come in the wrong order", Rule::WatchOrder, |it| {
            it.watches[0].batches.swap(0, 1);
        }),
        (
            "an event comes from before the start",
            Rule::WatchOrder,
            |it| {
                it.watches[0].start = 12;
            },
        ),
        ("an event comes twice", Rule::WatchRepeated, |it| {
            let batch = it.watches[0].batches[1].clone();
            it.watches[0].batches.insert(2, batch);
        }),
        ("an event is missing", Rule::WatchMissed, |it| {
            it.watches[1].batches.remove(0);
        }),
        ("one event of several is missing", Rule::WatchMissed, |it| {
            it.watches[1].batches[1].events.pop();
        }),
        ("a revision comes in parts", Rule::WatchTorn, |it| {
            let last = it.watches[0].batches[2].events.split_off(1);
            it.watches[0].batches.insert(3, batch(last));
        }),
        (
            "two watchers are told different things",
            Rule::WatchDiffers,
            |it| {
                let event = &mut it.watches[1].batches[0].events[0];
                event.pair.as_mut().unwrap().version = 1;
            },
        ),
        (
            "a watcher gets what it did not ask for",
            Rule::WatchDiffers,
            |it| {
                it.watches[1].prefix = "/o".into();
            },
        ),
        (
            "the pair before a change is another",
            Rule::WatchPrev,
            |it| {
                it.watches[0].batches[1].events[1].prev = Some(pair("/old", "o", 3, 3, 1));
            },
        ),
        ("a key is missing in the end", Rule::Last, |it| {
            it.last.as_mut().unwrap().1.remove(0);
        }),
        ("a key too many is there in the end", Rule::Last, |it| {
            let gone = pair("/gone", "g", 4, 4, 1);
            it.last.as_mut().unwrap().1.insert(1, gone);
        }),
    ];
    for (what, rule, damage) in damages {
        let mut history = good();
        damage(&mut history);
        let violations = check(&history);
        assert!(
            violations.iter().any(|violation| violation.rule == *rule),
            "{what}: not noticed as {rule:?}: {violations:#?}"
        );
    }
}

/// What is let pass in a time that nobody watched is not, if it was watched.
fn not_where_somebody_watched(mut history: History, through: i64) {
    for watch in &mut history.watches {
        watch.through = through;
    }
    assert!(!check(&history).is_empty());
}

#[test]
fn a_write_that_nobody_watched_is_known_from_its_answer() {
    let mut history = good();
    history.watches.clear();
    // The write of unknown outcome is then known from nothing; it may not have happened.
    reply(&mut history, 10).pairs[0] = pair("/a", "a1", 11, 11, 1);
    history.last.as_mut().unwrap().1[0] = pair("/a", "a1", 11, 11, 1);
    assert!(check(&history).is_empty(), "{:#?}", check(&history));
}

#[test]
fn what_happened_while_nobody_watched_is_known_from_reads() {
    let mut history = good();
    let leased = Pair {
        lease: 5,
        ..pair("/leased", "l", 5, 5, 1)
    };
    // It ended with its lease, unseen, between two reads.
    history.initial.push(leased.clone());
    reply(&mut history, 10).pairs.insert(1, leased);
    for watch in &mut history.watches {
        watch.start = 17;
        watch.batches.clear();
    }
    let read = operation(7, (900, 910), get("/leased"), done(17, false, vec![]));
    let key = "/leased".into();
    let nothing = done(17, false, vec![]);
    let delete = operation(7, (900, 910), Call::Delete { key }, nothing);
    history.last.as_mut().unwrap().0 = 17;
    for evidence in [delete, read] {
        history.operations.push(evidence);
        assert!(check(&history).is_empty(), "{:#?}", check(&history));
        history.operations.pop();
    }
    let read = operation(7, (900, 910), get("/leased"), done(17, false, vec![]));
    history.operations.push(read);
    // But not where somebody watched.
    for watch in &mut history.watches {
        (watch.start, watch.through) = (11, 17);
    }
    assert!(!check(&history).is_empty());
}

#[test]
fn what_happened_while_nobody_watched_is_known_from_what_superseded_it() {
    let mut history = good();
    let before = pair("/b", "b1", 5, 5, 1);
    let unseen = pair("/b", "b2", 5, 17, 2);
    let after = pair("/b", "b3", 5, 18, 3);
    history.initial.push(before.clone());
    reply(&mut history, 10).pairs.insert(1, before);
    history.operations.extend([
        operation(
            4,
            (71, 80),
            put(&[("/b", "b2")]),
            Outcome::Unknown("cut off".into()),
        ),
        operation(5, (81, 90), put(&[("/b", "b3")]), done(18, true, vec![])),
    ]);
    let event = event(18, "/b", Some(after.clone()), Some(unseen));
    history.watches.push(WatchLog {
        name: "later".into(),
        prefix: "/".into(),
        start: 18,
        batches: vec![batch(vec![event])],
        through: 18,
    });
    let last = history.last.as_mut().unwrap();
    last.0 = 18;
    last.1.insert(1, after);
    assert!(check(&history).is_empty(), "{:#?}", check(&history));
    not_where_somebody_watched(history, 18);
}

#[test]
fn what_nobody_ever_saw_is_known_from_the_versions_behind_it() {
    let mut history = good();
    let unknown = |ms, value| {
        let outcome = Outcome::Unknown("cut off".into());
        operation(4, ms, put(&[("/a", value)]), outcome)
    };
    let after = pair("/a", "a6", 11, 19, 5);
    history.operations.push(unknown((71, 80), "a4"));
    history.operations.push(unknown((81, 90), "a6"));
    // Nobody saw this one either, but its author was answered.
    let answered = operation(5, (71, 80), put(&[("/a", "a5")]), done(18, true, vec![]));
    history.operations.push(answered);
    let read = done(19, false, vec![after.clone()]);
    history
        .operations
        .push(operation(5, (91, 95), get("/a"), read));
    let last = history.last.as_mut().unwrap();
    last.0 = 19;
    last.1[0] = after;
    assert!(check(&history).is_empty(), "{:#?}", check(&history));
    not_where_somebody_watched(history, 19);
}

#[test]
fn a_swap_may_be_overtaken_by_what_nobody_ever_saw() {
    let mut history = good();
    let swap = Call::Swap {
        key: "/a".into(),
        expected: 16,
        value: "a4".into(),
    };
    let refused = operation(4, (71, 80), swap, done(18, false, vec![]));
    history.operations.push(refused);
    history.last = None;
    assert!(check(&history).is_empty(), "{:#?}", check(&history));
    not_where_somebody_watched(history, 18);
}

#[test]
fn a_lease_that_is_let_go_takes_its_keys_with_it() {
    let mut history = good();
    let leased = Pair {
        lease: 5,
        ..pair("/leased", "l", 5, 5, 1)
    };
    history.initial.push(leased.clone());
    reply(&mut history, 10).pairs.insert(1, leased.clone());
    history.last.as_mut().unwrap().1.insert(1, leased);
    let events = vec![event(18, "/leased", None, None)];
    history.watches[0].batches.push(batch(events));
    assert!(check(&history).is_empty(), "{:#?}", check(&history));
}

/// Pairs at the base, and what clients did while nobody watched: revisions 11 to 20.
fn unwatched(initial: Vec<Pair>, operations: Vec<Operation>) -> History {
    History {
        initial,
        base: 10,
        operations,
        watches: vec![WatchLog {
            name: "later".into(),
            prefix: "/".into(),
            start: 21,
            batches: Vec::new(),
            through: 20,
        }],
        ..History::default()
    }
}

#[test]
fn what_was_not_answered_explains_what_was() {
    let unknown = |ms, call| operation(4, ms, call, Outcome::Unknown("cut off".into()));
    let delete = || Call::Delete { key: "/k".into() };
    let k = || pair("/k", "k1", 5, 5, 1);
    let leased = Call::Put {
        pairs: vec![("/k".into(), "k2".into())],
        lease: 7,
    };
    let create = Call::Swap {
        key: "/k".into(),
        expected: 0,
        value: "k2".into(),
    };
    let created = || operation(5, (31, 40), create.clone(), done(14, true, vec![]));
    let nothing = || operation(5, (41, 50), get("/k"), done(15, false, vec![]));
    let revoke = operation(
        4,
        (31, 40),
        Call::Revoke { lease: 7 },
        done(14, false, vec![]),
    );
    for (what, history) in [
        (
            "a delete finds what a write brought that nobody was told of",
            unwatched(
                vec![],
                vec![
                    unknown((21, 30), put(&[("/k", "k1")])),
                    operation(5, (31, 40), delete(), done(14, true, vec![])),
                ],
            ),
        ),
        (
            "a key is gone with the lease that a write gave it that nobody was told of",
            unwatched(
                vec![k()],
                vec![unknown((21, 30), leased.clone()), revoke, nothing()],
            ),
        ),
        (
            "or with the lease's end",
            unwatched(vec![k()], vec![unknown((21, 30), leased), nothing()]),
        ),
        (
            "a key is created again behind a delete that nobody was told of",
            unwatched(vec![k()], vec![unknown((21, 30), delete()), created()]),
        ),
        (
            "and is read then",
            unwatched(
                vec![k()],
                vec![
                    unknown((21, 30), delete()),
                    created(),
                    operation(
                        5,
                        (41, 50),
                        get("/k"),
                        done(15, false, vec![pair("/k", "k2", 14, 14, 1)]),
                    ),
                ],
            ),
        ),
    ] {
        assert!(check(&history).is_empty(), "{what}: {:#?}", check(&history));
        let mut watched = history.clone();
        watched.watches[0].start = 11;
        assert!(!check(&watched).is_empty(), "{what}, though watched");
        let mut alone = history;
        alone.operations.remove(0);
        assert!(!check(&alone).is_empty(), "{what}, though nobody did it");
    }
}

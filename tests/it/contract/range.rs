//! Reads.

use bytes::Bytes;
use segue::store::RequestError;
use segue::types::{Content, Direction, KeyRange, Put, Range, RevisionFilter, SortTarget};

use super::Fixture;
use super::dsl::*;

pub async fn a_missing_key_is_an_empty_answer_at_the_current_revision(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    assert_eq!(subject.get("a").await, None);
    let revision = subject.put("b", "1").await;
    let answer = subject.store.range(Range::key("a")).await.unwrap();
    assert_eq!((answer.revision, answer.reply.count), (revision, 0));
    assert!(!answer.reply.more);
}

pub async fn spans_hold_their_start_and_not_their_end(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    for key in ["a", "b", "b/1", "b/2", "b0", "c"] {
        subject.put(key, key).await;
    }
    for (keys, expected) in [
        (one("b"), vec!["b"]),
        (span("a", "b0"), vec!["a", "b", "b/1", "b/2"]),
        (prefix("b/"), vec!["b/1", "b/2"]),
        (KeyRange::span("b0", None), vec!["b0", "c"]),
        (KeyRange::all(), vec!["a", "b", "b/1", "b/2", "b0", "c"]),
        (span("b/3", "b0"), vec![]),
        (span("b", "b"), vec![]),
        (span("c", "a"), vec![]),
    ] {
        let reply = subject.range(Range::of(keys.clone())).await;
        assert_eq!(keys_of(&reply), expected, "{keys:?}");
        assert_eq!(reply.count, expected.len(), "{keys:?}");
        assert!(!reply.more);
    }
}

pub async fn keys_are_any_bytes_in_byte_order(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let keys: [&'static [u8]; 7] = [
        b"\0",
        b"\0\0",
        b"\x01\xff",
        b"A",
        b"a",
        b"\xc3\xa9",
        b"\xff\xff",
    ];
    for key in keys.iter().rev() {
        let put = Put::new(Bytes::from_static(key), Bytes::from_static(b"\0\xff"));
        subject.store.put(put).await.unwrap();
    }
    let reply = subject.range(Range::of(KeyRange::all())).await;
    let got: Vec<_> = reply.kvs.iter().map(|kv| &kv.key[..]).collect();
    assert_eq!(got, keys);
    assert_eq!(&reply.kvs[0].value[..], b"\0\xff");
    let upper = KeyRange::span(Bytes::from_static(b"\xc3"), None);
    assert_eq!(subject.range(Range::of(upper)).await.count, 2);
}

pub async fn a_limit_cuts_the_answer_and_says_so(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    for key in ["a", "b", "c"] {
        subject.put(key, "").await;
    }
    for (limit, expected, more) in [
        (0, vec!["a", "b", "c"], false),
        (1, vec!["a"], true),
        (2, vec!["a", "b"], true),
        (3, vec!["a", "b", "c"], false),
        (4, vec!["a", "b", "c"], false),
    ] {
        let request = Range {
            limit,
            ..Range::of(KeyRange::all())
        };
        let reply = subject.range(request).await;
        assert_eq!((keys_of(&reply), reply.more), (owned(&expected), more));
        assert_eq!(reply.count, 3, "the count ignores the limit");
    }
}

pub async fn answers_are_sorted_by_any_target_in_both_directions(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    // By create revision c a d b, by mod revision a d b c, by version and value all different.
    for (key, value) in [
        ("c", "1"),
        ("a", "4"),
        ("d", "3"),
        ("b", "2"),
        ("d", "3"),
        ("b", "2"),
        ("b", "2"),
        ("c", "1"),
        ("c", "1"),
        ("c", "1"),
    ] {
        subject.put(key, value).await;
    }
    for (sort, expected) in [
        (SortTarget::Key, ["a", "b", "c", "d"]),
        (SortTarget::Create, ["c", "a", "d", "b"]),
        (SortTarget::Mod, ["a", "d", "b", "c"]),
        (SortTarget::Version, ["a", "d", "b", "c"]),
        (SortTarget::Value, ["c", "b", "d", "a"]),
    ] {
        for direction in [Direction::Ascending, Direction::Descending] {
            let mut expected = expected;
            if direction == Direction::Descending {
                expected.reverse();
            }
            for limit in [0, 2] {
                let request = Range {
                    sort,
                    direction,
                    limit,
                    ..Range::of(KeyRange::all())
                };
                let reply = subject.range(request.clone()).await;
                let shown = if limit == 0 { 4 } else { limit };
                assert_eq!(keys_of(&reply), expected[..shown], "{request:?}");
                assert_eq!((reply.more, reply.count), (limit == 2, 4));
            }
        }
    }
    // Where no order was named, what is sorted is what is within the limit in the order of the keys, and
    // one pair more.
    let request = Range {
        sort: SortTarget::Value,
        direction: Direction::Unsaid,
        limit: 2,
        ..Range::of(KeyRange::all())
    };
    let reply = subject.range(request).await;
    assert_eq!(keys_of(&reply), ["c", "b"]);
    assert_eq!((reply.more, reply.count), (true, 4));
    // Pairs that are equal stay in the order of their keys.
    subject.delete(KeyRange::all()).await;
    for key in ["c", "a", "b"] {
        subject.put(key, "same").await;
    }
    for direction in [Direction::Ascending, Direction::Descending] {
        let request = Range {
            sort: SortTarget::Value,
            direction,
            ..Range::of(KeyRange::all())
        };
        assert_eq!(subject.keys(request).await, ["a", "b", "c"]);
    }
}

pub async fn revision_filters_choose_pairs_and_leave_the_count_alone(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let a = subject.put("a", "").await;
    let b = subject.put("b", "").await;
    let c = subject.put("c", "").await;
    let a_again = subject.put("a", "").await;
    let filter = RevisionFilter::default();
    for (filter, limit, expected, more) in [
        (
            RevisionFilter {
                min_mod: c,
                ..filter
            },
            0,
            vec!["a", "c"],
            false,
        ),
        (
            RevisionFilter {
                max_mod: c,
                ..filter
            },
            0,
            vec!["b", "c"],
            false,
        ),
        (
            RevisionFilter {
                min_create: b,
                ..filter
            },
            0,
            vec!["b", "c"],
            false,
        ),
        (
            RevisionFilter {
                max_create: b,
                ..filter
            },
            0,
            vec!["a", "b"],
            false,
        ),
        (
            RevisionFilter {
                min_mod: b,
                max_mod: c,
                ..filter
            },
            1,
            vec!["b"],
            true,
        ),
        (
            RevisionFilter {
                min_mod: a_again,
                max_create: a,
                ..filter
            },
            1,
            vec!["a"],
            false,
        ),
        (
            RevisionFilter {
                min_mod: a_again.next(),
                ..filter
            },
            0,
            vec![],
            false,
        ),
    ] {
        let request = Range {
            filter,
            limit,
            ..Range::of(KeyRange::all())
        };
        let reply = subject.range(request).await;
        assert_eq!(keys_of(&reply), expected, "{filter:?}");
        assert_eq!((reply.count, reply.more), (3, more), "{filter:?}");
    }
}

pub async fn values_or_pairs_are_left_out_on_request(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    subject.put("a", "1").await;
    let revision = subject.put("b", "2").await;
    let request = |content| Range {
        content,
        limit: 1,
        sort: SortTarget::Value,
        direction: Direction::Descending,
        ..Range::of(KeyRange::all())
    };
    let reply = subject.range(request(Content::KeysOnly)).await;
    assert_eq!(keys_of(&reply), ["b"], "the values are there for sorting");
    assert!(reply.kvs[0].value.is_empty());
    assert_eq!(reply.kvs[0].mod_revision, revision);
    assert_eq!((reply.count, reply.more), (2, true));
    let reply = subject.range(request(Content::CountOnly)).await;
    assert_eq!((reply.kvs, reply.count, reply.more), (vec![], 2, false));
}

pub async fn the_past_can_be_read_and_the_future_cannot(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let empty = subject.revision().await;
    let first = subject.put("a", "1").await;
    let second = subject.put("a", "2").await;
    subject.put("b", "1").await;
    let all = KeyRange::all;
    subject.delete(one("a")).await;
    let now = subject.put("a", "3").await;
    for (revision, expected) in [
        (empty, vec![]),
        (first, vec!["a=1"]),
        (second, vec!["a=2"]),
        (second.next(), vec!["a=2", "b=1"]),
        (now, vec!["a=3", "b=1"]),
    ] {
        let answer = subject.store.range(at(revision, all())).await.unwrap();
        let pairs = answer.reply.kvs.iter();
        let pairs: Vec<_> = pairs
            .map(|kv| format!("{}={}", text(&kv.key), text(&kv.value)))
            .collect();
        assert_eq!(pairs, expected, "at {revision}");
        assert_eq!(answer.reply.count, expected.len());
        assert_eq!(answer.revision, now, "the answer is given now");
    }
    let past = subject.range(at(second, one("a"))).await.kvs;
    assert_eq!((past[0].mod_revision, past[0].version), (second, 2));
    let future = subject.store.range(at(now.next(), all())).await;
    assert_eq!(refused(future), RequestError::FutureRevision);
}

pub async fn reserved_keys_are_hidden_from_ranges_that_cross_them(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    for key in ["a", "segue/switch", "z"] {
        subject.put(key, "").await;
    }
    for limit in [0, 1] {
        let request = Range {
            limit,
            ..Range::of(span("a", "zz"))
        };
        assert_eq!(subject.range(request).await.count, 2);
    }
    assert_eq!(subject.all().await, ["a", "z"]);
    let own = Range::of(prefix("segue/"));
    assert_eq!(subject.keys(own).await, ["segue/switch"]);
    assert!(subject.get("segue/switch").await.is_some());
}

fn owned(keys: &[&str]) -> Vec<String> {
    keys.iter().map(ToString::to_string).collect()
}

//! Watches.

use segue::store::{RequestError, StoreError, Watch, WatchEnd, WatchItem};
use segue::types::{KeyRange, Range, Revision, Txn};

use super::Fixture;
use super::dsl::*;

pub async fn from_now_delivers_every_later_change_of_its_keys(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let before = subject.put("a", "0").await;
    let mut key = subject.watch(one("a"), None).await;
    let mut range = subject.watch(prefix("b/"), None).await;
    let mut all = subject.watch(KeyRange::all(), None).await;
    assert_eq!(key.0.revision, before);
    let first = subject.put("a", "1").await;
    subject.put("b/1", "1").await;
    subject.put("c", "1").await;
    subject.delete(one("a")).await;
    subject.delete(one("a")).await;
    let last = subject.delete(prefix("b/")).await;
    assert_eq!(last.deleted, 1);
    let batch = key.batch().await;
    assert_eq!(
        (batch.revision, words(&batch)),
        (first, vec!["put a=1".into()])
    );
    assert_eq!(batch.events[0].prev, None, "not asked for");
    assert_eq!(key.words().await, ["delete a"]);
    assert_eq!(range.words().await, ["put b/1=1"]);
    assert_eq!(range.words().await, ["delete b/1"]);
    for expected in ["put a=1", "put b/1=1", "put c=1", "delete a", "delete b/1"] {
        assert_eq!(all.words().await, [expected]);
    }
    let now = subject.revision().await;
    key.assert_quiet(now).await;
    range.assert_quiet(now).await;
    all.assert_quiet(now).await;
}

pub async fn the_changes_of_one_revision_come_together_and_in_order(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    for key in ["y", "x"] {
        subject.put(key, "0").await;
    }
    let before = subject.revision().await;
    let mut live = subject.watch(KeyRange::all(), None).await;
    let nested = Txn::of(vec![put_op("a", "1"), delete_op(span("x", "z"))]);
    let ops = vec![
        put_op("c", "1"),
        segue::types::Op::Txn(nested),
        put_op("b", "1"),
    ];
    let revision = subject.store.txn(Txn::of(ops)).await.unwrap().revision;
    subject.put("d", "1").await;
    let mut past = subject.watch(KeyRange::all(), Some(before.next())).await;
    for watched in [&mut live, &mut past] {
        let batch = watched.batch().await;
        assert_eq!(batch.revision, revision);
        let expected = ["put c=1", "put a=1", "delete x", "delete y", "put b=1"];
        assert_eq!(words(&batch), expected);
        assert_eq!(watched.words().await, ["put d=1"]);
    }
}

fn with_prev(start: Option<Revision>) -> Watch {
    Watch {
        prev_kv: true,
        ..Watch::of(KeyRange::all(), start)
    }
}

pub async fn what_one_transaction_writes_and_removes_is_told_of_later_too(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let before = subject.put("a", "0").await;
    let mut live = subject.watching(with_prev(None)).await;
    let puts = Txn::of(["a", "b", "c"].map(|key| put_op(key, "1")).into());
    let delete = Txn::of(vec![delete_op(span("a", "c"))]);
    let both = Txn::of([puts, delete].map(segue::types::Op::Txn).into());
    let revision = subject.store.txn(both).await.unwrap().revision;
    subject.put("a", "2").await;
    let mut past = subject.watching(with_prev(Some(before.next()))).await;
    for watched in [&mut live, &mut past] {
        let batch = watched.batch().await;
        assert_eq!(batch.revision, revision);
        let expected = ["put a=1", "put b=1", "put c=1", "delete a", "delete b"];
        assert_eq!(words(&batch), expected);
        let prevs = batch.events.iter().map(|event| event.prev.as_ref());
        let prevs: Vec<_> = prevs.map(|prev| prev.map(|kv| text(&kv.value))).collect();
        let zero = Some("0".to_owned());
        assert_eq!(prevs, [zero.clone(), None, None, zero, None]);
        let next = watched.batch().await;
        assert_eq!(
            (words(&next), &next.events[0].prev),
            (vec!["put a=2".into()], &None)
        );
    }
    let then = async |revision| {
        let found = subject.range(at(revision, KeyRange::all())).await;
        (keys_of(&found), found.count)
    };
    assert_eq!(then(before).await, (vec!["a".into()], 1));
    assert_eq!(then(revision).await, (vec!["c".into()], 1));
    subject.store.compact(revision).await.unwrap();
    assert_eq!(then(revision).await, (vec!["c".into()], 1));
    assert_eq!(subject.all().await, ["a", "c"]);
}

pub async fn what_one_transaction_removes_and_writes_is_told_of_later_too(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let before = subject.put("a", "0").await;
    let mut live = subject.watching(with_prev(None)).await;
    let everything = || delete_op(KeyRange::all());
    let nested = |op| segue::types::Op::Txn(Txn::of(vec![op]));
    let mut revisions = vec![before];
    for (ops, expected, left) in [
        (
            vec![everything(), put_op("a", "1"), put_op("b", "1")],
            vec!["delete a", "put a=1", "put b=1"],
            vec!["a", "b"],
        ),
        (
            vec![everything(), nested(put_op("a", "2")), nested(everything())],
            vec!["delete a", "delete b", "put a=2", "delete a"],
            vec![],
        ),
        (
            vec![put_op("a", "3"), nested(everything()), put_op("a", "4")],
            vec!["put a=3", "delete a", "put a=4"],
            vec!["a"],
        ),
        (
            vec![put_op("a", "5"), nested(everything()), put_op("a", "6")],
            vec!["put a=5", "delete a", "put a=6"],
            vec!["a"],
        ),
    ] {
        let revision = match subject.store.txn(Txn::of(ops)).await {
            Ok(answer) => answer.revision,
            // etcd itself refuses this where it notices: then nothing was done.
            Err(StoreError::Request(RequestError::DuplicateKey)) => {
                assert_eq!(subject.value("a").await, Some("0".into()));
                return;
            }
            Err(error) => panic!("{error:?}"),
        };
        let told = live.batch().await;
        assert_eq!(
            (told.revision, words(&told)),
            (revision, expected.into_iter().map(String::from).collect())
        );
        let mut past = subject.watching(with_prev(Some(revision))).await;
        assert_eq!(past.batch().await, told, "the past on the left");
        let found = subject.range(Range::of(KeyRange::all())).await;
        assert_eq!(keys_of(&found), left);
        for kv in &found.kvs {
            assert_eq!(
                (kv.create_revision, kv.mod_revision, kv.version),
                (revision, revision, 1)
            );
        }
        revisions.push(revision);
    }
    let first = subject.range(at(before, KeyRange::all())).await;
    let mut past = subject.watching(with_prev(Some(before.next()))).await;
    for event in past.batch().await.events {
        let expected = first.kvs.iter().find(|kv| kv.key == *event.key());
        assert_eq!(
            event.prev.as_ref(),
            expected,
            "the pair before the revision"
        );
    }
    let then = async |index: usize| {
        let found = subject.range(at(revisions[index], KeyRange::all())).await;
        let values = found.kvs.iter().map(|kv| text(&kv.value));
        (values.collect::<String>(), found.count)
    };
    for (index, expected) in [("0", 1), ("11", 2), ("", 0), ("4", 1), ("6", 1)]
        .into_iter()
        .enumerate()
    {
        assert_eq!(then(index).await, (expected.0.to_owned(), expected.1));
    }
    subject.store.compact(revisions[3]).await.unwrap();
    assert_eq!(then(3).await, ("4".into(), 1));
    let mut rest = subject.watching(with_prev(Some(revisions[3]))).await;
    assert_eq!(rest.words().await, ["put a=3", "delete a", "put a=4"]);
    assert_eq!(rest.words().await, ["put a=5", "delete a", "put a=6"]);
}

pub async fn the_past_is_delivered_before_the_present(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let mut revisions = Vec::new();
    for n in 0..20 {
        revisions.push(subject.put("a", &n.to_string()).await);
        subject.put("other", "").await;
    }
    let mut watched = subject.watch(one("a"), Some(revisions[5])).await;
    for n in 20..25 {
        revisions.push(subject.put("a", &n.to_string()).await);
    }
    for (n, revision) in revisions.iter().enumerate().skip(5) {
        let batch = watched.batch().await;
        assert_eq!(batch.revision, *revision);
        assert_eq!(words(&batch), [format!("put a={n}")]);
    }
    watched.assert_quiet(revisions[24]).await;
}

pub async fn a_start_in_the_future_leaves_out_what_comes_before(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let now = subject.put("a", "0").await;
    let start = Revision(now.0 + 3);
    let mut watched = subject.watch(one("a"), Some(start)).await;
    let mut expected = None;
    for n in 1..=6 {
        let revision = subject.put("a", &n.to_string()).await;
        if revision >= start && expected.is_none() {
            expected = Some(revision);
        }
    }
    assert_eq!(Some(watched.batch().await.revision), expected);
}

pub async fn the_pair_before_comes_on_request(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let start = subject.revision().await.next();
    let request = |start| Watch {
        prev_kv: true,
        ..Watch::of(one("a"), start)
    };
    let mut live = subject.watching(request(None)).await;
    subject.put("a", "1").await;
    let first = subject.get("a").await;
    subject.put("a", "2").await;
    let second = subject.get("a").await;
    subject.delete(one("a")).await;
    subject.put("a", "3").await;
    let mut past = subject.watching(request(Some(start))).await;
    for watched in [&mut live, &mut past] {
        for prev in [None, first.clone(), second.clone(), None] {
            let batch = watched.batch().await;
            assert_eq!(batch.events[0].prev, prev, "{batch:?}");
        }
    }
}

pub async fn filters_leave_out_puts_or_deletes(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let all = Watch::of(KeyRange::all(), None);
    let mut puts = subject
        .watching(Watch {
            deletes: false,
            ..all.clone()
        })
        .await;
    let mut deletes = subject.watching(Watch { puts: false, ..all }).await;
    subject.put("a", "1").await;
    subject
        .txn(Txn::of(vec![put_op("b", "1"), delete_op(one("a"))]))
        .await;
    subject.delete(one("b")).await;
    let now = subject.revision().await;
    assert_eq!(puts.words().await, ["put a=1"]);
    assert_eq!(puts.words().await, ["put b=1"]);
    puts.assert_quiet(now).await;
    assert_eq!(deletes.words().await, ["delete a"]);
    assert_eq!(deletes.words().await, ["delete b"]);
    deletes.assert_quiet(now).await;
}

pub async fn a_start_below_the_compacted_revision_ends_the_watch(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let first = subject.put("a", "1").await;
    subject.put("a", "2").await;
    let compacted = subject.put("a", "3").await;
    subject.put("a", "4").await;
    subject.store.compact(compacted).await.unwrap();
    let mut below = subject.watch(one("a"), Some(first)).await;
    let end = WatchItem::End(WatchEnd::Compacted(compacted));
    assert_eq!(below.next().await, end);
    let mut exactly = subject.watch(one("a"), Some(compacted)).await;
    assert_eq!(exactly.words().await, ["put a=3"]);
    assert_eq!(exactly.words().await, ["put a=4"]);
}

pub async fn compacting_does_not_disturb_a_watch_that_is_caught_up(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let mut watched = subject.watch(one("a"), None).await;
    subject.put("a", "1").await;
    assert_eq!(watched.words().await, ["put a=1"]);
    let mut last = subject.revision().await;
    for _ in 0..5 {
        last = subject.put("b", "").await;
    }
    subject.store.compact(last).await.unwrap();
    subject.put("a", "2").await;
    assert_eq!(watched.words().await, ["put a=2"]);
}

pub async fn progress_comes_behind_everything_before_it(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let mut watched = subject.watch(one("a"), None).await;
    let mut last = subject.revision().await;
    watched.assert_quiet(last).await;
    for _ in 0..10 {
        subject.put("a", "").await;
        last = subject.put("b", "").await;
    }
    watched.0.progress.notify_one();
    let mut events = 0;
    loop {
        match watched.next().await {
            WatchItem::Events(batch) => events += batch.events.len(),
            WatchItem::Progress(at) => {
                assert!(at >= last, "{at} < {last}");
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(events, 10);
}

pub async fn a_slow_watcher_misses_nothing(fixture: &dyn Fixture) {
    const TXNS: usize = 40;
    const OPS: usize = 40;
    let subject = Subject::of(fixture).await;
    let mut slow = subject.watch(prefix("k"), None).await;
    let value = "x".repeat(1024);
    let mut revisions = Vec::new();
    for n in 0..TXNS {
        let ops = (0..OPS)
            .map(|op| put_op(&format!("k{op}"), &value))
            .collect();
        revisions.push(subject.store.txn(Txn::of(ops)).await.unwrap().revision);
        for _ in 0..10 {
            revisions.push(subject.put(&format!("k{n}"), &value).await);
        }
    }
    for revision in revisions {
        let batch = slow.batch().await;
        assert_eq!(batch.revision, revision);
        assert!(
            [1, OPS].contains(&batch.events.len()),
            "{revision} was split"
        );
    }
    slow.assert_quiet(subject.revision().await).await;
}

pub async fn many_watchers_see_the_same_line(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let mut watchers = Vec::new();
    for n in 0..50 {
        let keys = if n % 2 == 0 { prefix("k") } else { one("k1") };
        watchers.push((n, subject.watch(keys, None).await));
    }
    let (mut all, mut single) = (Vec::new(), Vec::new());
    for n in 0..20 {
        let revision = subject.put(&format!("k{}", n % 3), "").await;
        all.push(revision);
        if n % 3 == 1 {
            single.push(revision);
        }
    }
    for (n, watched) in &mut watchers {
        for revision in if *n % 2 == 0 { &all } else { &single } {
            assert_eq!(watched.batch().await.revision, *revision);
        }
    }
}

pub async fn opening_under_load_leaves_no_gap_and_repeats_nothing(fixture: &dyn Fixture) {
    const WRITES: usize = 300;
    let subject = Subject::of(fixture).await;
    let begin = subject.revision().await;
    let writer = async {
        let mut revisions = Vec::new();
        for n in 0..WRITES {
            revisions.push(subject.put("a", &n.to_string()).await);
            tokio::task::yield_now().await;
        }
        revisions
    };
    let opener = async {
        let mut watchers = Vec::new();
        for n in 0..30 {
            let start = (n % 2 == 0).then_some(begin.next());
            watchers.push((start, subject.watch(one("a"), start).await));
            tokio::task::yield_now().await;
        }
        watchers
    };
    let (revisions, watchers) = tokio::join!(writer, opener);
    for (start, mut watched) in watchers {
        let first = start.unwrap_or(watched.0.revision.next());
        for revision in revisions.iter().filter(|revision| **revision >= first) {
            assert_eq!(watched.batch().await.revision, *revision);
        }
        watched.assert_quiet(revisions[WRITES - 1]).await;
    }
}

pub async fn reserved_keys_are_hidden_from_watches_that_cross_them(fixture: &dyn Fixture) {
    let subject = Subject::of(fixture).await;
    let before = subject.revision().await;
    let mut all = subject.watch(KeyRange::all(), None).await;
    let mut switch = subject.watch(one("segue/switch"), None).await;
    subject.put("segue/switch", "normal").await;
    subject
        .txn(Txn::of(vec![put_op("a", "1"), put_op("segue/switch", "")]))
        .await;
    let mut past = subject.watch(KeyRange::all(), Some(before.next())).await;
    assert_eq!(all.words().await, ["put a=1"]);
    assert_eq!(past.words().await, ["put a=1"]);
    assert_eq!(switch.words().await, ["put segue/switch=normal"]);
    assert_eq!(switch.words().await, ["put segue/switch="]);
    all.assert_quiet(subject.revision().await).await;
}

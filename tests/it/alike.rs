//! What PostgreSQL and MariaDB have to hold alike: commits whose answer is lost, connections that break, keys
//! of every kind.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use segue::store::{NewStore, Store, StoreError, Watch, WatchItem};
use segue::types::{
    Change, Compare, CompareResult, CompareTarget, Delete, KeyRange, Op, Put, Range, Revision, Txn,
};

use crate::support::eventually;
use crate::support::link::{Cut, Link};

/// A commit that is not answered is looked up: the store is behind a link that knows its commits.
pub(crate) async fn commits_are_looked_up(store: &impl Store, link: &Link) {
    for (number, cut) in [Cut::Before, Cut::After, Cut::After, Cut::Before]
        .into_iter()
        .enumerate()
    {
        link.cut_next(cut);
        let answer = store.put(Put::new("a", format!("{number}"))).await.unwrap();
        let number = i64::try_from(number).unwrap();
        assert_eq!(link.cuts(), usize::try_from(number).unwrap() + 1);
        // Neither lost nor done twice.
        let read = store.range(Range::key("a")).await.unwrap();
        assert_eq!(
            (answer.revision, read.revision),
            (Revision(2 + number), Revision(2 + number))
        );
        let kv = &read.reply.kvs[0];
        assert_eq!(
            (kv.version, &kv.value[..]),
            (1 + number, number.to_string().as_bytes())
        );
    }
}

/// Adds one to a counter, until that succeeds. Answers whether it is certain that it did, once.
pub(crate) async fn count_up(store: &impl Store) -> bool {
    loop {
        let Ok(read) = store.range(Range::key("counter")).await else {
            continue;
        };
        let kv = read.reply.kvs.first();
        let (version, value) = kv.map_or((0, 0), |kv| {
            let value = std::str::from_utf8(&kv.value).unwrap();
            (kv.version, value.parse::<u64>().unwrap())
        });
        let txn = Txn {
            compares: vec![Compare {
                keys: KeyRange::One("counter".into()),
                result: CompareResult::Equal,
                target: CompareTarget::Version(version),
            }],
            success: vec![Op::Put(Put::new("counter", format!("{}", value + 1)))],
            failure: Vec::new(),
        };
        match store.txn(txn).await {
            Ok(answer) if answer.reply.succeeded => return true,
            Ok(_) | Err(StoreError::Unavailable(_)) => {}
            Err(StoreError::Unknown(_)) => return false,
            Err(err) => panic!("{err}"),
        }
    }
}

/// A counter stays exact while there is `trouble`, four times: it is told the how manieth it is.
pub(crate) async fn a_counter_stays_exact(store: &impl Store, mut trouble: impl AsyncFnMut(u64)) {
    const WRITERS: usize = 8;
    const EACH: u64 = 40;
    let certain = Arc::new(AtomicU64::new(0));
    let uncertain = Arc::new(AtomicU64::new(0));
    let writers = (0..WRITERS).map(|_| {
        let (certain, uncertain) = (certain.clone(), uncertain.clone());
        async move {
            for _ in 0..EACH {
                let count = if count_up(store).await {
                    &certain
                } else {
                    &uncertain
                };
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let all_trouble = async {
        for part in 1..=4 {
            let goal = u64::try_from(WRITERS).unwrap() * EACH * part / 6;
            eventually("the counter goes up", async || {
                let done = certain.load(Ordering::SeqCst);
                if done >= goal { Ok(()) } else { Err(done) }
            })
            .await;
            trouble(part).await;
        }
    };
    tokio::join!(join_all(writers), all_trouble);
    let (certain, uncertain) = (
        certain.load(Ordering::SeqCst),
        uncertain.load(Ordering::SeqCst),
    );
    assert_eq!(uncertain, 0, "the outcome of every commit can be looked up");
    let read = store.range(Range::key("counter")).await.unwrap();
    let value: u64 = std::str::from_utf8(&read.reply.kvs[0].value)
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(value, certain);
    assert_eq!(
        read.revision.0,
        1 + i64::try_from(certain).unwrap(),
        "no gap"
    );
}

/// What one process writes, watches of another see.
pub(crate) async fn watches_see_what_another_writes(writer: &impl Store, reader: &impl Store) {
    let mut watching = reader
        .watch(Watch::of(KeyRange::all(), None))
        .await
        .unwrap();
    for number in 0..50 {
        let written = writer
            .put(Put::new("a", format!("{number}")))
            .await
            .unwrap();
        let next = tokio::time::timeout(Duration::from_secs(10), watching.items.next());
        let Ok(Some(WatchItem::Events(batch))) = next.await else {
            panic!("change {number} is not seen");
        };
        assert_eq!(batch.revision, written.revision);
    }
}

/// Watches go on though another process compacts each change as soon as it is made.
pub(crate) async fn watches_outlive_compactions_of_another(
    writer: &impl Store,
    reader: &impl Store,
) {
    let watch = Watch::of(KeyRange::all(), None);
    let mut watching = reader.watch(watch).await.unwrap();
    let mut written = Vec::new();
    for number in 0..100 {
        let put = Put::new(format!("{}", number % 2), "");
        written.push(writer.put(put).await.unwrap().revision);
        writer.compact(written[number]).await.unwrap();
    }
    for revision in written {
        let next = tokio::time::timeout(Duration::from_secs(10), watching.items.next());
        match next.await {
            Ok(Some(WatchItem::Events(batch))) => assert_eq!(batch.revision, revision),
            other => panic!("{other:?} instead of {revision}"),
        }
    }
}

/// Keys of every byte, the longest keys and the longest values go through unchanged. Answers the longest key.
pub(crate) async fn all_keys_go_through_unchanged(store: &impl Store) -> Bytes {
    // Not to be compressed, and alike in what is indexed.
    let long = |len: usize, last: u8| {
        let mut state = 7u32;
        let mut key: Vec<u8> = (0..len)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state.to_be_bytes()[0]
            })
            .collect();
        key[0] = 1;
        *key.last_mut().unwrap() = last;
        Bytes::from(key)
    };
    let value: Bytes = (0..1_400_000u32)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect();
    let mut keys = vec![
        long(2000, 0),
        long(2000, 255),
        long(2001, 0),
        long(2001, 255),
        long(3072, 0),
        long(3072, 1),
        long(3072, 255),
    ];
    keys.extend((0..=255u8).map(|byte| Bytes::from(vec![2, byte, 0])));
    keys.sort_unstable();
    let mut watching = store.watch(Watch::of(KeyRange::all(), None)).await.unwrap();
    for key in &keys {
        let value = if key.len() > 3 {
            value.clone()
        } else {
            key.clone()
        };
        store.put(Put::new(key.clone(), value)).await.unwrap();
        let Some(WatchItem::Events(batch)) = watching.items.next().await else {
            panic!("the watch has ended");
        };
        let Change::Put(kv) = &batch.events[0].change else {
            panic!("a put is shown as something else");
        };
        assert_eq!(&kv.key, key);
    }
    let read = store.range(Range::of(KeyRange::all())).await.unwrap().reply;
    let found: Vec<_> = read.kvs.iter().map(|kv| kv.key.clone()).collect();
    assert_eq!(found, keys, "in the order of their bytes");
    assert!(read.kvs[..7].iter().all(|kv| kv.value == value));
    for (at, key) in keys.iter().enumerate() {
        let read = store.range(Range::key(key.clone())).await.unwrap().reply;
        assert_eq!((&read.kvs[0].key, read.count), (key, 1));
        // From this key on, and up to it.
        for (span, count) in [
            (KeyRange::span(key.clone(), None), keys.len() - at),
            (KeyRange::span(Bytes::new(), Some(key.clone())), at),
        ] {
            let limited = Range {
                limit: 3,
                ..Range::of(span)
            };
            assert_eq!(store.range(limited).await.unwrap().reply.count, count);
        }
    }
    // Each is itself and no other, also when it is changed and in the past.
    for key in &keys[..7] {
        let put = Put {
            prev_kv: true,
            ..Put::new(key.clone(), key.clone())
        };
        let prev = store.put(put).await.unwrap().reply.prev_kv.unwrap();
        assert_eq!((&prev.key, prev.version, &prev.value), (key, 1, &value));
    }
    let past = Range {
        at: Some(Revision(5)),
        ..Range::of(KeyRange::all())
    };
    let past = store.range(past).await.unwrap().reply;
    assert_eq!(past.kvs.len(), 4);
    assert!(past.kvs.iter().all(|kv| kv.value == value));
    let deleted = store
        .delete(Delete {
            keys: KeyRange::One(keys[4].clone()),
            prev_kv: false,
        })
        .await
        .unwrap();
    assert_eq!(deleted.reply.deleted, 1);
    let count = store
        .range(Range::of(KeyRange::all()))
        .await
        .unwrap()
        .reply
        .count;
    assert_eq!(count, keys.len() - 1);
    keys[4].clone()
}

/// Changes of ten thousand keys in one revision are found again quickly.
pub(crate) async fn many_changes_of_a_revision_are_found(store: &impl Store) {
    const KEYS: usize = 10_000;
    // Alike for longer than an index looks at the beginning.
    let key = |number: usize| format!("{}{number:05}", "k".repeat(800));
    let put_all = async || {
        for numbers in (0..KEYS).collect::<Vec<_>>().chunks(1000) {
            let puts = numbers
                .iter()
                .map(|number| Op::Put(Put::new(key(*number), "v")));
            store.txn(Txn::of(puts.collect())).await.unwrap();
        }
    };
    put_all().await;
    let all = Delete {
        keys: KeyRange::all(),
        prev_kv: false,
    };
    let deleted = store.delete(all.clone()).await.unwrap();
    assert_eq!(deleted.reply.deleted, KEYS);
    put_all().await;
    store.delete(all).await.unwrap();
    let begun = Instant::now();
    let watch = Watch {
        prev_kv: true,
        ..Watch::of(KeyRange::all(), Some(deleted.revision))
    };
    let mut watching = store.watch(watch).await.unwrap();
    let mut seen = 0;
    while seen < 3 * KEYS {
        let Some(WatchItem::Events(batch)) = watching.items.next().await else {
            panic!("the watch has ended");
        };
        seen += batch.events.len();
    }
    // Each looks for the one before it among ten thousand of the same revision; if it had to look at
    // all of them it would take minutes.
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
}

/// Starters that met have opened one store.
pub(crate) async fn have_opened_one_store<S: Store + NewStore>(opened: &[Arc<S>]) {
    let mut identities = Vec::new();
    for (number, store) in opened.iter().enumerate() {
        identities.push(store.identity().await.unwrap());
        let put = Put::new(format!("{number}"), "");
        let revision = store.put(put).await.unwrap().revision;
        assert_eq!(revision.0, 2 + i64::try_from(number).unwrap());
    }
    identities.dedup();
    assert_eq!(identities.len(), 1);
}

use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::timeout;

use super::*;
use crate::store::{RequestError, StoreError, WatchEnd};
use crate::types::{Change, Event, KeyRange, KeyValue};

/// A log in memory, from behind `compacted` on.
#[derive(Default)]
struct Log {
    batches: Mutex<Vec<Arc<EventBatch>>>,
    compacted: Mutex<Revision>,
    /// Batches that are read at a time, if that is bounded.
    at_a_time: Option<usize>,
    /// What the next reads fail with.
    failures: Mutex<Vec<StoreError>>,
    /// Reads of so many events are too slow, if any are.
    too_many: Option<usize>,
}

#[async_trait]
impl History for Log {
    async fn history(&self, _: &Watch, after: Revision, limit: usize) -> Result<Stretch> {
        if let Some(failure) = self.failures.lock().unwrap().pop() {
            return Err(failure);
        }
        if self.too_many.is_some_and(|many| limit >= many) {
            return Err(StoreError::Unavailable("too slow".into()));
        }
        let compacted = *self.compacted.lock().unwrap();
        if after.next() < compacted {
            return Err(RequestError::Compacted(compacted).into());
        }
        let batches = self.batches.lock().unwrap();
        let later = batches.iter().filter(|batch| batch.revision > after);
        let limit = self.at_a_time.unwrap_or(limit);
        let batches: Vec<_> = later.take(limit).cloned().collect();
        let through = batches.last().map_or(after, |batch| batch.revision);
        Ok(Stretch { batches, through })
    }
}

struct Fixture {
    log: Arc<Log>,
    feed: Feed,
}

impl Fixture {
    /// A feed with room for so many batches, of any size, for each watcher.
    fn new(batches: usize) -> Self {
        let bytes = usize::MAX;
        Self::with_room(Room { batches, bytes })
    }

    fn with_room(room: Room) -> Self {
        Self::with(Log::default(), room)
    }

    fn with(log: Log, room: Room) -> Self {
        let log = Arc::new(log);
        let reserved = Reserved::default();
        let feed = Feed::with_room(log.clone(), reserved, Revision(0), room);
        Self { log, feed }
    }

    /// Commits the next revision, which puts these keys.
    fn put(&self, keys: &[&str]) {
        let revision = self.feed.published().next();
        let put = |key: &&str| Event {
            change: Change::Put(KeyValue {
                key: key.to_string().into(),
                mod_revision: revision,
                ..KeyValue::default()
            }),
            prev: Some(KeyValue::default()),
        };
        self.commit(revision, keys.iter().map(put).collect());
    }

    fn commit(&self, revision: Revision, events: Vec<Event>) {
        let batch = Arc::new(EventBatch { revision, events });
        self.log.batches.lock().unwrap().push(batch.clone());
        self.feed.publish(&[batch]);
    }

    fn watch(&self, keys: KeyRange, start: Option<i64>) -> Watching {
        let request = Watch::of(keys, start.map(Revision));
        self.feed.watch(request, self.feed.published())
    }
}

async fn next(watching: &mut Watching) -> WatchItem {
    let item = timeout(Duration::from_secs(5), watching.items.next()).await;
    item.expect("no item in time")
        .expect("ended without an end")
}

/// The revisions of the next `count` batches.
async fn revisions(watching: &mut Watching, count: usize) -> Vec<i64> {
    let mut revisions = Vec::new();
    while revisions.len() < count {
        match next(watching).await {
            WatchItem::Events(batch) => revisions.push(batch.revision.0),
            item => panic!("{item:?} after {revisions:?}"),
        }
    }
    revisions
}

/// Asserts that the watch has nothing more to say than its progress.
async fn quiet(watching: &mut Watching, at: i64) {
    watching.progress.notify_one();
    assert_eq!(next(watching).await, WatchItem::Progress(Revision(at)));
}

fn one(key: &'static str) -> KeyRange {
    KeyRange::One(key.into())
}

#[tokio::test]
async fn a_watch_from_now_sees_what_comes_later_on_its_keys() {
    let fixture = Fixture::new(8);
    fixture.put(&["a"]);
    let mut single = fixture.watch(one("a"), None);
    let mut span = fixture.watch(KeyRange::prefix("b"), None);
    fixture.put(&["a", "b1", "b2"]);
    fixture.put(&["c"]);
    fixture.put(&["b1"]);
    assert_eq!(revisions(&mut single, 1).await, [2]);
    let WatchItem::Events(batch) = next(&mut span).await else {
        panic!()
    };
    let keys: Vec<_> = batch.events.iter().map(Event::key).collect();
    assert_eq!(keys, ["b1", "b2"]);
    assert_eq!(batch.events[0].prev, None, "prev_kv was not asked for");
    assert_eq!(revisions(&mut span, 1).await, [4]);
    quiet(&mut single, 4).await;
    quiet(&mut span, 4).await;
}

#[tokio::test]
async fn a_watch_from_the_past_goes_over_to_the_feed_without_gap_or_repetition() {
    let fixture = Fixture::new(4);
    for _ in 0..700 {
        fixture.put(&["a"]);
    }
    let mut watching = fixture.watch(one("a"), Some(3));
    let mut seen = revisions(&mut watching, 300).await;
    for _ in 0..50 {
        fixture.put(&["a"]);
    }
    seen.extend(revisions(&mut watching, 448).await);
    fixture.put(&["a"]);
    seen.extend(revisions(&mut watching, 1).await);
    assert_eq!(seen, (3..=751).collect::<Vec<_>>());
    quiet(&mut watching, 751).await;
}

#[tokio::test]
async fn a_watcher_that_falls_behind_reads_history_and_comes_back() {
    let fixture = Fixture::new(2);
    let mut slow = fixture.watch(one("a"), None);
    let mut expected = 0;
    for _ in 0..3 {
        for _ in 0..10 {
            fixture.put(&["a"]);
        }
        assert_eq!(fixture.feed.attached(), 0, "a full queue leaves the feed");
        let seen = revisions(&mut slow, 10).await;
        assert_eq!(seen, (expected + 1..=expected + 10).collect::<Vec<_>>());
        expected += 10;
        quiet(&mut slow, expected).await;
        assert_eq!(fixture.feed.attached(), 1);
    }
}

#[tokio::test]
async fn a_watcher_with_many_bytes_before_it_leaves_the_feed_and_a_single_batch_always_fits() {
    let key = "k".repeat(1000);
    let watch = |fixture: &Fixture| fixture.watch(KeyRange::all(), None);
    // Room for batches of three such keys in all.
    let fixture = Fixture::with_room(Room {
        batches: 100,
        bytes: 3500,
    });
    let mut slow = watch(&fixture);
    for _ in 0..3 {
        fixture.put(&[&key]);
    }
    assert_eq!(fixture.feed.attached(), 1);
    assert_eq!(revisions(&mut slow, 2).await, [1, 2], "makes room");
    fixture.put(&[&key]);
    fixture.put(&[&key]);
    assert_eq!(fixture.feed.attached(), 1);
    fixture.put(&[&key]);
    assert_eq!(fixture.feed.attached(), 0, "there is no room for a fourth");
    fixture.put(&[&key]);
    assert_eq!(revisions(&mut slow, 5).await, [3, 4, 5, 6, 7]);
    quiet(&mut slow, 7).await;
    assert_eq!(fixture.feed.attached(), 1);

    let large = [&*key, "a", &*key, "b", &*key, "c", &*key];
    fixture.put(&large);
    assert_eq!(fixture.feed.attached(), 1, "an empty queue takes any batch");
    fixture.put(&["a"]);
    assert_eq!(fixture.feed.attached(), 0, "but nothing besides it");
    assert_eq!(revisions(&mut slow, 2).await, [8, 9]);
    quiet(&mut slow, 9).await;
}

#[tokio::test]
async fn a_watch_from_the_future_leaves_out_what_comes_before() {
    let fixture = Fixture::new(8);
    let mut watching = fixture.watch(one("a"), Some(3));
    fixture.put(&["a"]);
    quiet(&mut watching, 1).await;
    fixture.put(&["a"]);
    fixture.put(&["a"]);
    assert_eq!(revisions(&mut watching, 1).await, [3]);
}

#[tokio::test]
async fn a_watch_below_the_compacted_revision_ends_with_it() {
    let fixture = Fixture::new(2);
    for _ in 0..5 {
        fixture.put(&["a"]);
    }
    *fixture.log.compacted.lock().unwrap() = Revision(4);
    let mut below = fixture.watch(one("a"), Some(3));
    let end = WatchItem::End(WatchEnd::Compacted(Revision(4)));
    assert_eq!(next(&mut below).await, end);
    assert_eq!(below.items.next().await, None);
    let mut at = fixture.watch(one("a"), Some(4));
    assert_eq!(revisions(&mut at, 2).await, [4, 5]);
    quiet(&mut at, 5).await;

    for _ in 0..10 {
        fixture.put(&["a"]);
    }
    *fixture.log.compacted.lock().unwrap() = Revision(12);
    assert_eq!(revisions(&mut at, 2).await, [6, 7], "queued before");
    let end = WatchItem::End(WatchEnd::Compacted(Revision(12)));
    assert_eq!(next(&mut at).await, end, "what comes next is compacted");
}

#[tokio::test]
async fn a_history_that_is_too_long_for_one_read_is_read_on_in_shorter_stretches() {
    let log = Log {
        at_a_time: Some(2),
        too_many: Some(100),
        ..Log::default()
    };
    let fixture = Fixture::with(log, ROOM);
    for _ in 0..20 {
        fixture.put(&["often"]);
    }
    fixture.put(&["seldom"]);
    let mut watching = fixture.watch(one("seldom"), Some(1));
    assert_eq!(revisions(&mut watching, 1).await, [21]);
}

#[tokio::test]
async fn a_history_that_fails_at_the_same_place_again_ends_the_watch() {
    let fixture = Fixture::new(8);
    fixture.put(&["a"]);
    let away = StoreError::Unavailable("away".into());
    *fixture.log.failures.lock().unwrap() = vec![away; 2];
    let mut watching = fixture.watch(one("a"), Some(1));
    let lost = WatchItem::End(WatchEnd::Lost("away".into()));
    assert_eq!(next(&mut watching).await, lost);
    assert_eq!(watching.items.next().await, None);
}

#[tokio::test]
async fn a_history_that_nobody_can_read_ends_the_watch_for_good() {
    let fixture = Fixture::new(8);
    fixture.put(&["a"]);
    let broken = StoreError::Broken("not a log".into());
    *fixture.log.failures.lock().unwrap() = vec![broken.clone()];
    let mut watching = fixture.watch(one("a"), Some(1));
    let failed = WatchItem::End(WatchEnd::Failed(broken));
    assert_eq!(next(&mut watching).await, failed);
}

#[tokio::test]
async fn filters_leave_out_puts_or_deletes_and_prev_is_kept_where_asked_for() {
    let fixture = Fixture::new(8);
    let all = Watch::of(KeyRange::all(), None);
    let watch = |request| fixture.feed.watch(request, Revision(0));
    let mut puts = watch(Watch {
        deletes: false,
        prev_kv: true,
        ..all.clone()
    });
    let mut deletes = watch(Watch { puts: false, ..all });
    fixture.put(&["a"]);
    let delete = Event {
        change: Change::Delete {
            key: "a".into(),
            revision: Revision(2),
        },
        prev: None,
    };
    fixture.commit(Revision(2), vec![delete]);
    let WatchItem::Events(batch) = next(&mut puts).await else {
        panic!()
    };
    assert_eq!(batch.events[0].prev, Some(KeyValue::default()));
    quiet(&mut puts, 2).await;
    assert_eq!(revisions(&mut deletes, 1).await, [2]);
}

#[tokio::test]
async fn reserved_keys_are_shown_only_within_their_prefix() {
    let fixture = Fixture::new(8);
    let mut all = fixture.watch(KeyRange::all(), None);
    let mut switch = fixture.watch(one("segue/switch"), None);
    fixture.put(&["segue/switch"]);
    fixture.put(&["a", "segue/switch"]);
    let WatchItem::Events(batch) = next(&mut all).await else {
        panic!()
    };
    assert_eq!((batch.revision, batch.events.len()), (Revision(2), 1));
    assert_eq!(revisions(&mut switch, 2).await, [1, 2]);
}

#[tokio::test]
async fn progress_waits_for_what_is_queued_and_does_not_wait_for_a_busy_watch() {
    let fixture = Fixture::new(8);
    let mut watching = fixture.watch(one("a"), None);
    fixture.put(&["a"]);
    fixture.put(&["a"]);
    fixture.put(&["b"]);
    watching.progress.notify_one();
    // Asked for before the first item was taken: due behind both, ahead of what comes later.
    assert_eq!(revisions(&mut watching, 1).await, [1]);
    fixture.put(&["a"]);
    assert_eq!(revisions(&mut watching, 1).await, [2]);
    let progress = WatchItem::Progress(Revision(3));
    assert_eq!(next(&mut watching).await, progress);
    assert_eq!(revisions(&mut watching, 1).await, [4]);
}

#[tokio::test]
async fn ending_all_lets_what_was_published_through_and_spares_later_watches() {
    let fixture = Fixture::new(1);
    let mut attached = fixture.watch(one("a"), None);
    let mut behind = fixture.watch(KeyRange::all(), None);
    fixture.put(&["a"]);
    fixture.put(&["b"]);
    fixture.feed.end_all("gone");
    let mut later = fixture.watch(one("a"), None);
    assert_eq!(revisions(&mut attached, 1).await, [1]);
    assert_eq!(revisions(&mut behind, 1).await, [1]);
    let lost = WatchItem::End(WatchEnd::Lost("gone".into()));
    assert_eq!(next(&mut attached).await, lost);
    assert_eq!(next(&mut behind).await, lost);
    fixture.put(&["a"]);
    assert_eq!(revisions(&mut later, 1).await, [3]);
}

#[tokio::test]
async fn a_dropped_watch_leaves_the_feed_and_repetitions_are_dropped() {
    let fixture = Fixture::new(8);
    let gone = fixture.watch(one("a"), None);
    let mut stays = fixture.watch(one("a"), None);
    let span = fixture.watch(KeyRange::all(), None);
    assert_eq!(fixture.feed.attached(), 3);
    drop((gone, span));
    assert_eq!(fixture.feed.attached(), 1);
    fixture.put(&["a"]);
    let repeated = fixture.log.batches.lock().unwrap().clone();
    fixture.feed.publish(&repeated);
    fixture.feed.advance(Revision(9));
    assert_eq!(revisions(&mut stays, 1).await, [1]);
    quiet(&mut stays, 9).await;
}

/// What the feed does not carry because it was published between a watcher's look and its taking a
/// place is read from history; what both carry is delivered once.
#[tokio::test]
async fn between_history_and_feed_nothing_is_lost_or_repeated() {
    let fixture = Fixture::new(8);
    let shared = fixture.feed.shared.clone();
    let request = Watch::of(one("a"), Some(Revision(1)));
    for _ in 0..3 {
        fixture.put(&["a"]);
    }
    let mut watcher = Watcher::new(shared, request, Revision(0), Revision(0), Arc::default());
    watcher.attach().unwrap();
    fixture.put(&["a"]);
    for expected in 1..=4 {
        match watcher.next().await {
            WatchItem::Events(batch) => assert_eq!(batch.revision, Revision(expected)),
            item => panic!("{item:?} in place of {expected}"),
        }
    }
    fixture.put(&["a"]);
    match watcher.next().await {
        WatchItem::Events(batch) => assert_eq!(batch.revision, Revision(5)),
        item => panic!("{item:?}"),
    }
}

#[tokio::test]
async fn a_start_that_the_store_has_passed_is_looked_for_in_history_whatever_was_published() {
    let fixture = Fixture::new(8);
    fixture.put(&["k"]);
    // Another process has moved the store on, and what happened in between is gone.
    let now = Revision(9);
    *fixture.log.compacted.lock().unwrap() = now.next();
    let request = |start| Watch::of(one("k"), Some(Revision(start)));
    let mut gone = fixture.feed.watch(request(5), now);
    let mut ahead = fixture.feed.watch(request(10), now);
    fixture.feed.advance(now);
    fixture.put(&["k"]);
    let end = WatchItem::End(WatchEnd::Compacted(now.next()));
    assert_eq!(next(&mut gone).await, end);
    assert_eq!(revisions(&mut ahead, 1).await, [10]);
}

/// Where several processes write to one store, it is read before the feed has come as far.
#[tokio::test]
async fn progress_is_never_behind_what_a_watch_was_told_at_its_opening() {
    let fixture = Fixture::new(8);
    fixture.feed.advance(Revision(95));
    let current = Revision(100);
    let request = |start: Option<i64>| Watch::of(one("k"), start.map(Revision));
    let mut from_now = fixture.feed.watch(request(None), current);
    let mut next_one = fixture.feed.watch(request(Some(101)), current);
    let mut ahead = fixture.feed.watch(request(Some(103)), current);
    for watching in [&mut from_now, &mut next_one, &mut ahead] {
        assert_eq!(watching.revision, current);
        quiet(watching, 100).await;
    }
    // The feed comes there later, and goes on.
    fixture.feed.advance(Revision(97));
    quiet(&mut from_now, 100).await;
    fixture.feed.advance(Revision(100));
    for _ in 0..3 {
        fixture.put(&["k"]);
    }
    assert_eq!(revisions(&mut from_now, 3).await, [101, 102, 103]);
    assert_eq!(revisions(&mut next_one, 3).await, [101, 102, 103]);
    assert_eq!(revisions(&mut ahead, 1).await, [103]);
    for watching in [&mut from_now, &mut next_one, &mut ahead] {
        quiet(watching, 103).await;
    }
}

#[tokio::test]
async fn progress_is_never_behind_what_came_from_history() {
    let fixture = Fixture::new(8);
    fixture.feed.advance(Revision(1));
    let events = vec![Event {
        change: Change::Put(KeyValue {
            key: "k".into(),
            mod_revision: Revision(5),
            ..KeyValue::default()
        }),
        prev: None,
    }];
    let revision = Revision(5);
    let batch = Arc::new(EventBatch { revision, events });
    fixture.log.batches.lock().unwrap().push(batch.clone());
    // The store was at 3 when it was asked, and at 5 when the history was read.
    let request = Watch::of(one("k"), Some(Revision(2)));
    let mut watching = fixture.feed.watch(request, Revision(3));
    watching.progress.notify_one();
    assert_eq!(revisions(&mut watching, 1).await, [5]);
    let progress = WatchItem::Progress(Revision(5));
    assert_eq!(next(&mut watching).await, progress);
    fixture.feed.publish(&[batch]);
    quiet(&mut watching, 5).await;
}

#[tokio::test]
async fn what_was_not_published_yet_comes_once_from_history() {
    let fixture = Fixture::new(8);
    let put = |revision| {
        let revision = Revision(revision);
        let pair = KeyValue {
            key: "k".into(),
            mod_revision: revision,
            ..KeyValue::default()
        };
        let change = Change::Put(pair);
        let events = vec![Event { change, prev: None }];
        Arc::new(EventBatch { revision, events })
    };
    let batches: Vec<_> = (1..=3).map(put).collect();
    fixture.log.batches.lock().unwrap().extend(batches.clone());
    let request = Watch::of(one("k"), Some(Revision(2)));
    let mut watching = fixture.feed.watch(request, Revision(3));
    assert_eq!(revisions(&mut watching, 2).await, [2, 3]);
    fixture.feed.publish(&batches);
    fixture.put(&["k"]);
    assert_eq!(revisions(&mut watching, 1).await, [4]);
}

#[tokio::test]
async fn what_nobody_watched_is_passed_by_and_comes_from_history() {
    let fixture = Fixture::new(8);
    fixture.put(&["k"]);
    let elsewhere = Fixture::new(8);
    elsewhere.put(&["other"]);
    elsewhere.put(&["k"]);
    let others = elsewhere.log.batches.lock().unwrap()[1].clone();
    fixture.log.batches.lock().unwrap().push(others);
    assert!(fixture.feed.pass_by(Revision(2)));
    assert_eq!(fixture.feed.published(), Revision(2));
    let mut past = fixture.watch(one("k"), Some(1));
    assert!(fixture.feed.until_watched().now_or_never().is_none());
    let mut now = fixture.watch(one("k"), None);
    assert!(fixture.feed.until_watched().now_or_never().is_some());
    // Whoever is on the feed gets everything by it.
    assert!(!fixture.feed.pass_by(Revision(9)));
    fixture.put(&["k"]);
    assert_eq!(revisions(&mut past, 3).await, [1, 2, 3]);
    assert_eq!(revisions(&mut now, 1).await, [3]);
}

/// A few bytes of a kind that gives keys which are alike, and prefixes without an end.
fn some_key(rng: &mut StdRng) -> Bytes {
    let len = rng.random_range(1..5);
    (0..len)
        .map(|_| [0, b'a', b'b', u8::MAX][rng.random_range(0..4)])
        .collect()
}

fn some_keys(rng: &mut StdRng) -> KeyRange {
    match rng.random_range(0..6) {
        0 => KeyRange::One(some_key(rng)),
        1 => KeyRange::all(),
        2 => KeyRange::span(some_key(rng), None),
        // Empty ones among them.
        3 => KeyRange::span(some_key(rng), Some(some_key(rng))),
        _ => KeyRange::prefix(some_key(rng)),
    }
}

#[test]
fn each_watcher_is_handed_just_the_batches_with_keys_of_its_own() {
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..50 {
        let hub = Hub::new(Revision(0));
        let mut watchers = Vec::new();
        for revision in (1..40).map(Revision) {
            for _ in 0..3 {
                let keys = some_keys(&mut rng);
                let place = hub.attach(&keys, Revision(0), 0, ROOM).unwrap();
                watchers.push((keys, place, Vec::new()));
            }
            let leaver = rng.random_range(0..watchers.len());
            let (keys, place, _) = watchers.swap_remove(leaver);
            hub.detach(&keys, place.id);

            let many = *[1, 3, 40].choose(&mut rng).unwrap();
            let events: Vec<_> = (0..many)
                .map(|_| Event {
                    change: Change::Delete {
                        key: some_key(&mut rng),
                        revision,
                    },
                    prev: None,
                })
                .collect();
            for (keys, _, expected) in &mut watchers {
                if events.iter().any(|event| keys.contains(event.key())) {
                    expected.push(revision);
                }
            }
            hub.publish(&[Arc::new(EventBatch { revision, events })]);
        }
        assert_eq!(hub.attached(), watchers.len());
        for (keys, mut place, expected) in watchers {
            let queued = std::iter::from_fn(|| place.try_next().ok());
            let revisions: Vec<_> = queued.map(|batch| batch.revision).collect();
            assert_eq!(revisions, expected, "{keys:?}");
            hub.detach(&keys, place.id);
        }
        assert_eq!(hub.attached(), 0);
    }
}

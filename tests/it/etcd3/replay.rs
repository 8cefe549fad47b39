//! The history of an etcd that is the old store.

use std::time::Duration;

use futures_util::StreamExt as _;
use segue::store::{Guard, StoreUrl, Watch, WatchEnd, WatchItem, open_old};
use segue::types::{KeyRange, Put, Reserved, Revision};

use super::open;
use crate::support::Etcd;

/// What a watch of the old store delivers from `start` on, up to now.
async fn delivered(etcd: &Etcd, start: Revision) -> Vec<WatchItem> {
    let url: StoreUrl = etcd.url().parse().unwrap();
    let old = open_old(&url, &Reserved::default()).await.unwrap();
    let request = Watch::of(KeyRange::prefix("a"), Some(start));
    let mut watching = old.watch(request).await.unwrap().unwrap();
    watching.progress.notify_one();
    let mut items = Vec::new();
    loop {
        let next = watching.items.next();
        let item = tokio::time::timeout(Duration::from_secs(20), next).await;
        let item = item.unwrap().expect("a watch ends with an end");
        let last = !matches!(item, WatchItem::Events(_));
        items.push(item);
        if last {
            return items;
        }
    }
}

#[tokio::test]
async fn the_history_is_replayed_up_to_now_and_says_when_it_has_been() {
    let etcd = Etcd::start().await;
    let store = open(&etcd).await.guarded(Guard::None);
    let mut revisions = Vec::new();
    for key in ["a1", "a2", "b", "a1", "b"] {
        let put = store.put(Put::new(key, "v")).await.unwrap();
        revisions.push(put.revision);
    }
    let last = revisions[4];
    let items = delivered(&etcd, revisions[1]).await;
    let [
        WatchItem::Events(first),
        WatchItem::Events(second),
        WatchItem::Progress(through),
    ] = &items[..]
    else {
        panic!("{items:?}");
    };
    assert_eq!(
        [first.revision, second.revision],
        [revisions[1], revisions[3]]
    );
    // The last change is of a key that is not watched: only progress tells that nothing is missing.
    assert!(*through >= last, "{through} is below {last}");
    store.compact(revisions[3]).await.unwrap();
    let items = delivered(&etcd, revisions[1]).await;
    assert_eq!(items, [WatchItem::End(WatchEnd::Compacted(revisions[3]))]);
}

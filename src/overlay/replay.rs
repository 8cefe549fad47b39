//! Watches that begin in the old store's time: its history up to the base revision, then the new
//! store's changes.

use futures_util::stream::{self, BoxStream, StreamExt as _};

use crate::store::watch::ask_again;
use crate::store::{Result, Store, Watch, WatchEnd, WatchItem, Watching};
use crate::types::Revision;

/// Where the watch is.
enum Position {
    /// In the old store; behind it, what comes then.
    Past(Watching, BoxStream<'static, WatchItem>),
    /// In the new store.
    Present(BoxStream<'static, WatchItem>),
    /// Behind its end.
    Over,
}

/// Opens a watch that begins at or below `base`, in the old store's own watch `past`. Where that
/// history is gone, which leaves the oldest revision to begin at, it ends with etcd's own answer, which
/// makes the client list again: there would be a hole otherwise.
pub(super) async fn watch(
    past: Result<Watching, Revision>,
    new: &dyn Store,
    base: Revision,
    request: Watch,
) -> Result<Watching> {
    let from_base = Watch {
        start: Some(base.next()),
        ..request
    };
    let mut watching = new.watch(from_base).await?;
    let position = match past {
        Ok(past) => {
            // Progress tells when all there is was delivered. Nothing else would: the last change up
            // to the base may be of a key that nobody watches.
            past.progress.notify_one();
            Position::Past(past, watching.items)
        }
        Err(oldest) => {
            let end = WatchItem::End(WatchEnd::Compacted(oldest.max(base.next())));
            Position::Present(stream::iter([end]).boxed())
        }
    };
    watching.items = stream::unfold(position, move |position| next(position, base)).boxed();
    Ok(watching)
}

async fn next(mut position: Position, base: Revision) -> Option<(WatchItem, Position)> {
    loop {
        position = match position {
            Position::Past(mut past, present) => match past.items.next().await {
                Some(WatchItem::Events(batch)) if batch.revision <= base => {
                    return Some((WatchItem::Events(batch), Position::Past(past, present)));
                }
                // What the old store does behind the base, such as to end leases that live on in
                // the new one, is none of the client's business.
                Some(WatchItem::Events(_)) => Position::Present(present),
                Some(WatchItem::Progress(through)) if through >= base => Position::Present(present),
                Some(WatchItem::Progress(_)) => {
                    ask_again(&past.progress).await;
                    Position::Past(past, present)
                }
                Some(WatchItem::Epoch(_)) => Position::Past(past, present),
                Some(WatchItem::End(WatchEnd::Compacted(oldest))) => {
                    // What it compacts behind the base, in revisions of its own, is none either.
                    let end = WatchEnd::Compacted(oldest.min(base.next()));
                    return Some((WatchItem::End(end), Position::Over));
                }
                Some(end @ WatchItem::End(_)) => return Some((end, Position::Over)),
                None => {
                    let why = "the old store's watch ended without a reason";
                    let end = WatchItem::End(WatchEnd::Lost(why.into()));
                    return Some((end, Position::Over));
                }
            },
            Position::Present(mut items) => {
                let item = items.next().await?;
                return Some((item, Position::Present(items)));
            }
            Position::Over => return None,
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use async_trait::async_trait;
    use bytes::Bytes;

    use super::*;
    use crate::overlay::WithPast;
    use crate::store::memory::Memory;
    use crate::store::old::AsOld;
    use crate::store::watch::tests::slow_watch;
    use crate::store::{Guard, Line, NewStore as _, OldLease, OldStore, Page, PageSize, RecordTxn};
    use crate::types::{Content, Delete, Epoch, KeyRange, KeyValue, Put, Reserved};

    #[tokio::test]
    async fn a_past_that_has_not_come_to_the_base_is_asked_now_and_then() {
        let new = Memory::new().guarded(Guard::None);
        let (past, asked) = slow_watch();
        let request = Watch::of(KeyRange::all(), Some(Revision(1)));
        let watching = super::watch(Ok(past), &*new, Revision(9), request).await;
        let mut items = watching.unwrap().items;
        let told = tokio::time::timeout(Duration::from_secs(1), items.next()).await;
        assert!(told.is_err(), "{told:?}");
        let asked = asked.load(Ordering::Relaxed);
        assert!((10..200).contains(&asked), "{asked}");
    }

    /// An old store without history.
    struct Forgetful(AsOld);

    #[async_trait]
    impl OldStore for Forgetful {
        async fn identity(&self) -> Result<String> {
            self.0.identity().await
        }
        async fn revision(&self) -> Result<Revision> {
            self.0.revision().await
        }
        async fn get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<KeyValue>>> {
            self.0.get(keys).await
        }
        async fn scan(&self, keys: KeyRange, size: PageSize, content: Content) -> Result<Page> {
            self.0.scan(keys, size, content).await
        }
        async fn count(&self, keys: KeyRange) -> Result<usize> {
            self.0.count(keys).await
        }
        async fn leases(&self) -> Result<Vec<OldLease>> {
            self.0.leases().await
        }
    }

    const BASE: Revision = Revision(5);

    /// `a` is written at 2 and 4, `b` at 3 and deleted at 5: the base. Then `b` at 6.
    async fn store(remembers: bool, compacted: Option<Revision>) -> WithPast {
        let source = Memory::new();
        let delete = Delete {
            keys: KeyRange::One("b".into()),
            prev_kv: false,
        };
        source.put(Put::new("a", "1")).await.unwrap();
        source.put(Put::new("b", "1")).await.unwrap();
        source.put(Put::new("a", "2")).await.unwrap();
        source.delete(delete).await.unwrap();
        if let Some(at) = compacted {
            source.compact(at).await.unwrap();
        }
        let line = Line {
            epoch: Epoch(1),
            claims: true,
            base: BASE,
        };
        let txn = RecordTxn {
            line: Some(Some(line)),
            ..RecordTxn::default()
        };
        let new = Memory::new();
        assert!(new.write_records(txn).await.unwrap());
        let guard = Guard::Epoch {
            epoch: Epoch(1),
            claims: true,
        };
        let old = AsOld::new(source.guarded(Guard::None), "it".into());
        let old: Arc<dyn OldStore> = if remembers {
            Arc::new(old)
        } else {
            Arc::new(Forgetful(old))
        };
        let new = new.guarded(guard);
        new.put(Put::new("b", "2")).await.unwrap();
        WithPast::new(new, old, BASE, Reserved::default(), false)
    }

    /// What a watch from `start` delivers up to now, in short.
    async fn delivered(store: &WithPast, keys: KeyRange, start: i64) -> Vec<String> {
        let request = Watch {
            prev_kv: true,
            ..Watch::of(keys, Some(Revision(start)))
        };
        let mut watching = store.watch(request).await.unwrap();
        watching.progress.notify_one();
        let mut told = Vec::new();
        loop {
            let next = watching.items.next();
            let item = tokio::time::timeout(Duration::from_secs(10), next).await;
            match item.unwrap() {
                Some(WatchItem::Events(batch)) => told.extend(batch.events.iter().map(|event| {
                    let key = String::from_utf8_lossy(event.key()).into_owned();
                    let prev = event.prev.as_ref().map_or(0, |kv| kv.mod_revision.0);
                    format!("{key} {} after {prev}", event.revision())
                })),
                Some(WatchItem::Epoch(_)) => {}
                Some(WatchItem::Progress(_)) => return told,
                Some(WatchItem::End(end)) => {
                    told.push(format!("{end:?}"));
                    assert!(watching.items.next().await.is_none());
                    return told;
                }
                None => panic!("a watch ends with an end: {told:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_watch_from_the_old_stores_time_has_no_hole_and_no_repetition() {
        let store = store(true, None).await;
        let all = [
            "a 2 after 0",
            "b 3 after 0",
            "a 4 after 2",
            "b 5 after 3",
            "b 6 after 0",
        ];
        assert_eq!(delivered(&store, KeyRange::all(), 2).await, all);
        assert_eq!(delivered(&store, KeyRange::all(), 5).await, all[3..]);
        assert_eq!(delivered(&store, KeyRange::all(), 6).await, all[4..]);
        // Nothing up to the base is of this key any more, and nothing behind it.
        assert!(
            delivered(&store, KeyRange::One("a".into()), 5)
                .await
                .is_empty()
        );
    }

    #[tokio::test]
    async fn where_the_history_is_gone_the_client_is_told_to_list_again() {
        let forgetful = store(false, None).await;
        let told = delivered(&forgetful, KeyRange::all(), 5).await;
        assert_eq!(told, ["Compacted(Revision(6))"]);
        let compacted = store(true, Some(Revision(4))).await;
        let told = delivered(&compacted, KeyRange::all(), 3).await;
        assert_eq!(told, ["Compacted(Revision(4))"]);
        let told = delivered(&compacted, KeyRange::all(), 5).await;
        assert_eq!(told.len(), 2, "{told:?}");
    }
}

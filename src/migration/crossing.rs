//! How watches go over from one store to the other.
//!
//! The line of revisions runs through both stores: through the old one up to the base revision, from
//! there through the new one, and back if the migration is rolled back. What lies between two such
//! borders is a *stretch*. A watch delivers what the store of its stretch has up to the border, and goes
//! on behind it in the store that is served then. The client notices nothing.
//!
//! From the moment in which a store is fenced until the border is known, watches stand still: what the
//! store does behind the fence, such as to end leases that live on in the other one, is none of
//! their clients' business. A store that does so tells of the epoch that it was given before
//! ([`WatchItem::Epoch`]), so that watches of a member which has not heard of it stand still too.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::router::Router;
use crate::store::watch::ask_again;
use crate::store::{StoreError, Watch, WatchEnd, WatchItem, Watching};
use crate::types::{Epoch, KeyRange, Reserved, Revision};

/// How long a watch waits until it asks again for its continuation.
const PAUSE: Duration = Duration::from_millis(100);

/// How far the store of a stretch goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Border {
    /// It is served.
    Open,
    /// It is fenced; where its part of the line ends is not known yet.
    Closing,
    /// Its part of the line ends with this revision.
    At(Revision),
}

/// What a member knows of the stretch that its requests go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The latest epoch.
    pub epoch: Epoch,
    /// How far the stretch goes.
    pub border: Border,
}

/// A part of the line of revisions that belongs to one store. Requests and watches that are on it hold a
/// clone each, so that the last one that is dropped tells that it is left.
#[derive(Clone, Debug)]
pub struct Stretch {
    known: watch::Receiver<Known>,
    /// Keys that are the new store's on every stretch: watches of them do not go over.
    reserved: Reserved,
    left: CancellationToken,
    last_one_out: Arc<DropGuard>,
}

impl Stretch {
    /// A stretch that nobody is on yet.
    #[must_use]
    pub fn new(known: watch::Receiver<Known>, reserved: Reserved) -> Self {
        let left = CancellationToken::new();
        Self {
            known,
            reserved,
            last_one_out: Arc::new(left.clone().drop_guard()),
            left,
        }
    }

    /// Is cancelled once nothing is on the stretch any more.
    #[must_use]
    pub fn left(&self) -> CancellationToken {
        self.left.clone()
    }

    /// Whether it is the same one, and not only one of the same kind.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.last_one_out, &other.last_one_out)
    }

    /// Whether a watch of `keys` goes over at the border.
    fn concerns(&self, keys: &KeyRange) -> bool {
        !self.reserved.range().covers(keys)
    }
}

/// Lets `watching`, which was opened on `stretch`, go over to where `onward` leads then.
pub(super) fn across(
    request: Watch,
    watching: Watching,
    stretch: Stretch,
    onward: Weak<Router>,
) -> Watching {
    if !stretch.concerns(&request.keys) {
        return watching;
    }
    let asked = Arc::new(Notify::new());
    let revision = watching.revision;
    let crossing = Crossing {
        request,
        watching: Some(watching),
        stretch: Some(stretch),
        leaving: None,
        told: Epoch(0),
        hurried: false,
        onward,
        asked: asked.clone(),
        progress_due: false,
    };
    let items = stream::unfold(crossing, |mut crossing| async move {
        let item = crossing.next().await?;
        Some((item, crossing))
    });
    Watching {
        revision,
        items: items.boxed(),
        progress: asked,
    }
}

/// A watch that goes over from store to store.
struct Crossing {
    request: Watch,
    /// The watch in the store where it is; nothing behind its end.
    watching: Option<Watching>,
    /// Where it is; nothing where no border can come.
    stretch: Option<Stretch>,
    /// Where it was, until it has seen what the store has behind the border: that could be compacted.
    leaving: Option<Stretch>,
    /// The latest epoch that the store has told of.
    told: Epoch,
    /// The store was asked to tell when it has delivered everything up to the border.
    hurried: bool,
    onward: Weak<Router>,
    /// The client asks for progress.
    asked: Arc<Notify>,
    progress_due: bool,
}

/// What happened to a watch.
enum Step {
    Item(Option<WatchItem>),
    Asked,
    Border,
}

impl Crossing {
    async fn next(&mut self) -> Option<WatchItem> {
        loop {
            let border = match &mut self.stretch {
                Some(stretch) => match *stretch.known.borrow_and_update() {
                    // What it is that has changed will be known soon.
                    Known { epoch, border } if border == Border::Open && epoch < self.told => {
                        Border::Closing
                    }
                    Known { border, .. } => border,
                },
                None => Border::Open,
            };
            let watching = self.watching.as_mut()?;
            if matches!(border, Border::At(_)) && !self.hurried {
                watching.progress.notify_one();
                self.hurried = true;
            }
            let step = tokio::select! {
                // What is ready together with the border's move is looked at behind it.
                biased;
                () = moved(&mut self.stretch), if !matches!(border, Border::At(_)) => Step::Border,
                () = self.asked.notified() => Step::Asked,
                item = watching.items.next(), if border != Border::Closing => Step::Item(item),
            };
            let item = match step {
                Step::Border => continue,
                Step::Asked => {
                    self.progress_due = true;
                    watching.progress.notify_one();
                    continue;
                }
                Step::Item(Some(WatchItem::Epoch(epoch))) => {
                    self.told = epoch;
                    if let Some(router) = self.onward.upgrade() {
                        router.look_again();
                    }
                    continue;
                }
                Step::Item(item) => item.unwrap_or_else(lost),
            };
            let item = match border {
                Border::At(last) => self.before(last, item).await,
                Border::Open | Border::Closing => Some(item),
            };
            match item {
                None => continue,
                Some(WatchItem::End(_)) => {
                    self.watching = None;
                    self.leaving = None;
                }
                Some(WatchItem::Progress(_)) => {
                    let for_ourselves = self.leaving.take().is_some() && !self.progress_due;
                    if for_ourselves {
                        continue;
                    }
                    self.progress_due = false;
                }
                Some(WatchItem::Events(_) | WatchItem::Epoch(_)) => {}
            }
            return item;
        }
    }

    /// What the client gets of an item when `last` is the last revision of the stretch.
    async fn before(&mut self, last: Revision, item: WatchItem) -> Option<WatchItem> {
        match item {
            WatchItem::Events(batch) if batch.revision <= last => Some(WatchItem::Events(batch)),
            WatchItem::Events(_) => self.go_over(last).await,
            WatchItem::Progress(through) if through >= last => self.go_over(last).await,
            WatchItem::Progress(_) => {
                // Not there yet.
                let watching = self.watching.as_ref();
                if let Some(progress) = watching.map(|watching| watching.progress.clone()) {
                    ask_again(&progress).await;
                }
                None
            }
            item @ (WatchItem::Epoch(_) | WatchItem::End(_)) => Some(item),
        }
    }

    /// Goes on behind `last`; answers why not, if that is so.
    async fn go_over(&mut self, last: Revision) -> Option<WatchItem> {
        let start = self.request.start.unwrap_or_default().max(last.next());
        let request = Watch {
            start: Some(start),
            ..self.request.clone()
        };
        loop {
            let Some(router) = self.onward.upgrade() else {
                return Some(lost());
            };
            match router.open_watch(request.clone()).await {
                Ok((watching, stretch)) => {
                    watching.progress.notify_one();
                    self.watching = Some(watching);
                    self.leaving = std::mem::replace(&mut self.stretch, stretch);
                    self.told = Epoch(0);
                    self.hurried = false;
                    return None;
                }
                // The phase is not open yet.
                Err(StoreError::Unavailable(_) | StoreError::StaleEpoch) => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Some(WatchItem::End(WatchEnd::Lost(error.to_string()))),
            }
        }
    }
}

/// Returns when the border has moved; never, if it cannot.
async fn moved(stretch: &mut Option<Stretch>) {
    if let Some(stretch) = stretch
        && stretch.known.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

fn lost() -> WatchItem {
    WatchItem::End(WatchEnd::Lost("the store's watch has ended".into()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use bytes::Bytes;
    use futures_util::FutureExt as _;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::UnboundedReceiverStream;

    use super::*;
    use crate::store::watch::tests::slow_watch;
    use crate::types::{Change, Event, EventBatch};

    #[tokio::test]
    async fn a_store_that_has_not_come_to_the_border_is_asked_now_and_then() {
        let behind = Known {
            epoch: Epoch(1),
            border: Border::At(Revision(9)),
        };
        let known = watch::Sender::new(behind);
        let stretch = Stretch::new(known.subscribe(), Reserved::default());
        let (watching, asked) = slow_watch();
        let request = Watch::of(KeyRange::all(), None);
        let mut watching = across(request, watching, stretch, Weak::new());
        let second = Duration::from_secs(1);
        let told = tokio::time::timeout(second, watching.items.next()).await;
        assert!(told.is_err(), "{told:?}");
        let asked = asked.load(Ordering::Relaxed);
        assert!((10..200).contains(&asked), "{asked}");
    }

    #[test]
    fn an_item_that_comes_together_with_the_border_is_seen_behind_it() {
        let events = |revision| {
            let key = Bytes::from("k");
            let change = Change::Delete { key, revision };
            WatchItem::Events(EventBatch {
                revision,
                events: vec![Event { change, prev: None }],
            })
        };
        let (epoch, open) = (Epoch(1), Border::Open);
        for border in [Border::Closing, Border::At(Revision(5))] {
            // What is ready at first is taken in any order, if it is not in one.
            for _ in 0..20 {
                let known = watch::Sender::new(Known {
                    epoch,
                    border: open,
                });
                let stretch = Stretch::new(known.subscribe(), Reserved::default());
                let (items, receiver) = mpsc::unbounded_channel();
                let watching = Watching {
                    revision: Revision(4),
                    items: UnboundedReceiverStream::new(receiver).boxed(),
                    progress: Arc::default(),
                };
                let request = Watch::of(KeyRange::all(), None);
                let mut watching = across(request, watching, stretch, Weak::new());
                items.send(events(Revision(5))).unwrap();
                let told = watching.items.next().now_or_never();
                assert_eq!(told, Some(Some(events(Revision(5)))));
                assert_eq!(watching.items.next().now_or_never(), None);
                items.send(events(Revision(6))).unwrap();
                known.send_replace(Known { epoch, border });
                let told = watching.items.next().now_or_never();
                // With nowhere to go on, it ends where the border is known.
                let expected = (border != Border::Closing).then(|| Some(lost()));
                assert_eq!(told, expected);
            }
        }
    }
}

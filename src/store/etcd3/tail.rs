//! Watches: one upstream watch over all keys feeds every watcher of this process.
//!
//! It starts with the first watcher and ends with the last. Since it sees every change, it also sees
//! every revision, so what it has handed out is all there was: no progress requests are needed
//! upstream (etcd before 3.4.25 answers these too early). All events of a revision arrive together,
//! which tells copy-ups from changes: the claim record that holds the copied numbers is written in the
//! same revision as the key. So are replayed keys; where some are removed, a key that says so is written.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::{Notify, OnceCell, mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::client::{Client, Responses};
use super::numbers::Claimed;
use super::records::read_epoch;
use super::view::{View, header_revision};
use crate::proto::etcdserverpb as pb;
use crate::store::feed::{Feed, History, Stretch};
use crate::store::{Fence, RequestError, Result, StoreError, Watch, WatchItem, Watching};
use crate::tasks::spawn_owned;
use crate::types::{Change, Epoch, Event, EventBatch, KeyRange, Revision};
use pb::watch_request::RequestUnion;

const RECONNECT_FIRST: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(2);
/// Nothing is sent on an upstream stream but the one request that opens its watch.
const REQUESTS_LEN: usize = 1;

/// Where a view's upstream watch is to be found, while there is one.
#[derive(Default)]
pub(super) struct Tail {
    running: Mutex<Weak<Running>>,
}

/// An upstream watch and the feed that it goes into. The watchers own it.
#[derive(Default)]
struct Running {
    started: OnceCell<Started>,
}

struct Started {
    feed: Arc<Feed>,
    /// etcd's revision behind which it began.
    behind: i64,
    /// The last of etcd's revisions that was handed on.
    through: watch::Receiver<i64>,
    /// Ends the upstream watch.
    _end: DropGuard,
}

/// Opens a watch on a store that is at etcd's revision `current`; answers as well whether the upstream
/// watch has begun behind that, and so would not tell of an epoch that began in between.
pub(super) async fn open(
    view: &Arc<View>,
    request: Watch,
    current: i64,
) -> Result<(Watching, bool)> {
    let running = view.tail.join();
    let started = running.started.get_or_try_init(|| start(view)).await?;
    let has_gap = started.behind > current;
    let watching = started.feed.watch(request, view.numbers.visible(current));
    let revision = watching.revision;
    let progress = Arc::new(Notify::new());
    let open = Open {
        caught_up: CaughtUp {
            view: view.clone(),
            through: started.through.clone(),
        },
        opened: view.numbers.visible(current),
        epoch: Epoch(0),
        held_back: None,
        watching,
        progress: progress.clone(),
        waiting: None,
        _running: running,
    };
    let items = stream::unfold(open, |mut open| async move {
        let item = open.next().await?;
        Some((item, open))
    });
    let watching = Watching {
        revision,
        items: items.boxed(),
        progress,
    };
    Ok((watching, has_gap))
}

/// One watch. The upstream watch lives for as long as somebody holds on to it.
struct Open {
    watching: Watching,
    /// The store's revision when it was opened, under the epoch that held then.
    opened: Revision,
    /// The latest that it was told of.
    epoch: Epoch,
    /// What comes behind that.
    held_back: Option<WatchItem>,
    /// Asks for progress.
    progress: Arc<Notify>,
    /// Progress was asked for, and waits for what etcd has done by now to arrive here.
    waiting: Option<BoxFuture<'static, ()>>,
    caught_up: CaughtUp,
    _running: Arc<Running>,
}

impl Open {
    async fn next(&mut self) -> Option<WatchItem> {
        let item = match self.held_back.take() {
            Some(item) => item,
            None => self.receive().await?,
        };
        let revision = match &item {
            WatchItem::Events(batch) => batch.revision,
            WatchItem::Progress(revision) => *revision,
            WatchItem::Epoch(_) | WatchItem::End(_) => return Some(item),
        };
        let view = &self.caught_up.view;
        let begun = view.epoch_between(self.opened, revision);
        if let Some(epoch) = begun.filter(|epoch| *epoch > self.epoch) {
            self.epoch = epoch;
            self.held_back = Some(item);
            return Some(WatchItem::Epoch(epoch));
        }
        Some(item)
    }

    async fn receive(&mut self) -> Option<WatchItem> {
        loop {
            let waiting = &mut self.waiting;
            tokio::select! {
                item = self.watching.items.next() => return item,
                () = self.progress.notified(), if waiting.is_none() => {
                    *waiting = Some(self.caught_up.clone().wait().boxed());
                }
                () = wait_for(waiting), if waiting.is_some() => {
                    self.waiting = None;
                    self.watching.progress.notify_one();
                }
            }
        }
    }
}

async fn wait_for(waiting: &mut Option<BoxFuture<'static, ()>>) {
    if let Some(waiting) = waiting {
        waiting.await;
    }
}

/// Waits until everything that etcd has done by now was handed on.
#[derive(Clone)]
struct CaughtUp {
    view: Arc<View>,
    through: watch::Receiver<i64>,
}

impl CaughtUp {
    async fn wait(mut self) {
        let revision = loop {
            match self.view.client.revision(&self.view.names.line).await {
                Ok(revision) => break revision,
                Err(_) => tokio::time::sleep(RECONNECT_MAX).await,
            }
        };
        // Without an upstream watch the feed has ended too, and says so.
        let _ = self.through.wait_for(|through| *through >= revision).await;
    }
}

impl Tail {
    /// The upstream watch that runs, or a new one.
    fn join(&self) -> Arc<Running> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.upgrade().unwrap_or_else(|| {
            let new = Arc::<Running>::default();
            *running = Arc::downgrade(&new);
            new
        })
    }

    /// Lets later watchers begin with a new upstream watch.
    fn part(&self) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Weak::new();
    }
}

async fn start(view: &Arc<View>) -> Result<Started> {
    let upstream = Upstream::open(view, 0).await?;
    let last = upstream.next - 1;
    let feed = Arc::new(Feed::new(
        Arc::new(Past { view: view.clone() }),
        view.reserved.clone(),
        view.numbers.visible(last),
    ));
    let (sender, through) = watch::channel(last);
    let end = CancellationToken::new();
    let run = follow(view.clone(), feed.clone(), sender, upstream);
    let run = end.clone().run_until_cancelled_owned(run);
    spawn_owned(run);
    Ok(Started {
        feed,
        behind: last,
        through,
        _end: end.drop_guard(),
    })
}

/// Hands on what comes from upstream until that is no longer possible.
async fn follow(
    view: Arc<View>,
    feed: Arc<Feed>,
    handed_on: watch::Sender<i64>,
    mut upstream: Upstream,
) {
    let mut wait = RECONNECT_FIRST;
    loop {
        let error = loop {
            match upstream.batches(&view).await {
                Ok((batches, through)) => {
                    wait = RECONNECT_FIRST;
                    feed.publish(&batches);
                    feed.advance(view.numbers.visible(through));
                    handed_on.send_replace(through);
                }
                Err(error) => break error,
            }
        };
        if let StoreError::Request(RequestError::Compacted(oldest)) = error {
            // What came while the connection was lost is gone. Watchers that come again find out
            // from history.
            view.tail.part();
            feed.end_all(&format!(
                "changes were compacted before they could be read; the oldest is {oldest}"
            ));
            return;
        }
        tracing::warn!(%error, "the watch on etcd broke; it goes on as soon as etcd is back");
        loop {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RECONNECT_MAX);
            match Upstream::open(&view, upstream.next).await {
                Ok(again) => {
                    upstream = again;
                    break;
                }
                Err(error) => tracing::debug!(%error, "etcd cannot be watched yet"),
            }
        }
    }
}

/// A watch on all keys of etcd.
pub(super) struct Upstream {
    /// Closing it would end the stream.
    _requests: mpsc::Sender<pb::WatchRequest>,
    responses: Responses,
    /// The revision of etcd's that comes next.
    next: i64,
}

impl Upstream {
    /// Watches from etcd's revision `start`; 0 is from now.
    pub(super) async fn open(view: &View, start: i64) -> Result<Self> {
        let (key, range_end) = KeyRange::all().to_etcd();
        let create = pb::WatchCreateRequest {
            key,
            range_end,
            start_revision: start,
            prev_kv: true,
            ..pb::WatchCreateRequest::default()
        };
        let (requests, responses, created) = create_watch(&view.client, create).await?;
        if created.canceled {
            return Err(refused(view, &created));
        }
        let next = match start {
            0 => header_revision(created.header.as_ref()) + 1,
            start => start,
        };
        Ok(Self {
            _requests: requests,
            responses,
            next,
        })
    }

    /// The changes that come next, as clients see them, and the last of etcd's revisions that is
    /// among them.
    async fn batches(&mut self, view: &View) -> Result<(Vec<Arc<EventBatch>>, i64)> {
        let (events, through) = self.events(view).await?;
        let batches = translate(view, events).await?;
        self.next = through + 1;
        Ok((batches, through))
    }

    /// What etcd says next, whole revisions, and the last of them.
    pub(super) async fn events(
        &mut self,
        view: &View,
    ) -> Result<(Vec<crate::proto::mvccpb::Event>, i64)> {
        loop {
            let response = match self.responses.next().await {
                Ok(Some(response)) => response,
                Ok(None) => return Err(lost("the stream ended")),
                Err(status) => return Err(lost(status.message())),
            };
            if response.canceled || response.compact_revision > 0 {
                return Err(refused(view, &response));
            }
            if let Some(through) = last_revision(&response) {
                return Ok((response.events, through));
            }
        }
    }
}

/// What tells that `key` has changed: a watch of its own. One over all keys costs every write of every
/// client an event, and etcd the pair before it.
pub(super) async fn changes_of(client: &Client, key: Bytes) -> Result<BoxStream<'static, ()>> {
    let create = pb::WatchCreateRequest {
        key,
        ..pb::WatchCreateRequest::default()
    };
    let (requests, responses, created) = create_watch(client, create).await?;
    if created.canceled {
        return Err(lost(&created.cancel_reason));
    }
    let changes = stream::unfold((requests, responses), |(requests, mut responses)| async {
        match responses.next().await {
            Ok(Some(response)) if !response.canceled => Some(((), (requests, responses))),
            _ => None,
        }
    });
    Ok(changes.boxed())
}

/// A stream with one watch, and etcd's first answer to it. The stream ends when the sender is dropped.
async fn create_watch(
    client: &Client,
    create: pb::WatchCreateRequest,
) -> Result<(mpsc::Sender<pb::WatchRequest>, Responses, pb::WatchResponse)> {
    let (requests, receiver) = mpsc::channel(REQUESTS_LEN);
    let create = pb::WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    };
    requests
        .send(create)
        .await
        .map_err(|_| lost("the request could not be queued"))?;
    let mut responses = client.watch(receiver).await?;
    let created = responses.next_soon().await?;
    Ok((requests, responses, created))
}

fn last_revision(response: &pb::WatchResponse) -> Option<i64> {
    let last = response.events.last()?.kv.as_ref()?;
    Some(last.mod_revision)
}

fn lost(why: &str) -> StoreError {
    StoreError::Unavailable(format!("the watch on etcd broke: {why}"))
}

fn refused(view: &View, response: &pb::WatchResponse) -> StoreError {
    match response.compact_revision {
        0 => lost(&response.cancel_reason),
        compacted => RequestError::Compacted(view.oldest_change(compacted)).into(),
    }
}

/// The epoch that this pair says begins with it, be it a fence or the line of another phase.
fn epoch_of(view: &View, kv: &crate::proto::mvccpb::KeyValue) -> Option<Epoch> {
    if kv.key == view.names.epoch {
        return read_epoch(&kv.value);
    }
    (kv.key == view.names.fence).then(|| Fence::read(&kv.value).epoch)
}

/// Makes batches of what etcd says, one per revision, without copy-ups and without the store's own
/// keys.
async fn translate(
    view: &View,
    events: Vec<crate::proto::mvccpb::Event>,
) -> Result<Vec<Arc<EventBatch>>> {
    let mut batches: Vec<EventBatch> = Vec::new();
    let mut copied: HashSet<(i64, Bytes)> = HashSet::new();
    let mut unseen: HashSet<i64> = HashSet::new();
    for event in events {
        let Some(kv) = &event.kv else { continue };
        if view.names.is_own(&kv.key) {
            if event.r#type() != crate::proto::mvccpb::event::EventType::Put {
                continue;
            }
            if kv.key == view.names.unseen {
                unseen.insert(kv.mod_revision);
            }
            if let Some(epoch) = epoch_of(view, kv) {
                view.learn_epoch(view.numbers.visible(kv.mod_revision), epoch);
            }
            if view.names.claimed(&kv.key).is_some() {
                let (key, claim) = view.read_claim(kv)?;
                if let Claimed::Copied(_) = claim {
                    copied.insert((kv.mod_revision, key));
                } else {
                    view.learn(&key, claim);
                }
            }
            continue;
        }
        let revision = kv.mod_revision;
        let mut event = Event::from(event);
        if let Change::Delete { revision, .. } = &mut event.change {
            *revision = view.numbers.visible(revision.0);
        }
        match batches.last_mut() {
            Some(batch) if batch.revision.0 == revision => batch.events.push(event),
            _ => batches.push(EventBatch {
                revision: Revision(revision),
                events: vec![event],
            }),
        }
    }
    if !copied.is_empty() {
        for batch in &mut batches {
            let revision = batch.revision.0;
            // What could not be copied up and is deleted is written for a moment; see `replace`.
            let shown = |event: &Event| {
                matches!(event.change, Change::Delete { .. })
                    || !copied.contains(&(revision, event.key().clone()))
            };
            batch.events.retain(shown);
        }
    }
    batches.retain(|batch| !unseen.contains(&batch.revision.0));
    let mut pairs = Vec::new();
    for event in batches.iter_mut().flat_map(|batch| &mut batch.events) {
        if let Change::Put(kv) = &mut event.change {
            pairs.push(kv);
        }
        pairs.extend(&mut event.prev);
    }
    view.translate(pairs).await?;
    Ok(batches
        .into_iter()
        .filter(|batch| !batch.events.is_empty())
        .map(|mut batch| {
            batch.revision = view.numbers.visible(batch.revision.0);
            Arc::new(batch)
        })
        .collect())
}

/// What happened before, from an upstream watch of its own.
///
/// It too is over all keys: only then is it certain that nothing is missing up to a revision, since
/// each revision changes something.
struct Past {
    view: Arc<View>,
}

#[async_trait]
impl History for Past {
    async fn history(&self, watch: &Watch, after: Revision, limit: usize) -> Result<Stretch> {
        let view = &self.view;
        if view.known.is_some() && after < view.numbers.base {
            return Err(RequestError::Compacted(view.numbers.base.next()).into());
        }
        let begin = view.numbers.etcd(after.next()).max(1);
        let revision = view.client.revision(&view.names.line).await?;
        if begin > revision {
            return Ok(Stretch {
                batches: Vec::new(),
                through: after,
            });
        }
        let mut upstream = Upstream::open(view, begin).await?;
        let mut stretch = Stretch {
            batches: Vec::new(),
            through: after,
        };
        let mut events = 0;
        while events < limit && view.numbers.etcd(stretch.through) < revision {
            let (batches, through) = upstream.batches(view).await?;
            for batch in batches {
                if batch
                    .events
                    .iter()
                    .any(|event| watch.keys.contains(event.key()))
                {
                    events += batch.events.len();
                    stretch.batches.push(batch);
                }
            }
            stretch.through = view.numbers.visible(through);
        }
        Ok(stretch)
    }
}

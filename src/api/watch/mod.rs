//! Streams of changes.
//!
//! One state machine per stream, polled by the connection that it belongs to: [`Stream::select`]
//! waits for something to happen, [`Stream::apply`] turns it into responses, without waiting for
//! anything. There is no task and no queue between a watch and its client: a client that does not
//! read stops the polling of its own watches, and nothing else.

mod response;
mod table;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use futures_util::stream::{AbortRegistration, Abortable, BoxStream, FuturesUnordered, SelectAll};
use futures_util::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::Context;
use super::errors::{no_leader, status, stopped};
use crate::proto::etcdserverpb::{self as pb, watch_server};
use crate::store::{self, StoreError, WatchItem, Watching};
use crate::types::Revision;
use pb::watch_request::RequestUnion;
use table::{Create, Generation, Table};

/// The service.
pub(super) struct Watch(pub Arc<Context>);

/// How many items that are ready become one step, and thereby mostly one response.
const ITEMS_MAX: usize = 64;
/// How long the creation of a watch is tried on a store that is away.
const OPEN_FOR: Duration = Duration::from_secs(5);
/// How long to wait before a lost watch is opened anew: at first, and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

#[async_trait]
impl watch_server::Watch for Watch {
    type WatchStream = BoxStream<'static, Result<pb::WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let needs_leader = request.metadata().get("hasleader");
        let needs_leader = needs_leader.is_some_and(|value| value == "true");
        let stream = Stream::new(Arc::clone(&self.0), request.into_inner(), needs_leader);
        let responses = futures_util::stream::unfold(stream, async |mut stream| {
            let response = stream.next().await?;
            Some((response, stream))
        });
        Ok(Response::new(responses.boxed()))
    }
}

/// One stream with its watches.
struct Stream {
    context: Arc<Context>,
    inbound: Streaming<pb::WatchRequest>,
    /// The client has ended its side: it asks for nothing more, and is still told of what happens. As in
    /// etcd, the stream is over when the client leaves it, and then it is dropped.
    half_closed: bool,
    needs_leader: bool,
    table: Table,
    /// The items of all open watches.
    open: SelectAll<BoxStream<'static, Action>>,
    /// The request that is being answered. The next is read when it is done, so that answers have
    /// the order of the requests.
    answering: Option<BoxFuture<'static, Action>>,
    /// Lost watches on their way back, and answers that wait for the current revision.
    pending: FuturesUnordered<BoxFuture<'static, Action>>,
    ticks: Interval,
    no_leader: watch::Receiver<bool>,
    shutdown: CancellationToken,
    outbox: VecDeque<pb::WatchResponse>,
    end: Option<End>,
}

/// How a stream ends, once everything in its outbox was sent.
enum End {
    /// The client is gone.
    Closed,
    Failed(Status),
}

/// What happened.
enum Action {
    Request(Option<Result<pb::WatchRequest, Status>>),
    Opened(Box<Create>, Result<Watching, StoreError>),
    Reopened(i64, Generation, Result<Watching, StoreError>),
    Refused(&'static str, Revision),
    Cancelled(i64, Revision),
    /// The current revision, for a progress request on a stream without watches.
    Current(Option<Revision>),
    Items(i64, Generation, Vec<WatchItem>),
    Tick,
    NoLeader,
    Shutdown,
}

impl Stream {
    fn new(
        context: Arc<Context>,
        inbound: Streaming<pb::WatchRequest>,
        needs_leader: bool,
    ) -> Self {
        let period = context.progress_interval;
        let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            inbound,
            half_closed: false,
            needs_leader,
            table: Table::new(Arc::clone(&context)),
            open: SelectAll::new(),
            answering: None,
            pending: FuturesUnordered::new(),
            ticks,
            no_leader: context.no_leader.subscribe(),
            shutdown: context.shutdown.clone(),
            outbox: VecDeque::new(),
            end: None,
            context,
        }
    }

    async fn next(&mut self) -> Option<Result<pb::WatchResponse, Status>> {
        loop {
            if let Some(response) = self.outbox.pop_front() {
                return Some(Ok(response));
            }
            match &self.end {
                None => {}
                Some(End::Closed) => return None,
                Some(End::Failed(failure)) => {
                    let failure = failure.clone();
                    self.end = Some(End::Closed);
                    return Some(Err(failure));
                }
            }
            let action = self.select().await;
            self.apply(action);
        }
    }

    /// Waits for something to happen. Nothing is lost if the future is dropped.
    async fn select(&mut self) -> Action {
        let answering = self.answering.is_some();
        tokio::select! {
            // In this order: what ends the stream, then what is under way, then what is new.
            biased;
            () = self.shutdown.cancelled() => Action::Shutdown,
            () = lost(&mut self.no_leader), if self.needs_leader => Action::NoLeader,
            action = answer(&mut self.answering), if answering => action,
            Some(action) = self.pending.next(), if !self.pending.is_empty() => action,
            request = self.inbound.next(), if !answering && !self.half_closed => Action::Request(request),
            _ = self.ticks.tick() => Action::Tick,
            Some(action) = self.open.next(), if !self.open.is_empty() => action,
        }
    }

    fn apply(&mut self, action: Action) {
        match action {
            Action::Request(Some(Ok(request))) => self.request(request),
            Action::Request(None) => self.half_closed = true,
            // A client that is gone needs no answer.
            Action::Request(Some(Err(_))) => self.end = Some(End::Closed),
            Action::Opened(create, Ok(watching)) => {
                let id = create.id;
                self.outbox
                    .push_back(self.table.created(&create, watching.revision));
                let (generation, registration) = self.table.insert(*create, &watching);
                self.listen(id, generation, watching, registration);
            }
            Action::Opened(_, Err(failure)) => {
                let reason = status(&failure);
                if failure.is_final() {
                    let refused = self.table.refused(reason.message(), self.table.seen);
                    self.outbox.push_back(refused);
                } else {
                    // A cancelled watch is over for good, and a stream that ends so is opened again.
                    self.end = Some(End::Failed(reason));
                }
            }
            Action::Refused(reason, revision) => {
                self.outbox.push_back(self.table.refused(reason, revision));
            }
            Action::Cancelled(id, revision) => {
                self.outbox.push_back(self.table.cancelled(id, revision));
            }
            Action::Current(revision) => self.table.current(revision, &mut self.outbox),
            Action::Items(id, generation, items) => {
                if self.table.items(id, generation, items, &mut self.outbox) {
                    self.reopen(id, generation);
                }
            }
            Action::Reopened(id, generation, Ok(watching)) => {
                if let Some((generation, registration)) =
                    self.table.reopened(id, generation, &watching)
                {
                    self.listen(id, generation, watching, registration);
                }
            }
            Action::Reopened(id, generation, Err(failure)) if failure.is_final() => {
                self.table.fail(id, generation, &failure, &mut self.outbox);
            }
            Action::Reopened(id, generation, Err(_)) => self.reopen(id, generation),
            Action::Tick => self.table.ask_idle(),
            Action::NoLeader => self.end = Some(End::Failed(no_leader())),
            Action::Shutdown => self.end = Some(End::Failed(stopped())),
        }
        self.ask_current();
    }

    fn request(&mut self, request: pb::WatchRequest) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(request)) => {
                let context = Arc::clone(&self.context);
                self.answering = Some(match self.table.create(request) {
                    Ok(create) => async move {
                        let opened = open(&context, &create.watch).await;
                        Action::Opened(Box::new(create), opened)
                    }
                    .boxed(),
                    Err(reason) => {
                        let seen = self.table.seen;
                        async move { Action::Refused(reason, current_or(&context, seen).await) }
                            .boxed()
                    }
                });
            }
            Some(RequestUnion::CancelRequest(request)) => self.cancel(request.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => self.table.ask_all(),
            None => {}
        }
    }

    /// As in etcd, what does not exist is not cancelled, and nothing is said about it.
    fn cancel(&mut self, id: i64) {
        if self.table.remove(id, &mut self.outbox) {
            let (context, seen) = (Arc::clone(&self.context), self.table.seen);
            self.answering = Some(
                async move { Action::Cancelled(id, current_or(&context, seen).await) }.boxed(),
            );
        }
    }

    /// Takes up the items of a watch.
    fn listen(
        &mut self,
        id: i64,
        generation: Generation,
        watching: Watching,
        registration: AbortRegistration,
    ) {
        let items = watching
            .items
            .ready_chunks(ITEMS_MAX)
            .map(move |items| Action::Items(id, generation, items));
        self.open.push(Abortable::new(items, registration).boxed());
    }

    /// Opens a watch anew whose store was lost, behind what it delivered: at once, or after a while if nothing
    /// has come of it before.
    fn reopen(&mut self, id: i64, generation: Generation) {
        let Some((watch, lost_for)) = self.table.lost(id, generation) else {
            return;
        };
        if self.needs_leader && lost_for > Some(self.context.silence) {
            self.end = Some(End::Failed(no_leader()));
        }
        let (first, longest) = BACKOFF;
        let pause = lost_for.map_or(Duration::ZERO, |time| time.clamp(first, longest));
        let context = Arc::clone(&self.context);
        self.pending.push(
            async move {
                tokio::time::sleep(pause).await;
                Action::Reopened(id, generation, context.store.watch(watch).await)
            }
            .boxed(),
        );
    }

    /// Looks up the current revision where an answer waits for nothing else.
    fn ask_current(&mut self) {
        if self.table.needs_current() {
            let context = Arc::clone(&self.context);
            self.pending.push(
                async move {
                    let stands = context.store.status().await;
                    Action::Current(stands.ok().map(|stands| stands.revision))
                }
                .boxed(),
            );
        }
    }
}

/// Waits until there is no leader.
async fn lost(no_leader: &mut watch::Receiver<bool>) {
    if no_leader.wait_for(|lost| *lost).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Waits for the answer that is under way, and makes room for the next.
async fn answer(answering: &mut Option<BoxFuture<'static, Action>>) -> Action {
    let action = match answering {
        Some(under_way) => Pin::new(under_way).await,
        None => std::future::pending().await,
    };
    *answering = None;
    action
}

/// Opens a watch; tries again for a while if the store is away.
async fn open(context: &Context, watch: &store::Watch) -> Result<Watching, StoreError> {
    let deadline = Instant::now() + OPEN_FOR;
    let (mut pause, longest) = BACKOFF;
    loop {
        match context.store.watch(watch.clone()).await {
            Err(StoreError::Unavailable(_) | StoreError::Unknown(_) | StoreError::StaleEpoch)
                if Instant::now() + pause < deadline =>
            {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(longest);
            }
            opened => return opened,
        }
    }
}

/// The current revision, or `seen` if the store does not say.
async fn current_or(context: &Context, seen: Revision) -> Revision {
    let stands = context.store.status().await;
    stands.map_or(seen, |stands| stands.revision.max(seen))
}

//! Watches, response by response.

use std::time::Duration;

use segue::proto::etcdserverpb as pb;
use segue::proto::mvccpb;
use segue::tasks::spawn_owned;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::Pair;
use super::ask::{Client, strip};
use super::script::{IntoOp, compact, delete, put, range, txn};
use pb::watch_request::RequestUnion;

/// How long a response that should come may take.
pub(crate) const SOON: Duration = Duration::from_secs(10);
/// How long it is waited for one that should not come.
const QUIET: Duration = Duration::from_millis(200);

/// One stream of watches on one server.
pub(crate) struct Stream {
    requests: mpsc::Sender<pb::WatchRequest>,
    responses: Responses,
    /// How many responses said that they are a part.
    fragments: usize,
}

/// etcd says nothing at all, not even that there is a stream, before its first response.
enum Responses {
    Opening(JoinHandle<Result<tonic::Response<Streaming<pb::WatchResponse>>, tonic::Status>>),
    Open(Box<Streaming<pb::WatchResponse>>),
}

impl Responses {
    async fn message(&mut self) -> pb::WatchResponse {
        if let Self::Opening(opening) = self {
            let responses = opening.await.unwrap().unwrap().into_inner();
            *self = Self::Open(Box::new(responses));
        }
        match self {
            Self::Opening(_) => unreachable!("it was just opened"),
            Self::Open(responses) => responses.message().await.unwrap(),
        }
        .expect("the stream goes on")
    }
}

impl Stream {
    pub(crate) fn open(client: &Client) -> Self {
        let (requests, receiver) = mpsc::channel(16);
        let mut client = client.watch.clone();
        let opening = async move { client.watch(ReceiverStream::new(receiver)).await };
        Self {
            requests,
            responses: Responses::Opening(spawn_owned(opening)),
            fragments: 0,
        }
    }

    pub(crate) async fn send(&self, request: RequestUnion) {
        let request = pb::WatchRequest {
            request_union: Some(request),
        };
        self.requests.send(request).await.unwrap();
    }

    /// Ends the requests, and not the stream.
    fn ask_no_more(&mut self) {
        self.requests = mpsc::channel(1).0;
    }

    pub(crate) async fn next(&mut self, within: Duration) -> Option<pb::WatchResponse> {
        let response = tokio::time::timeout(within, self.responses.message()).await;
        let mut response = response.ok()?;
        strip(&mut response.header);
        Some(response)
    }

    /// Events until there are `count`, whatever responses they come in, and the others with them.
    pub(crate) async fn events(&mut self, count: usize) -> Vec<(i64, mvccpb::Event)> {
        let mut events = Vec::new();
        while events.len() < count {
            let response = self.next(SOON).await.expect("there are more events");
            assert!(!response.events.is_empty(), "{response:?}");
            self.fragments += usize::from(response.fragment);
            let revision = response.header.as_ref().unwrap().revision;
            for event in response.events {
                assert!(event.kv.as_ref().unwrap().mod_revision <= revision);
                events.push((response.watch_id, event));
            }
        }
        events
    }
}

/// The same stream on both.
struct Streams {
    etcd: Stream,
    segue: Stream,
}

impl Streams {
    fn open(pair: &Pair) -> Self {
        Self {
            etcd: Stream::open(&pair.etcd),
            segue: Stream::open(&pair.segue),
        }
    }

    async fn send(&self, request: RequestUnion) {
        self.etcd.send(request.clone()).await;
        self.segue.send(request).await;
    }

    async fn create(&mut self, request: pb::WatchCreateRequest) -> pb::WatchResponse {
        self.send(RequestUnion::CreateRequest(request)).await;
        self.same().await
    }

    /// The next response, which has to be the same in every field.
    async fn same(&mut self) -> pb::WatchResponse {
        let (etcd, segue) = tokio::join!(self.etcd.next(SOON), self.segue.next(SOON));
        assert_eq!(etcd, segue, "etcd on the left, segue on the right");
        etcd.expect("a response")
    }

    /// The next `count` events, in whatever responses they come.
    async fn same_events(&mut self, count: usize) -> Vec<(i64, mvccpb::Event)> {
        let (etcd, segue) = tokio::join!(self.etcd.events(count), self.segue.events(count));
        assert_eq!(etcd, segue, "etcd on the left, segue on the right");
        etcd
    }

    async fn quiet(&mut self) {
        let (etcd, segue) = tokio::join!(self.etcd.next(QUIET), self.segue.next(QUIET));
        assert_eq!((etcd, segue), (None, None));
    }
}

pub(crate) fn watch(key: &str, range_end: &str) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest {
        key: key.to_owned().into(),
        range_end: range_end.to_owned().into(),
        ..pb::WatchCreateRequest::default()
    }
}

pub(crate) fn from(start_revision: i64, request: pb::WatchCreateRequest) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest {
        start_revision,
        ..request
    }
}

/// Compares everything that watches from the oldest revision on deliver.
pub(super) async fn history(pair: &mut Pair) {
    let now = pair.ask(put("the end", "")).await;
    assert!(now.contains("revision"), "{now}");
    let mut streams = Streams::open(pair);
    let create = pb::WatchCreateRequest {
        prev_kv: true,
        ..from(1, watch("\0", "\0"))
    };
    streams.create(create.clone()).await;
    // Mostly the beginning was compacted; then both say so, and where to begin.
    let mut etcd = streams.etcd.next(SOON).await.unwrap();
    let mut segue = streams.segue.next(SOON).await.unwrap();
    if etcd.canceled {
        assert_eq!(etcd, segue);
        // Not at the compacted revision itself: before 3.5.18, etcd forgot the deletes of that one.
        streams
            .create(from(etcd.compact_revision + 1, create))
            .await;
        etcd = streams.etcd.next(SOON).await.unwrap();
        segue = streams.segue.next(SOON).await.unwrap();
    }
    loop {
        let common = etcd.events.len().min(segue.events.len());
        assert!(common > 0, "{etcd:?} {segue:?}");
        let etcd_events: Vec<_> = etcd.events.drain(..common).collect();
        let segue_events: Vec<_> = segue.events.drain(..common).collect();
        assert_eq!(etcd_events, segue_events, "etcd on the left");
        let last = etcd_events.last().and_then(|event| event.kv.as_ref());
        if last.is_some_and(|kv| kv.key[..] == *b"the end") {
            return;
        }
        if etcd.events.is_empty() {
            etcd = streams.etcd.next(SOON).await.unwrap();
        }
        if segue.events.is_empty() {
            segue = streams.segue.next(SOON).await.unwrap();
        }
    }
}

pub(super) async fn watches_are_created_and_cancelled_alike(mut pair: Pair) {
    pair.ask(put("a", "1")).await;
    let mut streams = Streams::open(&pair);
    streams.create(watch("a", "")).await;
    streams
        .create(pb::WatchCreateRequest {
            watch_id: 5,
            ..watch("a", "")
        })
        .await;
    streams
        .create(pb::WatchCreateRequest {
            watch_id: 5,
            ..watch("a", "")
        })
        .await;
    streams
        .create(pb::WatchCreateRequest {
            watch_id: 1,
            ..watch("b", "")
        })
        .await;
    streams.create(watch("b", "")).await;
    streams.create(watch("b", "a")).await;
    streams.create(watch("b", "b")).await;
    streams.create(watch("", "")).await;
    streams.create(watch("", "\0")).await;
    streams.create(from(99, watch("a", ""))).await;
    streams
        .send(RequestUnion::CancelRequest(pb::WatchCancelRequest {
            watch_id: 77,
        }))
        .await;
    streams.quiet().await;
    streams
        .send(RequestUnion::CancelRequest(pb::WatchCancelRequest {
            watch_id: 5,
        }))
        .await;
    streams.same().await;
    streams
        .create(pb::WatchCreateRequest {
            watch_id: 5,
            ..watch("a", "")
        })
        .await;
    streams
        .send(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}))
        .await;
    let progress = streams.same().await;
    assert_eq!(progress.watch_id, -1);
    streams.quiet().await;
}

pub(super) async fn watches_deliver_alike(mut pair: Pair) {
    pair.ask(put("a", "0")).await;
    pair.ask(put("a/1", "0")).await;
    let mut streams = Streams::open(&pair);
    streams
        .create(pb::WatchCreateRequest {
            prev_kv: true,
            ..watch("a", "b")
        })
        .await;
    pair.ask(put("a", "1")).await;
    assert_eq!(streams.same().await.events.len(), 1);
    pair.ask(delete("a", "")).await;
    streams.same().await;
    pair.ask(put("c", "not watched")).await;
    pair.ask(txn(
        vec![],
        vec![
            put("a/3", "1").op(),
            put("x", "1").op(),
            put("a/2", "1").op(),
            delete("a/1", "").op(),
        ],
        vec![],
    ))
    .await;
    assert_eq!(streams.same().await.events.len(), 3);
    pair.ask(delete("\0", "\0")).await;
    streams.same().await;
    pair.ask(delete("\0", "\0")).await;
    streams.quiet().await;

    // A lease ends: one revision for all its keys, in the order of the keys.
    pair.ask(pb::LeaseGrantRequest { id: 7, ttl: 600 }).await;
    for key in ["a/z", "a/y", "a/x"] {
        pair.ask(pb::PutRequest {
            lease: 7,
            ..put(key, "v")
        })
        .await;
        streams.same().await;
    }
    pair.ask(pb::LeaseRevokeRequest { id: 7 }).await;
    assert_eq!(streams.same_events(3).await.len(), 3);

    // The past, with filters, and from a revision that is still to come.
    let mut past = Streams::open(&pair);
    past.create(from(2, watch("\0", "\0"))).await;
    past.same_events(15).await;
    let mut puts = Streams::open(&pair);
    puts.create(pb::WatchCreateRequest {
        filters: vec![1],
        ..from(2, watch("a", "b"))
    })
    .await;
    puts.same_events(8).await;
    let mut deletes = Streams::open(&pair);
    deletes
        .create(pb::WatchCreateRequest {
            filters: vec![0],
            prev_kv: true,
            ..from(2, watch("a", "b"))
        })
        .await;
    deletes.same_events(7).await;
    let mut ahead = Streams::open(&pair);
    let now = ahead.create(watch("zz", "")).await.header.unwrap().revision;
    ahead.create(from(now + 2, watch("a", ""))).await;
    for value in ["1", "2", "3"] {
        pair.ask(put("a", value)).await;
    }
    assert_eq!(ahead.same().await.header.unwrap().revision, now + 2);
    ahead.same().await;
}

pub(super) async fn streams_without_further_requests_go_on_alike(mut pair: Pair) {
    let mut streams = Streams::open(&pair);
    streams.create(watch("a", "")).await;
    streams.etcd.ask_no_more();
    streams.segue.ask_no_more();
    streams.quiet().await;
    for value in ["1", "2"] {
        pair.ask(put("a", value)).await;
        assert_eq!(streams.same().await.events.len(), 1);
    }
}

/// etcd takes this where the range that is deleted has no end: see
/// [`super::script::writes_into_a_range_without_end_answer_alike`].
pub(super) async fn keys_that_are_deleted_and_put_at_once_are_told_of_alike(mut pair: Pair) {
    for key in ["a", "k"] {
        pair.ask(put(key, "0")).await;
    }
    let everything = || pb::WatchCreateRequest {
        prev_kv: true,
        ..watch("\0", "\0")
    };
    let mut live = Streams::open(&pair);
    let before = live.create(everything()).await.header.unwrap().revision;
    let all = || delete("\0", "\0").op();
    let nest = |op| txn(vec![], vec![op], vec![]).op();
    let mut events = Vec::new();
    for (ops, count) in [
        (vec![all(), put("k", "1").op()], 3),
        (vec![all(), nest(put("k", "2").op()), nest(all())], 3),
        (vec![put("k", "3").op(), all()], 2),
        (vec![all(), put("k", "4").op()], 1),
    ] {
        pair.ask(txn(vec![], ops, vec![])).await;
        events.extend(live.same_events(count).await);
        pair.ask(range("\0", "\0")).await;
    }
    let mut past = Streams::open(&pair);
    past.create(from(before + 1, everything())).await;
    assert_eq!(past.same_events(events.len()).await, events);
    for revision in before..before + 5 {
        let then = pb::RangeRequest {
            revision,
            ..range("\0", "\0")
        };
        pair.ask(then).await;
    }
}

pub(super) async fn compacted_watches_end_alike(mut pair: Pair) {
    for value in 0..8 {
        pair.ask(put("a", &value.to_string())).await;
    }
    pair.ask(compact(5)).await;
    for start in [1, 4, 5, 6] {
        let mut streams = Streams::open(&pair);
        streams
            .create(pb::WatchCreateRequest {
                prev_kv: true,
                ..from(start, watch("a", ""))
            })
            .await;
        if start < 5 {
            let end = streams.same().await;
            assert!(end.canceled && end.compact_revision == 5, "{end:?}");
            // The stream goes on.
            streams.create(watch("a", "")).await;
        } else {
            streams
                .same_events(usize::try_from(10 - start).unwrap())
                .await;
        }
    }
}

pub(super) async fn large_revisions_are_split_alike_where_the_client_accepts_it(mut pair: Pair) {
    let mut streams = Streams::open(&pair);
    streams
        .create(pb::WatchCreateRequest {
            prev_kv: true,
            fragment: true,
            ..watch("a", "b")
        })
        .await;
    let value = "x".repeat(300_000);
    let puts = || (0..4).map(|i| put(&format!("a{i}"), &value).op()).collect();
    for _ in 0..2 {
        pair.ask(txn(vec![], puts(), vec![])).await;
    }
    streams.same_events(8).await;
    pair.ask(delete("a", "b")).await;
    streams.same_events(4).await;
    assert_eq!(streams.etcd.fragments, 1);
    assert_eq!(streams.segue.fragments, 1);
}

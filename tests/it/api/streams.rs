//! Streams that are slow, lost, idle, or cut short.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use segue::api::ApiConfig;
use segue::proto::etcdserverpb as pb;
use segue::proto::etcdserverpb::kv_client::KvClient;
use segue::proto::etcdserverpb::lease_client::LeaseClient;
use segue::proto::etcdserverpb::watch_client::WatchClient;
use segue::proto::etcdserverpb::watch_request::RequestUnion;
use segue::store::memory::Memory;
use segue::store::{Store, StoreError, WatchEnd};
use segue::types::Put;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use super::faulty::Faulty;
use crate::support::api::Api;
use crate::support::etcd::http_get;
use crate::support::eventually;

/// How long what should come may take.
const SOON: Duration = Duration::from_secs(20);

type Requests = mpsc::Sender<pb::WatchRequest>;
type Responses = Streaming<pb::WatchResponse>;

async fn channel(api: &Api) -> Channel {
    let endpoint = Endpoint::from_shared(api.endpoint()).unwrap();
    endpoint.connect().await.unwrap()
}

fn create(request: pb::WatchCreateRequest) -> pb::WatchRequest {
    pb::WatchRequest {
        request_union: Some(pb::watch_request::RequestUnion::CreateRequest(request)),
    }
}

/// A stream with one watch of everything.
async fn watch_all(
    api: &Api,
    adapt: impl FnOnce(&mut pb::WatchCreateRequest),
) -> (Requests, Responses) {
    let (requests, mut responses) = stream(api, false).await.unwrap();
    let mut request = pb::WatchCreateRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        ..pb::WatchCreateRequest::default()
    };
    adapt(&mut request);
    requests.send(create(request)).await.unwrap();
    assert!(next(&mut responses).await.created);
    (requests, responses)
}

async fn stream(api: &Api, needs_leader: bool) -> Result<(Requests, Responses), Status> {
    let (requests, receiver) = mpsc::channel(16);
    let mut client = WatchClient::new(channel(api).await);
    let mut request = Request::new(ReceiverStream::new(receiver));
    if needs_leader {
        request
            .metadata_mut()
            .insert("hasleader", "true".parse().unwrap());
    }
    Ok((requests, client.watch(request).await?.into_inner()))
}

async fn next(responses: &mut Responses) -> pb::WatchResponse {
    let response = tokio::time::timeout(SOON, responses.message());
    response
        .await
        .expect("in time")
        .unwrap()
        .expect("the stream goes on")
}

/// Asks for a watch of one key.
async fn watch_key(requests: &Requests) {
    let request = pb::WatchCreateRequest {
        key: "k".into(),
        ..pb::WatchCreateRequest::default()
    };
    requests.send(create(request)).await.unwrap();
}

async fn ends_without_leader(responses: &mut Responses) {
    let end = tokio::time::timeout(SOON, responses.message()).await;
    let end = end.expect("in time").unwrap_err();
    assert_eq!(
        (end.code(), end.message()),
        (Code::Unavailable, "etcdserver: no leader")
    );
}

/// The mod revisions of the next events, until there are `count`.
async fn revisions(responses: &mut Responses, count: usize) -> Vec<i64> {
    let mut revisions = Vec::new();
    while revisions.len() < count {
        let response = next(responses).await;
        assert!(!response.canceled, "{response:?}");
        revisions.extend(
            response
                .events
                .iter()
                .map(|event| event.kv.as_ref().unwrap().mod_revision),
        );
    }
    revisions
}

#[tokio::test]
async fn a_client_that_does_not_read_slows_only_itself() {
    let store = Memory::new();
    let api = Api::start(Arc::new(store.clone())).await;
    let (_keep, mut lazy) = watch_all(&api, |_| {}).await;
    let (_keep_too, mut eager) = watch_all(&api, |_| {}).await;
    // Far more than any window and buffer on the way holds.
    let value = "x".repeat(100_000);
    let writing = async {
        for _ in 0..300 {
            store.put(Put::new("k", value.clone())).await.unwrap();
        }
    };
    let all: Vec<i64> = (2..302).collect();
    let ((), seen) = tokio::join!(writing, revisions(&mut eager, 300));
    assert_eq!(seen, all);
    // Nothing is left out for the one who comes late.
    assert_eq!(revisions(&mut lazy, 300).await, all);
}

#[tokio::test]
async fn a_watch_goes_on_where_it_was_when_its_store_is_back() {
    let store = Faulty::new();
    let api = Api::start(store.clone()).await;
    let (_keep, mut responses) = watch_all(&api, |_| {}).await;
    let put = async || store.inner.put(Put::new("k", "v")).await.unwrap();
    put().await;
    assert_eq!(revisions(&mut responses, 1).await, [2]);
    for round in 0..3 {
        store.lose();
        put().await;
        put().await;
        store.find();
        put().await;
        let first = 3 + 3 * round;
        let expected: Vec<i64> = (first..first + 3).collect();
        assert_eq!(revisions(&mut responses, 3).await, expected);
    }
}

/// The store answers, and its history cannot be read.
#[tokio::test]
async fn a_watch_that_is_lost_as_often_as_it_is_opened_is_not_opened_without_pause() {
    let store = Faulty::new();
    let api = Api::start(store.clone()).await;
    let (_keep, mut responses) = watch_all(&api, |_| {}).await;
    *store.short.lock().unwrap() = Some(WatchEnd::Lost("lost on purpose".into()));
    store.lose();
    store.find();
    tokio::time::sleep(Duration::from_millis(400)).await;
    let opened = store.opened.load(Ordering::SeqCst);
    // At the beginning, and behind 0, 50, 50, 100 and 200 milliseconds.
    assert!(opened <= 8, "{opened} times");
    *store.short.lock().unwrap() = None;
    store.inner.put(Put::new("k", "v")).await.unwrap();
    assert_eq!(revisions(&mut responses, 1).await, [2]);
}

#[tokio::test]
async fn a_stream_that_needs_a_leader_ends_when_its_watch_is_lost_again_and_again() {
    let store = Faulty::new();
    let soon = |config: &mut ApiConfig| config.silence = Duration::from_millis(50);
    let api = Api::start_with(store.clone(), soon).await;
    let (requests, mut responses) = stream(&api, true).await.unwrap();
    *store.short.lock().unwrap() = Some(WatchEnd::Lost("lost on purpose".into()));
    watch_key(&requests).await;
    assert!(next(&mut responses).await.created);
    ends_without_leader(&mut responses).await;
}

#[tokio::test]
async fn a_watch_whose_history_nobody_can_read_is_cancelled_with_the_reason() {
    let store = Faulty::new();
    let api = Api::start(store.clone()).await;
    let (_keep, mut responses) = watch_all(&api, |_| {}).await;
    let broken = StoreError::Broken("not a log".into());
    *store.short.lock().unwrap() = Some(WatchEnd::Failed(broken));
    store.lose();
    store.find();
    let end = next(&mut responses).await;
    assert!(
        end.canceled && end.cancel_reason.contains("not a log"),
        "{end:?}"
    );
}

#[tokio::test]
async fn a_watch_whose_history_went_while_its_store_was_away_says_so() {
    let store = Faulty::new();
    let api = Api::start(store.clone()).await;
    let (_keep, mut responses) = watch_all(&api, |_| {}).await;
    store.lose();
    for _ in 0..5 {
        store.inner.put(Put::new("k", "v")).await.unwrap();
    }
    store
        .inner
        .compact(segue::types::Revision(5))
        .await
        .unwrap();
    store.find();
    let end = next(&mut responses).await;
    assert!(end.canceled && end.compact_revision == 5, "{end:?}");
}

#[tokio::test]
async fn a_watch_that_finds_no_store_is_not_cancelled() {
    let store = Faulty::new();
    let api = Api::start(store.clone()).await;
    store.lose();
    let (requests, mut responses) = stream(&api, false).await.unwrap();
    watch_key(&requests).await;
    // A cancelled watch is over for good; when a stream ends so, clients open it again.
    ends_without_leader(&mut responses).await;
}

#[tokio::test]
async fn a_stream_that_needs_a_leader_ends_without_the_store() {
    let store = Faulty::new();
    let api = Api::start(store.clone()).await;
    let (requests, mut responses) = stream(&api, true).await.unwrap();
    watch_key(&requests).await;
    assert!(next(&mut responses).await.created);
    store.lose();
    ends_without_leader(&mut responses).await;
}

/// etcd ends it after a few seconds, so that the client goes to another member.
#[tokio::test]
async fn a_stream_that_needs_a_leader_ends_when_the_store_says_nothing_any_more() {
    let store = Faulty::new();
    let soon = |config: &mut ApiConfig| config.silence = Duration::from_millis(50);
    let api = Api::start_with(store.clone(), soon).await;
    let (_keep, mut goes_on) = watch_all(&api, |_| {}).await;
    let (_keep_too, mut responses) = stream(&api, true).await.unwrap();
    store.freeze();
    ends_without_leader(&mut responses).await;
    store.inner.put(Put::new("k", "v")).await.unwrap();
    assert_eq!(revisions(&mut goes_on, 1).await, [2]);
}

/// Clients that open one watch per stream end their side at once: grpcurl, gateways, some libraries.
#[tokio::test]
async fn a_client_that_asks_for_nothing_more_is_told_of_changes_until_it_leaves() {
    let store = Memory::new();
    let api = Api::start(Arc::new(store.clone())).await;
    let (requests, mut responses) = watch_all(&api, |_| {}).await;
    drop(requests);
    for revision in 2..5 {
        store.put(Put::new("k", "v")).await.unwrap();
        assert_eq!(revisions(&mut responses, 1).await, [revision]);
    }
    open_watches(&api, 1).await;
    drop(responses);
    open_watches(&api, 0).await;
}

/// Waits until so many watches are open, as the metrics tell.
async fn open_watches(api: &Api, count: usize) {
    let line = format!("\nsegue_watches {count}\n");
    eventually("the watches are counted", async || {
        let metrics = http_get(api.port(), "/metrics").await.unwrap();
        if metrics.contains(&line) {
            Ok(())
        } else {
            Err(metrics)
        }
    })
    .await;
}

#[tokio::test]
async fn a_write_whose_outcome_is_unknown_is_no_clean_failure() {
    let store = Faulty::new();
    let api = Api::start(store.clone()).await;
    let mut kv = KvClient::new(channel(&api).await);
    store.lose();
    let put = pb::PutRequest {
        key: "k".into(),
        ..pb::PutRequest::default()
    };
    let failure = kv.put(put).await.unwrap_err();
    // With `DeadlineExceeded` the Go client would put it once more.
    assert_eq!(failure.code(), Code::Unavailable);
    assert_eq!(failure.message(), "etcdserver: request timed out");
    let range = pb::RangeRequest {
        key: "k".into(),
        ..pb::RangeRequest::default()
    };
    let failure = kv.range(range.clone()).await.unwrap_err();
    assert_eq!(
        (failure.code(), failure.message()),
        (Code::Unavailable, "etcdserver: no leader")
    );
    store.find();
    // It did happen.
    assert_eq!(kv.range(range).await.unwrap().into_inner().count, 1);
}

#[tokio::test]
async fn idle_watches_are_told_how_far_they_are() {
    let store = Memory::new();
    let api = Api::start_with(Arc::new(store.clone()), |config| {
        config.progress_interval = Duration::from_millis(100);
    })
    .await;
    let (_keep, mut told) = watch_all(&api, |request| {
        request.progress_notify = true;
        request.key = "other".into();
        request.range_end = "".into();
    })
    .await;
    store.put(Put::new("k", "v")).await.unwrap();
    let asked = Instant::now();
    loop {
        let progress = next(&mut told).await;
        assert!(
            progress.events.is_empty() && progress.watch_id == 0,
            "{progress:?}"
        );
        if progress.header.unwrap().revision == 2 {
            break;
        }
        assert!(asked.elapsed() < SOON);
    }
}

#[tokio::test]
async fn progress_is_told_when_all_watches_are_there() {
    let store = Memory::new();
    let api = Api::start(Arc::new(store.clone())).await;
    // Far more than is on its way at once: the watch is behind for a while.
    let value = "x".repeat(10_000);
    for _ in 0..2000 {
        store.put(Put::new("k", value.clone())).await.unwrap();
    }
    let (requests, mut responses) = watch_all(&api, |request| request.start_revision = 2).await;
    let progress = pb::watch_request::RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
    let progress = pb::WatchRequest {
        request_union: Some(progress),
    };
    requests.send(progress.clone()).await.unwrap();
    requests.send(progress).await.unwrap();
    let mut delivered = 1;
    let mut answers = 0;
    while answers < 2 {
        let response = next(&mut responses).await;
        for event in &response.events {
            delivered = event.kv.as_ref().unwrap().mod_revision;
        }
        if response.watch_id == -1 {
            answers += 1;
            let promised = response.header.unwrap().revision;
            assert!(promised <= delivered, "{promised} of {delivered} delivered");
            assert_eq!(promised, 2001);
        }
    }
}

#[tokio::test]
async fn streams_end_when_the_server_is_stopped() {
    let api = Api::start(Arc::new(Memory::new())).await;
    let (_keep, mut responses) = watch_all(&api, |_| {}).await;
    let (_renew, receiver) = mpsc::channel::<pb::LeaseKeepAliveRequest>(1);
    let mut lease = LeaseClient::new(channel(&api).await);
    let kept = lease.lease_keep_alive(ReceiverStream::new(receiver)).await;
    let mut kept = kept.unwrap().into_inner();
    let begun = Instant::now();
    api.stop().await;
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "it did not wait for the grace to pass"
    );
    for end in [
        responses.message().await.unwrap_err(),
        kept.message().await.unwrap_err(),
    ] {
        assert_eq!(
            (end.code(), end.message()),
            (Code::Unavailable, "etcdserver: server stopped")
        );
    }
}

#[tokio::test]
async fn a_watch_of_the_future_does_not_move_the_present() {
    let api = Api::start(Arc::new(Memory::new())).await;
    let (requests, mut responses) = watch_all(&api, |watch| watch.start_revision = 1000).await;
    let ask = async |request| {
        let request_union = Some(request);
        requests
            .send(pb::WatchRequest { request_union })
            .await
            .unwrap();
    };
    let progress = pb::WatchProgressRequest {};
    ask(RequestUnion::ProgressRequest(progress)).await;
    let told = next(&mut responses).await;
    assert_eq!(told.header.unwrap().revision, 1);
    let cancel = pb::WatchCancelRequest { watch_id: 0 };
    ask(RequestUnion::CancelRequest(cancel)).await;
    let told = next(&mut responses).await;
    assert!(told.canceled);
    assert_eq!(told.header.unwrap().revision, 1);
}

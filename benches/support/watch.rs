//! How long after a write was acknowledged its event reaches watchers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use segue::proto::etcdserverpb::watch_client::WatchClient;
use segue::proto::etcdserverpb::watch_request::RequestUnion;
use segue::proto::etcdserverpb::{WatchCreateRequest, WatchRequest};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::kv::Kv;
use super::{client, kubernetes, load};

/// No event takes longer than this.
const DEADLINE: Duration = Duration::from_mins(1);

/// What one watcher saw of the writes.
#[derive(Clone, Copy, Debug)]
pub struct Lag {
    /// From answer to event: the median, in microseconds. No less than 1, also where an event comes
    /// before the answer does.
    pub p50_us: u64,
    /// What one event in a hundred exceeds.
    pub p99_us: u64,
    /// From the request that writes to the event: the median.
    pub since_sent_p50_us: u64,
    /// What one event in a hundred exceeds.
    pub since_sent_p99_us: u64,
    /// Events.
    pub events: u64,
}

/// When a write of some revision was sent and answered.
#[derive(Clone, Copy)]
struct Write {
    revision: i64,
    sent: Instant,
    answered: Instant,
}

/// Writes through `writers` for `duration` with so many clients, each changing a key of its own
/// again and again, and watches through each of `watchers`. Every watcher has to see every change
/// once and in order.
pub async fn run(
    writers: &[Kv],
    watchers: &[Channel],
    in_flight: usize,
    duration: Duration,
) -> Vec<Lag> {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    let prefix = format!("/registry/watched/{run:06}/");
    let last: Bytes = format!("{prefix}last").into();
    let mut watching = Vec::new();
    for channel in watchers {
        watching.push(watch(channel, &prefix, &last).await);
    }
    let end = Instant::now() + duration;
    let clients: Vec<_> = (0..in_flight)
        .map(|number| {
            let kv = writers[number % writers.len()].clone();
            let key = format!("{prefix}{number:040}").into();
            tokio::task::spawn(write(kv, key, end))
        })
        .collect();
    let mut written = BTreeMap::new();
    for client in clients {
        for write in client.await.expect("a client goes on") {
            written.insert(write.revision, write);
        }
    }
    kubernetes::create(&writers[0], &last, &client::value(0)).await;
    let mut lags = Vec::new();
    for watching in watching {
        let seen = tokio::time::timeout(DEADLINE, watching).await;
        let seen = seen.expect("every event comes").expect("a watcher goes on");
        lags.push(lag(&written, &seen));
    }
    lags
}

async fn write(kv: Kv, key: Bytes, end: Instant) -> Vec<Write> {
    let mut writes: Vec<Write> = Vec::new();
    let mut sent = Instant::now();
    while sent < end {
        let value = client::value(writes.len());
        let revision = match writes.last() {
            None => kubernetes::create(&kv, &key, &value).await,
            Some(before) => kubernetes::update(&kv, &key, &value, before.revision).await,
        };
        let answered = Instant::now();
        writes.push(Write {
            revision,
            sent,
            answered,
        });
        sent = answered;
    }
    writes
}

/// A watch that is in place: collects revisions, and when each was seen, until the key `last`.
async fn watch(channel: &Channel, prefix: &str, last: &Bytes) -> JoinHandle<Vec<(i64, Instant)>> {
    let (requests, receiver) = mpsc::channel(1);
    let mut range_end = prefix.as_bytes().to_vec();
    *range_end.last_mut().expect("a prefix ends with a slash") += 1;
    let create = WatchCreateRequest {
        key: prefix.to_owned().into(),
        range_end: range_end.into(),
        ..WatchCreateRequest::default()
    };
    requests
        .send(WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        })
        .await
        .expect("the other end is here");
    let mut events = WatchClient::new(channel.clone())
        .max_decoding_message_size(usize::MAX)
        .watch(ReceiverStream::new(receiver))
        .await
        .expect("a watch is answered")
        .into_inner();
    let created = events.message().await.expect("a watch goes on");
    assert!(created.is_some_and(|created| created.created));
    let last = last.clone();
    tokio::task::spawn(async move {
        let _open = requests;
        let mut seen = Vec::new();
        loop {
            let message = events.message().await.expect("a watch goes on");
            let message = message.expect("a watch does not end");
            assert!(!message.canceled, "{}", message.cancel_reason);
            let now = Instant::now();
            for event in message.events {
                let pair = event.kv.expect("an event has a key");
                if pair.key == last {
                    return seen;
                }
                seen.push((pair.mod_revision, now));
            }
        }
    })
}

fn lag(writes: &BTreeMap<i64, Write>, seen: &[(i64, Instant)]) -> Lag {
    let revisions = writes.keys();
    let events = seen.iter().map(|(revision, _)| revision);
    assert!(
        revisions.eq(events),
        "every write has one event, in the order of revisions: {} writes, {} events",
        writes.len(),
        seen.len()
    );
    let (mut since_answer, mut since_sent) = (load::histogram(), load::histogram());
    for (write, (_, seen)) in writes.values().zip(seen) {
        load::record(
            &mut since_answer,
            seen.saturating_duration_since(write.answered),
        );
        load::record(&mut since_sent, seen.saturating_duration_since(write.sent));
    }
    Lag {
        p50_us: since_answer.value_at_quantile(0.50),
        p99_us: since_answer.value_at_quantile(0.99),
        since_sent_p50_us: since_sent.value_at_quantile(0.50),
        since_sent_p99_us: since_sent.value_at_quantile(0.99),
        events: since_answer.len(),
    }
}

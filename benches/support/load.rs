//! The load generator: a fixed number of requests in flight, each followed by the next.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use segue::proto::etcdserverpb::{PutRequest, RangeRequest};
use tonic::transport::Channel;

use super::client::{self, VALUE_BYTES, next_random};
use super::rounds::{Series, median};

/// Requests in flight on one connection. Applications are many clients with a connection each.
const IN_FLIGHT_PER_CONNECTION: usize = 16;

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Reads one key, as `etcdctl get KEY` does.
    Get,
    /// Writes one key, as `etcdctl put KEY VALUE` does.
    Put,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "get",
            Self::Put => "put",
        })
    }
}

/// Which requests, and how many of them at a time.
#[derive(Clone)]
pub struct Workload {
    /// What is done.
    pub op: Op,
    /// How many requests wait for their answers at any time.
    pub in_flight: usize,
    /// The keys, taken at random. A key that is read has to exist.
    pub keys: Arc<Vec<Bytes>>,
}

/// What came out of one measurement.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Answers per second.
    pub per_second: f64,
    /// Answers.
    pub operations: u64,
    /// Median latency.
    pub p50_us: u64,
    /// Latency that one request in a hundred exceeds.
    pub p99_us: u64,
    /// Processor time per operation of all that serve, where it was looked at: unlike the rest, it
    /// is hardly touched by what else runs on the machine.
    pub server_cpu_us: f64,
}

/// Connections to `address`, as many as the workload wants.
pub async fn connect(address: &str, in_flight: usize) -> Vec<Channel> {
    let mut channels = Vec::new();
    for _ in 0..in_flight.div_ceil(IN_FLIGHT_PER_CONNECTION) {
        channels.push(client::connect(address).await);
    }
    channels
}

/// Keeps `workload` up for `duration`. Fails if any request does: failing is faster than working.
pub async fn run(channels: &[Channel], workload: &Workload, duration: Duration) -> Sample {
    let start = Instant::now();
    let clients: Vec<_> = (0..workload.in_flight)
        .map(|number| {
            let channel = channels[number % channels.len()].clone();
            tokio::task::spawn(one_client(
                channel,
                workload.clone(),
                number,
                start + duration,
            ))
        })
        .collect();
    let mut latencies = histogram();
    for client in clients {
        latencies
            .add(client.await.expect("a client goes on"))
            .unwrap();
    }
    Sample {
        per_second: latencies.len() as f64 / start.elapsed().as_secs_f64(),
        operations: latencies.len(),
        p50_us: latencies.value_at_quantile(0.50),
        p99_us: latencies.value_at_quantile(0.99),
        server_cpu_us: 0.0,
    }
}

async fn one_client(
    channel: Channel,
    workload: Workload,
    number: usize,
    end: Instant,
) -> Histogram<u64> {
    let mut kv = client::kv(&channel);
    let mut latencies = histogram();
    let value = client::value(number);
    // Every measurement, each client in it, takes keys of its own.
    let mut state = number as u64 ^ u64::from(Instant::now().elapsed().subsec_nanos()) << 32;
    let count = workload.keys.len() as u64;
    let mut sent = Instant::now();
    while sent < end {
        let chosen = usize::try_from(next_random(&mut state) % count).expect("an index");
        let key = workload.keys[chosen].clone();
        match workload.op {
            Op::Get => {
                let request = RangeRequest {
                    key,
                    ..RangeRequest::default()
                };
                let reply = kv
                    .range(request)
                    .await
                    .expect("a get is answered")
                    .into_inner();
                assert_eq!(reply.kvs.len(), 1, "a key that exists is found");
                assert_eq!(reply.kvs[0].value.len(), VALUE_BYTES);
            }
            Op::Put => {
                let request = PutRequest {
                    key,
                    value: value.clone(),
                    ..PutRequest::default()
                };
                let reply = kv
                    .put(request)
                    .await
                    .expect("a put is answered")
                    .into_inner();
                assert!(reply.header.is_some_and(|header| header.revision > 0));
            }
        }
        let answered = Instant::now();
        let micros = u64::try_from((answered - sent).as_micros()).expect("short");
        latencies.saturating_record(micros);
        sent = answered;
    }
    latencies
}

/// Microseconds, up to a minute.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("good bounds")
}

/// The throughput of each round.
pub fn series(name: &str, samples: &[Sample]) -> Series {
    Series {
        name: name.to_owned(),
        figures: samples.iter().map(|sample| sample.per_second).collect(),
    }
}

/// `p50 130 µs, p99 400 µs, 55 µs of CPU`, the medians over the rounds.
pub fn latencies(samples: &[Sample]) -> String {
    let middle = |pick: fn(&Sample) -> f64| {
        let values: Vec<f64> = samples.iter().map(pick).collect();
        median(&values)
    };
    let mut text = format!(
        "p50 {:.0} µs, p99 {:.0} µs",
        middle(|sample| sample.p50_us as f64),
        middle(|sample| sample.p99_us as f64)
    );
    if samples.iter().any(|sample| sample.server_cpu_us > 0.0) {
        let cpu = middle(|sample| sample.server_cpu_us);
        write!(text, ", {cpu:.0} µs of CPU per operation").expect("a string takes it");
    }
    text
}

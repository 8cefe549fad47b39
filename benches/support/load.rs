//! The load generator: a fixed number of requests in flight, each followed by the next.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use segue::proto::etcdserverpb::{PutRequest, RangeRequest};

use super::client::{self, VALUE_BYTES, next_random};
use super::kv::Kv;
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
    /// Reads the [`KEYS_PER_RANGE`] keys from one on.
    Range,
}

/// Keys that one range answers.
pub const KEYS_PER_RANGE: usize = 100;

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Range => "100-key range",
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
    /// The keys in order, taken at random. A key that is read has to exist, and nothing between two
    /// of a range.
    pub keys: Arc<Vec<Bytes>>,
    /// Requests are transactions with the condition that this key exists.
    pub condition: Option<Bytes>,
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
pub async fn connect(address: &str, in_flight: usize) -> Vec<Kv> {
    let mut connections = Vec::new();
    for _ in 0..in_flight.div_ceil(IN_FLIGHT_PER_CONNECTION) {
        connections.push(Kv::connect(address).await);
    }
    connections
}

/// Keeps `workload` up for `duration`. Fails if any request does: failing is faster than working.
pub async fn run(connections: &[Kv], workload: &Workload, duration: Duration) -> Sample {
    let start = Instant::now();
    let clients: Vec<_> = (0..workload.in_flight)
        .map(|number| {
            let kv = connections[number % connections.len()].clone();
            tokio::task::spawn(one_client(kv, workload.clone(), number, start + duration))
        })
        .collect();
    let mut latencies = histogram();
    for client in clients {
        latencies
            .add(client.await.expect("a client goes on"))
            .unwrap();
    }
    sample(&latencies, latencies.len(), start.elapsed().as_secs_f64())
}

/// So many operations in so many seconds.
pub fn sample(latencies: &Latencies, operations: u64, seconds: f64) -> Sample {
    Sample {
        per_second: operations as f64 / seconds,
        operations,
        p50_us: latencies.value_at_quantile(0.50),
        p99_us: latencies.value_at_quantile(0.99),
        server_cpu_us: 0.0,
    }
}

async fn one_client(kv: Kv, workload: Workload, number: usize, end: Instant) -> Latencies {
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
                let reply = kv.range(&request).await;
                assert_eq!(reply.kvs.len(), 1, "a key that exists is found");
                assert_eq!(reply.kvs[0].value.len(), VALUE_BYTES);
            }
            Op::Put => {
                let request = PutRequest {
                    key,
                    value: value.clone(),
                    ..PutRequest::default()
                };
                if let Some(condition) = &workload.condition {
                    let request = client::conditional(condition, request);
                    assert!(kv.txn(&request).await.succeeded);
                    let answered = Instant::now();
                    let micros = u64::try_from((answered - sent).as_micros()).expect("short");
                    latencies.saturating_record(micros);
                    sent = answered;
                    continue;
                }
                let reply = kv.put(&request).await;
                assert!(reply.header.is_some_and(|header| header.revision > 0));
            }
            Op::Range => {
                let first = chosen.min(workload.keys.len() - KEYS_PER_RANGE - 1);
                let request = RangeRequest {
                    key: workload.keys[first].clone(),
                    range_end: workload.keys[first + KEYS_PER_RANGE].clone(),
                    ..RangeRequest::default()
                };
                let reply = kv.range(&request).await;
                assert_eq!(reply.kvs.len(), KEYS_PER_RANGE);
            }
        }
        let answered = Instant::now();
        record(&mut latencies, answered - sent);
        sent = answered;
    }
    latencies
}

/// Microseconds, up to a minute.
pub type Latencies = Histogram<u64>;

/// Nothing measured yet.
pub fn histogram() -> Latencies {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("good bounds")
}

/// Counts one more. Nothing takes less than a microsecond.
pub fn record(latencies: &mut Latencies, time: Duration) {
    let micros = u64::try_from(time.as_micros()).expect("short");
    latencies.saturating_record(micros.max(1));
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

//! Clients that are at work all the time, and note how long the longest of their requests took in each
//! stretch of time: what people notice of a migration.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use segue::proto::etcdserverpb::{PutRequest, RangeRequest};
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use super::client::{self, next_random};

/// Between two requests of a client. Clients that ask all the time would keep the machine so busy that they
/// would wait for each other all the time.
const PAUSE: Duration = Duration::from_millis(3);

/// Clients at work.
pub struct Clients {
    shared: Arc<Shared>,
    running: Vec<JoinHandle<Waits>>,
}

struct Shared {
    /// The stretch that goes on now.
    stretch: AtomicUsize,
    over: AtomicBool,
    keys: Vec<Bytes>,
}

/// What one client noticed.
#[derive(Clone, Debug, Default)]
pub struct Waits {
    /// The longest request that was under way in each stretch.
    longest: Vec<Duration>,
    /// Requests that were answered with an error.
    failed: usize,
    /// Requests that were answered.
    pub answered: usize,
}

impl Clients {
    /// So many clients with a connection each, which read and write `keys` in turn.
    pub async fn start(address: &str, count: usize, keys: &[Bytes]) -> Self {
        let shared = Arc::new(Shared {
            stretch: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            keys: keys.to_vec(),
        });
        let mut running = Vec::new();
        for number in 0..count {
            let channel = client::connect(address).await;
            running.push(tokio::task::spawn(work(channel, number, shared.clone())));
        }
        Self { shared, running }
    }

    /// Begins another stretch and answers its number.
    pub fn next_stretch(&self) -> usize {
        self.shared.stretch.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Ends them: what each of them noticed.
    pub async fn finish(self) -> Vec<Waits> {
        self.shared.over.store(true, Ordering::Relaxed);
        let mut waits = Vec::new();
        for client in self.running {
            waits.push(client.await.expect("a client goes on"));
        }
        waits
    }
}

/// The longest request of each client in each of these stretches, in milliseconds, sorted.
pub fn longest_ms(clients: &[Waits], stretches: &[usize]) -> Vec<f64> {
    let of = |waits: &Waits, stretch: usize| waits.longest.get(stretch).copied();
    let mut all: Vec<f64> = clients
        .iter()
        .flat_map(|waits| stretches.iter().map(|stretch| of(waits, *stretch)))
        .map(|longest| longest.unwrap_or_default().as_secs_f64() * 1e3)
        .collect();
    all.sort_by(f64::total_cmp);
    all
}

/// How many requests failed.
pub fn failed(clients: &[Waits]) -> usize {
    clients.iter().map(|waits| waits.failed).sum()
}

async fn work(channel: Channel, number: usize, shared: Arc<Shared>) -> Waits {
    let mut kv = client::kv(&channel);
    let mut state = number as u64;
    let mut waits = Waits::default();
    while !shared.over.load(Ordering::Relaxed) {
        let random = next_random(&mut state);
        let index = usize::try_from(random).expect("64 bits") % shared.keys.len();
        let key = shared.keys[index].clone();
        let first = shared.stretch.load(Ordering::Relaxed);
        let sent = Instant::now();
        let done = if waits.answered % 2 == 0 {
            let request = PutRequest {
                key,
                value: client::value(index),
                ..PutRequest::default()
            };
            kv.put(request).await.map(drop)
        } else {
            let request = RangeRequest {
                key,
                ..RangeRequest::default()
            };
            kv.range(request).await.map(drop)
        };
        let took = sent.elapsed();
        waits.answered += 1;
        if done.is_err() {
            waits.failed += 1;
        }
        let last = shared.stretch.load(Ordering::Relaxed);
        waits.longest.resize(last + 1, Duration::ZERO);
        for longest in &mut waits.longest[first..] {
            *longest = took.max(*longest);
        }
        tokio::time::sleep(PAUSE).await;
    }
    waits
}

//! What the clients share: where to send requests to, the ledger, the meter, and the signal to
//! stop.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use etcd_client::{Client, ConnectOptions, KvClient, ResponseHeader};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio_util::sync::CancellationToken;

use super::ledger::Ledger;
use super::meter::{Kind, Meter};

/// A request that is not answered for so long counts as failed. Longer than any stall that could
/// be excused.
const PATIENCE: Duration = Duration::from_secs(15);

/// The largest answer that a client takes: lists may hold many large values.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Where clients send their requests to.
#[derive(Clone)]
pub(super) struct Address {
    /// Endpoints, as in `http://127.0.0.1:2379`.
    pub endpoints: Vec<String>,
    /// User and password, where needed.
    pub account: Option<(String, String)>,
}

impl Address {
    /// A client of its own, with its own connection.
    pub(super) async fn connect(&self) -> anyhow::Result<Client> {
        let mut options = ConnectOptions::new().with_connect_timeout(PATIENCE);
        if let Some((user, password)) = &self.account {
            options = options.with_user(user, password);
        }
        Client::connect(&self.endpoints, Some(options))
            .await
            .context("a client of the demo cannot connect")
    }
}

/// The part of a client for keys, which takes large answers.
pub(super) fn keys_of(client: &Client) -> KvClient {
    client
        .kv_client()
        .max_decoding_message_size(ANSWER_BYTES_MAX)
}

/// The keys that the clients work with.
#[derive(Clone, Debug, Default)]
pub(super) struct Props {
    /// What every key begins with that clients write.
    pub root: String,
    /// Keys that existed before: they may be read.
    pub readable: Vec<Bytes>,
    /// Those of them that may be written and deleted, too.
    pub writable: Vec<Bytes>,
    /// Prefixes with a moderate number of keys below each.
    pub directories: Vec<Bytes>,
}

impl Props {
    /// A key below the root.
    pub(super) fn key(&self, path: impl std::fmt::Display) -> Bytes {
        format!("{}{path}", self.root).into()
    }
}

/// What lasts for the whole show.
pub(super) struct Show {
    /// What was done and seen.
    pub ledger: Ledger,
    /// How fast.
    pub meter: Meter,
    /// On what.
    pub props: Props,
}

/// What clients need while they perform.
#[derive(Clone)]
pub(super) struct Stage {
    /// The show.
    pub show: Arc<Show>,
    /// Where to.
    pub address: Address,
    /// When this fires, clients finish what they are at and end.
    pub stop: CancellationToken,
    /// When this fires (after `stop`), watches end, and leases are no longer kept alive.
    pub curtain: CancellationToken,
}

impl Stage {
    /// Sends a request and measures it. A failure is counted and noted, and then there is nothing.
    pub(super) async fn ask<T>(
        &self,
        kind: Kind,
        what: impl FnOnce() -> String,
        request: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Option<T> {
        let meter = &self.show.meter;
        let (period, sent) = (meter.period(), Instant::now());
        let why = match tokio::time::timeout(PATIENCE, request).await {
            Ok(Ok(answer)) => {
                meter.answered(kind, period, sent);
                return Some(answer);
            }
            Ok(Err(error)) => reason(&error),
            Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
        };
        meter.failed(format!("{}: {why}", what()), period, sent);
        None
    }

    /// A failure that is no answer to a request, such as a watch that was ended.
    pub(super) fn failed(&self, what: String) {
        let meter = &self.show.meter;
        meter.failed(what, meter.period(), Instant::now());
    }

    /// Thinks for about as long as `mean`; answers whether to go on.
    pub(super) async fn think(&self, rng: &mut StdRng, mean: Duration) -> bool {
        let pause = mean.mul_f64(rng.random_range(0.5..1.5));
        self.wait(pause).await
    }

    /// Waits; answers whether to go on.
    pub(super) async fn wait(&self, pause: Duration) -> bool {
        tokio::select! {
            () = self.stop.cancelled() => false,
            () = tokio::time::sleep(pause) => true,
        }
    }
}

/// An error without its headers and other things that only fill the line.
pub(super) fn reason(error: &etcd_client::Error) -> String {
    match error {
        etcd_client::Error::GRpcStatus(status) => {
            format!("{:?}: {}", status.code(), status.message())
        }
        other => other.to_string(),
    }
}

/// The revision that an answer shows.
pub(super) fn revision(header: Option<&ResponseHeader>) -> i64 {
    header.map_or(0, ResponseHeader::revision)
}

/// Randomness that is the same in every show, so that one can be repeated.
pub(super) fn dice(number: u64) -> StdRng {
    StdRng::seed_from_u64(0x5e60_0000 + number)
}

/// A value of about `bytes` bytes that looks like what applications store.
pub(super) fn value(rng: &mut StdRng, bytes: usize) -> Vec<u8> {
    const WORDS: [&str; 12] = [
        "enabled", "region", "eu-west", "price", "stock", "address", "owner", "retries", "weight",
        "endpoint", "deadline", "label",
    ];
    let mut text = format!("{{\"id\":{}", rng.random_range(0..u32::MAX)).into_bytes();
    while text.len() + 1 < bytes {
        let word = WORDS[rng.random_range(0..WORDS.len())];
        let number: u32 = rng.random();
        text.extend_from_slice(format!(",\"{word}{}\":\"{number:08x}\"", text.len()).as_bytes());
    }
    text.push(b'}');
    text
}

/// A size as applications' values have them: most small, some of a few KB.
pub(super) fn size(rng: &mut StdRng) -> usize {
    match rng.random_range(0..100) {
        0..55 => rng.random_range(60..300),
        55..90 => rng.random_range(300..1_200),
        90..98 => rng.random_range(1_200..4_000),
        _ => rng.random_range(4_000..20_000),
    }
}

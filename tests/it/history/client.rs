//! Clients that write down what they do: real ones, of the kind that applications use.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, EventType, GetOptions, KeyValue, PutOptions,
    ResponseHeader, Txn, TxnOp, WatchOptions, WatchResponse,
};
use tokio_util::sync::CancellationToken;

use super::{Batch, Call, Event, Operation, Outcome, Pair, Reply, WatchLog};

/// How long a client waits for an answer before it counts the request as lost.
const PATIENCE: Duration = Duration::from_secs(20);

/// The same for one that can go to another proxy.
const ROAMERS_PATIENCE: Duration = Duration::from_secs(2);

/// Before a client that was cut off comes back.
const PAUSE: Duration = Duration::from_millis(20);

/// How long a client that looks for another proxy gives each of them.
const GLANCE: Duration = Duration::from_millis(500);

/// Where all clients write down what they do.
#[derive(Clone, Default)]
pub struct Recorder {
    inner: Arc<Inner>,
}

struct Inner {
    clock: Instant,
    clients: AtomicUsize,
    values: AtomicU64,
    /// The highest revision that anybody was answered.
    newest: AtomicI64,
    operations: Mutex<Vec<Operation>>,
    leases: Mutex<Leases>,
}

/// What was promised about leases.
#[derive(Default)]
struct Leases {
    kept: BTreeSet<i64>,
    due: BTreeMap<i64, Duration>,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            clock: Instant::now(),
            clients: AtomicUsize::new(0),
            values: AtomicU64::new(0),
            newest: AtomicI64::new(0),
            operations: Mutex::default(),
            leases: Mutex::default(),
        }
    }
}

impl Recorder {
    /// A client of the proxy at `endpoint`.
    pub async fn client(&self, endpoint: &str) -> Recording {
        Recording {
            recorder: self.clone(),
            number: self.inner.clients.fetch_add(1, Ordering::Relaxed),
            client: connect(endpoint).await,
            others: Vec::new(),
            patience: PATIENCE,
        }
    }

    /// A value that nobody wrote before.
    pub fn value(&self) -> String {
        format!(
            "value-{}",
            self.inner.values.fetch_add(1, Ordering::Relaxed)
        )
    }

    /// The highest revision that anybody was answered.
    pub fn newest(&self) -> i64 {
        self.inner.newest.load(Ordering::Relaxed)
    }

    /// How many requests were answered, failed and ended nobody knows how.
    pub fn counts(&self) -> (usize, usize, usize) {
        let operations = self.inner.operations.lock().unwrap();
        let count = |is: fn(&Outcome) -> bool| {
            operations
                .iter()
                .filter(|operation| is(&operation.outcome))
                .count()
        };
        (
            count(|outcome| matches!(outcome, Outcome::Done(_))),
            count(|outcome| matches!(outcome, Outcome::Failed(_))),
            count(|outcome| matches!(outcome, Outcome::Unknown(_))),
        )
    }

    /// Everything written down so far.
    pub fn operations(&self) -> Vec<Operation> {
        self.inner.operations.lock().unwrap().clone()
    }

    /// Leases that were kept alive all the time.
    pub fn kept(&self) -> BTreeSet<i64> {
        self.inner.leases.lock().unwrap().kept.clone()
    }

    /// Other leases, and when they may end at the earliest.
    pub fn due(&self) -> BTreeMap<i64, Duration> {
        self.inner.leases.lock().unwrap().due.clone()
    }

    /// Watches the keys that begin with `prefix` from `start` on until `end` is cancelled and
    /// everything up to the newest revision of that moment was seen. Comes back where it was when
    /// it is cut off, at the next one of the proxies. If `relists`, it begins a new log where it is told
    /// that the history before is gone.
    pub async fn watch(
        &self,
        name: &str,
        endpoints: &[String],
        prefix: &str,
        start: i64,
        relists: bool,
        end: CancellationToken,
    ) -> Vec<WatchLog> {
        let log_from = |start| WatchLog {
            name: name.to_owned(),
            prefix: prefix.to_owned(),
            start,
            through: start - 1,
            ..WatchLog::default()
        };
        let mut logs = Vec::new();
        let mut log = log_from(start);
        for endpoint in endpoints.iter().cycle() {
            match self.watch_once(&mut log, endpoint, &end).await {
                Ok(()) => break,
                Err(Cut::Off(_)) => tokio::time::sleep(PAUSE).await,
                Err(Cut::Compacted(oldest)) if relists => {
                    logs.push(std::mem::replace(&mut log, log_from(oldest)));
                }
                Err(cut) => panic!("{name}: the watch was cancelled: {cut:?}"),
            }
        }
        logs.push(log);
        logs
    }

    async fn watch_once(
        &self,
        log: &mut WatchLog,
        endpoint: &str,
        end: &CancellationToken,
    ) -> Result<(), Cut> {
        let off = |error: etcd_client::Error| Cut::Off(error.to_string());
        let mut client = Client::connect([endpoint], None).await.map_err(off)?;
        // As client libraries do: from behind the last event that arrived.
        let next = log.through + 1;
        let options = WatchOptions::new()
            .with_prefix()
            .with_prev_key()
            .with_start_revision(next);
        let mut stream = client
            .watch(log.prefix.as_str(), Some(options))
            .await
            .map_err(off)?;
        loop {
            let ending = end.is_cancelled();
            let goal = self.newest();
            if ending {
                if log.through >= goal {
                    return Ok(());
                }
                stream.request_progress().await.map_err(off)?;
            }
            // While it ends it asks anew for progress, in case that an answer was too early.
            let patience = if ending { PAUSE } else { PATIENCE };
            let answer = tokio::select! {
                answer = stream.message() => answer.map_err(off)?,
                () = tokio::time::sleep(patience) => continue,
                () = end.cancelled(), if !ending => continue,
            };
            let Some(answer) = answer else {
                return Err(Cut::Off("the stream has ended".into()));
            };
            if answer.canceled() {
                return Err(match answer.compact_revision() {
                    0 => Cut::Refused(answer.cancel_reason().to_owned()),
                    oldest => Cut::Compacted(oldest),
                });
            }
            note(log, &answer, self.inner.clock.elapsed());
        }
    }
}

/// Why a watch does not go on.
#[derive(Debug)]
#[expect(dead_code, reason = "for whoever debugs a test")]
enum Cut {
    /// The connection is gone.
    Off(String),
    /// The history is gone before this revision.
    Compacted(i64),
    /// The store ended it.
    Refused(String),
}

fn note(log: &mut WatchLog, answer: &WatchResponse, at: Duration) {
    let events: Vec<_> = answer.events().iter().map(event).collect();
    let header = revision(answer.header());
    if events.is_empty() {
        // Created, or progress: only the latter promises anything, and it names no watch.
        if !answer.created() {
            log.through = log.through.max(header);
        }
        return;
    }
    let last = events.iter().map(|event| event.revision).max();
    log.through = log.through.max(last.unwrap_or_default());
    log.batches.push(Batch { at, events });
}

fn event(event: &etcd_client::Event) -> Event {
    let kv = event.kv().expect("an event has a key");
    let is_put = event.event_type() == EventType::Put;
    Event {
        revision: kv.mod_revision(),
        key: text(kv.key()),
        pair: is_put.then(|| pair(kv)),
        prev: event.prev_kv().map(pair),
    }
}

/// One client, which does one thing after another.
pub struct Recording {
    recorder: Recorder,
    number: usize,
    client: Client,
    /// Where it goes when it is not answered; the next one comes first.
    others: Vec<String>,
    patience: Duration,
}

impl Recording {
    /// The same client, which goes to the next one of these proxies whenever a request has failed.
    #[must_use]
    pub fn roaming(mut self, endpoints: Vec<String>) -> Self {
        self.others = endpoints;
        self.patience = ROAMERS_PATIENCE;
        self
    }

    /// Goes to the next proxy, if there are others.
    async fn roam(&mut self) {
        if self.others.is_empty() {
            return;
        }
        tokio::time::sleep(PAUSE).await;
        for _ in 0..self.others.len() {
            self.others.rotate_left(1);
            let connecting = Client::connect([&self.others[0]], None);
            if let Ok(Ok(client)) = tokio::time::timeout(GLANCE, connecting).await {
                self.client = client;
                return;
            }
        }
    }

    /// Does `call` and writes it down. Answers what came of it.
    pub async fn call(&mut self, call: Call) -> Outcome {
        let outcome = self.call_within(call, self.patience).await;
        if !matches!(outcome, Outcome::Done(_)) {
            self.roam().await;
        }
        outcome
    }

    /// The same, but does not wait for the answer any longer than this.
    pub async fn call_within(&mut self, call: Call, patience: Duration) -> Outcome {
        let start = self.recorder.inner.clock.elapsed();
        let answered = tokio::time::timeout(patience, send(&mut self.client, &call)).await;
        let end = self.recorder.inner.clock.elapsed();
        let outcome = match answered {
            Ok(Ok(reply)) => {
                let newest = &self.recorder.inner.newest;
                newest.fetch_max(reply.revision, Ordering::Relaxed);
                Outcome::Done(reply)
            }
            Ok(Err(error)) if certainly_failed(&error) => Outcome::Failed(error.to_string()),
            Ok(Err(error)) => Outcome::Unknown(error.to_string()),
            Err(_) => Outcome::Unknown(format!("no answer within {patience:?}")),
        };
        self.recorder
            .inner
            .operations
            .lock()
            .unwrap()
            .push(Operation {
                client: self.number,
                start,
                end,
                call,
                outcome: outcome.clone(),
            });
        outcome
    }

    /// Lets a lease be granted; nothing if that was not answered.
    pub async fn grant(&mut self, ttl_s: i64) -> Option<i64> {
        let sent = self.recorder.inner.clock.elapsed();
        let granted = self.client.lease_grant(ttl_s, None);
        let Ok(Ok(granted)) = tokio::time::timeout(self.patience, granted).await else {
            self.roam().await;
            return None;
        };
        self.due(
            granted.id(),
            sent + Duration::from_secs(ttl_s.unsigned_abs()),
        );
        Some(granted.id())
    }

    /// Keeps a lease alive: when that was asked for, on the clock of all clients, and the time that
    /// the lease has got, 0 if it is gone.
    pub async fn keep_alive(&mut self, lease: i64) -> Option<(Duration, i64)> {
        let sent = self.recorder.inner.clock.elapsed();
        let kept = async {
            let (mut keeper, mut answers) = self.client.lease_keep_alive(lease).await?;
            keeper.keep_alive().await?;
            answers.message().await
        };
        if let Ok(Ok(Some(answer))) = tokio::time::timeout(ROAMERS_PATIENCE, kept).await {
            return Some((sent, answer.ttl()));
        }
        self.roam().await;
        None
    }

    /// From now on the lease must not end. Answers when it may if nobody keeps it alive.
    pub fn keep(&self, lease: i64) -> Duration {
        let mut leases = self.recorder.inner.leases.lock().unwrap();
        leases.kept.insert(lease);
        leases.due.remove(&lease).unwrap_or_default()
    }

    /// The lease may end at this time on the clock of all clients, and not earlier.
    pub fn due(&self, lease: i64, due: Duration) {
        let mut leases = self.recorder.inner.leases.lock().unwrap();
        leases.kept.remove(&lease);
        leases.due.insert(lease, due);
    }

    /// The time on the clock of all clients.
    pub fn now(&self) -> Duration {
        self.recorder.inner.clock.elapsed()
    }

    /// Reads a key; nothing if it does not exist or the read failed.
    pub async fn get(&mut self, key: &str) -> Option<Pair> {
        let key = key.to_owned();
        match self.call(Call::Get { key }).await {
            Outcome::Done(reply) => reply.pairs.into_iter().next(),
            Outcome::Failed(_) | Outcome::Unknown(_) => None,
        }
    }

    /// Reads a key for its mod revision, 0 if it does not exist; nothing if the read failed.
    pub async fn modified(&mut self, key: &str) -> Option<i64> {
        let key = key.to_owned();
        match self.call(Call::Get { key }).await {
            Outcome::Done(reply) => Some(reply.pairs.first().map_or(0, |pair| pair.modified)),
            Outcome::Failed(_) | Outcome::Unknown(_) => None,
        }
    }

    /// Writes a key with a value of its own.
    pub async fn put(&mut self, key: &str) -> Outcome {
        self.put_all(&[key], 0).await
    }

    /// Writes keys in one revision, each with a value of its own.
    pub async fn put_all(&mut self, keys: &[&str], lease: i64) -> Outcome {
        let pairs = keys
            .iter()
            .map(|key| ((*key).to_owned(), self.recorder.value()))
            .collect();
        self.call(Call::Put { pairs, lease }).await
    }

    /// A write of a key with a value of its own, not sent yet.
    pub fn a_put(&self, key: &str) -> Call {
        Call::Put {
            pairs: vec![(key.to_owned(), self.recorder.value())],
            lease: 0,
        }
    }

    /// Deletes a key.
    pub async fn delete(&mut self, key: &str) -> Outcome {
        self.call(Call::Delete { key: key.into() }).await
    }

    /// Reads all keys that begin with `prefix`.
    pub async fn list(&mut self, prefix: &str) -> Outcome {
        let prefix = prefix.into();
        self.call(Call::List { prefix }).await
    }

    /// Writes a key on the condition that it has not changed since it was `expected`.
    pub async fn swap(&mut self, key: &str, expected: i64) -> Outcome {
        let (key, value) = (key.to_owned(), self.recorder.value());
        self.call(Call::Swap {
            key,
            expected,
            value,
        })
        .await
    }
}

/// A connected client; keeps trying while the proxy is away.
async fn connect(endpoint: &str) -> Client {
    super::super::support::eventually("a client connects", async || {
        Client::connect([endpoint], None)
            .await
            .map_err(|error| error.to_string())
    })
    .await
}

/// Only these say for certain that nothing was done. Everything else, "unavailable" in particular,
/// may hide a write whose answer was lost.
fn certainly_failed(error: &etcd_client::Error) -> bool {
    use tonic::Code;
    matches!(
        error,
        etcd_client::Error::GRpcStatus(status)
            if matches!(
                status.code(),
                Code::InvalidArgument | Code::NotFound | Code::FailedPrecondition | Code::OutOfRange
            )
    )
}

async fn send(client: &mut Client, call: &Call) -> Result<Reply, etcd_client::Error> {
    match call {
        Call::Get { key } => {
            let answer = client.get(key.as_str(), None).await?;
            Ok(read(revision(answer.header()), answer.kvs()))
        }
        Call::List { prefix } => {
            let options = GetOptions::new().with_prefix();
            let answer = client.get(prefix.as_str(), Some(options)).await?;
            Ok(read(revision(answer.header()), answer.kvs()))
        }
        Call::Put { pairs, lease } => {
            let options = || (*lease != 0).then(|| PutOptions::new().with_lease(*lease));
            let header = if let [(key, value)] = &pairs[..] {
                let answer = client.put(key.as_str(), value.as_str(), options()).await?;
                revision(answer.header())
            } else {
                let puts: Vec<_> = pairs
                    .iter()
                    .map(|(key, value)| TxnOp::put(key.as_str(), value.as_str(), options()))
                    .collect();
                revision(client.txn(Txn::new().and_then(puts)).await?.header())
            };
            Ok(wrote(header, true))
        }
        Call::Delete { key } => {
            let options = DeleteOptions::new();
            let answer = client.delete(key.as_str(), Some(options)).await?;
            Ok(wrote(revision(answer.header()), answer.deleted() > 0))
        }
        Call::Swap {
            key,
            expected,
            value,
        } => {
            let unchanged = Compare::mod_revision(key.as_str(), CompareOp::Equal, *expected);
            let put = TxnOp::put(key.as_str(), value.as_str(), None);
            let txn = Txn::new().when([unchanged]).and_then([put]);
            let answer = client.txn(txn).await?;
            Ok(wrote(revision(answer.header()), answer.succeeded()))
        }
        Call::Revoke { lease } => {
            let answer = client.lease_revoke(*lease).await?;
            Ok(wrote(revision(answer.header()), false))
        }
    }
}

fn read(revision: i64, kvs: &[KeyValue]) -> Reply {
    Reply {
        revision,
        pairs: kvs.iter().map(pair).collect(),
        changed: false,
    }
}

fn wrote(revision: i64, changed: bool) -> Reply {
    Reply {
        revision,
        pairs: Vec::new(),
        changed,
    }
}

/// A pair as the history knows it.
pub fn pair(kv: &KeyValue) -> Pair {
    Pair {
        key: text(kv.key()),
        value: text(kv.value()),
        created: kv.create_revision(),
        modified: kv.mod_revision(),
        version: kv.version(),
        lease: kv.lease(),
    }
}

fn revision(header: Option<&ResponseHeader>) -> i64 {
    header.map_or(0, ResponseHeader::revision)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

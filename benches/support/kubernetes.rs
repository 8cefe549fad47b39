//! The requests with which Kubernetes uses etcd, and a load of them in which everything that is
//! written is read back: the same code for every server that speaks the API.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use segue::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use segue::proto::etcdserverpb::request_op::Request as Op;
use segue::proto::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest,
    TxnResponse,
};

use super::client;
use super::kv::Kv;

/// Keys that one list answers: those of a namespace.
pub const KEYS_PER_LIST: usize = 100;
/// The page size with which Kubernetes lists.
const LIST_LIMIT: i64 = 500;

/// The revision at which a key that is not there is created.
pub async fn create(kv: &Kv, key: &Bytes, value: &Bytes) -> i64 {
    let put = put(key, value);
    let reply = txn(kv, compare(key, 0), put, None).await;
    assert!(reply.succeeded, "{key:?} is new");
    revision(&reply)
}

/// The revision at which a key changes that was last changed at `seen`.
pub async fn update(kv: &Kv, key: &Bytes, value: &Bytes, seen: i64) -> i64 {
    let reply = txn(kv, compare(key, seen), put(key, value), Some(get_of(key))).await;
    assert!(reply.succeeded, "nobody else changes {key:?}");
    revision(&reply)
}

/// The revision at which a key goes that was last changed at `seen`.
pub async fn delete(kv: &Kv, key: &Bytes, seen: i64) -> i64 {
    let delete = Op::RequestDeleteRange(DeleteRangeRequest {
        key: key.clone(),
        ..DeleteRangeRequest::default()
    });
    let reply = txn(kv, compare(key, seen), delete, Some(get_of(key))).await;
    assert!(reply.succeeded, "nobody else deletes {key:?}");
    revision(&reply)
}

fn compare(key: &Bytes, mod_revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: key.clone(),
        target_union: Some(TargetUnion::ModRevision(mod_revision)),
        ..Compare::default()
    }
}

fn put(key: &Bytes, value: &Bytes) -> Op {
    Op::RequestPut(PutRequest {
        key: key.clone(),
        value: value.clone(),
        ..PutRequest::default()
    })
}

fn get_of(key: &Bytes) -> Op {
    Op::RequestRange(RangeRequest {
        key: key.clone(),
        ..RangeRequest::default()
    })
}

async fn txn(kv: &Kv, compare: Compare, success: Op, failure: Option<Op>) -> TxnResponse {
    let operation = |request| RequestOp {
        request: Some(request),
    };
    let request = TxnRequest {
        compare: vec![compare],
        success: vec![operation(success)],
        failure: failure.map(operation).into_iter().collect(),
    };
    kv.txn(&request).await
}

fn revision(reply: &TxnResponse) -> i64 {
    let header = reply.header.as_ref().expect("an answer has a header");
    assert!(header.revision > 0, "a change has a revision");
    header.revision
}

/// How often per second each request was answered.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// New keys.
    pub create: f64,
    /// Compare-and-swaps.
    pub update: f64,
    /// Deletes.
    pub delete: f64,
    /// All writes, by the time that they took together.
    pub write: f64,
    /// Gets of a key.
    pub get: f64,
    /// Lists of [`KEYS_PER_LIST`] keys.
    pub list: f64,
}

/// Keys that one round is about, named by their numbers.
#[derive(Clone, Copy)]
struct Keys {
    round: usize,
}

impl Keys {
    /// What all keys of a list begin with.
    fn namespace(self, number: usize) -> String {
        format!("/registry/pods/bench-{:04}-{number:06}/", self.round)
    }

    fn key(self, number: usize) -> Bytes {
        let namespace = self.namespace(number / KEYS_PER_LIST);
        format!("{namespace}pod-{number:026}").into()
    }

    fn list(self, number: usize) -> RangeRequest {
        let key = self.namespace(number).into_bytes();
        let mut end = key.clone();
        *end.last_mut().expect("a namespace ends with a slash") += 1;
        RangeRequest {
            key: key.into(),
            range_end: end.into(),
            limit: LIST_LIMIT,
            ..RangeRequest::default()
        }
    }
}

/// What is known of a key: the revision of its last write, and what its value was made of.
#[derive(Clone, Copy, Debug)]
struct Written {
    revision: i64,
    seed: usize,
}

/// Updated values are made of the number of the key and this.
const UPDATED: usize = 1 << 40;

/// Creates keys for `duration`, gets each of them, updates them for as long, lists all of them, and
/// deletes them. Whatever was written has to be found as it was written, and whatever was deleted
/// has to be gone. `round` must not have been used before on this store.
pub async fn cycle(
    connections: &[Kv],
    in_flight: usize,
    round: usize,
    duration: Duration,
) -> Rates {
    let clients = Clients {
        connections,
        in_flight,
    };
    let keys = Keys { round };
    let created = clients
        .each(Limit::Time(duration), move |kv, number| {
            async move {
                let key = keys.key(number);
                let revision = create(&kv, &key, &client::value(number)).await;
                Written {
                    revision,
                    seed: number,
                }
            }
            .boxed()
        })
        .await;
    let mut written = Arc::new(created.results.clone());
    assert!(!written.is_empty(), "something is created");
    let got = {
        let written = written.clone();
        clients
            .each(Limit::Count(written.len()), move |kv, number| {
                let written = written.clone();
                async move {
                    let key = keys.key(number);
                    let request = RangeRequest {
                        key: key.clone(),
                        ..RangeRequest::default()
                    };
                    check(
                        &kv.range(&request).await,
                        keys,
                        number,
                        &written[number..=number],
                    );
                }
                .boxed()
            })
            .await
    };
    let updated = {
        let written = written.clone();
        let limit = Limit::Either(duration, written.len());
        clients
            .each(limit, move |kv, number| {
                let seen = written[number].revision;
                async move {
                    let key = keys.key(number);
                    let new = number | UPDATED;
                    let revision = update(&kv, &key, &client::value(new), seen).await;
                    assert!(revision > seen, "revisions go up");
                    Written {
                        revision,
                        seed: new,
                    }
                }
                .boxed()
            })
            .await
    };
    let latest = Arc::get_mut(&mut written).expect("nobody else looks at it by now");
    latest[..updated.results.len()].copy_from_slice(&updated.results);
    let listed = clients.lists(keys, &written, duration).await;
    let deleted = {
        let written = written.clone();
        clients
            .each(Limit::Count(written.len()), move |kv, number| {
                let seen = written[number].revision;
                async move {
                    let revision = delete(&kv, &keys.key(number), seen).await;
                    assert!(revision > seen, "revisions go up");
                }
                .boxed()
            })
            .await
    };
    let lists = written.len().div_ceil(KEYS_PER_LIST);
    clients
        .each(Limit::Count(lists), move |kv, number| {
            async move {
                let left = kv.range(&keys.list(number)).await;
                assert!(left.kvs.is_empty(), "what was deleted is gone");
            }
            .boxed()
        })
        .await;
    let writes = created.results.len() + updated.results.len() + deleted.results.len();
    let took = created.took + updated.took + deleted.took;
    Rates {
        create: created.per_second(),
        update: updated.per_second(),
        delete: deleted.per_second(),
        write: writes as f64 / took.as_secs_f64(),
        get: got.per_second(),
        list: listed.per_second(),
    }
}

/// The answer has exactly these keys, the first of them being of number `first`.
fn check(reply: &RangeResponse, keys: Keys, first: usize, written: &[Written]) {
    assert_eq!(reply.kvs.len(), written.len(), "all keys are there");
    for (index, (pair, written)) in reply.kvs.iter().zip(written).enumerate() {
        assert_eq!(pair.key, keys.key(first + index));
        assert_eq!(pair.mod_revision, written.revision, "{:?}", pair.key);
        assert_eq!(pair.value, client::value(written.seed), "{:?}", pair.key);
    }
}

/// How many requests there are.
#[derive(Clone, Copy)]
enum Limit {
    /// As many as are answered in this time.
    Time(Duration),
    /// So many.
    Count(usize),
    /// As many as are answered in this time, but no more than so many.
    Either(Duration, usize),
    /// So many, and more until the time is up.
    Both(Duration, usize),
}

/// What came of the requests, in the order of their numbers.
struct Outcome<T> {
    results: Vec<T>,
    took: Duration,
}

impl<T> Outcome<T> {
    fn per_second(&self) -> f64 {
        self.results.len() as f64 / self.took.as_secs_f64()
    }
}

/// Clients that each send the next request as soon as one is answered.
struct Clients<'a> {
    connections: &'a [Kv],
    in_flight: usize,
}

impl Clients<'_> {
    /// Sends requests of number 0, 1, 2 …
    async fn each<T: Send + 'static>(
        &self,
        limit: Limit,
        send: impl Fn(Kv, usize) -> BoxFuture<'static, T> + Clone + Send + Sync + 'static,
    ) -> Outcome<T> {
        let next = Arc::new(AtomicUsize::new(0));
        let start = Instant::now();
        let tasks: Vec<_> = (0..self.in_flight)
            .map(|number| {
                let kv = self.connections[number % self.connections.len()].clone();
                let (next, send) = (next.clone(), send.clone());
                tokio::task::spawn(async move {
                    let mut results = Vec::new();
                    loop {
                        // A number that was taken is used, so that there are no gaps.
                        let timely = match limit {
                            Limit::Time(time) | Limit::Either(time, _) => start.elapsed() < time,
                            Limit::Count(_) | Limit::Both(..) => true,
                        };
                        if !timely {
                            return results;
                        }
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let wanted = match limit {
                            Limit::Time(_) => true,
                            Limit::Count(count) | Limit::Either(_, count) => number < count,
                            Limit::Both(time, count) => number < count || start.elapsed() < time,
                        };
                        if !wanted {
                            return results;
                        }
                        results.push((number, send(kv.clone(), number).await));
                    }
                })
            })
            .collect();
        let mut results = Vec::new();
        for task in tasks {
            results.extend(task.await.expect("a client goes on"));
        }
        let took = start.elapsed();
        results.sort_unstable_by_key(|(number, _)| *number);
        Outcome {
            results: results.into_iter().map(|(_, result)| result).collect(),
            took,
        }
    }

    /// Lists every namespace once, and again until the time is up.
    async fn lists(
        &self,
        keys: Keys,
        written: &Arc<Vec<Written>>,
        duration: Duration,
    ) -> Outcome<()> {
        let lists = written.len().div_ceil(KEYS_PER_LIST);
        let written = written.clone();
        self.each(Limit::Both(duration, lists), move |kv, number| {
            let written = written.clone();
            async move {
                let number = number % lists;
                let first = number * KEYS_PER_LIST;
                let last = written.len().min(first + KEYS_PER_LIST);
                let reply = kv.range(&keys.list(number)).await;
                check(&reply, keys, first, &written[first..last]);
            }
            .boxed()
        })
        .await
    }
}

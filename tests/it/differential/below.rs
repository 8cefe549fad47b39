//! What lies before the base revision, while a migration passes: the same questions to an etcd that
//! never migrates and to Segue. Behind the base a new store may count otherwise, so headers are
//! compared only until then.

use std::time::Duration;

use segue::proto::etcdserverpb as pb;
use segue::proto::mvccpb::Event;
use segue::store::open;
use segue::types::Reserved;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::ask::Client;
use super::script::{IntoOp, compact, delete, put, range, txn};
use crate::support::Etcd;
use crate::support::segue::Segue;
use pb::range_request::{SortOrder, SortTarget};
use pb::watch_request::RequestUnion;

/// How long events that should come may take.
const SOON: Duration = Duration::from_secs(20);

/// The etcd that never migrates, and Segue with a migration.
struct Twins {
    etcd: Client,
    segue: Client,
}

/// What does not depend on how revisions go on behind the base.
fn plain<T>(
    answer: Result<tonic::Response<T>, Status>,
    tell: impl FnOnce(T) -> String,
) -> Result<String, String> {
    match answer {
        Ok(response) => Ok(tell(response.into_inner())),
        Err(status) => Err(format!("{:?}: {}", status.code(), status.message())),
    }
}

impl Twins {
    async fn range(&mut self, request: &pb::RangeRequest) -> Result<String, String> {
        let tell = |mut response: pb::RangeResponse| {
            response.header = None;
            format!("{response:?}")
        };
        let etcd = plain(self.etcd.kv.range(request.clone()).await, tell);
        let segue = plain(self.segue.kv.range(request.clone()).await, tell);
        assert_eq!(
            etcd, segue,
            "etcd on the left, segue on the right: {request:?}"
        );
        etcd
    }

    async fn txn(&mut self, request: &pb::TxnRequest) {
        fn without_headers(response: &mut pb::TxnResponse) {
            use pb::response_op::Response;
            response.header = None;
            for op in &mut response.responses {
                match &mut op.response {
                    Some(Response::ResponseRange(range)) => range.header = None,
                    Some(Response::ResponsePut(put)) => put.header = None,
                    Some(Response::ResponseTxn(txn)) => without_headers(txn),
                    _ => {}
                }
            }
        }
        let tell = |mut response: pb::TxnResponse| {
            without_headers(&mut response);
            format!("{response:?}")
        };
        let etcd = plain(self.etcd.kv.txn(request.clone()).await, tell);
        let segue = plain(self.segue.kv.txn(request.clone()).await, tell);
        assert_eq!(
            etcd, segue,
            "etcd on the left, segue on the right: {request:?}"
        );
    }

    async fn put(&mut self, key: &str, value: &str) {
        self.etcd.kv.put(put(key, value)).await.unwrap();
        self.segue.kv.put(put(key, value)).await.unwrap();
    }

    async fn compact(&mut self, at: i64) -> Result<String, String> {
        let tell = |_: pb::CompactionResponse| String::new();
        let etcd = plain(self.etcd.kv.compact(compact(at)).await, tell);
        let segue = plain(self.segue.kv.compact(compact(at)).await, tell);
        assert_eq!(
            etcd, segue,
            "etcd on the left, segue on the right: compact {at}"
        );
        etcd
    }

    /// Everything up to `base`, in many ways.
    async fn read_all(&mut self, base: i64) {
        for revision in 1..base {
            for keys in [range("b", ""), range("a", "n"), range("\0", "\0")] {
                let asked = pb::RangeRequest { revision, ..keys };
                let _ = self.range(&asked).await;
                let read = asked.clone().op();
                self.txn(&txn(vec![], vec![read.clone()], vec![])).await;
                let nested = txn(vec![], vec![read], vec![]).op();
                self.txn(&txn(vec![], vec![range("none", "").op(), nested], vec![]))
                    .await;
                for asked in [
                    pb::RangeRequest {
                        count_only: true,
                        ..asked.clone()
                    },
                    pb::RangeRequest {
                        keys_only: true,
                        limit: 2,
                        ..asked.clone()
                    },
                    pb::RangeRequest {
                        sort_target: SortTarget::Mod.into(),
                        sort_order: SortOrder::Descend.into(),
                        ..asked.clone()
                    },
                    pb::RangeRequest {
                        min_mod_revision: 3,
                        max_create_revision: 4,
                        ..asked
                    },
                ] {
                    let _ = self.range(&asked).await;
                }
            }
        }
        for start in 1..=base {
            self.watch(start, base).await;
        }
    }

    /// The events from `start` up to `base`, or how the watch ends.
    async fn watch(&self, start: i64, base: i64) {
        let etcd = events(&self.etcd, start, base).await;
        let segue = events(&self.segue, start, base).await;
        assert_eq!(
            etcd, segue,
            "etcd on the left, segue on the right: from {start}"
        );
    }
}

/// The events of all keys from `start` up to `base`, whose change there has to be one; or the oldest
/// revision that there is something of.
async fn events(client: &Client, start: i64, base: i64) -> Result<Vec<Event>, i64> {
    let (requests, receiver) = mpsc::channel(1);
    let create = pb::WatchCreateRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        start_revision: start,
        prev_kv: true,
        ..pb::WatchCreateRequest::default()
    };
    let request = pb::WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    };
    requests.send(request).await.unwrap();
    let mut client = client.watch.clone();
    let delivered = async {
        let watching = client.watch(ReceiverStream::new(receiver)).await;
        let mut responses = watching.unwrap().into_inner();
        let mut events: Vec<Event> = Vec::new();
        loop {
            let response = responses.message().await.unwrap().expect("it goes on");
            if response.canceled {
                assert!(response.compact_revision > 0, "{response:?}");
                return Err(response.compact_revision);
            }
            events.extend(response.events);
            let revision = |event: &Event| event.kv.as_ref().unwrap().mod_revision;
            if events.last().is_some_and(|last| revision(last) >= base) {
                events.retain(|event| revision(event) <= base);
                return Ok(events);
            }
        }
    };
    let delivered = tokio::time::timeout(SOON, delivered).await;
    delivered.expect("there are more events")
}

/// A migration from `old` to `new`, with the same questions in each phase.
async fn the_past_stays_what_it_was(old: &str, new: &str) {
    let args = ["--old", old, "--new", new, "--start", "passthrough"];
    let (server, segue) = tokio::join!(Etcd::start(), Segue::start(args));
    let mut twins = Twins {
        etcd: Client::connect(&server.endpoint()).await,
        segue: Client::connect(&segue.endpoint()).await,
    };
    // Revisions 2 to 9.
    for (key, value) in [("a", "1"), ("b", "1"), ("c", "1"), ("b", "2"), ("a", "2")] {
        twins.put(key, value).await;
    }
    let deleted = delete("a", "b");
    twins.etcd.kv.delete_range(deleted.clone()).await.unwrap();
    twins.segue.kv.delete_range(deleted).await.unwrap();
    twins.put("d", "1").await;
    twins.put("b", "3").await;
    let base = 9;

    let started = segue.run(["start"]).await;
    assert_eq!(started.code, 0, "{started:?}");
    twins.put("b", "4").await;
    twins.read_all(base).await;
    assert_eq!(twins.compact(3).await, Ok(String::new()));
    assert!(twins.compact(3).await.is_err());
    assert!(twins.compact(2).await.is_err());
    twins.read_all(base).await;

    let switched = segue.run(["switch", "normal", "--when-ready"]).await;
    assert_eq!(switched.code, 0, "{switched:?}");
    segue
        .until("the normal phase", |status| status["phase"] == "normal")
        .await;
    twins.put("b", "5").await;
    twins.read_all(base).await;
    assert!(twins.compact(3).await.is_err());
    assert_eq!(twins.compact(5).await, Ok(String::new()));
    twins.read_all(base).await;

    // Behind the base the numbers may differ, so each is compacted at its own.
    for client in [&mut twins.etcd, &mut twins.segue] {
        let now = client.kv.range(range("b", "")).await.unwrap();
        let now = now.into_inner().header.unwrap().revision;
        client.kv.compact(compact(now)).await.unwrap();
    }
    let gone = pb::RangeRequest {
        revision: base - 1,
        ..range("b", "")
    };
    let refused = twins.range(&gone).await.unwrap_err();
    assert!(refused.contains("required revision has been compacted"));
    let seen = events(&twins.segue, base, base).await;
    assert!(seen.is_err_and(|oldest| oldest > base), "all is gone");
    assert!(twins.compact(base - 1).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn from_etcd_to_sqlite() {
    let (etcd, dir) = (Etcd::start().await, TempDir::new().unwrap());
    let new = format!("sqlite:{}", dir.path().join("new.db").display());
    the_past_stays_what_it_was(&etcd.url(), &new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_sqlite_to_etcd() {
    let (etcd, dir) = (Etcd::start().await, TempDir::new().unwrap());
    let old = format!("sqlite:{}", dir.path().join("old.db").display());
    // An old store has to be there.
    let made = open::open_new(&old.parse().unwrap(), &Reserved::default()).await;
    drop(made.unwrap());
    the_past_stays_what_it_was(&old, &etcd.url()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_etcd_to_etcd() {
    let (old, new) = tokio::join!(Etcd::start(), Etcd::start());
    the_past_stays_what_it_was(&old.url(), &new.url()).await;
}

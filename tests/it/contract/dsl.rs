//! Short words for the behaviours: a store under test, a watch under test.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use segue::store::{
    Claim, CopyUp, Guard, GuardedStore, Line, NewStore, Read, ReadReply, RecordTxn, RecordWrite,
    RequestError, Result, Store, StoreError, Watch, WatchItem, Watching,
};
use segue::types::{
    Change, Compare, CompareResult, CompareTarget, Delete, DeleteReply, Epoch, EventBatch, Grant,
    KeyRange, KeyValue, LeaseId, Op, Put, Range, RangeReply, Reply, Revision, Txn, TxnReply,
};

use super::{Fixture, NewFixture};

/// How long anything may take that should happen at once.
const SOON: Duration = Duration::from_secs(20);

/// A store under test.
pub struct Subject {
    pub store: Arc<dyn Store>,
    gapless: bool,
}

impl Subject {
    pub async fn of(fixture: &dyn Fixture) -> Self {
        Self::new(fixture.store().await, fixture.gapless())
    }

    pub fn new(store: Arc<dyn Store>, gapless: bool) -> Self {
        Self { store, gapless }
    }

    pub async fn put(&self, key: &str, value: &str) -> Revision {
        let put = Put::new(key.to_owned(), value.to_owned());
        self.store.put(put).await.unwrap().revision
    }

    pub async fn put_leased(&self, key: &str, value: &str, lease: LeaseId) -> Revision {
        self.store
            .put(leased(key, value, lease))
            .await
            .unwrap()
            .revision
    }

    pub async fn get(&self, key: &str) -> Option<KeyValue> {
        let mut reply = self.range(Range::key(key.to_owned())).await;
        assert!(reply.kvs.len() <= 1);
        assert_eq!(reply.count, reply.kvs.len());
        reply.kvs.pop()
    }

    pub async fn value(&self, key: &str) -> Option<String> {
        self.get(key).await.map(|kv| text(&kv.value))
    }

    pub async fn range(&self, request: Range) -> RangeReply {
        self.store.range(request).await.unwrap().reply
    }

    pub async fn keys(&self, request: Range) -> Vec<String> {
        keys_of(&self.range(request).await)
    }

    /// Every key that a client can see.
    pub async fn all(&self) -> Vec<String> {
        self.keys(Range::of(KeyRange::all())).await
    }

    pub async fn delete(&self, keys: KeyRange) -> DeleteReply {
        let request = Delete {
            keys,
            prev_kv: true,
        };
        self.store.delete(request).await.unwrap().reply
    }

    pub async fn txn(&self, txn: Txn) -> TxnReply {
        self.store.txn(txn).await.unwrap().reply
    }

    pub async fn revision(&self) -> Revision {
        let range = Range::key("no such key");
        self.store.range(range).await.unwrap().revision
    }

    /// Whether one change lies between the two revisions.
    pub fn assert_one_step(&self, before: Revision, after: Revision) {
        if self.gapless {
            assert_eq!(after, before.next(), "one change is one revision");
        } else {
            assert!(after > before, "a change takes a revision");
        }
    }

    /// Whether nothing lies between the two revisions that clients could tell.
    pub fn assert_no_step(&self, before: Revision, after: Revision) {
        if self.gapless {
            assert_eq!(after, before, "no change, no revision");
        } else {
            assert!(after >= before);
        }
    }

    pub async fn grant(&self, ttl_s: i64) -> LeaseId {
        let grant = Grant { id: None, ttl_s };
        self.store.grant(grant).await.unwrap().reply.id
    }

    pub async fn watch(&self, keys: KeyRange, start: Option<Revision>) -> Watched {
        self.watching(Watch::of(keys, start)).await
    }

    pub async fn watching(&self, request: Watch) -> Watched {
        Watched(self.store.watch(request).await.unwrap())
    }

    /// Waits until `key` is gone, which takes a lease its time.
    pub async fn wait_until_gone(&self, key: &str) {
        within(async {
            while self.get(key).await.is_some() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
    }
}

/// A watch under test.
pub struct Watched(pub Watching);

impl Watched {
    pub async fn next(&mut self) -> WatchItem {
        let item = within(self.0.items.next()).await;
        item.expect("a watch ends only behind its end")
    }

    pub async fn batch(&mut self) -> EventBatch {
        match self.next().await {
            WatchItem::Events(batch) => {
                assert!(!batch.events.is_empty(), "a batch has events");
                for event in &batch.events {
                    assert_eq!(event.revision(), batch.revision, "{batch:?}");
                }
                batch
            }
            item => panic!("events were expected, not {item:?}"),
        }
    }

    /// The next batch in words: `put a=1`, `delete a`.
    pub async fn words(&mut self) -> Vec<String> {
        words(&self.batch().await)
    }

    /// Nothing more is delivered for what happened up to `revision`.
    pub async fn assert_quiet(&mut self, revision: Revision) {
        self.0.progress.notify_one();
        match self.next().await {
            WatchItem::Progress(at) => assert!(at >= revision, "{at} < {revision}"),
            item => panic!("progress was expected, not {item:?}"),
        }
    }
}

pub fn words(batch: &EventBatch) -> Vec<String> {
    let word = |event: &segue::types::Event| match &event.change {
        Change::Put(kv) => format!("put {}={}", text(&kv.key), text(&kv.value)),
        Change::Delete { key, .. } => format!("delete {}", text(key)),
    };
    batch.events.iter().map(word).collect()
}

/// A new store under test: with a line that leaves claims, its base at [`BASE`], its epoch 1.
pub struct NewSubject {
    pub new: Arc<dyn NewStore>,
    pub handle: Arc<dyn GuardedStore>,
    pub store: Subject,
}

/// The base revision of the new stores under test.
pub const BASE: Revision = Revision(1000);

impl NewSubject {
    pub async fn of(fixture: &dyn NewFixture) -> Self {
        let new = fixture.new_store().await;
        set_line(&*new, Some(line(1))).await;
        Self::with(new, 1, fixture.gapless())
    }

    /// A handle on `new` at an epoch that leaves claims.
    pub fn with(new: Arc<dyn NewStore>, epoch: u64, gapless: bool) -> Self {
        let handle = new.guarded(guard(epoch));
        let store = Subject::new(handle.clone(), gapless);
        Self { new, handle, store }
    }

    pub async fn copy_up(&self, kvs: Vec<KeyValue>) -> usize {
        let copy_up = CopyUp { kvs, record: None };
        let copied = self.handle.copy_up(copy_up).await.unwrap();
        copied.expect("without a record there is nothing to expect")
    }

    /// The claims in words: `a=1` and `a whiteout`.
    pub async fn claims(&self, keys: KeyRange) -> Vec<String> {
        let values = usize::MAX;
        claims(&*self.handle, None, keys, values).await
    }

    pub async fn txn_over(&self, copies: Vec<KeyValue>, txn: Txn) -> Result<TxnReply> {
        Ok(self.handle.txn_over(copies, txn).await?.reply)
    }
}

/// The claims at a revision, in words.
pub async fn claims(
    handle: &dyn GuardedStore,
    at: Option<Revision>,
    keys: KeyRange,
    values: usize,
) -> Vec<String> {
    let reads = vec![Read::Claims { keys, values }];
    let mut replies = handle.snapshot(at, reads).await.unwrap().reply;
    let Some(ReadReply::Claims(claims)) = replies.pop() else {
        panic!("claims are answered with claims, not {replies:?}");
    };
    let word = |claim: &Claim| match claim {
        Claim::Live(kv) | Claim::Copied(kv) => format!("{}={}", text(&kv.key), text(&kv.value)),
        Claim::Whiteout(key) => format!("{} whiteout", text(key)),
    };
    claims.iter().map(word).collect()
}

/// The line of an epoch that leaves claims.
pub fn line(epoch: u64) -> Line {
    Line {
        epoch: Epoch(epoch),
        claims: true,
        base: BASE,
    }
}

pub fn guard(epoch: u64) -> Guard {
    Guard::Epoch {
        epoch: Epoch(epoch),
        claims: true,
    }
}

/// Sets the line together with the record `state`, as a transition does.
pub async fn set_line(new: &dyn NewStore, line: Option<Line>) {
    let current = new.records("state").await.unwrap();
    let version = current.first().map_or(0, |record| record.version);
    let txn = RecordTxn {
        expect: vec![("state".into(), version)],
        writes: vec![record("state", "a phase")],
        line: Some(line),
        ..RecordTxn::default()
    };
    assert!(new.write_records(txn).await.unwrap());
}

pub fn record(name: &str, value: &'static str) -> RecordWrite {
    RecordWrite {
        name: name.into(),
        value: Some(value.into()),
    }
}

/// A pair as it stands in an old store: created at 10, changed at 20 for the fifth time.
pub fn old(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.to_owned().into(),
        create_revision: Revision(10),
        mod_revision: Revision(20),
        version: 5,
        value: value.to_owned().into(),
        lease: LeaseId::NONE,
    }
}

pub fn leased(key: &str, value: &str, lease: LeaseId) -> Put {
    Put {
        lease: Some(lease),
        ..Put::new(key.to_owned(), value.to_owned())
    }
}

pub fn one(key: &str) -> KeyRange {
    KeyRange::One(key.to_owned().into())
}

pub fn span(start: &str, end: &str) -> KeyRange {
    KeyRange::span(start.to_owned(), Some(end.to_owned().into()))
}

pub fn prefix(prefix: &str) -> KeyRange {
    KeyRange::prefix(prefix.to_owned())
}

pub fn at(revision: Revision, keys: KeyRange) -> Range {
    Range {
        at: Some(revision),
        ..Range::of(keys)
    }
}

pub fn put_op(key: &str, value: &str) -> Op {
    Op::Put(Put::new(key.to_owned(), value.to_owned()))
}

pub fn delete_op(keys: KeyRange) -> Op {
    Op::Delete(Delete {
        keys,
        prev_kv: false,
    })
}

pub fn get_op(key: &str) -> Op {
    Op::Range(Range::key(key.to_owned()))
}

pub fn compare(keys: KeyRange, result: CompareResult, target: CompareTarget) -> Compare {
    Compare {
        keys,
        result,
        target,
    }
}

/// The condition that a key does not exist.
pub fn missing(key: &str) -> Compare {
    compare(one(key), CompareResult::Equal, CompareTarget::Version(0))
}

/// Transactions that a store may take the wrong way when a guard does not hold: each with one branch that
/// writes `key`, and one that does something else, or fails. Without conditions, with one that holds and with
/// one that does not.
pub fn txns_about(key: &str) -> Vec<Txn> {
    let keep_missing = Op::Put(Put {
        value: None,
        ..Put::new("missing", "")
    });
    let others = [
        vec![],
        vec![get_op(key)],
        vec![delete_op(KeyRange::all())],
        vec![Op::Txn(Txn::of(vec![put_op(key, "nested")]))],
        vec![Op::Range(at(Revision(1), one(key)))],
        vec![Op::Range(at(Revision(i64::from(i32::MAX)), one(key)))],
        vec![keep_missing],
    ];
    let exists = compare(one(key), CompareResult::Greater, CompareTarget::Version(0));
    let mut txns = Vec::new();
    for compares in [vec![], vec![missing(key)], vec![exists]] {
        for other in &others {
            let put = vec![put_op(key, "written")];
            for (success, failure) in [(put.clone(), other.clone()), (other.clone(), put)] {
                txns.push(Txn {
                    compares: compares.clone(),
                    success,
                    failure,
                });
            }
        }
    }
    txns
}

pub fn range_reply(reply: &Reply) -> &RangeReply {
    match reply {
        Reply::Range(range) => range,
        reply => panic!("a range is answered with a range, not {reply:?}"),
    }
}

pub fn keys_of(reply: &RangeReply) -> Vec<String> {
    reply.kvs.iter().map(|kv| text(&kv.key)).collect()
}

pub fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a request is refused with.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(result: Result<T>) -> RequestError {
    match result {
        Err(StoreError::Request(error)) => error,
        other => panic!("a refusal was expected, not {other:?}"),
    }
}

#[track_caller]
pub fn assert_compacted<T: std::fmt::Debug>(result: Result<T>) {
    let error = refused(result);
    assert!(matches!(error, RequestError::Compacted(_)), "{error:?}");
}

/// The output of what must not take long.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    let output = tokio::time::timeout(SOON, future).await;
    output.expect("it happened in time")
}

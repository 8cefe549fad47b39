//! Random requests on few keys, so that they meet, and one way to carry them out on any store.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use segue::store::{Result, Store};
use segue::types::{
    Answer, Compare, CompareResult, CompareTarget, Content, Delete, Direction, Grant, KeyRange,
    LeaseId, Op, Put, Range, Revision, RevisionFilter, SortTarget, Txn,
};

/// A request. As it is made up, the revisions that it reads or compacts at are counted back from the
/// present; [`Request::at`] turns them into real ones.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    Range(Range),
    Put(Put),
    Delete(Delete),
    Txn(Txn),
    Grant(LeaseId),
    Revoke(LeaseId),
    TimeToLive(LeaseId),
    Leases,
    Compact(Revision),
}

/// What a request answered, without what clocks decide.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome(pub(crate) Result<(Revision, String)>);

/// Keys that requests are about: neighbours, prefixes of each other, and one after the reserved ones.
const KEYS: [&str; 10] = [
    "a", "a/", "a/1", "a/2", "b", "b\0", "b/1", "c", "t", "t/\u{7f}",
];

pub(crate) fn key() -> impl Strategy<Value = Bytes> {
    proptest::sample::select(&KEYS[..]).prop_map(Bytes::from)
}

pub(crate) fn keys() -> impl Strategy<Value = KeyRange> {
    prop_oneof![
        4 => key().prop_map(KeyRange::One),
        1 => Just(KeyRange::all()),
        2 => key().prop_map(KeyRange::prefix),
        1 => key().prop_map(|start| KeyRange::span(start, None)),
        2 => (key(), key()).prop_map(|(start, end)| KeyRange::span(start, Some(end))),
    ]
}

fn revision() -> impl Strategy<Value = Revision> {
    (0i64..12).prop_map(Revision)
}

fn range() -> impl Strategy<Value = Range> {
    let sort = proptest::sample::select(vec![
        SortTarget::Key,
        SortTarget::Key,
        SortTarget::Key,
        SortTarget::Version,
        SortTarget::Create,
        SortTarget::Mod,
        SortTarget::Value,
    ]);
    let direction = proptest::sample::select(vec![
        Direction::Ascending,
        Direction::Ascending,
        Direction::Descending,
        Direction::Unsaid,
    ]);
    let content = proptest::sample::select(vec![
        Content::Full,
        Content::Full,
        Content::KeysOnly,
        Content::CountOnly,
    ]);
    let filter = weighted(0.2, (revision(), revision(), revision(), revision()));
    (keys(), 0usize..4, sort, direction, content, filter).prop_map(
        |(keys, limit, sort, direction, content, filter)| Range {
            limit,
            sort,
            direction,
            content,
            filter: filter.map_or_else(
                RevisionFilter::default,
                |(min_mod, max_mod, min_create, max_create)| RevisionFilter {
                    min_mod,
                    max_mod,
                    min_create,
                    max_create,
                },
            ),
            ..Range::of(keys)
        },
    )
}

fn lease() -> impl Strategy<Value = LeaseId> {
    (1i64..4).prop_map(LeaseId)
}

fn put() -> impl Strategy<Value = Put> {
    let value = weighted(0.9, "[a-c]{0,2}".prop_map(Bytes::from));
    let lease = weighted(
        0.9,
        weighted(0.2, lease()).prop_map(Option::unwrap_or_default),
    );
    (key(), value, lease, any::<bool>()).prop_map(|(key, value, lease, prev_kv)| Put {
        // Of a missing key and a missing lease, etcd tells the one in a put and the other in a
        // transaction. One fault at a time.
        lease: lease.filter(|lease| value.is_some() || !lease.is_some()),
        key,
        value,
        prev_kv,
    })
}

fn delete() -> impl Strategy<Value = Delete> {
    (keys(), any::<bool>()).prop_map(|(keys, prev_kv)| Delete { keys, prev_kv })
}

fn compare() -> impl Strategy<Value = Compare> {
    let result = proptest::sample::select(vec![
        CompareResult::Equal,
        CompareResult::Equal,
        CompareResult::Greater,
        CompareResult::Less,
        CompareResult::NotEqual,
    ]);
    let target = prop_oneof![
        (0i64..3).prop_map(CompareTarget::Version),
        revision().prop_map(CompareTarget::Create),
        revision().prop_map(CompareTarget::Mod),
        "[a-c]{0,2}".prop_map(|value| CompareTarget::Value(value.into())),
        (0i64..3).prop_map(|id| CompareTarget::Lease(LeaseId(id))),
    ];
    (keys(), result, target).prop_map(|(keys, result, target)| Compare {
        keys,
        result,
        target,
    })
}

fn ops(depth: u32) -> BoxedStrategy<Vec<Op>> {
    let leaf = prop_oneof![
        range().prop_map(Op::Range),
        put().prop_map(Op::Put),
        put().prop_map(Op::Put),
        delete().prop_map(Op::Delete),
    ];
    if depth == 0 {
        return vec(leaf, 0..3).boxed();
    }
    vec(
        prop_oneof![5 => leaf.boxed(), 1 => txn(depth - 1).prop_map(Op::Txn).boxed()],
        0..3,
    )
    .boxed()
}

fn txn(depth: u32) -> BoxedStrategy<Txn> {
    (vec(compare(), 0..3), ops(depth), ops(depth))
        .prop_map(|(compares, success, failure)| Txn {
            compares,
            success,
            failure,
        })
        .boxed()
}

/// Whether some path through `ops` writes a key twice, which servers refuse before a store sees it.
fn writes_twice(ops: &[Op], written: &mut Vec<KeyRange>) -> bool {
    ops.iter().any(|op| match op {
        Op::Range(_) => false,
        Op::Put(put) => {
            let key = KeyRange::One(put.key.clone());
            let twice = written.iter().any(|keys| keys.intersect(&key).is_some());
            written.push(key);
            twice
        }
        Op::Delete(delete) => {
            let twice = written
                .iter()
                .any(|keys| keys.intersect(&delete.keys).is_some());
            written.push(delete.keys.clone());
            twice
        }
        Op::Txn(txn) => {
            let mut other = written.clone();
            let twice =
                writes_twice(&txn.success, written) || writes_twice(&txn.failure, &mut other);
            written.extend(other);
            twice
        }
    })
}

/// A random request. Transactions write no key twice, and requests carry at most a little history.
pub(crate) fn request() -> impl Strategy<Value = Request> {
    let txn = txn(2).prop_filter("writes a key twice", |txn| {
        !writes_twice(&txn.success, &mut Vec::new()) && !writes_twice(&txn.failure, &mut Vec::new())
    });
    prop_oneof![
        6 => (range(), weighted(0.3, 0i64..6)).prop_map(|(range, back)| Request::Range(Range { at: back.map(Revision), ..range })),
        6 => put().prop_map(Request::Put),
        3 => delete().prop_map(Request::Delete),
        6 => txn.prop_map(Request::Txn),
        2 => lease().prop_map(Request::Grant),
        1 => lease().prop_map(Request::Revoke),
        1 => lease().prop_map(Request::TimeToLive),
        1 => Just(Request::Leases),
        1 => (0i64..6).prop_map(|back| Request::Compact(Revision(back))),
    ]
}

impl Request {
    /// The request at a store that stands at `now`; its past begins at `floor`.
    pub(crate) fn at(self, now: Revision, floor: Revision) -> Self {
        let past = |back: Revision| Revision((now.0 - back.0).max(floor.0));
        match self {
            Self::Range(range) => Self::Range(Range {
                at: range.at.map(past),
                ..range
            }),
            Self::Compact(back) => Self::Compact(past(back)),
            other => other,
        }
    }

    /// Carries the request out on `store`.
    pub(crate) async fn carry_out(self, store: &dyn Store) -> Outcome {
        let outcome = match self {
            Self::Range(range) => told(store.range(range).await),
            Self::Put(put) => told(store.put(put).await),
            Self::Delete(delete) => told(store.delete(delete).await),
            Self::Txn(txn) => told(store.txn(txn).await),
            Self::Grant(id) => told(
                store
                    .grant(Grant {
                        id: Some(id),
                        ttl_s: 3600,
                    })
                    .await,
            ),
            Self::Revoke(id) => told(store.revoke(id).await),
            Self::TimeToLive(id) => told(store.time_to_live(id, true).await.map(|answer| {
                answer.map(|status| status.map(|status| (status.granted_ttl_s, status.keys)))
            })),
            Self::Leases => told(store.leases().await),
            Self::Compact(at) => told(store.compact(at).await),
        };
        Outcome(outcome)
    }
}

fn told<T: std::fmt::Debug>(answer: Result<Answer<T>>) -> Result<(Revision, String)> {
    answer.map(|answer| (answer.revision, format!("{:?}", answer.reply)))
}

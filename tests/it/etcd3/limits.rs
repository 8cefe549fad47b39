//! How large a transaction may be: etcd counts what Segue adds to it as well.

use std::sync::Arc;

use segue::migration::copier::{Copier, Step};
use segue::migration::ledger::Ledger;
use segue::overlay::Overlay;
use segue::store::memory::Memory;
use segue::store::open::replayed_bytes_max;
use segue::store::{
    AsOld, CopyUp, Guard, RecordWrite, Replay, Replayed, RequestError, Store as _, StoreError,
    StoreUrl,
};
use segue::types::{
    Compare, CompareResult, CompareTarget, Content, Grant, KeyRange, KeyValue, LeaseId, Op, Put,
    Range, Reserved, Revision, Txn,
};

use super::{open, under_an_epoch};
use crate::support::Etcd;

/// What etcd takes, and the API in front of it.
const OPS_MAX: usize = 128;

fn conditions(count: usize) -> Vec<Compare> {
    let missing = |n| Compare {
        keys: KeyRange::One(format!("none{n}").into()),
        result: CompareResult::Equal,
        target: CompareTarget::Version(0),
    };
    (0..count).map(missing).collect()
}

fn puts() -> Vec<Op> {
    let put = |n| Op::Put(Put::new(format!("k{n:03}"), "v"));
    (0..OPS_MAX).map(put).collect()
}

#[tokio::test]
async fn a_transaction_of_the_full_limit_may_need_a_higher_one_in_the_new_store() {
    let fits = Txn::of(puts());
    let conditional = Txn {
        compares: conditions(1),
        ..Txn::of(puts())
    };
    let many_conditions = Txn {
        compares: conditions(OPS_MAX),
        ..Txn::of(vec![Op::Put(Put::new("k", "v"))])
    };
    let writes_in_both = Txn {
        compares: conditions(1),
        success: vec![Op::Put(Put::new("k", "v"))],
        failure: puts(),
    };
    let narrow = Etcd::start().await;
    let wide = Etcd::with().args(["--max-txn-ops=256"]).start().await;
    let migrating = async |etcd| under_an_epoch(open(etcd).await, Revision(100)).await;
    let (narrow, wide) = (migrating(&narrow).await, migrating(&wide).await);
    for txn in [many_conditions, writes_in_both] {
        let refused = narrow.txn(txn.clone()).await.unwrap_err();
        assert_eq!(
            refused,
            StoreError::Request(RequestError::TooManyOperations)
        );
        let found = narrow.range(Range::of(KeyRange::all())).await.unwrap();
        assert_eq!(found.reply.count, 0, "nothing was done");
        assert!(wide.txn(txn).await.unwrap().reply.succeeded);
    }
    for txn in [fits, conditional] {
        assert!(narrow.txn(txn.clone()).await.unwrap().reply.succeeded);
        assert!(wide.txn(txn).await.unwrap().reply.succeeded);
    }
}

/// Bytes of a request that etcd takes, unless it is told otherwise.
const REQUEST_BYTES: usize = 3 * 512 * 1024;

fn pair(key: &'static str, value_len: usize) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: vec![b'v'; value_len].into(),
        create_revision: Revision(3),
        mod_revision: Revision(7),
        version: 2,
        lease: LeaseId::NONE,
    }
}

fn record() -> RecordWrite {
    RecordWrite {
        name: "mirror".into(),
        value: Some(vec![b'r'; 4096].into()),
    }
}

#[tokio::test]
async fn a_wide_read_is_one_transaction_however_many_parts_are_copied() {
    const PARTS: usize = 60;
    let etcd = Etcd::start().await;
    let new = under_an_epoch(open(&etcd).await, Revision(100)).await;
    let old = Arc::new(Memory::new());
    let key = |number: usize| format!("k{number:03}");
    for number in 0..2 * PARTS {
        old.put(Put::new(key(number), "old")).await.unwrap();
    }
    let old = Arc::new(AsOld::new(old, "old".into()));
    // Every other key is.
    let copied = (0..PARTS).map(|number| key(2 * number));
    let kvs = copied.clone().map(|key| KeyValue {
        key: key.into(),
        ..pair("", 1)
    });
    let copy_up = CopyUp {
        kvs: kvs.collect(),
        record: None,
    };
    new.copy_up(copy_up).await.unwrap();
    let overlay = Overlay::new(old, new, Reserved::default());
    overlay.set_copied(copied.map(KeyRange::prefix).collect());
    for (limit, content) in [
        (0, Content::Full),
        (7, Content::Full),
        (0, Content::CountOnly),
    ] {
        let range = Range {
            limit,
            content,
            ..Range::of(KeyRange::all())
        };
        let reply = overlay.range(range).await.unwrap().reply;
        assert_eq!(reply.count, 2 * PARTS, "{limit} {content:?}");
        for (number, kv) in reply.kvs.iter().enumerate() {
            let value = if number % 2 == 0 { "v" } else { "old" };
            assert_eq!(
                (&kv.key[..], &kv.value[..]),
                (key(number).as_bytes(), value.as_bytes())
            );
        }
    }
}

#[tokio::test]
async fn a_pair_of_the_largest_size_is_replayed_together_with_its_claim() {
    let etcd = Etcd::start().await;
    let old = open(&etcd).await;
    let url: StoreUrl = etcd.url().parse().unwrap();
    let most = replayed_bytes_max(&url, REQUEST_BYTES).unwrap();
    let largest = pair("k", most - 2);
    let replay = Replay {
        changes: vec![
            Replayed::Put(pair("a", 1)),
            Replayed::Put(largest.clone()),
            Replayed::Put(pair("z", 1)),
        ],
        record: (record(), 0),
    };
    assert_eq!(old.replay(replay).await, Ok(true));
    let last = Replay {
        changes: vec![Replayed::Put(largest.clone())],
        record: (record(), 1),
    };
    assert_eq!(old.replay(last).await, Ok(true));
    let there = old.guarded(Guard::None).range(Range::key("k")).await;
    assert_eq!(there.unwrap().reply.kvs[0].value, largest.value);
    assert_eq!(old.records("mirror").await.unwrap()[0].version, 2);
}

#[tokio::test]
async fn a_pair_is_copied_up_as_long_as_it_fits_with_its_claim_alone() {
    let etcd = Etcd::start().await;
    let new = open(&etcd).await;
    let guarded = under_an_epoch(new.clone(), Revision(100)).await;
    // What is written behind it does not take its place.
    let copy_up = CopyUp {
        kvs: vec![pair("a", 1), pair("k", REQUEST_BYTES - 512)],
        record: Some((record(), 0)),
    };
    assert_eq!(guarded.copy_up(copy_up).await, Ok(Some(2)));
    assert_eq!(new.records("mirror").await.unwrap()[0].version, 1);
    let there = guarded.range(Range::key("k")).await.unwrap().reply;
    assert_eq!(there.kvs, [pair("k", REQUEST_BYTES - 512)]);
}

#[tokio::test]
async fn many_leased_keys_are_copied_although_a_lease_is_missing() {
    let etcd = Etcd::start().await;
    let new = open(&etcd).await;
    let source = Arc::new(Memory::new());
    let grant = |id| Grant {
        id: Some(LeaseId(id)),
        ttl_s: 600,
    };
    for id in [5, 6] {
        source.grant(grant(id)).await.unwrap();
    }
    for n in 0..200 {
        let put = Put {
            lease: Some(LeaseId(if n == 20 { 6 } else { 5 })),
            ..Put::new(format!("k{n:03}"), "held")
        };
        source.put(put).await.unwrap();
    }
    let all = Range::of(KeyRange::all());
    let there = source.range(all.clone()).await.unwrap();
    let guarded = under_an_epoch(new.clone(), there.revision).await;
    guarded.grant(grant(5)).await.unwrap();
    let old = Arc::new(AsOld::new(source, "old".into()));
    let copier = Copier::new(Ledger::new(new), old, guarded.clone());
    let done = copier.copy(&there.reply.kvs, None).await;
    assert_eq!(done, Ok(Step::Done));
    assert_eq!(guarded.range(all).await.unwrap().reply, there.reply);
}

//! How large a transaction may be: etcd counts what Segue adds to it as well.

use std::sync::Arc;

use segue::migration::copier::{Copier, Step};
use segue::migration::ledger::Ledger;
use segue::store::memory::Memory;
use segue::store::{AsOld, RequestError, Store as _, StoreError};
use segue::types::{
    Compare, CompareResult, CompareTarget, Grant, KeyRange, LeaseId, Op, Put, Range, Revision, Txn,
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

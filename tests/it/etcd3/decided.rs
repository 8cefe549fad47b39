//! Conditions that are decided before the transaction, while others change what they are about.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use segue::store::{CopyUp, GuardedStore, StoreError};
use segue::types::{
    Compare, CompareResult, CompareTarget, KeyRange, KeyValue, LeaseId, Op, Put, Range, Revision,
    Txn,
};

use super::{open, under_an_epoch};
use crate::support::Etcd;

const MEMBERS: usize = 6;
const TURNS: usize = 10;

/// A store whose key `count` was copied up in version 7 with the value 0.
async fn counter(etcd: &Etcd) -> Arc<dyn GuardedStore> {
    let store = under_an_epoch(open(etcd).await, Revision(100)).await;
    let kv = KeyValue {
        key: "count".into(),
        create_revision: Revision(5),
        mod_revision: Revision(50),
        version: 7,
        value: "0".into(),
        lease: LeaseId::NONE,
    };
    let copy_up = CopyUp {
        kvs: vec![kv],
        record: None,
    };
    assert_eq!(store.copy_up(copy_up).await.unwrap(), Some(1));
    store
}

/// Counts up under a condition made of the pair that was read, until it holds.
async fn count_up(store: &dyn GuardedStore, condition: fn(&KeyValue) -> Compare) {
    loop {
        let kv = store
            .range(Range::key("count"))
            .await
            .unwrap()
            .reply
            .kvs
            .remove(0);
        let count: usize = std::str::from_utf8(&kv.value).unwrap().parse().unwrap();
        let txn = Txn {
            compares: vec![condition(&kv)],
            ..Txn::of(vec![Op::Put(Put::new("count", (count + 1).to_string()))])
        };
        match store.txn(txn).await {
            Ok(answer) if answer.reply.succeeded => return,
            // Many want the same: not this time, or not for a while.
            Ok(_) | Err(StoreError::Unavailable(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

async fn nobody_is_overwritten(condition: fn(&KeyValue) -> Compare) {
    let etcd = Etcd::start().await;
    let store = counter(&etcd).await;
    let counting = join_all((0..MEMBERS).map(|_| async {
        for _ in 0..TURNS {
            count_up(&*store, condition).await;
        }
    }));
    let counted = tokio::time::timeout(Duration::from_mins(1), counting).await;
    assert!(counted.is_ok(), "somebody always gets through");
    let kv = store
        .range(Range::key("count"))
        .await
        .unwrap()
        .reply
        .kvs
        .remove(0);
    assert_eq!(kv.value, (MEMBERS * TURNS).to_string());
    assert_eq!(kv.version, 7 + i64::try_from(MEMBERS * TURNS).unwrap());
    assert_eq!(kv.create_revision, Revision(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_version_of_a_copied_key_is_compared_and_swapped() {
    nobody_is_overwritten(|kv| Compare {
        keys: KeyRange::One("count".into()),
        result: CompareResult::Equal,
        target: CompareTarget::Version(kv.version),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mod_revisions_of_a_range_with_a_copied_key_are_compared_and_swapped() {
    nobody_is_overwritten(|kv| Compare {
        keys: KeyRange::prefix("count"),
        result: CompareResult::Less,
        target: CompareTarget::Mod(kv.mod_revision.next()),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mod_revision_of_a_copied_key_is_compared_and_swapped() {
    nobody_is_overwritten(|kv| Compare {
        keys: KeyRange::One("count".into()),
        result: CompareResult::Equal,
        target: CompareTarget::Mod(kv.mod_revision),
    })
    .await;
}

//! etcd as the store that the data comes from.

use segue::store::{Guard, Line, OldStore, PageSize, RecordTxn, StoreUrl, open_old};
use segue::types::{
    Content, Delete, Epoch, Grant, KeyRange, LeaseId, Op, Put, Reserved, Revision, Txn,
};
use std::sync::Arc;

use super::open;
use crate::support::Etcd;

async fn old(etcd: &Etcd) -> Arc<dyn OldStore> {
    let url: StoreUrl = etcd.url().parse().unwrap();
    open_old(&url, &Reserved::default()).await.unwrap()
}

#[tokio::test]
async fn every_key_is_scanned_once_in_order_with_its_numbers() {
    let etcd = Etcd::start().await;
    let store = open(&etcd).await.guarded(Guard::None);
    // Large ones among small ones, on both sides of the reserved keys.
    let key = |number: usize| {
        format!(
            "{}{number:04}",
            if number.is_multiple_of(2) { "a" } else { "z" }
        )
    };
    for start in (0..1200).step_by(60) {
        let put = |number: usize| {
            let size = if number.is_multiple_of(100) {
                20_000
            } else {
                10
            };
            Op::Put(Put::new(key(number), vec![b'v'; size]))
        };
        let ops = (start..start + 60).map(put).collect();
        store.txn(Txn::of(ops)).await.unwrap();
    }
    store.put(Put::new("segue/switch", "")).await.unwrap();
    let lease = Grant {
        id: Some(LeaseId(77)),
        ttl_s: 600,
    };
    store.grant(lease).await.unwrap();
    let leased = Put {
        lease: Some(LeaseId(77)),
        ..Put::new("a0000", "leased")
    };
    let last = store.put(leased).await.unwrap().revision;

    let old = old(&etcd).await;
    assert_eq!(old.revision().await.unwrap(), last);
    assert_eq!(old.count(KeyRange::all()).await.unwrap(), 1200);
    for limit in [1000, 100_000] {
        let mut scanned = Vec::new();
        let mut rest = Some(KeyRange::all());
        let mut pages = 0;
        while let Some(keys) = rest {
            let page = old
                .scan(keys.clone(), PageSize::pairs(limit), Content::Full)
                .await
                .unwrap();
            assert!(page.kvs.len() <= limit && page.rejects.is_empty());
            rest = match page.kvs.last() {
                Some(last) if page.more => keys.after(&last.key),
                _ => None,
            };
            scanned.extend(page.kvs);
            pages += 1;
        }
        assert!(pages < 10, "{pages}");
        let keys: Vec<_> = scanned.iter().map(|kv| kv.key.clone()).collect();
        let mut expected: Vec<_> = (0..1200).map(key).collect();
        expected.sort();
        assert_eq!(keys, expected);
        assert_eq!(scanned[0].version, 2);
        assert_eq!(scanned[0].lease, LeaseId(77));
        assert_eq!(scanned[0].mod_revision, last);
        assert!(scanned[0].create_revision < last);
    }
    let keys: Vec<_> = (0..300).map(|n| key(n * 10).into()).collect();
    let got = old.get(keys.clone()).await.unwrap();
    for (number, (key, kv)) in keys.iter().zip(&got).enumerate() {
        let found = kv.as_ref().map(|kv| &kv.key);
        assert_eq!(found, (number < 120).then_some(key), "{number}");
    }
    let attached = old.leases().await.unwrap();
    assert_eq!(attached.len(), 1);
    assert_eq!((attached[0].id, attached[0].ttl_s), (LeaseId(77), 600));
    assert_eq!(attached[0].keys, ["a0000"]);
    let bare = old
        .scan(KeyRange::all(), PageSize::pairs(5), Content::KeysOnly)
        .await
        .unwrap();
    assert!(bare.more && bare.kvs.iter().all(|kv| kv.value.is_empty()));
}

#[tokio::test]
async fn the_new_store_of_an_unfinished_migration_is_refused() {
    let etcd = Etcd::start().await;
    let store = open(&etcd).await;
    let line = Line {
        epoch: Epoch(1),
        claims: true,
        base: Revision(100),
    };
    let set = RecordTxn {
        line: Some(Some(line)),
        ..RecordTxn::default()
    };
    assert!(store.write_records(set).await.unwrap());
    let url: StoreUrl = etcd.url().parse().unwrap();
    let refused = open_old(&url, &Reserved::default()).await.err().unwrap();
    assert!(refused.to_string().contains("not completed"), "{refused}");
    let delete = Delete {
        keys: KeyRange::all(),
        prev_kv: false,
    };
    // Nobody gets at the line through the store.
    let plain = store.guarded(Guard::None);
    plain.delete(delete).await.unwrap();
    assert_eq!(store.line().await.unwrap(), Some(line));
    assert!(plain.put(Put::new("segue/_/line", "")).await.is_err());
}

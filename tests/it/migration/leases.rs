//! Leases while a migration opens: their holders renew them, and the renewals wait with everything else.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use segue::migration::status::Status;
use segue::store::memory::Memory;
use segue::store::{Guard, StoreUrl, open_old};
use segue::types::{LeaseId, Op, Put, Reserved, Txn};

use super::fleet::{Stores, get, grant};
use super::picky::{Door, Picky, Taste};
use crate::etcd3::open;
use crate::support::Etcd;

/// The short-lived leases, and for how many seconds they live.
const SHORT: std::ops::RangeInclusive<i64> = 1..=180;
const TTL_S: i64 = 5;

/// The others.
const LONG: std::ops::RangeInclusive<i64> = 181..=200;
const LONG_TTL_S: i64 = 3600;

/// All leases together take longer to grant than the short ones live.
static DOOR: Door = Door::new(Duration::from_millis(40));

fn held(id: i64) -> String {
    format!("held/{id:03}")
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_live_on_for_as_long_as_an_opening_takes() {
    let etcd = Etcd::start().await;
    let url: StoreUrl = etcd.url().parse().unwrap();
    let taste = Taste {
        pairs: 1000,
        values: false,
        rival: None,
        door: Some(&DOOR),
    };
    let stores = Stores {
        source: open(&etcd).await.guarded(Guard::None),
        old: open_old(&url, &Reserved::default()).await.unwrap(),
        new: Arc::new(Picky(Memory::new(), taste)),
    };
    let source = &*stores.source;
    let all = || {
        let short = SHORT.map(|id| (id, TTL_S));
        short.chain(LONG.map(|id| (id, LONG_TTL_S)))
    };
    join_all(all().map(|(id, ttl_s)| grant(source, id, ttl_s))).await;
    let puts = all().map(|(id, _)| {
        Op::Put(Put {
            lease: Some(LeaseId(id)),
            ..Put::new(held(id), "held")
        })
    });
    let puts: Vec<_> = puts.collect();
    for some in puts.chunks(100) {
        source.txn(Txn::of(some.to_vec())).await.unwrap();
    }

    let member = stores.join("a").await.unwrap();
    let open = |status: &Status| status.stage == "open";
    member.until("open", open).await;
    let store = member.store();
    for (id, ttl_s) in all() {
        let found = store.time_to_live(LeaseId(id), true).await.unwrap().reply;
        let found = found.unwrap_or_else(|| panic!("lease {id} is gone"));
        assert_eq!(
            (found.granted_ttl_s, &*found.keys),
            (ttl_s, &[held(id).into()][..])
        );
        let renewed = store.keep_alive(LeaseId(id)).await.unwrap().reply;
        assert_eq!(renewed, Some(ttl_s));
        let kv = get(&*store, &held(id)).await.expect("the key is there");
        assert_eq!(kv.lease, LeaseId(id));
    }
    assert!(DOOR.most() > 1, "leases are granted one after another");
}

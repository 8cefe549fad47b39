//! etcd v3 as a store, on real servers, besides what the contract asks of every store.

mod against_memory;
mod decided;
mod ended;
mod failures;
mod limits;
mod old;
mod overtaken;
mod quiet;
mod replay;
mod settle;

use std::sync::Arc;

use segue::store::{Guard, GuardedStore, Line, NewStore, RecordTxn, StoreUrl, open_new};
use segue::types::{Epoch, Reserved, Revision};

use crate::support::Etcd;

/// Opens the server as a new store.
pub(crate) async fn open(etcd: &Etcd) -> Arc<dyn NewStore> {
    let url: StoreUrl = etcd.url().parse().unwrap();
    open_new(&url, &Reserved::default()).await.unwrap()
}

/// The store in a migration behind `base`, whose claims it leaves.
async fn under_an_epoch(new: Arc<dyn NewStore>, base: Revision) -> Arc<dyn GuardedStore> {
    let (epoch, claims) = (Epoch(1), true);
    let line = Line {
        epoch,
        claims,
        base,
    };
    let set = RecordTxn {
        line: Some(Some(line)),
        ..RecordTxn::default()
    };
    assert!(new.write_records(set).await.unwrap());
    new.guarded(Guard::Epoch { epoch, claims })
}

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

use segue::store::{NewStore, StoreUrl, open_new};
use segue::types::Reserved;

use crate::support::Etcd;

/// Opens the server as a new store.
pub(crate) async fn open(etcd: &Etcd) -> Arc<dyn NewStore> {
    let url: StoreUrl = etcd.url().parse().unwrap();
    open_new(&url, &Reserved::default()).await.unwrap()
}

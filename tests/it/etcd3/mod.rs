//! etcd v3 as a store, on real servers.

mod against_memory;

use std::future::{Ready, ready};
use std::sync::Arc;

use async_trait::async_trait;
use segue::store::{Guard, Line, NewStore, RecordTxn, Store, StoreUrl, open_new};
use segue::types::{Epoch, Reserved, Revision};

use crate::contract::{Fixture, NewFixture, new_store_contract, store_contract};
use crate::support::Etcd;

/// Servers of one test, each empty when it is handed out, stopped at its end.
#[derive(Default)]
pub(crate) struct Servers {
    running: std::sync::Mutex<Vec<Etcd>>,
}

impl Servers {
    pub(crate) async fn open(&self) -> Arc<dyn NewStore> {
        let etcd = start();
        let store = open(&etcd).await;
        self.running.lock().unwrap().push(etcd);
        store
    }
}

pub(crate) async fn open(etcd: &Etcd) -> Arc<dyn NewStore> {
    let url: StoreUrl = etcd.url().parse().unwrap();
    open_new(&url, &Reserved::default()).await.unwrap()
}

/// Starts a server from within a future that has to be `Send`, which the start itself is not.
fn start() -> Etcd {
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| runtime.block_on(Etcd::start()))
}

/// Without a line: etcd as it is.
struct Plain(Servers);

/// With a line, and claims.
struct Claiming(Servers);

/// With a line, as in the normal phase.
struct Normal(Servers);

fn plain() -> Ready<Plain> {
    ready(Plain(Servers::default()))
}

fn claiming() -> Ready<Claiming> {
    ready(Claiming(Servers::default()))
}

fn normal() -> Ready<Normal> {
    ready(Normal(Servers::default()))
}

store_contract!(plain_kv, crate::etcd3::plain());
store_contract!(claiming_kv, crate::etcd3::claiming());
store_contract!(normal_kv, crate::etcd3::normal());
new_store_contract!(new, crate::etcd3::claiming());

#[async_trait]
impl Fixture for Plain {
    async fn store(&self) -> Arc<dyn Store> {
        self.0.open().await.guarded(Guard::None)
    }
}

#[async_trait]
impl Fixture for Claiming {
    async fn store(&self) -> Arc<dyn Store> {
        under_line(&*self.0.open().await, true).await
    }

    fn gapless(&self) -> bool {
        false
    }
}

#[async_trait]
impl NewFixture for Claiming {
    async fn new_store(&self) -> Arc<dyn NewStore> {
        self.0.open().await
    }
}

#[async_trait]
impl Fixture for Normal {
    async fn store(&self) -> Arc<dyn Store> {
        under_line(&*self.0.open().await, false).await
    }

    fn gapless(&self) -> bool {
        false
    }
}

async fn under_line(new: &dyn NewStore, claims: bool) -> Arc<dyn Store> {
    let epoch = Epoch(1);
    let line = Line {
        epoch,
        claims,
        base: Revision(1000),
    };
    let set = RecordTxn {
        line: Some(Some(line)),
        ..RecordTxn::default()
    };
    assert!(new.write_records(set).await.unwrap());
    new.guarded(Guard::Epoch { epoch, claims })
}

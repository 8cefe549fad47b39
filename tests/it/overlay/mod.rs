//! The overlay against a store that never migrated: the same requests, with copy-up, backfill and
//! crashes in between, have to be answered the same to the letter. And each fact that this rests
//! on, broken, has to be noticed.

mod counted;
mod flight;
mod latest;
mod lines;
mod order;
mod rejects;
mod sabotage;

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};
use segue::store::memory::Memory;
use segue::store::open_new;
use segue::store::sql::sqlite::{self, Sqlite};
use segue::store::sql::{Options, SqlStore};
use segue::store::{AsOld, Guard, NewStore};
use segue::types::Reserved;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::random::{self, Request};
use crate::support::Etcd;
use crate::support::mariadb::database;
use crate::support::postgres::schema;
use flight::{Sabotage, Step, Stores, difference, step};

/// Requests before the migration and steps during it.
fn script() -> impl Strategy<Value = (Vec<Request>, Vec<Step>)> {
    (vec(random::request(), 0..25), vec(step(), 0..40))
}

/// Runs random scripts on fresh `stores`; tells the smallest one with a difference.
fn compare(
    cases: u32,
    stores: impl AsyncFn() -> Stores,
    sabotage: Option<Sabotage>,
) -> Result<(), String> {
    let runtime = Runtime::new().unwrap();
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(&script(), |(before, steps)| {
        runtime
            .block_on(async { difference(stores().await, before, steps, sabotage).await })
            .map_err(TestCaseError::fail)
    });
    outcome.map_err(|error| match error {
        TestError::Fail(reason, script) => format!("{reason}\n{script:#?}"),
        TestError::Abort(reason) => panic!("{reason}"),
    })
}

fn nobody_can_tell(cases: u32, stores: impl AsyncFn() -> Stores) {
    if let Err(difference) = compare(cases, stores, None) {
        panic!("{difference}");
    }
}

async fn in_memory() -> Stores {
    let (old, new) = (Arc::new(Memory::default()), Arc::new(Memory::default()));
    stores(old, new, false).await
}

/// The stores of a comparison in which `old` goes to `new`.
async fn stores(old: Arc<dyn NewStore>, new: Arc<dyn NewStore>, gaps: bool) -> Stores {
    Stores {
        twin: Arc::new(Memory::default()),
        source: old.guarded(Guard::None),
        old: Arc::new(AsOld::of(old).await.unwrap()),
        new,
        gaps,
        files: None,
    }
}

async fn sqlite(files: &TempDir, name: &str) -> Arc<SqlStore<Sqlite>> {
    sqlite::open(files.path().join(name), Options::default())
        .await
        .unwrap()
}

async fn postgres() -> Arc<dyn NewStore> {
    let url = schema().await.parse().unwrap();
    open_new(&url, &Reserved::default()).await.unwrap()
}

async fn mariadb() -> Arc<dyn NewStore> {
    let url = database().await.parse().unwrap();
    open_new(&url, &Reserved::default()).await.unwrap()
}

#[test]
fn no_client_can_tell_a_migration_in_memory_from_none() {
    nobody_can_tell(1_000, in_memory);
}

#[test]
fn no_client_can_tell_a_migration_from_sqlite_to_sqlite_from_none() {
    nobody_can_tell(200, async || {
        let files = TempDir::new().unwrap();
        let (old, new) = (sqlite(&files, "old").await, sqlite(&files, "new").await);
        Stores {
            files: Some(files),
            ..stores(old, new, false).await
        }
    });
}

#[test]
fn no_client_can_tell_a_migration_from_postgres_to_postgres_from_none() {
    nobody_can_tell(40, async || {
        let (old, new) = (postgres().await, postgres().await);
        stores(old, new, false).await
    });
}

#[test]
fn no_client_can_tell_a_migration_from_mariadb_to_mariadb_from_none() {
    nobody_can_tell(30, async || {
        let (old, new) = (mariadb().await, mariadb().await);
        stores(old, new, false).await
    });
}

#[test]
fn no_client_can_tell_a_migration_from_memory_to_etcd_from_none() {
    let runtime = Runtime::new().unwrap();
    let etcd = runtime.block_on(Etcd::start());
    nobody_can_tell(60, async || {
        wipe(&etcd).await;
        let new = open_new(&etcd.url().parse().unwrap(), &Reserved::default())
            .await
            .unwrap();
        stores(Arc::new(Memory::default()), new, true).await
    });
}

/// Takes everything out of `etcd`, which keeps its revision.
async fn wipe(etcd: &Etcd) {
    let mut client = etcd_client::Client::connect([etcd.endpoint()], None)
        .await
        .unwrap();
    let all = etcd_client::DeleteOptions::new().with_all_keys();
    client.delete("", Some(all)).await.unwrap();
    for lease in client.leases().await.unwrap().leases() {
        client.lease_revoke(lease.id()).await.unwrap();
    }
}

fn is_noticed(sabotage: Sabotage) {
    let noticed = compare(2_000, in_memory, Some(sabotage));
    assert!(noticed.is_err(), "{sabotage:?} went unnoticed");
}

#[test]
fn a_change_of_the_old_store_under_an_unclaimed_key_is_noticed() {
    is_noticed(Sabotage::OldStoreChanges);
}

#[test]
fn a_delete_without_a_claim_is_noticed() {
    is_noticed(Sabotage::DeletesLeaveNoClaim);
}

#[test]
fn a_claim_removed_before_settle_is_noticed() {
    is_noticed(Sabotage::ClaimsAreRemoved);
}

#[test]
fn a_copy_up_that_overwrites_is_noticed() {
    is_noticed(Sabotage::CopyUpOverwrites);
}

#[test]
fn a_copy_up_that_is_a_change_is_noticed() {
    is_noticed(Sabotage::CopyUpIsAChange);
}

//! The passthrough phase, its end, and the way back to it: applications work on the old store through
//! the proxies, and notice nothing when the migration begins, nor when it is rolled back and begun
//! anew.

use etcd_client::{Client, PutOptions};
use serde_json::Value;

use super::load::Load;
use super::old::fill_v3;
use super::{assert_good, switch_when_ready};
use crate::support::mariadb::database;
use crate::support::postgres::schema;
use crate::support::segue::Segue;
use crate::support::{Etcd, eventually};

const KEYS: usize = 1000;

/// Requests that are done in each phase.
const ROUND: usize = 400;

/// Two proxies in front of `old`, with a load on both, through all phases.
async fn all_phases(old: &str, new: &str, proxies: usize) {
    let args = [
        "--old",
        old,
        "--new",
        new,
        "--start",
        "passthrough",
        "--rate-keys",
        "1500",
    ];
    let mut fleet = Vec::new();
    for _ in 0..proxies {
        fleet.push(Segue::start(args).await);
    }
    let first = &fleet[0];
    let (base, initial) = fill_v3(&first.endpoint(), KEYS).await;
    let status = first.status().await.unwrap();
    assert_eq!(status["phase"], "passthrough", "{status}");
    let early = first.run(["switch"]).await;
    assert_eq!(early.code, 3, "{early:?}");
    assert!(early.err.contains("segue start"), "{early:?}");

    let endpoints: Vec<_> = fleet.iter().map(Segue::endpoint).collect();
    let load = Load::start(&endpoints, base, KEYS).await;
    load.round(ROUND).await;
    let started = first.run(["start"]).await;
    assert_eq!(started.code, 0, "{started:?}");
    println!("{}", started.out.trim());
    load.round(ROUND).await;
    roll_back(first).await;
    load.round(ROUND).await;
    let again = first.run(["start"]).await;
    assert_eq!(again.code, 0, "{again:?}");
    println!("{}", again.out.trim());
    load.round(ROUND).await;
    switch_when_ready(first).await;
    load.round(ROUND).await;
    roll_back(first).await;
    load.round(ROUND).await;
    let recorder = load.recorder.clone();
    let history = load.finish(&endpoints[0], base, initial).await;
    let (done, failed, unknown) = recorder.counts();
    println!("{done} requests");
    assert_eq!((failed, unknown), (0, 0), "no request may fail");
    assert_good(&history);
    let stall = |status: &Value| status["longest_stall_ms"].as_u64();
    let status = first.status().await.unwrap();
    assert!(stall(&status).is_some(), "{status}");
}

/// Goes back to the old store with the command.
async fn roll_back(segue: &Segue) {
    segue
        .until("the mirror is close behind", |status| {
            status["way_back"]["behind"]
                .as_u64()
                .is_some_and(|behind| behind < 400)
        })
        .await;
    let back = segue.run(["rollback"]).await;
    assert_eq!(back.code, 0, "{back:?}");
    println!("{}", back.out.trim());
}

#[tokio::test(flavor = "multi_thread")]
async fn from_etcd_to_sqlite_nobody_notices_the_start() {
    let old = Etcd::start().await;
    let dir = tempfile::tempdir().unwrap();
    let new = format!("sqlite:{}", dir.path().join("new.db").display());
    all_phases(&old.url(), &new, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_etcd_to_etcd_nobody_notices_the_start() {
    let (old, new) = tokio::join!(
        Etcd::start(),
        Etcd::with()
            .args(["--initial-cluster-token", "new"])
            .start()
    );
    all_phases(&old.url(), &new.url(), 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_sqlite_to_etcd_nobody_notices_the_start() {
    let new = Etcd::start().await;
    let dir = tempfile::tempdir().unwrap();
    let old = format!("sqlite:{}", dir.path().join("old.db").display());
    drop(Segue::start(["--new", old.as_str()]).await);
    all_phases(&old, &new.url(), 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_postgresql_to_mariadb_nobody_notices_the_start() {
    let (old, new) = tokio::join!(schema(), database());
    drop(Segue::start(["--new", old.as_str()]).await);
    all_phases(&old, &new, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_of_a_waiting_old_store_run_out() {
    let dir = tempfile::tempdir().unwrap();
    let url = |name: &str| format!("sqlite:{}", dir.path().join(name).display());
    let (old, new) = (url("old.db"), url("new.db"));
    drop(Segue::start(["--new", old.as_str()]).await);
    let args = ["--old", &old, "--new", &new, "--start", "passthrough"];
    let segue = Segue::start(args).await;
    let mut client = Client::connect([segue.endpoint()], None).await.unwrap();
    let lease = client.lease_grant(2, None).await.unwrap().id();
    let options = PutOptions::new().with_lease(lease);
    client.put("leased", "", Some(options)).await.unwrap();
    eventually("the lease runs out", async || {
        let answer = client.get("leased", None).await.unwrap();
        if answer.kvs().is_empty() {
            Ok(())
        } else {
            Err("still there")
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_store_without_transactions_cannot_wait() {
    let old = Etcd::start_v2().await;
    let refused = Segue::try_start([
        "--old",
        &old.v2_url(),
        "--new",
        "memory:",
        "--start",
        "passthrough",
    ])
    .await;
    let complaint = refused.err().expect("etcd v2 cannot be fenced");
    assert!(complaint.contains("--start passthrough"), "{complaint}");
}

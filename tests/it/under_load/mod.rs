//! Whole migrations: real servers, the built program, real clients at work all the time, and a check
//! of everything that they did and saw.

pub(crate) mod load;
pub(crate) mod old;
mod pairs;
mod rehearsal;
mod shared;
mod start;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use self::load::Load;
use self::old::{everything, fill, fill_v3};
use crate::history::{History, Outcome, check, explain};
use crate::support::mariadb::database;
use crate::support::postgres::schema;
use crate::support::segue::Segue;
use crate::support::{Etcd, V2, eventually};

/// How long a store hangs: longer than most requests, and shorter than what makes a member lapse.
const STALL: Duration = Duration::from_secs(3);

/// Keys with values straight from the new store, without Segue.
async fn raw(etcd: &Etcd) -> BTreeMap<String, String> {
    let mut client = etcd_client::Client::connect([etcd.endpoint()], None)
        .await
        .unwrap();
    let options = etcd_client::GetOptions::new().with_prefix();
    let answer = client.get("/", Some(options)).await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    answer
        .kvs()
        .iter()
        .map(|kv| (text(kv.key()), text(kv.value())))
        .collect()
}

fn copied(status: &Value) -> u64 {
    status["keys_copied"].as_u64().unwrap_or_default()
}

pub(crate) fn assert_good(history: &History) {
    let violations = check(history);
    assert!(violations.is_empty(), "{}", explain(history, &violations));
}

/// Waits until clients notice that a store is away.
async fn noticed(load: &Load) {
    let before = load.recorder.counts();
    eventually("requests fail while a store is away", async || {
        let now = load.recorder.counts();
        if (now.1, now.2) == (before.1, before.2) {
            Err(now)
        } else {
            Ok(())
        }
    })
    .await;
}

/// Flips the switch as soon as that is allowed, with the command.
async fn switch_when_ready(segue: &Segue) {
    segue
        .until("everything is copied and verified", |status| {
            status["backfill_complete"] == true && status["verified"] == true
        })
        .await;
    let switched = segue.run(["switch", "--wait"]).await;
    assert_eq!(switched.code, 0, "{switched:?}");
    segue
        .until("the phase is normal", |status| status["phase"] == "normal")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_under_load_keeps_every_promise() {
    const KEYS: usize = 4000;
    let (old, new) = tokio::join!(Etcd::start_v2(), Etcd::start());
    let v2 = V2::of(&old);
    fill(&v2, KEYS).await;
    let (base, initial) = everything(&v2).await;

    let (from, to) = (old.v2_url(), new.url());
    let args = ["--old", &from, "--new", &to, "--rate-keys", "700"];
    let first = Segue::start(args).await;
    let second = Segue::start(args).await;
    let load = Load::start(&[first.endpoint(), second.endpoint()], base, KEYS).await;
    switch_when_ready(&first).await;
    second
        .until("the other follows", |status| status["phase"] == "normal")
        .await;

    // The old store is no longer needed, and the clients go on.
    drop(old);
    let before = load.recorder.counts().0;
    eventually("clients go on without the old store", async || {
        let done = load.recorder.counts().0 - before;
        if done > 1000 { Ok(()) } else { Err(done) }
    })
    .await;
    let recorder = load.recorder.clone();
    let history = load.finish(&second.endpoint(), base, initial).await;
    let (done, failed, unknown) = recorder.counts();
    println!("{done} requests");
    assert_eq!((failed, unknown), (0, 0), "no request may fail");
    assert_good(&history);

    let completed = first.run(["complete"]).await;
    assert_eq!(completed.code, 0, "{completed:?}");
    first
        .until("the migration is settled", |status| {
            status["phase"] == "settled"
        })
        .await;
    let expected: BTreeMap<_, _> = history
        .last
        .iter()
        .flat_map(|(_, pairs)| pairs)
        .filter(|pair| !pair.key.starts_with("/leased/") && pair.lease == 0)
        .map(|pair| (pair.key.clone(), pair.value.clone()))
        .collect();
    let mut actual = raw(&new).await;
    // What has a short lease may have gone meanwhile.
    actual.retain(|key, _| expected.contains_key(key));
    assert_eq!(actual, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_killed_ten_times_in_mid_backfill_loses_and_resurrects_nothing() {
    const KEYS: usize = 6000;
    const KILLS: u64 = 10;
    let (old, new) = tokio::join!(Etcd::start_v2(), Etcd::start());
    let v2 = V2::of(&old);
    fill(&v2, KEYS).await;
    let (base, initial) = everything(&v2).await;
    let total = initial.len() as u64;

    let (from, to) = (old.v2_url(), new.url());
    let mut segue = Segue::start(["--old", &from, "--new", &to, "--rate-keys", "400"]).await;
    let load = Load::start(&[segue.endpoint()], base, KEYS).await;
    let mut seen = 0;
    for kill in 1..=KILLS {
        // A busy machine takes its time to kill, and the backfill goes on meanwhile.
        let goal = total * kill / (2 * KILLS);
        let status = segue
            .until("the backfill makes progress", |status| {
                copied(status) >= goal
            })
            .await;
        assert_eq!(
            status["backfill_complete"], false,
            "kill {kill} came too late: {status}"
        );
        assert!(copied(&status) >= seen, "the backfill began anew: {status}");
        seen = copied(&status);
        segue.kill();
        segue.restart().await;
    }
    let rates = segue.run(["rates", "--keys", "0", "--bytes", "0"]).await;
    assert_eq!(rates.code, 0, "{rates:?}");
    switch_when_ready(&segue).await;
    let recorder = load.recorder.clone();
    let history = load.finish(&segue.endpoint(), base, initial).await;
    let (done, failed, unknown) = recorder.counts();
    println!("{done} requests, {failed} failed, {unknown} cut off");
    assert_good(&history);
    let report = segue.run(["verify"]).await;
    assert_eq!(report.code, 0, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_that_go_away_and_come_back_are_carried_on_with() {
    const KEYS: usize = 3000;
    let (mut old, mut new) = tokio::join!(Etcd::start_v2(), Etcd::start());
    let v2 = V2::of(&old);
    fill(&v2, KEYS).await;
    let (base, initial) = everything(&v2).await;
    let total = initial.len() as u64;

    let (from, to) = (old.v2_url(), new.url());
    let segue = Segue::start(["--old", &from, "--new", &to, "--rate-keys", "500"]).await;
    let load = Load::start(&[segue.endpoint()], base, KEYS).await;
    for turn in 1..=4 {
        segue
            .until("the backfill makes progress", |status| {
                copied(status) >= total * turn / 6
            })
            .await;
        match turn {
            1 => {
                new.kill();
                noticed(&load).await;
                new.restart().await;
            }
            2 => {
                old.kill();
                noticed(&load).await;
                old.restart().await;
            }
            3 => {
                new.pause();
                tokio::time::sleep(STALL).await;
                new.resume();
            }
            _ => {
                old.pause();
                tokio::time::sleep(STALL).await;
                old.resume();
            }
        }
    }
    switch_when_ready(&segue).await;
    let recorder = load.recorder.clone();
    let history = load.finish(&segue.endpoint(), base, initial).await;
    let (done, failed, unknown) = recorder.counts();
    println!("{done} requests, {failed} failed, {unknown} cut off");
    for operation in &history.operations {
        // Codes that clients of etcd know what to do with; never "internal" or "unknown".
        if let Outcome::Failed(what) | Outcome::Unknown(what) = &operation.outcome {
            let code = what.to_lowercase();
            let known = [
                "unavailable",
                "deadline",
                "no answer",
                "cancel",
                "lease not found",
            ];
            assert!(
                known.iter().any(|known| code.contains(known)),
                "{operation:?}"
            );
        }
    }
    assert_good(&history);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_from_sqlite_to_sqlite_under_load_keeps_every_promise() {
    let dir = tempfile::tempdir().unwrap();
    let url = |name: &str| format!("sqlite:{}", dir.path().join(name).display());
    keeps_every_promise(&url("old.db"), &url("new.db")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_from_etcd_to_postgres_under_load_keeps_every_promise() {
    let etcd = Etcd::start().await;
    keeps_every_promise(&etcd.url(), &schema().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_from_postgres_to_sqlite_under_load_keeps_every_promise() {
    let dir = tempfile::tempdir().unwrap();
    let to = format!("sqlite:{}", dir.path().join("new.db").display());
    keeps_every_promise(&schema().await, &to).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_from_mariadb_to_mariadb_under_load_keeps_every_promise() {
    let (from, to) = tokio::join!(database(), database());
    keeps_every_promise(&from, &to).await;
}

/// The proxy is killed three times while it copies.
async fn keeps_every_promise(from: &str, to: &str) {
    const KEYS: usize = 3000;
    let alone = Segue::start(["--new", from]).await;
    let (base, initial) = fill_v3(&alone.endpoint(), KEYS).await;
    drop(alone);

    let mut segue = Segue::start(["--old", from, "--new", to, "--rate-keys", "700"]).await;
    let load = Load::start(&[segue.endpoint()], base, KEYS).await;
    let total = initial.len() as u64;
    for part in 1..=3 {
        segue
            .until("the backfill makes progress", |status| {
                copied(status) >= total * part / 5
            })
            .await;
        segue.kill();
        segue.restart().await;
    }
    switch_when_ready(&segue).await;
    let recorder = load.recorder.clone();
    let history = load.finish(&segue.endpoint(), base, initial).await;
    println!("{:?} requests done, failed, cut off", recorder.counts());
    assert_good(&history);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_proxy_that_copies_dies_another_carries_on_and_its_clients_notice_nothing() {
    const KEYS: usize = 3000;
    let (old, new) = tokio::join!(Etcd::start_v2(), Etcd::start());
    let v2 = V2::of(&old);
    fill(&v2, KEYS).await;
    let (base, initial) = everything(&v2).await;
    let total = initial.len() as u64;

    let (from, to) = (old.v2_url(), new.url());
    let args = ["--old", &from, "--new", &to, "--rate-keys", "500"];
    // The first one to come copies.
    let mut owner = Segue::start(args).await;
    let other = Segue::start(args).await;
    owner
        .until("the first one copies", |status| copied(status) > total / 10)
        .await;
    let load = Load::start(&[other.endpoint()], base, KEYS).await;
    owner.kill();
    switch_when_ready(&other).await;
    let recorder = load.recorder.clone();
    let history = load.finish(&other.endpoint(), base, initial).await;
    let (_, failed, unknown) = recorder.counts();
    assert_eq!((failed, unknown), (0, 0), "no request may fail");
    assert_good(&history);
}

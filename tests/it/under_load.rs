//! Whole migrations from etcd v2 to etcd v3: real servers, the built program, real clients at work
//! all the time, and a check of everything that they did and saw.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::history::client::{Recorder, Recording};
use crate::history::{Call, History, Outcome, Pair, WatchLog, check};
use crate::support::segue::Segue;
use crate::support::{Etcd, V2, eventually};

/// Directories of the old store that clients work in.
const DIRS: usize = 8;

/// Keys that all clients meet on.
const HOT: usize = 5;

/// An old store with this many keys, in directories of several depths.
async fn fill(v2: &V2, keys: usize) {
    let pairs = (0..keys).map(|n| (old_key(n), format!("old value {n} {}", "x".repeat(n % 300))));
    v2.fill(pairs).await;
    v2.fill((0..HOT).map(|n| (format!("/hot/{n}"), format!("hot {n}"))))
        .await;
    v2.put("/root-level", "old").await;
    v2.make_dir("/empty", 0).await;
    for n in 0..20 {
        // Longer than any test: they have to come over with their leases, and to stay.
        v2.put_ttl(&format!("/sessions/{n}"), &format!("session {n}"), 3600)
            .await;
    }
}

fn old_key(n: usize) -> String {
    match n % 3 {
        0 => format!("/d{}/{n:05}", n % DIRS),
        1 => format!("/d{}/sub{}/{n:05}", n % DIRS, n % 7),
        _ => format!("/d{}!/{n:05}", n % DIRS),
    }
}

/// Everything that a v2 store holds, read in one piece and by other means than Segue's.
async fn everything(v2: &V2) -> (i64, Vec<Pair>) {
    let answer = v2
        .must(
            http::Method::GET,
            "/v2/keys/?recursive=true&quorum=true",
            "",
        )
        .await;
    let tree: Value = serde_json::from_str(&answer).unwrap();
    let mut pairs = Vec::new();
    leaves(&tree["node"], &mut pairs);
    pairs.sort_by(|a, b| a.key.cmp(&b.key));
    let newest = pairs.iter().map(|pair| pair.modified).max();
    (newest.unwrap_or_default(), pairs)
}

fn leaves(node: &Value, pairs: &mut Vec<Pair>) {
    if node["dir"] == true {
        for child in node["nodes"].as_array().into_iter().flatten() {
            leaves(child, pairs);
        }
        return;
    }
    let text = |name: &str| node[name].as_str().unwrap().to_owned();
    let created = node["createdIndex"].as_i64().unwrap();
    pairs.push(Pair {
        key: text("key"),
        value: text("value"),
        created,
        modified: node["modifiedIndex"].as_i64().unwrap(),
        version: 1,
        lease: if node["ttl"].is_null() {
            0
        } else {
            0x5e60_0000_0000_0000 + created
        },
    });
}

/// Clients of several kinds, at work on the proxies until they are told to stop.
struct Load {
    recorder: Recorder,
    stop: CancellationToken,
    workers: JoinSet<()>,
    watchers: JoinSet<WatchLog>,
    /// Leases that are kept alive.
    kept: Vec<i64>,
}

impl Load {
    /// Sets clients to work, in turn on each of the proxies.
    async fn start(endpoints: &[String], base: i64, keys: usize) -> Self {
        let recorder = Recorder::default();
        let stop = CancellationToken::new();
        let mut load = Self {
            recorder: recorder.clone(),
            stop: stop.clone(),
            workers: JoinSet::new(),
            watchers: JoinSet::new(),
            kept: Vec::new(),
        };
        let mut turn = endpoints.iter().cycle().cloned();
        let mut next = || turn.next().unwrap();
        for (name, prefix) in [
            ("all", "/"),
            ("d1", "/d1"),
            ("hot", "/hot/"),
            ("new", "/new/"),
        ] {
            let (recorder, endpoint, stop) = (recorder.clone(), next(), stop.clone());
            load.watchers.spawn(async move {
                recorder
                    .watch(name, &endpoint, prefix, base + 1, stop)
                    .await
            });
        }
        for seed in 0..4 {
            let client = recorder.client(&next()).await;
            load.workers.spawn(mixed(client, seed, keys, stop.clone()));
        }
        for _ in 0..2 {
            let client = recorder.client(&next()).await;
            load.workers.spawn(counter(client, stop.clone()));
            let client = recorder.client(&next()).await;
            load.workers.spawn(lister(client, stop.clone()));
        }
        let client = recorder.client(&next()).await;
        load.workers.spawn(pairs(client, stop.clone()));
        let mut client = recorder.client(&next()).await;
        // Long enough for a proxy to be away for a while.
        let lease = client.client().lease_grant(15, None).await.unwrap().id();
        load.kept.push(lease);
        load.workers
            .spawn(lease_holder(client, lease, stop.clone()));
        let client = recorder.client(&next()).await;
        load.workers.spawn(lease_dropper(client, stop));
        load
    }

    /// Lets the clients finish and gives what they did and saw.
    async fn finish(mut self, endpoint: &str, base: i64, initial: Vec<Pair>) -> History {
        self.stop.cancel();
        while let Some(ended) = self.workers.join_next().await {
            ended.unwrap();
        }
        let mut reader = self.recorder.client(endpoint).await;
        let Outcome::Done(last) = reader.list("/").await else {
            panic!("the last read failed");
        };
        let mut watches = Vec::new();
        while let Some(log) = self.watchers.join_next().await {
            watches.push(log.unwrap());
        }
        History {
            initial,
            base,
            operations: self.recorder.operations(),
            watches,
            kept: self.kept.into_iter().collect(),
            last: Some((last.revision, last.pairs)),
        }
    }
}

/// Reads, writes, deletes and swaps keys all over the place.
async fn mixed(mut client: Recording, seed: u64, keys: usize, stop: CancellationToken) {
    let mut random = StdRng::seed_from_u64(seed);
    while !stop.is_cancelled() {
        let key = match random.random_range(0..10) {
            0..6 => old_key(random.random_range(0..keys)),
            6..8 => format!("/hot/{}", random.random_range(0..HOT)),
            _ => format!("/new/{}", random.random_range(0..200)),
        };
        match random.random_range(0..10) {
            0..4 => {
                client.get(&key).await;
            }
            4..7 => {
                client.put(&key).await;
            }
            7..8 => {
                client.delete(&key).await;
            }
            _ => {
                // Against what was read a moment ago, which others may have changed meanwhile.
                let known = client.get(&key).await.map_or(0, |pair| pair.modified);
                client.swap(&key, known).await;
            }
        }
    }
}

/// Swaps one key again and again, which others do too.
async fn counter(mut client: Recording, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let seen = client
            .get("/hot/counter")
            .await
            .map_or(0, |pair| pair.modified);
        client.swap("/hot/counter", seen).await;
    }
}

/// Reads whole directories.
async fn lister(mut client: Recording, stop: CancellationToken) {
    let mut turn = 0;
    while !stop.is_cancelled() {
        turn += 1;
        let prefix = match turn % 4 {
            0 => "/hot/".to_owned(),
            1 => "/sessions/".to_owned(),
            2 => "/pairs/".to_owned(),
            _ => format!("/d{}/", turn % DIRS),
        };
        client.list(&prefix).await;
    }
}

/// Writes keys of both stores in one transaction.
async fn pairs(mut client: Recording, stop: CancellationToken) {
    let mut turn = 0;
    while !stop.is_cancelled() {
        turn += 1;
        let (one, other) = (old_key(turn % 500), format!("/pairs/{}", turn % 50));
        client.put_all(&[&one, &other], 0).await;
    }
}

/// Keeps a lease alive, with keys on it.
async fn lease_holder(mut client: Recording, lease: i64, stop: CancellationToken) {
    client
        .put_all(&["/leased/kept", "/leased/kept-too"], lease)
        .await;
    while !stop.is_cancelled() {
        // The proxy may be away: tried again, well within the lease's time.
        if let Ok((mut keeper, mut answers)) = client.client().lease_keep_alive(lease).await {
            let kept = async {
                keeper.keep_alive().await?;
                answers.message().await
            };
            if let Ok(Ok(Some(answer))) = tokio::time::timeout(Duration::from_secs(2), kept).await {
                assert!(answer.ttl() > 0, "a lease that was kept alive is gone");
            }
        }
        client.get("/leased/kept").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Attaches keys to leases and lets them run out, or revokes them.
async fn lease_dropper(mut client: Recording, stop: CancellationToken) {
    let mut turn = 0;
    while !stop.is_cancelled() {
        turn += 1;
        if let Ok(granted) = client.client().lease_grant(2, None).await {
            let lease = granted.id();
            let keys = [format!("/leased/{turn}"), old_key(turn)];
            client.put_all(&[&keys[0], &keys[1]], lease).await;
            if turn % 2 == 0 {
                client.call(Call::Revoke { lease }).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

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

fn assert_good(history: &History) {
    let violations = check(history);
    let some = &violations[..violations.len().min(20)];
    assert!(
        violations.is_empty(),
        "{} violations: {some:#?}",
        violations.len()
    );
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
    let mut segue = Segue::start(["--old", &from, "--new", &to, "--rate-keys", "1500"]).await;
    let load = Load::start(&[segue.endpoint()], base, KEYS).await;
    let mut seen = 0;
    for kill in 1..=KILLS {
        let goal = total * kill / (KILLS + 2);
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
    switch_when_ready(&segue).await;
    let recorder = load.recorder.clone();
    let history = load.finish(&segue.endpoint(), base, initial).await;
    let (done, failed, unknown) = recorder.counts();
    println!("{done} requests, {failed} failed, {unknown} cut off");
    assert_good(&history);
    let report = segue.run(["verify"]).await;
    assert_eq!(report.code, 0, "{report:?}");
}

//! Clients of several kinds, at work all the time.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::old::{DIRS, HOT, old_key};
use crate::history::client::{Recorder, Recording};
use crate::history::{Call, History, Outcome, Pair, WatchLog};
use crate::support::eventually;

/// Clients of several kinds, at work on the proxies until they are told to stop.
pub(super) struct Load {
    /// Where they write down what they do.
    pub(super) recorder: Recorder,
    stop: CancellationToken,
    /// Ends the watchers, once there is nothing more to come.
    over: CancellationToken,
    workers: JoinSet<()>,
    watchers: JoinSet<WatchLog>,
    /// Leases that are kept alive.
    kept: Vec<i64>,
}

impl Load {
    /// Sets a dozen clients to work, in turn on each of the proxies.
    pub(super) async fn start(endpoints: &[String], base: i64, keys: usize) -> Self {
        Self::start_many(endpoints, base, keys, 4).await
    }

    /// The same with so many that read, write and swap, and a quarter as many that count.
    pub(super) async fn start_many(
        endpoints: &[String],
        base: i64,
        keys: usize,
        mixers: u64,
    ) -> Self {
        let recorder = Recorder::default();
        let stop = CancellationToken::new();
        let mut load = Self {
            recorder: recorder.clone(),
            stop: stop.clone(),
            over: CancellationToken::new(),
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
            let (recorder, endpoint, over) = (recorder.clone(), next(), load.over.clone());
            load.watchers.spawn(async move {
                recorder
                    .watch(name, &endpoint, prefix, base + 1, over)
                    .await
            });
        }
        for seed in 0..mixers {
            let client = recorder.client(&next()).await;
            load.workers.spawn(mixed(client, seed, keys, stop.clone()));
        }
        for _ in 0..(mixers / 4).max(2) {
            let client = recorder.client(&next()).await;
            load.workers.spawn(counter(client, stop.clone()));
        }
        for _ in 0..2 {
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

    /// Waits until clients have got so many more answers.
    pub(super) async fn round(&self, requests: usize) {
        let before = self.recorder.counts().0;
        eventually("clients make progress", async || {
            let done = self.recorder.counts().0 - before;
            if done >= requests { Ok(()) } else { Err(done) }
        })
        .await;
    }

    /// Lets the clients finish and gives what they did and saw.
    pub(super) async fn finish(mut self, endpoint: &str, base: i64, initial: Vec<Pair>) -> History {
        self.stop.cancel();
        while let Some(ended) = self.workers.join_next().await {
            ended.unwrap();
        }
        let mut reader = self.recorder.client(endpoint).await;
        let Outcome::Done(last) = reader.list("/").await else {
            panic!("the last read failed");
        };
        // Leases that run out change the store without any client: the watchers go on until now.
        self.over.cancel();
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

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
pub(crate) struct Load {
    /// Where they write down what they do.
    pub(crate) recorder: Recorder,
    stop: CancellationToken,
    /// Ends the watchers, once there is nothing more to come.
    over: CancellationToken,
    workers: JoinSet<()>,
    watchers: JoinSet<Vec<WatchLog>>,
}

/// Who is set to work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crew {
    /// Clients that read, write and swap; a quarter as many count.
    pub(crate) mixers: u64,
    /// What they choose by.
    pub(crate) seed: u64,
    /// They go to another proxy when a request has failed, and often do not wait for an answer; those who
    /// watch begin anew where they are told that the history is gone.
    pub(crate) restless: bool,
}

/// How long a lease is kept without being kept alive: long enough for a proxy to be away for a while.
const KEPT_S: i64 = 15;

/// How long a lease lives that runs out.
const DROPPED_S: i64 = 2;

impl Load {
    /// Sets a dozen clients to work, in turn on each of the proxies.
    pub(crate) async fn start(endpoints: &[String], base: i64, keys: usize) -> Self {
        let crew = Crew {
            mixers: 4,
            seed: 0,
            restless: false,
        };
        Self::start_crew(endpoints, base, keys, crew).await
    }

    /// The same with other clients.
    pub(crate) async fn start_crew(
        endpoints: &[String],
        base: i64,
        keys: usize,
        crew: Crew,
    ) -> Self {
        let recorder = Recorder::default();
        let stop = CancellationToken::new();
        let mut load = Self {
            recorder: recorder.clone(),
            stop: stop.clone(),
            over: CancellationToken::new(),
            workers: JoinSet::new(),
            watchers: JoinSet::new(),
        };
        let mut turn = 0;
        // Where the next one begins, and where it goes from there.
        let mut next = || {
            let mut all = endpoints.to_vec();
            all.rotate_left(turn % endpoints.len());
            turn += 1;
            all.truncate(if crew.restless { all.len() } else { 1 });
            all
        };
        let recruit = async |endpoints: Vec<String>| {
            let client = recorder.client(&endpoints[0]).await;
            if crew.restless {
                client.roaming(endpoints)
            } else {
                client
            }
        };
        for (name, prefix) in [
            ("all", "/"),
            ("everything", "/"),
            ("d1", "/d1"),
            ("hot", "/hot/"),
            ("new", "/new/"),
        ] {
            let (recorder, endpoints, over) = (recorder.clone(), next(), load.over.clone());
            load.watchers.spawn(async move {
                recorder
                    .watch(name, &endpoints, prefix, base + 1, crew.restless, over)
                    .await
            });
        }
        for number in 0..crew.mixers {
            let client = recruit(next()).await;
            let seed = crew.seed.wrapping_add(number);
            let impatient = crew.restless;
            load.workers
                .spawn(mixed(client, seed, impatient, keys, stop.clone()));
        }
        for _ in 0..(crew.mixers / 4).max(2) {
            let client = recruit(next()).await;
            load.workers.spawn(counter(client, stop.clone()));
        }
        for _ in 0..2 {
            let client = recruit(next()).await;
            load.workers.spawn(lister(client, stop.clone()));
        }
        let client = recruit(next()).await;
        load.workers.spawn(pairs(client, stop.clone()));
        let client = recruit(next()).await;
        load.workers.spawn(lease_holder(client, stop.clone()));
        let client = recruit(next()).await;
        load.workers.spawn(lease_dropper(client, stop));
        load
    }

    /// Waits until clients have got so many more answers.
    pub(crate) async fn round(&self, requests: usize) {
        let before = self.recorder.counts().0;
        eventually("clients make progress", async || {
            let done = self.recorder.counts().0 - before;
            if done >= requests { Ok(()) } else { Err(done) }
        })
        .await;
    }

    /// Lets the clients finish and gives what they did and saw.
    pub(crate) async fn finish(mut self, endpoint: &str, base: i64, initial: Vec<Pair>) -> History {
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
            watches.extend(log.unwrap());
        }
        History {
            initial,
            base,
            operations: self.recorder.operations(),
            watches,
            kept: self.recorder.kept(),
            due: self.recorder.due(),
            last: Some((last.revision, last.pairs)),
        }
    }
}

/// Reads, writes, deletes and swaps keys all over the place.
async fn mixed(
    mut client: Recording,
    seed: u64,
    impatient: bool,
    keys: usize,
    stop: CancellationToken,
) {
    let mut random = StdRng::seed_from_u64(seed);
    while !stop.is_cancelled() {
        if impatient && random.random_ratio(1, 20) {
            let patience = Duration::from_micros(random.random_range(0..5000));
            let key = old_key(random.random_range(0..keys));
            let call = client.a_put(&key);
            client.call_within(call, patience).await;
        }
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
                if let Some(known) = client.modified(&key).await {
                    client.swap(&key, known).await;
                }
            }
        }
    }
}

/// Swaps one key again and again, which others do too.
async fn counter(mut client: Recording, stop: CancellationToken) {
    while !stop.is_cancelled() {
        if let Some(seen) = client.modified("/hot/counter").await {
            client.swap("/hot/counter", seen).await;
        }
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
async fn lease_holder(mut client: Recording, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let Some(lease) = client.grant(KEPT_S).await else {
            continue;
        };
        hold(&mut client, lease, &stop).await;
    }
}

/// Holds the lease until it is told to stop, or has heard nothing of it for too long.
async fn hold(client: &mut Recording, lease: i64, stop: &CancellationToken) {
    let ttl = Duration::from_secs(KEPT_S.unsigned_abs());
    let mut due = client.keep(lease);
    client
        .put_all(&["/leased/kept", "/leased/kept-too"], lease)
        .await;
    while !stop.is_cancelled() {
        let answer = client.keep_alive(lease).await;
        let lost = client.now() > due;
        match answer {
            Some((sent, 1..)) => due = sent + ttl,
            Some(_) => assert!(lost, "a lease that was kept alive is gone"),
            // The proxy may be away: tried again, well within the lease's time.
            None => {}
        }
        if lost {
            client.due(lease, due);
            return;
        }
        client.get("/leased/kept").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    // Nobody keeps it alive any more, and what is left to be done and read may take longer than it lives.
    client.due(lease, due);
}

/// Attaches keys to leases and lets them run out, or revokes them.
async fn lease_dropper(mut client: Recording, stop: CancellationToken) {
    let mut turn = 0;
    while !stop.is_cancelled() {
        turn += 1;
        if let Some(lease) = client.grant(DROPPED_S).await {
            let keys = [format!("/leased/{turn}"), old_key(turn)];
            client.put_all(&[&keys[0], &keys[1]], lease).await;
            if turn % 2 == 0 {
                client.call(Call::Revoke { lease }).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

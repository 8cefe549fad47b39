//! A lease holder: announces itself under leases, keeps them alive, and now and then gives one up
//! and starts over.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{KvClient, LeaseClient, LeaseKeepAliveStream, LeaseKeeper, PutOptions};
use rand::RngExt as _;
use rand::rngs::StdRng;

use super::Actor;
use crate::cli::demo::ledger::{Effect, Fingerprint};
use crate::cli::demo::meter::Kind;
use crate::cli::demo::stage::{Stage, dice, keys_of, revision};
use crate::types::KeyRange;

/// How many leases it holds.
const LEASES: usize = 6;

/// Their time to live in seconds: long enough for a busy machine, short enough that one which is
/// not kept alive would be noticed.
const TTL_S: i64 = 6;

/// Between two rounds of keeping alive.
const THINK: Duration = Duration::from_millis(800);

/// Holds leases. Those of the old store live on in the new one.
pub(super) struct Holder {
    rng: StdRng,
    held: Vec<Held>,
    made: usize,
}

/// One lease and what hangs on it.
struct Held {
    lease: i64,
    keys: Vec<Bytes>,
}

/// The open conversation that keeps one lease alive.
struct Line {
    lease: i64,
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
}

impl Holder {
    pub(super) fn new() -> Self {
        Self {
            rng: dice(700),
            held: Vec::new(),
            made: 0,
        }
    }

    async fn take(&mut self, stage: &Stage, keys: &mut KvClient, leases: &mut LeaseClient) {
        let ledger = &stage.show.ledger;
        let what = || "grant a lease".into();
        let request = leases.grant(TTL_S, None);
        let Some(granted) = stage.ask(Kind::Write, what, request).await else {
            return;
        };
        let lease = granted.id();
        ledger.hold(lease);
        let mut held = Held {
            lease,
            keys: Vec::new(),
        };
        self.made += 1;
        for part in ["endpoint", "health"] {
            let made = self.made;
            let key = stage
                .show
                .props
                .key(format_args!("services/live/{made:04}/{part}"));
            let value = format!("10.0.{}.{}:8080", made / 250, made % 250);
            let effects = vec![Effect::Put {
                key: key.clone(),
                value: Fingerprint::of(value.as_bytes()),
                lease,
            }];
            let what = || format!("put {}", String::from_utf8_lossy(&key));
            let options = PutOptions::new().with_lease(lease);
            let request = keys.put(key.to_vec(), value, Some(options));
            match stage.ask(Kind::Write, what, request).await {
                Some(answer) => ledger.wrote(revision(answer.header()), effects),
                None => ledger.doubt(KeyRange::One(key.clone())),
            }
            held.keys.push(key);
        }
        self.held.push(held);
    }

    async fn give_up(&mut self, stage: &Stage, leases: &mut LeaseClient) {
        let ledger = &stage.show.ledger;
        let held = self.held.remove(0);
        ledger.let_go(held.lease);
        let what = || "revoke a lease".into();
        match stage
            .ask(Kind::Write, what, leases.revoke(held.lease))
            .await
        {
            Some(answer) => {
                let effects = held.keys.into_iter().map(Effect::Delete).collect();
                ledger.wrote(revision(answer.header()), effects);
            }
            None => {
                for key in held.keys {
                    ledger.doubt(KeyRange::One(key));
                }
            }
        }
    }
}

impl Line {
    async fn open(stage: &Stage, leases: &mut LeaseClient, lease: i64) -> Option<Self> {
        let what = || "keep a lease alive".into();
        let opened = stage.ask(Kind::Write, what, leases.keep_alive(lease)).await;
        opened.map(|(keeper, answers)| Self {
            lease,
            keeper,
            answers,
        })
    }

    async fn keep_alive(&mut self) -> Result<(), etcd_client::Error> {
        let gone = |why: &str| etcd_client::Error::LeaseKeepAliveError(why.into());
        self.keeper.keep_alive().await?;
        match self.answers.message().await? {
            Some(answer) if answer.ttl() > 0 => Ok(()),
            Some(_) => Err(gone("the lease is gone")),
            None => Err(gone("the stream has ended")),
        }
    }
}

#[async_trait]
impl Actor for Holder {
    async fn perform(&mut self, stage: &Stage) -> anyhow::Result<()> {
        let client = stage.address.connect().await?;
        let (mut keys, mut leases) = (keys_of(&client), client.lease_client());
        let mut lines: Vec<Line> = Vec::new();
        loop {
            let stopped = stage.stop.is_cancelled();
            if !stopped && self.held.len() == LEASES && self.rng.random_bool(0.2) {
                self.give_up(stage, &mut leases).await;
            }
            while !stopped && self.held.len() < LEASES {
                let before = self.held.len();
                self.take(stage, &mut keys, &mut leases).await;
                if self.held.len() == before {
                    break;
                }
            }
            lines.retain(|line| self.held.iter().any(|held| held.lease == line.lease));
            for held in &self.held {
                let mut lines = lines.iter_mut();
                if let Some(line) = lines.find(|line| line.lease == held.lease) {
                    let what = || "keep a lease alive".into();
                    stage.ask(Kind::Write, what, line.keep_alive()).await;
                }
            }
            for index in 0..self.held.len() {
                let lease = self.held[index].lease;
                if !lines.iter().any(|line| line.lease == lease) {
                    lines.extend(Line::open(stage, &mut leases, lease).await);
                }
            }
            // The leases are looked at after the other clients have ended, so they are kept until
            // the curtain falls.
            tokio::select! {
                () = stage.curtain.cancelled() => return Ok(()),
                () = tokio::time::sleep(THINK) => {}
            }
        }
    }
}

//! The clients as a company: on stage together, off stage together, and the reckoning at the end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use etcd_client::GetOptions;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::check::{self, Finals, Findings};
use super::clients::{Cast, line_up};
use super::ledger::Facts;
use super::stage::{Address, Show, Stage, keys_of, reason, revision};
use crate::tasks::Tasks;

/// How long watches may take to deliver what has happened, and leases to run out, when all other
/// clients have ended. Then what is still missing counts as missed.
const DELIVERY: Duration = Duration::from_secs(10);

/// How long watches are listened to when everything has arrived, for what they might repeat.
const ENCORE: Duration = Duration::from_millis(300);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// Keys per page when everything is read at the end.
const PAGE: i64 = 500;

/// A client at work, which comes back when it has ended.
type Playing = JoinHandle<(Cast, anyhow::Result<()>)>;

/// All clients, off stage.
pub(super) struct Troupe {
    show: Arc<Show>,
    cast: Vec<Cast>,
}

/// All clients, at work.
pub(super) struct Performance {
    stage: Stage,
    playing: Vec<(String, Playing)>,
}

impl Troupe {
    /// The clients of a show.
    pub(super) fn of(show: &Arc<Show>) -> Self {
        Self {
            show: show.clone(),
            cast: line_up(show),
        }
    }

    /// Starts all clients against `address`.
    pub(super) fn perform(self, address: Address, tasks: &Tasks) -> Performance {
        let stage = Stage {
            show: self.show,
            address,
            stop: tasks.token().child_token(),
            curtain: tasks.token().child_token(),
        };
        let start = |mut cast: Cast| {
            let (name, stage) = (cast.name.clone(), stage.clone());
            let play = async move {
                let outcome = cast.actor.perform(&stage).await;
                (cast, outcome)
            };
            (name.clone(), tasks.spawn(name, play))
        };
        let playing = self.cast.into_iter().map(start).collect();
        Performance { stage, playing }
    }
}

impl Performance {
    /// Has all clients finish what they are at.
    pub(super) async fn end(self) -> anyhow::Result<Troupe> {
        self.stage.stop.cancel();
        self.stage.curtain.cancel();
        let show = self.stage.show.clone();
        let mut cast = Vec::new();
        for (name, client) in self.playing {
            let (back, outcome) = client.await.with_context(|| format!("{name} broke down"))?;
            outcome.context(name)?;
            cast.push(back);
        }
        Ok(Troupe { show, cast })
    }

    /// Has the clients end, waits until the watches have delivered everything, reads the store's
    /// contents, and judges.
    pub(super) async fn finale(mut self) -> anyhow::Result<(Findings, Finals)> {
        self.stage.stop.cancel();
        // Those that watch and keep leases alive go on until the curtain falls.
        let lasting = |name: &str| name.starts_with("watcher") || name == "holder";
        let (lasting, ending): (Vec<_>, Vec<_>) = std::mem::take(&mut self.playing)
            .into_iter()
            .partition(|(name, _)| lasting(name));
        for (name, client) in ending {
            let (_, outcome) = client.await.with_context(|| format!("{name} broke down"))?;
            outcome.context(name)?;
        }
        self.wait_for_deliveries().await;
        let finals = read_all(&self.stage).await?;
        tokio::time::sleep(ENCORE).await;
        self.stage.curtain.cancel();
        for (name, client) in lasting {
            let (_, outcome) = client.await.with_context(|| format!("{name} broke down"))?;
            outcome.context(name)?;
        }
        let entries = self.stage.show.ledger.entries();
        let findings = check::check(&entries, &finals);
        Ok((findings, finals))
    }

    async fn wait_for_deliveries(&self) {
        let deadline = Instant::now() + DELIVERY;
        while check::undelivered(&self.stage.show.ledger.entries()) && Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Reads everything, at one revision.
async fn read_all(stage: &Stage) -> anyhow::Result<Finals> {
    let client = stage.address.connect().await?;
    let mut keys = keys_of(&client);
    let numbers: BTreeSet<Bytes> = {
        let entries = stage.show.ledger.entries();
        entries
            .sums
            .values()
            .flat_map(|sum| sum.keys.clone())
            .collect()
    };
    let mut finals = Finals::default();
    let (mut from, mut at) = (vec![0], 0);
    loop {
        let page = GetOptions::new()
            .with_from_key()
            .with_limit(PAGE)
            .with_revision(at);
        let answer = keys.get(from.clone(), Some(page)).await;
        let answer = answer.map_err(|error| {
            anyhow::anyhow!("the contents cannot be read at the end: {}", reason(&error))
        })?;
        if at == 0 {
            at = revision(answer.header());
        }
        for kv in answer.kvs() {
            let key = Bytes::copy_from_slice(kv.key());
            if numbers.contains(&key) {
                let text = kv.value_str().unwrap_or_default();
                finals
                    .numbers
                    .insert(key.clone(), text.parse().unwrap_or_default());
            }
            finals.bytes += (kv.key().len() + kv.value().len()) as u64;
            finals.keys.insert(key, Facts::from(kv));
        }
        match answer.kvs().last() {
            Some(last) if answer.more() => {
                from = [last.key(), &[0]].concat();
            }
            _ => break,
        }
    }
    let leases = client.lease_client().leases().await;
    let leases = leases.map_err(|error| {
        anyhow::anyhow!("the leases cannot be read at the end: {}", reason(&error))
    })?;
    finals.leases = leases
        .leases()
        .iter()
        .map(etcd_client::LeaseStatus::id)
        .collect();
    Ok(finals)
}

#[cfg(test)]
mod tests;

//! Clients that queue for a lock, as etcd's own client libraries do it: each makes a key below one
//! prefix, under a lease, and waits until all keys that were made earlier are gone.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{
    Client, Compare, CompareOp, EventType, GetOptions, KvClient, PutOptions, SortOrder, SortTarget,
    Txn, TxnOp, WatchFilterType, WatchOptions,
};
use rand::rngs::StdRng;

use super::Actor;
use super::counter::integer;
use crate::cli::demo::ledger::{Effect, Facts, Fingerprint};
use crate::cli::demo::meter::Kind;
use crate::cli::demo::stage::{Show, Stage, dice, keys_of, reason, revision};
use crate::types::KeyRange;

/// Between giving the lock up and wanting it again.
const THINK: Duration = Duration::from_millis(60);

/// How long the lock is held.
const HOLD: Duration = Duration::from_millis(3);

/// The lease's time to live in seconds. It is renewed with each turn.
const TTL_S: i64 = 15;

/// Longest wait for one's turn.
const TURN: Duration = Duration::from_secs(15);

/// Takes turns with others at incrementing a number that is guarded by nothing but the lock.
pub(super) struct Contender {
    rng: StdRng,
    lease: Option<i64>,
    prefix: Bytes,
    number: Bytes,
}

impl Contender {
    pub(super) fn new(number: u64, show: &Show) -> Self {
        let guarded = show.props.key("counters/stocktaking");
        show.ledger
            .keep_sum("the number behind the lock", &guarded, 0);
        Self {
            rng: dice(800 + number),
            lease: None,
            prefix: show.props.key("locks/stocktaking/"),
            number: guarded,
        }
    }

    /// The lease, new or renewed.
    async fn lease(&mut self, stage: &Stage, client: &Client) -> Option<i64> {
        let mut leases = client.lease_client();
        if let Some(lease) = self.lease {
            let what = || "keep a lock's lease alive".into();
            stage
                .ask(Kind::Write, what, leases.keep_alive(lease))
                .await?;
        } else {
            let what = || "grant a lock's lease".into();
            let granted = stage
                .ask(Kind::Write, what, leases.grant(TTL_S, None))
                .await?;
            self.lease = Some(granted.id());
        }
        self.lease
    }

    /// Joins the queue; answers the key and the revision that it was made at.
    async fn enqueue(
        &self,
        stage: &Stage,
        keys: &mut KvClient,
        lease: i64,
    ) -> Option<(Bytes, i64)> {
        let ledger = &stage.show.ledger;
        let key: Bytes = [&self.prefix[..], format!("{lease:016x}").as_bytes()]
            .concat()
            .into();
        let options = PutOptions::new().with_lease(lease);
        let txn = Txn::new()
            .when([Compare::create_revision(key.to_vec(), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(key.to_vec(), "", Some(options))]);
        let what = || "queue for the lock".into();
        let Some(answer) = stage.ask(Kind::Write, what, keys.txn(txn)).await else {
            ledger.doubt(KeyRange::One(key));
            return None;
        };
        let at = revision(answer.header());
        if !answer.succeeded() {
            stage.failed("a client that wanted the lock was in the queue already".into());
            return None;
        }
        let effect = Effect::Put {
            key: key.clone(),
            value: Fingerprint::of(b""),
            lease,
        };
        ledger.wrote(at, vec![effect]);
        Some((key, at))
    }

    /// Waits until nobody is ahead.
    async fn wait_for_turn(&self, stage: &Stage, client: &Client, mine: i64) -> Option<()> {
        let mut keys = keys_of(client);
        loop {
            let ahead = GetOptions::new()
                .with_prefix()
                .with_max_create_revision(mine - 1)
                .with_sort(SortTarget::Create, SortOrder::Descend)
                .with_limit(1);
            let what = || "look who is ahead in the queue".into();
            let request = keys.get(self.prefix.to_vec(), Some(ahead));
            let answer = stage.ask(Kind::Read, what, request).await?;
            let Some(before) = answer.kvs().first() else {
                return Some(());
            };
            let from = revision(answer.header()) + 1;
            let gone = wait_for_end(client, before.key(), from);
            match tokio::time::timeout(TURN, gone).await {
                Ok(Ok(())) => {}
                Ok(Err(why)) => {
                    stage.failed(format!("waiting for the lock: {why}"));
                    return None;
                }
                Err(_) => {
                    let seconds = TURN.as_secs();
                    stage.failed(format!("the lock did not come free within {seconds} s"));
                    return None;
                }
            }
        }
    }

    /// What the lock guards: read, wait a little, write. Two at once would lose an increment.
    async fn increment(&self, stage: &Stage, keys: &mut KvClient) -> Option<()> {
        let ledger = &stage.show.ledger;
        let floor = ledger.floor();
        let what = || "read behind the lock".into();
        let request = keys.get(self.number.to_vec(), None);
        let answer = stage.ask(Kind::Read, what, request).await?;
        let found = answer.kvs().first();
        let at = revision(answer.header());
        ledger.read(&self.number, floor, at, found.map(Facts::from));
        tokio::time::sleep(HOLD).await;
        let next = (found.map_or(0, integer) + 1).to_string();
        let effects = vec![Effect::put(&self.number, next.as_bytes())];
        let what = || "write behind the lock".into();
        let request = keys.put(self.number.to_vec(), next, None);
        let Some(answer) = stage.ask(Kind::Write, what, request).await else {
            ledger.doubt(KeyRange::One(self.number.clone()));
            return None;
        };
        ledger.wrote(revision(answer.header()), effects);
        ledger.add_to_sum("the number behind the lock", 1);
        Some(())
    }

    async fn leave(&self, stage: &Stage, keys: &mut KvClient, key: Bytes) {
        let ledger = &stage.show.ledger;
        let what = || "give the lock up".into();
        let floor = ledger.floor();
        let request = keys.delete(key.to_vec(), None);
        match stage.ask(Kind::Write, what, request).await {
            Some(answer) if answer.deleted() > 0 => {
                ledger.wrote(revision(answer.header()), vec![Effect::Delete(key)]);
            }
            Some(answer) => ledger.read(&key, floor, revision(answer.header()), None),
            None => ledger.doubt(KeyRange::One(key)),
        }
    }

    async fn take_turn(&mut self, stage: &Stage, client: &Client) -> Option<()> {
        let mut keys = keys_of(client);
        let lease = self.lease(stage, client).await?;
        let (key, mine) = self.enqueue(stage, &mut keys, lease).await?;
        if self.wait_for_turn(stage, client, mine).await.is_some() {
            self.increment(stage, &mut keys).await;
        }
        self.leave(stage, &mut keys, key).await;
        Some(())
    }
}

/// Resolves when `key` is deleted at or after revision `from`.
async fn wait_for_end(client: &Client, key: &[u8], from: i64) -> Result<(), String> {
    let options = WatchOptions::new()
        .with_start_revision(from)
        .with_filters([WatchFilterType::NoPut]);
    let mut watches = client.watch_client();
    let watch = watches.watch(key, Some(options)).await;
    let mut watch = watch.map_err(|error| reason(&error))?;
    loop {
        let message = watch.message().await.map_err(|error| reason(&error))?;
        let message = message.ok_or("the watch ended")?;
        if message.canceled() {
            return Err(message.cancel_reason().into());
        }
        let mut events = message.events().iter();
        if events.any(|event| event.event_type() == EventType::Delete) {
            return Ok(());
        }
    }
}

#[async_trait]
impl Actor for Contender {
    async fn perform(&mut self, stage: &Stage) -> anyhow::Result<()> {
        let client = stage.address.connect().await?;
        while stage.think(&mut self.rng, THINK).await {
            // A turn is taken to its end, so that nobody waits for one who has left.
            self.take_turn(stage, &client).await;
        }
        Ok(())
    }
}

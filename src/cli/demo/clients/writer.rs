//! A writer: overwrites keys that were there before, makes new ones and overwrites those.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::PutOptions;
use rand::RngExt as _;
use rand::rngs::StdRng;

use super::{Actor, pick};
use crate::cli::demo::ledger::{Effect, Facts};
use crate::cli::demo::meter::Kind;
use crate::cli::demo::stage::{Stage, dice, keys_of, revision, size, value};
use crate::types::KeyRange;

/// Between two requests.
const THINK: Duration = Duration::from_millis(12);

/// Writes, and makes sure that it is told what was there before.
pub(super) struct Writer {
    number: u64,
    rng: StdRng,
    /// Keys that it has made.
    made: Vec<Bytes>,
}

impl Writer {
    pub(super) fn new(number: u64) -> Self {
        Self {
            number,
            rng: dice(200 + number),
            made: Vec::new(),
        }
    }

    fn next_key(&mut self, stage: &Stage) -> Bytes {
        let props = &stage.show.props;
        match self.rng.random_range(0..10) {
            0..5 if !props.writable.is_empty() => pick(props, &mut self.rng).cloned(),
            5..7 if !self.made.is_empty() => {
                let index = self.rng.random_range(0..self.made.len());
                Some(self.made[index].clone())
            }
            _ => None,
        }
        .unwrap_or_else(|| {
            // Spread over the whole line of keys, so that they are made on both sides of what
            // the backfill has reached.
            let shard = self.rng.random_range(0..16);
            let (count, writer) = (self.made.len(), self.number);
            let area = ["events", "mail", "orders", "users", "visits"][count % 5];
            let key = props.key(format_args!("{area}/{shard:02}/new-{writer}-{count:05}"));
            self.made.push(key.clone());
            key
        })
    }
}

#[async_trait]
impl Actor for Writer {
    async fn perform(&mut self, stage: &Stage) -> anyhow::Result<()> {
        let mut keys = keys_of(&stage.address.connect().await?);
        let ledger = &stage.show.ledger;
        while stage.think(&mut self.rng, THINK).await {
            let key = self.next_key(stage);
            let bytes = size(&mut self.rng);
            let value = value(&mut self.rng, bytes);
            let prev = self.rng.random_bool(0.3);
            let options = if prev {
                PutOptions::new().with_prev_key()
            } else {
                PutOptions::new()
            };
            let effects = vec![Effect::put(&key, &value)];
            let what = || format!("put {}", String::from_utf8_lossy(&key));
            let request = keys.put(key.to_vec(), value, Some(options));
            match stage.ask(Kind::Write, what, request).await {
                Some(answer) => {
                    let at = revision(answer.header());
                    ledger.wrote(at, effects);
                    if prev {
                        let before = answer.prev_key().map(Facts::from);
                        ledger.read(&key, 0, at - 1, before);
                    }
                }
                None => ledger.doubt(KeyRange::One(key)),
            }
        }
        Ok(())
    }
}

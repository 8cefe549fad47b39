//! Counters: several clients increment one number by compare-and-swap on its revision.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{Compare, CompareOp, KeyValue, Txn, TxnOp, TxnOpResponse};
use rand::rngs::StdRng;

use super::Actor;
use crate::cli::demo::ledger::{Effect, Facts};
use crate::cli::demo::meter::Kind;
use crate::cli::demo::stage::{Show, Stage, dice, keys_of, revision};
use crate::types::KeyRange;

/// Between two attempts.
const THINK: Duration = Duration::from_millis(15);

/// Increments, if nobody else did so since it looked last. What it saw on the old store is what it
/// compares with on the new one.
pub(super) struct Counter {
    key: Bytes,
    rng: StdRng,
    number: i64,
    modified: i64,
}

impl Counter {
    pub(super) fn new(number: u64, show: &Show) -> Self {
        let key = show.props.key("counters/orders");
        show.ledger.keep_sum("the counter", &key, 0);
        Self {
            key,
            rng: dice(400 + number),
            number: 0,
            modified: 0,
        }
    }

    fn look(&mut self, found: Option<&KeyValue>) {
        self.number = found.map_or(0, integer);
        self.modified = found.map_or(0, KeyValue::mod_revision);
    }
}

/// A value that is a decimal number.
pub(super) fn integer(kv: &KeyValue) -> i64 {
    let text = kv.value_str().unwrap_or_default();
    text.parse().unwrap_or_default()
}

#[async_trait]
impl Actor for Counter {
    async fn perform(&mut self, stage: &Stage) -> anyhow::Result<()> {
        let mut keys = keys_of(&stage.address.connect().await?);
        let ledger = &stage.show.ledger;
        while stage.think(&mut self.rng, THINK).await {
            let next = (self.number + 1).to_string();
            let effects = vec![Effect::put(&self.key, next.as_bytes())];
            let (key, floor) = (self.key.to_vec(), ledger.floor());
            let unchanged = Compare::mod_revision(key.clone(), CompareOp::Equal, self.modified);
            let txn = Txn::new()
                .when([unchanged])
                .and_then([TxnOp::put(key.clone(), next, None)])
                .or_else([TxnOp::get(key, None)]);
            let what = || "increment the counter".into();
            let Some(answer) = stage.ask(Kind::Write, what, keys.txn(txn)).await else {
                ledger.doubt(KeyRange::One(self.key.clone()));
                continue;
            };
            let at = revision(answer.header());
            if answer.succeeded() {
                ledger.wrote(at, effects);
                ledger.add_to_sum("the counter", 1);
                self.number += 1;
                self.modified = at;
            } else if let Some(TxnOpResponse::Get(now)) = answer.op_responses().first() {
                let found = now.kvs().first();
                ledger.read(&self.key, floor, at, found.map(Facts::from));
                self.look(found);
            }
        }
        Ok(())
    }
}

//! A deleter: single keys, which it sometimes makes anew, and whole ranges of a job queue.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{DeleteOptions, KvClient, Txn, TxnOp};
use rand::RngExt as _;
use rand::rngs::StdRng;

use super::{Actor, pick};
use crate::cli::demo::ledger::{Effect, Facts};
use crate::cli::demo::meter::Kind;
use crate::cli::demo::stage::{Stage, dice, keys_of, revision, value};
use crate::types::KeyRange;

/// Between two requests.
const THINK: Duration = Duration::from_millis(15);

/// Queues that it empties and fills.
const QUEUES: u32 = 60;

/// Deletes, and makes sure that it is told what was there.
pub(super) struct Deleter {
    rng: StdRng,
    filled: u32,
}

impl Deleter {
    pub(super) fn new() -> Self {
        Self {
            rng: dice(300),
            filled: 0,
        }
    }

    async fn delete(stage: &Stage, keys: &mut KvClient, key: &Bytes) {
        let ledger = &stage.show.ledger;
        let what = || format!("delete {}", String::from_utf8_lossy(key));
        let options = DeleteOptions::new().with_prev_key();
        let floor = ledger.floor();
        let request = keys.delete(key.to_vec(), Some(options));
        let Some(answer) = stage.ask(Kind::Write, what, request).await else {
            return ledger.doubt(KeyRange::One(key.clone()));
        };
        let at = revision(answer.header());
        if answer.deleted() > 0 {
            ledger.wrote(at, vec![Effect::Delete(key.clone())]);
            let before = answer.prev_kvs().first().map(Facts::from);
            ledger.read(key, 0, at - 1, before);
        } else {
            // A delete that deletes nothing says that nothing was there.
            ledger.read(key, floor, at, None);
        }
    }

    async fn clear(stage: &Stage, keys: &mut KvClient, prefix: &Bytes) {
        let ledger = &stage.show.ledger;
        let range = KeyRange::prefix(prefix.clone());
        let what = || format!("delete all of {}", String::from_utf8_lossy(prefix));
        let options = DeleteOptions::new().with_prefix();
        let request = keys.delete(prefix.to_vec(), Some(options));
        match stage.ask(Kind::Write, what, request).await {
            Some(answer) if answer.deleted() > 0 => {
                let clear = Effect::Clear {
                    keys: range,
                    deleted: answer.deleted(),
                };
                ledger.wrote(revision(answer.header()), vec![clear]);
            }
            Some(answer) => ledger.told(revision(answer.header())),
            None => ledger.doubt(range),
        }
    }

    /// Puts several jobs into a queue at once.
    async fn fill(&mut self, stage: &Stage, keys: &mut KvClient, prefix: &Bytes) {
        let ledger = &stage.show.ledger;
        let (mut ops, mut effects) = (Vec::new(), Vec::new());
        for _ in 0..self.rng.random_range(2..8) {
            self.filled += 1;
            let key: Bytes = [prefix, format!("job-{:06}", self.filled).as_bytes()]
                .concat()
                .into();
            let value = value(&mut self.rng, 150);
            effects.push(Effect::put(&key, &value));
            ops.push(TxnOp::put(key, value, None));
        }
        let what = || format!("fill {}", String::from_utf8_lossy(prefix));
        let request = keys.txn(Txn::new().and_then(ops));
        match stage.ask(Kind::Write, what, request).await {
            Some(answer) => ledger.wrote(revision(answer.header()), effects),
            None => ledger.doubt(KeyRange::prefix(prefix.clone())),
        }
    }

    async fn renew(&mut self, stage: &Stage, keys: &mut KvClient, key: &Bytes) {
        let ledger = &stage.show.ledger;
        let value = value(&mut self.rng, 200);
        let effects = vec![Effect::put(key, &value)];
        let what = || format!("put {}", String::from_utf8_lossy(key));
        let request = keys.put(key.to_vec(), value, None);
        match stage.ask(Kind::Write, what, request).await {
            Some(answer) => ledger.wrote(revision(answer.header()), effects),
            None => ledger.doubt(KeyRange::One(key.clone())),
        }
    }
}

#[async_trait]
impl Actor for Deleter {
    async fn perform(&mut self, stage: &Stage) -> anyhow::Result<()> {
        let mut keys = keys_of(&stage.address.connect().await?);
        let props = &stage.show.props;
        while stage.think(&mut self.rng, THINK).await {
            let queue = self.rng.random_range(0..QUEUES);
            let queue = props.key(format_args!("queue/{queue:03}/"));
            match self.rng.random_range(0..10) {
                0..2 => Self::clear(stage, &mut keys, &queue).await,
                2 => self.fill(stage, &mut keys, &queue).await,
                choice => {
                    let Some(key) = pick(props, &mut self.rng) else {
                        continue;
                    };
                    Self::delete(stage, &mut keys, key).await;
                    if choice == 9 {
                        self.renew(stage, &mut keys, key).await;
                    }
                }
            }
        }
        Ok(())
    }
}

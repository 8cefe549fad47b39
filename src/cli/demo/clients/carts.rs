//! Shopping carts that nobody comes back for: keys with short leases that run out at all times of
//! the show, also while keys move and in the very moment of the switch.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::PutOptions;
use rand::rngs::StdRng;

use super::Actor;
use crate::cli::demo::ledger::{Effect, Fingerprint};
use crate::cli::demo::meter::Kind;
use crate::cli::demo::stage::{Stage, dice, keys_of, revision, value};
use crate::types::KeyRange;

/// Between two carts.
const THINK: Duration = Duration::from_millis(150);

/// How long a cart is kept, in seconds: the shortest that etcd grants.
pub(in crate::cli::demo) const TTL_S: i64 = 2;

/// Fills carts.
pub(super) struct Carts {
    rng: StdRng,
    count: u64,
}

impl Carts {
    pub(super) fn new() -> Self {
        Self {
            rng: dice(600),
            count: 0,
        }
    }
}

#[async_trait]
impl Actor for Carts {
    async fn perform(&mut self, stage: &Stage) -> anyhow::Result<()> {
        let client = stage.address.connect().await?;
        let (mut keys, mut leases) = (keys_of(&client), client.lease_client());
        let ledger = &stage.show.ledger;
        while stage.think(&mut self.rng, THINK).await {
            let what = || "grant a lease".into();
            let request = leases.grant(TTL_S, None);
            let Some(granted) = stage.ask(Kind::Write, what, request).await else {
                continue;
            };
            self.count += 1;
            let count = self.count;
            let key: Bytes = stage.show.props.key(format_args!("carts/{count:05}"));
            let value = value(&mut self.rng, 300);
            let effects = vec![Effect::Put {
                key: key.clone(),
                value: Fingerprint::of(&value),
                lease: granted.id(),
            }];
            let options = PutOptions::new().with_lease(granted.id());
            let what = || format!("put {}", String::from_utf8_lossy(&key));
            let request = keys.put(key.to_vec(), value, Some(options));
            if let Some(answer) = stage.ask(Kind::Write, what, request).await {
                ledger.wrote(revision(answer.header()), effects);
                ledger.will_expire(key);
            } else {
                ledger.doubt(KeyRange::One(key));
            }
        }
        Ok(())
    }
}

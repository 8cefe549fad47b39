//! A reader: gets, lists with a limit, counts.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{GetOptions, KvClient};
use rand::RngExt as _;
use rand::rngs::StdRng;

use super::Actor;
use crate::cli::demo::ledger::{Digest, Facts, ListRead};
use crate::cli::demo::meter::Kind;
use crate::cli::demo::stage::{Stage, dice, keys_of, revision};
use crate::types::KeyRange;

/// Between two requests.
const THINK: Duration = Duration::from_millis(6);

/// Reads all over the place.
pub(super) struct Reader {
    rng: StdRng,
}

impl Reader {
    pub(super) fn new(number: u64) -> Self {
        Self {
            rng: dice(100 + number),
        }
    }

    async fn get(stage: &Stage, keys: &mut KvClient, key: &Bytes) {
        let floor = stage.show.ledger.floor();
        let what = || format!("get {}", String::from_utf8_lossy(key));
        let request = keys.get(key.to_vec(), None);
        if let Some(answer) = stage.ask(Kind::Read, what, request).await {
            let seen = answer.kvs().first().map(Facts::from);
            let at = revision(answer.header());
            stage.show.ledger.read(key, floor, at, seen);
        }
    }

    async fn list(stage: &Stage, keys: &mut KvClient, directory: &Bytes, form: Form) {
        let options = GetOptions::new().with_prefix();
        let options = match form {
            Form::Pairs { limit } => options.with_limit(limit),
            Form::Keys => options.with_keys_only(),
            Form::Count => options.with_count_only(),
        };
        let floor = stage.show.ledger.floor();
        let what = || format!("list {}", String::from_utf8_lossy(directory));
        let request = keys.get(directory.to_vec(), Some(options));
        let Some(answer) = stage.ask(Kind::Read, what, request).await else {
            return;
        };
        let mut digest = Digest::default();
        for kv in answer.kvs() {
            digest.add(
                kv.key(),
                kv.create_revision(),
                kv.mod_revision(),
                kv.version(),
            );
        }
        stage.show.ledger.listed(ListRead {
            keys: KeyRange::prefix(directory.clone()),
            limit: match form {
                Form::Pairs { limit } => usize::try_from(limit).unwrap_or(usize::MAX),
                Form::Keys | Form::Count => 0,
            },
            revision: revision(answer.header()),
            floor,
            count: answer.count(),
            digest: (form != Form::Count).then_some(digest),
        });
    }
}

/// How a list is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Pairs { limit: i64 },
    Keys,
    Count,
}

#[async_trait]
impl Actor for Reader {
    async fn perform(&mut self, stage: &Stage) -> anyhow::Result<()> {
        let mut keys = keys_of(&stage.address.connect().await?);
        let props = &stage.show.props;
        while stage.think(&mut self.rng, THINK).await {
            let hot = self.rng.random_bool(0.3);
            let from = if hot {
                &props.writable
            } else {
                &props.readable
            };
            let directories = &props.directories;
            let form = match self.rng.random_range(0..20) {
                0..2 => Form::Pairs {
                    limit: self.rng.random_range(1..30),
                },
                2 => Form::Keys,
                3 => Form::Count,
                _ => {
                    if !from.is_empty() {
                        let key = &from[self.rng.random_range(0..from.len())];
                        Self::get(stage, &mut keys, key).await;
                    }
                    continue;
                }
            };
            if !directories.is_empty() {
                let directory = &directories[self.rng.random_range(0..directories.len())];
                Self::list(stage, &mut keys, directory, form).await;
            }
        }
        Ok(())
    }
}

//! Bookkeepers: move money between accounts in transactions over several keys, so that the sum
//! never changes.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{Compare, CompareOp, KvClient, Txn, TxnOp, TxnOpResponse};
use rand::RngExt as _;
use rand::rngs::StdRng;

use super::Actor;
use super::counter::integer;
use crate::cli::demo::ledger::{Effect, Facts};
use crate::cli::demo::meter::Kind;
use crate::cli::demo::stage::{Show, Stage, dice, keys_of, revision};
use crate::types::KeyRange;

/// Between two transfers.
const THINK: Duration = Duration::from_millis(15);

/// How many accounts there are. They lie far apart in the order of keys, so that a transaction may
/// meet one that was moved already and one that was not.
pub(in crate::cli::demo) const ACCOUNTS: usize = 16;

/// What is in each at first.
pub(in crate::cli::demo) const OPENING: i64 = 1_000;

/// The key of account number `n`.
pub(in crate::cli::demo) fn account(root: &str, n: usize) -> String {
    const AREAS: [&str; 4] = ["accounts", "ledger", "partners", "wallets"];
    format!("{root}{}/{n:02}/balance", AREAS[n % AREAS.len()])
}

/// Moves money.
pub(super) struct Bookkeeper {
    rng: StdRng,
    keys: Vec<Bytes>,
    /// The balances as it saw them last.
    known: BTreeMap<usize, i64>,
}

impl Bookkeeper {
    pub(super) fn new(number: u64, show: &Show) -> Self {
        let keys = (0..ACCOUNTS).map(|n| account(&show.props.root, n).into());
        let keys: Vec<Bytes> = keys.collect();
        for key in &keys {
            show.ledger
                .keep_sum("the sum of all accounts", key, OPENING);
        }
        Self {
            rng: dice(500 + number),
            keys,
            known: BTreeMap::new(),
        }
    }

    /// Makes the accounts, unless they are there.
    async fn open(&self, stage: &Stage, keys: &mut KvClient) {
        let first = Compare::version(self.keys[0].to_vec(), CompareOp::Equal, 0);
        let opening = OPENING.to_string();
        let puts = self.keys.iter();
        let puts: Vec<_> = puts
            .map(|key| TxnOp::put(key.to_vec(), opening.clone(), None))
            .collect();
        let txn = Txn::new().when([first]).and_then(puts);
        let what = || "open the accounts".into();
        let Some(answer) = stage.ask(Kind::Write, what, keys.txn(txn)).await else {
            for key in &self.keys {
                stage.show.ledger.doubt(KeyRange::One(key.clone()));
            }
            return;
        };
        if answer.succeeded() {
            let effects = self.keys.iter();
            let effects = effects.map(|key| Effect::put(key, opening.as_bytes()));
            let at = revision(answer.header());
            stage.show.ledger.wrote(at, effects.collect());
        }
    }

    async fn transfer(&mut self, stage: &Stage, keys: &mut KvClient, from: usize, to: usize) {
        let ledger = &stage.show.ledger;
        let balance = |n| self.known.get(&n).copied();
        let (has, gets) = (balance(from), balance(to));
        let amount = self.rng.random_range(1..50);
        // Comparing values, where the counter compares revisions. A balance that is not known
        // compares with what no account has.
        let compare = |n: usize, known: Option<i64>| {
            let known = known.map_or("unknown".into(), |balance| balance.to_string());
            Compare::value(self.keys[n].to_vec(), CompareOp::Equal, known)
        };
        let after = [
            (from, has.unwrap_or(0) - amount),
            (to, gets.unwrap_or(0) + amount),
        ];
        let puts =
            after.map(|(n, balance)| TxnOp::put(self.keys[n].to_vec(), balance.to_string(), None));
        let looks = [from, to].map(|n| TxnOp::get(self.keys[n].to_vec(), None));
        let txn = Txn::new()
            .when([compare(from, has), compare(to, gets)])
            .and_then(puts)
            .or_else(looks);
        let floor = ledger.floor();
        let what = || "a transfer".into();
        let Some(answer) = stage.ask(Kind::Write, what, keys.txn(txn)).await else {
            for n in [from, to] {
                ledger.doubt(KeyRange::One(self.keys[n].clone()));
            }
            return;
        };
        let at = revision(answer.header());
        if answer.succeeded() {
            let effects = after
                .map(|(n, balance)| Effect::put(&self.keys[n], balance.to_string().as_bytes()));
            ledger.wrote(at, effects.into());
            self.known.extend(after);
            return;
        }
        for (n, look) in [from, to].into_iter().zip(answer.op_responses()) {
            if let TxnOpResponse::Get(now) = look {
                let found = now.kvs().first();
                ledger.read(&self.keys[n], floor, at, found.map(Facts::from));
                self.known.insert(n, found.map_or(0, integer));
            }
        }
    }
}

#[async_trait]
impl Actor for Bookkeeper {
    async fn perform(&mut self, stage: &Stage) -> anyhow::Result<()> {
        let mut keys = keys_of(&stage.address.connect().await?);
        if self.known.is_empty() {
            self.open(stage, &mut keys).await;
        }
        while stage.think(&mut self.rng, THINK).await {
            let from = self.rng.random_range(0..ACCOUNTS);
            let to = (from + self.rng.random_range(1..ACCOUNTS)) % ACCOUNTS;
            self.transfer(stage, &mut keys, from, to).await;
        }
        Ok(())
    }
}

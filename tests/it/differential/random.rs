//! Many requests that nobody thought of, the same ones for the same seed.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use segue::proto::etcdserverpb as pb;

use super::Pair;
use super::ask::Ask;
use super::script::{IntoOp, compare, range};
use super::watches::history;
use pb::compare::{CompareResult, CompareTarget, TargetUnion};

/// Few keys, so that requests meet.
const KEYS: [&str; 9] = ["a", "a/1", "a/2", "aa", "b", "b/\u{7f}", "c", "d", "e"];
const ENDS: [&str; 8] = ["", "", "", "\0", "b", "a0", "c", "\u{7f}"];
const LEASES: i64 = 4;
/// Requests in one run.
const ASKED: usize = 800;
/// The seed that is used unless the environment names another one in `SEED`.
const SEED: u64 = 1;

/// Requests that nobody thought of.
pub(crate) struct Random {
    pub(crate) rng: StdRng,
    /// What they are about.
    pub(crate) keys: Vec<String>,
    /// About how far the revisions are.
    pub(crate) revision: i64,
    /// How much further those are that are asked for.
    pub(crate) ahead: i64,
    /// Only behind this one is history read or compacted.
    pub(crate) floor: i64,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            keys: KEYS.map(str::to_owned).to_vec(),
            revision: 1,
            ahead: 2,
            floor: 0,
        }
    }

    fn key(&mut self) -> String {
        self.keys[self.rng.random_range(0..self.keys.len())].clone()
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.rng.random_ratio(1, n)
    }

    fn revision(&mut self) -> i64 {
        self.rng.random_range(-1..=self.revision + self.ahead)
    }

    /// One whose state is asked for.
    fn past(&mut self) -> i64 {
        let revision = self.revision();
        if (1..=self.floor).contains(&revision) {
            0
        } else {
            revision
        }
    }

    fn lease(&mut self) -> i64 {
        if self.one_in(3) {
            self.rng.random_range(1..=LEASES)
        } else {
            0
        }
    }

    fn range(&mut self) -> pb::RangeRequest {
        let (key, end) = (self.key(), self.rng.random_range(0..ENDS.len()));
        let mut request = range(&key, ENDS[end]);
        if self.one_in(3) {
            request.limit = self.rng.random_range(-1..5);
        }
        if self.one_in(4) {
            request.revision = self.past();
        }
        if self.one_in(3) {
            request.sort_order = self.rng.random_range(0..3);
            request.sort_target = self.rng.random_range(0..5);
        }
        if self.one_in(5) {
            request.min_mod_revision = self.revision().max(0);
            request.max_create_revision = self.revision().max(0);
        }
        if self.one_in(5) {
            request.max_mod_revision = self.revision().max(0);
            request.min_create_revision = self.revision().max(0);
        }
        request.keys_only = self.one_in(5);
        request.count_only = self.one_in(7);
        request.serializable = self.one_in(4);
        request
    }

    /// A write. Of one that keeps the value of a missing key *and* names a missing lease, etcd
    /// says one thing if it comes alone and another if it is a transaction's only operation, which
    /// a store cannot tell apart: it is not asked.
    fn put(&mut self) -> pb::PutRequest {
        let mut request = pb::PutRequest {
            key: self.key().into(),
            value: self.rng.random_range(0..50).to_string().into(),
            lease: self.lease(),
            prev_kv: self.one_in(2),
            ..pb::PutRequest::default()
        };
        if self.one_in(6) {
            request.ignore_value = true;
            request.value = "".into();
            request.lease = 0;
        }
        if self.one_in(6) {
            request.ignore_lease = true;
            request.lease = 0;
        }
        request
    }

    fn delete(&mut self) -> pb::DeleteRangeRequest {
        pb::DeleteRangeRequest {
            key: self.key().into(),
            range_end: if self.one_in(2) {
                "".into()
            } else {
                ENDS[self.rng.random_range(0..ENDS.len())].into()
            },
            prev_kv: self.one_in(2),
        }
    }

    fn compare(&mut self) -> pb::Compare {
        let number = self.rng.random_range(0..4);
        let revision = self.revision();
        let (target, operand) = match self.rng.random_range(0..5) {
            0 => (CompareTarget::Version, TargetUnion::Version(number)),
            1 => (CompareTarget::Create, TargetUnion::CreateRevision(revision)),
            2 => (CompareTarget::Mod, TargetUnion::ModRevision(revision)),
            3 => (
                CompareTarget::Value,
                TargetUnion::Value(number.to_string().into()),
            ),
            _ => (CompareTarget::Lease, TargetUnion::Lease(number)),
        };
        let result = CompareResult::try_from(self.rng.random_range(0..4)).unwrap();
        let end = self.rng.random_range(0..ENDS.len());
        compare(&self.key(), ENDS[end], result, target, operand)
    }

    fn ops(&mut self, depth: u32) -> Vec<pb::RequestOp> {
        let count = self.rng.random_range(0..4);
        (0..count)
            .map(|_| match self.rng.random_range(0..7) {
                0 | 1 => {
                    let mut range = self.range();
                    // Alone it means the latest; in a transaction etcd calls it compacted, but only
                    // once something was, as which a migration counts.
                    range.revision = range.revision.max(0);
                    range.op()
                }
                2 | 3 => self.put().op(),
                4 => {
                    let mut delete = self.delete();
                    // etcd does not notice that a put lies in a range without an end, and falls
                    // over if the put keeps the value of the key that was just deleted.
                    if delete.range_end[..] == [0] {
                        delete.range_end = "z".into();
                    }
                    delete.op()
                }
                _ if depth < 2 => self.txn(depth + 1).op(),
                _ => self.put().op(),
            })
            .collect()
    }

    fn compaction(&mut self) -> i64 {
        let last = self.revision + self.ahead.min(1);
        let first = self.floor + 1;
        self.rng.random_range(first..=last.max(first))
    }

    fn txn(&mut self, depth: u32) -> pb::TxnRequest {
        let compares = self.rng.random_range(0..3);
        pb::TxnRequest {
            compare: (0..compares).map(|_| self.compare()).collect(),
            success: self.ops(depth),
            failure: self.ops(depth),
        }
    }

    pub(crate) fn ask(&mut self) -> Ask {
        let id = self.rng.random_range(1..=LEASES);
        match self.rng.random_range(0..100) {
            0..25 => self.range().into(),
            25..50 => self.put().into(),
            50..60 => self.delete().into(),
            60..88 => self.txn(0).into(),
            88..92 => pb::LeaseGrantRequest { ttl: 9000, id }.into(),
            92..94 => pb::LeaseRevokeRequest { id }.into(),
            94..96 => pb::LeaseTimeToLiveRequest { id, keys: true }.into(),
            96 => pb::LeaseLeasesRequest {}.into(),
            97 => pb::LeaseKeepAliveRequest { id }.into(),
            98 => Ask::Range(range("\0", "\0")),
            // etcd takes a compaction at 0 once and refuses it from then on.
            _ => pb::CompactionRequest {
                revision: self.compaction(),
                physical: true,
            }
            .into(),
        }
    }
}

/// Random requests, then the whole history that is left.
pub(super) async fn random_requests_answer_alike(mut pair: Pair) {
    let seed = std::env::var("SEED").map_or(SEED, |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let mut random = Random::new(seed);
    for _ in 0..ASKED {
        let ask = random.ask();
        let said = pair.ask(ask).await;
        if let Some(revision) = revision_of(&said) {
            random.revision = random.revision.max(revision);
        }
    }
    history(&mut pair).await;
}

/// The revision in the header of an answer.
pub(crate) fn revision_of(said: &str) -> Option<i64> {
    let (_, rest) = said.split_once("revision: ")?;
    rest.split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

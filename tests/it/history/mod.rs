//! What clients did and saw, written down, and a check that a correct store explains all of it.
//!
//! etcd gives every change a revision, so no search is needed for the order in which things
//! happened: the history says it, and has to agree with itself and with the clients' clocks.

#![allow(dead_code, unreachable_pub, reason = "shared by the scenarios")]

mod check;
pub mod client;
mod explain;
mod log;
mod selftest;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use check::{Rule, check};
pub use explain::explain;

/// A pair with all its numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
    /// Revision in which this life of the key began.
    pub created: i64,
    /// Revision of its latest change.
    pub modified: i64,
    /// Changes in this life.
    pub version: i64,
    /// Its lease; 0 is none.
    pub lease: i64,
}

/// Everything that there is to check.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// What the store held at revision `base`, before anybody did anything.
    pub initial: Vec<Pair>,
    /// The last revision of the initial state.
    pub base: i64,
    /// What clients did.
    pub operations: Vec<Operation>,
    /// What watchers saw.
    pub watches: Vec<WatchLog>,
    /// Leases that were kept alive all the time.
    pub kept: BTreeSet<i64>,
    /// Other leases, and when they may end at the earliest, on the clients' clock.
    pub due: BTreeMap<i64, Duration>,
    /// What was read when all was over, and the last revision.
    pub last: Option<(i64, Vec<Pair>)>,
}

/// One request of one client.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Who.
    pub client: usize,
    /// When it was sent, on a clock that all clients share.
    pub start: Duration,
    /// When it was answered.
    pub end: Duration,
    /// What was asked for. Values are never written twice, so that a value tells who wrote it.
    pub call: Call,
    /// What came of it.
    pub outcome: Outcome,
}

/// What a client asks for.
#[derive(Clone, Debug)]
pub enum Call {
    /// A read of one key.
    Get { key: String },
    /// A read of all keys that begin with `prefix`.
    List { prefix: String },
    /// One revision that writes these keys and values, attached to the lease.
    Put {
        pairs: Vec<(String, String)>,
        lease: i64,
    },
    /// A delete of one key.
    Delete { key: String },
    /// A put on the condition that the key's mod revision is the expected one (0: no such key).
    Swap {
        key: String,
        expected: i64,
        value: String,
    },
    /// The end of a lease.
    Revoke { lease: i64 },
}

/// What came of a request.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It was done, or for a swap, not done because the condition did not hold.
    Done(Reply),
    /// It certainly did not happen.
    Failed(String),
    /// Nobody knows.
    Unknown(String),
}

/// The answer to a request that was carried out.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The revision in the answer's header.
    pub revision: i64,
    /// The pairs that were read.
    pub pairs: Vec<Pair>,
    /// Whether it changed something: then it happened at `revision`, and alone.
    pub changed: bool,
}

/// What one watcher saw, over all its reconnections.
#[derive(Clone, Debug, Default)]
pub struct WatchLog {
    /// Who.
    pub name: String,
    /// It watches the keys that begin with this.
    pub prefix: String,
    /// It asked for everything from this revision on.
    pub start: i64,
    /// What it was sent.
    pub batches: Vec<Batch>,
    /// It was told that there is nothing more up to here.
    pub through: i64,
}

/// The events of one answer to a watch.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// When it came, on the clients' clock.
    pub at: Duration,
    /// In the order in which they came.
    pub events: Vec<Event>,
}

/// A change of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The revision of the change.
    pub revision: i64,
    /// The key.
    pub key: String,
    /// The pair after it; nothing if it was deleted.
    pub pair: Option<Pair>,
    /// The pair before it, if the watcher asked for that and there was one.
    pub prev: Option<Pair>,
}

impl Call {
    /// Whether it may change something.
    pub fn is_write(&self) -> bool {
        !matches!(self, Self::Get { .. } | Self::List { .. })
    }
}

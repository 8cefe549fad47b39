//! etcd v3 as a store: as the new one of a migration, by itself, and as the old one.
//!
//! Under no guard everything is passed through, with etcd's own numbers (after settle: shifted, as
//! clients are used to). Under an epoch three things are added.
//!
//! - **Claims.** A key is claimed if its claim record exists. The record is written once, in the
//!   transaction that first writes or copies up the key, never changed, and has no lease: so a key that is
//!   deleted, or that etcd lets expire by itself, leaves a whiteout behind without anybody's doing.
//! - **Numbers.** Clients see etcd's revisions shifted by an offset that is fixed when the line is set. The
//!   claim record of a key that was copied up holds the numbers that the key had in the old store, which
//!   clients see for as long as the key lives on. Copy-ups and records take revisions of etcd's, so
//!   clients see gaps, never a repetition. What the store held before is as if it had been written behind
//!   the base.
//! - **The epoch.** Every transaction and every read has the condition that the epoch still stands. etcd cannot put
//!   grants, revokes and compactions into transactions: for these the epoch is read just before.
//!
//! In an old store that changes are replayed into, claims hold the numbers of what was replayed. When it goes
//! into service again a new offset begins, and what was written before keeps the one of its time.
//!
//! What belongs to the store itself lies below `segue/_/` (under the reserved prefix): `epoch`, `line`,
//! `unseen`, `claim/KEY` and `record/NAME`. After a settled migration what clients' numbers hang on is left of it:
//! `line`, and the claims of keys that were copied up. Without them the holder of a lock would lose it, and a
//! compare-and-swap on numbers that somebody remembers would fail.
//!
//! Modules: `client` (connection, log-in, deadlines) and `errors`; `names`, `numbers` and `claims` (pure)
//! with `view`, which brings them together; `session` (what all operations under a guard share), `ops`,
//! `reads` and `copies` (which go together), `txn` and `decide` (transactions), `snapshot`, `late` (reads of
//! the past), `copy_up`, `present` (keys that were there before), `records`, `replay`, `clear`; `tail` (watches); `old`.

mod claims;
mod clear;
mod client;
mod copies;
mod copy_up;
mod decide;
mod errors;
mod foreign;
mod late;
mod names;
mod numbers;
mod old;
mod ops;
mod pace;
mod present;
mod reads;
mod records;
mod replay;
mod session;
mod snapshot;
mod tail;
mod txn;
mod view;

use std::sync::{Arc, Mutex, PoisonError};

use client::Client;
use names::Names;
use records::StoredLine;
use view::View;

use super::Result;
use super::url::Cluster;
use crate::types::Reserved;

pub use old::OldEtcd3;
pub use replay::REPLAY_OVERHEAD_BYTES;

/// An etcd cluster as a new store.
pub struct Etcd3 {
    shared: Arc<Shared>,
}

/// What all handles on the store share.
struct Shared {
    client: Client,
    names: Arc<Names>,
    plain: Arc<View>,
    /// The view under the latest line that a handle was made for.
    under_line: Mutex<Option<Arc<View>>>,
}

impl Etcd3 {
    /// Connects to a cluster and makes sure that it answers and lets us in.
    pub async fn open(cluster: &Cluster, reserved: Reserved) -> Result<Self> {
        let client = Client::open(cluster).await?;
        let names = Arc::new(Names::new(&reserved));
        Ok(Self {
            shared: Arc::new(Shared::new(client, names)),
        })
    }
}

impl Shared {
    fn new(client: Client, names: Arc<Names>) -> Self {
        Self {
            plain: Arc::new(View::plain(client.clone(), names.clone())),
            client,
            names,
            under_line: Mutex::new(None),
        }
    }

    /// The store as it is to be seen under `line`. Handles of different epochs share it, and with it
    /// the claims that are known, for as long as the numbers stay the same.
    fn view(&self, line: &StoredLine) -> Arc<View> {
        let numbers = line.numbers();
        let mut view = self
            .under_line
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let view = match &*view {
            Some(view) if view.numbers == numbers => view.clone(),
            _ => {
                let new = View::under_line(self.client.clone(), self.names.clone(), numbers);
                view.insert(Arc::new(new)).clone()
            }
        };
        view.set_line(line);
        view
    }

    /// Forgets what was known under the last line.
    fn forget_views(&self) {
        let view = self
            .under_line
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(known) = view.as_ref().and_then(|view| view.known.as_ref()) {
            known.forget();
        }
    }
}

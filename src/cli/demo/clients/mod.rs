//! The live clients: each kind in its own file, all of them ordinary etcd clients over TCP.
//!
//! A client performs in two acts, first on the old store alone and then on Segue, and keeps what
//! it knows in between: the revisions that it compares with, its leases, and where its watches are.

mod accounts;
mod carts;
mod counter;
mod deleter;
mod holder;
mod lock;
mod reader;
mod watcher;
mod writer;

use async_trait::async_trait;

use super::stage::{Props, Show, Stage};

/// One client.
#[async_trait]
pub(super) trait Actor: Send {
    /// Performs until the stage says stop. Failed requests are noted on the stage; only what makes
    /// it impossible to go on is an error.
    async fn perform(&mut self, stage: &Stage) -> anyhow::Result<()>;
}

/// A client with its name.
pub(super) struct Cast {
    /// For the list of tasks and for errors.
    pub name: String,
    /// The client.
    pub actor: Box<dyn Actor>,
}

/// How many clients of each kind there are, in words and on two lines.
pub(super) const LINE_UP: [&str; 2] = [
    "4 readers, 3 writers, a deleter, 3 counters, 2 bookkeepers,",
    "3 in a lock's queue, a lease holder, abandoned carts, 4 watchers",
];

/// All clients of a show. Watches begin behind the revision that the ledger was opened at.
pub(super) fn line_up(show: &Show) -> Vec<Cast> {
    let mut cast = Vec::new();
    let mut add = |name: String, actor: Box<dyn Actor>| cast.push(Cast { name, actor });
    for n in 0..4 {
        add(format!("reader {n}"), Box::new(reader::Reader::new(n)));
    }
    for n in 0..3 {
        add(format!("writer {n}"), Box::new(writer::Writer::new(n)));
    }
    for n in 0..3 {
        add(
            format!("counter {n}"),
            Box::new(counter::Counter::new(n, show)),
        );
        add(format!("lock {n}"), Box::new(lock::Contender::new(n, show)));
    }
    for n in 0..2 {
        add(
            format!("bookkeeper {n}"),
            Box::new(accounts::Bookkeeper::new(n, show)),
        );
    }
    add("deleter".into(), Box::new(deleter::Deleter::new()));
    add("carts".into(), Box::new(carts::Carts::new()));
    add("holder".into(), Box::new(holder::Holder::new()));
    for watcher in watcher::all(show) {
        add(format!("watcher of {}", watcher.name()), Box::new(watcher));
    }
    cast
}

/// A key that may be written: half of the time one of the few hot ones, which all clients share.
fn pick<'a>(props: &'a Props, rng: &mut rand::rngs::StdRng) -> Option<&'a bytes::Bytes> {
    use rand::RngExt as _;
    let keys = &props.writable;
    let hot = (keys.len() / 20).max(1).min(keys.len());
    let below = if rng.random_bool(0.5) {
        hot
    } else {
        keys.len()
    };
    (below > 0).then(|| &keys[rng.random_range(0..below)])
}

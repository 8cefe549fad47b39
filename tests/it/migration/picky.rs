//! A new store that cannot take everything, or that others write to at the wrong moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use segue::store::memory::Memory;
use segue::store::{
    CopyUp, Guard, GuardedStore, Line, NewStore, Read, ReadReply, Record, RecordTxn, Replay,
    Replayed, RequestError, Result, Status, Store, Watch, Watching,
};
use segue::types::{
    Answer, Grant, Granted, KeyRange, KeyValue, LeaseId, LeaseStatus, Put, Range, RangeReply,
    Revision, Txn, TxnReply,
};
use tokio::sync::Mutex;

/// It says that it takes no longer keys.
pub const KEY_BYTES_MAX: usize = 100;

/// What it does not take.
#[derive(Clone, Copy, Debug)]
pub struct Taste {
    /// Most pairs at once.
    pub pairs: usize,
    /// Values that are "unpalatable" are refused.
    pub values: bool,
    /// Whoever looks at this key alone is overtaken by a client that writes it.
    pub rival: Option<&'static str>,
    /// Leases are granted through this door.
    pub door: Option<&'static Door>,
}

impl Taste {
    /// Any number of pairs, but no unpalatable values.
    pub const FOR_VALUES: Self = Self {
        pairs: usize::MAX,
        values: true,
        rival: None,
        door: None,
    };
}

/// A door that lets one through at a time.
#[derive(Debug)]
pub struct Door {
    takes: Duration,
    turn: Mutex<()>,
    before: AtomicUsize,
    most: AtomicUsize,
}

impl Door {
    pub const fn new(takes: Duration) -> Self {
        Self {
            takes,
            turn: Mutex::const_new(()),
            before: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        }
    }

    /// The most that have stood before it at the same time.
    pub fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    async fn pass(&self) {
        let before = self.before.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(before, Ordering::SeqCst);
        let turn = self.turn.lock().await;
        tokio::time::sleep(self.takes).await;
        drop(turn);
        self.before.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A store in memory with a [`Taste`].
pub struct Picky(pub Memory, pub Taste);

struct Guarded(Arc<dyn GuardedStore>, Taste);

#[async_trait]
impl NewStore for Picky {
    async fn identity(&self) -> Result<String> {
        self.0.identity().await
    }

    fn guarded(&self, guard: Guard) -> Arc<dyn GuardedStore> {
        Arc::new(Guarded(self.0.guarded(guard), self.1))
    }

    async fn line(&self) -> Result<Option<Line>> {
        self.0.line().await
    }

    async fn records(&self, prefix: &str) -> Result<Vec<Record>> {
        self.0.records(prefix).await
    }

    async fn write_records(&self, txn: RecordTxn) -> Result<bool> {
        self.0.write_records(txn).await
    }

    async fn replay(&self, replay: Replay) -> Result<bool> {
        let live = replay.changes.iter().filter_map(Replayed::live);
        self.1.check(&live.cloned().collect::<Vec<_>>())?;
        self.0.replay(replay).await
    }

    fn unacceptable(&self, key: &[u8], _: usize) -> Option<String> {
        (key.len() > KEY_BYTES_MAX).then(|| "the key is unpalatable".into())
    }

    async fn is_empty(&self) -> Result<bool> {
        self.0.is_empty().await
    }

    async fn drop_claims(&self) -> Result<()> {
        self.0.drop_claims().await
    }

    async fn clear(&self) -> Result<()> {
        self.0.clear().await
    }
}

impl Taste {
    fn check(self, pairs: &[KeyValue]) -> Result<()> {
        if pairs.len() > self.pairs {
            return Err(RequestError::TooManyOperations.into());
        }
        if self.values && pairs.iter().any(|kv| kv.value == "unpalatable") {
            return Err(RequestError::Unacceptable("the value is unpalatable".into()).into());
        }
        Ok(())
    }
}

#[async_trait]
impl GuardedStore for Guarded {
    async fn snapshot(
        &self,
        at: Option<Revision>,
        reads: Vec<Read>,
    ) -> Result<Answer<Vec<ReadReply>>> {
        let rival = self.1.rival.filter(|rival| {
            let looks = |read: &Read| matches!(read, Read::Claims { keys: KeyRange::One(key), .. } if key == rival);
            reads.iter().any(looks)
        });
        let found = self.0.snapshot(at, reads).await?;
        if let Some(rival) = rival {
            self.0.put(Put::new(rival, "by a client")).await?;
        }
        Ok(found)
    }

    async fn txn_over(&self, copies: Vec<KeyValue>, txn: Txn) -> Result<Answer<TxnReply>> {
        self.1.check(&copies)?;
        self.0.txn_over(copies, txn).await
    }

    async fn copy_up(&self, copy_up: CopyUp) -> Result<Option<usize>> {
        // As in a database, leases are looked for before anything is written.
        for kv in copy_up.kvs.iter().filter(|kv| kv.lease.is_some()) {
            if self.0.time_to_live(kv.lease, false).await?.reply.is_none() {
                return Err(RequestError::LeaseNotFound.into());
            }
        }
        self.1.check(&copy_up.kvs)?;
        self.0.copy_up(copy_up).await
    }

    async fn claim_present(&self) -> Result<()> {
        self.0.claim_present().await
    }
}

#[async_trait]
impl Store for Guarded {
    async fn range(&self, request: Range) -> Result<Answer<RangeReply>> {
        self.0.range(request).await
    }

    async fn txn(&self, request: Txn) -> Result<Answer<TxnReply>> {
        self.0.txn(request).await
    }

    async fn compact(&self, at: Revision) -> Result<Answer<()>> {
        self.0.compact(at).await
    }

    async fn watch(&self, request: Watch) -> Result<Watching> {
        self.0.watch(request).await
    }

    async fn grant(&self, request: Grant) -> Result<Answer<Granted>> {
        if let Some(door) = self.1.door {
            door.pass().await;
        }
        self.0.grant(request).await
    }

    async fn revoke(&self, id: LeaseId) -> Result<Answer<()>> {
        self.0.revoke(id).await
    }

    async fn keep_alive(&self, id: LeaseId) -> Result<Answer<Option<i64>>> {
        self.0.keep_alive(id).await
    }

    async fn time_to_live(&self, id: LeaseId, keys: bool) -> Result<Answer<Option<LeaseStatus>>> {
        self.0.time_to_live(id, keys).await
    }

    async fn leases(&self) -> Result<Answer<Vec<LeaseId>>> {
        self.0.leases().await
    }

    async fn status(&self) -> Result<Status> {
        self.0.status().await
    }

    async fn defragment(&self) -> Result<()> {
        self.0.defragment().await
    }
}

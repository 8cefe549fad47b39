//! The merged view of both stores in the migration phase.
//!
//! Everything here follows from one rule,
//!
//! ```text
//! view(key) = if new.claimed(key) { new.get(key) } else { old.get(key) }
//! ```
//!
//! and from six facts that have to stay true:
//!
//! 1. The old store does not change under unclaimed keys.
//! 2. A claim and what it claims are written in one transaction of the new store ([`GuardedStore`]).
//! 3. A claim is never removed before settle. So a key that was once seen claimed may be asked of
//!    the new store alone (`known`), and spans that lag behind do no harm ([`Spans`]).
//! 4. Copy-up is create-if-unclaimed: it may be repeated, raced and interrupted.
//! 5. Copy-up is not a change: no event, no revision, all numbers kept.
//! 6. The old store is read before the new one, and the new one in one snapshot (`read`).
//!
//! Writes and transactions first copy up what they touch, then run on the new store alone (`txn`).
//! Leases and watches belong to the new store from the beginning of the phase: leased keys are
//! copied up before it opens, and copy-up makes no events. What lies before the base revision is the old
//! store's history: [`WithPast`] puts it before the overlay, and before the new store alone in the
//! normal phase (`past`, `replay`).

mod known;
mod merge;
mod past;
mod read;
mod replay;
mod spans;
mod txn;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use async_trait::async_trait;

use crate::store::{GuardedStore, OldStore, Result, Status, Store, Watch, Watching};
use crate::types::{
    Answer, Delete, DeleteReply, Grant, Granted, KeyRange, LeaseId, LeaseStatus, Op, Put, PutReply,
    Range, RangeReply, Reply, Reserved, Revision, Txn, TxnReply,
};

use known::Known;
pub use past::WithPast;
pub use spans::Spans;

/// Both stores as one, for the length of the migration phase.
pub struct Overlay {
    old: Arc<dyn OldStore>,
    new: Arc<dyn GuardedStore>,
    reserved: Reserved,
    copied: ArcSwap<Spans>,
    known: Known,
    counters: Tally,
}

/// What the overlay has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reads that the new store answered alone.
    pub reads_new: u64,
    /// Reads for which the old store was asked as well.
    pub reads_old: u64,
    /// Keys copied up for the sake of a request.
    pub copy_ups: u64,
}

#[derive(Default)]
struct Tally {
    reads_new: AtomicU64,
    reads_old: AtomicU64,
    copy_ups: AtomicU64,
}

impl Tally {
    fn read_new(&self) {
        self.reads_new.fetch_add(1, Ordering::Relaxed);
    }

    fn read_old(&self) {
        self.reads_old.fetch_add(1, Ordering::Relaxed);
    }

    fn copied_up(&self, keys: usize) {
        self.copy_ups.fetch_add(keys as u64, Ordering::Relaxed);
    }
}

impl Overlay {
    /// Lays `new`, whose guard is the migration phase's, over `old`.
    #[must_use]
    pub fn new(old: Arc<dyn OldStore>, new: Arc<dyn GuardedStore>, reserved: Reserved) -> Self {
        let copied = ArcSwap::from_pointee(Spans::new(&reserved, []));
        Self {
            old,
            new,
            reserved,
            copied,
            known: Known::default(),
            counters: Tally::default(),
        }
    }

    /// Tells which spans the backfill has copied completely. The old store is no longer asked about
    /// them. They may lag behind the truth, but never be ahead of it.
    pub fn set_copied(&self, copied: Vec<KeyRange>) {
        self.copied
            .store(Arc::new(Spans::new(&self.reserved, copied)));
    }

    /// What the overlay has done since it was made.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters {
            reads_new: self.counters.reads_new.load(Ordering::Relaxed),
            reads_old: self.counters.reads_old.load(Ordering::Relaxed),
            copy_ups: self.counters.copy_ups.load(Ordering::Relaxed),
        }
    }

    /// Whether the new store alone decides about `key`: it is below a frontier, reserved, or known
    /// to be claimed.
    fn decided_by_new(&self, key: &[u8]) -> bool {
        self.copied.load().contains(key) || self.known.contains(key)
    }
}

#[async_trait]
impl Store for Overlay {
    async fn range(&self, request: Range) -> Result<Answer<RangeReply>> {
        self.read(request).await
    }

    async fn txn(&self, request: Txn) -> Result<Answer<TxnReply>> {
        self.run(request).await
    }

    async fn put(&self, request: Put) -> Result<Answer<PutReply>> {
        if self.decided_by_new(&request.key) {
            return self.new.put(request).await;
        }
        let key = request.key.clone();
        let answer = self.run(Txn::of(vec![Op::Put(request)])).await?;
        self.known.insert(&key);
        Ok(answer.map(|mut reply| match reply.replies.pop() {
            Some(Reply::Put(put)) => put,
            _ => PutReply::default(),
        }))
    }

    async fn delete(&self, request: Delete) -> Result<Answer<DeleteReply>> {
        let decided = match &request.keys {
            KeyRange::One(key) => self.decided_by_new(key),
            span @ KeyRange::Span { .. } => self.copied.load().gaps(span).is_empty(),
        };
        if decided {
            return self.new.delete(request).await;
        }
        let answer = self.run(Txn::of(vec![Op::Delete(request)])).await?;
        Ok(answer.map(|mut reply| match reply.replies.pop() {
            Some(Reply::Delete(delete)) => delete,
            _ => DeleteReply::default(),
        }))
    }

    async fn compact(&self, at: Revision) -> Result<Answer<()>> {
        self.new.compact(at).await
    }

    async fn watch(&self, request: Watch) -> Result<Watching> {
        self.new.watch(request).await
    }

    async fn grant(&self, request: Grant) -> Result<Answer<Granted>> {
        self.new.grant(request).await
    }

    async fn revoke(&self, id: LeaseId) -> Result<Answer<()>> {
        self.new.revoke(id).await
    }

    async fn keep_alive(&self, id: LeaseId) -> Result<Answer<Option<i64>>> {
        self.new.keep_alive(id).await
    }

    async fn time_to_live(&self, id: LeaseId, keys: bool) -> Result<Answer<Option<LeaseStatus>>> {
        self.new.time_to_live(id, keys).await
    }

    async fn leases(&self) -> Result<Answer<Vec<LeaseId>>> {
        self.new.leases().await
    }

    async fn status(&self) -> Result<Status> {
        self.new.status().await
    }

    async fn defragment(&self) -> Result<()> {
        self.new.defragment().await
    }
}

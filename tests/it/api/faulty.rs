//! A store that can be lost and found again.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream;
use segue::store::memory::Memory;
use segue::store::{Result, Status, Store, StoreError, Watch, WatchEnd, WatchItem, Watching};
use segue::types::{
    Answer, Grant, Granted, LeaseId, LeaseStatus, Range, RangeReply, Revision, Txn, TxnReply,
};
use tokio::sync::watch;

/// A store in memory behind a connection that breaks when it is told to.
pub(super) struct Faulty {
    pub inner: Memory,
    /// Grows each time it is lost and each time it is found: odd while it is lost.
    turns: watch::Sender<u64>,
    /// Reads are not answered at all.
    frozen: AtomicBool,
    /// Watches that were opened.
    pub opened: AtomicUsize,
    /// What watches end with that are opened from now on, before they yield anything.
    pub short: Mutex<Option<WatchEnd>>,
}

impl Faulty {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: Memory::new(),
            turns: watch::Sender::new(0),
            frozen: AtomicBool::new(false),
            opened: AtomicUsize::new(0),
            short: Mutex::new(None),
        })
    }

    /// From now on nothing is answered, and all watches end.
    pub(super) fn lose(&self) {
        self.turns.send_modify(|turns| *turns |= 1);
    }

    /// From now on no read is answered, and watches stay as they are.
    pub(super) fn freeze(&self) {
        self.frozen.store(true, Ordering::SeqCst);
    }

    /// Reads are answered again.
    pub(super) fn thaw(&self) {
        self.frozen.store(false, Ordering::SeqCst);
    }

    pub(super) fn find(&self) {
        self.turns.send_modify(|turns| *turns += *turns & 1);
    }

    fn reached(&self) -> Result<&Memory> {
        if *self.turns.borrow() % 2 == 1 {
            return Err(StoreError::Unavailable("lost on purpose".into()));
        }
        Ok(&self.inner)
    }
}

#[async_trait]
impl Store for Faulty {
    async fn range(&self, request: Range) -> Result<Answer<RangeReply>> {
        if self.frozen.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        self.reached()?.range(request).await
    }

    /// A write was on its way when the connection broke.
    async fn txn(&self, request: Txn) -> Result<Answer<TxnReply>> {
        let answer = self.inner.txn(request).await;
        self.reached()
            .map_err(|_| StoreError::Unknown("lost on purpose".into()))?;
        answer
    }

    async fn compact(&self, at: Revision) -> Result<Answer<()>> {
        self.reached()?.compact(at).await
    }

    async fn watch(&self, request: Watch) -> Result<Watching> {
        let watching = self.reached()?.watch(request).await?;
        self.opened.fetch_add(1, Ordering::SeqCst);
        if let Some(end) = self.short.lock().unwrap().clone() {
            return Ok(Watching {
                items: stream::iter([WatchItem::End(end)]).boxed(),
                ..watching
            });
        }
        let mut turns = self.turns.subscribe();
        // Also if it is found again before anybody looks.
        let cut = async move {
            let _ = turns.changed().await;
        };
        let end = WatchItem::End(WatchEnd::Lost("lost on purpose".into()));
        Ok(Watching {
            items: watching
                .items
                .take_until(cut)
                .chain(stream::iter([end]))
                .boxed(),
            ..watching
        })
    }

    async fn grant(&self, request: Grant) -> Result<Answer<Granted>> {
        self.reached()?.grant(request).await
    }

    async fn revoke(&self, id: LeaseId) -> Result<Answer<()>> {
        self.reached()?.revoke(id).await
    }

    async fn keep_alive(&self, id: LeaseId) -> Result<Answer<Option<i64>>> {
        self.reached()?.keep_alive(id).await
    }

    async fn time_to_live(&self, id: LeaseId, keys: bool) -> Result<Answer<Option<LeaseStatus>>> {
        self.reached()?.time_to_live(id, keys).await
    }

    async fn leases(&self) -> Result<Answer<Vec<LeaseId>>> {
        self.reached()?.leases().await
    }

    async fn status(&self) -> Result<Status> {
        self.reached()?.status().await
    }

    async fn defragment(&self) -> Result<()> {
        self.reached()?.defragment().await
    }
}

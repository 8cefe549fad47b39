//! The old store as clients see it before the migration begins, and how their watches cross over.
//!
//! Requests go to the old store under the condition that there is no fence. Keys under the reserved
//! prefix are the new store's in every phase: the switch key has to be found there.
//!
//! A watch that was opened here goes on when the migration begins: it delivers what the old store has
//! up to the base revision, and from the revision behind it what the new one has. The client notices
//! nothing.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};
use tokio::sync::{Notify, watch};

use super::router::Router;
use crate::store::{
    GuardedStore, RequestError, Result, Status, Store, StoreError, Watch, WatchEnd, WatchItem,
    Watching,
};
use crate::types::{
    Answer, Delete, DeleteReply, Grant, Granted, KeyRange, LeaseId, LeaseStatus, Op, Put, PutReply,
    Range, RangeReply, Reserved, Revision, Txn, TxnReply,
};

/// How long a watch waits until it asks again for its continuation.
const PAUSE: Duration = Duration::from_millis(100);

/// The store of the passthrough phase.
pub(super) struct Passthrough {
    /// The old store, which has to be unfenced.
    pub(super) old: Arc<dyn GuardedStore>,
    /// The new store, for reserved keys.
    pub(super) new: Arc<dyn GuardedStore>,
    pub(super) reserved: Reserved,
    /// The base revision, once the old store is fenced.
    pub(super) base: watch::Receiver<Option<Revision>>,
    /// Where watches go on. Not owned: it owns this.
    pub(super) onward: Weak<Router>,
}

impl Passthrough {
    /// The store that has these keys.
    fn store_of(&self, keys: &KeyRange) -> &Arc<dyn GuardedStore> {
        if self.reserved.range().covers(keys) {
            &self.new
        } else {
            &self.old
        }
    }

    /// The store that has all keys of a transaction.
    fn store_of_txn(&self, txn: &Txn) -> Result<&Arc<dyn GuardedStore>> {
        let (mut reserved, mut others) = (false, false);
        let mut see = |keys: &KeyRange| {
            if self.reserved.range().covers(keys) {
                reserved = true;
            } else {
                others = true;
            }
        };
        txn.visit_compares(&mut |compare| see(&compare.keys));
        txn.visit(&mut |op| match op {
            Op::Range(range) => see(&range.keys),
            Op::Put(put) => see(&KeyRange::One(put.key.clone())),
            Op::Delete(delete) => see(&delete.keys),
            Op::Txn(_) => {}
        });
        match (reserved, others) {
            (true, true) => Err(RequestError::Unsupported(
                "a transaction cannot be about reserved keys and others at the same time".into(),
            )
            .into()),
            (true, false) => Ok(&self.new),
            (false, _) => Ok(&self.old),
        }
    }
}

#[async_trait]
impl Store for Passthrough {
    async fn range(&self, request: Range) -> Result<Answer<RangeReply>> {
        self.store_of(&request.keys).range(request).await
    }

    async fn txn(&self, request: Txn) -> Result<Answer<TxnReply>> {
        self.store_of_txn(&request)?.txn(request).await
    }

    async fn put(&self, request: Put) -> Result<Answer<PutReply>> {
        let keys = KeyRange::One(request.key.clone());
        self.store_of(&keys).put(request).await
    }

    async fn delete(&self, request: Delete) -> Result<Answer<DeleteReply>> {
        self.store_of(&request.keys).delete(request).await
    }

    async fn compact(&self, at: Revision) -> Result<Answer<()>> {
        self.old.compact(at).await
    }

    async fn watch(&self, request: Watch) -> Result<Watching> {
        let store = self.store_of(&request.keys);
        let watching = store.watch(request.clone()).await?;
        if !Arc::ptr_eq(store, &self.old) {
            return Ok(watching);
        }
        let asked = Arc::new(Notify::new());
        let revision = watching.revision;
        let crossing = Crossing {
            request,
            position: Position::Old(watching),
            base: self.base.clone(),
            hurried: false,
            onward: self.onward.clone(),
            asked: asked.clone(),
            progress_due: false,
        };
        let items = stream::unfold(crossing, |mut crossing| async move {
            let item = crossing.next().await?;
            Some((item, crossing))
        });
        Ok(Watching {
            revision,
            items: items.boxed(),
            progress: asked,
        })
    }

    async fn grant(&self, request: Grant) -> Result<Answer<Granted>> {
        self.old.grant(request).await
    }

    async fn revoke(&self, id: LeaseId) -> Result<Answer<()>> {
        self.old.revoke(id).await
    }

    async fn keep_alive(&self, id: LeaseId) -> Result<Answer<Option<i64>>> {
        self.old.keep_alive(id).await
    }

    async fn time_to_live(&self, id: LeaseId, keys: bool) -> Result<Answer<Option<LeaseStatus>>> {
        self.old.time_to_live(id, keys).await
    }

    async fn leases(&self) -> Result<Answer<Vec<LeaseId>>> {
        self.old.leases().await
    }

    async fn status(&self) -> Result<Status> {
        self.old.status().await
    }

    async fn defragment(&self) -> Result<()> {
        self.old.defragment().await
    }
}

/// A watch that begins in the old store and goes on in the new one.
struct Crossing {
    request: Watch,
    position: Position,
    base: watch::Receiver<Option<Revision>>,
    /// The old store was asked to tell when it has delivered everything up to the base.
    hurried: bool,
    onward: Weak<Router>,
    /// The client asks for progress.
    asked: Arc<Notify>,
    progress_due: bool,
}

/// Where the watch is.
enum Position {
    Old(Watching),
    New(Watching),
    Over,
}

/// What happened to a watch in the old store.
enum Step {
    Item(Option<WatchItem>),
    Asked,
    Fenced,
}

impl Crossing {
    async fn next(&mut self) -> Option<WatchItem> {
        loop {
            match &mut self.position {
                Position::Over => return None,
                Position::New(watching) => {
                    let item = tokio::select! {
                        item = watching.items.next() => item,
                        () = self.asked.notified() => {
                            watching.progress.notify_one();
                            continue;
                        }
                    };
                    return Some(self.deliver(item.unwrap_or_else(lost)));
                }
                Position::Old(watching) => {
                    let base = *self.base.borrow_and_update();
                    if base.is_some() && !self.hurried {
                        watching.progress.notify_one();
                        self.hurried = true;
                    }
                    let step = tokio::select! {
                        item = watching.items.next() => Step::Item(item),
                        () = self.asked.notified() => Step::Asked,
                        _ = self.base.changed(), if base.is_none() => Step::Fenced,
                    };
                    match step {
                        Step::Fenced => {}
                        Step::Asked => {
                            self.progress_due = true;
                            watching.progress.notify_one();
                        }
                        Step::Item(item) => {
                            if let Some(item) = self.arrived(item, base).await {
                                return Some(self.deliver(item));
                            }
                        }
                    }
                }
            }
        }
    }

    fn deliver(&mut self, item: WatchItem) -> WatchItem {
        if matches!(item, WatchItem::End(_)) {
            self.position = Position::Over;
        }
        item
    }

    /// What the client gets of an item of the old store's.
    async fn arrived(
        &mut self,
        item: Option<WatchItem>,
        base: Option<Revision>,
    ) -> Option<WatchItem> {
        let through = match &item {
            Some(WatchItem::Events(batch)) => batch.revision,
            Some(WatchItem::Progress(through)) => *through,
            Some(WatchItem::End(_)) | None => return Some(item.unwrap_or_else(lost)),
        };
        match (item, base) {
            // What the old store does behind the base is none of the client's business.
            (Some(WatchItem::Events(_)), Some(base)) if through > base => self.cross(base).await,
            (Some(WatchItem::Progress(_)), Some(base)) if through >= base => self.cross(base).await,
            (Some(WatchItem::Progress(_)), base) => {
                // Not there yet, unless there was nothing to be reached.
                self.hurried = base.is_none() && self.hurried;
                let due = std::mem::take(&mut self.progress_due);
                due.then_some(WatchItem::Progress(through))
            }
            (item, _) => item,
        }
    }

    /// Goes on in the new store; answers why not, if that is so.
    async fn cross(&mut self, base: Revision) -> Option<WatchItem> {
        let start = self.request.start.unwrap_or_default().max(base.next());
        let request = Watch {
            start: Some(start),
            ..self.request.clone()
        };
        loop {
            let Some(router) = self.onward.upgrade() else {
                return Some(lost());
            };
            match router.watch(request.clone()).await {
                Ok(watching) => {
                    if std::mem::take(&mut self.progress_due) {
                        watching.progress.notify_one();
                    }
                    self.position = Position::New(watching);
                    return None;
                }
                // The phase is not open yet.
                Err(StoreError::Unavailable(_) | StoreError::StaleEpoch) => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Some(WatchItem::End(WatchEnd::Lost(error.to_string()))),
            }
        }
    }
}

fn lost() -> WatchItem {
    WatchItem::End(WatchEnd::Lost("the store's watch has ended".into()))
}

//! The way of every request: to the store that the current phase says.
//!
//! One load of an [`ArcSwap`] per request. Nothing here is needed for safety: an operation that goes
//! out under an epoch that is over is refused by the new store itself. It did not happen then, so
//! the router waits for the next state and sends it there.

use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::crossing::{self, Stretch};
use super::stalls::{Stall, Stalls};
use crate::store::{OldStore, RequestError, Result, Status, Store, StoreError, Watch, Watching};
use crate::types::{
    Answer, Delete, DeleteReply, Epoch, Grant, Granted, LeaseId, LeaseStatus, Op, Put, PutReply,
    Range, RangeReply, Revision, Txn, TxnReply,
};

/// What requests go to in one epoch. Every request holds on to it while it runs, so that the last
/// one that is dropped tells that the epoch's work is done.
struct Route {
    epoch: Epoch,
    store: Option<Arc<dyn Store>>,
    /// The part of the line of revisions that the store has; nothing, if it has all that comes.
    stretch: Option<Stretch>,
    /// Nothing, unless the old store has to get every pair as well.
    mirrored: Option<Mirrored>,
    drained: CancellationToken,
    _last_one_out: DropGuard,
}

/// What pairs the mirror can bring into the old store.
#[derive(Clone)]
pub struct Mirrored {
    /// The old store, which may yet have to be opened: until then nobody can ask it.
    pub old: Arc<dyn OldStore>,
    /// Most bytes of a pair, its key counted twice.
    pub pair_bytes_max: Option<usize>,
}

impl Mirrored {
    fn check(&self, key: &[u8], value_len: usize) -> Result<()> {
        let bytes = 2 * key.len() + value_len;
        if self.pair_bytes_max.is_some_and(|most| bytes > most) {
            return Err(RequestError::TooLarge.into());
        }
        let old = self.old.fenceable();
        match old.and_then(|old| old.unacceptable(key, value_len)) {
            Some(why) => Err(RequestError::Unacceptable(format!(
                "the old store has to take it too, for as long as there is a way back: {why}"
            ))
            .into()),
            None => Ok(()),
        }
    }
}

impl Route {
    fn new(
        epoch: Epoch,
        store: Option<Arc<dyn Store>>,
        stretch: Option<Stretch>,
        mirrored: Option<Mirrored>,
    ) -> Self {
        let drained = CancellationToken::new();
        Self {
            epoch,
            store,
            stretch,
            mirrored,
            _last_one_out: drained.clone().drop_guard(),
            drained,
        }
    }

    /// Refuses a pair that the mirror could not bring into the old store.
    fn check_put(&self, put: &Put) -> Result<()> {
        match &self.mirrored {
            Some(mirrored) => mirrored.check(&put.key, put.value.as_ref().map_or(0, Bytes::len)),
            None => Ok(()),
        }
    }

    fn check_txn(&self, txn: &Txn) -> Result<()> {
        let mut checked = Ok(());
        txn.visit(&mut |op| {
            if let Op::Put(put) = op
                && checked.is_ok()
            {
                checked = self.check_put(put);
            }
        });
        checked
    }
}

/// How long watches are waited for that are on their way to another store. One whose client does not read
/// may take for ever.
const CROSSING_MAX: Duration = Duration::from_secs(2);

/// Watches that are on their way to the store that serves now.
struct Crossings {
    left: CancellationToken,
    deadline: Instant,
}

/// A [`Store`] that sends every operation on by the current state of the migration.
pub struct Router {
    /// For watches, which are on their way for longer than a request.
    this: Weak<Self>,
    route: ArcSwap<Route>,
    /// Changes with every route.
    turns: watch::Sender<u64>,
    /// Those of the latest border, if there was one.
    crossings: ArcSwapOption<Crossings>,
    stale: Notify,
    patience: Duration,
    stalls: Stalls,
}

impl Router {
    /// A router that lets requests wait until [`Self::serve`] is called, but no longer than
    /// `patience`.
    #[must_use]
    pub fn closed(patience: Duration) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            route: ArcSwap::from_pointee(Route::new(Epoch(0), None, None, None)),
            turns: watch::Sender::new(0),
            crossings: ArcSwapOption::empty(),
            stale: Notify::new(),
            patience,
            stalls: Stalls::default(),
        })
    }

    /// A router to `store` for good.
    #[must_use]
    pub fn to(store: Arc<dyn Store>) -> Arc<Self> {
        let router = Self::closed(Duration::ZERO);
        router.serve(Epoch(0), Some(store), None, None);
        router
    }

    /// Sends what comes from now on to `store`; without one, lets it wait. Watches go on behind the
    /// border of `stretch`, if it ever has one. A pair that could not be `mirrored` is refused. The token that
    /// comes back is cancelled once nothing is under way any more on the way before.
    pub fn serve(
        &self,
        epoch: Epoch,
        store: Option<Arc<dyn Store>>,
        stretch: Option<Stretch>,
        mirrored: Option<Mirrored>,
    ) -> CancellationToken {
        let present = self.route.load();
        if let (Some(before), Some(next)) = (&present.stretch, &stretch)
            && !before.is(next)
        {
            self.crossings.store(Some(Arc::new(Crossings {
                left: before.left(),
                deadline: Instant::now() + CROSSING_MAX,
            })));
        }
        drop(present);
        let route = Route::new(epoch, store, stretch, mirrored);
        let before = self.route.swap(Arc::new(route));
        self.turns.send_modify(|turn| *turn += 1);
        before.drained.clone()
    }

    /// The epoch that requests go out under now, if they go anywhere.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        let route = self.route.load();
        route.store.is_some().then_some(route.epoch)
    }

    /// The longest that a request which was carried out has waited for a change of the phase, be it
    /// over or not.
    #[must_use]
    pub fn longest_stall(&self) -> Duration {
        self.stalls.longest()
    }

    /// The longest that a request has waited for `epoch`; nothing while requests still wait.
    #[must_use]
    pub fn stall_of(&self, epoch: Epoch) -> Option<Duration> {
        self.stalls.of(epoch)
    }

    /// Whether all watches have gone over to the store that serves now, or were waited for long enough.
    #[must_use]
    pub fn has_crossed(&self) -> bool {
        let crossings = self.crossings.load();
        crossings.as_ref().is_none_or(|crossings| {
            crossings.left.is_cancelled() || Instant::now() >= crossings.deadline
        })
    }

    /// Returns when that is so.
    pub async fn crossed(&self) {
        if let Some(crossings) = self.crossings.load_full() {
            let left = crossings.left.cancelled();
            let _ = tokio::time::timeout_at(crossings.deadline, left).await;
        }
    }

    /// Has the state be looked at: something has learnt that the epoch is over.
    pub(super) fn look_again(&self) {
        self.stale.notify_one();
    }

    /// Returns when something has learnt that the epoch is over.
    pub async fn stale(&self) {
        self.stale.notified().await;
    }

    /// Runs `operation` on the store of the present route, and on that of the next one for as long
    /// as it turns out not to have happened because the epoch was over.
    async fn run<T, F>(&self, operation: impl Fn(Arc<dyn Store>) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        self.run_on(|store, _| operation(store)).await
    }

    /// The same, for an operation that depends on more of the route.
    async fn run_on<T, F>(&self, operation: impl Fn(Arc<dyn Store>, &Route) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut held_up: Option<Stall> = None;
        loop {
            let route = self.route.load_full();
            if let Some(store) = &route.store {
                let sent = Instant::now();
                match operation(Arc::clone(store), &route).await {
                    Err(StoreError::StaleEpoch) => {
                        held_up.get_or_insert_with(|| self.stalls.begin(sent));
                        self.look_again();
                    }
                    other => {
                        if let Some(stall) = held_up {
                            stall.over(route.epoch);
                        }
                        return other;
                    }
                }
            }
            let begun = held_up
                .get_or_insert_with(|| self.stalls.begin(Instant::now()))
                .since;
            // Subscribed before the route is looked at again, so that no turn is missed.
            let mut turns = self.turns.subscribe();
            if !Arc::ptr_eq(&self.route.load(), &route) {
                continue;
            }
            // The fleet waits for this route's work before it calls a switch complete.
            drop(route);
            if tokio::time::timeout_at(begun + self.patience, turns.changed())
                .await
                .is_err()
            {
                return Err(StoreError::Unavailable(
                    "the migration is changing its phase; nothing was done, try again".into(),
                ));
            }
        }
    }

    /// Opens a watch on the store of the present route, which ends at the stretch's border.
    pub(super) async fn open_watch(&self, request: Watch) -> Result<(Watching, Option<Stretch>)> {
        self.run_on(|store, route| {
            let (request, stretch) = (request.clone(), route.stretch.clone());
            async move { Ok((store.watch(request).await?, stretch)) }
        })
        .await
    }
}

#[async_trait]
impl Store for Router {
    async fn range(&self, request: Range) -> Result<Answer<RangeReply>> {
        self.run(|store| {
            let request = request.clone();
            async move { store.range(request).await }
        })
        .await
    }

    async fn txn(&self, request: Txn) -> Result<Answer<TxnReply>> {
        self.run_on(|store, route| {
            let (request, checked) = (request.clone(), route.check_txn(&request));
            async move {
                checked?;
                store.txn(request).await
            }
        })
        .await
    }

    async fn put(&self, request: Put) -> Result<Answer<PutReply>> {
        self.run_on(|store, route| {
            let (request, checked) = (request.clone(), route.check_put(&request));
            async move {
                checked?;
                store.put(request).await
            }
        })
        .await
    }

    async fn delete(&self, request: Delete) -> Result<Answer<DeleteReply>> {
        self.run(|store| {
            let request = request.clone();
            async move { store.delete(request).await }
        })
        .await
    }

    async fn compact(&self, at: Revision) -> Result<Answer<()>> {
        self.run(|store| async move {
            // Watches that are on their way have to find what they have not seen yet.
            self.crossed().await;
            store.compact(at).await
        })
        .await
    }

    async fn watch(&self, request: Watch) -> Result<Watching> {
        let (watching, stretch) = self.open_watch(request.clone()).await?;
        Ok(match stretch {
            Some(stretch) => crossing::across(request, watching, stretch, self.this.clone()),
            None => watching,
        })
    }

    async fn grant(&self, request: Grant) -> Result<Answer<Granted>> {
        self.run(|store| async move { store.grant(request).await })
            .await
    }

    async fn revoke(&self, id: LeaseId) -> Result<Answer<()>> {
        self.run(|store| async move { store.revoke(id).await })
            .await
    }

    async fn keep_alive(&self, id: LeaseId) -> Result<Answer<Option<i64>>> {
        self.run(|store| async move { store.keep_alive(id).await })
            .await
    }

    async fn time_to_live(&self, id: LeaseId, keys: bool) -> Result<Answer<Option<LeaseStatus>>> {
        self.run(|store| async move { store.time_to_live(id, keys).await })
            .await
    }

    async fn leases(&self) -> Result<Answer<Vec<LeaseId>>> {
        self.run(|store| async move { store.leases().await }).await
    }

    async fn status(&self) -> Result<Status> {
        self.run(|store| async move { store.status().await }).await
    }

    async fn defragment(&self) -> Result<()> {
        self.run(|store| async move { store.defragment().await })
            .await
    }
}

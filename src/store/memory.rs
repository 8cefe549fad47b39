//! The reference model: a store in memory with the full history of every key. Simple before fast.

mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::feed::{Feed, History, Stretch};
use super::{
    CopyUp, Guard, GuardedStore, Line, NewStore, OldState, Read, ReadReply, Record, RecordTxn,
    Replay, Result, Status, Store, StoreError, Watch, Watching, lease,
};
use crate::tasks::spawn_owned;
use crate::types::{
    Answer, Grant, Granted, KeyValue, LeaseId, LeaseStatus, Range, RangeReply, Reserved, Revision,
    Txn, TxnReply,
};

use state::State;

/// A store in memory, or a handle on one that holds to a guard. Clones are the same store.
#[derive(Clone)]
pub struct Memory {
    inner: Arc<Inner>,
    guard: Guard,
}

/// How a store in memory is to be.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The keys that are hidden from requests that cross them.
    pub reserved: Reserved,
    /// The shortest time to live that a lease gets, in seconds.
    pub min_ttl_s: i64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            reserved: Reserved::default(),
            min_ttl_s: lease::MIN_TTL_S,
        }
    }
}

struct Inner {
    /// What tells this store from others.
    identity: String,
    settings: Settings,
    core: Arc<Core>,
    feed: Feed,
    /// Told when the first deadline of a lease may have changed.
    deadlines: Arc<Notify>,
}

/// What the feed reads history from, and so does not own the feed.
struct Core {
    state: Mutex<State>,
}

impl Core {
    /// A change is made in whole or not at all even if evaluating it panics, so a poisoned lock
    /// is good.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    /// An empty store. To be called within a runtime, which runs the expiry of leases.
    #[must_use]
    pub fn new() -> Self {
        Self::with(Settings::default())
    }

    /// An empty store with settings of its own.
    #[must_use]
    pub fn with(settings: Settings) -> Self {
        let core = Arc::new(Core {
            state: Mutex::new(State::new(settings.reserved.clone())),
        });
        let revision = core.lock().revision;
        let inner = Arc::new(Inner {
            identity: format!("memory:{:016x}", rand::random::<u64>()),
            feed: Feed::new(core.clone(), settings.reserved.clone(), revision),
            settings,
            core,
            deadlines: Arc::default(),
        });
        let expiry = expire(Arc::downgrade(&inner), inner.deadlines.clone());
        spawn_owned(expiry);
        Self {
            inner,
            guard: Guard::None,
        }
    }

    /// Carries out `act` on the state if the guard holds, and publishes what it changed before
    /// anybody can see it.
    fn act<T>(&self, act: impl FnOnce(&mut State) -> Result<T>) -> Result<Answer<T>> {
        let mut state = self.inner.core.lock();
        self.check(&state)?;
        let reply = act(&mut state);
        self.inner.publish(&mut state);
        Ok(Answer {
            revision: state.revision,
            reply: reply?,
        })
    }

    fn check(&self, state: &State) -> Result<()> {
        self.guard.admit(state.is_fenced(), state.line)
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Inner {
    fn publish(&self, state: &mut State) {
        self.feed.publish(&std::mem::take(&mut state.unpublished));
        self.feed.advance(state.revision);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The expiry task looks for the store, does not find it, and ends.
        self.deadlines.notify_one();
    }
}

/// Ends leases whose time is over, until the store is dropped.
async fn expire(store: Weak<Inner>, deadlines: Arc<Notify>) {
    /// How long to sleep where there is no lease to wait for.
    const IDLE: Duration = Duration::from_hours(1);
    loop {
        let first = {
            let Some(inner) = store.upgrade() else { return };
            let mut state = inner.core.lock();
            state.expire(Instant::now());
            inner.publish(&mut state);
            state.first_deadline()
        };
        let until = first.unwrap_or_else(|| Instant::now() + IDLE);
        tokio::select! {
            () = tokio::time::sleep_until(until) => {}
            () = deadlines.notified() => {}
        }
    }
}

#[async_trait]
impl History for Core {
    async fn history(&self, _: &Watch, after: Revision, limit: usize) -> Result<Stretch> {
        self.lock().history(after, limit).map_err(Into::into)
    }
}

#[async_trait]
impl Store for Memory {
    async fn range(&self, request: Range) -> Result<Answer<RangeReply>> {
        self.act(|state| Ok(state.working(|working| working.range(&request))?))
    }

    async fn txn(&self, request: Txn) -> Result<Answer<TxnReply>> {
        self.txn_over(Vec::new(), request).await
    }

    async fn compact(&self, at: Revision) -> Result<Answer<()>> {
        self.act(|state| Ok(state.compact(at)?))
    }

    async fn watch(&self, request: Watch) -> Result<Watching> {
        // The revision and the place on the feed are of one moment: changes are published under
        // this lock.
        let state = self.inner.core.lock();
        self.check(&state)?;
        Ok(self.inner.feed.watch(request, state.revision))
    }

    async fn grant(&self, request: Grant) -> Result<Answer<Granted>> {
        let granted = self.act(|state| {
            let ttl_s = lease::ttl_s(&request, self.inner.settings.min_ttl_s)?;
            let id = lease::choose_id(&request);
            state.grant(id, ttl_s, Instant::now())?;
            Ok(Granted { id, ttl_s })
        });
        self.inner.deadlines.notify_one();
        granted
    }

    async fn revoke(&self, id: LeaseId) -> Result<Answer<()>> {
        self.act(|state| Ok(state.revoke(id)?))
    }

    async fn keep_alive(&self, id: LeaseId) -> Result<Answer<Option<i64>>> {
        self.act(|state| Ok(state.keep_alive(id, Instant::now())))
    }

    async fn time_to_live(&self, id: LeaseId, keys: bool) -> Result<Answer<Option<LeaseStatus>>> {
        self.act(|state| Ok(state.time_to_live(id, keys, Instant::now())))
    }

    async fn leases(&self) -> Result<Answer<Vec<LeaseId>>> {
        self.act(|state| Ok(state.leases()))
    }

    async fn status(&self) -> Result<Status> {
        Ok(self.act(|state| Ok(state.status()))?.reply)
    }

    async fn defragment(&self) -> Result<()> {
        self.act(|_| Ok(())).map(drop)
    }
}

#[async_trait]
impl GuardedStore for Memory {
    async fn snapshot(
        &self,
        at: Option<Revision>,
        reads: Vec<Read>,
    ) -> Result<Answer<Vec<ReadReply>>> {
        self.act(|state| {
            let read = |read| Ok(state.read(at, read)?);
            reads.into_iter().map(read).collect()
        })
    }

    async fn txn_over(&self, copies: Vec<KeyValue>, txn: Txn) -> Result<Answer<TxnReply>> {
        self.act(|state| {
            let answer = state.working(|working| working.txn_over(&copies, &txn))?;
            Ok(answer.reply)
        })
    }

    async fn copy_up(&self, copy_up: CopyUp) -> Result<Option<usize>> {
        let answer = self.act(|state| Ok(state.copy_up(copy_up)?))?;
        Ok(answer.reply)
    }

    /// Every live key is claimed.
    async fn claim_present(&self) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl NewStore for Memory {
    async fn identity(&self) -> Result<String> {
        Ok(self.inner.identity.clone())
    }

    fn guarded(&self, guard: Guard) -> Arc<dyn GuardedStore> {
        Arc::new(Self {
            inner: self.inner.clone(),
            guard,
        })
    }

    async fn line(&self) -> Result<Option<Line>> {
        Ok(self.inner.core.lock().line)
    }

    async fn state(&self) -> Result<Option<OldState>> {
        let state = self.inner.core.lock();
        Ok(Some(OldState {
            revision: state.revision,
            unnumbered: state.unnumbered,
        }))
    }

    async fn records(&self, prefix: &str) -> Result<Vec<Record>> {
        Ok(self.inner.core.lock().records(prefix))
    }

    async fn write_records(&self, txn: RecordTxn) -> Result<bool> {
        let written = {
            let mut state = self.inner.core.lock();
            let written = state.write_records(txn, Instant::now());
            self.inner.publish(&mut state);
            written
        };
        // Whether leases end may have changed.
        self.inner.deadlines.notify_one();
        Ok(written)
    }

    async fn replay(&self, replay: Replay) -> Result<bool> {
        Ok(self.inner.core.lock().replay(replay)?)
    }

    async fn is_empty(&self) -> Result<bool> {
        Ok(self.inner.core.lock().is_empty())
    }

    async fn drop_claims(&self) -> Result<()> {
        let mut state = self.inner.core.lock();
        if state.line.is_some() {
            return Err(StoreError::StaleEpoch);
        }
        state.drop_claims();
        Ok(())
    }

    async fn clear(&self) -> Result<()> {
        let reserved = self.inner.core.lock().reserved().clone();
        super::clear::by_parts(self, &reserved).await
    }
}

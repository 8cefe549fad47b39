//! A new store that one member is cut off from, or held up at, while the others use it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use segue::store::{
    Guard, GuardedStore, Line, NewStore, Record, RecordTxn, Replay, Result, StoreError,
};
use segue::tasks::spawn_owned;
use tokio::sync::watch;

/// What the gate does with the migration's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing.
    Open,
    /// They cannot be reached.
    Cut,
    /// Whoever asks for them meets a fault in the program.
    Fault,
    /// Writes of those whose names begin like this wait for another mode.
    Hold(&'static str),
    /// What is replayed waits for another mode, and is done then even if nobody waits for it any more: as
    /// if the process had been held up.
    HoldReplays,
}

/// The store behind a [`Mode`]. Requests of clients go through it in every one of them: what refuses
/// these is the store itself.
pub struct Gate {
    inner: Arc<dyn NewStore>,
    mode: watch::Sender<Mode>,
    holds: watch::Sender<bool>,
    reads: AtomicUsize,
}

impl Gate {
    pub fn before(inner: Arc<dyn NewStore>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            mode: watch::Sender::new(Mode::Open),
            holds: watch::Sender::new(false),
            reads: AtomicUsize::new(0),
        })
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// How often records were asked for, in whatever mode.
    pub fn reads(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }

    /// Waits until a write is held up.
    pub async fn holds(&self) {
        let mut holds = self.holds.subscribe();
        holds.wait_for(|holds| *holds).await.unwrap();
    }

    /// Lets go of what was held up, and waits until it is done.
    pub async fn let_go(&self) {
        self.set(Mode::Open);
        let mut holds = self.holds.subscribe();
        holds.wait_for(|holds| !holds).await.unwrap();
    }

    fn pass(&self) -> Result<()> {
        match *self.mode.borrow() {
            Mode::Cut => Err(StoreError::Unavailable("cut off".into())),
            Mode::Fault => panic!("a fault, on purpose"),
            Mode::Open | Mode::Hold(_) | Mode::HoldReplays => Ok(()),
        }
    }
}

#[async_trait]
impl NewStore for Gate {
    async fn identity(&self) -> Result<String> {
        self.inner.identity().await
    }

    fn guarded(&self, guard: Guard) -> Arc<dyn GuardedStore> {
        self.inner.guarded(guard)
    }

    async fn line(&self) -> Result<Option<Line>> {
        self.pass()?;
        self.inner.line().await
    }

    async fn records(&self, prefix: &str) -> Result<Vec<Record>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.pass()?;
        self.inner.records(prefix).await
    }

    async fn write_records(&self, txn: RecordTxn) -> Result<bool> {
        let held = |mode: &Mode| match mode {
            Mode::Hold(prefix) => txn.writes.iter().any(|it| it.name.starts_with(prefix)),
            Mode::Open | Mode::Cut | Mode::Fault | Mode::HoldReplays => false,
        };
        let mut mode = self.mode.subscribe();
        if held(&mode.borrow()) {
            self.holds.send_replace(true);
        }
        mode.wait_for(|mode| !held(mode)).await.unwrap();
        self.pass()?;
        self.inner.write_records(txn).await
    }

    async fn replay(&self, replay: Replay) -> Result<bool> {
        self.pass()?;
        let mut mode = self.mode.subscribe();
        if *mode.borrow() != Mode::HoldReplays {
            return self.inner.replay(replay).await;
        }
        self.holds.send_replace(true);
        let (inner, holds) = (self.inner.clone(), self.holds.clone());
        let held = spawn_owned(async move {
            let let_go = |mode: &Mode| *mode != Mode::HoldReplays;
            mode.wait_for(let_go).await.unwrap();
            let done = inner.replay(replay).await;
            holds.send_replace(false);
            done
        });
        held.await.unwrap()
    }

    async fn is_empty(&self) -> Result<bool> {
        self.pass()?;
        self.inner.is_empty().await
    }

    async fn drop_claims(&self) -> Result<()> {
        self.pass()?;
        self.inner.drop_claims().await
    }

    async fn clear(&self) -> Result<()> {
        self.inner.clear().await
    }
}

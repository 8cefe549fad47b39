//! A new store that looks whether the state of the migration and the line change together.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use segue::migration::phase::State;
use segue::migration::records::STATE;
use segue::store::memory::Memory;
use segue::store::{Guard, GuardedStore, Line, NewStore, Record, RecordTxn, Replay, Result};

/// A store in memory that notes every moment in which state and line did not agree.
#[derive(Default)]
pub struct Witness {
    inner: Memory,
    /// One write of records at a time, so that nobody's else is looked at.
    writing: tokio::sync::Mutex<()>,
    seen: Mutex<Vec<String>>,
    transitions: Mutex<Vec<u64>>,
}

impl Witness {
    /// The moments in which they did not agree.
    pub fn disagreements(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    /// The epochs that there were, each once.
    pub fn epochs(&self) -> Vec<u64> {
        self.transitions.lock().unwrap().clone()
    }

    async fn look(&self) -> Result<()> {
        let Some(record) = self.inner.records(STATE).await?.pop() else {
            return Ok(());
        };
        let state: State = serde_json::from_slice(&record.value).unwrap();
        let line = self.inner.line().await?;
        if line != state.line() {
            let seen = format!("{line:?} and {state:?}");
            self.seen.lock().unwrap().push(seen);
        }
        let mut epochs = self.transitions.lock().unwrap();
        epochs.push(state.epoch.0);
        epochs.dedup();
        Ok(())
    }
}

#[async_trait]
impl NewStore for Witness {
    async fn identity(&self) -> Result<String> {
        NewStore::identity(&self.inner).await
    }

    fn guarded(&self, guard: Guard) -> Arc<dyn GuardedStore> {
        self.inner.guarded(guard)
    }

    async fn line(&self) -> Result<Option<Line>> {
        self.inner.line().await
    }

    async fn records(&self, prefix: &str) -> Result<Vec<Record>> {
        self.inner.records(prefix).await
    }

    async fn write_records(&self, txn: RecordTxn) -> Result<bool> {
        let _alone = self.writing.lock().await;
        let written = self.inner.write_records(txn).await?;
        self.look().await?;
        Ok(written)
    }

    async fn replay(&self, replay: Replay) -> Result<bool> {
        self.inner.replay(replay).await
    }

    async fn is_empty(&self) -> Result<bool> {
        self.inner.is_empty().await
    }

    async fn drop_claims(&self) -> Result<()> {
        self.inner.drop_claims().await
    }

    async fn clear(&self) -> Result<()> {
        self.inner.clear().await
    }
}

//! Keeps the copied leases alive in the new store, as their owners would if they were not stopped:
//! a copy may take longer than a lease lives.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use crate::migration::held::each;
use crate::store::{Guard, GuardedStore, NewStore, OldStore, Result};
use crate::tasks::Tasks;
use crate::types::LeaseId;

/// The shortest and the longest pause between two rounds.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_mins(1));

/// The leases of a copy.
pub(super) struct Leases {
    ids: Vec<LeaseId>,
    store: Arc<dyn GuardedStore>,
}

/// Renews the leases of the old store in the new one until `tasks` are cancelled.
pub(super) async fn start(
    old: &Arc<dyn OldStore>,
    new: &Arc<dyn NewStore>,
    tasks: &Tasks,
) -> Result<Arc<Leases>> {
    let leases = old.leases().await?;
    let shortest = leases.iter().map(|lease| lease.ttl_s).min();
    let leases = Arc::new(Leases {
        ids: leases.into_iter().map(|lease| lease.id).collect(),
        store: new.guarded(Guard::None),
    });
    if let Some(shortest) = shortest {
        let third = Duration::from_secs(u64::try_from(shortest).unwrap_or(1)) / 3;
        let pause = third.clamp(PAUSE.0, PAUSE.1);
        let (kept, token) = (Arc::clone(&leases), tasks.token().clone());
        tasks.spawn("copied leases", async move {
            loop {
                tokio::select! {
                    () = token.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                if let Err(error) = kept.renew().await {
                    warn!(%error, "leases cannot be renewed; trying again");
                }
            }
        });
    }
    Ok(leases)
}

impl Leases {
    /// Starts each lease's time anew. Those that have ended are left alone.
    pub(super) async fn renew(&self) -> Result<()> {
        let renew = |id| self.store.keep_alive(id);
        each(self.ids.clone(), renew).await.map(drop)
    }

    pub(super) fn count(&self) -> u64 {
        self.ids.len() as u64
    }
}

//! Ending leases whose time is over.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::Engine;
use super::backend::{Backend, Found, Query};
use super::work::Work;
use crate::store::{Guard, Result};

/// How often leases are looked at; etcd's own.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Looks for leases whose deadline has passed and has the writer end them. The writer compares the
/// deadline again within its transaction, so a lease that was kept alive in between stays.
pub(super) async fn run<B: Backend>(engine: std::sync::Weak<Engine<B>>, cancel: CancellationToken) {
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = tick.tick() => {}
        }
        let Some(engine) = engine.upgrade() else {
            return;
        };
        if let Err(err) = look(&engine).await {
            warn!("cannot end leases whose time is over, will try again: {err}");
        }
    }
}

async fn look<B: Backend>(engine: &Engine<B>) -> Result<()> {
    let (_, found) = engine.query(Guard::None, Query::Expired).await?;
    if let Found::Leases(ids) = found
        && !ids.is_empty()
    {
        engine.submit(Guard::None, Work::Expire(ids)).await?;
    }
    Ok(())
}

//! Ending leases whose time is over.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::backend::{Backend, Found, Query};
use super::work::Work;
use super::{Engine, unanswered};
use crate::store::{Guard, Result};

/// How often leases are looked at; etcd's own.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Leases that are ended by one look; what is left is found by the next one.
const AT_ONCE: i64 = 1000;

/// Leases that are ended in one batch: each may have hundreds of keys, and what others write waits meanwhile.
const TOGETHER: usize = 50;

/// For how long nothing may be committed while there are leases, in milliseconds. Less than
/// [`super::decide::GAP_MS`] by the time between two looks, and twice as much for a slow database.
const QUIET_MS: u64 = 500;

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
    let (read, found) = engine.query(Guard::None, Query::Due(AT_ONCE)).await?;
    // Behind a fence the leases are the new store's, which alone ends them.
    if !read.head.serves() {
        return Ok(());
    }
    let Found::Due(due) = found else {
        return Err(unanswered());
    };
    // If the clock has gone back, which a commit notes too, it is as if nothing had been committed for long.
    let quiet_ms = read.now_ms.abs_diff(read.head.at_ms);
    let over = due.iter().filter(|lease| lease.deadline_ms <= read.now_ms);
    let over: Vec<_> = over.map(|lease| lease.id).collect();
    if over.is_empty() && !due.is_empty() && quiet_ms >= QUIET_MS {
        // A commit notes that clients could have kept their leases alive.
        engine.submit(Guard::None, Work::Expire(over)).await?;
        return Ok(());
    }
    for ids in over.chunks(TOGETHER) {
        let work = Work::Expire(ids.to_vec());
        engine.submit(Guard::None, work).await?;
    }
    Ok(())
}

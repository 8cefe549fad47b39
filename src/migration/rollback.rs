//! The way back: what happens between the fence in the new store and the first request that the old
//! one serves again.
//!
//! The new store is fenced by its line (the transition into [`super::phase::Stage::Draining`]), so the
//! *goal*, its revision then, is the last that belongs to it. What the mirror has not replayed yet is
//! replayed, leases are granted anew with the keys attached to them, and then one transaction in the
//! old store lets it be served behind the goal, under the next epoch. Behind that one there is only the transition
//! of the state left to do, which lets clients in; until it, everything may be repeated or called off.
//!
//! It is called off by a transition of the state alone: the old store may have failed. Whoever still is at it
//! may open that store afterwards, but nobody is sent there, and the mirror goes on only when it has shut it
//! again and made sure that it stays so; see [`Mirror`].

use std::collections::BTreeSet;
use std::future::ready;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::controller::{Controller, now_ms};
use super::held::{self, each};
use super::jobs::PAUSE;
use super::ledger::{Entry, Ledger, write};
use super::mirror::{MIRROR, Mirror, Position, head, pairs};
use super::phase::State;
use super::records::{REJECTS, Reject, STATE};
use super::troubles::Trouble;
use crate::store::{
    Guard, GuardedStore, NewStore, RecordTxn, Replayed, RequestError, Result, StoreError,
};
use crate::types::{Content, Grant, KeyRange, LeaseId, Range, Revision};

/// A lease of the new store as the rollback found it.
#[derive(Clone, Copy)]
struct Found {
    id: LeaseId,
    ttl_s: i64,
}

/// What came of an attempt.
enum Attempt {
    /// The old store is open behind this revision.
    Open(Revision),
    /// It must not be opened.
    CallOff(String),
}

/// Carries a rollback to its end, or calls it off: at the latest when it has taken for too long, since clients
/// wait for it.
pub(super) async fn drain(
    shared: &Controller,
    state: &State,
    begun: Instant,
    trouble: &Arc<Trouble>,
) -> Result<()> {
    let deadline = begun + shared.options.timing.rollback;
    let done = match timeout_at(deadline, bring_back(shared, state, trouble)).await {
        Ok(Ok(done)) => done,
        // There is time for another attempt.
        Ok(Err(error)) if Instant::now() + PAUSE < deadline => return Err(error),
        Ok(Err(StoreError::StaleEpoch)) => return Err(StoreError::StaleEpoch),
        Ok(Err(error)) => Attempt::CallOff(format!("a store has failed: {error}")),
        Err(_) => Attempt::CallOff(format!(
            "it was not done within {:?}: a store does not answer, or is slow",
            shared.options.timing.rollback
        )),
    };
    let Some(entry) = shared.ledger.get::<State>(STATE).await? else {
        return Ok(());
    };
    if entry.value.epoch != state.epoch {
        return Ok(());
    }
    let next = match &done {
        Attempt::Open(goal) => entry.value.returned(*goal, now_ms()),
        Attempt::CallOff(why) => entry.value.called_off(why, now_ms()),
    };
    if shared.transit(&entry, &next, None).await? {
        match done {
            Attempt::Open(goal) => info!(%goal, "rolled back: the old store serves again"),
            Attempt::CallOff(why) => warn!(why, "the rollback is called off"),
        }
    }
    Ok(())
}

/// Lets the old store be served, unless somebody has done so who was here before.
async fn bring_back(shared: &Controller, state: &State, trouble: &Arc<Trouble>) -> Result<Attempt> {
    let Some(old) = shared.fenceable().await? else {
        let why = "the old store cannot be fenced";
        return Ok(Attempt::CallOff(why.into()));
    };
    let line = old.line().await?;
    if let Some(line) = line.filter(|line| line.epoch == state.epoch.next()) {
        return Ok(Attempt::Open(line.base));
    }
    let mirror = Mirror {
        old,
        new: shared.new.guarded(state.guard()),
        state: state.clone(),
        tails: shared.tails.clone(),
        trouble: trouble.clone(),
    };
    attempt_while_leases_live(&mirror, &shared.ledger).await
}

/// Makes an attempt, and renews the new store's leases meanwhile: if it fails or is called off, their holders
/// find them there.
async fn attempt_while_leases_live(mirror: &Mirror, ledger: &Ledger) -> Result<Attempt> {
    let alive = held::Held::default();
    let new = || ready(Ok(Some(mirror.new.clone())));
    tokio::select! {
        done = attempt(mirror, ledger, &alive) => done,
        never = alive.keep(new) => match never {},
    }
}

async fn attempt(mirror: &Mirror, ledger: &Ledger, alive: &held::Held) -> Result<Attempt> {
    let Mirror {
        old, new, state, ..
    } = mirror;
    // Before the goal is taken: whatever ends behind it, ends in the old store.
    let (held, keys) = hold_leases(new, alive).await?;
    let goal = head(new).await?;
    let mut at = mirror.run(Some(goal)).await?;
    grant(old, &held).await?;
    attach(mirror, &mut at, &keys, goal).await?;
    if let Some(why) = difference(mirror, ledger, goal).await? {
        return Ok(Attempt::CallOff(why));
    }
    // They were granted for as long as ever, but this may have taken a while.
    let plain = &old.guarded(Guard::None);
    let alive = each(held, |lease| plain.keep_alive(lease.id)).await?;
    if alive.iter().any(|answer| answer.reply.is_none()) {
        return Err(StoreError::Unavailable(
            "a lease has run out in the old store while it was being brought back".into(),
        ));
    }
    let line = state.line_back(goal);
    let done = Position {
        // A member that is at it as well, and has not seen the line yet, lets go.
        epoch: line.epoch,
        at_ms: now_ms(),
        ..at.value
    };
    let txn = RecordTxn {
        expect: vec![(MIRROR.to_owned(), at.version)],
        // Whoever still mirrors finds another version.
        writes: vec![write(MIRROR, &done)],
        line: Some(Some(line)),
        ..RecordTxn::default()
    };
    if old.write_records(txn).await? {
        Ok(Attempt::Open(goal))
    } else {
        Err(StoreError::Unavailable(
            "another member carries the rollback on".into(),
        ))
    }
}

/// Begins the time of every lease anew, and answers all, with the keys attached to any. From then on they are
/// to be kept `alive`.
async fn hold_leases(
    new: &Arc<dyn GuardedStore>,
    alive: &held::Held,
) -> Result<(Vec<Found>, Vec<Bytes>)> {
    let begun = Instant::now();
    let ids = new.leases().await?.reply;
    let found = each(ids, |id| async move {
        // One whose time is over, and that nobody has ended yet, lives on with the others: its keys are
        // there at the goal.
        new.keep_alive(id).await?;
        Ok((id, new.time_to_live(id, true).await?.reply))
    });
    let (mut held, mut keys) = (Vec::new(), Vec::new());
    for (id, status) in found.await? {
        if let Some(status) = status {
            alive.see(id, status.granted_ttl_s, Some(begun));
            held.push(Found {
                id,
                ttl_s: status.granted_ttl_s,
            });
            keys.extend(status.keys);
        }
    }
    Ok((held, keys))
}

/// Makes the leases of the old store those of the new one.
async fn grant(old: &Arc<dyn NewStore>, held: &[Found]) -> Result<()> {
    let plain = &old.guarded(Guard::None);
    let live: &BTreeSet<LeaseId> = &held.iter().map(|lease| lease.id).collect();
    let ids = plain.leases().await?.reply;
    let stay = each(ids, |id| async move {
        // The mirror has detached what the new store holds. What is still attached that one could not take, and
        // it is nowhere else: a revoke would delete it. Only if its lease has ended does it end with it.
        if live.contains(&id)
            && let Some(status) = plain.time_to_live(id, true).await?.reply
            && !status.keys.is_empty()
            && plain.keep_alive(id).await?.reply.is_some()
        {
            return Ok(Some(id));
        }
        // Those that go on are granted anew, since their time to live may be another one.
        match plain.revoke(id).await {
            Ok(_) | Err(StoreError::Request(RequestError::LeaseNotFound)) => Ok(None),
            Err(error) => Err(error),
        }
    });
    let stay: BTreeSet<LeaseId> = stay.await?.into_iter().flatten().collect();
    let grant = |lease: Found| {
        plain.grant(Grant {
            id: Some(lease.id),
            ttl_s: lease.ttl_s,
        })
    };
    let mut anew = held.to_vec();
    anew.retain(|lease| !stay.contains(&lease.id));
    each(anew, grant).await?;
    Ok(())
}

/// Attaches the keys to their leases again, as they were at the goal.
async fn attach(
    mirror: &Mirror,
    at: &mut Entry<Position>,
    keys: &[Bytes],
    goal: Revision,
) -> Result<()> {
    let mut kvs = pairs(&mirror.new, keys, Some(goal)).await?;
    kvs.retain(|kv| kv.lease.is_some());
    // A store that assigns revisions by itself then has them in the order in which locks and
    // elections queue.
    kvs.sort_by_key(|kv| kv.create_revision);
    if !kvs.is_empty() {
        // Called off from here on, they have to be detached again. Noted before the first: a store that takes
        // several transactions for a replay notes it with the last.
        at.value.detached = false;
        mirror.replay(at, Vec::new(), goal).await?;
    }
    for some in kvs.chunks(100) {
        let changes = some.iter().cloned().map(Replayed::Put).collect();
        mirror.replay(at, changes, goal).await?;
    }
    Ok(())
}

/// Whether the old store is seen not to hold what the new one does. Clients wait, so only numbers of
/// keys are compared here; every key and value is by `segue verify` beforehand.
///
/// Keys that the new store could not take are in the old one alone, as they always were.
async fn difference(mirror: &Mirror, ledger: &Ledger, goal: Revision) -> Result<Option<String>> {
    if !mirror.state.backfill_complete {
        // The new store has only a part.
        return Ok(None);
    }
    let count = |at| Range {
        at,
        content: Content::CountOnly,
        ..Range::of(KeyRange::all())
    };
    let new = mirror.new.range(count(Some(goal))).await?.reply.count;
    let plain = mirror.old.guarded(Guard::None);
    let old = plain.range(count(None)).await?.reply.count;
    if old == new {
        return Ok(None);
    }
    let rejects = ledger.list::<Reject>(REJECTS).await?;
    let rejects: Vec<Bytes> = rejects.into_iter().map(|(_, it)| it.value.key).collect();
    let in_new = pairs(&mirror.new, &rejects, Some(goal)).await?;
    let in_old = pairs(&plain, &rejects, None).await?;
    Ok((old + in_new.len() != new + in_old.len()).then(|| {
        format!("the old store has {old} keys and the new one {new}; `segue verify` says which")
    }))
}

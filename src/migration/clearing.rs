//! Emptying the new store of what a migration that was rolled back has left there, so that the next one
//! finds it as the first one did.
//!
//! No revision is taken for that: it could be one of the next migration's. Every step asserts that it is
//! still to be done, since a process may be held up in the middle of it until another one has finished and
//! the next migration is under way: its keys and records are safe by the state's version, which the
//! removal of either is tied to, its leases by the line that the store has then.

use tracing::info;

use super::controller::Controller;
use super::ledger::{Entry, write};
use super::phase::{Stage, State};
use super::records::{REJECTS, SHARDS, STATE, SURVEY, Survey, VERIFY};
use crate::store::{Guard, RecordTxn, Replay, Replayed, RequestError, Result, StoreError};
use crate::types::{Content, Epoch, KeyRange, KeyValue, Range, Revision};

/// Keys that are removed at a time.
const PAGE: usize = 1000;

/// Empties the new store, whose part of the line ended at `goal` in the epoch before `epoch`.
///
/// Fails with [`StoreError::StaleEpoch`] if that is not to be done any more.
pub(super) async fn clear(shared: &Controller, epoch: Epoch, goal: Revision) -> Result<()> {
    remove_keys(shared, epoch, goal).await?;
    end_leases(shared).await?;
    shared.new.drop_claims().await?;
    let plain = shared.new.guarded(Guard::None);
    let revision = plain.status().await?.revision;
    plain.forget(revision).await?;
    remove_records(shared, epoch).await?;
    let cleared = |now: &mut State| {
        let ours = is_due(now, epoch);
        now.leftovers &= !ours;
        ours
    };
    if shared.amend(cleared).await? {
        info!("the new store is empty again");
    }
    Ok(())
}

fn is_due(state: &State, epoch: Epoch) -> bool {
    state.epoch == epoch && state.leftovers && state.stage == Stage::Open
}

/// The state, if there still is something to be removed.
async fn due(shared: &Controller, epoch: Epoch) -> Result<Entry<State>> {
    let state = shared.ledger.get::<State>(STATE).await?;
    let due = state.filter(|entry| is_due(&entry.value, epoch));
    due.ok_or(StoreError::StaleEpoch)
}

async fn remove_keys(shared: &Controller, epoch: Epoch, goal: Revision) -> Result<()> {
    let plain = shared.new.guarded(Guard::None);
    loop {
        let state = due(shared, epoch).await?;
        let page = Range {
            limit: PAGE,
            content: Content::KeysOnly,
            ..Range::of(KeyRange::all())
        };
        let page = plain.range(page).await?.reply.kvs;
        if page.is_empty() {
            return Ok(());
        }
        let gone = |kv: KeyValue| Replayed::Delete {
            key: kv.key,
            revision: goal,
        };
        // Where the state has changed meanwhile, the next round looks at it.
        let replay = Replay {
            changes: page.into_iter().map(gone).collect(),
            record: (write(STATE, &state.value), state.version),
        };
        shared.new.replay(replay).await?;
    }
}

/// Ends the leases, which no keys are attached to any more.
async fn end_leases(shared: &Controller) -> Result<()> {
    let idle = shared.new.guarded(Guard::NoLine);
    for id in idle.leases().await?.reply {
        match idle.revoke(id).await {
            Ok(_) | Err(StoreError::Request(RequestError::LeaseNotFound)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn remove_records(shared: &Controller, epoch: Epoch) -> Result<()> {
    let state = due(shared, epoch).await?;
    let mut names = Vec::new();
    for prefix in [SHARDS, REJECTS, VERIFY] {
        let records = shared.new.records(prefix).await?;
        names.extend(records.into_iter().map(|record| record.name));
    }
    let survey = Survey {
        expected: shared.old.count(KeyRange::all()).await? as u64,
        ..Survey::default()
    };
    let txn = RecordTxn {
        expect: vec![(STATE.to_owned(), state.version)],
        writes: vec![write(SURVEY, &survey)],
        ..RecordTxn::default()
    };
    let done = shared.ledger.write(txn).await? && shared.ledger.remove_all(&state, &names).await?;
    if done {
        Ok(())
    } else {
        Err(StoreError::Unavailable(
            "the state has changed meanwhile".into(),
        ))
    }
}

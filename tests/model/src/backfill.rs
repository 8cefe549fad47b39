//! A worker of the backfill: reads a key of the old store, and later writes it to the new one. Two of
//! them may work on the same shard, each believing to be the owner, and one may stall in between.

use crate::member::Stop;
use crate::record::{Epoch, Phase, Stage};
use crate::rules::{Rule, Rules};
use crate::spec::{Broken, Key, NO_WRITES, Pair};
use crate::state::State;

/// What a worker has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Copying {
    epoch: Epoch,
    key: Key,
    pair: Option<Pair>,
    /// The frontier was moved before the copy. Only without [`Rule::FrontierWithData`].
    ahead: bool,
}

pub(crate) fn may_read(state: &State, key: Key) -> bool {
    let record = &state.new.record;
    record.is(Phase::Migration, Stage::Open)
        && !record.all_claimed
        && !state.new.frontier[key as usize]
}

pub(crate) fn read(state: &mut State, worker: usize, key: Key) {
    state.workers[worker] = Some(Copying {
        epoch: state.new.record.epoch,
        key,
        pair: state.old.pairs[key as usize],
        ahead: false,
    });
}

/// Create-if-unclaimed, and the frontier, in one transaction that asserts the epoch.
pub(crate) fn write(state: &mut State, worker: usize, rules: Rules) -> Result<(), Stop> {
    let Some(copying) = state.workers[worker].take() else {
        return Ok(());
    };
    let new = &mut state.new;
    let k = copying.key as usize;
    if rules.hold(Rule::EpochGuardsWrites) && copying.epoch != new.record.epoch {
        return Err(Stop::Refused);
    }
    if new.frontier[k] && !copying.ahead {
        // Another worker was faster.
        return Ok(());
    }
    new.frontier[k] = true;
    if !rules.hold(Rule::FrontierWithData) && !copying.ahead {
        state.workers[worker] = Some(Copying {
            ahead: true,
            ..copying
        });
        return Ok(());
    }
    let mut copies = [None; 2];
    copies[k] = copying.pair;
    let events = new.copy_up(copies, rules.hold(Rule::BackfillIfUnclaimed), rules);
    if events != NO_WRITES {
        return Err(Broken::Event.into());
    }
    Ok(())
}

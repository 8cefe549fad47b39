//! The transitions of the fleet. Any member carries out any step, from the state record as it knows
//! it: a step on the record is a compare-and-put, and one on the old store compares the fence. So a
//! transition that one member began another one finishes, and a straggler does no harm.

use crate::member::Stop;
use crate::new::Slot;
use crate::record::{Phase, Record, Stage};
use crate::rules::{Rule, Rules};
use crate::spec::{Broken, NO_WRITES, Writes};
use crate::state::State;

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// Passthrough to Migration, in five steps: say so,
    Start,
    /// shut the old store,
    Fence,
    /// continue its revisions,
    TakeBase,
    /// copy up what is leased,
    CopyLeased,
    /// serve.
    Open,
    /// Migration to Normal.
    Switch,
    /// Normal to Migration.
    SwitchBack,
    /// Back to Passthrough, in three steps: fence the new store and note the goal of the mirror,
    Rollback,
    /// open the old store when the mirror has got there,
    Reopen,
    /// serve.
    Resume,
    /// Or call it off, from the first of them on, whatever the old store is like,
    CallOff,
    /// and let the mirror make the old store its own again.
    TakeOver,
    /// Remove what the migration left in the new store, before another one may start.
    Wipe,
    /// Normal to Settled,
    Settle,
    /// and remove the claims.
    DropClaims,
}

impl Step {
    /// Whether the bound on epochs is for it. What has begun may always be finished.
    pub(crate) fn begins_epoch(self) -> bool {
        matches!(
            self,
            Self::Start
                | Self::Open
                | Self::Switch
                | Self::SwitchBack
                | Self::Rollback
                | Self::Settle
        )
    }
}

/// Where a step leads from the record that a member knows, if there is one.
fn target(state: &State, known: &Record, step: Step, rules: Rules) -> Option<Record> {
    use Phase::{Migration, Normal, Passthrough, Settled};
    let (old, new) = (&state.old, &state.new);
    let (from, may) = match step {
        Step::Start => (
            (Passthrough, Stage::Open),
            !known.leftovers || !rules.hold(Rule::LeftoversRemoved),
        ),
        Step::TakeBase => (
            (Migration, Stage::Fencing),
            old.fence.shut && old.fence.epoch == known.epoch,
        ),
        Step::Open => (
            (Migration, Stage::Opening),
            leased_left(state, rules) == NO_WRITES || !rules.hold(Rule::LeasesBeforeOpen),
        ),
        Step::Switch => (
            (Migration, Stage::Open),
            known.all_claimed
                || new.frontier == [true; 2]
                || !rules.hold(Rule::SwitchAfterBackfill),
        ),
        Step::SwitchBack | Step::Settle => ((Normal, Stage::Open), true),
        Step::Rollback => ((known.phase, Stage::Open), known.is_migrating()),
        Step::Resume => (
            (Passthrough, Stage::Draining),
            old.is_open_for(known.epoch + 1),
        ),
        Step::CallOff => ((Passthrough, Stage::Draining), true),
        Step::Wipe => ((Passthrough, Stage::Open), known.leftovers),
        Step::Fence | Step::CopyLeased | Step::Reopen | Step::TakeOver | Step::DropClaims => {
            return None;
        }
    };
    if !known.is(from.0, from.1) || !may {
        return None;
    }
    let moved = Record {
        epoch: known.epoch + 1,
        goal: 0,
        ..*known
    };
    Some(match step {
        Step::Start => Record {
            phase: Migration,
            stage: Stage::Fencing,
            goal: if rules.hold(Rule::BaseAfterFence) {
                0
            } else {
                old.revision + known.offset
            },
            ..moved
        },
        Step::TakeBase => Record {
            stage: Stage::Opening,
            ..*known
        },
        // An epoch of its own, so that a straggler who still copies leases is refused.
        Step::Open => Record {
            stage: Stage::Open,
            ..moved
        },
        Step::Switch => Record {
            phase: Normal,
            all_claimed: true,
            ..moved
        },
        Step::SwitchBack => Record {
            phase: Migration,
            ..moved
        },
        Step::Settle => Record {
            phase: Settled,
            ..moved
        },
        Step::Rollback => Record {
            phase: Passthrough,
            stage: Stage::Draining,
            back_from: Some(known.phase),
            called_off: false,
            goal: new.revision,
            ..moved
        },
        Step::Resume => Record {
            stage: Stage::Open,
            offset: if rules.hold(Rule::RevisionsOffset) {
                old.offset()
            } else {
                0
            },
            all_claimed: false,
            leftovers: true,
            back_from: None,
            ..moved
        },
        Step::CallOff => Record {
            phase: known.back_from.unwrap_or(Migration),
            stage: Stage::Open,
            back_from: None,
            called_off: true,
            ..moved
        },
        _ => Record {
            leftovers: false,
            ..*known
        },
    })
}

/// Whether member `m` may try `step` now, as far as it knows, and would change anything by it.
pub(crate) fn may(state: &State, m: usize, step: Step, rules: Rules) -> bool {
    let known = &state.members[m].known;
    let current = *known == state.new.record;
    match step {
        Step::Fence => {
            known.is(Phase::Migration, Stage::Fencing) && state.old.is_open_for(known.epoch - 1)
        }
        Step::CopyLeased => {
            current
                && known.is(Phase::Migration, Stage::Opening)
                && leased_left(state, rules) != NO_WRITES
        }
        Step::Reopen => {
            known.is(Phase::Passthrough, Stage::Draining)
                && state.old.fence.shut
                && state.old.fence.epoch <= known.epoch
                && (is_drained(state, known) || !rules.hold(Rule::DrainBeforeReopen))
        }
        Step::TakeOver => {
            let fence = state.old.fence;
            rules.hold(Rule::MirrorTakesOver)
                && (known.is_migrating() || known.is(Phase::Passthrough, Stage::Draining))
                && (fence.epoch < known.epoch || (fence.epoch == known.epoch && !fence.shut))
        }
        Step::DropClaims => {
            known.phase == Phase::Settled && state.new.slots.iter().any(|slot| slot.is_claimed())
        }
        _ => {
            (current || !rules.hold(Rule::StateByCompareAndPut))
                && target(state, known, step, rules).is_some()
        }
    }
}

/// The mirror has replayed all changes up to its goal.
fn is_drained(state: &State, known: &Record) -> bool {
    state.new.log.iter().all(|change| change.at > known.goal)
}

/// Member `m` takes `step`.
pub(crate) fn take(state: &mut State, m: usize, step: Step, rules: Rules) -> Result<(), Stop> {
    let known = state.members[m].known;
    match step {
        Step::Fence => state.old.shut(known.epoch),
        Step::CopyLeased => {
            let copies = leased_left(state, rules).map(Option::flatten);
            state.new.copy_up(copies, true, rules);
            state.new.lease = true;
        }
        Step::Reopen => return reopen(state, &known, rules),
        Step::TakeOver => state.old.take_over(known.epoch),
        Step::Resume => return resume(state, m, rules),
        Step::DropClaims => drop_claims(state, rules),
        _ => put_record(state, m, step, rules),
    }
    Ok(())
}

fn put_record(state: &mut State, m: usize, step: Step, rules: Rules) {
    let known = state.members[m].known;
    let Some(mut record) = target(state, &known, step, rules) else {
        return;
    };
    match step {
        Step::TakeBase => {
            let early = !rules.hold(Rule::BaseAfterFence);
            state.new.revision = if early {
                known.goal
            } else {
                state.old.fence.at
            };
            record.goal = 0;
        }
        Step::Open => state.old.at_fence = [None; 2],
        Step::Rollback if !rules.hold(Rule::GoalAfterFence) => {
            record.goal = state.members[m].saw_revision;
        }
        Step::Wipe => state.new.wipe(),
        _ => {}
    }
    // Where the new store is an etcd, its records take revisions.
    state.new.revision += 1;
    state.new.record = record;
    state.members[m].learn(record, rules);
}

/// Leased pairs of the old store that are unclaimed.
fn leased_left(state: &State, rules: Rules) -> Writes {
    let source = if rules.hold(Rule::LeasedAsOfBase) {
        state.old.at_fence
    } else {
        state.old.pairs
    };
    [0, 1].map(|k| {
        let leased = source[k].filter(|pair| pair.leased);
        leased
            .filter(|_| !state.new.slots[k].is_claimed())
            .map(Some)
    })
}

/// One transaction of the old store. The new store is fenced, so what is leased there stays.
fn reopen(state: &mut State, known: &Record, rules: Rules) -> Result<(), Stop> {
    let leased = state
        .new
        .pairs()
        .map(|pair| pair.filter(|pair| pair.leased).map(Some));
    let back = if rules.hold(Rule::LeasesHandedBack) {
        leased
    } else {
        NO_WRITES
    };
    state.old.open(known.epoch + 1, state.new.revision, &back);
    // Nobody is let in if it was called off.
    if state.old.pairs == state.spec.pairs || *known != state.new.record {
        Ok(())
    } else {
        Err(Broken::Mirror.into())
    }
}

/// Clients are let in. What has ended in the old store since it was opened, they see now.
fn resume(state: &mut State, m: usize, rules: Rules) -> Result<(), Stop> {
    put_record(state, m, Step::Resume, rules);
    let (old, spec) = (&mut state.old, &mut state.spec);
    old.mirrored = 0;
    let ended = [0, 1].map(|k| {
        let gone = spec.pairs[k].is_some_and(|pair| pair.leased) && old.pairs[k].is_none();
        (gone && !old.lease).then_some(None)
    });
    if ended != NO_WRITES {
        spec.change(old.revision + state.new.record.offset, &ended)?;
    }
    if old.pairs == spec.pairs {
        Ok(())
    } else {
        Err(Broken::Mirror.into())
    }
}

fn drop_claims(state: &mut State, rules: Rules) {
    for slot in &mut state.new.slots {
        *slot = match *slot {
            Slot::Live { pair, .. } => Slot::Live {
                pair,
                claimed: false,
            },
            _ => Slot::Unclaimed,
        };
    }
    if !rules.hold(Rule::FenceOutlivesSettle) {
        let fence = &mut state.old.fence;
        (fence.epoch, fence.shut) = (Record::FIRST.epoch, false);
    }
}

//! What an exploration has to come by, or it would prove nothing.

use stateright::Property;

use crate::model::Migration;
use crate::new::Slot;
use crate::record::{Phase, Stage};
use crate::scenario::{Ask, Scenario};
use crate::state::State;
use crate::transition::Step;

/// What this scenario must reach, judged by what it allows.
pub(crate) fn properties(scenario: &Scenario) -> Vec<Property<Migration>> {
    let has = |step| scenario.steps.contains(&step);
    let mut reached = vec![
        Property::sometimes("every request is done", |_, s: &State| {
            s.members.iter().all(|member| member.requests == 0)
        }),
        Property::sometimes(
            "a request is under way between both stores",
            |_, s: &State| s.members.iter().any(|member| member.pending.is_some()),
        ),
    ];
    let mut asks = scenario.asks.iter().flat_map(|(asks, _)| *asks);
    if asks.any(|ask| matches!(ask, Ask::Delete(_))) {
        reached.push(Property::sometimes(
            "a deleted key has a whiteout",
            |_, s: &State| s.new.slots.contains(&Slot::Whiteout),
        ));
    }
    if !scenario.steps.is_empty() {
        reached.push(Property::sometimes("a member is behind", |_, s: &State| {
            s.members
                .iter()
                .any(|member| member.known.epoch < s.new.record.epoch)
        }));
    }
    if has(Step::Start) {
        reached.push(Property::sometimes(
            "the migration phase opens",
            |_, s: &State| s.new.record.is(Phase::Migration, Stage::Open),
        ));
    }
    if scenario.workers > 0 {
        reached.push(Property::sometimes(
            "the backfill ends beside a client's write",
            |_, s: &State| s.new.frontier == [true; 2] && s.new.revision > s.old.fence.at,
        ));
    }
    if scenario.workers > 1 {
        reached.push(Property::sometimes(
            "two workers have read one shard",
            |_, s: &State| s.workers[0].is_some() && s.workers[0] == s.workers[1],
        ));
    }
    if has(Step::Switch) {
        reached.push(Property::sometimes(
            "the normal phase is reached",
            |_, s: &State| s.new.record.phase == Phase::Normal,
        ));
    }
    if has(Step::SwitchBack) {
        reached.push(Property::sometimes(
            "the migration phase is reached again",
            |_, s: &State| s.new.record.phase == Phase::Migration && s.new.record.all_claimed,
        ));
    }
    if has(Step::Resume) {
        reached.push(Property::sometimes(
            "a write survives a rollback",
            |_, s: &State| {
                s.new.record.is(Phase::Passthrough, Stage::Open)
                    && s.new.record.leftovers
                    && s.new.slots.iter().zip(&s.old.pairs).any(|(slot, pair)| {
                        pair.is_some()
                            && slot.pair() == *pair
                            && pair.is_some_and(|p| p.written > 1)
                    })
            },
        ));
    }
    if has(Step::CallOff) {
        reached.push(Property::sometimes(
            "the old store is opened for a rollback that was called off",
            |_, s: &State| !s.old.fence.shut && s.new.record.is_migrating(),
        ));
        reached.push(Property::sometimes(
            "a rollback comes to its end behind one that was called off",
            |_, s: &State| s.new.record.is(Phase::Passthrough, Stage::Open) && s.new.record.epoch > 6,
        ));
    }
    if has(Step::Wipe) {
        reached.push(Property::sometimes(
            "a second migration opens",
            |_, s: &State| s.new.record.is(Phase::Migration, Stage::Open) && s.new.record.epoch > 6,
        ));
    }
    if has(Step::DropClaims) {
        reached.push(Property::sometimes(
            "the migration is settled, without claims",
            |_, s: &State| {
                s.new.record.phase == Phase::Settled
                    && !s.new.slots.iter().any(|slot| slot.is_claimed())
            },
        ));
    }
    if scenario.leased {
        reached.push(Property::sometimes(
            "a leased key expires in the new store",
            |_, s: &State| !s.new.lease && s.new.slots[0] == Slot::Whiteout,
        ));
    }
    reached
}

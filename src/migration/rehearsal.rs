//! The rehearsal of a switch: everything that a switch makes the fleet do, but into the phase that
//! it is in.
//!
//! The new store refuses the epoch before, as the fence does in a switch; every member learns of it,
//! sends its requests under the new one, ends what was under way, and acknowledges. So what requests
//! wait is what they are going to wait in earnest, and nothing else is changed.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::info;

use super::controller::{Controller, now_ms};
use super::ending::GONE;
use super::phase::{Decision, Phase, State, Surroundings, Verified};
use super::records::{MEMBERS, Member, STATE};
use crate::store::{Result, StoreError};
use crate::types::Epoch;

/// How often to look who has acknowledged: the time that is told is as exact as this.
const LOOK: Duration = Duration::from_millis(10);

/// What is waited for besides the time after which a dead member is no longer waited for.
const MARGIN: Duration = Duration::from_secs(5);

/// What a rehearsal has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rehearsal {
    /// The phase, which is the same as before.
    pub phase: String,
    /// The epoch that the fleet is in now.
    pub epoch: u64,
    /// From the transition to the last acknowledgement.
    pub acknowledged_ms: u64,
    /// The longest that a request through any member has waited.
    pub pause_ms: u64,
    /// The members.
    pub members: Vec<Rehearsed>,
}

/// What it was for one member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rehearsed {
    /// What it is called.
    pub name: String,
    /// From the transition to its acknowledgement.
    pub acknowledged_ms: u64,
    /// The longest that one of its requests has waited; 0 if none had to.
    pub stall_ms: u64,
}

impl State {
    /// Whether a switch may be rehearsed now.
    #[must_use]
    pub fn may_rehearse(&self, around: &Surroundings) -> Decision {
        use Decision::{Go, NoGo};
        match self.phase {
            Phase::Passthrough => {
                NoGo("the migration has not begun: run `segue start` first".into())
            }
            Phase::Settled => NoGo("the migration is settled; there is nothing to rehearse".into()),
            Phase::Migration | Phase::Normal => match self.unopened() {
                Some(why) => NoGo(why.into()),
                None => Go("every member is there").unless_behind(self.epoch, around),
            },
        }
    }

    /// The state after a rehearsal: the next epoch, and nothing else is new. What was verified is as
    /// good as before.
    #[must_use]
    pub fn rehearsed(&self, now: u64) -> Self {
        let epoch = self.epoch.next();
        let moved = |verified: Verified| Verified {
            epoch: if verified.epoch == self.epoch {
                epoch
            } else {
                verified.epoch
            },
            ..verified
        };
        Self {
            epoch,
            changed_ms: now,
            verified: self.verified.map(moved),
            ..self.clone()
        }
    }
}

impl Controller {
    /// Rehearses a switch, if it is not in the way of anything, and waits until all members have
    /// acknowledged; answers why not, if not.
    pub async fn rehearse(&self) -> Result<Result<Rehearsal, String>> {
        let (next, begun) = loop {
            let Some(entry) = self.ledger.get::<State>(STATE).await? else {
                return Ok(Err(self.ended().unwrap_or(GONE).into()));
            };
            let members = self.ledger.list::<Member>(MEMBERS).await?;
            let behind = members
                .into_iter()
                .filter(|(_, member)| member.value.acknowledged < entry.value.epoch)
                .map(|(_, member)| member.value.name);
            let around = Surroundings {
                behind: behind.collect(),
                ..Surroundings::default()
            };
            match entry.value.may_rehearse(&around) {
                Decision::NoGo(why) | Decision::Wait(why) => return Ok(Err(why)),
                Decision::Go(_) => {}
            }
            let next = entry.value.rehearsed(now_ms());
            let begun = Instant::now();
            if self.transit(&entry, &next, None).await? {
                break (next, begun);
            }
        };
        self.wake.notify_one();
        let deadline = begun + self.options.timing.lapse + MARGIN;
        let members = self.all_acknowledge(next.epoch, begun, deadline).await?;
        let most = |of: fn(&Rehearsed) -> u64| members.iter().map(of).max().unwrap_or_default();
        let rehearsal = Rehearsal {
            phase: next.phase.to_string(),
            epoch: next.epoch.0,
            acknowledged_ms: most(|member| member.acknowledged_ms),
            pause_ms: most(|member| member.stall_ms),
            members,
        };
        info!(
            epoch = rehearsal.epoch,
            pause_ms = rehearsal.pause_ms,
            acknowledged_ms = rehearsal.acknowledged_ms,
            "a switch was rehearsed"
        );
        Ok(Ok(rehearsal))
    }

    /// Waits until every member has acknowledged `epoch`, and none of its requests waits for it.
    async fn all_acknowledge(
        &self,
        epoch: Epoch,
        begun: Instant,
        deadline: Instant,
    ) -> Result<Vec<Rehearsed>> {
        let mut acknowledged: BTreeMap<String, u64> = BTreeMap::new();
        loop {
            let members = self.ledger.list::<Member>(MEMBERS).await?;
            let mut missing = Vec::new();
            for (id, member) in &members {
                let member = &member.value;
                if member.acknowledged >= epoch && !acknowledged.contains_key(id) {
                    acknowledged.insert(id.clone(), millis(begun.elapsed()));
                }
                if member.acknowledged < epoch || member.stall.epoch < epoch {
                    missing.push(member.name.clone());
                }
            }
            if missing.is_empty() {
                let rehearsed = members.into_iter().map(|(id, member)| Rehearsed {
                    acknowledged_ms: acknowledged.get(&id).copied().unwrap_or_default(),
                    name: member.value.name,
                    stall_ms: member.value.stall.ms,
                });
                return Ok(rehearsed.collect());
            }
            if Instant::now() > deadline {
                return Err(StoreError::Unavailable(format!(
                    "the epoch is {epoch} now, but these members have not acknowledged it: {}; a \
                     switch would wait for them",
                    missing.join(", ")
                )));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Whole milliseconds, rounded up: what took no time at all is not the same as what took little.
pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_micros().div_ceil(1000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::phase::Stage;
    use crate::types::Revision;

    #[test]
    fn a_rehearsal_is_for_a_fleet_that_serves_and_waits_for_nobody() {
        let waiting = State::wait("m".into(), "old".into(), false, 1);
        let begun = State::begin("m".into(), "old".into(), Revision(9), false, 1);
        let migration = begun.opened(2);
        let normal = migration.switched(Phase::Normal, 3);
        let settled = normal.switched(Phase::Settled, 4);
        let alone = Surroundings::default();
        let behind = Surroundings {
            behind: vec!["b".into()],
            // Not what a rehearsal asks about.
            rejects: 7,
            ..Surroundings::default()
        };
        for (state, around, refused_for) in [
            (&migration, &alone, None),
            (&normal, &alone, None),
            (&migration, &behind, Some("epoch 2 yet: b")),
            (&normal, &behind, Some("epoch 3 yet: b")),
            (&begun, &alone, Some("being opened")),
            (&waiting, &alone, Some("segue start")),
            (
                &waiting.switched(Phase::Migration, 2),
                &alone,
                Some("fenced"),
            ),
            (&settled, &alone, Some("settled")),
        ] {
            match (state.may_rehearse(around), refused_for) {
                (Decision::Go(_), None) => {}
                (Decision::NoGo(why) | Decision::Wait(why), Some(part)) => {
                    assert!(why.contains(part), "{why:?} does not speak of {part:?}");
                }
                other => panic!("{other:?} for {state:?}"),
            }
        }
    }

    #[test]
    fn nothing_but_the_epoch_is_new_and_what_was_verified_stays_so() {
        let mut state = State::begin("m".into(), "old".into(), Revision(9), false, 1).opened(2);
        state.backfill_complete = true;
        let at = |epoch, good| {
            Some(Verified {
                epoch,
                good,
                mirrored: true,
            })
        };
        for (before, after, is_verified) in [
            (None, None, false),
            (at(Epoch(2), true), at(Epoch(3), true), true),
            (at(Epoch(2), false), at(Epoch(3), false), false),
            (at(Epoch(1), true), at(Epoch(1), true), false),
        ] {
            state.verified = before;
            let next = state.rehearsed(5);
            assert_eq!(next.is_verified(), is_verified);
            let expected = State {
                epoch: Epoch(3),
                verified: after,
                changed_ms: 5,
                ..state.clone()
            };
            assert_eq!(next, expected);
            assert_eq!((next.phase, next.stage), (Phase::Migration, Stage::Open));
            assert_ne!(
                next.line(),
                state.line(),
                "requests of the epoch before are refused"
            );
        }
    }
}

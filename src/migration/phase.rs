//! The phase machine: pure, without clock and I/O.
//!
//! The whole fleet's phase is one [`State`] in one record of the new store. Every transition is a
//! method here that makes the next state from the present one; whoever carries it out writes it with
//! a compare-and-put, together with the [`Line`] that makes the store refuse everybody who is behind.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::store::{Guard, Line};
use crate::types::{Epoch, Revision};

/// The layout of the records that this version writes and reads.
pub const FORMAT: u32 = 1;

/// Why nothing follows the last phase.
pub const SETTLED: &str = "the migration is settled; nothing leads back from there";

/// Where a migration stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Everything goes to the old store.
    Passthrough,
    /// Reads see both stores, writes go to the new one.
    Migration,
    /// Everything goes to the new store, which still leaves whiteouts.
    Normal,
    /// The new store stands alone.
    Settled,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passthrough => "passthrough",
            Self::Migration => "migration",
            Self::Normal => "normal",
            Self::Settled => "settled",
        })
    }
}

/// Whether clients are served in the phase yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The old store is being fenced; clients wait.
    Fencing,
    /// Leases and leased keys are being copied up; clients wait.
    Opening,
    /// The way back: the new store is fenced, and what the mirror has not yet replayed is on its way
    /// into the old one; clients wait.
    Draining,
    /// Clients are served.
    Open,
}

/// The state of the migration, the same for the whole fleet.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own that a record on disk names"
)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The layout of the records; see [`FORMAT`].
    pub format: u32,
    /// A random name for this migration.
    pub migration: String,
    /// Grows by one with every transition.
    pub epoch: Epoch,
    /// The phase.
    pub phase: Phase,
    /// Whether it is open.
    pub stage: Stage,
    /// The last revision that belongs to the old store.
    pub base: Revision,
    /// Where the line of revisions has gone over to the other store so far, in order: bases, and
    /// goals of rollbacks in between.
    #[serde(default)]
    pub borders: Vec<Revision>,
    /// What makes the old store the one it is.
    pub old: String,
    /// The new store held keys when the migration began, and the operator allowed that.
    pub nonempty: bool,
    /// When the migration began, in milliseconds since 1970. For people only: nothing is decided
    /// by a wall clock.
    pub started_ms: u64,
    /// When this state was written, likewise.
    pub changed_ms: u64,
    /// Every key of the old store was copied up or recorded as a reject.
    pub backfill_complete: bool,
    /// Everything that the old store has is claimed, for good: the normal phase was entered once.
    pub all_claimed: bool,
    /// The latest verification.
    pub verified: Option<Verified>,
    /// After settle: no claims are left.
    pub claims_dropped: bool,
    /// After that: everybody is served by the new store as it is. No record is made any more, and those
    /// that there are go, this one last; see `ending`.
    #[serde(default)]
    pub closed: bool,
    /// The old store is fenced at the start, and follows the new one's changes: there is a way back.
    #[serde(default)]
    pub mirror: bool,
    /// Why the mirror cannot go on until somebody does something, if that is so.
    #[serde(default)]
    pub stuck: Option<String>,
    /// After a rollback: the old store carries the line on, under an epoch.
    #[serde(default)]
    pub returned: bool,
    /// While a rollback is under way: the phase that it began in.
    #[serde(default)]
    pub back_from: Option<Phase>,
    /// Why the latest rollback was called off, if it was.
    #[serde(default)]
    pub called_off: Option<String>,
    /// After a rollback: the new store still holds what the migration has left there.
    #[serde(default)]
    pub leftovers: bool,
    /// What the keys begin with that are Segue's own, the switch key among them: the same for the whole fleet. Nothing
    /// in migrations of before that was noted.
    #[serde(default)]
    pub reserved: Option<String>,
    /// An offline copy: no client is served before it is settled.
    #[serde(default)]
    pub offline: bool,
}

/// The outcome of a verification, as far as the switch asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// The epoch that it was made in.
    pub epoch: Epoch,
    /// Nothing was missing, different or stray.
    pub good: bool,
    /// What the mirror has replayed is in the old store as it is in the new one.
    #[serde(default = "yes")]
    pub mirrored: bool,
}

fn yes() -> bool {
    true
}

/// A decision, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may be done.
    Go(&'static str),
    /// It must not be done now.
    NoGo(String),
    /// The fleet is still on its way into the present phase. That ends by itself, so the request
    /// waits for it.
    Wait(String),
}

impl Decision {
    /// The same, but what may be done waits for members that are behind `epoch`.
    pub(super) fn unless_behind(self, epoch: Epoch, around: &Surroundings) -> Self {
        match self {
            Self::Go(_) if !around.behind.is_empty() => Self::Wait(format!(
                "members have not acknowledged epoch {epoch} yet: {}",
                around.behind.join(", ")
            )),
            decision => decision,
        }
    }
}

/// What decisions ask about besides the state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Rejects that are recorded.
    pub rejects: usize,
    /// Live members that have not acknowledged the present epoch.
    pub behind: Vec<String>,
    /// Revisions of the new store that the mirror has yet to replay; nothing, if that cannot be told.
    pub unmirrored: Option<u64>,
    /// What keeps the mirror from going on, if anything does.
    pub mirror_trouble: Option<String>,
}

/// A rollback waits until the mirror is this close: what is left is replayed while clients wait.
pub const DRAINED_AT_ONCE_MAX: u64 = 500;

impl State {
    /// The state in which a migration begins that lets clients work on the old store first.
    #[must_use]
    pub fn wait(migration: String, old: String, nonempty: bool, now: u64) -> Self {
        Self {
            phase: Phase::Passthrough,
            stage: Stage::Open,
            borders: Vec::new(),
            ..Self::begin(migration, old, Revision(0), nonempty, now)
        }
    }

    /// The state in which a migration begins.
    #[must_use]
    pub fn begin(migration: String, old: String, base: Revision, nonempty: bool, now: u64) -> Self {
        Self {
            format: FORMAT,
            migration,
            epoch: Epoch(1),
            phase: Phase::Migration,
            stage: Stage::Opening,
            base,
            borders: vec![base],
            old,
            nonempty,
            started_ms: now,
            changed_ms: now,
            backfill_complete: false,
            all_claimed: false,
            verified: None,
            claims_dropped: false,
            closed: false,
            mirror: false,
            stuck: None,
            returned: false,
            back_from: None,
            called_off: None,
            leftovers: false,
            reserved: None,
            offline: false,
        }
    }

    /// The same with a way back: the old store is fenced first, and mirrored into from then on.
    #[must_use]
    pub fn with_mirror(self) -> Self {
        let begun = self.phase == Phase::Migration;
        Self {
            mirror: true,
            // Known once it is fenced.
            borders: Vec::new(),
            stage: if begun { Stage::Fencing } else { self.stage },
            ..self
        }
    }

    /// The line that belongs to this state. Keys that are new to both stores need claims only until
    /// all that the old store has is claimed, since that one is not asked for anything from then on.
    #[must_use]
    pub fn line(&self) -> Option<Line> {
        let before = match self.stage {
            // Before the base revision is known there is nothing to go on from.
            Stage::Fencing => true,
            // Fenced by its line, but not yet let go.
            Stage::Draining => false,
            Stage::Opening | Stage::Open => self.phase == Phase::Passthrough,
        };
        (self.phase != Phase::Settled && !before).then_some(Line {
            epoch: self.epoch,
            claims: !self.all_claimed,
            base: self.base,
        })
    }

    /// Whether the new store ends no lease by itself in this state, since its part of the line is over: from
    /// the goal of a rollback on it has nothing to say, and members that have not noticed yet would tell
    /// their clients of the end.
    #[must_use]
    pub fn holds_leases(&self) -> bool {
        self.stage == Stage::Draining || (self.phase == Phase::Passthrough && self.leftovers)
    }

    /// What every operation on the old store has to hold to while it serves clients.
    #[must_use]
    pub fn guard_of_old(&self) -> Guard {
        if self.returned {
            Guard::Epoch {
                epoch: self.epoch,
                claims: false,
            }
        } else {
            Guard::Unfenced
        }
    }

    /// What every operation on the new store has to hold to in this state.
    #[must_use]
    pub fn guard(&self) -> Guard {
        match self.line() {
            None => Guard::None,
            Some(line) => Guard::Epoch {
                epoch: line.epoch,
                claims: line.claims,
            },
        }
    }

    /// Whether the copy is known to be good in this epoch.
    #[must_use]
    pub fn is_verified(&self) -> bool {
        self.verified
            .is_some_and(|verified| verified.good && verified.epoch == self.epoch)
    }

    /// The state after the old store was fenced at `base`: nothing changes there any more.
    #[must_use]
    pub fn fenced(&self, base: Revision, now: u64) -> Self {
        Self {
            epoch: self.epoch.next(),
            stage: Stage::Opening,
            base,
            borders: [&self.borders[..], &[base]].concat(),
            changed_ms: now,
            ..self.clone()
        }
    }

    /// The state after all leased keys were copied up: clients are let in. An epoch of its own, so
    /// that a straggler who still copies leases cannot bring back one that a client has revoked.
    #[must_use]
    pub fn opened(&self, now: u64) -> Self {
        Self {
            epoch: self.epoch.next(),
            stage: Stage::Open,
            changed_ms: now,
            ..self.clone()
        }
    }

    /// The state in which a rollback begins: the new store is fenced.
    #[must_use]
    pub fn draining(&self, now: u64) -> Self {
        Self {
            epoch: self.epoch.next(),
            phase: Phase::Passthrough,
            stage: Stage::Draining,
            back_from: Some(self.phase),
            called_off: None,
            changed_ms: now,
            ..self.clone()
        }
    }

    /// The state after a rollback that could not be carried to its end: as before it began.
    #[must_use]
    pub fn called_off(&self, why: &str, now: u64) -> Self {
        Self {
            epoch: self.epoch.next(),
            phase: self.back_from.unwrap_or(Phase::Migration),
            stage: Stage::Open,
            back_from: None,
            called_off: Some(why.to_owned()),
            changed_ms: now,
            ..self.clone()
        }
    }

    /// The line that the old store has when it is let in again behind `goal`: that of the next epoch.
    #[must_use]
    pub fn line_back(&self, goal: Revision) -> Line {
        Line {
            epoch: self.epoch.next(),
            claims: false,
            base: goal,
        }
    }

    /// The state after a rollback: everything up to `goal` is in the old store, which serves. The next
    /// migration knows nothing of this one.
    #[must_use]
    pub fn returned(&self, goal: Revision, now: u64) -> Self {
        Self {
            epoch: self.epoch.next(),
            phase: Phase::Passthrough,
            stage: Stage::Open,
            borders: [&self.borders[..], &[goal]].concat(),
            changed_ms: now,
            nonempty: false,
            backfill_complete: false,
            all_claimed: false,
            verified: None,
            returned: true,
            back_from: None,
            leftovers: true,
            ..self.clone()
        }
    }

    /// The state in which the records are closed, if the end of the migration has come: it is settled, no
    /// claims are left, and nobody is behind who could still ask what the phase is.
    #[must_use]
    pub fn closing(&self, around: &Surroundings, now: u64) -> Option<Self> {
        let over = self.phase == Phase::Settled && self.claims_dropped && !self.closed;
        (over && around.behind.is_empty()).then(|| Self {
            closed: true,
            changed_ms: now,
            ..self.clone()
        })
    }

    /// Whether this record is all that tells, when the migration is over, that there was one: a fence in
    /// the old store tells it, and an etcd or a database with keys in it does, unless `--allow-nonempty` is
    /// given. Started anew by the same command, a second migration would begin that brings back what was
    /// deleted since.
    #[must_use]
    pub fn has_to_stay(&self) -> bool {
        self.nonempty && !self.mirror
    }

    /// Whether the fleet may go to `to` now.
    #[must_use]
    pub fn may_switch(&self, to: Phase, around: &Surroundings) -> Decision {
        use Decision::{Go, NoGo, Wait};
        if self.phase == to {
            return NoGo(format!("the phase is {to} already"));
        }
        if self.phase == Phase::Settled {
            return NoGo(SETTLED.into());
        }
        if let Some(why) = self.unopened() {
            return NoGo(why.into());
        }
        let decision = match to {
            Phase::Normal | Phase::Settled if self.phase == Phase::Passthrough => {
                NoGo("the migration has not begun: run `segue start` first".into())
            }
            Phase::Migration if self.phase == Phase::Passthrough && self.leftovers => Wait(
                "the new store is still being emptied of what the last migration has left".into(),
            ),
            Phase::Migration if self.phase == Phase::Passthrough => {
                Go("the old store can be fenced")
            }
            Phase::Passthrough => self.may_return(around),
            Phase::Settled if self.phase != Phase::Normal => {
                NoGo("only a migration in the normal phase can be completed: switch first".into())
            }
            Phase::Migration => Go("every claim is kept until settle, so the overlay still holds"),
            Phase::Settled => Go("every member is in the normal phase"),
            Phase::Normal => self.may_leave_the_old_store(around),
        };
        decision.unless_behind(self.epoch, around)
    }

    /// Whether `segue start` may begin the migration now. That leads out of the passthrough phase only: from
    /// the normal one, a switch to the migration phase is something else, and nothing to happen unasked.
    #[must_use]
    pub fn may_start(&self, around: &Surroundings) -> Decision {
        use Decision::{NoGo, Wait};
        match (self.phase, self.unopened()) {
            (Phase::Passthrough, _) => self.may_switch(Phase::Migration, around),
            (Phase::Migration, Some(why)) => Wait(why.into()),
            (Phase::Migration, None) => NoGo(
                "the phase is migration already, so there is nothing to start; `segue status` shows how far \
                 it is"
                    .into(),
            ),
            (Phase::Normal, _) => NoGo(
                "the phase is normal already, so there is nothing to start; `segue complete` ends the \
                 migration, and `segue switch migration` goes back to the migration phase"
                    .into(),
            ),
            (Phase::Settled, _) => NoGo(SETTLED.into()),
        }
    }

    /// Whether the migration has begun, and lets clients in by itself as soon as it can.
    #[must_use]
    pub fn is_beginning(&self) -> bool {
        self.phase == Phase::Migration && matches!(self.stage, Stage::Fencing | Stage::Opening)
    }

    /// Why no other state may follow yet but by itself.
    pub(super) fn unopened(&self) -> Option<&'static str> {
        match self.stage {
            Stage::Open => None,
            Stage::Fencing => Some("the old store is still being fenced"),
            Stage::Opening => {
                Some("the migration is still being opened: leased keys are on their way")
            }
            Stage::Draining => Some(
                "a rollback is under way: the last changes are on their way into the old store",
            ),
        }
    }

    fn may_return(&self, around: &Surroundings) -> Decision {
        use Decision::{Go, NoGo, Wait};
        if !self.mirror {
            return NoGo(
                "there is no way back: the old store does not follow the new one's changes, because it \
                 was told not to (--no-mirror) or has no transactions (etcd v2, tables)"
                    .into(),
            );
        }
        if self.verified.is_some_and(|verified| !verified.mirrored) {
            return NoGo(
                "the verification found that the old store does not hold what the mirror has \
                 replayed; see `segue verify`, which can be repeated"
                    .into(),
            );
        }
        if let Some(why) = &self.stuck {
            return NoGo(format!("the old store does not get the changes: {why}"));
        }
        if let Some(why) = &around.mirror_trouble {
            // It would meet the same.
            return Wait(format!("the mirror does not get on: {why}"));
        }
        match around.unmirrored {
            None => {
                Wait("it cannot be told how far the mirror is: does the old store answer?".into())
            }
            Some(left) if left > DRAINED_AT_ONCE_MAX => Wait(format!(
                "the mirror is {left} changes behind, and clients would have to wait for them"
            )),
            Some(_) => Go("the old store holds nearly everything, and gets the rest first"),
        }
    }

    fn may_leave_the_old_store(&self, around: &Surroundings) -> Decision {
        use Decision::{Go, NoGo};
        if !self.backfill_complete {
            return NoGo("the backfill is not complete".into());
        }
        if around.rejects > 0 {
            return NoGo(format!(
                "{} rejected: `segue rejects` says why. Change or delete them through the proxy, and in the \
                 old store itself what cannot be read there, then run `segue verify`",
                keys(around.rejects)
            ));
        }
        match self.verified {
            Some(verified) if verified.epoch != self.epoch => {
                NoGo("the copy was not verified in this epoch; run `segue verify`".into())
            }
            None => NoGo("the copy is not verified; run `segue verify`".into()),
            Some(Verified { good: false, .. }) => NoGo(
                "the verification found differences; see `segue verify`, which can be repeated"
                    .into(),
            ),
            Some(Verified { good: true, .. }) => Go("backfill and verification are done"),
        }
    }

    /// The state after a switch to `to`, or after settle, or in which a rollback begins.
    #[must_use]
    pub fn switched(&self, to: Phase, now: u64) -> Self {
        if to == Phase::Passthrough {
            return self.draining(now);
        }
        Self {
            epoch: self.epoch.next(),
            phase: to,
            stage: match self.phase {
                Phase::Passthrough => Stage::Fencing,
                _ => self.stage,
            },
            changed_ms: now,
            // The switch waits for the backfill, and for rejects to be claimed by clients' writes.
            all_claimed: self.all_claimed || to == Phase::Normal,
            ..self.clone()
        }
    }
}

fn keys(count: usize) -> String {
    if count == 1 {
        "1 key was".into()
    } else {
        format!("{count} keys were")
    }
}

#[cfg(test)]
mod tests;

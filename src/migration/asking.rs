//! What people ask of a migration: to go to another phase, to verify, to run slower.

use tokio::time::Instant;
use tracing::info;

use super::controller::{Controller, View, now_ms};
use super::ending::GONE;
use super::fleet::Fleet;
use super::ledger::Entry;
use super::phase::{Decision, Phase, State, Surroundings};
use super::records::{CONTROL, Control, Outcome, STATE, SWITCH, Switch};
use super::switch::{KEY, Request};
use crate::store::{Result, Store as _};
use crate::types::{Epoch, Put, Range};

/// Why a request to switch that waited for its time is not granted any more.
const OVERTAKEN: &str = "it was overtaken by a rollback";

/// What became of a request to begin the migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Started {
    /// It begins, or did so just now, with this epoch or the next ones.
    Begun(Epoch),
    /// Not yet, because of something that ends by itself: it is to be asked for again.
    NotYet(String),
    /// It does not.
    Refused(String),
}

impl Controller {
    /// Writes the switch key, as any client could, and waits for what becomes of it.
    pub async fn switch(&self, request: Request) -> Result<Switch> {
        let refused = |reason: &str| Switch {
            value: request.value(),
            to: Some(request.to),
            outcome: Outcome::Refused,
            reason: reason.into(),
            ..Switch::default()
        };
        if let Some(why) = self.ended() {
            return Ok(refused(why));
        }
        let key = self.options.reserved.key(KEY);
        self.router
            .put(Put::new(key.clone(), request.value()))
            .await?;
        let written = self.plain.range(Range::key(key)).await?.reply.kvs;
        let revision = written.first().map_or(0, |kv| kv.mod_revision.0);
        self.wake.notify_one();
        let decided =
            |view: &View| view.switch.revision >= revision && !view.switch.reason.is_empty();
        self.wait_until(|view| decided(view) || view.ended().is_some())
            .await;
        let view = self.view.load();
        Ok(match view.ended() {
            Some(why) if !decided(&view) => refused(why),
            _ => view.switch.clone(),
        })
    }

    /// Pauses or resumes the backfill, or changes its limits, for the whole fleet. Changes nothing when
    /// there is nothing to steer any more.
    pub async fn steer(&self, change: impl Fn(&mut Control)) -> Result<Control> {
        loop {
            let state = self.ledger.get::<State>(STATE).await?;
            let Some(state) = state.filter(|entry| entry.value.phase != Phase::Settled) else {
                return Ok(*self.control.borrow());
            };
            let mut entry = self
                .ledger
                .get::<Control>(CONTROL)
                .await?
                .unwrap_or_default();
            change(&mut entry.value);
            if self
                .ledger
                .put_under(&state, CONTROL, &entry.value, entry.version)
                .await?
            {
                self.control.send_replace(entry.value);
                self.wake.notify_one();
                return Ok(entry.value);
            }
        }
    }

    /// Asks for a verification, and answers its number; see [`Self::verifications_done`].
    pub fn verify(&self) -> u64 {
        self.verify_wanted.send_modify(|wanted| *wanted += 1);
        self.wake.notify_one();
        *self.verify_wanted.borrow()
    }

    /// Settles the migration, if that is safe: claims and the line are removed, and the old store is
    /// let go. Answers why not, if not.
    pub async fn complete(&self) -> Result<Result<(), String>> {
        self.go_to(Phase::Settled).await
    }

    /// Begins the way back to the old store, if that is safe; answers why not, if not.
    pub async fn rollback(&self) -> Result<Result<(), String>> {
        self.go_to(Phase::Passthrough).await
    }

    /// Begins the migration, if the fleet is in the passthrough phase. That it is still beginning is fine as
    /// well: whoever has lost the answer asks once more.
    pub async fn start(&self) -> Result<Started> {
        loop {
            let Some(entry) = self.ledger.get::<State>(STATE).await? else {
                return Ok(Started::Refused(self.ended().unwrap_or(GONE).into()));
            };
            let state = &entry.value;
            if state.is_beginning() {
                return Ok(Started::Begun(state.epoch));
            }
            let around = self.surroundings(state, Phase::Migration).await?;
            match state.may_start(&around) {
                Decision::NoGo(why) => return Ok(Started::Refused(why)),
                Decision::Wait(why) => return Ok(Started::NotYet(why)),
                Decision::Go(why) => {
                    if let Some(epoch) = self.go(&entry, Phase::Migration, why).await? {
                        return Ok(Started::Begun(epoch));
                    }
                }
            }
        }
    }

    /// Takes the fleet to another phase without the switch key, if that is safe; answers why not, if
    /// not.
    pub async fn go_to(&self, phase: Phase) -> Result<Result<(), String>> {
        // Somebody who has just switched need not wait by hand.
        let deadline = Instant::now() + self.options.timing.look * 10;
        loop {
            let Some(entry) = self.ledger.get::<State>(STATE).await? else {
                return Ok(Err(self.ended().unwrap_or(GONE).into()));
            };
            let around = self.surroundings(&entry.value, phase).await?;
            match entry.value.may_switch(phase, &around) {
                Decision::NoGo(why) => return Ok(Err(why)),
                Decision::Wait(why) if Instant::now() > deadline => return Ok(Err(why)),
                Decision::Wait(_) => tokio::time::sleep(self.options.timing.look).await,
                Decision::Go(why) => {
                    if self.go(&entry, phase, why).await?.is_some() {
                        return Ok(Ok(()));
                    }
                }
            }
        }
    }

    /// Goes to another phase, unless the state has changed meanwhile; answers its epoch. A request to switch that
    /// waits ends with a rollback: it was made of a migration that is no more, and must not be granted in the next.
    async fn go(&self, from: &Entry<State>, phase: Phase, why: &str) -> Result<Option<Epoch>> {
        let next = from.value.switched(phase, now_ms());
        let waiting = if phase == Phase::Passthrough {
            let switch = self.ledger.get::<Switch>(SWITCH).await?;
            switch.filter(|entry| entry.value.outcome == Outcome::Waiting)
        } else {
            None
        };
        let overtaken = waiting.map(|entry| (entry.value.refused(OVERTAKEN), entry.version));
        let switch = overtaken
            .as_ref()
            .map(|(record, version)| (record, *version));
        if !self.transit(from, &next, switch).await? {
            return Ok(None);
        }
        info!(epoch = next.epoch.0, why, "the phase is {phase}");
        self.wake.notify_one();
        Ok(Some(next.epoch))
    }

    /// What a decision about going to `to` has to take into account.
    async fn surroundings(&self, state: &State, to: Phase) -> Result<Surroundings> {
        self.surroundings_of(state, &self.view.load().fleet, to)
            .await
    }

    /// The same, with the fleet as it was just seen.
    pub(super) async fn surroundings_of(
        &self,
        state: &State,
        fleet: &Fleet,
        to: Phase,
    ) -> Result<Surroundings> {
        let standing = match to {
            Phase::Passthrough => self.mirror(state).await.ok().flatten(),
            _ => None,
        };
        Ok(Surroundings {
            rejects: self.rejects().await?.len(),
            behind: fleet.behind(state.epoch),
            unmirrored: standing.map(|standing| standing.behind),
            mirror_trouble: self.mirror_trouble(fleet),
        })
    }
}

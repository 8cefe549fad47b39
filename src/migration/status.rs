//! Everything about the migration for people and scripts to see.

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::backfill::Progress;
use super::controller::{Controller, View};
use super::fleet::Fleet;
use super::foreign::Foreign;
use super::jobs::Job;
use super::mirror::Standing;
use super::phase::{Decision, Phase, Stage, State, Surroundings};
use super::records::{Member, Shard, Switch};
use super::verify::Report;
use crate::overlay::Counters;
use crate::store::{Result, StoreError};

/// How long the new store may take to answer before it counts as one that does not.
const NEW_LOOK: Duration = Duration::from_secs(3);

/// What `segue status --json` prints and `GET /status` answers.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own that scripts ask for by name"
)]
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// `passthrough`, `migration`, `normal` or `settled`.
    pub phase: String,
    /// While clients wait: `fencing` (of the old store), `opening` (leased keys are on their way) or
    /// `draining` (the last changes are on their way back); else `open`.
    pub stage: String,
    /// Grows by one with each transition.
    pub epoch: u64,
    /// A random name for the migration; empty where there is none.
    pub migration: String,
    /// Where the line of revisions last went over to the other store: the last revision that belongs to
    /// the old one, or after a rollback to the new one.
    pub base: i64,
    /// What a rollback would cost, if there is a way back and the stores answer.
    pub way_back: Option<Standing>,
    /// Why a rollback would be refused until somebody does something about it.
    #[serde(default)]
    pub way_back_closed: Option<String>,
    /// Why a rollback would be refused now, and not in a while.
    #[serde(default)]
    pub way_back_waits: Option<String>,
    /// The old store is written to, so that there is a way back.
    pub mirror: bool,
    /// Why the latest rollback was called off, if it was.
    pub called_off: Option<String>,
    /// Every key was copied or rejected.
    pub backfill_complete: bool,
    /// Keys of the old store that are in the new one.
    pub keys_copied: u64,
    /// Keys that are still to be copied.
    pub keys_left: u64,
    /// Bytes of the keys and values that the backfill has been past.
    pub bytes_copied: u64,
    /// What the backfill makes now.
    pub keys_per_s: u64,
    /// Likewise.
    pub bytes_per_s: u64,
    /// How long the rest of the backfill will take, if that can be said.
    pub eta_s: Option<u64>,
    /// The backfill is paused.
    pub paused: bool,
    /// Its limit; nothing is none.
    pub rate_keys: Option<u64>,
    /// Its limit; nothing is none.
    pub rate_bytes: Option<u64>,
    /// The copy was compared with the old store and found good.
    pub verified: bool,
    /// A verification is under way; keys compared so far.
    pub verifying: Option<u64>,
    /// Keys that the new store cannot take.
    pub rejects: u64,
    /// What holds the switch to the normal phase back.
    pub blocked: Option<String>,
    /// The latest request to switch.
    pub switch: Switch,
    /// The proxies of this migration.
    pub members: Vec<MemberStatus>,
    /// Who runs the backfill.
    pub owner: Option<String>,
    /// Reads through this proxy that the new store answered alone.
    pub reads_new: u64,
    /// Reads through this proxy for which the old store was asked.
    pub reads_old: u64,
    /// Keys that this proxy copied up for the sake of a request.
    pub copy_ups: u64,
    /// The longest that a request through this proxy has waited for a change of the phase, in
    /// milliseconds.
    pub longest_stall_ms: u64,
    /// What others have changed in the old store past the proxies.
    pub foreign: Foreign,
    /// The migration is over: nothing of it is left in the new store, which this proxy serves alone.
    pub complete: bool,
    /// What is wrong now.
    pub trouble: Option<String>,
    /// Where this proxy serves the etcd API.
    pub listen: String,
    /// Where it serves its admin API.
    pub admin: String,
    /// The old store, without secrets.
    pub old: Option<String>,
    /// The new store, without secrets.
    pub new: String,
    /// How long this proxy has been running.
    pub uptime_s: u64,
    /// Its version.
    pub version: String,
}

/// A proxy of the migration.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct MemberStatus {
    /// What it is called.
    pub name: String,
    /// Its number.
    pub id: String,
    /// Where clients find it.
    pub client_url: String,
    /// Where its admin API is.
    pub admin: String,
    /// The epoch that it has acknowledged.
    pub acknowledged: u64,
    /// The longest that a request through it has waited for that epoch, in milliseconds, as far as
    /// it has told; 0 if none had to.
    pub stall_ms: u64,
    /// It is the one that was asked.
    pub this: bool,
}

impl Controller {
    /// How the migration stands. What only the server knows is left empty. When the new store does not
    /// answer, that is part of it, and the rest is as this member last saw it.
    pub async fn status(&self) -> Status {
        let view = self.view();
        let state = &view.state.value;
        let control = *self.control.borrow();
        let progress = &view.progress;
        let counters = self.counters();
        let sum = |of: fn(&Shard) -> u64| progress.shards.iter().map(of).sum::<u64>();
        let (rejects, unread) = match self.count_rejects().await {
            Ok(rejects) => (rejects, None),
            Err(error) => {
                let known = sum(|shard| shard.rejected);
                let known = usize::try_from(known).unwrap_or(usize::MAX);
                (known, Some(format!("the new store: {error}")))
            }
        };
        let way_back = self.mirror(state).await.ok().flatten();
        let around = Surroundings {
            rejects,
            behind: view.fleet.behind(state.epoch),
            unmirrored: way_back.map(|standing| standing.behind),
            mirror_trouble: self.mirror_trouble(&view.fleet),
        };
        let (way_back_closed, mut way_back_waits) = why_no_rollback(state, &around);
        let mut blocked = match state.phase {
            Phase::Migration => match state.may_switch(Phase::Normal, &around) {
                Decision::Go(_) => None,
                Decision::NoGo(why) | Decision::Wait(why) => Some(why),
            },
            _ => None,
        };
        if let Some(why) = &unread {
            // Nothing can be decided then, whatever was known last.
            blocked = blocked.or_else(|| Some(why.clone()));
            way_back_waits = Some(why.clone());
        }
        let pace = self.pace(progress);
        let left = progress.keys_left();
        let eta_s = match pace.0 {
            _ if state.backfill_complete => Some(0),
            0 => None,
            rate => Some(left.div_ceil(rate)),
        };
        Status {
            phase: state.phase.to_string(),
            stage: match state.stage {
                Stage::Fencing => "fencing".into(),
                Stage::Opening => "opening".into(),
                Stage::Draining => "draining".into(),
                Stage::Open => "open".into(),
            },
            epoch: state.epoch.0,
            migration: state.migration.clone(),
            base: state.borders.last().map_or(0, |border| border.0),
            way_back,
            way_back_closed,
            way_back_waits,
            mirror: state.mirror,
            called_off: state.called_off.clone(),
            backfill_complete: state.backfill_complete,
            keys_copied: sum(|shard| shard.copied + shard.claimed),
            keys_left: left,
            bytes_copied: sum(|shard| shard.bytes),
            keys_per_s: pace.0,
            bytes_per_s: pace.1,
            eta_s,
            paused: control.paused,
            rate_keys: control.rate_keys,
            rate_bytes: control.rate_bytes,
            verified: match state.phase {
                Phase::Migration => state.is_verified(),
                _ => state.verified.is_some_and(|verified| verified.good),
            },
            verifying: self
                .verifying()
                .map(|report: std::sync::Arc<Report>| report.compared),
            rejects: rejects as u64,
            blocked,
            switch: view.switch.clone(),
            members: self.member_statuses(&view),
            owner: view.owner.clone(),
            reads_new: counters.reads_new,
            reads_old: counters.reads_old,
            copy_ups: counters.copy_ups,
            longest_stall_ms: u64::try_from(self.router.longest_stall().as_millis())
                .unwrap_or(u64::MAX),
            foreign: (*self.foreign()).clone(),
            complete: view.over,
            trouble: unread.or_else(|| self.trouble()),
            uptime_s: self.started.elapsed().as_secs(),
            version: env!("CARGO_PKG_VERSION").into(),
            ..Status::default()
        }
    }

    async fn count_rejects(&self) -> Result<usize> {
        let answer = tokio::time::timeout(NEW_LOOK, self.rejects()).await;
        let nothing = || Err(StoreError::Unavailable("it does not answer".into()));
        Ok(answer.unwrap_or_else(|_| nothing())?.len())
    }

    /// What is wrong now: with the migration's records, or with jobs.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let of_records = self.view.load().trouble.clone();
        of_records.or_else(|| self.troubles.text())
    }

    /// What keeps the mirror from going on, here or with the member that runs it.
    pub(super) fn mirror_trouble(&self, fleet: &Fleet) -> Option<String> {
        let told = |(_, member): (&str, &Member)| member.mirror_trouble.clone();
        let here = self.troubles.of(Job::Mirroring.name());
        here.or_else(|| fleet.iter().find_map(told))
    }

    fn member_statuses(&self, view: &View) -> Vec<MemberStatus> {
        let members = view.fleet.iter().map(|(id, member)| MemberStatus {
            name: member.name.clone(),
            id: id.to_owned(),
            client_url: member.client_url.clone(),
            admin: member.admin.clone(),
            acknowledged: member.acknowledged.0,
            stall_ms: match member.stall {
                stall if stall.epoch == member.acknowledged => stall.ms,
                _ => 0,
            },
            this: id == self.id(),
        });
        members.collect()
    }

    /// What the overlays of this member have done.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let past = **self.past_counters.load();
        match &*self.overlay.load() {
            Some(overlay) => add(past, overlay.counters()),
            None => past,
        }
    }

    fn pace(&self, progress: &Progress) -> (u64, u64) {
        let mut meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
        meter.read(progress, Instant::now())
    }
}

/// Why a rollback would be refused: for good until somebody does something, or for a while.
fn why_no_rollback(state: &State, around: &Surroundings) -> (Option<String>, Option<String>) {
    if !matches!(state.phase, Phase::Migration | Phase::Normal) {
        return (None, None);
    }
    match state.may_switch(Phase::Passthrough, around) {
        Decision::Go(_) => (None, None),
        Decision::NoGo(why) => (Some(why), None),
        Decision::Wait(why) => (None, Some(why)),
    }
}

pub(super) fn add(a: Counters, b: Counters) -> Counters {
    Counters {
        reads_new: a.reads_new + b.reads_new,
        reads_old: a.reads_old + b.reads_old,
        copy_ups: a.copy_ups + b.copy_ups,
    }
}

/// How fast the backfill has been lately.
#[derive(Debug, Default)]
pub struct Meter {
    marks: VecDeque<(Instant, u64, u64)>,
}

impl Meter {
    /// How far back to look.
    const WINDOW: Duration = Duration::from_secs(10);

    /// Takes the reading at `now`.
    pub fn mark(&mut self, progress: &Progress, now: Instant) {
        let keys = progress.shards.iter().map(Shard::passed).sum();
        let bytes = progress.shards.iter().map(|shard| shard.bytes).sum();
        self.marks.push_back((now, keys, bytes));
        while self.marks.len() > 2 && now - self.marks[1].0 > Self::WINDOW {
            self.marks.pop_front();
        }
    }

    /// Keys and bytes per second.
    fn read(&mut self, progress: &Progress, now: Instant) -> (u64, u64) {
        self.mark(progress, now);
        let (Some(first), Some(last)) = (self.marks.front(), self.marks.back()) else {
            return (0, 0);
        };
        let millis = u64::try_from((last.0 - first.0).as_millis()).unwrap_or(u64::MAX);
        if millis == 0 {
            return (0, 0);
        }
        let rate = |from: u64, to: u64| to.saturating_sub(from).saturating_mul(1000) / millis;
        (rate(first.1, last.1), rate(first.2, last.2))
    }
}

//! The loop that keeps a member in step with the fleet.
//!
//! Each turn looks at the records, sends requests the way that the state says, acknowledges, and
//! starts or stops the jobs that are this member's. Nothing here holds anything that a restart, or
//! another member, could not find in the records.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{BoxStream, StreamExt as _};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::backfill::Progress;
use super::controller::{Controller, View, now_ms};
use super::crossing::{Border, Known, Stretch};
use super::ending::GONE;
use super::fleet::Fleet;
use super::foreign;
use super::jobs::{self, Job, Jobs, Situation};
use super::ledger::Entry;
use super::phase::{Decision, Phase, Stage, State};
use super::records::{
    CONTROL, Control, MEMBERS, Member, OWNER, Outcome, Owner, STATE, SWITCH, Stall, Switch,
};
use super::rehearsal::millis;
use super::router::{Mirrored, Router};
use super::status::add;
use super::switch::{KEY, LOOK, seen};
use crate::overlay::{Overlay, WithPast};
use crate::store::{Result, Store, StoreError};
use crate::types::{Epoch, KeyRange, Range};

/// A turn that takes longer has met a store that does not answer.
const TURN: Duration = Duration::from_secs(10);

/// The spans about which the old store need not be asked. Once everything is claimed that is not only
/// cheaper: keys that were written since may have no claim, so the new store alone can tell.
fn copied_spans(state: &State, progress: &Progress) -> Vec<KeyRange> {
    if state.all_claimed {
        vec![KeyRange::all()]
    } else {
        progress.copied_spans()
    }
}

/// Between turns that fail: what ends the wait for the next one otherwise may be ready until one succeeds.
const PAUSE: Duration = Duration::from_millis(100);

/// Before the first look.
const UNKNOWN: Known = Known {
    epoch: Epoch(0),
    border: Border::Open,
};

/// What follows a turn.
enum Turn {
    Next,
    /// Nothing: the migration is over, or gone.
    Last,
}

/// What one member's loop keeps from turn to turn.
pub(super) struct Driver {
    shared: Arc<Controller>,
    jobs: Jobs,
    fleet: Fleet,
    /// Ways that requests went before the present one, until nothing is under way on any of them.
    draining: Vec<CancellationToken>,
    /// The epoch that requests are sent by.
    routed: Option<Epoch>,
    /// The part of the line that requests are sent to, and how many borders lie before.
    stretch: Stretch,
    known: watch::Sender<Known>,
    borders: usize,
    /// The spans are all published and will not change.
    published: bool,
    own: Entry<Member>,
    joined: bool,
    begun: Instant,
}

impl Driver {
    pub(super) fn new(shared: Arc<Controller>) -> Self {
        let options = &shared.options;
        let known = watch::Sender::new(UNKNOWN);
        let own = Entry {
            value: Member {
                name: options.name.clone(),
                client_url: options.client_url.clone(),
                admin: options.admin.clone(),
                ..Member::default()
            },
            version: 0,
        };
        Self {
            jobs: Jobs::new(shared.tasks.clone(), shared.troubles.clone()),
            fleet: Fleet::default(),
            draining: Vec::new(),
            routed: None,
            stretch: Stretch::new(known.subscribe(), options.reserved.clone()),
            known,
            borders: 0,
            published: false,
            own,
            joined: false,
            begun: Instant::now(),
            shared,
        }
    }

    pub(super) async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut switch = SwitchWatch::default();
        loop {
            let trouble = match tokio::time::timeout(TURN, self.turn()).await {
                Ok(Ok(Turn::Next)) => None,
                Ok(Ok(Turn::Last)) => {
                    self.jobs.stop();
                    self.end();
                    return;
                }
                Ok(Err(error)) => Some(error),
                Err(_) => Some(StoreError::Unavailable(
                    "the new store does not answer".into(),
                )),
            };
            let failed = trouble.is_some();
            self.publish(trouble);
            if failed {
                tokio::select! {
                    () = shared.tasks.cancelled() => break,
                    () = tokio::time::sleep(PAUSE) => continue,
                }
            }
            tokio::select! {
                () = shared.tasks.cancelled() => break,
                () = tokio::time::sleep(shared.options.timing.look) => {}
                () = shared.router.stale() => {}
                () = shared.wake.notified() => {}
                () = self.jobs.finished() => {}
                () = drained(&self.draining, &shared.router) => {}
                () = switch.changed(&shared) => {}
            }
        }
        self.jobs.stop();
        if !shared.vanished() {
            // So that nobody waits for this member, and the backfill goes on elsewhere at once.
            let name = format!("{MEMBERS}{}", shared.id());
            let farewell = shared.ledger.remove(&name, self.own.version);
            let _ = tokio::time::timeout(Duration::from_secs(1), farewell).await;
        }
    }

    /// One look at the records, and what follows from it.
    async fn turn(&mut self) -> Result<Turn> {
        let shared = Arc::clone(&self.shared);
        let Some(state) = self.load_state().await? else {
            return Ok(Turn::Last);
        };
        let serves_old =
            state.value.phase == Phase::Passthrough && state.value.stage == Stage::Open;
        if serves_old && self.routed != Some(state.value.epoch) {
            // The old store may not have been needed until now, and clients are about to be sent to it.
            shared.fenceable().await?;
        }
        self.follow(&state.value);
        if state.value.closed {
            let done = shared.remove_rest(&state).await?;
            shared.see(state);
            // Else another member was faster, and the next turn finds that there is nothing.
            shared.wake.notify_one();
            return Ok(if done { Turn::Last } else { Turn::Next });
        }
        self.beat(&state).await?;
        let owner = self.choose_owner(&state).await?;
        if let Some(control) = shared.ledger.get::<Control>(CONTROL).await? {
            let changed = |now: &mut Control| {
                let differs = *now != control.value;
                *now = control.value;
                differs
            };
            shared.control.send_if_modified(changed);
        }
        let progress = self.load_progress(&state.value).await?;
        shared.look_at_foreign(&state.value).await?;
        let switch = self.decide_switch(&state).await?;
        let wanted = *shared.verify_wanted.borrow();
        let situation = Situation {
            owner: owner.as_deref() == Some(shared.id()),
            verify: (shared.verifications_done() < wanted).then_some(wanted),
        };
        if !situation.owner || state.value.phase == Phase::Settled {
            shared.tails.clear();
        }
        if state.value.phase == Phase::Settled {
            // There is nothing to compare any more.
            shared.verified(wanted);
        }
        for job in jobs::wanted(
            &state.value,
            situation,
            &self.jobs,
            shared.options.auto_verify,
        ) {
            self.start(job, &state.value);
        }
        self.jobs.keep_only(&state.value, situation);
        if situation.owner {
            shared.close(&state, &self.fleet).await?;
        }
        shared.view.store(Arc::new(View {
            state,
            fleet: self.fleet.clone(),
            owner,
            progress,
            switch,
            trouble: None,
            over: false,
        }));
        Ok(Turn::Next)
    }

    /// The state, if there still is one. That of another migration is none.
    async fn load_state(&self) -> Result<Option<Entry<State>>> {
        let state = self.shared.ledger.get::<State>(STATE).await?;
        let ours = &self.shared.view.load().state.value.migration;
        Ok(state.filter(|entry| entry.value.migration == *ours))
    }

    /// There is nothing more to look at: this member serves on by the new store alone, or it cannot.
    fn end(&mut self) {
        let shared = Arc::clone(&self.shared);
        let before = shared.view();
        if before.state.value.phase == Phase::Settled {
            self.follow(&before.state.value);
            shared.view.store(Arc::new(View {
                over: true,
                owner: None,
                trouble: None,
                ..(*before).clone()
            }));
            self.publish(None);
        } else {
            let epoch = before.state.value.epoch;
            shared.router.serve(epoch, None, None, None);
            self.publish(Some(StoreError::Broken(GONE.into())));
            shared.gone.cancel();
        }
    }

    /// Sends requests the way that the state says, if that is another way than before.
    fn follow(&mut self, state: &State) {
        let shared = &self.shared;
        if self.routed == Some(state.epoch) {
            return;
        }
        let overlay = (state.phase == Phase::Migration && state.stage == Stage::Open).then(|| {
            let new = shared.new.guarded(state.guard());
            let reserved = shared.options.reserved.clone();
            let overlay = Overlay::new(shared.old_at_base(state), new, reserved);
            let before = shared.view.load();
            // Not that of a migration that was rolled back, which may have had the same base.
            if before.state.value.borders == state.borders {
                overlay.set_copied(copied_spans(state, &before.progress));
            }
            Arc::new(overlay)
        });
        let with_past = |store: Arc<dyn Store>| -> Arc<dyn Store> {
            let (old, reserved) = (shared.old.clone(), shared.options.reserved.clone());
            let may_be_gone = state.phase == Phase::Normal;
            Arc::new(WithPast::new(store, old, state.base, reserved, may_be_gone))
        };
        let store: Option<Arc<dyn Store>> = match &overlay {
            Some(overlay) => Some(with_past(overlay.clone())),
            None if state.stage != Stage::Open => None,
            None if state.phase == Phase::Passthrough => shared.passthrough(state),
            None if state.phase == Phase::Settled => Some(shared.new.guarded(state.guard())),
            None => Some(with_past(shared.new.guarded(state.guard()))),
        };
        if let Some(past) = shared.overlay.swap(overlay) {
            let sum = add(**shared.past_counters.load(), past.counters());
            shared.past_counters.store(Arc::new(sum));
        }
        let mirrored = state.mirror && matches!(state.phase, Phase::Migration | Phase::Normal);
        let mirrored = mirrored.then(|| Mirrored {
            old: shared.old.clone(),
            pair_bytes_max: shared.options.replayed_bytes_max,
        });
        let stretch = self.stretch_of(state);
        let router = &self.shared.router;
        let served = router.serve(state.epoch, store, stretch, mirrored);
        self.draining.push(served);
        self.routed = Some(state.epoch);
        self.published = false;
        info!(epoch = state.epoch.0, phase = %state.phase, "requests follow the new epoch");
    }

    /// Tells the watches that are open how far the store that they are in goes, and answers what is to
    /// be told to those that come.
    fn stretch_of(&mut self, state: &State) -> Option<Stretch> {
        let epoch = state.epoch;
        let tell = |border| Known { epoch, border };
        if let Some(last) = state.borders.get(self.borders) {
            self.known.send_replace(tell(Border::At(*last)));
            self.borders = state.borders.len();
            self.known = watch::Sender::new(tell(Border::Open));
            let reserved = self.shared.options.reserved.clone();
            self.stretch = Stretch::new(self.known.subscribe(), reserved);
        } else if matches!(state.stage, Stage::Fencing | Stage::Draining) {
            self.known.send_replace(tell(Border::Closing));
        } else {
            // As it was, if a rollback is called off.
            self.known.send_replace(tell(Border::Open));
        }
        (state.phase != Phase::Settled).then(|| self.stretch.clone())
    }

    /// Shows that this member lives, and which epoch it has nothing before of.
    async fn beat(&mut self, state: &Entry<State>) -> Result<()> {
        let drained = self.draining.iter().all(CancellationToken::is_cancelled);
        if drained && self.shared.router.has_crossed() {
            self.draining.clear();
            let epoch = self.routed.unwrap_or_default();
            self.own.value.acknowledged = epoch;
            if let Some(stall) = self.shared.router.stall_of(epoch) {
                let ms = millis(stall);
                self.own.value.stall = Stall { epoch, ms };
            }
        }
        self.own.value.beat += 1;
        let shared = Arc::clone(&self.shared);
        self.own.value.mirror_trouble = shared.troubles.of(Job::Mirroring.name());
        let name = format!("{MEMBERS}{}", shared.id());
        if shared
            .ledger
            .put_under(state, &name, &self.own.value, self.own.version)
            .await?
        {
            self.own.version += 1;
        } else {
            // An earlier write was done though it seemed to fail, or the others took us for dead, or the
            // state is another one by now.
            let present = shared.ledger.get::<Member>(&name).await?;
            self.own.version = present.map_or(0, |entry| entry.version);
            shared.wake.notify_one();
        }
        if !self.joined {
            self.replace_namesakes().await?;
            self.joined = true;
        }
        let now = self.begun.elapsed();
        self.fleet.observe(shared.ledger.list(MEMBERS).await?, now);
        for (id, version) in self.fleet.lapsed(now, shared.options.timing.lapse) {
            if id != shared.id()
                && shared
                    .ledger
                    .remove(&format!("{MEMBERS}{id}"), version)
                    .await?
            {
                warn!(member = %id, "a member has not been heard of and is no longer waited for");
            }
        }
        Ok(())
    }

    /// Lets go of members of the same name and address: they were this proxy before it was
    /// restarted, and need not be waited for until they lapse. Should one be alive in spite of that,
    /// it finds its record gone and writes it anew. One of another address is told of: people could not tell
    /// the two apart, and neither could clients that list the members.
    async fn replace_namesakes(&self) -> Result<()> {
        let shared = &self.shared;
        let own = &self.own.value;
        for (id, entry) in shared.ledger.list::<Member>(MEMBERS).await? {
            let other = &entry.value;
            if other.name != own.name || id == shared.id() {
                continue;
            }
            if other.client_url == own.client_url {
                let name = format!("{MEMBERS}{id}");
                shared.ledger.remove(&name, entry.version).await?;
            } else {
                let (name, url) = (&own.name, &other.client_url);
                warn!(%name, %url, "another member has this name: give each proxy its own with --name");
            }
        }
        Ok(())
    }

    /// Who owns the jobs that only one member does; this member, if there is nobody.
    async fn choose_owner(&self, state: &Entry<State>) -> Result<Option<String>> {
        let shared = &self.shared;
        let entry = shared.ledger.get::<Owner>(OWNER).await?.unwrap_or_default();
        let owner = entry.value.member;
        if self.fleet.get(&owner).is_some() {
            return Ok(Some(owner));
        }
        let id = shared.id().to_owned();
        let claim = Owner { member: id.clone() };
        let ledger = &shared.ledger;
        let done = ledger
            .put_under(state, OWNER, &claim, entry.version)
            .await?;
        if done {
            info!("this member owns the backfill now");
        }
        Ok(done.then_some(id))
    }

    /// How far the backfill is, told to the overlay.
    async fn load_progress(&mut self, state: &State) -> Result<Progress> {
        let shared = &self.shared;
        if self.published {
            return Ok(shared.view.load().progress.clone());
        }
        let progress = Progress::load(&shared.ledger, state.phase).await?;
        if let Some(overlay) = &*shared.overlay.load() {
            overlay.set_copied(copied_spans(state, &progress));
        }
        shared.mark(&progress);
        // What was complete when the state was read is complete in what was read after it.
        self.published = state.backfill_complete;
        Ok(progress)
    }

    /// Looks at the switch key, and does what it says if that is safe.
    async fn decide_switch(&self, state: &Entry<State>) -> Result<Switch> {
        let shared = &self.shared;
        let entry = shared
            .ledger
            .get::<Switch>(SWITCH)
            .await?
            .unwrap_or_default();
        // Behind the record, which is written under its version: so the key is never older than the record.
        let key = Range::key(shared.options.reserved.key(KEY));
        let present = shared.plain.range(key).await?.reply.kvs.pop();
        let mut record = entry.value.clone();
        match present {
            Some(kv) if kv.mod_revision.0 != record.revision => {
                record = seen(kv.mod_revision.0, &kv.value);
            }
            None if record.outcome == Outcome::Waiting => {
                record = record.refused("the switch key was deleted");
            }
            _ => {}
        }
        let mut next = None;
        if let (Outcome::Waiting, Some(to)) = (record.outcome, record.to) {
            let around = shared
                .surroundings_of(&state.value, &self.fleet, to)
                .await?;
            let decision = state.value.may_switch(to, &around);
            match decision {
                _ if state.value.phase == to => {
                    record.outcome = Outcome::Done;
                    record.reason = format!("the phase is {to}");
                }
                Decision::Go(why) => {
                    record.outcome = Outcome::Done;
                    why.clone_into(&mut record.reason);
                    next = Some(state.value.switched(to, now_ms()));
                }
                Decision::Wait(why) => record.reason = why,
                Decision::NoGo(why) => {
                    record.reason = why;
                    if !record.when_ready {
                        record.outcome = Outcome::Refused;
                    }
                }
            }
        }
        if record == entry.value {
            return Ok(record);
        }
        let done = if let Some(next) = &next {
            let record = Some((&record, entry.version));
            shared.transit(state, next, record).await?
        } else {
            shared
                .ledger
                .put_under(state, SWITCH, &record, entry.version)
                .await?
        };
        if !done {
            // Another member was faster, or the state has changed: the next turn sees it.
            shared.wake.notify_one();
            return Ok(entry.value);
        }
        match (&next, record.outcome) {
            (Some(next), _) => {
                info!(phase = %next.phase, epoch = next.epoch.0, reason = %record.reason, "switched");
                shared.wake.notify_one();
            }
            (None, Outcome::Refused) => {
                warn!(value = %record.value, reason = %record.reason, "the switch is refused");
            }
            _ => {}
        }
        Ok(record)
    }

    fn start(&mut self, job: Job, state: &State) {
        let shared = Arc::clone(&self.shared);
        let (jobs, of) = (&mut self.jobs, state.clone());
        match job {
            Job::Fencing => jobs.start(job, state, |trouble| jobs::fence(shared, of, trouble)),
            Job::Opening => jobs.start(job, state, |trouble| jobs::open(shared, of, trouble)),
            Job::Backfill => jobs.start(job, state, |trouble| jobs::backfill(shared, of, trouble)),
            Job::Verification(number) => jobs.start(job, state, |trouble| {
                jobs::verify(shared, of, number, trouble)
            }),
            Job::Mirroring => jobs.start(job, state, |trouble| jobs::mirror(shared, of, trouble)),
            Job::Draining => jobs.start(job, state, |trouble| jobs::drain(shared, of, trouble)),
            Job::Clearing => jobs.start(job, state, |trouble| jobs::clear(shared, of, trouble)),
            Job::Foreign => jobs.start(job, state, |trouble| foreign::watch(shared, of, trouble)),
            Job::Settling => jobs.start(job, state, |trouble| jobs::settle(shared, trouble)),
        }
    }

    /// Shows how the turn went.
    fn publish(&self, error: Option<StoreError>) {
        if let Some(error) = error {
            let before = self.shared.view();
            let text = error.to_string();
            if before.trouble.as_ref() != Some(&text) {
                warn!(%error, "the migration's records cannot be read or written; trying again");
            }
            self.shared.view.store(Arc::new(View {
                trouble: Some(text),
                ..(*before).clone()
            }));
        }
        self.shared.looks.send_modify(|looks| *looks += 1);
    }
}

/// Returns when all are drained and watches have gone over, unless there is none.
async fn drained(draining: &[CancellationToken], router: &Router) {
    if draining.is_empty() {
        std::future::pending::<()>().await;
    }
    for token in draining {
        token.cancelled().await;
    }
    router.crossed().await;
}

/// A watch on the switch key, opened again when it ends. Only to be quick: the key is read in every
/// turn anyhow.
#[derive(Default)]
struct SwitchWatch {
    changes: Option<BoxStream<'static, ()>>,
}

impl SwitchWatch {
    async fn changed(&mut self, shared: &Controller) {
        if self.changes.is_none() {
            let key = shared.options.reserved.key(KEY);
            match shared.new.changes_of(key).await {
                Ok(changes) => self.changes = Some(changes),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
        let Some(changes) = &mut self.changes else {
            return;
        };
        if changes.next().await.is_none() {
            self.changes = None;
        }
    }
}

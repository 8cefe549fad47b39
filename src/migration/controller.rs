//! One member's view of the migration, and what people can ask of it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::backfill::Progress;
use super::driver::Driver;
use super::ending::{COMPLETE, GONE};
use super::fence;
use super::fleet::Fleet;
use super::foreign::Watched;
use super::ledger::{Entry, Ledger, write};
use super::mirror::{self, Standing};
use super::passthrough::Passthrough;
use super::phase::{Decision, FORMAT, Phase, SETTLED, Stage, State, Surroundings};
use super::records::{
    CONTROL, Control, Outcome, REJECTS, Reject, STATE, SURVEY, SWITCH, Survey, Switch,
};
use super::router::Router;
use super::status::Meter;
use super::switch::{KEY, Request};
use super::tail::Tails;
use super::verify::Report;
use crate::overlay::{Counters, Overlay};
use crate::store::{
    Guard, GuardedStore, HOLD, NewStore, OldStore, RecordTxn, RecordWrite, Result, Store,
    StoreError,
};
use crate::tasks::Tasks;
use crate::types::{KeyRange, Put, Range, Reserved};

/// How long the old store may take to say how far the mirror is: in the normal phase it may be gone.
const MIRROR_LOOK: Duration = Duration::from_secs(1);

/// What a member of a migration is told.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a setting of its own, named as its flag is"
)]
#[derive(Clone, Debug)]
pub struct Options {
    /// A random name that nobody else has, not even this proxy after a restart.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// The URL that clients find it at.
    pub client_url: String,
    /// The address of its admin API.
    pub admin: String,
    /// The keys that are Segue's own.
    pub reserved: Reserved,
    /// The phase that a migration begins in: [`Phase::Passthrough`] or [`Phase::Migration`].
    pub start: Phase,
    /// Begin even if the new store is not empty.
    pub allow_nonempty: bool,
    /// Nobody is served: this is an offline copy.
    pub offline: bool,
    /// The old store is fenced, and follows the new one's changes where it can: there is a way back.
    pub mirror: bool,
    /// Shards of the backfill that are copied at the same time.
    pub parallel: usize,
    /// How the backfill is to run, for a migration that begins.
    pub control: Control,
    /// Verify once when the backfill is complete.
    pub auto_verify: bool,
    /// Carry what others change in the old store into the new one.
    pub follow: bool,
    /// How often, and how long.
    pub timing: Timing,
}

/// How often, and how long.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between two looks at the records, and two beats of the member.
    pub look: Duration,
    /// A member whose beat stands still for this long is gone. Ten beats or more, so that a
    /// moment's load does not cost a member its place.
    pub lapse: Duration,
    /// How long a request waits for a phase to open.
    pub patience: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            look: Duration::from_millis(500),
            lapse: Duration::from_secs(10),
            patience: Duration::from_secs(30),
        }
    }
}

/// Why a migration cannot be begun or joined. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A store failed.
    #[error("the {which} store: {error}")]
    Store {
        /// `old` or `new`.
        which: &'static str,
        /// How.
        error: StoreError,
    },
    /// The new store has keys.
    #[error(
        "the new store is not empty, and it holds no migration. If the migration to it was completed, run \
         `segue serve --new URL` without --old: a second one from the same old store would bring back what \
         was deleted since. Else give an empty new store, or say --allow-nonempty: its keys stay then, and \
         win over the old store's where both have the same"
    )]
    NotEmpty,
    /// The old store was left behind by another migration.
    #[error(
        "the old store is fenced: another migration has taken its data over, and nothing tells in the new \
         store that it is still going on. If it was completed, run `segue serve --new URL` with the new \
         store of that migration, without --old. (--no-mirror begins one that leaves the old store alone, \
         and that has no way back)"
    )]
    Fenced,
    /// Both are one.
    #[error(
        "the old and the new store are the same store: name two stores with --old and --new. \
         (Two etcd clusters that were started with the same --initial-cluster and \
         --initial-cluster-token count as one: start the new one with another token)"
    )]
    Same,
    /// The new store holds another migration.
    #[error(
        "the new store holds a migration from another old store than this one. Give the old store that \
         it began with, or an empty new one"
    )]
    OtherOldStore,
    /// The new store holds a part of a copy that was made offline.
    #[error(
        "the new store holds an unfinished `segue copy`. The old store may have changed since, so it \
         cannot be gone on with from here: finish it by the same command, or empty the new store"
    )]
    Offline,
    /// The new store holds a migration with clients.
    #[error(
        "the new store holds a migration that clients have taken part in: go on with it by `segue \
         serve`, and end it with `segue switch` and `segue complete`"
    )]
    Live,
    /// The old store has no transactions.
    #[error(
        "this kind of old store cannot serve in the passthrough phase: its API has no transactions that \
         could notice when the migration begins. Start without --start passthrough: the migration \
         begins at once then"
    )]
    CannotWait,
    /// The records are of another version.
    #[error(
        "the new store holds a migration in format {0}, and this version of segue knows {FORMAT}"
    )]
    Format(u32),
}

/// What a member knows, as of its last look.
#[derive(Clone, Debug)]
pub struct View {
    /// The state, and the version of its record.
    pub state: Entry<State>,
    /// The members.
    pub fleet: Fleet,
    /// Who owns the backfill.
    pub owner: Option<String>,
    /// How far it is.
    pub progress: Progress,
    /// The latest request to switch.
    pub switch: Switch,
    /// Why the last look failed, if it did.
    pub trouble: Option<String>,
    /// Nothing is left of the migration: this member has looked for the last time, and serves on by the
    /// new store alone. All of this is what it was then.
    pub over: bool,
}

impl View {
    /// Why nothing can be asked of the migration any more, if that is so.
    #[must_use]
    pub fn ended(&self) -> Option<&'static str> {
        match self.state.value.phase {
            Phase::Settled if self.over => Some(COMPLETE),
            Phase::Settled => Some(SETTLED),
            _ => None,
        }
    }
}

/// A member of a migration.
pub struct Controller {
    pub(super) options: Options,
    pub(super) ledger: Ledger,
    pub(super) old: Arc<dyn OldStore>,
    pub(super) new: Arc<dyn NewStore>,
    /// The new store as it is, for the switch key, which may be written there by anybody.
    pub(super) plain: Arc<dyn GuardedStore>,
    pub(super) router: Arc<Router>,
    pub(super) view: ArcSwap<View>,
    /// Counts the looks.
    pub(super) looks: watch::Sender<u64>,
    pub(super) wake: Notify,
    pub(super) control: watch::Sender<Control>,
    pub(super) job_trouble: watch::Sender<Option<String>>,
    pub(super) overlay: ArcSwapOption<Overlay>,
    /// Of overlays of earlier epochs.
    pub(super) past_counters: ArcSwap<Counters>,
    pub(super) verifying: ArcSwapOption<Report>,
    /// Grows with each request to verify.
    pub(super) verify_wanted: watch::Sender<u64>,
    /// The number of the latest verification that has ended.
    pub(super) verifications_done: AtomicU64,
    pub(super) meter: std::sync::Mutex<Meter>,
    pub(super) foreign: Watched,
    pub(super) tails: Tails,
    pub(super) tasks: Tasks,
    pub(super) started: Instant,
    vanished: AtomicBool,
    /// Cancelled when the migration is gone, and this member with it.
    pub(super) gone: CancellationToken,
}

impl Controller {
    /// Joins the migration that `new` holds, or begins one. Checks everything first; what it writes
    /// is one compare-and-put. In phases that do not need the old store, that one is not asked.
    pub async fn open(
        old: Arc<dyn OldStore>,
        new: Arc<dyn NewStore>,
        options: Options,
        tasks: Tasks,
    ) -> Result<Arc<Self>, OpenError> {
        let of_new = |error| OpenError::Store {
            which: "new",
            error,
        };
        let ledger = Ledger::new(new.clone());
        let plain = new.guarded(Guard::None);
        let state = loop {
            if let Some(entry) = ledger.get::<State>(STATE).await.map_err(of_new)? {
                check_joinable(&entry.value, &old, options.offline).await?;
                break entry;
            }
            match begin(&ledger, &old, &new, &plain, &options).await {
                // Another member has begun the same migration in this very moment.
                Err(OpenError::NotEmpty | OpenError::Fenced)
                    if has_state(&ledger).await.map_err(of_new)? => {}
                begun => begun?,
            }
        };
        let control = ledger.get::<Control>(CONTROL).await.map_err(of_new)?;
        let view = View {
            state,
            fleet: Fleet::default(),
            owner: None,
            progress: Progress::default(),
            switch: Switch::default(),
            trouble: None,
            over: false,
        };
        Ok(Arc::new(Self {
            router: Router::closed(options.timing.patience),
            view: ArcSwap::from_pointee(view),
            looks: watch::Sender::new(0),
            wake: Notify::new(),
            control: watch::Sender::new(control.unwrap_or_default().value),
            job_trouble: watch::Sender::new(None),
            overlay: ArcSwapOption::empty(),
            past_counters: ArcSwap::default(),
            verifying: ArcSwapOption::empty(),
            verify_wanted: watch::Sender::new(0),
            verifications_done: AtomicU64::new(0),
            tails: Tails::default(),
            foreign: Watched::default(),
            meter: std::sync::Mutex::default(),
            started: Instant::now(),
            vanished: AtomicBool::new(false),
            gone: CancellationToken::new(),
            options,
            ledger,
            old,
            new,
            plain,
            tasks,
        }))
    }

    /// Keeps this member in step with the fleet until the tasks are cancelled.
    pub async fn run(self: Arc<Self>) {
        Driver::new(self).run().await;
    }

    /// What requests of clients go to in the passthrough phase.
    pub(super) fn passthrough(&self, state: &State) -> Option<Arc<dyn Store>> {
        let old = self.old.fenceable()?;
        Some(Arc::new(Passthrough {
            old: old.guarded(state.guard_of_old()),
            new: self.plain.clone(),
            reserved: self.options.reserved.clone(),
        }))
    }

    /// The old store with its fence, if it has transactions. Connects to it, if that was put off.
    pub(super) async fn fenceable(&self) -> Result<Option<Arc<dyn NewStore>>> {
        self.old.identity().await?;
        Ok(self.old.fenceable())
    }

    /// How far the old store follows the new one; nothing, if it does not.
    pub async fn mirror(&self, state: &State) -> Result<Option<Standing>> {
        let moving = matches!(state.phase, Phase::Migration | Phase::Normal);
        if !state.mirror || !moving || state.stage != Stage::Open {
            return Ok(None);
        }
        let standing = async {
            match self.fenceable().await? {
                Some(old) => mirror::standing(&old, &self.new.guarded(state.guard()), state).await,
                None => Ok(None),
            }
        };
        tokio::time::timeout(MIRROR_LOOK, standing)
            .await
            .unwrap_or(Ok(None))
    }

    /// What requests of clients go to.
    #[must_use]
    pub fn router(&self) -> Arc<Router> {
        Arc::clone(&self.router)
    }

    /// What this member knew when it last looked.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// This member's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.options.id
    }

    /// Names and client URLs of all members, this one first.
    #[must_use]
    pub fn members(&self) -> Vec<(String, String, String)> {
        let view = self.view.load();
        let own = &self.options;
        let mut members = vec![(own.id.clone(), own.name.clone(), own.client_url.clone())];
        let others = view.fleet.iter().filter(|(id, _)| *id != own.id);
        members.extend(others.map(|(id, member)| {
            (
                id.to_owned(),
                member.name.clone(),
                member.client_url.clone(),
            )
        }));
        members
    }

    /// Waits until `holds` of the member's view, which is looked at anew at least every half second.
    pub async fn wait_until(&self, holds: impl Fn(&View) -> bool) {
        let mut looks = self.looks.subscribe();
        while !holds(&self.view.load()) {
            if looks.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until clients are served.
    pub async fn ready(&self) {
        self.wait_until(|view| self.router.epoch() == Some(view.state.value.epoch))
            .await;
    }

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

    /// Why nothing can be asked of the migration any more, if that is so.
    #[must_use]
    pub fn ended(&self) -> Option<&'static str> {
        self.view.load().ended()
    }

    /// Keeps the state as it was last seen.
    pub(super) fn see(&self, state: Entry<State>) {
        self.view.store(Arc::new(View {
            state,
            ..(*self.view()).clone()
        }));
    }

    /// Returns when the migration is gone though it was not settled, as far as this member knows; see
    /// [`super::ending`].
    pub async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// Asks for a verification, and answers its number; see [`Self::verifications_done`].
    pub fn verify(&self) -> u64 {
        self.verify_wanted.send_modify(|wanted| *wanted += 1);
        self.wake.notify_one();
        *self.verify_wanted.borrow()
    }

    /// The number of the latest verification asked of this member that has ended.
    #[must_use]
    pub fn verifications_done(&self) -> u64 {
        self.verifications_done.load(Ordering::Relaxed)
    }

    pub(super) fn verified(&self, number: u64) {
        self.verifications_done.fetch_max(number, Ordering::Relaxed);
    }

    /// The verification that is under way.
    #[must_use]
    pub fn verifying(&self) -> Option<Arc<Report>> {
        self.verifying.load_full()
    }

    /// The report of the latest verification.
    pub async fn report(&self) -> Result<Option<Report>> {
        let entry = self.ledger.get::<Report>(super::records::VERIFY).await?;
        Ok(entry.map(|entry| entry.value))
    }

    /// All rejects.
    pub async fn rejects(&self) -> Result<Vec<Reject>> {
        if self.view.load().over {
            return Ok(Vec::new());
        }
        let records = self.ledger.list::<Reject>(REJECTS).await?;
        Ok(records.into_iter().map(|(_, entry)| entry.value).collect())
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
        })
    }

    /// Takes a reading of the backfill's pace.
    pub(super) fn mark(&self, progress: &Progress) {
        let mut meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
        meter.mark(progress, Instant::now());
    }

    /// Stops this member without a farewell, as if its process were killed.
    pub fn vanish(&self) {
        self.vanished.store(true, Ordering::Relaxed);
    }

    pub(super) fn vanished(&self) -> bool {
        self.vanished.load(Ordering::Relaxed)
    }

    /// Whether the switch to the normal phase would be refused now, and why.
    pub async fn blocked(&self) -> Result<Option<String>> {
        let state = &self.view.load().state.value;
        let around = self.surroundings(state, Phase::Normal).await?;
        Ok(match state.may_switch(Phase::Normal, &around) {
            Decision::Go(_) => None,
            Decision::NoGo(why) | Decision::Wait(why) => Some(why),
        })
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
                    let next = entry.value.switched(phase, now_ms());
                    if self.transit(&entry, &next, None).await? {
                        info!(epoch = next.epoch.0, why, "the phase is {phase}");
                        self.wake.notify_one();
                        return Ok(Ok(()));
                    }
                }
            }
        }
    }

    /// Carries out a transition by one compare-and-put; answers whether it was this one.
    pub(super) async fn transit(
        &self,
        from: &Entry<State>,
        to: &State,
        switch: Option<(&Switch, i64)>,
    ) -> Result<bool> {
        let mut txn = RecordTxn {
            expect: vec![(STATE.to_owned(), from.version)],
            writes: vec![write(STATE, to)],
            line: (to.line() != from.value.line()).then(|| to.line()),
            ..RecordTxn::default()
        };
        if to.holds_leases() != from.value.holds_leases() {
            txn.writes.push(RecordWrite {
                name: HOLD.to_owned(),
                value: to.holds_leases().then(|| to.migration.clone().into()),
            });
        }
        if let Some((record, version)) = switch {
            txn.expect.push((SWITCH.to_owned(), version));
            txn.writes.push(write(SWITCH, record));
        }
        self.ledger.write(txn).await
    }

    /// Changes the state without a transition, if `change` wants it; answers whether it did.
    pub(super) async fn amend(&self, change: impl Fn(&mut State) -> bool) -> Result<bool> {
        loop {
            let Some(entry) = self.ledger.get::<State>(STATE).await? else {
                return Ok(false);
            };
            let mut next = entry.value.clone();
            if !change(&mut next) {
                return Ok(false);
            }
            next.changed_ms = now_ms();
            if self.transit(&entry, &next, None).await? {
                return Ok(true);
            }
        }
    }
}

async fn has_state(ledger: &Ledger) -> Result<bool> {
    Ok(ledger.get::<State>(STATE).await?.is_some())
}

/// Writes the first state, unless another member does so first.
async fn begin(
    ledger: &Ledger,
    old: &Arc<dyn OldStore>,
    new: &Arc<dyn NewStore>,
    plain: &Arc<dyn GuardedStore>,
    options: &Options,
) -> Result<(), OpenError> {
    let of_old = |error| OpenError::Store {
        which: "old",
        error,
    };
    let of_new = |error| OpenError::Store {
        which: "new",
        error,
    };
    let identity = old.identity().await.map_err(of_old)?;
    if options.start == Phase::Passthrough && old.fenceable().is_none() {
        return Err(OpenError::CannotWait);
    }
    if identity == new.identity().await.map_err(of_new)? {
        return Err(OpenError::Same);
    }
    let nonempty = !new.is_empty().await.map_err(of_new)?;
    if nonempty && !options.allow_nonempty {
        return Err(OpenError::NotEmpty);
    }
    if let Some(fenceable) = old.fenceable()
        && (options.mirror || options.start == Phase::Passthrough)
        && !options.offline
        && fence::is_up(&fenceable).await.map_err(of_old)?
    {
        return Err(OpenError::Fenced);
    }
    // Read before the line is set. Nobody is served through this member yet.
    let base = old.revision().await.map_err(of_old)?;
    let survey = Survey {
        expected: old.count(KeyRange::all()).await.map_err(of_old)? as u64,
        ..Survey::default()
    };
    let migration = format!("{:016x}", rand::random::<u64>());
    let mut state = if options.start == Phase::Passthrough {
        State::wait(migration, identity, nonempty, now_ms())
    } else {
        State::begin(migration, identity, base, nonempty, now_ms())
    };
    state.offline = options.offline;
    if options.mirror && !options.offline && old.fenceable().is_some() {
        state = state.with_mirror();
    }
    // A value of the switch key that was there before is no request to this migration.
    let key = Range::key(options.reserved.key(KEY));
    let present = plain.range(key).await.map_err(of_new)?.reply.kvs;
    let switch = Switch {
        revision: present.first().map_or(0, |kv| kv.mod_revision.0),
        outcome: Outcome::None,
        reason: "nothing was asked for yet".into(),
        ..Switch::default()
    };
    let txn = RecordTxn {
        expect: vec![(STATE.to_owned(), 0)],
        writes: vec![
            write(STATE, &state),
            write(SWITCH, &switch),
            write(CONTROL, &options.control),
            write(SURVEY, &survey),
        ],
        line: Some(state.line()),
        ..RecordTxn::default()
    };
    if ledger.write(txn).await.map_err(of_new)? {
        info!(migration = %state.migration, %base, "a migration begins");
    }
    Ok(())
}

async fn check_joinable(
    state: &State,
    old: &Arc<dyn OldStore>,
    offline: bool,
) -> Result<(), OpenError> {
    if state.format != FORMAT {
        return Err(OpenError::Format(state.format));
    }
    if state.phase != Phase::Settled && state.offline != offline {
        return Err(if offline {
            OpenError::Live
        } else {
            OpenError::Offline
        });
    }
    if matches!(state.phase, Phase::Normal | Phase::Settled) {
        // The old store is asked only if the phase goes back, and checked then.
        return Ok(());
    }
    let identity = old.identity().await;
    match identity.map_err(|error| OpenError::Store {
        which: "old",
        error,
    })? {
        identity if identity == state.old => Ok(()),
        _ => Err(OpenError::OtherOldStore),
    }
}

/// Milliseconds since 1970, for people.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

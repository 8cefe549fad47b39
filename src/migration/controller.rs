//! One member's view of the migration, and how the state of it changes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::at_base::AtBase;
use super::backfill::Progress;
use super::driver::Driver;
use super::ending::COMPLETE;
use super::fence;
use super::fleet::Fleet;
use super::foreign::Watched;
use super::held::Opening;
use super::joining::{self, OpenError, Options};
use super::later::check_identity;
use super::ledger::{Entry, Ledger, write};
use super::mirror::{self, Standing};
use super::passthrough::Passthrough;
use super::phase::{Phase, SETTLED, Stage, State};
use super::records::{CONTROL, Control, REJECTS, Reject, STATE, SWITCH, Switch};
use super::router::Router;
use super::status::Meter;
use super::tail::Tails;
use super::troubles::Troubles;
use super::verify::Report;
use crate::overlay::{Counters, Overlay};
use crate::store::{
    Guard, GuardedStore, HOLD, NewStore, OldStore, RecordTxn, RecordWrite, Result, Store,
};
use crate::tasks::Tasks;

/// How long the old store may take to say how far the mirror is: in the normal phase it may be gone.
const MIRROR_LOOK: Duration = Duration::from_secs(1);

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
    /// new store alone. All else is what it was then, but that nobody owns anything.
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
    pub(super) troubles: Troubles,
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
    /// The leases that are brought over while a migration opens.
    pub(super) leases: Opening,
    standing: ArcSwapOption<Standing>,
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
        let ledger = Ledger::new(new.clone());
        let plain = new.guarded(Guard::Raw);
        let state = joining::join(&ledger, &old, &new, &plain, &options).await?;
        // Before the first look already: who asks a member that was just started must not be told that
        // nothing has been copied.
        let phase = state.value.phase;
        let (control, progress, switch) = tokio::try_join!(
            ledger.get::<Control>(CONTROL),
            Progress::load(&ledger, phase),
            ledger.get::<Switch>(SWITCH),
        )
        .map_err(joining::of_new)?;
        let view = View {
            state,
            fleet: Fleet::default(),
            owner: None,
            progress,
            switch: switch.unwrap_or_default().value,
            trouble: None,
            over: false,
        };
        Ok(Arc::new(Self {
            router: Router::closed(options.timing.patience),
            view: ArcSwap::from_pointee(view),
            looks: watch::Sender::new(0),
            wake: Notify::new(),
            control: watch::Sender::new(control.unwrap_or_default().value),
            troubles: Troubles::default(),
            overlay: ArcSwapOption::empty(),
            past_counters: ArcSwap::default(),
            verifying: ArcSwapOption::empty(),
            verify_wanted: watch::Sender::new(0),
            verifications_done: AtomicU64::new(0),
            tails: Tails::default(),
            leases: Opening::default(),
            standing: ArcSwapOption::empty(),
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

    /// The old store as pairs are read from it in this state.
    pub(super) fn old_at_base(&self, state: &State) -> Arc<dyn OldStore> {
        Arc::new(AtBase::new(self.old.clone(), state.base))
    }

    /// The old store with its fence, if it has transactions. Connects to it, if that was put off. Fails if
    /// it is not the one that the migration began with: it is about to be written to.
    pub(super) async fn fenceable(&self) -> Result<Option<Arc<dyn NewStore>>> {
        check_identity(&*self.old, &self.view().state.value.old).await?;
        Ok(self.old.fenceable())
    }

    /// How far the old store follows the new one; nothing, if it does not.
    pub async fn mirror(&self, state: &State) -> Result<Option<Standing>> {
        let found = self.find_mirror(state).await;
        let standing = found.as_ref().ok().copied().flatten();
        self.standing.store(standing.map(Arc::new));
        found
    }

    /// Looks how far the mirror is, for [`Self::standing`] to tell.
    pub async fn look_at_mirror(&self) {
        let state = &self.view().state.value;
        if let Err(error) = self.mirror(state).await {
            debug!(%error, "it cannot be told how far the mirror is");
        }
    }

    /// How far the old store followed the new one when somebody last looked, if that could be told.
    #[must_use]
    pub fn standing(&self) -> Option<Standing> {
        self.standing.load().as_deref().copied()
    }

    async fn find_mirror(&self, state: &State) -> Result<Option<Standing>> {
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
        if txn.line == Some(None) {
            fence::take_down_with(&mut txn, &self.new).await?;
        }
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

/// Milliseconds since 1970, for people.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

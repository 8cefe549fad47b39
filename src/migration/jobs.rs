//! The jobs that one member does for all, and when.

use std::convert::Infallible;
use std::future::{self, Future};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinHandle};
use tracing::{debug, info, warn};

use super::backfill::Backfill;
use super::controller::{Controller, now_ms};
use super::held::Held;
use super::ledger::write;
use super::mirror::Mirror;
use super::phase::{Phase, Stage, State, Verified};
use super::records::{STATE, VERIFY};
use super::troubles::{Trouble, Troubles};
use super::verify::{Report, Verification};
use super::{clearing, fence, opening, rejects, rollback};
use crate::store::{Guard, NewStore, RecordTxn, Result, StoreError};
use crate::tasks::Tasks;
use crate::types::{Epoch, Revision};

/// How long a job waits when a store has failed, before it tries again.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// A job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// The old store's fence.
    Fencing,
    /// Leases and leased keys.
    Opening,
    /// All keys.
    Backfill,
    /// Comparing; asked for so many times.
    Verification(u64),
    /// The new store's changes into the old one.
    Mirroring,
    /// The way back.
    Draining,
    /// Emptying the new store after a rollback.
    Clearing,
    /// Looking out for what others change in the old store.
    Foreign,
    /// Dropping claims.
    Settling,
}

impl Job {
    /// What it is called where its trouble is told.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Fencing => "the fencing of the old store",
            Self::Opening => "the opening of the migration",
            Self::Backfill => "the backfill",
            Self::Verification(_) => "the verification",
            Self::Mirroring => "the mirror",
            Self::Draining => "the rollback",
            Self::Clearing => "the emptying of the new store",
            Self::Foreign => "the look-out for foreign changes",
            Self::Settling => "the dropping of claims",
        }
    }
}

/// What the choice of jobs depends on besides the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Situation {
    /// This member owns the jobs.
    pub owner: bool,
    /// People have asked this member for a verification, for the so-manieth time.
    pub verify: Option<u64>,
}

/// The jobs that run.
pub(super) struct Jobs {
    tasks: Tasks,
    troubles: Troubles,
    running: Vec<(Job, Epoch, JoinHandle<()>)>,
    finished: Arc<Notify>,
}

impl Jobs {
    pub(super) fn new(tasks: Tasks, troubles: Troubles) -> Self {
        Self {
            tasks,
            troubles,
            running: Vec::new(),
            finished: Arc::default(),
        }
    }

    /// Runs a job, which tells its trouble where it is shown. One that panics says so there, and has ended
    /// a little later: it is begun again then, if it still is to be done.
    pub(super) fn start<W>(&mut self, job: Job, state: &State, work: impl FnOnce(Arc<Trouble>) -> W)
    where
        W: Future<Output = ()> + Send + 'static,
    {
        let finished = Arc::clone(&self.finished);
        let token = self.tasks.token().clone();
        let name = job.name();
        let trouble = self.troubles.begin(name);
        // Of what it leaves behind nothing is used but its trouble.
        let work = AssertUnwindSafe(work(trouble.clone())).catch_unwind();
        let work = async move {
            if work.await.is_err() {
                warn!("{name} has ended by a fault of its own");
                let and = "has ended by a fault of its own and is begun again";
                trouble.leave(format!("{name} {and}"));
                tokio::time::sleep(PAUSE).await;
            }
        };
        let handle = self.tasks.spawn(format!("{job:?}"), async move {
            tokio::select! {
                () = work => {}
                () = token.cancelled() => {}
            }
            finished.notify_one();
        });
        self.running.push((job, state.epoch, handle));
    }

    /// Stops what is not this member's any more, or belongs to an epoch that is over.
    pub(super) fn keep_only(&mut self, state: &State, situation: Situation) {
        let mut names = Vec::new();
        self.running.retain(|(job, epoch, handle)| {
            let kept =
                *epoch == state.epoch && (situation.owner || matches!(job, Job::Verification(_)));
            if kept {
                names.push(job.name());
            } else {
                handle.abort();
            }
            kept && !handle.is_finished()
        });
        self.troubles.keep_only(|name| names.contains(&name));
    }

    pub(super) fn stop(&mut self) {
        let handles = self
            .running
            .drain(..)
            .map(|(_, _, handle)| handle.abort_handle());
        handles.for_each(|handle: AbortHandle| handle.abort());
        self.troubles.keep_only(|_| false);
    }

    /// Returns when a job has ended.
    pub(super) async fn finished(&self) {
        self.finished.notified().await;
    }

    fn runs(&self, like: Job, epoch: Epoch) -> bool {
        self.running.iter().any(|(job, of, handle)| {
            std::mem::discriminant(job) == std::mem::discriminant(&like)
                && *of == epoch
                && !handle.is_finished()
        })
    }
}

/// The jobs that are to be started now.
pub(super) fn wanted(
    state: &State,
    situation: Situation,
    jobs: &Jobs,
    auto_verify: bool,
) -> Vec<Job> {
    let mut wanted = choose(state, situation, auto_verify);
    wanted.retain(|job| !jobs.runs(*job, state.epoch));
    wanted
}

/// The jobs that a state asks for.
fn choose(state: &State, situation: Situation, auto_verify: bool) -> Vec<Job> {
    let Situation { owner, verify } = situation;
    let mut jobs = Vec::new();
    let open = state.stage == Stage::Open;
    let moving = matches!(state.phase, Phase::Migration | Phase::Normal);
    match state.stage {
        Stage::Fencing if owner => jobs.push(Job::Fencing),
        Stage::Opening if owner => jobs.push(Job::Opening),
        Stage::Draining if owner => jobs.push(Job::Draining),
        _ => {}
    }
    if owner && open && moving && state.mirror {
        jobs.push(Job::Mirroring);
    }
    if owner && open && state.phase == Phase::Passthrough && state.leftovers {
        jobs.push(Job::Clearing);
    }
    if owner && open && state.phase == Phase::Migration && !state.backfill_complete {
        jobs.push(Job::Backfill);
    }
    if owner && open && moving && !state.offline {
        jobs.push(Job::Foreign);
    }
    let due = owner
        && auto_verify
        && state.phase == Phase::Migration
        && state.backfill_complete
        && state
            .verified
            .is_none_or(|verified| verified.epoch != state.epoch);
    if open && moving && (verify.is_some() || due) {
        jobs.push(Job::Verification(verify.unwrap_or_default()));
    }
    if owner && state.phase == Phase::Settled && !state.claims_dropped {
        jobs.push(Job::Settling);
    }
    jobs
}

/// Fences the old store, and notes the revision that it came to.
pub(super) async fn fence(shared: Arc<Controller>, state: State, trouble: Arc<Trouble>) {
    let leases = shared.leases.of(state.epoch.next());
    until_done(&trouble, "fencing the old store", || async {
        let Some(old) = shared.fenceable().await? else {
            let why = "the old store cannot be fenced";
            return Err(StoreError::Broken(why.into()));
        };
        let plain = || future::ready(Ok(Some(old.guarded(Guard::None))));
        let base = tokio::select! {
            base = fence_over(&shared, &old, &state, &leases.old) => base?,
            never = leases.old.keep(plain) => match never {},
        };
        let Some(entry) = shared.ledger.get::<State>(STATE).await? else {
            return Ok(());
        };
        if entry.value.epoch == state.epoch
            && shared
                .transit(&entry, &entry.value.fenced(base, now_ms()), None)
                .await?
        {
            info!(%base, "the old store is fenced");
        }
        Ok(())
    })
    .await;
}

/// Fences `old`, which holds these leases; answers the revision that it came to.
async fn fence_over(
    shared: &Controller,
    old: &Arc<dyn NewStore>,
    state: &State,
    held: &Held,
) -> Result<Revision> {
    fence::keep_leases_alive(old, held).await?;
    fence::raise(old, &state.migration, state.epoch).await?;
    // Nothing was done behind the fence, so this is where the old store's line ends. Whatever
    // came past the proxies in the meantime belongs to it as well.
    let base = shared.old.revision().await?;
    fence::see_leases_behind(old, held).await?;
    Ok(base)
}

/// Makes sure of what the new store held before, brings leases and leased keys over, then lets clients
/// in. Until then it holds all leases.
pub(super) async fn open(shared: Arc<Controller>, state: State, trouble: Arc<Trouble>) {
    let new = shared.new.guarded(state.guard());
    let leases = shared.leases.of(state.epoch);
    let old = async || {
        // One that has no fence is left alone.
        let old = if state.mirror {
            shared.fenceable().await?
        } else {
            None
        };
        Ok(old.map(|old| old.guarded(Guard::None)))
    };
    let kept = futures_util::future::join(
        leases.old.keep(old),
        leases.new.keep(|| future::ready(Ok(Some(new.clone())))),
    );
    let opened = until_done(&trouble, "opening the migration", || async {
        if state.nonempty {
            // Before anything is copied up, leased keys included.
            new.claim_present().await?;
        }
        let (old, base) = (&shared.old_at_base(&state), state.base);
        let keys = opening::copy_leased(&shared.ledger, old, &new, base, &leases).await?;
        opening::forget_past(old, &new, base).await?;
        leases.new.renew_at_last(&*new).await?;
        let Some(entry) = shared.ledger.get::<State>(STATE).await? else {
            return Ok(());
        };
        if entry.value.epoch == state.epoch
            && shared
                .transit(&entry, &entry.value.opened(now_ms()), None)
                .await?
        {
            info!(leased_keys = keys, "the migration is open");
        }
        Ok(())
    });
    tokio::select! {
        () = opened => {}
        (never, _) = kept => match never {},
    }
    shared.leases.over();
}

/// Replays the new store's changes into the old one, for as long as the epoch lasts.
pub(super) async fn mirror(shared: Arc<Controller>, state: State, trouble: Arc<Trouble>) {
    let mirrored = until_done(&trouble, "mirroring into the old store", || async {
        let Some(old) = shared.fenceable().await? else {
            let why = "the old store has no transactions";
            return Err(StoreError::Broken(why.into()));
        };
        let mirror = Mirror {
            old,
            new: shared.new.guarded(state.guard()),
            state: state.clone(),
            tails: shared.tails.clone(),
            trouble: trouble.clone(),
        };
        mirror.run(None).await.map(drop)
    });
    tokio::select! {
        () = mirrored => {}
        never = say_if_stuck(&shared, state.epoch, &trouble) => match never {},
    }
}

/// Has the state say what keeps the mirror from going on, if that does not pass by itself: whichever member is
/// asked for the way back has to know.
async fn say_if_stuck(shared: &Controller, epoch: Epoch, trouble: &Trouble) -> Infallible {
    loop {
        let stuck = trouble.stays();
        if shared.view().state.value.stuck != stuck {
            let said = shared.amend(|now| {
                let differs = now.epoch == epoch && now.stuck != stuck;
                if differs {
                    now.stuck.clone_from(&stuck);
                }
                differs
            });
            if let Err(error) = said.await {
                debug!(%error, "it cannot be said whether the mirror goes on");
            }
        }
        tokio::time::sleep(shared.options.timing.look).await;
    }
}

/// Brings the old store up to the new one's last revision and lets it be served again.
pub(super) async fn drain(shared: Arc<Controller>, state: State, trouble: Arc<Trouble>) {
    let begun = tokio::time::Instant::now();
    until_done(&trouble, "rolling back", || {
        rollback::drain(&shared, &state, begun, &trouble)
    })
    .await;
}

/// Empties the new store after a rollback.
pub(super) async fn clear(shared: Arc<Controller>, state: State, trouble: Arc<Trouble>) {
    let goal = state.borders.last().copied().unwrap_or_default();
    // Members acknowledge when their watches have read what was there and gone over.
    let epoch = state.epoch;
    shared
        .wait_until(|view| view.fleet.behind(epoch).is_empty())
        .await;
    until_done(&trouble, "emptying the new store", || {
        clearing::clear(&shared, epoch, goal)
    })
    .await;
}

/// Copies everything, then says so.
pub(super) async fn backfill(shared: Arc<Controller>, state: State, trouble: Arc<Trouble>) {
    let backfill = Backfill {
        ledger: shared.ledger.clone(),
        old: shared.old_at_base(&state),
        new: shared.new.guarded(state.guard()),
        reserved: shared.options.reserved.clone(),
        epoch: state.epoch,
        parallel: shared.options.parallel,
        control: shared.control.subscribe(),
        trouble: trouble.clone(),
    };
    info!("the backfill runs here");
    if backfill.run().await.is_err() {
        return;
    }
    until_done(
        &trouble,
        "recording that the backfill is complete",
        || async {
            let done = shared
                .amend(|now| {
                    let ours = now.epoch == state.epoch && !now.backfill_complete;
                    now.backfill_complete |= ours;
                    // What was found before there was everything is of no interest.
                    now.verified = now.verified.filter(|_| !ours);
                    ours
                })
                .await?;
            if done {
                info!("the backfill is complete");
            }
            Ok(())
        },
    )
    .await;
}

/// Tries rejects again, compares everything, and records what was found.
pub(super) async fn verify(
    shared: Arc<Controller>,
    state: State,
    number: u64,
    trouble: Arc<Trouble>,
) {
    let _under_way = UnderWay(shared.clone());
    until_done(&trouble, "verifying", || async {
        // In another epoch it would begin anew, and the number stays open until then.
        if verify_once(&shared, &state).await? {
            shared.verified(number);
        }
        Ok(())
    })
    .await;
}

/// A verification is shown as under way until it has ended, by whatever.
struct UnderWay(Arc<Controller>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.verifying.store(None);
    }
}

/// Answers whether there is a result for this epoch.
async fn verify_once(shared: &Controller, state: &State) -> Result<bool> {
    let new = shared.new.guarded(state.guard());
    let old = shared.old_at_base(state);
    if state.phase == Phase::Migration {
        rejects::retry(&shared.ledger, &old, &new).await?;
    }
    let verification = Verification {
        old,
        new,
        reserved: shared.options.reserved.clone(),
        all_claimed: state.all_claimed,
        mirrored: if state.mirror {
            shared.fenceable().await?
        } else {
            None
        },
    };
    let begin = Report {
        epoch: state.epoch,
        backfill_complete: state.backfill_complete,
        ..Report::default()
    };
    let progress = |report: &Report| shared.verifying.store(Some(Arc::new(report.clone())));
    progress(&begin);
    let mut report = verification.run(begin, &progress).await?;
    report.finished_ms = now_ms();
    loop {
        let Some(entry) = shared.ledger.get::<State>(STATE).await? else {
            return Ok(false);
        };
        if entry.value.epoch != state.epoch {
            return Ok(false);
        }
        let mut next = entry.value.clone();
        // What was missing when it came past may have been copied since: it says nothing of what there is now.
        if report.backfill_complete || !entry.value.backfill_complete {
            next.verified = Some(Verified {
                epoch: state.epoch,
                good: report.good,
                mirrored: report.unmirrored == 0,
            });
        }
        let txn = RecordTxn {
            expect: vec![(STATE.to_owned(), entry.version)],
            writes: vec![write(STATE, &next), write(VERIFY, &report)],
            ..RecordTxn::default()
        };
        if shared.ledger.write(txn).await? {
            let Report {
                compared,
                missing,
                different,
                stray,
                ..
            } = report;
            info!(
                good = report.good,
                compared, missing, different, stray, "verified"
            );
            return Ok(true);
        }
    }
}

/// Drops the claims, which nobody asks for any more.
pub(super) async fn settle(shared: Arc<Controller>, trouble: Arc<Trouble>) {
    until_done(&trouble, "dropping claims", || async {
        shared.new.settle_claims().await?;
        let dropped = |now: &mut State| {
            let ours = now.phase == Phase::Settled && !now.claims_dropped;
            now.claims_dropped |= ours;
            ours
        };
        if shared.amend(dropped).await? {
            info!("nothing is left of the migration but its records");
        }
        Ok(())
    })
    .await;
}

/// Tries until it works, or until the epoch is over.
async fn until_done<F: Future<Output = Result<()>>>(
    trouble: &Trouble,
    what: &str,
    work: impl Fn() -> F,
) {
    loop {
        match work().await {
            Ok(()) | Err(StoreError::StaleEpoch) => {
                trouble.clear();
                return;
            }
            Err(error) => {
                warn!(%error, "{what}: trying again");
                trouble.tell_error(what, &error);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_job_that_ends_by_a_fault_says_so_until_it_gets_on_or_is_not_wanted() {
        let (tasks, troubles) = (Tasks::new(), Troubles::default());
        let mut jobs = Jobs::new(tasks.clone(), troubles.clone());
        let state = State::begin("m".into(), "old".into(), Revision(9), false, 1).opened(2);
        let owner = Situation {
            owner: true,
            verify: None,
        };
        let fault = "the mirror has ended by a fault of its own and is begun again";
        for _ in 0..2 {
            jobs.start(Job::Mirroring, &state, |_| async {
                panic!("a fault, on purpose")
            });
            jobs.finished().await;
            assert!(!jobs.runs(Job::Mirroring, state.epoch));
            jobs.keep_only(&state, owner);
            assert_eq!(troubles.text().as_deref(), Some(fault));
        }
        let gets_on = Arc::new(Notify::new());
        let (signal, told) = (gets_on.clone(), Arc::new(Notify::new()));
        let tells = told.clone();
        jobs.start(Job::Mirroring, &state, |trouble| async move {
            signal.notified().await;
            trouble.clear();
            tells.notify_one();
            signal.notified().await;
            trouble.tell("it is cut off".into());
            tells.notify_one();
            std::future::pending::<()>().await;
        });
        jobs.keep_only(&state, owner);
        assert_eq!(troubles.text().as_deref(), Some(fault));
        for text in [None, Some("it is cut off")] {
            gets_on.notify_one();
            told.notified().await;
            assert_eq!(troubles.text().as_deref(), text);
        }
        let next = state.switched(Phase::Normal, 3);
        jobs.keep_only(&next, owner);
        assert_eq!(troubles.text(), None);
    }

    #[test]
    fn each_state_has_its_jobs() {
        let begun = State::begin("m".into(), "old".into(), Revision(9), false, 1);
        let open = begun.opened(2);
        let copied = State {
            backfill_complete: true,
            ..open.clone()
        };
        let bad = State {
            verified: Some(Verified {
                epoch: copied.epoch,
                good: false,
                mirrored: true,
            }),
            ..copied.clone()
        };
        let normal = bad.switched(Phase::Normal, 3);
        let settled = normal.switched(Phase::Settled, 4);
        let done = State {
            claims_dropped: true,
            ..settled.clone()
        };
        let verification = Job::Verification;
        for (state, owner, auto, asked, jobs) in [
            (&begun, true, true, None, vec![Job::Opening]),
            (&begun, false, true, None, vec![]),
            (&open, true, true, None, vec![Job::Backfill, Job::Foreign]),
            (&open, false, true, None, vec![]),
            (&open, false, true, Some(3), vec![verification(3)]),
            (
                &copied,
                true,
                true,
                None,
                vec![Job::Foreign, verification(0)],
            ),
            (&copied, true, false, None, vec![Job::Foreign]),
            (&copied, false, true, None, vec![]),
            (&copied, false, false, Some(3), vec![verification(3)]),
            // Once by itself; more often only if somebody asks.
            (&bad, true, true, None, vec![Job::Foreign]),
            (
                &bad,
                true,
                true,
                Some(3),
                vec![Job::Foreign, verification(3)],
            ),
            (&normal, true, true, None, vec![Job::Foreign]),
            (&normal, false, true, Some(3), vec![verification(3)]),
            (
                &normal.switched(Phase::Migration, 5),
                true,
                true,
                None,
                vec![Job::Foreign, verification(0)],
            ),
            (&settled, true, true, Some(3), vec![Job::Settling]),
            (&settled, false, true, None, vec![]),
            (&done, true, true, Some(3), vec![]),
        ] {
            let situation = Situation {
                owner,
                verify: asked,
            };
            assert_eq!(
                choose(state, situation, auto),
                jobs,
                "{state:?} {owner} {auto} {asked:?}"
            );
        }
    }
}

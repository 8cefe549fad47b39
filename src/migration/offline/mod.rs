//! A whole migration at once, while the application is stopped: what `segue copy` does.
//!
//! It is the same machine as the live one, with nobody to serve: the same records, cursors and
//! checks, so that it can be killed at any moment and goes on where it was. What is different is
//! what has to be true around it: nobody writes to the old store, which is checked in the end by its
//! revision or, in a table, by a mark of all that it holds, and nobody keeps leases alive but the copy itself.
//!
//! - `preflight`: what the new store holds, and whether somebody works on it.
//! - `still`: whether the old store has changed.
//! - `keeper`: keeps the leases alive.
//! - [`receipt`]: what it came to.

mod keeper;
mod preflight;
pub mod receipt;
mod still;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::controller::{Controller, View, now_ms};
use super::joining::{OpenError, Options, Timing};
use super::ledger::Ledger;
use super::phase::{Phase, Stage, State};
use super::records::{Control, MARK, STATE, readable};
use super::status::Status;
use super::verify::Report;
use crate::store::mark::Mark;
use crate::store::{Guard, NewStore, OldStore, Result, StoreError};
use crate::tasks::Tasks;
use crate::types::{Content, KeyRange, Range, Reserved};

pub use preflight::{Contents, Found};
pub use receipt::Receipt;

/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(100);
/// A store that has been failing for this long will hardly recover by itself.
const TROUBLE: Duration = Duration::from_mins(1);
/// Findings and rejects that an error names; it says how many there are.
const NAMED: usize = 5;

/// How a copy's records are looked at: more often than a live migration's, since nobody else is
/// disturbed by it.
pub const TIMING: Timing = Timing {
    look: Duration::from_millis(250),
    lapse: Duration::from_secs(5),
    patience: Duration::from_secs(30),
    rollback: Duration::from_secs(10),
};

/// Why a copy was not made, or not to its end. The old store is as it was in any case.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// What was asked makes no sense.
    #[error("{0}")]
    Usage(String),
    /// It is not safe; what to do.
    #[error("{0}")]
    Refused(String),
    /// It went wrong.
    #[error("{0}")]
    Failed(String),
}

impl From<StoreError> for CopyError {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<OpenError> for CopyError {
    fn from(error: OpenError) -> Self {
        let text = error.to_string();
        match error {
            OpenError::Same | OpenError::CannotWait | OpenError::OtherPrefix(_) => {
                Self::Usage(text)
            }
            OpenError::Store { .. } | OpenError::Format(_) => Self::Failed(text),
            OpenError::NotEmpty
            | OpenError::Fenced
            | OpenError::Exhausted(_)
            | OpenError::OtherOldStore
            | OpenError::Offline
            | OpenError::Emptying
            | OpenError::Live => Self::Refused(text),
        }
    }
}

/// What a copy is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Leases and leased keys, which go first.
    Leases,
    /// All keys.
    Copying,
    /// Comparing both stores.
    Verifying,
    /// Removing what only the migration needs.
    Settling,
}

/// How far a copy is.
#[derive(Clone, Debug)]
pub struct Progress {
    /// What it is doing.
    pub act: Act,
    /// Keys that are done.
    pub done: u64,
    /// Keys that there are, as far as that is known.
    pub all: u64,
    /// Everything else, as a live migration shows it.
    pub status: Status,
}

/// A copy to be made.
pub struct Offline {
    old: Arc<dyn OldStore>,
    new: Arc<dyn NewStore>,
    ledger: Ledger,
    reserved: Reserved,
    parallel: usize,
    control: Control,
    tasks: Tasks,
}

impl Offline {
    /// A copy of all that `old` holds to `new`, so many parts at a time. Its tasks are `tasks`.
    #[must_use]
    pub fn new(
        old: Arc<dyn OldStore>,
        new: Arc<dyn NewStore>,
        reserved: Reserved,
        (parallel, control): (usize, Control),
        tasks: Tasks,
    ) -> Self {
        Self {
            ledger: Ledger::new(new.clone()),
            old,
            new,
            reserved,
            parallel,
            control,
            tasks,
        }
    }

    /// What the new store holds. Refuses if both are one store, or if somebody works on the new one;
    /// `waiting` is called with a name if it takes a while to find out whether somebody does.
    pub async fn inspect(&self, waiting: &(dyn Fn(&str) + Sync)) -> Result<Found, CopyError> {
        let found = preflight::inspect(&self.old, &self.new, &self.ledger).await?;
        preflight::nobody_works(&self.ledger, waiting).await?;
        Ok(found)
    }

    /// Makes sure that the old store can be read, values and leases too, and that none of the application's keys
    /// would be left out, before anything is written or deleted; answers whether it holds no keys. Keys that
    /// cannot be copied are refused only if they `have_to` be copied: else the copy tells of them when all the
    /// others are there.
    pub async fn probe(&self, have_to: bool) -> Result<bool, CopyError> {
        preflight::probe(&self.old, &self.reserved, have_to).await
    }

    /// Whether an unfinished copy in this state can be gone on with; refuses if not.
    pub async fn check_unchanged(&self, state: &State) -> Result<(), CopyError> {
        if state.phase == Phase::Migration
            && let Some(change) = self.changed(state).await?
        {
            return Err(CopyError::Refused(format!(
                "the old store has changed since this copy was begun: {change}. What was copied by then is \
                 out of date: stop the application and begin anew with --force"
            )));
        }
        Ok(())
    }

    /// What was changed in the old store since the copy was begun, if anything was.
    async fn changed(&self, state: &State) -> Result<Option<String>> {
        let mark = self.ledger.get::<Mark>(MARK).await?;
        still::changed(&self.old, state.base, mark.as_ref().map(|mark| &mark.value)).await
    }

    /// Writes down what the old store holds, where its revisions do not tell whether it changes. Before the
    /// first key is copied: so a copy that goes on has either the mark of its beginning or none of its keys.
    async fn keep_mark(&self) -> Result<(), CopyError> {
        let Some(state) = self.ledger.get::<State>(STATE).await? else {
            return Ok(());
        };
        if state.value.phase != Phase::Migration || self.ledger.get::<Mark>(MARK).await?.is_some() {
            return Ok(());
        }
        if let Some(mark) = self.old.mark(None).await?
            && !self.ledger.put_under(&state, MARK, &mark, 0).await?
        {
            return Err(CopyError::Failed(
                "somebody else has changed the records of this copy; try again".into(),
            ));
        }
        Ok(())
    }

    /// Empties the new store.
    pub async fn clear(&self) -> Result<()> {
        self.new.clear().await
    }

    /// Copies and verifies everything and settles, from wherever an earlier run has stopped. `tell` is
    /// called now and then. Dropping the future stops it at once; `tasks` are to be shut down then.
    pub async fn run(&self, tell: &(dyn Fn(&Progress) + Sync)) -> Result<Receipt, CopyError> {
        let begun = Instant::now();
        let resumed = self.ledger.get::<State>(STATE).await?.is_some();
        let (old, new) = (self.old.clone(), self.new.clone());
        let controller = Controller::open(old, new, self.options(), self.tasks.clone()).await?;
        // An earlier run may have been told to go slower.
        controller.steer(|control| *control = self.control).await?;
        self.keep_mark().await?;
        self.tasks
            .spawn_vital("copy", Arc::clone(&controller).run());
        let astray = |what: String| {
            CopyError::Failed(format!(
                "a part of this copy ({what}) has ended by a fault of its own; the same command goes on from \
                 where it was. If it ends like this again, please report it"
            ))
        };
        let receipt = tokio::select! {
            receipt = self.see_through(&controller, tell) => receipt?,
            what = self.tasks.astray() => return Err(astray(what)),
            what = self.old.astray() => return Err(astray(what)),
            what = self.new.astray() => return Err(astray(what)),
        };
        Ok(Receipt {
            resumed,
            took_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            ..receipt
        })
    }

    /// Brings what `controller` does from step to step, to the receipt.
    async fn see_through(
        &self,
        controller: &Arc<Controller>,
        tell: &(dyn Fn(&Progress) + Sync),
    ) -> Result<Receipt, CopyError> {
        let look = |act, holds: &'static (dyn Fn(&View) -> bool + Sync)| {
            self.until(controller, act, holds, tell)
        };
        look(Act::Leases, &|view| view.state.value.stage == Stage::Open).await?;
        let leases = keeper::start(&self.old, &self.new, &self.tasks).await?;
        look(Act::Copying, &|view| view.state.value.backfill_complete).await?;
        if controller.view().state.value.phase == Phase::Migration {
            self.verify(controller, tell).await?;
            advance(controller, Phase::Normal).await?;
        }
        let report = controller.report().await?.unwrap_or_default();
        let progress = controller.status().await;
        look(Act::Settling, &|view| {
            view.state.value.phase != Phase::Migration
        })
        .await?;
        if controller.view().state.value.phase == Phase::Normal {
            advance(controller, Phase::Settled).await?;
        }
        look(Act::Settling, &|view| view.over).await?;
        // Each has its full time from now on, for the application to come back.
        leases.renew().await?;
        let state = controller.view().state.value.clone();
        let plain = self.new.guarded(Guard::None);
        let count = Range {
            content: Content::CountOnly,
            ..Range::of(KeyRange::all())
        };
        let keys = plain.range(count).await?.reply.count as u64;
        Ok(Receipt {
            migration: state.migration,
            keys,
            bytes: progress.bytes_copied,
            leases: leases.count(),
            base: state.base.0,
            revision: plain.status().await?.revision.0,
            compared: report.compared,
            equal: report.equal,
            expired: report.expired + report.superseded,
            started_ms: state.started_ms,
            finished_ms: now_ms(),
            ..Receipt::default()
        })
    }

    fn options(&self) -> Options {
        Options {
            id: format!("{:016x}", rand::random::<u64>()),
            name: format!("segue copy (process {})", std::process::id()),
            client_url: String::new(),
            admin: String::new(),
            reserved: self.reserved.clone(),
            start: Phase::Migration,
            allow_nonempty: false,
            offline: true,
            mirror: false,
            replayed_bytes_max: None,
            parallel: self.parallel,
            control: self.control,
            auto_verify: false,
            follow: false,
            timing: TIMING,
        }
    }

    /// Compares both stores, and makes sure that nobody has written to the old one meanwhile.
    async fn verify(
        &self,
        controller: &Arc<Controller>,
        tell: &(dyn Fn(&Progress) + Sync),
    ) -> Result<(), CopyError> {
        let number = controller.verify();
        let done = |_: &View| controller.verifications_done() >= number;
        self.until(controller, Act::Verifying, &done, tell).await?;
        let state = &controller.view().state.value;
        // Before what was found, since this would explain it.
        if let Some(change) = self.changed(state).await? {
            return Err(CopyError::Refused(format!(
                "the old store was changed while it was being copied: {change}. The copy may lack that: \
                 stop the application and begin anew with --force"
            )));
        }
        let rejects = controller.rejects().await?;
        if !rejects.is_empty() {
            let named = rejects.iter().take(NAMED);
            let named = named.map(|reject| format!("{}: {}", readable(&reject.key), reject.reason));
            return Err(CopyError::Failed(format!(
                "the new store cannot take {} of the old one's keys, and everything else is copied:{} \
                 Delete or change them in the old store, and begin anew with --force",
                rejects.len(),
                listed(&named.collect::<Vec<_>>(), rejects.len())
            )));
        }
        let report = controller.report().await?.unwrap_or_default();
        if report.good {
            return Ok(());
        }
        Err(CopyError::Failed(differences(&report)))
    }

    /// Waits until `holds`, and tells how far it is meanwhile.
    async fn until(
        &self,
        controller: &Arc<Controller>,
        act: Act,
        holds: &(dyn Fn(&View) -> bool + Sync),
        tell: &(dyn Fn(&Progress) + Sync),
    ) -> Result<(), CopyError> {
        let mut fine = Instant::now();
        while !holds(&controller.view()) {
            let status = controller.status().await;
            let trouble = status.trouble.clone();
            tell(&progress(act, controller, status));
            match trouble {
                None => fine = Instant::now(),
                Some(trouble) if fine.elapsed() > TROUBLE => {
                    return Err(CopyError::Failed(format!(
                        "this has not changed for {} seconds: {trouble}. When it has, the same command goes on \
                         from where it was",
                        TROUBLE.as_secs()
                    )));
                }
                Some(_) => self.still_ours().await?,
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Fails if the records that all of this is about are gone.
    async fn still_ours(&self) -> Result<(), CopyError> {
        match self.ledger.get::<State>(STATE).await {
            Ok(None) => Err(CopyError::Failed(
                "somebody has emptied the new store while it was being copied to".into(),
            )),
            Ok(Some(_)) | Err(_) => Ok(()),
        }
    }
}

async fn advance(controller: &Arc<Controller>, phase: Phase) -> Result<(), CopyError> {
    match controller.go_to(phase).await? {
        Ok(()) => Ok(()),
        Err(why) => Err(CopyError::Failed(why)),
    }
}

fn progress(act: Act, controller: &Controller, status: Status) -> Progress {
    let copied = status.keys_copied + status.rejects;
    let all = copied + status.keys_left;
    let done = match act {
        Act::Leases => 0,
        Act::Copying => copied,
        Act::Verifying => controller.verifying().map_or(0, |report| report.compared),
        Act::Settling => all,
    };
    Progress {
        act,
        done,
        all,
        status,
    }
}

fn differences(report: &Report) -> String {
    let found = report.missing + report.different + report.stray;
    let named = report.findings.iter().take(NAMED);
    let named = named.map(|finding| {
        let kind = format!("{:?}", finding.kind).to_lowercase();
        format!("{} is {kind} {}", finding.key, finding.detail)
    });
    format!(
        "the stores do not agree about {found} of {} keys:{} Was the old store written to? Stop the \
         application and begin anew with --force",
        report.compared,
        listed(
            &named.collect::<Vec<_>>(),
            usize::try_from(found).unwrap_or(usize::MAX)
        )
    )
}

/// Lines of their own, and how many more there would be.
fn listed(lines: &[String], of: usize) -> String {
    let mut text = String::new();
    for line in lines {
        text.push_str("\n  ");
        text.push_str(line.trim());
    }
    let more = of.saturating_sub(lines.len());
    if more > 0 {
        let _ = write!(text, "\n  … and {more} more");
    }
    text.push('\n');
    text
}

//! How a member joins the migration that the new store holds, or begins one: what it is told, and what is
//! checked before anything is written.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::controller::now_ms;
use super::fence;
use super::ledger::{Entry, Ledger, write};
use super::phase::{FORMAT, Phase, State};
use super::records::{CONTROL, Control, Outcome, STATE, SURVEY, SWITCH, Survey, Switch};
use super::switch::KEY;
use crate::store::{EMPTYING, GuardedStore, NewStore, OldStore, RecordTxn, StoreError};
use crate::types::{KeyRange, Range, Reserved, Revision};

/// How long an old store that may not be needed is asked which one it is.
const IDENTITY_WITHIN: Duration = Duration::from_secs(2);

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
    /// Most bytes of a pair, its key counted twice, that the mirror can bring into the old store; nothing, if
    /// that takes all that clients may write.
    pub replayed_bytes_max: Option<usize>,
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
    /// A rollback that takes longer is called off: clients wait for it.
    pub rollback: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            look: Duration::from_millis(500),
            lapse: Duration::from_secs(10),
            patience: Duration::from_secs(30),
            rollback: Duration::from_secs(10),
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
    /// The fleet has another reserved prefix.
    #[error(
        "the migration in the new store has {0:?} as its reserved prefix: give --reserved-prefix {0}. Proxies with \
         different ones would each go by a switch key of their own"
    )]
    OtherPrefix(String),
    /// The new store holds a part of a copy that was made offline.
    #[error(
        "the new store holds an unfinished `segue copy`. The old store may have changed since, so it \
         cannot be gone on with from here: finish it by the same command, or empty the new store"
    )]
    Offline,
    /// What the new store holds is the rest of something that was being deleted.
    #[error(
        "the new store was being emptied by `segue copy --force`, which did not come to its end: it holds only \
         what is left of what was there before. Run that command again, or give another store"
    )]
    Emptying,
    /// The new store holds a migration with clients.
    #[error(
        "the new store holds a migration that clients have taken part in: go on with it by `segue \
         serve`, and end it with `segue switch` and `segue complete`"
    )]
    Live,
    /// The old store's revisions are near their end.
    #[error(
        "the old store is at revision {0}, and a migration goes on from {max} at most, so that there are \
         numbers left. Copy the keys by other means to a store that begins anew",
        max = Revision::BASE_MAX
    )]
    Exhausted(Revision),
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

/// Joins the migration, or begins one: its state.
pub(super) async fn join(
    ledger: &Ledger,
    old: &Arc<dyn OldStore>,
    new: &Arc<dyn NewStore>,
    plain: &Arc<dyn GuardedStore>,
    options: &Options,
) -> Result<Entry<State>, OpenError> {
    refuse_emptying(new).await?;
    loop {
        if let Some(entry) = ledger.get::<State>(STATE).await.map_err(of_new)? {
            check_joinable(&entry.value, old, options).await?;
            warn_of_unheard(&entry.value, options);
            return Ok(entry);
        }
        match begin(ledger, old, new, plain, options).await {
            // Another member has begun the same migration in this very moment.
            Err(OpenError::NotEmpty | OpenError::Fenced)
                if has_state(ledger).await.map_err(of_new)? => {}
            begun => begun?,
        }
    }
}

/// Whether somebody has begun to empty the store, and not come to the end of it.
pub(super) async fn is_being_emptied(new: &Arc<dyn NewStore>) -> crate::store::Result<bool> {
    let records = new.records(EMPTYING).await?;
    Ok(records.iter().any(|record| record.name == EMPTYING))
}

/// Refuses a store that is the rest of what was being deleted.
pub async fn refuse_emptying(new: &Arc<dyn NewStore>) -> Result<(), OpenError> {
    if is_being_emptied(new).await.map_err(of_new)? {
        return Err(OpenError::Emptying);
    }
    Ok(())
}

pub(super) fn of_new(error: StoreError) -> OpenError {
    OpenError::Store {
        which: "new",
        error,
    }
}

fn of_old(error: StoreError) -> OpenError {
    OpenError::Store {
        which: "old",
        error,
    }
}

async fn has_state(ledger: &Ledger) -> crate::store::Result<bool> {
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
    if base > Revision::BASE_MAX {
        return Err(OpenError::Exhausted(base));
    }
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
    state.reserved = Some(options.reserved.prefix().into_owned());
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

/// Says what of the options is without effect, since it was decided when the migration began.
fn warn_of_unheard(state: &State, options: &Options) {
    if state.mirror && !options.mirror && state.phase != Phase::Settled {
        warn!(
            "--no-mirror has no effect: the migration began without it, so the old store follows the new one, and \
             `segue rollback` leads back"
        );
    }
}

async fn check_joinable(
    state: &State,
    old: &Arc<dyn OldStore>,
    options: &Options,
) -> Result<(), OpenError> {
    if state.format != FORMAT {
        return Err(OpenError::Format(state.format));
    }
    let prefix = state
        .reserved
        .as_ref()
        .filter(|_| state.phase != Phase::Settled);
    if let Some(prefix) = prefix.filter(|prefix| **prefix != options.reserved.prefix()) {
        return Err(OpenError::OtherPrefix(prefix.clone()));
    }
    if state.phase != Phase::Settled && state.offline != options.offline {
        return Err(if options.offline {
            OpenError::Live
        } else {
            OpenError::Offline
        });
    }
    let identity = match state.phase {
        Phase::Settled => return Ok(()),
        // The old store may be gone then. One that does not answer is checked when it is needed.
        Phase::Normal => match tokio::time::timeout(IDENTITY_WITHIN, old.identity()).await {
            Ok(Ok(identity)) => identity,
            Ok(Err(_)) | Err(_) => return Ok(()),
        },
        Phase::Passthrough | Phase::Migration => old.identity().await.map_err(of_old)?,
    };
    if identity == state.old {
        Ok(())
    } else {
        Err(OpenError::OtherOldStore)
    }
}

//! The end of a migration: everything that it kept in the new store goes.
//!
//! Once the phase is settled, no claims are left and nobody is behind, the owner **closes** the records:
//! one transaction in which the state says so and the switch key goes. From then on no member makes a
//! record, since whoever could make one expects the state as it has read it (see
//! [`super::ledger::Ledger::put_under`]).
//! So what is listed now is all that there will be, and every member that sees the state closed removes
//! it, the state last: whoever of them dies, another one finishes, or the next one that joins.
//!
//! Who finds no state any more, and knows that it was settled, serves on by the new store alone, as it
//! did before. Who believes in an earlier phase cannot tell an end from a new store that was emptied and
//! may be somebody else's by now: it serves nobody and says what to do.
//!
//! Who serves a store alone holds to no epoch, so that nothing refuses it when the next migration or copy begins
//! there: it looks out for that, and makes room.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info};

use super::controller::{Controller, now_ms};
use super::fleet::Fleet;
use super::ledger::{Entry, write};
use super::phase::{State, Surroundings};
use super::records::STATE;
use super::switch::KEY;
use crate::store::{FENCE, NewStore, RecordTxn, Result};

/// What is said to those who ask something of a migration that is over.
pub const COMPLETE: &str = "the migration is complete: it is settled, and nothing of it is left in the new store, \
                            which this proxy serves alone";

/// Why a member ends that finds the migration gone.
pub const GONE: &str = "the record of the migration is gone: the migration was completed while this proxy was cut \
                        off, or the new store was emptied. Nobody is served here any more. If it was completed, \
                        run `segue serve --new URL` without --old";

/// Why a proxy ends that serves a store alone, and finds that it does not.
pub const BEGUN: &str = "something has begun in the store that this proxy serves alone: a migration or a copy to it, a \
                         migration from it, or that it is being emptied. Nobody is served here any more. Start a \
                         proxy with both stores to take part in the migration, or this one again when it has come \
                         to its end";

/// The records that may be left when a migration is over. The fence is the next one's, whose old store this is.
const STAY: [&str; 2] = [STATE, FENCE];

/// The records that tell of nothing that is under way, by their names.
#[derive(Clone, Debug)]
pub struct Quiet(BTreeSet<String>);

impl Quiet {
    /// Those that are left by a migration that is over.
    #[must_use]
    pub fn after_migration() -> Self {
        Self(STAY.map(str::to_owned).into())
    }

    /// Those that there are now, in a store without a migration: an old store that was let go has some.
    pub async fn now(new: &Arc<dyn NewStore>) -> Result<Self> {
        Ok(Self(names(new).await?.into_iter().collect()))
    }

    /// Returns when `new` has another record, at the first look that finds it: something has begun there. As
    /// long as the store cannot be asked it serves nobody anyhow.
    pub async fn ends(&self, new: &Arc<dyn NewStore>, pause: Duration) {
        loop {
            match names(new).await {
                Ok(names) if names.iter().all(|name| self.0.contains(name)) => {}
                Ok(_) => return,
                Err(error) => {
                    debug!(%error, "it cannot be told whether something begins in the store");
                }
            }
            tokio::time::sleep(pause).await;
        }
    }
}

async fn names(new: &Arc<dyn NewStore>) -> Result<Vec<String>> {
    let records = new.records("").await?.into_iter();
    Ok(records.map(|record| record.name).collect())
}

/// Why a member ends of which a part has died, `what`, by a fault in the program. It would serve on by the phase
/// that it knew last, and never acknowledge another one, or fail every write.
#[must_use]
pub fn astray(what: &str) -> String {
    format!(
        "a part of this proxy ({what}) has ended by a fault of its own; the log tells which. Nobody is served \
         here any more. Start it again; what it was doing goes on then, and meanwhile on the other proxies"
    )
}

impl Controller {
    /// Closes the records, if it is time.
    pub(super) async fn close(&self, state: &Entry<State>, fleet: &Fleet) -> Result<()> {
        let around = Surroundings {
            behind: fleet.behind(state.value.epoch),
            ..Surroundings::default()
        };
        let Some(next) = state.value.closing(&around, now_ms()) else {
            return Ok(());
        };
        let txn = RecordTxn {
            expect: vec![(STATE.to_owned(), state.version)],
            writes: vec![write(STATE, &next)],
            forget: vec![self.options.reserved.key(KEY)],
            ..RecordTxn::default()
        };
        if self.ledger.write(txn).await? {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Removes what is left of a migration whose records are closed; answers whether that was all.
    pub(super) async fn remove_rest(&self, state: &Entry<State>) -> Result<bool> {
        // The removal of the switch key may have left a mark.
        self.new.settle_claims().await?;
        let mut gone = names(&self.new).await?;
        gone.retain(|name| !STAY.contains(&&**name));
        // If the state is another one, another member has come to the end of it.
        self.ledger.remove_all(state, &gone).await?;
        if state.value.has_to_stay() {
            return Ok(true);
        }
        let done = self.ledger.remove(STATE, state.version).await?;
        if done {
            info!("nothing is left of the migration in the new store");
        }
        Ok(done)
    }
}

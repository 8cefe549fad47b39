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

use tracing::info;

use super::controller::{Controller, now_ms};
use super::fleet::Fleet;
use super::ledger::{Entry, write};
use super::phase::{State, Surroundings};
use super::records::STATE;
use super::switch::KEY;
use crate::store::{FENCE, RecordTxn, Result};

/// What is said to those who ask something of a migration that is over.
pub const COMPLETE: &str = "the migration is complete: it is settled, and nothing of it is left in the new store, \
                            which this proxy serves alone";

/// Why a member ends that finds the migration gone.
pub const GONE: &str = "the record of the migration is gone: the migration was completed while this proxy was cut \
                        off, or the new store was emptied. Nobody is served here any more. If it was completed, \
                        run `segue serve --new URL` without --old";

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
        // The fence of a store that was an old one once is there for good.
        let stays = |name: &String| name == STATE || name == FENCE;
        let records = self.new.records("").await?.into_iter();
        let names: Vec<_> = records.map(|record| record.name).collect();
        let gone: Vec<_> = names.into_iter().filter(|name| !stays(name)).collect();
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

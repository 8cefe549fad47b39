//! How far the store has come, as far as this process knows.
//!
//! A database that loses commits in a crash, or is set back to a backup, gives revisions away twice:
//! clients and watches would take new changes for ones that they have seen. Nobody is served then.

use std::sync::atomic::{AtomicI64, Ordering};

use super::backend::{Backend, Read, Snapshot};
use crate::store::{Result, StoreError};
use crate::types::Revision;

/// The highest revision that was seen.
#[derive(Debug)]
pub(super) struct Height(AtomicI64);

impl Height {
    pub(super) fn new(revision: Revision) -> Self {
        Self(AtomicI64::new(revision.0))
    }

    /// What everything that is asked for from now on may not be below.
    pub(super) fn get(&self) -> Revision {
        Revision(self.0.load(Ordering::Acquire))
    }

    /// Notes that the store has come so far: for good, not only as long as it does not crash.
    pub(super) fn raise(&self, revision: Revision) {
        self.0.fetch_max(revision.0, Ordering::AcqRel);
    }

    /// Reads from one snapshot, and notes how far the store has come.
    pub(super) async fn read<B: Backend>(&self, backend: &B, snapshot: Snapshot) -> Result<Read> {
        let floor = self.get();
        let read = backend.read(snapshot).await?;
        self.reach(floor, read.head.revision)?;
        Ok(read)
    }

    /// Checks the revision that the store answered against what [`Self::get`] gave before it was asked,
    /// and notes it.
    fn reach(&self, floor: Revision, answered: Revision) -> Result<()> {
        Self::check(floor, answered)?;
        self.raise(answered);
        Ok(())
    }

    /// The same without noting it: somebody has seen it, but a crash may yet take it back.
    pub(super) fn check(floor: Revision, answered: Revision) -> Result<()> {
        if answered < floor {
            return Err(StoreError::Broken(format!(
                "the database has gone back from revision {floor} to {answered}: it has lost commits \
                 (a crash of a server that does not sync them) or was restored from a backup. Clients \
                 have seen what is lost, so nothing is served; if it is to stay so, start segue \
                 anew and restart the clients"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_goes_back_is_noticed_by_whoever_asks_afterwards() {
        let height = Height::new(Revision(3));
        let before = height.get();
        height.reach(before, Revision(5)).unwrap();
        // Was under way when another one saw 5.
        height.reach(before, Revision(4)).unwrap();
        let told = height.reach(height.get(), Revision(4)).unwrap_err();
        assert!(told.to_string().contains("from revision 5 to 4"), "{told}");
        height.raise(Revision(6));
        assert!(height.reach(height.get(), Revision(5)).is_err());
        // What was only glimpsed is not missed.
        Height::check(height.get(), Revision(7)).unwrap();
        height.reach(height.get(), Revision(6)).unwrap();
    }
}

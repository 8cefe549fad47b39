//! When compacted history is deleted.
//!
//! In pieces: one after the other while nothing waits, and now and then between two batches while something
//! always does.
//!
//! Where several processes write to one database, each tells its watchers from the log what the others have
//! written, and is a little behind. Reads below the compacted revision are refused at once, but these changes are
//! still to be told. So history lingers for as long as a process that is well is ever behind.

use std::future::pending;
use std::time::{Duration, Instant};

use tokio::time::sleep_until;

use super::backend::Head;
use crate::types::Revision;

/// How long writes go first behind a piece of compacted history that was deleted between them, in terms of
/// what that took: it has a fifth of the time.
const WRITES_PER_SWEEP: u32 = 4;

/// What may be deleted, and when.
pub(super) struct Sweeping {
    linger: Duration,
    /// Up to here it may be.
    ripe: Revision,
    /// Up to here it was compacted some time ago, and may be deleted then.
    unripe: Option<(Revision, Instant)>,
    /// Until then writes go first.
    rests_until: Instant,
}

impl Sweeping {
    /// `linger` is how long history stays when it was compacted.
    pub(super) fn new(linger: Duration) -> Self {
        Self {
            linger,
            ripe: Revision(0),
            unripe: None,
            rests_until: Instant::now(),
        }
    }

    /// Up to where history is to be deleted in a store that is at `head`, if there is some.
    pub(super) fn due(&mut self, head: Option<&Head>, now: Instant) -> Option<Revision> {
        let head = head?;
        self.ripen(now);
        if self.unripe.is_none() && head.compacted > self.ripe {
            self.unripe = Some((head.compacted, now + self.linger));
            self.ripen(now);
        }
        (head.swept < head.compacted.min(self.ripe)).then_some(self.ripe)
    }

    fn ripen(&mut self, now: Instant) {
        if let Some((revision, _)) = self.unripe.take_if(|(_, at)| *at <= now) {
            self.ripe = revision;
        }
    }

    /// The same while writes wait.
    pub(super) fn due_between_writes(
        &mut self,
        head: Option<&Head>,
        now: Instant,
    ) -> Option<Revision> {
        let due = self.due(head, now);
        due.filter(|_| now >= self.rests_until)
    }

    /// A piece was deleted.
    pub(super) fn swept(&mut self, begun: Instant) {
        self.rests_until = Instant::now() + begun.elapsed() * WRITES_PER_SWEEP;
    }

    /// Returns when more may be deleted than [`Self::due`] has told.
    pub(super) async fn ripens(&self) {
        match self.unripe {
            Some((_, at)) => sleep_until(at.into()).await,
            None => pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(compacted: i64, swept: i64) -> Head {
        Head {
            compacted: Revision(compacted),
            swept: Revision(swept),
            ..Head::at(100)
        }
    }

    #[test]
    fn history_lingers_however_often_it_is_compacted() {
        let linger = Duration::from_secs(5);
        let begin = Instant::now();
        let mut sweeping = Sweeping::new(linger);
        let mut due = |compacted, swept, after_s| {
            let now = begin + Duration::from_secs(after_s);
            let due = sweeping.due(Some(&head(compacted, swept)), now);
            due.map(|revision| revision.0)
        };
        assert_eq!(due(0, 0, 0), None);
        assert_eq!(due(10, 0, 1), None);
        assert_eq!(due(20, 0, 5), None);
        assert_eq!(due(30, 0, 6), Some(10));
        assert_eq!(due(30, 10, 6), None);
        // What was compacted meanwhile is known since a second ago.
        assert_eq!(due(40, 10, 10), None);
        assert_eq!(due(40, 10, 11), Some(30));
        assert_eq!(due(40, 30, 15), None);
        assert_eq!(due(40, 30, 16), Some(40));
        assert_eq!(due(40, 40, 100), None);
    }

    #[test]
    fn history_that_nobody_else_reads_is_deleted_at_once() {
        let now = Instant::now();
        let mut sweeping = Sweeping::new(Duration::ZERO);
        for compacted in [10, 20] {
            let due = sweeping.due(Some(&head(compacted, 5)), now);
            assert_eq!(due, Some(Revision(compacted)));
        }
        assert_eq!(sweeping.due(Some(&head(20, 20)), now), None);
        assert_eq!(sweeping.due(None, now), None);
    }
}

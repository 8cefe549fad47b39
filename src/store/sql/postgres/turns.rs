//! When a batch may be begun ahead, so that others get the lock of the head row, too.
//!
//! The next batch is begun on the same connection: there the lock passes from one transaction to the next
//! without anybody having to be woken up (in PostgreSQL a second connection that waits for it
//! costs more than it wins). Others who wait for the lock would never get it in this way.

use crate::store::sql::backend::Head;

/// Batches that keep the lock from one to the next, before others get a chance to have it: a hundredth of
/// a second under load.
const IN_A_ROW: u32 = 8;

/// After so many batches without anybody else's, nobody else is thought to write.
const ALONE_AFTER: u32 = 64;

/// When a batch may be begun ahead, and so keep the lock: as long as nobody else writes, and not always,
/// so that it is noticed when somebody wants to.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The head row as the last batch has left it.
    left: Option<Head>,
    in_a_row: u32,
    /// How many batches it is yet until we are thought to be alone.
    crowded: u32,
}

impl Turns {
    /// A batch was begun, ahead or not, and found the head row like this.
    pub(super) fn began(&mut self, ahead: bool, found: &Head) {
        self.in_a_row = if ahead { self.in_a_row + 1 } else { 0 };
        self.crowded = if self.left.is_some_and(|left| left != *found) {
            ALONE_AFTER
        } else {
            self.crowded.saturating_sub(1)
        };
    }

    /// The batch leaves the head row like this.
    pub(super) fn leaves(&mut self, head: Head) {
        self.left = Some(head);
    }

    /// Whether the next one may be begun ahead.
    pub(super) fn keep(&self) -> bool {
        self.crowded == 0 && self.in_a_row < IN_A_ROW
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many batches are begun ahead, if somebody else wants to write before those, and waits
    /// until he can.
    fn ahead(batches: i64, others: impl Fn(i64) -> bool) -> i64 {
        let mut turns = Turns::default();
        let mut revision = 1;
        let mut begun = 0;
        let mut waits = false;
        for batch in 0..batches {
            let keep = turns.keep();
            waits |= others(batch);
            if waits && !keep {
                revision += 1;
                waits = false;
            }
            begun += i64::from(keep);
            turns.began(keep, &Head::at(revision));
            revision += 1;
            turns.leaves(Head::at(revision));
        }
        begun
    }

    #[test]
    fn who_is_alone_keeps_the_lock_mostly_and_never_for_long() {
        assert_eq!(ahead(900, |_| false), 800);
    }

    #[test]
    fn who_is_not_alone_does_not_keep_the_lock() {
        assert_eq!(ahead(900, |batch| batch > 0), i64::from(IN_A_ROW));
        assert_eq!(ahead(900, |batch| batch > 0 && batch % 20 == 0), 24);
    }

    #[test]
    fn who_is_alone_again_keeps_the_lock_again() {
        let begun = ahead(900, |batch| batch < 450);
        assert!(begun > 300, "{begun}");
    }
}

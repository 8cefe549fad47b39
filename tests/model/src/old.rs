//! The old store, with its fence and the mirror's position. Every function is one transaction.

use crate::record::Epoch;
use crate::spec::{Answer, Pairs, Request, Revision, Writes, apply, expire};

/// The fence: a key of its own in the old store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Fence {
    /// Open for passthrough members of this epoch, or shut by the migration that began with it.
    pub(crate) epoch: Epoch,
    pub(crate) shut: bool,
    /// The revision that wrote it.
    pub(crate) at: Revision,
    /// The last revision published before it was opened.
    pub(crate) after: Revision,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Old {
    pub(crate) pairs: Pairs,
    pub(crate) revision: Revision,
    pub(crate) fence: Fence,
    /// What the keys held at the fence, which stores with history can still be asked for. Forgotten
    /// here when nobody will ask any more.
    pub(crate) at_fence: Pairs,
    /// The new store's revision up to which its changes were replayed.
    pub(crate) mirrored: Revision,
    pub(crate) lease: bool,
}

impl Old {
    /// What is added to this store's revisions for passthrough members.
    pub(crate) fn offset(&self) -> Revision {
        self.fence.after.saturating_sub(self.fence.at)
    }

    pub(crate) fn is_open_for(&self, epoch: Epoch) -> bool {
        !self.fence.shut && self.fence.epoch == epoch
    }

    /// A request of a client. Answers at which revision, and what was written.
    pub(crate) fn run(&mut self, request: Request, offset: Revision) -> (Revision, Answer, Writes) {
        let at = self.revision + offset + u8::from(!request.is_read());
        let (answer, writes) = request.evaluate(self.pairs, at);
        if writes.iter().any(Option::is_some) {
            self.revision += 1;
            apply(&mut self.pairs, &writes);
            return (at, answer, writes);
        }
        (self.revision + offset, answer, writes)
    }

    /// Shuts the fence for the migration that begins with `epoch`, if it is open for the epoch before.
    pub(crate) fn shut(&mut self, epoch: Epoch) {
        if self.is_open_for(epoch - 1) {
            let offset = self.offset();
            self.revision += 1;
            let at = self.revision;
            self.fence = Fence {
                epoch,
                shut: true,
                at: at + offset,
                after: 0,
            };
            self.at_fence = self.pairs;
            self.mirrored = at + offset;
        }
    }

    /// Opens it for `epoch`, with the leased pairs of the new store and their lease, when the mirror
    /// has come to `goal`.
    pub(crate) fn open(&mut self, epoch: Epoch, goal: Revision, leased: &Writes) {
        if leased.iter().any(Option::is_some) {
            apply(&mut self.pairs, leased);
            self.lease = true;
        }
        self.revision += 1;
        self.fence = Fence {
            epoch,
            shut: false,
            at: self.revision,
            after: goal,
        };
    }

    /// The mirror of `epoch` makes the position its own, and shuts the fence if a rollback that was called
    /// off before has opened it.
    pub(crate) fn take_over(&mut self, epoch: Epoch) {
        self.fence.epoch = epoch;
        self.fence.shut = true;
    }

    /// Replays one change of the new store.
    pub(crate) fn replay(&mut self, at: Revision, writes: &Writes) {
        apply(&mut self.pairs, writes);
        self.revision += 1;
        self.mirrored = at;
    }

    /// The lease ends by this store's own clock, which no fence stops.
    pub(crate) fn expire(&mut self) -> Writes {
        let writes = expire(self.pairs);
        self.lease = false;
        if writes.iter().any(Option::is_some) {
            self.revision += 1;
            apply(&mut self.pairs, &writes);
        }
        writes
    }
}

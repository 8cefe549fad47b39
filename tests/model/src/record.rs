//! The state record: one for the fleet, in the new store. The line (the epoch that the new store
//! asserts) is written in the same transaction, so here it is derived from the record.

use crate::spec::Revision;

pub(crate) type Epoch = u8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Phase {
    Passthrough,
    Migration,
    Normal,
    Settled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// To Migration: the old store is being fenced.
    Fencing,
    /// To Migration: leased keys are being copied up.
    Opening,
    /// Back to Passthrough: the mirror is being drained.
    Draining,
    /// Clients are served.
    Open,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Record {
    pub(crate) epoch: Epoch,
    pub(crate) phase: Phase,
    pub(crate) stage: Stage,
    /// What is added to the old store's revisions.
    pub(crate) offset: Revision,
    /// Everything that the old store has is claimed, for good.
    pub(crate) all_claimed: bool,
    /// The new store holds claims of a migration that was rolled back.
    pub(crate) leftovers: bool,
    /// Draining: the phase that the rollback began in.
    pub(crate) back_from: Option<Phase>,
    /// The latest rollback was called off.
    pub(crate) called_off: bool,
    /// Draining: where the mirror has to get. Fencing: the base revision, if it is known too early.
    pub(crate) goal: Revision,
}

impl Record {
    pub(crate) const FIRST: Self = Self {
        epoch: 1,
        phase: Phase::Passthrough,
        stage: Stage::Open,
        offset: 0,
        all_claimed: false,
        leftovers: false,
        back_from: None,
        called_off: false,
        goal: 0,
    };

    pub(crate) fn is(&self, phase: Phase, stage: Stage) -> bool {
        self.phase == phase && self.stage == stage
    }

    /// The new store takes changes of clients, and may be left again.
    pub(crate) fn is_migrating(&self) -> bool {
        matches!(self.phase, Phase::Migration | Phase::Normal) && self.stage == Stage::Open
    }
}

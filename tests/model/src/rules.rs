//! The rules that make the protocol safe. Each can be switched off, to see that the checker notices.

/// One rule. The number is that of the race in the design's list that it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// 1: a write of the passthrough phase compares the fence in its own transaction.
    FenceGuardsWrites,
    /// 2: a read of the passthrough phase sees the fence in its own snapshot.
    FenceGuardsReads,
    /// 3: the base revision is the fence's own.
    BaseAfterFence,
    /// 4: a copy that travels with a request is made only if the key is unclaimed.
    CopyUpIfUnclaimed,
    /// 5: so is a copy of the backfill.
    BackfillIfUnclaimed,
    /// 7: the frontier moves in the transaction of the copies that it vouches for.
    FrontierWithData,
    /// 6 and 8: whiteouts are kept until settle.
    WhiteoutsKept,
    /// 9: what is compared is copied up first, and compared in the new store.
    CopyUpBeforeCompare,
    /// 10: deleting a claimed key leaves a whiteout.
    DeleteLeavesWhiteout,
    /// 10: so does the end of a lease.
    ExpiryLeavesWhiteout,
    /// 11: the old store is read before the new one.
    OldBeforeNew,
    /// 12: leased keys are copied up before the phase opens.
    LeasesBeforeOpen,
    /// 12: they are copied as they were at the base revision, so that one which expires between the
    /// fence and its copy ends in the new store, with an event.
    LeasedAsOfBase,
    /// 12, on the way back: leased keys are written to the old store again, with their leases, in the
    /// transaction that opens its fence. Its own copies of the leases may have run out long ago.
    LeasesHandedBack,
    /// 14: every write of the new store asserts the epoch.
    EpochGuardsWrites,
    /// 14: so does every read snapshot of it.
    EpochGuardsReads,
    /// 14: and the end of a lease there.
    EpochGuardsExpiry,
    /// 15: the old store is opened again only when the mirror has reached its goal.
    DrainBeforeReopen,
    /// 15: the goal is the new store's last revision when its epoch is over.
    GoalAfterFence,
    /// The mirror compares its position, and the fence, in the transaction of what it replays.
    MirrorComparesPosition,
    /// Behind a rollback that was called off, the mirror makes the position its own before anything else,
    /// with its epoch, and shuts the fence if it is open: a member that still believes in the rollback may
    /// have opened the old store, and cannot do so any more.
    MirrorTakesOver,
    /// 16: the state moves by compare-and-put only.
    StateByCompareAndPut,
    /// 17: after a rollback the old store's revisions are shown above all published ones.
    RevisionsOffset,
    /// An open fence names the epoch it is open for, and members of earlier ones are refused.
    FenceNamesEpoch,
    /// 19: copy-up makes no event.
    CopyUpIsSilent,
    /// The normal phase begins only when the backfill is complete.
    SwitchAfterBackfill,
    /// Once everything is claimed, keys that are new need no claim, and so the overlay asks the old
    /// store about nothing any more.
    AllClaimedEndsOverlay,
    /// What a member remembers of claims and frontiers ends with the epoch.
    MemoryEndsWithEpoch,
    /// Claims and frontiers of a migration that was rolled back are removed before the next begins.
    LeftoversRemoved,
    /// The fence stays in the old store when the migration is settled: a member that was cut off
    /// since the passthrough phase may still reach that store.
    FenceOutlivesSettle,
}

impl Rule {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::FenceGuardsWrites,
        Self::FenceGuardsReads,
        Self::BaseAfterFence,
        Self::CopyUpIfUnclaimed,
        Self::BackfillIfUnclaimed,
        Self::FrontierWithData,
        Self::WhiteoutsKept,
        Self::CopyUpBeforeCompare,
        Self::DeleteLeavesWhiteout,
        Self::ExpiryLeavesWhiteout,
        Self::OldBeforeNew,
        Self::LeasesBeforeOpen,
        Self::LeasedAsOfBase,
        Self::LeasesHandedBack,
        Self::EpochGuardsWrites,
        Self::EpochGuardsReads,
        Self::EpochGuardsExpiry,
        Self::DrainBeforeReopen,
        Self::GoalAfterFence,
        Self::MirrorComparesPosition,
        Self::MirrorTakesOver,
        Self::StateByCompareAndPut,
        Self::RevisionsOffset,
        Self::FenceNamesEpoch,
        Self::CopyUpIsSilent,
        Self::SwitchAfterBackfill,
        Self::AllClaimedEndsOverlay,
        Self::MemoryEndsWithEpoch,
        Self::LeftoversRemoved,
        Self::FenceOutlivesSettle,
    ];
}

/// The rules that hold: all, or all but one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    off: Option<Rule>,
}

impl Rules {
    pub(crate) const ALL: Self = Self { off: None };

    pub(crate) fn without(rule: Rule) -> Self {
        Self { off: Some(rule) }
    }

    pub(crate) fn hold(self, rule: Rule) -> bool {
        self.off != Some(rule)
    }
}

//! The scenarios: each is explored to the end, and together they show every rule to be needed.

use crate::record::Phase;
use crate::rules::Rule;
use crate::scenario::{Ask, Scenario};
use crate::spec::Key::{A, B};
use crate::transition::Step;

/// Passthrough to Migration.
const START: &[Step] = &[
    Step::Start,
    Step::Fence,
    Step::TakeBase,
    Step::CopyLeased,
    Step::Open,
];
/// Migration to Normal, and back while that is asked for.
const SWITCH: &[Step] = &[Step::Switch, Step::SwitchBack];
/// Migration to Passthrough.
const ROLLBACK: &[Step] = &[Step::Rollback, Step::Reopen, Step::Resume];
/// The same, from Normal too.
const SWITCH_ROLLBACK: &[Step] = &[Step::Switch, Step::Rollback, Step::Reopen, Step::Resume];
/// The same from Migration, and what happens when it is called off.
const CALLED_OFF: &[Step] = &[
    Step::Rollback,
    Step::Reopen,
    Step::Resume,
    Step::CallOff,
    Step::TakeOver,
];
/// Round and round.
const AGAIN: &[Step] = &[
    Step::Start,
    Step::Fence,
    Step::TakeBase,
    Step::CopyLeased,
    Step::Open,
    Step::Rollback,
    Step::Reopen,
    Step::Resume,
    Step::Wipe,
];
/// From the first phase to the last.
const SETTLE: &[Step] = &[
    Step::Start,
    Step::Fence,
    Step::TakeBase,
    Step::CopyLeased,
    Step::Open,
    Step::Switch,
    Step::Settle,
    Step::DropClaims,
];

const ANYTHING: &[Ask] = &[
    Ask::Get(A),
    Ask::Range,
    Ask::Put(A),
    Ask::Put(B),
    Ask::Delete(A),
    Ask::Delete(B),
    Ask::Swap(A),
    Ask::Create(A),
    Ask::Move,
];
const SIMPLE: &[Ask] = &[Ask::Get(A), Ask::Put(A), Ask::Put(B), Ask::Delete(A)];
const CHANGES: &[Ask] = &[Ask::Put(A), Ask::Put(B), Ask::Delete(A), Ask::Delete(B)];

/// The migration starts under members that pass requests through, with a lease that may run out.
const THE_START: Scenario = Scenario {
    name: "the start",
    begin: Phase::Passthrough,
    leased: true,
    asks: [(SIMPLE, 2), (SIMPLE, 1)],
    workers: 1,
    mirrors: 0,
    steps: START,
    epochs: 3,
};

/// Every kind of request beside two workers of the backfill.
const THE_OVERLAY: Scenario = Scenario {
    name: "the overlay",
    begin: Phase::Migration,
    leased: false,
    asks: [(ANYTHING, 2), (ANYTHING, 1)],
    workers: 2,
    mirrors: 0,
    steps: SWITCH,
    epochs: 5,
};

/// A range is read from both stores while the mirror writes to the old one.
const A_RANGE: Scenario = Scenario {
    name: "a range beside the mirror",
    begin: Phase::Migration,
    leased: false,
    asks: [(&[Ask::Range], 1), (CHANGES, 3)],
    workers: 0,
    mirrors: 1,
    steps: &[],
    epochs: 3,
};

/// To the normal phase and back, with a key that only the new store ever had.
const THERE_AND_BACK: Scenario = Scenario {
    name: "there and back",
    begin: Phase::Migration,
    leased: false,
    asks: [(&[Ask::Get(B)], 1), (&[Ask::Put(B), Ask::Delete(B)], 2)],
    workers: 1,
    mirrors: 1,
    steps: SWITCH,
    epochs: 5,
};

/// A leased key on the way back.
const A_LEASE: Scenario = Scenario {
    name: "a lease on the way back",
    begin: Phase::Migration,
    leased: true,
    asks: [(SIMPLE, 2), (SIMPLE, 2)],
    workers: 0,
    mirrors: 1,
    steps: ROLLBACK,
    epochs: 5,
};

/// Back to Passthrough, from Migration and from Normal.
const THE_WAY_BACK: Scenario = Scenario {
    name: "the way back",
    begin: Phase::Migration,
    leased: false,
    asks: [
        (&[Ask::Get(A), Ask::Put(A)], 2),
        (&[Ask::Put(A), Ask::Delete(A)], 1),
    ],
    workers: 1,
    mirrors: 1,
    steps: SWITCH_ROLLBACK,
    epochs: 6,
};

/// A rollback is called off, also when the old store is open already, and another one is tried.
const A_CHANGE_OF_MIND: Scenario = Scenario {
    name: "a change of mind",
    begin: Phase::Migration,
    leased: false,
    asks: [(&[Ask::Put(A)], 1), (&[Ask::Delete(A)], 1)],
    workers: 0,
    mirrors: 1,
    steps: CALLED_OFF,
    epochs: 6,
};

/// A mirror took over from another one that had only stalled.
const TWO_MIRRORS: Scenario = Scenario {
    name: "two mirrors",
    begin: Phase::Migration,
    leased: false,
    asks: [(&[Ask::Put(A)], 1), (&[Ask::Put(A), Ask::Delete(A)], 2)],
    workers: 0,
    mirrors: 2,
    steps: ROLLBACK,
    epochs: 5,
};

/// A migration, a rollback, and another migration.
const A_SECOND_ONE: Scenario = Scenario {
    name: "a second migration",
    begin: Phase::Passthrough,
    leased: false,
    asks: [(&[Ask::Get(A), Ask::Put(A)], 2), (&[Ask::Put(A)], 1)],
    workers: 1,
    mirrors: 1,
    steps: AGAIN,
    epochs: 7,
};

/// All the way.
const THE_END: Scenario = Scenario {
    name: "to the end",
    begin: Phase::Passthrough,
    leased: false,
    asks: [(SIMPLE, 1), (SIMPLE, 2)],
    workers: 1,
    mirrors: 0,
    steps: SETTLE,
    epochs: 5,
};

/// Every scenario.
pub const SCENARIOS: &[Scenario] = &[
    THE_START,
    THE_OVERLAY,
    A_RANGE,
    THERE_AND_BACK,
    A_LEASE,
    THE_WAY_BACK,
    A_CHANGE_OF_MIND,
    TWO_MIRRORS,
    A_SECOND_ONE,
    THE_END,
];

/// The scenario that goes wrong without `rule`.
pub(crate) fn in_need_of(rule: Rule) -> &'static Scenario {
    match rule {
        Rule::FenceGuardsWrites
        | Rule::FenceGuardsReads
        | Rule::BaseAfterFence
        | Rule::LeasesBeforeOpen
        | Rule::LeasedAsOfBase => &THE_START,
        Rule::CopyUpIfUnclaimed
        | Rule::BackfillIfUnclaimed
        | Rule::FrontierWithData
        | Rule::WhiteoutsKept
        | Rule::CopyUpBeforeCompare
        | Rule::DeleteLeavesWhiteout
        | Rule::CopyUpIsSilent
        | Rule::SwitchAfterBackfill => &THE_OVERLAY,
        Rule::OldBeforeNew => &A_RANGE,
        Rule::AllClaimedEndsOverlay => &THERE_AND_BACK,
        Rule::ExpiryLeavesWhiteout | Rule::LeasesHandedBack | Rule::EpochGuardsExpiry => &A_LEASE,
        Rule::EpochGuardsWrites
        | Rule::EpochGuardsReads
        | Rule::DrainBeforeReopen
        | Rule::GoalAfterFence
        | Rule::StateByCompareAndPut
        | Rule::RevisionsOffset => &THE_WAY_BACK,
        Rule::MirrorTakesOver => &A_CHANGE_OF_MIND,
        Rule::MirrorComparesPosition => &TWO_MIRRORS,
        Rule::FenceNamesEpoch | Rule::MemoryEndsWithEpoch | Rule::LeftoversRemoved => &A_SECOND_ONE,
        Rule::FenceOutlivesSettle => &THE_END,
    }
}

//! A member of the fleet: what it believes, and the request of a client that it works on. It may be
//! cut off or stopped at any point: then it acts later, on what it knew.

use crate::new::{Slot, view};
use crate::record::{Phase, Record, Stage};
use crate::rules::{Rule, Rules};
use crate::spec::{Answer, Broken, KEYS, Key, NO_WRITES, Pairs, Request, Revision};
use crate::state::State;

/// One member.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Member {
    /// The state record as it was when this member last read it.
    pub(crate) known: Record,
    /// The new store's revision then. Kept only where a broken rule makes use of it.
    pub(crate) saw_revision: Revision,
    /// Keys about which it asks the new store alone, since it saw their claims or the frontier.
    pub(crate) decided: [bool; 2],
    /// A request between two of its steps.
    pub(crate) pending: Option<Pending>,
    /// Requests that its clients have left.
    pub(crate) requests: u8,
}

/// A request of which the first transaction is done.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Pending {
    request: Request,
    saw: Saw,
    /// What the keys held since a read began. It may answer any of these.
    moments: Vec<Pairs>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Saw {
    /// The old store's pairs, of keys that are not decided.
    Old(Pairs),
    /// A snapshot of the new store. Only without [`Rule::OldBeforeNew`].
    New([Slot; 2], Revision),
    /// That a comparison holds, or not. Only without [`Rule::CopyUpBeforeCompare`].
    Outcome(bool),
}

/// Why a step did not end as it should.
pub(crate) enum Stop {
    /// The store refuses a member that is behind. It did not happen, and the router tries again.
    Refused,
    Broken(Broken),
}

impl From<Broken> for Stop {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

impl Member {
    pub(crate) fn new(known: Record, requests: u8) -> Self {
        Self {
            known,
            saw_revision: 0,
            decided: [false; 2],
            pending: None,
            requests,
        }
    }

    pub(crate) fn learn(&mut self, record: Record, rules: Rules) {
        if self.known.epoch != record.epoch && rules.hold(Rule::MemoryEndsWithEpoch) {
            self.decided = [false; 2];
        }
        self.known = record;
    }

    pub(crate) fn serves(&self) -> bool {
        self.known.stage == Stage::Open
    }

    fn decides_by_new(&self, key: Key, rules: Rules) -> bool {
        let all = self.known.all_claimed && rules.hold(Rule::AllClaimedEndsOverlay);
        all || self.decided[key as usize]
    }

    fn merge(&self, old: Pairs, slots: [Slot; 2], rules: Rules) -> Pairs {
        let mut merged = view(old, slots);
        for key in KEYS
            .into_iter()
            .filter(|key| self.decides_by_new(*key, rules))
        {
            merged[key as usize] = slots[key as usize].pair();
        }
        merged
    }
}

impl Pending {
    /// Clients may have seen this from now on.
    pub(crate) fn note(&mut self, pairs: Pairs) {
        if self.request.is_read()
            && let Err(at) = self.moments.binary_search(&pairs)
        {
            self.moments.insert(at, pairs);
        }
    }
}

/// The first step of `request`, and often the only one.
pub(crate) fn begin(
    state: &mut State,
    m: usize,
    request: Request,
    rules: Rules,
) -> Result<(), Stop> {
    match state.members[m].known.phase {
        Phase::Passthrough => pass_through(state, m, request, rules)?,
        Phase::Migration => {
            let member = &state.members[m];
            let open = KEYS.map(|key| request.touches(key) && !member.decides_by_new(key, rules));
            if open != [false; 2] {
                return begin_on_both(state, m, request, open, rules);
            }
            run_on_new(state, m, request, [None; 2], rules)?;
        }
        Phase::Normal | Phase::Settled => run_on_new(state, m, request, [None; 2], rules)?,
    }
    state.members[m].requests -= 1;
    Ok(())
}

/// The fence and the data are in one transaction, or in one snapshot.
fn pass_through(state: &mut State, m: usize, request: Request, rules: Rules) -> Result<(), Stop> {
    let known = state.members[m].known;
    let fence = state.old.fence;
    let admitted = if rules.hold(Rule::FenceNamesEpoch) {
        state.old.is_open_for(known.epoch)
    } else {
        !fence.shut
    };
    let guard = if request.is_read() {
        Rule::FenceGuardsReads
    } else {
        Rule::FenceGuardsWrites
    };
    if rules.hold(guard) && !admitted {
        return Err(Stop::Refused);
    }
    let (at, answer, writes) = state.old.run(request, known.offset);
    Ok(state.spec.check(request, at, answer, &writes)?)
}

fn begin_on_both(
    state: &mut State,
    m: usize,
    request: Request,
    open: [bool; 2],
    rules: Rules,
) -> Result<(), Stop> {
    let saw = if request.is_read() && !rules.hold(Rule::OldBeforeNew) {
        state.assert_epoch(m, Rule::EpochGuardsReads, rules)?;
        Saw::New(state.new.slots, state.new.revision)
    } else {
        let old = state.old.pairs;
        Saw::Old([0, 1].map(|k| old[k].filter(|_| open[k])))
    };
    let mut pending = Pending {
        request,
        saw,
        moments: Vec::new(),
    };
    pending.note(state.spec.pairs);
    state.members[m].pending = Some(pending);
    Ok(())
}

/// The next step of the pending request.
pub(crate) fn go_on(state: &mut State, m: usize, rules: Rules) -> Result<(), Stop> {
    let Some(pending) = state.members[m].pending.take() else {
        return Ok(());
    };
    let request = pending.request;
    match pending.saw {
        Saw::Old(old) if request.is_read() => {
            state.assert_epoch(m, Rule::EpochGuardsReads, rules)?;
            let (slots, at) = (state.new.slots, state.new.revision);
            answer_read(state, m, &pending, (old, slots, at), rules)?;
            for key in KEYS.into_iter().filter(|key| request.touches(*key)) {
                state.members[m].decided[key as usize] |= slots[key as usize].is_claimed();
            }
        }
        Saw::New(slots, at) => {
            answer_read(state, m, &pending, (state.old.pairs, slots, at), rules)?;
        }
        Saw::Old(old) => match request {
            Request::Swap(key, expected) if !rules.hold(Rule::CopyUpBeforeCompare) => {
                state.assert_epoch(m, Rule::EpochGuardsReads, rules)?;
                let now = state.members[m].merge(old, state.new.slots, rules);
                let saw = Saw::Outcome(now[key as usize] == expected);
                state.members[m].pending = Some(Pending { saw, ..pending });
                return Ok(());
            }
            _ => {
                run_on_new(state, m, request, old, rules)?;
                for key in KEYS {
                    state.members[m].decided[key as usize] |= old[key as usize].is_some();
                }
            }
        },
        Saw::Outcome(holds) => write_unseen(state, m, request, holds, rules)?,
    }
    state.members[m].requests -= 1;
    Ok(())
}

/// Answers a read from both stores. Any moment since it began will do.
fn answer_read(
    state: &mut State,
    m: usize,
    pending: &Pending,
    (old, slots, at): (Pairs, [Slot; 2], Revision),
    rules: Rules,
) -> Result<(), Stop> {
    let seen = state.members[m].merge(old, slots, rules);
    let (answer, _) = pending.request.evaluate(seen, at);
    let mut moments = pending.moments.iter();
    if !moments.any(|pairs| pending.request.evaluate(*pairs, at).0 == answer) {
        return Err(Broken::Read.into());
    }
    state.spec.published = state.spec.published.max(at);
    Ok(())
}

/// Copies up what was seen in the old store, and runs the whole request on the new one: one
/// transaction, that asserts the epoch.
fn run_on_new(
    state: &mut State,
    m: usize,
    request: Request,
    copies: Pairs,
    rules: Rules,
) -> Result<(), Stop> {
    let guard = if request.is_read() {
        Rule::EpochGuardsReads
    } else {
        Rule::EpochGuardsWrites
    };
    state.assert_epoch(m, guard, rules)?;
    let events = state
        .new
        .copy_up(copies, rules.hold(Rule::CopyUpIfUnclaimed), rules);
    if events != NO_WRITES {
        return Err(Broken::Event.into());
    }
    let (at, answer, writes) = state.new.run(request, rules);
    Ok(state.spec.check(request, at, answer, &writes)?)
}

/// A compare-and-swap whose comparison was done outside the new store.
fn write_unseen(
    state: &mut State,
    m: usize,
    request: Request,
    holds: bool,
    rules: Rules,
) -> Result<(), Stop> {
    state.assert_epoch(m, Rule::EpochGuardsWrites, rules)?;
    let Request::Swap(key, _) = request else {
        return Ok(());
    };
    let (at, writes) = if holds {
        let (at, _, writes) = state.new.run(Request::Put(key), rules);
        (at, writes)
    } else {
        (state.new.revision, NO_WRITES)
    };
    Ok(state
        .spec
        .check(request, at, Answer::Succeeded(holds), &writes)?)
}

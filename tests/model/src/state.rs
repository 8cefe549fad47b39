//! Everything that there is, and what must hold of it.

use crate::backfill::Copying;
use crate::member::{Member, Stop};
use crate::mirror::Replay;
use crate::new::{New, view};
use crate::old::Old;
use crate::record::{Phase, Stage};
use crate::rules::{Rule, Rules};
use crate::spec::{Broken, Pairs, Spec};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) old: Old,
    pub(crate) new: New,
    pub(crate) members: [Member; 2],
    pub(crate) workers: [Option<Copying>; 2],
    pub(crate) mirrors: [Option<Replay>; 2],
    pub(crate) spec: Spec,
    /// A promise that the last step has broken.
    pub(crate) broken: Option<Broken>,
}

impl State {
    /// The new store compares the epoch in the transaction or snapshot. A settled one has none to
    /// compare, and refuses who still asserts one.
    pub(crate) fn assert_epoch(&self, m: usize, guard: Rule, rules: Rules) -> Result<(), Stop> {
        let (known, record) = (&self.members[m].known, &self.new.record);
        if rules.hold(guard) && known.epoch != record.epoch {
            return Err(Stop::Refused);
        }
        Ok(())
    }

    /// The old store still decides, or decides again. Not yet when a rollback has opened it: that may be called
    /// off.
    pub(crate) fn old_decides(&self) -> bool {
        let record = &self.new.record;
        !self.old.fence.shut
            && (record.is(Phase::Passthrough, Stage::Open)
                || record.is(Phase::Migration, Stage::Fencing))
    }

    /// What clients would read now. Nothing while they wait for a transition, and where a promise
    /// was broken already.
    pub(crate) fn view(&self) -> Option<Pairs> {
        let record = &self.new.record;
        match record.phase {
            _ if self.broken.is_some() => None,
            _ if self.old_decides() => Some(self.old.pairs),
            Phase::Normal | Phase::Settled => Some(self.new.pairs()),
            Phase::Migration if record.stage == Stage::Open && record.all_claimed => {
                Some(self.new.pairs())
            }
            Phase::Migration if record.stage == Stage::Open => {
                Some(view(self.old.pairs, self.new.slots))
            }
            Phase::Migration | Phase::Passthrough => None,
        }
    }

    /// No acknowledged write is lost.
    pub(crate) fn nothing_is_lost(&self) -> bool {
        self.view().is_none_or(|view| {
            let mut keys = view.iter().zip(&self.spec.pairs);
            keys.all(|(seen, spec)| spec.is_none() || seen == spec)
        })
    }

    /// No deleted or expired key is back.
    pub(crate) fn nothing_comes_back(&self) -> bool {
        self.view().is_none_or(|view| {
            let mut keys = view.iter().zip(&self.spec.pairs);
            keys.all(|(seen, spec)| spec.is_some() || seen.is_none())
        })
    }
}

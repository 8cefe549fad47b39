//! The bounds within which everything is explored.

use crate::member::Member;
use crate::new::{New, Slot};
use crate::old::{Fence, Old};
use crate::record::{Epoch, Phase, Record};
use crate::rules::Rules;
use crate::spec::{Key, Pair, Request, Spec};
use crate::state::State;
use crate::transition::{Step, take};

/// What a client may ask. Comparisons are with what it could have read just before.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ask {
    Get(Key),
    Range,
    Put(Key),
    Delete(Key),
    Swap(Key),
    Create(Key),
    Move,
}

impl Ask {
    pub(crate) fn request(self, spec: &Spec) -> Request {
        match self {
            Self::Get(key) => Request::Get(key),
            Self::Range => Request::Range,
            Self::Put(key) => Request::Put(key),
            Self::Delete(key) => Request::Delete(key),
            Self::Swap(key) => Request::Swap(key, spec.pairs[key as usize]),
            Self::Create(key) => Request::Swap(key, None),
            Self::Move => Request::Move(spec.pairs[Key::A as usize]),
        }
    }
}

/// Who is there, and how much they may do.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// What it is about.
    pub name: &'static str,
    /// Where it begins: in Passthrough, or in Migration when that has just opened.
    pub(crate) begin: Phase,
    /// Key A is attached to a lease. Key B is never there in the beginning.
    pub(crate) leased: bool,
    /// What the clients of each member ask, and how often.
    pub(crate) asks: [(&'static [Ask], u8); 2],
    pub(crate) workers: usize,
    pub(crate) mirrors: usize,
    pub(crate) steps: &'static [Step],
    /// No epoch begins after this one.
    pub(crate) epochs: Epoch,
}

impl Scenario {
    pub(crate) fn first(&self) -> State {
        let pairs = [
            Some(Pair {
                written: 1,
                leased: self.leased,
            }),
            None,
        ];
        let fence = Fence {
            epoch: 1,
            shut: false,
            at: 0,
            after: 0,
        };
        let old = Old {
            pairs,
            revision: 1,
            fence,
            at_fence: [None; 2],
            mirrored: 0,
            lease: self.leased,
        };
        let new = New {
            record: Record::FIRST,
            slots: [Slot::Unclaimed; 2],
            revision: 0,
            log: Vec::new(),
            lease: false,
            frontier: [false; 2],
        };
        let members = self
            .asks
            .map(|(_, requests)| Member::new(Record::FIRST, requests));
        let spec = Spec {
            pairs,
            published: 1,
        };
        let mut state = State {
            old,
            new,
            members,
            workers: [None; 2],
            mirrors: [None, None],
            spec,
            broken: None,
        };
        if self.begin == Phase::Migration {
            for step in [
                Step::Start,
                Step::Fence,
                Step::TakeBase,
                Step::CopyLeased,
                Step::Open,
            ] {
                let _ = take(&mut state, 0, step, Rules::ALL);
            }
            state.members[1].learn(state.new.record, Rules::ALL);
        }
        state
    }

    /// Members can be told apart by nothing but their names.
    pub(crate) fn is_symmetric(&self) -> bool {
        let [(a, n), (b, m)] = self.asks;
        std::ptr::eq(a, b) && n == m
    }
}

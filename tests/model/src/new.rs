//! The new store: keys with claims, the frontier, the state record, the log that watchers and the
//! mirror read. Every function is one transaction.

use crate::record::Record;
use crate::rules::{Rule, Rules};
use crate::spec::{Answer, KEYS, NO_WRITES, Pair, Pairs, Request, Revision, Writes, expire};

/// What the new store knows of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Slot {
    Unclaimed,
    Live { pair: Pair, claimed: bool },
    Whiteout,
}

impl Slot {
    pub(crate) fn pair(self) -> Option<Pair> {
        match self {
            Self::Live { pair, .. } => Some(pair),
            Self::Unclaimed | Self::Whiteout => None,
        }
    }

    pub(crate) fn is_claimed(self) -> bool {
        matches!(self, Self::Live { claimed: true, .. } | Self::Whiteout)
    }
}

/// The one rule: `view(key) = if new.claimed(key) { new.get(key) } else { old.get(key) }`.
pub(crate) fn view(old: Pairs, slots: [Slot; 2]) -> Pairs {
    [0, 1].map(|k| {
        if slots[k].is_claimed() {
            slots[k].pair()
        } else {
            old[k]
        }
    })
}

/// A change that watchers are told of and the mirror replays.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Change {
    pub(crate) at: Revision,
    pub(crate) writes: Writes,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct New {
    pub(crate) record: Record,
    pub(crate) slots: [Slot; 2],
    pub(crate) revision: Revision,
    /// What the mirror has not replayed yet.
    pub(crate) log: Vec<Change>,
    pub(crate) lease: bool,
    /// Each key is a shard of the backfill; this one was copied.
    pub(crate) frontier: [bool; 2],
}

impl New {
    pub(crate) fn pairs(&self) -> Pairs {
        self.slots.map(Slot::pair)
    }

    /// Copies up what was seen in the old store. Answers the events that it made: none.
    pub(crate) fn copy_up(&mut self, copies: Pairs, if_unclaimed: bool, rules: Rules) -> Writes {
        let mut events = NO_WRITES;
        let before = self.slots;
        for key in KEYS {
            let slot = &mut self.slots[key as usize];
            if let Some(pair) = copies[key as usize]
                && (!slot.is_claimed() || !if_unclaimed)
            {
                *slot = Slot::Live {
                    pair,
                    claimed: true,
                };
                if !rules.hold(Rule::CopyUpIsSilent) {
                    events[key as usize] = Some(Some(pair));
                }
            }
        }
        // No client is told of it, but where the store is an etcd it takes a revision.
        self.revision += u8::from(self.slots != before);
        events
    }

    /// A request of a client. Answers at which revision, and what was written.
    pub(crate) fn run(&mut self, request: Request, rules: Rules) -> (Revision, Answer, Writes) {
        let (answer, writes) = request.evaluate(self.pairs(), self.revision + 1);
        self.commit(writes, rules.hold(Rule::DeleteLeavesWhiteout));
        (self.revision, answer, writes)
    }

    /// The lease ends.
    pub(crate) fn expire(&mut self, rules: Rules) -> Writes {
        let writes = expire(self.pairs());
        self.lease = false;
        self.commit(writes, rules.hold(Rule::ExpiryLeavesWhiteout));
        writes
    }

    fn commit(&mut self, writes: Writes, whiteouts: bool) {
        if writes == NO_WRITES {
            return;
        }
        self.revision += 1;
        self.log.push(Change {
            at: self.revision,
            writes,
        });
        // Without `claims` in the line, keys that are new to both stores get no claim.
        let claims = !self.record.all_claimed;
        for (slot, write) in self.slots.iter_mut().zip(writes) {
            let claimed = slot.is_claimed();
            *slot = match write {
                None => continue,
                Some(Some(pair)) => Slot::Live {
                    pair,
                    claimed: claimed || claims,
                },
                Some(None) if claimed && whiteouts => Slot::Whiteout,
                Some(None) => Slot::Unclaimed,
            };
        }
    }

    /// Removes what a migration left here.
    pub(crate) fn wipe(&mut self) {
        self.slots = [Slot::Unclaimed; 2];
        self.frontier = [false; 2];
        self.log.clear();
        self.lease = false;
    }
}

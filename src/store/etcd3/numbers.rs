//! From etcd's numbers to those that clients see, and back. Pure.
//!
//! etcd assigns revisions by itself, so clients see them shifted by an offset that is fixed when the
//! line is set. Keys that were copied up show the numbers that they had in the old store for as long
//! as they live on: these numbers stand in the key's claim record.
//!
//! An old store that goes into service again gets another offset for what follows. What its clients have
//! seen before keeps its own: so there is one [`Era`] for each time of service. What comes between two of
//! them was replayed, and has its numbers in claim records.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::types::{CompareResult, KeyValue, Revision};

/// How the store's revisions stand to those that clients see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    /// The last revision that belongs to the old store.
    pub(super) base: Revision,
    /// What is added to etcd's revisions. May be negative: the store was used before.
    pub(super) offset: i64,
    /// etcd's revision behind which that holds.
    pub(super) after: i64,
    /// The times of service before, oldest first.
    pub(super) earlier: Vec<Era>,
}

/// A time in which the store served clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Era {
    /// It began behind this revision of etcd's,
    pub(super) after: i64,
    /// and ended with this one.
    pub(super) through: i64,
    /// What is added to etcd's revisions.
    pub(super) offset: i64,
}

/// What a claim record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claimed {
    /// The key was written in this store, not copied up.
    Here,
    /// It was copied up.
    Copied(Copied),
}

/// The numbers of a key that was copied up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copied {
    /// etcd's revision of the copy-up: the create revision, in etcd's terms, of the life of the key
    /// that came from the old store. Later lives have other ones.
    pub(super) at: i64,
    /// What the old store said.
    pub(super) create: Revision,
    /// What the old store said.
    pub(super) modified: Revision,
    /// What the old store said.
    pub(super) version: i64,
}

impl Numbers {
    /// The revision that clients see for one of etcd's.
    pub(super) fn visible(&self, etcd: i64) -> Revision {
        let era = self.eras().find(|era| etcd <= era.through);
        // Of what comes between two eras clients see only where it leads to.
        era.map_or(Revision(etcd), |era| {
            Revision(etcd.max(era.after) + era.offset)
        })
    }

    /// etcd's revision for one at or above the base, as clients see it.
    pub(super) fn etcd(&self, visible: Revision) -> i64 {
        visible.0.saturating_sub(self.offset)
    }

    /// Whether etcd's revision lies between two times of service: what was written then was replayed.
    pub(super) fn is_between_eras(&self, etcd: i64) -> bool {
        let ended = self.eras().take_while(|era| era.through < etcd).count();
        ended > 0 && self.eras().nth(ended).is_some_and(|era| etcd <= era.after)
    }

    fn eras(&self) -> impl Iterator<Item = Era> {
        let now = Era {
            after: self.after,
            through: i64::MAX,
            offset: self.offset,
        };
        self.earlier.iter().copied().chain([now])
    }

    /// etcd's revision that clients see as this one; else the last one (or 0) that they see as a lower
    /// one.
    fn place(&self, visible: Revision) -> Result<i64, i64> {
        let mut below = 0;
        for era in self.eras() {
            let etcd = visible.0.saturating_sub(era.offset);
            if etcd <= era.after {
                break;
            }
            if etcd <= era.through {
                return Ok(etcd);
            }
            below = era.through;
        }
        Err(below)
    }

    /// Gives a pair that has etcd's numbers those that clients see.
    pub(super) fn translate(&self, kv: &mut KeyValue, claim: Claimed) {
        let (created, modified) = (kv.create_revision.0, kv.mod_revision.0);
        kv.mod_revision = self.visible(modified);
        kv.create_revision = self.visible(created);
        if let Claimed::Copied(copied) = claim
            && claim.is_of_life(created)
        {
            kv.create_revision = copied.create;
            kv.version += copied.version - 1;
            if modified == created {
                kv.mod_revision = copied.modified;
            }
        }
    }

    /// What a comparison of a key's create or mod revision with `operand` (above 0), as clients see
    /// it, is in etcd's numbers.
    ///
    /// Clients see a key's number at 0 (it does not exist), at the copied number, and at those of the times
    /// of service behind it. That maps onto etcd's numbers in the same order: 0, the revision of the
    /// copy-up, and the revisions after it. So each comparison is one with a threshold; an operand between
    /// the steps equals nothing.
    pub(super) fn rewrite(
        &self,
        claim: Claimed,
        number: impl Fn(&Copied) -> Revision,
        result: CompareResult,
        operand: Revision,
    ) -> Rewritten {
        use CompareResult::{Equal, Greater, Less, NotEqual};
        let place = self.place(operand);
        // The last of etcd's numbers that stands below the operand.
        let below = match claim {
            Claimed::Copied(copied) => {
                let copied_number = number(&copied);
                if operand == copied_number {
                    return Rewritten::Compare(result, copied.at);
                }
                match place {
                    _ if operand < copied_number => copied.at - 1,
                    Ok(etcd) if etcd > copied.at => return Rewritten::Compare(result, etcd),
                    Ok(_) => copied.at,
                    Err(below) => below.max(copied.at),
                }
            }
            Claimed::Here => match place {
                Ok(etcd) => return Rewritten::Compare(result, etcd),
                Err(below) => below,
            },
        };
        match result {
            Equal => Rewritten::Never,
            NotEqual => Rewritten::Always,
            Greater => Rewritten::Compare(Greater, below),
            Less => Rewritten::Compare(Less, below + 1),
        }
    }
}

/// A comparison in etcd's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rewritten {
    /// With this operand.
    Compare(CompareResult, i64),
    /// It holds whatever happens.
    Always,
    /// It cannot hold.
    Never,
}

impl Claimed {
    /// Whether it is about the life of the key that began at this revision of etcd's.
    pub(super) fn is_of_life(self, created: i64) -> bool {
        matches!(self, Self::Copied(copied) if copied.at == created)
    }

    /// Whether a pair that has etcd's numbers was copied up and has not changed since.
    pub(super) fn is_of_copy(self, kv: &KeyValue) -> bool {
        let last_change = kv.mod_revision.0;
        matches!(self, Self::Copied(copied) if copied.at == last_change)
    }

    /// Reads a claim record: its value, and etcd's revision of its (only) write.
    pub(super) fn read(value: &[u8], at: i64) -> Option<Self> {
        if value.is_empty() {
            return Some(Self::Here);
        }
        let mut numbers = std::str::from_utf8(value)
            .ok()?
            .split(' ')
            .map(str::parse::<i64>);
        let mut next = || numbers.next()?.ok();
        Some(Self::Copied(Copied {
            create: Revision(next()?),
            modified: Revision(next()?),
            version: next()?,
            at,
        }))
    }

    /// The value of the claim record of a key that was written here.
    pub(super) const fn here() -> Bytes {
        Bytes::new()
    }

    /// The value of the claim record of a key that is copied up: its create revision, mod revision
    /// and version.
    pub(super) fn copied(kv: &KeyValue) -> Bytes {
        format!("{} {} {}", kv.create_revision, kv.mod_revision, kv.version).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The old store ended at 100, the line was set at etcd's revision 10.
    const NUMBERS: Numbers = Numbers {
        base: Revision(100),
        offset: 90,
        after: 0,
        earlier: Vec::new(),
    };
    const COPIED: Copied = Copied {
        at: 20,
        create: Revision(40),
        modified: Revision(60),
        version: 7,
    };

    fn pair(create: i64, modified: i64, version: i64) -> KeyValue {
        KeyValue {
            key: "k".into(),
            create_revision: Revision(create),
            mod_revision: Revision(modified),
            version,
            ..KeyValue::default()
        }
    }

    #[test]
    fn a_copied_key_shows_its_old_numbers_until_it_changes_or_dies() {
        for (claim, etcd, seen) in [
            (Claimed::Copied(COPIED), pair(20, 20, 1), pair(40, 60, 7)),
            (Claimed::Copied(COPIED), pair(20, 33, 3), pair(40, 123, 9)),
            (Claimed::Copied(COPIED), pair(35, 35, 1), pair(125, 125, 1)),
            (Claimed::Here, pair(20, 33, 2), pair(110, 123, 2)),
        ] {
            let mut kv = etcd.clone();
            NUMBERS.translate(&mut kv, claim);
            assert_eq!(kv, seen, "{etcd:?}");
        }
    }

    #[test]
    fn claim_records_are_read_as_they_are_written() {
        let value = Claimed::copied(&pair(40, 60, 7));
        assert_eq!(Claimed::read(&value, 20), Some(Claimed::Copied(COPIED)));
        assert_eq!(Claimed::read(&Claimed::here(), 9), Some(Claimed::Here));
        assert_eq!(Claimed::read(b"nonsense", 9), None);
    }

    /// The line was set at etcd's revision 190, since the store was used before.
    const USED_BEFORE: Numbers = Numbers {
        base: Revision(100),
        offset: -90,
        after: 190,
        earlier: Vec::new(),
    };

    #[test]
    fn numbers_at_the_ends_stay_there() {
        assert_eq!(USED_BEFORE.etcd(Revision(i64::MAX)), i64::MAX);
        assert_eq!(USED_BEFORE.place(Revision(i64::MAX)), Ok(i64::MAX));
        assert_eq!(NUMBERS.place(Revision(i64::MIN)), Err(0));
    }

    /// In service up to 12, up to 34 behind a line at 25, and again behind one at 45.
    fn resumed() -> Numbers {
        let era = |after, through, offset| Era {
            after,
            through,
            offset,
        };
        Numbers {
            base: Revision(120),
            offset: 75,
            after: 45,
            earlier: vec![era(0, 12, 0), era(25, 34, 55)],
        }
    }

    #[test]
    fn each_time_of_service_keeps_its_offset() {
        let numbers = resumed();
        for (etcd, seen) in [(1, 1), (12, 12), (26, 81), (34, 89), (46, 121), (60, 135)] {
            assert_eq!(numbers.visible(etcd), Revision(seen));
            assert_eq!(numbers.place(Revision(seen)), Ok(etcd));
            assert!(!numbers.is_between_eras(etcd), "{etcd}");
        }
        for (etcd, leads_to) in [(13, 80), (25, 80), (35, 120), (45, 120)] {
            assert_eq!(numbers.visible(etcd), Revision(leads_to));
            assert!(numbers.is_between_eras(etcd), "{etcd}");
        }
        for (seen, below) in [(13, 12), (80, 12), (90, 34), (120, 34)] {
            assert_eq!(numbers.place(Revision(seen)), Err(below));
        }
        assert_eq!(numbers.etcd(Revision(121)), 46);
        assert!(!NUMBERS.is_between_eras(3));
    }

    /// Every comparison with every operand, on every state that a key can be in, decided in the
    /// numbers that clients see and in etcd's.
    #[test]
    fn a_rewritten_comparison_decides_as_the_client_meant_it() {
        // etcd's create and mod revision, nothing where the key does not exist.
        let copied_states = [None, Some((20, 20)), Some((20, 33)), Some((35, 36))];
        let own_states = [None, Some((11, 11)), Some((20, 33))];
        check(&NUMBERS, Claimed::Copied(COPIED), &copied_states);
        check(&NUMBERS, Claimed::Here, &own_states);
        let copied_late = Copied { at: 195, ..COPIED };
        let late = [None, Some((195, 195)), Some((195, 223)), Some((225, 226))];
        check(&USED_BEFORE, Claimed::Copied(copied_late), &late);
        check(&USED_BEFORE, Claimed::Here, &late);
        let replayed = |at, create, modified| {
            Claimed::Copied(Copied {
                at,
                create: Revision(create),
                modified: Revision(modified),
                version: 7,
            })
        };
        let of_any_time = [
            None,
            Some((11, 12)),
            Some((12, 26)),
            Some((5, 50)),
            Some((27, 34)),
            Some((46, 46)),
        ];
        let of_first_replay = [
            None,
            Some((20, 20)),
            Some((20, 30)),
            Some((20, 50)),
            Some((27, 34)),
            Some((28, 50)),
            Some((46, 47)),
        ];
        let of_second_replay = [None, Some((40, 40)), Some((40, 46)), Some((50, 51))];
        check(&resumed(), Claimed::Here, &of_any_time);
        check(&resumed(), replayed(20, 9, 60), &of_first_replay);
        check(&resumed(), replayed(20, 60, 80), &of_first_replay);
        check(&resumed(), replayed(40, 9, 99), &of_second_replay);
        check(&resumed(), replayed(40, 99, 120), &of_second_replay);
    }

    fn check(numbers: &Numbers, claim: Claimed, states: &[Option<(i64, i64)>]) {
        let results = [
            CompareResult::Equal,
            CompareResult::Greater,
            CompareResult::Less,
            CompareResult::NotEqual,
        ];
        let operands = (1..140).chain([i64::MAX - 1, i64::MAX]);
        for state in states {
            let (create, modified) = state.unwrap_or_default();
            let mut seen = pair(create, modified, 1);
            if state.is_some() {
                numbers.translate(&mut seen, claim);
            }
            for (result, operand) in results
                .into_iter()
                .flat_map(|result| operands.clone().map(move |it| (result, Revision(it))))
            {
                let decide = |rewritten, number: i64| match rewritten {
                    Rewritten::Compare(result, operand) => result.accepts(number.cmp(&operand)),
                    Rewritten::Always => true,
                    Rewritten::Never => false,
                };
                let context = format!("{claim:?} {state:?} {result:?} {operand}");
                let on_create = numbers.rewrite(claim, |copied| copied.create, result, operand);
                assert_eq!(
                    decide(on_create, create),
                    result.accepts(seen.create_revision.cmp(&operand)),
                    "create: {context}"
                );
                let on_mod = numbers.rewrite(claim, |copied| copied.modified, result, operand);
                assert_eq!(
                    decide(on_mod, modified),
                    result.accepts(seen.mod_revision.cmp(&operand)),
                    "mod: {context}"
                );
            }
        }
    }
}

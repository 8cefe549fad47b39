//! From etcd's numbers to those that clients see, and back. Pure.
//!
//! etcd assigns revisions by itself, so clients see them shifted by an offset that is fixed when the
//! line is set. Keys that were copied up show the numbers that they had in the old store for as long
//! as they live on: these numbers stand in the key's claim record.

use bytes::Bytes;

use crate::types::{CompareResult, KeyValue, Revision};

/// How the store's revisions stand to those that clients see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    /// The last revision that belongs to the old store.
    pub(super) base: Revision,
    /// What is added to etcd's revisions. May be negative: the store was used before.
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
        Revision(etcd + self.offset)
    }

    /// etcd's revision for one that clients see.
    pub(super) fn etcd(&self, visible: Revision) -> i64 {
        visible.0 - self.offset
    }

    /// Gives a pair that has etcd's numbers those that clients see.
    pub(super) fn translate(&self, kv: &mut KeyValue, claim: Claimed) {
        let (created, modified) = (kv.create_revision.0, kv.mod_revision.0);
        kv.mod_revision = self.visible(modified);
        kv.create_revision = self.visible(created);
        if let Claimed::Copied(copied) = claim
            && copied.at == created
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
    /// Clients see a key's number at 0 (it does not exist), at the copied number, and at those above
    /// the base. That maps onto etcd's numbers in the same order: 0, the revision of the copy-up, and
    /// the revisions after it. So each comparison is one with a threshold; an operand between the
    /// steps equals nothing.
    pub(super) fn rewrite(
        &self,
        claim: Claimed,
        number: impl Fn(&Copied) -> Revision,
        result: CompareResult,
        operand: Revision,
    ) -> Rewritten {
        use CompareResult::{Equal, Greater, Less, NotEqual};
        let shifted = self.etcd(operand);
        // The last of etcd's numbers that stands below the operand.
        let below = match claim {
            Claimed::Copied(copied) => {
                let copied_number = number(&copied);
                if operand == copied_number {
                    return Rewritten::Compare(result, copied.at);
                }
                if operand > copied_number && shifted > copied.at {
                    return Rewritten::Compare(result, shifted);
                }
                if operand < copied_number {
                    copied.at - 1
                } else {
                    copied.at
                }
            }
            Claimed::Here if shifted >= 1 => return Rewritten::Compare(result, shifted),
            Claimed::Here => 0,
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

    /// Every comparison with every operand, on every state that a key can be in, decided in the
    /// numbers that clients see and in etcd's.
    #[test]
    fn a_rewritten_comparison_decides_as_the_client_meant_it() {
        let results = [
            CompareResult::Equal,
            CompareResult::Greater,
            CompareResult::Less,
            CompareResult::NotEqual,
        ];
        // etcd's create and mod revision, nothing where the key does not exist.
        let copied_states = [None, Some((20, 20)), Some((20, 33)), Some((35, 36))];
        let own_states = [None, Some((11, 11)), Some((20, 33))];
        for (claim, states) in [
            (Claimed::Copied(COPIED), &copied_states[..]),
            (Claimed::Here, &own_states[..]),
        ] {
            for state in states {
                let (create, modified) = state.unwrap_or_default();
                let mut seen = pair(create, modified, 1);
                if state.is_some() {
                    NUMBERS.translate(&mut seen, claim);
                }
                for (result, operand) in results
                    .into_iter()
                    .flat_map(|result| (1..140).map(move |operand| (result, Revision(operand))))
                {
                    let decide = |rewritten, number: i64| match rewritten {
                        Rewritten::Compare(result, operand) => result.accepts(number.cmp(&operand)),
                        Rewritten::Always => true,
                        Rewritten::Never => false,
                    };
                    let context = format!("{claim:?} {state:?} {result:?} {operand}");
                    let on_create = NUMBERS.rewrite(claim, |copied| copied.create, result, operand);
                    assert_eq!(
                        decide(on_create, create),
                        result.accepts(seen.create_revision.cmp(&operand)),
                        "create: {context}"
                    );
                    let on_mod = NUMBERS.rewrite(claim, |copied| copied.modified, result, operand);
                    assert_eq!(
                        decide(on_mod, modified),
                        result.accepts(seen.mod_revision.cmp(&operand)),
                        "mod: {context}"
                    );
                }
            }
        }
    }
}

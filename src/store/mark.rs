//! What a store holds, in short: pure. For a store whose revisions do not tell of every change, so that
//! it can be seen that nobody has changed it in between.
//!
//! It is a sum of hashes, so that it takes no memory, whatever the store's size and order. What goes by
//! itself at its time is summed up by that time, the coarser the later it is: what was due in between may
//! be there or not, and the rest has to be the same.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How much later than the time at which it expires something may still be there: it is rounded up, and the
/// time now down.
const GRACE_S: i64 = 2;

/// What a store held at some time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// From when on the times are divided, by the store's clock, in seconds since 1970.
    since_s: i64,
    /// When it was taken, likewise.
    taken_s: i64,
    /// What does not expire.
    lasting: u64,
    /// What does, by the part of time in which it is due.
    expiring: BTreeMap<u16, u64>,
}

impl Mark {
    /// The mark of nothing, to be compared with one that was taken at `since_s` first.
    #[must_use]
    pub fn since(since_s: i64) -> Self {
        Self {
            since_s,
            taken_s: since_s,
            ..Self::default()
        }
    }

    /// Where the comparison begins; see [`Self::since`].
    #[must_use]
    pub fn since_s(&self) -> i64 {
        self.since_s
    }

    /// Adds something with this hash, that expires by itself at this time or never.
    pub fn add(&mut self, hash: u64, until_s: Option<i64>) {
        let sum = match until_s {
            None => &mut self.lasting,
            Some(until_s) => self.expiring.entry(self.part(until_s)).or_default(),
        };
        *sum = sum.wrapping_add(hash);
    }

    /// Says that everything was added, and what time it is.
    pub fn taken(&mut self, now_s: i64) {
        self.taken_s = now_s;
    }

    /// Whether nothing has happened until `later` but that time has passed; nearly certain.
    #[must_use]
    pub fn lasts_until(&self, later: &Self) -> bool {
        let passed = self.part(later.taken_s.saturating_add(GRACE_S));
        let due = |mark: &Self| {
            let to_come = mark.expiring.range(passed + 1..);
            let to_come = to_come.filter(|(_, sum)| **sum != 0);
            to_come.map(|(part, sum)| (*part, *sum)).collect::<Vec<_>>()
        };
        self.since_s == later.since_s && self.lasting == later.lasting && due(self) == due(later)
    }

    /// The part of time that a time is in: four to each doubling of the distance.
    fn part(&self, at_s: i64) -> u16 {
        let Ok(distance @ 1..) = u64::try_from(at_s.saturating_sub(self.since_s)) else {
            return 0;
        };
        let octave = distance.ilog2();
        let quarter = if octave < 2 {
            0
        } else {
            (distance >> (octave - 2)) & 3
        };
        // At most 64 * 4 + 3 + 1.
        u16::try_from(u64::from(octave) * 4 + quarter + 1).unwrap_or(u16::MAX - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: i64 = 1_700_000_000;

    /// A mark that is taken so many seconds after the first one, of hashes and when they are due.
    fn mark(after_s: i64, of: &[(u64, Option<i64>)]) -> Mark {
        let mut mark = Mark::since(BEGIN);
        for (hash, due_s) in of {
            mark.add(*hash, due_s.map(|due_s| BEGIN + due_s));
        }
        mark.taken(BEGIN + after_s);
        mark
    }

    #[test]
    fn what_goes_at_its_time_is_no_change_and_everything_else_is() {
        let begin = [(1, None), (2, None), (10, Some(60)), (20, Some(3600))];
        let first = mark(0, &begin);
        for (name, after_s, of, same) in [
            ("the same", 10, begin.to_vec(), true),
            (
                "in another order",
                10,
                begin.iter().rev().copied().collect(),
                true,
            ),
            ("new", 10, [&begin[..], &[(3, None)]].concat(), false),
            ("gone", 10, begin[1..].to_vec(), false),
            ("other", 10, [&[(9, None)], &begin[1..]].concat(), false),
            (
                "gone at its time",
                70,
                [&begin[..2], &begin[3..]].concat(),
                true,
            ),
            ("there behind its time", 70, begin.to_vec(), true),
            (
                "gone before its time",
                20,
                [&begin[..2], &begin[3..]].concat(),
                false,
            ),
            ("gone long before its time", 70, begin[..3].to_vec(), false),
            (
                "kept alive",
                70,
                [&begin[..3], &[(20, Some(7200))]].concat(),
                false,
            ),
            (
                "new, and to expire",
                70,
                [&begin[..], &[(30, Some(900))]].concat(),
                false,
            ),
            ("everything expired", 4000, begin[..2].to_vec(), true),
        ] {
            assert_eq!(first.lasts_until(&mark(after_s, &of)), same, "{name}");
        }
    }

    #[test]
    fn parts_of_time_come_in_its_order_and_survive_json() {
        let mut mark = Mark::since(BEGIN);
        let times = [i64::MIN, -1, 0, 1, 2, 3, 4, 7, 8, 100, 1 << 40, i64::MAX];
        let parts: Vec<u16> = times
            .iter()
            .map(|at| mark.part(BEGIN.saturating_add(*at)))
            .collect();
        assert!(parts.is_sorted(), "{parts:?}");
        mark.add(u64::MAX, Some(BEGIN + 100));
        mark.add(u64::MAX, None);
        let json = serde_json::to_string(&mark).unwrap();
        assert_eq!(serde_json::from_str::<Mark>(&json).unwrap(), mark);
    }
}

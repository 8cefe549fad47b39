//! What a table held when it was last looked at, in short: pure.
//!
//! Of every key there is a *print* of its rows: enough to see that they have changed, and not what they
//! were. The keys themselves are kept whole, since one that is gone is to be named. That makes 75 to 130
//! bytes for each key besides its own, as the map grows.

use std::collections::HashMap;

use bytes::Bytes;

use super::rows::{self, Row};

/// How much later than the time at which it expires a row may still be there: it is rounded up, and
/// the time now down.
const GRACE_S: u32 = 2;

/// A print of each key.
#[derive(Default)]
pub(super) struct Prints {
    of: HashMap<Box<[u8]>, Print>,
    /// The sum of a hash for each key that does not expire, as told.
    mark: u64,
    /// A key had no place.
    overflow: bool,
}

/// What is kept of one key.
#[derive(Clone, Copy, Default)]
struct Print {
    /// Its rows as others were told of them.
    told: Seen,
    /// As the latest walk has seen them.
    now: Seen,
}

/// What is kept of the rows of one key.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Seen {
    /// The sum of the rows' hashes, in whatever order they come; 0 if there is none.
    hash: u64,
    /// When they expire by themselves, in seconds since 1970; 0 if they do not.
    until_s: u32,
    /// It is one row that is a pair.
    pair: bool,
}

impl Seen {
    fn is_nothing(self) -> bool {
        self.hash == 0
    }

    /// What the key adds to the mark. Rows that expire add nothing: they go without being changed.
    fn weight(self, key: &[u8]) -> u64 {
        if self.is_nothing() || self.until_s != 0 {
            return 0;
        }
        rows::hash([key, &self.hash.to_le_bytes()])
    }
}

impl Prints {
    /// Begins a walk over the whole table.
    pub(super) fn begin(&mut self) {
        self.of
            .values_mut()
            .for_each(|print| print.now = Seen::default());
        self.overflow = false;
    }

    /// Takes a row that the walk has come to, and whether it would be a pair; unless it is one of a key
    /// more than there is place for.
    pub(super) fn see(&mut self, key: &[u8], row: &Row, pair: bool, keys_max: usize) {
        if !self.of.contains_key(key) {
            if self.of.len() >= keys_max {
                self.overflow = true;
                return;
            }
            self.of.insert(Box::from(key), Print::default());
        }
        let Some(Print { now, .. }) = self.of.get_mut(key) else {
            return;
        };
        let alone = now.is_nothing();
        let until_s = row
            .ttl_s
            .filter(|_| row.expires)
            .map_or(0, |at| u32::try_from(at.max(1)).unwrap_or(u32::MAX));
        *now = Seen {
            hash: now.hash.wrapping_add(hash(row)).max(1),
            until_s: now.until_s.max(until_s),
            pair: alone && pair,
        };
    }

    /// Whether the walk has come to more keys than there is place for.
    pub(super) fn overflow(&self) -> bool {
        self.overflow
    }

    /// Ends the walk: which keys have changed, at most so many, in their order. What has expired
    /// until `now_s` has not.
    pub(super) fn end(&mut self, now_s: i64, most: usize) -> Vec<Bytes> {
        let mut changed = Vec::new();
        self.of.retain(|key, print| {
            let due = i64::from(print.told.until_s) <= now_s.saturating_add(GRACE_S.into());
            if print.now.is_nothing() && print.told.until_s != 0 && due {
                return false;
            }
            if print.now != print.told && changed.len() < most {
                changed.push(Bytes::copy_from_slice(key));
            }
            !(print.now.is_nothing() && print.told.is_nothing())
        });
        changed.sort_unstable();
        changed
    }

    /// Whether the key was a pair the last time that it was told of.
    pub(super) fn was_pair(&self, key: &[u8]) -> bool {
        self.of.get(key).is_some_and(|print| print.told.pair)
    }

    /// The mark of what was told: equal if, and nearly only if, it is the same.
    pub(super) fn mark(&self) -> u64 {
        self.mark
    }

    /// The mark as it will be once `keys` are told.
    pub(super) fn mark_with(&self, keys: &[Bytes]) -> u64 {
        keys.iter().fold(self.mark, |mark, key| {
            let print = self.of.get(&key[..]).copied().unwrap_or_default();
            mark.wrapping_sub(print.told.weight(key))
                .wrapping_add(print.now.weight(key))
        })
    }

    /// Takes what the walk has seen of `keys` as told.
    pub(super) fn tell(&mut self, keys: &[Bytes]) {
        self.mark = self.mark_with(keys);
        for key in keys {
            if let Some(print) = self.of.get_mut(&key[..]) {
                print.told = print.now;
            }
        }
    }

    /// Takes everything that the walk has seen as told.
    pub(super) fn tell_all(&mut self) {
        self.of.retain(|_, print| {
            print.told = print.now;
            !print.told.is_nothing()
        });
        let weights = self.of.iter().map(|(key, print)| print.told.weight(key));
        self.mark = weights.fold(0, u64::wrapping_add);
    }
}

/// The hash of what a change of a row would change, but for the time at which it expires.
fn hash(row: &Row) -> u64 {
    let revision = row.revision.unwrap_or_default().to_le_bytes();
    let kind = [
        row.revision.is_some(),
        row.expires,
        row.ttl_s.is_some(),
        row.value.is_some(),
    ];
    let value = row.value.as_deref().unwrap_or_default();
    rows::hash([&revision[..], &kind.map(u8::from), value])
}

/// The hash of a key and of all that a change of its row would change, the time at which it expires
/// included.
pub(super) fn whole(key: &[u8], row: &Row) -> u64 {
    let len = (key.len() as u64).to_le_bytes();
    let until = row.ttl_s.unwrap_or_default().to_le_bytes();
    rows::hash([&len[..], key, &until, &hash(row).to_le_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: Option<&'static str>, until: Option<i64>) -> Row {
        Row {
            value: value.map(Bytes::from),
            ttl_s: until,
            expires: until.is_some(),
            ..Row::default()
        }
    }

    fn walk(prints: &mut Prints, rows: &[(&str, Row)], now_s: i64) -> Vec<Bytes> {
        prints.begin();
        for (key, row) in rows {
            prints.see(key.as_bytes(), row, row.value.is_some(), 100);
        }
        prints.end(now_s, 100)
    }

    #[test]
    fn what_is_new_other_and_gone_is_seen_once_it_is_told_no_more() {
        let one = || row(Some("1"), None);
        let begin = [
            ("a", one()),
            ("b", one()),
            ("c", one()),
            ("n", row(None, None)),
        ];
        for (name, rows, expected) in [
            ("the same", begin.to_vec(), vec![]),
            (
                "in another order",
                begin.iter().rev().cloned().collect(),
                vec![],
            ),
            ("new", [&begin[..], &[("d", one())]].concat(), vec!["d"]),
            ("gone", begin[1..].to_vec(), vec!["a"]),
            (
                "value",
                [&[("a", row(Some("2"), None))], &begin[1..]].concat(),
                vec!["a"],
            ),
            (
                "no value",
                [&[("a", row(None, None))], &begin[1..]].concat(),
                vec!["a"],
            ),
            (
                "a value",
                [&begin[..3], &[("n", row(Some(""), None))]].concat(),
                vec!["n"],
            ),
            ("twice", [&begin[..], &[("b", one())]].concat(), vec!["b"]),
            (
                "to expire",
                [&[("a", row(Some("1"), Some(90)))], &begin[1..]].concat(),
                vec!["a"],
            ),
            ("nothing", vec![], vec!["a", "b", "c", "n"]),
        ] {
            let mut prints = Prints::default();
            walk(&mut prints, &begin, 0);
            prints.tell_all();
            let mark = prints.mark();
            let changed = walk(&mut prints, &rows, 0);
            assert_eq!(changed, expected, "{name}");
            // Not told yet, so it is there again.
            assert_eq!(walk(&mut prints, &rows, 0), expected, "{name}");
            assert_eq!(prints.mark(), mark);
            let next = prints.mark_with(&changed);
            prints.tell(&changed);
            assert_eq!(
                (prints.mark(), next == mark),
                (next, expected.is_empty()),
                "{name}"
            );
            assert_eq!(walk(&mut prints, &rows, 0), [""; 0], "{name}");
            // As if the table had been found so.
            prints.tell_all();
            assert_eq!(prints.mark(), next, "{name}");
        }
    }

    #[test]
    fn what_goes_at_its_time_is_not_changed_and_what_goes_before_is() {
        let rows = [
            ("a", row(Some("1"), Some(100))),
            ("b", row(Some("1"), None)),
        ];
        for (now_s, changed) in [
            (50, vec!["a"]),
            (97, vec!["a"]),
            (98, vec![]),
            (101, vec![]),
        ] {
            let mut prints = Prints::default();
            walk(&mut prints, &rows, 0);
            prints.tell_all();
            let mark = prints.mark();
            assert_eq!(walk(&mut prints, &rows[1..], now_s), changed, "{now_s}");
            assert_eq!(prints.mark(), mark);
        }
    }

    #[test]
    fn keys_have_a_place_up_to_a_limit_and_are_forgotten_when_they_are_gone() {
        let mut prints = Prints::default();
        let one = row(Some("1"), None);
        for round in 0..3 {
            prints.begin();
            for key in [1, 2, 2, 1] {
                prints.see(&[round, key], &one, true, 2);
            }
            assert!(round > 0 || !prints.overflow());
            let gone = prints.end(0, 100);
            prints.tell(&gone);
            prints.end(0, 100);
        }
        prints.begin();
        for key in 1..=3 {
            prints.see(&[3, key], &one, true, 2);
        }
        assert!(prints.overflow());
    }
}

//! The other members: who is alive, and who has acknowledged which epoch.
//!
//! A member proves that it lives by a number that grows in its record. Everybody measures by their
//! own clock for how long the number has stood still, so no two clocks are ever compared.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ledger::Entry;
use super::records::Member;
use crate::types::Epoch;

/// What is known of the fleet. Keeps no clock: callers pass the time that has gone by.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    members: BTreeMap<String, Seen>,
}

#[derive(Clone, Debug)]
struct Seen {
    entry: Entry<Member>,
    /// When the beat was first seen, on the observer's clock.
    since: Duration,
}

impl Fleet {
    /// Takes in the records as they are at `now`.
    pub fn observe(&mut self, records: Vec<(String, Entry<Member>)>, now: Duration) {
        let mut before = std::mem::take(&mut self.members);
        for (id, entry) in records {
            let since = match before.remove(&id) {
                Some(seen) if seen.entry.value.beat == entry.value.beat => seen.since,
                _ => now,
            };
            self.members.insert(id, Seen { entry, since });
        }
    }

    /// Members whose beat has stood still for longer than `lapse`, with their records' versions.
    #[must_use]
    pub fn lapsed(&self, now: Duration, lapse: Duration) -> Vec<(String, i64)> {
        let is_lapsed = |seen: &Seen| now.saturating_sub(seen.since) > lapse;
        self.members
            .iter()
            .filter(|(_, seen)| is_lapsed(seen))
            .map(|(id, seen)| (id.clone(), seen.entry.version))
            .collect()
    }

    /// One member's record.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Entry<Member>> {
        self.members.get(id).map(|seen| &seen.entry)
    }

    /// All members, by their ids.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Member)> {
        self.members
            .iter()
            .map(|(id, seen)| (id.as_str(), &seen.entry.value))
    }

    /// Names of the members that have not acknowledged `epoch`.
    #[must_use]
    pub fn behind(&self, epoch: Epoch) -> Vec<String> {
        self.iter()
            .filter(|(_, member)| member.acknowledged < epoch)
            .map(|(_, member)| member.name.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(beat: u64, acknowledged: u64) -> Entry<Member> {
        Entry {
            value: Member {
                name: format!("m{beat}"),
                beat,
                acknowledged: Epoch(acknowledged),
                ..Member::default()
            },
            version: 1,
        }
    }

    #[test]
    fn a_member_lapses_when_its_beat_stands_still_by_the_observers_clock() {
        let at = Duration::from_secs;
        let lapse = at(10);
        let mut fleet = Fleet::default();
        fleet.observe(
            vec![("a".into(), record(1, 1)), ("b".into(), record(9, 1))],
            at(0),
        );
        fleet.observe(
            vec![("a".into(), record(1, 1)), ("b".into(), record(10, 1))],
            at(8),
        );
        assert_eq!(fleet.lapsed(at(10), lapse), []);
        assert_eq!(fleet.lapsed(at(11), lapse), [("a".to_owned(), 1)]);
        assert_eq!(fleet.lapsed(at(18), lapse), [("a".to_owned(), 1)]);
        fleet.observe(
            vec![("a".into(), record(2, 1)), ("b".into(), record(10, 1))],
            at(18),
        );
        assert_eq!(fleet.lapsed(at(19), lapse), [("b".to_owned(), 1)]);
    }

    #[test]
    fn those_behind_are_named() {
        let mut fleet = Fleet::default();
        fleet.observe(
            vec![("a".into(), record(1, 2)), ("b".into(), record(2, 3))],
            Duration::ZERO,
        );
        assert_eq!(fleet.behind(Epoch(2)), Vec::<String>::new());
        assert_eq!(fleet.behind(Epoch(3)), ["m1"]);
    }
}

//! The judgement: whether the store's final contents and all that the clients saw agree with what
//! was acknowledged.
//!
//! Nothing here knows how the migration works. It replays the ledger as a simple map with a history
//! per key, and compares.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::ledger::{Digest, Effect, Entries, Facts, KeyRead, ListRead, Seen, Watched};
use crate::types::KeyRange;

/// How many examples of each kind of broken promise are kept.
const EXAMPLES: usize = 3;

/// The store's contents at the end, as a client reads them.
#[derive(Clone, Debug, Default)]
pub(super) struct Finals {
    /// Every key.
    pub keys: BTreeMap<Bytes, Facts>,
    /// Bytes of all keys and values.
    pub bytes: u64,
    /// The numbers in keys that belong to a sum.
    pub numbers: BTreeMap<Bytes, i64>,
    /// Leases that are alive.
    pub leases: BTreeSet<i64>,
}

/// How often one promise was broken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// How often.
    pub count: u64,
    /// The first few cases.
    pub examples: Vec<String>,
}

impl Tally {
    /// One more case.
    pub(super) fn add(&mut self, case: impl FnOnce() -> String) {
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(case());
        }
    }
}

/// What was found. Every tally should be zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// Keys that should be there and are not, or whose last acknowledged write is missing.
    pub lost: Tally,
    /// Keys that should not be there and are.
    pub resurrected: Tally,
    /// Keys that are there with another value, revision, version or lease than they should have.
    pub altered: Tally,
    /// Answers that do not fit the revision they were given for, or show an older state than the
    /// client knew of; revisions given out twice.
    pub wrong_answers: Tally,
    /// Counters that lost or gained something, sums that do not add up.
    pub wrong_sums: Tally,
    /// Leases that ended though they were kept alive.
    pub lost_leases: Tally,
    /// Events that a watch should have delivered and did not.
    pub missed_events: Tally,
    /// Events that a watch delivered twice, or again though they had happened before it began.
    pub repeated_events: Tally,
    /// Events out of order, of changes that nobody made, or with a wrong pair in them.
    pub wrong_events: Tally,
}

impl Findings {
    /// Every tally with its name.
    pub(super) fn all(&self) -> [(&'static str, &Tally); 9] {
        [
            ("lost keys", &self.lost),
            ("resurrected keys", &self.resurrected),
            ("altered keys", &self.altered),
            ("wrong answers", &self.wrong_answers),
            ("wrong sums", &self.wrong_sums),
            ("lost leases", &self.lost_leases),
            ("missed watch events", &self.missed_events),
            ("repeated watch events", &self.repeated_events),
            ("wrong watch events", &self.wrong_events),
        ]
    }
}

/// Judges.
pub(super) fn check(entries: &Entries, finals: &Finals) -> Findings {
    let mut findings = Findings::default();
    let replay = Replay::of(entries, &mut findings);
    replay.judge_finals(finals, &mut findings);
    replay.judge_sums(finals, &mut findings);
    for lease in entries.held.difference(&finals.leases) {
        findings
            .lost_leases
            .add(|| format!("lease {lease:016x} is gone"));
    }
    for read in &entries.reads {
        replay.judge_read(read, &mut findings);
    }
    for list in &entries.lists {
        replay.judge_list(list, &mut findings);
    }
    for watched in &entries.watches {
        replay.judge_watch(watched, &mut findings);
    }
    findings
}

/// Whether watches still owe events, or leases that are not kept alive still have to run out.
pub(super) fn undelivered(entries: &Entries) -> bool {
    let mut findings = Findings::default();
    let replay = Replay::of(entries, &mut findings);
    for watched in &entries.watches {
        replay.judge_watch(watched, &mut findings);
    }
    findings.missed_events.count > 0
}

/// What should have happened, by key.
struct Replay<'a> {
    entries: &'a Entries,
    /// Each key's states with the revisions they began at, oldest first; the seed included.
    histories: BTreeMap<Bytes, Vec<(i64, Option<Facts>)>>,
    /// Keys whose lease ran out unseen: it is not known when.
    unseen: BTreeSet<Bytes>,
}

impl<'a> Replay<'a> {
    /// Replays the ledger in the order of the revisions.
    fn of(entries: &'a Entries, findings: &mut Findings) -> Self {
        let mut replay = Self {
            entries,
            histories: entries
                .seeds
                .iter()
                .map(|(key, facts)| (key.clone(), vec![(facts.modified, Some(*facts))]))
                .collect(),
            unseen: BTreeSet::new(),
        };
        let expiries = replay.expiries();
        let mut by_revision: BTreeMap<i64, &[Effect]> = BTreeMap::new();
        let all = entries.writes.iter().map(|w| (w.revision, &w.effects[..]));
        let expired = expiries.iter().map(|(at, effects)| (*at, &effects[..]));
        for (revision, effects) in all.chain(expired) {
            if by_revision.contains_key(&revision) || revision <= entries.opened {
                findings
                    .wrong_answers
                    .add(|| format!("revision {revision} was given out twice"));
            } else {
                by_revision.insert(revision, effects);
            }
        }
        for (revision, effects) in by_revision {
            for effect in effects {
                replay.apply(revision, effect, findings);
            }
        }
        replay
    }

    /// Nobody is told when a lease runs out, except the watches: the first that saw a key go says
    /// at which revision, and all others have to agree.
    fn expiries(&mut self) -> BTreeMap<i64, Vec<Effect>> {
        let mut gone: BTreeMap<&Bytes, i64> = BTreeMap::new();
        for event in self.entries.watches.iter().flat_map(|w| &w.events) {
            if event.put.is_none() && self.entries.expiring.contains(&event.key) {
                let at = gone.entry(&event.key).or_insert(event.revision);
                *at = event.revision.min(*at);
            }
        }
        let unseen = |key: &&Bytes| !gone.contains_key(*key);
        self.unseen = self
            .entries
            .expiring
            .iter()
            .filter(unseen)
            .cloned()
            .collect();
        let mut expiries: BTreeMap<i64, Vec<Effect>> = BTreeMap::new();
        for (key, revision) in gone {
            let effects = expiries.entry(revision).or_default();
            effects.push(Effect::Delete(key.clone()));
        }
        expiries
    }

    fn apply(&mut self, revision: i64, effect: &Effect, findings: &mut Findings) {
        match effect {
            Effect::Put { key, value, lease } => {
                let history = self.histories.entry(key.clone()).or_default();
                let life = history.last().and_then(|(_, state)| *state);
                let facts = Facts {
                    create: life.map_or(revision, |life| life.create),
                    modified: revision,
                    version: life.map_or(1, |life| life.version + 1),
                    lease: *lease,
                    value: *value,
                };
                history.push((revision, Some(facts)));
            }
            Effect::Delete(key) => {
                let history = self.histories.entry(key.clone()).or_default();
                history.push((revision, None));
            }
            Effect::Clear { keys, deleted } => {
                let doubtful = self.overlaps_doubt(keys);
                let mut count = 0;
                for (_, history) in self.histories.range_mut::<[u8], _>(keys.bounds()) {
                    if matches!(history.last(), Some((_, Some(_)))) {
                        history.push((revision, None));
                        count += 1;
                    }
                }
                if count != *deleted && !doubtful {
                    findings.wrong_answers.add(|| {
                        let first = shown(keys.start());
                        format!("a delete of {count} keys from {first} on said that it removed {deleted}")
                    });
                }
            }
        }
    }

    /// Whether nothing can be said about some key in the range.
    fn overlaps_doubt(&self, keys: &KeyRange) -> bool {
        let mut ranges = self.entries.doubtful_ranges.iter();
        let mut single = self.entries.doubts.range::<[u8], _>(keys.bounds());
        single.next().is_some() || ranges.any(|doubt| doubt.intersect(keys).is_some())
    }

    /// Whether nothing can be said about the key.
    fn doubtful(&self, key: &Bytes) -> bool {
        let entries = self.entries;
        let mut ranges = entries.doubtful_ranges.iter();
        self.unseen.contains(key)
            || entries.doubts.contains(key)
            || ranges.any(|doubt| doubt.contains(key))
    }

    /// The key as it should have been at `revision`.
    fn at(&self, key: &[u8], revision: i64) -> Option<Facts> {
        let history = self.histories.get(key)?;
        state_at(history, revision)
    }

    fn judge_finals(&self, finals: &Finals, findings: &mut Findings) {
        for (key, history) in &self.histories {
            if self.doubtful(key) {
                continue;
            }
            let expected = history.last().and_then(|(_, state)| *state);
            match (expected, finals.keys.get(key)) {
                (Some(expected), None) => findings.lost.add(|| {
                    format!(
                        "{}, last written at revision {}",
                        shown(key),
                        expected.modified
                    )
                }),
                (Some(expected), Some(found)) if found.modified < expected.modified => {
                    findings.lost.add(|| {
                        let (was, is) = (expected.modified, found.modified);
                        format!("{}: revision {was} is gone, {is} is there", shown(key))
                    });
                }
                (Some(expected), Some(found)) if *found != expected => findings
                    .altered
                    .add(|| format!("{}: {found:?} instead of {expected:?}", shown(key))),
                (None, Some(found)) => findings
                    .resurrected
                    .add(|| format!("{}, with revision {}", shown(key), found.modified)),
                (Some(_), Some(_)) | (None, None) => {}
            }
        }
        for (key, found) in &finals.keys {
            if self.unseen.contains(key) {
                findings
                    .resurrected
                    .add(|| format!("{}, whose lease has run out", shown(key)));
            } else if !self.histories.contains_key(key) && !self.doubtful(key) {
                findings.resurrected.add(|| {
                    let at = found.modified;
                    format!("{}, which nobody wrote, with revision {at}", shown(key))
                });
            }
        }
    }

    fn judge_sums(&self, finals: &Finals, findings: &mut Findings) {
        for (name, sum) in &self.entries.sums {
            if sum.keys.iter().any(|key| self.doubtful(key)) {
                continue;
            }
            let numbers = sum.keys.iter().filter_map(|key| finals.numbers.get(key));
            let found: i64 = numbers.sum();
            if found != sum.total {
                let total = sum.total;
                findings
                    .wrong_sums
                    .add(|| format!("{name} is {found} instead of {total}"));
            }
        }
    }

    fn judge_read(&self, read: &KeyRead, findings: &mut Findings) {
        if read.revision < read.floor {
            findings
                .wrong_answers
                .add(|| stale(&read.key, read.revision, read.floor));
        }
        let expected = self.at(&read.key, read.revision);
        if expected != read.seen && !self.doubtful(&read.key) {
            findings.wrong_answers.add(|| {
                let (key, at) = (shown(&read.key), read.revision);
                format!(
                    "{key} at revision {at}: {:?} instead of {expected:?}",
                    read.seen
                )
            });
        }
    }

    fn judge_list(&self, list: &ListRead, findings: &mut Findings) {
        if list.revision < list.floor {
            findings
                .wrong_answers
                .add(|| stale(list.keys.start(), list.revision, list.floor));
        }
        if self.overlaps_doubt(&list.keys) {
            return;
        }
        let (mut count, mut digest) = (0, Digest::default());
        let limit = if list.limit == 0 {
            usize::MAX
        } else {
            list.limit
        };
        let range = self.histories.range::<[u8], _>(list.keys.bounds());
        let live =
            range.filter_map(|(key, history)| Some((key, state_at(history, list.revision)?)));
        for (index, (key, facts)) in live.enumerate() {
            if index < limit {
                digest.add(key, facts.create, facts.modified, facts.version);
            }
            count += 1;
        }
        let differs = list.digest.as_ref().is_some_and(|seen| *seen != digest);
        if count != list.count || differs {
            findings.wrong_answers.add(|| {
                let (first, at) = (shown(list.keys.start()), list.revision);
                let what = if differs {
                    "other keys"
                } else {
                    "another count"
                };
                format!("a list from {first} on at revision {at} shows {what} than there were")
            });
        }
    }

    fn judge_watch(&self, watched: &Watched, findings: &mut Findings) {
        let mut missing: BTreeMap<(i64, &Bytes), usize> = BTreeMap::new();
        for (key, history) in self.histories.range::<[u8], _>(watched.keys.bounds()) {
            for (index, (revision, _)) in history.iter().enumerate() {
                if *revision >= watched.from {
                    missing.insert((*revision, key), index);
                }
            }
        }
        let mut seen = BTreeSet::new();
        let mut reached = 0;
        for event in &watched.events {
            let place = (event.revision, &event.key);
            let what = || {
                format!(
                    "{}: {} at revision {}",
                    watched.name,
                    shown(&event.key),
                    event.revision
                )
            };
            let again = !seen.insert(place);
            let expected = missing.remove(&place);
            if again || event.revision < watched.from {
                findings.repeated_events.add(what);
            } else if event.revision < reached {
                findings
                    .wrong_events
                    .add(|| format!("{}, behind revision {reached}", what()));
            } else if self.doubtful(&event.key) {
                // A write whose outcome nobody knows may well be seen.
            } else if expected.is_none_or(|index| !self.tells_the_truth(watched, event, index)) {
                findings
                    .wrong_events
                    .add(|| format!("{}, which is not what happened", what()));
            }
            reached = reached.max(event.revision);
        }
        for (revision, key) in missing.into_keys() {
            if !self.doubtful(key) {
                findings
                    .missed_events
                    .add(|| format!("{}: {} at revision {revision}", watched.name, shown(key)));
            }
        }
        // A key that is gone with its lease, and nobody was told.
        for key in self.unseen.iter().filter(|key| watched.keys.contains(key)) {
            findings
                .missed_events
                .add(|| format!("{}: the end of {}", watched.name, shown(key)));
        }
    }

    /// Whether the event shows the state number `index` of its key, and the one before it.
    fn tells_the_truth(&self, watched: &Watched, event: &Seen, index: usize) -> bool {
        let history = &self.histories[&event.key];
        let before = index.checked_sub(1).and_then(|index| history[index].1);
        let prev = if watched.prev_kv { before } else { None };
        event.put == history[index].1 && event.prev == prev
    }
}

/// The state that held at `revision`.
fn state_at(history: &[(i64, Option<Facts>)], revision: i64) -> Option<Facts> {
    let later = history.partition_point(|(began, _)| *began <= revision);
    history.get(later.checked_sub(1)?)?.1
}

fn stale(key: &Bytes, revision: i64, floor: i64) -> String {
    let key = shown(key);
    format!("{key} was shown as of revision {revision} after {floor} had been acknowledged")
}

/// A key for people.
pub(super) fn shown(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}

#[cfg(test)]
mod tests;

//! The rules, and who breaks them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use super::log::States;
use super::{Call, Event, History, Operation, Outcome, Pair, Reply, WatchLog};

/// What a store promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// A write that was acknowledged is there.
    Lost,
    /// A key that was deleted stays deleted.
    Resurrected,
    /// What is there, somebody wrote, and once.
    FromNowhere,
    /// A revision belongs to one change, and what began after another ended has a higher one.
    RevisionOrder,
    /// A client never sees a lower revision than it has seen.
    ClientOrder,
    /// A read shows the state at the revision that it names.
    Read,
    /// A condition is decided on the state just before.
    Condition,
    /// The numbers of a pair follow from those before.
    Numbers,
    /// Events come in the order of their revisions.
    WatchOrder,
    /// No event comes twice.
    WatchRepeated,
    /// No event is missing.
    WatchMissed,
    /// The events of one revision come together.
    WatchTorn,
    /// All watchers are told the same.
    WatchDiffers,
    /// The pair before a change is the one before the change.
    WatchPrev,
    /// A lease lasts as long as it was promised to.
    LeaseEnded,
    /// In the end the new store holds what the history says.
    Last,
}

/// A broken promise.
#[derive(Clone)]
pub struct Violation {
    /// Which.
    pub rule: Rule,
    /// How.
    pub what: String,
}

impl fmt::Debug for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.what)
    }
}

/// Every promise that the history shows to be broken. Keys under `segue/` must not appear in it.
pub fn check(history: &History) -> Vec<Violation> {
    let mut checker = Checker {
        history,
        changes: BTreeMap::new(),
        violations: Vec::new(),
    };
    for watch in &history.watches {
        checker.watch_alone(watch);
    }
    checker.unseen_but_shown();
    checker.acknowledged_writes();
    checker.unseen_deletes();
    let changes = std::mem::take(&mut checker.changes);
    let states = States::new(history.base, &history.initial, changes.values());
    for watch in &history.watches {
        checker.watch_complete(watch, &changes);
    }
    for event in changes.values() {
        checker.numbers(event, &states);
    }
    checker.authors(&changes, &states);
    checker.leases(&states);
    checker.real_time();
    checker.clients();
    for operation in &history.operations {
        checker.answer(operation, &states);
    }
    checker.last(&states);
    checker.violations
}

/// Changes by revision and key.
type Changes = BTreeMap<(i64, String), Event>;

struct Checker<'a> {
    history: &'a History,
    /// All that happened, as far as anybody saw it.
    changes: Changes,
    violations: Vec<Violation>,
}

impl Checker<'_> {
    fn complain(&mut self, rule: Rule, what: String) {
        self.violations.push(Violation { rule, what });
    }

    /// What can be seen from one watcher's log alone; its events go into the line of changes.
    fn watch_alone(&mut self, watch: &WatchLog) {
        let name = &watch.name;
        let mut last = watch.start - 1;
        let mut seen = HashSet::new();
        for batch in &watch.batches {
            let before_batch = last;
            for event in &batch.events {
                let Event { revision, key, .. } = event;
                let at = (*revision, key.clone());
                if !seen.insert(at.clone()) {
                    let what = format!("{name}: {key} at {revision} came twice");
                    self.complain(Rule::WatchRepeated, what);
                    continue;
                }
                if *revision < last || (*revision < watch.start) {
                    let what = format!("{name}: {key} at {revision} came after {last}");
                    self.complain(Rule::WatchOrder, what);
                } else if *revision == before_batch && *revision >= watch.start {
                    let what = format!("{name}: revision {revision} came in two parts");
                    self.complain(Rule::WatchTorn, what);
                }
                last = last.max(*revision);
                if !key.starts_with(&watch.prefix) {
                    let what = format!("{name}: {key} was not asked for");
                    self.complain(Rule::WatchDiffers, what);
                }
                match self.changes.get(&at) {
                    Some(known) if known.pair != event.pair => {
                        let what = format!("{name}: {event:?}, another watcher: {known:?}");
                        self.complain(Rule::WatchDiffers, what);
                    }
                    Some(_) => {}
                    None => {
                        self.changes.insert(at, event.clone());
                    }
                }
            }
        }
    }

    /// Acknowledged writes that no watcher saw go into the line of changes too.
    fn acknowledged_writes(&mut self) {
        let history = self.history;
        let mut writes: Vec<(i64, &Operation)> = Vec::new();
        for operation in &history.operations {
            if let Outcome::Done(Reply {
                revision,
                changed: true,
                ..
            }) = &operation.outcome
            {
                writes.push((*revision, operation));
            }
        }
        writes.sort_by_key(|(revision, _)| *revision);
        let mut reconstructed = Vec::new();
        for pair in writes.windows(2) {
            if pair[0].0 == pair[1].0 {
                let what = format!(
                    "two writes at {}: {:?}, {:?}",
                    pair[0].0, pair[0].1, pair[1].1
                );
                self.complain(Rule::RevisionOrder, what);
            }
        }
        for (revision, operation) in writes {
            if revision <= history.base {
                let what = format!(
                    "{operation:?} is at or below the base revision {}",
                    history.base
                );
                self.complain(Rule::RevisionOrder, what);
            }
            for (key, value) in written(&operation.call) {
                let at = (revision, key.to_owned());
                let seen = self.changes.get(&at);
                let seen_value = seen.map(|event| event.pair.as_ref().map(|pair| &pair.value[..]));
                if seen_value == Some(value) {
                    continue;
                }
                if seen_value.is_some() {
                    let what = format!("{operation:?} was acknowledged, but seen was {seen:?}");
                    self.complain(Rule::Lost, what);
                    continue;
                }
                if history
                    .watches
                    .iter()
                    .any(|watch| covers(watch, key, revision))
                {
                    let what = format!("{operation:?} was acknowledged, and no watcher saw it");
                    self.complain(Rule::Lost, what);
                }
                let event = self.reconstruct(revision, key, value, &operation.call);
                self.changes.insert(at.clone(), event);
                reconstructed.push(at);
            }
        }
        self.count_unseen(&reconstructed);
    }

    /// Corrects versions of reconstructed events by what is known of those behind them: others that nobody
    /// saw may have come before.
    fn count_unseen(&mut self, reconstructed: &[(i64, String)]) {
        for (revision, key) in reconstructed.iter().rev() {
            let mut later = self.changes.range((*revision + 1, String::new())..);
            let next = later.find(|((_, changed), _)| changed == key);
            let next = next.and_then(|(_, event)| event.pair.clone());
            let event = self.changes.get_mut(&(*revision, key.clone()));
            let pair = event.and_then(|event| event.pair.as_mut());
            if let (Some(pair), Some(next)) = (pair, next)
                && pair.created == next.created
            {
                pair.version = pair.version.max(next.version - 1);
            }
        }
    }

    /// Changes that a read shows, or what superseded them, in a time of which no watcher knows: whoever
    /// made them was not answered.
    fn unseen_but_shown(&mut self) {
        let history = self.history;
        let replies = history.operations.iter().filter_map(|operation| {
            let Outcome::Done(reply) = &operation.outcome else {
                return None;
            };
            Some(&reply.pairs)
        });
        let batches = history.watches.iter().flat_map(|watch| &watch.batches);
        let events = batches.flat_map(|batch| &batch.events);
        let superseded = events.filter_map(|event| event.prev.as_ref());
        for pair in replies.flatten().chain(superseded) {
            let (key, revision) = (&pair.key, pair.modified);
            if history.unwatched(key, revision, revision).is_none() {
                continue;
            }
            let event = || Event {
                revision,
                key: key.clone(),
                pair: Some(pair.clone()),
                prev: None,
            };
            self.changes
                .entry((revision, key.clone()))
                .or_insert_with(event);
        }
    }

    /// Deletes in a time of which no watcher knows: by leases that ended, and by those who were not
    /// answered. They are known by reads and writes that found nothing.
    fn unseen_deletes(&mut self) {
        let history = self.history;
        let states = States::new(history.base, &history.initial, self.changes.values());
        let mut missed: BTreeMap<(String, i64), i64> = BTreeMap::new();
        let mut miss = |pair: &Pair, through: i64| {
            if let Some(at) = history.unwatched(&pair.key, pair.modified + 1, through) {
                let known = missed.entry((pair.key.clone(), pair.modified));
                known
                    .and_modify(|known| *known = at.min(*known))
                    .or_insert(at);
            }
        };
        for event in self.changes.values() {
            let begins = event.pair.as_ref().is_some_and(|pair| pair.version == 1);
            if let Some(before) = states.at(&event.key, event.revision - 1)
                && begins
            {
                miss(before, event.revision - 1);
            }
        }
        for operation in &history.operations {
            let Outcome::Done(reply) = &operation.outcome else {
                continue;
            };
            let expected = match &operation.call {
                Call::Get { key } => states.at(key, reply.revision).into_iter().collect(),
                Call::List { prefix } => states.list(prefix, reply.revision),
                Call::Delete { key } if !reply.changed => {
                    states.at(key, reply.revision).into_iter().collect()
                }
                _ => continue,
            };
            let shown: HashSet<_> = reply.pairs.iter().map(|pair| &pair.key).collect();
            for pair in expected
                .into_iter()
                .filter(|pair| !shown.contains(&pair.key))
            {
                miss(pair, reply.revision);
            }
        }
        for ((key, _), revision) in missed {
            let event = Event {
                revision,
                key: key.clone(),
                pair: None,
                prev: None,
            };
            self.changes.entry((revision, key)).or_insert(event);
        }
    }

    /// The event of a write that nobody saw, from the changes before it.
    fn reconstruct(&self, revision: i64, key: &str, value: Option<&str>, call: &Call) -> Event {
        let before = self
            .changes
            .iter()
            .rev()
            .find(|((at, changed), _)| *at < revision && changed == key)
            .map(|(_, event)| event.pair.clone());
        let initial = || {
            self.history
                .initial
                .iter()
                .find(|pair| pair.key == key)
                .cloned()
        };
        let before = before.unwrap_or_else(initial).filter(|_| {
            // It had been deleted, seen or not.
            !matches!(call, Call::Swap { expected: 0, .. })
        });
        let pair = value.map(|value| Pair {
            key: key.to_owned(),
            value: value.to_owned(),
            created: before.as_ref().map_or(revision, |pair| pair.created),
            modified: revision,
            version: before.as_ref().map_or(1, |pair| pair.version + 1),
            lease: match call {
                Call::Put { lease, .. } => *lease,
                _ => 0,
            },
        });
        Event {
            revision,
            key: key.to_owned(),
            pair,
            prev: before,
        }
    }

    fn watch_complete(&mut self, watch: &WatchLog, changes: &Changes) {
        let seen: HashSet<_> = watch
            .batches
            .iter()
            .flat_map(|batch| &batch.events)
            .map(|event| (event.revision, event.key.as_str()))
            .collect();
        for (revision, key) in changes.keys() {
            if covers(watch, key, *revision) && !seen.contains(&(*revision, key.as_str())) {
                let what = format!("{}: {key} at {revision}", watch.name);
                self.complain(Rule::WatchMissed, what);
            }
        }
    }

    /// Whether there can have been changes between the two that nobody knows of: in a time of which no watcher
    /// knows, by those who were not answered.
    fn leaves_room(&self, before: Option<&Pair>, pair: &Pair) -> bool {
        let behind = before.map_or(self.history.base, |before| before.modified);
        let unwatched = |first| {
            self.history
                .unwatched(&pair.key, first, pair.modified - 1)
                .is_some()
        };
        match before {
            Some(before) if before.created == pair.created => {
                pair.version > before.version && unwatched(behind + 1)
            }
            _ => pair.created > behind && pair.created < pair.modified && unwatched(pair.created),
        }
    }

    /// Whether somebody who was not answered may have written the key of the event between `before` and the
    /// event, while nobody watched.
    fn may_have_been_written(&self, event: &Event, before: Option<&Pair>) -> bool {
        self.history.unanswered_puts(event, before).next().is_some()
    }

    /// The numbers of a change follow from the state before it.
    fn numbers(&mut self, event: &Event, states: &States) {
        let before = states.at(&event.key, event.revision - 1);
        match &event.pair {
            Some(pair) => {
                let expected = (
                    before.map_or(event.revision, |pair| pair.created),
                    event.revision,
                    before.map_or(1, |pair| pair.version + 1),
                );
                let numbers = (pair.created, pair.modified, pair.version);
                if numbers != expected && !self.leaves_room(before, pair) {
                    let what = format!(
                        "{pair:?}, but {expected:?} (created, modified, version) \
                                        follow from {before:?}"
                    );
                    self.complain(Rule::Numbers, what);
                }
            }
            // Unless somebody who was not answered had written it while nobody watched.
            None if before.is_none() && !self.may_have_been_written(event, None) => {
                let what = format!(
                    "{} was deleted at {} and did not exist",
                    event.key, event.revision
                );
                self.complain(Rule::FromNowhere, what);
            }
            None => {}
        }
    }

    /// Every change has an author, and no author's write happened twice.
    fn authors(&mut self, changes: &Changes, states: &States) {
        let history = self.history;
        let mut authors: HashMap<(&str, &str), &Operation> = HashMap::new();
        let mut deletes: HashMap<&str, Vec<&Operation>> = HashMap::new();
        let mut revoked = BTreeSet::new();
        for operation in &history.operations {
            if let Call::Revoke { lease } = operation.call {
                revoked.insert(lease);
            }
            for (key, value) in written(&operation.call) {
                match value {
                    Some(value) => {
                        authors.insert((key, value), operation);
                    }
                    None => deletes.entry(key).or_default().push(operation),
                }
            }
        }
        let may_be = |operation: &Operation, revision: i64| match &operation.outcome {
            Outcome::Done(reply) => reply.changed && reply.revision == revision,
            Outcome::Unknown(_) => true,
            Outcome::Failed(_) => false,
        };
        let mut used: HashMap<(&str, &str), i64> = HashMap::new();
        for event in changes.values() {
            let (revision, key) = (event.revision, event.key.as_str());
            let Some(pair) = &event.pair else {
                // A lease that ended deletes its keys; no client says so.
                let ended = |lease: i64| {
                    let kept = history.kept.contains(&lease);
                    lease != 0 && (!kept || revoked.contains(&lease))
                };
                let before = states.at(key, revision - 1);
                // Or one that somebody has given them who was not answered, while nobody watched.
                let leased = before.is_some_and(|pair| ended(pair.lease))
                    || history.unanswered_puts(event, before).any(ended);
                let known = deletes
                    .get(key)
                    .is_some_and(|all| all.iter().any(|delete| may_be(delete, revision)));
                if !leased && !known {
                    let what = format!("nobody deleted {key} at {revision}");
                    self.complain(Rule::FromNowhere, what);
                }
                continue;
            };
            let at = (key, pair.value.as_str());
            match authors.get(&at) {
                Some(author) if may_be(author, revision) => {}
                Some(author) => {
                    let what = format!("{pair:?} was seen, but {author:?}");
                    self.complain(Rule::FromNowhere, what);
                }
                None => self.complain(Rule::FromNowhere, format!("nobody wrote {pair:?}")),
            }
            if let Some(first) = used.insert(at, revision) {
                let what = format!(
                    "{key} = {} was written at {first} and again at {revision}",
                    pair.value
                );
                self.complain(Rule::FromNowhere, what);
            }
        }
    }

    /// No key went with its lease before the lease could have ended.
    fn leases(&mut self, states: &States) {
        let history = self.history;
        let ended_by_hand: BTreeSet<_> = history
            .operations
            .iter()
            .filter_map(|operation| match operation.call {
                Call::Revoke { lease } => Some(lease),
                _ => None,
            })
            .collect();
        let batches = history.watches.iter().flat_map(|watch| &watch.batches);
        for batch in batches {
            for event in &batch.events {
                let (revision, key) = (event.revision, event.key.as_str());
                let lease = states.at(key, revision - 1).map_or(0, |pair| pair.lease);
                let due = history.due.get(&lease);
                let too_early = event.pair.is_none()
                    && !ended_by_hand.contains(&lease)
                    && due.is_some_and(|due| batch.at < *due)
                    && !self.deleted(key, revision);
                if too_early {
                    let what = format!("{key} at {revision} after {:?}, due at {due:?}", batch.at);
                    self.complain(Rule::LeaseEnded, what);
                }
            }
        }
    }

    /// Whether a client may have deleted this key at this revision.
    fn deleted(&self, key: &str, revision: i64) -> bool {
        self.history.operations.iter().any(|operation| {
            let asked = matches!(&operation.call, Call::Delete { key: asked } if asked == key);
            asked
                && match &operation.outcome {
                    Outcome::Done(reply) => reply.changed && reply.revision == revision,
                    Outcome::Unknown(_) => true,
                    Outcome::Failed(_) => false,
                }
        })
    }

    /// What began after another had ended is not before it.
    fn real_time(&mut self) {
        let done = |operation: &&Operation| matches!(operation.outcome, Outcome::Done(_));
        let mut by_start: Vec<_> = self.history.operations.iter().filter(done).collect();
        let mut by_end = by_start.clone();
        by_start.sort_by_key(|operation| operation.start);
        by_end.sort_by_key(|operation| operation.end);
        let mut ended = by_end.into_iter().peekable();
        let mut newest: Option<(i64, &Operation)> = None;
        for operation in by_start {
            while let Some(before) = ended.next_if(|before| before.end < operation.start) {
                let revision = revision_of(before);
                if newest.is_none_or(|(newest, _)| revision > newest) {
                    newest = Some((revision, before));
                }
            }
            let Some((seen, before)) = newest else {
                continue;
            };
            let revision = revision_of(operation);
            let takes_one = matches!(&operation.outcome, Outcome::Done(reply) if reply.changed);
            if revision < seen || (takes_one && revision == seen) {
                let what = format!("{operation:?} began after {before:?} had ended");
                self.complain(Rule::RevisionOrder, what);
            }
        }
    }

    /// A client's own requests, in the order in which it sent them.
    fn clients(&mut self) {
        let mut seen: HashMap<usize, i64> = HashMap::new();
        for operation in &self.history.operations {
            if !matches!(operation.outcome, Outcome::Done(_)) {
                continue;
            }
            let revision = revision_of(operation);
            let last = seen.entry(operation.client).or_insert(revision);
            if revision < *last {
                let what = format!("{operation:?} after {last}");
                self.complain(Rule::ClientOrder, what);
            } else {
                *last = revision;
            }
        }
    }

    /// The answer is the one that the state at its revision gives.
    fn answer(&mut self, operation: &Operation, states: &States) {
        let Outcome::Done(reply) = &operation.outcome else {
            return;
        };
        match &operation.call {
            Call::Get { key } => {
                let expected = states.at(key, reply.revision).into_iter().collect();
                self.read(operation, &reply.pairs, expected, reply.revision, states);
            }
            Call::List { prefix } => {
                let expected = states.list(prefix, reply.revision);
                self.read(operation, &reply.pairs, expected, reply.revision, states);
            }
            Call::Swap { key, expected, .. } => {
                let decided_at = reply.revision - i64::from(reply.changed);
                let actual = states.at(key, decided_at).map_or(0, |pair| pair.modified);
                // Somebody who was not answered may have changed it while nobody watched.
                let room = self.history.unwatched(key, actual + 1, decided_at);
                let overtaken = !reply.changed && room.is_some();
                if (actual == *expected) != reply.changed && !overtaken {
                    let what = format!("{operation:?}, but its mod revision was {actual}");
                    self.complain(Rule::Condition, what);
                }
            }
            Call::Delete { key } if !reply.changed => {
                if let Some(pair) = states.at(key, reply.revision) {
                    let what = format!("{operation:?} found nothing, but there was {pair:?}");
                    self.complain(Rule::Lost, what);
                }
            }
            Call::Put { .. } | Call::Delete { .. } | Call::Revoke { .. } => {}
        }
    }

    fn read(
        &mut self,
        operation: &Operation,
        pairs: &[Pair],
        expected: Vec<&Pair>,
        revision: i64,
        states: &States,
    ) {
        let who = format!(
            "client {} by {:?} at {revision}",
            operation.client, operation.call
        );
        let shown: BTreeMap<_, _> = pairs.iter().map(|pair| (&pair.key, pair)).collect();
        if shown.len() != pairs.len() || !pairs.is_sorted_by_key(|pair| &pair.key) {
            self.complain(Rule::Read, format!("{who}: repeated or out of order"));
        }
        let expected: BTreeMap<_, _> = expected.into_iter().map(|pair| (&pair.key, pair)).collect();
        for (key, pair) in &expected {
            match shown.get(key) {
                Some(shown) if shown == pair => {}
                Some(shown) => {
                    self.complain(Rule::Read, format!("{who}: {shown:?} instead of {pair:?}"));
                }
                None => self.complain(Rule::Lost, format!("{who}: {pair:?} is missing")),
            }
        }
        for (key, pair) in shown {
            if expected.contains_key(key) {
                continue;
            }
            if states.was_deleted(key, revision) {
                self.complain(Rule::Resurrected, format!("{who}: {pair:?} was deleted"));
            } else {
                self.complain(Rule::FromNowhere, format!("{who}: {pair:?}"));
            }
        }
    }

    /// The pair before each change, and what is there in the end.
    fn last(&mut self, states: &States) {
        for watch in &self.history.watches {
            for event in watch.batches.iter().flat_map(|batch| &batch.events) {
                let before = states.at(&event.key, event.revision - 1);
                if event.prev.is_some() && event.prev.as_ref() != before {
                    let what = format!("{}: {event:?}, but before was {before:?}", watch.name);
                    self.violations.push(Violation {
                        rule: Rule::WatchPrev,
                        what,
                    });
                }
            }
        }
        let Some((revision, pairs)) = &self.history.last else {
            return;
        };
        let expected = states.list("", *revision);
        let shown: BTreeMap<_, _> = pairs.iter().map(|pair| (&pair.key, pair)).collect();
        for pair in &expected {
            if shown.get(&pair.key) != Some(pair) {
                let what = format!("{:?} instead of {pair:?}", shown.get(&pair.key));
                self.complain(Rule::Last, what);
            }
        }
        let expected: HashSet<_> = expected.iter().map(|pair| &pair.key).collect();
        for (key, pair) in shown {
            if !expected.contains(key) {
                self.complain(Rule::Last, format!("{pair:?} should not be there"));
            }
        }
    }
}

/// What a call writes: keys with their new values, or nothing for a delete.
pub(super) fn written(call: &Call) -> Vec<(&str, Option<&str>)> {
    match call {
        Call::Get { .. } | Call::List { .. } | Call::Revoke { .. } => Vec::new(),
        Call::Put { pairs, .. } => pairs
            .iter()
            .map(|(key, value)| (key.as_str(), Some(value.as_str())))
            .collect(),
        Call::Swap { key, value, .. } => vec![(key, Some(value))],
        Call::Delete { key } => vec![(key, None)],
    }
}

impl History {
    /// The leases (0 is none) that the key of the event may have been given between `before` and the event,
    /// while nobody watched, by those who were not answered.
    fn unanswered_puts(&self, event: &Event, before: Option<&Pair>) -> impl Iterator<Item = i64> {
        let behind = before.map_or(self.base, |before| before.modified);
        let room = self.unwatched(&event.key, behind + 1, event.revision - 1);
        let operations = self.operations.iter().filter(move |_| room.is_some());
        operations.filter_map(|operation| {
            let lease = match operation.call {
                Call::Put { lease, .. } => lease,
                _ => 0,
            };
            let writes = |(key, value): (&str, Option<&str>)| key == event.key && value.is_some();
            let unknown = matches!(operation.outcome, Outcome::Unknown(_));
            (unknown && written(&operation.call).into_iter().any(writes)).then_some(lease)
        })
    }

    /// The last revision among these, behind the base, of which no watcher knows what became of the key.
    fn unwatched(&self, key: &str, first: i64, last: i64) -> Option<i64> {
        let mut at = last;
        while let Some(watch) = self.watches.iter().find(|watch| covers(watch, key, at)) {
            at = watch.start - 1;
        }
        (at >= first.max(self.base + 1)).then_some(at)
    }
}

fn covers(watch: &WatchLog, key: &str, revision: i64) -> bool {
    key.starts_with(&watch.prefix) && (watch.start..=watch.through).contains(&revision)
}

fn revision_of(operation: &Operation) -> i64 {
    match &operation.outcome {
        Outcome::Done(reply) => reply.revision,
        Outcome::Failed(_) | Outcome::Unknown(_) => 0,
    }
}

//! All that a store in memory knows, and the changes to it. No locks, no tasks, no clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::store::eval::{self, Outcome, Rows, Working};
use crate::store::feed::Stretch;
use crate::store::{
    Claim, CopyUp, FENCE, HOLD, Line, Read, ReadReply, Record, RecordTxn, RecordWrite, Replay,
    Replayed, RequestError, Status,
};
use crate::types::{
    Change, Event, EventBatch, KeyRange, KeyValue, LeaseId, LeaseStatus, Range, Reserved, Revision,
};

type Result<T> = std::result::Result<T, RequestError>;

/// The revision of an empty store: its first change is 2, as in etcd.
const FIRST: Revision = Revision(1);

pub(super) struct State {
    pub(super) revision: Revision,
    /// Counts the replays and copy-ups, which take no revision.
    pub(super) unnumbered: i64,
    pub(super) line: Option<Line>,
    /// What happened since the feed was told last.
    pub(super) unpublished: Vec<Arc<EventBatch>>,
    reserved: Reserved,
    compacted: Revision,
    /// What lies below it was another store's, and so were the changes up to it.
    origin: Revision,
    keys: BTreeMap<Bytes, Key>,
    log: BTreeMap<Revision, Arc<EventBatch>>,
    leases: BTreeMap<LeaseId, Lease>,
    records: BTreeMap<String, Record>,
}

/// One key in all its states.
#[derive(Default)]
struct Key {
    /// From when on it was what, oldest first; nothing is "deleted". A copied key was what it is
    /// since its own mod revision.
    states: Vec<(Revision, Option<KeyValue>)>,
    /// What it is now, where a replay has taken the lease of the last state.
    detached: Option<KeyValue>,
    /// It was deleted while there was a line.
    whiteout: bool,
    /// The mod revision that it was copied up with, if it was.
    copied: Option<Revision>,
}

struct Lease {
    ttl_s: i64,
    deadline: Instant,
}

impl Key {
    fn now(&self) -> Option<&KeyValue> {
        let last = self.states.last()?.1.as_ref();
        self.detached.as_ref().or(last)
    }

    fn at(&self, at: Revision) -> Option<&KeyValue> {
        let states = self.states.iter().rev();
        let mut until = states.skip_while(|(since, _)| *since > at);
        until.next()?.1.as_ref()
    }

    fn is_claimed(&self) -> bool {
        self.whiteout || self.now().is_some()
    }
}

impl Rows for State {
    fn get(&self, key: &[u8]) -> Option<&KeyValue> {
        self.keys.get(key)?.now()
    }

    fn range<'a>(&'a self, keys: &KeyRange) -> Box<dyn Iterator<Item = &'a KeyValue> + 'a> {
        let within = self.keys.range::<[u8], _>(keys.bounds());
        Box::new(within.filter_map(|(_, key)| key.now()))
    }

    fn past(&self, keys: &KeyRange, at: Revision) -> Vec<KeyValue> {
        let within = self.keys.range::<[u8], _>(keys.bounds());
        within.filter_map(|(_, key)| key.at(at).cloned()).collect()
    }

    fn is_claimed(&self, key: &[u8]) -> bool {
        self.keys.get(key).is_some_and(Key::is_claimed)
    }

    fn has_lease(&self, id: LeaseId) -> bool {
        self.leases.contains_key(&id)
    }

    fn attached(&self, id: LeaseId) -> Vec<Bytes> {
        let live = self.keys.values().filter_map(Key::now);
        let attached = live.filter(|kv| kv.lease == id);
        attached.map(|kv| kv.key.clone()).collect()
    }
}

impl State {
    pub(super) fn new(reserved: Reserved) -> Self {
        Self {
            revision: FIRST,
            unnumbered: 0,
            line: None,
            unpublished: Vec::new(),
            reserved,
            compacted: Revision(0),
            origin: Revision(0),
            keys: BTreeMap::new(),
            log: BTreeMap::new(),
            leases: BTreeMap::new(),
            records: BTreeMap::new(),
        }
    }

    /// Runs requests and takes over what they did.
    pub(super) fn working<T>(
        &mut self,
        run: impl FnOnce(&mut Working<'_, Self>) -> Result<T>,
    ) -> Result<T> {
        let mut working = Working::new(self, &self.reserved, self.revision, self.oldest());
        let reply = run(&mut working);
        let outcome = working.finish();
        self.apply(outcome);
        reply
    }

    fn apply(&mut self, outcome: Outcome) {
        // Whether or not the line wants claims of keys that are new to both stores: a row is a
        // claim, so this store makes no difference.
        let claims = self.line.is_some();
        for row in outcome.rows {
            let deleted = row.after.is_none();
            let key = self.keys.entry(row.key).or_default();
            key.whiteout = deleted && claims;
            if let Some(copied) = row.copied {
                self.unnumbered += 1;
                // What happened to the key here before it was claimed is not the line's history.
                key.copied = Some(copied.mod_revision);
                key.detached = None;
                key.states = vec![(copied.mod_revision, Some(copied))];
            }
        }
        for batch in outcome.batches {
            for event in &batch.events {
                let state = match &event.change {
                    Change::Put(kv) => Some(kv.clone()),
                    Change::Delete { .. } => None,
                };
                let key = self.keys.entry(event.key().clone()).or_default();
                key.detached = None;
                key.states.push((batch.revision, state));
            }
            let batch = Arc::new(batch);
            self.log.insert(batch.revision, batch.clone());
            self.unpublished.push(batch);
        }
        self.revision = outcome.revision;
    }

    pub(super) fn compact(&mut self, at: Revision) -> Result<()> {
        if at <= self.compacted {
            return Err(RequestError::Compacted(self.oldest()));
        }
        eval::check_at(at, self.revision, self.oldest())?;
        self.compacted = at;
        self.keys.retain(|_, key| {
            let later = key.states.partition_point(|(since, _)| *since <= at);
            // The state at `at` stays, unless it is "deleted", which goes without saying.
            let mut superseded = later.saturating_sub(1);
            if later > 0 && key.states[later - 1].1.is_none() {
                superseded = later;
            }
            key.states.drain(..superseded);
            key.whiteout || !key.states.is_empty()
        });
        self.log = self.log.split_off(&at);
        if let Some(batch) = self.log.get_mut(&at) {
            // What was before the oldest revision is compacted.
            let without_prev = |event: &Event| Event {
                prev: None,
                ..event.clone()
            };
            *batch = Arc::new(EventBatch {
                revision: at,
                events: batch.events.iter().map(without_prev).collect(),
            });
        }
        Ok(())
    }

    pub(super) fn history(&self, after: Revision, limit: usize) -> Result<Stretch> {
        if after < self.origin {
            let oldest = self.compacted.max(self.origin.next());
            return Err(RequestError::Compacted(oldest));
        }
        if after.next() < self.compacted {
            return Err(RequestError::Compacted(self.compacted));
        }
        let mut batches = Vec::new();
        let mut events = 0;
        for batch in self.log.range(after.next()..).map(|(_, batch)| batch) {
            if events >= limit {
                let through = Revision(batch.revision.0 - 1);
                return Ok(Stretch { batches, through });
            }
            events += batch.events.len();
            batches.push(batch.clone());
        }
        Ok(Stretch {
            batches,
            through: self.revision.max(after),
        })
    }

    pub(super) fn grant(&mut self, id: LeaseId, ttl_s: i64, now: Instant) -> Result<()> {
        self.working(|working| working.grant(id))?;
        let deadline = now + seconds(ttl_s);
        self.leases.insert(id, Lease { ttl_s, deadline });
        Ok(())
    }

    pub(super) fn revoke(&mut self, id: LeaseId) -> Result<()> {
        self.working(|working| working.revoke(id))?;
        self.leases.remove(&id);
        Ok(())
    }

    /// Whether clients are served here: not between a fence and a line behind it.
    fn serves(&self) -> bool {
        !self.is_fenced() || self.line.is_some()
    }

    /// Whether leases end when their time is over.
    fn ends_leases(&self) -> bool {
        self.serves() && !self.records.contains_key(HOLD)
    }

    pub(super) fn expire(&mut self, now: Instant) {
        if !self.ends_leases() {
            return;
        }
        let over = self
            .leases
            .iter()
            .filter(|(_, lease)| lease.deadline <= now);
        let over: Vec<_> = over.map(|(id, _)| *id).collect();
        for id in over {
            // It exists, so it can be revoked.
            self.revoke(id).ok();
        }
    }

    pub(super) fn first_deadline(&self) -> Option<Instant> {
        let deadlines = self.leases.values().map(|lease| lease.deadline);
        deadlines.min().filter(|_| self.ends_leases())
    }

    pub(super) fn keep_alive(&mut self, id: LeaseId, now: Instant) -> Option<i64> {
        let lease = self.leases.get_mut(&id)?;
        lease.deadline = now + seconds(lease.ttl_s);
        Some(lease.ttl_s)
    }

    pub(super) fn time_to_live(
        &self,
        id: LeaseId,
        keys: bool,
        now: Instant,
    ) -> Option<LeaseStatus> {
        let lease = self.leases.get(&id)?;
        let remaining = lease.deadline.saturating_duration_since(now).as_secs();
        Some(LeaseStatus {
            id,
            granted_ttl_s: lease.ttl_s,
            remaining_ttl_s: i64::try_from(remaining).unwrap_or(i64::MAX),
            keys: if keys { self.attached(id) } else { Vec::new() },
        })
    }

    pub(super) fn leases(&self) -> Vec<LeaseId> {
        self.leases.keys().copied().collect()
    }

    pub(super) fn status(&self) -> Status {
        let states = self.keys.values().flat_map(|key| &key.states);
        let size = |kv: &KeyValue| kv.key.len() + kv.value.len();
        let pairs = states.filter_map(|(_, kv)| kv.as_ref());
        let size: usize = pairs.map(size).sum();
        let size = u64::try_from(size).unwrap_or(u64::MAX);
        Status {
            revision: self.revision,
            compacted: self.oldest(),
            size,
            size_in_use: size,
        }
    }

    pub(super) fn read(&mut self, at: Option<Revision>, read: Read) -> Result<ReadReply> {
        match read {
            Read::Range(request) => {
                let request = Range { at, ..request };
                let reply = self.working(|working| working.range(&request))?;
                Ok(ReadReply::Range(reply))
            }
            Read::Claims { keys, values } => {
                let at = at.unwrap_or(self.revision);
                eval::check_at(at, self.revision, self.oldest())?;
                Ok(ReadReply::Claims(self.claims(at, &keys, values)))
            }
        }
    }

    /// A key that is claimed today and was not live at `at` was not live in the old store then
    /// either: it would have been copied up.
    fn claims(&self, at: Revision, keys: &KeyRange, mut values: usize) -> Vec<Claim> {
        let mut claims = Vec::new();
        for part in self.reserved.visible(keys) {
            for (key, states) in self.keys.range::<[u8], _>(part.bounds()) {
                let Some(kv) = states.at(at) else {
                    if states.is_claimed() {
                        claims.push(Claim::Whiteout(key.clone()));
                    }
                    continue;
                };
                let mut kv = kv.clone();
                if values > 0 {
                    values -= 1;
                } else {
                    kv.value = Bytes::new();
                }
                claims.push(if states.copied == Some(kv.mod_revision) {
                    Claim::Copied(kv)
                } else {
                    Claim::Live(kv)
                });
            }
        }
        claims
    }

    pub(super) fn copy_up(&mut self, copy_up: CopyUp) -> Result<Option<usize>> {
        let record = copy_up.record;
        if let Some((write, expected)) = &record
            && self.record_version(&write.name) != *expected
        {
            return Ok(None);
        }
        let copied = self.working(|working| working.copy_up(&copy_up.kvs))?;
        if let Some((write, _)) = record {
            self.write_record(write);
        }
        Ok(Some(copied))
    }

    pub(super) fn records(&self, prefix: &str) -> Vec<Record> {
        let named = self.records.values();
        let named = named.filter(|record| record.name.starts_with(prefix));
        named.cloned().collect()
    }

    pub(super) fn write_records(&mut self, txn: RecordTxn, now: Instant) -> bool {
        let mut expect = txn.expect.iter();
        if expect.any(|(name, version)| self.record_version(name) != *version) {
            return false;
        }
        let ended_leases = self.ends_leases();
        for write in txn.writes {
            self.write_record(write);
        }
        for key in &txn.forget {
            self.keys.remove(key);
        }
        if let Some(line) = txn.line {
            if self.line.is_none() && line.is_some_and(|line| line.claims) {
                // What an earlier migration has copied up is the store's own in this one.
                for key in self.keys.values_mut() {
                    key.copied = None;
                }
            }
            self.line = line;
            if let Some(line) = line
                && line.base > self.revision
            {
                self.revision = line.base;
                self.origin = line.base;
            }
        }
        if !ended_leases && self.ends_leases() {
            // Nobody could keep them alive.
            for lease in self.leases.values_mut() {
                lease.deadline = now + seconds(lease.ttl_s);
            }
        }
        true
    }

    pub(super) fn replay(&mut self, replay: Replay) -> Result<bool> {
        self.unnumbered += 1;
        let (write, expected) = replay.record;
        if self.record_version(&write.name) != expected {
            return Ok(false);
        }
        let mut leases = replay.changes.iter().filter_map(|change| {
            let lease = change.live()?.lease;
            lease.is_some().then_some(lease)
        });
        if leases.any(|lease| !self.leases.contains_key(&lease)) {
            return Err(RequestError::LeaseNotFound);
        }
        for change in replay.changes {
            let (key, since, state) = match change {
                Replayed::Put(kv) => (kv.key.clone(), kv.mod_revision, Some(kv)),
                Replayed::Delete { key, revision } => (key, revision, None),
            };
            let key = self.keys.entry(key).or_default();
            key.whiteout &= state.is_none();
            // The same state again may have got another lease, or lost it: then the past has it still.
            let last = key.states.last().and_then(|(_, last)| last.as_ref());
            key.detached = state.clone().filter(|now| {
                !now.lease.is_some()
                    && last.is_some_and(|last| last.mod_revision == since && last.lease.is_some())
            });
            if key.detached.is_some() {
                continue;
            }
            key.states.retain(|(earlier, _)| *earlier < since);
            key.states.push((since, state));
        }
        self.write_record(write);
        Ok(true)
    }

    /// The oldest revision that can be read.
    fn oldest(&self) -> Revision {
        self.compacted.max(self.origin)
    }

    fn record_version(&self, name: &str) -> i64 {
        self.records.get(name).map_or(0, |record| record.version)
    }

    fn write_record(&mut self, write: RecordWrite) {
        let version = self.record_version(&write.name) + 1;
        let Some(value) = write.value else {
            self.records.remove(&write.name);
            return;
        };
        let record = Record {
            name: write.name.clone(),
            value,
            version,
        };
        self.records.insert(write.name, record);
    }

    pub(super) fn reserved(&self) -> &Reserved {
        &self.reserved
    }

    pub(super) fn is_fenced(&self) -> bool {
        self.records.contains_key(FENCE)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty() && !self.keys.values().any(Key::is_claimed)
    }

    pub(super) fn drop_claims(&mut self) {
        self.keys.retain(|_, key| {
            key.whiteout = false;
            !key.states.is_empty()
        });
    }
}

fn seconds(ttl_s: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl_s).unwrap_or_default())
}

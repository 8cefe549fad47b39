//! A batch of requests over prefetched rows: what to write, what to answer, what to publish. Pure.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::backend::{Changes, Head, Lease, LogEntry, LogKind, Logged, Prefetched, Row};
use super::replay;
use super::table::Table;
use super::work::{Done, Request, Work, late};
use crate::store::eval::{Outcome, Working};
use crate::store::{
    CopyUp, FENCE, HOLD, Record, RecordTxn, RecordWrite, Replay, RequestError, Result,
};
use crate::types::{Answer, Change, EventBatch, Granted, KeyValue, LeaseId, Reserved, Revision};

/// What became of a batch.
pub(super) struct Decided {
    /// The revision before it.
    pub(super) before: Revision,
    pub(super) changes: Changes,
    /// One per request.
    pub(super) done: Vec<Result<Done>>,
    /// What happened, in the order of revisions.
    pub(super) batches: Vec<Arc<EventBatch>>,
}

/// If nothing was committed for so long, in milliseconds of the store's clock, nobody could keep
/// leases alive in between: the proxies were down, or the database was. Then all leases begin their
/// time anew, as etcd's do when it has a new leader. Shorter gaps cost no lease, since none is
/// shorter than [`crate::store::lease::MIN_TTL_S`].
///
/// Likewise if the clock has gone back by more: by its new time the leases would live on for as long as it
/// went back, and longer.
pub(super) const GAP_MS: i64 = 2000;

/// Decides a batch. What nobody waits for any more is left out.
pub(super) fn decide(batch: &[Request], mut found: Prefetched, reserved: &Reserved) -> Decided {
    let renew_leases = found.now_ms.abs_diff(found.head.at_ms) > GAP_MS.unsigned_abs();
    if renew_leases {
        for lease in &mut found.leases {
            lease.deadline_ms = found.now_ms + lease.ttl_s * 1000;
        }
    }
    let now_ms = found.now_ms;
    let before = found.head.revision;
    let was_held = found.records.iter().any(|record| record.name == HOLD);
    let table = Table::new(found.rows, found.claimed, found.past, &found.leases);
    let head = found.head;
    let working = Working::new(&table, reserved, head.revision, head.oldest());
    let mut batch_of = Batch {
        head,
        now_ms,
        working,
        leases: Overlaid::new(found.leases.into_iter().map(|lease| (lease.id, lease))),
        records: Overlaid::new(
            found
                .records
                .into_iter()
                .map(|record| (record.name.clone(), record)),
        ),
        granted: false,
    };
    let mut done = Vec::with_capacity(batch.len());
    for request in batch {
        let admitted = if request.begin() {
            head.admit(request.guard)
        } else {
            Err(late())
        };
        done.push(admitted.and_then(|()| batch_of.run(&request.work)));
    }
    let let_go = was_held && !batch_of.is_held();
    let granted = batch_of.granted;
    let outcome = batch_of.working.finish();
    // While the store did not serve, or they were held, nobody could keep them alive.
    let renew_leases = renew_leases || let_go || (batch_of.head.serves() && !head.serves());
    let mut changes = Changes::none(batch_of.head);
    changes.head.revision = outcome.revision.max(batch_of.head.revision);
    (changes.leases, changes.dropped_leases) = batch_of.leases.changes();
    (changes.records, changes.dropped_records) = batch_of.records.changes();
    changes.renew_leases = renew_leases;
    let batches = keep(outcome, &table, &mut changes);
    for (request, done) in batch.iter().zip(&done) {
        match (&request.work, done) {
            (Work::Replay(replay), Ok(Done::Records(true))) => {
                replay::keep(replay, &table, &mut changes);
            }
            (Work::Records(txn), Ok(Done::Records(true))) => {
                forget(&txn.forget, &table, &mut changes);
            }
            (Work::Own(keys), Ok(_)) => own(keys, &table, &mut changes),
            _ => {}
        }
    }
    changes.head.unnumbered += i64::from(shows_unnumbered(&changes, granted, &head));
    let ticks = |request: &Request| matches!(request.work, Work::Expire(_));
    if !changes.is_empty(&head) || batch.iter().any(ticks) {
        changes.head.at_ms = now_ms;
    }
    Decided {
        before,
        changes,
        done,
        batches,
    }
}

/// Whether changes to a store at `before` are seen and have no number yet: neither a revision nor one of
/// [`Head::unnumbered`]. By it somebody who has read them knows whether they are on the disk. What only
/// gives leases more time is nothing that a reader could hold on to.
fn shows_unnumbered(changes: &Changes, granted: bool, before: &Head) -> bool {
    changes.head.commit() == before.commit()
        && (granted
            || changes.head != *before
            || !changes.rows.is_empty()
            || !changes.removed.is_empty()
            || !changes.dropped_leases.is_empty()
            || !changes.records.is_empty()
            || !changes.dropped_records.is_empty())
}

struct Batch<'a> {
    head: Head,
    now_ms: i64,
    working: Working<'a, Table>,
    leases: Overlaid<LeaseId, Lease>,
    records: Overlaid<String, Record>,
    /// A lease was granted.
    granted: bool,
}

impl Batch<'_> {
    fn run(&mut self, work: &Work) -> Result<Done> {
        Ok(match work {
            Work::Txn { copies, txn } => Done::Txn(self.working.txn_over(copies, txn)?),
            Work::CopyUp(copy_up) => Done::CopiedUp(self.copy_up(copy_up)?),
            Work::Grant { id, ttl_s } => Done::Granted(self.grant(*id, *ttl_s)?),
            Work::Revoke(id) => {
                let revision = self.working.revoke(*id)?;
                self.leases.set(*id, None);
                Done::Plain(Answer {
                    revision,
                    reply: (),
                })
            }
            Work::KeepAlive(id) => {
                let reply = self.keep_alive(*id);
                Done::KeptAlive(self.answer(reply))
            }
            Work::Expire(ids) => {
                let ends = self.head.serves() && !self.is_held();
                for id in ids.iter().filter(|_| ends) {
                    let over = |lease: &Lease| lease.deadline_ms <= self.now_ms;
                    if self.leases.get(id).is_some_and(over) {
                        self.working.revoke(*id)?;
                        self.leases.set(*id, None);
                    }
                }
                Done::Plain(self.answer(()))
            }
            Work::Records(txn) => Done::Records(self.write_records(txn)),
            Work::Replay(replay) => Done::Records(self.replay(replay)?),
            // What becomes of the rows follows in [`own`].
            Work::Own(_) => Done::Plain(self.answer(())),
            Work::Compact(at) => {
                // Reading at the origin is possible until it is compacted, like any revision.
                if *at <= self.head.compacted || *at < self.head.origin {
                    return Err(RequestError::Compacted(self.head.oldest()).into());
                }
                if *at > self.head.revision {
                    return Err(RequestError::FutureRevision.into());
                }
                self.head.compacted = *at;
                Done::Plain(self.answer(()))
            }
        })
    }

    fn answer<T>(&self, reply: T) -> Answer<T> {
        Answer {
            revision: self.working.revision(),
            reply,
        }
    }

    fn copy_up(&mut self, copy_up: &CopyUp) -> Result<Option<usize>> {
        if let Some((write, expected)) = &copy_up.record
            && self.version(&write.name) != *expected
        {
            return Ok(None);
        }
        let fresh = self.working.copy_up(&copy_up.kvs)?;
        if let Some((write, _)) = &copy_up.record {
            self.write_record(write);
        }
        Ok(Some(fresh))
    }

    /// What is to become of the record, and whether anything is; the rows follow in [`replay::keep`].
    fn replay(&mut self, replay: &Replay) -> Result<bool> {
        let (write, expected) = &replay.record;
        if self.version(&write.name) != *expected {
            return Ok(false);
        }
        let mut leases = replay
            .changes
            .iter()
            .filter_map(|it| Some(it.live()?.lease));
        if leases.any(|id| id.is_some() && self.leases.get(&id).is_none()) {
            return Err(RequestError::LeaseNotFound.into());
        }
        self.write_record(write);
        Ok(true)
    }

    fn grant(&mut self, id: LeaseId, ttl_s: i64) -> Result<Answer<Granted>> {
        self.working.grant(id)?;
        let lease = Lease {
            id,
            ttl_s,
            deadline_ms: self.now_ms + ttl_s * 1000,
        };
        self.leases.set(id, Some(lease));
        self.granted = true;
        Ok(self.answer(Granted { id, ttl_s }))
    }

    /// A lease whose time is over cannot be saved, though it may not have been ended yet: its
    /// holder may have been told already that it is lost. While nobody is served nobody is told, and none ends.
    fn keep_alive(&mut self, id: LeaseId) -> Option<i64> {
        let lease = *self.leases.get(&id)?;
        if lease.deadline_ms <= self.now_ms && self.head.serves() {
            return None;
        }
        let deadline_ms = self.now_ms + lease.ttl_s * 1000;
        let lease = Lease {
            deadline_ms,
            ..lease
        };
        self.leases.set(id, Some(lease));
        Some(lease.ttl_s)
    }

    /// Whether no lease ends by itself. Only for work that has asked for the record.
    fn is_held(&self) -> bool {
        self.version(HOLD) > 0
    }

    fn version(&self, name: &str) -> i64 {
        self.records.get(name).map_or(0, |record| record.version)
    }

    fn write_record(&mut self, write: &RecordWrite) {
        let version = self.version(&write.name) + 1;
        let record = write.value.clone().map(|value| Record {
            name: write.name.clone(),
            value,
            version,
        });
        self.records.set(write.name.clone(), record);
    }

    fn write_records(&mut self, txn: &RecordTxn) -> bool {
        let mut expected = txn.expect.iter();
        if !expected.all(|(name, version)| self.version(name) == *version) {
            return false;
        }
        for write in &txn.writes {
            self.write_record(write);
            if write.name == FENCE {
                self.head.fenced = write.value.is_some();
            }
        }
        if let Some(line) = txn.line {
            self.head.line = line;
            let base = line.map_or(Revision(0), |line| line.base);
            if base > self.head.revision {
                self.head.revision = base;
                self.head.origin = base;
            }
        }
        true
    }
}

/// Turns what the requests did into rows and log entries.
fn keep(outcome: Outcome, table: &Table, changes: &mut Changes) -> Vec<Arc<EventBatch>> {
    // The last entry of each changed key: its revision, and where it is in the log.
    let events = outcome.batches.iter().map(|batch| batch.events.len());
    let mut last: HashMap<Bytes, (Revision, usize)> = HashMap::with_capacity(events.sum());
    for batch in &outcome.batches {
        for event in &batch.events {
            let (kind, kv) = match &event.change {
                Change::Put(kv) => (LogKind::Put, kv.clone()),
                Change::Delete { key, revision } => (LogKind::Delete, whiteout(key, *revision)),
            };
            let mut entry = LogEntry {
                kind,
                prev_revision: prev_revision(event.prev.as_ref(), last.get(&kv.key), table, &kv),
                kv,
            };
            let key = entry.kv.key.clone();
            if let Some((revision, index)) = last.get(&key)
                && *revision == batch.revision
            {
                // One transaction has changed the key twice: only the last state is one.
                let brief = &mut changes.log[*index];
                entry.prev_revision = std::mem::take(&mut brief.prev_revision);
                brief.kind = LogKind::Brief;
            }
            last.insert(key, (batch.revision, changes.log.len()));
            changes.log.push(entry);
        }
    }
    let claims = changes.head.leaves_claims();
    let mut copied_up = false;
    for row in outcome.rows {
        let before = table.row(&row.key);
        copied_up |= row.copied.is_some();
        let entry = last.get(&row.key);
        // The first change of a copied key puts the state that it was copied in into the log, where
        // the new entry's `prev_revision` finds it.
        let unlogged = before
            .filter(|row| row.live && row.logged.is_nothing())
            .map(|row| &row.kv);
        if let Some(kv) = row.copied.as_ref().or(unlogged)
            && entry.is_some()
        {
            changes.log.push(LogEntry {
                kind: LogKind::Copy,
                kv: kv.clone(),
                prev_revision: Revision(0),
            });
        }
        match (row.after, entry) {
            (Some(kv), _) => changes.rows.push(table.write(Row {
                kv,
                live: true,
                logged: match entry {
                    Some(_) => Logged::Yes,
                    None => Logged::No,
                },
            })),
            (None, Some((revision, _))) if claims => changes.rows.push(table.write(Row {
                kv: whiteout(&row.key, *revision),
                live: false,
                logged: Logged::Yes,
            })),
            (None, _) => changes.removed.extend(table.remove(&row.key)),
        }
    }
    changes.head.unnumbered += i64::from(copied_up);
    outcome.batches.into_iter().map(Arc::new).collect()
}

/// Removes rows without a word. What the log says of them is superseded by nothing, so that reads of the
/// past, which begin from the rows of now, do not find it.
fn forget(keys: &[Bytes], table: &Table, changes: &mut Changes) {
    let removed = keys.iter().filter_map(|key| table.remove(key));
    changes.removed.extend(removed);
    changes.head.unnumbered += i64::from(!changes.removed.is_empty());
}

/// Takes rows that were copied up for the store's own.
fn own(keys: &[Bytes], table: &Table, changes: &mut Changes) {
    let rows = keys.iter().filter_map(|key| table.row(key));
    let copied = rows.filter(|row| row.live && row.logged == Logged::No);
    changes.rows.extend(copied.map(|row| {
        table.write(Row {
            logged: Logged::Own,
            ..row.clone()
        })
    }));
}

/// The revision of the key's entry before this one.
fn prev_revision(
    prev: Option<&KeyValue>,
    last: Option<&(Revision, usize)>,
    table: &Table,
    kv: &KeyValue,
) -> Revision {
    match (prev, last) {
        (Some(prev), _) => prev.mod_revision,
        (None, Some((revision, _))) => *revision,
        (None, None) => table
            .row(&kv.key)
            .map_or(Revision(0), |row| row.kv.mod_revision),
    }
}

/// A deleted key's row and entry.
pub(super) fn whiteout(key: &Bytes, revision: Revision) -> KeyValue {
    KeyValue {
        key: key.clone(),
        mod_revision: revision,
        ..KeyValue::default()
    }
}

/// What was fetched, with the changes of the batch so far.
struct Overlaid<K, V> {
    found: BTreeMap<K, V>,
    changed: BTreeMap<K, Option<V>>,
}

impl<K: Ord + Clone, V> Overlaid<K, V> {
    fn new(found: impl Iterator<Item = (K, V)>) -> Self {
        Self {
            found: found.collect(),
            changed: BTreeMap::new(),
        }
    }

    fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        match self.changed.get(key) {
            Some(changed) => changed.as_ref(),
            None => self.found.get(key),
        }
    }

    fn set(&mut self, key: K, value: Option<V>) {
        self.changed.insert(key, value);
    }

    /// What to write, and what to remove.
    fn changes(self) -> (Vec<V>, Vec<K>) {
        let mut written = Vec::new();
        let mut removed = Vec::new();
        for (key, value) in self.changed {
            match value {
                Some(value) => written.push(value),
                None if self.found.contains_key(&key) => removed.push(key),
                None => {}
            }
        }
        (written, removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_begin_anew_where_the_clock_has_jumped_either_way() {
        let head = Head {
            at_ms: 100_000,
            ..Head::at(5)
        };
        for (now_ms, anew) in [
            (97_999, true),
            (98_000, false),
            (102_000, false),
            (102_001, true),
        ] {
            let found = Prefetched {
                head,
                now_ms,
                rows: Vec::new(),
                claimed: Vec::new(),
                past: Vec::new(),
                leases: Vec::new(),
                records: Vec::new(),
            };
            let changes = decide(&[], found, &Reserved::default()).changes;
            assert_eq!(changes.renew_leases, anew, "{now_ms}");
            if anew {
                assert_eq!(changes.head.at_ms, now_ms);
            }
        }
    }
}

//! What requests do to rows: etcd's rules as a pure function, with no I/O and no clock.
//!
//! A store looks up the rows that a batch of requests touches ([`Rows`]), runs the requests one after
//! the other over them ([`Working`]), and gets back what to write and what to tell the watchers
//! ([`Outcome`]). Each request keeps its own revision, however many share a batch; later ones see
//! what earlier ones did.

mod finish;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, hash_map};

use bytes::Bytes;

use super::RequestError;
use crate::types::{
    Answer, Change, Compare, CompareTarget, Delete, DeleteReply, Event, EventBatch, KeyRange,
    KeyValue, LeaseId, Op, Put, PutReply, Range, RangeReply, Reply, Reserved, Revision, Txn,
    TxnReply,
};

pub use finish::{Gather, finish};

type Result<T> = std::result::Result<T, RequestError>;

/// The rows under a batch, as they stood before it.
pub trait Rows {
    /// The live pair of `key`.
    fn get(&self, key: &[u8]) -> Option<&KeyValue>;

    /// All live pairs of `keys` (never an empty range) in byte order.
    fn range<'a>(&'a self, keys: &KeyRange) -> Box<dyn Iterator<Item = &'a KeyValue> + 'a>;

    /// All pairs of `keys` that were live at `at`, which is at or above the compacted revision and
    /// below the batch's first, in byte order.
    fn past(&self, keys: &KeyRange, at: Revision) -> Vec<KeyValue>;

    /// Whether `key` is live or carries a whiteout.
    fn is_claimed(&self, key: &[u8]) -> bool;

    /// Whether there is such a lease.
    fn has_lease(&self, id: LeaseId) -> bool;

    /// The live keys that are attached to the lease.
    fn attached(&self, id: LeaseId) -> Vec<Bytes>;
}

/// Rows together with the changes of the requests that ran so far.
pub struct Working<'a, R: ?Sized> {
    rows: &'a R,
    reserved: &'a Reserved,
    changes: BTreeMap<Bytes, Entry>,
    batches: Vec<EventBatch>,
    /// The revision before the batch.
    begin: Revision,
    revision: Revision,
    compacted: Revision,
    /// Leases that came and went in this batch; the last word on each.
    leases: BTreeMap<LeaseId, bool>,
    /// The keys that this batch has attached to a lease. Some of them may not be any more.
    attached: HashMap<LeaseId, Vec<Bytes>>,
    /// Counts requests, so that a failed one knows which entries it made.
    request: u64,
}

/// What a batch did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The revision after it.
    pub revision: Revision,
    /// The keys that changed or were copied up, in byte order, each once.
    pub rows: Vec<RowChange>,
    /// What happened, one batch of events per revision, in order.
    pub batches: Vec<EventBatch>,
}

/// What a batch did to one key from its beginning to its end; the steps between are in the events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowChange {
    /// The key.
    pub key: Bytes,
    /// The live pair before the batch.
    pub before: Option<KeyValue>,
    /// The pair that was copied up in the batch; `before` is empty then. If `after` differs the key
    /// was changed in the same batch, and this is the state that reads of the past have to see.
    pub copied: Option<KeyValue>,
    /// The live pair after the batch; without one the key was deleted (a whiteout, where claims
    /// are left).
    pub after: Option<KeyValue>,
}

struct Entry {
    before: Option<KeyValue>,
    copied: Option<KeyValue>,
    after: Option<KeyValue>,
    made_by: u64,
}

/// One transaction on its way: which branches it takes (the outermost first, nested ones in the
/// order in which they run), and what it did so far.
struct Run {
    branches: std::vec::IntoIter<bool>,
    events: Vec<Event>,
}

impl<'a, R: Rows + ?Sized> Working<'a, R> {
    /// Begins a batch over `rows`, which stand at `revision` (at or above the line's base).
    #[must_use]
    pub fn new(
        rows: &'a R,
        reserved: &'a Reserved,
        revision: Revision,
        compacted: Revision,
    ) -> Self {
        Self {
            rows,
            reserved,
            changes: BTreeMap::new(),
            batches: Vec::new(),
            begin: revision,
            revision,
            compacted,
            leases: BTreeMap::new(),
            attached: HashMap::new(),
            request: 0,
        }
    }

    /// The revision so far.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Runs a transaction. If it fails, nothing of it was done.
    ///
    /// All conditions, those of nested transactions too, are decided on the state before the
    /// transaction, as etcd does it; operations see the operations before them.
    pub fn txn(&mut self, txn: &Txn) -> Result<Answer<TxnReply>> {
        self.request += 1;
        let mut branches = Vec::with_capacity(1);
        self.decide(txn, &mut branches);
        let mut run = Run {
            branches: branches.into_iter(),
            events: Vec::new(),
        };
        match self.run(txn, &mut run) {
            Ok(reply) => {
                self.commit(run.events);
                Ok(Answer {
                    revision: self.revision,
                    reply,
                })
            }
            Err(error) => {
                self.undo(run.events);
                Err(self.complaint(txn).unwrap_or(error))
            }
        }
    }

    /// What etcd complains about first where several operations of a transaction are at fault: it
    /// looks at all puts, then at all reads, and at a put's key before its lease. For a put that
    /// stands alone it is the other way round.
    fn complaint(&self, txn: &Txn) -> Option<RequestError> {
        if let ([Op::Put(_)], []) = (&txn.success[..], &txn.failure[..]) {
            return None;
        }
        let mut ops = Vec::new();
        self.taken(txn, &mut ops);
        let puts = ops.iter().find_map(|op| match op {
            Op::Put(put) => {
                let keeps = put.value.is_none() || put.lease.is_none();
                let lease = put.lease.unwrap_or_default();
                if keeps && self.get(&put.key).is_none() {
                    Some(RequestError::KeyNotFound)
                } else if lease.is_some() && !self.has_lease(lease) {
                    Some(RequestError::LeaseNotFound)
                } else {
                    None
                }
            }
            _ => None,
        });
        puts.or_else(|| {
            ops.iter().find_map(|op| match op {
                Op::Range(Range { at: Some(at), .. }) => {
                    check_at(*at, self.revision, self.compacted).err()
                }
                _ => None,
            })
        })
    }

    /// The operations of the branches that a transaction takes, those of nested ones in their place.
    fn taken<'t>(&self, txn: &'t Txn, ops: &mut Vec<&'t Op>) {
        let holds = txn.compares.iter().all(|compare| self.holds(compare));
        for op in branch(txn, holds) {
            match op {
                Op::Txn(nested) => self.taken(nested, ops),
                op => ops.push(op),
            }
        }
    }

    /// Copies up pairs, each only if its key is unclaimed. Answers how many were. Not a change:
    /// takes no revision and makes no event.
    ///
    /// Fails with [`RequestError::LeaseNotFound`], and nothing done, if the lease of any that is
    /// unclaimed does not exist.
    pub fn copy_up(&mut self, copies: &[KeyValue]) -> Result<usize> {
        let is_apart = self.is_apart(copies);
        let unclaimed = |copy: &&KeyValue| {
            let is_new = is_apart || !self.changes.contains_key(&copy.key);
            is_new && !self.rows.is_claimed(&copy.key)
        };
        let copies: Vec<_> = copies.iter().filter(unclaimed).collect();
        if copies
            .iter()
            .any(|copy| copy.lease.is_some() && !self.has_lease(copy.lease))
        {
            return Err(RequestError::LeaseNotFound);
        }
        for copy in &copies {
            self.note_lease(copy);
        }
        // Of a key that is there twice the first pair counts, and the last one in a map.
        let entries = copies.into_iter().rev().map(|copy| {
            let entry = Entry {
                before: None,
                copied: Some(copy.clone()),
                after: Some(copy.clone()),
                made_by: self.request,
            };
            (copy.key.clone(), entry)
        });
        // The pairs of a page are in order, and so they are a map without being looked up one by one.
        let mut entries: BTreeMap<Bytes, Entry> = entries.collect();
        let fresh = entries.len();
        if fresh < self.changes.len() / 16 {
            self.changes.extend(entries);
        } else {
            self.changes.append(&mut entries);
        }
        Ok(fresh)
    }

    /// Whether no key from the first to the last of these has changed.
    fn is_apart(&self, kvs: &[KeyValue]) -> bool {
        let keys = || kvs.iter().map(|kv| &kv.key);
        let (Some(first), Some(last)) = (keys().min(), keys().max()) else {
            return true;
        };
        self.changes
            .range::<Bytes, _>(first..=last)
            .next()
            .is_none()
    }

    /// Copies up pairs, each only if its key is unclaimed, then runs a transaction. If either fails, nothing
    /// of it was done.
    pub fn txn_over(&mut self, copies: &[KeyValue], txn: &Txn) -> Result<Answer<TxnReply>> {
        let unclaimed = |copy: &&KeyValue| !self.is_claimed(&copy.key);
        let fresh: Vec<&Bytes> = copies
            .iter()
            .filter(unclaimed)
            .map(|copy| &copy.key)
            .collect();
        self.copy_up(copies)?;
        let done = self.txn(txn);
        if done.is_err() {
            for key in fresh {
                self.changes.remove(key);
            }
        }
        done
    }

    /// Makes a lease known to the requests that follow.
    ///
    /// Fails with [`RequestError::LeaseExists`] if it exists.
    pub fn grant(&mut self, id: LeaseId) -> Result<()> {
        if self.has_lease(id) {
            return Err(RequestError::LeaseExists);
        }
        self.leases.insert(id, true);
        Ok(())
    }

    /// Ends a lease, by request or because its time is over: deletes its keys in key order in one
    /// revision. One without keys takes none.
    ///
    /// Fails with [`RequestError::LeaseNotFound`] if there is none.
    pub fn revoke(&mut self, id: LeaseId) -> Result<Revision> {
        if !self.has_lease(id) {
            return Err(RequestError::LeaseNotFound);
        }
        self.request += 1;
        let mut keys = self.rows.attached(id);
        keys.extend(self.attached.remove(&id).unwrap_or_default());
        keys.retain(|key| self.get(key).is_some_and(|kv| kv.lease == id));
        keys.sort_unstable();
        keys.dedup();
        let mut events = Vec::with_capacity(keys.len());
        for key in &keys {
            self.remove(key, &mut events);
        }
        self.commit(events);
        self.leases.insert(id, false);
        Ok(self.revision)
    }

    /// Reads keys as a request of its own: after the requests that ran so far.
    pub fn range(&self, request: &Range) -> Result<RangeReply> {
        if let Some(at) = request.at {
            check_at(at, self.revision, self.compacted)?;
        }
        let Some(at) = request.past() else {
            let mut gather = Gather::new(request);
            self.each(&request.keys, &mut |kv| gather.see(kv));
            return Ok(gather.reply());
        };
        let mut gather = Gather::new(request);
        for part in self.reserved.visible(&request.keys) {
            self.past(&part, at).values().for_each(|kv| gather.see(kv));
        }
        Ok(gather.reply())
    }

    /// Ends the batch.
    #[must_use]
    pub fn finish(self) -> Outcome {
        let row = |(key, entry): (Bytes, Entry)| RowChange {
            key,
            before: entry.before,
            copied: entry.copied,
            after: entry.after,
        };
        Outcome {
            revision: self.revision,
            rows: self.changes.into_iter().map(row).collect(),
            batches: self.batches,
        }
    }

    fn decide(&self, txn: &Txn, branches: &mut Vec<bool>) {
        let holds = txn.compares.iter().all(|compare| self.holds(compare));
        branches.push(holds);
        for op in branch(txn, holds) {
            if let Op::Txn(nested) = op {
                self.decide(nested, branches);
            }
        }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let mut any = false;
        let mut all = true;
        self.each(&compare.keys, &mut |kv| {
            any = true;
            all = all && holds(compare, kv);
        });
        if any { all } else { holds_of_nothing(compare) }
    }

    fn run(&mut self, txn: &Txn, run: &mut Run) -> Result<TxnReply> {
        let succeeded = run.branches.next().unwrap_or_default();
        let ops = branch(txn, succeeded);
        let mut replies = Vec::with_capacity(ops.len());
        for op in ops {
            replies.push(match op {
                // The past that can be asked for ends before this transaction, so that it reads
                // the same whatever the transaction has done already.
                Op::Range(range) => Reply::Range(self.range(range)?),
                Op::Put(put) => Reply::Put(self.put(put, &mut run.events)?),
                Op::Delete(delete) => Reply::Delete(self.delete(delete, &mut run.events)),
                Op::Txn(nested) => Reply::Txn(self.run(nested, run)?),
            });
        }
        Ok(TxnReply { succeeded, replies })
    }

    fn put(&mut self, put: &Put, events: &mut Vec<Event>) -> Result<PutReply> {
        let prev = self.get(&put.key).cloned();
        let (create_revision, version) = match &prev {
            Some(prev) => (prev.create_revision, prev.version + 1),
            None => (self.revision.next(), 1),
        };
        // As in etcd, the lease is looked for before the value that is to be kept.
        if put
            .lease
            .is_some_and(|lease| lease.is_some() && !self.has_lease(lease))
        {
            return Err(RequestError::LeaseNotFound);
        }
        let value = match (&put.value, &prev) {
            (Some(value), _) => value.clone(),
            (None, Some(prev)) => prev.value.clone(),
            (None, None) => return Err(RequestError::KeyNotFound),
        };
        let lease = match (put.lease, &prev) {
            (Some(lease), _) => lease,
            (None, Some(prev)) => prev.lease,
            (None, None) => return Err(RequestError::KeyNotFound),
        };
        let kv = KeyValue {
            key: put.key.clone(),
            create_revision,
            mod_revision: self.revision.next(),
            version,
            value,
            lease,
        };
        self.set(&put.key, prev.as_ref(), Some(kv.clone()));
        let prev_kv = if put.prev_kv { prev.clone() } else { None };
        events.push(Event {
            change: Change::Put(kv),
            prev,
        });
        Ok(PutReply { prev_kv })
    }

    fn delete(&mut self, delete: &Delete, events: &mut Vec<Event>) -> DeleteReply {
        let mut keys = Vec::new();
        self.each(&delete.keys, &mut |kv| keys.push(kv.key.clone()));
        let first = events.len();
        for key in &keys {
            self.remove(key, events);
        }
        let prev_kvs = if delete.prev_kv {
            let prev = |event: &Event| event.prev.clone();
            events[first..].iter().filter_map(prev).collect()
        } else {
            Vec::new()
        };
        DeleteReply {
            deleted: keys.len(),
            prev_kvs,
        }
    }

    fn remove(&mut self, key: &Bytes, events: &mut Vec<Event>) {
        let prev = self.get(key).cloned();
        self.set(key, prev.as_ref(), None);
        events.push(Event {
            change: Change::Delete {
                key: key.clone(),
                revision: self.revision.next(),
            },
            prev,
        });
    }

    fn set(&mut self, key: &Bytes, prev: Option<&KeyValue>, after: Option<KeyValue>) {
        if let Some(kv) = &after {
            self.note_lease(kv);
        }
        if let Some(entry) = self.changes.get_mut(key) {
            entry.after = after;
            return;
        }
        let entry = Entry {
            before: prev.cloned(),
            copied: None,
            after,
            made_by: self.request,
        };
        self.changes.insert(key.clone(), entry);
    }

    fn note_lease(&mut self, kv: &KeyValue) {
        if kv.lease.is_some() {
            let attached = self.attached.entry(kv.lease).or_default();
            attached.push(kv.key.clone());
        }
    }

    fn commit(&mut self, mut events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        if events.len() > 1 {
            // Watchers see the pair before the *revision*, also where one transaction changed a key
            // twice (a put, then a delete in a nested transaction). Replies and `undo` have the pair
            // before the operation.
            let mut before = HashMap::with_capacity(events.len());
            for event in &mut events {
                match before.entry(event.key().clone()) {
                    hash_map::Entry::Vacant(first) => {
                        first.insert(event.prev.clone());
                    }
                    hash_map::Entry::Occupied(first) => event.prev.clone_from(first.get()),
                }
            }
        }
        self.revision = self.revision.next();
        self.batches.push(EventBatch {
            revision: self.revision,
            events,
        });
    }

    fn undo(&mut self, events: Vec<Event>) {
        for event in events.into_iter().rev() {
            let key = event.key();
            match self.changes.get_mut(key) {
                // An entry from a copy-up has the number of the request before.
                Some(entry) if entry.made_by != self.request => entry.after = event.prev,
                _ => {
                    self.changes.remove(key);
                }
            }
        }
    }

    fn is_claimed(&self, key: &[u8]) -> bool {
        self.changes.contains_key(key) || self.rows.is_claimed(key)
    }

    fn has_lease(&self, id: LeaseId) -> bool {
        match self.leases.get(&id) {
            Some(there) => *there,
            None => self.rows.has_lease(id),
        }
    }

    /// The live pair of `key`.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&KeyValue> {
        match self.changes.get(key) {
            Some(entry) => entry.after.as_ref(),
            None => self.rows.get(key),
        }
    }

    /// Shows all live pairs of `keys` that a request for them may see, in byte order.
    fn each(&self, keys: &KeyRange, see: &mut dyn FnMut(&KeyValue)) {
        if let KeyRange::One(key) = keys {
            if let Some(kv) = self.get(key) {
                see(kv);
            }
            return;
        }
        for part in self.reserved.visible(keys) {
            let mut changes = self.changes.range::<[u8], _>(part.bounds()).peekable();
            for row in self.rows.range(&part) {
                while let Some((_, entry)) = changes.next_if(|(key, _)| **key < row.key) {
                    entry.after.iter().for_each(&mut *see);
                }
                match changes.next_if(|(key, _)| **key == row.key) {
                    Some((_, entry)) => entry.after.iter().for_each(&mut *see),
                    None => see(row),
                }
            }
            for (_, entry) in changes {
                entry.after.iter().for_each(&mut *see);
            }
        }
    }

    /// The pairs of `keys` at a revision before the request that runs: the rows of that time, and
    /// what earlier requests of this batch did up to it.
    fn past(&self, keys: &KeyRange, at: Revision) -> BTreeMap<Bytes, KeyValue> {
        let keyed = |kv: KeyValue| (kv.key.clone(), kv);
        let mut pairs: BTreeMap<_, _> = if at <= self.begin {
            self.rows.past(keys, at).into_iter().map(keyed).collect()
        } else {
            self.rows.range(keys).cloned().map(keyed).collect()
        };
        for (key, entry) in self.changes.range::<[u8], _>(keys.bounds()) {
            if let Some(copied) = entry.copied.as_ref().filter(|kv| kv.mod_revision <= at) {
                pairs.insert(key.clone(), copied.clone());
            }
        }
        let until = self.batches.partition_point(|batch| batch.revision <= at);
        for event in self.batches[..until].iter().flat_map(|batch| &batch.events) {
            if !keys.contains(event.key()) {
                continue;
            }
            match &event.change {
                Change::Put(kv) => pairs.insert(kv.key.clone(), kv.clone()),
                Change::Delete { key, .. } => pairs.remove(key),
            };
        }
        pairs
    }
}

/// Whether a store at `revision` that is compacted up to `compacted` can be read at `at`.
pub fn check_at(at: Revision, revision: Revision, compacted: Revision) -> Result<()> {
    if at > revision {
        return Err(RequestError::FutureRevision);
    }
    // Where nothing was compacted, it has come to -1 in etcd.
    let oldest = if compacted.0 == 0 { -1 } else { compacted.0 };
    if at.0 < oldest {
        return Err(RequestError::Compacted(compacted));
    }
    Ok(())
}

fn branch(txn: &Txn, succeeded: bool) -> &[Op] {
    if succeeded {
        &txn.success
    } else {
        &txn.failure
    }
}

fn holds(compare: &Compare, kv: &KeyValue) -> bool {
    compare.result.accepts(match &compare.target {
        CompareTarget::Version(operand) => kv.version.cmp(operand),
        CompareTarget::Create(operand) => kv.create_revision.cmp(operand),
        CompareTarget::Mod(operand) => kv.mod_revision.cmp(operand),
        CompareTarget::Value(operand) => kv.value.cmp(operand),
        CompareTarget::Lease(operand) => kv.lease.cmp(operand),
    })
}

/// A key that does not exist has numbers 0, and no value that could be compared.
fn holds_of_nothing(compare: &Compare) -> bool {
    !matches!(compare.target, CompareTarget::Value(_)) && holds(compare, &KeyValue::default())
}

/// Whether `compare` holds of all pairs that it is about, or of nothing where there are none.
#[must_use]
pub fn holds_of_all<'a>(compare: &Compare, pairs: impl IntoIterator<Item = &'a KeyValue>) -> bool {
    let mut pairs = pairs.into_iter().peekable();
    if pairs.peek().is_none() {
        return holds_of_nothing(compare);
    }
    pairs.all(|kv| holds(compare, kv))
}

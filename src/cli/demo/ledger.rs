//! The ledger: what every client was told and saw, written down while it happens and judged
//! afterwards (see [`super::check`]).
//!
//! Revisions make this possible. Each acknowledged write names the revision it happened at, so the
//! writes of all clients fall into one order without a clock, and each read names the revision it
//! shows, so what it should have seen can be looked up in that order.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::types::KeyRange;

/// A value's hash: enough to tell values apart, and small enough to keep one per read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Fingerprint(u64);

impl Fingerprint {
    /// Of a value.
    pub(super) fn of(value: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// Everything that a client can know about a live key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Facts {
    /// Revision in which this life of the key began.
    pub create: i64,
    /// Revision of the latest change.
    pub modified: i64,
    /// Changes in this life of the key.
    pub version: i64,
    /// Its lease, or 0.
    pub lease: i64,
    /// Its value.
    pub value: Fingerprint,
}

impl From<&etcd_client::KeyValue> for Facts {
    fn from(kv: &etcd_client::KeyValue) -> Self {
        Self {
            create: kv.create_revision(),
            modified: kv.mod_revision(),
            version: kv.version(),
            lease: kv.lease(),
            value: Fingerprint::of(kv.value()),
        }
    }
}

impl From<&crate::types::KeyValue> for Facts {
    fn from(kv: &crate::types::KeyValue) -> Self {
        Self {
            create: kv.create_revision.0,
            modified: kv.mod_revision.0,
            version: kv.version,
            lease: kv.lease.0,
            value: Fingerprint::of(&kv.value),
        }
    }
}

/// A transaction that was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Write {
    /// The revision it happened at.
    pub revision: i64,
    /// What it did.
    pub effects: Vec<Effect>,
}

/// One thing that an acknowledged transaction did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// It set a key.
    Put {
        /// Which.
        key: Bytes,
        /// To what.
        value: Fingerprint,
        /// With which lease, or 0.
        lease: i64,
    },
    /// It removed a key that was there.
    Delete(Bytes),
    /// It removed all keys of a range.
    Clear {
        /// The range.
        keys: KeyRange,
        /// How many keys it said it removed.
        deleted: i64,
    },
}

impl Effect {
    /// A put without a lease.
    pub(super) fn put(key: &Bytes, value: &[u8]) -> Self {
        Self::Put {
            key: key.clone(),
            value: Fingerprint::of(value),
            lease: 0,
        }
    }
}

/// What a client was shown of one key.
#[derive(Clone, Debug)]
pub(super) struct KeyRead {
    /// Which key.
    pub key: Bytes,
    /// The revision that the answer shows.
    pub revision: i64,
    /// The highest revision that anyone had been told of before the read was sent.
    pub floor: i64,
    /// What it looked like; nothing if it was not there.
    pub seen: Option<Facts>,
}

/// What a client was shown of a range.
#[derive(Clone, Debug)]
pub(super) struct ListRead {
    /// Which keys.
    pub keys: KeyRange,
    /// Most keys that it wanted to see; 0 is no limit.
    pub limit: usize,
    /// The revision that the answer shows.
    pub revision: i64,
    /// The highest revision that anyone had been told of before the read was sent.
    pub floor: i64,
    /// How many keys the answer says there are.
    pub count: i64,
    /// The keys that it shows, digested; nothing if it asked only for the count.
    pub digest: Option<Digest>,
}

/// Keys and their numbers in order, as one number.
#[derive(Clone, Debug, Default)]
pub(super) struct Digest(DefaultHasher);

impl Digest {
    /// Adds the next key.
    pub(super) fn add(&mut self, key: &[u8], create: i64, modified: i64, version: i64) {
        (key, create, modified, version).hash(&mut self.0);
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        self.0.finish() == other.0.finish()
    }
}

/// What one watch was asked for and has delivered.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    /// Its name in findings.
    pub name: String,
    /// The keys it is for.
    pub keys: KeyRange,
    /// Whether it asked for the pair before each change.
    pub prev_kv: bool,
    /// The first revision that it is to deliver.
    pub from: i64,
    /// What it delivered, in that order.
    pub events: Vec<Seen>,
}

/// One event as a watch delivered it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// The key.
    pub key: Bytes,
    /// The revision of the change.
    pub revision: i64,
    /// The key after it; nothing for a delete.
    pub put: Option<Facts>,
    /// The key before it, if it was told.
    pub prev: Option<Facts>,
}

/// Numbers whose sum the clients account for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    /// The keys that hold them.
    pub keys: BTreeSet<Bytes>,
    /// What they have to add up to.
    pub total: i64,
}

/// The ledger's pages.
#[derive(Clone, Debug, Default)]
pub(super) struct Entries {
    /// The store's revision when the ledger was opened.
    pub opened: i64,
    /// Every key at that time.
    pub seeds: BTreeMap<Bytes, Facts>,
    /// Every acknowledged write since.
    pub writes: Vec<Write>,
    /// Keys that nobody deletes, but whose leases run out.
    pub expiring: BTreeSet<Bytes>,
    /// Leases that are kept alive.
    pub held: BTreeSet<i64>,
    /// Sums, by what they are called in findings.
    pub sums: BTreeMap<&'static str, Sum>,
    /// Keys of which nothing can be said: writes to them failed, and may have happened all the
    /// same.
    pub doubts: BTreeSet<Bytes>,
    /// Ranges of such keys.
    pub doubtful_ranges: Vec<KeyRange>,
    /// Reads of one key.
    pub reads: Vec<KeyRead>,
    /// Reads of ranges.
    pub lists: Vec<ListRead>,
    /// Watches.
    pub watches: Vec<Watched>,
}

/// The ledger that all clients write into.
#[derive(Default)]
pub(super) struct Ledger {
    entries: Mutex<Entries>,
    acknowledged: AtomicI64,
}

impl Ledger {
    /// Opens the ledger on a store that holds `seeds` at `revision`.
    pub(super) fn open(revision: i64, seeds: BTreeMap<Bytes, Facts>) -> Self {
        let entries = Entries {
            opened: revision,
            seeds,
            ..Entries::default()
        };
        Self {
            entries: Mutex::new(entries),
            acknowledged: AtomicI64::new(revision),
        }
    }

    /// The pages, to read or to write into.
    pub(super) fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The highest revision that anyone was told of. A read that is sent from now on must not show
    /// an earlier one.
    pub(super) fn floor(&self) -> i64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// Notes that some client was told of `revision`.
    pub(super) fn told(&self, revision: i64) {
        self.acknowledged.fetch_max(revision, Ordering::SeqCst);
    }

    /// Notes an acknowledged write.
    pub(super) fn wrote(&self, revision: i64, effects: Vec<Effect>) {
        self.told(revision);
        self.entries().writes.push(Write { revision, effects });
    }

    /// Notes that nothing can be said about `keys` any more: a write failed.
    pub(super) fn doubt(&self, keys: KeyRange) {
        let mut entries = self.entries();
        match keys {
            KeyRange::One(key) => drop(entries.doubts.insert(key)),
            range @ KeyRange::Span { .. } => entries.doubtful_ranges.push(range),
        }
    }

    /// Notes what a read of one key was answered with.
    pub(super) fn read(&self, key: &Bytes, floor: i64, revision: i64, seen: Option<Facts>) {
        self.told(revision);
        self.entries().reads.push(KeyRead {
            key: key.clone(),
            revision,
            floor,
            seen,
        });
    }

    /// Notes what a read of a range was answered with.
    pub(super) fn listed(&self, list: ListRead) {
        self.told(list.revision);
        self.entries().lists.push(list);
    }

    /// Notes that `key` will go with its lease.
    pub(super) fn will_expire(&self, key: Bytes) {
        self.entries().expiring.insert(key);
    }

    /// Notes a lease that will be kept alive from now on.
    pub(super) fn hold(&self, lease: i64) {
        self.entries().held.insert(lease);
    }

    /// Notes a lease that is no longer kept alive, or about to be revoked.
    pub(super) fn let_go(&self, lease: i64) {
        self.entries().held.remove(&lease);
    }

    /// Makes `key`, which begins with `opening`, part of the sum called `name`.
    pub(super) fn keep_sum(&self, name: &'static str, key: &Bytes, opening: i64) {
        let mut entries = self.entries();
        let sum = entries.sums.entry(name).or_default();
        if sum.keys.insert(key.clone()) {
            sum.total += opening;
        }
    }

    /// Notes that the numbers of the sum called `name` have grown by `amount` together.
    pub(super) fn add_to_sum(&self, name: &'static str, amount: i64) {
        self.entries().sums.entry(name).or_default().total += amount;
    }

    /// Adds a page for a watch; answers its number.
    pub(super) fn watch(&self, watched: Watched) -> usize {
        let mut entries = self.entries();
        entries.watches.push(watched);
        entries.watches.len() - 1
    }

    /// Notes what watch number `watch` delivered.
    pub(super) fn saw(&self, watch: usize, events: impl IntoIterator<Item = Seen>) {
        self.entries().watches[watch].events.extend(events);
    }
}

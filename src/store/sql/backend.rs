//! What the engine asks of a database: to prefetch, to commit, to read a snapshot, to tidy up.
//!
//! Everything that gives etcd's semantics is decided by pure code over the values in this file. A
//! backend moves them between its tables and memory, set-wise, in one or two round trips per call,
//! and is the only place that knows its driver. It never looks into a request.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::store::eval::check_at;
use crate::store::{Guard, Line, Record, Result};
use crate::types::{EventBatch, KeyRange, KeyValue, LeaseId, Revision};

/// A database under the SQL engine.
///
/// [`Self::transact`], [`Self::sweep`] and [`Self::drop_whiteouts`] are called by one task at a time, the
/// engine's writer; [`Self::read`] by many, and it must never wait for the writer. Other processes may be
/// doing the same to the same database.
pub trait Backend: Send + Sync + 'static {
    /// What makes the store the one it is, whatever address it is reached by.
    fn identity(&self) -> &str;

    /// Why the database cannot take a pair of these sizes, if it cannot.
    fn unacceptable(&self, key: &[u8], value_len: usize) -> Option<String>;

    /// One transaction: locks the head row, fetches all of `prefetch`, lets `decide` choose, writes
    /// its changes (nothing if there are none), commits durably.
    ///
    /// The head row is locked from the first statement to the commit: this alone makes commit order
    /// revision order. `decide` is pure; it is called again if the database asks for a repetition.
    ///
    /// A backend that waits for its commit may begin the `next` transaction meanwhile.
    ///
    /// Fails with [`crate::store::StoreError::Unknown`] only if the commit itself was sent, was not answered, and
    /// could not be looked up afterwards; every other failure means that nothing was written.
    fn transact(
        &self,
        prefetch: &Arc<Prefetch>,
        decide: &mut (dyn FnMut(Prefetched) -> Changes + Send),
        next: Next<'_>,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Reads head and data from one snapshot that is no older than the call.
    ///
    /// [`Snapshot::admit`] is asked once the head is known, before the data is read where that
    /// saves work. Answers come in the order of the queries, each of its query's kind.
    fn read(&self, snapshot: Snapshot) -> impl Future<Output = Result<Read>> + Send;

    /// Returns when the store may have moved beyond what is `known` by then by another process's doing: soon
    /// (within milliseconds) if it has and `eager` says that somebody waits for it, in its own time if not.
    /// May return for nothing. Never returns where only one process can write.
    fn moved(
        &self,
        known: impl Fn() -> Revision + Send + Sync,
        eager: bool,
    ) -> impl Future<Output = ()> + Send;

    /// Runs the engine's writer to its end in the background, where [`Self::transact`] may take its
    /// time: a thread of its own for a driver that blocks, a task for one that does not.
    fn run_writer(&self, writer: BoxFuture<'static, ()>) -> Result<()>;

    /// How long history stays when it was compacted, since other processes read it, and are behind: not at all
    /// where only one process can write.
    fn linger(&self) -> Duration;

    /// Deletes history that was compacted, up to `until`: what log entries in `(swept, compacted]` superseded,
    /// and delete entries below `compacted`. Does a bounded piece of the work, notes in the head row,
    /// which is locked meanwhile, how far it came, and answers the head row as it is then.
    fn sweep(&self, until: Revision) -> impl Future<Output = Result<Head>> + Send;

    /// Deletes some of the whiteouts, unless there is a line; answers whether there may be more.
    fn drop_whiteouts(&self) -> impl Future<Output = Result<bool>> + Send;

    /// Gives the space of deleted data back, while everything else goes on if the database can do that.
    /// Takes as long as it takes.
    fn defragment(&self) -> impl Future<Output = Result<()>> + Send;

    /// What the writer does last: leaves the database complete where it is. What it cannot do it logs;
    /// nothing is lost by it.
    fn finish(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// The head row: where the store stands. Locked by every transaction that writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The current revision.
    pub revision: Revision,
    /// What was superseded at or below it is forgotten; 0 is nothing.
    pub compacted: Revision,
    /// How far compaction has deleted; behind `compacted` while there is work left.
    pub swept: Revision,
    /// The log begins behind it: changes up to here were made in the old store, whose line of
    /// revisions this store carries on. 0 where it began by itself.
    pub origin: Revision,
    /// Counts the batches that change what is seen without a revision: copied and replayed keys, leases
    /// that come and go, the migration's records. Not those that only give leases more time. In the tables
    /// it has the name of the first kind.
    pub unnumbered: i64,
    /// When something was last committed, in milliseconds of the store's clock: until then clients
    /// could keep their leases alive.
    pub at_ms: i64,
    /// There is a fence: the record [`crate::store::FENCE`]. Here besides, so that to ask costs nothing.
    pub fenced: bool,
    /// Epoch, claims flag and base, while there is a migration.
    pub line: Option<Line>,
}

/// A commit, among those that change what is seen: they are in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Commit {
    revision: Revision,
    unnumbered: i64,
}

impl Commit {
    /// Of the last change in it, or before it if it takes no number.
    pub(super) fn revision(self) -> Revision {
        self.revision
    }
}

#[cfg(test)]
impl Head {
    /// Of a store that has come so far and has nothing else to tell.
    pub(super) fn at(revision: i64) -> Self {
        Self {
            revision: Revision(revision),
            compacted: Revision(0),
            swept: Revision(0),
            origin: Revision(0),
            unnumbered: 0,
            at_ms: 0,
            fenced: false,
            line: None,
        }
    }
}

impl Head {
    /// The last commit.
    #[must_use]
    pub fn commit(&self) -> Commit {
        Commit {
            revision: self.revision,
            unnumbered: self.unnumbered,
        }
    }

    /// Whether an operation under `guard` may be carried out here.
    pub fn admit(&self, guard: Guard) -> Result<()> {
        guard.admit(self.fenced, self.line)
    }

    /// The oldest revision that can be read.
    #[must_use]
    pub fn oldest(&self) -> Revision {
        self.compacted.max(self.origin)
    }

    /// How far a sweep up to `until` goes: not beyond what is compacted, and not back behind what another process
    /// has swept meanwhile, which whoever reads the log has to know.
    #[must_use]
    pub fn sweep_end(&self, until: Revision) -> Revision {
        self.compacted.min(until).max(self.swept)
    }

    /// Whether clients are served here: not between a fence and a line behind it.
    #[must_use]
    pub fn serves(&self) -> bool {
        !self.fenced || self.line.is_some()
    }

    /// Whether a deleted key stays as a whiteout. Whether or not the line wants claims of keys that
    /// are new to both stores: a row is a claim, so here this makes no difference.
    #[must_use]
    pub fn leaves_claims(&self) -> bool {
        self.line.is_some()
    }
}

/// The row of a key: its latest state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The pair. Of a whiteout only key and mod revision (that of the delete) mean something.
    pub kv: KeyValue,
    /// The key is live; else it is a whiteout.
    pub live: bool,
    /// What the log has of this state.
    pub logged: Logged,
}

/// Where a row is in its table, in the words of the backend that told it, which finds it there faster than by
/// its key. Holds within the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(pub i64);

/// A row that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The row.
    pub row: Row,
    /// Where it is, if the backend tells.
    pub place: Option<Place>,
}

impl Placed {
    /// A row of a backend that tells no places.
    #[must_use]
    pub fn somewhere(row: Row) -> Self {
        Self { row, place: None }
    }
}

/// What a row is written over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Nothing: the key has no row.
    Nothing,
    /// The row of the key.
    Row {
        /// Where it is, if that is known.
        place: Option<Place>,
        /// The lease that it is attached to, if that is known.
        lease: Option<LeaseId>,
    },
}

/// A row to insert, or to replace another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// As it shall be.
    pub row: Row,
    /// What there is now.
    pub over: Over,
}

/// A row that goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Its key.
    pub key: Bytes,
    /// Where it is, if that is known.
    pub place: Option<Place>,
    /// The lease that it is attached to.
    pub lease: LeaseId,
}

/// What the log has of a row's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logged {
    /// Nothing: the key was copied up, and gets an entry when it is first changed. Or one that is still to
    /// be replaced: it was replayed without the lease that it was given since.
    No,
    /// An entry.
    Yes,
    /// An entry with the lease that the key had until it was replayed without one. It tells reads of the
    /// past, while the row is the present.
    Leased,
    /// Nothing: the key was copied up in an earlier migration, and is the store's own in this one. It gets
    /// an entry when it is first changed.
    Own,
}

impl Logged {
    /// Whether the log has nothing of the state.
    #[must_use]
    pub fn is_nothing(self) -> bool {
        matches!(self, Self::No | Self::Own)
    }
}

/// A lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its number.
    pub id: LeaseId,
    /// Its full time to live, in seconds.
    pub ttl_s: i64,
    /// When it ends, in milliseconds of the store's clock.
    pub deadline_ms: i64,
}

/// What kind of entry the log holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogKind {
    /// The key was removed.
    Delete,
    /// The key was written.
    Put,
    /// The key was written or removed, and changed again in the same revision. An event, but no state. One
    /// that was written has a version, one that was removed has none.
    Brief,
    /// The state in which the key was copied up, kept when it was first changed, or one that was
    /// replayed. History, but no event.
    Copy,
}

/// An entry of the log: one change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// What it is.
    pub kind: LogKind,
    /// The pair after the change; its mod revision is the entry's revision. Of a delete only key and
    /// mod revision mean something.
    pub kv: KeyValue,
    /// Revision of the entry that this one supersedes; 0 if the key had no row.
    pub prev_revision: Revision,
}

/// What a batch needs to be decided. Lists are without repetitions, and sorted, behind [`Self::tidy`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefetch {
    /// Keys whose rows are needed.
    pub keys: Vec<Bytes>,
    /// Spans of which only has to be known which keys have a row. May overlap.
    pub claims: Vec<KeyRange>,
    /// Spans whose rows are all needed. In order, without overlap.
    pub spans: Vec<KeyRange>,
    /// Spans whose live pairs at a revision of the past are needed.
    pub past: Vec<(KeyRange, Revision)>,
    /// Leases.
    pub leases: Vec<LeaseId>,
    /// Leases whose attached rows are needed.
    pub attached: Vec<LeaseId>,
    /// Names of records.
    pub records: Vec<String>,
}

/// What the next transaction needs: ready when so much waits that it is worth being begun, and pending for
/// ever if nothing is to be begun ahead. Once it is ready the next transaction is that one and nothing else.
pub type Next<'a> = Pin<&'a mut (dyn Future<Output = Arc<Prefetch>> + Send)>;

/// Keys that are looked for in a span of [`Prefetch::claims`]. More than a copy-up has pairs: where
/// there are so many, many were not copied.
pub const CLAIMS_MAX: usize = 2048;

impl Prefetch {
    /// Sorts the lists, takes out what is in one of them twice, and makes one of spans whose rows are needed
    /// and that overlap. Many requests of a batch are often about the same keys.
    pub fn tidy(&mut self) {
        sorted(&mut self.keys);
        sorted(&mut self.leases);
        sorted(&mut self.attached);
        sorted(&mut self.records);
        self.spans = KeyRange::merged(std::mem::take(&mut self.spans));
        let mut met = HashSet::new();
        self.past.retain(|past| met.insert(past.clone()));
    }

    /// Whether it is so little that it is fetched in no time.
    #[must_use]
    pub fn is_small(&self) -> bool {
        self.spans.is_empty() && self.past.is_empty() && self.attached.is_empty()
    }

    /// Whether a span of [`Self::claims`] may have more keys than these, which were found there.
    #[must_use]
    pub fn has_more_claims(&self, claimed: &[Bytes]) -> bool {
        let found = |span: &KeyRange| claimed.iter().filter(|key| span.contains(key)).count();
        self.claims.iter().any(|span| found(span) >= CLAIMS_MAX)
    }
}

fn sorted<T: Ord>(list: &mut Vec<T>) {
    list.sort_unstable();
    list.dedup();
}

/// What was found. What is not in it does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefetched {
    /// The head row.
    pub head: Head,
    /// The store's clock, in milliseconds.
    pub now_ms: i64,
    /// Rows, in any order, possibly repeated.
    pub rows: Vec<Placed>,
    /// Keys that have a row in the spans of [`Prefetch::claims`], the first [`CLAIMS_MAX`] of each.
    pub claimed: Vec<Bytes>,
    /// The pairs of the past, in key order, in the order in which they were asked for.
    pub past: Vec<Past>,
    /// The leases.
    pub leases: Vec<Lease>,
    /// The records.
    pub records: Vec<Record>,
}

/// The pairs of a span at a revision of the past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Past {
    /// The span.
    pub keys: KeyRange,
    /// The revision.
    pub at: Revision,
    /// The pairs.
    pub kvs: Vec<KeyValue>,
}

/// What a batch changes. Each row, lease and record is in it at most once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// The head row as it shall be.
    pub head: Head,
    /// Rows to insert or replace.
    pub rows: Vec<Written>,
    /// Rows that go.
    pub removed: Vec<Removed>,
    /// Entries for the log in the order of the changes. Those of kind [`LogKind::Copy`] replace an
    /// entry of the same key and revision, which may be left from before a migration.
    pub log: Vec<LogEntry>,
    /// All leases begin their time anew, before `leases` are written: nobody could keep them alive
    /// for a while.
    pub renew_leases: bool,
    /// Leases to insert or replace.
    pub leases: Vec<Lease>,
    /// Leases that go.
    pub dropped_leases: Vec<LeaseId>,
    /// Records to insert or replace.
    pub records: Vec<Record>,
    /// Records that go.
    pub dropped_records: Vec<String>,
}

impl Changes {
    /// No changes to a store whose head row is `head`.
    #[must_use]
    pub fn none(head: Head) -> Self {
        Self {
            head,
            rows: Vec::new(),
            removed: Vec::new(),
            log: Vec::new(),
            renew_leases: false,
            leases: Vec::new(),
            dropped_leases: Vec::new(),
            records: Vec::new(),
            dropped_records: Vec::new(),
        }
    }

    /// Whether there is nothing to write to a store whose head row is `head`.
    #[must_use]
    pub fn is_empty(&self, head: &Head) -> bool {
        *self == Self::none(*head)
    }
}

/// Several reads of one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// What the head row has to agree with.
    pub guard: Guard,
    /// The revision of the reads; nothing is the latest.
    pub at: Option<Revision>,
    /// The reads.
    pub queries: Vec<Query>,
}

impl Snapshot {
    /// The latest, whatever the line and the fence say.
    #[must_use]
    pub fn latest(queries: Vec<Query>) -> Self {
        Self {
            guard: Guard::None,
            at: None,
            queries,
        }
    }

    /// Whether it reads so little that it should never wait for one that reads much.
    #[must_use]
    pub fn is_small(&self) -> bool {
        let small = |query: &Query| match query {
            Query::Rows(rows) => {
                let one = |part: &KeyRange| matches!(part, KeyRange::One(_));
                rows.parts.iter().all(one)
                    || rows.limit.is_some_and(|limit| limit <= 16) && !rows.count
            }
            Query::Prefetch(want) => want.is_small(),
            Query::Lease { keys, .. } => !keys,
            // Where all keys are looked for, every entry counts: the log is read no further than its bounds.
            Query::Log(scan) => scan.parts == [KeyRange::all()],
            Query::Any | Query::Sizes | Query::Due(_) => true,
            Query::Leases | Query::Records(_) => false,
        };
        self.at.is_none() && self.queries.len() <= 4 && self.queries.iter().all(small)
    }

    /// Whether the snapshot may be read from a store whose head row is `head`.
    pub fn admit(&self, head: &Head) -> Result<()> {
        head.admit(self.guard)?;
        if let Some(at) = self.at {
            check_at(at, head.revision, head.oldest())?;
        }
        Ok(())
    }
}

/// One read of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// Rows, in key order. Answered with [`Found::Rows`].
    Rows(Rows),
    /// What a transaction that only reads needs, always the latest. Answered with
    /// [`Found::Prefetched`].
    Prefetch(Prefetch),
    /// A lease, with the keys attached to it in key order if wanted. Answered with [`Found::Lease`].
    Lease {
        /// Which.
        id: LeaseId,
        /// With its keys.
        keys: bool,
    },
    /// The numbers of all leases, ascending. Answered with [`Found::Leases`].
    Leases,
    /// The leases that end first, at most so many. Answered with [`Found::Due`].
    Due(i64),
    /// Records whose names begin with this, in their order. Answered with [`Found::Records`].
    Records(String),
    /// Changes. Answered with [`Found::Log`].
    Log(LogScan),
    /// Whether there is any row or record. Answered with [`Found::Any`].
    Any,
    /// Bytes. Answered with [`Found::Sizes`].
    Sizes,
}

/// Which rows to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Parts of the range in ascending order, without overlap.
    pub parts: Vec<KeyRange>,
    /// Whiteouts too; else only live rows.
    pub whiteouts: bool,
    /// At most so many rows, the first ones; nothing is all. 0 is good for a count.
    pub limit: Option<usize>,
    /// Stop with the row with which so many bytes are reached, of keys and of values as far as they
    /// come; nothing is all. Where rows of several parts are read at once, each may come that far. Not
    /// of the past, and not where only the first rows come with values.
    pub bytes: Option<usize>,
    /// So many live rows from the first come with their values; the rest without.
    pub values: usize,
    /// Count the live rows of all parts, whatever the limit.
    pub count: bool,
    /// What the count was a while ago. If it still holds it is not counted again.
    pub known: Option<KnownCount>,
}

/// The count of a range as it was found at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownCount {
    /// The revision that it was counted at.
    pub at: Revision,
    /// [`Head::unnumbered`] at that time: copies change what is seen at a revision.
    pub unnumbered: i64,
    /// The count.
    pub count: usize,
}

/// Which changes to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogScan {
    /// Of these keys: parts of a range in ascending order, without overlap.
    pub parts: Vec<KeyRange>,
    /// First revision.
    pub from: Revision,
    /// Last revision.
    pub to: Revision,
    /// Stop behind the first revision with which this many events are reached.
    pub max_events: usize,
    /// Stop behind the first revision with which this many bytes of keys and values are reached.
    pub max_bytes: usize,
    /// With the pair before each change.
    pub prev_kv: bool,
}

/// Head and data of one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// The head row.
    pub head: Head,
    /// The store's clock, in milliseconds.
    pub now_ms: i64,
    /// One answer per query.
    pub found: Vec<Found>,
}

/// The answer to a [`Query`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Rows.
    Rows {
        /// In key order.
        rows: Vec<Row>,
        /// Live rows in the range, if they were to be counted.
        count: usize,
    },
    /// What a transaction needs.
    Prefetched(Prefetched),
    /// A lease and its keys.
    Lease(Option<(Lease, Vec<Bytes>)>),
    /// Numbers of leases.
    Leases(Vec<LeaseId>),
    /// Leases, by their deadline.
    Due(Vec<Lease>),
    /// Records.
    Records(Vec<Record>),
    /// Changes.
    Log {
        /// Whole revisions, ascending.
        batches: Vec<Arc<EventBatch>>,
        /// All changes up to this revision are in it.
        reached: Revision,
    },
    /// Whether there is any.
    Any(bool),
    /// Bytes that the store takes up, and bytes of them that hold data.
    Sizes(u64, u64),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_small(query: Query) -> bool {
        Snapshot::latest(vec![query]).is_small()
    }

    #[test]
    fn what_ends_leases_and_what_follows_the_log_does_not_wait_for_long_lists() {
        assert!(is_small(Query::Due(1000)));
        let scan = |parts| LogScan {
            parts,
            from: Revision(1),
            to: Revision(i64::MAX),
            max_events: 4096,
            max_bytes: 1 << 20,
            prev_kv: true,
        };
        assert!(is_small(Query::Log(scan(vec![KeyRange::all()]))));
        // Who looks for some keys may pass by any number of others.
        assert!(!is_small(Query::Log(scan(vec![KeyRange::prefix("k")]))));
        assert!(!is_small(Query::Leases));
    }
}

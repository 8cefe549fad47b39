//! The tables, as all backends have them.
//!
//! | table | one row is | why |
//! | --- | --- | --- |
//! | `head` | the store | locked by every write, so that commits are in the order of revisions |
//! | `kv` | a key's latest state, live or whiteout | reads by primary key |
//! | `log` | a change of a key | watches, reads of the past, the pair before a change |
//! | `lease` | a lease | |
//! | `leased` | a key with a lease; in MySQL alone | no index there leaves out the keys that have none |
//! | `record` | a named piece of the migration's own state | |
//!
//! # Why one index on the log is enough
//!
//! The entries of a key form a chain: `prev_revision` of an entry is the revision of the one before
//! it, or 0 where the key had no row. At revision `r` a key is in the state of the last entry at or
//! below `r`. Either there is no later entry: then this is the key's row in `kv`, whose mod revision
//! is at most `r` (this covers copied keys, which have no entry at all; where a replay has taken a key's lease, the entry of
//! this row knows it). Or there is one, and then
//! exactly one entry of the chain has `prev_revision <= r < revision`; the state is the entry that
//! `prev_revision` names, found by `(revision, key)`. 0 names none: the key had no row at `r`.
//!
//! A key that one transaction changes several times, by writing and removing it in either order, has as many
//! entries of that revision. All but the last are *brief*: watches are told of them, and they are no part of
//! the chain. Those that wrote the key have a version; those that removed it have version 0.
//!
//! Compaction at `c` may forget what nobody at or above `c` can see: entries named by the
//! `prev_revision` of an entry at or below `c`, and deletes and brief entries below `c` (a watch may still start at `c`
//! itself). So for `r >= c` the entry that is looked for exists, except that a delete may be gone:
//! a name that leads nowhere therefore means "deleted, and still a claim".
//!
//! # What else they have in common
//!
//! Keys and values are bytes, and keys are in the order of their bytes. Times are milliseconds since
//! 1970 of the store's clock. The head row has the version of the tables: a program that knows
//! another one keeps its hands off.

use std::time::Duration;

use super::backend::{LogKind, Logged};

/// How [`LogKind`] is written.
pub(super) mod log_kind {
    use super::LogKind;

    pub(in super::super) const DELETE: i64 = 0;
    pub(in super::super) const PUT: i64 = 1;
    pub(in super::super) const COPY: i64 = 2;
    pub(in super::super) const BRIEF: i64 = 3;

    pub(in super::super) fn of(kind: LogKind) -> i64 {
        match kind {
            LogKind::Delete => DELETE,
            LogKind::Put => PUT,
            LogKind::Copy => COPY,
            LogKind::Brief => BRIEF,
        }
    }
}

/// How [`Logged::Leased`] is written in `kv.logged`.
pub(super) const LEASED: i16 = 2;

/// How [`Logged::Own`] is written there.
pub(super) const OWN: i16 = 3;

/// How [`Logged`] is written.
pub(super) fn logged(logged: Logged) -> i16 {
    match logged {
        Logged::No => 0,
        Logged::Yes => 1,
        Logged::Leased => LEASED,
        Logged::Own => OWN,
    }
}

/// How long history stays that was compacted, for other processes that have not read it yet. They are behind by
/// milliseconds, by half a second while nobody watches there, and by a bit more while the database is busy.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// Log entries that one step of a sweep looks at: some ten milliseconds.
pub(super) const SWEEP_ENTRIES: i64 = 2000;

/// Whiteouts that are dropped in one transaction.
pub(super) const DROP_WHITEOUTS: i64 = 5000;

/// What is wrong with the prefix of the tables' names, if anything: it goes into statements as it is.
pub(super) fn prefix_complaint(prefix: &str) -> Option<String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let right =
        prefix.bytes().all(good) && !prefix.starts_with(|first: char| first.is_ascii_digit());
    (!right).then(|| {
        format!(
            "the table prefix {prefix:?} must consist of ASCII letters, digits and underscores and \
             not begin with a digit"
        )
    })
}

/// What is wrong with the version of the tables, if this program does not know it.
pub(super) fn version_complaint(found: i64, known: i64) -> Option<String> {
    (found != known).then(|| {
        format!(
            "its tables are of version {found}, and this program knows version {known}; use the \
             release that wrote them, or a later one"
        )
    })
}

/// What is wrong if the tables are not there and nobody asked to create them.
pub(super) fn missing_complaint(prefix: &str) -> String {
    format!("it holds no store that segue has made: there is no table {prefix}head; check the URL")
}

/// A name for a new store, which no other has.
pub(super) fn new_identity() -> String {
    format!("{:032x}", rand::random::<u128>())
}

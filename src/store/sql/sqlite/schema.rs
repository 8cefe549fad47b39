//! The tables of [`crate::store::sql::tables`] in SQLite, and the statements that only it has.
//!
//! `kv` and `log` keep SQLite's rowid and a separate unique index. In a `WITHOUT ROWID` table the
//! whole row is the index entry, and an entry that spills over its page is read in full at every
//! comparison of a search: with values of a few kilobytes each lookup would read dozens of values.

use rusqlite::{Connection, OptionalExtension};

use super::error::{Opening, opening};
use crate::store::Result;
use crate::store::sql::tables::{log_kind, missing_complaint, new_identity, version_complaint};
use crate::store::sql::text::{self, Dialect, Texts};

/// The version of the tables that this program writes. A change of them needs a new one, and steps
/// that lead there from each earlier one.
pub(super) const VERSION: i64 = 1;

/// What SQLite writes otherwise.
#[derive(Clone, Copy, Debug)]
struct SqliteDialect;

impl Dialect for SqliteDialect {
    fn keys_unindexed(&self, of: &str, open_end: bool) -> String {
        // With a `+` in front of it, a column is not looked for in an index.
        self.keys(&format!("+{of}"), open_end)
    }

    /// Where the row is in the table, so that it can be replaced without a search.
    fn more_columns(&self) -> &'static str {
        ", rowid"
    }
}

/// All statements, with the names of the tables filled in.
#[derive(Debug)]
pub(super) struct Sql {
    pub(super) texts: Texts,
    pub(super) insert_row: String,
    pub(super) update_row: String,
    pub(super) delete_row: String,
    pub(super) insert_log: String,
    pub(super) delete_log: String,
    pub(super) put_lease: String,
    pub(super) put_record: String,
    pub(super) any: String,
    pub(super) sweep_superseded: String,
    pub(super) sweep_deletes: String,
    pub(super) drop_whiteouts: String,
    prefix: String,
}

impl Sql {
    pub(super) fn new(prefix: &str) -> Self {
        let p = prefix;
        Self {
            texts: Texts::new(&SqliteDialect, prefix),
            insert_row: format!(
                "INSERT INTO {p}kv (key, value, create_revision, mod_revision, version, lease, \
                 live, logged) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"
            ),
            update_row: format!(
                "UPDATE {p}kv SET value = ?2, create_revision = ?3, mod_revision = ?4, \
                 version = ?5, lease = ?6, live = ?7, logged = ?8 WHERE rowid = ?1"
            ),
            delete_row: format!("DELETE FROM {p}kv WHERE rowid = ?1"),
            insert_log: format!("INSERT INTO {p}log {LOG_VALUES}"),
            delete_log: format!("DELETE FROM {p}log WHERE revision = ?1 AND key = ?2"),
            put_lease: format!(
                "INSERT INTO {p}lease (id, ttl_s, deadline_ms) VALUES (?1, ?2, ?3) ON CONFLICT (id) \
                 DO UPDATE SET ttl_s = excluded.ttl_s, deadline_ms = excluded.deadline_ms"
            ),
            put_record: format!(
                "INSERT INTO {p}record (name, value, version) VALUES (?1, ?2, ?3) ON CONFLICT (name) \
                 DO UPDATE SET value = excluded.value, version = excluded.version"
            ),
            any: format!("SELECT EXISTS (SELECT 1 FROM {p}kv) OR EXISTS (SELECT 1 FROM {p}record)"),
            sweep_superseded: format!(
                "DELETE FROM {p}log WHERE id IN (SELECT p.id FROM {p}log l \
                 CROSS JOIN {p}log p ON p.revision = l.prev_revision AND p.key = l.key \
                 WHERE l.revision > ?1 AND l.revision <= ?2 AND l.prev_revision > 0)"
            ),
            sweep_deletes: format!(
                "DELETE FROM {p}log WHERE revision >= ?1 AND revision < ?2 AND kind IN ({}, {})",
                log_kind::DELETE,
                log_kind::BRIEF
            ),
            drop_whiteouts: format!(
                "DELETE FROM {p}kv WHERE rowid IN (SELECT rowid FROM {p}kv WHERE live = 0 LIMIT ?1)"
            ),
            prefix: prefix.to_owned(),
        }
    }

    /// See [`text::span`].
    pub(super) fn span(&self, open_end: bool, whiteouts: bool, values: bool) -> String {
        text::span(&SqliteDialect, &self.prefix, open_end, whiteouts, values)
    }

    /// See [`text::count`].
    pub(super) fn count(&self, open_end: bool) -> String {
        text::count(&SqliteDialect, &self.prefix, open_end)
    }

    /// See [`text::count_at`].
    pub(super) fn count_at(&self, open_end: bool) -> String {
        text::count_at(&SqliteDialect, &self.prefix, open_end)
    }

    /// Rows of a span as they stood at revision `?4`, in key order. See `tables`. With whiteouts a key
    /// that has a row now and had none then is one, too: what is claimed stays claimed.
    pub(super) fn span_at(&self, open_end: bool, whiteouts: bool, values: bool) -> String {
        let (value, past_value) = if values {
            ("value", "p.value")
        } else {
            ("NULL", "NULL")
        };
        let p = &self.prefix;
        let past_live = format!("coalesce(p.kind, {0}) <> {0}", log_kind::DELETE);
        let past_logged = format!("coalesce(p.kind, 0) <> {}", log_kind::COPY);
        let kv_keys = SqliteDialect.keys("", open_end);
        let log_keys = SqliteDialect.keys_unindexed("l.", open_end);
        let (live, only_past_live, claimed_later) = if whiteouts {
            let later = format!(
                "UNION ALL SELECT key, NULL, 0, mod_revision, 0, 0, 0, 1, 0 FROM {p}kv \
                 WHERE {kv_keys} AND mod_revision > ?4 AND key NOT IN (SELECT l.key FROM {p}log l \
                 WHERE l.revision > ?4 AND l.prev_revision BETWEEN 1 AND ?4 AND {log_keys}) "
            );
            (String::new(), String::new(), later)
        } else {
            (
                " AND live = 1".into(),
                format!(" AND {past_live}"),
                String::new(),
            )
        };
        format!(
            "SELECT key, {value}, create_revision, mod_revision, version, {lease}, live, logged, 0 \
             FROM {p}kv AS kv WHERE {kv_keys} AND mod_revision <= ?4{live} \
             UNION ALL \
             SELECT l.key, {past_value}, coalesce(p.create_revision, 0), l.prev_revision, \
             coalesce(p.version, 0), coalesce(p.lease, 0), {past_live}, {past_logged}, 0 \
             FROM {p}log l {join} \
             WHERE l.revision > ?4 AND l.prev_revision BETWEEN 1 AND ?4 AND {log_keys}{only_past_live} \
             {claimed_later}ORDER BY 1 LIMIT ?3",
            join = text::join_prev(&SqliteDialect, p),
            lease = text::past_lease(&SqliteDialect, p, "kv"),
        )
    }

    /// Changes of the keys of a span in revisions `?3` to `?4`, with the pair before each.
    pub(super) fn changes(&self, open_end: bool, prev_kv: bool) -> String {
        let p = &self.prefix;
        let (prev, join) = if prev_kv {
            (
                "p.kind, p.value, p.create_revision, p.version, p.lease",
                text::join_prev(&SqliteDialect, p) + " ",
            )
        } else {
            ("NULL, NULL, NULL, NULL, NULL", String::new())
        };
        format!(
            "SELECT l.revision, l.key, l.kind, l.value, l.create_revision, l.version, l.lease, \
             l.prev_revision, {prev} FROM {p}log l {join}\
             WHERE l.revision >= ?3 AND l.revision <= ?4 AND l.kind <> {copy} AND {keys} \
             ORDER BY l.revision, l.id",
            copy = log_kind::COPY,
            keys = SqliteDialect.keys_unindexed("l.", open_end),
        )
    }
}

const LOG_VALUES: &str = "(revision, key, kind, value, create_revision, version, lease, \
                          prev_revision) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";

/// Creates the tables in an empty database, if that is wanted, or checks that those there are ours to use. Answers the
/// store's identity.
pub(super) fn prepare(
    conn: &mut Connection,
    prefix: &str,
    create: bool,
    opening_of: &Opening,
) -> Result<String> {
    let fail = |err| opening(opening_of, err);
    let tx = conn
        .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
        .map_err(fail)?;
    let exists = tx
        .query_row(
            "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?1",
            [format!("{prefix}head")],
            |_| Ok(()),
        )
        .optional()
        .map_err(fail)?
        .is_some();
    if !exists && !create {
        return Err(opening_of.broken(&missing_complaint(prefix)));
    }
    if !exists {
        tx.execute_batch(&tables(prefix)).map_err(fail)?;
        tx.execute(
            &format!(
                "INSERT INTO {prefix}head (one, schema_version, identity, revision, compacted, \
                 swept, origin, copy_ups, at_ms, fenced, claims, base) VALUES (1, ?1, ?2, 1, 0, 0, 0, 0, 0, 0, 0, 0)"
            ),
            (VERSION, new_identity()),
        )
        .map_err(fail)?;
    }
    let (version, identity) = tx
        .query_row(
            &format!("SELECT schema_version, identity FROM {prefix}head"),
            [],
            |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)),
        )
        .map_err(fail)?;
    if let Some(complaint) = version_complaint(version, VERSION) {
        return Err(opening_of.broken(&complaint));
    }
    tx.commit().map_err(fail)?;
    Ok(identity)
}

fn tables(p: &str) -> String {
    format!(
        "
-- Where the store stands. One row.
CREATE TABLE {p}head (
    one             INTEGER PRIMARY KEY CHECK (one = 1),
    schema_version  INTEGER NOT NULL,  -- a program that does not know it keeps its hands off
    identity        TEXT    NOT NULL,  -- tells whether two addresses are one store
    revision        INTEGER NOT NULL,  -- of the last change; an empty store is at 1, as etcd's is
    compacted       INTEGER NOT NULL,  -- reads below it are refused
    swept           INTEGER NOT NULL,  -- how far compaction has deleted, so that it can go on
    origin          INTEGER NOT NULL,  -- changes up to here were the old store's
    copy_ups        INTEGER NOT NULL,  -- batches that take no revision: copied keys, leases, records
    at_ms           INTEGER NOT NULL,  -- when something was last committed
    fenced          INTEGER NOT NULL,  -- there is a record that is a fence
    epoch           INTEGER,           -- of the migration; NULL without one
    claims          INTEGER NOT NULL,  -- deleted keys leave whiteouts
    base            INTEGER NOT NULL   -- last revision of the old store
);

-- The latest state of each key. The primary key is the index that reads and counts use.
CREATE TABLE {p}kv (
    key             BLOB    NOT NULL PRIMARY KEY,
    create_revision INTEGER NOT NULL,
    mod_revision    INTEGER NOT NULL,  -- names the log entry of this state, if `logged`
    version         INTEGER NOT NULL,
    lease           INTEGER NOT NULL,
    live            INTEGER NOT NULL,  -- 0: a whiteout
    logged          INTEGER NOT NULL,  -- 0, 3: copied up and not changed since; 2: without its lease
    value           BLOB               -- last, so that large ones are not in the way of the rest
);
-- The keys of a lease, when it ends.
CREATE INDEX {p}kv_lease ON {p}kv (lease) WHERE lease <> 0;
-- Whiteouts: taken off the number of rows when live keys are counted, and removed after a migration.
CREATE INDEX {p}kv_whiteout ON {p}kv (key) WHERE live = 0;

-- What happened to each key. The order of `id` is the order of changes within a revision.
CREATE TABLE {p}log (
    id              INTEGER PRIMARY KEY,
    revision        INTEGER NOT NULL,
    key             BLOB    NOT NULL,
    kind            INTEGER NOT NULL,  -- 0 delete, 1 put, 2 the state in which it was copied up, 3 a
                                       -- change (version 0: a delete) before another in one revision
    create_revision INTEGER NOT NULL,
    version         INTEGER NOT NULL,
    lease           INTEGER NOT NULL,
    prev_revision   INTEGER NOT NULL,  -- of the key's entry before this one; 0: it had no row
    value           BLOB
);
-- Watches and reads of the past walk it by revision and look up earlier entries of a key in it.
CREATE INDEX {p}log_revision ON {p}log (revision, key);

CREATE TABLE {p}lease (
    id              INTEGER PRIMARY KEY,
    ttl_s           INTEGER NOT NULL,
    deadline_ms     INTEGER NOT NULL   -- since 1970, by the clock of the proxy that has the file open
);
-- Leases that have ended.
CREATE INDEX {p}lease_deadline ON {p}lease (deadline_ms);

-- The migration's own state. Not keys: no revision, no event.
CREATE TABLE {p}record (
    name            TEXT    NOT NULL PRIMARY KEY,
    value           BLOB    NOT NULL,
    version         INTEGER NOT NULL
) WITHOUT ROWID;
"
    )
}

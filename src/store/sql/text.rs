//! The statements that are the same in SQLite and PostgreSQL, but for their dialects. What MySQL is sent are
//! scripts of several statements without parameters, which it has for itself.
//!
//! Parameters are written `?1`, `?2` … and may occur more than once, as SQLite has it; [`numbered`] writes
//! them as PostgreSQL wants them.

use super::tables::{LEASED, log_kind};

/// How a database's SQL differs. `of` is empty, or the alias of a table with its dot.
pub(super) trait Dialect {
    /// The whole key of a row.
    fn key(&self, of: &str) -> String {
        format!("{of}\"key\"")
    }

    /// What rows are ordered by, to be in the order of their keys.
    fn key_order(&self) -> &'static str {
        "\"key\""
    }

    /// Whether the rows of two aliases are of one key.
    fn same_key(&self, one: &str, other: &str) -> String {
        format!("{one}\"key\" = {other}\"key\"")
    }

    /// The condition on a key that it is `?1`.
    fn is_key(&self) -> &'static str {
        "\"key\" = ?1"
    }

    /// The condition on a key: from `?1`, and below `?2` unless the end is open. Both parameters
    /// occur in either case, so that all statements are bound alike.
    fn keys(&self, of: &str, open_end: bool) -> String {
        if open_end {
            format!("{of}\"key\" >= ?1 AND ?2 IS NULL")
        } else {
            format!("{of}\"key\" >= ?1 AND {of}\"key\" < ?2")
        }
    }

    /// The same for entries of the log that are searched by revision: what changed since then is as
    /// a rule little.
    fn keys_unindexed(&self, of: &str, open_end: bool) -> String {
        self.keys(of, open_end)
    }

    /// No value, where one is left out.
    fn no_value(&self) -> &'static str {
        "NULL"
    }

    /// What the columns of a row end with besides.
    fn more_columns(&self) -> &'static str {
        ""
    }
}

/// The columns of a row in the order in which [`super::rows::row_of`] reads them.
pub(super) fn row_columns(dialect: &impl Dialect, values: bool) -> String {
    format!(
        "{key}, {value}, create_revision, mod_revision, version, lease, live, logged{more}",
        key = dialect.key(""),
        value = if values { "value" } else { dialect.no_value() },
        more = dialect.more_columns(),
    )
}

/// Statements without variants, for tables whose names begin with a prefix.
#[derive(Debug)]
pub(super) struct Texts {
    /// The head row.
    pub(super) head: String,
    /// Writes all of the head row.
    pub(super) set_head: String,
    /// Notes how far compaction has deleted.
    pub(super) set_swept: String,
    /// The row of key `?1`.
    pub(super) row: String,
    /// The rows of lease `?1`, in any order.
    pub(super) rows_attached: String,
    /// The keys of lease `?1`.
    pub(super) keys_attached: String,
    /// Lease `?1`.
    pub(super) lease: String,
    /// The numbers of all leases.
    pub(super) leases: String,
    /// The `?1` leases that end first.
    pub(super) leases_due: String,
    /// Begins every lease's time anew, at `?1`.
    pub(super) renew_leases: String,
    /// Ends lease `?1`.
    pub(super) delete_lease: String,
    /// The record of name `?1`.
    pub(super) record: String,
    /// The records whose names begin with `?1`.
    pub(super) records: String,
    /// Removes the record of name `?1`.
    pub(super) delete_record: String,
    /// The revision of the entry that is `?3` entries behind `?1`, if that is not above `?2`.
    pub(super) sweep_until: String,
}

impl Texts {
    pub(super) fn new(dialect: &impl Dialect, p: &str) -> Self {
        let row = row_columns(dialect, true);
        let is_key = dialect.is_key();
        Self {
            head: format!(
                "SELECT revision, compacted, swept, origin, copy_ups, at_ms, fenced, epoch, claims, \
                 base \
                 FROM {p}head"
            ),
            set_head: format!(
                "UPDATE {p}head SET revision = ?1, compacted = ?2, swept = ?3, \
                 origin = ?4, copy_ups = ?5, at_ms = ?6, fenced = ?7, \
                 epoch = ?8, claims = ?9, base = ?10"
            ),
            set_swept: format!("UPDATE {p}head SET swept = ?1"),
            row: format!("SELECT {row} FROM {p}kv WHERE {is_key}"),
            rows_attached: format!("SELECT {row} FROM {p}kv WHERE lease = ?1 AND lease <> 0"),
            keys_attached: format!(
                "SELECT {key} FROM {p}kv WHERE lease = ?1 AND lease <> 0 ORDER BY {order}",
                key = dialect.key(""),
                order = dialect.key_order(),
            ),
            lease: format!("SELECT id, ttl_s, deadline_ms FROM {p}lease WHERE id = ?1"),
            leases: format!("SELECT id FROM {p}lease ORDER BY id"),
            leases_due: format!(
                "SELECT id, ttl_s, deadline_ms FROM {p}lease ORDER BY deadline_ms LIMIT ?1"
            ),
            renew_leases: format!("UPDATE {p}lease SET deadline_ms = ?1 + ttl_s * 1000"),
            delete_lease: format!("DELETE FROM {p}lease WHERE id = ?1"),
            record: format!("SELECT name, value, version FROM {p}record WHERE name = ?1"),
            records: format!(
                "SELECT name, value, version FROM {p}record WHERE substr(name, 1, length(?1)) = ?1 \
                 ORDER BY name"
            ),
            delete_record: format!("DELETE FROM {p}record WHERE name = ?1"),
            sweep_until: format!(
                "SELECT revision FROM {p}log WHERE revision > ?1 AND revision <= ?2 \
                 ORDER BY revision LIMIT 1 OFFSET ?3"
            ),
        }
    }
}

/// Latest rows of a span in key order, `?3` at most.
pub(super) fn span(
    dialect: &impl Dialect,
    p: &str,
    open_end: bool,
    whiteouts: bool,
    values: bool,
) -> String {
    format!(
        "SELECT {columns} FROM {p}kv WHERE {keys}{live} ORDER BY {order} LIMIT ?3",
        columns = row_columns(dialect, values),
        keys = dialect.keys("", open_end),
        live = if whiteouts { "" } else { " AND live = 1" },
        order = dialect.key_order(),
    )
}

/// The lease of a row as reads of the past see it, where the table of rows is called `kv`.
pub(super) fn past_lease(dialect: &impl Dialect, p: &str, kv: &str) -> String {
    format!(
        "CASE WHEN logged = {LEASED} THEN (SELECT p.lease FROM {p}log p \
         WHERE p.revision = {kv}.mod_revision AND {same_key} AND p.kind <> {brief}) ELSE lease END",
        same_key = dialect.same_key("p.", &format!("{kv}.")),
        brief = log_kind::BRIEF,
    )
}

/// Joins the entry `p` that an entry `l` superseded, if it is still there.
pub(super) fn join_prev(dialect: &impl Dialect, p: &str) -> String {
    format!(
        "LEFT JOIN {p}log p ON p.revision = l.prev_revision AND {same_key} AND p.kind <> {brief}",
        same_key = dialect.same_key("p.", "l."),
        brief = log_kind::BRIEF,
    )
}

/// Number of rows of a span, less the whiteouts among them. Both come from indices alone.
pub(super) fn count(dialect: &impl Dialect, p: &str, open_end: bool) -> String {
    let keys = dialect.keys("", open_end);
    format!(
        "SELECT (SELECT count(*) FROM {p}kv WHERE {keys}) - \
         (SELECT count(*) FROM {p}kv WHERE {keys} AND live = 0)"
    )
}

/// Number of live rows of a span at revision `?3`.
pub(super) fn count_at(dialect: &impl Dialect, p: &str, open_end: bool) -> String {
    format!(
        "SELECT (SELECT count(*) FROM {p}kv WHERE {kv_keys} AND mod_revision <= ?3 AND live = 1) + \
         (SELECT count(*) FROM {p}log l JOIN {p}log p \
         ON p.revision = l.prev_revision AND {same_key} \
         WHERE l.revision > ?3 AND l.prev_revision BETWEEN 1 AND ?3 AND {log_keys} \
         AND p.kind NOT IN ({delete}, {brief}))",
        kv_keys = dialect.keys("", open_end),
        log_keys = dialect.keys_unindexed("l.", open_end),
        same_key = dialect.same_key("p.", "l."),
        delete = log_kind::DELETE,
        brief = log_kind::BRIEF,
    )
}

/// The text with parameters written `$1`, `$2` …
#[must_use]
pub fn numbered(text: &str) -> String {
    text.replace('?', "$")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_written_as_postgresql_wants_them() {
        let text = "SELECT ?1 WHERE a < ?12 OR b = ?1";
        assert_eq!(numbered(text), "SELECT $1 WHERE a < $12 OR b = $1");
    }
}

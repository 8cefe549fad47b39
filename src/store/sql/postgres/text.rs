//! The statements, as PostgreSQL wants them.
//!
//! Keys are in two columns: `key` holds the first [`KEY_PART`] bytes and `key_rest` what is left,
//! which is nothing for all but the longest. An entry of a btree index has to fit into a third of a
//! page, some 2,700 bytes, and keys of 3 KB are to be had; so the first part is what is indexed, and
//! counting needs nothing but the index. That a key has one row is seen to by the engine, which
//! looks before it writes, under the lock of the head row.

use tokio_postgres::types::Type;

use crate::store::sql::tables::log_kind;
use crate::store::sql::text::{self, Dialect, Texts, numbered};
use crate::types::KeyRange;

/// Bytes of a key in its first column.
pub(super) const KEY_PART: usize = 2000;

/// The time, in milliseconds since 1970: the database's, so that all proxies have the same.
pub(super) const NOW_MS: &str = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint";

/// A key's two columns.
pub(super) fn split(key: &[u8]) -> (&[u8], &[u8]) {
    key.split_at(key.len().min(KEY_PART))
}

/// What PostgreSQL writes otherwise.
#[derive(Clone, Copy, Debug)]
struct PostgresDialect {
    /// A bound of the range is longer than the first column.
    long: bool,
}

impl Dialect for PostgresDialect {
    fn key(&self, of: &str) -> String {
        format!("{of}\"key\" || {of}key_rest")
    }

    fn key_order(&self) -> &'static str {
        "\"key\", key_rest"
    }

    fn same_key(&self, one: &str, other: &str) -> String {
        format!("{one}\"key\" = {other}\"key\" AND {one}key_rest = {other}key_rest")
    }

    fn keys(&self, of: &str, open_end: bool) -> String {
        // A bound that fits into the first column is compared with it alone: where that is equal to
        // the bound, the key is the bound or behind it, whatever else it has.
        let bound = |number: usize, compare: &str| {
            if self.long {
                let first = format!("substr(?{number}::bytea, 1, {KEY_PART})");
                let rest = format!("substr(?{number}::bytea, {KEY_PART} + 1)");
                format!("({of}\"key\", {of}key_rest) {compare} ({first}, {rest})")
            } else {
                format!("{of}\"key\" {compare} ?{number}")
            }
        };
        if open_end {
            bound(1, ">=")
        } else {
            format!("{} AND {}", bound(1, ">="), bound(2, "<"))
        }
    }

    fn no_value(&self) -> &'static str {
        "NULL::bytea"
    }
}

/// Which rows a statement reads.
#[derive(Clone, Copy, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a variant of its own"
)]
pub(super) struct RowsText {
    /// The range has no end.
    pub(super) open_end: bool,
    /// A bound is longer than the first column of keys.
    pub(super) long: bool,
    /// As they were at a revision of the past.
    pub(super) past: bool,
    pub(super) whiteouts: bool,
    pub(super) values: Values,
    /// Stops with the row with which so many bytes are reached.
    pub(super) bounded: bool,
}

/// Which rows come with their values.
#[derive(Clone, Copy, Debug)]
pub(super) enum Values {
    None,
    /// The first so many live ones.
    First,
    All,
}

impl RowsText {
    /// For a range.
    pub(super) fn of(keys: &KeyRange, past: bool, whiteouts: bool, values: Values) -> Self {
        let end = keys.end();
        Self {
            open_end: end.is_none(),
            long: keys.start().len() > KEY_PART || end.is_some_and(|end| end.len() > KEY_PART),
            past,
            whiteouts,
            values,
            bounded: false,
        }
    }

    fn dialect(self) -> PostgresDialect {
        PostgresDialect { long: self.long }
    }
}

/// The parameters of what reads rows: bounds, limit, revision, values, bytes.
pub(super) const ROWS_TYPES: &[Type] = &[
    Type::BYTEA,
    Type::BYTEA,
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::INT8,
];

/// All statements without variants, with the names of the tables filled in.
#[derive(Debug)]
pub(super) struct Sql {
    /// What all names of tables begin with, the schema included.
    p: String,
    pub(super) texts: Texts,
    /// The head row, the time and the version of the tables; locks the row.
    pub(super) lock: String,
    /// The same without the lock.
    pub(super) head: String,
    pub(super) points: String,
    pub(super) rows_by_key: String,
    pub(super) rows_attached: String,
    pub(super) leases_by_id: String,
    pub(super) records_by_name: String,
    pub(super) any: String,
    pub(super) sizes: String,
    pub(super) insert_rows: String,
    /// Changes rows by their keys. This and the next three divide by zero if one of the rows is not there.
    pub(super) update_rows: String,
    /// The same by their places.
    pub(super) update_placed: String,
    pub(super) delete_rows: String,
    pub(super) delete_placed: String,
    /// Whether there are places, of the rows that [`Self::rows_by_key`] finds too.
    pub(super) places: bool,
    pub(super) delete_log: String,
    pub(super) insert_log: String,
    pub(super) put_leases: String,
    pub(super) delete_leases: String,
    pub(super) put_records: String,
    pub(super) delete_records: String,
    pub(super) set_head: String,
    /// The same, and a notification.
    pub(super) set_head_and_notify: String,
    pub(super) batch_of: String,
    pub(super) forget_writers: String,
    pub(super) sweep_superseded: String,
    pub(super) sweep_deletes: String,
    pub(super) drop_whiteouts: String,
    pub(super) vacuum: Vec<String>,
}

/// The tables, without the prefix.
pub(super) const TABLES: [&str; 6] = ["head", "kv", "log", "lease", "record", "writer"];

const ROW_NAMES: &str = "\"key\", key_rest, value, create_revision, mod_revision, version, lease, \
                         live, logged";
const ROW_TYPES: [&str; 9] = [
    "bytea", "bytea", "bytea", "int8", "int8", "int8", "int8", "int2", "int2",
];
const KEY_NAMES: &str = "\"key\", key_rest";
const KEY_TYPES: [&str; 2] = ["bytea", "bytea"];
const LOG_NAMES: &str = "revision, sub, \"key\", key_rest, kind, value, create_revision, version, \
                         lease, prev_revision";
const LOG_TYPES: [&str; 10] = [
    "int8", "int4", "bytea", "bytea", "int8", "bytea", "int8", "int8", "int8", "int8",
];

impl Sql {
    #[expect(clippy::too_many_lines, reason = "a list")]
    /// With `places` if a row can be found by where it is.
    pub(super) fn new(schema: &str, prefix: &str, places: bool) -> Self {
        let p = &format!("\"{schema}\".{prefix}");
        let dialect = PostgresDialect { long: false };
        let mut texts = Texts::new(&dialect, p);
        for text in [
            &mut texts.keys_attached,
            &mut texts.lease,
            &mut texts.leases_due,
            &mut texts.records,
            &mut texts.sweep_until,
            &mut texts.set_swept,
            &mut texts.renew_leases,
        ] {
            *text = numbered(text);
        }
        let row = text::row_columns(&dialect, true);
        let place = if places { ", ctid" } else { "" };
        let head_and_version = texts.head.replace(" FROM", ", schema_version FROM");
        let with_time = |head: &str| format!("SELECT h.*, {NOW_MS} FROM ({head}) AS h");
        let set_head = format!(
            "WITH w AS (INSERT INTO {p}writer (id, batch, seen_ms) VALUES (?11, ?12, {NOW_MS}) \
             ON CONFLICT (id) DO UPDATE SET batch = excluded.batch, seen_ms = excluded.seen_ms) {}",
            texts.set_head
        );
        let update = |listed: &str| {
            format!(
                "UPDATE {p}kv AS k SET value = n.value, create_revision = n.create_revision, \
                 mod_revision = n.mod_revision, version = n.version, lease = n.lease, \
                 live = n.live, logged = n.logged FROM {listed}"
            )
        };
        let delete = |listed: &str| format!("DELETE FROM {p}kv AS k USING {listed}");
        let same_key = dialect.same_key("k.", "n.");
        let same_place = format!("k.ctid = n.place AND {same_key}");
        // Changes the rows that are listed, all of them or none.
        let all_of = |change: &str, found: &str| {
            format!(
                "WITH c AS ({change} WHERE {found} RETURNING 1) \
                 SELECT 1 / CASE WHEN count(*) = cardinality(?1::bytea[]) THEN 1 ELSE 0 END FROM c"
            )
        };
        let n = |text: String| numbered(&text);
        Self {
            // The time is of when the lock is held: beside the columns of the row itself it would be
            // of before the wait, if whoever held the lock has changed nothing.
            lock: with_time(&format!("{head_and_version} FOR UPDATE")),
            points: n(format!(
                "{head} UNION ALL SELECT {row}, NULL, NULL, NULL, NULL, NULL, NULL FROM {p}kv \
                 WHERE \"key\" = ANY(?1::bytea[]) AND (key_rest = '' OR key_rest = ANY(?2::bytea[]))",
                head = head_row(&texts.head, "NULL::bigint"),
            )),
            rows_by_key: n(format!(
                "SELECT {row}{place} FROM {p}kv WHERE \"key\" = ANY(?1::bytea[]) \
                 AND (key_rest = '' OR key_rest = ANY(?2::bytea[]))"
            )),
            rows_attached: n(format!(
                "SELECT {row} FROM {p}kv WHERE lease = ANY(?1::int8[]) AND lease <> 0"
            )),
            leases_by_id: n(format!(
                "SELECT id, ttl_s, deadline_ms FROM {p}lease WHERE id = ANY(?1::int8[])"
            )),
            records_by_name: n(format!(
                "SELECT name, value, version FROM {p}record WHERE name = ANY(?1::text[])"
            )),
            any: format!(
                "SELECT CASE WHEN EXISTS (SELECT 1 FROM {p}kv) OR EXISTS (SELECT 1 FROM {p}record) \
                 THEN 1 ELSE 0 END"
            ),
            sizes: sizes(schema, prefix),
            insert_rows: n(format!(
                "INSERT INTO {p}kv ({ROW_NAMES}) {}",
                lists(&ROW_TYPES)
            )),
            update_rows: n(all_of(&update(&listed(ROW_NAMES, &ROW_TYPES)), &same_key)),
            update_placed: n(all_of(&update(&placed(ROW_NAMES, &ROW_TYPES)), &same_place)),
            delete_rows: n(all_of(&delete(&listed(KEY_NAMES, &KEY_TYPES)), &same_key)),
            delete_placed: n(all_of(&delete(&placed(KEY_NAMES, &KEY_TYPES)), &same_place)),
            places,
            delete_log: n(format!(
                "DELETE FROM {p}log AS l USING unnest(?1::int8[], ?2::bytea[], ?3::bytea[]) \
                 AS n(revision, \"key\", key_rest) WHERE l.revision = n.revision AND {}",
                dialect.same_key("l.", "n.")
            )),
            insert_log: n(format!(
                "INSERT INTO {p}log ({LOG_NAMES}) {}",
                lists(&LOG_TYPES)
            )),
            put_leases: n(format!(
                "INSERT INTO {p}lease (id, ttl_s, deadline_ms) \
                 SELECT * FROM unnest(?1::int8[], ?2::int8[], ?3::int8[]) ON CONFLICT (id) \
                 DO UPDATE SET ttl_s = excluded.ttl_s, deadline_ms = excluded.deadline_ms"
            )),
            delete_leases: n(format!("DELETE FROM {p}lease WHERE id = ANY(?1::int8[])")),
            put_records: n(format!(
                "INSERT INTO {p}record (name, value, version) \
                 SELECT * FROM unnest(?1::text[], ?2::bytea[], ?3::int8[]) ON CONFLICT (name) \
                 DO UPDATE SET value = excluded.value, version = excluded.version"
            )),
            delete_records: n(format!(
                "DELETE FROM {p}record WHERE name = ANY(?1::text[])"
            )),
            set_head: n(set_head.clone()),
            set_head_and_notify: n(format!(
                "{set_head} RETURNING pg_notify(?13::text, ?14::text)"
            )),
            batch_of: n(format!("SELECT batch FROM {p}writer WHERE id = ?1")),
            forget_writers: n(format!(
                "DELETE FROM {p}writer WHERE seen_ms < {NOW_MS} - ?1"
            )),
            sweep_superseded: n(format!(
                "DELETE FROM {p}log AS p USING {p}log AS l WHERE p.revision = l.prev_revision \
                 AND {} AND l.revision > ?1 AND l.revision <= ?2 AND l.prev_revision > 0",
                dialect.same_key("p.", "l.")
            )),
            sweep_deletes: n(format!(
                "DELETE FROM {p}log WHERE revision >= ?1 AND revision < ?2 AND kind IN ({}, {})",
                log_kind::DELETE,
                log_kind::BRIEF
            )),
            drop_whiteouts: n(format!(
                "DELETE FROM {p}kv WHERE live = 0 AND (\"key\", key_rest) IN \
                 (SELECT \"key\", key_rest FROM {p}kv WHERE live = 0 LIMIT ?1) \
                 RETURNING 1"
            )),
            vacuum: TABLES
                .iter()
                .map(|table| format!("VACUUM (ANALYZE) {p}{table}"))
                .collect(),
            head: with_time(&head_and_version),
            p: p.clone(),
            texts,
        }
    }

    /// Rows of a span with the head row in front, the time, and the count of live ones if wanted:
    /// in one statement, and so in one snapshot.
    pub(super) fn span_with_head(&self, rows: RowsText, count: bool) -> String {
        let count = if count {
            format!("({})", self.count_text(rows))
        } else {
            "NULL::bigint".into()
        };
        numbered(&format!(
            "{head} UNION ALL (SELECT s.*, NULL, NULL, NULL, NULL, NULL, NULL FROM ({rows}) AS s)",
            head = head_row(&self.texts.head, &count),
            rows = self.span_text(rows),
        ))
    }

    /// Rows of a span.
    pub(super) fn span(&self, rows: RowsText) -> String {
        numbered(&self.span_text(rows))
    }

    /// Number of live rows of a span.
    pub(super) fn count(&self, rows: RowsText) -> String {
        numbered(&self.count_text(rows))
    }

    fn count_text(&self, rows: RowsText) -> String {
        if rows.past {
            // The revision is the third parameter there, and the fourth of all that reads rows.
            text::count_at(&rows.dialect(), &self.p, rows.open_end).replace("?3", "?4")
        } else {
            text::count(&rows.dialect(), &self.p, rows.open_end)
        }
    }

    fn span_text(&self, rows: RowsText) -> String {
        let value = match rows.values {
            Values::None => "NULL::bytea",
            Values::All => "value",
            Values::First => {
                "CASE WHEN sum(live) OVER (ORDER BY \"key\", key_rest ROWS UNBOUNDED PRECEDING) \
                 <= ?5 THEN value END"
            }
        };
        let keys = rows.dialect().keys("", rows.open_end);
        let live = if rows.whiteouts { "" } else { " AND live = 1" };
        let from = if rows.past {
            format!("({}) AS r", self.past_rows(rows))
        } else {
            format!("{}kv WHERE {keys}{live}", self.p)
        };
        let order = "ORDER BY \"key\", key_rest";
        let (from, end) = if rows.bounded {
            let size = match rows.values {
                Values::None => "",
                Values::First | Values::All => " + coalesce(octet_length(value), 0)",
            };
            // The sizes are known without the values, which stay where they are until it is known
            // which ones are wanted.
            let summed = format!(
                "(SELECT s.*, sum(bytes) OVER ({order} ROWS UNBOUNDED PRECEDING) - bytes AS bytes_before \
                 FROM (SELECT {ROW_NAMES}, octet_length(\"key\") + octet_length(key_rest){size} AS bytes \
                 FROM {from} {order} LIMIT ?3) AS s) AS b WHERE bytes_before < ?6"
            );
            (summed, "")
        } else {
            (from, " LIMIT ?3")
        };
        format!(
            "SELECT \"key\" || key_rest, {value}, create_revision, mod_revision, version, lease, live, \
             logged FROM {from} {order}{end}"
        )
    }

    /// Rows as they stood at revision `?4`, as many as are needed at most; see `tables`. With
    /// whiteouts a key that has a row now and had none then is one, too: what is claimed stays
    /// claimed.
    fn past_rows(&self, rows: RowsText) -> String {
        let p = &self.p;
        let dialect = rows.dialect();
        let kv_keys = dialect.keys("", rows.open_end);
        let log_keys = dialect.keys("l.", rows.open_end);
        let past_live = format!("coalesce(p.kind, {0}) <> {0}", log_kind::DELETE);
        let later = "l.revision > ?4 AND l.prev_revision BETWEEN 1 AND ?4";
        let order = "ORDER BY \"key\", key_rest LIMIT ?3";
        let (live, only_past_live, claimed_later) = if rows.whiteouts {
            let claimed_later = format!(
                " UNION ALL (SELECT \"key\", key_rest, NULL, 0, mod_revision, 0, 0, 0, 1 FROM {p}kv \
                 WHERE {kv_keys} AND mod_revision > ?4 AND (\"key\", key_rest) NOT IN \
                 (SELECT l.\"key\", l.key_rest FROM {p}log l WHERE {later} AND {log_keys}) {order})"
            );
            (String::new(), String::new(), claimed_later)
        } else {
            (
                " AND live = 1".into(),
                format!(" AND {past_live}"),
                String::new(),
            )
        };
        format!(
            "(SELECT \"key\", key_rest, value, create_revision, mod_revision, version, {lease} AS lease, \
             live, logged FROM {p}kv AS kv WHERE {kv_keys} AND mod_revision <= ?4{live} {order}) \
             UNION ALL \
             (SELECT l.\"key\" AS \"key\", l.key_rest AS key_rest, p.value, \
             coalesce(p.create_revision, 0), l.prev_revision, coalesce(p.version, 0), \
             coalesce(p.lease, 0), CASE WHEN {past_live} THEN 1 ELSE 0 END, \
             CASE WHEN coalesce(p.kind, 0) = {copy} THEN 0 ELSE 1 END \
             FROM {p}log l {join} \
             WHERE {later} AND {log_keys}{only_past_live} {order}){claimed_later}",
            join = text::join_prev(&dialect, p),
            lease = text::past_lease(&dialect, p, "kv"),
            copy = log_kind::COPY,
        )
    }

    /// Changes of the keys of a span in revisions `$3` to `$4`, with the pair before each. Of the
    /// first `$5`, those of the revisions before which there are less than `$6` bytes.
    pub(super) fn changes(&self, rows: RowsText, prev_kv: bool) -> String {
        let p = &self.p;
        let dialect = rows.dialect();
        let (prev, join) = if prev_kv {
            (
                "p.kind, p.value, p.create_revision, p.version, p.lease",
                text::join_prev(&dialect, p) + " ",
            )
        } else {
            (
                "NULL::int2, NULL::bytea, NULL::int8, NULL::int8, NULL::int8",
                String::new(),
            )
        };
        numbered(&format!(
            "SELECT l.revision, {key}, l.kind, l.value, l.create_revision, l.version, l.lease, \
             l.prev_revision, {prev} FROM \
             (SELECT s.*, sum(s.bytes) OVER (ORDER BY revision) - \
             sum(s.bytes) OVER (PARTITION BY revision) AS bytes_before FROM \
             (SELECT {LOG_NAMES}, octet_length(\"key\") + coalesce(octet_length(value), 0) AS bytes \
             FROM {p}log WHERE revision >= ?3 AND revision <= ?4 AND kind <> {copy} AND {keys} \
             ORDER BY revision, sub LIMIT ?5) AS s) AS l {join}\
             WHERE l.bytes_before < ?6 ORDER BY l.revision, l.sub",
            key = dialect.key("l."),
            copy = log_kind::COPY,
            keys = dialect.keys("", rows.open_end),
        ))
    }
}

/// Rows out of arrays, one for each column, of the same length. In the list of what is selected they are
/// unpacked row by row; as a table each of them would be laid out in full first.
fn lists(types: &[&str]) -> String {
    let columns: Vec<String> = types
        .iter()
        .zip(1..)
        .map(|(of, number)| format!("unnest(?{number}::{of}[])"))
        .collect();
    format!("SELECT {}", columns.join(", "))
}

/// The same as a table.
fn listed(names: &str, types: &[&str]) -> String {
    format!("({}) AS n({names})", lists(types))
}

/// The same with a list of places behind the others.
fn placed(names: &str, types: &[&str]) -> String {
    listed(&format!("{names}, place"), &[types, &["tid"]].concat())
}

/// The parameters of [`Sql::changes`].
pub(super) const CHANGES_TYPES: &[Type] = &[
    Type::BYTEA,
    Type::BYTEA,
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::INT8,
];

/// The head row among rows, which are given six columns more: no key, no value, its own ten
/// columns, the time, and a count.
fn head_row(head: &str, count: &str) -> String {
    head.replacen("SELECT ", "SELECT NULL::bytea, NULL::bytea, ", 1)
        .replacen(" FROM", &format!(", {NOW_MS}, {count} FROM"), 1)
}

/// Where the time and the count are in [`head_row`].
pub(super) const HEAD_NOW_MS: usize = 12;
pub(super) const HEAD_COUNT: usize = 13;

/// Where the place is in [`Sql::rows_by_key`].
pub(super) const PLACE_COLUMN: usize = 8;

/// Where the version of the tables is in [`Sql::head`] and [`Sql::lock`].
pub(super) const VERSION_COLUMN: usize = 10;
/// Where the time is there.
pub(super) const NOW_MS_COLUMN: usize = 11;

/// Bytes of all tables with their indices, and what part of them is not dead.
fn sizes(schema: &str, prefix: &str) -> String {
    let name = |table: &str| format!("'{}{table}'", prefix.to_lowercase());
    let names: Vec<String> = TABLES.iter().map(|table| name(table)).collect();
    format!(
        "SELECT coalesce(sum(pg_total_relation_size(relid)), 0)::bigint, \
         coalesce(sum(pg_total_relation_size(relid) * \
         (n_live_tup + 1) / (n_live_tup + n_dead_tup + 1)), 0)::bigint \
         FROM pg_stat_user_tables WHERE schemaname = '{schema}' AND relname IN ({})",
        names.join(", ")
    )
}

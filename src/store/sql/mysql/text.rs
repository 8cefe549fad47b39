//! The statements that read, as far as they are not those of all databases.
//!
//! `FORCE INDEX (PRIMARY)` is said wherever a table is walked in the order of its primary key: the
//! server's own choice rests on estimates, which are wrong for a table that has just grown from
//! nothing to a million rows.

use super::script::{Script, Scripts};
use crate::store::sql::tables::{LEASED, log_kind};
use crate::types::{KeyRange, Revision};

/// Keys or numbers in one list. More make a statement that is slow to plan.
/// With the longest keys they are 800 KB, which every server takes in one packet.
pub(super) const TOGETHER: usize = 128;

/// Spans in one statement.
pub(super) const SPANS_TOGETHER: usize = 32;

/// The columns of the head row, the version of the tables behind them.
const HEAD: &str = "h.revision, h.compacted, h.swept, h.origin, h.copy_ups, h.at_ms, h.fenced, \
                    h.epoch, h.claims, h.base, h.schema_version";

/// Columns of [`HEAD`].
pub(super) const HEAD_LEN: usize = 11;

/// The head row, and the clock behind it.
pub(super) fn head(p: &str) -> String {
    format!("SELECT {HEAD}, {NOW_MS} FROM {p}head h")
}

/// The head row as it was committed last, locked until the transaction ends.
pub(super) fn lock_head(p: &str) -> String {
    format!("SELECT {HEAD} FROM {p}head h WHERE h.one = 1 FOR UPDATE")
}

/// The clock.
pub(super) fn clock() -> String {
    format!("SELECT {NOW_MS}")
}

/// Begins to select the head row with the rows of keys beside it, or one that is empty if there are
/// none. A statement is a snapshot, so this needs no transaction around it.
pub(super) fn head_beside_rows(p: &str) -> String {
    let columns = columns(true, "k.lease");
    format!(
        "SELECT {HEAD}, {NOW_MS}, {columns} FROM {p}head h \
         LEFT JOIN {p}kv k FORCE INDEX (PRIMARY) ON k.`key` IN ("
    )
}

/// The server's clock, in milliseconds since 1970. Not of the session's time zone: local time has
/// hours that come twice.
pub(super) const NOW_MS: &str =
    "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(3)) DIV 1000";

/// The columns that `rows::row_of` reads.
fn columns(values: bool, lease: &str) -> String {
    let value = if values { "k.value" } else { "NULL" };
    format!(
        "k.`key`, {value}, k.create_revision, k.mod_revision, k.version, {lease}, k.live, k.logged"
    )
}

/// Begins to select rows, in the order of their keys.
pub(super) fn select_rows(p: &str, values: bool) -> String {
    let columns = columns(values, "k.lease");
    format!("SELECT {columns} FROM {p}kv k FORCE INDEX (PRIMARY) WHERE ")
}

/// The same, with the leases that reads of the past see.
pub(super) fn select_unchanged(p: &str, values: bool) -> String {
    let lease = format!(
        "IF(k.logged = {LEASED}, (SELECT p.lease FROM {p}log p FORCE INDEX (PRIMARY) \
         WHERE p.revision = k.mod_revision AND p.`key` = k.`key` AND p.kind <> {}), k.lease)",
        log_kind::BRIEF
    );
    let columns = columns(values, &lease);
    format!("SELECT {columns} FROM {p}kv k FORCE INDEX (PRIMARY) WHERE ")
}

/// Begins to select rows by their lease.
pub(super) fn select_attached(p: &str) -> String {
    let columns = columns(true, "k.lease");
    format!(
        "SELECT {columns} FROM {p}leased a FORCE INDEX ({p}leased_lease) \
         STRAIGHT_JOIN {p}kv k FORCE INDEX (PRIMARY) ON k.`key` = a.`key` WHERE "
    )
}

/// The condition that the key, in a table of this alias (with its dot), is in one of `parts`.
pub(super) fn in_parts(script: &mut Script, of: &str, parts: &[KeyRange]) {
    if parts.is_empty() {
        script.say("1 = 0");
        return;
    }
    let is_one = |part: &&KeyRange| matches!(part, KeyRange::One(_));
    let ones: Vec<_> = parts.iter().filter(is_one).map(KeyRange::start).collect();
    script.say("(");
    let mut or = "";
    if !ones.is_empty() {
        script.say(of).say("`key` IN (");
        script.list(ones, |script, key| {
            script.bytes(key);
        });
        script.say(")");
        or = " OR ";
    }
    for part in parts {
        let KeyRange::Span { start, end } = part else {
            continue;
        };
        script
            .say(or)
            .say("(")
            .say(of)
            .say("`key` >= ")
            .bytes(start);
        if let Some(end) = end {
            script.say(" AND ").say(of).say("`key` < ").bytes(end);
        }
        script.say(")");
        or = " OR ";
    }
    script.say(")");
}

/// At most so many rows; nothing is all.
pub(super) fn limit(script: &mut Script, limit: Option<usize>) {
    if let Some(limit) = limit.and_then(|limit| i64::try_from(limit).ok()) {
        script.say(" LIMIT ").int(limit);
    }
}

/// The keys whose state at `at` was superseded since, with that state: from the log. See `tables`.
pub(super) fn superseded<'a>(
    scripts: &'a mut Scripts,
    p: &str,
    parts: &[KeyRange],
    at: Revision,
    values: bool,
    whiteouts: bool,
) -> &'a mut Script {
    let value = if values { "p.value" } else { "NULL" };
    let live = format!("COALESCE(p.kind, {0}) <> {0}", log_kind::DELETE);
    let logged = format!("COALESCE(p.kind, 0) <> {}", log_kind::COPY);
    let script = scripts.next(&format!(
        "SELECT l.`key`, {value}, COALESCE(p.create_revision, 0), l.prev_revision, \
         COALESCE(p.version, 0), COALESCE(p.lease, 0), {live}, {logged} \
         FROM {p}log l FORCE INDEX (PRIMARY) {join} WHERE l.revision > ",
        join = join_prev(p, "LEFT JOIN"),
    ));
    script
        .int(at.0)
        .say(" AND l.prev_revision BETWEEN 1 AND ")
        .int(at.0)
        .say(" AND ");
    in_parts(script, "l.", parts);
    if !whiteouts {
        script.say(" AND ").say(&live);
    }
    script
}

/// Joins the entry `p` that an entry `l` superseded.
pub(super) fn join_prev(p: &str, join: &str) -> String {
    format!(
        "{join} {p}log p FORCE INDEX (PRIMARY) ON p.revision = l.prev_revision AND p.hash = l.hash \
         AND p.`key` = l.`key` AND p.kind <> {}",
        log_kind::BRIEF
    )
}

/// The condition that a column is in a span.
pub(super) fn in_span(script: &mut Script, column: &str, span: &KeyRange) {
    script.say(column).say(" >= ").bytes(span.start());
    if let KeyRange::Span { end: Some(end), .. } = span {
        script.say(" AND ").say(column).say(" < ").bytes(end);
    }
}

//! What a batch needs, in one script: how it is asked for, and how the answer is read.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::cells::{Behind, Cells, Sets};
use super::error::Failure;
use super::schema::VERSION;
use super::script::{Script, Scripts};
use super::text::{self, SPANS_TOGETHER, TOGETHER};
use crate::store::sql::backend::{CLAIMS_MAX, Head, Past, Placed, Prefetch, Prefetched, Row};
use crate::store::sql::rows::{Columns as _, head_of, lease_of, record_of, row_of};
use crate::store::sql::tables::version_complaint;
use crate::types::{KeyRange, KeyValue, LeaseId, Revision};

/// Reads the answer to [`text::head`]: the head row and the clock.
pub(super) fn take_head(sets: &mut Sets) -> Result<(Head, i64), Failure> {
    let row = sets.first()?;
    read_head_and_clock(&row.ok_or_else(head_is_gone)?)
}

/// Reads the answers to [`super::Db::locking`]: the head row and the clock.
pub(super) fn take_locked(sets: &mut Sets) -> Result<(Head, i64), Failure> {
    let head = read_head(&sets.first()?.ok_or_else(head_is_gone)?)?;
    let clock = sets.first()?;
    let clock = clock.ok_or_else(|| Failure::Odd("the server tells no time".into()))?;
    Ok((head, clock.int(0)?))
}

pub(super) fn head_is_gone() -> Failure {
    Failure::Odd("the head row is gone".into())
}

/// Reads the columns of the head row.
fn read_head(row: &Cells) -> Result<Head, Failure> {
    if let Some(complaint) = version_complaint(row.int(text::HEAD_LEN - 1)?, VERSION) {
        return Err(Failure::Odd(complaint));
    }
    head_of(row)
}

/// Reads the columns of [`text::head`].
fn read_head_and_clock(row: &Cells) -> Result<(Head, i64), Failure> {
    Ok((read_head(row)?, row.int(text::HEAD_LEN)?))
}

/// Reads the answer to [`text::head_beside_rows`].
pub(super) fn take_head_and_rows(sets: &mut Sets) -> Result<(Head, i64, Vec<Row>), Failure> {
    let set = sets.next()?;
    let (head, now_ms) = read_head_and_clock(set.first().ok_or_else(head_is_gone)?)?;
    let mut rows = Vec::with_capacity(set.len());
    for row in &set {
        let row = Behind(row, text::HEAD_LEN + 1);
        // Every row has a version, but one that is not there.
        if row.maybe_int(4)?.is_some() {
            rows.push(row_of(&row)?);
        }
    }
    Ok((head, now_ms, rows))
}

/// Asks for what is wanted. [`take_prefetched`] reads the answers in the same order.
pub(super) fn ask(scripts: &mut Scripts, p: &str, want: &Prefetch) {
    ask_rows(scripts, p, &want.keys);
    for spans in want.spans.chunks(SPANS_TOGETHER) {
        let script = scripts.next(&text::select_rows(p, true));
        text::in_parts(script, "", spans);
    }
    for ids in want.attached.chunks(TOGETHER) {
        let script = scripts.next(&text::select_attached(p));
        in_ids(script, "a.lease", ids);
    }
    for span in &want.claims {
        let script = scripts.next(&format!(
            "SELECT `key` FROM {p}kv FORCE INDEX (PRIMARY) WHERE "
        ));
        text::in_parts(script, "", std::slice::from_ref(span));
        text::limit(script, Some(CLAIMS_MAX));
    }
    for ids in want.leases.chunks(TOGETHER) {
        let script = scripts.next(&format!(
            "SELECT id, ttl_s, deadline_ms FROM {p}lease WHERE "
        ));
        in_ids(script, "id", ids);
    }
    for names in want.records.chunks(TOGETHER) {
        let script = scripts.next(&format!(
            "SELECT name, value, version FROM {p}record WHERE name IN ("
        ));
        script.list(names, |script, name| {
            script.bytes(name.as_bytes());
        });
        script.say(")");
    }
    for (keys, at) in &want.past {
        ask_past(
            scripts,
            p,
            std::slice::from_ref(keys),
            *at,
            None,
            true,
            false,
        );
    }
}

/// Reads the answers to [`ask`].
pub(super) fn take_prefetched(
    sets: &mut Sets,
    want: &Prefetch,
    head: Head,
    now_ms: i64,
) -> Result<Prefetched, Failure> {
    let mut found = Prefetched {
        head,
        now_ms,
        rows: Vec::with_capacity(want.keys.len()),
        claimed: Vec::new(),
        past: Vec::new(),
        leases: Vec::new(),
        records: Vec::new(),
    };
    let of_rows = want.keys.chunks(TOGETHER).count()
        + want.spans.chunks(SPANS_TOGETHER).count()
        + want.attached.chunks(TOGETHER).count();
    for _ in 0..of_rows {
        read_into(&mut found.rows, sets, |row| {
            Ok(Placed::somewhere(row_of(row)?))
        })?;
    }
    for _ in &want.claims {
        read_into(&mut found.claimed, sets, |row| row.bytes(0))?;
    }
    for _ in want.leases.chunks(TOGETHER) {
        read_into(&mut found.leases, sets, lease_of)?;
    }
    for _ in want.records.chunks(TOGETHER) {
        read_into(&mut found.records, sets, record_of)?;
    }
    for (keys, at) in &want.past {
        let rows = take_past(sets, None, false)?;
        found.past.push(Past {
            keys: keys.clone(),
            at: *at,
            kvs: rows
                .into_iter()
                .map(|row| row.kv)
                .collect::<Vec<KeyValue>>(),
        });
    }
    Ok(found)
}

/// Asks for the rows of keys.
pub(super) fn ask_rows(scripts: &mut Scripts, p: &str, keys: &[Bytes]) {
    for keys in keys.chunks(TOGETHER) {
        let script = scripts.next(&text::select_rows(p, true));
        list_keys(script.say("`key` IN ("), keys);
    }
}

/// Reads the answers to [`ask_rows`].
pub(super) fn take_rows(sets: &mut Sets, keys: &[Bytes]) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::with_capacity(keys.len());
    for _ in keys.chunks(TOGETHER) {
        read_into(&mut rows, sets, row_of)?;
    }
    Ok(rows)
}

/// Asks for the rows of a range as they stood at `at`. With whiteouts a key that has a row now and
/// had none then is one, too: what is claimed stays claimed.
///
/// These are several lists, each in key order as far as there is a limit, which [`take_past`] puts
/// together: the server would copy all of them, with the values, into a table on its disk first.
pub(super) fn ask_past(
    scripts: &mut Scripts,
    p: &str,
    parts: &[KeyRange],
    at: Revision,
    limit: Option<usize>,
    values: bool,
    whiteouts: bool,
) {
    // The rows that have not changed since.
    let script = scripts.next(&text::select_unchanged(p, values));
    text::in_parts(script, "", parts);
    script.say(" AND mod_revision <= ").int(at.0);
    if !whiteouts {
        script.say(" AND live = 1");
    }
    if limit.is_some() {
        script.say(" ORDER BY `key`");
        text::limit(script, limit);
    }
    let script = text::superseded(scripts, p, parts, at, values, whiteouts);
    if limit.is_some() {
        script.say(" ORDER BY l.`key`");
        text::limit(script, limit);
    }
    if whiteouts {
        // Those among them that are in the list before are left out there.
        let script = scripts.next(&format!(
            "SELECT `key`, NULL, 0, mod_revision, 0, 0, 0, 1 \
             FROM {p}kv FORCE INDEX (PRIMARY) WHERE "
        ));
        text::in_parts(script, "", parts);
        script.say(" AND mod_revision > ").int(at.0);
        if limit.is_some() {
            script.say(" ORDER BY `key`");
            text::limit(script, limit);
        }
    }
}

/// Reads the answers to [`ask_past`]. In key order.
pub(super) fn take_past(
    sets: &mut Sets,
    limit: Option<usize>,
    whiteouts: bool,
) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    read_into(&mut rows, sets, row_of)?;
    read_into(&mut rows, sets, row_of)?;
    let mut rows: BTreeMap<Bytes, Row> = by_key(rows);
    if whiteouts {
        let mut later = Vec::new();
        read_into(&mut later, sets, row_of)?;
        for row in later {
            rows.entry(row.kv.key.clone()).or_insert(row);
        }
    }
    let limit = limit.unwrap_or(usize::MAX);
    Ok(rows.into_values().take(limit).collect())
}

fn by_key(rows: Vec<Row>) -> BTreeMap<Bytes, Row> {
    let keyed = rows.into_iter().map(|row| (row.kv.key.clone(), row));
    keyed.collect()
}

/// Reads the rows of the next statement.
pub(super) fn read_into<T>(
    list: &mut Vec<T>,
    sets: &mut Sets,
    mut read: impl FnMut(&Cells) -> Result<T, Failure>,
) -> Result<(), Failure> {
    for row in sets.next()? {
        list.push(read(&row)?);
    }
    Ok(())
}

/// Ends a list of keys that `IN (` has begun.
pub(super) fn list_keys<'a>(script: &'a mut Script, keys: &[Bytes]) -> &'a mut Script {
    script
        .list(keys, |script, key| {
            script.bytes(key);
        })
        .say(")")
}

/// The condition that a number is one of these.
pub(super) fn in_ids(script: &mut Script, column: &str, ids: &[LeaseId]) {
    script.say(column).say(" IN (");
    script
        .list(ids, |script, id| {
            script.int(id.0);
        })
        .say(")");
}

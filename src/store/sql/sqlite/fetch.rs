//! Reads, of the writer within its transaction and of the readers within their snapshot.

use bytes::Bytes;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Result};

use super::schema::Sql;
use crate::store::sql::backend::{
    CLAIMS_MAX, Found, Head, Lease, LogScan, Past, Place, Placed, Prefetch, Prefetched, Query, Row,
    Rows, Snapshot,
};
use crate::store::sql::rows::{Batches, Columns, Taken, head_of, lease_of, record_of, row_of};
use crate::types::{KeyRange, LeaseId, Revision};

pub(super) fn head(conn: &Connection, sql: &Sql) -> Result<Head> {
    conn.prepare_cached(&sql.texts.head)?
        .query_row([], |row| head_of(row))
}

/// Fetches what a batch needs. The place of a row is its number in the table.
pub(super) fn prefetch(
    conn: &Connection,
    sql: &Sql,
    want: &Prefetch,
    now_ms: i64,
) -> Result<Prefetched> {
    let mut rows = Vec::with_capacity(want.keys.len());
    let mut keep = |row: &rusqlite::Row<'_>| -> Result<()> {
        rows.push(Placed {
            row: row_of(row)?,
            place: Some(Place(row.get(8)?)),
        });
        Ok(())
    };
    if !want.keys.is_empty() {
        let mut statement = conn.prepare_cached(&sql.texts.row)?;
        for key in &want.keys {
            let mut found = statement.query([&key[..]])?;
            if let Some(row) = found.next()? {
                keep(row)?;
            }
        }
    }
    for span in &want.spans {
        let mut statement = conn.prepare_cached(&sql.span(span.end().is_none(), true, true))?;
        let mut found = statement.query((&span.start()[..], span.end().as_deref(), -1))?;
        while let Some(row) = found.next()? {
            keep(row)?;
        }
    }
    for lease in &want.attached {
        let mut statement = conn.prepare_cached(&sql.texts.rows_attached)?;
        let mut found = statement.query([lease.0])?;
        while let Some(row) = found.next()? {
            keep(row)?;
        }
    }
    let mut claimed = Vec::new();
    for span in &want.claims {
        let end = span.end();
        let most = i64::try_from(CLAIMS_MAX).unwrap_or(-1);
        let mut statement = conn.prepare_cached(&sql.span(end.is_none(), true, false))?;
        let keys = statement.query_map((&span.start()[..], end.as_deref(), most), |row| {
            row.bytes(0)
        })?;
        for key in keys {
            claimed.push(key?);
        }
    }
    let mut leases = Vec::new();
    for id in &want.leases {
        leases.extend(lease(conn, sql, *id)?);
    }
    let mut records = Vec::new();
    for name in &want.records {
        let mut statement = conn.prepare_cached(&sql.texts.record)?;
        records.extend(
            statement
                .query_row([name], |row| record_of(row))
                .optional()?,
        );
    }
    let past = want
        .past
        .iter()
        .map(|(keys, at)| {
            let all = Rows {
                parts: vec![keys.clone()],
                whiteouts: false,
                limit: None,
                bytes: None,
                values: usize::MAX,
                count: false,
                known: None,
            };
            let (rows, _) = self::rows(conn, sql, &all, Some(*at), None)?;
            Ok(Past {
                keys: keys.clone(),
                at: *at,
                kvs: rows.into_iter().map(|row| row.kv).collect(),
            })
        })
        .collect::<Result<_>>()?;
    Ok(Prefetched {
        head: head(conn, sql)?,
        now_ms,
        rows,
        claimed,
        past,
        leases,
        records,
    })
}

/// Answers one query of a snapshot, whose head is `head`.
pub(super) fn query(
    conn: &Connection,
    sql: &Sql,
    snapshot: &Snapshot,
    query: &Query,
    head: &Head,
    now_ms: i64,
) -> Result<Found> {
    Ok(match query {
        Query::Rows(want) => {
            // At the present revision the past is the present, unless replayed changes lie behind it.
            let at = snapshot.at;
            let at = at.filter(|at| *at < head.revision || !head.serves());
            let known = want.known.and_then(|known| known.holds(snapshot.at, head));
            let (rows, count) = rows(conn, sql, want, at, known)?;
            Found::Rows { rows, count }
        }
        Query::Prefetch(want) => Found::Prefetched(prefetch(conn, sql, want, now_ms)?),
        Query::Lease { id, keys } => Found::Lease(match lease(conn, sql, *id)? {
            None => None,
            Some(lease) if *keys => {
                let mut statement = conn.prepare_cached(&sql.texts.keys_attached)?;
                let keys = statement.query_map([id.0], |row| row.bytes(0))?;
                Some((lease, keys.collect::<Result<_>>()?))
            }
            Some(lease) => Some((lease, Vec::new())),
        }),
        Query::Leases => {
            let mut statement = conn.prepare_cached(&sql.texts.leases)?;
            let ids = statement.query_map([], |row| row.get(0).map(LeaseId))?;
            Found::Leases(ids.collect::<Result<_>>()?)
        }
        Query::Due(most) => {
            let mut statement = conn.prepare_cached(&sql.texts.leases_due)?;
            let leases = statement.query_map([most], |row| lease_of(row))?;
            Found::Due(leases.collect::<Result<_>>()?)
        }
        Query::Records(prefix) => {
            let mut statement = conn.prepare_cached(&sql.texts.records)?;
            let records = statement.query_map([prefix], |row| record_of(row))?;
            Found::Records(records.collect::<Result<_>>()?)
        }
        Query::Log(scan) => log(conn, sql, scan, head)?,
        Query::Any => Found::Any(
            conn.prepare_cached(&sql.any)?
                .query_row([], |row| row.get(0))?,
        ),
        Query::Sizes => {
            let pragma = |name| {
                conn.pragma_query_value(None, name, |row| {
                    let number: i64 = row.get(0)?;
                    Ok(number.cast_unsigned())
                })
            };
            let page = pragma("page_size")?;
            let pages = pragma("page_count")?;
            let free = pragma("freelist_count")?;
            Found::Sizes(pages * page, pages.saturating_sub(free) * page)
        }
    })
}

/// Rows as they are, or as they were at a revision of the past, and the count of live ones.
fn rows(
    conn: &Connection,
    sql: &Sql,
    want: &Rows,
    at: Option<Revision>,
    known: Option<usize>,
) -> Result<(Vec<Row>, usize)> {
    let mut taken = Taken::new(want);
    for part in &want.parts {
        let mut rest = Some(part.clone());
        while let Some(part) = rest.take().filter(|_| !taken.is_full()) {
            let with_values = taken.values > 0;
            match &part {
                KeyRange::One(key) if at.is_none() => {
                    let mut statement = conn.prepare_cached(&sql.texts.row)?;
                    let mut found = statement.query([&key[..]])?;
                    if let Some(row) = found.next()?.map(row_of).transpose()?
                        && (row.live || want.whiteouts)
                    {
                        taken.take(row, with_values);
                    }
                }
                _ => span(conn, sql, &part, want.whiteouts, at, &mut taken)?,
            }
            // The first rows have come with their values; on without.
            if with_values && taken.values == 0 {
                rest = taken.rows.last().and_then(|row| part.after(&row.kv.key));
            }
        }
    }
    let count = if !want.count {
        0
    } else if !taken.is_full() {
        taken.rows.iter().filter(|row| row.live).count()
    } else if let Some(known) = known {
        known
    } else {
        count(conn, sql, &want.parts, at)?
    };
    Ok((taken.rows, count))
}

/// Takes the rows of a span until there are enough, or until enough have come with their values.
fn span(
    conn: &Connection,
    sql: &Sql,
    part: &KeyRange,
    whiteouts: bool,
    at: Option<Revision>,
    taken: &mut Taken,
) -> Result<()> {
    let end = part.end();
    let limit = i64::try_from(taken.left).unwrap_or(-1);
    let with_values = taken.values > 0;
    let text = match at {
        None => sql.span(end.is_none(), whiteouts, with_values),
        Some(_) => sql.span_at(end.is_none(), whiteouts, with_values),
    };
    let mut statement = conn.prepare_cached(&text)?;
    let start = &part.start()[..];
    let mut found = match at {
        None => statement.query((start, end.as_deref(), limit))?,
        Some(at) => statement.query((start, end.as_deref(), limit, at.0))?,
    };
    while let Some(row) = found.next()? {
        taken.take(row_of(row)?, with_values);
        if taken.is_full() || with_values && taken.values == 0 {
            break;
        }
    }
    Ok(())
}

fn count(conn: &Connection, sql: &Sql, parts: &[KeyRange], at: Option<Revision>) -> Result<usize> {
    let mut sum = 0;
    for part in parts {
        let end = part.end();
        let start = &part.start()[..];
        let of_row = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
        let count = match at {
            None => conn
                .prepare_cached(&sql.count(end.is_none()))?
                .query_row((start, end.as_deref()), of_row)?,
            Some(at) => conn
                .prepare_cached(&sql.count_at(end.is_none()))?
                .query_row((start, end.as_deref(), at.0), of_row)?,
        };
        sum += usize::try_from(count).unwrap_or_default();
    }
    Ok(sum)
}

/// Changes in whole revisions, until the bytes are used up.
fn log(conn: &Connection, sql: &Sql, scan: &LogScan, head: &Head) -> Result<Found> {
    let mut batches = Batches::new(scan, head);
    let (Some(first), Some(last)) = (scan.parts.first(), scan.parts.last()) else {
        return Ok(batches.finish());
    };
    let end = last.end();
    let mut statement = conn.prepare_cached(&sql.changes(end.is_none(), scan.prev_kv))?;
    let (from, to) = (scan.from.0, batches.to().0);
    let mut rows = statement.query((&first.start()[..], end.as_deref(), from, to))?;
    while let Some(row) = rows.next()? {
        if !batches.take(row)? {
            break;
        }
    }
    Ok(batches.finish())
}

fn lease(conn: &Connection, sql: &Sql, id: LeaseId) -> Result<Option<Lease>> {
    conn.prepare_cached(&sql.texts.lease)?
        .query_row([id.0], |row| lease_of(row))
        .optional()
}

impl Columns for rusqlite::Row<'_> {
    type Error = rusqlite::Error;

    fn int(&self, column: usize) -> Result<i64> {
        self.get(column)
    }

    fn maybe_int(&self, column: usize) -> Result<Option<i64>> {
        self.get(column)
    }

    fn bytes(&self, column: usize) -> Result<Bytes> {
        Ok(match self.get_ref(column)? {
            ValueRef::Null => Bytes::new(),
            value => Bytes::copy_from_slice(value.as_bytes()?),
        })
    }

    fn text(&self, column: usize) -> Result<String> {
        self.get(column)
    }
}

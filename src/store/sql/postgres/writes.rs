//! The changes of a batch as statements: one for each kind of change, however many there are, but for
//! those whose keys and values are too long for one.

use super::conn::{Param, Step};
use super::listen::payload;
use super::place::Tid;
use super::text::{Sql, split};
use crate::store::sql::backend::{Changes, Head, LogEntry, LogKind, Over, Removed, Row, Written};
use crate::store::sql::tables::{self, log_kind};
use crate::types::KeyValue;

/// Keys and values in one statement, unless a single pair is longer. The driver sends no array and no
/// message that is longer than a gigabyte or two, and holds all of it in memory.
const STEP_BYTES_MAX: usize = 64 << 20;

/// Everything but the head row.
pub(super) fn writes<'a>(sql: &Sql, changes: &'a Changes) -> Vec<Step<'a>> {
    let mut steps = Vec::new();
    let (mut new, mut there) = (Vec::new(), Vec::new());
    let mut placed = Vec::new();
    for Written { row, over } in &changes.rows {
        match over {
            Over::Nothing => new.push(row),
            Over::Row { place: None, .. } => there.push(row),
            Over::Row {
                place: Some(place), ..
            } => placed.push((row, Tid(*place))),
        }
    }
    let bytes_of = |row: &Row| pair_bytes(&row.kv);
    for new in pieces(&new, STEP_BYTES_MAX, |row| bytes_of(row)) {
        steps.push(Step::with(&sql.insert_rows, rows(&new.iter().copied())));
    }
    for there in pieces(&there, STEP_BYTES_MAX, |row| bytes_of(row)) {
        steps.push(Step::with(&sql.update_rows, rows(&there.iter().copied())));
    }
    for placed in pieces(&placed, STEP_BYTES_MAX, |(row, _)| bytes_of(row)) {
        let mut params = rows(&placed.iter().map(|(row, _)| *row));
        params.push(list(placed.iter().map(|(_, at)| *at)));
        steps.push(Step::with(&sql.update_placed, params));
    }
    remove(sql, &changes.removed, &mut steps);
    log(sql, &changes.log, &mut steps);
    if changes.renew_leases {
        let at_ms = vec![Box::new(changes.head.at_ms) as Param];
        steps.push(Step::with(&sql.texts.renew_leases, at_ms));
    }
    if !changes.leases.is_empty() {
        let leases = &changes.leases;
        let params: Vec<Param> = vec![
            list(leases.iter().map(|lease| lease.id.0)),
            list(leases.iter().map(|lease| lease.ttl_s)),
            list(leases.iter().map(|lease| lease.deadline_ms)),
        ];
        steps.push(Step::with(&sql.put_leases, params));
    }
    if !changes.dropped_leases.is_empty() {
        let ids = changes.dropped_leases.iter().map(|id| id.0);
        steps.push(Step::with(&sql.delete_leases, vec![list(ids)]));
    }
    if !changes.records.is_empty() {
        let records = &changes.records;
        let params: Vec<Param> = vec![
            list(records.iter().map(|record| &record.name)),
            list(records.iter().map(|record| &record.value[..])),
            list(records.iter().map(|record| record.version)),
        ];
        steps.push(Step::with(&sql.put_records, params));
    }
    if !changes.dropped_records.is_empty() {
        let names = vec![Box::new(&changes.dropped_records) as Param];
        steps.push(Step::with(&sql.delete_records, names));
    }
    steps
}

/// The head row, and the number of the batch of the proxy `id`; tells those who listen to the channel
/// `notify`, if there is one.
pub(super) fn set_head<'a>(
    sql: &Sql,
    head: &Head,
    id: &'a str,
    batch: i64,
    notify: Option<&'a str>,
) -> Step<'a> {
    let mut params: Vec<Param> = vec![
        Box::new(head.revision.0),
        Box::new(head.compacted.0),
        Box::new(head.swept.0),
        Box::new(head.origin.0),
        Box::new(head.unnumbered),
        Box::new(head.at_ms),
        Box::new(i16::from(head.fenced)),
        Box::new(head.line.map(|line| line.epoch.0.cast_signed())),
        Box::new(i16::from(head.line.is_some_and(|line| line.claims))),
        Box::new(head.line.map_or(0, |line| line.base.0)),
        Box::new(id),
        Box::new(batch),
    ];
    match notify {
        Some(channel) => {
            params.push(Box::new(channel));
            params.push(Box::new(payload(id, head.revision)));
            Step::with(&sql.set_head_and_notify, params)
        }
        None => Step::with(&sql.set_head, params),
    }
}

/// Cuts a list into pieces of at most `max` bytes, or of one element.
fn pieces<T>(list: &[T], max: usize, bytes_of: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    let mut rest = list;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |one: &&T| {
            bytes += bytes_of(one);
            bytes <= max
        };
        let fitting = rest.iter().take_while(fits).count();
        let (piece, behind) = rest.split_at(fitting.max(1).min(rest.len()));
        rest = behind;
        (!piece.is_empty()).then_some(piece)
    })
}

fn pair_bytes(kv: &KeyValue) -> usize {
    kv.key.len() + kv.value.len()
}

fn rows<'a>(rows: &(impl Iterator<Item = &'a Row> + Clone)) -> Vec<Param<'a>> {
    let rows = || rows.clone();
    let kvs = || rows().map(|row| &row.kv);
    vec![
        list(kvs().map(|kv| split(&kv.key).0)),
        list(kvs().map(|kv| split(&kv.key).1)),
        list(rows().map(|row| row.live.then_some(&row.kv.value[..]))),
        list(kvs().map(|kv| kv.create_revision.0)),
        list(kvs().map(|kv| kv.mod_revision.0)),
        list(kvs().map(|kv| kv.version)),
        list(kvs().map(|kv| kv.lease.0)),
        list(rows().map(|row| i16::from(row.live))),
        list(rows().map(|row| tables::logged(row.logged))),
    ]
}

fn remove<'a>(sql: &Sql, removed: &'a [Removed], steps: &mut Vec<Step<'a>>) {
    let is_placed = |removed: &&Removed| removed.place.is_some();
    let (placed, there): (Vec<_>, Vec<_>) = removed.iter().partition(is_placed);
    let keys = |removed: &[&'a Removed]| -> Vec<Param<'a>> {
        let keys = || removed.iter().map(|removed| split(&removed.key));
        vec![list(keys().map(|key| key.0)), list(keys().map(|key| key.1))]
    };
    let bytes_of = |removed: &&Removed| removed.key.len();
    for there in pieces(&there, STEP_BYTES_MAX, bytes_of) {
        steps.push(Step::with(&sql.delete_rows, keys(there)));
    }
    for placed in pieces(&placed, STEP_BYTES_MAX, bytes_of) {
        let mut params = keys(placed);
        let tids = placed.iter().filter_map(|removed| removed.place.map(Tid));
        params.push(list(tids));
        steps.push(Step::with(&sql.delete_placed, params));
    }
}

fn log<'a>(sql: &Sql, log: &'a [LogEntry], steps: &mut Vec<Step<'a>>) {
    let copies = log.iter().filter(|entry| entry.kind == LogKind::Copy);
    let copies: Vec<&KeyValue> = copies.map(|entry| &entry.kv).collect();
    for copies in pieces(&copies, STEP_BYTES_MAX, |kv| kv.key.len()) {
        let copies = || copies.iter();
        // They may be there from before a migration.
        let params: Vec<Param> = vec![
            list(copies().map(|kv| kv.mod_revision.0)),
            list(copies().map(|kv| split(&kv.key).0)),
            list(copies().map(|kv| split(&kv.key).1)),
        ];
        steps.push(Step::with(&sql.delete_log, params));
    }
    let mut numbers = 0i32..;
    for log in pieces(log, STEP_BYTES_MAX, |entry| pair_bytes(&entry.kv)) {
        let numbers = numbers.by_ref().take(log.len()).collect();
        steps.push(Step::with(&sql.insert_log, entries(log, numbers)));
    }
}

/// Entries of the log, with the number of each in the batch.
fn entries(log: &[LogEntry], numbers: Vec<i32>) -> Vec<Param<'_>> {
    let kvs = || log.iter().map(|entry| &entry.kv);
    vec![
        list(kvs().map(|kv| kv.mod_revision.0)),
        Box::new(numbers),
        list(kvs().map(|kv| split(&kv.key).0)),
        list(kvs().map(|kv| split(&kv.key).1)),
        list(log.iter().map(|entry| log_kind::of(entry.kind))),
        list(log.iter().map(|entry| {
            let value = &entry.kv.value[..];
            (entry.kind != LogKind::Delete).then_some(value)
        })),
        list(kvs().map(|kv| kv.create_revision.0)),
        list(kvs().map(|kv| kv.version)),
        list(kvs().map(|kv| kv.lease.0)),
        list(log.iter().map(|entry| entry.prev_revision.0)),
    ]
}

/// An array.
fn list<'a, T>(values: impl Iterator<Item = T>) -> Param<'a>
where
    Vec<T>: tokio_postgres::types::ToSql + Sync + Send + 'a,
{
    Box::new(values.collect::<Vec<T>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_cut_into_pieces_that_are_not_too_long_and_nothing_is_left_out() {
        for (lengths, expected) in [
            (&[][..], &[][..]),
            (&[3], &[&[3][..]]),
            (&[5, 5], &[&[5, 5]]),
            (&[5, 6, 4, 1], &[&[5], &[6, 4], &[1]]),
            (&[11, 1, 25, 0, 10], &[&[11], &[1], &[25], &[0, 10]]),
        ] {
            let found: Vec<&[usize]> = pieces(lengths, 10, |length| *length).collect();
            assert_eq!(found, expected);
        }
    }
}

//! The connection that writes.

use rusqlite::{Connection, Error, Result, params};

use super::fetch;
use super::schema::Sql;
use crate::store::sql::backend::{
    Changes, Head, LogEntry, LogKind, Over, Place, Prefetch, Prefetched, Row, Written,
};
use crate::store::sql::tables::{self, DROP_WHITEOUTS, SWEEP_ENTRIES, log_kind};
use crate::store::{Result as StoreResult, StoreError};
use crate::types::Revision;

use super::error::{commit_failed, not_done};

/// The connection that writes.
pub(super) struct Writer {
    conn: Connection,
}

impl Writer {
    pub(super) fn new(conn: Connection) -> Self {
        Self { conn }
    }

    /// The connection, for what is no transaction.
    pub(super) fn conn(&self) -> &Connection {
        &self.conn
    }

    /// See [`crate::store::sql::backend::Backend::transact`].
    pub(super) fn transact(
        &mut self,
        sql: &Sql,
        want: &Prefetch,
        now_ms: i64,
        decide: &mut (dyn FnMut(Prefetched) -> Changes + Send),
    ) -> StoreResult<()> {
        in_transaction(&self.conn, |conn| {
            let found = fetch::prefetch(conn, sql, want, now_ms).map_err(not_done)?;
            let before = found.head;
            let changes = decide(found);
            if changes.is_empty(&before) {
                return Ok(false);
            }
            write(conn, sql, &changes, &before).map_err(not_done)?;
            Ok(true)
        })
    }

    /// See [`crate::store::sql::backend::Backend::sweep`].
    pub(super) fn sweep(&mut self, sql: &Sql, until: Revision) -> StoreResult<Head> {
        let mut after = None;
        in_transaction(&self.conn, |conn| {
            let step = || -> Result<Head> {
                let head = fetch::head(conn, sql)?;
                let (swept, end) = (head.swept, head.sweep_end(until));
                let mut far = conn.prepare_cached(&sql.texts.sweep_until)?;
                let mut far = far.query([swept.0, end.0, SWEEP_ENTRIES])?;
                let until = match far.next()? {
                    Some(row) => Revision(row.get(0)?),
                    None => end,
                };
                conn.prepare_cached(&sql.sweep_superseded)?
                    .execute([swept.0, until.0])?;
                // Deletes at `until` itself stay until the next sweep, which begins with them.
                conn.prepare_cached(&sql.sweep_deletes)?
                    .execute([swept.0, until.0])?;
                conn.prepare_cached(&sql.texts.set_swept)?
                    .execute([until.0])?;
                Ok(Head {
                    swept: until,
                    ..head
                })
            };
            after = Some(step().map_err(not_done)?);
            Ok(true)
        })?;
        after.ok_or_else(|| StoreError::Broken("a sweep was not carried out".into()))
    }

    /// See [`crate::store::sql::backend::Backend::drop_whiteouts`].
    pub(super) fn drop_whiteouts(&mut self, sql: &Sql) -> StoreResult<bool> {
        let mut more = false;
        in_transaction(&self.conn, |conn| {
            if fetch::head(conn, sql).map_err(not_done)?.line.is_some() {
                return Err(StoreError::StaleEpoch);
            }
            let dropped = conn
                .prepare_cached(&sql.drop_whiteouts)
                .and_then(|mut statement| statement.execute([DROP_WHITEOUTS]))
                .map_err(not_done)?;
            more = dropped > 0;
            Ok(true)
        })?;
        Ok(more)
    }

    /// See [`crate::store::sql::backend::Backend::defragment`].
    pub(super) fn defragment(&mut self) -> StoreResult<()> {
        self.conn
            .execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE);")
            .map_err(not_done)
    }
}

/// Runs `work` in a transaction that has the write lock from the beginning, and commits if it says
/// so.
fn in_transaction(
    conn: &Connection,
    work: impl FnOnce(&Connection) -> StoreResult<bool>,
) -> StoreResult<()> {
    let run = |text: &str| -> Result<()> {
        conn.prepare_cached(text)?.execute([])?;
        Ok(())
    };
    run("BEGIN IMMEDIATE").map_err(not_done)?;
    let done = match work(conn) {
        Ok(true) => run("COMMIT").map_err(commit_failed),
        Ok(false) => run("ROLLBACK").map_err(not_done),
        Err(err) => Err(err),
    };
    // Some failures end the transaction by themselves.
    if done.is_err() && !conn.is_autocommit() {
        run("ROLLBACK").map_err(not_done)?;
    }
    done
}

fn write(conn: &Connection, sql: &Sql, changes: &Changes, before: &Head) -> Result<()> {
    write_rows(conn, sql, &changes.rows)?;
    let mut delete = conn.prepare_cached(&sql.delete_row)?;
    for removed in &changes.removed {
        one(delete.execute([known(removed.place)?])?)?;
    }
    write_log(conn, sql, &changes.log)?;
    if changes.renew_leases {
        conn.prepare_cached(&sql.texts.renew_leases)?
            .execute([changes.head.at_ms])?;
    }
    for lease in &changes.leases {
        conn.prepare_cached(&sql.put_lease)?.execute([
            lease.id.0,
            lease.ttl_s,
            lease.deadline_ms,
        ])?;
    }
    for id in &changes.dropped_leases {
        conn.prepare_cached(&sql.texts.delete_lease)?
            .execute([id.0])?;
    }
    for record in &changes.records {
        conn.prepare_cached(&sql.put_record)?.execute(params![
            record.name,
            &record.value[..],
            record.version
        ])?;
    }
    for name in &changes.dropped_records {
        conn.prepare_cached(&sql.texts.delete_record)?
            .execute([name])?;
    }
    if changes.head != *before {
        set_head(conn, sql, &changes.head)?;
    }
    Ok(())
}

/// Where a row is that is to be changed.
fn known(place: Option<Place>) -> Result<i64> {
    // All rows that are fetched have a place.
    place.map(|place| place.0).ok_or(Error::QueryReturnedNoRows)
}

/// Nobody else writes, so a row is where it was.
fn one(changed: usize) -> Result<()> {
    match changed {
        1 => Ok(()),
        rows => Err(Error::StatementChangedRows(rows)),
    }
}

fn write_rows(conn: &Connection, sql: &Sql, rows: &[Written]) -> Result<()> {
    let mut insert = conn.prepare_cached(&sql.insert_row)?;
    let mut update = conn.prepare_cached(&sql.update_row)?;
    for Written { row, over } in rows {
        let Row { kv, live, logged } = row;
        let value = live.then_some(&kv.value[..]);
        one(match over {
            Over::Row { place, .. } => update.execute(params![
                known(*place)?,
                value,
                kv.create_revision.0,
                kv.mod_revision.0,
                kv.version,
                kv.lease.0,
                live,
                tables::logged(*logged)
            ])?,
            Over::Nothing => insert.execute(params![
                &kv.key[..],
                value,
                kv.create_revision.0,
                kv.mod_revision.0,
                kv.version,
                kv.lease.0,
                live,
                tables::logged(*logged)
            ])?,
        })?;
    }
    Ok(())
}

fn write_log(conn: &Connection, sql: &Sql, log: &[LogEntry]) -> Result<()> {
    let mut insert = conn.prepare_cached(&sql.insert_log)?;
    let mut delete = conn.prepare_cached(&sql.delete_log)?;
    for LogEntry {
        kind,
        kv,
        prev_revision,
    } in log
    {
        if *kind == LogKind::Copy {
            // It may be there from before a migration.
            delete.execute(params![kv.mod_revision.0, &kv.key[..]])?;
        }
        let value = (*kind != LogKind::Delete).then_some(&kv.value[..]);
        insert.execute(params![
            kv.mod_revision.0,
            &kv.key[..],
            log_kind::of(*kind),
            value,
            kv.create_revision.0,
            kv.version,
            kv.lease.0,
            prev_revision.0
        ])?;
    }
    Ok(())
}

fn set_head(conn: &Connection, sql: &Sql, head: &Head) -> Result<()> {
    conn.prepare_cached(&sql.texts.set_head)?.execute(params![
        head.revision.0,
        head.compacted.0,
        head.swept.0,
        head.origin.0,
        head.unnumbered,
        head.at_ms,
        head.fenced,
        head.line.map(|line| line.epoch.0.cast_signed()),
        head.line.is_some_and(|line| line.claims),
        head.line.map_or(0, |line| line.base.0),
    ])?;
    Ok(())
}

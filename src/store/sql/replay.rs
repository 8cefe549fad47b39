//! Changes of another store, as rows and log entries. Pure.
//!
//! Their numbers lie behind the store's revision, which stays: no change of its own is made. The entries are
//! there for those who read the store's own past meanwhile, where each key is in the state before them, and
//! watch it: nothing behind its revision is told. When the store gets a line, its origin moves behind them.

use super::backend::{Changes, LogEntry, LogKind, Logged, Row};
use super::decide::whiteout;
use super::table::Table;
use crate::store::{Replay, Replayed};
use crate::types::{KeyValue, Revision};

/// Adds what is to be written for `replay`.
pub(super) fn keep(replay: &Replay, table: &Table, changes: &mut Changes) {
    for change in &replay.changes {
        let before = table.row(change.key());
        match change {
            Replayed::Put(kv) => {
                let same = before.filter(|row| row.kv.mod_revision == kv.mod_revision);
                let logged = match same {
                    Some(row) if row.live && row.kv == *kv => continue,
                    Some(row) => with_another_lease(row, kv, changes),
                    None => {
                        log(LogKind::Copy, kv.clone(), before, changes);
                        Logged::Yes
                    }
                };
                changes.rows.push(table.write(Row {
                    kv: kv.clone(),
                    live: true,
                    logged,
                }));
            }
            Replayed::Delete { key, revision } => {
                let Some(row) = before.filter(|row| row.live) else {
                    continue;
                };
                // What is not behind the row's own change was never told of, and nobody reads it.
                if row.kv.mod_revision < *revision {
                    log(LogKind::Delete, whiteout(key, *revision), before, changes);
                }
                changes.removed.extend(table.remove(key));
            }
        }
    }
    changes.head.unnumbered += 1;
}

/// What the log has of the state of `row` once it is there as `kv`, with its lease or without.
fn with_another_lease(row: &Row, kv: &KeyValue, changes: &mut Changes) -> Logged {
    match row.logged {
        // It was replayed without its lease.
        Logged::Yes if kv.lease.is_some() => Logged::No,
        Logged::Yes => Logged::Leased,
        Logged::No | Logged::Own if row.kv.mod_revision <= changes.head.origin => {
            changes.log.push(copied(row));
            Logged::Leased
        }
        // It gets back the lease that the entry knows; or nobody was served meanwhile who would have to
        // know of the one that it loses.
        Logged::Leased | Logged::No | Logged::Own => Logged::Yes,
    }
}

/// The state of a row as an entry of the log.
fn copied(row: &Row) -> LogEntry {
    LogEntry {
        kind: LogKind::Copy,
        kv: row.kv.clone(),
        prev_revision: Revision(0),
    }
}

/// Logs a change, and the state before it if that has no entry.
fn log(kind: LogKind, kv: KeyValue, before: Option<&Row>, changes: &mut Changes) {
    let origin = changes.head.origin;
    let unlogged =
        |row: &&Row| row.live && row.logged.is_nothing() && row.kv.mod_revision <= origin;
    changes.log.extend(before.filter(unlogged).map(copied));
    changes.log.push(LogEntry {
        kind,
        kv,
        prev_revision: before.map_or(Revision(0), |row| row.kv.mod_revision),
    });
}

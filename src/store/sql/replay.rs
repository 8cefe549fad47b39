//! Changes of another store, as rows and log entries. Pure.
//!
//! Their numbers lie behind the store's revision, which stays: no change of its own is made. The entries are
//! there for those who read the store's own past meanwhile, where each key is in the state before them, and
//! watch it: nothing behind its revision is told. When the store gets a line, its origin moves behind them.

use super::backend::{Changes, LogEntry, LogKind, Row};
use super::decide::whiteout;
use super::table::Table;
use crate::store::{Replay, Replayed};
use crate::types::Revision;

/// Adds what is to be written for `replay`.
pub(super) fn keep(replay: &Replay, table: &Table, changes: &mut Changes) {
    for change in &replay.changes {
        let before = table.row(change.key());
        match change {
            Replayed::Put(kv) => {
                if before.is_some_and(|row| row.live && row.kv == *kv) {
                    continue;
                }
                let same = before.is_some_and(|row| row.kv.mod_revision == kv.mod_revision);
                if !same {
                    log(LogKind::Copy, kv.clone(), before, changes);
                }
                changes.rows.push(Row {
                    kv: kv.clone(),
                    live: true,
                    // The same state with another lease: it has an entry, which tells of the lease that
                    // it had. The first change replaces it.
                    logged: !same,
                });
            }
            Replayed::Delete { key, revision } => {
                let Some(row) = before.filter(|row| row.live) else {
                    continue;
                };
                let revision = (*revision).max(row.kv.mod_revision.next());
                log(LogKind::Delete, whiteout(key, revision), before, changes);
                changes.removed.push(key.clone());
            }
        }
    }
    changes.head.copy_ups += 1;
}

/// Logs a change, and the state before it if that has no entry.
fn log(kind: LogKind, kv: crate::types::KeyValue, before: Option<&Row>, changes: &mut Changes) {
    let copied = |row: &&Row| row.live && !row.logged && row.kv.mod_revision <= changes.head.origin;
    if let Some(row) = before.filter(copied) {
        changes.log.push(LogEntry {
            kind: LogKind::Copy,
            kv: row.kv.clone(),
            prev_revision: Revision(0),
        });
    }
    changes.log.push(LogEntry {
        kind,
        kv,
        prev_revision: before.map_or(Revision(0), |row| row.kv.mod_revision),
    });
}

//! SQLite, through rusqlite.

use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::Connection;

use super::{ROWS_PER_INSERT, Row, Session, Sessions};

const WRITE_ROW: &str = "INSERT INTO kv VALUES (?1, ?3, ?3, 1, 0, 1, 1, ?2) ON CONFLICT (key) \
    DO UPDATE SET mod_revision = excluded.mod_revision, version = kv.version + 1, \
    live = 1, logged = 1, value = excluded.value";
const WRITE_LOG: &str = "INSERT INTO log VALUES (NULL, ?3, ?1, 1, ?3, 1, 0, 0, ?2)";
const LOAD: &str = "INSERT INTO kv VALUES (?1, ?3, ?3, 1, 0, 1, 0, ?2)";
const READ: &str =
    "SELECT value, create_revision, mod_revision, version, lease FROM kv WHERE key = ?1";
const RANGE: &str = "SELECT key, value, create_revision, mod_revision, version, lease FROM kv \
    WHERE key >= ?1 AND key < ?2 ORDER BY key";

fn open(path: &str) -> Connection {
    let connection = Connection::open(path).expect("a file");
    connection
        .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")
        .expect("as durable as a store");
    connection
}

pub(super) fn prepare(path: &str) {
    open(path)
        .execute_batch(
            "CREATE TABLE kv (
               key BLOB NOT NULL PRIMARY KEY, create_revision INTEGER NOT NULL,
               mod_revision INTEGER NOT NULL, version INTEGER NOT NULL, lease INTEGER NOT NULL,
               live INTEGER NOT NULL, logged INTEGER NOT NULL, value BLOB);
             CREATE INDEX kv_lease ON kv (lease) WHERE lease <> 0;
             CREATE INDEX kv_whiteout ON kv (key) WHERE live = 0;
             CREATE TABLE log (
               id INTEGER PRIMARY KEY, revision INTEGER NOT NULL, key BLOB NOT NULL,
               kind INTEGER NOT NULL, create_revision INTEGER NOT NULL, version INTEGER NOT NULL,
               lease INTEGER NOT NULL, prev_revision INTEGER NOT NULL, value BLOB);
             CREATE UNIQUE INDEX log_revision ON log (revision, key);",
        )
        .expect("tables");
}

pub(super) fn bulk_load(path: &str, keys: &[Bytes]) -> f64 {
    let mut connection = open(path);
    let start = Instant::now();
    for first in (0..keys.len()).step_by(ROWS_PER_INSERT) {
        let transaction = connection.transaction().expect("a transaction");
        {
            let mut insert = transaction.prepare_cached(LOAD).expect("a statement");
            for number in first..keys.len().min(first + ROWS_PER_INSERT) {
                let row = Row::loaded(keys, number);
                insert
                    .execute((&row.key[..], &row.value[..], row.revision))
                    .expect("a row goes in");
            }
        }
        transaction.commit().expect("a commit");
    }
    start.elapsed().as_secs_f64()
}

/// Each with a connection of its own. They hold up the thread that they are used on.
pub(super) fn sessions(path: &str, count: usize) -> Sessions {
    (0..count)
        .map(|_| Box::new(Sqlite(open(path))) as Box<dyn Session>)
        .collect()
}

struct Sqlite(Connection);

#[async_trait]
impl Session for Sqlite {
    async fn write(&mut self, rows: &[Row]) {
        let transaction = self.0.transaction().expect("a transaction");
        {
            let mut log = transaction.prepare_cached(WRITE_LOG).expect("a statement");
            let mut row = transaction.prepare_cached(WRITE_ROW).expect("a statement");
            for Row {
                key,
                value,
                revision,
            } in rows
            {
                log.execute((&key[..], &value[..], revision))
                    .expect("a row goes in");
                row.execute((&key[..], &value[..], revision))
                    .expect("a row goes in");
            }
        }
        transaction.commit().expect("a commit");
    }

    async fn read(&mut self, key: &Bytes) -> usize {
        let mut read = self.0.prepare_cached(READ).expect("a statement");
        let value: Vec<u8> = read
            .query_row([&key[..]], |row| row.get(0))
            .expect("the row is there");
        value.len()
    }

    async fn range(&mut self, from: &Bytes, end: &Bytes) -> usize {
        let mut range = self.0.prepare_cached(RANGE).expect("a statement");
        let pairs: rusqlite::Result<Vec<(Vec<u8>, Vec<u8>)>> = range
            .query_map([&from[..], &end[..]], |row| Ok((row.get(0)?, row.get(1)?)))
            .expect("rows")
            .collect();
        pairs.expect("rows").len()
    }
}

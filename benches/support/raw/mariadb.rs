//! MariaDB, through `mysql_async`, which waits for each answer: a commit goes as one text of several
//! statements, since each prepared one would take a round trip of its own.

use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Opts, OptsBuilder, Params, Row as Answer, Statement, Value};

use super::{ROWS_PER_INSERT, Row, Session, Sessions};

const READ: &str =
    "SELECT value, create_revision, mod_revision, version, lease FROM kv WHERE `key` = ?";
const RANGE: &str = "SELECT `key`, value, create_revision, mod_revision, version, lease FROM kv \
    WHERE `key` >= ? AND `key` < ? ORDER BY `key`";
const LOAD: &str = "INSERT INTO kv VALUES ";

async fn connect(url: &str) -> Conn {
    let opts = Opts::from_url(url).expect("a URL");
    // The same way as a store on another machine, and as large a text as the server takes.
    let opts = OptsBuilder::from_opts(opts).prefer_socket(false);
    Conn::new(opts).await.expect("MariaDB answers")
}

pub(super) async fn prepare(url: &str) {
    connect(url)
        .await
        .query_drop(
            "CREATE TABLE kv (
               `key` VARBINARY(1000) NOT NULL PRIMARY KEY, create_revision BIGINT NOT NULL,
               mod_revision BIGINT NOT NULL, version BIGINT NOT NULL, lease BIGINT NOT NULL,
               live TINYINT NOT NULL, logged TINYINT NOT NULL, value LONGBLOB
             ) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;
             CREATE TABLE log (
               revision BIGINT NOT NULL, `key` VARBINARY(1000) NOT NULL, kind TINYINT NOT NULL,
               create_revision BIGINT NOT NULL, version BIGINT NOT NULL, lease BIGINT NOT NULL,
               prev_revision BIGINT NOT NULL, value LONGBLOB,
               PRIMARY KEY (revision, `key`)) ENGINE = InnoDB ROW_FORMAT = DYNAMIC",
        )
        .await
        .expect("tables");
}

/// `row` so many times, with commas between.
fn repeated(row: &str, count: usize) -> String {
    vec![row; count].join(", ")
}

pub(super) async fn bulk_load(url: &str, keys: &[Bytes]) -> f64 {
    let mut conn = connect(url).await;
    let start = Instant::now();
    for first in (0..keys.len()).step_by(ROWS_PER_INSERT) {
        let last = keys.len().min(first + ROWS_PER_INSERT);
        // Prepared once for each number of rows.
        let text = format!(
            "{LOAD}{}",
            repeated("(?, ?, ?, 1, 0, 1, 0, ?)", last - first)
        );
        let mut values = Vec::new();
        for number in first..last {
            let row = Row::loaded(keys, number);
            values.extend([
                Value::Bytes(row.key.to_vec()),
                Value::Int(row.revision),
                Value::Int(row.revision),
                Value::Bytes(row.value.to_vec()),
            ]);
        }
        conn.exec_drop(text, Params::Positional(values))
            .await
            .expect("rows go in");
    }
    let seconds = start.elapsed().as_secs_f64();
    conn.disconnect().await.expect("a connection can be ended");
    seconds
}

/// Each with a connection of its own.
pub(super) async fn sessions(url: &str, count: usize) -> Sessions {
    let mut sessions: Sessions = Vec::new();
    for _ in 0..count {
        let mut conn = connect(url).await;
        let read = conn.prep(READ).await.expect("a statement");
        let range = conn.prep(RANGE).await.expect("a statement");
        sessions.push(Box::new(MariaDb { conn, read, range }));
    }
    sessions
}

struct MariaDb {
    conn: Conn,
    read: Statement,
    range: Statement,
}

/// `X'hex'`.
fn hex(text: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    text.extend_from_slice(b"X'");
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)]);
        text.push(DIGITS[usize::from(byte & 15)]);
    }
    text.push(b'\'');
}

#[async_trait]
impl Session for MariaDb {
    async fn write(&mut self, rows: &[Row]) {
        let mut text = Vec::with_capacity(rows.len() * 1400 + 400);
        text.extend_from_slice(b"BEGIN; INSERT INTO log VALUES ");
        for (index, row) in rows.iter().enumerate() {
            text.extend_from_slice(if index == 0 { b"(" } else { b",(" });
            text.extend_from_slice(row.revision.to_string().as_bytes());
            text.push(b',');
            hex(&mut text, &row.key);
            text.extend_from_slice(b",1,1,1,0,0,");
            hex(&mut text, &row.value);
            text.push(b')');
        }
        text.extend_from_slice(b"; INSERT INTO kv VALUES ");
        for (index, row) in rows.iter().enumerate() {
            text.extend_from_slice(if index == 0 { b"(" } else { b",(" });
            hex(&mut text, &row.key);
            let revision = row.revision;
            text.extend_from_slice(format!(",{revision},{revision},1,0,1,1,").as_bytes());
            hex(&mut text, &row.value);
            text.push(b')');
        }
        text.extend_from_slice(
            b" ON DUPLICATE KEY UPDATE mod_revision = VALUES(mod_revision), \
              version = version + 1, live = 1, logged = 1, value = VALUES(value); COMMIT",
        );
        self.conn.query_drop(text).await.expect("rows go in");
    }

    async fn read(&mut self, key: &Bytes) -> usize {
        let row: Option<Answer> = self
            .conn
            .exec_first(&self.read, (&key[..],))
            .await
            .expect("an answer");
        let value: Vec<u8> = row.expect("the row is there").take(0).expect("a value");
        value.len()
    }

    async fn range(&mut self, from: &Bytes, end: &Bytes) -> usize {
        let rows: Vec<Answer> = self
            .conn
            .exec(&self.range, (&from[..], &end[..]))
            .await
            .expect("an answer");
        rows.len()
    }
}

//! PostgreSQL, through tokio-postgres, which sends what is asked of one connection without waiting
//! for the answers before.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::pin_mut;
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, NoTls, Statement};

use super::{ROWS_PER_INSERT, Row, Session, Sessions};

/// Both tables in one statement, which is a commit of its own: one round trip.
const WRITE: &str = "WITH logged AS ( \
      INSERT INTO log (revision, key, kind, create_revision, version, lease, prev_revision, value) \
      SELECT revision, key, 1, revision, 1, 0, 0, value FROM (SELECT unnest($1::bytea[]), \
      unnest($2::bytea[]), unnest($3::bigint[])) AS r (key, value, revision)) \
    INSERT INTO kv (key, create_revision, mod_revision, version, lease, live, logged, value) \
    SELECT key, revision, revision, 1, 0, 1, 1, value FROM (SELECT unnest($1::bytea[]), \
    unnest($2::bytea[]), unnest($3::bigint[])) AS r (key, value, revision) \
    ON CONFLICT (key) DO UPDATE SET mod_revision = excluded.mod_revision, \
      version = kv.version + 1, live = 1, logged = 1, value = excluded.value";
const LOAD: &str = "INSERT INTO kv (key, create_revision, mod_revision, version, lease, live, \
      logged, value) \
    SELECT key, revision, revision, 1, 0, 1, 0, value FROM (SELECT unnest($1::bytea[]), \
    unnest($2::bytea[]), unnest($3::bigint[])) AS r (key, value, revision)";
const READ: &str =
    "SELECT value, create_revision, mod_revision, version, lease FROM kv WHERE key = $1";
const RANGE: &str = "SELECT key, value, create_revision, mod_revision, version, lease FROM kv \
    WHERE key >= $1 AND key < $2 ORDER BY key";

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .expect("PostgreSQL answers");
    // Ends with the client.
    tokio::task::spawn(connection);
    client
}

pub(super) async fn prepare(url: &str) {
    connect(url)
        .await
        .batch_execute(
            "CREATE TABLE kv (
               key BYTEA NOT NULL PRIMARY KEY, create_revision BIGINT NOT NULL,
               mod_revision BIGINT NOT NULL, version BIGINT NOT NULL, lease BIGINT NOT NULL,
               live SMALLINT NOT NULL, logged SMALLINT NOT NULL, value BYTEA)
               WITH (fillfactor = 85);
             CREATE INDEX kv_lease ON kv (lease) WHERE lease <> 0;
             CREATE INDEX kv_whiteout ON kv (key) WHERE live = 0;
             CREATE TABLE log (
               revision BIGINT NOT NULL, key BYTEA NOT NULL, kind SMALLINT NOT NULL,
               create_revision BIGINT NOT NULL, version BIGINT NOT NULL, lease BIGINT NOT NULL,
               prev_revision BIGINT NOT NULL, value BYTEA);
             CREATE INDEX log_revision ON log (revision, key);",
        )
        .await
        .expect("tables");
}

/// Rows as columns, as `unnest` takes them.
fn columns(rows: &[Row]) -> (Vec<&[u8]>, Vec<&[u8]>, Vec<i64>) {
    (
        rows.iter().map(|row| &row.key[..]).collect(),
        rows.iter().map(|row| &row.value[..]).collect(),
        rows.iter().map(|row| row.revision).collect(),
    )
}

pub(super) async fn insert(url: &str, keys: &[Bytes]) -> f64 {
    let client = connect(url).await;
    let load = client.prepare(LOAD).await.expect("a statement");
    let start = Instant::now();
    for first in (0..keys.len()).step_by(ROWS_PER_INSERT) {
        let rows: Vec<Row> = (first..keys.len().min(first + ROWS_PER_INSERT))
            .map(|number| Row::loaded(keys, number))
            .collect();
        let (keys, values, revisions) = columns(&rows);
        client
            .execute(&load, &[&keys, &values, &revisions])
            .await
            .expect("rows go in");
    }
    start.elapsed().as_secs_f64()
}

pub(super) async fn copy(url: &str, keys: &[Bytes]) -> f64 {
    let client = connect(url).await;
    let start = Instant::now();
    let sink = client
        .copy_in("COPY kv FROM STDIN BINARY")
        .await
        .expect("a copy begins");
    let (big, small) = (Type::INT8, Type::INT2);
    let types = [
        Type::BYTEA,
        big.clone(),
        big.clone(),
        big.clone(),
        big,
        small.clone(),
        small,
        Type::BYTEA,
    ];
    let writer = BinaryCopyInWriter::new(sink, &types);
    pin_mut!(writer);
    for number in 0..keys.len() {
        let row = Row::loaded(keys, number);
        writer
            .as_mut()
            .write(&[
                &&row.key[..],
                &row.revision,
                &row.revision,
                &1_i64,
                &0_i64,
                &1_i16,
                &0_i16,
                &&row.value[..],
            ])
            .await
            .expect("a row goes in");
    }
    writer.finish().await.expect("a commit");
    start.elapsed().as_secs_f64()
}

/// So many sessions on each of so many connections.
pub(super) async fn sessions(url: &str, connections: usize, each: usize) -> Sessions {
    let mut sessions: Sessions = Vec::new();
    for _ in 0..connections {
        let client = connect(url).await;
        let shared = Arc::new(Connected {
            write: client.prepare(WRITE).await.expect("a statement"),
            read: client.prepare(READ).await.expect("a statement"),
            range: client.prepare(RANGE).await.expect("a statement"),
            client,
        });
        for _ in 0..each {
            sessions.push(Box::new(Postgres(shared.clone())));
        }
    }
    sessions
}

/// A connection, and what is prepared on it.
struct Connected {
    client: Client,
    write: Statement,
    read: Statement,
    range: Statement,
}

struct Postgres(Arc<Connected>);

#[async_trait]
impl Session for Postgres {
    async fn write(&mut self, rows: &[Row]) {
        let (keys, values, revisions) = columns(rows);
        let written = self
            .0
            .client
            .execute(&self.0.write, &[&keys, &values, &revisions])
            .await
            .expect("rows go in");
        assert_eq!(written, rows.len() as u64);
    }

    async fn read(&mut self, key: &Bytes) -> usize {
        let row = self.0.client.query_one(&self.0.read, &[&&key[..]]).await;
        let row = row.expect("the row is there");
        row.get::<_, &[u8]>(0).len()
    }

    async fn range(&mut self, from: &Bytes, end: &Bytes) -> usize {
        let rows = self
            .0
            .client
            .query(&self.0.range, &[&&from[..], &&end[..]])
            .await;
        rows.expect("rows").len()
    }
}

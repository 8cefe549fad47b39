//! What a database can do with the rows that a store keeps, driven as fast as its driver goes: the
//! ceiling for a store on that database.
//!
//! The tables are like a store's: the latest state of each key, and a log of changes. A write puts a
//! row into each of them; what a store looks up before it writes is left out.

mod mariadb;
mod postgres;
mod sqlite;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use rand::seq::index;
use tokio::sync::Mutex;

use super::client::{self, next_random};
use super::database::{Database, Kind};
use super::load::{self, KEYS_PER_RANGE, Sample};

/// Rows per statement of a bulk load: more bring little.
const ROWS_PER_INSERT: usize = 1000;
/// Revisions, for all raw writes: they have to differ within a table.
static REVISION: AtomicI64 = AtomicI64::new(1_000_000);

/// A key's new state.
pub struct Row {
    /// The key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    /// The revision of the change.
    pub revision: i64,
}

impl Row {
    /// The row of key `number` of some keys.
    fn loaded(keys: &[Bytes], number: usize) -> Self {
        Self {
            key: keys[number].clone(),
            value: client::value(number),
            revision: i64::try_from(number).expect("a small number") + 1,
        }
    }
}

/// One thing after the other on a database.
#[async_trait]
pub trait Session: Send {
    /// Writes rows of different keys in one durable commit, each to both tables.
    async fn write(&mut self, rows: &[Row]);
    /// Reads a row, and tells the length of its value.
    async fn read(&mut self, key: &Bytes) -> usize;
    /// Reads the rows from one key up to another, and tells how many they are.
    async fn range(&mut self, from: &Bytes, end: &Bytes) -> usize;
}

/// Sessions, all of which may work at the same time.
pub type Sessions = Vec<Box<dyn Session>>;

/// How everything is brought in at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bulk {
    /// Statements of many rows each, a commit each.
    Insert,
    /// PostgreSQL's own way.
    Copy,
}

impl fmt::Display for Bulk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Insert => "raw bulk insert",
            Self::Copy => "raw COPY",
        })
    }
}

/// The ways that a database has.
pub fn bulks(kind: Kind) -> &'static [Bulk] {
    match kind {
        Kind::Sqlite | Kind::MariaDb => &[Bulk::Insert],
        Kind::Postgres => &[Bulk::Insert, Bulk::Copy],
    }
}

/// Makes the tables.
pub async fn prepare(database: &Database) {
    match database.kind() {
        Kind::Sqlite => sqlite::prepare(database.url()),
        Kind::Postgres => postgres::prepare(database.url()).await,
        Kind::MariaDb => mariadb::prepare(database.url()).await,
    }
}

/// Brings the latest states of `keys` in, durably, and tells how many seconds that took.
pub async fn bulk_load(database: &Database, keys: &[Bytes], bulk: Bulk) -> f64 {
    match (database.kind(), bulk) {
        (Kind::Sqlite, _) => sqlite::bulk_load(database.url(), keys),
        (Kind::Postgres, Bulk::Insert) => postgres::insert(database.url(), keys).await,
        (Kind::Postgres, Bulk::Copy) => postgres::copy(database.url(), keys).await,
        (Kind::MariaDb, _) => mariadb::bulk_load(database.url(), keys).await,
    }
}

/// Sessions that commit at the same time.
pub async fn writers(database: &Database, count: usize) -> Sessions {
    match database.kind() {
        Kind::Sqlite => sqlite::sessions(database.url(), 1),
        Kind::Postgres => postgres::sessions(database.url(), count, 1).await,
        Kind::MariaDb => mariadb::sessions(database.url(), count).await,
    }
}

/// Sessions that keep so many reads in flight on at most so many connections. Where a driver does
/// not pipeline, there are no more reads in flight than connections.
pub async fn readers(database: &Database, in_flight: usize, connections: usize) -> Sessions {
    let connections = connections.min(in_flight);
    match database.kind() {
        Kind::Sqlite => sqlite::sessions(database.url(), connections),
        Kind::Postgres => {
            let each = in_flight.div_ceil(connections);
            postgres::sessions(database.url(), connections, each).await
        }
        Kind::MariaDb => mariadb::sessions(database.url(), connections).await,
    }
}

/// Numbers of connections that are worth reading on with so many reads in flight: as many as reads
/// do best with, and one where that is a pipeline.
pub fn read_connections(kind: Kind, in_flight: usize) -> Vec<usize> {
    match kind {
        _ if in_flight == 1 => vec![1],
        Kind::Sqlite => vec![2],
        Kind::Postgres => vec![1, 4],
        Kind::MariaDb => vec![8],
    }
}

/// What sessions do.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// Commits of so many rows.
    Write(usize),
    /// Reads of single rows.
    Read,
    /// Reads of [`KEYS_PER_RANGE`] rows.
    Range,
}

/// Sessions with something to do, again and again.
pub struct Raw {
    sessions: Mutex<Sessions>,
    work: Work,
    keys: Arc<Vec<Bytes>>,
}

impl Raw {
    /// On keys that are there.
    pub fn new(sessions: Sessions, work: Work, keys: &Arc<Vec<Bytes>>) -> Self {
        Self {
            sessions: Mutex::new(sessions),
            work,
            keys: keys.clone(),
        }
    }

    /// Keeps all sessions busy for `duration`. The latency of a write is that of its commit, the
    /// number of operations that of rows.
    pub async fn run(&self, duration: Duration) -> Sample {
        let mut sessions = self.sessions.lock().await;
        let start = Instant::now();
        let end = start + duration;
        let tasks: Vec<_> = sessions
            .drain(..)
            .map(|session| {
                let (work, keys) = (self.work, self.keys.clone());
                tokio::task::spawn(one_session(session, work, keys, end))
            })
            .collect();
        let mut latencies = load::histogram();
        for task in tasks {
            let (session, took) = task.await.expect("a session goes on");
            latencies.add(took).expect("the same bounds");
            sessions.push(session);
        }
        let seconds = start.elapsed().as_secs_f64();
        let rows = match self.work {
            Work::Write(rows) => rows as u64,
            Work::Read | Work::Range => 1,
        };
        load::sample(&latencies, latencies.len() * rows, seconds)
    }
}

async fn one_session(
    mut session: Box<dyn Session>,
    work: Work,
    keys: Arc<Vec<Bytes>>,
    end: Instant,
) -> (Box<dyn Session>, load::Latencies) {
    let mut latencies = load::histogram();
    let mut state = rand::random();
    let count = keys.len();
    let random = |state: &mut u64, count: usize| {
        usize::try_from(next_random(state) % count as u64).expect("an index")
    };
    let value = client::value(random(&mut state, count));
    loop {
        let chosen = random(&mut state, count);
        let sent = match work {
            Work::Write(size) => {
                let first = REVISION.fetch_add(size as i64, Ordering::Relaxed);
                // As clients choose theirs: neighbours share pages, and would be cheaper.
                let rows: Vec<Row> = index::sample(&mut rand::rng(), count, size)
                    .iter()
                    .zip(first..)
                    .map(|(number, revision)| Row {
                        key: keys[number].clone(),
                        value: value.clone(),
                        revision,
                    })
                    .collect();
                let sent = Instant::now();
                session.write(&rows).await;
                sent
            }
            Work::Read => {
                let sent = Instant::now();
                assert_eq!(session.read(&keys[chosen]).await, client::VALUE_BYTES);
                sent
            }
            Work::Range => {
                let from = random(&mut state, count - KEYS_PER_RANGE);
                let sent = Instant::now();
                let found = session.range(&keys[from], &keys[from + KEYS_PER_RANGE]);
                assert_eq!(found.await, KEYS_PER_RANGE);
                sent
            }
        };
        let now = Instant::now();
        load::record(&mut latencies, now - sent);
        if now >= end {
            return (session, latencies);
        }
    }
}

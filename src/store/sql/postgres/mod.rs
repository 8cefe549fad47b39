//! PostgreSQL as the database under the engine.
//!
//! In reading order: `text` has the statements, `schema` makes the tables and checks the server,
//! `conn` is one connection, `server` makes them and `pool` lends those that read. `read` reads,
//! `prefetch` fetches what a batch needs, `place` tells where its rows are, `writes` turns its changes
//! into statements, `writer` commits it, and has the next one begin meanwhile if `turns` allows it. `listen`
//! hears of what others commit.
//!
//! # What the user needs
//!
//! | for what | privilege |
//! | --- | --- |
//! | the first start, unless the schema was made for the user | `CREATE` on the database |
//! | the first start, in a schema that was made | `USAGE` and `CREATE` on the schema |
//! | after that | `USAGE` on the schema; `SELECT`, `INSERT`, `UPDATE`, `DELETE` on its tables |
//! | `defragment` | to own the tables; else PostgreSQL leaves them out, and autovacuum sees to them |
//!
//! What is missing is told at the start, as the `GRANT` to run.
//!
//! # What it was tried with
//!
//! PostgreSQL 15. The statements keep to what `CockroachDB` and `YugabyteDB` are documented to take: no
//! correctness hangs on advisory locks (two starters race safely without), on `LISTEN` (the head row
//! is polled as well) or on settings of the planner (each is set by itself and may be unknown). But
//! neither of them was tried, nor were connection poolers: one that gives each transaction another
//! session (`PgBouncer` in transaction mode) breaks prepared statements and session settings.

mod conn;
mod error;
mod listen;
mod place;
mod pool;
mod prefetch;
mod read;
mod schema;
mod server;
mod text;
mod turns;
mod writer;
mod writes;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::Mutex;
use tokio_postgres::Error;
use tracing::debug;

use self::error::not_done;
use self::listen::Listener;
use self::pool::Pool;
use self::read::Reader;
use self::schema::Opening;
use self::server::Server;
use self::text::Sql;
use self::writer::Writer;
use super::backend::{Backend, Changes, Head, Next, Prefetch, Prefetched, Read, Snapshot};
use super::tables::LINGER;
use super::{Options, SqlStore};
use crate::store::Result;
use crate::store::url::Database;
use crate::tasks::spawn_owned;
use crate::types::Revision;

/// Largest key and value together. PostgreSQL takes a gigabyte in a field and in a message; a batch
/// is in one message with a few others.
const PAIR_BYTES_MAX: usize = 256 << 20;

/// The PostgreSQL backend.
pub struct Postgres {
    identity: String,
    server: Arc<Server>,
    sql: Arc<Sql>,
    reader: Reader,
    listener: Listener,
    /// The channel to notify, if the database has such.
    notify: Option<String>,
    /// Used by one task at a time, so never waited for.
    writer: Mutex<Writer>,
}

/// A store in a PostgreSQL database.
pub type PostgresStore = SqlStore<Postgres>;

/// Opens the store in `database`, whose tables are made if they are not there.
///
/// Fails with [`crate::store::StoreError::Unavailable`] if the server cannot be reached, with
/// [`crate::store::RequestError::Credentials`] if it does not let us in, and otherwise with the
/// reason and what to do.
pub async fn open(database: &Database, options: Options) -> Result<Arc<PostgresStore>> {
    let backend = Box::pin(Postgres::open(database, &options)).await?;
    SqlStore::start(backend, options).await.map(Arc::new)
}

impl Postgres {
    async fn open(database: &Database, options: &Options) -> Result<Self> {
        let server = Arc::new(Server::new(database).await?);
        let conn = server.connect().await?;
        let places = place::supported(&conn).await;
        let sql = Arc::new(Sql::new(&database.schema, &database.prefix, places));
        let opening = Opening {
            server: &server,
            database,
            conn: &conn,
        };
        let identity = opening.prepare(options).await?;
        schema::forget_writers(&conn, &sql).await;
        let channel = listen::channel(&identity);
        let notified = conn.run("SELECT pg_notify('segue', '')").await;
        let notify = notified.is_ok().then(|| channel.clone());
        let reader = Reader::new(sql.clone(), Pool::new(server.clone()));
        let writer = Writer::new(conn);
        debug!(id = writer.id(), "writing to PostgreSQL");
        let listener = Listener::start(server.clone(), channel, writer.id().to_owned());
        Ok(Self {
            identity,
            server,
            sql,
            reader,
            listener,
            notify,
            writer: Mutex::new(writer),
        })
    }
}

impl Backend for Postgres {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn unacceptable(&self, key: &[u8], value_len: usize) -> Option<String> {
        let size = key.len() + value_len;
        (size > PAIR_BYTES_MAX).then(|| {
            format!("key and value have {size} bytes; Segue puts {PAIR_BYTES_MAX} into PostgreSQL at most")
        })
    }

    async fn transact(
        &self,
        prefetch: &Arc<Prefetch>,
        decide: &mut (dyn FnMut(Prefetched) -> Changes + Send),
        next: Next<'_>,
    ) -> Result<()> {
        let mut writer = self.writer.lock().await;
        writer
            .transact(
                &self.server,
                &self.sql,
                self.notify.as_deref(),
                prefetch,
                decide,
                next,
            )
            .await
    }

    async fn read(&self, snapshot: Snapshot) -> Result<Read> {
        self.reader.read(snapshot).await
    }

    async fn moved(&self, known: impl Fn() -> Revision + Send + Sync, eager: bool) {
        self.listener.moved(known, eager).await;
    }

    fn run_writer(&self, writer: BoxFuture<'static, ()>) -> Result<()> {
        // Ends with the queue that it takes from.
        spawn_owned(writer);
        Ok(())
    }

    fn linger(&self) -> Duration {
        LINGER
    }

    async fn sweep(&self, until: Revision) -> Result<Head> {
        let mut writer = self.writer.lock().await;
        writer.sweep(&self.server, &self.sql, until).await
    }

    async fn drop_whiteouts(&self) -> Result<bool> {
        let mut writer = self.writer.lock().await;
        writer.drop_whiteouts(&self.server, &self.sql).await
    }

    /// Gives the space of dead rows back to their tables.
    async fn defragment(&self) -> Result<()> {
        let conn = self.server.connect().await?;
        let told = |err: Error| not_done(&err);
        conn.run("SET statement_timeout = 0").await.map_err(told)?;
        for vacuum in &self.sql.vacuum {
            conn.run_for_long(vacuum).await.map_err(told)?;
        }
        Ok(())
    }
}

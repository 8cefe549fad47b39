//! MySQL and MariaDB as the database under the engine.
//!
//! In reading order: `schema` has the tables, `check` what a server and an account have to be like,
//! `session` the connections. `script` puts statements together that go in one round trip, `cells`
//! reads what comes back; `text`, `fetch`, `walk` and `query` are the reads, `write` the writes.
//! `writer` has the connections that write, `reader` those that read, `lookout` the one that notices
//! what other processes write; `durable` sees to it that what was read is on the disk. `error` says what errors mean.
//!
//! # Rights
//!
//! ```sql
//! GRANT SELECT, INSERT, UPDATE, DELETE, CREATE ON `database`.* TO 'user'@'host';
//! ```
//!
//! `CREATE` is for the tables, which are made when the store is opened for the first time, and not
//! needed afterwards. All of them are tried when the store is opened.
//!
//! # What it needs of a server
//!
//! InnoDB with pages of 16 KiB, window functions (MySQL 8.0, MariaDB 10.2), several statements in one
//! request, and one server that all proxies write to. It is made sure that what is committed is on
//! the disk. That it is on another machine, too, is beyond it: with asynchronous replication commits
//! are lost when a replica takes over.
//!
//! It was tried with MariaDB 10.11 alone. What is used is in MySQL 8.0 and in TiDB as well, as far
//! as their manuals tell; on TiDB `START TRANSACTION` has to be pessimistic, which is its default.
//! Nothing relies on `GET_LOCK`, which Vitess has not for all, or on gap locks. With Galera a commit
//! may be refused in favour of another node's: the batch is tried again.

mod cells;
mod check;
mod durable;
mod error;
mod fetch;
mod lookout;
mod query;
mod reader;
mod schema;
mod script;
mod session;
mod text;
mod walk;
mod write;
mod writer;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::Mutex;

use self::durable::Durable;
use self::error::Failure;
use self::lookout::Lookout;
use self::reader::Readers;
use self::schema::{KEY_BYTES_MAX, VERSION};
use self::script::{Script, Scripts};
use self::session::{Purpose, Server, Session};
use self::write::Mark;
use self::writer::Writer;
use super::backend::{Backend, Changes, Head, Next, Prefetch, Prefetched, Read, Snapshot};
use super::tables::{LINGER, missing_complaint, prefix_complaint, version_complaint};
use super::{Options, SqlStore};
use crate::store::url::Database;
use crate::store::{Result, StoreError};
use crate::tasks::spawn_owned;
use crate::types::Revision;

/// How long a server is waited for that cannot be reached when the store is opened.
const OPEN_WITHIN: Duration = Duration::from_secs(10);

/// How long a step of opening may take.
const STEP_WITHIN: Duration = Duration::from_secs(30);

/// After so many days the row of a process that wrote nothing is removed. None looks for its last
/// batch for longer than a minute.
const FORGET_DAYS: i64 = 7;

/// The MySQL and MariaDB backend.
pub struct Mysql {
    identity: String,
    db: Arc<Db>,
    value_bytes_max: usize,
    readers: Readers,
    lookout: Lookout,
    /// Used by one task at a time: never waited for.
    writer: Mutex<Writer>,
}

/// What all connections share.
struct Db {
    server: Server,
    /// What the names of the tables begin with.
    prefix: String,
    /// Length in bytes of a script that is sent before it gets longer.
    packet_full: usize,
    durable: Durable,
}

/// A store in a MySQL or MariaDB database.
pub type MysqlStore = SqlStore<Mysql>;

/// Opens the store in a database, with tables that are created if they do not exist.
///
/// Fails with [`StoreError::Unavailable`] if the server cannot be reached, and with
/// [`StoreError::Broken`] or a [`crate::store::RequestError`] if server, account or tables are not
/// what they have to be, with the reason and what to do.
pub async fn open(database: &Database, options: Options) -> Result<Arc<MysqlStore>> {
    let backend = Mysql::open(database, &options).await?;
    SqlStore::start(backend, options).await.map(Arc::new)
}

/// Longest value that a server takes which takes packets of this length: it is written as two
/// hexadecimal digits per byte, behind other statements, with a key of any length.
fn value_bytes_max(packet_bytes: usize) -> usize {
    let rest = packet_full(packet_bytes) + 2 * KEY_BYTES_MAX + 4096;
    packet_bytes.saturating_sub(rest) / 2
}

/// Length of a script that is sent before it gets longer. The longest statement fits behind it.
fn packet_full(packet_bytes: usize) -> usize {
    (packet_bytes / 8).min(4 << 20)
}

impl Mysql {
    async fn open(database: &Database, options: &Options) -> Result<Self> {
        let mut server = Server::new(database).await?;
        let place = server.place().clone();
        let prefix = database.prefix.clone();
        if let Some(complaint) = prefix_complaint(&prefix) {
            return Err(StoreError::Broken(format!("{place}: {complaint}")));
        }
        let deadline = Instant::now() + OPEN_WITHIN;
        let not_done = |failure: Failure| failure.not_done(&place);
        let mut session = server
            .reach(Purpose::Upkeep, deadline)
            .await
            .map_err(not_done)?;
        let traits = check::traits(&mut session).await.map_err(not_done)?;
        traits.admit(&place, options.allow_lossy)?;
        server.settle(traits.mariadb, traits.galera);
        let mut session = server
            .reach(Purpose::Write, deadline)
            .await
            .map_err(not_done)?;
        let process = rand::random_range(0..=i64::MAX);
        let create = options.create.then_some(&database.name[..]);
        let identity = match prepare(&mut session, &prefix, create, process).await {
            Ok(Ok(identity)) => identity,
            Ok(Err(complaint)) => return Err(StoreError::Broken(format!("{place}: {complaint}"))),
            Err(failure) => {
                return Err(check::told(failure, &mut session, &database.name, &place).await);
            }
        };
        let db = Arc::new(Db {
            server,
            prefix,
            packet_full: packet_full(traits.packet_bytes),
            durable: Durable::new(process),
        });
        Ok(Self {
            identity,
            value_bytes_max: value_bytes_max(traits.packet_bytes),
            readers: Readers::start(&db),
            lookout: Lookout::start(&db),
            writer: Mutex::new(Writer::new(session, process)),
            db,
        })
    }
}

/// Makes the tables if they do not exist and are to be made in this database, makes sure that they can
/// be used, and enters this process there. Answers the store's identity, or what is wrong with it.
async fn prepare(
    session: &mut Session,
    p: &str,
    create: Option<&str>,
    process: i64,
) -> Result<Result<String, String>, Failure> {
    let mut found = schema::find(session, p).await?;
    if found.is_none()
        && let Some(database) = create
    {
        schema::create(session, database, p).await?;
        found = schema::find(session, p).await?;
    }
    let Some(found) = found else {
        return Ok(Err(missing_complaint(p)));
    };
    if let Some(complaint) = version_complaint(found.version, VERSION) {
        return Ok(Err(complaint));
    }
    check::privileges(session, p).await?;
    let mut script = Script::new();
    write::note(&mut script, p, Mark { process, batch: 0 });
    script.next(&format!(
        "DELETE FROM {p}process WHERE seen_ms < {now} - ",
        now = text::NOW_MS
    ));
    script.int(FORGET_DAYS * 24 * 60 * 60 * 1000);
    session.run(&script, STEP_WITHIN).await?;
    Ok(Ok(found.identity))
}

impl Db {
    /// Begins a transaction that writes: locks the head row and reads it, then the clock, which is a
    /// statement of its own, since the clock of a statement is read before it waits.
    /// [`fetch::take_locked`] reads the answers.
    fn locking(&self) -> Scripts {
        let p = &self.prefix;
        let mut scripts = Scripts::new(self.packet_full);
        scripts.next("START TRANSACTION");
        scripts.next(&text::lock_head(p));
        scripts.next(&text::clock());
        scripts
    }
}

impl Backend for Mysql {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn unacceptable(&self, key: &[u8], value_len: usize) -> Option<String> {
        if key.len() > KEY_BYTES_MAX {
            return Some(format!(
                "the key has {} bytes; MySQL and MariaDB take {KEY_BYTES_MAX} at most in an index",
                key.len()
            ));
        }
        (value_len > self.value_bytes_max).then(|| {
            format!(
                "the value has {value_len} bytes; this server takes {} at most: raise its \
                 max_allowed_packet and start the proxy again",
                self.value_bytes_max
            )
        })
    }

    async fn transact(
        &self,
        prefetch: &Arc<Prefetch>,
        decide: &mut (dyn FnMut(Prefetched) -> Changes + Send),
        next: Next<'_>,
    ) -> Result<()> {
        let mut writer = self.writer.lock().await;
        writer.transact(&self.db, prefetch, decide, next).await
    }

    async fn read(&self, snapshot: Snapshot) -> Result<Read> {
        let durable = &self.db.durable;
        loop {
            let began = durable.begin();
            let read = self.readers.read(snapshot.clone()).await?;
            if durable.settle(&self.db, read.head.commit(), began).await? {
                return Ok(read);
            }
        }
    }

    async fn moved(&self, known: impl Fn() -> Revision + Send + Sync, eager: bool) {
        // What this process is committing its writer publishes itself.
        let news = |seen| seen > known() && !self.db.durable.is_pending(seen);
        self.lookout.until(news, eager).await;
    }

    fn run_writer(&self, writer: BoxFuture<'static, ()>) -> Result<()> {
        // The store's tasks wait for it.
        spawn_owned(writer);
        Ok(())
    }

    fn linger(&self) -> Duration {
        LINGER
    }

    async fn sweep(&self, until: Revision) -> Result<Head> {
        self.writer.lock().await.sweep(&self.db, until).await
    }

    async fn drop_whiteouts(&self) -> Result<bool> {
        self.writer.lock().await.drop_whiteouts(&self.db).await
    }

    /// Has the server rebuild the tables that grow. It copies them while they are used, and needs as
    /// much room again meanwhile.
    async fn defragment(&self) -> Result<()> {
        /// Of very large tables.
        const WITHIN: Duration = Duration::from_hours(12);
        let place = self.db.server.place();
        let deadline = Instant::now() + OPEN_WITHIN;
        let done = async {
            let mut session = self.db.server.reach(Purpose::Upkeep, deadline).await?;
            for table in ["kv", "log"] {
                let script = Script::of(&format!("OPTIMIZE TABLE {}{table}", self.db.prefix));
                session.run(&script, WITHIN).await?;
            }
            Ok(())
        };
        done.await
            .map_err(|failure: Failure| failure.not_done(place))
    }
}

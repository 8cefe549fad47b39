//! SQLite as the database under the engine: one file, one process.
//!
//! `schema` has the tables and statements, `fetch` the reads, `writer` the connection that writes on
//! the engine's writer thread, `reader` the threads that read, `checkpoint` the one that keeps the write-ahead
//! log short.

mod checkpoint;
mod clock;
mod error;
mod fetch;
mod reader;
mod schema;
#[cfg(test)]
mod tests;
mod writer;

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use rusqlite::{Connection, OpenFlags};

use self::checkpoint::Checkpoints;
use self::clock::Clock;
use self::error::{Opening, opening};
use self::reader::Readers;
use self::schema::Sql;
use self::writer::Writer;
use super::backend::{Backend, Changes, Head, Next, Prefetch, Prefetched, Read, Snapshot};
use super::tables::prefix_complaint;
use super::{Options, SqlStore};
use crate::store::{Result, StoreError};
use crate::types::Revision;

/// How long a starter waits for the lock of a process that is just ending.
const LOCK_WITHIN: Duration = Duration::from_secs(2);

/// Largest key and value together. SQLite takes rows of up to 10^9 bytes; a kilobyte is more than
/// the other columns need.
const PAIR_BYTES_MAX: usize = 1_000_000_000 - 1024;

/// Connections that read, at most, besides the one that is left for small reads. More do not help: readers
/// of few rows are bound by the processor.
const READERS_MAX: usize = 4;

/// Statements that each connection keeps ready. There are about fifty.
const STATEMENTS: usize = 64;

/// The SQLite backend.
pub struct Sqlite {
    identity: String,
    sql: Arc<Sql>,
    clock: Clock,
    readers: Readers,
    checkpoints: Checkpoints,
    /// Used by one task at a time, and by defragmentation.
    writer: Arc<Mutex<Writer>>,
    /// Locked as long as this process has the store open.
    _lock: File,
}

/// A store in a file.
pub type SqliteStore = SqlStore<Sqlite>;

/// Opens the store in the file `path`, which is created if it does not exist.
///
/// Fails with [`StoreError::Unavailable`] if another process (or another handle in this one) has it
/// open, and with [`StoreError::Broken`] if the file cannot be a store, with the reason and what to
/// do.
pub async fn open(path: impl Into<PathBuf>, options: Options) -> Result<Arc<SqliteStore>> {
    let path = path.into();
    let (prefix, create) = (options.table_prefix.clone(), options.create);
    let opened = tokio::task::spawn_blocking(move || Sqlite::open(&path, &prefix, create)).await;
    let backend = opened.map_err(|err| StoreError::Broken(err.to_string()))??;
    SqlStore::start(backend, options).await.map(Arc::new)
}

impl Sqlite {
    pub(super) fn open(path: &Path, prefix: &str, create: bool) -> Result<Self> {
        let what = Opening::of(path);
        if let Some(complaint) = prefix_complaint(prefix) {
            return Err(what.broken(&complaint));
        }
        if path.is_dir() {
            return Err(what.is_directory());
        }
        let directory = match path.parent() {
            Some(directory) if !directory.as_os_str().is_empty() => directory,
            _ => Path::new("."),
        };
        if !directory.is_dir() {
            return Err(what.no_directory(directory));
        }
        // One file has one lock, by whatever name it is opened.
        let path = &path.canonicalize().unwrap_or_else(|_| path.into());
        let lock = lock(path, &what)?;
        let mut conn = connect(path, &what, WRITER_CACHE_KIB)?;
        let identity = schema::prepare(&mut conn, prefix, create, &what)?;
        let sql = Arc::new(Sql::new(prefix));
        let clock = Clock::start();
        // Nobody could keep a lease alive while the store was closed.
        conn.execute(&sql.texts.renew_leases, [clock.now_ms()])
            .map_err(|err| opening(&what, err))?;
        let count = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let conns = (0..=count.clamp(2, READERS_MAX))
            .map(|_| connect(path, &what, READER_CACHE_KIB))
            .collect::<Result<_>>()?;
        let readers = Readers::start(conns, &sql, clock)
            .map_err(|err| StoreError::Unavailable(format!("cannot start a thread: {err}")))?;
        let checkpoints = connect(path, &what, CHECKPOINT_CACHE_KIB)?;
        let checkpoints = Checkpoints::start(checkpoints, &mut conn, checkpoint::FRAMES)
            .map_err(|err| StoreError::Unavailable(format!("cannot start a thread: {err}")))?;
        Ok(Self {
            identity,
            sql,
            clock,
            readers,
            checkpoints,
            writer: Arc::new(Mutex::new(Writer::new(conn))),
            _lock: lock,
        })
    }

    fn with_writer<T>(&self, work: impl FnOnce(&mut Writer) -> T) -> T {
        work(&mut held(&self.writer))
    }
}

/// A panic in the middle of a transaction ends the engine's writer, and there is no next one.
fn held(writer: &Mutex<Writer>) -> MutexGuard<'_, Writer> {
    writer.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backend for Sqlite {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn unacceptable(&self, key: &[u8], value_len: usize) -> Option<String> {
        let size = key.len() + value_len;
        (size > PAIR_BYTES_MAX).then(|| {
            format!(
                "key and value have {size} bytes; SQLite takes {PAIR_BYTES_MAX} in one row at most"
            )
        })
    }

    async fn transact(
        &self,
        prefetch: &Arc<Prefetch>,
        decide: &mut (dyn FnMut(Prefetched) -> Changes + Send),
        _next: Next<'_>,
    ) -> Result<()> {
        self.with_writer(|writer| {
            // Behind the wait for a defragmentation, or leases would be shorter by it.
            let now_ms = self.clock.now_ms();
            writer.transact(&self.sql, prefetch, now_ms, decide)
        })
    }

    async fn read(&self, snapshot: Snapshot) -> Result<Read> {
        self.readers.read(snapshot).await
    }

    async fn moved(&self, _known: impl Fn() -> Revision + Send + Sync, _eager: bool) {
        // The lock on the file keeps others out.
        std::future::pending::<()>().await;
    }

    fn run_writer(&self, writer: BoxFuture<'static, ()>) -> Result<()> {
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new()
            .name("sqlite writer".into())
            .spawn(move || runtime.block_on(writer))
            .map(drop)
            .map_err(|err| StoreError::Unavailable(format!("cannot start a thread: {err}")))
    }

    fn linger(&self) -> Duration {
        Duration::ZERO
    }

    async fn sweep(&self, until: Revision) -> Result<Head> {
        self.with_writer(|writer| writer.sweep(&self.sql, until))
    }

    async fn drop_whiteouts(&self) -> Result<bool> {
        self.with_writer(|writer| writer.drop_whiteouts(&self.sql))
    }

    async fn defragment(&self) -> Result<()> {
        // Whoever wants to write waits for it, as long as he may: there is one lock for the whole file.
        let writer = Arc::clone(&self.writer);
        let done = tokio::task::spawn_blocking(move || held(&writer).defragment()).await;
        done.map_err(|err| StoreError::Broken(err.to_string()))?
    }

    async fn finish(&self) {
        self.with_writer(|writer| self.checkpoints.finish(writer.conn()));
    }
}

/// Takes the lock that makes this process the only one. It is on a file beside the database: closing
/// any handle on the database file itself would drop SQLite's own locks on it.
fn lock(path: &Path, what: &Opening) -> Result<File> {
    let mut name = OsString::from(path);
    name.push("-lock");
    let name = PathBuf::from(name);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&name)
        .map_err(|err| what.no_lock_file(&name, &err))?;
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(err)) => return Err(what.no_lock_file(&name, &err)),
            Err(TryLockError::WouldBlock) if started.elapsed() < LOCK_WITHIN => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(TryLockError::WouldBlock) => return Err(what.in_use()),
        }
    }
}

/// Page cache of the writer: what a batch changes, and the upper levels of large trees.
const WRITER_CACHE_KIB: i64 = 32 * 1024;

/// Page cache of each reader. Small: a commit by the writer makes SQLite drop it, and the system's
/// own cache is behind it.
const READER_CACHE_KIB: i64 = 8 * 1024;

/// Page cache of the connection that moves pages from the write-ahead log to the database, past any cache.
const CHECKPOINT_CACHE_KIB: i64 = 64;

fn connect(path: &Path, what: &Opening, cache_kib: i64) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || -> rusqlite::Result<Connection> {
        let conn = Connection::open_with_flags(path, flags)?;
        conn.busy_timeout(LOCK_WITHIN)?;
        conn.set_prepared_statement_cache_capacity(STATEMENTS);
        // FULL syncs the write-ahead log at every commit: what was answered is on the disk.
        conn.execute_batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY; \
             PRAGMA cache_size = -{cache_kib};"
        ))?;
        Ok(conn)
    };
    open().map_err(|err| opening(what, err))
}

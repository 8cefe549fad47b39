//! Connections.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Opts};
use tokio::time::{sleep, timeout};

use super::cells::{Cells, Sets};
use super::error::Failure;
use super::schema::KEY_BYTES_MAX;
use super::script::Script;
use crate::store::url::Database;
use crate::store::{Result, StoreUrl, login};
use crate::tasks::spawn_from_drop;

/// How long a server may take to answer a new connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Pauses between attempts to connect, doubled from the first to the last.
const PAUSE_FIRST: Duration = Duration::from_millis(10);
const PAUSE_LAST: Duration = Duration::from_millis(500);

/// Seconds that the server lets a connection be silent in the middle of a transaction. A proxy that
/// is cut off holds the head row for as long.
const SILENT_S: u64 = 10;

/// Seconds that a statement waits for a lock. Nobody holds the head row for longer than a commit
/// takes, unless he was cut off.
const LOCK_WAIT_S: u64 = 5;

/// A read-only server is left at most so often.
const LEAVE_EVERY: Duration = Duration::from_secs(1);

/// What the server sorts by of keys, with their length behind it: by itself it looks at the first
/// 1024 bytes alone.
const SORT_BYTES: usize = KEY_BYTES_MAX + 8;

/// Seconds that a statement that reads may take, for the server.
pub(super) const READ_S: u64 = 60;

/// A server, how to get in there, and what every connection is set to.
pub(super) struct Server {
    opts: Opts,
    place: Place,
    settings: Settings,
    /// When it was found to take no writes, the last time.
    left: Mutex<Option<Instant>>,
}

/// Where a store is, as errors show it.
#[derive(Clone, Debug)]
pub(super) struct Place(String);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Reading snapshots.
    Read,
    /// Transactions that write.
    Write,
    /// What may take long: creating tables, giving space back.
    Upkeep,
}

/// The statements that set a connection.
#[derive(Clone, Debug, Default)]
struct Settings {
    /// The server ends a connection that writes when it is silent, in a transaction or not.
    ends_silent: bool,
    /// For every purpose.
    all: String,
    read: String,
    write: String,
}

impl Server {
    /// Reads certificates, but does not connect yet.
    pub(super) async fn new(database: &Database) -> Result<Self> {
        Ok(Self {
            opts: login::mysql::options(database).await?.into(),
            place: Place(StoreUrl::Mysql(database.clone()).to_string()),
            settings: Settings::default(),
            left: Mutex::default(),
        })
    }

    /// What errors name it.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Has every connection from now on be set as it has to be on this kind of server.
    pub(super) fn settle(&mut self, mariadb: bool, galera: bool) {
        // Nothing is cut off or made into something similar; no statement is refused because it
        // looks dangerous; names may be quoted as the standard has it. The end of a transaction begins
        // no other one, in whose snapshot later reads would be, and ends no connection.
        let mut all = format!(
            "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,ANSI_QUOTES', \
             autocommit = 1, completion_type = 0, sql_safe_updates = 0, sql_select_limit = 18446744073709551615, \
             max_sort_length = {SORT_BYTES}, lock_wait_timeout = 30"
        );
        if galera {
            // Reads see what was committed on other nodes before.
            all.push_str(", wsrep_sync_wait = 1");
        }
        let (statement, silent) = if mariadb {
            (
                format!("max_statement_time = {READ_S}"),
                format!("idle_transaction_timeout = {SILENT_S}"),
            )
        } else {
            (
                format!("max_execution_time = {}", READ_S * 1000),
                // It knows no limit for transactions alone.
                format!("wait_timeout = {SILENT_S}"),
            )
        };
        self.settings = Settings {
            ends_silent: !mariadb,
            all,
            read: format!(", {statement}; SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ"),
            // Each statement behind the lock sees what was committed before the lock was given.
            write: format!(
                ", {silent}, innodb_lock_wait_timeout = {LOCK_WAIT_S}; \
                 SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"
            ),
        };
    }

    /// The server takes no writes: another one may be the primary now, which only new connections find
    /// under the name. Those that there are were made before, and are not used again.
    pub(super) fn leave(&self) {
        let now = Instant::now();
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        // As long as there is no other one, each write says so again.
        if left.is_none_or(|left| now.duration_since(left) > LEAVE_EVERY) {
            *left = Some(now);
        }
    }

    /// Whether a connection is to a server that has been left since.
    pub(super) fn is_left(&self, session: &Session) -> bool {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.is_some_and(|left| session.since <= left)
    }

    /// Whether the server has ended a connection that writes for being silent, or soon will, or was
    /// left.
    pub(super) fn has_ended(&self, session: &Session) -> bool {
        self.is_left(session)
            || self.settings.ends_silent
                && session.used_at.elapsed() > Duration::from_secs(SILENT_S / 2)
    }

    /// Connects once.
    pub(super) async fn connect(&self, purpose: Purpose) -> Result<Session, Failure> {
        let connecting = async {
            let conn = Conn::new(self.opts.clone())
                .await
                .map_err(|err| Failure::of(&err))?;
            let now = Instant::now();
            let mut session = Session {
                conn,
                since: now,
                used_at: now,
                kill: None,
                is_asked: false,
            };
            let Settings {
                all, read, write, ..
            } = &self.settings;
            let is_read = purpose == Purpose::Read;
            let purpose = match purpose {
                Purpose::Read => read,
                Purpose::Write => write,
                Purpose::Upkeep => "",
            };
            if !all.is_empty() {
                let mut script = Script::of(all);
                script.say(purpose);
                session.run(&script, CONNECT_WITHIN).await?;
            }
            session.kill = is_read.then(|| self.opts.clone());
            Ok(session)
        };
        let Ok(connected) = timeout(CONNECT_WITHIN, connecting).await else {
            let why = format!("no answer to a new connection within {CONNECT_WITHIN:?}");
            return Err(Failure::Lost(why));
        };
        connected
    }

    /// Connects, again and again until `deadline` while the server cannot be reached or is full.
    pub(super) async fn reach(
        &self,
        purpose: Purpose,
        deadline: Instant,
    ) -> Result<Session, Failure> {
        let mut pause = PAUSE_FIRST;
        loop {
            match self.connect(purpose).await {
                // Too many connections are there: others end.
                Err(Failure::Lost(_) | Failure::Refused(1040 | 1203 | 1226, _))
                    if Instant::now() + pause < deadline =>
                {
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_LAST);
                }
                done => return done,
            }
        }
    }
}

/// A connection that nobody else uses.
pub(super) struct Session {
    conn: Conn,
    /// When it was there.
    since: Instant,
    /// When it was answered last.
    used_at: Instant,
    /// How another connection is made that ends this one, if that is to be done when nobody waits any more for
    /// what is under way here: a read that nobody wants. How a write ends is the server's matter.
    kill: Option<Opts>,
    /// A script is under way.
    is_asked: bool,
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.is_asked
            && let Some(opts) = self.kill.take()
        {
            spawn_from_drop(login::mysql::kill(opts, self.conn.id()));
        }
    }
}

impl Session {
    /// Since when it has been connected, to one and the same run of the server.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// Sends a script and answers the rows of those statements that have some. The first statement
    /// that is refused is the last one that is run.
    ///
    /// After [`Failure::Lost`], and when the future was dropped, the session must not be used again.
    pub(super) async fn run(&mut self, script: &Script, within: Duration) -> Result<Sets, Failure> {
        self.is_asked = true;
        let Ok(done) = timeout(within, self.exchange(script)).await else {
            return Err(Failure::Lost(format!("no answer within {within:?}")));
        };
        self.is_asked = false;
        self.used_at = Instant::now();
        done.map_err(|err| Failure::of(&err))
    }

    async fn exchange(&mut self, script: &Script) -> mysql_async::Result<Sets> {
        let mut sets = Vec::new();
        let mut result = self.conn.query_iter(script.as_bytes()).await?;
        while !result.is_empty() {
            let has_rows = !result.columns_ref().is_empty();
            let mut rows = Vec::new();
            while let Some(row) = result.next().await? {
                rows.push(Cells::new(row));
            }
            if has_rows {
                sets.push(rows);
            }
        }
        result.drop_result().await?;
        Ok(Sets::new(sets))
    }

    /// Runs scripts one after the other, and answers all of their rows.
    pub(super) async fn run_all(
        &mut self,
        scripts: &[Script],
        within: Duration,
    ) -> Result<Sets, Failure> {
        let mut all = Sets::default();
        for script in scripts {
            all.extend(self.run(script, within).await?);
        }
        Ok(all)
    }

    /// Undoes the transaction that is open. What comes after it is certain: the server has done it,
    /// or the connection is lost, with which it does it.
    pub(super) async fn roll_back(&mut self, within: Duration) -> Result<(), Failure> {
        self.run(&Script::of("ROLLBACK"), within).await.map(drop)
    }
}

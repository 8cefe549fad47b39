//! Where the server is, and how connections to it are made.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};
use tracing::debug;

use super::conn::Conn;
use super::pool::READERS_MAX;
use crate::store::login::postgres::{CONNECT_WITHIN, Login, Refused, told};
use crate::store::url::{Database, Host};
use crate::store::{RequestError, Result, StoreError};

/// How long a request waits for a server that is away: a restart takes about so long.
const RECONNECT_WITHIN: Duration = Duration::from_secs(4);

/// Connections at a time: those that read, the one that writes, the one that listens, and one while space
/// is given back.
const CONNECTIONS: usize = READERS_MAX + 3;

/// Pauses between attempts while the server is away.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// What every session is set to. A statement that takes longer than a minute, and a lock that is
/// not had in ten seconds, fail. A transaction whose proxy has gone away without a word gives its
/// lock back after ten seconds.
const SESSION: &str = "SET statement_timeout = '60s'; SET lock_timeout = '10s'; \
     SET idle_in_transaction_session_timeout = '10s'; SET client_min_messages = 'warning'; \
     SET default_transaction_isolation = 'read committed'";

/// What makes plans good, one by one since engines that only speak the protocol do not know all of
/// it. Statements are prepared once and asked for little: every plan but the one that walks an index
/// is a mistake of the planner, which is made when the tables have just been filled and are not
/// analyzed yet.
const PLANS: [&str; 8] = [
    "SET plan_cache_mode = 'force_generic_plan'",
    "SET enable_seqscan = off",
    "SET enable_bitmapscan = off",
    "SET enable_hashjoin = off",
    "SET enable_mergejoin = off",
    "SET max_parallel_workers_per_gather = 0",
    "SET jit = off",
    // What was answered is on the disk. A session may raise this by itself; what it cannot is checked.
    "SELECT set_config('synchronous_commit', 'on', false) \
     WHERE current_setting('synchronous_commit') IN ('off', 'local')",
];

/// A server, and the account there.
pub(super) struct Server {
    login: Login,
    /// For errors: where, without who.
    name: String,
    away: Mutex<Away>,
}

/// How it went lately.
#[derive(Default)]
struct Away {
    /// The next attempt is not to be made before.
    until: Option<Instant>,
    pause: Duration,
    /// What the last one failed with.
    why: Option<StoreError>,
}

impl Server {
    pub(super) async fn new(database: &Database) -> Result<Self> {
        let name = match &database.host {
            Host::Name(host) => format!("{host}:{}/{}", database.port, database.name),
            Host::Socket(path) => {
                format!("{}:{}/{}", path.display(), database.port, database.name)
            }
        };
        Ok(Self {
            // Whoever is asked for has to be the primary: a standby refuses all that is written.
            login: Login::new(database).await?.that_takes_writes(),
            name,
            away: Mutex::default(),
        })
    }

    /// For errors: where it is.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// A connection that is ready. Waits a while for a server that is away.
    pub(super) async fn connect(&self) -> Result<Conn> {
        let deadline = Instant::now() + RECONNECT_WITHIN;
        loop {
            let (until, why) = {
                let away = self.away();
                (away.until, away.why.clone())
            };
            if let (Some(until), Some(why)) = (until, why) {
                if until > deadline {
                    sleep_until(deadline).await;
                    return Err(why);
                }
                sleep_until(until).await;
            }
            match self.try_connect().await {
                Ok(conn) => {
                    *self.away() = Away::default();
                    return Ok(conn);
                }
                Err(why) if self.failed(&why) && Instant::now() < deadline => {
                    debug!(
                        "no connection, will try again: {}",
                        self.no_connection(&why)
                    );
                }
                Err(why) => return Err(self.no_connection(&why)),
            }
        }
    }

    /// Notes a failure; answers whether it may go away by itself.
    fn failed(&self, why: &Refused) -> bool {
        let mut away = self.away();
        away.pause = (away.pause * 2).clamp(BACKOFF_MIN, BACKOFF_MAX);
        // Those that wait do not all come back at once.
        let pause = away.pause.mul_f64(rand::random_range(0.5..1.0));
        away.until = Some(Instant::now() + pause);
        away.why = Some(self.no_connection(why));
        let Refused::By(err) = why else { return true };
        match err.code() {
            Some(code) => matches!(code.code().get(..2), Some("08" | "53" | "57")),
            None => !["TLS", "password missing"]
                .iter()
                .any(|never| told(err).contains(never)),
        }
    }

    /// A connection, made now or never.
    async fn try_connect(&self) -> std::result::Result<Conn, Refused> {
        let deadline = Instant::now() + CONNECT_WITHIN;
        let (client, carrier) = self.log_in(|_| {}).await?;
        let conn = Conn::new(client, carrier.abort_handle());
        let set = async {
            conn.run(SESSION).await?;
            for setting in PLANS {
                if let Err(err) = conn.run(setting).await {
                    debug!("{setting}: {}", told(&err));
                }
            }
            Ok::<_, Error>(())
        };
        conn.until(deadline, set).await?;
        // A setting that fails may be one that the server does not know.
        if conn.is_closed() || Instant::now() >= deadline {
            return Err(Refused::Silent);
        }
        Ok(conn)
    }

    /// See [`Login::log_in`].
    pub(super) async fn log_in(
        &self,
        hears: impl Fn(&str) + Send + Sync + 'static,
    ) -> std::result::Result<(Client, JoinHandle<()>), Refused> {
        self.login.log_in(hears).await
    }

    /// Has what is under way on a connection be cancelled. See [`Login::cancel`].
    pub(super) async fn cancel(&self, conn: &Conn) -> bool {
        self.login.cancel(conn.cancel_token()).await
    }

    /// Why there is no connection, and what to do.
    fn no_connection(&self, why: &Refused) -> StoreError {
        match why {
            Refused::By(err) => self.refused(err),
            Refused::Silent => {
                StoreError::Unavailable(format!("PostgreSQL at {}: {why}", self.name))
            }
        }
    }

    /// The same, where it is known why.
    pub(super) fn refused(&self, err: &Error) -> StoreError {
        let text = format!("PostgreSQL at {}: {}", self.name, told(err));
        if text.contains("does not allow writes") {
            return StoreError::Unavailable(format!(
                "{text}; this server is a standby or set to read only: Segue needs the primary"
            ));
        }
        if text.contains("password missing") {
            return RequestError::Credentials(format!("{text}: the server wants one")).into();
        }
        let Some(code) = err.code() else {
            return StoreError::Unavailable(format!(
                "{text}; check that the server runs there and, with TLS, that its certificate is for \
                 this name"
            ));
        };
        match *code {
            SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
                RequestError::Credentials(text).into()
            }
            SqlState::INVALID_CATALOG_NAME => {
                StoreError::Broken(format!("{text}; create the database, or name another one"))
            }
            SqlState::TOO_MANY_CONNECTIONS => StoreError::Unavailable(format!(
                "{text}; Segue needs {CONNECTIONS} connections per proxy: raise max_connections, or the \
                 limit of the role or database"
            )),
            _ if matches!(code.code().get(..2), Some("08" | "53" | "57")) => {
                StoreError::Unavailable(text)
            }
            _ => StoreError::Broken(text),
        }
    }

    /// Nothing panics under this lock, so a poisoned one is good.
    fn away(&self) -> std::sync::MutexGuard<'_, Away> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

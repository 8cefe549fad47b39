//! The tables of [`crate::store::sql::tables`] in PostgreSQL: how they are made, and what has to be
//! right before they are used.

use tokio_postgres::Error;
use tokio_postgres::error::SqlState;
use tracing::{debug, info, warn};

use super::conn::{Conn, Step};
use super::server::Server;
use super::text::{Sql, TABLES};
use crate::store::login::postgres::told;
use crate::store::sql::Options;
use crate::store::sql::rows::Columns as _;
use crate::store::sql::tables::{missing_complaint, new_identity, version_complaint};
use crate::store::url::Database;
use crate::store::{RequestError, Result, StoreError};

/// The version of the tables that this program writes. A change of them needs a new one, and steps
/// that lead there from each earlier one.
pub(super) const VERSION: i64 = 1;

/// How often the tables are tried to be made, when somebody else makes them at the same time.
const TRIES: usize = 10;

/// What is being opened, for errors that an operator reads.
pub(super) struct Opening<'a> {
    pub(super) server: &'a Server,
    pub(super) database: &'a Database,
    pub(super) conn: &'a Conn,
}

impl Opening<'_> {
    /// Makes the tables if they are not there, and checks that they can be used. Answers the store's
    /// identity.
    pub(super) async fn prepare(&self, options: &Options) -> Result<String> {
        self.check_durability(options.allow_lossy).await?;
        let mut last = None;
        for _ in 0..TRIES {
            match self.identity().await {
                Ok((version, identity)) => {
                    if let Some(complaint) = version_complaint(version, VERSION) {
                        return Err(self.broken(&complaint));
                    }
                    self.check_privileges().await?;
                    return Ok(identity);
                }
                Err(err) if is_missing(&err) && options.create => {}
                Err(err) if is_missing(&err) => {
                    return Err(self.broken(&missing_complaint(&self.database.prefix)));
                }
                Err(err) => return Err(self.failed(&err)),
            }
            match self.create().await {
                Ok(()) => {}
                // Somebody else was faster with a part of it.
                Err(err) if is_race(&err) => last = Some(err),
                Err(err) => return Err(self.failed(&err)),
            }
        }
        let why = last.map_or_else(String::new, |err| format!(": {}", told(&err)));
        Err(self.broken(&format!("the tables cannot be made{why}")))
    }

    fn names(&self) -> String {
        format!("\"{}\".{}", self.database.schema, self.database.prefix)
    }

    async fn identity(&self) -> std::result::Result<(i64, String), Error> {
        let text = format!("SELECT schema_version, identity FROM {}head", self.names());
        let rows = self.conn.query(Step::of(text)).await?;
        match rows.first() {
            Some(row) => Ok((row.int(0)?, row.text(1)?)),
            None => Ok((0, String::new())),
        }
    }

    /// Makes what is missing, in one transaction. Two starters wait for each other where there are
    /// advisory locks; where there are none the one that fails tries again.
    async fn create(&self) -> std::result::Result<(), Error> {
        const LOCK: &str = "hashtext('segue: making tables')";
        let Database { schema, prefix, .. } = self.database;
        let locked = self
            .conn
            .run(&format!("SELECT pg_advisory_lock({LOCK})"))
            .await;
        if let Err(err) = &locked {
            debug!("no advisory lock: {}", told(err));
        }
        let there = format!("SELECT 1 FROM pg_namespace WHERE nspname = '{schema}'");
        let made = async {
            // Asking for an existing schema takes the right to make one.
            if self.conn.query(Step::of(there)).await?.is_empty() {
                let make = format!("CREATE SCHEMA IF NOT EXISTS \"{schema}\"");
                self.conn.run(&make).await?;
            }
            self.conn.run(&tables(&self.names(), prefix)).await
        };
        let made = made.await;
        if made.is_err() {
            self.conn.run("ROLLBACK").await?;
        }
        if locked.is_ok() {
            self.conn
                .run(&format!("SELECT pg_advisory_unlock({LOCK})"))
                .await?;
        }
        if made.is_ok() {
            info!(schema, prefix, "the tables were made in PostgreSQL");
        }
        made
    }

    /// Refuses a server that loses what it has acknowledged, or warns of it.
    async fn check_durability(&self, allow_lossy: bool) -> Result<()> {
        let text = "SELECT name, setting FROM pg_settings WHERE name IN ('fsync', \
                    'full_page_writes', 'synchronous_commit', 'synchronous_standby_names', \
                    'transaction_read_only')";
        let rows = self.conn.query(Step::of(text)).await;
        let rows = rows.map_err(|err| self.failed(&err))?;
        let settings: Vec<(String, String)> = rows
            .iter()
            .map(|row| Ok((row.text(0)?, row.text(1)?)))
            .collect::<std::result::Result<_, Error>>()
            .map_err(|err| self.failed(&err))?;
        let is = |name: &str, values: &[&str]| {
            let mut settings = settings.iter();
            settings.any(|(found, value)| found == name && values.contains(&value.as_str()))
        };
        if is("transaction_read_only", &["on"]) {
            return Err(StoreError::Unavailable(format!(
                "PostgreSQL at {}: it takes no writes; it is a standby, or set to \
                 default_transaction_read_only: Segue needs the primary",
                self.server.name()
            )));
        }
        let standbys = !is("synchronous_standby_names", &[""]);
        let mut lossy = Vec::new();
        if is("fsync", &["off"]) {
            lossy.push("fsync=off: a crash of the machine can destroy the database");
        }
        if is("full_page_writes", &["off"]) {
            lossy.push("full_page_writes=off: a crash of the machine can destroy pages");
        }
        if is("synchronous_commit", &["off"]) {
            lossy.push("synchronous_commit=off: a crash loses commits that were acknowledged");
        }
        if standbys && is("synchronous_commit", &["local"]) {
            lossy.push("synchronous_commit=local: a failover loses commits that were acknowledged");
        }
        if lossy.is_empty() {
            return Ok(());
        }
        let found = lossy.join("; ");
        if allow_lossy {
            warn!(
                "PostgreSQL at {} may lose data: {found}",
                self.server.name()
            );
            return Ok(());
        }
        Err(RequestError::Unacceptable(format!(
            "PostgreSQL at {} may lose what it has acknowledged: {found}. Set it to `on`, or start with \
             --allow-lossy if the data may be lost",
            self.server.name()
        ))
        .into())
    }

    /// Says which privilege is missing, if one is.
    async fn check_privileges(&self) -> Result<()> {
        let mut missing = Vec::new();
        for privilege in ["SELECT", "INSERT", "UPDATE", "DELETE"] {
            for table in TABLES {
                let name = format!("{}{table}", self.names());
                let text = format!(
                    "SELECT CASE WHEN has_table_privilege('{name}', '{privilege}') THEN 1 ELSE 0 END"
                );
                let rows = self.conn.query(Step::of(text)).await;
                let rows = rows.map_err(|err| self.failed(&err))?;
                let has = rows.first().is_some_and(|row| row.int(0).ok() == Some(1));
                if !has {
                    missing.push(privilege);
                    break;
                }
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(self.grant_is_missing(&format!(
            "GRANT {} ON ALL TABLES IN SCHEMA \"{}\" TO \"{}\"",
            missing.join(", "),
            self.database.schema,
            self.database.account.user
        )))
    }

    fn grant_is_missing(&self, grant: &str) -> StoreError {
        let user = &self.database.account.user;
        self.broken(&format!("user {user} lacks a privilege: run {grant}"))
    }

    fn broken(&self, what: &str) -> StoreError {
        let (server, schema) = (self.server.name(), &self.database.schema);
        StoreError::Broken(format!("PostgreSQL at {server}, schema {schema}: {what}"))
    }

    /// A failure while the store is opened.
    fn failed(&self, err: &Error) -> StoreError {
        let Some(code) = err.code() else {
            return self.server.refused(err);
        };
        let Database {
            name,
            schema,
            account,
            ..
        } = self.database;
        let text = told(err);
        match *code {
            SqlState::INSUFFICIENT_PRIVILEGE if text.contains("for database") => self
                .grant_is_missing(&format!(
                    "GRANT CREATE ON DATABASE \"{name}\" TO \"{0}\", or make the schema yourself: \
                     CREATE SCHEMA \"{schema}\" AUTHORIZATION \"{0}\"",
                    account.user
                )),
            SqlState::INSUFFICIENT_PRIVILEGE if text.contains("for schema") => self
                .grant_is_missing(&format!(
                    "GRANT USAGE, CREATE ON SCHEMA \"{schema}\" TO \"{}\" (CREATE only until the \
                     tables are there)",
                    account.user
                )),
            SqlState::INSUFFICIENT_PRIVILEGE => self.grant_is_missing(&format!(
                "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA \"{schema}\" TO \"{}\"",
                account.user
            )),
            SqlState::LOCK_NOT_AVAILABLE | SqlState::QUERY_CANCELED => {
                StoreError::Unavailable(format!(
                    "PostgreSQL at {}: {text}; another session holds a lock: see pg_stat_activity",
                    self.server.name()
                ))
            }
            _ => self.broken(&text),
        }
    }
}

/// The tables, or the schema they would be in, are not there.
fn is_missing(err: &Error) -> bool {
    matches!(
        err.code(),
        Some(&(SqlState::UNDEFINED_TABLE | SqlState::INVALID_SCHEMA_NAME))
    )
}

/// Somebody else makes the same things at the same time.
fn is_race(err: &Error) -> bool {
    matches!(
        err.code(),
        Some(
            &(SqlState::UNIQUE_VIOLATION
                | SqlState::DUPLICATE_TABLE
                | SqlState::DUPLICATE_SCHEMA
                | SqlState::DUPLICATE_OBJECT
                | SqlState::INTERNAL_ERROR
                | SqlState::T_R_SERIALIZATION_FAILURE
                | SqlState::T_R_DEADLOCK_DETECTED)
        )
    )
}

/// Forgets what other proxies wrote of their batches long ago: they are gone, or have written since.
pub(super) async fn forget_writers(conn: &Conn, sql: &Sql) {
    const LONG_AGO_MS: i64 = 7 * 24 * 3600 * 1000;
    let step = Step::with(&sql.forget_writers, vec![Box::new(LONG_AGO_MS)]);
    if let Err(err) = conn.query(step).await {
        debug!("cannot forget old writers: {}", told(&err));
    }
}

/// The statements that make the tables `p…`, in a transaction.
fn tables(p: &str, prefix: &str) -> String {
    let identity = new_identity();
    format!(
        "
BEGIN;
-- Where the store stands. One row, which stays in its page however often it is written.
CREATE TABLE IF NOT EXISTS {p}head (
    one             SMALLINT PRIMARY KEY CHECK (one = 1),
    schema_version  BIGINT   NOT NULL,  -- a program that does not know it keeps its hands off
    identity        TEXT     NOT NULL,  -- tells whether two addresses are one store
    revision        BIGINT   NOT NULL,  -- of the last change; an empty store is at 1, as etcd's is
    compacted       BIGINT   NOT NULL,  -- reads below it are refused
    swept           BIGINT   NOT NULL,  -- how far compaction has deleted, so that it can go on
    origin          BIGINT   NOT NULL,  -- changes up to here were the old store's
    copy_ups        BIGINT   NOT NULL,  -- batches that take no revision: copied keys, leases, records
    at_ms           BIGINT   NOT NULL,  -- when something was last committed, by the database's clock
    fenced          SMALLINT NOT NULL,  -- there is a record that is a fence
    epoch           BIGINT,             -- of the migration; NULL without one
    claims          SMALLINT NOT NULL,  -- deleted keys leave whiteouts
    base            BIGINT   NOT NULL   -- last revision of the old store
) WITH (fillfactor = 10);

-- The latest state of each key. Room is left in the pages, so that a new state finds place beside the
-- old one and the indices need not know of it.
CREATE TABLE IF NOT EXISTS {p}kv (
    \"key\"           BYTEA    NOT NULL,  -- its first 2000 bytes, since longer ones fit no index
    key_rest        BYTEA    NOT NULL,  -- what is left of it, nothing for most
    create_revision BIGINT   NOT NULL,
    mod_revision    BIGINT   NOT NULL,  -- names the log entry of this state, if `logged`
    version         BIGINT   NOT NULL,
    lease           BIGINT   NOT NULL,
    live            SMALLINT NOT NULL,  -- 0: a whiteout
    logged          SMALLINT NOT NULL,  -- 0, 3: copied up and not changed since; 2: without its lease
    value           BYTEA
) WITH (fillfactor = 85);
CREATE INDEX IF NOT EXISTS {prefix}kv_key ON {p}kv (\"key\");
-- The keys of a lease, when it ends.
CREATE INDEX IF NOT EXISTS {prefix}kv_lease ON {p}kv (lease) WHERE lease <> 0;
-- Whiteouts: taken off the number of rows when live keys are counted, and removed after a migration.
CREATE INDEX IF NOT EXISTS {prefix}kv_whiteout ON {p}kv (\"key\") WHERE live = 0;

-- What happened to each key.
CREATE TABLE IF NOT EXISTS {p}log (
    revision        BIGINT   NOT NULL,
    sub             INTEGER  NOT NULL,  -- the order of changes within a revision
    \"key\"           BYTEA    NOT NULL,
    key_rest        BYTEA    NOT NULL,
    kind            SMALLINT NOT NULL,  -- 0 delete, 1 put, 2 the state in which it was copied up, 3 a
                                        -- change (version 0: a delete) before another in one revision
    create_revision BIGINT   NOT NULL,
    version         BIGINT   NOT NULL,
    lease           BIGINT   NOT NULL,
    prev_revision   BIGINT   NOT NULL,  -- of the key's entry before this one; 0: it had no row
    value           BYTEA
);
-- Watches and reads of the past walk it by revision and look up earlier entries of a key in it.
CREATE INDEX IF NOT EXISTS {prefix}log_revision ON {p}log (revision, \"key\");

CREATE TABLE IF NOT EXISTS {p}lease (
    id              BIGINT   PRIMARY KEY,
    ttl_s           BIGINT   NOT NULL,
    deadline_ms     BIGINT   NOT NULL   -- since 1970, by the database's clock
);
-- Leases that have ended.
CREATE INDEX IF NOT EXISTS {prefix}lease_deadline ON {p}lease (deadline_ms);

-- The migration's own state. Not keys: no revision, no event.
CREATE TABLE IF NOT EXISTS {p}record (
    name            TEXT COLLATE \"C\" PRIMARY KEY,
    value           BYTEA    NOT NULL,
    version         BIGINT   NOT NULL
);

-- The last batch that each proxy has committed: tells one that lost its connection what became of it.
CREATE TABLE IF NOT EXISTS {p}writer (
    id              TEXT     PRIMARY KEY,
    batch           BIGINT   NOT NULL,
    seen_ms         BIGINT   NOT NULL   -- when it was written, by the database's clock
);

INSERT INTO {p}head (one, schema_version, identity, revision, compacted, swept, origin, copy_ups, at_ms, fenced, claims,
    base) VALUES (1, {VERSION}, '{identity}', 1, 0, 0, 0, 0, 0, 0, 0, 0) ON CONFLICT (one) DO NOTHING;
COMMIT;
"
    )
}

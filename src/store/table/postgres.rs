//! Tables in PostgreSQL.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::coop::consume_budget;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error};

use super::rows::Row;
use super::shape::{
    Column, Expires, Lookup, Shape, find, hex, no_table, quoted, unacceptable, wrong_type,
};
use super::{Source, Take};
use crate::store::login::postgres::{CONNECT_WITHIN, Login, Refused, told};
use crate::store::url::{Columns, Database};
use crate::store::{RequestError, Result, StoreError, StoreUrl};
use crate::tasks::spawn_from_drop;

/// How long a statement may take: a pass over a large table takes its time. The server ends it somewhat
/// earlier, if it can.
const FETCH_WITHIN: Duration = Duration::from_secs(610);
/// Connections at a time.
const CONNECTIONS: usize = 4;

/// What every session is set to. A pass over a large table takes its time. Times without a zone are
/// taken as UTC.
const SESSION: &str = "SET statement_timeout = '10min'; SET default_transaction_read_only = on; \
     SET TimeZone = 'UTC'; SET client_min_messages = 'warning'";

/// A server, and the connections to it that nobody uses at the moment.
pub(super) struct Server {
    login: Arc<Login>,
    place: String,
    idle: Mutex<Vec<Client>>,
    turns: Arc<Semaphore>,
}

/// A session with a statement under way. If nobody waits for it any more, the server is told to cancel it; it
/// would work on for nothing. Only then is the turn over.
struct Asked {
    client: Option<Client>,
    login: Arc<Login>,
    turn: Option<OwnedSemaphorePermit>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(client) = self.client.take().filter(|client| !client.is_closed()) {
            let (login, turn) = (self.login.clone(), self.turn.take());
            spawn_from_drop(async move {
                login.cancel(client.cancel_token()).await;
                drop((client, turn));
            });
        }
    }
}

pub(super) async fn open(database: &Database, columns: &Columns) -> Result<(Shape, Server)> {
    let server = Server::new(database).await?;
    let client = server.client().await?;
    let found = shape(&client, &server.place, columns).await;
    let shape = found.map_err(|err| server.failed(&err))??;
    server.give_back(client);
    Ok((shape, server))
}

impl Server {
    async fn new(database: &Database) -> Result<Self> {
        Ok(Self {
            login: Arc::new(Login::new(database).await?),
            place: StoreUrl::Postgres(database.clone()).to_string(),
            idle: Mutex::default(),
            turns: Arc::new(Semaphore::new(CONNECTIONS)),
        })
    }

    async fn client(&self) -> Result<Client> {
        let idle = || {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.pop()
        };
        while let Some(client) = idle() {
            if !client.is_closed() {
                return Ok(client);
            }
        }
        let connecting = async {
            let (client, _) = self.login.log_in(|_| {}).await?;
            client.batch_execute(SESSION).await?;
            Ok(client)
        };
        let connected = timeout(CONNECT_WITHIN, connecting).await;
        connected
            .unwrap_or(Err(Refused::Silent))
            .map_err(|why| match why {
                Refused::By(err) => self.failed(&err),
                Refused::Silent => self.silent(CONNECT_WITHIN),
            })
    }

    fn give_back(&self, client: Client) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(client);
    }

    fn silent(&self, within: Duration) -> StoreError {
        StoreError::Unavailable(format!("{}: no answer within {within:?}", self.place))
    }

    /// Nothing was written, whatever went wrong.
    fn failed(&self, err: &Error) -> StoreError {
        let Some(db) = err.as_db_error() else {
            return StoreError::Unavailable(format!("{}: {}", self.place, told(err)));
        };
        let told = format!("{}: {}", self.place, db.message());
        if *db.code() == SqlState::INSUFFICIENT_PRIVILEGE {
            let advice =
                "the account needs SELECT on the table, or on each of the columns that are named";
            return RequestError::Credentials(format!("{told}; {advice}")).into();
        }
        match db.code().code().get(..2) {
            Some("28") => RequestError::Credentials(told).into(),
            Some("08" | "53" | "57" | "40") => StoreError::Unavailable(told),
            _ => StoreError::Broken(told),
        }
    }
}

#[async_trait]
impl Source for Server {
    async fn each(&self, statement: String, take: Take<'_>) -> Result<()> {
        let turn = self.turns.clone().acquire_owned().await;
        let turn = turn.map_err(|err| StoreError::Unavailable(err.to_string()))?;
        let client = self.client().await?;
        let read = |row: &tokio_postgres::Row| {
            let bytes = |at| {
                let bytes: Option<&[u8]> = row.try_get(at)?;
                Ok::<_, Error>(bytes.map(Bytes::copy_from_slice))
            };
            Ok::<_, Error>(Row {
                key: bytes(0)?,
                value: bytes(1)?,
                revision: row.try_get(2)?,
                ttl_s: row.try_get(3)?,
                expires: row.try_get::<_, i32>(4)? != 0,
            })
        };
        let mut asked = Asked {
            client: None,
            login: self.login.clone(),
            turn: Some(turn),
        };
        let client = asked.client.insert(client);
        let fetching = async {
            let none = std::iter::empty::<(i64, Type)>();
            let rows = client.query_typed_raw(&statement, none).await;
            let mut rows = pin!(rows.map_err(|err| self.failed(&err))?);
            while let Some(row) = rows.next().await {
                let row = row.map_err(|err| self.failed(&err))?;
                let row = read(&row);
                let row =
                    row.map_err(|err| StoreError::Broken(format!("{}: {err}", self.place)))?;
                if take(row).is_break() {
                    return Ok(false);
                }
                consume_budget().await;
            }
            Ok::<_, StoreError>(true)
        };
        let fetched = timeout(FETCH_WITHIN, fetching).await;
        let whole = fetched.unwrap_or_else(|_| Err(self.silent(FETCH_WITHIN)))?;
        // The rows that are left would have to come in before anything else is answered.
        if let Some(client) = asked.client.take_if(|_| whole) {
            self.give_back(client);
        }
        Ok(())
    }
}

/// Of a domain the type that it is made of in the end: it may be made of another domain.
const COLUMNS: &str = "WITH RECURSIVE made AS ( \
     SELECT a.attname, a.attnum, t.typname, t.typbasetype \
     FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
     WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped \
     UNION ALL SELECT m.attname, m.attnum, t.typname, t.typbasetype \
     FROM made m JOIN pg_catalog.pg_type t ON t.oid = m.typbasetype WHERE m.typbasetype <> 0) \
     SELECT attname::text, typname::text FROM made WHERE typbasetype = 0 ORDER BY attnum";

const TABLE: &str = "SELECT c.oid, n.nspname::text, current_setting('server_encoding'), \
     (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database()) \
     FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     WHERE c.relname::text = $1 AND c.relkind IN ('r', 'p', 'v', 'm', 'f') \
     AND CASE WHEN $2::text IS NULL THEN pg_catalog.pg_table_is_visible(c.oid) \
     ELSE n.nspname::text = $2 END";

async fn shape(
    client: &Client,
    place: &str,
    columns: &Columns,
) -> std::result::Result<Result<Shape>, Error> {
    let found = client
        .query_opt(TABLE, &[&columns.table, &columns.schema])
        .await?;
    let Some(found) = found else {
        return Ok(Err(no_table(columns, place)));
    };
    let (oid, schema): (u32, String) = (found.try_get(0)?, found.try_get(1)?);
    let (encoding, database): (String, u32) = (found.try_get(2)?, found.try_get(3)?);
    // Not everybody may ask, and not every engine knows.
    let system = client
        .query_one(
            "SELECT system_identifier::text FROM pg_control_system()",
            &[],
        )
        .await;
    let system = match &system {
        Ok(row) => row.try_get(0)?,
        Err(_) => place.to_owned(),
    };
    let there = client.query(COLUMNS, &[&oid]).await?;
    let there: std::result::Result<Vec<Column>, Error> = there
        .iter()
        .map(|row| {
            Ok(Column {
                name: row.try_get(0)?,
                of: row.try_get(1)?,
                charset: None,
            })
        })
        .collect();
    let identity = format!("postgres-table/{system}/{database}/{oid}");
    Ok(describe(columns, &there?, &schema, &encoding, &identity))
}

fn describe(
    columns: &Columns,
    there: &[Column],
    schema: &str,
    encoding: &str,
    identity: &str,
) -> Result<Shape> {
    if encoding != "UTF8" {
        return Err(unacceptable(&format!(
            "the database is encoded in {encoding}, and has to be in UTF8"
        )));
    }
    let of = |parameter: &str, name: &str| find(there, parameter, name, false);
    let name = |column: &Column| quoted(&column.name, '"');
    let bytes = |column: &Column| match &column.of[..] {
        "bytea" => name(column),
        _ => format!("convert_to({}::text, 'UTF8')", name(column)),
    };
    let mut key = Vec::new();
    for part in &columns.key {
        key.push(of("key", part)?);
    }
    let joined: Vec<String> = key.iter().map(|column| bytes(column)).collect();
    let lookup = key.iter().map(|column| match &column.of[..] {
        "bytea" => Some(Lookup::Bytes(name(column))),
        "text" | "varchar" | "bpchar" => Some(Lookup::Text(name(column), Default::default())),
        _ => None,
    });
    let revision = match &columns.revision {
        None => None,
        Some(revision) => {
            let column = of("revision", revision)?;
            match &column.of[..] {
                "int2" | "int4" | "int8" => Some(format!("{}::bigint", name(column))),
                _ => return Err(wrong_type("revision", column, "an integer")),
            }
        }
    };
    let expires = match &columns.expires {
        None => None,
        Some(expires) => {
            let column = of("expires", expires)?;
            let (column, at) = match &column.of[..] {
                "timestamp" | "timestamptz" | "date" => {
                    // Whoever writes that it expires in all eternity means that it does not.
                    let time = format!("NULLIF({}, 'infinity')", name(column));
                    // Nor can PostgreSQL 13 put the other end into numbers.
                    let at = format!("EXTRACT(EPOCH FROM GREATEST({time}, 'epoch'))");
                    (time, at)
                }
                "int2" | "int4" | "int8" | "numeric" | "float4" | "float8" => {
                    (name(column), name(column))
                }
                _ => return Err(wrong_type("expires", column, "a timestamp or a number")),
            };
            let now = "EXTRACT(EPOCH FROM now())::numeric";
            // GREATEST and LEAST make something of NULL.
            let whole = |number: &str| {
                format!(
                    "CASE WHEN {column} IS NOT NULL THEN CEIL(LEAST(GREATEST({number}, -1), 1e11))::bigint END"
                )
            };
            Some(Expires {
                at: whole(&format!("{at}::numeric")),
                ttl: whole(&format!("{at}::numeric - {now}")),
                now: format!("CEIL({now})::bigint"),
                column,
            })
        }
    };
    Ok(Shape {
        identity: format!("{identity}/{columns}"),
        from: format!("{}.{}", quoted(schema, '"'), quoted(&columns.table, '"')),
        key_bytes_max: None,
        key: joined.join(r" || '\x2f'::bytea || "),
        value: bytes(of("value", &columns.value)?),
        revision,
        expires,
        lookup: lookup.collect(),
        nothing: ("NULL::bytea", "NULL::bigint"),
        bytes: |bytes| format!("decode('{}', 'hex')", hex(bytes)),
        text: |text| {
            let good = std::str::from_utf8(text).is_ok() && !text.contains(&0);
            // A constant takes the collation of what it is compared with; a function's result has one
            // of its own.
            let bytes = || text.iter().map(|byte| format!("\\x{byte:02x}"));
            good.then(|| format!("E'{}'", bytes().collect::<String>()))
        },
    })
}

//! Tables in MySQL and MariaDB.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Error, Opts, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::coop::consume_budget;
use tokio::time::timeout;

use super::rows::Row;
use super::shape::{Column, Expires, Lookup, Shape, find, hex, no_table, quoted, wrong_type};
use super::{Source, Take};
use crate::store::url::{Columns, Database};
use crate::store::{RequestError, Result, StoreError, StoreUrl, login};
use crate::tasks::spawn_from_drop;

/// How long making a connection may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// How long a statement may take: a pass over a large table takes its time.
const FETCH_WITHIN: Duration = Duration::from_mins(10);
/// Connections at a time.
const CONNECTIONS: usize = 4;

/// Longest key that is put in order. What the server sorts by is kept at this length for every row,
/// by some of them also where keys are short, so that it cannot be the longest that there may be.
const KEY_BYTES_MAX: usize = 4096;
/// What is sorted by has the length of bytes behind it.
const SORT_BYTES: usize = KEY_BYTES_MAX + 8;

/// What every session is set to, whatever the server's own settings are. Times without a zone are
/// taken as UTC. Without `autocommit` the first read would open a transaction that no later one sees
/// anything new in, and with another `completion_type` the end of one may begin the next;
/// `sql_select_limit` cuts off whatever has no limit of its own, and its `DEFAULT` is
/// the server's setting.
fn session() -> String {
    format!(
        "SET SESSION time_zone = '+00:00', sql_mode = 'NO_BACKSLASH_ESCAPES', autocommit = 1, \
         completion_type = 0, sql_select_limit = 18446744073709551615, max_sort_length = {SORT_BYTES}; \
         SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ"
    )
}

/// A server, and the connections to it that nobody uses at the moment.
pub(super) struct Server {
    opts: Opts,
    place: String,
    idle: Mutex<Vec<Conn>>,
    turns: Arc<Semaphore>,
}

/// A connection with a statement under way. If nobody waits for it any more, the server is told to end both;
/// it would work on for nothing. Only then is the turn over.
struct Asked {
    conn: Option<Conn>,
    opts: Opts,
    turn: Option<OwnedSemaphorePermit>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(conn) = self.conn.take() {
            let (opts, turn) = (self.opts.clone(), self.turn.take());
            spawn_from_drop(async move {
                login::mysql::kill(opts, conn.id()).await;
                drop((conn, turn));
            });
        }
    }
}

pub(super) async fn open(database: &Database, columns: &Columns) -> Result<(Shape, Server)> {
    let server = Server::new(database).await?;
    let mut conn = server.conn().await?;
    let found = shape(&mut conn, &server.place, &database.name, columns).await;
    let shape = found.map_err(|err| server.failed(&err))??;
    server.give_back(conn);
    Ok((shape, server))
}

impl Server {
    async fn new(database: &Database) -> Result<Self> {
        Ok(Self {
            opts: login::mysql::options(database).await?.into(),
            place: StoreUrl::Mysql(database.clone()).to_string(),
            idle: Mutex::default(),
            turns: Arc::new(Semaphore::new(CONNECTIONS)),
        })
    }

    async fn conn(&self) -> Result<Conn> {
        let idle = || {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.pop()
        };
        while let Some(mut conn) = idle() {
            // The server lets go of those that are silent for too long.
            if conn.ping().await.is_ok() {
                return Ok(conn);
            }
        }
        let connecting = async {
            let mut conn = Conn::new(self.opts.clone()).await?;
            conn.query_drop(session()).await?;
            Ok(conn)
        };
        match timeout(CONNECT_WITHIN, connecting).await {
            Ok(connected) => connected.map_err(|err| self.failed(&err)),
            Err(_) => Err(self.silent(CONNECT_WITHIN)),
        }
    }

    fn give_back(&self, conn: Conn) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(conn);
    }

    fn silent(&self, within: Duration) -> StoreError {
        StoreError::Unavailable(format!("{}: no answer within {within:?}", self.place))
    }

    /// Nothing was written, whatever went wrong.
    fn failed(&self, err: &Error) -> StoreError {
        let place = &self.place;
        match err {
            Error::Server(err) => {
                let told = format!("{place}: {} (error {})", err.message, err.code);
                match err.code {
                    1044 | 1045 | 1130 | 1142 | 1143 | 1227 | 1698 => {
                        RequestError::Credentials(told).into()
                    }
                    1040 | 1053 | 1203 | 1205 | 1213 | 1226 | 1317 | 1969 | 3024 => {
                        StoreError::Unavailable(told)
                    }
                    _ => StoreError::Broken(told),
                }
            }
            err => StoreError::Unavailable(format!("{place}: {err}")),
        }
    }
}

#[async_trait]
impl Source for Server {
    async fn each(&self, statement: String, take: Take<'_>) -> Result<()> {
        let turn = self.turns.clone().acquire_owned().await;
        let turn = turn.map_err(|err| StoreError::Unavailable(err.to_string()))?;
        let conn = self.conn().await?;
        let mut asked = Asked {
            conn: None,
            opts: self.opts.clone(),
            turn: Some(turn),
        };
        let conn = asked.conn.insert(conn);
        let odd = || StoreError::Broken(format!("{}: an odd answer", self.place));
        let fetching = async {
            let mut rows = conn
                .query_iter(statement)
                .await
                .map_err(|err| self.failed(&err))?;
            while let Some(row) = rows.next().await.map_err(|err| self.failed(&err))? {
                if take(read(row.unwrap()).ok_or_else(odd)?).is_break() {
                    return Ok(false);
                }
                consume_budget().await;
            }
            Ok::<_, StoreError>(true)
        };
        let fetched = timeout(FETCH_WITHIN, fetching).await;
        let whole = fetched.unwrap_or_else(|_| Err(self.silent(FETCH_WITHIN)))?;
        // The rows that are left would have to be read before anything else can be asked for.
        if let Some(conn) = asked.conn.take_if(|_| whole) {
            self.give_back(conn);
        }
        Ok(())
    }
}

/// A row, if it is one of ours: the text protocol has numbers as text.
fn read(cells: Vec<Value>) -> Option<Row> {
    let [key, value, revision, ttl_s, expires] = <[Value; 5]>::try_from(cells).ok()?;
    let bytes = |cell| match cell {
        Value::Bytes(bytes) => Some(Bytes::from(bytes)),
        _ => None,
    };
    let number = |cell| match cell {
        Value::Bytes(text) => std::str::from_utf8(&text).ok()?.parse::<i64>().ok(),
        Value::Int(number) => Some(number),
        Value::UInt(number) => i64::try_from(number).ok(),
        _ => None,
    };
    Some(Row {
        key: bytes(key),
        value: bytes(value),
        revision: number(revision),
        ttl_s: number(ttl_s),
        expires: number(expires)? != 0,
    })
}

const COLUMNS: &str = "SELECT table_schema, table_name, column_name, data_type, character_set_name, collation_name \
     FROM information_schema.columns WHERE table_schema = ? AND table_name = ? \
     ORDER BY ordinal_position";

/// Schema, table, column, type, character set and collation.
type Described = (
    String,
    String,
    String,
    String,
    Option<String>,
    Option<String>,
);

async fn shape(
    conn: &mut Conn,
    place: &str,
    database: &str,
    columns: &Columns,
) -> mysql_async::Result<Result<Shape>> {
    let schema = columns.schema.as_deref().unwrap_or(database);
    let rows: Vec<Described> = conn.exec(COLUMNS, (schema, &columns.table)).await?;
    let Some((schema, table, ..)) = rows.first().cloned() else {
        return Ok(Err(no_table(columns, place)));
    };
    // MariaDB has no number of its own.
    let server: Option<(String, String)> = conn
        .query_first("SHOW VARIABLES WHERE Variable_name = 'server_uuid'")
        .await?;
    let server = if let Some((_, uuid)) = server {
        uuid
    } else {
        let host = "SELECT CONCAT(@@hostname, ':', @@port, ':', @@datadir)";
        conn.query_first::<String, _>(host)
            .await?
            .unwrap_or_default()
    };
    let identity = format!("mysql-table/{server}/{schema}.{table}");
    let there = rows
        .into_iter()
        .map(|(_, _, name, of, set, collation)| Column {
            name,
            of: of.to_ascii_lowercase(),
            charset: set.zip(collation),
        });
    let from = format!("{}.{}", quoted(&schema, '`'), quoted(&table, '`'));
    Ok(describe(
        columns,
        &there.collect::<Vec<_>>(),
        from,
        &identity,
    ))
}

fn describe(columns: &Columns, there: &[Column], from: String, identity: &str) -> Result<Shape> {
    let of = |parameter: &str, name: &str| find(there, parameter, name, true);
    let name = |column: &Column| quoted(&column.name, '`');
    let bytes = |column: &Column| match kind(&column.of) {
        Kind::Bytes => name(column),
        Kind::Raw => format!("CAST({} AS BINARY)", name(column)),
        Kind::Text | Kind::Integer | Kind::Number | Kind::Time | Kind::Other => {
            format!("CAST(CONVERT({} USING utf8mb4) AS BINARY)", name(column))
        }
    };
    let mut key = Vec::new();
    for part in &columns.key {
        key.push(of("key", part)?);
    }
    let joined: Vec<String> = key.iter().map(|column| bytes(column)).collect();
    let lookup = key.iter().map(|column| match kind(&column.of) {
        Kind::Bytes => Some(Lookup::Bytes(name(column))),
        Kind::Text => Some(Lookup::Text(name(column), in_charset(column))),
        // Bits are compared as a number.
        Kind::Raw | Kind::Integer | Kind::Number | Kind::Time | Kind::Other => None,
    });
    let revision = match &columns.revision {
        None => None,
        Some(revision) => {
            let column = of("revision", revision)?;
            match kind(&column.of) {
                Kind::Integer => Some(name(column)),
                _ => return Err(wrong_type("revision", column, "an integer")),
            }
        }
    };
    let expires = match &columns.expires {
        None => None,
        Some(expires) => {
            let column = of("expires", expires)?;
            let quoted = name(column);
            let (at, left) = match kind(&column.of) {
                Kind::Time => (
                    format!("TIMESTAMPDIFF(SECOND, '1970-01-01', {quoted})"),
                    format!("TIMESTAMPDIFF(SECOND, UTC_TIMESTAMP(), {quoted})"),
                ),
                Kind::Integer | Kind::Number => (
                    format!("CEIL({quoted})"),
                    format!("CEIL({quoted} - UNIX_TIMESTAMP(NOW(6)))"),
                ),
                _ => return Err(wrong_type("expires", column, "a timestamp or a number")),
            };
            let whole = |number: String| {
                format!("CAST(LEAST(GREATEST({number}, -1), 100000000000) AS SIGNED)")
            };
            Some(Expires {
                at: whole(at),
                ttl: whole(left),
                now: "UNIX_TIMESTAMP()".to_owned(),
                column: quoted,
            })
        }
    };
    Ok(Shape {
        identity: format!("{identity}/{columns}"),
        from,
        key_bytes_max: Some(KEY_BYTES_MAX),
        key: match &joined[..] {
            [one] => one.clone(),
            several => format!("CONCAT({})", several.join(", x'2f', ")),
        },
        value: bytes(of("value", &columns.value)?),
        revision,
        expires,
        lookup: lookup.collect(),
        nothing: ("NULL", "NULL"),
        bytes: |bytes| format!("x'{}'", hex(bytes)),
        text: |text| {
            let good = std::str::from_utf8(text).is_ok();
            good.then(|| format!("_utf8mb4 x'{}'", hex(text)))
        },
    })
}

/// Makes text one of the column's character set, since what is in none of it is an error otherwise,
/// and of the column's collation, so that its index is used. What is not in the set becomes
/// something else, which is sorted out by its bytes.
fn in_charset(column: &Column) -> [String; 2] {
    let plain = |name: &str| {
        name.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    match &column.charset {
        Some((set, collation)) if plain(set) && plain(collation) => [
            "CONVERT(".to_owned(),
            format!(" USING {set}) COLLATE {collation}"),
        ],
        _ => Default::default(),
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Bytes,
    /// Bytes that the server takes for something else. In text, what is no character would be
    /// replaced by question marks.
    Raw,
    Text,
    Integer,
    Number,
    Time,
    Other,
}

fn kind(of: &str) -> Kind {
    match of {
        "binary" | "varbinary" | "blob" | "tinyblob" | "mediumblob" | "longblob" => Kind::Bytes,
        "bit" | "vector" | "geometry" | "point" | "linestring" | "polygon" | "multipoint"
        | "multilinestring" | "multipolygon" | "geometrycollection" | "geomcollection" => Kind::Raw,
        "char" | "varchar" | "text" | "tinytext" | "mediumtext" | "longtext" => Kind::Text,
        "tinyint" | "smallint" | "mediumint" | "int" | "bigint" => Kind::Integer,
        "decimal" | "float" | "double" => Kind::Number,
        "datetime" | "timestamp" | "date" => Kind::Time,
        _ => Kind::Other,
    }
}

//! Tables in a SQLite file.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::mpsc;

use super::rows::Row;
use super::shape::{Column, Expires, Lookup, Shape, find, hex, no_table, quoted, unacceptable};
use super::{Source, Take};
use crate::store::url::Columns;
use crate::store::{Result, StoreError};

/// How long a statement waits for another program that writes to the file.
const BUSY: Duration = Duration::from_secs(10);

/// Rows that come from the thread that reads at a time, bytes with which they are enough however few they
/// are, and how many times as many may wait.
const PART_ROWS: usize = 256;
const PART_BYTES: usize = 1 << 20;
const PARTS: usize = 4;

/// The connections that nobody uses at the moment.
pub(super) struct File {
    path: PathBuf,
    idle: Arc<Mutex<Vec<Connection>>>,
}

pub(super) async fn open(path: &Path, columns: &Columns) -> Result<(Shape, File)> {
    if !path.exists() {
        return Err(unacceptable(&format!(
            "there is no file {}, so it cannot be the old store; check the path",
            path.display()
        )));
    }
    // By whatever name it is given.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let file = File {
        path: path.clone(),
        idle: Arc::default(),
    };
    let columns = columns.clone();
    let shape = file
        .with(move |conn| shape(conn, &path, &columns))
        .await??;
    Ok((shape, file))
}

impl File {
    /// Runs `work` with a connection, where it may take its time.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> T + Send + 'static,
    ) -> Result<T> {
        let (path, idle) = (self.path.clone(), Arc::clone(&self.idle));
        let done = tokio::task::spawn_blocking(move || {
            let pop = || idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let conn = match pop() {
                Some(conn) => conn,
                None => connect(&path)?,
            };
            let done = work(&conn);
            idle.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(conn);
            Ok(done)
        });
        done.await
            .map_err(|err| StoreError::Broken(err.to_string()))?
    }
}

fn connect(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connect = || {
        let conn = Connection::open_with_flags(path, flags)?;
        conn.busy_timeout(BUSY)?;
        Ok(conn)
    };
    connect().map_err(|err| failed(&err))
}

fn failed(err: &rusqlite::Error) -> StoreError {
    let text = format!("the table's SQLite file: {err}");
    match err.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
            StoreError::Unavailable(text)
        }
        _ => StoreError::Broken(text),
    }
}

#[async_trait]
impl Source for File {
    async fn each(&self, statement: String, take: Take<'_>) -> Result<()> {
        let (send, mut parts) = mpsc::channel(PARTS);
        let fetching = self.with(move |conn| fetch(conn, &statement, &send));
        let taking = async move {
            while let Some(part) = parts.recv().await {
                if Vec::into_iter(part).try_for_each(&mut *take).is_break() {
                    return;
                }
            }
        };
        let (fetched, ()) = tokio::join!(fetching, taking);
        fetched?.map_err(|err| failed(&err))
    }
}

/// Sends the rows of a statement, some at a time, for as long as somebody takes them.
fn fetch(
    conn: &Connection,
    statement: &str,
    send: &mpsc::Sender<Vec<Row>>,
) -> rusqlite::Result<()> {
    let mut statement = conn.prepare(statement)?;
    let rows = statement.query_map([], |row| {
        let bytes = |at| {
            Ok::<_, rusqlite::Error>(match row.get_ref(at)? {
                ValueRef::Blob(bytes) | ValueRef::Text(bytes) => {
                    Some(Bytes::copy_from_slice(bytes))
                }
                _ => None,
            })
        };
        Ok(Row {
            key: bytes(0)?,
            value: bytes(1)?,
            revision: row.get(2)?,
            ttl_s: row.get(3)?,
            expires: row.get(4)?,
        })
    })?;
    let (mut part, mut bytes) = (Vec::new(), 0);
    for row in rows {
        let row = row?;
        bytes += row.weight();
        part.push(row);
        if part.len() == PART_ROWS || bytes >= PART_BYTES {
            bytes = 0;
            if send.blocking_send(std::mem::take(&mut part)).is_err() {
                return Ok(());
            }
        }
    }
    // Who does not wait any more does not miss them.
    let _ = send.blocking_send(part);
    Ok(())
}

fn shape(conn: &Connection, path: &Path, columns: &Columns) -> Result<Shape> {
    let catalog = |err: rusqlite::Error| failed(&err);
    let encoding: String = conn
        .query_row("PRAGMA encoding", [], |row| row.get(0))
        .map_err(catalog)?;
    if encoding != "UTF-8" {
        return Err(unacceptable(&format!(
            "the file {} has its text in {encoding}, and has to have it in UTF-8",
            path.display()
        )));
    }
    let schema = columns.schema.as_deref().unwrap_or("main");
    let table: Option<String> = conn
        .prepare("SELECT name FROM pragma_table_list WHERE schema = ?1 AND lower(name) = lower(?2)")
        .and_then(|mut names| {
            let mut names = names.query([schema, &columns.table])?;
            names.next()?.map(|row| row.get(0)).transpose()
        })
        .map_err(catalog)?;
    let Some(table) = table else {
        return Err(no_table(columns, &path.display().to_string()));
    };
    let there: Vec<Column> = conn
        .prepare("SELECT name, lower(type) FROM pragma_table_xinfo(?1, ?2)")
        .and_then(|mut columns| {
            let columns = columns.query_map([&table, schema], |row| {
                Ok(Column {
                    name: row.get(0)?,
                    of: row.get(1)?,
                    charset: None,
                })
            })?;
            columns.collect()
        })
        .map_err(catalog)?;
    let of = |parameter: &str, name: &str| find(&there, parameter, name, true);
    let name = |column: &Column| quoted(&column.name, '"');
    let blob = |column: &Column| format!("CAST({} AS BLOB)", name(column));
    let mut key = Vec::new();
    for part in &columns.key {
        key.push(of("key", part)?);
    }
    let joined: Vec<String> = key.iter().map(|column| blob(column)).collect();
    let expires = match &columns.expires {
        None => None,
        Some(column) => Some(name(of("expires", column)?)),
    };
    let revision = match &columns.revision {
        None => None,
        Some(column) => Some(name(of("revision", column)?)),
    };
    // Of a column that makes text of numbers, every value is text or a blob; of others, a number
    // may be written in many ways.
    let is_text = |column: &&Column| {
        let has = |word| column.of.contains(word);
        !has("int") && (has("char") || has("clob") || has("text"))
    };
    let lookup = key.iter().all(is_text);
    Ok(Shape {
        identity: format!("sqlite-table/{}/{columns}", path.display()),
        from: format!("{}.{}", quoted(schema, '"'), quoted(&table, '"')),
        key_bytes_max: None,
        key: match &joined[..] {
            [one] => one.clone(),
            // Joined, blobs are text, byte by byte.
            several => format!("CAST({} AS BLOB)", several.join(" || x'2f' || ")),
        },
        value: blob(of("value", &columns.value)?),
        revision: revision
            .map(|name| format!("CASE typeof({name}) WHEN 'integer' THEN {name} END")),
        expires: expires.map(|name| {
            let now = "CAST(strftime('%s', 'now') AS INTEGER)".to_owned();
            let at = format!(
                "CASE typeof({name}) WHEN 'text' THEN CAST(strftime('%s', {name}) AS INTEGER) \
                 WHEN 'integer' THEN {name} WHEN 'real' THEN CAST({name} AS INTEGER) END"
            );
            let ttl = format!("{at} - {now}");
            Expires {
                column: name,
                at,
                ttl,
                now,
            }
        }),
        lookup: lookup.then(|| {
            key.iter()
                .map(|column| Lookup::Text(name(column), Default::default()))
                .collect()
        }),
        nothing: ("NULL", "NULL"),
        bytes: |bytes| format!("x'{}'", hex(bytes)),
        // The same bytes may be there as a blob.
        text: |text| {
            let text = hex(text);
            Some(format!("CAST(x'{text}' AS TEXT), x'{text}'"))
        },
    })
}

//! PostgreSQL's errors in terms of what the caller may conclude.

use tokio_postgres::Error;
use tokio_postgres::error::{DbError, Severity, SqlState};

use crate::store::login::postgres::told;
use crate::store::{RequestError, StoreError};

/// What is known after a statement failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The connection is gone, and with it every transaction that was not being committed.
    Lost,
    /// The database asks for a repetition of the whole transaction.
    Again,
    /// The statement's own failure; the connection is good.
    Statement,
}

/// What an update of rows by their places fails with where one is not in its place any more.
const ROWS_WERE_MOVED: SqlState = SqlState::DIVISION_BY_ZERO;

/// Which kind of failure it is.
pub(super) fn failure(err: &Error) -> Failure {
    match err.as_db_error() {
        None if is_local(err) => Failure::Statement,
        None => Failure::Lost,
        Some(db) if is_fatal(db) => Failure::Lost,
        Some(db) => match *db.code() {
            SqlState::T_R_SERIALIZATION_FAILURE
            | SqlState::T_R_DEADLOCK_DETECTED
            | ROWS_WERE_MOVED => Failure::Again,
            _ => Failure::Statement,
        },
    }
}

/// Whether a commit that was answered with this certainly did not happen. A fatal error can come
/// behind the commit, while the server waits for its standbys.
pub(super) fn certainly_not_committed(err: &Error) -> bool {
    err.as_db_error().is_some_and(|db| {
        !is_fatal(db)
            && !matches!(
                *db.code(),
                SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN
                    | SqlState::TRANSACTION_RESOLUTION_UNKNOWN
            )
    })
}

/// A failure before the commit: nothing was written.
pub(super) fn not_done(err: &Error) -> StoreError {
    let Some(db) = err.as_db_error() else {
        return if is_local(err) {
            StoreError::Broken(format!(
                "PostgreSQL takes other values, or answers with other columns: {}",
                told(err)
            ))
        } else {
            StoreError::Unavailable(format!(
                "PostgreSQL: the connection was lost: {}",
                told(err)
            ))
        };
    };
    let text = format!("PostgreSQL: {}", told(err));
    match *db.code() {
        SqlState::DISK_FULL => RequestError::NoSpace.into(),
        SqlState::PROGRAM_LIMIT_EXCEEDED => RequestError::Unacceptable(text).into(),
        SqlState::INSUFFICIENT_PRIVILEGE => StoreError::Broken(format!(
            "{text}; the user needs SELECT, INSERT, UPDATE and DELETE on all of Segue's tables"
        )),
        SqlState::READ_ONLY_SQL_TRANSACTION => StoreError::Unavailable(format!(
            "{text}; this server is a standby or set to read only: Segue needs the primary"
        )),
        SqlState::LOCK_NOT_AVAILABLE => StoreError::Unavailable(format!(
            "{text}; another session holds the lock on the head row: see pg_stat_activity"
        )),
        ROWS_WERE_MOVED => StoreError::Unavailable(
            "PostgreSQL: rows are moved again and again between being fetched and being written: \
             somebody rewrites or changes Segue's tables meanwhile"
                .into(),
        ),
        SqlState::QUERY_CANCELED
        | SqlState::T_R_SERIALIZATION_FAILURE
        | SqlState::T_R_DEADLOCK_DETECTED => StoreError::Unavailable(text),
        _ if is_fatal(db) => StoreError::Unavailable(text),
        // Not enough of memory, connections and the like.
        _ if db.code().code().starts_with("53") => StoreError::Unavailable(text),
        _ => StoreError::Broken(text),
    }
}

fn is_fatal(db: &DbError) -> bool {
    matches!(
        db.parsed_severity(),
        Some(Severity::Fatal | Severity::Panic)
    ) || db.code().code().starts_with("08")
}

/// Whether the failure is between the driver and us: a value or a column of another type.
fn is_local(err: &Error) -> bool {
    let text = err.to_string();
    [
        "error deserializing",
        "error serializing",
        "invalid column",
        "expected",
    ]
    .iter()
    .any(|start| text.starts_with(start))
}

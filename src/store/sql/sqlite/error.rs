//! SQLite's errors in terms of what the caller may conclude.

use std::path::{Path, PathBuf};

use rusqlite::{Error, ErrorCode};

use crate::store::{RequestError, StoreError};

/// What is being opened, for errors that an operator reads.
#[derive(Clone, Debug)]
pub(super) struct Opening {
    path: PathBuf,
}

impl Opening {
    pub(super) fn of(path: &Path) -> Self {
        Self { path: path.into() }
    }

    pub(super) fn broken(&self, what: &str) -> StoreError {
        StoreError::Broken(format!("SQLite file {}: {what}", self.path.display()))
    }

    pub(super) fn no_directory(&self, directory: &Path) -> StoreError {
        self.broken(&format!(
            "there is no directory {}; create it or name another path",
            directory.display()
        ))
    }

    pub(super) fn is_directory(&self) -> StoreError {
        self.broken("this is a directory; name a file in it")
    }

    pub(super) fn no_lock_file(&self, lock: &Path, err: &std::io::Error) -> StoreError {
        self.broken(&format!(
            "cannot open the lock file {}: {err}; the directory must be writable",
            lock.display()
        ))
    }

    pub(super) fn in_use(&self) -> StoreError {
        StoreError::Unavailable(format!(
            "SQLite file {}: it is in use by another proxy, or is both the old and the new store of \
             this one; a SQLite store serves one process: stop the other one, or name another file",
            self.path.display()
        ))
    }
}

/// A failure while the store is opened.
#[expect(clippy::needless_pass_by_value, reason = "made for `map_err`")]
pub(super) fn opening(opening: &Opening, err: Error) -> StoreError {
    match err.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => {
            opening.broken("this is not a SQLite database; name another file")
        }
        Some(ErrorCode::DatabaseCorrupt) => opening.broken(&format!(
            "the database is damaged ({err}); restore a backup"
        )),
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => opening
            .broken(&format!(
                "cannot open it ({err}); file and directory must be readable and writable"
            )),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => opening.in_use(),
        _ => opening.broken(&err.to_string()),
    }
}

/// A failure before the commit: nothing was written.
#[expect(clippy::needless_pass_by_value, reason = "made for `map_err`")]
pub(super) fn not_done(err: Error) -> StoreError {
    match err.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => RequestError::NoSpace.into(),
        Some(ErrorCode::TooBig) => {
            RequestError::Unacceptable("SQLite does not take a row of this size".into()).into()
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Broken(format!("the SQLite file is damaged: {err}"))
        }
        Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch) | None => {
            StoreError::Broken(format!(
                "the SQLite tables are not as they should be: {err}"
            ))
        }
        _ => StoreError::Unavailable(format!("SQLite: {err}")),
    }
}

/// A failure of the commit. SQLite rolls back then; but if the disk refused, the commit may have
/// reached it all the same and come back after a crash.
pub(super) fn commit_failed(err: Error) -> StoreError {
    match err.sqlite_error_code() {
        Some(ErrorCode::SystemIoFailure) => StoreError::Unknown(format!("SQLite: {err}")),
        _ => not_done(err),
    }
}

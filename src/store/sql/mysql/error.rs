//! The server's errors in terms of what the caller may conclude.

use std::fmt;

use mysql_async::Error;

use crate::store::{RequestError, StoreError};

/// Why a script failed.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// The server refused a statement, by this number and for this reason. The connection is good.
    Refused(u16, String),
    /// The connection is gone, or nobody knows what is on it. What was sent last may have happened.
    Lost(String),
    /// The answer is not what was asked for. The connection is good.
    Odd(String),
}

/// Numbers of errors; the servers' manuals list them.
pub(super) mod code {
    pub(in super::super) const DATABASE_ACCESS_DENIED: u16 = 1044;
    pub(in super::super) const TABLE_ACCESS_DENIED: u16 = 1142;
    pub(in super::super) const NO_SUCH_TABLE: u16 = 1146;
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(code, message) => write!(f, "{message} (error {code})"),
            Self::Lost(why) => write!(f, "the connection is lost: {why}"),
            Self::Odd(what) => f.write_str(what),
        }
    }
}

impl Failure {
    /// Sorts an error of the driver.
    pub(super) fn of(err: &Error) -> Self {
        match err {
            Error::Server(err) => match err.code {
                // Shutting down, killed, aborted, too slow for the server, waited too long.
                1053 | 1152 | 1158..=1161 | 1184 | 1927 | 4031 => Self::Lost(err.message.clone()),
                code => Self::Refused(code, err.message.clone()),
            },
            // Io, driver and TLS errors. Their texts have no credentials in them.
            err => Self::Lost(err.to_string()),
        }
    }

    /// Whether the server says that it takes no writes.
    pub(super) fn is_read_only(&self) -> bool {
        matches!(self, Self::Refused(code, _) if is_read_only(*code))
    }

    /// Whether the connection may go on: it is there, and to a server that takes writes.
    pub(super) fn keeps_connection(&self) -> bool {
        !matches!(self, Self::Lost(_)) && !self.is_read_only()
    }

    /// Whether the server asks for a repetition: it has rolled back, or waits for us to do it.
    /// 1205 lock wait timeout, 1213 deadlock, 1020 record has changed, 1412 the table was rebuilt;
    /// 1317, 1969 and 3024 an interrupted statement; 3572 and 1614 a lock that is not waited for.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Refused(code, _) => {
                matches!(
                    code,
                    1205 | 1213 | 1020 | 1412 | 1317 | 1969 | 3024 | 3572 | 1614
                )
            }
            Self::Lost(_) => true,
            Self::Odd(_) => false,
        }
    }

    /// What it means for a request of which is certain that it did not happen.
    pub(super) fn not_done(self, place: &impl fmt::Display) -> StoreError {
        let told = format!("{place}: {self}");
        let code = match self {
            Self::Lost(_) => return StoreError::Unavailable(told),
            Self::Odd(_) => return StoreError::Broken(told),
            Self::Refused(code, _) => code,
        };
        match code {
            1040 | 1203 | 1226 => StoreError::Unavailable(format!(
                "{told}; Segue needs 14 connections per proxy: raise max_connections, or the limit of \
                 the account"
            )),
            1044 | 1045 | 1130 | 1142 | 1143 | 1227 | 1698 => {
                RequestError::Credentials(told).into()
            }
            1021 | 1041 | 1114 => RequestError::NoSpace.into(),
            1153 | 1301 => RequestError::TooLarge.into(),
            code if is_read_only(code) => StoreError::Unavailable(format!(
                "{told}; Segue has to write: name the primary server"
            )),
            1146 => StoreError::Broken(format!("{told}; Segue's tables were removed")),
            _ if Self::Refused(code, String::new()).is_transient() => StoreError::Unavailable(told),
            _ => StoreError::Broken(told),
        }
    }
}

/// Whether this is said by a server that takes no writes, of itself, of a transaction or of InnoDB.
fn is_read_only(code: u16) -> bool {
    matches!(code, 1290 | 1792 | 1836 | 1874)
}

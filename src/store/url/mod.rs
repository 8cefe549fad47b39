//! Where a store is: the URLs that operators write, with what is secret in them kept secret.
//!
//! One file per kind: [`etcd`], [`database`] (PostgreSQL and MySQL), [`table`] (an existing table in
//! any SQL database). `host` and `parameters` read the parts that they share.

pub mod database;
pub mod etcd;
mod host;
mod parameters;
pub mod table;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use percent_encoding::percent_decode_str;

pub use self::database::{Database, Host, Tls};
pub use self::etcd::Cluster;
pub use self::table::{Columns, Table, Within};

use self::database::{MYSQL, POSTGRES};
use self::parameters::Parameters;

/// What a right URL looks like, for every error about a wrong one.
const EXAMPLES: &str = "write one of: \
    sqlite:PATH · postgres://USER[:PASSWORD]@HOST[:PORT]/DATABASE · \
    mysql://USER[:PASSWORD]@HOST[:PORT]/DATABASE (MariaDB too) · \
    etcd://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…] (etcd v3) · \
    etcd2://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…] (etcd v2 keys API) · memory:";

/// Where a store is and how to get in. Shows itself without the password.
#[derive(Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// In this process; gone when it ends.
    Memory,
    /// A file.
    Sqlite(PathBuf),
    /// PostgreSQL, or what speaks its protocol.
    Postgres(Database),
    /// MySQL or MariaDB, or what speaks their protocol.
    Mysql(Database),
    /// A table that an application has made itself.
    Table(Table),
    /// etcd, over the v3 API.
    Etcd(Cluster),
    /// etcd, over the v2 HTTP keys API.
    Etcd2(Cluster),
}

/// A user name and what proves it.
#[derive(Clone, PartialEq, Eq)]
pub struct Account {
    /// The user name.
    pub user: String,
    /// The password, if it is known yet; see [`StoreUrl::supply_password`].
    pub password: Option<Secret>,
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one place that sends it to the store.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What is wrong with a URL. Never quotes what might be a password in the wrong place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It begins with nothing that is known.
    #[error("this is not the URL of a store: {EXAMPLES}")]
    Scheme,
    /// It is the address of something, but does not say what.
    #[error(
        "`{0}` does not say how to talk to the store: write etcd://HOST:PORT for the v3 API of etcd, \
         or etcd2://HOST:PORT for its v2 keys API"
    )]
    Ambiguous(&'static str),
    /// A kind of store that is planned.
    #[error("{0} is not supported by this version yet: {EXAMPLES}")]
    NotYet(&'static str),
    /// No file is named.
    #[error(
        "a file is missing behind `sqlite:`: write sqlite:PATH, for example sqlite:/var/lib/segue/new.db"
    )]
    NoPath,
    /// `SQLite` in memory would be lost with each connection.
    #[error("SQLite is only used with a file: write sqlite:PATH, or memory: for a store in memory")]
    SqliteInMemory,
    /// No host is named.
    #[error("a host is missing: write {0}://HOST:PORT, for example {0}://10.0.0.1:2379")]
    NoHost(&'static str),
    /// A host is not one.
    #[error(
        "host {number} of the {scheme}:// URL is wrong, {what}: write {scheme}://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…]"
    )]
    Host {
        /// Of which kind of URL.
        scheme: &'static str,
        /// Which one, counted from 1.
        number: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Something follows the hosts.
    #[error("nothing may follow the hosts of a {0}:// URL (no path, no parameters)")]
    Trailing(&'static str),
    /// A user name is not text when decoded.
    #[error("the user name or password in the {0}:// URL is not UTF-8 once its %XX are decoded")]
    Encoding(&'static str),
    /// A password, but for whom?
    #[error("the {0}:// URL has an empty user name in front of the `@`")]
    NoUser(&'static str),
    /// The address of a database server is not one.
    #[error(
        "the {scheme}:// URL is wrong, {what}: write \
         {scheme}://USER[:PASSWORD]@HOST[:PORT]/DATABASE[?NAME=VALUE&…]"
    )]
    Database {
        /// Of which kind of URL.
        scheme: &'static str,
        /// What is wrong.
        what: &'static str,
    },
    /// What follows the `?` is wrong; a whole sentence.
    #[error("{0}")]
    Parameter(String),
}

impl FromStr for StoreUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let text = text.trim();
        let (scheme, rest) = text.split_once(':').ok_or(UrlError::Scheme)?;
        let authority = rest.strip_prefix("//");
        match scheme.to_ascii_lowercase().as_str() {
            "memory" if matches!(rest, "" | "//") => Ok(Self::Memory),
            "sqlite" => sqlite(authority.unwrap_or(rest)),
            "postgres" | "postgresql" => {
                let (database, columns) = database::parse(&POSTGRES, authority)?;
                Ok(match columns {
                    None => Self::Postgres(database),
                    Some(columns) => table(Within::Postgres(database), columns),
                })
            }
            "mysql" | "mariadb" => {
                let (database, columns) = database::parse(&MYSQL, authority)?;
                Ok(match columns {
                    None => Self::Mysql(database),
                    Some(columns) => table(Within::Mysql(database), columns),
                })
            }
            "etcd" => etcd::parse("etcd", authority).map(Self::Etcd),
            "etcd2" => etcd::parse("etcd2", authority).map(Self::Etcd2),
            "http" => Err(UrlError::Ambiguous("http://")),
            "https" => Err(UrlError::NotYet("TLS towards etcd")),
            _ => Err(UrlError::Scheme),
        }
    }
}

impl StoreUrl {
    /// The account that the URL names.
    #[must_use]
    pub fn account(&self) -> Option<&Account> {
        match self {
            Self::Memory | Self::Sqlite(_) => None,
            Self::Etcd(cluster) | Self::Etcd2(cluster) => cluster.account.as_ref(),
            Self::Postgres(database) | Self::Mysql(database) => Some(&database.account),
            Self::Table(table) => table.within.database().map(|database| &database.account),
        }
    }

    /// Sets the password that came some other way than in the URL (which other users of the machine
    /// can see in the list of processes), if the URL names a user and no password.
    pub fn supply_password(&mut self, password: Secret) {
        let account = match self {
            Self::Memory | Self::Sqlite(_) => None,
            Self::Etcd(cluster) | Self::Etcd2(cluster) => cluster.account.as_mut(),
            Self::Postgres(database) | Self::Mysql(database) => Some(&mut database.account),
            Self::Table(table) => table
                .within
                .database_mut()
                .map(|database| &mut database.account),
        };
        if let Some(account) = account
            && account.password.is_none()
        {
            account.password = Some(password);
        }
    }

    /// The user who has no password yet and cannot be without. Databases can let a user in by
    /// other means (a socket's owner, a trusted address), and say so themselves if they do not.
    #[must_use]
    pub fn lacks_password(&self) -> Option<&str> {
        match self {
            Self::Etcd(_) | Self::Etcd2(_) => self
                .account()
                .filter(|account| account.password.is_none())
                .map(|account| account.user.as_str()),
            Self::Memory
            | Self::Sqlite(_)
            | Self::Postgres(_)
            | Self::Mysql(_)
            | Self::Table(_) => None,
        }
    }
}

/// Reads a password from a file: its first line.
pub fn password_file(path: &Path) -> std::io::Result<Secret> {
    let text = std::fs::read_to_string(path)?;
    Ok(Secret::new(text.lines().next().unwrap_or_default()))
}

fn table(within: Within, columns: Columns) -> StoreUrl {
    StoreUrl::Table(Table { within, columns })
}

/// The path is taken as it is, without decoding: people write paths as they see them.
fn sqlite(text: &str) -> Result<StoreUrl, UrlError> {
    let (path, rest) = match text.split_once('?') {
        Some((path, rest)) => (path, Some(rest)),
        None => (text, None),
    };
    let path = match path {
        "" => return Err(UrlError::NoPath),
        ":memory:" => return Err(UrlError::SqliteInMemory),
        path => PathBuf::from(path),
    };
    let mut parameters = Parameters::parse("sqlite", rest, &[])?;
    Ok(match table::parse(&mut parameters)? {
        None => StoreUrl::Sqlite(path),
        Some(columns) => table(Within::Sqlite(path), columns),
    })
}

/// `USER` or `USER:PASSWORD`, each with `%XX` decoded.
fn parse_account(scheme: &'static str, text: &str) -> Result<Account, UrlError> {
    let decode = |part: &str| {
        percent_decode_str(part)
            .decode_utf8()
            .map(std::borrow::Cow::into_owned)
            .map_err(|_| UrlError::Encoding(scheme))
    };
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    if user.is_empty() {
        return Err(UrlError::NoUser(scheme));
    }
    let password = decode(password)?;
    Ok(Account {
        user: decode(user)?,
        password: (!password.is_empty()).then(|| Secret::new(password)),
    })
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory:"),
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(database) => database.show(&POSTGRES, None, f),
            Self::Mysql(database) => database.show(&MYSQL, None, f),
            Self::Table(table) => write!(f, "{table}"),
            Self::Etcd(cluster) => write!(f, "etcd://{cluster}"),
            Self::Etcd2(cluster) => write!(f, "etcd2://{cluster}"),
        }
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.user)
    }
}

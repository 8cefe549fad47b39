//! SQL databases: a server of each kind, and databases on it for Segue, for its peers, and for what
//! the database itself can do.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

use super::servers::postgres;
use super::servers::{MariaDb, Postgres};

/// Memory and write-ahead log for some hundred megabytes of rows.
const POSTGRES: [&str; 2] = ["-cshared_buffers=512MB", "-cmax_wal_size=4GB"];
/// The same.
const MARIADB: [&str; 2] = [
    "--innodb-buffer-pool-size=512M",
    "--innodb-log-file-size=256M",
];

/// Which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    Sqlite,
    /// A server.
    Postgres,
    /// A server that speaks the protocol of MySQL.
    MariaDb,
}

impl Kind {
    /// All that Segue knows.
    pub const ALL: [Self; 3] = [Self::Sqlite, Self::Postgres, Self::MariaDb];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sqlite => "SQLite",
            Self::Postgres => "PostgreSQL",
            Self::MariaDb => "MariaDB",
        })
    }
}

/// A running server, or the directory of files. Stopped and removed when dropped.
pub enum Server {
    /// Files are databases.
    Sqlite(TempDir),
    /// With room for what is written here, and every commit flushed.
    Postgres(Box<Postgres>),
    /// With room for what is written here, and every commit flushed.
    MariaDb(Box<MariaDb>),
}

/// An empty database.
pub struct Database {
    /// Where it is: what drivers take.
    url: String,
    kind: Kind,
}

impl Server {
    /// One that is ready.
    pub async fn start(kind: Kind) -> Self {
        match kind {
            Kind::Sqlite => Self::Sqlite(tempfile::tempdir().expect("a directory can be made")),
            Kind::Postgres => Self::Postgres(Box::new(Postgres::start_with(&POSTGRES).await)),
            Kind::MariaDb => Self::MariaDb(Box::new(MariaDb::start_with(&MARIADB).await)),
        }
    }

    /// A new database on it.
    pub async fn database(&self) -> Database {
        static FILES: AtomicUsize = AtomicUsize::new(0);
        let (kind, url) = match self {
            Self::Sqlite(dir) => {
                let path = dir
                    .path()
                    .join(format!("{}.db", FILES.fetch_add(1, Ordering::Relaxed)));
                (Kind::Sqlite, path.display().to_string())
            }
            Self::Postgres(server) => (Kind::Postgres, postgres_database(server).await),
            Self::MariaDb(server) => (Kind::MariaDb, server.database().await),
        };
        // Of the server's URL only what every driver understands.
        let url = url.split('?').next().unwrap_or_default().to_owned();
        Database { url, kind }
    }
}

/// A database of its own, since kine knows no schemas.
async fn postgres_database(server: &Postgres) -> String {
    // It has a schema in its name, which no other has.
    let url = server.schema();
    let name = postgres::schema_of(&url).to_owned();
    postgres::run(&url, &format!("CREATE DATABASE {name}")).await;
    let (place, _) = url.rsplit_once('/').expect("a database");
    format!("{place}/{name}")
}

impl Database {
    /// Which database it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// For drivers: a URL, or the path of a file.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// For Segue.
    pub fn segue(&self) -> String {
        match self.kind {
            Kind::Sqlite => format!("sqlite:{}", self.url),
            Kind::Postgres => format!("{}?sslmode=disable", self.url),
            Kind::MariaDb => format!("{}?ssl-mode=DISABLED", self.url),
        }
    }

    /// For kine. Of its own it does not flush SQLite's commits; everything else here does.
    pub fn kine(&self) -> String {
        match self.kind {
            Kind::Sqlite => format!(
                "sqlite://{}?_journal_mode=WAL&_busy_timeout=30000&_synchronous=FULL\
                 &_txlock=immediate&_stmt_cache_size=20&cache=shared",
                self.url
            ),
            Kind::Postgres => format!("{}?sslmode=disable", self.url),
            Kind::MariaDb => {
                // mysql://user:password@tcp(host:port)/database
                let (account, place) = self.url.rsplit_once('@').expect("an account");
                let (server, name) = place.split_once('/').expect("a database");
                format!("{account}@tcp({server})/{name}")
            }
        }
    }
}

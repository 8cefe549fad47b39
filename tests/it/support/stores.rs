//! Empty stores of every kind that a migration can end with.

use tempfile::TempDir;

use super::{Etcd, mariadb, postgres};

/// Of which kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Sqlite,
    Postgres,
    Mariadb,
    Etcd,
}

/// A store that runs until this is dropped.
pub struct Running {
    pub url: String,
    _servers: (Option<TempDir>, Option<Etcd>),
}

impl Running {
    /// In a server that all tests share.
    pub fn at(url: String) -> Self {
        Self {
            url,
            _servers: (None, None),
        }
    }

    /// In a SQLite file.
    pub fn file() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            url: format!("sqlite:{}", dir.path().join("store.db").display()),
            _servers: (Some(dir), None),
        }
    }

    /// In a server of its own, at one of its addresses.
    pub fn etcd(etcd: Etcd, url: String) -> Self {
        Self {
            url,
            _servers: (None, Some(etcd)),
        }
    }
}

impl Kind {
    pub async fn start(self) -> Running {
        match self {
            Self::Sqlite => Running::file(),
            Self::Postgres => Running::at(postgres::schema().await),
            Self::Mariadb => Running::at(mariadb::database().await),
            Self::Etcd => {
                let etcd = Etcd::start().await;
                let url = etcd.url();
                Running::etcd(etcd, url)
            }
        }
    }
}

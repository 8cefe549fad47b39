//! The stores that a migration begins and ends with.

use http::Method;
use tempfile::TempDir;

use crate::support::mariadb::database;
use crate::support::postgres::schema;
use crate::support::segue::Segue;
use crate::support::{Etcd, V2, tables};

/// One that keeps etcd's history: an old or a new store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Sqlite,
    Postgres,
    Mariadb,
    Etcd,
}

/// One that has pairs and no history, and cannot be gone back to: an old store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bare {
    Etcd2,
    PostgresTable,
    MariadbTable,
    SqliteTable,
}

/// A store that runs for as long as this.
pub(super) struct Home {
    pub(super) url: String,
    _etcd: Option<Etcd>,
    _dir: Option<TempDir>,
    _tables: Option<tables::Home>,
}

impl Home {
    fn at(url: String) -> Self {
        Self {
            url,
            _etcd: None,
            _dir: None,
            _tables: None,
        }
    }
}

impl Kind {
    pub(super) async fn start(self) -> Home {
        match self {
            Self::Sqlite => {
                let dir = tempfile::tempdir().unwrap();
                let url = format!("sqlite:{}", dir.path().join("store.db").display());
                Home {
                    _dir: Some(dir),
                    ..Home::at(url)
                }
            }
            Self::Postgres => Home::at(schema().await),
            Self::Mariadb => Home::at(database().await),
            Self::Etcd => {
                let etcd = Etcd::start().await;
                Home {
                    url: etcd.url(),
                    _etcd: Some(etcd),
                    ..Home::at(String::new())
                }
            }
        }
    }

    /// As an old store, which has to be a store already, where it cannot be empty.
    pub(super) async fn start_old(self) -> Home {
        let home = self.start().await;
        if self != Self::Etcd {
            drop(Segue::start(["--new", &home.url]).await);
        }
        home
    }
}

impl Bare {
    /// With these keys, in this order. Answers the revision of each there.
    pub(super) async fn start(self, keys: &[String], value: &str) -> (Home, Vec<i64>) {
        let kind = match self {
            Self::Etcd2 => return start_v2(keys, value).await,
            Self::PostgresTable => tables::Kind::Postgres,
            Self::MariadbTable => tables::Kind::MariaDb,
            Self::SqliteTable => tables::Kind::Sqlite,
        };
        let home = tables::Home::new(kind).await;
        home.run(
            "CREATE TABLE app (name {bytea|varbinary(255)|blob} PRIMARY KEY, \
             data {bytea|blob|blob}, at bigint)",
        )
        .await;
        // Not every one: others have written to other tables.
        let revisions = (0..).map(|number| 100 + 3 * number);
        let revisions: Vec<i64> = revisions.take(keys.len()).collect();
        for (key, revision) in keys.iter().zip(&revisions) {
            let insert = format!("INSERT INTO app VALUES ('{key}', '{value}', {revision})");
            home.run(&insert).await;
        }
        let url = home.table("app", "key=name&value=data&revision=at");
        let home = Home {
            url,
            _tables: Some(home),
            ..Home::at(String::new())
        };
        (home, revisions)
    }
}

async fn start_v2(keys: &[String], value: &str) -> (Home, Vec<i64>) {
    let etcd = Etcd::start_v2().await;
    let v2 = V2::of(&etcd);
    let mut revisions = Vec::new();
    for key in keys {
        let path = format!("/v2/keys{key}");
        let answer = v2.must(Method::PUT, &path, &format!("value={value}")).await;
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        revisions.push(answer["node"]["modifiedIndex"].as_i64().unwrap());
    }
    let home = Home {
        url: etcd.v2_url(),
        _etcd: Some(etcd),
        ..Home::at(String::new())
    };
    (home, revisions)
}

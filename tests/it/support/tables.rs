//! Tables that an application has made itself, in every database.

use std::sync::Arc;

use segue::store::{OldStore, StoreError, open_old};
use segue::types::Reserved;
use tempfile::TempDir;

use super::{mariadb, postgres};

/// In which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// In PostgreSQL.
    Postgres,
    /// In MariaDB.
    MariaDb,
    /// In a SQLite file.
    Sqlite,
}

use Kind::{MariaDb, Postgres, Sqlite};

/// All databases.
pub const ALL: [Kind; 3] = [Postgres, MariaDb, Sqlite];

/// A database for the tables of one test.
pub struct Home {
    /// Which one it is.
    pub kind: Kind,
    url: String,
    dir: TempDir,
}

impl Home {
    /// A new one.
    pub async fn new(kind: Kind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = match kind {
            Postgres => {
                let url = postgres::schema().await;
                let schema = postgres::schema_of(&url);
                postgres::run(&url, &format!("CREATE SCHEMA \"{schema}\"")).await;
                url
            }
            MariaDb => mariadb::database().await,
            Sqlite => format!("sqlite:{}", dir.path().join("app.db").display()),
        };
        Self { kind, url, dir }
    }

    /// One on a MariaDB of the test's own.
    pub async fn on(server: &mariadb::MariaDb) -> Self {
        Self {
            kind: MariaDb,
            url: server.database().await,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// Runs statements. Of `{pg|maria|lite}` in them the database's own word is taken.
    pub async fn run(&self, text: &str) {
        let text = self.spelt(text);
        match self.kind {
            Postgres => drop(postgres::run(&self.url, &text).await),
            MariaDb => {
                for statement in text.split(";\n") {
                    mariadb::run(&self.url, statement).await;
                }
            }
            Sqlite => {
                let file = self.dir.path().join("app.db");
                let conn = rusqlite::Connection::open(file).unwrap();
                conn.execute_batch(&text).unwrap();
            }
        }
    }

    /// How many statements there sleep, in a server.
    pub async fn asleep(&self) -> usize {
        let rows = match self.kind {
            Postgres => {
                let schema = postgres::schema_of(&self.url);
                let asleep = format!(
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' \
                     AND query LIKE '%{schema}%'"
                );
                postgres::run(&self.url, &asleep).await
            }
            MariaDb => {
                let asleep = "SELECT CAST(count(*) AS CHAR) FROM information_schema.processlist \
                              WHERE db = DATABASE() AND state = 'User sleep'";
                mariadb::run(&self.url, asleep).await
            }
            Sqlite => panic!("nothing sleeps in a file"),
        };
        rows[0].parse().unwrap()
    }

    /// Where a file of this name can be.
    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn spelt(&self, text: &str) -> String {
        let mut spelt = String::new();
        for (at, part) in text.split(['{', '}']).enumerate() {
            let words: Vec<&str> = part.split('|').collect();
            spelt.push_str(match (at % 2, self.kind) {
                (0, _) => part,
                (_, Postgres) => words[0],
                (_, MariaDb) => words[1],
                (_, Sqlite) => words[2],
            });
        }
        spelt
    }

    /// The URL of a table, with these parameters behind its name.
    pub fn table(&self, name: &str, parameters: &str) -> String {
        let (base, _) = self.url.split_once('?').unwrap_or((&self.url, ""));
        let name = match self.kind {
            Postgres => format!("{}.{name}", postgres::schema_of(&self.url)),
            MariaDb | Sqlite => name.to_owned(),
        };
        format!("{base}?table={name}&{parameters}")
    }

    /// A table as an old store.
    pub async fn open(&self, name: &str, parameters: &str) -> Arc<dyn OldStore> {
        match self.try_open(name, parameters).await {
            Ok(store) => store,
            Err(error) => panic!("{:?}: {error}", self.kind),
        }
    }

    /// The same, if it can be one.
    pub async fn try_open(
        &self,
        name: &str,
        parameters: &str,
    ) -> Result<Arc<dyn OldStore>, StoreError> {
        let url = self.table(name, parameters).parse().unwrap();
        open_old(&url, &Reserved::default()).await
    }
}

//! The stores that a migration begins with.

use http::Method;

use crate::support::segue::Segue;
use crate::support::stores::{Kind, Running};
use crate::support::{Etcd, V2, tables};

/// One that has pairs and no history, and cannot be gone back to: an old store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bare {
    Etcd2,
    PostgresTable,
    MariadbTable,
    SqliteTable,
}

/// One with keys in it, that runs for as long as this.
pub(super) struct Filled {
    pub(super) url: String,
    /// Of each key.
    pub(super) revisions: Vec<i64>,
    _server: (Option<Etcd>, Option<tables::Home>),
}

/// As an old store, which has to be a store already, where it cannot be empty.
pub(super) async fn start_old(kind: Kind) -> Running {
    let store = kind.start().await;
    if kind != Kind::Etcd {
        drop(Segue::start(["--new", &store.url]).await);
    }
    store
}

impl Bare {
    /// With these keys, in this order.
    pub(super) async fn start(self, keys: &[String], value: &str) -> Filled {
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
        Filled {
            url: home.table("app", "key=name&value=data&revision=at"),
            revisions,
            _server: (None, Some(home)),
        }
    }
}

async fn start_v2(keys: &[String], value: &str) -> Filled {
    let etcd = Etcd::start_v2().await;
    let v2 = V2::of(&etcd);
    let mut revisions = Vec::new();
    for key in keys {
        let path = format!("/v2/keys{key}");
        let answer = v2.must(Method::PUT, &path, &format!("value={value}")).await;
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        revisions.push(answer["node"]["modifiedIndex"].as_i64().unwrap());
    }
    Filled {
        url: etcd.v2_url(),
        revisions,
        _server: (Some(etcd), None),
    }
}

//! The stores under the contract, each with one line, and the overlay over pairs of them.

use std::future::{Ready, ready};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use segue::overlay::{Overlay, WithPast};
use segue::store::open::open_new;
use segue::store::{AsOld, Guard, NewStore, OldStore, Store};
use segue::types::Reserved;
use tempfile::TempDir;

use super::dsl::{guard, line, set_line};
use super::{Fixture, NewFixture, new_store_contract, old_store_contract, store_contract};
use crate::support::{Etcd, mariadb::database, postgres::schema};

/// A kind of store.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Memory,
    Sqlite,
    Postgres,
    MariaDb,
    Etcd,
}

store_contract!(
    memory,
    crate::contract::stores::plain(crate::contract::stores::Kind::Memory)
);
store_contract!(
    sqlite,
    crate::contract::stores::plain(crate::contract::stores::Kind::Sqlite)
);
store_contract!(
    postgres,
    crate::contract::stores::plain(crate::contract::stores::Kind::Postgres)
);
store_contract!(
    mariadb,
    crate::contract::stores::plain(crate::contract::stores::Kind::MariaDb)
);
store_contract!(
    etcd,
    crate::contract::stores::plain(crate::contract::stores::Kind::Etcd)
);
store_contract!(
    unfenced_memory,
    crate::contract::stores::unfenced(crate::contract::stores::Kind::Memory)
);
store_contract!(
    unfenced_sqlite,
    crate::contract::stores::unfenced(crate::contract::stores::Kind::Sqlite)
);
store_contract!(
    unfenced_etcd,
    crate::contract::stores::unfenced(crate::contract::stores::Kind::Etcd)
);
store_contract!(
    claiming_memory,
    crate::contract::stores::claiming(crate::contract::stores::Kind::Memory)
);
store_contract!(
    claiming_sqlite,
    crate::contract::stores::claiming(crate::contract::stores::Kind::Sqlite)
);
store_contract!(
    claiming_postgres,
    crate::contract::stores::claiming(crate::contract::stores::Kind::Postgres)
);
store_contract!(
    claiming_mariadb,
    crate::contract::stores::claiming(crate::contract::stores::Kind::MariaDb)
);
store_contract!(
    claiming_etcd,
    crate::contract::stores::claiming(crate::contract::stores::Kind::Etcd)
);
store_contract!(
    overlay_memory_memory,
    crate::contract::stores::overlay(
        crate::contract::stores::Kind::Memory,
        crate::contract::stores::Kind::Memory
    )
);
store_contract!(
    overlay_sqlite_sqlite,
    crate::contract::stores::overlay(
        crate::contract::stores::Kind::Sqlite,
        crate::contract::stores::Kind::Sqlite
    )
);
store_contract!(
    overlay_sqlite_etcd,
    crate::contract::stores::overlay(
        crate::contract::stores::Kind::Sqlite,
        crate::contract::stores::Kind::Etcd
    )
);
store_contract!(
    overlay_postgres_postgres,
    crate::contract::stores::overlay(
        crate::contract::stores::Kind::Postgres,
        crate::contract::stores::Kind::Postgres
    )
);
store_contract!(
    overlay_postgres_etcd,
    crate::contract::stores::overlay(
        crate::contract::stores::Kind::Postgres,
        crate::contract::stores::Kind::Etcd
    )
);
store_contract!(
    overlay_etcd_postgres,
    crate::contract::stores::overlay(
        crate::contract::stores::Kind::Etcd,
        crate::contract::stores::Kind::Postgres
    )
);
store_contract!(
    overlay_etcd_sqlite,
    crate::contract::stores::overlay(
        crate::contract::stores::Kind::Etcd,
        crate::contract::stores::Kind::Sqlite
    )
);
store_contract!(
    overlay_sqlite_mariadb,
    crate::contract::stores::overlay(
        crate::contract::stores::Kind::Sqlite,
        crate::contract::stores::Kind::MariaDb
    )
);
store_contract!(
    overlay_mariadb_etcd,
    crate::contract::stores::overlay(
        crate::contract::stores::Kind::MariaDb,
        crate::contract::stores::Kind::Etcd
    )
);
store_contract!(
    overlay_etcd_mariadb,
    crate::contract::stores::overlay(
        crate::contract::stores::Kind::Etcd,
        crate::contract::stores::Kind::MariaDb
    )
);
new_store_contract!(
    new_memory,
    crate::contract::stores::claiming(crate::contract::stores::Kind::Memory)
);
new_store_contract!(
    new_sqlite,
    crate::contract::stores::claiming(crate::contract::stores::Kind::Sqlite)
);
new_store_contract!(
    new_postgres,
    crate::contract::stores::claiming(crate::contract::stores::Kind::Postgres)
);
new_store_contract!(
    new_mariadb,
    crate::contract::stores::claiming(crate::contract::stores::Kind::MariaDb)
);
new_store_contract!(
    new_etcd,
    crate::contract::stores::claiming(crate::contract::stores::Kind::Etcd)
);

old_store_contract!(
    old_memory,
    crate::contract::stores::unfenced(crate::contract::stores::Kind::Memory)
);
old_store_contract!(
    old_sqlite,
    crate::contract::stores::unfenced(crate::contract::stores::Kind::Sqlite)
);
old_store_contract!(
    old_postgres,
    crate::contract::stores::unfenced(crate::contract::stores::Kind::Postgres)
);
old_store_contract!(
    old_mariadb,
    crate::contract::stores::unfenced(crate::contract::stores::Kind::MariaDb)
);
old_store_contract!(
    old_etcd,
    crate::contract::stores::claiming(crate::contract::stores::Kind::Etcd)
);

/// Stores without a migration.
pub fn plain(kind: Kind) -> Ready<Fixed> {
    ready(Fixed::new(kind, Shape::Plain))
}

/// Stores that serve until they are fenced.
pub fn unfenced(kind: Kind) -> Ready<Fixed> {
    ready(Fixed::new(kind, Shape::Unfenced))
}

/// Stores with a line that leaves claims.
pub fn claiming(kind: Kind) -> Ready<Fixed> {
    ready(Fixed::new(kind, Shape::Claiming))
}

/// The overlay in the migration phase, over an old store that was used and is empty.
pub fn overlay(old: Kind, new: Kind) -> Ready<Fixed> {
    ready(Fixed::new(new, Shape::Over(old)))
}

pub struct Fixed {
    kind: Kind,
    shape: Shape,
    dir: TempDir,
    servers: Mutex<Vec<Etcd>>,
}

enum Shape {
    Plain,
    Unfenced,
    Claiming,
    Over(Kind),
}

impl Fixed {
    fn new(kind: Kind, shape: Shape) -> Self {
        Self {
            kind,
            shape,
            dir: tempfile::tempdir().unwrap(),
            servers: Mutex::default(),
        }
    }

    async fn open(&self, kind: Kind) -> Arc<dyn NewStore> {
        let url = match kind {
            Kind::Memory => "memory:".to_owned(),
            Kind::Sqlite => {
                let name = format!("{:016x}.db", rand::random::<u64>());
                format!("sqlite:{}", self.dir.path().join(name).display())
            }
            Kind::Postgres => schema().await,
            Kind::MariaDb => database().await,
            Kind::Etcd => {
                let server = Etcd::start().await;
                let url = server.url();
                self.servers.lock().unwrap().push(server);
                url
            }
        };
        let opened = open_new(&url.parse().unwrap(), &Reserved::default()).await;
        opened.unwrap()
    }
}

#[async_trait(?Send)]
impl Fixture for Fixed {
    async fn store(&self) -> Arc<dyn Store> {
        let new = self.open(self.kind).await;
        let old = match self.shape {
            Shape::Plain => return new.guarded(Guard::None),
            Shape::Unfenced => return new.guarded(Guard::Unfenced),
            Shape::Claiming => {
                set_line(&*new, Some(line(1))).await;
                return new.guarded(guard(1));
            }
            Shape::Over(kind) => self.open(kind).await,
        };
        let source = old.guarded(Guard::None);
        for value in ["1", "2"] {
            let put = segue::types::Put::new("a", value);
            source.put(put).await.unwrap();
        }
        let delete = segue::types::Delete {
            keys: segue::types::KeyRange::all(),
            prev_kv: false,
        };
        let base = source.delete(delete).await.unwrap().revision;
        let line = segue::store::Line { base, ..line(1) };
        set_line(&*new, Some(line)).await;
        let old: Arc<dyn OldStore> = Arc::new(AsOld::of(old).await.unwrap());
        let new = new.guarded(guard(1));
        let overlay = Overlay::new(old.clone(), new, Reserved::default());
        let reserved = Reserved::default();
        Arc::new(WithPast::new(Arc::new(overlay), old, base, reserved, false))
    }

    fn gapless(&self) -> bool {
        self.kind != Kind::Etcd || matches!(self.shape, Shape::Plain | Shape::Unfenced)
    }
}

#[async_trait(?Send)]
impl NewFixture for Fixed {
    async fn new_store(&self) -> Arc<dyn NewStore> {
        self.open(self.kind).await
    }

    fn ends_leases_by_itself(&self) -> bool {
        self.kind == Kind::Etcd
    }
}

//! The SQL engine on SQLite.

use super::{Arc, Fixture, NewFixture, NewStore, Store, async_trait};
use segue::store::sql::{Options, sqlite};

pub struct Sqlite {
    dir: tempfile::TempDir,
}

#[async_trait]
impl Fixture for Sqlite {
    async fn store(&self) -> Arc<dyn Store> {
        self.open().await
    }
}

#[async_trait]
impl NewFixture for Sqlite {
    async fn new_store(&self) -> Arc<dyn NewStore> {
        self.open().await
    }
}

impl Sqlite {
    pub fn fixture() -> std::future::Ready<Self> {
        let dir = tempfile::tempdir().unwrap();
        std::future::ready(Self { dir })
    }

    /// Each store has a file of its own.
    async fn open(&self) -> Arc<sqlite::SqliteStore> {
        let file = self.dir.path().join(format!("{:x}", rand::random::<u64>()));
        sqlite::open(file, Options::default()).await.unwrap()
    }
}

super::store_contract!(kv, crate::contract::sqlite::Sqlite::fixture());
super::new_store_contract!(new, crate::contract::sqlite::Sqlite::fixture());

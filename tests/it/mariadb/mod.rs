//! What only MySQL and MariaDB can do to a store: starters that meet, connections that break, servers
//! and accounts that are not what they have to be.

mod doors;
mod leased;
mod trouble;

use std::sync::Arc;

use segue::store::sql::mysql::{self, MysqlStore};
use segue::store::sql::{self, Options};
use segue::store::{Result, StoreUrl};

/// Opens the store at `url` as one process does.
async fn open_with(url: &str, options: Options) -> Result<Arc<MysqlStore>> {
    let StoreUrl::Mysql(database) = url.parse().unwrap() else {
        panic!("{url} is the URL of something else");
    };
    mysql::open(&database, options).await
}

async fn open(url: &str) -> Arc<MysqlStore> {
    open_with(url, sql::Options::default()).await.unwrap()
}

/// Why the store at `url` cannot be opened.
async fn complaint(url: &str, options: Options) -> String {
    let opened = open_with(url, options).await;
    opened.err().map_or_else(String::new, |err| err.to_string())
}

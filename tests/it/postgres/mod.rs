//! What only PostgreSQL can do to a store: starters that meet, connections that break, servers and
//! accounts that are not what they have to be.

mod doors;
mod trouble;

use std::sync::Arc;

use segue::store::sql::Options;
use segue::store::sql::postgres::{self, PostgresStore};
use segue::store::{Result, StoreUrl};

/// Opens the store at `url` as one process does.
async fn open_with(url: &str, options: Options) -> Result<Arc<PostgresStore>> {
    let StoreUrl::Postgres(database) = url.parse().unwrap() else {
        panic!("{url} is the URL of something else");
    };
    postgres::open(&database, options).await
}

async fn open(url: &str) -> Arc<PostgresStore> {
    open_with(url, Options::default()).await.unwrap()
}

/// Why the store at `url` cannot be opened.
async fn complaint(url: &str, options: Options) -> String {
    let error = open_with(url, options).await.err();
    error.expect("it is not opened").to_string()
}

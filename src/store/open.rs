//! From a URL to a store: the one place that knows every kind.

use std::sync::Arc;

use super::etcd2::Etcd2;
use super::etcd3::{Etcd3, OldEtcd3, REPLAY_OVERHEAD_BYTES};
use super::memory::{self, Memory};
use super::old::AsOld;
use super::sql;
use super::table::PlainTable;
use super::{FENCE, NewStore, OldStore, RequestError, Result, StoreError, StoreUrl};
use crate::types::Reserved;

/// What holds for a store, whatever kind it is of.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// The keys that belong to Segue.
    pub reserved: Reserved,
    /// A database server is taken that is set to lose commits in a crash.
    pub allow_lossy: bool,
    /// As the old store, it serves clients until it is fenced, and again once it has a line behind the
    /// fence, and ends their leases for so long. Not, if nothing is to be written there.
    pub serves: bool,
}

/// Opens the store at `url` for a migration to go to; see [`open_new_on`].
pub async fn open_new(url: &StoreUrl, reserved: &Reserved) -> Result<Arc<dyn NewStore>> {
    open_new_on(url, &Terms::of(reserved)).await
}

/// Opens the store at `url` for a migration to come from; see [`open_old_on`].
pub async fn open_old(url: &StoreUrl, reserved: &Reserved) -> Result<Arc<dyn OldStore>> {
    open_old_on(url, &Terms::of(reserved)).await
}

/// Opens the store at `url` for a migration to go to. What it lives in, a file or tables, is created
/// if need be.
pub async fn open_new_on(url: &StoreUrl, terms: &Terms) -> Result<Arc<dyn NewStore>> {
    check_account(url)?;
    let reserved = &terms.reserved;
    let options = terms.options();
    match url {
        StoreUrl::Memory => Ok(Arc::new(Memory::with(memory::Settings {
            reserved: reserved.clone(),
            ..memory::Settings::default()
        }))),
        StoreUrl::Etcd2(_) => Err(unfit(url, ETCD2_UNFIT)),
        StoreUrl::Sqlite(path) => Ok(sql::sqlite::open(path, options).await?),
        StoreUrl::Etcd(cluster) => Ok(Arc::new(Etcd3::open(cluster, reserved.clone()).await?)),
        StoreUrl::Postgres(database) => Ok(sql::postgres::open(database, options).await?),
        StoreUrl::Mysql(database) => Ok(sql::mysql::open(database, options).await?),
        StoreUrl::Table(_) => Err(unfit(url, TABLE_UNFIT)),
    }
}

/// Refuses a new store of a kind that cannot be one, which is known without asking any store.
pub fn check_new(url: &StoreUrl) -> Result<()> {
    match url {
        StoreUrl::Etcd2(_) => Err(unfit(url, ETCD2_UNFIT)),
        StoreUrl::Table(_) => Err(unfit(url, TABLE_UNFIT)),
        _ => Ok(()),
    }
}

/// Most bytes of a pair, its key counted twice, that can be replayed into the store at `url` where a request
/// may have so many; nothing, if it takes all that fits into a request of a client.
#[must_use]
pub fn replayed_bytes_max(url: &StoreUrl, request_bytes: usize) -> Option<usize> {
    let is_etcd = matches!(url, StoreUrl::Etcd(_));
    is_etcd.then(|| request_bytes.saturating_sub(REPLAY_OVERHEAD_BYTES))
}

const ETCD2_UNFIT: &str = "the v2 API has neither transactions nor leases. Write etcd://HOST:PORT to migrate to \
                           the v3 API of etcd";
const TABLE_UNFIT: &str = "a table of an application has no room for revisions, leases and claims. Leave table= \
                           and what belongs to it out, and Segue makes tables of its own there";

fn unfit(url: &StoreUrl, why: &str) -> StoreError {
    RequestError::Unsupported(format!("{url} cannot be the new store: {why}")).into()
}

/// Opens the store at `url`, which has to be there, for a migration to come from.
pub async fn open_old_on(url: &StoreUrl, terms: &Terms) -> Result<Arc<dyn OldStore>> {
    check_account(url)?;
    let reserved = &terms.reserved;
    let options = sql::Options {
        // Leases move to the new store, which alone ends them then.
        expire_leases: terms.serves,
        create: false,
        ..terms.options()
    };
    match url {
        StoreUrl::Etcd2(cluster) => Ok(Arc::new(Etcd2::open(cluster, reserved.clone()).await?)),
        StoreUrl::Sqlite(path) if !path.exists() => Err(RequestError::Unacceptable(format!(
            "there is no file {}, so it cannot be the old store; check the path",
            path.display()
        ))
        .into()),
        StoreUrl::Sqlite(path) => as_old(sql::sqlite::open(path, options).await?, url).await,
        StoreUrl::Etcd(cluster) => {
            let store = OldEtcd3::open(cluster, reserved.clone()).await?;
            Ok(Arc::new(store))
        }
        StoreUrl::Postgres(database) => {
            as_old(sql::postgres::open(database, options).await?, url).await
        }
        StoreUrl::Mysql(database) => as_old(sql::mysql::open(database, options).await?, url).await,
        StoreUrl::Table(table) => {
            let store = PlainTable::open(table, reserved.clone()).await?;
            Ok(Arc::new(store))
        }
        StoreUrl::Memory => {
            let store = open_new(url, reserved).await?;
            Ok(Arc::new(AsOld::of(store).await?))
        }
    }
}

impl Terms {
    /// Nothing out of the ordinary.
    #[must_use]
    pub fn of(reserved: &Reserved) -> Self {
        Self {
            reserved: reserved.clone(),
            allow_lossy: false,
            serves: false,
        }
    }

    fn options(&self) -> sql::Options {
        sql::Options {
            reserved: self.reserved.clone(),
            allow_lossy: self.allow_lossy,
            ..sql::Options::default()
        }
    }
}

/// A store of ours as an old one, unless a migration to it is not completed: its keys are not all that
/// its clients see then. Behind a fence a line says that it is an old store in service again.
async fn as_old(store: Arc<dyn NewStore>, url: &StoreUrl) -> Result<Arc<dyn OldStore>> {
    if store.line().await?.is_some() && store.records(FENCE).await?.is_empty() {
        return Err(RequestError::Unacceptable(format!(
            "{url} is the new store of a migration that is not completed: complete that one first \
             (segue complete), or use the URLs the other way round"
        ))
        .into());
    }
    Ok(Arc::new(AsOld::of(store).await?))
}

/// A user without a password is told what is missing, and not that it was wrong.
fn check_account(url: &StoreUrl) -> Result<()> {
    match url.lacks_password() {
        None => Ok(()),
        Some(user) => Err(RequestError::Credentials(format!(
            "{url} names the user {user} and no password: put it into the environment variable or \
             the file for this store's password, or write USER:PASSWORD@ in the URL"
        ))
        .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn complaint_new(url: &str) -> String {
        let url = url.parse().unwrap();
        let opened = open_new(&url, &Reserved::default()).await;
        opened
            .err()
            .map_or_else(String::new, |error| error.to_string())
    }

    async fn complaint_old(url: &str) -> String {
        let url = url.parse().unwrap();
        let opened = open_old(&url, &Reserved::default()).await;
        opened
            .err()
            .map_or_else(String::new, |error| error.to_string())
    }

    #[tokio::test]
    async fn what_cannot_be_opened_is_told_why() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let empty = format!("sqlite:{}", file.path().display());
        for (complaint, hint) in [
            (complaint_new("etcd2://h:1").await, "etcd://HOST:PORT"),
            (complaint_new("etcd://root@h:1").await, "no password"),
            (complaint_old("etcd2://root:@h:1").await, "no password"),
            (
                complaint_old("sqlite:/no/such/file").await,
                "there is no file",
            ),
            (complaint_old(&empty).await, "no store that segue has made"),
            (complaint_old("etcd2://127.0.0.1:1").await, "127.0.0.1:1: "),
        ] {
            assert!(complaint.contains(hint), "{complaint:?} says not {hint:?}");
        }
    }

    #[tokio::test]
    async fn every_memory_is_another_store() {
        let reserved = Reserved::default();
        let old = open_old(&StoreUrl::Memory, &reserved).await.unwrap();
        let new = open_new(&StoreUrl::Memory, &reserved).await.unwrap();
        assert_ne!(old.identity().await, new.identity().await);
    }
}

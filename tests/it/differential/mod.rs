//! The same requests to a real etcd and to Segue: every field of every answer, every error's code
//! and text, and every event have to be the same. etcd decides what is right.
//!
//! Left out of the comparison is what differs between two etcds as well: ids in headers, the term,
//! and how much of a lease's time has passed.

pub(crate) mod ask;
mod below;
mod queues;
pub(crate) mod random;
pub(crate) mod script;
pub(crate) mod watches;

use segue::store::{Guard, Store, StoreUrl, open};
use segue::types::Reserved;
use std::sync::Arc;
use tempfile::TempDir;

use crate::support::Etcd;
use crate::support::api::Api;
use crate::support::mariadb::database;
use crate::support::postgres::schema;
use ask::{Ask, Client};

/// Every script over every store.
macro_rules! scripts {
    ($($script:ident in $module:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test]
            async fn $script() {
                super::$module::$script(super::Pair::over_memory().await).await;
            })*
        }
        mod sqlite {
            $(#[tokio::test]
            async fn $script() {
                super::$module::$script(super::Pair::over_sqlite().await).await;
            })*
        }
        mod postgres {
            $(#[tokio::test]
            async fn $script() {
                super::$module::$script(super::Pair::over_postgres().await).await;
            })*
        }
        mod mariadb {
            $(#[tokio::test]
            async fn $script() {
                super::$module::$script(super::Pair::over_mariadb().await).await;
            })*
        }
        mod etcd {
            $(#[tokio::test]
            async fn $script() {
                super::$module::$script(super::Pair::over_etcd().await).await;
            })*
        }
    };
}

scripts! {
    ranges_answer_alike in script,
    puts_and_deletes_answer_alike in script,
    comparisons_answer_alike in script,
    operations_of_a_transaction_answer_alike in script,
    one_bad_operation_spoils_a_transaction_alike in script,
    transactions_are_refused_alike in script,
    compactions_answer_alike in script,
    leases_answer_alike in script,
    watches_are_created_and_cancelled_alike in watches,
    watches_deliver_alike in watches,
    streams_without_further_requests_go_on_alike in watches,
    compacted_watches_end_alike in watches,
    large_revisions_are_split_alike_where_the_client_accepts_it in watches,
    random_requests_answer_alike in random,
}

#[tokio::test]
async fn logging_in_answers_alike() {
    let mut pair = Pair::over_memory().await;
    let request = segue::proto::etcdserverpb::AuthenticateRequest {
        name: "somebody".into(),
        password: "secret".into(),
    };
    let refused = "FailedPrecondition: etcdserver: authentication is not enabled";
    pair.expect(request, refused).await;
}

/// What etcd takes, and a store in an etcd does not.
mod without_end {
    use super::Pair;
    use super::script::writes_into_a_range_without_end_answer_alike as answers;
    use super::watches::keys_that_are_deleted_and_put_at_once_are_told_of_alike as events;

    #[tokio::test]
    async fn over_memory() {
        answers(Pair::over_memory().await).await;
        events(Pair::over_memory().await).await;
    }

    #[tokio::test]
    async fn over_sqlite() {
        answers(Pair::over_sqlite().await).await;
        events(Pair::over_sqlite().await).await;
    }

    #[tokio::test]
    async fn over_postgres() {
        answers(Pair::over_postgres().await).await;
        events(Pair::over_postgres().await).await;
    }

    #[tokio::test]
    async fn over_mariadb() {
        answers(Pair::over_mariadb().await).await;
        events(Pair::over_mariadb().await).await;
    }
}

/// Two servers that start empty and are asked the same.
pub(crate) struct Pair {
    etcd: Client,
    segue: Client,
    asked: Vec<String>,
    _etcd: Etcd,
    _api: Api,
    /// What the store behind Segue lives in.
    _home: Home,
}

/// Kept for as long as the store in it.
enum Home {
    /// Nothing: it is in memory, or on a server that all tests share.
    Elsewhere,
    Directory {
        _dir: TempDir,
    },
    Server {
        _etcd: Box<Etcd>,
    },
}

impl Pair {
    /// A fresh etcd, and Segue's API over the store at `url`, which must be empty.
    async fn over(url: &str, home: Home) -> Self {
        let url: StoreUrl = url.parse().unwrap();
        let store = open::open_new(&url, &Reserved::default()).await.unwrap();
        let store: Arc<dyn Store> = store.guarded(Guard::None);
        let (server, api) = tokio::join!(Etcd::start(), Api::start(store));
        Self {
            etcd: Client::connect(&server.endpoint()).await,
            segue: Client::connect(&api.endpoint()).await,
            asked: Vec::new(),
            _etcd: server,
            _api: api,
            _home: home,
        }
    }

    async fn over_memory() -> Self {
        Self::over("memory:", Home::Elsewhere).await
    }

    async fn over_sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("new.db").display());
        Self::over(&url, Home::Directory { _dir: dir }).await
    }

    async fn over_postgres() -> Self {
        Self::over(&schema().await, Home::Elsewhere).await
    }

    async fn over_mariadb() -> Self {
        Self::over(&database().await, Home::Elsewhere).await
    }

    async fn over_etcd() -> Self {
        let server = Etcd::start().await;
        let url = server.url();
        let home = Home::Server {
            _etcd: Box::new(server),
        };
        Self::over(&url, home).await
    }

    /// Asks both and compares. Answers with what both said.
    async fn ask(&mut self, ask: impl Into<Ask>) -> String {
        let ask = ask.into();
        let (etcd, segue) = tokio::join!(self.etcd.ask(&ask), self.segue.ask(&ask));
        self.asked.push(format!("{ask:?}\n    {etcd}"));
        if etcd != segue {
            // What came before is what one needs to understand it.
            let last = self.asked.len().saturating_sub(12);
            panic!(
                "after {} requests, the last of them\n{}\nanswered\n  etcd:  {etcd}\n  segue: {segue}",
                self.asked.len(),
                self.asked[last..].join("\n"),
            );
        }
        etcd
    }

    /// Asks both, compares, and expects a part of what both say.
    async fn expect(&mut self, ask: impl Into<Ask>, part: &str) {
        let said = self.ask(ask).await;
        assert!(said.contains(part), "{said} does not contain {part}");
    }
}

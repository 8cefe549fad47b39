//! The same requests to a real etcd and to Segue: every field of every answer, every error's code
//! and text, and every event have to be the same. etcd decides what is right.
//!
//! Left out of the comparison is what differs between two etcds as well: ids in headers, the term,
//! and how much of a lease's time has passed.

mod ask;
mod random;
mod script;
mod watches;

use std::sync::Arc;

use segue::store::Store;
use segue::store::memory::Memory;

use crate::support::Etcd;
use crate::support::api::Api;
use ask::{Ask, Client};

/// Two servers that start empty and are asked the same.
pub(crate) struct Pair {
    etcd: Client,
    segue: Client,
    asked: Vec<String>,
    _etcd: Etcd,
    _api: Api,
}

impl Pair {
    /// A fresh etcd, and Segue's API over `store`, which must be empty.
    async fn over(store: Arc<dyn Store>) -> Self {
        let (server, api) = tokio::join!(Etcd::start(), Api::start(store));
        Self {
            etcd: Client::connect(&server.endpoint()).await,
            segue: Client::connect(&api.endpoint()).await,
            asked: Vec::new(),
            _etcd: server,
            _api: api,
        }
    }

    async fn over_memory() -> Self {
        Self::over(Arc::new(Memory::new())).await
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

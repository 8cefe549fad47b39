//! Copy-ups for the sake of requests, put together: those that arrive while others are on their way go
//! in one transaction. A copy-up takes no revision that clients see and may be repeated, so unlike
//! writes of clients they can share one.

use std::collections::HashSet;

use futures_util::future::join_all;

use super::session::Session;
use crate::store::gather::Gather;
use crate::store::{Result, StoreError};
use crate::types::KeyValue;

/// Requests whose copies go together, at most.
const TOGETHER_MAX: usize = 50;

/// Copy-ups under one condition.
pub(super) type Copies = Gather<Vec<KeyValue>, Result<()>>;

pub(super) fn copies() -> Copies {
    Gather::new(TOGETHER_MAX)
}

impl Session {
    /// Copies keys up where they are unclaimed, together with those of other requests.
    pub(super) async fn copy_up_together(&self, kvs: Vec<KeyValue>) -> Result<()> {
        for kv in &kvs {
            self.view.check_key(&kv.key)?;
        }
        self.copies
            .ask(kvs, |questions| self.copy_questions(questions))
            .await
    }

    async fn copy_questions(&self, questions: Vec<Vec<KeyValue>>) -> Vec<Result<()>> {
        // Several may touch the same key. They read it in the old store, where it does not change:
        // whichever is first.
        let mut seen = HashSet::new();
        let all: Vec<KeyValue> = questions
            .iter()
            .flatten()
            .filter(|kv| seen.insert(&kv.key))
            .cloned()
            .collect();
        match self.copy_scattered(&all).await {
            // It may be the fault of one of them, which the others have nothing to do with.
            Err(StoreError::Request(_)) if questions.len() > 1 => {
                join_all(questions.iter().map(|kvs| self.copy_scattered(kvs))).await
            }
            done => vec![done; questions.len()],
        }
    }
}

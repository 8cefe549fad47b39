//! Changes as watchers see them.

use bytes::Bytes;

use super::kv::{KeyValue, Revision};

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub change: Change,
    /// The pair before it. Stores fill it in where they know it; it is left out where history
    /// was compacted, and on its way to a client that did not ask for it.
    pub prev: Option<KeyValue>,
}

/// What happened to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was written; the pair after it.
    Put(KeyValue),
    /// It was removed.
    Delete {
        /// The key.
        key: Bytes,
        /// The revision that removed it.
        revision: Revision,
    },
}

impl Event {
    /// The key that changed.
    #[must_use]
    pub fn key(&self) -> &Bytes {
        match &self.change {
            Change::Put(kv) => &kv.key,
            Change::Delete { key, .. } => key,
        }
    }

    /// About how many bytes of memory it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        const OVERHEAD_BYTES: usize = 64;
        let of = |kv: &KeyValue| kv.key.len() + kv.value.len();
        let change = match &self.change {
            Change::Put(kv) => of(kv),
            Change::Delete { key, .. } => key.len(),
        };
        OVERHEAD_BYTES + change + self.prev.as_ref().map_or(0, of)
    }

    /// The revision of the change.
    #[must_use]
    pub fn revision(&self) -> Revision {
        match &self.change {
            Change::Put(kv) => kv.mod_revision,
            Change::Delete { revision, .. } => *revision,
        }
    }
}

/// All changes of one revision (or those that a watch asked for), in the order of the transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventBatch {
    /// The revision that all of them share.
    pub revision: Revision,
    /// The changes; never empty.
    pub events: Vec<Event>,
}

impl EventBatch {
    /// About how many bytes of memory it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.events.iter().map(Event::bytes).sum()
    }
}

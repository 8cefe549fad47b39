//! The one line of changes that a history tells of, and the state at each revision of it.

use std::collections::BTreeMap;

use super::{Event, Pair};

/// The states of every key over the revisions.
#[derive(Default)]
pub struct States {
    /// By key: revisions at which it changed, and what it was from then on.
    keys: BTreeMap<String, Vec<(i64, Option<Pair>)>>,
}

impl States {
    /// The states that follow from the initial ones by these changes, which are in order.
    pub fn new<'a>(
        base: i64,
        initial: &[Pair],
        changes: impl IntoIterator<Item = &'a Event>,
    ) -> Self {
        let mut states = Self::default();
        for pair in initial {
            let at = (base, Some(pair.clone()));
            states.keys.entry(pair.key.clone()).or_default().push(at);
        }
        for event in changes {
            let at = (event.revision, event.pair.clone());
            states.keys.entry(event.key.clone()).or_default().push(at);
        }
        states
    }

    /// The pair at `revision`, if the key existed then.
    pub fn at(&self, key: &str, revision: i64) -> Option<&Pair> {
        let changes = self.keys.get(key)?;
        let behind = changes.partition_point(|(at, _)| *at <= revision);
        changes.get(behind.checked_sub(1)?)?.1.as_ref()
    }

    /// All pairs whose keys begin with `prefix` at `revision`, in order.
    pub fn list(&self, prefix: &str, revision: i64) -> Vec<&Pair> {
        self.keys
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter_map(|(key, _)| self.at(key, revision))
            .collect()
    }

    /// Whether the key, if it did not exist at `revision`, had been deleted before.
    pub fn was_deleted(&self, key: &str, revision: i64) -> bool {
        self.at(key, revision).is_none()
            && self
                .keys
                .get(key)
                .is_some_and(|changes| changes[0].0 <= revision)
    }
}

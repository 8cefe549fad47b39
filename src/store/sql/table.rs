//! Prefetched rows, as the evaluation of requests looks at them.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;

use super::backend::{Lease, Past, Row};
use crate::store::eval;
use crate::types::{KeyRange, KeyValue, LeaseId, Revision};

/// The rows under a batch. What was not fetched is not asked for.
pub(super) struct Table {
    rows: BTreeMap<Bytes, Row>,
    claimed: HashSet<Bytes>,
    past: Vec<Past>,
    leases: HashSet<LeaseId>,
}

impl Table {
    pub(super) fn new(
        rows: Vec<Row>,
        claimed: Vec<Bytes>,
        past: Vec<Past>,
        leases: &[Lease],
    ) -> Self {
        Self {
            rows: rows
                .into_iter()
                .map(|row| (row.kv.key.clone(), row))
                .collect(),
            claimed: claimed.into_iter().collect(),
            past,
            leases: leases.iter().map(|lease| lease.id).collect(),
        }
    }

    /// The row of a key, live or whiteout.
    pub(super) fn row(&self, key: &[u8]) -> Option<&Row> {
        self.rows.get(key)
    }
}

impl eval::Rows for Table {
    fn get(&self, key: &[u8]) -> Option<&KeyValue> {
        self.row(key).filter(|row| row.live).map(|row| &row.kv)
    }

    fn range<'a>(&'a self, keys: &KeyRange) -> Box<dyn Iterator<Item = &'a KeyValue> + 'a> {
        let rows = self.rows.range::<[u8], _>(keys.bounds());
        Box::new(rows.filter(|(_, row)| row.live).map(|(_, row)| &row.kv))
    }

    fn past(&self, keys: &KeyRange, at: Revision) -> Vec<KeyValue> {
        let found = self
            .past
            .iter()
            .find(|past| past.at == at && past.keys == *keys);
        found.map(|past| past.kvs.clone()).unwrap_or_default()
    }

    fn is_claimed(&self, key: &[u8]) -> bool {
        self.rows.contains_key(key) || self.claimed.contains(key)
    }

    fn has_lease(&self, id: LeaseId) -> bool {
        self.leases.contains(&id)
    }

    fn attached(&self, id: LeaseId) -> Vec<Bytes> {
        let rows = self.rows.values();
        let attached = rows.filter(|row| row.live && row.kv.lease == id);
        attached.map(|row| row.kv.key.clone()).collect()
    }
}

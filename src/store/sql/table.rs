//! Prefetched rows, as the evaluation of requests looks at them.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;

use super::backend::{Lease, Over, Past, Placed, Removed, Row, Written};
use crate::store::eval;
use crate::types::{KeyRange, KeyValue, LeaseId, Revision};

/// The rows under a batch. What was not fetched is not asked for.
pub(super) struct Table {
    rows: BTreeMap<Bytes, Placed>,
    claimed: HashSet<Bytes>,
    past: Vec<Past>,
    leases: HashSet<LeaseId>,
    /// The live keys among the rows that have a lease.
    attached: HashMap<LeaseId, Vec<Bytes>>,
}

impl Table {
    pub(super) fn new(
        rows: Vec<Placed>,
        claimed: Vec<Bytes>,
        past: Vec<Past>,
        leases: &[Lease],
    ) -> Self {
        let rows: BTreeMap<_, _> = rows
            .into_iter()
            .map(|found| (found.row.kv.key.clone(), found))
            .collect();
        let mut attached = HashMap::<_, Vec<_>>::new();
        for Placed { row, .. } in rows.values() {
            if row.live && row.kv.lease.is_some() {
                let keys = attached.entry(row.kv.lease).or_default();
                keys.push(row.kv.key.clone());
            }
        }
        Self {
            rows,
            claimed: claimed.into_iter().collect(),
            past,
            leases: leases.iter().map(|lease| lease.id).collect(),
            attached,
        }
    }

    /// The row of a key, live or whiteout.
    pub(super) fn row(&self, key: &[u8]) -> Option<&Row> {
        self.rows.get(key).map(|found| &found.row)
    }

    /// A row that is to be written, over the one that its key has.
    pub(super) fn write(&self, row: Row) -> Written {
        let key = &row.kv.key;
        let over = match self.rows.get(key) {
            Some(found) => Over::Row {
                place: found.place,
                lease: Some(found.row.kv.lease),
            },
            None if self.claimed.contains(key) => Over::Row {
                place: None,
                lease: None,
            },
            None => Over::Nothing,
        };
        Written { row, over }
    }

    /// The key's row, which is to go, if it has one.
    pub(super) fn remove(&self, key: &Bytes) -> Option<Removed> {
        let found = self.rows.get(key)?;
        Some(Removed {
            key: key.clone(),
            place: found.place,
            lease: found.row.kv.lease,
        })
    }
}

impl eval::Rows for Table {
    fn get(&self, key: &[u8]) -> Option<&KeyValue> {
        self.row(key).filter(|row| row.live).map(|row| &row.kv)
    }

    fn range<'a>(&'a self, keys: &KeyRange) -> Box<dyn Iterator<Item = &'a KeyValue> + 'a> {
        let rows = self.rows.range::<[u8], _>(keys.bounds());
        let rows = rows.map(|(_, found)| &found.row);
        Box::new(rows.filter(|row| row.live).map(|row| &row.kv))
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
        self.attached.get(&id).cloned().unwrap_or_default()
    }
}

//! The tree of nodes: one node, or the children of one directory.

use std::collections::HashSet;
use std::sync::{PoisonError, RwLock};

use bytes::Bytes;

use super::http::Http;
use super::key;
use super::node::{Child, parse_directory, parse_node};
use crate::store::url::Cluster;
use crate::store::{Result, StoreError};
use crate::types::KeyRange;

/// A tree of nodes.
pub(super) struct Tree {
    http: Http,
    /// Directories that were seen to have a time to live, by prefix. A single node does not tell
    /// whether one above it has.
    expiring: RwLock<HashSet<Bytes>>,
}

/// What a directory holds.
pub(super) struct Listing {
    /// Its children that can have to do with the range that was asked for, in order.
    pub(super) children: Vec<Child>,
    /// Bytes that they take up in memory.
    pub(super) weight: usize,
}

impl Tree {
    /// Finds the cluster.
    pub(super) async fn open(cluster: &Cluster) -> Result<Self> {
        Ok(Self {
            http: Http::open(cluster).await?,
            expiring: RwLock::default(),
        })
    }

    /// The way to the cluster.
    pub(super) fn http(&self) -> &Http {
        &self.http
    }

    /// The node at `path`.
    pub(super) async fn node(&self, path: &str) -> Result<Option<Child>> {
        let Some(body) = self.http.get(path).await? else {
            return Ok(None);
        };
        // A single pair is asked for its lease, not for how long that has left.
        let dir_ttl_s = self.expires_above(path.as_bytes()).then_some(i64::MAX);
        let node = parse_node(&body, dir_ttl_s).map_err(|error| broken(path, &error))?;
        Ok(Some(node))
    }

    /// The children of the directory whose keys begin with `prefix`, as far as they or keys below
    /// them can be in `keys`. A directory that is gone has none.
    pub(super) async fn children(
        &self,
        prefix: &Bytes,
        dir_ttl_s: Option<i64>,
        keys: &KeyRange,
    ) -> Result<Listing> {
        let mut listing = Listing {
            children: Vec::new(),
            weight: 0,
        };
        let Some(path) = key::directory(prefix) else {
            return Ok(listing);
        };
        let Some(body) = self.http.get(path).await? else {
            return Ok(listing);
        };
        let dir_ttl_s =
            dir_ttl_s.or_else(|| self.expires_above(path.as_bytes()).then_some(i64::MAX));
        listing.children =
            parse_directory(&body, dir_ttl_s).map_err(|error| broken(path, &error))?;
        self.note_expiring(&listing.children);
        listing.children.retain(|child| concerns(child, keys));
        listing.weight = listing.children.iter().map(Child::weight).sum();
        Ok(listing)
    }

    /// Whether a directory above `path` has a time to live, as far as is known.
    fn expires_above(&self, path: &[u8]) -> bool {
        let expiring = self.expiring.read().unwrap_or_else(PoisonError::into_inner);
        !expiring.is_empty()
            && path
                .iter()
                .enumerate()
                .filter(|(_, byte)| **byte == b'/')
                .any(|(at, _)| expiring.contains(&path[..=at]))
    }

    fn note_expiring(&self, children: &[Child]) {
        for child in children {
            let Child::Dir { prefix, ttl_s } = child else {
                continue;
            };
            let expiring = self.expiring.read().unwrap_or_else(PoisonError::into_inner);
            if ttl_s.is_some() == expiring.contains(prefix) {
                continue;
            }
            drop(expiring);
            let expiring = self.expiring.write();
            let mut expiring = expiring.unwrap_or_else(PoisonError::into_inner);
            if ttl_s.is_some() {
                expiring.insert(prefix.clone());
            } else {
                expiring.remove(prefix);
            }
        }
    }
}

fn concerns(child: &Child, keys: &KeyRange) -> bool {
    match child {
        Child::Pair { kv, .. } => keys.contains(&kv.key),
        Child::Dir { prefix, .. } => keys.intersect(&KeyRange::prefix(prefix.clone())).is_some(),
        Child::Reject { key, .. } => keys.contains(key),
    }
}

fn broken(path: &str, error: &serde_json::Error) -> StoreError {
    StoreError::Broken(format!(
        "the old store (etcd v2) answers for {path} what is not a node: {error}"
    ))
}

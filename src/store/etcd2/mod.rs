//! etcd over its v2 HTTP keys API, as an old store.
//!
//! How a tree of nodes becomes a line of pairs:
//!
//! - The file `/a/b` is the key `/a/b`. Directories are no keys; an empty one leaves nothing behind.
//! - `createdIndex` and `modifiedIndex` are the create and mod revision, and the version is 1, for
//!   v2 counts no changes. `X-Etcd-Index` is the store's revision.
//! - A key with a time to live, its own or that of a directory above it, has a lease of its own,
//!   whose number follows from its `createdIndex`.
//! - Hidden nodes (a name that begins with `_`, and everything below) are listed by no directory,
//!   so that they can neither be found nor counted. They are not shown at all, not even when named:
//!   what a read shows before the switch has to be there after it.
//! - v2 keeps any bytes but answers in JSON, where bytes that are not UTF-8 cannot be told any more.
//!   Such pairs are rejects: never copied in a shape that they did not have.
//!
//! The API knows no pages and no snapshot of more than one directory. A directory is read as a
//! whole, one at a time and some ahead, and never the tree at once. All reads go through a quorum.

mod census;
mod foreign;
mod http;
mod key;
mod node;
mod tree;
mod walk;

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::Mutex;

use super::foreign::{Bookmark, ForeignChanges};
use super::url::Cluster;
use super::{OldLease, OldStore, Page, PageSize, Result};
use crate::types::{Content, KeyRange, KeyValue, Reserved, Revision};

use census::Census;
use node::Child;
use tree::Tree;
use walk::{Parked, Walk};

/// Point reads in flight: as many as etcd merges into a few writes of its log, through which
/// quorum reads go.
const READS: usize = 32;

/// A page ends after this many rejects, once it has a pair that the next one can go on from.
const PAGE_REJECTS: usize = 1000;

/// An etcd cluster, seen through the v2 keys API.
pub struct Etcd2 {
    tree: Arc<Tree>,
    reserved: Reserved,
    /// Walks that stopped at the end of a page and can go on from there.
    parked: Parked,
    census: Mutex<Option<Census>>,
}

impl Etcd2 {
    /// Finds the cluster and checks that it serves the v2 keys API to this account.
    ///
    /// # Errors
    /// `Unavailable` where no host answers, `Credentials` and `Unsupported` where the API is
    /// closed to us or switched off.
    pub async fn open(cluster: &Cluster, reserved: Reserved) -> Result<Self> {
        Ok(Self {
            tree: Arc::new(Tree::open(cluster).await?),
            reserved,
            parked: Parked::default(),
            census: Mutex::new(None),
        })
    }

    async fn get_one(&self, key: Bytes) -> Result<Option<KeyValue>> {
        if !self.shows(&key) {
            return Ok(None);
        }
        let Some(path) = key::path(&key) else {
            return Ok(None);
        };
        match self.tree.node(path).await? {
            Some(Child::Pair { kv, .. }) => Ok(Some(kv)),
            Some(Child::Reject { key, reason }) => Err(super::StoreError::Broken(format!(
                "the old store's key {} cannot be read: {reason}",
                String::from_utf8_lossy(&key)
            ))),
            Some(Child::Dir { .. }) | None => Ok(None),
        }
    }

    fn shows(&self, key: &[u8]) -> bool {
        !self.reserved.contains(key)
    }

    /// Goes through `keys` and shows each child to `see`.
    async fn walk(&self, keys: KeyRange, mut see: impl FnMut(&Child)) -> Result<()> {
        let mut walk = Walk::new(self.tree.clone(), keys);
        while let Some(child) = walk.next().await? {
            if self.shows(child.key()) {
                see(&child);
            }
        }
        Ok(())
    }

    /// A page of what is `shown`.
    async fn page(
        &self,
        keys: KeyRange,
        size: PageSize,
        content: Content,
        shown: impl Fn(&[u8]) -> bool + Send + Sync,
    ) -> Result<Page> {
        let mut page = Page::default();
        if content == Content::CountOnly || keys.is_empty() {
            return Ok(page);
        }
        let mut walk = self
            .parked
            .take(&keys)
            .unwrap_or_else(|| Walk::new(self.tree.clone(), keys));
        let mut bytes = 0;
        while page.kvs.len() < size.pairs.max(1)
            && bytes < size.bytes.max(1)
            && (page.rejects.len() < PAGE_REJECTS || page.kvs.is_empty())
        {
            match walk.next().await? {
                Some(child) if !shown(child.key()) => {}
                Some(Child::Pair { mut kv, .. }) => {
                    if content == Content::KeysOnly {
                        kv.value = Bytes::new();
                    }
                    bytes += kv.weight();
                    page.kvs.push(kv);
                }
                Some(Child::Reject { key, reason }) => page.rejects.push((key, reason)),
                Some(Child::Dir { .. }) => {}
                None => return Ok(page),
            }
        }
        if let Some(last) = page.kvs.last() {
            page.more = !walk.is_done();
            self.parked.put(&last.key, walk);
        }
        Ok(page)
    }
}

#[async_trait]
impl OldStore for Etcd2 {
    async fn identity(&self) -> Result<String> {
        // Not the identity of the same cluster over the v3 API: the two hold different keys.
        Ok(format!("etcd-v2/{}", self.tree.http().cluster_id()))
    }

    async fn revision(&self) -> Result<Revision> {
        self.tree.http().index().await
    }

    async fn get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<KeyValue>>> {
        stream::iter(keys)
            .map(|key| self.get_one(key))
            .buffered(READS)
            .try_collect()
            .await
    }

    async fn scan(&self, keys: KeyRange, size: PageSize, content: Content) -> Result<Page> {
        self.page(keys, size, content, |key| self.shows(key)).await
    }

    async fn scan_reserved(&self, keys: KeyRange, size: PageSize) -> Result<Page> {
        self.page(keys, size, Content::KeysOnly, |_| true).await
    }

    async fn count(&self, keys: KeyRange) -> Result<usize> {
        if walk::directory_of(&keys).len() > 1 {
            let mut count = 0;
            self.walk(keys, |child| count += usize::from(child.is_pair()))
                .await?;
            return Ok(count);
        }
        let mut census = self.census.lock().await;
        if let Some(census) = census.as_ref().filter(|census| census.is_fresh()) {
            return Ok(census.count(&keys));
        }
        let mut taken = Census::default();
        self.walk(KeyRange::all(), |child| taken.see(child)).await?;
        let count = taken.count(&keys);
        *census = Some(taken);
        Ok(count)
    }

    async fn leases(&self) -> Result<Vec<OldLease>> {
        let mut census = Census::default();
        let mut leases = Vec::new();
        let start = Instant::now();
        self.walk(KeyRange::all(), |child| {
            census.see(child);
            if let Child::Pair {
                kv,
                ttl_s: Some(ttl_s),
            } = child
            {
                leases.push(OldLease {
                    id: kv.lease,
                    ttl_s: *ttl_s,
                    keys: vec![kv.key.clone()],
                });
            }
        })
        .await?;
        leases.sort_unstable_by_key(|lease| lease.id);
        tracing::debug!(leases = leases.len(), took = ?start.elapsed(), "looked for keys that expire");
        *self.census.lock().await = Some(census);
        Ok(leases)
    }

    async fn foreign(&self, seen: Bookmark) -> Result<Option<ForeignChanges>> {
        let (tree, reserved) = (self.tree.clone(), self.reserved.clone());
        Ok(Some(foreign::changes(tree, reserved, seen.through)))
    }
}

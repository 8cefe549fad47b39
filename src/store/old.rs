//! What a migration needs of the store that the data comes from.

use async_trait::async_trait;
use bytes::Bytes;

use super::Result;
use crate::types::{Content, KeyRange, KeyValue, LeaseId, Revision};

/// The store that the data comes from. Numbers are in the line of revisions that its clients know.
///
/// Reserved keys of an earlier migration are never shown.
#[async_trait]
pub trait OldStore: Send + Sync + 'static {
    /// What makes this store the one it is, whatever address it is reached by (a cluster id, a
    /// file's identity), so that an old and a new store that are the same can be told.
    async fn identity(&self) -> Result<String>;

    /// The current revision.
    async fn revision(&self) -> Result<Revision>;

    /// The latest state of each of `keys`, in their order; nothing for one that does not exist.
    async fn get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<KeyValue>>>;

    /// The first pairs of `keys` in byte order, in one snapshot per page. A page ends after `limit`
    /// pairs (at least 1), or earlier where the store finds it large enough.
    /// With [`Content::CountOnly`] the page has no pairs; see [`Self::count`].
    async fn scan(&self, keys: KeyRange, limit: usize, content: Content) -> Result<Page>;

    /// How many keys are in the range now; exact where the store can say it cheaply, else an
    /// estimate, good enough for progress.
    async fn count(&self, keys: KeyRange) -> Result<usize>;

    /// All leases that are alive, each with its keys, in the order of their numbers. Stores whose
    /// keys have a time to live of their own answer one lease per such key.
    async fn leases(&self) -> Result<Vec<OldLease>>;
}

/// Part of a scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Pairs in byte order of their keys.
    pub kvs: Vec<KeyValue>,
    /// There may be more behind the last of them.
    pub more: bool,
    /// Keys that the store holds in this part but that cannot be keys and values of ours, with
    /// the reason.
    pub rejects: Vec<(Bytes, String)>,
}

/// A lease in the old store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldLease {
    /// Its number, as its clients know it.
    pub id: LeaseId,
    /// The time to live that it is to have in the new store, in seconds.
    pub ttl_s: i64,
    /// The keys attached to it.
    pub keys: Vec<Bytes>,
}

//! What a migration needs of the store that the data comes from.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::foreign::{Bookmark, ForeignChanges};
use super::mark::Mark;
use super::{Guard, NewStore, Result, Store, StoreError, Watch, Watching};
use crate::types::range::successor;
use crate::types::{
    Content, KeyRange, KeyValue, LeaseId, Op, Range, RangeReply, Reply, Revision, Txn,
};

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
    ///
    /// Fails with [`StoreError::Broken`] if one is there and cannot be read.
    async fn get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<KeyValue>>>;

    /// The same, with the error in place of each that cannot be read: it does not stand in the way of the others.
    async fn get_each(&self, keys: Vec<Bytes>) -> Result<Vec<Result<Option<KeyValue>>>> {
        let broken = match self.get(keys.clone()).await {
            Err(broken @ StoreError::Broken(_)) => broken,
            found => return Ok(found?.into_iter().map(Ok).collect()),
        };
        let mut each = Vec::with_capacity(keys.len());
        for key in keys {
            let one = KeyRange::One(key);
            let mut page = self.scan(one, PageSize::pairs(1), Content::Full).await?;
            each.push(if page.rejects.is_empty() {
                Ok(page.kvs.pop())
            } else {
                Err(broken.clone())
            });
        }
        Ok(each)
    }

    /// The first pairs of `keys` in byte order, in one snapshot per page. A page ends with the pair with
    /// which `size` is reached, or earlier where the store finds it large enough.
    /// With [`Content::CountOnly`] the page has no pairs; see [`Self::count`].
    ///
    /// Stores hold no more than such a page in memory for it, as far as they can be told:
    ///
    /// | store | how it holds to the bytes |
    /// | --- | --- |
    /// | memory | its pages are parts of what it holds anyhow |
    /// | SQL | the database adds the sizes up before it hands out values; SQLite reads no further |
    /// | table | rows are taken as they come, and those behind the page are let go |
    /// | etcd v2 | a page ends there, but a directory can only be read as a whole |
    /// | etcd v3 | cannot be told: of few pairs each, by what those before weighed, or half as many if that fails |
    async fn scan(&self, keys: KeyRange, size: PageSize, content: Content) -> Result<Page>;

    /// How many keys are in the range now; exact where the store can say it cheaply, else an
    /// estimate, good enough for progress.
    async fn count(&self, keys: KeyRange) -> Result<usize>;

    /// What is another one after each change of what the store holds, by whomever; nothing, if the store
    /// cannot tell. What is read between two that are the same is of one moment, and [`Self::count`] is
    /// exact then.
    async fn state(&self) -> Result<Option<OldState>> {
        Ok(None)
    }

    /// All leases that are alive, each with its keys, in the order of their numbers. Stores whose
    /// keys have a time to live of their own answer one lease per such key.
    async fn leases(&self) -> Result<Vec<OldLease>>;

    /// Reads keys as they were at a revision of the past, [`Range::at`], which is given; or nothing if
    /// the store keeps no history that shows what its clients saw.
    ///
    /// Fails with [`super::RequestError::Compacted`] where it has forgotten.
    async fn range(&self, request: Range) -> Result<Option<RangeReply>> {
        let _ = request;
        Ok(None)
    }

    /// Opens a watch on the store's own history, or nothing if it keeps none that says what
    /// [`Watch`] asks for.
    async fn watch(&self, request: Watch) -> Result<Option<Watching>> {
        let _ = request;
        Ok(None)
    }

    /// Tells what others than Segue change behind what was `seen`, from then on; nothing, if the
    /// store cannot tell, or if nobody else can change it unnoticed. To one at a time: another one
    /// waits until the changes of the one before are dropped.
    async fn foreign(&self, seen: Bookmark) -> Result<Option<ForeignChanges>> {
        let _ = seen;
        Ok(None)
    }

    /// What the store holds now, for one whose revisions do not tell of every change, to be compared with
    /// what was answered `before`; nothing of any other.
    async fn mark(&self, before: Option<&Mark>) -> Result<Option<Mark>> {
        let _ = before;
        Ok(None)
    }

    /// A page of keys under the reserved prefix, without values: those that [`Self::scan`] hides in a wider
    /// range. `keys` lie within it.
    async fn scan_reserved(&self, keys: KeyRange, size: PageSize) -> Result<Page> {
        self.scan(keys, size, Content::KeysOnly).await
    }

    /// The same store with its fence: for clients until the migration begins, under
    /// [`super::Guard::Unfenced`]. Nothing, if the store has no transactions that could ask for a
    /// fence.
    fn fenceable(&self) -> Option<Arc<dyn NewStore>> {
        None
    }

    /// See [`NewStore::astray`].
    async fn astray(&self) -> String {
        match self.fenceable() {
            Some(store) => store.astray().await,
            None => std::future::pending().await,
        }
    }
}

/// How much a page of a scan may have. It has one pair in any case, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSize {
    /// It ends after so many pairs.
    pub pairs: usize,
    /// It ends with the pair with which so many bytes are reached: of keys, and of values where they
    /// are answered.
    pub bytes: usize,
}

impl PageSize {
    /// Bytes of a page that was given none: a copy of it has to fit into memory several times over.
    pub const BYTES: usize = 4 << 20;

    /// So many pairs, if they are not too large.
    #[must_use]
    pub fn pairs(pairs: usize) -> Self {
        Self {
            pairs,
            bytes: Self::BYTES,
        }
    }

    /// How many of `kvs` are in a page.
    fn cut(self, kvs: &[KeyValue]) -> usize {
        let mut before = 0;
        let fit = kvs.iter().take(self.pairs.max(1)).take_while(|kv| {
            let fits = before < self.bytes.max(1);
            before += kv.weight();
            fits
        });
        fit.count()
    }
}

/// See [`OldStore::state`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OldState {
    /// The revision.
    pub revision: Revision,
    /// Counts the changes that take none.
    pub unnumbered: i64,
}

/// Part of a scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Pairs in byte order of their keys.
    pub kvs: Vec<KeyValue>,
    /// There may be more behind [`Page::last_key`]; then the page is not empty.
    pub more: bool,
    /// How many pairs of the range are behind the page.
    pub left: Left,
    /// Keys that the store holds in this part but that cannot be keys and values of ours, with
    /// the reason.
    pub rejects: Vec<(Bytes, String)>,
}

impl Page {
    /// The first of `kvs`, with which a range of `count` keys begins.
    #[must_use]
    pub fn of(mut kvs: Vec<KeyValue>, count: usize, size: PageSize) -> Self {
        kvs.truncate(size.cut(&kvs));
        let left = count.saturating_sub(kvs.len());
        Self {
            more: left > 0 && !kvs.is_empty(),
            left: Left::Exactly(left),
            kvs,
            rejects: Vec::new(),
        }
    }

    /// The first key of the page, be it a pair's or a reject's.
    #[must_use]
    pub fn first_key(&self) -> Option<&Bytes> {
        let pair = self.kvs.first().map(|kv| &kv.key);
        let reject = self.rejects.iter().map(|(key, _)| key).min();
        match (pair, reject) {
            (Some(pair), Some(reject)) => Some(pair.min(reject)),
            (one, other) => one.or(other),
        }
    }

    /// The last key of the page, be it a pair's or a reject's: the scan goes on behind it.
    #[must_use]
    pub fn last_key(&self) -> Option<&Bytes> {
        let pair = self.kvs.last().map(|kv| &kv.key);
        let reject = self.rejects.iter().map(|(key, _)| key).max();
        pair.max(reject)
    }

    /// First key behind the page; nothing if the page has everything that its range had.
    pub fn stop(&self) -> Result<Option<Bytes>> {
        if !self.more {
            return Ok(None);
        }
        let last = self.last_key().ok_or_else(|| {
            StoreError::Broken("the old store answered with an empty page".into())
        })?;
        Ok(Some(successor(last)))
    }

    /// What is left of `keys`, which it is a page of, behind it.
    pub fn rest(&self, keys: &KeyRange) -> Result<Option<KeyRange>> {
        let behind = |stop: Bytes| keys.intersect(&KeyRange::span(stop, None));
        Ok(self.stop()?.and_then(behind))
    }
}

/// What a store says of the pairs behind a page without being asked. One that says anything has gone over
/// them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    #[default]
    Untold,
    /// There are so many in that part of the range which it looked at.
    AtLeast(usize),
    /// There are so many.
    Exactly(usize),
}

impl Left {
    /// How many there are, if that is known.
    #[must_use]
    pub fn exactly(self) -> Option<usize> {
        match self {
            Self::Exactly(left) => Some(left),
            Self::Untold | Self::AtLeast(_) => None,
        }
    }

    /// How many there are for certain.
    #[must_use]
    pub fn at_least(self) -> usize {
        match self {
            Self::Exactly(left) | Self::AtLeast(left) => left,
            Self::Untold => 0,
        }
    }
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

/// Keys that [`AsOld`] asks for in one transaction: etcd's limit on operations.
const GET_KEYS_MAX: usize = 128;

/// Leases that it asks for at the same time.
const LEASES_AT_ONCE: usize = 64;

/// Any store as an old one.
pub struct AsOld {
    store: Arc<dyn Store>,
    fenceable: Option<Arc<dyn NewStore>>,
    identity: String,
}

impl AsOld {
    /// Lets `store`, which is known as `identity`, stand as an old store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, identity: String) -> Self {
        Self {
            store,
            fenceable: None,
            identity,
        }
    }

    /// Lets a store that a migration can also go to stand as an old one.
    pub async fn of(store: Arc<dyn NewStore>) -> Result<Self> {
        Ok(Self {
            store: store.guarded(Guard::None),
            identity: store.identity().await?,
            fenceable: Some(store),
        })
    }
}

#[async_trait]
impl OldStore for AsOld {
    async fn identity(&self) -> Result<String> {
        Ok(self.identity.clone())
    }

    async fn revision(&self) -> Result<Revision> {
        Ok(self.store.status().await?.revision)
    }

    async fn get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<KeyValue>>> {
        let mut kvs = Vec::with_capacity(keys.len());
        if let [key] = &keys[..] {
            let range = self.store.range(Range::key(key.clone())).await?;
            return Ok(vec![range.reply.kvs.into_iter().next()]);
        }
        for some in keys.chunks(GET_KEYS_MAX) {
            let ops = some.iter().cloned().map(|key| Op::Range(Range::key(key)));
            let txn = self.store.txn(Txn::of(ops.collect())).await?;
            kvs.extend(txn.reply.replies.into_iter().map(|reply| match reply {
                Reply::Range(range) => range.kvs.into_iter().next(),
                _ => None,
            }));
        }
        Ok(kvs)
    }

    async fn scan(&self, keys: KeyRange, size: PageSize, content: Content) -> Result<Page> {
        self.store.page(keys, size, content).await
    }

    async fn count(&self, keys: KeyRange) -> Result<usize> {
        let content = Content::CountOnly;
        let range = Range {
            content,
            ..Range::of(keys)
        };
        Ok(self.store.range(range).await?.reply.count)
    }

    async fn state(&self) -> Result<Option<OldState>> {
        match &self.fenceable {
            Some(store) => store.state().await,
            None => Ok(None),
        }
    }

    async fn leases(&self) -> Result<Vec<OldLease>> {
        let ids = self.store.leases().await?.reply;
        let asked = ids.into_iter().map(|id| self.store.time_to_live(id, true));
        let found: Vec<_> = stream::iter(asked.collect::<Vec<_>>())
            .buffered(LEASES_AT_ONCE)
            .try_collect()
            .await?;
        // One that ended in between is no longer alive.
        let alive = found.into_iter().filter_map(|answer| answer.reply);
        let alive = alive.map(|status| OldLease {
            id: status.id,
            ttl_s: status.granted_ttl_s,
            keys: status.keys,
        });
        Ok(alive.collect())
    }

    async fn range(&self, request: Range) -> Result<Option<RangeReply>> {
        Ok(Some(self.store.range(request).await?.reply))
    }

    async fn watch(&self, request: Watch) -> Result<Option<Watching>> {
        self.store.watch(request).await.map(Some)
    }

    fn fenceable(&self) -> Option<Arc<dyn NewStore>> {
        self.fenceable.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::Memory;
    use crate::types::{Grant, Put};

    async fn filled(keys: usize) -> (Arc<Memory>, AsOld) {
        let store = Arc::new(Memory::new());
        for n in 0..keys {
            let put = Put::new(format!("k{n:03}"), format!("{n}"));
            store.put(put).await.unwrap();
        }
        (store.clone(), AsOld::new(store, "a store".into()))
    }

    #[tokio::test]
    async fn keys_are_answered_in_the_order_they_were_asked_for() {
        let (_, old) = filled(300).await;
        let mut keys: Vec<Bytes> = (0..300).map(|n| format!("k{n:03}").into()).collect();
        keys.reverse();
        keys.insert(200, "missing".into());
        let kvs = old.get(keys.clone()).await.unwrap();
        assert_eq!(kvs.len(), keys.len());
        for (kv, key) in kvs.iter().zip(&keys) {
            let expected = (*key != "missing").then_some(key);
            assert_eq!(kv.as_ref().map(|kv| &kv.key), expected);
        }
        assert_eq!(old.get(vec!["missing".into()]).await.unwrap(), [None]);
        assert_eq!(old.get(vec![]).await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_scan_goes_on_behind_each_page_to_the_end() {
        let (_, old) = filled(10).await;
        let mut rest = Some(KeyRange::prefix("k"));
        let mut seen = Vec::new();
        while let Some(keys) = rest.take() {
            let page = old
                .scan(keys.clone(), PageSize::pairs(3), Content::Full)
                .await
                .unwrap();
            rest = page.rest(&keys).unwrap();
            seen.extend(page.kvs.into_iter().map(|kv| kv.value));
        }
        let expected: Vec<_> = (0..10).map(|n| Bytes::from(n.to_string())).collect();
        assert_eq!(seen, expected);
        assert_eq!(old.count(KeyRange::all()).await.unwrap(), 10);
    }

    #[tokio::test]
    async fn leases_come_with_their_full_time_and_their_keys() {
        let (store, old) = filled(1).await;
        for id in [7, 5] {
            let id = Some(LeaseId(id));
            store.grant(Grant { id, ttl_s: 60 }).await.unwrap();
        }
        let put = Put {
            lease: Some(LeaseId(5)),
            ..Put::new("leased", "")
        };
        let revision = store.put(put).await.unwrap().revision;
        let lease = |id, keys| OldLease {
            id: LeaseId(id),
            ttl_s: 60,
            keys,
        };
        let expected = [lease(5, vec!["leased".into()]), lease(7, vec![])];
        assert_eq!(old.leases().await.unwrap(), expected);
        assert_eq!(old.revision().await.unwrap(), revision);
        assert_eq!(old.identity().await.unwrap(), "a store");
    }
}

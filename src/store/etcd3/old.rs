//! etcd v3 as the store that the data comes from. Only ever read.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::client::Client;
use super::names::Names;
use super::numbers::{Claimed, Numbers};
use super::reads::Reads;
use super::records::StoredLine;
use super::view::{READS_PER_TXN, range_op, range_request, range_response};
use super::{Etcd3, Shared};
use crate::proto::etcdserverpb as pb;
use crate::store::url::Cluster;
use crate::store::{
    Guard, NewStore, OldLease, OldStore, Page, RequestError, Result, Watch, Watching,
};
use crate::types::{Content, KeyRange, KeyValue, LeaseId, Range, RangeReply, Reserved, Revision};

/// Pairs that a page has at most. etcd counts the rest of the range for every page, so small pages cost
/// more than large ones; with 10,000 that no longer shows.
const PAGE_KEYS_MAX: usize = 10_000;
/// What a page should weigh at most. etcd cannot be told, so the next page's number of pairs follows
/// from the size of the last one's.
const PAGE_BYTES: usize = 4 << 20;
/// Pairs of the first page, before any size is known.
const FIRST_PAGE_KEYS: usize = 500;
/// Requests on their way at a time, where there is one per lease or many keys to get.
const REQUESTS_IN_FLIGHT: usize = 16;

/// An etcd cluster as an old store.
pub struct OldEtcd3 {
    client: Client,
    /// Reads of single keys.
    reads: Reads,
    names: Arc<Names>,
    /// How clients see its revisions: shifted, if it was the new store of an earlier migration.
    numbers: Numbers,
    /// The store as its own clients see it, for watches, and to serve them.
    shared: Arc<Shared>,
    /// Pairs per page that fit the size of the pairs that were seen last.
    page_keys: AtomicUsize,
}

impl OldEtcd3 {
    /// Connects to a cluster and makes sure that it can be the old store of a migration.
    pub async fn open(cluster: &Cluster, reserved: Reserved) -> Result<Self> {
        let client = Client::open(cluster).await?;
        let names = Arc::new(Names::new(&reserved));
        let line = range_request(&KeyRange::One(names.line.clone()));
        let line = client.range(line).await?.kvs;
        let line = line.first().map(StoredLine::read).transpose()?;
        if line.is_some_and(|line| line.epoch.is_some()) {
            // Its keys show other numbers than its clients know.
            return Err(RequestError::Unacceptable(format!(
                "the etcd at {} is the new store of a migration that is not completed: complete that \
                 one first (segue complete), or use the URLs the other way round",
                cluster.hosts.join(", ")
            ))
            .into());
        }
        let numbers = line.map_or_else(Numbers::default, |line| line.numbers());
        Ok(Self {
            shared: Arc::new(Shared::new(client.clone(), names.clone())),
            reads: Reads::new(client.clone(), None),
            client,
            names,
            numbers,
            page_keys: AtomicUsize::new(FIRST_PAGE_KEYS),
        })
    }

    async fn one_lease(&self, id: i64) -> Result<Option<OldLease>> {
        let request = pb::LeaseTimeToLiveRequest { id, keys: true };
        let status = self.client.time_to_live(request).await?;
        if status.ttl < 0 {
            return Ok(None);
        }
        let mut keys = status.keys;
        keys.retain(|key| !self.names.reserved().contains(key));
        keys.sort_unstable();
        Ok(Some(OldLease {
            id: LeaseId(id),
            ttl_s: status.granted_ttl,
            keys,
        }))
    }

    /// Whether its history is not the one that its clients saw: that of an earlier migration's new store
    /// has the copy-ups in it.
    fn has_copy_ups(&self) -> bool {
        self.numbers != Numbers::default()
    }

    fn shown(&self, mut kv: KeyValue) -> KeyValue {
        self.numbers.translate(&mut kv, Claimed::Here);
        kv
    }

    /// How many pairs the next page may have, from what the last one weighed.
    fn learn_size(&self, kvs: &[KeyValue]) {
        if kvs.is_empty() {
            return;
        }
        let bytes: usize = kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
        let per_pair = bytes / kvs.len() + 1;
        let keys = (PAGE_BYTES / per_pair).clamp(1, PAGE_KEYS_MAX);
        self.page_keys.store(keys, Ordering::Relaxed);
    }
}

#[async_trait]
impl OldStore for OldEtcd3 {
    async fn identity(&self) -> Result<String> {
        super::records::identity(&self.client, &self.names).await
    }

    async fn revision(&self) -> Result<Revision> {
        let revision = self.client.revision(&self.names.line).await?;
        Ok(self.numbers.visible(revision))
    }

    async fn range(&self, request: Range) -> Result<Option<RangeReply>> {
        if self.has_copy_ups() {
            return Ok(None);
        }
        let shared = self.shared.clone();
        let store = Etcd3 { shared }.guarded(Guard::None);
        Ok(Some(store.range(request).await?.reply))
    }

    async fn watch(&self, request: Watch) -> Result<Option<Watching>> {
        if self.has_copy_ups() {
            return Ok(None);
        }
        let current = self.client.revision(&self.names.line).await?;
        let watching = super::tail::open(&self.shared.plain, request, current).await?;
        Ok(Some(watching))
    }

    fn fenceable(&self) -> Option<Arc<dyn NewStore>> {
        let shared = self.shared.clone();
        Some(Arc::new(Etcd3 { shared }))
    }

    async fn get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<KeyValue>>> {
        if let [key] = &keys[..] {
            let read = range_op(range_request(&KeyRange::One(key.clone())));
            let response = self.reads.run(vec![read]).await?;
            let found = response.responses.into_iter().find_map(range_response);
            let kv = found.and_then(|mut range| range.kvs.pop());
            return Ok(vec![kv.map(|kv| self.shown(kv.into()))]);
        }
        let reads: Vec<_> = keys
            .chunks(READS_PER_TXN)
            .map(|keys| {
                let gets = keys
                    .iter()
                    .map(|key| range_op(range_request(&KeyRange::One(key.clone()))));
                self.client.read(pb::TxnRequest {
                    success: gets.collect(),
                    ..pb::TxnRequest::default()
                })
            })
            .collect();
        let responses: Vec<_> = stream::iter(reads)
            .buffered(REQUESTS_IN_FLIGHT)
            .try_collect()
            .await?;
        Ok(responses
            .into_iter()
            .flat_map(|response| response.responses)
            .filter_map(range_response)
            .map(|mut range| range.kvs.pop().map(|kv| self.shown(kv.into())))
            .collect())
    }

    async fn scan(&self, keys: KeyRange, limit: usize, content: Content) -> Result<Page> {
        let limit = match content {
            Content::Full => limit.min(self.page_keys.load(Ordering::Relaxed)),
            Content::KeysOnly => limit.min(PAGE_KEYS_MAX),
            Content::CountOnly => limit,
        }
        .max(1);
        let mut parts = self.names.visible(&keys).into_iter();
        let Some(part) = parts.next() else {
            return Ok(Page::default());
        };
        // A page lies within one part: the next one begins behind the reserved keys by itself, since
        // the part before is empty then.
        let mut range = part;
        loop {
            let request = Range {
                limit,
                content,
                ..Range::of(range)
            };
            let response = self.client.long_range(request.into()).await?;
            let reply = RangeReply::from(response);
            let kvs: Vec<_> = reply.kvs.into_iter().map(|kv| self.shown(kv)).collect();
            if content == Content::Full {
                self.learn_size(&kvs);
            }
            let rest = parts.next();
            if !kvs.is_empty() || rest.is_none() {
                return Ok(Page {
                    more: reply.more || rest.is_some(),
                    kvs,
                    rejects: Vec::new(),
                });
            }
            range = rest.unwrap_or(KeyRange::all());
        }
    }

    async fn count(&self, keys: KeyRange) -> Result<usize> {
        let mut count = 0;
        for part in self.names.visible(&keys) {
            let request = Range {
                content: Content::CountOnly,
                ..Range::of(part)
            };
            let response = self.client.long_range(request.into()).await?;
            count += RangeReply::from(response).count;
        }
        Ok(count)
    }

    async fn leases(&self) -> Result<Vec<OldLease>> {
        let mut ids: Vec<_> = self
            .client
            .leases()
            .await?
            .leases
            .iter()
            .map(|lease| lease.id)
            .collect();
        ids.sort_unstable();
        let asked: Vec<_> = ids.into_iter().map(|id| self.one_lease(id)).collect();
        let leases: Vec<_> = stream::iter(asked)
            .buffered(REQUESTS_IN_FLIGHT)
            .try_collect()
            .await?;
        Ok(leases.into_iter().flatten().collect())
    }
}

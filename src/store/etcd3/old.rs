//! etcd v3 as the store that the data comes from. Only ever read.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::client::Client;
use super::names::Names;
use super::numbers::Numbers;
use super::pace::Paces;
use super::reads::Reads;
use super::records::{StoredLine, line_compare};
use super::view::{READS_PER_TXN, View, header_revision, range_op, range_request, range_response};
use super::{Etcd3, Shared};
use crate::proto::etcdserverpb as pb;
use crate::store::fewer;
use crate::store::foreign::{Bookmark, ForeignChanges};
use crate::store::url::Cluster;
use crate::store::{
    Guard, Left, NewStore, OldLease, OldState, OldStore, Page, PageSize, RequestError, Result,
    StoreError, Watch, Watching,
};
use crate::types::range::successor;
use crate::types::{Content, KeyRange, KeyValue, LeaseId, Range, RangeReply, Reserved, Revision};

/// Keys that a page without values has at most. etcd counts the rest of the range for every page, so few
/// large pages take less of its time than many small ones.
const PAGE_KEYS_MAX: usize = 10_000;
/// So many more keys than pairs may be in a page: etcd reads their values all the same.
const KEYS_ONLY: usize = 8;
/// Pairs per page that are taken to fit before any size is known.
const FIRST_PAGE_KEYS: usize = 500;
/// How often something is read again because the line has changed.
const TRIES_MAX: usize = 20;
/// Requests on their way at a time, where there is one per lease or many keys to get.
const REQUESTS_IN_FLIGHT: usize = 16;

/// An etcd cluster as an old store.
pub struct OldEtcd3 {
    client: Client,
    names: Arc<Names>,
    /// The store as its own clients see it, and to serve them.
    shared: Arc<Shared>,
    /// What the line said when it was read last.
    seen: Mutex<Arc<Seen>>,
    paces: Paces,
    /// Pairs per page that fit the size of the pairs that were seen last, whoever has seen them.
    page_keys: AtomicUsize,
}

/// The store as clients see it under one line, or without any. It changes with each migration of the store's,
/// so everything that is read holds to the line's being the same.
struct Seen {
    /// etcd's revision of the line; 0 where there is none.
    written: i64,
    /// Shifted, if the store was the new one of an earlier migration; with what was replayed.
    view: Arc<View>,
    /// Reads on the condition that the line is this one.
    reads: Reads,
}

impl Seen {
    fn new(shared: &Shared, line: Option<&StoredLine>) -> Self {
        let written = line.map_or(0, |line| line.written);
        let unchanged = line_compare(&shared.names, written);
        Self {
            written,
            view: line.map_or_else(|| shared.plain.clone(), |line| shared.view(line)),
            reads: Reads::new(shared.client.clone(), Some(unchanged)),
        }
    }

    /// Whether its history is not the one that its clients saw: that of an earlier migration's new store
    /// has the copy-ups in it.
    fn has_copy_ups(&self) -> bool {
        let numbers = &self.view.numbers;
        *numbers != Numbers::default() && numbers.earlier.is_empty()
    }

    /// Reads keys one by one, each with the numbers that clients see.
    async fn get(&self, keys: &[Bytes]) -> Result<Vec<Option<KeyValue>>> {
        let gets = keys
            .iter()
            .map(|key| range_op(range_request(&KeyRange::One(key.clone()))));
        let gets: Vec<_> = gets.collect();
        let response = if Reads::takes(&gets) {
            self.reads.run(gets).await?
        } else {
            self.reads.send(gets).await?
        };
        let found = response.responses.into_iter().filter_map(range_response);
        let found = found.map(|mut range| range.kvs.pop().map(KeyValue::from));
        let mut found: Vec<_> = found.collect();
        self.view
            .translate(found.iter_mut().flatten().collect())
            .await?;
        Ok(found)
    }

    /// The same for any number of keys.
    async fn get_all(&self, keys: &[Bytes]) -> Result<Vec<Option<KeyValue>>> {
        let reads: Vec<_> = keys
            .chunks(READS_PER_TXN)
            .map(|keys| self.get(keys))
            .collect();
        let found: Vec<_> = stream::iter(reads)
            .buffered(REQUESTS_IN_FLIGHT)
            .try_collect()
            .await?;
        Ok(found.into_iter().flatten().collect())
    }
}

impl OldEtcd3 {
    /// Connects to a cluster and makes sure that it can be the old store of a migration.
    pub async fn open(cluster: &Cluster, reserved: Reserved) -> Result<Self> {
        let client = Client::open(cluster).await?;
        let names = Arc::new(Names::new(&reserved));
        let shared = Arc::new(Shared::new(client.clone(), names.clone()));
        let line = shared.read_line().await?;
        let is_new = line.as_ref().is_some_and(|line| line.epoch.is_some());
        // Behind a fence a line says that it is an old store in service again.
        if is_new && shared.fence().await?.is_none() {
            // Its keys show other numbers than its clients know.
            return Err(RequestError::Unacceptable(format!(
                "the etcd at {} is the new store of a migration that is not completed: complete that \
                 one first (segue complete), or use the URLs the other way round",
                cluster.hosts.join(", ")
            ))
            .into());
        }
        Ok(Self {
            seen: Mutex::new(Arc::new(Seen::new(&shared, line.as_ref()))),
            shared,
            client,
            names,
            paces: Paces::default(),
            page_keys: AtomicUsize::new(FIRST_PAGE_KEYS),
        })
    }

    fn seen(&self) -> Arc<Seen> {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The store as the line says now, and etcd's revision.
    async fn look(&self) -> Result<(Arc<Seen>, i64)> {
        let line = range_request(&KeyRange::One(self.names.line.clone()));
        let response = self.client.range(line).await?;
        let revision = header_revision(response.header.as_ref());
        let line = response.kvs.first().map(StoredLine::read).transpose()?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.written != line.as_ref().map_or(0, |line| line.written) {
            *seen = Arc::new(Seen::new(&self.shared, line.as_ref()));
        }
        Ok((seen.clone(), revision))
    }

    /// Looks again before a read is repeated that failed because the line was another one; any other failure
    /// stays one.
    async fn look_again(&self, error: StoreError, tries: &mut usize) -> Result<()> {
        *tries += 1;
        match error {
            StoreError::StaleEpoch if *tries < TRIES_MAX => self.look().await.map(drop),
            StoreError::StaleEpoch => Err(StoreError::Unavailable(
                "the line of the old store changes all the time".into(),
            )),
            error => Err(error),
        }
    }

    /// Pairs of a range, with the numbers that clients see.
    async fn pairs(&self, seen: &Seen, request: pb::RangeRequest) -> Result<RangeReply> {
        let response = self.client.long_range(request).await?;
        self.check(seen).await?;
        let mut reply = RangeReply::from(response);
        seen.view.translate(reply.kvs.iter_mut().collect()).await?;
        Ok(reply)
    }

    /// Asserts that the line is still the same, for a read that etcd was not given as a transaction.
    async fn check(&self, seen: &Seen) -> Result<()> {
        let (now, _) = self.look().await?;
        if now.written == seen.written {
            Ok(())
        } else {
            Err(StoreError::StaleEpoch)
        }
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

    /// How many pairs a page from `start` on may have.
    fn fit(&self, start: &Bytes, size: PageSize, content: Content) -> usize {
        let most = match content {
            Content::Full => self.paces.at(start),
            Content::KeysOnly => {
                let fit = self.page_keys.load(Ordering::Relaxed) * KEYS_ONLY;
                fit.min(PAGE_KEYS_MAX)
            }
            Content::CountOnly => 1,
        };
        most.min(size.pairs).max(1)
    }

    /// Notes what the pairs of a page from `start` on weighed, of which `asked` were asked for. The walk
    /// goes on at `to`, if it does.
    fn learn_size(
        &self,
        start: &Bytes,
        to: Option<Bytes>,
        asked: usize,
        kvs: &[KeyValue],
        size: PageSize,
    ) {
        if let Some(to) = to {
            self.paces.note((start, to), asked, kvs, size.bytes);
        }
        if kvs.is_empty() {
            return;
        }
        let weight: usize = kvs.iter().map(KeyValue::weight).sum();
        let keys = (PageSize::BYTES / (weight / kvs.len() + 1)).clamp(1, PAGE_KEYS_MAX);
        self.page_keys.store(keys, Ordering::Relaxed);
    }

    /// Pairs of a range, as soon as the line has stood still for so long.
    async fn some(&self, range: Range) -> Result<RangeReply> {
        let request = pb::RangeRequest::from(range);
        let mut tries = 0;
        loop {
            match self.pairs(&self.seen(), request.clone()).await {
                Ok(reply) => return Ok(reply),
                Err(error) => self.look_again(error, &mut tries).await?,
            }
        }
    }
}

#[async_trait]
impl OldStore for OldEtcd3 {
    async fn identity(&self) -> Result<String> {
        super::records::identity(&self.client, &self.names).await
    }

    async fn revision(&self) -> Result<Revision> {
        let (seen, revision) = self.look().await?;
        Ok(seen.view.numbers.visible(revision))
    }

    async fn range(&self, request: Range) -> Result<Option<RangeReply>> {
        if self.seen().has_copy_ups() {
            return Ok(None);
        }
        let shared = self.shared.clone();
        let store = Etcd3 { shared }.guarded(Guard::None);
        Ok(Some(store.range(request).await?.reply))
    }

    async fn watch(&self, request: Watch) -> Result<Option<Watching>> {
        let (seen, current) = self.look().await?;
        if seen.has_copy_ups() {
            return Ok(None);
        }
        let (watching, _) = super::tail::open(&seen.view, request, current).await?;
        Ok(Some(watching))
    }

    async fn foreign(&self, seen: Bookmark) -> Result<Option<ForeignChanges>> {
        let view = self.shared.plain.clone();
        let numbers = self.look().await?.0.view.numbers.clone();
        super::foreign::changes(view, numbers, seen.through)
            .await
            .map(Some)
    }

    fn fenceable(&self) -> Option<Arc<dyn NewStore>> {
        let shared = self.shared.clone();
        Some(Arc::new(Etcd3 { shared }))
    }

    async fn get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<KeyValue>>> {
        let mut tries = 0;
        loop {
            match self.seen().get_all(&keys).await {
                Ok(found) => return Ok(found),
                Err(error) => self.look_again(error, &mut tries).await?,
            }
        }
    }

    async fn scan(&self, keys: KeyRange, size: PageSize, content: Content) -> Result<Page> {
        let mut parts = self.names.visible(&keys).into_iter();
        let Some(part) = parts.next() else {
            return Ok(Page::default());
        };
        // A page lies within one part: the next one begins behind the reserved keys by itself, since
        // the part before is empty then.
        let mut range = part;
        loop {
            let start = range.start().clone();
            let mut most = self.fit(&start, size, content);
            let some = |limit| {
                self.some(Range {
                    limit,
                    content,
                    ..Range::of(range.clone())
                })
            };
            let answers = || async { self.look().await.is_ok() };
            let reply = fewer::until_it_fits(&mut most, some, answers).await?;
            let kvs = reply.kvs;
            if content == Content::Full {
                let to = match kvs.last() {
                    Some(last) if reply.more => Some(successor(&last.key)),
                    _ => range.end(),
                };
                self.learn_size(&start, to, most, &kvs, size);
            }
            let rest = parts.next();
            if !kvs.is_empty() || rest.is_none() {
                let left = reply.count.saturating_sub(kvs.len());
                let left = match rest {
                    Some(_) => Left::AtLeast(left),
                    None => Left::Exactly(left),
                };
                return Ok(Page {
                    left,
                    more: reply.more || rest.is_some(),
                    kvs,
                    rejects: Vec::new(),
                });
            }
            range = rest.unwrap_or(KeyRange::all());
        }
    }

    async fn state(&self) -> Result<Option<OldState>> {
        let (_, revision) = self.look().await?;
        Ok(Some(OldState {
            revision: Revision(revision),
            unnumbered: 0,
        }))
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

//! The traits of a store, on top of the engine.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::backend::{Backend, Found, Head, Logged, Query, Row, Rows, Snapshot};
use super::reading::Reading;
use super::work::{Done, Work};
use super::{SqlStore, unanswered};
use crate::store::eval::finish;
use crate::store::{
    Claim, CopyUp, Guard, GuardedStore, Line, NewStore, OldState, Page, PageSize, Read, ReadReply,
    Record, RecordTxn, Replay, RequestError, Result, Status, Store, StoreError, Watch, Watching,
    lease,
};
use crate::types::range::successor;
use crate::types::{
    Answer, Content, Grant, Granted, KeyRange, KeyValue, LeaseId, LeaseStatus, Range, RangeReply,
    Reserved, Revision, SortTarget, Txn, TxnReply,
};

/// Pairs in one copy-up or replay, at most: what one transaction should hold up the others for.
const COPY_UP_PAIRS: usize = 10_000;

/// Bytes of keys and values in one copy-up or replay, at most.
const COPY_UP_BYTES: usize = 32 << 20;

#[async_trait]
impl<B: Backend> Store for SqlStore<B> {
    async fn range(&self, request: Range) -> Result<Answer<RangeReply>> {
        let counts = &self.engine.counts;
        let rows = Rows {
            known: counts.known(&request),
            ..rows_of(&request, &self.engine.reserved)
        };
        let (head, mut found) = self.read(request.at, vec![Query::Rows(rows)]).await?;
        let found = found.pop().ok_or_else(unanswered)?;
        let reply = finished(&request, found)?;
        counts.note(&request, &head, &reply);
        Ok(Answer {
            revision: head.revision,
            reply,
        })
    }

    /// The database is told about bytes, too.
    async fn page(&self, keys: KeyRange, size: PageSize, content: Content) -> Result<Page> {
        let request = Range {
            limit: size.pairs.max(1),
            content,
            ..Range::of(keys)
        };
        let counts = &self.engine.counts;
        let rows = Rows {
            bytes: Some(size.bytes.max(1)),
            known: counts.known(&request),
            ..rows_of(&request, &self.engine.reserved)
        };
        let (head, mut found) = self.read(None, vec![Query::Rows(rows)]).await?;
        let found = found.pop().ok_or_else(unanswered)?;
        let mut reply = finished(&request, found)?;
        // The bytes may have ended it before the limit did.
        reply.more = reply.kvs.len() < reply.count;
        counts.note(&request, &head, &reply);
        Ok(Page::of(reply.kvs, reply.count, size))
    }

    async fn txn(&self, request: Txn) -> Result<Answer<TxnReply>> {
        if request.is_read_only() {
            self.read_txn(&request).await
        } else {
            self.txn_over(Vec::new(), request).await
        }
    }

    async fn compact(&self, at: Revision) -> Result<Answer<()>> {
        self.plain(Work::Compact(at)).await
    }

    async fn watch(&self, request: Watch) -> Result<Watching> {
        // Where the store stands, and not only what has come in here of it: a watch that is opened
        // behind the answer of another process begins behind it.
        let (head, _) = self.read(None, Vec::new()).await?;
        Ok(self.engine.feed.watch(request, head.revision))
    }

    async fn grant(&self, request: Grant) -> Result<Answer<Granted>> {
        let ttl_s = lease::ttl_s(&request, self.engine.min_lease_ttl_s)?;
        loop {
            let id = lease::choose_id(&request);
            let work = Work::Grant { id, ttl_s };
            match self.engine.submit(self.guard, work).await {
                Ok(Done::Granted(answer)) => return Ok(answer),
                Ok(_) => return Err(unanswered()),
                // We chose the number: choose another.
                Err(StoreError::Request(RequestError::LeaseExists)) if request.id != Some(id) => {}
                Err(err) => return Err(err),
            }
        }
    }

    async fn revoke(&self, id: LeaseId) -> Result<Answer<()>> {
        self.plain(Work::Revoke(id)).await
    }

    async fn keep_alive(&self, id: LeaseId) -> Result<Answer<Option<i64>>> {
        match self.engine.submit(self.guard, Work::KeepAlive(id)).await? {
            Done::KeptAlive(answer) => Ok(answer),
            _ => Err(unanswered()),
        }
    }

    async fn time_to_live(&self, id: LeaseId, keys: bool) -> Result<Answer<Option<LeaseStatus>>> {
        let query = Query::Lease { id, keys };
        let (read, found) = self.engine.query(self.guard, query).await?;
        let Found::Lease(lease) = found else {
            return Err(unanswered());
        };
        let reply = lease.map(|(lease, keys)| LeaseStatus {
            id,
            granted_ttl_s: lease.ttl_s,
            remaining_ttl_s: (lease.deadline_ms - read.now_ms).max(0) / 1000,
            keys,
        });
        Ok(Answer {
            revision: read.head.revision,
            reply,
        })
    }

    async fn leases(&self) -> Result<Answer<Vec<LeaseId>>> {
        match self.engine.query(self.guard, Query::Leases).await? {
            (read, Found::Leases(reply)) => Ok(Answer {
                revision: read.head.revision,
                reply,
            }),
            _ => Err(unanswered()),
        }
    }

    async fn status(&self) -> Result<Status> {
        match self.engine.query(self.guard, Query::Sizes).await? {
            (read, Found::Sizes(size, size_in_use)) => Ok(Status {
                revision: read.head.revision,
                compacted: read.head.oldest(),
                size,
                size_in_use,
            }),
            _ => Err(unanswered()),
        }
    }

    async fn defragment(&self) -> Result<()> {
        self.engine.backend.defragment().await
    }
}

#[async_trait]
impl<B: Backend> GuardedStore for SqlStore<B> {
    async fn snapshot(
        &self,
        at: Option<Revision>,
        reads: Vec<Read>,
    ) -> Result<Answer<Vec<ReadReply>>> {
        let reserved = &self.engine.reserved;
        let queries = reads.iter().map(|read| match read {
            Read::Range(range) => Query::Rows(rows_of(range, reserved)),
            Read::Claims { keys, values } => Query::Rows(Rows {
                parts: reserved.visible(keys),
                whiteouts: true,
                limit: None,
                bytes: None,
                values: *values,
                count: false,
                known: None,
            }),
        });
        let (head, found) = self.read(at, queries.collect()).await?;
        if found.len() != reads.len() {
            return Err(unanswered());
        }
        let reply = |(read, found)| match (read, found) {
            (Read::Range(range), found) => finished(&range, found).map(ReadReply::Range),
            (Read::Claims { .. }, Found::Rows { rows, .. }) => {
                Ok(ReadReply::Claims(rows.into_iter().map(claim).collect()))
            }
            _ => Err(unanswered()),
        };
        Ok(Answer {
            revision: head.revision,
            reply: reads
                .into_iter()
                .zip(found)
                .map(reply)
                .collect::<Result<_>>()?,
        })
    }

    async fn first_claims(
        &self,
        keys: KeyRange,
        size: PageSize,
    ) -> Result<(Vec<Claim>, Option<Bytes>)> {
        let (most, bytes) = (size.pairs.max(1), size.bytes.max(1));
        let rows = Rows {
            parts: self.engine.reserved.visible(&keys),
            whiteouts: true,
            // One more than is wanted tells whether there are more.
            limit: Some(most.saturating_add(1)),
            bytes: Some(bytes),
            values: usize::MAX,
            count: false,
            known: None,
        };
        let (_, mut found) = self.read(None, vec![Query::Rows(rows)]).await?;
        let Some(Found::Rows { mut rows, .. }) = found.pop() else {
            return Err(unanswered());
        };
        let weight: usize = rows.iter().map(|row| row.kv.weight()).sum();
        let cut = rows.len() > most || weight >= bytes;
        rows.truncate(most);
        let end = rows.last().filter(|_| cut);
        let end = end.map(|row| successor(&row.kv.key));
        Ok((rows.into_iter().map(claim).collect(), end))
    }

    async fn txn_over(&self, copies: Vec<KeyValue>, txn: Txn) -> Result<Answer<TxnReply>> {
        let work = Work::Txn { copies, txn };
        match self.engine.submit(self.guard, work).await? {
            Done::Txn(answer) => Ok(answer),
            _ => Err(unanswered()),
        }
    }

    async fn copy_up(&self, copy_up: CopyUp) -> Result<Option<usize>> {
        if copy_up.kvs.len() > COPY_UP_PAIRS {
            return Err(RequestError::TooManyOperations.into());
        }
        let work = Work::CopyUp(copy_up);
        if work.size() > COPY_UP_BYTES {
            return Err(RequestError::TooLarge.into());
        }
        match self.engine.submit(self.guard, work).await? {
            Done::CopiedUp(fresh) => Ok(fresh),
            _ => Err(unanswered()),
        }
    }

    /// Every row is a claim.
    async fn claim_present(&self) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl<B: Backend> NewStore for SqlStore<B> {
    async fn identity(&self) -> Result<String> {
        Ok(self.engine.backend.identity().to_owned())
    }

    fn guarded(&self, guard: Guard) -> Arc<dyn GuardedStore> {
        Arc::new(Self {
            engine: self.engine.clone(),
            guard,
        })
    }

    async fn line(&self) -> Result<Option<Line>> {
        let (head, _) = self.read(None, Vec::new()).await?;
        Ok(head.line)
    }

    async fn state(&self) -> Result<Option<OldState>> {
        let (head, _) = self.read(None, Vec::new()).await?;
        Ok(Some(OldState {
            revision: head.revision,
            unnumbered: head.unnumbered,
        }))
    }

    async fn records(&self, prefix: &str) -> Result<Vec<Record>> {
        match self
            .engine
            .query(Guard::None, Query::Records(prefix.into()))
            .await?
        {
            (_, Found::Records(records)) => Ok(records),
            _ => Err(unanswered()),
        }
    }

    async fn write_records(&self, txn: RecordTxn) -> Result<bool> {
        if txn.line.flatten().is_some_and(|line| line.claims) {
            match self.own_copies().await {
                // There is a line, and this is the next one.
                Ok(()) | Err(StoreError::StaleEpoch) => {}
                Err(error) => return Err(error),
            }
        }
        match self.engine.submit(Guard::None, Work::Records(txn)).await? {
            Done::Records(written) => Ok(written),
            _ => Err(unanswered()),
        }
    }

    async fn replay(&self, replay: Replay) -> Result<bool> {
        if replay.changes.len() > COPY_UP_PAIRS {
            return Err(RequestError::TooManyOperations.into());
        }
        let work = Work::Replay(replay);
        if work.size() > COPY_UP_BYTES {
            return Err(RequestError::TooLarge.into());
        }
        match self.engine.submit(Guard::None, work).await? {
            Done::Records(replayed) => Ok(replayed),
            _ => Err(unanswered()),
        }
    }

    fn unacceptable(&self, key: &[u8], value_len: usize) -> Option<String> {
        self.engine.backend.unacceptable(key, value_len)
    }

    async fn is_empty(&self) -> Result<bool> {
        match self.engine.query(Guard::None, Query::Any).await? {
            (_, Found::Any(any)) => Ok(!any),
            _ => Err(unanswered()),
        }
    }

    async fn drop_claims(&self) -> Result<()> {
        while self.engine.drop_whiteouts().await? {}
        Ok(())
    }

    async fn clear(&self) -> Result<()> {
        crate::store::clear::by_parts(self, &self.engine.reserved).await
    }

    async fn close(&self) {
        Self::close(self).await;
    }

    async fn astray(&self) -> String {
        self.engine.tasks.astray().await
    }
}

impl<B: Backend> SqlStore<B> {
    pub(super) async fn read(
        &self,
        at: Option<Revision>,
        queries: Vec<Query>,
    ) -> Result<(Head, Vec<Found>)> {
        let snapshot = Snapshot {
            guard: self.guard,
            at,
            queries,
        };
        let read = self.engine.read(snapshot).await?;
        Ok((read.head, read.found))
    }

    /// Takes what an earlier migration has copied up for the store's own, before there is a line: in the next
    /// migration it would be taken for copies of what is in another old store.
    async fn own_copies(&self) -> Result<()> {
        let idle = Self {
            engine: self.engine.clone(),
            guard: Guard::NoLine,
        };
        let mut rest = Some(KeyRange::all());
        while let Some(keys) = rest {
            let size = PageSize::pairs(COPY_UP_PAIRS);
            let (claims, end) = idle.first_claims(keys.clone(), size).await?;
            let copied = claims.into_iter().filter_map(|claim| match claim {
                Claim::Copied(kv) => Some(kv.key),
                Claim::Live(_) | Claim::Whiteout(_) => None,
            });
            let copied: Vec<Bytes> = copied.collect();
            if !copied.is_empty() {
                idle.plain(Work::Own(copied)).await?;
            }
            rest = end.and_then(|end| keys.intersect(&KeyRange::span(end, None)));
        }
        Ok(())
    }

    /// A transaction that cannot write needs no place in a batch: a snapshot will do.
    async fn read_txn(&self, txn: &Txn) -> Result<Answer<TxnReply>> {
        let reserved = &self.engine.reserved;
        let reading = Reading::of(txn);
        let (head, found) = self.read(None, reading.queries(reserved)).await?;
        reading.answer(&head, found, reserved)
    }

    async fn plain(&self, work: Work) -> Result<Answer<()>> {
        match self.engine.submit(self.guard, work).await? {
            Done::Plain(answer) => Ok(answer),
            _ => Err(unanswered()),
        }
    }
}

/// The rows that a range needs. Where the store may stop at the limit it reads one row more, which
/// tells that there are more.
pub(super) fn rows_of(range: &Range, reserved: &Reserved) -> Rows {
    let limit = match range.content {
        Content::CountOnly => Some(0),
        _ if range.limit > 0 && range.limit_can_be_pushed_down() => {
            Some(range.limit.saturating_add(1))
        }
        _ => None,
    };
    let values = match range.content {
        Content::KeysOnly if range.sort != SortTarget::Value => 0,
        _ => usize::MAX,
    };
    Rows {
        parts: reserved.visible(&range.keys),
        whiteouts: false,
        limit,
        bytes: None,
        values,
        count: true,
        known: None,
    }
}

/// The reply to a range for which [`rows_of`] was read.
pub(super) fn finished(range: &Range, found: Found) -> Result<RangeReply> {
    match found {
        Found::Rows { rows, count } => Ok(finish(range, kvs(rows), count)),
        _ => Err(unanswered()),
    }
}

fn kvs(rows: Vec<Row>) -> Vec<KeyValue> {
    rows.into_iter().map(|row| row.kv).collect()
}

fn claim(row: Row) -> Claim {
    match row {
        Row {
            live: true,
            logged: Logged::No,
            kv,
        } => Claim::Copied(kv),
        Row { live: true, kv, .. } => Claim::Live(kv),
        Row { kv, .. } => Claim::Whiteout(kv.key),
    }
}

//! What lies before the base revision: the old store's history, for as long as it can be had.
//!
//! The new store never saw it, and answers "compacted" there. One etcd would have it, so the old store is
//! asked: reads of the past, also within transactions, watches that begin there, and compactions.
//!
//! History does not change, so it does not matter when it is read; but whether it may still be seen
//! does. A compaction of the new store at a later revision has forgotten all of it. Therefore every
//! answer takes a look at the new store as well, at the base revision: that look fails if the base is
//! compacted or the epoch is over, and brings the present revision.

use std::sync::Arc;

use async_trait::async_trait;

use super::replay;
use crate::store::{
    Guard, OldStore, RequestError, Result, Status, Store, StoreError, Watch, Watching,
};
use crate::types::{
    Answer, Content, Delete, DeleteReply, Grant, Granted, KeyRange, LeaseId, LeaseStatus, Op, Put,
    PutReply, Range, RangeReply, Reply, Reserved, Revision, Txn, TxnReply,
};

/// A store whose revisions begin at a base, with the old store's history before it.
pub struct WithPast {
    store: Arc<dyn Store>,
    old: Arc<dyn OldStore>,
    /// The last revision that belongs to the old store.
    base: Revision,
    reserved: Reserved,
    /// An old store that cannot be reached counts as one that keeps no history.
    old_may_be_gone: bool,
}

impl WithPast {
    /// Puts the history of `old` up to `base` before `store`. If the old store may be gone, which it
    /// may be in the normal phase, its history counts as compacted while it cannot be reached.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        old: Arc<dyn OldStore>,
        base: Revision,
        reserved: Reserved,
        old_may_be_gone: bool,
    ) -> Self {
        Self {
            store,
            old,
            base,
            reserved,
            old_may_be_gone,
        }
    }

    /// Whether a read is one of the old store's history.
    fn is_past(&self, range: &Range) -> bool {
        range.past().is_some_and(|at| at < self.base) && !self.is_reserved(&range.keys)
    }

    /// Reserved keys are the new store's alone.
    fn is_reserved(&self, keys: &KeyRange) -> bool {
        self.reserved.owns(keys)
    }

    /// A read of nothing that fails if the base revision is compacted.
    fn look(&self) -> Range {
        Range {
            at: Some(self.base),
            content: Content::CountOnly,
            ..Range::key(self.reserved.key("past"))
        }
    }

    /// The old store's answer to a read before the base, or that it was compacted there.
    async fn ask_old(&self, request: &Range) -> Result<Result<RangeReply, RequestError>> {
        let request = Range {
            serializable: false,
            ..request.clone()
        };
        Ok(match self.old.range(request).await {
            Ok(Some(reply)) => Ok(reply),
            Ok(None) => Err(RequestError::Compacted(self.base)),
            // What it compacts behind the base, in revisions of its own, is none of the client's
            // business.
            Err(StoreError::Request(RequestError::Compacted(oldest))) => {
                Err(RequestError::Compacted(oldest.min(self.base)))
            }
            Err(error) if self.old_may_be_gone => {
                tracing::debug!(%error, "the old store's history cannot be reached");
                Err(RequestError::Compacted(self.base))
            }
            Err(error) => return Err(error),
        })
    }

    /// The old store's watch from before the base, or the oldest revision that one can begin at.
    async fn watch_old(&self, request: &Watch) -> Result<Result<Watching, Revision>> {
        match self.store.range(self.look()).await {
            Err(StoreError::Request(RequestError::Compacted(oldest))) => return Ok(Err(oldest)),
            looked => looked?,
        };
        match self.old.watch(request.clone()).await {
            Ok(past) => Ok(past.ok_or(self.base.next())),
            Err(error) if self.old_may_be_gone => {
                tracing::debug!(%error, "the old store's history cannot be reached");
                Ok(Err(self.base.next()))
            }
            Err(error) => Err(error),
        }
    }

    /// Compacts the old store: that is the durable record, for all members, of how far its history may
    /// be read. Answers with the reason if there is no history there.
    async fn compact_old(&self, at: Revision) -> Result<Result<(), RequestError>> {
        let look = Range {
            at: Some(at),
            ..self.look()
        };
        if let Err(gone) = self.ask_old(&look).await? {
            return Ok(Err(gone));
        }
        let Some(old) = self.old.fenceable() else {
            return Ok(Err(RequestError::Compacted(self.base)));
        };
        old.guarded(Guard::None).compact(at).await?;
        Ok(Ok(()))
    }
}

#[async_trait]
impl Store for WithPast {
    async fn range(&self, request: Range) -> Result<Answer<RangeReply>> {
        if !self.is_past(&request) {
            return self.store.range(request).await;
        }
        let past = self.ask_old(&request).await?;
        let present = self.store.range(self.look()).await?;
        Ok(Answer {
            revision: present.revision,
            reply: past?,
        })
    }

    /// Reads of the past within a transaction are answered from the old store in advance. In the
    /// transaction itself a look stands in their place, so that it is refused as a whole if they may no
    /// longer be answered.
    async fn txn(&self, request: Txn) -> Result<Answer<TxnReply>> {
        let mut asked: Vec<&Range> = Vec::new();
        request.visit(&mut |op| match op {
            Op::Range(range) if self.is_past(range) && !asked.contains(&range) => {
                asked.push(range);
            }
            _ => {}
        });
        if asked.is_empty() {
            return self.store.txn(request).await;
        }
        let mut answers = Answers::default();
        for range in asked {
            // One that cannot be answered stays as it is: the new store refuses it if it comes to it.
            if let Ok(reply) = self.ask_old(range).await? {
                answers.0.push((range.clone(), reply));
            }
        }
        let mut sent = request.clone();
        answers.take_out(&mut sent, &self.look());
        let mut answer = self.store.txn(sent).await?;
        answers.put_in(&request, &mut answer.reply);
        Ok(answer)
    }

    async fn put(&self, request: Put) -> Result<Answer<PutReply>> {
        self.store.put(request).await
    }

    async fn delete(&self, request: Delete) -> Result<Answer<DeleteReply>> {
        self.store.delete(request).await
    }

    async fn compact(&self, at: Revision) -> Result<Answer<()>> {
        if at <= self.base {
            let present = self.store.range(self.look()).await?;
            let past = self.compact_old(at).await?;
            // A look does not notice that the new store is compacted at the base itself, so there both
            // are.
            if at < self.base {
                past?;
                return Ok(present.map(drop));
            }
        }
        self.store.compact(at).await
    }

    async fn watch(&self, request: Watch) -> Result<Watching> {
        let before = request.start.is_some_and(|start| start <= self.base);
        if !before || self.is_reserved(&request.keys) {
            return self.store.watch(request).await;
        }
        let past = self.watch_old(&request).await?;
        replay::watch(past, &*self.store, self.base, request).await
    }

    async fn grant(&self, request: Grant) -> Result<Answer<Granted>> {
        self.store.grant(request).await
    }

    async fn revoke(&self, id: LeaseId) -> Result<Answer<()>> {
        self.store.revoke(id).await
    }

    async fn keep_alive(&self, id: LeaseId) -> Result<Answer<Option<i64>>> {
        self.store.keep_alive(id).await
    }

    async fn time_to_live(&self, id: LeaseId, keys: bool) -> Result<Answer<Option<LeaseStatus>>> {
        self.store.time_to_live(id, keys).await
    }

    async fn leases(&self) -> Result<Answer<Vec<LeaseId>>> {
        self.store.leases().await
    }

    async fn status(&self) -> Result<Status> {
        self.store.status().await
    }

    async fn defragment(&self) -> Result<()> {
        self.store.defragment().await
    }
}

/// Reads of the past and the answers to them.
#[derive(Default)]
struct Answers(Vec<(Range, RangeReply)>);

impl Answers {
    fn to(&self, range: &Range) -> Option<&RangeReply> {
        let answer = self.0.iter().find(|(asked, _)| asked == range);
        answer.map(|(_, reply)| reply)
    }

    /// Puts `stand_in` in the place of the reads that have answers.
    fn take_out(&self, txn: &mut Txn, stand_in: &Range) {
        for op in txn.success.iter_mut().chain(&mut txn.failure) {
            match op {
                Op::Range(range) if self.to(range).is_some() => *range = stand_in.clone(),
                Op::Txn(nested) => self.take_out(nested, stand_in),
                _ => {}
            }
        }
    }

    /// Gives the reads of `txn` their answers.
    fn put_in(&self, txn: &Txn, reply: &mut TxnReply) {
        let ops = if reply.succeeded {
            &txn.success
        } else {
            &txn.failure
        };
        for (op, reply) in ops.iter().zip(&mut reply.replies) {
            match (op, reply) {
                (Op::Range(range), Reply::Range(reply)) => {
                    if let Some(answer) = self.to(range) {
                        reply.clone_from(answer);
                    }
                }
                (Op::Txn(nested), Reply::Txn(reply)) => self.put_in(nested, reply),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::Memory;
    use crate::store::old::AsOld;
    use crate::store::{CopyUp, Line, NewStore, PageSize, RecordTxn};
    use crate::types::Epoch;

    const BASE: Revision = Revision(5);

    /// A store in memory at revision 6, which has forgotten nothing: `a` is written at 2, 4 and 6, `b` at 3
    /// and 5. With a base between 5 and 6, and without.
    async fn twins() -> (WithPast, Arc<Memory>) {
        let (old, new, twin) = (Memory::new(), Memory::new(), Arc::new(Memory::new()));
        let line = Line {
            epoch: Epoch(1),
            claims: true,
            base: BASE,
        };
        let txn = RecordTxn {
            line: Some(Some(line)),
            ..RecordTxn::default()
        };
        assert!(new.write_records(txn).await.unwrap());
        let guard = Guard::Epoch {
            epoch: Epoch(1),
            claims: true,
        };
        let new = new.guarded(guard);
        for (number, key) in ["a", "b", "a", "b", "a"].into_iter().enumerate() {
            let put = Put::new(key, number.to_string());
            twin.put(put.clone()).await.unwrap();
            let store: &dyn Store = if number < 4 { &old } else { &*new };
            store.put(put).await.unwrap();
            if number == 3 {
                let kvs = old.range(Range::of(KeyRange::all())).await.unwrap();
                let kvs = kvs.reply.kvs;
                new.copy_up(CopyUp { kvs, record: None }).await.unwrap();
            }
        }
        let old = Arc::new(AsOld::of(Arc::new(old)).await.unwrap());
        let store = WithPast::new(new, old, BASE, Reserved::default(), false);
        (store, twin)
    }

    fn at(at: i64, keys: KeyRange) -> Range {
        Range {
            at: Some(Revision(at)),
            ..Range::of(keys)
        }
    }

    async fn same_range(store: &WithPast, twin: &Memory, range: Range) {
        let expected = twin.range(range.clone()).await;
        assert_eq!(store.range(range.clone()).await, expected, "{range:?}");
    }

    async fn same_compact(store: &WithPast, twin: &Memory, at: i64) {
        let expected = twin.compact(Revision(at)).await;
        assert_eq!(store.compact(Revision(at)).await, expected, "at {at}");
        for at in 1..=7 {
            same_range(store, twin, self::at(at, KeyRange::all())).await;
        }
    }

    #[tokio::test]
    async fn the_past_before_the_base_is_the_old_stores() {
        let (store, twin) = twins().await;
        for revision in 1..=7 {
            for keys in [KeyRange::One("b".into()), KeyRange::all()] {
                let range = at(revision, keys);
                same_range(&store, &twin, range.clone()).await;
                for content in [Content::CountOnly, Content::KeysOnly] {
                    let range = Range {
                        content,
                        limit: 1,
                        ..range.clone()
                    };
                    same_range(&store, &twin, range).await;
                }
            }
        }
    }

    #[tokio::test]
    async fn reads_of_the_past_within_a_transaction_are_answered_too() {
        let (store, twin) = twins().await;
        let read = |revision| Op::Range(at(revision, KeyRange::all()));
        let txn = Txn {
            success: vec![
                read(3),
                Op::Put(Put::new("c", "")),
                Op::Txn(Txn::of(vec![read(4), read(6), read(3)])),
            ],
            failure: vec![read(2)],
            ..Txn::default()
        };
        assert_eq!(store.txn(txn.clone()).await, twin.txn(txn.clone()).await);
        // One that was compacted refuses the transaction.
        same_compact(&store, &twin, 6).await;
        let revision = twin.status().await.unwrap().revision;
        assert_eq!(store.txn(txn.clone()).await, twin.txn(txn).await);
        assert_eq!(store.status().await.unwrap().revision, revision);
    }

    #[tokio::test]
    async fn a_compaction_before_the_base_forgets_what_is_before_it() {
        let (store, twin) = twins().await;
        for at in [3, 3, 2, 4, 5, 5, 4, 6, 5, 6] {
            same_compact(&store, &twin, at).await;
        }
    }

    #[tokio::test]
    async fn a_compaction_behind_the_base_forgets_all_that_is_before_it() {
        let (store, twin) = twins().await;
        same_compact(&store, &twin, 6).await;
        same_compact(&store, &twin, 4).await;
    }

    #[tokio::test]
    async fn an_old_store_that_is_gone_counts_as_compacted_only_where_it_may_be_gone() {
        let (store, _) = twins().await;
        let gone = |old_may_be_gone| {
            let old: Arc<dyn OldStore> = Arc::new(Gone);
            let reserved = Reserved::default();
            WithPast::new(store.store.clone(), old, BASE, reserved, old_may_be_gone)
        };
        let range = at(4, KeyRange::all());
        let compacted = StoreError::from(RequestError::Compacted(BASE));
        let answer = gone(true).range(range.clone()).await;
        assert_eq!(answer, Err(compacted.clone()));
        assert_eq!(gone(true).compact(Revision(4)).await, Err(compacted));
        assert_eq!(gone(false).range(range).await, Err(unavailable()));
    }

    fn unavailable() -> StoreError {
        StoreError::Unavailable("it is gone".into())
    }

    struct Gone;

    #[async_trait]
    impl OldStore for Gone {
        async fn identity(&self) -> Result<String> {
            Err(unavailable())
        }
        async fn revision(&self) -> Result<Revision> {
            Err(unavailable())
        }
        async fn get(&self, _: Vec<bytes::Bytes>) -> Result<Vec<Option<crate::types::KeyValue>>> {
            Err(unavailable())
        }
        async fn scan(&self, _: KeyRange, _: PageSize, _: Content) -> Result<crate::store::Page> {
            Err(unavailable())
        }
        async fn count(&self, _: KeyRange) -> Result<usize> {
            Err(unavailable())
        }
        async fn leases(&self) -> Result<Vec<crate::store::OldLease>> {
            Err(unavailable())
        }
        async fn range(&self, _: Range) -> Result<Option<RangeReply>> {
            Err(unavailable())
        }
    }
}

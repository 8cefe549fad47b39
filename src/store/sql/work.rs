//! What waits for the writer, and what a batch of it needs to have fetched.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, timeout_at};

use super::backend::Prefetch;
use crate::store::{
    CopyUp, FENCE, Guard, HOLD, RecordTxn, RecordWrite, Replay, Replayed, Result, StoreError,
};
use crate::types::range::successor;
use crate::types::{
    Answer, CompareTarget, Granted, KeyRange, KeyValue, LeaseId, Op, Reserved, Revision, Txn,
    TxnReply,
};

/// One entry of the writer's queue.
pub(super) enum Job {
    /// Carried out in a batch with others.
    Request(Request),
    /// Drop some whiteouts; answers whether there may be more.
    DropWhiteouts(oneshot::Sender<Result<bool>>),
}

/// A change that somebody waits for.
pub(super) struct Request {
    pub(super) guard: Guard,
    pub(super) work: Work,
    reply: oneshot::Sender<Result<Done>>,
    fate: Arc<OnceLock<Fate>>,
    /// For its bytes.
    _room: OwnedSemaphorePermit,
}

/// Whether a request that has waited for long is carried out after all. Whoever comes first decides it, the
/// writer or the one who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Begun,
    GivenUp,
}

/// Who waits for a request.
pub(super) struct Asker {
    answer: oneshot::Receiver<Result<Done>>,
    fate: Arc<OnceLock<Fate>>,
}

impl Request {
    /// With the one who waits for it.
    pub(super) fn new(guard: Guard, work: Work, room: OwnedSemaphorePermit) -> (Self, Asker) {
        let (reply, answer) = oneshot::channel();
        let fate = Arc::default();
        let asker = Asker {
            answer,
            fate: Arc::clone(&fate),
        };
        let request = Self {
            guard,
            work,
            reply,
            fate,
            _room: room,
        };
        (request, asker)
    }

    /// Whether anybody waits for it. If not, it must not be done: a client that was told nothing asks again,
    /// perhaps elsewhere, and what he asked for first would come behind that.
    pub(super) fn is_wanted(&self) -> bool {
        !self.reply.is_closed()
    }

    /// To be called before it is decided, as often as that is, or before; answers whether it may be done.
    pub(super) fn begin(&self) -> bool {
        self.is_wanted() && *self.fate.get_or_init(|| Fate::Begun) == Fate::Begun
    }

    /// Tells what became of it.
    pub(super) fn answer(self, done: Result<Done>) {
        // Whoever asked and went away again needs no answer.
        self.reply.send(done).ok();
    }
}

impl Asker {
    /// What became of the request. What has not been begun until then is not done any more.
    pub(super) async fn answer(mut self, until: Option<Instant>) -> Result<Done> {
        if let Some(until) = until {
            match timeout_at(until, &mut self.answer).await {
                Ok(answer) => return answer.unwrap_or_else(|_| Err(lost())),
                Err(_) if *self.fate.get_or_init(|| Fate::GivenUp) == Fate::GivenUp => {
                    return Err(late());
                }
                Err(_) => {}
            }
        }
        self.answer.await.unwrap_or_else(|_| Err(lost()))
    }
}

/// The writer did not come to it.
pub(super) fn late() -> StoreError {
    StoreError::Late("too much waits for the database, or it does not answer".into())
}

/// The writer has gone.
pub(super) fn lost() -> StoreError {
    StoreError::Unknown("the writer ended in the middle of a request".into())
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Work {
    /// Copy up what is unclaimed, then run the transaction; both or neither.
    Txn { copies: Vec<KeyValue>, txn: Txn },
    /// Copy up what is unclaimed, with a record.
    CopyUp(CopyUp),
    /// Grant a lease of this number.
    Grant { id: LeaseId, ttl_s: i64 },
    /// End a lease.
    Revoke(LeaseId),
    /// Begin a lease's time anew.
    KeepAlive(LeaseId),
    /// End those of the leases whose time is over, if the store serves and they are not held.
    Expire(Vec<LeaseId>),
    /// Write records, and the line.
    Records(RecordTxn),
    /// Make changes of another store.
    Replay(Replay),
    /// Take what was copied up, of these keys, for the store's own.
    Own(Vec<Bytes>),
    /// Forget the past.
    Compact(Revision),
}

/// What was done.
#[derive(Clone, Debug)]
pub(super) enum Done {
    /// Of [`Work::Txn`].
    Txn(Answer<TxnReply>),
    /// Of [`Work::CopyUp`].
    CopiedUp(Option<usize>),
    /// Of [`Work::Grant`].
    Granted(Answer<Granted>),
    /// Of [`Work::KeepAlive`].
    KeptAlive(Answer<Option<i64>>),
    /// Of [`Work::Records`] and [`Work::Replay`].
    Records(bool),
    /// Of [`Work::Revoke`], [`Work::Expire`], [`Work::Own`] and [`Work::Compact`].
    Plain(Answer<()>),
}

impl Work {
    /// Whether it cannot share a batch: the line, the fence, the hold on leases and the compacted revision are
    /// the same for a whole batch, and the rows are those that requests have changed.
    pub(super) fn is_solo(&self) -> bool {
        match self {
            Self::Records(txn) => {
                let of_all = |write: &RecordWrite| [FENCE, HOLD].contains(&&*write.name);
                txn.line.is_some() || !txn.forget.is_empty() || txn.writes.iter().any(of_all)
            }
            Self::Compact(_) | Self::Replay(_) | Self::Own(_) => true,
            _ => false,
        }
    }

    /// Whether a client asked for it, who does not wait for long. The proxy's own work has the time that it
    /// takes.
    pub(super) fn is_of_client(&self) -> bool {
        match self {
            Self::Txn { .. }
            | Self::Grant { .. }
            | Self::Revoke(_)
            | Self::KeepAlive(_)
            | Self::Compact(_) => true,
            Self::CopyUp(_)
            | Self::Expire(_)
            | Self::Records(_)
            | Self::Replay(_)
            | Self::Own(_) => false,
        }
    }

    /// About how many bytes of keys and values are in it.
    pub(super) fn size(&self) -> usize {
        let of_kvs = |kvs: &[KeyValue]| {
            kvs.iter()
                .map(|kv| kv.key.len() + kv.value.len())
                .sum::<usize>()
        };
        match self {
            Self::Txn { copies, txn } => {
                let mut size = of_kvs(copies);
                txn.visit(&mut |op| {
                    size += match op {
                        Op::Put(put) => put.key.len() + put.value.as_ref().map_or(0, Bytes::len),
                        Op::Range(range) => range.keys.start().len(),
                        Op::Delete(delete) => delete.keys.start().len(),
                        Op::Txn(_) => 0,
                    };
                });
                txn.visit_compares(&mut |compare| {
                    size += compare.keys.start().len();
                    if let CompareTarget::Value(value) = &compare.target {
                        size += value.len();
                    }
                });
                size
            }
            Self::CopyUp(copy_up) => of_kvs(&copy_up.kvs),
            Self::Replay(replay) => {
                let sizes = replay.changes.iter().map(|change| {
                    change.key().len() + change.live().map_or(0, |kv| kv.value.len())
                });
                sizes.sum()
            }
            _ => 0,
        }
    }

    /// Calls `see` with every key that is written with a new value, and the value's length.
    pub(super) fn visit_written<'a>(&'a self, see: &mut dyn FnMut(&'a Bytes, usize)) {
        let copies = match self {
            Self::Txn { copies, .. } => copies,
            Self::CopyUp(copy_up) => &copy_up.kvs,
            Self::Replay(replay) => {
                for kv in replay.changes.iter().filter_map(Replayed::live) {
                    see(&kv.key, kv.value.len());
                }
                return;
            }
            _ => return,
        };
        for kv in copies {
            see(&kv.key, kv.value.len());
        }
        if let Self::Txn { txn, .. } = self {
            txn.visit(&mut |op| {
                if let Op::Put(put) = op {
                    see(&put.key, put.value.as_ref().map_or(0, Bytes::len));
                }
            });
        }
    }

    fn want(&self, reserved: &Reserved, claims: Claims, want: &mut Prefetch) {
        match self {
            Self::Txn { copies, txn } => {
                for kv in copies {
                    want.keys.push(kv.key.clone());
                    want_lease(kv.lease, want);
                }
                want_txn(txn, reserved, want);
            }
            Self::CopyUp(copy_up) => {
                for kv in &copy_up.kvs {
                    want_lease(kv.lease, want);
                }
                match claims {
                    Claims::BySpan => want.claims.extend(span_of(&copy_up.kvs)),
                    Claims::ByKey => want.keys.extend(keys_of(&copy_up.kvs).cloned()),
                }
                let record = copy_up.record.iter();
                want.records
                    .extend(record.map(|(write, _)| write.name.clone()));
            }
            Self::Grant { id, .. } | Self::KeepAlive(id) => want.leases.push(*id),
            Self::Revoke(id) => {
                want.leases.push(*id);
                want.attached.push(*id);
            }
            Self::Expire(ids) => {
                want.leases.extend(ids);
                want.attached.extend(ids);
                want.records.push(HOLD.to_owned());
            }
            Self::Records(txn) => {
                let expected = txn.expect.iter().map(|(name, _)| name);
                let written = txn.writes.iter().map(|write| &write.name);
                want.records.extend(expected.chain(written).cloned());
                want.keys.extend(txn.forget.iter().cloned());
            }
            Self::Own(keys) => want.keys.extend(keys.iter().cloned()),
            Self::Replay(replay) => {
                for change in &replay.changes {
                    want.keys.push(change.key().clone());
                    want_lease(change.live().map_or(LeaseId::NONE, |kv| kv.lease), want);
                }
                want.records.push(replay.record.0.name.clone());
            }
            Self::Compact(_) => {}
        }
    }
}

/// How it is found out which pairs of a copy-up are claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claims {
    /// By looking at what is there from the first to the last of them. Mostly that is little, since the
    /// pairs follow each other in the old store.
    BySpan,
    /// By looking for each of them.
    ByKey,
}

/// All that the batch needs.
pub(super) fn want(batch: &[Request], reserved: &Reserved, claims: Claims) -> Prefetch {
    let mut want = Prefetch::default();
    for request in batch {
        request.work.want(reserved, claims, &mut want);
    }
    want.tidy();
    want
}

fn keys_of(kvs: &[KeyValue]) -> impl Iterator<Item = &Bytes> {
    kvs.iter().map(|kv| &kv.key)
}

fn span_of(kvs: &[KeyValue]) -> Option<KeyRange> {
    let (first, last) = (keys_of(kvs).min()?, keys_of(kvs).max()?);
    Some(KeyRange::span(first.clone(), Some(successor(last))))
}

fn want_lease(id: LeaseId, want: &mut Prefetch) {
    if id.is_some() && want.leases.last() != Some(&id) {
        want.leases.push(id);
    }
}

fn want_range(keys: &KeyRange, reserved: &Reserved, want: &mut Prefetch) {
    match keys {
        KeyRange::One(key) => want.keys.push(key.clone()),
        KeyRange::Span { .. } => want.spans.extend(reserved.visible(keys)),
    }
}

/// All that a transaction needs, whichever branches it takes.
pub(super) fn want_txn(txn: &Txn, reserved: &Reserved, want: &mut Prefetch) {
    txn.visit_compares(&mut |compare| want_range(&compare.keys, reserved, want));
    txn.visit(&mut |op| match op {
        Op::Range(range) => match range.past() {
            None => want_range(&range.keys, reserved, want),
            Some(at) => {
                // The revision may turn out to be the present one, or one of this very batch: then
                // the present rows are what it is read from.
                want_range(&range.keys, reserved, want);
                let parts = reserved.visible(&range.keys);
                want.past.extend(parts.into_iter().map(|part| (part, at)));
            }
        },
        Op::Put(put) => {
            want.keys.push(put.key.clone());
            want_lease(put.lease.unwrap_or_default(), want);
        }
        Op::Delete(delete) => want_range(&delete.keys, reserved, want),
        Op::Txn(_) => {}
    });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::Semaphore;

    use super::*;
    use crate::types::{Compare, CompareResult, Range};

    async fn request() -> (Request, Asker) {
        let room = Arc::new(Semaphore::new(1));
        let room = room.acquire_owned().await.unwrap();
        Request::new(Guard::None, Work::KeepAlive(LeaseId(1)), room)
    }

    #[tokio::test]
    async fn what_many_requests_need_is_fetched_once() {
        let span = |start: &'static str, end: Option<&'static str>| {
            KeyRange::span(start, end.map(Bytes::from))
        };
        let compare = |keys: KeyRange| Compare {
            keys,
            result: CompareResult::Equal,
            target: CompareTarget::Version(0),
        };
        let read = |at| {
            Op::Range(Range {
                at: Some(Revision(at)),
                ..Range::of(span("p", Some("q")))
            })
        };
        let room = Arc::new(Semaphore::new(10));
        let mut batch = Vec::new();
        for keys in [
            span("m", None),
            span("c", Some("e")),
            span("a", Some("d")),
            span("a", Some("b")),
            span("e", Some("f")),
            span("g", Some("h")),
            span("x", Some("y")),
        ] {
            let txn = Txn {
                compares: vec![compare(keys)],
                success: vec![read(2), read(1)],
                failure: vec![],
            };
            let copies = Vec::new();
            let room = room.clone().acquire_owned().await.unwrap();
            batch.push(Request::new(Guard::None, Work::Txn { copies, txn }, room).0);
        }
        let want = want(&batch, &Reserved::default(), Claims::BySpan);
        let all = [
            span("a", Some("f")),
            span("g", Some("h")),
            // Without those of Segue's own, which are not seen.
            span("m", Some("segue/")),
            span("segue0", None),
        ];
        assert_eq!(want.spans, all);
        let past = span("p", Some("q"));
        assert_eq!(
            want.past,
            [(past.clone(), Revision(2)), (past, Revision(1))]
        );
    }

    #[tokio::test]
    async fn what_is_not_begun_in_time_is_not_done() {
        let (request, asker) = request().await;
        let told = asker.answer(Some(Instant::now())).await;
        assert!(matches!(told, Err(StoreError::Late(_))), "{told:?}");
        assert!(!request.begin() && !request.is_wanted());
    }

    #[tokio::test]
    async fn what_was_begun_in_time_is_waited_for() {
        let (request, asker) = request().await;
        assert!(request.begin());
        let answer = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            // It is decided again where a commit did not happen.
            assert!(request.begin());
            request.answer(Ok(Done::Records(true)));
        };
        let (told, ()) = tokio::join!(asker.answer(Some(Instant::now())), answer);
        assert!(matches!(told, Ok(Done::Records(true))), "{told:?}");
    }

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_is_not_begun() {
        let (request, asker) = request().await;
        assert!(request.is_wanted() && request.begin());
        drop(asker);
        assert!(!request.is_wanted() && !request.begin());
    }
}

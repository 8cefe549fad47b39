//! What a migration needs of the store that the data goes to.

use std::future::ready;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _};

use super::fewer::{self, UNMEASURED_PAIRS};
use super::{OldState, PageSize, Result, Store, StoreError, Watch, WatchItem};
use crate::types::range::successor;
use crate::types::{
    Answer, Content, Epoch, KeyRange, KeyValue, Range, RangeReply, Revision, Txn, TxnReply,
};

/// A store that a migration can go to.
///
/// Besides its keys it holds the **line** (epoch, whether claims are left, where the revisions go on)
/// and named **records**, in which the migration keeps its state. Records are no keys: they are
/// never seen by ranges, counts and watches, and where the store assigns revisions by itself they
/// take none.
#[async_trait]
pub trait NewStore: Send + Sync + 'static {
    /// What makes this store the one it is; see [`super::OldStore::identity`].
    async fn identity(&self) -> Result<String>;

    /// A handle on the store whose every operation holds to `guard`.
    fn guarded(&self, guard: Guard) -> Arc<dyn GuardedStore>;

    /// The line as it stands now; nothing before a migration has set it, and after settle.
    async fn line(&self) -> Result<Option<Line>>;

    /// See [`super::OldStore::state`].
    async fn state(&self) -> Result<Option<OldState>> {
        Ok(None)
    }

    /// All records whose names begin with `prefix`, in the order of their names, in one snapshot.
    async fn records(&self, prefix: &str) -> Result<Vec<Record>>;

    /// Carries out `txn` if all that it expects holds; answers whether it did.
    async fn write_records(&self, txn: RecordTxn) -> Result<bool>;

    /// Makes changes here that were made in another store, as they were made there: keys get the numbers
    /// that they had there, no event is made and no revision taken. Answers false, with nothing done, if
    /// the record is not in the expected version.
    ///
    /// Whatever the line and the fence say: what keeps late comers out is the record. Changes and record are
    /// one transaction or, where the store takes several, each holds to the record's version and the record
    /// is in the last: it never says more than what is there, and to repeat the rest does no harm.
    ///
    /// Fails with [`super::RequestError::LeaseNotFound`] if a pair's lease does not exist. Fails with
    /// [`super::RequestError::TooManyOperations`] or [`super::RequestError::TooLarge`] if it is more than the
    /// store takes at once: callers try again with fewer changes.
    async fn replay(&self, replay: Replay) -> Result<bool>;

    /// Why the store cannot take a pair of these sizes, if it is known to be unable to.
    fn unacceptable(&self, key: &[u8], value_len: usize) -> Option<String> {
        let _ = (key, value_len);
        None
    }

    /// Tells by an item each time that `key` may have changed; ends when it no longer can. Only for
    /// whoever looks now and then anyhow and wants to be quicker: it may miss a change, and should cost
    /// requests for other keys nothing.
    async fn changes_of(&self, key: Bytes) -> Result<BoxStream<'static, ()>> {
        let watch = Watch::of(KeyRange::One(key), None);
        let items = self.guarded(Guard::None).watch(watch).await?.items;
        let lasts = |item: &WatchItem| ready(!matches!(item, WatchItem::End(_)));
        Ok(items.take_while(lasts).map(drop).boxed())
    }

    /// Whether the store holds no keys, claims and records at all.
    async fn is_empty(&self) -> Result<bool>;

    /// Removes all claims of deleted keys (and, where they are records of their own, those of live
    /// ones), and whatever else the store keeps for claims alone. May take long; can be interrupted and
    /// repeated.
    ///
    /// Fails with [`super::StoreError::StaleEpoch`], and removes none, while there is a line: until
    /// settle the claims are what keeps deleted keys from coming back.
    async fn drop_claims(&self) -> Result<()>;

    /// Removes the claims that nobody needs any more once the migration is settled, as [`Self::drop_claims`]
    /// does. Where the numbers that clients know of a key are in its claim, that one stays.
    async fn settle_claims(&self) -> Result<()> {
        self.drop_claims().await
    }

    /// Removes everything: keys (reserved ones too), leases, records, claims, line and history.
    /// Whoever still works on a migration in the store is refused from then on. May take long; can be
    /// interrupted and repeated, and until it is done the record [`EMPTYING`] says so. Revisions need not begin
    /// anew.
    async fn clear(&self) -> Result<()>;

    /// Ends all work on the store in this process, so that what it lives in is complete: a file needs nothing
    /// that stands beside it then. Whatever is asked for afterwards may be refused.
    async fn close(&self) {}

    /// Resolves with the name of what has died by a fault in the program, if it is something that the store
    /// does nothing without in this process. Nothing may be asked of it any more then but to [`Self::close`].
    async fn astray(&self) -> String {
        std::future::pending().await
    }
}

/// What every operation through a handle holds to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Nothing: a store without a migration, or one that is settled.
    None,
    /// Nothing, and revisions are the store's own, whatever line it carries on. For what a migration reads
    /// of keys besides its records: to all members it is the same, whenever they have joined.
    Raw,
    /// There is no fence, in the same transaction or snapshot; else as with a wrong epoch. For an
    /// old store that serves clients until the migration begins.
    Unfenced,
    /// There is no line, in the same transaction or snapshot; else as with a wrong epoch. For a new store
    /// that nobody is served from.
    NoLine,
    /// The store's epoch is this one, in the same transaction or snapshot; else the operation fails
    /// with [`super::StoreError::StaleEpoch`].
    Epoch {
        /// The epoch.
        epoch: Epoch,
        /// Every key that is written leaves a claim (equal to the line's `claims` of that epoch).
        claims: bool,
    },
}

impl Guard {
    /// Whether an operation under this may be carried out in a store that has a fence, or not, and this
    /// line, or none. Fails with [`super::StoreError::StaleEpoch`].
    pub fn admit(self, fenced: bool, line: Option<Line>) -> Result<()> {
        let holds = match self {
            Self::None | Self::Raw => true,
            Self::Unfenced => !fenced,
            Self::NoLine => line.is_none(),
            Self::Epoch { epoch, .. } => line.is_some_and(|line| line.epoch == epoch),
        };
        if holds {
            Ok(())
        } else {
            Err(StoreError::StaleEpoch)
        }
    }
}

/// The record that is a store's fence: while it is there, nothing is done under [`Guard::Unfenced`].
pub const FENCE: &str = "fence";

/// What [`FENCE`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The migration that has put it there.
    pub migration: String,
    /// The epoch that began with it.
    pub epoch: Epoch,
}

impl Fence {
    /// As the record holds it.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        format!("{} {}", self.migration, self.epoch).into()
    }

    /// From the record.
    #[must_use]
    pub fn read(value: &[u8]) -> Self {
        let text = String::from_utf8_lossy(value);
        let (migration, epoch) = text.split_once(' ').unwrap_or((&text, "0"));
        Self {
            migration: migration.to_owned(),
            epoch: Epoch(epoch.parse().unwrap_or_default()),
        }
    }
}

/// The record that holds a store's leases: while it is there, none ends by itself, and when it goes, the
/// time of all begins anew. For a new store whose part of the line is over, and that a member who has not
/// noticed yet may still tell its clients of. Without effect in an etcd, which ends leases whatever anybody
/// has written: there the watches tell; see [`super::WatchItem::Epoch`].
pub const HOLD: &str = "hold";

/// The record that says that the store is being emptied: there from before the first deletion until nothing
/// else is left; see [`NewStore::clear`]. What a store holds beside it is a rest that nobody should take for
/// the whole.
pub const EMPTYING: &str = "emptying";

/// Where the store stands in the migration. Changed only together with the state record.
///
/// An old store that was fenced gets a line when it is to serve again: its keys keep the numbers that they
/// showed before, replayed ones those that they came with, and the next change is behind the base. While it
/// has a fence and no line, nobody is served and no lease ends by itself (in an etcd, leases do).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// The only epoch whose operations the store carries out.
    pub epoch: Epoch,
    /// Every key that is written leaves a claim, also one that the old store never had. Without it
    /// those need none, since all that the old store has is claimed. A claim once made stays until
    /// the line is removed in either case: deleted or expired, the key leaves a whiteout.
    pub claims: bool,
    /// The last revision that belongs to the old store: the next change is the one after it or a
    /// later one. A store that assigns revisions by itself translates by a fixed offset from here.
    pub base: Revision,
}

/// A named piece of the migration's own state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its name, in segments set apart by `/`.
    pub name: String,
    /// What it says.
    pub value: Bytes,
    /// Counts the record's writes: 1 when it is made, one more with each write; from 1 again if it
    /// was removed in between.
    pub version: i64,
}

/// Compare-and-put on records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordTxn {
    /// Versions that the named records must have now; 0 is "does not exist".
    pub expect: Vec<(String, i64)>,
    /// What is written then.
    pub writes: Vec<RecordWrite>,
    /// What becomes of the line: left alone, or set, or removed.
    pub line: Option<Option<Line>>,
    /// Keys of the migration's own that go with it, as if they had never been: no event is made and no
    /// revision taken that clients see, and no whiteout stays.
    pub forget: Vec<Bytes>,
}

/// A write of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordWrite {
    /// Which.
    pub name: String,
    /// The new value; nothing removes it.
    pub value: Option<Bytes>,
}

/// A handle on a new store: the store's operations, and those that know of claims, all of them
/// under the [`Guard`] that the handle was made with.
#[async_trait]
pub trait GuardedStore: Store {
    /// Several reads in one snapshot. Replies are in the order of the reads.
    ///
    /// `at` as in [`Range::at`], which the reads themselves leave empty. A claimed key shows its
    /// state at that revision; one that was copied up later, the state it was copied up in.
    async fn snapshot(
        &self,
        at: Option<Revision>,
        reads: Vec<Read>,
    ) -> Result<Answer<Vec<ReadReply>>>;

    /// What the store has decided about `keys`, now: a [`Read::Claims`] alone. Fails if the answer is
    /// anything else, since whoever takes that for "nothing is claimed" may delete what is.
    async fn claims(&self, keys: KeyRange, values: usize) -> Result<Vec<Claim>> {
        let read = Read::Claims { keys, values };
        let [claims] = exactly(self.snapshot(None, vec![read]).await?.reply)?;
        claims.into_claims()
    }

    /// The first of what the store has decided about `keys`, with values, and the first key behind that if
    /// it is not all: `size` is for whiteouts, too. Where no claims are asked for at once that end in the
    /// middle, as here, bytes are not held to: there are few, and half as many whenever that fails.
    async fn first_claims(
        &self,
        keys: KeyRange,
        size: PageSize,
    ) -> Result<(Vec<Claim>, Option<Bytes>)> {
        let keys = &keys;
        let first = |most: usize| async move {
            let request = Range {
                limit: most,
                content: Content::KeysOnly,
                ..Range::of(keys.clone())
            };
            let reply = self.range(request).await?.reply;
            let last = reply.kvs.last().filter(|_| reply.more);
            let end = last.map(|kv| successor(&kv.key));
            let part = match &end {
                Some(end) => KeyRange::span(keys.start().clone(), Some(end.clone())),
                None => keys.clone(),
            };
            Ok((self.claims(part, usize::MAX).await?, end))
        };
        let answers = || async { self.status().await.is_ok() };
        let mut most = size.pairs.clamp(1, UNMEASURED_PAIRS);
        fewer::until_it_fits(&mut most, first, answers).await
    }

    /// Copies up `copies`, each only if its key is unclaimed, then runs `txn`. Whether copies stay made if the
    /// transaction fails is the store's choice; see [`Self::replace`].
    async fn txn_over(&self, copies: Vec<KeyValue>, txn: Txn) -> Result<Answer<TxnReply>>;

    /// Runs `txn` over keys that the old store holds and that cannot be copied up: unconditionally and whatever
    /// they are it puts or deletes each of them, and shows nothing of what was there. Where one is unclaimed it is
    /// to `txn` as if the pair in `unseen` had been copied up, which has neither value nor lease; where the store
    /// assigns numbers by itself, a put may begin a new life of it instead.
    ///
    /// All or nothing: without the change there is no claim, or the pair of the old store would be lost.
    async fn replace(&self, unseen: Vec<KeyValue>, txn: Txn) -> Result<Answer<TxnReply>> {
        // For stores that undo the copies of a transaction that fails.
        self.txn_over(unseen, txn).await
    }

    /// Copies up many keys, each only if it is unclaimed, together with a record (the backfill's
    /// cursor), in one transaction. Answers how many were unclaimed, or nothing if the record was
    /// not in the expected version, and then nothing was done.
    ///
    /// Fails with [`super::RequestError::LeaseNotFound`] if a copy's lease does not exist: callers
    /// grant leases first. Fails with [`super::RequestError::TooManyOperations`] or
    /// [`super::RequestError::TooLarge`] if it is more than the store takes at once: callers try
    /// again with fewer pairs.
    async fn copy_up(&self, copy_up: CopyUp) -> Result<Option<usize>>;

    /// Claims every key that is live and unclaimed, so that no copy-up touches it: those that the
    /// store held before the line was set. Nothing to do where a row is a claim. May be interrupted,
    /// repeated, and done by several at once, but nobody may be served before it is done.
    async fn claim_present(&self) -> Result<()>;
}

/// One of several reads in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// Live keys, as a client would read them.
    Range(Range),
    /// Everything that is claimed, live or deleted, in key order; reserved keys are hidden as from
    /// a range.
    Claims {
        /// Which keys.
        keys: KeyRange,
        /// How many live pairs, from the first, come with their values; the rest without.
        values: usize,
    },
}

/// The reply to a [`Read`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadReply {
    /// To [`Read::Range`].
    Range(RangeReply),
    /// To [`Read::Claims`].
    Claims(Vec<Claim>),
}

impl ReadReply {
    /// The pairs. Fails if something else was answered.
    pub fn into_range(self) -> Result<RangeReply> {
        match self {
            Self::Range(range) => Ok(range),
            Self::Claims(_) => Err(StoreError::Broken(
                "the new store answered a read of pairs with claims".into(),
            )),
        }
    }

    /// The claims. Fails if something else was answered.
    pub fn into_claims(self) -> Result<Vec<Claim>> {
        match self {
            Self::Claims(claims) => Ok(claims),
            Self::Range(_) => Err(StoreError::Broken(
                "the new store answered a read of claims with pairs".into(),
            )),
        }
    }
}

/// The replies to so many reads. Fails if there are more or fewer.
pub fn exactly<const READS: usize>(replies: Vec<ReadReply>) -> Result<[ReadReply; READS]> {
    replies
        .try_into()
        .map_err(|replies: Vec<ReadReply>| miscounted(READS, replies.len()))
}

/// The error of a store that answers another number of reads than it was asked for.
#[must_use]
pub fn miscounted(reads: usize, replies: usize) -> StoreError {
    StoreError::Broken(format!(
        "the new store answered {reads} reads with {replies} replies"
    ))
}

/// What the new store has decided about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is live there, and was written there.
    Live(KeyValue),
    /// It was copied up and has not changed since. (At a revision of the past, a store may call it
    /// live.)
    Copied(KeyValue),
    /// It is deleted: a whiteout.
    Whiteout(Bytes),
}

impl Claim {
    /// The claimed key.
    #[must_use]
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Live(kv) | Self::Copied(kv) => &kv.key,
            Self::Whiteout(key) => key,
        }
    }

    /// The pair, unless it is deleted.
    #[must_use]
    pub fn live(&self) -> Option<&KeyValue> {
        match self {
            Self::Live(kv) | Self::Copied(kv) => Some(kv),
            Self::Whiteout(_) => None,
        }
    }
}

/// Keys on their way from the old store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyUp {
    /// The pairs as they were in the old store, numbers included.
    pub kvs: Vec<KeyValue>,
    /// A record to write in the same transaction, and the version that it must have before.
    pub record: Option<(RecordWrite, i64)>,
}

/// Changes of another store; see [`NewStore::replay`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// What became of keys; each key at most once.
    pub changes: Vec<Replayed>,
    /// A record to write with them, and the version that it must have before.
    pub record: (RecordWrite, i64),
}

/// What became of a key in the other store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// It was written last as this pair.
    Put(KeyValue),
    /// It was deleted.
    Delete {
        /// The key.
        key: Bytes,
        /// When.
        revision: Revision,
    },
}

impl Replayed {
    /// The changed key.
    #[must_use]
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put(kv) => &kv.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// The pair, unless it was deleted.
    #[must_use]
    pub fn live(&self) -> Option<&KeyValue> {
        match self {
            Self::Put(kv) => Some(kv),
            Self::Delete { .. } => None,
        }
    }

    /// Bytes of key and value.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.key().len() + self.live().map_or(0, |kv| kv.value.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_to_another_question_is_not_taken_for_nothing() {
        let pairs = || ReadReply::Range(RangeReply::default());
        let claims = || ReadReply::Claims(Vec::new());
        let broken = |error: StoreError| matches!(error, StoreError::Broken(_));
        assert_eq!(claims().into_claims(), Ok(Vec::new()));
        assert_eq!(pairs().into_range(), Ok(RangeReply::default()));
        assert!(broken(pairs().into_claims().unwrap_err()));
        assert!(broken(claims().into_range().unwrap_err()));
        assert_eq!(exactly(vec![claims()]), Ok([claims()]));
        for replies in [vec![], vec![claims(), claims()]] {
            assert!(broken(exactly::<1>(replies).unwrap_err()));
        }
    }
}

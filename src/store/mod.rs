//! What stands behind the proxy: the traits, their errors, and one module per kind of store.
//!
//! - [`Store`] is etcd's data model as the proxy serves it. Every new store implements it, and so
//!   does the overlay: the contract suite in `tests/` runs on all of them.
//! - [`NewStore`] is what a migration needs from the store that the data goes to, besides.
//! - [`OldStore`] is the little that is needed of the store that the data comes from.

mod clear;
pub mod error;
pub mod etcd2;
pub mod etcd3;
pub mod eval;
pub mod feed;
mod fewer;
pub mod foreign;
mod gather;
pub mod lease;
mod login;
pub mod mark;
pub mod memory;
pub mod new;
pub mod old;
pub mod open;
pub mod sql;
pub mod table;
pub mod tls;
pub mod url;
pub mod watch;

use async_trait::async_trait;

use crate::types::{
    Answer, Content, Delete, DeleteReply, Grant, Granted, KeyRange, LeaseId, LeaseStatus, Op, Put,
    PutReply, Range, RangeReply, Reply, Revision, Txn, TxnReply,
};

pub use error::{RequestError, Result, StoreError};
pub use new::{
    Claim, CopyUp, EMPTYING, FENCE, Fence, Guard, GuardedStore, HOLD, Line, NewStore, Read,
    ReadReply, Record, RecordTxn, RecordWrite, Replay, Replayed, exactly, miscounted,
};
pub use old::{AsOld, Left, OldLease, OldState, OldStore, Page, PageSize};
pub use open::{open_new, open_old};
pub use url::StoreUrl;
pub use watch::{Watch, WatchEnd, WatchItem, Watching};

/// A key-value store with etcd's semantics: strictly serializable, one revision per transaction
/// that changes something, reads and watches of the past until it is compacted.
///
/// Every method is cancel-safe in this sense: a write whose future is dropped happens wholly or not
/// at all.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads keys.
    ///
    /// Fails with [`RequestError::Compacted`] below the compacted revision (reading exactly at it is
    /// allowed) and with [`RequestError::FutureRevision`] above the current one.
    async fn range(&self, request: Range) -> Result<Answer<RangeReply>>;

    /// The first pairs of `keys`, in byte order and as they are now; see [`OldStore::scan`].
    ///
    /// Of a store that cannot be told about bytes, all pairs are held until the page is cut.
    async fn page(&self, keys: KeyRange, size: PageSize, content: Content) -> Result<Page> {
        let range = Range {
            limit: size.pairs.max(1),
            content,
            ..Range::of(keys)
        };
        let reply = self.range(range).await?.reply;
        Ok(Page::of(reply.kvs, reply.count, size))
    }

    /// Runs a transaction. One that changes nothing takes no revision.
    ///
    /// Fails as a whole, with nothing done, if an operation in the branch taken fails.
    async fn txn(&self, request: Txn) -> Result<Answer<TxnReply>>;

    /// Writes one key.
    async fn put(&self, request: Put) -> Result<Answer<PutReply>> {
        Ok(self
            .txn(Txn::of(vec![Op::Put(request)]))
            .await?
            .map(|mut reply| match reply.replies.pop() {
                Some(Reply::Put(put)) => put,
                _ => PutReply::default(),
            }))
    }

    /// Removes keys. One that removes nothing takes no revision.
    async fn delete(&self, request: Delete) -> Result<Answer<DeleteReply>> {
        Ok(self
            .txn(Txn::of(vec![Op::Delete(request)]))
            .await?
            .map(|mut reply| match reply.replies.pop() {
                Some(Reply::Delete(delete)) => delete,
                _ => DeleteReply::default(),
            }))
    }

    /// Forgets what was superseded at or before `at`.
    ///
    /// Fails with [`RequestError::Compacted`] if that was done already, and with
    /// [`RequestError::FutureRevision`] if `at` is above the current revision.
    async fn compact(&self, at: Revision) -> Result<Answer<()>>;

    /// The same, for those to whom it is all the same whether that was done already.
    async fn forget(&self, at: Revision) -> Result<()> {
        match self.compact(at).await {
            Ok(_) | Err(StoreError::Request(RequestError::Compacted(_))) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Opens a watch. Everything that ends it later, a start below the compacted revision included,
    /// arrives as its last item.
    async fn watch(&self, request: Watch) -> Result<Watching>;

    /// Grants a lease.
    ///
    /// Fails with [`RequestError::LeaseExists`] if the wanted number is taken.
    async fn grant(&self, request: Grant) -> Result<Answer<Granted>>;

    /// Ends a lease and deletes its keys in one revision.
    ///
    /// Fails with [`RequestError::LeaseNotFound`] if there is none.
    async fn revoke(&self, id: LeaseId) -> Result<Answer<()>>;

    /// Starts the lease's time anew; answers its full time to live in seconds, or nothing if there
    /// is no such lease.
    async fn keep_alive(&self, id: LeaseId) -> Result<Answer<Option<i64>>>;

    /// How the lease stands, or nothing if there is no such lease.
    async fn time_to_live(&self, id: LeaseId, keys: bool) -> Result<Answer<Option<LeaseStatus>>>;

    /// All leases, in the order of their numbers.
    async fn leases(&self) -> Result<Answer<Vec<LeaseId>>>;

    /// Sizes, revisions and whatever is wrong.
    async fn status(&self) -> Result<Status>;

    /// Gives space back that deleted data held.
    async fn defragment(&self) -> Result<()>;
}

/// How a store is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The current revision.
    pub revision: Revision,
    /// Everything superseded at or before this one is forgotten; 0 is nothing.
    pub compacted: Revision,
    /// Bytes that the store takes up.
    pub size: u64,
    /// Bytes of them that hold data.
    pub size_in_use: u64,
}

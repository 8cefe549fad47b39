//! Failures, typed by what the caller may conclude.

use crate::types::Revision;

/// The result of an operation on a store.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Why an operation on a store failed, and whether it may have happened all the same.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum StoreError {
    /// The request cannot be carried out as it is. It did not happen, and will not if repeated.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The asserted epoch is no longer the store's. It did not happen: load the migration's state
    /// and decide anew.
    #[error("the migration has moved on to another phase")]
    StaleEpoch,
    /// The store cannot be reached or is not ready. It did not happen: safe to retry.
    #[error("{0}")]
    Unavailable(String),
    /// The store did not come to it in time. It did not happen: safe to retry.
    #[error("{0}")]
    Late(String),
    /// The store did not answer in time or the connection broke after the request was sent.
    /// It may have happened: must not be repeated blindly, nor reported as a clean failure.
    #[error("{0}")]
    Unknown(String),
    /// The store holds something that it should not, or misbehaves. It did not happen.
    #[error("{0}")]
    Broken(String),
}

impl StoreError {
    /// Whether it is the same however often the operation is repeated, until somebody does something about it.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Request(_) | Self::Broken(_))
    }
}

/// What can be wrong with a request, in the terms of etcd's own answers.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum RequestError {
    /// The revision asked for was compacted.
    #[error("the revision is compacted; the oldest that can be had is {0}")]
    Compacted(Revision),
    /// The revision asked for has not been reached.
    #[error("the revision lies in the future")]
    FutureRevision,
    /// A put wants to keep the value or lease of a key that does not exist.
    #[error("the key whose value or lease should be kept does not exist")]
    KeyNotFound,
    /// There is no such lease.
    #[error("the lease does not exist")]
    LeaseNotFound,
    /// A lease of this number exists.
    #[error("a lease of this number exists")]
    LeaseExists,
    /// The time to live is longer than a lease may have.
    #[error("the lease's time to live is too long")]
    LeaseTtlTooLarge,
    /// One transaction writes one key twice.
    #[error("a key is written twice in one transaction")]
    DuplicateKey,
    /// The transaction has more operations than the store takes.
    #[error("the transaction has too many operations")]
    TooManyOperations,
    /// The request is larger than the store takes.
    #[error("the request is too large")]
    TooLarge,
    /// The store is full.
    #[error("the store is out of space")]
    NoSpace,
    /// The store wants other credentials.
    #[error("the store refuses the credentials: {0}")]
    Credentials(String),
    /// The store cannot take this key or value, for this reason.
    #[error("{0}")]
    Unacceptable(String),
    /// The store does not have this operation, for this reason.
    #[error("{0}")]
    Unsupported(String),
}

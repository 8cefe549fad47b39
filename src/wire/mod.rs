//! Between etcd's wire format and the project's words, in both directions, in one place.
//!
//! `api` reads requests and writes replies with it, the etcd v3 store writes requests and reads
//! replies. Nothing is copied: keys and values are shared with the message that they came in.
//!
//! Replies are written without a header, which only the caller can fill in.

mod codec;
mod kv;
mod lease;
mod reply;
mod request;

pub use codec::Fitting;

/// A request that cannot be put into words. Values that etcd refuses for what they *say* are let
/// through: to refuse them is the business of `api`.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Malformed {
    /// A sort order or sort target that does not exist.
    #[error("invalid sort option")]
    SortOption,
    /// A comparison of a kind that does not exist.
    #[error("invalid compare option")]
    CompareOption,
    /// An operation of a transaction that says nothing.
    #[error("key not found")]
    EmptyOperation,
}

/// A length as the wire has it.
fn length(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

/// A length from the wire; nothing is negative here.
fn count(length: i64) -> usize {
    usize::try_from(length).unwrap_or(0)
}

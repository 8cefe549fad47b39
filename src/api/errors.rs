//! Failures in etcd's own codes and texts, on which clients match.

use tonic::{Code, Status};

use crate::store::{RequestError, StoreError};
use crate::wire::Malformed;

/// What is wrong with a request that no store needs to see.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Refusal {
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    #[error("etcdserver: key not found")]
    EmptyOperation,
    #[error("etcdserver: value is provided")]
    ValueProvided,
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    #[error("etcdserver: too many operations in txn request")]
    TooManyOperations,
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    #[error("etcdserver: invalid sort option")]
    SortOption,
    #[error("etcdserver: invalid compare option")]
    CompareOption,
    #[error("etcdserver: request is too large")]
    TooLarge,
    #[error("etcdserver: too large lease TTL")]
    LeaseTtl,
}

impl From<Malformed> for Refusal {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::SortOption => Self::SortOption,
            Malformed::CompareOption => Self::CompareOption,
            Malformed::EmptyOperation => Self::EmptyOperation,
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal {
            Refusal::LeaseTtl => Code::OutOfRange,
            _ => Code::InvalidArgument,
        };
        Self::new(code, refusal.to_string())
    }
}

/// What a client is told of `error`.
///
/// A write whose outcome is unknown ends in `Unavailable`, as etcd's do. Never in `DeadlineExceeded`, which says
/// the same in gRPC's own words: the Go client takes that for its own deadline of one attempt and repeats the
/// request, writes too, while it repeats no write on `Unavailable`.
pub(super) fn status(error: &StoreError) -> Status {
    use RequestError as R;
    let (code, text): (Code, &str) = match error {
        StoreError::Request(request) => match request {
            R::Compacted(_) => (Code::OutOfRange, COMPACTED),
            R::FutureRevision => (
                Code::OutOfRange,
                "etcdserver: mvcc: required revision is a future revision",
            ),
            R::KeyNotFound => (Code::InvalidArgument, "etcdserver: key not found"),
            R::LeaseNotFound => (Code::NotFound, "etcdserver: requested lease not found"),
            R::LeaseExists => (Code::FailedPrecondition, "etcdserver: lease already exists"),
            R::LeaseTtlTooLarge => return Refusal::LeaseTtl.into(),
            R::DuplicateKey => return Refusal::DuplicateKey.into(),
            R::TooManyOperations => return Refusal::TooManyOperations.into(),
            R::TooLarge => return Refusal::TooLarge.into(),
            R::NoSpace => (
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
            ),
            // The proxy's credentials, not the client's: a client that is told "invalid auth token"
            // would log in anew, and there is nothing to log in to.
            R::Credentials(why) => {
                tracing::warn!(%why, "the store refuses the proxy's credentials");
                (Code::PermissionDenied, "etcdserver: permission denied")
            }
            R::Unacceptable(why) => {
                return Status::invalid_argument(format!("etcdserver: {why}"));
            }
            R::Unsupported(why) => return Status::unimplemented(format!("etcdserver: {why}")),
        },
        // Not seen by clients unless the phase changed again and again while one request ran.
        StoreError::StaleEpoch => (Code::Unavailable, "etcdserver: leader changed"),
        StoreError::Unavailable(why) => {
            tracing::debug!(%why, "a request found the store unavailable");
            (Code::Unavailable, NO_LEADER)
        }
        StoreError::Late(why) => {
            tracing::debug!(%why, "a request was not begun in time");
            (Code::Unavailable, TIMED_OUT)
        }
        StoreError::Unknown(why) => {
            tracing::debug!(%why, "the outcome of a request is unknown");
            (Code::Unavailable, TIMED_OUT)
        }
        StoreError::Broken(why) => {
            tracing::error!(%why, "the store is broken");
            return Status::internal(format!("etcdserver: {why}"));
        }
    };
    Status::new(code, text)
}

/// Also the reason of a watch that ends because its history is gone.
pub(super) const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
/// It did not happen and may be tried again, here or at another member.
const NO_LEADER: &str = "etcdserver: no leader";
const TIMED_OUT: &str = "etcdserver: request timed out";

/// The end of a stream that requires a leader, to be had at another member.
pub(super) fn no_leader() -> Status {
    Status::unavailable(NO_LEADER)
}

/// A stream's end when this proxy goes away; clients carry on at another one.
pub(super) fn stopped() -> Status {
    Status::unavailable("etcdserver: server stopped")
}

/// To a client that logs in.
pub(super) fn auth_not_enabled() -> Status {
    Status::failed_precondition("etcdserver: authentication is not enabled")
}

/// There are no users.
pub(super) fn user_not_found() -> Status {
    Status::failed_precondition("etcdserver: user name not found")
}

/// There are no roles.
pub(super) fn role_not_found() -> Status {
    Status::failed_precondition("etcdserver: role name not found")
}

/// There is no such proxy.
pub(super) fn member_not_found() -> Status {
    Status::not_found("etcdserver: member not found")
}

/// No proxy of this number could lead.
pub(super) fn bad_leader() -> Status {
    Status::failed_precondition("etcdserver: bad leader transferee")
}

/// For what is not served: says so, and what to do instead.
pub(super) fn not_served(sentence: &str) -> Status {
    Status::unimplemented(format!("etcdserver: {sentence}"))
}

/// What gRPC's own layer said, where a server in Go says it in another way that clients know.
pub(super) fn in_etcds_words(failure: &Status) -> Option<Status> {
    let too_long = failure.message().contains("message length too large");
    (too_long && failure.code() == Code::OutOfRange).then(|| {
        Status::resource_exhausted("grpc: received message larger than max; see request limits")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Revision;

    #[test]
    fn every_failure_has_the_code_and_text_that_clients_match_on() {
        let request = |error: RequestError| StoreError::Request(error);
        for (error, code, text) in [
            (
                request(RequestError::Compacted(Revision(5))),
                Code::OutOfRange,
                "etcdserver: mvcc: required revision has been compacted",
            ),
            (
                request(RequestError::LeaseNotFound),
                Code::NotFound,
                "etcdserver: requested lease not found",
            ),
            (
                request(RequestError::NoSpace),
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
            ),
            (
                request(RequestError::LeaseTtlTooLarge),
                Code::OutOfRange,
                "etcdserver: too large lease TTL",
            ),
            (
                StoreError::Unavailable("gone".into()),
                Code::Unavailable,
                "etcdserver: no leader",
            ),
            (
                StoreError::Late("too much".into()),
                Code::Unavailable,
                "etcdserver: request timed out",
            ),
            (
                StoreError::Unknown("broken pipe".into()),
                Code::Unavailable,
                "etcdserver: request timed out",
            ),
        ] {
            let status = status(&error);
            assert_eq!((status.code(), status.message()), (code, text), "{error:?}");
        }
    }
}

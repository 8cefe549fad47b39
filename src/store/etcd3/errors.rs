//! From etcd's failures to ours: one table, by what the caller may conclude.

use std::error::Error as _;

use tonic::{Code, ConnectError, Status};

use crate::store::{RequestError, StoreError};
use crate::types::Revision;

/// What a failed call was about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Intent {
    /// Nothing that a second try could do twice.
    Read,
    /// A change.
    Write,
}

/// Texts of etcd that say exactly what is wrong, and what that is here. [`Revision`] 0 stands for
/// "ask which": the text does not say what the oldest revision is.
const TEXTS: &[(&str, RequestError)] = &[
    (
        "mvcc: required revision has been compacted",
        RequestError::Compacted(Revision(0)),
    ),
    (
        "mvcc: required revision is a future revision",
        RequestError::FutureRevision,
    ),
    ("requested lease not found", RequestError::LeaseNotFound),
    ("lease already exists", RequestError::LeaseExists),
    ("too large lease TTL", RequestError::LeaseTtlTooLarge),
    ("key not found", RequestError::KeyNotFound),
    (
        "duplicate key given in txn request",
        RequestError::DuplicateKey,
    ),
    (
        "too many operations in txn request",
        RequestError::TooManyOperations,
    ),
    ("request is too large", RequestError::TooLarge),
    ("message larger than max", RequestError::TooLarge),
    ("message length too large", RequestError::TooLarge),
    ("mvcc: database space exceeded", RequestError::NoSpace),
];

/// Texts about who is asking.
const CREDENTIALS: &[&str] = &[
    "invalid auth token",
    "authentication failed",
    "permission denied",
    "user name is empty",
    "user name not found",
    "authentication is not enabled",
];

/// Texts of a server that turned the request away before doing anything.
const TURNED_AWAY: &[&str] = &["no leader", "too many requests"];

/// What `status` means for a call with this intent.
pub(super) fn failure(status: &Status, intent: Intent) -> StoreError {
    let text = status.message();
    let says = |known: &str| text.contains(known);
    if let Some((_, error)) = TEXTS.iter().find(|(known, _)| says(known)) {
        return error.clone().into();
    }
    if CREDENTIALS.iter().any(|known| says(known)) {
        return RequestError::Credentials(text.to_owned()).into();
    }
    if not_sent(status) || TURNED_AWAY.iter().any(|known| says(known)) {
        return StoreError::Unavailable(describe(status));
    }
    match status.code() {
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange | Code::NotFound
            if from_server(status) =>
        {
            RequestError::Unacceptable(text.to_owned()).into()
        }
        Code::Unimplemented => RequestError::Unsupported(text.to_owned()).into(),
        Code::PermissionDenied | Code::Unauthenticated => {
            RequestError::Credentials(text.to_owned()).into()
        }
        _ if intent == Intent::Read => StoreError::Unavailable(describe(status)),
        // Also where etcd says Unavailable: "request timed out" and "leader changed" come after the
        // proposal, which may still be carried out.
        _ => StoreError::Unknown(describe(status)),
    }
}

/// What a deadline that ran out means.
pub(super) fn deadline(intent: Intent) -> StoreError {
    let text = "etcd did not answer in time".to_owned();
    match intent {
        Intent::Read => StoreError::Unavailable(text),
        Intent::Write => StoreError::Unknown(text),
    }
}

/// Whether the request certainly never left: no connection could be made.
pub(super) fn not_sent(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Whether the answer is etcd's own, not a broken connection's.
pub(super) fn from_server(status: &Status) -> bool {
    status.source().is_none()
}

/// Whether a member says that it is cut off from the others, so that another one may do better.
pub(super) fn is_cut_off(status: &Status) -> bool {
    let text = status.message();
    ["no leader", "request timed out"]
        .iter()
        .any(|known| text.contains(known))
}

/// Whether the token is no longer good. The request was turned away; a fresh token may help.
pub(super) fn token_expired(status: &Status) -> bool {
    let text = status.message();
    text.contains("invalid auth token") || text.contains("revision of auth store is old")
}

/// What happened, with the innermost cause, which is the part that helps.
fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = status.source();
    while let Some(error) = cause {
        let inner = error.to_string();
        if !text.contains(&inner) {
            text = format!("{text}: {inner}");
        }
        cause = error.source();
    }
    format!("etcd: {text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcds_texts_become_request_errors() {
        for (code, text, error) in [
            (
                Code::OutOfRange,
                "etcdserver: mvcc: required revision is a future revision",
                RequestError::FutureRevision,
            ),
            (
                Code::NotFound,
                "etcdserver: requested lease not found",
                RequestError::LeaseNotFound,
            ),
            (
                Code::ResourceExhausted,
                "grpc: received message larger than max (3 vs. 2)",
                RequestError::TooLarge,
            ),
            (
                Code::InvalidArgument,
                "etcdserver: key is not provided",
                RequestError::Unacceptable("etcdserver: key is not provided".into()),
            ),
        ] {
            let status = Status::new(code, text);
            assert_eq!(failure(&status, Intent::Write), error.into(), "{text}");
        }
    }

    #[test]
    fn a_member_without_its_leader_is_cut_off_and_one_that_refuses_is_not() {
        for (text, expected) in [
            ("etcdserver: no leader", true),
            ("etcdserver: request timed out", true),
            (
                "etcdserver: request timed out, possibly due to connection lost",
                true,
            ),
            ("etcdserver: leader changed", false),
            ("etcdserver: too many requests", false),
            ("etcdserver: mvcc: database space exceeded", false),
        ] {
            assert_eq!(is_cut_off(&Status::unavailable(text)), expected, "{text}");
        }
    }

    #[test]
    fn a_write_that_may_have_happened_is_never_called_a_clean_failure() {
        for status in [
            Status::unavailable("etcdserver: request timed out"),
            Status::unavailable("etcdserver: leader changed"),
            Status::unknown("transport error"),
            Status::cancelled("operation was canceled"),
        ] {
            assert!(matches!(
                failure(&status, Intent::Write),
                StoreError::Unknown(_)
            ));
            assert!(matches!(
                failure(&status, Intent::Read),
                StoreError::Unavailable(_)
            ));
        }
        assert!(matches!(
            failure(&Status::unavailable("etcdserver: no leader"), Intent::Write),
            StoreError::Unavailable(_)
        ));
        assert!(matches!(deadline(Intent::Write), StoreError::Unknown(_)));
    }
}

//! What all stores that keep leases themselves agree on.

use super::RequestError;
use crate::types::{Grant, LeaseId};

/// The shortest time to live that a lease gets by default: one and a half election timeouts of an
/// etcd with default settings (1.5 s), rounded up to seconds.
pub const MIN_TTL_S: i64 = 2;

/// The longest time to live that can be asked for, as in etcd.
pub const MAX_TTL_S: i64 = 9_000_000_000;

/// The time to live that a lease gets: what was asked for, raised to `min_ttl_s`.
///
/// Fails with [`RequestError::LeaseTtlTooLarge`] above [`MAX_TTL_S`].
pub fn ttl_s(request: &Grant, min_ttl_s: i64) -> Result<i64, RequestError> {
    if request.ttl_s > MAX_TTL_S {
        return Err(RequestError::LeaseTtlTooLarge);
    }
    Ok(request.ttl_s.max(min_ttl_s))
}

/// The number that the client wants, or one of the store's choice: positive and random, so that
/// two stores hardly ever choose the same.
#[must_use]
pub fn choose_id(request: &Grant) -> LeaseId {
    let wanted = request.id.filter(|id| id.is_some());
    wanted.unwrap_or_else(|| LeaseId(rand::random_range(1..=i64::MAX)))
}

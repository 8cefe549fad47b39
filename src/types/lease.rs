//! Leases.

use bytes::Bytes;

use super::kv::LeaseId;

/// A request for a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The number that the client wants; nothing lets the store choose.
    pub id: Option<LeaseId>,
    /// Time to live, in seconds.
    pub ttl_s: i64,
}

/// A lease that was granted or is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Its number.
    pub id: LeaseId,
    /// Its full time to live in seconds; at least what was asked for.
    pub ttl_s: i64,
}

/// A lease as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseStatus {
    /// Its number.
    pub id: LeaseId,
    /// Its full time to live, in seconds.
    pub granted_ttl_s: i64,
    /// What is left of it, in whole seconds.
    pub remaining_ttl_s: i64,
    /// The keys attached to it in key order, if they were asked for.
    pub keys: Vec<Bytes>,
}

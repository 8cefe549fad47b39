//! One key with its numbers.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A position in the one line of changes that clients see. Grows by one with each transaction that
/// changes something; 0 stands for "never".
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub i64);

impl Revision {
    /// The greatest one that a migration takes from an old store and goes on behind: as many again are
    /// left for what follows.
    pub const BASE_MAX: Self = Self(1 << 62);

    /// The revision after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a lease; 0 stands for "no lease".
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct LeaseId(pub i64);

impl LeaseId {
    /// What a key that is attached to no lease carries.
    pub const NONE: Self = Self(0);

    /// Whether this is the number of a lease at all.
    #[must_use]
    pub fn is_some(self) -> bool {
        self != Self::NONE
    }
}

/// The number of the fleet's current phase assignment; grows by one at each transition.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl std::fmt::Display for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A live key as it stood at some revision, with the numbers that clients see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValue {
    /// The key, any bytes, never empty.
    pub key: Bytes,
    /// Revision in which this life of the key began.
    pub create_revision: Revision,
    /// Revision of the latest change.
    pub mod_revision: Revision,
    /// Changes in this life of the key; the first is 1.
    pub version: i64,
    /// The value; empty where the request left values out.
    pub value: Bytes,
    /// The lease that the key is attached to, or [`LeaseId::NONE`].
    pub lease: LeaseId,
}

impl KeyValue {
    /// The pair as it would be if it had last changed at `base`, in case that it did later.
    #[must_use]
    pub fn at_latest(self, base: Revision) -> Self {
        Self {
            create_revision: self.create_revision.min(base),
            mod_revision: self.mod_revision.min(base),
            ..self
        }
    }

    /// Bytes of the pair that count where sizes are bounded.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.key.len() + self.value.len()
    }
}

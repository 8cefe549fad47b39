//! What this member remembers of claims.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

/// Shards, so that requests on different keys seldom meet at one lock.
const SHARDS: usize = 16;
/// Keys per generation and shard. Two generations of all shards hold at most 128 Ki keys: some 20 MB
/// with keys of 100 bytes.
const KEYS_PER_GENERATION: usize = 4096;

/// A bounded memory of keys that are claimed. Since a claim is never removed before settle, a key
/// that was once seen claimed may be asked of the new store alone for the rest of the migration.
/// Forgetting one costs a question too many.
#[derive(Debug, Default)]
pub(super) struct Known {
    hasher: RandomState,
    shards: [Mutex<Generations>; SHARDS],
}

/// Keys seen lately, and those seen before that. When the young are many they become the old ones,
/// and the old ones are forgotten.
#[derive(Debug, Default)]
struct Generations {
    young: HashSet<Bytes>,
    old: HashSet<Bytes>,
}

impl Known {
    /// Whether `key` is remembered as claimed.
    pub(super) fn contains(&self, key: &[u8]) -> bool {
        let mut shard = self
            .shard(key)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if shard.young.contains(key) {
            return true;
        }
        let Some(key) = shard.old.take(key) else {
            return false;
        };
        shard.remember(key);
        true
    }

    /// Remembers `key` as claimed. It has to be.
    pub(super) fn insert(&self, key: &[u8]) {
        let mut shard = self
            .shard(key)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !shard.young.contains(key) {
            // A copy of its own: a slice would keep the whole request that it came in alive.
            shard.remember(Bytes::copy_from_slice(key));
        }
    }

    /// Remembers `keys` as claimed. They have to be.
    pub(super) fn extend(&self, keys: &[Bytes]) {
        for key in keys {
            self.insert(key);
        }
    }

    fn shard(&self, key: &[u8]) -> &Mutex<Generations> {
        let hash = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or_default();
        &self.shards[hash]
    }
}

impl Generations {
    fn remember(&mut self, key: Bytes) {
        if self.young.len() >= KEYS_PER_GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let known = Known::default();
        known.insert(b"used");
        for n in 0..SHARDS * KEYS_PER_GENERATION * 4 {
            known.insert(format!("key-{n}").as_bytes());
            assert!(known.contains(b"used"));
        }
        let held: usize = known
            .shards
            .iter()
            .map(|shard| shard.lock().unwrap())
            .map(|shard| shard.young.len() + shard.old.len())
            .sum();
        assert!(held <= 2 * SHARDS * KEYS_PER_GENERATION);
        assert!(!known.contains(b"key-0"));
        assert!(!known.contains(b"never"));
    }
}

//! What is known of claim records without asking.
//!
//! A claim record is written once and never changed, so what was once read stays true for as long as
//! the line stands. That is what keeps the price of claims off the requests for busy keys. (A replay puts a
//! new one in its place, with a new life of the key: see [`super::view::View::claim_of`].)

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::numbers::Claimed;

/// So many parts that two threads rarely meet in one.
const SHARDS: usize = 16;
/// Claims that are remembered at most: about 100 bytes and the key each.
const CLAIMS_MAX: usize = 1 << 17;
/// Two generations per shard share the room.
const GENERATION_MAX: usize = CLAIMS_MAX / SHARDS / 2;

/// Claims that were read before, the ones used least recently forgotten first.
#[derive(Debug)]
pub(super) struct KnownClaims {
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
}

/// Recently used claims, and those that were so a while ago. When the first are too many they take
/// the place of the second.
#[derive(Debug, Default)]
struct Shard {
    recent: HashMap<Bytes, Claimed>,
    earlier: HashMap<Bytes, Claimed>,
}

impl KnownClaims {
    pub(super) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }

    /// The claim of `key`, if it is known.
    pub(super) fn get(&self, key: &[u8]) -> Option<Claimed> {
        let mut shard = self.shard(key);
        if let Some(claim) = shard.recent.get(key) {
            return Some(*claim);
        }
        let (key, claim) = shard.earlier.remove_entry(key)?;
        shard.insert(key, claim);
        Some(claim)
    }

    /// Remembers the claim of `key`.
    pub(super) fn learn(&self, key: &[u8], claim: Claimed) {
        // A copy: the slice would keep the whole message alive that it came in.
        let owned = Bytes::copy_from_slice(key);
        self.shard(key).insert(owned, claim);
    }

    /// Forgets everything, because claims were removed.
    pub(super) fn forget(&self) {
        for shard in &self.shards {
            *shard.lock().unwrap_or_else(PoisonError::into_inner) = Shard::default();
        }
    }

    fn shard(&self, key: &[u8]) -> std::sync::MutexGuard<'_, Shard> {
        let hash = self.hasher.hash_one(key);
        let index = usize::try_from(hash % SHARDS as u64).unwrap_or_default();
        self.shards[index]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    fn insert(&mut self, key: Bytes, claim: Claimed) {
        if self.recent.len() >= GENERATION_MAX {
            self.earlier = std::mem::take(&mut self.recent);
        }
        self.recent.insert(key, claim);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_is_kept_and_the_rest_is_bounded() {
        let known = KnownClaims::new();
        known.learn(b"busy", Claimed::Here);
        for number in 0..3 * CLAIMS_MAX {
            known.learn(&number.to_be_bytes(), Claimed::Here);
            if number % 64 == 0 {
                assert_eq!(known.get(b"busy"), Some(Claimed::Here));
            }
        }
        let held: usize = known
            .shards
            .iter()
            .map(|shard| {
                let shard = shard.lock().unwrap();
                shard.recent.len() + shard.earlier.len()
            })
            .sum();
        assert!(held <= CLAIMS_MAX + SHARDS, "{held}");
        known.forget();
        assert_eq!(known.get(b"busy"), None);
    }
}

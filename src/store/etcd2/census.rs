//! How many keys lie where, roughly: v2 can only count by walking the whole tree.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::node::Child;
use crate::types::KeyRange;

/// Most keys that are remembered: the estimate is off by one part in some thousands.
const SAMPLES: usize = 8192;

/// How long a census is used: it serves the display of progress, and a walk of a large store takes
/// many seconds.
const FRESH: Duration = Duration::from_mins(10);

/// Every so many-th key of a walk in key order.
pub(super) struct Census {
    samples: Vec<Bytes>,
    /// Keys that each sample stands for.
    stride: usize,
    /// Keys seen since the last sample.
    since: usize,
    taken: Instant,
}

impl Default for Census {
    fn default() -> Self {
        Self {
            samples: Vec::new(),
            stride: 1,
            since: 0,
            taken: Instant::now(),
        }
    }
}

impl Census {
    /// Counts one child, if it is a key.
    pub(super) fn see(&mut self, child: &Child) {
        if !child.is_pair() {
            return;
        }
        self.since += 1;
        if self.since < self.stride {
            return;
        }
        self.since = 0;
        if self.samples.len() == SAMPLES {
            // Every second one goes, and each that stays stands for twice as many.
            let mut number = 0;
            self.samples.retain(|_| {
                number += 1;
                number % 2 == 0
            });
            self.stride *= 2;
        }
        self.samples.push(child.key().clone());
    }

    /// About how many keys are in the range; exact for a small store.
    pub(super) fn count(&self, keys: &KeyRange) -> usize {
        let within = |key: &&Bytes| keys.contains(key);
        self.samples.iter().filter(within).count() * self.stride
    }

    /// Whether it can still be used.
    pub(super) fn is_fresh(&self) -> bool {
        self.taken.elapsed() < FRESH
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::KeyValue;

    fn census(keys: usize) -> Census {
        let mut census = Census::default();
        for number in 0..keys {
            census.see(&Child::Pair {
                kv: KeyValue {
                    key: format!("/{number:08}").into(),
                    ..KeyValue::default()
                },
                ttl_s: None,
            });
        }
        census
    }

    #[test]
    fn a_small_store_is_counted_exactly_and_a_large_one_about() {
        for keys in [0, 1, 100, SAMPLES] {
            assert_eq!(census(keys).count(&KeyRange::all()), keys);
        }
        let census = census(1_000_000);
        assert!(census.samples.len() <= SAMPLES);
        for (range, keys) in [
            (KeyRange::all(), 1_000_000),
            (KeyRange::prefix("/0000"), 10_000),
            (
                KeyRange::span("/00250000", Some("/00500000".into())),
                250_000,
            ),
        ] {
            let off = census.count(&range).abs_diff(keys);
            assert!(off <= 2 * census.stride, "{range:?}: off by {off}");
        }
    }
}

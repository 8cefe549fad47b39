//! How many pairs the next page of a scan may have. etcd cannot be told in bytes, so it follows from what
//! the pairs before it weighed, in each walk by itself: many go on at a time, over small values and large
//! ones.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use crate::store::fewer::UNMEASURED_PAIRS;
use crate::types::KeyValue;
use crate::types::range::successor;

/// Pairs of the first page of a walk, before any size is known.
const FIRST_PAGE: usize = 128;
/// Places that are remembered: a walk needs one.
const PLACES: usize = 256;

/// What walks over the store's keys have found.
#[derive(Default)]
pub(super) struct Paces {
    places: Mutex<VecDeque<Place>>,
}

/// A page that was read.
struct Place {
    /// Where it began.
    from: Bytes,
    /// Where the next one begins.
    to: Bytes,
    /// Pairs that the next one may have.
    pairs: usize,
}

impl Paces {
    /// Pairs of a page that begins here, at most: in the middle of a page before it, or behind it.
    pub(super) fn at(&self, start: &Bytes) -> usize {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let mut newest = places.iter().rev();
        let place = newest.find(|place| place.from <= *start && *start <= place.to);
        place.map_or(FIRST_PAGE, |place| place.pairs)
    }

    /// Notes what came of a page of at most `asked` pairs: these, which should have weighed `bytes`.
    pub(super) fn note(&self, start: &Bytes, asked: usize, kvs: &[KeyValue], bytes: usize) {
        let Some(last) = kvs.last() else { return };
        let weight: usize = kvs.iter().map(KeyValue::weight).sum();
        let fit = bytes / (weight / kvs.len() + 1);
        let place = Place {
            from: start.clone(),
            to: successor(&last.key),
            pairs: fit.min(asked.saturating_mul(2)).clamp(1, UNMEASURED_PAIRS),
        };
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|known| known.from != place.from);
        if places.len() == PLACES {
            places.pop_front();
        }
        places.push_back(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: usize = 4 << 20;

    /// Pairs from the key of this number on.
    fn pairs(prefix: &str, first: usize, count: usize, size: usize) -> Vec<KeyValue> {
        let value = Bytes::from(vec![0; size]);
        let pair = |number| KeyValue {
            key: format!("{prefix}{number:06}").into(),
            value: value.clone(),
            ..KeyValue::default()
        };
        (first..first + count).map(pair).collect()
    }

    #[test]
    fn pages_grow_twofold_to_a_bound_and_shrink_at_once() {
        let paces = Paces::default();
        let mut start = Bytes::from_static(b"k");
        let (mut first, mut asked) = (0, Vec::new());
        for size in [0, 0, 0, 0, 0, 1 << 20, 1 << 20, 0, 0] {
            let most = paces.at(&start);
            asked.push(most);
            let page = pairs("k", first, most, size);
            paces.note(&start, most, &page, BYTES);
            first += most;
            start = successor(&page[most - 1].key);
        }
        assert_eq!(asked, [128, 256, 512, 1000, 1000, 1000, 3, 3, 6]);
    }

    #[test]
    fn each_walk_has_a_pace_of_its_own() {
        let paces = Paces::default();
        paces.note(&"a".into(), 128, &pairs("a", 0, 128, 10), BYTES);
        paces.note(&"b".into(), 128, &pairs("b", 0, 8, 1 << 20), BYTES);
        assert_eq!(paces.at(&successor(b"a000127")), 256);
        assert_eq!(paces.at(&successor(b"b000007")), 3);
        // Whoever goes on in the middle of a page, too.
        assert_eq!(paces.at(&"a000100".into()), 256);
        assert_eq!(paces.at(&"c".into()), FIRST_PAGE);
    }

    #[test]
    fn what_has_failed_is_not_asked_for_again() {
        let paces = Paces::default();
        let start = Bytes::from_static(b"k");
        // 128 were too many, and so were 64.
        paces.note(&start, 32, &pairs("k", 0, 32, 10), BYTES);
        assert_eq!(paces.at(&start), 64);
    }
}

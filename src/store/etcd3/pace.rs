//! How many pairs the next page of a scan may have. etcd cannot be told in bytes, so it follows from what
//! the pairs before it weighed, in each walk by itself: many go on at a time, over small values and large
//! ones.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use crate::store::fewer::UNMEASURED_PAIRS;
use crate::types::KeyValue;

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
    /// Pairs of a page that begins here, at most: in the middle of a page before it, or behind it. Elsewhere
    /// it may be half as large as one behind the nearest page before it: keys next to each other are much
    /// alike.
    pub(super) fn at(&self, start: &Bytes) -> usize {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let mut newest = places.iter().rev();
        if let Some(place) = newest.find(|place| place.from <= *start && *start <= place.to) {
            return place.pairs;
        }
        let before = places.iter().filter(|place| place.from <= *start);
        let nearest = before.max_by(|one, other| one.from.cmp(&other.from));
        nearest.map_or(FIRST_PAGE, |place| FIRST_PAGE.max(place.pairs / 2))
    }

    /// Notes what came of a page of at most `asked` pairs from `start` on, behind which the walk goes on at
    /// `to`: these, which should have weighed `bytes`.
    pub(super) fn note(
        &self,
        (start, to): (&Bytes, Bytes),
        asked: usize,
        kvs: &[KeyValue],
        bytes: usize,
    ) {
        let weight: usize = kvs.iter().map(KeyValue::weight).sum();
        let pairs = match kvs.len() {
            0 => self.at(start),
            count => (bytes / (weight / count + 1)).min(asked.saturating_mul(2)),
        };
        let place = Place {
            from: start.clone(),
            to,
            pairs: pairs.clamp(1, UNMEASURED_PAIRS),
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
    use crate::types::range::successor;

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
            let next = successor(&page[most - 1].key);
            paces.note((&start, next.clone()), most, &page, BYTES);
            first += most;
            start = next;
        }
        assert_eq!(asked, [128, 256, 512, 1000, 1000, 1000, 3, 3, 6]);
    }

    #[test]
    fn each_walk_has_a_pace_of_its_own() {
        let paces = Paces::default();
        let behind = |key: &'static str| successor(key.as_bytes());
        let note = |from: &'static str, to, kvs: &[KeyValue]| {
            paces.note((&from.into(), to), 128, kvs, BYTES);
        };
        note("a", behind("a000127"), &pairs("a", 0, 128, 10));
        note("b", behind("b000007"), &pairs("b", 0, 8, 1 << 20));
        assert_eq!(paces.at(&successor(b"a000127")), 256);
        assert_eq!(paces.at(&successor(b"b000007")), 3);
        // Whoever goes on in the middle of a page, too.
        assert_eq!(paces.at(&"a000100".into()), 256);
        assert_eq!(paces.at(&"c".into()), FIRST_PAGE);
        // Whoever goes on behind the end of a range, in which there was less than a page, or nothing.
        note("c", "d".into(), &pairs("c", 0, 3, 10));
        assert_eq!(paces.at(&"d".into()), 256);
        note("e", "f".into(), &[]);
        assert_eq!(paces.at(&"f".into()), FIRST_PAGE);
        // Whoever begins somewhere behind one that is large already.
        paces.note(
            (&"g".into(), "h".into()),
            512,
            &pairs("g", 0, 512, 10),
            BYTES,
        );
        assert_eq!(paces.at(&"i".into()), 500);
        assert_eq!(paces.at(&"bb".into()), FIRST_PAGE);
    }

    #[test]
    fn what_has_failed_is_not_asked_for_again() {
        let paces = Paces::default();
        let start = Bytes::from_static(b"k");
        // 128 were too many, and so were 64.
        let to = successor(b"k000031");
        paces.note((&start, to), 32, &pairs("k", 0, 32, 10), BYTES);
        assert_eq!(paces.at(&start), 64);
    }
}

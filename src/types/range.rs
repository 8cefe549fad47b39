//! Ranges of keys in byte order.

use std::ops::Bound;

use bytes::Bytes;

/// Keys in byte order: one key, or all from a start up to an end that is left out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeyRange {
    /// Just this key.
    One(Bytes),
    /// All keys from `start` on and below `end`; without `end`, all from `start` on.
    /// Empty where `end <= start`.
    Span {
        /// First key that may be in the range. Empty: from the very first key.
        start: Bytes,
        /// First key that is no longer in it.
        end: Option<Bytes>,
    },
}

impl KeyRange {
    /// Every key there is.
    #[must_use]
    pub fn all() -> Self {
        Self::Span {
            start: Bytes::new(),
            end: None,
        }
    }

    /// All keys that begin with `prefix`.
    #[must_use]
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let end = after_prefix(&start);
        Self::Span { start, end }
    }

    /// A span.
    #[must_use]
    pub fn span(start: impl Into<Bytes>, end: Option<Bytes>) -> Self {
        Self::Span {
            start: start.into(),
            end,
        }
    }

    /// Reads etcd's encoding: no `range_end` is one key, a single zero byte is "all keys >= `key`".
    #[must_use]
    pub fn from_etcd(key: Bytes, range_end: Bytes) -> Self {
        match &range_end[..] {
            [] => Self::One(key),
            [0] => Self::Span {
                start: if key[..] == [0] { Bytes::new() } else { key },
                end: None,
            },
            _ => Self::Span {
                start: key,
                end: Some(range_end),
            },
        }
    }

    /// Writes etcd's encoding: `(key, range_end)`.
    #[must_use]
    pub fn to_etcd(&self) -> (Bytes, Bytes) {
        const ZERO: Bytes = Bytes::from_static(&[0]);
        match self {
            Self::One(key) => (key.clone(), Bytes::new()),
            Self::Span { start, end } => (
                if start.is_empty() {
                    ZERO
                } else {
                    start.clone()
                },
                end.clone().unwrap_or(ZERO),
            ),
        }
    }

    /// First key that may be in the range.
    #[must_use]
    pub fn start(&self) -> &Bytes {
        match self {
            Self::One(key) => key,
            Self::Span { start, .. } => start,
        }
    }

    /// First key behind the range; nothing if it has no end.
    #[must_use]
    pub fn end(&self) -> Option<Bytes> {
        match self {
            Self::One(key) => Some(successor(key)),
            Self::Span { end, .. } => end.clone(),
        }
    }

    /// The longest prefix that every key in the range is sure to have.
    #[must_use]
    pub fn shared_prefix(&self) -> Bytes {
        match self {
            Self::One(key) => key.clone(),
            Self::Span { start, end } if after_prefix(start) == *end => start.clone(),
            Self::Span { end: None, .. } => Bytes::new(),
            Self::Span {
                start,
                end: Some(end),
            } => start.slice(..shared_len(start, end)),
        }
    }

    /// Whether no key can be in the range.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Span { start, end: Some(end) } if end <= start)
    }

    /// Whether `key` is in the range.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::One(one) => one[..] == *key,
            Self::Span { start, end } => {
                start[..] <= *key && end.as_ref().is_none_or(|end| *key < end[..])
            }
        }
    }

    /// Whether every key of `other` is in this range.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.is_empty() || self.intersect(other).as_ref() == Some(other)
    }

    /// The keys that are in both, if there can be any.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::One(key), range) | (range, Self::One(key)) => {
                range.contains(key).then(|| Self::One(key.clone()))
            }
            (Self::Span { start: a, end: b }, Self::Span { start: c, end: d }) => {
                let end = match (b, d) {
                    (Some(b), Some(d)) => Some(b.min(d).clone()),
                    (end, None) | (None, end) => end.clone(),
                };
                let both = Self::Span {
                    start: a.max(c).clone(),
                    end,
                };
                (!both.is_empty()).then_some(both)
            }
        }
    }

    /// Start, and the end that is left out, of the keys as a span.
    #[must_use]
    pub fn into_bounds(self) -> (Bytes, Option<Bytes>) {
        match self {
            Self::Span { start, end } => (start, end),
            Self::One(key) => {
                let end = successor(&key);
                (key, Some(end))
            }
        }
    }

    /// The keys of all `ranges`, none of which is empty, in ranges that do not overlap, in order. Spans that touch
    /// are one.
    #[must_use]
    pub fn merged(mut ranges: Vec<Self>) -> Vec<Self> {
        ranges.sort_unstable_by(|a, b| a.start().cmp(b.start()));
        let mut merged: Vec<(Bytes, Option<Bytes>)> = Vec::with_capacity(ranges.len());
        for range in ranges {
            let (start, end) = range.into_bounds();
            match merged.last_mut() {
                Some((_, last)) if last.as_ref().is_none_or(|last| start <= *last) => {
                    // Without an end it goes on for ever.
                    if let Some(until) = last
                        && end.as_ref().is_none_or(|end| end > until)
                    {
                        *last = end;
                    }
                }
                _ => merged.push((start, end)),
            }
        }
        let spans = merged.into_iter();
        spans.map(|(start, end)| Self::span(start, end)).collect()
    }

    /// The range as bounds for an ordered map of byte strings. Ask [`Self::is_empty`] first:
    /// ordered maps panic on bounds that are the wrong way round.
    #[must_use]
    pub fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        match self {
            Self::One(key) => (Bound::Included(key), Bound::Included(key)),
            Self::Span { start, end } => (
                Bound::Included(start),
                end.as_ref()
                    .map_or(Bound::Unbounded, |end| Bound::Excluded(end)),
            ),
        }
    }

    /// What is left of a span behind `key`: where to go on after a page that ended with it.
    /// Nothing for one key.
    #[must_use]
    pub fn after(&self, key: &[u8]) -> Option<Self> {
        match self {
            Self::One(_) => None,
            Self::Span { end, .. } => {
                let rest = Self::Span {
                    start: successor(key),
                    end: end.clone(),
                };
                (!rest.is_empty()).then_some(rest)
            }
        }
    }
}

/// The first key in byte order after `key`.
#[must_use]
pub fn successor(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

/// The first key behind all keys that begin with `prefix`; nothing where there is none.
#[must_use]
pub fn after_prefix(prefix: &[u8]) -> Option<Bytes> {
    let keep = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=keep].to_vec();
    end[keep] += 1;
    Some(end.into())
}

/// How many bytes the two begin with alike.
#[must_use]
pub fn shared_len(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: &'static str, end: &'static str) -> KeyRange {
        KeyRange::span(start, Some(end.into()))
    }

    #[test]
    fn etcd_encodings_are_read_and_written_back() {
        for (key, end) in [("a", ""), ("a", "c"), ("a", "\0"), ("\0", "\0")] {
            let range = KeyRange::from_etcd(key.into(), end.into());
            assert_eq!(range.to_etcd(), (key.into(), end.into()));
        }
    }

    #[test]
    fn an_end_at_or_below_the_start_is_empty() {
        assert!(span("b", "b").is_empty());
        assert!(span("b", "a").is_empty());
        assert!(!span("a", "b").is_empty());
    }

    #[test]
    fn ranges_intersect_in_byte_order() {
        assert_eq!(
            span("a", "m").intersect(&span("f", "z")),
            Some(span("f", "m"))
        );
        assert_eq!(span("a", "f").intersect(&span("f", "z")), None);
        let one = KeyRange::One("g".into());
        assert_eq!(span("f", "z").intersect(&one), Some(one.clone()));
        assert_eq!(one.intersect(&span("h", "z")), None);
        assert!(KeyRange::all().covers(&span("a", "b")));
        assert!(!span("a", "b").covers(&KeyRange::all()));
    }

    #[test]
    fn a_prefix_of_the_highest_bytes_has_no_end() {
        assert_eq!(KeyRange::prefix("ab"), span("ab", "ac"));
        assert_eq!(after_prefix(b"a\xff"), Some("b".into()));
        assert_eq!(after_prefix(b"\xff\xff"), None);
        assert_eq!(after_prefix(b""), None);
    }
    #[test]
    fn what_all_keys_of_a_range_begin_with_is_told() {
        for (range, shared) in [
            (KeyRange::One("ab".into()), "ab"),
            (KeyRange::prefix("ab"), "ab"),
            (span("ab", "ad"), "a"),
            (span("abc", "abf"), "ab"),
            (span("ab", "abc"), "ab"),
            (span("b", "a"), ""),
            (KeyRange::span("b", None), ""),
            (KeyRange::all(), ""),
        ] {
            assert_eq!(range.shared_prefix(), shared, "{range:?}");
        }
        let highest: &[u8] = b"\xff\xff";
        assert_eq!(KeyRange::prefix(highest).shared_prefix(), highest);
    }
}

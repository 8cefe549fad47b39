//! The keys that belong to Segue itself.

use std::borrow::Cow;

use bytes::Bytes;

use super::range::{KeyRange, after_prefix};

/// The reserved prefix (default `segue/`). Keys below it are hidden from every range and watch that
/// does not lie wholly within it, so that an application that lists everything sees only its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    within: KeyRange,
    prefix: Bytes,
}

impl Default for Reserved {
    fn default() -> Self {
        Self::new("segue/")
    }
}

impl Reserved {
    /// Reserves the keys that begin with `prefix`, which must not be empty.
    #[must_use]
    pub fn new(prefix: impl Into<Bytes>) -> Self {
        let prefix = prefix.into();
        debug_assert!(!prefix.is_empty(), "an empty prefix would hide everything");
        Self {
            within: KeyRange::prefix(prefix.clone()),
            prefix,
        }
    }

    /// What reserved keys begin with, as text.
    #[must_use]
    pub fn prefix(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.prefix)
    }

    /// A reserved key: the prefix followed by `name`.
    #[must_use]
    pub fn key(&self, name: impl AsRef<[u8]>) -> Bytes {
        [&self.prefix[..], name.as_ref()].concat().into()
    }

    /// Whether `key` is reserved.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        key.starts_with(&self.prefix)
    }

    /// All reserved keys.
    #[must_use]
    pub fn range(&self) -> &KeyRange {
        &self.within
    }

    /// Whether `range` is about reserved keys alone. One without any key is not.
    #[must_use]
    pub fn owns(&self, range: &KeyRange) -> bool {
        !range.is_empty() && self.within.covers(range)
    }

    /// The parts of `range` that its requester may see, in key order: one part, or the two on
    /// either side of the reserved keys, or none where it is empty.
    #[must_use]
    pub fn visible(&self, range: &KeyRange) -> Vec<KeyRange> {
        if range.is_empty() {
            return Vec::new();
        }
        if self.within.covers(range) || self.within.intersect(range).is_none() {
            return vec![range.clone()];
        }
        let below = KeyRange::span(Bytes::new(), Some(self.prefix.clone()));
        let above = after_prefix(&self.prefix).map(|start| KeyRange::span(start, None));
        [Some(below), above]
            .into_iter()
            .flatten()
            .filter_map(|side| side.intersect(range))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_across_the_reserved_keys_is_cut_in_two() {
        let reserved = Reserved::default();
        let span = |start: &'static str, end: &'static str| {
            KeyRange::span(start, (!end.is_empty()).then(|| end.into()))
        };
        for (range, visible) in [
            (
                KeyRange::all(),
                vec![span("", "segue/"), span("segue0", "")],
            ),
            (span("a", "b"), vec![span("a", "b")]),
            (span("segue/a", "segue/b"), vec![span("segue/a", "segue/b")]),
            (span("segue/a", "t"), vec![span("segue0", "t")]),
            (
                KeyRange::One("segue/switch".into()),
                vec![KeyRange::One("segue/switch".into())],
            ),
            (span("b", "a"), vec![]),
        ] {
            assert_eq!(reserved.visible(&range), visible, "{range:?}");
        }
    }
}

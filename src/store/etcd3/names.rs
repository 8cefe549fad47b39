//! Where the store keeps what is its own, and how that is hidden.
//!
//! Everything of its own lies below `_/` under the reserved prefix, in one piece, so that any
//! range falls into at most two parts that clients may see. Other keys under the reserved prefix
//! (the switch key) are ordinary keys.

use bytes::Bytes;

use crate::store::FENCE;
use crate::types::range::after_prefix;
use crate::types::{KeyRange, Reserved};

/// Below it are the records.
const RECORDS: &str = "record/";

/// The names of what the store keeps for itself.
#[derive(Clone, Debug)]
pub(super) struct Names {
    reserved: Reserved,
    /// The store's own keys, which nobody else sees in whatever range.
    own: Reserved,
    /// Holds the epoch; what guards compare with.
    pub(super) epoch: Bytes,
    /// The record that is the fence.
    pub(super) fence: Bytes,
    /// Holds the rest of the line.
    pub(super) line: Bytes,
    /// Written in every transaction that whoever watches is not to see: one that removes keys for a
    /// replay, or keys of Segue's own.
    pub(super) unseen: Bytes,
    claims: Bytes,
    records: Bytes,
}

impl Names {
    pub(super) fn new(reserved: &Reserved) -> Self {
        let own = Reserved::new(reserved.key("_/"));
        Self {
            reserved: reserved.clone(),
            epoch: own.key("epoch"),
            line: own.key("line"),
            unseen: own.key("unseen"),
            claims: own.key("claim/"),
            fence: own.key(format!("{RECORDS}{FENCE}")),
            records: own.key(RECORDS),
            own,
        }
    }

    pub(super) fn reserved(&self) -> &Reserved {
        &self.reserved
    }

    /// Whether `key` is the store's own: no client reads or writes it.
    pub(super) fn is_own(&self, key: &[u8]) -> bool {
        self.own.contains(key)
    }

    /// The parts of `keys` that clients may see, in key order; at most two.
    pub(super) fn visible(&self, keys: &KeyRange) -> Vec<KeyRange> {
        if let KeyRange::One(key) = keys {
            return if self.is_own(key) {
                Vec::new()
            } else {
                vec![keys.clone()]
            };
        }
        let parts = self.reserved.visible(keys);
        match &parts[..] {
            [one] if self.reserved.range().covers(one) => {
                if self.own.range().covers(one) {
                    Vec::new()
                } else {
                    self.own.visible(one)
                }
            }
            _ => parts,
        }
    }

    /// The claim record of `key`.
    pub(super) fn claim(&self, key: &[u8]) -> Bytes {
        [&self.claims[..], key].concat().into()
    }

    /// The claim records of all `keys`.
    pub(super) fn claims_of(&self, keys: &KeyRange) -> KeyRange {
        match keys {
            KeyRange::One(key) => KeyRange::One(self.claim(key)),
            KeyRange::Span { start, end } => KeyRange::Span {
                start: self.claim(start),
                end: match end {
                    Some(end) => Some(self.claim(end)),
                    None => after_prefix(&self.claims),
                },
            },
        }
    }

    /// All claim records.
    pub(super) fn all_claims(&self) -> KeyRange {
        KeyRange::prefix(self.claims.clone())
    }

    /// The key that a claim record is about, if it is one.
    pub(super) fn claimed(&self, record: &Bytes) -> Option<Bytes> {
        record
            .starts_with(&self.claims)
            .then(|| record.slice(self.claims.len()..))
    }

    /// The key that holds the record of this name, or those of all names that begin with it.
    pub(super) fn record(&self, name: &str) -> Bytes {
        [&self.records[..], name.as_bytes()].concat().into()
    }

    /// The name of the record that this key holds.
    pub(super) fn record_name(&self, key: &[u8]) -> Option<String> {
        let name = key.strip_prefix(&self.records[..])?;
        Some(String::from_utf8_lossy(name).into_owned())
    }
}

/// A range in which there is nothing.
pub(super) fn nothing() -> KeyRange {
    const KEY: Bytes = Bytes::from_static(b"\x01");
    KeyRange::span(KEY, Some(KEY))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: &'static str, end: &'static str) -> KeyRange {
        KeyRange::span(start, (!end.is_empty()).then(|| end.into()))
    }

    #[test]
    fn own_keys_are_seen_in_no_range() {
        let names = Names::new(&Reserved::default());
        for (range, visible) in [
            (span("", ""), vec![span("", "segue/"), span("segue0", "")]),
            (
                KeyRange::prefix("segue/"),
                vec![span("segue/", "segue/_/"), span("segue/_0", "segue0")],
            ),
            (KeyRange::prefix("segue/_/"), vec![]),
            (
                span("segue/_/a", "segue/z"),
                vec![span("segue/_0", "segue/z")],
            ),
            (KeyRange::One("segue/_/epoch".into()), vec![]),
            (
                KeyRange::One("segue/switch".into()),
                vec![KeyRange::One("segue/switch".into())],
            ),
            (span("a", "b"), vec![span("a", "b")]),
            (span("b", "a"), vec![]),
        ] {
            assert_eq!(names.visible(&range), visible, "{range:?}");
        }
    }

    #[test]
    fn claims_of_a_range_are_a_range() {
        let names = Names::new(&Reserved::default());
        assert_eq!(
            names.claims_of(&KeyRange::all()),
            span("segue/_/claim/", "segue/_/claim0")
        );
        assert_eq!(
            names.claims_of(&span("a", "b")),
            span("segue/_/claim/a", "segue/_/claim/b")
        );
        assert_eq!(
            names.claimed(&names.claim(b"a")).as_deref(),
            Some(&b"a"[..])
        );
    }
}

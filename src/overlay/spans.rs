//! Which parts of the key space need the old store at all.

use bytes::Bytes;

use crate::types::{KeyRange, Reserved};

/// A set of keys as disjoint spans in key order: those for which the old store need not be asked,
/// because the backfill has copied everything in them, or because they are reserved.
///
/// It may lag behind the truth, which costs a question too many. It is never ahead of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spans {
    /// Disjoint, in order, none empty, neighbours merged: start and the end that is left out.
    spans: Vec<(Bytes, Option<Bytes>)>,
}

impl Spans {
    /// The reserved keys and `copied`, which may overlap and come in any order.
    #[must_use]
    pub fn new(reserved: &Reserved, copied: impl IntoIterator<Item = KeyRange>) -> Self {
        let all = copied
            .into_iter()
            .chain([reserved.range().clone()])
            .filter(|range| !range.is_empty())
            .collect();
        let merged = KeyRange::merged(all).into_iter();
        let spans = merged.map(KeyRange::into_bounds).collect();
        Self { spans }
    }

    /// Whether `key` is in the set.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        let behind = self.spans.partition_point(|(start, _)| start[..] <= *key);
        behind > 0
            && self.spans[behind - 1]
                .1
                .as_ref()
                .is_none_or(|end| *key < end[..])
    }

    /// `range` cut at the borders of the set, in key order; each piece with whether it is in it.
    #[must_use]
    pub fn cut(&self, range: &KeyRange) -> Vec<(KeyRange, bool)> {
        self.cut_at_most(range, usize::MAX)
    }

    /// The same, but that no more than the first so many pieces count as in the set, as if it lagged behind.
    #[must_use]
    pub fn cut_at_most(&self, range: &KeyRange, most: usize) -> Vec<(KeyRange, bool)> {
        let (from, to) = match range {
            _ if range.is_empty() => return Vec::new(),
            KeyRange::One(key) => return vec![(range.clone(), self.contains(key))],
            KeyRange::Span { start, end } => (start, end),
        };
        let mut pieces = Vec::new();
        let mut at = from.clone();
        let behind = self.spans.iter();
        let behind = behind.filter(|(_, end)| end.as_ref().is_none_or(|end| *end > *from));
        for (start, end) in behind.take(most) {
            if to.as_ref().is_some_and(|to| start >= to) {
                break;
            }
            if *start > at {
                pieces.push((KeyRange::span(at, Some(start.clone())), false));
                at = start.clone();
            }
            let Some(end) = end
                .as_ref()
                .filter(|end| to.as_ref().is_none_or(|to| end < &to))
            else {
                pieces.push((KeyRange::span(at, to.clone()), true));
                return pieces;
            };
            pieces.push((KeyRange::span(at, Some(end.clone())), true));
            at = end.clone();
        }
        pieces.push((KeyRange::span(at, to.clone()), false));
        pieces
    }

    /// The pieces of `range` that are not in the set, in key order.
    #[must_use]
    pub fn gaps(&self, range: &KeyRange) -> Vec<KeyRange> {
        self.cut(range)
            .into_iter()
            .filter(|(_, inside)| !inside)
            .map(|(piece, _)| piece)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: &'static str, end: &'static str) -> KeyRange {
        KeyRange::span(start, (!end.is_empty()).then(|| end.into()))
    }

    fn spans(copied: &[(&'static str, &'static str)]) -> Spans {
        Spans::new(
            &Reserved::new("r/"),
            copied.iter().map(|(start, end)| span(start, end)),
        )
    }

    #[test]
    fn reserved_keys_never_need_the_old_store() {
        let none = spans(&[]);
        assert!(none.contains(b"r/switch"));
        assert!(!none.contains(b"r"));
        assert!(!none.contains(b"r0"));
    }

    #[test]
    fn ranges_are_cut_at_every_border() {
        for (copied, range, pieces) in [
            (vec![], span("a", "c"), vec![(span("a", "c"), false)]),
            (
                vec![("a", "c")],
                span("a", "c"),
                vec![(span("a", "c"), true)],
            ),
            (
                vec![("b", "c")],
                span("a", "d"),
                vec![
                    (span("a", "b"), false),
                    (span("b", "c"), true),
                    (span("c", "d"), false),
                ],
            ),
            (
                vec![("c", "e"), ("a", "b"), ("b", "c")],
                span("a", "z"),
                vec![
                    (span("a", "e"), true),
                    (span("e", "r/"), false),
                    (span("r/", "r0"), true),
                    (span("r0", "z"), false),
                ],
            ),
            (vec![("", "")], span("", ""), vec![(span("", ""), true)]),
            (
                vec![("", "m")],
                span("", ""),
                vec![
                    (span("", "m"), true),
                    (span("m", "r/"), false),
                    (span("r/", "r0"), true),
                    (span("r0", ""), false),
                ],
            ),
            (
                vec![("b", "d")],
                span("c", "e"),
                vec![(span("c", "d"), true), (span("d", "e"), false)],
            ),
            (
                vec![("b", "d")],
                KeyRange::One("c".into()),
                vec![(KeyRange::One("c".into()), true)],
            ),
            (
                vec![("b", "d")],
                KeyRange::One("d".into()),
                vec![(KeyRange::One("d".into()), false)],
            ),
            (vec![("b", "d")], span("d", "a"), vec![]),
        ] {
            assert_eq!(spans(&copied).cut(&range), pieces, "{copied:?} {range:?}");
        }
    }

    #[test]
    fn what_comes_behind_the_most_pieces_lags_behind() {
        let copied = spans(&[("a", "b"), ("c", "d"), ("e", "f"), ("g", "h")]);
        let pieces = vec![
            (span("c", "d"), true),
            (span("d", "e"), false),
            (span("e", "f"), true),
            (span("f", "z"), false),
        ];
        assert_eq!(copied.cut_at_most(&span("c", "z"), 2), pieces);
        let all = vec![(span("c", "z"), false)];
        assert_eq!(copied.cut_at_most(&span("c", "z"), 0), all);
    }
}

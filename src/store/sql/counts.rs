//! Counts for clients that page through a large range.
//!
//! etcd answers every page with the count of the whole rest of the range, and a SQL database has to
//! walk all of it for that: 100 ms per million keys. But what is left behind a page is what the page
//! had before it, less its own pairs, as long as both are read at one revision. So each page leaves
//! a note for the next one.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::backend::{Head, KnownCount};
use crate::types::{KeyRange, Range, RangeReply, Revision, SortTarget};

/// Pages that are noted: so many clients can page at a time.
const NOTES_MAX: usize = 256;

/// The notes, oldest first.
#[derive(Default)]
pub(super) struct Counts {
    notes: Mutex<VecDeque<Note>>,
}

struct Note {
    keys: KeyRange,
    known: KnownCount,
}

impl Counts {
    /// What is known about the count of a range.
    pub(super) fn known(&self, range: &Range) -> Option<KnownCount> {
        if range.limit == 0 {
            return None;
        }
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = notes.iter().rev();
        let mut fitting = newest.filter(|note| note.keys == range.keys);
        let note = match range.at {
            Some(at) => fitting.find(|note| note.known.at == at),
            None => fitting.next(),
        };
        note.map(|note| note.known)
    }

    /// Notes what is left behind a page.
    pub(super) fn note(&self, range: &Range, head: &Head, reply: &RangeReply) {
        // What is replayed behind the present revision belongs to the latest state, not to the past.
        let replayed = range.at.is_some() && !head.serves();
        let in_order = range.sort == SortTarget::Key && range.limit_can_be_pushed_down();
        if !reply.more || !in_order || replayed {
            return;
        }
        let last = reply.kvs.last().map_or(&Bytes::new(), |kv| &kv.key).clone();
        let Some(keys) = range.keys.after(&last) else {
            return;
        };
        let note = Note {
            keys,
            known: KnownCount {
                at: range.at.unwrap_or(head.revision),
                unnumbered: head.unnumbered,
                count: reply.count - reply.kvs.len(),
            },
        };
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() == NOTES_MAX {
            notes.pop_front();
        }
        notes.push_back(note);
    }
}

impl KnownCount {
    /// The count, if it is that of a read at `at` (nothing is the latest) of a store at `head`.
    #[must_use]
    pub fn holds(&self, at: Option<Revision>, head: &Head) -> Option<usize> {
        let same = self.at == at.unwrap_or(head.revision) && self.unnumbered == head.unnumbered;
        let replayed = at.is_some() && !head.serves();
        (same && !replayed).then_some(self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::KeyValue;

    fn head(revision: i64, unnumbered: i64) -> Head {
        Head {
            unnumbered,
            ..Head::at(revision)
        }
    }

    #[test]
    fn a_page_knows_the_count_of_the_next_one_at_the_same_revision_only() {
        let counts = Counts::default();
        let page = |start: &'static str, at: Option<i64>| Range {
            limit: 2,
            at: at.map(Revision),
            ..Range::of(KeyRange::span(start, Some("z".into())))
        };
        let kv = |key: &'static str| KeyValue {
            key: key.into(),
            ..KeyValue::default()
        };
        let reply = RangeReply {
            kvs: vec![kv("a"), kv("b")],
            count: 10,
            more: true,
        };
        counts.note(&page("a", None), &head(5, 1), &reply);
        let next = |at| counts.known(&page("b\0", at));
        let known = next(None).unwrap();
        assert_eq!(known.holds(None, &head(5, 1)), Some(8));
        assert_eq!(known.holds(None, &head(6, 1)), None, "there was a change");
        assert_eq!(known.holds(None, &head(5, 2)), None, "keys were copied up");
        assert_eq!(known.holds(Some(Revision(5)), &head(6, 1)), Some(8));
        assert_eq!(next(Some(5)), Some(known));
        assert_eq!(next(Some(4)), None);
        assert_eq!(counts.known(&page("b", None)), None, "another range");
        for _ in 0..NOTES_MAX {
            counts.note(&page("c", None), &head(5, 1), &reply);
        }
        counts.note(&page("d", None), &head(5, 1), &reply);
        assert_eq!(counts.notes.lock().unwrap().len(), NOTES_MAX);
    }
}

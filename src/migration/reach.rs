//! How far a page of keys may go: over what range, and how many pairs.
//!
//! etcd goes over everything up to the end of a range for each page of it, to count what is left: a
//! walk in pages to the end of all keys takes time as the square of their number. A range that ends a
//! little behind the page takes the time of the page. Where that is has to be guessed, from how far
//! apart the keys of the page before were. A wrong guess costs a page that is short or empty, or time;
//! never a key.

use bytes::Bytes;

use crate::store::{Page, PageSize};
use crate::types::{KeyRange, KeyValue, Reserved};

/// The first page of a walk, before it is known how large its pairs are.
pub(super) const FIRST_PAGE: PageSize = PageSize {
    pairs: 128,
    bytes: PageSize::BYTES,
};
/// Bytes that a page should have, so that it seldom comes to be cut.
const PAGE_BYTES: usize = PageSize::BYTES / 2;
/// Most pairs per page. etcd goes over its whole range for every page, so small ones are slow.
const PAGE_KEYS: usize = 8192;

/// How large the next page of the same walk may be, behind one of this size that had these pairs. Only
/// the bytes are a bound; pairs are for a store that would look at too many otherwise, or cannot be told
/// of bytes, so their number grows slowly.
pub(super) fn adapted<'a>(size: PageSize, kvs: impl Iterator<Item = &'a KeyValue>) -> PageSize {
    let (count, bytes) = kvs.fold((0, 0), |(count, bytes), kv| {
        (count + 1, bytes + kv.weight())
    });
    if count == 0 {
        return size;
    }
    let mean = (bytes / count).max(1);
    let pairs = (PAGE_BYTES / mean).clamp(1, PAGE_KEYS);
    PageSize {
        pairs: pairs.min(size.pairs.saturating_mul(2)),
        ..size
    }
}

/// Pages that a range should have, for those who read all of them.
pub(super) const PAGES: u8 = 4;

/// A walk over keys in pages.
#[derive(Clone, Debug)]
pub(super) struct Reach {
    /// First key that was not looked at.
    next: Bytes,
    /// Where the present range ends.
    end: Option<Bytes>,
    /// Where the walk ends.
    last: Option<Bytes>,
    /// A range should have so many times the keys of the page from which its end is guessed.
    pages: u8,
    /// What is passed over. In a range that lies within it an old store would show what is there.
    reserved: Reserved,
    scale: Option<Scale>,
    /// The present range had more than a page.
    cut: bool,
}

/// How far a range goes. Keys are seen as numbers whose digits are bytes.
#[derive(Clone, Copy, Debug)]
struct Scale {
    /// Which digit grows.
    digit: usize,
    /// By how much.
    by: u8,
    /// Ranges that ended a page before its limit, one after the other.
    short: usize,
}

impl Reach {
    /// From the key `next` on up to `last`, without what is reserved, in ranges of about so many `pages`.
    /// Nothing, if there is nothing to go over.
    pub(super) fn over(
        next: Bytes,
        last: Option<Bytes>,
        pages: u8,
        reserved: &Reserved,
    ) -> Option<Self> {
        let mut reach = Self {
            next,
            end: last.clone(),
            last,
            pages,
            reserved: reserved.clone(),
            scale: None,
            cut: false,
        };
        reach.settle().then_some(reach)
    }

    /// The range of the next page.
    pub(super) fn range(&self) -> KeyRange {
        KeyRange::span(self.next.clone(), self.end.clone())
    }

    /// Goes on behind what was looked at of [`Self::range`]: everything below `stop`, or all of it.
    /// `page` is what there was. Answers whether anything is left.
    pub(super) fn go_on(&mut self, page: &Page, stop: Option<Bytes>) -> bool {
        let stays = stop.is_some() && (!page.more || self.stays(page));
        let Some(next) = stop.or_else(|| self.end.take()) else {
            return false;
        };
        self.next = next;
        if stays {
            self.cut = true;
        } else {
            self.scale = match (page.first_key(), page.last_key()) {
                (Some(first), Some(last)) if page.more => Scale::of(first, last, self.pages),
                _ if self.cut => self.scale,
                _ => self.scale.and_then(Scale::wider),
            };
            self.cut = false;
            self.guess();
        }
        self.settle()
    }

    /// Whether another end would be no better than the range's: so little of it is behind `page`, or it is
    /// all the same to the store, which has not gone over it.
    fn stays(&self, page: &Page) -> bool {
        let few = (page.kvs.len() + page.rejects.len()) * usize::from(self.pages);
        page.left.at_least() <= few
    }

    /// Guesses where the next range ends.
    fn guess(&mut self) {
        let guess = self.scale.and_then(|scale| scale.end(&self.next));
        self.end = match (guess, &self.last) {
            (Some(guess), Some(last)) => Some(guess.min(last.clone())),
            (guess, last) => guess.or_else(|| last.clone()),
        };
    }

    /// Passes over what is reserved. Answers whether anything is left.
    fn settle(&mut self) -> bool {
        if self.reserved.contains(&self.next) {
            let Some(behind) = self.reserved.range().end() else {
                return false;
            };
            self.next = behind;
            if self.end.as_ref().is_some_and(|end| *end <= self.next) {
                self.guess();
            }
        }
        self.last.as_ref().is_none_or(|last| self.next < *last)
    }

    /// First key that was not looked at.
    pub(super) fn next(&self) -> &Bytes {
        &self.next
    }
}

impl Scale {
    /// After a page with these keys at its ends.
    fn of(first: &[u8], last: &[u8], pages: u8) -> Option<Self> {
        let digit = first.iter().zip(last).take_while(|(a, b)| a == b).count();
        let (first, last) = (first.get(digit).unwrap_or(&0), last.get(digit)?);
        let by = (last - first).max(1).saturating_mul(pages);
        Some(Self {
            digit,
            by,
            short: 0,
        })
    }

    /// After a page that ended before its limit: what has these digits in front is done with, or
    /// nearly. A digit further to the left has a range so much larger that none is passed over, until
    /// it looks as if they were the many that long keys have in common.
    fn wider(self) -> Option<Self> {
        const SINGLY: usize = 4;
        Some(Self {
            digit: self.digit.checked_sub(1 + self.short / SINGLY)?,
            by: 2,
            short: self.short + 1,
        })
    }

    /// Where a range from `start` on ends; nowhere if no digit can grow.
    fn end(self, start: &[u8]) -> Option<Bytes> {
        let mut end = start.to_vec();
        end.resize(self.digit + 1, 0);
        let mut by = self.by;
        while let Some(digit) = end.pop() {
            if let Some(grown) = digit.checked_add(by) {
                end.push(grown);
                return Some(end.into());
            }
            by = 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::store::Left;

    /// Walks over `keys` in an etcd. Answers how many of them that goes over, and in how many pages.
    fn walk(keys: &BTreeSet<Bytes>, limit: usize) -> (usize, usize) {
        walk_in(keys, limit, None, PAGES, Left::Exactly)
    }

    /// Walks over those of `keys` that are below `last`, in a store that says so of what is left.
    fn walk_in(
        keys: &BTreeSet<Bytes>,
        limit: usize,
        last: Option<Bytes>,
        pages_per_range: u8,
        left: fn(usize) -> Left,
    ) -> (usize, usize) {
        let reserved = Reserved::default();
        let wanted = KeyRange::span(Bytes::new(), last.clone());
        let reach = Reach::over(Bytes::new(), last, pages_per_range, &reserved);
        let mut reach = reach.expect("something is to be gone over");
        let (mut seen, mut gone_over, mut pages) = (Vec::new(), 0, 0);
        loop {
            let range = reach.range();
            assert!(
                !reserved.owns(&range),
                "{range:?} would show what is reserved"
            );
            let within = keys.range::<[u8], _>(range.bounds());
            let within = within.filter(|key| !reserved.contains(key));
            let within: Vec<Bytes> = within.cloned().collect();
            gone_over += within.len();
            pages += 1;
            let page = Page {
                more: within.len() > limit,
                left: left(within.len().saturating_sub(limit)),
                rejects: within.into_iter().take(limit).map(rejected).collect(),
                ..Page::default()
            };
            seen.extend(page.rejects.iter().map(|(key, _)| key.clone()));
            if !reach.go_on(&page, page.stop().unwrap()) {
                break;
            }
        }
        let wanted = keys
            .iter()
            .filter(|key| wanted.contains(key) && !reserved.contains(key));
        assert!(seen.iter().eq(wanted), "every key is seen once, in order");
        (gone_over, pages)
    }

    /// A way to make keys of numbers.
    type Shape = (&'static str, fn(u64) -> Vec<u8>);

    fn rejected(key: Bytes) -> (Bytes, String) {
        (key, String::new())
    }

    fn pod(number: u64) -> String {
        let name = crc32fast::hash(&number.to_le_bytes());
        format!("/registry/pods/ns-{:03}/pod-{name:08x}", number % 97)
    }

    #[test]
    fn a_walk_goes_over_few_keys_often() {
        const COUNT: u64 = 50_000;
        const LIMIT: usize = 500;
        let hash = |number: u64| {
            let half = u64::from(crc32fast::hash(&number.to_be_bytes()));
            half << 32 | u64::from(crc32fast::hash(&half.to_le_bytes()))
        };
        let shapes: [Shape; 5] = [
            ("numbers", |n| format!("bench/{n:058}").into()),
            ("plain numbers", |n| n.to_string().into()),
            ("Kubernetes", |n| pod(n).into()),
            ("far apart", |n| {
                let prefix = ["a/", "a/b/c/", "zz/", "\u{ff}"][(n % 4) as usize];
                format!("{prefix}{n:07}").into()
            }),
            ("binary", |n| n.to_le_bytes().to_vec()),
        ];
        let mut sets: Vec<(&str, BTreeSet<Bytes>)> = shapes
            .iter()
            .map(|(name, key)| (*name, (0..COUNT).map(|n| key(n).into()).collect()))
            .collect();
        let hashes = (0..COUNT).map(|n| Bytes::copy_from_slice(&hash(n).to_be_bytes()));
        sets.push(("hashes", hashes.collect()));
        for (name, keys) in sets {
            let (gone_over, pages) = walk(&keys, LIMIT);
            // Without a guess: 50 times the keys, in 100 pages.
            assert!(gone_over < keys.len() * 7, "{name}: {gone_over}");
            assert!(pages < keys.len() / LIMIT * 5 / 2, "{name}: {pages} pages");
        }
    }

    #[test]
    fn a_store_that_does_not_go_over_its_range_is_asked_for_one_range() {
        let keys: BTreeSet<Bytes> = (0..5000).map(|n| pod(n).into()).collect();
        let (_, pages) = walk_in(&keys, 500, None, PAGES, |_| Left::Untold);
        assert_eq!(pages, keys.len().div_ceil(500));
    }

    #[test]
    fn what_is_reserved_is_passed_over() {
        let many = |prefix: &'static str, count: u64| {
            (0..count).map(move |n| Bytes::from(format!("{prefix}{n:08}")))
        };
        // The first page ends a range where what is reserved begins. As it has more than a page, the next
        // range is as long, and would lie within.
        let mut before: BTreeSet<Bytes> =
            many("segue.p", 999).chain(many("segue.q", 2500)).collect();
        before.extend(many("t", 10_000).chain(["segue.0".into()]));
        let around = many("segue.", 2000).chain(many("segue/", 2000));
        let around = around.chain(many("segue0", 2000)).collect();
        for keys in [before, around] {
            for last in [None, Some("segue/9"), Some("segue0"), Some("segue.5")] {
                for pages in [PAGES, 16] {
                    for limit in [7, 100, 1000] {
                        let last = last.map(Bytes::from);
                        walk_in(&keys, limit, last, pages, Left::AtLeast);
                    }
                }
            }
        }
    }

    #[test]
    fn a_walk_ends_wherever_the_keys_are() {
        for keys in [
            vec![],
            vec![""],
            vec!["", "\0", "\0\0"],
            vec!["a"],
            vec!["a", "b", "b\0", "\u{ff}\u{ff}"],
        ] {
            let keys: BTreeSet<Bytes> = keys.into_iter().map(Bytes::from).collect();
            for limit in 1..4 {
                walk(&keys, limit);
            }
        }
        let last = BTreeSet::from([
            Bytes::from_static(&[0xff; 20]),
            Bytes::from_static(&[0xff; 9]),
        ]);
        walk(&last, 1);
    }
}

//! A walk through the tree in the order of keys, some directories ahead of itself.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_util::task::AbortOnDropHandle;

use super::node::Child;
use super::tree::{Listing, Tree};
use crate::store::{Result, StoreError};
use crate::tasks::spawn_owned;
use crate::types::KeyRange;

/// Directories that are fetched at the same time, at most. Quorum reads that are in flight together
/// share one write of the cluster's log.
const AHEAD: usize = 32;

/// Directories that are fetched at the same time until it is known how large they are.
const AHEAD_AT_FIRST: usize = 4;

/// What directories fetched ahead may take up together; of those still on their way, the average
/// is assumed.
const AHEAD_BYTES: usize = 16 << 20;

/// Directories fetched ahead, at most, however small they are.
const AHEAD_LISTINGS: usize = 1024;

/// Walks that are kept for the next page.
const PARKED: usize = 32;

/// What they may take up together. The latest is kept in any case: a directory of any size is then
/// read once by one reader, and not once per page.
const PARKED_BYTES: usize = 64 << 20;

/// How long they are kept: what a walk has fetched must not be shown as the present for long.
const PARKED_FOR: Duration = Duration::from_secs(30);

/// Where a walk through a range stands.
pub(super) struct Walk {
    tree: Arc<Tree>,
    keys: KeyRange,
    /// What comes next, in order.
    queue: VecDeque<Child>,
    /// Bytes that the queue takes up.
    weight: usize,
    /// Directories in the queue that are not being fetched yet, in order.
    unfetched: VecDeque<(Bytes, Option<i64>)>,
    /// Those that are.
    fetches: HashMap<Bytes, AbortOnDropHandle<Result<Listing>>>,
    /// Directories gone through so far.
    seen: Amount,
    /// Directories that have arrived and were not gone through yet.
    held: Arc<Held>,
}

/// Directories, and the bytes that they take up.
#[derive(Clone, Copy, Default)]
struct Amount {
    directories: usize,
    bytes: usize,
}

/// An [`Amount`] that fetches add to when they are done.
#[derive(Default)]
struct Held {
    directories: AtomicUsize,
    bytes: AtomicUsize,
}

impl Held {
    fn add(&self, bytes: usize) {
        self.directories.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn remove(&self, bytes: usize) {
        self.directories.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn amount(&self) -> Amount {
        Amount {
            directories: self.directories.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}

impl Walk {
    /// Begins at the lowest directory that holds all of `keys`.
    pub(super) fn new(tree: Arc<Tree>, keys: KeyRange) -> Self {
        let mut walk = Self {
            tree,
            queue: VecDeque::new(),
            weight: 0,
            unfetched: VecDeque::new(),
            fetches: HashMap::new(),
            seen: Amount::default(),
            held: Arc::default(),
            keys,
        };
        let root = Bytes::from_static(b"/");
        if walk.keys.intersect(&KeyRange::prefix(root)).is_some() {
            let prefix = Bytes::copy_from_slice(directory_of(&walk.keys));
            walk.enqueue(vec![Child::Dir {
                prefix,
                ttl_s: None,
            }]);
        }
        walk
    }

    /// The next pair or reject; nothing behind the last one.
    ///
    /// After a failure, or when dropped while it waits, the walk has lost its place.
    pub(super) async fn next(&mut self) -> Result<Option<Child>> {
        while let Some(child) = self.queue.pop_front() {
            self.weight -= child.weight();
            let Child::Dir { prefix, .. } = &child else {
                return Ok(Some(child));
            };
            // A directory at the front is the first of those not fetched, unless it is being.
            if !self.fetches.contains_key(prefix) {
                self.fetch_one();
            }
            self.fetch_ahead();
            let listing = match self.fetches.remove(prefix) {
                Some(fetch) => fetch.await.map_err(|error| lost(&error))??,
                None => return Err(lost(&"it was never asked for")),
            };
            self.held.remove(listing.weight);
            self.seen.directories += 1;
            self.seen.bytes += listing.weight;
            self.enqueue(listing.children);
        }
        Ok(None)
    }

    /// Whether there is certainly nothing more to come.
    pub(super) fn is_done(&self) -> bool {
        self.queue.is_empty()
    }

    /// Puts children where the directory that held them was: at the front.
    fn enqueue(&mut self, children: Vec<Child>) {
        for child in children.into_iter().rev() {
            if let Child::Dir { prefix, ttl_s } = &child {
                self.unfetched.push_front((prefix.clone(), *ttl_s));
            }
            self.weight += child.weight();
            self.queue.push_front(child);
        }
        self.fetch_ahead();
    }

    fn fetch_ahead(&mut self) {
        while self.may_fetch_ahead() && !self.unfetched.is_empty() {
            self.fetch_one();
        }
    }

    /// Whether another directory may be fetched that it is not the turn of yet.
    fn may_fetch_ahead(&self) -> bool {
        let held = self.held.amount();
        let on_their_way = self.fetches.len().saturating_sub(held.directories);
        let known = self.seen.directories + held.directories;
        let window = match (self.seen.bytes + held.bytes).checked_div(known) {
            Some(average) => AHEAD_BYTES.saturating_sub(held.bytes) / average.max(1),
            None => AHEAD_AT_FIRST,
        };
        on_their_way < window.min(AHEAD) && self.fetches.len() < AHEAD_LISTINGS
    }

    fn fetch_one(&mut self) {
        let Some((prefix, ttl_s)) = self.unfetched.pop_front() else {
            return;
        };
        let (tree, keys, directory) = (self.tree.clone(), self.keys.clone(), prefix.clone());
        let held = self.held.clone();
        let fetch = spawn_owned(async move {
            let listing = tree.children(&directory, ttl_s, &keys).await?;
            held.add(listing.weight);
            Ok(listing)
        });
        self.fetches.insert(prefix, AbortOnDropHandle::new(fetch));
    }
}

/// The lowest directory that holds all of `keys`, with its slash. `/` also where none does.
pub(super) fn directory_of(keys: &KeyRange) -> &[u8] {
    let start = &keys.start()[..];
    (1..start.len())
        .rev()
        .filter(|&at| start[at] == b'/')
        .map(|at| &start[..=at])
        .find(|prefix| KeyRange::prefix(Bytes::copy_from_slice(prefix)).covers(keys))
        .unwrap_or(b"/")
}

fn lost(error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Broken(format!("a directory of the old store got lost: {error}"))
}

/// Walks that stopped at the end of a page, waiting for the next one.
#[derive(Default)]
pub(super) struct Parked {
    walks: Mutex<VecDeque<Waiting>>,
}

struct Waiting {
    /// The first key that may come next.
    start: Bytes,
    walk: Walk,
    since: Instant,
}

impl Parked {
    /// The walk that stopped where `keys` begins, and was to end where it ends.
    pub(super) fn take(&self, keys: &KeyRange) -> Option<Walk> {
        let KeyRange::Span { start, end } = keys else {
            return None;
        };
        let mut walks = self.walks.lock().unwrap_or_else(PoisonError::into_inner);
        walks.retain(|waiting| waiting.since.elapsed() < PARKED_FOR);
        let at = walks.iter().position(|waiting| {
            let goal = match &waiting.walk.keys {
                KeyRange::Span { end, .. } => end,
                KeyRange::One(_) => return false,
            };
            waiting.start == *start && goal == end
        })?;
        walks.remove(at).map(|waiting| waiting.walk)
    }

    /// Keeps `walk`, which has come past `last`.
    pub(super) fn put(&self, last: &[u8], walk: Walk) {
        if walk.is_done() {
            return;
        }
        let mut walks = self.walks.lock().unwrap_or_else(PoisonError::into_inner);
        walks.push_back(Waiting {
            start: [last, &[0]].concat().into(),
            walk,
            since: Instant::now(),
        });
        let bytes = |walks: &VecDeque<Waiting>| walks.iter().map(|w| w.walk.weight).sum::<usize>();
        while walks.len() > PARKED || (walks.len() > 1 && bytes(&walks) > PARKED_BYTES) {
            walks.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_begins_no_higher_than_it_must() {
        let span = |start: &'static str, end: &'static str| KeyRange::span(start, Some(end.into()));
        for (keys, directory) in [
            (KeyRange::all(), "/"),
            (KeyRange::prefix("/a/b/"), "/a/b/"),
            (KeyRange::prefix("/a/b"), "/a/"),
            (span("/a/b/c", "/a/b/d"), "/a/b/"),
            (span("/a/b/c", "/a/c"), "/a/"),
            (span("/a/b/c", "/a/b0"), "/a/b/"),
            (span("/a/b/c", "/b"), "/"),
            (KeyRange::span("/a/b", None), "/"),
            (KeyRange::One("/a/b".into()), "/a/"),
            (KeyRange::prefix("a/b/"), "a/b/"),
        ] {
            assert_eq!(directory_of(&keys), directory.as_bytes(), "{keys:?}");
        }
    }
}

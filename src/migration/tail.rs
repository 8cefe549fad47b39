//! The changes that the mirror has still to replay: a watch of the new store, and what was taken from it.
//!
//! A tail outlives the mirror of an epoch. A rollback, for which clients wait, goes on where the mirror
//! was stopped; to begin a watch in the past anew takes an etcd up to a tenth of a second.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};

use super::mirror::Position;
use crate::store::{GuardedStore, Replayed, Result, Watch, WatchEnd, WatchItem, Watching};
use crate::types::{Change, EventBatch, KeyRange, KeyValue, LeaseId, Revision};

/// Keys that are replayed in one transaction, at most.
pub(super) const KEYS_MAX: usize = 1000;
/// Bytes of keys and values that are replayed in one transaction, unless a single pair has more.
pub(super) const BYTES_MAX: usize = 4 << 20;

/// What comes behind a position of the mirror.
pub struct Tail {
    watching: Watching,
    /// The position.
    at: (String, Revision, Revision),
    /// What was taken from the watch and is not known to be in the old store.
    batch: Batch,
    /// Changes behind a goal were taken from the watch and left out: nobody can go on behind it.
    cut: bool,
}

/// Changes on their way, of each key the latest.
#[derive(Default)]
struct Batch {
    changes: HashMap<Bytes, Replayed>,
    bytes: usize,
    through: Option<Revision>,
}

impl Batch {
    fn add(&mut self, batch: EventBatch) {
        self.through = Some(batch.revision);
        for event in batch.events {
            let change = match event.change {
                Change::Put(kv) => Replayed::Put(detached(kv)),
                Change::Delete { key, revision } => Replayed::Delete { key, revision },
            };
            self.bytes += change.bytes();
            let replaced = self.changes.insert(change.key().clone(), change);
            // Or what is too large for the old store would keep from this batch what takes its place.
            self.bytes -= replaced.as_ref().map_or(0, Replayed::bytes);
        }
    }
}

/// The pair without its lease.
pub(super) fn detached(kv: KeyValue) -> KeyValue {
    KeyValue {
        lease: LeaseId::NONE,
        ..kv
    }
}

/// What identifies a position, whoever stands there.
fn place(position: &Position) -> (String, Revision, Revision) {
    (position.migration.clone(), position.base, position.through)
}

impl Tail {
    /// Everything in `new` behind the position.
    pub(super) async fn open(new: &Arc<dyn GuardedStore>, position: &Position) -> Result<Self> {
        let start = Some(position.through.next());
        Ok(Self {
            watching: new.watch(Watch::of(KeyRange::all(), start)).await?,
            at: place(position),
            batch: Batch::default(),
            cut: false,
        })
    }

    /// Asks to be told how far everything was told of.
    pub(super) fn hurry(&self) {
        self.watching.progress.notify_one();
    }

    /// Takes what there is up to `goal`, as much as goes into one transaction; waits for something, but no
    /// longer than `patience`. Answers why there is nothing more, if that is so.
    pub(super) async fn fill(
        &mut self,
        goal: Option<Revision>,
        patience: Duration,
    ) -> Option<WatchEnd> {
        let mut next = if self.batch.through.is_none() {
            let item = tokio::time::timeout(patience, self.watching.items.next());
            item.await.ok()
        } else {
            // Taken before this tail changed hands.
            self.watching.items.next().now_or_never()
        };
        while let Some(item) = next {
            match item {
                // What comes behind the goal is not to be told of, unless the rollback is called off.
                Some(WatchItem::Events(events))
                    if goal.is_some_and(|goal| events.revision > goal) =>
                {
                    self.cut = true;
                    self.batch.through = goal;
                }
                Some(WatchItem::Events(events)) => self.batch.add(events),
                Some(WatchItem::Progress(through)) => {
                    let through = goal.map_or(through, |goal| through.min(goal));
                    self.batch.through = self.batch.through.max(Some(through));
                }
                // It is the new store's own, and the mirror goes on.
                Some(WatchItem::Epoch(_)) => {}
                Some(WatchItem::End(why)) => return Some(why),
                None => return Some(WatchEnd::Lost("the watch has ended".into())),
            }
            let reached = goal.is_some() && self.batch.through >= goal;
            if reached || self.is_full() {
                return None;
            }
            next = self.watching.items.next().now_or_never();
        }
        None
    }

    /// What was taken.
    pub(super) fn changes(&self) -> Vec<Replayed> {
        self.batch.changes.values().cloned().collect()
    }

    /// Everything up to here was taken, if anything was.
    pub(super) fn through(&self) -> Option<Revision> {
        self.batch.through
    }

    pub(super) fn is_full(&self) -> bool {
        self.batch.changes.len() >= KEYS_MAX || self.batch.bytes >= BYTES_MAX
    }

    /// What was taken is in the old store, or nothing of it had to be: the mirror stands at `position`.
    pub(super) fn done(&mut self, position: &Position) {
        self.at = place(position);
        self.batch = Batch::default();
    }

    /// Whether this is what comes behind `position`.
    fn follows(&mut self, position: &Position) -> bool {
        let place = place(position);
        let replayed = self
            .batch
            .through
            .is_some_and(|through| place == (self.at.0.clone(), self.at.1, through));
        if replayed {
            // The answer was not waited for.
            self.done(position);
        }
        self.at == place && !self.cut
    }
}

/// Where a tail is kept while no mirror has it.
#[derive(Clone, Default)]
pub struct Tails(Arc<Mutex<Option<Tail>>>);

impl Tails {
    fn swap(&self, tail: Option<Tail>) -> Option<Tail> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut kept, tail)
    }

    /// Lets go of it: there is nothing to be mirrored here.
    pub(super) fn clear(&self) {
        drop(self.swap(None));
    }

    /// What comes behind `position`: the tail that was kept, or a new one.
    pub(super) async fn behind(
        &self,
        new: &Arc<dyn GuardedStore>,
        position: &Position,
    ) -> Result<Borrowed> {
        let kept = self.swap(None);
        let kept = kept.and_then(|mut tail| tail.follows(position).then_some(tail));
        let tail = match kept {
            Some(tail) => tail,
            None => Tail::open(new, position).await?,
        };
        Ok(Borrowed {
            tail: Some(tail),
            tails: self.clone(),
        })
    }
}

/// A tail in use. It is kept for the next one if whoever uses it is stopped.
pub(super) struct Borrowed {
    tail: Option<Tail>,
    tails: Tails,
}

impl Borrowed {
    /// The tail.
    pub(super) fn tail(&mut self) -> Option<&mut Tail> {
        self.tail.as_mut()
    }

    /// It is of no use any more.
    pub(super) fn discard(mut self) {
        self.tail = None;
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if let Some(tail) = self.tail.take() {
            drop(self.tails.swap(Some(tail)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::Memory;
    use crate::store::{Guard, NewStore as _};
    use crate::types::Put;

    const PATIENCE: Duration = Duration::from_secs(5);

    /// The keys that the next user finds taken or takes itself, up to `goal`.
    async fn keys(
        tails: &Tails,
        new: &Arc<dyn GuardedStore>,
        at: &Position,
        goal: Revision,
    ) -> Vec<Bytes> {
        let mut borrowed = tails.behind(new, at).await.unwrap();
        let tail = borrowed.tail().unwrap();
        tail.hurry();
        while tail.through() < Some(goal) {
            assert_eq!(tail.fill(Some(goal), PATIENCE).await, None);
        }
        let mut keys: Vec<_> = tail.changes().iter().map(|it| it.key().clone()).collect();
        keys.sort();
        keys
    }

    #[tokio::test]
    async fn what_a_later_change_has_replaced_takes_no_room() {
        let new = Memory::new().guarded(Guard::None);
        for _ in 0..3 {
            let large = Put::new("k", vec![0; BYTES_MAX / 2]);
            new.put(large).await.unwrap();
        }
        let last = new.put(Put::new("k", "small")).await.unwrap().revision;
        let mut tail = Tail::open(&new, &Position::default()).await.unwrap();
        while tail.through() < Some(last) {
            assert_eq!(tail.fill(None, PATIENCE).await, None);
        }
        assert!(!tail.is_full());
        assert_eq!(tail.changes().iter().map(Replayed::bytes).sum::<usize>(), 6);
    }

    #[tokio::test]
    async fn what_was_taken_and_not_replayed_is_there_for_whoever_goes_on() {
        let new = Memory::new().guarded(Guard::None);
        let put = async |key: &'static str| new.put(Put::new(key, "")).await.unwrap().revision;
        let (tails, begun) = (Tails::default(), Position::default());
        let first = put("a").await;
        assert_eq!(keys(&tails, &new, &begun, first).await, ["a"]);
        // Whoever had it was stopped before anything was replayed,
        let second = put("b").await;
        assert_eq!(keys(&tails, &new, &begun, second).await, ["a", "b"]);
        // or when it was, and did not learn of it,
        let at = |through| Position {
            through,
            ..Position::default()
        };
        let third = put("c").await;
        assert_eq!(keys(&tails, &new, &at(second), third).await, ["c"]);
        // or another mirror has gone on meanwhile, and is stopped in its turn.
        assert_eq!(keys(&tails, &new, &at(first), third).await, ["b", "c"]);
        tails.clear();
        assert_eq!(keys(&tails, &new, &begun, third).await, ["a", "b", "c"]);
    }

    #[tokio::test]
    async fn what_came_behind_the_goal_of_a_rollback_is_there_when_it_is_called_off() {
        let new = Memory::new().guarded(Guard::None);
        let put = async |key: &'static str| new.put(Put::new(key, "")).await.unwrap().revision;
        let (tails, begun) = (Tails::default(), Position::default());
        put("a").await;
        // No event tells of it.
        let goal = put("segue/switch").await;
        let behind = put("b").await;
        assert_eq!(keys(&tails, &new, &begun, goal).await, ["a"]);
        assert_eq!(keys(&tails, &new, &begun, behind).await, ["a", "b"]);
    }
}

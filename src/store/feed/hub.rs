//! Which watchers are on the feed, and their queues.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::mpsc::{self, Receiver, Sender};

use super::Room;
use crate::types::range::shared_len;
use crate::types::{Event, EventBatch, KeyRange, Revision};

/// With so many events, at most, the watchers of spans are looked up for each of them. With more, the
/// events are looked up for each watcher.
const FEW_EVENTS: usize = 16;

/// The watchers on the feed. Whoever commits waits for its lock, so what a change costs under it must
/// not grow with the watchers on other keys: those of one key are found by the key, those of spans by
/// the prefixes of the key.
pub(super) struct Hub {
    state: Mutex<State>,
    /// A watcher came where there was none.
    watched: Notify,
}

struct State {
    published: Revision,
    ones: HashMap<Bytes, Slots>,
    /// By the longest prefix that all keys of the span have.
    spans: BTreeMap<Bytes, Slots>,
    next_id: u64,
    /// Grows each time that all watches are ended; a watch belongs to the one it was opened in.
    generation: u64,
    /// Why the last generation was ended.
    reason: String,
}

/// Watchers that are found in one way, by their ids: a stream may end thousands of them at once.
type Slots = HashMap<u64, Slot>;

/// A watcher's place on the feed.
struct Slot {
    keys: KeyRange,
    /// What was queued last, or what the watcher had seen before.
    last: Revision,
    queue: Sender<Queued>,
    /// Bytes in the queue.
    waiting: Arc<AtomicUsize>,
    bytes_max: usize,
}

/// A batch on its way to watchers.
#[derive(Clone)]
struct Queued {
    batch: Arc<EventBatch>,
    /// Counted once for all watchers.
    bytes: usize,
}

/// A watcher's end of its queue.
pub(super) struct Place {
    pub(super) id: u64,
    queue: Receiver<Queued>,
    waiting: Arc<AtomicUsize>,
    /// What had been published when the watcher came: everything above comes by the queue.
    pub(super) published: Revision,
}

impl Place {
    /// What waits in the queue.
    pub(super) fn try_next(&mut self) -> Result<Arc<EventBatch>, TryRecvError> {
        let queued = self.queue.try_recv()?;
        Ok(self.took(queued))
    }

    /// What comes next by the queue; nothing where it has ended.
    pub(super) async fn next(&mut self) -> Option<Arc<EventBatch>> {
        let queued = self.queue.recv().await?;
        Some(self.took(queued))
    }

    fn took(&self, queued: Queued) -> Arc<EventBatch> {
        self.waiting.fetch_sub(queued.bytes, Ordering::Relaxed);
        queued.batch
    }
}

impl Hub {
    pub(super) fn new(published: Revision) -> Self {
        Self {
            state: Mutex::new(State {
                published,
                ones: HashMap::new(),
                spans: BTreeMap::new(),
                next_id: 0,
                generation: 0,
                reason: String::new(),
            }),
            watched: Notify::new(),
        }
    }

    /// No code under this lock can panic halfway through a change, so a poisoned one is good.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn published(&self) -> Revision {
        self.lock().published
    }

    pub(super) fn generation(&self) -> u64 {
        self.lock().generation
    }

    pub(super) fn is_watched(&self) -> bool {
        self.lock().is_watched()
    }

    #[cfg(test)]
    pub(super) fn attached(&self) -> usize {
        let state = self.lock();
        let slots = state.ones.values().chain(state.spans.values());
        slots.map(Slots::len).sum()
    }

    pub(super) async fn until_watched(&self) {
        self.watched.notified().await;
    }

    pub(super) fn publish(&self, batches: &[Arc<EventBatch>]) {
        self.lock().publish(batches);
    }

    pub(super) fn publish_behind(
        &self,
        before: Revision,
        batches: &[Arc<EventBatch>],
        through: Revision,
    ) -> bool {
        let mut state = self.lock();
        let joined = state.published >= before;
        if joined {
            state.publish(batches);
            state.published = state.published.max(through);
        }
        joined
    }

    pub(super) fn advance(&self, revision: Revision) {
        let mut state = self.lock();
        state.published = state.published.max(revision);
    }

    pub(super) fn pass_by(&self, revision: Revision) -> bool {
        let mut state = self.lock();
        let watched = state.is_watched();
        if !watched {
            state.published = state.published.max(revision);
        }
        !watched
    }

    pub(super) fn end_all(&self, reason: &str) {
        let mut state = self.lock();
        state.generation += 1;
        reason.clone_into(&mut state.reason);
        state.ones.clear();
        state.spans.clear();
    }

    /// Puts a watcher of `generation`, which has seen everything up to `seen`, on the feed. Fails
    /// with the reason if its generation was ended.
    pub(super) fn attach(
        &self,
        keys: &KeyRange,
        seen: Revision,
        generation: u64,
        room: Room,
    ) -> Result<Place, String> {
        let (sender, queue) = mpsc::channel(room.batches);
        let waiting = Arc::new(AtomicUsize::new(0));
        let mut state = self.lock();
        if state.generation != generation {
            return Err(state.reason.clone());
        }
        let id = state.next_id;
        state.next_id += 1;
        let slot = Slot {
            keys: keys.clone(),
            last: seen.max(state.published),
            queue: sender,
            waiting: waiting.clone(),
            bytes_max: room.bytes,
        };
        if !state.is_watched() {
            self.watched.notify_one();
        }
        let slots = match keys {
            KeyRange::One(key) => state.ones.entry(key.clone()).or_default(),
            KeyRange::Span { .. } => state.spans.entry(keys.shared_prefix()).or_default(),
        };
        slots.insert(id, slot);
        Ok(Place {
            id,
            queue,
            waiting,
            published: state.published,
        })
    }

    pub(super) fn detach(&self, keys: &KeyRange, id: u64) {
        let mut state = self.lock();
        match keys {
            KeyRange::One(key) => {
                if leave(state.ones.get_mut(key), id) {
                    state.ones.remove(key);
                }
            }
            KeyRange::Span { .. } => {
                let prefix = keys.shared_prefix();
                if leave(state.spans.get_mut(&prefix), id) {
                    state.spans.remove(&prefix);
                }
            }
        }
    }
}

/// Takes a watcher away, if it is there; answers whether none is left.
fn leave(slots: Option<&mut Slots>, id: u64) -> bool {
    slots.is_some_and(|slots| {
        slots.remove(&id);
        slots.is_empty()
    })
}

impl State {
    fn is_watched(&self) -> bool {
        !self.ones.is_empty() || !self.spans.is_empty()
    }

    fn publish(&mut self, batches: &[Arc<EventBatch>]) {
        for batch in batches {
            if batch.revision > self.published {
                self.published = batch.revision;
                self.hand_out(batch);
            }
        }
    }

    fn hand_out(&mut self, batch: &Arc<EventBatch>) {
        if !self.is_watched() {
            return;
        }
        let queued = &Queued {
            batch: batch.clone(),
            bytes: batch.bytes(),
        };
        if !self.ones.is_empty() {
            for event in &batch.events {
                let Some(slots) = self.ones.get_mut(event.key()) else {
                    continue;
                };
                slots.retain(|_, slot| slot.offer(queued));
                if slots.is_empty() {
                    self.ones.remove(event.key());
                }
            }
        }
        if batch.events.len() > FEW_EVENTS {
            self.hand_out_many(queued);
        } else {
            for event in &batch.events {
                self.hand_out_of(event.key(), queued);
            }
        }
    }

    /// Hands the batch, which changes `key`, to the watchers of spans with the key.
    fn hand_out_of(&mut self, key: &Bytes, queued: &Queued) {
        // From the longest prefix of the key that spans are found by to the shortest one.
        let mut rest = &key[..];
        loop {
            let up_to = (Bound::Unbounded, Bound::Included(rest));
            let Some((prefix, slots)) = self.spans.range_mut::<[u8], _>(up_to).next_back() else {
                return;
            };
            let shared = shared_len(prefix, rest);
            if shared < prefix.len() {
                // Prefixes of the key with more bytes would lie between this one and `rest`.
                rest = &rest[..shared];
                continue;
            }
            slots.retain(|_, slot| !slot.keys.contains(key) || slot.offer(queued));
            if slots.is_empty() {
                let prefix = prefix.clone();
                self.spans.remove(&prefix);
            }
            match shared.checked_sub(1) {
                Some(shorter) => rest = &rest[..shorter],
                None => return,
            }
        }
    }

    /// Hands a batch of many events to the watchers of spans.
    fn hand_out_many(&mut self, queued: &Queued) {
        if self.spans.is_empty() {
            return;
        }
        let mut keys: Vec<_> = queued.batch.events.iter().map(Event::key).collect();
        keys.sort_unstable();
        self.spans.retain(|_, slots| {
            slots.retain(|_, slot| {
                let first = keys.partition_point(|key| *key < slot.keys.start());
                let is_asked_for = keys.get(first).is_some_and(|key| slot.keys.contains(key));
                !is_asked_for || slot.offer(queued)
            });
            !slots.is_empty()
        });
    }
}

impl Slot {
    /// Queues the batch, once. Answers whether the watcher stays on the feed: one whose queue is
    /// full leaves it and finds the end of its queue behind what was queued.
    fn offer(&mut self, queued: &Queued) -> bool {
        if queued.batch.revision <= self.last {
            return true;
        }
        self.last = queued.batch.revision;
        // The watcher only ever makes it less meanwhile.
        let waiting = self.waiting.load(Ordering::Relaxed);
        if waiting > 0 && waiting + queued.bytes > self.bytes_max {
            return false;
        }
        self.waiting.fetch_add(queued.bytes, Ordering::Relaxed);
        self.queue.try_send(queued.clone()).is_ok()
    }
}

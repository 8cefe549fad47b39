//! Which watchers are on the feed, and their queues.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc::{self, Receiver, Sender};

use crate::types::{EventBatch, KeyRange, Revision};

/// The watchers on the feed. Watchers of one key are found by the key, so that any number of them on
/// other keys costs an event nothing; those of ranges are asked one by one.
pub(super) struct Hub {
    state: Mutex<State>,
}

struct State {
    published: Revision,
    ones: HashMap<Bytes, Vec<Slot>>,
    spans: Vec<Slot>,
    next_id: u64,
    /// Grows each time that all watches are ended; a watch belongs to the one it was opened in.
    generation: u64,
    /// Why the last generation was ended.
    reason: String,
}

/// A watcher's place on the feed.
struct Slot {
    id: u64,
    keys: KeyRange,
    /// What was queued last, or what the watcher had seen before.
    last: Revision,
    queue: Sender<Arc<EventBatch>>,
}

/// A watcher's end of its queue.
pub(super) struct Place {
    pub(super) id: u64,
    pub(super) queue: Receiver<Arc<EventBatch>>,
    /// What had been published when the watcher came: everything above comes by the queue.
    pub(super) published: Revision,
}

impl Hub {
    pub(super) fn new(published: Revision) -> Self {
        Self {
            state: Mutex::new(State {
                published,
                ones: HashMap::new(),
                spans: Vec::new(),
                next_id: 0,
                generation: 0,
                reason: String::new(),
            }),
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

    pub(super) fn attached(&self) -> usize {
        let state = self.lock();
        state.spans.len() + state.ones.values().map(Vec::len).sum::<usize>()
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
        queue_len: usize,
    ) -> Result<Place, String> {
        let (sender, queue) = mpsc::channel(queue_len);
        let mut state = self.lock();
        if state.generation != generation {
            return Err(state.reason.clone());
        }
        let id = state.next_id;
        state.next_id += 1;
        let slot = Slot {
            id,
            keys: keys.clone(),
            last: seen.max(state.published),
            queue: sender,
        };
        match keys {
            KeyRange::One(key) => state.ones.entry(key.clone()).or_default().push(slot),
            KeyRange::Span { .. } => state.spans.push(slot),
        }
        Ok(Place {
            id,
            queue,
            published: state.published,
        })
    }

    pub(super) fn detach(&self, keys: &KeyRange, id: u64) {
        let mut state = self.lock();
        match keys {
            KeyRange::One(key) => {
                if let Some(slots) = state.ones.get_mut(key) {
                    slots.retain(|slot| slot.id != id);
                    if slots.is_empty() {
                        state.ones.remove(key);
                    }
                }
            }
            KeyRange::Span { .. } => state.spans.retain(|slot| slot.id != id),
        }
    }
}

impl State {
    fn publish(&mut self, batches: &[Arc<EventBatch>]) {
        for batch in batches {
            if batch.revision > self.published {
                self.published = batch.revision;
                self.hand_out(batch);
            }
        }
    }

    fn hand_out(&mut self, batch: &Arc<EventBatch>) {
        if !self.ones.is_empty() {
            for event in &batch.events {
                let Some(slots) = self.ones.get_mut(event.key()) else {
                    continue;
                };
                slots.retain_mut(|slot| slot.offer(batch));
                if slots.is_empty() {
                    self.ones.remove(event.key());
                }
            }
        }
        self.spans.retain_mut(|slot| {
            let events = &mut batch.events.iter();
            !events.any(|event| slot.keys.contains(event.key())) || slot.offer(batch)
        });
    }
}

impl Slot {
    /// Queues the batch, once. Answers whether the watcher stays on the feed: one whose queue is
    /// full leaves it and finds the end of its queue behind what was queued.
    fn offer(&mut self, batch: &Arc<EventBatch>) -> bool {
        if batch.revision <= self.last {
            return true;
        }
        self.last = batch.revision;
        self.queue.try_send(batch.clone()).is_ok()
    }
}

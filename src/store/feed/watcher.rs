//! One watch: from history to the feed and, when it falls behind, back again.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::FutureExt as _;
use tokio::sync::Notify;
use tokio::sync::mpsc::error::TryRecvError;

use super::Shared;
use super::hub::Place;
use crate::store::{Watch, WatchEnd, WatchItem};
use crate::types::{Change, Event, EventBatch, Revision};

/// Events that a watcher reads from history at a time: where that goes well, and at least.
const STRETCH_EVENTS: usize = 512;
const STRETCH_EVENTS_MIN: usize = 8;

pub(super) struct Watcher {
    shared: Arc<Shared>,
    request: Watch,
    /// Whether the range lies within the reserved keys and so sees them.
    sees_reserved: bool,
    generation: u64,
    /// Everything up to here was delivered, is in `ready`, or is not asked for.
    seen: Revision,
    /// The part of `seen` that the store has come to, for certain: a watch may begin in the future. Progress
    /// tells no less, though the feed may not be there yet.
    floor: Revision,
    /// Where the store stood when the watch was opened: up to here only history can tell, whatever was
    /// published by then. It may be that the line of revisions has jumped.
    current: Revision,
    /// Where history could not be read the last time that it could not.
    failed_at: Option<Revision>,
    /// Events that are read from history at a time: fewer where that was too much for the store.
    limit: usize,
    /// What was read from history and not delivered yet.
    ready: VecDeque<EventBatch>,
    /// The place on the feed. A watcher takes it before it has read all of the history that lies
    /// below, so that nothing can fall between the two.
    place: Option<Place>,
    progress: Arc<Notify>,
    /// What a progress item that was asked for is to say.
    progress_due: Option<Revision>,
}

/// What to do next.
enum Step {
    Yield(WatchItem),
    Attach,
    ReadHistory,
    Wait,
    /// Nothing that was asked for was found; there may be more.
    Again,
}

impl Watcher {
    pub(super) fn new(
        shared: Arc<Shared>,
        request: Watch,
        seen: Revision,
        current: Revision,
        progress: Arc<Notify>,
    ) -> Self {
        let generation = shared.hub.generation();
        let mut watcher = Self {
            sees_reserved: shared.reserved.range().covers(&request.keys),
            shared,
            request,
            generation,
            seen,
            floor: seen.min(current),
            current,
            failed_at: None,
            limit: STRETCH_EVENTS,
            ready: VecDeque::new(),
            place: None,
            progress,
            progress_due: None,
        };
        // A watch that needs no history is on the feed from the start: its first events need not
        // be in the history any more when it is polled.
        if seen >= watcher.told_by_history() {
            watcher.attach().ok();
        }
        watcher
    }

    /// The next item. After [`WatchItem::End`] there is none.
    pub(super) async fn next(&mut self) -> WatchItem {
        loop {
            let step = self.select();
            let outcome = match step {
                Step::Yield(item) => return item,
                Step::Again => Ok(()),
                Step::Attach => self.attach(),
                Step::ReadHistory => self.read_history().await,
                Step::Wait => {
                    self.wait().await;
                    Ok(())
                }
            };
            if let Err(end) = outcome {
                return WatchItem::End(end);
            }
        }
    }

    fn select(&mut self) -> Step {
        if let Some(batch) = self.ready.pop_front() {
            return Step::Yield(WatchItem::Events(batch));
        }
        let Some(place) = &mut self.place else {
            return if self.seen < self.told_by_history() {
                Step::ReadHistory
            } else {
                Step::Attach
            };
        };
        if self.seen < place.published {
            return Step::ReadHistory;
        }
        // A busy queue must not keep a question for progress waiting.
        if self.progress_due.is_none() && self.progress.notified().now_or_never().is_some() {
            self.progress_due = Some(self.shared.hub.published());
        }
        // Nothing is in `ready`, so what was seen was delivered. That may be more than was published when
        // progress was asked for: history is read from the store, and others write to it as well.
        let due = self.progress_due.map(|due| due.max(self.floor));
        match place.try_next() {
            Ok(batch) => {
                // A progress item that is due for an earlier revision goes before.
                let due = due.filter(|due| *due < batch.revision);
                self.take(&batch);
                match due {
                    Some(due) => self.yield_progress(due),
                    None => Step::Again,
                }
            }
            Err(TryRecvError::Empty) => match due {
                Some(due) => self.yield_progress(due),
                None => Step::Wait,
            },
            // Off the feed: fallen behind, or ended, which the next attempt to attach tells.
            Err(TryRecvError::Disconnected) => {
                self.place = None;
                if self.shared.hub.generation() == self.generation {
                    Step::Again
                } else {
                    Step::Attach
                }
            }
        }
    }

    /// What is not seen up to here is in history, and does not come by the feed for certain.
    fn told_by_history(&self) -> Revision {
        self.shared.hub.published().max(self.current)
    }

    fn yield_progress(&mut self, due: Revision) -> Step {
        self.progress_due = None;
        Step::Yield(WatchItem::Progress(due))
    }

    /// Waits until there is something in the queue, or progress is asked for. What had been
    /// published by that moment is in the queue by then.
    async fn wait(&mut self) {
        let Some(place) = &mut self.place else {
            return;
        };
        tokio::select! {
            batch = place.next() => {
                if let Some(batch) = batch {
                    self.take(&batch);
                }
            }
            () = self.progress.notified() => {
                self.progress_due = Some(self.shared.hub.published());
            }
        }
    }
    pub(super) fn attach(&mut self) -> Result<(), WatchEnd> {
        let room = self.shared.room;
        let keys = &self.request.keys;
        let place = self
            .shared
            .hub
            .attach(keys, self.seen, self.generation, room);
        self.place = Some(place.map_err(WatchEnd::Lost)?);
        Ok(())
    }

    async fn read_history(&mut self) -> Result<(), WatchEnd> {
        let history = &self.shared.history;
        let read = history.history(&self.request, self.seen, self.limit);
        let stretch = match read.await {
            Ok(stretch) => stretch,
            Err(error) => {
                let failed_before = self.failed_at.replace(self.seen);
                if error.is_final() || failed_before == Some(self.seen) {
                    return Err(error.into());
                }
                // A new watch would begin behind what was delivered, which may be long before.
                self.limit = (self.limit / 8).max(STRETCH_EVENTS_MIN);
                return Ok(());
            }
        };
        if stretch.through <= self.seen {
            let lost = format!(
                "the history ends at {}, before what was published",
                self.seen
            );
            return Err(WatchEnd::Lost(lost));
        }
        self.limit = (self.limit * 2).min(STRETCH_EVENTS);
        for batch in &stretch.batches {
            self.take(batch);
        }
        self.saw(stretch.through);
        Ok(())
    }

    /// Gets what the watch asks for of a batch ready, unless it has seen the batch.
    fn take(&mut self, batch: &EventBatch) {
        if batch.revision <= self.seen {
            return;
        }
        self.saw(batch.revision);
        let wanted = batch.events.iter().filter(|event| self.wants(event));
        let events: Vec<_> = wanted.map(|event| self.cut(event)).collect();
        if !events.is_empty() {
            self.ready.push_back(EventBatch {
                revision: batch.revision,
                events,
            });
        }
    }

    /// Notes that the store has come to `revision`, and what was asked for up to it is delivered or ready.
    fn saw(&mut self, revision: Revision) {
        self.seen = self.seen.max(revision);
        self.floor = self.floor.max(revision);
    }

    fn wants(&self, event: &Event) -> bool {
        let kind = match event.change {
            Change::Put(_) => self.request.puts,
            Change::Delete { .. } => self.request.deletes,
        };
        let key = event.key();
        kind && self.request.keys.contains(key)
            && (self.sees_reserved || !self.shared.reserved.contains(key))
    }

    fn cut(&self, event: &Event) -> Event {
        Event {
            change: event.change.clone(),
            prev: event.prev.clone().filter(|_| self.request.prev_kv),
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Some(place) = &self.place {
            self.shared.hub.detach(&self.request.keys, place.id);
        }
    }
}

//! The watches of one stream, and what becomes of them. No I/O.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{AbortHandle, AbortRegistration};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::response::{Responses, canceled};
use crate::api::Context;
use crate::api::errors::{COMPACTED, status};
use crate::proto::etcdserverpb as pb;
use crate::store::{self, StoreError, WatchEnd, WatchItem, Watching};
use crate::types::{KeyRange, Revision};

type Outbox = VecDeque<pb::WatchResponse>;

/// Tells one opening of a watch from the next, so that what an earlier one still yields is dropped.
pub(super) type Generation = u64;

/// The id in answers that belong to no watch, or to all.
const NO_WATCH: i64 = -1;

/// A watch that is being created.
pub(super) struct Create {
    pub id: i64,
    pub watch: store::Watch,
    progress_notify: bool,
    fragment: bool,
}

/// A watch that the client knows of.
struct Entry {
    watch: store::Watch,
    fragment: bool,
    /// Whether nothing was sent since the last tick, if the client wants to be told then.
    idle: Option<bool>,
    /// An answer with the watch's own id is due at its next progress.
    progress_due: bool,
    /// The first revision that was not delivered.
    next: Revision,
    generation: Generation,
    /// While it is open.
    open: Option<Open>,
    /// Since it was lost, until it has delivered something: that it could be opened anew does not mean that
    /// its history can be read.
    lost_since: Option<Instant>,
}

struct Open {
    progress: Arc<Notify>,
    /// Ends the stream of items when dropped.
    _items: Items,
}

/// Stops the stream of items of a watch that is no more.
struct Items(AbortHandle);

impl Drop for Items {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A progress request of the client, which all watches have to answer.
#[derive(Default)]
struct Round {
    waiting: HashSet<i64>,
    /// What all that answered so far have delivered.
    delivered: Option<Revision>,
    /// The client asked again meanwhile.
    again: bool,
    /// No watch can say: the store is asked for its revision.
    asking: bool,
}

pub(super) struct Table {
    context: Arc<Context>,
    entries: HashMap<i64, Entry>,
    next_id: i64,
    generations: Generation,
    round: Option<Round>,
    /// The highest revision that was seen on this stream.
    pub seen: Revision,
}

impl Table {
    pub(super) fn new(context: Arc<Context>) -> Self {
        Self {
            context,
            entries: HashMap::new(),
            next_id: 0,
            generations: 0,
            round: None,
            seen: Revision(0),
        }
    }

    /// Reads a request to create a watch, or says what is wrong with it, in etcd's words.
    pub(super) fn create(
        &mut self,
        request: pb::WatchCreateRequest,
    ) -> Result<Create, &'static str> {
        use pb::watch_create_request::FilterType;
        // etcd's smallest key stands in for an empty one, with and without an end.
        let key = if request.key.is_empty() {
            bytes::Bytes::from_static(&[0])
        } else {
            request.key
        };
        let keys = KeyRange::from_etcd(key, request.range_end);
        if keys.is_empty() {
            return Err("mvcc: watcher range is empty");
        }
        if request.start_revision < 0 {
            return Err(COMPACTED);
        }
        let id = match request.watch_id {
            0 => {
                while self.entries.contains_key(&self.next_id) {
                    self.next_id += 1;
                }
                self.next_id += 1;
                self.next_id - 1
            }
            id if self.entries.contains_key(&id) => {
                return Err("mvcc: duplicate watch ID provided on the WatchStream");
            }
            id => id,
        };
        let filtered = |filter: FilterType| request.filters.contains(&i32::from(filter));
        Ok(Create {
            id,
            watch: store::Watch {
                keys,
                start: (request.start_revision > 0).then_some(Revision(request.start_revision)),
                puts: !filtered(FilterType::Noput),
                deletes: !filtered(FilterType::Nodelete),
                prev_kv: request.prev_kv,
            },
            progress_notify: request.progress_notify,
            fragment: request.fragment,
        })
    }

    /// Takes in a watch that was opened.
    pub(super) fn insert(
        &mut self,
        create: Create,
        watching: &Watching,
    ) -> (Generation, AbortRegistration) {
        let next = create.watch.start.unwrap_or(watching.revision.next());
        let (open, generation, registration) = self.opening(watching);
        let entry = Entry {
            watch: create.watch,
            fragment: create.fragment,
            idle: create.progress_notify.then_some(true),
            progress_due: false,
            next,
            generation,
            open: Some(open),
            lost_since: None,
        };
        // A watch that joins while a progress request is being answered has to answer as well: the
        // answer speaks for every watch that the client has by then.
        if let Some(round) = &mut self.round {
            round.waiting.insert(create.id);
            watching.progress.notify_one();
        }
        self.entries.insert(create.id, entry);
        self.context.metrics.watches.inc();
        (generation, registration)
    }

    fn opening(&mut self, watching: &Watching) -> (Open, Generation, AbortRegistration) {
        self.seen = self.seen.max(watching.revision);
        self.generations += 1;
        let (handle, registration) = AbortHandle::new_pair();
        let open = Open {
            progress: Arc::clone(&watching.progress),
            _items: Items(handle),
        };
        (open, self.generations, registration)
    }

    /// Takes a lost watch back in, unless it was cancelled meanwhile.
    pub(super) fn reopened(
        &mut self,
        id: i64,
        generation: Generation,
        watching: &Watching,
    ) -> Option<(Generation, AbortRegistration)> {
        self.entry(id, generation)?;
        let (open, generation, registration) = self.opening(watching);
        let entry = self.entries.get_mut(&id)?;
        // It has been found again when it says how far it is, though nothing may have happened meanwhile.
        open.progress.notify_one();
        entry.open = Some(open);
        entry.generation = generation;
        Some((generation, registration))
    }

    /// The opening of a watch that an action speaks of, if it is still the present one.
    fn entry(&mut self, id: i64, generation: Generation) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(&id)?;
        (entry.generation == generation).then_some(entry)
    }

    /// Forgets a watch; answers whether there was one.
    pub(super) fn remove(&mut self, id: i64, outbox: &mut Outbox) -> bool {
        let removed = self.entries.remove(&id).is_some();
        if removed {
            self.context.metrics.watches.dec();
            self.answered(id, None, outbox);
        }
        removed
    }

    /// What a watch yielded. Answers whether its store was lost, and it is to be opened anew.
    pub(super) fn items(
        &mut self,
        id: i64,
        generation: Generation,
        items: Vec<WatchItem>,
        outbox: &mut Outbox,
    ) -> bool {
        let limit = self.context.message_bytes();
        let context = Arc::clone(&self.context);
        let Some(entry) = self.entry(id, generation) else {
            return false;
        };
        let fragment = entry.fragment.then_some(limit);
        // Not where the watch begins, which may be in the future.
        let mut seen = Revision(0);
        let mut responses = Responses::new(&context, id, fragment, entry.watch.prev_kv);
        let mut progress = None;
        let mut end = None;
        for item in items {
            match item {
                WatchItem::Events(batch) => {
                    entry.lost_since = None;
                    seen = batch.revision;
                    entry.next = seen.next();
                    entry.idle = entry.idle.and(Some(false));
                    responses.add(batch, outbox);
                }
                WatchItem::Progress(revision) => {
                    responses.flush(outbox);
                    entry.lost_since = None;
                    seen = seen.max(revision);
                    entry.next = entry.next.max(revision.next());
                    if std::mem::take(&mut entry.progress_due) {
                        outbox.push_back(pb::WatchResponse {
                            header: context.header(revision),
                            watch_id: id,
                            ..pb::WatchResponse::default()
                        });
                    }
                    progress = Some(revision);
                }
                WatchItem::Epoch(_) => {}
                WatchItem::End(why) => {
                    end = Some(why);
                    break;
                }
            }
        }
        responses.flush(outbox);
        self.seen = self.seen.max(seen);
        if let Some(revision) = progress {
            self.answered(id, Some(revision), outbox);
        }
        match end {
            None => false,
            Some(WatchEnd::Compacted(oldest)) => {
                self.remove(id, outbox);
                outbox.push_back(pb::WatchResponse {
                    compact_revision: oldest.0,
                    // etcd puts no revision into this header.
                    ..canceled(&context, id, Revision(0), "")
                });
                false
            }
            Some(WatchEnd::Lost(why)) => {
                tracing::debug!(watch = id, %why, "a watch lost its store");
                true
            }
            Some(WatchEnd::Failed(failure)) => {
                self.fail(id, generation, &failure, outbox);
                false
            }
        }
    }

    /// Notes that a watch has no store now; answers what to open anew, and how long it is lost if it was
    /// before.
    pub(super) fn lost(
        &mut self,
        id: i64,
        generation: Generation,
    ) -> Option<(store::Watch, Option<Duration>)> {
        let entry = self.entry(id, generation)?;
        entry.open = None;
        let lost_for = entry.lost_since.map(|since| since.elapsed());
        entry.lost_since.get_or_insert_with(Instant::now);
        let watch = store::Watch {
            start: Some(entry.next),
            ..entry.watch.clone()
        };
        Some((watch, lost_for))
    }

    /// Ends a watch that cannot go on.
    pub(super) fn fail(
        &mut self,
        id: i64,
        generation: Generation,
        failure: &StoreError,
        outbox: &mut Outbox,
    ) {
        if self.entry(id, generation).is_none() {
            return;
        }
        self.remove(id, outbox);
        let reason = status(failure);
        outbox.push_back(canceled(&self.context, id, self.seen, reason.message()));
    }

    /// Time to tell clients that nothing happened, where that is so and where they asked for it.
    pub(super) fn ask_idle(&mut self) {
        for entry in self.entries.values_mut() {
            if entry.idle == Some(true) {
                entry.progress_due = true;
                entry.ask();
            }
            entry.idle = entry.idle.and(Some(true));
        }
    }

    /// The client wants to know how far all watches are.
    pub(super) fn ask_all(&mut self) {
        if let Some(round) = &mut self.round {
            round.again = true;
            return;
        }
        self.round = Some(Round {
            waiting: self.entries.keys().copied().collect(),
            ..Round::default()
        });
        self.entries.values().for_each(Entry::ask);
    }

    /// A watch has delivered everything up to `progress`, or is no more.
    fn answered(&mut self, id: i64, progress: Option<Revision>, outbox: &mut Outbox) {
        let Some(round) = &mut self.round else {
            return;
        };
        if !round.waiting.remove(&id) {
            return;
        }
        if let Some(revision) = progress {
            round.delivered = Some(
                round
                    .delivered
                    .map_or(revision, |so_far| so_far.min(revision)),
            );
        }
        if round.waiting.is_empty() && round.delivered.is_some() {
            self.finish_round(outbox);
        }
    }

    /// Whether a progress request waits for the store's revision alone. Answers so once.
    pub(super) fn needs_current(&mut self) -> bool {
        self.round.as_mut().is_some_and(|round| {
            let needs = round.waiting.is_empty() && round.delivered.is_none();
            needs && !std::mem::replace(&mut round.asking, true)
        })
    }

    /// The store's revision, for a progress request that no watch could answer.
    pub(super) fn current(&mut self, revision: Option<Revision>, outbox: &mut Outbox) {
        let Some(round) = &mut self.round else {
            return;
        };
        round.asking = false;
        // A watch may have joined meanwhile; then its answer counts.
        if round.waiting.is_empty() {
            round.delivered = round.delivered.or(revision);
            self.finish_round(outbox);
        }
    }

    fn finish_round(&mut self, outbox: &mut Outbox) {
        let Some(round) = self.round.take() else {
            return;
        };
        // Without a revision there is nothing to promise: the client asks again.
        if let Some(revision) = round.delivered {
            outbox.push_back(pb::WatchResponse {
                header: self.context.header(revision),
                watch_id: NO_WATCH,
                ..pb::WatchResponse::default()
            });
        }
        if round.again {
            self.ask_all();
        }
    }

    pub(super) fn created(&self, create: &Create, revision: Revision) -> pb::WatchResponse {
        pb::WatchResponse {
            header: self.context.header(revision),
            watch_id: create.id,
            created: true,
            ..pb::WatchResponse::default()
        }
    }

    pub(super) fn refused(&self, reason: &str, revision: Revision) -> pb::WatchResponse {
        pb::WatchResponse {
            created: true,
            ..canceled(&self.context, NO_WATCH, revision, reason)
        }
    }

    pub(super) fn cancelled(&self, id: i64, revision: Revision) -> pb::WatchResponse {
        canceled(&self.context, id, revision, "")
    }
}

impl Entry {
    fn ask(&self) {
        if let Some(open) = &self.open {
            open.progress.notify_one();
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        let left = i64::try_from(self.entries.len()).unwrap_or(0);
        self.context.metrics.watches.dec_by(left);
    }
}

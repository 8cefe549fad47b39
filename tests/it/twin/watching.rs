//! Watches on both sides, from now and from the past, which outlive the phases.

use rand::RngExt as _;
use segue::proto::etcdserverpb as pb;
use segue::proto::mvccpb;

use super::Twins;
use crate::differential::script::put;
use crate::differential::watches::{SOON, Stream, from, watch};
use pb::watch_request::RequestUnion;

/// Most watches at the same time, besides that of everything.
const MOST: usize = 6;

/// One watch, on both sides.
pub(super) struct Watched {
    request: pb::WatchCreateRequest,
    twin: Stream,
    segue: Stream,
    /// Events that came.
    seen: usize,
}

/// All watches, and what they are about.
#[derive(Default)]
pub(super) struct Watches {
    /// The one that sees everything from the beginning.
    all: Option<Watched>,
    some: Vec<Watched>,
    /// Everything that has happened so far, as the twin told it.
    events: Vec<mvccpb::Event>,
    /// How many events were compared.
    pub(super) compared: usize,
}

/// Whether a watch tells of this event.
fn tells_of(request: &pb::WatchCreateRequest, event: &mvccpb::Event) -> bool {
    let kv = event.kv.as_ref().expect("an event has a key");
    let in_range = match &request.range_end[..] {
        [] => kv.key == request.key,
        [0] => kv.key >= request.key,
        end => kv.key >= request.key && &kv.key[..] < end,
    };
    // A filter's number is that of the kind of event that it leaves out.
    let filtered = request.filters.contains(&event.r#type);
    in_range && !filtered && kv.mod_revision >= request.start_revision
}

impl Twins {
    /// Begins to watch everything, before there is anything.
    pub(super) async fn watch_all(&mut self) {
        let request = pb::WatchCreateRequest {
            prev_kv: true,
            ..watch("\0", "\0")
        };
        self.watches.all = self.watch(request).await;
    }

    /// Sees that all watches have told the same so far; then ends one of them or begins another.
    pub(super) async fn compare_watches(&mut self) {
        self.asked_for += 1;
        let value = self.asked_for.to_string();
        self.ask(put("z", &value)).await;
        let newest = self.lines.newest();
        let mut all = self.watches.all.take().expect("everything is watched");
        loop {
            let events = self.same_events(&mut all, 1).await;
            let last = events.last().and_then(|event| event.kv.as_ref());
            let is_last = last.is_some_and(|kv| kv.mod_revision == newest);
            self.watches.events.extend(events);
            if is_last {
                break;
            }
        }
        self.watches.all = Some(all);
        let mut some = std::mem::take(&mut self.watches.some);
        for watched in &mut some {
            self.catch_up(watched).await;
        }
        if some.len() == MOST {
            some.remove(self.random.rng.random_range(0..MOST));
        }
        let mut request = self.random_watch();
        let mut events = self.watches.events.iter();
        if !events.any(|event| tells_of(&request, event)) {
            // Nothing would show when it has read what was before, and until then a compaction ends it.
            request.start_revision = 0;
        }
        if let Some(mut watched) = self.watch(request).await {
            self.catch_up(&mut watched).await;
            some.push(watched);
        }
        self.watches.some = some;
    }

    /// Reads what has happened since on both sides.
    async fn catch_up(&mut self, watched: &mut Watched) {
        let events = self.watches.events.iter();
        let due = events
            .filter(|event| tells_of(&watched.request, event))
            .count();
        let count = due.saturating_sub(watched.seen);
        if count > 0 {
            self.same_events(watched, count).await;
        }
    }

    /// The next events, at least so many, which have to be the same on both sides.
    async fn same_events(&mut self, watched: &mut Watched, count: usize) -> Vec<mvccpb::Event> {
        let mut twin = read(&mut watched.twin, count).await;
        let mut segue = read(&mut watched.segue, twin.len()).await;
        // Either may tell more at once than it was asked for.
        while twin.len() != segue.len() {
            let (behind, events, due) = if twin.len() < segue.len() {
                (&mut watched.twin, &mut twin, segue.len())
            } else {
                (&mut watched.segue, &mut segue, twin.len())
            };
            let more = read(behind, due - events.len()).await;
            if more.is_empty() {
                break;
            }
            events.extend(more);
        }
        for (number, event) in twin.iter().enumerate() {
            let said = segue.get(number).map(|event| format!("{event:?}"));
            let said = said.map(|said| self.lines.to_twin(&said));
            let request = &watched.request;
            assert_eq!(
                Some(format!("{event:?}")),
                said,
                "etcd on the left; {request:?}\n{}",
                self.context(),
            );
        }
        assert_eq!(
            twin.len().max(count),
            segue.len(),
            "etcd told {}: {:?}, {} before\n{}",
            twin.len(),
            watched.request,
            watched.seen,
            self.context(),
        );
        watched.seen += twin.len();
        self.watches.compared += twin.len();
        twin
    }

    /// Begins to watch on both sides; nothing if both say that it is too late for that.
    async fn watch(&mut self, request: pb::WatchCreateRequest) -> Option<Watched> {
        let mut watched = Watched {
            twin: Stream::open(&self.twin),
            segue: Stream::open(&self.segue),
            request,
            seen: 0,
        };
        let request = watched.request.clone();
        let of_segue = pb::WatchCreateRequest {
            start_revision: self.lines.to_segue(request.start_revision),
            ..request.clone()
        };
        let create = RequestUnion::CreateRequest(request.clone());
        watched.twin.send(create).await;
        watched
            .segue
            .send(RequestUnion::CreateRequest(of_segue))
            .await;
        let created = self.same(&mut watched).await.expect("it is created");
        let newest = created.header.expect("an answer has a header").revision;
        if request.start_revision == 0 {
            watched.request.start_revision = newest + 1;
        } else if request.start_revision < self.compacted {
            let end = self.same(&mut watched).await.expect("it is ended");
            assert!(
                end.canceled && end.compact_revision == self.compacted,
                "{end:?}"
            );
            return None;
        }
        Some(watched)
    }

    /// The next response, which has to be the same on both sides.
    async fn same(&mut self, watched: &mut Watched) -> Option<pb::WatchResponse> {
        let (twin, segue) = tokio::join!(watched.twin.next(SOON), watched.segue.next(SOON));
        let said = self.lines.to_twin(&format!("{segue:?}"));
        assert_eq!(
            format!("{twin:?}"),
            said,
            "etcd on the left\n{}",
            self.context()
        );
        twin
    }

    fn random_watch(&mut self) -> pb::WatchCreateRequest {
        let (newest, oldest) = (self.lines.newest(), self.oldest_watch);
        let rng = &mut self.random.rng;
        let (key, end) =
            [("\0", "\0"), ("a", "b"), ("a", ""), ("b", "d"), ("c", "\0")][rng.random_range(0..5)];
        let mut start = if oldest > newest || rng.random_ratio(1, 3) {
            0
        } else {
            rng.random_range(oldest..=newest)
        };
        // Not at the compacted revision itself: before 3.5.18, etcd forgot the deletes of that one.
        if start == self.compacted {
            start = 0;
        }
        pb::WatchCreateRequest {
            prev_kv: rng.random_ratio(1, 2),
            filters: [vec![], vec![], vec![0], vec![1]][rng.random_range(0..4)].clone(),
            ..from(start, watch(key, end))
        }
    }
}

/// The next events, at least so many, or those that come before too long.
async fn read(stream: &mut Stream, count: usize) -> Vec<mvccpb::Event> {
    let mut events: Vec<mvccpb::Event> = Vec::new();
    let revision = |event: &mvccpb::Event| event.kv.as_ref().expect("it has a key").mod_revision;
    while events.len() < count {
        let Some(response) = stream.next(SOON).await else {
            break;
        };
        assert!(!response.canceled, "{response:?}");
        if let (Some(before), Some(next)) = (events.last(), response.events.first()) {
            assert_ne!(revision(before), revision(next), "a revision in parts");
        }
        events.extend(response.events);
    }
    events
}
